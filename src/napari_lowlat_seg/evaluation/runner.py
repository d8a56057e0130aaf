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

from napari_lowlat_seg.evaluation.inputs.datasets import Sample, Target, by_picture, read_samples
from napari_lowlat_seg.evaluation.inputs.segmenters import Segmenter, load_segmenter
from napari_lowlat_seg.inference.processors import usable

# A task of a worker process: so many objects of one picture. More would leave other workers idle at the end.
TASK_OBJECTS = 24

Result = TypeVar("Result")
Measure = Callable[[Sequence[Segmenter], Iterable[Sample]], Iterable[list[Result]]]


@dataclass(frozen=True)
class Team:
    """The models that are asked, and the processes that ask them.

    Attributes:
        models: lines of text that `rivals.load_segmenter` understands.
        device, closer_look: as in `load_segmenter`.
        workers: processes, each with its own models and its share of the cores; on a GPU they share the
            device. 0 takes one process for every two cores.

    Raises:
        ValueError: for a negative number of workers.
    """

    models: tuple[str, ...]
    device: str = "auto"
    closer_look: str = "auto"
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")

    @property
    def processes(self) -> int:
        """How many there are."""
        return self.workers or max(1, usable() // 2)

    @property
    def threads(self) -> int:
        """Cores that each process may use."""
        return max(1, usable() // self.processes)


def over_objects(
    measure: Measure[Result], team: Team, targets: Sequence[Target], title: str = ""
) -> tuple[list[Result], bool]:
    """The results for all objects in the order of the targets, and whether no Ctrl-C ended it early.

    Parameters:
        measure: what is asked; see the top of this module.
        team: whom it is asked. The models stay loaded in this process, for the next question to the same.
        targets: those of one picture follow each other.
        title: stands before the progress bar.

    Raises whatever the models or the measure raise.
    """
    ask = _here if team.processes == 1 else _apart
    done: dict[Target, list[Result]] = {}
    complete = True
    with tqdm(total=len(targets), unit="object", desc=title) as progress:
        try:
            for target, results in ask(measure, team, targets):
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


@lru_cache(maxsize=1)
def _loaded(team: Team) -> list[Segmenter]:
    return [
        load_segmenter(spec, device=team.device, closer_look=team.closer_look, threads=team.threads)
        for spec in team.models
    ]


def _here(
    measure: Measure[Result], team: Team, targets: Sequence[Target]
) -> Iterator[tuple[Target, list[Result]]]:
    yield from zip(targets, measure(_loaded(team), read_samples(targets)))


def _apart(
    measure: Measure[Result], team: Team, targets: Sequence[Target]
) -> Iterator[tuple[Target, list[Result]]]:
    """Results as they come from worker processes, which take the next picture when they are done with one."""
    tasks = [
        same[i : i + TASK_OBJECTS] for same in by_picture(targets) for i in range(0, len(same), TASK_OBJECTS)
    ]
    before = set(active_children())
    pool = ProcessPoolExecutor(
        team.processes, mp_context=get_context("spawn"), initializer=_quiet, initargs=(team.threads,)
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
    measure: Measure[Result], team: Team, targets: Sequence[Target]
) -> list[tuple[Target, list[Result]]]:
    return list(_here(measure, team, targets))
