"""The encoder of the compact family: TinyViT-5M (Wu et al., ECCV 2022) as MobileSAM distilled it.

Batch norms are folded into the convolutions, so every convolution has a bias. The sides of attention windows
are a setting: upstream's 7/14/7 tokens pad a 32 x 32 map to 42 x 42, while 8/16/8 divide every side that is a
multiple of 256; `resize_windows` adapts the learned offset biases.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 160, 320)
HEADS = (0, 4, 5, 10)
DEPTHS = (2, 2, 6, 2)
UPSTREAM_WINDOWS = (7, 14, 7)


def patch_conv(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution of a map (B, C, H, W) whose kernel equals its stride, such as 1x1.

    On CUDA torch adds a convolution's bias in a separate pass; a matrix product adds it at no cost.
    """
    out: Tensor = patch_conv_product(conv, x) if x.is_cuda and isinstance(conv, nn.Conv2d) else conv(x)
    return out


def patch_conv_product(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv(x)` as one product of matrices over square tiles that do not overlap."""
    side = conv.kernel_size[0]
    rows, cols = x.shape[2] // side, x.shape[3] // side
    tiles = x[..., : rows * side, : cols * side].permute(0, 2, 3, 1)
    tiles = tiles.unflatten(2, (cols, side)).unflatten(1, (rows, side)).transpose(2, 3)  # (B, h, w, s, s, C)
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(tiles.flatten(3), weight, conv.bias).permute(0, 3, 1, 2)


class ResidualConv(nn.Module):
    """Inverted bottleneck: expand by 4, depthwise 3 x 3, project, add (upstream: MBConv)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, 1)
        self.conv2 = nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width)
        self.conv3 = nn.Conv2d(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.gelu(self.conv2(F.gelu(patch_conv(self.conv1, x))))
        return F.gelu(x + patch_conv(self.conv3, inner))


class Merge(nn.Module):
    """Change of width between stages; it also halves the side, except before the deepest stage."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        stride = 1 if out == WIDTHS[-1] else 2
        self.conv1 = nn.Conv2d(width, out, 1)
        self.conv2 = nn.Conv2d(out, out, 3, stride, padding=1, groups=out)
        self.conv3 = nn.Conv2d(out, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return patch_conv(self.conv3, F.gelu(self.conv2(F.gelu(patch_conv(self.conv1, x)))))


class WindowAttention(nn.Module):
    """Self-attention inside one window, with a learned bias per head and absolute offset (|dy|, |dx|)."""

    offsets: Tensor
    bias: Tensor | None

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        # By numpy: on the "meta" device, where shapes are checked, torch imports its compiler for them.
        where = np.indices((window, window)).reshape(2, -1)  # (2, N)
        apart = np.abs(where[:, :, None] - where[:, None, :])
        offsets = torch.from_numpy(apart[0] * window + apart[1])
        self.register_buffer("offsets", offsets, persistent=False)  # (N, N)
        self.register_buffer("bias", None, persistent=False)

    @torch.no_grad()
    def keep_bias(self) -> None:
        """Gather the biases once, for weights that do not change any more."""
        self.bias = self._gathered()

    def _gathered(self) -> Tensor:
        # Four axes: torch's fused kernel for the CPU needs them.
        return self.attention_biases[:, self.offsets][None]  # (1, heads, N, N)

    def forward(self, x: Tensor) -> Tensor:
        windows, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).view(windows, tokens, self.heads, -1).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=-1)  # (windows, heads, N, width / heads); upstream keeps q, k, v per head
        bias = self._gathered() if self.bias is None else self.bias
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        mixed: Tensor = self.proj(out.transpose(1, 2).reshape(windows, tokens, width))
        return mixed


class FeedForward(nn.Module):
    """Norm, widen by 4, GELU, narrow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out


class WindowBlock(nn.Module):
    """Attention in windows, a depthwise 3 x 3 convolution, feed-forward; maps are channels-last in memory."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlp = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, rows, cols = x.shape
        w = self.window
        last = x.permute(0, 2, 3, 1)
        whole = rows % w == cols % w == 0
        if not whole:
            last = F.pad(last, (0, 0, 0, -cols % w, 0, -rows % w))
        down, across = last.shape[1] // w, last.shape[2] // w
        apart = last.reshape(batch, down, w, across, w, width)
        tiles = self.attn(apart.transpose(2, 3).reshape(-1, w * w, width))
        mixed = tiles.view(batch, down, across, w, w, width).transpose(2, 3)
        if whole:  # the sum puts the windows back in place: no pass over the map for that alone
            x = (apart + mixed).view(batch, rows, cols, width).permute(0, 3, 1, 2)
        else:
            mixed = mixed.reshape(batch, down * w, across * w, width)[:, :rows, :cols]
            x = x + mixed.permute(0, 3, 1, 2)
        x = self.local_conv(x)
        last = x.permute(0, 2, 3, 1)
        out: Tensor = (last + self.mlp(last)).permute(0, 3, 1, 2)
        return out


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a (B, C, H, W) map."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # A converter would copy the map to permute it, so it traces sums over the channels, which are equal.
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            apart = x - x.mean(1, keepdim=True)
            scale = torch.rsqrt((apart * apart).mean(1, keepdim=True) + self.eps)
            return apart * scale * self.weight[:, None, None] + self.bias[:, None, None]
        last = x.permute(0, 2, 3, 1)
        return F.layer_norm(last, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks of one width, then the merge to the next width; returns the maps before and after the merge."""

    def __init__(self, blocks: list[nn.Module], merge: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = merge

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept: Tensor = self.blocks(x)
        return kept, kept if self.downsample is None else self.downsample(kept)


class TinyViT(nn.Module):
    """Image -> maps at 1/4, 1/8 and 1/16 of the side.

    Parameter names are MobileSAM's, so that its encoder files load as they are.

    Parameters
    ----------
    windows
        Attention window sides, in tokens, of the stages at 1/8, 1/16 and 1/16.
    """

    def __init__(self, windows: tuple[int, int, int] = (8, 16, 8)) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.GELU(), nn.Conv2d(32, 64, 3, 2, 1))
        self.patch_embed = nn.Sequential(OrderedDict(seq=stem))  # named as upstream's files have it
        self.layers = nn.ModuleList()
        for stage, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
            blocks: list[nn.Module] = [
                ResidualConv(width) if stage == 0 else WindowBlock(width, HEADS[stage], windows[stage - 1])
                for _ in range(depth)
            ]
            merge = Merge(width, WIDTHS[stage + 1]) if stage + 1 < len(WIDTHS) else None
            self.layers.append(Stage(blocks, merge))
        self.neck = nn.Sequential(
            nn.Conv2d(WIDTHS[-1], 256, 1, bias=False),
            ChannelNorm(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            ChannelNorm(256),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The maps (B, 64, S/4, S/4), (B, 128, S/8, S/8) and (B, 256, S/16, S/16) of a normalised image."""
        x = self.patch_embed(image)  # (B, 64, S/4, S/4)
        kept = []
        for stage in self.layers:
            before, x = stage(x)
            kept.append(before)
        return kept[0], kept[1], self.neck(x)


def resize_windows(state: dict[str, Tensor], network: TinyViT) -> dict[str, Tensor]:
    """The state with its offset biases adapted to the windows of `network`; `state` is not changed.

    An offset of d tokens is the same distance in any window, so known offsets keep their bias; larger ones,
    which the smaller window does not have, get that of the largest known offset.
    """
    own = network.state_dict()
    resized = dict(state)
    for name, bias in state.items():
        if name.endswith("attention_biases") and bias.shape != own[name].shape:
            old, new = round(bias.shape[1] ** 0.5), round(own[name].shape[1] ** 0.5)
            near = torch.arange(new).clamp(max=old - 1)
            resized[name] = bias.view(-1, old, old)[:, near][:, :, near].reshape(-1, new * new)
    return resized
