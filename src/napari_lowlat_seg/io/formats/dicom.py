"""DICOM (the extra `dicom`): a folder with one series, or a file with many frames, sorted along its normal.

Positions and directions of the slices decide, not their numbers: what does not lie on one grid (gantry tilt,
missing slices, several images at one place) is refused. Pixels are read when a slice is looked at.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import Geometry
from napari_lowlat_seg.io.bounds import PIECE, check_memory, nbytes_of
from napari_lowlat_seg.io.choice import WHOLE, Choice, pick_series
from napari_lowlat_seg.io.placed import Loaded, SliceStack, Unreadable

DEFLATED_SYNTAX = "1.2.840.10008.1.2.1.99"
MOST_DEFLATED = 2**28
"""Bytes that a deflated file may unpack to, however small it is."""

EVEN = 0.02
"""Slices are even if no distance differs by more than this part from the median."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice: where its pixels are, where it lies (LPS+, mm) and how its values are scaled.

    `position`, `directions` (of columns, then of rows) and `spacing` are None where the file does not say;
    `sides` are rows and columns.
    """

    path: Path
    number: int
    position: np.ndarray | None
    directions: np.ndarray | None
    spacing: tuple[float, float] | None
    thickness: float
    slope: float
    intercept: float
    sides: tuple[int, int]


class FrameStack(SliceStack):
    """Slices as one array: (slices, rows, columns), with colours last if they have any."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = list(frames)
        self._file: tuple[Path, np.ndarray] | None = None
        super().__init__(len(frames), self.slice(0))

    def slice(self, at: int) -> np.ndarray:
        """The pixels of a slice in the units of the modality."""
        frame = self.frames[at]
        if self._file is None or self._file[0] != frame.path:
            self._file = frame.path, _decoded(frame.path)
        stored = self._file[1]
        pixels: np.ndarray = stored if frame.number < 0 else stored[frame.number]
        if (frame.slope, frame.intercept) == (1.0, 0.0):
            return pixels
        if frame.slope.is_integer() and frame.intercept.is_integer():
            return pixels.astype(np.int32) * int(frame.slope) + int(frame.intercept)
        return pixels.astype(np.float32) * np.float32(frame.slope) + np.float32(frame.intercept)


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """The series of a folder, or the series that a file of a folder belongs to, as (slice, row, column).

    Raises
    ------
    ValueError
        For several series in a folder, slices that do not lie on one grid, and a compression whose library is
        not installed.
    """
    wanted = None if path.is_dir() else _series_of(_header(path))
    series = _all_series(path if path.is_dir() else path.parent, wanted)
    if not series and wanted is not None:
        kind = getattr(_header(path).file_meta.get("MediaStorageSOPClassUID"), "name", "no image")
        raise Unreadable(f"it holds no pixels, but {kind}")
    if not series:
        raise Unreadable("there are no DICOM images in this folder")
    about = [_series_text(files) for files in series.values()]
    files = list(series.values())[pick_series(list(series), choice.series, about, "series")]
    dataset = files[0][1]
    frames = [frame for file, one in files for frame in _frames(file, one)]
    colours = int(dataset.get("SamplesPerPixel", 1)) > 1
    return _stack(frames, 3 if colours else None)


def _all_series(folder: Path, wanted: str | None) -> dict[str, list[tuple[Path, Any]]]:
    """The files of each series in a folder with their data sets, or of one series."""
    import pydicom

    series: dict[str, list[tuple[Path, Any]]] = {}
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            dataset = _header(file)
        except pydicom.errors.InvalidDicomError:
            continue
        # A DICOMDIR and reports have no rows.
        if "Rows" in dataset and wanted in (None, _series_of(dataset)):
            series.setdefault(_series_of(dataset), []).append((file, dataset))
    return series


def _header(path: Path) -> Any:
    """The data set of a file without its pixels; refuses one that unpacks to far more than it is.

    Raises
    ------
    pydicom.errors.InvalidDicomError
        If it is no DICOM file.
    """
    import pydicom

    with path.open("rb") as file:
        pydicom.filereader.read_preamble(file, force=False)
        try:
            syntax = str(pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID", ""))
        except Exception:  # dcmread says below what is wrong
            syntax = ""
        if syntax == DEFLATED_SYNTAX:
            (length,) = struct.unpack("<I", file.read(12)[8:])  # of the rest of the meta information
            file.seek(length, 1)
            _check_deflated(file.read(), path.stat().st_size)
    return pydicom.dcmread(path, stop_before_pixels=True)


def _series_of(dataset: Any) -> str:
    """The number of the series; "" where a file does not say it, as anonymizers leave it out."""
    return str(dataset.get("SeriesInstanceUID", ""))


def _check_deflated(packed: bytes, stored: int) -> None:
    """pydicom unpacks such a file as a whole, also for its header."""
    unpacker, size, limit = zlib.decompressobj(-zlib.MAX_WBITS), 0, max(MOST_DEFLATED, 100 * stored)
    while packed and not unpacker.eof:
        size += len(unpacker.decompress(packed, PIECE))
        packed = unpacker.unconsumed_tail
        if size > limit:
            raise ValueError(f"it has {stored} bytes and unpacks to more than {limit}")


def _series_text(files: list[Any]) -> str:
    path, dataset = files[0]
    name = dataset.get("SeriesDescription", "") or dataset.get("Modality", "")
    return f"{name}, {len(files)} files, {path.name}"


def _frames(path: Path, dataset: Any) -> list[Frame]:
    """The slices of a file: one, or those of its functional groups."""
    count = int(dataset.get("NumberOfFrames", 1))
    stored = path.stat().st_size
    if not 0 < count <= stored:
        raise ValueError(f"{path.name} declares {count} frames in {stored} bytes")
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    if groups is None:
        if count == 1:
            return [_frame(path, -1, [dataset])]
        frames = [_frame(path, number, [dataset]) for number in range(count)]
        return _along_normal(frames, dataset.get("GridFrameOffsetVector"))
    found = []
    for number in range(count):
        places = []
        for group in (groups[number], shared):
            for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
                         "PixelValueTransformationSequence"):  # fmt: skip
                if group is not None and group.get(name):
                    places.append(group.get(name)[0])
        found.append(_frame(path, number if count > 1 else -1, [*places, dataset]))
    return found


