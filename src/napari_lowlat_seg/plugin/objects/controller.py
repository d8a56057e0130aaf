"""What the table of objects does to one image's session, its labels layer and the viewer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from napari.utils.colormaps import DirectLabelColormap
from psygnal import Signal
from qtpy.QtGui import QColor

from napari_lowlat_seg.annotation.action_queue import ActionQueue
from napari_lowlat_seg.annotation.objects import actions
from napari_lowlat_seg.annotation.objects.counts import LabelCounts, count_labels
from napari_lowlat_seg.annotation.objects.facts import PLAIN, class_colours, read_classes
from napari_lowlat_seg.annotation.objects.proposals import (
    accept_proposal,
    correct_proposal,
    masks_of,
    reject_proposals,
)
from napari_lowlat_seg.annotation.objects.table import ObjectTable, Row
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.controller.current_plane import CurrentPlane
from napari_lowlat_seg.plugin.labels.target import ChosenLabels
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.notices import show_warning
from napari_lowlat_seg.plugin.objects.proposals import ProposalLayer, Search
from napari_lowlat_seg.plugin.worker import Worker

SAY_SECONDS = 0.2
"""Between two reports of how far a count is."""


class ObjectsController:
    """The objects of one image as rows, and what can be done with them.

    Parameters
    ----------
    viewer
        napari's; it shows proposals.
    grid, session, labels, worker, current_plane, queue
        Those of the controller of the image.
    source
        From a plane to where its pixels come from.
    propagation_range
        Returns the first and the last plane of the range of planes.

    Attributes
    ----------
    table
        The rows.
    counting
        How far the count of the labels is, in words; "" when it is done.
    search
        Finds objects without a prompt.
    """

    changed = Signal()
    """`table`, `counting` or `classes` may be others; update the table to see."""

    done = Signal(str)
    """Labels, prompts or the current object are others; what was done, in a few words."""

    status = Signal(str)
    """What is going on, in a few words."""

    def __init__(
        self,
        viewer: Any,
        grid: Grid,
        session: Session,
        labels: ChosenLabels,
        worker: Worker,
        current_plane: CurrentPlane,
        queue: ActionQueue,
        source: Callable[[Plane], Any],
        propagation_range: Callable[[], tuple[int, int]],
    ) -> None:
        self._grid, self._session, self._labels, self._worker = grid, session, labels, worker
        self._current_plane, self._queue = current_plane, queue
        self.table = ObjectTable(session)
        self.table.notify = self.changed.emit
        self.counting = ""
        self._count: object = None  # the one that is under way
        self._counted: Any = None  # the labels that were counted or are being counted
        self._colormap: Any = None  # of the layer, before objects were hidden
        self._coloured: Any = None  # the layer with our colormap
        labels.changed.connect(self._labels_changed)
        self.search = Search(session, worker, current_plane, source, propagation_range)
        self.proposals = ProposalLayer(viewer, grid, session)
        self.search.status.connect(self._say)
        self.search.changed.connect(self._emit_changed)

    # Counting

    def _labels_changed(self) -> None:
        self.changed.emit()
        self.look_through()

    def look_through(self, *, again: bool = False) -> None:
        """Count the labels in use in the background, once; `again` if they may have changed unheard."""
        store = self._session.labels
        if store is self._counted and not again:
            return
        self._counted, ticket = store, object()
        self._count = ticket if store is not None else None
        self.counting = ""
        self.table.follow_labels()  # the panel shows what `update` says, and must hear it all
        if store is None:
            return
        if not self._session.highest:
            self.table.set_counts(LabelCounts(self._session.volume.shape))
            self._count = None
            return
        self.table.begin_count()
        said = [0.0]

        def progress(done: int, total: int) -> None:
            if time.monotonic() > said[0] + SAY_SECONDS:
                said[0] = time.monotonic()
                self._worker.call(self._progressed, ticket, f"Counting: plane {done} of {total}")

        shape = self._session.volume.shape
        self._worker.run(
            lambda: count_labels(store, shape, progress, lambda: self._count is not ticket),
            lambda counts: self._has_counted(ticket, counts),
        )

    def _progressed(self, ticket: object, sentence: str) -> None:
        if ticket is self._count:
            self.counting = sentence
            self.changed.emit()

    def _has_counted(self, ticket: object, counts: LabelCounts) -> None:
        if ticket is self._count:
            self._count, self.counting = None, ""
            self.table.set_counts(counts)
            self._show_hidden()
            self.changed.emit()

    def attach(self) -> None:
        """Listen to the worker and the sliders."""
        self.search.attach()
        self._current_plane.moved.connect(self.show_proposals)

    def detach(self) -> None:
        """Stop counting and searching, and give the labels layer back its colours."""
        self.search.detach()
        self._current_plane.moved.disconnect(self.show_proposals)
        self.proposals.remove()
        if self._count is not None:
            self._count = self._counted = None
            self.counting = ""
        self._restore_colours()

    # What the user does

    def do(self, name: str, keys: Sequence[int]) -> None:
        """Do one of `OBJECT_ACTIONS` that needs nothing but rows; a refusal is said in one sentence."""
        known = [key for key in keys if key in self.table.rows]
        if not known:
            self._say("Choose an object in the table first.")
            return
        proposed = all(key < 0 for key in known)
        if proposed and name == "delete":
            name = "reject"
        if name in ("accept_proposal", "reject") and not proposed:
            self._say("Only a proposal is accepted or rejected here; choose one.")
        elif proposed and name not in ("go_to", "edit_again", "accept_proposal", "reject"):
            self._say("This is a proposal so far: accept it first (A).")
        else:
            getattr(self, name)([key for key in known if (key < 0) == proposed])

    def go_to(self, keys: Sequence[int]) -> None:
        """Show the plane with most of an object, and the object on it."""
        self._try(lambda: self._look(*self._place_of(keys[0])))

    def edit_again(self, keys: Sequence[int]) -> None:
        """Make an object the current one, with its prompts."""

        def edit() -> None:
            plane, at = self._place_of(keys[0])
            if keys[0] < 0:
                correct_proposal(self._session, -keys[0])
                self.done.emit("Correct the proposal by clicks, then accept it.")
            elif self._session.edit_object(plane, at):
                self.done.emit("")

        self.go_to(keys)  # at once, as clicks from now on are meant for it
        self._when_answered(edit)

    def describe(self, keys: Sequence[int], **changes: Any) -> None:
        """Change name, class, lock, review or hiding of objects, in one undo step, behind what waits."""

        def describe() -> None:
            if self._try(lambda: actions.describe(self._session, keys, **changes)):
                newest = self._session.undo_stack.to_undo
                assert newest is not None  # it was done
                self.done.emit(f"Done: {newest.title}")
                self._show_hidden()

        self._queue.do(describe)

    def lock(self, keys: Sequence[int]) -> None:
        """Lock objects, or unlock them if all are locked."""
        self._toggle("locked", keys)

    def hide(self, keys: Sequence[int]) -> None:
        """Hide objects, or show them if all are hidden."""
        self._toggle("hidden", keys)

    def review(self, keys: Sequence[int]) -> None:
        """Mark objects as to be reviewed, or as done if all are to be."""
        self._toggle("review", keys)

    def _toggle(self, what: str, keys: Sequence[int]) -> None:
        facts = self._session.facts
        on = not all(getattr(facts.get(key, PLAIN), what) for key in keys)
        self.describe(keys, **{what: on})

    def delete(self, keys: Sequence[int]) -> None:
        """Make the voxels of objects background."""
        self._change(lambda: actions.delete(self._session, self.table.counts, keys))

    def merge(self, keys: Sequence[int]) -> None:
        """Give all objects the label of the first one."""
        self._change(lambda: actions.merge(self._session, self.table.counts, keys))

    def split(self, keys: Sequence[int]) -> None:
        """Give each connected part of an object a label of its own."""
        self._change(lambda: actions.split(self._session, self.table.counts, keys[0]))

    # Proposals

    def find_all(self, scope: str) -> None:
        """Propose objects on the "plane" in view, in the "range" of planes or in the "volume"."""
        self._try(lambda: self.search.start(scope))
        self.changed.emit()

    def accept_proposal(self, keys: Sequence[int]) -> None:
        """Write proposals into the labels, each as one undo step."""

        def accept() -> None:
            if not self._labels.ensure():
                self._say("The labels are still being opened; try again in a moment.")
                return
            labels = [accept_proposal(self._session, -key) for key in keys]
            self.done.emit(f"Accepted as object {labels[-1]}.")
            self.refresh_hidden()

        self._when_answered(accept)

    def reject(self, keys: Sequence[int]) -> None:
        """Drop proposals, in one undo step."""
        self._change(lambda: reject_proposals(self._session, [-key for key in keys]))

    def choose(self, keys: Sequence[int]) -> None:
        """Fill these proposals in the view."""
        self.proposals.chosen = frozenset(-key for key in keys if key < 0)
        self.show_proposals()

    def show_proposals(self) -> None:
        """Draw the proposals on the plane in view."""
        numbers = [-key for key in self.table.rows if key < 0]
        self.proposals.show(self._current_plane.plane, numbers)

    def _place_of(self, key: int) -> tuple[Plane, tuple[int, int]]:
        if key > 0:
            return actions.place_of(self._session, self.table.counts, key)
        masks = masks_of(self._session, -key)
        plane = max(masks, key=lambda one: masks[one].pixels)
        box = masks[plane].box
        return plane, ((box.top + box.bottom) // 2, (box.left + box.right) // 2)

    def load_classes(self, path: Path | None) -> None:
        """Take the classes in a CSV file for the only ones; None allows any again."""

        def load() -> None:
            self._session.classes = () if path is None else read_classes(path)
            said = ", ".join(one.name for one in self._session.classes)
            self._say(f"Classes: {said}" if said else "Any class may be given.")

        self._try(load)
        self.changed.emit()

    # What the table shows

    @property
    def class_colours(self) -> dict[str, str]:
        """The colour "#rrggbb" of every class of the list and in use."""
        used = sorted({facts.category for facts in self._session.facts.values()})
        return class_colours(self._session.classes, used)

    @property
    def said(self) -> tuple[object, object]:
        """What `class_colours` are made of; others when one of the two is another one."""
        return self._session.classes, self._session.facts

    @property
    def fixed_classes(self) -> tuple[str, ...]:
        """The classes of the list; empty if any may be given."""
        return tuple(one.name for one in self._session.classes)

    def colour(self, row: Row) -> QColor | None:
        """The colour of an object in the labels layer; None without one."""
        layer = self._labels.layer
        if layer is None or row.proposed:
            return None
        colormap = self._colormap if self._coloured is not None else layer.colormap
        red, green, blue, _ = (float(value) for value in colormap.map(row.key))
        return QColor.fromRgbF(red, green, blue)

    @property
    def unit(self) -> str:
        """The unit of sizes: "µm³", "voxels"."""
        spacing = self._session.volume.spacing
        units = set(_names(tuple(self._grid.layer.units)))
        power = "³" if self._session.volume.ndim > 2 else "²"
        if spacing is None or len(units) != 1:
            return "voxels"
        (unit,) = units
        short = {"pixel": "px", "micrometer": "µm", "nanometer": "nm", "millimeter": "mm"}.get(unit, unit)
        return f"{short}{power}"

    # Hidden objects

    def _show_hidden(self) -> None:
        """Give hidden objects no colour in the labels layer, and all others the one they had."""
        layer = self._labels.layer
        hidden = [label for label, facts in self._session.facts.items() if facts.hidden]
        if layer is None or not hidden:
            self._restore_colours()
            return
        if self._coloured is not layer:
            self._restore_colours()
            self._coloured, self._colormap = layer, layer.colormap
        labels = [*self.table.counts.labels]
        colours: dict[int | None, Any] = {label: self._colormap.map(label) for label in labels}
        colours |= dict.fromkeys(hidden, "transparent")
        layer.colormap = DirectLabelColormap(color_dict={None: "#bbbbbb", 0: "transparent", **colours})

    def _restore_colours(self) -> None:
        if self._coloured is not None:
            self._coloured.colormap = self._colormap
            self._coloured = self._colormap = None

    def refresh_hidden(self) -> None:
        """Follow what undo and redo have hidden or shown, and labels that are new."""
        hidden = any(facts.hidden for facts in self._session.facts.values())
        if hidden or self._coloured is not None:
            self._show_hidden()

    # Helpers

    def _look(self, plane: Any, at: tuple[int, int]) -> None:
        self._current_plane.look_at(plane)
        self._current_plane.bring_into_view(plane, at)

    def _change(self, work: Callable[[], object]) -> None:
        def change() -> None:
            before = self._session.undo_stack.to_undo
            work()
            newest = self._session.undo_stack.to_undo
            if newest is not None and newest is not before:
                self.done.emit(f"Done: {newest.title}")

        self._when_answered(change)

    def _when_answered(self, work: Callable[[], object]) -> None:
        """Do it when all predictions before are there, as any other action that reads labels."""
        self._queue.do(lambda: self._try(work), lambda: self._session.answered and not self._labels.reading)

    def _try(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (ValueError, OSError) as error:
            show_warning(str(error))
            self._say(str(error))
            return None

    def _emit_changed(self) -> None:
        self.changed.emit()

    def _say(self, sentence: str) -> None:
        self.status.emit(sentence)


@cache
def _names(units: tuple[Any, ...]) -> tuple[str, ...]:
    """Units in words, which takes pint half a millisecond, as often as the table is refreshed."""
    return tuple(str(unit) for unit in units)
