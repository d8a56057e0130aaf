"""One thread, the newest request first, signals on the main thread."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qtpy.QtWidgets import QApplication

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.requests import PlaneSource, PropagationRequest
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin import progress_bar
from napari_lowlat_seg.plugin.worker import Worker
from napari_lowlat_seg.propagation.sweep import PropagatedMask
from napari_lowlat_seg.serving.process import PredictionProcess
from napari_lowlat_seg.serving.worker_process import Interrupted, WorkerProcessEnded

WALK = PropagationRequest(tuple(Plane((z, None, None)) for z in range(3)))
ANSWER = SoftMask.from_mask(np.ones((2, 2), bool))


@dataclass(frozen=True)
class Asked:
    """A request, as far as a worker looks at it."""

    name: str
    ticket: int = 1


@dataclass
class Scripted:
    """A responder that waits at closed doors, and stops there when told to, unless it is deaf."""

    deaf: bool = False
    error: Exception | None = None
    embed_door: threading.Event = field(default_factory=threading.Event)
    answer_door: threading.Event = field(default_factory=threading.Event)
    last_door: threading.Event = field(default_factory=threading.Event)
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for door in (self.embed_door, self.answer_door, self.last_door):
            door.set()

    def describe(self, progress: Any = None) -> dict[str, Any]:
        self.done.append("describe")
        return {"model": "scripted"}

    def embed(self, source: PlaneSource, newer: Callable[[], bool]) -> float:
        source.read()
        self._wait(self.embed_door, newer)
        self.done.append(f"embed {source.key}")
        return 0.25

    def predict(
        self, request: Asked, source: PlaneSource, newer: Callable[[], bool]
    ) -> Iterator[tuple[SoftMask, bool]]:
        if self.error is not None:
            raise self.error
        self._wait(self.answer_door, newer)
        self.done.append(f"answer {request.name}")
        yield ANSWER, False
        self._wait(self.last_door, newer)
        yield ANSWER, True

    def propagate(
        self, walk: PropagationRequest, sources: Any, newer: Callable[[], bool]
    ) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
        if self.error is not None:
            raise self.error
        for place in walk.planes:
            yield 1, PropagatedMask(place, ANSWER, 0.5)
            while not self.last_door.wait(0.005):
                if newer():
                    return

    def restart(self) -> None:
        self.done.append("restart")
        self.deaf = False

    def close(self) -> None:
        self.done.append("close")
        self.deaf = False
        self.embed_door.set()

    def _wait(self, door: threading.Event, newer: Callable[[], bool]) -> None:
        while not door.wait(0.005):
            if newer() and not self.deaf:
                raise Interrupted


@pytest.fixture
def responder() -> Scripted:
    return Scripted()


@pytest.fixture
def worker(qtbot, responder) -> Iterator[Worker]:
    """A worker with a scripted responder, loaded and idle."""
    one = Worker()
    with qtbot.waitSignals([one.loaded, one.idle]):
        one.load(lambda: responder)
    responder.done.clear()
    yield one
    one.close()
    qtbot.waitUntil(lambda: not one._thread.is_alive())


@pytest.fixture
def described(worker) -> list[Any]:
    """What the worker says, in order."""
    said: list[Any] = []
    worker.embedded.connect(lambda key, seconds: said.append(("embedded", key, seconds)))
    worker.predicted.connect(lambda request, answer, final, _: said.append((request.name, final)))
    worker.failed.connect(lambda words: said.append(("failed", words)))
    return said


def plane(key: str) -> PlaneSource:
    return PlaneSource(key, lambda: np.zeros((2, 2)), name=f"plane {key}")


def test_a_request_is_answered_on_the_main_thread(qtbot, worker, described) -> None:
    """Each answer as it comes, with the seconds since it was asked for."""
    threads: list[Any] = []
    worker.predicted.connect(lambda *_: threads.append(threading.current_thread()))
    with qtbot.waitSignal(worker.idle):
        worker.predict(Asked("a"), plane("1"))
    assert described == [("embedded", "1", 0.25), ("a", False), ("a", True)]
    assert set(threads) == {threading.main_thread()}


@pytest.fixture
def carried(worker) -> list[Any]:
    """The planes that a worker tells of, and how it ended."""
    said: list[Any] = []
    worker.propagated.connect(lambda walk, number, found: said.append(found.plane.position))
    worker.propagation_ended.connect(lambda walk, whole: said.append("end" if whole else "cut short"))
    return said


def test_a_walk_is_told_plane_by_plane(qtbot, worker, carried) -> None:
    """And then that it has arrived."""
    with qtbot.waitSignal(worker.idle):
        worker.propagate(WALK, [plane(str(z)) for z in range(3)])
    assert carried == [0, 1, 2, "end"]


@pytest.mark.parametrize("end", ["ask", "stop", "cancel", "error"])
def test_a_walk_ends_early(qtbot, worker, responder, carried, described, end) -> None:
    """For a request of the user's, when stopped, with everything else, and when it fails."""
    responder.last_door.clear()
    if end == "error":
        responder.error = ValueError("no such plane")
    with qtbot.waitSignal(worker.idle):
        worker.propagate(WALK, [])
        qtbot.waitUntil(lambda: bool(carried) or end == "error")
        if end == "ask":
            worker.predict(Asked("a"), plane("1"))
            qtbot.waitUntil(lambda: ("a", False) in described)
            responder.last_door.set()
        elif end != "error":
            {"stop": worker.stop_propagation, "cancel": worker.cancel}[end]()
    assert carried == ["cut short"] if end == "error" else [0, "cut short"]
    assert ("a", True) in described if end == "ask" else True
    assert described == [("failed", "no such plane")] if end == "error" else True


