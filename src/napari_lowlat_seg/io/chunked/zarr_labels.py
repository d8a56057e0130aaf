"""Labels larger than memory: a pyramid of arrays on disk, written where something changes.

All levels are true after every write: a coarser one shows every second, fourth, ... voxel of the finest, so
whatever is looked at from afar exists. Nothing is ever read but the box that is asked for, and the chunks
that exist when somebody else's labels are searched for their highest id, once.
"""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.labels import ArrayLabels, Key, LabelEdit
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.chunked.ome_zarr import (
    HIGHEST,
    creating,
    group_around,
    label_levels,
    labels_group,
    labels_plan,
)
from napari_lowlat_seg.io.placed import TurnedArray


class LabelPyramid(ArrayLabels):
    """Labels in arrays of falling size, the first one full: what is written is written on all levels.

    Level k of a pyramid that is made here shows every 2^k-th row and column, so a coarse label is one that
    exists. Chunks in which nothing was written take no room.

    Parameters
    ----------
    levels
        numpy or zarr arrays of integers, all with the same axes.
    group
        The zarr group that they belong to, in whose attributes the highest label is kept; None if there is
        none.

    Attributes
    ----------
    place
        Where they lie, if whoever opened them says so.
    empty
        Whether they were known to be empty then.
    """

    def __init__(self, levels: Sequence[Any], group: Any = None) -> None:
        super().__init__(levels[0])
        self.levels = tuple(levels)
        self._group = group
        self._highest: int | None = None
        self.place = ""
        self.empty = False

    @classmethod
    def at(cls, path: str | Path, like: Volume) -> LabelPyramid:
        """The OME-Zarr labels at a path: those that are there, or new ones for a volume.

        Raises as `ome_zarr.labels_group` does.
        """
        return cls._in(labels_group(path, like), like)

    @classmethod
    @contextmanager
    def complete(cls, path: str | Path, like: Volume) -> Iterator[LabelPyramid]:
        """New OME-Zarr labels, which are at the path when the block ends without an error, or never.

        They are for results of others and note no highest label. Raises as `ome_zarr.creating` does.
        """
        with creating(path, like) as group:
            labels = cls._in(group, like)
            labels.uncounted()
            yield labels

    @classmethod
    def _in(cls, group: Any, like: Volume) -> LabelPyramid:
        turn, _ = labels_plan(like)
        levels = label_levels(group)
        return cls(levels if turn.is_identity else [TurnedArray(level, turn) for level in levels], group)

    @classmethod
    def of(cls, levels: Sequence[Any]) -> LabelPyramid:
        """The labels in arrays that somebody else has opened, with the OME-Zarr group that they lie in."""
        group = group_around(levels[0])
        return cls(levels if group is None else label_levels(group), group)

    def keyed(self, key: Callable[[Plane, BoundingBox], Key]) -> LabelPyramid:
        """The same labels, whose arrays have other axes than the volume; see `ArrayLabels`."""
        other = copy.copy(self)
        other.key = key
        return other

    def write(self, edits: Sequence[LabelEdit]) -> None:
        """Make the edits; raises as `writing_to`."""
        with writing_to(*self.levels):
            super().write(edits)

    def put(
        self, plane: Plane, box: BoundingBox, region: np.ndarray, changed: np.ndarray | None = None
    ) -> None:
        """Replace the labels inside a box of a plane on all levels; on coarse ones only what has changed."""
        super().put(plane, box, region, changed)
        key = self.key(plane, box)
        sides = [part.stop - part.start for part in key]
        for level in self.levels[1:]:
            steps = [_step(n, m) for n, m in zip(self.levels[0].shape, level.shape, strict=True)]
            _thin(
                level, steps, key, region.reshape(sides), None if changed is None else changed.reshape(sides)
            )
        known, highest = self._noted if self._highest is None else self._highest, int(region.max(initial=0))
        if known is not None and highest > known:
            self._note(highest)  # may fail on a full disk: then it is not known either
            self._highest = highest

    def highest(self) -> int:
        """The highest label; may take as long as reading all chunks that exist, the first time."""
        if self._highest is None:
            noted = self._noted
            # The coarsest level is read anyway: another program may have drawn what was never noted.
            found = highest_label(self.levels[0 if noted is None else -1])
            highest = max(found, noted or 0)
            self._note(highest)
            self._highest = highest
        return self._highest

    def take_back(self, highest: int) -> None:
        """Note that labels above `highest`, which were written and taken back, are not in use."""
        self._note(highest)
        self._highest = highest

    def uncounted(self) -> None:
        """From now on others write here, who keep no count: what is noted is struck out."""
        if self._noted is not None:
            del self._group.attrs[HIGHEST]
        self._group = None

    @property
    def _noted(self) -> int | None:
        return None if self._group is None else self._group.attrs.get(HIGHEST)

    def _note(self, label: int) -> None:
        if self._group is not None and label != self._noted:
            self._group.attrs[HIGHEST] = label


