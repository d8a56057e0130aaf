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
from itertools import islice
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
    paints
        When the canvas was painted, in seconds of `time.perf_counter`.
    redraws
        How often the preview has changed what is to be painted.
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
        self.paints: list[float] = []
        self.redraws = 0
        self._filter = _paint_filter(self.canvas, lambda: self.paints.append(time.perf_counter()))
        for event in ("set_data", "labels_update"):
            getattr(self.controller.preview.layer.events, event).connect(self._count_redraw)

    def _count_redraw(self) -> None:
        self.redraws += 1

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

    def random_clicks(self, planes: int, seed: int = 0) -> Iterator[tuple[int, Click]]:
        """Yield positions and clicks without end, in the middle of the planes, which are square."""
        side = self.layer.data.shape[-1]
        return random_clicks(planes, 0.3 * side, 0.7 * side, seed)

    def click(self, row: float, col: float) -> None:
        """Press and release the left mouse button on a pixel of the plane shown."""
        press_and_release(self.viewer, self.canvas, row, col)


def press_and_release(viewer: Any, canvas: Any, row: float, col: float) -> None:
    """Press and release the left mouse button on a pixel of the canvas, whose scale is 1."""
    from qtpy.QtCore import QEvent, QPointF, Qt
    from qtpy.QtGui import QMouseEvent
    from qtpy.QtWidgets import QApplication

    camera, (height, width) = viewer.scene.camera, viewer.canvas.size
    y, x = (np.array([row, col]) - np.asarray(camera.center)[-2:]) * camera.zoom
    position, left = QPointF(x + width / 2, y + height / 2), Qt.MouseButton.LeftButton
    for kind, down in (
        (QEvent.Type.MouseButtonPress, left),
        (QEvent.Type.MouseButtonRelease, Qt.MouseButton.NoButton),
    ):
        glob, none = QPointF(canvas.mapToGlobal(position)), Qt.KeyboardModifier.NoModifier
        QApplication.sendEvent(canvas, QMouseEvent(kind, position, glob, left, down, none))


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
    """Return milliseconds from the button until the first mask, and until the last one, is on the screen.

    A mask that changes a pixel is there after the next painting; one that changes none, when it has come.
    """
    first: list[float] = []
    last: list[float] = []
    landings: list[
        tuple[bool, float, bool]
    ] = []  # whether it is the last one, when it came, if it is redrawn
    redraws = 0

    def land(plane: Plane, final: bool) -> None:
        nonlocal redraws
        landings.append((final, time.perf_counter(), window.redraws > redraws))
        redraws = window.redraws

    def on_screen(landing: tuple[bool, float, bool]) -> float | None:
        _, came, redrawn = landing
        return next((painted for painted in window.paints if painted > came), None) if redrawn else came

    def over() -> bool:
        return any(final for final, *_ in landings) and None not in map(on_screen, landings)

    window.controller.predictions.landed.connect(land)
    clicks = window.random_clicks(planes)
    for number in range(CLICKS * planes):
        position, click = next(clicks)
        if number % CLICKS == 0:
            window.controller.clear()
            window.show_plane(position)
            window.wait_for_worker()
            wait(0.2)  # no hand clicks while the plane is still being drawn
        landings.clear()
        window.paints.clear()
        redraws = window.redraws
        start = time.perf_counter()
        window.click(*click.at)
        wait_until(over)
        for landing, times in ((landings[0], first), (landings[-1], last)):
            times.append(1000 * ((on_screen(landing) or 0.0) - start))
    window.controller.predictions.landed.disconnect(land)
    window.controller.clear()
    return first, last


def time_napari(image: np.ndarray, clicks: int = 20) -> tuple[list[float], list[float]]:
    """Return what a click costs without us: ms to a point painted, and to changed labels painted.

    napari's own Points layer gets the point; then 300 x 300 pixels of a Labels layer are changed and redrawn.
    A mask can be on the screen no earlier than both together.
    """
    import napari
    from qtpy.QtWidgets import QApplication, QWidget

    from napari_lowlat_seg.plugin.layers.napari_layers import redraw

    viewer: Any = napari.Viewer()
    viewer.window.resize(1400, 1000)
    viewer.add_image(image)
    labels = viewer.add_labels(np.zeros((1, *image.shape[1:]), np.uint8))
    points = viewer.add_points(ndim=3)
    points.mode = "add"
    viewer.dims.set_current_step(0, 0)  # where the labels are
    children = (child for top in QApplication.topLevelWidgets() for child in top.findChildren(QWidget))
    canvas = next(one for one in children if "Canvas" in type(one).__name__ and one.isVisible())
    paints: list[float] = []
    kept = _paint_filter(canvas, lambda: paints.append(time.perf_counter()))
    low, high = np.array(image.shape[1:]) // 3, np.array(image.shape[1:]) // 3 + 300
    part = (slice(0, 1), *map(slice, low.tolist(), high.tolist()))
    pointed: list[float] = []
    labelled: list[float] = []

    def change() -> None:
        labels.data[part] = 1 - labels.data[part]
        redraw(labels, part)

    def painted_after(act: Callable[[], None]) -> float:
        paints.clear()
        start = time.perf_counter()
        act()
        done = time.perf_counter()
        wait_until(lambda: any(painted > done for painted in paints))
        return 1000 * (next(painted for painted in paints if painted > done) - start)

    wait(0.5)
    for _, click in islice(random_clicks(1, low[0], 2 * low[0]), clicks):
        pointed.append(painted_after(partial(press_and_release, viewer, canvas, *click.at)))
        wait(0.1)
        labelled.append(painted_after(change))
        wait(0.1)
    canvas.removeEventFilter(kept)
    viewer.close()
    return pointed, labelled


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


def print_times(what: str, times: list[float]) -> None:
    """Print two percentiles of milliseconds."""
    p50, p95 = np.percentile(times, [50, 95])
    print(f"\n{len(times)} clicks {what} painted: p50 {p50:.0f} ms, p95 {p95:.0f} ms", flush=True)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--planes", type=int, default=12, help="three clicks are timed on each")
    parser.add_argument("--seconds", type=float, default=15.0, help="of scrolling and clicking")
    chosen = parser.parse_args()
    print_load("before")
    time_accepting()
    for name, times in zip(("a point", "changed labels"), time_napari(large_stack(PLANES))):
        print_times(f"napari alone, to {name}", times)
    window = Window(large_stack(PLANES))
    for model in ("default", "nothing", "slow", "busy"):
        if model == "nothing":
            window.controller.predictions.hold(True)  # prompts come and go, and nothing is asked
        else:
            window.load(model)
        if model == "default":
            for name, times in zip(("first mask", "last mask"), time_clicks(window, chosen.planes)):
                print_times(f"to the {name}", times)
        found = measure_gaps(window, chosen.seconds)
        p50, p99 = np.percentile(found, [50, 99])
        window.controller.predictions.hold(False)
        print(f"\ngaps, {model}: p50 {p50:.1f} ms, p99 {p99:.0f} ms, max {max(found):.0f} ms", flush=True)
    window.viewer.close()
    print_load("after")


if __name__ == "__main__":
    main()
