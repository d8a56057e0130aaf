"""Scrolling through a stack, then clicking: `python -m benchmarks.window.scrolling`.

No window: a session asks a worker as it does behind one, about planes of 1024 x 1024 pixels made of the
shipped EM sample, none of them equal to another. Counted is on how many planes the embedding was there when
the plane came into view, when it was left, and when it was clicked on after the scrolling, with nothing more
embedded ahead.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from benchmarks.window.common import in_process, large_stack, print_load, wait, wait_until
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import Progress
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.plugin.controller.predictions import Predictions
from napari_lowlat_seg.plugin.worker import Worker
from napari_lowlat_seg.serving.service import CACHE_BYTES, PredictionService

SIZES = (512, 1024)
"""Sides of the network's input that are compared."""

PATTERNS = ("straight", "reversals", "jumps")
"""Ways through the stack: on and on, to and fro by 3 to 9 planes, and on with a jump at every tenth plane."""

LOAD = "benchmarks.window.scrolling:load_sized"


@dataclass
class Counts:
    """What one way through the stack found.

    Attributes
    ----------
    came, left, clicked
        For each plane, whether its embedding was there then.
    late
        Milliseconds from when a plane came into view until its embedding was there, where it was not.
    embeddings
        Seconds that each embedding took.
    warm, cold
        Milliseconds until the first mask after a click, where the embedding was there and where not.
    """

    came: list[bool] = field(default_factory=list)
    left: list[bool] = field(default_factory=list)
    clicked: list[bool] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    embeddings: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)

    def row(self) -> str:
        """Return three shares, the latest embedding, and medians of an embedding, a warm and a cold click."""
        shares = [
            f"{100 * np.mean(one):.3g} %" if one else "-" for one in (self.came, self.left, self.clicked)
        ]
        times = ([1000 * seconds for seconds in self.embeddings], self.warm, self.cold)
        latest = f"{max(self.late):.0f} ms" if self.late else "-"
        medians = (f"{np.median(one):.3g} ms" if one else "-" for one in times)
        return " | ".join((*shares, latest, *medians))


class ScrollingUser:
    """A simulated user who scrolls through a volume and clicks on its planes.

    Parameters
    ----------
    worker
        Has a model.
    volume
        3-D, with an intensity window.
    reach
        Planes embedded ahead, each way.
    """

    def __init__(self, worker: Worker, volume: Volume, reach: int) -> None:
        self.counts = Counts()
        self._worker = worker
        self._session = Session(volume)
        self._predictions = Predictions(self._session, worker, "stack")
        self._predictions.planes_ahead = reach
        self._ready: set[Any] = set()  # indices of planes
        self._finals: list[bool] = []
        self._awaited: tuple[Any, float] | None = None  # index of the plane in view, and since when
        worker.embedded.connect(self._embedded)
        self._predictions.landed.connect(self._arrived)
        self._predictions.attach()

    def scroll(self, positions: Sequence[int], seconds: float) -> None:
        """Look at planes, each for so many seconds; at the first one until it is embedded."""
        self._predictions.look(_plane(positions[0]))
        wait_until(lambda: _plane(positions[0]).index in self._ready)
        for position in positions:
            plane = _plane(position)
            self.counts.came.append(plane.index in self._ready)
            self._awaited = None if plane.index in self._ready else (plane.index, time.perf_counter())
            self._predictions.look(plane)
            wait(seconds)
            self.counts.left.append(plane.index in self._ready)

    def click(self, positions: Sequence[int]) -> None:
        """Go to each plane in random order and click at once; wait for the last mask."""
        self._predictions.planes_ahead = 0
        wait_until(lambda: not self._worker.busy)
        rows, cols = self._session.volume.shape[1:]
        for position in np.random.default_rng(0).permutation(sorted(set(positions))).tolist():
            plane, before, start = _plane(position), len(self.counts.embeddings), time.perf_counter()
            self._finals.clear()
            self._session.set_prompts(plane, (Click((rows / 2, cols / 2)),))
            self._predictions.look(plane)
            wait_until(lambda: bool(self._finals))
            warm = len(self.counts.embeddings) == before
            self.counts.clicked.append(warm)
            times = self.counts.warm if warm else self.counts.cold
            times.append(1000 * (time.perf_counter() - start))
            wait_until(lambda: True in self._finals)

    def leave(self) -> None:
        """Ask nothing more."""
        self._predictions.detach()
        self._worker.embedded.disconnect(self._embedded)

    def _embedded(self, key: Any, seconds: float) -> None:
        self._ready.add(key[1])
        if self._awaited is not None and self._awaited[0] == key[1]:
            self.counts.late.append(1000 * (time.perf_counter() - self._awaited[1]))
            self._awaited = None
        if seconds:
            self.counts.embeddings.append(seconds)

    def _arrived(self, plane: Plane, final: bool) -> None:
        self._finals.append(final)


