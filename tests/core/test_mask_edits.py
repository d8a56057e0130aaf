"""Edits of masks in two and three axes, the same for post-processing and for the window's tools."""

import numpy as np
import pytest

from napari_lowlat_seg.core.masks import PostProcessing, SoftMask, edited, postprocess


def cube(shape, low, high):
    """A box of voxels from `low` to `high`, both included, along every axis."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, high + 1) for _ in shape)] = True
    return mask


@pytest.mark.parametrize("ndim", [2, 3])
def test_what_each_edit_does(ndim):
    """Holes, islands, outline; the mask that is given stays as it was."""
    shape = (15,) * ndim
    whole, hole = cube(shape, 4, 10), cube(shape, 7, 7)
    island = cube(shape, 0, 0)
    given = (whole & ~hole) | island
    before = given.copy()
    assert np.array_equal(edited(given, "fill_holes"), whole | island)
    assert np.array_equal(edited(given, "largest"), whole & ~hole)
    assert np.array_equal(edited(given, "drop_small", 2), whole & ~hole)
    assert np.array_equal(edited(given, "drop_small", 1), given)
    grown = edited(whole, "grow", 1)
    assert grown.sum() == whole.sum() + 2 * ndim * 7 ** (ndim - 1)
    assert np.array_equal(edited(whole, "shrink", 1), cube(shape, 5, 9))
    smoothed = edited(whole | island, "smooth", 1.0)
    assert not (smoothed & island).any()
    assert smoothed[(7,) * ndim]
    assert np.array_equal(given, before)
    assert not edited(np.zeros(shape, bool), "grow", 3).any()
    assert edited(np.ones(shape, bool), "shrink", 3).all()


def test_lengths_are_pixels_of_the_last_axis():
    """Thick planes: a growth of two pixels reaches no further plane, one of four reaches the next."""
    mask = cube((5, 15, 15), 2, 2)
    spacing = (3.0, 1.0, 1.0)
    assert set(np.nonzero(edited(mask, "grow", 2, spacing))[0]) == {2}
    assert set(np.nonzero(edited(mask, "grow", 4, spacing))[0]) == {1, 2, 3}


def test_post_processing_is_made_of_them():
    """Grown, small parts dropped; a probability below the threshold is no object."""
    mask = cube((20, 20), 5, 9)
    mask[15, 15] = True
    soft = SoftMask.of(np.where(mask, np.float32(0.9), np.float32(0)))
    assert np.array_equal(postprocess(soft, PostProcessing(smallest=2)), cube((20, 20), 5, 9))
    grown = postprocess(soft, PostProcessing(grow=2.0))
    assert np.array_equal(grown, edited(mask, "grow", 2))
    assert np.array_equal(postprocess(soft, PostProcessing(grow=-1.0)), cube((20, 20), 6, 8))


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: edited(np.ones((2, 2), bool), "melt"), "expected one of fill_holes, largest,"),
        (lambda: edited(np.ones((2, 2), bool), "grow", -1), "as 0 or more, got -1"),
        (lambda: PostProcessing(grow=51), "growing must be from -50 to 50 pixels, got 51"),
        (lambda: PostProcessing(smallest=-1), "the smallest part must have 0 pixels or more"),
    ],
)
def test_what_is_refused(work, said):
    """One sentence with the value."""
    with pytest.raises(ValueError, match=said):
        work()
