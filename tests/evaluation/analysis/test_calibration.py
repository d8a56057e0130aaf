"""Predicted IoU against the true one: which answers count, how wrong they are, rows, table and plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lowlat_seg.evaluation.analysis.calibration import (
    BINS,
    PredictedIous,
    calibration_table,
    calibrations,
    measures,
    reliability,
    save_calibration_plot,
)
from napari_lowlat_seg.evaluation.report import Curve


def predicted_ious(predicted: Any, true: Any) -> PredictedIous:
    """Answers of one set."""
    places = np.array(["em/a"] * len(predicted))
    return PredictedIous(np.array(predicted, float), np.array(true, float), places, places)


@pytest.fixture
def curves() -> list[Curve]:
    """Two models on three objects of two domains; the second predicts no IoU, one curve is short."""
    return [
        Curve("ours", "one", "em/a", "1", 0.1, (0.5, 0.6, 0.7, 0.8, 0.9), (0.6, 0.1, 0.7, 0.1, 0.8)),
        Curve("other", "one", "em/a", "1", 0.1, (0.5, 0.6, 0.7, 0.8, 0.9), (None,) * 5),
        Curve("ours", "one", "em/b", "2", 0.1, (0.4, 1.0, 1.0, 1.0, 1.0), (0.3, 0.9, None, None, None)),
        Curve("ours", "one", "med/c", "3", 0.1, (0.2, 0.3, 0.4, 0.5, 0.6), (0.4, 0.0, 0.5, 0.0, 0.9)),
    ]


@pytest.fixture
def report(curves: list[Curve]) -> dict[str, Any]:
    return {
        "dataset": "folder",
        "max_clicks": 5,
        "curves": curves,
        "calibration": calibrations(curves, "folder"),
    }


def test_the_predictions_after_prompts_1_3_5_10_and_20_count(curves: list[Curve]) -> None:
    """None after nothing was left to correct, none of a model that predicts no IoU."""
    found = PredictedIous.of(curves[:1] + curves[2:], "folder")
    assert found.predicted.tolist() == [0.6, 0.7, 0.8, 0.3, 0.4, 0.5, 0.9]
    assert found.true.tolist() == [0.5, 0.7, 0.9, 0.4, 0.2, 0.4, 0.6]
    assert found.sets.tolist() == ["em/a"] * 3 + ["em/b"] + ["med/c"] * 3
    assert found.domains.tolist() == ["em"] * 4 + ["med"] * 3
    assert len(PredictedIous.of(curves[1:2], "folder")) == 0
    assert len(PredictedIous.of([Curve("old", "one", "em", "1", 0.1, (0.5,))], "folder")) == 0


def test_long_curves_count_at_10_and_20() -> None:
    """Five answers of twenty."""
    steps = tuple(i / 20 for i in range(1, 21))
    found = PredictedIous.of([Curve("m", "one", "s", "1", 0.1, steps, steps)], "sstem")
    assert found.predicted.tolist() == [0.05, 0.15, 0.25, 0.5, 1.0]
    assert set(found.domains.tolist()) == {"sstem"}


def test_errors_equal_those_computed_by_hand() -> None:
    """Two answers of one bin whose errors cancel, and one of another that is too sure."""
    found = measures(predicted_ious([0.62, 0.68, 0.95], [0.7, 0.6, 0.75]))
    assert found == {
        "mae": pytest.approx((0.08 + 0.08 + 0.2) / 3),
        "ece": pytest.approx(0.2 / 3),
        "bias": pytest.approx(0.2 / 3),
        "spearman": pytest.approx(0.5),
    }


def test_the_calibration_error_is_that_of_a_loop_over_bins() -> None:
    """On random answers, against the definition written down naively."""
    dice = np.random.default_rng(0)
    predicted, true = dice.random(500), dice.random(500)
    expected = 0.0
    for i in range(BINS):
        inside = [k for k in range(500) if i / BINS <= predicted[k] < (i + 1) / BINS]
        gap = abs(sum(predicted[k] for k in inside) - sum(true[k] for k in inside))
        expected += gap / 500
    assert measures(predicted_ious(predicted, true))["ece"] == pytest.approx(expected)


def test_perfect_predictions_have_no_error() -> None:
    """And the right order."""
    assert measures(predicted_ious([0.1, 0.5, 0.9], [0.1, 0.5, 0.9])) == {
        "mae": 0.0,
        "ece": 0.0,
        "bias": 0.0,
        "spearman": pytest.approx(1.0),
    }


@pytest.mark.parametrize(
    ("predicted", "true"), [([0.5, 0.5], [0.2, 0.9]), ([0.5, 0.6], [1, 1]), ([0.5], [1])]
)
def test_constant_values_have_no_rank_correlation(predicted: list[float], true: list[float]) -> None:
    """None rather than NaN, which JSON does not know."""
    assert measures(predicted_ious(predicted, true))["spearman"] is None


def test_no_predictions_have_no_errors() -> None:
    """None for everything."""
    assert measures(predicted_ious([], [])) == {"mae": None, "ece": None, "bias": None, "spearman": None}


def test_edges_belong_to_the_bin_above_and_1_to_the_last() -> None:
    """Predictions beyond 0..1 count in the outermost bins."""
    found = reliability(predicted_ious([-0.1, 0.0, 0.5, 0.55, 1.0, 1.1], [0, 0.2, 0.4, 0.6, 0.8, 1]))
    assert found == [
        pytest.approx((-0.05, 0.1, 2)),
        pytest.approx((0.525, 0.5, 2)),
        pytest.approx((1.05, 0.9, 2)),
    ]


def test_rows_are_by_domain_and_all(curves: list[Curve]) -> None:
    """Of models that predict their IoU; a data set that is no folder is one domain."""
    rows = calibrations(curves, "folder")
    assert [(row["model"], row["group"], row["answers"]) for row in rows] == [
        ("ours", "em", 4),
        ("ours", "med", 3),
        ("ours", "all objects", 7),
    ]
    assert rows[1]["bias"] == pytest.approx((0.2 + 0.1 + 0.3) / 3)
    assert [row["group"] for row in calibrations(curves, "hqseg44k")] == ["hqseg44k", "all objects"]
    assert calibrations(curves[1:2], "folder") == []


def test_a_table_names_the_prompts_that_counted(report: dict[str, Any]) -> None:
    """And has a dash where there are too few predictions."""
    table = calibration_table(report)
    for text in ("after prompts 1, 3, 5\n", "ECE", "Spearman", "med", "all objects", "0.200"):
        assert text in table
    row = {"model": "m", "group": "em", "answers": 1, "mae": 0.1, "ece": 0.1, "bias": 0.1, "spearman": None}
    assert " - " in calibration_table({**report, "calibration": [row]})


@pytest.mark.slow
def test_a_plot_has_a_panel_a_domain(report: dict[str, Any], tmp_path: Path) -> None:
    """And one of all objects where there are several; a model without a part leaves its panel to others."""
    pytest.importorskip("matplotlib")
    save_calibration_plot(report, tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_text().count('id="axes_') == 3
    curves = [*report["curves"], Curve("third", "one", "em/a", "1", 0.1, (0.5,), (0.5,))]
    more = {**report, "curves": curves, "calibration": calibrations(curves, "folder")}
    save_calibration_plot(more, tmp_path / "more.svg")
    assert (tmp_path / "more.svg").read_text().count('id="axes_') == 3
    one = {**report, "dataset": "sstem", "calibration": calibrations(curves, "sstem")}
    save_calibration_plot(one, tmp_path / "one.svg")
    assert (tmp_path / "one.svg").read_text().count('id="axes_') == 1
