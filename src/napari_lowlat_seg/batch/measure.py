"""A table of the objects in labels: size, surface, place and intensity of each, in world units.

Labels are read block by block, so they may be larger than memory. All sums are over voxels; the surface is
that of the mesh that marching cubes (`skimage.measure`) draws through the middles between an object's voxels
and their neighbours. The mesh of a block ends where the next one begins, so areas add up to those of the
whole object.
"""

from __future__ import annotations

import csv
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import numpy as np

from napari_lowlat_seg.batch.progress import progress
from napari_lowlat_seg.core.atomic_file import atomic_file, check_not_input, check_writable
from napari_lowlat_seg.core.geometry import Geometry
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.files import read_aligned, read_volume
from napari_lowlat_seg.io.placed import geometry_of

BLOCK = 2**23
"""Voxels that are looked at at a time, about."""


@dataclass(frozen=True)
class Measurement:
    """What is known of one object. Axes are those of a viewer: the world's, (t, z, y, x).

    Attributes
    ----------
    label, name
        In the labels; the name is "" unless the file has one.
    voxels
        Their number.
    size
        Volume, of a 2-D image area, in the unit of space to the third or second power.
    surface
        Area of the object's surface, of a 2-D image length of its outline; in the unit of space.
    centre
        World coordinates of the centroid.
    index
        The same in voxels, centres on integers.
    first, last
        Lowest and highest index of a voxel: the bounding box, both ends included.
    planes
        On how many planes, as a viewer shows them, the object is.
    mean, std
        Intensity of the image in the object, and its standard deviation over all voxels; pixels that are not
        finite do not count. None without an image or a finite pixel.
    """

    label: int
    name: str
    voxels: int
    size: float
    surface: float
    centre: tuple[float, ...]
    index: tuple[float, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]
    planes: int
    mean: float | None = None
    std: float | None = None


def measure(
    labels: Volume, image: Volume | None = None, *, names: Mapping[int, str] | None = None
) -> list[Measurement]:
    """Every object of labels, in the order of labels; one at each time where there is an axis of time.

    Parameters
    ----------
    labels
        Whole numbers of 0 or more; 0 is background. Sizes are those of its geometry or spacing.
    image
        Of the same shape and order of axes, for intensities. The mean of colours is taken.
    names
        By label.

    Raises
    ------
    ValueError
        For labels that are no such numbers, an image of another shape, and other than 2 or 3 axes of space.

    Examples
    --------
    >>> cube = np.pad(np.ones((2, 2, 2), np.uint8), 1)
    >>> (found,) = measure(Volume(cube, spacing=(3, 0.5, 0.5)))
    >>> found.voxels, found.size, found.centre, found.first
    (8, 6.0, (4.5, 0.75, 0.75), (1, 1, 1))
    """
    if labels.channel_axis is not None:
        raise ValueError(f"{labels.name or 'the labels'} must hold one number a voxel, not colours")
    if image is not None and image.shape != labels.shape:
        raise ValueError(f"the image must have the labels' shape {labels.shape}; got {image.shape}")
    geometry = geometry_of(labels)
    space = [axis for axis in range(labels.ndim) if geometry.axes[axis].kind == "space"]
    if len(space) not in (2, 3):
        raise ValueError(
            f"objects are measured in 2 or 3 axes of space; {labels.name or 'the labels'} has {len(space)}"
        )
    size, shape = len(space), labels.shape
    matrix = geometry.xyz()[:size, :size]
    rest = [range(shape[axis]) if axis not in space else (None,) for axis in range(labels.ndim)]
    blocks = list(_blocks(labels.data, space))
    found: list[Measurement] = []
    places = list(itertools.product(*rest))
    with progress(len(places) * len(blocks), "block") as bar:
        for place in places:
            sums: dict[int, _Sums] = {}
            for block in blocks:
                _add_block(sums, labels, image, place, block, matrix)
                bar.update()
            for label in sorted(sums):
                found.append(sums[label].measured(label, (names or {}).get(label, ""), place, geometry))
    return found


