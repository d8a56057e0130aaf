"""Labelled volumes and pictures from which a memory of other planes learns: read from files, or synthetic.

Synthetic volumes hold packed cells with dark walls, or bodies in a background. They teach what no single data
set has: ends of every shape, look-alikes beside the object, contrasts from plain to hardly there. They are
made in worker processes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import find_objects, gaussian_filter, zoom
from scipy.spatial import cKDTree
from torch import Tensor

MAX_OBJECTS = 250
"""Labels of synthetic volumes fit in eight bits."""


Extents = tuple[dict[int, np.ndarray], dict[int, np.ndarray]]
"""Areas and boxes of every label on every plane, by axis; see `LabelledVolume`."""


@dataclass(eq=False)
class LabelledVolume:
    """A labelled volume where the network is, and where its objects are.

    Attributes
    ----------
    image
        (D, H, W) uint8.
    labels
        (D, H, W) uint8 or int16; 0 is background.
    spacing
        Voxel size along the three axes, in one unit.
    axes
        Along which sequences of planes may be taken.
    areas
        By axis: pixels of every label on every plane, (labels, planes) int32.
    boxes
        By axis: (labels, planes, 4) int16: top, left, bottom, right of every label on every plane, the last
        two exclusive.
    """

    image: Tensor
    labels: Tensor
    spacing: tuple[float, float, float]
    axes: tuple[int, ...]
    areas: dict[int, np.ndarray]
    boxes: dict[int, np.ndarray]

    @classmethod
    def of(
        cls,
        image: np.ndarray,
        labels: np.ndarray,
        spacing: Sequence[float],
        axes: Sequence[int],
        device: str,
        measured: Extents | None = None,
    ) -> LabelledVolume:
        """The volume on a device.

        Parameters
        ----------
        image, labels
            (D, H, W), uint8 and any integer type.
        spacing, axes
            As the attributes.
        measured
            `extents(labels, axes)`, if a worker process has measured them already.
        """
        areas, boxes = extents(labels, axes) if measured is None else measured
        narrow = labels.astype(np.uint8 if labels.max() < 256 else np.int16)
        first, second, third = (float(size) for size in spacing)
        tensors = torch.from_numpy(image).to(device), torch.from_numpy(narrow).to(device)
        return cls(*tensors, (first, second, third), tuple(axes), areas, boxes)


@dataclass(eq=False)
class LabelledPicture:
    """A labelled picture where the network is.

    Attributes
    ----------
    image
        (H, W) uint8.
    labels
        (H, W) int16.
    objects
        Label, area in pixels and box (top, left, bottom, right; the last two exclusive) of each object.
    """

    image: Tensor
    labels: Tensor
    objects: list[tuple[int, int, tuple[int, int, int, int]]]

    @classmethod
    def of(
        cls, image: np.ndarray, labels: np.ndarray, device: str, min_area: int = 60
    ) -> LabelledPicture | None:
        """The picture on a device; None if it has no object of `min_area` pixels."""
        areas = np.bincount(labels.ravel())
        objects = [
            (label, int(areas[label]), (found[0].start, found[1].start, found[0].stop, found[1].stop))
            for label, found in enumerate(find_objects(labels.astype(np.int32)), start=1)
            if found is not None and areas[label] >= min_area
        ]
        if not objects:
            return None
        tensors = torch.from_numpy(image).to(device), torch.from_numpy(labels.astype(np.int16)).to(device)
        return cls(*tensors, objects)


def extents(labels: np.ndarray, axes: Sequence[int]) -> Extents:
    """Return `LabelledVolume.areas` and `LabelledVolume.boxes` of labels (D, H, W)."""
    areas, boxes = {}, {}
    count = int(labels.max()) + 1
    for axis in axes:
        planes = np.moveaxis(labels, axis, 0)
        counts = [np.bincount(plane.ravel(), minlength=count) for plane in planes]
        areas[axis] = np.stack(counts, 1).astype(np.int32)
        boxes[axis] = np.zeros((count, len(planes), 4), np.int16)
        for place, plane in enumerate(planes):
            for label, found in enumerate(find_objects(plane), start=1):
                if found is not None:
                    down, across = found
                    boxes[axis][label, place] = (down.start, across.start, down.stop, across.stop)
    return areas, boxes


def read_labelled_volume(path: Path, device: str) -> LabelledVolume:
    """Read a volume from an .npz file with `image`, `labels`, `spacing` (3,) and `axes`.

    In place of the image there may be `encoded`, the bytes of one picture file per plane, and their `sizes`.

    Raises
    ------
    ValueError
        If image and labels do not fit each other, or there is no label.
    """
    with np.load(path) as file:
        image = file["image"] if "image" in file.files else _decode_planes(file["encoded"], file["sizes"])
        labels = file["labels"]
        spacing, axes = file["spacing"].tolist(), file["axes"].tolist()
    if image.shape != labels.shape or image.ndim != 3 or image.dtype != np.uint8 or not labels.any():
        raise ValueError(
            f"{path.name} must hold a uint8 volume and labels of its shape; got {image.dtype} {image.shape} "
            f"and {labels.shape} with {int(np.count_nonzero(labels))} labelled voxels"
        )
    return LabelledVolume.of(image, labels, spacing, axes, device)


def _decode_planes(encoded: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(D, H, W) uint8 from the bytes of D picture files."""
    ends = np.cumsum(sizes)
    parts = (encoded[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True))
    return np.stack([np.asarray(Image.open(io.BytesIO(part)).convert("L")) for part in parts])


