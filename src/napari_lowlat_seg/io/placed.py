"""What readers give and writers take: arrays with their geometry, and how an array is turned to fit a format.

Formats that know only steps along the world's axes (TIFF, OME-Zarr, MRC, ...) get labels that are turned to
the world's order; so they lie where they were. What lies oblique is refused, before any work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import Geometry, find_unit
from napari_lowlat_seg.core.volume import Volume


class Unreadable(ValueError):
    """An undamaged file that cannot be read as it is: something must be installed or chosen."""


def first_line(error: Exception) -> str:
    """The first line of an error without its full stop, or the error's name if it says nothing."""
    return str(error).split("\n")[0].rstrip(".") or type(error).__name__


@dataclass(frozen=True, eq=False)
class Loaded:
    """An image as a file holds it.

    Attributes
    ----------
    data
        numpy, dask, zarr or anything else that is cut by slices.
    geometry
        Over the axes of `data` in their order, less the channel axis.
    channel_axis
        The axis of `data` that holds channels or colours; None without one.
    header
        What a file of the same format needs beside; None where that is nothing.
    spacing
        Where the file says it apart from the geometry; None for that of the geometry.
    window
        (low, high) intensities shown as black and white; None to be chosen later.
    """

    data: Any
    geometry: Geometry
    channel_axis: int | None = None
    header: Any = None
    spacing: tuple[float, ...] | None = None
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Turn:
    """A transposition of axes, then a reversal of some of them.

    Attributes
    ----------
    order
        As in `numpy.transpose`.
    flips
        Axes after the transposition, as in `numpy.flip`.
    """

    order: tuple[int, ...]
    flips: tuple[int, ...] = ()

    @property
    def is_identity(self) -> bool:
        """Whether nothing is turned."""
        return not self.flips and self.order == tuple(range(len(self.order)))

    @property
    def inverse(self) -> Turn:
        """What turns a turned array back: its axes are reversed first here, which comes to the same."""
        return Turn(
            tuple(int(axis) for axis in np.argsort(self.order)),
            tuple(sorted(self.order[axis] for axis in self.flips)),
        )

    def array(self, data: np.ndarray) -> np.ndarray:
        """A view of an array, turned."""
        turned: np.ndarray = np.flip(data.transpose(self.order), self.flips)
        return turned

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of a turned array."""
        return tuple(int(shape[axis]) for axis in self.order)


def by_axis(key: Any, ndim: int) -> list[Any]:
    """The parts of a numpy key of ints, slices and one Ellipsis, one for each axis."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (ndim - len(parts) + 1)
    return parts + [slice(None)] * (ndim - len(parts))


class TurnedArray:
    """An array that is turned where it is read and written: numpy, zarr, HDF5. Reads nothing by itself.

    Parameters
    ----------
    array
        What is turned.
    turn
        From the axes of this view to those of `array`: reversed ones are those of `array`.
    """

    def __init__(self, array: Any, turn: Turn) -> None:
        self.array, self.turn = array, turn
        back = np.argsort(turn.order)
        self.shape = tuple(int(array.shape[axis]) for axis in back)
        self.dtype = array.dtype
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        """A copy or view of what a key of ints and slices of step 1 names."""
        there, kept, flips = self._keys(key)
        block = np.flip(np.asarray(self.array[there]), flips)
        # Axes cut by an int stay until now, so that the order of all is known.
        turned: np.ndarray = block.transpose(np.argsort(self.turn.order))[kept]
        return turned

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)

    def __setitem__(self, key: Any, values: Any) -> None:
        there, kept, flips = self._keys(key)
        sides = tuple(
            part.stop - part.start for part in (there[axis] for axis in np.argsort(self.turn.order))
        )
        shape = tuple(n for n, part in zip(sides, kept, strict=True) if part != 0)
        block = np.broadcast_to(values, shape).reshape(sides)
        self.array[there] = np.flip(block.transpose(self.turn.order), flips)

    def _keys(self, key: Any) -> tuple[tuple[slice, ...], tuple[Any, ...], tuple[int, ...]]:
        """The key in `array`, what is kept of each axis of the view, and the axes of `array` to reverse."""
        parts = by_axis(key, self.ndim)
        bounds: list[tuple[int, int]] = []
        kept: list[slice | int] = []
        for part, length in zip(parts, self.shape, strict=True):
            if isinstance(part, slice):
                start, stop, step = part.indices(length)
                if step != 1:
                    raise IndexError(f"a turned array is cut in steps of 1; got {step}")
                bounds.append((start, max(start, stop)))
                kept.append(slice(None))
            else:
                place = int(part) + (length if part < 0 else 0)
                if not 0 <= place < length:
                    raise IndexError(f"index {part} is outside an axis of {length}")
                bounds.append((place, place + 1))
                kept.append(0)
        there = []
        for axis, source in enumerate(self.turn.order):
            start, stop = bounds[source]
            length = self.array.shape[axis]
            there.append(
                slice(length - stop, length - start) if axis in self.turn.flips else slice(start, stop)
            )
        return tuple(there), tuple(kept), self.turn.flips


