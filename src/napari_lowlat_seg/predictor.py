"""The engine: pictures and prompts in, masks out, numpy on both sides, nothing kept between calls.

    predictor = load_predictor("default")
    embedding = predictor.embed(image)                                    # slow, once per picture
    prediction = predictor.predict(embedding, [Click((120, 88))])         # fast, once per prompt
    prediction = predictor.predict(embedding, [Click((120, 88)), Click((10, 12), positive=False)], prediction)

All that belongs to one picture is inside its `Embedding`, so any number of pictures can take turns on one
predictor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .answers import THRESHOLD
from .closer_look import closer_frame, has_room, object_box, shows
from .frame import Frame
from .model.checkpoints import load_model
from .model.network import Network
from .prompts import Prompt, Region, dense_maps
from .runtime import Runtime
from .volume import intensity_window, to_uint8

CloserLook = Literal["auto", "off"]


@dataclass(frozen=True, eq=False)
class Embedding:
    """What a network saw in one picture, through one frame.

    Attributes
    ----------
    features
        The encoder's tensors, on the predictor's device.
    frame
        How the picture lies on the network's square.
    image
        The whole plane as the network's eye has it, (H, W) or (H, W, 3) uint8.
    model
        Fingerprint of the network that made it; another network refuses it.
    """

    features: tuple[Tensor, ...]
    frame: Frame
    image: np.ndarray
    model: str


@dataclass(frozen=True, eq=False)
class Prediction:
    """An answer in plane pixels.

    Attributes
    ----------
    probability
        (H, W) float32 in [0, 1].
    quality
        The network's own estimate of its IoU in [0, 1], or None if it makes none.
    frame
        The frame of the embedding that was asked.
    look
        The embedding of a closer look if one was taken; the next `predict` may use it again.
    """

    probability: np.ndarray
    quality: float | None
    frame: Frame
    look: Embedding | None = None

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: probability above 0.49."""
        mask: np.ndarray = self.probability > THRESHOLD
        return mask


