"""An object's mask on one plane, compressed for keeping, and the post-processing of masks.

A session keeps thousands of masks, for undo and for objects that are edited again. Probabilities are rounded
to steps of half a percent, so that what is kept, shown and given back to the network is the same, and undo
and redo are exact. Why there are two forms of a soft mask: docs/decisions/soft-mask.md.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np

from napari_lowlat_seg.core.boxes import EMPTY_BOX, EMPTY_PATCH, BoundingBox, Patch
from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Prompt

THRESHOLD = 0.49
"""Foreground is a probability above this. The original evaluates with 0.49, not 0.5."""

PROBABILITY_STEPS = 200
"""Steps of probability. The threshold falls between two of them: rounding moves no pixel across it."""

LOGIT_SHIFTS = {0: 0.0, 1: 0.5, 2: 1.25, -1: -0.5, -2: -1.25}
"""By level, what is added to the logit of a mask's probability; in the order of `SoftMask.levels`."""

LEVEL_NAMES = {
    0: "first mask",
    1: "larger mask",
    2: "much larger mask",
    -1: "smaller mask",
    -2: "much smaller mask",
}
"""By level, what the user reads."""

SAME = 0.95
"""IoU with another level of a mask from which a level is left out."""

RECENT = 16
"""Masks whose pixels stay unpacked, of all that there are: those that are looked at."""

_TABLE = np.concatenate(
    [[0], (np.arange(1, PROBABILITY_STEPS) - 0.5) / PROBABILITY_STEPS, [1]], dtype=np.float32
)


def _rounded(probability: np.ndarray) -> np.ndarray:
    """The steps, uint8, of probabilities in [0, 1]."""
    steps = np.ceil(np.float32(PROBABILITY_STEPS) * probability).astype(np.uint8)
    steps[steps == 1] = 0  # a sigmoid never quite reaches 0
    return steps


def _raised(shift: float) -> np.ndarray:
    """By step, the step of the probability whose logit is higher by `shift`; 0 and 1 stay what they are."""
    probability, odds = _TABLE.astype(np.float64), np.exp(shift)
    return _rounded(odds * probability / (1 - probability + odds * probability))


_AT_LEVEL = {level: _raised(shift) for level, shift in LOGIT_SHIFTS.items()}


