"""Embeddings of a volume's planes through the frames of a sweep; those of the next planes are begun early.

While the memory and the network's own mask are computed for one plane, the next two are embedded, in streams
of their own. On a busy machine the threads of one step mostly wait for each other; streams never do. What was
begun through a frame that has moved since is dropped. Numbers: docs/decisions/busy-machines.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.volume import Plane, PlaneReader, to_uint8

if TYPE_CHECKING:
    from napari_lowlat_seg.inference.openvino_backend import CompiledStep, StepUnderWay
    from napari_lowlat_seg.inference.predictor import Predictor

MAX_EMBEDDINGS = 24
"""Embeddings of frames kept at a time."""

Key = tuple[Plane, tuple[int, int, int, int]]


class FrameEmbeddings:
    """Embeddings of planes through frames, the newest kept.

    Parameters
    ----------
    predictor
        Embeds.
    volume
        Planes with a window, or each is stretched by itself.
    """

    def __init__(self, predictor: Predictor, volume: PlaneReader) -> None:
        self._predictor = predictor
        self._volume = volume
        self._made: OrderedDict[Key, tuple[Tensor, ...]] = OrderedDict()
        self._begun: dict[Key, StepUnderWay] = {}
        self._unreadable: set[Plane] = set()  # when they were to be begun
        self._ahead: CompiledStep | None = None

    def __len__(self) -> int:
        return len(self._made)

    def of(self, plane: Plane, frame: Frame) -> tuple[Tensor, ...]:
        """The encoder's tensors for the frame's crop of a plane."""
        key = (plane, frame.crop)
        if key not in self._made:
            begun = self._begun.pop(key, None)
            if begun is None:
                self._made[key] = self._predictor.backend.embed(self._pixels(plane), frame)
            else:
                self._made[key] = begun.result()
            while len(self._made) > MAX_EMBEDDINGS:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]

    def begin(self, planes: Iterable[Plane], frame: Frame) -> None:
        """Begin to embed these planes, if that gains anything, and drop what was begun of others.

        A plane that cannot be read is tried again when it is asked for: the planes before it come first.
        """
        backend = self._predictor.backend
        self._ahead = backend.ahead
        if self._ahead is None:
            return
        wanted = {(plane, frame.crop): plane for plane in planes}
        self._drop(self._begun.keys() - wanted)
        for key, plane in wanted.items():
            if key in self._made or key in self._begun or plane in self._unreadable:
                continue
            try:
                pixels = self._pixels(plane)
            except Exception:
                self._unreadable.add(plane)
            else:
                self._begun[key] = backend.start(pixels, frame)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Inside, torch uses one thread if embeddings are begun: the processors are busy with these."""
        threads, alone = torch.get_num_threads(), self._predictor.backend.ahead is None
        torch.set_num_threads(threads if alone else 1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def clear(self) -> None:
        """Forget what was made; it was on another device."""
        self._made.clear()

    def drop(self) -> None:
        """Stop all that was begun, and give back the memory that it took."""
        self._drop(list(self._begun))
        if self._ahead is not None:
            self._ahead.rest()

    def _drop(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._begun.pop(key).cancel()

    def _pixels(self, plane: Plane) -> np.ndarray:
        return to_uint8(self._volume.plane(plane), self._volume.window)
