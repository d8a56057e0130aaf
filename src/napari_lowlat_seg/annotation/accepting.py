"""Accepted objects: written when their predictions are there, opened again, and left as they were.

The user may be faster than the model. An object that is accepted before its last prediction has come is
written later, beneath what was painted since; labels and undo stack are then as if the model had been faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from napari_lowlat_seg.annotation.contents import Contents
from napari_lowlat_seg.annotation.history import ObjectRecord, PendingAccept, Step
from napari_lowlat_seg.annotation.limits import Limits
from napari_lowlat_seg.annotation.objects.writing import around, found_object, volume_edits
from napari_lowlat_seg.annotation.plane_state import PlaneState, finished_mask
from napari_lowlat_seg.annotation.recorder import Recorder
from napari_lowlat_seg.core.boxes import EMPTY_PATCH, BoundingBox, Patch
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.requests import Request
from napari_lowlat_seg.core.volume import Plane


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
    share
        Of its pixels that were written, 0 to 1: other labels may keep theirs.
    """

    label: int
    planes: tuple[Plane, ...] = ()
    unanswered: Mapping[Plane, str] = field(default_factory=dict)
    error: str = ""
    share: float = 1.0


class Accepting:
    """Which predictions are still to come, and the objects that are written when they have.

    Parameters
    ----------
    recorder
        Of the session: its undo stack holds the accepts that wait, and it writes.
    report
        Called with what became of an object that was accepted.
    within
        Cuts a mask on a plane to what limits allow.
    """

    def __init__(
        self,
        recorder: Recorder,
        report: Callable[[Accepted], object],
        within: Callable[[Limits, Patch, Plane], Patch],
    ) -> None:
        self._recorder, self._contents, self._report = recorder, recorder.contents, report
        self._within = within
        self._refining: set[int] = set()  # tickets with a first mask whose last one is still to come
        self._refused: dict[int, str] = {}  # tickets that cannot be answered, and why
        self._shares: dict[int, float] = {}  # of objects whose accept is not reported yet; see `Accepted`

    # Predictions

    @property
    def numbers(self) -> list[int]:
        """The numbers of the objects that were accepted and are not written yet, oldest first."""
        return [accept.number for accept in self._contents.undo_stack.waiting]

    def unfinished(self, state: PlaneState) -> bool:
        """Whether the last prediction for a state has not come."""
        return state.pending or state.ticket in self._refining

    def awaited(self, state: PlaneState) -> bool:
        """Whether a prediction for a state is still to come."""
        return self.unfinished(state) and state.ticket not in self._refused

    def waits(self, number: int) -> bool:
        """Whether a prediction that changes an object is still to come."""
        return any(self.awaited(state) for state in self._contents.of(number).values())

    def unanswered(self, number: int) -> dict[Plane, str]:
        """Where the newest prompts of an object cannot be predicted, and why."""
        states, refused = self._contents.of(number), self._refused
        return {plane: refused[s.ticket] for plane, s in states.items() if s.pending and s.ticket in refused}

    def arrived(self, request: Request, *, final: bool) -> None:
        """Note that a prediction has come, and whether it was the last one for its request."""
        self._refused.pop(request.ticket, None)
        (self._refining.discard if final else self._refining.add)(request.ticket)

    def refuse(self, request: Request, why: str) -> None:
        """Note that a request cannot be answered."""
        self._refining.discard(request.ticket)
        self._refused[request.ticket] = why

    def ask_again(self) -> None:
        """Forget what was refused."""
        self._refused.clear()

    # Writing

    def accept(self, step: Step) -> None:
        """Do a step that accepts an object: it is written now, or when the predictions before have come."""
        accept, contents = step.accept, self._contents
        assert accept is not None
        waits = bool(self.numbers) or self.waits(accept.number)
        with self._recorder.all_or_none():
            written = step if waits else self.completed(step)
            self._recorder.write(written.store, written.edits)
        contents.highest = max(contents.highest, contents.records[accept.number].label)
        self._recorder.do(written)
        if waits:
            self.settle()
        else:
            self.report(accept.number, written)

    def settle(self) -> None:
        """Write the accepted objects whose predictions are there, until one has to wait."""
        while waiting := self._contents.undo_stack.waiting:
            number = waiting[0].number
            if self.waits(number):
                return
            done = self._contents.undo_stack.done
            first = next(place for place, step in enumerate(done) if step.accept is waiting[0])
            if not self._amend(number, done[first], done[first + 1 :]):
                return

    def _amend(self, number: int, accept: Step, later: Sequence[Step]) -> bool:
        """Write an accepted object beneath the strokes that were drawn since; False if it cannot be written.

        The labels and the undo stack are then as if its predictions had been there when it was accepted.
        """
        try:
            with self._recorder.all_or_none():
                for step in reversed(later):
                    self._recorder.write(step.store, [edit.reversed() for edit in reversed(step.edits)])
                written = self.completed(accept)
                self._recorder.write(written.store, written.edits)
                steps = (written, *(self._rewritten(step) for step in later))
        except (ValueError, OSError) as cannot:
            self.report(number, accept, str(cannot))
            return False
        self._contents.amend(number, steps)
        self._recorder.tell("amended", steps=steps)
        self.report(number, written)
        return True

    def completed(self, step: Step) -> Step:
        """A step that accepts an object, with what it writes; nothing is written here."""
        accept, store, contents = step.accept, step.store, self._contents
        assert accept is not None
        assert store is not None
        number = accept.number
        record, states, before = (
            contents.records[number],
            contents.of(number),
            contents.written(number, store),
        )
        by_age = sorted(states.items(), key=lambda item: item[1].age)
        known = [plane for plane, state in by_age if state.soft_mask is not None]
        gone = before.keys() - known
        masks = {  # where planes cross, the last one is right
            plane: self._finished(contents.state(number, plane), plane, accept)
            for plane in (*(plane for plane in before if plane in gone), *known)
        }
        edits, written = volume_edits(store, masks, record.label, accept.policy, before)
        asked = sum(int(np.count_nonzero(mask.pixels)) for mask in masks.values())
        got = sum(int(np.count_nonzero(edit.changed)) for edit in written.values())
        self._shares[number] = min(1.0, got / max(1, asked))
        return replace(
            step,
            # New tickets, in the old order: a late prediction must not change what has been written.
            states=tuple(contents.change(number, plane, state) for plane, state in by_age),
            records=((number, record, replace(record, store=store, written=written)), *step.records),
            edits=tuple(edits),
            accept=None,
        )

    def _finished(self, state: PlaneState, plane: Plane, accept: PendingAccept) -> Patch:
        """What is written on a plane. Other objects keep their pixels by the policy, in `volume_edits`."""
        patch = finished_mask(state, accept.finish) or EMPTY_PATCH
        return self._within(replace(accept.limits, neighbours=False), patch, plane)

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
                self._recorder.write(step.store, [again])
                edits.append(again)
        return replace(step, edits=tuple(edits)) if step.edits else step

    def report(self, number: int, step: Step, error: str = "") -> None:
        """Tell what became of an object: `step` has written it, or `error` says why that could not be."""
        record, refused = self._contents.records[number], self._refused
        missing = {
            plane: refused[before.ticket]
            for (_, plane), before, _ in step.states
            if before.pending and before.ticket in refused
        }
        share = self._shares.pop(number, 1.0)
        self._report(Accepted(record.label, tuple(record.written), missing, error, share))