class Held:
    """An array that is held at one place on some of its axes, cut where it is read.

    Parameters
    ----------
    places
        Where, by axis; an axis of length 1 is left out so, held at 0.
    """

    def __init__(self, array: Any, places: Mapping[int, int]) -> None:
        self.array = array
        self._places = dict(sorted(places.items()))
        self.shape = tuple(n for axis, n in enumerate(array.shape) if axis not in self._places)
        self.dtype, self.ndim = array.dtype, len(self.shape)
        chunks = getattr(array, "chunks", None)
        self.chunks = chunks and tuple(n for axis, n in enumerate(chunks) if axis not in self._places)

    def __getitem__(self, key: Any) -> Any:
        parts = by_axis(key, self.ndim)
        for axis, place in self._places.items():
            parts.insert(axis, place)
        return self.array[tuple(parts)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)


@dataclass(frozen=True)
class StoredAxis:
    """An axis of an array as its file describes it.

    Attributes
    ----------
    name, kind, unit
        As `Axis` has them; "channel" is a kind as well.
    step, start
        Distance of neighbours, and place of the first voxel.
    """

    name: str
    kind: str | None = None
    unit: str | None = None
    step: float = 1.0
    start: float = 0.0


def placed(
    data: Any,
    axes: Sequence[StoredAxis],
    dropped: Sequence[str] = ("channel",),
    header: Any = None,
    window: tuple[float, float] | None = None,
) -> Loaded:
    """An array whose axes are the world's, with its channel axis apart.

    Parameters
    ----------
    data
        The array.
    axes
        Its axes, in their order.
    dropped
        Kinds of axes that are cut away where they have length 1.
    header, window
        As `Loaded` has them.
    """
    single = [i for i, axis in enumerate(axes) if axis.kind in dropped and data.shape[i] == 1]
    if isinstance(data, np.ndarray):
        data = np.squeeze(data, tuple(single))
    elif single:
        data = Held(data, dict.fromkeys(single, 0))
    left = [axis for i, axis in enumerate(axes) if i not in single]
    channel_axis = next((i for i, axis in enumerate(left) if axis.kind == "channel"), None)
    kept = [axis for i, axis in enumerate(left) if i != channel_axis]
    fields = ([getattr(axis, name) for axis in kept] for name in ("name", "step", "start", "unit", "kind"))
    return Loaded(data, Geometry.from_scale(*fields), channel_axis, header, window=window)


