"""Points from tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.points import read_points


def test_points_that_napari_has_saved_are_read(tmp_path: Path) -> None:
    """Header and index are passed over."""
    path = tmp_path / "p.csv"
    path.write_text("index,axis-0,axis-1,axis-2\n0,1.0,2.5,3.0\n1,0,0,0\n")
    volume = Volume(np.zeros((3, 4, 5), np.uint8))
    assert read_points(path, volume) == [(1, 2.5, 3), (0, 0, 0)]
    path.write_text("axis-0,axis-1,axis-2\n1.0,2.5,3.0\n")
    assert read_points(path, volume) == [(1, 2.5, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n", r"3 numbers per line, inside a volume of \(3, 4, 5\); got '1,2'"),
        ("1,2,x\n", r"got '1,2,x'"),
        ("1,2,9\n", r"got '1,2,9'"),
        ("\n", r"must hold at least one point; it has none"),
    ],
)
def test_other_points_are_refused(tmp_path: Path, text: str, message: str) -> None:
    """With the line that is wrong."""
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_points(path, Volume(np.zeros((3, 4, 5), np.uint8)))
