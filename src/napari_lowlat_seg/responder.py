"""Requests in, answers out, what is costly kept: a predictor with its embeddings and closer looks.

A window asks here and not the predictor itself, so that a plane is embedded once, a second click on an object
finds the closer look of the first one, and whoever is tired of waiting can say so in the middle of a network.
torch is imported inside functions only: a window may import this room.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache

from .answers import Answer
from .child import Interrupted
from .model.known import WEIGHTS
from .plane_state import Request
from .prompts import Prompt
from .propagate import Carried
from .volume import Plane
from .walks import Walk, walked

if TYPE_CHECKING:
    from .predictor import CloserLook, Embedding, Predictor

CACHE_BYTES = 2**30

Newer = Callable[[], bool]
Progress = Callable[[int, int | None], object]


@dataclass(frozen=True)
class PlaneSource:
    """Where the pixels of a plane come from.

    Attributes
    ----------
    key
        Names the plane and its picture: equal keys mean equal pixels.
    read
        Gives the pixels, (H, W) or (H, W, 3); called on another thread, and only where they are needed.
    window
        Intensities shown as black and white; None for the plane's own percentiles.
    spacing
        Size of a pixel along rows and columns; only the ratio counts.
    name
        What to call the plane in messages.
    """

    key: Hashable
    read: Callable[[], np.ndarray]
    window: tuple[float, float] | None = None
    spacing: tuple[float, float] = (1.0, 1.0)
    name: str = "the plane"

    @property
    def identity(self) -> Hashable:
        """Equal for two sources that have one embedding."""
        return (self.key, self.window, self.spacing)


def never() -> bool:
    """Nothing newer will come."""
    return False


class Responder:
    """A predictor that remembers.

    Parameters
    ----------
    predictor
        Of any model on any device.
    cache_bytes
        Room for embeddings of planes and of closer looks together; those unused for longest go first. One
        that is larger than all of it is made anew each time.
    facts
        What `describe` says beside what the predictor knows itself.
    """

    def __init__(self, predictor: Predictor, cache_bytes: int = CACHE_BYTES, **facts: Any) -> None:
        self._predictor = predictor
        self._facts = facts
        self._kept: LRUCache[Hashable, Embedding] = LRUCache(cache_bytes, _bytes_of)
        self._newer: Newer = never
        predictor.interrupt_by(self._look_up)

    def embed(self, source: PlaneSource, newer: Newer = never) -> float:
        """Makes the embedding of a plane; seconds that it took, 0.0 if it was there already.

        Raises
        ------
        Interrupted
            As soon as `newer()` is true; it is asked before every layer of the network, or every 10 ms.
        ValueError
            For pixels that the predictor refuses; and whatever reading them raises.
        """
        began = time.perf_counter()
        warm = ("plane", source.identity) in self._kept
        with self._until(newer):
            self._embedding(source)
        return 0.0 if warm else time.perf_counter() - began

    def respond(
        self, request: Request, source: PlaneSource, newer: Newer = never
    ) -> Iterator[tuple[Answer, bool]]:
        """The answers to a request, the quicker first, each with whether it is the last one.

        A trial (ticket 0) gets the quick answer only. Once `newer()` is true no more answers come, and the
        network stops in the middle of the one it is at. Raises ValueError as `Predictor.answers` does.
        """
        try:
            with self._until(newer):
                yield from self._answers(request, source, newer)
        except Interrupted:
            return

    def carry(
        self, walk: Walk, sources: Sequence[PlaneSource], newer: Newer = never
    ) -> Iterator[tuple[int, Carried[Answer]]]:
        """(object, where it was found) for every plane that the objects of a walk reach, as they come.

        Parameters
        ----------
        sources
            Of the walk's planes, in their order; all have one intensity window.
        newer
            Once it is true nothing more comes, and the network stops in the middle.

        Raises ValueError as `propagate.propagate` does, and whatever reading pixels raises.
        """
        seen = _Seen(dict(zip(walk.planes, sources, strict=True)))
        try:
            with self._until(newer):
                yield from walked(
                    _Engine(self._predictor),
                    seen,
                    walk,
                    lambda plane: self._embedding(seen.source(plane)),
                    newer,
                )
        except Interrupted:
            return

    def describe(self, progress: Progress | None = None) -> dict[str, Any]:
        """Facts on the model: model, device, precision, size (side of its input in pixels), parameters,
        licence, and what the maker of this responder added."""
        predictor, row = self._predictor, WEIGHTS.get(self._predictor.name)
        return {
            "model": predictor.name,
            "device": predictor.runtime.device,
            "precision": predictor.runtime.precision,
            "size": predictor.size,
            "parameters": sum(p.numel() for p in predictor.network.parameters()),
            "licence": row.licence if row else "that of its file",
            **self._facts,
        }

    def restart(self) -> None:
        """Nothing: a thread cannot be ended, it stops at the next layer of the network."""

    def close(self) -> None:
        """Forgets all embeddings."""
        self._kept.clear()

    def _answers(self, request: Request, source: PlaneSource, newer: Newer) -> Iterator[tuple[Answer, bool]]:
        embedding = self._embedding(source)
        about = ("look", request.object, source.identity)
        previous = request.previous
        before = None
        if previous is not None:
            from .predictor import Prediction

            look = self._kept.get(about)
            before = Prediction(previous.probability, previous.quality, embedding.frame, look)
        answer = None
        # Whether an answer is the last one is known when the next one is there, or none. The quick one must
        # not wait for that: it goes out as one that may be bettered, and once more when it was not.
        for prediction in self._predictor.answers(embedding, request.prompts, before):
            answer = Answer.of(prediction.probability, prediction.quality)
            if request.ticket and prediction.look is not None:
                self._keep(about, prediction.look)
            yield answer, not request.ticket
            if not request.ticket or newer():
                return
        if answer is not None:
            yield answer, True

    def _embedding(self, source: PlaneSource) -> Embedding:
        about = ("plane", source.identity)
        known = self._kept.get(about)
        if known is not None:
            return known
        made = self._predictor.embed(source.read(), source.window, source.spacing)
        self._keep(about, made)
        return made

    def _keep(self, about: Hashable, embedding: Embedding) -> None:
        if _bytes_of(embedding) <= self._kept.maxsize:
            self._kept[about] = embedding

    @contextmanager
    def _until(self, newer: Newer) -> Iterator[None]:
        self._newer = newer
        try:
            yield
        finally:
            self._newer = never

    def _look_up(self) -> None:
        if self._newer():
            raise Interrupted


class _Seen:
    """Planes for a walk: it looks at each more than once, and at one after the other."""

    def __init__(self, sources: dict[Plane, PlaneSource]) -> None:
        self._sources = sources
        self.plane = lru_cache(maxsize=2)(lambda plane: sources[plane].read())
        self.window = next(iter(sources.values())).window

    def plane_spacing(self, plane: Plane) -> tuple[float, float]:
        return self._sources[plane].spacing

    def source(self, plane: Plane) -> PlaneSource:
        return replace(self._sources[plane], read=lambda: self.plane(plane))


@dataclass(frozen=True)
class _Engine:
    """A predictor that speaks in answers, which are kept and travel."""

    predictor: Predictor

    def embed(self, image: Any, window: Any, spacing: Any) -> Any:
        return self.predictor.embed(image, window, spacing)

    def predict(self, embedding: Any, prompts: Sequence[Prompt], previous: Answer | None) -> Answer:
        from .predictor import Prediction

        before = None
        if previous is not None:
            before = Prediction(previous.probability, previous.quality, embedding.frame)
        made = self.predictor.predict(embedding, prompts, before)
        return Answer.of(made.probability, made.quality)


def load_responder(
    model: str = "default",
    device: str = "auto",
    closer_look: CloserLook = "auto",
    *,
    cache_bytes: int = CACHE_BYTES,
    progress: Progress | None = None,
) -> Responder:
    """The responder for a model on a device; see `predictor.load_predictor` for its arguments and errors.

    A model that is not on this machine is downloaded first: `progress` is told (bytes so far, bytes in all or
    None), and what it raises cancels the download.
    """
    from .model.checkpoints import download_model, model_info
    from .predictor import load_predictor

    row = WEIGHTS.get(model)
    if row is not None and row.url and not model_info(model)["downloaded"]:
        download_model(model, progress)
    return Responder(load_predictor(model, device, closer_look), cache_bytes)


def _bytes_of(embedding: Embedding) -> int:
    return sum(feature.nbytes for feature in embedding.features) + embedding.image.nbytes
