"""A real window whose model finds what is bright, and waits when it is told to."""

from types import SimpleNamespace

import pytest
from napari.components import ViewerModel
from napari.utils._proxies import PublicOnlyProxy
from npe2 import PluginManifest

from bright_service import BrightService
from hand import Hand
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.settings import PLUGIN
from napari_lowlat_seg.plugin.widget import LowlatWidget
from napari_lowlat_seg.plugin.worker import Worker
from shared_window import SharedWindow


@pytest.fixture
def own_settings(plugin_settings, npe2pm, tmp_path, monkeypatch):
    """Settings and models in a folder of the test's own."""
    npe2pm.register(PluginManifest.from_distribution(PLUGIN))
    monkeypatch.setenv("LOWLAT_SEG_CACHE", str(tmp_path / "models"))


@pytest.fixture(scope="module")
def window_of_the_file():
    """The window that the tests of a file share."""
    shared = SharedWindow()
    yield shared
    shared.close()


@pytest.fixture
def shared_viewer(window_of_the_file, qtbot, monkeypatch):
    """A shown viewer that refuses private attributes, as `make_napari_viewer_proxy` makes it, made once."""
    monkeypatch.setenv("NAPARI_ENSURE_PLUGIN_MAIN_THREAD", "True")
    yield PublicOnlyProxy(window_of_the_file.open(qtbot))
    window_of_the_file.empty()


@pytest.fixture
def make_viewer(monkeypatch):
    """Makes viewers without a window, which refuse private attributes."""
    monkeypatch.setenv("NAPARI_ENSURE_PLUGIN_MAIN_THREAD", "True")
    return lambda: PublicOnlyProxy(ViewerModel())


@pytest.fixture
def bright_window(shared_viewer, qtbot):
    """A viewer and the widget beside it: `bright_window(lambda viewer: viewer.add_image(...))`."""
    viewer = shared_viewer
    viewer.window.resize(1200, 850)

    def open_window(prepare):
        prepare(viewer)
        service, worker = BrightService(), Worker()
        worker.load(lambda: service)
        widget = LowlatWidget(viewer, worker)
        widget.form.model.wanted.disconnect()  # the service is loaded already
        viewer.window.add_dock_widget(widget, name="Segment")
        it = SimpleNamespace(viewer=viewer, widget=widget, worker=worker, service=service, qtbot=qtbot)
        it.controller = lambda: widget.controller
        it.hand = lambda: Hand(viewer, widget.controller.grid)
        qtbot.waitUntil(lambda: widget.controller is not None)
        it.settle = lambda: settle(it)
        it.look = lambda index: look(it, index)
        settle(it)
        return it

    return open_window


def settle(it):
    """Wait until nothing is to come."""
    it.qtbot.waitUntil(
        lambda: (
            it.controller().session.volume.window is not None
            and not it.worker.busy
            and not it.controller().session.requests()
            and not it.controller().actions
            and not it.controller().labels.reading
        )
    )
    it.qtbot.wait(20)


def look(it, index):
    """Show a plane."""
    it.controller().grid.look_at(it.viewer.dims, Plane(index))
    it.qtbot.wait(20)
