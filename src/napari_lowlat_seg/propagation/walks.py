"""Propagation as a request: what is carried where, frozen, so that it may travel to another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from napari_lowlat_seg.core.masks import Answer
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import Pictures, Plane
from napari_lowlat_seg.propagation.interpolate import interpolate
from napari_lowlat_seg.propagation.many_objects import propagate_many
from napari_lowlat_seg.propagation.propagate import Carried, Engine, overlap, propagate


@dataclass(frozen=True, eq=False)
class Walk:
    """Objects to be carried through planes.

    Attributes
    ----------
    planes
        The range, in spatial order.
    anchors
        By object: the answers on the planes where it is known. They may be empty for an object of `seeds`.
    seeds
        By object: a plane and the prompt on it that begins the object.
    changed
        As `propagate` has it; for one object only.
    shapes
        Whether shapes are mixed between the anchors instead, without the network; see `interpolate`.
    """

    planes: tuple[Plane, ...]
    anchors: Mapping[int, Mapping[Plane, Answer]] = field(default_factory=dict)
    seeds: Mapping[int, tuple[Plane, Prompt]] = field(default_factory=dict)
    changed: tuple[Plane, ...] | None = None
    shapes: bool = False


def walked(
    engine: Engine[Answer],
    pictures: Pictures,
    walk: Walk,
    embed: Callable[[Plane], Any],
    cancelled: Callable[[], bool],
) -> Iterator[tuple[int, Carried[Answer]]]:
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
            yield number, Carried(plane, answer, 1.0)
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
    pictures: Pictures, walk: Walk, cancelled: Callable[[], bool]
) -> Iterator[tuple[int, Carried[Answer]]]:
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
            yield number, Carried(plane, Answer.from_mask(mask), sure[pair])


def _by_plane(seeds: Mapping[int, tuple[Plane, Prompt]]) -> dict[Plane, list[int]]:
    found: dict[Plane, list[int]] = {}
    for number, (plane, _) in seeds.items():
        found.setdefault(plane, []).append(number)
    return found
