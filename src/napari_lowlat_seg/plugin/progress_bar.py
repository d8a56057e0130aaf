"""napari's own progress bar for work that lasts longer than half a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from napari.utils import cancelable_progress
from qtpy.QtCore import QObject, Qt, QTimer

from napari_lowlat_seg.core.requests import Progress
from napari_lowlat_seg.plugin.notices import plain

if TYPE_CHECKING:
    from napari_lowlat_seg.plugin.worker import Worker

DELAY_MS = 500
"""Work that is done by then shows no bar."""


class _Bar(cancelable_progress):
    """A bar whose button acts at once; napari's own waits for the next step of a loop."""

    def cancel(self) -> None:
        super().cancel()
        self.cancel_callback()


class WorkerProgressBar(QObject):
    """The bar of one worker: there is at most one. Its button cancels the work."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self._cancel = worker.cancel
        self._what = ""
        self._bar: Any = None
        self._delay = QTimer(self)
        self._delay.setSingleShot(True)
        self._delay.setInterval(DELAY_MS)
        self._delay.timeout.connect(self._show)
        # napari's bars run the event loop: queued, so that other slots of a signal come first.
        for signal, slot in (
            (worker.started, self._start),
            (worker.progressed, self._show_download),
            (worker.propagated, self._show_plane),
            (worker.predicted, self._end),  # there is a mask to look at
            (worker.idle, self._end),
        ):
            signal.connect(slot, Qt.ConnectionType.QueuedConnection)

    def close(self) -> None:
        """Take the bar away."""
        self._end()

    def _start(self, what: str) -> None:
        self._what = what
        if self._bar is not None:
            self._bar.set_description(plain(what))
        else:
            self._delay.start()  # again: one long step gets a bar, many short ones get none

    def _show(self) -> None:
        self._bar = _Bar(desc=plain(self._what), total=0, cancel_callback=self._cancel)

    def _show_download(self, done: int, total: int | None) -> None:
        if self._bar is not None:
            self._set(f"downloading the model, {done / 1e6:.0f} MB", done, total)

    def _show_plane(self, request: Any, number: int, found: Any) -> None:
        """Count one plane more; a propagation may end before its range does."""
        if self._bar is not None and found.final:
            total = len(request.planes) * (len(request.seeds) or 1)
            self._set(f"{self._what}, plane {found.plane.position}", self._bar.n + 1, total)

    def _set(self, what: str, done: int, total: int | None) -> None:
        bar = self._bar
        if total:
            bar.total = total
        bar.set_description(plain(what))
        if bar is self._bar:  # `set_description` runs the event loop, in which the work may have ended
            bar.update(done - bar.n)

    def _end(self) -> None:
        self._delay.stop()
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class SavingCancelled(Exception):
    """The user has pressed the bar's button."""


@contextmanager
def saving_bar(what: str) -> Iterator[Progress]:
    """A function that shows how much of some work on the window's thread is done, in a bar with a button.

    Raises
    ------
    SavingCancelled
        From the function, after the button was pressed.
    """
    began = time.monotonic()
    bars: list[Any] = []

    def report(done: int, total: int | None) -> None:
        if not bars:
            if 1000 * (time.monotonic() - began) < DELAY_MS:
                return
            bars.append(cancelable_progress(desc=plain(what), total=total))
        bars[0].update(done - bars[0].n)  # runs the event loop
        if bars[0].is_canceled:
            raise SavingCancelled(f"{what} was cancelled; nothing was written")

    try:
        yield report
    finally:
        for bar in bars:
            bar.close()