def test_a_walk_that_was_stopped_before_it_began_is_forgotten(qtbot, worker, responder, carried) -> None:
    """What was asked before it is still answered."""
    responder.answer_door.clear()
    with qtbot.waitSignal(worker.idle):
        worker.predict(Asked("a"), plane("1"))
        worker.propagate(WALK, [])
        worker.stop_propagation()
        responder.answer_door.set()
    assert carried == ["cut short"]
    assert "answer a" in responder.done


def test_what_takes_time_is_named(qtbot, worker) -> None:
    """The state line says it."""
    said: list[str] = []
    worker.started.connect(said.append)
    with qtbot.waitSignal(worker.idle):
        worker.predict(Asked("a"), plane("1"))
    assert said == ["embedding plane 1", "predicting"]


def test_the_newest_request_wins(qtbot, worker, responder, described) -> None:
    """Those that it overtakes while they wait are never begun."""
    responder.answer_door.clear()
    worker.predict(Asked("a"), plane("1"))
    qtbot.waitUntil(lambda: bool(responder.done))
    for name in "bcd":
        worker.predict(Asked(name), plane("1"))
    with qtbot.waitSignal(worker.idle):
        responder.answer_door.set()
    assert responder.done == ["embed 1", "answer a", "embed 1", "answer d"]


def test_a_first_answer_is_finished_and_a_better_one_is_not(qtbot, worker, responder, described) -> None:
    """A stroke that is faster than the network still sees masks."""
    responder.last_door.clear()
    worker.predict(Asked("a"), plane("1"))
    qtbot.waitUntil(lambda: ("a", False) in described)
    worker.predict(Asked("b"), plane("1"))
    qtbot.waitUntil(lambda: ("b", False) in described)
    assert ("a", True) not in described


def test_a_trial_waits_for_a_request_and_never_ends_one(qtbot, worker, responder, described) -> None:
    """Hovering does not cost the mask of the click before."""
    responder.last_door.clear()
    worker.predict(Asked("a"), plane("1"))
    qtbot.waitUntil(lambda: ("a", False) in described)
    worker.predict(Asked("trial", ticket=0), plane("1"))
    with qtbot.waitSignal(worker.idle):
        responder.last_door.set()
    assert [one for one in described if one[0] != "embedded"] == [
        ("a", False),
        ("a", True),
        ("trial", False),
        ("trial", True),
    ]


