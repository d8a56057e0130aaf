"""OME-Zarr images and labels larger than memory: read cut by cut, written where something changes.

An image is opened, never loaded: its array is read by `Volume.plane`. Labels are an OME-Zarr multiscale image
of their own; every write changes the same place on all levels, so that the pyramid is true at any time.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.atomic_file import PREFIX, in_use, remove_leftovers
from napari_lowlat_seg.core.geometry import Axis, Geometry, find_unit
from napari_lowlat_seg.core.volume import Volume, intensity_window
from napari_lowlat_seg.io.choice import WHOLE, Choice, SeveralImages, pick_level, pick_series
from napari_lowlat_seg.io.format_table import needed
from napari_lowlat_seg.io.placed import (
    Loaded,
    StoredAxis,
    Turn,
    Unreadable,
    geometry_of,
    placed,
    upright,
    usual_geometry,
)

SIDE = 512
"""Rows and columns of a chunk of labels; along other axes a chunk is one voxel long."""

SMALLEST = 512
"""Levels are halved until rows and columns are no more than this."""

HIGHEST = "lowlat-seg-highest"
"""The attribute of labels that says their highest id; without it they are searched for it."""

MOST_WELLS = 2000
"""Wells of a plate whose fields are listed."""

SAMPLED_CHUNKS = 16
"""A window is chosen from so many chunks of the coarsest level."""


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """A level of an image as an array on disk, with its geometry; nothing is read but a sample.

    Versions 0.1 to 0.5 are understood, folders of images as bioformats2raw writes them, plates of wells
    ("A/1/0" is a field), and plain arrays. Without a level the finest is opened. Axes of time and channels
    of length 1 are left out.

    Parameters
    ----------
    path
        The folder.
    choice
        Its series is the name, the number or the path of an image in the folder.

    Raises
    ------
    ValueError
        For anything that is no image, and where there are several and none is chosen.
    ImportError
        Without zarr.
    """
    node, image, number = _chosen(path, choice)
    return _plain(node, choice.level) if image is None else _multiscale(node, image, number, choice.level)


def count_levels(path: Path, choice: Choice = WHOLE) -> int:
    """How many levels an image has: 1 of a plain array, and where the path leads to one level."""
    node, image, number = _chosen(path, choice)
    return 1 if image is None or number is not None else len(_levels(node, image))


def _chosen(path: Path, choice: Choice) -> tuple[Any, dict[str, Any] | None, int | None]:
    """The group of an image, its multiscale, and the level if the path leads to one; else a plain array."""
    zarr = _zarr()
    from napari_lowlat_seg.io.chunked.guarded_store import opened

    root = opened(zarr, path)
    if choice.inside and (isinstance(root, zarr.Array) or choice.inside not in root):
        raise SeveralImages(f"there is no {choice.inside!r} in it", ())
    node = _find(zarr, root[choice.inside] if choice.inside else root, choice.series)
    if isinstance(node, zarr.Array):
        image, number = _level_of(zarr, root, node.path)
        return (node, None, None) if image is None else (image, _images(image)[0], number)
    images = _images(node)
    # Where an image stands in several pyramids, the first is the one to fall back on, says the standard.
    named = [one for one in images if choice.series and one.get("name") == choice.series]
    return node, (named or images)[0], None


def _about(node: Any) -> dict[str, Any]:
    """The attributes of a node that OME-Zarr defines; in version 0.5 they stand under "ome"."""
    about = dict(node.attrs)
    return dict(about.get("ome", about))


def _images(node: Any) -> list[dict[str, Any]]:
    """The pyramids of an image."""
    return list(_about(node).get("multiscales") or ())


def _find(zarr: Any, node: Any, series: str) -> Any:
    """The image or array that a series names, or the only one that there is."""
    if isinstance(node, zarr.Array):
        return node
    if _is_path(series) and series in node:
        return _find(zarr, node[series], "")
    if images := _images(node):
        if series and series not in [one.get("name") for one in images]:
            raise SeveralImages(f"there is no series {series!r} in it, but one image", ())
        return node
    names, about = _members(node)
    if not names:
        raise ValueError("expected an OME-Zarr image with multiscales; found none, and no array")
    return _find(zarr, node[names[pick_series(names, series, about)]], "")


def _is_path(series: str) -> bool:
    return all(part not in ("", ".", "..") for part in series.split("/"))


def _members(node: Any) -> tuple[list[str], list[str]]:
    """Paths of the images in a folder, and what is to be said of each: a plate, a well, a collection."""
    about = _about(node)
    if "plate" in about:
        wells = [str(well["path"]) for well in about["plate"].get("wells", ())][:MOST_WELLS]
        fields = [f"{well}/{field}" for well in wells if well in node for field in _members(node[well])[0]]
        return fields, []
    if "well" in about:
        return [str(image["path"]) for image in about["well"].get("images", ())], []
    if "bioformats2raw.layout" in about:
        return sorted((name for name in node.group_keys() if name.isdigit()), key=int), []
    arrays = [(name, one) for name, one in node.arrays() if one.ndim > 1]
    return [name for name, _ in arrays], [str(one.shape) for _, one in arrays]


def _level_of(zarr: Any, root: Any, path: str) -> tuple[Any, int]:
    """The image that an array is a level of, with the number of the level; (None, 0) if of none."""
    folder, _, name = path.rpartition("/")
    if name and not isinstance(root, zarr.Array):
        above = root[folder] if folder else root
        for image in _images(above)[:1]:
            paths = [level.get("path") for level in image["datasets"]]
            if name in paths:
                return above, paths.index(name)
    return None, 0


def _levels(group: Any, image: dict[str, Any]) -> list[Any]:
    """The arrays of a pyramid, the finest first, all of numbers and inside the folder."""
    import zarr

    from napari_lowlat_seg.io.chunked.guarded_store import checked

    levels = []
    for dataset in image.get("datasets") or ():
        path = str(dataset.get("path", ""))
        if not _is_path(path) or not isinstance(group.get(path), zarr.Array):
            raise ValueError(f"its level {path!r} is no array inside it")
        levels.append(checked(group[path]))
    if not levels:
        raise ValueError("its multiscales name no level")
    return levels


def _multiscale(group: Any, image: dict[str, Any], number: int | None, chosen: int | None) -> Loaded:
    """A level of a pyramid: `number` if its path led there, else the one that is chosen."""
    levels = _levels(group, image)
    if number is None:
        number = pick_level(chosen, [level.shape for level in levels])
    elif chosen not in (None, number):
        raise Unreadable(f"its path leads to level {number}; leave out level {chosen}")
    level = levels[number]
    axes, scale, translation = _placed_axes(image, level.ndim, number, levels[0].shape, level.shape)
    stored = [
        StoredAxis(axis["name"], "channel" if axis["name"] == "c" else axis["type"], axis.get("unit"), *place)
        for axis, *place in zip(axes, scale, translation, strict=True)
    ]
    return placed(level, stored, ("channel", "time"), window=_window(levels[-1]))


def _plain(array: Any, level: int | None) -> Loaded:
    """An array that is no part of an OME-Zarr."""
    from napari_lowlat_seg.io.chunked.guarded_store import checked

    checked(array)
    pick_level(level, [array.shape])
    names = array.metadata.dimension_names if array.metadata.zarr_format == 3 else None
    names = [str(name) for name in names or array.attrs.get("_ARRAY_DIMENSIONS", ())]
    if len(names) != array.ndim or len(set(names)) < array.ndim:
        return Loaded(array, usual_geometry(array.ndim))
    channel_axis = names.index("c") if "c" in names else None
    kept = [name for name in names if name != "c"]
    return Loaded(array, Geometry.from_scale(kept), channel_axis)


def _placed_axes(
    image: dict[str, Any], ndim: int, number: int, finest: Sequence[int], shape: Sequence[int]
) -> tuple[list[dict[str, Any]], list[float], list[float]]:
    """The axes of a level with kinds and names of their own; its scale and translation.

    Before version 0.4 levels say no scale; then it follows from their shapes.
    """
    axes = _named_axes(image, ndim)
    scale, translation = [1.0] * ndim, [0.0] * ndim
    own = image["datasets"][number].get("coordinateTransformations", ())
    if not own:
        scale = [n / m for n, m in zip(finest, shape, strict=True)]
        translation = [(step - 1) / 2 for step in scale]
    # From 0.6 on those of the image lead on from its own world to others, and are not asked for.
    beyond = () if "coordinateSystems" in image else image.get("coordinateTransformations", ())
    for change in (*_in_turn(own), *beyond):
        # One after the other: a scale enlarges what was translated before it.
        if change["type"] == "scale":
            scale = [a * float(b) for a, b in zip(scale, change["scale"], strict=True)]
            translation = [a * float(b) for a, b in zip(translation, change["scale"], strict=True)]
        elif change["type"] == "translation":
            translation = [a + float(b) for a, b in zip(translation, change["translation"], strict=True)]
        elif change["type"] != "identity":
            raise Unreadable(f"its transformation of type {change['type']!r} cannot be read")
    return axes, scale, translation


def _in_turn(changes: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Transformations one after the other, those of a sequence (version 0.6) in their order."""
    for change in changes:
        if change["type"] == "sequence":
            yield from _in_turn(change["transformations"])
        else:
            yield change


