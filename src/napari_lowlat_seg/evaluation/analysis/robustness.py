"""Robustness benchmark: quality on degraded images, with careless clicks, and side effects of corrections.

Every object is annotated once by the protocol (8 clicks), once on each perturbed image (3 clicks), and with a
first click off the centre, a wrong click that is then repaired, and a scribble if the object is thin; see
`perturbations`. Counted are, of the protocol's corrections, IoU lost and pixels changed far from the click,
and of all masks those that are inverted or contradict the newest click.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from skimage.measure import label

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.evaluation.analysis.perturbations import (
    PERTURBATIONS,
    THIN,
    Perturbation,
    off_centre,
    repairing_click,
    thinness,
    wrong_click,
)
from napari_lowlat_seg.evaluation.annotator import HasMask, annotate, deepest, scribble_in
from napari_lowlat_seg.evaluation.inputs.datasets import Sample
from napari_lowlat_seg.evaluation.inputs.segmenters import Segmenter
from napari_lowlat_seg.evaluation.metrics import iou
from napari_lowlat_seg.evaluation.report import domain_of, number, table
from napari_lowlat_seg.evaluation.runner import EvaluationSettings, over_models, run_report

DROP = 0.05
"""A correction counts as a drop when the IoU falls by more than this."""

MIN_REACH = 8.0
"""Pixels nearer to a click than this, or than the object's inscribed radius, are near it."""


@dataclass(frozen=True, eq=False)
class ClickRun:
    """One object annotated with clicks, with all its masks.

    Attributes
    ----------
    truth
        (H, W), 1 / 0 / -1.
    clicks
        In the order they were given.
    predictions
        One a click, each with its `mask`.
    ious
        (clicks,) float32.
    """

    truth: np.ndarray
    clicks: tuple[Click, ...]
    predictions: tuple[HasMask, ...]
    ious: np.ndarray

    @classmethod
    def of(
        cls,
        predict: Callable[[tuple[Prompt, ...], Any], HasMask],
        truth: np.ndarray,
        clicks: int,
        first: Click | None = None,
    ) -> ClickRun:
        """Let the simulated annotator give up to so many clicks; arguments as `annotate` takes them."""
        annotation = annotate(predict, truth, first=first, max_clicks=clicks)
        clicks_given = tuple(prompt for prompt in annotation.prompts if isinstance(prompt, Click))
        return cls(truth, clicks_given, annotation.predictions, annotation.ious)

    def after(self, clicks: int) -> float:
        """Return the IoU after so many clicks, or after the last one if there were fewer."""
        return float(self.ious[min(clicks, len(self.ious)) - 1])


def corrections(run: ClickRun) -> dict[str, float]:
    """Return sums over the corrections of a run.

    Keys: "corrections" (their number), "falls" (those that drop the IoU), "far share" (of changed pixels, of
    those far from the click), "far gain" (IoU gained by these).
    """
    reach = max(MIN_REACH, deepest(run.truth == 1)[0])
    falls, far_share, far_gain = 0, 0.0, 0.0
    for k in range(1, len(run.predictions)):
        before, after = run.predictions[k - 1].mask, run.predictions[k].mask
        far = far_changes(before, after, run.clicks[k].at, reach)
        falls += bool(run.ious[k] < run.ious[k - 1] - DROP)
        if far.any():
            far_share += np.count_nonzero(far) / np.count_nonzero(before ^ after)
            far_gain += float(run.ious[k]) - iou(run.truth, np.where(far, before, after))
    return {
        "corrections": len(run.predictions) - 1,
        "falls": falls,
        "far share": far_share,
        "far gain": far_gain,
    }


def far_changes(before: np.ndarray, after: np.ndarray, at: tuple[float, float], reach: float) -> np.ndarray:
    """Return the pixels (H, W) bool of the changed regions that do not come near a click.

    Parameters
    ----------
    before, after
        (H, W) bool masks.
    at
        (row, col) of the click.
    reach
        An 8-connected region of changed pixels is near if it has one at most so many pixels away.
    """
    changed: np.ndarray = before ^ after
    box = BoundingBox.of(changed)
    part = changed[box.slices]
    regions = label(part, connectivity=2)
    rows, cols = np.nonzero(part)
    close = np.hypot(rows + box[0] - at[0], cols + box[1] - at[1]) <= reach
    near = np.unique(regions[rows[close], cols[close]])
    far = np.zeros_like(changed)
    far[box.slices] = part & ~np.isin(regions, near)
    return far


