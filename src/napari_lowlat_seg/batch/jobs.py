"""Work spread over a Dask cluster: one on this machine, or any whose scheduler has an address.

Dask moves a task to another worker when its worker dies. Tasks must therefore leave nothing half done: each
writes whole files, and finds what an earlier try has written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

RETRIES = 3
"""Times that a task is tried again after an error, deaths of workers not counted."""

DEATHS = 10
"""Workers that a task may lose before it is taken for their murderer."""

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def connected(scheduler: str | None, workers: int) -> Iterator[Any]:
    """A Dask client: of the scheduler at an address, else of `workers` local processes; None for 0 of them.

    The local cluster ends with the context; a cluster at an address goes on.

    Raises
    ------
    ValueError
        If nothing answers at the address within 10 s, or for a negative number of workers.
    ImportError
        If Dask is not installed.
    """
    if workers < 0:
        raise ValueError(f"a cluster needs 0 workers or more; got {workers}")
    if scheduler is None and workers == 0:
        yield None
        return
    try:
        import dask
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError(
            "a cluster needs Dask, which is not installed; pip install napari-lowlat-seg[cluster]"
        ) from error
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=10)
        except (OSError, ValueError) as error:
            raise ValueError(f"no Dask scheduler answers at {scheduler!r}; check the address") from error
        with client:
            yield client
        return
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": DEATHS}),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=40
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def spread(client: Any, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    """The results in the order in which they come; without a client (None) the work is done here, in turn.

    The first error that repeats itself is raised.
    """
    if client is None:
        yield from map(work, jobs)
        return
    from dask.distributed import as_completed

    # Not pure: what a task leaves behind is its point, and a result kept from earlier would skip it.
    futures = client.map(work, jobs, pure=False, retries=RETRIES)
    for _, result in as_completed(futures, with_results=True):
        yield result
