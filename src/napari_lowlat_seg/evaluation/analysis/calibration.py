"""How far a model's own estimate of its IoU can be believed: how wrong, how biased, in which order.

The answers after prompts 1, 3, 5, 10 and 20 count, as far as they were given. The true IoU is the
benchmark's, so pixels that the truth ignores are ignored here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import spearmanr

from napari_lowlat_seg.evaluation.report import ALL, KS, Curve, domain_of, plotting, text_of

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
    figure.savefig(path, dpi=120)
