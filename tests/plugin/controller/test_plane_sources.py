"""Where pixels come from: whole planes, and one tile of huge ones."""

import numpy as np
import pytest

from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import Tiling
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import PropagationRequest, Request
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.plugin.controller.plane_sources import PlaneSources

SHAPE = (3, 900, 1000)
PLANES = tuple(Plane((z, None, None)) for z in range(3))
TILING = Tiling(large=500, side=300, halo=50)


@pytest.fixture
def pixels():
    """Noise."""
    return np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


def sources(pixels, tiling=TILING, field=None):
    """Of a volume with these pixels."""
    return PlaneSources(Session(Volume(pixels, window=(0.0, 255.0))), "noise", tiling, field)


def square(top, left, side=20):
    """A mask somewhere on a plane."""
    mask = np.zeros(SHAPE[1:], bool)
    mask[top : top + side, left : left + side] = True
    return SoftMask.from_mask(mask)


def test_a_plane_of_ordinary_size_is_taken_whole(pixels):
    """Requests are sent as they are."""
    whole = sources(pixels, Tiling())
    request = Request(1, 1, PLANES[0], (Click((500, 600)),), None)
    sent, source, tile = whole.of_request(request)
    assert (sent, tile) == (request, None)
    assert np.array_equal(source.read(), pixels[0])
    propagation = PropagationRequest(PLANES, {1: {PLANES[0]: square(500, 600)}})
    sent, all_of_it, tile = whole.of_propagation(propagation)
    assert (sent, tile) == (propagation, None)
    assert [source.name for source in all_of_it] == ["plane 0", "plane 1", "plane 2"]


def test_a_propagation_through_huge_planes_stays_in_the_tile_around_its_anchors(pixels):
    """Anchors move into the tile, every plane is read there, and masks find their way back."""
    propagation = PropagationRequest(PLANES, {4: {PLANES[0]: square(500, 600), PLANES[2]: square(510, 640)}})
    sent, planes, tile = sources(pixels).of_propagation(propagation)
    assert tile.shape == (300, 300)
    part = tile.slices
    for z, source in enumerate(planes):
        assert np.array_equal(source.read(), pixels[z][part])
    for plane, mask in propagation.anchors[4].items():
        moved = sent.anchors[4][plane]
        assert np.array_equal(moved.mask, mask.mask[part])
        assert np.array_equal(moved.on(SHAPE[1:], tile.corner).mask, mask.mask)


def test_an_empty_anchor_does_not_move_the_tile(pixels):
    """An empty mask has no place."""
    empty = SoftMask.from_mask(np.zeros(SHAPE[1:], bool))
    anchors = {PLANES[0]: square(500, 600)}
    _, _, alone = sources(pixels).of_propagation(PropagationRequest(PLANES, {1: anchors}))
    _, _, stopped = sources(pixels).of_propagation(
        PropagationRequest(PLANES, {1: {**anchors, PLANES[2]: empty}})
    )
    assert stopped == alone


def test_seeds_on_huge_planes_are_refused(pixels):
    """The sentence names what does it."""
    propagation = PropagationRequest(PLANES, seeds={1: (PLANES[0], Click((5, 5)))})
    with pytest.raises(ValueError, match="more than 500 rows or columns here; use `lowlat-seg seeds`"):
        sources(pixels).of_propagation(propagation)


def test_the_tile_in_the_middle_of_the_view_is_looked_at_before_the_click(pixels):
    """Nothing is, while so many tiles are in view that the place of the click cannot be known."""
    near = sources(pixels, field=lambda plane: (450.0, 550.0, 550.0, 650.0)).in_view(PLANES[1])
    assert near.read().shape == (300, 300)
    assert sources(pixels, field=lambda plane: (0.0, 0.0, 900.0, 1000.0)).in_view(PLANES[1]) is None
    assert sources(pixels).in_view(PLANES[1]) is None
