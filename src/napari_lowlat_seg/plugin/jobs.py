"""What the worker's thread does, and what it leaves for something more urgent."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from napari_lowlat_seg.core.requests import PlaneSource

URGENCY = (
    "load",
    "predict",
    "preview",
    "predict_ahead",
    "embed",
    "propagate",
    "find",
    "embed_ahead",
)
"""Kinds of jobs, the most urgent first."""

LESS_URGENT = frozenset(URGENCY[URGENCY.index("predict_ahead") + 1 :])
"""Kinds that a prediction ahead of its request does not stop for."""

QUIET = frozenset({"predict_ahead", "embed_ahead"})
"""Kinds that nobody has asked for yet: no signal `started` or `idle` for them."""


@dataclass(eq=False)
class Job:
    """Something for the thread to do.

    Attributes
    ----------
    kind
        One of `URGENCY`.
    epoch
        How often everything had been cancelled before.
    source, sources
        The plane of the job; those of a propagation.
    request
        What is to be predicted or propagated.
    shown
        Whether its first mask is on the screen.
    what
        What to say while it is done.
    after
        Planes to embed ahead once this one is.
    dropped
        Not wanted any more.
    viewed
        The plane came into view while it was embedded ahead.
    first
        Of a search: how many planes before those of `sources` have been searched.
    begun, requested
        `time.perf_counter` when the embedding began, and when the job was requested.
    """

    kind: str
    epoch: int
    source: PlaneSource | None = None
    request: Any = None
    shown: bool = False
    sources: Sequence[PlaneSource] = ()
    what: str = ""
    after: tuple[PlaneSource, ...] = ()
    dropped: bool = False
    viewed: bool = False
    first: int = 0
    begun: float = 0.0
    requested: float = field(default_factory=time.perf_counter)

    @property
    def identity(self) -> Any:
        """Identity of its plane's source; None for a job without one."""
        return None if self.source is None else self.source.identity

    def predicts(self, asked: Job) -> bool:
        """Whether the first mask of this job is that of another one: a click where the button went down.

        A point that has gone through a layer of napari may come back different in the last digit.
        """
        mine, theirs = self.request, asked.request
        same = (self.epoch, self.identity, mine.object) == (asked.epoch, asked.identity, theirs.object)
        if not same or mine.previous is not theirs.previous or mine.prompts[:-1] != theirs.prompts[:-1]:
            return False
        one, other = mine.prompts[-1], theirs.prompts[-1]
        if type(one) is not type(other) or one.positive != other.positive:
            return False
        return bool(np.allclose(one.points, other.points, rtol=0, atol=1e-6))


_PREEMPTING = {
    "predict": ("predict",),
    "embed_ahead": ("predict", "preview", "predict_ahead", "embed", "embed_ahead"),
}
"""By the kind of an embedding under way, for which kinds of jobs it may be abandoned, in their order."""


def should_yield(job: Job, waiting: Mapping[str, Job], ready: Set[Hashable], typical: float) -> bool:
    """Whether an embedding under way is abandoned for the jobs that wait.

    A plane with a request is abandoned only for another one with a request. A plane in view is finished once
    a quarter is done, or a user who scrolls faster than the network would find nothing embedded at all. A
    plane ahead is finished when the plane that comes into view is embedded already.

    Parameters
    ----------
    job
        The embedding under way.
    waiting
        Jobs that wait, by kind.
    ready
        Identities of the planes that are embedded.
    typical
        Seconds that an embedding takes; 0 if that is not known yet.
    """
    preempting = _PREEMPTING.get(job.kind, ("predict", "preview", "embed", "embed_ahead"))
    newest = next((waiting[kind] for kind in preempting if kind in waiting), None)
    if newest is None or newest.identity == job.identity:
        return False
    if newest.kind == "embed_ahead":
        return job.kind == "embed_ahead" and job.identity not in {source.identity for source in newest.after}
    if newest.kind == "embed" and job.kind == "embed_ahead" and newest.identity in ready:
        return False
    if newest.kind == "embed" and (job.kind == "embed" or job.viewed):
        return time.perf_counter() - job.begun < typical / 4 or not typical
    return True
