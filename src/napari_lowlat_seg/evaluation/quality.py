"""Quality: how many prompts a simulated annotator needs with each model, side by side on the same objects.

Every picture is embedded once a model, not once an object; the answers are the same, the wait is not. Curves
have no early stop, so the mean IoU at click k is over all objects, and the numbers of clicks are read off the
same curves. Where nothing is left to correct, the annotator is content and the curve stays where it is.

`run_quality` and `run_latency` do a whole benchmark as the command line wants it; `quality` and `latency`
work on models and samples that are at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.evaluation.analysis.calibration import (
    calibration_table,
    calibrations,
    save_calibration_plot,
)
from napari_lowlat_seg.evaluation.analysis.gallery import (
    Worst,
    draw_tiles,
    find_worst,
    save_gallery,
    worst_rows,
)
from napari_lowlat_seg.evaluation.annotator import FIRST_PROMPTS, annotate
from napari_lowlat_seg.evaluation.inputs.datasets import Options, Sample, Target, find_targets
from napari_lowlat_seg.evaluation.inputs.segmenters import Segmenter, model_sha256
from napari_lowlat_seg.evaluation.latency import run_latency as run_latency
from napari_lowlat_seg.evaluation.report import (
    Curve,
    check_folders,
    machine,
    plotting,
    quality_table,
    save_json,
    save_plot,
    summarise,
)
from napari_lowlat_seg.evaluation.runner import Team, check_names, over_objects


def quality(
    models: Sequence[Segmenter], samples: Iterable[Sample], *, max_clicks: int = 20, first: str = "click"
) -> Iterator[list[Curve]]:
    """For each sample in turn, one curve a model.

    Parameters:
        models: with different names.
        samples: samples of one picture should follow each other and share the image array: it is embedded
            once.
        max_clicks: length of the curves; prompts given in all.
        first: kind of the first prompt, a key of `simulate.FIRST_PROMPTS`; all later ones are clicks. Point 1
            of a curve is the IoU after that prompt.

    Raises:
        ValueError: for an unknown kind of prompt, two models of one name, or a truth without an object.
    """
    if first not in FIRST_PROMPTS:
        raise ValueError(f"the first prompt is one of {', '.join(FIRST_PROMPTS)}; got {first!r}")
    check_names(models)
    return _quality(models, samples, max_clicks, first)


def _quality(
    models: Sequence[Segmenter], samples: Iterable[Sample], max_clicks: int, first: str
) -> Iterator[list[Curve]]:
    image: np.ndarray | None = None
    embeddings: list[Any] = []
    for sample in samples:
        if sample.image is not image:
            image, embeddings = sample.image, [model.embed(sample.image) for model in models]
        begin = FIRST_PROMPTS[first](sample.truth)
        yield [
            _curve(model, embedding, sample, begin, max_clicks)
            for model, embedding in zip(models, embeddings)
        ]


def _curve(model: Segmenter, embedding: Any, sample: Sample, begin: Any, max_clicks: int) -> Curve:
    predicted: list[float | None] = []

    def predict(prompts: tuple[Prompt, ...], previous: Any) -> Any:
        answer = model.predict(embedding, prompts, previous)
        quality = getattr(answer, "quality", None)
        predicted.append(None if quality is None else float(quality))
        return answer

    run = annotate(predict, sample.truth, first=begin, max_clicks=max_clicks)
    unused = max_clicks - len(run.ious)
    return Curve(
        model.name,
        model.form,
        sample.group,
        sample.name,
        area=float((sample.truth == 1).mean()),
        ious=tuple(float(value) for value in np.pad(run.ious, (0, unused), mode="edge")),
        predicted=(*predicted, *[None] * unused),
    )


def run_quality(
    models: Sequence[str],
    dataset: str,
    root: str | Path,
    *,
    max_clicks: int = 20,
    limit: int | None = None,
    first: str = "click",
    closer_look: str = "auto",
    device: str = "auto",
    workers: int = 1,
    json: str | Path | None = None,
    plot: str | Path | None = None,
    gallery: str | Path | None = None,
    worst: int = 24,
    options: Options | None = None,
    show: Callable[[str], None] | None = print,
) -> dict[str, Any]:
    """The quality benchmark from names to report; shows a table, writes JSON and a plot if asked to.

    Ctrl-C ends it early: what is done is shown and written, with "complete" false and without a gallery. So
    does one while the gallery is drawn, when all the rest is already there.

    Parameters:
        models: lines of text that `rivals.load_segmenter` understands.
        dataset, root, limit, options: as `datasets.find_targets` takes them; `limit` counts objects of each
            set.
        max_clicks, first: as in `quality`.
        closer_look, device: as in `load_segmenter`.
        workers: as in `measuring.Team`.
        json, plot: files to write; checked before the work starts. Where a model judges itself, a second plot
            lies beside the first, named -calibration.
        gallery: folder for a PNG of the worst objects of each model and domain, which are annotated again.
        worst: how many these are.
        show: called with each finished table as text; None for silence.

    Returns:
        What the JSON file holds: "rows" (metrics by model and set or size), "calibration" (of the predicted
        IoU, by model and domain), "worst" (objects by model and domain), "curves" (all of them), "complete"
        and what was run on what; "sha256" tells the files of models of ours.

    Raises:
        ValueError: for anything in the call that cannot be used, before the work starts.
        ImportError: if a plot or an ONNX model is wanted and its library is missing.
    """
    team = Team(tuple(models), device, closer_look, workers)
    if max_clicks < 1:
        raise ValueError(f"max_clicks must be at least 1, got {max_clicks}")
    if worst < 1:
        raise ValueError(f"a gallery shows at least 1 worst object of each domain, got {worst}")
    check_folders(json, plot, gallery)
    if gallery is not None and Path(gallery).exists() and not Path(gallery).is_dir():
        raise ValueError(f"the gallery is a folder of pictures, and {gallery} is a file; take another name")
    if plot is not None:
        plotting()
    targets = find_targets(dataset, root, limit, options)
    asked = partial(quality, max_clicks=max_clicks, first=first)
    curves, complete = over_objects(asked, team, targets, dataset)
    found = find_worst(curves, dataset, worst)
    report = {
        "kind": "quality", "dataset": dataset, "models": list(models), "first": first,
        "max_clicks": max_clicks, "limit": limit, "device": device, "closer_look": closer_look,
        "complete": complete, "machine": machine(), "sha256": {spec: model_sha256(spec) for spec in models},
        "rows": summarise(curves), "calibration": calibrations(curves, dataset),
        "worst": worst_rows(found, {target.name: target.label for target in targets}), "curves": curves,
    }  # fmt: skip
    if json is not None:
        save_json(report, json)
    if plot is not None:
        save_plot(report, plot)
    if plot is not None and report["calibration"]:
        beside = Path(plot)
        save_calibration_plot(report, beside.with_stem(f"{beside.stem}-calibration"))
    if show is not None:
        show(quality_table(report))
    if show is not None and report["calibration"]:
        show(calibration_table(report))
    if gallery is not None and complete:
        _draw_gallery(found, team, targets, first, Path(gallery), dataset)
    return report


def _draw_gallery(
    worst: Worst, team: Team, targets: Sequence[Target], first: str, folder: Path, dataset: str
) -> None:
    """The worst objects, asked about once more and drawn; nothing is written if Ctrl-C ends it."""
    names = {curve.object for part in worst.values() for curve in part}
    again = [target for target in targets if target.name in names]
    drawn, complete = over_objects(partial(draw_tiles, worst=worst, first=first), team, again, "gallery")
    if complete:
        tiles = dict(drawn)
        rows = {key: [tiles[curve.model, curve.object] for curve in part] for key, part in worst.items()}
        save_gallery(rows, folder, dataset)
