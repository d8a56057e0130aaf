"""The part of a huge plane that is worked on: a tile with a halo, chosen by the prompts.

A network sees 512 pixels. Of a plane of 20,000 x 20,000 it would see next to nothing, and reading it takes
400 MB. Planes up to `LARGE` are taken whole; of larger ones a tile is cut out, and is a volume of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.prompts import Prompt
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


def tile_of(
    shape: tuple[int, int], prompts: Iterable[Prompt], tiling: Tiling = TILING, now: BoundingBox | None = None
) -> BoundingBox:
    """The tile of a plane in which the object of these prompts is looked for.

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


def crop(volume: Volume, box: BoundingBox, plane: Plane) -> Volume:
    """The volume that shows only a box of each plane parallel to `plane`. Nothing is read yet."""
    row, col = plane.axes
    spatial: list[slice] = [slice(0, n) for n in volume.shape]
    spatial[row], spatial[col] = box.slices
    if volume.channel_axis is not None:
        spatial.insert(volume.channel_axis, slice(0, volume.data.shape[volume.channel_axis]))
    return replace(volume, data=_Crop(volume.data, tuple(spatial)))


@dataclass(frozen=True, eq=False)
class _Crop:
    """A part of an array; reading it reads no more of the array than that part."""

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
