"""Labels in napari: written as one step, painted strokes as exact edits, one history in step with ours."""

import numpy as np
import pytest

pytest.importorskip("napari")

import dask.array as da
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.components import ViewerModel
from napari.layers import Labels

from napari_lowlat_seg.annotation.objects.writing import object_edits
from napari_lowlat_seg.core.labels import LabelEdit, Policy
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.labels.memory_labels import LabelLayer, fits, make_labels
from napari_lowlat_seg.plugin.layers.grid import grid_of

SHAPE = (5, 12, 14)


@pytest.fixture
def viewer():
    """A viewer without a window, with one volume."""
    viewer = ViewerModel()
    viewer.add_image(np.zeros(SHAPE), name="scan", scale=(3, 1, 1), units="nm")
    return viewer


@pytest.fixture
def grid(viewer):
    """The volume's grid."""
    return grid_of(viewer.layers["scan"])


def adopted(viewer, grid, data, **options):
    """The user's own labels over any array."""
    return LabelLayer(viewer.add_labels(data, **grid.place, **options), grid)


def rectangle(grid, plane, rows, cols):
    """A mask on a plane."""
    mask = np.zeros(grid.sides(plane), bool)
    mask[rows, cols] = True
    return mask


def edit_of(labels, plane, mask, label, policy="keep"):
    """The edit that writes an object."""
    return object_edits(labels, plane, mask, label, Policy(policy))[0]


def everything(labels):
    """All labels, read from the layer."""
    return np.array(labels.layer.data)


BACKENDS = {"numpy": np.array, "dask": lambda data: da.from_array(data.copy(), chunks=(2, 7, 7))}


def zarr_array(data):
    """The same in a zarr array in memory."""
    zarr = pytest.importorskip("zarr")
    return zarr.array(data, chunks=(2, 7, 7))


BACKENDS["zarr"] = zarr_array


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", [(2, None, None), (None, 4, None), (None, None, 6)])
def test_an_edit_is_written_and_undone_on_any_plane(viewer, grid, backend, index):
    """napari's array, and what it displays, hold what the edit says, voxel by voxel; and back."""
    start = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint16)
    labels = adopted(viewer, grid, BACKENDS[backend](start))
    plane = Plane(index)
    grid.look_at(viewer.dims, plane)
    mask = rectangle(grid, plane, slice(1, 4), slice(2, 9))
    edit = edit_of(labels, plane, mask, 9, "overwrite")
    expected = start.copy()
    expected[plane.key()][mask] = 9
    labels.write([edit])
    np.testing.assert_array_equal(everything(labels), expected)
    np.testing.assert_array_equal(labels.layer._slice.image.raw, expected[plane.key()])
    labels.write([edit.reversed()])
    np.testing.assert_array_equal(everything(labels), start)
    np.testing.assert_array_equal(labels.layer._slice.image.raw, start[plane.key()])


def test_several_planes_are_one_step_of_naparis_undo(viewer, grid):
    """Set on one plane, cleared and set on another: one Ctrl+Z in napari takes all of it back."""
    start = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.int32)
    labels = adopted(viewer, grid, start.copy())
    edits = []
    for index in ((1, None, None), (3, None, None)):
        plane = Plane(index)
        before = labels.read(plane, (2, 2, 8, 9))
        after = before.copy()
        after[:3], after[3:] = 7, 0
        edits.append(LabelEdit.between(plane, (2, 2, 8, 9), before, after))
    labels.write(edits)
    assert labels.layer.data[1, 2, 2] == labels.layer.data[3, 4, 8] == 7
    assert labels.layer.data[3, 7, 8] == 0
    labels.layer.undo()
    np.testing.assert_array_equal(labels.layer.data, start)


def test_naparis_protection_of_labels_does_not_stop_the_policy(viewer, grid):
    """preserve_labels is the brush's; it is unchanged afterwards, and no event was emitted."""
    labels = adopted(viewer, grid, np.full(SHAPE, 2, np.uint8))
    labels.layer.preserve_labels = True
    with_prediction = []
    labels.layer.events.preserve_labels.connect(with_prediction.append)
    plane = Plane((0, None, None))
    labels.write([edit_of(labels, plane, rectangle(grid, plane, slice(2, 4), slice(2, 4)), 5, "overwrite")])
    assert labels.layer.data[0, 2, 2] == 5
    assert labels.layer.preserve_labels
    assert with_prediction == []