@dataclass(frozen=True, eq=False)
class SoftMask:
    """The probability of an object on one plane, rounded and compressed.

    Attributes
    ----------
    shape
        (rows, cols) of the plane.
    box
        Outside of it the probability is 0; the empty box when it is 0 everywhere.
    packed
        The rounded probability inside the box, compressed by zlib.
    quality
        The network's estimate of the mask's IoU in [0, 1], or None.
    drawn
        Whether the user drew the mask; neither threshold nor smoothing is applied to it then.
    """

    shape: tuple[int, int]
    box: BoundingBox
    packed: bytes
    quality: float | None = None
    drawn: bool = False

    @classmethod
    def of(cls, probability: np.ndarray, quality: float | None = None) -> SoftMask:
        """The soft mask of (rows, cols) probabilities in [0, 1]; what is below half a percent becomes 0."""
        return cls._packed(_rounded(probability), quality, drawn=False)

    @classmethod
    def from_mask(cls, mask: np.ndarray) -> SoftMask:
        """The soft mask that is 1 where the user drew this (rows, cols) bool mask, and 0 elsewhere."""
        return cls._packed(np.where(mask, np.uint8(PROBABILITY_STEPS), np.uint8(0)), None, drawn=True)

    @classmethod
    def _packed(cls, steps: np.ndarray, quality: float | None, drawn: bool) -> SoftMask:
        box = BoundingBox.of(steps)
        packed = zlib.compress(steps[box.slices].tobytes(), 1)
        return cls((steps.shape[0], steps.shape[1]), box, packed, quality, drawn)

    @property
    def value(self) -> tuple[Any, ...]:
        """Equal for masks of equal probabilities, which are compared by identity otherwise."""
        return (self.shape, self.box, self.packed, self.quality, self.drawn)

    @property
    def _steps(self) -> np.ndarray:
        """The unpacked pixels of the box, which few masks keep: a session has thousands of masks to undo."""
        kept: np.ndarray | None = vars(self).get("_kept")
        return _recently_unpacked(self.packed, self.box.shape) if kept is None else kept

    @property
    def probability(self) -> np.ndarray:
        """(rows, cols) float32 in [0, 1], the middle of each pixel's step."""
        whole = np.zeros(self.shape, np.float32)
        whole[self.box.slices] = _TABLE[self._steps]
        return whole

    def unpacked(self) -> SoftMask:
        """An equal mask whose pixels are unpacked, which makes `line` quick and takes a byte a pixel."""
        mask = replace(self)
        vars(mask)["_kept"] = self._steps
        return mask

    def line(self, side: int, at: int) -> np.ndarray:
        """(pixels,) float32 in [0, 1]: the probability along a row (side 0) or a column (side 1).

        Unpacked pixels are not kept: it is made for lines of thousands of planes.
        """
        whole = np.zeros(self.shape[1 - side], np.float32)
        rows, cols = self.box.slices
        across, along = (rows, cols) if side == 0 else (cols, rows)
        if across.start <= at < across.stop:
            steps = self._steps if "_kept" in vars(self) else _unpack(self.packed, self.box.shape)
            whole[along] = _TABLE[steps.take(at - across.start, axis=side)]
        return whole

    @property
    def mask(self) -> np.ndarray:
        """(rows, cols) bool: probability above 0.49."""
        mask = np.zeros(self.shape, np.bool_)
        mask[self.box.slices] = self.above(THRESHOLD)
        return mask

    @property
    def pixels(self) -> int:
        """How many pixels of `mask` are True."""
        return int(np.count_nonzero(self.above(THRESHOLD)))

    def with_probability(self, probability: np.ndarray) -> SoftMask:
        """The soft mask of another probability, (rows, cols) in [0, 1], with this quality."""
        return SoftMask.of(probability, self.quality)

    def on(self, shape: tuple[int, int], corner: tuple[int, int]) -> SoftMask:
        """This mask placed on a plane of another shape, with its first pixel at `corner` (row, col).

        What falls outside the plane is dropped. See `cropped` for the way back.
        """
        box = self.box.shifted(*corner)
        kept = box.clipped(shape)
        if kept == box:
            return replace(self, shape=shape, box=box)
        if kept.is_empty:
            return replace(self, shape=shape, box=EMPTY_BOX, packed=zlib.compress(b"", 1))
        part = self._packed(Patch(box.corner, self._steps).shown_in(kept), self.quality, self.drawn)
        return replace(part, shape=shape, box=part.box.shifted(*kept.corner))

    def cropped(self, box: BoundingBox) -> SoftMask:
        """The part of this mask that lies in a box of the plane; the box may reach beyond the plane."""
        return self.on(box.shape, (-box.top, -box.left))

    def laid_over(self, before: SoftMask | None, box: BoundingBox) -> SoftMask:
        """This mask inside a box of the plane, and `before` outside of the box."""
        if before is None or box.contains(before.box):
            return self
        whole = before.box.union(self.box)
        steps = Patch(before.box.corner, before._steps).shown_in(whole)
        steps[box.intersection(whole).shifted(-whole.top, -whole.left).slices] = 0
        np.maximum(steps, Patch(self.box.corner, self._steps).shown_in(whole), out=steps)
        part = self._packed(steps, self.quality, self.drawn)
        return replace(part, shape=self.shape, box=part.box.shifted(*whole.corner))

    def at_level(self, level: int) -> SoftMask:
        """This mask with the logit of its probability raised or lowered, which makes it larger or smaller.

        Larger levels contain smaller ones. Pixels of probability 0 and 1 keep it, so a drawn mask stays as
        it is. The quality is this one's times the mean of 1 and the IoU with this mask.

        Parameters
        ----------
        level
            -2 to 2, from the smallest to the largest; 0 is this mask.

        Raises
        ------
        ValueError
            For another level.
        """
        if level not in _AT_LEVEL:
            raise ValueError(f"expected a level from -2, the smallest mask, to 2, the largest, got {level!r}")
        if level == 0 or self.drawn:
            return self
        part = self._packed(_AT_LEVEL[level][self._steps], None, drawn=False)
        quality = None
        if self.quality is not None:
            pixels = self._pixels_by_level(THRESHOLD)
            quality = self.quality * (1 + _nested_iou(pixels[0], pixels[level])) / 2
        return replace(part, shape=self.shape, box=part.box.shifted(*self.box.corner), quality=quality)

    def levels(self, threshold: float = THRESHOLD) -> tuple[int, ...]:
        """The levels of this mask that differ: 0, then larger ones, then smaller ones, each further from it.

        A level is left out if none of its probabilities is above `threshold`, or if what is above it has an
        IoU of .95 or more with what is above it in the level before.
        """
        pixels, found = self._pixels_by_level(threshold), [0]
        for level in LOGIT_SHIFTS:
            before = max((one for one in found if one * level >= 0), key=abs)
            if pixels[level] and _nested_iou(pixels[before], pixels[level]) < SAME:
                found.append(level)
        return tuple(found)

    def _pixels_by_level(self, threshold: float) -> dict[int, int]:
        """How many pixels are above a threshold at each level; no mask is made for it."""
        outside = {level: np.count_nonzero(~_above(steps, threshold)) for level, steps in _AT_LEVEL.items()}
        return {level: int(np.count_nonzero(self._steps >= steps)) for level, steps in outside.items()}

    def at_most(self, other: SoftMask) -> SoftMask:
        """The lower of the two probabilities at every pixel, with the quality of this one."""
        box = self.box.intersection(other.box)
        if box.is_empty:
            return replace(self, box=EMPTY_BOX, packed=zlib.compress(b"", 1))
        mine, theirs = (Patch(one.box.corner, one._steps).shown_in(box) for one in (self, other))
        part = self._packed(np.minimum(mine, theirs), self.quality, self.drawn)
        return replace(part, shape=self.shape, box=part.box.shifted(*box.corner))

    def above(self, threshold: float) -> np.ndarray:
        """Where the probability inside `box` is above `threshold`: bool, of the shape of the box."""
        return _above(self._steps, threshold)

    @property
    def nbytes(self) -> int:
        """Approximate size in memory."""
        return len(self.packed) + 200

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_kept"}


