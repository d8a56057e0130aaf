"""What corrections change, on squares of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fakes import FakePrediction
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.evaluation.analysis.robustness import ClickRun, corrections, far_changes, misbehaviour
from napari_lowlat_seg.evaluation.metrics import iou

SHAPE = (40, 60)


def square(*corners: tuple[int, int], side: int = 10) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for row, col in corners:
        mask[row : row + side, col : col + side] = True
    return mask


@pytest.fixture
def truth() -> np.ndarray:
    """Two squares, so that a far change may be right."""
    return square((10, 10), (10, 40)).astype(np.int8)


def run(truth: np.ndarray, clicks: Sequence[Click], masks: Sequence[np.ndarray]) -> ClickRun:
    ious = np.array([iou(truth, mask) for mask in masks], np.float32)
    return ClickRun(truth, tuple(clicks), tuple(FakePrediction(mask) for mask in masks), ious)


def test_a_run_records_clicks_and_masks(truth: np.ndarray) -> None:
    """Once the annotator is content the IoU stays."""
    masks = iter([square((10, 10)), truth == 1])

    def predict(prompts: tuple[Prompt, ...], previous: Any) -> FakePrediction:
        return FakePrediction(next(masks))

    found = ClickRun.of(predict, truth, 8)
    assert [click.at for click in found.clicks] == [(14, 14), (14, 44)]
    assert [int(answer.mask.sum()) for answer in found.predictions] == [100, 200]
    assert [found.after(k) for k in (1, 2, 8)] == [0.5, 1, 1]


def test_a_run_may_begin_with_another_click(truth: np.ndarray) -> None:
    """With a first click of one's own."""
    begin = Click((11, 11))
    assert ClickRun.of(lambda prompts, previous: FakePrediction(truth == 1), truth, 8, begin).clicks == (
        begin,
    )


def test_a_change_is_near_where_any_of_its_pixels_is(truth: np.ndarray) -> None:
    """Regions count whole, corners join them, and the reach is inclusive."""
    before, after = square((0, 0), side=2), square((2, 2), (10, 40))
    after[38, 2] = True
    far = far_changes(before, after, (12, 45), reach=3)
    assert far[0, 0]
    assert far[38, 2]
    assert not far[10:20, 40:50].any()
    near = far_changes(before, after, (14, 2), reach=3)
    assert not near[:12, :12].any()  # the old corner hangs on the new square
    assert far_changes(before, after, (15, 2), reach=3)[0, 0]


def test_nothing_changed_is_nothing_far(truth: np.ndarray) -> None:
    """Two equal masks, and two empty ones."""
    for mask in (square((3, 3)), np.zeros(SHAPE, bool)):
        assert not far_changes(mask, mask, (0, 0), reach=1).any()


def test_far_changes_are_weighted_by_the_iou_they_gain(truth: np.ndarray) -> None:
    """One far repair, one far break, one fall; shares and gains are sums over corrections."""
    left, both = square((10, 10)), truth == 1
    broken = left | square((25, 30))  # far from the click and wrong, nothing near
    found = corrections(run(truth, [Click((14, 14))] * 4, [left, both, left, broken]))
    assert (found["corrections"], found["falls"]) == (3, 2)
    assert found["far share"] == 3.0
    assert found["far gain"] == pytest.approx(0.5 - 0.5 + 1 / 3 - 1 / 2)


def test_a_change_at_the_click_is_not_far(truth: np.ndarray) -> None:
    """Within eight pixels, however thin the object."""
    found = corrections(run(truth, [Click((14, 14)), Click((14, 44))], [square((10, 10)), truth == 1]))
    assert (found["far share"], found["far gain"], found["falls"]) == (0, 0, 0)


def test_half_of_a_change_is_far(truth: np.ndarray) -> None:
    """A square at the click and one that is not."""
    masks = [np.zeros(SHAPE, bool), truth == 1]
    found = corrections(run(truth, [Click((14, 14)), Click((14, 44))], masks))
    assert (found["far share"], found["far gain"]) == (0.5, 0.5)


def test_one_click_has_no_corrections(truth: np.ndarray) -> None:
    """All sums are 0."""
    assert set(corrections(run(truth, [Click((14, 14))], [truth == 1])).values()) == {0}


def test_misbehaviour_counts_masks_turned_inside_out_and_disobedience(truth: np.ndarray) -> None:
    """The mask of what is not the object; a positive click that is outside, a negative one inside."""
    right = truth == 1
    clicks = [Click((14, 14)), Click((14, 14)), Click((0, 0), positive=False), Click((0, 0), positive=False)]
    found = misbehaviour([run(truth, clicks[:2], [right, ~right]), run(truth, clicks[2:], [right, ~right])])
    assert found == {"answers": 4, "complement": 2, "inside out": 2, "disobeyed": 2}


def test_a_small_part_is_not_inside_out() -> None:
    """Though all the rest of the plane has more of a large object; ignored pixels count nowhere."""
    truth = np.zeros(SHAPE, np.int8)
    truth[:, :40], truth[:20, :40] = -1, 1
    found = misbehaviour([run(truth, [Click((4, 4))], [square((0, 0), side=5)])])
    assert found == {"answers": 1, "complement": 1, "inside out": 0, "disobeyed": 0}
