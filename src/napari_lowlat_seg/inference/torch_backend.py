"""The hot path: pixels and prompts to probabilities on one device, in as few steps as the device allows.

On a CUDA device encoder and click are recorded graphs of fixed shapes; prompts are stamped, the previous
answer is resized and the mask is cut where the network is, and one wait ends a click. Elsewhere the same
steps run one by one, the network's own by OpenVINO where it is installed. Why: docs/decisions/hot-path.md.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import THRESHOLD
from napari_lowlat_seg.core.prompts import Click, Prompt, Region, dense_maps, dotted, stroke_pixels
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.models.network import Network

Step = Callable[..., tuple[Tensor, ...]]


class Recording:
    """A step over fixed input tensors.

    Write new values into `inputs`, call `replay`, and read the result, the same tensors every time, before
    the next replay overwrites it.

    Parameters
    ----------
    step
        Takes the inputs, returns tensors; no shape or branch in it may depend on their values.
    inputs
        On one CUDA device. They belong to the recording from now on.
    """

    def __init__(self, step: Step, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = inputs
        aside = torch.cuda.Stream(inputs[0].device)
        aside.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose their kernels and take their workspaces outside the graph
                step(*inputs)
        torch.cuda.current_stream(inputs[0].device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.outputs = step(*inputs)

    def replay(self) -> tuple[Tensor, ...]:
        """The outputs for what `inputs` hold now."""
        self._graph.replay()
        return self.outputs


BATCH = 8  # objects a recorded step answers at once


@dataclass(frozen=True, eq=False)
class Question:
    """All prompts of one object, and its probability (H, W) before the newest of them, if there is one."""

    prompts: Sequence[Prompt]
    previous: np.ndarray | Tensor | None = None


@dataclass(frozen=True, eq=False)
class Drawing:
    """An answer over a frame's crop: `soft` (rows, cols) where it was computed, `mask` on the host."""

    soft: np.ndarray | Tensor
    mask: np.ndarray
    quality: float | None


