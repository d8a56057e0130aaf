"""Images and prompts in, masks out: numpy on both sides, nothing kept between calls.

    predictor = load_predictor("default")
    embedding = predictor.embed(image)                                    # slow, once per image
    prediction = predictor.predict(embedding, [Click((120, 88))])         # fast, once per prompt
    prediction = predictor.predict(embedding, [Click((120, 88)), Click((10, 12), positive=False)], prediction)

Everything about an image is in its `Embedding`, so one predictor serves any number of images in any order.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np
import torch

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Prompt, Stroke
from napari_lowlat_seg.core.requests import never
from napari_lowlat_seg.core.volume import Plane, PlaneReader, to_uint8
from napari_lowlat_seg.inference.closer_look import (
    closer_frame,
    has_room,
    object_box,
    shows,
    whole_plane_share,
)
from napari_lowlat_seg.inference.edge_looks import (
    Mixture,
    contradicts,
    middle_of_newest,
    new_at_prompt,
    strokes_inside,
    thinned,
    uncertain_crops,
    worthwhile,
)
from napari_lowlat_seg.inference.prediction import Embedding, Prediction
from napari_lowlat_seg.inference.runtime import Precision, Runtime
from napari_lowlat_seg.inference.torch_backend import Object, TorchBackend
from napari_lowlat_seg.models.checkpoints import load_model
from napari_lowlat_seg.models.network import Network

if TYPE_CHECKING:
    from napari_lowlat_seg.inference.memory.steps import MemorySteps
    from napari_lowlat_seg.models.plane_memory import PlaneMemory
    from napari_lowlat_seg.propagation.sweep import ProbabilityMask, PropagatedMask

CloserLook = Literal["auto", "off"]

T = TypeVar("T")


class Predictor:
    """A network on a device, which embeds images and predicts masks from prompts.

    Parameters
    ----------
    network
        Any network of the family.
    runtime
        Device and precision; the network is moved there.
    closer_look
        "auto" lets the predictor embed a magnified crop where the object is small, "off" never does.
    name
        What tables and messages call it; its fingerprint if empty.
    memory
        Loads the network's memory of other planes when an object is first propagated; None without one.

    Raises
    ------
    ValueError
        For another `closer_look`.
    """

    def __init__(
        self,
        network: Network,
        runtime: Runtime,
        closer_look: CloserLook = "auto",
        *,
        name: str = "",
        memory: Callable[[Predictor], PlaneMemory | MemorySteps] | None = None,
    ) -> None:
        if closer_look not in get_args(CloserLook):
            raise ValueError(f"closer_look is 'auto' or 'off'; got {closer_look!r}")
        self.model = _fingerprint(network)
        self.backend = TorchBackend(network, runtime)
        self.closer_look = closer_look
        self.name = name or self.model
        self._load_memory = memory
        self._memory: PlaneMemory | MemorySteps | None = None

    @property
    def network(self) -> Network:
        """The network, where it computes."""
        return self.backend.network

    @property
    def runtime(self) -> Runtime:
        """Device and precision."""
        return self.backend.runtime

    @property
    def size(self) -> int:
        """Side of the network's square input in pixels."""
        return self.network.size

    def warm_up(self) -> None:
        """Embed and predict once, so that the first image does not wait; done at load on a GPU."""
        self.backend.warm_up(self.closer_look != "off" and self.network.fit == "letterbox")

    def interrupt_by(self, check: Callable[[], object]) -> None:
        """Calls `check` between the network's layers; an exception that it raises stops the network there."""
        self.backend.interrupt_by(check)

    def embed(
        self,
        image: np.ndarray,
        window: tuple[float, float] | None = None,
        spacing: tuple[float, float] = (1.0, 1.0),
    ) -> Embedding:
        """The embedding of an image, which is not changed.

        Parameters
        ----------
        image
            (H, W) gray or (H, W, 3) RGB, of any real dtype and any size from 1 x 1.
        window
            (low, high) intensities shown as black and white; None chooses the image's own percentiles (8-bit
            images are taken as they are). See `intensity_window`.
        spacing
            Size of a pixel along rows and columns, in any unit; only the ratio counts.

        Raises
        ------
        ValueError
            For an empty image, a wrong shape, complex numbers, no finite pixel, or a bad window or spacing.
        """
        return self._embed_frame(*self._seen(image, window, spacing))

    def begin(
        self,
        image: np.ndarray,
        window: tuple[float, float] | None = None,
        spacing: tuple[float, float] = (1.0, 1.0),
    ) -> Callable[[], Embedding]:
        """Begin to `embed` an image; calling the result, once, waits for the embedding, the same to the byte.

        For many images, two or three of them begun at a time: with OpenVINO and more than one thread, two are
        then embedded at once and do not wait for each other, which is faster on a busy machine. Elsewhere the
        work is done when the result is called. Parameters are those of `embed`, whose errors are raised here.
        """
        plane, frame = self._seen(image, window, spacing)
        if self.backend.ahead is None:
            return lambda: self._embed_frame(plane, frame)
        begun = self.backend.start(plane, frame)
        return lambda: Embedding(begun.result(), frame, plane, self.model)

    def _seen(
        self, image: np.ndarray, window: tuple[float, float] | None, spacing: tuple[float, float]
    ) -> tuple[np.ndarray, Frame]:
        """The image in 8 bits, which nobody else writes to, and the frame of all of it."""
        pixels = np.asarray(image)
        if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
            raise ValueError(f"expected an image of shape (H, W) or (H, W, 3), got {pixels.shape}")
        plane = to_uint8(pixels, window)
        if np.may_share_memory(plane, pixels):  # 8-bit pixels come back as they are,
            plane = plane.copy()  # and a camera writes over its buffer
        return plane, Frame.whole(plane.shape[:2], self.size, self.network.fit, spacing)

    def predict(
        self,
        embedding: Embedding,
        prompts: Sequence[Prompt],
        previous: Prediction | SoftMask | None = None,
    ) -> Prediction:
        """The mask of the object that all `prompts` together describe; no argument is changed.

        Parameters
        ----------
        embedding
            From `embed` of this predictor or of one with the same weights.
        prompts
            All prompts of the object so far, oldest first; coordinates are (row, col) in pixels of the image.
        previous
            The object's prediction before the newest prompt, if there was one, or its soft mask. It stands
            for the boxes, polygons and masks that it takes account of; regions at the end of `prompts` are
            newer and drawn over it.

        Raises
        ------
        ValueError
            For an embedding of other weights, prompts outside the image, a `previous` of another shape, or
            neither prompts nor `previous`.
        """
        *_, best = self.answers(embedding, prompts, previous)
        return best

    def answers(
        self,
        embedding: Embedding,
        prompts: Sequence[Prompt],
        previous: Prediction | SoftMask | None = None,
        idle: bool = False,
        first: Prediction | None = None,
    ) -> Iterator[Prediction]:
        """One, two or three predictions, the quicker first, for callers that show each as it comes.

        The first comes from the whole plane. Where the object covers little of it, the second comes from a
        crop around the object, which is embedded once and kept in `Prediction.look`; of a new object that has
        clicks and scribbles only, it is a mean of both views. As long as prompts and mask stay inside that
        crop, later predictions come from there alone. An object that outgrows it is predicted again, from a
        larger crop or the whole plane.

        Of an object too large for a crop, each later prediction is refined along its outline: crops there
        are embedded, and kept in `Prediction.edges`. On a processor one new crop at most is embedded a
        prompt, where the prompt lies in none yet; with `idle`, a third prediction has all of them.

        `first` is what came first for the same parameters before, to spare predicting it.
        The other parameters and the errors are those of `predict`.
        """
        if isinstance(previous, SoftMask):
            previous = Prediction.of(previous, embedding.frame)
        self._check(embedding, prompts, previous)
        look = self._usable_look(embedding, prompts, previous)
        if first is None:
            first = self._predict(embedding if look is None else look, prompts, previous, previous, look)
        yield first
        if self._looks_closer(prompts, previous is None):
            yield from self._closer(embedding, prompts, first, previous, look, idle)

    def _closer(
        self,
        embedding: Embedding,
        prompts: Sequence[Prompt],
        first: Prediction,
        previous: Prediction | None,
        look: Embedding | None,
        idle: bool,
    ) -> Iterator[Prediction]:
        """What follows the first prediction: from a crop, from the whole plane, or along the outline."""
        new = previous is None
        shown = None if look is None else look.frame  # the object may have outgrown it
        box = object_box(prompts, first.mask)
        closer = closer_frame(embedding.frame, box, shown)
        if closer is not None and closer != shown:
            question = (prompts, None if new else first.soft)
            look, found = self._look(
                embedding.image, closer, question, first, whole_plane_share(prompts, new)
            )
            yield replace(found(), look=look)
        elif closer is None and shown is not None and box is not None:
            # Too large for any crop by now: what the old one cuts off needs the whole plane.
            yield self._predict(embedding, prompts, first, first)
        elif closer is None and box is not None and worthwhile(first, prompts):
            edges = () if previous is None else previous.edges
            yield from self._along_outline(embedding, prompts, first, edges, idle)

    def candidates(
        self, embedding: Embedding, prompts: Sequence[Prompt], first: Prediction | None = None
    ) -> list[Prediction]:
        """Masks that the prompts of an object can mean: what `predict` returns, then other levels of it.

        A click can mean a part, the object or all that it belongs to. The others are the first one with the
        logit of its probability raised or lowered: larger, much larger, smaller, much smaller. A level that
        is empty or hardly differs from the one before is left out; see `SoftMask.levels`. Give the chosen
        one as `previous` with the next prompt.

        Parameters
        ----------
        embedding, prompts
            As for `predict`, of an object that has no prediction yet.
        first
            What `predict` has returned already, to spare predicting it.

        Raises ValueError as `predict`.

        Examples
        --------
        >>> first, *others = predictor.candidates(embedding, [Click((120, 88))])  # doctest: +SKIP
        """
        self._check(embedding, prompts, first)
        if first is None:
            first = self.predict(embedding, prompts)
        mask = first.soft_mask
        _, *others = (mask.at_level(level) for level in mask.levels())
        return [first, *(Prediction.of(one, first.frame, first.look, first.edges) for one in others)]

    def _looks_closer(self, prompts: Sequence[Prompt], new: bool) -> bool:
        """Whether there is a closer look: of a new object a crop may show the network no prompt at all."""
        on = self.closer_look != "off" and self.network.fit == "letterbox"
        return on and (not new or any(prompt.positive for prompt in prompts))

    def _along_outline(
        self,
        embedding: Embedding,
        prompts: Sequence[Prompt],
        first: Prediction,
        edges: Sequence[Embedding],
        idle: bool,
    ) -> Iterator[Prediction]:
        """The first prediction refined by crops along its outline; nothing if none is worthwhile.

        `edges` are the crops of the prediction before. On a processor crops that are not embedded yet are
        left out, but for one at the prompt; with `idle` a second refinement follows, with all of them.
        """
        frame = embedding.frame
        known = {look.frame: look for look in filter(partial(self._of_image, embedding), edges)}
        near = middle_of_newest(prompts, frame)
        crops = uncertain_crops(frame, *thinned(first.soft), near)
        fresh = [crop for crop in crops if crop not in known]
        now = fresh if self.runtime.on_cuda else new_at_prompt(fresh, known, near)
        later = [crop for crop in fresh if crop not in now]
        mixture = Mixture(first)
        for chosen in ([crop for crop in crops if crop not in later], later if idle else []):
            mixed = mixture.sources
            seen = [(crop, strokes_inside(crop, prompts)) for crop in chosen]
            for crop, strokes, found in self._through_crops(embedding, known, seen, first):
                if not contradicts(crop, found.mask, first.mask, strokes):
                    mixture.add(found)
            if mixture.sources > mixed:
                yield mixture.prediction(tuple(known.values()))

    def _through_crops(
        self,
        embedding: Embedding,
        known: dict[Frame, Embedding],
        seen: Sequence[tuple[Frame, Sequence[Stroke]]],
        first: Prediction,
    ) -> Iterator[tuple[Frame, Sequence[Stroke], Prediction]]:
        """What each crop shows, with its prompts.

        A GPU embeds and predicts several at once and keeps nothing: that takes no longer than predicting them
        one by one. Otherwise `known` gets the embeddings that are made.
        """
        together = None
        if len(seen) > 1:
            crops, strokes = zip(*seen, strict=True)
            with suppress(torch.cuda.OutOfMemoryError):  # one by one they need less
                together = self.backend.looks(embedding.image, crops, strokes, first.soft)
        for number, (crop, own) in enumerate(seen):
            if together is not None:
                yield crop, own, together[number]
                continue
            question = (own, first.soft)
            if crop in known:
                [found] = self._run(known[crop], [question])
            else:
                known[crop], wait = self._look(embedding.image, crop, question)
                found = wait()
            yield crop, own, found

    def _of_image(self, embedding: Embedding, look: Embedding) -> bool:
        """Whether a closer look shows the image of an embedding, through this network."""
        return look.model == self.model and look.image is embedding.image

    def predict_batch(
        self,
        embedding: Embedding,
        prompts: Sequence[Sequence[Prompt]],
        previous: Sequence[Prediction | None] | None = None,
    ) -> list[Prediction]:
        """The predictions for many objects of one image at once, without closer looks.

        Parameters
        ----------
        embedding
            As for `predict`.
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
        for given, before in zip(prompts, earlier, strict=True):
            self._check(embedding, given, before)
        objects = [
            (given, None if before is None else before.soft)
            for given, before in zip(prompts, earlier, strict=True)
        ]
        return self._run(embedding, objects)

    def with_memory(
        self,
        volume: PlaneReader,
        anchors: Mapping[Plane, ProbabilityMask],
        planes: Sequence[Plane],
        changed: Iterable[Plane] | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Iterator[PropagatedMask[Prediction]] | None:
        """One object propagated by the network's memory of other planes; None without such a memory.

        `propagation.propagate` calls this and explains the parameters.
        """
        if self._load_memory is None:
            return None
        from napari_lowlat_seg.inference.memory.propagation import MemoryPropagation

        if self._memory is None:
            self._memory = self.computed(partial(self._load_memory, self))
        propagation = MemoryPropagation(self, self._memory, volume)
        return propagation.propagate(anchors, planes, changed=changed, cancelled=cancelled)

    def _usable_look(
        self, embedding: Embedding, prompts: Sequence[Prompt], previous: Prediction | None
    ) -> Embedding | None:
        """The closer look of the previous prediction, if it is of the same image and serves these prompts."""
        look = None if previous is None else previous.look
        if previous is None or look is None or self.closer_look == "off":
            return None
        if (
            self._of_image(embedding, look)
            and shows(look.frame, prompts)
            and has_room(look.frame, object_box(prompts, previous.mask))
        ):
            return look
        return None

    def _check(self, embedding: Embedding, prompts: Sequence[Prompt], previous: Prediction | None) -> None:
        if embedding.model != self.model:
            raise ValueError(
                f"this embedding was made by {embedding.model}, not by {self.model}; embed the image again"
            )
        if not prompts and previous is None:
            raise ValueError("expected a prompt or a previous prediction, got neither; add a click")
        shape = embedding.frame.shape
        if previous is not None and previous.shape != shape:
            raise ValueError(
                f"the previous prediction has shape {previous.shape}, the image {shape}; "
                "pass the last prediction of the same image or None"
            )

    def _predict(
        self,
        seen: Embedding,
        prompts: Sequence[Prompt],
        previous: Prediction | None,
        around: Prediction | None,
        look: Embedding | None = None,
        share: float = 0.0,
    ) -> Prediction:
        """The prediction through one embedding, on the whole plane; see `Prediction.on_plane`."""
        [found] = self._run(seen, [(prompts, None if previous is None else previous.soft)])
        return replace(found, look=look).on_plane(around, share)

    def _run(self, seen: Embedding, objects: Sequence[Object]) -> list[Prediction]:
        return self.computed(lambda: self.backend.predict(seen.features, seen.frame, objects))

    def _look(
        self,
        plane: np.ndarray,
        frame: Frame,
        question: Object,
        around: Prediction | None = None,
        share: float = 0.0,
    ) -> tuple[Embedding, Callable[[], Prediction]]:
        """The embedding of a crop and what waits for the prediction from it; see `TorchBackend.look`."""
        features, found = self.computed(lambda: self.backend.look(plane, frame, question, around, share))
        return Embedding(features, frame, plane, self.model), found

    def _embed_frame(self, plane: np.ndarray, frame: Frame) -> Embedding:
        """The embedding of the frame's crop of a uint8 plane."""
        features = self.computed(lambda: self.backend.embed(plane, frame))
        return Embedding(features, frame, plane, self.model)

    def computed(self, work: Callable[[], T]) -> T:
        """What `work` returns; where the GPU's memory does not suffice, it is done again on the processor.

        For work that calls `backend`, which is another one from then on.
        """
        with suppress(torch.cuda.OutOfMemoryError):
            return work()
        # Behind the block: the exception held the frames of `work`, and these what filled the memory.
        self._leave_device()
        return work()

    def _leave_device(self) -> None:
        """Move the network from the GPU to the processor; embeddings made on the GPU stay valid."""
        warnings.warn(
            f"{self.runtime.device} is out of memory, so {self.name} continues on the processor; "
            "close what else uses the GPU and load the model again to return to it",
            stacklevel=5,
        )
        self._memory = None  # it is on the GPU, too: the next propagation loads it where the network is
        self.backend = self.backend.moved_to(suited(Runtime.find("cpu"), self.network))


