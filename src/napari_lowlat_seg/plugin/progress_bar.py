"""napari's own progress bar for what takes a worker longer than half a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.utils import cancelable_progress
from qtpy.QtCore import QObject, Qt, QTimer

if TYPE_CHECKING:
    from napari_lowlat_seg.plugin.worker import Worker

SOON = 500
"""Milliseconds that need no bar."""


class _Bar(cancelable_progress):
    """A bar whose button acts at once; napari's own waits for the next step of a loop."""

    def cancel(self) -> None:
        super().cancel()
        self.cancel_callback()


class Waiting(QObject):
    """The bar of one worker: there is at most one. Its button cancels the work."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self._cancel = worker.cancel
        self._what = ""
        self._bar: Any = None
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(SOON)
        self._soon.timeout.connect(self._show)
        # napari's bars turn the event loop: what comes meanwhile must not overtake what others hear.
        for signal, slot in (
            (worker.started, self._start),
            (worker.progressed, self._advance),
            (worker.carried, self._count),
            (worker.answered, self._end),  # there is a mask to look at: nobody waits any more
            (worker.idle, self._end),
        ):
            signal.connect(slot, Qt.ConnectionType.QueuedConnection)

    def close(self) -> None:
        """Takes the bar away."""
        self._soon.stop()
        self._end()

    def _start(self, what: str) -> None:
        self._what = what
        if self._bar is not None:
            self._bar.set_description(what)
        else:
            self._soon.start()  # anew: a bar is for one step that lasts, not for many short ones

    def _show(self) -> None:
        self._bar = _Bar(desc=self._what, total=0, cancel_callback=self._cancel)

    def _advance(self, done: int, total: int | None) -> None:
        if self._bar is not None:
            self._tell(f"downloading the model, {done / 1e6:.0f} MB", done, total)

    def _count(self, walk: Any, number: int, found: Any) -> None:
        """One plane of a walk that may end sooner than its range does."""
        if self._bar is not None and found.final:
            total = len(walk.planes) * (len(walk.seeds) or 1)
            self._tell(f"{self._what}, plane {found.plane.position}", self._bar.n + 1, total)

    def _tell(self, what: str, done: int, total: int | None) -> None:
        bar = self._bar
        if total:
            bar.total = total
        bar.set_description(what)
        if bar is self._bar:  # the event loop was turned meanwhile
            bar.update(done - bar.n)

    def _end(self) -> None:
        self._soon.stop()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
