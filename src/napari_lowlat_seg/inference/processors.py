"""How many processors this process may use, and how threads of the network wait for each other.

OpenMP's threads meet after every parallel loop. GNU's runtime, which torch's Linux wheels contain, lets those
that are there first spin for up to 300,000 turns, milliseconds. On a machine with other work they keep the
processor from the very thread that they wait for. After `configure` they spin for `SPIN_TURNS`, then sleep.
Numbers: docs/decisions/busy-machines.md.

The runtime reads its settings once, when it is loaded, so `napari_lowlat_seg/__init__.py` calls `configure`
before anything can import torch. They are environment variables: child processes and workers inherit them.

If the caller imported torch before this package, the waiting of that process cannot be changed any more: set
``GOMP_SPINCOUNT`` before starting Python, or import ``napari_lowlat_seg`` first. Child processes still get
the settings, and the number of threads can be set at any time: ``torch.set_num_threads(usable())``.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path

SPIN_TURNS = 20_000
"""Turns that a waiting thread spins before it sleeps (GOMP_SPINCOUNT), about a millisecond."""

STREAMS = "LOWLAT_SEG_STREAMS"
"""Environment variable, set for a window's model process: how many steps may be under way at a time, where
one step has fewer threads. One step leaves a processor to the window; streams wait for nobody and share it.
"""

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

_ours: dict[str, str] = {}


def configure(environment: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Set what OpenMP's runtime reads when it is loaded, where the user has set nothing.

    GOMP_SPINCOUNT, unless that or OMP_WAIT_POLICY is set; OMP_NUM_THREADS, unless it is set, only if a quota
    of the container allows less than the processors that OpenMP would count.

    Returns
    -------
    dict
        What was set, by name of the variable.
    """
    added: dict[str, str] = {}
    if not any(name in environment for name in _WAITING):
        added["GOMP_SPINCOUNT"] = str(SPIN_TURNS)
    if "OMP_NUM_THREADS" not in environment and usable() < _affinity():
        added["OMP_NUM_THREADS"] = str(usable())
    environment.update(added)
    if environment is os.environ:
        _ours.update(added)
    return added


def threads_set_by_user() -> bool:
    """Whether OMP_NUM_THREADS is set, and not by `configure`."""
    value = os.environ.get("OMP_NUM_THREADS")
    return value is not None and value != _ours.get("OMP_NUM_THREADS")


def streams() -> int:
    """How many steps may be under way at a time beyond the threads of one, at least 1: see `STREAMS`."""
    value = os.environ.get(STREAMS, "")
    return max(1, int(value)) if value.isdecimal() else 1


def usable() -> int:
    """Processors that this process may use, at least 1: those it is bound to, or fewer by its quota.

    Load is left out on purpose: beside other work, the scheduler gives more time to more threads, and the
    load at the start says nothing of the hours after it.
    """
    quota = cpu_quota()
    return _affinity() if quota is None else max(1, min(_affinity(), math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' time per second that Linux' control groups allow this process; None for no limit.

    Parameters
    ----------
    root
        Where proc/self/cgroup and sys/fs/cgroup are.
    """
    limits = [limit for folder in _groups(root) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _groups(root: Path) -> Iterator[Path]:
    """Folders of this process's control groups and of all above them: each may have a limit.

    Within a container the path of a group can be that of the host, which is not visible; the container's own
    limit then stands at the top.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and "cpu" not in names.split(","):
            continue
        for top in {mounted / names, mounted / "cpu"} if names else {mounted}:
            place = Path(path.lstrip("/"))
            yield from (top / part for part in (place, *place.parents))


def _limit(folder: Path) -> float | None:
    """Quota over period of one group, by version 2's file or version 1's two; None where there is none."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if int(quota) > 0 and int(period) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):  # no such file; "max 100000" is no limit
            continue
    return None
