"""Progress on terminals and in logs."""

from __future__ import annotations

import io
import sys

import pytest

from napari_lowlat_seg.batch import progress as module
from napari_lowlat_seg.batch.progress import progress


class Terminal(io.StringIO):
    """What a terminal shows."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the total."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(3, "plane") as bar:
        bar.update(3)
    assert "3/3" in sys.stderr.getvalue()
    assert "\r" in sys.stderr.getvalue()


def test_a_log_gets_lines_with_a_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each step here, because no time must pass between two of them."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(module, "QUIET", 0.0)
    with progress(2, "plane") as bar:
        bar.update()
        bar.update()
    lines = sys.stderr.getvalue().splitlines()
    assert len(lines) > 1
    assert lines[-1].startswith("2/2 plane [")
    assert "\r" not in sys.stderr.getvalue()


def test_short_work_leaves_a_log_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is printed before `QUIET` seconds."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress(2, "plane") as bar:
        bar.update(2)
    assert sys.stderr.getvalue() == ""
