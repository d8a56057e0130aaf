"""Robustness: what is left of a model's quality when pictures are poor and people careless.

Every object is annotated once as the protocol has it (8 clicks), once on each disturbed picture (3 clicks),
and with a first click beside the middle, a wrong click that is taken back, and a scribble if it is thin.
`disturbances` has all of these. Of the protocol's own corrections it is told what they changed far from the
click, of all answers to right clicks whether they turned inside out or went against the newest click.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from skimage.measure import label

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.evaluation.analysis.perturbations import (
    DISTURBANCES,
    THIN,
    Disturbance,
    off_centre,
    repairing_click,
    thinness,
    wrong_click,
)
from napari_lowlat_seg.evaluation.annotator import SoftMask, annotate, deepest, iou, scribble_in
from napari_lowlat_seg.evaluation.inputs.datasets import Options, Sample, find_targets
from napari_lowlat_seg.evaluation.inputs.segmenters import Segmenter
from napari_lowlat_seg.evaluation.report import check_folders, domain_of, machine, save_json, text_of
from napari_lowlat_seg.evaluation.runner import Team, check_names, over_objects

FALL = 0.05
"""A correction is a fall when the IoU loses more than this."""

LEAST_REACH = 8.0
"""Pixels around a click that are near it however thin the object is; else it is the inscribed radius."""


@dataclass(frozen=True, eq=False)
class Run:
    """One object annotated with clicks.

    Attributes:
        truth: (H, W), 1 / 0 / -1.
        clicks: in the order they were given.
        answers: one a click, each with its `mask`.
        ious: (clicks,) float32.
    """

    truth: np.ndarray
    clicks: tuple[Click, ...]
    answers: tuple[SoftMask, ...]
    ious: np.ndarray

    @classmethod
    def of(
        cls,
        predict: Callable[[tuple[Prompt, ...], SoftMask | None], SoftMask],
        truth: np.ndarray,
        clicks: int,
        first: Click | None = None,
    ) -> Run:
        """What the simulated annotator does with up to so many clicks; arguments as `annotate` takes them."""
        answers: list[SoftMask] = []

        def kept(prompts: tuple[Prompt, ...], previous: SoftMask | None) -> SoftMask:
            answers.append(predict(prompts, previous))
            return answers[-1]

        done = annotate(kept, truth, first=first, max_clicks=clicks)
        given = tuple(prompt for prompt in done.prompts if isinstance(prompt, Click))
        return cls(truth, given, tuple(answers), done.ious)

    def after(self, clicks: int) -> float:
        """IoU after so many clicks, or at the end if the annotator was content before."""
        return float(self.ious[min(clicks, len(self.ious)) - 1])


def corrections(run: Run) -> dict[str, float]:
    """Sums over the corrections of a run: their number, falls, far share of changed pixels, IoU by these."""
    reach = max(LEAST_REACH, deepest(run.truth == 1)[0])
    falls, far_share, far_gain = 0, 0.0, 0.0
    for k in range(1, len(run.answers)):
        before, after = run.answers[k - 1].mask, run.answers[k].mask
        far = far_changes(before, after, run.clicks[k].at, reach)
        falls += bool(run.ious[k] < run.ious[k - 1] - FALL)
        if far.any():
            far_share += np.count_nonzero(far) / np.count_nonzero(before ^ after)
            far_gain += float(run.ious[k]) - iou(run.truth, np.where(far, before, after))
    return {
        "corrections": len(run.answers) - 1,
        "falls": falls,
        "far share": far_share,
        "far gain": far_gain,
    }


def far_changes(before: np.ndarray, after: np.ndarray, at: tuple[float, float], reach: float) -> np.ndarray:
    """The pixels (H, W) bool of those changes that do not come near a click.

    Parameters:
        before, after: (H, W) bool masks.
        at: (row, col) of the click.
        reach: an 8-connected region of changed pixels is near if it has one at most so many pixels away.
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


def conduct(runs: Sequence[Run]) -> dict[str, float]:
    """How many answers there are in some runs, and how many of them are not what anybody would expect.

    Keys: answers; complement (the complement of the mask has the higher IoU with the object: also a mask that
    takes a small part of a large object); inside out (and the mask has a higher IoU with the background than
    its complement has); disobeyed (the newest click's own pixel is on the wrong side).
    """
    counts = {"answers": 0.0, "complement": 0.0, "inside out": 0.0, "disobeyed": 0.0}
    for run in runs:
        background = np.where(run.truth < 0, run.truth, 1 - run.truth)
        for click, answer in zip(run.clicks, run.answers, strict=True):
            mask = answer.mask
            row, col = (round(v) for v in click.at)
            better = bool(iou(run.truth, ~mask) > iou(run.truth, mask))
            counts["answers"] += 1
            counts["complement"] += better
            counts["inside out"] += better and bool(iou(background, mask) > iou(background, ~mask))
            counts["disobeyed"] += bool(mask[row, col]) != click.positive
    return counts


