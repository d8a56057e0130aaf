"""One object propagated from the planes where it is known to their neighbours, plane by plane.

Each plane is predicted from two hints of the plane before it: the mask found there, and a click deep inside
that mask where both images look alike. A sweep ends where the object does, and says why; damaged planes are
stepped over. A plane between two anchors is reached from both, and the two predictions are averaged. Why so:
docs/decisions/propagation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.requests import never
from napari_lowlat_seg.core.volume import Plane, PlaneReader
from napari_lowlat_seg.propagation.neighbours import (
    Brightness,
    click_position,
    damage_of,
    iou,
    stands_out,
)

MIN_OVERLAP = 0.3
"""The object has ended, or the prediction is another object, when its IoU with the plane before is lower."""


MAX_SKIPPED = 3
"""Damaged planes in a row that a sweep steps over."""

FAINT = 0.01
"""Probabilities below this are not kept while a plane waits for its prediction from the other side."""

Gap = tuple[int | None, int | None]
"""Two neighbouring anchors, by their places; None for an end of the range."""


class ProbabilityMask(Protocol):
    """An object on one plane, as a predictor gives it; `Prediction` and `SoftMask` are such values."""

    @property
    def probability(self) -> np.ndarray:
        """(rows, cols) float32 in [0, 1]."""

    @property
    def mask(self) -> np.ndarray:
        """(rows, cols) bool."""

    @property
    def quality(self) -> float | None:
        """The network's own estimate of the IoU in [0, 1], or None."""

    def with_probability(self, probability: np.ndarray) -> Any:
        """The same with another probability."""


M = TypeVar("M", bound=ProbabilityMask)


class MaskPredictor(Protocol[M]):
    """What propagation needs of a predictor; `Predictor` is one."""

    def embed(
        self, image: np.ndarray, window: tuple[float, float] | None, spacing: tuple[float, float]
    ) -> Any:
        """As `Predictor.embed`."""

    def predict(self, embedding: Any, prompts: Sequence[Prompt], previous: M | None) -> M:
        """As `Predictor.predict`."""

    # It may have `with_memory`, too, as `Predictor.with_memory`.


@dataclass(frozen=True)
class RefusedPlane:
    """A plane that a sweep looked at and left without a mask: the object may go on there after all.

    Attributes
    ----------
    plane
        Where.
    presence
        The probability, 0 to 1, that the object is on it.
    pixels
        Of the last mask before it.
    reason
        Why it was refused, as the end of a sentence that begins with the plane.
    """

    plane: Plane
    presence: float
    pixels: int
    reason: str


@dataclass(frozen=True, eq=False)
class PropagatedMask(Generic[M]):
    """The object on a plane to which it was propagated.

    Attributes
    ----------
    plane
        Where.
    prediction
        The mask, of the predictor's type; between two anchors its probability is averaged from two.
    confidence
        An estimate of the IoU, 0 to 1: the network's own estimate, times the mean probability inside the
        mask, times the fourth root of an agreement. The agreement is the product of the overlaps of
        neighbouring planes since the anchor, or between two anchors the IoU of the two predictions.
    final
        False while the sweep from the second anchor is still to come: the plane will be predicted again.
    ends
        In which direction of the range the object was not followed beyond this plane: 1 forwards, -1
        backwards. 0 where the sweep goes on, or the range ends.
    reason
        Why it was not followed, or which planes behind this one were stepped over, as the end of a sentence.
        It comes with a repetition of the plane that is not final; an anchor is repeated, too, if the object
        ends beside it. "" for all others.
    refused
        With a reason: those of its planes of which a memory says how likely they show the object. Between two
        anchors some of them may get a mask from the other side.
    """

    plane: Plane
    prediction: M
    confidence: float
    final: bool = True
    ends: int = 0
    reason: str = ""
    refused: tuple[RefusedPlane, ...] = ()

    @property
    def note(self) -> str | None:
        """Why the object ends here, or what was stepped over, in words; None without a reason."""
        return f"{'ends here' if self.ends else 'stepped over'}: {self.reason}" if self.reason else None


