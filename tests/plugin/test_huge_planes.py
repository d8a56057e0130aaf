"""Planes too large to be looked at whole, in a real window with the real widget; huge is 300 pixels here."""

from functools import partial

import numpy as np
import pytest
import zarr
from napari.utils.notifications import notification_manager
from qtpy.QtWidgets import QApplication

from hand import Hand
from napari_lowlat_seg.core.boxes import Tiling
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.controller.controller import AnnotationController
from napari_lowlat_seg.plugin.widget import LowlatWidget
from napari_lowlat_seg.plugin.worker import Worker

pytest.importorskip("ome_zarr")

SMALL = Tiling(large=300, side=200, halo=32)
SHAPE = (5, 900, 1000)
BRIGHT = (slice(600, 640), slice(700, 760))
"""One object on every plane, in the tile from 512 and 648 on."""


class Brightness:
    """A service to whom an object is what is bright; it writes down what pixels it gets."""

    def __init__(self):
        self.embedded, self.asked, self._known = [], [], {}

    def describe(self, progress=None):
        return {"model": "brightness", "device": "cpu", "precision": "float32", "size": 64, "licence": "none"}

    def embed(self, source, cancelled=lambda: False):
        if source.identity in self._known:
            return 0.0
        self._known[source.identity] = pixels = source.read()
        self.embedded.append(pixels.shape)
        return 0.01

    def predict(self, request, source, cancelled=lambda: False):
        self.asked.append(request)
        yield SoftMask.of((self._known[source.identity] > 100).astype(np.float32)), True

    def restart(self):
        pass

    close = restart


class Ready(Worker):
    """A worker whose model is there already."""

    def __init__(self, service):
        super().__init__()
        self.service = service

    def load(self, make_service):
        super().load(lambda: self.service)


@pytest.fixture
def it(make_napari_viewer_proxy, qtbot, tmp_path):
    """A window with a bright bar in a stack of huge planes on disk, the widget, and a hand."""
    viewer = make_napari_viewer_proxy(show=True)
    viewer.window.resize(1300, 900)
    array = zarr.open_array(tmp_path / "a.zarr", mode="w", shape=SHAPE, chunks=(1, 128, 128), dtype=np.uint8)
    array[:, *BRIGHT] = 200
    layer = viewer.add_image(array, name="stack", contrast_limits=(0, 255))
    make_controller = partial(AnnotationController, tiling=SMALL, fit=lambda shape: False)
    service = Brightness()
    widget = LowlatWidget(viewer, Ready(service), make_controller)
    viewer.window.add_dock_widget(widget, name="Segment")
    window = type("Window", (), {})()
    window.viewer, window.layer, window.widget, window.service, window.place = (
        viewer,
        layer,
        widget,
        service,
        tmp_path,
    )
    window.until = lambda true: qtbot.waitUntil(true)
    window.until(lambda: widget.controller is not None and widget.sentence == "ready")
    window.controller = widget.controller
    window.hand = Hand(viewer, window.controller.grid)
    window.quiet = lambda: window.until(
        lambda: not widget.worker.busy and not window.controller.session.pending
    )
    return window


def zoom(viewer, at):
    """Look at a place of the plane from near enough to see less than two tiles."""
    viewer.scene.camera.center = at
    viewer.scene.camera.zoom = 4
    QApplication.processEvents()


def seen(window):
    """The mask on the screen, as (rows, cols) of the plane."""
    layer = window.controller.preview.layer
    corner = np.round(layer.data_to_world((0, 0, 0)))[1:].astype(int)
    part = np.asarray(layer.data)[0] == 1
    mask = np.zeros(SHAPE[1:], bool)
    mask[corner[0] : corner[0] + part.shape[0], corner[1] : corner[1] + part.shape[1]] = part
    return mask


