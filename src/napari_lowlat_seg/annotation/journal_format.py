"""How changes of a session are written as bytes and read again: frames, JSON, compressed masks; no pickle.

A file is `MAGIC` and frames. A frame is one action: a head of fixed size, a JSON object, and the bytes that
it speaks of. The digest in the head covers the frame and all frames before it, so a frame that is cut short,
damaged or out of place ends what can be read. Every value (mask, edit, state, record) is written once, in the
frame that first needs it, and known by its number after that, so that values shared by steps are shared again
when they are read. Everything that is read is checked: types, ranges, sizes before anything is unpacked.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any
from weakref import WeakKeyDictionary

import numpy as np

from napari_lowlat_seg.annotation.history import Key, ObjectRecord, Propagated, Step
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.core.boxes import EMPTY_BOX, BoundingBox
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore, Policy, inflated
from napari_lowlat_seg.core.masks import LEVELS, PostProcessing, SoftMask
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Prompt, Scribble
from napari_lowlat_seg.core.volume import Plane

MAGIC = b"lowlat-session\n\0"
VERSION = 1
FORMAT = "napari-lowlat-seg session"

LARGEST_TEXT = 2**28
"""Bytes of the JSON of one frame; a snapshot of a million masks takes some 2**27."""

LARGEST_BYTES = 2**36
"""Bytes that one frame may hold beside its JSON."""

_HEAD = struct.Struct("<IQ16s")  # length of the JSON, of the bytes after it, digest


class JournalError(ValueError):
    """A file that is no session or journal, or one that does not fit; the message is one sentence."""


# Frames


class FrameWriter:
    """Turns messages into frames, each with a digest of all before it."""

    def __init__(self) -> None:
        self._digest = b""

    def frame(self, message: Mapping[str, Any], blobs: Iterable[bytes] = ()) -> bytes:
        """The bytes of a frame."""
        parts = list(blobs)
        text = json.dumps({**message, "sizes": [len(part) for part in parts]}, separators=(",", ":")).encode()
        body = b"".join(parts)
        self._digest = _digest(self._digest, text, body)
        return _HEAD.pack(len(text), len(body), self._digest) + text + body


class FrameReader:
    """Reads frames from a file up to the first that is not whole.

    Attributes
    ----------
    end
        Bytes up to the end of the last whole frame.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        if file.read(len(MAGIC)) != MAGIC:
            raise JournalError("this is no session of napari-lowlat-seg; choose a file that it has saved")
        self._file, self._size = file, size
        self._digest = b""
        self.end = len(MAGIC)

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
        if len(text) + len(body) < text_size + body_size or _digest(self._digest, text, body) != digest:
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


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no finite number")


# Values out


