"""Progress of long work: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

QUIET = 30.0
"""Seconds between two lines where there is no terminal; work that is done sooner prints none."""


def progress(total: int, unit: str) -> Any:
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


class _Lines:
    """Standard error for tqdm, each state of the bar on a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(f"{text.strip()}\n")

    def flush(self) -> None:
        sys.stderr.flush()