CLICKS = 8
"""Clicks on the undisturbed picture: one, and seven corrections."""

DISTURBED_CLICKS = 3
"""Clicks on every disturbed picture."""


@dataclass(frozen=True)
class Findings:
    """What one model did with one object.

    Attributes:
        model, form: the model and how it makes one mask of prompts.
        group, object: the set and the object's name.
        area: the object's size as a fraction of the picture.
        values: IoU or counts by the names that `ROWS` reads; what does not apply to the object is left out.
    """

    model: str
    form: str
    group: str
    object: str
    area: float
    values: dict[str, float]


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        title: what it is called.
        value: the name in `Findings.values` whose mean over objects it shows,
        less: after this one is taken off,
        per: or whose sum it shows as a share of the sum of this one.
    """

    title: str
    value: str
    less: str | None = None
    per: str | None = None

    def of(self, all_values: Sequence[Mapping[str, float]]) -> float | None:
        """The number of this line for some objects, as a fraction; None if it applies to none of them."""
        some = self.applying(all_values)
        if self.per is not None:
            whole = sum(values[self.per] for values in some)
            return sum(values[self.value] for values in some) / whole if whole else None
        less = [values[self.less] if self.less else 0.0 for values in some]
        return float(np.mean([v[self.value] for v in some]) - np.mean(less)) if some else None

    def applying(self, all_values: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
        """The objects that this line is about."""
        return [values for values in all_values if self.value in values]

    @property
    def signed(self) -> bool:
        """Whether it shows a gain or a loss."""
        return self.less is not None or self.value == "far gain"


ROWS: tuple[Row, ...] = (
    Row("clean, IoU after 1 click", "clean 1"),
    Row("clean, after 3", "clean 3"),
    *(
        Row(f"{name}, after {clicks}", f"{name} {clicks}", less=f"clean {clicks}")
        for name in DISTURBANCES
        for clicks in (1, DISTURBED_CLICKS)
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
    Row("answers whose complement fits better", "complement", per="answers"),
    Row("answers inside out", "inside out", per="answers"),
    Row("answers against the newest click", "disobeyed", per="answers"),
)


def robustness(models: Sequence[Segmenter], samples: Iterable[Sample]) -> Iterator[list[Findings]]:
    """For each sample in turn, the findings on every model.

    Parameters:
        models: with different names. One with `embed_spaced(image, spacing)` is told of the pixels' form.
        samples: samples of one picture should follow each other and share the image array: it is disturbed
            and embedded once.

    Raises:
        ValueError: for two models of one name, or a truth without an object.
    """
    check_names(models)
    return _robustness(models, samples)


def _robustness(models: Sequence[Segmenter], samples: Iterable[Sample]) -> Iterator[list[Findings]]:
    image: np.ndarray | None = None
    scenes: list[_Scene] = []
    for sample in samples:
        if sample.image is not image:
            image, pictures = sample.image, _disturbed(sample.image)
            scenes = [_Scene(model, image, pictures) for model in models]
        area = float((sample.truth == 1).mean())
        yield [
            Findings(s.model.name, s.model.form, sample.group, sample.name, area, s.findings(sample))
            for s in scenes
        ]


def _disturbed(image: np.ndarray) -> dict[str, np.ndarray]:
    """All disturbances of a picture that leave a pixel of it."""
    pictures = {name: disturbance.image(image) for name, disturbance in DISTURBANCES.items()}
    return {name: picture for name, picture in pictures.items() if picture.size}


class _Scene:
    """A model in front of one picture, plain and disturbed; each is embedded once."""

    def __init__(self, model: Segmenter, image: np.ndarray, disturbed: Mapping[str, np.ndarray]) -> None:
        self.model = model
        self._plain = model.embed(image)
        self._disturbed = {
            name: _embedded(model, picture, DISTURBANCES[name]) for name, picture in disturbed.items()
        }

    def findings(self, sample: Sample) -> dict[str, float]:
        """The values of one object."""
        truth, rng = sample.truth, np.random.default_rng(zlib.crc32(sample.name.encode()))
        clean = self._run(self._plain, truth, CLICKS)
        beside = self._run(self._plain, truth, 1, off_centre(truth, rng))
        values = {"clean 1": clean.after(1), "clean 3": clean.after(3), "off-centre 1": beside.after(1)}
        runs = [clean, beside]
        for name, embedding in self._disturbed.items():
            seen = DISTURBANCES[name].truth(truth)
            if not (seen == 1).any():
                continue
            runs.append(self._run(embedding, seen, DISTURBED_CLICKS))
            values |= {f"{name} {clicks}": runs[-1].after(clicks) for clicks in (1, DISTURBED_CLICKS)}
        if thinness(truth) > THIN:
            scribbled = self.model.predict(self._plain, (scribble_in(truth),), None)
            values |= {"thin click": clean.after(1), "thin scribble": iou(truth, scribbled.mask)}
        return values | self._wronged(clean, wrong_click(truth, rng)) | corrections(clean) | conduct(runs)

    def _run(self, embedding: Any, truth: np.ndarray, clicks: int, first: Click | None = None) -> Run:
        return Run.of(partial(self.model.predict, embedding), truth, clicks, first)

    def _wronged(self, clean: Run, wrong: Click | None) -> dict[str, float]:
        """IoU before a wrong click that follows two right ones, after it, and after its repair."""
        if wrong is None:
            return {}
        truth, prompts, right = clean.truth, (*clean.clicks[:2], wrong), clean.answers[:2][-1]
        misled = self.model.predict(self._plain, prompts, right)
        repair = repairing_click(truth, misled.mask, prompts, wrong)
        last = misled if repair is None else self.model.predict(self._plain, (*prompts, repair), misled)
        return {
            "before wrong": clean.after(2),
            "after wrong": iou(truth, misled.mask),
            "repaired": iou(truth, last.mask),
        }


def _embedded(model: Segmenter, picture: np.ndarray, disturbance: Disturbance) -> Any:
    spaced = getattr(model, "embed_spaced", None)
    return model.embed(picture) if spaced is None else spaced(picture, disturbance.spacing)


def summarise_robustness(findings: Sequence[Findings], dataset: str) -> list[dict[str, Any]]:
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
    """The rows of a robustness report as a table of plain text a model, in % of IoU or of what is counted."""
    if not report["rows"]:
        return f"{report['dataset']}: interrupted before the first object was done"
    note = "" if report["complete"] else " (interrupted: part of the objects)"
    tables = []
    for model in dict.fromkeys(entry["model"] for entry in report["rows"]):
        entries = [entry for entry in report["rows"] if entry["model"] == model]
        table = Table("", "n", *entries[0]["values"])
        for column in table.columns[1:]:
            column.justify = "right"
        for entry in entries:
            form = "{:+.1f}" if entry["signed"] else "{:.1f}"
            cells = ("-" if v is None else form.format(100 * v) for v in entry["values"].values())
            table.add_row(entry["row"], str(entry["objects"]), *cells)
        title = f"{report['dataset']}, {model} ({entries[0]['form']}), in %; differences to clean in points"
        tables.append(f"{title}{note}\n{text_of(table, '')}")
    return "\n\n".join(tables)


def run_robustness(
    models: Sequence[str],
    dataset: str,
    root: str | Path,
    *,
    limit: int | None = None,
    closer_look: str = "auto",
    device: str = "auto",
    workers: int = 1,
    json: str | Path | None = None,
    options: Options | None = None,
    show: Callable[[str], None] | None = print,
) -> dict[str, Any]:
    """The robustness benchmark from names to report; shows a table a model, writes JSON if asked to.

    Ctrl-C ends it early: what is done is shown and written, with "complete" false.

    Parameters:
        models, dataset, root, limit, closer_look, device, workers, options, show: as `run_quality` has them.
        json: a file to write; its folder is checked before the work starts.

    Returns:
        What the JSON file holds: "rows" (from `summarise_robustness`), "objects" (all findings), "complete"
        and what was run on what.

    Raises:
        ValueError: for anything in the call that cannot be used, before the work starts.
        ImportError: if an ONNX model is wanted and its library is missing.
    """
    team = Team(tuple(models), device, closer_look, workers)
    check_folders(json)
    targets = find_targets(dataset, root, limit, options)
    findings, complete = over_objects(robustness, team, targets, dataset)
    report = {
        "kind": "robustness", "dataset": dataset, "models": list(models), "limit": limit, "device": device,
        "closer_look": closer_look, "complete": complete, "machine": machine(),
        "rows": summarise_robustness(findings, dataset), "objects": findings,
    }  # fmt: skip
    if json is not None:
        save_json(report, json)
    if show is not None:
        show(robustness_table(report))
    return report
