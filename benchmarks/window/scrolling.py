"""Scrolling through a stack, then clicking: `python -m benchmarks.window.scrolling`.

No window: a session asks a worker as it does behind one, about planes of 1024 x 1024 pixels made of the
shipped EM sample. Counted is on how many planes the embedding was there when the plane came into view, when
it was left, and when it was clicked on after the scrolling, with nothing more embedded ahead.
"""

from __future__ import annotations

import argparse
import time
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

LOAD = "benchmarks.window.scrolling:load_sized"


@dataclass
class Counts:
    """What one way through the stack found.

    Attributes
    ----------
    came, left, clicked
        For each plane, whether its embedding was there then.
    embeddings
        Seconds that each embedding took.
    warm, cold
        Milliseconds until the first mask after a click, where the embedding was there and where not.
    """

    came: list[bool] = field(default_factory=list)
    left: list[bool] = field(default_factory=list)
    clicked: list[bool] = field(default_factory=list)
    embeddings: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)

    def row(self) -> str:
        """Return three shares in percent, and medians of an embedding, a warm and a cold click in ms."""
        shares = [
            f"{100 * np.mean(one):.0f} %" if one else "-" for one in (self.came, self.left, self.clicked)
        ]
        times = ([1000 * seconds for seconds in self.embeddings], self.warm, self.cold)
        return " | ".join((*shares, *(f"{np.median(one):.0f} ms" if one else "-" for one in times)))


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
        worker.embedded.connect(self._embedded)
        self._predictions.landed.connect(self._arrived)
        self._predictions.attach()

    def scroll(self, positions: range, seconds: float) -> None:
        """Look at planes, each for so many seconds; at the first one until it is embedded."""
        self._predictions.look(_plane(positions[0]))
        wait_until(lambda: _plane(positions[0]).index in self._ready)
        for position in positions:
            plane = _plane(position)
            self.counts.came.append(plane.index in self._ready)
            self._predictions.look(plane)
            wait(seconds)
            self.counts.left.append(plane.index in self._ready)

    def click(self, positions: range) -> None:
        """Go to each plane in random order and click at once; wait for the last mask."""
        self._predictions.planes_ahead = 0
        wait_until(lambda: not self._worker.busy)
        rows, cols = self._session.volume.shape[1:]
        for position in np.random.default_rng(0).permutation(positions).tolist():
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


def _plane(position: int) -> Plane:
    return Plane((position, None, None))


def main() -> None:
    """Read the arguments and measure."""
    from qtpy.QtCore import QCoreApplication

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--planes", type=int, default=40)
    parser.add_argument("--rate", type=float, default=2.0, help="planes a second")
    parser.add_argument("--ahead", type=int, default=8, help="planes embedded ahead, each way")
    parser.add_argument("--size", type=int, action="append", help="side of the network's input; repeatable")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    application = QCoreApplication.instance() or QCoreApplication([])
    volume = Volume(large_stack(chosen.planes), window=(0, 255))
    print_load("before")
    print("\n| input | came into view | left | clicked afterwards | embedding | warm click | cold click |")
    print("|---|---|---|---|---|---|---|")
    for size in chosen.size or SIZES:
        worker = Worker()
        worker.failed.connect(print)
        loaded: list[Any] = []
        worker.loaded.connect(loaded.append)
        process = partial(in_process, str(size), chosen.device, load=LOAD)
        worker.load(process)
        wait_until(lambda loaded=loaded: bool(loaded))  # type: ignore[misc]
        user = ScrollingUser(worker, volume, chosen.ahead)
        positions = range(len(volume.data))  # type: ignore[arg-type]
        user.scroll(positions, 1 / chosen.rate)
        user.click(positions)
        user.leave()
        worker.close()
        print(f"| {size} | {user.counts.row()} |", flush=True)
    print_load("after")
    application.processEvents()


if __name__ == "__main__":
    main()
