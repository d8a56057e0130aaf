"""A plain ViT beside the compact encoder: what the family's larger member sees more with.

`Dino` has the blocks of DINOv2's small model (Oquab et al., "DINOv2: Learning Robust Visual Features without
Supervision", 2023): global attention, a class token, absolute positions. Its layer scales are folded into the
products before them, so `backbones.Block` fits. `resample` lays weights for patches of 14 pixels and any grid
on patches of 16 pixels and the network's own grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_lowlat_seg.models.vit import Block, PatchEmbed

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
