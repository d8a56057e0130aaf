"""OME-Zarr images and labels larger than memory: read cut by cut, written where something changes.

An image is opened, never loaded: its array is read by `Volume.plane`. Labels are an OME-Zarr multiscale image
of their own; every write changes the same place on all levels, so that the pyramid is true at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.volume import Volume, intensity_window

SIDE = 512
"""Rows and columns of a chunk of labels; along other axes a chunk is one voxel long."""

SMALLEST = 512
"""Levels are halved until rows and columns are no more than this."""

HIGHEST = "lowlat-seg-highest"
"""The attribute of labels that says their highest id; without it they are searched for it."""

SAMPLED_CHUNKS = 16
"""A window is chosen from so many chunks of the coarsest level."""


@dataclass(frozen=True)
class OmeZarrHeader:
    """Of an OME-Zarr: names and units of the spatial axes, and (low, high) of its coarsest level or None."""

    axes: str
    units: tuple[str | None, ...]
    window: tuple[float, float] | None


def open_image(path: Path) -> tuple[Any, tuple[float, ...] | None, int | None, OmeZarrHeader]:
    """The finest level of an image as an array on disk, its spacing, its channel axis and its header.

    Versions 0.4 and 0.5 are understood. Raises ValueError for anything that is no OME-Zarr image, and
    ImportError without zarr.
    """
    zarr = _zarr()
    group = zarr.open_group(path, mode="r")
    about = dict(group.attrs)
    images = about.get("ome", about).get("multiscales")
    if not images:
        raise ValueError("expected an OME-Zarr image with multiscales; found none")
    image = images[0]
    levels = [group[level["path"]] for level in image["datasets"]]
    names = "".join(axis["name"][0].lower() for axis in image["axes"])
    units = tuple(axis.get("unit") for axis in image["axes"])
    scale = [1.0] * len(names)
    for change in (*image["datasets"][0].get("coordinateTransformations", ()),
                   *image.get("coordinateTransformations", ())):  # fmt: skip
        if change["type"] == "scale":
            scale = [a * float(b) for a, b in zip(scale, change["scale"], strict=True)]
    channel_axis = names.index("c") if "c" in names else None
    kept = [i for i in range(len(names)) if i != channel_axis]
    header = OmeZarrHeader(
        "".join(names[i] for i in kept), tuple(units[i] for i in kept), _window(levels[-1])
    )
    return levels[0], tuple(scale[i] for i in kept), channel_axis, header


def labels_group(path: str | Path, like: Volume) -> Any:
    """The zarr group of labels for a volume: opened for writing where it exists, made where not.

    Raises ValueError if there is something else at the path, and ImportError without zarr and ome-zarr.
    """
    zarr = _zarr()
    path = Path(path)
    if not path.exists():
        return _created(zarr, path, like)
    try:
        group = zarr.open_group(path, mode="r+")
        levels = label_levels(group)
    except (OSError, KeyError):  # a file, an empty folder, a group without its arrays
        levels = ()
    shape = levels[0].shape if levels else None
    if shape != like.shape:
        raise ValueError(f"{path} must be labels of shape {like.shape} or not exist; it has shape {shape}")
    return group


def label_levels(group: Any) -> tuple[Any, ...]:
    """The arrays of a group of labels, the finest first; none of a group that holds no labels."""
    about = dict(group.attrs)
    about = about.get("ome", about)
    images = about.get("multiscales")
    if "image-label" not in about or not images:
        return ()
    return tuple(group[level["path"]] for level in images[0]["datasets"])


def group_around(array: Any) -> Any | None:
    """The group of labels that an open array is a level of; None if it is none, or not in a zarr at all."""
    if not hasattr(array, "store_path"):
        return None
    group = _zarr().open_group(array.store, path=array.path.rpartition("/")[0], mode="r+")
    return group if label_levels(group) else None


def found_labels(path: str | Path, name: str, shape: tuple[int, ...]) -> Any | None:
    """The group of labels of this shape at a path, or of this name in the image there; None without one."""
    for place in (Path(path), Path(path) / "labels" / name):
        try:
            group = _zarr().open_group(place, mode="r+")
        except (ImportError, OSError):
            continue
        levels = label_levels(group)
        if levels and levels[0].shape == shape:
            return group
    return None


def _created(zarr: Any, path: Path, like: Volume) -> Any:
    from ome_zarr.format import FormatV05
    from ome_zarr.writer import write_multiscales_metadata

    header = like.header if isinstance(like.header, OmeZarrHeader) else None
    axes = header.axes if header is not None else "tzyx"[-like.ndim :]
    units = header.units if header is not None else (None,) * like.ndim
    spacing = like.spacing or (1.0,) * like.ndim
    root = zarr.open_group(path, mode="w-", zarr_format=3)
    shape, datasets, level = list(like.shape), [], 0
    while True:
        root.create_array(
            str(level),
            shape=tuple(shape),
            chunks=(*(1,) * (like.ndim - 2), *(min(SIDE, n) for n in shape[-2:])),
            dtype=np.uint32,
            fill_value=0,
            dimension_names=list(axes),
        )
        scale = [*spacing[:-2], *(s * 2**level for s in spacing[-2:])]
        transformation = {"type": "scale", "scale": scale}
        datasets.append({"path": str(level), "coordinateTransformations": [transformation]})
        if max(shape[-2:]) <= SMALLEST:
            break
        shape[-2:] = [-(-n // 2) for n in shape[-2:]]
        level += 1
    described = [_axis(name, unit) for name, unit in zip(axes, units)]
    write_multiscales_metadata(root, datasets, fmt=FormatV05(), axes=described, name=path.stem)
    ome = dict(root.attrs["ome"])
    root.attrs["ome"] = {**ome, "image-label": {}}
    return root


def _axis(name: str, unit: str | None) -> dict[str, str]:
    axis = {"name": name, "type": {"t": "time", "c": "channel"}.get(name, "space")}
    return axis if unit is None else axis | {"unit": unit}


def _window(level: Any) -> tuple[float, float] | None:
    """An intensity window from some chunks of a level, those left out in which nothing was ever written."""
    if np.dtype(level.dtype).kind in "b" or level.dtype == np.uint8:
        return intensity_window(np.zeros(1, level.dtype))
    counts = [-(-n // c) for n, c in zip(level.shape, level.chunks)]
    total = int(np.prod(counts, dtype=np.int64))
    seen = []
    for flat in np.unique(np.linspace(0, total - 1, min(total, SAMPLED_CHUNKS)).astype(np.int64)):
        at = np.unravel_index(int(flat), counts)
        block = np.asarray(level[tuple(slice(i * c, (i + 1) * c) for i, c in zip(at, level.chunks))])
        block = block[np.isfinite(block)] if block.dtype.kind == "f" else block.ravel()
        seen.append(block[block != level.fill_value])
    values = np.concatenate(seen)
    return intensity_window(values) if values.size else None


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            "OME-Zarr needs zarr, which is not installed; pip install napari-lowlat-seg[zarr]"
        ) from error
    return zarr
