"""Bounding boxes and patches against whole arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_lowlat_seg.core.boxes import EMPTY_BOX, EMPTY_PATCH, BoundingBox, Patch

PLANE = (9, 11)
edges = st.integers(-4, 14)
boxes = st.builds(BoundingBox, edges, edges, edges, edges)


def pixels_of(box: BoundingBox) -> set[tuple[int, int]]:
    """All pixels of a box, one by one."""
    return {(row, col) for row in range(box.top, box.bottom) for col in range(box.left, box.right)}


def test_a_box_equals_the_tuple_of_its_numbers():
    """Which is how other programs write one."""
    box = BoundingBox.at((2, 3), (4, 5))
    assert box == (2, 3, 6, 8)
    assert (box.corner, box.shape) == ((2, 3), (4, 5))
    assert np.arange(99).reshape(PLANE)[box.slices].shape == (4, 5)


def test_the_box_of_a_mask_holds_all_that_is_not_zero():
    """Its last row and column are exclusive."""
    mask = np.zeros((7, 9), bool)
    mask[2, 3] = mask[5, 1] = True
    assert BoundingBox.of(mask) == (2, 1, 6, 4)
    assert BoundingBox.of(np.zeros((7, 9))) == EMPTY_BOX


@given(boxes, boxes)
def test_intersection_and_containment_are_those_of_pixel_sets(one: BoundingBox, other: BoundingBox):
    """Also for empty boxes, in whatever way they are empty."""
    common = one.intersection(other)
    assert pixels_of(common) == pixels_of(one) & pixels_of(other)
    assert common == EMPTY_BOX or not common.is_empty
    assert one.contains(other) == (pixels_of(other) <= pixels_of(one))
    assert one.is_empty == (not pixels_of(one))
    assert one.clipped(PLANE) == one.intersection(BoundingBox(0, 0, *PLANE))


@pytest.mark.slow
@given(st.lists(boxes, min_size=1, max_size=4))
def test_a_union_is_the_smallest_box_around_all(some: list[BoundingBox]):
    """Empty boxes widen nothing; the union of nothing is empty."""
    union = some[0].union(*some[1:])
    held = set().union(*map(pixels_of, some))
    rows, cols = ([pixel[axis] for pixel in held] for axis in (0, 1))
    assert union == ((min(rows), min(cols), max(rows) + 1, max(cols) + 1) if held else EMPTY_BOX)


@given(boxes, st.integers(-3, 3), st.integers(-3, 3))
def test_a_shifted_and_a_grown_box(box: BoundingBox, down: int, right: int):
    """An empty box stays the empty box."""
    assert pixels_of(box.shifted(down, right)) == {(row + down, col + right) for row, col in pixels_of(box)}
    grown = box.grown(2)
    assert grown == (
        EMPTY_BOX if box.is_empty else BoundingBox(box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2)
    )


@given(st.integers(0, 2**32 - 1), boxes)
def test_a_patch_shows_in_a_box_what_its_plane_shows_there(seed: int, box: BoundingBox):
    """Beyond the plane everything is 0."""
    rng = np.random.default_rng(seed)
    plane = (rng.random(PLANE) < 0.1) * rng.integers(1, 9, PLANE)
    patch = Patch.of(plane)
    assert patch.box == BoundingBox.of(plane)
    np.testing.assert_array_equal(patch.on(PLANE), plane)
    if not box.is_empty:
        beyond = np.zeros((40, 40), plane.dtype)
        beyond[10 : 10 + PLANE[0], 10 : 10 + PLANE[1]] = plane
        np.testing.assert_array_equal(patch.shown_in(box), beyond[box.shifted(10, 10).slices])


def test_the_empty_patch_has_no_pixels():
    """It shows nothing on any plane."""
    assert EMPTY_PATCH.box == EMPTY_BOX
    assert not EMPTY_PATCH.on(PLANE).any()
