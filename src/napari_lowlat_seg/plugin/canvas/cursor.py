"""A cursor on the canvas that the arrow keys move, so that clicks and strokes need no mouse."""

from __future__ import annotations

from typing import Any

import numpy as np
from psygnal import Signal

from napari_lowlat_seg.annotation.propagation_run import next_click, stack_of
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.controller.current_plane import CurrentPlane
from napari_lowlat_seg.plugin.layers.gestures import Gestures
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.layers.preview import Preview
from napari_lowlat_seg.plugin.layers.prompt_layers import PromptLayers

STEP = 4.0
"""Pixels of the screen that an arrow key moves the cursor: for finer steps one zooms in."""

FAR = 10
"""Steps with the Shift key."""


class KeyboardCursor:
    """Where the next click of the keyboard goes.

    Parameters
    ----------
    viewer, grid, session, current_plane, prompts, preview, gestures
        Those of the controller.
    """

    changed = Signal()
    """It is there now, or no longer; it draws, or does not."""

    status = Signal(str)
    """What there is to do."""

    def __init__(
        self,
        viewer: Any,
        grid: Grid,
        session: Session,
        current_plane: CurrentPlane,
        prompts: PromptLayers,
        preview: Preview,
        gestures: Gestures,
    ) -> None:
        self._viewer, self._grid, self._session = viewer, grid, session
        self._current_plane, self._prompts, self._preview = current_plane, prompts, preview
        self._gestures = gestures
        self._at: tuple[float, float] | None = None

    @property
    def at(self) -> tuple[float, float] | None:
        """(row, col) on the plane in view; None while there is no cursor."""
        return self._at

    def toggle(self) -> None:
        """Show the cursor in the middle of what is seen, or take it away."""
        if self._at is None:
            self._begin()
        else:
            self._gestures.give_up()
            self._put(None)

    def move(self, down: int, right: int, *, far: bool = False) -> None:
        """Move it by so many steps; the camera follows when it leaves what is seen."""
        plane = self._current_plane.plane
        if plane is None or self._at is None:
            return
        step = max(1.0, round(STEP / self._zoom(plane))) * (FAR if far else 1)
        self._put((self._at[0] + step * down, self._at[1] + step * right))
        self._gestures.extend(plane, self._at)

    def place_positive(self) -> None:
        """Click + object at the cursor; the first time, show the cursor."""
        self._place(positive=True)

    def place_negative(self) -> None:
        """Click − background at the cursor; the first time, show the cursor."""
        self._place(positive=False)

    def draw(self) -> None:
        """Begin what *Tool* says at the cursor, which draws it from then on; a second call finishes it.

        A box lies between where it was begun and the cursor; the first time, show the cursor.
        """
        plane = self._current_plane.plane
        if plane is None:
            return
        if self._at is None:
            self._begin()
        elif self._gestures.drawing:
            self._gestures.extend(plane, self._at)
            self._gestures.finish()
        else:
            self._gestures.begin(plane, self._at)
        self.changed.emit()

    def next_doubt(self) -> None:
        """Go to the plane and the pixel where a click is likely to help most."""
        plane = self._current_plane.plane
        found = None if plane is None else next_click(self._session, stack_of(self._grid.volume, plane))
        if found is None:
            self.status.emit("nothing has been propagated yet")
            return
        self._current_plane.look_at(found[0])
        self._put((float(found[1][0]), float(found[1][1])))
        self.status.emit(f"plane {found[0].position}: is this pixel part of the object?")

    def follow(self) -> None:
        """Draw the cursor on the plane that is in view now; the camera stays where the user has moved it."""
        if self._at is not None:
            self._put(self._at, see=False)

    def _place(self, *, positive: bool) -> None:
        plane = self._current_plane.plane
        if plane is None:
            return
        if self._at is None:
            self._begin()
            return
        self._prompts.add(plane, Click(self._at, positive))

    def _begin(self) -> None:
        plane = self._current_plane.plane
        if plane is not None:
            top, left, bottom, right = self._current_plane.field(plane)
            self._put(((top + bottom) / 2, (left + right) / 2))

    def _put(self, at: tuple[float, float] | None, *, see: bool = True) -> None:
        plane, before = self._current_plane.plane, self._at
        if at is None or plane is None:
            self._at = None
            self._preview.cursor(None)
        else:
            sides = np.array(self._grid.sides(plane))
            row, col = np.clip(np.rint(at), 0, sides - 1)
            self._at = (float(row), float(col))
            if see:
                self._see(plane)
            self._preview.cursor(self._at)
        if (before is None) != (self._at is None):
            self.changed.emit()

    def _see(self, plane: Plane) -> None:
        """Move the camera so that the cursor is seen."""
        assert self._at is not None
        top, left, bottom, right = self._current_plane.field(plane)
        row, col = self._at
        if top <= row <= bottom and left <= col <= right:
            return
        world = [self._world(plane, at) for at in (self._at, ((top + bottom) / 2, (left + right) / 2))]
        camera = self._viewer.scene.camera
        moved = np.array(camera.center, np.float64)
        moved[-2:] += world[0] - world[1]
        camera.center = tuple(moved)

    def _world(self, plane: Plane, at: tuple[float, float]) -> np.ndarray:
        """The place of a pixel along the two axes that are displayed."""
        data = self._grid.to_layer(plane, [at])[0] * np.asarray(self._grid.factors)
        world = np.asarray(self._grid.layer.data_to_world(data), np.float64)
        dims = self._viewer.dims
        shown: np.ndarray = world[[axis - dims.ndim for axis in dims.displayed]]
        return shown

    def _zoom(self, plane: Plane) -> float:
        """Pixels of the screen for one of the plane."""
        top, _, bottom, _ = self._current_plane.field(plane)
        return float(self._viewer.canvas.size[0] / max(bottom - top, 1e-9))
