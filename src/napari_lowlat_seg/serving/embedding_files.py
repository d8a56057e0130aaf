"""Embeddings as files in half precision, moved into place when complete and checked when read.

A file ends with a digest of its bytes. A process may be killed, a disk may be full, other processes may write
the same file: an embedding that is read is whole.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from napari_lowlat_seg.core.atomic_file import PREFIX, atomic_file, remove_leftovers
from napari_lowlat_seg.inference.prediction import Embedding

SUFFIX = ".embedding"
CHECKSUM = 16
"""Bytes of the digest at the end of a file; it covers all bytes before it."""

_LARGEST_HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True, eq=False)
class PackedEmbedding:
    """An embedding in half precision in main memory, with the types and layouts to restore.

    Attributes
    ----------
    features
        The encoder's tensors, float16 where their values allow it.
    layouts
        The type that each tensor had, such as "float32", followed by " last" if it was channels last.
    image
        As in `Embedding`.
    """

    features: tuple[Tensor, ...]
    layouts: tuple[str, ...]
    image: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of features and image."""
        return sum(feature.nbytes for feature in self.features) + self.image.nbytes


def pack(embedding: Embedding) -> PackedEmbedding:
    """An embedding in half precision; a feature with values beyond its range keeps its type."""
    features, layouts = [], []
    for feature in embedding.features:
        last = feature.ndim == 4 and not feature.is_contiguous()
        last = last and feature.is_contiguous(memory_format=torch.channels_last)
        layouts.append(str(feature.dtype).removeprefix("torch.") + (" last" if last else ""))
        fits = feature.is_floating_point() and float(feature.abs().amax()) <= _LARGEST_HALF
        features.append(feature.to("cpu", torch.float16 if fits else feature.dtype).contiguous())
    return PackedEmbedding(tuple(features), tuple(layouts), embedding.image)


def unpack(packed: PackedEmbedding, device: str) -> tuple[Tensor, ...]:
    """The features of a packed embedding on a device, in the type and layout they had."""
    return tuple(_restored(f, layout, device) for f, layout in zip(packed.features, packed.layouts))


class EmbeddingFolder:
    """Files of packed embeddings, checked when read, moved into place when complete.

    Parameters
    ----------
    folder
        Made if it does not exist. Files left half written by killed processes are removed.
    limit
        Bytes that all files together may take; None for as much as there is. The files unused for longest
        make room.
    """

    def __init__(self, folder: Path, limit: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._limit = limit
        self._writable = True
        self._lock = Lock()
        remove_leftovers(folder)

    def __contains__(self, name: str) -> bool:
        """Whether there is such a file; it may still turn out to be damaged."""
        return (self._folder / name).exists()

    @property
    def nbytes(self) -> int:
        """Bytes of all complete files, also those of other processes."""
        return sum(size for _, size, _ in self._files())

    def read(self, name: str, identity: str) -> PackedEmbedding | None:
        """The embedding in a file if it is whole and of `identity`; else None, and the file is deleted."""
        path = self._folder / name
        try:
            blob = path.read_bytes()
        except OSError:
            return None
        packed = _decoded(identity, blob)
        try:
            if packed is None:
                path.unlink(missing_ok=True)
            else:
                os.utime(path)  # the time of a file is that of its last use
        except OSError:
            pass  # a folder that may only be read serves as well
        return packed

    def write(self, name: str, identity: str, packed: PackedEmbedding) -> None:
        """Write the embedding with an identity to a file of this name, unless that exists.

        If it is impossible, warn once and write nothing from then on.
        """
        path = self._folder / name
        if not self._writable or path.exists():
            return
        try:
            blob = _encoded(identity, packed)
            if self._limit is not None and not self._make_room(len(blob)):
                return
            with atomic_file(path, durable=False) as part:
                part.write_bytes(blob)
        except OSError as error:
            if not path.exists():  # else another process was quicker, and its file is in use
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            first, self._writable = self._writable, False
        if first:
            warnings.warn(
                f"the embedding cache cannot write to {self._folder} ({error.strerror or error}); it "
                "continues in memory: make room there or choose another folder",
                RuntimeWarning,
                stacklevel=2,
            )

    def _make_room(self, needed: int) -> bool:
        """Delete the files unused for longest until `needed` bytes fit; False if they never will."""
        limit = self._limit or 0
        if needed > limit:
            return False
        files = sorted(self._files())
        held = sum(size for _, size, _ in files)
        for _, size, path in files:
            if held + needed <= limit:
                break
            path.unlink(missing_ok=True)
            held -= size
        return True

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(last use, bytes, path) of every complete file."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX) and not entry.name.startswith(PREFIX):
                    try:
                        about = entry.stat()
                    except FileNotFoundError:  # another process has just deleted it
                        continue
                    yield about.st_mtime, about.st_size, Path(entry.path)


def _restored(feature: Tensor, layout: str, device: str) -> Tensor:
    name, _, last = layout.partition(" ")
    memory_format = torch.channels_last if last else torch.contiguous_format
    return feature.to(device, getattr(torch, name), memory_format=memory_format)


def _encoded(identity: str, packed: PackedEmbedding) -> bytes:
    """A file: tensors in the safetensors format, then a digest of those bytes."""
    tensors = {f"{i} {layout}": f for i, (f, layout) in enumerate(zip(packed.features, packed.layouts))}
    tensors["image"] = torch.from_numpy(np.ascontiguousarray(packed.image))
    tensors["key"] = torch.frombuffer(bytearray(identity.encode()), dtype=torch.uint8)
    body = safetensors.torch.save(tensors)
    return body + hashlib.blake2b(body, digest_size=CHECKSUM).digest()


def _decoded(identity: str, blob: bytes) -> PackedEmbedding | None:
    """The embedding in the bytes of a file; None if they are cut short, damaged, or of another key.

    A digest says that a file is as it was written, not by whom: what is in it may be anything.
    """
    body, checksum = blob[:-CHECKSUM], blob[-CHECKSUM:]
    if hashlib.blake2b(body, digest_size=CHECKSUM).digest() != checksum:
        return None
    try:
        tensors = safetensors.torch.load(body)
        if bytes(tensors.pop("key").numpy()) != identity.encode():
            return None
        image = tensors.pop("image").numpy()
        named = sorted((int(name.split()[0]), name) for name in tensors)
    except (SafetensorError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
    layouts = tuple(name.partition(" ")[2] for _, name in named)
    features = tuple(tensors[name] for _, name in named)
    numbered = [number for number, _ in named] == list(range(len(named)))
    fits = image.dtype == np.uint8 and image.ndim in (2, 3) and image.size > 0
    if not fits or not features or not numbered or not all(map(_is_feature, features, layouts)):
        return None
    return PackedEmbedding(features, layouts, image)


def _is_feature(feature: Tensor, layout: str) -> bool:
    """Whether a tensor can be restored to a layout."""
    name, _, last = layout.partition(" ")
    known = name in ("float16", "bfloat16", "float32", "float64") and last in ("", "last")
    laid = last == "" or feature.ndim == 4
    return known and laid and feature.is_floating_point()
