"""One thread, the newest request first, signals on the main thread."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bright_service import BrightService
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click, Scribble
from napari_lowlat_seg.core.requests import PlaneSource, PropagationRequest, Request
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.worker import Worker
from napari_lowlat_seg.propagation.sweep import PropagatedMask
from napari_lowlat_seg.serving.process import PredictionProcess
from napari_lowlat_seg.serving.worker_process import Interrupted, WorkerProcessEnded

PROPAGATION = PropagationRequest(tuple(Plane((z, None, None)) for z in range(3)))
MASK = SoftMask.from_mask(np.ones((2, 2), bool))


@dataclass(frozen=True)
class FakeRequest:
    """A request, as far as a worker looks at it."""

    name: str
    ticket: int = 1


@dataclass
class ScriptedService:
    """A service that waits for events to be set, and stops there when cancelled, unless it is deaf."""

    deaf: bool = False
    error: Exception | None = None
    embed_door: threading.Event = field(default_factory=threading.Event)
    first_door: threading.Event = field(default_factory=threading.Event)
    last_door: threading.Event = field(default_factory=threading.Event)
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for door in (self.embed_door, self.first_door, self.last_door):
            door.set()

    def describe(self, progress: Any = None) -> dict[str, Any]:
        self.done.append("describe")
        return {"model": "scripted"}

    def embed(self, source: PlaneSource, cancelled: Callable[[], bool]) -> float:
        source.read()
        self._wait(self.embed_door, cancelled)
        self.done.append(f"embed {source.key}")
        return 0.25

    def predict(
        self, request: FakeRequest, source: PlaneSource, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[SoftMask, bool]]:
        if self.error is not None:
            raise self.error
        self._wait(self.first_door, cancelled)
        self.done.append(f"predict {request.name}")
        yield MASK, False
        self._wait(self.last_door, cancelled)
        yield replace(MASK), True  # another process sends it once more

    def propagate(
        self, request: PropagationRequest, sources: Any, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
        if self.error is not None:
            raise self.error
        for place in request.planes:
            yield 1, PropagatedMask(place, MASK, 0.5)
            while not self.last_door.wait(0.005):
                if cancelled():
                    return

    def restart(self) -> None:
        self.done.append("restart")
        self.deaf = False

    def close(self) -> None:
        self.done.append("close")
        self.deaf = False
        self.embed_door.set()

    def _wait(self, door: threading.Event, cancelled: Callable[[], bool]) -> None:
        while not door.wait(0.005):
            if cancelled() and not self.deaf:
                raise Interrupted


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def worker(qtbot, service) -> Iterator[Worker]:
    """A worker with a scripted service, loaded and idle."""
    one = Worker()
    with qtbot.waitSignals([one.loaded, one.idle]):
        one.load(lambda: service)
    service.done.clear()
    yield one
    one.close()
    qtbot.waitUntil(lambda: not one._thread.is_alive())


@pytest.fixture
def events(worker) -> list[Any]:
    """What the worker emits, in order."""
    seen: list[Any] = []
    worker.embedded.connect(lambda key, seconds: seen.append(("embedded", key, seconds)))
    worker.predicted.connect(lambda request, answer, final, _: seen.append((request.name, final)))
    worker.failed.connect(lambda words: seen.append(("failed", words)))
    return seen


def plane(key: str) -> PlaneSource:
    return PlaneSource(key, lambda: np.zeros((2, 2)), name=f"plane {key}")


def test_masks_arrive_on_the_main_thread(qtbot, worker, events) -> None:
    """Each mask as it comes, with the seconds since the request; one that comes twice is one object."""
    threads: list[Any] = []
    masks: list[Any] = []
    worker.predicted.connect(lambda _request, mask, *_: masks.append(mask))
    worker.predicted.connect(lambda *_: threads.append(threading.current_thread()))
    with qtbot.waitSignal(worker.idle):
        worker.predict(FakeRequest("a"), plane("1"))
    assert events == [("embedded", "1", 0.25), ("a", False), ("a", True)]
    assert set(threads) == {threading.main_thread()}
    assert masks[0] is masks[1]


@pytest.fixture
def planes(worker) -> list[Any]:
    """The planes that a propagation reached, and how it ended."""
    seen: list[Any] = []
    worker.propagated.connect(lambda request, number, found: seen.append(found.plane.position))
    worker.propagation_ended.connect(
        lambda request, complete: seen.append("end" if complete else "cut short")
    )
    return seen


def test_a_propagation_emits_each_plane_and_its_end(qtbot, worker, planes) -> None:
    """In spatial order."""
    with qtbot.waitSignal(worker.idle):
        worker.propagate(PROPAGATION, [plane(str(z)) for z in range(3)])
    assert planes == [0, 1, 2, "end"]


@pytest.mark.parametrize("end", ["request", "stop", "cancel", "error"])
def test_a_propagation_ends_early(qtbot, worker, service, planes, events, end) -> None:
    """For a request of the user's, when stopped, with everything else, and when it fails."""
    service.last_door.clear()
    if end == "error":
        service.error = ValueError("no such plane")
    with qtbot.waitSignal(worker.idle):
        worker.propagate(PROPAGATION, [])
        qtbot.waitUntil(lambda: bool(planes) or end == "error")
        if end == "request":
            worker.predict(FakeRequest("a"), plane("1"))
            qtbot.waitUntil(lambda: ("a", False) in events)
            service.last_door.set()
        elif end != "error":
            {"stop": worker.stop_propagation, "cancel": worker.cancel}[end]()
    assert planes == ["cut short"] if end == "error" else [0, "cut short"]
    assert ("a", True) in events if end == "request" else True
    assert events == [("failed", "no such plane")] if end == "error" else True


