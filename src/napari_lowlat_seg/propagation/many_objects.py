"""Many objects carried through a volume in one go: every plane is embedded once, whoever needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.requests import PropagationRequest
from napari_lowlat_seg.core.volume import Pictures, Plane, Volume
from napari_lowlat_seg.propagation.interpolate import interpolate
from napari_lowlat_seg.propagation.propagate import (
    LEAST_OVERLAP,
    A,
    Engine,
    PropagatedMask,
    embed_plane,
    overlap,
    propagate,
    propagate_stepwise,
)


def seed_anchors(
    predictor: Engine[A],
    volume: Volume,
    points: Sequence[Sequence[float]],
    axis: int = 0,
    *,
    embed: Callable[[Plane], Any] | None = None,
) -> dict[int, dict[Plane, A]]:
    """Every point as an object of its own: its number, from 1, and its answer on the plane of the point.

    Parameters
    ----------
    points
        One number per spatial axis of the volume, pixel centres on integers.
    axis
        Along which the objects will be carried.
    embed
        Gives the embedding of a plane; `embed_plane` by default, once for all points of a plane.

    Raises
    ------
    ValueError
        For a point with another number of coordinates, or outside the volume.
    """
    objects = {number: (point,) for number, point in enumerate(points, start=1)}
    return object_anchors(predictor, volume, objects, axis, embed=embed)


def object_anchors(
    predictor: Engine[A],
    volume: Volume,
    objects: Mapping[int, Sequence[Sequence[float]]],
    axis: int = 0,
    *,
    embed: Callable[[Plane], Any] | None = None,
) -> dict[int, dict[Plane, A]]:
    """The answers of objects on the planes of their points; all points of an object on a plane ask together.

    `objects` maps the number of an object to its points; else as `seed_anchors`.
    """
    make = embed or (lambda plane: embed_plane(predictor, volume, plane))
    placed: dict[Plane, dict[int, list[Click]]] = {}
    for number, points in objects.items():
        for point in points:
            plane, click = _placed(volume, point, axis)
            placed.setdefault(plane, {}).setdefault(number, []).append(click)
    anchors: dict[int, dict[Plane, A]] = {}
    for plane, asked in placed.items():
        embedding = make(plane)
        for number, clicks in asked.items():
            anchors.setdefault(number, {})[plane] = predictor.predict(embedding, clicks, None)
    return dict(sorted(anchors.items()))


def _placed(volume: Volume, point: Sequence[float], axis: int) -> tuple[Plane, Click]:
    if len(point) != volume.ndim or not all(
        -0.5 <= x <= n - 0.5 for x, n in zip(point, volume.shape, strict=True)
    ):
        raise ValueError(
            f"a seed needs {volume.ndim} coordinates inside a volume of {volume.shape}; got {tuple(point)}"
        )
    whole = [min(max(round(x), 0), n - 1) for x, n in zip(point, volume.shape, strict=True)]
    row, col = volume.planes(axis)[0].axes
    walked = [x for a, x in enumerate(whole) if a not in (row, col)]
    return volume.plane_at(walked, axis), Click((point[row], point[col]))


def propagate_many(
    predictor: Engine[A],
    volume: Pictures,
    objects: Mapping[int, Mapping[Plane, A]],
    planes: Sequence[Plane],
    *,
    embed: Callable[[Plane], Any] | None = None,
    least_overlap: float = LEAST_OVERLAP,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, PropagatedMask[A]]]:
    """(object, carried) for each object and plane, as `propagate` would carry each alone.

    All objects advance together, up and down the planes like a lift, so that an embedding is made once per
    passage, not once per object. Parameters and errors are those of `propagate`; `objects` maps the number of
    an object to its anchors, all of which lie in `planes`.
    """
    lift = _Lift(embed or (lambda plane: embed_plane(predictor, volume, plane)))
    journeys = {
        number: propagate_stepwise(
            predictor,
            volume,
            anchors,
            planes,
            embed=lift.embed,
            least_overlap=least_overlap,
            cancelled=cancelled,
        )
        for number, anchors in objects.items()
    }
    return _sweep(journeys, {plane: place for place, plane in enumerate(planes)})


def _sweep(
    journeys: dict[int, Iterator[Plane | PropagatedMask[Any]]], places: dict[Plane, int]
) -> Iterator[tuple[int, PropagatedMask[Any]]]:
    """Serve whoever waits at the nearest plane ahead; turn round where nobody waits ahead."""
    waiting: dict[int, int] = {}
    for number, steps in journeys.items():
        yield from _until_next_plane(number, steps, places, waiting)
    here, direction = 0, 1
    while waiting:
        ahead = [place for place in waiting.values() if (place - here) * direction >= 0]
        if not ahead:
            direction = -direction
            continue
        here = min(ahead, key=lambda place: (place - here) * direction)
        for number in [n for n, place in waiting.items() if place == here]:
            yield from _until_next_plane(number, journeys[number], places, waiting)


def _until_next_plane(
    number: int,
    steps: Iterator[Plane | PropagatedMask[Any]],
    places: dict[Plane, int],
    waiting: dict[int, int],
) -> Iterator[tuple[int, PropagatedMask[Any]]]:
    """What one object finds, until it names the next plane; then it waits there."""
    waiting.pop(number, None)
    for step in steps:
        if isinstance(step, Plane):
            waiting[number] = places[step]
            return
        yield number, step


class _Lift:
    """The embedding of the plane where the objects are."""

    def __init__(self, make: Callable[[Plane], Any]) -> None:
        self._make = make
        self._at: tuple[Plane, Any] | None = None

    def embed(self, plane: Plane) -> Any:
        if self._at is None or self._at[0] != plane:
            self._at = (plane, self._make(plane))
        return self._at[1]


def run_propagation(
    engine: Engine[SoftMask],
    pictures: Pictures,
    walk: PropagationRequest,
    embed: Callable[[Plane], Any],
    cancelled: Callable[[], bool],
) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
    """(object, where it was found) for every plane of a walk, as they come; seeds are answered first.

    Parameters are those of `propagate.propagate`, whose errors it raises.
    """
    if walk.shapes:
        yield from _mixed(pictures, walk, cancelled)
        return
    anchors = {number: dict(known) for number, known in walk.anchors.items()}
    for plane, numbers in _by_plane(walk.seeds).items():
        embedding = embed(plane)
        for number in numbers:
            answer = engine.predict(embedding, [walk.seeds[number][1]], None)
            anchors[number] = {plane: answer}
            yield number, PropagatedMask(plane, answer, 1.0)
    if len(anchors) == 1:
        ((number, known),) = anchors.items()
        steps = propagate(
            engine, pictures, known, walk.planes, changed=walk.changed, embed=embed, cancelled=cancelled
        )
        for step in steps:
            yield number, step
    elif anchors:
        yield from propagate_many(engine, pictures, anchors, walk.planes, embed=embed, cancelled=cancelled)


def _mixed(
    pictures: Pictures, walk: PropagationRequest, cancelled: Callable[[], bool]
) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
    """Shapes between shapes; as sure of each as the two outlines beside it agree with each other."""
    for number, known in walk.anchors.items():
        masks = {plane: answer.mask for plane, answer in known.items()}
        spacing = pictures.plane_spacing(walk.planes[0])
        ends = [plane for plane in walk.planes if plane in masks]
        sure = {pair: overlap(masks[pair[0]], masks[pair[1]]) for pair in pairwise(ends)}
        places = {plane: place for place, plane in enumerate(walk.planes)}
        for plane, mask in interpolate(masks, walk.planes, spacing):
            if cancelled():
                return
            pair = next((a, b) for a, b in sure if places[a] < places[plane] < places[b])
            yield number, PropagatedMask(plane, SoftMask.from_mask(mask), sure[pair])


def _by_plane(seeds: Mapping[int, tuple[Plane, Prompt]]) -> dict[Plane, list[int]]:
    found: dict[Plane, list[int]] = {}
    for number, (plane, _) in seeds.items():
        found.setdefault(plane, []).append(number)
    return found
