"""From the mouse button to the pixels: `python -m benchmarks.window.on_screen`.

The finished widget in a real window, on 50 planes of 1024 x 1024 pixels made of the shipped EM sample. A
simulated user clicks three times on an object and goes to the next plane; then again, without waiting for
masks. Measured are the time until the canvas has been painted with the mask, how long the window stands still
meanwhile, and what accepting an object of a million pixels costs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.window.common import (
    CLICKS,
    MODELS,
    GapTimer,
    in_process,
    large_stack,
    print_load,
    random_clicks,
    wait,
    wait_until,
)
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane

PLANES = 50


class Window:
    """A viewer with the widget in it, used through its mouse events.

    Attributes
    ----------
    viewer, widget
        napari's viewer and ours.
    painted
        How often the canvas has been painted.
    """

    def __init__(self, image: np.ndarray) -> None:
        import napari
        from qtpy.QtWidgets import QApplication, QWidget

        from napari_lowlat_seg.plugin.widget import LowlatWidget

        self.viewer: Any = napari.Viewer()
        self.viewer.window.resize(1400, 1000)
        self.layer = self.viewer.add_image(image, name="stack")
        self.widget = LowlatWidget(self.viewer)
        self.viewer.window.add_dock_widget(self.widget, name="Segment")
        wait_until(lambda: self.controller is not None)
        children = (child for top in QApplication.topLevelWidgets() for child in top.findChildren(QWidget))
        self.canvas = next(one for one in children if "Canvas" in type(one).__name__ and one.isVisible())
        self.painted = 0
        self._filter = _paint_filter(self.canvas, self._count_paint)

    def _count_paint(self) -> None:
        self.painted += 1

    @property
    def controller(self) -> Any:
        """The widget's controller of the image; None before there is one."""
        return self.widget.controller

    def load(self, model: str) -> None:
        """Load a model (a key of `MODELS`) in a child process and wait for the first embedding."""
        loaded: list[Any] = []
        self.wait_for_worker()
        self.widget.worker.loaded.connect(loaded.append)
        self.widget.worker.load(partial(in_process, "default", load=MODELS[model]))
        wait_until(lambda: bool(loaded))
        self.wait_for_worker()

    def wait_for_worker(self) -> None:
        """Wait until nothing is asked of the worker."""
        wait_until(lambda: not self.widget.worker.busy)

    def show_plane(self, position: int) -> None:
        """Move the viewer to a plane."""
        self.controller.grid.look_at(self.viewer.dims, Plane((position, None, None)))

    def wait_for_paint(self) -> None:
        """Wait until the canvas has been painted once more; no longer than a second."""
        before, end = self.painted, time.perf_counter() + 1
        wait_until(lambda: self.painted > before or time.perf_counter() > end)

    def random_clicks(self, planes: int, seed: int = 0) -> Iterator[tuple[int, Click]]:
        """Yield positions and clicks without end, in the middle of the planes, which are square."""
        side = self.layer.data.shape[-1]
        return random_clicks(planes, 0.3 * side, 0.7 * side, seed)

    def click(self, row: float, col: float) -> None:
        """Press and release the left mouse button on a pixel of the plane shown."""
        from qtpy.QtCore import QEvent, QPointF, Qt
        from qtpy.QtGui import QMouseEvent
        from qtpy.QtWidgets import QApplication

        camera, (height, width) = self.viewer.scene.camera, self.viewer.canvas.size
        y, x = (np.array([row, col]) - np.asarray(camera.center)[-2:]) * camera.zoom
        position, left = QPointF(x + width / 2, y + height / 2), Qt.MouseButton.LeftButton
        for kind, down in (
            (QEvent.Type.MouseButtonPress, left),
            (QEvent.Type.MouseButtonRelease, Qt.MouseButton.NoButton),
        ):
            glob = QPointF(self.canvas.mapToGlobal(position))
            none = Qt.KeyboardModifier.NoModifier
            QApplication.sendEvent(self.canvas, QMouseEvent(kind, position, glob, left, down, none))