def _nested_iou(one: int, other: int) -> float:
    """IoU of two masks of so many pixels, of which one contains the other; 1 of two empty ones."""
    small, large = sorted((one, other))
    return small / large if large else 1.0


def _above(steps: np.ndarray, threshold: float) -> np.ndarray:
    """Whether steps of probability are above a threshold."""
    above: np.ndarray = steps > PROBABILITY_STEPS * threshold + 0.5
    return above


def _unpack(packed: bytes, shape: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape)


_recently_unpacked = lru_cache(maxsize=RECENT)(_unpack)


@dataclass(frozen=True)
class PostProcessing:
    """How a probability becomes the mask that is shown and written.

    Attributes
    ----------
    threshold
        Foreground is a probability above this, 0 to 1 exclusive.
    smooth
        Standard deviation in pixels by which the mask's outline is smoothed; 0 leaves it.
    fill_holes
        Whether background that the mask encloses becomes foreground.
    prompted
        Whether only the connected parts stay in which a positive prompt lies (neighbours share an edge). On a
        plane without such a part all stay: an object that was propagated there has no prompt.
    largest
        Whether only the largest connected part stays, of those with a prompt.
    grow
        By how many pixels the outline moves outwards, or inwards below 0.
    smallest
        Parts of fewer pixels are dropped.

    Raises
    ------
    ValueError
        For a threshold, smoothing, growing or size out of range.
    """

    threshold: float = THRESHOLD
    smooth: float = 0.0
    fill_holes: bool = False
    largest: bool = False
    prompted: bool = False
    grow: float = 0.0
    smallest: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"the threshold must lie between 0 and 1, got {self.threshold}")
        if not 0 <= self.smooth <= 50:
            raise ValueError(f"smoothing must be from 0 to 50 pixels, got {self.smooth}")
        if not -50 <= self.grow <= 50:
            raise ValueError(f"growing must be from -50 to 50 pixels, got {self.grow}")
        if self.smallest < 0:
            raise ValueError(f"the smallest part must have 0 pixels or more, got {self.smallest}")


def postprocess(soft_mask: SoftMask, settings: PostProcessing, prompts: Iterable[Prompt] = ()) -> np.ndarray:
    """The (rows, cols) bool mask of a soft mask; a drawn mask is taken as it is.

    Parameters as of `postprocess_patch`.
    """
    return postprocess_patch(soft_mask, settings, prompts).on(soft_mask.shape)


def postprocess_patch(soft_mask: SoftMask, settings: PostProcessing, prompts: Iterable[Prompt] = ()) -> Patch:
    """The bool mask of a soft mask as a patch, with a pixel of background around it.

    Parameters
    ----------
    settings
        The threshold, and what is done to the mask then; nothing of it to a drawn one.
    prompts
        Those of the plane, for `settings.prompted`.
    """
    plain = soft_mask.above(THRESHOLD if soft_mask.drawn else settings.threshold)
    if not plain.any():
        return EMPTY_PATCH
    patch = Patch(soft_mask.box.corner, plain)
    if soft_mask.drawn:
        box = soft_mask.box.grown(1).clipped(soft_mask.shape)
        return Patch(box.corner, patch.shown_in(box))
    return postprocess_mask(patch, soft_mask.shape, settings, prompts)


