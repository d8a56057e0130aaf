"""Labels and their edits: what changes, under which policy, and how it is undone.

A `LabelEdit` holds the values before and after of exactly the voxels that change, so undo writes the reversed
edit. A `LabelStore` hides where the labels are: a numpy or zarr array, a napari layer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.volume import ArrayLike, Plane

Kind = Literal["keep", "overwrite", "within"]


@dataclass(frozen=True)
class Policy:
    """Which labels an object may take voxels from.

    Attributes
    ----------
    kind
        "keep": from the background only. "overwrite": from every label. "within": from one label only.
    within
        That one label, 0 or more.
    locked
        Labels that keep their voxels in any case.

    Raises
    ------
    ValueError
        For an unknown kind or a negative label.
    """

    kind: Kind = "keep"
    within: int = 0
    locked: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"the policy for existing labels is one of {get_args(Kind)}, got {self.kind!r}")
        if self.within < 0:
            raise ValueError(f"a label to stay within must be 0 or more, got {self.within}")

    def allows(self, labels: np.ndarray) -> np.ndarray:
        """Where these labels may be replaced: bool, of the same shape."""
        free: np.ndarray = labels == (self.within if self.kind == "within" else 0)
        if self.kind == "overwrite":
            free = np.ones(labels.shape, np.bool_)
        return free & ~np.isin(labels, list(self.locked)) if self.locked and self.kind != "keep" else free


def inflated(packed: bytes, size: int) -> Iterator[bytes]:
    """What zlib packed, in parts of up to a megabyte; raises ValueError unless it is exactly `size` bytes."""
    unpacker, left, rest = zlib.decompressobj(), size, packed
    while not unpacker.eof:
        try:
            part = unpacker.decompress(rest, 2**20)
        except zlib.error as error:
            raise ValueError(f"bytes cannot be unpacked ({error})") from error
        rest, left = unpacker.unconsumed_tail, left - len(part)
        if left < 0 or not (part or unpacker.eof):
            break
        if part:
            yield part
    if left or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"expected {size} packed bytes, got {'more' if left < 0 else 'others'}")


@dataclass(frozen=True)
class _Values:
    """The values of some voxels: one number if all are equal, which is the usual case."""

    same: int | None
    packed: bytes
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, values: np.ndarray) -> _Values:
        if values.size and values.min() == values.max():
            return cls(int(values.flat[0]), b"", values.dtype)
        return cls(None, zlib.compress(values.tobytes(), 1), values.dtype)

    def array(self) -> np.ndarray | int:
        if self.same is not None:
            return self.same
        return np.frombuffer(zlib.decompress(self.packed), self.dtype)


@dataclass(frozen=True)
class LabelEdit:
    """Voxels of one plane that change their labels.

    Attributes
    ----------
    plane
        The plane.
    box
        The smallest box around the voxels that change.
    """

    plane: Plane
    box: BoundingBox
    _changed: bytes
    _before: _Values
    _after: _Values

    @classmethod
    def between(
        cls, plane: Plane, box: BoundingBox, before: np.ndarray, after: np.ndarray
    ) -> LabelEdit | None:
        """The edit that turns the labels `before` inside `box` into `after`; None if they are equal."""
        changed = before != after
        tight = BoundingBox.of(changed)
        if tight.is_empty:
            return None
        part = tight.slices
        changed = changed[part]
        bits = zlib.compress(np.packbits(changed).tobytes(), 1)
        values = _Values.of(before[part][changed]), _Values.of(after[part][changed])
        return cls(plane, tight.shifted(box[0], box[1]), bits, *values)

    @property
    def changed(self) -> np.ndarray:
        """Which voxels inside the box change, (rows, cols) bool."""
        rows, cols = self.box.shape
        bits = np.frombuffer(zlib.decompress(self._changed), np.uint8)
        return np.unpackbits(bits, count=rows * cols).astype(np.bool_).reshape(rows, cols)

    def holds(self, at: tuple[int, int]) -> bool:
        """Whether this pixel of the plane changes."""
        row, col = at[0] - self.box[0], at[1] - self.box[1]
        changed = self.changed
        return 0 <= row < changed.shape[0] and 0 <= col < changed.shape[1] and bool(changed[row, col])

    def reversed(self) -> LabelEdit:
        """The edit that undoes this one."""
        return replace(self, _before=self._after, _after=self._before)

    def apply(self, region: np.ndarray) -> None:
        """Write the new values into `region`, the labels inside the box, in place."""
        region[self.changed] = self._after.array()

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each new label and its voxels, (rows, cols) bool inside the box."""
        changed, values = self.changed, self._after.array()
        if isinstance(values, int):
            yield values, changed
            return
        for value in np.unique(values):
            where = changed.copy()
            where[changed] = values == value
            yield int(value), where

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the labels."""
        return self._after.dtype

    def packed(self) -> tuple[dict[str, Any], tuple[bytes, bytes, bytes]]:
        """The edit without plane and box, as values for JSON and bytes to keep beside them."""
        values = {"before": self._before.same, "after": self._after.same, "dtype": self.dtype.str}
        return values, (self._changed, self._before.packed, self._after.packed)

    @classmethod
    def unpacked(
        cls, plane: Plane, box: BoundingBox, values: Mapping[str, Any], blobs: Sequence[bytes]
    ) -> LabelEdit:
        """The edit of `packed`; raises ValueError unless values, bytes and box fit together."""
        dtype = np.dtype(values["dtype"])
        if dtype.kind not in "iu" or not isinstance(values["dtype"], str):
            raise ValueError(f"labels must be integers, got {dtype}")
        area, limits = box.shape[0] * box.shape[1], np.iinfo(dtype)
        count, last = 0, 0
        for part in inflated(blobs[0], -(-area // 8)):
            bits = np.unpackbits(np.frombuffer(part, np.uint8))
            count, last = count + int(np.count_nonzero(bits)), part[-1]
        count -= (last & (0xFF >> (area % 8 or 8))).bit_count()  # those that only fill the last byte
        both = []
        for same, packed in ((values["before"], blobs[1]), (values["after"], blobs[2])):
            if same is None:
                for _ in inflated(packed, count * dtype.itemsize):
                    pass
            elif type(same) is not int or not limits.min <= same <= limits.max or packed:
                raise ValueError(f"expected one label of type {dtype}, got {same!r:.40}")
            both.append(_Values(same, packed, dtype))
        if not count:
            raise ValueError("an edit of labels must change a voxel")
        return cls(plane, box, blobs[0], *both)

    @property
    def highest(self) -> int:
        """The highest new label."""
        return int(np.max(self._after.array()))

    @property
    def nbytes(self) -> int:
        """Approximate size in memory."""
        return len(self._changed) + len(self._before.packed) + len(self._after.packed) + 400


def kept_apart(edit: LabelEdit, locked: frozenset[int]) -> tuple[LabelEdit | None, LabelEdit | None]:
    """Of an edit that has been made: what is left of it, and what gives locked labels back their voxels.

    Neither takes a voxel from a locked label or gives it one. Does not mutate.
    """
    before = np.zeros(edit.box.shape, edit.dtype)
    after = before.copy()
    edit.reversed().apply(before)
    edit.apply(after)
    wrong = edit.changed & (np.isin(before, list(locked)) | np.isin(after, list(locked)))
    if not wrong.any():
        return edit, None
    rest, back = np.where(wrong, before, after), np.where(wrong, before, after)
    # Voxels outside of the edit are 0 in both arrays, which is no change.
    return (
        LabelEdit.between(edit.plane, edit.box, before, rest),
        LabelEdit.between(edit.plane, edit.box, after, back),
    )


Pixels = tuple[np.ndarray, np.ndarray]
"""Rows and columns of pixels."""


def by_plane(edit: LabelEdit, shape: Sequence[int]) -> Iterator[tuple[Plane, BoundingBox, Pixels, Pixels]]:
    """The voxels of an edit by plane along the last two axes, wherever the edit's own plane lies.

    Yields
    ------
    Plane, BoundingBox
        The plane, and the smallest box around the voxels there.
    Pixels, Pixels
        Where they are in the arrays of the edit, and in the box.
    """
    rows, cols = np.nonzero(edit.changed)
    places = [np.full(rows.size, 0 if at is None else at) for at in edit.plane.index]
    row_axis, col_axis = edit.plane.axes
    places[row_axis], places[col_axis] = rows + edit.box.top, cols + edit.box.left
    planes = np.ravel_multi_index(tuple(places[:-2]), tuple(shape[:-2]))
    order = np.argsort(planes, kind="stable")
    starts = np.flatnonzero(np.diff(planes[order], prepend=-1))
    for group in np.split(order, starts[1:]):
        r, c = places[-2][group], places[-1][group]
        box = BoundingBox(int(r.min()), int(c.min()), int(r.max()) + 1, int(c.max()) + 1)
        plane = Plane((*(int(place[group[0]]) for place in places[:-2]), None, None))
        yield plane, box, (rows[group], cols[group]), (r - box.top, c - box.left)


class LabelStore(Protocol):
    """Labels that are read and written by boxes of a volume's planes."""

    def read(self, plane: Plane, box: BoundingBox) -> np.ndarray:
        """A copy of the labels inside a box of a plane."""

    def write(self, edits: Sequence[LabelEdit]) -> None:
        """Write the edits, as one step of the store's own undo if it has one."""

    def highest(self) -> int:
        """The highest label; reads all labels."""


