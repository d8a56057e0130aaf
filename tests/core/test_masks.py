"""Masks as a session keeps them, and what finishing does to them."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from napari_lowlat_seg.core import masks as module
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.masks import (
    LOGIT_SHIFTS,
    PROBABILITY_STEPS,
    RECENT,
    SAME,
    THRESHOLD,
    PostProcessing,
    SoftMask,
    postprocess,
    postprocess_patch,
)
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Scribble


@pytest.fixture
def probability():
    """A soft blob beside a fainter one, with a hole, on a plane of odd sides."""
    rows, cols = np.mgrid[:61, :83]
    blob = np.exp(-((rows - 30) ** 2 + (cols - 30) ** 2) / 300)
    blob += 0.7 * np.exp(-((rows - 12) ** 2 + (cols - 70) ** 2) / 40)
    blob[28:31, 28:31] = 0.1
    return blob.astype(np.float32)


def test_rounding_moves_no_pixel_across_the_threshold():
    """Every float32 around the threshold, and many others, stays on its side."""
    near = np.float32(0.49) + np.arange(1, 200, dtype=np.float32) * np.float32(1e-6)
    values = np.concatenate([near, np.float32(0.98) - near, np.linspace(0, 1, 9801, dtype=np.float32)])
    values = values[: 98 * 102].reshape(98, 102)
    assert np.array_equal(postprocess(SoftMask.of(values), PostProcessing()), values > THRESHOLD)


def test_rounding_changes_at_most_half_a_percent(probability):
    """The step is 1/200; below that counts as nothing."""
    kept = SoftMask.of(probability).probability
    assert kept.dtype == np.float32
    assert np.abs(kept - probability).max() <= 0.005 + 1e-6
    assert np.array_equal(SoftMask.of(kept).probability, kept)


def test_a_soft_mask_is_small_and_can_be_pickled(probability):
    """Compressed inside its box; equal after pickling, which leaves the unpacked copy behind."""
    answer = SoftMask.of(probability, 0.8)
    postprocess(answer, PostProcessing())
    assert answer.nbytes < probability.size
    again = pickle.loads(pickle.dumps(answer))
    assert np.array_equal(again.probability, answer.probability)
    assert (again.quality, again.drawn, again.box) == (0.8, False, answer.box)
    assert len(pickle.dumps(answer)) < answer.nbytes + 400


def test_an_empty_mask_has_an_empty_box():
    """An empty mask has an empty box."""
    answer = SoftMask.of(np.zeros((5, 6), np.float32))
    assert answer.box == (0, 0, 0, 0)
    assert not answer.probability.any()
    assert np.array_equal(postprocess(answer, PostProcessing(smooth=2, largest=True)), np.zeros((5, 6), bool))


def test_a_higher_threshold_gives_less(probability):
    """As if it were applied to the probability itself."""
    answer = SoftMask.of(probability)
    for threshold in (0.2, 0.5, 0.605):
        assert np.array_equal(postprocess(answer, PostProcessing(threshold)), answer.probability > threshold)


def test_holes_are_filled_and_small_parts_dropped(probability):
    """Each for itself and together, as on the whole plane."""
    answer = SoftMask.of(probability)
    plain = postprocess(answer, PostProcessing())
    filled = postprocess(answer, PostProcessing(fill_holes=True))
    assert np.array_equal(filled, ndimage.binary_fill_holes(plain))
    assert filled.sum() - plain.sum() == 9
    largest = postprocess(answer, PostProcessing(largest=True))
    assert np.array_equal(largest, plain & (np.arange(83) < 55))
    both = postprocess(answer, PostProcessing(fill_holes=True, largest=True))
    assert np.array_equal(both, filled & (np.arange(83) < 55))


@pytest.mark.parametrize(
    "prompt",
    [
        Click((3.4, 70)),
        Scribble([(1, 60), (3, 82)]),
        Box((0, 60), (6, 82)),
        Polygon([(0, 56), (0, 82), (6, 82), (6, 56)]),
        Mask(np.pad(np.ones((7, 20), bool), ((0, 57), (60, 3)))),
    ],
)
def test_only_parts_with_a_positive_prompt_stay(prompt):
    """Of any kind; a negative one saves no part, and where there is none all stay."""
    shape = (64, 83)
    mask = np.zeros(shape, bool)
    mask[2:9, 2:50] = mask[2:6, 60:80] = mask[40:45, 60:80] = True
    answer, finish = SoftMask.of(mask.astype(np.float32)), PostProcessing(prompted=True)
    right = mask & (np.indices(shape)[1] >= 56) & (np.indices(shape)[0] < 20)
    assert np.array_equal(postprocess(answer, finish, [prompt]), right)
    lower = Click((42, 70))
    assert np.array_equal(postprocess(answer, finish, [prompt, lower]), mask & (np.indices(shape)[1] >= 56))
    for prompts in ([], [Click((3, 3), positive=False)], [Click((60, 5))]):
        assert np.array_equal(postprocess(answer, finish, prompts), mask)
    both = PostProcessing(prompted=True, largest=True)
    assert postprocess(answer, both, [lower, prompt]).sum() == 100


def test_smoothing_around_the_object_is_smoothing_of_the_plane(probability):
    """Only the surroundings are worked on, with the same result."""
    answer = SoftMask.of(probability)
    plain = postprocess(answer, PostProcessing())
    expected = ndimage.gaussian_filter(plain.astype(np.float32), 1.5, mode="nearest") > 0.5
    assert np.array_equal(postprocess(answer, PostProcessing(smooth=1.5)), expected)


def test_a_drawn_mask_is_taken_as_it_is(probability):
    """No threshold, no smoothing: it is the user's."""
    mask = probability > 0.3
    answer = SoftMask.from_mask(mask)
    finish = PostProcessing(threshold=0.99, smooth=3, fill_holes=True, largest=True)
    assert np.array_equal(postprocess(answer, finish), mask)
    assert np.array_equal(answer.probability, mask.astype(np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold must lie between 0 and 1, got 0"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1, got 1.0"),
        ({"smooth": -1}, "smoothing must be from 0 to 50 pixels, got -1"),
    ],
)
def test_finishes_out_of_range_are_refused(options, message):
    """The sentence says what was expected."""
    with pytest.raises(ValueError, match=message):
        PostProcessing(**options)


