"""Messages between two processes: a closed format, so that either side may be another machine.

A frame is a magic word, the length of the head, the number of parts and their lengths; then the head, which
is msgpack, and the parts, which are the bytes of arrays. What a head may hold is in `_FIELDS`: plain values,
arrays of real numbers, paths, and the values of `core` that requests and replies are made of. Nothing is
imported or called by name. Why not pickle: docs/decisions/trust.md.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.masks import PROBABILITY_STEPS, SoftMask
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Scribble
from napari_lowlat_seg.core.requests import FoundOnPlane, PlaneSource, PropagationRequest, Request
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.propagation.sweep import PropagatedMask, RefusedPlane

MAGIC = b"LSEG"
HELLO = b"\0lowlat-seg protocol 4\n"
"""What a child says first; whatever a login script has printed before it is skipped."""

MOST_NOISE = 1 << 16
MOST_HEAD = 1 << 26
MOST_PARTS = 1 << 12
MOST_REPLY = 1 << 28
"""Bytes of one message from a child: a soft mask of the largest plane has less."""

MOST_REQUEST = 1 << 36
"""Bytes of one message to a child, such as the pixels of a plane."""

_HEAD = struct.Struct("<4sII")
_ARRAY, _PATH, _BOX, _VALUES = 1, 2, 3, 16

_NUMBER = (int, float)
_PROMPTS = (Click, Scribble, Box, Polygon, Mask)

_FIELDS: dict[type[Any], dict[str, Any]] = {
    Plane: {"index": tuple},
    Click: {"at": tuple, "positive": bool},
    Scribble: {"points": tuple, "positive": bool},
    Box: {"start": tuple, "end": tuple, "positive": bool},
    Polygon: {"points": tuple, "positive": bool},
    Mask: {"pixels": np.ndarray, "positive": bool},
    SoftMask: {
        "shape": tuple,
        "box": BoundingBox,
        "packed": bytes,
        "quality": (*_NUMBER, type(None)),
        "drawn": bool,
    },
    PlaneSource: {
        "key": int,
        "window": (tuple, type(None)),
        "spacing": tuple,
        "name": str,
        "plane": Plane,
        "folders": tuple,
        "thickness": _NUMBER,
    },
    Request: {
        "ticket": int,
        "object": int,
        "plane": Plane,
        "prompts": tuple,
        "previous": (SoftMask, type(None)),
    },
    PropagationRequest: {
        "planes": tuple,
        "anchors": dict,
        "seeds": dict,
        "changed": (tuple, type(None)),
        "shapes": bool,
    },
    PropagatedMask: {
        "plane": Plane,
        "prediction": SoftMask,
        "confidence": _NUMBER,
        "final": bool,
        "ends": int,
        "reason": str,
        "refused": tuple,
    },
    RefusedPlane: {"plane": Plane, "presence": _NUMBER, "pixels": int, "reason": str},
    FoundOnPlane: {
        "done": int,
        "total": int,
        "labels": (np.ndarray, type(None)),
        "scores": (np.ndarray, type(None)),
    },
}
"""What travels, by type: its fields and what each may be. Their order is part of the protocol."""

_KINDS = list(_FIELDS)
_CODES = {kind: _VALUES + place for place, kind in enumerate(_KINDS)}


class ProtocolError(RuntimeError):
    """What came is no message."""


class Message(NamedTuple):
    """What is sent: the number of the request it belongs to, the kind of message, and its content."""

    number: int
    kind: str
    content: Any = None


def write(stream: Any, message: Message) -> None:
    """Write one frame. Arrays are parts of their own and are not copied where they lie in one piece.

    Raises
    ------
    ValueError
        For content that is not of the format.
    """
    parts: list[memoryview] = []
    head = _pack(tuple(message), parts)
    sizes = struct.pack(f"<{len(parts)}Q", *(part.nbytes for part in parts))
    first = memoryview(_HEAD.pack(MAGIC, len(head), len(parts)) + sizes + head)
    for part in (first, *parts):
        while part.nbytes:
            part = part[stream.write(part) :]


def read(stream: Any, most: int) -> Message | None:
    """Read the next frame; None at the end of the stream.

    Parameters
    ----------
    most
        Bytes that it may have, all together.

    Raises
    ------
    ProtocolError
        If it is no frame, too large, or holds what is not of the format.
    """
    try:
        magic, head_size, count = _HEAD.unpack(_exactly(stream, _HEAD.size))
        if magic != MAGIC or head_size > MOST_HEAD or count > MOST_PARTS:
            raise ProtocolError(f"expected a message, got {magic!r}, {head_size} bytes and {count} parts")
        sizes = struct.unpack(f"<{count}Q", _exactly(stream, 8 * count))
        if head_size + sum(sizes) > most:
            raise ProtocolError(f"a message of {head_size + sum(sizes)} bytes came; {most} at most")
        head, *parts = [_exactly(stream, size) for size in (head_size, *sizes)]
    except (EOFError, OSError):
        return None
    except ValueError as error:  # the stream was closed here
        if isinstance(error, ProtocolError):
            raise
        return None
    try:
        message = Message(*_unpack(bytes(head), parts))
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError, zlib.error) as error:
        raise ProtocolError(f"a message could not be read: {error!s:.120}") from None
    if type(message.number) is not int or type(message.kind) is not str:
        raise ProtocolError("a message came without a number and a kind")
    return message


def find_hello(stream: Any) -> bool:
    """Skip to the end of `HELLO`; False at the end of the stream.

    Raises
    ------
    ProtocolError
        If it does not come, or is that of another version.
    """
    seen = bytearray()
    while len(seen) < MOST_NOISE:
        try:
            seen += _exactly(stream, 1)
        except (EOFError, OSError, ValueError):
            return False
        if seen.endswith(HELLO):
            return True
        if seen.endswith(b"\n") and HELLO[:20] in seen:
            raise ProtocolError("it speaks another version of the protocol; install the same version there")
    raise ProtocolError(f"expected a greeting, got {bytes(seen[:40])!r}")


def _pack(value: Any, parts: list[memoryview]) -> bytes:
    packed: bytes = msgpack.packb(value, default=lambda one: _packed(one, parts), strict_types=True)
    return packed


def _packed(value: Any, parts: list[memoryview]) -> Any:
    """What msgpack does not know itself."""
    kind = type(value)
    if kind is tuple:
        return list(value)
    if kind in _CODES:
        fields = [getattr(value, name) for name in _FIELDS[kind]]
        return msgpack.ExtType(_CODES[kind], _pack(fields, parts))
    if isinstance(value, np.ndarray):
        return msgpack.ExtType(_ARRAY, _pack(_part(value, parts), parts))
    if isinstance(value, np.generic):
        return float(value) if isinstance(value, np.longdouble) else value.item()
    if isinstance(value, BoundingBox):
        return msgpack.ExtType(_BOX, _pack([int(edge) for edge in value], parts))
    if isinstance(value, Path):
        return msgpack.ExtType(_PATH, str(value).encode())
    if isinstance(value, bool | int | float | str):  # a subclass
        return next(plain(value) for plain in (bool, int, float, str) if isinstance(value, plain))
    raise ValueError(f"a {kind.__name__} cannot be sent to the model process")


def _part(array: np.ndarray, parts: list[memoryview]) -> list[Any]:
    """Where the bytes of an array are among the parts, its type and its shape."""
    if array.dtype.kind not in "buif":
        raise ValueError(f"expected real numbers as pixels, got {array.dtype}")
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    whole = np.ascontiguousarray(array)
    parts.append(whole.reshape(-1).view(np.uint8).data)
    return [len(parts) - 1, whole.dtype.str, list(array.shape)]


def _unpack(raw: bytes, parts: list[bytearray]) -> Any:
    def known(code: int, data: bytes) -> Any:
        return _unpacked(code, data, parts)

    return msgpack.unpackb(raw, ext_hook=known, use_list=False, strict_map_key=False)


def _unpacked(code: int, data: bytes, parts: list[bytearray]) -> Any:
    if code == _PATH:
        return Path(data.decode())
    values = _unpack(data, parts)
    if code == _ARRAY:
        place, dtype, shape = values
        stored = np.dtype(str(dtype))
        if stored.kind not in "buif" or place < 0:
            raise ValueError(f"an array of {dtype!s:.20}")
        array: np.ndarray = np.frombuffer(parts[place], stored).reshape(shape)
        return array
    if code == _BOX:
        top, left, bottom, right = map(_whole, values)
        return BoundingBox(top, left, bottom, right)
    kind = _KINDS[code - _VALUES] if code >= _VALUES else None
    if kind is None or len(values) != len(_FIELDS[kind]):
        raise ValueError(f"an unknown value of type {code}")
    fields = dict(zip(_FIELDS[kind], values))
    for name, allowed in _FIELDS[kind].items():
        if not isinstance(fields[name], allowed) or (allowed is int and isinstance(fields[name], bool)):
            raise ValueError(f"a {kind.__name__} whose {name} is a {type(fields[name]).__name__}")
    if kind is PlaneSource:
        return PlaneSource(read=unreadable, **fields)
    made = kind(**fields)
    if kind in _CHECKS:
        _CHECKS[kind](made)
    return made


def _check_soft_mask(mask: SoftMask) -> None:
    """Refuse one that does not unpack to what it says, or to more."""
    rows, cols = map(_whole, mask.shape)
    box = mask.box
    inside = 0 <= box.top <= box.bottom <= rows and 0 <= box.left <= box.right <= cols
    area = (box.bottom - box.top) * (box.right - box.left)
    if not inside or area > MOST_REPLY:
        raise ValueError(f"a soft mask with the box {tuple(box)} on {mask.shape}")
    unpacking = zlib.decompressobj()
    steps = unpacking.decompress(mask.packed, area + 1)
    highest = np.frombuffer(steps, np.uint8).max(initial=0)
    if len(steps) != area or not unpacking.eof or highest > PROBABILITY_STEPS:
        raise ValueError("a soft mask that does not unpack to its box")


def _check_request(request: Request) -> None:
    if not all(isinstance(prompt, _PROMPTS) for prompt in request.prompts):
        raise ValueError("a request with prompts that are none")


def _check_propagation(request: PropagationRequest) -> None:
    planes = [*request.planes, *(request.changed or ())]
    rows = list(request.anchors.values())
    if not all(isinstance(row, dict) for row in rows) or not all(
        isinstance(plane, Plane) for plane in (*planes, *(plane for row in rows for plane in row))
    ):
        raise ValueError("a propagation without planes")
    if not all(isinstance(mask, SoftMask) for row in rows for mask in row.values()):
        raise ValueError("a propagation whose anchors are no masks")


def _check_found(found: FoundOnPlane) -> None:
    """Refuse labels that are not those of a plane, and other scores than one for each of them."""
    labels, scores = found.labels, found.scores
    if (labels is None) != (scores is None) or not 0 <= found.done <= found.total:
        raise ValueError("expected labels with scores, or neither, and a part of the clicks")
    if labels is None or scores is None:
        return
    whole = labels.ndim == 2 and labels.dtype == np.uint32 and scores.ndim == 1 and scores.dtype == np.float32
    if not whole or int(labels.max(initial=0)) != len(scores):
        raise ValueError(f"expected {len(scores)} labels of a plane, got {labels.dtype} of {labels.shape}")


_CHECKS: dict[type[Any], Callable[[Any], None]] = {
    SoftMask: _check_soft_mask,
    Request: _check_request,
    PropagationRequest: _check_propagation,
    FoundOnPlane: _check_found,
}


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise ValueError(f"{value!r:.40} as a number of pixels")
    return value


def unreadable() -> Any:
    """Raise RuntimeError: a source that has travelled left its pixels at home."""
    raise RuntimeError("these pixels are in another process; ask for them there")


def _exactly(stream: Any, count: int) -> bytearray:
    part = bytearray(count)
    view = memoryview(part)
    while view.nbytes:
        got = stream.readinto(view)
        if not got:
            raise EOFError
        view = view[got:]
    return part