def run_measure(
    labels: Path, image: Path | None = None, output: Path | None = None, *, channel: int | None = None
) -> dict[str, Any]:
    """Measure the objects of a file of labels and write a table.

    Parameters
    ----------
    labels, image
        As of `read_volume`; the image is turned onto the labels if their places say so.
    output
        A .csv; None for standard output.
    channel
        Of the image.

    Returns
    -------
    dict
        "objects" (their number), "unit" (of space, "" for voxels), "seconds" and "measurements".

    Raises
    ------
    ValueError, OSError
        With one sentence, before the work, for files that cannot be read or written and an image that lies
        elsewhere.
    """
    started = time.perf_counter()
    if output is not None:
        if output.suffix.lower() != ".csv":
            raise ValueError(f"the table of measurements is a .csv; got {output.name!r}")
        check_not_input(output, [("file of labels", labels), *([("image", image)] if image else [])])
        check_writable(output)
    if channel is not None and image is None:
        raise ValueError("a channel is one of the image; give --image, or leave out --channel")
    volume = read_volume(labels)
    pixels = None if image is None else read_aligned(image, volume, "image", channel=channel)
    segments = getattr(volume.header, "segments", ())  # of a .seg.nrrd
    found = measure(volume, pixels, names={one.label: one.name for one in segments})
    write_measurements(output, found, geometry_of(volume))
    seconds = round(time.perf_counter() - started, 3)
    unit = geometry_of(volume).unit or ""
    return {"objects": len(found), "unit": unit, "seconds": seconds, "measurements": found}


