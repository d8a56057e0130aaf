"""What is known of one object on one plane, and what a change of prompts or a brush stroke makes of it.

All of it is frozen: a session keeps states, undo exchanges them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .answers import Answer, Finish, finished
from .prompts import Click, Mask, Polygon, Prompt, Scribble
from .volume import Plane


@dataclass(frozen=True, eq=False)
class PlaneState:
    """What is known of one object on one plane.

    Attributes
    ----------
    prompts
        All that the user gave, in order.
    answer
        The newest mask, shown until the next one comes; None before the first.
    previous
        The mask that the prompts which are not answered yet continue from.
    drawn
        The mask that a person drew or took from the labels, under all later prompts; None without one.
    since
        How many of the prompts are older than `drawn`: it has answered them.
    answered
        Whether `answer` belongs to these prompts.
    ticket
        A number that no other state has; an answer that carries another ticket is stale.
    confidence
        Of an answer that was carried here from other planes, an estimate of its IoU, 0 to 1; None where a
        person has spoken.
    hand
        Where `drawn` is not what the mask was: the pixels that a brush has changed; None without a stroke.
    """

    prompts: tuple[Prompt, ...] = ()
    answer: Answer | None = None
    previous: Answer | None = None
    drawn: Answer | None = None
    since: int = 0
    answered: bool = True
    ticket: int = 0
    confidence: float | None = None
    hand: Answer | None = None

    @property
    def anchor(self) -> bool:
        """Whether a person has said what the object is here, and the mask is there."""
        return self.answered and self.answer is not None and self.confidence is None

    @property
    def asked(self) -> tuple[Prompt, ...]:
        """The prompts that the network is asked: of those older than the drawing, what agrees with it."""
        return (*_agreeing(self.prompts[: self.since], self.drawn), *self.prompts[self.since :])

    @property
    def base(self) -> Answer | None:
        """The mask that one more prompt continues from."""
        return self.answer if self.answered else self.previous

    def edited(self, prompts: tuple[Prompt, ...]) -> PlaneState:
        """This state with other prompts.

        Prompts that only add to the old ones continue from the mask that was there. Any other change is
        answered afresh: what a removed click did to the mask must go with it.
        """
        kept = 0
        while kept < min(len(prompts), len(self.prompts)) and prompts[kept] == self.prompts[kept]:
            kept += 1
        said = replace(self, prompts=prompts, confidence=None)
        if kept == len(self.prompts):
            return replace(said, previous=self.base, answered=False)
        since = min(self.since, kept)
        if len(prompts) > since:
            return replace(said, previous=self.drawn, since=since, answered=False)
        # Nothing is left to ask beyond what the drawing shows.
        return replace(said, answer=self.drawn, previous=self.drawn, since=since, answered=True)

    def painted(self, drawn: Answer, shown: np.ndarray | None) -> PlaneState:
        """This state with a mask drawn by hand over the one shown; later prompts continue from it."""
        hand = drawn.mask if shown is None else drawn.mask ^ shown
        if self.hand is not None and self.drawn is not None:
            hand |= self._kept(self.hand.mask, self.drawn.mask)
        return replace(
            self,
            answer=drawn,
            previous=drawn,
            drawn=drawn,
            since=len(self.prompts),
            hand=Answer.from_mask(hand),
            answered=True,
            confidence=None,
        )

    def heard(self, answer: Answer) -> PlaneState:
        """This state with the network's answer to its prompts, less what a brush has forbidden it."""
        if self.hand is not None and self.drawn is not None:
            kept = self._kept(self.hand.mask, self.drawn.mask)
            answer = answer.redrawn(np.where(kept, self.drawn.probability, answer.probability))
        return replace(self, answer=answer, answered=True)

    def _kept(self, hand: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Where a brush has the last word, bool; parts of `hand` that a later prompt contradicts are free."""
        from scipy.ndimage import label  # a quarter of a second, which a window has not when it opens

        parts, _ = label(hand, np.ones((3, 3)))
        free = [np.zeros(0, parts.dtype)]
        for prompt in self.prompts[self.since :]:
            at = _pixels(prompt, hand.shape)
            free.append(parts[at][drawn[at] != prompt.positive])
        kept: np.ndarray = hand & ~np.isin(parts, np.unique(np.concatenate(free)))
        return kept


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked of the network; complete in itself.

    Attributes
    ----------
    ticket
        Which state is asked for; 0 for a trial, whose answer is shown and not kept.
    object, plane
        Where the answer belongs.
    prompts
        What it must answer, oldest first.
    previous
        The mask that they continue from, or None.
    """

    ticket: int
    object: int
    plane: Plane
    prompts: tuple[Prompt, ...]
    previous: Answer | None


def _agreeing(prompts: Sequence[Prompt], drawn: Answer | None) -> tuple[Prompt, ...]:
    """The clicks and scribbles that a mask drawn later does not contradict; regions it has answered."""
    if drawn is None or not prompts:
        return tuple(prompts)
    mask = finished(drawn, Finish())

    def agrees(prompt: Prompt) -> bool:
        if not isinstance(prompt, Click | Scribble):
            return False
        return bool((mask[_pixels(prompt, mask.shape)] == prompt.positive).mean() > 0.5)

    return tuple(prompt for prompt in prompts if agrees(prompt))


def _pixels(prompt: Prompt, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """The key of a prompt's pixels in an array of the plane: its points, or the rectangle around a region."""
    limits = np.array(shape) - 1
    if isinstance(prompt, Click | Scribble):
        rows, cols = np.clip(np.rint(np.array(prompt.points)), 0, limits).astype(int).T
        return rows, cols
    top, left, bottom, right = np.clip(np.rint(prompt.bounds()), 0, [*limits, *limits]).astype(int)
    return slice(top, bottom + 1), slice(left, right + 1)


def edit_title(old: Sequence[Prompt], new: Sequence[Prompt]) -> str:
    """What a change of prompts is called: "click", "remove prompts", "change prompts"."""
    if len(new) == len(old) + 1:
        return type(new[-1]).__name__.lower()
    return "remove prompts" if len(new) < len(old) else "change prompts"


def weight(prompts: Sequence[Prompt]) -> int:
    """Bytes of prompts, about: a point is a tuple of two floats."""
    size = 0
    for prompt in prompts:
        size += 200
        if isinstance(prompt, Scribble | Polygon):
            size += 120 * len(prompt.points)
        elif isinstance(prompt, Mask):
            size += prompt.pixels.nbytes
    return size
