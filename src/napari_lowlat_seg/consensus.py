"""One object carried along all three axes: what most of them say, and where they disagree.

A click in a volume lies on three planes. Carried along each of the three axes the object is seen by three
observers who drift differently, and where they disagree somebody should look. Only the boxes around the
object are kept, never three volumes. How they vote and when it pays: docs/decisions/propagation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_lowlat_seg.many_objects import object_anchors, propagate_many
from napari_lowlat_seg.prompts import Click
from napari_lowlat_seg.propagate import FAINT, Engine
from napari_lowlat_seg.region import Region, cut, region_of
from napari_lowlat_seg.volume import Plane, Volume

AXES = 3

Voxel = tuple[int, int, int]
Point = Sequence[float]


@dataclass(frozen=True, eq=False)
class Solid:
    """Part of a volume: the first voxel of a box, and (a, b, c) float16 probabilities in it; 0 outside."""

    corner: Voxel
    probability: np.ndarray


def carried_along(
    predictor: Engine[Any], volume: Volume, objects: Mapping[int, Sequence[Point]], axis: int
) -> dict[int, Solid]:
    """What a walk along one axis finds of each object; objects of which it finds nothing are left out.

    Parameters
    ----------
    volume
        Three spatial axes. Give it a window (`Volume.with_window`), or each plane is stretched by itself.
    objects
        Points (one number per axis, pixel centres on integers) by the number of their object.

    Raises
    ------
    ValueError
        For a point with another number of coordinates, or outside the volume.
    """
    planes = volume.planes(axis)
    row, col = planes[0].axes
    groups: dict[Region, dict[int, Sequence[Point]]] = {}
    for number, points in objects.items():
        clicks = [Click((point[row], point[col])) for point in points]
        groups.setdefault(region_of(volume.sides(planes[0]), clicks), {})[number] = points
    pieces: dict[int, list[Solid]] = {}
    for region, group in groups.items():
        part = cut(volume, region, planes[0])
        offset = np.zeros(volume.ndim)
        offset[[row, col]] = region.corner
        moved = {n: [tuple(np.subtract(point, offset)) for point in points] for n, points in group.items()}
        anchors = object_anchors(predictor, part, moved, axis)
        for number, one in anchors.items():
            pieces[number] = [_piece(plane, answer.probability, region) for plane, answer in one.items()]
        for number, step in propagate_many(predictor, part, anchors, part.planes(axis)):
            if step.final:
                pieces[number].append(_piece(step.plane, step.answer.probability, region))
    found = {number: [piece for piece in some if piece.probability.size] for number, some in pieces.items()}
    return {number: _joined(some) for number, some in found.items() if some}


def _piece(plane: Plane, probability: np.ndarray, region: Region) -> Solid:
    """One plane of an answer, cut to its box; empty if the answer is."""
    seen = probability > FAINT
    rows, cols = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if len(rows) == 0:
        return Solid((0, 0, 0), np.zeros((0, 0, 0), np.float16))
    values = probability[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].astype(np.float16)
    across = next(axis for axis, at in enumerate(plane.index) if at is not None)
    corner = [region.top + int(rows[0]), region.left + int(cols[0])]
    corner.insert(across, plane.position)
    return Solid((corner[0], corner[1], corner[2]), np.expand_dims(values, across))


def _joined(pieces: Sequence[Solid]) -> Solid:
    """Pieces that do not overlap, in one box."""
    low = np.min([piece.corner for piece in pieces], axis=0)
    high = np.max([np.add(piece.corner, piece.probability.shape) for piece in pieces], axis=0)
    whole = np.zeros(high - low, np.float16)
    for piece in pieces:
        whole[_within(low, piece)] = piece.probability
    return Solid((int(low[0]), int(low[1]), int(low[2])), whole)


def _within(corner: Sequence[int] | np.ndarray, piece: Solid) -> tuple[slice, ...]:
    starts = np.subtract(piece.corner, corner)
    return tuple(slice(int(a), int(a) + n) for a, n in zip(starts, piece.probability.shape, strict=True))
