"""One thread between the window and a prediction service: the newest request wins, the window never waits.

Everything public is called on the main thread and returns at once; every signal arrives there. The thread
does one job at a time. At most one job of each kind waits: a newer one takes its place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Qt, QTimer, Signal

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.requests import FoundOnPlane, PlaneSource, PropagationRequest
from napari_lowlat_seg.plugin.jobs import LESS_URGENT, QUIET, URGENCY, Job, should_yield
from napari_lowlat_seg.serving.worker_process import Interrupted, WorkerProcessEnded

if TYPE_CHECKING:
    from napari_lowlat_seg.serving.process import PredictionProcess
    from napari_lowlat_seg.serving.service import PredictionService

    Service = PredictionProcess | PredictionService

LOG = logging.getLogger(__name__)

GRACE_MS = 150
"""Milliseconds after a cancel until a service that is still at work is restarted."""

USER_ERRORS = (ValueError, OSError, RuntimeError, ImportError, MemoryError)
"""Errors whose sentence was written for users; any other is a bug of ours, and its type is named."""


class Worker(QObject):
    """The thread and its signals. Give it no Qt parent, and `close` it.

    Attributes
    ----------
    facts
        `PredictionService.describe` of the model that was loaded last; empty before.

    Signals
    -------
    started
        str: what takes time now, such as "embedding plane 12".
    progressed
        (bytes so far, bytes in all or None) of a download.
    loaded
        dict: `PredictionService.describe`.
    embedded
        (key of the source, seconds; 0.0 if it was embedded already).
    predicted
        (request, mask, whether it is the last one, seconds since the request).
    propagated
        (request, number of the object, `PropagatedMask`).
    propagation_ended
        (request, whether it is complete): no more masks will come.
    found
        (ticket of the search, place of the plane, `FoundOnPlane`).
    find_ended
        (ticket of the search, whether all planes were searched): no more will come.
    failed
        str: one sentence.
    refused
        (request, sentence): after `failed`, which request for a mask it was that failed.
    idle
        Nothing is left to do but what is `QUIET`.
    """

    started = Signal(str)
    progressed = Signal(object, object)
    loaded = Signal(object)
    embedded = Signal(object, float)
    predicted = Signal(object, object, bool, float)
    propagated = Signal(object, int, object)
    propagation_ended = Signal(object, bool)
    found = Signal(object, int, object)
    find_ended = Signal(object, bool)
    failed = Signal(str)
    refused = Signal(object, str)
    idle = Signal()
    _posted = Signal(object)  # from any thread: (epoch or None, function, arguments)

    def __init__(self) -> None:
        super().__init__()
        self._posted.connect(self._deliver, Qt.ConnectionType.QueuedConnection)
        self._grace = QTimer(self)
        self._grace.setSingleShot(True)
        self._grace.setInterval(GRACE_MS)
        self._grace.timeout.connect(self._force)
        self.facts: dict[str, Any] = {}
        self._make: Callable[[], Service] | None = None
        self._service: Service | None = None
        self._wake = threading.Condition()
        self._waiting: dict[str, Job] = {}
        self._busy: Job | None = None
        self._cancelled_job: Job | None = None
        self._propagation: PropagationRequest | None = None
        self._search: object = None  # the ticket of the one under way
        self._epoch = 0  # requests from earlier epochs are stale
        self._closed = False
        self._ready: set[Hashable] = set()  # identities of planes that are embedded
        self._typical = 0.0  # seconds that the last embedding took
        self._ahead_allowed = True
        # The newest first mask that nobody has asked for yet. It is shown at once; the service keeps its own
        # prediction, to go on from if it is asked for exactly the same.
        self._predicted_ahead: tuple[Job, SoftMask] | None = None
        self._thread = threading.Thread(target=self._work, name="lowlat-seg worker", daemon=True)
        self._thread.start()

    def load(self, make_service: Callable[[], Service]) -> None:
        """Make a service on the thread, in place of the one there is, and emit `loaded`."""
        self.cancel()
        with self._wake:
            self._make = make_service
            self._ahead_allowed = True
            self._want(Job("load", self._epoch))

    def predict(self, request: Any, source: PlaneSource) -> None:
        """Predict a mask; the newest request replaces older ones, and previews (ticket 0) as well."""
        with self._wake:
            if request.ticket:
                self._waiting.pop("preview", None)
                self._waiting.pop("predict_ahead", None)
            self._want(Job("predict" if request.ticket else "preview", self._epoch, source, request))

    def predict_ahead(self, request: Any, source: PlaneSource) -> None:
        """Predict the first mask of what will probably be requested; it is kept until that is.

        Nothing is done on a plane that is not embedded: its embedding comes first.
        """
        with self._wake:
            if source.identity in self._ready:
                self._want(Job("predict_ahead", self._epoch, source, request))

    def embed(self, source: PlaneSource) -> None:
        """Embed the plane in view when nothing more urgent is left; a newer one replaces an older one."""
        with self._wake:
            if self._busy is not None and self._busy.identity == source.identity:
                self._busy.viewed = True
            self._want(Job("embed", self._epoch, source))

    def propagate(
        self, request: PropagationRequest, sources: Sequence[PlaneSource], what: str = "propagating"
    ) -> None:
        """Propagate objects through planes, whose sources these are, until a mask is requested."""
        self.stop_propagation()
        with self._wake:
            self._propagation = request
            self._want(Job("propagate", self._epoch, request=request, sources=sources, what=what))

    def find(self, ticket: object, sources: Sequence[PlaneSource]) -> None:
        """Find the objects of some planes without prompts, behind all that is more urgent.

        A prediction that is requested meanwhile comes first; the plane under way is then searched anew.
        `ticket` names the search; a newer one replaces it.
        """
        self._end_search(self._search, False)
        with self._wake:
            self._search = ticket
            self._want(Job("find", self._epoch, request=ticket, sources=sources, what="finding objects"))

    def stop_propagation(self) -> None:
        """Drop the propagation, and nothing else."""
        with self._wake:
            self._waiting.pop("propagate", None)
        self._end_propagation(self._propagation, False)

    def embed_ahead(self, sources: Sequence[PlaneSource]) -> None:
        """Embed these planes in order, whenever there is nothing else to do; an empty sequence ends that.

        They replace those of the last call. A plane that is under way and requested again is finished.
        No signal but `embedded` is emitted; a plane that cannot be embedded is left out.
        """
        with self._wake:
            self._waiting.pop("embed_ahead", None)
            if sources:
                self._want(Job("embed_ahead", self._epoch, sources[0], after=tuple(sources[1:])))
            elif self._busy is not None and self._busy.kind == "embed_ahead":
                self._busy.dropped = True

    def run(self, work: Callable[[], Any], done: Callable[[Any], object]) -> None:
        """Do other work on a thread of its own and call `done` with its result, on the main thread."""

        def job() -> None:
            try:
                self._post(None, done, work())
            except Exception as error:
                self._post(None, self.failed.emit, sentence(error))

        threading.Thread(target=job, name="lowlat-seg background work", daemon=True).start()

    def call(self, function: Callable[..., object], *values: Any) -> None:
        """Call a function on the main thread; may itself be called on any."""
        self._post(None, function, *values)

    def cancel(self) -> None:
        """Drop everything. What is under way stops, or is ended by force after `GRACE_MS`."""
        with self._wake:
            self._epoch += 1
            self._waiting.clear()
            self._cancelled_job = self._busy
        if self._cancelled_job is not None:
            self._grace.start()
        self._end_propagation(self._propagation, False)
        self._end_search(self._search, False)

    def close(self) -> None:
        """End thread and service and return at once. No signal comes any more."""
        self._grace.stop()
        with self._wake:
            self._closed = True
            self._epoch += 1
            self._waiting.clear()
            self._wake.notify()
            service = self._service
        if service is not None:
            service.close()

    @property
    def busy(self) -> bool:
        """Whether something was requested and is not done; what is `QUIET` does not count."""
        with self._wake:
            return any(
                job.kind not in QUIET for job in (self._busy, *self._waiting.values()) if job is not None
            )

    @property
    def has_model(self) -> bool:
        """Whether a model is loaded and not being loaded anew, as it is after its process has ended."""
        with self._wake:
            loading = "load" in self._waiting or (self._busy is not None and self._busy.kind == "load")
            return self._service is not None and not loading

    def _end_propagation(self, request: PropagationRequest | None, complete: bool) -> None:
        if request is not None and request is self._propagation:
            self._propagation = None
            self.propagation_ended.emit(request, complete)

    def _end_search(self, ticket: object, complete: bool) -> None:
        if ticket is not None and ticket is self._search:
            self._search = None
            self.find_ended.emit(ticket, complete)

    def _want(self, job: Job) -> None:
        self._waiting[job.kind] = job
        self._wake.notify()

    def _force(self) -> None:
        """Restart a service that did not stop when it was asked to, and load its model again."""
        with self._wake:
            stuck, service = self._busy, self._service
            if stuck is None or stuck is not self._cancelled_job or service is None:
                return
            if stuck.kind != "load":
                self._waiting.setdefault("load", Job("load", self._epoch))
        service.restart()

    # Below: on the worker's thread

    def _work(self) -> None:
        work: dict[str, Callable[[Job], None]] = {
            "load": self._load,
            "predict": self._predict,
            "preview": self._predict,
            "predict_ahead": self._predict_ahead,
            "embed": self._embed,
            "propagate": self._propagate,
            "find": self._find,
            "embed_ahead": self._embed_one_ahead,
        }
        while (job := self._next()) is not None:
            try:
                work[job.kind](job)
            except Interrupted:
                pass
            except Exception as error:
                self._fail(job, error)

    def _next(self) -> Job | None:
        """The most urgent job; waits for one. None when closed."""
        with self._wake:
            if self._busy is not None and not self._waiting.keys() - QUIET:
                self._post(None, self.idle.emit)
            self._busy = None
            while not self._waiting and not self._closed:
                self._wake.wait()
            if self._closed:
                return None
            kind = next(kind for kind in URGENCY if kind in self._waiting)
            self._busy = self._waiting.pop(kind)
            return self._busy

    def _load(self, job: Job) -> None:
        self._post(job.epoch, self.started.emit, "loading the model")
        self._ready.clear()
        with self._wake:
            make, self._make = self._make, None
            old = self._service
            if make is not None:
                self._service = None
        if make is not None:
            if old is not None:
                old.close()
            made = make()
            with self._wake:
                self._service = made
                closed = self._closed
            if closed:
                made.close()
                return
        service = self._service
        assert service is not None
        facts = service.describe(lambda *bytes_: self._post(job.epoch, self.progressed.emit, *bytes_))
        self.facts = facts
        self._post(job.epoch, self.loaded.emit, facts)

    def _embed(self, job: Job) -> None:
        assert job.source is not None
        source = job.source

        def read() -> Any:
            self._post(job.epoch, self.started.emit, f"embedding {source.name}")
            return source.read()

        job.begun = time.perf_counter()
        announced = source if job.kind == "embed_ahead" else replace(source, read=read)
        seconds = self._loaded().embed(announced, lambda: self._abandoned(job))
        self._ready.add(source.identity)
        self._typical = seconds or self._typical
        if seconds or job.kind == "embed":
            self._post(job.epoch, self.embedded.emit, source.key, seconds)

    def _embed_one_ahead(self, job: Job) -> None:
        """Embed the first of the planes ahead; the others wait, and so does this one if it is interrupted."""
        assert job.source is not None
        rest: tuple[PlaneSource, ...] = job.after
        try:
            if self._ahead_allowed:
                self._embed(job)
        except Interrupted:
            rest = (job.source, *job.after)
        except WorkerProcessEnded:
            self._ahead_allowed = False  # the next one might end the process again, and so on for ever
            raise
        except (ValueError, OSError) as error:  # shown when this plane comes into view
            LOG.debug("%s was not embedded ahead: %s", job.source.name, error)
        except Exception as error:
            LOG.warning("planes are not embedded ahead: %s", sentence(error))
            rest = ()
        with self._wake:
            gone = job.dropped or job.epoch != self._epoch or "embed_ahead" in self._waiting
            if rest and not gone:
                self._want(Job("embed_ahead", self._epoch, rest[0], after=rest[1:]))

    def _predict(self, job: Job) -> None:
        last = ahead = self._take_ahead(job)
        if ahead is not None:
            self._show(job, ahead, False)
        self._embed(job)
        self._post(job.epoch, self.started.emit, "predicting")
        assert job.source is not None
        for mask, final in self._loaded().predict(job.request, job.source, lambda: self._superseded(job)):
            if last is not None and mask.value == last.value:
                mask = last  # the last one comes twice; as one object it is finished and drawn once
            if final or mask is not ahead:  # only the first one can have been shown
                self._show(job, mask, final)
            last, ahead = mask, None

    def _show(self, job: Job, mask: SoftMask, final: bool) -> None:
        seconds = time.perf_counter() - job.requested
        self._post(job.epoch, self.predicted.emit, job.request, mask, final, seconds)
        job.shown = True

    def _predict_ahead(self, job: Job) -> None:
        """Errors are those of the request, if it comes."""
        self._predicted_ahead = None
        assert job.source is not None
        try:
            for mask, _ in self._loaded().predict(job.request, job.source, lambda: self._superseded(job)):
                self._predicted_ahead = job, mask
        except (Interrupted, WorkerProcessEnded):
            raise
        except Exception as error:
            LOG.debug("not predicted ahead: %s", sentence(error))

    def _take_ahead(self, job: Job) -> SoftMask | None:
        """The first mask of a request, if it was predicted ahead; what is not taken is dropped."""
        ahead, self._predicted_ahead = self._predicted_ahead, None
        return ahead[1] if ahead is not None and ahead[0].predicts(job) else None

    def _propagate(self, job: Job) -> None:
        request = job.request

        def stopped() -> bool:
            stale = job.epoch != self._epoch or request is not self._propagation
            return stale or "predict" in self._waiting

        self._post(job.epoch, self.started.emit, job.what)
        complete = False
        try:
            for number, found in self._loaded().propagate(request, job.sources, stopped):
                self._post(job.epoch, self.propagated.emit, request, number, found)
            complete = not stopped()
        finally:
            self._post(None, self._end_propagation, request, complete)

    def _find(self, job: Job) -> None:
        """Search planes; interrupted by something more urgent, the search goes on after it."""

        def stopped() -> bool:
            gone = job.epoch != self._epoch or job.request is not self._search
            return gone or bool(self._waiting.keys() & {"load", "predict", "preview", "propagate"})

        self._post(job.epoch, self.started.emit, job.what)
        searched = 0
        try:
            for place, found in self._loaded().find_objects({}, job.sources, stopped):
                self._post(job.epoch, self.found.emit, job.request, job.first + place, found)
                self._post(job.epoch, self.started.emit, _searching(job, place, found))
                searched = place + (found.labels is not None)
        except BaseException:
            self._post(None, self._end_search, job.request, False)
            raise
        left = job.sources[searched:]
        with self._wake:
            if left and job.epoch == self._epoch and job.request is self._search:
                self._want(replace(job, sources=left, first=job.first + searched))
                return
        self._post(None, self._end_search, job.request, not left)

    def _loaded(self) -> Service:
        if self._service is None:
            raise RuntimeError("no model is loaded; choose one first")
        return self._service

    def _abandoned(self, job: Job) -> bool:
        """Whether an embedding is not worth finishing: it was cancelled, or another plane is in view."""
        if job.epoch != self._epoch or job.dropped:
            return True
        return should_yield(job, dict(self._waiting), self._ready, self._typical)

    def _superseded(self, job: Job) -> bool:
        """Whether a prediction is not worth finishing.

        A first mask is, or a stroke that is faster than the network would never see one. A refined one is not
        once there is a newer request.
        """
        if job.epoch != self._epoch:
            return True
        if job.kind == "predict_ahead":
            with self._wake:
                urgent = [one for kind, one in self._waiting.items() if kind not in LESS_URGENT]
            return any(one.kind != "predict" or not job.predicts(one) for one in urgent)
        return "predict" in self._waiting and (job.shown or job.kind == "preview")

    def _fail(self, job: Job, error: Exception) -> None:
        with self._wake:
            if job.epoch != self._epoch:
                return  # the user has cancelled it: its error would be about nothing that is still wanted
            if job.kind == "load":
                self._waiting.clear()  # there is no model for any of it
                self._post(None, self._end_propagation, self._propagation, False)
            elif isinstance(error, WorkerProcessEnded):
                self._waiting.setdefault("load", Job("load", self._epoch))
        self._post(job.epoch, self.failed.emit, sentence(error))
        if job.kind == "predict":
            self._post(job.epoch, self.refused.emit, job.request, sentence(error))

    # Between the threads

    def _post(self, epoch: int | None, function: Callable[..., object], *values: Any) -> None:
        if not self._closed:
            self._posted.emit((epoch, function, values))

    def _deliver(self, posted: tuple[int | None, Callable[..., object], tuple[Any, ...]]) -> None:
        """Call the function, on the main thread, unless everything was cancelled since it was posted."""
        epoch, function, values = posted
        if not self._closed and epoch in (None, self._epoch):
            function(*values)


def sentence(error: Exception) -> str:
    """The sentence that users read of an error."""
    words = str(error) or type(error).__name__
    if isinstance(error, MemoryError) and not str(error):  # Python's own says nothing
        return "not enough memory; close other programs, or open a smaller image"
    if isinstance(error, USER_ERRORS):
        return words
    LOG.error("unexpected %s", type(error).__name__, exc_info=error)
    return f"{type(error).__name__}: {words}"


def tried(work: Callable[[], Any]) -> Any:
    """What `work` gives, or the error that it raised, to be said by whoever asked."""
    try:
        return work()
    except Exception as error:
        return error


def _searching(job: Job, place: int, found: FoundOnPlane) -> str:
    """How far a search is, in words."""
    planes = job.first + len(job.sources)
    of_all = f" ({job.first + place + 1} of {planes})" if planes > 1 else ""
    return f"{job.what} on {job.sources[place].name}{of_all}, {100 * found.done // max(1, found.total)} %"