class Cancelled(Exception):
    """Raised inside a sweep whose caller has cancelled it."""


def embed_plane(predictor: MaskPredictor[Any], volume: PlaneReader, plane: Plane) -> Any:
    """The embedding of one plane, with the volume's intensity window and the plane's spacing."""
    return predictor.embed(volume.plane(plane), volume.window, volume.plane_spacing(plane))


def affected(
    anchors: Iterable[Plane], planes: Sequence[Plane], changed: Iterable[Plane]
) -> tuple[Plane, ...]:
    """The planes that a change of some anchors can change: up to the neighbouring anchors, these left out.

    Clear these before propagating again, since the object may not reach all of them the second time. Every
    other plane stays as it is, to the byte.

    Parameters
    ----------
    anchors
        The planes where the object is known now.
    planes
        The range, in spatial order.
    changed
        Planes whose anchor is new, other or gone.

    Raises
    ------
    ValueError
        If there is no anchor or one is not among the planes.

    Examples
    --------
    >>> planes = [Plane((i, None, None)) for i in range(9)]
    >>> [p.position for p in affected([planes[2], planes[4], planes[7]], planes, [planes[4]])]
    [3, 5, 6]
    """
    between = (
        range(-1 if lo is None else lo, len(planes) if hi is None else hi)[1:]
        for lo, hi in anchor_gaps(anchors, planes, changed)
    )
    return tuple(planes[place] for places in between for place in places)


def anchor_gaps(
    anchors: Iterable[Plane], planes: Sequence[Plane], changed: Iterable[Plane] | None
) -> list[Gap]:
    """The gaps before, between and behind the anchors that `changed` planes touch; all of them for None.

    Raises ValueError if there is no anchor or one is not among the planes.
    """
    given = list(anchors)
    where = {plane: place for place, plane in enumerate(planes)}
    places = sorted(where[anchor] for anchor in given if anchor in where)
    if not places or len(places) < len(given):
        raise ValueError(
            f"propagation needs at least one plane with a mask, and all of them in its range of "
            f"{len(planes)} planes; got {len(places)} of {len(given)} inside"
        )
    gaps: list[Gap] = list(zip([None, *places], [*places, None]))
    if changed is None:
        return gaps
    edited = {where[plane] for plane in changed if plane in where}
    return [
        (lo, hi)
        for lo, hi in gaps
        if any((lo is None or lo <= place) and (hi is None or place <= hi) for place in edited)
    ]


