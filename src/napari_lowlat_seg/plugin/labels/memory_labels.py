"""A napari Labels layer as a `LabelStore`: accepted objects are written to it, brush strokes read from it.

Each write is one step of napari's own undo; each stroke of the user becomes exact edits. napari has no public
way to write labels fast with undo, so this module and `napari_layers`, and no others, use private methods of
its layers, and the slower public ones where these are missing.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from napari.layers import Labels

from napari_lowlat_seg.annotation.journal.encoding import AboutLabels, packed_content
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.labels import LabelEdit
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.io.chunked.zarr_labels import highest_label, writing_to
from napari_lowlat_seg.plugin.labels.alignment import fits, laid_on
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.layers.napari_layers import add_quietly, redraw


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


OnStroke = Callable[[Sequence[LabelEdit]], None]

HISTORY = 100
"""How many steps napari's labels remember."""


class LabelLayer:
    """A Labels layer on an image's grid, read and written plane by plane.

    Parameters
    ----------
    layer
        A Labels layer over numpy, zarr or dask.
    grid
        The image's.

    Raises
    ------
    ValueError
        For a layer that does not fit the grid, with the sentence of `fits`.
    """

    def __init__(self, layer: Any, grid: Grid) -> None:
        unfit, laid_out = fits(layer, grid), laid_on(layer, grid)
        if unfit is not None or laid_out is None:
            raise ValueError(unfit)
        # The viewer that plugins get hands out wrapped layers, which warn about private doors.
        self.layer = getattr(layer, "__wrapped__", layer)
        self.grid = grid
        self._laid_out = laid_out
        self._axes, self._fixed = laid_out.axes, laid_out.fixed
        self._done: deque[_Written] = deque(maxlen=HISTORY)
        self._undone: deque[_Written] = deque(maxlen=HISTORY)
        self._on_stroke: OnStroke | None = None
        self._writing = False
        self._failed = False  # the disk has cut the last write short
        self.about = AboutLabels(np.dtype(layer.dtype), layer.name, "labels that were not looked through")

    def attach(self, on_stroke: OnStroke) -> None:
        """Call with the edits of each stroke that the user has painted, erased or filled."""
        self._on_stroke = on_stroke
        self.layer.events.paint.connect(self._on_paint)

    def detach(self) -> None:
        """Listen no longer."""
        self._on_stroke = None
        self.layer.events.paint.disconnect(self._on_paint)

    def read(self, plane: Plane, box: BoundingBox) -> np.ndarray:
        """A copy of the labels inside a box of a plane: (rows, cols) of the layer's type."""
        region = np.array(self.layer.data[self._key(plane, box)])
        return region.reshape(box[2] - box[0], box[3] - box[1])

    def write(self, edits: Sequence[LabelEdit]) -> None:
        """Make the edits as one step of napari's own undo; napari's own protection of labels does not count.

        Edits that take back or repeat napari's newest step undo or redo that one, so its history stays as
        short as ours. Raises as `writing_to`.
        """
        with writing_to(self.layer.data):
            self._write(tuple(edits))

    def _write(self, edits: tuple[LabelEdit, ...]) -> None:
        if not edits or self._retraced(edits):
            return
        before, after_failure, self._failed = self._newest(), self._failed, True
        with self._quiet(), self.layer.block_history():
            for edit in edits:
                for value, mask in edit.parts():
                    self._paint(edit, value, mask)
        self._failed = False
        redraw(self.layer)
        # What takes back a write that failed changes less than it says: undoing it would not redo the write.
        if self._newest() is not before and not after_failure:
            self._remember(self._newest(), edits)

    def highest(self) -> int:
        """The highest label, 0 where there is none. Reads everything, so it may take a moment."""
        return highest_label(self.layer.data)

    def look_through(self) -> int:
        """The highest label; what the layer holds is kept for a session that is restored.

        Reads everything, so it may take a moment.
        """
        data, place = self.layer.data, self.layer.source.path
        highest = self.highest()
        content = None
        if isinstance(data, np.ndarray):
            place, content = None, packed_content(_in_order(self.grid, self)) if highest else b""
        elif not highest:
            content = b""
        if not isinstance(data, np.ndarray):
            place = str(place or getattr(data, "store_path", "a lazy array"))
        self.about = AboutLabels(np.dtype(data.dtype), self.layer.name, place, content)
        return highest

    def _key(self, plane: Plane, box: BoundingBox) -> tuple[slice, ...]:
        return self._laid_out.key(plane, box)

    def _paint(self, edit: LabelEdit, value: int, mask: np.ndarray) -> None:
        key = self._key(edit.plane, edit.box)
        painted = [self._axes[axis] for axis in edit.plane.axes]
        paint = getattr(self.layer, "_paint_region_with_mask", None)
        if paint is not None:
            paint(key, mask, value, painted, refresh=False)
            return
        where = np.nonzero(mask.reshape([part.stop - part.start for part in key]))
        indices = tuple(at + part.start for at, part in zip(where, key, strict=True))
        self.layer.data_setitem(indices, value, refresh=False)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """While we write, napari's protection of labels is off and no stroke is reported."""
        layer, preserved = self.layer, self.layer.preserve_labels
        self._writing = True
        with layer.events.preserve_labels.blocker():
            layer.preserve_labels = False
            try:
                yield
            finally:
                layer.preserve_labels = preserved
                self._writing = False

    # napari's own history

    def _newest(self, undone: bool = False) -> Any:
        history = self.layer._redo_history if undone else self.layer._undo_history
        return history[-1] if history else None

    def _remember(self, item: Any, edits: tuple[LabelEdit, ...]) -> None:
        self._undone.clear()
        self._done.append(_Written(item, edits))

    def _retraced(self, edits: tuple[LabelEdit, ...]) -> bool:
        """Whether the edits were made by a step back or forth in napari's history."""
        if self._done and self._done[-1].item is self._newest() and self._done[-1].taken_back_by(edits):
            self._step(self.layer.undo, edits)
            self._undone.append(_Written(self._newest(undone=True), self._done.pop().edits))
            return True
        if (
            self._undone
            and self._undone[-1].item is self._newest(undone=True)
            and self._undone[-1].is_(edits)
        ):
            self._step(self.layer.redo, edits)
            self._done.append(_Written(self._newest(), self._undone.pop().edits))
            return True
        return False

    def _step(self, step: Callable[[], None], edits: Sequence[LabelEdit]) -> None:
        """Step through napari's history and draw no more anew than changed, where a picture is no copy."""
        data = self.layer.data
        if not isinstance(data, np.ndarray) or not np.may_share_memory(data, self.layer._slice.image.view):
            step()
            return
        with self.layer._block_refresh():
            step()
        for edit in edits:
            redraw(self.layer, self._key(edit.plane, edit.box))

    # What the user paints

    def _on_paint(self, event: Any) -> None:
        if self._writing or self._on_stroke is None:
            return
        edits = tuple(self._edits_of(event.value))
        if edits:
            self._remember(event.value, edits)
            self._on_stroke(edits)

    def _edits_of(self, atoms: Sequence[Any]) -> Iterator[LabelEdit]:
        """The edits of one stroke, from the pieces that napari keeps to undo and redo it.

        napari reports a polygon before it writes it and a brush stroke after, so what is in the array now
        may be either.
        """
        pieces = [Piece.of(atom) for atom in atoms]
        spans = [max(piece.start[a] + piece.where.shape[a] for piece in pieces) for a in self._axes]
        spans = [s - min(piece.start[a] for piece in pieces) for s, a in zip(spans, self._axes, strict=True)]
        # Along the two longest sides a stroke has the fewest planes.
        rows, cols = sorted(sorted(range(len(spans)), key=lambda axis: (spans[axis], axis))[-2:])
        on_planes: dict[Plane, list[Piece]] = {}
        for piece in pieces:
            for plane, part in piece.planes(self._axes, self._fixed, (rows, cols)):
                on_planes.setdefault(plane, []).append(part)
        for plane, parts in on_planes.items():
            edit = self._edit_of(plane, parts)
            if edit is not None:
                yield edit

    def _edit_of(self, plane: Plane, parts: Sequence[Piece]) -> LabelEdit | None:
        top, left = (min(part.start[side] for part in parts) for side in (0, 1))
        stop = (max(part.start[side] + part.where.shape[side] for part in parts) for side in (0, 1))
        box = BoundingBox(top, left, *stop)
        before = self.read(plane, box)
        for part in reversed(parts):
            part.put(part.old, before, (top, left))
        after = before.copy()
        for part in parts:
            part.put(part.new, after, (top, left))
        return LabelEdit.between(plane, box, before, after)


