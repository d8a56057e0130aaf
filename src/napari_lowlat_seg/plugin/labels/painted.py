"""What a stroke in a napari Labels layer touched, from the entries of napari's history."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_lowlat_seg.core.volume import Plane


@dataclass(frozen=True, eq=False)
class Piece:
    """What a stroke touched at once: a rectangle's first voxel, which of its voxels, old and new labels."""

    start: tuple[int, ...]
    where: np.ndarray
    old: np.ndarray
    new: np.ndarray

    @classmethod
    def of(cls, atom: Any) -> Piece:
        """From an entry of napari's history: a masked rectangle, or (indices, old labels, new labels)."""
        if hasattr(atom, "slice_key"):
            start = tuple(int(part.start) for part in atom.slice_key)
            where = np.ones(atom.old_values.shape, np.bool_) if atom.mask is None else atom.mask
            within: Any = where
            values, new = np.ravel(atom.old_values), atom.new_value
        else:
            indices = [np.ravel(axis) for axis in atom[0]]
            start = tuple(int(axis.min()) for axis in indices)
            within = tuple(axis - first for axis, first in zip(indices, start, strict=True))
            where = np.zeros([int(axis.max()) + 1 for axis in within], np.bool_)
            where[within] = True
            _, values, new = atom
        old = np.zeros(where.shape, values.dtype)
        late = old.copy()
        old[within], late[within] = values, new
        return cls(start, where, old, late)

    def planes(
        self, axes: Sequence[int], fixed: dict[int, int], shown: tuple[int, int]
    ) -> Iterator[tuple[Plane, Piece]]:
        """The parts on each plane of the volume that has these two axes."""
        hidden = [axis for axis in range(len(axes)) if axis not in shown]
        spans = [range(self.start[axes[a]], self.start[axes[a]] + self.where.shape[axes[a]]) for a in hidden]
        if any(not s <= at < s + n for s, n, at in self._along(fixed)):
            return
        for positions in itertools.product(*spans):
            index: list[int | None] = [None] * len(axes)
            key: list[int | slice] = [0] * len(self.start)
            for axis, at in fixed.items():
                key[axis] = at - self.start[axis]
            for a, position in zip(hidden, positions, strict=True):
                index[a], key[axes[a]] = position, position - self.start[axes[a]]
            for a in shown:
                key[axes[a]] = slice(None)
            start = (self.start[axes[shown[0]]], self.start[axes[shown[1]]])
            parts = (array[tuple(key)] for array in (self.where, self.old, self.new))
            yield Plane(tuple(index)), Piece(start, *parts)

    def _along(self, fixed: dict[int, int]) -> Iterator[tuple[int, int, int]]:
        return ((self.start[axis], self.where.shape[axis], at) for axis, at in fixed.items())

    def put(self, values: np.ndarray, labels: np.ndarray, corner: tuple[int, int]) -> None:
        """Give the voxels touched these labels, in `labels` of a rectangle that begins at `corner`."""
        top, left = (s - c for s, c in zip(self.start, corner, strict=True))
        rows, cols = self.where.shape
        labels[top : top + rows, left : left + cols][self.where] = values[self.where]
