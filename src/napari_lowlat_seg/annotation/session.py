"""The state of one annotation: objects, their prompts and masks on every plane, and one line of undo.

    session = Session(volume, labels=ArrayLabels(labels))
    session.add(plane, Click((120, 88)))
    request = session.request(plane)           # frozen: may travel to another thread or process
    session.apply(request, answer)              # False if the user has moved on meanwhile
    session.accept()                           # writes the object; the next one can begin
    session.undo()

The session asks no network and knows no window. One thread only may use it. All values that it gives out
are frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count

import numpy as np

from napari_lowlat_seg.annotation.history import LIMIT_BYTES, Key, ObjectRecord, Step, Transaction, UndoStack
from napari_lowlat_seg.annotation.plane_state import PlaneState, edit_title
from napari_lowlat_seg.core.boxes import EMPTY_PATCH, BoundingBox, Patch
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore, Policy, around, found_object, volume_edits
from napari_lowlat_seg.core.masks import (
    PostProcessing,
    SoftMask,
    postprocess,
    postprocess_patch,
)
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.requests import Request
from napari_lowlat_seg.core.volume import Plane, Volume

_NOTHING = PlaneState()


class Session:
    """All the state of one annotation.

    Parameters
    ----------
    volume
        What is segmented.
    labels
        Where accepted objects are written; may be given later by `use_labels`.
    limit
        Bytes that the undo timeline may take.

    Attributes
    ----------
    volume, labels, timeline
        As given; replaced, never changed.
    policy
        What an accepted object may take voxels from.
    finish
        How probabilities become masks, for what is shown and for what is written.
    semantic
        Whether the next object gets the same label as this one instead of the next free one.
    """

    def __init__(self, volume: Volume, labels: LabelStore | None = None, *, limit: int = LIMIT_BYTES) -> None:
        self.volume = volume
        self.labels: LabelStore | None = None
        self.policy = Policy()
        self.finish = PostProcessing()
        self.semantic = False
        self.timeline = UndoStack(limit)
        self._tickets = count(1)
        self._numbers = count(2)
        self._states: dict[Key, PlaneState] = {}
        self._records = {1: ObjectRecord(1)}
        self._current = 1
        self._highest = 0
        self._growing: Transaction | None = None
        if labels is not None:
            self.use_labels(labels, labels.highest())

    # What there is

    @property
    def current(self) -> int:
        """The number of the object in hand; not its label."""
        return self._current

    @property
    def label(self) -> int:
        """The label that the object in hand has or will get."""
        return self._records[self._current].label

    @property
    def finished_object(self) -> bool:
        """Whether the object in hand has been accepted before and was reopened."""
        return bool(self._written(self._current))

    def state(self, plane: Plane) -> PlaneState:
        """What is known of the object in hand on a plane."""
        return self._states.get((self._current, plane), _NOTHING)

    def mask(self, plane: Plane) -> np.ndarray | None:
        """The (rows, cols) bool mask of the object in hand, finished; None before the first answer."""
        answer = self.state(plane).answer
        return None if answer is None else postprocess(answer, self.finish)

    def patch(self, plane: Plane) -> Patch | None:
        """The same mask where it is, for planes that are too large to be looked at whole."""
        answer = self.state(plane).answer
        return None if answer is None else postprocess_patch(answer, self.finish)

    def prompted(self) -> dict[Plane, tuple[Prompt, ...]]:
        """The prompts of the object in hand, for every plane that has some."""
        return {plane: state.prompts for plane, state in self._here() if state.prompts}

    def record(self, number: int) -> ObjectRecord:
        """What is known of an object as a whole."""
        return self._records[number]

    @property
    def unanswered(self) -> tuple[Plane, ...]:
        """Planes where the object in hand waits for an answer."""
        return tuple(plane for plane, state in self._here() if not state.answered)

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to undo."""
        growing = self._growing is not None and not self._growing.nothing
        return growing or bool(self.timeline.done)

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to redo."""
        return bool(self.timeline.undone)

    # What the user does

    def add(self, plane: Plane, prompt: Prompt) -> None:
        """Give the object in hand one more prompt."""
        self.set_prompts(plane, (*self.state(plane).prompts, prompt))

    def set_prompts(self, plane: Plane, prompts: Sequence[Prompt]) -> bool:
        """Give the object in hand other prompts on a plane, one step of undo; False if they are the same.

        One prompt more continues from the mask that was there, see `PlaneState.with_prompts`.
        """
        old, new = self.state(plane), tuple(prompts)
        if new == old.prompts:
            return False
        self._change(edit_title(old.prompts, new), plane, old.with_prompts(new))
        return True

    def paint(self, plane: Plane, mask: np.ndarray, corner: tuple[int, int] = (0, 0)) -> None:
        """Replace the mask of the object in hand by one drawn by hand; later prompts continue from it.

        `mask` is (rows, cols) bool, the whole plane or a part of it that begins at `corner`.
        """
        drawn = SoftMask.from_mask(mask).on(self.volume.sides(plane), corner)
        self._change("brush", plane, self.state(plane).with_drawn_mask(drawn, self.patch(plane)))

    def clear(self) -> bool:
        """Forget all prompts and masks of the object in hand, on all planes; False if there are none.

        What was written of it stays in the labels until the object is accepted again.
        """
        gone = [plane for plane, state in self._here() if state.prompts or state.answer is not None]
        if not gone:
            return False
        states = tuple(self._changed(plane, PlaneState()) for plane in gone)
        self._do(Step("clear", gone[-1], (self._current, self._current), states))
        return True

    def accept(self) -> bool:
        """Write the object in hand into the labels and begin the next one; False if nothing can be written.

        Where a reopened object has been cleared, what was beneath it comes back.

        Raises
        ------
        ValueError
            Without labels, or if their type cannot hold the object's label. Nothing has changed then.
        """
        record = self._records[self._current]
        before = self._written(self._current)
        answered = [plane for plane, state in self._here() if state.answer is not None]
        masks = {plane: self.patch(plane) or EMPTY_PATCH for plane in dict.fromkeys((*answered, *before))}
        if not masks:
            return False
        if self.labels is None:
            raise ValueError("there are no labels to write to; choose or make a labels layer first")
        edits, written = volume_edits(self.labels, masks, record.label, self.policy, before)
        if not edits and not before:
            return False
        # A late answer must not change the mask of an object that has been written.
        states = tuple(self._changed(plane, state) for plane, state in self._here())
        self._highest = max(self._highest, record.label)
        number = next(self._numbers)
        records = (
            (self._current, record, replace(record, store=self.labels, written=written)),
            (number, None, ObjectRecord(self._next_label())),
        )
        plane, change = next(iter(masks)), (self._current, number)
        step = Step(f"accept {record.label}", plane, change, states, records, tuple(edits), self.labels)
        self._write(step, edits)
        self._do(step)
        return True

    def new_object(self, label: int | None = None) -> None:
        """Begin another object, with the next free label or the one given; the one in hand is accepted first.

        Raises ValueError as `accept` and `choose_label` do.
        """
        self.accept()
        if label is not None:
            self.choose_label(label)

    def choose_label(self, label: int) -> None:
        """Give the object in hand another label; raises ValueError below 1."""
        if label < 1:
            raise ValueError(f"an object's label must be 1 or more, got {label}")
        record = self._records[self._current]
        if label == record.label:
            return
        changed = ((self._current, record, replace(record, label=label)),)
        self._do(Step(f"label {label}", None, (self._current, self._current), records=changed))

    def edit_object(self, plane: Plane, at: tuple[float, float]) -> bool:
        """Take the object at a pixel of a plane in hand again, with its prompts; False on the background.

        The object in hand is accepted first, which may itself change what the pixel carries. A label that
        nobody made in this session becomes an object whose mask on this plane is what carries that label.

        Raises ValueError as `accept` does, and for a pixel outside the plane.
        """
        if self.labels is None:
            return False
        rows, cols = self.volume.sides(plane)
        row, col = (int(np.floor(x + 0.5)) for x in at)
        if not (0 <= row < rows and 0 <= col < cols):
            raise ValueError(f"pixel ({row}, {col}) is outside the plane of {rows} x {cols} pixels")
        pixel = BoundingBox.at((row, col), (1, 1))
        if not self.labels.read(plane, pixel).any():
            return False
        self.accept()
        label = int(self.labels.read(plane, pixel)[0, 0])
        if label == 0:
            return False
        self._do(self._reopening(plane, (row, col), label))
        return True

    def open_transaction(self, title: str, plane: Plane | None) -> Transaction:
        """Begin a step that grows until `close_transaction`, or until anything else is done or undone."""
        self.close_transaction()
        here = (self._current, self._current)
        self._growing = Transaction(title, plane, here, self._states, self._records)
        return self._growing

    def open_objects(self, count: int) -> tuple[Transaction, list[int]]:
        """Begin so many objects in one growing step, with the next free labels: the step and their numbers.

        The object in hand is accepted first, and there is another one in hand afterwards. Raises ValueError
        as `accept` does.
        """
        self.accept()
        self.close_transaction()
        numbers = [next(self._numbers) for _ in range(count)]
        first, before, self._current = self.label, self._current, next(self._numbers)
        title = f"{count} objects"
        step = self._growing = Transaction(title, None, (before, self._current), self._states, self._records)
        for place, number in enumerate(numbers):
            step.set_record(number, ObjectRecord(first if self.semantic else first + place, self.labels))
            self._highest = max(self._highest, self._records[number].label)
        step.set_record(self._current, ObjectRecord(first if self.semantic else self._highest + 1))
        return step, numbers

    def close_transaction(self) -> None:
        """The step that was growing has all it will get."""
        growing, self._growing = self._growing, None
        if growing is not None:
            step = growing.close()
            if not growing.nothing:
                self.timeline.push(step)

    def record_stroke(self, edits: Iterable[LabelEdit]) -> None:
        """Take note of a brush stroke that has changed the labels already."""
        edits = tuple(edits)
        if edits:
            self._highest = max(self._highest, *(edit.highest for edit in edits))
            here = (self._current, self._current)
            self._do(Step("brush on the labels", edits[0].plane, here, edits=edits, store=self.labels))

    def use_labels(self, labels: LabelStore | None, highest: int = 0) -> None:
        """Write to other labels from now on, in which `highest` is the highest id.

        Objects in the old ones cannot be reopened while these are in use.
        """
        self.close_transaction()
        self.labels = labels
        self._highest = highest
        if not self.semantic and not self.finished_object:
            self._records[self._current] = ObjectRecord(self._next_label())

    def undo(self) -> Step | None:
        """Take back the newest step and say which it was; None at the beginning."""
        self.close_transaction()
        step = self.timeline.undo()
        if step is not None:
            self._write(step, [edit.reversed() for edit in reversed(step.edits)])
            self._states.update({key: before for key, before, _ in step.states})
            self._records.update({n: before for n, before, _ in step.records if before is not None})
            self._current = step.current[0]
        return step

    def redo(self) -> Step | None:
        """Do the step again that was undone last and say which it was; None at the end."""
        self.close_transaction()
        step = self.timeline.redo()
        if step is not None:
            self._write(step, step.edits)
            self._apply(step)
        return step

    # What the network does

    def request(self, plane: Plane) -> Request | None:
        """What to ask for the object in hand on a plane; None if nothing is open there."""
        state = self.state(plane)
        if state.answered:
            return None
        return Request(state.ticket, self._current, plane, state.effective_prompts, state.previous)

    def preview_request(self, plane: Plane, prompts: Sequence[Prompt]) -> Request:
        """What to ask while a stroke is under way or the mouse hovers: `prompts` on top of those given."""
        state = self.state(plane)
        return Request(0, self._current, plane, (*state.effective_prompts, *prompts), state.base)

    def apply(self, request: Request, answer: SoftMask) -> bool:
        """Take an answer in; False if it is stale or a trial's, and nothing has changed."""
        key = (request.object, request.plane)
        old = self._states.get(key, _NOTHING)
        if request.ticket == 0 or old.ticket != request.ticket:
            return False
        self._states[key] = old.with_prediction(answer)
        self.timeline.replace(old, self._states[key])
        return True

    # How it is done

    def _here(self) -> list[tuple[Plane, PlaneState]]:
        return [(key[1], state) for key, state in self._states.items() if key[0] == self._current]

    def _changed(self, plane: Plane, state: PlaneState) -> tuple[Key, PlaneState, PlaneState]:
        return (self._current, plane), self.state(plane), replace(state, ticket=next(self._tickets))

    def _change(self, title: str, plane: Plane, state: PlaneState) -> None:
        here = (self._current, self._current)
        self._do(Step(title, plane, here, (self._changed(plane, state),)))

    def _do(self, step: Step) -> None:
        self.close_transaction()
        self._apply(step)
        self.timeline.push(step)

    def _apply(self, step: Step) -> None:
        self._states.update({key: after for key, _, after in step.states})
        self._records.update({number: after for number, _, after in step.records})
        self._current = step.current[1]

    @staticmethod
    def _write(step: Step, edits: Sequence[LabelEdit]) -> None:
        if edits and step.store is not None:
            step.store.write(edits)

    def _next_label(self) -> int:
        return self.label if self.semantic else self._highest + 1

    def _written(self, number: int) -> Mapping[Plane, LabelEdit]:
        """What made an object in the labels in use."""
        record = self._records[number]
        return record.written if record.store is self.labels else {}

    def _reopening(self, plane: Plane, at: tuple[int, int], label: int) -> Step:
        """The step that takes the object with this label at this pixel in hand."""
        for number, record in self._records.items():
            edit = self._written(number).get(plane)
            if edit is not None and record.label == label and edit.holds(at):
                return Step(f"reopen object {label}", plane, (self._current, number))
        # Nobody made it here: it becomes an object of its own.
        assert self.labels is not None
        sides = self.volume.sides(plane)
        box = around(self.labels, plane, at, sides, label)
        written, mask = found_object(self.labels, plane, box, label)
        number = next(self._numbers)
        drawn = SoftMask.from_mask(mask).on(sides, box.corner)
        state = PlaneState((), drawn, drawn, drawn, 0, True, next(self._tickets))
        records = ((number, None, ObjectRecord(label, self.labels, {plane: written})),)
        states = (((number, plane), _NOTHING, state),)
        return Step(f"reopen object {label}", plane, (self._current, number), states, records)
