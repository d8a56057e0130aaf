"""What a session keeps of the labels that it writes to, so that they can be made or found again."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from napari_lowlat_seg.core.labels import ArrayLabels, LabelStore, inflated
from napari_lowlat_seg.core.volume import ArrayLike


@dataclass(frozen=True)
class AboutLabels:
    """Labels as a session's file describes them.

    Attributes
    ----------
    dtype
        Their type, of integers.
    name
        What a layer of them is called.
    place
        The file or folder that they lie in, which an accept changes; None in memory.
    content
        What was in them when the session first used them, packed by `packed_content`; None if that is not
        known, of labels on disk.
    """

    dtype: np.dtype[Any]
    name: str = ""
    place: str | None = None
    content: bytes | None = None

    @classmethod
    def of(cls, store: LabelStore) -> AboutLabels:
        """Those of labels in use; a store with an attribute `about` says it itself.

        Labels in an array in memory are read whole, all others are not read.
        """
        known = getattr(store, "about", None)
        if isinstance(known, cls):
            return known
        data: Any = getattr(store, "data", None)
        dtype = np.dtype(getattr(data, "dtype", np.int64))
        if type(data) is np.ndarray:  # not a memory map, which is a file
            return cls(dtype, content=packed_content(data))
        place = getattr(data, "filename", None)
        return cls(dtype, place=str(place or "labels outside of memory"))

    def in_memory(self, shape: tuple[int, ...]) -> ArrayLabels:
        """New labels with the content that these had at first.

        Raises
        ------
        ValueError
            For content of another size, and where it is not known or has no room in memory.
        """
        if self.content is None:
            raise ValueError(f"the session wrote to labels in {self.place}; give them")
        try:
            labels = np.zeros(shape, self.dtype)
        except MemoryError:
            raise ValueError(f"labels of {shape} do not fit into memory; give those on disk") from None
        if self.content:
            flat, at = labels.reshape(-1).view(np.uint8), 0
            for part in inflated(self.content, labels.nbytes):
                flat[at : at + len(part)] = np.frombuffer(part, np.uint8)
                at += len(part)
        return ArrayLabels(labels)


def packed_content(labels: ArrayLike) -> bytes:
    """All labels of an array in C order, as zlib packs them; nothing if all are 0."""
    empty, packer, parts = True, zlib.compressobj(1), []
    for part in _parts(labels):
        empty = empty and not part.any()
        parts.append(packer.compress(part.tobytes()))
    return b"" if empty else b"".join([*parts, packer.flush()])


def _parts(labels: ArrayLike) -> Iterator[np.ndarray]:
    """The array in pieces of one plane or so, so that a large one is not held twice."""
    step = max(1, 2**22 // max(1, prod(labels.shape[1:])))
    for first in range(0, labels.shape[0], step):
        yield np.asarray(labels[first : first + step])
