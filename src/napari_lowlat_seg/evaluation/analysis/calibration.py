"""How far a model's own estimate of its IoU can be believed: how wrong, how biased, in which order.

The answers after prompts 1, 3, 5, 10 and 20 count, as far as they were given. The true IoU is the
benchmark's, so pixels that the truth ignores are ignored here too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.optimize import least_squares
from scipy.special import expit, logit
from scipy.stats import spearmanr

from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.evaluation.report import ALL, KS, Curve, domain_of, plotting, text_of
from napari_lowlat_seg.models.checkpoints import model_path, save_corrected
from napari_lowlat_seg.models.compact import BOUNDS
from napari_lowlat_seg.models.registry import file_sha256

BINS = 10
"""Bins of equal width over predicted IoU 0..1."""

MEASURES = {"mae": "MAE", "ece": "ECE", "bias": "bias", "spearman": "Spearman"}


@dataclass(frozen=True, eq=False)
class Judgements:
    """Predicted and true IoU of N answers of one model.

    Attributes:
        predicted, true: (N,) float64 in [0, 1].
        sets, domains: (N,) str, where the object of each answer is from.
    """

    predicted: np.ndarray
    true: np.ndarray
    sets: np.ndarray
    domains: np.ndarray

    @classmethod
    def of(cls, curves: Sequence[Curve], dataset: str) -> Judgements:
        """What the curves of one model hold after prompts 1, 3, 5, 10 and 20 of a data set."""
        found = [
            (curve.predicted[k - 1], curve.ious[k - 1], curve.group, domain_of(curve.group, dataset))
            for curve in curves
            for k in KS
            if k <= len(curve.predicted) and curve.predicted[k - 1] is not None
        ]
        predicted, true, sets, domains = zip(*found) if found else ((), (), (), ())
        return cls(np.array(predicted, float), np.array(true, float), np.array(sets), np.array(domains))

    def where(self, keep: np.ndarray) -> Judgements:
        """Those that a boolean (N,) keeps."""
        return Judgements(self.predicted[keep], self.true[keep], self.sets[keep], self.domains[keep])

    def __len__(self) -> int:
        return len(self.predicted)


def measures(judged: Judgements) -> dict[str, float | None]:
    """Errors of the predicted IoU, all in units of IoU; None for what so few answers cannot tell.

    Keys: mae (mean absolute error), ece (expected calibration error: mean over the bins, by answers, of how
    far the mean prediction of a bin is from its mean truth), bias (mean of predicted - true; positive is
    overconfident) and spearman (rank correlation; None where one side is constant).
    """
    if not len(judged):
        return dict.fromkeys(MEASURES)
    wrong = judged.predicted - judged.true
    varied = np.ptp(judged.predicted) > 0 and np.ptp(judged.true) > 0
    gaps = [count * abs(predicted - true) for predicted, true, count in reliability(judged)]
    return {
        "mae": float(np.abs(wrong).mean()),
        "ece": float(sum(gaps) / len(judged)),
        "bias": float(wrong.mean()),
        "spearman": float(spearmanr(judged.predicted, judged.true).statistic) if varied else None,
    }


def reliability(judged: Judgements) -> list[tuple[float, float, int]]:
    """(mean predicted, mean true, answers) of every bin that has any; an edge belongs to the bin above."""
    place = np.clip((judged.predicted * BINS).astype(int), 0, BINS - 1)
    return [
        (float(judged.predicted[place == i].mean()), float(judged.true[place == i].mean()), int(count))
        for i, count in enumerate(np.bincount(place, minlength=BINS))
        if count
    ]


def calibrations(curves: Sequence[Curve], dataset: str) -> list[dict[str, Any]]:
    """One row for each model that judges itself and each domain, then all objects together.

    A row has model, group (the domain), answers, and the keys of `measures`.
    """
    rows = []
    for model in dict.fromkeys(curve.model for curve in curves):
        judged = Judgements.of([curve for curve in curves if curve.model == model], dataset)
        rows += [
            {"model": model, "group": group, "answers": len(part), **measures(part)}
            for group, part in _parts(judged)
        ]
    return rows


def _parts(judged: Judgements) -> list[tuple[str, Judgements]]:
    """By domain in their order, and all; none without an answer."""
    domains = list(dict.fromkeys(judged.domains.tolist()))
    parts = [(domain, judged.where(judged.domains == domain)) for domain in domains]
    return [*parts, (ALL, judged)] if parts else []


def calibration_table(report: Mapping[str, Any]) -> str:
    """The calibration rows of a quality report as a table of plain text."""
    table = Table("model", "domain", "answers", *MEASURES.values())
    for column in table.columns[2:]:
        column.justify = "right"
    for row in report["calibration"]:
        table.add_row(row["model"], row["group"], str(row["answers"]), *cells(row))
        if row["group"] == ALL:
            table.add_section()
    counted = ", ".join(str(k) for k in KS if k <= report["max_clicks"])
    return text_of(table, f"predicted IoU against the true one, after prompts {counted}")


def cells(row: Mapping[str, Any]) -> list[str]:
    """The measures of a row as text; a dash for what could not be told."""
    return ["-" if row[key] is None else f"{row[key]:.3f}" for key in MEASURES]


def save_calibration_plot(report: Mapping[str, Any], path: str | Path) -> None:
    """Mean true IoU against mean predicted IoU, bin by bin; one panel a domain, dots by number of answers.

    Raises:
        ImportError: without matplotlib.
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
            part = dict(_parts(Judgements.of(curves, report["dataset"]))).get(group)
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
    title = f"{report['dataset']}: IoU as predicted and as it is; larger dots, more answers"
    figure.suptitle(title, fontsize=10)
    lines = figure.axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=3, fontsize=8)
    with atomic_file(path) as unfinished:
        figure.savefig(unfinished, dpi=120)


