"""What the engine hands out and takes back: what it saw in a picture, and what it drew there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import THRESHOLD


@dataclass(frozen=True, eq=False)
class Embedding:
    """What a network saw in one picture, through one frame.

    Attributes
    ----------
    features
        The encoder's tensors, on the predictor's device.
    frame
        How the picture lies on the network's square.
    image
        The whole plane as the network's eye has it, (H, W) or (H, W, 3) uint8.
    model
        Fingerprint of the network that made it; another network refuses it.
    """

    features: tuple[Tensor, ...]
    frame: Frame
    image: np.ndarray
    model: str


@dataclass(frozen=True, eq=False)
class Prediction:
    """An answer in plane pixels.

    Attributes
    ----------
    soft
        The probability where it was computed: (H, W) on the host, or on a GPU as long as nobody asks.
    quality
        The network's own estimate of its IoU in [0, 1], or None if it makes none.
    frame
        The frame of the embedding that was asked.
    look
        The embedding of a closer look if one was taken; the next `predict` may use it again.
    fetched
        The mask if it is on the host already.
    """

    soft: np.ndarray | Tensor
    quality: float | None
    frame: Frame
    look: Embedding | None = None
    fetched: np.ndarray | None = field(default=None, repr=False)

    @cached_property
    def probability(self) -> np.ndarray:
        """(H, W) float32 in [0, 1]."""
        if isinstance(self.soft, np.ndarray):
            return self.soft
        probability: np.ndarray = self.soft.float().cpu().numpy()
        return probability

    def redrawn(self, probability: np.ndarray) -> Prediction:
        """This answer with another probability, (H, W) float32, and no closer look."""
        return replace(self, soft=probability, look=None, fetched=None)

    @cached_property
    def mask(self) -> np.ndarray:
        """(H, W) bool: probability above 0.49."""
        if self.fetched is not None:
            return self.fetched
        mask: np.ndarray = self.probability > THRESHOLD
        return mask
