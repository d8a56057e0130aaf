"""One undo stack of prompts, masks, accepted objects and brush strokes, in the order in which they came.

A step holds what it changed, before and after, as frozen values. The session applies steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from napari_lowlat_seg.annotation.plane_state import PlaneState, nbytes_of
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.volume import Plane

LIMIT_BYTES = 256 * 2**20
"""Memory for all steps together; a step of one click on a megapixel plane takes some 20 KiB."""

Key = tuple[int, Plane]
"""The number of an object, and a plane on which it has a state."""


@dataclass(frozen=True, eq=False)
class Propagated:
    """The last propagation of an object, so that the next one repeats only what a change affects.

    Attributes
    ----------
    anchors
        The masks from which it was propagated.
    planes
        The range, in spatial order.
    reached
        The planes that got a mask.
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
        Its value in the labels; several objects may share one.
    store
        The labels into which it was accepted; None before.
    written
        By plane, the edit that wrote it there over what was beneath.
    propagated
        Its last propagation; None if there was none.
    """

    label: int
    store: LabelStore | None = None
    written: Mapping[Plane, LabelEdit] = field(default_factory=dict)
    propagated: Propagated | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One action of the user, which is undone and redone as a whole.

    Attributes
    ----------
    title
        What was done, in the user's words: "click", "accepted object 3".
    plane
        The plane to show when it is undone or redone; None if it concerns no plane.
    states
        (key, state before, state after) of the planes whose state it changed.
    records
        (object, record before, record after); the record before is None for a new object.
    current
        The number of the current object before and after.
    edits
        Its changes of the labels.
    store
        The labels that were changed.
    tickets
        Those of all its states.
    """

    title: str
    plane: Plane | None
    current: tuple[int, int]
    states: tuple[tuple[Key, PlaneState, PlaneState], ...] = ()
    records: tuple[tuple[int, ObjectRecord | None, ObjectRecord], ...] = ()
    edits: tuple[LabelEdit, ...] = ()
    store: LabelStore | None = None
    tickets: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        tickets = frozenset(state.ticket for _, *both in self.states for state in both)
        object.__setattr__(self, "tickets", tickets)

    @cached_property
    def nbytes(self) -> int:
        """Memory that this step takes, about, in bytes; values shared with other steps do not count."""
        size = 600 + sum(edit.nbytes for edit in self.edits)
        for _, before, after in self.states:
            size += nbytes_of(after.prompts) - min(nbytes_of(before.prompts), nbytes_of(after.prompts))
            if after.soft_mask is not None and after.soft_mask is not before.soft_mask:
                size += after.soft_mask.nbytes
        return size


class Transaction:
    """A step that collects changes while something runs. Each takes effect at once; all are undone as one.

    Parameters
    ----------
    title, plane
        As `Step` has them.
    current
        The number of the current object before and after.
    states, records
        All states by number and plane, and all records by number; changed in place.
    """

    def __init__(
        self,
        title: str,
        plane: Plane | None,
        current: tuple[int, int],
        states: dict[int, dict[Plane, PlaneState]],
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
        """Replace the state of an object on a plane."""
        of_object = self._all_states.setdefault(key[0], {})
        self._states.setdefault(key, of_object.get(key[1], PlaneState()))
        of_object[key[1]] = state

    def set_record(self, number: int, record: ObjectRecord) -> None:
        """Replace the record of an object."""
        self._records.setdefault(number, self._all_records.get(number))
        self._all_records[number] = record

    def write(self, store: LabelStore, edit: LabelEdit) -> None:
        """Change labels; all edits of a transaction go to the same ones."""
        store.write([edit])
        self._store = store
        self._edits.append(edit)

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been changed so far."""
        return not (self._states or self._records or self._edits)

    def close(self) -> Step:
        """The step of all changes; no more may follow."""
        self.open = False
        states = ((key, before, self._all_states[key[0]][key[1]]) for key, before in self._states.items())
        records = ((n, before, self._all_records[n]) for n, before in self._records.items())
        edits = tuple(self._edits)
        return Step(
            self._title, self._plane, self._current, tuple(states), tuple(records), edits, self._store
        )


class UndoStack:
    """Steps done and undone. Over `limit` bytes the oldest steps are dropped; the newest always stays."""

    def __init__(self, limit: int = LIMIT_BYTES) -> None:
        self.limit = limit
        self._done: list[Step] = []
        self._undone: list[Step] = []

    @property
    def done(self) -> Sequence[Step]:
        """The steps that can be undone, oldest first."""
        return tuple(self._done)

    @property
    def undone(self) -> Sequence[Step]:
        """The steps that can be redone, the next one last."""
        return tuple(self._undone)

    @property
    def nbytes(self) -> int:
        """Memory that all steps take, about, in bytes."""
        return sum(step.nbytes for step in (*self._done, *self._undone))

    def push(self, step: Step) -> None:
        """Add a step that has been done; steps undone before it can no longer be redone."""
        self._undone.clear()
        self._done.append(step)
        self._drop_oldest()

    def undo(self) -> Step | None:
        """Pop and return the newest step so that the caller can undo it; None if there is none."""
        if not self._done:
            return None
        self._undone.append(self._done.pop())
        return self._undone[-1]

    def redo(self) -> Step | None:
        """Return the step that the caller shall redo; None if there is none."""
        if not self._undone:
            return None
        self._done.append(self._undone.pop())
        return self._done[-1]

    def replace(self, old: PlaneState, new: PlaneState) -> None:
        """Put a state with its prediction in the place of the one that waited for it, in all steps."""

        def updated(step: Step) -> Step:
            if old.ticket not in step.tickets:  # most steps; some have thousands of states
                return step
            states = tuple(
                (key, new if before is old else before, new if after is old else after)
                for key, before, after in step.states
            )
            return replace(step, states=states)

        self._done = [updated(step) for step in self._done]
        self._undone = [updated(step) for step in self._undone]
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        over = self.nbytes - self.limit
        while over > 0 and len(self._done) > 1:
            over -= self._done.pop(0).nbytes
