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
from typing import Any
from uuid import uuid4

import numpy as np

from napari_lowlat_seg.annotation.accepting import (
    Accepted,
    Accepting,
    accept_step,
    edit_step,
    label_at,
    leave_step,
)
from napari_lowlat_seg.annotation.contents import LIMIT_BYTES, Contents, UndoStack
from napari_lowlat_seg.annotation.history import (
    Event,
    ObjectRecord,
    PendingAccept,
    Step,
    StepKind,
    Transaction,
)
from napari_lowlat_seg.annotation.limits import Limits, RecentParts, Surroundings, limited
from napari_lowlat_seg.annotation.objects.facts import Classes, ObjectFacts, check_unlocked, locked_labels
from napari_lowlat_seg.annotation.objects.writing import check_label
from napari_lowlat_seg.annotation.plane_state import PlaneState, edit_title, finished_mask, levels_of
from napari_lowlat_seg.annotation.recorder import Recorder
from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore, Policy, kept_apart
from napari_lowlat_seg.core.masks import LEVEL_NAMES, PostProcessing, SoftMask
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.requests import PlaneSource, Request
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.propagation.cross_section import CrossSection, CrossSections

SETTINGS = ("policy", "finish", "limits", "semantic", "model", "classes")
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
    policy
        Which labels an accepted object may replace.
    finish
        How probabilities become masks, for what is shown and for what is written.
    limits
        Where an object may be: beside finished objects, in a range of intensities, in a drawn area.
    semantic
        Whether the next object gets the same label as this one instead of the next free one.
    model
        `PredictionService.describe` of what predicts its masks, if you say so; kept with the session.
    classes
        The classes that objects may have; empty for any.
    contents
        All objects and the undo stack, to read; others after `restore`.
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

    on_accepted: Callable[[Accepted], object] | None = None

    def __init__(self, volume: Volume, labels: LabelStore | None = None, *, limit: int = LIMIT_BYTES) -> None:
        self._cuts = CrossSections(1)
        self.contents = Contents(UndoStack(limit), records={1: ObjectRecord(1)})
        self._recorder = Recorder(self.contents)
        self.restore(self.contents)
        self.volume = volume
        self.labels: LabelStore | None = None
        self.policy = Policy()
        self.finish = PostProcessing()
        self.limits = Limits()
        self.semantic = False
        self.model: Mapping[str, Any] = {}
        self.classes: Classes = ()
        self._name = uuid4().hex  # in the keys of its planes' embeddings
        if labels is not None:
            self.use_labels(labels, labels.highest())

    def __setattr__(self, name: str, value: Any) -> None:
        setting = name in SETTINGS or name == "volume"
        if setting:
            self._recorder.report_progress()
        super().__setattr__(name, value)
        if name == "volume":  # of a file; an array in memory may change in place, and is read quickly
            in_memory = isinstance(value.data, np.ndarray)
            read = lambda plane, box: value.cropped(box, plane).plane(plane)  # noqa: E731
            self._pixels = read if in_memory else RecentParts(read)
        if setting:
            changed = {"preprocessing": self.preprocessing} if name == "volume" else {name: value}
            self._recorder.tell("settings", settings=changed)

    # Reading

    @property
    def observer(self) -> Callable[[Event], object] | None:
        """Called with an `Event` after every change, such as a `Journal`; returns at once, does not raise."""
        return self._recorder.observer

    @observer.setter
    def observer(self, observer: Callable[[Event], object] | None) -> None:
        self._recorder.observer = observer

    @property
    def listeners(self) -> list[Callable[[Event], object]]:
        """Called with every `Event`, before the observer."""
        return self._recorder.listeners

    @property
    def undo_stack(self) -> UndoStack:
        """What can be undone and redone."""
        return self.contents.undo_stack

    @property
    def current(self) -> int:
        """The number of the current object; not its label."""
        return self.contents.current

    @property
    def label(self) -> int:
        """The label that the current object has or will get."""
        return self.contents.records[self.current].label

    @property
    def facts(self) -> Mapping[int, ObjectFacts]:
        """What was said of the objects in the labels in use, by label; nothing of most."""
        return {} if self.labels is None else self.contents.facts_of.get(self.labels, {})

    @property
    def policy_in_force(self) -> Policy:
        """The policy, under which locked labels keep their voxels."""
        return replace(self.policy, locked=locked_labels(self.facts))

    @property
    def begun(self) -> bool:
        """Whether the current object has prompts or a mask, or is in the labels."""
        states = self.contents.of(self.current).values()
        return any(one.prompts or one.soft_mask is not None for one in states) or self.accepted_before

    @property
    def accepted_before(self) -> bool:
        """Whether the current object was accepted before and is being edited."""
        return bool(self.contents.written(self.current, self.labels))

    def state(self, plane: Plane) -> PlaneState:
        """The state of the current object on a plane; an empty state where there is none."""
        return self.contents.state(self.current, plane)

    def states(self) -> dict[Plane, PlaneState]:
        """The states of the current object on all planes that have or had one."""
        return dict(self.contents.of(self.current))

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The planes where the current object has prompts or a mask, or is in the labels."""
        states = self.states().items()
        given = [plane for plane, state in states if state.prompts or state.soft_mask is not None]
        return tuple(dict.fromkeys((*given, *self.contents.written(self.current, self.labels))))

    def patch(self, plane: Plane) -> Patch | None:
        """The bool mask of the current object after post-processing, cut to where it is; None without one."""
        return self.finished(plane, self.state(plane))

    def finished(self, plane: Plane, state: PlaneState) -> Patch | None:
        """The same of any state that the current object may have on a plane."""
        patch = finished_mask(state, self.finish)
        return None if patch is None else self.within(self.limits, patch, plane, state.prompts)

    def within(self, limits: Limits, patch: Patch, plane: Plane, prompts: Sequence[Prompt] = ()) -> Patch:
        """A mask cut to what limits allow in this image and beside these labels; see `limited`."""
        around = Surroundings(self.volume, self._pixels, self.labels, self.policy_in_force, self.label)
        return limited(patch, plane, limits, around, prompts)

    def mask(self, plane: Plane) -> np.ndarray | None:
        """The same as a (rows, cols) bool array of the whole plane."""
        patch = self.patch(plane)
        return None if patch is None else patch.on(self.volume.sides(plane))

    def cross_section(self, plane: Plane) -> CrossSection | None:
        """What the masks of the current object on planes of other axes show on a plane; None without any.

        Where two of them cross, the newer one is right, and any that a person has shown before one that was
        propagated.
        """
        states = self._crossing(plane)
        if not any(state.soft_mask is not None for _, state in states):
            return None
        states.sort(key=lambda item: item[1].age)
        masks = {other: state.soft_mask for other, state in states if state.soft_mask is not None}
        if self._cuts.number != self.current:
            self._cuts = CrossSections(self.current)
        return self._cuts.of(masks, plane, self.volume.sides(plane))

    def cut(self, plane: Plane, section: CrossSection | None = None) -> Patch | None:
        """The bool mask of a cross-section, within the limits, with a pixel of background around it.

        None without a cross-section.

        Parameters
        ----------
        section
            That of the plane, if you have it.
        """
        section = section or self.cross_section(plane)
        if section is None:
            return None
        mask = section.soft_mask
        box = mask.box.grown(1).clipped(mask.shape)
        pixels = Patch(mask.box.corner, mask.above(self.finish.threshold)).shown_in(box)
        return self.within(self.limits, Patch(box.corner, pixels), plane)

    def awaits_cross_section(self, plane: Plane) -> bool:
        """Whether the first prompt on a plane begins from masks on other axes that are still to come."""
        awaited = self._accepting.awaited
        return self.state(plane).base is None and any(awaited(state) for _, state in self._crossing(plane))

    def _crossing(self, plane: Plane) -> list[tuple[Plane, PlaneState]]:
        """The states of the current object on planes of other axes; those that show nothing among them."""
        row, col = plane.axes  # quick: an object may be on thousands of planes of this axis
        states = self.contents.of(self.current).items()
        others = [(p, s) for p, s in states if p.index[row] is not None or p.index[col] is not None]
        return [(other, state) for other, state in others if plane.crossing(other) is not None]

    def prompted(self) -> dict[Plane, tuple[Prompt, ...]]:
        """The prompts of the current object, for every plane that has some."""
        return {plane: state.prompts for plane, state in self.states().items() if state.prompts}

    @property
    def highest(self) -> int:
        """The highest label that is known to be in use."""
        return self.contents.highest

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
        return tuple(self.contents.records[number].label for number in self._accepting.numbers)

    @property
    def answered(self) -> bool:
        """Whether no prediction is still to come that changes the current object or one being accepted."""
        return not self.accepting and not self._accepting.waits(self.current)

    @property
    def unanswered(self) -> dict[Plane, str]:
        """Where the current object's newest prompts cannot be predicted, and why; see `refuse`."""
        return self._accepting.unanswered(self.current)

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to undo."""
        return self._recorder.changing or self.undo_stack.to_undo is not None

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to redo."""
        return self.undo_stack.to_redo is not None

    # Changes by the user

    def add(self, plane: Plane, prompt: Prompt) -> None:
        """Give the current object one more prompt on a plane."""
        self.set_prompts(plane, (*self.state(plane).prompts, prompt))

    def set_prompts(self, plane: Plane, prompts: Sequence[Prompt]) -> bool:
        """Replace the prompts of the current object on a plane, in one undo step; False if they are the same.

        Prompts that are added to the old ones refine the mask that was there, see `PlaneState.with_prompts`.
        The first ones on a plane refine the `cross_section` of the object there, if it is `whole` or they are
        all negative.
        """
        old, new = self.state(plane), tuple(prompts)
        if new == old.prompts:
            return False
        added = old.prompts == new[: len(old.prompts)]
        begun = old.drawn is not None or (added and bool(old.prompts or old.base))
        section = None if begun else self.cross_section(plane)
        trusted = section is not None and (section.whole or not any(one.positive for one in new))
        start = section.soft_mask if section is not None and trusted else None
        self._change(edit_title(old.prompts, new), plane, old.with_prompts(new, start), "prompts")
        return True

    def paint(self, plane: Plane, mask: np.ndarray, corner: tuple[int, int] = (0, 0)) -> None:
        """Replace the mask of the current object by one that a person drew; later prompts refine it.

        On a plane without a mask, what the masks on other axes show there belongs to it as well: see `cut`.

        Parameters
        ----------
        mask
            (rows, cols) bool, the whole plane or a part of it; outside of it nothing is drawn.
        corner
            (row, col) of the mask's first pixel on the plane.
        """
        sides, shown = self.volume.sides(plane), self.patch(plane)
        drawn = SoftMask.from_mask(mask).on(sides, corner)
        if shown is None and (shown := self.cut(plane)) is not None:
            drawn = SoftMask.from_mask(drawn.mask | shown.on(sides))
        self._change("brush", plane, self.state(plane).with_drawn_mask(drawn, shown), "paint")

    def reshape(self, masks: Mapping[Plane, Patch]) -> bool:
        """Replace the masks of the current object on some planes, in one undo step; False for none.

        They count as drawn by a person: see `paint`.
        """
        if not masks:
            return False
        states = []
        for plane, patch in masks.items():
            drawn = SoftMask.from_mask(patch.pixels).on(self.volume.sides(plane), patch.corner)
            state = self.state(plane).with_drawn_mask(drawn, self.patch(plane))
            states.append(self.contents.change(self.current, plane, state))
        plane, here = states[0][0][1], (self.current, self.current)
        self._recorder.do(Step("edit of the mask", plane, here, tuple(states), kind="reshape"))
        return True

    def levels(self, plane: Plane) -> tuple[int, ...]:
        """The levels that the mask on a plane can have, from the smallest; the one that it has among them.

        They are those that differ at the threshold in use. Only the last mask for the first prompt of an
        object has any: that prompt alone does not say what is meant.
        """
        state = self.state(plane)
        if (predicted := state.as_predicted) is None or self.request(plane) is not None:
            return ()
        different = levels_of(predicted, self.finish.threshold)
        return tuple(sorted({*different, state.level}))

    def choose_level(self, plane: Plane, level: int) -> bool:
        """Make the mask of the first prompt on a plane larger or smaller; False if it is so already.

        Later prompts refine the mask at this level.

        Parameters
        ----------
        level
            -2 to 2, from the smallest to the largest; 0 is the mask as it was predicted.

        Raises
        ------
        ValueError
            If there are prompts beside the first one, its prediction is still to come, or for another level.
        """
        state = self.state(plane)
        if self.request(plane) is not None:
            raise ValueError("the first prediction is still to come; apply it, then choose")
        changed = state.with_level(level)
        if level == state.level:
            return False
        self._change(LEVEL_NAMES[level], plane, changed, "level")
        return True

    def clear(self) -> bool:
        """Remove all prompts and masks of the current object, on all planes; False if there are none.

        Voxels that were written before stay in the labels until the object is accepted again.
        """
        planes = [p for p, state in self.states().items() if state.prompts or state.soft_mask is not None]
        if not planes:
            return False
        states = tuple(self.contents.change(self.current, plane, PlaneState()) for plane in planes)
        record = self.contents.records[self.current]
        records = ((self.current, record, replace(record, propagated=None)),)
        here = (self.current, self.current)
        self._recorder.do(Step("clear", planes[-1], here, states, records, kind="clear"))
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
        planes = self.planes
        if not planes:
            return False
        if self.labels is None:
            raise ValueError("there are no labels to write to; choose or make a labels layer first")
        check_label(self.labels, planes[0], self.label)
        check_unlocked(self.facts, self.label)
        self.close_transaction()  # its end comes before the accept, also for the observer
        settings = PendingAccept(self.current, self.policy_in_force, self.finish, self.limits)
        step = accept_step(self.contents, self.labels, planes[0], settings, semantic=self.semantic)
        self._accepting.accept(step)
        return True

    def leave_object(self) -> bool:
        """Leave the object that is being edited as it was before, and begin a new one; can be undone.

        False if the current object was not opened for editing.
        """
        if not self.accepted_before:
            return False
        self.close_transaction()
        step = leave_step(self.contents, semantic=self.semantic)
        if step is not None:
            self._recorder.do(step)
        return step is not None

    def choose_label(self, label: int) -> None:
        """Give the current object another label; raises ValueError below 1."""
        if label < 1:
            raise ValueError(f"an object's label must be 1 or more, got {label}")
        record, here = self.contents.records[self.current], (self.current, self.current)
        if label != record.label:
            changed = ((self.current, record, replace(record, label=label)),)
            self._recorder.do(Step(f"label {label}", None, here, records=changed, kind="label"))

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
        self.check_answered()
        rows, cols = self.volume.sides(plane)
        row, col = (int(np.floor(x + 0.5)) for x in at)
        if not (0 <= row < rows and 0 <= col < cols):
            raise ValueError(f"pixel ({row}, {col}) is outside the plane of {rows} x {cols} pixels")
        label = label_at(self.labels, plane, (row, col))
        check_unlocked(self.facts, label)
        if label != 0:
            self.accept()
            label = label_at(self.labels, plane, (row, col))
        if label == 0:
            return False
        self._recorder.do(edit_step(self.contents, self.labels, plane, (row, col), label, (rows, cols)))
        return True

    def open_transaction(self, title: str, plane: Plane | None) -> Transaction:
        """Begin a step that lasts until `close_transaction`, or until anything else is done or undone."""
        return self._recorder.open(title, plane, (self.current, self.current))

    def open_objects(self, count: int) -> tuple[Transaction, list[int]]:
        """Begin `count` objects with the next free labels: a transaction and the numbers of the objects.

        The current object is accepted first, and the next one is current afterwards. Raises ValueError as
        `edit_object` does.
        """
        self.check_answered()
        self.accept()
        check_unlocked(self.facts, self.label)
        return self._recorder.open_objects(count, self.labels, semantic=self.semantic)

    def close_transaction(self) -> None:
        """Complete the open transaction, if there is one, as one undo step."""
        self._recorder.close()

    def do_step(self, step: Step) -> None:
        """Do a step that was made elsewhere, as in `annotation.objects`; its labels are written here."""
        self.close_transaction()
        self._recorder.write(step.store, step.edits)
        self.contents.highest = max([self.highest, *(edit.highest for edit in step.edits)])
        self._recorder.do(step)

    def record_stroke(self, edits: Iterable[LabelEdit]) -> bool:
        """Add a brush stroke that has changed the labels already to the undo stack.

        False if it has touched locked labels, which get back what it took from them, and lose what it gave.
        """
        edits, locked = tuple(edits), locked_labels(self.facts)
        untouched = True
        if locked:
            parts = [kept_apart(edit, locked) for edit in edits]
            back = [one for _, one in parts if one is not None]
            untouched, edits = not back, tuple(one for one, _ in parts if one is not None)
            if back and self.labels is not None:
                self.labels.write(back)
        if edits:
            self.contents.highest = max(self.highest, *(edit.highest for edit in edits))
            here = (self.current, self.current)
            title, plane = "brush on the labels", edits[0].plane
            self._recorder.do(Step(title, plane, here, edits=edits, store=self.labels, kind="stroke"))
        return untouched

    def use_labels(self, labels: LabelStore | None, highest: int = 0) -> None:
        """Write to other labels from now on, whose highest value is `highest`.

        Contents in the old labels cannot be edited while these are in use.
        """
        self.close_transaction()
        self.labels = labels
        self.contents.highest = highest
        if not self.semantic and not self.accepted_before:
            self.contents.records[self.current] = ObjectRecord(highest + 1)
        self._recorder.tell("labels", store=labels, record=self.contents.records[self.current])

    def undo(self) -> Step | None:
        """Undo the newest step and return it; None if there is none."""
        return self._recorder.undo()

    def redo(self) -> Step | None:
        """Redo the step that was undone last and return it; None if there is none."""
        step = self._recorder.redo()
        if step is not None:
            self._accepting.settle()
        return step

    def restore(self, contents: Contents) -> None:
        """Take over objects and steps, such as those of another session, in place of one's own; not copied.

        The labels must show what the records say. Masks that were to be refined stay what they are; call
        `write_accepted` for objects that waited for that.
        """
        self.close_transaction()
        self.contents = self._recorder.contents = contents
        self._accepting = Accepting(
            self._recorder, lambda one: self.on_accepted and self.on_accepted(one), self.within
        )

    def write_accepted(self) -> None:
        """Write the objects that were accepted and wait for no mask, which only a restored session has."""
        self._accepting.settle()

    # Predictions

    def request(self, plane: Plane, number: int | None = None) -> Request | None:
        """The request for an object on a plane; None if no prompt waits for a prediction there.

        Without a `number`, for the current object. It may be sent to another thread or process.
        """
        number = self.current if number is None else number
        unfinished = self._accepting.unfinished(self.contents.state(number, plane))
        return self.contents.request(number, plane) if unfinished else None

    def requests(self) -> list[Request]:
        """All that is to be predicted: for the current object, then for those that are being accepted.

        Requests that were refused are left out. One whose first mask has come is returned until its last
        mask has.
        """
        return [
            self.contents.request(number, plane)
            for number in (self.current, *self._accepting.numbers)
            for plane, state in self.contents.of(number).items()
            if self._accepting.awaited(state)
        ]

    def preview_request(self, plane: Plane, prompts: Sequence[Prompt]) -> Request:
        """A request with `prompts` on top of those given, while a stroke is drawn or the mouse hovers."""
        state = self.state(plane)
        return Request(0, self.current, plane, (*state.effective_prompts, *prompts), state.base)

    def apply(
        self, request: Request, soft_mask: SoftMask, tile: BoundingBox | None = None, *, final: bool = True
    ) -> bool:
        """Apply a prediction; False, without a change, if it is stale or belongs to a preview request.

        It makes no undo step: undo and redo exchange prompts together with the newest prediction for them.
        The object may have been accepted meanwhile; it is written then.

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
        key = (request.object, request.plane)
        old = self.contents.state(*key)
        if request.ticket == 0 or old.ticket != request.ticket:
            return False
        new = old.with_prediction(soft_mask)
        self.contents.predicted(key, old, new)
        self._accepting.arrived(request, final=final)
        self._recorder.tell("prediction", prediction=(key, old, new), tile=tile, final=final)
        self._accepting.settle()
        return True

    def refuse(self, request: Request, why: str) -> None:
        """Note that a request cannot be answered, and why; an accepted object is written without it."""
        if request.ticket:
            self._accepting.refuse(request, why)
            self._recorder.tell("refused", key=(request.object, request.plane))
            self._accepting.settle()

    def ask_again(self) -> None:
        """Forget what was refused: another model may answer it."""
        self._accepting.ask_again()

    def check_answered(self) -> None:
        """Raise ValueError while predictions are still to come."""
        if not self.answered:
            raise ValueError("predictions are still to come; apply those of `requests()` first")

    def _change(self, title: str, plane: Plane, state: PlaneState, kind: StepKind) -> None:
        number, changed = self.current, self.contents.change(self.current, plane, state)
        self._recorder.do(Step(title, plane, (number, number), (changed,), kind=kind))
