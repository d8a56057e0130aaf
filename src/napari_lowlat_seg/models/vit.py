"""A plain vision transformer: the encoder of SegNext.

`PlainViT` is a ViT (Dosovitskiy et al., ICLR 2021) with attention inside windows, except for every third
block, whose attention is global (Li et al., "Exploring Plain Vision Transformer Backbones for Object
Detection", ECCV 2022; used by Liu et al., CVPR 2024). Module names are those of the official files.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
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