def test_writing_nothing_leaves_no_step(viewer, grid):
    """Neither no edits nor edits that are made already."""
    labels = adopted(viewer, grid, np.zeros(SHAPE, np.uint8))
    plane = Plane((0, None, None))
    edit = edit_of(labels, plane, rectangle(grid, plane, slice(2, 4), slice(2, 4)), 5)
    labels.layer.data[0, 2:4, 2:4] = 5
    labels.write([edit])
    labels.write([])
    assert len(labels.layer._undo_history) == 0


def test_undo_and_redo_keep_naparis_history_in_step(viewer, grid):
    """Our undo stack moves back and forth along napari's own steps, so that it never holds more than ours."""
    labels = adopted(viewer, grid, np.zeros(SHAPE, np.uint8))
    plane = Plane((1, None, None))
    edits = []
    for label in (1, 2, 3):
        mask = rectangle(grid, plane, slice(label, label + 4), slice(1, 9))
        edits.append(edit_of(labels, plane, mask, label, "overwrite"))
        labels.write([edits[-1]])
    final = everything(labels)
    for edit in reversed(edits):
        labels.write([edit.reversed()])
    assert not everything(labels).any()
    assert (len(labels.layer._undo_history), len(labels.layer._redo_history)) == (0, 3)
    for edit in edits:
        labels.write([edit])
    np.testing.assert_array_equal(everything(labels), final)
    assert (len(labels.layer._undo_history), len(labels.layer._redo_history)) == (3, 0)


def test_a_step_that_napari_has_forgotten_is_taken_back_all_the_same(viewer, grid):
    """Our undo stack is longer than napari's history."""
    labels = adopted(viewer, grid, np.zeros(SHAPE, np.uint8))
    plane = Plane((1, None, None))
    edit = edit_of(labels, plane, rectangle(grid, plane, slice(1, 4), slice(1, 4)), 1)
    labels.write([edit])
    labels.layer._reset_history()
    labels.write([edit.reversed()])
    assert not everything(labels).any()


def test_without_naparis_private_door_the_public_one_serves(viewer, grid):
    """Should napari move it, writing is slower but the same."""

    class Later(Labels):
        _paint_region_with_mask = None

    layer = Later(np.zeros(SHAPE, np.uint8), **grid.place)
    viewer.add_layer(layer)
    labels, plane = LabelLayer(layer, grid), Plane((None, 3, None))
    mask = rectangle(grid, plane, slice(1, 4), slice(2, 6))
    edit = edit_of(labels, plane, mask, 4)
    labels.write([edit])
    np.testing.assert_array_equal(layer.data[:, 3] == 4, mask)
    labels.write([edit.reversed()])
    assert not layer.data.any()


STROKES = {
    "paint": lambda layer, at: layer.paint(at, layer.selected_label),
    "erase": lambda layer, at: layer.paint(at, 0),
    "fill": lambda layer, at: layer.fill(at, layer.selected_label),
    "setitem": lambda layer, at: layer.data_setitem(
        tuple(np.array([int(v), int(w)]) for v, w in zip(at, (4, 0, 13))), layer.selected_label
    ),
}


def polygon(layer, at):
    """Draw a triangle around a voxel, on the plane that is shown."""
    if layer.n_edit_dimensions == 2:
        rows, cols = layer._slice_input.displayed
        corners = np.tile(np.array(at, int), (3, 1))
        corners[:, rows] += [-1, 2, 2]
        corners[:, cols] += [0, -2, 2]
        layer.paint_polygon(corners, layer.selected_label)


STROKES["polygon"] = polygon