def _system_axes(image: dict[str, Any]) -> list[Any] | None:
    """The axes of the coordinate system that the finest level lies in (version 0.6), None without one."""
    systems = image.get("coordinateSystems") or ()
    changes: Sequence[dict[str, Any]] = image["datasets"][0].get("coordinateTransformations") or ({},)
    output = changes[-1].get("output")
    name = output.get("name") if isinstance(output, dict) else output
    known = [one for one in systems if one.get("name") == name]
    if systems and not known:
        raise ValueError(f"its level is placed in the coordinate system {name!r}, which it does not describe")
    return list(known[0]["axes"]) if known else None


def _named_axes(image: dict[str, Any], ndim: int) -> list[dict[str, Any]]:
    # Versions 0.1 and 0.2 have no axes, 0.3 has names.
    listed = image.get("axes") or _system_axes(image) or list("tczyx"[-ndim:])
    axes = [dict(axis) if isinstance(axis, dict) else {"name": axis} for axis in listed]
    if len(axes) != ndim:
        raise ValueError(f"it names {len(axes)} axes, its arrays have {ndim}")
    for axis in axes:
        kinds = {"t": "time", "c": "channel"}
        axis.setdefault("type", kinds.get(axis["name"].lower(), "space"))
        if axis["name"].lower() in "tczyx":
            axis["name"] = axis["name"].lower()
    return axes


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
    from napari_lowlat_seg.io.chunked.guarded_store import opened

    try:
        group = opened(zarr, path, write=True)
        levels = label_levels(group)
    except (OSError, KeyError, AttributeError):  # a file, an empty folder, a group without its arrays
        levels = ()
    there = levels[0].shape if levels else None
    if there != shape:
        raise ValueError(f"{path} must be labels of shape {shape} or not exist; it has shape {there}")
    axes, scale, translation = _placed_axes(_images(group)[0], len(shape), 0, shape, shape)
    place = Geometry.from_scale(
        [axis["name"] for axis in axes], scale, translation, [axis.get("unit") for axis in axes]
    )
    if place.calibrated and geometry.calibrated:
        fit = geometry.turn_from(place, shape, shape)
        if fit is None or not Turn(*fit).is_identity:
            raise ValueError(
                f"the labels in {path} lie elsewhere than the image; give the new ones another name"
            )
    if image_of(path) is not None:
        with suppress(OSError):  # a folder that is no group has no list
            _list(zarr, path)  # whoever made them may have been killed before
    return group


