"""Calibration of the predicted IoU: its error, bias and rank correlation with the true one, and a correction.

The predictions after prompts 1, 3, 5, 10 and 20 count, as far as they were made. The true IoU is the
benchmark's, so pixels that the truth ignores are ignored here too. The correction is Platt scaling (Platt,
"Probabilistic Outputs for Support Vector Machines", 1999, section 2) fitted to IoU by least squares.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit, logit
from scipy.stats import spearmanr

from napari_lowlat_seg.evaluation.report import (
    ALL,
    KS,
    Curve,
    domain_of,
    number,
    plotting,
    save_figure,
    table,
)
from napari_lowlat_seg.models.checkpoints import model_path, save_corrected
from napari_lowlat_seg.models.compact import BOUNDS
from napari_lowlat_seg.models.downloads import file_sha256

BINS = 10
"""Bins of equal width over predicted IoU 0..1."""

MEASURES = {"mae": "MAE", "ece": "ECE", "bias": "bias", "spearman": "Spearman"}


@dataclass(frozen=True, eq=False)
class PredictedIous:
    """Predicted and true IoU of N masks of one model.

    Attributes
    ----------
    predicted, true
        (N,) float64 in [0, 1].
    sets, domains
        (N,) str, the set and the domain of each mask's object.
    """

    predicted: np.ndarray
    true: np.ndarray
    sets: np.ndarray
    domains: np.ndarray

    @classmethod
    def of(cls, curves: Sequence[Curve], dataset: str) -> PredictedIous:
        """Collect them from the curves of one model, after prompts 1, 3, 5, 10 and 20."""
        found = [
            (curve.predicted[k - 1], curve.ious[k - 1], curve.group, domain_of(curve.group, dataset))
            for curve in curves
            for k in KS
            if k <= len(curve.predicted) and curve.predicted[k - 1] is not None
        ]
        predicted, true, sets, domains = zip(*found) if found else ((), (), (), ())
        return cls(np.array(predicted, float), np.array(true, float), np.array(sets), np.array(domains))

    def where(self, keep: np.ndarray) -> PredictedIous:
        """Return those that a boolean (N,) keeps."""
        return PredictedIous(self.predicted[keep], self.true[keep], self.sets[keep], self.domains[keep])

    def __len__(self) -> int:
        return len(self.predicted)


def measures(ious: PredictedIous) -> dict[str, float | None]:
    """Return errors of the predicted IoU, all in units of IoU; None where there are too few predictions.

    Returns
    -------
    dict
        "mae": mean absolute error; "ece": expected calibration error, the distance of mean predicted and mean
        true IoU averaged over bins by their counts (Guo et al., "On Calibration of Modern Neural Networks",
        ICML 2017, eq. 3, with IoU for accuracy); "bias": mean of predicted - true, positive is overconfident;
        "spearman": rank correlation, None where one side is constant.
    """
    if not len(ious):
        return dict.fromkeys(MEASURES)
    wrong = ious.predicted - ious.true
    varied = np.ptp(ious.predicted) > 0 and np.ptp(ious.true) > 0
    gaps = [count * abs(predicted - true) for predicted, true, count in reliability(ious)]
    return {
        "mae": float(np.abs(wrong).mean()),
        "ece": float(sum(gaps) / len(ious)),
        "bias": float(wrong.mean()),
        "spearman": float(spearmanr(ious.predicted, ious.true).statistic) if varied else None,
    }


def reliability(ious: PredictedIous) -> list[tuple[float, float, int]]:
    """Return (mean predicted, mean true, count) of every bin with any; an edge belongs to the bin above."""
    place = np.clip((ious.predicted * BINS).astype(int), 0, BINS - 1)
    return [
        (float(ious.predicted[place == i].mean()), float(ious.true[place == i].mean()), int(count))
        for i, count in enumerate(np.bincount(place, minlength=BINS))
        if count
    ]


def calibrations(curves: Sequence[Curve], dataset: str) -> list[dict[str, Any]]:
    """Return a row for each model that predicts its IoU and each domain, then all objects together.

    A row has "model", "group" (the domain), "answers" (their number), and the keys of `measures`.
    """
    rows = []
    for model in dict.fromkeys(curve.model for curve in curves):
        ious = PredictedIous.of([curve for curve in curves if curve.model == model], dataset)
        rows += [
            {"model": model, "group": group, "answers": len(part), **measures(part)}
            for group, part in _parts(ious)
        ]
    return rows


def _parts(ious: PredictedIous) -> list[tuple[str, PredictedIous]]:
    """By domain in their order, and all; nothing if there are no predictions."""
    domains = list(dict.fromkeys(ious.domains.tolist()))
    parts = [(domain, ious.where(ious.domains == domain)) for domain in domains]
    return [*parts, (ALL, ious)] if parts else []


def calibration_table(report: Mapping[str, Any]) -> str:
    """Return the calibration rows of a quality report as a plain-text table."""
    counted = ", ".join(str(k) for k in KS if k <= report["max_clicks"])
    return table(
        f"predicted IoU against the true one, after prompts {counted}",
        ("model", "domain", "predictions", *MEASURES.values()),
        [(row["model"], row["group"], row["answers"], *_cells(row)) for row in report["calibration"]],
        text=("model", "domain"),
        merged=1,
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [number(row[key], ".3f") for key in MEASURES]


def save_calibration_plot(report: Mapping[str, Any], path: str | Path) -> None:
    """Plot mean true against mean predicted IoU by bins, a panel a domain; larger dots for more predictions.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    figure_of = plotting()
    rows = report["calibration"]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    panels = [ALL, *(group for group in groups if group != ALL)] if len(groups) > 2 else groups[:1]
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = figure_of(figsize=(3.2 * across, 3.2 * down + 0.6), layout="constrained")
    for place, group in enumerate(panels, 1):
        axes = figure.add_subplot(down, across, place, aspect="equal", xlim=(0, 1), ylim=(0, 1))
        axes.plot([0, 1], [0, 1], "k:", linewidth=1)
        for colour, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
            curves = [curve for curve in report["curves"] if curve.model == model]
            part = dict(_parts(PredictedIous.of(curves, report["dataset"]))).get(group)
            if part is None:
                continue
            predicted, true, counts = zip(*reliability(part))
            axes.plot(predicted, true, color=f"C{colour}", linewidth=1, label=model)
            sizes = 8 + 300 * np.array(counts) / len(part)
            axes.scatter(predicted, true, sizes, color=f"C{colour}", alpha=0.6, linewidths=0)
        axes.set_title(group, fontsize=9)
        axes.set_xlabel("predicted IoU", fontsize=8)
        axes.set_ylabel("true IoU", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    save_figure(figure, path, f"{report['dataset']}: predicted and true IoU; larger dots, more predictions")


MIN_PREDICTIONS = 50
"""Least number of predictions that a correction is fitted to."""

MARGIN = 1e-6
"""Predictions are clipped to this distance from 0 and 1, whose logits are infinite."""


@dataclass(frozen=True)
class Correction:
    """Predicted IoU becomes sigmoid(slope * x + shift), with x its logit."""

    slope: float = 1.0
    shift: float = 0.0

    def of(self, ious: PredictedIous) -> PredictedIous:
        """Return the same masks with corrected predictions."""
        corrected = expit(self.slope * _logits(ious) + self.shift)
        return PredictedIous(corrected, ious.true, ious.sets, ious.domains)


def fit(ious: PredictedIous) -> Correction:
    """Return the correction of least squared error, with equal weight for each domain."""
    names, place, counts = np.unique(ious.domains, return_inverse=True, return_counts=True)
    weights = np.sqrt(1 / (len(names) * counts[place]))
    logits = _logits(ious)
    found = least_squares(
        lambda x: weights * (expit(x[0] * logits + x[1]) - ious.true),
        (1.0, 0.0),
        bounds=tuple(zip(BOUNDS["quality_slope"], BOUNDS["quality_shift"])),
    )
    return Correction(float(found.x[0]), float(found.x[1]))


def _logits(ious: PredictedIous) -> np.ndarray:
    logits: np.ndarray = logit(np.clip(ious.predicted, MARGIN, 1 - MARGIN))
    return logits


def cross_validate(ious: PredictedIous) -> list[dict[str, Any]]:
    """Fit on every other set and test on the rest, and the other way round; no rows if there is one set only.

    A row has "fitted" and "tested" (names of sets), "correction", "answers" (number tested on), and the
    `measures` "before" and "after". Sets are taken in the order of the report.
    """
    sets = list(dict.fromkeys(ious.sets.tolist()))
    if len(sets) < 2:
        return []
    rows = []
    for fitted, tested in ((sets[::2], sets[1::2]), (sets[1::2], sets[::2])):
        correction = fit(ious.where(np.isin(ious.sets, fitted)))
        rest = ious.where(np.isin(ious.sets, tested))
        rows.append(
            {
                "fitted": fitted,
                "tested": tested,
                "correction": correction,
                "answers": len(rest),
                "before": measures(rest),
                "after": measures(correction.of(rest)),
            }
        )
    return rows


def calibrate_model(
    model: str | Path,
    report: Path,
    out: Path,
    *,
    model_name: str | None = None,
    show: Callable[[str], None] | None = print,
) -> Correction:
    """Fit a correction to a quality report and write the model with it.

    Parameters
    ----------
    model
        Name or file of the model in the report.
    report
        A JSON file of `benchmark quality`.
    out
        The .safetensors file to write, which must be new.
    model_name
        The model's name in the report; may be left out if there is one only.
    show
        Called with the tables as text; None for silence.

    Returns
    -------
    Correction
        Of the IoU that the model predicted in the report.

    Raises
    ------
    ValueError
        For a file that is no such report, a report of another model or of too few answers, and
        as `save_corrected`.
    """
    content = _read_report(report)
    name = _model_in(content, report, model_name)
    digest = file_sha256(model_path(str(model)))
    if content["sha256"].get(name) != digest:
        raise ValueError(
            f"{report} is not about {model}: {name} has sha256 {content['sha256'].get(name)} there, and this "
            f"file has {digest}; run benchmark quality with this model"
        )
    ious = PredictedIous.of(_curves_of(content, report, name), content["dataset"])
    if len(ious) < MIN_PREDICTIONS:
        raise ValueError(
            f"a correction is fitted to at least {MIN_PREDICTIONS} predicted IoUs, and {report} has "
            f"{len(ious)} of {name}; run benchmark quality with more objects, or with a model that predicts "
            "its IoU"
        )
    correction = fit(ious)
    note = f"fitted to {len(ious)} answers on {', '.join(dict.fromkeys(ious.sets.tolist()))}"
    save_corrected(model, out, correction.slope, correction.shift, note)
    if show is not None:
        show(_correction_table(ious, correction))
        show(
            f"slope {correction.slope:.4f}, shift {correction.shift:.4f} on top of what the model had: {out}"
        )
    return correction


def _read_report(path: Path) -> dict[str, Any]:
    """A quality report that records predicted IoUs."""
    try:
        report: dict[str, Any] = json.loads(path.read_text())
        if report["kind"] == "quality" and {"sha256", "calibration"} <= report.keys():
            dict.items(report["sha256"])
            str.lower(report["dataset"])
            if all(isinstance(curve["model"], str) for curve in list[Any](report["curves"])):
                return report
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        pass
    raise ValueError(
        f"expected the JSON of `benchmark quality` with the predicted IoUs in it, got {path}; "
        "run it again with --json"
    )


def _curves_of(report: dict[str, Any], path: Path, name: str) -> list[Curve]:
    """The curves of a model, each value of the type that `run_quality` writes."""
    try:
        curves = [Curve(**curve) for curve in report["curves"] if curve["model"] == name]
        texts = [text for curve in curves for text in (curve.form, curve.group, curve.object)]
        numbers = [float(one) for curve in curves for one in curve.ious]
        numbers += [float(one) for curve in curves for one in curve.predicted if one is not None]
        if all(isinstance(text, str) for text in texts) and all(0 <= one <= 1 for one in numbers):
            return curves
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"the curves of {name} in {path} are not as `benchmark quality` writes them; run that again"
    )