def misbehaviour(runs: Sequence[ClickRun]) -> dict[str, float]:
    """Count the masks of some runs, and those among them that no user expects.

    Keys: "answers" (all masks); "complement" (the complement of the mask has the higher IoU with the object,
    as it also has where the mask takes a small part of a large object); "inside out" (and the mask has a
    higher IoU with the background than its complement has); "disobeyed" (the newest click's own pixel has the
    wrong sign).
    """
    counts = {"answers": 0.0, "complement": 0.0, "inside out": 0.0, "disobeyed": 0.0}
    for run in runs:
        background = np.where(run.truth < 0, run.truth, 1 - run.truth)
        for click, prediction in zip(run.clicks, run.predictions, strict=True):
            mask = prediction.mask
            row, col = (round(v) for v in click.at)
            better = bool(iou(run.truth, ~mask) > iou(run.truth, mask))
            counts["answers"] += 1
            counts["complement"] += better
            counts["inside out"] += better and bool(iou(background, mask) > iou(background, ~mask))
            counts["disobeyed"] += bool(mask[row, col]) != click.positive
    return counts


CLICKS = 8
"""Clicks on the original image: one, and seven corrections."""

PERTURBED_CLICKS = 3
"""Clicks on every perturbed image."""


@dataclass(frozen=True)
class Measurements:
    """Results of one model on one object.

    Attributes
    ----------
    model, form
        The model, and how it makes one mask from prompts.
    group, object
        The set and the object's name.
    area
        The object's size as a fraction of the picture.
    values
        IoU or counts by the names that `ROWS` reads; what does not apply to the object is left out.
    """

    model: str
    form: str
    group: str
    object: str
    area: float
    values: dict[str, float]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes
    ----------
    title
        Heading.
    value
        Name in `Measurements.values`; its mean over objects is shown.
    less
        Name whose value is subtracted first, if any.
    per
        If given, the sum of `value` is shown as a share of the sum of this one.
    """

    title: str
    value: str
    less: str | None = None
    per: str | None = None

    def of(self, all_values: Sequence[Mapping[str, float]]) -> float | None:
        """Return the value of this row for some objects, as a fraction; None if it applies to none."""
        values_with = self.applying(all_values)
        if self.per is not None:
            whole = sum(values[self.per] for values in values_with)
            return sum(values[self.value] for values in values_with) / whole if whole else None
        less = [values[self.less] if self.less else 0.0 for values in values_with]
        return float(np.mean([v[self.value] for v in values_with]) - np.mean(less)) if values_with else None

    def applying(self, all_values: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
        """Return the values of the objects that this row applies to."""
        return [values for values in all_values if self.value in values]

    @property
    def signed(self) -> bool:
        """Whether the value is a difference, shown with a sign."""
        return self.less is not None or self.value == "far gain"


ROWS: tuple[Row, ...] = (
    Row("clean, IoU after 1 click", "clean 1"),
    Row("clean, after 3", "clean 3"),
    *(
        Row(f"{name}, after {clicks}", f"{name} {clicks}", less=f"clean {clicks}")
        for name in PERTURBATIONS
        for clicks in (1, PERTURBED_CLICKS)
    ),
    Row("off-centre by 30 %, after 1", "off-centre 1", less="clean 1"),
    Row("before a wrong click, IoU", "before wrong"),
    Row("after it", "after wrong"),
    Row("after its repair", "repaired"),
    Row("thin objects, after 1 click", "thin click"),
    Row("thin objects, after 1 scribble", "thin scribble"),
    Row("corrections that lose > 5 points", "falls", per="corrections"),
    Row("far share of changed pixels", "far share", per="corrections"),
    Row("IoU by far changes, a correction", "far gain", per="corrections"),
    Row("predictions whose complement fits better", "complement", per="answers"),
    Row("predictions inverted", "inside out", per="answers"),
    Row("predictions against the newest click", "disobeyed", per="answers"),
)


def robustness(models: Sequence[Segmenter], samples: Iterable[Sample]) -> Iterator[list[Measurements]]:
    """Yield for each sample in turn the measurements of every model.

    Parameters
    ----------
    models
        With different names. `embed_spaced(image, spacing)` is called where a model has it.
    samples
        Samples of one picture should follow each other and share the image array: it is perturbed
        and embedded once.

    Raises
    ------
    ValueError
        For two models of one name, or a truth without an object.
    """
    return over_models(models, samples, _measured, _ModelOnImage)


def _measured(model: Segmenter, seen: _ModelOnImage, sample: Sample) -> Measurements:
    area = float((sample.truth == 1).mean())
    return Measurements(model.name, model.form, sample.group, sample.name, area, seen.measurements(sample))


class _ModelOnImage:
    """A model with the embeddings of one image, original and perturbed."""

    def __init__(self, model: Segmenter, image: np.ndarray) -> None:
        self.model = model
        self._plain = model.embed(image)
        pictures = {name: one.image(image) for name, one in PERTURBATIONS.items()}
        self._perturbed = {
            name: _embedded(model, picture, PERTURBATIONS[name])
            for name, picture in pictures.items()
            if picture.size  # thick rows leave no pixel of an image of one row
        }

    def measurements(self, sample: Sample) -> dict[str, float]:
        """Return the values of one object, by the names that `ROWS` reads."""
        truth, rng = sample.truth, np.random.default_rng(zlib.crc32(sample.name.encode()))
        clean = self._run(self._plain, truth, CLICKS)
        beside = self._run(self._plain, truth, 1, off_centre(truth, rng))
        values = {"clean 1": clean.after(1), "clean 3": clean.after(3), "off-centre 1": beside.after(1)}
        runs = [clean, beside]
        for name, embedding in self._perturbed.items():
            seen = PERTURBATIONS[name].truth(truth)
            if not (seen == 1).any():
                continue
            runs.append(self._run(embedding, seen, PERTURBED_CLICKS))
            values |= {f"{name} {clicks}": runs[-1].after(clicks) for clicks in (1, PERTURBED_CLICKS)}
        if thinness(truth) > THIN:
            scribbled = self.model.predict(self._plain, (scribble_in(truth),), None)
            values |= {"thin click": clean.after(1), "thin scribble": iou(truth, scribbled.mask)}
        return (
            values
            | self._wrong_click_ious(clean, wrong_click(truth, rng))
            | corrections(clean)
            | misbehaviour(runs)
        )

    def _run(self, embedding: Any, truth: np.ndarray, clicks: int, first: Click | None = None) -> ClickRun:
        return ClickRun.of(partial(self.model.predict, embedding), truth, clicks, first)

    def _wrong_click_ious(self, clean: ClickRun, wrong: Click | None) -> dict[str, float]:
        """IoU before a wrong click that follows two right ones, after it, and after its repair."""
        if wrong is None:
            return {}
        truth, prompts, right = clean.truth, (*clean.clicks[:2], wrong), clean.predictions[:2][-1]
        misled = self.model.predict(self._plain, prompts, right)
        repair = repairing_click(truth, misled.mask, prompts, wrong)
        last = misled if repair is None else self.model.predict(self._plain, (*prompts, repair), misled)
        return {
            "before wrong": clean.after(2),
            "after wrong": iou(truth, misled.mask),
            "repaired": iou(truth, last.mask),
        }


def _embedded(model: Segmenter, picture: np.ndarray, perturbation: Perturbation) -> Any:
    spaced = getattr(model, "embed_spaced", None)
    return model.embed(picture) if spaced is None else spaced(picture, perturbation.spacing)


def summarise_robustness(findings: Sequence[Measurements], dataset: str) -> list[dict[str, Any]]:
    """One entry a model and row: model, form, row, signed, objects (which it is about), and `values`.

    `values` has a fraction or None for each domain (see `domain_of`) and for "all".
    """
    models = list(dict.fromkeys((one.model, one.form) for one in findings))
    domains = list(dict.fromkeys(domain_of(one.group, dataset) for one in findings))
    entries = []
    for model, form in models:
        ours = [one for one in findings if one.model == model]
        parts = {d: [f.values for f in ours if domain_of(f.group, dataset) == d] for d in domains}
        parts["all"] = [one.values for one in ours]
        entries += [
            {
                "model": model,
                "form": form,
                "row": row.title,
                "signed": row.signed,
                "objects": len(row.applying(parts["all"])),
                "values": {name: row.of(part) for name, part in parts.items()},
            }
            for row in ROWS
        ]
    return entries


def robustness_table(report: Mapping[str, Any]) -> str:
    """Return the rows of a robustness report as a plain-text table a model, in percent."""
    if not report["rows"]:
        return f"{report['dataset']}: interrupted before the first object was done"
    note = "" if report["complete"] else " (interrupted: part of the objects)"
    tables = []
    for model in dict.fromkeys(entry["model"] for entry in report["rows"]):
        entries = [entry for entry in report["rows"] if entry["model"] == model]
        cells = [
            (
                entry["row"],
                entry["objects"],
                *(_percent(v, entry["signed"]) for v in entry["values"].values()),
            )
            for entry in entries
        ]
        title = f"{report['dataset']}, {model} ({entries[0]['form']}), in %; differences to clean in points"
        columns = ("", "n", *entries[0]["values"])
        tables.append(f"{title}{note}\n{table('', columns, cells, text=('',))}")
    return "\n\n".join(tables)


def _percent(fraction: float | None, signed: bool) -> str:
    return number(None if fraction is None else 100 * fraction, "+.1f" if signed else ".1f")


def run_robustness(
    settings: EvaluationSettings,
    *,
    json: str | Path | None = None,
    show: Callable[[str], None] | None = print,
) -> dict[str, Any]:
    """Run the robustness benchmark, see `run_report`.

    The report has "rows" (from `summarise_robustness`) and "objects" (all measurements).
    """
    return run_report(
        "robustness",
        settings,
        robustness,
        lambda found: {"rows": summarise_robustness(found, settings.dataset), "objects": found},
        lambda report: (robustness_table(report),),
        json=json,
        show=show,
    )
