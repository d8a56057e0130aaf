"""How long a window stands still while a network works: `python -m benchmarks.window.gui_gap`.

A real viewer shows the shipped EM stack and scrolls through it without pause, while a `Worker` embeds planes
and predicts clicks on them as fast as it can. A timer ticks every 5 ms on the window's thread; the time
between two ticks is a gap. The set-ups take turns, because a machine is never equally busy for long.

The figures and what follows from them: docs/decisions/inference-process.md.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from benchmarks.window.common import (
    MODELS,
    GapTimer,
    in_process,
    load_busy,
    load_slow,
    print_load,
    random_clicks,
    wait,
    wait_until,
)
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import PlaneSource, Request
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.serving.service import load_prediction_service

SCROLL = 50
"""Milliseconds between two planes."""


@dataclass
class Timings:
    """What one set-up did to the window, in milliseconds."""

    gaps: list[float] = field(default_factory=list)
    embeddings: list[float] = field(default_factory=list)
    clicks: list[float] = field(default_factory=list)

    def row(self) -> str:
        """Return p50, p99 and maximum of the gaps, % of time in gaps over 50 ms, medians of the work."""
        gaps = np.array(self.gaps)
        p50, p99 = np.percentile(gaps, [50, 99])
        frozen = 100 * gaps[gaps > 50].sum() / gaps.sum()
        work = [f"{np.median(times):.0f}" if times else "-" for times in (self.embeddings, self.clicks)]
        cells = (
            f"{p50:.1f}",
            f"{p99:.0f}",
            f"{gaps.max():.0f}",
            f"{frozen:.1f}",
            *work,
            str(len(self.clicks)),
        )
        return " | ".join(cells)


def in_thread(threads: int, load: str) -> Any:
    """Return a service in this process whose networks compute with so many threads."""
    import torch

    torch.set_num_threads(threads)
    loaders: dict[str, Callable[..., Any]] = {
        MODELS["default"]: load_prediction_service,
        MODELS["slow"]: load_slow,
        MODELS["busy"]: load_busy,
    }
    return loaders[load]("default", "cpu")


SETUPS: dict[str, Callable[[str], Any] | None] = {
    "nothing": None,
    "thread, 2 processors": lambda load: in_thread(2, load),
    "thread, 1 processor": lambda load: in_thread(1, load),
    "process, 2 processors": lambda load: in_process("default", threads=2, load=load),
    "process, 1 processor": lambda load: in_process("default", threads=1, load=load),
}


class BusyUser:
    """Asks a worker for predictions: three clicks on a plane as fast as masks come, then the next plane."""

    _numbers = itertools.count(1)  # over all users: every embedding is a new one

    def __init__(self, worker: Any, stack: np.ndarray) -> None:
        self._worker, self._stack = worker, stack
        self._clicks = random_clicks(len(stack), 100, 150)
        self._position, self._number = -1, 0
        self._prompts: tuple[Click, ...] = ()
        self._previous: SoftMask | None = None
        self._working = False
        self._timings = Timings()
        worker.idle.connect(self._next)
        worker.embedded.connect(lambda _, seconds: self._timings.embeddings.append(1000 * seconds))
        worker.predicted.connect(self._record)

    def start(self, timings: Timings) -> None:
        """Ask, and record how long the worker takes, until `stop`."""
        self._timings, self._working = timings, True
        self._next()

    def stop(self) -> None:
        """Ask nothing more, and wait until the worker is done."""
        self._working = False
        wait_until(lambda: not self._worker.busy)

    def _next(self) -> None:
        if not self._working:
            return
        position, click = next(self._clicks)
        if position != self._position:
            self._position, self._number = position, next(self._numbers)
            self._prompts, self._previous = (), None
        self._prompts += (click,)
        source = PlaneSource(self._number, lambda: self._stack[position])
        plane = Plane((position, None, None))
        self._worker.predict(Request(1, self._number, plane, self._prompts, self._previous), source)

    def _record(self, _: Any, mask: SoftMask, final: bool, seconds: float) -> None:
        self._previous = mask
        if final and len(self._prompts) > 1:  # the first one waits for its embedding
            self._timings.clicks.append(1000 * seconds)


def measure(seconds: float, rounds: int, models: list[str]) -> None:
    """Print one table for each model."""
    import napari
    from qtpy.QtCore import QTimer

    from napari_lowlat_seg.plugin.contributions import open_em_sample
    from napari_lowlat_seg.plugin.worker import Worker

    viewer = napari.Viewer()
    (stack, settings, _), *_ = open_em_sample()
    viewer.add_image(stack, **settings)
    steps, scroll, ticks = itertools.count(), QTimer(), GapTimer()
    scroll.timeout.connect(lambda: viewer.dims.set_current_step(0, next(steps) % len(stack)))
    print_load("before")
    for model in models:
        workers, users = [], {}
        for name, make in SETUPS.items():
            if make is None:
                continue
            worker, loaded = Worker(), list[Any]()
            worker.failed.connect(print)
            worker.loaded.connect(loaded.append)
            users[name] = BusyUser(worker, stack)
            worker.load(partial(make, MODELS[model]))
            wait_until(lambda loaded=loaded: bool(loaded))  # type: ignore[misc]
            workers.append(worker)
        results = {name: Timings() for name in SETUPS}
        for _ in range(rounds):
            for name, timings in results.items():
                scroll.start(SCROLL)
                if name in users:
                    users[name].start(timings)
                wait(0.5)  # the first half second belongs to what was before
                ticks.start()
                wait(seconds)
                timings.gaps += ticks.stop()
                scroll.stop()
                if name in users:
                    users[name].stop()
        print(f"\n{model}: {rounds} rounds of {seconds:g} s each\n")
        print("| way | p50 | p99 | max | % of time in gaps over 50 ms | embed | click | clicks |")
        print("|---|---|---|---|---|---|---|---|")
        for name, timings in results.items():
            print(f"| {name} | {timings.row()} |", flush=True)
        for worker in workers:
            worker.close()
    print_load("after")
    viewer.close()


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each set-up in each round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--model", choices=tuple(MODELS), action="append")
    chosen = parser.parse_args()
    measure(chosen.seconds, chosen.rounds, chosen.model or list(MODELS))


if __name__ == "__main__":
    main()
