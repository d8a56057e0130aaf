"""What is never shown or written: specks far from what is meant, and growth after a negative click."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from napari_lowlat_seg.annotation.plane_state import SPECK, PlaneState, finished_mask, without_specks
from napari_lowlat_seg.core.boxes import Patch
from napari_lowlat_seg.core.masks import PostProcessing, SoftMask
from napari_lowlat_seg.core.prompts import Click

SHAPE = (40, 50)
places = st.tuples(st.integers(0, 39), st.integers(0, 49))
probabilities = st.integers(0, 2**32 - 1).map(
    lambda seed: ndimage.gaussian_filter(np.random.default_rng(seed).random(SHAPE), 2).astype(np.float32)
)
clicks = st.lists(st.tuples(places, st.booleans()).map(lambda one: Click(*one)), max_size=5)


def two_blobs(size):
    """A block of 400 pixels, and one of `size` x `size` pixels 25 columns away."""
    mask = np.zeros(SHAPE, bool)
    mask[10:30, 2:22] = True
    mask[0:size, 47 : 47 + size] = True
    return mask


def finished(mask, prompts=(), confidence=None):
    """What is shown of a prediction."""
    soft_mask = SoftMask.of(np.where(mask, np.float32(0.9), np.float32(0)))
    state = PlaneState(tuple(prompts), soft_mask, confidence=confidence)
    return finished_mask(state, PostProcessing()).on(SHAPE)


def test_a_speck_far_from_the_prompt_is_dropped():
    """The part with the click stays; so does a speck with a click of its own, and one that is near."""
    mask = two_blobs(2)
    assert np.array_equal(finished(mask, [Click((20, 10))]), two_blobs(0))
    assert np.array_equal(finished(mask, [Click((20, 10)), Click((1, 48))]), mask)
    near = two_blobs(0)
    near[20, 25] = True
    assert np.array_equal(finished(near, [Click((20, 10))]), near)


def test_a_part_that_is_no_speck_stays():
    """An object may have two parts on a plane."""
    mask = np.zeros(SHAPE, bool)
    mask[10:20, 2:12] = True
    mask[10:15, 40:45] = True
    assert np.array_equal(finished(mask, [Click((15, 5))]), mask)


def test_on_a_propagated_plane_the_largest_part_is_meant():
    """No prompt is there."""
    assert np.array_equal(finished(two_blobs(2), confidence=0.8), two_blobs(0))


def test_what_a_person_drew_is_kept():
    """Every dot of it."""
    state = PlaneState((), SoftMask.from_mask(two_blobs(1)))
    assert np.array_equal(finished_mask(state, PostProcessing()).on(SHAPE), two_blobs(1))


@pytest.mark.slow
@given(probabilities, clicks)
def test_only_small_parts_without_a_positive_prompt_are_dropped(probability, prompts):
    """Nothing is added; doing it twice changes nothing."""
    mask = probability > 0.55
    kept = without_specks(Patch((0, 0), mask), prompts, SHAPE).on(SHAPE)
    assert not (kept & ~mask).any()
    again = without_specks(Patch((0, 0), kept), prompts, SHAPE).on(SHAPE)
    assert np.array_equal(kept, again)
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(parts.ravel())
    meant = {int(parts[tuple(np.rint(one.at).astype(int))]) for one in prompts if one.positive} - {0}
    meant = meant or ({int(np.argmax(areas[1:])) + 1} if count else set())
    largest = max((areas[part] for part in meant), default=0)
    far = ndimage.distance_transform_edt(~np.isin(parts, list(meant))) > 2 * np.sqrt(largest / np.pi)
    for part in range(1, count + 1):
        gone = not kept[parts == part].any()
        assert gone or kept[parts == part].all()
        small = part not in meant and areas[part] < SPECK * largest
        assert gone == (small and bool(far[parts == part].all()))


@pytest.mark.slow
@given(probabilities, probabilities, places, places)
def test_a_negative_click_never_makes_a_mask_grow(first, second, at, against):
    """Wherever the network would now see the object, too."""
    state = PlaneState().with_prompts((Click(at),)).with_prediction(SoftMask.of(first))
    corrected = state.with_prompts((Click(at), Click(against, positive=False)))
    after = corrected.with_prediction(SoftMask.of(second))
    assert (after.soft_mask.probability <= state.soft_mask.probability).all()
    refined = after.with_prediction(SoftMask.of(first))  # the closer look
    assert (refined.soft_mask.probability <= state.soft_mask.probability).all()
    positive = after.with_prompts((*after.prompts, Click(at))).with_prediction(SoftMask.of(second))
    assert np.array_equal(positive.soft_mask.probability, SoftMask.of(second).probability)
