"""MRC and its kin of electron microscopy (.mrc, .rec, .map, .st): mapped, not loaded; sizes in Å."""

from __future__ import annotations

import bz2
import gzip
import math
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import Geometry
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.bounds import DEFLATED, check_held, check_memory
from napari_lowlat_seg.io.choice import WHOLE, Choice
from napari_lowlat_seg.io.placed import Loaded, Turn, geometry_of, upright, usual_geometry

MODE_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 6: 2, 12: 2}
"""Bytes of a pixel by the mode of the header."""

FEI_LEAST, FEI_MOST = 1e-3, 1e7
"""Å that a pixel of an electron microscope may have; other numbers are none."""

COMPRESSION = {".gz": "gzip", ".bz2": "bzip2"}

_IMOD_STAMP = 1146047817
"""What IMOD writes into its files; then a flag says whether bytes have a sign."""


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """The array of a file as (section, row, column), placed by its cell and origin.

    Raises
    ------
    ValueError
        For a file that mrcfile cannot make sense of, with its reason.
    """
    parrec = _parrec_of(path)
    if parrec is not None:
        from napari_lowlat_seg.io.formats.nibabel_formats import read as read_parrec

        return read_parrec(parrec, choice)
    header, sizes, data = _opened(path)
    if data.dtype == np.int8 and _bytes_are_unsigned(header):
        data = data.view(np.uint8)
    return Loaded(data, _geometry(header, sizes, data.ndim))


def _parrec_of(path: Path) -> Path | None:
    """The .par beside a .rec, which is Philips' then and not a tomogram; None without one."""
    if path.suffix.lower() != ".rec":
        return None
    return next((one for one in map(path.with_suffix, (".par", ".PAR")) if one.exists()), None)


def _opened(path: Path) -> tuple[Any, Any, np.ndarray]:
    """Header, sizes of a voxel in Å by axis, and the pixels, mapped where they are not compressed."""
    import mrcfile

    packed = _packed(path)
    (_check_packed if packed else _check_extended_header)(path)
    # Many programs write headers that are slightly wrong; mrcfile warns and reads on.
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        file: Any = (mrcfile.open if packed else mrcfile.mmap)(path, mode="r", permissive=True)
        if file.data is None:
            raise ValueError(str(warned[-1].message) if warned else "no data")
        sizes = {name: float(file.voxel_size[name]) for name in "xyz"}
        return file.header, _fei_sizes(file) if _unsaid(sizes) else sizes, file.data


def _unsaid(sizes: Mapping[str, float]) -> bool:
    """Whether the cell names no sizes: none at all, or the 1 Å that programs write which do not know them."""
    return not all(np.isfinite(size) and size > 0 for size in sizes.values()) or set(sizes.values()) == {1.0}


def _fei_sizes(file: Any) -> dict[str, float]:
    """Sizes in Å by the extended header of FEI's microscopes, which has metres; else what the cell says.

    It knows those of rows and columns only; the distance of sections is taken to be the same.
    """
    sizes = {name: float(file.voxel_size[name]) for name in "xyz"}
    sections = file.indexed_extended_header if bytes(file.header.exttyp) in (b"FEI1", b"FEI2") else None
    if sections is None or not len(sections):
        return sizes
    x, y = (1e10 * float(sections[f"Pixel size {name}"][0]) for name in "XY")
    return {"x": x, "y": y, "z": x} if FEI_LEAST <= min(x, y) <= max(x, y) <= FEI_MOST else sizes


def _geometry(header: Any, sizes: Mapping[str, float], ndim: int) -> Geometry:
    """Where sections, rows and columns lie; stacks of volumes have one axis more, pictures one less."""
    letters = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    names = ["xyz"[i - 1] for i in letters] if sorted(letters) == [1, 2, 3] else list("zyx")
    steps = [sizes[name] for name in names]
    if not all(np.isfinite(step) and step > 0 for step in steps):
        return usual_geometry(ndim)
    start = [float(header["origin"][name]) for name in names]
    if not any(start):
        starts = [int(header[name]) for name in ("nzstart", "nystart", "nxstart")]
        start = [at * step for at, step in zip(starts, steps, strict=True)]
    volumes = max(0, ndim - 3)
    kept = slice(max(0, 3 - ndim), None)
    names, steps, start = names[kept], steps[kept], start[kept]
    return Geometry.from_scale(
        ["n"] * volumes + names,
        [1.0] * volumes + steps,
        [0.0] * volumes + start,
        [None] * volumes + ["Å"] * len(names),
        ["other"] * volumes + ["space"] * len(names),
    )


