"""Values of a session as JSON and bytes; no pickle.

Every value (mask, edit, state, record, labels) is written once, in the frame that first needs it, and known
by its number after that, so that values shared by steps are shared again when they are read.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from napari_lowlat_seg.annotation.history import Event, ObjectRecord, PendingAccept, Step
from napari_lowlat_seg.annotation.journal.actions import Action, plane_ranges
from napari_lowlat_seg.annotation.objects.facts import ObjectFacts
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.core.labels import ArrayLabels, LabelEdit, LabelStore, Policy, inflated
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Mask, Prompt
from napari_lowlat_seg.core.requests import PropagationRequest
from napari_lowlat_seg.core.volume import ArrayLike, Plane


@dataclass(frozen=True)
class AboutLabels:
    """Labels as a session's file describes them.

    Attributes
    ----------
    dtype
        Their type, of integers.
    name
        What a layer of them is called.
    place
        The file or folder that they lie in, which an accept changes; None in memory.
    content
        What was in them when the session first used them, packed by `packed_content`; None if that is not
        known, of labels on disk.
    """

    dtype: np.dtype[Any]
    name: str = ""
    place: str | None = None
    content: bytes | None = None

    @classmethod
    def of(cls, store: LabelStore) -> AboutLabels:
        """Those of labels in use; a store with an attribute `about` says it itself.

        Labels in an array in memory are read whole, all others are not read.
        """
        known = getattr(store, "about", None)
        if isinstance(known, cls):
            return known
        data: Any = getattr(store, "data", None)
        dtype = np.dtype(getattr(data, "dtype", np.int64))
        if type(data) is np.ndarray:  # not a memory map, which is a file
            return cls(dtype, content=packed_content(data))
        place = getattr(data, "filename", None)
        return cls(dtype, place=str(place or "labels outside of memory"))

    def in_memory(self, shape: tuple[int, ...]) -> ArrayLabels:
        """New labels with the content that these had at first.

        Raises
        ------
        ValueError
            For content of another size, and where it is not known or has no room in memory.
        """
        if self.content is None:
            raise ValueError(f"the session wrote to labels in {self.place}; give them")
        try:
            labels = np.zeros(shape, self.dtype)
        except MemoryError:
            raise ValueError(f"labels of {shape} do not fit into memory; give those on disk") from None
        if self.content:
            flat, at = labels.reshape(-1).view(np.uint8), 0
            for part in inflated(self.content, labels.nbytes):
                flat[at : at + len(part)] = np.frombuffer(part, np.uint8)
                at += len(part)
        return ArrayLabels(labels)


def packed_content(labels: ArrayLike) -> bytes:
    """All labels of an array in C order, as zlib packs them; nothing if all are 0."""
    empty, packer, parts = True, zlib.compressobj(1), []
    for part in _parts(labels):
        empty = empty and not part.any()
        parts.append(packer.compress(part.tobytes()))
    return b"" if empty else b"".join([*parts, packer.flush()])


def _parts(labels: ArrayLike) -> Iterator[np.ndarray]:
    """The array in pieces of one plane or so, so that a large one is not held twice."""
    step = max(1, 2**22 // max(1, math.prod(labels.shape[1:])))
    for first in range(0, labels.shape[0], step):
        yield np.asarray(labels[first : first + step])


class Encoder:
    """Turns values of a session into JSON and bytes; a value that was written before becomes its number.

    Parameters
    ----------
    about
        Describes labels.
    pause
        Called between values, which may be many; may be replaced.
    """

    def __init__(
        self, about: Callable[[LabelStore], AboutLabels], pause: Callable[[], object] = lambda: None
    ) -> None:
        self._numbers: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._count = 0
        self._new: list[dict[str, Any]] = []
        self._blobs: list[bytes] = []
        self._about, self.pause = about, pause

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
        """The number of a mask; the mask itself is a value of this frame if none before has it."""
        if value is None:
            return None
        about = {"is": "mask", "shape": value.shape, "box": value.box, "quality": _number(value.quality)}
        return self._number(value, lambda: ({**about, "drawn": bool(value.drawn)}, (value.packed,)))

    def edit(self, value: LabelEdit) -> int:
        """The number of an edit of labels."""

        def described() -> tuple[dict[str, Any], tuple[bytes, ...]]:
            values, blobs = value.packed()
            return {"is": "edit", "plane": value.plane.index, "box": _ints(value.box), **values}, blobs

        return self._number(value, described)

    def prompt(self, value: Prompt) -> Any:
        """A prompt as JSON; the pixels of a mask are a value of their own."""
        if not isinstance(value, Mask):
            return [type(value).__name__.lower(), value.points, bool(value.positive)]

        def described() -> tuple[dict[str, Any], tuple[bytes, ...]]:
            pixels = value.pixels
            about = {"is": "pixels", "shape": pixels.shape, "bool": pixels.dtype.kind == "b"}
            return about, (zlib.compress(pixels.tobytes(), 1),)

        return ["mask", self._number(value, described), bool(value.positive)]

    def state(self, value: PlaneState) -> int:
        """The number of a state."""

        def described() -> tuple[dict[str, Any], tuple[bytes, ...]]:
            masks = ("soft_mask", "previous", "drawn", "brushed", "first")
            return {
                "is": "state",
                "prompts": [self.prompt(prompt) for prompt in value.prompts],
                **{name: self.mask(getattr(value, name)) for name in masks},
                "older": value.prompts_before_drawn,
                "pending": value.pending,
                "ticket": value.ticket,
                "confidence": _number(value.confidence),
                "refined": value.refined,
                "level": value.level,
            }, ()

        return self._number(value, described)

    def record(self, value: ObjectRecord | None, before: ObjectRecord | None = None) -> int | None:
        """The number of an object's record, which says only what differs from the one `before`."""
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
                "score": value.score,
                "store": self.store(value.store),
                "base": base,
                "written": [[plane.index, self.edit(edit)] for plane, edit in written.items()],
                "propagated": None
                if last is None
                else {
                    "anchors": [[plane.index, self.mask(mask)] for plane, mask in last.anchors.items()],
                    "planes": [plane.index for plane in last.planes],
                    "reached": [plane.index for plane in last.reached],
                    "refused": [
                        [one.plane.index, _number(one.presence), one.pixels, one.reason]
                        for one in last.refused
                    ],
                },
            }, ()

        return self._number(value, described)

    def store(self, value: LabelStore | None) -> int | None:
        """The number of labels; None for none."""
        if value is None:
            return None

        def described() -> tuple[dict[str, Any], tuple[bytes, ...]]:
            about = self._about(value)
            known = about.content is not None
            facts = {"dtype": about.dtype.str, "name": about.name, "place": about.place, "known": known}
            return {"is": "labels", **facts}, (about.content or b"",)

        return self._number(value, described)

    def step(self, value: Step) -> dict[str, Any]:
        """A step of the undo stack as JSON."""
        return {
            "kind": value.kind,
            "title": value.title,
            "plane": _index(value.plane),
            "current": value.current,
            "at": None if value.at is None else _ints(value.at),
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
            "run": None if value.request is None else self._run(value.request),
            "accept": None if value.accept is None else encoded_accept(value.accept),
            "facts": [[label, _facts(before), _facts(after)] for label, before, after in value.facts],
        }

    def _run(self, request: PropagationRequest) -> dict[str, Any]:
        seeds = [[n, plane.index, self.prompt(prompt)] for n, (plane, prompt) in request.seeds.items()]
        return {"planes": _ranges(request.planes), "seeds": seeds, "shapes": request.shapes}

    def action(self, value: Action) -> dict[str, Any]:
        """What differs from an empty action."""
        entry: dict[str, Any] = {
            "number": value.number,
            "plane": _index(value.plane),
            "prompts": [self.prompt(prompt) for prompt in value.prompts],
            "drawn": self.mask(value.drawn),
            "drawings": [[plane.index, self.mask(mask)] for plane, mask in value.drawings],
            "at": value.at and _ints(value.at),
            "label": int(value.label),
            "count": value.count,
            "level": value.level,
            "edits": [self.edit(edit) for edit in value.edits],
            "settings": encoded_settings(value.settings),
            "store": self.store(value.store),
            "planes": _ranges(value.planes),
            "seeds": [[plane.index, self.prompt(prompt)] for plane, prompt in value.seeds],
            "tile": value.tile and _ints(value.tile),
            "first": not value.final,
            "step": value.step and self.step(value.step),
        }
        # Number 0 of a mask or of labels is a value.
        filled = {name: part for name, part in entry.items() if part or name in ("drawn", "store")}
        return {"kind": value.kind, **{name: part for name, part in filled.items() if part is not None}}

    def event(self, event: Event) -> dict[str, Any]:
        """An event as JSON."""
        message: dict[str, Any] = {"kind": event.kind, "highest": int(event.highest)}
        if event.step is not None:
            message["step"] = self.step(event.step)
        if event.prediction is not None:
            (number, plane), old, new = event.prediction
            message["prediction"] = [number, plane.index, self.state(old), self.state(new)]
            message |= {"tile": event.tile and _ints(event.tile), "final": event.final}
        if event.steps:
            message["steps"] = [self.step(step) for step in event.steps]
        if event.key is not None:
            message["key"] = [event.key[0], event.key[1].index]
        if event.kind == "labels":
            message |= {"store": self.store(event.store), "record": self.record(event.record)}
        if event.kind == "writing":
            edits = [self.edit(edit) for edit in event.edits]
            message |= {"store": self.store(event.store), "edits": edits}
        if event.settings:
            message["settings"] = encoded_settings(event.settings)
        return message


