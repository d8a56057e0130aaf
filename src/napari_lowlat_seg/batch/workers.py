"""Processes of this machine that do jobs, each at the end of a pipe that only it and this process hold.

Nothing listens on a port or a socket with a name, so no other user can reach them, whatever the network; a
Dask cluster on this machine did (docs/decisions/trust.md).
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import Any, Self, TypeVar

from napari_lowlat_seg.inference.processors import threads_set_by_user, usable

RETRIES = 3
"""How often a job is tried again after an error; crashes of workers do not count."""

CRASHES = 10
"""How many workers a job may crash before it is abandoned."""

ABANDONED = (
    "a job was abandoned because every worker that took it crashed, probably out of memory; "
    "use fewer workers on each machine"
)

Job = TypeVar("Job")
Result = TypeVar("Result")


class LocalWorkers:
    """So many processes, started when there is work and ended with the context.

    They start as fresh interpreters ("spawn"); a script that uses them needs ``if __name__ == "__main__":``.
    A worker ends by itself when this process is gone.

    Parameters
    ----------
    count
        1 or more.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that have been started."""
        return [worker.pid for worker in self._workers]

    def map(self, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
        """Yield (job, result) in the order in which they come.

        A job whose worker has died is given to a new one.

        Parameters
        ----------
        work
            A function of a module, because it travels to the workers.

        Raises
        ------
        OSError
            If a job has crashed more than `CRASHES` workers.
        Exception
            The first error of `work` that is still there after `RETRIES`.
        """
        left, crashes, errors = deque(range(len(jobs))), Counter[int](), Counter[int]()
        with _threads_each(self._count):
            while len(self._workers) < min(self._count, len(jobs)):
                self._workers.append(_Worker())
        idle, busy = list(self._workers), dict[Any, tuple[_Worker, int]]()
        while left or busy:
            while left and idle:
                worker, place = idle.pop(), left.popleft()
                with suppress(OSError):  # it has died: what is read from its pipe says so
                    worker.pipe.send((work, jobs[place]))
                busy[worker.pipe] = worker, place
            for pipe in wait(list(busy)):
                worker, place = busy.pop(pipe)
                try:
                    error, result = worker.pipe.recv()
                except (EOFError, OSError):
                    crashes[place] += 1
                    if crashes[place] > CRASHES:
                        raise OSError(ABANDONED) from None
                    worker = self._another(worker)
                    left.append(place)
                    error = None
                else:
                    if error is None:
                        yield jobs[place], result
                    else:
                        errors[place] += 1
                        left.append(place)
                if errors[place] > RETRIES and error is not None:
                    raise error
                idle.append(worker)

    def _another(self, dead: _Worker) -> _Worker:
        dead.kill()
        with _threads_each(self._count):
            fresh = _Worker()
        self._workers[self._workers.index(dead)] = fresh
        return fresh


class _Worker:
    """One process and this end of its pipe."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends with the worker
        self.pid: int = self._process.pid or 0

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Any) -> None:
    """Do jobs until the pipe ends; what a worker runs."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C in a terminal is meant for the parent, which ends us
    with suppress(EOFError, OSError):
        while True:
            work, job = pipe.recv()
            try:
                done: tuple[Exception | None, Any] = None, work(job)
            except Exception as error:
                done = _portable(error), None
            pipe.send(done)


def _portable(error: Exception) -> Exception:
    """The error, or one with its sentence if it does not survive a pipe; where it was raised is a note."""
    error.add_note("".join(["in a worker:\n", *traceback.format_exception(error)]))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def _threads_each(workers: int) -> Iterator[None]:
    """A context in which a process that starts computes with its share of the processors."""
    if threads_set_by_user():
        yield
        return
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(max(1, usable() // workers))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
