"""Whether a Labels layer lies on the voxels of an image, and how it holds them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.io.chunked.ome_zarr import found_labels, label_levels
from napari_lowlat_seg.io.chunked.zarr_labels import LabelPyramid
from napari_lowlat_seg.plugin.labels.lazy_array import LazyArray
from napari_lowlat_seg.plugin.layers.grid import Grid, unit_ratio

ALIGNED = 0.25
"""Labels fit an image if no corner voxel lies further from its own than this many voxels."""


def fits(layer: Any, grid: Grid) -> str | None:
    """Why a Labels layer cannot take the objects of an image, in one sentence; None if it can."""
    name, image = repr(layer.name), repr(grid.layer.name)
    laid_out = laid_on(layer, grid)
    if laid_out is None:
        return (
            f"{name} has shape {tuple(layer.data.shape)} but {image} needs {grid.shape}; "
            "choose labels of that shape or let new ones be made"
        )
    if layer.multiscale and written_pyramid(layer) is None:
        return (
            f"{name} is a pyramid that cannot be written to where it is; "
            "open its folder with “from disk…” in the list of labels"
        )
    if not layer.multiscale and not _writable(layer.data):
        return f"{name} is open for reading only; open its file for writing or let new labels be made"
    away = _displaced(layer, grid, laid_out.axes)
    if away > ALIGNED:
        return (
            f"{name} lies up to {away:.1f} voxels away from {image}; "
            "give it the image's scale and position or let new labels be made"
        )
    return None


@dataclass(frozen=True)
class LaidOut:
    """How a Labels layer of `ndim` axes holds a volume: the layer axis of each of the volume's axes, and the
    position on the others."""

    ndim: int
    axes: tuple[int, ...]
    fixed: dict[int, int]

    def key(self, plane: Plane, box: BoundingBox) -> tuple[slice, ...]:
        """The numpy key of a box, with slices of length 1 on all other axes."""
        key = [slice(0, 1)] * self.ndim
        for axis, position in self.fixed.items():
            key[axis] = slice(position, position + 1)
        sides = iter((slice(box[0], box[2]), slice(box[1], box[3])))
        for axis, at in zip(self.axes, plane.index, strict=True):
            key[axis] = next(sides) if at is None else slice(at, at + 1)
        return tuple(key)


def laid_on(layer: Any, grid: Grid) -> LaidOut | None:
    """How a Labels layer holds the volume of a grid; None where shapes do not fit.

    Channels may be one slab for all, be missing where they come first, or be there one by one, as in labels
    that napari's own button makes: then objects are written at the channel that is segmented.
    """
    missing = grid.ndim - layer.ndim
    if missing not in (0, 1) or (missing == 1 and grid.channel_axis != 0):
        return None
    axes = tuple(axis - missing for axis in grid.axes)
    shape = tuple(int(n) for n in layer.data.shape)
    if tuple(shape[axis] for axis in axes) != grid.volume.shape:
        return None
    fixed: dict[int, int] = {}
    if grid.channel_axis is not None and not missing:
        channels = shape[grid.channel_axis]
        if channels not in (1, round(grid.factors[grid.channel_axis])):
            return None
        fixed[grid.channel_axis] = 0 if channels == 1 else int(grid.volume.channel or 0)
    return LaidOut(layer.ndim, axes, fixed)


def _displaced(layer: Any, grid: Grid, axes: Sequence[int]) -> float:
    """How many voxels the layer is away from the grid, at the worst corner of the volume."""
    ends = [(0, n - 1) for n in grid.shape]
    corners = np.array(list(itertools.product(*ends)), dtype=np.float64)
    world = corners @ grid.matrix[:-1, :-1].T + grid.matrix[:-1, -1]
    units = zip(grid.layer.units[-layer.ndim :], layer.units, strict=True)
    ratio = [unit_ratio(ours, theirs) for ours, theirs in units]
    there = np.array([layer.world_to_data(at[-layer.ndim :] * ratio) for at in world])
    return float(np.abs(there[:, axes] - corners[:, grid.axes]).max())


def _writable(data: Any) -> bool:
    if isinstance(data, np.ndarray):
        return bool(data.flags.writeable)
    return not getattr(data, "read_only", False)


def written_pyramid(layer: Any) -> LabelPyramid | None:
    """The arrays of a multiscale Labels layer, to be written to; None where they cannot be.

    Readers hand out dask arrays, which only look like the file; then the file itself is opened.
    """
    levels = [level.data if isinstance(level, LazyArray) else level for level in layer.data]
    if all(_writable(one) and (isinstance(one, np.ndarray) or hasattr(one, "store_path")) for one in levels):
        return LabelPyramid.of(levels)
    group = layer.source.path and found_labels(layer.source.path, layer.name, tuple(levels[0].shape))
    return LabelPyramid(label_levels(group), group) if group else None
