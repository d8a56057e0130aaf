"""SAM's mask decoder, plain and eager: nothing fused, nothing kept from one answer to the next.

Written from the description (Kirillov et al., "Segment Anything", ICCV 2023), to be timed beside ours. Names
of parameters are SAM's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from napari_lowlat_seg.models.tinyvit import ChannelNorm

WIDTH = 256
HEADS = 8
MLP_WIDTH = 2048
MASKS = 4  # one for prompts that leave no doubt, three for a prompt that may mean several things


class MapNorm(ChannelNorm):
    """Layer norm over the channels of a (B, C, H, W) map, step by step."""

    def forward(self, x: Tensor) -> Tensor:
        apart = x - x.mean(1, keepdim=True)
        scaled = apart / torch.sqrt(apart.pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * scaled + self.bias[:, None, None]


class FourierPositions(nn.Module):
    """Random Fourier features of places (Tancik et al., 2020): sines and cosines of 128 projections."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, WIDTH // 2))

    def forward(self, places: Tensor) -> Tensor:
        """(..., 256) of places (..., 2) as (x, y), 0 and 1 being the edges of the network's input."""
        turns = (2 * places - 1) @ self.positional_encoding_gaussian_matrix
        return torch.cat([torch.sin(2 * math.pi * turns), torch.cos(2 * math.pi * turns)], dim=-1)

    def grid(self, side: int) -> Tensor:
        """(1, 256, side, side) of the centres of a grid's cells."""
        ones = torch.ones((side, side), device=self.positional_encoding_gaussian_matrix.device)
        ys, xs = ((ones.cumsum(dim=axis) - 0.5) / side for axis in (0, 1))
        encoded: Tensor = self(torch.stack([xs, ys], dim=-1))
        return encoded.permute(2, 0, 1)[None]


class CrossAttention(nn.Module):
    """Attention of one set of tokens to another, at a width of its own, with its matrix of weights."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, WIDTH)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(2, (HEADS, -1)).transpose(1, 2)  # (B, heads, N, inner / heads)
            for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), dim=-1)
        out: Tensor = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Widen to 2048, bend, narrow."""

    def __init__(self, bend: type[nn.Module]) -> None:
        super().__init__()
        self.lin1 = nn.Linear(WIDTH, MLP_WIDTH)
        self.lin2 = nn.Linear(MLP_WIDTH, WIDTH)
        self.act = bend()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(self.act(self.lin1(x)))
        return out


class TwoWayBlock(nn.Module):
    """Tokens among themselves, tokens to picture, feed-forward of tokens, picture to tokens.

    Places are added to whatever is compared. The first block's tokens are their own places, so that its
    attention among them takes them alone and replaces them.
    """

    def __init__(self, first: bool, bend: type[nn.Module]) -> None:
        super().__init__()
        self.first = first
        self.self_attn = CrossAttention(WIDTH)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(WIDTH) for _ in range(4))
        self.cross_attn_token_to_image = CrossAttention(WIDTH // 2)
        self.mlp = FeedForward(bend)
        self.cross_attn_image_to_token = CrossAttention(WIDTH // 2)

    def forward(self, tokens: Tensor, image: Tensor, asked: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """New tokens (B, N, 256) and image (B, P, 256); `asked` and `places` encode where they are."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + asked
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + asked, image + places, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        seen = self.cross_attn_image_to_token(image + places, tokens + asked, tokens)
        return tokens, self.norm4(image + seen)


class TwoWayTransformer(nn.Module):
    """Two blocks, and a last look of the tokens at the picture."""

    def __init__(self, bend: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(first, bend) for first in (True, False))
        self.final_attn_token_to_image = CrossAttention(WIDTH // 2)
        self.norm_final_attn = nn.LayerNorm(WIDTH)

    def forward(self, features: Tensor, places: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, 256) and features (B, 256, s, s), from maps of that shape and tokens."""
        image, places = features.flatten(2).transpose(1, 2), places.flatten(2).transpose(1, 2)
        tokens = asked
        for layer in self.layers:
            tokens, image = layer(tokens, image, asked, places)
        last = self.final_attn_token_to_image(tokens + asked, image + places, image)
        return self.norm_final_attn(tokens + last), image.transpose(1, 2).view(features.shape)


class Perceptron(nn.Module):
    """Three linear layers, bent in between."""

    def __init__(self, out: int, bend: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, out)])
        self.act = bend()

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        out: Tensor = last(self.act(second(self.act(first(x)))))
        return out


class MaskDecoder(nn.Module):
    """Features of a picture and tokens of prompts -> logits and predicted IoU of four masks.

    Parameters
    ----------
    bend
        What bends the feed-forwards of tokens: `nn.ReLU` in SAM, `nn.GELU` in EfficientSAM.
    norm
        Makes the norm of the enlarged map: over channels in SAM, over the whole map in EfficientSAM.
    """

    def __init__(self, bend: type[nn.Module], norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(bend)
        self.iou_token = nn.Embedding(1, WIDTH)
        self.mask_tokens = nn.Embedding(MASKS, WIDTH)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, WIDTH // 4, 2, stride=2),
            norm(WIDTH // 4),
            nn.GELU(),
            nn.ConvTranspose2d(WIDTH // 4, WIDTH // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Perceptron(WIDTH // 8, bend) for _ in range(MASKS))
        self.iou_prediction_head = Perceptron(MASKS, bend)

    def forward(self, features: Tensor, places: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 4, 4 s, 4 s) and (B, 4), from features (B, 256, s, s), their places and tokens (B, N, 256)."""
        count = len(prompts)
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])[None].expand(count, -1, -1)
        tokens, seen = self.transformer(
            features, torch.repeat_interleave(places, count, dim=0), torch.cat([own, prompts], dim=1)
        )
        enlarged = self.output_upscaling(seen)  # (B, 32, 4 s, 4 s)
        kernels = [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        logits = (torch.stack(kernels, dim=1) @ enlarged.flatten(2)).unflatten(2, enlarged.shape[2:])
        return logits, self.iou_prediction_head(tokens[:, 0])
