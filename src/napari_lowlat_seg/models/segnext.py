"""SegNext as published: encode -> fuse -> decode.

The image is encoded once; the prompts become pixels of three maps, the maps become tokens, and the sum of
both sets of tokens passes through self-attention over the whole image. A pyramid of four levels and a light
head (after SegFormer's) make the mask. Liu, Cho, Bansal,
Niethammer: "Rethinking Interactive Image Segmentation with Low Latency, High Quality, and Diverse Prompts",
CVPR 2024. Parameter names are those of the official files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_lowlat_seg.models.compact import distance_maps
from napari_lowlat_seg.models.fused import linear_gelu, linear_relu
from napari_lowlat_seg.models.network import MEAN, STD, Fit, Network, Regions

NOMINAL_WINDOW = 14  # tokens; the actual side is the grid divided by the number of these that fit into it


class PatchEmbed(nn.Module):
    """Square patches to tokens, rows first."""

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        # One matrix product over the patches: on a GPU torch's convolution is slower for such kernels.
        batch, channels, rows, cols = x.shape
        side = self.proj.kernel_size[0]
        patches = x.view(batch, channels, rows // side, side, cols // side, side).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.flatten(3).flatten(1, 2), self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention without position terms."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, dim = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, dim / heads)
        # Fused: the explicit heads x 4096 x 4096 matrix would cost 0.75 GiB.
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, dim)
        out: Tensor = self.proj(seen)
        return out


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(linear_gelu(x, self.fc1.weight, self.fc1.bias))
        return out


class Block(nn.Module):
    """A pre-norm transformer block. `eps` is 1e-6 in the encoder and 1e-5 in the fusion of the original."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PlainViT(nn.Module):
    """The original's encoder: (B, 3, S, S) normalised RGB -> (B, C, g, g) with g = S / patch.

    A ViT (Dosovitskiy et al., ICLR 2021) with attention inside windows, except for every third block, whose
    attention is global (Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV
    2022).

    Parameters
    ----------
    size
        Side S of the image; a multiple of `patch`.
    global_every
        Attention of block i (counted from 1) is global if i is a multiple of this or the last.

    Raises
    ------
    ValueError
        If the windows do not tile the grid of tokens.
    """

    def __init__(
        self, size: int, patch: int, dim: int, depth: int, heads: int, mlp_ratio: float, global_every: int
    ) -> None:
        super().__init__()
        self.grid = size // patch
        self.windows = max(1, self.grid // NOMINAL_WINDOW)  # per axis
        if self.grid % self.windows:
            raise ValueError(
                f"a grid of {self.grid} x {self.grid} tokens cannot be cut into {self.windows} windows "
                f"per axis; choose a size whose grid is a multiple of {self.windows}"
            )
        self.is_global = [i % global_every == 0 or i == depth for i in range(1, depth + 1)]
        self.patch_embed = PatchEmbed(3, dim, patch)
        # Position 0 is that of the class token of pre-training; it is in the files and not used.
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2 + 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, eps=1e-6) for _ in range(depth))
        self.fc_norm = nn.LayerNorm(dim, eps=1e-6)  # in the files, not used
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image) + self.pos_embed[:, 1:]  # (B, g * g, C)
        for is_global, block in zip(self.is_global, self.blocks, strict=True):
            x = block(x) if is_global else self._from_windows(block(self._to_windows(x)))
        out: Tensor = x.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # (B, C, g, g)
        return out

    def _to_windows(self, x: Tensor) -> Tensor:
        n, side = self.windows, self.grid // self.windows
        x = x.view(-1, n, side, n, side, x.shape[-1]).transpose(2, 3)  # (B, n, n, side, side, C)
        return x.reshape(-1, side * side, x.shape[-1])  # (B * n * n, side * side, C)

    def _from_windows(self, x: Tensor) -> Tensor:
        n, side = self.windows, self.grid // self.windows
        x = x.view(-1, n, n, side, side, x.shape[-1]).transpose(2, 3)  # (B, n, side, n, side, C)
        return x.reshape(-1, self.grid**2, x.shape[-1])  # (B, g * g, C)


# What a file may ask for: wide enough for every published ViT, too narrow to fill a machine's memory.
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


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)


# The layers of neck and head on channels-last maps (B, h, w, C), as products of matrices. torch's kernel for
# a group norm over a whole map uses one block of threads, which takes most of a click on a GPU; here
# reductions find mean and variance, and the next product applies them.


def _conv1x1(x: Tensor, conv: nn.Module) -> Tensor:
    """A 1x1 convolution."""
    assert isinstance(conv, nn.Conv2d)
    mixed: Tensor = F.linear(x, conv.weight.flatten(1), conv.bias)
    return mixed


def _upsample_2x(x: Tensor, conv: nn.Module) -> Tensor:
    """A 2x2 transposed convolution of stride 2: (B, h, w, C) -> (B, h, 4w, D), a pixel's four in a row.

    The layers that follow treat every pixel alike, so `_interleave` puts pixels in place last, and once.
    """
    assert isinstance(conv, nn.ConvTranspose2d)
    assert conv.bias is not None
    batch, rows, cols, _ = x.shape
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * D, C)
    return F.linear(x, weight, conv.bias.repeat(4)).view(batch, rows, 4 * cols, -1)