def test_looks_come_after_requests_and_the_newest_replaces_older_ones(qtbot, worker, responder) -> None:
    """Who scrolls past a plane does not want it embedded."""
    responder.answer_door.clear()
    worker.predict(Asked("a"), plane("1"))
    qtbot.waitUntil(lambda: bool(responder.done))
    for key in "234":
        worker.embed(plane(key))
    worker.predict(Asked("b"), plane("1"))
    with qtbot.waitSignal(worker.idle):
        responder.answer_door.set()
    assert responder.done == ["embed 1", "answer a", "embed 1", "answer b", "embed 4"]


def test_an_embedding_is_left_for_another_plane_and_kept_for_this_one(
    qtbot, worker, responder, described
) -> None:
    """A click on the plane that is being embedded must not begin from the start."""
    responder.embed_door.clear()
    worker.embed(plane("1"))
    qtbot.waitUntil(lambda: worker._busy is not None)
    worker.embed(plane("2"))
    qtbot.waitUntil(lambda: worker._busy is not None and worker._busy.identity == plane("2").identity)
    worker.predict(Asked("a"), plane("2"))
    qtbot.wait(50)
    with qtbot.waitSignal(worker.idle):
        responder.embed_door.set()
    assert responder.done == ["embed 2", "embed 2", "answer a"]


def test_planes_ahead_are_embedded_when_nothing_else_is_to_be_done(
    qtbot, worker, responder, described
) -> None:
    """One after the other, after the answer and the look; nobody waits for them and no bar shows them."""
    said: list[str] = []
    worker.started.connect(said.append)
    worker.embed_ahead([plane(key) for key in "34"])
    worker.embed(plane("2"))
    worker.predict(Asked("a"), plane("1"))
    qtbot.waitUntil(lambda: ("embedded", "4", 0.25) in described)
    assert responder.done[-4:] == ["answer a", "embed 2", "embed 3", "embed 4"]
    assert set(said) <= {"embedding plane 1", "predicting", "embedding plane 2"}
    assert not worker.busy


def busy_with(worker, key) -> bool:
    return worker._busy is not None and worker._busy.source is not None and worker._busy.source.key == key


@pytest.mark.parametrize("ticket", [1, 0, None], ids=["ask", "trial", "look"])
def test_a_request_interrupts_what_is_embedded_ahead(qtbot, worker, responder, ticket) -> None:
    """It goes first, and the planes ahead go on where they were."""
    responder.embed_door.clear()
    worker.embed_ahead([plane(key) for key in "23"])
    qtbot.waitUntil(lambda: busy_with(worker, "2"))
    assert not worker.busy
    if ticket is None:
        worker.embed(plane("1"))
    else:
        worker.predict(Asked("a", ticket), plane("1"))
    qtbot.waitUntil(lambda: busy_with(worker, "1"))
    assert worker.busy
    responder.embed_door.set()
    qtbot.waitUntil(lambda: len([one for one in responder.done if one.startswith("embed")]) == 3)
    assert [one for one in responder.done if one.startswith("embed")] == ["embed 1", "embed 2", "embed 3"]


def test_a_look_at_what_is_being_embedded_ahead_does_not_begin_anew(qtbot, worker, responder) -> None:
    """Nor does one at a plane that is embedded already, nor planes ahead that hold the one under way."""
    with qtbot.waitSignal(worker.idle):
        worker.embed(plane("1"))
    responder.embed_door.clear()
    worker.embed_ahead([plane(key) for key in "23"])
    qtbot.waitUntil(lambda: busy_with(worker, "2"))
    under_way = worker._busy
    worker.embed(plane("1"))
    worker.embed_ahead([plane(key) for key in "324"])
    qtbot.wait(40)
    assert worker._busy is under_way
    worker.embed(plane("2"))
    qtbot.wait(40)
    assert worker._busy is under_way
    responder.embed_door.set()
    qtbot.waitUntil(lambda: "embed 4" in responder.done)