class Encoder:
    """Turns values of a session into JSON and bytes; a value that was written before becomes its number.

    Parameters
    ----------
    store_number
        The number of labels.
    pause
        Called between values, which may be many; may be replaced.
    """

    def __init__(
        self, store_number: Callable[[LabelStore], int], pause: Callable[[], object] = lambda: None
    ) -> None:
        self._numbers: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._count = 0
        self._new: list[dict[str, Any]] = []
        self._blobs: list[bytes] = []
        self._store_number, self.pause = store_number, pause

    def take(self) -> tuple[list[dict[str, Any]], list[bytes]]:
        """The values that are new since the last call, and their bytes."""
        new, blobs, self._new, self._blobs = self._new, self._blobs, [], []
        return new, blobs

    def _number(self, value: object, describe: Callable[[], tuple[dict[str, Any], tuple[bytes, ...]]]) -> int:
        known = self._numbers.get(value)
        if known is None:
            described, blobs = describe()  # which may number other values
            self.pause()
            known = self._numbers[value] = self._count
            self._count += 1
            self._new.append(described)
            self._blobs += blobs
        return known

    def mask(self, value: SoftMask | None) -> int | None:
        if value is None:
            return None
        about = {"is": "mask", "shape": value.shape, "box": value.box, "quality": _number(value.quality)}
        return self._number(value, lambda: ({**about, "drawn": bool(value.drawn)}, (value.packed,)))

    def edit(self, value: LabelEdit) -> int:
        def described() -> tuple[dict[str, Any], tuple[bytes, ...]]:
            values, blobs = value.packed()
            return {"is": "edit", "plane": value.plane.index, "box": _ints(value.box), **values}, blobs

        return self._number(value, described)

    def prompt(self, value: Prompt) -> Any:
        if not isinstance(value, Mask):
            return [type(value).__name__.lower(), value.points, bool(value.positive)]

        def described() -> tuple[dict[str, Any], tuple[bytes, ...]]:
            pixels = value.pixels
            about = {"is": "pixels", "shape": pixels.shape, "bool": pixels.dtype.kind == "b"}
            return about, (zlib.compress(pixels.tobytes(), 1),)

        return ["mask", self._number(value, described), bool(value.positive)]

    def state(self, value: PlaneState) -> int:
        def described() -> tuple[dict[str, Any], tuple[bytes, ...]]:
            masks = ("soft_mask", "previous", "drawn", "brushed")
            return {
                "is": "state",
                "prompts": [self.prompt(prompt) for prompt in value.prompts],
                **{name: self.mask(getattr(value, name)) for name in masks},
                "older": value.prompts_before_drawn,
                "pending": value.pending,
                "ticket": value.ticket,
                "confidence": _number(value.confidence),
            }, ()

        return self._number(value, described)

    def record(self, value: ObjectRecord | None, before: ObjectRecord | None = None) -> int | None:
        if value is None:
            return None

        def described() -> tuple[dict[str, Any], tuple[bytes, ...]]:
            written, base = value.written, None
            if before is not None and before.written and before.written.keys() <= written.keys():
                # An object that grows plane by plane would be written anew with each.
                base = self.record(before)
                written = {p: edit for p, edit in written.items() if before.written.get(p) is not edit}
            last = value.propagated
            return {
                "is": "record",
                "label": value.label,
                "store": self.store(value.store),
                "base": base,
                "written": [[plane.index, self.edit(edit)] for plane, edit in written.items()],
                "propagated": None
                if last is None
                else {
                    "anchors": [[plane.index, self.mask(mask)] for plane, mask in last.anchors.items()],
                    "planes": [plane.index for plane in last.planes],
                    "reached": [plane.index for plane in last.reached],
                },
            }, ()

        return self._number(value, described)

    def store(self, value: LabelStore | None) -> int | None:
        return None if value is None else self._store_number(value)

    def step(self, value: Step) -> dict[str, Any]:
        return {
            "title": value.title,
            "plane": None if value.plane is None else value.plane.index,
            "current": value.current,
            "states": [
                [number, plane.index, self.state(before), self.state(after)]
                for (number, plane), before, after in value.states
            ],
            "records": [
                [number, self.record(before), self.record(after, before)]
                for number, before, after in value.records
            ],
            "edits": [self.edit(edit) for edit in value.edits],
            "store": self.store(value.store),
        }


