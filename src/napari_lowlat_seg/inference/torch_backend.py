"""A network on a device: images and prompts in, predictions out, in as little time as the device allows.

On a CUDA device encoder and click are CUDA graphs of fixed shapes; prompts are written into the maps, the
previous mask is resized and the new one thresholded on the device, and a click waits for it once. Elsewhere
the same steps run one by one, the network's own by OpenVINO where it is installed. Why:
docs/decisions/hot-path.md.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import THRESHOLD
from napari_lowlat_seg.core.prompts import Click, Prompt, Region, dense_maps, dotted, stroke_pixels
from napari_lowlat_seg.inference.prediction import Prediction
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.models.network import Network

if TYPE_CHECKING:
    from napari_lowlat_seg.inference.openvino_backend import CompiledStep, StepUnderWay

Step = Callable[..., tuple[Tensor, ...]]


class RecordedStep:
    """A step recorded as a CUDA graph over fixed input tensors.

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
        side_stream = torch.cuda.Stream(inputs[0].device)
        side_stream.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.cuda.stream(side_stream):
            for _ in range(2):  # libraries choose their kernels and take their workspaces outside the graph
                step(*inputs)
        torch.cuda.current_stream(inputs[0].device).wait_stream(side_stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.outputs = step(*inputs)

    def replay(self) -> tuple[Tensor, ...]:
        """The outputs for what `inputs` hold now."""
        self._graph.replay()
        return self.outputs


BATCH = 8
"""Objects that a recorded step predicts at once."""

Object = tuple[Sequence[Prompt], np.ndarray | Tensor | None]
"""All prompts of one object, and its probability (H, W) before the newest of them, if there is one."""


class TorchBackend:
    """A network on a device; it keeps recorded steps and no image.

    Parameters
    ----------
    network
        Any network of the family; it is moved to the device.
    runtime
        Device and precision.
    """

    def __init__(self, network: Network, runtime: Runtime) -> None:
        self.network = runtime.prepare(network)
        self.runtime = runtime
        self._encoder: RecordedStep | None = None
        self._clicks: dict[int, RecordedStep] = {}  # by number of objects
        self._loaded: dict[int, weakref.ref[Tensor]] = {}  # whose features are in a recorded click's inputs
        self._lock = threading.Lock()  # recorded steps have one set of inputs
        # Apple's device cannot resize with antialiasing: only CUDA resizes images itself.
        self._resizing = runtime if runtime.on_cuda else Runtime()
        self._pad = self._resizing.tensor(np.array(network.pad))
        self._check: Callable[[], object] = lambda: None
        self.encode: Step = self.network.encode  # OpenVINO may replace both steps
        self.click: Step = self._clicked
        if runtime.openvino:
            self._convert()

    def interrupt_by(self, check: Callable[[], object]) -> None:
        """Calls `check` between the network's layers; an exception that it raises stops the network there."""
        self._check = check
        for module in self.network.modules():
            module.register_forward_pre_hook(lambda *_: check())

    def check(self) -> None:
        """Raise what the check of `interrupt_by` raises; for steps that are none of the network's."""
        self._check()

    def warm_up(self) -> None:
        """Embed and predict once: the first image then waits for no recording and no choice of kernels."""
        image = np.zeros((self.network.size, self.network.size), np.uint8)
        frame = Frame.whole(image.shape, self.network.size, self.network.fit)
        features = self.embed(image, frame)
        for count in (1, BATCH) if self.runtime.on_cuda else (1,):
            self.predict(features, frame, [([Click((0.0, 0.0))], None)] * count)

    def embed(self, plane: np.ndarray, frame: Frame) -> tuple[Tensor, ...]:
        """The encoder's tensors for the frame's crop of a uint8 plane (H, W) or (H, W, 3)."""
        with self._lock, self.runtime.inference(embedding=True):
            image = self._image(plane, frame)
            if not self.runtime.on_cuda:
                image = image.contiguous(memory_format=torch.channels_last)
                return self.encode(image.to(self.runtime.device))
            if self._encoder is None:
                laid = image.contiguous(memory_format=torch.channels_last)
                self._encoder = self._recording(self.network.encode, (laid.clone(),))
            self._encoder.inputs[0].copy_(image)
            return tuple(feature.clone() for feature in self._encoder.replay())

    def _image(self, plane: np.ndarray, frame: Frame) -> Tensor:
        """What the encoder sees of a uint8 plane through a frame, (1, 3, S, S)."""
        crop = frame.cut(plane)
        pixels = self._resizing.upload(crop if crop.ndim == 3 else crop[..., None])
        pixels = pixels.permute(2, 0, 1)[None].float()  # (1, 1 or 3, rows, cols)
        return on_square(pixels, frame, self._pad)

    @cached_property
    def ahead(self) -> CompiledStep | None:
        """The encoder for embeddings that are started now and asked for later, two at a time.

        None with one thread, with torch, and on other devices: it would gain nothing there.
        """
        divided = getattr(self.encode, "divided", None)
        return None if divided is None or torch.get_num_threads() == 1 else divided()

    def start(self, plane: np.ndarray, frame: Frame) -> StepUnderWay:
        """Start `embed` with the encoder `ahead`, if there is one; the result is the same to the byte."""
        assert self.ahead is not None
        with self.runtime.inference(embedding=True):
            return self.ahead.start(self._image(plane, frame))

    def predict(
        self, features: tuple[Tensor, ...], frame: Frame, objects: Sequence[Object]
    ) -> list[Prediction]:
        """The predictions, over the frame's crop, for any number of objects of one image, in order.

        On a CUDA device several objects are predicted at once, and the next ones are started before the host
        waits for those before. If their memory does not suffice there, one object is predicted at a time.
        """
        most = BATCH if self.runtime.on_cuda else 1
        features = tuple(x.to(self.runtime.device, self.runtime.dtype) for x in features)
        started = 0
        pending: list[Callable[[], list[Prediction]]] = []  # one or two
        predictions: list[Prediction] = []
        while started < len(objects):
            part = objects[started : started + most]
            try:
                with self._lock, self.runtime.inference():
                    pending.append(self._start(features, frame, part))
            except torch.cuda.OutOfMemoryError:
                if most == 1:
                    raise
                self._clicks.pop(BATCH, None)
                torch.cuda.empty_cache()
                most = 1
                continue
            started += len(part)
            if len(pending) > 1:
                predictions += pending.pop(0)()
        return predictions + [prediction for wait in pending for prediction in wait()]

    def candidates(
        self, features: tuple[Tensor, ...], frame: Frame, prompts: Sequence[Prompt]
    ) -> list[Prediction]:
        """Further predictions over the frame's crop for the prompts of a new object, in the head's order.

        They are asked for rarely: the network's own steps, neither recorded nor converted.
        """
        features = tuple(x.to(self.runtime.device, self.runtime.dtype) for x in features)
        size = self.network.size
        with self._lock, self.runtime.inference():
            maps = torch.zeros((1, 3, size, size), device=self.runtime.device, dtype=self.runtime.dtype)
            self.stamp(maps, frame, [(prompts, None)])
            logits, quality = self.network.decode_candidates(self.network.fuse(features, maps))
            soft = torch.sigmoid(
                from_square(logits.float(), frame, self.network.aligned)[0]
            )  # (K, rows, cols)
            soft = soft.to(self.runtime.dtype)
        host = soft if self.runtime.on_cuda else soft.cpu().numpy()
        return [Prediction(one, float(iou), frame) for one, iou in zip(host, quality[0].float(), strict=True)]

    def _start(
        self, features: tuple[Tensor, ...], frame: Frame, objects: Sequence[Object]
    ) -> Callable[[], list[Prediction]]:
        """Start predicting; calling the result waits for the device and returns the predictions."""
        count, size = len(objects), self.network.size
        if self.runtime.on_cuda:
            step = self._recorded(1 if count == 1 else BATCH, features)
            maps, click = step.inputs[0], step.replay
        else:
            maps = torch.zeros((count, 3, size, size), device=self.runtime.device)
            click = partial(self.click, maps, *features)
        try:
            self.stamp(maps, frame, objects)
            logits, *quality = (output[:count] for output in click())
            logits = from_square(logits, frame, self.network.aligned)[:, 0]  # (B, rows, cols)
            # Rounded as it is made, and the rounded values are thresholded: they and the mask always agree.
            soft = torch.sigmoid(logits, out=logits.new_empty(logits.shape, dtype=self.runtime.dtype))
            download = self.runtime.downloading(soft > THRESHOLD, *quality)
        finally:
            if self.runtime.on_cuda:
                maps.zero_()  # for the next click, while this one's mask is being copied

        def wait() -> list[Prediction]:
            masks, *quality = download()
            qualities = [float(q) for q in quality[0]] if quality else [None] * count
            if self.runtime.on_cuda:
                # Memory that a GPU writes to takes long to allocate: several masks leave theirs to the next.
                masks = masks.copy() if count > 1 else masks
            each = zip(soft if self.runtime.on_cuda else soft.cpu().numpy(), qualities, masks, strict=True)
            return [Prediction(one, quality, frame, None, mask) for one, quality, mask in each]

        return wait

    def _clicked(self, maps: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, 1, s, s) float32 and, if the network makes one, the quality (B,)."""
        logits, quality = self.network.decode_low_res(self.network.fuse(features, maps))
        return (logits.float(),) if quality is None else (logits.float(), quality.float())

    def _convert(self) -> None:
        """Hand both steps to OpenVINO, if it can convert them."""
        from napari_lowlat_seg.inference.openvino_backend import ConversionError, compiled_steps

        try:
            self.encode, self.click = compiled_steps(
                self.network, self._clicked, self.runtime.precision, lambda: self._check()
            )
        except ConversionError as problem:
            self.runtime = replace(self.runtime, openvino=False)
            warnings.warn(
                f"OpenVINO does not run this network ({problem}), so torch does, more slowly; uninstall "
                "openvino or install another release",
                stacklevel=4,
            )

    def _recorded(self, count: int, features: tuple[Tensor, ...]) -> RecordedStep:
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

    def _recording(self, step: Step, inputs: tuple[Tensor, ...]) -> RecordedStep:
        return RecordedStep(torch.compile(step, dynamic=False) if self.runtime.compiled else step, inputs)

    def stamp(self, maps: Tensor, frame: Frame, objects: Sequence[Object]) -> None:
        """Write prompts and previous masks into maps (B, 3, S, S) that hold zeros; see `dense_maps`."""
        radius, regions = self.network.radius, self.network.regions
        places, per_sample = [], maps.stride(0)
        for sample, (prompts, _) in enumerate(objects):
            prompts = dotted(prompts, self.network.dots, frame)
            if any(isinstance(prompt, Region) for prompt in prompts):
                dense = dense_maps(prompts, frame, radius=radius, regions=regions)
                maps[sample].copy_(self.runtime.upload(dense))
            else:
                strokes = stroke_pixels(prompts, frame, radius)
                places.append(strokes + sample * per_sample if sample else strokes)
        if places:
            flat = places[0] if len(places) == 1 else np.concatenate(places)
            maps.view(-1).index_fill_(0, self.runtime.upload(flat), 1.0)
        for sample, (prompts, previous) in enumerate(objects):
            if previous is not None:
                maps[sample, 0] = self._prior(frame, prompts, previous)

    def _prior(self, frame: Frame, prompts: Sequence[Prompt], previous: np.ndarray | Tensor) -> Tensor:
        """Channel 0, (S, S): the previous probability, with regions newer than it drawn over it."""
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


def _newest_regions(prompts: Sequence[Prompt]) -> list[Region]:
    """The regions that no click or scribble follows, oldest first.

    Every other region is older than the previous prediction, which takes account of it.
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
    survive. Gray images are resized once and repeated in all F channels.
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
    """Logits (B, 1, s, s) over the square, resized to the frame's crop: (B, 1, rows, cols).

    `aligned` resizes to the square with corners aligned, as the original does.
    """
    size, short = frame.size, logits.shape[-1]
    rows, cols = frame.content
    # A logit can stand for several pixels of the square. Where some of these are padding, the logits are
    # resized to the square first, and the padding is cut off.
    between = short != size and (aligned or not rows == cols == size)
    if between:
        logits = F.interpolate(logits, (size, size), mode="bilinear", align_corners=aligned)
    return F.interpolate(logits[..., :rows, :cols], frame.crop[2:], mode="bilinear")
