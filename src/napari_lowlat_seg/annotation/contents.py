"""The objects of a session and the steps that made them: what an action changes and undo exchanges.

A session changes them as the user acts, a journal's mirror as it reads what the user did. Labels are written
by whoever has them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from napari_lowlat_seg.annotation.history import FactsOf, Key, ObjectRecord, PendingAccept, Step
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore
from napari_lowlat_seg.core.requests import Request
from napari_lowlat_seg.core.volume import Plane

LIMIT_BYTES = 256 * 2**20
"""Memory for all steps together; a step of one click on a megapixel plane takes some 20 KiB."""

_EMPTY = PlaneState()


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


@dataclass(eq=False)
class Contents:
    """All objects of a session, by number, and its undo stack.

    Attributes
    ----------
    undo_stack
        The steps that can be undone and redone.
    states
        The prompts and masks of each object, by plane.
    records
        The label of each object, where it was written, and how it was propagated.
    current
        The number of the object that prompts go to; not its label.
    highest
        The highest label that is known to be in use.
    facts_of
        By labels and their values, what was said of objects; of most nothing.
    """

    undo_stack: UndoStack
    states: dict[int, dict[Plane, PlaneState]] = field(default_factory=dict)
    records: dict[int, ObjectRecord] = field(default_factory=dict)
    current: int = 1
    highest: int = 0
    facts_of: FactsOf = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = (*self.undo_stack.done, *self.undo_stack.undone)
        used = [state.ticket for planes in self.states.values() for state in planes.values()]
        self._numbers = count(max(self.records, default=0) + 1)
        self._tickets = count(max([0, *used, *(ticket for step in steps for ticket in step.tickets)]) + 1)

    def copy(self) -> Contents:
        """The same objects and steps, in containers of their own."""
        stack = UndoStack(self.undo_stack.limit)
        stack.load(self.undo_stack.done, self.undo_stack.undone)
        states = {number: dict(planes) for number, planes in self.states.items()}
        return replace(
            self, undo_stack=stack, states=states, records=dict(self.records), facts_of=dict(self.facts_of)
        )

    # Reading

    def of(self, number: int) -> Mapping[Plane, PlaneState]:
        """The states of an object on all planes that have or had one."""
        return self.states.get(number, {})

    def state(self, number: int, plane: Plane) -> PlaneState:
        """The state of an object on a plane; an empty state where there is none."""
        return self.of(number).get(plane, _EMPTY)

    def written(self, number: int, store: LabelStore | None) -> Mapping[Plane, LabelEdit]:
        """By plane, the edit that wrote an object into these labels; empty if it is in none or in others."""
        record = self.records[number]
        return record.written if record.store is store else {}

    def request(self, number: int, plane: Plane) -> Request:
        """The request for an object on a plane where it has a state."""
        state = self.state(number, plane)
        return Request(state.ticket, number, plane, state.effective_prompts, state.previous)

    def new_number(self) -> int:
        """A number that no object has had."""
        return next(self._numbers)

    def change(self, number: int, plane: Plane, state: PlaneState) -> tuple[Key, PlaneState, PlaneState]:
        """A change of a state, for a `Step`: the key, the state before, and the new one with a new ticket."""
        # A ticket that no state has had: predictions for earlier states are stale.
        return (number, plane), self.state(number, plane), replace(state, ticket=next(self._tickets))

    # Changes

    def put(self, states: Iterable[tuple[Key, PlaneState]]) -> None:
        """Replace states."""
        for (number, plane), state in states:
            self.states.setdefault(number, {})[plane] = state

    def apply(self, step: Step) -> None:
        """Do a step."""
        self.put((key, after) for key, _, after in step.states)
        self.records.update({number: after for number, _, after in step.records})
        self.current = step.current[1]
        step.note_facts(self.facts_of)

    def revert(self, step: Step) -> None:
        """Undo a step; an object that it made keeps its number."""
        self.put((key, before) for key, before, _ in step.states)
        self.records.update({n: before for n, before, _ in step.records if before is not None})
        self.current = step.current[0]
        step.note_facts(self.facts_of, back=True)

    def amend(self, number: int, steps: Sequence[Step]) -> None:
        """Replace the newest steps by others, the first of which has written an object that was accepted."""
        self.put(((number, plane), after) for (_, plane), _, after in steps[0].states)
        self.records.update({n: record for n, _, record in steps[0].records if n == number})
        self.undo_stack.amend(steps)

    def predicted(self, key: Key, old: PlaneState, new: PlaneState) -> None:
        """Put the state `new` with its prediction in the place of `old`, in all steps too."""
        self.put([(key, new)])
        self.undo_stack.replace(old, new)