def encoded_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a session by name, as JSON has them."""
    return {name: value if isinstance(value, bool) else dict(vars(value)) for name, value in settings.items()}


def _number(value: float | None) -> float | str | None:
    """A float of numpy or Python as JSON can have it; "nan" and "inf" are texts."""
    if value is None:
        return None
    return float(value) if math.isfinite(value) else str(float(value))


def _ints(values: Iterable[Any]) -> list[int]:
    return [int(value) for value in values]


# Values in


def as_dict(value: Any) -> dict[str, Any]:
    """A JSON object; raises ValueError otherwise, as the next five do."""
    return _checked(value, isinstance(value, dict), "an object")  # type: ignore[no-any-return]


def as_list(value: Any) -> list[Any]:
    """A JSON array."""
    return _checked(value, isinstance(value, list), "a list")  # type: ignore[no-any-return]


def as_int(value: Any, low: int = 0, high: int = 2**63 - 1) -> int:
    """A whole number in a range, both ends included."""
    fits = type(value) is int and low <= value <= high
    return _checked(value, fits, f"a whole number from {low} to {high}")  # type: ignore[no-any-return]


def as_number(value: Any) -> float:
    """A number, finite or not."""
    fits = type(value) in (int, float) or value in ("nan", "inf", "-inf")
    return float(_checked(value, fits, "a number"))


def as_bool(value: Any) -> bool:
    """True or False."""
    return _checked(value, isinstance(value, bool), "true or false")  # type: ignore[no-any-return]


def as_text(value: Any) -> str:
    """A text."""
    return _checked(value, isinstance(value, str), "a text")  # type: ignore[no-any-return]


def _checked(value: Any, fits: bool, expected: str) -> Any:
    if not fits:
        raise ValueError(f"expected {expected}, got {value!r:.60}")
    return value


class Decoder:
    """Turns the values of a file into values of a session, checked against the shape of the volume.

    Parameters
    ----------
    shape
        Of the volume.
    stores
        The labels, by number.
    """

    def __init__(self, shape: tuple[int, ...], stores: list[LabelStore]) -> None:
        self._shape, self._stores = shape, stores
        self._values: list[Any] = []

    def add(self, new: Any, blobs: list[bytes]) -> None:
        """Take in the new values of a frame."""
        left = list(reversed(blobs))
        for entry in as_list(new):
            kind = as_dict(entry).get("is")
            if kind == "mask":
                value: Any = self._mask(entry, left.pop())
            elif kind == "edit":
                value = self._edit(entry, [left.pop() for _ in range(3)])
            elif kind == "pixels":
                value = self._pixels(entry, left.pop())
            elif kind == "state":
                value = self._state(entry)
            elif kind == "record":
                value = self._record(entry)
            else:
                raise ValueError(f"expected a mask, an edit, pixels, a state or a record, got {kind!r:.60}")
            self._values.append(value)

    def _get(self, number: Any, kind: type) -> Any:
        value = self._values[as_int(number, 0, len(self._values) - 1)]
        return _checked(value, isinstance(value, kind), f"a {kind.__name__}")

    def plane(self, value: Any) -> Plane:
        """A plane of the volume."""
        index = as_list(value)
        if len(index) != len(self._shape) or index.count(None) != 2:
            raise ValueError(f"expected a plane of a volume of {self._shape}, got {index!r:.60}")
        return Plane(tuple(None if i is None else as_int(i, 0, n - 1) for i, n in zip(index, self._shape)))

    def _sides(self, plane: Plane) -> tuple[int, int]:
        row, col = plane.axes
        return self._shape[row], self._shape[col]

    @staticmethod
    def _box(value: Any, sides: tuple[int, int]) -> BoundingBox:
        rows, cols = sides
        top, left, bottom, right = as_list(value)
        box = BoundingBox(as_int(top), as_int(left), as_int(bottom, 0, rows), as_int(right, 0, cols))
        if box.is_empty and box != EMPTY_BOX:
            raise ValueError(f"expected a box, got {tuple(box)}")
        return box

    def _mask(self, entry: dict[str, Any], packed: bytes) -> SoftMask:
        rows, cols = (as_int(n, 1, max(self._shape)) for n in as_list(entry["shape"]))
        box = self._box(entry["box"], (rows, cols))
        if any(part and max(part) > LEVELS for part in inflated(packed, box.shape[0] * box.shape[1])):
            raise ValueError(f"a mask has probabilities above {LEVELS} steps")
        return SoftMask(
            (rows, cols), box, packed, self._optional_number(entry["quality"]), as_bool(entry["drawn"])
        )

    def _edit(self, entry: dict[str, Any], blobs: list[bytes]) -> LabelEdit:
        plane = self.plane(entry["plane"])
        return LabelEdit.unpacked(plane, self._box(entry["box"], self._sides(plane)), entry, blobs)

    def _pixels(self, entry: dict[str, Any], packed: bytes) -> np.ndarray:
        rows, cols = (as_int(n, 1, max(self._shape)) for n in as_list(entry["shape"]))
        dtype = np.dtype(np.bool_ if as_bool(entry["bool"]) else np.float32)
        content = b"".join(inflated(packed, rows * cols * dtype.itemsize))
        return np.frombuffer(content, dtype).reshape(rows, cols)

    def _prompt(self, entry: Any) -> Prompt:
        kind, content, positive = as_list(entry)
        if kind == "mask":
            return Mask(self._get(content, np.ndarray), as_bool(positive))
        points = [(as_number(row), as_number(col)) for row, col in as_list(content)]
        if kind == "click":
            (at,) = points
            return Click(at, as_bool(positive))
        if kind == "box":
            start, end = points
            return Box(start, end, as_bool(positive))
        if kind == "scribble":
            return Scribble(tuple(points), as_bool(positive))
        if kind == "polygon":
            return Polygon(tuple(points), as_bool(positive))
        raise ValueError(f"expected the kind of a prompt, got {kind!r:.60}")

    @staticmethod
    def _optional_number(value: Any) -> float | None:
        return None if value is None else as_number(value)

    def _optional_mask(self, value: Any) -> SoftMask | None:
        return None if value is None else self._get(value, SoftMask)

    def _state(self, entry: dict[str, Any]) -> PlaneState:
        prompts = tuple(self._prompt(prompt) for prompt in as_list(entry["prompts"]))
        return PlaneState(
            prompts,
            self._optional_mask(entry["soft_mask"]),
            self._optional_mask(entry["previous"]),
            self._optional_mask(entry["drawn"]),
            as_int(entry["older"], 0, len(prompts)),
            as_bool(entry["pending"]),
            as_int(entry["ticket"]),
            self._optional_number(entry["confidence"]),
            self._optional_mask(entry["brushed"]),
        )

    def state(self, number: Any, plane: Plane) -> PlaneState:
        """The state with a number, whose masks lie on this plane."""
        state: PlaneState = self._get(number, PlaneState)
        for mask in (state.soft_mask, state.previous, state.drawn, state.brushed):
            if mask is not None and mask.shape != self._sides(plane):
                raise ValueError(f"a mask of {mask.shape} does not fit a plane of {self._sides(plane)}")
        for prompt in state.prompts:
            if isinstance(prompt, Mask) and prompt.pixels.shape != self._sides(plane):
                raise ValueError(
                    f"a mask of {prompt.pixels.shape} does not fit a plane of {self._sides(plane)}"
                )
        return state

    def _record(self, entry: dict[str, Any]) -> ObjectRecord:
        base = self.record(entry["base"])
        written = {} if base is None else dict(base.written)
        for index, number in as_list(entry["written"]):
            plane = self.plane(index)
            written[plane] = self._get(number, LabelEdit)
            if written[plane].plane != plane:
                raise ValueError("an edit of labels lies on another plane")
        last = entry["propagated"]
        return ObjectRecord(
            as_int(entry["label"], 1),
            self.store(entry["store"]),
            written,
            None if last is None else self._propagated(as_dict(last)),
        )

    def _propagated(self, entry: dict[str, Any]) -> Propagated:
        anchors = {}
        for index, number in as_list(entry["anchors"]):
            plane = self.plane(index)
            anchors[plane] = self._get(number, SoftMask)
            if anchors[plane].shape != self._sides(plane):
                raise ValueError(
                    f"a mask of {anchors[plane].shape} does not fit a plane of {self._sides(plane)}"
                )
        planes = tuple(self.plane(index) for index in as_list(entry["planes"]))
        return Propagated(
            anchors, planes, frozenset(self.plane(index) for index in as_list(entry["reached"]))
        )

    def record(self, number: Any) -> ObjectRecord | None:
        """The record with a number; None for None."""
        return None if number is None else self._get(number, ObjectRecord)

    def real_record(self, number: Any) -> ObjectRecord:
        """The record with a number."""
        return self._get(number, ObjectRecord)  # type: ignore[no-any-return]

    def store(self, number: Any) -> LabelStore | None:
        """The labels with a number; None for None."""
        if number is not None and as_int(number, 0, 1000) >= len(self._stores):
            raise JournalError(
                f"the session wrote to {number + 1} labels or more, {len(self._stores)} were given; give "
                "all, in the order of their first use"
            )
        return None if number is None else self._stores[number]

    def edits(self, numbers: Any) -> tuple[LabelEdit, ...]:
        """The edits with these numbers."""
        return tuple(self._get(number, LabelEdit) for number in as_list(numbers))

    def key(self, number: Any, index: Any) -> Key:
        """An object and a plane."""
        return as_int(number, 1), self.plane(index)

    def step(self, value: Any) -> Step:
        """A step of the undo stack."""
        entry = as_dict(value)
        states = []
        for number, index, before, after in as_list(entry["states"]):
            key = self.key(number, index)
            states.append((key, self.state(before, key[1]), self.state(after, key[1])))
        records = tuple(
            (as_int(number, 1), self.record(before), self.real_record(after))
            for number, before, after in as_list(entry["records"])
        )
        one, two = (as_int(number, 1) for number in as_list(entry["current"]))
        plane = None if entry["plane"] is None else self.plane(entry["plane"])
        edits, store = self.edits(entry["edits"]), self.store(entry["store"])
        return Step(as_text(entry["title"]), plane, (one, two), tuple(states), records, edits, store)


def decoded_settings(value: Any) -> dict[str, Any]:
    """Settings of a session by name; raises ValueError for others and for wrong values."""
    settings: dict[str, Any] = {}
    for name, content in as_dict(value).items():
        if name == "semantic":
            settings[name] = as_bool(content)
        elif name == "policy":
            settings[name] = Policy(as_text(content["kind"]), as_int(content["within"]))  # type: ignore[arg-type]
        elif name == "finish":
            settings[name] = PostProcessing(
                as_number(content["threshold"]),
                as_number(content["smooth"]),
                as_bool(content["fill_holes"]),
                as_bool(content["largest"]),
                as_bool(content["prompted"]),
            )
        else:
            raise ValueError(f"a session has no setting {name!r:.60}")
    return settings
