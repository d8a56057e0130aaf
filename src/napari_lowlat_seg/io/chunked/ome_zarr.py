"""OME-Zarr images and labels larger than memory: read cut by cut, written where something changes.

An image is opened, never loaded: its array is read by `Volume.plane`. Labels are an OME-Zarr multiscale image
of their own; every write changes the same place on all levels, so that the pyramid is true at any time.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.atomic_file import PREFIX
from napari_lowlat_seg.core.geometry import Axis, Geometry, find_unit
from napari_lowlat_seg.core.volume import Volume, intensity_window
from napari_lowlat_seg.io.placed import (
    Loaded,
    Squeezed,
    Turn,
    Unreadable,
    geometry_of,
    upright,
    usual_geometry,
)

SIDE = 512
"""Rows and columns of a chunk of labels; along other axes a chunk is one voxel long."""

SMALLEST = 512
"""Levels are halved until rows and columns are no more than this."""

HIGHEST = "lowlat-seg-highest"
"""The attribute of labels that says their highest id; without it they are searched for it."""

SAMPLED_CHUNKS = 16
"""A window is chosen from so many chunks of the coarsest level."""


def read(path: Path, channel: int | None = None, inside: str = "") -> Loaded:
    """The finest level of an image as an array on disk, with its geometry; nothing is read but a sample.

    Versions 0.1 to 0.5 are understood. Axes of time and channels of length 1 are left out.

    Parameters
    ----------
    path
        The folder of an image; of several images as bioformats2raw writes them, if there is one only.
    channel
        Says nothing here: channels are named by the image.
    inside
        The path of an image in the folder, such as "0".

    Raises
    ------
    ValueError
        For anything that is no OME-Zarr image, and where there are several.
    ImportError
        Without zarr.
    """
    zarr = _zarr()
    group = zarr.open(path / inside, mode="r")
    about = dict(group.attrs)
    about = about.get("ome", about)
    if not about.get("multiscales") and "bioformats2raw.layout" in about:
        group = _only_series(group)
        about = dict(group.attrs)
        about = about.get("ome", about)
    images = about.get("multiscales")
    if not images:
        return _plain(zarr, group)
    levels = [group[level["path"]] for level in images[0]["datasets"]]
    axes, scale, translation = _placed_axes(images[0], len(levels[0].shape))
    names = [axis["name"] for axis in axes]
    channels = [i for i, axis in enumerate(axes) if axis.get("type") == "channel" or axis["name"] == "c"]
    shape = levels[0].shape
    single = [
        i for i, axis in enumerate(axes) if shape[i] == 1 and (i in channels or axis.get("type") == "time")
    ]
    axes_kept = [i for i in range(len(names)) if i not in single]
    channel_axis = next((at for at, i in enumerate(axes_kept) if i in channels), None)
    kept = [i for at, i in enumerate(axes_kept) if at != channel_axis]
    geometry = Geometry.from_scale(
        [names[i] for i in kept],
        [scale[i] for i in kept],
        [translation[i] for i in kept],
        [axes[i].get("unit") for i in kept],
        [axes[i].get("type") for i in kept],
    )
    data = Squeezed(levels[0], single) if single else levels[0]
    return Loaded(data, geometry, channel_axis, window=_window(levels[-1]))


def _plain(zarr: Any, node: Any) -> Loaded:
    """An array that is no OME-Zarr: the node itself, or the only one of a group."""
    if not isinstance(node, zarr.Array):
        arrays = [(name, one) for name, one in node.arrays() if one.ndim > 1]
        if not arrays:
            raise ValueError("expected an OME-Zarr image with multiscales; found none, and no array")
        if len(arrays) > 1:
            some = ", ".join(f"…/{name} {one.shape}" for name, one in arrays[:8])
            raise Unreadable(f"there are {len(arrays)} arrays in it; choose one by its path: {some}")
        node = arrays[0][1]
    names = node.metadata.dimension_names if node.metadata.zarr_format == 3 else None
    names = [str(name) for name in names or node.attrs.get("_ARRAY_DIMENSIONS", ())]
    if len(names) != node.ndim or len(set(names)) < node.ndim:
        return Loaded(node, usual_geometry(node.ndim))
    channel_axis = names.index("c") if "c" in names else None
    kept = [name for name in names if name != "c"]
    return Loaded(node, Geometry.from_scale(kept), channel_axis)


def _only_series(group: Any) -> Any:
    """The one image of a folder that bioformats2raw wrote."""
    names = sorted((name for name in group.group_keys() if name.isdigit()), key=int)
    if len(names) != 1:
        raise Unreadable(
            f"there are {len(names)} images in it; choose one by its path, such as "
            f"{', '.join(f'…/{name}' for name in names[:5]) or '…/0'}"
        )
    return group[names[0]]


def _placed_axes(image: dict[str, Any], ndim: int) -> tuple[list[dict[str, Any]], list[float], list[float]]:
    """The axes of an image with kinds and names of their own; scale and translation of its finest level."""
    listed = image.get("axes") or list("tczyx"[-ndim:])  # version 0.1 and 0.2 have no axes, 0.3 has names
    axes = [dict(axis) if isinstance(axis, dict) else {"name": axis} for axis in listed]
    for axis in axes:
        kinds = {"t": "time", "c": "channel"}
        axis.setdefault("type", kinds.get(axis["name"].lower(), "space"))
        if axis["name"].lower() in "tczyx":
            axis["name"] = axis["name"].lower()
    scale, translation = [1.0] * len(axes), [0.0] * len(axes)
    for change in (*image["datasets"][0].get("coordinateTransformations", ()),
                   *image.get("coordinateTransformations", ())):  # fmt: skip
        # One after the other: a scale enlarges what was translated before it.
        if change["type"] == "scale":
            scale = [a * float(b) for a, b in zip(scale, change["scale"], strict=True)]
            translation = [a * float(b) for a, b in zip(translation, change["scale"], strict=True)]
        elif change["type"] == "translation":
            translation = [a + float(b) for a, b in zip(translation, change["translation"], strict=True)]
    return axes, scale, translation


def labels_plan(like: Volume) -> tuple[Turn, Geometry]:
    """How labels of a volume are turned for OME-Zarr, and their geometry then.

    Raises
    ------
    ValueError
        For an image that lies oblique in the world, and for a unit that is not known.
    """
    turn, geometry = upright(geometry_of(like), like.shape, "OME-Zarr")
    for axis in geometry.world:
        if axis.unit is not None and find_unit(axis.unit) is None:
            raise ValueError(f"OME-Zarr cannot hold lengths in {axis.unit!r}, a unit that is not known")
    return turn, geometry


def check_labels(path: Path, like: Volume) -> None:
    """Refuse, before any work, what labels of a volume cannot be in OME-Zarr, and a place that is taken.

    Raises
    ------
    ValueError, ImportError
        As `labels_group`; nothing is made.
    FileNotFoundError
        If the folder above does not exist.
    """
    labels_plan(like)
    if path.exists():
        labels_group(path, like)
    elif image_of(path) is None and not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder at {path.parent}; make it first")
    else:
        _zarr()


def labels_group(path: str | Path, like: Volume) -> Any:
    """The zarr group of labels for a volume: opened for writing where it exists, made where not.

    Axes are the world's, as `labels_plan` says. Nothing is left of a group that could not be begun.

    Raises
    ------
    ValueError
        If there is something else at the path, or labels that lie elsewhere; and as `labels_plan`.
    ImportError
        Without zarr and ome-zarr.
    """
    zarr = _zarr()
    path = Path(path)
    turn, geometry = labels_plan(like)
    shape = turn.shape(like.shape)
    if not path.exists():
        return _created(zarr, path, shape, geometry)
    try:
        group = zarr.open_group(path, mode="r+")
        levels = label_levels(group)
    except (OSError, KeyError):  # a file, an empty folder, a group without its arrays
        levels = ()
    there = levels[0].shape if levels else None
    if there != shape:
        raise ValueError(f"{path} must be labels of shape {shape} or not exist; it has shape {there}")
    about = dict(group.attrs)
    axes, scale, translation = _placed_axes(about.get("ome", about)["multiscales"][0], len(shape))
    place = Geometry.from_scale(
        [axis["name"] for axis in axes], scale, translation, [axis.get("unit") for axis in axes]
    )
    if place.calibrated and geometry.calibrated:
        fit = geometry.turn_from(place, shape, shape)
        if fit is None or not Turn(*fit).is_identity:
            raise ValueError(
                f"the labels in {path} lie elsewhere than the image; give the new ones another name"
            )
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


def _created(zarr: Any, path: Path, shape: Sequence[int], geometry: Geometry) -> Any:
    """A new group of labels; it is made under another name and gets its own when it is complete.

    Labels in the `labels` folder of an image are of the image's zarr version and entered in the folder's
    list, where readers look for them.
    """
    image = image_of(path)
    version = 3 if image is None else int(zarr.open_group(image, mode="r").metadata.zarr_format)
    if image is not None and not path.parent.exists():
        zarr.open_group(path.parent, mode="w-", zarr_format=version)
    part = path.with_name(f"{PREFIX}{secrets.token_hex(6)}-{path.name[-56:]}")
    try:
        _make(zarr, part, path.stem, shape, geometry, version)
        part.rename(path)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if image is not None:
        _list(zarr.open_group(path.parent, mode="r+"), path.name)
    return zarr.open_group(path, mode="r+")


def image_of(path: str | Path) -> Path | None:
    """The OME-Zarr image whose `labels` folder a path lies in; None if it lies in none."""
    path = Path(path)
    image = path.parent.parent
    inside = any(place.suffix.lower() == ".zarr" for place in path.parents)
    return image if inside and path.parent.name == "labels" and image.is_dir() else None


def _list(folder: Any, name: str) -> None:
    """Enter a name in the list of a `labels` folder; in version 0.5 it stands under "ome"."""
    about = dict(folder.attrs)
    modern = folder.metadata.zarr_format == 3
    ome = dict(about.get("ome", {"version": "0.5"})) if modern else about
    names = [*ome.get("labels", ()), *([] if name in ome.get("labels", ()) else [name])]
    folder.attrs.update({"ome": {**ome, "labels": names}} if modern else {"labels": names})


def _make(zarr: Any, path: Path, name: str, full: Sequence[int], geometry: Geometry, version: int) -> None:
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import write_multiscales_metadata

    root = zarr.open_group(path, mode="w-", zarr_format=version)
    # Version 2 has no names of dimensions, and OME-Zarr 0.4 wants its chunks in folders.
    more = (
        {"dimension_names": list(geometry.names)}
        if version == 3
        else {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    )
    shape, datasets, level = list(full), [], 0
    while True:
        root.create_array(
            str(level),
            shape=tuple(shape),
            chunks=(*(1,) * (len(shape) - 2), *(min(SIDE, n) for n in shape[-2:])),
            dtype=np.uint32,
            fill_value=0,
            **more,
        )
        # Coarser levels show every second voxel, the first of all among them: their place is the same.
        factors = [1] * (len(shape) - 2) + [2**level] * 2
        coarse = geometry.downsample(factors)
        changes: list[dict[str, Any]] = [{"type": "scale", "scale": list(coarse.spacing)}]
        if coarse.translation.any():
            changes.append({"type": "translation", "translation": coarse.translation.tolist()})
        datasets.append({"path": str(level), "coordinateTransformations": changes})
        if max(shape[-2:]) <= SMALLEST:
            break
        shape[-2:] = [-(-n // 2) for n in shape[-2:]]
        level += 1
    axes = [_axis(axis) for axis in geometry.axes]
    fmt = FormatV05() if version == 3 else FormatV04()
    write_multiscales_metadata(root, datasets, fmt=fmt, axes=axes, name=name)
    if version == 3:
        root.attrs["ome"] = {**dict(root.attrs["ome"]), "image-label": {}}
    else:
        root.attrs["image-label"] = {"version": "0.4"}


def _axis(axis: Axis) -> dict[str, str]:
    unit = find_unit(axis.unit or "")
    described = {"name": axis.name} | ({} if axis.kind == "other" else {"type": axis.kind})
    return described if unit is None else described | {"unit": unit.name}


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
