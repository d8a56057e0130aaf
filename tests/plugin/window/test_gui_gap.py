"""The program that measures how long a window stands still; it asserts no time itself."""

import numpy as np

from napari_lowlat_seg.core.requests import PlaneSource
from napari_lowlat_seg.plugin.window.gui_gap import Measured, Pretender, load_busy


def test_a_row_says_what_the_gaps_were() -> None:
    """Median, 99th percentile, maximum, share of time in long gaps, medians and number of the work."""
    measured = Measured([10.0] * 50 + [500.0], [1000.0, 2000.0], [80.0, 90.0, 70.0])
    assert measured.row() == "10.0 | 255 | 500 | 50.0 | 1500 | 80 | 3"


def test_nothing_done_is_told_as_nothing() -> None:
    """A window alone embeds nothing."""
    assert Measured([5.0, 5.0]).row() == "5.0 | 5 | 5 | 0.0 | - | - | 0"


def test_a_pretender_spends_its_time_once_for_a_plane() -> None:
    """It has the doors of a responder."""
    spent: list[float] = []
    pretender = Pretender("idle", spent.append, 3.0, 1.0)
    source = PlaneSource(1, lambda: np.zeros((2, 2)))
    assert pretender.embed(source) > 0
    assert pretender.embed(source) == 0.0
    ((answer, final),) = pretender.predict(None, source)  # type: ignore[arg-type]
    assert spent == [3.0, 1.0]
    assert (answer.quality, final) == (None, True)


def test_a_pretender_says_its_name() -> None:
    """As any responder says its model."""
    assert load_busy("default", "cpu").describe()["model"] == "busy"
