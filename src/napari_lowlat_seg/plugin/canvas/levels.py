"""The mask of the first click larger and smaller: its levels, on the plane in view.

A key that is faster than the model waits in the queue of actions, as everything does that needs a mask.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from psygnal import Signal

from napari_lowlat_seg.annotation.action_queue import ActionQueue
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import Patch
from napari_lowlat_seg.core.masks import LEVEL_NAMES
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.controller.current_plane import CurrentPlane
from napari_lowlat_seg.plugin.controller.predictions import Predictions

Way = Literal["next", "previous", "larger", "smaller"]


class Levels:
    """Shows the levels of a mask, and lets the user choose one.

    Parameters
    ----------
    session, predictions, current_plane, actions
        Those of the controller.
    """

    chosen = Signal(Plane)
    """The mask of a plane has another level, or there is none to choose."""

    waits = Signal()
    """A choice waits for the mask."""

    status = Signal(str)
    """Why there is nothing to choose."""

    def __init__(
        self, session: Session, predictions: Predictions, current_plane: CurrentPlane, actions: ActionQueue
    ) -> None:
        self._session, self._predictions = session, predictions
        self._current_plane, self._actions = current_plane, actions

    def place(self, plane: Plane | None) -> tuple[int, int, str] | None:
        """Which level is shown, from the smallest, 1, of how many, and its name; None without a choice."""
        levels = () if plane is None else self._session.levels(plane)
        if plane is None or len(levels) < 2:
            return None
        level = self._session.state(plane).level
        return levels.index(level) + 1, len(levels), LEVEL_NAMES[level]

    def others(self, plane: Plane) -> list[Patch]:
        """The masks of the next larger and the next smaller level, once the user has begun to choose.

        All of them would hide the rim of a small mask.
        """
        state, session = self._session.state(plane), self._session
        if state.first is None:
            return []
        levels = session.levels(plane)
        beside = {_next(levels, state.level, way) for way in ("larger", "smaller")} - {state.level}
        others = (_with_level(state, level) for level in sorted(beside))
        return [patch for other in others if (patch := session.finished(plane, other)) is not None]

    @property
    def at_hand(self) -> bool:
        """Whether the keys would choose something on the plane in view, now or when its mask is there."""
        plane, session = self._current_plane.plane, self._session
        if plane is None:
            return False
        awaited = session.state(plane).begun and session.request(plane) is not None
        return bool(self._actions) or awaited or len(session.levels(plane)) > 1

    @property
    def without_choice(self) -> PlaneState | None:
        """The state of the plane in view if it has prompts; None else. For planes not `at_hand`."""
        plane = self._current_plane.plane
        state = None if plane is None else self._session.state(plane)
        return state if state is not None and state.prompts else None

    def refuse(self) -> None:
        """Say why there is no other level on the plane in view, and how to leave it by keyboard."""
        if (plane := self._current_plane.plane) is not None:
            self.status.emit(f"{self._why_not(plane)} The same key again leaves the image.")

    def next(self) -> None:
        """Show the next larger level, and after the largest the smallest."""
        self._go("next")

    def previous(self) -> None:
        """Show the next smaller level, and after the smallest the largest."""
        self._go("previous")

    def larger(self) -> None:
        """Show the next larger level, if there is one."""
        self._go("larger")

    def smaller(self) -> None:
        """Show the next smaller level, if there is one."""
        self._go("smaller")

    def _go(self, way: Way) -> None:
        plane = self._current_plane.plane
        if plane is None:
            return
        if not self._actions.do(lambda: self._choose(plane, way), lambda: self._ready(plane), optional=True):
            self._predictions.ask(again=True)
            self.waits.emit()

    def _ready(self, plane: Plane) -> bool:
        """Whether the mask of the prompts is there, or will not come."""
        return self._session.request(plane) is None or plane in self._session.unanswered

    def _choose(self, plane: Plane, way: Way) -> None:
        levels = self._session.levels(plane)
        if len(levels) < 2:
            self.status.emit(self._why_not(plane))
            return
        self._session.choose_level(plane, _next(levels, self._session.state(plane).level, way))
        self.status.emit("")
        self.chosen.emit(plane)

    def _why_not(self, plane: Plane) -> str:
        if not self._session.levels(plane):
            return "Larger and smaller masks are offered after the first click on an object."
        return "Larger and smaller masks of this click are nearly the same, or empty."


@lru_cache(maxsize=8)
def _with_level(state: PlaneState, level: int) -> PlaneState:
    """As `PlaneState.with_level`; the last ones stay the same, so that their masks are finished once."""
    return state.with_level(level)


def _next(levels: tuple[int, ...], now: int, way: Way) -> int:
    """The level to show after another one, of levels from the smallest to the largest."""
    place = levels.index(now) + (1 if way in ("next", "larger") else -1)
    if way in ("next", "previous"):
        return levels[place % len(levels)]
    return levels[min(max(place, 0), len(levels) - 1)]
