"""Where an image layer lies: conversion between napari's world, layer data and the pixels of a plane.

No other module of the plugin converts between them. A layer made with `Grid.place` lies voxel on voxel with
the image, whatever its scale, rotation, shear or affine, at any level of a pyramid; napari slices, transposes
and draws it as it does the image. What napari shows of a turned image is copied as it is: of a plane that is
not at a right angle to its slider, it leaves out what leads out of the plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from napari.utils.transforms import CompositeAffine

from napari_lowlat_seg.core.frame import Points
from napari_lowlat_seg.core.volume import Plane, Volume

Place = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Grid:
    """One image layer as a `Volume`, and its place in napari's world, read anew from the layer each time.

    Attributes
    ----------
    layer
        The image layer.
    volume
        Its pixels: one level of a pyramid, one channel or RGB. Its axes are the layer's, less the channels.
    shape
        Lengths of a layer on this grid, one per layer axis; 1 along channels: a slab that shows at each.
    factors
        Pixels of the layer's finest level per grid voxel, one per layer axis.
    channel_axis
        The layer axis that holds channels; None when there is none and for RGB, which is no axis to napari.
    """

    layer: Any
    volume: Volume
    shape: tuple[int, ...]
    factors: tuple[float, ...]
    channel_axis: int | None = None
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def ndim(self) -> int:
        """How many axes a layer on this grid has."""
        return len(self.shape)

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """The layer axis of each axis of the volume."""
        return tuple(axis for axis in range(self.ndim) if axis != self.channel_axis)

    @property
    def place(self) -> Place:
        """scale, translate, rotate, shear, affine, units and axis_labels of any layer on this grid."""
        return _place(self.layer, np.asarray(self.factors))

    @property
    def matrix(self) -> np.ndarray:
        """Data coordinates of a layer on this grid to its world: (ndim + 1, ndim + 1), read-only."""
        return self._matrices[0]

    @property
    def _matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """`matrix` and its inverse, made anew where the layer has moved: a click asks for them ten times."""
        place = self._corners
        if self._kept.get("place") != place:
            world = _matrix(self.place, self.ndim)
            self._kept.update(place=place, matrices=(world, np.linalg.inv(world)))
        matrices: tuple[np.ndarray, np.ndarray] = self._kept["matrices"]
        return matrices

    @property
    def _corners(self) -> tuple[tuple[float, ...], ...]:
        """The world positions of a voxel and its neighbours: they differ where the layer lies elsewhere."""
        corners = np.vstack([np.zeros(self.ndim), np.eye(self.ndim)])
        return tuple(map(self.layer.data_to_world, corners))

    def plane(self, dims: Any) -> Plane | None:
        """The plane that the viewer shows; does not mutate.

        None in 3-D display, where a displayed axis is none of the volume's, and outside the image.
        """
        seen = dims.ndisplay, dims.order, dims.point, dims.units, self.layer.units, self._corners
        if self._kept.get("seen") != seen:  # a click asks for the plane some twenty times
            self._kept.update(seen=seen, plane=self._plane(dims))
        plane: Plane | None = self._kept["plane"]
        return plane

    def _plane(self, dims: Any) -> Plane | None:
        displayed = [axis - self._lead(dims) for axis in dims.displayed]
        if dims.ndisplay != 2 or self._lead(dims) < 0 or not set(displayed) <= set(self.axes):
            return None
        index: list[int | None] = [None] * self.ndim
        for axis, position in self._hidden(dims, displayed).items():
            index[axis] = round(position)
            if not 0 <= round(position) < self.shape[axis]:
                return None
        return Plane(tuple(index[axis] for axis in self.axes))

    def to_layer(self, plane: Plane, points: Points) -> np.ndarray:
        """Points (row, col) of a plane as data coordinates of a layer on this grid: float64 (N, ndim)."""
        pairs = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        coords = np.zeros((len(pairs), self.ndim))
        columns = iter(pairs.T)
        for axis, position in zip(self.axes, plane.index, strict=True):
            coords[:, axis] = next(columns) if position is None else position
        return coords

    def from_layer(self, coords: Any, axes: tuple[int, int]) -> tuple[Plane, np.ndarray]:
        """The plane that data coordinates of a layer on this grid lie on, and its points (row, col).

        Parameters
        ----------
        coords
            (N, ndim) numbers, N of 1 or more.
        axes
            The two axes of the volume that the plane shall show, in any order.

        Raises
        ------
        ValueError
            For coordinates of several planes or beside the volume, and for none.
        """
        rows = np.asarray(coords, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.ndim or len(rows) == 0:
            raise ValueError(f"a prompt needs (N, {self.ndim}) coordinates, N of 1 or more; got {rows.shape}")
        spatial = rows[:, self.axes]
        index: list[int | None] = [None] * len(self.axes)
        for axis in set(range(len(self.axes))) - set(axes):
            positions = np.unique(np.round(spatial[:, axis]))
            if len(positions) > 1:
                raise ValueError(
                    f"a prompt must lie on one plane; this one reaches from {positions[0]:g} to "
                    f"{positions[-1]:g} along axis {axis}"
                )
            if not 0 <= positions[0] < self.volume.shape[axis]:
                raise ValueError(
                    f"a prompt at {positions[0]:g} lies beside the image, whose axis {axis} goes from 0 to "
                    f"{self.volume.shape[axis] - 1}; move it onto a plane of the image"
                )
            index[axis] = int(positions[0])
        return Plane(tuple(index)), spatial[:, sorted(axes)]

    def to_plane(self, position: Sequence[float], plane: Plane, dims: Any = None) -> tuple[float, float]:
        """Where on the plane napari draws what it draws at a world position, a mouse event's for one.

        Parameters
        ----------
        position
            In the viewer's world, one number per viewer axis.
        plane
            The plane that is displayed.
        dims
            The viewer's, which know its units; None when they are those of the layer.

        Raises
        ------
        ValueError
            Where the image is turned so that the plane is seen from its edge.
        """
        world, shown = self.matrix, self._layer_axes(plane)
        target = np.asarray(position, dtype=np.float64)[-self.ndim :] * self._units_of(dims)
        try:
            row, col = np.linalg.solve(world[np.ix_(shown, shown)], (target - world[:-1, -1])[shown])
        except np.linalg.LinAlgError:
            raise ValueError(
                f"{self.layer.name!r} is turned so that plane {plane.index} is seen from its edge; "
                "look along another axis"
            ) from None
        return float(row), float(col)

    def inside(self, plane: Plane, points: Points) -> np.ndarray:
        """Which points (row, col) lie on the plane's pixels, outer edges included: (N,) bool."""
        pairs = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        edge = np.array(self.sides(plane)) - 0.5
        within: np.ndarray = np.all((pairs >= -0.5) & (pairs <= edge), axis=1)
        return within

    def sides(self, plane: Plane) -> tuple[int, int]:
        """Rows and columns of a plane."""
        return self.volume.sides(plane)

    @property
    def spacing(self) -> tuple[float, ...]:
        """How long a voxel is along each axis of the volume, where the layer lies now."""
        return tuple(_lengths(self)[list(self.axes)].tolist())

    @property
    def place_events(self) -> list[Any]:
        """The events that napari emits when the image's place changes, and `place` with it."""
        names = ("scale", "translate", "rotate", "shear", "affine", "units")
        return [getattr(self.layer.events, name) for name in names]

    def slab(
        self, plane: Plane, *, flat: bool = True, box: tuple[int, int, int, int] | None = None
    ) -> tuple[tuple[int, ...], Place]:
        """Shape and place of a layer that is one voxel thick, for the pixels of one plane, or of a box of it.

        With `flat`, for 2-D display: the voxel is as thick as the image, so the layer shows at every plane of
        this orientation and need not move, drawn where napari draws the planes. Without, for 3-D display: it
        is as thick as one of the image's voxels and lies where the plane lies.
        """
        shown = self._layer_axes(plane)
        hidden = [axis for axis in range(self.ndim) if axis not in shown]
        place, world = self.place, self.matrix
        start = np.zeros(self.ndim)
        if flat:
            start[hidden] = (np.array(self.shape)[hidden] - 1) / 2
            place["scale"][hidden] *= np.array(self.shape)[hidden]
        else:
            start[list(self.axes)] = [position or 0 for position in plane.index]
        moved = world[:-1, :-1] @ start
        inverse = np.linalg.inv(world)[np.ix_(hidden, hidden)]
        if flat and abs(np.linalg.det(inverse)) > 0:
            moved[shown] = 0
            moved[hidden] = np.linalg.solve(inverse, start[hidden])
        box = box or (0, 0, *self.sides(plane))
        moved = moved + world[:-1, shown] @ np.array(box[:2], np.float64)
        place["translate"] = place["translate"] + np.linalg.solve(place["affine"][:-1, :-1], moved)
        lengths = dict(zip(shown, (box[2] - box[0], box[3] - box[1]), strict=True))
        return tuple(lengths.get(axis, 1) for axis in range(self.ndim)), place

    def look_at(self, dims: Any, plane: Plane) -> None:
        """Move the viewer to a plane; the order of axes changes only when it has to, channels stay.

        In 3-D display the scene does not turn; napari chooses the plane anew on the way back to 2-D.
        """
        lead, shown = self._lead(dims), self._layer_axes(plane)
        if dims.ndisplay == 2 and {axis + lead for axis in shown} != set(dims.displayed):
            wanted = [axis + lead for axis in shown]
            dims.order = (*(axis for axis in range(dims.ndim) if axis not in wanted), *wanted)
        hidden = self._hidden(dims, shown)
        for axis, position in zip(self.axes, plane.index, strict=True):
            if position is not None:
                hidden[axis] = position
        if not hidden:
            return
        axes = list(hidden)
        inverse = self._matrices[1]
        start = np.array(list(hidden.values())) - inverse[axes, -1]
        world = np.linalg.lstsq(inverse[np.ix_(axes, axes)], start, rcond=None)[0]
        world = world / self._units_of(dims)[axes]
        dims.set_point([axis + lead for axis in axes], [float(value) for value in world])

    def _layer_axes(self, plane: Plane) -> list[int]:
        return [self.axes[axis] for axis in plane.axes]

    def _lead(self, dims: Any) -> int:
        """How many axes of the viewer come before those of the layer."""
        return int(dims.ndim) - self.ndim

    def _hidden(self, dims: Any, shown: Sequence[int]) -> dict[int, float]:
        """The position on each layer axis that is not shown; as napari slices, the others do not count."""
        hidden = [axis for axis in range(self.ndim) if axis not in shown]
        point = np.asarray(dims.point, dtype=np.float64)[self._lead(dims) :] * self._units_of(dims)
        inverse = self._matrices[1]
        at = inverse[np.ix_(hidden, hidden)] @ point[hidden] + inverse[hidden, -1]
        return dict(zip(hidden, at.tolist(), strict=True))

    def _units_of(self, dims: Any) -> np.ndarray:
        """What one unit of the viewer's world is in units of the layer's, for each layer axis."""
        units = None if dims is None else dims.units
        if units is None or len(units) < self.ndim:
            return np.ones(self.ndim)
        pairs = zip(units[-self.ndim :], self.layer.units, strict=True)
        return np.array([unit_ratio(viewer, layer) for viewer, layer in pairs])


