"""What the pixels of two neighbouring planes say of an object: where to click, whether it still is there.

Both sweeps use it: the one of `sweep.py`, and the one with a memory of other planes (`inference/memory/`).
"""

from __future__ import annotations

from dataclasses import dataclass

import edt
import numpy as np
from scipy.ndimage import gaussian_filter

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.volume import any_finite

BLUR = 2.0
"""Pixels (standard deviation) over which two planes are compared: noise differs, structures do not."""

MAX_DEVIATIONS = 1.0
"""The object has ended, too, when its mean brightness leaves that on the anchor by more than this many of the
anchor's standard deviations plus `TOLERANCE`: a mask that finds no edge any more would creep on for ever."""

TOLERANCE = 4.0
"""Gray levels of 255 that the mean brightness may always change."""

CONTRAST = 0.5
"""It may always change by this share of the contrast between the object and its surroundings on the anchor,
too: the tip of a bright ball is blurred, and less bright than its middle."""

DAMAGED = 0.2
"""A plane is taken for damaged or shifted when its neighbours are that much more alike, as a correlation
around the object, than the plane and the one before it."""


def click_position(
    mask: np.ndarray, before: np.ndarray, here: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)
) -> tuple[int, int]:
    """(row, col) of the pixel deep inside a mask where two images, smoothed, look alike.

    It is the pixel with the largest depth * exp(-(difference / spread)^2). The spread is the standard
    deviation of the first image inside the mask, plus one gray level.

    Parameters
    ----------
    mask
        (rows, cols) bool, not empty.
    before, here
        (rows, cols) float32, gray levels from 0 to 255: the plane of the mask, and the next one.
    spacing
        Size of a pixel along rows and columns; depth is measured in it.
    """
    # Blurring reaches four standard deviations: a box with that rim gives what the whole plane would.
    box = BoundingBox.of(mask).grown(round(4 * BLUR)).clipped(mask.shape)
    inside = np.ascontiguousarray(mask[box.slices])
    depth = edt.edt(inside, anisotropy=spacing, black_border=True, parallel=1)
    first, second = (gaussian_filter(plane[box.slices], BLUR) for plane in (before, here))
    spread = float(first[inside].std()) + 1.0
    score = depth * np.exp(-(((second - first) / spread) ** 2))
    # Where nothing looks alike the score may underflow; depth alone decides then.
    row, col = np.unravel_index(int(np.argmax(score if score.max() > 0 else depth)), inside.shape)
    return int(row) + box.corner[0], int(col) + box.corner[1]


@dataclass(frozen=True)
class Brightness:
    """The object's mean brightness on its anchor, and by how much it may change, in gray levels of 255."""

    usual: float
    change: float

    @classmethod
    def of(cls, plane: np.ndarray, mask: np.ndarray) -> Brightness:
        """That of a mask (rows, cols), not empty, on a plane of gray levels."""
        inside = plane[mask]
        usual = float(inside.mean())
        change = MAX_DEVIATIONS * float(inside.std()) + TOLERANCE
        around = _surroundings(mask)
        if around.any():
            change = max(change, CONTRAST * abs(usual - float(plane[around].mean())))
        return cls(usual, change)

    def objection(self, plane: np.ndarray, mask: np.ndarray, times: float = 1.0) -> str:
        """Say how a mask differs by more than `times` what is allowed; empty if it does not."""
        change = float(plane[mask].mean()) - self.usual
        if abs(change) <= times * self.change:
            return ""
        how = "brighter" if change > 0 else "darker"
        return (
            f"it would be {abs(change):.0f} gray levels {how} than where it was prompted, "
            f"{times * self.change:.0f} are allowed"
        )


def _surroundings(mask: np.ndarray) -> np.ndarray:
    """What lies 2 to about r pixels outside a mask, r the radius of a disk of its area, at least 4."""
    radius = max(4.0, (np.count_nonzero(mask) / np.pi) ** 0.5)
    box = BoundingBox.of(mask).grown(round(radius) + 1).clipped(mask.shape)
    distance = edt.edt(np.ascontiguousarray(~mask[box.slices]), black_border=False, parallel=1)
    around = np.zeros_like(mask)
    around[box.slices] = (distance >= 2) & (distance <= radius)
    return around


def damage_of(pixels: np.ndarray, before: np.ndarray, mask: np.ndarray) -> str:
    """What is wrong with the pixels of a plane; empty if nothing is.

    A plane of one intensity is blank, unless the plane before was so, too, beside the object.
    """
    if not any_finite(pixels):
        return "has no finite pixel"
    outside = before[~mask]
    if pixels.min() == pixels.max() and outside.size and outside.min() != outside.max():
        return "is blank"
    return ""


def stands_out(here: np.ndarray, beside: tuple[np.ndarray, np.ndarray], mask: np.ndarray) -> bool:
    """Whether the planes on both sides of one are clearly more alike than it is to the first of them.

    Parameters
    ----------
    here, beside
        (rows, cols) float32, gray levels: the plane; the ones before and behind it.
    mask
        (rows, cols) bool, not empty: the object on the plane before. Compared is what lies around it.
    """
    box = BoundingBox.of(mask)
    around = box.grown(round(max(*box.shape, 16) / 2)).clipped(here.shape).slices
    first, middle, third = (
        gaussian_filter(plane[around], BLUR).ravel() for plane in (beside[0], here, beside[1])
    )
    return _alike(first, third) > _alike(first, middle) + DAMAGED


def _alike(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two flat images; 0 where one of them is constant."""
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two bool masks of one shape, of which at least one is not empty."""
    return float(np.count_nonzero(first & second) / np.count_nonzero(first | second))
