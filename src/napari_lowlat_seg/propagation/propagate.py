"""One object carried through many planes: from the planes where it is known to their neighbours, one by one.

Each plane is asked with two hints from the plane before it: the mask found there, and a click at the place
deepest inside that mask where both images look alike. The walk ends where the object does. A plane between
two anchors is reached from both, and both answers are mixed. Why so: docs/decisions/propagation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import edt
import numpy as np
from scipy.ndimage import gaussian_filter

from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.volume import Pictures, Plane, to_uint8

BLUR = 2.0
"""Pixels (standard deviation) over which two planes are compared: noise differs, structures do not."""


def visible(volume: Pictures, plane: Plane) -> bool:
    """Whether there is anything to see: planes without a finite pixel exist in registered stacks."""
    return any_finite(volume.plane(plane))


def any_finite(pixels: np.ndarray) -> bool:
    """Whether a picture has a pixel that is a number."""
    return pixels.dtype.kind != "f" or bool(np.isfinite(pixels).any())


def gray(volume: Pictures, plane: Plane) -> np.ndarray:
    """(rows, cols) float32 from 0 to 255, through the volume's window; the mean of colours."""
    pixels = to_uint8(volume.plane(plane), volume.window).astype(np.float32)
    return pixels if pixels.ndim == 2 else pixels.mean(axis=2)


def seed(
    mask: np.ndarray, before: np.ndarray, here: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)
) -> tuple[int, int]:
    """(row, col) deep inside a mask, where two gray images, smoothed, look alike; not for empty masks.

    The place with the largest depth * exp(-(difference / spread)^2), spread being the standard deviation of
    the first image inside the mask plus one gray level.
    """
    depth = edt.edt(np.ascontiguousarray(mask), anisotropy=spacing, black_border=True, parallel=1)
    first, second = gaussian_filter(before, BLUR), gaussian_filter(here, BLUR)
    spread = float(first[mask].std()) + 1.0
    score = depth * np.exp(-(((second - first) / spread) ** 2))
    # Where nothing looks alike the score may underflow; depth alone decides then.
    row, col = np.unravel_index(int(np.argmax(score if score.max() > 0 else depth)), mask.shape)
    return int(row), int(col)


Gap = tuple[int | None, int | None]
"""Two neighbouring anchors, by their places; None for an end of the range."""


def affected(
    anchors: Iterable[Plane], planes: Sequence[Plane], changed: Iterable[Plane]
) -> tuple[Plane, ...]:
    """The planes that a change of some anchors can change: up to the neighbouring anchors, these left out.

    Who corrects a plane clears these first, since the object may not reach all of them again; every other
    plane stays as it is, to the byte.

    >>> planes = [Plane((i, None, None)) for i in range(9)]
    >>> [p.position for p in affected([planes[2], planes[4], planes[7]], planes, [planes[4]])]
    [3, 5, 6]
    """
    gaps = touched(gaps_between(places_of(anchors, planes)), planes, changed)
    between = (range(-1 if lo is None else lo, len(planes) if hi is None else hi)[1:] for lo, hi in gaps)
    return tuple(planes[place] for route in between for place in route)


def places_of(anchors: Iterable[Plane], planes: Sequence[Plane]) -> list[int]:
    """Where the anchors are in the range, in order. Raises ValueError if one is outside or there is none."""
    given = list(anchors)
    where = {plane: place for place, plane in enumerate(planes)}
    places = sorted(where[anchor] for anchor in given if anchor in where)
    if not places or len(places) < len(given):
        raise ValueError(
            f"propagation needs at least one plane with an answer, and all of them in its range of "
            f"{len(planes)} planes; got {len(places)} of {len(given)} inside"
        )
    return places


def gaps_between(places: list[int]) -> list[Gap]:
    """The gaps before, between and behind anchors at these places."""
    return list(zip([None, *places], [*places, None]))


