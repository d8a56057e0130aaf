"""One object propagated through a volume by a trained memory of other planes.

Each plane is predicted from what is known of the anchor, of the anchor at the other end of the gap, and of
the two planes before it in the sweep. All of them are seen through one frame around the object, so that a
plane costs one embedding. The memory itself says whether the object is there; the mask is its own, mixed with
a share of what the network predicts from a click and the mask before: docs/decisions/memory.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import THRESHOLD
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import never
from napari_lowlat_seg.core.volume import Plane, PlaneReader, to_gray
from napari_lowlat_seg.inference.closer_look import MAX_SHARE, MIN_PIXELS, MIN_SHARE, has_room, object_box
from napari_lowlat_seg.inference.memory.embeddings import FrameEmbeddings
from napari_lowlat_seg.inference.memory.steps import MemorySteps
from napari_lowlat_seg.inference.openvino_backend import CALLS
from napari_lowlat_seg.inference.prediction import Prediction
from napari_lowlat_seg.inference.runtime import DTYPES
from napari_lowlat_seg.inference.torch_backend import from_square, on_square
from napari_lowlat_seg.models.plane_memory import MemoryEntry, PlaneMemory, slot_features
from napari_lowlat_seg.propagation.neighbours import Brightness, click_position, damage_of, iou
from napari_lowlat_seg.propagation.sweep import (
    MAX_SKIPPED,
    Gap,
    ProbabilityMask,
    PropagatedMask,
    RefusedPlane,
    anchor_gaps,
)

if TYPE_CHECKING:
    from napari_lowlat_seg.inference.predictor import Predictor

MARGIN = 0.6
"""Context on each side of the object in the frame of a sweep, as a share of its longer side: more than a
closer look has, because the object moves."""

MIN_EXTENT = 0.16
"""A frame in which the object's longer side is below this share is given up for a closer one."""

MIN_PRESENCE = 0.4
"""Beyond an anchor the object is on a plane when the memory's probability of that is above this,"""

MIN_QUALITY = 0.3
"""when its predicted IoU is above this,"""

BRIGHTNESS = 1.5
"""and when its mean brightness has changed by at most this times what `neighbours.Brightness` allows:
presence alone goes on, sure of itself, on what lies behind the object."""

MIN_PRESENCE_BETWEEN = 0.3
"""The same between two anchors that both show the object."""

NETWORK_SHARE = 0.25
"""Share of the network's own prediction, from a click and the mask before, in the probability of a plane."""

MAX_ABSENT = 1
"""Planes in a row without the object that a sweep looks past before it ends there."""


