"""The simulated annotator against the published protocol, and its drawn prompts against common sense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from fakes import FakePrediction
from napari_lowlat_seg.core.prompts import Box, Click, Prompt
from napari_lowlat_seg.evaluation.annotator import (
    FIRST_PROMPTS,
    annotate,
    box_around,
    deepest,
    lasso_around,
    next_click,
    scribble_in,
)
from napari_lowlat_seg.evaluation.metrics import iou

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluation.npz"
CASES = ("ellipse_hole", "two_blobs", "with_ignore", "thin_cross", "tiny_corners")


@dataclass(frozen=True)
class NearestClick:
    """A predictor of pure geometry: a pixel belongs to the sign of the click nearest to it."""

    shape: tuple[int, int]

    def __call__(self, prompts: Sequence[Prompt], previous: object) -> FakePrediction:
        near = {sign: self._distance(prompts, sign) for sign in (True, False)}
        probability = 1 / (1 + np.exp(-(near[False] - near[True]) / 8))
        return FakePrediction(probability > 0.49)

    def _distance(self, prompts: Sequence[Prompt], sign: bool) -> np.ndarray:
        empty = np.ones(self.shape, bool)
        for prompt in prompts:
            if isinstance(prompt, Click) and prompt.positive == sign:
                empty[int(prompt.at[0]), int(prompt.at[1])] = False
        return np.full(self.shape, 40.0) if empty.all() else ndimage.distance_transform_edt(empty)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN))


@pytest.fixture
def disk() -> np.ndarray:
    """A truth with one disk of radius 20 in the middle of 80 x 100."""
    rows, cols = np.ogrid[:80, :100]
    return ((rows - 40) ** 2 + (cols - 50) ** 2 <= 400).astype(np.int8)


def table(prompts: Sequence[Prompt]) -> list[list[int]]:
    return [[int(p.at[0]), int(p.at[1]), int(p.positive)] for p in prompts if isinstance(p, Click)]


def naive_click(truth: np.ndarray, mask: np.ndarray, clicks: Sequence[Click]) -> Click:
    """The protocol in full-size arrays, step by step."""
    depths = []
    for error in ((truth == 1) & ~mask, (truth == 0) & mask):
        depth = ndimage.distance_transform_edt(np.pad(error, 1))[1:-1, 1:-1].astype(np.float32)
        for click in clicks:
            depth[int(click.at[0]), int(click.at[1])] = 0
        depths.append(depth)
    positive = bool(depths[0].max() > depths[1].max())
    depth = depths[0] if positive else depths[1]
    row, col = np.argwhere(depth == depth.max())[0]
    return Click((int(row), int(col)), positive=positive)


@pytest.mark.parametrize("case", CASES)
def test_clicks_and_ious_equal_the_published_evaluation(golden: dict[str, np.ndarray], case: str) -> None:
    """Twenty clicks on five shapes: the same pixels and the same float32 IoUs."""
    truth = golden[f"gt_{case}"]
    run = annotate(NearestClick(truth.shape), truth, parity=True)
    assert table(run.prompts) == golden[f"clicks_{case}"].tolist()
    assert run.ious.tolist() == golden[f"ious_{case}"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_an_early_stop_keeps_the_iou_that_reached_it(golden: dict[str, np.ndarray], case: str) -> None:
    """Stopping at 0.85 gives the recorded curves, last value included."""
    truth = golden[f"gt_{case}"]
    run = annotate(NearestClick(truth.shape), truth, stop_at=0.85, parity=True)
    assert run.ious.tolist() == golden[f"ious_stop85_{case}"].tolist()


def test_a_perfect_answer_is_clicked_at_the_origin_in_parity_only(golden: dict[str, np.ndarray]) -> None:
    """Published evaluation code goes on with negative clicks at (0, 0); ours is content."""
    # The recording does not say which of the five shapes it used: its first click tells.
    truths = [golden[f"gt_{case}"] for case in CASES]
    first = golden["clicks_perfect"][0].tolist()
    truth = next(t for t in truths if table([naive_click(t, np.zeros(t.shape, bool), [])]) == [first])
    perfect = FakePrediction(truth == 1)
    harness = annotate(lambda prompts, previous: perfect, truth, max_clicks=4, parity=True)
    assert table(harness.prompts) == golden["clicks_perfect"].tolist()
    assert harness.ious.tolist() == golden["ious_perfect"].tolist()
    assert annotate(lambda prompts, previous: perfect, truth, max_clicks=4).ious.tolist() == [1.0]


@pytest.mark.parametrize("seed", range(8))
def test_a_click_from_the_bounding_box_equals_one_from_the_whole_plane(seed: int) -> None:
    """Random references, predictions, ignored bands and earlier clicks: fast path against naive path."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(3, 90, 2))
    for sigma in (0.5, 2.0, 6.0):
        smooth = [ndimage.gaussian_filter(rng.normal(size=shape), sigma) for _ in range(3)]
        truth = (smooth[0] > 0).astype(np.int8)
        truth[smooth[2] > 1.5 * smooth[2].std()] = -1
        mask = smooth[1] > smooth[1].std() * rng.uniform(-2, 2)
        clicks: list[Click] = []
        for _ in range(6):
            clicks.append(naive_click(truth, mask, clicks))
            assert next_click(truth, mask, clicks[:-1], parity=True) == clicks[-1]


