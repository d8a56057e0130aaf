"""What a conversation asks the worker, and what becomes of the answers.

One thing is asked at a time: first for the plane in view, then for any other that waits. A stroke under way
and a hovering mouse ask too; their answers are shown and not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal
from uuid import uuid4
from weakref import WeakKeyDictionary

from psygnal import Signal

from napari_lowlat_seg.answers import Answer, Patch, finished_patch
from napari_lowlat_seg.plane_state import Request
from napari_lowlat_seg.prompts import Click, Prompt
from napari_lowlat_seg.region import TILING, Region, Tiling, cut, region_of, within
from napari_lowlat_seg.responder import PlaneSource
from napari_lowlat_seg.session import Session
from napari_lowlat_seg.volume import Plane, Volume

from .worker import Worker

Why = Literal["stroke", "hover"]


class Questions:
    """The questions of one session.

    Parameters
    ----------
    session
        Whose requests are asked, and where answers land.
    worker
        Answers; it may be asked by other sessions too.
    name
        Of the image, for messages about its only plane.
    tiling
        Which planes are too large to be embedded whole; of those a tile is.
    seen
        (row, col, stop row, stop col) of what the viewer shows of a plane, for a tile before the first click;
        None to wait for the click.
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
        self._tiling, self._seen = tiling, seen
        self._tiles: dict[Plane, Region] = {}  # the newest one of each plane
        self._looked: Any = None  # the key of what is embedded before the first click
        self.held = False
        self._worker, self._name = worker, name
        self._picture = uuid4().hex  # in the keys of its embeddings
        # What was sent, and for a tile of a huge plane: what was meant, and which tile.
        self._sent: WeakKeyDictionary[Request, tuple[Request, Region] | None] = WeakKeyDictionary()
        self._trial: tuple[Request, Why] | None = None
        self._view: Plane | None = None
        self._asked: Request | None = None
        self._first = 0.0  # seconds until the first answer to the newest request
        # Tickets that failed or were cancelled: scrolling does not ask for them again.
        self._given_up: set[int] = set()

    def attach(self) -> None:
        """Listen, and choose the intensity window of the volume if it has none."""
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
        self._worker.answered.disconnect(self._answered)
        self._worker.embedded.disconnect(self._embedded)
        self._worker.failed.disconnect(self._failed)
        self._worker.loaded.disconnect(self._loaded)

    def look(self, plane: Plane | None) -> None:
        """The plane in view: it is embedded before its first click, and what waits there comes first."""
        self._view = plane
        if plane is None or not self._ready:
            return
        region = self._tile_in_view(plane)
        if region is None:
            self._looked = None
            self.said.emit("ready")
        else:
            self._tiles[plane] = region
            source = self._source(plane, region)
            self._looked = source.key
            self._worker.look(source)
        self.ask()

    def panned(self) -> None:
        """Another part of the plane is in view: on a huge plane, another tile may be."""
        plane = self._view
        if plane is None or not self._ready or not self._huge(plane):
            return
        region = self._tile_in_view(plane)
        if region is not None and self._source(plane, region).key != self._looked:
            self.look(plane)

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
            request = self.session.trial(plane, prompts)
            self._trial = (request, why)
            self._send(request)

    def forget(self) -> None:
        """Drop the trial under way."""
        self._trial = None

    def cancel(self) -> None:
        """Stop what is running. Prompts stay, and the next one asks for all of them."""
        self.forget()
        self._given_up |= {self.session.state(plane).ticket for plane in self.session.unanswered}
        self._worker.cancel()

    @property
    def _ready(self) -> bool:
        return self.session.volume.window is not None

    def _send(self, request: Request) -> None:
        plane = request.plane
        if not self._huge(plane) or not request.prompts:
            self._sent[request] = None
            self._worker.ask(request, self._source(plane))
            return
        sides, now = self.session.volume.sides(plane), self._tiles.get(plane)
        region = region_of(sides, request.prompts, self._tiling, now)
        if request.ticket:
            self._tiles[plane] = region
        sent = within(request, region)
        self._sent[sent] = (request, region)
        self._worker.ask(sent, self._source(plane, region))

    def _source(self, plane: Plane, region: Region | None = None) -> PlaneSource:
        volume = self.session.volume
        name = self._name if len(plane.index) == 2 else f"plane {plane.position}"
        key: tuple[Any, ...] = (self._picture, plane.index)
        spacing, part = volume.plane_spacing(plane), volume
        if region is not None and self._huge(plane):
            key, part = (*key, region), cut(volume, region, plane)
        return PlaneSource(key, lambda: part.plane(plane), volume.window, spacing, name)

    def _huge(self, plane: Plane) -> bool:
        return max(self.session.volume.sides(plane)) > self._tiling.large

    def _tile_in_view(self, plane: Plane) -> Region | None:
        """The tile in the middle of what is seen; None if too much is seen to know where a click will be."""
        sides = self.session.volume.sides(plane)
        if not self._huge(plane):
            return Region(0, 0, *sides)
        if self._seen is None:
            return None
        top, left, bottom, right = self._seen(plane)
        if max(bottom - top, right - left) > 2 * self._tiling.side:
            return None
        middle = (
            min(max(0.0, (top + bottom) / 2), sides[0] - 1),
            min(max(0.0, (left + right) / 2), sides[1] - 1),
        )
        return region_of(sides, [Click(middle)], self._tiling, self._tiles.get(plane))

    def _windowed(self, volume: Volume) -> None:
        self.session.volume = volume
        self.look(self._view)

    def _embedded(self, key: Any, seconds: float) -> None:
        if self._view is not None and key == self._looked and not self.session.unanswered:
            self.said.emit("ready")

    def _failed(self, sentence: str) -> None:
        if self._asked is not None:
            self._given_up.add(self._asked.ticket)
            self._asked = None
        self.said.emit(sentence)

    def _loaded(self, facts: dict[str, Any]) -> None:
        """Another model may answer what the last one could not."""
        self._given_up.clear()
        self.look(self._view)

    def _answered(self, request: Request, answer: Answer, final: bool, seconds: float) -> None:
        if request not in self._sent:
            return  # another session's
        meant = self._sent[request]
        if meant is not None:
            request, region = meant
            sides = self.session.volume.sides(request.plane)
            answer = answer.on(sides, region.corner).laid_over(request.previous, region.box)
        if self._trial is not None and request is self._trial[0]:
            self.tried.emit(self._trial[1], request.plane, finished_patch(answer, self.session.finish))
        elif self.session.land(request, answer):
            self._asked = None if final else self._asked
            self.said.emit(self._times(seconds, final))
            self.landed.emit(request.plane, final)
            if final:
                self.ask()

    def _times(self, seconds: float, final: bool) -> str:
        """How long an answer took, and the closer look after it where one was taken."""
        if not final:
            self._first = seconds
            return f"{1000 * seconds:.0f} ms, looking closer"
        closer = f", closer look {1000 * seconds:.0f} ms" if seconds > self._first + 0.05 else ""
        return f"{1000 * self._first:.0f} ms{closer}"
