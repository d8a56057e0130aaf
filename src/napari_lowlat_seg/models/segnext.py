"""SegNext as published: encode -> fuse -> decode.

The image is encoded once; the prompts become pixels of three maps, the maps become tokens, and the sum of
both sets of tokens passes through self-attention over the whole picture. A pyramid of four levels and a light
head draw the mask. Liu, Cho, Bansal, Niethammer: "Rethinking Interactive Image Segmentation with Low Latency,
High Quality, and Diverse Prompts", CVPR 2024. Parameter names are those of the official files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_lowlat_seg.models.disks import distance_maps
from napari_lowlat_seg.models.network import MEAN, STD, Fit, Network, Regions
from napari_lowlat_seg.models.pyramid import Head, Neck
from napari_lowlat_seg.models.vit import Block, PatchEmbed, PlainViT


@dataclass(frozen=True)
class SegNextConfig:
    """The geometry of a SegNext; the defaults are those of the released ViT-B models.

    Attributes
    ----------
    size
        Side of the input in pixels, a multiple of 2 * `patch`.
    patch
        Side of a patch in pixels.
    dim, depth, heads, mlp_ratio, global_every
        The encoder; see `PlainViT`.
    fusion_blocks
        0 adds prompt tokens to image tokens and stops there ("naive"); 1 is SAx1, 2 is SAx2.
    fusion_heads, fusion_mlp_ratio
        Heads and width of the fusion blocks.
    neck_dims
        Channels of the pyramid at 1/4, 1/8, 1/16 and 1/32 (for a patch of 16).
    head_dim
        Channels of the head.
    radius
        Radius of a click in network pixels.
    use_disks
        True for disks, False for distances tanh(2 d / radius) (the ablation "no disk").
    fit, regions
        See `Network`.
    """

    size: int = 1024
    patch: int = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    global_every: int = 3
    fusion_blocks: int = 1
    fusion_heads: int = 12
    fusion_mlp_ratio: float = 4.0
    neck_dims: tuple[int, int, int, int] = (128, 256, 512, 1024)
    head_dim: int = 256
    radius: int = 5
    use_disks: bool = True
    fit: Fit = "official"
    regions: Regions = "prior"

    def __post_init__(self) -> None:
        object.__setattr__(self, "neck_dims", tuple(self.neck_dims))  # JSON has lists only
        for name, (low, high) in BOUNDS.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"SegNext's {name} must lie in {low}..{high}, got {getattr(self, name)}")
        if self.size % (2 * self.patch):
            raise ValueError(f"SegNext's size must be a multiple of {2 * self.patch} pixels, got {self.size}")
        if self.dim % self.heads or self.dim % self.fusion_heads:
            raise ValueError(
                f"SegNext's dim {self.dim} is no multiple of its {self.heads} and {self.fusion_heads} heads"
            )
        if len(self.neck_dims) != 4:
            raise ValueError(f"SegNext's neck has 4 levels, got neck_dims {self.neck_dims}")
        if self.fit not in get_args(Fit):
            raise ValueError(f"SegNext's fit is 'letterbox' or 'official', got {self.fit!r}")
        if self.regions not in get_args(Regions):
            raise ValueError(f"SegNext's regions is 'prior' or 'channel', got {self.regions!r}")

    @classmethod
    def vit_b(cls, fusion_blocks: int = 1) -> SegNextConfig:
        """The geometry of the released models: `fusion_blocks` 1 is SAx1, 2 is SAx2."""
        return cls(fusion_blocks=fusion_blocks)


# What a file may ask for: wide enough for every published ViT, too narrow to ask for the moon.
BOUNDS: dict[str, tuple[int, int]] = {
    "size": (32, 4096),
    "patch": (4, 64),
    "dim": (8, 4096),
    "depth": (1, 64),
    "heads": (1, 64),
    "mlp_ratio": (1, 16),
    "global_every": (1, 64),
    "fusion_blocks": (0, 16),
    "fusion_heads": (1, 64),
    "fusion_mlp_ratio": (1, 16),
    "head_dim": (1, 4096),
    "radius": (1, 64),
}


class SegNext(Network):
    """The published network. `SegNext(config).load_state_dict(official)` is strict and fits."""

    mean: Tensor
    std: Tensor
    aligned = True

    def __init__(self, config: SegNextConfig) -> None:
        super().__init__()
        self.config = config
        self.size = config.size
        # Distances start from the click's own pixel, so its disk is asked for as small as it can be.
        self.radius = config.radius if config.use_disks else 0
        self.fit = config.fit
        self.regions = config.regions
        c = config
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.backbone = PlainViT(c.size, c.patch, c.dim, c.depth, c.heads, c.mlp_ratio, c.global_every)
        self.visual_prompts_encoder = PatchEmbed(3, c.dim, c.patch)
        self.fusion_blocks = nn.ModuleList(
            Block(c.dim, c.fusion_heads, c.fusion_mlp_ratio, eps=1e-5) for _ in range(c.fusion_blocks)
        )
        self.neck = Neck(c.dim, c.neck_dims)
        self.head = Head(c.neck_dims, c.head_dim)

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        return (self.backbone(((image - self.mean) / self.std).to(self.dtype)),)  # (B, C, g, g)

    def fuse(self, features: tuple[Tensor, ...], maps: Tensor) -> tuple[Tensor, ...]:
        if not self.config.use_disks:
            maps = torch.cat([maps[:, :1], distance_maps(maps[:, 1:], self.config.radius)], dim=1)
        (seen,) = features
        prompts = self.visual_prompts_encoder(maps.to(self.dtype))
        x = seen.flatten(2).transpose(1, 2) + prompts  # (B, g * g, C)
        for block in self.fusion_blocks:
            x = block(x)
        return (x.transpose(1, 2).unflatten(2, seen.shape[-2:]),)  # (B, C, g, g)

    def decode(self, fused: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        logits, side = self.head_logits(fused).float(), (self.size, self.size)
        return F.interpolate(logits, side, mode="bilinear", align_corners=True), None  # (B, 1, S, S)

    def sketch(self, fused: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        return self.head_logits(fused).float(), None  # (B, 1, 4g, 4g)

    def head_logits(self, fused: tuple[Tensor, ...]) -> Tensor:
        """The head's own logits (B, 1, 4g, 4g), before any upsampling."""
        logits: Tensor = self.head(self.neck(fused[0]))
        return logits
