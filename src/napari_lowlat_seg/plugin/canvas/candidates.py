"""What else a click can mean: the candidates of the current object on the plane in view.

They are asked for behind the first mask, so that a key shows the next one at once; a key that is faster than
the model waits in the queue of actions, as everything does that needs an answer.
"""

from __future__ import annotations

from typing import Any, Literal
from weakref import WeakKeyDictionary

from psygnal import Signal

from napari_lowlat_seg.annotation.action_queue import ActionQueue
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.requests import Request
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.controller.current_plane import CurrentPlane
from napari_lowlat_seg.plugin.controller.predictions import Predictions
from napari_lowlat_seg.plugin.layers.napari_layers import Listener
from napari_lowlat_seg.plugin.worker import Worker

Way = Literal["next", "previous", "larger", "smaller"]


class Candidates(Listener):
    """The masks that the first prompt on a plane can mean, and which one the user has chosen.

    Parameters
    ----------
    session, predictions, worker, current_plane, actions
        Those of the controller.
    """

    chosen = Signal(Plane)
    """The mask of a plane is another candidate, or there is none to choose."""

    known = Signal()
    """The candidates of a plane have been found."""

    status = Signal(str)
    """Why there is nothing to choose."""

    def __init__(
        self,
        session: Session,
        predictions: Predictions,
        worker: Worker,
        current_plane: CurrentPlane,
        actions: ActionQueue,
    ) -> None:
        self._session, self._predictions, self._worker = session, predictions, worker
        self._current_plane, self._actions = current_plane, actions
        # By the mask that was predicted first, which all states of a choice share, also those of undo.
        self._others: WeakKeyDictionary[SoftMask, tuple[SoftMask, ...]] = WeakKeyDictionary()
        self._asked: Request | None = None
        # What was sent: the request for the whole plane, and the tile of a huge one that was sent instead.
        self._sent: WeakKeyDictionary[Request, tuple[Request, BoundingBox | None]] = WeakKeyDictionary()

    def _slots(self) -> tuple[tuple[Any, Any], ...]:
        return (self._worker.candidates_found, self._found), (self._worker.loaded, self._loaded)

    def detach(self) -> None:
        """Stop listening; masks that are on their way are dropped."""
        self._asked = None
        super().detach()

    def ask(self, plane: Plane) -> None:
        """Have the candidates found on a plane whose first prompt is answered, unless they are known."""
        request = self._request(plane)
        if request is None or request.previous in self._others:
            return
        if not self._possible:
            self._others[request.previous] = ()  # type: ignore[index]
        elif self._asked is None or self._asked.previous is not request.previous:
            self._asked = request
            sent, source, tile = self._predictions.in_its_tile(request)
            self._sent[sent] = request, tile
            self._worker.candidates(sent, source)

    def place(self, plane: Plane | None) -> tuple[int, int] | None:
        """Which candidate is shown, counted from 1, and how many there are; None where they are not known."""
        masks = [] if plane is None else self._masks(plane)
        return (self._session.state(plane).candidate + 1, len(masks)) if plane and len(masks) > 1 else None

    def others(self, plane: Plane) -> list[Patch]:
        """The masks of those that are not shown, once the user has begun to choose."""
        state, session = self._session.state(plane), self._session
        if state.first is None:
            return []
        return [
            patch
            for number, mask in enumerate(self._masks(plane))
            if number != state.candidate
            and (patch := session.finished(plane, state.with_candidate(number, mask))) is not None
        ]

    @property
    def at_hand(self) -> bool:
        """Whether the keys would choose something on the plane in view, now or when its mask is there."""
        plane = self._current_plane.plane
        if plane is None:
            return False
        state = self._session.state(plane)
        first = state.pending and state.begun
        masks = self._masks(plane)
        return bool(self._actions) or first or len(masks) > 1 or (state.ambiguous and not masks)

    @property
    def without_choice(self) -> PlaneState | None:
        """The state of the plane in view if it has prompts; None else. For planes not `at_hand`."""
        plane = self._current_plane.plane
        state = None if plane is None else self._session.state(plane)
        return state if state is not None and state.prompts else None

    def refuse(self) -> None:
        """Say why there is no other meaning on the plane in view, and how to leave it by keyboard."""
        if (plane := self._current_plane.plane) is not None:
            self.status.emit(f"{self._why_not(plane)} The same key again leaves the image.")

    def next(self) -> None:
        """Show what the prompts can mean next."""
        self._go("next")

    def previous(self) -> None:
        """Show the candidate before."""
        self._go("previous")

    def larger(self) -> None:
        """Show the candidate that is the next in size."""
        self._go("larger")

    def smaller(self) -> None:
        """Show the candidate that is the next smaller one."""
        self._go("smaller")

    def _go(self, way: Way) -> None:
        plane = self._current_plane.plane
        if plane is None:
            return
        self._asked = None  # it may have been dropped for another image
        if not self._actions.do(lambda: self._choose(plane, way), lambda: self._ready(plane), optional=True):
            self._predictions.ask(again=True)
            self.known.emit()

    def _ready(self, plane: Plane) -> bool:
        """Whether all is known that a choice needs; what is not is asked for."""
        session = self._session
        if session.request(plane) is not None:
            return plane in session.unanswered
        request = session.candidates_request(plane)
        if request is None or request.previous in self._others:
            return True
        self.ask(plane)
        return request.previous in self._others

    def _choose(self, plane: Plane, way: Way) -> None:
        masks = self._masks(plane)
        if len(masks) < 2:
            self.status.emit(self._why_not(plane))
            return
        number = _next(masks, self._session.state(plane).candidate, way)
        self._session.choose_candidate(plane, number, masks[number])
        self.status.emit("")
        self.chosen.emit(plane)

    def _why_not(self, plane: Plane) -> str:
        if self._session.candidates_request(plane) is None:
            return "Other meanings are offered after the first click on an object."
        if not self._possible:
            return "This model has one mask for a click."
        return "The model finds one meaning for this click."

    @property
    def _possible(self) -> bool:
        return bool(self._worker.facts.get("candidates"))

    def _request(self, plane: Plane) -> Request | None:
        return self._session.candidates_request(plane)

    def _masks(self, plane: Plane) -> list[SoftMask]:
        """All candidates of a plane, the one that was predicted first in front; none where not known."""
        request = self._request(plane)
        if request is None or request.previous is None or request.previous not in self._others:
            return []
        return [request.previous, *self._others[request.previous]]

    def _found(self, sent: Request, masks: tuple[SoftMask, ...]) -> None:
        if sent not in self._sent:
            return  # another session's
        request, tile = self._sent[sent]
        if request is self._asked:
            self._asked = None
        if request.previous is not None:
            if tile is not None:
                sides = self._session.volume.sides(request.plane)
                masks = tuple(mask.on(sides, tile.corner) for mask in masks)
            self._others[request.previous] = masks
            self.known.emit()

    def _loaded(self, facts: object) -> None:
        """Another model finds other candidates."""
        self._others.clear()
        self._asked = None

    def forget(self) -> None:
        """The worker has dropped what it was asked for."""
        self._asked = None


def _next(masks: list[SoftMask], now: int, way: Way) -> int:
    """The number of the mask to show after number `now`; the largest and the smallest one are ends."""
    if way in ("next", "previous"):
        return (now + (1 if way == "next" else -1)) % len(masks)
    order = sorted(range(len(masks)), key=lambda number: (masks[number].pixels, number))
    place = order.index(now) + (1 if way == "larger" else -1)
    return order[min(max(place, 0), len(order) - 1)]
