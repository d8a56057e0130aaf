"""Counts calls of this package's own functions by a profile hook."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import napari_lowlat_seg

HOME = str(Path(napari_lowlat_seg.__file__).parent)


class Trace:
    """Counts calls of our own functions, on this thread and on those started after it was made."""

    def __init__(self) -> None:
        self.on = False
        threading.setprofile(self._see)
        self.calls: Counter[str] = Counter()
        self.crossings: Counter[str] = Counter()

    def _see(self, frame: FrameType, event: str, _argument: Any) -> None:
        name = frame.f_code.co_filename
        if not self.on or event != "call" or not name.startswith(HOME):
            return
        here = f"{name[len(HOME) + 1 :]}:{frame.f_code.co_qualname}"
        self.calls[here] += 1
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(HOME):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != name:
            self.crossings[here] += 1

    def __enter__(self) -> Trace:
        self.on = True
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        self.on = False
        sys.setprofile(None)

    def summary(self, top: int = 0) -> str:
        """Calls, files, and calls from another file; below them the functions that are called most."""
        files = {where.split(":")[0] for where in self.calls}
        text = f"{self.calls.total()} calls in {len(files)} files, {self.crossings.total()} from another file"
        for where, count in self.calls.most_common(top):
            text += f"\n  {count:5d}  {self.crossings[where]:5d}  {where}"
        return text
