"""An object along three axes: the vote, the places of disagreement, and memory for the object's box only."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fakes import FakePredictor
from napari_lowlat_seg.core.boxes import Tiling, tile_of
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.propagation.consensus import Consensus, Disagreement, consensus, propagate_along


@pytest.fixture
def block() -> Volume:
    """A block of brightness 100 in 12 x 20 x 30 voxels."""
    data = np.zeros((12, 20, 30), np.uint8)
    data[3:9, 5:15, 6:16] = 100
    return Volume(data)


@pytest.fixture
def leaky(block: Volume) -> Volume:
    """The block with a neighbour behind it that is taken for the same object along axis 2."""
    data = np.array(block.data)
    data[3:9, 5:15, 16:22] = 101
    return replace(block, data=data, spacing=(1, 1, 1))


SEED = {7: [(5, 10, 10)]}


def _whole(found: Consensus, shape: tuple[int, ...]) -> np.ndarray:
    whole = np.zeros(shape, bool)
    box = tuple(slice(low, low + n) for low, n in zip(found.corner, found.mask.shape))
    whole[box] = found.mask
    return whole


def test_axes_that_agree_have_no_disagreements(block: Volume) -> None:
    """The object is in its box, under its number, and was found along each axis."""
    found = consensus(FakePredictor(), block, SEED)
    assert list(found) == [7]
    np.testing.assert_array_equal(_whole(found[7], block.shape), np.asarray(block.data) == 100)
    assert found[7].corner == (3, 5, 6)
    assert found[7].votes.shape == (3, 6, 10, 10)
    assert found[7].disagreements() == []


def test_what_one_axis_adds_is_outvoted_and_listed(leaky: Volume) -> None:
    """Along the other axes there is an edge."""
    found = consensus(FakePredictor(), leaky, SEED)[7]
    np.testing.assert_array_equal(_whole(found, leaky.shape), np.asarray(leaky.data) == 100)
    (place,) = found.disagreements(leaky.spacing)
    assert (place.voxels, place.found_along) == (6 * 10 * 6 - _corners(6, 10, 6), (2,))
    assert np.asarray(leaky.data)[place.position] == 101


def _corners(*sides: int) -> int:
    """Voxels of a box that no cross of seven voxels inside it covers: those of its edges."""
    inner = [n - 2 for n in sides]
    return int(4 * sum(inner) + 8)


def test_a_thin_skin_is_no_disagreement() -> None:
    """Masks from different axes never agree to the voxel."""
    votes = np.zeros((3, 10, 10, 10), bool)
    votes[:, 2:8, 2:8, 2:8] = True
    votes[0, 1:9, 1:9, 1:9] = True
    assert Consensus((0, 0, 0), votes).disagreements() == []


def test_the_largest_disagreement_comes_first() -> None:
    """Each has the voxel deepest inside, in the whole volume, and the axes along which it was found."""
    votes = np.zeros((3, 9, 9, 30), bool)
    votes[1:, 3:6, 3:6, 3:6] = True
    votes[0, 2:7, 2:7, 20:25] = True
    small, large = 3**3 - _corners(3, 3, 3), 5**3 - _corners(5, 5, 5)
    assert Consensus((10, 20, 30), votes).disagreements() == [
        Disagreement((14, 24, 52), large, (0,)),
        Disagreement((14, 24, 34), small, (1, 2)),
    ]


def test_two_of_three_axes_are_enough() -> None:
    """Whichever two."""
    votes = np.array([[1, 1, 1, 0, 1, 0], [1, 1, 0, 1, 0, 0], [1, 0, 1, 1, 0, 0]], bool).reshape(3, 1, 1, 6)
    found = Consensus((0, 0, 0), votes)
    assert found.mask.ravel().tolist() == [True, True, True, True, False, False]


def test_points_of_one_object_on_a_plane_are_one_request(leaky: Volume) -> None:
    """Two of two brightnesses on one plane give both there; on two planes each is an anchor."""
    together = propagate_along(FakePredictor(), leaky, {1: [(5, 10, 10), (5, 10, 18)]}, 0)[1]
    assert (together.corner, together.mask.shape) == ((3, 5, 6), (6, 10, 16))
    assert together.mask[2].all()
    apart = propagate_along(FakePredictor(), leaky, {1: [(4, 10, 10), (7, 10, 18)]}, 0)[1]
    assert apart.mask[1].tolist() == 10 * [10 * [True] + 6 * [False]]
    assert apart.mask[4].tolist() == 10 * [10 * [False] + 6 * [True]]


def test_huge_planes_are_tiled_and_the_result_is_the_same(
    block: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along every axis in its own tile."""
    whole = consensus(FakePredictor(), block, SEED)[7]
    small = partial(tile_of, tiling=Tiling(large=10, side=18, halo=4))
    monkeypatch.setattr("napari_lowlat_seg.propagation.consensus.tile_of", small)
    cut = consensus(FakePredictor(), block, SEED)[7]
    assert cut.corner == whole.corner
    np.testing.assert_array_equal(cut.votes, whole.votes)


def test_an_object_that_is_not_found_is_left_out(block: Volume) -> None:
    """A seed on black finds nothing."""
    assert consensus(FakePredictor(), block, {1: [(0, 0, 0)]}) == {}


def test_a_volume_without_three_axes_is_refused() -> None:
    """The error names the shape."""
    with pytest.raises(ValueError, match=r"three axes needs a volume of 3; got shape \(5, 5\)"):
        consensus(FakePredictor(), Volume(np.zeros((5, 5), np.uint8)), {1: [(1, 1)]})
