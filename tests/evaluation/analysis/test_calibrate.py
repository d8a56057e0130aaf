"""The correction of predicted IoU: what is fitted, how it is tested, and the file that contains it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.special import expit, logit

from napari_lowlat_seg.evaluation.analysis.calibration import (
    Correction,
    PredictedIous,
    calibrate_model,
    cross_validate,
    fit,
)
from napari_lowlat_seg.models.checkpoints import load_model, save_corrected, save_model
from napari_lowlat_seg.models.compact import Compact, CompactConfig
from napari_lowlat_seg.models.downloads import file_sha256

TINY = CompactConfig(size=256, width=32, heads=2, skip8=16, skip4=8, blocks=1)


def predicted_ious(predicted: Any, true: Any, sets: Any) -> PredictedIous:
    """Answers, whose domains are the first parts of their sets."""
    domains = [one.split("/")[0] for one in sets]
    return PredictedIous(np.array(predicted, float), np.array(true, float), np.array(sets), np.array(domains))


@pytest.fixture
def distorted() -> PredictedIous:
    """Answers of four sets whose true IoU is sigmoid(2 x - 1) of what was predicted."""
    predicted = np.random.default_rng(0).uniform(0.1, 0.95, 120)
    return predicted_ious(predicted, expit(2 * logit(predicted) - 1), ["em/a", "em/b", "med/c", "med/d"] * 30)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compact model of random weights, stored in half precision, with a note."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return save_model(Compact(TINY).eval(), path, half=True, licence="none")


@pytest.fixture
def write(tmp_path: Path, model: Path, distorted: PredictedIous) -> Callable[..., Path]:
    """Write a quality report on the model with curves of one prompt; `changes` replace parts of it."""

    def write(name: str = "report.json", answers: int = 120, **changes: Any) -> Path:
        curves = [
            {"model": "tiny", "form": "one", "group": str(group), "object": str(i), "area": 0.1,
             "ious": [float(true)], "predicted": [float(predicted)]}
            for i, (predicted, true, group) in enumerate(
                zip(distorted.predicted[:answers], distorted.true[:answers], distorted.sets[:answers])
            )
        ]  # fmt: skip
        report = {"kind": "quality", "dataset": "folder", "sha256": {"tiny": file_sha256(model)}}
        report |= {"calibration": [], "curves": curves}
        path = tmp_path / name
        path.write_text(json.dumps(report | changes))
        return path

    return write


def test_a_known_distortion_is_fitted(distorted: PredictedIous) -> None:
    """Slope and shift of the logit, and then nothing is left to correct."""
    found = fit(distorted)
    assert (found.slope, found.shift) == pytest.approx((2, -1), abs=1e-4)
    assert found.of(distorted).predicted == pytest.approx(distorted.true, abs=1e-4)


def test_a_correction_changes_neither_ranks_nor_masks(distorted: PredictedIous) -> None:
    """Only the figure; what it was made of stays as it is."""
    before = distorted.predicted.copy()
    after = Correction(0.5, 2.0).of(distorted)
    assert np.argsort(after.predicted).tolist() == np.argsort(before).tolist()
    assert (after.true is distorted.true, distorted.predicted.tolist()) == (True, before.tolist())


def test_predictions_of_0_and_1_can_be_corrected() -> None:
    """0 and 1 have no logit of their own."""
    found = Correction(1.0, 0.0).of(predicted_ious([0.0, 1.0], [0.5, 0.5], ["a", "a"]))
    assert found.predicted == pytest.approx([0, 1], abs=1e-5)


def test_domains_have_equal_weight(distorted: PredictedIous) -> None:
    """Ten times as many answers of one domain do not move the fit."""
    noisy = predicted_ious(distorted.predicted, np.round(distorted.true, 1), distorted.sets.tolist())
    em = np.flatnonzero(noisy.domains == "em")
    more = noisy.where(np.concatenate([np.arange(len(noisy)), *[em] * 9]))
    assert len(more) == 660
    once, again = fit(noisy), fit(more)
    assert (again.slope, again.shift) == pytest.approx((once.slope, once.shift), abs=1e-3)


def test_sets_are_held_out_in_turn(distorted: PredictedIous) -> None:
    """Every other set, both ways; each is tested on what the other was fitted to."""
    rows = cross_validate(distorted)
    assert [(row["fitted"], row["tested"], row["answers"]) for row in rows] == [
        (["em/a", "med/c"], ["em/b", "med/d"], 60),
        (["em/b", "med/d"], ["em/a", "med/c"], 60),
    ]
    assert all(row["before"]["mae"] > 0.05 > 1e-3 > row["after"]["mae"] for row in rows)


def test_a_correction_need_not_transfer_between_halves(distorted: PredictedIous) -> None:
    """A distortion of one set only: the other is worse off, and the row says so."""
    bad = distorted.where(np.isin(distorted.sets, ["em/a", "em/b"]))
    true = np.where(bad.sets == "em/a", bad.true, bad.predicted)
    first = cross_validate(predicted_ious(bad.predicted, true, bad.sets.tolist()))[0]
    assert first["before"]["mae"] == 0 < first["after"]["mae"]


def test_one_set_cannot_be_cross_validated(distorted: PredictedIous) -> None:
    """No row."""
    assert cross_validate(distorted.where(distorted.sets == "em/a")) == []


@pytest.mark.slow
@torch.inference_mode()
def test_a_calibrated_model_predicts_the_corrected_iou(
    write: Callable[..., Path], model: Path, tmp_path: Path
) -> None:
    """The same masks bit for bit, the same tensors in their type, and a note of where the figure is from."""
    shown: list[str] = []
    out = tmp_path / "calibrated.safetensors"
    found = calibrate_model(model, write(), out, show=shown.append)
    before, after = load_model(model), load_model(out)
    image, maps = torch.rand(1, 3, 256, 256) * 255, (torch.rand(1, 3, 256, 256) > 0.99).float()
    (drawn, plain), (redrawn, corrected) = (
        network.decode(network.fuse(network.encode(image), maps)) for network in (before, after)
    )
    assert torch.equal(drawn, redrawn)
    expected = torch.sigmoid(found.slope * torch.logit(plain) + found.shift)
    torch.testing.assert_close(corrected, expected, rtol=0, atol=1e-5)
    assert (found.slope, found.shift) == pytest.approx((2, -1), abs=1e-4)
    with safe_open(model, "pt") as one, safe_open(out, "pt") as other:
        assert all(torch.equal(one.get_tensor(key), other.get_tensor(key)) for key in one.keys())  # noqa: SIM118
        assert {str(other.get_tensor(key).dtype) for key in other.keys()} == {"torch.float16"}  # noqa: SIM118
        before_notes, notes = one.metadata(), other.metadata()
    assert (notes["licence"], notes["sha256"]) == ("none", before_notes["sha256"])
    assert notes["calibration"] == "fitted to 120 answers on em/a, em/b, med/c, med/d"
    assert [text in shown[0] for text in ("tested on", "em/b", "all sets", "before")] == [True] * 4
    assert f"slope 2.0000, shift -1.0000 on top of what the model had: {out}" in shown[1]


@pytest.mark.slow
def test_a_second_correction_comes_on_top_of_the_first(model: Path, tmp_path: Path) -> None:
    """Three times (2 x + 1), less 1."""
    first = save_corrected(model, tmp_path / "a.safetensors", 2.0, 1.0, "one")
    second = load_model(save_corrected(first, tmp_path / "b.safetensors", 3.0, -1.0, "two"))
    assert isinstance(second, Compact)
    assert (second.config.quality_slope, second.config.quality_shift) == (6.0, 2.0)


def test_nothing_is_shown_with_show_none(write: Callable[..., Path], model: Path, tmp_path: Path) -> None:
    """And the name may be given."""
    calibrate_model(model, write(), tmp_path / "a.safetensors", model_name="tiny", show=None)
    assert (tmp_path / "a.safetensors").is_file()


def test_a_report_of_another_model_is_refused(
    write: Callable[..., Path], model: Path, tmp_path: Path
) -> None:
    """By the sha256 of the file; what has none, such as an ONNX model, is another one too."""
    for known, said in (({"tiny": "abc"}, "abc"), ({"tiny": None}, "None"), ({}, "None")):
        with pytest.raises(
            ValueError, match=rf"is not about .*tiny has sha256 {said} there, and this file has"
        ):
            calibrate_model(model, write(sha256=known), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("name", [None, "mine"])
def test_a_name_is_needed_where_the_report_has_several(
    write: Callable[..., Path], model: Path, tmp_path: Path, name: str | None
) -> None:
    """And it must be one of them."""
    curves = [{"model": one} for one in ("tiny", "other")]
    with pytest.raises(ValueError, match=rf"is about tiny, other; expected one .* got {name or 'none'}"):
        calibrate_model(model, write(curves=curves), tmp_path / "a.safetensors", model_name=name)


def test_an_empty_report_has_no_model(write: Callable[..., Path], model: Path, tmp_path: Path) -> None:
    """Interrupted before the first object."""
    with pytest.raises(ValueError, match="is about no model"):
        calibrate_model(model, write(curves=[]), tmp_path / "a.safetensors")


def test_too_few_predictions_are_refused(write: Callable[..., Path], model: Path, tmp_path: Path) -> None:
    """49, and 50 are enough."""
    with pytest.raises(ValueError, match=r"at least 50 predicted IoUs, and .* has 49 of tiny; run benchmark"):
        calibrate_model(model, write(answers=49), tmp_path / "a.safetensors")
    calibrate_model(model, write(answers=50), tmp_path / "a.safetensors", show=None)


@pytest.mark.parametrize(
    "text", ["{", "[1]", "{}", '{"kind": "latency"}', '{"kind": "quality", "curves": [], "sha256": {}}']
)
def test_files_that_are_no_quality_report_are_refused(model: Path, tmp_path: Path, text: str) -> None:
    """Other files, other reports, and those of earlier versions that do not hold the predictions."""
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"expected the JSON of `benchmark quality` .* got .*r.json; run it"):
        calibrate_model(model, tmp_path / "r.json", tmp_path / "a.safetensors")


def test_a_model_without_predicted_iou_is_refused(
    write: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    """SegNext predicts no IoU; neither does any file that is not ours."""
    report = write(sha256={"tiny": file_sha256(tiny)})
    with pytest.raises(ValueError, match=r"tiny.safetensors predicts no IoU .* only compact models do"):
        calibrate_model(tiny, report, tmp_path / "a.safetensors")
    (tmp_path / "official.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"official.pth predicts no IoU that could be corrected"):
        save_corrected(tmp_path / "official.pth", tmp_path / "a.safetensors", 1.0, 0.0, "")


def test_an_existing_file_is_kept(model: Path, tmp_path: Path) -> None:
    """Nor under a name that is not loaded again."""
    for name in (model, tmp_path / "a.pth"):
        with pytest.raises(
            ValueError, match=r"expected the name of a new .safetensors file, got .*; take another"
        ):
            save_corrected(model, Path(name), 2.0, 0.0, "")


def test_a_correction_out_of_bounds_is_refused(model: Path, tmp_path: Path) -> None:
    """Before anything is written."""
    with pytest.raises(ValueError, match=r"quality_slope must lie in 0.01\.\.100, got 1000"):
        save_corrected(model, tmp_path / "a.safetensors", 1000.0, 0.0, "")
    assert list(tmp_path.iterdir()) == []