def test_a_look_a_quarter_done_is_finished_for_another_look(qtbot, worker, responder) -> None:
    """Who scrolls faster than the network finds some planes embedded; who asks does not wait for it."""
    worker._typical = 0.02
    responder.embed_door.clear()
    worker.embed(plane("1"))
    qtbot.waitUntil(lambda: busy_with(worker, "1"))
    qtbot.wait(40)
    worker.embed(plane("2"))
    qtbot.wait(40)
    assert busy_with(worker, "1")
    worker.predict(Asked("a"), plane("3"))
    qtbot.waitUntil(lambda: busy_with(worker, "3"))
    responder.embed_door.set()


def test_a_plane_ahead_that_was_looked_at_counts_as_one(qtbot, worker, responder) -> None:
    """A quarter done, it is finished although the user is one further by now."""
    worker._typical = 0.02
    responder.embed_door.clear()
    worker.embed_ahead([plane("1")])
    qtbot.waitUntil(lambda: busy_with(worker, "1"))
    worker.embed(plane("1"))
    qtbot.wait(40)
    worker.embed(plane("2"))
    qtbot.wait(40)
    assert busy_with(worker, "1")
    responder.embed_door.set()
    qtbot.waitUntil(lambda: responder.done == ["embed 1", "embed 2"])


def test_planes_ahead_are_dropped_by_cancel_and_by_none(qtbot, worker, responder) -> None:
    """What is under way stops too."""
    for stop in (worker.cancel, lambda: worker.embed_ahead(())):
        responder.embed_door.clear()
        worker.embed_ahead([plane(key) for key in "12"])
        qtbot.waitUntil(lambda: busy_with(worker, "1"))
        stop()
        qtbot.waitUntil(lambda: worker._busy is None)
        responder.embed_door.set()
    qtbot.wait(30)
    assert [one for one in responder.done if one.startswith("embed")] == []


def test_a_plane_ahead_that_cannot_be_embedded_is_left_out(qtbot, worker, responder, described) -> None:
    """Whoever looks at it is told."""

    def empty() -> Any:
        raise ValueError("no finite pixel")

    worker.embed_ahead([PlaneSource("1", empty), plane("2")])
    qtbot.waitUntil(lambda: described == [("embedded", "2", 0.25)])
    with qtbot.waitSignal(worker.failed):
        worker.embed(PlaneSource("1", empty))


@dataclass
class Fragile(Scripted):
    """One that cannot embed ahead."""

    raised: type[Exception] = WorkerProcessEnded

    def embed(self, source: PlaneSource, newer: Callable[[], bool]) -> float:
        self.done.append(f"embed {source.key}")
        raise self.raised("it has ended")


def test_planes_ahead_end_a_responder_once(qtbot, worker) -> None:
    """Told once; what has ended it is not tried again until a model is loaded."""
    fragile = Fragile()
    with qtbot.waitSignal(worker.idle):
        worker.load(lambda: fragile)
    with qtbot.waitSignals([worker.failed, worker.loaded]):
        worker.embed_ahead([plane(key) for key in "12"])
    worker.embed_ahead([plane("3")])
    qtbot.waitUntil(lambda: worker._busy is None)
    assert [one for one in fragile.done if one.startswith("embed")] == ["embed 1"]


def test_planes_ahead_stop_where_memory_does(qtbot, worker, described, caplog) -> None:
    """It goes to the log: nobody has asked for them."""
    fragile = Fragile(raised=MemoryError)
    with qtbot.waitSignal(worker.idle):
        worker.load(lambda: fragile)
    worker.embed_ahead([plane(key) for key in "12"])
    qtbot.waitUntil(lambda: "planes are not embedded ahead: it has ended" in caplog.text)
    qtbot.waitUntil(lambda: worker._busy is None)
    assert described == []
    assert [one for one in fragile.done if one.startswith("embed")] == ["embed 1"]


