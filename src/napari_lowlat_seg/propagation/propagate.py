"""Objects propagated through many planes, from the planes where they are known: one object or many at once.

All objects advance together, up and down the planes like the calls of an elevator, so that an embedding is
made once per passage and not once per object. What happens to one object is `sweep`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, TypedDict, Unpack

import edt
import numpy as np

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.requests import PropagationRequest, never
from napari_lowlat_seg.core.volume import Plane, PlaneReader, to_gray
from napari_lowlat_seg.propagation.interpolate import interpolate
from napari_lowlat_seg.propagation.neighbours import iou
from napari_lowlat_seg.propagation.sweep import (
    M,
    MaskPredictor,
    PropagatedMask,
    RefusedPlane,
    Sweep,
    embed_plane,
    without_looks,
)

REFUSED_SHARE = 0.5
"""A plane that a sweep left without a mask is as doubtful as this share of the pixels of the mask before it,
times the object's presence: docs/decisions/memory.md."""

DOUBT = 0.2
"""A pixel is in doubt when its probability is farther than this from both 0 and 1."""

GRAY_PLANES = 3
"""Planes whose gray levels are kept for the objects that come to them: one, and its neighbours."""


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
        IoU of the masks on neighbouring planes, 0 to 1, below which the object has ended; 0.3 by default. If
        it is given, no memory of other planes is used, which knows by itself where an object ends.
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
    """Yield the object on each plane that it reaches; anchors are repeated for a note only. Does not mutate.

    The default model has a memory of other planes, which recognises the object; with other models each
    plane is predicted from the plane before alone. From the outermost anchors the object is followed to the
    ends of `planes`. Between two anchors it is followed from both sides, and each plane comes twice: first
    as predicted from the earlier anchor (`final` is False), then for good. The object ends where the memory
    does not find it on two planes in a row; without a memory where its mask overlaps too little with the
    one on the plane before, is empty, or is no longer as bright as on the anchor. Up to three damaged
    planes in a row (no finite pixel, blank, or one that is shifted) are stepped over. The last plane comes
    once more with a `note` that says why the object ends there, `final` False; so does the plane before
    those stepped over.

    Planes are read, and the work for them is done, when they are asked for, in the caller's thread; only with
    OpenVINO the next two are read and embedded while you use one. The generator may be closed at any time.

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
    """Yield (object, mask) for each object and plane; what `propagate` gives for one object.

    One object is propagated by a memory of other planes if the predictor has one, which sees every plane
    through a crop around that object. Several objects share the embeddings of whole planes instead.

    `objects` maps the number of an object to its anchors, all of which lie in `planes`. Other parameters and
    errors are those of `propagate`.
    """
    with_memory = getattr(predictor, "with_memory", None)
    if len(objects) == 1 and with_memory is not None and "min_overlap" not in options:
        ((number, anchors),) = objects.items()
        steps = with_memory(
            volume, dict(anchors), planes, options.get("changed"), options.get("cancelled", never)
        )
        if steps is not None:
            return ((number, step) for step in steps)
    embed = options.get("embed") or partial(embed_plane, predictor, volume)
    options["embed"] = lru_cache(maxsize=1)(embed)
    gray = lru_cache(maxsize=GRAY_PLANES)(partial(_gray, volume))
    steps = {
        number: Sweep(predictor, volume, dict(anchors), planes, gray=gray, **options).steps()
        for number, anchors in objects.items()
    }
    return _elevator(steps, {plane: place for place, plane in enumerate(planes)})


def _gray(volume: PlaneReader, plane: Plane) -> np.ndarray:
    return to_gray(volume.plane(plane), volume.window)


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
            prediction = without_looks(predictor.predict(embedding, [prompt], None))
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


def most_doubtful(masks: Iterable[tuple[Plane, float, int]], refused: Iterable[RefusedPlane]) -> Plane | None:
    """The plane where a correction is likely to matter most; the first of equal ones, None without any.

    It is the one on which most pixels are likely to be wrong: a mask's pixels times what its confidence
    lacks, or `REFUSED_SHARE` of the pixels that would be missed.

    Parameters
    ----------
    masks
        (plane, confidence from 0 to 1, pixels) of propagated masks. An empty mask counts as one pixel.
    refused
        Planes that sweeps left without a mask; those that have one do not count.
    """
    wrong = {plane: (1 - confidence) * max(1, pixels) for plane, confidence, pixels in masks}
    missed: dict[Plane, float] = {}
    for one in refused:
        if one.plane not in wrong:
            missed[one.plane] = max(missed.get(one.plane, 0.0), REFUSED_SHARE * one.presence * one.pixels)
    doubt = wrong | missed
    return max(doubt, key=lambda plane: doubt[plane], default=None)


def doubtful_point(probability: np.ndarray) -> tuple[int, int] | None:
    """(row, col) deepest inside the part of a mask, (H, W) in [0, 1], that is neither sure nor ruled out.

    None if no pixel has a probability between `DOUBT` and 1 - `DOUBT`.

    >>> soft = np.zeros((9, 9), np.float32)
    >>> soft[1:8, 1:8] = 0.5
    >>> doubtful_point(soft)
    (4, 4)
    """
    doubtful = (probability > DOUBT) & (probability < 1 - DOUBT)
    if not doubtful.any():
        return None
    depth = edt.edt(np.ascontiguousarray(doubtful), black_border=True, parallel=1)
    row, col = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return int(row), int(col)
