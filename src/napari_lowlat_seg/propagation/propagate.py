"""Objects propagated through many planes, from the planes where they are known: one object or many at once.

All objects advance together, up and down the planes like the calls of an elevator, so that an embedding is
made once per passage and not once per object. What happens to one object is `sweep`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, TypedDict, Unpack

import numpy as np

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.requests import PropagationRequest
from napari_lowlat_seg.core.volume import Plane, PlaneReader
from napari_lowlat_seg.propagation.interpolate import interpolate
from napari_lowlat_seg.propagation.sweep import M, MaskPredictor, PropagatedMask, Sweep, embed_plane, iou


class PropagationOptions(TypedDict, total=False):
    """What may be given to `propagate` and `propagate_many` by name.

    Attributes
    ----------
    changed
        Planes whose anchor is new, other or gone: only what `sweep.affected` names is propagated again. None,
        the default, for all.
    embed
        Gives the embedding of a plane, for callers that keep embeddings; `embed_plane` by default.
    min_overlap
        IoU of the masks on neighbouring planes, 0 to 1, below which the object has ended; 0.3 by default.
    cancelled
        Called before and after each embedding; when it returns True, nothing more is yielded.
    """

    changed: Iterable[Plane] | None
    embed: Callable[[Plane], Any]
    min_overlap: float
    cancelled: Callable[[], bool]


def propagate(
    predictor: MaskPredictor[M],
    volume: PlaneReader,
    anchors: Mapping[Plane, M],
    planes: Sequence[Plane],
    **options: Unpack[PropagationOptions],
) -> Iterator[PropagatedMask[M]]:
    """Yield the object on each plane that it reaches; the anchors are not repeated. Does not mutate.

    From the outermost anchors the object is followed to the ends of `planes`. Between two anchors it is
    followed from both sides, and each plane comes twice: first as predicted from the earlier anchor (`final`
    is False), then for good. The object ends where its mask overlaps too little with the one on the plane
    before, is empty, or is no longer as bright as on the anchor, and before a plane without a finite pixel.

    The work for a plane is done when the plane is asked for, in the caller's thread; the generator may be
    closed after any plane.

    Parameters
    ----------
    predictor
        `Predictor`, or anything with its `embed` and `predict`.
    volume
        The planes' pixels. Give it one intensity window (`Volume.with_window`), or each plane gets a window
        of its own.
    anchors
        The predictions on the planes where the user has given prompts. An empty mask says that the object is
        not there: it is followed half-way to that plane.
    planes
        The range to fill, in spatial order, anchors included.
    **options
        See `PropagationOptions`.

    Raises
    ------
    ValueError
        When called, if there is no anchor or one is not among the planes.

    Examples
    --------
    >>> volume = Volume(stack).with_window()  # doctest: +SKIP
    >>> plane = volume.planes()[20]  # doctest: +SKIP
    >>> prediction = predictor.predict(predictor.embed(stack[20]), [Click((120, 88))])  # doctest: +SKIP
    >>> for found in propagate(predictor, volume, {plane: prediction}, volume.planes()):  # doctest: +SKIP
    ...     labels[found.plane.key()] = found.prediction.mask
    """
    return (found for _, found in propagate_many(predictor, volume, {1: anchors}, planes, **options))


def propagate_many(
    predictor: MaskPredictor[M],
    volume: PlaneReader,
    objects: Mapping[int, Mapping[Plane, M]],
    planes: Sequence[Plane],
    **options: Unpack[PropagationOptions],
) -> Iterator[tuple[int, PropagatedMask[M]]]:
    """Yield (object, mask) for each object and plane, as `propagate` would give each object alone.

    `objects` maps the number of an object to its anchors, all of which lie in `planes`. Other parameters and
    errors are those of `propagate`.
    """
    embed = options.get("embed") or partial(embed_plane, predictor, volume)
    options["embed"] = lru_cache(maxsize=1)(embed)
    steps = {
        number: Sweep(predictor, volume, dict(anchors), planes, **options).steps()
        for number, anchors in objects.items()
    }
    return _elevator(steps, {plane: place for place, plane in enumerate(planes)})


def _elevator(
    steps: dict[int, Iterator[Plane | PropagatedMask[Any]]], places: dict[Plane, int]
) -> Iterator[tuple[int, PropagatedMask[Any]]]:
    """Go to the nearest plane ahead at which objects wait; turn round where none waits ahead."""
    waiting: dict[int, int] = {}
    for number in steps:
        yield from _until_next_plane(number, steps[number], places, waiting)
    here, direction = 0, 1
    while waiting:
        ahead = [place for place in waiting.values() if (place - here) * direction >= 0]
        if not ahead:
            direction = -direction
            continue
        here = min(ahead, key=lambda place: (place - here) * direction)
        for number in [n for n, place in waiting.items() if place == here]:
            yield from _until_next_plane(number, steps[number], places, waiting)


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


def run_propagation(
    predictor: MaskPredictor[SoftMask],
    reader: PlaneReader,
    request: PropagationRequest,
    embed: Callable[[Plane], Any],
    cancelled: Callable[[], bool],
) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
    """Yield (object, mask) for every plane that the objects of a request reach; seeds come first.

    A seed's own plane has the confidence 1. Parameters and errors are those of `propagate`.
    """
    if request.shapes:
        yield from _interpolated(reader, request, cancelled)
        return
    anchors = {number: dict(known) for number, known in request.anchors.items()}
    for plane, prompts in _prompts_by_plane(request.seeds).items():
        embedding = embed(plane)
        for number, prompt in prompts.items():
            prediction = predictor.predict(embedding, [prompt], None)
            anchors[number] = {plane: prediction}
            yield number, PropagatedMask(plane, prediction, 1.0)
    yield from propagate_many(
        predictor,
        reader,
        anchors,
        request.planes,
        changed=request.changed,
        embed=embed,
        cancelled=cancelled,
    )


def _interpolated(
    reader: PlaneReader, request: PropagationRequest, cancelled: Callable[[], bool]
) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
    """Shapes interpolated between masks; the confidence is the IoU of the two masks beside a plane."""
    for number, known in request.anchors.items():
        masks = {plane: soft_mask.mask for plane, soft_mask in known.items()}
        spacing = reader.plane_spacing(request.planes[0])
        ends = [plane for plane in request.planes if plane in masks]
        agreement = {pair: iou(masks[pair[0]], masks[pair[1]]) for pair in pairwise(ends)}
        places = {plane: place for place, plane in enumerate(request.planes)}
        for plane, mask in interpolate(masks, request.planes, spacing):
            if cancelled():
                return
            pair = next((a, b) for a, b in agreement if places[a] < places[plane] < places[b])
            yield number, PropagatedMask(plane, SoftMask.from_mask(mask), agreement[pair])


def _prompts_by_plane(seeds: Mapping[int, tuple[Plane, Prompt]]) -> dict[Plane, dict[int, Prompt]]:
    prompts: dict[Plane, dict[int, Prompt]] = {}
    for number, (plane, prompt) in seeds.items():
        prompts.setdefault(plane, {})[number] = prompt
    return prompts


def most_uncertain(propagated: Iterable[PropagatedMask[Any]]) -> Plane | None:
    """The plane where a correction is likely to matter most, by `uncertainty`; the first of equal ones.

    Masks that are not final do not count. None if nothing is left.
    """
    final = [found for found in propagated if found.final]
    if not final:
        return None
    values = [uncertainty(found.confidence, int(found.prediction.mask.sum())) for found in final]
    return final[int(np.argmax(values))].plane


def uncertainty(confidence: float, pixels: int) -> float:
    """Expected number of wrong pixels of a mask with this confidence, 0 to 1; an empty mask counts as 1."""
    return (1 - confidence) * max(1, pixels)
