"""What writing an object changes in labels, and taking it back."""

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from napari_lowlat_seg.annotation.objects.writing import around, found_object, object_edits
from napari_lowlat_seg.core.boxes import Patch
from napari_lowlat_seg.core.labels import ArrayLabels, LabelEdit, Policy
from napari_lowlat_seg.core.volume import Plane

PLANE = Plane((1, None, None))
BOX = (2, 3, 8, 11)
regions = arrays.arrays(np.uint16, (6, 8), elements=st.integers(0, 3))


@pytest.mark.slow
@given(regions, regions)
def test_an_edit_and_its_reverse_are_exact(before, after):
    """Forth gives what was to be, back gives what was; equal labels are no edit."""
    edit = LabelEdit.between(PLANE, BOX, before, after)
    if edit is None:
        assert np.array_equal(before, after)
        return
    labels = np.zeros((3, 12, 12), np.uint16)
    labels[1, 2:8, 3:11] = before
    store = ArrayLabels(labels)
    store.write([edit])
    assert np.array_equal(labels[1, 2:8, 3:11], after)
    store.write([edit.reversed()])
    assert np.array_equal(labels[1, 2:8, 3:11], before)
    assert edit.highest == after[before != after].max()


@pytest.mark.slow
@given(regions, regions)
def test_parts_paint_the_same_one_label_at_a_time(before, after):
    """For layers that can only paint."""
    edit = LabelEdit.between(PLANE, (0, 0, 6, 8), before, after)
    painted = before.copy()
    for value, where in edit.parts() if edit else ():
        top, left, bottom, right = edit.box
        painted[top:bottom, left:right][where] = value
    assert np.array_equal(painted, after)


def test_an_edit_of_one_label_over_background_is_small():
    """A megapixel disk takes kilobytes."""
    rows, cols = np.mgrid[:1200, :1200]
    disk = np.hypot(rows - 600, cols - 600) < 565
    edit = LabelEdit.between(PLANE, (0, 0, 1200, 1200), np.zeros_like(disk, np.int32), disk * np.int32(5))
    assert edit.changed.sum() > 1_000_000
    assert edit.nbytes < 20_000


def test_labels_in_any_orientation_and_in_zarr():
    """A coronal plane of an array that is not numpy's."""
    data = zarr.create_array({}, shape=(5, 6, 7), chunks=(2, 2, 2), dtype=np.uint8)
    store, plane = ArrayLabels(data), Plane((None, 4, None))
    mask = np.zeros((5, 7), bool)
    mask[1:3, 2:6] = True
    edit, whole = object_edits(store, plane, mask, 3, Policy())
    store.write([edit])
    assert np.array_equal(data[:, 4] == 3, mask)
    assert store.highest() == 3
    assert np.array_equal(whole.changed, edit.changed)


@pytest.mark.slow
@given(arrays.arrays(np.uint16, (3, 4), elements=st.integers(0, 5)), st.randoms(use_true_random=False))
def test_the_lowest_label_keeps_a_pixel_in_whatever_order_masks_are_written(labels, random):
    """`lowest` makes the result independent of which job was done first; without it the last one wins."""
    masks = [(label, labels >= label) for label in range(1, 6)]
    first, last = ArrayLabels(np.zeros((2, 6, 6), np.uint16)), ArrayLabels(np.zeros((2, 6, 6), np.uint16))
    random.shuffle(masks)
    expected = np.zeros((3, 4), np.uint16)
    for label, mask in masks:
        first.write_mask(PLANE, mask, label, (1, 2), lowest=True)
        last.write_mask(PLANE, mask, label, (1, 2))
        expected[mask] = label
    assert np.array_equal(first.data[1, 1:4, 2:6], labels > 0)
    assert np.array_equal(last.data[1, 1:4, 2:6], expected)
    assert not first.data[0].any()


def test_a_plane_is_filled_with_labels():
    """Across the second axis; the others keep theirs."""
    store = ArrayLabels(np.ones((2, 3, 4), np.uint8))
    store.fill(Plane((None, 1, None)), np.arange(8).reshape(2, 4))
    assert np.array_equal(store.data[:, 1], np.arange(8).reshape(2, 4))
    assert np.array_equal(store.data[:, ::2], np.ones((2, 2, 4)))


