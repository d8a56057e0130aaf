"""A prediction service in a process of its own, so that a window never waits for a network.

The process may be on another machine, at the other end of ssh (`remote`). Why a process, and with how many
threads: docs/decisions/inference-process.md.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.requests import (
    Cancelled,
    FoundOnPlane,
    PlaneSource,
    Progress,
    PropagationRequest,
    Request,
    never,
)
from napari_lowlat_seg.inference.processors import STREAMS, threads_set_by_user, usable
from napari_lowlat_seg.propagation.sweep import PropagatedMask
from napari_lowlat_seg.serving.remote import RemoteDevice, is_remote
from napari_lowlat_seg.serving.service import CACHE_BYTES, PredictionService, load_prediction_service
from napari_lowlat_seg.serving.wire import unreadable
from napari_lowlat_seg.serving.worker_process import (
    Connection,
    Interrupted,
    WorkerProcess,
    WorkerProcessEnded,
    python_command,
)

if TYPE_CHECKING:
    from napari_lowlat_seg.inference.runtime import Precision

LOAD = "napari_lowlat_seg.serving.service:load_prediction_service"

NUMBERED = 10_000
"""Planes that the child knows by number. One that has lost its number is embedded once more."""


class PredictionProcess:
    """A `PredictionService` with its methods here and its work in a child process.

    The child starts with the first call. When it ends in a call, another is started, once, and the call goes
    on where it was; when it has ended otherwise, the next call starts another. A new child computes its
    embeddings again. `embed`, `predict`, `propagate`, `find_objects` and loading by `describe`
    come one at a time: one that is called before another has ended raises RuntimeError, whatever its thread.
    What they return ends when it is exhausted or closed. `restart` and `close` are called from any thread.

    Parameters
    ----------
    model, device, closer_look
        As `load_predictor` has them; the device may be one of another machine, "ssh://HOST", which must have
        this package. The model is the one of that name there.
    cache_bytes, disk_bytes
        As `load_prediction_service` has them.
    threads
        Processor threads of the network; None for OMP_NUM_THREADS if the user has set it, else all but one of
        those that `processors.usable` counts, so that the window keeps one.
    precision
        As `load_predictor` has it.
    load
        "module:function" that makes the service in the child, called as `load_prediction_service` is.
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
        precision: Precision | None = None,
        load: str = LOAD,
    ) -> None:
        limits = {"cache_bytes": cache_bytes, "disk_bytes": disk_bytes}
        self._there = RemoteDevice.parse(device) if is_remote(device) else None
        if self._there is not None:
            device = self._there.device
        how = (model, device, closer_look, *(() if precision is None else (precision,)))
        self._load = (load, how, limits)
        self._environment = _threads(threads)
        self._planes: LRUCache[Any, int] = LRUCache(NUMBERED)
        self._numbers = itertools.count(1)
        self._child: WorkerProcess | None = None
        self._facts: dict[str, Any] = {}
        self._lock = threading.Lock()  # between starting a child and closing for good
        self._closed = False
        self._under_way = threading.Lock()  # held by the call that the child works for

    def embed(self, source: PlaneSource, cancelled: Cancelled = never) -> float:
        """As `PredictionService.embed`; `source.read` is called here, if the child lacks the embedding."""
        (seconds,) = self._request("embed", None, [source], cancelled, (float, int))
        return float(seconds)

    def predict(
        self, request: Request, source: PlaneSource, cancelled: Cancelled = never
    ) -> Iterator[tuple[SoftMask, bool]]:
        """As `PredictionService.predict`."""
        with suppress(Interrupted):
            yield from self._request("predict", request, [source], cancelled, (SoftMask, bool))

    def propagate(
        self, request: PropagationRequest, sources: Sequence[PlaneSource], cancelled: Cancelled = never
    ) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
        """As `PredictionService.propagate`; a plane is read here when the object is two planes before it."""
        with suppress(Interrupted):
            yield from self._request("propagate", request, sources, cancelled, (int, PropagatedMask))

    def find_objects(
        self, settings: Mapping[str, Any], sources: Sequence[PlaneSource], cancelled: Cancelled = never
    ) -> Iterator[tuple[int, FoundOnPlane]]:
        """As `PredictionService.find_objects`."""
        with suppress(Interrupted):
            yield from self._request("find_objects", dict(settings), sources, cancelled, (int, FoundOnPlane))

    def describe(self, progress: Progress | None = None) -> dict[str, Any]:
        """Facts on the model as `PredictionService.describe` has them, and the child's process and threads.

        Loads the model if need be. Raises what loading raises, and `WorkerProcessEnded`, a RuntimeError, if
        the child ends or this was closed. What `progress` raises cancels a download.
        """
        facts = self._facts
        if facts and self.pid is not None:  # known, also while the child works
            return facts
        with self._one_at_a_time():
            self._running(progress)
            return self._facts

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        child = self._child
        return None if child is None or child.ended else child.pid

    def restart(self) -> None:
        """Kill the child at once, whatever it is doing; the next call starts another."""
        if self._child is not None:
            self._child.kill()

    def close(self) -> None:
        """Kill the child for good and return at once; a call under way raises `WorkerProcessEnded`."""
        with self._lock:
            self._closed = True
        self.restart()

    def _request(
        self,
        kind: str,
        message: Any,
        sources: Sequence[PlaneSource],
        cancelled: Cancelled,
        expected: tuple[type[Any], type[Any]],
    ) -> Iterator[Any]:
        """What the child's service yields for one request; pixels are read here when the child needs them.

        A child that dies is replaced once: the next one is asked the same, and what was there is left out.
        """
        with self._one_at_a_time():
            yield from self._replies(kind, message, sources, cancelled, expected)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Two calls at once would take each other's messages, and both would wait for ever."""
        if not self._under_way.acquire(blocking=False):
            raise RuntimeError(
                "the model process is at work for another call; wait until that one has ended (an iterator: "
                "until it is exhausted or closed), or open a PredictionProcess for each thread"
            )
        try:
            yield
        finally:
            self._under_way.release()

    def _replies(
        self,
        kind: str,
        message: Any,
        sources: Sequence[PlaneSource],
        cancelled: Cancelled,
        expected: tuple[type[Any], type[Any]],
    ) -> Iterator[Any]:
        """As `_request`, which holds the child."""
        numbered = [self._numbered(source) for source in sources]
        delivered, again = 0, False
        while True:
            child = self._running()
            callbacks = {"read": partial(_read, child, sources)}
            try:
                replies = child.request(kind, (message, numbered), callbacks, cancelled)
                for place, item in enumerate(replies):
                    if not _like(item, expected):
                        child.reject("sent something else than was asked for and was ended")
                    if place == delivered:
                        delivered += 1
                        yield item
                return
            except WorkerProcessEnded:
                if again or child.killed or child.misbehaved or self._closed:
                    raise
                again = True

    def _running(self, progress: Progress | None = None) -> WorkerProcess:
        """The child, with its model loaded."""
        if self._child is not None and not self._child.ended:
            return self._child
        with self._lock:
            if self._closed:
                raise WorkerProcessEnded("the process that runs the model was closed; open another one")
            self._facts = {}
            child = self._child = self._started()
        try:
            (facts,) = child.request("load", self._load, {"progress": progress or (lambda *_: None)})
            if not isinstance(facts, dict):
                child.reject("did not say what it has loaded and was ended")
            if self._there is not None:
                away = f"{1000 * child.ping():.0f} ms away"
                facts["device"] = f"{facts.get('device')} of {self._there.host}, {away}"
            self._facts = facts
        except BaseException:
            child.kill()
            raise
        return child

    def _started(self) -> WorkerProcess:
        if self._there is None:
            return WorkerProcess(python_command(__name__, "serve"), self._environment)
        return WorkerProcess(
            self._there.command(), name=f"the model process on {self._there.host}", remote=True
        )

    def _numbered(self, source: PlaneSource) -> PlaneSource:
        """The source as it travels: its key, which may be anything hashable, a number; its pixels stay."""
        identity = source.identity
        if identity not in self._planes:
            self._planes[identity] = next(self._numbers)
        return replace(source, key=self._planes[identity], read=unreadable)


