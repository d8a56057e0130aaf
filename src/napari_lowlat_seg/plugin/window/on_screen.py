"""From the mouse button to the pixels: `python -m napari_lowlat_seg.plugin.window.on_screen`.

The finished widget in a real window, on 50 planes of 1024 x 1024 pixels made of the shipped EM sample.
Somebody clicks three times on an object and goes to the next plane; then again, without looking at what
comes. Measured are the time until the canvas has been painted with the mask, how long the window stands still
meanwhile, and what accepting an object of a megapixel costs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.io.samples import sample_path
from napari_lowlat_seg.plugin.window.gui_gap import MODELS, TICK
from napari_lowlat_seg.serving.process import PredictionProcess

PLANES, SIDE = 50, 1024
CLICKS = 3
LONG = 120.0


def stack() -> np.ndarray:
    """(50, 1024, 1024) uint8: the EM sample mirrored until it is as large."""
    from napari_lowlat_seg.io.files import read_volume

    small = np.asarray(read_volume(sample_path("em_fly_medulla.tif")).data)
    more = [(0, PLANES - small.shape[0]), (0, SIDE - small.shape[1]), (0, SIDE - small.shape[2])]
    return np.pad(small, more, mode="symmetric")


class Desk:
    """A window with the widget in it, and someone who uses it."""

    def __init__(self, image: np.ndarray) -> None:
        import napari
        from qtpy.QtWidgets import QApplication, QWidget

        from napari_lowlat_seg.plugin.widget import LowlatWidget

        self.viewer: Any = napari.Viewer()
        self.viewer.window.resize(1400, 1000)
        self.layer = self.viewer.add_image(image, name="stack")
        self.widget = LowlatWidget(self.viewer)
        self.viewer.window.add_dock_widget(self.widget, name="Segment")
        self.turn(lambda: self.widget.conversation is not None)
        below = (child for top in QApplication.topLevelWidgets() for child in top.findChildren(QWidget))
        self.canvas = next(one for one in below if "Canvas" in type(one).__name__ and one.isVisible())
        self.painted = 0
        self._eye = _Eye(self.canvas, self._paint)

    def _paint(self) -> None:
        self.painted += 1

    @property
    def talk(self) -> Any:
        return self.widget.conversation

    def turn(self, until: Callable[[], bool], at_most: float = LONG) -> bool:
        """Let the window work until something is true, or for so many seconds; whether it became true."""
        from qtpy.QtCore import QEventLoop, QTimer

        loop, end = QEventLoop(), time.perf_counter() + at_most
        ask = QTimer()
        ask.timeout.connect(lambda: (until() or time.perf_counter() > end) and loop.quit())
        ask.start(1)
        loop.exec_()
        return until()

    def use(self, model: str) -> None:
        """Load a model in the child process and wait for the first embedding."""
        loaded: list[Any] = []
        self.widget.worker.loaded.connect(loaded.append)
        self.turn(lambda: not self.widget.worker.busy)
        self.widget.worker.load(partial(PredictionProcess, "default", "cpu", load=MODELS[model]))
        self.turn(lambda: bool(loaded) and not self.widget.worker.busy)

    def look_at(self, position: int) -> None:
        """Go to a plane and wait until it is embedded."""
        self.talk.grid.look_at(self.viewer.dims, Plane((position, None, None)))
        self.turn(lambda: not self.widget.worker.busy)

    def see(self) -> None:
        """Wait until the canvas has been painted once more; no longer than a second."""
        before = self.painted
        self.turn(lambda: self.painted > before, 1.0)

    def click(self, row: float, col: float) -> None:
        """Press and release the left button there."""
        from qtpy.QtCore import QEvent, QPointF, Qt
        from qtpy.QtGui import QMouseEvent
        from qtpy.QtWidgets import QApplication

        camera, (height, width) = self.viewer.scene.camera, self.viewer.canvas.size
        y, x = (np.array([row, col]) - np.asarray(camera.center)[-2:]) * camera.zoom
        where, left = QPointF(x + width / 2, y + height / 2), Qt.MouseButton.LeftButton
        for kind, down in (
            (QEvent.Type.MouseButtonPress, left),
            (QEvent.Type.MouseButtonRelease, Qt.MouseButton.NoButton),
        ):
            glob = QPointF(self.canvas.mapToGlobal(where))
            none = Qt.KeyboardModifier.NoModifier
            QApplication.sendEvent(self.canvas, QMouseEvent(kind, where, glob, left, down, none))


class _Eye:
    """Sees each time the canvas has been painted."""

    def __new__(cls, canvas: Any, seen: Callable[[], None]) -> Any:
        from qtpy.QtCore import QEvent, QObject, QTimer

        class Eye(QObject):
            def eventFilter(self, watched: Any, event: Any) -> bool:
                if event.type() in (QEvent.Type.Paint, QEvent.Type.UpdateRequest):
                    QTimer.singleShot(0, seen)  # when the painting is over
                return False

        eye = Eye(canvas)
        canvas.installEventFilter(eye)
        return eye


def clicks(desk: Desk, planes: int) -> tuple[list[float], list[float]]:
    """Milliseconds from the button until the first mask, and until the last one, is painted."""
    first: list[float] = []
    last: list[float] = []
    landed: list[bool] = []
    desk.talk.questions.landed.connect(lambda plane, final: landed.append(final))
    random = np.random.default_rng(0)
    for position in range(planes):
        desk.look_at(position)
        for row, col in random.uniform(300, 700, 2) + random.uniform(-40, 40, (CLICKS, 2)):
            landed.clear()
            began = time.perf_counter()
            desk.click(row, col)
            desk.turn(lambda: bool(landed))
            desk.see()
            first.append(1000 * (time.perf_counter() - began))
            desk.turn(lambda: True in landed)
            desk.see()
            last.append(1000 * (time.perf_counter() - began))
        desk.talk.clear()
    return first, last


def gaps(desk: Desk, seconds: float) -> list[float]:
    """Milliseconds between two turns of the event loop while somebody scrolls and clicks all the time."""
    from qtpy.QtCore import Qt, QTimer

    found: list[float] = []
    last = time.perf_counter()

    def tick() -> None:
        nonlocal last
        now = time.perf_counter()
        found.append(1000 * (now - last))
        last = now

    beat, hand, random = QTimer(), QTimer(), np.random.default_rng(1)
    beat.setTimerType(Qt.TimerType.PreciseTimer)
    beat.timeout.connect(tick)

    def act() -> None:
        held = desk.talk.questions.held
        if held or not desk.talk.session.unanswered:
            plane = desk.talk.plane
            if len(desk.talk.session.state(plane).prompts) >= CLICKS:
                desk.talk.clear()
                following = (plane.position + 1) % len(desk.layer.data)
                desk.talk.grid.look_at(desk.viewer.dims, Plane((following, None, None)))
            desk.click(*random.uniform(300, 700, 2))
            hand.setInterval(300 if held else 20)  # as fast as answers come

    hand.timeout.connect(act)
    hand.start(20)
    beat.start(TICK)
    desk.turn(lambda: False, seconds)
    beat.stop()
    hand.stop()
    desk.talk.clear()
    desk.turn(lambda: not desk.widget.worker.busy)
    return found


def accepting(side: int = 2048) -> None:
    """Prints what accepting an object of a megapixel costs, beside `data_setitem`."""
    from napari.layers import Image, Labels

    from napari_lowlat_seg.annotation.session import Session
    from napari_lowlat_seg.plugin.labels.memory_labels import LabelLayer
    from napari_lowlat_seg.plugin.layers.grid import grid_of

    rows, cols = np.mgrid[:side, :side]
    disk = np.hypot(rows - side / 2, cols - side / 2) < 564.2  # a million pixels
    plane = Plane((7, None, None))
    ours, theirs = [], []
    for _ in range(5):
        labels = Labels(np.zeros((PLANES, side, side), np.uint16))
        grid = grid_of(Image(np.zeros((PLANES, side, side), np.uint8)))
        session = Session(grid.volume, LabelLayer(labels, grid))
        session.paint(plane, disk)
        began = time.perf_counter()
        session.accept()
        ours.append(1000 * (time.perf_counter() - began))
        kept = session.timeline.done[-1].nbytes
        other = Labels(np.zeros((PLANES, side, side), np.uint16))
        began = time.perf_counter()
        where = np.nonzero(disk)
        indices = (np.full(len(where[0]), 7), *where)
        other.data_setitem(indices, 1)
        theirs.append(1000 * (time.perf_counter() - began))
    size = sum(index.nbytes for index in indices) + 2 * len(where[0])
    print(f"\naccepting {np.count_nonzero(disk)} pixels of ({PLANES}, {side}, {side}), medians of 5:")
    print(f"accept {np.median(ours):.0f} ms, undo step {kept / 1e3:.1f} kB")
    print(f"nonzero and data_setitem {np.median(theirs):.0f} ms, undo step {size / 1e6:.1f} MB")


def main() -> None:
    """Reads the arguments and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--planes", type=int, default=12, help="three clicks are timed on each")
    parser.add_argument("--seconds", type=float, default=15.0, help="of scrolling and clicking")
    chosen = parser.parse_args()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before")
    accepting()
    desk = Desk(stack())
    for model in ("default", "nothing", "slow", "busy"):
        if model == "nothing":
            desk.talk.hold(True)  # prompts come and go, and nothing is asked
        else:
            desk.use(model)
        if model == "default":
            for name, times in zip(("first mask", "last mask"), clicks(desk, chosen.planes)):
                p50, p95 = np.percentile(times, [50, 95])
                print(
                    f"\n{len(times)} clicks, until the {name} is painted: p50 {p50:.0f} ms, p95 {p95:.0f} ms"
                )
        found = gaps(desk, chosen.seconds)
        p50, p99 = np.percentile(found, [50, 99])
        desk.talk.hold(False)
        print(f"\ngaps, {model}: p50 {p50:.1f} ms, p99 {p99:.0f} ms, max {max(found):.0f} ms", flush=True)
    desk.viewer.close()
    print(f"\nload {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