def _check_extended_header(path: Path) -> None:
    """Refuse a length of the extended header beyond the file, for which mrcfile would take the memory."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(1024)
    if len(head) < 1024:
        raise ValueError(f"it has {len(head)} bytes, the header of MRC alone has 1024")
    order = ">" if head[212] == 0x11 else "<"
    (extended,) = struct.unpack_from(order + "i", head, 92)
    if not 0 <= extended <= size - 1024:
        raise ValueError(f"an extended header of {extended} bytes is not in a file of {size}")


def _check_packed(path: Path) -> None:
    """Refuse more pixels than a packed file, or the memory, can hold."""
    gzipped = path.suffix.lower() == ".gz"
    with (gzip.open if gzipped else bz2.open)(path) as file:
        head = file.read(1024)
    if len(head) < 1024:
        raise ValueError(f"it has {len(head)} bytes, the header of MRC alone has 1024")
    order = ">" if head[212] == 0x11 else "<"
    *sides, mode = struct.unpack_from(order + "4i", head)
    (extended,) = struct.unpack_from(order + "i", head, 92)
    size = math.prod(max(0, side) for side in sides) * MODE_BYTES.get(mode, 1) + max(0, extended)
    check_held(size, path.stat().st_size, DEFLATED if gzipped else math.inf)
    check_memory(2 * size)


def _bytes_are_unsigned(header: Any) -> bool:
    """Whether IMOD says that mode 0 has no sign."""
    extra = bytes(header["extra2"].tobytes())
    stamp, flags = np.frombuffer(extra[40:48], header["nx"].dtype)
    return int(stamp) == _IMOD_STAMP and not int(flags) & 1


def write(path: Path, labels: np.ndarray, like: Volume | None) -> None:
    """Write labels up to 65535 as (z, y, x), in the smallest mode that holds them.

    Raises
    ------
    ValueError
        For higher labels, and as `plan`.
    """
    turn, geometry = plan(path, labels.shape, like)
    highest = int(labels.max())
    if highest > np.iinfo(np.uint16).max:
        raise ValueError(f"MRC holds labels up to 65535, these go up to {highest}")
    # Mode 0 has a sign, as mode 1 has; mode 6, which has none, is known to fewer programs.
    dtype = np.int8 if highest < 128 else np.int16 if highest < 32768 else np.uint16
    turned = turn.array(labels)
    with _new(path, turned, np.dtype(dtype)) as file:
        if labels.ndim == 3:
            file.set_volume()
        file.header.dmin, file.header.dmax, file.header.dmean = labels.min(), highest, labels.mean()
        file.header.rms = -1  # not known
        if geometry.calibrated:
            names = geometry.names
            file.voxel_size = tuple(
                dict(zip(names, geometry.spacing)).get(name, geometry.spacing[-1]) for name in "xyz"
            )
            start = dict(zip(names, geometry.translation.tolist()))
            for name in "xyz":
                file.header.origin[name] = start.get(name, 0.0)
        begin = 1024 + int(file.header.nsymbt)
    if not _packed(path):
        _fill(path, begin, turned, np.dtype(dtype))


def _packed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSION


def _new(path: Path, labels: np.ndarray, dtype: np.dtype[Any]) -> Any:
    """A new file with a header for these labels; with the labels themselves where it is packed."""
    import mrcfile

    if not _packed(path):
        return mrcfile.new_mmap(path, labels.shape, mrcfile.utils.mode_from_dtype(dtype), overwrite=True)
    file = mrcfile.new(path, compression=COMPRESSION[path.suffix.lower()], overwrite=True)
    file.set_data(np.ascontiguousarray(labels).astype(dtype))
    return file


def _fill(path: Path, begin: int, labels: np.ndarray, dtype: np.dtype[Any]) -> None:
    """Write labels plane by plane: a copy of large ones has no room.

    Not through the map of the file: a full disk would end the process.
    """
    with path.open("r+b") as file:
        file.seek(begin)
        for place in np.ndindex(labels.shape[:-2]):
            file.write(labels[place].astype(dtype).tobytes())


def plan(path: Path, shape: tuple[int, ...], like: Volume | None) -> tuple[Turn, Geometry]:
    """How labels are turned, and their geometry then, in Å.

    Raises
    ------
    ValueError
        For what MRC cannot say: other axes than two or three of space, directions, no unit.
    """
    if len(shape) > 3:
        raise ValueError(f"MRC has two or three axes of space, the image has {len(shape)} axes")
    geometry = usual_geometry(len(shape)) if like is None else geometry_of(like)
    turn, geometry = upright(geometry, shape, "MRC")
    if not geometry.calibrated:
        return turn, geometry
    if geometry.names != tuple("zyx"[-len(shape) :]):
        raise ValueError(f"MRC has axes z, y, x, the image has {', '.join(geometry.names)}")
    if geometry.unit is None:
        raise ValueError("MRC counts in Å, and the image names no unit for its sizes")
    return turn, geometry.in_unit("Å")
