"""Which predictions a session requests from the worker, and what becomes of them.

One request is under way at a time: first for the plane in view, then for any other that waits. A stroke being
drawn and a resting mouse request previews, which are shown and not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from psygnal import Signal

from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import TILING, BoundingBox, Patch, Tiling
from napari_lowlat_seg.core.masks import SoftMask, postprocess_patch
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.requests import PlaneSource, Request
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.plugin.controller.plane_sources import FieldOfView, PlaneSources, ScrollDirection
from napari_lowlat_seg.plugin.controller.situation import News
from napari_lowlat_seg.plugin.layers.napari_layers import Listener
from napari_lowlat_seg.plugin.layers.preview import Preview
from napari_lowlat_seg.plugin.layers.prompt_layers import PromptLayers
from napari_lowlat_seg.plugin.worker import Worker

Reason = Literal["stroke", "hover"]


class Predictions(Listener):
    """The predictions of one session.

    Parameters
    ----------
    session
        Whose requests are sent, and which takes the masks.
    worker
        Predicts; other sessions may use it too.
    name, tiling, field
        See `PlaneSources`.

    Attributes
    ----------
    sources
        Where the pixels of a request come from.
    """

    landed = Signal(Plane, bool)
    """The session has another mask on this plane; whether it is the last one of its request."""

    previewed = Signal(str, Plane, Patch)
    """A mask that is not kept: why it was requested ("stroke" or "hover"), its plane, the mask."""

    status = Signal(News)
    """How long a prediction took, or why there is none."""

    refused = Signal()
    """A request cannot be answered; the session knows why."""

    postponed = Signal()
    """`postpone` is another one."""

    def __init__(
        self,
        session: Session,
        worker: Worker,
        name: str,
        tiling: Tiling = TILING,
        field: FieldOfView | None = None,
    ) -> None:
        self.session = session
        self.sources = PlaneSources(session, name, tiling, field)
        self._worker = worker
        self._postpone = self._drawing = False
        self._planes_ahead = 0
        self._direction = ScrollDirection()
        self._view: Plane | None = None
        self._embedding: Any = None  # key of the source that is embedded before the first click
        # What was sent; for a tile of a huge plane, the request for the whole plane, and which tile.
        self._sent: WeakKeyDictionary[Request, tuple[Request, BoundingBox] | None] = WeakKeyDictionary()
        self._preview: tuple[Request, Reason] | None = None
        self._requested: Request | None = None
        self._timed, self._first = 0, 0.0  # ticket of the last prediction, seconds to its first mask
        self._given_up: set[int] = set()  # cancelled tickets: scrolling does not request them again
        self._ended: set[int] = set()  # tickets during which the model's process has ended

    def attach(self) -> None:
        """Listen, and choose the intensity window of the volume if it has none."""
        super().attach()
        self._note_model(self._worker.facts)
        if self.session.volume.window is None:
            self._worker.run(self.session.volume.with_window, self._windowed)

    def detach(self) -> None:
        """Stop listening; what is on its way is dropped."""
        self.forget_preview()
        self._view = self._requested = None
        self._embed_ahead()
        super().detach()

    def look(self, plane: Plane | None) -> None:
        """Embed the plane in view before its first click, and request first what waits there."""
        if plane is not None:
            self._direction = self._direction.after(self._view, plane)
        self._view = plane
        if plane is not None and self._ready:
            self._embed(self.sources.in_view(plane))
            self.ask()
        self._embed_ahead()

    def check_pixels(self) -> bool:
        """Whether the pixels in view have changed in place; then they are embedded anew."""
        if self._view is None or not self._ready or not self.sources.has_changed(self._view):
            return False
        self.look(self._view)
        return True

    def see(self, *, window: tuple[float, float] | None = None, spacing: tuple[float, ...] = ()) -> None:
        """Predict through another intensity window, or with another size of a voxel, from now on."""
        volume = self.session.volume
        changed = replace(volume, window=window or volume.window, spacing=spacing or volume.spacing)
        if (changed.window, changed.spacing) != (volume.window, volume.spacing):
            self.session.volume = changed
            self.look(self._view)

    def panned(self) -> None:
        """Another part of the plane is in view: on a huge plane, another tile may be."""
        plane = self._view
        if plane is not None and self._ready and self.sources.is_tiled(plane):
            source = self.sources.in_view(plane)
            if source is not None and source.key != self._embedding:
                self._embed(source)
                self.ask()

    @property
    def planes_ahead(self) -> int:
        """How many planes are embedded ahead of the one in view, and then behind it; 0 for none."""
        return self._planes_ahead

    @planes_ahead.setter
    def planes_ahead(self, planes: int) -> None:
        self._planes_ahead = planes
        self._embed_ahead()

    @property
    def drawing(self) -> bool:
        """Whether a stroke is being drawn; nothing is embedded ahead then."""
        return self._drawing

    @drawing.setter
    def drawing(self, drawing: bool) -> None:
        if drawing != self._drawing:
            self._drawing = drawing
            self._embed_ahead()

    @property
    def postpone(self) -> bool:
        """Whether prompts gather and nothing is predicted."""
        return self._postpone

    @postpone.setter
    def postpone(self, postpone: bool) -> None:
        self._postpone = postpone
        if not postpone:
            self.ask()
        self.postponed.emit()

    def hold(self, down: bool) -> None:
        """Postpone predictions while a key is down."""
        self.postpone = down

    @property
    def pending(self) -> bool:
        """Whether a request is under way whose last mask has not come yet."""
        return self._requested is not None and self._worker.busy

    def ask(self, *, again: bool = False) -> None:
        """Request the masks that the session waits for, unless they are postponed.

        First the one in view, then those of the current object, then those of objects being accepted.
        With `again` also those that were cancelled.
        """
        if again:
            self._given_up.clear()
        if not self._ready or self._postpone:
            return
        waiting = [one for one in self.session.requests() if one.ticket not in self._given_up]
        if waiting:
            now = self.session.current
            in_view = (one for one in waiting if one.plane == self._view and one.object == now)
            request = next(in_view, waiting[0])
            if not (self.pending and self._requested and self._requested.ticket == request.ticket):
                self._requested = request
                self._send(request)

    def ask_preview(self, plane: Plane, prompts: Sequence[Prompt], reason: Reason) -> None:
        """Request what `prompts` would give on top of those given; a newer request replaces this one."""
        if self._ready and not self._postpone:
            request = self.session.preview_request(plane, prompts)
            self._preview = (request, reason)
            self._send(request)

    def ask_ahead(self, plane: Plane, prompts: Sequence[Prompt]) -> None:
        """Predict what `prompts` would give on top of those given, before they are: the button is down.

        napari needs as long to add a point as the model to predict a mask, and so both are done at once.
        """
        if self._ready and not self._postpone:
            sent, source, _ = self.sources.of_request(self.session.preview_request(plane, prompts))
            self._worker.predict_ahead(sent, source)

    def forget_preview(self) -> None:
        """Drop the preview under way."""
        self._preview = None

    def cancel(self) -> None:
        """Stop what is running. Prompts stay, and the next one requests a mask for all of them."""
        self.forget_preview()
        self._requested = None
        self._given_up |= {request.ticket for request in self.session.requests()}
        self._worker.cancel()

    @property
    def _ready(self) -> bool:
        return self.session.volume.window is not None

    def _embed(self, source: PlaneSource | None) -> None:
        self._embedding = None if source is None else source.key
        if source is not None:
            self._worker.embed(source)

    def _embed_ahead(self) -> None:
        """Tiles are not embedded ahead: the next click may be anywhere on the next plane."""
        view = self._view
        if view is None or not self._ready or self._drawing or self.sources.is_tiled(view):
            self._worker.embed_ahead(())
        else:
            planes = self._direction.planes(view, self.session.volume.shape, self._planes_ahead)
            self._worker.embed_ahead([self.sources.source(plane) for plane in planes])

    def _send(self, request: Request) -> None:
        sent, source, tile = self.sources.of_request(request)
        self._sent[sent] = None if tile is None else (request, tile)
        self._worker.predict(sent, source)

    # What the worker reports

    def _slots(self) -> tuple[tuple[Any, Any], ...]:
        worker = self._worker
        return (
            (worker.predicted, self._predicted),
            (worker.failed, self._failed),
            (worker.refused, self._refuse),
            (worker.loaded, self._loaded),
        )

    def _windowed(self, volume: Volume) -> None:
        self.session.volume = volume
        self.look(self._view)
        self.postponed.emit()

    def _failed(self, sentence: str) -> None:
        self.status.emit(News(sentence))

    def _refuse(self, sent: Request, sentence: str) -> None:
        """Note that a request cannot be answered; once more if the model's process has ended over it."""
        if sent not in self._sent:
            return  # another session's
        whole = self._sent[sent]
        request = sent if whole is None else whole[0]
        if self._requested is request:
            self._requested = None
        if self._worker.has_model or request.ticket in self._ended:
            self.session.refuse(request, sentence)
            self.refused.emit()
            self.ask()
        else:
            self._ended.add(request.ticket)  # it is requested once more when the model is loaded anew

    def _loaded(self, facts: dict[str, Any]) -> None:
        """Another model may predict what the last one could not."""
        self._given_up.clear()
        self._requested = None
        self.session.ask_again()
        self._note_model(facts)
        self.look(self._view)

    def _note_model(self, facts: dict[str, Any]) -> None:
        """Keep with the session what predicts its masks; the number of a process says nothing later."""
        facts = {name: fact for name, fact in facts.items() if name != "process"}
        if facts and facts != self.session.model:
            self.session.model = facts

    def _predicted(self, request: Request, prediction: SoftMask, final: bool, seconds: float) -> None:
        if request not in self._sent:
            return  # another session's
        whole, tile = self._sent[request], None
        if whole is not None:
            request, tile = whole
            sides = self.session.volume.sides(request.plane)
            prediction = prediction.on(sides, tile.corner).laid_over(request.previous, tile)
        if final and request is self._requested:
            self._requested = None
        if self._preview is not None and request is self._preview[0]:
            mask = postprocess_patch(prediction, self.session.finish, request.prompts)
            mask = self.session.within(self.session.limits, mask, request.plane, request.prompts)
            self.previewed.emit(self._preview[1], request.plane, mask)
            return
        if self.session.apply(request, prediction, tile, final=final):
            times = self._times(request.ticket, seconds, final)
            self.status.emit(News(times, of_mask=True, refining=not final))
            self.landed.emit(request.plane, final)
        if final:
            self.ask()

    def _times(self, ticket: int, seconds: float, final: bool) -> str:
        """How long the first mask took, and the refined one where there is one."""
        if ticket != self._timed:  # a refined mask comes twice: as not final, and once more as final
            self._timed, self._first = ticket, seconds
        if not final:
            return f"{1000 * self._first:.0f} ms, refining…"
        refined = f", refined after {1000 * seconds:.0f} ms" if seconds > self._first + 0.05 else ""
        return f"{1000 * self._first:.0f} ms{refined}"


