"""Running a benchmark over the objects of a data set, here or in worker processes; Ctrl-C keeps what is done.

A *measure* is called with models and samples and yields a list of results for each sample in turn. It is sent
to worker processes, so it is a function of a module, or a `functools.partial` of one.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from napari_lowlat_seg.evaluation.inputs.datasets import (
    FolderOptions,
    Sample,
    Target,
    by_picture,
    find_targets,
    read_samples,
)
from napari_lowlat_seg.evaluation.inputs.segmenters import Segmenter, load_segmenter
from napari_lowlat_seg.evaluation.report import check_folders, machine, save_json
from napari_lowlat_seg.inference.processors import usable

TASK_OBJECTS = 24
"""Objects of one picture in a task of a worker process; more would leave other workers idle at the end."""

Result = TypeVar("Result")
Measure = Callable[[Sequence[Segmenter], Iterable[Sample]], Iterable[list[Result]]]


@dataclass(frozen=True)
class EvaluationSettings:
    """Which models are evaluated on which objects, and by how many processes.

    Attributes
    ----------
    models
        Lines of text that `load_segmenter` understands.
    dataset, root, limit, options
        As `find_targets` takes them.
    device, closer_look
        As in `load_segmenter`.
    workers
        Processes, each with its own models and its share of the cores; on a GPU they share the device. 0
        takes one process for every two cores.

    Raises
    ------
    ValueError
        For a negative number of workers.
    """

    models: tuple[str, ...]
    dataset: str = "folder"
    root: Path = Path()
    limit: int | None = None
    options: FolderOptions = field(default_factory=FolderOptions)
    device: str = "auto"
    closer_look: str = "auto"
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")

    @property
    def processes(self) -> int:
        """Number of worker processes."""
        return self.workers or max(1, usable() // 2)

    @property
    def threads(self) -> int:
        """Cores that each process may use."""
        return max(1, usable() // self.processes)

    def targets(self) -> list[Target]:
        """Return the objects of the data set; raises as `find_targets` does."""
        return find_targets(self.dataset, self.root, self.limit, self.options)

    def described(self) -> dict[str, object]:
        """Return what a report says of these settings."""
        return {
            "dataset": self.dataset,
            "models": list(self.models),
            "limit": self.limit,
            "device": self.device,
            "closer_look": self.closer_look,
        }


def over_objects(
    measure: Measure[Result], settings: EvaluationSettings, targets: Sequence[Target], title: str = ""
) -> tuple[list[Result], bool]:
    """Return the results for all objects in the order of the targets, and whether all were done.

    Parameters
    ----------
    measure
        See the top of this module.
    settings
        The models; they stay loaded in this process for the next call with the same ones.
    targets
        Those of one picture follow each other.
    title
        Stands before the progress bar.

    False after Ctrl-C. Raises whatever the models or the measure raise.
    """
    run = _here if settings.processes == 1 else _in_workers
    done: dict[Target, list[Result]] = {}
    complete = True
    with tqdm(total=len(targets), unit="object", desc=title) as progress:
        try:
            for target, results in run(measure, settings, targets):
                done[target] = results
                progress.update()
        except KeyboardInterrupt:
            complete = False
    return [result for target in targets for result in done.get(target, ())], complete


def run_report(
    kind: str,
    settings: EvaluationSettings,
    measure: Measure[Result],
    summarise: Callable[[list[Result]], Mapping[str, Any]],
    tables: Callable[[Mapping[str, Any]], Iterable[str]],
    *,
    facts: Mapping[str, Any] | None = None,
    json: str | Path | None = None,
    show: Callable[[str], None] | None = print,
) -> dict[str, Any]:
    """Run a benchmark over the objects of a data set: show its tables, write JSON if asked to.

    Ctrl-C ends it early: what is done is shown and written, with "complete" false.

    Parameters
    ----------
    kind
        Of the report.
    settings
        Models and objects.
    measure
        See the top of this module.
    summarise
        Called with all results; returns what the report says of them.
    tables
        Called with the report; returns it as text.
    facts
        What else the report says of how it was made.
    json
        A file to write; its folder is checked before the work starts.
    show
        Called with each table; None for silence.

    Returns
    -------
    dict
        The content of the JSON file.

    Raises
    ------
    ValueError
        For any unusable argument, before the work starts.
    ImportError
        If an ONNX model is asked for and its library is missing.
    """
    check_folders(json)
    results, complete = over_objects(measure, settings, settings.targets(), settings.dataset)
    report = {
        "kind": kind,
        **settings.described(),
        **(facts or {}),
        "complete": complete,
        "machine": machine(),
        **summarise(results),
    }
    if json is not None:
        save_json(report, json)
    if show is not None:
        for text in tables(report):
            show(text)
    return report


def over_models(
    models: Sequence[Segmenter],
    samples: Iterable[Sample],
    measure: Callable[[Segmenter, Any, Sample], Result],
    embed: Callable[[Segmenter, np.ndarray], Any] = lambda model, image: model.embed(image),
) -> Iterator[list[Result]]:
    """The results of each sample in turn, `measure` of each model with its embedding of the sample's image.

    Samples of one picture follow each other and share the image array, which is embedded once. Raises
    ValueError for two models of one name.
    """
    check_names(models)

    def results() -> Iterator[list[Result]]:
        image: np.ndarray | None = None
        embeddings: list[Any] = []
        for sample in samples:
            if sample.image is not image:
                image, embeddings = sample.image, [embed(model, sample.image) for model in models]
            yield [measure(model, seen, sample) for model, seen in zip(models, embeddings, strict=True)]

    return results()


def check_names(models: Sequence[Segmenter]) -> None:
    """Raise ValueError for models whose results look alike (two of one name), or none at all."""
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"expected models of different names, at least one; got {', '.join(names) or 'none'}"
        )


@lru_cache(maxsize=1)
def _load(models: tuple[str, ...], device: str, closer_look: str, threads: int) -> list[Segmenter]:
    return [load_segmenter(spec, device=device, closer_look=closer_look, threads=threads) for spec in models]


def _here(
    measure: Measure[Result], settings: EvaluationSettings, targets: Sequence[Target]
) -> Iterator[tuple[Target, list[Result]]]:
    models = _load(settings.models, settings.device, settings.closer_look, settings.threads)
    yield from zip(targets, measure(models, read_samples(targets)))


def _in_workers(
    measure: Measure[Result], settings: EvaluationSettings, targets: Sequence[Target]
) -> Iterator[tuple[Target, list[Result]]]:
    """Results from worker processes as they come; a process that is done takes the next picture."""
    tasks = [
        same[i : i + TASK_OBJECTS] for same in by_picture(targets) for i in range(0, len(same), TASK_OBJECTS)
    ]
    before = set(active_children())
    pool = ProcessPoolExecutor(
        settings.processes,
        mp_context=get_context("spawn"),
        initializer=_initialise,
        initargs=(settings.threads,),
    )
    try:
        futures = [pool.submit(_task, measure, settings, task) for task in tasks]
        for future in as_completed(futures):
            yield from future.result()
    except BaseException:  # also Ctrl-C: a picture may take minutes
        for worker in set(active_children()) - before:
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _initialise(threads: int) -> None:
    """In a worker: leave Ctrl-C to the parent, and keep to this worker's share of the cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)


def _task(
    measure: Measure[Result], settings: EvaluationSettings, targets: Sequence[Target]
) -> list[tuple[Target, list[Result]]]:
    return list(_here(measure, settings, targets))