@given(st.data())
def test_the_mask_of_a_tile_is_placed_on_its_plane_and_cropped_again(data: st.DataObject) -> None:
    """Pixel by pixel; what lies beside the tile is cut, and laid over what was there it leaves the rest."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    tile, plane = (7, 9), (20, 24)
    corner = (data.draw(st.integers(0, 13)), data.draw(st.integers(0, 15)))
    density = data.draw(st.sampled_from([0.0, 0.05, 0.9]))
    new = SoftMask.of((rng.random(tile) * (rng.random(tile) < density)).astype(np.float32))
    old = SoftMask.of((rng.random(plane) * (rng.random(plane) < density)).astype(np.float32))
    box = BoundingBox.at(corner, tile)
    placed = new.on(plane, corner)
    expected = np.zeros(plane, np.float32)
    part = (slice(corner[0], corner[0] + 7), slice(corner[1], corner[1] + 9))
    expected[part] = new.probability
    np.testing.assert_array_equal(placed.probability, expected)
    np.testing.assert_array_equal(placed.on(tile, (-corner[0], -corner[1])).probability, new.probability)
    np.testing.assert_array_equal(old.cropped(box).probability, old.probability[part])
    np.testing.assert_array_equal(old.on(tile, (-corner[0], -corner[1])).probability, old.probability[part])
    both = old.probability
    both[part] = new.probability
    np.testing.assert_array_equal(placed.laid_over(old, box).probability, both)
    np.testing.assert_array_equal(placed.laid_over(None, box).probability, expected)


def test_the_patch_of_a_mask_equals_the_whole_mask() -> None:
    """With a pixel of background around it, except at the edge of the plane."""
    probability = np.zeros((30, 40), np.float32)
    probability[0:4, 10:20] = 0.9
    patch = postprocess_patch(SoftMask.of(probability), PostProcessing())
    assert patch.box == (0, 9, 5, 21)
    np.testing.assert_array_equal(patch.on((30, 40)), probability > 0.5)
    np.testing.assert_array_equal(patch.on((3, 5), (2, 8)), probability[2:5, 8:13] > 0.5)
    assert not patch.on((3, 5), (20, 30)).any()
    assert postprocess_patch(SoftMask.of(probability * 0), PostProcessing()).pixels.size == 0


def test_masks_that_were_looked_at_do_not_keep_their_pixels():
    """A long day's undo stack holds thousands: their size is that of the packed pixels."""
    rng = np.random.default_rng(0)
    masks = [SoftMask.of(rng.random((40, 50), np.float32)) for _ in range(3 * RECENT)]
    before = [np.array(mask.probability) for mask in masks]
    held = sum(one.nbytes for mask in masks for one in vars(mask).values() if isinstance(one, np.ndarray))
    assert held == 0
    assert module._recently_unpacked.cache_info().currsize == RECENT
    assert all(np.array_equal(mask.probability, seen) for mask, seen in zip(masks, before, strict=True))
    kept = masks[0].unpacked()
    assert np.array_equal(kept.line(0, 7), masks[0].line(0, 7))
    assert pickle.loads(pickle.dumps(kept)).value == masks[0].value
    assert "_kept" not in kept.__getstate__()


