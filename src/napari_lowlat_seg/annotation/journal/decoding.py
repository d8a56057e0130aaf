"""Values of a session read from JSON and bytes: all is checked before anything is unpacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from napari_lowlat_seg.annotation.history import (
    Event,
    Key,
    ObjectRecord,
    PendingAccept,
    Propagated,
    Step,
    StepKind,
)
from napari_lowlat_seg.annotation.journal.actions import KINDS, Action
from napari_lowlat_seg.annotation.journal.encoding import AboutLabels
from napari_lowlat_seg.annotation.journal.frames import (
    JournalError,
    as_bool,
    as_dict,
    as_int,
    as_list,
    as_number,
    as_text,
    checked,
)
from napari_lowlat_seg.annotation.limits import Limits
from napari_lowlat_seg.annotation.objects.facts import ObjectClass, ObjectFacts
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.core.boxes import EMPTY_BOX, BoundingBox
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore, Policy, inflated
from napari_lowlat_seg.core.masks import PROBABILITY_STEPS, PostProcessing, SoftMask
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Prompt, Scribble
from napari_lowlat_seg.core.requests import PropagationRequest
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.propagation.sweep import RefusedPlane

STEPS = (*get_args(StepKind), "run", "choose")

Finder = Callable[[AboutLabels], LabelStore | None]
"""Finds the labels of a session; None for new ones in memory, with the content that they had at first."""


class Decoder:
    """Turns the values of a file into values of a session, checked against the shape of the volume.

    Parameters
    ----------
    shape
        Of the volume.
    labels
        The labels that the session wrote to, in the order of their first use, or what finds them. For those
        that are not given new ones are made.

    Attributes
    ----------
    stores
        The labels that were met so far, in the order of their first use.
    """

    def __init__(self, shape: tuple[int, ...], labels: Sequence[LabelStore] | Finder = ()) -> None:
        self._shape = shape
        given = [] if callable(labels) else list(labels)
        self._find: Finder = labels if callable(labels) else lambda _: given.pop(0) if given else None
        self.stores: dict[LabelStore, AboutLabels] = {}
        self._values: list[Any] = []

    def add(self, new: Any, blobs: list[bytes]) -> None:
        """Take in the new values of a frame; raises ValueError for one of no known kind."""
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
            elif kind == "labels":
                value = self._labels(entry, left.pop())
            else:
                raise ValueError(f"expected the kind of a value, got {kind!r:.60}")
            self._values.append(value)

    def _get(self, number: Any, kind: type) -> Any:
        value = self._values[as_int(number, 0, len(self._values) - 1)]
        return checked(value, isinstance(value, kind), f"a {kind.__name__}")

    def plane(self, value: Any) -> Plane:
        """A plane of the volume; raises ValueError for any other."""
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
        parts = inflated(packed, box.shape[0] * box.shape[1])
        if any(part and max(part) > PROBABILITY_STEPS for part in parts):
            raise ValueError(f"a mask has probabilities above {PROBABILITY_STEPS} steps")
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
        # Older files have another "first": beside it a model drew the mask that was chosen, which is kept.
        leveled = "level" in entry
        first = self._optional_mask(entry["first"]) if leveled else None
        level = as_int(entry["level"], -2, 2) if leveled else 0
        if level and first is None:
            raise ValueError(f"a mask has level {level}, and the one that was predicted is missing")
        state = PlaneState(
            prompts,
            self._optional_mask(entry["soft_mask"]),
            self._optional_mask(entry["previous"]),
            self._optional_mask(entry["drawn"]),
            as_int(entry["older"], 0, len(prompts)),
            as_bool(entry["pending"]),
            as_int(entry["ticket"]),
            self._optional_number(entry["confidence"]),
            self._optional_mask(entry["brushed"]),
            as_int(entry.get("refined", len(prompts)), 0, len(prompts)),
            first,
            level,
        )
        if first is not None and state.as_predicted is None:
            raise ValueError("a mask has levels that does not come from one first prompt")
        return state

    def state(self, number: Any, plane: Plane) -> PlaneState:
        """The state with a number; raises ValueError if its masks do not have the sides of this plane."""
        state: PlaneState = self._get(number, PlaneState)
        for mask in (state.soft_mask, state.previous, state.drawn, state.brushed, state.first):
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
            self._optional_number(entry.get("score")),
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
        reached = frozenset(self.plane(index) for index in as_list(entry["reached"]))
        refused = tuple(self._refused(as_list(one)) for one in as_list(entry.get("refused", [])))
        return Propagated(anchors, planes, reached, refused)

    def _refused(self, entry: list[Any]) -> RefusedPlane:
        index, presence, pixels, reason = entry
        return RefusedPlane(self.plane(index), as_number(presence), as_int(pixels), as_text(reason))

    def record(self, number: Any) -> ObjectRecord | None:
        """The record with a number; None for None."""
        return None if number is None else self._get(number, ObjectRecord)

    def real_record(self, number: Any) -> ObjectRecord:
        """The record with a number."""
        return self._get(number, ObjectRecord)  # type: ignore[no-any-return]

    def store(self, number: Any) -> LabelStore | None:
        """The labels with a number; None for None."""
        return None if number is None else self.real_store(number)

    def real_store(self, number: Any) -> LabelStore:
        """The labels with a number."""
        value = self._values[as_int(number, 0, len(self._values) - 1)]
        fits = any(value is store for store in self.stores)
        return checked(value, fits, "labels")  # type: ignore[no-any-return]

    def _labels(self, entry: dict[str, Any], content: bytes) -> LabelStore:
        dtype = np.dtype(as_text(entry["dtype"]))
        if dtype.kind not in "iu":
            raise ValueError(f"labels must be integers, got {dtype}")
        place = None if entry["place"] is None else as_text(entry["place"])
        known = as_bool(entry["known"])
        about = AboutLabels(dtype, as_text(entry["name"]), place, content if known else None)
        store = self._find(about)
        if store is None:
            try:
                store = about.in_memory(self._shape)
            except ValueError as error:
                raise JournalError(f"of labels number {len(self.stores) + 1}: {error}") from error
        self.stores[store] = about
        return store

    def edits(self, numbers: Any) -> tuple[LabelEdit, ...]:
        """The edits with these numbers."""
        return tuple(self._get(number, LabelEdit) for number in as_list(numbers))

    def key(self, number: Any, index: Any) -> Key:
        """An object and a plane."""
        return as_int(number, 1), self.plane(index)

    def step(self, value: Any) -> Step:
        """A step of the undo stack; raises ValueError for one of no known kind."""
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
        kind = as_text(entry["kind"])
        if kind not in STEPS:
            raise ValueError(f"expected the kind of a step, got {kind!r:.60}")
        return Step(
            as_text(entry["title"]),
            self._optional_plane(entry["plane"]),
            (one, two),
            tuple(states),
            records,
            self.edits(entry["edits"]),
            self.store(entry["store"]),
            kind,  # type: ignore[arg-type]
            self._pixel(entry["at"]),
            None if entry["run"] is None else self._run(as_dict(entry["run"])),
            None if entry.get("accept") is None else decoded_accept(as_dict(entry["accept"])),
            tuple(
                (as_int(label, 1), _facts(before), _facts(after))
                for label, before, after in as_list(entry.get("facts", []))
            ),
        )

    def _optional_plane(self, value: Any) -> Plane | None:
        return None if value is None else self.plane(value)

    @staticmethod
    def _pixel(value: Any) -> tuple[int, int] | None:
        if value is None:
            return None
        row, col = (as_int(at) for at in as_list(value))
        return row, col

    def _planes(self, value: Any) -> tuple[Plane, ...]:
        planes: list[Plane] = []
        for index, count in as_list(value):
            first = self.plane(index)
            left = sum(self._shape) - len(planes)
            planes += [first] + [first.moved(step) for step in range(1, as_int(count, 1, left))]
            self.plane(list(planes[-1].index))  # inside, and so are those between
        return tuple(planes)

    def _run(self, entry: dict[str, Any]) -> PropagationRequest:
        seeds = {}
        for number, index, prompt in as_list(entry["seeds"]):
            seeds[as_int(number, 1)] = (self.plane(index), self._prompt(prompt))
        return PropagationRequest(self._planes(entry["planes"]), seeds=seeds, shapes=as_bool(entry["shapes"]))

    def _drawing(self, index: Any, number: Any) -> tuple[Plane, SoftMask]:
        plane, mask = self.plane(index), self._get(number, SoftMask)
        if mask.shape != self._sides(plane):
            raise ValueError(f"a mask of {mask.shape} does not fit a plane of {self._sides(plane)}")
        return plane, mask

    def _tile(self, value: Any, plane: Plane) -> BoundingBox | None:
        return None if value is None else self._box(value, self._sides(plane))

    def action(self, value: Any) -> Action:
        """An action of a session; raises ValueError for an unknown kind, and without the plane it needs."""
        entry = as_dict(value)
        kind, plane = as_text(entry["kind"]), self._optional_plane(entry.get("plane"))
        if kind not in KINDS:
            raise ValueError(f"expected the kind of an action, got {kind!r:.60}")
        if plane is None and kind in ("prompts", "paint", "level", "edit", "predict"):
            raise ValueError(f"an action of kind {kind} needs a plane")
        prompts = tuple(self._prompt(prompt) for prompt in as_list(entry.get("prompts", [])))
        seeds = [(self.plane(i), self._prompt(p)) for i, p in as_list(entry.get("seeds", []))]
        tile = entry.get("tile")
        return Action(
            kind,  # type: ignore[arg-type]
            as_int(entry.get("number", 0)),
            plane,
            prompts,
            self._optional_mask(entry.get("drawn")),
            self._pixel(entry.get("at")),
            as_int(entry.get("label", 0)),
            as_int(entry.get("count", 0)),
            self.edits(entry.get("edits", [])),
            decoded_settings(entry.get("settings", {})),
            self.store(entry.get("store")),
            self._planes(entry.get("planes", [])),
            tuple(seeds),
            None if tile is None or plane is None else self._tile(tile, plane),
            not as_bool(entry.get("first", False)),
            self.step(entry["step"]) if kind == "objects" else None,
            tuple(self._drawing(*as_list(one)) for one in as_list(entry.get("drawings", []))),
            as_int(entry.get("level", 0), -2, 2),
        )

    def event(self, message: Mapping[str, Any]) -> Event:
        """An event; raises ValueError, KeyError or TypeError for a wrong one."""
        kind, highest = message["kind"], as_int(message["highest"])
        if kind in ("step", "progress", "closed"):
            return Event(kind, highest, self.step(message["step"]))
        if kind in ("undo", "redo"):
            return Event(kind, highest)
        if kind == "settings":
            return Event(kind, highest, settings=decoded_settings(message["settings"]))
        if kind == "prediction":
            number, index, old, new = as_list(message["prediction"])
            key = self.key(number, index)
            states = self.state(old, key[1]), self.state(new, key[1])
            tile = self._tile(message["tile"], key[1])
            final = as_bool(message.get("final", True))
            return Event(kind, highest, prediction=(key, *states), tile=tile, final=final)
        if kind == "refused":
            return Event(kind, highest, key=self.key(*as_list(message["key"])))
        if kind == "amended":
            return Event(kind, highest, steps=tuple(map(self.step, as_list(message["steps"]))))
        if kind == "labels":
            record = self.real_record(message["record"])
            return Event(kind, highest, store=self.store(message["store"]), record=record)
        if kind == "writing":
            edits = self.edits(message["edits"])
            return Event(kind, highest, store=self.real_store(message["store"]), edits=edits)
        raise ValueError(f"expected the kind of an event, got {kind!r:.60}")


def decoded_accept(entry: dict[str, Any]) -> PendingAccept:
    """An accept that waits for predictions."""
    names = ("policy", "finish", "limits")
    settings = decoded_settings({name: entry[name] for name in names if name in entry})
    limits = settings.get("limits", Limits())
    return PendingAccept(as_int(entry["number"], 1), settings["policy"], settings["finish"], limits)


def decoded_settings(value: Any) -> dict[str, Any]:
    """Settings of a session by name; raises ValueError for others and for wrong values."""
    settings: dict[str, Any] = {}
    for name, content in as_dict(value).items():
        if name == "semantic":
            settings[name] = as_bool(content)
        elif name == "model":
            settings[name] = _model(as_dict(content))
        elif name == "preprocessing":
            settings[name] = {key: _numbers(content[key]) for key in ("window", "spacing")}
        elif name == "policy":
            locked = frozenset(as_int(label, 1) for label in as_list(content.get("locked", [])))
            kind, within = as_text(content["kind"]), as_int(content["within"])
            settings[name] = Policy(kind, within, locked)  # type: ignore[arg-type]
        elif name == "classes":
            listed = [as_dict(one) for one in as_list(content)]
            settings[name] = tuple(
                ObjectClass(as_text(one["name"]), as_text(one["colour"])) for one in listed
            )
        elif name == "limits":
            settings[name] = _limits(as_dict(content))
        elif name == "finish":
            settings[name] = PostProcessing(
                as_number(content["threshold"]),
                as_number(content["smooth"]),
                as_bool(content["fill_holes"]),
                as_bool(content["largest"]),
                as_bool(content["prompted"]),
                as_number(content.get("grow", 0.0)),
                as_int(content.get("smallest", 0)),
            )
        else:
            raise ValueError(f"a session has no setting {name!r:.60}")
    return settings


def decoded_facts(value: Any) -> dict[int, ObjectFacts]:
    """What was said of objects, by label."""
    facts = {as_int(label, 1): _facts(one) for label, one in as_list(value)}
    return {label: one for label, one in facts.items() if one is not None}


def _facts(value: Any) -> ObjectFacts | None:
    if value is None:
        return None
    entry = as_dict(value)
    return ObjectFacts(
        as_text(entry.get("name", "")),
        as_text(entry.get("category", "")),
        as_bool(entry.get("review", False)),
        as_bool(entry.get("locked", False)),
        as_bool(entry.get("hidden", False)),
    )


def _limits(entry: dict[str, Any]) -> Limits:
    span, axes = entry["intensities"], tuple(as_int(axis) for axis in as_list(entry["axes"]))
    rings = [as_list(ring) for ring in as_list(entry["area"])]
    return Limits(
        as_bool(entry["neighbours"]),
        None if span is None else (as_number(span[0]), as_number(span[1])),
        tuple(tuple((as_number(row), as_number(col)) for row, col in ring) for ring in rings),
        (axes[0], axes[1]),
    )


def _numbers(value: Any) -> tuple[float, ...] | None:
    return None if value is None else tuple(as_number(part) for part in as_list(value))


def _model(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts of a model; those that load it again are texts, and a number of threads."""
    found = {key: _plain(part) for key, part in facts.items()}
    for name in ("model", "device", "closer_look"):
        as_text(found.get(name, ""))
    as_int(found.get("threads", 0), 0, 2**16)
    return found


def _plain(value: Any, depth: int = 3) -> Any:
    """A fact of a model: a text, a number, None, or a few of them."""
    if isinstance(value, list) and depth:
        return tuple(_plain(part, depth - 1) for part in value)
    if isinstance(value, dict) and depth:
        return {key: _plain(part, depth - 1) for key, part in value.items()}
    return checked(value, value is None or isinstance(value, str | int | float | bool), "a fact")