def open_prediction_service(
    model: str = "default",
    device: str = "auto",
    closer_look: str = "auto",
    *,
    cache_bytes: int = CACHE_BYTES,
    disk_bytes: int = 0,
) -> PredictionProcess | PredictionService:
    """A service in a process of its own; in this process where no further interpreter can be started.

    The latter takes as long as loading the model takes: call it off the main thread. Parameters are those of
    `PredictionProcess`.
    """
    make: Any = PredictionProcess if can_start_interpreters() else load_prediction_service
    service: PredictionProcess | PredictionService = make(
        model, device, closer_look, cache_bytes=cache_bytes, disk_bytes=disk_bytes
    )
    return service


def call_in_process(entry: str, *arguments: Any) -> Any:
    """What "module:function" returns, run in a process of its own, or here if there can be none.

    For work that needs torch, which a window's process does not import: "...checkpoints:import_model".
    Raises what the function raises.
    """
    if not can_start_interpreters():
        return _function(entry)(*arguments)
    child = WorkerProcess(python_command(__name__, "serve"), _threads(None))
    try:
        (result,) = child.request("call", (entry, arguments), {})
        return result
    finally:
        child.kill()


def can_start_interpreters() -> bool:
    """Whether `sys.executable` is a Python, and not a program with one frozen into it."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


def serve(functions: bool = True) -> None:
    """Serve the parent's requests until it ends; the child's main function.

    Parameters
    ----------
    functions
        Whether the parent may name functions to call, rather than load a model and use it only.
    """
    connection = Connection()
    server = _Server(connection, functions)
    requests: dict[str, Any] = {
        kind: partial(server.request, kind) for kind in ("embed", "predict", "propagate", "find_objects")
    }
    if functions:
        requests["call"] = server.call
    connection.serve({"load": server.load, **requests})


class _Server:
    """The child's side of every request."""

    def __init__(self, connection: Connection, functions: bool) -> None:
        self._connection, self._functions = connection, functions
        self._service: Any = None

    def load(
        self, entry: str, arguments: tuple[Any, ...], limits: dict[str, int]
    ) -> Iterator[dict[str, Any]]:
        load = _function(entry if self._functions else LOAD)
        self._service = load(*arguments, **limits, progress=self._progress)
        threads = os.environ.get("OMP_NUM_THREADS", usable())
        yield {**self._service.describe(), "process": os.getpid(), "threads": int(threads)}

    def request(self, kind: str, message: Any, sources: Sequence[PlaneSource]) -> Iterator[Any]:
        readable = [
            replace(source, read=partial(self._connection.call, "read", place))
            for place, source in enumerate(sources)
        ]
        service, cancelled = self._service, self._connection.cancelled
        if kind == "embed":
            yield service.embed(readable[0], cancelled)
        else:
            given = readable if kind in ("propagate", "find_objects") else readable[0]
            yield from getattr(service, kind)(message, given, cancelled)

    def call(self, entry: str, arguments: tuple[Any, ...]) -> Iterator[Any]:
        yield _function(entry)(*arguments)

    def _progress(self, done: int, total: int | None) -> None:
        self._connection.call("progress", done, total)


def _function(entry: str) -> Callable[..., Any]:
    module, _, name = entry.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def _threads(count: int | None) -> dict[str, str]:
    """The environment of a child whose networks compute with so many threads."""
    if count:
        return {"OMP_NUM_THREADS": str(count)}
    if threads_set_by_user():
        return {}
    return {"OMP_NUM_THREADS": str(max(1, usable() - 1)), STREAMS: str(usable())}


def _read(child: WorkerProcess, sources: Sequence[PlaneSource], place: Any) -> Any:
    """The pixels of a plane that the child asks for, if it is one of the request's."""
    if type(place) is not int or not 0 <= place < len(sources):
        child.reject(f"asked for plane {place!r:.20} of {len(sources)} and was ended")
    return sources[place].read()


def _like(item: Any, expected: tuple[type[Any], ...]) -> bool:
    """Whether a reply is a number, or a pair, of these types."""
    if expected == (float, int):
        return isinstance(item, expected) and not isinstance(item, bool)
    return isinstance(item, tuple) and len(item) == 2 and all(map(isinstance, item, expected))