@dataclass(eq=False)
class MemoryPropagation:
    """Sweeps through one volume, which share embeddings.

    Parameters
    ----------
    predictor
        Embeds planes; its network is the one the memory was trained for.
    memory
        On the predictor's device, which it leaves with the predictor.
    volume
        Planes with a window, or each is stretched by itself.
    min_presence, min_presence_between, min_quality, brightness, network_share, max_absent
        See `MIN_PRESENCE`, `MIN_PRESENCE_BETWEEN`, `MIN_QUALITY`, `BRIGHTNESS`, `NETWORK_SHARE` and
        `MAX_ABSENT`.
    """

    predictor: Predictor
    memory: PlaneMemory | MemorySteps
    volume: PlaneReader
    min_presence: float = MIN_PRESENCE
    min_presence_between: float = MIN_PRESENCE_BETWEEN
    min_quality: float = MIN_QUALITY
    brightness: float = BRIGHTNESS
    network_share: float = NETWORK_SHARE
    max_absent: int = MAX_ABSENT
    _embeddings: FrameEmbeddings = field(init=False)
    _device: str = field(init=False)

    def __post_init__(self) -> None:
        self._embeddings = FrameEmbeddings(self.predictor, self.volume)
        self._device = self.predictor.runtime.device

    def propagate(
        self,
        anchors: Mapping[Plane, ProbabilityMask],
        planes: Sequence[Plane],
        *,
        changed: Iterable[Plane] | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Iterator[PropagatedMask[Prediction]]:
        """Yield each plane that the object was propagated to; anchors are repeated for a note only.

        Parameters and order are those of `propagation.propagate`. A plane between two anchors is predicted
        from both sides: first with `final` False, then for good.

        Raises
        ------
        ValueError
            When called, if there is no anchor or one is not among the planes.
        """
        gaps = anchor_gaps(anchors, planes, changed)
        return self._across_all(gaps, anchors, planes, cancelled)

    def _across_all(
        self,
        gaps: Sequence[Gap],
        anchors: Mapping[Plane, ProbabilityMask],
        planes: Sequence[Plane],
        cancelled: Callable[[], bool],
    ) -> Iterator[PropagatedMask[Prediction]]:
        steps = chain.from_iterable(self._across(anchors, planes, *gap, cancelled) for gap in gaps)
        try:
            while True:
                with self._embeddings.beside():
                    step = next(steps, None)
                if step is None:
                    return
                yield step
        finally:
            self._embeddings.drop()

    def _across(
        self,
        anchors: Mapping[Plane, ProbabilityMask],
        planes: Sequence[Plane],
        lo: int | None,
        hi: int | None,
        cancelled: Callable[[], bool],
    ) -> Iterator[PropagatedMask[Prediction]]:
        """The planes between two anchors, or beyond one."""
        if lo is None or hi is None:
            if hi is not None:
                yield from self._along(anchors, planes, hi, None, range(hi - 1, -1, -1), cancelled)
            if lo is not None:
                yield from self._along(anchors, planes, lo, None, range(lo + 1, len(planes)), cancelled)
            return
        first: dict[Plane, PropagatedMask[Prediction]] = {}
        notes: list[PropagatedMask[Prediction]] = []
        places = {planes[place]: place for place in range(lo, hi + 1)}
        missing = set(range(lo + 1, hi))
        for step in self._along(anchors, planes, lo, hi, range(lo + 1, hi), cancelled):
            if step.reason:
                notes.append(step)
                continue
            first[step.plane] = step
            missing.discard(places[step.plane])
            yield replace(step, final=False)
        for step in self._along(anchors, planes, hi, lo, range(hi - 1, lo, -1), cancelled):
            if step.reason:
                notes.append(step)
                continue
            missing.discard(places[step.plane])
            other = first.pop(step.plane, None)
            if other is None:
                yield step
            else:
                near = (places[step.plane] - lo) / (hi - lo)
                yield _averaged(other, (1 - near) ** 2, step, near**2)
        yield from first.values()
        for step in notes:  # where one sweep ended and the other did not, nothing is amiss
            if missing & {places[step.plane] - 1, places[step.plane] + 1}:
                yield step

    def _along(
        self,
        anchors: Mapping[Plane, ProbabilityMask],
        planes: Sequence[Plane],
        start: int,
        other: int | None,
        route: range,
        cancelled: Callable[[], bool],
    ) -> Iterator[PropagatedMask[Prediction]]:
        """The sweep from one anchor towards another, or to the end of the range.

        The confidence of a plane is the least predicted IoU since the anchor, times the fourth root of the
        product of the overlaps of neighbouring planes.
        """
        known = {start: anchors[planes[start]].probability}
        mask = anchors[planes[start]].mask
        if not mask.any():
            return
        beside, end = np.zeros_like(mask), start
        if other is not None:
            end = other
            known[other] = anchors[planes[other]].probability
            beside = anchors[planes[other]].mask  # in view too, or the memory would learn that it is absent
        frame: Frame | None = None
        entries: dict[int, MemoryEntry] = {}
        before = earlier = start
        last = _beginning(planes[start], known[start], mask)
        passed: list[str] = []
        refused: list[RefusedPlane] = []
        least = agreement = 1.0  # a mask that has once been lost is not trusted again
        gray = to_gray(self.volume.plane(planes[start]), self.volume.window)
        sought, usual = self._sought(gray, mask, beside)
        for visited, place in enumerate(route):
            plane = planes[place]
            if cancelled():
                return
            pixels = self.volume.plane(plane)
            if damage := damage_of(pixels, gray, mask):
                passed.append(f"plane {plane.position} {damage}")
                if len(passed) > MAX_SKIPPED:
                    break
                continue
            needed = self._frame(plane, mask | beside, frame)
            if needed != frame:
                frame, entries = needed, {}
            soon = route[visited : visited + 1 + CALLS]  # this plane, and one more for each stream
            self._embeddings.begin([planes[at] for at in soon], frame)
            slots = (start, end, before, earlier)
            described = self._slot_features(place, slots, start, other, plane, frame)
            here = to_gray(pixels, self.volume.window)
            remember = partial(self._remembered, entries, slots, planes, known, frame)
            presence, step = self.predictor.computed(partial(self._step, plane, frame, remember, described))
            if step is not None and presence > sought:
                step = self._mixed(step, frame, (gray, mask, known[before]), here)
            problem = self._problem(presence, sought, step, usual, here)
            if step is None or problem:  # a plane or two may be damaged
                reason = f"does not show it{problem}"
                passed.append(f"plane {plane.position} {reason}")
                refused.append(RefusedPlane(plane, presence, int(np.count_nonzero(mask)), reason))
                if len(refused) > self.max_absent:
                    break
                continue
            yield from _noted(last, 0, passed, refused)
            least = min(least, step.confidence)
            agreement *= iou(mask, step.prediction.mask)
            step = replace(step, confidence=least * agreement**0.25)
            passed, refused, last = [], [], step
            yield step
            mask, known[place], gray = step.prediction.mask, step.prediction.probability, here
            earlier, before = before, place
            _keep_only({start, end, before, earlier}, known, entries)
        yield from _noted(last, route.step, passed, refused)

    def _sought(
        self, gray: np.ndarray, mask: np.ndarray, beside: np.ndarray
    ) -> tuple[float, Brightness | None]:
        """The presence that is asked for, and the brightness on the anchor, which has this mask.

        None for the brightness where the anchor at the other end shows the object, too: `beside`.
        """
        if beside.any():
            return self.min_presence_between, None
        return self.min_presence, Brightness.of(gray, mask)

    def _problem(
        self,
        presence: float,
        sought: float,
        step: PropagatedMask[Prediction] | None,
        usual: Brightness | None,
        here: np.ndarray,
    ) -> str:
        """Why a mask is not the object, as the end of a sentence; empty if it is, or there is none.

        `sought` and `usual` are those of `_sought`.
        """
        if step is None:
            return ""
        if presence <= sought:
            return f": the probability is {presence:.0%}"
        if usual is None:
            return ""
        quality = step.prediction.quality
        if quality is not None and quality <= self.min_quality:
            return f": its mask would have an IoU of about {quality:.2f}"
        changed = usual.objection(here, step.prediction.mask, self.brightness)
        return f": {changed}" if changed else ""

    def _step(
        self,
        plane: Plane,
        frame: Frame,
        remember: Callable[[], Sequence[MemoryEntry]],
        described: Tensor,
    ) -> tuple[float, PropagatedMask[Prediction] | None]:
        """The object's presence on a plane, 0 to 1, and its mask there with the predicted IoU as confidence.

        The mask is None if it would be empty.
        """
        entries = remember()
        features = self._embeddings.of(plane, frame)
        with self._inference():
            output = self.memory(features, entries, described.to(features[0].device))
            soft = torch.sigmoid(from_square(output.logits, frame, False)[0, 0])
            inside = (soft > THRESHOLD).cpu().numpy()
            estimates = torch.stack([output.presence.sigmoid()[0], output.quality[0]])
        presence, quality = (float(value) for value in estimates.cpu())
        if not inside.any():
            return presence, None
        return presence, PropagatedMask(plane, _on_plane(soft, inside, frame, quality), quality)

    def _mixed(
        self,
        step: PropagatedMask[Prediction],
        frame: Frame,
        before: tuple[np.ndarray, np.ndarray, np.ndarray],
        here: np.ndarray,
    ) -> PropagatedMask[Prediction]:
        """A step with the network's own share: from one click, and what the plane before shows.

        `before` holds that plane's gray levels, its mask, and its probability, `here` this one's gray levels.
        """
        if not self.network_share:
            return step
        plane, features = step.plane, self._embeddings.of(step.plane, frame)
        gray, mask, soft = before
        click = Click(click_position(mask, gray, here, self.volume.plane_spacing(plane)))
        predictor = self.predictor
        [alone] = predictor.computed(lambda: predictor.backend.predict(features, frame, [([click], soft)]))
        own = frame.place(alone.probability, np.zeros(frame.shape, np.float32))
        probability = step.prediction.probability
        mixed = probability + np.float32(self.network_share) * (own - probability)
        if not (mixed > THRESHOLD).any():
            return step
        return replace(step, prediction=step.prediction.with_probability(mixed))

    def _frame(self, plane: Plane, mask: np.ndarray, frame: Frame | None) -> Frame:
        """The frame of a plane where the object is near this mask; the present frame, if it serves."""
        box = object_box([], mask)
        whole = Frame.whole(
            (int(mask.shape[0]), int(mask.shape[1])),
            self.predictor.size,
            self.predictor.network.fit,
            self.volume.plane_spacing(plane),
        )
        if box is None:
            return frame or whole
        longest = max((box[2] - box[0] + 1) * whole.spacing[0], (box[3] - box[1] + 1) * whole.spacing[1])
        if frame is not None and has_room(frame, box):
            large_enough = longest >= MIN_EXTENT * frame.extent
            if large_enough or frame.extent <= 1.01 * self._smallest(whole):
                return frame
        closer = whole.around(box, MARGIN, self._smallest(whole) / min(whole.spacing))
        return closer if closer.extent <= MAX_SHARE * whole.extent else whole

    @staticmethod
    def _smallest(whole: Frame) -> float:
        """The smallest side of a frame, in world units."""
        return max(MIN_PIXELS * min(whole.spacing), MIN_SHARE * whole.extent)

    def _remembered(
        self,
        entries: dict[int, MemoryEntry],
        slots: Sequence[int],
        planes: Sequence[Plane],
        known: Mapping[int, np.ndarray],
        frame: Frame,
    ) -> list[MemoryEntry]:
        """What the memory keeps of the planes in the slots; `entries` gets what it lacks of them."""
        device = self.predictor.runtime.device
        if device != self._device:  # the predictor has left it since, maybe for other work
            self.memory.to(device)
            self._embeddings.clear()
            entries.clear()
            self._device = device
        for slot in set(slots) - entries.keys():
            entries[slot] = self._entry(planes[slot], known[slot], frame)
        return [entries[slot] for slot in slots]

    def _entry(self, plane: Plane, soft: np.ndarray, frame: Frame) -> MemoryEntry:
        """What the memory keeps of a plane with this probability (H, W), seen through a frame."""
        features = self._embeddings.of(plane, frame)
        mask = torch.from_numpy(np.ascontiguousarray(frame.cut(soft)))
        mask = mask.to(features[0].device, torch.float32)[None, None]
        with self._inference():
            return self.memory.remember(features, on_square(mask, frame, mask.new_zeros(1)))

    def _slot_features(
        self,
        place: int,
        slots: tuple[int, int, int, int],
        start: int,
        other: int | None,
        plane: Plane,
        frame: Frame,
    ) -> Tensor:
        """What is known of the planes in the slots, (1, SLOTS, SLOT_FEATURES)."""
        way = 1 if place > start else -1
        steps = torch.tensor([[float((place - slot) * way) for slot in slots]])
        anchor = torch.tensor([[slot in (start, other) for slot in slots]])
        spare = torch.tensor([[False, other is None, slots[2] == start, slots[3] == slots[2]]])
        rows = self.volume.thickness(plane) / self.volume.plane_spacing(plane)[0]
        depth = steps * rows * frame.scale[0]
        return slot_features(steps, depth, anchor, spare)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Inside: no gradients, and the predictor's half precision, if it has one."""
        runtime = self.predictor.runtime
        device, half = torch.device(runtime.device).type, DTYPES[runtime.precision]
        halved = half != torch.float32 and device in ("cuda", "cpu")
        with torch.inference_mode(), torch.autocast(device, half if halved else None, enabled=halved):
            yield


def _beginning(plane: Plane, probability: np.ndarray, mask: np.ndarray) -> PropagatedMask[Prediction]:
    """An anchor as a step, in case that a note is all there is to say."""
    sides = (int(mask.shape[0]), int(mask.shape[1]))
    return PropagatedMask(plane, Prediction(probability, None, Frame.whole(sides, 1), None, mask), 1.0)


def _keep_only(places: set[int], *dictionaries: dict[int, Any]) -> None:
    for one in dictionaries:
        for old in one.keys() - places:
            del one[old]


def _noted(
    step: PropagatedMask[Prediction], ends: int, passed: Sequence[str], refused: Sequence[RefusedPlane]
) -> Iterator[PropagatedMask[Prediction]]:
    """The step again with the planes that were passed since, if there were any."""
    if passed:
        yield replace(step, final=False, ends=ends, reason="; ".join(passed), refused=tuple(refused))


def _on_plane(soft: Tensor, inside: np.ndarray, frame: Frame, quality: float) -> Prediction:
    """The probability of a frame's crop on the whole plane, 0 beside it."""
    whole = np.zeros(frame.shape, np.float32)
    frame.place(soft.float().cpu().numpy(), whole)
    mask = np.zeros(frame.shape, bool)
    frame.place(inside, mask)
    return Prediction(whole, quality, frame, None, mask)


def _averaged(
    first: PropagatedMask[Prediction],
    weight: float,
    second: PropagatedMask[Prediction],
    other_weight: float,
) -> PropagatedMask[Prediction]:
    """Both predictions of one plane as one; weights grow with the confidence of each."""
    weight, other_weight = weight * first.confidence + 1e-6, other_weight * second.confidence + 1e-6
    share = weight / (weight + other_weight)
    one, other = first.prediction, second.prediction
    probability = share * one.probability + (1 - share) * other.probability
    prediction = other.with_probability(probability.astype(np.float32))
    confidence = share * first.confidence + (1 - share) * second.confidence
    agreement = iou(one.mask, other.mask)
    return PropagatedMask(second.plane, prediction, float(confidence * agreement**0.25))
