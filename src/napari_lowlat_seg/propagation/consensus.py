"""One object propagated along all three axes: what they agree on, and where they disagree.

A click in a volume lies on three planes, one across each axis. Propagated along each of the three axes, the
object drifts differently, and where the three masks disagree a person should look. Only boxes around the
objects are kept, never whole volumes. How they vote and when it pays: docs/decisions/propagation.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import edt
import numpy as np
from scipy.ndimage import binary_opening, find_objects, label

from napari_lowlat_seg.core.boxes import BoundingBox, Patch, tile_of
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.propagation.propagate import propagate_many
from napari_lowlat_seg.propagation.seeds import object_anchors
from napari_lowlat_seg.propagation.sweep import MaskPredictor

AXES = 3

MAJORITY = 2
"""A voxel belongs to the object when it was found along this many of the three axes."""

Voxel = tuple[int, int, int]
Point = Sequence[float]


@dataclass(frozen=True, eq=False)
class VoxelMask:
    """The part of a volume where an object is.

    Attributes
    ----------
    corner
        The first voxel of a box.
    mask
        (a, b, c) bool inside the box; outside of it all is False.
    """

    corner: Voxel
    mask: np.ndarray


@dataclass(frozen=True)
class Disagreement:
    """A place where the axes disagree.

    Attributes
    ----------
    position
        The voxel deepest inside: the place to look at.
    voxels
        Its size, without the skin around it that is at most two voxels thin.
    found_along
        The axes along which the object was found there; along the others it was not.
    """

    position: Voxel
    voxels: int
    found_along: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Consensus:
    """One object as found along each of the three axes.

    Attributes
    ----------
    corner
        The first voxel of the box around all three masks.
    votes
        (3, a, b, c) bool: the object inside the box, by the axis along which it was propagated.
    """

    corner: Voxel
    votes: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(a, b, c) bool: voxels found along at least `MAJORITY` axes."""
        mask: np.ndarray = self.votes.sum(axis=0, dtype=np.uint8) >= MAJORITY
        return mask

    def disagreements(self, spacing: Sequence[float] | None = None) -> list[Disagreement]:
        """Where the axes disagree, the largest place first.

        Masks from different axes never agree to the voxel. A skin of one or two voxels around the object does
        not count: only voxels that a cross of seven covers do.

        Parameters
        ----------
        spacing
            World units per voxel along each axis, in which depth is measured; None for equal sides.
        """
        bits = sum(self.votes[axis].astype(np.uint8) << axis for axis in range(AXES))
        places = [place for some in range(1, (1 << AXES) - 1) for place in self._places(bits, some, spacing)]
        return sorted(places, key=lambda place: (-place.voxels, place.position))

    def _places(self, bits: np.ndarray, some: int, spacing: Sequence[float] | None) -> Iterator[Disagreement]:
        """The connected places found along exactly the axes whose bits are set in `some`."""
        axes = tuple(axis for axis in range(AXES) if some >> axis & 1)
        parts, _ = label(binary_opening(bits == some))
        for number, box in enumerate(find_objects(parts), start=1):
            inside = np.ascontiguousarray(parts[box] == number)
            depth = edt.edt(inside, anisotropy=tuple(spacing or (1.0,) * AXES), black_border=True, parallel=1)
            deepest = np.unravel_index(int(np.argmax(depth)), inside.shape)
            a, b, c = (int(x + y.start + z) for x, y, z in zip(self.corner, box, deepest, strict=True))
            yield Disagreement((a, b, c), int(np.count_nonzero(inside)), axes)


