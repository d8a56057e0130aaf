"""A cache of embeddings: on the device, in host memory and in a folder, each bounded in bytes.

Least recently used entries move from device to host memory to disk, then are dropped. An embedding comes back
with the same bytes from every tier, because its features are rounded to half precision when it enters. Why
the cache looks as it does: docs/decisions/embedding-cache.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from cachetools import LRUCache

from napari_lowlat_seg.core.frame import Fit, Frame
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.inference.prediction import Embedding
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.serving.embedding_files import SUFFIX, EmbeddingFolder, PackedEmbedding, pack, unpack


@dataclass(frozen=True)
class EmbeddingKey:
    """All that an embedding depends on.

    Parameters
    ----------
    content
        A digest of the pixels that are embedded, so that an edited plane has another key.
    plane
        Which plane of its volume it is.
    frame
        The part of the plane that the network sees, its spacing and the size of the network's input.
    window
        (low, high) intensities shown as black and white; None when they are the image's own percentiles.
    model
        Fingerprint of the network, `Predictor.model`.
    """

    content: str
    plane: Plane
    frame: Frame
    window: tuple[float, float] | None
    model: str

    def __post_init__(self) -> None:
        if self.window is not None:
            # The repr of a numpy number differs from that of the same number of Python.
            object.__setattr__(self, "window", (float(self.window[0]), float(self.window[1])))

    @classmethod
    def of(cls, predictor: Predictor, volume: Volume, plane: Plane) -> EmbeddingKey:
        """The key of a whole plane as `sweep.embed_plane` embeds it. Reads the plane's pixels."""
        pixels = volume.plane(plane)
        return cls.of_pixels(predictor, pixels, plane, volume.window, volume.plane_spacing(plane))

    @classmethod
    def of_pixels(
        cls,
        predictor: Predictor,
        pixels: np.ndarray,
        plane: Plane,
        window: tuple[float, float] | None,
        spacing: tuple[float, float],
    ) -> EmbeddingKey:
        """The key of pixels (H, W) or (H, W, 3), window and spacing as `Predictor.embed` takes them."""
        fit: Fit = predictor.network.fit
        frame = Frame.whole(pixels.shape[:2], predictor.size, fit, spacing)
        return cls(content_digest(pixels), plane, frame, window, predictor.model)

    @property
    def filename(self) -> str:
        """The name of the embedding's file: a digest of the whole key."""
        return hashlib.blake2b(repr(self).encode(), digest_size=20).hexdigest() + SUFFIX


class CachedBytes(NamedTuple):
    """Bytes in each tier."""

    device: int
    host: int
    disk: int


