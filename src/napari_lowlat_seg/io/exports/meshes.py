"""Surfaces of objects as triangles in world coordinates (x, y, z): .stl and .ply, both binary.

The mesh is that of marching cubes (scikit-image), through the middles between an object's voxels and their
neighbours; it is closed, and normals lead outward. Why the two formats are written here and not by a library:
docs/decisions/libraries.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.placed import geometry_of

_STL = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_PLY_FACE = np.dtype([("count", "u1"), ("corners", "<i4", 3), ("label", "<u4")])


def check(suffix: str, labels: Volume, image: Volume | None = None) -> None:
    """Refuse what is no volume of three axes of space."""
    geometry = geometry_of(labels)
    names = [axis.name for axis in geometry.world]
    if names != ["z", "y", "x"]:
        what = labels.name or "the labels"
        raise ValueError(f"a mesh needs the axes z, y, x; {what} has {', '.join(names)}")


def write(path: Path, suffix: str, labels: Volume, names: Mapping[int, str], image: Volume | None) -> None:
    """Write the surfaces of all objects: .ply with the label of every triangle, .stl without."""
    geometry = geometry_of(labels)
    world = "patient, RAS+" if geometry.patient else "x, y, z"
    about = f"{world}; unit {geometry.unit or 'voxel'}".encode("ascii", "replace")
    parts = list(surfaces(labels))
    faces = sum(len(triangles) for _, _, triangles in parts)
    with path.open("wb") as file:
        if suffix == ".stl":
            # An 80-byte text, the number of triangles, then each with its normal.
            file.write((b"lowlat-seg; " + about).ljust(80)[:80] + np.uint32(faces).tobytes())
            for _, points, triangles in parts:
                file.write(_stl(points, triangles).tobytes())
            return
        corners = sum(len(points) for _, points, _ in parts)
        called = "".join(
            f"comment label {label}: {' '.join(names[label].split())}\n"
            for label, _, _ in parts
            if names.get(label)
        )
        file.write(
            b"ply\nformat binary_little_endian 1.0\n"
            + b"comment lowlat-seg; " + about + b"\n" + called.encode("ascii", "replace")
            + f"element vertex {corners}\nproperty float x\nproperty float y\nproperty float z\n"
            f"element face {faces}\nproperty list uchar int vertex_indices\nproperty uint label\n"
            "end_header\n".encode()
        )  # fmt: skip
        for _, points, _ in parts:
            file.write(points.astype("<f4").tobytes())
        first = 0
        for label, points, triangles in parts:
            rows = np.zeros(len(triangles), _PLY_FACE)
            rows["count"], rows["corners"], rows["label"] = 3, triangles + first, label
            file.write(rows.tobytes())
            first += len(points)


def surfaces(labels: Volume) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(label, points (N, 3) in the world as (x, y, z), triangles (M, 3) of points) of each object."""
    from scipy import ndimage
    from skimage.measure import marching_cubes

    affine = geometry_of(labels).xyz()
    data = np.asarray(labels.data)
    values, numbers = np.unique(data, return_inverse=True)
    boxes: Any = ndimage.find_objects(numbers.reshape(data.shape).astype(np.int32) + 1)
    for number, (value, box) in enumerate(zip(values.tolist(), boxes)):
        if value == 0:
            continue
        mask = np.pad(numbers.reshape(data.shape)[box] == number, 1)
        points, triangles, *_ = marching_cubes(mask.astype(np.float32), 0.5)
        corner = np.array([part.start - 1 for part in box])
        points = (points.astype(np.float64) + corner) @ affine[:3, :3].T + affine[:3, 3]
        # In index space the corners of a triangle run clockwise, seen from outside.
        if np.linalg.det(affine[:3, :3]) > 0:
            triangles = triangles[:, ::-1]
        yield value, points, triangles


def _stl(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    corners = points[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    rows = np.zeros(len(triangles), _STL)
    rows["normal"], rows["corners"] = normals / np.where(lengths > 0, lengths, 1), corners
    return rows
