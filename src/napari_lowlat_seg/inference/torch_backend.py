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
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import THRESHOLD
from napari_lowlat_seg.core.prompts import Click, Prompt, Region, Stroke, dense_maps, dotted, stroke_pixels
from napari_lowlat_seg.inference.prediction import Prediction
from napari_lowlat_seg.inference.processors import streams
from napari_lowlat_seg.inference.recorded_step import RecordedStep, Step
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.models.network import Network
from napari_lowlat_seg.models.tinyvit import WindowAttention

if TYPE_CHECKING:
    from napari_lowlat_seg.inference.openvino_backend import CompiledStep, StepUnderWay

BATCH = 8
"""Objects that a recorded step predicts at once."""

STEPS = ("embed", "click", "clicks", "look", "looks")
"""Steps that are recorded: an embedding, a click, clicks for `BATCH` objects, embedding and click of a closer
look, and of `BATCH` looks along an outline."""

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
        if runtime.on_cuda:  # a tenth of an embedding's kernels would gather what never changes
            for module in self.network.modules():
                if isinstance(module, WindowAttention):
                    module.keep_bias()
        self._steps: dict[str, RecordedStep] = {}  # by the names of `STEPS`
        self._loaded: dict[str, weakref.ref[Tensor]] = {}  # whose features are in a recorded click's inputs
        self._lacks_looks = False
        self._lock = threading.Lock()  # recorded steps have one set of inputs
        # Apple's device cannot resize with antialiasing: only CUDA resizes images itself.
        self._resizing = runtime if runtime.on_cuda else Runtime()
        self._pad = self._resizing.tensor(np.array(network.pad))
        self._check: Callable[[], object] = lambda: None
        self._hooks: list[RemovableHandle] = []  # of `interrupt_by`, on the network's layers
        self.encode: Step = self.network.encode  # OpenVINO may replace both steps
        self.click: Step = self._clicked
        if runtime.openvino:
            self._convert()

    def interrupt_by(self, check: Callable[[], object]) -> None:
        """Calls `check` between the network's layers; an exception that it raises stops the network there."""
        self._forget_check()
        self._check = check
        for module in self.network.modules():
            self._hooks.append(module.register_forward_pre_hook(lambda *_: check()))

    def _forget_check(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def moved_to(self, runtime: Runtime) -> TorchBackend:
        """The network elsewhere, where the same check interrupts it; this device gives back its memory first.

        Nothing is allocated here, where there may be no memory left. This backend cannot be used any more.
        """
        self._steps.clear()
        self._loaded.clear()
        self._forget_check()  # a network that is converted on its way must not be interrupted
        self.network.to(runtime.device)  # in its own precision: float32 needs twice the room
        torch.cuda.empty_cache()
        there = TorchBackend(self.network, runtime)
        there.interrupt_by(self._check)
        return there

    def check(self) -> None:
        """Raise what the check of `interrupt_by` raises; for steps that are none of the network's."""
        self._check()

    def warm_up(self, looks: bool = True) -> None:
        """Embed and predict once: the first image then waits for no recording and no choice of kernels.

        `looks` says whether there will be closer looks.
        """
        if self.runtime.on_cuda:
            with self._lock, self.runtime.inference(embedding=True):
                for name in STEPS[: -1 if looks else 3]:
                    self._step(name)
                if looks:
                    self._looks_step()
            return
        image = np.zeros((self.network.size, self.network.size), np.uint8)
        frame = Frame.whole(image.shape, self.network.size, self.network.fit)
        self.predict(self.embed(image, frame), frame, [([Click((0.0, 0.0))], None)])

    def embed(self, plane: np.ndarray, frame: Frame) -> tuple[Tensor, ...]:
        """The encoder's tensors for the frame's crop of a uint8 plane (H, W) or (H, W, 3)."""
        with self._lock, self.runtime.inference(embedding=True):
            image = self._squares(plane, [frame])
            if not self.runtime.on_cuda:
                image = image.contiguous(memory_format=torch.channels_last)
                return self.encode(image.to(self.runtime.device))
            step = self._step("embed")
            step.inputs[0].copy_(image)
            return tuple(feature.clone() for feature in step.replay())

    def _squares(self, plane: np.ndarray, frames: Sequence[Frame]) -> Tensor:
        """Crops of one shape as the encoder takes them, (B, 3, S, S)."""
        each = [frame.cut(plane) for frame in frames]
        crops = each[0][None] if len(each) == 1 else np.stack(each)
        pixels = self._resizing.upload(crops if crops.ndim == 4 else crops[..., None])
        return on_square(pixels.permute(0, 3, 1, 2).float(), frames[0], self._pad)

    def look(
        self,
        plane: np.ndarray,
        frame: Frame,
        question: Object,
        around: Prediction | None = None,
        share: float = 0.0,
    ) -> tuple[tuple[Tensor, ...], Callable[[], Prediction]]:
        """Embed the frame's crop of a plane and start predicting from it.

        Returns the encoder's tensors and what waits for the prediction: over the crop, or with `around` on
        the whole plane as `Prediction.on_plane` has it. On a CUDA device both are one recorded step, and the
        host waits once.
        """
        if self.runtime.on_cuda:
            with self._lock, self.runtime.inference():
                return self._looking(self._step("look"), plane, frame, question, around, share)
        features = self.embed(plane, frame)
        [found] = self.predict(features, frame, [question])
        return features, lambda: found.on_plane(around, share)

    def _looking(
        self,
        step: RecordedStep,
        plane: np.ndarray,
        frame: Frame,
        question: Object,
        around: Prediction | None,
        share: float,
    ) -> tuple[tuple[Tensor, ...], Callable[[], Prediction]]:
        image, maps = step.inputs
        image.copy_(self._squares(plane, [frame]))
        try:
            self.stamp(maps, frame, [question])
            made, (logits, *quality) = step.replay()
            soft = self._drawn(logits, frame)[0]  # (rows, cols)
            if around is not None:
                whole = torch.as_tensor(around.soft).to(soft, copy=True)
                crop = frame.cut(whole)
                crop.copy_(soft + share * (crop - soft) if share else soft)
                soft, seen = whole, crop
            else:
                seen = soft
            download = self.runtime.downloading(seen > THRESHOLD, *quality)
            features = tuple(feature.clone() for feature in made)  # behind the mask: nobody waits for them
        finally:
            maps.zero_()
        mask = None if around is None else around.mask.copy()

        def wait() -> Prediction:
            shown, *quality = download()
            seen_on = shown if mask is None else frame.place(shown, mask)
            return Prediction(soft, float(quality[0][0]) if quality else None, frame, None, seen_on)

        return features, wait

    def looks(
        self,
        plane: np.ndarray,
        frames: Sequence[Frame],
        strokes: Sequence[Sequence[Stroke]],
        before: np.ndarray | Tensor,
    ) -> list[Prediction] | None:
        """Predictions over some crops of one shape, each for its own strokes, given one mask (H, W) before.

        On a CUDA device one recorded step embeds and predicts up to `BATCH` of them; else, or if there was no
        memory to record it, None.
        """
        if not self.runtime.on_cuda or len({frame.crop[2:] for frame in frames}) > 1:
            return None
        with self._lock, self.runtime.inference():
            step = self._looks_step()
            if step is None:
                return None
            starts = range(0, len(frames), BATCH)
            parts = [(frames[at : at + BATCH], strokes[at : at + BATCH]) for at in starts]
            waits = [self._looking_along(step, plane, *part, before) for part in parts]
        return [found for wait in waits for found in wait()]

    def _looks_step(self) -> RecordedStep | None:
        """The step "looks", by far the largest; None where memory did not suffice for it, tried once only."""
        if self._lacks_looks:
            return None
        with suppress(torch.cuda.OutOfMemoryError):
            return self._step("looks")
        self._lacks_looks = True
        return None

    def _looking_along(
        self,
        step: RecordedStep,
        plane: np.ndarray,
        frames: Sequence[Frame],
        strokes: Sequence[Sequence[Stroke]],
        before: np.ndarray | Tensor,
    ) -> Callable[[], list[Prediction]]:
        (images, maps), count = step.inputs, len(frames)
        images[:count].copy_(self._squares(plane, frames))
        soft = torch.as_tensor(before).to(self.runtime.device, self.runtime.dtype)
        seen = torch.stack([frame.cut(soft) for frame in frames])[:, None]
        try:
            maps[:count, :1] = on_square(seen, frames[0], seen.new_zeros(1))
            pixels = [
                stroke_pixels(dotted(own, self.network.dots, frame), frame, self.network.radius)
                + at * maps.stride(0)
                for at, (frame, own) in enumerate(zip(frames, strokes, strict=True))
            ]
            maps.view(-1).index_fill_(0, self.runtime.upload(np.concatenate(pixels)), 1.0)
            logits, *quality = (output[:count] for output in step.replay())
            drawn = self._drawn(logits, frames[0])
            download = self.runtime.downloading(drawn > THRESHOLD, *quality)
        finally:
            maps.zero_()

        def wait() -> list[Prediction]:
            masks, *quality = download()
            qualities = [float(one) for one in quality[0]] if quality else [None] * count
            each = zip(drawn, qualities, frames, masks, strict=True)
            return [Prediction(one, iou, frame, None, mask) for one, iou, frame, mask in each]

        return wait

    @cached_property
    def ahead(self) -> CompiledStep | None:
        """The encoder for embeddings that are started now and asked for later, two at a time.

        None with torch, on other devices, and where one thread is all there is: it would gain nothing there.
        """
        divided = getattr(self.encode, "divided", None)
        alone = torch.get_num_threads() == streams() == 1
        return None if divided is None or alone else divided()

    def start(self, plane: np.ndarray, frame: Frame) -> StepUnderWay:
        """Start `embed` with the encoder `ahead`, if there is one; the result is the same to the byte."""
        assert self.ahead is not None
        with self.runtime.inference(embedding=True):
            return self.ahead.start(self._squares(plane, [frame]))

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
                for kept in (self._steps, self._loaded):  # a new recording's inputs hold no features
                    kept.pop("clicks", None)
                torch.cuda.empty_cache()
                most = 1
                continue
            started += len(part)
            if len(pending) > 1:
                predictions += pending.pop(0)()
        return predictions + [prediction for wait in pending for prediction in wait()]

    def _start(
        self, features: tuple[Tensor, ...], frame: Frame, objects: Sequence[Object]
    ) -> Callable[[], list[Prediction]]:
        """Start predicting; calling the result waits for the device and returns the predictions."""
        count, size = len(objects), self.network.size
        step = self._loaded_click("click" if count == 1 else "clicks", features)
        if step is not None:
            maps, click = step.inputs[0], step.replay
        else:
            shape = (count, 3, size, size)
            maps = torch.zeros(shape, device=self.runtime.device, dtype=self.runtime.dtype)
            click = partial(self.click, maps, *features)
        try:
            self.stamp(maps, frame, objects)
            logits, *quality = (output[:count] for output in click())
            soft = self._drawn(logits, frame)
            download = self.runtime.downloading(soft > THRESHOLD, *quality)
        finally:
            if step is not None:
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

    def _drawn(self, logits: Tensor, frame: Frame) -> Tensor:
        """The probability over the frame's crop, (B, rows, cols).

        Rounded as it is made, and the rounded values are thresholded: they and the mask always agree.
        """
        logits = from_square(logits, frame, self.network.aligned)[:, 0]
        return torch.sigmoid(logits, out=logits.new_empty(logits.shape, dtype=self.runtime.dtype))

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

    def _loaded_click(self, name: str, features: tuple[Tensor, ...]) -> RecordedStep | None:
        """A recorded click with these features in its inputs; None on other devices than CUDA."""
        if not self.runtime.on_cuda:
            return None
        step, loaded = self._step(name), self._loaded.get(name)
        if loaded is None or loaded() is not features[0]:
            for kept, feature in zip(step.inputs[1:], features, strict=True):
                kept.copy_(feature)
            self._loaded[name] = weakref.ref(features[0])
        return step

    def _step(self, name: str) -> RecordedStep:
        if name not in self._steps:
            self._steps[name] = self._record(name)
        return self._steps[name]

    def _record(self, name: str) -> RecordedStep:
        size, device = self.network.size, self.runtime.device
        count = BATCH if name in ("clicks", "looks") else 1
        images = torch.zeros((count if name == "looks" else 1, 3, size, size), device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        if name == "embed":
            return self._recording(self.network.encode, (images,))
        maps = torch.zeros((count, 3, size, size), device=device, dtype=self.runtime.dtype)
        if name == "look":
            return self._recording(self._looked, (images, maps))
        if name == "looks":
            return self._recording(self._looked_along, (images, maps))
        return self._recording(self._clicked, (maps, *self.network.encode(images)))

    def _looked(self, image: Tensor, maps: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        features = self.network.encode(image)
        return features, self._clicked(maps, *features)

    def _looked_along(self, images: Tensor, maps: Tensor) -> tuple[Tensor, ...]:
        return self._clicked(maps, *self.network.encode(images))

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
        if isinstance(previous, Tensor):  # moved before it is cut: that needs no memory where it was
            soft = frame.cut(previous.to(self.runtime.device))
        else:
            soft = self.runtime.upload(frame.cut(previous))
        soft = soft[None, None]
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
    """Crop pixels (B, C, rows, cols) on the square of a frame, padded with `fill` (F,): (B, F, S, S).

    The original stretches without antialiasing; a letterbox averages when it shrinks, so that thin membranes
    survive. Gray images are resized once and repeated in all F channels.
    """
    rows, cols = frame.content
    smooth = frame.fit == "letterbox" and len(fill) == 3  # masks are smooth already and asked for often
    seen = F.interpolate(pixels, (rows, cols), mode="bilinear", antialias=smooth)
    if rows == cols == frame.size:
        return seen.expand(-1, len(fill), -1, -1)
    canvas = fill[:, None, None].repeat(len(pixels), 1, frame.size, frame.size)  # (B, F, S, S)
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
