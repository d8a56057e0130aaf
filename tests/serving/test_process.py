"""A prediction service in another interpreter: the same results, and recovery when that one ends."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from napari_lowlat_seg.annotation.propagation_run import PropagationRun
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import PlaneSource, PropagationRequest, Request
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.inference.processors import STREAMS, usable
from napari_lowlat_seg.inference.runtime import Precision, has_bf16, has_openvino
from napari_lowlat_seg.serving import wire, worker_process
from napari_lowlat_seg.serving.process import (
    PredictionProcess,
    _threads,
    call_in_process,
    open_prediction_service,
)
from napari_lowlat_seg.serving.service import PredictionService, load_prediction_service
from napari_lowlat_seg.serving.worker_process import Interrupted, WorkerProcessEnded

FAKE = '''
import os, time
import numpy as np
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.serving.worker_process import Interrupted
from napari_lowlat_seg.propagation.sweep import PropagatedMask

class Odd(LookupError):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

class Odder(ValueError):
    pass

class Fake:
    """Embeds by keeping the pixels; predicts those brighter than the click's column."""
    def __init__(self, model):
        self.model, self.kept = model, {}
    def describe(self):
        print("words on standard output do no harm")
        os.system("echo nor do those of a grandchild")
        return {"model": self.model}
    def embed(self, source, cancelled):
        if source.identity in self.kept:
            return 0.0
        self.kept[source.identity] = source.read()
        while self.model == "endless" and not cancelled():
            time.sleep(0.01)
        while self.model == "deaf":
            time.sleep(0.01)
        if cancelled():
            raise Interrupted
        return 0.5
    def predict(self, request, source, cancelled):
        pixels = self.kept.get(source.identity)
        if pixels.ndim == 3:
            pixels = pixels[..., 0]
        if self.model == "odd":
            raise Odd(1, 2)
        if self.model == "odder":
            raise Odder()
        yield SoftMask.from_mask(pixels > request.prompts[0].at[1]), False
        while self.model == "slow" and not cancelled():
            time.sleep(0.01)
        yield SoftMask.from_mask(pixels > 0), True
    def propagate(self, request, sources, cancelled):
        for source in sources if self.model == "hasty" else ():
            try:
                source.read()
            except Exception:
                pass
        for plane, source in zip(request.planes, sources):
            yield 3, PropagatedMask(plane, SoftMask.from_mask(source.read() > 5), 0.5)
            while self.model == "slow" and not cancelled():
                time.sleep(0.01)
            if cancelled():
                raise Interrupted

def load(model, device, closer_look, *, progress, **room):
    if model == "missing":
        raise ValueError("unknown model 'missing'; choose another")
    if model == "far":
        for done in (1, 2):
            progress(done, 2)
    if model == "loud":
        os._exit(3)
    return Fake(model)

def twice(number):
    return 2 * number
