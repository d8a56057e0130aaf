"""Three axes, one object: their vote, where they disagree, and no more memory than the object's box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from napari_lowlat_seg.core import tiles
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.propagation.consensus import Consensus, Spot, carried_along, consensus


@dataclass(frozen=True, eq=False)
class Known:
    """An answer of the fake below."""

    probability: np.ndarray
    quality: float | None = None

    @property
    def mask(self) -> np.ndarray:
        return self.probability > 0.49

    def redrawn(self, probability):
        return replace(self, probability=probability)


class Bright:
    """What is as bright as one of the places clicked."""

    def embed(self, image: np.ndarray, window: object, spacing: object) -> np.ndarray:
        return image

    def predict(self, embedding: np.ndarray, prompts: Sequence[Prompt], previous: Known | None) -> Known:
        places = [tuple(round(v) for v in prompt.bounds()[:2]) for prompt in prompts]
        like = np.isin(embedding, [embedding[place] for place in places if embedding[place]])
        return Known(np.where(like, np.float32(0.9), np.float32(0)))


@pytest.fixture
def block() -> Volume:
    """A block of brightness 100 in 12 x 20 x 30 voxels."""
    data = np.zeros((12, 20, 30), np.uint8)
    data[3:9, 5:15, 6:16] = 100
    return Volume(data)


@pytest.fixture
def leaky(block: Volume) -> Volume:
    """The block with a neighbour behind it that a walk along axis 2 takes for the same."""
    data = np.array(block.data)
    data[3:9, 5:15, 16:22] = 101
    return replace(block, data=data, spacing=(1, 1, 1))


SEED = {7: [(5, 10, 10)]}


def _whole(found: Consensus, shape: tuple[int, ...]) -> np.ndarray:
    whole = np.zeros(shape, bool)
    box = tuple(slice(low, low + n) for low, n in zip(found.corner, found.mask.shape))
    whole[box] = found.mask
    return whole


def test_three_who_agree_have_nothing_to_list(block: Volume) -> None:
    """The object, in its box, under its number; each axis has seen it."""
    found = consensus(Bright(), block, SEED)
    assert list(found) == [7]
    np.testing.assert_array_equal(_whole(found[7], block.shape), np.asarray(block.data) == 100)
    assert found[7].corner == (3, 5, 6)
    assert found[7].claims.shape == (3, 6, 10, 10)
    assert found[7].agreement == 1
    assert found[7].spots() == []


def test_what_one_axis_adds_is_out_voted_and_listed(leaky: Volume) -> None:
    """The others see an edge where it walks on."""
    found = consensus(Bright(), leaky, SEED)[7]
    np.testing.assert_array_equal(_whole(found, leaky.shape), np.asarray(leaky.data) == 100)
    (spot,) = found.spots(leaky.spacing)
    assert (spot.voxels, spot.claimed_by) == (6 * 10 * 6 - _corners(6, 10, 6), (2,))
    assert np.asarray(leaky.data)[spot.position] == 101
    assert found.agreement == pytest.approx(10 / 16)


def _corners(*sides: int) -> int:
    """Voxels of a box that no cross of seven voxels inside it covers: those of its edges."""
    inner = [n - 2 for n in sides]
    return int(4 * sum(inner) + 8)


def test_a_skin_is_no_dispute() -> None:
    """Walks never agree to the voxel."""
    claims = np.zeros((3, 10, 10, 10), bool)
    claims[:, 2:8, 2:8, 2:8] = True
    claims[0, 1:9, 1:9, 1:9] = True
    assert Consensus((0, 0, 0), claims).spots() == []
    assert Consensus((0, 0, 0), claims[:, :0]).agreement == 1


def test_the_largest_dispute_comes_first() -> None:
    """Each with the place deepest inside, in voxels of the whole volume, and who claims it."""
    claims = np.zeros((3, 9, 9, 30), bool)
    claims[1:, 3:6, 3:6, 3:6] = True
    claims[0, 2:7, 2:7, 20:25] = True
    small, large = 3**3 - _corners(3, 3, 3), 5**3 - _corners(5, 5, 5)
    assert Consensus((10, 20, 30), claims).spots() == [
        Spot((14, 24, 52), large, (0,)),
        Spot((14, 24, 34), small, (1, 2)),
    ]


def test_two_of_three_are_enough() -> None:
    """Whichever two."""
    claims = np.array([[1, 1, 1, 0, 1, 0], [1, 1, 0, 1, 0, 0], [1, 0, 1, 1, 0, 0]], bool).reshape(3, 1, 1, 6)
    found = Consensus((0, 0, 0), claims)
    assert found.mask.ravel().tolist() == [True, True, True, True, False, False]
    assert found.agreement == 1 / 5


def test_points_of_one_object_ask_together(leaky: Volume) -> None:
    """Two of two brightnesses on one plane give both there; on two planes each is an anchor."""
    together = carried_along(Bright(), leaky, {1: [(5, 10, 10), (5, 10, 18)]}, 0)[1]
    assert (together.corner, together.mask.shape) == ((3, 5, 6), (6, 10, 16))
    assert together.mask[2].all()
    apart = carried_along(Bright(), leaky, {1: [(4, 10, 10), (7, 10, 18)]}, 0)[1]
    assert apart.mask[1].tolist() == 10 * [10 * [True] + 6 * [False]]
    assert apart.mask[4].tolist() == 10 * [10 * [False] + 6 * [True]]


def test_huge_planes_are_cut_and_the_object_is_where_it_is(
    block: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along every axis in its own tile."""
    whole = consensus(Bright(), block, SEED)[7]
    for name, value in (("LARGE", 10), ("TILE", 18), ("HALO", 4)):
        monkeypatch.setattr(tiles, name, value)
    cut = consensus(Bright(), block, SEED)[7]
    assert cut.corner == whole.corner
    np.testing.assert_array_equal(cut.claims, whole.claims)


def test_an_object_that_nobody_sees_is_left_out(block: Volume) -> None:
    """A seed on black finds nothing."""
    assert consensus(Bright(), block, {1: [(0, 0, 0)]}) == {}


def test_a_picture_has_no_three_axes() -> None:
    """Nor has a series of volumes."""
    with pytest.raises(ValueError, match=r"three axes needs a volume of 3; got shape \(5, 5\)"):
        consensus(Bright(), Volume(np.zeros((5, 5), np.uint8)), {1: [(1, 1)]})
