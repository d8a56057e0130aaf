"""What can be undone: steps, the events that tell of them, and the transaction that collects one.

Prompts, masks, accepted objects and brush strokes come in one order, whatever kind they are.

A step holds what it changed, before and after, as frozen values. The session applies steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from napari_lowlat_seg.annotation.limits import Limits
from napari_lowlat_seg.annotation.objects.facts import FactChange, ObjectFacts, changed_facts
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore, Policy
from napari_lowlat_seg.core.masks import PostProcessing, SoftMask
from napari_lowlat_seg.core.prompts import Mask, Polygon, Prompt, Scribble
from napari_lowlat_seg.core.requests import PropagationRequest
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.propagation.sweep import RefusedPlane

NOTHING: Mapping[Any, Any] = MappingProxyType({})

Key = tuple[int, Plane]
"""The number of an object, and a plane on which it has a state."""


FactsOf = dict[LabelStore, Mapping[int, ObjectFacts]]
"""By labels and their values, what was said of objects."""


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
    refused
        Those beside them at which a sweep ended.
    """

    anchors: Mapping[Plane, SoftMask]
    planes: tuple[Plane, ...]
    reached: frozenset[Plane]
    refused: tuple[RefusedPlane, ...] = ()


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
    score
        Of an object that was proposed by *Find all*: how good it seems, 0 to 1. None for any other.
    """

    label: int
    store: LabelStore | None = None
    written: Mapping[Plane, LabelEdit] = field(default_factory=dict)
    propagated: Propagated | None = None
    score: float | None = None


StepKind = Literal[
    "prompts",
    "paint",
    "reshape",
    "level",
    "clear",
    "accept",
    "leave",
    "label",
    "edit",
    "stroke",
    "objects",
]
"""What a person does in one step; see `Step.kind`."""


@dataclass(frozen=True)
class PendingAccept:
    """An object that was accepted before all its predictions had come; it is written when they are there.

    Attributes
    ----------
    number
        Of the object.
    policy, finish, limits
        The settings of the session when it was accepted.
    """

    number: int
    policy: Policy
    finish: PostProcessing
    limits: Limits = field(default_factory=Limits)


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
    kind
        What was done: `Session.set_prompts`, `paint`, `reshape`, `choose_level`, `clear`, `accept`,
        `leave_object`, `choose_label`, `edit_object`, `record_stroke`, `do_step`, or a propagation run.
        "choose" of an older file: the choice of a mask that a model then had beside its first one.
    at
        Of "edit": the pixel of the plane under which the object was found.
    request
        Of "run": what was asked for; None in all parts but the first.
    accept
        Of an accept that waits for predictions: what is still to be written; None for any other step.
    facts
        What is said of objects in `store`, before and after.
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
    kind: StepKind | Literal["run", "choose"] = "run"
    at: tuple[int, int] | None = None
    request: PropagationRequest | None = None
    accept: PendingAccept | None = None
    facts: tuple[FactChange, ...] = ()
    tickets: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        tickets = frozenset(state.ticket for _, *both in self.states for state in both)
        object.__setattr__(self, "tickets", tickets)

    def note_facts(self, facts_of: FactsOf, *, back: bool = False) -> None:
        """Change, in place, what is said of the objects in this step's labels; `back` to undo it."""
        if self.facts and self.store is not None:
            changes = [(n, after, before) for n, before, after in self.facts] if back else self.facts
            facts_of[self.store] = changed_facts(facts_of.get(self.store, {}), changes)

    @cached_property
    def nbytes(self) -> int:
        """Memory that this step takes, about, in bytes; values shared with other steps do not count."""
        size = 600 + sum(edit.nbytes for edit in self.edits) + 200 * len(self.facts)
        for _, before, after in self.states:
            size += max(0, _nbytes_of(after.prompts) - _nbytes_of(before.prompts))
            if after.soft_mask is not None and after.soft_mask is not before.soft_mask:
                size += after.soft_mask.nbytes
        return size


def _nbytes_of(prompts: Sequence[Prompt]) -> int:
    """Memory that prompts take, about, in bytes; a point is a tuple of two floats."""
    size = 0
    for prompt in prompts:
        size += 200
        if isinstance(prompt, Scribble | Polygon):
            size += 120 * len(prompt.points)
        elif isinstance(prompt, Mask):
            size += prompt.pixels.nbytes
    return size


EventKind = Literal[
    "step",
    "undo",
    "redo",
    "prediction",
    "progress",
    "closed",
    "labels",
    "settings",
    "writing",
    "amended",
    "refused",
]


