"""What workers of tests do: in a module without torch, so that a worker starts at once."""

import os
import signal
import time
from pathlib import Path


def slow_file(at: tuple[Path, int]) -> int:
    """Write a file once, slowly."""
    folder, number = at
    path = folder / str(number)
    if not path.exists():
        time.sleep(0.2)
        path.write_text("done")
    return number


def fail(job: int) -> int:
    raise ValueError(f"job {job} cannot be done")


class Unsendable(Exception):
    """An error that a pipe cannot carry."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_strangely(job: int) -> int:
    raise Unsendable(job, job)


def crash(job: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
