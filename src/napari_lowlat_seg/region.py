"""The part of a huge plane that is worked on: a tile with a halo, chosen by the prompts.

A network sees 512 pixels. Of a plane of 20,000 x 20,000 it would see next to nothing, and reading it takes
400 MB. Planes up to `LARGE` are taken whole; of larger ones a tile is cut out, and is a volume of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .prompts import Box, Click, Mask, Polygon, Prompt, Scribble
from .volume import ArrayLike, Plane, Volume

LARGE = 4096
"""Rows or columns above which a plane is not taken whole."""

TILE = 2048
"""Side of a tile, halo included."""

HALO = 256
"""Pixels around a tile's core that are context only: prompts within the core pick the tile."""


@dataclass(frozen=True)
class Region:
    """A rectangle of every plane: first row and column, then how many."""

    top: int
    left: int
    rows: int
    cols: int

    @property
    def corner(self) -> tuple[int, int]:
        """(row, col) of the first pixel."""
        return self.top, self.left


def region_of(shape: tuple[int, int], prompts: Iterable[Prompt]) -> Region:
    """Where to look for the object of these prompts, in planes of this shape.

    The tile whose core holds the middle of the prompts, so that prompts near each other share a tile and its
    embedding; grown where the prompts do not fit in. Planes up to `LARGE` are one region.
    """
    if max(shape) <= LARGE:
        return Region(0, 0, *shape)
    bounds = np.array([prompt.bounds() for prompt in prompts])
    low, high = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
    spans = [_span(float(a), float(b), n) for a, b, n in zip(low, high, shape)]
    return Region(spans[0][0], spans[1][0], spans[0][1], spans[1][1])


def _span(low: float, high: float, length: int) -> tuple[int, int]:
    core = TILE - 2 * HALO
    start = int((low + high) / 2 // core) * core - HALO
    start = max(0, min(start, length - TILE))
    first = max(0, min(start, int(low) - HALO))
    last = min(length, max(start + TILE, int(high) + 1 + HALO))
    return first, last - first


def cut(volume: Volume, region: Region, plane: Plane) -> Volume:
    """The volume that shows only a region of each plane parallel to `plane`. Nothing is read yet."""
    row, col = plane.axes
    spatial: list[slice] = [slice(0, n) for n in volume.shape]
    spatial[row] = slice(region.top, region.top + region.rows)
    spatial[col] = slice(region.left, region.left + region.cols)
    if volume.channel_axis is not None:
        spatial.insert(volume.channel_axis, slice(0, volume.data.shape[volume.channel_axis]))
    return replace(volume, data=_Cut(volume.data, tuple(spatial)))


@dataclass(frozen=True, eq=False)
class _Cut:
    """A window on an array that is read when asked, and no more of it than that."""

    data: ArrayLike
    window: tuple[slice, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(part.stop - part.start for part in self.window)

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    def __getitem__(self, key: Any, /) -> Any:
        whole = (key if isinstance(key, tuple) else (key,)) + (slice(None),) * len(self.window)
        return self.data[tuple(_moved(k, part) for k, part in zip(whole, self.window))]


def _moved(key: int | slice, part: slice) -> int | slice:
    if isinstance(key, slice):
        first, last, step = key.indices(part.stop - part.start)
        return slice(part.start + first, part.start + last, step)
    return int(part.start) + int(key)


def moved(prompt: Prompt, region: Region) -> Prompt:
    """A prompt in the pixels of a region; a mask is cut to it."""
    top, left = region.corner
    if isinstance(prompt, Mask):
        part = prompt.pixels[top : top + region.rows, left : left + region.cols]
        return replace(prompt, pixels=part)
    if isinstance(prompt, Click):
        return replace(prompt, at=_shifted([prompt.at], region)[0])
    if isinstance(prompt, Box):
        first, last = _shifted(prompt.points, region)
        return Box(first, last, positive=prompt.positive)
    assert isinstance(prompt, Scribble | Polygon)
    return replace(prompt, points=_shifted(prompt.points, region))


def _shifted(points: Sequence[tuple[float, float]], region: Region) -> tuple[tuple[float, float], ...]:
    return tuple((row - region.top, col - region.left) for row, col in points)
