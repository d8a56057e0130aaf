"""How prompts look on the screen, in pixels: seen everywhere, and of one size however the image lies."""

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.layers import Image
from qtpy.QtTest import QTest

from napari_lowlat_seg.core.prompts import Click, Scribble
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.layers.grid import grid_of
from napari_lowlat_seg.plugin.layers.prompt_layers import PromptLayers
from napari_lowlat_seg.plugin.layers.prompt_rows import (
    LINE_PIXELS,
    NEGATIVE_COLOR,
    POINT_PIXELS,
    POSITIVE_COLOR,
)

TURN = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
PLACES = {
    "plain": {},
    "thick slices": {"axis": 2, "scale": (3, 1, 0.5)},
    "rotated": {"scale": (2, 1, 1.5), "affine": TURN},
    "stretched": {"affine": np.diag([10, 10, 10])},
    "shrunk": {"affine": np.diag([1e-3, 1e-3, 1e-3])},
    "small": {"scale": (1e-3, 1e-3, 1e-3)},
}


@pytest.fixture
def screen(make_napari_viewer_proxy):
    """Prompt layers in a window over an image of one gray value, and what is seen of a colour."""
    opened = []

    def build(gray=0, axis=0, **place):
        viewer = make_napari_viewer_proxy(show=True)
        image = Image(np.full((40, 48, 64), gray, np.uint8), contrast_limits=(0, 255), **place)
        viewer.add_layer(image)
        viewer.dims.order = (axis, *(a for a in range(3) if a != axis))
        viewer.reset_view()
        grid = grid_of(image)
        grid.look_at(viewer.dims, Plane(tuple(5 if a == axis else None for a in range(3))))
        layers = PromptLayers(viewer, grid, lambda edit: None)
        layers.attach()
        opened.append(layers)

        def seen(color, *prompts):
            """(rows, cols) bool: where the canvas has just this colour."""
            plane = grid.plane(viewer.dims)
            layers.show({plane: prompts}, plane.axes)
            layers.shapes.text.visible = False
            QTest.qWait(50)
            shot = viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)
            wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
            return np.abs(shot - wanted).max(axis=2) < 12

        return viewer, grid, seen

    yield build
    for layers in opened:
        layers.detach()


@pytest.mark.parametrize("gray", [0, 255])
@pytest.mark.parametrize(("positive", "color"), [(True, POSITIVE_COLOR), (False, NEGATIVE_COLOR)])
def test_every_click_is_seen_in_its_colour(screen, gray, positive, color):
    """Wherever it lies between the pixels of the screen, and at every zoom."""
    viewer, _, seen = screen(gray)
    rng = np.random.default_rng(0)
    for factor in (0.31, 1.0, 3.7):
        viewer.scene.camera.zoom *= factor
        for point in rng.uniform((21, 29), (27, 35), (6, 2)):
            assert seen(color, Click(tuple(point), positive)).sum() >= 15
        viewer.scene.camera.zoom /= factor


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_marks_are_as_wide_on_every_image(screen, place):
    """A click, and a line along either axis: within half of what is meant."""
    viewer, grid, seen = screen(**place)
    rows, cols = grid.sides(grid.plane(viewer.dims))
    middle = (rows / 2, cols / 2)
    for factor in (0.5, 4.0):
        viewer.scene.camera.zoom *= factor
        across, down = (np.ptp(axis) + 1 for axis in np.nonzero(seen(POSITIVE_COLOR, Click(middle))))
        assert 0.6 * POINT_PIXELS <= across <= POINT_PIXELS
        assert 0.6 * POINT_PIXELS <= down <= POINT_PIXELS
        both = [
            Scribble([(middle[0] - 3, middle[1]), (middle[0] + 3, middle[1])]),
            Scribble([(middle[0], middle[1] - 3), (middle[0], middle[1] + 3)]),
        ]
        widths = [_width(seen(POSITIVE_COLOR, line)) for line in both]
        assert 0.5 * LINE_PIXELS <= np.sqrt(widths[0] * widths[1]) <= 2 * LINE_PIXELS
        viewer.scene.camera.zoom /= factor


def _width(seen):
    """The area of a straight line by its length."""
    rows, cols = np.nonzero(seen)
    return len(rows) / np.hypot(np.ptp(rows) + 1, np.ptp(cols) + 1)
