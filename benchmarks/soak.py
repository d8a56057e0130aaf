"""A long day in a window, in minutes: mixed actions with faults; memory, threads, layers and files stay flat.

    xvfb-run python -m benchmarks.soak --minutes 5

The model errs, is out of memory, dies or is slow, the journal's disk is full for a while, layers are removed.
After each settling the mask on the screen must be the session's, and at the end the journal must give back
the session with its labels. What an action takes is said by kind, with the line at which the window's thread
was found while one took long; a bare napari with as many layers does the same clicks and planes afterwards.
napari's notifications are closed as a user would, because those in a window that is not active, as here, stay
for ever (`--notifications`: they are left open).
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import faulthandler
import gc
import json
import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kill_journal import everything_of, predicted
from benchmarks.window.common import open_window, wait_until
from napari_lowlat_seg import ArrayLabels, Box, Click, Scribble, Volume
from napari_lowlat_seg.core.requests import PlaneSource, Request
from napari_lowlat_seg.propagation.sweep import PropagatedMask
from napari_lowlat_seg.serving.worker_process import WorkerProcessEnded

SHAPE = (8, 192, 256)
FAULTS: list[Callable[[], Exception]] = [
    lambda: ValueError("the model erred"),
    lambda: MemoryError(),
    lambda: OSError(errno.EIO, "the image cannot be read"),
    lambda: WorkerProcessEnded("the model's process has ended"),
]


LONG = 0.25
"""Seconds after which it is noted what an action is at."""


class Watcher(threading.Thread):
    """Looks at the stack of the window's thread while an action takes long.

    By faulthandler, which makes no frame objects: one that is held here keeps what the window's thread paints
    with, and lets go of it on this thread and in another order, which ends the process.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.action, self.began = "", 0.0
        self.found: Counter[str] = Counter()
        self._thread = f"0x{threading.get_ident():016x}"

    def run(self) -> None:
        """Look until the program ends."""
        while True:
            time.sleep(0.05)
            if self.action and time.monotonic() - self.began > LONG:
                stack = self._stack()
                ours = [frame for frame in stack if "napari_lowlat_seg" in frame[0]] or stack
                places = (f"{Path(name).name}:{line} {call}" for name, line, call in (ours[0], stack[0]))
                self.found[" / ".join((self.action, *places))] += 1

    def _stack(self) -> list[tuple[str, str, str]]:
        """File, line and function of each call of the window's thread, the innermost first."""
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            threads = file.read().split("\n\n")
        own = next(one for one in threads if self._thread in one.split("\n")[0])
        return re.findall(r'File "(.+)", line (\d+) in (.+)', own)


def quantiles(gaps: dict[str, list[float]]) -> dict[str, list[float]]:
    """Median, 99th percentile and maximum in milliseconds, by kind."""
    return {
        kind: [round(1000 * float(np.percentile(times, q)), 1) for q in (50, 99, 100)]
        for kind, times in sorted(gaps.items())
    }


def napari_alone(image: np.ndarray, count: int = 200) -> dict[str, list[float]]:
    """The times of a click and of another plane in a napari with such layers and nothing of ours."""
    import napari
    from qtpy.QtWidgets import QApplication

    viewer = napari.Viewer()
    viewer.window.resize(1400, 1000)
    viewer.add_image(image)
    viewer.add_labels(np.zeros(SHAPE, np.uint16))
    viewer.add_labels(np.zeros(SHAPE, np.uint8))
    points, rng = viewer.add_points(ndim=3), np.random.default_rng(0)
    viewer.add_shapes(ndim=3)
    gaps: dict[str, list[float]] = {"click": [], "plane": []}
    for turn in range(count):
        began = time.monotonic()
        if turn % 4:
            points.add([viewer.dims.current_step[0], *rng.integers(SHAPE[1:])])
        else:
            viewer.dims.set_current_step(0, int(rng.integers(SHAPE[0])))
        QApplication.processEvents()
        gaps["click" if turn % 4 else "plane"].append(time.monotonic() - began)
    return quantiles(gaps)


