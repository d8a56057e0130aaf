"""Steps of a session done, undone and redone: labels and objects change, and the observer hears of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from napari_lowlat_seg.annotation.contents import Contents
from napari_lowlat_seg.annotation.history import Event, EventKind, ObjectRecord, Step, Transaction
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore
from napari_lowlat_seg.core.volume import Plane

Written = tuple[LabelStore, Sequence[LabelEdit]]


class Recorder:
    """Makes every change of a session, in this order: labels, objects, undo stack, observer.

    Parameters
    ----------
    contents
        What steps change; may be replaced while no transaction is open.

    Attributes
    ----------
    observer
        Called with an `Event` after every change.
    listeners
        Called with the same, before the observer.
    """

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.observer: Callable[[Event], object] | None = None
        self.listeners: list[Callable[[Event], object]] = []
        self._open: Transaction | None = None
        self._block: list[Written] | None = None  # what was written in the block that is under way
        self._owed: list[Written] = []  # what takes back writes that have failed

    def tell(self, kind: EventKind, **facts: Any) -> None:
        """Tell the observer what has changed: the fields of an `Event`."""
        if self._owed and self._block is None:
            self.mend()
        event = Event(kind, self.contents.highest, **facts)
        for hear in (*self.listeners, *([self.observer] if self.observer is not None else [])):
            hear(event)

    def write(self, store: LabelStore | None, edits: Sequence[LabelEdit]) -> None:
        """Write edits into labels, all or none; the observer hears of it before.

        Raises what the store raises, such as OSError on a full disk; and OSError for edits of labels that
        had a part of an earlier write in them until now.
        """
        if edits and store is not None:
            if self._owed and self._block is None:
                self._take_back()
                raise OSError("the labels were mended after a write that had failed; do this once more")
            with self.all_or_none() as block:
                self.tell("writing", store=store, edits=tuple(edits))
                block.append((store, edits))
                store.write(edits)

    @contextmanager
    def all_or_none(self) -> Iterator[list[Written]]:
        """A block whose writes are taken back if it raises; one inside another belongs to that one.

        Where the labels take no writing at all, what a write has left there is taken back with the next
        change of the session for which there is room; a block raises OSError until then.
        """
        if self._block is not None:
            yield self._block
            return
        self._take_back()
        self._block = []
        try:
            yield self._block
        except BaseException:
            self._owed = [(store, _reversed(edits)) for store, edits in reversed(self._block)]
            self.mend()
            raise
        finally:
            self._block = None

    def mend(self) -> None:
        """Take back what writes that failed have left in labels, if the disk lets it."""
        with suppress(Exception):  # the next block raises it
            self._take_back()

    def _take_back(self) -> None:
        while self._owed:
            store, edits = self._owed[0]
            store.write(edits)
            del self._owed[0]

    def do(self, step: Step) -> None:
        """Do a step whose edits are in the labels already; it can be undone."""
        self.close()
        self.contents.apply(step)
        self.contents.undo_stack.push(step)
        self.tell("step", step=step)

    def undo(self) -> Step | None:
        """Undo the newest step and return it; None if there is none."""
        self.close()
        stack = self.contents.undo_stack
        step = stack.to_undo
        if step is None:
            self.mend()
            return None
        with self.all_or_none():  # if that fails, nothing is undone
            self.write(step.store, _reversed(step.edits))
        stack.undo()
        self.contents.revert(step)
        self.tell("undo")
        return step

    def redo(self) -> Step | None:
        """Redo the step that was undone last and return it; None if there is none."""
        self.close()
        stack = self.contents.undo_stack
        step = stack.to_redo
        if step is None:
            self.mend()
            return None
        with self.all_or_none():
            self.write(step.store, step.edits)
        stack.redo()
        self.contents.apply(step)
        self.tell("redo")
        return step

    # Transactions

    @property
    def changing(self) -> bool:
        """Whether a transaction is open and has changed something."""
        return self._open is not None and not self._open.is_empty

    @property
    def open_step(self) -> Step | None:
        """What the open transaction has changed so far; None if that is nothing, or none is open."""
        return self._open.so_far() if self._open is not None and self.changing else None

    def open(self, title: str, plane: Plane | None, current: tuple[int, int]) -> Transaction:
        """Begin a step that lasts until `close`; the arguments are those of `Step`."""
        self.close()
        states, records = self.contents.states, self.contents.records
        self._open = Transaction(title, plane, current, states, records, self.write, self.report_progress)
        return self._open

    def open_objects(
        self, count: int, labels: LabelStore | None, *, semantic: bool
    ) -> tuple[Transaction, list[int]]:
        """Begin `count` objects with the next free labels: a transaction and the numbers of the objects.

        With `semantic` all get the label of the current object. A new object is current afterwards.
        """
        self.close()
        contents = self.contents
        label = contents.records[contents.current].label
        numbers = [contents.new_number() for _ in range(count)]
        before, contents.current = contents.current, contents.new_number()
        values = [label if semantic else label + place for place in range(count)]
        records = {number: ObjectRecord(value, labels) for number, value in zip(numbers, values)}
        contents.highest = max([contents.highest, *values])
        records[contents.current] = ObjectRecord(label if semantic else contents.highest + 1)
        step = self.open(f"{count} objects", None, (before, contents.current))
        step.change(records=records)
        return step, numbers

    def report_progress(self) -> None:
        """Tell the observer what the open transaction has changed since the last time."""
        if self._open is not None and self.changing and self.observer is not None:
            self.tell("progress", step=self._open.news())

    def close(self) -> None:
        """Complete the open transaction, if there is one, as one undo step."""
        transaction, self._open = self._open, None
        if transaction is not None:
            news, step = transaction.news(), transaction.close()
            if not transaction.is_empty:
                self.contents.undo_stack.push(step)
                self.tell("closed", step=news)


def _reversed(edits: Sequence[LabelEdit]) -> list[LabelEdit]:
    """The edits that take these back."""
    return [edit.reversed() for edit in reversed(edits)]