def test_a_propagation_stopped_before_it_began_does_not_run(qtbot, worker, service, planes) -> None:
    """A request before it is still predicted."""
    service.first_door.clear()
    with qtbot.waitSignal(worker.idle):
        worker.predict(FakeRequest("a"), plane("1"))
        worker.propagate(PROPAGATION, [])
        worker.stop_propagation()
        service.first_door.set()
    assert planes == ["cut short"]
    assert "predict a" in service.done


def test_what_takes_time_is_named(qtbot, worker) -> None:
    """The state line says it."""
    seen: list[str] = []
    worker.started.connect(seen.append)
    with qtbot.waitSignal(worker.idle):
        worker.predict(FakeRequest("a"), plane("1"))
    assert seen == ["embedding plane 1", "predicting"]


def test_the_newest_request_wins(qtbot, worker, service, events) -> None:
    """Those that it overtakes while they wait are never begun."""
    service.first_door.clear()
    worker.predict(FakeRequest("a"), plane("1"))
    qtbot.waitUntil(lambda: bool(service.done))
    for name in "bcd":
        worker.predict(FakeRequest(name), plane("1"))
    with qtbot.waitSignal(worker.idle):
        service.first_door.set()
    assert service.done == ["embed 1", "predict a", "embed 1", "predict d"]


def test_a_first_mask_is_finished_and_a_refined_one_is_not(qtbot, worker, service, events) -> None:
    """A stroke that is faster than the network still sees masks."""
    service.last_door.clear()
    worker.predict(FakeRequest("a"), plane("1"))
    qtbot.waitUntil(lambda: ("a", False) in events)
    worker.predict(FakeRequest("b"), plane("1"))
    qtbot.waitUntil(lambda: ("b", False) in events)
    assert ("a", True) not in events


def test_a_preview_waits_for_a_request_and_never_interrupts_one(qtbot, worker, service, events) -> None:
    """Hovering does not cost the mask of the click before."""
    service.last_door.clear()
    worker.predict(FakeRequest("a"), plane("1"))
    qtbot.waitUntil(lambda: ("a", False) in events)
    worker.predict(FakeRequest("preview", ticket=0), plane("1"))
    with qtbot.waitSignal(worker.idle):
        service.last_door.set()
    assert [one for one in events if one[0] != "embedded"] == [
        ("a", False),
        ("a", True),
        ("preview", False),
        ("preview", True),
    ]


def asked(name: str, *at: tuple[float, float], ticket: int = 1, previous: SoftMask | None = None) -> Any:
    """A request with clicks."""
    prompts = tuple(Click(one) for one in at)
    return SimpleNamespace(name=name, ticket=ticket, object=1, prompts=prompts, previous=previous)


@pytest.fixture
def embedded(qtbot, worker, service, events) -> None:
    """Plane 1 is embedded, and nothing is written down of it."""
    with qtbot.waitSignal(worker.idle):
        worker.embed(plane("1"))
    service.done.clear()
    events.clear()