class FaultyService:
    """Masks around the prompts; every tenth request fails, every twentieth is slow."""

    def __init__(self, rng: np.random.Generator, faults: Counter[str]) -> None:
        self._rng, self._faults = rng, faults

    def describe(self, progress: Any = None) -> dict[str, Any]:
        """Facts as `PredictionService.describe` has them."""
        return {"device": "cpu", "precision": "float32", "licence": "none", "model": "faulty"}

    def embed(self, source: PlaneSource, cancelled: Any = None) -> float:
        """Nothing to do."""
        return 0.0

    def predict(self, request: Request, source: PlaneSource, cancelled: Any = None) -> Iterator[Any]:
        """A disk around the last point, or a fault."""
        self._fail_at_times()
        shape = np.asarray(source.read()).shape
        if not request.prompts:
            return
        at: Any = np.reshape(getattr(request.prompts[-1], "points", [(9, 9)]), (-1, 2))[-1]
        rows, cols = np.ogrid[: shape[0], : shape[1]]
        mask = np.hypot(rows - at[0], cols - at[1]) < 4 + 8 * self._rng.random()
        yield predicted(mask), not request.ticket
        if request.ticket:
            yield predicted(mask), True

    def propagate(self, request: Any, sources: Any, cancelled: Any = None) -> Iterator[Any]:
        """The first anchor on all planes, or a fault on the way."""
        for number, anchors in request.anchors.items():
            anchor = next(iter(anchors.values()))
            for plane in request.planes:
                self._fail_at_times(0.02)
                yield number, PropagatedMask(plane, anchor, 0.7)

    def restart(self) -> None:
        """Nothing to do."""

    close = restart

    def _fail_at_times(self, chance: float = 0.1) -> None:
        if self._rng.random() < chance / 2:
            self._faults["slow"] += 1
            time.sleep(0.2)
        if self._rng.random() < chance:
            error = FAULTS[self._rng.integers(len(FAULTS))]()
            self._faults[type(error).__name__] += 1
            raise error


def resident(unit: int = 2**20) -> int:
    """MiB of this process that lie in memory, or other units of so many bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // unit


def trimmed(unit: int = 2**20) -> int:
    """The same after the allocator has given back what it can."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident(unit)


def kinds() -> Counter[str]:
    """Python's objects by type."""
    return Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())


def notifications_closed() -> int:
    """Close napari's notifications that are open, and say how many these were."""
    from napari._qt.dialogs.qt_notification import NapariQtNotification

    shown = list(NapariQtNotification._instances)
    for one in shown:
        one.close()
    return len(shown)


def qt_objects() -> int:
    """Objects of Qt below the windows and the application."""
    from qtpy.QtCore import QObject
    from qtpy.QtWidgets import QApplication

    roots = [*QApplication.topLevelWidgets(), QApplication.instance()]
    return sum(len(root.findChildren(QObject)) for root in roots)


def facts(viewer: Any) -> dict[str, int]:
    """What must not grow."""
    return {
        "qt_objects": qt_objects(),
        "rss_mb": resident(),
        "threads": threading.active_count(),
        "layers": len(viewer.layers),
        "files": len(os.listdir("/proc/self/fd")),
    }


