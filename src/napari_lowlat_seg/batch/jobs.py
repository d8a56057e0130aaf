"""Work on an image cut into jobs, done here, by processes of this machine, or on a Dask cluster.

A job is given to another worker when its worker dies. Jobs must therefore leave nothing half done: each
writes whole files, and finds what an earlier try has written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar

from napari_lowlat_seg.batch.progress import progress
from napari_lowlat_seg.batch.workers import ABANDONED, RETRIES, LocalWorkers
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.inference.predictor import Predictor, load_predictor
from napari_lowlat_seg.io.choice import WHOLE, Choice
from napari_lowlat_seg.io.files import read_chosen

FETCHES = 100
"""How often a result is fetched whose worker has died."""

Stamp = tuple[int, int] | None

Job = TypeVar("Job")
OnImage = TypeVar("OnImage", bound="BatchJob")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How an image is seen, and where the work is done.

    Attributes
    ----------
    model, device
        As in `load_predictor`.
    axis
        The axis of the file along which the planes lie; None for the one of `default_axis`, as viewers do.
    choice
        Which image of the file, and which part of it.
    workers
        Processes on this machine; 0 works in this process.
    scheduler
        Address of a running Dask scheduler, "tls://host:8786"; `workers` does not count then.
    insecure_scheduler
        Allow one without TLS, to which anybody who reaches it can send code.
    replace
        Write labels anew that are there already.
    """

    model: str = "default"
    device: str = "auto"
    axis: int | None = None
    choice: Choice = WHOLE
    workers: int = 0
    scheduler: str | None = None
    insecure_scheduler: bool = False
    replace: bool = False

    @property
    def on_cluster(self) -> bool:
        """Whether the work is done elsewhere than in this process."""
        return self.workers > 0 or self.scheduler is not None


DEFAULTS = BatchSettings()


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """What a worker must know to work on an image: everything is opened where the work is done.

    Attributes
    ----------
    image
        A file, or an OME-Zarr, that every worker reaches under the same path.
    settings
        Those of the command.
    window
        (low, high), one intensity window for all jobs, so that every worker sees the same brightness.
    items
        The planes or the seeds to work on.
    """

    image: Path
    settings: BatchSettings = DEFAULTS
    window: tuple[float, float] | None = None
    items: tuple[Any, ...] = ()

    def predictor(self) -> Predictor:
        """The predictor, loaded once in a worker's life."""
        model = self.settings.model
        return cached_predictor(model, self.settings.device, _stamp(Path(model)))

    def volume(self) -> Volume:
        """The image, opened once for all jobs on it, seen through the window."""
        volume = cached_volume(self.image, self.settings.choice, _stamp(self.image))
        return replace(volume, window=self.window)

    def split(self, size: int) -> list[Self]:
        """Jobs of up to `size` items each, in order."""
        return [
            replace(self, items=self.items[start : start + size]) for start in range(0, len(self.items), size)
        ]


@lru_cache(maxsize=1)
def cached_predictor(model: str, device: str, stamp: Stamp) -> Predictor:
    """`load_predictor`, again only for another model or a file that has changed."""
    return load_predictor(model, device=device)


@lru_cache(maxsize=1)
def cached_volume(image: Path, choice: Choice, stamp: Stamp) -> Volume:
    """`read_chosen`, again only for another image or a file that has changed."""
    return read_chosen(image, choice)