def _paint_filter(canvas: Any, painted: Callable[[], None]) -> Any:
    """Return an event filter that calls `painted` each time after the canvas has been painted."""
    from qtpy.QtCore import QEvent, QObject, QTimer

    class PaintFilter(QObject):
        def eventFilter(self, watched: Any, event: Any) -> bool:
            if event.type() in (QEvent.Type.Paint, QEvent.Type.UpdateRequest):
                QTimer.singleShot(0, painted)  # when the painting is over
            return False

    made = PaintFilter(canvas)
    canvas.installEventFilter(made)
    return made


def time_clicks(window: Window, planes: int) -> tuple[list[float], list[float]]:
    """Return milliseconds from the button until the first mask, and until the last one, is painted."""
    first: list[float] = []
    last: list[float] = []
    finals: list[bool] = []
    window.controller.predictions.landed.connect(lambda plane, final: finals.append(final))
    clicks = window.random_clicks(planes)
    for number in range(CLICKS * planes):
        position, click = next(clicks)
        if number % CLICKS == 0:
            window.controller.clear()
            window.show_plane(position)
            window.wait_for_worker()
        finals.clear()
        start = time.perf_counter()
        window.click(*click.at)
        for reached, times in ((lambda: bool(finals), first), (lambda: True in finals, last)):
            wait_until(reached)
            window.wait_for_paint()
            times.append(1000 * (time.perf_counter() - start))
    window.controller.clear()
    return first, last


def measure_gaps(window: Window, seconds: float) -> list[float]:
    """Return milliseconds between timer ticks while the user clicks as fast as masks come."""
    from qtpy.QtCore import QTimer

    ticks, mouse = GapTimer(), QTimer()
    clicks = window.random_clicks(len(window.layer.data), seed=1)
    shown = window.controller.plane.position

    def act() -> None:
        nonlocal shown
        controller = window.controller
        held = controller.predictions.postpone
        if held or not controller.session.pending:
            position, click = next(clicks)
            if position != shown:
                controller.clear()
                window.show_plane(position)
                shown = position
            window.click(*click.at)
            mouse.setInterval(300 if held else 20)

    mouse.timeout.connect(act)
    mouse.start(20)
    ticks.start()
    wait(seconds)
    mouse.stop()
    found = ticks.stop()
    window.controller.clear()
    window.wait_for_worker()
    return found


def time_accepting(side: int = 2048) -> None:
    """Print what accepting an object of a million pixels costs, beside napari's own `data_setitem`."""
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
        start = time.perf_counter()
        session.accept()
        ours.append(1000 * (time.perf_counter() - start))
        undo_bytes = session.undo_stack.done[-1].nbytes
        other = Labels(np.zeros((PLANES, side, side), np.uint16))
        start = time.perf_counter()
        where = np.nonzero(disk)
        indices = (np.full(len(where[0]), 7), *where)
        other.data_setitem(indices, 1)
        theirs.append(1000 * (time.perf_counter() - start))
    size = sum(index.nbytes for index in indices) + 2 * len(where[0])
    print(f"\naccepting {np.count_nonzero(disk)} pixels of ({PLANES}, {side}, {side}), medians of 5:")
    print(f"accept {np.median(ours):.0f} ms, undo step {undo_bytes / 1e3:.1f} kB")
    print(f"nonzero and data_setitem {np.median(theirs):.0f} ms, undo step {size / 1e6:.1f} MB")


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--planes", type=int, default=12, help="three clicks are timed on each")
    parser.add_argument("--seconds", type=float, default=15.0, help="of scrolling and clicking")
    chosen = parser.parse_args()
    print_load("before")
    time_accepting()
    window = Window(large_stack(PLANES))
    for model in ("default", "nothing", "slow", "busy"):
        if model == "nothing":
            window.controller.predictions.hold(True)  # prompts come and go, and nothing is asked
        else:
            window.load(model)
        if model == "default":
            for name, times in zip(("first mask", "last mask"), time_clicks(window, chosen.planes)):
                p50, p95 = np.percentile(times, [50, 95])
                print(f"\n{len(times)} clicks to the {name} painted: p50 {p50:.0f} ms, p95 {p95:.0f} ms")
        found = measure_gaps(window, chosen.seconds)
        p50, p99 = np.percentile(found, [50, 99])
        window.controller.predictions.hold(False)
        print(f"\ngaps, {model}: p50 {p50:.1f} ms, p99 {p99:.0f} ms, max {max(found):.0f} ms", flush=True)
    window.viewer.close()
    print_load("after")


if __name__ == "__main__":
    main()
