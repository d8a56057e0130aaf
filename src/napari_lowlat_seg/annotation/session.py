"""The state of one annotation: objects, their prompts and masks on every plane, and one undo stack.

    session = Session(volume, ArrayLabels(labels))
    session.add(plane, Click((120, 88)))
    request = session.request(plane)           # frozen: may be sent to another thread or process
    session.apply(request, soft_mask)          # False if the prompts have changed meanwhile
    session.accept()                           # writes the object; the next one begins
    session.undo()

The session calls no network and knows no window. All values that it returns are frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any
from uuid import uuid4

import numpy as np

from napari_lowlat_seg.annotation.history import (
    LIMIT_BYTES,
    Event,
    Key,
    ObjectRecord,
    Step,
    StepKind,
    Transaction,
    UndoStack,
)
from napari_lowlat_seg.annotation.plane_state import PlaneState, edit_title
from napari_lowlat_seg.core.boxes import EMPTY_PATCH, BoundingBox, Patch
from napari_lowlat_seg.core.labels import (
    LabelEdit,
    LabelStore,
    Policy,
    around,
    found_object,
    volume_edits,
)
from napari_lowlat_seg.core.masks import PostProcessing, SoftMask, postprocess_patch
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.requests import PlaneSource, Request
from napari_lowlat_seg.core.volume import Plane, Volume

_EMPTY = PlaneState()

SETTINGS = ("policy", "finish", "semantic", "model")
"""The attributes of a session that are settings."""


class Session:
    """The objects of an annotation, the current one among them, with prompts and masks on every plane.

    Use a session from one thread only. It predicts nothing itself: `request` returns what a
    `PredictionService` needs, `apply` takes its predictions.

    Parameters
    ----------
    volume
        The image. Give it one intensity window (`Volume.with_window`).
    labels
        Where accepted objects are written, such as `ArrayLabels`; may be given later by `use_labels`.
    limit
        Bytes that the undo stack may take.

    Attributes
    ----------
    volume, labels
        As given; they may be replaced.
    undo_stack
        What can be undone and redone.
    policy
        Which labels an accepted object may replace.
    finish
        How probabilities become masks, for what is shown and for what is written.
    semantic
        Whether the next object gets the same label as this one instead of the next free one.
    model
        `PredictionService.describe` of what predicts its masks, if you say so; kept with the session.
    observer
        Called with an `Event` after every change, such as a `Journal`; it must return at once and not raise.

    Examples
    --------
    >>> labels = np.zeros((3, 8, 8), np.uint8)
    >>> session = Session(Volume(np.zeros((3, 8, 8))), ArrayLabels(labels))
    >>> plane = session.volume.planes()[1]
    >>> session.add(plane, Click((4, 4)))
    >>> soft_mask = SoftMask.of(np.pad(np.ones((2, 2), np.float32), 3))  # a network predicts it
    >>> session.apply(session.request(plane), soft_mask), session.accept(), int(labels.sum())
    (True, True, 4)
    >>> session.undo().title, int(labels.sum())
    ('accepted object 1', 0)
    """

    observer: Callable[[Event], object] | None = None

    def __init__(self, volume: Volume, labels: LabelStore | None = None, *, limit: int = LIMIT_BYTES) -> None:
        self.volume = volume
        self.labels: LabelStore | None = None
        self.policy = Policy()
        self.finish = PostProcessing()
        self.semantic = False
        self.model: Mapping[str, Any] = {}
        self.undo_stack = UndoStack(limit)
        self._tickets = count(1)
        self._numbers = count(2)
        self._states: dict[int, dict[Plane, PlaneState]] = {}  # by number of the object
        self._records = {1: ObjectRecord(1)}
        self._current = 1
        self._highest = 0
        self._open: Transaction | None = None
        self._name = uuid4().hex  # in the keys of its planes' embeddings
        if labels is not None:
            self.use_labels(labels, labels.highest())

    def __setattr__(self, name: str, value: Any) -> None:
        observed = self.observer is not None and (name in SETTINGS or name == "volume")
        if observed:
            self._transaction_changed()
        super().__setattr__(name, value)
        if observed:
            changed = {"preprocessing": self.preprocessing} if name == "volume" else {name: value}
            self._tell(Event("settings", self._highest, settings=changed))

    # Reading

    @property
    def current(self) -> int:
        """The number of the current object; not its label."""
        return self._current

    @property
    def label(self) -> int:
        """The label that the current object has or will get."""
        return self._records[self._current].label

    @property
    def accepted_before(self) -> bool:
        """Whether the current object was accepted before and is being edited."""
        return bool(self._written(self._current))

    def state(self, plane: Plane) -> PlaneState:
        """The state of the current object on a plane; an empty state where there is none."""
        return self._states.get(self._current, {}).get(plane, _EMPTY)

    def states(self) -> dict[Plane, PlaneState]:
        """The states of the current object on all planes that have or had one."""
        return dict(self._states.get(self._current, {}))

    def patch(self, plane: Plane) -> Patch | None:
        """The bool mask of the current object after post-processing, cut to where it is; None without one."""
        state = self.state(plane)
        if state.soft_mask is None:
            return None
        return postprocess_patch(state.soft_mask, self.finish, state.effective_prompts)

    def mask(self, plane: Plane) -> np.ndarray | None:
        """The same as a (rows, cols) bool array of the whole plane."""
        patch = self.patch(plane)
        return None if patch is None else patch.on(self.volume.sides(plane))

    def prompted(self) -> dict[Plane, tuple[Prompt, ...]]:
        """The prompts of the current object, for every plane that has some."""
        return {plane: state.prompts for plane, state in self.states().items() if state.prompts}

    def record(self, number: int) -> ObjectRecord:
        """The label of an object, where it was written, and how it was propagated."""
        return self._records[number]

    @property
    def highest(self) -> int:
        """The highest label that is known to be in use."""
        return self._highest

    def all_records(self) -> dict[int, ObjectRecord]:
        """The records of all objects, by number."""
        return dict(self._records)

    def all_states(self) -> dict[int, dict[Plane, PlaneState]]:
        """The states of all objects, by number and plane."""
        return {number: dict(planes) for number, planes in self._states.items()}

    def source(self, plane: Plane) -> PlaneSource:
        """Where a service gets the pixels of a plane."""
        volume = self.volume
        return PlaneSource(
            (self._name, plane.index),
            lambda: volume.plane(plane),
            volume.window,
            volume.plane_spacing(plane),
            f"plane {plane.position}",
            plane,
            thickness=volume.thickness(plane),
        )

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What a prediction is made of beside the pixels: "window" and "spacing" of the volume."""
        return {"window": self.volume.window, "spacing": self.volume.spacing}

    @property
    def pending(self) -> tuple[Plane, ...]:
        """The planes where the current object waits for a prediction."""
        return tuple(plane for plane, state in self.states().items() if state.pending)

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to undo."""
        changed = self._open is not None and not self._open.is_empty
        return changed or bool(self.undo_stack.done)

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to redo."""
        return bool(self.undo_stack.undone)

    @property
    def open_step(self) -> Step | None:
        """What the open transaction has changed so far; None if that is nothing, or none is open."""
        return None if self._open is None or self._open.is_empty else self._open.so_far()

    # Changes by the user

    def add(self, plane: Plane, prompt: Prompt) -> None:
        """Give the current object one more prompt on a plane."""
        self.set_prompts(plane, (*self.state(plane).prompts, prompt))

    def set_prompts(self, plane: Plane, prompts: Sequence[Prompt]) -> bool:
        """Replace the prompts of the current object on a plane, in one undo step; False if they are the same.

        Prompts that are added to the old ones refine the mask that was there, see `PlaneState.with_prompts`.
        """
        old, new = self.state(plane), tuple(prompts)
        if new == old.prompts:
            return False
        self._change(edit_title(old.prompts, new), plane, old.with_prompts(new), "prompts")
        return True

    def paint(self, plane: Plane, mask: np.ndarray, corner: tuple[int, int] = (0, 0)) -> None:
        """Replace the mask of the current object by one that a person drew; later prompts refine it.

        Parameters
        ----------
        mask
            (rows, cols) bool, the whole plane or a part of it; outside of it nothing is drawn.
        corner
            (row, col) of the mask's first pixel on the plane.
        """
        drawn = SoftMask.from_mask(mask).on(self.volume.sides(plane), corner)
        self._change("brush", plane, self.state(plane).with_drawn_mask(drawn, self.patch(plane)), "paint")

    def clear(self) -> bool:
        """Remove all prompts and masks of the current object, on all planes; False if there are none.

        Voxels that were written before stay in the labels until the object is accepted again.
        """
        planes = [p for p, state in self.states().items() if state.prompts or state.soft_mask is not None]
        if not planes:
            return False
        states = tuple(self._changed(plane, PlaneState()) for plane in planes)
        self._do(Step("clear", planes[-1], (self._current, self._current), states, kind="clear"))
        return True

    def accept(self) -> bool:
        """Write the current object into the labels and begin the next one; False if nothing can be written.

        Where an object that was accepted before no longer is, the labels beneath it are restored.

        Raises
        ------
        ValueError
            Without labels, or if their type cannot hold the object's label. Nothing has changed then.
        """
        record = self._records[self._current]
        before = self._written(self._current)
        known = [plane for plane, state in self.states().items() if state.soft_mask is not None]
        masks = {plane: self.patch(plane) or EMPTY_PATCH for plane in dict.fromkeys((*known, *before))}
        if not masks:
            return False
        if self.labels is None:
            raise ValueError("there are no labels to write to; choose or make a labels layer first")
        found, written = volume_edits(self.labels, masks, record.label, self.policy, before)
        edits = tuple(found)
        if not edits and not before:
            return False
        # New tickets: a late prediction must not change the mask of an object that has been written.
        states = tuple(self._changed(plane, state) for plane, state in self.states().items())
        self._highest = max(self._highest, record.label)
        number = next(self._numbers)
        records = (
            (self._current, record, replace(record, store=self.labels, written=written)),
            (number, None, ObjectRecord(self._next_label())),
        )
        plane, change = next(iter(masks)), (self._current, number)
        title = f"accepted object {record.label}"
        step = Step(title, plane, change, states, records, edits, self.labels, "accept")
        self.close_transaction()  # its end comes before the accept, also for the observer
        self._write(self.labels, edits)
        self._do(step)
        return True

    def choose_label(self, label: int) -> None:
        """Give the current object another label; raises ValueError below 1."""
        if label < 1:
            raise ValueError(f"an object's label must be 1 or more, got {label}")
        record = self._records[self._current]
        if label == record.label:
            return
        changed = ((self._current, record, replace(record, label=label)),)
        here = (self._current, self._current)
        self._do(Step(f"label {label}", None, here, records=changed, kind="label"))

    def edit_object(self, plane: Plane, at: tuple[float, float]) -> bool:
        """Make the object at a pixel of a plane the current one, with its prompts; False on the background.

        The current object is accepted first, which may itself change the label of the pixel. A label that was
        not made in this session becomes an object whose mask on this plane is all pixels of that label.

        Parameters
        ----------
        at
            (row, col) in pixels of the plane, pixel centres on integers.

        Raises
        ------
        ValueError
            As `accept` does, and for a pixel outside the plane.
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
        self._do(self._edit_step(plane, (row, col), label))
        return True

    def open_transaction(self, title: str, plane: Plane | None) -> Transaction:
        """Begin a step that lasts until `close_transaction`, or until anything else is done or undone."""
        self.close_transaction()
        here = (self._current, self._current)
        return self._begin(title, plane, here)

    def open_objects(self, count: int) -> tuple[Transaction, list[int]]:
        """Begin `count` objects with the next free labels: a transaction and the numbers of the objects.

        The current object is accepted first, and the next one is current afterwards. Raises ValueError as
        `accept` does.
        """
        self.accept()
        self.close_transaction()
        numbers = [next(self._numbers) for _ in range(count)]
        first, before, self._current = self.label, self._current, next(self._numbers)
        labels = [first if self.semantic else first + place for place in range(count)]
        records = {number: ObjectRecord(label, self.labels) for number, label in zip(numbers, labels)}
        self._highest = max([self._highest, *labels])
        records[self._current] = ObjectRecord(first if self.semantic else self._highest + 1)
        step = self._begin(f"{count} objects", None, (before, self._current))
        step.change(records=records)
        return step, numbers

    def _begin(self, title: str, plane: Plane | None, current: tuple[int, int]) -> Transaction:
        self._open = Transaction(
            title, plane, current, self._states, self._records, self._write, self._transaction_changed
        )
        return self._open

    def close_transaction(self) -> None:
        """Complete the open transaction, if there is one, as one undo step."""
        transaction, self._open = self._open, None
        if transaction is not None:
            news, step = transaction.news(), transaction.close()
            if not transaction.is_empty:
                self.undo_stack.push(step)
                self._tell(Event("closed", self._highest, news))

    def _transaction_changed(self) -> None:
        """Tell the observer what the open transaction has changed since the last time."""
        if self._open is not None and not self._open.is_empty and self.observer is not None:
            self._tell(Event("progress", self._highest, self._open.news()))

    def record_stroke(self, edits: Iterable[LabelEdit]) -> None:
        """Add a brush stroke that has changed the labels already to the undo stack."""
        edits = tuple(edits)
        if edits:
            self._highest = max(self._highest, *(edit.highest for edit in edits))
            here = (self._current, self._current)
            title, plane = "brush on the labels", edits[0].plane
            self._do(Step(title, plane, here, edits=edits, store=self.labels, kind="stroke"))

    def use_labels(self, labels: LabelStore | None, highest: int = 0) -> None:
        """Write to other labels from now on, whose highest value is `highest`.

        Objects in the old labels cannot be edited while these are in use.
        """
        self.close_transaction()
        self.labels = labels
        self._highest = highest
        if not self.semantic and not self.accepted_before:
            self._records[self._current] = ObjectRecord(self._next_label())
        record = self._records[self._current]
        self._tell(Event("labels", highest, store=labels, record=record))

    def undo(self) -> Step | None:
        """Undo the newest step and return it; None if there is none."""
        self.close_transaction()
        step = self.undo_stack.undo()
        if step is not None:
            self._write(step.store, [edit.reversed() for edit in reversed(step.edits)])
            self._put((key, before) for key, before, _ in step.states)
            self._records.update({n: before for n, before, _ in step.records if before is not None})
            self._current = step.current[0]
            self._tell(Event("undo", self._highest))
        return step

    def redo(self) -> Step | None:
        """Redo the step that was undone last and return it; None if there is none."""
        self.close_transaction()
        step = self.undo_stack.redo()
        if step is not None:
            self._write(step.store, step.edits)
            self._apply(step)
            self._tell(Event("redo", self._highest))
        return step

    def restore(
        self,
        states: Mapping[int, Mapping[Plane, PlaneState]],
        records: Mapping[int, ObjectRecord],
        current: int,
        highest: int,
        undo_stack: UndoStack,
    ) -> None:
        """Take over objects, states and steps that another session had, in place of one's own.

        The labels must show what the records say.

        Parameters
        ----------
        states, records
            By number of the object; copied.
        current, highest
            Number of the current object, and the highest label.
        undo_stack
            Taken over, not copied.
        """
        self.close_transaction()
        self._states = {number: dict(planes) for number, planes in states.items()}
        self._records = dict(records)
        self._current, self._highest, self.undo_stack = current, highest, undo_stack
        self._numbers = count(max(records) + 1)
        steps = (*undo_stack.done, *undo_stack.undone)
        used = [state.ticket for planes in states.values() for state in planes.values()]
        self._tickets = count(max([0, *used, *(ticket for step in steps for ticket in step.tickets)]) + 1)

    # Predictions

    def request(self, plane: Plane, number: int | None = None) -> Request | None:
        """The request for an object on a plane; None if no prompt waits for a prediction there.

        It is frozen and complete, and may be sent to another thread or process.

        Parameters
        ----------
        number
            Of the object; None for the current one.
        """
        number = self._current if number is None else number
        state = self._states.get(number, {}).get(plane, _EMPTY)
        if not state.pending:
            return None
        return Request(state.ticket, number, plane, state.effective_prompts, state.previous)

    def preview_request(self, plane: Plane, prompts: Sequence[Prompt]) -> Request:
        """A request with `prompts` on top of those given, while a stroke is drawn or the mouse hovers."""
        state = self.state(plane)
        return Request(0, self._current, plane, (*state.effective_prompts, *prompts), state.base)

    def apply(self, request: Request, soft_mask: SoftMask, tile: BoundingBox | None = None) -> bool:
        """Apply a prediction; False, without a change, if it is stale or belongs to a preview request.

        It replaces the mask and makes no undo step: undo and redo exchange prompts together with the newest
        prediction for them. It may be applied after the user has gone to another plane.

        Parameters
        ----------
        request
            As `request` returned it; it is stale once its prompts have changed.
        soft_mask
            Of the shape of the request's plane.
        tile
            The part of the plane that was predicted, for the record; None for all of it.
        """
        old = self._states.get(request.object, {}).get(request.plane, _EMPTY)
        if request.ticket == 0 or old.ticket != request.ticket:
            return False
        new = old.with_prediction(soft_mask)
        self._put([((request.object, request.plane), new)])
        self.undo_stack.replace(old, new)
        key = (request.object, request.plane)
        self._tell(Event("prediction", self._highest, prediction=(key, old, new), tile=tile))
        return True

    # Steps

    def _changed(self, plane: Plane, state: PlaneState) -> tuple[Key, PlaneState, PlaneState]:
        return (self._current, plane), self.state(plane), replace(state, ticket=next(self._tickets))

    def _change(self, title: str, plane: Plane, state: PlaneState, kind: StepKind) -> None:
        here = (self._current, self._current)
        self._do(Step(title, plane, here, (self._changed(plane, state),), kind=kind))

    def _do(self, step: Step) -> None:
        self.close_transaction()
        self._apply(step)
        self.undo_stack.push(step)
        self._tell(Event("step", self._highest, step))

    def _tell(self, event: Event) -> None:
        if self.observer is not None:
            self.observer(event)

    def _put(self, states: Iterable[tuple[Key, PlaneState]]) -> None:
        for (number, plane), state in states:
            self._states.setdefault(number, {})[plane] = state

    def _apply(self, step: Step) -> None:
        self._put((key, after) for key, _, after in step.states)
        self._records.update({number: after for number, _, after in step.records})
        self._current = step.current[1]

    def _write(self, store: LabelStore | None, edits: Sequence[LabelEdit]) -> None:
        if edits and store is not None:
            self._tell(Event("writing", self._highest, store=store, edits=tuple(edits)))
            store.write(edits)

    def _next_label(self) -> int:
        return self.label if self.semantic else self._highest + 1

    def _written(self, number: int) -> Mapping[Plane, LabelEdit]:
        """By plane, the edit that wrote an object into the labels in use."""
        record = self._records[number]
        return record.written if record.store is self.labels else {}

    def _edit_step(self, plane: Plane, at: tuple[int, int], label: int) -> Step:
        """The step that makes the object with this label at this pixel the current one."""
        for number, record in self._records.items():
            edit = self._written(number).get(plane)
            if edit is not None and record.label == label and edit.holds(at):
                change = (self._current, number)
                return Step(f"edit object {label}", plane, change, kind="edit", at=at)
        # It was not made in this session: it becomes a new object with a drawn mask.
        assert self.labels is not None
        sides = self.volume.sides(plane)
        box = around(self.labels, plane, at, sides, label)
        written, mask = found_object(self.labels, plane, box, label)
        number = next(self._numbers)
        drawn = SoftMask.from_mask(mask).on(sides, box.corner)
        state = PlaneState((), drawn, drawn, drawn, ticket=next(self._tickets))
        records = ((number, None, ObjectRecord(label, self.labels, {plane: written})),)
        states = (((number, plane), _EMPTY, state),)
        change = (self._current, number)
        return Step(f"edit object {label}", plane, change, states, records, kind="edit", at=at)