@contextmanager
def writing_to(*levels: Any) -> Iterator[None]:
    """A block that writes to arrays on disk, which says in one sentence what the disk refuses.

    zarr would make a folder that is gone anew: of labels on a drive that was pulled, a part would lie where
    the drive was, and all that was in them before would seem empty.

    Raises
    ------
    OSError
        If an array of a folder is not there any more, or the disk takes nothing.
    """
    places = [place for place in map(folder_of, levels) if place is not None]
    for place in places:
        if not any((place / name).is_file() for name in ("zarr.json", ".zarray")):
            raise FileNotFoundError(
                f"the labels at {place} are not there any more (was a drive pulled, or a folder renamed?); "
                "what was annotated is kept: bring them back and do this again, or choose other labels"
            )
    try:
        yield
    except OSError as error:
        if not places:
            raise
        raise OSError(
            f"the labels at {places[0]} cannot be written ({error.strerror or error}); what was annotated is "
            "kept: make room, or see to the disk, and do this again"
        ) from error


def folder_of(array: Any) -> Path | None:
    """The folder of an open zarr array on a disk of this machine; None for other arrays."""
    array = array.array if isinstance(array, TurnedArray) else array
    root = getattr(getattr(array, "store", None), "root", None)
    return None if root is None else Path(root) / array.path


def highest_label(array: Any) -> int:
    """The highest label of an array, 0 without any, read part by part: of zarr the chunks there are."""
    return max(0, max((int(np.max(part)) for part in _parts(array)), default=0))


def holds_label(array: Any, label: int) -> bool:
    """Whether a label is anywhere in an array, read part by part until it is found."""
    return any(bool((part == label).any()) for part in _parts(array))


def _parts(array: Any) -> Iterator[np.ndarray]:
    """An array in parts: of zarr the chunks that exist."""
    array = array.array if isinstance(array, TurnedArray) else array
    if isinstance(array, np.ndarray):
        return iter((array,))
    keys: Iterable[Any] = _stored(array) if hasattr(array, "store_path") else range(array.shape[0])
    return (np.asarray(array[key]) for key in keys)


def _step(fine: int, coarse: int) -> int:
    """Voxels of the finest level from one voxel of a coarser one to the next, from the lengths of an axis."""
    # Short axes are halved to a length that the ratio does not tell: 5, 3, 2 have steps of 1, 2, 4.
    halvings = (2**k for k in range(fine.bit_length() + 1))
    return next((step for step in halvings if -(-fine // step) == coarse), max(1, round(fine / coarse)))


def _thin(level: Any, steps: Sequence[int], key: Key, region: np.ndarray, changed: np.ndarray | None) -> None:
    """Bring what changed in a box of the finest level to a coarser one."""
    there, shown = [], []
    for part, step, length in zip(key, steps, level.shape, strict=True):
        first, stop = -(-part.start // step), min(-(-part.stop // step), length)
        if first >= stop:
            return
        there.append(slice(first, stop))
        shown.append(slice(first * step - part.start, (stop - 1) * step - part.start + 1, step))
    values = region[tuple(shown)]
    if changed is not None:
        seen = changed[tuple(shown)]
        if not seen.any():
            return
        values = np.where(seen, values, np.asarray(level[tuple(there)]))
    level[tuple(there)] = values


def _stored(array: Any) -> Iterator[Key]:
    """The chunks of a zarr array that exist."""
    names = asyncio.run(_names(array))
    sides = getattr(array, "shards", None) or array.chunks
    for name in names:
        # "c/3/0/1" in version 3; "3.0.1" or "3/0/1" in version 2. Anything else there is metadata.
        if re.fullmatch(r"(c[./])?\d+([./]\d+)*", name):
            places = [int(digits) for digits in re.findall(r"\d+", name)]
            yield tuple(slice(at * side, (at + 1) * side) for at, side in zip(places, sides, strict=True))


async def _names(array: Any) -> list[str]:
    prefix = f"{array.path}/" if array.path else ""
    return [name.removeprefix(prefix) async for name in array.store.list_prefix(prefix)]
