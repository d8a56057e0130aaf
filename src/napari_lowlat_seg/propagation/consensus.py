"""One object carried along all three axes: what they agree on, and where they do not.

A click in a volume lies on three planes. Carried along each of the three axes the object is seen by three
observers who drift differently, and where they disagree somebody should look. Only the boxes around the
object are kept, never three volumes. How they vote and when it pays: docs/decisions/propagation.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import edt
import numpy as np
from scipy.ndimage import binary_opening, find_objects, label

from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.tiles import crop, tile_of
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.propagation.propagate import propagate_many
from napari_lowlat_seg.propagation.seeds import object_anchors
from napari_lowlat_seg.propagation.sweep import MaskPredictor

AXES = 3

MAJORITY = 2
"""A voxel belongs to the object when so many of the three axes see it there."""

Voxel = tuple[int, int, int]
Point = Sequence[float]


@dataclass(frozen=True, eq=False)
class Solid:
    """Part of a volume: the first voxel of a box, and (a, b, c) bool in it; False outside."""

    corner: Voxel
    mask: np.ndarray


@dataclass(frozen=True)
class Spot:
    """A place where the axes disagree.

    Attributes
    ----------
    position
        The voxel deepest inside: the place to look at.
    voxels
        How many are disputed there by the same axes, the skin that is two voxels thin or less left out.
    claimed_by
        The axes that see the object there; the others do not.
    """

    position: Voxel
    voxels: int
    claimed_by: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Consensus:
    """What three walks say of one object.

    Attributes
    ----------
    corner
        The first voxel of the box that holds all they say.
    claims
        (3, a, b, c) bool: the object as each walk sees it, by the axis walked along, inside the box.
    """

    corner: Voxel
    claims: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(a, b, c) bool: the object by their vote (`MAJORITY`)."""
        mask: np.ndarray = self.claims.sum(axis=0, dtype=np.uint8) >= MAJORITY
        return mask

    @property
    def agreement(self) -> float:
        """Voxels that all three see, as a share of those that any sees, 0 to 1; 1 where nobody sees any."""
        seen = int(np.count_nonzero(self.claims.any(axis=0)))
        return int(np.count_nonzero(self.claims.all(axis=0))) / seen if seen else 1.0

    def spots(self, spacing: Sequence[float] | None = None) -> list[Spot]:
        """Where they disagree, the largest place first.

        Walks never agree to the voxel, so a skin of one or two voxels around the object is no dispute: what
        counts is what a cross of seven voxels fits into.
        """
        by = sum(self.claims[axis].astype(np.uint8) << axis for axis in range(AXES))
        everybody = (1 << AXES) - 1
        spots = [spot for some in range(1, everybody) for spot in self._claimed(by == some, some, spacing)]
        return sorted(spots, key=lambda spot: (-spot.voxels, spot.position))

    def _claimed(self, where: np.ndarray, some: int, spacing: Sequence[float] | None) -> Iterator[Spot]:
        """The connected places that the axes of the bits in `some` claim, and only they."""
        claimed = tuple(axis for axis in range(AXES) if some >> axis & 1)
        parts, _ = label(binary_opening(where))
        for number, box in enumerate(find_objects(parts), start=1):
            inside = np.ascontiguousarray(parts[box] == number)
            depth = edt.edt(inside, anisotropy=tuple(spacing or (1.0,) * AXES), black_border=True, parallel=1)
            deepest = np.unravel_index(int(np.argmax(depth)), inside.shape)
            a, b, c = (int(x + y.start + z) for x, y, z in zip(self.corner, box, deepest, strict=True))
            yield Spot((a, b, c), int(np.count_nonzero(inside)), claimed)