@pytest.mark.usefixtures("embedded")
def test_a_mask_predicted_ahead_is_there_when_it_is_requested(qtbot, worker, service, events) -> None:
    """At once, and only once; what refines it comes as always. Nobody is told of it before."""
    worker.predict_ahead(asked("ahead", (4, 5), ticket=0), plane("1"))
    qtbot.waitUntil(lambda: service.done == ["predict ahead"] and worker._predicted_ahead is not None)
    assert not worker.busy
    assert events == []
    service.first_door.clear()  # the network is not there yet with the request itself
    worker.predict(asked("a", (4, 5 + 1e-12)), plane("1"))
    qtbot.waitUntil(lambda: ("a", False) in events)
    with qtbot.waitSignal(worker.idle):
        service.first_door.set()
    assert [one for one in events if one[0] != "embedded"] == [("a", False), ("a", True)]
    assert service.done == ["predict ahead", "embed 1", "predict a"]


@pytest.mark.usefixtures("embedded")
def test_a_mask_that_is_still_predicted_ahead_is_waited_for(qtbot, worker, service, events) -> None:
    """What is under way for the same click is not begun again before its first mask is there."""
    service.first_door.clear()
    worker.predict_ahead(asked("ahead", (4, 5), ticket=0), plane("1"))
    qtbot.waitUntil(lambda: busy_with(worker, "1"))
    worker.predict(asked("a", (4, 5)), plane("1"))
    with qtbot.waitSignal(worker.idle):
        service.first_door.set()
    assert service.done == ["predict ahead", "embed 1", "predict a"]
    assert [one for one in events if one[0] != "embedded"] == [("a", False), ("a", True)]


@pytest.mark.parametrize(
    "other",
    [
        asked("a", (4, 6)),
        asked("a", (1, 1), (4, 5)),
        asked("a", (4, 5), previous=MASK),
        SimpleNamespace(**vars(asked("a")) | {"prompts": (Click((4, 5), False),)}),
        SimpleNamespace(**vars(asked("a")) | {"prompts": (Scribble([(4, 5)]),)}),
        SimpleNamespace(**vars(asked("a", (4, 5))) | {"object": 2}),
    ],
    ids=["elsewhere", "another before it", "another mask", "another sign", "a scribble", "another object"],
)
@pytest.mark.parametrize("done", [False, True], ids=["under way", "done"])
@pytest.mark.usefixtures("embedded")
def test_a_mask_predicted_ahead_answers_nothing_else(qtbot, worker, service, events, other, done) -> None:
    """What is under way for a click that did not come is left."""
    (service.last_door if done else service.first_door).clear()
    worker.predict_ahead(asked("ahead", (4, 5), ticket=0), plane("1"))
    qtbot.waitUntil(lambda: worker._predicted_ahead is not None if done else busy_with(worker, "1"))
    worker.predict(other, plane("1"))
    qtbot.waitUntil(lambda: not busy_with(worker, "1") or worker._busy.request is other)
    with qtbot.waitSignal(worker.idle):
        service.first_door.set()
        service.last_door.set()
    assert service.done == ["predict ahead"] * done + ["embed 1", "predict a"]
    assert [one for one in events if one[0] != "embedded"] == [("a", False), ("a", True)]


@pytest.mark.usefixtures("embedded")
def test_what_is_predicted_ahead_fails_silently(qtbot, worker, service, events) -> None:
    """The request for it says why, if it comes."""
    service.error = ValueError("no such pixel")
    worker.predict_ahead(asked("ahead", (4, 5), ticket=0), plane("1"))
    with qtbot.waitSignal(worker.idle):
        worker.embed(plane("2"))
    assert [one for one in events if one[0] == "failed"] == []
    with qtbot.waitSignal(worker.failed):
        worker.predict(asked("a", (4, 5)), plane("1"))


def test_on_a_plane_that_is_not_embedded_nothing_is_predicted_ahead(qtbot, worker, service) -> None:
    """Embedding it is what takes long."""
    worker.predict_ahead(asked("ahead", (4, 5), ticket=0), plane("1"))
    with qtbot.waitSignal(worker.idle):
        worker.embed(plane("1"))
    assert service.done == ["embed 1"]


def test_planes_in_view_come_after_requests_and_the_newest_replaces_older_ones(
    qtbot, worker, service
) -> None:
    """Who scrolls past a plane does not want it embedded."""
    service.first_door.clear()
    worker.predict(FakeRequest("a"), plane("1"))
    qtbot.waitUntil(lambda: bool(service.done))
    for key in "234":
        worker.embed(plane(key))
    worker.predict(FakeRequest("b"), plane("1"))
    with qtbot.waitSignal(worker.idle):
        service.first_door.set()
    assert service.done == ["embed 1", "predict a", "embed 1", "predict b", "embed 4"]


