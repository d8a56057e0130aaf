"""One undo stack of prompts, masks, accepted objects and brush strokes, in the order in which they came.

A step holds what it changed, before and after, as frozen values. The session applies steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
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

LIMIT_BYTES = 256 * 2**20
"""Memory for all steps together; a step of one click on a megapixel plane takes some 20 KiB."""

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
    "choose",
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
        What was done: `Session.set_prompts`, `paint`, `reshape`, `choose_candidate`, `clear`, `accept`,
        `leave_object`, `choose_label`, `edit_object`, `record_stroke`, `do_step`, or a propagation run.
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
    kind: StepKind | Literal["run"] = "run"
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


class UndoStack:
    """Steps done and undone. Over `limit` bytes the oldest steps are dropped; the newest always stays.

    A prediction finds the steps that wait for it by its ticket: it costs the same after ten thousand steps.
    """

    def __init__(self, limit: int = LIMIT_BYTES) -> None:
        self.limit = limit
        self._serials = count()
        self._done: dict[int, Step] = {}  # by a serial number, in the order of the steps
        self._undone: dict[int, Step] = {}
        self._of_ticket: defaultdict[int, set[int]] = defaultdict(set)  # serial numbers
        self._accepts: set[int] = set()  # those of steps whose accept waits
        self._nbytes = 0

    @property
    def done(self) -> Sequence[Step]:
        """The steps that can be undone, oldest first."""
        return tuple(self._done.values())

    @property
    def undone(self) -> Sequence[Step]:
        """The steps that can be redone, the next one last."""
        return tuple(self._undone.values())

    @property
    def to_undo(self) -> Step | None:
        """The newest step."""
        return next(reversed(self._done.values()), None)

    @property
    def to_redo(self) -> Step | None:
        """The step that was undone last."""
        return next(reversed(self._undone.values()), None)

    @property
    def waiting(self) -> list[PendingAccept]:
        """The accepts among the steps done that still wait for predictions, oldest first."""
        steps = (self._done.get(serial) for serial in sorted(self._accepts))
        return [step.accept for step in steps if step is not None and step.accept is not None]

    @property
    def nbytes(self) -> int:
        """Memory that all steps take, about, in bytes."""
        return self._nbytes

    def load(self, done: Sequence[Step], undone: Sequence[Step]) -> None:
        """Take over the steps of another stack, as its `done` and `undone` are."""
        self._clear(self._done)
        self._clear(self._undone)
        for step in done:
            self._put(self._done, next(self._serials), step)
        for step in undone:
            self._put(self._undone, next(self._serials), step)

    def push(self, step: Step) -> None:
        """Add a step that has been done; steps undone before it can no longer be redone."""
        self._clear(self._undone)
        self._put(self._done, next(self._serials), step)
        self._drop_oldest()

    def undo(self) -> Step | None:
        """Pop and return the newest step so that the caller can undo it; None if there is none."""
        return self._move(self._done, self._undone)

    def redo(self) -> Step | None:
        """Return the step that the caller shall redo; None if there is none."""
        return self._move(self._undone, self._done)

    def amend(self, steps: Sequence[Step]) -> None:
        """Replace the newest steps by as many others.

        Steps that were undone are dropped if they change labels: what they hold of the labels before is not
        true any more.
        """
        newest = [serial for serial, _ in zip(reversed(self._done), steps)]
        for serial, step in zip(reversed(newest), steps, strict=True):
            self._replace(self._done, serial, step)
        if any(step.edits for step in self._undone.values()):
            self._clear(self._undone)
        self._drop_oldest()

    def replace(self, old: PlaneState, new: PlaneState) -> None:
        """Put a state with its prediction in the place of the one that waited for it, in all steps."""
        for serial in tuple(self._of_ticket.get(old.ticket, ())):
            steps = self._done if serial in self._done else self._undone
            states = tuple(
                (key, new if before is old else before, new if after is old else after)
                for key, before, after in steps[serial].states
            )
            self._replace(steps, serial, replace(steps[serial], states=states))
        self._drop_oldest()

    def _put(self, steps: dict[int, Step], serial: int, step: Step) -> None:
        steps[serial] = step
        self._nbytes += step.nbytes
        for ticket in step.tickets:
            self._of_ticket[ticket].add(serial)
        if step.accept is not None:
            self._accepts.add(serial)

    def _forget(self, serial: int, step: Step) -> None:
        self._nbytes -= step.nbytes
        self._accepts.discard(serial)
        for ticket in step.tickets:
            self._of_ticket[ticket].discard(serial)
            if not self._of_ticket[ticket]:
                del self._of_ticket[ticket]

    def _replace(self, steps: dict[int, Step], serial: int, step: Step) -> None:
        self._forget(serial, steps[serial])
        self._put(steps, serial, step)

    def _clear(self, steps: dict[int, Step]) -> None:
        for serial, step in steps.items():
            self._forget(serial, step)
        steps.clear()

    def _move(self, from_: dict[int, Step], to: dict[int, Step]) -> Step | None:
        if not from_:
            return None
        serial, step = from_.popitem()
        to[serial] = step
        return step

    def _drop_oldest(self) -> None:
        while self._nbytes > self.limit and len(self._done) > 1:
            serial, step = next(iter(self._done.items()))
            if step.accept is not None:
                return
            self._forget(serial, self._done.pop(serial))
