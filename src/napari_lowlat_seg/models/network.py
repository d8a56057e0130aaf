"""The interface of every network of the family: encode an image once, fuse prompts with it, decode a mask.

A network holds parameters and nothing else. What belongs to an image is in the tuples of tensors that
`encode` and `fuse` return, so one network serves any number of images in any order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

# ImageNet's RGB statistics on the scale 0..255: every encoder of the family was trained with them.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

Fit = Literal["letterbox", "official"]
Regions = Literal["prior", "channel"]


class Network(nn.Module, ABC):
    """A network, and what a caller must know to prepare its inputs.

    Attributes
    ----------
    size
        Side S of its square input in pixels.
    radius
        Radius of a click's disk in network pixels.
    fit
        How an image lies on the square: "letterbox" or "official" (stretched); see `Frame`.
    regions
        How boxes, polygons and masks enter the maps: "prior" or "channel"; see `dense_maps`.
    dots
        Number of clicks that stand for a scribble; 0 for the whole line. See docs/decisions/scribbles.md.
    aligned
        Whether the outermost logits of `decode_low_res` lie on the square's corners, as the original has it,
        rather than half a logit inside.
    bf16
        Whether bf16 products on a processor were checked to give the same masks (docs/decisions/hot-path.md).
    openvino
        Whether OpenVINO was measured to be worth the conversion and the memory.
    pad
        RGB, 0..255, that becomes zero inside the network: the colour that a letterbox is padded with.
    """

    size: int
    radius: int
    fit: Fit
    regions: Regions
    dots: int = 0
    aligned: bool = False
    bf16: bool = False
    openvino: bool = False
    pad: tuple[float, float, float] = MEAN

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; images and maps may be float32 and are converted."""
        return next(self.parameters()).dtype

    @abstractmethod
    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        """The features of images (B, 3, S, S), RGB on the scale 0..255, which are normalised inside."""

    @abstractmethod
    def fuse(self, features: tuple[Tensor, ...], maps: Tensor) -> tuple[Tensor, ...]:
        """Features of the image and its prompts together, from `encode`'s features and maps (B, 3, S, S).

        The channels of `maps` are the previous probability or a region prior, positive prompts, negative
        prompts, each in [0, 1]. `features` are not changed; those of one image fit any number of maps.
        """

    @abstractmethod
    def decode(self, fused: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """Logits (B, 1, s, s) on a grid that covers the square, and a predicted IoU (B,) or None."""

    def decode_low_res(self, fused: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """As `decode`, with the logits on the network's own grid, so that they are resized once."""
        return self.decode(fused)

    def forward(self, image: Tensor, maps: Tensor) -> Tensor:
        """Logits (B, 1, s, s) from images and maps, for training."""
        return self.decode(self.fuse(self.encode(image), maps))[0]