def load_sized(
    model: str,
    device: str = "auto",
    closer_look: Literal["auto", "off"] = "auto",
    *,
    cache_bytes: int = CACHE_BYTES,
    disk_bytes: int = 0,
    progress: Progress | None = None,
) -> PredictionService:
    """Return the default model, the same weights, with an input of another side: "1024" for 1024 x 1024."""
    from napari_lowlat_seg.inference.predictor import Predictor, load_predictor
    from napari_lowlat_seg.models.compact import Compact

    default = load_predictor("default", device, closer_look)
    network: Any = default.network
    sized = Compact(replace(network.config, size=int(model))).to(network.dtype)
    sized.load_state_dict(network.state_dict())
    predictor = Predictor(sized.eval(), default.runtime, closer_look, name=f"default at {model}")
    if default.runtime.on_cuda:
        predictor.warm_up()
    return PredictionService(predictor, cache_bytes)


def way(pattern: str, planes: int, count: int) -> list[int]:
    """Return the positions of `count` planes in view, one after the other, of a stack of `planes`."""
    random, at, step, left = np.random.default_rng(0), planes // 3, 1, 0
    if pattern == "straight":
        return [i % planes for i in range(count)]
    positions = []
    for i in range(count):
        positions.append(at)
        if pattern == "jumps" and i % 10 == 9:
            at = int(random.integers(planes))
            continue
        if pattern == "reversals":
            step, left = (-step, int(random.integers(3, 10))) if left == 0 else (step, left - 1)
        step = step if 0 <= at + step < planes else -step
        at += step
    return positions


def stack(planes: int, mark: int) -> np.ndarray:
    """Return `large_stack` with a corner that differs from plane to plane, as does every other `mark`."""
    data = large_stack(planes).copy()
    data[:, 0, :3] = np.stack([np.arange(planes) % 251, np.arange(planes) // 251, np.full(planes, mark)], 1)
    return data


def _plane(position: int) -> Plane:
    return Plane((position, None, None))


def main() -> None:
    """Read the arguments and measure."""
    from qtpy.QtCore import QCoreApplication

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--planes", type=int, default=40)
    parser.add_argument("--rate", type=float, default=2.0, help="planes a second")
    parser.add_argument("--shown", type=int, help="planes that come into view; all, once, if left out")
    parser.add_argument(
        "--pattern", choices=PATTERNS, action="append", help="repeatable; straight if left out"
    )
    parser.add_argument("--ahead", type=int, default=8, help="planes embedded ahead, each way")
    parser.add_argument("--size", type=int, action="append", help="side of the network's input; repeatable")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    application = QCoreApplication.instance() or QCoreApplication([])
    print_load("before")
    print(
        "\n| input | way | came into view | left | clicked | latest | embedding | warm click | cold click |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    ways = itertools.product(chosen.size or SIZES, chosen.pattern or PATTERNS[:1])
    for mark, (size, pattern) in enumerate(ways):
        worker = Worker()
        worker.failed.connect(print)
        loaded: list[Any] = []
        worker.loaded.connect(loaded.append)
        process = partial(in_process, str(size), chosen.device, load=LOAD)
        worker.load(process)
        wait_until(lambda loaded=loaded: bool(loaded))  # type: ignore[misc]
        user = ScrollingUser(worker, Volume(stack(chosen.planes, mark), window=(0, 255)), chosen.ahead)
        positions = way(pattern, chosen.planes, chosen.shown or chosen.planes)
        user.scroll(positions, 1 / chosen.rate)
        user.click(positions)
        user.leave()
        worker.close()
        print(f"| {size} | {pattern} | {user.counts.row()} |", flush=True)
    print_load("after")
    application.processEvents()


if __name__ == "__main__":
    main()
