"""What several test files share."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from terminal import Call, call_with

# Hypothesis fails examples of more than 200 ms and slow generators; on a busy machine any is.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

PATIENCE = float(os.environ.get("TEST_PATIENCE", 300))
"""Seconds until a test stops waiting for something that never comes.

No bar for speed: far above what a busy machine needs, and below the time limit in pyproject.toml, so that the
message names the condition.
"""


TESTS = Path(__file__).parent


def _lacking() -> str:
    for module in ("napari", "pytestqt"):
        if find_spec(module) is None:
            return f"no {module}: pip install --group gui"
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        return "no screen: run under xvfb-run, as scripts/test does"
    return ""


# What a user would be shown counts as a failure. napari says of every turned image that it shows it so.
KINDS = ("UserWarning", "RuntimeWarning", "FutureWarning")
STRICT = (*(f"error::{kind}" for kind in KINDS), "ignore:Non-orthogonal slicing")


WINDOWS = {"plugin", "window"}
"""Folders whose tests need a window."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without the tests that need a window their files are not read: importing napari takes seconds."""
    without = "not gui" in config.option.markexpr
    return True if without and collection_path.is_dir() and collection_path.name in WINDOWS else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests with a window as `gui`; without a screen they skip, or fail if REQUIRE_GUI is set.

    Tests marked `thorough` run where they are asked for, by that word or one by one.
    """
    asked = "thorough" in config.option.markexpr or any("::" in argument for argument in config.args)
    thorough = [] if asked else [item for item in items if item.get_closest_marker("thorough")]
    if thorough:
        config.hook.pytest_deselected(items=thorough)
        items[:] = [item for item in items if item not in set(thorough)]
    window = [item for item in items if WINDOWS & set(item.path.relative_to(TESTS).parts[:-1])]
    lacking = _lacking()
    if window and lacking and os.environ.get("REQUIRE_GUI"):
        raise pytest.UsageError(f"REQUIRE_GUI is set but there is {lacking}")
    for item in window:
        item.add_marker(pytest.mark.gui)
        for rule in reversed(STRICT):
            item.add_marker(pytest.mark.filterwarnings(rule), append=False)  # a test may know better
        if lacking:
            item.add_marker(pytest.mark.skip(reason=lacking))
    # Files with the most long tests first: of several processes none is left alone with them at the end.
    long = Counter(item.path for item in items if {"gui", "slow"} & item.keywords.keys())
    items.sort(key=lambda item: -long[item.path])


if find_spec("pytestqt") is not None:
    from pytestqt.qtbot import QtBot

    class PatientBot(QtBot):  # type: ignore[misc]
        """pytest-qt's helper; waits for a condition end after `PATIENCE` seconds, not after 5."""

        def waitUntil(self, callback: Any, *, timeout: int = int(1000 * PATIENCE)) -> None:
            super().waitUntil(callback, timeout=timeout)

        def waitSignal(self, signal: Any, *, timeout: int = int(1000 * PATIENCE), **options: Any) -> Any:
            return super().waitSignal(signal, timeout=timeout, **options)

        def waitSignals(self, signals: Any, *, timeout: int = int(1000 * PATIENCE), **options: Any) -> Any:
            return super().waitSignals(signals, timeout=timeout, **options)

    @pytest.fixture
    def qtbot(qapp: Any, request: pytest.FixtureRequest) -> QtBot:
        """In place of pytest-qt's, also for napari's fixtures."""
        return PatientBot(request)


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """What earlier files left is not searched again.

    napari collects garbage whenever a layer goes, in every test; with torch and compiled models loaded that
    takes a quarter of a second each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def quick_removal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that goes costs no search of the whole heap: a sixth of the time of all tests with a window.

    napari searches it against a fault of Windows drivers; between two tests its own fixture does as well.
    """
    if "gui" in request.keywords:
        from napari._vispy import canvas

        monkeypatch.setattr(canvas, "gc", SimpleNamespace(collect=lambda: 0))


SETTINGS_CLASSES: dict[frozenset[str], dict[str, Any]] = {}


