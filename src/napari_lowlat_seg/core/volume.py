"""An n-dimensional image with its geometry, and the planes through it.

A `Volume` never copies its data: numpy, dask and zarr arrays are read one plane at a time, so a volume may be
larger than memory. A `Plane` identifies a 2-D plane by its index; no other module distinguishes 2-D from 3-D.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.geometry import Geometry

SAMPLED_PIXELS = 2**22
"""Percentiles are taken of about this many pixels: of every pixel up to twice as many."""


def intensity_window(pixels: np.ndarray) -> tuple[float, float]:
    """The (low, high) intensities to show as black and white.

    uint8 gives (0, 255) and bool (0, 1), so that they pass unchanged. Everything else gives the 0.5 and 99.5
    percentiles of the finite values, or their extremes if these percentiles are equal; constant pixels of
    value v give (v, v + 1).

    Parameters
    ----------
    pixels
        Any shape, any real type.

    Raises
    ------
    ValueError
        For empty pixels, pixels without a finite value, and types that are not real numbers.
    """
    pixels = _real(pixels)
    if pixels.dtype == np.bool_:
        return (0.0, 1.0)
    if pixels.dtype == np.uint8:
        return (0.0, 255.0)
    flat = pixels.ravel()
    finite = flat[:: max(1, flat.size // SAMPLED_PIXELS)]
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        finite = flat[np.isfinite(flat)]
    if finite.size == 0:
        raise ValueError(f"an image needs at least one finite pixel; all {pixels.size} are NaN or infinite")
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = (float(v) for v in np.percentile(finite.astype(np.float64), (0.5, 99.5)))
    if not (low < high and np.isfinite(high - low)):
        low, high = float(finite.min()), float(finite.max())
    if low < high:
        return (low, high)
    # Adding 1 to a very large constant may round to the same number, and above the largest there is none.
    with np.errstate(over="ignore"):
        above = max(low + 1.0, float(np.nextafter(low, np.inf)))
    return (low, above) if np.isfinite(above) else (float(np.nextafter(low, 0.0)), low)


def to_uint8(pixels: np.ndarray, window: tuple[float, float] | None = None) -> np.ndarray:
    """Pixels as uint8: `window` is stretched to 0..255, values outside are clipped, NaN becomes 0.

    Parameters
    ----------
    pixels
        (rows, cols) or (rows, cols, 3) of any real type.
    window
        (low, high) with low < high; None chooses it with `intensity_window`.

    Raises
    ------
    ValueError
        For empty pixels, pixels without a finite value, other shapes, complex or non-numeric types, and a
        window that is not increasing.
    """
    pixels = _real(pixels)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(f"an image must be (rows, cols) or (rows, cols, 3); got shape {pixels.shape}")
    if not any_finite(pixels):
        raise ValueError(f"an image needs at least one finite pixel; all {pixels.size} are NaN or infinite")
    low, high = intensity_window(pixels) if window is None else (float(window[0]), float(window[1]))
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"an intensity window needs finite low < high; got ({low}, {high})")
    if pixels.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return pixels
    # 16-bit types are exact in float32; wider ones, and windows beyond it, need float64.
    narrow = pixels.dtype.itemsize <= 2 and max(abs(low), abs(high)) < 1e30
    scaled = np.clip(pixels.astype(np.float32 if narrow else np.float64), low, high)
    if not np.isfinite(high - low):  # the whole range of float64
        scaled, low, high = scaled / 2, low / 2, high / 2
    scaled -= low
    scaled /= high - low
    scaled *= 255
    scaled += 0.5
    np.nan_to_num(scaled, copy=False, nan=0.0)
    shown: np.ndarray = scaled.astype(np.uint8)
    return shown


def _real(pixels: np.ndarray) -> np.ndarray:
    pixels = np.asarray(pixels)
    if pixels.dtype.kind not in "buif":
        raise ValueError(f"an image needs real numbers; got type {pixels.dtype}")
    if pixels.size == 0:
        raise ValueError(f"an image needs at least one pixel; got shape {pixels.shape}")
    return pixels


def any_finite(pixels: np.ndarray) -> bool:
    """Whether any pixel is a finite number; registered stacks have planes without one."""
    return pixels.dtype.kind != "f" or bool(np.isfinite(pixels).any())


def to_gray(pixels: np.ndarray, window: tuple[float, float] | None = None) -> np.ndarray:
    """(rows, cols) float32 from 0 to 255: `to_uint8`, and the mean of colours. Does not mutate."""
    gray = to_uint8(pixels, window).astype(np.float32)
    return gray if gray.ndim == 2 else gray.mean(axis=2)


SAMPLED_PLANES = 9
"""How many planes are read to choose an intensity window or to identify a volume."""

SAMPLED_SIDE = 256
"""A sampled plane is thinned to about this many rows and columns."""

HUGE_SIDE = 4096
"""Of planes with more rows or columns, only blocks are read for a sample."""

SAMPLED_BLOCKS = 4
"""Blocks along each side of a huge plane, each of `SAMPLED_SIDE` pixels, evenly spaced from end to end."""


class ArrayLike(Protocol):
    """An array that is read by slices, such as numpy's, dask's and zarr's."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, key: Any, /) -> Any: ...