LEAST = 50
"""Answers that a correction must be fitted to at least."""

CERTAIN = 1e-6
"""Predictions nearer to 0 or 1 than this count as this near: their logits have no end."""


@dataclass(frozen=True)
class Correction:
    """sigmoid(slope * x + shift) in place of sigmoid(x)."""

    slope: float = 1.0
    shift: float = 0.0

    def of(self, judged: Judgements) -> Judgements:
        """The same answers with corrected predictions."""
        corrected = expit(self.slope * _logits(judged) + self.shift)
        return Judgements(corrected, judged.true, judged.sets, judged.domains)


def fit(judged: Judgements) -> Correction:
    """The correction of least squared error between predicted and true IoU, all domains weighing the same."""
    names, place, counts = np.unique(judged.domains, return_inverse=True, return_counts=True)
    weights = np.sqrt(1 / (len(names) * counts[place]))
    logits = _logits(judged)
    found = least_squares(
        lambda x: weights * (expit(x[0] * logits + x[1]) - judged.true),
        (1.0, 0.0),
        bounds=tuple(zip(BOUNDS["quality_slope"], BOUNDS["quality_shift"])),
    )
    return Correction(float(found.x[0]), float(found.x[1]))


def _logits(judged: Judgements) -> np.ndarray:
    logits: np.ndarray = logit(np.clip(judged.predicted, CERTAIN, 1 - CERTAIN))
    return logits


def across_sets(judged: Judgements) -> list[dict[str, Any]]:
    """Fitted on every other set and tested on the rest, both ways; nothing where there is one set only.

    A row has fitted and tested (names of sets), correction, answers (tested), and the `measures` before and
    after. Sets count in the order of the report.
    """
    sets = list(dict.fromkeys(judged.sets.tolist()))
    if len(sets) < 2:
        return []
    rows = []
    for fitted, tested in ((sets[::2], sets[1::2]), (sets[1::2], sets[::2])):
        correction = fit(judged.where(np.isin(judged.sets, fitted)))
        rest = judged.where(np.isin(judged.sets, tested))
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
    """Fits a correction to a quality report and writes the model with it.

    Parameters:
        model: name or file of the model that the report is about.
        report: the JSON file of `benchmark quality`.
        out: the .safetensors file to write, which must be new.
        model_name: what the report calls the model; may be left out where it has one only.
        show: called with the tables as text; None for silence.

    Returns:
        The correction of what the model predicted in the report.

    Raises:
        ValueError: for a file that is no such report, a report of another model or of too few answers, and
            as `save_corrected`.
    """
    written = _read(report)
    name = _named(written, report, model_name)
    digest = file_sha256(model_path(str(model)))
    if written["sha256"].get(name) != digest:
        raise ValueError(
            f"{report} is not about {model}: {name} has sha256 {written['sha256'].get(name)} there, and this "
            f"file has {digest}; run benchmark quality with this model"
        )
    curves = [Curve(**curve) for curve in written["curves"] if curve["model"] == name]
    judged = Judgements.of(curves, written["dataset"])
    if len(judged) < LEAST:
        raise ValueError(
            f"a correction is fitted to at least {LEAST} predicted IoUs, and {report} has {len(judged)} of "
            f"{name}; run benchmark quality with more objects, or with a model that predicts its IoU"
        )
    correction = fit(judged)
    note = f"fitted to {len(judged)} answers on {', '.join(dict.fromkeys(judged.sets.tolist()))}"
    save_corrected(model, out, correction.slope, correction.shift, note)
    if show is not None:
        show(_table(judged, correction))
        show(
            f"slope {correction.slope:.4f}, shift {correction.shift:.4f} on top of what the model had: {out}"
        )
    return correction


def _read(path: Path) -> dict[str, Any]:
    """A quality report that records predicted IoUs."""
    try:
        report: dict[str, Any] = json.loads(path.read_text())
        if report["kind"] == "quality" and {"sha256", "calibration"} <= report.keys():
            return report
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f"expected the JSON of `benchmark quality` with the predicted IoUs in it, got {path}; "
        "run it again with --json"
    )


def _named(report: dict[str, Any], path: Path, name: str | None) -> str:
    """The model of the report that is meant."""
    names: list[str] = list(dict.fromkeys(curve["model"] for curve in report["curves"]))
    if name is None and len(names) == 1:
        return names[0]
    if name is None or name not in names:
        raise ValueError(
            f"{path} is about {', '.join(names) or 'no model'}; expected one of them as --model-name, got "
            f"{name or 'none'}"
        )
    return name


def _table(judged: Judgements, correction: Correction) -> str:
    """Before and after by halves of the sets, and of the fit on all, which knows what it is tested on."""
    table = Table("fitted on", "tested on", "answers", "slope", "shift", "", *MEASURES.values())
    for column in (*table.columns[2:5], *table.columns[6:]):
        column.justify = "right"
    for row in across_sets(judged):
        _add(table, row)
    everything = {
        "fitted": ["all sets"],
        "tested": ["all sets"],
        "correction": correction,
        "answers": len(judged),
    }
    _add(table, {**everything, "before": measures(judged), "after": measures(correction.of(judged))})
    return text_of(table, "predicted IoU before and after the correction")


def _add(table: Table, row: dict[str, Any]) -> None:
    fitted, tested = ("\n".join(row[key]) for key in ("fitted", "tested"))
    made = row["correction"]
    table.add_row(
        fitted,
        tested,
        str(row["answers"]),
        f"{made.slope:.3f}",
        f"{made.shift:.3f}",
        "before\nafter",
        *("\n".join(pair) for pair in zip(cells(row["before"]), cells(row["after"]))),
    )
    table.add_section()
