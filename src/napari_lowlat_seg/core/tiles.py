"""The part of a huge plane that is worked on: a tile with a halo, chosen by the prompts.

A network sees 512 pixels. Of a plane of 20,000 x 20,000 it would see next to nothing, and reading it takes
400 MB. Planes up to `LARGE` are taken whole; of larger ones a tile is cut out, and is a volume of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Prompt, Scribble
from napari_lowlat_seg.core.requests import Request
from napari_lowlat_seg.core.volume import ArrayLike, Plane, Volume

LARGE = 4096
"""Rows or columns above which a plane is not taken whole."""

TILE = 2048
"""Side of a tile, halo included."""

HALO = 256
"""Pixels around a tile's core that are context only: prompts within the core pick the tile."""


@dataclass(frozen=True)
class Tiling:
    """From which rows or columns on a plane is cut into tiles, their side and their halo, all in pixels."""

    large: int = LARGE
    side: int = TILE
    halo: int = HALO


TILING = Tiling()


@dataclass(frozen=True)
class Tile:
    """A rectangle of every plane: first row and column, then how many."""

    top: int
    left: int
    rows: int
    cols: int

    @property
    def corner(self) -> tuple[int, int]:
        """(row, col) of the first pixel."""
        return self.top, self.left

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(row, col, stop row, stop col)."""
        return self.top, self.left, self.top + self.rows, self.left + self.cols


def region_of(
    shape: tuple[int, int], prompts: Iterable[Prompt], tiling: Tiling = TILING, now: Tile | None = None
) -> Tile:
    """Where to look for the object of these prompts, in planes of this shape.

    The tile whose core holds the middle of the prompts, so that prompts near each other share a tile and its
    embedding; grown where the prompts do not fit in. Planes up to `tiling.large` are one region. A tile that
    is in use, `now`, stays in use while half a halo is left around the prompts.
    """
    if max(shape) <= tiling.large:
        return Tile(0, 0, *shape)
    bounds = np.array([prompt.bounds() for prompt in prompts])
    low, high = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
    if now is not None:
        least = [at if at == 0 else at + tiling.halo // 2 for at in now.corner]
        ends = zip(now.box[2:], shape)
        most = [end if end == n else end - tiling.halo // 2 for end, n in ends]
        if (low >= np.array(least) - 0.5).all() and (high <= np.array(most) - 0.5).all():
            return now
    spans = [_span(float(a), float(b), n, tiling) for a, b, n in zip(low, high, shape)]
    return Tile(spans[0][0], spans[1][0], spans[0][1], spans[1][1])


def _span(low: float, high: float, length: int, tiling: Tiling) -> tuple[int, int]:
    side, halo = min(tiling.side, length), tiling.halo
    core = tiling.side - 2 * halo
    start = int((low + high) / 2 // core) * core - halo
    start = max(0, min(start, length - side))
    first = max(0, min(start, int(low) - halo))
    last = min(length, max(start + side, int(high) + 1 + halo))
    return first, last - first


def cut(volume: Volume, region: Tile, plane: Plane) -> Volume:
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


def moved(prompt: Prompt, region: Tile) -> Prompt:
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


def within(request: Request, region: Tile) -> Request:
    """A request in the pixels of a region; its answer belongs `Answer.on` the plane at the same corner."""
    previous = request.previous
    if previous is not None:
        previous = previous.on((region.rows, region.cols), (-region.top, -region.left))
    prompts = tuple(moved(prompt, region) for prompt in request.prompts)
    return replace(request, prompts=prompts, previous=previous)


def _shifted(points: Sequence[tuple[float, float]], region: Tile) -> tuple[tuple[float, float], ...]:
    return tuple((row - region.top, col - region.left) for row, col in points)
