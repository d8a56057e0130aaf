"""Surfaces of objects as triangles in world coordinates (x, y, z): .stl and .ply, both binary.

The mesh is that of marching cubes (scikit-image), through the middles between an object's voxels and their
neighbours; it is closed, and normals lead outward. It is made slab by slab: corners on the plane that two
slabs share are those of the first. Why the two formats are written here and not by a library:
docs/decisions/libraries.md.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from napari_lowlat_seg.core.geometry import Geometry, find_unit
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.exports.slabs import Slabs
from napari_lowlat_seg.io.placed import geometry_of

_STL = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_PLY_FACE = np.dtype([("count", "u1"), ("corners", "<i4", 3), ("label", "<u4")])

MOST = 2**31 - 1
"""Corners that a .ply of 32-bit numbers can have, and triangles of either format."""


@dataclass(frozen=True, eq=False)
class Piece:
    """The surface of one object in one slab.

    Attributes
    ----------
    label
        Of the object.
    points
        (N, 3) in the world as (x, y, z).
    triangles
        (M, 3) of points, counter-clockwise seen from outside.
    numbers
        (N,) of the points among all points of all pieces: equal for one that an earlier piece has.
    fresh
        The first number of a point that no earlier piece has.
    """

    label: int
    points: np.ndarray
    triangles: np.ndarray
    numbers: np.ndarray
    fresh: int


def check(suffix: str, labels: Volume, image: Volume | None = None) -> None:
    """Refuse what is no volume of three axes of space."""
    geometry = geometry_of(labels)
    names = [axis.name for axis in geometry.world]
    if names != ["z", "y", "x"]:
        what = labels.name or "the labels"
        raise ValueError(f"a mesh needs the axes z, y, x; {what} has {', '.join(names)}")


def write(path: Path, suffix: str, labels: Slabs, names: Mapping[int, str], image: Volume | None) -> None:
    """Write the surfaces of all objects: .ply with the label of every triangle, .stl without.

    Raises
    ------
    ValueError
        For more corners or triangles than the formats can count.
    """
    (_write_stl if suffix == ".stl" else _write_ply)(path, labels, names)


def _about(geometry: Geometry) -> bytes:
    world = "patient, RAS+" if geometry.patient else "x, y, z"
    unit = geometry.unit or "voxel"
    known = find_unit(unit)
    # Both headers are ASCII, which has neither µm nor Å.
    text = unit if unit.isascii() or known is None else known.name
    return f"lowlat-seg; {world}; unit {text}".encode("ascii", "replace")


def _write_stl(path: Path, labels: Slabs, names: Mapping[int, str]) -> None:
    """An 80-byte text, the number of triangles, then each with its normal."""
    count = 0
    with path.open("wb") as file:
        file.write(_about(labels.geometry).ljust(80)[:80] + bytes(4))
        for piece in surfaces(labels):
            count = _counted(count + len(piece.triangles), "triangles")
            file.write(_stl(piece.points, piece.triangles).tobytes())
        file.seek(80)
        file.write(np.uint32(count).tobytes())


def _write_ply(path: Path, labels: Slabs, names: Mapping[int, str]) -> None:
    """All corners come before all triangles, and the header counts both: they wait in a file of their own."""
    corners = count = 0
    met: set[int] = set()
    with path.open("wb") as file, _spool(path) as points, _spool(path) as faces:
        for piece in surfaces(labels):
            new = piece.points[piece.numbers >= piece.fresh]
            corners = _counted(corners + len(new), "corners")
            count = _counted(count + len(piece.triangles), "triangles")
            points.write(new.astype("<f4").tobytes())
            rows = np.zeros(len(piece.triangles), _PLY_FACE)
            rows["count"], rows["corners"] = 3, piece.numbers[piece.triangles]
            rows["label"] = piece.label
            faces.write(rows.tobytes())
            met.add(piece.label)
        called = "".join(
            f"comment label {label}: {' '.join(names[label].split())}\n"
            for label in sorted(met)
            if names.get(label)
        )
        file.write(
            b"ply\nformat binary_little_endian 1.0\n"
            + b"comment " + _about(labels.geometry) + b"\n" + called.encode("ascii", "replace")
            + f"element vertex {corners}\nproperty float x\nproperty float y\nproperty float z\n"
            f"element face {count}\nproperty list uchar int vertex_indices\nproperty uint label\n"
            "end_header\n".encode()
        )  # fmt: skip
        for part in (points, faces):
            part.seek(0)
            shutil.copyfileobj(part, file, 2**20)


def _spool(path: Path) -> IO[bytes]:
    """A file without a name in the folder of another, where there is room for both."""
    return tempfile.TemporaryFile(dir=path.parent)


def _counted(count: int, what: str) -> int:
    if count > MOST:
        raise ValueError(f"a mesh has up to {MOST} {what}, these labels have more; export single objects")
    return count


def surfaces(labels: Slabs) -> Iterator[Piece]:
    """The surface of each object in each slab; within a slab in the order of labels."""
    from scipy import ndimage

    affine = labels.geometry.xyz()
    last = labels.shape[0]
    # Of each object, the points on the last plane so far: their places there, sorted, and their numbers.
    seam: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    before = np.zeros((1, *labels.shape[1:]), np.uint8)
    fresh = 0
    for (start,), block in labels.slabs():
        voxels = np.concatenate([before, block])
        before = block[-1:]
        if start + len(block) == last:
            voxels = np.concatenate([voxels, np.zeros_like(before)])
        older, seam = seam, {}
        values = np.unique(voxels[voxels != 0])
        if not values.size:
            continue
        numbers = np.where(voxels == 0, 0, np.searchsorted(values, voxels) + 1).astype(np.int32)
        boxes: Any = ndimage.find_objects(numbers)
        for number, (value, box) in enumerate(zip(values.tolist(), boxes), start=1):
            # One plane more on either side, as far as the slab goes: there the next one goes on.
            deep = slice(max(0, box[0].start - 1), min(box[0].stop + 1, len(voxels)))
            mask = np.pad(numbers[deep, box[1], box[2]] == number, ((0, 0), (1, 1), (1, 1)))
            corner = np.array([start - 1 + deep.start, box[1].start - 1, box[2].start - 1])
            points, triangles = _marched(mask, corner)
            places = _places(points, labels.shape)
            met = _met(points[:, 0] == start - 1, places, older.get(value))
            own = np.where(met < 0, fresh + np.cumsum(met < 0) - 1, met)
            shared = np.flatnonzero(points[:, 0] == start + len(block) - 1)
            if start + len(block) < last and len(shared):
                order = shared[np.argsort(places[shared])]
                seam[value] = places[order], own[order]
            world = points @ affine[:3, :3].T + affine[:3, 3]
            # In index space the corners of a triangle run clockwise, seen from outside.
            if np.linalg.det(affine[:3, :3]) > 0:
                triangles = triangles[:, ::-1]
            yield Piece(value, world, triangles, own, fresh)
            fresh += int(np.count_nonzero(met < 0))


def _marched(mask: np.ndarray, corner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) in indices and triangles (M, 3) around a mask whose first voxel is at a corner."""
    from skimage.measure import marching_cubes

    points, triangles, *_ = marching_cubes(mask.astype(np.float32), 0.5)
    return points.astype(np.float64) + corner, triangles


def _places(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One number for each place on a plane, where corners lie at halves of pixels from -1 on."""
    rows, cols = np.rint(2 * (points[:, 1:] + 1)).astype(np.int64).T
    places: np.ndarray = rows * (2 * (shape[2] + 2)) + cols
    return places


def _met(there: np.ndarray, places: np.ndarray, older: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    """The numbers of points that an earlier piece has, -1 for all others.

    Parameters
    ----------
    there
        Whether a point lies on the plane that the pieces share.
    places
        Of the points on their planes.
    older
        Places on that plane, sorted, and their numbers.
    """
    found = np.full(len(places), -1, np.int64)
    if older is not None and there.any():
        known, numbers = older
        at = np.searchsorted(known, places[there]).clip(max=len(known) - 1)
        found[there] = np.where(known[at] == places[there], numbers[at], -1)
    return found


def _stl(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    corners = points[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    rows = np.zeros(len(triangles), _STL)
    rows["normal"], rows["corners"] = normals / np.where(lengths > 0, lengths, 1), corners
    return rows
