"""A folder of chunks, whoever made it: only regular files inside it are read, and only numbers in them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore

from napari_lowlat_seg.io.bounds import IMPOSSIBLE, check_chunk, check_regular, nbytes_of, size_text

OBJECTS = {
    "pickle", "json", "json2", "msgpack", "msgpack2", "categorize",
    "vlen-utf8", "vlen-bytes", "vlen-array", "string", "bytes-object",
}  # fmt: skip
"""Codecs that make Python objects: an image needs none, and pickle runs code of the file's maker."""


METADATA = (".json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
BLOSC_HEADER = 16
PADDING = 2**16
"""Bytes that any chunk may take."""


class GuardedStore(LocalStore):
    """A local store that reads no pipes and devices, and follows no link that leads out of its folder.

    Attributes
    ----------
    chunks
        By the path of an array, the bytes of a chunk: what takes far more in its file is not unpacked.
    blosc
        Paths of those arrays whose chunks are packed by Blosc, which believes their headers.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.chunks: dict[str, int] = {}
        self.blosc: set[str] = set()

    def _check(self, key: str) -> None:
        place = Path(self.root) / key
        self._check_chunk(key, place)
        if place.is_symlink() or place.exists():
            inside = place.resolve()
            if not inside.is_relative_to(Path(self.root).resolve()):
                raise ValueError(f"{key} is a link that leads out of the folder")
            if not inside.is_dir():
                check_regular(inside)

    def _check_chunk(self, key: str, place: Path) -> None:
        for path, size in self.chunks.items():
            if key.startswith(path) and not key.endswith(METADATA) and place.is_file():
                stored = place.stat().st_size
                if stored > 2 * size + PADDING:
                    raise ValueError(f"{key} takes {size_text(stored)}, a chunk has {size_text(size)}")

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """The bytes at a key; refuses links out of the store and everything that is no regular file."""
        self._check(key)
        found = await super().get(key, prototype, byte_range)
        if found is not None and byte_range is None:
            for path in self.blosc:
                if key.startswith(path) and not key.endswith(METADATA):
                    _check_blosc(key, found, self.chunks[path])
        return found


def _check_blosc(key: str, chunk: Any, size: int) -> None:
    """Refuse a chunk whose header declares other lengths than it has: Blosc would read beyond it."""
    head = bytes(chunk.as_numpy_array()[:BLOSC_HEADER].tobytes())
    unpacked, _, stored = struct.unpack("<3I", head[4:]) if len(head) == BLOSC_HEADER else (0, 0, -1)
    if stored != len(chunk) or unpacked > 8 * size + PADDING:
        raise ValueError(
            f"chunk {key} is damaged: it declares {stored} bytes that unpack to {unpacked}, and has "
            f"{len(chunk)} that should unpack to {size}"
        )


def opened(zarr: Any, path: Path, *, write: bool = False) -> Any:
    """The group or array at a path, through a guarded store.

    Raises
    ------
    OSError, ValueError
        If there is none, or none that can be understood.
    """
    return zarr.open(GuardedStore(path.absolute(), read_only=not write), mode="r+" if write else "r")


def checked(array: Any) -> Any:
    """An array of numbers that can be read chunk by chunk; nothing of it is read here.

    Raises
    ------
    ValueError
        For objects and codecs that make them, for chunks too large to unpack, and for sizes that cannot be.
    """
    if array.dtype.kind not in "buif":
        raise ValueError(f"its pixels are of type {array.dtype}; they must be numbers")
    found = sorted(_codecs(array.metadata.to_dict()) & OBJECTS)
    if found:
        raise ValueError(f"its codec {found[0]} makes objects, which an image has no use for")
    size = nbytes_of(array.shape, array.dtype)
    if size > IMPOSSIBLE:
        raise ValueError(f"its shape {tuple(array.shape)} declares {size_text(size)}, which cannot be")
    check_chunk(array.chunks, array.dtype)
    if isinstance(array.store, GuardedStore):
        stored = getattr(array, "shards", None) or array.chunks
        path = f"{array.path}/" if array.path else ""
        array.store.chunks[path] = nbytes_of(stored, array.dtype)
        if "blosc" in _codecs(array.metadata.to_dict()) and getattr(array, "shards", None) is None:
            array.store.blosc.add(path)
    return array


def _codecs(about: Any) -> set[str]:
    """Names of all codecs in an array's metadata, also those inside of shards."""
    if isinstance(about, (list, tuple)):
        return set().union(*(_codecs(one) for one in about))
    if hasattr(about, "get_config"):  # a codec of numcodecs
        about = about.get_config()
    elif hasattr(about, "to_dict"):
        about = about.to_dict()
    if not isinstance(about, dict):
        return set()
    named = {str(about[key]).removeprefix("numcodecs.") for key in ("id", "name") if key in about}
    within = (about.get(key) for key in ("codecs", "filters", "compressor", "configuration", "index_codecs"))
    return named.union(*(_codecs(one) for one in within))