@dataclass(frozen=True, eq=False)
class _Written:
    """A step of napari's history and the edits that it stands for."""

    item: Any
    edits: tuple[LabelEdit, ...]

    def is_(self, edits: Sequence[LabelEdit]) -> bool:
        return tuple(edits) == self.edits

    def taken_back_by(self, edits: Sequence[LabelEdit]) -> bool:
        return self.is_([edit.reversed() for edit in reversed(edits)])


def make_labels(viewer: Any, grid: Grid) -> LabelLayer:
    """A new Labels layer on the image's grid, right above it; what was selected stays selected.

    16 bits hold 65535 objects at half of the memory of napari's own default.
    """
    labels = np.zeros(grid.shape, np.uint16)
    return in_new_layer(viewer, grid, labels, AboutLabels(labels.dtype, content=b""))


def in_new_layer(viewer: Any, grid: Grid, labels: np.ndarray, about: AboutLabels) -> LabelLayer:
    """Labels of the image's shape in a new layer, right above it; what was selected stays selected.

    `about` is what a session keeps of them; its name, if any, is the layer's.
    """
    layer = Labels(labels, name=about.name or f"{grid.layer.name} [lowlat] objects", **grid.place)
    add_quietly(viewer, layer, above=grid.layer)
    store = LabelLayer(layer, grid)
    store.about = replace(about, name=layer.name)
    return store


def _in_order(grid: Grid, store: LabelLayer) -> np.ndarray:
    """All labels of a layer in the order of the volume's axes."""
    labels = np.empty(grid.shape, store.layer.dtype)
    for plane in grid.volume.planes():
        labels[plane.key()] = store.read(plane, BoundingBox(0, 0, *grid.volume.sides(plane)))
    return labels