def test_cancel_drops_what_waits_and_what_is_under_way(qtbot, worker, responder, described) -> None:
    """A responder that listens goes on to live."""
    responder.answer_door.clear()
    worker.predict(Asked("a"), plane("1"))
    qtbot.waitUntil(lambda: bool(responder.done))
    worker.embed(plane("2"))
    worker._grace.setInterval(300_000)  # a busy machine may take longer than the usual one to stop it
    with qtbot.waitSignal(worker.idle):
        worker.cancel()
    worker._grace.timeout.emit()  # patience ends when there is nothing left to be ended
    assert described == [("embedded", "1", 0.25)]
    assert responder.done == ["embed 1"]
    assert not worker.busy


def test_cancel_restarts_a_responder_that_does_not_listen(qtbot, worker, responder, described) -> None:
    """Its model is loaded again, so that the next click is quick."""
    responder.deaf = True
    responder.embed_door.clear()
    worker.embed(plane("1"))
    qtbot.waitUntil(lambda: worker._busy is not None)
    with qtbot.waitSignals([worker.loaded, worker.idle]):
        worker.cancel()
    assert responder.done == ["restart", "describe"]
    assert described == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("expected this, got that"), "expected this, got that"),
        (MemoryError(), "MemoryError"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_an_error_is_told_in_one_sentence(qtbot, worker, responder, described, error, words) -> None:
    """The engine's own; one that nobody meant for people says its kind. The thread lives on."""
    responder.error = error
    with qtbot.waitSignal(worker.failed) as signal:
        worker.predict(Asked("a"), plane("1"))
    assert signal.args == [words]
    responder.error = None
    with qtbot.waitSignal(worker.predicted):
        worker.predict(Asked("b"), plane("1"))


def test_a_responder_that_has_died_is_loaded_again(qtbot, worker, responder) -> None:
    """Told once; the next request finds it ready."""
    responder.error = WorkerProcessEnded("it has ended")
    with qtbot.waitSignals([worker.failed, worker.loaded]):
        worker.predict(Asked("a"), plane("1"))
    assert responder.done == ["embed 1", "describe"]


def test_a_model_that_does_not_load_answers_nothing(qtbot, worker, responder) -> None:
    """What waited for it is dropped, the old model is gone, and the next request says so."""

    def broken() -> Scripted:
        raise ValueError("unknown model 'x'; choose another")

    with qtbot.waitSignal(worker.failed) as signal, qtbot.waitSignal(worker.idle):
        worker.load(broken)
        worker.predict(Asked("a"), plane("1"))
    assert signal.args == ["unknown model 'x'; choose another"]
    assert responder.done == ["close"]
    with qtbot.waitSignal(worker.failed) as signal:
        worker.predict(Asked("b"), plane("1"))
    assert signal.args == ["no model is loaded; choose one first"]


def test_another_model_takes_the_place_of_the_first(qtbot, worker, responder) -> None:
    """What was under way is dropped, and what is asked now waits for the new one."""
    responder.answer_door.clear()
    worker.predict(Asked("a"), plane("1"))
    qtbot.waitUntil(lambda: bool(responder.done))
    second = Scripted()
    with qtbot.waitSignal(worker.predicted) as signal:
        worker.load(lambda: second)
        worker.predict(Asked("b"), plane("1"))
    assert signal.args[0] == Asked("b")
    assert responder.done == ["embed 1", "close"]


def test_other_work_goes_on_beside_it(qtbot, worker, responder) -> None:
    """Its result arrives on the main thread, its error as a sentence."""
    responder.answer_door.clear()
    worker.predict(Asked("a"), plane("1"))
    results: list[Any] = []
    worker.run(lambda: 42, lambda result: results.append((result, threading.current_thread())))
    qtbot.waitUntil(lambda: bool(results))
    assert results == [(42, threading.main_thread())]
    with qtbot.waitSignal(worker.failed) as signal:
        worker.run(lambda: int("x"), results.append)
    assert "invalid literal" in signal.args[0]


def test_closing_at_work_returns_at_once_and_says_no_more(qtbot, worker, responder, described) -> None:
    """Thread and responder end by themselves."""
    responder.deaf = True
    responder.embed_door.clear()
    worker.embed(plane("1"))
    qtbot.waitUntil(lambda: worker._busy is not None)
    worker.close()
    qtbot.waitUntil(lambda: not worker._thread.is_alive())
    assert responder.done[0] == "close"
    qtbot.wait(20)
    assert described == []


def test_a_model_that_is_loaded_too_late_is_closed(qtbot) -> None:
    """The window was closed while it loaded."""
    door, late = threading.Event(), Scripted()
    worker = Worker()

    def slow() -> Scripted:
        door.wait(300)
        return late

    worker.load(slow)
    qtbot.waitUntil(lambda: worker._busy is not None)
    worker.close()
    door.set()
    qtbot.waitUntil(lambda: not worker._thread.is_alive())
    assert late.done == ["close"]


def test_a_child_process_ends_with_its_worker(qtbot) -> None:
    """A window closed while the model predicts leaves no process behind."""
    worker = Worker()
    with qtbot.waitSignal(worker.loaded) as signal:
        worker.load(lambda: PredictionProcess("default", "cpu", threads=1))
    number = signal.args[0]["process"]
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)
    with qtbot.waitSignal(worker.started):
        worker.embed(PlaneSource("1", lambda: pixels))
    worker.close()
    qtbot.waitUntil(lambda: not worker._thread.is_alive())

    def ended() -> bool:
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return True
        return False

    qtbot.waitUntil(ended)


