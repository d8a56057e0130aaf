"""Quality benchmark: how many prompts a simulated annotator needs with each model, on the same objects.

Every image is embedded once a model, not once an object; the masks are the same, the wait is not. Curves have
no early stop, so the mean IoU after prompt k is over all objects, and the numbers of clicks are read off the
same curves. Where nothing is left to correct, the annotation ends and the curve stays where it is.

`run_quality` does the whole benchmark as the command line calls it; `quality` takes models and samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from napari_lowlat_seg.evaluation.inputs.datasets import Sample, Target
from napari_lowlat_seg.evaluation.inputs.segmenters import Segmenter, model_sha256
from napari_lowlat_seg.evaluation.report import (
    Curve,
    check_folders,
    plotting,
    quality_table,
    save_plot,
    summarise,
)
from napari_lowlat_seg.evaluation.runner import EvaluationSettings, over_models, over_objects, run_report


def quality(
    models: Sequence[Segmenter], samples: Iterable[Sample], *, max_clicks: int = 20, first: str = "click"
) -> Iterator[list[Curve]]:
    """Yield for each sample in turn one curve a model.

    Parameters
    ----------
    models
        With different names.
    samples
        Samples of one picture should follow each other and share the image array: it is embedded
        once.
    max_clicks
        Length of the curves; prompts given in all.
    first
        Kind of the first prompt, a key of `FIRST_PROMPTS`; all later ones are clicks. Point 1
        of a curve is the IoU after that prompt.

    Raises
    ------
    ValueError
        For an unknown kind of prompt, two models of one name, or a truth without an object.
    """
    if first not in FIRST_PROMPTS:
        raise ValueError(f"the first prompt is one of {', '.join(FIRST_PROMPTS)}; got {first!r}")
    begin = FIRST_PROMPTS[first]
    return over_models(
        models,
        samples,
        lambda model, embedding, sample: _curve(model, embedding, sample, begin(sample.truth), max_clicks),
    )


def _curve(model: Segmenter, embedding: Any, sample: Sample, first: Prompt | None, max_clicks: int) -> Curve:
    predict = partial(model.predict, embedding)
    annotation = annotate(predict, sample.truth, first=first, max_clicks=max_clicks)
    qualities = (getattr(prediction, "quality", None) for prediction in annotation.predictions)
    predicted = (None if quality is None else float(quality) for quality in qualities)
    unused = max_clicks - len(annotation.ious)
    return Curve(
        model.name,
        model.form,
        sample.group,
        sample.name,
        area=float((sample.truth == 1).mean()),
        ious=tuple(float(value) for value in np.pad(annotation.ious, (0, unused), mode="edge")),
        predicted=(*predicted, *[None] * unused),
    )


def run_quality(
    settings: EvaluationSettings,
    *,
    max_clicks: int = 20,
    first: str = "click",
    json: str | Path | None = None,
    plot: str | Path | None = None,
    gallery: str | Path | None = None,
    worst: int = 24,
    show: Callable[[str], None] | None = print,
) -> dict[str, Any]:
    """Run the quality benchmark, see `run_report`; also draw plots and a gallery if asked to.

    Ended by Ctrl-C it has no gallery. While the gallery is drawn, Ctrl-C leaves it out; all the rest is
    already written.

    Parameters
    ----------
    max_clicks, first
        As in `quality`.
    plot
        A file to write. Where a model predicts its IoU, a second one is written beside it, named
        -calibration.
    gallery
        Folder for a PNG of the worst objects of each model and domain, which are annotated again.
    worst
        Number of these objects.

    Returns
    -------
    dict
        Beside what `run_report` says, "rows" (metrics by model and set or size), "calibration" (of the
        predicted IoU, by model and domain), "worst" (objects by model and domain), "curves" (all of them)
        and "sha256" (of the files of our models).
    """
    _check(max_clicks, worst, json, plot, gallery)
    targets = settings.targets()

    def summarised(curves: list[Curve]) -> dict[str, Any]:
        found = find_worst(curves, settings.dataset, worst)
        return {
            "sha256": {spec: model_sha256(spec) for spec in settings.models},
            "rows": summarise(curves),
            "calibration": calibrations(curves, settings.dataset),
            "worst": worst_rows(found, {target.name: target.label for target in targets}),
            "curves": curves,
        }

    report = run_report(
        "quality",
        settings,
        partial(quality, max_clicks=max_clicks, first=first),
        summarised,
        _tables,
        facts={"first": first, "max_clicks": max_clicks},
        json=json,
        show=show,
    )
    if plot is not None:
        save_plot(report, path := Path(plot))
        if report["calibration"]:
            save_calibration_plot(report, path.with_stem(f"{path.stem}-calibration"))
    if gallery is not None and report["complete"]:
        found = find_worst(report["curves"], settings.dataset, worst)
        _draw_gallery(found, settings, targets, first, Path(gallery))
    return report


def _tables(report: Mapping[str, Any]) -> Iterator[str]:
    yield quality_table(report)
    if report["calibration"]:
        yield calibration_table(report)


def _check(
    max_clicks: int, worst: int, json: str | Path | None, plot: str | Path | None, gallery: str | Path | None
) -> None:
    """Raise for arguments that would fail after hours of work."""
    if max_clicks < 1:
        raise ValueError(f"max_clicks must be at least 1, got {max_clicks}")
    if worst < 1:
        raise ValueError(f"a gallery shows at least 1 worst object of each domain, got {worst}")
    check_folders(json, plot, gallery)
    if gallery is not None and Path(gallery).exists() and not Path(gallery).is_dir():
        raise ValueError(f"the gallery is a folder of pictures, and {gallery} is a file; take another name")
    if plot is not None:
        plotting()


def _draw_gallery(
    worst: Worst, settings: EvaluationSettings, targets: Sequence[Target], first: str, folder: Path
) -> None:
    """Annotate the worst objects once more and draw them; nothing is written if Ctrl-C ends it."""
    names = {curve.object for part in worst.values() for curve in part}
    chosen = [target for target in targets if target.name in names]
    drawn, complete = over_objects(partial(draw_tiles, worst=worst, first=first), settings, chosen, "gallery")
    if complete:
        tiles = dict(drawn)
        rows = {key: [tiles[curve.model, curve.object] for curve in part] for key, part in worst.items()}
        save_gallery(rows, folder, settings.dataset)
