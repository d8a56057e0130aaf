"""Candidates benchmark: how good the first mask of one click is, the best of all, and how far that is.

The click is the protocol's first one, in the middle of the object. Models of other forms have one mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.evaluation.annotator import next_click
from napari_lowlat_seg.evaluation.inputs.datasets import Sample
from napari_lowlat_seg.evaluation.inputs.segmenters import Segmenter
from napari_lowlat_seg.evaluation.metrics import iou
from napari_lowlat_seg.evaluation.report import domain_of, table
from napari_lowlat_seg.evaluation.runner import EvaluationSettings, over_models, run_report

WORTH_A_TAB = 0.02
"""Gain of IoU over the masks before from which somebody would go on to a later one."""


@dataclass(frozen=True)
class Choice:
    """The candidates of one model for one click on one object.

    Attributes
    ----------
    model, group, object
        Names.
    ious, predicted
        True and predicted IoU of the candidates, in the order in which they are shown.
    """

    model: str
    group: str
    object: str
    ious: tuple[float, ...]
    predicted: tuple[float | None, ...]

    @property
    def tabs(self) -> int:
        """How many masks further the one is that somebody would choose."""
        chosen = 0
        for number, value in enumerate(self.ious):
            if value > self.ious[chosen] + WORTH_A_TAB:
                chosen = number
        return chosen


def candidates(models: Sequence[Segmenter], samples: Iterable[Sample]) -> Iterator[list[Choice]]:
    """Yield for each sample in turn one `Choice` a model.

    Samples of one picture should follow each other and share the image array: it is embedded once. Raises
    ValueError for two models of one name.
    """
    return over_models(models, samples, _choice)


def _choice(model: Segmenter, embedding: Any, sample: Sample) -> Choice:
    click = next_click(sample.truth, np.zeros(sample.truth.shape, bool))
    assert click is not None  # every sample shows its object, and an empty mask misses all of it
    ask = getattr(model, "candidates", None)
    found = [model.predict(embedding, [click], None)] if ask is None else ask(embedding, [click])
    predicted = tuple(getattr(one, "quality", None) for one in found)
    ious = tuple(float(iou(sample.truth, one.mask)) for one in found)
    return Choice(model.name, sample.group, sample.name, ious, predicted)


def summarise_candidates(choices: Sequence[Choice], dataset: str) -> list[dict[str, Any]]:
    """Return a row a set, domain and all, and a model.

    "first" and "best" are the mean IoU of the first mask and of the best of all; "masks" their mean number;
    "tabs" how many masks further the chosen one is; "better" the share of objects that gain more than .1.
    """
    rows = []
    groups = {choice.group for choice in choices}
    domains = {domain_of(group, dataset) for group in groups} - groups
    names = [*sorted(groups), *sorted(domains - {"all"}), "all"]
    for name in names:
        same = [c for c in choices if name in ("all", c.group, domain_of(c.group, dataset))]
        for model in dict.fromkeys(choice.model for choice in same):
            mine = [choice for choice in same if choice.model == model]
            best = np.array([max(choice.ious) for choice in mine])
            first = np.array([choice.ious[0] for choice in mine])
            rows.append(
                {
                    "group": name,
                    "objects": len(mine),
                    "model": model,
                    "first": float(first.mean()),
                    "best": float(best.mean()),
                    "masks": float(np.mean([len(choice.ious) for choice in mine])),
                    "tabs": float(np.mean([choice.tabs for choice in mine])),
                    "better": float((best > first + 0.1).mean()),
                }
            )
    return rows


def candidates_table(report: Mapping[str, Any]) -> str:
    """Return the rows of a candidates report as a plain-text table."""
    cells = [
        (
            row["group"],
            row["objects"],
            row["model"],
            *(f"{100 * row[key]:.1f}" for key in ("first", "best")),
            *(f"{row[key]:.2f}" for key in ("masks", "tabs")),
            f"{100 * row['better']:.0f} %",
        )
        for row in report["rows"]
    ]
    note = "" if report["complete"] else " (interrupted: part of the objects)"
    heads = ("set", "n", "model", "first IoU", "best IoU", "masks", "Tabs", "gain > .1")
    return table(f"{report['dataset']}, one click{note}", heads, cells, text=("set", "model"), merged=2)


def run_candidates(
    settings: EvaluationSettings,
    *,
    json: str | Path | None = None,
    show: Callable[[str], None] | None = print,
) -> dict[str, Any]:
    """Run the candidates benchmark, see `run_report`.

    The report has "rows" (from `summarise_candidates`) and "choices" (all of them).
    """
    return run_report(
        "candidates",
        settings,
        candidates,
        lambda found: {"rows": summarise_candidates(found, settings.dataset), "choices": found},
        lambda report: (candidates_table(report),),
        json=json,
        show=show,
    )
