"""A correction of the predicted IoU: fitted to a quality report, tested across its sets, kept in a file.

One slope and one shift of the logit (Platt, 1999): the order of the answers stays, so nothing but the figure
changes. Two numbers cannot learn a set by heart; whether they carry over to other sets is measured all the
same: fitted on half of the sets, tested on the other half, both ways.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.optimize import least_squares
from scipy.special import expit, logit

from napari_lowlat_seg.evaluation.analysis.calibration import MEASURES, Judgements, cells, measures
from napari_lowlat_seg.evaluation.report import Curve, text_of
from napari_lowlat_seg.models.checkpoints import model_path, save_corrected
from napari_lowlat_seg.models.compact import BOUNDS
from napari_lowlat_seg.models.downloads import file_sha256

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
