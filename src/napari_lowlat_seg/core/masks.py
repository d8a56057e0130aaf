"""An object's mask on one plane as a session keeps it: small, exact to store, and finished to taste.

Thousands of masks are kept for undo and for objects to reopen. A probability is rounded to steps of half a
percent, so that what is kept, shown and fed back to the network is one and the same thing, and undo and redo
are exact.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

THRESHOLD = 0.49
"""Foreground is a probability above this. The original evaluates with 0.49, not 0.5."""

LEVELS = 200
"""Steps of probability. The threshold falls between two of them: rounding moves no pixel across it."""


@dataclass(frozen=True, eq=False)
class SoftMask:
    """The probability of an object on one plane.

    Attributes
    ----------
    shape
        (rows, cols) of the plane.
    box
        (row, col, stop row, stop col) outside of which the probability is 0; (0, 0, 0, 0) when it is nowhere.
    packed
        The rounded probability inside the box, compressed.
    quality
        The network's own estimate of its IoU in [0, 1], or None.
    drawn
        Whether a person drew the mask; no threshold or smoothing is applied to it then.
    """

    shape: tuple[int, int]
    box: tuple[int, int, int, int]
    packed: bytes
    quality: float | None = None
    drawn: bool = False

    @classmethod
    def of(cls, probability: np.ndarray, quality: float | None = None) -> SoftMask:
        """The answer for (rows, cols) probabilities in [0, 1]; below half a percent counts as 0."""
        steps = np.ceil(np.float32(LEVELS) * probability).astype(np.uint8)
        steps[steps == 1] = 0  # a sigmoid never quite reaches 0
        return cls._packed(steps, quality, drawn=False)

    @classmethod
    def from_mask(cls, mask: np.ndarray) -> SoftMask:
        """The answer of a person who drew this (rows, cols) bool mask."""
        return cls._packed(np.where(mask, np.uint8(LEVELS), np.uint8(0)), None, drawn=True)

    @classmethod
    def _packed(cls, steps: np.ndarray, quality: float | None, drawn: bool) -> SoftMask:
        box = bounds(steps)
        packed = zlib.compress(steps[inside(box)].tobytes(), 1)
        return cls((steps.shape[0], steps.shape[1]), box, packed, quality, drawn)

    @cached_property
    def _steps(self) -> np.ndarray:
        rows, cols = self.box[2] - self.box[0], self.box[3] - self.box[1]
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(rows, cols)

    @property
    def probability(self) -> np.ndarray:
        """(rows, cols) float32 in [0, 1], in the middle of the steps it was rounded to."""
        table = ((np.arange(LEVELS + 1) - 0.5) / LEVELS).astype(np.float32)
        table[0], table[-1] = 0, 1
        whole = np.zeros(self.shape, np.float32)
        whole[inside(self.box)] = table[self._steps]
        return whole

    @property
    def mask(self) -> np.ndarray:
        """(rows, cols) bool: probability above 0.49."""
        mask = np.zeros(self.shape, np.bool_)
        mask[inside(self.box)] = self.above(THRESHOLD)
        return mask

    @property
    def pixels(self) -> int:
        """How many there are in `mask`."""
        return int(np.count_nonzero(self.above(THRESHOLD)))

    def redrawn(self, probability: np.ndarray) -> SoftMask:
        """This answer with another probability, (rows, cols) in [0, 1]."""
        return SoftMask.of(probability, self.quality)

    def on(self, shape: tuple[int, int], corner: tuple[int, int]) -> SoftMask:
        """The same answer on a plane of another shape, its first pixel at a corner; what lies beside is cut.

        A tile's answer goes to its plane with the tile's corner, and back with the corner negated.
        """
        (top, left), box = corner, self.box
        if box == (0, 0, 0, 0):
            return replace(self, shape=shape)
        moved = (box[0] + top, box[1] + left, box[2] + top, box[3] + left)
        kept = (max(0, moved[0]), max(0, moved[1]), min(shape[0], moved[2]), min(shape[1], moved[3]))
        if kept == moved:
            return replace(self, shape=shape, box=moved)
        if kept[0] >= kept[2] or kept[1] >= kept[3]:
            return replace(self, shape=shape, box=(0, 0, 0, 0), packed=zlib.compress(b"", 1))
        steps = self._steps[kept[0] - moved[0] : kept[2] - moved[0], kept[1] - moved[1] : kept[3] - moved[1]]
        return self._placed(shape, kept[:2], steps)

    def laid_over(self, before: SoftMask | None, box: tuple[int, int, int, int]) -> SoftMask:
        """This answer inside a box of the plane, and outside of it the one before."""
        if before is None or _within(before.box, box):
            return self
        parts = [one for one in (self, before) if one.box != (0, 0, 0, 0)]
        top, left = (min(one.box[side] for one in parts) for side in (0, 1))
        shape = (max(one.box[2] for one in parts) - top, max(one.box[3] for one in parts) - left)
        steps, *more = (Patch(one.box[:2], one._steps).on(shape, (top, left)) for one in reversed(parts))
        low, high = (
            (max(0, box[0] - top), max(0, box[1] - left)),
            (max(0, box[2] - top), max(0, box[3] - left)),
        )
        steps[low[0] : high[0], low[1] : high[1]] = 0
        for inner in more:
            np.maximum(steps, inner, out=steps)
        return self._placed(self.shape, (top, left), steps)

    def _placed(self, shape: tuple[int, int], corner: tuple[int, int], steps: np.ndarray) -> SoftMask:
        part = self._packed(steps, self.quality, self.drawn)
        return replace(part, shape=shape).on(shape, corner)

    def above(self, threshold: float) -> np.ndarray:
        """Where the probability is above `threshold`, as a bool array of the size of the box."""
        above: np.ndarray = self._steps > LEVELS * threshold + 0.5
        return above

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        return len(self.packed) + 200

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_steps"}


@dataclass(frozen=True)
class PostProcessing:
    """What is done to a probability before it is shown and written.

    Attributes
    ----------
    threshold
        Foreground is a probability above this, 0 to 1 exclusive.
    smooth
        Standard deviation in pixels by which the mask's outline is smoothed; 0 leaves it.
    fill_holes
        Whether background that the mask encloses becomes foreground.
    largest
        Whether only the largest connected part stays (neighbours share an edge).

    Raises
    ------
    ValueError
        For a threshold or smoothing out of range.
    """

    threshold: float = THRESHOLD
    smooth: float = 0.0
    fill_holes: bool = False
    largest: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"the threshold must lie between 0 and 1, got {self.threshold}")
        if not 0 <= self.smooth <= 50:
            raise ValueError(f"smoothing must be from 0 to 50 pixels, got {self.smooth}")


def postprocess(answer: SoftMask, finish: PostProcessing) -> np.ndarray:
    """The (rows, cols) bool mask of an answer; one drawn by hand is taken as it is. Does not mutate."""
    return postprocess_patch(answer, finish).on(answer.shape)


@dataclass(frozen=True, eq=False)
class Patch:
    """The part of a plane where something is.

    Attributes
    ----------
    corner
        (row, col) of its first pixel in the plane.
    pixels
        (rows, cols) of any type; all other pixels of the plane are 0.
    """

    corner: tuple[int, int]
    pixels: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(row, col, stop row, stop col) in the plane."""
        (top, left), (rows, cols) = self.corner, self.pixels.shape
        return top, left, top + rows, left + cols

    def on(self, shape: tuple[int, int], corner: tuple[int, int] = (0, 0)) -> np.ndarray:
        """What a part of the plane, of this shape and at this corner, shows of it."""
        shown = np.zeros(shape, self.pixels.dtype)
        top, left, bottom, right = (at - corner[i % 2] for i, at in enumerate(self.box))
        part = self.pixels[max(0, -top) : max(0, shape[0] - top), max(0, -left) : max(0, shape[1] - left)]
        if part.size:
            shown[max(0, top) : bottom, max(0, left) : right] = part
        return shown