def _along_normal(frames: list[Frame], offsets: Any) -> list[Frame]:
    """Frames that share one position, each moved along the normal by its own offset, as doses are stored."""
    if offsets is None or len(offsets) != len(frames):
        return frames
    placed = []
    for frame, offset in zip(frames, offsets):
        if frame.position is None or frame.directions is None:
            return frames
        # Offsets are from the first frame, or along the patient's axis: its position then.
        way = np.cross(*frame.directions) * (float(offset) - float(offsets[0]))
        placed.append(replace(frame, position=frame.position + way))
    return placed


def _frame(path: Path, number: int, places: Sequence[Any]) -> Frame:
    """A slice from the first of some data sets that says each thing."""

    def tag(name: str) -> Any:
        return next((place.get(name) for place in places if place.get(name) is not None), None)

    position, directions = tag("ImagePositionPatient"), tag("ImageOrientationPatient")
    spacing = tag("PixelSpacing") or tag("ImagerPixelSpacing")
    thickness = tag("SpacingBetweenSlices") or tag("SliceThickness") or 1.0
    return Frame(
        path,
        number,
        None if position is None else np.array(position, np.float64),
        None if directions is None else np.array(directions, np.float64).reshape(2, 3),
        (float(spacing[0]), float(spacing[1])) if spacing else None,
        abs(float(thickness)) or 1.0,
        float(tag("RescaleSlope") if tag("RescaleSlope") is not None else 1),
        float(tag("RescaleIntercept") or 0),
        (int(tag("Rows")), int(tag("Columns"))),
    )


def _stack(frames: list[Frame], colours: int | None) -> Loaded:
    """The slices sorted along their normal, with the affine of the stack."""
    first = frames[0]
    _check_sides(frames)
    if any(frame.position is None or frame.directions is None or frame.spacing is None for frame in frames):
        return _unplaced(frames, colours)
    assert first.position is not None
    assert first.directions is not None
    assert first.spacing is not None
    along, down = first.directions
    normal = np.cross(along, down)
    for frame in frames:
        if frame.spacing != first.spacing or np.abs(frame.directions - first.directions).max() > 1e-3:
            raise Unreadable("its slices have several directions or sizes of pixels; a volume needs one")
    frames = sorted(frames, key=lambda frame: float(normal @ frame.position))
    positions = np.stack([frame.position for frame in frames if frame.position is not None])
    step = _step(positions, normal) if len(frames) > 1 else normal * first.thickness
    affine = np.eye(4)
    affine[:3, :3] = np.stack([step, down * first.spacing[0], along * first.spacing[1]], axis=1)
    affine[:3, 3] = positions[0]
    return Loaded(FrameStack(frames), Geometry.from_lps(affine), colours)


def _check_sides(frames: Sequence[Frame]) -> None:
    sides = {frame.sides for frame in frames}
    if len(sides) > 1:
        low, high = min(sides), max(sides)
        raise Unreadable(
            f"its slices have {low[0]} x {low[1]} to {high[0]} x {high[1]} pixels; a volume needs one"
        )


def _unplaced(frames: list[Frame], colours: int | None) -> Loaded:
    """Pictures one after the other, of which no place is known, as of a film."""
    data, spacing = FrameStack(frames), frames[0].spacing
    unit = None if spacing is None else "mm"
    geometry = Geometry.from_scale("tyx", (1.0, *(spacing or (1.0, 1.0))), units=(None, unit, unit))
    if len(frames) == 1:
        return Loaded(data[0], geometry.squeeze([0]), None if colours is None else 2)
    return Loaded(data, geometry, colours)


def _step(positions: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """From each slice to the next: positions (N, 3) of two or more, sorted along their normal."""
    distances = np.diff(positions, axis=0) @ normal
    typical = float(np.median(distances))
    if distances.min() < 1e-3:
        raise Unreadable("it has several images at one place (times, echoes, ...); a volume needs one")
    step: np.ndarray = (positions[-1] - positions[0]) / (len(positions) - 1)
    # A tilted gantry shifts each slice sideways.
    if np.linalg.norm(step - normal * (step @ normal)) > EVEN * typical:
        raise Unreadable("its slices are shifted sideways, as by a tilted gantry; resample it to a grid")
    if np.abs(distances - typical).max() > EVEN * typical:
        raise Unreadable(
            f"its slices are {distances.min():.3g} to {distances.max():.3g} mm apart: some are missing, "
            "or it is no volume"
        )
    return step


def _decoded(path: Path) -> np.ndarray:
    import pydicom

    dataset = pydicom.dcmread(path)
    shape = [int(dataset.get(name, 1)) for name in ("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel")]
    check_memory(2 * nbytes_of(shape, np.uint8) * (int(dataset.get("BitsAllocated", 8)) + 7) // 8)
    try:
        pixels: np.ndarray = dataset.pixel_array
        return pixels
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        name = dataset.file_meta.TransferSyntaxUID.name
        raise Unreadable(
            f"its pixels ({name}) cannot be decoded; pip install napari-lowlat-seg[dicom] brings pylibjpeg"
        ) from error