def label_levels(group: Any) -> tuple[Any, ...]:
    """The arrays of a group of labels, the finest first; none of a group that holds no labels."""
    images = _images(group)
    return tuple(_levels(group, images[0])) if "image-label" in _about(group) and images else ()


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
            zarr = _zarr()
            from napari_lowlat_seg.io.chunked.guarded_store import opened

            group = opened(zarr, place, write=True)
        except (ImportError, OSError):
            continue
        if isinstance(group, zarr.Array):
            continue
        levels = label_levels(group)
        if levels and levels[0].shape == shape:
            return group
    return None


def _created(zarr: Any, path: Path, shape: Sequence[int], geometry: Geometry) -> Any:
    """A new, empty group of labels."""
    with _creating(zarr, path, shape, geometry):
        pass
    return zarr.open_group(path, mode="r+")


@contextmanager
def creating(path: str | Path, like: Volume) -> Iterator[Any]:
    """A new zarr group of labels for a volume, which gets its name when the block ends without an error.

    Until then it has a temporary name, which begins with a dot: what a killed process has left looks like
    nothing that is whole, and a later writer to the folder removes it. Axes are those of `labels_plan`.

    Raises
    ------
    OSError
        With `path` in place of the temporary name.
    ValueError, ImportError
        As `labels_group`.
    """
    turn, geometry = labels_plan(like)
    with _creating(_zarr(), Path(path), turn.shape(like.shape), geometry) as group:
        yield group


@contextmanager
def _creating(zarr: Any, path: Path, shape: Sequence[int], geometry: Geometry) -> Iterator[Any]:
    """As `creating`.

    Labels in the `labels` folder of an image are of the image's zarr version and entered in the folder's
    list, where readers look for them.
    """
    image = image_of(path)
    version = 3 if image is None else int(zarr.open_group(image, mode="r").metadata.zarr_format)
    if image is not None and not any((path.parent / name).exists() for name in ("zarr.json", ".zgroup")):
        zarr.open_group(path.parent, mode="a", zarr_format=version)  # also in a folder that a kill left empty
    remove_leftovers(path.parent)
    part = path.with_name(f"{PREFIX}{secrets.token_hex(6)}-{path.name[-56:]}")
    try:
        _make(zarr, part, path.stem, shape, geometry, version)
        with in_use(part):
            yield zarr.open_group(part, mode="r+")
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
        _list(zarr, path)


def image_of(path: str | Path) -> Path | None:
    """The OME-Zarr image whose `labels` folder a path lies in; None if it lies in none."""
    path = Path(path)
    image = path.parent.parent
    inside = any(place.suffix.lower() == ".zarr" for place in path.parents)
    return image if inside and path.parent.name == "labels" and image.is_dir() else None


def _list(zarr: Any, path: Path) -> None:
    """Enter labels in the list of their `labels` folder; in version 0.5 it stands under "ome"."""
    folder = zarr.open_group(path.parent, mode="r+")
    about = dict(folder.attrs)
    modern = folder.metadata.zarr_format == 3
    ome = dict(about.get("ome", {"version": "0.5"})) if modern else about
    names = list(ome.get("labels", ()))
    if path.name not in names:
        names.append(path.name)
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
    return needed("zarr", "OME-Zarr", "zarr")
