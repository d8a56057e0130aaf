"""N5 and Neuroglancer's precomputed volumes, read block by block by tensorstore (the extra `tensorstore`)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import Geometry, find_unit, standard_unit
from napari_lowlat_seg.io.bounds import check_chunk, check_regular
from napari_lowlat_seg.io.choice import WHOLE, Choice, SeveralImages, pick_level, pick_series
from napari_lowlat_seg.io.placed import Held, Loaded, Unreadable

MOST_FOLDERS = 20_000
"""So many files and folders are looked at in search of images, and of pipes that would never be read."""


class Blocks:
    """An open array of tensorstore, its axes reversed to (..., z, y, x), as one that is cut by slices."""

    def __init__(self, store: Any) -> None:
        self._store = store.T
        self.shape = tuple(int(n) for n in self._store.shape)
        self.dtype, self.ndim = self._store.dtype.numpy_dtype, len(self.shape)
        self.chunks = tuple(n or 1 for n in self._store.chunk_layout.read_chunk.shape)
        check_chunk(self.chunks, self.dtype)

    def __getitem__(self, key: Any) -> np.ndarray:
        """The pixels that a key of ints and slices names."""
        return np.asarray(self._store[key].read().result())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)


def read_n5(path: Path, choice: Choice = WHOLE) -> Loaded:
    """A data set of an N5 container, or a level of one that has several ("s0", "s1", ...).

    Sizes are those of `pixelResolution`, `resolution` or COSEM's `transform`, and `downsamplingFactors`.

    Raises
    ------
    ValueError
        For several images without a choice, for a folder that holds none, and for pipes in it.
    """
    _check_folder(path)
    images, inside = _n5_images(path), choice.inside
    for levels in images.values():
        if inside in levels and inside not in images:  # a path to a level
            if choice.level not in (None, levels.index(inside)):
                raise Unreadable(
                    f"its path leads to level {levels.index(inside)}; leave out level {choice.level}"
                )
            return _n5_level(path, levels, levels.index(inside))
    within = [name for name in images if not inside or f"{name}/".startswith(f"{inside}/")]
    if not within:
        some = f"; there are {', '.join(images)}" if images else ""
        raise SeveralImages(f"there is no image {inside!r} in it{some}", list(images))
    names = [name.removeprefix(inside).strip("/") for name in within]
    levels = images[within[pick_series(names, choice.series)]]
    shapes = [_attributes(path / level)["dimensions"][::-1] for level in levels]
    return _n5_level(path, levels, pick_level(choice.level, shapes))


def _n5_images(root: Path) -> dict[str, list[str]]:
    """The paths of images below a folder, with those of their levels; an image without any is its own."""
    arrays = sorted(
        folder.relative_to(root).as_posix()
        for folder in _folders(root)
        if "dimensions" in _attributes(folder)
    )
    images: dict[str, list[str]] = {}
    for name in arrays:
        above, _, last = name.rpartition("/")
        pyramid = last[:1] == "s" and last[1:].isdigit()
        images.setdefault(above if pyramid else name, []).append(name)
    return {
        name: sorted(levels, key=lambda one: int(one.rpartition("/")[2][1:]) if len(levels) > 1 else 0)
        for name, levels in images.items()
    }


def _folders(root: Path) -> list[Path]:
    """A folder and those in it that may hold attributes: blocks lie in folders that are numbers."""
    found: list[Path] = []
    waiting = [root]
    while waiting and len(found) < MOST_FOLDERS:
        folder = waiting.pop()
        found.append(folder)
        if "dimensions" not in _attributes(folder):
            waiting += [one for one in folder.iterdir() if one.is_dir() and not one.is_symlink()]
    return found


def _attributes(folder: Path) -> dict[str, Any]:
    place = folder / "attributes.json"
    if not place.is_file():
        return {}
    about = json.loads(place.read_text())
    if not isinstance(about, dict):
        raise ValueError(f"{place.name} of {folder.name} holds no attributes")
    return about


def _n5_level(root: Path, levels: Sequence[str], number: int) -> Loaded:
    store = _open({"driver": "n5"}, root / levels[number])
    data = Blocks(store)
    place = root / levels[number]
    geometry = _n5_geometry(
        _attributes(place), _attributes(place.parent), _attributes(root / levels[0]), number, data
    )
    return Loaded(data, geometry)


def _n5_geometry(own: Any, group: Any, finest: Any, number: int, data: Blocks) -> Geometry:
    """Steps and start along (..., z, y, x): N5 counts its axes from the fastest."""
    ndim = data.ndim
    names = ["xyztc"[i] if i < 5 else f"d{i}" for i in range(ndim)][::-1]
    transform = own.get("transform")
    if isinstance(transform, dict) and len(transform.get("scale", ())) == ndim:
        units = [standard_unit(unit) for unit in transform.get("units", [None] * ndim)]
        return Geometry.from_scale(names, _floats(transform["scale"]), _floats(transform["translate"]), units)
    if "downsamplingFactors" not in own and own["dimensions"] != finest["dimensions"]:
        factor, said = _factors(own, group, finest, number), {**group, **own, **finest}
    else:
        factor, said = _floats(own.get("downsamplingFactors") or [1] * ndim), {**group, **finest, **own}
    sizes, units = _resolution(said, ndim)
    names = _listed(said.get("axes"), ndim) or names
    scale = [size * f for size, f in zip(sizes, factor, strict=True)][::-1]
    # A voxel of a coarser level is the mean of those that it covers, and lies in their middle.
    start = [size * (f - 1) / 2 for size, f in zip(sizes, factor, strict=True)][::-1]
    return Geometry.from_scale(names, scale, start, units[::-1], [_kind(unit) for unit in units[::-1]])


def _listed(axes: Any, ndim: int) -> list[str]:
    """The names of axes that a file lists, slowest first; none unless there is one for each axis."""
    said = [str(name) for name in axes] if isinstance(axes, list) else []
    return said[::-1] if len(said) == ndim == len(set(said)) else []


def _kind(unit: str | None) -> Any:
    """What a unit measures; None without one that is known."""
    known = find_unit(unit or "")
    return None if known is None else known.kind


def _factors(own: Any, group: Any, finest: Any, number: int) -> list[float]:
    """Voxels of the finest level that one of this level covers along each axis, which it does not say."""
    scales = group.get("scales") or ()
    if number < len(scales):
        return _floats(scales[number])
    return [_factor(n, m) for n, m in zip(finest["dimensions"], own["dimensions"], strict=True)]


def _factor(fine: int, coarse: int) -> float:
    """Voxels that one of a coarser level covers along an axis, from both lengths: a power of two if any."""
    powers = (2**k for k in range(int(fine).bit_length() + 1))
    return float(next((n for n in powers if coarse in (-(-fine // n), fine // n)), round(fine / coarse)))


def _resolution(about: dict[str, Any], ndim: int) -> tuple[list[float], list[str | None]]:
    """Size of a voxel of the finest level along (x, y, z, ...), and the unit of each axis.

    One unit is that of the three axes of space.
    """
    said: Any = about.get("pixelResolution", about.get("resolution"))
    unit: Any = about.get("units")
    if isinstance(said, dict):
        said, unit = said.get("dimensions"), said.get("unit")
    if not isinstance(said, list) or len(said) != ndim:
        return [1.0] * ndim, [None] * ndim
    if not isinstance(unit, list) or len(unit) != ndim:
        one = unit[0] if isinstance(unit, list) and unit else unit
        unit = [one if i < 3 else None for i in range(ndim)]
    return _floats(said), [standard_unit(one) if isinstance(one, str) else None for one in unit]


def read_precomputed(path: Path, choice: Choice = WHOLE) -> Loaded:
    """A scale of a Neuroglancer volume, in nm, at its offset; without a level the first, which is the finest.

    Raises
    ------
    ValueError
        For a folder without a readable `info`, and for pipes in it.
    """
    _check_folder(path)
    info = json.loads((path / "info").read_text())
    scales = info["scales"]
    number = pick_level(choice.level, [scale["size"][::-1] for scale in scales])
    for scale in scales:
        if any(part in ("", ".", "..") for part in str(scale["key"]).split("/")):
            raise ValueError(f"its scale {scale['key']!r} is not inside it")
    store = _open({"driver": "neuroglancer_precomputed", "scale_index": number}, path)
    data: Any = Blocks(store)
    channel_axis: int | None = 0
    if data.shape[0] == 1:
        data, channel_axis = Held(data, {0: 0}), None
    scale = scales[number]
    steps, fine = _floats(scale["resolution"]), _floats(scales[0]["resolution"])
    offsets = scale.get("voxel_offset", (0, 0, 0))
    # Neuroglancer's coordinates count from the corner of a voxel: a coarser level's first lies further in.
    start = [
        (offset + 0.5) * step - 0.5 * first for offset, step, first in zip(offsets, steps, fine, strict=True)
    ]
    geometry = Geometry.from_scale("zyx", steps[::-1], start[::-1], ["nm"] * 3)
    return Loaded(data, geometry, channel_axis)


def _open(spec: dict[str, Any], folder: Path) -> Any:
    import tensorstore

    where = {"driver": "file", "path": str(folder.absolute())}
    store = tensorstore.open({**spec, "kvstore": where}, read=True).result()
    if np.dtype(store.dtype.numpy_dtype).kind not in "buif":
        raise ValueError(f"its pixels are of type {store.dtype.name}; they must be numbers")
    return store[tensorstore.d[:].translate_to[0]]


def _floats(numbers: Sequence[Any]) -> list[float]:
    found = [float(number) for number in numbers]
    if not all(math.isfinite(number) for number in found):
        raise ValueError(f"its sizes {found} are no numbers")
    return found


def _check_folder(path: Path) -> None:
    """Refuse pipes, devices and links that lead out: tensorstore would wait for them, or follow them."""
    root, seen = path.resolve(), 0
    for folder, _, files in os.walk(root):
        for name in files:
            place = Path(folder) / name
            if place.is_symlink() and not place.resolve().is_relative_to(root):
                raise ValueError(f"{name} is a link that leads out of the folder")
            check_regular(place)
            seen += 1
            if seen >= MOST_FOLDERS:
                return