Line = tuple[int, int]
"""A row (0, position) or a column (1, position) of a plane."""


@dataclass(frozen=True)
class Plane:
    """A plane through a volume: a position on every axis but two.

    Parameters
    ----------
    index
        One entry per spatial axis. Exactly two are None: first the row axis, then the column axis. The others
        are positions, 0 or more.

    Raises
    ------
    ValueError
        For another number of None, and negative positions.

    Examples
    --------
    >>> Plane((7, None, None)).axes
    (1, 2)
    >>> Plane((7, None, None)).moved(-2)
    Plane(index=(5, None, None))
    """

    index: tuple[int | None, ...] = (None, None)

    def __post_init__(self) -> None:
        # Lists, and `index` below: a plane is made and asked many times a click, and generators cost calls.
        index = tuple([None if i is None else int(i) for i in self.index])
        if index.count(None) != 2 or min([i for i in index if i is not None], default=0) < 0:
            raise ValueError(
                f"a plane index needs two None (row and column axis) and positions of 0 or more; got {index}"
            )
        object.__setattr__(self, "index", index)

    @property
    def axes(self) -> tuple[int, int]:
        """The row axis and the column axis."""
        row = self.index.index(None)
        return row, self.index.index(None, row + 1)

    @property
    def position(self) -> int:
        """Where the plane is on the axis it moves along; 0 in a 2-D image."""
        return next((i for i in reversed(self.index) if i is not None), 0)

    def moved(self, offset: int) -> Plane:
        """The plane `offset` steps further along the last axis that has a position.

        Raises ValueError in a 2-D image, which has no such axis, and below position 0.
        """
        for axis in reversed(range(len(self.index))):
            position = self.index[axis]
            if position is not None:
                return Plane((*self.index[:axis], position + offset, *self.index[axis + 1 :]))
        raise ValueError(f"a plane of a 2-D image cannot move; got an offset of {offset}")

    def crossing(self, other: Plane) -> tuple[Line, Line] | None:
        """The line in which two planes cross, on this plane and on the other; None where they do not.

        Planes that share no axis meet in one pixel at most, which is no line.

        >>> Plane((4, None, None)).crossing(Plane((None, None, 7)))
        ((1, 7), (0, 4))
        """
        shared = [axis for axis in self.axes if axis in other.axes]
        if len(shared) != 1 or len(self.index) != len(other.index):
            return None
        if any(a is not None and b is not None and a != b for a, b in zip(self.index, other.index)):
            return None
        return self._line(shared[0], other), other._line(shared[0], self)

    def _line(self, along: int, other: Plane) -> Line:
        side = 1 - self.axes.index(along)
        position = other.index[self.axes[side]]
        assert position is not None
        return side, position

    def key(self) -> tuple[int | slice, ...]:
        """The numpy key of this plane in an array that has the spatial axes."""
        return tuple(slice(None) if i is None else i for i in self.index)


