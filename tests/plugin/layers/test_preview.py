"""The preview: what is to be seen is drawn, on the plane in view, and the user's layers stay as they were."""

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.components import ViewerModel

from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.layers.grid import grid_of
from napari_lowlat_seg.plugin.layers.preview import CONTOUR, MASK, NEGATIVE, POSITIVE, Preview

SHAPE = (5, 12, 14)
AXIAL, NEXT, CORONAL = Plane((2, None, None)), Plane((3, None, None)), Plane((None, 4, None))


@pytest.fixture
def viewer():
    """A viewer without a window, with one volume that is turned in its plane."""
    viewer = ViewerModel()
    viewer.add_image(np.zeros(SHAPE), name="scan", scale=(3, 1, 1), rotate=(0, 0, 30), units="nm")
    return viewer


@pytest.fixture
def grid(viewer):
    """The volume's grid."""
    return grid_of(viewer.layers["scan"])


@pytest.fixture
def painted():
    """The brush strokes that the preview reported."""
    return []


@pytest.fixture
def preview(viewer, grid, painted):
    """An attached preview, in view at AXIAL."""
    preview = Preview(viewer, grid)
    preview.attach(lambda plane, mask: painted.append((plane, mask.pixels)))
    return preview


def rectangle(grid, plane, rows=slice(2, 6), cols=slice(3, 9)):
    """A mask on a plane."""
    mask = np.zeros(grid.sides(plane), bool)
    mask[rows, cols] = True
    return mask


def seen(preview):
    """What napari has sliced of the layer, in rows and columns."""
    return preview.layer._slice.image.raw


def test_it_is_added_without_disturbing(viewer, grid):
    """On top, locked against deletion by hand, nothing else selected than before."""
    points = viewer.add_points(np.zeros((1, 3)))
    preview = Preview(viewer, grid)
    preview.attach(print)
    assert list(viewer.layers)[-1] is preview.layer
    assert viewer.layers.selection == {points}
    assert preview.layer.locked
    assert preview.layer.name == "scan [lowlat] preview"
    preview.detach()
    assert list(viewer.layers) == [viewer.layers["scan"], points]


def test_a_mask_is_shown_and_taken_away(preview, grid):
    """As label 1; None is no mask."""
    mask = rectangle(grid, AXIAL)
    preview.show(AXIAL, mask)
    np.testing.assert_array_equal(seen(preview), mask * MASK)
    preview.show(AXIAL, None)
    assert not seen(preview).any()


def test_only_what_changed_is_drawn_anew(preview, grid):
    """A mask that grew by a column is a column's work for the screen; the same mask is none."""
    preview.show(AXIAL, rectangle(grid, AXIAL))
    updates = []
    preview.layer.events.labels_update.connect(lambda event: updates.append((event.offset, event.data.shape)))
    preview.show(AXIAL, rectangle(grid, AXIAL, cols=slice(3, 10)))
    preview.show(AXIAL, rectangle(grid, AXIAL, cols=slice(3, 10)))
    assert updates == [([2, 9], (4, 1))]


def test_the_callers_mask_may_change_afterwards(preview, grid):
    """What was shown is kept."""
    mask = rectangle(grid, AXIAL)
    preview.show(AXIAL, mask)
    mask[:] = False
    preview.contour(rectangle(grid, AXIAL))
    preview.contour(None)
    assert np.count_nonzero(seen(preview)) == 24


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_it_moves_with_the_plane_in_any_orientation(order):
    """napari shows the mask on its plane and nothing on the others, however the axes are ordered."""
    viewer = ViewerModel()
    grid = grid_of(viewer.add_image(np.zeros(SHAPE), scale=(3, -1, 2), translate=(5, 6, 7)))
    preview = Preview(viewer, grid)
    preview.attach(print)
    viewer.dims.order = order
    for position in (1, 3):
        plane = Plane(tuple(position if axis == order[0] else None for axis in range(3)))
        grid.look_at(viewer.dims, plane)
        mask = rectangle(grid, plane, slice(1, 3), slice(0, 4))
        preview.show(plane, mask)
        np.testing.assert_array_equal(seen(preview), mask if order[1] < order[2] else mask.T)
        viewer.dims.set_point(order[0], viewer.dims.range[order[0]].stop)
        assert not seen(preview).any()