def grid_of(
    layer: Any,
    *,
    level: int = 0,
    channel_axis: int | None = None,
    channel: int = 0,
    window: tuple[float, float] | None = None,
) -> Grid:
    """The grid of an image layer; reads no pixels.

    Parameters
    ----------
    layer
        A napari Image layer: 2-D to n-D, RGB, a pyramid, numpy, dask or zarr.
    level
        Which level of a pyramid, 0 the finest.
    channel_axis, channel
        The layer axis that holds channels, and the one to segment; not for RGB.
    window
        (low, high) intensities shown as black and white; None to choose later.

    Raises
    ------
    ValueError
        For a level, axis or channel that the image does not have, and less than two other axes.
    """
    levels = list(layer.data) if layer.multiscale else [layer.data]
    if not 0 <= level < len(levels):
        raise ValueError(f"{layer.name!r} has levels 0 to {len(levels) - 1}; got level {level}")
    if layer.rgb and channel_axis is not None:
        raise ValueError(f"{layer.name!r} is RGB and segmented as such; got channel axis {channel_axis}")
    volume = Volume(
        levels[level],
        channel_axis=-1 if layer.rgb else channel_axis,
        channel=None if channel_axis is None else channel,
        window=window,
        name=layer.name,
    )
    slab = None if layer.rgb else volume.channel_axis
    finest = levels[0].shape[: layer.ndim]
    shape = tuple(1 if axis == slab else int(n) for axis, n in enumerate(levels[level].shape[: layer.ndim]))
    grid = Grid(layer, volume, shape, tuple(a / b for a, b in zip(finest, shape, strict=True)), slab)
    return replace(grid, volume=replace(volume, spacing=grid.spacing))