def test_a_click_is_answered_from_its_tile_and_written_to_disk(it):
    """The plane is never read whole; mask and labels lie where the object is, these on all levels."""
    expected = np.zeros(SHAPE[1:], bool)
    expected[BRIGHT] = True
    assert it.service.embedded == []  # everything is in view: nobody knows where the click will be
    it.hand.click((620, 730))
    it.quiet()
    assert it.service.embedded == [(200, 200)]
    plane = it.controller.plane
    assert it.controller.session.state(plane).soft_mask.shape == SHAPE[1:]
    assert np.array_equal(it.controller.session.mask(plane), expected)
    assert np.array_equal(seen(it), expected)
    assert max(it.controller.preview.layer.data.shape) == 200
    it.controller.labels.keep_at(it.place / "l.ome.zarr")
    it.controller.accept()
    it.until(lambda: it.controller.session.label == 2)
    levels = zarr.open_group(it.place / "l.ome.zarr")
    assert np.array_equal(levels["0"][plane.index[0]] == 1, expected)
    assert np.array_equal(levels["1"][plane.index[0]] == 1, expected[::2, ::2])
    assert not seen(it).any()
    it.hand.key("Ctrl+Z")
    assert not levels["0"][plane.index[0]].any()
    assert np.array_equal(seen(it), expected)
    it.hand.key("Ctrl+Shift+Z")
    assert it.controller.session.edit_object(plane, (620, 730))


def test_the_tile_in_view_is_embedded_before_the_click(it):
    """And another one when the picture is moved; a click and its correction stay on one tile."""
    zoom(it.viewer, (620, 730))
    it.until(lambda: it.service.embedded == [(200, 200)])
    it.quiet()
    it.hand.click((620, 730))
    it.quiet()
    it.hand.click((650, 800), key="Ctrl")
    it.quiet()
    assert it.service.embedded == [(200, 200)]
    (_, second) = [request for request in it.service.asked if request.ticket]  # the rest is ahead of them
    assert [prompt.positive for prompt in second.prompts] == [True, False]
    assert second.previous.shape == (200, 200)
    zoom(it.viewer, (200, 200))
    it.until(lambda: len(it.service.embedded) == 2)


def test_without_a_place_for_labels_nothing_is_lost(it):
    """An image without a file: a message says what to do, and the object waits."""
    it.hand.click((620, 730))
    it.quiet()
    it.controller.accept()
    assert it.widget.sentence == "not accepted: there are no labels"
    assert any("“new on disk…”" in str(record) for record in notification_manager.records)
    assert seen(it).any()
    assert it.controller.session.label == 1


def test_the_brush_paints_on_what_is_in_view(it):
    """The layer goes where the user looks, and what is painted lies there in the plane."""
    zoom(it.viewer, (300, 400))
    it.quiet()
    it.controller.preview.brush()
    layer = it.controller.preview.layer
    corner = np.round(layer.data_to_world((0, 0, 0)))[1:].astype(int)
    assert (corner < (300, 400)).all()
    layer.brush_size = 5
    layer.paint((0, *(np.array((300, 400)) - corner)), 1)
    mask = it.controller.session.mask(it.controller.plane)
    assert mask[300, 400]
    assert 10 < mask.sum() < 40
    it.controller.undo()
    assert it.controller.session.mask(it.controller.plane) is None
    assert not seen(it).any()


def test_other_planes_and_axes_are_huge_too(it):
    """Across the rows a plane is 5 x 1000; the preview is laid out anew."""
    it.controller.grid.look_at(it.viewer.dims, Plane((None, 620, None)))
    it.until(lambda: it.controller.plane == Plane((None, 620, None)))
    it.viewer.reset_view()
    it.controller.prompts.points.add((2, 620, 730))
    it.quiet()
    mask = it.controller.session.mask(it.controller.plane)
    assert mask.shape == (5, 1000)
    assert mask[:, 700:760].all()
    assert mask.sum() == 300
    assert it.service.embedded[-1] == (5, 200)
    assert it.controller.predictions.sources._tiles[it.controller.plane] == (0, 648, 5, 848)