def read_labelled_picture(path: Path, device: str) -> LabelledPicture | None:
    """Read `NAME_image.*` and the labels in `NAME_label.png` beside it; None without an object.

    Raises
    ------
    ValueError
        If their shapes differ.
    """
    image = np.array(Image.open(path).convert("L"))
    labels = np.array(Image.open(path.with_name(f"{path.stem.removesuffix('_image')}_label.png")))
    if image.shape != labels.shape:
        raise ValueError(
            f"{path.name} and its labels must be of one shape; got {image.shape}, {labels.shape}"
        )
    return LabelledPicture.of(image, labels, device)


def synthetic_volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a random volume and its labels, both (D, H, W) uint8; 0 is background."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers((40, 72, 72), (100, 136, 136)))
    cells = bool(rng.random() < 0.4)
    labels = _cells(rng, shape) if cells else _bodies(rng, shape)
    return _intensities(rng, labels, cells), labels


def measured_synthetic_volume(seed: int) -> tuple[np.ndarray, np.ndarray, Extents]:
    """Return `synthetic_volume` and its `extents` along all axes; runs in worker processes."""
    image, labels = synthetic_volume(seed)
    return image, labels, extents(labels, (0, 1, 2))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Return noise (float32 of `shape`) of standard deviation 1, of structures about `scale` voxels wide."""
    step = max(1.0, scale)
    coarse = rng.standard_normal([int(np.ceil(n / step)) + 3 for n in shape]).astype(np.float32)
    if step > 1:
        coarse = zoom(coarse, [(n + step) / (c - 1) for n, c in zip(shape, coarse.shape)], order=1)
    fine: np.ndarray = gaussian_filter(coarse[tuple(slice(0, n) for n in shape)], 0.4 * step)
    spread = float(fine.std())
    return fine / spread if spread > 0 else fine


def _grid(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))


def _warped(rng: np.random.Generator, shape: tuple[int, ...], amount: float, scale: float) -> np.ndarray:
    """Voxel coordinates (3, D, H, W) moved smoothly by about `amount` voxels."""
    return _grid(shape) + amount * np.stack([smooth_noise(rng, shape, scale) for _ in range(3)])


def _cells(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A warped partition into cells that may be long along one axis, as neurites are."""
    stretch = rng.uniform(0.7, 1.4, 3) * np.where(rng.random(3) < 0.35, rng.uniform(0.15, 0.5), 1.0)
    at = _warped(rng, shape, rng.uniform(1.0, 7.0), rng.uniform(10, 26)) * stretch[:, None, None, None]
    mean = rng.uniform(9, 24)
    extent = np.array(shape) * stretch
    count = int(np.clip(np.prod(extent) / mean**3, 8, MAX_OBJECTS))
    seeds = rng.uniform(-0.1, 1.1, (count, 3)) * extent
    reach = rng.uniform(0.75, 1.25, count)  # cells of unequal size: the nearest in a scaled distance
    distance, nearest = cKDTree(seeds).query(at.reshape(3, -1).T, k=min(4, count), workers=1)
    chosen = np.take_along_axis(nearest, np.argmin(distance * reach[nearest], 1)[:, None], 1)[:, 0]
    labels = (chosen + 1).astype(np.uint8).reshape(shape)
    if rng.random() < 0.5:  # some space between the cells
        labels[smooth_noise(rng, shape, rng.uniform(6, 16)) > rng.uniform(0.8, 2.0)] = 0
    return labels


