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

from .datasets import Options, Sample, find_targets
from .latency import run_latency as run_latency
from .measuring import check_names, over_objects
from .reports import (
    Curve,
    check_folders,
    machine,
    plotting,
    quality_table,
    save_json,
    save_plot,
    summarise,
)
from .rivals import Segmenter
from .simulate import FIRST_PROMPTS, annotate


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
    run = annotate(
        lambda prompts, previous: model.predict(embedding, prompts, previous),
        sample.truth,
        first=begin,
        max_clicks=max_clicks,
    )
    ious = np.pad(run.ious, (0, max_clicks - len(run.ious)), mode="edge")
    area = float((sample.truth == 1).mean())
    return Curve(
        model.name, model.form, sample.group, sample.name, area, tuple(float(value) for value in ious)
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
    options: Options | None = None,
    show: Callable[[str], None] | None = print,
) -> dict[str, Any]:
    """The quality benchmark from names to report; shows a table, writes JSON and a plot if asked to.

    Ctrl-C ends it early: what is done is shown and written, with "complete" false.

    Parameters:
        models: lines of text that `rivals.load_segmenter` understands.
        dataset, root, limit, options: as `datasets.find_targets` takes them; `limit` counts objects of each
            set.
        max_clicks, first: as in `quality`.
        closer_look, device: as in `load_segmenter`.
        workers: as in `measuring.over_objects`.
        json, plot: files to write; checked before the work starts.
        show: called with the finished table as text; None for silence.

    Returns:
        What the JSON file holds: "rows" (metrics by model and set or size), "curves" (all of them),
        "complete" and what was run on what.

    Raises:
        ValueError: for anything in the call that cannot be used, before the work starts.
        ImportError: if a plot or an ONNX model is wanted and its library is missing.
    """
    if max_clicks < 1:
        raise ValueError(f"max_clicks must be at least 1, got {max_clicks}")
    check_folders(json, plot)
    if plot is not None:
        plotting()
    targets = find_targets(dataset, root, limit, options)
    curves, complete = over_objects(
        partial(quality, max_clicks=max_clicks, first=first),
        models,
        targets,
        device=device,
        closer_look=closer_look,
        workers=workers,
        title=dataset,
    )
    report = {
        "kind": "quality", "dataset": dataset, "models": list(models), "first": first,
        "max_clicks": max_clicks, "limit": limit, "device": device, "closer_look": closer_look,
        "complete": complete, "machine": machine(), "rows": summarise(curves), "curves": curves,
    }  # fmt: skip
    if json is not None:
        save_json(report, json)
    if plot is not None:
        save_plot(report, plot)
    if show is not None:
        show(quality_table(report))
    return report