def test_a_plane_without_a_mask_shows_none_of_the_last_plane(preview, viewer, grid):
    """There is nothing to draw, so the layer stays behind, empty."""
    preview.show(AXIAL, rectangle(grid, AXIAL))
    grid.look_at(viewer.dims, NEXT)
    preview.show(NEXT, None)
    assert not preview.layer.data.any()


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
def test_in_3d_it_lies_where_the_plane_lies(preview, viewer, grid):
    """The corner of the slab is the corner of the plane, also where 2-D display leaves something out."""
    viewer.layers["scan"].rotate = (0, 25, 0)
    preview.show(AXIAL, rectangle(grid, AXIAL))
    viewer.dims.ndisplay = 3
    corner = viewer.layers["scan"].data_to_world((2, 5, 6))
    np.testing.assert_allclose(preview.layer.data_to_world((0, 5, 6)), corner)
    preview.show(AXIAL, rectangle(grid, AXIAL, cols=slice(0, 2)))
    assert np.count_nonzero(preview.layer.data) == 8


def test_it_follows_an_image_that_moves(preview, viewer, grid):
    """Scale and all the rest are read anew."""
    viewer.layers["scan"].scale = (4, 2, 2)
    preview.show(AXIAL, rectangle(grid, AXIAL))
    viewer.layers["scan"].translate = (10, 20, 30)
    corner = viewer.layers["scan"].data_to_world((2, 0, 0))
    np.testing.assert_allclose(preview.layer.data_to_world((0, 0, 0)), corner)


@pytest.mark.parametrize(("positive", "label"), [(True, POSITIVE), (False, NEGATIVE)])
def test_strokes_under_way_are_drawn_by_kind(preview, grid, positive, label):
    """A line, the box around two corners, a closed outline; on top of the mask, and gone with None."""
    preview.show(AXIAL, rectangle(grid, AXIAL))
    preview.stroke([(2, 2), (2, 5)], positive, "scribble")
    assert np.argwhere(seen(preview) == label).tolist() == [[2, 2], [2, 3], [2, 4], [2, 5]]
    preview.stroke([(8, 9), (5, 7)], positive, "box")
    edge = rectangle(grid, AXIAL, slice(5, 9), slice(7, 10))
    edge[6:8, 8] = False
    np.testing.assert_array_equal(seen(preview) == label, edge)
    preview.stroke([(1, 1), (1, 4), (4, 4)], positive, "lasso")
    assert seen(preview)[[1, 3, 2], [3, 4, 2]].tolist() == [label] * 3
    preview.stroke([(9, 9)], positive)
    assert np.argwhere(seen(preview) == label).tolist() == [[9, 9]]
    preview.stroke(None)
    np.testing.assert_array_equal(seen(preview), rectangle(grid, AXIAL) * MASK)


def test_a_stroke_may_leave_the_plane(preview):
    """What lies beside it is not drawn."""
    preview.stroke([(-5, 3), (2, 3)])
    assert np.argwhere(seen(preview) == POSITIVE).tolist() == [[0, 3], [1, 3], [2, 3]]


def test_a_contour_is_the_edge_of_a_mask(preview, grid):
    """The hovering mouse outlines; the mask below stays."""
    preview.show(AXIAL, rectangle(grid, AXIAL, slice(0, 2), slice(0, 2)))
    preview.contour(rectangle(grid, AXIAL))
    inner = rectangle(grid, AXIAL, slice(3, 5), slice(4, 8))
    np.testing.assert_array_equal(seen(preview) == CONTOUR, rectangle(grid, AXIAL) & ~inner)
    preview.contour(np.zeros(grid.sides(AXIAL), bool))
    assert np.count_nonzero(seen(preview)) == 4


def test_another_plane_has_no_stroke_and_no_contour(preview, viewer, grid):
    """They belong to the plane that they were drawn on; clear takes all away."""
    preview.stroke([(2, 2)])
    preview.contour(rectangle(grid, AXIAL))
    grid.look_at(viewer.dims, NEXT)
    preview.show(NEXT, rectangle(grid, NEXT))
    assert set(np.unique(seen(preview))) == {0, MASK}
    preview.clear()
    assert not seen(preview).any()


def test_brush_and_eraser_change_the_mask(preview, viewer, painted, grid):
    """The layer becomes the active one; each stroke reports the whole mask of the plane."""
    preview.show(AXIAL, rectangle(grid, AXIAL))
    preview.contour(rectangle(grid, AXIAL))
    preview.brush()
    assert viewer.layers.selection.active is preview.layer
    assert str(preview.layer.mode) == "paint"
    preview.layer.brush_size = 1
    preview.layer.paint((0, 10, 11), preview.layer.selected_label)
    expected = rectangle(grid, AXIAL)
    expected[10, 11] = True
    assert painted[-1][0] == AXIAL
    np.testing.assert_array_equal(painted[-1][1], expected)
    preview.eraser()
    assert str(preview.layer.mode) == "erase"
    with preview.layer.block_history():
        preview.layer.paint((0, 10, 11), 0)
        preview.layer.paint((0, 2, 3), 0)
    expected[10, 11] = expected[2, 3] = False
    np.testing.assert_array_equal(painted[-1][1], expected)
    np.testing.assert_array_equal(seen(preview), expected)


