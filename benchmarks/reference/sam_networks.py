"""MobileSAM and EfficientSAM-Ti the way they were published: plain eager float32, to be timed beside ours.

Both put a light encoder in the place of SAM's: MobileSAM (Zhang et al., "Faster Segment Anything", 2023) a
TinyViT, followed by SAM's own prompt encoder and mask decoder (Kirillov et al., "Segment Anything", ICCV
2023); EfficientSAM-Ti (Xiong et al., "EfficientSAM", CVPR 2024) a plain ViT, with a decoder of SAM's shape
whose prompts are always six points and never a mask. Written from these descriptions for clicks alone:
nothing is fused, nothing kept from one prediction to the next. Names of parameters are SAM's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_lowlat_seg.models.network import Fit
from napari_lowlat_seg.models.segnext import Attention, Block
from napari_lowlat_seg.models.tinyvit import UPSTREAM_WINDOWS, ChannelNorm, TinyViT

WIDTH = 256
HEADS = 8
MLP_WIDTH = 2048
MASKS = 4  # one for unambiguous prompts, three for a prompt that may mean several objects
PATCH = 16
NO_POINT, NEGATIVE, POSITIVE, CORNER, OPPOSITE_CORNER = -1, 0, 1, 2, 3  # labels of points


class MapNorm(ChannelNorm):
    """Layer norm over the channels of a (B, C, H, W) map, step by step."""

    def forward(self, x: Tensor) -> Tensor:
        apart = x - x.mean(1, keepdim=True)
        scaled = apart / torch.sqrt(apart.pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * scaled + self.bias[:, None, None]


class FourierPositions(nn.Module):
    """Random Fourier features of positions (Tancik et al., 2020): sines and cosines of 128 projections."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, WIDTH // 2))

    def forward(self, positions: Tensor) -> Tensor:
        """(..., 256) of positions (..., 2) as (x, y), 0 and 1 being the edges of the network's input."""
        turns = (2 * positions - 1) @ self.positional_encoding_gaussian_matrix
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
    """Widen to 2048, activation, narrow."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.lin1 = nn.Linear(WIDTH, MLP_WIDTH)
        self.lin2 = nn.Linear(MLP_WIDTH, WIDTH)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(self.act(self.lin1(x)))
        return out


class TwoWayBlock(nn.Module):
    """Tokens among themselves, tokens to picture, feed-forward of tokens, picture to tokens.

    Positions are added to whatever is compared. The first block's tokens are their own positions, so that its
    attention among them takes them alone and replaces them.
    """

    def __init__(self, first: bool, activation: type[nn.Module]) -> None:
        super().__init__()
        self.first = first
        self.self_attn = CrossAttention(WIDTH)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(WIDTH) for _ in range(4))
        self.cross_attn_token_to_image = CrossAttention(WIDTH // 2)
        self.mlp = FeedForward(activation)
        self.cross_attn_image_to_token = CrossAttention(WIDTH // 2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_positions: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New tokens (B, N, 256) and image (B, P, 256); the other two are encoded positions."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            located = tokens + token_positions
            tokens = tokens + self.self_attn(located, located, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(
            tokens + self.cross_attn_token_to_image(tokens + token_positions, image + positions, image)
        )
        tokens = self.norm3(tokens + self.mlp(tokens))
        seen = self.cross_attn_image_to_token(image + positions, tokens + token_positions, tokens)
        return tokens, self.norm4(image + seen)


class TwoWayTransformer(nn.Module):
    """Two blocks, and a last attention of the tokens to the image."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(first, activation) for first in (True, False))
        self.final_attn_token_to_image = CrossAttention(WIDTH // 2)
        self.norm_final_attn = nn.LayerNorm(WIDTH)

    def forward(self, features: Tensor, positions: Tensor, token_positions: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, 256) and features (B, 256, s, s), from maps of that shape and tokens."""
        image, positions = features.flatten(2).transpose(1, 2), positions.flatten(2).transpose(1, 2)
        tokens = token_positions
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_positions, positions)
        last = self.final_attn_token_to_image(tokens + token_positions, image + positions, image)
        return self.norm_final_attn(tokens + last), image.transpose(1, 2).view(features.shape)


class Perceptron(nn.Module):
    """Three linear layers with activations between them."""

    def __init__(self, out: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, out)])
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        out: Tensor = last(self.act(second(self.act(first(x)))))
        return out


class MaskDecoder(nn.Module):
    """Image features and prompt tokens to logits and predicted IoU of four masks.

    Parameters
    ----------
    activation
        Activation of the feed-forward layers: `nn.ReLU` in SAM, `nn.GELU` in EfficientSAM.
    norm
        Makes the norm of the enlarged map: over channels in SAM, over the whole map in EfficientSAM.
    """

    def __init__(self, activation: type[nn.Module], norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(activation)
        self.iou_token = nn.Embedding(1, WIDTH)
        self.mask_tokens = nn.Embedding(MASKS, WIDTH)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, WIDTH // 4, 2, stride=2),
            norm(WIDTH // 4),
            nn.GELU(),
            nn.ConvTranspose2d(WIDTH // 4, WIDTH // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            Perceptron(WIDTH // 8, activation) for _ in range(MASKS)
        )
        self.iou_prediction_head = Perceptron(MASKS, activation)

    def forward(self, features: Tensor, positions: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 4, 4 s, 4 s) and (B, 4), from features and positions (B, 256, s, s) and tokens (B, N, 256)."""
        count = len(prompts)
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])[None].expand(count, -1, -1)
        tokens, seen = self.transformer(
            features, torch.repeat_interleave(positions, count, dim=0), torch.cat([own, prompts], dim=1)
        )
        enlarged = self.output_upscaling(seen)  # (B, 32, 4 s, 4 s)
        kernels = [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        logits = (torch.stack(kernels, dim=1) @ enlarged.flatten(2)).unflatten(2, enlarged.shape[2:])
        return logits, self.iou_prediction_head(tokens[:, 0])


class SamPrompts(nn.Module):
    """SAM's prompt encoder: points by position and label, the previous logits through convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.pe_layer = FourierPositions()
        # By label; the last two are for the corners of boxes, which are not timed.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, WIDTH) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, WIDTH)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, stride=2),
            MapNorm(4),
            nn.GELU(),
            nn.Conv2d(4, 16, 2, stride=2),
            MapNorm(16),
            nn.GELU(),
            nn.Conv2d(16, WIDTH, 1),
        )
        self.no_mask_embed = nn.Embedding(1, WIDTH)

    def forward(self, points: Tensor, labels: Tensor) -> Tensor:
        """(B, N + 1, 256) of points (B, N, 2) as parts of the input's side and labels (B, N).

        The one more stands where the corners of a box would.
        """
        points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=NO_POINT)
        tokens: Tensor = self.pe_layer(points)
        tokens[labels == NO_POINT] = 0.0
        tokens[labels == NO_POINT] += self.not_a_point_embed.weight
        for label in (NEGATIVE, POSITIVE):
            tokens[labels == label] += self.point_embeddings.get_parameter(f"{label}.weight")
        return tokens

    def dense(self, previous: Tensor | None, count: int, side: int) -> Tensor:
        """(B, 256, side, side) to add to the picture's features; `previous` is (B, 1, 4 side, 4 side)."""
        if previous is None:
            return self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(count, -1, side, side)
        out: Tensor = self.mask_downscaling(previous)
        return out


class SixPoints(nn.Module):
    """EfficientSAM's prompt encoder: the first six points, padded to six.

    A negative point has a position and no label embedding: the published network was not trained on any.
    """

    COUNT = 6

    def __init__(self) -> None:
        super().__init__()
        self.pe_layer = FourierPositions()
        self.invalid_points = nn.Embedding(1, WIDTH)
        self.point_embeddings = nn.Embedding(1, WIDTH)
        self.bbox_top_left_embeddings = nn.Embedding(1, WIDTH)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, WIDTH)

    def forward(self, points: Tensor, labels: Tensor) -> Tensor:
        """(B, 6, 256) of points (B, N, 2) as parts of the input's side and labels (B, N)."""
        lacking = max(0, self.COUNT - points.shape[1])
        points = F.pad(points[:, : self.COUNT], (0, 0, 0, lacking))
        labels = F.pad(labels[:, : self.COUNT], (0, lacking), value=NO_POINT)
        tokens: Tensor = self.pe_layer(points)
        tokens[labels == NO_POINT] += self.invalid_points.weight
        tokens[labels == POSITIVE] += self.point_embeddings.weight
        tokens[labels == CORNER] += self.bbox_top_left_embeddings.weight
        tokens[labels == OPPOSITE_CORNER] += self.bbox_bottom_right_embeddings.weight
        return tokens


