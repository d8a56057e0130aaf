"""TIFF, plain, ImageJ's and OME: where spacing, place, axes and unit are told, and where they are written."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from napari_lowlat_seg.core.geometry import Geometry, find_unit, standard_unit, unit_ratio
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.placed import Loaded, Turn, Unreadable, geometry_of, upright

OME_SUFFIXES = (".ome.tif", ".ome.tiff")
TIFF_SUFFIXES = (*OME_SUFFIXES, ".tif", ".tiff")

FINEST_PRINT = 10.0
"""Micrometres per pixel: resolution tags say the size of a pixel below this, and above how to print it."""

_IMAGEJ_UNITS = {"µm": "um", "Å": "angstrom", "in": "inch"}
"""What ImageJ calls units, where it is not our symbol: its text is ASCII."""

_RESOLUTION_UNITS = {2: "in", 3: "cm"}


@dataclass(frozen=True)
class TiffHeader:
    """Of a TIFF: one letter per spatial axis, slowest first, and the unit of the spacing, "" if unknown."""

    axes: str
    unit: str


@dataclass(frozen=True)
class _Scale:
    """What a file says by axis letter: steps, place of the first voxel, units; and the unit as written."""

    steps: Mapping[str, float]
    start: Mapping[str, float]
    units: Mapping[str, str | None]
    text: str = ""


def read(path: Path, channel: int | None = None, inside: str = "") -> Loaded:
    """The first series of a TIFF, placed by what its OME or ImageJ metadata or its tags say.

    Raises
    ------
    ValueError
        Where channels and colours are mixed.
    """
    import tifffile

    check_pages(path)
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        data, axes = _pixels(series), series.axes
        scale = _ome_scale(file.ome_metadata) if file.is_ome else _tag_scale(file)
    # Single channels and samples are no axis of their own.
    kept = [i for i, letter in enumerate(axes) if letter not in "CS" or data.shape[i] > 1]
    data, axes = data.reshape([data.shape[i] for i in kept]), "".join(axes[i] for i in kept)
    if "C" in axes and "S" in axes:
        raise ValueError(f"axes {axes} mix channels and colours; save one channel")
    channel_axis = next((i for i, letter in enumerate(axes) if letter in "CS"), None)
    spatial = "".join(letter for letter in axes if letter not in "CS")
    geometry = Geometry.from_scale(
        axis_names(spatial),
        [scale.steps.get(letter, 1.0) for letter in spatial],
        [scale.start.get(letter, 0.0) for letter in spatial],
        [scale.units.get(letter) for letter in spatial],
        ["time" if letter == "T" else "space" if letter in "XYZIQ" else "other" for letter in spatial],
    )
    return Loaded(data, geometry, channel_axis, TiffHeader(spatial, scale.text))


def check_pages(path: Path) -> None:
    """Refuse a file whose pages lead in a circle, in which tifffile would go round four million times.

    Raises
    ------
    ValueError
        With the place that is met twice.
    """
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 16:
            return  # tifffile says what it is not
        big = head[2:4] in (b"+\0", b"\0+")
        count_type, offset_type, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
        (at,) = struct.unpack_from(order + offset_type, head, 8 if big else 4)
        met: set[int] = set()
        while at:
            if at in met:
                raise ValueError(f"its pages lead in a circle, back to byte {at}")
            met.add(at)
            file.seek(at)
            count = file.read(struct.calcsize(count_type))
            if len(count) < struct.calcsize(count_type):
                return
            file.seek(struct.unpack(order + count_type, count)[0] * entry, 1)
            following = file.read(struct.calcsize(offset_type))
            if len(following) < struct.calcsize(offset_type):
                return
            (at,) = struct.unpack(order + offset_type, following)


def _pixels(series: Any) -> np.ndarray:
    try:
        return np.asarray(series.asarray())
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        name = getattr(series.keyframe.compression, "name", "unknown")
        raise Unreadable(
            f"its {name} compression needs imagecodecs, which is not installed; "
            "pip install napari-lowlat-seg[all], or pip install imagecodecs"
        ) from error


def axis_names(letters: str) -> list[str]:
    """Names of a TIFF's axes; pages of unknown meaning are z where there is no other z.

    >>> axis_names("IYX"), axis_names("QQZYX")
    (['z', 'y', 'x'], ['q', 'q1', 'z', 'y', 'x'])
    """
    unknown = [letter for letter in letters if letter in "IQ"]
    if len(unknown) == 1 and "Z" not in letters:
        letters = letters.replace(unknown[0], "Z")
    names: list[str] = []
    for letter in letters.lower():
        names.append(letter if letter not in names else f"{letter}{names.count(letter)}")
    return names


def _tag_scale(file: Any) -> _Scale:
    """What ImageJ, tifffile or the resolution tags say."""
    about: dict[str, Any] = file.imagej_metadata or next(iter(file.shaped_metadata or ()), {})
    unit = str(about.get("unit", ""))
    tags = file.pages[0].tags
    pixels = {}
    for letter, tag in (("X", "XResolution"), ("Y", "YResolution")):
        count, per = tags[tag].value if tag in tags else (1, 1)
        if count > 0 and per > 0:
            pixels[letter] = per / count
    if "spacing" not in about and not unit:
        # Most resolutions are about printing; a printer's dot is never as fine as a microscope's pixel.
        code = tags["ResolutionUnit"].value if "ResolutionUnit" in tags else 1
        unit = _RESOLUTION_UNITS.get(int(code), "")
        if not unit or not pixels or max(pixels.values()) * unit_ratio(unit, "µm") >= FINEST_PRINT:
            return _Scale({}, {}, {})
        steps = {letter: step * unit_ratio(unit, "µm") for letter, step in pixels.items()}
        return _Scale(steps, {}, dict.fromkeys(steps, "µm"), "µm")
    steps = pixels | ({"Z": float(about["spacing"])} if "spacing" in about else {})
    steps = {letter: abs(step) for letter, step in steps.items() if np.isfinite(step) and step}
    # ImageJ's origin is the pixel that lies at 0.
    origin = {letter: float(about.get(f"{letter.lower()}origin", 0)) for letter in "XYZ"}
    start = {letter: -at * steps.get(letter, 1.0) for letter, at in origin.items() if at}
    return _Scale(steps, start, dict.fromkeys("XYZ", standard_unit(unit)), unit)


def _ome_scale(xml: str | None) -> _Scale:
    """Sizes and the place of the first plane; lengths that are known in micrometres."""
    pixels = next(
        (e for e in ElementTree.fromstring(xml or "<OME/>").iter() if e.tag.endswith("}Pixels")), None
    )
    if pixels is None:
        return _Scale({}, {}, {})
    first = next((e for e in pixels if e.tag.endswith("}Plane")), None)
    steps: dict[str, float] = {}
    start: dict[str, float] = {}
    units: dict[str, str | None] = {}
    for letter in "XYZ":
        size = float(pixels.get(f"PhysicalSize{letter}", 0))
        if not (np.isfinite(size) and size > 0):
            continue
        units[letter] = unit = standard_unit(pixels.get(f"PhysicalSize{letter}Unit", "µm"))
        steps[letter] = size
        known = find_unit(unit or "")
        if known is not None:
            steps[letter], units[letter] = size * unit_ratio(unit, "µm"), "µm"
            there = standard_unit("" if first is None else first.get(f"Position{letter}Unit", ""))
            # A position in a "reference frame", the default, has no relation to the size of a pixel.
            if first is not None and find_unit(there or "") and first.get(f"Position{letter}"):
                start[letter] = float(first.get(f"Position{letter}", 0)) * unit_ratio(there, "µm")
    step = float(pixels.get("TimeIncrement", 0))
    if np.isfinite(step) and step > 0:
        steps["T"], units["T"] = step, standard_unit(pixels.get("TimeIncrementUnit", "s"))
    return _Scale(steps, start, units, "µm" if "µm" in units.values() else "")


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
    if path.name.lower().endswith(OME_SUFFIXES):
        about |= _ome_about(labels.shape, letters, steps, start, units)
        tifffile.imwrite(path, labels, ome=True, metadata=about, compression="zlib", photometric="minisblack")
        return
    if "Z" in steps:
        about["spacing"] = steps["Z"]
    unit = geometry.unit or ""
    if unit:
        about["unit"] = _IMAGEJ_UNITS.get(unit, unit)
    for letter in "XYZ":
        if start.get(letter):
            about[f"{letter.lower()}origin"] = -start[letter] / steps[letter]
    # ImageJ knows neither 32-bit integers, nor other axes, nor files of 4 GB; tifffile's own form knows all.
    imagej = labels.dtype != np.uint32 and letters in ("YX", "ZYX", "TYX", "TZYX") and labels.nbytes < 2**31
    resolution = (1 / steps["X"], 1 / steps["Y"]) if {"X", "Y"} <= set(steps) else None
    tifffile.imwrite(
        path,
        labels,
        imagej=imagej,
        resolution=resolution,
        metadata=about,
        compression="zlib",
        photometric="minisblack",
    )


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
        if letter in "XYZ" and at and units[letter]:
            places[f"Position{letter}"] = [at] * planes
            places[f"Position{letter}Unit"] = [units[letter]] * planes
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
    spaces = iter("ZYX"[-min(3, sum(axis.kind == "space" for axis in geometry.axes)) :])
    letters = ["T" if axis.kind == "time" else "Q" for axis in geometry.axes]
    extra = max(0, sum(axis.kind == "space" for axis in geometry.axes) - 3)
    for i, axis in enumerate(geometry.axes):
        if axis.kind == "space":
            letters[i], extra = ("Q", extra - 1) if extra else (next(spaces), 0)
    if letters.count("T") > 1:
        letters = ["Q" if letter == "T" else letter for letter in letters]
    return turn, "".join(letters), geometry
