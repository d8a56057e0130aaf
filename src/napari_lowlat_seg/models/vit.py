"""The encoder of the original.

`PlainViT` is a ViT whose blocks mostly look inside windows, every third one
everywhere (Liu et al., "Rethinking Interactive Image Segmentation with Low Latency, High Quality, and Diverse
Prompts", CVPR 2024; windows after Li et al., "Exploring Plain Vision Transformer Backbones", 2022).
Module names are those of the official files.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOMINAL_WINDOW = 14  # tokens; the true side is the grid divided by how many of these fit into it


class PatchEmbed(nn.Module):
    """Square patches to tokens, rows first."""

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        # One matrix product over the patches: on a GPU the library's convolution for such kernels is slower.
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
        Block i (counted from 1) looks everywhere if i is a multiple of this or the last.

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
        self.everywhere = [i % global_every == 0 or i == depth for i in range(1, depth + 1)]
        self.patch_embed = PatchEmbed(3, dim, patch)
        # Slot 0 is a leftover of the class token of pre-training; no token ever gets it.
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2 + 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, eps=1e-6) for _ in range(depth))
        self.fc_norm = nn.LayerNorm(dim, eps=1e-6)  # in the files, never applied
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image) + self.pos_embed[:, 1:]  # (B, g * g, C)
        for everywhere, block in zip(self.everywhere, self.blocks, strict=True):
            x = block(x) if everywhere else self._joined(block(self._cut(x)))
        out: Tensor = x.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # (B, C, g, g)
        return out

    def _cut(self, x: Tensor) -> Tensor:
        n, side = self.windows, self.grid // self.windows
        x = x.view(-1, n, side, n, side, x.shape[-1]).transpose(2, 3)  # (B, n, n, side, side, C)
        return x.reshape(-1, side * side, x.shape[-1])  # (B * n * n, side * side, C)

    def _joined(self, x: Tensor) -> Tensor:
        n, side = self.windows, self.grid // self.windows
        x = x.view(-1, n, n, side, side, x.shape[-1]).transpose(2, 3)  # (B, n, side, n, side, C)
        return x.reshape(-1, self.grid**2, x.shape[-1])  # (B, g * g, C)


PATCH = 16
HEAD = 64  # channels of one attention head
TAPS = 4  # so many depths are read, evenly spread, the last block's among them


class Dino(nn.Module):
    """Normalised RGB (B, 3, S, S) to what four depths saw, joined in `out` channels: (B, out, S/16, S/16).

    Parameters
    ----------
    size
        Side S, a multiple of 16.
    width
        Channels of a token, a multiple of 64.
    depth
        Number of blocks, a multiple of 4.
    out
        Channels of the joined map. Fresh weights join to zeros, so that a network which gets this encoder as
        an addition starts with the answers that it had.
    """

    def __init__(self, size: int, width: int, depth: int, out: int) -> None:
        super().__init__()
        self.grid = size // PATCH
        self.patch_embed = PatchEmbed(3, width, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, width // HEAD, 4, eps=1e-6) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(TAPS))
        self.join = nn.Linear(TAPS * width, out)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.zeros_(self.join.weight)
        nn.init.zeros_(self.join.bias)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patch_embed(image)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embed
        every = len(self.blocks) // TAPS
        seen: list[Tensor] = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number % every == 0:
                seen.append(self.norms[len(seen)](x[:, 1:]))
        joined: Tensor = self.join(torch.cat(seen, -1))  # (B, g * g, out)
        return joined.transpose(1, 2).reshape(len(x), -1, self.grid, self.grid)


def resample(state: dict[str, Tensor], network: Dino) -> dict[str, Tensor]:
    """The state of a ViT with patches and a grid of its own, laid on those of `network`; not mutated.

    Positions are interpolated (bicubic). The patch kernel is resized such that a patch and its enlarged copy
    get the same token: by the pseudo-inverse of bilinear enlargement (Beyer et al., "FlexiViT: One Model for
    All Patch Sizes", CVPR 2023, section 3.4).
    """
    laid = dict(state)
    positions = state["pos_embed"]
    old = round((positions.shape[1] - 1) ** 0.5)
    if old != network.grid:
        grid = positions[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (network.grid, network.grid), mode="bicubic")
        laid["pos_embed"] = torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)
    kernel = state["patch_embed.proj.weight"]
    side = kernel.shape[-1]
    if side != PATCH:
        units = torch.eye(side**2).view(side**2, 1, side, side)
        enlarge = F.interpolate(units, (PATCH, PATCH), mode="bilinear").flatten(1).t()  # (256, side ** 2)
        back = torch.linalg.pinv(enlarge.double()).t().to(kernel.dtype)  # (256, side ** 2)
        resized = kernel.flatten(2) @ back.t()
        laid["patch_embed.proj.weight"] = resized.unflatten(2, (PATCH, PATCH))
    return laid