def test_an_embedding_is_left_for_another_plane_and_kept_for_this_one(qtbot, worker, service, events) -> None:
    """A click on the plane that is being embedded must not begin from the start."""
    service.embed_door.clear()
    worker.embed(plane("1"))
    qtbot.waitUntil(lambda: worker._busy is not None)
    worker.embed(plane("2"))
    qtbot.waitUntil(lambda: worker._busy is not None and worker._busy.identity == plane("2").identity)
    worker.predict(FakeRequest("a"), plane("2"))
    qtbot.wait(50)
    with qtbot.waitSignal(worker.idle):
        service.embed_door.set()
    assert service.done == ["embed 2", "embed 2", "predict a"]


def test_planes_ahead_are_embedded_when_nothing_else_is_to_be_done(qtbot, worker, service, events) -> None:
    """In order, after the request and the plane in view; `idle` and the bar ignore them."""
    seen: list[str] = []
    worker.started.connect(seen.append)
    worker.embed_ahead([plane(key) for key in "34"])
    worker.embed(plane("2"))
    worker.predict(FakeRequest("a"), plane("1"))
    qtbot.waitUntil(lambda: ("embedded", "4", 0.25) in events)
    assert service.done[-4:] == ["predict a", "embed 2", "embed 3", "embed 4"]
    assert set(seen) <= {"embedding plane 1", "predicting", "embedding plane 2"}
    assert not worker.busy


def busy_with(worker, key) -> bool:
    return worker._busy is not None and worker._busy.source is not None and worker._busy.source.key == key


@pytest.mark.parametrize("ticket", [1, 0, None], ids=["request", "preview", "plane in view"])
def test_a_request_interrupts_what_is_embedded_ahead(qtbot, worker, service, ticket) -> None:
    """It goes first, and the planes ahead go on where they were."""
    service.embed_door.clear()
    worker.embed_ahead([plane(key) for key in "23"])
    qtbot.waitUntil(lambda: busy_with(worker, "2"))
    assert not worker.busy
    if ticket is None:
        worker.embed(plane("1"))
    else:
        worker.predict(FakeRequest("a", ticket), plane("1"))
    qtbot.waitUntil(lambda: busy_with(worker, "1"))
    assert worker.busy
    service.embed_door.set()
    qtbot.waitUntil(lambda: len([one for one in service.done if one.startswith("embed")]) == 3)
    assert [one for one in service.done if one.startswith("embed")] == ["embed 1", "embed 2", "embed 3"]


def test_a_plane_being_embedded_ahead_is_not_begun_again_when_it_comes_into_view(
    qtbot, worker, service
) -> None:
    """Nor does one at a plane that is embedded already, nor planes ahead that hold the one under way."""
    with qtbot.waitSignal(worker.idle):
        worker.embed(plane("1"))
    service.embed_door.clear()
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
    service.embed_door.set()
    qtbot.waitUntil(lambda: "embed 4" in service.done)


def test_a_plane_in_view_a_quarter_done_is_finished_for_another_one(qtbot, worker, service) -> None:
    """Fast scrolling leaves some planes embedded; a request does not wait for them."""
    worker._typical = 0.02
    service.embed_door.clear()
    worker.embed(plane("1"))
    qtbot.waitUntil(lambda: busy_with(worker, "1"))
    qtbot.wait(40)
    worker.embed(plane("2"))
    qtbot.wait(40)
    assert busy_with(worker, "1")
    worker.predict(FakeRequest("a"), plane("3"))
    qtbot.waitUntil(lambda: busy_with(worker, "3"))
    service.embed_door.set()


def test_a_plane_ahead_that_came_into_view_counts_as_in_view(qtbot, worker, service) -> None:
    """A quarter done, it is finished although the user is one further by now."""
    worker._typical = 0.02
    service.embed_door.clear()
    worker.embed_ahead([plane("1")])
    qtbot.waitUntil(lambda: busy_with(worker, "1"))
    worker.embed(plane("1"))
    qtbot.wait(40)
    worker.embed(plane("2"))
    qtbot.wait(40)
    assert busy_with(worker, "1")
    service.embed_door.set()
    qtbot.waitUntil(lambda: service.done == ["embed 1", "embed 2"])


