"""The compact network of the family: TinyViT encoder with thin skips, pooled-key fusion, a light decoder.

As in SegNext, the image is embedded once, prompts are pixels in dense maps, the maps are added to the cached
embedding, and self-attention fuses both. For two processor cores it is smaller: 512 px, 1024 tokens whose
keys are pooled 2 x 2; for sharp boundaries, prompt maps also enter at 1/4 and 1/8, where the embedding keeps
thin skips. Why these numbers: docs/decisions/compact-model.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_lowlat_seg.models.network import MEAN, STD, Fit, Network, Regions
from napari_lowlat_seg.models.tinyvit import ChannelNorm, TinyViT, patch_conv

# tanh(2 d / radius) is 1 in float32 from here on, so a click's distance map need not reach further.
SATURATED = 4.6


def distance_maps(points: Tensor, radius: int) -> Tensor:
    """tanh(2 d / radius), d the distance to the nearest pixel that is 1; 1 where a channel has none.

    `points` is (B, C, H, W) in [0, 1] and not changed; a pixel of a lesser value v gets 1 - v at most.
    Squared distances are minima along the rows, then along the columns, over the reach where tanh is not 1
    yet: no step depends on values, so a GPU can record the steps.
    """
    reach = int(SATURATED * radius) + 1
    far = float(4 * reach**2)
    apart = torch.where(points >= 1, 0.0, far)
    for axis, sides in ((-1, (reach, reach)), (-2, (0, 0, reach, reach))):
        wide, length = F.pad(apart, sides, value=far), points.shape[axis]
        shifted = (wide.narrow(axis, reach + step, length) + step**2 for step in range(-reach, reach + 1))
        apart = reduce(torch.minimum, shifted)
    return torch.minimum(torch.tanh(2.0 * apart.sqrt() / radius), 1 - points)


# What a file may ask for: enough for larger members, not enough to fill a machine's memory.
BOUNDS = {
    "size": (256, 2048),
    "width": (32, 1024),
    "heads": (1, 32),
    "blocks": (0, 12),
    "pool": (1, 8),
    "skip8": (8, 512),
    "skip4": (8, 512),
    "radius": (1, 16),
    "quality_slope": (0.01, 100),
    "quality_shift": (-20, 20),
}


@dataclass(frozen=True)
class CompactConfig:
    """Everything that the shape of a `Compact` depends on.

    Attributes
    ----------
    size
        Side of the square network input in pixels, a multiple of 256.
    width, heads, blocks
        Channels, attention heads and number of the fusion blocks. No block at all leaves plain addition, for
        the ablation "no dense fusion".
    pool
        Side of the square of tokens that share one key and value.
    skip8, skip4
        Channels of the decoder at 1/8 and 1/4 of the side.
    windows
        Sides in tokens of the encoder's attention windows at 1/8, 1/16 and 1/16 of the side.
    radius
        Radius of a click's disk in network pixels.
    regions
        How boxes, polygons and masks enter the maps: "prior" or "channel"; see `dense_maps`.
    disks
        Whether clicks are disks. Otherwise they are maps of tanh(2 d / radius), d the distance to the nearest
        click: for the paper's ablation "no disk".
    quality_slope, quality_shift
        Correction of the predicted IoU, fitted after training: sigmoid(slope * x + shift) of the IoU
        head's logit x (Platt scaling). 1 and 0 leave it as it was trained.

    Raises
    ------
    ValueError
        For a number outside its `BOUNDS`, a size or width that does not divide, windows that are not
        three, or an unknown way of regions.
    """

    size: int = 512
    width: int = 256
    heads: int = 8
    blocks: int = 2
    pool: int = 2
    skip8: int = 64
    skip4: int = 32
    windows: tuple[int, int, int] = (8, 16, 8)
    radius: int = 3
    regions: Regions = "channel"
    disks: bool = True
    quality_slope: float = 1.0
    quality_shift: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))  # JSON has lists only
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"the compact model's {name} must lie in {low}..{high}, got {value}")
        if self.size % 256 or self.width % self.heads:
            raise ValueError(
                "the compact model needs a size in steps of 256 and a width in steps of its heads, "
                f"got size {self.size}, width {self.width}, heads {self.heads}"
            )
        if len(self.windows) != 3 or not all(1 <= side <= 32 for side in self.windows):
            raise ValueError(f"the compact model needs three windows of 1..32 tokens, got {self.windows}")
        if self.regions not in get_args(Regions):
            raise ValueError(f"regions is one of {get_args(Regions)}, got {self.regions!r}")


class PooledAttention(nn.Module):
    """Self-attention of every token over keys and values pooled from squares of tokens (PVT, SegFormer)."""

    def __init__(self, width: int, heads: int, pool: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.pool = nn.Conv2d(width, width, pool, pool) if pool > 1 else nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, rows, cols, width = x.shape
        q = self.q(x).view(batch, rows * cols, self.heads, -1).transpose(1, 2)
        pooled = self.norm(patch_conv(self.pool, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).flatten(1, 2)
        kv = self.kv(pooled).view(batch, pooled.shape[1], 2 * self.heads, -1).transpose(1, 2)
        k, v = kv.chunk(2, dim=1)
        out = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.proj(out.transpose(1, 2).reshape(batch, rows, cols, width))
        return mixed


class FusionBlock(nn.Module):
    """Depthwise position term, pooled self-attention, feed-forward; all pre-norm with residuals."""

    def __init__(self, width: int, heads: int, pool: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width)
        self.attn = PooledAttention(width, heads, pool)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local(x)  # (B, C, g, g)
        last: Tensor = x.permute(0, 2, 3, 1)  # (B, g, g, C)
        last = last + self.attn(self.norm1(last))
        last = last + self.fc2(F.gelu(self.fc1(self.norm2(last))))
        return last.permute(0, 3, 1, 2)


class RefineBlock(nn.Module):
    """Depthwise 5 x 5, norm, widen by 2, GELU, narrow, add (ConvNeXt's block, slimmer)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = ChannelNorm(width)
        self.widen = nn.Conv2d(width, 2 * width, 1)
        self.narrow = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + patch_conv(self.narrow, F.gelu(patch_conv(self.widen, self.norm(self.spread(x)))))


class Compact(Network):
    """The compact network; 7.6 M parameters with the default `CompactConfig`.

    Parameters
    ----------
    config
        Everything that its shape depends on.
    """

    mean: Tensor
    std: Tensor
    fit: Fit = "letterbox"
    bf16 = True
    openvino = True
    dots = 8

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        self.size, self.regions = config.size, config.regions
        # Distances are measured from the click's own pixel, so its disk must be that pixel alone.
        self.radius = config.radius if config.disks else 0
        c, c8, c4 = config.width, config.skip8, config.skip4
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        # 1. once per image
        self.encoder = TinyViT(config.windows)
        self.deep = nn.Conv2d(256, c, 1)
        self.thin8 = nn.Conv2d(128, c8, 1)
        self.thin4 = nn.Conv2d(64, c4, 1)
        # 2. prompt maps, at the three sides of the features
        self.maps4 = nn.Conv2d(3, c4, 4, 4)
        self.maps8 = nn.Conv2d(c4, c8, 2, 2)
        self.maps16 = nn.Conv2d(c8, c, 2, 2)
        # 3. fusion and decoder
        self.blocks = nn.ModuleList(FusionBlock(c, config.heads, config.pool) for _ in range(config.blocks))
        self.norm = ChannelNorm(c)
        self.up8 = nn.ConvTranspose2d(c, c8, 2, 2)
        self.refine8 = nn.Sequential(RefineBlock(c8), RefineBlock(c8))
        self.up4 = nn.ConvTranspose2d(c8, c4, 2, 2)
        self.refine4 = nn.Sequential(RefineBlock(c4), RefineBlock(c4))
        self.draw = nn.Conv2d(c4, 4, 1)
        self.iou_head = nn.Sequential(nn.Linear(2 * c + 1, 64), nn.GELU(), nn.Linear(64, 1))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.state_dict`; the IoU head is called "judge", as in all files."""
        return _renamed(super().state_dict(*args, **kwargs), "iou_head.", "judge.")

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As `nn.Module.load_state_dict`; takes the names of files."""
        return super().load_state_dict(_renamed(state_dict, "judge.", "iou_head."), strict, assign)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The deep map (B, C, S/16, S/16) and the skips (B, c8, S/8, S/8) and (B, c4, S/4, S/4)."""
        image = ((image - self.mean) / self.std).to(self.dtype)
        quarter, eighth, tiny = self.encoder(image)
        return patch_conv(self.deep, tiny), patch_conv(self.thin8, eighth), patch_conv(self.thin4, quarter)

    def fuse(self, features: tuple[Tensor, ...], maps: Tensor) -> tuple[Tensor, ...]:
        """The features joined with maps (B, 3, S, S); shapes stay, and neither argument is changed."""
        deep, thin8, thin4 = features
        if not self.config.disks:
            maps = torch.cat([maps[:, :1], distance_maps(maps[:, 1:], self.config.radius)], dim=1)
        prompts4 = F.gelu(patch_conv(self.maps4, maps.to(self.dtype)))  # (B, c4, S/4, S/4)
        prompts8 = F.gelu(patch_conv(self.maps8, prompts4))  # (B, c8, S/8, S/8)
        x = deep + patch_conv(self.maps16, prompts8)  # (B, C, S/16, S/16)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), thin8 + prompts8, thin4 + prompts4

    def decode(self, fused: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Logits (B, 1, S/2, S/2) over the whole frame and the predicted IoU (B,) in [0, 1]."""
        x, side8, side4 = fused
        y = self.refine8(self.up8(x) + side8)  # (B, c8, S/8, S/8)
        y = self.refine4(self.up4(y) + side4)  # (B, c4, S/4, S/4)
        logits = F.pixel_shuffle(patch_conv(self.draw, y), 2)  # (B, 1, S/2, S/2)
        # The IoU head sees the mean fused token inside the mask, the mean of all tokens, and the mask's area.
        inside = F.adaptive_avg_pool2d(
            logits.detach().sigmoid(), (x.shape[-2], x.shape[-1])
        )  # (B, 1, S/16, S/16)
        within = (x * inside).sum((2, 3)) / (inside.sum((2, 3)) + 1e-3)
        seen = torch.cat([within, x.mean((2, 3)), inside.mean((2, 3))], 1)  # (B, 2 C + 1)
        iou = self.iou_head(seen)[:, 0]  # a logit
        slope, shift = self.config.quality_slope, self.config.quality_shift
        if (slope, shift) != (1, 0):  # numbers of the file: without a correction nothing is computed
            iou = slope * iou + shift
        return logits, iou.sigmoid()


def _renamed(state: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """A state whose names that begin with `old` begin with `new`."""
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in state.items()
    }
