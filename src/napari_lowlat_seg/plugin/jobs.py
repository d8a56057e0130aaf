"""What the worker's thread has to do, what is most urgent, and what gives way to what."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from napari_lowlat_seg.serving.service import PlaneSource

URGENCY = ("load", "ask", "trial", "look", "carry", "ahead")
"""Kinds of jobs, the most urgent first. The last one is nobody's wish yet: not told of, not waited for."""


@dataclass(eq=False)
class Job:
    """Something for the thread to do; `epoch` counts the cancels before it."""

    kind: str
    epoch: int
    source: PlaneSource | None = None
    request: Any = None
    shown: bool = False  # whether its first answer is on the screen
    sources: Sequence[PlaneSource] = ()
    what: str = ""
    after: tuple[PlaneSource, ...] = ()  # what to embed ahead once this one is
    dropped: bool = False
    looked_at: bool = False  # while it was embedded ahead
    begun: float = 0.0
    asked: float = field(default_factory=time.perf_counter)

    @property
    def identity(self) -> Any:
        """Of its plane; None for a job without one."""
        return None if self.source is None else self.source.identity


def gives_way(job: Job, wanted: Mapping[str, Job], ready: Set[Hashable], typical: float) -> bool:
    """Whether an embedding under way is left for what is wanted now.

    A plane on which something was asked is left only for another such plane. One that was looked at is
    finished when a quarter is done: somebody who scrolls faster than the network would find nothing
    embedded at all. One ahead is finished before a look at a plane that is embedded already.

    Parameters
    ----------
    ready
        Identities of the planes that are embedded.
    typical
        Seconds that an embedding takes; 0 if that is not known yet.
    """
    rivals = ("ask",) if job.kind == "ask" else ("ask", "trial", "look", "ahead")
    newest = next((wanted[kind] for kind in rivals if kind in wanted), None)
    if newest is None or newest.identity == job.identity:
        return False
    if newest.kind == "ahead":
        return job.kind == "ahead" and job.identity not in {source.identity for source in newest.after}
    if newest.kind == "look" and job.kind == "ahead" and newest.identity in ready:
        return False
    if newest.kind == "look" and (job.kind == "look" or job.looked_at):
        return time.perf_counter() - job.begun < typical / 4 or not typical
    return True