def encoded_accept(accept: PendingAccept) -> dict[str, Any]:
    """An accept that waits for predictions, as JSON has it."""
    settings = encoded_settings({name: getattr(accept, name) for name in ("policy", "finish", "limits")})
    return {"number": accept.number, **settings}


def encoded_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a session by name, as JSON has them."""
    return {name: _setting(value) for name, value in settings.items()}


def _setting(value: Any) -> Any:
    if isinstance(value, tuple):
        return [dict(vars(one)) for one in value]
    if isinstance(value, Policy):
        return {"kind": value.kind, "within": value.within, "locked": sorted(value.locked)}
    return value if isinstance(value, bool | Mapping) else dict(vars(value))


def encoded_facts(facts: Mapping[int, ObjectFacts]) -> list[list[Any]]:
    """What was said of objects, as JSON has it."""
    return [[int(label), _facts(one)] for label, one in facts.items()]


def _facts(facts: ObjectFacts | None) -> dict[str, Any] | None:
    return None if facts is None else {name: value for name, value in vars(facts).items() if value}


def _index(plane: Plane | None) -> tuple[int | None, ...] | None:
    return None if plane is None else plane.index


def _ranges(planes: Iterable[Plane]) -> list[list[Any]]:
    return [[first.index, count] for first, count in plane_ranges(planes)]


def _number(value: float | None) -> float | str | None:
    """A float of numpy or Python as JSON can have it; "nan" and "inf" are texts."""
    if value is None:
        return None
    return float(value) if math.isfinite(value) else str(float(value))


def _ints(values: Iterable[Any]) -> list[int]:
    return [int(value) for value in values]
