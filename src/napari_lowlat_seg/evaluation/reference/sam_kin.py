"""MobileSAM and EfficientSAM-Ti the way they were published: plain eager float32, to be timed beside ours.

Both let a light encoder take the place of SAM's: MobileSAM (Zhang et al., "Faster Segment Anything", 2023) a
TinyViT, with SAM's own prompt encoder and mask decoder behind it; EfficientSAM-Ti (Xiong et al.,
"EfficientSAM", CVPR 2024) a plain ViT, with a decoder of SAM's shape whose prompts are always six points and
never a mask. They take clicks, as the benchmark does. Names of parameters are SAM's where the parts are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_lowlat_seg.evaluation.reference.sam_decoder import WIDTH, FourierPositions, MapNorm, MaskDecoder
from napari_lowlat_seg.models.network import Fit
from napari_lowlat_seg.models.tinyvit import UPSTREAM_WINDOWS, TinyViT
from napari_lowlat_seg.models.vit import Attention, Block

PATCH = 16
NO_POINT, NEGATIVE, POSITIVE, CORNER, OPPOSITE_CORNER = -1, 0, 1, 2, 3  # what a point's label says


class SamPrompts(nn.Module):
    """SAM's prompt encoder: points by place and label, the previous answer's logits through convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.pe_layer = FourierPositions()
        # By label; the last two, for the corners of boxes, belong to the network and are not asked for.
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
        seen: Tensor = self.mask_downscaling(previous)
        return seen


class SixPoints(nn.Module):
    """EfficientSAM's prompt encoder: the first six points, or as many fillers as lack to six.

    A negative point has a place and no label of its own: the published network was not taught any.
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
    """EfficientSAM-Ti's encoder: ViT-Ti/16, every block looks everywhere, and SAM's neck.

    Its places were learnt on 14 x 14 patches and a class token, and are stretched for every picture.
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
        seen: Tensor = self.neck(x.transpose(1, 2).unflatten(2, side))
        return seen


class PublishedSam(nn.Module, ABC):
    """A picture to features, features and points to masks.

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
        places = self.prompt_encoder.pe_layer.grid(self.size // PATCH)
        asked = self._asked(features, len(points), previous)
        logits, quality = self.mask_decoder(asked, places, prompts)
        return logits[:, 1:], quality[:, 1:]

    @abstractmethod
    def _asked(self, features: Tensor, count: int, previous: Tensor | None) -> Tensor:
        """The features once for every one of `count` prompts, with what is known of the answer."""


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

    def _asked(self, features: Tensor, count: int, previous: Tensor | None) -> Tensor:
        known = self.prompt_encoder.dense(previous, count, features.shape[-1])
        return torch.repeat_interleave(features, count, dim=0) + known


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
        seen: Tensor = self.image_encoder(image)
        return seen

    def _asked(self, features: Tensor, count: int, previous: Tensor | None) -> Tensor:
        return features.tile(count, 1, 1, 1)
