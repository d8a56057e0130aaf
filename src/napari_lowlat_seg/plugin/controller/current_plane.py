"""What the viewer shows: the plane of an image, and changes of the image and of the list of layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from psygnal import Signal
from superqt.utils import qdebounced

from napari_lowlat_seg.annotation.action_queue import ActionQueue
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.layers.napari_layers import Listener

SETTLED_MS = 200
"""After a change of contrast or pixels, until it is taken in."""

EDGE = 0.1
"""Share of the canvas at each edge: what lies there is not well in view."""


class CurrentPlane(Listener):
    """A viewer's sliders and camera, as a plane of one image.

    An action that had to wait for its turn does not move them: the user has gone on meanwhile, and the next
    click would be on a plane that nobody has looked at.

    Parameters
    ----------
    viewer
        napari's viewer.
    grid
        Where the image lies.
    actions
        Knows whether what is being done had to wait.
    """

    moved = Signal()
    """Perhaps another plane, another orientation, or 3-D."""

    panned = Signal()
    """Perhaps another part of the plane."""

    def __init__(self, viewer: Any, grid: Grid, actions: ActionQueue) -> None:
        self._viewer, self._grid, self._actions = viewer, grid, actions

    @property
    def plane(self) -> Plane | None:
        """The plane in view; None in 3-D and where none of the image is shown."""
        return self._grid.plane(self._viewer.dims)

    @property
    def under_cursor(self) -> tuple[Plane, tuple[float, float]] | None:
        """The plane in view and (row, col) under the mouse; None in 3-D and beside the image."""
        plane = self.plane
        if plane is None:
            return None
        at = self._grid.to_plane(self._viewer.cursor.position, plane, self._viewer.dims)
        return (plane, at) if self._grid.inside(plane, [at])[0] else None

    def field(self, plane: Plane) -> tuple[float, float, float, float]:
        """What the canvas shows of the plane in view: (top, left, bottom, right) in its pixels."""
        camera, dims = self._viewer.scene.camera, self._viewer.dims
        half = np.asarray(self._viewer.canvas.size, np.float64) / camera.zoom / 2
        corners = []
        for sign in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            position = np.array(dims.point, np.float64)
            position[list(dims.displayed)] = np.asarray(camera.center)[-2:] + sign * half
            corners.append(self._grid.to_plane(position.tolist(), plane, dims))
        (top, left), (bottom, right) = np.min(corners, axis=0), np.max(corners, axis=0)
        return float(top), float(left), float(bottom), float(right)

    def look_at(self, plane: Plane) -> None:
        """Show a plane; a 3-D view stays as it is, and any view while an action is done that has waited."""
        if self._viewer.dims.ndisplay == 2 and not self._actions.late:
            self._grid.look_at(self._viewer.dims, plane)

    def bring_into_view(self, plane: Plane, at: tuple[float, float]) -> None:
        """Move the camera to (row, col) of the plane in view, at the same zoom, unless that is well in view.

        A picture that jumps with every object that is looked at is lost from sight. 3-D views stay.
        """
        camera, dims, grid = self._viewer.scene.camera, self._viewer.dims, self._grid
        if (
            dims.ndisplay == 2
            and not self._actions.late
            and self.plane == plane
            and not self._well_in_view(plane, at)
        ):
            data = grid.to_layer(plane, np.array([at]))[0]
            world = np.asarray(grid.layer.data_to_world(data * np.asarray(grid.factors)))
            middle = world[[axis - dims.ndim for axis in dims.displayed]]
            camera.center = (*camera.center[:-2], *(float(value) for value in middle))

    def _well_in_view(self, plane: Plane, at: tuple[float, float]) -> bool:
        field = np.reshape(self.field(plane), (2, 2))
        margin = EDGE * (field[1] - field[0])
        return bool(np.all((field[0] + margin <= at) & (at <= field[1] - margin)))

    def next(self) -> None:
        """Show the following plane, if there is one."""
        self._step(1)

    def previous(self) -> None:
        """Show the plane before, if there is one."""
        self._step(-1)

    def _step(self, offset: int) -> None:
        plane = self.plane
        if plane is None or len(plane.index) == 2:
            return
        axis = max(axis for axis, position in enumerate(plane.index) if position is not None)
        if 0 <= plane.position + offset < self._grid.volume.shape[axis]:
            self.look_at(plane.moved(offset))

    def _slots(self) -> tuple[tuple[Any, Any], ...]:
        dims, camera = self._viewer.dims.events, self._viewer.scene.camera.events
        return (
            *((event, self._on_dims) for event in (dims.point, dims.order, dims.ndisplay)),
            *((event, self._on_camera) for event in (camera.center, camera.zoom)),
        )

    def _on_dims(self) -> None:
        self.moved.emit()

    def _on_camera(self) -> None:
        self.panned.emit()


class ImageChanges(Listener):
    """Signals when an image layer is changed under a session that goes on.

    Parameters
    ----------
    grid
        Where the image lies.
    """

    placed = Signal()
    """It was moved, turned or scaled, or has other units."""

    contrast = Signal()
    """Its contrast limits are others, and have been for a while: not with every step of a slider."""

    pixels = Signal()
    """Its data are shown anew, and perhaps others; not while planes are scrolled."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._emit_contrast = qdebounced(lambda: self.contrast.emit(), SETTLED_MS)
        self._emit_pixels = qdebounced(lambda: self.pixels.emit(), SETTLED_MS)

    def detach(self) -> None:
        """Stop listening; what has not settled is dropped."""
        super().detach()
        for later in (self._emit_contrast, self._emit_pixels):
            later.cancel()

    def _slots(self) -> tuple[tuple[Any, Any], ...]:
        events = self._grid.layer.events
        return (
            *((event, self._on_place) for event in self._grid.place_events),
            (events.contrast_limits, self._on_contrast),
            (events.set_data, self._on_data),
        )

    def _on_place(self, event: Any = None) -> None:
        self.placed.emit()

    def _on_contrast(self, event: Any = None) -> None:
        self._emit_contrast()

    def _on_data(self, event: Any = None) -> None:
        self._emit_pixels()


class LayerChanges:
    """Signals when the list of the viewer's layers has changed and napari is done with it.

    Parameters
    ----------
    viewer
        napari's viewer.
    parent
        The widget with which it ends.
    """

    changed = Signal()
    """A layer was added, removed, moved or renamed."""

    def __init__(self, viewer: Any, parent: Any) -> None:
        self._events = viewer.layers.events
        # napari is not done with a new layer when it emits `inserted`.
        self.look = qdebounced(lambda: self.changed.emit(), 0, parent=parent)
        for event in self._listened():
            event.connect(self._on_layers)

    def close(self) -> None:
        """Stop listening."""
        self.look.cancel()
        for event in self._listened():
            event.disconnect(self._on_layers)

    def _listened(self) -> tuple[Any, ...]:
        return self._events.inserted, self._events.removed, self._events.reordered, self._events.renamed

    def _on_layers(self, event: Any = None) -> None:
        self.look()