class MatrixAttention(Attention):
    """Self-attention with its matrix of weights."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return out


class GlobalViT(nn.Module):
    """EfficientSAM-Ti's encoder: ViT-Ti/16 with global attention in every block, and SAM's neck.

    Its positions were learnt on 14 x 14 patches and a class token, and are resized for every image.
    """

    DIM, DEPTH, HEADS, LEARNT = 192, 12, 3, 14

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, self.DIM, PATCH, stride=PATCH)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.LEARNT**2 + 1, self.DIM))
        self.blocks = nn.ModuleList(Block(self.DIM, self.HEADS, 4.0, eps=1e-6) for _ in range(self.DEPTH))
        for block in self.blocks:
            block.attn = MatrixAttention(self.DIM, self.HEADS)
        self.neck = nn.Sequential(
            nn.Conv2d(self.DIM, WIDTH, 1, bias=False),
            MapNorm(WIDTH),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            MapNorm(WIDTH),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 256, S / 16, S / 16) of a normalised image (1, 3, S, S)."""
        x = self.patch_embed(image)
        learnt = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (self.LEARNT, self.LEARNT))
        x = x + F.interpolate(learnt, x.shape[2:], mode="bicubic")
        side = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.neck(x.transpose(1, 2).unflatten(2, side))
        return out


