"""Limits that are checked before memory is taken or a file is opened: what a file declares is only a claim.

A size is refused if the file cannot hold it, whatever its compression, or the machine cannot. A name that a
file gives of another file is followed inside its own folder only.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.io.placed import Unreadable

DEFLATED = 1032
"""No byte of deflate, as in gzip, zlib and PNG, unpacks to more bytes."""

PIECE = 2**20
BEHIND = 2**26
"""Bytes behind the pixels of a packed file that may be there, as padding."""

LARGE = 2**30
"""Bytes of an image from which it is not loaded but read where it is looked at, if the format allows it."""

IMPOSSIBLE = 2**60
"""Bytes that no image has."""

CHUNK = 2**31
"""The most bytes of a chunk: one is unpacked as a whole, whatever is looked at."""


def nbytes_of(shape: Sequence[int], dtype: Any) -> int:
    """Bytes of an array.

    >>> nbytes_of((2, 3), "uint16")
    12
    """
    return math.prod(int(n) for n in shape) * int(np.dtype(dtype).itemsize)


def check_held(declared: int, stored: int, ratio: float = 1) -> None:
    """Refuse an image larger than its file can hold.

    Parameters
    ----------
    declared
        Bytes of the image, as the header says.
    stored
        Bytes of the file after its header.
    ratio
        Bytes that one stored byte can unpack to at most; infinite for compressions without a limit.

    Raises
    ------
    ValueError
        With both sizes.
    """
    if declared > stored * ratio:
        raise ValueError(f"it declares {size_text(declared)} of pixels, a file of {size_text(stored)} "
                         "cannot hold them")  # fmt: skip


def check_memory(needed: int) -> None:
    """Refuse what does not fit into the memory that is free now.

    Raises
    ------
    Unreadable
        With what is needed and what is free.
    """
    free = free_memory()
    if needed > free:
        raise Unreadable(
            f"it needs {size_text(needed)} of memory and {size_text(free)} are free; convert it to OME-Zarr, "
            "which is read piece by piece"
        )


def unpacked(file: Any, size: int, stored: int, ratio: float = DEFLATED) -> bytes:
    """The bytes that a packed file declares, and no more: what follows is only counted.

    Parameters
    ----------
    file
        Opened by gzip, bz2 or the like, at its start; read to its end, where its checksum is.
    size
        How many bytes are wanted.
    stored
        Bytes of the packed file.
    ratio
        As of `check_held`.

    Raises
    ------
    ValueError
        For a size that the file cannot hold, for fewer bytes, and for many more.
    """
    check_held(size, stored, ratio)
    check_memory(size)
    found: bytes = file.read(size)
    if len(found) < size:
        raise ValueError(f"it declares {size_text(size)} of pixels and holds {size_text(len(found))}")
    behind = 0
    while part := file.read(PIECE):
        behind += len(part)
        if behind > BEHIND:
            raise ValueError(f"it declares {size_text(size)} and unpacks to far more")
    return found


def mapped(path: Path, shape: Sequence[int], dtype: Any, offset: int) -> np.ndarray:
    """An array in a file, mapped and not loaded.

    Parameters
    ----------
    shape, dtype
        Of the array, in C order.
    offset
        Bytes before its first element.

    Raises
    ------
    ValueError
        If the file ends before the array does.
    """
    size, there = nbytes_of(shape, dtype), path.stat().st_size - offset
    if offset < 0 or size > there:
        raise ValueError(
            f"it declares {size_text(size)} of pixels, the file holds {size_text(max(0, there))}"
        )
    return np.memmap(path, dtype, "r", offset, tuple(shape))


def check_chunk(shape: Sequence[int], dtype: Any) -> None:
    """Refuse chunks, tiles and strips that are too large to be unpacked as a whole.

    Raises
    ------
    ValueError
        With the size of a chunk.
    """
    size = nbytes_of(shape, dtype)
    if size > CHUNK:
        limit = size_text(CHUNK)
        raise ValueError(
            f"its chunks of {tuple(shape)} take {size_text(size)} each; up to {limit} can be read"
        )


def free_memory() -> int:
    """Bytes of memory that can be taken without swapping; no limit where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            found = next(line for line in file if line.startswith("MemAvailable"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return 2**63 - 1


def sibling(path: Path, name: str) -> Path:
    """The regular file that another one names as its data, or as a part of it: in the same folder only.

    Parameters
    ----------
    path
        The file that names it.
    name
        As it stands there.

    Raises
    ------
    ValueError
        For a name that leads out of the folder, also by a link, and for what is no file.
    """
    folder = path.absolute().parent.resolve()
    place = folder / name
    if not name or place.parent != folder or place.resolve().parent != folder:
        raise ValueError(f"it names the file {name!r}, which is not in its folder")
    if not place.exists():
        raise Unreadable(f"it names the file {name!r}, which is not beside it")
    check_regular(place)
    return place


def check_regular(path: Path) -> None:
    """Refuse pipes and devices, which would be waited for without an end.

    Raises
    ------
    ValueError
        With the name.
    """
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path.name} is no regular file but a pipe, a device or a folder")


def size_text(size: int) -> str:
    """A number of bytes for people.

    >>> size_text(3 * 2**30), size_text(100)
    ('3.0 GiB', '100 bytes')
    """
    if size < 1024:
        return f"{size} bytes"
    units = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    power = min(len(units), (size.bit_length() - 1) // 10)
    return f"{size / 1024**power:.1f} {units[power - 1]}"