def touched(gaps: list[Gap], planes: Sequence[Plane], changed: Iterable[Plane] | None) -> list[Gap]:
    """The gaps on whose edge or inside of which a plane has changed; all if that is not known (None)."""
    if changed is None:
        return gaps
    at = {planes.index(plane) for plane in changed if plane in planes}
    return [
        (lo, hi)
        for lo, hi in gaps
        if any((lo is None or lo <= place) and (hi is None or place <= hi) for place in at)
    ]


LEAST_OVERLAP = 0.3
"""The object has ended, or the answer is another object, when its IoU with the plane before is below this."""

LIKENESS = 1.0
"""The object has ended, too, when its mean brightness leaves that on the anchor by more than so many of the
anchor's standard deviations and `LEAST_CHANGE`: a mask that finds no edge any more creeps on for ever."""

LEAST_CHANGE = 4.0
"""Gray levels of 255 that the mean brightness may always change."""

FAINT = 0.01
"""Probabilities below this are not kept while a plane waits for its answer from the other side."""


class SoftMask(Protocol):
    """What is known of the object on one plane."""

    @property
    def probability(self) -> np.ndarray: ...

    @property
    def mask(self) -> np.ndarray: ...

    @property
    def quality(self) -> float | None: ...

    def redrawn(self, probability: np.ndarray) -> Any:
        """The same with another probability; a closer look is left behind."""


A = TypeVar("A", bound=SoftMask)


class Engine(Protocol[A]):
    """What propagation needs of a predictor."""

    def embed(
        self, image: np.ndarray, window: tuple[float, float] | None, spacing: tuple[float, float]
    ) -> Any: ...

    def predict(self, embedding: Any, prompts: Sequence[Prompt], previous: A | None) -> A: ...


@dataclass(frozen=True, eq=False)
class PropagatedMask(Generic[A]):
    """The object on a plane it was carried to.

    Attributes
    ----------
    plane
        Where.
    answer
        What was found; of the engine's type, its probability mixed from two where two anchors are near.
    confidence
        An estimate of the IoU, 0 to 1: the network's own, times how sure it is inside its mask, times the
        fourth root of how well masks agree, along the walk from the only anchor or of both walks.
    final
        False while the walk from the second anchor is still to come: the plane will be answered again.
    """

    plane: Plane
    answer: A
    confidence: float
    final: bool = True


class Cancelled(Exception):
    """Raised inside a walk when its caller does not want it any more."""


def embed_plane(predictor: Engine[Any], volume: Pictures, plane: Plane) -> Any:
    """The embedding of one plane, with the volume's intensity window and the plane's spacing."""
    return predictor.embed(volume.plane(plane), volume.window, volume.plane_spacing(plane))


