"""TIFF, plain, ImageJ's, OME and of slide scanners: images in, labels out with their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import Geometry, find_unit
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.bounds import LARGE
from napari_lowlat_seg.io.choice import WHOLE, Choice, pick_level, pick_series
from napari_lowlat_seg.io.format_table import needed
from napari_lowlat_seg.io.formats.tiff_metadata import (
    axis_names,
    check_ome,
    check_pages,
    check_series,
    ome_scale,
    tag_scale,
)
from napari_lowlat_seg.io.placed import (
    Loaded,
    StoredAxis,
    Turn,
    Unreadable,
    geometry_of,
    placed,
    upright,
)

OME_SUFFIXES = (".ome.tif", ".ome.tiff")

SLIDES = ("svs", "scn", "bif", "ndpi", "philips", "avs", "qpi", "lsm")
"""Scanners' and microscopes' forms, whose first series is the image and whose others only show it."""

_IMAGEJ_UNITS = {"µm": "um", "Å": "angstrom", "in": "inch", "µs": "usec"}
"""What ImageJ calls units, where it is not our symbol: its text is ASCII."""


_KINDS = dict.fromkeys("XYZIQ", "space") | {"T": "time"} | dict.fromkeys("CS", "channel")
"""What an axis is, by its letter; all others are "other"."""


@dataclass(frozen=True)
class TiffHeader:
    """Of a TIFF.

    Attributes
    ----------
    axes
        One letter per spatial axis, slowest first.
    unit
        Of the spacing, "" if unknown.
    orientation
        The tag that says where a viewer of pictures puts the first row and column, 1 for the top left. Fiji
        and napari show arrays as they are stored, whatever it says; labels get the same tag.
    """

    axes: str
    unit: str
    orientation: int = 1


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """A series of a TIFF, placed by what its OME or ImageJ metadata or its tags say.

    Of a pyramid the finest level without a choice, of a slide the slide, not its label or overview. What is
    larger than `bounds.LARGE` is mapped or read tile by tile.

    Raises
    ------
    ValueError
        Where channels and colours are mixed, and for several series without a choice.
    """
    import tifffile

    pages = check_pages(path)
    with tifffile.TiffFile(path) as file:
        if file.is_ome:
            check_ome(path, file.ome_metadata, pages)
        index = _pick(file, choice.series)
        series = file.series[index]
        number = pick_level(choice.level, [one.shape for one in series.levels])
        level, axes = series.levels[number], series.axes
        check_series(path, level)
        tag = series.keyframe.tags.get("Orientation")
        orientation = int(tag.value) if tag is not None and tag.value in range(1, 9) else 1
        scale = ome_scale(file.ome_metadata, index, series) if file.is_ome else tag_scale(file, index, series)
        scale = scale.coarser({a: n / m for a, n, m in zip(axes, series.shape, level.shape, strict=True)})
        data: Any = _large(path, index, number, level) if level.nbytes > LARGE else _pixels(level)
    about = [
        StoredAxis(
            name,
            _KINDS.get(letter, "other"),
            scale.units.get(letter),
            scale.steps.get(letter, 1.0),
            scale.start.get(letter, 0.0),
        )
        for letter, name in zip(axes, _names(axes), strict=True)
    ]
    long = [letter for i, letter in enumerate(axes) if letter in "CS" and data.shape[i] > 1]
    if len(long) > 1:
        raise ValueError(f"axes {axes} mix channels and colours; save one channel")
    spatial = "".join(letter for letter in axes if letter not in "CS")
    return placed(data, about, header=TiffHeader(spatial, scale.text, orientation))


def _names(letters: str) -> list[str]:
    """Names of all axes: those of channels and colours are not used."""
    spatial = iter(axis_names("".join(letter for letter in letters if letter not in "CS")))
    return ["channel" if letter in "CS" else next(spatial) for letter in letters]


def _pick(file: Any, chosen: str) -> int:
    """The index of a series: the chosen one, the only one, the only one in full size, or a slide's first."""
    every = file.series
    if not every:
        raise ValueError("it has no pages")
    names = [str(one.name or "") for one in every]
    if chosen and names.count(chosen) == 1:
        return names.index(chosen)
    if not chosen and every[0].kind in SLIDES:
        return 0
    full = [i for i, one in enumerate(every) if not one.keyframe.is_reduced]
    if not chosen and len(full) == 1:
        return full[0]
    about = [f"{name} {one.shape}".strip() for name, one in zip(names, every, strict=True)]
    return pick_series([str(i) for i in range(len(every))], chosen, about)