Key = tuple[slice, ...]
"""One bounded slice per axis of an array; all but those of the rows and the columns have length 1."""


def plane_key(plane: Plane, box: BoundingBox) -> Key:
    """The numpy key of a box of a plane in an array that has the axes of the volume."""
    sides = iter(BoundingBox(*box).slices)
    return tuple(next(sides) if at is None else slice(at, at + 1) for at in plane.index)


class ArrayLabels:
    """Labels in an array that can be read and written by slices: numpy, zarr, tensorstore.

    Everything is read by `read` and written by `put`; a store of another kind overrides these two.

    Parameters
    ----------
    data
        Integers.
    key
        Where a box of a plane lies in `data`; the default is for the axes of the volume in their order.
    """

    def __init__(self, data: ArrayLike, key: Callable[[Plane, BoundingBox], Key] = plane_key) -> None:
        self.data: Any = data
        self.key = key

    def read(self, plane: Plane, box: BoundingBox) -> np.ndarray:
        """A copy of the labels inside a box of a plane: (rows, cols)."""
        return np.array(self.data[self.key(plane, box)], order="C").reshape(BoundingBox(*box).shape)

    def put(
        self, plane: Plane, box: BoundingBox, region: np.ndarray, changed: np.ndarray | None = None
    ) -> None:
        """Replace the labels inside a box of a plane.

        Parameters
        ----------
        region
            (rows, cols), all new labels of the box.
        changed
            (rows, cols) bool, where they may differ from the old ones; None for everywhere.
        """
        key = self.key(plane, box)
        self.data[key] = region.reshape([part.stop - part.start for part in key])

    def write(self, edits: Sequence[LabelEdit]) -> None:
        """Make the edits."""
        for edit in edits:
            region = self.read(edit.plane, edit.box)
            edit.apply(region)
            self.put(edit.plane, edit.box, region, edit.changed)

    def write_mask(
        self,
        plane: Plane,
        mask: np.ndarray,
        label: int,
        corner: tuple[int, int] = (0, 0),
        *,
        lowest: bool = False,
    ) -> None:
        """Give the pixels of a mask a label; all others keep theirs.

        Parameters
        ----------
        mask
            (rows, cols) bool, the whole plane or a part of it.
        corner
            (row, col) in the plane at which the mask's first pixel lies.
        lowest
            Pixels of a lower label keep it; then the order of several writes does not matter.
        """
        tight = BoundingBox.of(mask)
        if tight.is_empty:
            return
        box, changed = tight.shifted(*corner), mask[tight.slices]
        region = self.read(plane, box)
        if lowest:
            changed = changed & ((region == 0) | (region > label))
        region[changed] = label
        self.put(plane, box, region, changed)

    def take_back(self, highest: int) -> None:
        """Hear that labels above `highest`, which were written and taken back, are not in use."""

    def fill(self, plane: Plane, labels: np.ndarray) -> None:
        """Give every pixel of a plane its label: (rows, cols) integers of 0 or more."""
        self.put(plane, BoundingBox.at((0, 0), labels.shape), labels)

    def highest(self) -> int:
        """The highest label, read slice by slice along the first axis."""
        return max(int(np.max(self.data[i])) for i in range(self.data.shape[0]))
