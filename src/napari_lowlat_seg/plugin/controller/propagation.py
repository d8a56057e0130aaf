"""An object carried through the planes of an image: what is asked, what becomes of it, where to look then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from napari.utils.notifications import show_warning
from psygnal import Signal

from napari_lowlat_seg.annotation.propagation_run import (
    PropagationRun,
    marks,
    most_uncertain_plane,
    next_anchor,
    stack_of,
)
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.requests import PropagationRequest
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.controller.current_plane import CurrentPlane
from napari_lowlat_seg.plugin.controller.predictions import Predictions
from napari_lowlat_seg.plugin.labels.target import ChosenLabels
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.worker import Worker
from napari_lowlat_seg.propagation.sweep import PropagatedMask

DIRECTIONS = ("both", "forward", "backward")
FLAT = "there is one plane only: look along another axis, or open a volume"


class PropagationController:
    """Carries objects along the axis that the viewer scrolls through.

    Parameters
    ----------
    grid, session, sight, questions, labels, worker
        Those of the conversation.

    Attributes
    ----------
    direction
        "both" ways, "forward" from the first anchor in the range, or "backward" from the last one.
    points
        The Points layer whose points are the seeds; None if none is chosen.
    """

    changed = Signal()
    """What can be undone, or a run has begun or ended."""

    said = Signal(str)
    """The state in a few words."""

    landed = Signal(Plane)
    """The object has a mask on this plane now."""

    stirred = Signal()
    """What `strip` and `position` give may differ; comes often."""

    def __init__(
        self,
        grid: Grid,
        session: Session,
        sight: CurrentPlane,
        questions: Predictions,
        labels: ChosenLabels,
        worker: Worker,
    ) -> None:
        self.direction = "both"
        self.points: Any | None = None
        self._grid, self._session, self._sight = grid, session, sight
        self._questions, self._labels, self._worker = questions, labels, worker
        self._ranges: dict[int, tuple[int, int]] = {}
        self._run: PropagationRun | None = None
        self._sent: PropagationRequest | None = (
            None  # what is under way, in the pixels of its tile if planes are huge
        )
        self._tile: BoundingBox | None = None
        self._pending: Callable[[], None] | None = None

    def attach(self) -> None:
        """Listen to the worker."""
        self._worker.carried.connect(self._carried)
        self._worker.arrived.connect(self._arrived)
        self._sight.moved.connect(self._moved)

    def detach(self) -> None:
        """Stop what is running, and listening."""
        self.stop()
        self._worker.carried.disconnect(self._carried)
        self._worker.arrived.disconnect(self._arrived)
        self._sight.moved.disconnect(self._moved)

    # What there is

    @property
    def deep(self) -> bool:
        """Whether the image has planes to go through at all."""
        return self._grid.volume.ndim > 2

    @property
    def way(self) -> tuple[Plane, ...]:
        """The planes that the viewer scrolls through, in order; empty in 3-D, and where there is only one."""
        plane = self._sight.plane
        way = () if plane is None else tuple(stack_of(self._grid.volume, plane))
        return way if len(way) > 1 else ()

    @property
    def range(self) -> tuple[int, int]:
        """First and last position that may be written to along the way; all of it unless set."""
        way = self.way
        return self._ranges.get(self._axis, (0, len(way) - 1)) if way else (0, 0)

    @range.setter
    def range(self, ends: tuple[int, int]) -> None:
        if self.way:
            low, high = ends
            self._ranges[self._axis] = (min(low, high), max(low, high))
            self.changed.emit()

    @property
    def running(self) -> bool:
        """Whether objects are being carried."""
        return self._run is not None

    @property
    def position(self) -> int:
        """Where the plane in view is on the way; -1 in 3-D."""
        plane = self._sight.plane
        return -1 if plane is None else plane.position

    def strip(self) -> list[tuple[int, float | None]]:
        """(position, confidence) of every plane of the way with a mask; None where a person has spoken."""
        return [(mark.plane.position, mark.confidence) for mark in marks(self._session, self.way)]

    # Verbs

    def carry(self) -> None:
        """Carry the object in hand from the planes where it is shown through the others."""
        self._begin(lambda: PropagationRun.propagation(self._session, self._planes()), "propagating")

    def interpolate(self) -> None:
        """Mix the object's shapes between the planes where it is shown, without the network."""
        self._begin(lambda: PropagationRun.interpolation(self._session, self._planes()), "interpolating")

    def all_seeds(self) -> None:
        """Every point of the Points layer becomes an object of its own, carried through the range."""
        points = self.points
        if points is None:
            self.said.emit("choose a Points layer with one point in each object first")
            return
        try:
            self._labels.ensure()
        except ValueError as error:
            show_warning(str(error))
            return
        self._begin(lambda: self._sown(points), "carrying the seeds")

    def next_anchor(self) -> None:
        """Look at the next plane where the object was shown by hand."""
        plane = self._sight.plane
        if plane is None or not self.way:
            self.said.emit(FLAT)
            return
        self._visit(next_anchor(self._session, self.way, plane), "no plane of this way has prompts yet")

    def most_uncertain_plane(self) -> None:
        """Look at the carried plane where a correction is likely to matter most."""
        self._visit(most_uncertain_plane(self._session, self.way), "nothing has been carried yet")

    def look_at(self, position: int) -> None:
        """Look at a plane of the way."""
        if 0 <= position < len(self.way):
            self._sight.look_at(self.way[position])

    def stop(self) -> None:
        """End a run; what it has brought stays, as one step of undo."""
        self._pending = None
        run, self._run = self._run, None
        if run is not None:
            self._worker.stop_carrying()
            run.stop()
            self.changed.emit()

    def resume(self) -> None:
        """Begin what waited for a mask or for labels, if they are there now."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending()

    # How it is done

    @property
    def _axis(self) -> int:
        return max(axis for axis, position in enumerate(self.way[0].index) if position is not None)

    def _planes(self) -> tuple[Plane, ...]:
        """The planes of the range, on the side of the anchors where the direction leads."""
        way, (low, high) = self.way, self.range
        planes = way[low : high + 1]
        anchors = [mark.plane.position for mark in marks(self._session, planes) if mark.anchor]
        if anchors and self.direction == "forward":
            planes = way[min(anchors) : high + 1]
        elif anchors and self.direction == "backward":
            planes = way[low : max(anchors) + 1]
        return planes

    def _begin(self, make: Callable[[], PropagationRun], what: str) -> None:
        """Start a run, once all prompts are answered for good and the labels are known."""
        if not self.way:
            self.said.emit(FLAT)
            return
        self.stop()
        if self._session.unanswered or self._questions.asking or self._labels.reading:
            self._pending = lambda: self._begin(make, what)
            self.said.emit(f"{what} begins when the mask is there")
            self._questions.ask()
            return
        try:
            self._run = make()
            self._sent, sources, self._tile = self._questions.sources.of_walk(self._run.request)
        except ValueError as error:
            show_warning(str(error))
            self.stop()
            return
        self._worker.propagate(self._sent, sources, what)
        self.changed.emit()

    def _sown(self, points: Any) -> PropagationRun:
        planes, seeds = self._planes(), self._seeds(points)
        inside = [(plane, prompt) for plane, prompt in seeds if plane in set(planes)]
        return PropagationRun.seeds(self._session, planes, inside or seeds)

    def _seeds(self, points: Any) -> list[tuple[Plane, Prompt]]:
        """A click for every point of a layer that lies on the image; raises ValueError for other axes."""
        if points.ndim != self._grid.ndim:
            raise ValueError(
                f"seeds for {self._grid.layer.name!r} need points with {self._grid.ndim} coordinates, got "
                f"{points.ndim} in {points.name!r}; make the layer while the image is open"
            )
        inverse = np.linalg.inv(self._grid.matrix)
        seeds: list[tuple[Plane, Prompt]] = []
        for point in points.data:
            world = np.asarray(points.data_to_world(point), dtype=np.float64)
            at = inverse[:-1, :-1] @ world + inverse[:-1, -1]
            try:
                plane, where = self._grid.from_layer(at[None], self.way[0].axes)
            except ValueError:
                continue  # beside the image
            if self._grid.inside(plane, where)[0]:
                seeds.append((plane, Click((float(where[0, 0]), float(where[0, 1])))))
        return seeds

    def _visit(self, plane: Plane | None, nothing: str) -> None:
        if plane is None:
            self.said.emit(nothing)
            return
        self._sight.look_at(plane)
        confidence = self._session.state(plane).confidence
        sure = "prompts" if confidence is None else f"{100 * confidence:.0f} % sure"
        self.said.emit(f"plane {plane.position}: {sure}")

    def _moved(self) -> None:
        self.stirred.emit()  # a signal cannot be connected to another one

    # What the worker says

    def _carried(self, walk: Any, number: int, found: PropagatedMask[Any]) -> None:
        run = self._run
        if run is None or walk is not self._sent:
            return
        if not run.wanted:  # the user has done something else
            self.stop()
            return
        if self._tile is not None:
            sides = self._session.volume.sides(found.plane)
            found = replace(found, prediction=found.prediction.on(sides, self._tile.corner))
        try:
            if run.apply(number, found):
                self.landed.emit(found.plane)
                self.stirred.emit()
        except (ValueError, OSError) as error:  # a full disk under the labels, for one
            show_warning(str(error))
            self.stop()

    def _arrived(self, walk: Any, whole: bool) -> None:
        run = self._run
        if run is None or walk is not self._sent:
            return
        if not whole:  # it failed, or was cancelled elsewhere
            self.stop()
            return
        self._run = None
        run.finish()
        self.changed.emit()
        self.said.emit(f"carried to {run.reached} planes" if run.reached else "the object ends here")