class Predictor:
    """A network on a device.

    Parameters
    ----------
    network
        Any member of the family.
    runtime
        Device and precision; the network is moved there.
    closer_look
        "auto" lets the predictor re-encode a crop where the object is small, "off" never does.
    name
        What tables and messages call it; its fingerprint if empty.
    """

    def __init__(
        self, network: Network, runtime: Runtime, closer_look: CloserLook = "auto", *, name: str = ""
    ) -> None:
        if closer_look not in get_args(CloserLook):
            raise ValueError(f"closer_look is 'auto' or 'off'; got {closer_look!r}")
        self.model = _fingerprint(network)
        self.network = runtime.prepare(network)
        self.runtime = runtime
        self.closer_look = closer_look
        self.name = name or self.model

    @property
    def size(self) -> int:
        """Side of the network's square input in pixels."""
        return self.network.size

    def embed(
        self,
        image: np.ndarray,
        window: tuple[float, float] | None = None,
        spacing: tuple[float, float] = (1.0, 1.0),
    ) -> Embedding:
        """The embedding of a picture; does not mutate it.

        Parameters
        ----------
        image
            (H, W) gray or (H, W, 3) RGB of any real dtype and any size from 1 x 1.
        window
            Intensities shown as black and white; chosen from the picture's own percentiles if None (8-bit
            pictures are taken as they are).
        spacing
            Size of a pixel along rows and columns; only the ratio counts.

        Raises
        ------
        ValueError
            For an empty picture, a wrong shape, complex numbers, no finite pixel, or a bad window or spacing.
        """
        pixels = np.asarray(image)
        if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
            raise ValueError(f"expected an image of shape (H, W) or (H, W, 3), got {pixels.shape}")
        plane = to_uint8(pixels, intensity_window(pixels) if window is None else window)
        if np.may_share_memory(plane, pixels):
            plane = plane.copy()  # 8-bit pixels come back as they are, and a camera writes over its buffer
        return self._embed_frame(plane, Frame.whole(plane.shape[:2], self.size, self.network.fit, spacing))

    def predict(
        self, embedding: Embedding, prompts: Sequence[Prompt], previous: Prediction | None = None
    ) -> Prediction:
        """The mask that all `prompts` together ask for; does not mutate any of its arguments.

        Parameters
        ----------
        embedding
            From `embed` of this predictor or of one with the same weights.
        prompts
            All prompts of the object so far, in any number and order; coordinates are (row, col).
        previous
            The answer before the newest prompt, if there was one. It stands in for the boxes, polygons and
            masks that it has answered; regions at the end of `prompts` are newer and painted over it.

        Raises
        ------
        ValueError
            For an embedding of other weights, prompts outside the picture, a `previous` of another shape, or
            neither prompts nor `previous`.
        """
        *_, best = self.answers(embedding, prompts, previous)
        return best

    def answers(
        self, embedding: Embedding, prompts: Sequence[Prompt], previous: Prediction | None = None
    ) -> Iterator[Prediction]:
        """One or two answers, the quicker first: who draws on a screen shows each as it comes.

        The whole plane answers first. Where the object covers little of it, a second answer comes from a crop
        around the object that is embedded once and travels in `Prediction.look`; as long as the prompts and
        the mask stay inside that crop, later answers come from there alone. An object that outgrows it is
        answered again, from a larger crop or the whole plane. Parameters and errors are those of `predict`.
        """
        frame = embedding.frame
        if embedding.model != self.model:
            raise ValueError(
                f"this embedding was made by {embedding.model}, not by {self.model}; embed the image again"
            )
        if not prompts and previous is None:
            raise ValueError("expected a prompt or a previous prediction, got neither; add a click")
        if previous is not None and previous.probability.shape != frame.shape:
            raise ValueError(
                f"the previous prediction has shape {previous.probability.shape}, the image {frame.shape}; "
                "pass the last prediction of the same image or None"
            )
        # All that is known of a new object are its prompts. Its first closer look judges by them alone: fed
        # the whole plane's coarse mask, it would repeat that mask's mistakes.
        new = previous is None
        look = None if previous is None else previous.look
        if previous is None or look is None or not self._serves(look, embedding, prompts, previous):
            look = None
        seen = embedding if look is None else look
        previous = self._drawn(seen, prompts, previous, previous, look)
        yield previous
        if self.closer_look == "off" or self.network.fit != "letterbox":
            return
        if new and not any(prompt.positive for prompt in prompts):
            return  # a crop would show the network no prompt of the object at all
        shown = None if look is None else look.frame  # the object may have outgrown it
        box = object_box(prompts, previous.mask)
        wanted = closer_frame(frame, box, shown)
        if wanted is None and shown is not None and box is not None:
            # Too large for any crop by now: what is cut off at the old one's border needs the whole plane.
            yield self._drawn(embedding, prompts, previous, previous)
        elif wanted is not None and wanted != shown:
            look = self._embed_frame(embedding.image, wanted)
            yield self._drawn(look, prompts, None if new else previous, previous, look)

    def _serves(
        self, look: Embedding, embedding: Embedding, prompts: Sequence[Prompt], previous: Prediction
    ) -> bool:
        """Whether a closer look taken before, at the same picture, can answer these prompts."""
        return (
            self.closer_look == "auto"
            and look.model == self.model
            and look.image is embedding.image
            and shows(look.frame, prompts)
            and has_room(look.frame, object_box(prompts, previous.mask))
        )

    def _drawn(
        self,
        seen: Embedding,
        prompts: Sequence[Prompt],
        previous: Prediction | None,
        around: Prediction | None,
        look: Embedding | None = None,
    ) -> Prediction:
        """The answer through one embedding, on the whole plane; beside its crop stays what `around` has."""
        answer, quality = self._answer(seen, prompts, None if previous is None else previous.probability)
        frame = seen.frame
        if answer.shape == frame.shape or around is None:
            return Prediction(answer, quality, frame, look)
        probability = around.probability.copy()
        frame.place(answer, probability)
        return Prediction(probability, quality, frame, look)

    def _embed_frame(self, plane: np.ndarray, frame: Frame) -> Embedding:
        """The embedding of what `frame` shows of a uint8 plane."""
        crop = frame.cut(plane)
        rgb = crop if crop.ndim == 3 else np.broadcast_to(crop[..., None], (*crop.shape, 3))
        with self.runtime.inference():
            pixels = self.runtime.tensor(rgb).permute(2, 0, 1)[None]  # (1, 3, rows, cols)
            colour = self.runtime.tensor(np.array(self.network.pad))
            features = self.network.encode(_laid(pixels, frame, colour))  # from (1, 3, S, S)
        return Embedding(features, frame, plane, self.model)

    def _answer(
        self, embedding: Embedding, prompts: Sequence[Prompt], previous: np.ndarray | None
    ) -> tuple[np.ndarray, float | None]:
        """Probability (rows, cols) over the frame's crop, and the quality; `previous` covers the plane."""
        frame = embedding.frame
        network = self.network
        maps = dense_maps(prompts, frame, radius=network.radius, regions=network.regions)  # (3, S, S)
        with self.runtime.inference():
            if previous is not None:
                maps[0] = self._prior(frame, prompts, previous)
            fused = network.fuse(embedding.features, self.runtime.tensor(maps)[None])
            logits, quality = network.decode(fused)
            probability = _lifted(logits.float(), frame).sigmoid()[0, 0].cpu().numpy()
        return probability, None if quality is None else float(quality[0])

    def _prior(self, frame: Frame, prompts: Sequence[Prompt], previous: np.ndarray) -> np.ndarray:
        """Channel 0, (S, S): the previous probability with the regions newer than it painted over."""
        soft = self.runtime.tensor(frame.cut(previous))[None, None]
        prior = _laid(soft, frame, soft.new_zeros(1))[0, 0].cpu().numpy()
        for region in _newest_regions(prompts) if self.network.regions == "prior" else ():
            cover = dense_maps([replace(region, positive=True)], frame, radius=self.network.radius)[0]
            prior = np.maximum(prior, cover) if region.positive else np.minimum(prior, 1 - cover)
        return prior