def _bodies(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Some bodies of one or several kinds; later ones lie over earlier ones."""
    labels = np.zeros(shape, np.uint8)
    wobble = rng.choice([0.0, 0.6, 1.5, 3.0])
    at = _warped(rng, shape, wobble, rng.uniform(8, 20)) if wobble else _grid(shape)
    kinds: list[Callable[..., np.ndarray]] = [_ellipsoid, _ellipsoid, _tube, _cone, _torus, _branching]
    few = rng.permutation(len(kinds))[: rng.integers(1, 4)]
    middle = rng.uniform(0.1, 0.9, 3)
    for number in range(1, int(rng.integers(2, 14))):
        spread = 0.5 if rng.random() < 0.5 else 0.2  # sometimes they crowd
        centre = np.clip(middle + spread * rng.uniform(-1, 1, 3), 0.02, 0.98) * shape
        size = float(np.exp(rng.uniform(np.log(3.0), np.log(min(shape) / 2.2))))
        labels[kinds[int(rng.choice(few))](rng, at, centre, size)] = number
    return labels


def _centred(rng: np.random.Generator, at: np.ndarray, centre: np.ndarray, plain: bool = False) -> np.ndarray:
    moved = at - centre[:, None, None, None].astype(np.float32)
    if plain:
        return moved
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return np.tensordot(rotation.astype(np.float32), moved, 1)


def _ellipsoid(rng: np.random.Generator, at: np.ndarray, centre: np.ndarray, size: float) -> np.ndarray:
    ball = rng.random() < 0.4
    radii = np.full(3, size) if ball else size * rng.uniform(0.4, 1.3, 3)
    inside = (_centred(rng, at, centre, ball) / radii[:, None, None, None]) ** 2
    return np.asarray(inside.sum(0) < 1)


def _cone(rng: np.random.Generator, at: np.ndarray, centre: np.ndarray, size: float) -> np.ndarray:
    x, y, z = _centred(rng, at, centre, rng.random() < 0.3)
    height = 2 * size * rng.uniform(0.8, 1.6)
    share = (x + height / 2) / height
    return np.asarray((share > 0) & (share < 1) & (np.hypot(y, z) < size * (1 - share)))


def _torus(rng: np.random.Generator, at: np.ndarray, centre: np.ndarray, size: float) -> np.ndarray:
    x, y, z = _centred(rng, at, centre)
    thick = size * rng.uniform(0.2, 0.4)
    return np.asarray(np.hypot(np.hypot(y, z) - size, x) < thick)


def _path(rng: np.random.Generator, start: np.ndarray, length: float) -> np.ndarray:
    heading = rng.standard_normal(3)
    heading /= np.linalg.norm(heading)
    points = [start]
    for _ in range(max(3, int(length))):
        heading = heading + 0.18 * rng.standard_normal(3)
        heading /= np.linalg.norm(heading)
        points.append(points[-1] + heading)
    return np.array(points)


def _near_path(at: np.ndarray, path: np.ndarray, radius: float) -> np.ndarray:
    shape = at.shape[1:]
    low, high = path.min(0) - radius - 4, path.max(0) + radius + 4
    box = tuple(slice(int(np.clip(a, 0, n)), int(np.clip(b + 1, 0, n))) for a, b, n in zip(low, high, shape))
    inside = np.zeros(shape, bool)
    part = at[(slice(None), *box)]
    if part.size:
        near, _ = cKDTree(path).query(part.reshape(3, -1).T, distance_upper_bound=radius)
        inside[box] = np.isfinite(near).reshape(part.shape[1:])
    return inside


def _tube(rng: np.random.Generator, at: np.ndarray, centre: np.ndarray, size: float) -> np.ndarray:
    radius = float(np.clip(size * rng.uniform(0.15, 0.5), 1.5, 9))
    return _near_path(at, _path(rng, centre, min(120.0, size * rng.uniform(2, 6))), radius)


def _branching(rng: np.random.Generator, at: np.ndarray, centre: np.ndarray, size: float) -> np.ndarray:
    radius = float(np.clip(size * rng.uniform(0.15, 0.4), 1.5, 7))
    paths = [_path(rng, centre, min(90.0, size * rng.uniform(2, 4)))]
    inside = _near_path(at, paths[0], radius)
    for _ in range(int(rng.integers(1, 4))):
        trunk = paths[int(rng.integers(len(paths)))]
        paths.append(_path(rng, trunk[int(rng.integers(len(trunk)))], min(60.0, size * rng.uniform(1, 3))))
        inside |= _near_path(at, paths[-1], radius * rng.uniform(0.6, 1.0))
    return inside


def _intensities(rng: np.random.Generator, labels: np.ndarray, cells: bool) -> np.ndarray:
    """Intensities for labels: flat, textured or nearly alike; walls; soft edges; noise; uneven light."""
    shape = labels.shape
    count = int(labels.max()) + 1
    ground = rng.uniform(40, 215)
    if cells:
        levels = np.clip(ground + rng.normal(0, rng.uniform(1, 25), count), 0, 255)
    elif rng.random() < 0.5:  # all bodies alike: only shape and place tell them apart
        contrast = rng.choice([-1, 1]) * rng.uniform(18, 130)
        levels = np.full(count, ground + contrast) + rng.normal(0, rng.uniform(0, 8), count)
    else:
        levels = rng.uniform(0, 255, count)
    levels[0] = ground if not cells else np.clip(ground + rng.normal(0, 40), 0, 255)
    image = levels.astype(np.float32)[labels]
    if rng.random() < 0.6:  # texture, of its own kind in the objects or the same everywhere
        pattern = smooth_noise(rng, shape, rng.uniform(1.5, 8)) * rng.uniform(2, 22)
        own = rng.random()
        image += pattern if own < 0.4 else pattern * (rng.uniform(0, 1.5, count).astype(np.float32)[labels])
    if cells or rng.random() < 0.25:  # walls
        edge = np.zeros(shape, np.float32)
        for axis in range(3):
            sections = np.swapaxes(labels, 0, axis)
            wall = np.swapaxes(edge, 0, axis)
            wall[1:] = np.maximum(wall[1:], sections[1:] != sections[:-1])
        edge = gaussian_filter(edge, rng.uniform(0.5, 1.3))
        edge /= max(float(edge.max()), 1e-6)
        depth = rng.uniform(15, 110) * (-1 if rng.random() < 0.8 else 1)
        image += depth * edge * np.clip(1 + 0.5 * smooth_noise(rng, shape, 12), 0, 1.5)
    soft = rng.choice([0.0, 0.5, 0.8, 1.2])
    if soft:
        image = gaussian_filter(image, soft)
    if rng.random() < 0.5:  # uneven light, and planes of uneven brightness
        image += smooth_noise(rng, shape, 40) * rng.uniform(0, 18)
    if rng.random() < 0.7:
        grain = smooth_noise(rng, shape, float(rng.choice([1.0, 1.0, 1.6, 2.5])))
        image += grain * rng.exponential(9.0)
    clipped: np.ndarray = np.clip(image, 0, 255).astype(np.uint8)
    return clipped
