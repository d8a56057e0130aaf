"""NRRD and Slicer's .seg.nrrd: directions, origin and units; names and colours of segments."""

from __future__ import annotations

import colorsys
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import Axis, Geometry, find_unit
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.choice import WHOLE, Choice
from napari_lowlat_seg.io.placed import Loaded, geometry_of, usual_geometry

SEGMENTATION = ".seg.nrrd"

_SPACES = {
    "right-anterior-superior": (1, 1), "ras": (1, 1),
    "left-anterior-superior": (-1, 1), "las": (-1, 1),
    "left-posterior-superior": (-1, -1), "lps": (-1, -1),
}  # fmt: skip
"""Signs of x and y that take a patient's space to RAS+."""


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

    Raises
    ------
    ValueError
        For several axes without a direction. Damage raises whatever pynrrd raises.
    """
    import nrrd

    data, header = nrrd.read(str(path), index_order="C")
    return Loaded(data, *_placed(header, data.ndim), NrrdHeader(_segments(header)))


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
    return Geometry.from_scale(names, scale, units=[units[axis] for axis in kept]), _only(channels)


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
    signs = _SPACES.get(str(header.get("space", "")).lower())
    if signs is not None and count == 3:
        return Geometry.from_nifti(np.diag([*signs, 1, 1]) @ affine, 3, unit=units[0] if units else "mm")
    names = "xyzt"[:count]
    return Geometry(
        tuple(Axis.of(n, u) for n, u in zip(names, [*units, *(None,) * count], strict=False)), affine
    )


def _only(channels: list[int]) -> int | None:
    if len(channels) > 1:
        raise ValueError(f"{len(channels)} axes have no direction in space; one, of channels, can be read")
    return channels[0] if channels else None


def _segments(header: Any) -> tuple[Segment, ...]:
    found = []
    for key in header:
        if match := re.fullmatch(r"Segment(\d+)_LabelValue", str(key)):
            about = f"Segment{match[1]}_"
            red, green, blue = (float(part) for part in str(header.get(about + "Color", "1 0 0")).split())
            found.append(Segment(int(header[key]), str(header.get(about + "Name", "")), (red, green, blue)))
    return tuple(sorted(found, key=lambda segment: segment.label))


def check(path: Path, shape: tuple[int, ...], like: Volume | None) -> None:
    """Refuse what a NRRD file cannot say: time, and unknown units."""
    _plan(shape, like)
    if path.name.lower().endswith(SEGMENTATION) and len(shape) != 3:
        raise ValueError(f"a {SEGMENTATION} holds a volume, the image has {len(shape)} axes")


def write(path: Path, labels: np.ndarray, like: Volume | None) -> None:
    """Write labels with directions, origin and unit; to .seg.nrrd with a name and a colour for each.

    Names and colours are those of `like` where it was read from .seg.nrrd, else "Segment_1", ...
    """
    import nrrd

    order, geometry = _plan(labels.shape, like)
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


def _plan(shape: tuple[int, ...], like: Volume | None) -> tuple[tuple[int, ...], Geometry]:
    """The order of axes, slowest first, and the geometry then."""
    geometry = usual_geometry(len(shape)) if like is None else geometry_of(like)
    if not geometry.calibrated:
        return tuple(range(geometry.ndim)), geometry
    if set(geometry.names) - set("zyx") or len(shape) not in (2, 3):
        raise ValueError(
            f"NRRD has axes of space only, the image has {', '.join(geometry.names)}; write .nii.gz"
        )
    if geometry.unit is not None and find_unit(geometry.unit) is None:
        raise ValueError(f"NRRD cannot hold lengths in {geometry.unit!r}, a unit that is not known")
    order = geometry.shown_order
    return order, geometry.transpose(order)
