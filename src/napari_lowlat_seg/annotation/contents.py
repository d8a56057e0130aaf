"""The objects of a session and the steps that made them: what an action changes and undo exchanges.

A session changes them as the user acts, a journal's mirror as it reads what the user did. Labels are written
by whoever has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from napari_lowlat_seg.annotation.history import FactsOf, Key, ObjectRecord, Step, UndoStack
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore
from napari_lowlat_seg.core.requests import Request
from napari_lowlat_seg.core.volume import Plane

_EMPTY = PlaneState()


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
