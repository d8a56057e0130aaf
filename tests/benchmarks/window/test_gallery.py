"""Recordings of the documentation's window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.window import gallery


@pytest.fixture
def frames() -> list[tuple[Image.Image, int]]:
    """Three different ones."""
    return [(Image.fromarray(np.full((86, 135, 3), 80 * i, np.uint8)), 100 * (i + 1)) for i in range(3)]


def test_a_recording_has_all_frames(frames: list[tuple[Image.Image, int]], tmp_path: Path) -> None:
    """In their order, each as long as it was meant."""
    gallery.save_recording(frames, tmp_path / "r.webp")
    with Image.open(tmp_path / "r.webp") as made:
        assert (made.n_frames, made.width) == (3, 1000)
        made.seek(2)
        assert np.asarray(made.convert("RGB")).mean() == pytest.approx(160, abs=3)
        assert made.info["duration"] == 300


def test_a_recording_that_stays_too_large_is_refused(
    frames: list[tuple[Image.Image, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every smaller size was tried."""
    monkeypatch.setattr(gallery, "LARGEST", 10)
    with pytest.raises(RuntimeError, match=r"r\.webp has \d+ bytes, more than 10; record fewer frames"):
        gallery.save_recording(frames, tmp_path / "r.webp")