def consensus(
    predictor: MaskPredictor[Any], volume: Volume, objects: Mapping[int, Sequence[Point]]
) -> dict[int, Consensus]:
    """Objects propagated along all three axes; an object that is found along none is left out.

    Parameters
    ----------
    predictor
        `Predictor`, or anything with its `embed` and `predict`.
    volume
        Three spatial axes. Give it a window (`Volume.with_window`), or each plane gets its own.
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
    by_axis = [propagate_along(predictor, volume, objects, axis) for axis in range(AXES)]
    found = {}
    for number in objects:
        masks = [of_axis.get(number) for of_axis in by_axis]
        if any(masks):
            found[number] = _together(masks)
    return found


def _together(masks: Sequence[VoxelMask | None]) -> Consensus:
    """Three masks in one box; None is an empty mask."""
    low, high = _bounds([mask for mask in masks if mask is not None])
    votes = np.zeros((AXES, *(high - low)), bool)
    for axis, mask in enumerate(masks):
        if mask is not None:
            votes[axis][_within(low, mask)] = mask.mask
    return Consensus((int(low[0]), int(low[1]), int(low[2])), votes)


def propagate_along(
    predictor: MaskPredictor[Any], volume: Volume, objects: Mapping[int, Sequence[Point]], axis: int
) -> dict[int, VoxelMask]:
    """Objects propagated along one axis; an object that is not found is left out.

    Parameters and errors are those of `consensus`.
    """
    planes = volume.planes(axis)
    row, col = planes[0].axes
    groups: dict[BoundingBox, dict[int, Sequence[Point]]] = {}
    for number, points in objects.items():
        clicks = [Click((point[row], point[col])) for point in points]
        groups.setdefault(tile_of(volume.sides(planes[0]), clicks), {})[number] = points
    pieces: dict[int, list[VoxelMask]] = {}
    for tile, group in groups.items():
        part = volume.cropped(tile, planes[0])
        offset = np.zeros(volume.ndim)
        offset[[row, col]] = tile.corner
        moved = {n: [tuple(np.subtract(point, offset)) for point in points] for n, points in group.items()}
        anchors = object_anchors(predictor, part, moved, axis)
        for number, known in anchors.items():
            pieces[number] = [_piece(plane, prediction.mask, tile) for plane, prediction in known.items()]
        for number, found in propagate_many(predictor, part, anchors, part.planes(axis)):
            if found.final:
                pieces[number].append(_piece(found.plane, found.prediction.mask, tile))
    full = {number: [piece for piece in some if piece.mask.size] for number, some in pieces.items()}
    return {number: _joined(some) for number, some in full.items() if some}


def _piece(plane: Plane, mask: np.ndarray, tile: BoundingBox) -> VoxelMask:
    """The mask on a tile of a plane, cut to its box; empty if the mask is."""
    part = Patch.of(mask)
    if part.box.is_empty:
        return VoxelMask((0, 0, 0), np.zeros((0, 0, 0), bool))
    across = next(axis for axis, at in enumerate(plane.index) if at is not None)
    corner = list(part.box.shifted(*tile.corner).corner)
    corner.insert(across, plane.position)
    return VoxelMask((corner[0], corner[1], corner[2]), np.expand_dims(part.pixels.copy(), across))


def _joined(pieces: Sequence[VoxelMask]) -> VoxelMask:
    """One mask of pieces that do not overlap."""
    low, high = _bounds(pieces)
    whole = np.zeros(high - low, bool)
    for piece in pieces:
        whole[_within(low, piece)] = piece.mask
    return VoxelMask((int(low[0]), int(low[1]), int(low[2])), whole)


def _bounds(pieces: Sequence[VoxelMask]) -> tuple[np.ndarray, np.ndarray]:
    """The first voxel of a box around all pieces, and the one behind its last."""
    low = np.min([piece.corner for piece in pieces], axis=0)
    high = np.max([np.add(piece.corner, piece.mask.shape) for piece in pieces], axis=0)
    return low, high


def _within(corner: Sequence[int] | np.ndarray, piece: VoxelMask) -> tuple[slice, ...]:
    """The numpy key of a piece in an array whose first voxel is `corner`."""
    starts = np.subtract(piece.corner, corner)
    return tuple(slice(int(a), int(a) + n) for a, n in zip(starts, piece.mask.shape, strict=True))
