"""SegNext ViT-B SAx2 with random weights: the way it was published to run, and the way this package runs it.

    lowlat-seg benchmark latency -m benchmarks/reference/segnext.py:official -m default

All have the same weights. `official` is plain eager float32, written from the description (Liu et al.,
"Rethinking Interactive Image Segmentation with Low Latency, High Quality, and Diverse Prompts", CVPR 2024):
attention with its matrix of weights, library group norms over whole maps, a head that resizes four levels and
concatenates them, prompt maps out of full-size distance images, and the probability of the whole plane copied
to the host after every click.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import THRESHOLD
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.volume import to_uint8
from napari_lowlat_seg.evaluation.inputs.segmenters import Ours
from napari_lowlat_seg.inference.predictor import Predictor, suited
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.models.network import MEAN, STD
from napari_lowlat_seg.models.segnext import Attention, Block, SegNext, SegNextConfig

FAR = 1e6  # squared distance of a slot without a click


@dataclass(frozen=True, eq=False)
class OfficialPrediction:
    """A probability (H, W) float32 on the host."""

    probability: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool."""
        mask: np.ndarray = self.probability > THRESHOLD
        return mask


class OfficialSegNext:
    """A benchmark's segmenter around a `SegNext`, which is moved to `device` and not changed otherwise."""

    form = "published form, eager fp32"

    def __init__(self, network: SegNext, device: str, name: str) -> None:
        self.name = name
        self.device = device
        self.network = network.to(device).eval()

    def embed(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        """Return the encoder's map of an image (H, W) or (H, W, 3), and where the image lies on the input."""
        network = self.network
        pixels = to_uint8(image)
        rgb = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1)
        frame = Frame.whole(rgb.shape[:2], network.size, network.fit)
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(rgb)).to(self.device).permute(2, 0, 1)[None] / 255
            mean, std = (x.new_tensor(values)[:, None, None] / 255 for values in (MEAN, STD))
            x = F.interpolate((x - mean) / std, (network.size, network.size), mode="bilinear")
            vit = network.backbone
            projected = vit.patch_embed.proj(x).flatten(2).transpose(1, 2)
            tokens = projected + vit.pos_embed[:, 1:]
            for is_global, block in zip(vit.is_global, vit.blocks, strict=True):
                tokens = (
                    _block(tokens, block)
                    if is_global
                    else vit._from_windows(_block(vit._to_windows(tokens), block))
                )
            return tokens, frame

    def predict(
        self,
        embedding: tuple[Tensor, Frame],
        prompts: Sequence[Prompt],
        previous: OfficialPrediction | None = None,
    ) -> OfficialPrediction:
        """Return the mask for clicks, the only prompts that the published form has."""
        tokens, frame = embedding
        with torch.inference_mode():
            maps = torch.cat([self._previous(previous), self.click_maps(prompts, frame)], dim=1)
            return OfficialPrediction(self.probability(tokens, maps, frame))

    def click_maps(self, prompts: Sequence[Prompt], frame: Frame) -> Tensor:
        """Return disks of positive and negative clicks (1, 2, S, S), from one distance image a click."""
        size = self.network.size
        rows = torch.arange(size, device=self.device, dtype=torch.float32)[:, None]
        cols = torch.arange(size, device=self.device, dtype=torch.float32)[None, :]
        maps = []
        for positive in (True, False):
            at = [p.at for p in prompts if isinstance(p, Click) and p.positive == positive]
            pixels = torch.from_numpy(frame.pixels(np.array(at).reshape(-1, 2))).to(self.device).float()
            apart = (rows - pixels[:, 0, None, None]) ** 2 + (cols - pixels[:, 1, None, None]) ** 2
            nearest = torch.cat([apart, apart.new_full((1, size, size), FAR)]).amin(dim=0)
            maps.append((nearest <= self.network.radius**2).float())
        return torch.stack(maps)[None]

    def probability(self, tokens: Tensor, maps: Tensor, frame: Frame) -> np.ndarray:
        """Return the probability (H, W) float32 for prompt maps (1, 3, S, S)."""
        network = self.network
        prompts = network.visual_prompts_encoder.proj(maps).flatten(2).transpose(1, 2)
        x = tokens + prompts
        for block in network.fusion_blocks:
            x = _block(x, block)
        side = network.backbone.grid
        seen = x.transpose(1, 2).reshape(1, -1, side, side)
        neck, head = network.neck, network.head
        pyramid = (neck.down_4, neck.down_8, neck.down_16, neck.down_32)
        levels = [conv(level(seen)) for level, conv in zip(pyramid, head.convs, strict=True)]
        levels = [F.interpolate(x, levels[0].shape[-2:], mode="bilinear") for x in levels]
        logits = head.seg_conv(head.fusion_conv(torch.cat(levels, dim=1)))
        logits = F.interpolate(logits, (network.size, network.size), mode="bilinear", align_corners=True)
        probability: np.ndarray = (
            F.interpolate(logits, frame.shape, mode="bilinear").sigmoid()[0, 0].cpu().numpy()
        )
        return probability

    def _previous(self, previous: OfficialPrediction | None) -> Tensor:
        size = self.network.size
        if previous is None:
            return torch.zeros((1, 1, size, size), device=self.device)
        soft = torch.from_numpy(previous.probability).to(self.device)[None, None]
        return F.interpolate(soft, (size, size), mode="bilinear")


def _block(x: Tensor, block: nn.Module) -> Tensor:
    assert isinstance(block, Block)
    x = x + _attention(block.norm1(x), block.attn)
    out: Tensor = x + block.mlp(block.norm2(x))
    return out


def _attention(x: Tensor, attention: Attention) -> Tensor:
    batch, count, dim = x.shape
    qkv = attention.qkv(x).reshape(batch, count, 3, attention.heads, dim // attention.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q * (dim // attention.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
    mixed: Tensor = attention.proj((weights @ v).transpose(1, 2).reshape(batch, count, dim))
    return mixed


def official(device: str) -> OfficialSegNext:
    """Return the published form."""
    return OfficialSegNext(_random_network(), device, "SegNext, official")


def ours(device: str) -> Ours:
    """Return this package's form, in the device's precision."""
    return _ours(Runtime.find(device), "SegNext, ours")


def compiled(device: str) -> Ours:
    """Return this package's form with torch's compiler."""
    return _ours(replace(Runtime.find(device), compiled=True), "SegNext, compiled")


def _ours(runtime: Runtime, name: str) -> Ours:
    network = _random_network()
    predictor = Predictor(network, suited(runtime, network), "off")
    if predictor.runtime.on_cuda:
        predictor.warm_up()
    return Ours(name, predictor, f"random weights, {predictor.runtime.precision}")


def _random_network() -> SegNext:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return SegNext(SegNextConfig.vit_b(fusion_blocks=2))
