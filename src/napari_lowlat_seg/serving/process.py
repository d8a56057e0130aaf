"""A responder in a process of its own, so that whoever draws windows never waits for a network.

Why a process, and with how many threads: docs/decisions/inference-process.md.
"""

from __future__ import annotations

import inspect
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from cachetools import LRUCache

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.processors import threads_set_by_user, usable
from napari_lowlat_seg.core.requests import (
    Cancelled,
    PlaneSource,
    Progress,
    PropagationRequest,
    Request,
    never,
)
from napari_lowlat_seg.propagation.sweep import PropagatedMask
from napari_lowlat_seg.serving.service import CACHE_BYTES, PredictionService, load_prediction_service
from napari_lowlat_seg.serving.worker_process import (
    Connection,
    Interrupted,
    WorkerProcess,
    WorkerProcessEnded,
)

LOAD = "napari_lowlat_seg.serving.service:load_prediction_service"

NICENESS = 10
"""Steps by which the child gives way to the window."""

NUMBERED = 10_000
"""Planes that the child knows by number. One that has lost its number is embedded once more."""


class PredictionProcess:
    """The doors of a `PredictionService`, the work in a child process.

    The child starts with the first call, and again with the next one after it has ended for whatever reason;
    its embeddings are made anew then. Call `embed`, `predict` and `describe` from one thread; `restart` and
    `close` from any.

    Parameters
    ----------
    model, device, closer_look
        As `predictor.load_predictor` has them.
    cache_bytes, disk_bytes
        As `load_prediction_service` has them.
    threads
        Processor threads of the network; None for OMP_NUM_THREADS if the user has set it, else all but one of
        those that `processors.usable` counts, so that the window keeps one.
    niceness
        Steps by which the child gives way to other processes; 0 for none.
    load
        "module:function" that makes the responder in the child, called as `load_prediction_service` is.
    """

    def __init__(
        self,
        model: str = "default",
        device: str = "auto",
        closer_look: str = "auto",
        *,
        cache_bytes: int = CACHE_BYTES,
        disk_bytes: int = 0,
        threads: int | None = None,
        niceness: int = NICENESS,
        load: str = LOAD,
    ) -> None:
        room = {"cache_bytes": cache_bytes, "disk_bytes": disk_bytes}
        self._content = (load, (model, device, closer_look), room)
        self._environment, self._niceness = _threads(threads), niceness
        self._planes: LRUCache[Any, int] = LRUCache(NUMBERED)
        self._numbers = itertools.count(1)
        self._child: WorkerProcess | None = None
        self._facts: dict[str, Any] = {}
        self._lock = threading.Lock()  # between starting a child and closing for good
        self._closed = False

    def embed(self, source: PlaneSource, cancelled: Cancelled = never) -> float:
        """As `PredictionService.embed`; `source.read` is called here, if the child lacks the embedding."""
        child, services = self._running(), {"read": source.read}
        (seconds,) = child.ask("embed", (self._numbered(source),), services, cancelled)
        return float(seconds)

    def predict(
        self, request: Request, source: PlaneSource, cancelled: Cancelled = never
    ) -> Iterator[tuple[SoftMask, bool]]:
        """As `PredictionService.predict`."""
        child, services = self._running(), {"read": source.read}
        try:
            yield from child.ask("predict", (request, self._numbered(source)), services, cancelled)
        except Interrupted:
            return

    def propagate(
        self, walk: PropagationRequest, sources: Sequence[PlaneSource], cancelled: Cancelled = never
    ) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
        """As `PredictionService.propagate`; each plane is read here when an object reaches it."""
        child, services = self._running(), {"read": lambda place: sources[place].read()}
        numbered = [self._numbered(source) for source in sources]
        try:
            yield from child.ask("propagate", (walk, numbered), services, cancelled)
        except Interrupted:
            return

    def describe(self, progress: Progress | None = None) -> dict[str, Any]:
        """Facts on the model as `PredictionService.describe` has them, and the child's process and threads.

        Loads the model if need be. Raises what loading raises; `WorkerProcessEnded`, a RuntimeError, if the
        child ends or this was closed; what `progress` raises cancels a download.
        """
        self._running(progress)
        return self._facts

    @property
    def pid(self) -> int | None:
        """The child's process; None while there is none."""
        child = self._child
        return None if child is None or child.ended else child.pid

    def restart(self) -> None:
        """Ends the child at once, whatever it is doing; the next call starts another."""
        if self._child is not None:
            self._child.kill()

    def close(self) -> None:
        """Ends the child for good and returns at once; a call under way raises `child.WorkerProcessEnded`."""
        with self._lock:
            self._closed = True
        self.restart()

    def _running(self, progress: Progress | None = None) -> WorkerProcess:
        """The child, with its model loaded."""
        if self._child is not None and not self._child.ended:
            return self._child
        with self._lock:
            if self._closed:
                raise WorkerProcessEnded("the process that runs the model was closed; open another one")
            child = self._child = WorkerProcess(__name__, "serve", self._environment, self._niceness)
        try:
            (self._facts,) = child.ask("load", self._content, {"progress": progress or _nobody})
        except BaseException:
            child.kill()
            raise
        return child

    def _numbered(self, source: PlaneSource) -> PlaneSource:
        """The source as it travels: a key may be anything hashable, and pixels stay until asked for."""
        identity = source.identity
        if identity not in self._planes:
            self._planes[identity] = next(self._numbers)
        return replace(source, key=self._planes[identity], read=_elsewhere)


