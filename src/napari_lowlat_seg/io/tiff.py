"""TIFF, plain, ImageJ's and OME: where spacing, axes and unit are told, and where they are written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from napari_lowlat_seg.core.volume import Volume

TIFF_SUFFIXES = (".ome.tif", ".ome.tiff", ".tif", ".tiff")

_PER_MICROMETRE = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}


@dataclass(frozen=True)
class TiffHeader:
    """Of a TIFF: one letter per spatial axis, slowest first, and the unit of the spacing, "" if unknown."""

    axes: str
    unit: str


def read_tiff(path: Path) -> tuple[np.ndarray, tuple[float, ...] | None, int | None, TiffHeader]:
    """The first series of a TIFF: its array, its spacing, its channel axis and its header.

    Raises ValueError where channels and colours are mixed.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        data, axes = np.asarray(series.asarray()), series.axes
        spacing, unit = _spacing(file)
    # Single channels and samples are no axis of their own.
    kept = [i for i, letter in enumerate(axes) if letter not in "CS" or data.shape[i] > 1]
    data, axes = data.reshape([data.shape[i] for i in kept]), "".join(axes[i] for i in kept)
    if "C" in axes and "S" in axes:
        raise ValueError(f"axes {axes} mix channels and colours; save one channel")
    channel_axis = next((i for i, letter in enumerate(axes) if letter in "CS"), None)
    spatial = "".join(letter for letter in axes if letter not in "CS")
    known = tuple(spacing.get(letter, 1.0) for letter in spatial) if spacing else None
    return data, known, channel_axis, TiffHeader(spatial, unit)


def _spacing(file: Any) -> tuple[dict[str, float], str]:
    """World units per voxel by axis letter, empty when the file does not say; and the unit."""
    if file.is_ome:
        return _ome_spacing(file.ome_metadata)
    about: dict[str, Any] = file.imagej_metadata or next(iter(file.shaped_metadata or ()), {})
    unit = str(about.get("unit", ""))
    if "spacing" not in about and not unit:
        # The resolution of other TIFFs is about printing.
        return {}, ""
    found = {"Z": float(about["spacing"])} if "spacing" in about else {}
    for letter, tag in (("X", "XResolution"), ("Y", "YResolution")):
        pixels, per = file.pages[0].tags[tag].value if tag in file.pages[0].tags else (1, 1)
        if pixels > 0 and per > 0:
            found[letter] = per / pixels
    return {letter: abs(value) for letter, value in found.items() if np.isfinite(value) and value}, unit


def _ome_spacing(xml: str) -> tuple[dict[str, float], str]:
    pixels = next((e for e in ElementTree.fromstring(xml).iter() if e.tag.endswith("}Pixels")), None)
    found = {}
    for letter in "XYZ":
        size = None if pixels is None else pixels.get(f"PhysicalSize{letter}")
        if pixels is not None and size is not None and float(size) > 0:
            unit = pixels.get(f"PhysicalSize{letter}Unit", "µm")
            found[letter] = float(size) * _PER_MICROMETRE.get(unit, 1.0)
    return found, "µm" if found else ""


def write_tiff(path: Path, labels: np.ndarray, like: Volume | None, unit: str) -> None:
    """Write labels with the spacing and axes of `like`: as OME if the name says so, else in ImageJ's form.

    `unit` is that of the spacing where the header of `like` names none.
    """
    import tifffile

    header = like.header if like is not None and isinstance(like.header, TiffHeader) else None
    usual = "Q" * (labels.ndim - 4) + "TZYX"[-labels.ndim :]  # Q: of unknown meaning
    axes = usual if header is None else header.axes
    spacing = dict(zip(axes, like.spacing)) if like is not None and like.spacing else {}
    if header is not None and header.unit:
        unit = header.unit
    about: dict[str, Any] = {"axes": axes}
    if path.name.lower().endswith((".ome.tif", ".ome.tiff")):
        for letter in set("XYZ") & set(spacing):
            about[f"PhysicalSize{letter}"] = spacing[letter]
            about[f"PhysicalSize{letter}Unit"] = unit if unit in ("nm", "mm", "cm", "m") else "µm"
        tifffile.imwrite(path, labels, ome=True, metadata=about, compression="zlib", photometric="minisblack")
        return
    if "Z" in spacing:
        about["spacing"] = spacing["Z"]
    if unit:
        about["unit"] = "um" if unit in ("µm", "μm", "micron") else unit
    # ImageJ knows neither 32-bit integers, nor other axes, nor files of 4 GB; tifffile's own form knows all.
    imagej = labels.dtype != np.uint32 and axes in ("YX", "ZYX", "TYX", "TZYX") and labels.nbytes < 2**31
    resolution = (1 / spacing["X"], 1 / spacing["Y"]) if {"X", "Y"} <= set(spacing) else None
    tifffile.imwrite(
        path,
        labels,
        imagej=imagej,
        resolution=resolution,
        metadata=about,
        compression="zlib",
        photometric="minisblack",
    )