def naive_level(probability: np.ndarray, level: int) -> np.ndarray:
    """The probability at a level, from the logit of each pixel."""
    with np.errstate(divide="ignore"):
        logit = np.log(probability) - np.log1p(-probability)
    return 1 / (1 + np.exp(-(logit + LOGIT_SHIFTS[level])))


@pytest.mark.parametrize("level", LOGIT_SHIFTS)
def test_a_level_is_the_mask_at_a_shifted_threshold(level: int) -> None:
    """For every step of probability: the mask is that of the threshold whose logit is lower by the shift.

    So is the probability, to one step; 0 and 1 stay.
    """
    every = SoftMask.of(np.linspace(0, 1, 2 * PROBABILITY_STEPS + 1, dtype=np.float64).reshape(1, -1), 0.8)
    probability = every.probability.astype(np.float64)
    odds = THRESHOLD / (1 - THRESHOLD) * np.exp(-LOGIT_SHIFTS[level])
    shifted = every.at_level(level)
    assert np.array_equal(shifted.mask, probability > odds / (1 + odds))
    assert np.abs(shifted.probability - naive_level(probability, level)).max() <= 1 / PROBABILITY_STEPS
    assert not shifted.probability[probability == 0].any()
    assert (shifted.probability[probability == 1] == 1).all()


@given(st.data())
def test_larger_levels_contain_smaller_ones(data: st.DataObject) -> None:
    """At every threshold; of any mask, also an empty and a full one, inside the same box and plane."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    kind = data.draw(st.sampled_from(["empty", "full", "sure", "any", "faint", "drawn"]))
    soft = {"empty": 0.0, "full": 1.0}.get(kind, rng.random(shape) * (0.3 if kind == "faint" else 1.0))
    probability = np.full(shape, soft) if kind in ("empty", "full") else np.asarray(soft)
    if kind == "sure":
        probability = (probability > 0.5).astype(np.float64)
    mask = SoftMask.from_mask(probability > 0.5) if kind == "drawn" else SoftMask.of(probability, 0.6)
    ordered = [mask.at_level(level) for level in range(-2, 3)]
    assert ordered[2] is mask
    for smaller, larger in pairwise(ordered):
        assert (smaller.probability <= larger.probability).all()
        assert (smaller.mask <= larger.mask).all()
    for level in ordered:
        assert (level.shape, level.drawn) == (mask.shape, mask.drawn)
        assert mask.box.contains(level.box)
        assert 0 <= level.probability.min() <= level.probability.max() <= 1
        assert (level.probability[mask.probability == 0] == 0).all()
        assert (level.probability[mask.probability == 1] == 1).all()
    if kind in ("empty", "full", "sure", "drawn"):
        assert mask.levels() == (0,)
        assert all(np.array_equal(level.probability, mask.probability) for level in ordered)


@given(st.integers(0, 2**32), st.sampled_from([0.2, THRESHOLD, 0.7]))
def test_levels_that_are_empty_or_nearly_the_same_are_left_out(seed: int, threshold: float) -> None:
    """As the masks themselves say, compared one by one with those before."""
    rng = np.random.default_rng(seed)
    mask = SoftMask.of(rng.random((9, 11)) ** rng.choice([0.1, 1, 4, 30]) * rng.choice([0.3, 1]))

    def above(level: int) -> np.ndarray:
        return mask.at_level(level).probability > threshold

    expected = [0]
    for level in (1, 2, -1, -2):
        new = above(level)
        same = any((new & above(one)).sum() >= SAME * (new | above(one)).sum() for one in expected)
        if new.any() and not same:
            expected.append(level)
    assert mask.levels(threshold) == tuple(expected)


def test_the_predicted_iou_of_a_level_falls_with_the_distance_from_the_first(probability) -> None:
    """By the mean of 1 and the IoU with the first mask; of a mask without one there is none."""
    mask = SoftMask.of(probability.clip(0, 1), 0.8)
    for level in (-2, -1, 1, 2):
        other = mask.at_level(level)
        iou = (mask.mask & other.mask).sum() / (mask.mask | other.mask).sum()
        assert iou < 1
        assert other.quality == pytest.approx(0.8 * (1 + iou) / 2)
    assert SoftMask.of(probability.clip(0, 1)).at_level(2).quality is None


@pytest.mark.parametrize("level", [-3, 3, 0.5])
def test_another_level_is_refused(level: float) -> None:
    """The sentence says which there are."""
    mask = SoftMask.from_mask(np.ones((2, 2), bool))
    with pytest.raises(ValueError, match=r"expected a level from -2, .*, got " + str(level)):
        mask.at_level(level)
