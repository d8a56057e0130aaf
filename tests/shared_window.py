"""One napari window for the tests of a file: to make one takes longer than most tests."""

from __future__ import annotations

import gc
from unittest.mock import patch

import pytest
from app_model import Application
from napari import Viewer
from napari._app_model._app import NapariApplication, _napari_names
from napari._qt._qapp_model.qactions import init_qactions
from napari._qt.qt_viewer import QtViewer
from napari.plugins import _initialize_plugins
from napari.settings import get_settings
from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QApplication

NAME = "window_of_the_tests"
CALLBACKS = ("mouse_move", "mouse_drag", "mouse_wheel", "mouse_double_click")


class SharedWindow:
    """Opens a viewer where there is none, and empties it after each test.

    What napari's own fixture sets up for each viewer (an application of its own, no thread that writes the
    status) it sets up once. A test that closes the window gets it, the next one a new one.
    """

    def __init__(self) -> None:
        self.viewer: Viewer | None = None

    def open(self, qtbot) -> Viewer:
        """The viewer, empty and on the screen."""
        if self.viewer is not None and not self._is_open():
            self.close()
        if self.viewer is None:
            self._open()
            qtbot.wait_exposed(self.viewer.window._qt_window)
        # Drawn once: drawing in software takes a third of the time of these tests, none of which looks at the
        # canvas. Those with `make_napari_viewer_proxy` draw everything.
        self.viewer.window._qt_viewer.canvas.native.setUpdatesEnabled(False)
        get_settings().reset()
        return self.viewer

    def _is_open(self) -> bool:
        try:
            return self.viewer.window._qt_window.isVisible()
        except (AttributeError, RuntimeError):  # napari and Qt forget a closed window
            return False

    def _open(self) -> None:
        self._monkeypatch = pytest.MonkeyPatch()
        self._monkeypatch.setattr("napari._qt.threads.status_checker.StatusChecker.start", lambda *_: None)
        self._app = NapariApplication(NAME)
        self._app.injection_store.namespace = _napari_names
        self._monkeypatch.setattr(NapariApplication, "get_app_model", lambda: self._app)
        _initialize_plugins.cache_clear()
        init_qactions.cache_clear()
        self.viewer = Viewer(show=True, show_welcome_screen=False)
        QtViewer._instances.discard(self.viewer.window._qt_viewer)  # else napari's fixtures miss it
        self._before = self._borrowed()

    def _borrowed(self) -> dict[str, int]:
        """How many listeners the viewer has."""
        viewer = self.viewer
        counts = {kind: len(getattr(viewer, f"{kind}_callbacks")) for kind in CALLBACKS}
        for name, part in (("layers", viewer.layers), ("dims", viewer.dims), ("camera", viewer.scene.camera)):
            counts[name] = sum(len(emitter.callbacks) for emitter in part.events.emitters.values())
        return counts | {"keys": len(viewer.keymap), "overlays": len(viewer.canvas.overlays)}

    def empty(self) -> None:
        """Take out what a test has put in; fails if something of it still listens."""
        if self.viewer is None or not self._is_open():
            return
        viewer = self.viewer
        widgets = [dock.inner_widget() for dock in viewer.window._wrapped_dock_widgets.values()]
        viewer.window.remove_dock_widget("all")
        for widget in widgets:
            widget.close()
            widget.deleteLater()
        viewer.layers.clear()
        for part in (viewer.dims, viewer.scene.camera, viewer.canvas.grid, viewer.cursor, viewer.tooltip):
            part.reset()
        viewer.status = "Ready"
        get_settings().reset()
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)
        QApplication.processEvents()
        gc.collect()  # what napari would have done at each layer: see `quick_removal`
        left = self._borrowed()
        if left != self._before:
            self.close()
            assert left == self._before, "a test left listeners behind"

    def close(self) -> None:
        """Close the viewer for good."""
        if self.viewer is None:
            return
        if self._is_open():
            with patch.object(self.viewer.window._qt_window, "_save_current_window_settings"):
                self.viewer.close()
        self.viewer = None
        self._monkeypatch.undo()
        Application.destroy(NAME)
        _initialize_plugins.cache_clear()
        init_qactions.cache_clear()
        QApplication.processEvents()
        gc.collect()