@dataclass(frozen=True, eq=False)
class Event:
    """A change of a session, as its observer hears of it right after it was made; frozen values only.

    Attributes
    ----------
    kind
        "step", "undo" and "redo" of the undo stack; "prediction": applied; "progress": what a transaction has
        changed since the last event, and "closed" at its end; "labels": others are in use; "settings":
        an attribute of `SETTINGS` has changed; "writing": said before labels are written; "amended": an
        accept that waited has been written, and `steps` replace the newest steps of the undo stack;
        "refused": a request of `key` cannot be answered.
    highest
        The highest label that the session knows of.
    step
        Of "step"; of "progress" and "closed" the part that is new.
    prediction
        The key, and the state before and after.
    store, edits
        Of "labels" the new ones; of "writing" where and what is about to be written.
    record
        Of "labels": the record of the current object.
    settings
        Values by the name of the session's attribute.
    tile
        Of "prediction": the part of the plane that was predicted; None for all of it.
    steps
        Of "amended": from the accept on, oldest first; see `UndoStack.amend`.
    key
        Of "refused": the object and the plane.
    final
        Of "prediction": whether it is the last one for its request.
    """

    kind: EventKind
    highest: int
    step: Step | None = None
    prediction: tuple[Key, PlaneState, PlaneState] | None = None
    store: LabelStore | None = None
    edits: tuple[LabelEdit, ...] = ()
    record: ObjectRecord | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    tile: BoundingBox | None = None
    steps: tuple[Step, ...] = ()
    key: Key | None = None
    final: bool = True


class Transaction:
    """A step that collects changes while something runs. Each takes effect at once; all are undone as one.

    The functions it is given keep a session's observer informed, so that no user of a transaction has to.

    Parameters
    ----------
    title, plane
        As `Step` has them.
    current
        The number of the current object before and after.
    states, records
        All states by number and plane, and all records by number; changed in place.
    write
        Called with labels and edits to make the edits; by default they are there already.
    changed
        Called after each change.

    Attributes
    ----------
    request
        What is being run, until `news` has returned it.
    """

    def __init__(
        self,
        title: str,
        plane: Plane | None,
        current: tuple[int, int],
        states: dict[int, dict[Plane, PlaneState]],
        records: dict[int, ObjectRecord],
        write: Callable[[LabelStore, Sequence[LabelEdit]], object] = lambda store, edits: None,
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        self.open = True
        self.request: PropagationRequest | None = None
        self._write, self._changed = write, changed
        self._title, self._plane, self._current = title, plane, current
        self._all_states, self._all_records = states, records
        self._states: dict[Key, PlaneState] = {}  # before the transaction
        self._records: dict[int, ObjectRecord | None] = {}
        self._edits: list[LabelEdit] = []
        self._store: LabelStore | None = None
        self._new_states: dict[Key, PlaneState] = {}  # before what `news` has not returned yet
        self._new_records: dict[int, ObjectRecord | None] = {}
        self._reported = 0  # edits that `news` has returned

    def begin(self, request: PropagationRequest) -> None:
        """Say what is being run."""
        self.request = request
        self._changed()

    def change(
        self,
        states: Mapping[Key, PlaneState] = NOTHING,
        records: Mapping[int, ObjectRecord] = NOTHING,
        store: LabelStore | None = None,
        edits: Sequence[LabelEdit] = (),
    ) -> None:
        """Replace states and records of objects and edit labels, the same ones each time; one event."""
        if edits and store is not None:
            self._write(store, edits)
            self._store = store
            self._edits += edits
        for key, state in states.items():
            of_object = self._all_states.setdefault(key[0], {})
            before = of_object.get(key[1], PlaneState())
            self._states.setdefault(key, before)
            self._new_states.setdefault(key, before)
            of_object[key[1]] = state
        for number, record in records.items():
            self._records.setdefault(number, self._all_records.get(number))
            self._new_records.setdefault(number, self._all_records.get(number))
            self._all_records[number] = record
        self._changed()

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been changed so far."""
        return not (self._states or self._records or self._edits)

    def news(self) -> Step:
        """What has been changed since the last call."""
        step = self._step(self._new_states, self._new_records, self._edits[self._reported :])
        self._new_states, self._new_records, self._reported = {}, {}, len(self._edits)
        request, self.request = self.request, None
        return replace(step, request=request)

    def so_far(self) -> Step:
        """The step of all changes until now."""
        return self._step(self._states, self._records, self._edits)

    def close(self) -> Step:
        """The step of all changes; no more may follow."""
        self.open = False
        return self.so_far()

    def _step(
        self,
        states: Mapping[Key, PlaneState],
        records: Mapping[int, ObjectRecord | None],
        edits: Sequence[LabelEdit],
    ) -> Step:
        changed = ((key, before, self._all_states[key[0]][key[1]]) for key, before in states.items())
        recorded = ((n, before, self._all_records[n]) for n, before in records.items())
        return Step(
            self._title,
            self._plane,
            self._current,
            tuple(changed),
            tuple(recorded),
            tuple(edits),
            self._store if edits else None,
        )
