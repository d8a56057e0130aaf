"""A hand on the canvas and the keyboard: real Qt events, where a person's would arrive."""

from itertools import pairwise
from time import sleep

import numpy as np
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QKeyEvent, QMouseEvent, QWheelEvent
from qtpy.QtWidgets import QApplication, QWidget

LEFT, NONE = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
HELD = {
    "": Qt.KeyboardModifier.NoModifier,
    "Shift": Qt.KeyboardModifier.ShiftModifier,
    "Ctrl": Qt.KeyboardModifier.ControlModifier,
}
NAMED = {"Enter": Qt.Key.Key_Return, "Escape": Qt.Key.Key_Escape, "Tab": Qt.Key.Key_Tab}


class Hand:
    """Goes to (row, col) of the plane that the viewer shows of a grid."""

    def __init__(self, viewer, grid):
        self.viewer, self.grid = viewer, grid
        below = (child for top in QApplication.topLevelWidgets() for child in top.findChildren(QWidget))
        self.canvas = next(w for w in below if "Canvas" in type(w).__name__ and w.isVisible())

    def where(self, point):
        """The canvas pixel that shows it: the middle of the canvas is the camera's centre."""
        data = self.grid.to_layer(self.grid.plane(self.viewer.dims), [point])[0]
        world = np.asarray(self.grid.layer.data_to_world(data * np.asarray(self.grid.factors)))
        world = world[[axis - self.viewer.dims.ndim for axis in self.viewer.dims.displayed]]
        camera = self.viewer.scene.camera
        row, col = (world - np.asarray(camera.center)[-2:]) * camera.zoom
        height, width = self.viewer.canvas.size
        return QPointF(col + width / 2, row + height / 2)

    def _mouse(self, kind, point, button, down, key):
        where = self.where(point)
        glob = QPointF(self.canvas.mapToGlobal(where))
        QApplication.sendEvent(self.canvas, QMouseEvent(kind, where, glob, button, down, HELD[key]))

    def press(self, point, key=""):
        self._mouse(QEvent.Type.MouseButtonPress, point, LEFT, LEFT, key)

    def move(self, *points, key="", down=LEFT):
        """Slow enough for the canvas, which leaves out moves that come within 10 ms."""
        for start, end in pairwise(np.asarray(points, float)):
            for part in np.linspace(0, 1, 6)[1:]:
                sleep(0.011)
                self._mouse(QEvent.Type.MouseMove, tuple(start + part * (end - start)), NONE, down, key)
                QApplication.processEvents()

    def wheel(self, point, notches, key=""):
        where = self.where(point)
        glob = QPointF(self.canvas.mapToGlobal(where))
        turned = QPoint(0, 120 * notches)
        event = QWheelEvent(where, glob, turned, turned, NONE, HELD[key], Qt.ScrollPhase.NoScrollPhase, False)
        QApplication.sendEvent(self.canvas, event)

    def release(self, point, key=""):
        self._mouse(QEvent.Type.MouseButtonRelease, point, LEFT, NONE, key)

    def click(self, point, key=""):
        self.press(point, key)
        self.release(point, key)

    def drag(self, *points, key=""):
        self.press(points[0], key)
        self.move(*points, key=key)
        self.release(points[-1], key)

    def key(self, text):
        """Press and release a key such as "N" or "Ctrl+Shift+Z"."""
        self.key_down(text)
        self.key_up(text)

    def key_down(self, text):
        self._key(QEvent.Type.KeyPress, text)

    def key_up(self, text):
        self._key(QEvent.Type.KeyRelease, text)

    def _key(self, kind, text):
        *modifiers, last = text.split("+")
        held = HELD[""]
        for modifier in modifiers:
            held |= HELD[modifier]
        code = NAMED.get(last) or getattr(Qt.Key, f"Key_{last}")
        QApplication.sendEvent(self.canvas, QKeyEvent(kind, code, held, last if len(last) == 1 else ""))
