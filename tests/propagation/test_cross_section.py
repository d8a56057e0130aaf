"""Cuts of an object through planes of other axes, against a plain volume of probabilities."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.propagation.cross_section import CrossSections, cross_section

SHAPE = (4, 5, 6)
ANY_PLANE = st.sampled_from(
    [
        Plane(tuple(at if a == axis else None for a in range(3)))
        for axis in range(3)
        for at in range(SHAPE[axis])
    ]
)


def soft_mask(seed, plane):
    """Any probabilities, with much that is 0 around them."""
    probability = np.random.default_rng(seed).random([SHAPE[axis] for axis in plane.axes])
    probability[probability < 0.4] = 0
    probability[:1] = probability[:, -1:] = 0
    return SoftMask.of(probability.astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(st.lists(ANY_PLANE, max_size=6, unique=True), ANY_PLANE, st.integers(0, 99))
def test_a_cut_is_what_planes_of_other_axes_write_into_a_volume(planes, plane, seed):
    """Each of them in turn, the last one is right; elsewhere nothing is known, and it is empty."""
    volume, known = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, bool)
    masks = {other: soft_mask(seed + place, other) for place, other in enumerate(planes)}
    for other, mask in masks.items():
        if other.axes != plane.axes:
            volume[other.key()], known[other.key()] = mask.probability, True
    cut = cross_section(masks, plane, volume[plane.key()].shape)
    assert np.array_equal(cut.known, known[plane.key()])
    assert np.array_equal(cut.soft_mask.probability, volume[plane.key()])
    again = CrossSections(1).of(masks, plane, cut.soft_mask.shape)
    assert np.array_equal(again.soft_mask.probability, cut.soft_mask.probability)
    assert cut.counted == (np.count_nonzero(cut.known), cut.known.size)
    assert len(cut.lines) == sum(
        other.axes != plane.axes and other.crossing(plane) is not None for other in planes
    )


def test_planes_of_a_series_cross_where_their_times_are_equal():
    """In four axes, planes at other times and planes that meet in one pixel say nothing."""
    here = Plane((2, None, None, 5))
    assert here.crossing(Plane((2, 3, None, None))) == ((0, 3), (1, 5))
    for other in ((1, 3, None, None), (2, None, None, 4), (None, 3, 4, None), (None, None, 3, 5)):
        cut = cross_section({Plane(other): SoftMask.of(np.ones((6, 6), np.float32))}, here, (6, 6))
        assert bool(cut.lines) == (here.crossing(Plane(other)) is not None)
    assert here.crossing(Plane((1, 3, None, None))) is None
    assert here.crossing(Plane((None, 3, 4, None))) is None


WIDTHS = np.array([0, 0, 1, 4, 8, 9, 7, 3, 1, 0, 0])


@pytest.mark.parametrize(
    ("known", "whole"),
    [
        (range(11), True),
        (range(2, 9), True),  # narrow at both ends
        (range(3, 8), False),  # cut off where it is still wide above
        (range(2, 6), False),
        ([2, 3, 4, 6, 7, 8], False),  # a gap
        ([5], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_cut_is_whole_when_the_object_ends_within_it(known, whole, turned):
    """Or the plane ends; with few lines, only when nothing is left of it at both ends."""
    masks = {}
    for at in known:
        mask = np.zeros((12, 6), np.float32)
        mask[1 : 1 + WIDTHS[at], 3] = 1
        masks[Plane((at, None, None))] = SoftMask.of(mask)
    plane, sides = Plane((None, None, 3)), (11, 12)
    if turned:
        masks = {Plane((None, None, key.position)): mask for key, mask in masks.items()}
        masks = {key: SoftMask.of(mask.probability.T.copy()) for key, mask in masks.items()}
        plane, sides = Plane((3, None, None)), (12, 11)
    cut = cross_section(masks, plane, sides)
    assert cut.whole == whole


def test_a_cut_at_the_border_of_the_plane_is_whole():
    """The object may go on where there are no pixels."""
    wide = np.ones((4, 6), np.float32)
    masks = {Plane((at, None, None)): SoftMask.of(wide) for at in range(5)}
    assert cross_section(masks, Plane((None, None, 3)), (5, 4)).whole
    assert not cross_section(masks, Plane((None, None, 3)), (6, 4)).whole


def test_masks_are_unpacked_once_for_all_cuts(monkeypatch):
    """The same cut is not made again, the one beside it unpacks nothing; another mask is."""
    masks = {Plane((z, None, None)): soft_mask(z, Plane((z, None, None))) for z in range(SHAPE[0])}
    cuts, unpacked, inflate = CrossSections(1), [], zlib.decompress
    monkeypatch.setattr(zlib, "decompress", lambda packed: unpacked.append(packed) or inflate(packed))
    sides = (SHAPE[0], SHAPE[2])
    first = cuts.of(masks, Plane((None, 2, None)), sides)
    assert len(unpacked) == SHAPE[0]
    assert cuts.of(dict(masks), Plane((None, 2, None)), sides) is first
    beside = cuts.of(masks, Plane((None, 3, None)), sides)
    assert len(unpacked) == SHAPE[0]
    changed = masks | {Plane((1, None, None)): soft_mask(7, Plane((1, None, None)))}
    other = cuts.of(changed, Plane((None, 3, None)), sides)
    assert len(unpacked) == SHAPE[0] + 1
    for cut, made in ((beside, masks), (other, changed)):
        plain = cross_section(made, Plane((None, 3, None)), sides).soft_mask
        assert np.array_equal(cut.soft_mask.probability, plain.probability)
