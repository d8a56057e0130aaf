"""Prompts simulated on the device, against their exact or naive forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Click, dense_maps
from napari_lowlat_seg.training.prompts import (
    THRESHOLD,
    BatchAnnotator,
    PromptMix,
    argmax_pixel,
    click_pixel,
    depth,
    jittered_boxes,
    loose_lasso,
    on_lines,
    stamp,
    stroke,
)

SIDE = 64  # of the half-size maps
NOTHING = PromptMix(click=0, scribble=0, box=0, polygon=0, mask=0, scribble_later=0, polygon_later=0)


@pytest.fixture
def generator() -> torch.Generator:
    torch.manual_seed(0)  # one choice is made by the host's own dice
    return torch.Generator().manual_seed(0)


@pytest.fixture
def blobs() -> Tensor:
    """(24, 64, 64) bool: random regions of all sizes, the first of which are empty, full and one pixel."""
    rng = np.random.default_rng(0)
    fields = [ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), rng.uniform(1, 8)) for _ in range(24)]
    regions = np.stack([field > field.std() * rng.uniform(-0.5, 1.5) for field in fields])
    regions[0], regions[1], regions[2] = False, True, False
    regions[2, 5, 60] = True
    return torch.from_numpy(regions)


def only(kind: str, **others: float) -> PromptMix:
    """Everyone begins with one kind of prompt and corrects with clicks."""
    return replace(NOTHING, **{kind: 1.0}, **others)


def annotator(
    truth: Tensor, mix: PromptMix, generator: torch.Generator, valid: Tensor | None = None
) -> BatchAnnotator:
    valid = torch.ones_like(truth) if valid is None else valid
    return BatchAnnotator(truth[:, None].float(), valid[:, None].float(), 3, mix, generator)


def centres(channel: Tensor) -> list[list[int]]:
    """Centre of the one disk in every map (B, S, S); a disk must lie wholly inside."""
    return [torch.nonzero(one).float().mean(0).long().tolist() for one in channel]


def inner(region: Tensor) -> Tensor:
    """The region without a border of 8 pixels, so that no disk is cut off."""
    cleared = torch.zeros_like(region)
    cleared[:, 8:-8, 8:-8] = region[:, 8:-8, 8:-8]
    return cleared


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (1, 9), (17, 40)])
def test_depth_is_the_exact_distance_with_the_border_outside(shape: tuple[int, int]) -> None:
    """Random regions, an empty and a full one, against scipy on a padded copy."""
    rng = np.random.default_rng(0)
    regions = rng.random((6, *shape)) < rng.choice([0.0, 0.5, 0.9, 0.98, 1.0, 1.0], (6, 1, 1))
    regions[0], regions[1] = False, True
    expected = [ndimage.distance_transform_edt(np.pad(one, 1))[1:-1, 1:-1] ** 2 for one in regions]
    assert np.array_equal(depth(torch.from_numpy(regions)).numpy(), np.round(expected))


def test_depth_is_exact_on_blobs(blobs: Tensor) -> None:
    """Regions as they are in training."""
    expected = [ndimage.distance_transform_edt(np.pad(one, 1))[1:-1, 1:-1] ** 2 for one in blobs.numpy()]
    assert np.array_equal(depth(blobs).numpy(), np.round(expected))


def test_argmax_pixel_is_the_first_of_the_largest() -> None:
    """Row and column, ties in reading order."""
    maps = torch.zeros(2, 4, 5)
    maps[0, 2, 3] = 1
    maps[1, 1, 4] = maps[1, 3, 0] = 1
    assert argmax_pixel(maps).tolist() == [[2, 3], [1, 4]]


def test_a_click_pixel_lies_in_its_region_and_is_mostly_deep(
    blobs: Tensor, generator: torch.Generator
) -> None:
    """Half of the spots are deepest, most others at least half as deep."""
    regions = blobs[1:]
    depths = depth(regions)
    peak = depths.amax((1, 2))
    share = []
    for _ in range(40):
        at = click_pixel(depths, 0.5, generator)
        found = depths[torch.arange(len(at)), at[:, 0], at[:, 1]]
        assert bool((found > 0).all())
        share.append((found / peak).sqrt())
    shares = torch.stack(share)
    assert 0.45 < float((shares == 1).float().mean()) < 0.75
    assert float((shares >= 0.5).float().mean()) > 0.85
    assert float(shares.min()) < 0.5


def test_click_pixels_can_all_be_deepest(blobs: Tensor, generator: torch.Generator) -> None:
    """As in the evaluation."""
    depths = depth(blobs[1:])
    at = click_pixel(depths, 1.0, generator)
    assert torch.equal(depths[torch.arange(len(at)), at[:, 0], at[:, 1]], depths.amax((1, 2)))


def test_a_stroke_shows_only_pixels_of_its_region(blobs: Tensor, generator: torch.Generator) -> None:
    """It passes through its start; what it crosses outside is marked as such."""
    regions = blobs[1:]
    depths = depth(regions)
    start = click_pixel(depths, 0.5, generator)
    at, inside = stroke(depths, start, generator)
    sample = torch.arange(len(at))[:, None].expand(at.shape[:2])
    assert bool(regions[sample[inside], at[..., 0][inside], at[..., 1][inside]].all())
    nearest = (at - start[:, None]).square().sum(-1).amin(1)
    assert int(nearest.max()) <= 2  # 96 points: the middle falls between two of them
    assert float(inside.float().mean()) > 0.5


@pytest.mark.parametrize("radius", [1, 3, 5])
def test_a_stamp_is_the_disk_of_dense_maps_bit_for_bit(radius: int) -> None:
    """Also at corners, one past the grid, and where disks overlap."""
    size = 48
    clicks = [[(0, 0), (47, 47), (20, 21)], [(10, 47), (12, 45), (30, 5)], [(47, 0), (0, 24), (46, 2)]]
    maps = torch.zeros(3, 3, size, size)
    channel = torch.tensor([1, 2, 1])
    stamp(maps, torch.tensor(clicks), torch.ones(3, 3, dtype=torch.bool), channel, radius)
    frame = Frame.whole((size, size), size)
    for found, points, sign in zip(maps.numpy(), clicks, channel.tolist(), strict=True):
        expected = dense_maps([Click(at, sign == 1) for at in points], frame, radius=radius)
        assert np.array_equal(found, expected)


def test_a_stamp_leaves_hidden_points_and_other_marks_alone() -> None:
    """Points that are not shown write nothing; a disk covers a fainter mark and keeps what is beside it."""
    maps = torch.full((1, 3, 16, 16), 0.5)
    stamp(maps, torch.tensor([[[4, 4], [12, 12]]]), torch.tensor([[True, False]]), torch.tensor([1]), 2)
    expected = np.full((3, 16, 16), 0.5, np.float32)
    disk = dense_maps([Click((4, 4))], Frame.whole((16, 16), 16), radius=2)[1] > 0
    expected[1][disk] = 1
    assert np.array_equal(maps[0].numpy(), expected)


def test_a_box_is_the_bounding_box_up_to_its_slack(blobs: Tensor, generator: torch.Generator) -> None:
    """Each side is off by 4 % of its length on average, here by less than six times that."""
    for region, box in zip(blobs[1:], jittered_boxes(blobs, generator)[1:], strict=True):
        for axis in (0, 1):
            true, drawn = (torch.nonzero(one.any(1 - axis)).flatten() for one in (region, box))
            if true.numel() < 3:
                continue
            slack = 0.5 + 0.24 * len(range(int(true[0]), int(true[-1]) + 1))
            assert abs(int(true[0]) - int(drawn[0])) <= slack
            assert abs(int(true[-1]) - int(drawn[-1])) <= slack


def test_a_box_of_a_small_object_is_exact(generator: torch.Generator) -> None:
    """Two pixels have no slack worth a pixel; a box around nothing is empty."""
    region = torch.zeros(2, 32, 32, dtype=torch.bool)
    region[0, 10:12, 20:22] = True
    assert torch.equal(jittered_boxes(region, generator), region)


def test_a_loose_outline_stays_near_its_object(generator: torch.Generator) -> None:
    """It covers most of a disk, is mostly larger, and draws no islands elsewhere."""
    rows, cols = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    apart = ((rows - 60.0).square() + (cols - 50.0).square()).sqrt()
    region = (apart <= 12).expand(64, -1, -1)
    drawn = loose_lasso(region, generator)
    assert not bool((drawn & (apart > 12 + 16)).any())
    assert float((drawn & region).float().sum() / region.sum()) > 0.95
    assert float((drawn.float().sum((1, 2)) > region.float().sum((1, 2))).float().mean()) > 0.5


def test_the_outline_of_an_empty_region_is_empty(generator: torch.Generator) -> None:
    """An empty region has no outline, whatever the wobble."""
    assert not bool(loose_lasso(torch.zeros(64, 64, 64, dtype=torch.bool), generator).any())


def test_a_first_click_lies_in_the_truth(blobs: Tensor, generator: torch.Generator) -> None:
    """One positive disk, its centre on a network pixel of the object; an empty truth gets none."""
    truth = inner(blobs)
    annotators = annotator(truth, only("click"), generator)
    annotators.begin()
    there = truth.flatten(1).any(1)
    for sample, (row, col) in enumerate(centres(annotators.maps[there, 1])):
        assert bool(truth[there][sample, row // 2, col // 2])
    assert annotators.maps[:, 1].flatten(1).sum(1).tolist() == [29.0 * one for one in there.tolist()]
    assert float(annotators.maps[:, [0, 2]].abs().sum()) == 0


def test_a_first_scribble_touches_no_pixel_farther_than_its_radius(
    blobs: Tensor, generator: torch.Generator
) -> None:
    """Every mark of the stroke is within 3 network pixels of the object; it covers more than a click."""
    annotators = annotator(blobs, only("scribble"), generator)
    annotators.begin()
    network = blobs.repeat_interleave(2, 1).repeat_interleave(2, 2)
    far = [ndimage.distance_transform_edt(~one) > 3 for one in network[1:].numpy()]
    assert not (annotators.maps[1:, 1].numpy() * far).any()
    assert float(annotators.maps[4:, 1].flatten(1).sum(1).max()) > 60


@pytest.mark.parametrize("kind", ["box", "polygon", "mask"])
@pytest.mark.parametrize(("as_prior", "channel", "value"), [(0.0, 1, 0.5), (1.0, 0, 1.0)])
def test_a_first_region_is_half_in_its_channel_or_whole_in_the_prior(
    blobs: Tensor, generator: torch.Generator, kind: str, as_prior: float, channel: int, value: float
) -> None:
    """As `dense_maps` has it with regions = "channel" or "prior"; nothing else is written."""
    annotators = annotator(blobs, only(kind, as_prior=as_prior), generator)
    annotators.begin()
    assert set(annotators.maps[:, channel].unique().tolist()) == {0.0, value}
    others = [number for number in range(3) if number != channel]
    assert float(annotators.maps[:, others].abs().sum()) == 0
    assert bool((annotators.maps[3:, channel].flatten(1).sum(1) > 0).all())


def test_regions_stay_within_the_picture(blobs: Tensor, generator: torch.Generator) -> None:
    """No region reaches the padding."""
    valid = torch.zeros_like(blobs)
    valid[:, :40] = True
    for kind in ("box", "polygon"):
        annotators = annotator(blobs & valid, only(kind, as_prior=0.0), generator, valid)
        annotators.begin()
        assert float(annotators.maps[:, :, 80:].sum()) == 0


@pytest.mark.slow
def test_first_prompts_are_drawn_by_their_shares(generator: torch.Generator) -> None:
    """400 samples, half of them with a box."""
    truth = torch.zeros(400, 32, 32, dtype=torch.bool)
    truth[:, 8:24, 8:24] = True
    annotators = annotator(truth, replace(NOTHING, click=3.0, box=3.0, as_prior=0.0), generator)
    annotators.begin()
    drew_box = (annotators.maps[:, 1] == 0.5).flatten(1).any(1)
    assert 0.42 < float(drew_box.float().mean()) < 0.58


def test_a_correction_lies_in_the_deeper_error_and_repairs_it(generator: torch.Generator) -> None:
    """A missed part or a wrong part, one deeper than the other; both directions, and the other by a tie."""
    truth = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    truth[:, 10:30, 10:30] = True
    mask = torch.zeros_like(truth)
    mask[0, 40:50, 40:50] = True  # wrong by 10, missed by 20
    mask[1, 10:30, 15:30] = True  # missed by 5 ...
    mask[1, 36:56, 36:56] = True  # ... wrong by 20
    mask[2, 35:55, 35:55] = True  # both by 20: a tie is negative
    for _ in range(10):
        annotators = annotator(truth, only("click"), generator)
        annotators.correct(mask[:, None].float())
        signs = [int(one[2].any()) for one in annotators.maps]
        assert signs == [0, 1, 1]
        errors = (truth & ~mask, mask & ~truth)
        for sample, sign in enumerate(signs):
            (row, col) = centres(annotators.maps[sample, 1 + sign][None])[0]
            assert bool(errors[sign][sample, row // 2, col // 2])
            assert float(annotators.maps[sample, 2 - sign].sum()) == 0


def test_ignored_pixels_are_not_corrected(generator: torch.Generator) -> None:
    """What is wrong on the padding alone is wrong nowhere."""
    truth = torch.zeros(8, SIDE, SIDE, dtype=torch.bool)
    truth[:, 4:20, 4:20] = True
    valid = torch.ones_like(truth)
    valid[:, :, 32:] = False
    annotators = annotator(truth, only("click", polygon_later=1.0), generator, valid)
    annotators.correct((truth | ~valid)[:, None].float())
    assert float(annotators.maps[:, 1:].sum()) == 0


def test_a_perfect_mask_gets_no_correction(blobs: Tensor, generator: torch.Generator) -> None:
    """Neither click nor scribble nor outline, and earlier prompts stay."""
    for mix in (only("box"), only("box", scribble_later=1.0), only("box", polygon_later=1.0)):
        annotators = annotator(blobs, mix, generator)
        annotators.begin()
        before = annotators.maps.clone()
        annotators.correct(blobs[:, None].float())
        assert torch.equal(annotators.maps[:, 1:], before[:, 1:])


@pytest.mark.parametrize("kind", ["scribble_later", "polygon_later"])
def test_later_scribbles_and_outlines_have_the_sign_that_repairs(
    generator: torch.Generator, kind: str
) -> None:
    """Too large an answer, marked in the negative channel only, by 1 or by 0.5."""
    truth = torch.zeros(8, SIDE, SIDE, dtype=torch.bool)
    truth[:, 10:30, 10:30] = True
    mask = torch.zeros_like(truth)
    mask[:, 10:30, 10:60] = True
    annotators = annotator(truth, replace(NOTHING, **{kind: 1.0}), generator)
    annotators.correct(mask[:, None].float())
    assert float(annotators.maps[:, 1].sum()) == 0
    assert set(annotators.maps[:, 2].unique().tolist()) == {0.0, 1.0 if kind == "scribble_later" else 0.5}
    assert bool(annotators.maps[:, 2].flatten(1).any(1).all())


@pytest.mark.slow
def test_the_probability_becomes_the_first_channel(generator: torch.Generator) -> None:
    """Mostly the answer itself, bilinear; in about one of ten coarse, in one of twenty gone."""
    torch.manual_seed(1)
    probability = torch.rand(400, 1, 32, 32)
    annotators = annotator(probability[:, 0] > THRESHOLD, only("click"), generator)
    annotators.correct(probability)
    whole = torch.nn.functional.interpolate(probability, (64, 64), mode="bilinear")[:, 0]
    same = (annotators.maps[:, 0] == whole).flatten(1).all(1)
    gone = (annotators.maps[:, 0] == 0).flatten(1).all(1)
    assert 0.79 < float(same.float().mean()) < 0.91
    assert 0.02 < float(gone.float().mean()) < 0.09


def test_a_wrong_click_has_the_wrong_sign_on_right_pixels(generator: torch.Generator) -> None:
    """Positive ones beside the object, negative ones in it, none on errors; both kinds occur."""
    truth = torch.zeros(40, SIDE, SIDE, dtype=torch.bool)
    truth[:, 16:48, 16:48] = True
    answer = torch.zeros(40, 1, SIDE, SIDE)
    answer[:, :, 24:56, 16:48] = 1  # misses 8 rows, adds 8 others
    annotators = annotator(truth, only("click", slip=1.0), generator)
    annotators.begin()
    before = annotators.maps
    annotators.correct(answer)
    assert bool(annotators.wrong_clicks.all())
    there = F.max_pool2d(annotators.maps[:, 1:] - before[:, 1:], 2) > 0
    shared = truth & (answer[:, 0] > 0.5)
    neither = ~truth & (answer[:, 0] < 0.5)
    kinds = []
    for plus, minus, here, beside in zip(there[:, 0], there[:, 1], shared, neither, strict=True):
        kinds.append(bool(plus.any()))
        drawn, allowed = (plus, beside) if plus.any() else (minus, here)
        assert bool((drawn & allowed).any())
        assert not bool(plus.any() and minus.any())
    assert 10 < sum(kinds) < 30


def test_there_are_no_wrong_clicks_by_default(blobs: Tensor, generator: torch.Generator) -> None:
    """And where nothing is right, there is nothing to spoil."""
    for mix, answer in ((PromptMix(), 0.3), (only("click", slip=1.0), 1.0)):
        annotators = annotator(torch.zeros_like(blobs) if answer == 1 else blobs, mix, generator)
        annotators.begin()
        annotators.correct(torch.full((len(blobs), 1, SIDE, SIDE), answer))
        assert not bool(annotators.wrong_clicks.any())


def test_neither_truth_nor_mask_is_mutated(blobs: Tensor, generator: torch.Generator) -> None:
    """A round of all prompt kinds does not change its arguments; earlier maps are not written to."""
    truth, answer = blobs[:, None].float(), torch.rand(len(blobs), 1, SIDE, SIDE)
    before = truth.clone(), answer.clone()
    annotators = BatchAnnotator(truth, torch.ones_like(truth), 3, PromptMix(), generator)
    annotators.begin()
    kept, copy = annotators.maps, annotators.maps.clone()
    annotators.correct(answer)
    assert torch.equal(truth, before[0])
    assert torch.equal(answer, before[1])
    assert torch.equal(kept, copy)  # the graph of the first round still needs them


def test_the_same_seed_gives_the_same_prompts(blobs: Tensor) -> None:
    """Three rounds of the default mix."""

    def said() -> Tensor:
        torch.manual_seed(3)
        annotators = annotator(blobs, PromptMix(), torch.Generator().manual_seed(3))
        annotators.begin()
        for step in range(2):
            annotators.correct(torch.full((len(blobs), 1, SIDE, SIDE), 0.3 + 0.4 * step))
        return annotators.maps

    assert torch.equal(said(), said())


def extent(region: np.ndarray, axis: int) -> int:
    """Lines across an axis from the first to the last that a bool region (H, W) crosses."""
    return int(np.ptp(np.flatnonzero(region.any(axis)))) + 1


def test_a_region_on_lines_is_all_of_the_region_on_a_run_of_rows_or_columns(
    blobs: Tensor, generator: torch.Generator
) -> None:
    """At most three quarters of the lines that it crosses, and nothing of an empty region."""
    turned = set()
    for _ in range(10):
        known = on_lines(blobs, generator)
        assert not bool((known & ~blobs).any())
        assert not bool(known[0].any())
        for region, part in zip(blobs.numpy()[1:], known.numpy()[1:], strict=True):
            if not part.any():
                continue
            axes = [
                axis
                for axis in (0, 1)
                if np.array_equal(part, region & part.any(axis, keepdims=True))
                and extent(part, axis) <= np.ceil(0.75 * extent(region, axis))
            ]
            assert axes
            turned.update(axes if len(axes) == 1 else [])
    assert turned == {0, 1}


def test_some_begin_with_a_previous_mask_on_lines_beside_their_prompt(
    blobs: Tensor, generator: torch.Generator
) -> None:
    """All of them or none; a correction replaces it by the prediction."""
    truth = blobs[1:]
    people = annotator(truth, only("click", lines=1.0), generator)
    people.begin()
    shown = people.maps[:, 0, ::2, ::2] > 0
    assert not bool((shown & ~truth).any())
    assert float(shown.any(2).any(1).float().mean()) > 0.6
    assert bool(people.maps[:, 1].any(2).any(1).all())
    people.correct(torch.zeros_like(truth[:, None], dtype=torch.float32))
    assert not bool(people.maps[:, 0].any())
    people = annotator(truth, only("click"), generator)
    people.begin()
    assert not bool(people.maps[:, 0].any())