class SliceStack(ABC):
    """Slices along the first axis as one array; only those that are looked at are read.

    Parameters
    ----------
    count
        How many slices.
    first
        The pixels of the first one; all others are alike.
    """

    def __init__(self, count: int, first: np.ndarray) -> None:
        self.shape, self.dtype, self.ndim = (count, *first.shape), first.dtype, first.ndim + 1

    @abstractmethod
    def slice(self, at: int) -> np.ndarray:
        """The pixels of one slice."""

    def __getitem__(self, key: Any) -> np.ndarray:
        """What a key of ints and slices names."""
        first, *others = by_axis(key, self.ndim)
        rest = tuple(others)
        places = range(self.shape[0])[first]
        if isinstance(places, int):
            part: np.ndarray = self.slice(places)[rest]
            return part
        if not places:
            return np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *rest)]
        return np.stack([self.slice(at)[rest] for at in places])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def geometry_of(volume: Volume) -> Geometry:
    """The geometry of a volume; of one without, axes (..., t, z, y, x) at its spacing."""
    return volume.geometry or usual_geometry(volume.ndim, volume.spacing)


def described(geometry: Geometry) -> dict[str, Any]:
    """A geometry as values for JSON: "world" (its axes), "affine", "patient"."""
    world = [{"name": axis.name, "kind": axis.kind, "unit": axis.unit} for axis in geometry.world]
    return {"world": world, "affine": geometry.affine.tolist(), "patient": geometry.patient}


def usual_geometry(ndim: int, spacing: Sequence[float] | None = None) -> Geometry:
    """The geometry of an array of which nothing but perhaps a spacing is known: (..., t, z, y, x)."""
    names = [*(f"d{i}" for i in range(ndim - 4)), *"tzyx"[-min(4, ndim) :]]
    return Geometry.from_scale(names, spacing)


def upright(geometry: Geometry, shape: Sequence[int], what: str) -> tuple[Turn, Geometry]:
    """How an array is turned so that its axes are the world's, growing; and its geometry then.

    Parameters
    ----------
    geometry, shape
        Of the array.
    what
        The format, for the sentence.

    Raises
    ------
    ValueError
        If the array lies oblique in the world, which the format cannot say.
    """
    if not geometry.straight:
        raise ValueError(
            f"{what} has no place for an image that lies oblique in the world; "
            "write .nii.gz, .nrrd or .mha, which have"
        )
    if not geometry.calibrated:
        return Turn(tuple(range(geometry.ndim))), geometry
    order = geometry.shown_order
    turned = geometry.transpose(order)
    flips = tuple(axis for axis, sign in enumerate(turned.signs) if sign < 0)
    for axis in flips:
        turned = turned.flip(axis, shape[order[axis]])
    return Turn(order, flips), turned


def check_one_unit(geometry: Geometry, what: str) -> None:
    """Refuse an image that says its size along some axes of space only, for a format with one unit for all.

    Raises
    ------
    ValueError
        With the axis that lacks a unit.
    """
    lacking = [axis.name for axis in geometry.world if axis.kind == "space" and axis.unit is None]
    if lacking and any(axis.unit for axis in geometry.world if axis.kind == "space"):
        raise ValueError(
            f"{what} has one unit for all axes, and the image names no size along {lacking[0]}; "
            "write .tif, .ome.tif or .ome.zarr"
        )


def in_known_unit(geometry: Geometry, known: Sequence[str], what: str) -> Geometry:
    """The geometry in a unit of length that a format knows; unchanged if it has none or one of these.

    The first of `known` is taken for lengths below a millimetre, the last for others.

    Raises
    ------
    ValueError
        If the unit is not in the table of units.
    """
    units = {axis.unit for axis in geometry.world if axis.kind == "space"} - {None}
    if units <= set(known) and len(units) < 2:
        return geometry
    for text in units:
        found = find_unit(text or "")
        if found is None or found.kind != "space":
            raise ValueError(f"{what} cannot hold lengths in {text!r}, a unit that is not known")
    small = all((find_unit(text or "") or find_unit("m")).factor < 1e-3 for text in units)  # type: ignore[union-attr]
    return geometry.in_unit(known[0] if small else known[-1])
