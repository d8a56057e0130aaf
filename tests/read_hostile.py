"""Read every file of a list in this process, which has little memory; print what came of each as JSON lines.

Run by test_hostile.py: a crash, a hang or too much memory ends this process and not the tests.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.io.files import as_shown, read_volume

MEMORY = 5 * 2**29
"""Bytes of address space beyond what the libraries take."""


PATIENCE = 120
"""Seconds after which a file counts as one that hangs, also on a busy machine."""


def stop(*_: Any) -> None:
    """A hang is an answer of its own."""
    raise TimeoutError(f"{PATIENCE} s")


def look(path: Path) -> None:
    """Read an image, and show two of its planes."""
    volume = as_shown(read_volume(path)).with_window()
    for place in {0, volume.shape[0] - 1}:
        index = (place, *(0,) * (volume.ndim - 3), None, None) if volume.ndim > 2 else (None, None)
        volume.plane(Plane(index))


def outcome(path: Path) -> dict[str, Any]:
    """What reading and looking at an image gives: the class of the error, its text and the seconds."""
    started = time.perf_counter()
    signal.alarm(PATIENCE)
    try:
        look(path)
        error: BaseException | None = None
    except BaseException as caught:
        error = caught
    finally:
        signal.alarm(0)
    seconds = round(time.perf_counter() - started, 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    kind = "" if error is None else type(error).__name__
    sentence = isinstance(error, (ValueError, OSError)) and not isinstance(error, TimeoutError)
    return {
        "kind": kind,
        "sentence": sentence,
        "text": str(error or ""),
        "seconds": seconds,
        "peak_mib": peak,
    }


if __name__ == "__main__":
    import dask.array  # noqa: F401  (libraries first: their address space does not count)
    import h5py  # noqa: F401
    import nibabel  # noqa: F401
    import pydicom  # noqa: F401
    import tensorstore  # noqa: F401
    import tifffile  # noqa: F401
    import zarr  # noqa: F401

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    signal.signal(signal.SIGALRM, stop)
    for line in sys.stdin:
        print(json.dumps(outcome(Path(line.rstrip("\n")))), flush=True)
