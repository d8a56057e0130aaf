"""Edge looks: which crops lie along an outline, how they are mixed in, and what they may not change."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import THRESHOLD
from napari_lowlat_seg.core.prompts import Box, Click, Scribble
from napari_lowlat_seg.inference.edge_looks import (
    FADE,
    MIN_SIDE,
    REACH,
    SIDE,
    Mixture,
    box_mean,
    contradicts,
    fading,
    lattice,
    new_at_prompt,
    strokes_inside,
    thinned,
    uncertain_crops,
)
from napari_lowlat_seg.inference.prediction import Prediction
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.models.compact import Compact, CompactConfig

SMALL = CompactConfig(size=256, width=32, heads=2, blocks=1, skip8=16, skip4=8)
SHAPE = (300, 400)
SHAPES = st.tuples(st.integers(128, 900), st.integers(128, 900))
SPACINGS = st.sampled_from([(1.0, 1.0), (2.0, 1.0), (1.0, 3.0)])


class LeftHalf(Compact):
    """A network that draws the left half of whatever it sees, with a soft outline."""

    def decode(self, fused):  # type: ignore[no-untyped-def]
        return fused[0], None

    def fuse(self, features, maps):  # type: ignore[no-untyped-def]
        across = torch.linspace(12, -12, 256).expand(len(maps), 1, 256, 256)
        return (across.clone(),)


@pytest.fixture
def predictor() -> Predictor:
    """A predictor that counts the crops that it embeds."""
    made = Predictor(LeftHalf(SMALL).eval(), Runtime())
    made.embedded = Counter()  # type: ignore[attr-defined]
    embed = made.backend.embed

    def counted(plane, frame):  # type: ignore[no-untyped-def]
        made.embedded[frame.crop] += 1  # type: ignore[attr-defined]
        return embed(plane, frame)

    made.backend.embed = counted  # type: ignore[method-assign]
    return made


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)


def ramp(shape: tuple[int, int] = SHAPE, width: float = 20) -> np.ndarray:
    """The probability of the left half of a plane."""
    across = np.arange(shape[1]) - shape[1] / 2
    return np.broadcast_to(1 / (1 + np.exp(across / width * 4)), shape).astype(np.float32)


def first(probability: np.ndarray) -> Prediction:
    return Prediction(probability, None, Frame.whole(probability.shape, 256))


def within(crop: Frame, probability: np.ndarray) -> Prediction:
    return Prediction(probability, None, crop)


@given(SHAPES, SPACINGS)
@settings(deadline=None, max_examples=40)
def test_every_pixel_lies_well_inside_a_crop(shape, spacing) -> None:
    """So no part of an outline is seen by faded borders only."""
    crops = lattice(Frame.whole(shape, 256, "letterbox", spacing))
    if not crops:
        sides = [n * s / min(spacing) for n, s in zip(shape, spacing, strict=True)]
        assert SIDE * max(sides) < MIN_SIDE * max(spacing) / min(spacing) + 1
        return
    weight = np.zeros(shape, np.float32)
    for crop in crops:
        view = crop.cut(weight)
        np.maximum(view, fading(crop), out=view)
    assert weight.min() >= 0.5
    assert len(crops) <= 12


def test_small_planes_have_no_crops():
    """Magnifying a few pixels shows nothing new."""
    assert lattice(Frame.whole((100, 120), 256)) == ()


def test_a_crop_fades_towards_its_borders_but_not_at_the_planes():
    """The corner crop keeps its full weight at the two sides of the plane."""
    crop = lattice(Frame.whole(SHAPE, 256))[0]
    weight = fading(crop)
    assert crop.crop[:2] == (0, 0)
    assert weight[0, 0] == 1
    assert weight[-1].max() < 0.05
    assert weight[:, -1].max() < 0.05
    assert np.abs(np.diff(weight, axis=1)).max() <= 1 / (FADE * crop.crop[3]) + 1e-6


def test_crops_show_the_uncertain_outline_the_nearest_first():
    """Far from the outline no crop is looked at; a certain mask gets none."""
    frame = Frame.whole(SHAPE, 256)
    crops = uncertain_crops(frame, *thinned(ramp()), (290.0, 200.0))
    lefts = {crop.crop[1] for crop in crops}
    assert crops
    assert all(left < 200 < left + crop.crop[3] for left in lefts for crop in crops[:1])
    assert crops[0].crop[0] > crops[-1].crop[0]
    assert uncertain_crops(frame, *thinned((ramp() > 0.5).astype(np.float32)), (0.0, 0.0)) == []


@pytest.mark.slow
@given(st.integers(0, 2**16))
@settings(deadline=None, max_examples=25)
def test_a_mixture_keeps_what_all_its_sources_say(seed) -> None:
    """Where the first prediction and all crops agree, so does it; far from the outline it is the first."""
    rng = np.random.default_rng(seed)
    before = first(ramp())
    mixture, agree = Mixture(before), np.ones(SHAPE, bool)
    looked = np.zeros(SHAPE, bool)
    for crop in lattice(before.frame)[:: rng.integers(1, 4)]:
        soft = rng.random(crop.crop[2:]).astype(np.float32)
        mixture.add(within(crop, soft))
        crop.cut(agree)[...] &= (soft > THRESHOLD) == crop.cut(before.mask)
        crop.cut(looked)[...] = True
    mixed = mixture.prediction(())
    assert np.array_equal(mixed.mask[agree], before.mask[agree])
    assert np.array_equal(mixed.probability[~looked], before.probability[~looked])
    reach = round(REACH * SIDE * max(SHAPE))
    far = np.abs(np.arange(SHAPE[1]) - SHAPE[1] / 2) > reach + 2
    assert np.array_equal(mixed.probability[:, far], before.probability[:, far])


def test_a_crop_predicted_on_the_processor_is_mixed_in_where_the_mixture_is():
    """A GPU can run out of memory between two crops; "meta" stands for it."""
    whole = Frame.whole((200, 200), 512)
    mixture = Mixture(Prediction(torch.zeros((200, 200), device="meta"), None, whole))
    mixture.add(Prediction(np.ones((100, 100), np.float32), None, lattice(whole)[0]))
    mixed = mixture.prediction(())
    assert isinstance(mixed.soft, torch.Tensor)
    assert mixed.soft.device.type == "meta"


@pytest.mark.parametrize(
    ("lacking", "number", "total"), [("zeros_like", 2, 4), ("outer", 2, 4), ("lerp", 1, 2)]
)
def test_a_mixture_goes_on_with_the_processor(monkeypatch, lacking, number, total):
    """Whenever memory runs out, each crop is in it once."""
    whole = first(ramp())
    crops = [Prediction(ramp(crop.crop[2:], 5), None, crop) for crop in lattice(whole.frame)[:3]]

    def mixed() -> np.ndarray:
        mixture = Mixture(whole)
        for crop in crops:
            mixture.add(crop)
        return mixture.prediction(()).probability

    expected, true, calls = mixed(), getattr(torch, lacking), []

    def full(*args):  # type: ignore[no-untyped-def]
        calls.append(args)
        if len(calls) == number:
            raise torch.cuda.OutOfMemoryError("full")
        return true(*args)

    monkeypatch.setattr(torch, lacking, full)
    np.testing.assert_array_equal(mixed(), expected)
    assert len(calls) == total


def test_a_mixture_has_no_seams():
    """From one pixel to the next it changes no faster than its sources and the fading do."""
    before = first(ramp())
    mixture = Mixture(before)
    crop = lattice(before.frame)[4]
    mixture.add(within(crop, np.ones(crop.crop[2:], np.float32)))
    mixed = mixture.prediction(()).probability
    steepest = np.abs(np.diff(ramp(), axis=1)).max()
    band = 4 / (REACH * SIDE * max(SHAPE))
    assert np.abs(np.diff(mixed, axis=0)).max() <= 1 / (FADE * crop.crop[2]) + 1e-5
    assert np.abs(np.diff(mixed, axis=1)).max() <= steepest + 1 / (FADE * crop.crop[3]) + band


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        (Click((100, 150)), False),
        (Click((100, 150), positive=False), True),
        (Click((100, 10), positive=False), False),  # outside the crop
        (Scribble([(100, 150), (100, 250)], positive=False), True),
        (Scribble([(100, 160), (100, 170)]), False),
    ],
)
def test_a_crop_that_contradicts_a_stroke_is_told(prompt, wrong) -> None:
    """Only strokes that were right before and lie in the crop count."""
    crop = Frame(SHAPE, 256, (50, 100, 150, 200))
    shown = np.ones((150, 200), bool)
    before = np.full(SHAPE, prompt.positive)
    assert contradicts(crop, shown, before, [prompt]) == wrong
    assert not contradicts(crop, shown, ~before, [prompt])


def test_strokes_that_meet_a_crop_are_given_to_it():
    """Regions are in the present mask already."""
    crop = Frame(SHAPE, 256, (50, 100, 150, 200))
    inside, across, away = Click((60, 110)), Scribble([(0, 0), (60, 150)]), Click((10, 10))
    assert strokes_inside(crop, [inside, away, across, Box((50, 100), (90, 160))]) == [inside, across]


@pytest.mark.slow
def test_a_correction_of_a_large_object_is_refined(predictor) -> None:
    """On a processor one crop is embedded where a prompt is in none yet; it is kept and used again."""
    embedding = predictor.embed(image())
    prompts = [Click((150, 100)), Click((20, 160)), Click((280, 160)), Click((24, 164))]
    begun = predictor.predict(embedding, prompts[:1])
    assert begun.edges == ()
    predictor.embedded.clear()
    quick, refined = predictor.answers(embedding, prompts[:2], begun)
    assert quick.edges == ()
    assert len(refined.edges) == sum(predictor.embedded.values()) == 1
    assert not np.array_equal(quick.probability, refined.probability)
    again = predictor.predict(embedding, prompts[:3], refined)
    assert len(again.edges) == 2
    nearby = predictor.predict(embedding, prompts, again)
    assert {look.frame for look in nearby.edges} == {look.frame for look in again.edges}
    assert max(predictor.embedded.values()) == 1


@given(st.integers(0, 299), st.integers(0, 399))
@settings(deadline=None, max_examples=20)
def test_a_new_crop_shows_the_newest_prompt(row: int, col: int) -> None:
    """Nowhere it is faded there; with it known, no other is needed at the same place."""
    crops = lattice(Frame.whole(SHAPE, 256))
    [chosen] = new_at_prompt(crops, [], (row, col))
    weight = np.zeros(SHAPE, np.float32)
    chosen.cut(weight)[...] = fading(chosen)
    assert weight[row, col] >= 0.25  # half along each side
    assert new_at_prompt(crops, [chosen], (row, col)) == []
    assert new_at_prompt([], [], (row, col)) == []


@pytest.mark.slow
def test_what_was_left_out_follows_while_idle(predictor) -> None:
    """The third prediction has all crops, each embedded once."""
    embedding = predictor.embed(image())
    prompts = [Click((150, 100)), Click((20, 160))]
    begun = predictor.predict(embedding, prompts[:1])
    _, refined, complete = predictor.answers(embedding, prompts, begun, idle=True)
    assert {look.frame for look in refined.edges} < {look.frame for look in complete.edges}
    assert max(predictor.embedded.values()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("at", [(150, 150), (40, 190), (260, 195)])
def test_no_crop_undoes_what_the_user_said(predictor, at) -> None:
    """The fake network draws the left half of each crop, so crops contradict clicks; none is lost."""
    embedding = predictor.embed(image())
    prompts = [Click((150, 100)), Click(at), Click((150, 300), positive=False), Click((30, 100))]
    prediction = None
    for count in range(1, len(prompts) + 1):
        *_, last = predictor.answers(embedding, prompts[:count], prediction, idle=True)
        prediction = last
        for prompt in prompts[:count]:
            row, col = map(int, prompt.at)
            assert prediction.mask[row, col] == prompt.positive


def test_without_closer_looks_nothing_is_embedded_again():
    """closer_look="off" covers edge looks."""
    predictor = Predictor(LeftHalf(SMALL).eval(), Runtime(), "off")
    embedding = predictor.embed(image())
    prompts = [Click((150, 100)), Click((20, 120))]
    begun = predictor.predict(embedding, prompts[:1])
    assert len(list(predictor.answers(embedding, prompts, begun))) == 1


def test_a_doubtful_mask_is_not_refined(predictor, monkeypatch) -> None:
    """While more than the outline is wrong, the whole plane decides."""
    doubtful = torch.tensor([0.5])
    monkeypatch.setattr(LeftHalf, "decode", lambda self, fused: (fused[0], doubtful))
    embedding = predictor.embed(image())
    prompts = [Click((150, 100)), Click((20, 120))]
    begun = predictor.predict(embedding, prompts[:1])
    assert len(list(predictor.answers(embedding, prompts, begun))) == 1


@pytest.mark.parametrize(("shape", "reach"), [((40, 30), 3), ((5, 90), 8), ((1, 1), 2)])
def test_running_sums_are_the_mean_over_squares(shape, reach):
    """Of a mask, pixel by pixel; exactly, since its sums are whole numbers."""
    mask = np.random.default_rng(0).integers(0, 2, shape)
    wide = np.pad(mask, reach, mode="edge")
    expected = [
        [wide[row : row + 2 * reach + 1, col : col + 2 * reach + 1].mean() for col in range(shape[1])]
        for row in range(shape[0])
    ]
    np.testing.assert_allclose(box_mean(torch.from_numpy(mask).float(), reach), expected, rtol=1e-6)
