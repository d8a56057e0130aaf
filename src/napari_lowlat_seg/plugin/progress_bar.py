"""napari's own progress bar for saving on the window's thread, if it lasts longer than half a second.

What the model does is said by the state line: napari's bars run the event loop whenever their text changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from napari.utils import cancelable_progress

from napari_lowlat_seg.core.requests import Progress
from napari_lowlat_seg.plugin.notices import plain

DELAY_MS = 500
"""Work that is done by then shows no bar."""


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
