"""A memory of other planes small enough for tests, and one that always finds what was there before."""

from __future__ import annotations

import numpy as np
import torch

from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.inference.memory.propagation import MemoryPropagation
from napari_lowlat_seg.inference.prediction import Prediction
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.models.compact import Compact, CompactConfig
from napari_lowlat_seg.models.plane_memory import MemoryConfig, PlaneMemory

SMALL = MemoryConfig(token=16, head=8, layers=1, rank=2, match=4, reach=1)


def small_network() -> Compact:
    """A compact network of 256 x 256 with random weights."""
    torch.manual_seed(0)
    return Compact(CompactConfig(size=256, width=32, heads=2, blocks=1, skip8=8, skip4=8)).eval()


def small_memory(network: Compact) -> PlaneMemory:
    """A memory for it that is not trained."""
    torch.manual_seed(1)
    return PlaneMemory(network, SMALL).eval()


class SureMemory(PlaneMemory):
    """A memory that finds what was on the plane before, on the next `left` planes, with one predicted IoU."""

    left, quality = 10**6, 0.8

    def forward(self, features, memory, facts, clicks=None):
        output = super().forward(features, memory, facts, clicks)
        mask = torch.nn.functional.avg_pool2d(memory[2].mask, 2)
        presence = features[0].new_tensor([8.0 if self.left > 0 else -8.0])
        self.left -= 1
        quality = torch.full_like(presence, self.quality)
        return output._replace(logits=16 * mask - 8, presence=presence, quality=quality)


def sure_propagation(network: Compact) -> MemoryPropagation:
    """Propagation through nine planes of noise with a `SureMemory`."""
    predictor = Predictor(network, Runtime(), "off")
    image = np.random.default_rng(0).integers(0, 255, (9, 60, 70)).astype(np.uint8)
    memory = SureMemory(network, SMALL).eval()
    return MemoryPropagation(predictor, memory, Volume(image).with_window())


def anchor(
    propagation: MemoryPropagation, place: int, box: tuple[int, int, int, int] = (20, 20, 34, 40)
) -> dict[Plane, Prediction]:
    """A plane with a box (top, left, bottom, right) as its mask."""
    plane = propagation.volume.planes(0)[place]
    soft = np.zeros((60, 70), np.float32)
    soft[box[0] : box[2], box[1] : box[3]] = 1
    embedding = propagation.predictor.embed(propagation.volume.plane(plane), propagation.volume.window)
    return {plane: Prediction(soft, None, embedding.frame)}
