"""What a TIFF says beside its pixels: pages, OME's and ImageJ's metadata, tags; all of it only claims."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from napari_lowlat_seg.core.geometry import find_unit, standard_unit, unit_ratio
from napari_lowlat_seg.io.bounds import LARGE, check_chunk, check_held, check_memory, nbytes_of, sibling

FINEST_PRINT = 10.0
"""Micrometres per pixel: resolution tags say the size of a pixel below this, and above how to print it."""

RATIOS = {1: 1.0, 5: 2730.0, 8: 1032.0, 32946: 1032.0, 32773: 64.0}
"""By the number of a compression, the most bytes that one byte unpacks to: none, LZW, deflate, PackBits."""

_RESOLUTION_UNITS = {2: "in", 3: "cm"}


@dataclass(frozen=True)
class Scale:
    """What a file says by axis letter: steps, place of the first voxel, units; and the unit as written."""

    steps: Mapping[str, float]
    start: Mapping[str, float]
    units: Mapping[str, str | None]
    text: str = ""

    def coarser(self, factors: Mapping[str, float]) -> Scale:
        """Of a level whose pixels are means of so many along each axis: the first lies in their middle."""
        grown = {letter: factor for letter, factor in factors.items() if factor != 1 and letter in "XYZ"}
        if not grown:
            return self
        steps = {letter: step * grown.get(letter, 1.0) for letter, step in self.steps.items()}
        fine = {letter: self.steps.get(letter, 1.0) for letter in grown}
        steps |= {letter: fine[letter] * factor for letter, factor in grown.items()}
        start = dict(self.start)
        for letter, factor in grown.items():
            start[letter] = start.get(letter, 0.0) + fine[letter] * (factor - 1) / 2
        return replace(self, steps=steps, start=start)


def check_pages(path: Path) -> int:
    """How many pages a file has; one whose pages lead in a circle, which tifffile would follow, is refused.

    Raises
    ------
    ValueError
        With the place that is met twice.
    """
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 16:
            return 0  # tifffile says what it is not
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
                break
            file.seek(struct.unpack(order + count_type, count)[0] * entry, 1)
            following = file.read(struct.calcsize(offset_type))
            if len(following) < struct.calcsize(offset_type):
                break
            (at,) = struct.unpack(order + offset_type, following)
    return len(met)


def check_ome(path: Path, xml: str | None, pages: int) -> None:
    """Refuse OME metadata that declare more planes than there are, or lead out of the file's folder.

    tifffile would make room for all of them, and black planes of those that are missing.

    Parameters
    ----------
    pages
        Of this file.

    Raises
    ------
    ValueError
        With both counts, or with the name of the file.
    """
    if "<!" in (xml or "").replace("<!--", "").replace("<![CDATA[", ""):
        raise ValueError("its OME metadata define entities, which OME has no use for")
    root = ElementTree.fromstring(xml or "<OME/>")
    parts = [element for element in root.iter() if element.tag.endswith("}UUID")]
    # A file that was renamed since knows itself by its number.
    others = {one.get("FileName", "") for one in parts if one.text != root.get("UUID")}
    names = others - {"", path.name}
    total = pages + sum(check_pages(sibling(path, name)) for name in sorted(names))
    for pixels in _all_pixels(root):
        counts = [int(pixels.get(f"Size{letter}", 1)) for letter in "ZCT"]
        samples = [int(one.get("SamplesPerPixel", 1)) for one in pixels if one.tag.endswith("}Channel")]
        planes = math.prod(counts) // max(1, *samples, 1)
        if min(counts) < 1 or planes > total:
            raise ValueError(f"its OME metadata declare {planes} planes, there are {total} pages")


def check_series(path: Path, level: Any) -> None:
    """Refuse what the file, or the memory, cannot hold, and tiles that are too large to unpack.

    Raises
    ------
    ValueError
        With the sizes.
    """
    page = level.keyframe
    ratio = RATIOS.get(int(page.compression), math.inf)
    # Pixels of 1, 4 or 12 bits lie side by side in the file and take whole bytes in memory.
    ratio *= max(1.0, 8 * np.dtype(page.dtype).itemsize / max(1, int(page.bitspersample)))
    files = {one.parent.filehandle.path for one in level.pages if one is not None} or {path}
    stored = sum(Path(one).stat().st_size for one in files)
    check_held(level.nbytes, stored, ratio)
    if level.dataoffset is None:
        check_chunk(page.chunks, page.dtype)
        if level.nbytes <= LARGE:
            check_memory(level.nbytes + nbytes_of(page.chunks, page.dtype))


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


def tag_scale(file: Any, index: int, series: Any) -> Scale:
    """What ImageJ, tifffile, a slide scanner or the resolution tags say of the series with this index."""
    about: dict[str, Any] = file.imagej_metadata or next(iter(file.shaped_metadata or ()), {})
    if file.is_svs:
        return _slide_scale(series.keyframe.description) if index == 0 else Scale({}, {}, {})
    tags = series.keyframe.tags
    pixels = _resolution(tags)
    unit = str(about.get("unit", ""))
    times = _frame_interval(about)
    if "spacing" not in about and not unit:
        space = _printed_scale(tags, pixels)
        step, of_time = times
        return replace(space, steps={**space.steps, **step}, units={**space.units, **of_time})
    steps = pixels | ({"Z": float(about["spacing"])} if "spacing" in about else {})
    steps = {letter: abs(step) for letter, step in steps.items() if np.isfinite(step) and step}
    # ImageJ's origin is the pixel that lies at 0.
    origin = {letter: float(about.get(f"{letter.lower()}origin", 0)) for letter in "XYZ"}
    start = {letter: -at * steps.get(letter, 1.0) for letter, at in origin.items() if at}
    # ImageJ names the units of y and z where they are not that of x.
    units = {letter: standard_unit(str(about.get(f"{letter.lower()}unit", unit))) for letter in "XYZ"}
    return Scale(steps | times[0], start, units | times[1], unit)


def _frame_interval(about: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str | None]]:
    """ImageJ's time from frame to frame, in seconds where it says no unit; nothing without one."""
    try:
        step = float(about.get("finterval", 0))
    except (TypeError, ValueError):
        step = 0.0
    if not (math.isfinite(step) and step > 0):
        return {}, {}
    return {"T": step}, {"T": standard_unit(str(about.get("tunit", "s")))}