def _pixels(level: Any) -> np.ndarray:
    with _codecs(level):
        return np.asarray(level.asarray())


def _large(path: Path, index: int, number: int, level: Any) -> Any:
    """The pixels of a large image: mapped if they lie in one piece, else read tile by tile."""
    import tifffile

    if level.dataoffset is not None:
        return tifffile.memmap(path, series=index, level=number, mode="r")
    zarr = needed("zarr", "a large compressed TIFF", "zarr")
    with _codecs(level):
        # Opened again: this file is closed when the image has been made.
        again = tifffile.TiffFile(path)
        store = again.series[index].aszarr(level=number)
        return zarr.open_array(store, mode="r")


@contextmanager
def _codecs(level: Any) -> Iterator[None]:
    """In this block the error for a compression whose library is missing says what to install."""
    try:
        yield
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        name = getattr(level.keyframe.compression, "name", "unknown")
        raise Unreadable(
            f"its {name} compression needs imagecodecs, which is not installed; "
            "pip install napari-lowlat-seg[all], or pip install imagecodecs"
        ) from error


def check_tiff(path: Path, shape: tuple[int, ...], like: Volume | None) -> None:
    """Refuse, in one sentence, what this TIFF cannot say of labels of a shape."""
    _, letters, geometry = _plan(path, shape, like)
    if not path.name.lower().endswith(OME_SUFFIXES):
        return
    if len(letters) > 5:
        raise ValueError(f"OME-TIFF has at most 5 axes, the image has {len(letters)}")
    for axis in geometry.world:
        if axis.unit is not None and find_unit(axis.unit) is None:
            raise ValueError(f"OME-TIFF cannot hold sizes in {axis.unit!r}, a unit that is not known")


def write_tiff(path: Path, labels: np.ndarray, like: Volume | None) -> None:
    """Write labels with the geometry of `like`: as OME if the name says so, else in ImageJ's form.

    Axes are turned to the order (t, z, y, x) and to growing coordinates, so that the labels lie where they
    were.
    """
    import tifffile

    turn, letters, geometry = _plan(path, labels.shape, like)
    labels = np.ascontiguousarray(turn.array(labels))
    known = geometry.calibrated
    steps = dict(zip(letters, geometry.spacing)) if known else {}
    start = dict(zip(letters, geometry.translation.tolist())) if known else {}
    units = dict(zip(letters, geometry.units))
    about: dict[str, Any] = {"axes": letters}
    tags = _orientation(like) if turn.is_identity else ()
    if path.name.lower().endswith(OME_SUFFIXES):
        about |= _ome_about(labels.shape, letters, steps, start, units)
        tifffile.imwrite(
            path,
            labels,
            ome=True,
            metadata=about,
            compression="zlib",
            photometric="minisblack",
            extratags=tags,
        )
        return
    unit, steps = _in_one_unit(geometry.unit, units, steps)
    about |= _imagej_about(unit, steps, start, units.get("T") or "")
    # ImageJ knows neither 32-bit integers, nor other axes, nor files of 4 GB; tifffile's own form knows all.
    # Of columns of one pixel tifffile takes rows for columns in ImageJ's form.
    plain = letters in ("YX", "ZYX", "TYX", "TZYX") and labels.shape[-1] > 1
    imagej = plain and labels.dtype != np.uint32 and labels.nbytes < 2**31
    resolution = (1 / steps["X"], 1 / steps["Y"]) if {"X", "Y"} <= set(steps) else None
    tifffile.imwrite(
        path,
        labels,
        imagej=imagej,
        resolution=resolution,
        metadata=about,
        compression="zlib",
        photometric="minisblack",
        extratags=tags,
    )


