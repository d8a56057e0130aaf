"""Labels read slab by slab for exports, so that they may be larger than memory."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from napari_lowlat_seg.core.requests import Progress
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.placed import geometry_of

VOXELS = 2**23
"""Voxels that are read at a time, about: whole planes, one at least."""


class Slabs:
    """Labels with their axes in another order, read a few planes at a time. Nothing is read by making one.

    Parameters
    ----------
    labels
        Whole numbers of 0 or more, of any type: many programs keep them as floats.
    only
        The objects to export; none for all. Others are read as background.
    order
        The axes of `labels` in the order of these slabs, planes last; None for that of a viewer.
    progress
        Called after every slab with the planes that are done and their number; what it raises cancels.

    Attributes
    ----------
    order
        As given.
    shape, geometry
        In this order of axes.
    name
        Of the labels.
    found
        All objects that have been read so far, also those that are not exported.
    """

    def __init__(
        self,
        labels: Volume,
        only: Collection[int] = (),
        order: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> None:
        geometry = geometry_of(labels)
        self._labels, self._only, self._progress = labels, sorted(only), progress
        self.order = tuple(geometry.shown_order if order is None else order)
        self.geometry = geometry.transpose(self.order)
        self.shape = tuple(labels.shape[axis] for axis in self.order)
        self.name = labels.name
        self.found: set[int] = set()

    def slabs(self) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Position of a first plane, and (planes, rows, cols) whole numbers from there along the last axis.

        Raises
        ------
        ValueError
            For labels that are no whole numbers from 0 to 2^32 - 1.
        """
        *counts, rows, cols = self.shape
        count = counts[-1] if counts else 1
        step = self._thickness(count, rows * cols)
        starts = [*itertools.product(*map(range, counts[:-1]), range(0, count, step))]
        done, total = 0, (len(starts) // -(-count // step)) * count
        for start in starts:
            stop = min(start[-1] + step, count)
            block = self._read(start, stop) if counts else self._read((), 0)[None]
            done += len(block)
            yield start if counts else (), block
            if self._progress is not None:
                self._progress(done, total)

    def planes(self) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Position and (rows, cols) labels of every plane with an object."""
        for start, block in self.slabs():
            for i, plane in enumerate(block):
                if plane.any():
                    yield (*start[:-1], start[-1] + i) if start else (), plane

    def whole(self) -> np.ndarray:
        """All labels in the order of the volume's own axes, in the smallest type."""
        labels = np.zeros(self._labels.shape, np.uint8)
        for start, block in self.slabs():
            needed = np.min_scalar_type(int(block.max(initial=0)))
            if needed.itemsize > labels.itemsize:
                labels = labels.astype(needed)
            turned = labels.transpose(self.order)
            if start:
                turned[start[:-1]][start[-1] : start[-1] + len(block)] = block
            else:
                turned[...] = block[0]
        return labels

    def _thickness(self, count: int, plane: int) -> int:
        """Planes of a slab: whole chunks where the labels have some that are not too thick."""
        step = max(1, VOXELS // plane)
        chunks = getattr(self._labels.data, "chunks", None)
        if chunks is not None and len(self.order) > 2:
            # Dask lists the length of every chunk.
            chunk = int(np.max(chunks[self.order[-3]]))
            if chunk <= step:
                step -= step % chunk
            elif chunk <= 4 * step:
                step = chunk
        return min(step, count)

    def _read(self, start: tuple[int, ...], stop: int) -> np.ndarray:
        key: list[int | slice] = [slice(0, n) for n in self._labels.shape]
        for axis, at in zip(self.order, start):
            key[axis] = at
        if start:
            key[self.order[len(start) - 1]] = slice(start[-1], stop)
        left = [axis for axis, part in enumerate(key) if isinstance(part, slice)]
        block = self._labels.block(key).transpose([left.index(a) for a in self.order if a in left])
        block = whole_numbers(block, self.name)
        self.found.update(np.unique(block[block != 0]).tolist())
        return np.where(np.isin(block, self._only), block, 0) if self._only else block


def whole_numbers(labels: np.ndarray, name: str = "") -> np.ndarray:
    """Labels as integers.

    Raises
    ------
    ValueError
        For fractions, NaN, other types, and numbers below 0 or above 2^32 - 1.
    """
    what = name or "the labels"
    if labels.dtype.kind == "f":
        if not (np.isfinite(labels) & (labels == np.rint(labels))).all():
            raise ValueError(f"{what} must hold whole numbers; got fractions or NaN")
        low, high = float(labels.min()), float(labels.max())
        whole = labels.astype(np.int64) if abs(low) < 2**53 and abs(high) < 2**53 else labels
    elif labels.dtype.kind in "bui":
        low, high = int(labels.min()), int(labels.max())
        whole = labels.astype(np.uint8) if labels.dtype.kind == "b" else labels
    else:
        raise ValueError(f"{what} must hold whole numbers; got type {labels.dtype}")
    if low < 0 or high >= 2**32:
        raise ValueError(f"{what} must hold labels from 0 to 2^32 - 1; got {low:.0f} to {high:.0f}")
    return whole
