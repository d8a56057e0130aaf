"""An object's mask on one plane as a session keeps it: small, exact to store, and finished to taste.

Thousands of masks are kept for undo and for objects to reopen. A probability is rounded to steps of half a
percent, so that what is kept, shown and fed back to the network is one and the same thing, and undo and redo
are exact.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

THRESHOLD = 0.49
"""Foreground is a probability above this. The original evaluates with 0.49, not 0.5."""

LEVELS = 200
"""Steps of probability. The threshold falls between two of them: rounding moves no pixel across it."""


@dataclass(frozen=True, eq=False)
class Answer:
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
    def of(cls, probability: np.ndarray, quality: float | None = None) -> Answer:
        """The answer for (rows, cols) probabilities in [0, 1]; below half a percent counts as 0."""
        steps = np.ceil(np.float32(LEVELS) * probability).astype(np.uint8)
        steps[steps == 1] = 0  # a sigmoid never quite reaches 0
        return cls._packed(steps, quality, drawn=False)

    @classmethod
    def from_mask(cls, mask: np.ndarray) -> Answer:
        """The answer of a person who drew this (rows, cols) bool mask."""
        return cls._packed(np.where(mask, np.uint8(LEVELS), np.uint8(0)), None, drawn=True)

    @classmethod
    def _packed(cls, steps: np.ndarray, quality: float | None, drawn: bool) -> Answer:
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

    def redrawn(self, probability: np.ndarray) -> Answer:
        """This answer with another probability, (rows, cols) in [0, 1]."""
        return Answer.of(probability, self.quality)

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
class Finish:
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


def finished(answer: Answer, finish: Finish) -> np.ndarray:
    """The (rows, cols) bool mask of an answer; one drawn by hand is taken as it is. Does not mutate."""
    mask = np.zeros(answer.shape, np.bool_)
    plain = answer.above(THRESHOLD if answer.drawn else finish.threshold)
    if not plain.any():
        return mask
    if answer.drawn:
        mask[inside(answer.box)] = plain
        return mask
    from scipy import ndimage  # a quarter of a second, which a window has not when it opens

    # What finishing can reach lies around the box; beyond the plane there is nothing to reach.
    reach = int(np.ceil(4 * finish.smooth)) + 1
    top, left = max(0, answer.box[0] - reach), max(0, answer.box[1] - reach)
    bottom, right = min(answer.shape[0], answer.box[2] + reach), min(answer.shape[1], answer.box[3] + reach)
    mask[inside(answer.box)] = plain
    part = mask[top:bottom, left:right]
    if finish.smooth:
        part[:] = ndimage.gaussian_filter(part.astype(np.float32), finish.smooth, mode="nearest") > 0.5
    if finish.fill_holes:
        part[:] = ndimage.binary_fill_holes(part)
    if finish.largest:
        labels, count = ndimage.label(part)
        if count > 1:
            part[:] = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return mask


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(row, col, stop row, stop col) of what is not zero in a 2-D array; (0, 0, 0, 0) when all is."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return (0, 0, 0, 0)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    cols = np.flatnonzero(mask[top:bottom].any(axis=0))
    return (top, int(cols[0]), bottom, int(cols[-1]) + 1)


def inside(box: tuple[int, int, int, int]) -> tuple[slice, slice]:
    """The numpy key of a box."""
    return slice(box[0], box[2]), slice(box[1], box[3])