def open_prediction_service(
    model: str = "default",
    device: str = "auto",
    closer_look: str = "auto",
    *,
    cache_bytes: int = CACHE_BYTES,
    disk_bytes: int = 0,
) -> PredictionProcess | PredictionService:
    """A responder in a process of its own; in this one where no further interpreter can be started.

    The latter takes as long as loading the model takes: call it off the main thread.
    """
    make: Any = PredictionProcess if can_start_interpreters() else load_prediction_service
    made: PredictionProcess | PredictionService = make(
        model, device, closer_look, cache_bytes=cache_bytes, disk_bytes=disk_bytes
    )
    return made


def in_child(entry: str, *arguments: Any, progress: Progress | None = None) -> Any:
    """What "module:function" gives for these arguments in a process of its own, or here if there can be none.

    For work that needs torch, which a window's process shall not import: "...checkpoints:import_model". A
    function with a parameter `progress` is handed one. Raises what it raises.
    """
    if not can_start_interpreters():
        return _called(entry, arguments, progress or _nobody)
    child = WorkerProcess(__name__, "serve", _threads(None))
    try:
        (result,) = child.ask("call", (entry, arguments), {"progress": progress or _nobody})
        return result
    finally:
        child.kill()


def can_start_interpreters() -> bool:
    """Whether `sys.executable` is a Python, and not a program with one frozen into it."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


def serve() -> None:
    """What the child runs."""
    channel = Connection()
    desk = _Desk(channel)
    verbs = ("load", "embed", "predict", "propagate", "call")
    channel.serve({verb: getattr(desk, verb) for verb in verbs})


class _Desk:
    """The child's side of every question."""

    def __init__(self, channel: Connection) -> None:
        self._channel = channel
        self._responder: Any = None

    def load(self, entry: str, arguments: tuple[Any, ...], room: dict[str, int]) -> Iterator[dict[str, Any]]:
        self._responder = _found(entry)(*arguments, **room, progress=self._progress)
        threads = os.environ["OMP_NUM_THREADS"]
        yield {**self._responder.describe(), "process": os.getpid(), "threads": int(threads)}

    def embed(self, source: PlaneSource) -> Iterator[float]:
        yield self._responder.embed(self._here(source), self._channel.stopped)

    def predict(self, request: Request, source: PlaneSource) -> Iterator[tuple[SoftMask, bool]]:
        answers: Iterator[tuple[SoftMask, bool]]
        answers = self._responder.predict(request, self._here(source), self._channel.stopped)
        return answers

    def propagate(
        self, walk: PropagationRequest, sources: Sequence[PlaneSource]
    ) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
        here = [
            replace(source, read=partial(self._channel.call, "read", place))
            for place, source in enumerate(sources)
        ]
        found: Iterator[tuple[int, PropagatedMask[SoftMask]]]
        found = self._responder.propagate(walk, here, self._channel.stopped)
        return found

    def call(self, entry: str, arguments: tuple[Any, ...]) -> Iterator[Any]:
        yield _called(entry, arguments, self._progress)

    def _here(self, source: PlaneSource) -> PlaneSource:
        return replace(source, read=lambda: self._channel.call("read"))

    def _progress(self, done: int, total: int | None) -> None:
        self._channel.call("progress", done, total)


def _called(entry: str, arguments: tuple[Any, ...], progress: Progress) -> Any:
    function = _found(entry)
    wanted = "progress" in inspect.signature(function).parameters
    return function(*arguments, **({"progress": progress} if wanted else {}))


def _found(entry: str) -> Callable[..., Any]:
    module, _, name = entry.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def _threads(count: int | None) -> dict[str, str]:
    """The environment of a child whose networks compute with so many threads."""
    if count is None and threads_set_by_user():
        return {}
    return {"OMP_NUM_THREADS": str(count or max(1, usable() - 1))}


def _nobody(done: int, total: int | None) -> None:
    """Nobody wants to know."""


def _elsewhere() -> NoReturn:
    raise RuntimeError("these pixels are in another process; ask for them there")