def postprocess_mask(
    patch: Patch, shape: tuple[int, int], settings: PostProcessing, prompts: Iterable[Prompt] = ()
) -> Patch:
    """A bool mask after all of the settings but the threshold, with a pixel of background around it.

    Parameters
    ----------
    patch
        The mask.
    shape
        (rows, cols) of its plane.
    prompts
        Those of the plane, for `settings.prompted`.
    """
    # Smoothing, filling and growing change pixels up to `reach` around the box.
    reach = int(np.ceil(4 * settings.smooth + max(0.0, settings.grow))) + 1
    box = patch.box.grown(reach).clipped(shape)
    part = patch.shown_in(box)
    if settings.smooth:
        part = edited(part, "smooth", settings.smooth)
    if settings.fill_holes:
        part = edited(part, "fill_holes")
    if settings.grow:
        part = edited(part, "grow" if settings.grow > 0 else "shrink", abs(settings.grow))
    if settings.prompted:
        from scipy import ndimage

        labels, _ = ndimage.label(part)
        kept = _touched(labels, box, shape, prompts)
        if kept.size:
            part = np.isin(labels, kept)
    if settings.smallest:
        part = edited(part, "drop_small", settings.smallest)
    if settings.largest:
        part = edited(part, "largest")
    return Patch(box.corner, part)


def _touched(
    labels: np.ndarray, box: BoundingBox, shape: tuple[int, int], prompts: Iterable[Prompt]
) -> np.ndarray:
    """The labels, in a box of a plane, of parts in which a positive prompt lies."""
    frame = Frame.whole(shape, max(shape))  # one pixel of the grid for each of the plane
    found = [np.zeros(0, labels.dtype)]
    for prompt in prompts:
        if prompt.positive:
            inside = prompt.footprint(frame, 0).shown_in(box)
            found.append(np.unique(labels[inside & (labels > 0)]))
    return np.unique(np.concatenate(found))


# Edits of masks: the same for post-processing, for the window's tools and for the command line


Edit = Literal["fill_holes", "largest", "drop_small", "smooth", "grow", "shrink"]
"""What can be done to a mask; see `edited`."""


def edited(
    mask: np.ndarray, edit: Edit, amount: float = 0.0, spacing: Sequence[float] | None = None
) -> np.ndarray:
    """A mask with its holes filled, its islands dropped, smoothed, grown or shrunk. Does not mutate.

    Parameters
    ----------
    mask
        bool, of two or three axes, with background around the object as far as it can grow.
    edit
        "fill_holes": background that the object encloses. "largest": only the largest part is kept.
        "drop_small": parts of fewer than `amount` pixels are dropped. "smooth": the outline, by a standard
        deviation of `amount`. "grow" and "shrink": the outline moves by `amount`.
    amount
        Of a length: in pixels of the last axis.
    spacing
        World units per pixel along each axis; None for the same along all.

    Raises
    ------
    ValueError
        For another edit, or a negative amount.

    Examples
    --------
    >>> ring = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 0, 0]], bool)
    >>> int(edited(ring, "fill_holes").sum()), int(edited(ring, "largest").sum())
    (10, 8)
    >>> int(edited(ring, "grow", 1).sum())
    14
    """
    from scipy import ndimage  # takes 0.25 s, which would delay the window

    if edit not in get_args(Edit):
        raise ValueError(f"expected one of {', '.join(get_args(Edit))}, got {edit!r}")
    if not 0 <= amount < float("inf"):
        raise ValueError(f"expected how far, or of how many pixels, as 0 or more, got {amount}")
    sampling = np.ones(mask.ndim) if spacing is None else np.asarray(spacing, np.float64) / spacing[-1]
    made: np.ndarray
    if edit == "fill_holes":
        made = ndimage.binary_fill_holes(mask)
    elif edit in ("largest", "drop_small"):
        parts, count = ndimage.label(mask)
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        sizes[0] = 0
        kept = sizes >= amount if edit == "drop_small" else np.arange(count + 1) == int(np.argmax(sizes))
        made = mask & kept[parts]
    elif edit == "smooth":
        made = ndimage.gaussian_filter(mask.astype(np.float32), amount / sampling, mode="nearest") > 0.5
    elif not mask.any() or not amount:
        made = mask.copy()
    elif edit == "grow":
        made = ndimage.distance_transform_edt(~mask, sampling) <= amount
    else:
        made = mask if mask.all() else ndimage.distance_transform_edt(mask, sampling) > amount
    return made
