"""Shape interpolation: what lies between two outlines, in true geometry."""

from __future__ import annotations

import numpy as np
import pytest

from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.propagation.interpolate import between, interpolate


def _planes(count: int) -> list[Plane]:
    return [Plane((i, None, None)) for i in range(count)]


def _disk(radius: float, at: tuple[float, float] = (20, 20), side: int = 41) -> np.ndarray:
    rows, cols = np.ogrid[:side, :side]
    disk: np.ndarray = (rows - at[0]) ** 2 + (cols - at[1]) ** 2 <= radius**2
    return disk


def test_a_cone_between_two_disks_is_found() -> None:
    """Radii change evenly; the outlines themselves are not repeated."""
    planes = _planes(5)
    found = dict(interpolate({planes[0]: _disk(4), planes[4]: _disk(12)}, planes))
    assert list(found) == planes[1:4]
    for plane, radius in zip(planes[1:4], (6, 8, 10)):
        assert np.count_nonzero(found[plane] ^ _disk(radius)) < 0.15 * np.count_nonzero(_disk(radius))


def test_an_object_that_moved_does_not_vanish_half_way() -> None:
    """Outlines that do not overlap are laid on top of each other."""
    (quarter, half, third) = between(_disk(4, (8, 5)), _disk(4, (32, 33)), 3)
    np.testing.assert_array_equal(half, _disk(4, (20, 19)))
    np.testing.assert_array_equal(quarter, _disk(4, (14, 12)))
    np.testing.assert_array_equal(third, _disk(4, (26, 26)))


def test_distances_are_in_world_units() -> None:
    """Tall pixels: what is 4 columns away is nearer than what is 4 rows away."""
    first, second = np.zeros((31, 31), bool), np.zeros((31, 31), bool)
    first[15, 11:20] = second[11:20, 15] = True
    (flat,) = between(first, second, 1)
    (tall,) = between(first, second, 1, (10.0, 1.0))
    np.testing.assert_array_equal(flat, flat.T)
    assert not np.array_equal(tall, tall.T)


def test_between_a_mask_and_an_empty_one_nothing_is_filled() -> None:
    """Nor beyond the first and the last mask."""
    planes = _planes(7)
    masks = {planes[1]: _disk(5), planes[3]: np.zeros((41, 41), bool), planes[5]: _disk(5)}
    assert list(interpolate(masks, planes)) == []
    assert list(interpolate({planes[2]: _disk(5)}, planes)) == []


def test_equal_outlines_stay_as_they_are_and_nothing_is_mutated() -> None:
    """To the pixel, also at the border of the plane."""
    mask = _disk(6, (0, 38))
    copy = mask.copy()
    for found in between(mask, mask, 3):
        np.testing.assert_array_equal(found, copy)
    np.testing.assert_array_equal(mask, copy)


def test_masks_of_different_shapes_are_refused() -> None:
    """The error is raised when called."""
    planes = _planes(3)
    with pytest.raises(ValueError, match=r"must have one shape; got \[\(41, 41\), \(42, 42\)\]"):
        interpolate({planes[0]: _disk(4), planes[2]: _disk(4, side=42)}, planes)