class PublishedSam(nn.Module, ABC):
    """Base of both networks: an image to features, features and points to masks.

    Attributes
    ----------
    size
        Side S of the square input in pixels.
    fit
        How a picture is laid on the square: "letterbox" or "official" (stretched); see `Frame`.
    feeds_back
        Whether an answer's logits are an input of the next.
    """

    fit: Fit
    feeds_back: bool
    prompt_encoder: SamPrompts | SixPoints
    mask_decoder: MaskDecoder

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """Features (1, 256, S / 16, S / 16) of a normalised image (1, 3, S, S)."""

    def decode(
        self, features: Tensor, points: Tensor, labels: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, 3, S / 4, S / 4) and predicted IoU (B, 3) of the masks that a prompt may mean.

        `points` (B, N, 2) are (x, y) in pixels of the input, `labels` (B, N) say what each is, `previous`
        (B, 1, S / 4, S / 4) are logits of an answer before or None.
        """
        prompts = self.prompt_encoder((points + 0.5) / self.size, labels)
        positions = self.prompt_encoder.pe_layer.grid(self.size // PATCH)
        repeated = self._repeated(features, len(points), previous)
        logits, quality = self.mask_decoder(repeated, positions, prompts)
        return logits[:, 1:], quality[:, 1:]

    @abstractmethod
    def _repeated(self, features: Tensor, count: int, previous: Tensor | None) -> Tensor:
        """Return the features once for each of `count` prompts, with the previous logits added."""


class MobileSam(PublishedSam):
    """MobileSAM: TinyViT-5M before SAM's own two parts.

    The encoder has its batch norms folded into the convolutions, and attention in one kernel: a little
    faster than it was published.
    """

    fit: Fit = "letterbox"
    feeds_back = True
    prompt_encoder: SamPrompts

    def __init__(self, size: int = 1024) -> None:
        super().__init__(size)
        self.image_encoder = TinyViT(UPSTREAM_WINDOWS)
        self.prompt_encoder = SamPrompts()
        self.mask_decoder = MaskDecoder(nn.ReLU, MapNorm)

    def encode(self, image: Tensor) -> Tensor:
        deepest: Tensor = self.image_encoder(image)[2]
        return deepest

    def _repeated(self, features: Tensor, count: int, previous: Tensor | None) -> Tensor:
        prior = self.prompt_encoder.dense(previous, count, features.shape[-1])
        return torch.repeat_interleave(features, count, dim=0) + prior


class EfficientSamTi(PublishedSam):
    """EfficientSAM-Ti: a plain tiny ViT, six points, nothing fed back.

    Tokens attend to each other exactly as in SAM; the published form differs there by an addition of tokens.
    """

    fit: Fit = "official"
    feeds_back = False
    prompt_encoder: SixPoints

    def __init__(self, size: int = 1024) -> None:
        super().__init__(size)
        self.image_encoder = GlobalViT()
        self.prompt_encoder = SixPoints()
        self.mask_decoder = MaskDecoder(nn.GELU, lambda width: nn.GroupNorm(1, width))

    def encode(self, image: Tensor) -> Tensor:
        out: Tensor = self.image_encoder(image)
        return out

    def _repeated(self, features: Tensor, count: int, previous: Tensor | None) -> Tensor:
        return features.tile(count, 1, 1, 1)