def propagate(
    predictor: Engine[A],
    volume: Pictures,
    anchors: Mapping[Plane, A],
    planes: Sequence[Plane],
    *,
    changed: Iterable[Plane] | None = None,
    embed: Callable[[Plane], Any] | None = None,
    least_overlap: float = LEAST_OVERLAP,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[PropagatedMask[A]]:
    """Each plane to which the object could be carried; the anchors are not repeated.

    From the outermost anchors the object walks to the ends of `planes`. Between two anchors it walks from
    both, and a plane is answered twice: first as seen from the earlier anchor (`final` is False), then for
    good. A walk stops where the overlap with the plane before falls below `least_overlap`, empty masks
    included, where the object is no longer as bright as on the anchor (`LIKENESS`), and before a plane
    without a finite pixel. The generator may be closed after any plane. Nothing given is changed.

    Parameters
    ----------
    predictor
        Answers for the planes; see `Engine`.
    volume
        The planes' pixels. Give it a window (`Volume.with_window`), or each plane is stretched by itself.
    anchors
        The answers on the planes where the user has given prompts. Empty masks among them are walls: the
        object walks half-way to them.
    planes
        The range to fill, in spatial order, anchors included.
    changed
        Planes whose anchor is new, other or gone: only what `anchors.affected` names is carried anew. None
        for all.
    embed
        Gives the embedding of a plane, for callers that keep embeddings; `embed_plane` by default.
    least_overlap
        IoU of neighbouring planes, 0 to 1.
    cancelled
        Asked before and after each embedding; when true, the walk ends.

    Raises
    ------
    ValueError
        When called, if there is no anchor or one is not among the planes.
    """
    steps = propagate_stepwise(
        predictor,
        volume,
        anchors,
        planes,
        changed=changed,
        embed=embed,
        least_overlap=least_overlap,
        cancelled=cancelled,
    )
    return (step for step in steps if isinstance(step, PropagatedMask))


def propagate_stepwise(
    predictor: Engine[A],
    volume: Pictures,
    anchors: Mapping[Plane, A],
    planes: Sequence[Plane],
    *,
    changed: Iterable[Plane] | None = None,
    embed: Callable[[Plane], Any] | None = None,
    least_overlap: float = LEAST_OVERLAP,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Plane | PropagatedMask[A]]:
    """`propagate`, with each plane named before it is asked: who carries many objects asks plane by plane."""
    places = places_of(anchors, planes)
    gaps = touched(gaps_between(places), planes, changed)
    walk = _Walk(
        predictor,
        volume,
        dict(anchors),
        planes,
        embed or (lambda plane: embed_plane(predictor, volume, plane)),
        least_overlap,
        cancelled,
    )
    return _until_cancelled(step for gap in gaps for step in walk.gap(*gap))


def worst(carried: Iterable[PropagatedMask[Any]]) -> Plane | None:
    """The plane where a correction is likely to matter most: most pixels times lack of confidence.

    None if nothing was carried; the first of several equal ones. Empty masks count as one pixel.
    """
    items = [item for item in carried if item.final]
    if not items:
        return None
    doubts = [doubt(item.confidence, int(item.answer.mask.sum())) for item in items]
    return items[int(np.argmax(doubts))].plane


def doubt(confidence: float, pixels: int) -> float:
    """How much a correction is likely to matter where an answer of so many pixels has this confidence."""
    return (1 - confidence) * max(1, pixels)


def _until_cancelled(steps: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from steps
    except Cancelled:
        return


@dataclass(frozen=True, eq=False)
class _Step:
    """One plane of one walk: `chain` is the product of the overlaps since the anchor."""

    place: int
    answer: Any
    chain: float


@dataclass(frozen=True)
class _Walk:
    predictor: Engine[Any]
    volume: Pictures
    anchors: dict[Plane, Any]
    planes: Sequence[Plane]
    embed: Callable[[Plane], Any]
    least_overlap: float
    cancelled: Callable[[], bool]

    def gap(self, lo: int | None, hi: int | None) -> Iterator[Plane | PropagatedMask[Any]]:
        """The planes between two anchors, or beyond one."""
        if lo is None or hi is None:
            if hi is not None:
                yield from self._alone(hi, range(hi - 1, -1, -1))
            if lo is not None:
                yield from self._alone(lo, range(lo + 1, len(self.planes)))
        elif self._mask(lo).any() and self._mask(hi).any():
            yield from self._from_both(lo, hi)
        else:
            half = (lo + hi) // 2
            yield from self._alone(lo, range(lo + 1, half + 1))
            yield from self._alone(hi, range(hi - 1, half, -1))

    def _mask(self, place: int) -> np.ndarray:
        mask: np.ndarray = self.anchors[self.planes[place]].mask
        return mask

    def _alone(self, start: int, route: range) -> Iterator[Plane | PropagatedMask[Any]]:
        for step in self._along(start, route):
            yield step if isinstance(step, Plane) else self._carried(step)

    def _carried(self, step: _Step, *, final: bool = True) -> PropagatedMask[Any]:
        confidence = _confidence(step.answer, step.answer.quality, step.chain)
        return PropagatedMask(self.planes[step.place], step.answer, confidence, final)

    def _from_both(self, lo: int, hi: int) -> Iterator[Plane | PropagatedMask[Any]]:
        """Forwards, and backwards with both answers mixed. Weights fall with the square of the distance."""
        seen: dict[int, _Folded] = {}
        for step in self._along(lo, range(lo + 1, hi)):
            if isinstance(step, Plane):
                yield step
            else:
                seen[step.place] = _Folded.of(step)
                yield self._carried(step, final=False)
        for step in self._along(hi, range(hi - 1, lo, -1)):
            if isinstance(step, Plane):
                yield step
            elif step.place not in seen:
                yield self._carried(step)
            else:
                other = seen.pop(step.place).unfolded()
                near = (step.place - lo) / (hi - lo)
                yield self._mixed(other, (1 - near) ** 2 * other.chain, step, near**2 * step.chain)
        for folded in seen.values():
            yield self._carried(folded.unfolded())

    def _mixed(self, first: _Step, weight: float, second: _Step, other_weight: float) -> PropagatedMask[Any]:
        share = weight / (weight + other_weight)
        probability = share * first.answer.probability + (1 - share) * second.answer.probability
        answer = second.answer.redrawn(probability.astype(np.float32))
        one, two = first.answer.quality, second.answer.quality
        quality = None if one is None or two is None else share * one + (1 - share) * two
        confidence = _confidence(answer, quality, overlap(first.answer.mask, second.answer.mask))
        return PropagatedMask(self.planes[second.place], answer, confidence)

    def _along(self, start: int, route: range) -> Iterator[Plane | _Step]:
        """Each plane before it is asked, and then its answer, until the object ends."""
        answer, chain = self.anchors[self.planes[start]], 1.0
        if not answer.mask.any():
            return
        before = gray(self.volume, self.planes[start])
        inside = before[answer.mask]
        usual, change = float(inside.mean()), LIKENESS * float(inside.std()) + LEAST_CHANGE
        for place in route:
            plane = self.planes[place]
            yield plane
            if not visible(self.volume, plane):
                return
            here = gray(self.volume, plane)
            click = Click(seed(answer.mask, before, here, self.volume.plane_spacing(plane)))
            self._check()
            embedding = self.embed(plane)
            self._check()
            following = _carried(self.predictor.predict(embedding, [click], _carried(answer)))
            kept = overlap(answer.mask, following.mask) if following.mask.any() else 0.0
            if not following.mask.any() or kept < self.least_overlap:
                return
            if abs(float(here[following.mask].mean()) - usual) > change:
                return
            chain *= kept
            yield _Step(place, following, chain)
            answer, before = following, here

    def _check(self) -> None:
        if self.cancelled():
            raise Cancelled


@dataclass(frozen=True, eq=False)
class _Folded:
    """A step that waits for its other half, so thin that a long gap between two anchors fits in memory."""

    step: _Step
    shape: tuple[int, ...]
    corner: tuple[int, int]
    values: np.ndarray

    @classmethod
    def of(cls, step: _Step) -> _Folded:
        probability = step.answer.probability
        rows, cols = (np.flatnonzero((probability > FAINT).any(axis=axis)) for axis in (1, 0))
        values = probability[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].astype(np.float16)
        thin = replace(step, answer=step.answer.redrawn(np.zeros((0, 0), np.float32)))
        return cls(thin, probability.shape, (int(rows[0]), int(cols[0])), values)

    def unfolded(self) -> _Step:
        probability = np.zeros(self.shape, np.float32)
        (top, left), (rows, cols) = self.corner, self.values.shape
        probability[top : top + rows, left : left + cols] = self.values
        return replace(self.step, answer=self.step.answer.redrawn(probability))


def _confidence(answer: SoftMask, quality: float | None, agreement: float) -> float:
    """See `PropagatedMask`; without a predicted IoU the probability counts twice. 0 for an empty mask."""
    mask = answer.mask
    sure = float(answer.probability[mask].mean()) if mask.any() else 0.0
    return float(sure * (sure if quality is None else quality) * agreement**0.25)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks that are not both empty."""
    return float(np.count_nonzero(first & second) / np.count_nonzero(first | second))


def _carried(answer: Any) -> Any:
    """The answer as a hint for another plane: a closer look belongs to the plane on which it was taken."""
    return replace(answer, look=None) if getattr(answer, "look", None) is not None else answer
