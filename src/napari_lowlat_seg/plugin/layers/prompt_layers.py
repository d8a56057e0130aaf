"""The prompts of the current object as a Points and a Shapes layer, in both directions.

napari reports a change in many ways: up to four events for one, none for a pasted point, some in the middle.
So an event is only a reason to read the layers again; what differs from the last reading is an edit. A number
in the features table ("order") identifies each row and keeps the order in which the prompts were given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from napari.layers import Points
from napari.layers.base import ActionType
from psygnal import Signal

from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.layers.drawn_shapes import clipped
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.layers.prompt_rows import (
    NEW_ROWS,
    ROWS,
    Rows,
    chosen,
    expect,
    forget,
    realign,
    turn,
)
from napari_lowlat_seg.plugin.layers.prompt_table import Prompted, PromptTable, joined
from napari_lowlat_seg.plugin.notices import show_info


class PromptLayers:
    """Two layers, ours or the user's, that show all prompts of the current object in one orientation.

    Parameters
    ----------
    viewer
        A napari viewer.
    grid
        Where the image lies.
    on_edit
        Called once for each action of the user that changes a prompt, with all prompts of the current object:
        masks and prompts of other orientations, which no layer shows, included. A plane that has lost its
        last prompt comes with an empty tuple.
    say
        Called with one sentence when something drawn cannot be used.
    """

    replaced = Signal()
    """`points` or `shapes` is another layer than before, or gone."""

    sign_changed = Signal()
    """The sign of the next prompt is another one."""

    drawn = Signal()
    """The shape being drawn is finished or dropped; emitted before `on_edit` is called."""

    def __init__(
        self,
        viewer: Any,
        grid: Grid,
        on_edit: Callable[[Prompted], None],
        say: Callable[[str], None] = show_info,
    ) -> None:
        self.viewer = viewer
        self.grid = grid
        self.on_edit = on_edit
        self.say = say
        self._positive = True
        self.opposite = False
        """The prompt under way gets the other sign."""
        self.stroking = False
        """A stroke is under way on the Points layer: a point that napari adds at its end is no click."""
        self.pressed: Plane | None = None
        """Where the left button went down: a point that napari adds to another plane is no click."""
        self.drawing = False
        """The user is drawing a shape with napari's own tools."""
        self._table = PromptTable(grid)
        self._attached = False
        self._postponed: tuple[Prompted, tuple[int, int]] | None = None
        self._writing = False
        self._finishing = False

    def attach(self) -> None:
        """Add our layers to the viewer, ready to click."""
        if self._attached:
            return
        self._attached = True
        if (shown := self.grid.plane(self.viewer.dims)) is not None:
            self._table.axes = shown.axes
        self.viewer.layers.events.removed.connect(self._on_removed)
        self.viewer.scene.camera.events.zoom.connect(self._on_zoom)
        self.activate()

    def detach(self) -> None:
        """Take our layers out of the viewer and release the user's; the prompts are kept."""
        if not self._attached:
            return
        self._attached = False
        self.viewer.layers.events.removed.disconnect(self._on_removed)
        self.viewer.scene.camera.events.zoom.disconnect(self._on_zoom)
        for kind in tuple(self._table.sources):
            self._drop(kind)

    def activate(self) -> None:
        """Make the Points layer the active one, ready to click."""
        points = self.points
        self.viewer.layers.selection.active = points
        points.mode = "add"

    def adopt(self, points: Any = None, shapes: Any = None) -> None:
        """Read layers of the user's in place of ours, or with None our own again; at most one edit.

        What a user's layer held before is never removed. Its rows that are no prompts of the current object
        stay in it and are not read until they are changed.

        Raises
        ------
        ValueError
            For a layer with another number of axes than the image.
        """
        given = {"points": points, "shapes": shapes}
        for layer in given.values():
            if layer is not None and layer.ndim != self.grid.ndim:
                raise ValueError(
                    f"prompts for {self.grid.layer.name!r} need a layer of {self.grid.ndim} axes; "
                    f"{layer.name!r} has {layer.ndim}, choose another one"
                )
        before, sources = self._table.content, self._table.sources
        for kind, layer in given.items():
            if layer is None and kind in self._table.rulers:
                self._drop(kind)
            if layer is None or (kind in sources and sources[kind].layer == layer):
                continue
            self._drop(kind)
            rows = ROWS[kind](layer)
            self._table.rulers[kind] = Points(ndim=self.grid.ndim, **self.grid.place)
            with self._silence():
                forget(rows)
                self._take(kind, rows)
            new = self._read()
            self._table.keep(kind)
            self._write(joined(before, new), self.axes)
        self.ensure()
        if points is not None:
            self.activate()  # ready to click at once
        self._report(before)

    @property
    def axes(self) -> tuple[int, int]:
        """The two axes of the volume along which the planes shown lie."""
        return self._table.axes

    @property
    def points(self) -> Any:
        """The Points layer; made anew when the user has deleted it. ValueError while not attached."""
        return self.ensure()["points"].layer

    @property
    def shapes(self) -> Any:
        """The Shapes layer; made anew when the user has deleted it. ValueError while not attached."""
        return self.ensure()["shapes"].layer

    @property
    def present(self) -> tuple[Any, Any]:
        """The Points and the Shapes layer as they are; None for one that is not there."""
        layers = {kind: rows.layer for kind, rows in self._table.sources.items()}
        return layers.get("points"), layers.get("shapes")

    def follow(self) -> None:
        """Lie where the image lies now."""
        for layer in self.present:
            for name, value in self.grid.place.items() if layer is not None else ():
                setattr(layer, name, value)

    @property
    def positive(self) -> bool:
        """The sign of the next prompt."""
        return self._positive

    @positive.setter
    def positive(self, positive: bool) -> None:
        if positive != self._positive:
            self._positive = positive
            self.sign_changed.emit()

    @property
    def next_positive(self) -> bool:
        """The sign that a prompt added now gets."""
        return self.positive != self.opposite

    def toggle(self) -> None:
        """Turn the sign of what is selected in a selecting mode (one edit), else of the next prompt."""
        active = self.viewer.layers.selection.active
        for rows in self._table.sources.values():
            if rows.layer == active and chosen(rows) and not self.drawing:
                with self._silence():
                    turn(rows, chosen(rows))
                self._settle()
                return
        self.positive = not self.positive

    def show(self, prompted: Mapping[Plane, Sequence[Prompt]], axes: tuple[int, int] | None = None) -> None:
        """Show these prompts without calling `on_edit`; rows that show them already are not touched.

        Parameters
        ----------
        prompted
            All prompts of the current object.
        axes
            The two axes of the volume that the viewer shows; None for those shown last. Prompts of planes
            along other axes are kept but not drawn.

        While the user draws a shape, this waits until it is finished, and the shape comes on top.
        """
        wanted: Prompted = {plane: tuple(prompts) for plane, prompts in prompted.items() if prompts}
        axes = self.axes if axes is None else (min(axes), max(axes))
        if self.drawing or self._finishing:
            self._postponed = (wanted, axes)
        elif wanted != self._table.content or axes != self.axes or len(self._table.sources) < len(NEW_ROWS):
            self._write(wanted, axes)

    def add(self, plane: Plane, *prompts: Prompt) -> None:
        """Add prompts drawn by a gesture, as one edit, clipped to the plane.

        With nothing on the plane, or while a shape is being drawn, nothing is added, and a message tells why.
        """
        shape = self.grid.sides(plane)
        on_plane = [part for prompt in prompts for part in clipped(prompt, shape)]
        if self.drawing or not on_plane:
            self.say("finish the shape first" if self.drawing else "nothing drawn is on the plane")
            return
        before = self._table.content
        self._write({**before, plane: (*before.get(plane, ()), *on_plane)}, self.axes)
        self._report(before)

    def _write(self, wanted: Prompted, axes: tuple[int, int]) -> None:
        self._postponed, turned = None, axes != self.axes
        with self._silence():
            self._make_missing()
            self._table.write(wanted, axes)
            if turned:
                self._on_zoom()

    def _read(self, drawn: str = "") -> Prompted:
        with self._silence():
            new, sentences = self._table.read(self.viewer.dims, drawn, positive=self.next_positive)
        for sentence in sentences[:1]:
            self.say(sentence)
        return new

    def _settle(self, source: str = "", *, added: bool = False) -> None:
        """Report what differs from the last reading, then do what had to wait."""
        if self.drawing:
            return
        before = self._table.content
        new = self._read(source if added else "")
        if self._postponed is not None:
            before, axes = self._postponed
            self._table.content = joined(before, new)
            self._postponed = (self._table.content, axes)
        self._report(before)
        self._catch_up()

    def _report(self, before: Prompted) -> None:
        if self._table.content != before:
            emptied: Prompted = {plane: () for plane in before if plane not in self._table.content}
            self.on_edit(emptied | self._table.content)

    def _catch_up(self) -> None:
        # While napari finishes a drawing, taking a shape away would make it finish once more, and fail.
        if self.drawing or self._finishing or self._writing:
            return
        if self._postponed is not None:
            self._write(*self._postponed)
        elif self._table.untidy:
            self._write(self._table.content, self.axes)

    def ensure(self) -> dict[str, Rows]:
        """The rows of both layers, made anew where deleted. Raises ValueError while not attached."""
        if not self._attached:
            raise ValueError("the prompt layers are not in the viewer; call attach() first")
        if len(self._table.sources) < len(NEW_ROWS):
            self._write(self._table.content, self.axes)
        return self._table.sources

    def _make_missing(self) -> None:
        for kind in NEW_ROWS:
            if kind in self._table.sources or not self._attached:
                continue
            rows = NEW_ROWS[kind](self.grid)
            active = self.viewer.layers.selection.active
            self.viewer.add_layer(rows.layer)
            if active is not None:
                self.viewer.layers.selection.active = active
            self._take(kind, rows)

    def _take(self, kind: str, rows: Rows) -> None:
        self._table.sources[kind] = rows
        for event, slot in self._slots(rows.layer):
            event.connect(slot)
        self._on_zoom()
        self.replaced.emit()

    def _drop(self, kind: str) -> None:
        rows = self._table.sources.pop(kind, None)
        if rows is None:
            return
        layer = rows.layer
        for event, slot in self._slots(layer):
            event.disconnect(slot)
        rows.close()
        self.drawing = self.drawing and kind != "shapes"
        if self._table.rulers.pop(kind, None) is None and layer in self.viewer.layers:
            layer.locked = False
            self.viewer.layers.remove(layer)
        self.replaced.emit()

    def _slots(self, layer: Any) -> tuple[tuple[Any, Callable[..., None]], ...]:
        return (
            (layer.events.data, self._on_data),
            (layer.events.features, self._on_table),
            (layer.events.set_data, self._catch_up),
            (layer.selected_data.events.items_changed, self._on_table),
        )

    @contextmanager
    def _silence(self) -> Iterator[None]:
        before, self._writing = self._writing, True
        try:
            yield
        finally:
            self._writing = before

    def _on_data(self, event: Any) -> None:
        kind = next((kind for kind, rows in self._table.sources.items() if rows.layer == event.source), "")
        if self._writing or not kind:
            return
        rows = self._table.sources[kind]
        if event.action == ActionType.ADDING:
            self.drawing = kind == "shapes"
            with self._silence():
                expect(rows, self.next_positive)
        if event.action not in (ActionType.ADDED, ActionType.CHANGED, ActionType.REMOVED):
            return
        self._finishing, self.drawing = kind == "shapes" and self.drawing, False
        added = event.action == ActionType.ADDED
        with self._silence():
            if kind == "shapes":
                realign(rows, -1 if added else event.data_indices[0])
            elif added and (self.stroking or self.pressed not in (None, self.grid.plane(self.viewer.dims))):
                rows.remove(range(len(rows) - len(event.data_indices), len(rows)))
        if self._finishing:
            self.drawn.emit()
        try:
            self._settle(kind, added=added)
        finally:
            self._finishing = False

    def _on_table(self) -> None:
        """The features table or the selection has changed: pasted rows, signs edited by hand."""
        if not self._writing and not self.drawing and not self._table.up_to_date():
            self._settle()

    def _on_removed(self, event: Any) -> None:
        for kind in [kind for kind, rows in self._table.sources.items() if rows.layer == event.value]:
            self._drop(kind)

    def _on_zoom(self) -> None:
        zoom = max(float(self.viewer.scene.camera.zoom), 1e-30)
        for rows in self._table.sources.values():
            rows.fit(zoom, [self.grid.axes[axis] for axis in self.axes])
