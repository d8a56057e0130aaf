"""Boxes on a plane, patches (the pixels inside a box, with its place on the plane), and tiles of huge planes.

A network sees 512 x 512 pixels. Of a plane of 20,000 x 20,000 it would see next to nothing, and reading it
takes 400 MB. Planes of up to `LARGE` rows and columns are taken whole; on larger ones `tile_of` chooses a box
around the prompts, and `Volume.cropped` makes it a volume of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from napari_lowlat_seg.core.prompts import Prompt


class BoundingBox(NamedTuple):
    """A rectangle of whole pixels, half-open like a slice; equal to the plain tuple of its four numbers.

    Every method returns a new box. A result that holds no pixel is always (0, 0, 0, 0), the empty box.

    Attributes
    ----------
    top, left
        Row and column of the first pixel.
    bottom, right
        The row and the column behind the last pixel.

    Examples
    --------
    >>> box = BoundingBox(2, 3, 6, 8)
    >>> box.shape, box.shifted(-2, -3), box.clipped((4, 4))
    ((4, 5), BoundingBox(top=0, left=0, bottom=4, right=5), BoundingBox(top=2, left=3, bottom=4, right=4))
    >>> box.intersection(BoundingBox(0, 0, 2, 9)) == (0, 0, 0, 0)
    True
    """

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def of(cls, mask: np.ndarray) -> BoundingBox:
        """The smallest box around what is not zero in a (rows, cols) array; the empty box if all is zero."""
        rows = np.flatnonzero(mask.any(axis=1))
        if rows.size == 0:
            return EMPTY_BOX
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        cols = np.flatnonzero(mask[top:bottom].any(axis=0))
        return cls(top, int(cols[0]), bottom, int(cols[-1]) + 1)

    @classmethod
    def at(cls, corner: tuple[int, int], shape: tuple[int, ...]) -> BoundingBox:
        """The box of `shape` (rows, cols) whose first pixel is at `corner` (row, col)."""
        return cls(corner[0], corner[1], corner[0] + shape[0], corner[1] + shape[1])

    @property
    def corner(self) -> tuple[int, int]:
        """(row, col) of the first pixel."""
        return self.top, self.left

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """The numpy key of the box in an array of the plane; no side may be negative."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def is_empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.bottom <= self.top or self.right <= self.left

    def contains(self, other: BoundingBox) -> bool:
        """Whether all pixels of `other` lie inside; an empty box lies inside every box."""
        return other.is_empty or (
            other.top >= self.top
            and other.left >= self.left
            and other.bottom <= self.bottom
            and other.right <= self.right
        )

    def union(self, *others: BoundingBox) -> BoundingBox:
        """The smallest box around this one and all others; empty ones do not count."""
        boxes = [box for box in (self, *others) if not box.is_empty]
        if not boxes:
            return EMPTY_BOX
        tops, lefts, bottoms, rights = zip(*boxes)
        return BoundingBox(min(tops), min(lefts), max(bottoms), max(rights))

    def intersection(self, other: BoundingBox) -> BoundingBox:
        """The pixels that lie in both boxes."""
        box = BoundingBox(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )
        return EMPTY_BOX if box.is_empty else box

    def shifted(self, down: int, right: int) -> BoundingBox:
        """The box moved by whole pixels."""
        if self.is_empty:
            return EMPTY_BOX
        return BoundingBox(self.top + down, self.left + right, self.bottom + down, self.right + right)

    def grown(self, margin: int) -> BoundingBox:
        """The box with `margin` more pixels on every side."""
        if self.is_empty:
            return EMPTY_BOX
        return BoundingBox(self.top - margin, self.left - margin, self.bottom + margin, self.right + margin)

    def clipped(self, shape: tuple[int, int]) -> BoundingBox:
        """The part of the box that lies on a plane of `shape` (rows, cols)."""
        return self.intersection(BoundingBox(0, 0, *shape))


