"""MHA and MHD: spacing, direction and origin of ITK's world, in mm; written by SimpleITK (extra `itk`)."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import TOLERANCE, Axis, Geometry
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.bounds import DEFLATED, check_held, check_memory, mapped, nbytes_of, sibling
from napari_lowlat_seg.io.choice import WHOLE, Choice
from napari_lowlat_seg.io.placed import Loaded, Unreadable, geometry_of, usual_geometry

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
"""Types of pixels, by the header's word."""

LENGTHS = {"": "mm", "?": "mm", "mm": "mm", "um": "µm", "cm": "cm"}
"""Units of length, by the header's word in lower case; without one ITK counts in mm."""

MOST_LINES = 1000
"""Lines of a header."""


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """The array of a file, slowest axis first, placed in the patient's world; components are channels.

    Raw pixels are mapped and not loaded, also those in a file beside the header.

    Raises
    ------
    ValueError
        For pixels that the file cannot hold, as text or in several files.
    """
    header, start = _header(path)
    ndim = int(header["ndims"])
    sides = _numbers(header["dimsize"], int)
    if len(sides) != ndim or any(side < 1 for side in sides):
        raise ValueError(f"its sizes {sides} are no {ndim} lengths")
    components = int(header.get("elementnumberofchannels", 1))
    if components < 1 or header["elementtype"] not in TYPES:
        raise ValueError(f"its {components} components of {header['elementtype']!r} cannot be read")
    shape = [*sides[::-1], *([components] if components != 1 else [])]
    data = _pixels(path, header, start, shape)
    return Loaded(data, _geometry(header, ndim), ndim if components != 1 else None)


def _geometry(header: dict[str, str], ndim: int) -> Geometry:
    """Where the pixels lie, in ITK's world (LPS+), whose unit is mm unless the header says another."""
    spacing = _numbers(_first(header, "elementspacing", "elementsize") or [1] * ndim, float)
    unit = LENGTHS.get(header.get("distanceunits", "").lower())
    if unit is None:
        raise Unreadable(f"its lengths are in {header['distanceunits']!r}; a MetaImage has um, mm or cm")
    # A row of the header's matrix is the direction of an axis; the array's axes are ITK's, reversed.
    rows = _numbers(_first(header, "transformmatrix", "rotation", "orientation") or np.eye(ndim).flat, float)
    direction = np.reshape(rows, (ndim, ndim)).T
    corner = _numbers(_first(header, "offset", "position", "origin") or [0] * ndim, float)
    space = min(3, ndim)
    if ndim > 4 or np.abs(direction[space:, :space]).any() or np.abs(direction[:space, space:]).any():
        raise Unreadable(f"its {ndim} axes are more than those of space and one of time")
    affine = np.eye(4)
    affine[:space, :space] = (direction[:space, :space] * spacing[:space])[:, ::-1]
    affine[:space, 3] = corner[:space]
    geometry = Geometry.from_lps(affine, space, unit)
    return geometry if ndim < 4 else _in_time(geometry, spacing[3], corner[3])


def _in_time(geometry: Geometry, step: float, start: float) -> Geometry:
    """The geometry of volumes one after the other, the slowest axis, whose unit the format does not say."""
    affine = np.zeros((5, 5))
    affine[0, [0, -1]] = step, start
    affine[1:, 1:] = geometry.affine
    return Geometry((Axis.of("t"), *geometry.world), affine, geometry.patient)


def _header(path: Path) -> tuple[dict[str, str], int]:
    """The fields by their names in lower case, and where the pixels begin."""
    header: dict[str, str] = {}
    with path.open("rb") as file:
        for _ in range(MOST_LINES):
            key, equals, value = file.readline(4096).decode("latin-1").partition("=")
            if not equals:
                break
            header[key.strip().lower()] = value.strip()
            if key.strip().lower() == "elementdatafile":
                return header, file.tell()
    raise ValueError("its header names no pixels (ElementDataFile)")


def _pixels(path: Path, header: dict[str, str], start: int, shape: list[int]) -> np.ndarray:
    name = header["elementdatafile"]
    if header.get("binarydata", "true").lower() != "true" or name == "LIST" or "%" in name:
        raise Unreadable("its pixels are text or in several files; save it as one binary file")
    if name.upper() != "LOCAL":
        path, start = sibling(path, name), 0
    big = (_first(header, "elementbyteordermsb", "binarydatabyteordermsb") or "false").lower() == "true"
    dtype = np.dtype((">" if big else "<") + TYPES[header["elementtype"]])
    size, stored = nbytes_of(shape, dtype), path.stat().st_size
    skip = int(header.get("headersize", 0))
    if header.get("compresseddata", "false").lower() != "true":
        return mapped(path, shape, dtype, stored - size if skip == -1 else start + max(0, skip))
    check_held(size, stored, DEFLATED)
    check_memory(size)
    with path.open("rb") as file:
        file.seek(start + max(0, skip))
        pixels = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(file.read(), size)
    if len(pixels) < size:
        raise ValueError(f"it declares {size} bytes of pixels and holds {len(pixels)}")
    return np.frombuffer(pixels, dtype).reshape(shape)


def _first(header: dict[str, str], *names: str) -> str | None:
    return next((header[name] for name in names if name in header), None)


def _numbers(text: Any, kind: Any) -> list[Any]:
    """Numbers of a field; refuses those that are not finite."""
    found = [kind(part) for part in (text.split() if isinstance(text, str) else text)]
    if not np.isfinite(found).all():
        raise ValueError(f"its header has numbers that are none: {text}")
    return found


def write(path: Path, labels: np.ndarray, like: Volume | None) -> None:
    """Write labels, compressed, with spacing, direction and origin in mm."""
    import SimpleITK

    order, geometry = plan(path, labels.shape, like)
    image: Any = SimpleITK.GetImageFromArray(np.ascontiguousarray(labels.transpose(order)))
    if geometry.calibrated:
        ndim = geometry.ndim
        affine = geometry.lps()
        columns = affine[:ndim, :ndim][:, ::-1]
        spacing = np.linalg.norm(columns, axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((columns / spacing).ravel().tolist())
        image.SetOrigin(affine[:ndim, 3].tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def plan(path: Path, shape: tuple[int, ...], like: Volume | None) -> tuple[tuple[int, ...], Geometry]:
    """The order of axes, slowest first, and the geometry then, in mm.

    Raises
    ------
    ValueError
        For what MetaImage cannot say: time, directions that are no rotation, sizes without a unit.
    """
    geometry = usual_geometry(len(shape)) if like is None else geometry_of(like)
    if len(shape) > 3 or set(geometry.names) - set("zyx"):
        raise ValueError(f"MetaImage has axes z, y, x, the image has {', '.join(geometry.names)}")
    if not geometry.calibrated:
        return tuple(range(geometry.ndim)), geometry
    if geometry.unit is None:
        raise ValueError("MetaImage counts in mm, and the image names no unit for its sizes")
    order = geometry.shown_order
    geometry = geometry.transpose(order).in_unit("mm")
    unit = geometry.matrix / geometry.spacing
    if np.abs(unit.T @ unit - np.eye(geometry.ndim)).max() > TOLERANCE:
        raise ValueError("MetaImage has no place for axes that are not at right angles; write .nii.gz")
    return order, geometry