class LivePreview:
    """Shows masks before there is a prompt: while a stroke is drawn, and where the mouse rests.

    Parameters
    ----------
    session, predictions, prompts, preview
        Those of the controller.

    Attributes
    ----------
    stroking
        Whether a stroke is being drawn.
    """

    def __init__(
        self, session: Session, predictions: Predictions, prompts: PromptLayers, preview: Preview
    ) -> None:
        self.stroking = False
        self._session, self._predictions = session, predictions
        self._prompts, self._preview = prompts, preview
        predictions.previewed.connect(self._show)

    def stroke(
        self, kind: str, plane: Plane, points: np.ndarray, prompts: Sequence[Prompt], final: bool
    ) -> None:
        """Draw the stroke at once, and predict as often as the model can; see `gestures.OnStroke`."""
        self.stroking = self._predictions.drawing = not final
        if final:
            self._preview.stroke(None)
            return
        self._preview.stroke(points, bool(prompts and prompts[0].positive), kind)
        if prompts:
            self._predictions.ask_preview(plane, prompts, "stroke")

    def hover(self, plane: Plane, at: tuple[float, float] | None) -> None:
        """Outline what a click at (row, col) would give; None takes the outline away."""
        if at is None:
            self.drop()
        elif not self._session.pending:
            self._predictions.ask_preview(plane, [Click(at, self._prompts.positive)], "hover")

    def drop(self) -> None:
        """Drop the preview under way and take the outline away."""
        self._predictions.forget_preview()
        self._preview.contour(None)

    def _show(self, reason: str, plane: Plane, mask: Patch) -> None:
        if reason == "hover":
            self._preview.contour(mask)
        elif plane == self._preview.plane:
            self._preview.show(plane, mask)
