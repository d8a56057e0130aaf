"""Frames: how actions of a session are put into a file one by one, and read up to the last whole one.

A file is `MAGIC` and frames. A frame is one action: a head of fixed size, a JSON object, and the bytes that
it speaks of. The digest in the head covers the frame and all frames before it, so a frame that is cut short,
damaged or out of place ends what can be read.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

MAGIC = b"lowlat-session\n\0"
VERSION = 1
FORMAT = "napari-lowlat-seg session"
SUFFIX = ".journal"

LARGEST_TEXT = 2**28
"""Bytes of the JSON of one frame; a snapshot of a million masks takes some 2**27."""

LARGEST_BYTES = 2**36
"""Bytes that one frame may hold beside its JSON."""

_HEAD = struct.Struct("<IQ16s")  # length of the JSON, of the bytes after it, digest


class JournalError(ValueError):
    """A file that is no session or journal, or one that does not fit; the message is one sentence."""


class FrameWriter:
    """Turns messages into frames, each with a digest of all before it."""

    def __init__(self) -> None:
        self._digest = b""

    def frame(self, message: Mapping[str, Any], blobs: Iterable[bytes] = ()) -> bytes:
        """The bytes of a frame."""
        parts = list(blobs)
        sizes = [len(part) for part in parts]
        text = json.dumps({**message, "sizes": sizes}, separators=(",", ":"), default=_plain).encode()
        body = b"".join(parts)
        self._digest = _digest(self._digest, text, body)
        return _HEAD.pack(len(text), len(body), self._digest) + text + body


class FrameReader:
    """Reads frames from a file up to the first that is not whole.

    Attributes
    ----------
    end
        Bytes up to the end of the last whole frame.
    damaged
        Whether reading ended at a frame that is there in its full length and is not what was written. A
        frame that is cut short, as a kill leaves one, is no damage.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        if file.read(len(MAGIC)) != MAGIC:
            raise JournalError("this is no session of napari-lowlat-seg; choose a file that it has saved")
        self._file, self._size = file, size
        self._digest = b""
        self.end = len(MAGIC)
        self.damaged = False

    def __iter__(self) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> tuple[dict[str, Any], list[bytes]] | None:
        head = self._file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        text_size, body_size, digest = _HEAD.unpack(head)
        left = self._size - self.end - _HEAD.size
        if text_size > LARGEST_TEXT or body_size > LARGEST_BYTES or text_size + body_size > left:
            return None
        text, body = self._file.read(text_size), self._file.read(body_size)
        if len(text) + len(body) < text_size + body_size:
            return None
        if _digest(self._digest, text, body) != digest:
            self.damaged = True
            return None
        self._digest = digest
        self.end += _HEAD.size + text_size + body_size
        message = json.loads(text, parse_constant=_no_constant)
        sizes = [as_int(size, 0, body_size) for size in as_list(as_dict(message).get("sizes"))]
        if sum(sizes) != body_size:
            raise ValueError("the bytes of a frame are not those it speaks of")
        blobs, at = [], 0
        for size in sizes:
            blobs.append(body[at : at + size])
            at += size
        return message, blobs


def _digest(before: bytes, text: bytes, body: bytes) -> bytes:
    digest = hashlib.blake2b(before + _HEAD.pack(len(text), len(body), b""), digest_size=16)
    digest.update(text)
    digest.update(body)
    return digest.digest()


def _plain(value: Any) -> Any:
    """A number of numpy as one of Python, such as a contrast limit of a layer; a text for anything else."""
    return value.item() if hasattr(value, "item") else str(value)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no finite number")


# Values of JSON


def as_dict(value: Any) -> dict[str, Any]:
    """A JSON object; raises ValueError otherwise, as the next five do."""
    return checked(value, isinstance(value, dict), "an object")  # type: ignore[no-any-return]


def as_list(value: Any) -> list[Any]:
    """A JSON array."""
    return checked(value, isinstance(value, list), "a list")  # type: ignore[no-any-return]


def as_int(value: Any, low: int = 0, high: int = 2**63 - 1) -> int:
    """A whole number in a range, both ends included."""
    fits = type(value) is int and low <= value <= high
    return checked(value, fits, f"a whole number from {low} to {high}")  # type: ignore[no-any-return]


def as_number(value: Any) -> float:
    """A number, finite or not."""
    fits = type(value) in (int, float) or value in ("nan", "inf", "-inf")
    return float(checked(value, fits, "a number"))


def as_bool(value: Any) -> bool:
    """True or False."""
    return checked(value, isinstance(value, bool), "true or false")  # type: ignore[no-any-return]


def as_text(value: Any) -> str:
    """A text."""
    return checked(value, isinstance(value, str), "a text")  # type: ignore[no-any-return]


def checked(value: Any, fits: bool, expected: str) -> Any:
    """The value if it fits; else raises ValueError with what was `expected`."""
    if not fits:
        raise ValueError(f"expected {expected}, got {value!r:.60}")
    return value
