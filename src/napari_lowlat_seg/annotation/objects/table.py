"""All objects of a session as rows of a table, kept in step with what is done; knows no window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from napari_lowlat_seg.annotation.history import Event
from napari_lowlat_seg.annotation.objects.counts import LabelCounts, edit_parts
from napari_lowlat_seg.annotation.objects.facts import PLAIN
from napari_lowlat_seg.annotation.objects.proposals import masks_of
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore

State = Literal["proposed", "in progress", "to review", "done", "locked"]
STATES: tuple[State, ...] = ("proposed", "in progress", "to review", "done", "locked")


@dataclass(frozen=True)
class Row:
    """One object.

    Attributes
    ----------
    key
        Its label; of a proposal, which has none yet, its number in the session with a minus.
    name, category, hidden
        See `ObjectFacts`.
    state
        "proposed" by *Find all*; "in progress": current, or accepted while predictions are to come; else
        "locked", "to review" or "done".
    planes, voxels
        On how many planes it is in the labels, and its voxels there; of a proposal, in its masks.
    size
        The same in world units: a volume, or an area in a 2-D image.
    score
        Of a proposal: how good it seems, 0 to 1.
    """

    key: int
    name: str = ""
    category: str = ""
    state: State = "done"
    planes: int = 0
    voxels: int = 0
    size: float = 0.0
    hidden: bool = False
    score: float | None = None

    @property
    def proposed(self) -> bool:
        """Whether it is a proposal."""
        return self.key < 0


class ObjectTable:
    """The rows, one for each label that has a voxel, each object in progress and each proposal.

    It listens to the session; `update` is cheap and says what has changed since the last time.

    Parameters
    ----------
    session
        Its rows are those of the labels in use.

    Attributes
    ----------
    counts
        The voxels of all labels; those of edits only until `set_counts` was called.
    counted
        Whether `counts` knows all labels.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.counts = LabelCounts(session.volume.shape)
        self.counted = False
        self.notify: Callable[[], object] = lambda: None
        self._rows: dict[int, Row] = {}
        self._missed: list[LabelEdit] = []  # edits since a count was begun
        self._dirty: set[int] = set()
        self._all_dirty = True
        self._store: LabelStore | None = None
        self._progressing: set[int] = set()
        self._sizes: dict[int, tuple[int, int]] = {}  # planes and voxels of proposals
        session.listeners.append(self._listen)

    @property
    def rows(self) -> Mapping[int, Row]:
        """The rows by key, as of the last `update`."""
        return self._rows

    @property
    def unit_size(self) -> float:
        """The size of a voxel in world units; 1 where that is not known."""
        spacing = self._session.volume.spacing
        return 1.0 if spacing is None else float(prod(spacing[-3:]))

    def follow_labels(self) -> None:
        """Begin with no labels if others are in use, which are to be counted."""
        if self._session.labels is self._store:
            return
        self.counts, self.counted = LabelCounts(self._session.volume.shape), False
        self._store, self._missed, self._all_dirty = self._session.labels, [], True

    def begin_count(self) -> None:
        """Labels are counted on another thread from now on: keep the edits that come meanwhile."""
        self._missed = []

    def set_counts(self, counts: LabelCounts) -> None:
        """Take counts made since `begin_count`; planes that were edited meanwhile are read again."""
        store = self._session.labels
        if store is not None:
            touched = {place for edit in self._missed for place, _ in edit_parts(edit, counts.shape)}
            for position in touched:
                counts.recount(store, position)
        self.counts, self.counted, self._missed, self._all_dirty = counts, True, [], True

    def update(self) -> tuple[set[int], set[int]]:
        """Bring the rows up to date: the keys whose rows are other ones, and those that came or went."""
        self.follow_labels()
        keys = self._touched()
        changed: set[int] = set()
        moved: set[int] = set()
        for key in keys:
            before, after = self._rows.get(key), self._row(key)
            if before == after:
                continue
            if after is None:
                del self._rows[key]
            else:
                self._rows[key] = after
            (moved if before is None or after is None else changed).add(key)
        return changed, moved

    def _touched(self) -> set[int]:
        """Keys whose rows may be other ones."""
        session = self._session
        progressing = set(session.accepting) | ({session.label} if session.begun else set())
        keys = self._dirty | self.counts.changed | (progressing ^ self._progressing)
        if self._all_dirty:
            proposals = {-n for n, one in session.contents.records.items() if one.score is not None}
            keys |= {*self._rows, *self.counts.labels, *progressing, *proposals}
        self._progressing, self._dirty, self._all_dirty = progressing, set(), False
        self.counts.changed.clear()
        return keys

    def _row(self, key: int) -> Row | None:
        if key < 0:
            return self._proposal(-key)
        counts = self.counts
        if key not in counts and key not in self._progressing:
            return None
        said = self._session.facts.get(key, PLAIN)
        state: State = "to review" if said.review else "done"
        if said.locked:
            state = "locked"
        if key in self._progressing:
            state = "in progress"
        planes, voxels = counts.plane_count(key), counts.voxels(key)
        return Row(key, said.name, said.category, state, planes, voxels, voxels * self.unit_size, said.hidden)

    def _proposal(self, number: int) -> Row | None:
        masks = masks_of(self._session, number)
        if not masks:
            self._sizes.pop(number, None)
            return None
        if number not in self._sizes:
            self._sizes[number] = len(masks), sum(mask.pixels for mask in masks.values())
        planes, voxels = self._sizes[number]
        score = self._session.contents.records[number].score
        return Row(-number, "", "", "proposed", planes, voxels, voxels * self.unit_size, score=score)

    def _listen(self, event: Event) -> None:
        """Count what changes, as it happens."""
        step = event.step
        if event.kind == "writing":
            if event.store is self._session.labels:
                self._count(event.edits)
        elif event.kind == "step" and step is not None and step.kind == "stroke":
            self._count(step.edits)
        if event.kind in ("undo", "redo"):
            stack = self._session.undo_stack
            step = stack.to_redo if event.kind == "undo" else stack.to_undo
        if step is not None:
            self._dirty |= {label for label, _, _ in step.facts}
            self._dirty |= {-n for n, _, record in step.records if record.score is not None}
        self.notify()

    def _count(self, edits: tuple[LabelEdit, ...]) -> None:
        for edit in edits:
            self.counts.edit(edit)
            self._missed.append(edit)
