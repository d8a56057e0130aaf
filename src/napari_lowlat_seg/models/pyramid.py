"""SegNext's neck and head: one map to a pyramid of four, the pyramid to logits.

Parameters are those of the official files. The arithmetic is the same function written for speed, as products
of matrices on channels-last maps (docs/decisions/hot-path.md).
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)


# What follows are the layers of neck and head on channels-last maps (B, h, w, C), as products of matrices.
# The library's kernel for a group norm over a whole map works through it with one block of threads, which is
# most of a click on a GPU; here plain reductions find the moments and the next product applies them.


def _mixed(x: Tensor, conv: nn.Module) -> Tensor:
    """A 1x1 convolution."""
    assert isinstance(conv, nn.Conv2d)
    mixed: Tensor = F.linear(x, conv.weight.flatten(1), conv.bias)
    return mixed


def _doubled(x: Tensor, conv: nn.Module) -> Tensor:
    """A 2x2 transposed convolution of stride 2: (B, h, w, C) -> (B, h, 4w, D), the four of a pixel in a row.

    What follows looks at every pixel alone or at all of them, so `_in_place` may move them last, and once.
    """
    assert isinstance(conv, nn.ConvTranspose2d)
    assert conv.bias is not None
    batch, rows, cols, _ = x.shape
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * D, C)
    return F.linear(x, weight, conv.bias.repeat(4)).view(batch, rows, 4 * cols, -1)


def _in_place(x: Tensor, times: int) -> Tensor:
    """Pixels of a map doubled n times where they belong: (B, h, 4^n w, C) -> (B, 2^n h, 2^n w, C)."""
    batch, rows, length, width = x.shape
    cols = length >> 2 * times
    apart = x.reshape(batch, rows, cols, *[2] * (2 * times), width)
    down, across = range(3, 3 + 2 * times, 2), range(4, 4 + 2 * times, 2)
    together = apart.permute(0, 1, *down, 2, *across, 3 + 2 * times)
    return together.reshape(batch, rows << times, cols << times, width)


def _halved(x: Tensor, conv: nn.Module) -> Tensor:
    """A 2x2 convolution of stride 2: (B, h, w, C) -> (B, h / 2, w / 2, D)."""
    assert isinstance(conv, nn.Conv2d)
    batch, rows, cols, width = x.shape
    patches = x.view(batch, rows // 2, 2, cols // 2, 2, width).transpose(2, 3).flatten(3)
    return F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def _summed(parts: list[Tensor]) -> Tensor:
    """The first map (B, h, w, C) and, brought to its size, all others."""
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
    weights = [_resizing(part.shape[1], rows, *kind) for part in parts[1:]]  # (rows, h)
    tall = [weight @ part.flatten(2) for weight, part in zip(weights, parts[1:], strict=True)]
    stack = torch.cat([x.view(batch * rows, -1, width) for x in tall], dim=1)  # (B * rows, sum of w, C)
    across = torch.cat([_resizing(part.shape[2], cols, *kind) for part in parts[1:]], dim=1)
    wide = across.expand(batch * rows, -1, -1)
    return torch.baddbmm(mixed.flatten(0, 1), wide, stack).view(mixed.shape)


@lru_cache(maxsize=32)
def _resizing(short: int, long: int, dtype: torch.dtype, device: torch.device) -> Tensor:
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


def _normed(x: Tensor, norm: nn.Module) -> Tensor:
    """Group norm of one group over the whole map."""
    assert isinstance(norm, nn.GroupNorm)
    mean, scale = _moments(x, norm.eps)
    slope = scale * norm.weight  # (B, 1, 1, C)
    return torch.addcmul((norm.bias - mean * slope).to(x.dtype), x, slope.to(x.dtype))


def _mixed_normed(x: Tensor, norm: nn.Module, conv: nn.Module) -> Tensor:
    """Group norm and the 1x1 convolution after it: the norm becomes part of the convolution's numbers."""
    assert isinstance(norm, nn.GroupNorm)
    assert isinstance(conv, nn.Conv2d)
    mean, scale = _moments(x, norm.eps)
    slope = (scale * norm.weight).flatten(1, 2)  # (B, 1, C)
    weight = conv.weight.flatten(1).t()  # (C, D)
    shift = (norm.bias - mean.flatten(1, 2) * slope) @ weight.to(slope.dtype)  # (B, 1, D)
    shift = shift if conv.bias is None else shift + conv.bias
    scaled = (slope.transpose(1, 2) * weight).to(x.dtype)  # (B, C, D)
    if len(x) == 1:  # the product adds it for nothing
        return F.linear(x, scaled[0].t(), shift[0, 0].to(x.dtype))
    # Added by itself, which a compiler joins to what follows: `baddbmm` copies it to every pixel first.
    mixed = torch.bmm(x.flatten(1, 2), scaled) + shift.to(x.dtype)
    return mixed.view(*x.shape[:3], -1)


class Neck(nn.Module):
    """One map to a pyramid of four. Note where the original has no GELU between two convolutions."""

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
        fine = _doubled(F.gelu(_normed(_doubled(x, up1), norm1)), up2)
        fine = _in_place(F.gelu(_normed(_mixed_normed(fine, norm2, mix), norm3)), times=2)
        up1, norm1, mix, norm2, _ = self.down_8
        half = F.gelu(_normed(_mixed_normed(_doubled(x, up1), norm1, mix), norm2))
        half = _in_place(half, times=1)
        mix, norm1, _ = self.down_16
        same = F.gelu(_normed(_mixed(x, mix), norm1))
        down, norm1, mix, norm2, _ = self.down_32
        coarse = F.gelu(_normed(_mixed_normed(_halved(x, down), norm1, mix), norm2))
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
        # A 1x1 convolution commutes with bilinear resizing: each level meets its own columns of the fusion's
        # weight at its own size, which spares resizing and convolving 4 * dim channels at 1/4. Same to 1e-6.
        columns = self.fusion_conv.conv.weight.flatten(1).chunk(len(levels), dim=1)
        convs = [cast(ConvReLU, level).conv for level in self.convs]
        biases = (self.fusion_conv.conv.bias, *[None] * (len(levels) - 1))
        parts = [
            F.linear(F.relu(_mixed(x.permute(0, 2, 3, 1), level)), w, b)
            for x, level, w, b in zip(levels, convs, columns, biases, strict=True)
        ]
        mixed = F.relu(_summed(parts))  # (B, 4g, 4g, dim)
        if self.training:
            mixed = self.dropout(mixed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        logits: Tensor = _mixed(mixed, self.seg_conv).permute(0, 3, 1, 2)
        return logits
