"""Timing of a window that stands still; these tests assert no time."""

from types import SimpleNamespace

import numpy as np
from psygnal import Signal

from benchmarks.window.gui_gap import BusyUser, Timings
from napari_lowlat_seg.core.masks import SoftMask


def test_a_row_holds_the_gaps_statistics() -> None:
    """Median, 99th percentile, maximum, share of time in long gaps, medians and number of the work."""
    timings = Timings([10.0] * 50 + [500.0], [1000.0, 2000.0], [80.0, 90.0, 70.0])
    assert timings.row() == "10.0 | 255 | 500 | 50.0 | 1500 | 80 | 3"


def test_a_row_without_work_has_dashes() -> None:
    """A window alone embeds nothing."""
    assert Timings([5.0, 5.0]).row() == "5.0 | 5 | 5 | 0.0 | - | - | 0"


class FakeWorker:
    """Records requests; the test emits its signals."""

    idle, embedded, predicted = Signal(), Signal(object, float), Signal(object, object, bool, float)
    busy = False

    def __init__(self) -> None:
        self.asked: list[SimpleNamespace] = []

    def predict(self, request, source) -> None:
        self.asked.append(SimpleNamespace(request=request, source=source))


def test_a_user_clicks_three_times_on_a_plane_and_goes_on(qtbot) -> None:
    """With the newest mask fed back; a plane's first click waits for the embedding and is not timed."""
    worker, mask = FakeWorker(), SoftMask.from_mask(np.ones((4, 4), bool))
    user, timings = BusyUser(worker, np.zeros((2, 4, 4))), Timings()
    user.start(timings)
    for _ in range(4):
        worker.predicted.emit(None, mask, True, 0.25)
        worker.idle.emit()
    worker.embedded.emit(None, 0.5)
    user.stop()
    worker.idle.emit()
    assert [len(one.request.prompts) for one in worker.asked] == [1, 2, 3, 1, 2]
    assert [one.request.plane.position for one in worker.asked] == [0, 0, 0, 1, 1]
    assert [one.request.previous is mask for one in worker.asked] == [False, True, True, False, True]
    assert (timings.embeddings, timings.clicks) == ([500.0], [250.0, 250.0])
