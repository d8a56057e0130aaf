"""How many voxels each label has on each plane: read once, then kept in step with every edit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from napari_lowlat_seg.core.boxes import EMPTY_BOX, BoundingBox
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore, by_plane
from napari_lowlat_seg.core.requests import Cancelled, never
from napari_lowlat_seg.core.volume import Plane

READ = 2**23
"""Pixels of a plane that are read at a time, about."""

Position = tuple[int, ...]
"""Of a plane along the last two axes: one number for each axis before them."""


@dataclass(frozen=True)
class OnPlane:
    """A label on one plane.

    Attributes
    ----------
    voxels
        Their number.
    box
        All of them lie inside; it is not always the smallest such box, because it never shrinks.
    """

    voxels: int
    box: BoundingBox


Part = tuple[int, int, BoundingBox]
"""A label, by how many voxels it grows (or shrinks, below 0), and a box around them."""


class LabelCounts:
    """Voxels of each label by plane, where planes lie along the last two axes of the volume.

    Use it from one thread. Labels below 1 do not count.

    Parameters
    ----------
    shape
        Of the volume.

    Attributes
    ----------
    changed
        Labels whose numbers have changed since the set was last cleared.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.changed: set[int] = set()
        self._planes: dict[int, dict[Position, OnPlane]] = {}
        self._voxels: dict[int, int] = {}

    @property
    def labels(self) -> tuple[int, ...]:
        """All labels that have a voxel, in no order."""
        return tuple(self._voxels)

    def __contains__(self, label: int) -> bool:
        return label in self._voxels

    def voxels(self, label: int) -> int:
        """How many voxels a label has; 0 if it is not there."""
        return self._voxels.get(label, 0)

    def planes(self, label: int) -> Mapping[Plane, OnPlane]:
        """Where a label is."""
        return {self.plane(position): on for position, on in self._planes.get(label, {}).items()}

    def plane_count(self, label: int) -> int:
        """On how many planes a label is."""
        return len(self._planes.get(label, ()))

    def plane(self, position: Position) -> Plane:
        """The plane along the last two axes at a position."""
        return Plane((*position, None, None))

    def add(self, position: Position, parts: Sequence[Part]) -> None:
        """Count more or fewer voxels of some labels on a plane."""
        for label, more, box in parts:
            if label < 1 or not more:
                continue
            on_planes = self._planes.setdefault(label, {})
            before = on_planes.get(position, OnPlane(0, EMPTY_BOX))
            voxels = before.voxels + more
            if voxels > 0:
                on_planes[position] = OnPlane(voxels, before.box.union(box))
            else:
                on_planes.pop(position, None)
            self._voxels[label] = self._voxels.get(label, 0) + more
            if not on_planes:
                del self._planes[label], self._voxels[label]
            self.changed.add(label)

    def edit(self, edit: LabelEdit) -> None:
        """Count what an edit of labels on a plane of any orientation changes."""
        for position, parts in edit_parts(edit, self.shape):
            self.add(position, parts)

    def recount(self, store: LabelStore, position: Position) -> None:
        """Count a plane anew."""
        for label, on_planes in list(self._planes.items()):
            if position in on_planes:
                self.add(position, [(label, -on_planes[position].voxels, EMPTY_BOX)])
        for parts in read_plane(store, self.plane(position), self.shape[-2:]):
            self.add(position, parts)


def count_labels(
    store: LabelStore,
    shape: Sequence[int],
    progress: Callable[[int, int], object] = lambda done, total: None,
    cancelled: Cancelled = never,
) -> LabelCounts:
    """Count all labels, plane by plane; may be called on a thread of its own.

    Parameters
    ----------
    store
        Labels of this shape.
    progress
        Called with (planes so far, planes in all).
    cancelled
        Once it is true, what was counted so far is returned.
    """
    counts = LabelCounts(shape)
    positions = list(itertools.product(*(range(n) for n in shape[:-2])))
    for done, position in enumerate(positions):
        progress(done, len(positions))
        for parts in read_plane(store, counts.plane(position), counts.shape[-2:]):
            if cancelled():
                return counts
            counts.add(position, parts)
    progress(len(positions), len(positions))
    return counts


def read_plane(store: LabelStore, plane: Plane, sides: Sequence[int]) -> Iterator[list[Part]]:
    """The labels of a plane, by strips of it."""
    rows, cols = sides
    step = max(1, READ // cols)
    for top in range(0, rows, step):
        box = BoundingBox(top, 0, min(rows, top + step), cols)
        yield [
            (label, voxels, part.shifted(top, 0)) for label, voxels, part in counted(store.read(plane, box))
        ]


def counted(labels: np.ndarray) -> list[Part]:
    """Each label of 1 or more in (rows, cols): its voxels and the smallest box around them.

    >>> counted(np.array([[0, 7], [0, 7]]))
    [(7, 2, BoundingBox(top=0, left=1, bottom=2, right=2))]
    """
    from scipy import ndimage  # takes 0.25 s, which would delay the window

    box = BoundingBox.of(labels > 0)
    if box.is_empty:
        return []
    part = labels[box.slices]
    values = np.unique(part)
    values = values[values > 0]
    if len(values) == 1:
        return [(int(values[0]), int(np.count_nonzero(part == values[0])), box)]
    numbers = np.searchsorted(values, part).astype(np.int32) + 1
    numbers[part <= 0] = 0
    voxels = np.bincount(numbers.ravel(), minlength=len(values) + 1)[1:]
    found = ndimage.find_objects(numbers)
    return [
        (
            int(value),
            int(number),
            BoundingBox(rows.start, cols.start, rows.stop, cols.stop).shifted(*box.corner),
        )
        for value, number, (rows, cols) in zip(values, voxels, found, strict=True)
    ]


def edit_parts(edit: LabelEdit, shape: Sequence[int]) -> Iterator[tuple[Position, list[Part]]]:
    """By plane along the last two axes, what an edit adds to each label."""
    before, after = np.zeros(edit.box.shape, edit.dtype), np.zeros(edit.box.shape, edit.dtype)
    edit.reversed().apply(before)
    edit.apply(after)
    if edit.plane.axes == (len(shape) - 2, len(shape) - 1):
        position = tuple(at for at in edit.plane.index if at is not None)
        yield position, _difference(before, after, edit.box)
        return
    for plane, box, there, _ in by_plane(edit, shape):
        position = tuple(at for at in plane.index if at is not None)
        yield position, _difference(before[there], after[there], box)


def _counted(values: np.ndarray) -> Iterator[tuple[int, int]]:
    if values.size and values.min() >= 0 and values.max() < 2**16:  # faster than sorting them
        numbers = np.bincount(values.ravel().astype(np.int64))
        return ((int(value), int(numbers[value])) for value in np.flatnonzero(numbers))
    found, numbers = np.unique(values, return_counts=True)
    return zip(found.tolist(), numbers.tolist(), strict=True)


def _difference(before: np.ndarray, after: np.ndarray, box: BoundingBox) -> list[Part]:
    more: dict[int, int] = {}
    for values, sign in ((before, -1), (after, 1)):
        for value, count in _counted(values):
            more[value] = more.get(value, 0) + sign * count
    return [(label, number, box) for label, number in more.items()]
