"""One object carried through many planes: from the planes where it is known to their neighbours, one by one.

Each plane is asked with two hints from the plane before it: the mask found there, and a click at the place
deepest inside that mask where both images look alike. The walk ends where the object does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import edt
import numpy as np
from scipy.ndimage import gaussian_filter

from napari_lowlat_seg.prompts import Click, Prompt
from napari_lowlat_seg.volume import Plane, Volume, to_uint8

LEAST_OVERLAP = 0.3
"""The object has ended, or the answer is another object, when its IoU with the plane before is below this."""

LIKENESS = 3.0
"""The object has ended, too, when its mean brightness leaves that on the anchor by more than so many of the
anchor's standard deviations and `LEAST_CHANGE`: a mask that finds no edge any more creeps on for ever."""

LEAST_CHANGE = 10.0
"""Gray levels of 255 that the mean brightness may always change."""

BLUR = 2.0
"""Pixels (standard deviation) over which two planes are compared: noise differs, structures do not."""


class Answer(Protocol):
    """What is known of the object on one plane."""

    @property
    def mask(self) -> np.ndarray: ...


A = TypeVar("A", bound=Answer)


class Engine(Protocol[A]):
    """What propagation needs of a predictor."""

    def embed(
        self, image: np.ndarray, window: tuple[float, float] | None, spacing: tuple[float, float]
    ) -> Any: ...

    def predict(self, embedding: Any, prompts: Sequence[Prompt], previous: A | None) -> A: ...


def embed_plane(predictor: Engine[Any], volume: Volume, plane: Plane) -> Any:
    """The embedding of one plane, with the volume's intensity window and the plane's spacing."""
    return predictor.embed(volume.plane(plane), volume.window, volume.plane_spacing(plane))


def propagate(
    predictor: Engine[A],
    volume: Volume,
    anchors: Mapping[Plane, A],
    planes: Sequence[Plane],
    *,
    embed: Callable[[Plane], Any] | None = None,
    least_overlap: float = LEAST_OVERLAP,
) -> Iterator[tuple[Plane, A]]:
    """Each plane to which the object could be carried, with its answer; the anchors are not repeated.

    From every anchor the object walks in both directions: to the end of `planes`, or half-way to the next
    anchor. A walk stops where the overlap with the plane before falls below `least_overlap`, empty masks
    included, where the object is no longer as bright as on the anchor (`LIKENESS`), and before a plane
    without a finite pixel. The generator may be closed after any plane. Nothing given is changed.

    Parameters
    ----------
    predictor
        Answers for the planes; see `Engine`.
    volume
        The planes' pixels. Give it a window (`Volume.with_window`), or each plane is stretched by itself.
    anchors
        The answers on the planes where the user has given prompts. Empty masks among them are walls.
    planes
        The range to fill, in spatial order, anchors included.
    embed
        Gives the embedding of a plane, for callers that keep embeddings; `embed_plane` by default.
    least_overlap
        IoU of neighbouring planes, 0 to 1.

    Raises
    ------
    ValueError
        When called, if there is no anchor or one is not among the planes.
    """
    places = sorted(planes.index(anchor) for anchor in anchors if anchor in planes)
    if not places or len(places) < len(anchors):
        raise ValueError(
            f"propagation needs at least one plane with an answer, and all of them in its range of "
            f"{len(planes)} planes; got {len(places)} of {len(anchors)} inside"
        )
    make = embed or (lambda plane: embed_plane(predictor, volume, plane))
    walk = _Walk(predictor, volume, make, least_overlap)
    routes = [_routes(places, i, len(planes)) for i in range(len(places))]
    return (
        found
        for place, pair in zip(places, routes)
        for route in pair
        for found in walk.along([planes[i] for i in route], planes[place], anchors[planes[place]])
    )


def _routes(places: list[int], i: int, count: int) -> tuple[range, range]:
    """Forwards and backwards from anchor i: to the end, or half-way to its neighbour."""
    place = places[i]
    last = (place + places[i + 1]) // 2 if i + 1 < len(places) else count - 1
    first = (places[i - 1] + place) // 2 + 1 if i > 0 else 0
    return range(place + 1, last + 1), range(place - 1, first - 1, -1)


@dataclass(frozen=True)
class _Walk:
    predictor: Engine[Any]
    volume: Volume
    embed: Callable[[Plane], Any]
    least_overlap: float

    def along(self, route: Sequence[Plane], start: Plane, answer: Any) -> Iterator[tuple[Plane, Any]]:
        if not answer.mask.any():
            return
        before = self._gray(start)
        inside = before[answer.mask]
        usual, change = float(inside.mean()), LIKENESS * float(inside.std()) + LEAST_CHANGE
        for plane in route:
            if not self._visible(plane):
                return
            here = self._gray(plane)
            click = Click(seed(answer.mask, before, here, self.volume.plane_spacing(plane)))
            following = self.predictor.predict(self.embed(plane), [click], _carried(answer))
            if not following.mask.any() or _overlap(answer.mask, following.mask) < self.least_overlap:
                return
            if abs(float(here[following.mask].mean()) - usual) > change:
                return
            yield plane, following
            answer, before = following, here

    def _visible(self, plane: Plane) -> bool:
        """Whether there is anything to see: planes without a finite pixel exist in registered stacks."""
        pixels = self.volume.plane(plane)
        return pixels.dtype.kind != "f" or bool(np.isfinite(pixels).any())

    def _gray(self, plane: Plane) -> np.ndarray:
        pixels = to_uint8(self.volume.plane(plane), self.volume.window).astype(np.float32)
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


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks that are not both empty."""
    return float(np.count_nonzero(first & second) / np.count_nonzero(first | second))


def _carried(answer: Any) -> Any:
    """The answer as a hint for another plane: a closer look belongs to the plane on which it was taken."""
    return replace(answer, look=None) if getattr(answer, "look", None) is not None else answer
