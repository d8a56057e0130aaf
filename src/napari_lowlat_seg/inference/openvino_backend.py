"""OpenVINO on a processor: encoder and click of a network converted once, with the same answers in less time.

An optional extra. The converted network waits in the cache folder, so that only the first start pays for it.
Why, with which precision, and what it costs: docs/decisions/hot-path.md.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from napari_lowlat_seg.inference.torch_backend import Step
from napari_lowlat_seg.models.network import Network
from napari_lowlat_seg.models.registry import cache_dir

GLANCE_MS = 10
"""Between two glances at whether the answer is still wanted. Answers themselves wake at once."""

KEPT = 4
"""Converted networks in the cache folder; those unused for longest are removed."""

CLOSE = {"f32": 1e-3, "bf16": 0.1}
"""How far a step may be from torch's, as a share of the largest value, to be trusted at all."""

Look = Callable[[], object]


class Refused(RuntimeError):
    """OpenVINO cannot be loaded, or does not convert this network."""


class CompiledStep:
    """A step of fixed shapes, compiled for this processor. One call at a time.

    Parameters
    ----------
    compiled
        OpenVINO's compiled model.
    look
        Called before and, again and again, during the work; what it raises stops the work and comes out.
    """

    def __init__(self, compiled: Any, look: Look) -> None:
        self._tensor = openvino().Tensor
        self._request = compiled.create_infer_request()
        self._outputs = len(compiled.outputs)
        self._look = look

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The step's tensors, which are the caller's to keep."""
        self._look()
        request = self._request
        arrays = [x.float().contiguous().numpy() for x in inputs]  # kept here until the work is done
        for index, array in enumerate(arrays):
            request.set_input_tensor(index, self._tensor(array, shared_memory=True))
        request.start_async()
        try:
            while not request.wait_for(GLANCE_MS):
                self._look()
        except BaseException:
            request.cancel()  # it ends before the next layer
            while not _over(request):
                pass
            raise
        return tuple(torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in range(self._outputs))


def compiled_steps(
    network: Network, click: Step, precision: str, look: Look = lambda: None
) -> tuple[CompiledStep, CompiledStep]:
    """`network.encode` for one image, and `click` (maps (1, 3, S, S) and features to tensors).

    Parameters
    ----------
    network
        On the processor, in float32 and evaluation mode.
    precision
        Of the products of `click`, "fp32" or "bf16"; embeddings are always made in float32.
    look
        As `CompiledStep` has it.

    Raises
    ------
    Refused
        If OpenVINO cannot be loaded, does not convert the network, or comes to other numbers than torch.
    """
    try:
        return _compiled_steps(network, click, "bf16" if precision == "bf16" else "f32", look)
    except Refused:
        raise
    except Exception as problem:  # OpenVINO's errors are RuntimeError, torch's tracer has more kinds
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise Refused(reason) from problem


def openvino() -> Any:
    """The library, without what it tells its makers.

    Importing it sends an event to Google Analytics through `openvino_telemetry` unless the user has opted
    out. What is None here cannot be imported, and OpenVINO goes on with its stub.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def _compiled_steps(
    network: Network, click: Step, hint: str, look: Look
) -> tuple[CompiledStep, CompiledStep]:
    core = openvino().Core()
    folder = cache_dir() / "openvino" / _key(network)

    def compiled(models: dict[str, Any]) -> tuple[CompiledStep, CompiledStep]:
        return (
            CompiledStep(_compiled(core, models["encode"], "f32"), look),
            CompiledStep(_compiled(core, models["click"], hint), look),
        )

    def kept() -> tuple[CompiledStep, CompiledStep]:
        return compiled({name: core.read_model(f"{folder}/{name}.xml") for name in ("encode", "click")})

    try:
        steps = kept()
        os.utime(folder)
        return steps
    except (OSError, RuntimeError):
        pass  # there is none yet, or it is spoilt
    started = time.perf_counter()
    side = (1, 3, network.size, network.size)
    image, maps = torch.rand(side) * 255, torch.rand(side)
    with torch.no_grad():
        features = network.encode(image)
        expected = click(maps, *features)
        models = {
            "encode": _converted(network, network.encode, image),
            "click": _converted(network, click, maps, *features),
        }
    _store(models, folder)
    try:
        encode, answer = kept()  # as at every later start: what was read rounds otherwise than what was made
    except (OSError, RuntimeError):
        encode, answer = compiled(models)
    try:
        _check("encode", encode(image), features, "f32")
        _check("click", answer(maps, *features), expected, hint)
    except Refused:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    seconds = time.perf_counter() - started
    logging.getLogger(__name__).info("converted for OpenVINO in %.1f s, kept in %s", seconds, folder)
    return encode, answer


def _compiled(core: Any, model: Any, hint: str) -> Any:
    return core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # a thread bound to one core would share it with the window's
        },
    )


class _Traced(nn.Module):
    """A step as a module, which is what converters take."""

    def __init__(self, network: Network, step: Step) -> None:
        super().__init__()
        self.network = network
        self.step = step

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.step(*inputs)


def _converted(network: Network, step: Step, *inputs: Tensor) -> Any:
    shapes = [openvino().PartialShape(list(x.shape)) for x in inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's: shapes are fixed, and branches hang on them only
        traced = torch.jit.trace(_Traced(network, step).eval(), inputs, check_trace=False)
        return openvino().convert_model(traced, example_input=inputs, input=shapes)


def _check(name: str, found: tuple[Tensor, ...], expected: tuple[Tensor, ...], hint: str) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        apart, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
        if not apart <= CLOSE[hint] * max(largest, 1.0):
            raise Refused(f"its {name} differs from torch's by {apart:.3g} at values up to {largest:.3g}")


def _key(network: Network) -> str:
    """A name for all that a converted network depends on: weights, settings, program, and converter."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().contiguous().numpy())
    rooms = {type(module).__module__ for module in network.modules()}
    for room in sorted(room for room in rooms if not room.startswith("torch.")):
        digest.update(inspect.getsource(sys.modules[room]).encode())
    digest.update(repr(getattr(network, "config", "")).encode())
    digest.update(f"{openvino().__version__} {torch.__version__}".encode())
    return f"{type(network).__name__}-{network.size}-{digest.hexdigest()[:16]}"


def _store(models: dict[str, Any], folder: Path) -> None:
    """Both models in a folder that appears at once, or not at all; a cache that cannot be written is none."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as made:
            for name, model in models.items():
                openvino().save_model(model, f"{made}/new/{name}.xml", compress_to_fp16=False)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(f"{made}/new", folder)
        _forget(folder.parent)
    except OSError:
        return


def _forget(place: Path) -> None:
    """Leaves the converted networks that were used last."""
    by_use = sorted(place.iterdir(), key=lambda path: path.stat().st_mtime)
    for old in by_use[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _over(request: Any) -> bool:
    """Whether a request that was cancelled has ended."""
    try:
        return bool(request.wait_for(GLANCE_MS))
    except RuntimeError:  # how it tells that it was cancelled
        return True
