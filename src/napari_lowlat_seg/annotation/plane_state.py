"""What is known of one object on one plane, and what a change of prompts or a brush stroke makes of it.

All of it is frozen: a session keeps states, undo exchanges them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.masks import PostProcessing, SoftMask, postprocess
from napari_lowlat_seg.core.prompts import Click, Mask, Polygon, Prompt, Scribble


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
    answer: SoftMask | None = None
    previous: SoftMask | None = None
    drawn: SoftMask | None = None
    since: int = 0
    answered: bool = True
    ticket: int = 0
    confidence: float | None = None
    hand: SoftMask | None = None

    @property
    def anchor(self) -> bool:
        """Whether a person has said what the object is here, and the mask is there."""
        return self.answered and self.answer is not None and self.confidence is None

    @property
    def effective_prompts(self) -> tuple[Prompt, ...]:
        """The prompts that the network is asked: of those older than the drawing, what agrees with it."""
        return (*_agreeing(self.prompts[: self.since], self.drawn), *self.prompts[self.since :])

    @property
    def base(self) -> SoftMask | None:
        """The mask that one more prompt continues from."""
        return self.answer if self.answered else self.previous

    def with_prompts(self, prompts: tuple[Prompt, ...]) -> PlaneState:
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

    def with_drawn_mask(self, drawn: SoftMask, shown: Patch | None) -> PlaneState:
        """This state with a mask drawn by hand over the one shown; later prompts continue from it."""
        parts = [shown.box] if shown is not None else []
        parts += [self.hand.box] if self.hand is not None else []
        box = drawn.box.union(*parts)
        changed = drawn.cropped(box).mask
        if shown is not None:
            changed ^= shown.shown_in(box)
        changed |= self._kept(box)
        return replace(
            self,
            answer=drawn,
            previous=drawn,
            drawn=drawn,
            since=len(self.prompts),
            hand=SoftMask.from_mask(changed).on(drawn.shape, box.corner) if changed.any() else None,
            answered=True,
            confidence=None,
        )

    def with_prediction(self, answer: SoftMask) -> PlaneState:
        """This state with the network's answer to its prompts, less what a brush has forbidden it."""
        if self.hand is not None and self.drawn is not None:
            box = self.hand.box
            there, drawn = answer.cropped(box), self.drawn.cropped(box)
            there = there.with_probability(np.where(self._kept(box), drawn.probability, there.probability))
            answer = there.on(answer.shape, box.corner).laid_over(answer, box)
        return replace(self, answer=answer, answered=True)

    def _kept(self, box: BoundingBox) -> np.ndarray:
        """Where in a part of the plane a brush has the last word; what a later prompt contradicts is free."""
        if self.hand is None or self.drawn is None:
            return np.zeros(box.shape, np.bool_)
        from scipy.ndimage import label  # a quarter of a second, which a window has not when it opens

        hand, drawn = self.hand.cropped(box).mask, self.drawn.cropped(box).mask
        parts, _ = label(hand, np.ones((3, 3)))
        free = [np.zeros(0, parts.dtype)]
        for prompt in self.prompts[self.since :]:
            at = _pixels(prompt, self.drawn.shape, box)
            free.append(parts[at][drawn[at] != prompt.positive])
        kept: np.ndarray = hand & ~np.isin(parts, np.unique(np.concatenate(free)))
        return kept


def _agreeing(prompts: Sequence[Prompt], drawn: SoftMask | None) -> tuple[Prompt, ...]:
    """The clicks and scribbles that a mask drawn later does not contradict; regions it has answered."""
    if drawn is None or not prompts:
        return tuple(prompts)
    mask = postprocess(drawn, PostProcessing())
    whole = BoundingBox(0, 0, *drawn.shape)

    def agrees(prompt: Prompt) -> bool:
        if not isinstance(prompt, Click | Scribble):
            return False
        return bool((mask[_pixels(prompt, drawn.shape, whole)] == prompt.positive).mean() > 0.5)

    return tuple(prompt for prompt in prompts if agrees(prompt))


def _pixels(prompt: Prompt, shape: tuple[int, int], box: BoundingBox) -> tuple[Any, Any]:
    """The key of a prompt's pixels in a part of a plane: its points, or the rectangle around a region."""
    limits, corner, size = np.array(shape) - 1, np.array(box.corner), np.array(box.shape)
    if isinstance(prompt, Click | Scribble):
        points = np.clip(np.rint(np.array(prompt.points)), 0, limits).astype(int) - corner
        rows, cols = points[((points >= 0) & (points < size)).all(axis=1)].T
        return rows, cols
    first, last = np.rint(np.reshape(prompt.bounds(), (2, 2))).astype(int) - corner
    (top, left), (bottom, right) = first.clip(0), (last + 1).clip(0)
    return slice(top, bottom), slice(left, right)


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
