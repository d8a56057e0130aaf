"""The state of one object on one plane, and what new prompts, predictions and brush strokes make of it.

States are frozen: a session keeps them, undo exchanges them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.masks import PostProcessing, SoftMask, postprocess, postprocess_patch
from napari_lowlat_seg.core.prompts import Click, Prompt, Scribble


@dataclass(frozen=True, eq=False)
class PlaneState:
    """The prompts and the mask of one object on one plane. No method mutates it.

    Attributes
    ----------
    prompts
        All that the user has given, in order.
    soft_mask
        The newest mask, shown until the next one comes; None before the first.
    previous
        The mask that is refined by the prompts without a prediction.
    drawn
        The mask that a person drew or took from the labels; None without one. Later prompts refine it.
    prompts_before_drawn
        How many of the prompts are older than `drawn`, which has taken their place.
    pending
        Whether the prompts wait for a prediction, so that `soft_mask` belongs to earlier ones.
    ticket
        A number that no other state of the session has; a prediction with another ticket is stale.
    confidence
        Estimated IoU, 0 to 1, of a mask that was propagated to this plane; None where a person gave prompts
        or drew.
    brushed
        The pixels that a brush has changed in the mask that was shown; None without a stroke.
    refined
        How many of the prompts are older than `previous`, which they have made.
    first
        The mask as it was predicted, where the user has chosen among its levels; None else.
    level
        The level of it that is `soft_mask`, as `SoftMask.at_level` has it.
    """

    prompts: tuple[Prompt, ...] = ()
    soft_mask: SoftMask | None = None
    previous: SoftMask | None = None
    drawn: SoftMask | None = None
    prompts_before_drawn: int = 0
    pending: bool = False
    ticket: int = 0
    confidence: float | None = None
    brushed: SoftMask | None = None
    refined: int = 0
    first: SoftMask | None = None
    level: int = 0

    @property
    def anchor(self) -> bool:
        """Whether a person has shown the object here and its mask is there."""
        return not self.pending and self.soft_mask is not None and self.confidence is None

    @property
    def effective_prompts(self) -> tuple[Prompt, ...]:
        """The prompts for the network: of those older than the drawing, only what agrees with it."""
        older = self.prompts[: self.prompts_before_drawn]
        return (*_agreeing(older, self.drawn), *self.prompts[self.prompts_before_drawn :])

    @property
    def ambiguous(self) -> bool:
        """Whether the mask is what the first prompt has given, which may mean something else as well."""
        return self.anchor and self.begun

    @property
    def begun(self) -> bool:
        """Whether there is one prompt, a positive one, and no mask that it refines."""
        alone = len(self.prompts) == 1 and self.prompts[0].positive
        return alone and self.drawn is None and self.previous is None

    @property
    def as_predicted(self) -> SoftMask | None:
        """The mask whose levels can be chosen, as it was predicted; None of a state not `ambiguous`."""
        mask = self.soft_mask if self.first is None else self.first
        return mask if self.ambiguous else None

    @property
    def age(self) -> tuple[bool, int]:
        """Sorts states from old to new; what a person has shown counts as newer than what was propagated."""
        return self.confidence is None, self.ticket

    @property
    def base(self) -> SoftMask | None:
        """The mask that one more prompt refines."""
        return self.previous if self.pending else self.soft_mask

    def with_prompts(self, prompts: tuple[Prompt, ...], start: SoftMask | None = None) -> PlaneState:
        """This state with other prompts.

        Prompts that only add to the old ones refine the mask that was there. Any other change starts afresh,
        because the effect of a removed click on the mask must go with it.

        Parameters
        ----------
        prompts
            All of them.
        start
            What the first prompt refines where nothing is drawn: what the object is elsewhere.
        """
        kept = 0
        while kept < min(len(prompts), len(self.prompts)) and prompts[kept] == self.prompts[kept]:
            kept += 1
        changed = replace(self, prompts=prompts, confidence=None, first=None, level=0)
        if kept == len(self.prompts):
            refined = self.refined if self.pending else kept
            base = start if not self.prompts and self.base is None else self.base
            return replace(changed, previous=base, pending=True, refined=refined)
        older = min(self.prompts_before_drawn, kept)
        changed = replace(changed, previous=self.drawn, prompts_before_drawn=older, refined=older)
        if len(prompts) > older:
            return replace(changed, previous=start if self.drawn is None else self.drawn, pending=True)
        return replace(changed, soft_mask=self.drawn, pending=False)  # no prompt is left beside the drawing

    def with_drawn_mask(self, drawn: SoftMask, shown: Patch | None) -> PlaneState:
        """This state with a mask that a person drew over the one shown; later prompts refine it."""
        parts = [shown.box] if shown is not None else []
        parts += [self.brushed.box] if self.brushed is not None else []
        box = drawn.box.union(*parts)
        changed = drawn.cropped(box).mask
        if shown is not None:
            changed ^= shown.shown_in(box)
        changed |= self._protected(box)
        return replace(
            self,
            soft_mask=drawn,
            previous=drawn,
            drawn=drawn,
            prompts_before_drawn=len(self.prompts),
            refined=len(self.prompts),
            brushed=SoftMask.from_mask(changed).on(drawn.shape, box.corner) if changed.any() else None,
            pending=False,
            confidence=None,
            first=None,
            level=0,
        )

    def with_level(self, level: int) -> PlaneState:
        """This state with its mask at another level, from -2 to 2; later prompts refine it.

        Raises ValueError if the state is not `ambiguous`, and for another level.
        """
        if (predicted := self.as_predicted) is None:
            raise ValueError("only the mask of the first prompt has levels; undo the later ones")
        return replace(self, soft_mask=_at_level(predicted, level), first=predicted, level=level)

    def with_prediction(self, soft_mask: SoftMask) -> PlaneState:
        """This state with a new prediction. Pixels the user changed by brush stay as they were drawn.

        After nothing but negative prompts no probability is higher than before them.
        """
        newest = self.prompts[self.refined :]
        if self.previous is not None and newest and not any(prompt.positive for prompt in newest):
            soft_mask = soft_mask.at_most(self.previous)
        if self.brushed is not None and self.drawn is not None:
            box = self.brushed.box
            predicted, drawn = soft_mask.cropped(box), self.drawn.cropped(box)
            inside = np.where(self._protected(box), drawn.probability, predicted.probability)
            predicted = predicted.with_probability(inside).on(soft_mask.shape, box.corner)
            soft_mask = predicted.laid_over(soft_mask, box)
        return replace(self, soft_mask=soft_mask, pending=False)

    def _protected(self, box: BoundingBox) -> np.ndarray:
        """(rows, cols) bool in a box: brushed pixels, less the parts that a later prompt contradicts."""
        if self.brushed is None or self.drawn is None:
            return np.zeros(box.shape, np.bool_)
        from scipy.ndimage import label  # importing it takes 0.25 s, too long when a window opens

        brushed, drawn = self.brushed.cropped(box).mask, self.drawn.cropped(box).mask
        parts, _ = label(brushed, np.ones((3, 3)))
        contradicted = [np.zeros(0, parts.dtype)]
        for prompt in self.prompts[self.prompts_before_drawn :]:
            at = pixels_of(prompt, self.drawn.shape, box)
            contradicted.append(parts[at][drawn[at] != prompt.positive])
        protected: np.ndarray = brushed & ~np.isin(parts, np.unique(np.concatenate(contradicted)))
        return protected


def _agreeing(prompts: Sequence[Prompt], drawn: SoftMask | None) -> tuple[Prompt, ...]:
    """The clicks and scribbles that a mask drawn later does not contradict; the mask replaces the regions."""
    if drawn is None or not prompts:
        return tuple(prompts)
    mask = postprocess(drawn, PostProcessing())
    whole = BoundingBox(0, 0, *drawn.shape)

    def agrees(prompt: Prompt) -> bool:
        if not isinstance(prompt, Click | Scribble):
            return False
        return bool((mask[pixels_of(prompt, drawn.shape, whole)] == prompt.positive).mean() > 0.5)

    return tuple(prompt for prompt in prompts if agrees(prompt))


def pixels_of(prompt: Prompt, shape: tuple[int, int], box: BoundingBox) -> tuple[Any, Any]:
    """The numpy key of a prompt in a box of a plane: its points, or the rectangle around a region."""
    limits, corner, size = np.array(shape) - 1, np.array(box.corner), np.array(box.shape)
    if isinstance(prompt, Click | Scribble):
        points = np.clip(np.rint(np.array(prompt.points)), 0, limits).astype(int) - corner
        rows, cols = points[((points >= 0) & (points < size)).all(axis=1)].T
        return rows, cols
    first, last = np.rint(np.reshape(prompt.bounds(), (2, 2))).astype(int) - corner
    (top, left), (bottom, right) = first.clip(0), (last + 1).clip(0)
    return slice(top, bottom), slice(left, right)


SPECK = 0.05
"""Of the area of the largest part of a mask that is kept; a larger part is no speck."""


@lru_cache(maxsize=16)
def _at_level(predicted: SoftMask, level: int) -> SoftMask:
    """As `SoftMask.at_level`; the last ones are kept, as they are outlined and then chosen."""
    return predicted.at_level(level)


@lru_cache(maxsize=16)
def levels_of(predicted: SoftMask, threshold: float) -> tuple[int, ...]:
    """As `SoftMask.levels`; the last ones are kept, as all that is shown asks for them."""
    return predicted.levels(threshold)


@lru_cache(maxsize=16)
def finished_mask(state: PlaneState, finish: PostProcessing) -> Patch | None:
    """The bool mask of a state after post-processing, cut to where it is; None without a mask.

    Specks far from every positive prompt are dropped, unless a person drew the mask; see `without_specks`.
    The last ones are kept, as a mask is shown and then written: do not change its pixels.
    """
    if state.soft_mask is None:
        return None
    patch = postprocess_patch(state.soft_mask, finish, state.effective_prompts)
    return patch if state.soft_mask.drawn else without_specks(patch, state.prompts, state.soft_mask.shape)


def without_specks(patch: Patch, prompts: Sequence[Prompt], shape: tuple[int, int]) -> Patch:
    """A mask without parts that are small and far from what is meant.

    What is meant are the parts with a positive prompt, or the largest part where there is none, as on a plane
    that was propagated to. Any other part is dropped if it has less than `SPECK` of the area of the largest
    one meant and is farther from all of them than a disk of that area is wide.

    Parameters
    ----------
    patch
        The mask.
    prompts
        Of the object on the plane.
    shape
        (rows, cols) of the plane.
    """
    from scipy import ndimage  # takes 0.25 s, which would delay the window

    parts, count = ndimage.label(patch.pixels, np.ones((3, 3)))
    if count < 2:
        return patch
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    areas[0] = 0
    touched = [np.zeros(0, parts.dtype)]
    touched += [parts[pixels_of(one, shape, patch.box)].ravel() for one in prompts if one.positive]
    meant = np.setdiff1d(np.concatenate(touched), 0)
    if not meant.size:
        meant = np.array([int(np.argmax(areas))])
    largest = int(areas[meant].max())
    small = np.setdiff1d(np.flatnonzero((areas > 0) & (areas < SPECK * largest)), meant)
    if not small.size:
        return patch
    reach = 2 * np.sqrt(largest / np.pi)
    dropped = _chosen(count, small)
    dropped[_near(parts, dropped, _chosen(count, meant), reach)] = False
    return replace(patch, pixels=patch.pixels & ~dropped[parts]) if dropped.any() else patch


def _chosen(count: int, numbers: np.ndarray) -> np.ndarray:
    """Which of so many parts, and of the background before them, have these numbers: (count + 1,) bool."""
    chosen = np.zeros(count + 1, np.bool_)
    chosen[numbers] = True
    return chosen


def _near(parts: np.ndarray, small: np.ndarray, meant: np.ndarray, reach: float) -> np.ndarray:
    """The numbers of the small parts that have a pixel within `reach` of one of those meant."""
    from scipy.spatial import KDTree  # takes a while, as above; a distance transform ten times as long

    inside, few = meant[parts], np.argwhere(small[parts])
    padded = np.pad(inside, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge = np.argwhere(inside & ~inner)  # the nearest pixel is one of these
    farther = np.nextafter(reach, np.inf)  # as far as `reach` counts; the bound itself does not
    near = np.isfinite(KDTree(edge).query(few, distance_upper_bound=farther)[0])
    return np.unique(parts[tuple(few.T)][near])


def edit_title(old: Sequence[Prompt], new: Sequence[Prompt]) -> str:
    """The name of a change of prompts for the user: "click", "remove prompts", "change prompts"."""
    if len(new) == len(old) + 1:
        return type(new[-1]).__name__.lower()
    return "remove prompts" if len(new) < len(old) else "change prompts"
