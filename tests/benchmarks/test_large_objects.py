"""Times of answers for large objects: one row for each click after the first."""

from __future__ import annotations

import numpy as np

from benchmarks.large_objects import CLICKS, times
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.runtime import Runtime
from small_memory import small_network


def test_a_row_for_each_click_after_the_first() -> None:
    """The final answer never comes before the first; an untrained network is corrected to the end."""
    truth = np.zeros((48, 64), np.int8)
    truth[8:40, 10:50] = 1
    image = np.where(truth, 180, 60).astype(np.uint8)
    rows = times(Predictor(small_network(), Runtime()), image, truth)
    assert len(rows) == CLICKS - 1
    assert all(0 < first <= final and 0 <= iou < 1 for first, final, iou in rows)
