"""Models asked about every object of a data set, here or in worker processes; Ctrl-C keeps what is done.

What is asked is a *measure*: called with models and samples, it gives for each sample in turn a list of
results. It travels to worker processes, so it is a function of a module, or a `functools.partial` of one.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import active_children, get_context
from typing import TypeVar

from tqdm import tqdm

from .datasets import Sample, Target, by_picture, read_samples
from .reports import cores
from .rivals import Segmenter, load_segmenter

# A task of a worker process: so many objects of one picture. More would leave other workers idle at the end.
TASK_OBJECTS = 24

Result = TypeVar("Result")
Measure = Callable[[Sequence[Segmenter], Iterable[Sample]], Iterable[list[Result]]]


def over_objects(
    measure: Measure[Result],
    models: Sequence[str],
    targets: Sequence[Target],
    *,
    device: str = "auto",
    closer_look: str = "auto",
    workers: int = 1,
    title: str = "",
) -> tuple[list[Result], bool]:
    """The results for all objects in the order of the targets, and whether no Ctrl-C ended it early.

    Parameters:
        measure: what is asked; see the top of this module.
        models: lines of text that `rivals.load_segmenter` understands.
        targets: those of one picture follow each other.
        device, closer_look: as in `load_segmenter`.
        workers: processes, each with its own models and its share of the cores; on a GPU they share the
            device. 0 takes one process for every two cores.
        title: stands before the progress bar.

    Raises:
        ValueError: for a negative number of workers, and what the models or the measure raise.
    """
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    workers = workers or max(1, cores() // 2)
    team = _Team(tuple(models), device, closer_look, max(1, cores() // workers))
    done: dict[Target, list[Result]] = {}
    complete = True
    with tqdm(total=len(targets), unit="object", desc=title) as progress:
        try:
            for target, results in (
                _here(measure, team, targets) if workers == 1 else _apart(measure, team, targets, workers)
            ):
                done[target] = results
                progress.update()
        except KeyboardInterrupt:
            complete = False
    return [result for target in targets for result in done.get(target, ())], complete


def check_names(models: Sequence[Segmenter]) -> None:
    """Raises ValueError where results could not be told apart: two models of one name, or none at all."""
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"expected models of different names, at least one; got {', '.join(names) or 'none'}"
        )


@dataclass(frozen=True)
class _Team:
    """The models of a process, and how they are to be loaded."""

    models: tuple[str, ...]
    device: str
    closer_look: str
    threads: int


@lru_cache(maxsize=1)
def _loaded(team: _Team) -> list[Segmenter]:
    return [
        load_segmenter(spec, device=team.device, closer_look=team.closer_look, threads=team.threads)
        for spec in team.models
    ]


def _here(
    measure: Measure[Result], team: _Team, targets: Sequence[Target]
) -> Iterator[tuple[Target, list[Result]]]:
    yield from zip(targets, measure(_loaded(team), read_samples(targets)))


def _apart(
    measure: Measure[Result], team: _Team, targets: Sequence[Target], workers: int
) -> Iterator[tuple[Target, list[Result]]]:
    """Results as they come from worker processes, which take the next picture when they are done with one."""
    tasks = [
        same[i : i + TASK_OBJECTS] for same in by_picture(targets) for i in range(0, len(same), TASK_OBJECTS)
    ]
    before = set(active_children())
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_quiet, initargs=(team.threads,)
    )
    try:
        futures = [pool.submit(_task, measure, team, task) for task in tasks]
        for future in as_completed(futures):
            yield from future.result()
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


def _task(
    measure: Measure[Result], team: _Team, targets: Sequence[Target]
) -> list[tuple[Target, list[Result]]]:
    return list(_here(measure, team, targets))
