"""Embeddings as files: half precision, checked to the last bit, never seen half written.

A file is written under another name, moved to its place when complete, and ends with a digest of its bytes;
a process may be killed, a disk may be full, others may write the same file: what is read is whole.
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
from torch import Tensor

from napari_lowlat_seg.core.atomic_file import PREFIX, atomic_file, remove_leftovers
from napari_lowlat_seg.inference.predictor import Embedding

SUFFIX = ".embedding"
CHECKSUM = 16
"""Bytes of the digest at the end of a file; it covers all bytes before it."""

_LARGEST_HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True, eq=False)
class Packed:
    """An embedding in half precision in main memory, and what it takes to undo that.

    Attributes
    ----------
    features
        The encoder's tensors.
    kinds
        What they were: "float32", with " last" behind it if they were laid out channels last.
    image
        As in `Embedding`.
    """

    features: tuple[Tensor, ...]
    kinds: tuple[str, ...]
    image: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of features and picture."""
        return sum(feature.nbytes for feature in self.features) + self.image.nbytes


def pack(embedding: Embedding) -> Packed:
    """Half precision where the values allow it: beyond its range a feature stays as it is."""
    features, kinds = [], []
    for feature in embedding.features:
        last = feature.ndim == 4 and not feature.is_contiguous() and _is_channels_last(feature)
        kinds.append(str(feature.dtype).removeprefix("torch.") + (" last" if last else ""))
        fits = feature.is_floating_point() and float(feature.abs().amax()) <= _LARGEST_HALF
        features.append(feature.to("cpu", torch.float16 if fits else feature.dtype).contiguous())
    return Packed(tuple(features), tuple(kinds), embedding.image)


def unpack(packed: Packed, device: str) -> tuple[Tensor, ...]:
    """The features of a packed embedding on a device, in the type and layout they had."""
    return tuple(_restored(f, kind, device) for f, kind in zip(packed.features, packed.kinds))


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
        """Bytes of all complete files, whoever wrote them."""
        return sum(size for _, size, _ in self._files())

    def read(self, name: str, identity: str) -> Packed | None:
        """The content of a file if it is whole and says `identity`; else None, and the file is deleted."""
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

    def write(self, name: str, identity: str, packed: Packed) -> None:
        """Write a file unless it exists. If that is impossible, warns once, and writes nothing ever after."""
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
                f"the embedding cache cannot write to {self._folder} ({error.strerror or error}); it goes on "
                "in memory: make room there or choose another folder",
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


def _restored(feature: Tensor, kind: str, device: str) -> Tensor:
    name, _, last = kind.partition(" ")
    layout = torch.channels_last if last else torch.contiguous_format
    return feature.to(device, getattr(torch, name), memory_format=layout)


def _is_channels_last(feature: Tensor) -> bool:
    return feature.is_contiguous(memory_format=torch.channels_last)


def _encoded(identity: str, packed: Packed) -> bytes:
    """A file: tensors in the safetensors format, then a digest of those bytes."""
    tensors = {f"{i} {kind}": f for i, (f, kind) in enumerate(zip(packed.features, packed.kinds))}
    tensors["image"] = torch.from_numpy(np.ascontiguousarray(packed.image))
    tensors["key"] = torch.frombuffer(bytearray(identity.encode()), dtype=torch.uint8)
    body = safetensors.torch.save(tensors)
    return body + hashlib.blake2b(body, digest_size=CHECKSUM).digest()


def _decoded(identity: str, blob: bytes) -> Packed | None:
    """What a file holds; None if it is torn, damaged, or of another key."""
    body, checksum = blob[:-CHECKSUM], blob[-CHECKSUM:]
    if hashlib.blake2b(body, digest_size=CHECKSUM).digest() != checksum:
        return None
    tensors = safetensors.torch.load(body)
    if bytes(tensors.pop("key").numpy()) != identity.encode():
        return None
    image = tensors.pop("image").numpy()
    named = sorted((int(name.split()[0]), name) for name in tensors)
    kinds = tuple(name.partition(" ")[2] for _, name in named)
    return Packed(tuple(tensors[name] for _, name in named), kinds, image)
