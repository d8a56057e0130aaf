"""Requests in, answers out, what is costly kept: a predictor with its embeddings and closer looks.

A window asks here and not the predictor itself, so that a plane is embedded once, a second click on an object
finds the closer look of the first one, and whoever is tired of waiting can say so in the middle of a network.
torch is imported inside functions only: a window may import this room.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.requests import (
    Cancelled,
    PlaneSource,
    Progress,
    PropagationRequest,
    Request,
    never,
)
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.models.registry import WEIGHTS, cache_dir
from napari_lowlat_seg.propagation.propagate import run_propagation
from napari_lowlat_seg.propagation.sweep import PropagatedMask
from napari_lowlat_seg.serving.worker_process import Interrupted

if TYPE_CHECKING:
    from napari_lowlat_seg.inference.predictor import CloserLook, Embedding, Predictor
    from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache, EmbeddingKey


CACHE_BYTES = 2**30
"""Room in memory: a quarter for closer looks, the rest for planes, half of it ready on the device."""

KNOWN = 10_000
"""Planes whose keys are remembered; that of another one is found by reading its pixels once more."""


class PredictionService:
    """A predictor that remembers.

    Parameters
    ----------
    predictor
        Of any model on any device.
    cache_bytes
        Room in memory for embeddings of planes and of closer looks together; those unused for longest go
        first. One that is larger than its share is made anew each time.
    folder
        Where planes' embeddings are kept for the next time as well, None for nowhere.
    disk_bytes
        Room in that folder.
    facts
        What `describe` says beside what the predictor knows itself.
    """

    def __init__(
        self,
        predictor: Predictor,
        cache_bytes: int = CACHE_BYTES,
        folder: Path | None = None,
        disk_bytes: int = 0,
        **facts: Any,
    ) -> None:
        from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache

        looks, on_device = cache_bytes // 4, 3 * cache_bytes // 8
        device = predictor.runtime.device
        in_host = cache_bytes - looks - on_device
        self._predictor = predictor
        self._facts = facts
        self._open: Callable[[], EmbeddingCache] = lambda: EmbeddingCache(
            on_device, in_host, folder, disk_bytes, device
        )
        self._planes = self._open()
        self._looks: LRUCache[Hashable, Embedding] = LRUCache(looks, _bytes_of)
        self._keys: LRUCache[Hashable, EmbeddingKey] = LRUCache(KNOWN)  # by identity of the source
        self._shelves: dict[Path, EmbeddingCache] = {}  # folders that others have filled
        self._encoded = 0  # planes that the network has embedded
        self._newer: Cancelled = never
        predictor.interrupt_by(self._look_up)

    def embed(self, source: PlaneSource, cancelled: Cancelled = never) -> float:
        """Makes the embedding of a plane; seconds that it took, 0.0 if it was kept, here or in a folder.

        Raises
        ------
        Interrupted
            As soon as `newer()` is true; it is asked before every layer of the network, or every 10 ms.
        ValueError
            For pixels that the predictor refuses; and whatever reading them raises.
        """
        began, before = time.perf_counter(), self._encoded
        with self._until(cancelled):
            self._embedding(source)
        return 0.0 if self._encoded == before else time.perf_counter() - began

    def predict(
        self, request: Request, source: PlaneSource, cancelled: Cancelled = never
    ) -> Iterator[tuple[SoftMask, bool]]:
        """The answers to a request, the quicker first, each with whether it is the last one.

        A trial (ticket 0) gets the quick answer only. Once `newer()` is true no more answers come, and the
        network stops in the middle of the one it is at. Raises ValueError as `Predictor.answers` does.
        """
        try:
            with self._until(cancelled):
                yield from self._answers(request, source, cancelled)
        except Interrupted:
            return

    def propagate(
        self, walk: PropagationRequest, sources: Sequence[PlaneSource], cancelled: Cancelled = never
    ) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
        """(object, where it was found) for every plane that the objects of a walk reach, as they come.

        Parameters
        ----------
        sources
            Of the walk's planes, in their order; all have one intensity window.
        newer
            Once it is true nothing more comes, and the network stops in the middle.

        Raises ValueError as `propagate.propagate` does, and whatever reading pixels raises.
        """
        seen = SeenPlanes(dict(zip(walk.planes, sources, strict=True)))
        try:
            with self._until(cancelled):
                yield from run_propagation(
                    AnswerEngine(self._predictor),
                    seen,
                    walk,
                    lambda plane: self._embedding(seen.source(plane)),
                    cancelled,
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
        """Forgets all embeddings in memory."""
        self._planes = self._open()
        self._looks.clear()

    def _answers(
        self, request: Request, source: PlaneSource, cancelled: Cancelled
    ) -> Iterator[tuple[SoftMask, bool]]:
        embedding = self._embedding(source)
        about = (request.object, source.identity)
        previous = request.previous
        before = None
        if previous is not None:
            from napari_lowlat_seg.inference.predictor import Prediction

            look = self._looks.get(about)
            before = Prediction(previous.probability, previous.quality, embedding.frame, look)
        answer = None
        # Whether an answer is the last one is known when the next one is there, or none. The quick one must
        # not wait for that: it goes out as one that may be bettered, and once more when it was not.
        for prediction in self._predictor.answers(embedding, request.prompts, before):
            answer = SoftMask.of(prediction.probability, prediction.quality)
            look = prediction.look
            if request.ticket and look is not None and _bytes_of(look) <= self._looks.maxsize:
                self._looks[about] = look
            yield answer, not request.ticket
            if not request.ticket or cancelled():
                return
        if answer is not None:
            yield answer, True

    def _embedding(self, source: PlaneSource) -> Embedding:
        from napari_lowlat_seg.serving.embedding_cache import EmbeddingKey

        last = self._keys.get(source.identity)
        known = None if last is None else self._planes.get(last)
        if known is not None:
            return known
        pixels = np.asarray(source.read())
        if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "buif":
            return self._made(source, pixels)  # which says what is wrong with them
        # Who reads the pixels makes the key anew: they may have changed since the last time.
        key = EmbeddingKey.of_pixels(self._predictor, pixels, source.plane, source.window, source.spacing)
        self._keys[source.identity] = key
        before = self._encoded
        embedding = self._planes.ensure(key, lambda: self._shelved(key, source) or self._made(source, pixels))
        if self._encoded > before:
            self._planes.save(key, embedding)
        return embedding

    def _shelved(self, key: EmbeddingKey, source: PlaneSource) -> Embedding | None:
        """What others have left of it in one of the source's folders."""
        from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache

        for folder in source.folders:
            if folder not in self._shelves and folder.is_dir():
                device = self._predictor.runtime.device
                self._shelves[folder] = EmbeddingCache(0, 0, folder, 0, device)
            found = self._shelves[folder].get(key) if folder in self._shelves else None
            if found is not None:
                return found
        return None

    def _made(self, source: PlaneSource, pixels: np.ndarray) -> Embedding:
        made = self._predictor.embed(pixels, source.window, source.spacing)
        self._encoded += 1
        return made

    @contextmanager
    def _until(self, cancelled: Cancelled) -> Iterator[None]:
        self._newer = cancelled
        try:
            yield
        finally:
            self._newer = never

    def _look_up(self) -> None:
        if self._newer():
            raise Interrupted