def test_a_tie_is_clicked_negative() -> None:
    """A miss and an excess of the same depth: the annotator removes first."""
    truth, mask = np.zeros((9, 20), np.int8), np.zeros((9, 20), bool)
    truth[2:7, 2:7] = 1
    mask[2:7, 12:17] = True
    assert next_click(truth, mask) == Click((4, 14), positive=False)


def test_the_deepest_pixel_of_an_object_is_the_middle_of_its_inscribed_disk() -> None:
    """The border of the picture is an edge; what was clicked is passed over; nothing has no depth."""
    square = np.zeros((9, 9), bool)
    square[4:, 4:] = True
    assert deepest(square) == (3.0, (6, 6))
    assert deepest(square, [(6, 6)]) == (2.0, (5, 5))
    assert deepest(np.zeros((9, 9), bool)) == (0.0, (0, 0))


def test_no_click_is_left_when_every_wrong_pixel_was_clicked() -> None:
    """One wrong pixel, clicked in vain, does not get a second click."""
    truth = np.zeros((5, 5), np.int8)
    truth[2, 3] = 1
    assert next_click(truth, np.zeros((5, 5), bool), [Click((2, 3))]) is None


def test_ignored_pixels_are_no_errors() -> None:
    """An answer that differs from the truth in ignored pixels only is perfect."""
    truth = np.zeros((6, 6), np.int8)
    truth[1:3, 1:3], truth[4:] = 1, -1
    mask = truth != 0
    assert (next_click(truth, mask), iou(truth, mask)) == (None, 1.0)


def test_arguments_are_not_changed(disk: np.ndarray) -> None:
    """Truth and answer are the same before and after."""
    truth, mask = disk.copy(), np.zeros(disk.shape, bool)
    for draw in FIRST_PROMPTS.values():
        draw(truth)
    next_click(truth, mask)
    assert (truth == disk).all()
    assert not mask.any()


def test_a_box_is_tight(disk: np.ndarray) -> None:
    """From the first to the last pixel centre of the object."""
    assert box_around(disk) == Box((20.0, 30.0), (60.0, 70.0))


def test_a_lasso_goes_round_the_object_loosely(disk: np.ndarray) -> None:
    """All corners outside the disk, near it, and few."""
    points = np.array(lasso_around(disk, 0.1).points)
    radius = np.hypot(*(points - [40, 50]).T)
    assert 4 <= len(points) <= 40
    assert radius.min() > 20.5
    assert radius.max() < 26


def test_a_lasso_of_an_object_at_the_border_stays_inside() -> None:
    """Coordinates are clipped to pixel centres."""
    points = np.array(lasso_around(np.ones((10, 30), np.int8)).points)
    assert points.min(axis=0).tolist() == [0, 0]
    assert points.max(axis=0).tolist() == [9, 29]


def test_a_scribble_runs_along_the_object() -> None:
    """A bar of 5 x 60: a stroke on its axis that spans most of its length."""
    truth = np.zeros((30, 90), np.int8)
    truth[10:15, 10:70] = 1
    points = np.array(scribble_in(truth).points)
    assert points[:, 0].tolist() == [12.0] * len(points)
    assert np.ptp(points[:, 1]) > 30


def test_a_scribble_stays_inside_a_ring() -> None:
    """No straight line across the hole."""
    rows, cols = np.ogrid[:101, :101]
    ring = (np.hypot(rows - 50, cols - 50) < 45) & (np.hypot(rows - 50, cols - 50) > 33)
    points = np.array(scribble_in(ring.astype(np.int8)).points)
    steps = np.linspace(0, 1, 50)[:, None, None]
    line = np.rint(points[:-1] + steps * (points[1:] - points[:-1])).astype(int).reshape(-1, 2)
    assert ring[line[:, 0], line[:, 1]].all()


@pytest.mark.parametrize("kind", FIRST_PROMPTS)
def test_every_first_prompt_works_on_one_pixel(kind: str) -> None:
    """The smallest object, in a corner."""
    truth = np.zeros((7, 7), np.int8)
    truth[6, 6] = 1
    prompt = FIRST_PROMPTS[kind](truth)
    run = annotate(lambda prompts, previous: FakePrediction(truth == 1), truth, first=prompt)
    assert (run.prompts, run.ious.tolist()) == ((prompt,), [1.0])


@pytest.mark.parametrize("draw", [box_around, lasso_around, scribble_in])
def test_nothing_can_be_drawn_around_no_object(draw: object) -> None:
    """The message names the value that was looked for."""
    with pytest.raises(ValueError, match=r"truth of shape \(4, 4\) has no pixel of value 1"):
        draw(np.zeros((4, 4), np.int8))  # type: ignore[operator]


def test_an_annotation_needs_an_object() -> None:
    """An empty truth has nothing to annotate."""
    with pytest.raises(ValueError, match=r"truth of shape \(4, 4\) has no pixel of value 1"):
        annotate(lambda prompts, previous: FakePrediction(np.zeros((4, 4), bool)), np.zeros((4, 4), np.int8))


def test_an_annotation_needs_a_click(disk: np.ndarray) -> None:
    """max_clicks is the length of the curve."""
    with pytest.raises(ValueError, match="max_clicks must be at least 1, got 0"):
        annotate(NearestClick((80, 100)), disk, max_clicks=0)


def test_truth_and_mask_must_have_one_shape(disk: np.ndarray) -> None:
    """Both shapes are named."""
    with pytest.raises(ValueError, match=r"one shape, got \(80, 100\) and \(80, 99\)"):
        next_click(disk, np.zeros((80, 99), bool))