def write_measurements(
    path: Path | None,
    found: Sequence[Measurement],
    geometry: Geometry,
    said: Mapping[str, Mapping[int, str]] = MappingProxyType({}),
) -> None:
    """Write a table that spreadsheets read, and napari as points at the centroids; None for stdout.

    Columns: label, name, axis-0, axis-1, ... (the centroid in voxels, as a viewer shows them), centroid-z,
    centroid-y, ... (in the world), unit, voxels, volume, surface (of a 2-D image area, perimeter), planes,
    first-0, ..., last-0, ... (the bounding box in voxels), mean, std.

    Parameters
    ----------
    geometry
        Of the labels; names and units of its axes.
    said
        By heading, further columns of texts by label.
    """
    names = [axis.name for axis in geometry.world]
    flat = sum(axis.kind == "space" for axis in geometry.world) == 2
    columns = [
        *("label", "name"),
        *(f"axis-{i}" for i in range(len(names))),
        *(f"centroid-{name}" for name in names),
        *("unit", "voxels", *(("area", "perimeter") if flat else ("volume", "surface")), "planes"),
        *(f"first-{i}" for i in range(len(names))),
        *(f"last-{i}" for i in range(len(names))),
        *("mean", "std", *said),
    ]
    unit = geometry.unit or ""

    def write(file: TextIO) -> None:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        for one in found:
            numbers = (*one.index, *one.centre)
            sizes = (unit, one.voxels, _text(one.size), _text(one.surface), one.planes)
            intensities = ("" if value is None else _text(value) for value in (one.mean, one.std))
            texts = (by_label.get(one.label, "") for by_label in said.values())
            row = (one.label, one.name, *map(_text, numbers), *sizes, *one.first, *one.last)
            table.writerow((*row, *intensities, *texts))

    if path is None:
        write(sys.stdout)
        return
    with (
        atomic_file(path) as part,
        part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        write(file)


def _text(value: float) -> str:
    return f"{value:.9g}"


@dataclass
class _Sums:
    """What is summed up of one object, along the axes of space in the order of the array."""

    axes: int
    voxels: int = 0
    surface: float = 0.0
    first: np.ndarray = field(default_factory=lambda: np.zeros(0))
    last: np.ndarray = field(default_factory=lambda: np.zeros(0))
    indices: np.ndarray = field(default_factory=lambda: np.zeros(0))
    positions: list[set[int]] = field(default_factory=list)
    finite: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Of the differences from the mean."""

    def __post_init__(self) -> None:
        self.first = np.full(self.axes, np.iinfo(np.int64).max)
        self.last = np.full(self.axes, -1)
        self.indices = np.zeros(self.axes)
        self.positions = [set() for _ in range(self.axes)]

    def add_intensities(self, count: int, mean: float, squares: float) -> None:
        """Take in a part of the object; means of parts are exact where sums of large numbers are not."""
        if count:
            total = self.finite + count
            apart = mean - self.mean
            self.mean += apart * count / total
            self.squares += squares + apart**2 * self.finite * count / total
            self.finite = total

    def measured(
        self, label: int, name: str, place: tuple[int | None, ...], geometry: Geometry
    ) -> Measurement:
        """The object, its axes in the order of the world."""
        matrix = geometry.xyz()[: self.axes, : self.axes]
        space = [axis for axis, at in enumerate(place) if at is None]
        index, first, last = (np.array([at or 0 for at in place], float) for _ in range(3))
        index[space] = self.indices / self.voxels
        first[space], last[space] = self.first, self.last
        order = list(geometry.shown_order)
        across = next(axis for axis in order if axis in space)
        known = self.finite > 0
        return Measurement(
            label,
            name,
            self.voxels,
            self.voxels * float(abs(np.linalg.det(matrix))),
            self.surface,
            tuple(geometry.to_world(index).tolist()),
            tuple(index[order].tolist()),
            tuple(int(i) for i in first[order]),
            tuple(int(i) for i in last[order]),
            len(self.positions[space.index(across)]) if self.axes == 3 else 1,
            self.mean if known else None,
            float(np.sqrt(self.squares / self.finite)) if known else None,
        )


Block = tuple[tuple[int, int], ...]
"""First and one after the last index, along each axis of space."""


def _blocks(data: Any, space: Sequence[int]) -> Iterator[Block]:
    """Blocks that cover an array: of whole chunks where it has some, else of whole planes or rows."""
    shape = [int(data.shape[axis]) for axis in space]
    chunks = getattr(data, "chunks", None) or (1,) * len(data.shape)
    # Dask lists the length of every chunk.
    sides = [min(n, int(np.max(chunks[axis]))) for axis, n in zip(space, shape)]
    strides = getattr(data, "strides", None)
    near = sorted(range(len(space)), key=lambda i: strides[space[i]] if strides else -i)
    for axis in near:  # what lies side by side first
        while sides[axis] < shape[axis] and 2 * int(np.prod(sides)) <= BLOCK:
            sides[axis] = min(2 * sides[axis], shape[axis])
    starts = [range(0, n, side) for n, side in zip(shape, sides)]
    for corner in itertools.product(*starts):
        yield tuple((at, min(at + side, n)) for at, side, n in zip(corner, sides, shape))


def _add_block(
    sums: dict[int, _Sums],
    labels: Volume,
    image: Volume | None,
    place: tuple[int | None, ...],
    block: Block,
    matrix: np.ndarray,
) -> None:
    """Add the voxels of a block, and the surface between them and those before it."""
    shape = [labels.shape[axis] for axis, at in enumerate(place) if at is None]
    begun = tuple((max(0, first - 1), last) for first, last in block)
    voxels = _whole(_read(labels, place, begun), labels.name)
    if not voxels.any():
        return
    # One voxel of background around the volume closes the surface there.
    around = [(int(first == 0), int(last == n)) for (first, last), n in zip(block, shape)]
    voxels = np.pad(voxels, around)
    values = np.unique(voxels)
    values = values[values != 0]
    numbers = np.searchsorted(values, voxels).astype(np.int32) + 1  # 1, 2, ... in this block
    numbers[voxels == 0] = 0
    rows = [sums.setdefault(int(value), _Sums(len(block))) for value in values]
    _add_surfaces(rows, numbers, matrix)
    inside = tuple(slice(1, 1 + last - first) for first, last in block)
    own = numbers[inside]
    at = np.flatnonzero(own)
    which = own.reshape(-1)[at] - 1
    counts = np.bincount(which, minlength=len(values))
    for axis, indices in enumerate(np.unravel_index(at, own.shape)):
        indices = indices + block[axis][0]
        totals = np.bincount(which, indices, len(values))
        length = shape[axis] + 1
        pairs = np.unique(which.astype(np.int64) * length + indices)
        for pair_row, positions in zip(*_grouped(pairs // length, pairs % length)):
            row = rows[pair_row]
            row.indices[axis] += totals[pair_row]
            row.first[axis] = min(row.first[axis], positions[0])
            row.last[axis] = max(row.last[axis], positions[-1])
            row.positions[axis].update(positions.tolist())
    for row, count in zip(rows, counts):
        row.voxels += int(count)
    if image is not None:
        _add_intensities(rows, which, _read(image, place, block).reshape(-1)[at])


def _grouped(keys: np.ndarray, values: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """The keys, which are sorted, each once; and the values of each."""
    single, starts = np.unique(keys, return_index=True)
    return single.tolist(), np.split(values, starts[1:])


def _add_intensities(rows: Sequence[_Sums], which: np.ndarray, pixels: np.ndarray) -> None:
    pixels = pixels.astype(np.float64)
    finite = np.isfinite(pixels)
    which, pixels = which[finite], pixels[finite]
    counts = np.bincount(which, minlength=len(rows))
    means = np.bincount(which, pixels, len(rows)) / np.maximum(counts, 1)
    squares = np.bincount(which, (pixels - means[which]) ** 2, len(rows))
    for row, *part in zip(rows, counts.tolist(), means.tolist(), squares.tolist()):
        row.add_intensities(*part)


def _add_surfaces(rows: Sequence[_Sums], numbers: np.ndarray, matrix: np.ndarray) -> None:
    from scipy import ndimage

    for number, (row, box) in enumerate(zip(rows, ndimage.find_objects(numbers)), start=1):
        grown = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        mask = numbers[grown] == number
        if not mask.all():
            row.surface += surface_of(mask, matrix)


def surface_of(mask: np.ndarray, matrix: np.ndarray) -> float:
    """The area of the mesh around a mask, or the length of the outline of a 2-D one.

    Parameters
    ----------
    mask
        Bool, 2 or 3 axes of 2 or more, with True and False in it. At its edges the surface is left open.
    matrix
        Indices to world.
    """
    from skimage import measure as shapes

    if mask.ndim == 2:
        lines = (
            np.diff(line @ matrix.T, axis=0) for line in shapes.find_contours(mask.astype(np.float32), 0.5)
        )
        return float(sum(np.linalg.norm(steps, axis=1).sum() for steps in lines))
    points, faces, *_ = shapes.marching_cubes(mask.astype(np.float32), 0.5)
    return float(shapes.mesh_surface_area(points.astype(np.float64) @ matrix.T, faces))


def _read(volume: Volume, place: tuple[int | None, ...], block: Block) -> np.ndarray:
    """The voxels of a block; of colours their mean."""
    parts = iter(block)
    pixels = volume.block([slice(*next(parts)) if at is None else at for at in place])
    if volume.channel_axis is not None and volume.channel is None:
        pixels = pixels.mean(axis=-1, dtype=np.float64)
    return pixels


def _whole(voxels: np.ndarray, name: str) -> np.ndarray:
    """Labels as whole numbers; many programs keep them as floats."""
    what = name or "the labels"
    if voxels.dtype.kind not in "buif":
        raise ValueError(f"{what} must hold whole numbers; got type {voxels.dtype}")
    if voxels.dtype.kind == "f":
        if not bool((np.isfinite(voxels) & (voxels == np.rint(voxels)) & (np.abs(voxels) < 2**53)).all()):
            raise ValueError(f"{what} must hold labels, whole numbers of 0 or more; got fractions or NaN")
        voxels = voxels.astype(np.int64)
    if voxels.dtype.kind == "i" and voxels.size and int(voxels.min()) < 0:
        raise ValueError(f"{what} must hold labels of 0 or more; got {int(voxels.min())}")
    return voxels