def test_filling_a_whole_plane_is_a_stroke_too(preview, painted):
    """napari keeps no mask of a rectangle that changed all over."""
    preview.brush()
    preview.layer.fill((0, 1, 1), MASK)
    assert painted[-1][1].all()


def test_the_brush_goes_where_the_user_goes(preview, viewer, painted, grid):
    """In brush mode the layer comes along to planes that have no mask, in any orientation."""
    preview.brush()
    viewer.layers["scan"].rotate = (0, 0, 0)
    preview.layer.brush_size = 1
    grid.look_at(viewer.dims, CORONAL)
    preview.show(CORONAL, None)
    preview.layer.paint(preview.layer.world_to_data(viewer.dims.point), MASK)
    plane, mask = painted[-1]
    assert plane == CORONAL
    assert np.count_nonzero(mask) == 1
    assert str(preview.layer.mode) == "paint"
    assert np.count_nonzero(seen(preview)) == 1


def test_it_comes_back_when_somebody_takes_it_out(preview, viewer, grid):
    """Until it is detached."""
    viewer.layers.remove(preview.layer)
    preview.show(AXIAL, rectangle(grid, AXIAL))
    assert preview.layer in viewer.layers
    viewer.layers.remove(preview.layer)
    preview.detach()
    preview.show(AXIAL, None)
    assert preview.layer not in viewer.layers


def test_it_shows_nothing_of_a_plane_that_is_left(preview, viewer, grid):
    """Even before the next plane's mask is known; back again, it waits for the mask."""
    preview.show(AXIAL, rectangle(grid, AXIAL))
    grid.look_at(viewer.dims, NEXT)
    assert not seen(preview).any()
    grid.look_at(viewer.dims, AXIAL)
    preview.show(AXIAL, rectangle(grid, AXIAL))
    assert seen(preview).any()


def test_scrolling_moves_no_layer(preview, viewer, grid):
    """Moving one would make napari slice all of them again."""
    preview.show(AXIAL, rectangle(grid, AXIAL))
    moves = []
    preview.layer.events.translate.connect(moves.append)
    grid.look_at(viewer.dims, NEXT)
    preview.show(NEXT, rectangle(grid, NEXT))
    np.testing.assert_array_equal(seen(preview), rectangle(grid, NEXT))
    assert moves == []


def test_channels_share_one_preview():
    """The slab covers all of them."""
    viewer = ViewerModel()
    grid = grid_of(viewer.add_image(np.zeros((3, *SHAPE))), channel_axis=0)
    preview = Preview(viewer, grid)
    preview.attach(print)
    for channel in range(3):
        viewer.dims.set_point(0, channel)
        preview.show(AXIAL, rectangle(grid, AXIAL))
        np.testing.assert_array_equal(seen(preview), rectangle(grid, AXIAL))


def test_it_may_be_made_while_no_plane_is_shown(viewer, grid):
    """In 3-D display it lies, empty, at the first plane."""
    viewer.dims.ndisplay = 3
    preview = Preview(viewer, grid)
    preview.attach(print)
    assert preview.layer.data.shape == (1, 12, 14)
    assert not preview.layer.data.any()


def test_a_real_window_shows_it_through_the_plugins_view_of_the_viewer(make_napari_viewer_proxy):
    """No private attribute is touched, and the mask's colour reaches the canvas."""
    viewer = make_napari_viewer_proxy(show=True)
    image = viewer.add_image(np.zeros((5, 40, 40), np.uint8), contrast_limits=(0, 255))
    grid = grid_of(image)
    points = viewer.add_points(np.zeros((0, 3)))
    preview = Preview(viewer, grid)
    preview.attach(print)
    assert viewer.layers.selection.active is not None
    assert viewer.layers.selection.active.name == points.name
    plane = grid.plane(viewer.dims)
    preview.show(plane, rectangle(grid, plane, slice(10, 30), slice(10, 30)))
    grid.look_at(viewer.dims, plane.moved(1))
    preview.show(plane.moved(1), rectangle(grid, plane, slice(10, 30), slice(10, 30)))
    preview.show(plane.moved(1), rectangle(grid, plane, slice(10, 31), slice(10, 30)))
    shot = viewer.screenshot(canvas_only=True, flash=False)
    middle = shot[shot.shape[0] // 2, shot.shape[1] // 2]
    np.testing.assert_allclose(middle[:3], (128, 97, 5), atol=3)
    preview.detach()
