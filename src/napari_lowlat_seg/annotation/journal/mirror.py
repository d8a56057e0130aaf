"""A copy of a session that follows its events: what a journal compacts, and what is left after a crash.

While a session is annotated, the journal's thread plays every event on a mirror. When the session is
restored, the same events are played again as they were written, and the mirror becomes a session.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from napari_lowlat_seg.annotation.contents import Contents, UndoStack
from napari_lowlat_seg.annotation.history import Event, ObjectRecord, Step, Transaction
from napari_lowlat_seg.annotation.journal.actions import Action, add_actions
from napari_lowlat_seg.annotation.journal.decoding import Decoder, decoded_facts, decoded_settings
from napari_lowlat_seg.annotation.journal.encoding import (
    AboutLabels,
    Encoder,
    encoded_facts,
    encoded_settings,
)
from napari_lowlat_seg.annotation.journal.frames import JournalError, as_int, as_list
from napari_lowlat_seg.annotation.session import SETTINGS, Session
from napari_lowlat_seg.core.boxes import EMPTY_BOX, BoundingBox
from napari_lowlat_seg.core.labels import ArrayLabels, LabelEdit, LabelStore, by_plane
from napari_lowlat_seg.core.volume import Plane

Written = dict[LabelStore, list[LabelEdit]]
"""The edits that make labels what the session left, from what they were at first."""


@dataclass
class Mirror:
    """The values of a session; see `Session` for what they are.

    Attributes
    ----------
    shape
        Of the volume.
    contents
        All objects and the undo stack.
    stores
        The labels that were used, in order of their first use, and what is kept of them.
    store
        Those in use; None without any.
    actions
        What was done from the beginning; None if the mirror has not seen the beginning.
    written
        See `Written`.
    in_flight
        Labels and edits that were announced and not followed by their event, in order: perhaps half written.
    """

    shape: tuple[int, ...]
    contents: Contents
    settings: dict[str, Any] = field(default_factory=dict)
    stores: dict[LabelStore, AboutLabels] = field(default_factory=dict)
    store: LabelStore | None = None
    actions: list[Action] | None = None
    written: Written = field(default_factory=dict)
    transaction: Transaction | None = None
    in_flight: list[tuple[LabelStore, LabelEdit]] = field(default_factory=list)

    @classmethod
    def of(cls, session: Session, before: Mirror | None = None) -> Mirror:
        """The mirror of a session in which no transaction is open.

        `before` is the mirror that the session was restored from. Without one, edits of labels are those of
        the undo stack, and actions are known if nothing was done in the session yet.
        """
        session.close_transaction()
        mirror = cls(session.volume.shape, session.contents.copy())
        mirror.settings = {name: getattr(session, name) for name in SETTINGS}
        mirror.settings["preprocessing"] = session.preprocessing
        mirror.store = session.labels
        if session.labels is not None:
            mirror.meet(session.labels)
        if before is None:
            for step in mirror.undo_stack.done:
                mirror._keep(step.store, step.edits)
            mirror.actions = mirror._first_actions()
        else:
            mirror.stores |= before.stores
            mirror.written = {store: list(edits) for store, edits in before.written.items()}
            if before.actions is not None:
                mirror.actions = [*before.actions, Action("resume")]
        return mirror

    @property
    def undo_stack(self) -> UndoStack:
        """What could be undone and redone."""
        return self.contents.undo_stack

    @property
    def untouched(self) -> bool:
        """Whether nothing was done yet that would be worth a file."""
        stack, contents = self.undo_stack, self.contents
        return not (stack.done or stack.undone or contents.states or len(contents.records) > 1)

    def _first_actions(self) -> list[Action] | None:
        if not self.untouched or self.contents.records[1].label != (
            1 if self.store is None else self.contents.highest + 1
        ):
            return None
        return [
            Action("labels", store=self.store, label=self.contents.highest),
            Action("settings", settings=dict(self.settings)),
        ]

    def meet(self, store: LabelStore) -> None:
        """Take note of labels; those in memory are read whole, now, unless they are known."""
        if store not in self.stores:
            self.stores[store] = AboutLabels.of(store)

    def about(self, store: LabelStore) -> AboutLabels:
        """What is kept of labels."""
        self.meet(store)
        return self.stores[store]

    # Events

    def play(self, event: Event) -> None:
        """Follow one event of the session."""
        if event.kind == "writing":
            assert event.store is not None
            self.meet(event.store)
            self.in_flight += [(event.store, edit) for edit in event.edits]
            return  # what is not done counts for nothing
        self.contents.highest = event.highest
        self.in_flight = []
        if self.actions is not None:
            add_actions(self.actions, event)
        getattr(self, f"_{event.kind}")(event)

    def _settings(self, event: Event) -> None:
        self.settings |= event.settings

    def _labels(self, event: Event) -> None:
        assert event.record is not None
        self.store = event.store
        if event.store is not None:
            self.meet(event.store)
        self.contents.records[self.contents.current] = event.record

    def _step(self, event: Event) -> None:
        assert event.step is not None
        self._do(event.step)
        self.undo_stack.push(event.step)

    def _undo(self, event: Event) -> None:
        step = self.undo_stack.undo()
        if step is None:
            raise ValueError("there is no step to undo")
        self._keep(step.store, [edit.reversed() for edit in reversed(step.edits)])
        self.contents.revert(step)

    def _redo(self, event: Event) -> None:
        step = self.undo_stack.redo()
        if step is None:
            raise ValueError("there is no step to redo")
        self._do(step)

    def _amended(self, event: Event) -> None:
        before = self.undo_stack.done[-len(event.steps) :] if event.steps else ()
        if len(before) < len(event.steps) or not before or before[0].accept is None:
            raise ValueError("no accept waits there")
        for step in reversed(before):
            self._keep(step.store, [edit.reversed() for edit in reversed(step.edits)])
        for step in event.steps:
            self._keep(step.store, step.edits)
        self.contents.amend(before[0].accept.number, event.steps)

    def _refused(self, event: Event) -> None:
        """Only a session that goes on knows what cannot be answered; another one asks again."""

    def _prediction(self, event: Event) -> None:
        assert event.prediction is not None
        self.contents.predicted(*event.prediction)

    def _progress(self, event: Event) -> None:
        news = event.step
        assert news is not None
        if self.transaction is None:
            states, records = self.contents.states, self.contents.records
            self.transaction = Transaction(news.title, news.plane, news.current, states, records)
        self.transaction.change(
            {key: after for key, _, after in news.states},
            {number: after for number, _, after in news.records},
            news.store,
            news.edits,
        )
        self._keep(news.store, news.edits)
        self.contents.current = news.current[1]

    def _closed(self, event: Event) -> None:
        self._progress(event)
        self.close_transaction()

    def close_transaction(self) -> None:
        """Make one undo step of what a transaction has brought so far."""
        transaction, self.transaction = self.transaction, None
        if transaction is not None and not transaction.is_empty:
            self.undo_stack.push(transaction.close())

    def _do(self, step: Step) -> None:
        self.contents.apply(step)
        self._keep(step.store, step.edits)

    def _keep(self, store: LabelStore | None, edits: Iterable[LabelEdit]) -> None:
        edits = list(edits)
        if edits and store is not None:
            self.meet(store)
            self.written.setdefault(store, []).extend(edits)

    def _running(self) -> list[Step]:
        """The open transaction as a step, if there is one."""
        return [] if self.transaction is None else [self.transaction.so_far()]

    # As JSON

    def snapshot(self, encoder: Encoder) -> dict[str, Any]:
        """All of it for the first frame of a compacted file; a transaction counts as a step."""
        done = [*self.undo_stack.done, *self._running()]
        states = [
            (n, plane, state) for n, planes in self.contents.states.items() for plane, state in planes.items()
        ]
        self.written = {store: merged(edits, self.shape) for store, edits in self.written.items()}
        written = [(store, list(edits)) for store, edits in self.written.items()]
        records, undone = list(self.contents.records.items()), list(self.undo_stack.undone)
        stores, store, actions = list(self.stores), self.store, self.actions and list(self.actions)
        message = {
            "kind": "snapshot",
            "limit": self.undo_stack.limit,
            "current": self.contents.current,
            "highest": self.contents.highest,
            "settings": encoded_settings(self.settings),
        }
        facts_of = list(self.contents.facts_of.items())
        # From here on the session may go on: the encoder may let events be played between two values.
        return message | {
            "labels": [encoder.store(one) for one in stores],
            "store": encoder.store(store),
            "records": [[n, encoder.record(record)] for n, record in records],
            "states": [[n, plane.index, encoder.state(state)] for n, plane, state in states],
            "done": [encoder.step(step) for step in done],
            "undone": [encoder.step(step) for step in undone],
            "facts": [[encoder.store(one), encoded_facts(facts)] for one, facts in facts_of],
            "written": [[encoder.store(one), list(map(encoder.edit, edits))] for one, edits in written],
            "actions": None if actions is None else [encoder.action(action) for action in actions],
        }

    @classmethod
    def decoded(cls, message: dict[str, Any], decoder: Decoder, shape: tuple[int, ...]) -> Mirror:
        """The mirror of a snapshot; raises ValueError, KeyError or TypeError for a wrong one."""
        stack = UndoStack(as_int(message["limit"], 0))
        stack.load(
            [decoder.step(step) for step in as_list(message["done"])],
            [decoder.step(step) for step in as_list(message["undone"])],
        )
        settings = decoded_settings(message["settings"])
        contents = Contents(stack, current=as_int(message["current"], 1), highest=as_int(message["highest"]))
        mirror = cls(shape, contents, stores=decoder.stores, settings=settings)
        mirror.store = decoder.store(message["store"])
        for number, record in as_list(message["records"]):
            contents.records[as_int(number, 1)] = decoder.real_record(record)
        for number, index, state in as_list(message["states"]):
            key = decoder.key(number, index)
            contents.put([(key, decoder.state(state, key[1]))])
        for number, edits in as_list(message["written"]):
            mirror.written[decoder.real_store(number)] = list(decoder.edits(edits))
        for number, facts in as_list(message.get("facts", [])):
            contents.facts_of[decoder.real_store(number)] = decoded_facts(facts)
        if message["actions"] is not None:
            mirror.actions = [decoder.action(action) for action in as_list(message["actions"])]
        return mirror

    def check(self) -> None:
        """Raise ValueError unless a session can go on from here and the labels can be written."""
        numbers = {self.contents.current, *self.contents.states}
        for step in (*self.undo_stack.done, *self.undo_stack.undone, *self._running()):
            numbers |= {*step.current, *(key[0] for key, _, _ in step.states)}
        if missing := numbers - self.contents.records.keys():
            raise ValueError(f"there is no object {min(missing)}")
        if any(step.edits and step.store is None for step in self.undo_stack.done):
            raise ValueError("a step changes labels that are not there")
        for number, (store, about) in enumerate(self.stores.items(), 1):
            for edit in self.written.get(store, []):
                found = store.read(edit.plane, edit.box)
                if found.dtype != edit.dtype or found.shape != edit.box.shape:
                    raise JournalError(
                        f"its labels number {number} are of type {about.dtype} and shape {self.shape}, "
                        f"not of type {found.dtype}; give those it was made with"
                    )

    def write_labels(self) -> None:
        """Make the labels what the session left.

        What was being written when the session ended, and may be half there, is taken back.
        """
        self.close_transaction()
        for store, edits in self.written.items():
            store.write(edits)
        for store, edit in reversed(self.in_flight):
            store.write([edit.reversed()])
            if store is self.store and isinstance(store, ArrayLabels):
                store.take_back(self.contents.highest)
        self.in_flight = []

    def exchange(self, stores: Mapping[LabelStore, LabelStore]) -> None:
        """Put other labels, with the same content, in the place of those here."""

        def other(store: LabelStore | None) -> LabelStore | None:
            return None if store is None else stores.get(store, store)

        known: dict[ObjectRecord, ObjectRecord] = {}

        def record(value: Any) -> Any:
            if value is not None and value not in known:
                known[value] = replace(value, store=other(value.store))
            return value and known[value]

        def step(value: Step) -> Step:
            records = tuple((n, record(before), record(after)) for n, before, after in value.records)
            return replace(value, records=records, store=other(value.store))

        records, stack = self.contents.records, self.undo_stack
        records.update({number: record(value) for number, value in records.items()})
        stack.load([step(one) for one in stack.done], [step(one) for one in stack.undone])
        self.stores = {stores.get(store, store): about for store, about in self.stores.items()}
        self.store = other(self.store)
        self.written = {stores.get(store, store): edits for store, edits in self.written.items()}
        if self.actions is not None:
            self.actions = [
                replace(action, store=other(action.store), step=action.step and step(action.step))
                for action in self.actions
            ]
        facts_of = self.contents.facts_of
        self.contents.facts_of = {stores.get(store, store): facts for store, facts in facts_of.items()}

    def put_into(self, session: Session) -> None:
        """Let a session go on where this one is; its labels must be written."""
        self.close_transaction()
        session.close_transaction()
        session.labels = self.store
        for name in SETTINGS:
            if name in self.settings:
                setattr(session, name, self.settings[name])
        session.restore(self.contents.copy())


def merged(edits: Sequence[LabelEdit], shape: tuple[int, ...]) -> list[LabelEdit]:
    """Edits that write the same labels as these, one after the other: one for each plane that they touch.

    Their values before are of no use. Planes lie along the last two axes, wherever those of `edits` lie, so
    that it does not matter which comes first.
    """
    found: dict[Plane, list[LabelEdit]] = {}
    for edit in edits:
        for part in _parts(edit, shape):
            found.setdefault(part.plane, []).append(part)
    return [_one(plane, parts) for plane, parts in found.items()]


def _one(plane: Plane, parts: list[LabelEdit]) -> LabelEdit:
    if len(parts) == 1:
        return parts[0]
    box = EMPTY_BOX.union(*(part.box for part in parts))
    changed, after = np.zeros(box.shape, np.bool_), np.zeros(box.shape, parts[-1].dtype)
    for part in parts:
        inside = part.box.shifted(-box.top, -box.left).slices
        part.apply(after[inside])
        changed[inside] |= part.changed
    return _edit(plane, box, changed, after)


def _edit(plane: Plane, box: BoundingBox, changed: np.ndarray, after: np.ndarray) -> LabelEdit:
    # Any other value before makes it an edit of exactly these voxels, unchanged ones included.
    edit = LabelEdit.between(plane, box, np.where(changed, after ^ 1, after), after)
    assert edit is not None
    return edit


def _parts(edit: LabelEdit, shape: tuple[int, ...]) -> list[LabelEdit]:
    """An edit as edits of planes along the last two axes."""
    if edit.plane.axes == (len(shape) - 2, len(shape) - 1):
        return [edit]
    values = np.zeros(edit.box.shape, edit.dtype)
    edit.apply(values)
    parts = []
    for plane, box, there, here in by_plane(edit, shape):
        where, after = np.zeros(box.shape, np.bool_), np.zeros(box.shape, edit.dtype)
        where[here], after[here] = True, values[there]
        parts.append(_edit(plane, box, where, after))
    return parts
