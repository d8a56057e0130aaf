"""Progress of long work: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from napari_lowlat_seg.core.requests import Progress

QUIET = 30.0
"""Seconds between two lines where there is no terminal; work that is done sooner prints none."""


def progress(total: int | None, unit: str) -> Any:
    """A tqdm bar on standard error, which counts to `total` by `update`; a context manager.

    On a pipe or in a log file a bar would be one endless line; there a line is printed every `QUIET` seconds,
    such as "12/48 plane [00:30<01:30]".
    """
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(total=total, unit=unit, file=sys.stderr)
    line = "{n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}]"
    return tqdm(
        total=total, unit=unit, file=_Lines(), mininterval=QUIET, delay=QUIET, miniters=1, bar_format=line
    )


@contextmanager
def reported(unit: str) -> Iterator[Progress]:
    """A function that shows how much of some work is done, as `progress` does; its total comes with it."""
    with progress(None, unit) as bar:

        def report(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


class _Lines:
    """Standard error for tqdm, each state of the bar on a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(f"{text.strip()}\n")

    def flush(self) -> None:
        sys.stderr.flush()