def _model_in(report: dict[str, Any], path: Path, name: str | None) -> str:
    """The name of the model in the report."""
    names: list[str] = list(dict.fromkeys(curve["model"] for curve in report["curves"]))
    if name is None and len(names) == 1:
        return names[0]
    if name is None or name not in names:
        raise ValueError(
            f"{path} is about {', '.join(names) or 'no model'}; expected one of them as --model-name, got "
            f"{name or 'none'}"
        )
    return name


def _correction_table(ious: PredictedIous, correction: Correction) -> str:
    """Measures before and after, by halves of the sets, and of the fit on all, which knows its test data."""
    everything = {
        "fitted": ["all sets"],
        "tested": ["all sets"],
        "correction": correction,
        "answers": len(ious),
        "before": measures(ious),
        "after": measures(correction.of(ious)),
    }
    cells = [
        (
            "\n".join(row["fitted"]),
            "\n".join(row["tested"]),
            row["answers"],
            f"{row['correction'].slope:.3f}",
            f"{row['correction'].shift:.3f}",
            "before\nafter",
            *("\n".join(pair) for pair in zip(_cells(row["before"]), _cells(row["after"]))),
        )
        for row in (*cross_validate(ious), everything)
    ]
    return table(
        "predicted IoU before and after the correction",
        ("fitted on", "tested on", "predictions", "slope", "shift", "", *MEASURES.values()),
        cells,
        text=("fitted on", "tested on", ""),
        merged=2,
    )
