"""How long a window stands still while a network works: `python -m napari_lowlat_seg.plugin.window.gui_gap`.

A real viewer shows the shipped EM stack, somebody scrolls through it without pause, and a `Worker` embeds
planes and answers clicks on them as fast as it can. A timer ticks every 5 ms on the window's thread; the time
between two ticks is a gap. Ways of working take turns, because a machine is never equally busy for long.

The figures and what follows from them: docs/decisions/inference-process.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import Cancelled, PlaneSource, Request, never
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.serving.process import PredictionProcess
from napari_lowlat_seg.serving.service import load_prediction_service

TICK = 5
"""Milliseconds between two heartbeats."""

SCROLL = 50
"""Milliseconds between two planes."""

CLICKS = 3
"""Clicks on a plane before the next one is embedded."""

_HERE = "napari_lowlat_seg.plugin.window.gui_gap"
MODELS = {
    "default": "napari_lowlat_seg.serving.service:load_prediction_service",
    "slow": f"{_HERE}:load_slow",
    "busy": f"{_HERE}:load_busy",
}


@dataclass
class Measured:
    """What one way of working did to the window, in milliseconds."""

    gaps: list[float] = field(default_factory=list)
    embeddings: list[float] = field(default_factory=list)
    clicks: list[float] = field(default_factory=list)

    def row(self) -> str:
        """p50, p99 and maximum of the gaps, share of time in gaps over 50 ms, medians of the work."""
        gaps = np.array(self.gaps)
        p50, p99 = np.percentile(gaps, [50, 99])
        frozen = 100 * gaps[gaps > 50].sum() / gaps.sum()
        work = [f"{np.median(times):.0f}" if times else "-" for times in (self.embeddings, self.clicks)]
        cells = [
            f"{p50:.1f}",
            f"{p99:.0f}",
            f"{gaps.max():.0f}",
            f"{frozen:.1f}",
            *work,
            f"{len(self.clicks)}",
        ]
        return " | ".join(cells)


class Pretender:
    """A responder without a model: only the time passes."""

    def __init__(self, name: str, work: Callable[[float], None], embed: float, click: float) -> None:
        self._name, self._work, self._seconds = name, work, (embed, click)
        self._seen: dict[Any, tuple[int, ...]] = {}  # shapes of planes

    def embed(self, source: PlaneSource, newer: Cancelled = never) -> float:
        """Seconds that it took; 0.0 if it was there already."""
        if source.identity in self._seen:
            return 0.0
        began = time.perf_counter()
        self._work(self._seconds[0])
        self._seen[source.identity] = source.read().shape[:2]
        return time.perf_counter() - began

    def predict(
        self, request: Request, source: PlaneSource, newer: Cancelled = never
    ) -> Iterator[tuple[SoftMask, bool]]:
        """One empty answer."""
        self._work(self._seconds[1])
        yield SoftMask.from_mask(np.zeros(self._seen[source.identity], bool)), True

    def describe(self, progress: object = None) -> dict[str, Any]:
        """Its name."""
        return {"model": self._name, "device": "cpu", "precision": "none", "licence": "none"}

    def restart(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def load_slow(*_: Any, **__: Any) -> Pretender:
    """A network of few large products: 1.5 s to embed, 0.3 s to click."""
    import torch

    square = torch.full((1024, 1024), 1e-3)

    def work(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            square @ square

    return Pretender("slow", work, 1.5, 0.3)


def load_busy(*_: Any, **__: Any) -> Pretender:
    """Pure Python that never rests, as a network of many tiny operations: 1.5 s to embed, 0.3 s to click."""

    def work(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            sum(range(1000))

    return Pretender("busy", work, 1.5, 0.3)


def in_thread(threads: int, load: str) -> Any:
    """A responder in this process whose networks compute with so many threads."""
    import torch

    torch.set_num_threads(threads)
    loaders: dict[str, Callable[..., Any]] = {
        MODELS["default"]: load_prediction_service,
        MODELS["slow"]: load_slow,
        MODELS["busy"]: load_busy,
    }
    return loaders[load]("default", "cpu")


def in_process(threads: int, niceness: int, load: str) -> Any:
    """A responder in a child."""
    return PredictionProcess("default", "cpu", threads=threads, niceness=niceness, load=load)


WAYS: dict[str, Callable[[str], Any] | None] = {
    "nothing": None,
    "thread, 2 processors": lambda load: in_thread(2, load),
    "thread, 1 processor": lambda load: in_thread(1, load),
    "process, 2 processors": lambda load: in_process(2, 0, load),
    "process, 2 processors, nice 10": lambda load: in_process(2, 10, load),
    "process, 1 processor": lambda load: in_process(1, 0, load),
    "process, 1 processor, nice 10": lambda load: in_process(1, 10, load),
}


class Annotator:
    """Someone who clicks three times on a plane as fast as answers come, and goes on to the next."""

    _numbers = itertools.count(1)

    def __init__(self, worker: Any, stack: np.ndarray) -> None:
        self._worker, self._stack = worker, stack
        self._random = np.random.default_rng(0)
        self._working = False
        self._clicks: tuple[Click, ...] = ()
        self._number = 0
        self._answer: SoftMask | None = None
        self._measured = Measured()
        worker.idle.connect(self._next)
        worker.embedded.connect(lambda _, seconds: self._measured.embeddings.append(1000 * seconds))
        worker.answered.connect(self._land)

    def begin(self, measured: Measured) -> None:
        """Works and writes down how long it took, until `end`."""
        self._measured, self._working, self._clicks = measured, True, ()
        self._next()

    def end(self) -> None:
        """Asks for nothing more."""
        self._working = False

    @property
    def working(self) -> bool:
        """Whether something is still under way."""
        return bool(self._worker.busy)

    def _next(self) -> None:
        if not self._working:
            return
        if len(self._clicks) in (0, CLICKS):
            self._clicks, self._answer, self._number = (), None, next(self._numbers)
        position = self._number % len(self._stack)
        rows, cols = self._random.uniform(100, 150, 2)
        self._clicks += (Click((rows, cols)),)
        source = PlaneSource(self._number, lambda: self._stack[position])
        plane = Plane((position, None, None))
        self._worker.ask(Request(1, self._number, plane, self._clicks, self._answer), source)

    def _land(self, _: Any, answer: SoftMask, final: bool, seconds: float) -> None:
        self._answer = answer
        if final and len(self._clicks) > 1:  # the first one waits for its embedding
            self._measured.clicks.append(1000 * seconds)


def measure(seconds: float, rounds: int, models: list[str]) -> None:
    """Prints one table for each model."""
    import napari
    from qtpy.QtCore import QEventLoop, Qt, QTimer

    from napari_lowlat_seg.plugin.contributions import open_em_sample
    from napari_lowlat_seg.plugin.worker import Worker

    def wait(until: Any, at_most: float) -> None:
        loop = QEventLoop()
        until.connect(loop.quit)
        QTimer.singleShot(int(1000 * at_most), loop.quit)
        loop.exec_()

    viewer = napari.Viewer()
    (stack, settings, _), *_ = open_em_sample()
    viewer.add_image(stack, **settings)
    steps = itertools.count()
    scroll, beat, over = QTimer(), QTimer(), QTimer()
    scroll.timeout.connect(lambda: viewer.dims.set_current_step(0, next(steps) % len(stack)))
    beat.setTimerType(Qt.TimerType.PreciseTimer)
    over.setSingleShot(True)
    measured = Measured()
    last = time.perf_counter()

    def tick() -> None:
        nonlocal last
        now = time.perf_counter()
        measured.gaps.append(1000 * (now - last))
        last = now

    beat.timeout.connect(tick)
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before")
    for model in models:
        workers, annotators = [], {}
        for way, make in WAYS.items():
            if make is None:
                continue
            worker = Worker()
            worker.failed.connect(print)
            annotators[way] = Annotator(worker, stack)
            worker.load(partial(make, MODELS[model]))
            wait(worker.loaded, 120)
            workers.append(worker)
        results = {way: Measured() for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                measured = results[way]
                scroll.start(SCROLL)
                if way in annotators:
                    annotators[way].begin(measured)
                wait(over.timeout, 0.5)  # the first half second belongs to what was before
                last = time.perf_counter()
                beat.start(TICK)
                wait(over.timeout, seconds)
                beat.stop()
                scroll.stop()
                if way in annotators:
                    annotators[way].end()
                    while annotators[way].working:
                        wait(over.timeout, 0.1)
        print(f"\n{model}: {rounds} rounds of {seconds:g} s each\n")
        print("| way | p50 | p99 | max | % of time in gaps over 50 ms | embed | click | clicks |")
        print("|---|---|---|---|---|---|---|---|")
        for way, result in results.items():
            print(f"| {way} | {result.row()} |", flush=True)
        for worker in workers:
            worker.close()
    print(f"\nload {os.getloadavg()[0]:.1f} after")
    viewer.close()


def main() -> None:
    """Reads the arguments and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each way in each round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--model", choices=tuple(MODELS), action="append")
    chosen = parser.parse_args()
    measure(chosen.seconds, chosen.rounds, chosen.model or list(MODELS))


if __name__ == "__main__":
    main()
