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
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import THRESHOLD
from napari_lowlat_seg.core.prompts import Prompt, Region
from napari_lowlat_seg.core.volume import to_uint8
from napari_lowlat_seg.inference.closer_look import FIRST_SIGHT, closer_frame, has_room, object_box, shows
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.inference.torch_backend import Drawing, HotPath, Question
from napari_lowlat_seg.models.checkpoints import load_model
from napari_lowlat_seg.models.network import Network


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
    soft
        The probability where it was computed: (H, W) on the host, or on a GPU as long as nobody asks.
    quality
        The network's own estimate of its IoU in [0, 1], or None if it makes none.
    frame
        The frame of the embedding that was asked.
    look
        The embedding of a closer look if one was taken; the next `predict` may use it again.
    fetched
        The mask if it is on the host already.
    """

    soft: np.ndarray | Tensor
    quality: float | None
    frame: Frame
    look: Embedding | None = None
    fetched: np.ndarray | None = field(default=None, repr=False)

    @cached_property
    def probability(self) -> np.ndarray:
        """(H, W) float32 in [0, 1]."""
        if isinstance(self.soft, np.ndarray):
            return self.soft
        probability: np.ndarray = self.soft.float().cpu().numpy()
        return probability

    def redrawn(self, probability: np.ndarray) -> Prediction:
        """This answer with another probability, (H, W) float32, and no closer look."""
        return replace(self, soft=probability, look=None, fetched=None)

    @cached_property
    def mask(self) -> np.ndarray:
        """(H, W) bool: probability above 0.49."""
        if self.fetched is not None:
            return self.fetched
        mask: np.ndarray = self.probability > THRESHOLD
        return mask


CloserLook = Literal["auto", "off"]


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
        self.hot_path = HotPath(network, runtime)
        self.closer_look = closer_look
        self.name = name or self.model

    @property
    def network(self) -> Network:
        """The network, where it computes."""
        return self.hot_path.network

    @property
    def runtime(self) -> Runtime:
        """Device and precision."""
        return self.hot_path.runtime

    @property
    def size(self) -> int:
        """Side of the network's square input in pixels."""
        return self.network.size

    def warm_up(self) -> None:
        """Pay now what the first picture and the first click would pay; `load_predictor` does it on a GPU."""
        self.hot_path.warm_up()

    def interrupt_by(self, look: Callable[[], object]) -> None:
        """Calls `look` again and again while the network computes; what it raises stops the network there."""
        self.hot_path.interrupt_by(look)

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
        plane = to_uint8(pixels, window)
        seen = self._embed_frame(plane, Frame.whole(plane.shape[:2], self.size, self.network.fit, spacing))
        if np.may_share_memory(plane, pixels):  # 8-bit pixels come back as they are,
            seen = replace(seen, image=plane.copy())  # and a camera writes over its buffer
        return seen

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
        around the object that is embedded once and travels in `Prediction.look` (of a new object's clicks and
        scribbles, whole plane and crop both have a say in it); as long as the prompts and
        the mask stay inside that crop, later answers come from there alone. An object that outgrows it is
        answered again, from a larger crop or the whole plane. Parameters and errors are those of `predict`.
        """
        frame = embedding.frame
        self._check(embedding, prompts, previous)
        # All that is known of a new object are its prompts. Its first closer look judges by them alone: fed
        # the whole plane's coarse mask, it would repeat that mask's mistakes. Of clicks and scribbles, which
        # can mean two things, there are two opinions then, and their mean is right more often than either.
        new = previous is None
        unsure = new and not any(isinstance(prompt, Region) for prompt in prompts)
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
            share = FIRST_SIGHT if unsure else 0.0
            yield self._drawn(look, prompts, None if new else previous, previous, look, share)

    def predict_batch(
        self,
        embedding: Embedding,
        prompts: Sequence[Sequence[Prompt]],
        previous: Sequence[Prediction | None] | None = None,
    ) -> list[Prediction]:
        """The quick answers for many objects of one picture at once: no closer look is taken.

        Parameters
        ----------
        embedding
            As `predict` takes it.
        prompts, previous
            For each object what `predict` takes; `previous` may be left out for all.

        Raises
        ------
        ValueError
            As `predict`, and for lists of different lengths.
        """
        earlier = [None] * len(prompts) if previous is None else list(previous)
        if len(earlier) != len(prompts):
            raise ValueError(
                f"expected a previous prediction or None for each of {len(prompts)} objects, got "
                f"{len(earlier)}"
            )
        for asked, before in zip(prompts, earlier, strict=True):
            self._check(embedding, asked, before)
        questions = [
            Question(asked, None if before is None else before.soft)
            for asked, before in zip(prompts, earlier, strict=True)
        ]
        return [_pasted(drawing, embedding.frame, None, None) for drawing in self._draw(embedding, questions)]

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

    def _check(self, embedding: Embedding, prompts: Sequence[Prompt], previous: Prediction | None) -> None:
        if embedding.model != self.model:
            raise ValueError(
                f"this embedding was made by {embedding.model}, not by {self.model}; embed the image again"
            )
        if not prompts and previous is None:
            raise ValueError("expected a prompt or a previous prediction, got neither; add a click")
        shape = embedding.frame.shape
        if previous is not None and tuple(previous.soft.shape) != shape:
            raise ValueError(
                f"the previous prediction has shape {tuple(previous.soft.shape)}, the image {shape}; "
                "pass the last prediction of the same image or None"
            )

    def _drawn(
        self,
        seen: Embedding,
        prompts: Sequence[Prompt],
        previous: Prediction | None,
        around: Prediction | None,
        look: Embedding | None = None,
        share: float = 0.0,
    ) -> Prediction:
        """The answer through one embedding, on the whole plane, as `_pasted` puts it there."""
        [drawing] = self._draw(seen, [Question(prompts, None if previous is None else previous.soft)])
        return _pasted(drawing, seen.frame, around, look, share)

    def _draw(self, seen: Embedding, questions: Sequence[Question]) -> list[Drawing]:
        try:
            return self.hot_path.draw(seen.features, seen.frame, questions)
        except torch.cuda.OutOfMemoryError:
            self._leave_device()
        return self.hot_path.draw(seen.features, seen.frame, questions)

    def _embed_frame(self, plane: np.ndarray, frame: Frame) -> Embedding:
        """The embedding of what `frame` shows of a uint8 plane."""
        try:
            return Embedding(self.hot_path.embed(plane, frame), frame, plane, self.model)
        except torch.cuda.OutOfMemoryError:
            self._leave_device()
        return Embedding(self.hot_path.embed(plane, frame), frame, plane, self.model)

    def _leave_device(self) -> None:
        """Go on without the GPU: slower, but nothing is lost; embeddings made there still serve."""
        warnings.warn(
            f"{self.runtime.device} is out of memory, so {self.name} goes on with the processor; "
            "close what else uses the GPU and load the model again to return to it",
            stacklevel=4,
        )
        self.hot_path = HotPath(self.network.float(), suited(Runtime.find("cpu"), self.network))


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
    network = load_model(model)
    predictor = Predictor(network, suited(runtime, network), closer_look, name=str(model))
    if runtime.on_cuda:
        predictor.warm_up()
    return predictor


def suited(runtime: Runtime, network: Network) -> Runtime:
    """A runtime without the shortcuts that were not checked with this network."""
    short = runtime.precision == "bf16" and not network.bf16
    return replace(
        runtime,
        precision="fp32" if short else runtime.precision,
        openvino=runtime.openvino and network.openvino,
    )


def _pasted(
    drawing: Drawing,
    frame: Frame,
    around: Prediction | None,
    look: Embedding | None,
    share: float = 0.0,
) -> Prediction:
    """A drawing of a frame's crop on the whole plane; beside it stays what `around` has.

    In the crop, a `share` of the probability is that of `around`.
    """
    if drawing.mask.shape == frame.shape or around is None:
        return Prediction(drawing.soft, drawing.quality, frame, look, drawing.mask)
    soft: np.ndarray | Tensor
    if isinstance(drawing.soft, Tensor):
        there = around.soft
        soft = there.clone() if isinstance(there, Tensor) else torch.from_numpy(there).to(drawing.soft)
    else:
        soft = around.probability.copy()
    crop: Any = frame.cut(soft)
    crop[...] = drawing.soft + share * (crop - drawing.soft) if share else drawing.soft
    shown = crop > THRESHOLD if share else drawing.mask
    mask = around.mask.copy()
    frame.place(shown.cpu().numpy() if isinstance(shown, Tensor) else shown, mask)
    return Prediction(soft, drawing.quality, frame, look, mask)


def _fingerprint(network: Network) -> str:
    """A name for the weights: kind, size and a digest of sixteen values of every parameter."""
    sample = [p.detach().flatten()[:: max(1, p.numel() // 16)][:16].float() for p in network.parameters()]
    digest = hashlib.sha256(torch.cat(sample).cpu().numpy().tobytes()).hexdigest()
    return f"{type(network).__name__}-{network.size}-{digest[:12]}"
