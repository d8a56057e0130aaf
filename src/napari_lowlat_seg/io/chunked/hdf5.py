"""HDF5 (the extra `hdf5`): a data set of a file, opened and not loaded; sizes of Fiji, ilastik, CREMI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.io.bounds import IMPOSSIBLE, check_chunk, nbytes_of, sibling
from napari_lowlat_seg.io.choice import WHOLE, Choice, pick_series
from napari_lowlat_seg.io.placed import Loaded, StoredAxis, Unreadable, placed, usual_geometry

CHUNK_CACHE = 2**26
"""Bytes of chunks that HDF5 keeps: a plane of a stack of cubes is cut from all cubes that it meets."""


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """The only image of a file, or that at a path inside it, such as "volumes/raw".

    Sizes are read from `element_size_um` (Fiji, ilastik), or `resolution` and `offset` in nm (CREMI); axes
    from `axistags` or the labels of dimensions.

    Raises
    ------
    ValueError
        For several images without a choice, and for a path that is not there.
    """
    import h5py

    file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE)
    node = file.get(choice.inside) if choice.inside else file
    if node is not None and Path(node.file.filename) != path:  # a link to another file
        sibling(path, str(node.file.filename))
    series = choice.inside if node is None else choice.series  # the error for one that is not there lists all
    if isinstance(node, h5py.Dataset):
        return _placed(node)
    place = file if node is None else node
    images = _images(h5py, place)
    if not images:
        raise Unreadable("it holds no image")
    names = [image.name.removeprefix(place.name).strip("/") for image in images]
    return _placed(images[pick_series(names, series, [str(image.shape) for image in images])])


def _images(h5py: Any, group: Any) -> list[Any]:
    """Data sets of numbers with two axes or more."""
    found: list[Any] = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim > 1 and node.dtype.kind in "buif":
            found.append(node)

    group.visititems(visit)
    return found


def _checked(data: Any) -> Any:
    """A data set of numbers that lies in its file, or in the file's folder; nothing of it is read here."""
    if data.dtype.kind not in "buif" or data.ndim < 2:
        raise Unreadable(f"{data.name} has type {data.dtype} and shape {data.shape}; choose an image")
    path = Path(data.file.filename)
    others = [source.file_name for source in data.virtual_sources()] if data.is_virtual else []
    others += [name for name, _, _ in data.external or ()]
    for name in others:
        if name != ".":
            sibling(path, name)
    if nbytes_of(data.shape, data.dtype) > IMPOSSIBLE:
        raise ValueError(f"its shape {data.shape} declares what cannot be")
    check_chunk(data.chunks or (1,), data.dtype)
    return data


def _placed(data: Any) -> Loaded:
    _checked(data)
    letters = _names(data) or list(usual_geometry(data.ndim).names)
    steps, start, unit = _sizes(data, letters)
    kinds = {"t": "time", "c": "channel"}
    axes = [
        StoredAxis(letter, kinds.get(letter), None if letter == "t" else unit, *place)
        for letter, *place in zip(letters, steps, start, strict=True)
    ]
    return placed(data, axes, ("channel", "time"))


def _names(data: Any) -> list[str] | None:
    """Names of the axes if the file says them, all of them, each once."""
    names = [str(dimension.label).lower() for dimension in data.dims]
    if "axistags" in data.attrs:
        names = [str(axis["key"]).lower() for axis in json.loads(data.attrs["axistags"])["axes"]]
    known = all(len(name) == 1 and name in "tczyx" for name in names) and len(set(names)) == data.ndim
    return names if known else None


def _sizes(data: Any, letters: list[str]) -> tuple[list[float], list[float], str | None]:
    """Steps and start of each axis, and the unit of those of space."""
    steps, start = [1.0] * data.ndim, [0.0] * data.ndim
    space = [i for i, name in enumerate(letters) if name not in "tc"]
    for key, unit in (("element_size_um", "µm"), ("resolution", "nm")):
        sizes = np.ravel(data.attrs.get(key, ()))
        if len(sizes) == len(space) and all(np.isfinite(sizes)) and all(size > 0 for size in sizes):
            for i, size in zip(space, sizes, strict=True):
                steps[i] = float(size)
            offset = np.ravel(data.attrs.get("offset", ()))
            if key == "resolution" and len(offset) == len(space):
                for i, at in zip(space, offset, strict=True):
                    start[i] = float(at)
            return steps, start, unit
    return steps, start, None