def load_predictor(
    model: str = "default",
    device: str = "auto",
    closer_look: CloserLook = "auto",
    precision: Precision | None = None,
) -> Predictor:
    """The predictor for a model on a device; a model that is not on this machine is downloaded.

    Parameters
    ----------
    model
        A name that `lowlat-seg models list` shows, or the path of a .safetensors file or of an official .pth.
    device
        "auto", "cpu", "cuda", "cuda:1" or "mps"; "auto" takes a CUDA device, else Apple's, else the CPU.
    closer_look
        "auto" or "off"; see `Predictor`.
    precision
        "fp32", "tf32", "bf16" or "fp16"; None for what suits the device, see `Runtime.find`. They round
        differently: a few voxels at the edges of masks can differ.

    Raises
    ------
    ValueError
        For an unknown name, an unusable file, a device that is not there or an unknown precision.
    """
    runtime = Runtime.find(device, precision)  # first, because it is the cheaper one to fail
    network = load_model(model)
    memory = _load_memory if str(model) == "default" and closer_look == "auto" else None
    predictor = Predictor(network, suited(runtime, network), closer_look, name=str(model), memory=memory)
    if runtime.on_cuda:
        predictor.warm_up()
    return predictor


def _load_memory(predictor: Predictor) -> MemorySteps:
    from napari_lowlat_seg.inference.memory.steps import load_memory

    return load_memory(predictor)


def suited(runtime: Runtime, network: Network) -> Runtime:
    """The runtime without the precision and the converter that were not checked with this network."""
    short = runtime.precision == "bf16" and not network.bf16
    return replace(
        runtime,
        precision="fp32" if short else runtime.precision,
        openvino=runtime.openvino and network.openvino,
    )


def _fingerprint(network: Network) -> str:
    """A name for the weights: kind, size and a digest of the config and of every weight."""
    digest = hashlib.sha256(repr(getattr(network, "config", "")).encode())
    for name, weight in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} ".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{type(network).__name__}-{network.size}-{digest.hexdigest()[:12]}"