def _stamp(path: Path) -> Stamp:
    """What changes when a file is written anew; None where there is none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size


def check_new(output: Path, replace: bool) -> None:
    """Refuse labels that are there already: whether another run adds to them or not must not be a guess.

    Raises
    ------
    ValueError
        For a file unless it is to be replaced, and for a folder that is not empty.
    """
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"{output} holds labels already; remove the folder, or give another name")
    if output.is_file() and not replace:
        raise ValueError(f"{output} exists; give another name, or --replace to write it anew")


def run_jobs(
    work: Callable[[OnImage], Result],
    jobs: Sequence[OnImage],
    on_result: Callable[[Result], object],
    settings: BatchSettings,
    *,
    unit: str,
) -> None:
    """Do all jobs and show the progress, counted in their items.

    Parameters
    ----------
    work
        A function of a module, because it travels to the workers.
    on_result
        Called in this process with each result, in the order in which they come.
    settings
        Where the work is done.
    unit
        What an item is, for the bar.

    Raises
    ------
    ValueError, ImportError
        As `connected`, and whatever `work` raises.
    OSError
        If a job has crashed every worker that took it.
    """
    total = sum(len(job.items) for job in jobs)
    with (
        connected(settings.scheduler, settings.workers, settings.insecure_scheduler) as client,
        progress(total, unit) as bar,
    ):
        for job, result in map_jobs(client, work, jobs):
            on_result(result)
            bar.update(len(job.items))


@contextmanager
def connected(scheduler: str | None, workers: int, insecure: bool = False) -> Iterator[Any]:
    """What `map_jobs` gives work to: the Dask cluster at an address, else `workers` processes, None for 0.

    The processes end with the context; a cluster stays up.

    Parameters
    ----------
    scheduler
        "tls://host:8786"; keys and certificates are those of Dask's configuration. Whoever can answer in the
        scheduler's place runs code here, and whoever reaches it runs code there.
    workers
        Do not count where there is a scheduler.
    insecure
        Also connect to a scheduler without TLS.

    Raises
    ------
    ValueError
        For a scheduler without TLS that is not allowed, if nothing answers at the address within 10 s, or for
        a negative number of workers.
    ImportError
        If Dask is not installed and a scheduler was given.
    """
    if workers < 0:
        raise ValueError(f"a cluster needs 0 workers or more; got {workers}")
    if scheduler is not None:
        with _cluster(scheduler, insecure) as client:
            yield client
    elif workers:
        with LocalWorkers(workers) as local:
            yield local
    else:
        yield None


def _cluster(scheduler: str, insecure: bool) -> Any:
    """A client of a running Dask scheduler."""
    if not scheduler.startswith("tls://") and not insecure:
        raise ValueError(
            f"the scheduler at {scheduler!r} has no TLS, so anybody who reaches it, or answers in its place, "
            "can run code as you; use tls://HOST:PORT with the keys in Dask's configuration, or allow it "
            "with --insecure-scheduler"
        )
    try:
        from dask.distributed import Client, Security
    except ImportError as error:
        raise ImportError(
            "a Dask scheduler needs Dask, which is not installed; pip install 'dask[distributed]' (the extra "
            '"cluster"), or use workers of this machine'
        ) from error
    security = Security() if insecure else _with_keys(Security)
    try:
        return Client(scheduler, timeout=10, security=security)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {scheduler!r}; check the address") from error


def _with_keys(security: Callable[..., Any]) -> Any:
    """Dask's configured keys. Without an authority's certificate any server would do, so it must be there."""
    keys = security(require_encryption=True)
    if not keys.tls_ca_file:
        raise ValueError(
            "a scheduler with TLS needs the certificate of its authority; name the file in Dask's "
            "configuration (distributed.comm.tls.ca-file, and the client's cert and key)"
        )
    return keys


def _result(future: Any) -> Any:
    """Result of a future that was done; fetched again if its worker died with it and it is computed anew.

    `as_completed(with_results=True)` would wait for ever then: the fetch fails in a task that nobody awaits.
    """
    for _ in range(FETCHES - 1):
        try:
            return future.result()
        except Exception:
            if future.status in ("error", "cancelled"):
                raise
            time.sleep(0.1)
    return future.result()


def map_jobs(client: Any, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
    """(job, result) in the order in which they come; without a client (None) the work is done here, in turn.

    Parameters
    ----------
    client
        What `connected` yields.

    Raises
    ------
    OSError
        If a job has crashed as many workers as the cluster allows.
    Exception
        The first error of `work` that is still there after `RETRIES`.
    """
    if client is None:
        for job in jobs:
            yield job, work(job)
        return
    if isinstance(client, LocalWorkers):
        yield from client.map(work, jobs)
        return
    from dask.distributed import KilledWorker, as_completed

    # Not pure: what a job leaves behind is its point, and a result kept from earlier would skip it.
    futures = client.map(work, jobs, pure=False, retries=RETRIES)
    job_of = dict(zip(futures, jobs, strict=True))
    try:
        for future in as_completed(futures):
            yield job_of[future], _result(future)
    except KilledWorker as error:
        raise OSError(ABANDONED) from error