EMPTY_BOX = BoundingBox(0, 0, 0, 0)
"""Holds no pixel."""


@dataclass(frozen=True, eq=False)
class Patch:
    """Pixels of a part of a plane; all other pixels of the plane are 0.

    Attributes
    ----------
    corner
        (row, col) of the first pixel on the plane.
    pixels
        (rows, cols) of any type.
    """

    corner: tuple[int, int]
    pixels: np.ndarray

    @classmethod
    def of(cls, plane: np.ndarray) -> Patch:
        """The smallest patch that holds all of a plane (rows, cols) that is not 0, as a view."""
        box = BoundingBox.of(plane)
        return cls(box.corner, plane[box.slices])

    @property
    def box(self) -> BoundingBox:
        """Where it lies on the plane."""
        return BoundingBox.at(self.corner, self.pixels.shape)

    def on(self, shape: tuple[int, int], corner: tuple[int, int] = (0, 0)) -> np.ndarray:
        """A new array of `shape`: the part of the plane that begins at `corner`, which may be negative."""
        shown = np.zeros(shape, self.pixels.dtype)
        top, left, bottom, right = self.box.shifted(-corner[0], -corner[1])
        part = self.pixels[max(0, -top) : max(0, shape[0] - top), max(0, -left) : max(0, shape[1] - left)]
        if part.size:
            shown[max(0, top) : bottom, max(0, left) : right] = part
        return shown

    def shown_in(self, box: BoundingBox) -> np.ndarray:
        """A new array of the box's shape: what the patch shows inside the box."""
        return self.on(box.shape, box.corner)


EMPTY_PATCH = Patch((0, 0), np.zeros((0, 0), np.bool_))
"""The mask of an object that is not on a plane."""

LARGE = 4096
"""Rows or columns above which a plane is not taken whole."""

TILE = 2048
"""Side of a tile, halo included."""

HALO = 256
"""Rows and columns at each side of a tile that are context; the rest is its core, where the prompts lie."""


@dataclass(frozen=True)
class Tiling:
    """From which rows or columns on a plane is cut into tiles, their side and their halo, all in pixels."""

    large: int = LARGE
    side: int = TILE
    halo: int = HALO


TILING = Tiling()


def tile_of(
    shape: tuple[int, int], prompts: Iterable[Prompt], tiling: Tiling = TILING, now: BoundingBox | None = None
) -> BoundingBox:
    """The tile of a plane that is read and embedded for an object with these prompts.

    It is the tile whose core holds the middle of the prompts, so that prompts near each
    other share a tile and its embedding; it grows where the prompts do not fit in.

    Parameters
    ----------
    shape
        (rows, cols) of the plane. Planes of up to `tiling.large` rows and columns are one tile.
    prompts
        One or more.
    now
        The tile in use; it is kept as long as half a halo is left between the prompts and its sides, the
        sides of the plane excepted.
    """
    if max(shape) <= tiling.large:
        return BoundingBox(0, 0, *shape)
    bounds = np.array([prompt.bounds() for prompt in prompts])
    low, high = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
    if now is not None:
        least = [at if at == 0 else at + tiling.halo // 2 for at in now.corner]
        most = [end if end == n else end - tiling.halo // 2 for end, n in zip(now[2:], shape)]
        if (low >= np.array(least) - 0.5).all() and (high <= np.array(most) - 0.5).all():
            return now
    (top, bottom), (left, right) = (_span(float(a), float(b), n, tiling) for a, b, n in zip(low, high, shape))
    return BoundingBox(top, left, bottom, right)


def _span(low: float, high: float, length: int, tiling: Tiling) -> tuple[int, int]:
    side, halo = min(tiling.side, length), tiling.halo
    core = tiling.side - 2 * halo
    start = int((low + high) / 2 // core) * core - halo
    start = max(0, min(start, length - side))
    first = max(0, min(start, int(low) - halo))
    last = min(length, max(start + side, int(high) + 1 + halo))
    return first, last
