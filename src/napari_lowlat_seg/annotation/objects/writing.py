"""Writing objects into labels, and finding them there again.

An object is written on one plane or on many, over what a policy lets it take; written again after a
correction, it gives back what it no longer covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore, Policy
from napari_lowlat_seg.core.volume import Line, Plane

SEARCHED = 4096
"""Of planes with more rows or columns, only the surroundings of a pixel are searched for its object."""


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
        Where the object is.
    crossed
        Voxels of older planes, whose edits write them. This, `mask` and `beneath` are changed by `_agree`.
    """

    box: BoundingBox
    now: np.ndarray
    beneath: np.ndarray
    mask: np.ndarray
    crossed: np.ndarray

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
        return cls(box, now, beneath, part.shown_in(box), np.zeros(box.shape, np.bool_))

    def edits(self, plane: Plane, label: int, policy: Policy) -> tuple[LabelEdit | None, LabelEdit | None]:
        """The edit to write, and the one that writes the whole object over the labels below it."""
        after = self.beneath.copy()
        after[self.mask & policy.allows(self.beneath)] = label
        now = LabelEdit.between(plane, self.box, np.where(self.crossed, after, self.now), after)
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
    newer.crossed[other][theirs] = True  # else it is counted twice


def volume_edits(
    labels: LabelStore,
    masks: Mapping[Plane, Patch],
    label: int,
    policy: Policy,
    written: Mapping[Plane, LabelEdit],
) -> tuple[list[LabelEdit], dict[Plane, LabelEdit]]:
    """`object_edits` on all planes of an object: the edits to write, and the edit of the object by plane.

    Parameters
    ----------
    masks
        By plane; where planes of several axes cross, the later one says what is written.
    written
        By plane, the edit that wrote the object there the last time.
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

    Parameters
    ----------
    at
        (row, col) of the pixel.
    sides
        Rows and columns of the plane.
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
