"""An array on disk as napari should see it: nothing is read before it is shown.

napari cuts the window's part out of a whole volume first and takes the plane in view from that. Of a zarr
array the first step reads the part of every plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class LazyArray:
    """A part of an array, cut by slices and numbers, read by `np.asarray`.

    Attributes
    ----------
    data
        numpy or zarr.
    key
        What is seen of each of its axes: positions, or one position, whose axis is gone.
    kept
        The same in memory, where napari keeps what it has read: it is brought up to date in place.
    """

    data: Any
    key: tuple[range | int, ...]
    kept: np.ndarray | None = None

    @classmethod
    def of(cls, data: Any) -> LazyArray:
        """All of an array."""
        return cls(data, tuple(range(n) for n in data.shape))

    @classmethod
    def pyramid(cls, levels: Sequence[Any]) -> list[LazyArray]:
        """All levels, the finest first. Of a 2-D pyramid napari keeps the coarsest."""
        lazy = [cls.of(level) for level in levels]
        if lazy[-1].ndim == 2:
            lazy[-1] = replace(lazy[-1], kept=np.array(levels[-1]))
        return lazy

    def renew(self) -> None:
        """Read again what is kept."""
        if self.kept is not None:
            self.kept[...] = self.data[...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis that is left."""
        return tuple(len(part) for part in self.key if isinstance(part, range))

    @property
    def ndim(self) -> int:
        """How many axes are left."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many voxels there are."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def dtype(self) -> Any:
        """That of the array."""
        return self.data.dtype

    def __getitem__(self, key: Any) -> Any:
        wanted = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, slice | int | np.integer) for part in wanted):
            return np.asarray(self)[key]
        rest = iter(wanted)
        return LazyArray(
            self.data,
            tuple(part[next(rest, slice(None))] if isinstance(part, range) else part for part in self.key),
            self.kept,
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads it."""
        key = tuple(
            slice(part.start, part.stop, part.step) if isinstance(part, range) else part for part in self.key
        )
        return np.asarray((self.data if self.kept is None else self.kept)[key], dtype=dtype)
