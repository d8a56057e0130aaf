"""The current object propagated through planes: what is requested, and which planes to look at then."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from psygnal import Signal

from napari_lowlat_seg.annotation.action_queue import ActionQueue
from napari_lowlat_seg.annotation.propagation_run import (
    PropagationRun,
    marks,
    most_uncertain_plane,
    next_anchor,
    refused_planes,
    stack_of,
)
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.requests import PropagationRequest
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.controller.current_plane import CurrentPlane
from napari_lowlat_seg.plugin.controller.predictions import Predictions
from napari_lowlat_seg.plugin.controller.situation import Progress
from napari_lowlat_seg.plugin.controller.view_state import StackState
from napari_lowlat_seg.plugin.labels.target import ChosenLabels
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.layers.napari_layers import Listener
from napari_lowlat_seg.plugin.notices import show_warning
from napari_lowlat_seg.plugin.worker import Worker
from napari_lowlat_seg.propagation.sweep import PropagatedMask

ONE_PLANE = "there is one plane only: look along another axis, or open a volume"


class PropagationController(Listener):
    """Propagates objects along the axis that the viewer scrolls through.

    Parameters
    ----------
    grid, session, current_plane, predictions, labels, worker, actions
        Those of the controller.

    Attributes
    ----------
    direction
        "both" ways, "forward" from the first anchor in the range, or "backward" from the last one.
    points
        The Points layer whose points are the seeds; None if none is chosen.
    """

    changed = Signal()
    """What can be undone, or a run has begun or ended."""

    status = Signal(str)
    """What is going on, in a few words."""

    landed = Signal(Plane)
    """The object has a mask on this plane now."""

    progressed = Signal()
    """`state` may be another one; comes with every plane."""

    def __init__(
        self,
        grid: Grid,
        session: Session,
        current_plane: CurrentPlane,
        predictions: Predictions,
        labels: ChosenLabels,
        worker: Worker,
        actions: ActionQueue,
    ) -> None:
        self.direction = "both"
        self.points: Any | None = None
        self._grid, self._session, self._current_plane = grid, session, current_plane
        self._predictions, self._labels, self._worker = predictions, labels, worker
        self._actions = actions
        self._ranges: dict[int, tuple[int, int]] = {}
        self._run: PropagationRun | None = None
        self._what, self._begun = "", 0.0
        self._sent: PropagationRequest | None = None  # in pixels of the tile if planes are huge
        self._tile: BoundingBox | None = None

    def _slots(self) -> tuple[tuple[Any, Any], ...]:
        worker, moved = self._worker, self._current_plane.moved
        ends = (worker.propagation_ended, self._ended)
        return (worker.propagated, self._propagated), ends, (moved, self._moved)

    def detach(self) -> None:
        """Stop what is running, and listening."""
        self.stop()
        super().detach()

    # State

    @property
    def state(self) -> StackState:
        """What the widget shows along the planes; takes time for planes with a mask, not for the others."""
        plane, stack = self._current_plane.plane, self.stack
        refused = refused_planes(self._session, stack)
        return StackState(
            len(stack),
            self._range_of(stack),
            self.direction,
            -1 if plane is None else plane.position,
            tuple((mark.plane.position, mark.confidence) for mark in marks(self._session, stack)),
            tuple(sorted((one.plane.position, one.reason) for one in refused.values())),
            self._grid.volume.ndim > 2,
        )

    @property
    def stack(self) -> Sequence[Plane]:
        """The planes that the viewer scrolls through, in order; empty in 3-D, and where there is only one."""
        plane = self._current_plane.plane
        stack = () if plane is None else stack_of(self._grid.volume, plane)
        return stack if len(stack) > 1 else ()

    @property
    def range(self) -> tuple[int, int]:
        """First and last position of the stack that a propagation may write to; all of it unless set."""
        return self._range_of(self.stack)

    @range.setter
    def range(self, ends: tuple[int, int]) -> None:
        if stack := self.stack:
            low, high = ends
            self._ranges[_axis(stack)] = (min(low, high), max(low, high))
            self.changed.emit()

    @property
    def progress(self) -> Progress | None:
        """How far the run under way is; None without one."""
        run = self._run
        if run is None:
            return None
        spent = time.monotonic() - self._begun
        left = spent / run.came * run.left if run.came and spent > 2 else None
        return Progress(self._what, run.done, run.expected, left)

    @property
    def running(self) -> bool:
        """Whether objects are being propagated."""
        return self._run is not None

    # What the user does

    def propagate(self) -> None:
        """Propagate the current object from the planes with prompts through the others."""
        stack = self.stack
        self._begin(
            lambda: PropagationRun.propagation(self._session, self._planes(stack)), "propagating", stack
        )

    def interpolate(self) -> None:
        """Interpolate the object's shape between the planes with prompts, without the model."""
        stack = self.stack
        self._begin(
            lambda: PropagationRun.interpolation(self._session, self._planes(stack)), "interpolating", stack
        )

    def all_seeds(self) -> None:
        """Make every point of the Points layer an object of its own, propagated through the range."""
        points = self.points
        if points is None:
            self.status.emit("choose a Points layer with one point in each object first")
            return
        try:
            self._labels.ensure()
        except ValueError as error:
            show_warning(str(error))
            return
        stack = self.stack
        self._begin(lambda: self._seed_run(points, stack), "propagating the seeds", stack)

    def next_anchor(self) -> None:
        """Show the next plane with prompts."""
        plane, stack = self._current_plane.plane, self.stack
        if plane is None or not stack:
            self.status.emit(ONE_PLANE)
            return
        self._visit(next_anchor(self._session, stack, plane), "no plane along this axis has prompts yet")

    def most_uncertain_plane(self) -> None:
        """Show the plane where a correction is likely to matter most; it may be one behind an end."""
        self._visit(most_uncertain_plane(self._session, self.stack), "nothing has been propagated yet")

    def look_at(self, position: int) -> None:
        """Show the plane at a position of the stack, and say why it has no mask if a sweep ended there."""
        if not 0 <= position < len(self.stack):
            return
        plane = self.stack[position]
        if refused_planes(self._session, [plane]):
            self._visit(plane, "")
        else:
            self._current_plane.look_at(plane)

    def stop(self) -> None:
        """End a run; new masks stay, as one step of undo, and old ones where no new one has come."""
        run, self._run = self._run, None
        if run is not None:
            self._worker.stop_propagation()
            run.stop()
            kept = ", the others keep their masks of before" if run.old else ""
            self.status.emit(f"stopped after {run.done} of {run.expected} planes{kept}")
            self.changed.emit()

    # Steps

    def _range_of(self, stack: Sequence[Plane]) -> tuple[int, int]:
        return self._ranges.get(_axis(stack), (0, len(stack) - 1)) if stack else (0, 0)

    def _planes(self, stack: Sequence[Plane]) -> Sequence[Plane]:
        """The planes of the range, on the side of the anchors where the direction leads."""
        low, high = self._range_of(stack)
        planes = stack[low : high + 1]
        anchors = [mark.plane.position for mark in marks(self._session, planes) if mark.anchor]
        if anchors and self.direction == "forward":
            planes = stack[min(anchors) : high + 1]
        elif anchors and self.direction == "backward":
            planes = stack[low : max(anchors) + 1]
        return planes

    def _begin(self, make: Callable[[], PropagationRun], what: str, stack: Sequence[Plane]) -> None:
        """Start a run, once all prompts have their last mask and the labels are known."""
        if not stack:
            self.status.emit(ONE_PLANE)
            return
        self.stop()
        if not self._actions.do(lambda: self._start(make, what), self._can_start):
            self._predictions.ask(again=True)
            self.changed.emit()

    def _can_start(self) -> bool:
        return self._session.answered and not self._labels.reading

    def _start(self, make: Callable[[], PropagationRun], what: str) -> None:
        self.stop()
        try:
            self._run = make()
            self._sent, sources, self._tile = self._predictions.sources.of_propagation(self._run.request)
        except ValueError as error:
            show_warning(str(error))
            self.stop()
            return
        self._what, self._begun = what, time.monotonic()
        self._worker.propagate(self._sent, sources, what)
        self.changed.emit()

    def _seed_run(self, points: Any, stack: Sequence[Plane]) -> PropagationRun:
        planes, seeds = self._planes(stack), self._seeds(points, stack)
        inside = [(plane, prompt) for plane, prompt in seeds if plane in set(planes)]
        return PropagationRun.seeds(self._session, planes, inside or seeds)

    def _seeds(self, points: Any, stack: Sequence[Plane]) -> list[tuple[Plane, Prompt]]:
        """A click for every point of a layer that lies on the image.

        Raises ValueError for a layer with another number of axes.
        """
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
                plane, where = self._grid.from_layer(at[None], stack[0].axes)
            except ValueError:
                continue  # beside the image
            if self._grid.inside(plane, where)[0]:
                seeds.append((plane, Click((float(where[0, 0]), float(where[0, 1])))))
        return seeds

    def _visit(self, plane: Plane | None, nothing: str) -> None:
        if plane is None:
            self.status.emit(nothing)
            return
        self._current_plane.look_at(plane)
        confidence = self._session.state(plane).confidence
        said = "prompts" if confidence is None else f"{100 * confidence:.0f} % sure"
        if (refused := refused_planes(self._session, [plane]).get(plane)) is not None:
            said = f"no mask; it {refused.reason}"
        self.status.emit(f"plane {plane.position}: {said}")

    def _moved(self) -> None:
        self.progressed.emit()

    # What the worker reports

    def _propagated(self, request: Any, number: int, found: PropagatedMask[Any]) -> None:
        run = self._run
        if run is None or request is not self._sent:
            return
        if not run.active:  # the user has done something else
            self.stop()
            return
        if self._tile is not None:
            sides = self._session.volume.sides(found.plane)
            found = replace(found, prediction=found.prediction.on(sides, self._tile.corner))
        try:
            if run.apply(number, found):
                self.landed.emit(found.plane)
                self.progressed.emit()
        except (ValueError, OSError) as error:  # a full disk under the labels, for one
            show_warning(str(error))
            self.stop()

    def _ended(self, request: Any, complete: bool) -> None:
        run = self._run
        if run is None or request is not self._sent:
            return
        if not complete:  # it failed, or was cancelled elsewhere
            self.stop()
            return
        self._run = None
        run.finish()
        self.changed.emit()
        self.status.emit(_reached(run))


def _axis(stack: Sequence[Plane]) -> int:
    """The axis along which the planes of a stack lie."""
    return max(axis for axis, position in enumerate(stack[0].index) if position is not None)


def _reached(run: PropagationRun) -> str:
    """What a complete run tells: "propagated to 25 planes (planes 48-72)", and why it ended there."""
    positions = sorted(plane.position for plane in run.reached)
    if not run.count:
        said = "nothing to propagate to: every plane there has prompts, or a mask drawn or edited by hand"
    elif not positions:
        said = "the object ends here"
    elif len(positions) == 1:
        said = f"propagated to 1 plane (plane {positions[0]})"
    else:
        said = f"propagated to {len(positions)} planes (planes {positions[0]}-{positions[-1]})"
    return "; ".join([said, *run.notes])