def test_planes_ahead_are_dropped_by_cancel_and_by_none(qtbot, worker, service) -> None:
    """What is under way stops too."""
    for stop in (worker.cancel, lambda: worker.embed_ahead(())):
        service.embed_door.clear()
        worker.embed_ahead([plane(key) for key in "12"])
        qtbot.waitUntil(lambda: busy_with(worker, "1"))
        stop()
        qtbot.waitUntil(lambda: worker._busy is None)
        service.embed_door.set()
    qtbot.wait(30)
    assert [one for one in service.done if one.startswith("embed")] == []


def test_a_plane_ahead_that_cannot_be_embedded_is_left_out(qtbot, worker, service, events) -> None:
    """The error is shown when it comes into view."""

    def empty() -> Any:
        raise ValueError("no finite pixel")

    worker.embed_ahead([PlaneSource("1", empty), plane("2")])
    qtbot.waitUntil(lambda: events == [("embedded", "2", 0.25)])
    with qtbot.waitSignal(worker.failed):
        worker.embed(PlaneSource("1", empty))


@dataclass
class Fragile(ScriptedService):
    """One that cannot embed ahead."""

    raised: type[Exception] = WorkerProcessEnded

    def embed(self, source: PlaneSource, cancelled: Callable[[], bool]) -> float:
        self.done.append(f"embed {source.key}")
        raise self.raised("it has ended")


def test_planes_ahead_end_a_service_once(qtbot, worker) -> None:
    """Reported once; the request that ended it is not repeated until a model is loaded."""
    fragile = Fragile()
    with qtbot.waitSignal(worker.idle):
        worker.load(lambda: fragile)
    with qtbot.waitSignals([worker.failed, worker.loaded]):
        worker.embed_ahead([plane(key) for key in "12"])
    worker.embed_ahead([plane("3")])
    qtbot.waitUntil(lambda: worker._busy is None)
    assert [one for one in fragile.done if one.startswith("embed")] == ["embed 1"]


def test_planes_ahead_stop_where_memory_does(qtbot, worker, events, caplog) -> None:
    """It goes to the log: the user has not requested them."""
    fragile = Fragile(raised=MemoryError)
    with qtbot.waitSignal(worker.idle):
        worker.load(lambda: fragile)
    worker.embed_ahead([plane(key) for key in "12"])
    qtbot.waitUntil(lambda: "planes are not embedded ahead: it has ended" in caplog.text)
    qtbot.waitUntil(lambda: worker._busy is None)
    assert events == []
    assert [one for one in fragile.done if one.startswith("embed")] == ["embed 1"]


def test_cancel_drops_what_waits_and_what_is_under_way(qtbot, worker, service, events) -> None:
    """A service that stops in time is kept."""
    service.first_door.clear()
    worker.predict(FakeRequest("a"), plane("1"))
    qtbot.waitUntil(lambda: bool(service.done))
    worker.embed(plane("2"))
    worker._grace.setInterval(300_000)  # a busy machine may take longer than the usual one to stop it
    with qtbot.waitSignal(worker.idle):
        worker.cancel()
    worker._grace.timeout.emit()  # patience ends when there is nothing left to be ended
    assert events == [("embedded", "1", 0.25)]
    assert service.done == ["embed 1"]
    assert not worker.busy