@dataclass(frozen=True)
class Sweep(Generic[M]):
    """The propagation of one object; the fields are the parameters of `propagate.propagate`.

    `gray` gives the gray levels of a plane, (rows, cols) float32; objects that share it share the arrays.
    """

    predictor: MaskPredictor[M]
    volume: PlaneReader
    anchors: Mapping[Plane, M]
    planes: Sequence[Plane]
    embed: Callable[[Plane], Any]
    gray: Callable[[Plane], np.ndarray]
    changed: Iterable[Plane] | None = None
    min_overlap: float = MIN_OVERLAP
    cancelled: Callable[[], bool] = never

    def steps(self) -> Iterator[Plane | PropagatedMask[M]]:
        """Each plane before it is predicted, then what was found there.

        The name of the plane comes first so that a caller with many objects can wait with this one until the
        others have come to the same plane. Raises ValueError when called, as `affected` does.
        """
        return self._across_all(anchor_gaps(self.anchors, self.planes, self.changed))

    def _across_all(self, gaps: list[Gap]) -> Iterator[Plane | PropagatedMask[M]]:
        with suppress(Cancelled):
            for gap in gaps:
                yield from self._across(*gap)

    def _across(self, lo: int | None, hi: int | None) -> Iterator[Plane | PropagatedMask[M]]:
        """The planes between two anchors, or beyond one."""
        if lo is None or hi is None:
            if hi is not None:
                yield from self._from_one(hi, range(hi - 1, -1, -1))
            if lo is not None:
                yield from self._from_one(lo, range(lo + 1, len(self.planes)))
        elif self._anchor(lo).mask.any() and self._anchor(hi).mask.any():
            yield from self._from_both(lo, hi)
        else:
            half = (lo + hi) // 2
            yield from self._from_one(lo, range(lo + 1, half + 1))
            yield from self._from_one(hi, range(hi - 1, half, -1))

    def _anchor(self, place: int) -> M:
        return self.anchors[self.planes[place]]

    def _from_one(self, start: int, route: range) -> Iterator[Plane | PropagatedMask[M]]:
        for visit in self._along(start, route):
            yield visit if isinstance(visit, Plane) else self._found(visit, final=not visit.reason)

    def _found(self, visit: _Visit, *, final: bool = True) -> PropagatedMask[M]:
        confidence = _confidence(visit.prediction, visit.prediction.quality, visit.agreement)
        plane = self.planes[visit.place]
        return PropagatedMask(plane, visit.prediction, confidence, final, visit.ends, visit.reason)

    def _from_both(self, lo: int, hi: int) -> Iterator[Plane | PropagatedMask[M]]:
        """Forwards, then backwards with both predictions averaged."""
        first: dict[int, _Compressed] = {}
        notes: list[_Visit] = []
        missing = set(range(lo + 1, hi))
        for visit in self._along(lo, range(lo + 1, hi)):
            if isinstance(visit, Plane):
                yield visit
            elif visit.reason:
                notes.append(visit)
            else:
                first[visit.place] = _Compressed.of(visit)
                missing.discard(visit.place)
                yield self._found(visit, final=False)
        for visit in self._along(hi, range(hi - 1, lo, -1)):
            if isinstance(visit, Plane):
                yield visit
                continue
            if visit.reason:
                notes.append(visit)
                continue
            missing.discard(visit.place)
            if visit.place not in first:
                yield self._found(visit)
            else:
                # Weights fall with the square of the distance from the anchor.
                other, near = first.pop(visit.place).restored(), (visit.place - lo) / (hi - lo)
                weight, other_weight = near**2 * visit.agreement, (1 - near) ** 2 * other.agreement
                yield self._averaged(other, visit, other_weight / (weight + other_weight))
        for compressed in first.values():
            yield self._found(compressed.restored())
        for visit in notes:  # where one sweep ended and the other did not, nothing is amiss
            if missing & {visit.place - 1, visit.place + 1}:
                yield self._found(visit, final=False)

    def _averaged(self, first: _Visit, second: _Visit, share: float) -> PropagatedMask[M]:
        """Both predictions of a plane, the first with the weight `share`, the second with the rest."""
        one, other = first.prediction, second.prediction
        probability = share * one.probability + (1 - share) * other.probability
        prediction = other.with_probability(probability.astype(np.float32))
        known = one.quality is not None and other.quality is not None
        quality = share * one.quality + (1 - share) * other.quality if known else None
        confidence = _confidence(prediction, quality, iou(one.mask, other.mask))
        return PropagatedMask(self.planes[second.place], prediction, confidence)

    def _along(self, start: int, route: range) -> Iterator[Plane | _Visit]:
        """Each plane before it is predicted, and then its prediction, until the object ends.

        A visit with a reason repeats the last one.
        """
        last = _Visit(start, self._anchor(start), 1.0)
        if not last.prediction.mask.any():
            return
        before = self._gray(start)
        brightness = Brightness.of(before, last.prediction.mask)
        skipped: list[str] = []
        for place in route:
            yield self.planes[place]
            damage, problem = (
                damage_of(self.volume.plane(self.planes[place]), before, last.prediction.mask),
                "",
            )
            if not damage:
                here = self._gray(place)
                following = self._predicted(place, last.prediction, before, here)
                kept = iou(last.prediction.mask, following.mask)
                problem = self._problem(place, following.mask, kept, here, brightness)
                beyond = place + route.step
                if problem and beyond in route and self._stands_out(before, here, beyond, last.prediction):
                    damage = "is shifted or damaged: the planes on both sides of it are more alike"
            if damage:
                skipped.append(f"plane {self.planes[place].position} {damage}")
                problem = "; ".join(skipped) if len(skipped) > MAX_SKIPPED else ""
            if problem:
                yield replace(last, ends=route.step, reason=problem)
                return
            if damage:
                continue
            if skipped:
                yield replace(last, reason="; ".join(skipped))
                skipped = []
            last, before = _Visit(place, following, last.agreement * kept), here
            yield last
        if skipped:
            yield replace(last, ends=route.step, reason="; ".join(skipped))

    def _gray(self, place: int) -> np.ndarray:
        return self.gray(self.planes[place])

    def _predicted(self, place: int, known: M, before: np.ndarray, here: np.ndarray) -> M:
        """The prediction of a plane from that of the plane before."""
        plane = self.planes[place]
        click = Click(click_position(known.mask, before, here, self.volume.plane_spacing(plane)))
        self._check()
        embedding = self.embed(plane)
        self._check()
        found: M = without_looks(self.predictor.predict(embedding, [click], without_looks(known)))
        return found

    def _problem(
        self, place: int, mask: np.ndarray, kept: float, here: np.ndarray, brightness: Brightness
    ) -> str:
        """Why a mask is not the object any more; empty if it is."""
        where = f"plane {self.planes[place].position}"
        if not mask.any():
            return f"{where} shows nothing like it"
        if kept < self.min_overlap:
            return f"its overlap with {where} would be {kept:.0%}, less than {self.min_overlap:.0%}"
        changed = brightness.objection(here, mask)
        return f"on {where} {changed}" if changed else ""

    def _stands_out(self, before: np.ndarray, here: np.ndarray, beyond: int, known: M) -> bool:
        """Whether the planes on both sides of one are clearly more alike than it is to the one before."""
        pixels = self.volume.plane(self.planes[beyond])
        if damage_of(pixels, before, known.mask):
            return False
        return stands_out(here, (before, self._gray(beyond)), known.mask)

    def _check(self) -> None:
        if self.cancelled():
            raise Cancelled


