"""Between napari's world and the pixels of a plane, compared with napari's own slicing."""

import numpy as np
import pytest

pytest.importorskip("napari")

import dask.array as da
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from napari.components import ViewerModel

from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.layers.grid import grid_of

pytestmark = pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")

SIDES = (4, 5, 6, 7)
numbers = st.floats(-20, 20).map(lambda v: round(v, 3))
sizes = st.sampled_from([-3.0, -1.0, 0.25, 0.5, 1.0, 2.0, 7.5])


@st.composite
def viewers(draw, skewed=False, ndims=(2, 3, 4)):
    """A viewer with one placed image of unlike voxels, some order of axes, and a random generator."""
    ndim = draw(st.sampled_from(ndims))
    order = draw(st.permutations(range(ndim)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    affine = np.eye(ndim + 1)
    turned = range(ndim) if skewed else order[-2:]
    affine[np.ix_(turned, turned)] += random.uniform(-0.7, 0.7, (len(turned), len(turned)))
    assume(abs(np.linalg.det(affine)) > 0.2)
    affine[:-1, -1] = random.uniform(-50, 50, ndim)
    viewer = ViewerModel()
    image = viewer.add_image(
        np.arange(np.prod(SIDES[:ndim]), dtype=np.float32).reshape(SIDES[:ndim]),
        scale=[draw(sizes) for _ in range(ndim)],
        translate=[draw(numbers) for _ in range(ndim)],
        affine=affine,
        units="nm",
    )
    for _ in range(draw(st.integers(0, 2))):  # another layer gives the viewer axes that the image lacks
        viewer.add_points(np.zeros((1, ndim + 1)), units="nm")
        order = [0, *(axis + 1 for axis in order)] if viewer.dims.ndim > len(order) else order
    viewer.dims.order = order
    return viewer, image, random


def shown_place(layer, dims):
    """Where napari draws data coordinates of the displayed axes (sorted): matrix and offset."""
    axes = sorted(axis - (dims.ndim - layer.ndim) for axis in dims.displayed)
    shown = layer._data_to_world.set_slice(axes)
    return axes, shown.linear_matrix, shown.translate


def random_plane(grid, viewer, random):
    """A plane in the orientation that the viewer shows."""
    lead = viewer.dims.ndim - grid.ndim
    shown = {axis - lead for axis in viewer.dims.displayed}
    sides = zip(grid.axes, grid.volume.shape, strict=True)
    return Plane(tuple(None if axis in shown else int(random.integers(n)) for axis, n in sides))


@settings(max_examples=25, deadline=None)
@given(viewers())
def test_the_plane_holds_the_voxels_that_napari_shows(case):
    """Whatever the order of axes and the place, napari's slice and the volume's plane are the same pixels."""
    viewer, image, random = case
    grid = grid_of(image)
    plane = random_plane(grid, viewer, random)
    grid.look_at(viewer.dims, plane)
    assert grid.plane(viewer.dims) == plane
    drawn = image._slice.image.raw
    in_rows = viewer.dims.displayed[0] < viewer.dims.displayed[1]
    np.testing.assert_array_equal(grid.volume.plane(plane), drawn if in_rows else drawn.T)


@settings(max_examples=25, deadline=None)
@given(viewers(skewed=True))
def test_a_world_position_lands_on_the_pixel_that_is_drawn_there(case):
    """Also in a view that is not at a right angle, where napari leaves out what leads out of the plane."""
    viewer, image, random = case
    grid = grid_of(image)
    plane = random_plane(grid, viewer, random)
    axes, linear, offset = shown_place(image, viewer.dims)
    assume(abs(np.linalg.det(linear)) > 1e-2)
    pixel = random.uniform(-0.5, 3.4, 2)
    world = np.array(viewer.dims.point)
    world[np.array(axes) + viewer.dims.ndim - image.ndim] = linear @ pixel + offset
    np.testing.assert_allclose(grid.to_plane(world, plane), pixel, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(viewers())
def test_world_to_plane_to_world_is_where_it_began(case):
    """A point that is put on the plane comes back, and a layer on the grid shows it where the mouse was."""
    viewer, image, random = case
    grid = grid_of(image)
    plane = random_plane(grid, viewer, random)
    grid.look_at(viewer.dims, plane)
    pixels = random.uniform(-0.5, 3.4, (5, 2))
    coords = grid.to_layer(plane, pixels)
    points = viewer.add_points(coords, **grid.place)
    back, again = grid.from_layer(points.data, plane.axes)
    assert back == plane
    np.testing.assert_allclose(again, pixels)
    for row, pixel in zip(coords, pixels, strict=True):
        world = np.array(viewer.dims.point)
        world[viewer.dims.ndim - grid.ndim :] = points.data_to_world(row)
        np.testing.assert_allclose(grid.to_plane(world, plane, viewer.dims), pixel, atol=1e-6)
        np.testing.assert_allclose(image.world_to_data(world), row, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(viewers(skewed=True, ndims=(2, 3)), st.booleans())
def test_a_slab_is_drawn_on_the_plane_and_lies_there_in_3d(case, flat):
    """napari's transform of the slab is that of the image, to the plane on its slider."""
    viewer, image, random = case
    grid = grid_of(image)
    # A slider of a skewed image does not reach every plane, so this one is found from a point of the slider.
    viewer.dims.point = [random.uniform(axis.start, axis.stop) for axis in viewer.dims.range]
    plane = grid.plane(viewer.dims)
    assume(plane is not None)
    axes, linear, offset = shown_place(image, viewer.dims)
    shape, place = grid.slab(plane, flat=flat)
    assert shape == tuple(n if axis in axes else 1 for axis, n in enumerate(grid.shape))
    layer = viewer.add_labels(np.zeros(shape, np.uint8), **place)
    if flat:
        np.testing.assert_allclose(shown_place(layer, viewer.dims)[1], linear, atol=1e-9)
        np.testing.assert_allclose(shown_place(layer, viewer.dims)[2], offset, atol=1e-6)
        hidden = [axis for axis in range(grid.ndim) if axis not in axes]
        np.testing.assert_array_equal(np.round(np.array(layer._data_slice.point)[hidden]), 0)
    else:
        start = grid.to_layer(plane, [(1, 2)])[0]
        pixel = np.where(np.isin(range(grid.ndim), axes), start, 0)
        np.testing.assert_allclose(layer.data_to_world(pixel), image.data_to_world(start), atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2), st.lists(sizes, min_size=3, max_size=3), st.permutations(range(3)), st.data())
def test_a_level_of_a_pyramid_lies_where_the_image_lies(level, scale, order, data):
    """All levels share their outer edges, so a coarse voxel covers the fine ones it was made of."""
    fine = da.zeros((8, 18, 21), chunks=-1)
    turn = (0, 0, 30 if set(order[-2:]) == {1, 2} else 0)
    levels = [fine, fine[:, ::2, ::2], fine[::2, ::4, ::4]]
    viewer = ViewerModel()
    image = viewer.add_image(levels, scale=scale, translate=(5, 6, 7), rotate=turn, units="um")
    viewer.dims.order = order
    grid = grid_of(image, level=level)
    labels = viewer.add_labels(np.zeros(grid.shape, np.uint8), **grid.place)
    assert grid.shape == levels[level].shape == grid.volume.shape
    for corner in (np.full(3, -0.5), np.array(levels[0].shape) - 0.5):
        ours = np.where(corner < 0, -0.5, np.array(grid.shape) - 0.5)
        np.testing.assert_allclose(labels.data_to_world(ours), image.data_to_world(corner))
    shown = sorted(order[-2:])
    index = [None if a in shown else data.draw(st.integers(0, n - 1)) for a, n in enumerate(grid.shape)]
    grid.look_at(viewer.dims, Plane(tuple(index)))
    assert grid.plane(viewer.dims) == Plane(tuple(index))


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_a_channel_axis_becomes_a_slab_that_shows_at_every_channel(axis):
    """The channel is chosen once; scrolling through channels keeps the plane and what is drawn on it."""
    data = np.moveaxis(np.arange(3 * 4 * 5 * 6).reshape(3, 4, 5, 6), 0, axis)
    viewer = ViewerModel()
    image = viewer.add_image(data, scale=(2, 3, 4, 5), rgb=False)
    grid = grid_of(image, channel_axis=axis, channel=1)
    labels = viewer.add_labels(np.zeros(grid.shape, np.uint8), **grid.place)
    axis %= 4
    viewer.dims.order = (axis, *(a for a in range(4) if a != axis))
    assert grid.volume.shape == (4, 5, 6)
    assert grid.shape[axis] == 1
    for channel in range(3):
        viewer.dims.set_point(axis, channel * image.scale[axis])
        grid.look_at(viewer.dims, Plane((2, None, None)))
        assert grid.plane(viewer.dims) == Plane((2, None, None))
        assert round(labels._data_slice.point[axis]) == 0
        np.testing.assert_array_equal(image._slice.image.raw, np.take(data, channel, axis)[2])
    np.testing.assert_array_equal(grid.volume.plane(Plane((2, None, None))), np.take(data, 1, axis)[2])
    viewer.dims.order = (*(a for a in range(4) if a != axis), axis)
    assert grid.plane(viewer.dims) is None


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_are_no_axis(channels):
    """RGB and RGBA volumes are sliced as grey ones are."""
    viewer = ViewerModel()
    image = viewer.add_image(np.zeros((5, 6, 7, channels), np.uint8), scale=(2, 1, 1), rgb=True)
    grid = grid_of(image)
    assert image.ndim == 3
    assert grid.shape == grid.volume.shape == (5, 6, 7)
    assert grid.volume.plane(grid.plane(viewer.dims)).shape == (6, 7, 3)


def test_a_flat_image_has_one_plane():
    """Also in a viewer with a slider that a volume brought in."""
    viewer = ViewerModel()
    image = viewer.add_image(np.zeros((6, 7)))
    grid = grid_of(image)
    assert grid.plane(viewer.dims) == Plane((None, None))
    viewer.add_image(np.zeros((3, 6, 7)))
    assert grid.plane(viewer.dims) == Plane((None, None))
    viewer.dims.order = (1, 0, 2)
    assert grid.plane(viewer.dims) is None
    grid.look_at(viewer.dims, Plane((None, None)))
    assert grid.plane(viewer.dims) == Plane((None, None))


def test_there_is_no_plane_in_3d_and_beside_the_image():
    """Prompts wait there."""
    viewer = ViewerModel()
    image = viewer.add_image(np.zeros((5, 6, 7)), translate=(10, 0, 0))
    viewer.add_image(np.zeros((40, 6, 7)))
    grid = grid_of(image)
    for point, position in ((9, None), (9.6, 0), (14.4, 4), (15, None)):
        viewer.dims.set_point(0, point)
        plane = grid.plane(viewer.dims)
        assert (plane and plane.position) == position
    viewer.dims.set_point(0, 12)
    viewer.dims.ndisplay = 3
    assert grid.plane(viewer.dims) is None


def test_looking_at_a_plane_in_3d_moves_the_sliders_that_are_there():
    """The volume of that time is shown, and the scene does not turn."""
    viewer = ViewerModel()
    grid = grid_of(viewer.add_image(np.zeros((3, 5, 6, 7))))
    viewer.dims.ndisplay = 3
    grid.look_at(viewer.dims, Plane((2, None, 4, None)))
    assert viewer.dims.order == (0, 1, 2, 3)
    assert viewer.dims.point[0] == 2


def test_units_of_the_viewer_are_not_those_of_the_layer():
    """Beside a layer in nanometres, the world of one in micrometres is in nanometres."""
    viewer = ViewerModel()
    image = viewer.add_image(np.zeros((5, 6, 7)), scale=(2, 1, 1), units="um")
    viewer.add_image(np.zeros((5, 6, 7)), scale=(2000, 1000, 1000), units="nm")
    grid = grid_of(image)
    grid.look_at(viewer.dims, Plane((3, None, None)))
    assert viewer.dims.point[0] == pytest.approx(6000)
    assert grid.plane(viewer.dims) == Plane((3, None, None))
    assert grid.to_plane((6000, 2000, 4000), Plane((3, None, None)), viewer.dims) == pytest.approx((2, 4))


def test_the_spacing_is_that_of_the_world():
    """Scale and affine multiplied, signs dropped, units of a kind made one; with a level's factor."""
    viewer = ViewerModel()
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    affine[1:3, 1:3] = [[0, -3], [3, 0]]
    place = {"scale": (-5, 0.5, 2), "affine": affine, "units": ("um", "nm", "nm")}
    image = viewer.add_image([np.zeros((4, 8, 9)), np.zeros((4, 4, 3))], **place)
    assert grid_of(image).volume.spacing == pytest.approx((10_000, 1.5, 6))
    assert grid_of(image, level=1).volume.spacing == pytest.approx((10_000, 3, 18))


def test_the_spacing_keeps_time_apart_from_space():
    """A second is no length: each axis has its own unit."""
    viewer = ViewerModel()
    image = viewer.add_image(np.zeros((4, 5, 6)), scale=(3, 0.5, 2), units=("s", "um", "um"))
    assert grid_of(image).volume.spacing == pytest.approx((3, 0.5, 2))


def test_points_beside_the_plane_are_found():
    """The engine refuses them: pixels reach from half before the first to half after the last."""
    grid = grid_of(ViewerModel().add_image(np.zeros((5, 6, 7))))
    points = [(-0.5, 6.5), (-0.6, 3), (5.5, 0), (5.4, 6.6)]
    assert grid.inside(Plane((1, None, None)), points).tolist() == [True, False, True, False]
    assert grid.sides(Plane((None, 1, None))) == (5, 7)


def test_the_image_may_move():
    """The place is read from the layer each time."""
    image = ViewerModel().add_image(np.zeros((5, 6, 7)))
    grid = grid_of(image)
    image.scale = (2, 3, 4)
    np.testing.assert_array_equal(grid.place["scale"], (2, 3, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 2}, "has levels 0 to 1; got level 2"),
        ({"channel_axis": 3}, r"has no channel axis 3"),
        ({"channel_axis": 0, "channel": 9}, "channel must be from 0 to 7; got 9"),
    ],
)
def test_what_the_image_does_not_have_is_refused(options, message):
    """In the sentence that the widget shows."""
    image = ViewerModel().add_image([np.zeros((8, 16, 16)), np.zeros((4, 8, 8))])
    with pytest.raises(ValueError, match=message):
        grid_of(image, **options)


def test_an_rgb_image_has_no_channel_to_choose():
    """It is segmented in colour."""
    image = ViewerModel().add_image(np.zeros((8, 9, 3), np.uint8), name="photo", rgb=True)
    with pytest.raises(ValueError, match="'photo' is RGB and segmented as such; got channel axis 2"):
        grid_of(image, channel_axis=2)


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ([(1, 2, 3), (2, 2, 3)], "must lie on one plane; this one reaches from 1 to 2 along axis 0"),
        ([(5, 2, 3)], "a prompt at 5 lies beside the image, whose axis 0 goes from 0 to 4"),
        (np.zeros((0, 3)), r"needs \(N, 3\) coordinates, N of 1 or more; got \(0, 3\)"),
    ],
)
def test_a_prompt_lies_on_one_plane_of_the_image(coords, message):
    """What was drawn across planes is refused."""
    grid = grid_of(ViewerModel().add_image(np.zeros((5, 6, 7))))
    with pytest.raises(ValueError, match=message):
        grid.from_layer(coords, (1, 2))


def test_a_plane_seen_from_its_edge_has_no_pixels_under_the_mouse():
    """An affine that swaps a displayed axis with a hidden one."""
    affine = np.eye(4)[[1, 0, 2, 3]]
    image = ViewerModel().add_image(np.zeros((5, 6, 7)), affine=affine, name="scan")
    with pytest.raises(
        ValueError, match=r"'scan' is turned so that plane \(0, None, None\) is seen from its edge"
    ):
        grid_of(image).to_plane((0, 0, 0), Plane((0, None, None)))
