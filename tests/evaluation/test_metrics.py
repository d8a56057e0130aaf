"""IoU and numbers of clicks against recorded values; scores of label images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_lowlat_seg.cli import app
from napari_lowlat_seg.evaluation.metrics import iou, label_scores, miou_at_k, noc, nof

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluation.npz"
CASES = ("ellipse_hole", "two_blobs", "with_ignore", "thin_cross", "tiny_corners")
TRUTH = np.repeat([1, 2, 3, 0], [10, 10, 2, 8])


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN))


def test_iou_equals_the_recorded_one(golden: dict[str, np.ndarray]) -> None:
    """With a band of ignored pixels."""
    assert iou(golden["iou_gt"], golden["iou_pred"]) == golden["iou_value"]


def test_iou_of_two_empty_masks_is_one() -> None:
    """Nothing wanted, nothing drawn."""
    assert iou(np.zeros((3, 3), np.int8), np.zeros((3, 3), bool)) == 1.0


def test_metrics_equal_the_recorded_ones(golden: dict[str, np.ndarray]) -> None:
    """NoC, NoF and k-mIoU of 32 synthetic curves and of the five shapes."""
    curves = golden["syn_ious"]
    shapes = np.stack([golden[f"ious_{case}"] for case in CASES])
    assert [noc(curves, t).mean() for t in golden["syn_thr"]] == golden["syn_noc"].tolist()
    assert [noc(curves, t).std() for t in golden["syn_thr"]] == golden["syn_noc_std"].tolist()
    assert [nof(curves, t) for t in golden["syn_thr"]] == golden["syn_nof"].tolist()
    assert miou_at_k(curves) == pytest.approx(golden["syn_miou_at_k"], abs=1e-6)
    assert [noc(shapes, t).mean() for t in (0.85, 0.9, 0.95)] == golden["nearest_noc"].tolist()
    assert [nof(shapes, t) for t in (0.85, 0.9, 0.95)] == golden["nearest_nof"].tolist()


def test_metrics_need_curves() -> None:
    """A flat list of IoUs is refused with its shape."""
    with pytest.raises(ValueError, match=r"shape \(objects, clicks\).*got \(3,\)"):
        noc(np.ones(3), 0.9)


def test_the_same_labels_are_perfect_whatever_their_numbers() -> None:
    """The numbers of labels do not matter."""
    scores = label_scores(np.array([0, 7, 5, 9])[TRUTH], TRUTH)
    assert scores == pytest.approx(
        {"objects": 3, "found": 3, "recall_50": 1, "recall_75": 1, "precision_50": 1, "quality": 1, "dice": 1,
         "rand_error": 0, "covered": 22 / 30}
    )  # fmt: skip


def test_each_kind_of_mistake_lowers_its_score() -> None:
    """One matched with IoU .6, one torn apart, one so small that it need not be found."""
    found = np.repeat([1, 0, 2, 3, 0], [6, 4, 5, 5, 10])
    scores = label_scores(found, TRUTH, least=5)
    expected = {"objects": 2, "found": 3, "recall_50": 0.5, "recall_75": 0, "precision_50": 1 / 3}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert scores["quality"] == pytest.approx(0.6 / (1 + 0.5 + 1))
    assert scores["dice"] == pytest.approx((0.75 + 2 / 3) / 2)
    assert label_scores(np.zeros_like(TRUTH), TRUTH)["quality"] == 0


def test_labels_of_other_shapes_and_empty_references_are_refused() -> None:
    """Both with their values."""
    with pytest.raises(ValueError, match=r"must have the reference's shape \(30,\); got \(3,\)"):
        label_scores(np.zeros(3, int), TRUTH)
    with pytest.raises(ValueError, match=r"needs an object of 11 voxels or more; it has none"):
        label_scores(TRUTH, TRUTH, least=11)


def test_the_command_prints_and_writes_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