'''


@pytest.fixture
def make(tmp_path: Path, monkeypatch) -> Iterator[Callable[..., PredictionProcess]]:
    """Makes a process around a fake; ends it afterwards."""
    (tmp_path / "fake_service.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    made = []

    def one(model: str = "fake", **options: Any) -> PredictionProcess:
        made.append(PredictionProcess(model, load="fake_service:load", **options))
        return made[-1]

    yield one
    for process in made:
        process.close()
        assert gone(process)


@pytest.fixture
def source() -> PlaneSource:
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    return PlaneSource(object(), lambda: pixels)


def request(column: int = 5, ticket: int = 1) -> Request:
    return Request(ticket, 1, Plane((0, None, None)), (Click((0, column)),), None)


def gone(process: PredictionProcess | int | None) -> bool:
    """Whether a process ends before a ceiling that no speed of the machine reaches."""
    number = process.pid if isinstance(process, PredictionProcess) else process
    end = time.monotonic() + 300
    while number and not ended(number) and time.monotonic() < end:
        time.sleep(0.02)
    return not number or ended(number)


def ended(number: int) -> bool:
    """Whether no process has this number, or one that only waits to be collected."""
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_predictions_come_from_the_child(make, source) -> None:
    """Both predictions, in order, with masks that are the child's."""
    process = make()
    assert process.embed(source) == 0.5
    quick, last = process.predict(request(), source)
    np.testing.assert_array_equal(quick[0].probability > 0.5, source.read() > 5)
    assert (quick[1], last[1]) == (False, True)
    assert process.pid not in (None, os.getpid())


@pytest.mark.slow
def test_pixels_travel_once(make, source) -> None:
    """A key may be any object: it is the parent that knows what is equal."""
    read: list[int] = []
    counting = replace(source, read=lambda: read.append(1) or source.read())
    process = make()
    assert [process.embed(counting) for _ in range(3)] == [0.5, 0.0, 0.0]
    assert len(read) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "pixels",
    [
        np.arange(9_000_000, dtype=np.uint16).reshape(3000, 3000),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(48).reshape(6, 8)[::2, ::-2],
        np.arange(36, dtype=">u2").reshape(3, 4, 3),
        np.ones((1, 1), bool),
    ],
    ids=["large", "Fortran", "strided", "foreign", "single"],
)
def test_pixels_of_any_layout_arrive(make, pixels) -> None:
    """More than a pipe holds, and in whatever order they lie."""
    process, source = make(), PlaneSource(1, lambda: pixels)
    process.embed(source)
    *_, (soft_mask, _) = process.predict(request(), source)
    np.testing.assert_array_equal(
        soft_mask.probability > 0.5, (pixels[..., 0] if pixels.ndim == 3 else pixels) > 0
    )


def planes_of(pixels: np.ndarray) -> tuple[PropagationRequest, list[PlaneSource]]:
    """A propagation through planes whose pixels are read here."""
    request = PropagationRequest(tuple(Plane((z, None, None)) for z in range(len(pixels))))
    return request, [PlaneSource(z, lambda z=z: pixels[z]) for z in range(len(pixels))]  # type: ignore[misc]


@pytest.mark.slow
def test_propagation_reads_its_planes_here(make) -> None:
    """The sources keep their order."""
    pixels = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    found = list(make().propagate(*planes_of(pixels)))
    assert [(number, item.plane.position) for number, item in found] == [(3, 0), (3, 1)]
    assert all(np.array_equal(item.prediction.mask, pixels[i] > 5) for i, (_, item) in enumerate(found))


@pytest.mark.slow
def test_a_cancelled_propagation_ends(make) -> None:
    """And the child serves on."""
    process, found = make("slow"), []
    for item in process.propagate(*planes_of(np.zeros((5, 2, 2), np.uint8)), lambda: bool(found)):
        found.append(item)
    assert len(found) == 1
    assert process.describe()["model"] == "slow"


@pytest.mark.slow
def test_an_error_of_loading_arrives_with_kind_and_sentence(make, source) -> None:
    """Every call says it again, since every call tries again."""
    process = make("missing")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^unknown model 'missing'; choose another$"):
            process.embed(source)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kind", "sentence"),
    [
        ("odd", LookupError, "^1 and 2$"),
        ("odder", ValueError, "^Odder$"),
    ],
)
def test_an_error_unknown_here_arrives_as_the_nearest_known_one(make, source, model, kind, sentence) -> None:
    """The child goes on to serve."""
    process = make(model)
    process.embed(source)
    with pytest.raises(kind, match=sentence):
        list(process.predict(request(), source))
    assert process.embed(source) == 0.0


@pytest.mark.slow
def test_an_error_of_reading_pixels_passes_through(make, source) -> None:
    """It is raised here, where it happened, and the child goes on to serve."""

    def torn() -> np.ndarray:
        raise OSError("the disk was pulled")

    process = make()
    process.describe()
    before = process.pid
    with pytest.raises(OSError, match=r"^the disk was pulled$"):
        process.embed(replace(source, read=torn))
    assert process.embed(source) == 0.5
    assert process.pid == before


class Torn(OSError):
    """The disk was pulled."""


@pytest.mark.slow
def test_an_error_of_reading_pixels_is_held_by_nobody_else(make) -> None:
    """It holds the frames that it passed, and those hold pixels."""

    def torn() -> np.ndarray:
        raise Torn

    process = make()
    process.describe()
    gc.disable()
    try:
        with suppress(Torn):
            process.embed(PlaneSource(1, torn))
        assert not any(isinstance(thing, Torn) for thing in gc.get_objects())
    finally:
        gc.enable()


class Damaged:
    """A stack on a disk that has lost plane 4."""

    shape, dtype = (9, 60, 70), np.dtype(np.uint8)

    def __init__(self) -> None:
        self.read: list[int] = []
        self._pixels = np.random.default_rng(0).integers(0, 255, self.shape).astype(np.uint8)

    def __getitem__(self, key: Any) -> np.ndarray:
        self.read.append(key[0])
        if key[0] == 4:
            raise OSError("Input/output error")
        return self._pixels[key]


@pytest.mark.slow
def test_planes_before_one_that_cannot_be_read_are_propagated_all_the_same(make) -> None:
    """Also when it was read ahead of its turn, and the child serves on."""
    process, volume, found = make("hasty"), Volume(Damaged(), window=(0, 255), name="cells"), []
    request = PropagationRequest(tuple(volume.planes()))
    sources = [PlaneSource(plane, partial(volume.plane, plane)) for plane in request.planes]
    for _ in range(2):
        found.clear()
        with pytest.raises(ValueError, match=r"^plane \(4, None, None\) of cells cannot be read \(Input/out"):
            found.extend(item.plane.position for _, item in process.propagate(request, sources))
        assert found == [0, 1, 2, 3]
        before = process.pid
    assert process.pid == before
    complex_pixels = PlaneSource(1, lambda: np.array([[1j]]))
    with pytest.raises(ValueError, match="expected real numbers as pixels, got complex128"):
        process.embed(complex_pixels)
    assert process.pid == before


SMALL_SERVICE = """
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.serving.service import PredictionService
from small_memory import SMALL, SureMemory, small_network

def load(*arguments, progress, **limits):
    predictor = Predictor(small_network(), Runtime("cpu", "fp32", openvino=True), "off")
    predictor._memory = SureMemory(predictor.network, SMALL).eval()
    predictor._load_memory = predictor._memory
    return PredictionService(predictor)
"""


@pytest.mark.slow
@pytest.mark.skipif(not has_openvino(), reason="needs the extra openvino")
def test_a_plane_that_cannot_be_read_ends_a_run_in_its_turn_though_it_is_embedded_ahead(
    tmp_path, monkeypatch
) -> None:
    """The masks before it stay; it is tried once ahead, and once more when it is there."""
    (tmp_path / "small_service.py").write_text(SMALL_SERVICE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])]))
    monkeypatch.setenv("LOWLAT_SEG_CACHE", str(tmp_path))
    monkeypatch.setenv(STREAMS, "2")
    stack = Damaged()
    session = Session(Volume(stack, window=(0, 255), name="cells"))
    planes = session.volume.planes()
    drawn = np.zeros((60, 70), bool)
    drawn[20:34, 20:40] = True
    session.paint(planes[0], drawn)
    run = PropagationRun.propagation(session, planes)
    process = PredictionProcess("small", load="small_service:load")
    try:
        with pytest.raises(ValueError, match=r"^plane \(4, None, None\) of cells cannot be read"):
            run.complete(process)
    finally:
        process.close()
    assert sorted(plane.position for plane in run.reached) == [1, 2, 3]
    assert stack.read.count(4) == 2
    assert session.mask(planes[3]).any()


@pytest.mark.slow
def test_a_cancelled_embedding_stops(make, source) -> None:
    """The child stops while it works, and serves the next request."""
    process = make("endless")
    process.describe()
    before = process.pid
    began = time.perf_counter()
    with pytest.raises(Interrupted):
        process.embed(source, lambda: time.perf_counter() - began > 0.05)
    process.embed(source)
    assert process.pid == before


@pytest.mark.slow
def test_no_prediction_follows_once_a_request_is_cancelled(make, source) -> None:
    """Also when the caller simply stops to listen."""
    process = make("slow")
    process.embed(source)
    predictions = process.predict(request(), source)
    next(predictions)
    predictions.close()
    shown: list[Any] = []
    for soft_mask, _ in process.predict(request(), source, lambda: bool(shown)):
        shown.append(soft_mask)
    assert len(shown) == 2  # this fake yields its last prediction when it is cancelled


@pytest.mark.slow
def test_a_second_call_at_once_is_refused(make, source) -> None:
    """From another thread, and from the same one while an iterator is open; both would wait for ever."""
    process, second = make("endless"), []
    refused = r"^the model process is at work for another call; wait until that one has ended"
    process.describe()

    def meanwhile() -> None:
        for key in (2, 3):
            with pytest.raises(RuntimeError, match=refused):
                process.embed(replace(source, key=key))
            second.append(process.describe())  # needs no message

    other = threading.Thread(target=meanwhile)

    def cancelled() -> bool:
        if not other.ident:
            other.start()
        return len(second) == 2

    with pytest.raises(Interrupted):
        process.embed(source, cancelled)
    other.join()
    process = make()
    process.embed(source)
    predictions = process.predict(request(), source)
    next(predictions)
    with pytest.raises(RuntimeError, match=refused):
        next(process.predict(request(6), source))
    assert len(list(predictions)) == 1
    assert len(list(process.predict(request(6), source))) == 2


def test_two_users_of_one_process_are_never_stuck(make) -> None:
    """Each gets its own masks, or the sentence: as a replay and embedding ahead did that shared one."""
    pixels = np.random.default_rng(0).integers(0, 9, (40, 3, 4)).astype(np.uint8)
    process, refusals = make(), []

    def use(first: int) -> None:
        for place in range(first, len(pixels), 2):
            plane = PlaneSource(place, lambda place=place: pixels[place])  # type: ignore[misc]
            try:
                process.embed(plane)
                (mask, _), _ = process.predict(request(4), plane)
                assert np.array_equal(mask.mask, pixels[place] > 4)
            except RuntimeError as error:
                refusals.append(str(error))

    users = [threading.Thread(target=use, args=(first,), daemon=True) for first in (0, 1)]
    for user in users:
        user.start()
    for user in users:
        user.join(120)
        assert not user.is_alive()
    assert all("at work for another call" in sentence for sentence in refusals)


@pytest.mark.slow
def test_a_child_killed_at_work_raises_and_is_started_again(make, source) -> None:
    """One clear sentence, then all is as before."""
    process = make("endless")

    def kill() -> bool:
        os.kill(process.pid, signal.SIGKILL) if process.pid else None
        return False

    with pytest.raises(WorkerProcessEnded, match="was killed, probably out of memory; your prompts are kept"):
        process.embed(source, kill)
    with pytest.raises(Interrupted):
        process.embed(source, lambda: True)


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [1, 7])
def test_a_run_goes_on_after_its_child_was_killed(make, killed_at) -> None:
    """Each mask once, in order, as if nothing had happened."""
    pixels = np.random.default_rng(0).integers(0, 9, (9, 3, 4)).astype(np.uint8)
    process, found = make(), []
    for item in process.propagate(*planes_of(pixels)):
        found.append(item)
        if len(found) == killed_at:
            os.kill(process.pid, signal.SIGKILL)
    assert [(number, item.plane.position) for number, item in found] == [(3, z) for z in range(9)]
    assert all(np.array_equal(item.prediction.mask, pixels[z] > 5) for z, (_, item) in enumerate(found))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGSTOP")
def test_a_child_that_hangs_is_replaced(make, source, monkeypatch) -> None:
    """One that works, however long, answers by its listener and is not."""
    process = make()
    first = process.describe()["process"]
    monkeypatch.setattr(worker_process, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(worker_process, "HUNG_SECONDS", 6.0)
    os.kill(first, signal.SIGSTOP)
    assert process.embed(source) == 0.5
    assert process.describe()["process"] != first
    deaf = make("deaf")
    deaf.describe()
    monkeypatch.setattr(worker_process, "HUNG_SECONDS", 1.0)

    def ask() -> None:
        with pytest.raises(WorkerProcessEnded):
            deaf.embed(source)

    asked = threading.Thread(target=ask)
    asked.start()
    asked.join(2.5)
    assert asked.is_alive()
    deaf.close()
    asked.join()


@pytest.mark.slow
def test_a_child_killed_at_rest_is_started_again(make, source, until) -> None:
    """The next call starts another, and the plane is embedded once more."""
    process = make()
    assert process.embed(source) == 0.5
    child = process.pid
    os.kill(child, signal.SIGKILL)
    assert gone(child)
    until(lambda: process.pid is None)
    assert process.embed(source) == 0.5


@pytest.mark.slow
def test_a_child_that_ends_while_it_loads_raises_its_exit_status(make, source) -> None:
    """With its exit status."""
    with pytest.raises(WorkerProcessEnded, match="has ended with exit status 3; your prompts are kept"):
        make("loud").describe()


@pytest.mark.slow
def test_a_child_that_does_not_react_is_restarted_from_another_thread(make, source) -> None:
    """The call under way fails, the next one finds a new child."""
    process = make("deaf")
    first = process.describe()["process"]

    def restart() -> bool:
        process.restart()
        return False

    with pytest.raises(WorkerProcessEnded, match="model process was killed"):
        process.embed(source, restart)
    assert process.describe()["process"] != first
    assert gone(first)


@pytest.mark.slow
def test_a_closed_process_refuses(make, source) -> None:
    """Nothing starts by accident."""
    process = make()
    child = process.describe()["process"]
    process.close()
    assert gone(child)
    assert process.pid is None
    with pytest.raises(WorkerProcessEnded, match="was closed; open another one"):
        process.embed(source)


@pytest.mark.slow
def test_downloads_report_progress_and_can_be_cancelled(make) -> None:
    """What the progress raises comes out here and stops the child's loading."""
    progress: list[tuple[int, int | None]] = []
    make("far").describe(lambda *bytes_: progress.append(bytes_))
    assert progress == [(1, 2), (2, 2)]

    def cancel(done: int, total: int | None) -> None:
        raise Interrupted("enough")

    with pytest.raises(Interrupted, match="enough"):
        make("far").describe(cancel)


def test_a_missing_interpreter_raises(make, source, monkeypatch) -> None:
    """The error names the interpreter."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(RuntimeError, match="no process could be started with '/nowhere/python'"):
        make().embed(source)


@pytest.mark.slow
def test_threads_are_those_given_or_set_or_all_but_one(make, monkeypatch) -> None:
    """In this order."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert STREAMS not in _threads(2) | _threads(None)
    assert make(threads=2).describe()["threads"] == 2
    assert make().describe()["threads"] == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert make().describe()["threads"] == max(1, usable() - 1)
    assert _threads(None)[STREAMS] == str(usable())  # they wait for nobody, so the window's is not kept free


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has priorities instead")
def test_the_child_has_the_window_s_priority(make) -> None:
    """With a lower one, a click beside two busy programs waited for seconds."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, make().describe()["process"]) == own


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
@pytest.mark.parametrize("model", ["fake", "deaf"])
def test_a_child_dies_with_its_parent(tmp_path, make, model) -> None:
    """Also when the parent is killed, also in the middle of its work, and without a __main__ guard."""
    script = tmp_path / "annotate.py"
    script.write_text(
        textwrap.dedent(f"""
        import threading, time
        import numpy as np
        from napari_lowlat_seg.serving.service import PlaneSource
        from napari_lowlat_seg.serving.process import PredictionProcess
        process = PredictionProcess("{model}", load="fake_service:load")
        process.describe()
        source = PlaneSource(1, lambda: np.zeros((2, 2)))
        threading.Thread(target=process.embed, args=(source,), daemon=True).start()
        time.sleep(0.3)
        print("child", process.pid, flush=True)
        time.sleep(1000)
        """)
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        words, number = parent.stdout.readline().split()
        parent.kill()
    assert words == "child"
    assert gone(int(number))


def test_modules_in_the_working_folder_do_not_confuse_the_child(make, tmp_path, monkeypatch) -> None:
    """A user may well have a file of the name numpy.py."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "numpy.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(folder)
    assert make().describe()["model"] == "fake"


@pytest.mark.slow
def test_a_function_is_called_in_a_child_of_its_own(make) -> None:
    """Its result and its errors come back."""
    make()
    assert call_in_process("fake_service:twice", 21) == 42
    with pytest.raises(ValueError, match=r"there is no model file /nowhere/a\.pth"):
        call_in_process("napari_lowlat_seg.models.checkpoints:import_model", "/nowhere/a.pth")


@pytest.mark.slow
def test_where_no_interpreter_can_be_started_the_service_is_in_this_process(monkeypatch) -> None:
    """A frozen program is no Python."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    here = open_prediction_service("default", "cpu")
    assert isinstance(here, PredictionService)
    assert call_in_process("os:getpid") == os.getpid()


@pytest.mark.slow
def test_the_service_is_opened_in_a_process() -> None:
    """It starts with the first call only."""
    process = open_prediction_service("default", "cpu")
    assert isinstance(process, PredictionProcess)
    assert process.pid is None


def test_pixels_cannot_be_read_in_the_other_process() -> None:
    """A source that travels leaves its pixels at home."""
    with pytest.raises(RuntimeError, match="these pixels are in another process"):
        wire.unreadable()


@pytest.mark.slow
def test_the_default_model_predicts_as_in_this_process() -> None:
    """The same masks from both sides, in the precision that this processor would not choose."""
    precision: Precision = "fp32" if has_bf16() else "bf16"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120), np.uint8)
    pixels[30:50, 40:70] += 100
    source = PlaneSource("plane", lambda: pixels)
    process = PredictionProcess("default", "cpu", threads=1, precision=precision)
    here = load_prediction_service("default", "cpu", precision=precision)
    try:
        for service in (process, here):
            service.embed(source)
        there, mine = ([a for a, _ in r.predict(request(50), source)] for r in (process, here))
        assert process.describe()["parameters"] == here.describe()["parameters"]
        assert process.describe()["precision"] == here.describe()["precision"] == precision
    finally:
        process.close()
    assert len(there) == len(mine)
    for one, other in zip(there, mine):
        np.testing.assert_allclose(one.probability, other.probability, atol=0.01)