class HotPath:
    """A network on a device; keeps recorded steps and no picture.

    Parameters
    ----------
    network
        Any member of the family; it is moved to the device.
    runtime
        Device and precision.
    """

    def __init__(self, network: Network, runtime: Runtime) -> None:
        self.network = runtime.prepare(network)
        self.runtime = runtime
        self._encoder: Recording | None = None
        self._clicks: dict[int, Recording] = {}  # by number of objects
        self._loaded: dict[int, weakref.ref[Tensor]] = {}  # whose picture is in a recorded click's inputs
        self._turn = threading.Lock()  # recorded steps have one set of inputs
        # Apple's device cannot resize with antialiasing: what is not CUDA gets its picture laid out.
        self._resizing = runtime if runtime.on_cuda else Runtime()
        self._pad = self._resizing.tensor(np.array(network.pad))
        self._look: Callable[[], object] = _nothing_newer
        self.encode: Step = self.network.encode  # on a processor OpenVINO may take both steps over
        self.click: Step = self._clicked
        if runtime.openvino:
            self._convert()

    def interrupt_by(self, look: Callable[[], object]) -> None:
        """Calls `look` again and again while the network computes; what it raises stops the network there."""
        self._look = look
        for module in self.network.modules():
            module.register_forward_pre_hook(lambda *_: look())

    def warm_up(self) -> None:
        """Pay now what the first picture and the first click would pay: recording, or choosing kernels."""
        image = np.zeros((self.network.size, self.network.size), np.uint8)
        frame = Frame.whole(image.shape, self.network.size, self.network.fit)
        features = self.embed(image, frame)
        for count in (1, BATCH) if self.runtime.on_cuda else (1,):
            self.draw(features, frame, [Question([Click((0.0, 0.0))])] * count)

    def embed(self, plane: np.ndarray, frame: Frame) -> tuple[Tensor, ...]:
        """The encoder's tensors for what `frame` shows of a uint8 plane (H, W) or (H, W, 3)."""
        crop = frame.cut(plane)
        with self._turn, self.runtime.inference(embedding=True):
            pixels = self._resizing.upload(crop if crop.ndim == 3 else crop[..., None])
            pixels = pixels.permute(2, 0, 1)[None].float()  # (1, 1 or 3, rows, cols)
            image = on_square(pixels, frame, self._pad)  # (1, 3, S, S)
            if not self.runtime.on_cuda:
                image = image.contiguous(memory_format=torch.channels_last)
                return self.encode(image.to(self.runtime.device))
            if self._encoder is None:
                laid = image.contiguous(memory_format=torch.channels_last)
                self._encoder = self._recording(self.network.encode, (laid.clone(),))
            self._encoder.inputs[0].copy_(image)
            return tuple(feature.clone() for feature in self._encoder.replay())

    def draw(
        self, features: tuple[Tensor, ...], frame: Frame, questions: Sequence[Question]
    ) -> list[Drawing]:
        """The answers to any number of questions about one picture, in order.

        On a CUDA device many are answered at once, and what follows is prepared and started before the
        host waits for what came before. Out of memory there, one is answered at a time.
        """
        most = BATCH if self.runtime.on_cuda else 1
        features = tuple(x.to(self.runtime.device, self.runtime.dtype) for x in features)
        started = 0
        coming: list[Callable[[], list[Drawing]]] = []  # one or two
        drawings: list[Drawing] = []
        while started < len(questions):
            part = questions[started : started + most]
            try:
                with self._turn, self.runtime.inference():
                    coming.append(self._started(features, frame, part))
            except torch.cuda.OutOfMemoryError:
                if most == 1:
                    raise
                self._clicks.pop(BATCH, None)
                torch.cuda.empty_cache()
                most = 1
                continue
            started += len(part)
            if len(coming) > 1:
                drawings += coming.pop(0)()
        return drawings + [drawing for arrive in coming for drawing in arrive()]

    def _started(
        self, features: tuple[Tensor, ...], frame: Frame, questions: Sequence[Question]
    ) -> Callable[[], list[Drawing]]:
        """The answers, for which the device has all it needs: whoever calls for them waits."""
        count, size = len(questions), self.network.size
        if self.runtime.on_cuda:
            step = self._recorded(1 if count == 1 else BATCH, features)
            maps, click = step.inputs[0], step.replay
        else:
            maps = torch.zeros((count, 3, size, size), device=self.runtime.device)
            click = partial(self.click, maps, *features)
        try:
            self.stamp(maps, frame, questions)
            logits, *quality = (output[:count] for output in click())
            logits = from_square(logits, frame, self.network.aligned)[:, 0]  # (B, rows, cols)
            # Rounded as it is made, and the mask is cut from what was rounded: they always agree.
            soft = torch.sigmoid(logits, out=logits.new_empty(logits.shape, dtype=self.runtime.dtype))
            download = self.runtime.downloading(soft > THRESHOLD, *quality)
        finally:
            if self.runtime.on_cuda:
                maps.zero_()  # for the next click, while this one's answer is on its way

        def arrive() -> list[Drawing]:
            masks, *judged = download()
            if not self.runtime.on_cuda:
                return _drawings(soft.cpu().numpy(), masks, judged)
            # Memory that a GPU writes to takes long to be had: many masks leave theirs to the next.
            return _drawings(soft, masks.copy() if count > 1 else masks, judged)

        return arrive

    def _clicked(self, maps: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, 1, s, s) float32 and, if the network makes one, the quality (B,)."""
        logits, quality = self.network.sketch(self.network.fuse(features, maps))
        return (logits.float(),) if quality is None else (logits.float(), quality.float())

    def _convert(self) -> None:
        """Hand the network's steps to OpenVINO; where it refuses them they stay with torch."""
        from napari_lowlat_seg.inference.openvino_backend import Refused, compiled_steps

        try:
            self.encode, self.click = compiled_steps(
                self.network, self._clicked, self.runtime.precision, lambda: self._look()
            )
        except Refused as problem:
            self.runtime = replace(self.runtime, openvino=False)
            warnings.warn(
                f"OpenVINO does not run this network ({problem}), so torch does, more slowly; uninstall "
                "openvino or install another release",
                stacklevel=4,
            )

    def _recorded(self, count: int, features: tuple[Tensor, ...]) -> Recording:
        if count not in self._clicks:
            size = self.network.size
            maps = torch.zeros((count, 3, size, size), device=self.runtime.device, dtype=self.runtime.dtype)
            inputs = (maps, *(feature.clone() for feature in features))
            self._clicks[count] = self._recording(self._clicked, inputs)
        step, loaded = self._clicks[count], self._loaded.get(count)
        if loaded is None or loaded() is not features[0]:
            for kept, feature in zip(step.inputs[1:], features, strict=True):
                kept.copy_(feature)
            self._loaded[count] = weakref.ref(features[0])
        return step

    def _recording(self, step: Step, inputs: tuple[Tensor, ...]) -> Recording:
        return Recording(torch.compile(step, dynamic=False) if self.runtime.compiled else step, inputs)

    def stamp(self, maps: Tensor, frame: Frame, questions: Sequence[Question]) -> None:
        """Write prompts and previous answers into maps (B, 3, S, S) that hold zeros."""
        radius, regions = self.network.radius, self.network.regions
        places, per_sample = [], maps.stride(0)
        for sample, asked in enumerate(questions):
            prompts = dotted(asked.prompts, self.network.dots, frame)
            if any(isinstance(prompt, Region) for prompt in prompts):
                dense = dense_maps(prompts, frame, radius=radius, regions=regions)
                maps[sample].copy_(self.runtime.upload(dense))
            else:
                strokes = stroke_pixels(prompts, frame, radius)
                places.append(strokes + sample * per_sample if sample else strokes)
        if places:
            flat = places[0] if len(places) == 1 else np.concatenate(places)
            maps.view(-1).index_fill_(0, self.runtime.upload(flat), 1.0)
        for sample, asked in enumerate(questions):
            if asked.previous is not None:
                maps[sample, 0] = self._prior(frame, asked.prompts, asked.previous)

    def _prior(self, frame: Frame, prompts: Sequence[Prompt], previous: np.ndarray | Tensor) -> Tensor:
        """Channel 0, (S, S): the previous probability with the regions newer than it painted over."""
        seen = frame.cut(previous)
        soft = seen if isinstance(seen, Tensor) else self.runtime.upload(seen)
        soft = soft.to(self.runtime.device)[None, None]
        soft = soft if self.runtime.on_cuda else soft.float()  # CUDA resizes half precision in float32
        prior = on_square(soft, frame, soft.new_zeros(1))[0, 0]
        for region in _newest_regions(prompts) if self.network.regions == "prior" else ():
            dense = dense_maps([replace(region, positive=True)], frame, radius=self.network.radius)[0]
            cover = self.runtime.upload(dense)
            prior = torch.maximum(prior, cover) if region.positive else torch.minimum(prior, 1 - cover)
        return prior


