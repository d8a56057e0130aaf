"""Predictions on request: a predictor, with its embeddings and closer looks cached.

A plane is embedded once, a second click on an object finds the closer look of the first one, and a request
can be cancelled between two layers of the network. torch is imported inside functions only, because a window
imports this module.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.requests import (
    Cancelled,
    FoundOnPlane,
    PlaneSource,
    Progress,
    PropagationRequest,
    Request,
    never,
)
from napari_lowlat_seg.core.volume import Plane, any_finite
from napari_lowlat_seg.models.registry import WEIGHTS, cache_dir
from napari_lowlat_seg.propagation.propagate import run_propagation
from napari_lowlat_seg.propagation.sweep import PropagatedMask
from napari_lowlat_seg.serving.worker_process import Interrupted

if TYPE_CHECKING:
    from napari_lowlat_seg.inference.prediction import Embedding, Prediction
    from napari_lowlat_seg.inference.predictor import CloserLook, Predictor
    from napari_lowlat_seg.inference.runtime import Precision
    from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache, EmbeddingKey


CACHE_BYTES = 2**30
"""Memory for embeddings: a quarter for closer looks, the rest for planes, half of that on the device."""

REMEMBERED_KEYS = 10_000
"""Planes whose keys are remembered; the key of another plane is found by reading its pixels once more."""


class PredictionService:
    """A predictor with caches of what is costly to make: embeddings and closer looks.

    Call `embed`, `predict` and `propagate` from one thread, one at a time. A prediction is made
    in the caller's thread while its iterator is read.

    Parameters
    ----------
    predictor
        Of any model on any device.
    cache_bytes
        Memory for embeddings of planes and of closer looks together; those unused for longest are dropped
        first. An embedding that is larger than its share is computed again each time.
    folder
        Where planes' embeddings are kept for the next time as well; None for nowhere.
    disk_bytes
        Room in that folder.

    Examples
    --------
    >>> service = PredictionService(load_predictor("default"))  # doctest: +SKIP
    >>> request = session.request(plane)  # doctest: +SKIP
    >>> for soft_mask, final in service.predict(request, session.source(plane)):  # doctest: +SKIP
    ...     session.apply(request, soft_mask)
    """

    def __init__(
        self,
        predictor: Predictor,
        cache_bytes: int = CACHE_BYTES,
        folder: Path | None = None,
        disk_bytes: int = 0,
    ) -> None:
        from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache

        looks, on_device = cache_bytes // 4, 3 * cache_bytes // 8
        device = predictor.runtime.device
        in_host = cache_bytes - looks - on_device
        self._predictor = predictor
        self._open: Callable[[], EmbeddingCache] = lambda: EmbeddingCache(
            on_device, in_host, folder, disk_bytes, device
        )
        self._planes = self._open()
        self._looks: LRUCache[Hashable, Embedding] = LRUCache(looks, lambda look: look.nbytes)
        self._keys: LRUCache[Hashable, EmbeddingKey] = LRUCache(REMEMBERED_KEYS)  # by identity of the source
        self._others: dict[Path, EmbeddingCache] = {}  # folders that other programs have filled
        self._preview: tuple[Any, Prediction] | None = None  # the last one, and what was asked
        self._encoded = 0  # planes that the network has embedded
        self._cancelled: Cancelled = never
        predictor.interrupt_by(self._raise_if_cancelled)

    def embed(self, source: PlaneSource, cancelled: Cancelled = never) -> float:
        """Embed a plane and return the seconds that it took, 0.0 if it was cached in memory or in a folder.

        Parameters
        ----------
        source
            Where the pixels come from; they are read if the embedding is not in memory.
        cancelled
            Asked before every layer of the network, or every 10 ms.

        Raises
        ------
        Interrupted
            As soon as `cancelled()` is true.
        ValueError
            For pixels that the predictor refuses; and whatever reading them raises.
        """
        began, before = time.perf_counter(), self._encoded
        with self._interruptible(cancelled):
            self._embedding(source)
        return 0.0 if self._encoded == before else time.perf_counter() - began

    def predict(
        self, request: Request, source: PlaneSource, cancelled: Cancelled = never
    ) -> Iterator[tuple[SoftMask, bool]]:
        """Yield the predictions for a request, the quicker first, each with whether it is the last one.

        The first one is seen from the whole plane; closer looks may follow it. A request with ticket 0, a
        preview, gets the first one only.

        Parameters
        ----------
        request
            As `Session.request` or `Session.preview_request` returns it.
        source
            Where the pixels of its plane come from.
        cancelled
            Once it returns True nothing more comes, and the network stops between two layers.

        Raises
        ------
        ValueError
            As `Predictor.predict` does, and whatever reading the pixels raises.
        """
        with suppress(Interrupted), self._interruptible(cancelled):
            yield from self._predictions(request, source, cancelled)

    def propagate(
        self, request: PropagationRequest, sources: Sequence[PlaneSource], cancelled: Cancelled = never
    ) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
        """Yield (object, mask) for every plane that the objects of a request reach, as they are found.

        Parameters
        ----------
        request
            As `PropagationRun.request` holds it.
        sources
            Of the request's planes, in their order; all have one intensity window.
        cancelled
            Once it returns True nothing more comes, and the network stops between two layers.

        Raises
        ------
        ValueError
            As `propagate` does, and whatever reading pixels raises.
        """
        reader = _CachedPlanes(dict(zip(request.planes, sources, strict=True)))

        def embed(plane: Plane) -> Embedding:
            return self._embedding(reader.source(plane))

        with suppress(Interrupted), self._interruptible(cancelled):
            yield from run_propagation(_SoftMaskPredictor(self._predictor), reader, request, embed, cancelled)

    def find_objects(
        self, settings: Mapping[str, Any], sources: Sequence[PlaneSource], cancelled: Cancelled = never
    ) -> Iterator[tuple[int, FoundOnPlane]]:
        """Yield (place, what was found so far) for each of some planes, without prompts.

        Parameters
        ----------
        settings
            Fields of `MaskGeneratorSettings` that are not as usual.
        sources
            Of the planes; places count from 0.
        cancelled
            Once it returns True nothing more comes, and the network stops between two layers.

        Raises
        ------
        ValueError
            As `MaskGeneratorSettings` and `label_plane`, and whatever reading the pixels raises.
        """
        from napari_lowlat_seg.inference.mask_generator import MaskGeneratorSettings, search_plane

        chosen = MaskGeneratorSettings(**settings)
        with suppress(Interrupted), self._interruptible(cancelled):
            for place, source in enumerate(sources):
                pixels = np.asarray(source.read())
                if not any_finite(pixels):
                    empty = np.zeros(pixels.shape[:2], np.uint32)
                    yield place, FoundOnPlane(1, 1, empty, np.zeros(0, np.float32))
                    continue
                for found in search_plane(self._predictor, pixels, source.window, source.spacing, chosen):
                    if cancelled():
                        return
                    yield place, found

    def describe(self, progress: Progress | None = None) -> dict[str, Any]:
        """Facts on the model, by name.

        The names are "model", "device", "precision", "size" (side of the network's input in pixels),
        "parameters" (their number), "licence", "weights" (a hash of the network with its weights),
        "closer_look" and "versions" of what computes. `progress` is not used: the model is loaded already.
        """
        predictor, row = self._predictor, WEIGHTS.get(self._predictor.name)
        return {
            "model": predictor.name,
            "device": predictor.runtime.device,
            "precision": predictor.runtime.precision,
            "size": predictor.size,
            "parameters": sum(p.numel() for p in predictor.network.parameters()),
            "licence": row.licence if row else "that of its file",
            "weights": predictor.model,
            "closer_look": predictor.closer_look,
            "versions": _versions(),
        }

    def restart(self) -> None:
        """Do nothing: a thread cannot be ended. A cancelled request stops at the network's next layer."""

    def close(self) -> None:
        """Drop all embeddings in memory."""
        self._planes = self._open()
        self._looks.clear()
        self._preview = None

    def _predictions(
        self, request: Request, source: PlaneSource, cancelled: Cancelled
    ) -> Iterator[tuple[SoftMask, bool]]:
        embedding = self._embedding(source)
        key = (request.object, source.identity)
        previous = None
        if request.previous is not None:
            from napari_lowlat_seg.inference.prediction import Prediction  # imports torch

            previous = Prediction.of(
                request.previous,
                embedding.frame,
                self._looks.get(key),
                self._crops_of(embedding, source),
            )
        question = (key, request.prompts, request.previous and request.previous.value)
        asked, first = self._preview or (None, None)
        self._preview = None
        # Exactly the same, or a journal that repeats the request might get another mask.
        first = first if request.ticket and asked == question else None
        soft_mask = None
        # Whether a prediction is the last one is known when the next one is there, or none. The quick one
        # must not wait for that: it goes out as one that may be refined, and once more when it was not.
        for prediction in self._predictor.answers(embedding, request.prompts, previous, True, first):
            soft_mask = prediction.soft_mask
            if request.ticket:
                self._keep(prediction, key, source)
            else:
                self._preview = question, prediction
            yield soft_mask, not request.ticket
            if not request.ticket or cancelled():
                return
        if soft_mask is not None:
            yield soft_mask, True

    def _keep(self, prediction: Prediction, key: Hashable, source: PlaneSource) -> None:
        """Keep the closer look of an object, and the crops along its outline for all objects of the plane."""
        looks: dict[Hashable, Embedding] = {(source.identity, look.frame): look for look in prediction.edges}
        if prediction.look is not None:
            looks[key] = prediction.look
        for name, look in looks.items():
            if look.nbytes <= self._looks.maxsize:
                self._looks[name] = look

    def _crops_of(self, embedding: Embedding, source: PlaneSource) -> tuple[Embedding, ...]:
        from napari_lowlat_seg.inference.edge_looks import lattice  # imports torch

        found = (self._looks.get((source.identity, crop)) for crop in lattice(embedding.frame))
        return tuple(look for look in found if look is not None)

    def _embedding(self, source: PlaneSource) -> Embedding:
        from napari_lowlat_seg.serving.embedding_cache import EmbeddingKey

        last = self._keys.get(source.identity)
        known = None if last is None else self._planes.get(last)
        if known is not None:
            return known
        pixels = np.asarray(source.read())
        if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "buif":
            return self._made(source, pixels)  # raises an error that says what is wrong with them
        # The key is computed again from the pixels: they may have changed since the last time.
        key = EmbeddingKey.of_pixels(self._predictor, pixels, source.plane, source.window, source.spacing)
        self._keys[source.identity] = key
        before = self._encoded
        embedding = self._planes.ensure(
            key, lambda: self._found_in_folder(key, source) or self._made(source, pixels)
        )
        if self._encoded > before:
            self._planes.save(key, embedding)
        return embedding

    def _found_in_folder(self, key: EmbeddingKey, source: PlaneSource) -> Embedding | None:
        """The embedding that another program, such as `lowlat-seg embed`, has left in a folder."""
        from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache

        for folder in source.folders:
            if folder not in self._others and folder.is_dir():
                device = self._predictor.runtime.device
                self._others[folder] = EmbeddingCache(0, 0, folder, 0, device)
            found = self._others[folder].get(key) if folder in self._others else None
            if found is not None:
                return found
        return None

    def _made(self, source: PlaneSource, pixels: np.ndarray) -> Embedding:
        made = self._predictor.embed(pixels, source.window, source.spacing)
        self._encoded += 1
        return made

    @contextmanager
    def _interruptible(self, cancelled: Cancelled) -> Iterator[None]:
        self._cancelled = cancelled
        try:
            yield
        finally:
            self._cancelled = never

    def _raise_if_cancelled(self) -> None:
        if self._cancelled():
            raise Interrupted


def _versions() -> dict[str, str]:
    """Versions of the packages on which a mask's last bit may depend; those that are installed."""
    found = {}
    for name in ("napari-lowlat-seg", "torch", "openvino", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def load_prediction_service(
    model: str = "default",
    device: str = "auto",
    closer_look: CloserLook = "auto",
    precision: Precision | None = None,
    *,
    cache_bytes: int = CACHE_BYTES,
    disk_bytes: int = 0,
    progress: Progress | None = None,
) -> PredictionService:
    """A service for a model by name, which is downloaded first if it is not on this machine.

    Parameters
    ----------
    model, device, closer_look, precision
        As `load_predictor` has them; it also raises its errors.
    cache_bytes
        Memory for embeddings.
    disk_bytes
        Room for embeddings in a folder beside the downloaded models; 0 to write none there.
    progress
        Called with (bytes so far, bytes in all or None) during a download; what it raises cancels it.
    """
    from napari_lowlat_seg.inference.predictor import load_predictor
    from napari_lowlat_seg.models.checkpoints import download_model, model_info

    row = WEIGHTS.get(model)
    if row is not None and row.url and not model_info(model)["downloaded"]:
        download_model(model, progress)
    folder = _embeddings_folder() if disk_bytes else None
    return PredictionService(
        load_predictor(model, device, closer_look, precision), cache_bytes, folder, disk_bytes
    )


def _embeddings_folder() -> Path | None:
    """The folder of embeddings beside the models; None, with a warning, if it cannot be made."""
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


class _CachedPlanes:
    """The planes of a propagation, as `volume.PlaneReader`; each is read more than once, soon after."""

    def __init__(self, sources: dict[Plane, PlaneSource]) -> None:
        self._sources = sources
        self.plane = lru_cache(maxsize=4)(lambda plane: sources[plane].read())
        self.window = next(iter(sources.values())).window

    def plane_spacing(self, plane: Plane) -> tuple[float, float]:
        return self._sources[plane].spacing

    def thickness(self, plane: Plane) -> float:
        return self._sources[plane].thickness

    def source(self, plane: Plane) -> PlaneSource:
        """The source of a plane, which reads the plane's pixels from this cache."""
        return replace(self._sources[plane], read=lambda: self.plane(plane))


@dataclass(frozen=True)
class _SoftMaskPredictor:
    """A predictor of soft masks, which are small and can be sent to another process."""

    predictor: Predictor

    def embed(self, image: Any, window: Any, spacing: Any) -> Any:
        return self.predictor.embed(image, window, spacing)

    def predict(self, embedding: Any, prompts: Sequence[Prompt], previous: SoftMask | None) -> SoftMask:
        return self.predictor.predict(embedding, prompts, previous).soft_mask

    def with_memory(self, *arguments: Any) -> Iterator[PropagatedMask[SoftMask]] | None:
        steps = self.predictor.with_memory(*arguments)
        if steps is None:
            return None
        return (PropagatedMask(**{**vars(one), "prediction": one.prediction.soft_mask}) for one in steps)
