"""What one click costs the window: calls of our own code, and CPU of the widget's refresh.

    python -m benchmarks.window.click_trace              # needs a screen, or xvfb-run

One click in a stack of 48 planes is traced with a profile hook, in a real viewer with the real widget; a fake
in the model's place predicts a mask and refines it. Counted are calls of functions of the package (resumed
generators included), and how many of them come from another file of ours. Then the widget is refreshed after
real changes in stacks of 50, 500 and 5,000 planes. The time is that of the window's own thread
(`time.thread_time`), so that other load on the machine does not count.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.trace import Trace
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane

SIDE = 256
LONG = 60.0


class FakeService:
    """Answers every request with a disk around its last prompt, first roughly and then refined."""

    def describe(self, progress: Any = None) -> dict[str, Any]:
        return {"model": "fake", "device": "cpu", "precision": "float32", "licence": "none"}

    def embed(self, source: Any, cancelled: Any = None) -> float:
        return 0.0

    def predict(self, request: Any, source: Any, cancelled: Any = None) -> Any:
        for radius, final in ((20, False), (22, False), (22, True)):
            yield disk(request.prompts[-1].points[0], radius), final

    def propagate(self, request: Any, sources: Any, cancelled: Any = None) -> Any:
        yield from ()

    find_objects = propagate

    def restart(self) -> None:
        pass

    close = restart


def disk(at: tuple[float, float], radius: float) -> SoftMask:
    """A disk as a prediction would give it."""
    rows, cols = np.indices((SIDE, SIDE))
    inside = (rows - at[0]) ** 2 + (cols - at[1]) ** 2 < radius**2
    return SoftMask.of(np.where(inside, np.float32(0.9), np.float32(0)))


class Window:
    """A viewer with a stack and the widget, whose model is the fake."""

    def __init__(self, planes: int) -> None:
        import napari
        from qtpy.QtWidgets import QApplication

        from napari_lowlat_seg.plugin.widget import LowlatWidget

        self.app = QApplication
        self.viewer: Any = napari.Viewer()
        self.viewer.window.resize(1300, 900)
        self.layer = self.viewer.add_image(np.zeros((planes, SIDE, SIDE), np.uint8), name="stack")
        self.widget: Any = LowlatWidget(self.viewer)
        self.widget.form.model.wanted.disconnect()
        self.viewer.window.add_dock_widget(self.widget, name="Segment")
        self.widget.worker.load(FakeService)  # type: ignore[arg-type]  # it only stands in
        self.wait(lambda: self.widget.controller is not None and not self.widget.worker.busy)
        self.wait(lambda: self.widget.controller.session.volume.window is not None)
        self.wait(lambda: not self.widget.worker.busy, 0.5)

    def wait(self, until: Callable[[], bool], at_least: float = 0.0) -> None:
        """Turn the event loop until something is true, and for so many seconds."""
        begun = time.perf_counter()
        while time.perf_counter() < begun + at_least or not until():
            if time.perf_counter() > begun + LONG:
                raise TimeoutError("the window did not come to rest within a minute")
            self.app.processEvents()
            time.sleep(0.002)

    def click(self, row: float, col: float) -> None:
        """Press and release the left button over a pixel of the plane in view."""
        from qtpy.QtCore import QEvent, QPointF, Qt
        from qtpy.QtGui import QMouseEvent
        from qtpy.QtWidgets import QWidget

        below = (child for top in self.app.topLevelWidgets() for child in top.findChildren(QWidget))
        canvas = next(one for one in below if "Canvas" in type(one).__name__ and one.isVisible())
        camera, (height, width) = self.viewer.scene.camera, self.viewer.canvas.size
        y, x = (np.array([row, col]) - np.asarray(camera.center)[-2:]) * camera.zoom
        where, left = QPointF(x + width / 2, y + height / 2), Qt.MouseButton.LeftButton
        none, free = Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier
        for kind, down in ((QEvent.Type.MouseButtonPress, left), (QEvent.Type.MouseButtonRelease, none)):
            glob = QPointF(canvas.mapToGlobal(where))
            self.app.sendEvent(canvas, QMouseEvent(kind, where, glob, left, down, free))

    def close(self) -> None:
        """End worker and window."""
        self.viewer.close()


def trace_click(planes: int = 48) -> Trace:
    """The calls of one click, from the mouse button until the refined mask and the strip are drawn."""
    trace = Trace()  # before the worker's thread begins
    window = Window(planes)
    threading.setprofile(None)
    session = window.widget.controller.session
    window.click(90, 90)  # whatever happens only once
    window.wait(lambda: bool(session.prompted()) and not session.pending, 0.3)
    with trace:
        window.click(120, 130)
        window.wait(lambda: not session.pending and not window.widget.worker.busy, 0.3)
    if len(next(iter(session.prompted().values()))) != 2:
        raise RuntimeError("the traced click did not become a prompt")
    window.close()
    return trace


def refresh_times(planes: int, rounds: int = 30) -> list[float]:
    """Milliseconds of CPU of the window's thread for one refresh of the widget, after a click is answered."""
    window = Window(planes)
    widget, controller = window.widget, window.widget.controller
    times = []
    for turn in range(rounds):
        plane = Plane((planes // 2 + turn % 3, None, None))
        controller.session.add(plane, Click((100.0 + turn, 120.0)))
        controller.session.apply(controller.session.request(plane), disk((100 + turn, 120), 20))
        begun = time.thread_time()
        widget._show()
        assert widget.sentence  # worked out now, and not behind the timing
        times.append(1000 * (time.thread_time() - begun))
    window.close()
    return times


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--top", type=int, default=0, help="list the functions that are called most")
    parser.add_argument("--planes", type=int, nargs="*", default=[50, 500, 5000], help="depths of the stacks")
    given = parser.parse_args()
    trace = trace_click()
    print(f"one click, 48 planes: {trace.summary(given.top)}")
    for planes in given.planes:
        times = refresh_times(planes)
        print(f"refresh, {planes} planes: {np.median(times):.1f} ms CPU (median of {len(times)})")


if __name__ == "__main__":
    main()
