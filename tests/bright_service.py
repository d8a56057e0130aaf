"""A prediction service for windows in tests: it finds what is bright, and waits when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import ndimage

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.requests import FoundOnPlane, PlaneSource, PropagationRequest, Request
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.propagation.sweep import PropagatedMask
from napari_lowlat_seg.serving.worker_process import Interrupted


class BrightService:
    """A prediction service that finds the bright parts under positive prompts, in the pixels it is handed.

    Attributes
    ----------
    gate
        Cleared, predictions wait until it is set.
    calls
        (plane, prompts) of every prediction, as it begins.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[tuple[Plane, Sequence[Prompt]]] = []

    def describe(self, progress: object = None) -> dict[str, object]:
        return {"model": "bright", "device": "cpu", "precision": "float32", "licence": "none"}

    def embed(self, source: PlaneSource, cancelled: object = None) -> float:
        return 0.0

    def predict(
        self, request: Request, source: PlaneSource, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[SoftMask, bool]]:
        self.calls.append((source.plane, request.prompts))
        pixels = source.read()
        while not self.gate.wait(0.01):
            if cancelled():
                raise Interrupted
        yield unsure_of_outline(bright_mask(pixels, request.prompts)), True

    def find_objects(
        self, settings: object, sources: Sequence[PlaneSource], cancelled: Callable[[], bool]
    ) -> Iterator[tuple[int, FoundOnPlane]]:
        """All bright parts; a larger one seems better."""
        for place, source in enumerate(sources):
            labels, count = ndimage.label(source.read() > 100)
            yield place, FoundOnPlane(1, 2)
            while not self.gate.wait(0.01):
                if cancelled():
                    return
            sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:] / labels.size
            yield place, FoundOnPlane(2, 2, labels.astype(np.uint32), sizes.astype(np.float32))

    def propagate(
        self, request: PropagationRequest, sources: Sequence[PlaneSource], cancelled: Callable[[], bool]
    ) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
        """Every plane gets its bright parts in the middle of the object on the nearest anchor."""
        for number, anchors in request.anchors.items():
            for plane, source in zip(request.planes, sources, strict=True):
                if plane in anchors:
                    continue
                while not self.gate.wait(0.01):
                    if cancelled():
                        return
                nearest = min(anchors, key=lambda one: abs(one.position - plane.position))
                row, col = (int(x) for x in np.argwhere(anchors[nearest].mask).mean(axis=0))
                yield number, PropagatedMask(plane, bright_mask(source.read(), [Click((row, col))]), 0.8)

    def restart(self) -> None:
        """It is never stuck."""

    close = restart


def bright_mask(pixels: np.ndarray, prompts: Sequence[Prompt]) -> SoftMask:
    """The bright connected parts that positive prompts touch, with probability 0.9."""
    if not np.isfinite(pixels).any():
        raise ValueError("the plane has no finite pixel")
    bright = (pixels if pixels.ndim == 2 else pixels.mean(axis=2)) > 127
    parts, _ = ndimage.label(bright)
    at = [prompt.bounds()[:2] for prompt in prompts if prompt.positive]
    rows, cols = parts.shape
    touched = {parts[min(max(round(r), 0), rows - 1), min(max(round(c), 0), cols - 1)] for r, c in at} - {0}
    return SoftMask.of(np.where(np.isin(parts, list(touched)), np.float32(0.9), np.float32(0)))


def unsure_of_outline(found: SoftMask) -> SoftMask:
    """The same mask with two other levels: without its outermost pixels, and with those around it."""
    mask = found.mask
    inner, outer = ndimage.binary_erosion(mask), ndimage.binary_dilation(mask)
    return found.with_probability(np.select([inner, mask, outer], [0.9, 0.55, 0.45], 0).astype(np.float32))


def balls(shape=(12, 40, 50), at=((6, 20, 25), (5, 9, 9)), radius=5, dtype=np.uint8):
    """An image of bright balls, and the truth: ball 1, ball 2, ..."""
    grid = np.indices(shape)
    truth = np.zeros(shape, np.uint8)
    for number, centre in enumerate(at, 1):
        truth[sum((axis - c) ** 2 for axis, c in zip(grid, centre)) < radius**2] = number
    return np.where(truth > 0, 200, 60).astype(dtype), truth