def load_predictor(
    model: str = "default", device: str = "auto", closer_look: CloserLook = "auto"
) -> Predictor:
    """The predictor for a model on a device.

    Parameters
    ----------
    model
        A name from `list_models()`, or the path of a .safetensors file or of an official .pth file.
    device
        "auto", "cpu", "cuda", "cuda:1" or "mps".
    closer_look
        "auto" or "off"; see `Predictor`.

    Raises
    ------
    ValueError
        For an unknown name, an unusable file or a device that is not there.
    """
    runtime = Runtime.find(device)  # first, because it is the cheaper one to fail
    return Predictor(load_model(model), runtime, closer_look, name=str(model))


def _newest_regions(prompts: Sequence[Prompt]) -> list[Region]:
    """The regions that no click or scribble follows, oldest first.

    Every other region is older than the previous prediction, which has answered it.
    """
    newest: list[Region] = []
    for prompt in reversed(prompts):
        if not isinstance(prompt, Region):
            break
        newest.insert(0, prompt)
    return newest


def _laid(pixels: Tensor, frame: Frame, fill: Tensor) -> Tensor:
    """Crop pixels (1, C, rows, cols) on the square of a frame, (1, C, S, S), padded with `fill` (C,).

    The original stretches without antialiasing; a letterbox averages when it shrinks, so that thin membranes
    survive.
    """
    rows, cols = frame.content
    smooth = frame.fit == "letterbox" and pixels.shape[1] == 3  # masks are smooth already and asked for often
    seen = F.interpolate(pixels, (rows, cols), mode="bilinear", antialias=smooth)
    if rows == cols == frame.size:
        return seen
    canvas = fill[:, None, None].repeat(1, 1, frame.size, frame.size)  # (1, C, S, S)
    canvas[..., :rows, :cols] = seen
    return canvas


def _lifted(logits: Tensor, frame: Frame) -> Tensor:
    """Logits (1, 1, s, s) over the square brought to the frame's crop, (1, 1, rows, cols)."""
    rows, cols = frame.content
    if logits.shape[-1] != frame.size and not rows == cols == frame.size:
        logits = F.interpolate(logits, (frame.size, frame.size), mode="bilinear")
    return F.interpolate(logits[..., :rows, :cols], frame.crop[2:], mode="bilinear")


def _fingerprint(network: Network) -> str:
    """A name for the weights: kind, size and a digest of sixteen values of every parameter."""
    sample = [p.detach().flatten()[:: max(1, p.numel() // 16)][:16].float() for p in network.parameters()]
    digest = hashlib.sha256(torch.cat(sample).cpu().numpy().tobytes()).hexdigest()
    return f"{type(network).__name__}-{network.size}-{digest[:12]}"
