"""NRRD and Slicer's .seg.nrrd: directions, origin and units; names and colours of segments."""

from __future__ import annotations

import bz2
import colorsys
import gzip
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import Axis, Geometry, find_unit
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.bounds import DEFLATED, check_held, mapped, nbytes_of, sibling, unpacked
from napari_lowlat_seg.io.choice import WHOLE, Choice
from napari_lowlat_seg.io.placed import Loaded, check_one_unit, geometry_of, usual_geometry

SEGMENTATION = ".seg.nrrd"

_SPACES = {
    "right-anterior-superior": (1, 1), "ras": (1, 1),
    "left-anterior-superior": (-1, 1), "las": (-1, 1),
    "left-posterior-superior": (-1, -1), "lps": (-1, -1),
}  # fmt: skip
"""Signs of x and y that take a patient's space to RAS+."""


_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64",
           "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}  # fmt: skip
"""Names of types, by their code in numpy."""


_UNPACKERS: dict[str, tuple[Callable[[Any], Any], float]] = {
    **dict.fromkeys(("gzip", "gz"), (lambda file: gzip.GzipFile(fileobj=file), DEFLATED)),
    **dict.fromkeys(("bzip2", "bz2"), (bz2.BZ2File, math.inf)),
}
"""By encoding, what opens the pixels, and how many bytes one can unpack to."""

_DOMAINS = ("domain", "space", "time", "none", "???")
"""Kinds of axes that hold no channels."""


@dataclass(frozen=True)
class Segment:
    """A segment of a .seg.nrrd.

    Attributes
    ----------
    label
        Its value in the array.
    name
        What the user calls it.
    colour
        (red, green, blue) from 0 to 1.
    """

    label: int
    name: str
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class NrrdHeader:
    """Of a NRRD file: its segments, none of a plain image."""

    segments: tuple[Segment, ...] = ()


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """The array of a file, slowest axis first; an axis without a direction holds channels or layers.

    Segments are those of the chosen layer, of which a file has several where segments overlap.

    Raises
    ------
    ValueError
        For several axes without a direction, and pixels that the file cannot hold. Damage raises whatever
        pynrrd raises.
    """
    data, header = _opened(path)
    geometry, channels = _placed(header, data.ndim)
    return Loaded(data, geometry, channels, NrrdHeader(_segments(header, choice.channel)))


def _opened(path: Path) -> tuple[np.ndarray, Any]:
    """The pixels, slowest axis first, and the header: mapped where they are raw, also in a file beside it."""
    import nrrd

    with path.open("rb") as file:
        header = nrrd.read_header(file)
        start = file.tell()
    name = header.get("data file", header.get("datafile"))
    if name is not None:
        path, start = sibling(path, str(name)), 0
    shape = [int(n) for n in header["sizes"]][::-1]
    if len(shape) != header["dimension"] or any(n < 1 for n in shape):
        raise ValueError(f"its sizes {shape} are no {header['dimension']} lengths")
    kind = next((code for code, names in _TYPES.items() if str(header["type"]).lower() in names), None)
    if kind is None:
        raise ValueError(f"its type {header['type']!r} holds no numbers")
    dtype = np.dtype({"big": ">", "little": "<"}.get(header.get("endian", "little"), "<") + kind)
    return _pixels(path, header, start, shape, dtype), header


def _pixels(path: Path, header: Any, start: int, shape: list[int], dtype: np.dtype) -> np.ndarray:
    """The pixels behind a place in a file, less the lines and bytes that the header skips."""
    encoding = str(header["encoding"]).lower()
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    size, stored = nbytes_of(shape, dtype), path.stat().st_size
    with path.open("rb") as file:
        file.seek(start)
        for _ in range(int(header.get("line skip", header.get("lineskip", 0)))):
            if not file.readline():
                break
        if encoding == "raw":
            return mapped(path, shape, dtype, stored - size if skip == -1 else file.tell() + skip)
        if encoding in ("ascii", "text", "txt"):
            check_held(size, stored, dtype.itemsize)
            return np.fromfile(file, dtype, math.prod(shape), sep=" ").reshape(shape)
        if skip < 0 or encoding not in _UNPACKERS:
            raise ValueError(f"pixels of encoding {encoding!r} with {skip} bytes before them cannot be read")
        opener, ratio = _UNPACKERS[encoding]
        pixels = unpacked(opener(file), size + skip, stored, ratio)
    return np.frombuffer(pixels, dtype, offset=skip).reshape(shape)


