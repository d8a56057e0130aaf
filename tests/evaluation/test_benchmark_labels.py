"""Scores of labels: what is found, how well, and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_lowlat_seg.cli import app
from napari_lowlat_seg.evaluation.benchmark_labels import label_scores

TRUTH = np.repeat([1, 2, 3, 0], [10, 10, 2, 8])


def test_the_same_labels_are_perfect_whatever_their_numbers() -> None:
    """Nothing is covered that need not be."""
    scores = label_scores(np.array([0, 7, 5, 9])[TRUTH], TRUTH)
    assert scores == pytest.approx(
        {"objects": 3, "found": 3, "recall_50": 1, "recall_75": 1, "precision_50": 1, "quality": 1, "dice": 1,
         "rand_error": 0, "covered": 22 / 30}
    )  # fmt: skip


def test_each_mistake_has_its_price() -> None:
    """One met with IoU .6, one torn apart, one so small that it need not be found."""
    found = np.repeat([1, 0, 2, 3, 0], [6, 4, 5, 5, 10])
    scores = label_scores(found, TRUTH, least=5)
    expected = {"objects": 2, "found": 3, "recall_50": 0.5, "recall_75": 0, "precision_50": 1 / 3}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert scores["quality"] == pytest.approx(0.6 / (1 + 0.5 + 1))
    assert scores["dice"] == pytest.approx((0.75 + 2 / 3) / 2)
    assert label_scores(np.zeros_like(TRUTH), TRUTH)["quality"] == 0


def test_what_cannot_be_compared_is_refused() -> None:
    """Shapes and empty references."""
    with pytest.raises(ValueError, match=r"must have the reference's shape \(30,\); got \(3,\)"):
        label_scores(np.zeros(3, int), TRUTH)
    with pytest.raises(ValueError, match=r"needs an object of 11 voxels or more; it has none"):
        label_scores(TRUTH, TRUTH, least=11)


def test_the_command_tells_and_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A label in two pieces counts as two with --parts."""
    truth = np.zeros((10, 10), np.uint8)
    truth[:3], truth[6:] = 1, 1
    tifffile.imwrite(tmp_path / "t.tif", truth)
    tifffile.imwrite(tmp_path / "f.tif", np.where(np.arange(10)[:, None] < 3, truth, 2 * truth))
    arguments = ["benchmark", "labels", str(tmp_path / "f.tif"), str(tmp_path / "t.tif"), "--parts"]
    with pytest.raises(SystemExit) as left:
        app.main([*arguments, "--json", str(tmp_path / "s.json")])
    assert left.value.code == 0
    assert "quality  1.000" in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text())["objects"] == 2
