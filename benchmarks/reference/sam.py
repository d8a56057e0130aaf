"""MobileSAM and EfficientSAM-Ti the way their projects run them: plain eager float32, random weights.

    lowlat-seg benchmark latency -m benchmarks/reference/sam.py:mobile_sam -m default

Where a choice was open the faster one was taken: the best of three masks is chosen on the device and copied
to the host alone, and its logits stay on the device until they are fed back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.reference.sam_networks import EfficientSamTi, MobileSam, PublishedSam
from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.volume import to_uint8
from napari_lowlat_seg.models.network import MEAN, STD

POINTS_PER_BATCH = 64  # objects at once, as in SAM's automatic mask generator


@dataclass(frozen=True, eq=False)
class SamPrediction:
    """A mask.

    Attributes
    ----------
    mask
        (H, W) bool on the host: logits above 0.
    quality
        Its predicted IoU.
    low_res
        Logits (1, S / 4, S / 4) on the device, to be fed back.
    """

    mask: np.ndarray
    quality: float
    low_res: Tensor


class SamSegmenter:
    """A benchmark's segmenter around a published network, which is moved to `device` in evaluation mode."""

    def __init__(self, network: PublishedSam, device: str, name: str) -> None:
        self.name = name
        self.device = device
        self.network = network.to(device).eval()

    @property
    def form(self) -> str:
        """How prompts become a mask, for tables."""
        fed = "logits fed back" if self.network.feeds_back else "nothing fed back"
        return f"random weights, published form, eager fp32, best of 3, {fed}"

    def embed(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        """Return the encoder's map of an image (H, W) or (H, W, 3), and where the image lies on the input."""
        pixels = to_uint8(image)
        frame = Frame.whole(pixels.shape[:2], self.network.size, self.network.fit)
        with torch.inference_mode():
            return self.network.encode(self._fitted(Image.fromarray(pixels).convert("RGB"), frame)), frame

    def predict(
        self,
        embedding: tuple[Tensor, Frame],
        prompts: Sequence[Prompt],
        previous: SamPrediction | None = None,
    ) -> SamPrediction:
        """Return the mask for all clicks together; `previous` is the last one of the same object, or None.

        Raises
        ------
        ValueError
            For anything but clicks, and for none.
        """
        fed_back = None if previous is None or not self.network.feeds_back else previous.low_res[None]
        [prediction] = self._predictions(embedding, [prompts], fed_back)
        return prediction

    def predict_batch(
        self, embedding: tuple[Tensor, Frame], prompts: Sequence[Sequence[Prompt]]
    ) -> list[SamPrediction]:
        """Return first masks for many objects, 64 at once.

        Raises
        ------
        ValueError
            As `predict`, and for objects with different numbers of clicks.
        """
        starts = range(0, len(prompts), POINTS_PER_BATCH)
        batches = [self._predictions(embedding, prompts[i : i + POINTS_PER_BATCH], None) for i in starts]
        return [prediction for batch in batches for prediction in batch]

    def _fitted(self, picture: Image.Image, frame: Frame) -> Tensor:
        """An image on the network's square (1, 3, S, S), normalised; padding is zero after that."""
        size, (rows, cols) = self.network.size, frame.content
        if frame.fit == "letterbox":  # SAM's way: Pillow resizes on the host
            picture = picture.resize((cols, rows), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(picture)).to(self.device).permute(2, 0, 1)[None].float()
        if frame.fit == "official":  # EfficientSAM's way: the device resizes, without smoothing
            x = F.interpolate(x, (size, size), mode="bilinear")
        mean, std = (x.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        return F.pad((x - mean) / std, (0, size - cols, 0, size - rows))

    def _predictions(
        self, embedding: tuple[Tensor, Frame], prompts: Sequence[Sequence[Prompt]], fed_back: Tensor | None
    ) -> list[SamPrediction]:
        features, frame = embedding
        at, labels = _clicks(prompts)
        with torch.inference_mode():
            points = torch.from_numpy((at * frame.scale)[..., ::-1].astype(np.float32)).to(self.device)
            logits, quality = self.network.decode(
                features, points, torch.from_numpy(labels).to(self.device), fed_back
            )
            masks = self._on_plane(logits, frame) > 0
            each, best = torch.arange(len(prompts), device=self.device), quality.argmax(dim=1)
            chosen = masks[each, best].cpu().numpy()
            scores = quality[each, best].tolist()
            low_res = logits[each, best][:, None]
        return [SamPrediction(*one) for one in zip(chosen, scores, low_res, strict=True)]

    def _on_plane(self, logits: Tensor, frame: Frame) -> Tensor:
        """Logits (B, 3, S / 4, S / 4) as (B, 3, H, W)."""
        if frame.fit == "official":
            return F.interpolate(logits, frame.shape, mode="bicubic")
        size, (rows, cols) = self.network.size, frame.content
        square = F.interpolate(logits, (size, size), mode="bilinear")
        return F.interpolate(square[..., :rows, :cols], frame.shape, mode="bilinear")


def _clicks(prompts: Sequence[Sequence[Prompt]]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (B, N, 2) as (row, col) and labels (B, N), 1 or 0, of N clicks for each of B objects."""
    counts = sorted({len(clicks) for clicks in prompts})
    if len(counts) != 1 or counts[0] == 0:
        raise ValueError(f"expected the same number of clicks for every object, at least one, got "
                         f"{', '.join(map(str, counts))}; ask for objects one by one")  # fmt: skip
    at = [[_click(prompt).at for prompt in clicks] for clicks in prompts]
    return np.array(at, float), np.array([[int(prompt.positive) for prompt in clicks] for clicks in prompts])


def _click(prompt: Prompt) -> Click:
    if isinstance(prompt, Click):
        return prompt
    kind = type(prompt).__name__.lower()
    raise ValueError(f"expected clicks, which is all that is timed, got a {kind}; use clicks")


def mobile_sam(device: str) -> SamSegmenter:
    """Return MobileSAM with random weights, the same ones every time."""
    return SamSegmenter(_seeded(MobileSam), device, "MobileSAM, random")


def efficient_sam_ti(device: str) -> SamSegmenter:
    """Return EfficientSAM-Ti with random weights, the same ones every time."""
    return SamSegmenter(_seeded(EfficientSamTi), device, "EfficientSAM-Ti, random")


def _seeded(network: type[MobileSam | EfficientSamTi]) -> PublishedSam:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return network()
