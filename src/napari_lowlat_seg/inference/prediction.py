"""What comes out of a predictor: the embedding of an image, and the mask of an object on it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import THRESHOLD, SoftMask

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Embedding:
    """An image as a network has encoded it.

    Attributes
    ----------
    features
        The encoder's tensors, on the predictor's device.
    frame
        How the image lies on the network's square input.
    image
        (H, W) or (H, W, 3) uint8: the whole image after its intensity window was applied.
    model
        Fingerprint of the network that made it; other networks refuse it.
    """

    features: tuple[Tensor, ...]
    frame: Frame
    image: np.ndarray
    model: str

    @property
    def nbytes(self) -> int:
        """Bytes of features and image."""
        return sum(feature.nbytes for feature in self.features) + self.image.nbytes


@dataclass(frozen=True, eq=False)
class Prediction:
    """The soft mask of an object at full precision, with the view of the image that it was predicted from.

    `SoftMask` is its rounded, compressed form, which is kept for undo and sent between processes; why there
    are two: docs/decisions/soft-mask.md.

    Attributes
    ----------
    soft
        (H, W) probabilities in [0, 1], where they were computed: float32 on the host, or the device's own
        type on a GPU, from which nothing is copied until `probability` is read.
    quality
        The network's estimate of the mask's IoU in [0, 1]; None if it makes none.
    frame
        The frame of the embedding that the network was given.
    look
        The embedding of a closer look, if one was taken; the next `predict` may use it again.
    host_mask
        `mask`, if it is on the host already.
    edges
        The embeddings of crops along the outline, if any were looked at; the next `predict` uses them again.
    """

    soft: np.ndarray | Tensor
    quality: float | None
    frame: Frame
    look: Embedding | None = None
    host_mask: np.ndarray | None = field(default=None, repr=False)
    edges: tuple[Embedding, ...] = ()

    @classmethod
    def of(
        cls,
        mask: SoftMask,
        frame: Frame,
        look: Embedding | None = None,
        edges: tuple[Embedding, ...] = (),
    ) -> Prediction:
        """The prediction that a kept soft mask was; its probability is the rounded one.

        `frame`, `look` and `edges` are what it was seen through, as this class has them.
        """
        return cls(mask.probability, mask.quality, frame, look, None, edges)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return (int(self.soft.shape[0]), int(self.soft.shape[1]))

    @cached_property
    def probability(self) -> np.ndarray:
        """(H, W) float32 in [0, 1]."""
        if isinstance(self.soft, np.ndarray):
            return self.soft
        probability: np.ndarray = self.soft.cpu().float().numpy()  # the device needs no memory for it
        return probability

    @cached_property
    def mask(self) -> np.ndarray:
        """(H, W) bool: probability above 0.49."""
        if self.host_mask is not None:
            return self.host_mask
        if isinstance(self.soft, Tensor):  # a quarter of the bytes of a probability
            return host_if_full(lambda soft: (soft > THRESHOLD).cpu().numpy(), self.soft)
        mask: np.ndarray = self.soft > THRESHOLD
        return mask

    @property
    def soft_mask(self) -> SoftMask:
        """The rounded, compressed form, to keep or to send."""
        return SoftMask.of(self.probability, self.quality)

    def with_probability(self, probability: np.ndarray) -> Prediction:
        """This prediction with another probability, (H, W) float32, and without its closer looks."""
        return replace(self, soft=probability, look=None, host_mask=None, edges=())

    def on_plane(self, around: Prediction | None, share: float = 0.0) -> Prediction:
        """This prediction of its frame's crop on the whole plane; beside the crop stays what `around` has.

        In the crop, a `share` of the probability is that of `around`.
        """
        if around is None or self.shape == self.frame.shape:
            return self
        soft, shown = host_if_full(partial(self._over, around, share), self.soft)
        mask = around.mask.copy()
        self.frame.place(shown, mask)
        return replace(self, soft=soft, host_mask=mask)

    def _over(
        self, around: Prediction, share: float, own: np.ndarray | Tensor
    ) -> tuple[np.ndarray | Tensor, np.ndarray]:
        """The probability on the whole plane, where the crop's `own` is, and the mask in the crop."""
        soft: np.ndarray | Tensor
        if isinstance(own, Tensor):
            soft = torch.as_tensor(around.soft).to(own, copy=True)
        else:
            soft = around.probability.copy()
        crop: Any = self.frame.cut(soft)
        crop[...] = own + share * (crop - own) if share else own
        shown = crop > THRESHOLD if share else self.mask
        return soft, shown.cpu().numpy() if isinstance(shown, Tensor) else shown


def host_if_full(work: Callable[[Any], T], plane: np.ndarray | Tensor) -> T:
    """What `work` makes of a plane; where a GPU's memory does not suffice, of the same plane on the host."""
    with suppress(torch.cuda.OutOfMemoryError):
        return work(plane)
    # Behind the block: the exception held the frames of `work`, and these what filled the memory.
    return work(plane.cpu() if isinstance(plane, Tensor) else plane)