def _resolution(tags: Any) -> dict[str, float]:
    """Size of a pixel along X and Y, in the unit that the file says elsewhere."""
    pixels = {}
    for letter, tag in (("X", "XResolution"), ("Y", "YResolution")):
        count, per = tags[tag].value if tag in tags else (1, 1)
        if count > 0 and per > 0:
            pixels[letter] = per / count
    return pixels


def _printed_scale(tags: Any, pixels: dict[str, float]) -> Scale:
    """Most resolutions are about printing; a printer's dot is never as fine as a microscope's pixel."""
    code = tags["ResolutionUnit"].value if "ResolutionUnit" in tags else 1
    unit = _RESOLUTION_UNITS.get(int(code), "")
    if not unit or not pixels or max(pixels.values()) * unit_ratio(unit, "µm") >= FINEST_PRINT:
        return Scale({}, {}, {})
    steps = {letter: step * unit_ratio(unit, "µm") for letter, step in pixels.items()}
    return Scale(steps, {}, dict.fromkeys(steps, "µm"), "µm")


def _slide_scale(description: str) -> Scale:
    """Aperio's micrometres per pixel, "MPP = 0.499", in a list that vertical lines divide."""
    pairs = (part.partition("=") for part in description.split("|"))
    said = {key.strip(): value.strip() for key, _, value in pairs}
    try:
        size = float(said.get("MPP", 0))
    except ValueError:
        size = 0.0
    if not (math.isfinite(size) and size > 0):
        return Scale({}, {}, {})
    return Scale(dict.fromkeys("YX", size), {}, dict.fromkeys("YX", "µm"), "µm")


def ome_scale(xml: str | None, index: int, series: Any) -> Scale:
    """Sizes and the place of the first plane of an image; lengths that are known in micrometres.

    Raises
    ------
    ValueError
        If the metadata speak of an image of another size.
    """
    images = _all_pixels(ElementTree.fromstring(xml or "<OME/>"))
    if index >= len(images):
        return Scale({}, {}, {})
    pixels = images[index]
    _check_sides(pixels, series)
    first = _first_plane(pixels)
    steps: dict[str, float] = {}
    start: dict[str, float] = {}
    units: dict[str, str | None] = {}
    for letter in "XYZ":
        size = float(pixels.get(f"PhysicalSize{letter}", 0))
        if not (np.isfinite(size) and size > 0):
            continue
        said = pixels.get(f"PhysicalSize{letter}Unit", "µm")
        units[letter] = unit = standard_unit(said)
        steps[letter] = size
        place = None
        if find_unit(unit or "") is not None:
            steps[letter], units[letter] = size * unit_ratio(unit, "µm"), "µm"
            place = _plane_place(first, letter)
        elif said == "pixel":
            place = _place_in_pixels(first, letter)
        start |= {} if place is None else {letter: place}
    step = float(pixels.get("TimeIncrement", 0))
    if np.isfinite(step) and step > 0:
        steps["T"], units["T"] = step, standard_unit(pixels.get("TimeIncrementUnit", "s"))
    return Scale(steps, start, units, "µm" if "µm" in units.values() else "")


def _first_plane(pixels: Any) -> Any:
    """The element of the first plane, wherever it stands; None without any."""
    planes = [element for element in pixels if element.tag.endswith("}Plane")]
    return min(planes, key=lambda one: [int(one.get(f"The{a}", 0)) for a in "TZC"], default=None)


def _check_sides(pixels: Any, series: Any) -> None:
    for letter, length in zip(series.axes, series.shape, strict=True):
        declared = int(pixels.get(f"Size{letter}", length))
        if letter in "XYZT" and declared != length:
            raise ValueError(f"its OME metadata say {declared} along {letter}, its pixels {length}")


def _place_in_pixels(plane: Any, letter: str) -> float | None:
    """Where a plane lies along an axis without a unit, as we write it; None where it does not say."""
    if plane is None or plane.get(f"Position{letter}Unit") != "pixel":
        return None
    return float(plane.get(f"Position{letter}", 0))


def _plane_place(plane: Any, letter: str) -> float | None:
    """Where a plane lies along an axis, in µm; None where it does not say.

    A position in a "reference frame", the default, has no relation to the size of a pixel.
    """
    unit = standard_unit("" if plane is None else plane.get(f"Position{letter}Unit", ""))
    if plane is None or find_unit(unit or "") is None or not plane.get(f"Position{letter}"):
        return None
    return float(plane.get(f"Position{letter}", 0)) * unit_ratio(unit, "µm")


def _all_pixels(root: Any) -> list[Any]:
    return [element for element in root.iter() if element.tag.endswith("}Pixels")]
