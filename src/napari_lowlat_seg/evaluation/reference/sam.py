"""MobileSAM and EfficientSAM-Ti the way their projects run them: plain eager float32, to be timed.

For the benchmark alone, with random weights: a figure of latency means something, a mask does not. Where a
choice was open the faster one was taken: the best of three masks is chosen on the device and copied to the
host alone, and its logits stay on the device until they are fed back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.volume import to_uint8
from napari_lowlat_seg.evaluation.reference.sam_kin import EfficientSamTi, MobileSam, PublishedSam
from napari_lowlat_seg.models.network import MEAN, STD

POINTS_PER_BATCH = 64  # SAM's automatic mask generator asks for so many objects at once
NETWORKS: dict[str, Callable[[], PublishedSam]] = {
    "mobile-sam-random": MobileSam,
    "efficient-sam-ti-random": EfficientSamTi,
}


@dataclass(frozen=True, eq=False)
class SamFormPrediction:
    """An answer.

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


class SamForm:
    """A benchmark's segmenter around a published network, which is moved to `device` in evaluation mode."""

    def __init__(self, network: PublishedSam, device: str, name: str) -> None:
        self.name = name
        self.device = device
        self.network = network.to(device).eval()

    @classmethod
    def random(cls, name: str, device: str, label: str) -> SamForm:
        """One of `NETWORKS` with random weights, the same ones every time; `label` is what tables call it."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return cls(NETWORKS[name](), device, label)

    @property
    def form(self) -> str:
        """How prompts become a mask, for tables."""
        fed = "logits fed back" if self.network.feeds_back else "nothing fed back"
        return f"random weights, published form, eager fp32, best of 3, {fed}"

    def embed(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        """The encoder's map of a picture (H, W) or (H, W, 3)."""
        pixels = to_uint8(image)
        frame = Frame.whole(pixels.shape[:2], self.network.size, self.network.fit)
        with torch.inference_mode():
            return self.network.encode(self._laid(Image.fromarray(pixels).convert("RGB"), frame)), frame

    def predict(
        self,
        embedding: tuple[Tensor, Frame],
        prompts: Sequence[Prompt],
        previous: SamFormPrediction | None = None,
    ) -> SamFormPrediction:
        """The answer to all clicks together; `previous` is the last answer for the same object, or None.

        Raises
        ------
        ValueError
            For anything but clicks, and for none.
        """
        known = None if previous is None or not self.network.feeds_back else previous.low_res[None]
        [answer] = self._answers(embedding, [prompts], known)
        return answer

    def predict_batch(
        self, embedding: tuple[Tensor, Frame], prompts: Sequence[Sequence[Prompt]]
    ) -> list[SamFormPrediction]:
        """First answers for many objects, 64 at once.

        Raises
        ------
        ValueError
            As `predict`, and for objects with different numbers of clicks.
        """
        starts = range(0, len(prompts), POINTS_PER_BATCH)
        batches = [self._answers(embedding, prompts[i : i + POINTS_PER_BATCH], None) for i in starts]
        return [answer for batch in batches for answer in batch]

    def _laid(self, picture: Image.Image, frame: Frame) -> Tensor:
        """A picture on the network's square (1, 3, S, S), normalised; padding is zero after that."""
        size, (rows, cols) = self.network.size, frame.content
        if frame.fit == "letterbox":  # SAM's way: Pillow resizes on the host
            picture = picture.resize((cols, rows), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(picture)).to(self.device).permute(2, 0, 1)[None].float()
        if frame.fit == "official":  # EfficientSAM's way: the device resizes, without smoothing
            x = F.interpolate(x, (size, size), mode="bilinear")
        mean, std = (x.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        return F.pad((x - mean) / std, (0, size - cols, 0, size - rows))

    def _answers(
        self, embedding: tuple[Tensor, Frame], prompts: Sequence[Sequence[Prompt]], known: Tensor | None
    ) -> list[SamFormPrediction]:
        features, frame = embedding
        at, labels = _clicks(prompts)
        with torch.inference_mode():
            points = torch.from_numpy((at * frame.scale)[..., ::-1].astype(np.float32)).to(self.device)
            logits, quality = self.network.decode(
                features, points, torch.from_numpy(labels).to(self.device), known
            )
            masks = self._on_plane(logits, frame) > 0
            each, best = torch.arange(len(prompts), device=self.device), quality.argmax(dim=1)
            chosen = masks[each, best].cpu().numpy()
            scores = quality[each, best].tolist()
            low_res = logits[each, best][:, None]
        return [SamFormPrediction(*answer) for answer in zip(chosen, scores, low_res, strict=True)]

    def _on_plane(self, logits: Tensor, frame: Frame) -> Tensor:
        """Logits (B, 3, S / 4, S / 4) as (B, 3, H, W)."""
        if frame.fit == "official":
            return F.interpolate(logits, frame.shape, mode="bicubic")
        size, (rows, cols) = self.network.size, frame.content
        square = F.interpolate(logits, (size, size), mode="bilinear")
        return F.interpolate(square[..., :rows, :cols], frame.shape, mode="bilinear")


def _clicks(prompts: Sequence[Sequence[Prompt]]) -> tuple[np.ndarray, np.ndarray]:
    """Places (B, N, 2) as (row, col) and labels (B, N), 1 or 0, of N clicks for each of B objects."""
    counts = sorted({len(asked) for asked in prompts})
    if len(counts) != 1 or counts[0] == 0:
        raise ValueError(f"expected the same number of clicks for every object, at least one, got "
                         f"{', '.join(map(str, counts))}; ask for objects one by one")  # fmt: skip
    at = [[_click(prompt).at for prompt in asked] for asked in prompts]
    return np.array(at, float), np.array([[int(prompt.positive) for prompt in asked] for asked in prompts])


def _click(prompt: Prompt) -> Click:
    if isinstance(prompt, Click):
        return prompt
    kind = type(prompt).__name__.lower()
    raise ValueError(f"expected clicks, which is all that is timed, got a {kind}; use clicks")