# Steps that accept an object, open it again, and leave it


def accept_step(
    contents: Contents, labels: LabelStore, plane: Plane, accept: PendingAccept, *, semantic: bool
) -> Step:
    """The step that accepts an object and begins the next one; nothing is written by it.

    Parameters
    ----------
    labels
        Where the object is to be written.
    plane
        The plane to show when it is undone.
    accept
        The object, and how it is to be written.
    semantic
        Whether the next object gets the same label.
    """
    now, following = contents.records[accept.number].label, contents.new_number()
    new = ObjectRecord(now if semantic else max(contents.highest, now) + 1)
    return Step(
        f"accepted object {now}",
        plane,
        (accept.number, following),
        records=((following, None, new),),
        store=labels,
        kind="accept",
        accept=accept,
    )


def label_at(labels: LabelStore, plane: Plane, pixel: tuple[int, int]) -> int:
    """The label of a pixel; raises ValueError for a negative one, which no object can have."""
    label = int(labels.read(plane, BoundingBox.at(pixel, (1, 1)))[0, 0])
    if label < 0:
        raise ValueError(
            f"label {label} here is negative, and an object's label must be 1 or more; give it a "
            "positive label first, with napari's fill tool for one"
        )
    return label


def edit_step(
    contents: Contents,
    labels: LabelStore,
    plane: Plane,
    at: tuple[int, int],
    label: int,
    sides: tuple[int, int],
) -> Step:
    """The step that makes the object with this label at this pixel the current one.

    An object that was not made in this session becomes a new one whose mask was drawn on this plane.

    Parameters
    ----------
    sides
        (rows, cols) of the plane.
    """
    for number, record in contents.records.items():
        edit = contents.written(number, labels).get(plane)
        if edit is not None and record.label == label and edit.holds(at):
            change = (contents.current, number)
            return Step(f"edit object {label}", plane, change, kind="edit", at=at)
    box = around(labels, plane, at, sides, label)
    written, mask = found_object(labels, plane, box, label)
    number = contents.new_number()
    drawn = SoftMask.from_mask(mask).on(sides, box.corner)
    states = (contents.change(number, plane, PlaneState((), drawn, drawn, drawn)),)
    records = ((number, None, ObjectRecord(label, labels, {plane: written})),)
    change = (contents.current, number)
    return Step(f"edit object {label}", plane, change, states, records, kind="edit", at=at)


def leave_step(contents: Contents, *, semantic: bool) -> Step | None:
    """The step that leaves the current object as it was when it was opened, and begins a new one.

    None if it was not opened. With `semantic` the new object gets the same label.
    """
    number, done = contents.current, contents.undo_stack.done
    opened = [i for i, step in enumerate(done) if step.current[1] == number != step.current[0]]
    if not opened:
        return None
    states: dict[Plane, PlaneState] = {}
    records: dict[int, ObjectRecord] = {}
    for step in done[opened[-1] + 1 :]:
        for (_, plane), before, _ in step.states:
            states.setdefault(plane, before)
        for _, record, _ in step.records:
            records.setdefault(number, record or contents.records[number])
    following, now = contents.new_number(), contents.records[number]
    record = records.get(number, now)
    new = ObjectRecord(record.label if semantic else contents.highest + 1)
    return Step(
        f"left object {record.label} as it was",
        next(iter(states), None),
        (number, following),
        tuple(contents.change(number, plane, state) for plane, state in states.items()),
        ((number, now, record), (following, None, new)),
        kind="leave",
    )