def _placed(header: Any, ndim: int) -> tuple[Geometry, int | None]:
    """The geometry and the channel axis of an array whose axes are those of the header, reversed."""
    if header.get("space directions") is None:
        return _spaced(header, ndim)
    rows = [np.asarray(row, np.float64) for row in header["space directions"]][::-1]
    space = [axis for axis, row in enumerate(rows) if np.isfinite(row).all()]
    channels = [axis for axis in range(ndim) if axis not in space]
    return _directed(header, [rows[axis] for axis in space]), _only(channels)


def _spaced(header: Any, ndim: int) -> tuple[Geometry, int | None]:
    """The same of a header that has steps along the axes, or nothing, but no directions."""
    steps = [float(step) for step in header.get("spacings", [1.0] * ndim)][::-1]
    units = [str(unit) for unit in header.get("units", [""] * ndim)][::-1]
    kinds = [str(kind) for kind in header.get("kinds", ["domain"] * ndim)][::-1]
    channels = [axis for axis, kind in enumerate(kinds) if kind not in _DOMAINS]
    kept = [axis for axis in range(ndim) if axis not in channels]
    scale = [steps[axis] if np.isfinite(steps[axis]) and steps[axis] else 1.0 for axis in kept]
    names = usual_geometry(len(kept)).names
    start = _least(header, ndim, steps)
    geometry = Geometry.from_scale(
        names, scale, [start[axis] for axis in kept], [units[axis] for axis in kept]
    )
    return geometry, _only(channels)


def _least(header: Any, ndim: int, steps: list[float]) -> list[float]:
    """Where the first voxel lies along each axis, slowest first, by the "axis mins" of the header."""
    least = [float(at) for at in header.get("axis mins", header.get("axismins", [math.nan] * ndim))][::-1]
    centred = header.get("centerings", header.get("centers", ["???"] * ndim))
    inside = [0.5 * step if str(one) == "cell" else 0.0 for one, step in zip(centred[::-1], steps)]
    return [at + half if math.isfinite(at + half) else 0.0 for at, half in zip(least, inside)]


def _directed(header: Any, directions: list[np.ndarray]) -> Geometry:
    """The geometry of axes with these directions, slowest first, in a patient's space or any other."""
    count = len(directions)
    if not count:
        raise ValueError("no axis has a direction in space")
    origin = np.asarray(header.get("space origin", np.zeros(len(directions[0]))), np.float64)
    if len(origin) != count:
        raise ValueError(f"{count} axes lie in a space of {len(origin)}")
    affine = np.eye(count + 1)
    affine[:-1, :-1] = np.stack(directions, axis=1)
    affine[:-1, -1] = origin
    units = [str(unit) for unit in header.get("space units", ())]
    said = str(header.get("space", "")).lower()
    space = said.removesuffix("-time") if said.endswith("-time") or len(said) != 4 else said.removesuffix("t")
    signs = _SPACES.get(space)
    if signs is not None and count == 3:
        return Geometry.from_nifti(np.diag([*signs, 1, 1]) @ affine, 3, unit=units[0] if units else "mm")
    patient = signs is not None and count == 4
    if patient and signs is not None:
        affine = np.diag([*signs, 1, 1, 1]) @ affine
        units = units or ["mm"] * 3
    names = "xyzt"[:count]
    return Geometry(
        tuple(Axis.of(n, u) for n, u in zip(names, [*units, *(None,) * count], strict=False)), affine, patient
    )


def _only(channels: list[int]) -> int | None:
    if len(channels) > 1:
        raise ValueError(f"{len(channels)} axes have no direction in space; one, of channels, can be read")
    return channels[0] if channels else None