def _drawings(soft: np.ndarray | Tensor, masks: np.ndarray, judged: list[np.ndarray]) -> list[Drawing]:
    qualities = [float(q) for q in judged[0]] if judged else [None] * len(masks)
    return [Drawing(*one) for one in zip(soft, masks, qualities, strict=True)]


def _nothing_newer() -> None:
    """Nobody has asked for an interruption."""


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


def on_square(pixels: Tensor, frame: Frame, fill: Tensor) -> Tensor:
    """Crop pixels (1, C, rows, cols) on the square of a frame, padded with `fill` (F,): (1, F, S, S).

    The original stretches without antialiasing; a letterbox averages when it shrinks, so that thin membranes
    survive. Gray pictures are resized once and shown in all F channels.
    """
    rows, cols = frame.content
    smooth = frame.fit == "letterbox" and len(fill) == 3  # masks are smooth already and asked for often
    seen = F.interpolate(pixels, (rows, cols), mode="bilinear", antialias=smooth)
    if rows == cols == frame.size:
        return seen.expand(-1, len(fill), -1, -1)
    canvas = fill[:, None, None].repeat(1, 1, frame.size, frame.size)  # (1, F, S, S)
    canvas[..., :rows, :cols] = seen
    return canvas


def from_square(logits: Tensor, frame: Frame, aligned: bool) -> Tensor:
    """Logits (B, 1, s, s) over the square brought to the frame's crop, (B, 1, rows, cols)."""
    size, short = frame.size, logits.shape[-1]
    rows, cols = frame.content
    # A logit can stand for several pixels of the square: where these are not all shown, they are made first.
    between = short != size and (aligned or not rows == cols == size)
    if between:
        logits = F.interpolate(logits, (size, size), mode="bilinear", align_corners=aligned)
    return F.interpolate(logits[..., :rows, :cols], frame.crop[2:], mode="bilinear")