def test_cancel_restarts_a_service_that_does_not_stop(qtbot, worker, service, events) -> None:
    """Its model is loaded again, so that the next click is quick."""
    service.deaf = True
    service.embed_door.clear()
    worker.embed(plane("1"))
    qtbot.waitUntil(lambda: worker._busy is not None)
    with qtbot.waitSignals([worker.loaded, worker.idle]):
        worker.cancel()
    assert service.done == ["restart", "describe"]
    assert events == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("expected this, got that"), "expected this, got that"),
        (MemoryError(), "not enough memory; close other programs, or open a smaller image"),
        (MemoryError("Unable to allocate 3.00 GiB"), "Unable to allocate 3.00 GiB"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_an_error_is_one_sentence(qtbot, worker, service, events, error, words) -> None:
    """The engine's own message; an unexpected error is named by its type. The thread continues."""
    service.error = error
    with qtbot.waitSignal(worker.failed) as signal:
        worker.predict(FakeRequest("a"), plane("1"))
    assert signal.args == [words]
    service.error = None
    with qtbot.waitSignal(worker.predicted):
        worker.predict(FakeRequest("b"), plane("1"))


def test_a_service_that_has_died_is_loaded_again(qtbot, worker, service) -> None:
    """Reported once; the next request finds it ready."""
    service.error = WorkerProcessEnded("it has ended")
    with qtbot.waitSignals([worker.failed, worker.loaded]):
        worker.predict(FakeRequest("a"), plane("1"))
    assert service.done == ["embed 1", "describe"]


def test_requests_are_dropped_when_the_model_does_not_load(qtbot, worker, service) -> None:
    """What waited for it is dropped, the old model is gone, and the next request says so."""

    def broken() -> ScriptedService:
        raise ValueError("unknown model 'x'; choose another")

    with qtbot.waitSignal(worker.failed) as signal, qtbot.waitSignal(worker.idle):
        worker.load(broken)
        worker.predict(FakeRequest("a"), plane("1"))
    assert signal.args == ["unknown model 'x'; choose another"]
    assert service.done == ["close"]
    with qtbot.waitSignal(worker.failed) as signal:
        worker.predict(FakeRequest("b"), plane("1"))
    assert signal.args == ["no model is loaded; choose one first"]


def test_another_model_takes_the_place_of_the_first(qtbot, worker, service) -> None:
    """What was under way is dropped; a new request waits for the new model."""
    service.first_door.clear()
    worker.predict(FakeRequest("a"), plane("1"))
    qtbot.waitUntil(lambda: bool(service.done))
    second = ScriptedService()
    with qtbot.waitSignal(worker.predicted) as signal:
        worker.load(lambda: second)
        worker.predict(FakeRequest("b"), plane("1"))
    assert signal.args[0] == FakeRequest("b")
    assert service.done == ["embed 1", "close"]


def test_other_work_goes_on_beside_it(qtbot, worker, service) -> None:
    """Its result arrives on the main thread, its error as a sentence."""
    service.first_door.clear()
    worker.predict(FakeRequest("a"), plane("1"))
    results: list[Any] = []
    worker.run(lambda: 42, lambda result: results.append((result, threading.current_thread())))
    qtbot.waitUntil(lambda: bool(results))
    assert results == [(42, threading.main_thread())]
    with qtbot.waitSignal(worker.failed) as signal:
        worker.run(lambda: int("x"), results.append)
    assert "invalid literal" in signal.args[0]


def test_closing_at_work_returns_at_once_and_emits_nothing_more(qtbot, worker, service, events) -> None:
    """Thread and service end by themselves."""
    service.deaf = True
    service.embed_door.clear()
    worker.embed(plane("1"))
    qtbot.waitUntil(lambda: worker._busy is not None)
    worker.close()
    qtbot.waitUntil(lambda: not worker._thread.is_alive())
    assert service.done[0] == "close"
    qtbot.wait(20)
    assert events == []


def test_a_model_that_is_loaded_too_late_is_closed(qtbot) -> None:
    """The window was closed while it loaded."""
    door, late = threading.Event(), ScriptedService()
    worker = Worker()

    def slow() -> ScriptedService:
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


def test_importing_the_worker_imports_no_torch(run_python) -> None:
    """The window's process never does."""
    code = "import sys, napari_lowlat_seg.plugin.worker; print('torch' in sys.modules)"
    assert run_python(code) == "False"


def test_a_search_goes_on_after_a_click_and_stops_when_it_is_cancelled(qtbot):
    """The plane under way is searched anew; what was searched before is kept."""
    image = np.zeros((3, 40, 50), np.uint8)
    image[:, 5:15, 5:15] = 200
    sources = [PlaneSource(z, partial(image.__getitem__, z), name=f"plane {z}") for z in range(3)]
    service, worker, heard = BrightService(), Worker(), []
    worker.found.connect(lambda ticket, place, found: heard.append((place, found.labels is not None)))
    worker.predicted.connect(lambda *_: heard.append("predicted"))
    worker.find_ended.connect(lambda ticket, complete: heard.append((ticket, complete)))
    worker.load(lambda: service)
    service.gate.clear()
    worker.find("first", sources)
    qtbot.waitUntil(lambda: heard == [(0, False)])
    worker.predict(Request(1, 1, Plane(), (Click((9.0, 9.0)),), None), sources[0])
    qtbot.waitUntil(lambda: len(service.calls) == 1)
    service.gate.set()
    qtbot.waitUntil(lambda: ("first", True) in heard)
    planes = [(0, False), (0, True), (1, False), (1, True), (2, False), (2, True)]
    assert heard == [(0, False), "predicted", *planes, ("first", True)]
    service.gate.clear()
    worker.find("second", sources)
    qtbot.waitUntil(lambda: heard[-1] == (0, False))
    worker.cancel()
    qtbot.waitUntil(lambda: heard[-1] == ("second", False))
    service.gate.set()
    worker.close()
