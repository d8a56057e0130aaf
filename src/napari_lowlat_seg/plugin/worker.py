"""One thread between the window and a responder: the newest request wins, the window never waits.

Everything public is called on the main thread and returns at once; every signal arrives there. The thread
takes one job at a time, and there is never more than one of a kind waiting: a newer one takes its place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from qtpy.QtCore import QObject, Qt, QTimer, Signal

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.requests import Cancelled, PlaneSource, Progress, PropagationRequest
from napari_lowlat_seg.plugin.progress_bar import Waiting
from napari_lowlat_seg.propagation.sweep import PropagatedMask
from napari_lowlat_seg.serving.worker_process import Interrupted, WorkerProcessEnded

URGENCY = ("load", "ask", "trial", "look", "carry", "ahead")
"""Kinds of jobs, the most urgent first. The last one is nobody's wish yet: not told of, not waited for."""


@dataclass(eq=False)
class Job:
    """Something for the thread to do; `epoch` counts the cancels before it."""

    kind: str
    epoch: int
    source: PlaneSource | None = None
    request: Any = None
    shown: bool = False  # whether its first answer is on the screen
    sources: Sequence[PlaneSource] = ()
    what: str = ""
    after: tuple[PlaneSource, ...] = ()  # what to embed ahead once this one is
    dropped: bool = False
    looked_at: bool = False  # while it was embedded ahead
    begun: float = 0.0
    asked: float = field(default_factory=time.perf_counter)

    @property
    def identity(self) -> Any:
        """Of its plane; None for a job without one."""
        return None if self.source is None else self.source.identity


def gives_way(job: Job, wanted: Mapping[str, Job], ready: Set[Hashable], typical: float) -> bool:
    """Whether an embedding under way is left for what is wanted now.

    A plane on which something was asked is left only for another such plane. One that was looked at is
    finished when a quarter is done: somebody who scrolls faster than the network would find nothing
    embedded at all. One ahead is finished before a look at a plane that is embedded already.

    Parameters
    ----------
    ready
        Identities of the planes that are embedded.
    typical
        Seconds that an embedding takes; 0 if that is not known yet.
    """
    rivals = ("ask",) if job.kind == "ask" else ("ask", "trial", "look", "ahead")
    newest = next((wanted[kind] for kind in rivals if kind in wanted), None)
    if newest is None or newest.identity == job.identity:
        return False
    if newest.kind == "ahead":
        return job.kind == "ahead" and job.identity not in {source.identity for source in newest.after}
    if newest.kind == "look" and job.kind == "ahead" and newest.identity in ready:
        return False
    if newest.kind == "look" and (job.kind == "look" or job.looked_at):
        return time.perf_counter() - job.begun < typical / 4 or not typical
    return True


LOG = logging.getLogger(__name__)

PATIENCE = 150
"""Milliseconds after a cancel until a responder that is still at work is restarted."""

TELLING = (ValueError, OSError, RuntimeError, ImportError, MemoryError)
"""Errors whose sentence was written for people; any other is a mistake of ours and says its kind."""


class AnyResponder(Protocol):
    """What a worker needs of a responder; see `responder.PredictionService`."""

    def embed(self, source: PlaneSource, cancelled: Cancelled = ...) -> float: ...

    def predict(
        self, request: Any, source: PlaneSource, cancelled: Cancelled = ...
    ) -> Iterator[tuple[SoftMask, bool]]: ...

    def propagate(
        self, walk: PropagationRequest, sources: Sequence[PlaneSource], cancelled: Cancelled = ...
    ) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]: ...

    def describe(self, progress: Progress | None = None) -> dict[str, Any]: ...

    def restart(self) -> None: ...

    def close(self) -> None: ...


