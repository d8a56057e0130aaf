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
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any
from uuid import uuid4

import numpy as np

from napari_lowlat_seg.annotation.history import (
    LIMIT_BYTES,
    Event,
    Key,
    ObjectRecord,
    PendingAccept,
    Step,
    StepKind,
    Transaction,
    UndoStack,
)
from napari_lowlat_seg.annotation.plane_state import PlaneState, edit_title, finished_mask
from napari_lowlat_seg.core.boxes import EMPTY_PATCH, BoundingBox, Patch
from napari_lowlat_seg.core.labels import (
    LabelEdit,
    LabelStore,
    Policy,
    around,
    check_label,
    found_object,
    volume_edits,
)
from napari_lowlat_seg.core.masks import PostProcessing, SoftMask
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.requests import PlaneSource, Request
from napari_lowlat_seg.core.volume import Plane, Volume

_EMPTY = PlaneState()


@dataclass(frozen=True)
class Accepted:
    """What became of an object that was accepted, as `Session.on_accepted` hears of it.

    Attributes
    ----------
    label
        Of the object.
    planes
        Where it was written.
    unanswered
        By plane, why its newest prompts could not be predicted there; the mask shown before was written.
    error
        Why it could not be written; it stays accepted and is tried again with the next accept. "" if it was.
    """

    label: int
    planes: tuple[Plane, ...] = ()
    unanswered: Mapping[Plane, str] = field(default_factory=dict)
    error: str = ""


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
    on_accepted
        Called with an `Accepted` when an accepted object has been written, at once or later.

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
    on_accepted: Callable[[Accepted], object] | None = None

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
        self._refining: set[int] = set()  # tickets with a first mask whose last one is still to come
        self._refused: dict[int, str] = {}  # tickets that cannot be answered, and why
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

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The planes where the current object has prompts or a mask, or is in the labels."""
        states = self.states().items()
        given = [plane for plane, state in states if state.prompts or state.soft_mask is not None]
        return tuple(dict.fromkeys((*given, *self._written(self._current))))

    def patch(self, plane: Plane) -> Patch | None:
        """The bool mask of the current object after post-processing, cut to where it is; None without one."""
        return finished_mask(self.state(plane), self.finish)

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
    def accepting(self) -> tuple[int, ...]:
        """The labels of the objects that were accepted and are written when their predictions have come."""
        waiting = (step.accept for step in self.undo_stack.done)
        return tuple(self._records[accept.number].label for accept in waiting if accept is not None)

    @property
    def answered(self) -> bool:
        """Whether no prediction is still to come that changes the current object or one being accepted."""
        return not self.accepting and not self._waits(self._current)

    @property
    def unanswered(self) -> dict[Plane, str]:
        """Where the current object's newest prompts cannot be predicted, and why; see `refuse`."""
        return self._unanswered(self._current)

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
        """Accept the current object and begin the next one; False if there is nothing to accept.

        The object is written into the labels at once if all its predictions are there and no object accepted
        earlier waits; else when they have come, in the order in which objects were accepted. Undo takes back
        either. An object without a voxel is accepted as well: the next prompt belongs to a new object.
        Where an object that was accepted before no longer is, the labels beneath it are restored.

        Raises
        ------
        ValueError
            Without labels, or if their type cannot hold the object's label. Nothing has changed then.
        """
        number, record, planes = self._current, self._records[self._current], self.planes
        if not planes:
            return False
        if self.labels is None:
            raise ValueError("there are no labels to write to; choose or make a labels layer first")
        check_label(self.labels, planes[0], record.label)
        self.close_transaction()  # its end comes before the accept, also for the observer
        following = next(self._numbers)
        label = record.label if self.semantic else max(self._highest, record.label) + 1
        step = Step(
            f"accepted object {record.label}",
            planes[0],
            (number, following),
            records=((following, None, ObjectRecord(label)),),
            store=self.labels,
            kind="accept",
            accept=PendingAccept(number, self.policy, self.finish),
        )
        if self.accepting or self._waits(number):
            self._highest = max(self._highest, record.label)
            self._do(step)
            self._settle()
            return True
        written = self._completed(step)
        self._highest = max(self._highest, record.label)
        self._write(written.store, written.edits)
        self._do(written)
        self._report(number, written)
        return True

    def leave_object(self) -> bool:
        """Leave the object that is being edited as it was before, and begin a new one; can be undone.

        False if the current object was not opened for editing.
        """
        number, done = self._current, self.undo_stack.done
        opened = [i for i, step in enumerate(done) if step.current[1] == number != step.current[0]]
        if not self.accepted_before or not opened:
            return False
        self.close_transaction()
        states: dict[Plane, PlaneState] = {}
        records: dict[int, ObjectRecord] = {}
        for step in self.undo_stack.done[opened[-1] + 1 :]:
            for (_, plane), before, _ in step.states:
                states.setdefault(plane, before)
            for _, record, _ in step.records:
                records.setdefault(number, record or self._records[number])
        following, now = next(self._numbers), self._records[number]
        record = records.get(number, now)
        new = ObjectRecord(record.label if self.semantic else self._highest + 1)
        step = Step(
            f"left object {record.label} as it was",
            next(iter(states), None),
            (number, following),
            tuple(self._changed(plane, state) for plane, state in states.items()),
            ((number, now, record), (following, None, new)),
            kind="leave",
        )
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
            As `accept` does, for a pixel outside the plane or with a negative label, and while predictions
            are still to come: the labels do not show yet what was accepted.
        """
        if self.labels is None:
            return False
        self._check_answered()
        rows, cols = self.volume.sides(plane)
        row, col = (int(np.floor(x + 0.5)) for x in at)
        if not (0 <= row < rows and 0 <= col < cols):
            raise ValueError(f"pixel ({row}, {col}) is outside the plane of {rows} x {cols} pixels")
        pixel = BoundingBox.at((row, col), (1, 1))
        label = self._label_at(plane, pixel)
        if label != 0:
            self.accept()
            label = self._label_at(plane, pixel)
        if label == 0:
            return False
        self._do(self._edit_step(plane, (row, col), label))
        return True

    def _label_at(self, plane: Plane, pixel: BoundingBox) -> int:
        """The label of a pixel; raises ValueError for a negative one, which no object can have."""
        assert self.labels is not None
        label = int(self.labels.read(plane, pixel)[0, 0])
        if label < 0:
            raise ValueError(
                f"label {label} here is negative, and an object's label must be 1 or more; give it a "
                "positive label first, with napari's fill tool for one"
            )
        return label

    def open_transaction(self, title: str, plane: Plane | None) -> Transaction:
        """Begin a step that lasts until `close_transaction`, or until anything else is done or undone."""
        self.close_transaction()
        here = (self._current, self._current)
        return self._begin(title, plane, here)

    def open_objects(self, count: int) -> tuple[Transaction, list[int]]:
        """Begin `count` objects with the next free labels: a transaction and the numbers of the objects.

        The current object is accepted first, and the next one is current afterwards. Raises ValueError as
        `edit_object` does.
        """
        self._check_answered()
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
            self._settle()
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
        self._refining.clear()
        self._refused.clear()
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
        unfinished = state.pending or state.ticket in self._refining
        return self._request(number, plane) if unfinished else None

    def requests(self) -> list[Request]:
        """All that is to be predicted: for the current object, then for those that are being accepted.

        Requests that were refused are left out. One whose first mask has come is returned until its last
        mask has.
        """
        numbers = [self._current]
        numbers += [step.accept.number for step in self.undo_stack.done if step.accept is not None]
        return [
            self._request(number, plane)
            for number in numbers
            for plane, state in self._states.get(number, {}).items()
            if self._awaited(state)
        ]

    def preview_request(self, plane: Plane, prompts: Sequence[Prompt]) -> Request:
        """A request with `prompts` on top of those given, while a stroke is drawn or the mouse hovers."""
        state = self.state(plane)
        return Request(0, self._current, plane, (*state.effective_prompts, *prompts), state.base)

    def apply(
        self, request: Request, soft_mask: SoftMask, tile: BoundingBox | None = None, *, final: bool = True
    ) -> bool:
        """Apply a prediction; False, without a change, if it is stale or belongs to a preview request.

        It replaces the mask and makes no undo step: undo and redo exchange prompts together with the newest
        prediction for them. It may be applied after the user has gone to another plane, or has accepted the
        object, which is then written.

        Parameters
        ----------
        request
            As `request` returned it; it is stale once its prompts have changed.
        soft_mask
            Of the shape of the request's plane.
        tile
            The part of the plane that was predicted, for the record; None for all of it.
        final
            Whether it is the last mask for this request; an object is not written before that has come.
        """
        old = self._states.get(request.object, {}).get(request.plane, _EMPTY)
        if request.ticket == 0 or old.ticket != request.ticket:
            return False
        new = old.with_prediction(soft_mask)
        self._put([((request.object, request.plane), new)])
        self.undo_stack.replace(old, new)
        self._refused.pop(request.ticket, None)
        (self._refining.discard if final else self._refining.add)(request.ticket)
        key = (request.object, request.plane)
        self._tell(Event("prediction", self._highest, prediction=(key, old, new), tile=tile, final=final))
        self._settle()
        return True

    def refuse(self, request: Request, why: str) -> None:
        """Note that a request cannot be answered, and why; an accepted object is written without it."""
        if request.ticket:
            self._refining.discard(request.ticket)
            self._refused[request.ticket] = why
            self._tell(Event("refused", self._highest, key=(request.object, request.plane)))
            self._settle()

    def ask_again(self) -> None:
        """Forget what was refused: another model may answer it."""
        self._refused.clear()

    # Objects accepted before their predictions came

    def _request(self, number: int, plane: Plane) -> Request:
        state = self._states[number][plane]
        return Request(state.ticket, number, plane, state.effective_prompts, state.previous)

    def _awaited(self, state: PlaneState) -> bool:
        return (state.pending or state.ticket in self._refining) and state.ticket not in self._refused

    def _waits(self, number: int) -> bool:
        return any(self._awaited(state) for state in self._states.get(number, {}).values())

    def _unanswered(self, number: int) -> dict[Plane, str]:
        states, refused = self._states.get(number, {}), self._refused
        return {plane: refused[s.ticket] for plane, s in states.items() if s.pending and s.ticket in refused}

    def _check_answered(self) -> None:
        if not self.answered:
            raise ValueError("predictions are still to come; apply those of `requests()` first")

    def _settle(self) -> None:
        """Write the accepted objects whose predictions are there, until one has to wait."""
        while True:
            done = self.undo_stack.done
            first = next((i for i, step in enumerate(done) if step.accept is not None), None)
            if first is None:
                return
            accept = done[first].accept
            assert accept is not None
            if self._waits(accept.number) or not self._amend(accept.number, done[first], done[first + 1 :]):
                return

    def _amend(self, number: int, accept: Step, later: Sequence[Step]) -> bool:
        """Write an accepted object beneath the strokes that were drawn since; False if it cannot be written.

        The labels and the undo stack are then as if its predictions had been there when it was accepted.
        """
        for step in reversed(later):
            self._write(step.store, [edit.reversed() for edit in reversed(step.edits)])
        error = ""
        try:
            written = self._completed(accept)
            self._write(written.store, written.edits)
        except (ValueError, OSError) as cannot:
            written, error = accept, str(cannot)
        steps = (written, *(self._rewritten(step) for step in later))
        self._put((key, after) for key, _, after in written.states)
        self._records.update({n: record for n, _, record in written.records if n == number})
        if not error:
            self.undo_stack.amend(steps)
            self._tell(Event("amended", self._highest, steps=steps))
        self._report(number, written, error)
        return not error

    def _completed(self, step: Step) -> Step:
        """A step that accepts an object, with what it writes; nothing is written here."""
        accept, store = step.accept, step.store
        assert accept is not None
        assert store is not None
        record, states = self._records[accept.number], self._states.get(accept.number, {})
        before = record.written if record.store is store else {}
        known = [plane for plane, state in states.items() if state.soft_mask is not None]
        masks = {
            plane: finished_mask(states.get(plane, _EMPTY), accept.finish) or EMPTY_PATCH
            for plane in dict.fromkeys((*known, *before))
        }
        edits, written = volume_edits(store, masks, record.label, accept.policy, before)
        return replace(
            step,
            # New tickets: a late prediction must not change the mask of an object that has been written.
            states=tuple(
                ((accept.number, plane), state, replace(state, ticket=next(self._tickets)))
                for plane, state in states.items()
            ),
            records=((accept.number, record, replace(record, store=store, written=written)), *step.records),
            edits=tuple(edits),
            accept=None,
        )

    def _rewritten(self, step: Step) -> Step:
        """A step whose edits were taken back, written again over what the labels are now."""
        edits: list[LabelEdit] = []
        for edit in step.edits:
            assert step.store is not None
            now = step.store.read(edit.plane, edit.box)
            after = now.copy()
            edit.apply(after)
            again = LabelEdit.between(edit.plane, edit.box, now, after)
            if again is not None:
                self._write(step.store, [again])
                edits.append(again)
        return replace(step, edits=tuple(edits)) if step.edits else step

    def _report(self, number: int, step: Step, error: str = "") -> None:
        if self.on_accepted is not None:
            record, missing = self._records[number], {}
            for key, before, _ in step.states:
                if before.pending and before.ticket in self._refused:
                    missing[key[1]] = self._refused[before.ticket]
            self.on_accepted(Accepted(record.label, tuple(record.written), missing, error))

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