def _place(layer: Any, factors: np.ndarray) -> Place:
    """The layer's own place, for voxels of `factors` of its pixels: the middle of the first one moves."""
    inner = CompositeAffine(
        layer.scale, layer.translate, rotate=layer.rotate, shear=layer.shear, ndim=layer.ndim
    )
    return {
        "scale": np.asarray(layer.scale) * factors,
        "translate": np.asarray(layer.translate) + inner.linear_matrix @ ((factors - 1) / 2),
        "rotate": np.array(layer.rotate),
        "shear": np.array(layer.shear),
        "affine": np.array(layer.affine.affine_matrix),
        "units": layer.units,
        "axis_labels": layer.axis_labels,
    }


def _matrix(place: Place, ndim: int) -> np.ndarray:
    """Data coordinates to world of a layer that lies there: (ndim + 1, ndim + 1), read-only."""
    names = ("scale", "translate", "rotate", "shear")
    inner = CompositeAffine(**{name: place[name] for name in names}, ndim=ndim)
    world: np.ndarray = place["affine"] @ inner.affine_matrix
    world.flags.writeable = False
    return world


def _lengths(grid: Grid) -> np.ndarray:
    """How long a voxel is along each layer axis, in units of the last axis where they compare."""
    units = grid.layer.units
    columns = grid.matrix[:-1, :-1] * np.array([unit_ratio(unit, units[-1]) for unit in units])[:, None]
    lengths: np.ndarray = np.linalg.norm(columns, axis=0)
    return lengths


@lru_cache(maxsize=64)
def unit_ratio(unit: Any, other: Any) -> float:
    """How many of the other unit one unit is; 1 for units that do not compare, as napari takes them."""
    if unit.dimensionality != other.dimensionality:
        return 1.0
    return float((1 * unit).to_base_units().magnitude / (1 * other).to_base_units().magnitude)