def consensus(
    predictor: MaskPredictor[Any], volume: Volume, objects: Mapping[int, Sequence[Point]]
) -> dict[int, Consensus]:
    """Objects carried along all three axes; those of which no walk finds anything are left out.

    Parameters
    ----------
    predictor
        Answers for the planes; see `sweep.MaskPredictor`.
    volume
        Three spatial axes. Give it a window (`Volume.with_window`), or each plane is stretched by itself.
    objects
        Points (one number per axis, pixel centres on integers) by the number of their object. Each point is
        a click on the plane of each axis that it lies on.

    Raises
    ------
    ValueError
        For another number of axes, and for points with another number of coordinates or outside the volume.
    """
    if volume.ndim != AXES:
        raise ValueError(f"a consensus of three axes needs a volume of 3; got shape {volume.shape}")
    walks = [carried_along(predictor, volume, objects, axis) for axis in range(AXES)]
    found = {}
    for number in objects:
        seen = [walk.get(number) for walk in walks]
        if any(seen):
            found[number] = _together(seen)
    return found


def _together(seen: Sequence[Solid | None]) -> Consensus:
    """Three solids in one box; None saw nothing."""
    there = [solid for solid in seen if solid is not None]
    low, high = _bounds(there)
    claims = np.zeros((AXES, *(high - low)), bool)
    for axis, solid in enumerate(seen):
        if solid is not None:
            claims[axis][_within(low, solid)] = solid.mask
    return Consensus((int(low[0]), int(low[1]), int(low[2])), claims)


def carried_along(
    predictor: MaskPredictor[Any], volume: Volume, objects: Mapping[int, Sequence[Point]], axis: int
) -> dict[int, Solid]:
    """What a walk along one axis finds of each object; objects of which it finds nothing are left out.

    Parameters and errors are those of `consensus`.
    """
    planes = volume.planes(axis)
    row, col = planes[0].axes
    groups: dict[BoundingBox, dict[int, Sequence[Point]]] = {}
    for number, points in objects.items():
        clicks = [Click((point[row], point[col])) for point in points]
        groups.setdefault(tile_of(volume.sides(planes[0]), clicks), {})[number] = points
    pieces: dict[int, list[Solid]] = {}
    for region, group in groups.items():
        part = crop(volume, region, planes[0])
        offset = np.zeros(volume.ndim)
        offset[[row, col]] = region.corner
        moved = {n: [tuple(np.subtract(point, offset)) for point in points] for n, points in group.items()}
        anchors = object_anchors(predictor, part, moved, axis)
        for number, one in anchors.items():
            pieces[number] = [_piece(plane, answer.mask, region) for plane, answer in one.items()]
        for number, step in propagate_many(predictor, part, anchors, part.planes(axis)):
            if step.final:
                pieces[number].append(_piece(step.plane, step.prediction.mask, region))
    found = {number: [piece for piece in some if piece.mask.size] for number, some in pieces.items()}
    return {number: _joined(some) for number, some in found.items() if some}


def _piece(plane: Plane, mask: np.ndarray, region: BoundingBox) -> Solid:
    """One plane of an answer, cut to its box; empty if the answer is."""
    part = Patch.of(mask)
    if part.box.is_empty:
        return Solid((0, 0, 0), np.zeros((0, 0, 0), bool))
    across = next(axis for axis, at in enumerate(plane.index) if at is not None)
    corner = list(part.box.shifted(*region.corner).corner)
    corner.insert(across, plane.position)
    return Solid((corner[0], corner[1], corner[2]), np.expand_dims(part.pixels.copy(), across))


def _joined(pieces: Sequence[Solid]) -> Solid:
    """Pieces that do not overlap, in one box."""
    low, high = _bounds(pieces)
    whole = np.zeros(high - low, bool)
    for piece in pieces:
        whole[_within(low, piece)] = piece.mask
    return Solid((int(low[0]), int(low[1]), int(low[2])), whole)


def _bounds(pieces: Sequence[Solid]) -> tuple[np.ndarray, np.ndarray]:
    """The first voxel of a box around all pieces, and the one behind its last."""
    low = np.min([piece.corner for piece in pieces], axis=0)
    high = np.max([np.add(piece.corner, piece.mask.shape) for piece in pieces], axis=0)
    return low, high


def _within(corner: Sequence[int] | np.ndarray, piece: Solid) -> tuple[slice, ...]:
    starts = np.subtract(piece.corner, corner)
    return tuple(slice(int(a), int(a) + n) for a, n in zip(starts, piece.mask.shape, strict=True))
