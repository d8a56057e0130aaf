"""One line of everything that can be undone: prompts, masks, accepted objects and brush strokes, in order.

A step holds what it changed, before and after, as frozen values. Nothing here knows how to apply a step; the
session does. What is journalled or replayed later are these same steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from napari_lowlat_seg.annotation.plane_state import PlaneState, weight
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.volume import Plane

LIMIT_BYTES = 256 * 2**20
"""How much the steps may hold together; a step of one click in a megapixel plane takes some 20 KiB."""

Key = tuple[int, Plane]
"""The number of an object and the plane on which something is known of it."""


@dataclass(frozen=True, eq=False)
class Trace:
    """How an object was carried through planes the last time.

    Attributes
    ----------
    anchors
        What it was carried from.
    planes
        The range, in spatial order.
    reached
        The planes that were answered.
    """

    anchors: Mapping[Plane, SoftMask]
    planes: tuple[Plane, ...]
    reached: frozenset[Plane]


@dataclass(frozen=True, eq=False)
class ObjectRecord:
    """One object of the session.

    Attributes
    ----------
    label
        Its id in the labels; several objects may share one.
    store
        The labels into which it was accepted; None before.
    written
        What made it there on each plane, from what was beneath.
    trace
        How it was carried; None if it never was.
    """

    label: int
    store: LabelStore | None = None
    written: Mapping[Plane, LabelEdit] = field(default_factory=dict)
    trace: Trace | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One thing that the user did.

    Attributes
    ----------
    title
        In the user's words: "click", "accept object 3".
    plane
        Where to look when it is undone or redone; None where no plane is concerned.
    states
        (key, state before, state after) of the planes that it changed.
    records
        (object, record before, record after); None before an object exists.
    current
        The object in hand before and after.
    edits
        What it changed in the labels.
    store
        The labels that were changed.
    """

    title: str
    plane: Plane | None
    current: tuple[int, int]
    states: tuple[tuple[Key, PlaneState, PlaneState], ...] = ()
    records: tuple[tuple[int, ObjectRecord | None, ObjectRecord], ...] = ()
    edits: tuple[LabelEdit, ...] = ()
    store: LabelStore | None = None

    @cached_property
    def nbytes(self) -> int:
        """Memory that only this step takes, about."""
        size = 600 + sum(edit.nbytes for edit in self.edits)
        for _, before, after in self.states:
            size += weight(after.prompts) - min(weight(before.prompts), weight(after.prompts))
            if after.answer is not None and after.answer is not before.answer:
                size += after.answer.nbytes
        return size


class Transaction:
    """A step that grows while something runs. What it says is so at once, and is undone as one step.

    Parameters
    ----------
    title, plane
        As `Step` has them.
    current
        The object in hand before and after.
    states, records
        All that is known, by key and by number; changed in place.
    """

    def __init__(
        self,
        title: str,
        plane: Plane | None,
        current: tuple[int, int],
        states: dict[Key, PlaneState],
        records: dict[int, ObjectRecord],
    ) -> None:
        self.open = True
        self._title, self._plane, self._current = title, plane, current
        self._all_states, self._all_records = states, records
        self._states: dict[Key, PlaneState] = {}
        self._records: dict[int, ObjectRecord | None] = {}
        self._edits: list[LabelEdit] = []
        self._store: LabelStore | None = None

    def set_state(self, key: Key, state: PlaneState) -> None:
        """What is known of an object on a plane from now on."""
        self._states.setdefault(key, self._all_states.get(key, PlaneState()))
        self._all_states[key] = state

    def set_record(self, number: int, record: ObjectRecord) -> None:
        """What is known of an object from now on."""
        self._records.setdefault(number, self._all_records.get(number))
        self._all_records[number] = record

    def write(self, store: LabelStore, edit: LabelEdit) -> None:
        """Change labels; always the same ones."""
        store.write([edit])
        self._store = store
        self._edits.append(edit)

    @property
    def nothing(self) -> bool:
        """Whether it has changed nothing so far."""
        return not (self._states or self._records or self._edits)

    def close(self) -> Step:
        """The whole step; it grows no more."""
        self.open = False
        states = ((key, before, self._all_states[key]) for key, before in self._states.items())
        records = ((n, before, self._all_records[n]) for n, before in self._records.items())
        edits = tuple(self._edits)
        return Step(
            self._title, self._plane, self._current, tuple(states), tuple(records), edits, self._store
        )


class UndoStack:
    """Steps done and undone. Over `limit` bytes the oldest steps are forgotten; the newest always stays."""

    def __init__(self, limit: int = LIMIT_BYTES) -> None:
        self.limit = limit
        self._done: list[Step] = []
        self._undone: list[Step] = []

    @property
    def done(self) -> Sequence[Step]:
        """What can be undone, oldest first."""
        return tuple(self._done)

    @property
    def undone(self) -> Sequence[Step]:
        """What can be redone, the next one last."""
        return tuple(self._undone)

    @property
    def nbytes(self) -> int:
        """Memory that all steps take, about."""
        return sum(step.nbytes for step in (*self._done, *self._undone))

    def push(self, step: Step) -> None:
        """Add a step that has been done; what was undone before it can no longer be redone."""
        self._undone.clear()
        self._done.append(step)
        self._forget()

    def undo(self) -> Step | None:
        """Take the newest step back and give it to the caller to undo; None at the beginning."""
        if not self._done:
            return None
        self._undone.append(self._done.pop())
        return self._undone[-1]

    def redo(self) -> Step | None:
        """The step to redo; None at the end."""
        if not self._undone:
            return None
        self._done.append(self._undone.pop())
        return self._done[-1]

    def replace(self, old: PlaneState, new: PlaneState) -> None:
        """Put a state that has got its answer in the place of the one that waited for it."""

        def better(step: Step) -> Step:
            if not any(old is before or old is after for _, before, after in step.states):
                return step
            states = tuple(
                (key, new if before is old else before, new if after is old else after)
                for key, before, after in step.states
            )
            return replace(step, states=states)

        self._done = [better(step) for step in self._done]
        self._undone = [better(step) for step in self._undone]
        self._forget()

    def _forget(self) -> None:
        over = self.nbytes - self.limit
        while over > 0 and len(self._done) > 1:
            over -= self._done.pop(0).nbytes