class PlaneReader(Protocol):
    """Planes with pixels, intensity window and spacing, such as a `Volume`."""

    @property
    def window(self) -> tuple[float, float] | None: ...

    def plane(self, plane: Plane) -> np.ndarray: ...

    def plane_spacing(self, plane: Plane) -> tuple[float, float]: ...

    def thickness(self, plane: Plane) -> float: ...


@dataclass(frozen=True, eq=False)
class Volume:
    """An image of two or more spatial axes, read plane by plane.

    Parameters
    ----------
    data
        The pixels (numpy, dask, zarr): the spatial axes in any number, and perhaps one axis of channels.
    spacing
        World units per voxel, one positive number per spatial axis; None when unknown.
    channel_axis
        The axis of `data` that holds channels, negative counted from the end; None when there is none.
    channel
        The channel to segment. None with 3 or 4 channels means RGB (a fourth channel, alpha, is dropped).
    window
        (low, high) intensities shown as black and white; None when each plane may choose its own.
    name
        What messages call it.
    header
        The file's other metadata, which `write_labels` writes again; None for arrays.
    geometry
        Where the voxels lie, over the spatial axes in their order; None when unknown.

    Raises
    ------
    ValueError
        For fewer than 2 spatial axes, no voxel, a wrong spacing, and a channel or channel axis that the data
        do not have.
    """

    data: ArrayLike
    spacing: tuple[float, ...] | None = None
    channel_axis: int | None = None
    channel: int | None = None
    window: tuple[float, float] | None = None
    name: str = ""
    header: Any = None
    geometry: Geometry | None = None

    def __post_init__(self) -> None:
        total = len(self.data.shape)
        if self.channel_axis is not None:
            if not -total <= self.channel_axis < total:
                raise ValueError(f"shape {tuple(self.data.shape)} has no channel axis {self.channel_axis}")
            object.__setattr__(self, "channel_axis", self.channel_axis % total)
            self._check_channel(self.data.shape[self.channel_axis])
        if self.ndim < 2:
            raise ValueError(f"a volume needs at least 2 spatial axes; got shape {tuple(self.data.shape)}")
        if 0 in self.data.shape:
            raise ValueError(f"a volume needs at least one voxel; got shape {tuple(self.data.shape)}")
        if self.spacing is not None:
            spacing = tuple(float(s) for s in self.spacing)
            if len(spacing) != self.ndim or not all(np.isfinite(s) and s > 0 for s in spacing):
                raise ValueError(f"spacing needs {self.ndim} positive numbers, one per axis; got {spacing}")
            object.__setattr__(self, "spacing", spacing)
        if self.geometry is not None and self.geometry.ndim != self.ndim:
            raise ValueError(
                f"a volume of {self.ndim} spatial axes needs a geometry of as many; got {self.geometry.ndim}"
            )

    def _check_channel(self, channels: int) -> None:
        if self.channel is None and channels not in (3, 4):
            raise ValueError(
                f"an image of {channels} channels needs a channel from 0 to {channels - 1}; got none"
            )
        if self.channel is not None and not 0 <= self.channel < channels:
            raise ValueError(f"channel must be from 0 to {channels - 1}; got {self.channel}")

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the spatial axes."""
        return tuple(n for axis, n in enumerate(self.data.shape) if axis != self.channel_axis)

    @property
    def ndim(self) -> int:
        """The number of spatial axes."""
        return len(self.shape)

    def plane(self, plane: Plane) -> np.ndarray:
        """The pixels of a plane, (rows, cols) or (rows, cols, 3) of RGB; ValueError for one outside."""
        fits = len(plane.index) == self.ndim and all(
            i is None or i < n for i, n in zip(plane.index, self.shape)
        )
        if not fits:
            raise ValueError(f"plane {plane.index} is not inside a volume of shape {self.shape}")
        return self.block(plane.key(), f"plane {plane.index}")

    def block(self, key: Sequence[int | slice], what: str = "a part") -> np.ndarray:
        """The pixels of a part of the volume, in the data's type; the colours of an RGB image come last.

        Parameters
        ----------
        key
            An int or a slice of step 1 for each spatial axis.
        what
            What the sentence calls the part, if the file turns out to be damaged there.
        """
        whole = list(key)
        if self.channel_axis is not None:
            whole.insert(self.channel_axis, slice(0, 3) if self.channel is None else self.channel)
        pixels = self._cut(tuple(whole), what)
        if self.channel_axis is not None and self.channel is None:
            # Axes before the channel axis that have a position are gone.
            pixels = np.moveaxis(pixels, sum(isinstance(k, slice) for k in whole[: self.channel_axis]), -1)
        return pixels

    def planes(self, axis: int = 0) -> list[Plane]:
        """All planes across `axis`, in order; the last two other axes are rows and columns.

        A 2-D image has one plane. With 4 axes and more, there is a plane for each position on the rest.
        """
        positioned = self._positioned(axis)
        return [
            self.plane_at(positions, axis)
            for positions in itertools.product(*(range(self.shape[a]) for a in positioned))
        ]

    def plane_at(self, positions: Sequence[int], axis: int = 0) -> Plane:
        """The plane of `planes(axis)` at these positions, one per axis that is neither rows nor columns.

        >>> Volume(np.zeros((3, 4, 5))).plane_at([2], axis=1)
        Plane(index=(None, 2, None))
        """
        positioned = self._positioned(axis)
        if len(positions) != len(positioned):
            raise ValueError(
                f"a plane of a volume of {self.shape} needs {len(positioned)} positions; got {positions}"
            )
        index: list[int | None] = [None] * self.ndim
        for a, position in zip(positioned, positions, strict=True):
            if not 0 <= position < self.shape[a]:
                raise ValueError(
                    f"position {position} is outside axis {a}, which goes from 0 to {self.shape[a] - 1}"
                )
            index[a] = position
        return Plane(tuple(index))

    def _positioned(self, axis: int) -> list[int]:
        """The axes on which planes across `axis` have a position, in the order of the array."""
        if not -self.ndim <= axis < self.ndim:
            raise ValueError(
                f"axis must be from 0 to {self.ndim - 1} in a volume of {self.shape}; got {axis}"
            )
        others = [a for a in range(self.ndim) if self.ndim == 2 or a != axis % self.ndim]
        return sorted(set(range(self.ndim)) - set(others[-2:]))

    def sides(self, plane: Plane) -> tuple[int, int]:
        """Rows and columns of a plane."""
        row, col = plane.axes
        return self.shape[row], self.shape[col]

    def plane_spacing(self, plane: Plane) -> tuple[float, float]:
        """World units per (row, column) of a plane; (1, 1) when the spacing is unknown."""
        row, col = plane.axes
        return (1.0, 1.0) if self.spacing is None else (self.spacing[row], self.spacing[col])

    def thickness(self, plane: Plane) -> float:
        """World units to the next plane of its stack; 1 when the spacing is unknown, and for a 2-D image."""
        fixed = [axis for axis, position in enumerate(plane.index) if position is not None]
        return self.spacing[fixed[-1]] if self.spacing is not None and fixed else 1.0

    def cropped(self, box: BoundingBox, plane: Plane) -> Volume:
        """The volume that shows only a box of each plane parallel to `plane`; nothing is read yet."""
        row, col = plane.axes
        parts: list[slice] = [slice(0, n) for n in self.shape]
        parts[row], parts[col] = box.slices
        if self.channel_axis is not None:
            parts.insert(self.channel_axis, slice(0, self.data.shape[self.channel_axis]))
        return replace(self, data=_Crop(self.data, tuple(parts)))

    def with_window(self) -> Volume:
        """This volume with one intensity window for all planes, chosen from a sample, if it has none."""
        if self.window is not None:
            return self
        if np.dtype(self.data.dtype) in (np.uint8, np.bool_):  # the same whatever the pixels are
            return replace(self, window=intensity_window(np.zeros(1, self.data.dtype)))
        sample = np.concatenate([pixels.ravel() for pixels in self._sample()])
        if not any_finite(sample):
            # Registered stacks may be empty except for a few planes, which the sample missed.
            planes = (self.plane(plane) for plane in self.planes())
            sample = next(filter(any_finite, planes), sample)
        return replace(self, window=intensity_window(sample))

    @cached_property
    def identity(self) -> str:
        """A digest of shape, type, channel and a sample of the pixels; equal for numpy, dask and zarr."""
        about = f"{tuple(self.data.shape)} {np.dtype(self.data.dtype).str} {self.channel_axis} {self.channel}"
        digest = hashlib.blake2b(about.encode(), digest_size=16)
        for pixels in self._sample():
            digest.update(np.ascontiguousarray(pixels).tobytes())
        return digest.hexdigest()

    def _sample(self) -> Iterator[np.ndarray]:
        """A few thinned planes along the first axis, first and last among them, as files are stored."""
        positioned = self.shape[:-2]
        total = int(np.prod(positioned, dtype=np.int64))
        for flat in np.unique(np.linspace(0, total - 1, min(total, SAMPLED_PLANES)).round().astype(np.int64)):
            positions = (int(i) for i in np.unravel_index(int(flat), positioned)) if positioned else ()
            plane = Plane((*positions, None, None))
            if max(self.shape[-2:]) > HUGE_SIDE:
                yield from self._blocks(plane)
                continue
            pixels = self.plane(plane)
            rows, cols = (max(1, n // SAMPLED_SIDE) for n in pixels.shape[:2])
            yield pixels[::rows, ::cols]

    def _blocks(self, plane: Plane) -> Iterator[np.ndarray]:
        """Small blocks of one plane, the corners among them; nothing else of it is read."""
        ends = (np.linspace(0, max(0, n - SAMPLED_SIDE), SAMPLED_BLOCKS) for n in self.shape[-2:])
        for corner in itertools.product(*(np.unique(end.astype(np.int64)).tolist() for end in ends)):
            sides = (slice(at, at + SAMPLED_SIDE) for at in corner)
            yield self.block((*plane.key()[:-2], *sides), f"plane {plane.index}")

    def _cut(self, key: tuple[int | slice, ...], what: str) -> np.ndarray:
        """Pixels that a file may only now turn out to have lost."""
        try:
            return np.asarray(self.data[key])
        except MemoryError:
            raise
        except Exception as error:  # each format's library has its own errors for damaged bytes
            if isinstance(self.data, np.ndarray):
                raise
            reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
            raise ValueError(f"{what} of {self.name or 'the image'} cannot be read ({reason})") from error


@dataclass(frozen=True, eq=False)
class _Crop:
    """A part of an array; reading it reads no more of the array than that part."""

    data: ArrayLike
    window: tuple[slice, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(part.stop - part.start for part in self.window)

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    def __getitem__(self, key: Any, /) -> Any:
        whole = (key if isinstance(key, tuple) else (key,)) + (slice(None),) * len(self.window)
        return self.data[tuple(_moved(k, part) for k, part in zip(whole, self.window))]


def _moved(key: int | slice, part: slice) -> int | slice:
    if isinstance(key, slice):
        first, last, step = key.indices(part.stop - part.start)
        return slice(part.start + first, part.start + last, step)
    return int(part.start) + int(key)