def _interleave(x: Tensor, times: int) -> Tensor:
    """The pixels of n times `_upsample_2x` in place: (B, h, 4^n w, C) -> (B, 2^n h, 2^n w, C)."""
    batch, rows, length, width = x.shape
    cols = length >> 2 * times
    apart = x.reshape(batch, rows, cols, *[2] * (2 * times), width)
    down, across = range(3, 3 + 2 * times, 2), range(4, 4 + 2 * times, 2)
    together = apart.permute(0, 1, *down, 2, *across, 3 + 2 * times)
    return together.reshape(batch, rows << times, cols << times, width)


def _downsample_2x(x: Tensor, conv: nn.Module) -> Tensor:
    """A 2x2 convolution of stride 2: (B, h, w, C) -> (B, h / 2, w / 2, D)."""
    assert isinstance(conv, nn.Conv2d)
    batch, rows, cols, width = x.shape
    patches = x.view(batch, rows // 2, 2, cols // 2, 2, width).transpose(2, 3).flatten(3)
    return F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def _sum_resized(parts: list[Tensor]) -> Tensor:
    """The sum of maps (B, h, w, C), all resized (bilinear) to the size of the first."""
    mixed = parts[0]
    batch, rows, cols, width = mixed.shape
    if not mixed.is_cuda or torch.compiler.is_compiling():
        for part in parts[1:]:
            seen = F.interpolate(part.permute(0, 3, 1, 2), (rows, cols), mode="bilinear")
            mixed = mixed + seen.permute(0, 2, 3, 1)
        return mixed
    # Bilinear resizing is a small matrix along each axis. Columns are resized and summed by one product that
    # also adds the first map: this one is large, and every pass over it costs more than the arithmetic.
    kind = (mixed.dtype, mixed.device)
    weights = [_bilinear_matrix(part.shape[1], rows, *kind) for part in parts[1:]]  # (rows, h)
    tall = [weight @ part.flatten(2) for weight, part in zip(weights, parts[1:], strict=True)]
    stack = torch.cat([x.view(batch * rows, -1, width) for x in tall], dim=1)  # (B * rows, sum of w, C)
    across = torch.cat([_bilinear_matrix(part.shape[2], cols, *kind) for part in parts[1:]], dim=1)
    wide = across.expand(batch * rows, -1, -1)
    return torch.baddbmm(mixed.flatten(0, 1), wide, stack).view(mixed.shape)


@lru_cache(maxsize=32)
def _bilinear_matrix(short: int, long: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bilinear resizing of `short` values to `long` as a matrix (long, short); exact in half precision."""
    ones = torch.eye(short, device=device)[None, None]
    return F.interpolate(ones, (long, short), mode="bilinear")[0, 0].to(dtype)


def _moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each sample of (B, h, w, C), float32 (B, 1, 1, 1)."""
    if x.dtype in (torch.float32, torch.float64):
        variance, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    else:  # short products: sums in float32 without a float32 copy of the map
        mean = x.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float32)
        length = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True, dtype=torch.float32)
        variance = (length**2 / x[0].numel() - mean**2).clamp_min(0)
    return mean, torch.rsqrt(variance + eps)


def _group_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """Group norm of one group over the whole map."""
    assert isinstance(norm, nn.GroupNorm)
    mean, scale = _moments(x, norm.eps)
    slope = scale * norm.weight  # (B, 1, 1, C)
    return torch.addcmul((norm.bias - mean * slope).to(x.dtype), x, slope.to(x.dtype))


def _group_norm_conv1x1(x: Tensor, norm: nn.Module, conv: nn.Module) -> Tensor:
    """Group norm, then a 1x1 convolution: the norm is folded into the convolution's weights."""
    assert isinstance(norm, nn.GroupNorm)
    assert isinstance(conv, nn.Conv2d)
    mean, scale = _moments(x, norm.eps)
    slope = (scale * norm.weight).flatten(1, 2)  # (B, 1, C)
    weight = conv.weight.flatten(1).t()  # (C, D)
    # The bias of the norm and its mean, through the convolution. Of the mean only a factor depends on the
    # sample, so the products are one vector each, for a batch too.
    wide = weight.t().to(scale.dtype)  # (D, C)
    shift = wide.mv(norm.bias.to(scale.dtype)) - (mean * scale).flatten(1, 2) * wide.mv(
        norm.weight.to(scale.dtype)
    )
    shift = shift if conv.bias is None else shift + conv.bias  # (B, 1, D)
    scaled = (slope.transpose(1, 2) * weight).to(x.dtype)  # (B, C, D)
    if len(x) == 1:  # the product adds the bias at no cost
        return F.linear(x, scaled[0].t(), shift[0, 0].to(x.dtype))
    # Added separately, which a compiler fuses with what follows; `baddbmm` copies the bias to every pixel.
    mixed = torch.bmm(x.flatten(1, 2), scaled) + shift.to(x.dtype)
    return mixed.view(*x.shape[:3], -1)


