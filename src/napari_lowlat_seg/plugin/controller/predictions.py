"""What a conversation asks the worker, and what becomes of the answers.

One thing is asked at a time: first for the plane in view, then for any other that waits. A stroke under way
and a hovering mouse ask too; their answers are shown and not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from napari_lowlat_seg.plugin.controller.plane_sources import Heading, Sources
from napari_lowlat_seg.plugin.layers.preview import Preview
from napari_lowlat_seg.plugin.layers.prompt_layers import PromptLayers
from napari_lowlat_seg.plugin.worker import Worker

Why = Literal["stroke", "hover"]


class Predictions:
    """The questions of one session.

    Parameters
    ----------
    session
        Whose requests are asked, and where answers land.
    worker
        Answers; it may be asked by other sessions too.
    name, tiling, seen
        As `Sources` has them.
    """

    landed = Signal(Plane, bool)
    """A mask of the session has changed, on this plane; whether it is the last one of its request."""

    tried = Signal(str, Plane, Patch)
    """Why was tried ("stroke" or "hover"), where, and the mask."""

    said = Signal(str)
    """The state in a few words."""

    def __init__(
        self,
        session: Session,
        worker: Worker,
        name: str,
        tiling: Tiling = TILING,
        seen: Callable[[Plane], tuple[float, float, float, float]] | None = None,
    ) -> None:
        self.session = session
        self.sources = Sources(session, name, tiling, seen)
        self.held = False
        self._reach = 0
        self._heading = Heading()
        self._drawing = False
        self._worker = worker
        self._looked: Any = None  # the key of what is embedded before the first click
        # What was sent; for a tile of a huge plane, what was meant, and which tile.
        self._sent: WeakKeyDictionary[Request, tuple[Request, BoundingBox] | None] = WeakKeyDictionary()
        self._trial: tuple[Request, Why] | None = None
        self._view: Plane | None = None
        self._asked: Request | None = None
        self._ready_said = False
        self._timed, self._first = 0, 0.0  # ticket answered last, seconds to its first answer
        # Tickets that failed or were cancelled: scrolling does not ask for them again.
        self._given_up: set[int] = set()

    def attach(self) -> None:
        """Listen, and choose the intensity window of the volume if it has none."""
        self._ready_said = False
        self._worker.answered.connect(self._answered)
        self._worker.embedded.connect(self._embedded)
        self._worker.failed.connect(self._failed)
        self._worker.loaded.connect(self._loaded)
        if self.session.volume.window is None:
            self.said.emit("reading the image")
            self._worker.run(self.session.volume.with_window, self._windowed)

    def detach(self) -> None:
        """Stop listening; what is on its way is dropped."""
        self.forget()
        self._view = None
        self._look_ahead()
        self._worker.answered.disconnect(self._answered)
        self._worker.embedded.disconnect(self._embedded)
        self._worker.failed.disconnect(self._failed)
        self._worker.loaded.disconnect(self._loaded)

    def look(self, plane: Plane | None) -> None:
        """The plane in view: it is embedded before its first click, and what waits there comes first."""
        if plane is not None:
            self._heading = self._heading.after(self._view, plane)
        self._view = plane
        if plane is not None and self._ready:
            self._look(self.sources.in_view(plane))
            self.ask()
        self._look_ahead()

    def panned(self) -> None:
        """Another part of the plane is in view: on a huge plane, another tile may be."""
        plane = self._view
        if plane is not None and self._ready and self.sources.huge(plane):
            source = self.sources.in_view(plane)
            if source is not None and source.key != self._looked:
                self._look(source)
                self.ask()

    @property
    def reach(self) -> int:
        """How many planes are embedded ahead of the one in view, and then behind it; 0 for none."""
        return self._reach

    @reach.setter
    def reach(self, reach: int) -> None:
        self._reach = reach
        self._look_ahead()

    @property
    def drawing(self) -> bool:
        """Whether a stroke is under way; nothing is embedded ahead then."""
        return self._drawing

    @drawing.setter
    def drawing(self, drawing: bool) -> None:
        if drawing != self._drawing:
            self._drawing = drawing
            self._look_ahead()

    @property
    def asking(self) -> bool:
        """Whether a request is under way whose last answer has not come yet."""
        return self._asked is not None and self._worker.busy

    def ask(self) -> None:
        """Ask what waits for an answer, if anything does and nothing holds it back."""
        if not self._ready or self.held:
            return
        requests = [self.session.request(plane) for plane in self.session.unanswered]
        waiting = [one for one in requests if one is not None and one.ticket not in self._given_up]
        if waiting:
            self._asked = next((one for one in waiting if one.plane == self._view), waiting[0])
            self._send(self._asked)

    def ask_trial(self, plane: Plane, prompts: Sequence[Prompt], why: Why) -> None:
        """Ask what `prompts` would give on top of those given; a newer question replaces this one."""
        if self._ready and not self.held:
            request = self.session.preview_request(plane, prompts)
            self._trial = (request, why)
            self._send(request)

    def forget(self) -> None:
        """Drop the trial under way."""
        self._trial = None

    def cancel(self) -> None:
        """Stop what is running. Prompts stay, and the next one asks for all of them."""
        self.forget()
        self._asked = None
        self._given_up |= {self.session.state(plane).ticket for plane in self.session.unanswered}
        self._worker.cancel()

    @property
    def _ready(self) -> bool:
        return self.session.volume.window is not None

    def _look(self, source: PlaneSource | None) -> None:
        self._looked = None if source is None else source.key
        if source is None:
            self.said.emit("ready")
        else:
            self._worker.look(source)

    def _look_ahead(self) -> None:
        """Tiles are not embedded ahead: nobody knows where on the next plane a click will be."""
        view = self._view
        if view is None or not self._ready or self._drawing or self.sources.huge(view):
            self._worker.ahead(())
        else:
            planes = self._heading.planes(view, self.session.volume.shape, self._reach)
            self._worker.ahead([self.sources.of(plane) for plane in planes])

    def _send(self, request: Request) -> None:
        sent, source, region = self.sources.of_request(request)
        self._sent[sent] = None if region is None else (request, region)
        self._worker.ask(sent, source)

    def _windowed(self, volume: Volume) -> None:
        self.session.volume = volume
        self.look(self._view)

    def _embedded(self, key: Any, seconds: float) -> None:
        """A plane that was warm is no news, but for the first one."""
        seen = self._view is not None and key == self._looked
        if seen and not self.session.unanswered and (seconds or not self._ready_said):
            self._ready_said = True
            self.said.emit("ready")

    def _failed(self, sentence: str) -> None:
        if self._asked is not None:
            self._given_up.add(self._asked.ticket)
            self._asked = None
        self.said.emit(sentence)

    def _loaded(self, facts: dict[str, Any]) -> None:
        """Another model may answer what the last one could not."""
        self._given_up.clear()
        self._ready_said = False
        self.look(self._view)

    def _answered(self, request: Request, answer: SoftMask, final: bool, seconds: float) -> None:
        if request not in self._sent:
            return  # another session's
        meant = self._sent[request]
        if meant is not None:
            request, region = meant
            sides = self.session.volume.sides(request.plane)
            answer = answer.on(sides, region.corner).laid_over(request.previous, region)
        if final and request is self._asked:
            self._asked = None
        if self._trial is not None and request is self._trial[0]:
            self.tried.emit(self._trial[1], request.plane, postprocess_patch(answer, self.session.finish))
        elif self.session.apply(request, answer):
            self.said.emit(self._times(request.ticket, seconds, final))
            self.landed.emit(request.plane, final)
            if final:
                self.ask()

    def _times(self, ticket: int, seconds: float, final: bool) -> str:
        """How long an answer took, and the closer look after it where one was taken."""
        if ticket != self._timed:  # the closer look comes as not final too, and once more as final
            self._timed, self._first = ticket, seconds
        if not final:
            return f"{1000 * self._first:.0f} ms, looking closer"
        closer = f", closer look {1000 * seconds:.0f} ms" if seconds > self._first + 0.05 else ""
        return f"{1000 * self._first:.0f} ms{closer}"


class LivePreview:
    """Asks what is tried, and shows what the model says of it.

    Parameters
    ----------
    session, questions, prompts, preview
        Those of the conversation.

    Attributes
    ----------
    stroking
        Whether a stroke is under way.
    """

    def __init__(
        self, session: Session, questions: Predictions, prompts: PromptLayers, preview: Preview
    ) -> None:
        self.stroking = False
        self._session, self._questions = session, questions
        self._prompts, self._preview = prompts, preview
        questions.tried.connect(self._tried)

    def stroke(
        self, kind: str, plane: Plane, points: np.ndarray, prompts: Sequence[Prompt], final: bool
    ) -> None:
        """A stroke under way: drawn at once, and answered as often as the model can."""
        self.stroking = self._questions.drawing = not final
        if final:
            self._preview.stroke(None)
            return
        self._preview.stroke(points, bool(prompts and prompts[0].positive), kind)
        if prompts:
            self._questions.ask_trial(plane, prompts, "stroke")

    def hover(self, plane: Plane, at: tuple[float, float] | None) -> None:
        """The mouse rests here, or (None) moves on: what a click would give is outlined."""
        if at is None:
            self.drop()
        elif not self._session.unanswered:
            self._questions.ask_trial(plane, [Click(at, self._prompts.positive)], "hover")

    def drop(self) -> None:
        """Nothing is tried any more."""
        self._questions.forget()
        self._preview.contour(None)

    def _tried(self, why: str, plane: Plane, mask: Patch) -> None:
        if why == "hover":
            self._preview.contour(mask)
        elif plane == self._preview.plane:
            self._preview.show(plane, mask)
