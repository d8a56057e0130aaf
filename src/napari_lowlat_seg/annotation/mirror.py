"""A copy of a session that follows its events: what a journal compacts, and what is left after a crash.

While a session is annotated, the journal's thread plays every event on a mirror. When the session is
restored, the same events are played again as they were written, and the mirror becomes a session.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from napari_lowlat_seg.annotation.history import Event, ObjectRecord, Step, Transaction, UndoStack
from napari_lowlat_seg.annotation.journal_format import (
    Decoder,
    Encoder,
    JournalError,
    as_int,
    as_list,
    decoded_settings,
    encoded_settings,
)
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.annotation.session import SETTINGS, Session
from napari_lowlat_seg.core.boxes import EMPTY_BOX, BoundingBox
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore
from napari_lowlat_seg.core.volume import Plane, Volume

Written = dict[int, list[LabelEdit]]
"""By number of the labels, the edits that make them what the session left, from what they were at first."""


@dataclass
class Mirror:
    """The values of a session; see `Session` for what they are.

    Attributes
    ----------
    shape
        Of the volume.
    stores
        The labels that were used, in order of their first use.
    store
        The number of those in use; None without any.
    written
        See `Written`.
    in_flight
        Labels and edits that were announced and not followed by their event: perhaps half written.
    """

    shape: tuple[int, ...]
    undo_stack: UndoStack
    states: dict[int, dict[Plane, PlaneState]] = field(default_factory=dict)
    records: dict[int, ObjectRecord] = field(default_factory=dict)
    current: int = 1
    highest: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    stores: list[LabelStore] = field(default_factory=list)
    store: int | None = None
    written: Written = field(default_factory=dict)
    transaction: Transaction | None = None
    in_flight: tuple[LabelStore, tuple[LabelEdit, ...]] | None = None

    @classmethod
    def of(cls, session: Session, written: Written | None = None) -> Mirror:
        """The mirror of a session in which no transaction is open.

        `written` are the edits of its labels before; those of its undo stack are used if it is not given.
        """
        session.close_transaction()
        stack = UndoStack(session.undo_stack.limit)
        stack.load(session.undo_stack.done, session.undo_stack.undone)
        mirror = cls(session.volume.shape, stack, current=session.current, highest=session.highest)
        mirror.records = session.all_records()
        mirror.states = session.all_states()
        mirror.settings = {name: getattr(session, name) for name in SETTINGS}
        if session.labels is not None:
            mirror.store = mirror.store_number(session.labels)
        if written is None:
            for step in stack.done:
                mirror._keep(step.store, step.edits)
        else:
            mirror.written = {number: list(edits) for number, edits in written.items()}
        return mirror

    def store_number(self, store: LabelStore) -> int:
        """The number of labels, a new one for new labels."""
        for number, known in enumerate(self.stores):
            if known is store:
                return number
        self.stores.append(store)
        return len(self.stores) - 1

    # Events

    def play(self, event: Event) -> None:
        """Follow one event of the session."""
        if event.kind == "writing":
            assert event.store is not None
            self.store_number(event.store)
            self.in_flight = (event.store, event.edits)
            return  # what is not done counts for nothing
        self.highest = event.highest
        self.in_flight = None
        getattr(self, f"_{event.kind}")(event)

    def _settings(self, event: Event) -> None:
        self.settings |= event.settings

    def _labels(self, event: Event) -> None:
        assert event.record is not None
        self.store = None if event.store is None else self.store_number(event.store)
        self.records[self.current] = event.record

    def _step(self, event: Event) -> None:
        assert event.step is not None
        self._apply(event.step)
        self.undo_stack.push(event.step)

    def _undo(self, event: Event) -> None:
        step = self.undo_stack.undo()
        if step is None:
            raise ValueError("there is no step to undo")
        self._keep(step.store, [edit.reversed() for edit in reversed(step.edits)])
        for (number, plane), before, _ in step.states:
            self.states.setdefault(number, {})[plane] = before
        self.records.update({n: before for n, before, _ in step.records if before is not None})
        self.current = step.current[0]

    def _redo(self, event: Event) -> None:
        step = self.undo_stack.redo()
        if step is None:
            raise ValueError("there is no step to redo")
        self._apply(step)

    def _prediction(self, event: Event) -> None:
        assert event.prediction is not None
        (number, plane), old, new = event.prediction
        self.states.setdefault(number, {})[plane] = new
        self.undo_stack.replace(old, new)

    def _progress(self, event: Event) -> None:
        news = event.step
        assert news is not None
        if self.transaction is None:
            self.transaction = Transaction(news.title, news.plane, news.current, self.states, self.records)
        states = {key: after for key, _, after in news.states}
        records = {number: after for number, _, after in news.records}
        self.transaction.change(states, records, news.store, news.edits)
        self._keep(news.store, news.edits)
        self.current = news.current[1]

    def _closed(self, event: Event) -> None:
        self._progress(event)
        self.close_transaction()

    def close_transaction(self) -> None:
        """Make one undo step of what a transaction has brought so far."""
        transaction, self.transaction = self.transaction, None
        if transaction is not None and not transaction.is_empty:
            self.undo_stack.push(transaction.close())

    def _apply(self, step: Step) -> None:
        for (number, plane), _, after in step.states:
            self.states.setdefault(number, {})[plane] = after
        self.records.update({number: after for number, _, after in step.records})
        self._keep(step.store, step.edits)
        self.current = step.current[1]

    def _keep(self, store: LabelStore | None, edits: Iterable[LabelEdit]) -> None:
        edits = list(edits)
        if edits and store is not None:
            self.written.setdefault(self.store_number(store), []).extend(edits)

    # As JSON

    def snapshot(self, encoder: Encoder) -> dict[str, Any]:
        """All of it for the first frame of a compacted file; a transaction counts as a step."""
        done = list(self.undo_stack.done)
        if self.transaction is not None:
            done.append(self.transaction.so_far())
        states = [(n, plane, state) for n, planes in self.states.items() for plane, state in planes.items()]
        self.written = {number: merged(edits, self.shape) for number, edits in self.written.items()}
        written = [(number, list(edits)) for number, edits in self.written.items()]
        records, undone = list(self.records.items()), list(self.undo_stack.undone)
        message = {
            "kind": "snapshot",
            "limit": self.undo_stack.limit,
            "current": self.current,
            "highest": self.highest,
            "settings": encoded_settings(self.settings),
            "store": self.store,
            "stores": len(self.stores),
        }
        # From here on the session may go on: the encoder may let events be played between two values.
        return message | {
            "records": [[n, encoder.record(record)] for n, record in records],
            "states": [[n, plane.index, encoder.state(state)] for n, plane, state in states],
            "done": [encoder.step(step) for step in done],
            "undone": [encoder.step(step) for step in undone],
            "written": [[number, [encoder.edit(edit) for edit in edits]] for number, edits in written],
        }

    @classmethod
    def decoded(
        cls, message: dict[str, Any], decoder: Decoder, shape: tuple[int, ...], stores: list[LabelStore]
    ) -> Mirror:
        """The mirror of a snapshot; raises ValueError, KeyError or TypeError for a wrong one."""
        stack = UndoStack(as_int(message["limit"], 0))
        stack.load(
            [decoder.step(step) for step in as_list(message["done"])],
            [decoder.step(step) for step in as_list(message["undone"])],
        )
        mirror = cls(shape, stack, stores=stores, settings=decoded_settings(message["settings"]))
        mirror.highest = as_int(message["highest"])
        mirror.store = None if message["store"] is None else as_int(message["store"], 0, len(stores) - 1)
        for number, record in as_list(message["records"]):
            mirror.records[as_int(number, 1)] = decoder.real_record(record)
        for number, index, state in as_list(message["states"]):
            at = decoder.key(number, index)
            mirror.states.setdefault(at[0], {})[at[1]] = decoder.state(state, at[1])
        for number, edits in as_list(message["written"]):
            mirror.written[as_int(number, 0, len(stores) - 1)] = list(decoder.edits(edits))
        mirror.current = as_int(message["current"], 1)
        return mirror

    def check(self) -> None:
        """Raise ValueError unless a session can go on from here and the labels can be written."""
        numbers = {self.current, *self.states}
        for step in (*self.undo_stack.done, *self.undo_stack.undone):
            numbers |= {*step.current, *(key[0] for key, _, _ in step.states)}
        if missing := numbers - self.records.keys():
            raise ValueError(f"there is no object {min(missing)}")
        if any(step.edits and step.store is None for step in self.undo_stack.done):
            raise ValueError("a step changes labels that are not there")
        for number, edits in self.written.items():
            for edit in edits:
                found = self.stores[number].read(edit.plane, edit.box)
                if found.dtype != edit.dtype or found.shape != edit.box.shape:
                    raise JournalError(
                        f"its labels number {number + 1} are of type {edit.dtype} and shape {self.shape}, "
                        f"not of type {found.dtype}; give those it was made with"
                    )

    def session(self, volume: Volume) -> Session:
        """A session that goes on where this one is; writes the labels.

        What was being written when the session ended, and may be half there, is taken back.
        """
        self.close_transaction()
        for number, edits in self.written.items():
            self.stores[number].write(edits)
        if self.in_flight is not None:
            store, edits_under_way = self.in_flight
            store.write([edit.reversed() for edit in reversed(edits_under_way)])
        session = Session(volume, limit=self.undo_stack.limit)
        session.labels = None if self.store is None else self.stores[self.store]
        for name, value in self.settings.items():
            setattr(session, name, value)
        session.restore(self.states, self.records, self.current, self.highest, self.undo_stack)
        return session


def merged(edits: Sequence[LabelEdit], shape: tuple[int, ...]) -> list[LabelEdit]:
    """Edits that write the same labels as these, one after the other: one for each plane that they touch.

    Their values before are of no use. Planes lie along the last two axes, wherever those of `edits` lie, so
    that it does not matter which comes first.
    """
    by_plane: dict[Plane, list[LabelEdit]] = {}
    for edit in edits:
        for part in _parts(edit, shape):
            by_plane.setdefault(part.plane, []).append(part)
    return [_one(plane, parts) for plane, parts in by_plane.items()]


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
    ndim, index = len(shape), edit.plane.index
    if edit.plane.axes == (ndim - 2, ndim - 1):
        return [edit]
    changed = edit.changed
    values = np.zeros(changed.shape, edit.dtype)
    edit.apply(values)
    rows, cols = np.nonzero(changed)
    places = [np.full(rows.size, 0 if position is None else position) for position in index]
    places[edit.plane.axes[0]], places[edit.plane.axes[1]] = rows + edit.box.top, cols + edit.box.left
    # One column of voxels that lies across many planes: group them by plane.
    planes = np.ravel_multi_index(places[:-2], shape[:-2])
    order = np.argsort(planes, kind="stable")
    starts = np.flatnonzero(np.diff(planes[order], prepend=-1))
    parts = []
    for group in np.split(order, starts[1:]):
        r, c = places[-2][group], places[-1][group]
        box = BoundingBox(int(r.min()), int(c.min()), int(r.max()) + 1, int(c.max()) + 1)
        where, after = np.zeros(box.shape, np.bool_), np.zeros(box.shape, edit.dtype)
        where[r - box.top, c - box.left] = True
        after[r - box.top, c - box.left] = values[rows[group], cols[group]]
        plane = Plane((*(int(place[group[0]]) for place in places[:-2]), None, None))
        parts.append(_edit(plane, box, where, after))
    return parts


def encoded_event(event: Event, encoder: Encoder) -> dict[str, Any]:
    """An event as JSON."""
    message: dict[str, Any] = {"kind": event.kind, "highest": int(event.highest)}
    if event.step is not None:
        message["step"] = encoder.step(event.step)
    if event.prediction is not None:
        (number, plane), old, new = event.prediction
        message["prediction"] = [number, plane.index, encoder.state(old), encoder.state(new)]
    if event.kind == "labels":
        message |= {"store": encoder.store(event.store), "record": encoder.record(event.record)}
    if event.kind == "writing":
        edits = [encoder.edit(edit) for edit in event.edits]
        message |= {"store": encoder.store(event.store), "edits": edits}
    if event.settings:
        message["settings"] = encoded_settings(event.settings)
    return message


def decoded_event(message: Mapping[str, Any], decoder: Decoder) -> Event:
    """An event of JSON; raises ValueError, KeyError or TypeError for a wrong one."""
    kind, highest = message["kind"], as_int(message["highest"])
    if kind in ("step", "progress", "closed"):
        return Event(kind, highest, decoder.step(message["step"]))
    if kind in ("undo", "redo"):
        return Event(kind, highest)
    if kind == "settings":
        return Event(kind, highest, settings=decoded_settings(message["settings"]))
    if kind == "prediction":
        number, index, old, new = as_list(message["prediction"])
        key = decoder.key(number, index)
        states = decoder.state(old, key[1]), decoder.state(new, key[1])
        return Event(kind, highest, prediction=(key, *states))
    if kind == "labels":
        record = decoder.real_record(message["record"])
        return Event(kind, highest, store=decoder.store(message["store"]), record=record)
    if kind == "writing":
        store = decoder.store(as_int(message["store"]))
        return Event(kind, highest, store=store, edits=decoder.edits(message["edits"]))
    raise ValueError(f"expected the kind of an event, got {kind!r:.60}")
