"""Somebody scrolls through a stack and clicks: `python -m napari_lowlat_seg.plugin.window.scrolling`.

No window: a session asks a worker as it does behind one, about planes of 1024 x 1024 pixels made of the
shipped EM sample. Counted is on how many planes the embedding was there when the plane came into view, when
it was left, and when it was clicked on after the scrolling, with nothing more embedded ahead.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import Progress
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.plugin.controller.predictions import Predictions
from napari_lowlat_seg.plugin.window.on_screen import stack
from napari_lowlat_seg.plugin.worker import Worker
from napari_lowlat_seg.serving.process import PredictionProcess
from napari_lowlat_seg.serving.service import CACHE_BYTES, PredictionService

SIZES = (512, 1024)
"""Sides of the network's input that are compared."""

LONG = 120.0
"""Seconds after which something that should come has gone wrong."""


@dataclass
class Counted:
    """What one way through the stack found.

    Attributes
    ----------
    came, left, clicked
        For each plane, whether its embedding was there then.
    embeddings
        Seconds that each embedding took.
    warm, cold
        Milliseconds until the first answer to a click, where the embedding was there and where not.
    """

    came: list[bool] = field(default_factory=list)
    left: list[bool] = field(default_factory=list)
    clicked: list[bool] = field(default_factory=list)
    embeddings: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)

    def row(self) -> str:
        """Three shares in percent; medians of an embedding, of a warm and of a cold click in milliseconds."""
        shares = [
            f"{100 * np.mean(one):.0f} %" if one else "-" for one in (self.came, self.left, self.clicked)
        ]
        times = ([1000 * seconds for seconds in self.embeddings], self.warm, self.cold)
        return " | ".join((*shares, *(f"{np.median(one):.0f} ms" if one else "-" for one in times)))


class Reader:
    """Someone who scrolls through a volume and clicks on its planes.

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
        self.counted = Counted()
        self._worker = worker
        self._session = Session(volume)
        self._questions = Predictions(self._session, worker, "stack")
        self._questions.reach = reach
        self._ready: set[Any] = set()  # indices of planes
        self._landed: list[bool] = []
        worker.embedded.connect(self._embedded)
        self._questions.landed.connect(self._land)
        self._questions.attach()

    def scroll(self, positions: range, seconds: float) -> None:
        """Looks at planes, each for so many seconds; at the first one until it is embedded."""
        self._questions.look(_plane(positions[0]))
        turn(lambda: _plane(positions[0]).index in self._ready)
        for position in positions:
            plane = _plane(position)
            self.counted.came.append(plane.index in self._ready)
            self._questions.look(plane)
            end = time.perf_counter() + seconds
            turn(lambda end=end: time.perf_counter() >= end)  # type: ignore[misc]
            self.counted.left.append(plane.index in self._ready)

    def click(self, positions: range) -> None:
        """Goes to each plane in some order and clicks at once; waits for the last answer."""
        self._questions.reach = 0
        turn(lambda: not self._worker.busy)
        rows, cols = self._session.volume.shape[1:]
        for position in np.random.default_rng(0).permutation(positions).tolist():
            plane, before, began = _plane(position), len(self.counted.embeddings), time.perf_counter()
            self._landed.clear()
            self._session.set_prompts(plane, (Click((rows / 2, cols / 2)),))
            self._questions.look(plane)
            turn(lambda: bool(self._landed))
            warm = len(self.counted.embeddings) == before
            self.counted.clicked.append(warm)
            times = self.counted.warm if warm else self.counted.cold
            times.append(1000 * (time.perf_counter() - began))
            turn(lambda: True in self._landed)

    def leave(self) -> None:
        """Asks for nothing more."""
        self._questions.detach()
        self._worker.embedded.disconnect(self._embedded)

    def _embedded(self, key: Any, seconds: float) -> None:
        self._ready.add(key[1])
        if seconds:
            self.counted.embeddings.append(seconds)

    def _land(self, plane: Plane, final: bool) -> None:
        self._landed.append(final)


def load_sized(
    model: str,
    device: str = "auto",
    closer_look: Literal["auto", "off"] = "auto",
    *,
    cache_bytes: int = CACHE_BYTES,
    disk_bytes: int = 0,
    progress: Progress | None = None,
) -> PredictionService:
    """The embedded model with an input of another side: "1024" for 1024 x 1024 pixels, the same weights."""
    from napari_lowlat_seg.inference.predictor import Predictor, load_predictor
    from napari_lowlat_seg.models.compact import Compact

    known = load_predictor("default", device, closer_look)
    network: Any = known.network
    sized = Compact(replace(network.config, size=int(model))).to(network.dtype)
    sized.load_state_dict(network.state_dict())
    predictor = Predictor(sized.eval(), known.runtime, closer_look, name=f"default at {model}")
    if known.runtime.on_cuda:
        predictor.warm_up()
    return PredictionService(predictor, cache_bytes)


def turn(until: Callable[[], bool], at_most: float = LONG) -> None:
    """Let events happen until something is true.

    Raises
    ------
    TimeoutError
        If it does not become true in `at_most` seconds.
    """
    from qtpy.QtCore import QEventLoop, QTimer

    loop, end = QEventLoop(), time.perf_counter() + at_most
    ask = QTimer()
    ask.timeout.connect(lambda: (until() or time.perf_counter() > end) and loop.quit())
    ask.start(5)
    loop.exec_()
    if not until():
        raise TimeoutError(f"nothing came in {at_most:g} s; look whether the machine is busy and try again")


def _plane(position: int) -> Plane:
    return Plane((position, None, None))


def main() -> None:
    """Reads the arguments and measures."""
    from qtpy.QtCore import QCoreApplication

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--planes", type=int, default=40)
    parser.add_argument("--rate", type=float, default=2.0, help="planes a second")
    parser.add_argument("--ahead", type=int, default=8, help="planes embedded ahead, each way")
    parser.add_argument("--size", type=int, action="append", help="side of the network's input; repeatable")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    application = QCoreApplication.instance() or QCoreApplication([])
    volume = Volume(stack()[: chosen.planes], window=(0, 255))
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before")
    print("\n| input | came into view | left | clicked afterwards | embedding | warm click | cold click |")
    print("|---|---|---|---|---|---|---|")
    for size in chosen.size or SIZES:
        worker = Worker()
        worker.failed.connect(print)
        loaded: list[Any] = []
        worker.loaded.connect(loaded.append)
        process = partial(PredictionProcess, str(size), chosen.device, load=f"{_HERE}:load_sized")
        worker.load(process)
        turn(lambda loaded=loaded: bool(loaded))  # type: ignore[misc]
        reader = Reader(worker, volume, chosen.ahead)
        positions = range(len(volume.data))  # type: ignore[arg-type]
        reader.scroll(positions, 1 / chosen.rate)
        reader.click(positions)
        reader.leave()
        worker.close()
        print(f"| {size} | {reader.counted.row()} |", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f} after")
    application.processEvents()


_HERE = "napari_lowlat_seg.plugin.window.scrolling"

if __name__ == "__main__":
    main()
