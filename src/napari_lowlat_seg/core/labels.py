"""Writing objects into labels: what an edit changes, under which policy, and how it is undone.

A `LabelEdit` holds the values before and after of exactly the voxels that change, so undo writes the reversed
edit. A `LabelStore` hides where the labels are: a numpy or zarr array, a napari layer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.volume import ArrayLike, Line, Plane

SEARCHED = 4096
"""Of planes with more rows or columns, only the surroundings of a pixel are searched for its object."""

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


def check_label(labels: LabelStore, plane: Plane, label: int) -> None:
    """Raise ValueError if labels cannot hold a label; reads one pixel of a plane."""
    _check_holds(labels.read(plane, BoundingBox.at((0, 0), (1, 1))).dtype, label)


def _check_holds(dtype: np.dtype[Any], label: int) -> None:
    most = int(np.iinfo(dtype).max)
    if not 1 <= label <= most:
        raise ValueError(
            f"an object's label must be from 1 to {most} in labels of type {dtype}, got {label}; "
            "choose a free one or convert the labels to a larger type"
        )


def object_edits(
    labels: LabelStore,
    plane: Plane,
    mask: np.ndarray,
    label: int,
    policy: Policy,
    written: LabelEdit | None = None,
    corner: tuple[int, int] = (0, 0),
) -> tuple[LabelEdit | None, LabelEdit | None]:
    """The edits that write an object on one plane; nothing is written here.

    Parameters
    ----------
    labels
        Read around the object.
    plane, mask
        The object, (rows, cols) bool: the whole plane, or a part of it that begins at `corner`.
    label
        Its label, 1 or more.
    policy
        What it may take voxels from.
    written
        The edit that wrote the object on this plane the last time, if there was one. It is undone first,
        where voxels still have its label: a correction gives back what the object no longer covers.

    Raises
    ------
    ValueError
        For a label that the labels' type cannot hold.

    Returns
    -------
    LabelEdit or None
        The edit to write.
    LabelEdit or None
        The edit that writes the whole object over the labels below it.
    """
    one = _Writing.of(labels, plane, Patch(corner, mask), label, written)
    return (None, None) if one is None else one.edits(plane, label, policy)


@dataclass(frozen=True, eq=False)
class _Writing:
    """What is known of an object on one plane before it is written: arrays of the shape of a box.

    Attributes
    ----------
    box
        Around the object now and as it was written the last time.
    now, beneath
        The labels, and those without the object.
    mask
        Where the object is; it and `beneath` are changed by `_agree`.
    """

    box: BoundingBox
    now: np.ndarray
    beneath: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(
        cls, labels: LabelStore, plane: Plane, patch: Patch, label: int, written: LabelEdit | None
    ) -> _Writing | None:
        """Read the labels; None for an object that is and was nowhere on the plane."""
        tight = BoundingBox.of(patch.pixels)
        part = Patch(tight.shifted(*patch.corner).corner, patch.pixels[tight.slices])
        box = part.box if written is None else part.box.union(written.box)
        if box.is_empty:
            return None
        now = labels.read(plane, box)
        _check_holds(now.dtype, label)
        beneath = now.copy()
        if written is not None:
            old = beneath[written.box.shifted(-box.top, -box.left).slices]
            before = old.copy()
            written.reversed().apply(before)
            old[:] = np.where(old == written.highest, before, old)
        return cls(box, now, beneath, part.shown_in(box))

    def edits(self, plane: Plane, label: int, policy: Policy) -> tuple[LabelEdit | None, LabelEdit | None]:
        """The edit to write, and the one that writes the whole object over the labels below it."""
        after = self.beneath.copy()
        after[self.mask & policy.allows(self.beneath)] = label
        now = LabelEdit.between(plane, self.box, self.now, after)
        return now, LabelEdit.between(plane, self.box, self.beneath, after)

    def along(self, line: Line) -> tuple[int, int, tuple[slice | int, slice | int] | None]:
        """Where a line of the plane begins and ends in the box, and its key there; None beside the box."""
        side, at = line
        rows, cols = self.box.slices
        across, along = (rows, cols) if side == 0 else (cols, rows)
        if not across.start <= at < across.stop:
            return along.start, along.stop, None
        here = at - across.start
        return along.start, along.stop, (here, slice(None)) if side == 0 else (slice(None), here)


def _agree(older: _Writing, newer: _Writing | None, lines: tuple[Line, Line]) -> None:
    """Let two planes say the same of the voxels in which they cross, in place: the mask of the newer one."""
    start, stop, key = older.along(lines[0])
    if key is None:
        return
    mask = older.mask[key]
    mask[:] = False
    if newer is None:
        return
    first, last, other = newer.along(lines[1])
    low, high = max(start, first), min(stop, last)
    if other is None or low >= high:
        return
    mine, theirs = slice(low - start, high - start), slice(low - first, high - first)
    mask[mine] = newer.mask[other][theirs]
    one, two = older.beneath[key][mine], newer.beneath[other][theirs]
    one[:] = two[:] = np.where(one != older.now[key][mine], one, two)


def volume_edits(
    labels: LabelStore,
    masks: Mapping[Plane, Patch],
    label: int,
    policy: Policy,
    written: Mapping[Plane, LabelEdit],
) -> tuple[list[LabelEdit], dict[Plane, LabelEdit]]:
    """`object_edits` on all planes of an object: the edits to write, and the edit of the object by plane.

    Where planes of several axes cross, the mask that comes later in `masks` says what is written.
    """
    found = (
        (plane, _Writing.of(labels, plane, mask, label, written.get(plane))) for plane, mask in masks.items()
    )
    writings: Iterable[tuple[Plane, _Writing | None]] = found
    if len({plane.axes for plane in masks}) > 1:
        writings = _agreed(dict(found)).items()
    edits: list[LabelEdit] = []
    made: dict[Plane, LabelEdit] = {}
    for plane, one in writings:  # planes of one axis are read and written one at a time
        if one is None:
            continue
        edit, whole = one.edits(plane, label, policy)
        edits += [edit] if edit is not None else []
        made |= {plane: whole} if whole is not None else {}
    return edits, made


def _agreed(writings: dict[Plane, _Writing | None]) -> dict[Plane, _Writing | None]:
    """The same, oldest first, after each plane has changed the older ones that it crosses; empty ones too."""
    before: dict[tuple[int, int], list[Plane]] = {}
    for newer in writings:
        for older in (one for axes, planes in before.items() if axes != newer.axes for one in planes):
            lines, one = older.crossing(newer), writings[older]
            if lines is not None and one is not None:
                _agree(one, writings[newer], lines)
        before.setdefault(newer.axes, []).append(newer)
    return writings


def around(
    labels: LabelStore, plane: Plane, at: tuple[int, int], sides: tuple[int, int], label: int
) -> BoundingBox:
    """A box around the object that has a label at a pixel: the whole plane, unless that is huge.

    Of a huge plane, growing boxes are read until the label does not touch their edge; parts of the object
    that are farther away are not found.
    """
    if max(sides) <= SEARCHED:
        return BoundingBox(0, 0, *sides)
    reach = SEARCHED // 8
    while True:
        box = BoundingBox(at[0] - reach, at[1] - reach, at[0] + reach, at[1] + reach).clipped(sides)
        tight = BoundingBox.of(labels.read(plane, box) == label).shifted(*box.corner)
        if box.shape == sides or (not tight.is_empty and box.contains(tight.grown(1).clipped(sides))):
            return box
        reach *= 2


def found_object(
    labels: LabelStore, plane: Plane, box: BoundingBox, label: int
) -> tuple[LabelEdit, np.ndarray]:
    """The object with a label in a box: the edit that would write it over background, and its mask.

    Raises ValueError if no voxel has the label.
    """
    now = labels.read(plane, box)
    mask = now == label
    edit = LabelEdit.between(plane, box, np.where(mask, now.dtype.type(0), now), now)
    if edit is None:
        raise ValueError(f"no voxel of plane {plane.index} has label {label}; choose one that exists")
    return edit, mask