@settings(max_examples=40, deadline=None)
@given(
    st.permutations(range(3)),
    st.sampled_from(list(BACKENDS)),
    st.lists(
        st.tuples(
            st.sampled_from(list(STROKES)),
            st.tuples(*(st.integers(0, n - 1) for n in SHAPE)),
            st.integers(0, 3),
            st.sampled_from([2, 3]),
            st.booleans(),
            st.integers(1, 4),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_strokes_become_edits_that_undo_and_redo_bit_for_bit(order, backend, strokes):
    """Any tool and plane, also in 3-D, several dabs a stroke; through napari's undo and past it."""
    viewer = ViewerModel()
    grid = grid_of(viewer.add_image(np.zeros(SHAPE), scale=(3, 1, 1)))
    start = np.random.default_rng(2).integers(0, 3, SHAPE).astype(np.uint16)
    labels = adopted(viewer, grid, BACKENDS[backend](start))
    layer, with_prediction, steps = labels.layer, [], []
    viewer.dims.order = order
    labels.attach(with_prediction.append)
    layer.events.paint.connect(steps.append)
    states = [start]
    for tool, at, label, ndim, preserve, size, dabs in strokes:
        if backend == "dask" and tool == "setitem":
            continue
        layer.n_edit_dimensions, layer.preserve_labels, layer.brush_size = ndim, preserve, size
        layer.selected_label = label
        if dabs:
            with layer.block_history():
                STROKES[tool](layer, at)
                STROKES["paint"](layer, np.clip(np.add(at, 1), 0, np.array(SHAPE) - 1))
        else:
            STROKES[tool](layer, at)
        if not np.array_equal(everything(labels), states[-1]):
            states.append(everything(labels))
    assert len(with_prediction) == len(states) - 1
    # A step that changes voxels and changes them back is one to napari and none to us.
    in_step = len(steps) == len(with_prediction)
    for edits, state in zip(reversed(with_prediction), reversed(states[:-1])):
        labels.write([edit.reversed() for edit in reversed(edits)])
        np.testing.assert_array_equal(everything(labels), state)
    assert not in_step or len(layer._undo_history) == 0
    layer._reset_history()
    for edits, state in zip(with_prediction, states[1:]):
        labels.write(edits)
        np.testing.assert_array_equal(everything(labels), state)
    labels.detach()


def test_a_stroke_touches_only_its_rectangle(viewer, grid):
    """An edit is as small as what changed."""
    labels = adopted(viewer, grid, np.zeros(SHAPE, np.uint8))
    with_prediction = []
    labels.attach(with_prediction.append)
    labels.layer.brush_size = 3
    labels.layer.paint((2, 5, 6), 1)
    ((edit,),) = with_prediction
    assert (edit.plane, edit.box) == (Plane((2, None, None)), (4, 5, 7, 8))


def test_our_own_writing_is_no_stroke_and_detached_nothing_is(viewer, grid):
    """A stroke of the user becomes one undo step."""
    labels = adopted(viewer, grid, np.zeros(SHAPE, np.uint8))
    with_prediction = []
    labels.attach(with_prediction.append)
    plane = Plane((0, None, None))
    labels.write([edit_of(labels, plane, rectangle(grid, plane, slice(2, 4), slice(2, 4)), 5)])
    labels.detach()
    labels.layer.paint((2, 5, 6), 1)
    assert with_prediction == []


def test_a_label_too_high_for_the_layer_is_refused_in_one_sentence(viewer, grid):
    """Before anything is written."""
    labels = adopted(viewer, grid, np.zeros(SHAPE, np.uint8))
    plane = Plane((0, None, None))
    mask = rectangle(grid, plane, slice(2, 4), slice(2, 4))
    with pytest.raises(ValueError, match="label must be from 1 to 255 in labels of type uint8, got 300"):
        object_edits(labels, plane, mask, 300, Policy())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_highest_label_is_found_in_any_array(viewer, grid, backend):
    """Where the next free id begins."""
    data = np.zeros(SHAPE, np.int32)
    data[3, 4, 5] = 70000
    assert adopted(viewer, grid, BACKENDS[backend](data)).highest() == 70000
    assert adopted(viewer, grid, BACKENDS[backend](np.full(SHAPE, -1))).highest() == 0


def test_new_labels_lie_on_the_image_and_disturb_nothing(viewer, grid):
    """Right above the image, under what else there is; the selection stays."""
    points = viewer.add_points(np.zeros((1, 3)))
    labels = make_labels(viewer, grid)
    assert viewer.layers.index(labels.layer) == 1
    assert labels.layer.name == "scan [lowlat] objects"
    assert viewer.layers.selection == {points}
    assert viewer.layers.selection.active is points
    assert fits(labels.layer, grid) is None
    assert labels.layer.units == grid.layer.units


def test_channels_may_be_a_slab_be_missing_or_be_one_by_one():
    """All kinds of labels that people have; where each channel has its own, the chosen one is written."""
    viewer = ViewerModel()
    grid = grid_of(viewer.add_image(np.zeros((4, *SHAPE)), scale=(1, 3, 1, 1)), channel_axis=0, channel=2)
    plane = Plane((1, None, None))
    for shape, place, there in (
        ((1, *SHAPE), grid.place, (0, 1)),
        (SHAPE, {"scale": (3, 1, 1)}, (1,)),
        ((4, *SHAPE), {"scale": (1, 3, 1, 1)}, (2, 1)),
    ):
        labels = LabelLayer(viewer.add_labels(np.zeros(shape, np.uint8), **place), grid)
        with_prediction = []
        labels.attach(with_prediction.append)
        mask = rectangle(grid, plane, slice(2, 4), slice(2, 4))
        labels.write([edit_of(labels, plane, mask, 5)])
        np.testing.assert_array_equal(labels.layer.data[there] == 5, mask)
        assert np.count_nonzero(labels.layer.data) == 4
        labels.layer.paint((*there, 9, 9), 1)
        assert [edit.plane for edit in with_prediction[0]] == [plane]


def test_a_stroke_on_another_channel_is_none_of_ours():
    """Labels for each channel: only those of the channel that is segmented are the session's."""
    viewer = ViewerModel()
    grid = grid_of(viewer.add_image(np.zeros((4, *SHAPE))), channel_axis=0, channel=2)
    labels = LabelLayer(viewer.add_labels(np.zeros((4, *SHAPE), np.uint8)), grid)
    with_prediction = []
    labels.attach(with_prediction.append)
    labels.layer.paint((0, 1, 9, 9), 1)
    assert with_prediction == []


@pytest.mark.parametrize(
    ("data", "place", "message"),
    [
        (np.zeros((5, 12, 15), int), {}, r"has shape \(5, 12, 15\) but 'scan' needs \(5, 12, 14\)"),
        (np.zeros(SHAPE, int), {"scale": (1, 1, 1)}, "lies up to 8.0 voxels away from 'scan'"),
        (np.zeros(SHAPE, int), {"translate": (0, 1, 0)}, "lies up to 1.0 voxels away from 'scan'"),
        (np.broadcast_to(np.zeros(SHAPE, int), SHAPE), {}, "is open for reading only"),
        (
            [da.zeros(SHAPE, dtype=int), da.zeros((5, 6, 7), dtype=int)],
            {},
            "is a pyramid that cannot be written to",
        ),
    ],
)
def test_labels_that_do_not_fit_are_named_with_the_reason(viewer, grid, data, place, message):
    """Before a voxel is written to the wrong place."""
    layer = viewer.add_labels(data, name="mine", **{**grid.place, **place})
    assert fits(layer, grid).startswith("'mine' ")
    with pytest.raises(ValueError, match=message):
        LabelLayer(layer, grid)


def test_flat_labels_do_not_fit_a_volume(viewer, grid):
    """Only leading channels may be missing."""
    layer = viewer.add_labels(np.zeros(SHAPE[1:], int), name="mine")
    assert "'mine' has shape (12, 14) but 'scan' needs (5, 12, 14)" in fits(layer, grid)


def test_labels_in_another_unit_of_the_same_length_fit(viewer, grid):
    """3 nm are 0.003 um."""
    layer = viewer.add_labels(np.zeros(SHAPE, int), scale=(0.003, 0.001, 0.001), units="um")
    assert fits(layer, grid) is None


def test_a_flat_image_has_labels_of_one_plane():
    """It is written like any other."""
    viewer = ViewerModel()
    grid = grid_of(viewer.add_image(np.zeros((12, 14))))
    labels, plane = make_labels(viewer, grid), Plane((None, None))
    mask = rectangle(grid, plane, slice(1, 3), slice(1, 3))
    labels.write([edit_of(labels, plane, mask, 3)])
    np.testing.assert_array_equal(labels.read(plane, (0, 0, 12, 14)) == 3, mask)
