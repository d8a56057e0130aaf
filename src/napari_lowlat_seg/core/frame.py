"""How a plane, or a crop of it, lies on a network's square input: the only module that changes scale.

Coordinates are (row, col) with pixel centres on integers, so pixel i reaches from i - 0.5 to i + 0.5. That
gives x' = (x - crop + 0.5) * scale - 0.5 both for prompts and for images resized without aligned corners.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np

Fit = Literal["letterbox", "official"]

Points = np.ndarray | Sequence[Sequence[float]]
"""(N, 2) numbers (row, col)."""

Pixels = TypeVar("Pixels")


@dataclass(frozen=True)
class Frame:
    """A crop of a plane and its place on the network's S x S grid.

    Parameters
    ----------
    shape
        Rows and columns of the whole plane.
    size
        Side S of the network's input.
    crop
        (top, left, rows, cols) of what the network sees, in plane pixels, inside the plane.
    fit
        "letterbox": one scale for both axes in world units, image at the top left, the rest is padding.
        "official": each axis stretched to S, and clicks rounded as SegNext does (uncbiag/SegNext 4c45ce8).
    spacing
        Row and column pixel size in any common unit; letterbox makes the network's pixels square with it.
        Only the ratio counts and is kept: the smaller size becomes 1.

    Raises
    ------
    ValueError
        For a plane or network side below 1, an unknown fit, a pixel size that is not positive and finite, or
        a crop that is not inside the plane.

    Examples
    --------
    >>> frame = Frame.whole((100, 50), 200)
    >>> frame.content, frame.to_network([(0, 0)]).tolist()
    ((200, 100), [[0.5, 0.5]])
    """

    shape: tuple[int, int]
    size: int
    crop: tuple[int, int, int, int]
    fit: Fit = "letterbox"
    spacing: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        shape, crop = tuple(int(n) for n in self.shape), tuple(int(n) for n in self.crop)
        spacing = tuple(float(s) for s in self.spacing)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "crop", crop)
        object.__setattr__(self, "spacing", spacing)
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"a frame needs a plane of at least 1 x 1 pixel; got shape {shape}")
        if self.size < 1:
            raise ValueError(f"a frame needs a network side of 1 or more; got {self.size}")
        if self.fit not in ("letterbox", "official"):
            raise ValueError(f"fit must be 'letterbox' or 'official'; got {self.fit!r}")
        if len(spacing) != 2 or not all(math.isfinite(s) and s > 0 for s in spacing):
            raise ValueError(f"a frame needs two positive pixel sizes; got {spacing}")
        # A frame in nm equals the frame in mm: `lowlat-seg embed` may read another unit than the window.
        object.__setattr__(self, "spacing", tuple(round(s / min(spacing), 10) for s in spacing))
        sides = zip(crop[:2], crop[2:], shape, strict=True)
        if not all(0 <= start < start + n <= side for start, n, side in sides):
            raise ValueError(f"crop (top, left, rows, cols) must lie inside the plane of {shape}; got {crop}")

    @classmethod
    def whole(
        cls,
        shape: tuple[int, int],
        size: int,
        fit: Fit = "letterbox",
        spacing: tuple[float, float] = (1.0, 1.0),
    ) -> Frame:
        """The frame of a whole plane; parameters as for the class."""
        return cls(shape, size, (0, 0, shape[0], shape[1]), fit, spacing)

    def around(self, box: tuple[float, float, float, float], margin: float, least: float) -> Frame:
        """The frame of a crop around `box`, square in world units and moved into the plane.

        Parameters
        ----------
        box
            (r0, c0, r1, c1) in plane pixels, both corners part of it. What lies outside the plane is cut off.
        margin
            Context added on each side, as a share of the box's longer side; 0 or more.
        least
            The side is at least this many pixels of the finer axis.

        Raises
        ------
        ValueError
            For a negative margin and numbers that are not finite.
        """
        if margin < 0 or not all(math.isfinite(v) for v in (*box, margin, least)):
            raise ValueError(f"around() needs a finite box and a margin of 0 or more; got {box} and {margin}")
        spans = []
        for low, high, length in ((box[0], box[2], self.shape[0]), (box[1], box[3], self.shape[1])):
            first, last = sorted(min(max(math.floor(v + 0.5), 0), length - 1) for v in (low, high))
            spans.append((first, last - first + 1))
        longest = max(count * pixel for (_, count), pixel in zip(spans, self.spacing, strict=True))
        side = max(longest * (1 + 2 * margin), least * min(self.spacing))
        # Whole pixels of the coarser axis, or padding would take in prompts that lie beside the crop.
        side = math.ceil(side / max(self.spacing) - 1e-9) * max(self.spacing)
        starts, counts = [], []
        for (first, count), pixel, length in zip(spans, self.spacing, self.shape, strict=True):
            # Without the small allowance, rounding errors of side / pixel could add a row.
            size = min(max(math.ceil(side / pixel - 1e-9), count), length)
            counts.append(size)
            starts.append(min(max(first - (size - count) // 2, 0), length - size))
        return replace(self, crop=(starts[0], starts[1], counts[0], counts[1]))

    @property
    def extent(self) -> float:
        """The longer side of the crop in world units."""
        return max(count * pixel for count, pixel in zip(self.crop[2:], self.spacing, strict=True))

    @cached_property
    def content(self) -> tuple[int, int]:
        """Rows and columns of the network grid that show the image; the rest is padding. Always 1 or more."""
        if self.fit == "official":
            return (self.size, self.size)
        extents = [count * pixel for count, pixel in zip(self.crop[2:], self.spacing, strict=True)]
        rows, cols = (max(1, round(self.size * extent / self.extent)) for extent in extents)
        return (rows, cols)

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Network pixels per plane pixel along rows and columns: `content` over the crop's sides."""
        rows, cols = self.content
        return (rows / self.crop[2], cols / self.crop[3])

    def to_network(self, points: Points) -> np.ndarray:
        """Plane (row, col) to network (row, col): float64 (N, 2)."""
        network: np.ndarray = (_pairs(points) - self.crop[:2] + 0.5) * self.scale - 0.5
        return network

    def to_plane(self, points: Points) -> np.ndarray:
        """Network (row, col) to plane (row, col): float64 (N, 2); the inverse of `to_network`."""
        plane: np.ndarray = (_pairs(points) + 0.5) / self.scale - 0.5 + self.crop[:2]
        return plane

    def pixels(self, points: Points) -> np.ndarray:
        """The network pixel of each plane point, rounded as the fit does: int64 (N, 2).

        Points outside the crop fall outside the grid. With the "official" fit a coordinate is
        trunc(float32(y) * float32(S / H) + 0.5): S, one past the grid, on the last row when H >= 2 S.
        """
        if self.fit == "letterbox":
            return self.holding(points)
        local = (_pairs(points) - self.crop[:2]).astype(np.float32)
        rounded: np.ndarray = np.trunc(local * np.array(self.scale, np.float32) + np.float32(0.5))
        return rounded.astype(np.int64)

    def holding(self, points: Points) -> np.ndarray:
        """The network pixel whose area contains each plane point, whatever the fit: int64 (N, 2).

        The far edge of the plane, where a pointer can be, belongs to the last pixel.
        """
        pairs, edge = _pairs(points), np.array(self.shape) - 0.5
        inside = np.where(pairs == edge, edge - 1e-6, pairs)
        return np.floor(self.to_network(inside) + 0.5).astype(np.int64)

    def cut(self, pixels: Pixels) -> Pixels:
        """The crop of an array or tensor (rows, cols, ...) of the plane's shape, as a view."""
        self._check(pixels, self.shape)
        top, left, rows, cols = self.crop
        crop: Pixels = pixels[top : top + rows, left : left + cols]  # type: ignore[index]
        return crop

    def place(self, pixels: np.ndarray, into: np.ndarray) -> np.ndarray:
        """Write an array of the crop's shape to its place in `into`, of the plane's shape; returns `into`."""
        self._check(pixels, self.crop[2:])
        self.cut(into)[...] = pixels
        return into

    def _check(self, pixels: Any, expected: tuple[int, int]) -> None:
        if tuple(pixels.shape[:2]) != tuple(expected):
            raise ValueError(f"this frame needs pixels of shape {expected}; got {tuple(pixels.shape[:2])}")


def _pairs(points: Points) -> np.ndarray:
    pairs = np.asarray(points, dtype=np.float64)
    if pairs.size == 0:
        return pairs.reshape(0, 2)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"points must be (N, 2) numbers (row, col); got shape {pairs.shape}")
    return pairs