def load_prediction_service(
    model: str = "default",
    device: str = "auto",
    closer_look: CloserLook = "auto",
    *,
    cache_bytes: int = CACHE_BYTES,
    disk_bytes: int = 0,
    progress: Progress | None = None,
) -> PredictionService:
    """The responder for a model on a device; see `predictor.load_predictor` for its arguments and errors.

    Embeddings take up to `cache_bytes` of memory and `disk_bytes` beside the downloaded models; none is
    written there if that is 0.

    A model that is not on this machine is downloaded first: `progress` is told (bytes so far, bytes in all or
    None), and what it raises cancels the download.
    """
    from napari_lowlat_seg.inference.predictor import load_predictor
    from napari_lowlat_seg.models.checkpoints import download_model, model_info

    row = WEIGHTS.get(model)
    if row is not None and row.url and not model_info(model)["downloaded"]:
        download_model(model, progress)
    folder = _kept_folder() if disk_bytes else None
    return PredictionService(load_predictor(model, device, closer_look), cache_bytes, folder, disk_bytes)


def _kept_folder() -> Path | None:
    """Where embeddings are kept from one session to the next; None, with a warning, if it cannot be made."""
    folder = cache_dir() / "embeddings"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warnings.warn(
            f"embeddings cannot be kept in {folder} ({error.strerror or error}); they are in memory only",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return folder


def _bytes_of(embedding: Embedding) -> int:
    return sum(feature.nbytes for feature in embedding.features) + embedding.image.nbytes


class SeenPlanes:
    """Planes for a walk, which looks at each more than once and at one after the other: `volume.Pictures`."""

    def __init__(self, sources: dict[Plane, PlaneSource]) -> None:
        self._sources = sources
        self.plane = lru_cache(maxsize=2)(lambda plane: sources[plane].read())
        self.window = next(iter(sources.values())).window

    def plane_spacing(self, plane: Plane) -> tuple[float, float]:
        """As `Volume.plane_spacing`."""
        return self._sources[plane].spacing

    def source(self, plane: Plane) -> PlaneSource:
        """The source of a plane, which reads it at most once in a while."""
        return replace(self._sources[plane], read=lambda: self.plane(plane))


@dataclass(frozen=True)
class AnswerEngine:
    """A predictor that speaks in answers, which are kept and travel: `sweep.MaskPredictor`."""

    predictor: Predictor

    def embed(self, image: Any, window: Any, spacing: Any) -> Any:
        """As `Predictor.embed`."""
        return self.predictor.embed(image, window, spacing)

    def predict(self, embedding: Any, prompts: Sequence[Prompt], previous: SoftMask | None) -> SoftMask:
        """As `Predictor.predict`."""
        from napari_lowlat_seg.inference.predictor import Prediction  # torch, which a window shall not import

        before = None
        if previous is not None:
            before = Prediction(previous.probability, previous.quality, embedding.frame)
        made = self.predictor.predict(embedding, prompts, before)
        return SoftMask.of(made.probability, made.quality)