def test_what_lasts_gets_a_bar_and_its_button_cancels(qtbot, worker, responder) -> None:
    """napari's own, named after what is going on; it goes when that is over."""
    worker._progress_bar._delay.setInterval(10)
    responder.embed_door.clear()
    worker.embed(plane("1"))
    qtbot.waitUntil(lambda: worker._progress_bar._bar is not None)
    bar = worker._progress_bar._bar
    assert bar in progress_bar.cancelable_progress._all_instances
    assert bar.desc.startswith("embedding plane 1")
    with qtbot.waitSignal(worker.idle):
        bar.cancel()
    qtbot.waitUntil(lambda: bar not in progress_bar.cancelable_progress._all_instances)


def test_a_download_moves_the_bar(qtbot, worker, responder) -> None:
    """By bytes, once it is there."""
    bars = worker._progress_bar
    worker.progressed.emit(1, 4)
    bars._delay.setInterval(10)
    responder.embed_door.clear()
    worker.embed(plane("1"))
    qtbot.waitUntil(lambda: bars._bar is not None)
    worker.progressed.emit(3_000_000, 4_000_000)
    qtbot.waitUntil(lambda: (bars._bar.n, bars._bar.total) == (3_000_000, 4_000_000))
    assert "3 MB" in bars._bar.desc
    responder.embed_door.set()
    qtbot.waitUntil(lambda: bars._bar is None)


def test_importing_the_worker_imports_no_torch(run_python) -> None:
    """The window's process never does."""
    code = "import sys, napari_lowlat_seg.plugin.worker; print('torch' in sys.modules)"
    assert run_python(code) == "False"


def test_a_bar_that_turns_the_event_loop_does_not_turn_round_the_order(qtbot, worker, responder) -> None:
    """napari's bars do that: an error told right after "predicting" stays the last word."""
    words: list[str] = []
    worker._progress_bar._bar = SimpleNamespace(
        set_description=lambda _: QApplication.processEvents(), close=list
    )
    worker.started.connect(words.append)
    worker.failed.connect(words.append)
    responder.error = ValueError("no answer")
    with qtbot.waitSignal(worker.idle):
        worker.predict(Asked("a"), plane("1"))
    assert words[-1] == "no answer"
