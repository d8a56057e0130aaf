"""What can be done with the objects of a session, each one as one undo step: a table calls these functions.

    describe(session, [3, 7], locked=True)
    merge(session, counts, [3, 7])             # voxels of 7 become 3
    session.undo()

Locked objects are never changed. Where a function can do nothing, it raises ValueError with one sentence, and
nothing has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from napari_lowlat_seg.annotation.history import ObjectRecord, Step
from napari_lowlat_seg.annotation.objects.counts import LabelCounts, Position
from napari_lowlat_seg.annotation.objects.facts import PLAIN, FactChange, check_class, check_unlocked
from napari_lowlat_seg.annotation.objects.writing import check_label
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore
from napari_lowlat_seg.core.volume import Plane

Records = tuple[tuple[int, ObjectRecord | None, ObjectRecord], ...]


def describe(session: Session, labels: Iterable[int], **changes: Any) -> bool:
    """Change what is said of some objects, in one undo step; False if it is said already.

    Parameters
    ----------
    labels
        Of objects in the labels in use.
    **changes
        Fields of `ObjectFacts`.

    Raises
    ------
    ValueError
        For a class that is not of the list, a name that is no name, and without labels.
    """
    check_class(session.classes, changes.get("category", ""))
    store, facts = labels_of(session), session.facts
    said: list[FactChange] = []
    for label in dict.fromkeys(labels):
        before = facts.get(label, PLAIN)
        after = replace(before, **changes)
        said += [(label, facts.get(label), after)] if after != before else []
    if said:
        title = f"{_words(changes)} {_objects([label for label, _, _ in said])}"
        do(session, title, store, facts=tuple(said))
    return bool(said)


def delete(session: Session, counts: LabelCounts, labels: Iterable[int]) -> None:
    """Make the voxels of some objects background.

    Parameters
    ----------
    counts
        Where the labels are; up to date.
    labels
        Of the objects.

    Raises
    ------
    ValueError
        For a locked object, one in progress, a label that no voxel has, and no label at all.
    """
    labels = _changeable(session, counts, labels)
    edits = _replaced(session, counts, labels, 0)
    gone = tuple((label, session.facts[label], None) for label in labels if label in session.facts)
    title = f"deleted {_objects(labels)}"
    do(session, title, labels_of(session), edits, _forgotten(session, labels), gone)


def merge(session: Session, counts: LabelCounts, labels: Iterable[int]) -> int:
    """Give the voxels of all objects the label of the first one, which is returned.

    Raises ValueError as `delete`, and for fewer than two.
    """
    labels = _changeable(session, counts, labels)
    if len(labels) < 2:
        raise ValueError(f"two or more objects are merged, got {len(labels)}; choose more rows")
    first, others = labels[0], labels[1:]
    edits = _replaced(session, counts, others, first)
    gone = tuple((label, session.facts[label], None) for label in others if label in session.facts)
    title = f"merged {_objects(others)} into {first}"
    do(session, title, labels_of(session), edits, _forgotten(session, labels), gone)
    return first


def split(session: Session, counts: LabelCounts, label: int) -> tuple[int, ...]:
    """Give each connected part of an object a label of its own; the largest keeps the old one.

    Voxels are connected if they touch, at a corner too. Returns the new labels, with facts as the old one.

    Raises ValueError as `delete`, and for an object in one piece.
    """
    (label,) = _changeable(session, counts, [label])
    parts = list(_islands(session, counts, label))
    number = max((int(part.max()) for _, _, part in parts), default=0)
    if number < 2:
        raise ValueError(f"object {label} is in one piece")
    sizes = sum(np.bincount(part.ravel(), minlength=number + 1) for _, _, part in parts)
    largest = 1 + int(np.argmax(np.asarray(sizes)[1:]))
    first = next_label(session)
    check_label(labels_of(session), next(iter(counts.planes(label))), first + number - 2)
    table = np.zeros(number + 1, np.int64)
    table[[i for i in range(1, number + 1) if i != largest]] = np.arange(first, first + number - 1)
    edits = []
    for position, box, part in parts:
        plane = counts.plane(position)
        before = labels_of(session).read(plane, box)
        after = np.where(table[part] > 0, table[part], before).astype(before.dtype)
        edit = LabelEdit.between(plane, box, before, after)
        edits += [] if edit is None else [edit]
    new = tuple(range(first, first + number - 1))
    said = session.facts.get(label)
    facts: tuple[FactChange, ...] = () if said is None else tuple((one, None, said) for one in new)
    records = (*_forgotten(session, [label]), *moved_on(session, new[-1]))
    title = f"split object {label} into {number} parts"
    do(session, title, labels_of(session), edits, records, facts)
    return new


def place_of(session: Session, counts: LabelCounts, label: int) -> tuple[Plane, tuple[int, int]]:
    """Where to look at an object: a plane, and (row, col) of a voxel near the middle of the object there.

    It is a plane with prompts of the object, if there is one, else the one that shows most of it.

    Raises ValueError if no voxel has the label.
    """
    store = labels_of(session)
    candidates: list[tuple[Plane, BoundingBox]] = [
        (plane, edit.box)
        for number, record in session.contents.records.items()
        if record.label == label and record.store is store
        for plane, edit in record.written.items()
        if session.contents.state(number, plane).prompts
    ]
    planes = counts.planes(label)
    if planes:
        most = max(planes, key=lambda plane: planes[plane].voxels)
        candidates.append((most, planes[most].box))
    for plane, box in candidates:
        found = np.argwhere(store.read(plane, box) == label)
        if found.size:
            middle = found[np.argmin(((found - found.mean(axis=0)) ** 2).sum(axis=1))]
            return plane, (int(middle[0]) + box.top, int(middle[1]) + box.left)
    raise ValueError(f"no voxel has label {label}; count the labels again")


# Parts of steps


def do(
    session: Session,
    title: str,
    store: LabelStore | None = None,
    edits: Sequence[LabelEdit] = (),
    records: Records = (),
    facts: tuple[FactChange, ...] = (),
    states: Sequence[tuple[tuple[int, Plane], PlaneState, PlaneState]] = (),
    *,
    plane: Plane | None = None,
    following: int | None = None,
) -> None:
    """Do a step whose fields these are; `following` is the number of the object that is current then."""
    change = (session.current, session.current if following is None else following)
    plane = edits[0].plane if edits else plane
    step = Step(title, plane, change, tuple(states), records, tuple(edits), store, "objects", facts=facts)
    session.do_step(step)


def labels_of(session: Session) -> LabelStore:
    """The labels in use; raises ValueError without any."""
    if session.labels is None:
        raise ValueError("there are no labels yet; accept an object, or choose a labels layer first")
    return session.labels


def _changeable(session: Session, counts: LabelCounts, labels: Iterable[int]) -> list[int]:
    """The labels, each once, if all are there, unlocked and not being edited."""
    labels_of(session)
    session.check_answered()
    chosen = list(dict.fromkeys(int(label) for label in labels))
    for label in chosen:
        check_unlocked(session.facts, label)
        if label not in counts:
            raise ValueError(f"no voxel has label {label}; count the labels again")
        if label == session.label and session.begun:
            raise ValueError(f"object {label} is in progress; accept it or cancel it first")
    if not chosen:
        raise ValueError("no object is chosen; choose a row of the table first")
    return chosen


def _replaced(session: Session, counts: LabelCounts, labels: Sequence[int], value: int) -> list[LabelEdit]:
    """The edits that give all voxels of some labels another value."""
    store, boxes = labels_of(session), dict[Plane, BoundingBox]()
    for label in labels:
        for plane, on in counts.planes(label).items():
            boxes[plane] = on.box if plane not in boxes else boxes[plane].union(on.box)
    edits = []
    for plane, box in boxes.items():
        before = store.read(plane, box)
        after = np.where(np.isin(before, labels), before.dtype.type(value), before)
        edit = LabelEdit.between(plane, box, before, after)
        edits += [] if edit is None else [edit]
    return edits


def _forgotten(session: Session, labels: Sequence[int]) -> Records:
    """Records of objects that have no longer the voxels that they were accepted with."""
    store = session.labels
    return tuple(
        (number, record, replace(record, written={}))
        for number, record in session.contents.records.items()
        if record.label in labels and record.store is store and record.written
    )


def next_label(session: Session) -> int:
    """The label that the current object would get if it began now."""
    used = session.label if session.begun else 0
    return max(session.highest, used) + 1


def moved_on(session: Session, highest: int) -> Records:
    """The record of an empty current object whose label has been taken, with the next one."""
    record = session.contents.records[session.current]
    if session.begun or session.semantic or record.label > highest:
        return ()
    return ((session.current, record, replace(record, label=highest + 1)),)


def _islands(
    session: Session, counts: LabelCounts, label: int
) -> Iterator[tuple[Position, BoundingBox, np.ndarray]]:
    """By plane: the part of it with the object, and which of its connected parts each pixel belongs to."""
    from scipy import ndimage  # takes 0.25 s, which would delay the window

    planes = counts.planes(label)
    box = next(iter(planes.values())).box.union(*(on.box for on in planes.values()))
    positions = np.array([[at for at in plane.index if at is not None] for plane in planes], int)
    low, high = positions.min(axis=0), positions.max(axis=0)
    voxels = np.zeros((*(high - low + 1), *box.shape), np.bool_)
    for plane, position in zip(planes, positions, strict=True):
        voxels[tuple(position - low)] = labels_of(session).read(plane, box) == label
    numbers, _ = ndimage.label(voxels, np.ones((3,) * voxels.ndim))
    for position in positions:
        yield tuple(int(at) for at in position), box, numbers[tuple(position - low)]


def _objects(labels: Sequence[int]) -> str:
    if len(labels) == 1:
        return f"object {labels[0]}"
    return f"{len(labels)} objects" if len(labels) > 4 else f"objects {', '.join(map(str, labels))}"


def _words(changes: Mapping[str, Any]) -> str:
    """What was said, for the undo stack: "locked", "class mitochondrion of"."""
    words: dict[str, Callable[[Any], str]] = {
        "name": lambda name: f"name “{name}” of" if name else "removed the name of",
        "category": lambda name: f"class “{name}” of" if name else "removed the class of",
        "review": lambda on: "marked to review" if on else "marked done",
        "locked": lambda on: "locked" if on else "unlocked",
        "hidden": lambda on: "hid" if on else "showed",
    }
    return ", ".join(words[field](value) for field, value in changes.items())