def _orientation(like: Volume | None) -> Sequence[tuple[str, str, int, int, bool]]:
    """The tag of orientation that the image has, for labels that are stored as it is."""
    header = None if like is None else like.header
    if not isinstance(header, TiffHeader) or header.orientation == 1:
        return ()
    return [("Orientation", "H", 1, header.orientation, False)]


def _in_one_unit(
    unit: str | None, units: Mapping[str, str | None], steps: Mapping[str, float]
) -> tuple[str, dict[str, float]]:
    """The unit of all axes of space, and the steps that are in it.

    What has no size counts one pixel of the unit there, as ImageJ does.
    """
    spatial = {letter: units[letter] for letter in "XYZ" if letter in units}
    unit = unit or next(filter(None, spatial.values()), "")
    return unit, {letter: step for letter, step in steps.items() if not unit or spatial.get(letter, unit)}


def _imagej_about(
    unit: str, steps: Mapping[str, float], start: Mapping[str, float], time: str
) -> dict[str, Any]:
    """ImageJ's metadata, for lengths in one unit and times in another."""
    about: dict[str, Any] = {}
    if "Z" in steps:
        about["spacing"] = steps["Z"]
    if unit:
        about["unit"] = _IMAGEJ_UNITS.get(unit, unit)
    for letter in "XYZ":
        if start.get(letter):
            about[f"{letter.lower()}origin"] = -start[letter] / steps.get(letter, 1.0)
    if "T" in steps and find_unit(time) is not None:
        about["finterval"], about["tunit"] = steps["T"], _IMAGEJ_UNITS.get(time, time)
    return about


def _ome_about(
    shape: tuple[int, ...],
    letters: str,
    steps: Mapping[str, float],
    start: Mapping[str, float],
    units: Mapping[str, str | None],
) -> dict[str, Any]:
    """OME's metadata; a size without a unit is one of pixels, because OME takes it for micrometres."""
    about: dict[str, Any] = {}
    for letter in set("XYZ") & set(steps):
        about[f"PhysicalSize{letter}"] = steps[letter]
        about[f"PhysicalSize{letter}Unit"] = units[letter] or "pixel"
    if "T" in steps and units["T"]:
        about["TimeIncrement"], about["TimeIncrementUnit"] = steps["T"], units["T"]
    planes = int(np.prod(shape[:-2], dtype=np.int64))
    places: dict[str, list[Any]] = {}
    for letter, at in start.items():
        if letter in "XYZ" and at:
            indices = np.indices(shape[:-2]).reshape(len(shape) - 2, planes)
            away = indices[letters.index("Z")] * steps["Z"] if letter == "Z" else np.zeros(planes)
            places[f"Position{letter}"] = (at + away).tolist()
            places[f"Position{letter}Unit"] = [units[letter] or "pixel"] * planes
    return about | ({"Plane": places} if places else {})


def _plan(path: Path, shape: tuple[int, ...], like: Volume | None) -> tuple[Turn, str, Geometry]:
    """How labels are turned, one letter for each axis then, and their geometry then."""
    if like is None:
        usual = "Q" * (len(shape) - 4) + "TZYX"[-len(shape) :]  # Q: of unknown meaning
        return (
            Turn(tuple(range(len(shape)))),
            usual,
            Geometry.from_scale([f"d{i}" for i in range(len(shape))]),
        )
    ome = path.name.lower().endswith(OME_SUFFIXES)
    turn, geometry = upright(geometry_of(like), shape, "OME-TIFF" if ome else "TIFF")
    header = like.header if isinstance(like.header, TiffHeader) and turn.is_identity else None
    if header is not None and not (ome and set(header.axes) & set("IQ")):
        return turn, header.axes, geometry
    kinds = [axis.kind for axis in geometry.axes]
    spaces = iter("ZYX".rjust(kinds.count("space"), "Q")[-kinds.count("space") :])
    time = "T" if kinds.count("time") == 1 else "Q"
    letters = [next(spaces) if kind == "space" else time if kind == "time" else "Q" for kind in kinds]
    return turn, "".join(letters), geometry