def soak(minutes: float, seed: int, notifications: bool = False) -> dict[str, Any]:
    """Act until the time is over; raises AssertionError for a stale mask or a lost edit."""
    from qtpy.QtWidgets import QApplication

    from napari_lowlat_seg.annotation.journal import open_session, writer

    rng = np.random.default_rng(seed)
    done: Counter[str] = Counter()
    faults: Counter[str] = Counter()

    image = rng.integers(0, 255, SHAPE, dtype=np.uint8)
    viewer, widget = open_window(image, lambda: FaultyService(rng, faults))
    controller = widget.controller
    session = controller.session
    write, full_until = writer._write, [0.0]

    def full(file: Any, content: bytes) -> None:
        if time.monotonic() < full_until[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, content)

    writer._write = full
    controller.files._journal._retry_seconds = 1.0

    def click() -> None:
        at = (float(rng.integers(SHAPE[1])), float(rng.integers(SHAPE[2])))
        other = (float(rng.integers(SHAPE[1])), float(rng.integers(SHAPE[2])))
        kinds = (Click(at), Click(at, positive=False), Scribble((at, other)), Box(at, other))
        session.add(controller.plane, kinds[rng.integers(len(kinds))])
        controller.predictions.ask()

    def labels_removed() -> None:
        if controller.labels.layer is not None:
            faults["labels removed"] += 1
            viewer.layers.remove(controller.labels.layer)

    def disk_full() -> None:
        faults["disk full"] += 1
        full_until[0] = time.monotonic() + 0.5

    actions: list[tuple[str, float, Callable[[], object]]] = [
        ("click", 40, click),
        ("accept", 12, controller.accept),
        ("undo", 8, controller.undo),
        ("redo", 4, controller.redo),
        ("clear", 3, controller.clear),
        ("plane", 12, lambda: viewer.dims.set_current_step(0, int(rng.integers(SHAPE[0])))),
        ("propagate", 3, controller.propagation.propagate),
        ("interpolate", 2, controller.propagation.interpolate),
        ("cancel", 2, controller.cancel),
        ("setting", 2, lambda: controller.set("semantic", not session.semantic)),
        ("labels removed", 0.3, labels_removed),
        ("disk full", 0.3, disk_full),
    ]
    weights = np.array([weight for _, weight, _ in actions])
    weights /= weights.sum()
    start, gaps, load = facts(viewer), dict[str, list[float]](), os.getloadavg()[0]
    course: list[list[int]] = []
    closed = 0
    before_kinds: Counter[str] = Counter()
    watcher = Watcher()
    watcher.start()
    begin = time.monotonic()
    end = begin + 60 * minutes
    while time.monotonic() < end:
        name, _, act = actions[rng.choice(len(actions), p=weights)]
        began = watcher.began = time.monotonic()
        watcher.action = name
        act()
        QApplication.processEvents()
        gaps.setdefault(name, []).append(time.monotonic() - began)
        watcher.action = ""
        done[name] += 1
        if sum(done.values()) % 25 == 0:
            if not notifications:
                closed += notifications_closed()
            wait_until(lambda: not controller.propagation.running and not widget.worker.busy)
            QApplication.processEvents()
            shown = np.asarray(controller.preview.layer.data).reshape(SHAPE[1:]) == 1
            mask = session.mask(controller.plane)
            assert np.array_equal(shown, np.zeros_like(shown) if mask is None else mask), "a stale mask"
        if time.monotonic() - begin > 60 * (len(course) + 1):
            stack, removed = session.undo_stack, faults["labels removed"]
            now = [resident(), trimmed(), removed, len(stack.done), stack.nbytes // 2**10]
            course.append([sum(done.values()), *now])
        if sum(done.values()) == 200:
            start = facts(viewer)  # what is loaded once is there now
            before_kinds = kinds()
    full_until[0] = 0.0
    session.close_transaction()
    journal = controller.files._journal
    wait_until(journal.flush)
    labels = session.labels.layer.data if session.labels is not None else np.zeros(SHAPE, np.uint16)
    before = everything_of(session, np.asarray(labels))
    again = open_session(journal.path, Volume(image))
    found = again.labels.data if isinstance(again.labels, ArrayLabels) else np.zeros(SHAPE, np.uint16)
    lost = [name for name, part in everything_of(again, found).items() if part != before[name]]
    assert not lost, f"the journal has other {', '.join(lost)}"
    return {
        "actions": sum(done.values()),
        "by kind": dict(done),
        "faults": dict(faults),
        "start": start,
        "end": facts(viewer),
        "notifications closed": closed,
        "by minute: actions, MiB, MiB trimmed, labels removed, steps to undo, their KiB": course,
        "objects that are more": dict((kinds() - before_kinds).most_common(25)),
        "load at start and end": [load, os.getloadavg()[0]],
        "gap_p99_ms": round(1000 * float(np.percentile(np.concatenate([*gaps.values()]), 99)), 1),
        "ms p50, p99, max": quantiles(gaps),
        "long actions were at": dict(watcher.found.most_common(25)),
    }


def main() -> None:
    """Soak, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--notifications", action="store_true", help="leave napari's notifications open")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = folder
        print(json.dumps(soak(options.minutes, options.seed, options.notifications)), flush=True)
        image = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
        print(json.dumps({"napari alone, ms p50, p99, max": napari_alone(image)}), flush=True)
        os._exit(0)  # napari need not be taken down


if __name__ == "__main__":
    main()