def _segments(header: Any, layer: int | None) -> tuple[Segment, ...]:
    found = []
    for key in header:
        if match := re.fullmatch(r"Segment(\d+)_LabelValue", str(key)):
            about = f"Segment{match[1]}_"
            if layer is not None and int(header.get(about + "Layer", layer)) != layer:
                continue  # another segment has this value on another layer
            red, green, blue = (float(part) for part in str(header.get(about + "Color", "1 0 0")).split())
            found.append(Segment(int(header[key]), str(header.get(about + "Name", "")), (red, green, blue)))
    return tuple(sorted(found, key=lambda segment: segment.label))


def write(path: Path, labels: np.ndarray, like: Volume | None) -> None:
    """Write labels with directions, origin and unit; to .seg.nrrd with a name and a colour for each.

    Names and colours are those of `like` where it was read from .seg.nrrd, else "Segment_1", ...
    """
    import nrrd

    order, geometry = plan(path, labels.shape, like)
    # Fastest axis first, as pynrrd counts in Fortran's order.
    labels = labels.transpose(order)
    header: dict[str, Any] = {"encoding": "gzip"}
    if geometry.calibrated:
        names = [axis.name for axis in geometry.world]
        rows = np.array(sorted(range(len(names)), key=names.__getitem__))  # x, y, z
        # As for NIfTI, a world of three dimensions counts as a patient's, RAS+; here it becomes LPS+.
        # Without a unit it cannot: readers take a patient's lengths for millimetres.
        patient = len(names) == 3 and geometry.unit is not None
        signs = np.array([-1.0, -1.0, 1.0]) if patient else np.ones(len(names))
        header |= {"space": "left-posterior-superior"} if patient else {"space dimension": len(names)}
        header["space directions"] = (geometry.matrix[rows] * signs[:, None]).T[::-1]
        header["space origin"] = geometry.translation[rows] * signs
        if geometry.unit:
            unit = find_unit(geometry.unit)
            text = geometry.unit if geometry.unit.isascii() or unit is None else unit.name
            header["space units"] = [text] * len(names)
        header["kinds"] = ["domain"] * len(names)
    if path.name.lower().endswith(SEGMENTATION):
        known = like.header.segments if like is not None and isinstance(like.header, NrrdHeader) else ()
        header |= _described(labels, {segment.label: segment for segment in known})
    nrrd.write(str(path), labels, header, index_order="C")


def _described(labels: np.ndarray, known: dict[int, Segment]) -> dict[str, str]:
    """Slicer's fields for each label that is there."""
    fields = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    extent = " ".join(f"0 {n - 1}" for n in labels.shape[::-1])
    for number, label in enumerate(int(value) for value in np.unique(labels) if value):
        # Steps of the golden ratio: neighbouring labels get colours that differ.
        colour = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75, 0.95)
        segment = known.get(label) or Segment(label, f"Segment_{label}", colour)
        about = {
            "ID": f"Segment_{label}",
            "Name": segment.name,
            "Color": " ".join(f"{part:.6g}" for part in segment.colour),
            "ColorAutoGenerated": "0",
            "NameAutoGenerated": "0",
            "LabelValue": str(label),
            "Layer": "0",
            "Extent": extent,
        }
        fields |= {f"Segment{number}_{key}": value for key, value in about.items()}
    return fields


def plan(path: Path, shape: tuple[int, ...], like: Volume | None) -> tuple[tuple[int, ...], Geometry]:
    """The order of axes, slowest first, and the geometry then.

    Raises
    ------
    ValueError
        For what a NRRD file cannot say: time, and unknown units.
    """
    if path.name.lower().endswith(SEGMENTATION) and len(shape) != 3:
        raise ValueError(f"a {SEGMENTATION} holds a volume, the image has {len(shape)} axes")
    geometry = usual_geometry(len(shape)) if like is None else geometry_of(like)
    if not geometry.calibrated:
        return tuple(range(geometry.ndim)), geometry
    if set(geometry.names) - set("zyx") or len(shape) not in (2, 3):
        raise ValueError(
            f"NRRD has axes of space only, the image has {', '.join(geometry.names)}; write .nii.gz"
        )
    check_one_unit(geometry, "NRRD")
    if geometry.unit is not None and find_unit(geometry.unit) is None:
        raise ValueError(f"NRRD cannot hold lengths in {geometry.unit!r}, a unit that is not known")
    order = geometry.shown_order
    return order, geometry.transpose(order)