class Neck(nn.Module):
    """One map to a pyramid of four. As in the original, some convolutions have no GELU between them."""

    def __init__(self, dim: int, outs: tuple[int, int, int, int]) -> None:
        super().__init__()
        fine, half, coarse = max(2 * outs[0], dim // 2), max(outs[1], dim // 2), max(outs[3], 2 * dim)
        self.down_4 = nn.Sequential(
            nn.ConvTranspose2d(dim, fine, 2, stride=2),
            _norm(fine),
            nn.GELU(),
            nn.ConvTranspose2d(fine, fine // 2, 2, stride=2),
            _norm(fine // 2),
            nn.Conv2d(fine // 2, outs[0], 1),
            _norm(outs[0]),
            nn.GELU(),
        )
        self.down_8 = nn.Sequential(
            nn.ConvTranspose2d(dim, half, 2, stride=2),
            _norm(half),
            nn.Conv2d(half, outs[1], 1),
            _norm(outs[1]),
            nn.GELU(),
        )
        self.down_16 = nn.Sequential(nn.Conv2d(dim, outs[2], 1), _norm(outs[2]), nn.GELU())
        self.down_32 = nn.Sequential(
            nn.Conv2d(dim, coarse, 2, stride=2),
            _norm(coarse),
            nn.Conv2d(coarse, outs[3], 1),
            _norm(outs[3]),
            nn.GELU(),
        )

    def forward(self, x: Tensor) -> list[Tensor]:  # (B, C, g, g) -> sides 4g, 2g, g, g / 2
        x = x.permute(0, 2, 3, 1)  # channels last: every layer below is one matrix product per pixel
        up1, norm1, _, up2, norm2, mix, norm3, _ = self.down_4
        fine = _upsample_2x(F.gelu(_group_norm(_upsample_2x(x, up1), norm1)), up2)
        fine = _interleave(F.gelu(_group_norm(_group_norm_conv1x1(fine, norm2, mix), norm3)), times=2)
        up1, norm1, mix, norm2, _ = self.down_8
        half = F.gelu(_group_norm(_group_norm_conv1x1(_upsample_2x(x, up1), norm1, mix), norm2))
        half = _interleave(half, times=1)
        mix, norm1, _ = self.down_16
        same = F.gelu(_group_norm(_conv1x1(x, mix), norm1))
        down, norm1, mix, norm2, _ = self.down_32
        coarse = F.gelu(_group_norm(_group_norm_conv1x1(_downsample_2x(x, down), norm1, mix), norm2))
        return [level.permute(0, 3, 1, 2) for level in (fine, half, same, coarse)]


class ConvReLU(nn.Module):
    """A 1x1 convolution with bias, then ReLU."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 1)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class Head(nn.Module):
    """The pyramid to logits (B, 1, 4g, 4g)."""

    def __init__(self, dims: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvReLU(channels, dim) for channels in dims)
        self.fusion_conv = ConvReLU(len(dims) * dim, dim)
        self.dropout = nn.Dropout2d(0.1)
        self.seg_conv = nn.Conv2d(dim, 1, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        # A 1x1 convolution commutes with bilinear resizing, so each level is convolved with its own columns
        # of the fusion's weight at its own size: 4 * dim channels need not be resized to 1/4. Equal to 1e-6.
        columns = self.fusion_conv.conv.weight.flatten(1).chunk(len(levels), dim=1)
        convs = [cast(ConvReLU, level).conv for level in self.convs]
        biases = (self.fusion_conv.conv.bias, *[None] * (len(levels) - 1))
        parts = [
            F.linear(linear_relu(x.permute(0, 2, 3, 1), level.weight.flatten(1), level.bias), w, b)
            for x, level, w, b in zip(levels, convs, columns, biases, strict=True)
        ]
        mixed = F.relu(_sum_resized(parts))  # (B, 4g, 4g, dim)
        if self.training:
            mixed = self.dropout(mixed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        logits: Tensor = _conv1x1(mixed, self.seg_conv).permute(0, 3, 1, 2)
        return logits


class SegNext(Network):
    """The published network; `SegNext(config).load_state_dict(official)` loads strictly.

    Parameters
    ----------
    config
        Its geometry.
    """

    mean: Tensor
    std: Tensor
    aligned = True

    def __init__(self, config: SegNextConfig) -> None:
        super().__init__()
        self.config = config
        self.size = config.size
        # Distances are measured from the click's own pixel, so its disk must be that pixel alone.
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

    def decode_low_res(self, fused: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        return self.head_logits(fused).float(), None  # (B, 1, 4g, 4g)

    def head_logits(self, fused: tuple[Tensor, ...]) -> Tensor:
        """The head's own logits (B, 1, 4g, 4g), before any upsampling."""
        logits: Tensor = self.head(self.neck(fused[0]))
        return logits