class EmbeddingCache:
    """Embeddings by key, in three tiers.

    Parameters
    ----------
    device_bytes
        Room for embeddings ready to use. Without an accelerator these are in main memory as well.
    host_bytes
        Room for embeddings in half precision in main memory.
    folder
        Where embeddings go that are evicted from host memory; None to drop them. Any number of processes may
        share one folder.
    disk_bytes
        Room in the folder for the files of all processes together; None for as much as there is.
    device
        Where embeddings from host and disk are put to use: `predictor.runtime.device`.

    Raises
    ------
    ValueError
        For a negative size.
    OSError
        If the folder cannot be made.

    Notes
    -----
    All methods may be called from any thread. A file is moved to its place when it is complete, and ends with
    a digest of its bytes: what a killed process left half written is never used. When the folder cannot be
    written to, the cache warns once and continues in memory.
    """

    def __init__(
        self,
        device_bytes: int = 2**29,
        host_bytes: int = 2**30,
        folder: str | Path | None = None,
        disk_bytes: int | None = 20 * 2**30,
        device: str = "cpu",
    ) -> None:
        sizes = (device_bytes, host_bytes, disk_bytes or 0)
        if min(sizes) < 0:
            raise ValueError(f"an embedding cache needs sizes of 0 bytes or more; got {sizes}")
        self.device = device
        self._lock = Lock()
        self._making: dict[EmbeddingKey, Future[Embedding]] = {}
        # An image that a caller still holds is returned again: a closer look knows its image by identity.
        self._images: WeakValueDictionary[EmbeddingKey, np.ndarray] = WeakValueDictionary()
        self._device = _Tier(device_bytes)
        self._host = _Tier(host_bytes)
        self._disk = None if folder is None else EmbeddingFolder(Path(folder), disk_bytes)

    def ensure(self, key: EmbeddingKey, make: Callable[[], Embedding]) -> Embedding:
        """The embedding of a key, made by `make` if there is none; two threads that ask at once make it once.

        Raises ValueError if `make` returns an embedding of another frame or model than the key names, and
        whatever `make` raises; nothing is kept then. A thread that waits for another one's `make` calls its
        own if that one raises, for instance because it was interrupted.
        """
        mine: Future[Embedding] = Future()
        while True:
            with self._lock:
                pending = self._making.setdefault(key, mine)
            if pending is mine:
                break
            if pending.exception() is None:
                return pending.result()
        try:
            found = self.get(key)
            if found is None:
                found = self._checked(key, make())
            mine.set_result(found)
            return found
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._making[key]

    def get(self, key: EmbeddingKey) -> Embedding | None:
        """The embedding of a key, now the most recently used one; None if there is none."""
        with self._lock:
            ready: Embedding | None = self._device.get(key)
            if ready is not None:
                return ready
            packed: PackedEmbedding | None = self._host.pop(key, None)
        if packed is None and self._disk is not None:
            packed = self._disk.read(key.filename, repr(key))
        return None if packed is None else self._promoted(key, packed)

    def __contains__(self, key: EmbeddingKey) -> bool:
        """Whether the embedding is in any tier. A damaged file counts until it is read."""
        with self._lock:
            held = key in self._device or key in self._host
        return held or (self._disk is not None and key.filename in self._disk)

    @property
    def nbytes(self) -> CachedBytes:
        """Bytes on the device, in host memory and on disk."""
        disk = 0 if self._disk is None else self._disk.nbytes
        with self._lock:
            return CachedBytes(int(self._device.currsize), int(self._host.currsize), disk)

    def save(self, key: EmbeddingKey, embedding: Embedding) -> None:
        """Write an embedding to the folder now, if there is one, in case this process is killed later."""
        if self._disk is not None:
            self._write(key, pack(embedding))

    def _checked(self, key: EmbeddingKey, made: Embedding) -> Embedding:
        """A new embedding, rounded as it will come back from every tier."""
        if made.frame != key.frame or made.model != key.model:
            raise ValueError(
                f"an embedding must be what its key says, {key.frame} by {key.model}; got {made.frame} by "
                f"{made.model}"
            )
        return self._promoted(key, pack(made))

    def _promoted(self, key: EmbeddingKey, packed: PackedEmbedding) -> Embedding:
        """An embedding put on the device, ready for use; others move down a tier to make room."""
        with self._lock:
            image = self._images.setdefault(key, packed.image)
        try:
            features = unpack(packed, self.device)
        except torch.cuda.OutOfMemoryError:
            self.device = "cpu"  # the predictor takes features from there, too
            features = unpack(packed, self.device)
        ready = Embedding(features, key.frame, image, key.model)
        with self._lock:
            evicted = self._device.add(key, ready)
            dropped = [drop for k, old in evicted for drop in self._host.add(k, pack(old))]
        # Files are slow, so they are written without the lock.
        for k, old in dropped:
            self._write(k, old)
        return ready

    def _write(self, key: EmbeddingKey, packed: PackedEmbedding) -> None:
        if self._disk is not None:
            self._disk.write(key.filename, repr(key), packed)


class _Tier(LRUCache[EmbeddingKey, Any]):
    """An LRU cache bounded in bytes that returns what it evicts."""

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize, lambda value: value.nbytes)
        self._evicted: list[tuple[EmbeddingKey, Any]] = []

    def add(self, key: EmbeddingKey, value: Any) -> list[tuple[EmbeddingKey, Any]]:
        """Add a value and return those evicted for it, or the value itself if it is too large."""
        if self.getsizeof(value) > self.maxsize:
            return [(key, value)]
        self[key] = value
        evicted, self._evicted = self._evicted, []
        return evicted

    def popitem(self) -> tuple[EmbeddingKey, Any]:
        item: tuple[EmbeddingKey, Any] = super().popitem()
        self._evicted.append(item)
        return item


def content_digest(pixels: np.ndarray) -> str:
    """A digest of an array's shape, type and bytes.

    >>> content_digest(np.zeros((2, 3))) == content_digest(np.zeros((3, 2)))
    False
    """
    digest = hashlib.blake2b(f"{pixels.shape} {pixels.dtype.str}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).view(np.uint8).data)
    return digest.hexdigest()