class Worker(QObject):
    """The thread, and what it has to say. Give it no Qt parent, and `close` it.

    Signals
    -------
    started
        str: what takes time now, such as "embedding plane 12".
    progressed
        (bytes so far, bytes in all or None) of a download.
    loaded
        dict: `PredictionService.describe`.
    embedded
        (key of the source, seconds; 0.0 if it was there already).
    answered
        (request, answer, whether it is the last one, seconds since it was asked for).
    carried
        (walk, object, where it was found).
    arrived
        (walk, whether all of it was carried): nothing more will come of it.
    failed
        str: one sentence.
    idle
        Nothing is left to do, but to embed ahead.
    """

    started = Signal(str)
    progressed = Signal(object, object)
    loaded = Signal(object)
    embedded = Signal(object, float)
    answered = Signal(object, object, bool, float)
    carried = Signal(object, int, object)
    arrived = Signal(object, bool)
    failed = Signal(str)
    idle = Signal()
    _told = Signal(object)  # from any thread: (epoch or None, function, arguments)

    def __init__(self) -> None:
        super().__init__()
        self._told.connect(self._tell, Qt.ConnectionType.QueuedConnection)
        self._patience = QTimer(self)
        self._patience.setSingleShot(True)
        self._patience.setInterval(PATIENCE)
        self._patience.timeout.connect(self._force)
        self._make: Callable[[], AnyResponder] | None = None
        self._responder: AnyResponder | None = None
        self._wake = threading.Condition()
        self._wanted: dict[str, Job] = {}
        self._busy: Job | None = None
        self._impatient_of: Job | None = None
        self._walk: PropagationRequest | None = None
        self._epoch = 0  # what was asked for in an earlier one is not wanted any more
        self._closed = False
        self._ready: set[Hashable] = set()  # identities of planes that were embedded
        self._typical = 0.0  # seconds that an embedding took last
        self._ahead_allowed = True
        self._waiting = Waiting(self)
        self._thread = threading.Thread(target=self._work, name="lowlat-seg worker", daemon=True)
        self._thread.start()

    def load(self, make_responder: Callable[[], AnyResponder]) -> None:
        """Makes a responder on the thread, in place of the one there is, and tells `loaded`."""
        self.cancel()
        with self._wake:
            self._make = make_responder
            self._ahead_allowed = True
            self._want(Job("load", self._epoch))

    def ask(self, request: Any, source: PlaneSource) -> None:
        """Answers a request; the newest replaces older ones, a real one trials (ticket 0) as well."""
        with self._wake:
            if request.ticket:
                self._wanted.pop("trial", None)
            self._want(Job("ask" if request.ticket else "trial", self._epoch, source, request))

    def look(self, source: PlaneSource) -> None:
        """Embeds a plane when nothing more urgent is left; a newer look replaces an older one."""
        with self._wake:
            if self._busy is not None and self._busy.identity == source.identity:
                self._busy.looked_at = True
            self._want(Job("look", self._epoch, source))

    def propagate(
        self, walk: PropagationRequest, sources: Sequence[PlaneSource], what: str = "propagating"
    ) -> None:
        """Carries objects through planes, whose sources these are, until something else is asked."""
        self.stop_carrying()
        with self._wake:
            self._walk = walk
            self._want(Job("carry", self._epoch, request=walk, sources=sources, what=what))

    def stop_carrying(self) -> None:
        """Drops the walk that was asked for, and nothing else."""
        with self._wake:
            self._wanted.pop("carry", None)
        self._end_walk(self._walk, False)

    def ahead(self, sources: Sequence[PlaneSource]) -> None:
        """Embeds these planes, the first one first, whenever nothing else is to be done; none ends that.

        They take the place of those of the last call. A plane that is under way and wanted again is finished.
        Nothing is said of them but `embedded`; a plane that cannot be embedded is left out.
        """
        with self._wake:
            self._wanted.pop("ahead", None)
            if sources:
                self._want(Job("ahead", self._epoch, sources[0], after=tuple(sources[1:])))
            elif self._busy is not None and self._busy.kind == "ahead":
                self._busy.dropped = True

    def run(self, work: Callable[[], Any], done: Callable[[Any], object]) -> None:
        """Does other work on a thread of its own and hands what it gives to `done`, on the main thread."""

        def job() -> None:
            try:
                self._emit(None, done, work())
            except Exception as error:
                self._emit(None, self.failed.emit, sentence(error))

        threading.Thread(target=job, name="lowlat-seg errand", daemon=True).start()

    def cancel(self) -> None:
        """Drops all that was asked for. What is under way stops, or is ended by force soon after."""
        with self._wake:
            self._epoch += 1
            self._wanted.clear()
            self._impatient_of = self._busy
        if self._impatient_of is not None:
            self._patience.start()
        self._end_walk(self._walk, False)

    def close(self) -> None:
        """Ends thread and responder and returns at once. Nothing is told any more."""
        self._patience.stop()
        self._waiting.close()
        with self._wake:
            self._closed = True
            self._epoch += 1
            self._wanted.clear()
            self._wake.notify()
            responder = self._responder
        if responder is not None:
            responder.close()

    @property
    def busy(self) -> bool:
        """Whether something is under way or waiting that was asked for; embedding ahead does not count."""
        with self._wake:
            return any(job.kind != "ahead" for job in (self._busy, *self._wanted.values()) if job is not None)

    def _end_walk(self, walk: PropagationRequest | None, whole: bool) -> None:
        if walk is not None and walk is self._walk:
            self._walk = None
            self.arrived.emit(walk, whole)

    def _want(self, job: Job) -> None:
        self._wanted[job.kind] = job
        self._wake.notify()

    def _force(self) -> None:
        """Restarts a responder that did not stop when it was asked to; its model is loaded again."""
        with self._wake:
            stuck, responder = self._busy, self._responder
            if stuck is None or stuck is not self._impatient_of or responder is None:
                return
            if stuck.kind != "load":
                self._wanted.setdefault("load", Job("load", self._epoch))
        responder.restart()

    # Below: on the worker's thread.

    def _work(self) -> None:
        verbs: dict[str, Callable[[Job], None]] = {
            "load": self._load,
            "ask": self._answer,
            "trial": self._answer,
            "look": self._embed,
            "carry": self._carry,
            "ahead": self._embed_ahead,
        }
        while (job := self._next()) is not None:
            try:
                verbs[job.kind](job)
            except Interrupted:
                pass
            except Exception as error:
                self._fail(job, error)

    def _next(self) -> Job | None:
        """The most urgent job; waits for one. None when closed."""
        with self._wake:
            if self._busy is not None and not self._wanted.keys() - {"ahead"}:
                self._emit(None, self.idle.emit)
            self._busy = None
            while not self._wanted and not self._closed:
                self._wake.wait()
            if self._closed:
                return None
            kind = next(kind for kind in URGENCY if kind in self._wanted)
            self._busy = self._wanted.pop(kind)
            return self._busy

    def _load(self, job: Job) -> None:
        self._emit(job.epoch, self.started.emit, "loading the model")
        self._ready.clear()
        with self._wake:
            make, self._make = self._make, None
            old = self._responder
            if make is not None:
                self._responder = None
        if make is not None:
            if old is not None:
                old.close()
            made = make()
            with self._wake:
                self._responder = made
                closed = self._closed
            if closed:
                made.close()
                return
        responder = self._responder
        assert responder is not None
        facts = responder.describe(lambda *bytes_: self._emit(job.epoch, self.progressed.emit, *bytes_))
        self._emit(job.epoch, self.loaded.emit, facts)

    def _embed(self, job: Job) -> None:
        assert job.source is not None
        source = job.source

        def read() -> Any:
            self._emit(job.epoch, self.started.emit, f"embedding {source.name}")
            return source.read()

        job.begun = time.perf_counter()
        described = source if job.kind == "ahead" else replace(source, read=read)
        seconds = self._loaded().embed(described, lambda: self._left(job))
        self._ready.add(source.identity)
        self._typical = seconds or self._typical
        if seconds or job.kind == "look":
            self._emit(job.epoch, self.embedded.emit, source.key, seconds)

    def _embed_ahead(self, job: Job) -> None:
        """One plane of those ahead; the others wait, and so does this one if something came between."""
        assert job.source is not None
        rest: tuple[PlaneSource, ...] = job.after
        try:
            if self._ahead_allowed:
                self._embed(job)
        except Interrupted:
            rest = (job.source, *job.after)
        except WorkerProcessEnded:
            self._ahead_allowed = False  # the next one might end it again, and so on for ever
            raise
        except (ValueError, OSError) as error:  # whoever looks at this plane is told
            LOG.debug("%s was not embedded ahead: %s", job.source.name, error)
        except Exception as error:
            LOG.warning("planes are not embedded ahead: %s", sentence(error))
            rest = ()
        with self._wake:
            gone = job.dropped or job.epoch != self._epoch or "ahead" in self._wanted
            if rest and not gone:
                self._want(Job("ahead", self._epoch, rest[0], after=rest[1:]))

    def _answer(self, job: Job) -> None:
        self._embed(job)
        self._emit(job.epoch, self.started.emit, "predicting")
        assert job.source is not None
        for answer, final in self._loaded().predict(job.request, job.source, lambda: self._superseded(job)):
            seconds = time.perf_counter() - job.asked
            self._emit(job.epoch, self.answered.emit, job.request, answer, final, seconds)
            job.shown = True

    def _carry(self, job: Job) -> None:
        walk = job.request

        def left() -> bool:
            return job.epoch != self._epoch or walk is not self._walk or "ask" in self._wanted

        self._emit(job.epoch, self.started.emit, job.what)
        whole = False
        try:
            for number, found in self._loaded().propagate(walk, job.sources, left):
                self._emit(job.epoch, self.carried.emit, walk, number, found)
            whole = not left()
        finally:
            self._emit(None, self._end_walk, walk, whole)

    def _loaded(self) -> AnyResponder:
        if self._responder is None:
            raise RuntimeError("no model is loaded; choose one first")
        return self._responder

    def _left(self, job: Job) -> bool:
        """Whether an embedding is not worth finishing: it was cancelled, or the user is elsewhere by now."""
        if job.epoch != self._epoch or job.dropped:
            return True
        return gives_way(job, dict(self._wanted), self._ready, self._typical)

    def _superseded(self, job: Job) -> bool:
        """Whether an answer is not worth finishing.

        A first answer is, else a stroke that is faster than the network would never see one; a better one
        is not when something newer was asked.
        """
        if job.epoch != self._epoch:
            return True
        return "ask" in self._wanted and (job.shown or job.kind == "trial")

    def _fail(self, job: Job, error: Exception) -> None:
        with self._wake:
            if job.epoch != self._epoch:
                return  # nobody wants to know
            if job.kind == "load":
                self._wanted.clear()  # nothing of that could be answered
                self._emit(None, self._end_walk, self._walk, False)
            elif isinstance(error, WorkerProcessEnded):
                self._wanted.setdefault("load", Job("load", self._epoch))
        self._emit(job.epoch, self.failed.emit, sentence(error))

    # Between the threads.

    def _emit(self, epoch: int | None, tell: Callable[..., object], *values: Any) -> None:
        if not self._closed:
            self._told.emit((epoch, tell, values))

    def _tell(self, described: tuple[int | None, Callable[..., object], tuple[Any, ...]]) -> None:
        """On the main thread: passes it on if it is still wanted."""
        epoch, tell, values = described
        if not self._closed and epoch in (None, self._epoch):
            tell(*values)


def sentence(error: Exception) -> str:
    """An error in one sentence for people."""
    words = str(error) or type(error).__name__
    if isinstance(error, TELLING):
        return words
    LOG.error("unexpected %s", type(error).__name__, exc_info=error)
    return f"{type(error).__name__}: {words}"