NOWHERE = Patch((0, 0), np.zeros((0, 0), np.bool_))
"""The mask of an object that is not on a plane."""


def postprocess_patch(answer: SoftMask, finish: PostProcessing) -> Patch:
    """The bool mask of an answer where it is, with a pixel of background around it."""
    plain = answer.above(THRESHOLD if answer.drawn else finish.threshold)
    if not plain.any():
        return NOWHERE
    # What finishing can reach lies around the box; beyond the plane there is nothing to reach.
    reach = 1 if answer.drawn else int(np.ceil(4 * finish.smooth)) + 1
    top, left = max(0, answer.box[0] - reach), max(0, answer.box[1] - reach)
    bottom, right = min(answer.shape[0], answer.box[2] + reach), min(answer.shape[1], answer.box[3] + reach)
    part = Patch(answer.box[:2], plain).on((bottom - top, right - left), (top, left))
    if answer.drawn:
        return Patch((top, left), part)
    from scipy import ndimage  # a quarter of a second, which a window has not when it opens

    if finish.smooth:
        part[:] = ndimage.gaussian_filter(part.astype(np.float32), finish.smooth, mode="nearest") > 0.5
    if finish.fill_holes:
        part[:] = ndimage.binary_fill_holes(part)
    if finish.largest:
        labels, count = ndimage.label(part)
        if count > 1:
            part[:] = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return Patch((top, left), part)


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(row, col, stop row, stop col) of what is not zero in a 2-D array; (0, 0, 0, 0) when all is."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return (0, 0, 0, 0)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    cols = np.flatnonzero(mask[top:bottom].any(axis=0))
    return (top, int(cols[0]), bottom, int(cols[-1]) + 1)


def _within(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return box == (0, 0, 0, 0) or (
        box[0] >= other[0] and box[1] >= other[1] and box[2] <= other[2] and box[3] <= other[3]
    )


def inside(box: tuple[int, int, int, int]) -> tuple[slice, slice]:
    """The numpy key of a box."""
    return slice(box[0], box[2]), slice(box[1], box[3])