@dataclass(frozen=True, eq=False)
class _Visit:
    """A plane of a sweep: its place, its prediction and the product of overlaps since the anchor.

    `ends` and `reason` are those of `PropagatedMask`.
    """

    place: int
    prediction: Any
    agreement: float
    ends: int = 0
    reason: str = ""


@dataclass(frozen=True, eq=False)
class _Compressed:
    """A visit that waits for the sweep from the other side, small enough that a long gap fits in memory."""

    visit: _Visit
    shape: tuple[int, int]
    patch: Patch

    @classmethod
    def of(cls, visit: _Visit) -> _Compressed:
        probability = visit.prediction.probability
        box = BoundingBox.of(probability > FAINT)
        patch = Patch(box.corner, probability[box.slices].astype(np.float16))
        empty = visit.prediction.with_probability(np.zeros((0, 0), np.float32))
        return cls(replace(visit, prediction=empty), probability.shape, patch)

    def restored(self) -> _Visit:
        probability = self.patch.on(self.shape).astype(np.float32)
        return replace(self.visit, prediction=self.visit.prediction.with_probability(probability))


def _confidence(prediction: ProbabilityMask, quality: float | None, agreement: float) -> float:
    """See `PropagatedMask`; without a predicted IoU the probability counts twice. 0 for an empty mask."""
    mask = prediction.mask
    sure = float(prediction.probability[mask].mean()) if mask.any() else 0.0
    return float(sure * (sure if quality is None else quality) * agreement**0.25)


def without_looks(prediction: Any) -> Any:
    """A prediction for use on another plane: its closer looks show the plane on which they were taken.

    They are embeddings, too, of some megabytes each: what is kept of many objects goes without them.
    """
    seen = getattr(prediction, "look", None) is not None or bool(getattr(prediction, "edges", None))
    return replace(prediction, look=None, edges=()) if seen else prediction