@pytest.fixture(autouse=True)
def settings_of_the_test(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """A tool chosen in one window is not that of the next test, nor of the user.

    The classes of settings, which napari makes of the manifests, are those of the plugins that are there.
    """
    if "gui" not in request.keywords:
        yield
        return
    from napari import settings as of_napari

    def classes() -> dict[str, Any]:
        from npe2 import PluginManager

        manager = PluginManager.instance()
        manager.discover()
        there = frozenset(one.name for one in manager.iter_manifests(disabled=False))
        if there not in SETTINGS_CLASSES:
            SETTINGS_CLASSES[there] = make_classes()
        return SETTINGS_CLASSES[there]

    make_classes = of_napari.plugin_configuration_generator
    monkeypatch.setattr(of_napari, "plugin_configuration_generator", classes)
    folder = tmp_path_factory.mktemp("settings")
    monkeypatch.setattr(of_napari, "_CFG_PATH", str(folder / "settings.yaml"))
    of_napari._clear_plugin_settings_cache()
    yield
    of_napari._clear_plugin_settings_cache()


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each test has its journals: pytest would search all folders before it makes the next one."""
    return tmp_path_factory.mktemp("states")


@pytest.fixture(autouse=True)
def journals(monkeypatch: pytest.MonkeyPatch, states: Path) -> Path:
    """The folder of the journals of this test alone: no window offers the session of another one."""
    state = Path(mkdtemp(dir=states))
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    return state / "napari-lowlat-seg" / "journals"


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], object]], None]:
    """Wait until a condition holds; fail if it never does. No test waits by a time of its own."""

    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"waited {PATIENCE:.0f} s in vain")
            time.sleep(0.005)

    return wait


@pytest.fixture
def run_python() -> Callable[[str], str]:
    """Run code in a Python of its own, the only way to see a fresh import; gives back what it prints."""

    def run(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def deadly_cluster() -> Iterator[str]:
    """The address of a cluster of two workers, one of whom is killed when the first two tasks are done.

    With TLS; Dask's configuration has the keys. At the end it fails unless the death came while tasks were
    left.
    """
    if sys.platform == "win32":
        pytest.skip("needs SIGKILL")
    distributed = pytest.importorskip("distributed")
    pytest.importorskip("cryptography")
    import dask

    left: list[int] = []
    keys = distributed.Security.temporary()
    known = {
        "ca-file": keys.tls_ca_file,
        "client.cert": keys.tls_client_cert,
        "client.key": keys.tls_client_key,
    }
    with (
        dask.config.set({f"distributed.comm.tls.{name}": value for name, value in known.items()}),
        distributed.LocalCluster(
            2, threads_per_worker=1, dashboard_address=None, silence_logs=40, security=keys
        ) as cluster,
    ):
        over = threading.Event()

        def kill_one() -> None:
            while not over.is_set() and not left:
                states = [task.state for task in list(cluster.scheduler.tasks.values())]
                if states.count("memory") >= 2:
                    os.kill(cluster.workers[0].pid, signal.SIGKILL)
                    left.append(len(states) - states.count("memory"))
                time.sleep(0.002)

        thread = threading.Thread(target=kill_one)
        thread.start()
        yield cluster.scheduler_address
        over.set()
        thread.join()
    assert left, "no worker was killed"
    assert left[0] > 0, "the worker was killed when all was done"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of random weights that takes milliseconds."""
    import torch

    from napari_lowlat_seg.models.checkpoints import save_model
    from napari_lowlat_seg.models.segnext import SegNext, SegNextConfig

    torch.manual_seed(0)
    config = SegNextConfig(
        size=64, dim=16, depth=1, heads=2, fusion_heads=2, neck_dims=(4, 8, 8, 8), head_dim=8, fit="letterbox"
    )
    return save_model(SegNext(config).eval(), tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="session")
def export_sam(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """Write a network with a SAM export's inputs and outputs, that takes what is bright for the object.

    `signs` are the factors of its masks and `scores` their predicted IoUs; the logits fed back are added.
    `extra` names one more tensor that the encoder hands to the decoder, as HQ-SAM's does.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    def tensor(name: str, *shape: int | str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    def constant(name: str, values: Any, dtype: type = np.float32) -> Any:
        return numpy_helper.from_array(np.array(values, dtype), name)

    def save(
        path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]
    ) -> Path:
        graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
        opset = helper.make_opsetid("", 17)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
        return path

    def export(
        signs: tuple[float, ...] = (1.0,),
        scores: tuple[float, ...] = (0.5,),
        *,
        extra: str = "",
        low_res: bool = True,
    ) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("sam")
        node, count = helper.make_node, len(signs)
        encoder = [node("AveragePool", ["x"], ["image_embeddings"], kernel_shape=[4, 4], strides=[4, 4])]
        encoder += [node("Identity", ["image_embeddings"], [extra])] if extra else []
        names = ["image_embeddings", *([extra] if extra else [])]
        encoded = [tensor(name, 1, 3, 16, 16) for name in names]
        decoder = [
            node("ReduceMean", ["image_embeddings"], ["gray"], axes=[1], keepdims=1),
            node("Mul", ["mask_input", "has_mask_input"], ["fed"]),
            node("Mul", ["gray", "signs"], ["signed"]),
            node("Add", ["signed", "fed"], ["low_res_masks"]),
            node("Cast", ["orig_im_size"], ["size"], to=TensorProto.INT64),
            node("Concat", ["lead", "size"], ["sizes"], axis=0),
            node("Resize", ["low_res_masks", "", "", "sizes"], ["masks"], mode="nearest"),
            node("Identity", ["scores"], ["iou_predictions"]),
        ]
        constants = [
            constant("signs", np.reshape(signs, (1, count, 1, 1))),
            constant("scores", [scores]),
            constant("lead", [1, count], np.int64),
        ]
        inputs = [
            *encoded,
            tensor("point_coords", 1, "n", 2),
            tensor("point_labels", 1, "n"),
            tensor("mask_input", 1, 1, 16, 16),
            tensor("has_mask_input", 1),
            tensor("orig_im_size", 2),
        ]
        outputs = [tensor("masks", 1, count, "h", "w"), tensor("iou_predictions", 1, count)]
        outputs += [tensor("low_res_masks", 1, count, 16, 16)] if low_res else []
        return (
            save(folder / "encoder.onnx", encoder, [tensor("x", 1, 3, 64, 64)], encoded, []),
            save(folder / "decoder.onnx", decoder, inputs, outputs, constants),
        )

    return export


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Run the command line in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return call_with(capsys)
