"""Quality: how many prompts a simulated annotator needs with each model, side by side on the same objects.

Every picture is embedded once a model, not once an object; the answers are the same, the wait is not. Curves
have no early stop, so the mean IoU at click k is over all objects, and the numbers of clicks are read off the
same curves. Where nothing is left to correct, the annotator is content and the curve stays where it is.

`run_quality` and `run_latency` do a whole benchmark as the command line wants it; `quality` and `latency`
work on models and samples that are at hand.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from .calibration import calibration_table, calibrations, save_calibration_plot
from .datasets import Options, Sample, Target, by_picture, find_targets, read_samples
from .gallery import Worst, draw_tile, find_worst, save_gallery, worst_rows
from .latency import run_latency as run_latency
from .prompts import Prompt
from .reports import Curve, cores, machine, plotting, quality_table, save_json, save_plot, summarise
from .rivals import Segmenter, load_segmenter, model_sha256
from .simulate import FIRST_PROMPTS, annotate

# A task of a worker process: so many objects of one picture. More would leave other workers idle at the end.
TASK_OBJECTS = 24

Result = TypeVar("Result")


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
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"expected models of different names, at least one; got {', '.join(names) or 'none'}"
        )
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

    Ctrl-C ends it early: what is done is shown and written, with "complete" false and without a gallery.

    Parameters:
        models: lines of text that `rivals.load_segmenter` understands.
        dataset, root, limit, options: as `datasets.find_targets` takes them; `limit` counts objects of each
            set.
        max_clicks, first: as in `quality`.
        closer_look, device: as in `load_segmenter`.
        workers: processes, each with its own models and its share of the cores; on a GPU they share the
            device. 0 takes one process for every two cores.
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
    if max_clicks < 1 or workers < 0:
        raise ValueError(
            f"max_clicks must be at least 1 and workers at least 0, got {max_clicks} and {workers}"
        )
    if worst < 1:
        raise ValueError(f"a gallery shows at least 1 worst object of each domain, got {worst}")
    for path in (json, plot, gallery):
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise ValueError(f"the folder of {path} must exist; make it first")
    if gallery is not None and Path(gallery).exists() and not Path(gallery).is_dir():
        raise ValueError(f"the gallery is a folder of pictures, and {gallery} is a file; take another name")
    if plot is not None:
        plotting()
    targets = find_targets(dataset, root, limit, options)
    workers = workers or max(1, cores() // 2)
    job = _Job(tuple(models), device, closer_look, max(1, cores() // workers), max_clicks, first)
    curves: list[Curve] = []
    complete = True
    with tqdm(total=len(targets), unit="object", desc=dataset) as progress:
        try:
            for done in _spread(_curves, job, targets, workers):
                curves += done
                progress.update(len(done) // len(models))
        except KeyboardInterrupt:
            complete = False
    places = {target.name: place for place, target in enumerate(targets)}
    curves.sort(key=lambda curve: places[curve.object])
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
        save_gallery(_drawn(found, job, targets, workers), Path(gallery), dataset)
    return report


def _drawn(
    worst: Worst, job: _Job, targets: Sequence[Target], workers: int
) -> dict[tuple[str, str], list[Image.Image]]:
    """The tiles of the worst objects, in their order."""
    wanted: _Wanted = {}
    for key, part in worst.items():
        for place, curve in enumerate(part):
            wanted.setdefault(curve.object, []).append((key, place, curve))
    again = [target for target in targets if target.name in wanted]
    tiles: dict[tuple[str, str], list[tuple[int, Image.Image]]] = {key: [] for key in worst}
    with tqdm(total=sum(map(len, worst.values())), unit="object", desc="gallery") as progress:
        for done in _spread(partial(_tiles, wanted), job, again, workers):
            for key, place, tile in done:
                tiles[key].append((place, tile))
            progress.update(len(done))
    return {key: [tile for _, tile in sorted(part, key=lambda one: one[0])] for key, part in tiles.items()}


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know once, besides its targets."""

    models: tuple[str, ...]
    device: str
    closer_look: str
    threads: int
    max_clicks: int
    first: str

    def load(self) -> list[Segmenter]:
        """The models, made once a process."""
        return _loaded(self)


@lru_cache(maxsize=1)
def _loaded(job: _Job) -> list[Segmenter]:
    return [
        load_segmenter(spec, device=job.device, closer_look=job.closer_look, threads=job.threads)
        for spec in job.models
    ]


def _curves(job: _Job, targets: Sequence[Target]) -> Iterator[list[Curve]]:
    """The curves of one target after the other."""
    yield from quality(job.load(), read_samples(targets), max_clicks=job.max_clicks, first=job.first)


# By object: model and domain, rank from 0, and the curve that was made.
_Wanted = dict[str, list[tuple[tuple[str, str], int, Curve]]]


def _tiles(
    wanted: _Wanted, job: _Job, targets: Sequence[Target]
) -> Iterator[list[tuple[tuple[str, str], int, Image.Image]]]:
    """The tiles of one target after the other."""
    models = {model.name: model for model in job.load()}
    image: np.ndarray | None = None
    embeddings: dict[str, Any] = {}
    for sample in read_samples(targets):
        if sample.image is not image:
            image, embeddings = sample.image, {}
        made = []
        for key, place, curve in wanted[sample.name]:
            model = models[curve.model]
            if model.name not in embeddings:
                embeddings[model.name] = model.embed(sample.image)
            tile = draw_tile(model, embeddings[model.name], sample, curve, place + 1, job.first)
            made.append((key, place, tile))
        yield made


_Work = Callable[[_Job, Sequence[Target]], Iterator[list[Result]]]


def _spread(
    work: _Work[Result], job: _Job, targets: Sequence[Target], workers: int
) -> Iterator[list[Result]]:
    """What the work makes of the targets: here, one by one, or in worker processes, by pictures as they come.

    A worker takes the next picture when it is done with one.
    """
    if workers == 1:
        yield from work(job, targets)
        return
    tasks = [
        same[i : i + TASK_OBJECTS] for same in by_picture(targets) for i in range(0, len(same), TASK_OBJECTS)
    ]
    before = set(active_children())
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_quiet, initargs=(job.threads,)
    )
    try:
        futures = [pool.submit(_task, work, job, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    except BaseException:  # also Ctrl-C: a picture may take minutes, and nobody waits for its end
        for worker in set(active_children()) - before:
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _quiet(threads: int) -> None:
    """In a worker: leave Ctrl-C to the parent, and keep to this worker's share of the cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)


def _task(work: _Work[Result], job: _Job, targets: Sequence[Target]) -> list[Result]:
    return [one for made in work(job, targets) for one in made]