def test_a_correction_leaves_what_others_painted_meanwhile():
    """Of the voxels it leaves, only those that still have its label get back the label beneath."""
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[1, 0] = 2
    store = ArrayLabels(labels)
    mask = np.ones((4, 4), bool)
    edit, whole = object_edits(store, PLANE, mask, 5, Policy("overwrite"))
    store.write([edit])
    labels[1, 3] = 9
    edit, whole = object_edits(store, PLANE, np.zeros((4, 4), bool), 5, Policy(), whole)
    store.write([edit])
    assert whole is None
    assert labels[1].tolist() == [[2] * 4, [0] * 4, [0] * 4, [9] * 4]


def test_a_corrected_object_may_change_its_label():
    """Voxels of the old label are known by it."""
    store = ArrayLabels(np.zeros((2, 4, 4), np.uint8))
    edit, whole = object_edits(store, PLANE, np.eye(4, dtype=bool), 5, Policy())
    store.write([edit])
    edit, _ = object_edits(store, PLANE, np.eye(4, dtype=bool), 6, Policy(), whole)
    store.write([edit])
    assert np.array_equal(store.data[1], 6 * np.eye(4, dtype=np.uint8))


def test_nothing_to_write_is_none():
    """An empty mask, and one whose voxels all belong to others."""
    store = ArrayLabels(np.full((2, 4, 4), 7, np.uint8))
    assert object_edits(store, PLANE, np.zeros((4, 4), bool), 1, Policy()) == (None, None)
    assert object_edits(store, PLANE, np.ones((4, 4), bool), 1, Policy()) == (None, None)


@pytest.mark.parametrize("label", [0, 256])
def test_labels_out_of_the_types_range_are_refused(label):
    """0 is background."""
    store = ArrayLabels(np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=rf"from 1 to 255 in labels of type uint8, got {label}"):
        object_edits(store, PLANE, np.ones((4, 4), bool), label, Policy())


def test_an_object_found_in_the_labels_could_have_been_written():
    """Taking its edit back leaves background."""
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[1, 1:3] = 4
    store = ArrayLabels(labels)
    edit, mask = found_object(store, PLANE, (0, 0, 4, 4), 4)
    assert np.array_equal(mask, labels[1] == 4)
    store.write([edit.reversed()])
    assert not labels.any()
    with pytest.raises(ValueError, match=r"no voxel of plane .* has label 4"):
        found_object(store, PLANE, (0, 0, 4, 4), 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Policy("under"), r"one of .*, got 'under'"),
        (lambda: Policy("within", -1), "must be 0 or more, got -1"),
    ],
)
def test_unknown_policies_are_refused(make, message):
    """The sentence lists what there is."""
    with pytest.raises(ValueError, match=message):
        make()


class HugeLabels:
    """Labels of 9000 x 9000 pixels, kept only where they are, that write down what is read."""

    def __init__(self, box):
        self.box, self.read_pixels = box, 0

    def read(self, plane, box):
        self.read_pixels += (box[2] - box[0]) * (box[3] - box[1])
        return Patch(self.box[:2], np.full((self.box[2] - self.box[0], self.box[3] - self.box[1]), 7)).on(
            (box[2] - box[0], box[3] - box[1]), box[:2]
        )


@pytest.mark.slow
@pytest.mark.parametrize("box", [(4000, 5000, 4100, 5100), (0, 8000, 3000, 9000), (10, 10, 8990, 20)])
def test_of_a_huge_plane_only_what_is_around_an_object_is_read(box):
    """As far as it reaches and no further; in a plane of usual size the whole is."""
    labels = HugeLabels(box)
    at = (box[0] + 50, (box[1] + box[3]) // 2)
    found = around(labels, PLANE, at, (9000, 9000), 7)
    _, mask = found_object(labels, PLANE, found, 7)
    assert mask.sum() == (box[2] - box[0]) * (box[3] - box[1])
    if box[2] - box[0] == 100:
        assert labels.read_pixels < 2.2e6
    assert around(labels, PLANE, at, (4096, 4096), 7) == (0, 0, 4096, 4096)


def test_an_object_may_be_given_by_a_part_of_its_plane():
    """The edits are those of the whole mask."""
    mask = np.zeros((9, 9), bool)
    mask[3:6, 4:8] = True
    whole = object_edits(ArrayLabels(np.zeros((9, 9), int)), Plane(), mask, 3, Policy())
    part = object_edits(
        ArrayLabels(np.zeros((9, 9), int)), Plane(), mask[2:7, 3:9], 3, Policy(), corner=(2, 3)
    )
    assert part == whole
