"""Timing of the finished widget; these tests assert no time."""

import numpy as np

from benchmarks.window import on_screen
from benchmarks.window.common import load_busy


def test_accepting_is_printed_beside_naparis_own_way(capsys) -> None:
    """Both write the same pixels."""
    on_screen.time_accepting(1200)
    printed = capsys.readouterr().out
    assert "pixels of (50, 1200, 1200)" in printed
    assert "accept " in printed
    assert "data_setitem " in printed


def test_clicks_are_painted_and_gaps_are_counted(make_napari_viewer, qtbot, monkeypatch) -> None:
    """On a small image and without a network, as the program does it on a large one."""
    monkeypatch.setattr("napari_lowlat_seg.plugin.widget.open_prediction_service", load_busy)
    window = on_screen.Window(np.tile(np.arange(96, dtype=np.uint8), (3, 96, 1)))
    try:
        window.load("busy")
        first, last = on_screen.time_clicks(window, 1)
        assert len(first) == len(last) == on_screen.CLICKS
        assert all(one <= other for one, other in zip(first, last, strict=True))
        assert window.paints
        assert window.controller.plane.position == 0
        assert len(on_screen.measure_gaps(window, 1.0)) > 1
    finally:
        window.viewer.close()
