"""A session as a Python script that does the same through the public API, for changes of one's own."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from napari_lowlat_seg.annotation.history import Step
from napari_lowlat_seg.annotation.journal.actions import CHOSEN, METHODS, Action, plane_ranges
from napari_lowlat_seg.annotation.journal.encoding import AboutLabels
from napari_lowlat_seg.annotation.journal.files import FoundSession
from napari_lowlat_seg.annotation.journal.frames import JournalError
from napari_lowlat_seg.annotation.objects.facts import PLAIN
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore
from napari_lowlat_seg.core.prompts import Mask, Prompt
from napari_lowlat_seg.core.volume import Plane

HEAD = '''"""Repeats an annotation through the network.

    python THIS_FILE [IMAGE] [LABELS]

IMAGE is the image that was annotated; LABELS, a .npy file, gets the labels.
Made by `lowlat-seg export-script`.
"""

import sys
import zlib
from base64 import b85decode
from dataclasses import replace
from itertools import islice
from math import inf

import numpy as np

from napari_lowlat_seg import (
    ArrayLabels,
    Box,
    Click,
    Mask,
    Plane,
    Polygon,
    PredictionService,
    PropagationRun,
    Scribble,
    Session,
    SoftMask,
    load_predictor,
)
from napari_lowlat_seg.annotation.limits import Limits
from napari_lowlat_seg.annotation.objects.actions import delete, describe, merge, split
from napari_lowlat_seg.annotation.objects.counts import count_labels
from napari_lowlat_seg.annotation.objects.facts import ObjectClass
from napari_lowlat_seg.annotation.objects.proposals import (
    Proposal,
    accept_proposal,
    correct_proposal,
    propose,
    reject_proposals,
)
from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.labels import LabelEdit, Policy
from napari_lowlat_seg.core.masks import PostProcessing
from napari_lowlat_seg.io.files import as_shown, read_volume

# The image that was annotated: {name!r}
image = sys.argv[1] if len(sys.argv) > 1 else {image!r}
volume = read_volume(image, channel={channel!r})
if volume.identity != {identity!r}:
    volume = as_shown(volume, image)
if volume.identity != {identity!r}:
    sys.exit(f"{{image}} has other pixels than the image that was annotated")
session = Session(volume, limit={limit})


def unpacked(text, dtype, *shape):
    """An array of the text that holds it."""
    return np.frombuffer(zlib.decompress(b85decode(text)), dtype).reshape(shape)


def planes(*ranges):
    """All planes of some ranges: each is the first plane and how many there are."""
    return [first.moved(step) if step else first for first, count in ranges for step in range(count)]


def predict(plane, number, count, final=True):
    """Apply the first `count` masks for an object on a plane; each one is better than the one before."""
    request = session.request(plane, number)
    for place, (mask, _) in enumerate(islice(service.predict(request, session.source(plane)), count), 1):
        session.apply(request, mask, final=final and place == count)


def run_masks(run, count=None):
    """Apply `count` masks of a propagation run, or all, and end it."""
    sources = [session.source(plane) for plane in run.request.planes]
    for number, found in service.propagate(run.request, sources):
        if run.apply(number, found) and count is not None:
            count -= 1
            if not count:
                break


def counts():
    """Where each label is."""
    return count_labels(session.labels, volume.shape)


def found(shape, box, text, quality, drawn):
    """A mask that was proposed."""
    return SoftMask(shape, BoundingBox(*box), b85decode(text), quality, drawn)


def stroke(plane, box, where, values):
    """A brush stroke on the labels."""
    before = session.labels.read(plane, box)
    after = before.copy()
    after[where] = values
    edit = LabelEdit.between(plane, box, before, after)
    session.labels.write([edit])
    return edit


'''

FOOT = """
session.close_transaction()
labels = session.labels.data if session.labels is not None else np.zeros(volume.shape, np.uint16)
if len(sys.argv) > 2:
    np.save(sys.argv[2], labels)
print(f"{{np.count_nonzero(labels)}} voxels in {{len(np.unique(labels[labels > 0]))}} objects")
"""


def exported_script(found: FoundSession) -> str:
    """The Python code that repeats a session.

    A session may be a stranger's: each text of it becomes a literal of Python, and nothing else.

    Raises
    ------
    JournalError
        For a session that was begun before its journal, one that predicted parts of huge planes, which a
        script of this kind cannot say, and an older one in which a mask was chosen that no model draws.
    """
    mirror, info = found.mirror, found.info
    if mirror.actions is None:
        raise JournalError(
            f"{info.path} does not hold the session from its beginning; only such ones can be exported"
        )
    if any(action.kind == "choose" for action in mirror.actions):
        raise JournalError(f"{info.path} cannot be exported: {CHOSEN}")
    if any(action.tile is not None for action in mirror.actions):
        raise JournalError(f"{info.path} predicted parts of huge planes; replay it instead")
    facts = {"name": info.name or "an image", "image": info.image or "", "identity": info.identity}
    head = HEAD.format(**facts, channel=info.channel, limit=mirror.undo_stack.limit)
    lines = _Lines(mirror.stores)
    return head + "\n".join(lines.of(mirror.actions)) + "\n" + FOOT.format()


class _Lines:
    """The lines of a script for actions one after the other."""

    def __init__(self, stores: Mapping[LabelStore, AboutLabels]) -> None:
        self._stores = dict(stores)
        self._names: dict[LabelStore, str] = {}

    def of(self, actions: list[Action]) -> Iterator[str]:
        """All lines; masks of one request, and those of one run, are one line."""
        actions = list(actions)
        while actions:
            action = actions.pop(0)
            count = 1
            if action.kind == "predict":
                last = action
                while actions and _same(actions[0], action):
                    last = actions.pop(0)
                    count += 1
                more = "" if last.final else ", final=False"
                yield f"predict({_plane(action.plane)}, {action.number}, {count}{more})"
            elif action.kind in ("propagate", "interpolate", "seeds"):
                yield from self._run(action, actions)
            elif action.kind in METHODS:
                yield f"session.{METHODS[action.kind]}()"
            else:
                yield from getattr(self, f"_{action.kind}")(action)

    def _run(self, action: Action, left: list[Action]) -> Iterator[str]:
        method = {"propagate": "propagation", "interpolate": "interpolation", "seeds": "seeds"}[action.kind]
        ranges = ", ".join(f"({_plane(first)}, {count})" for first, count in plane_ranges(action.planes))
        given = f"session, planes({ranges})"
        if action.seeds:
            seeds = ", ".join(f"({_plane(plane)}, {_prompt(prompt)})" for plane, prompt in action.seeds)
            given += f", [{seeds}]"
        yield f"run = PropagationRun.{method}({given})"
        count = left.pop(0).count if left and left[0].kind == "masks" else 0
        finished = bool(left) and left[0].kind == "finish"
        if finished:
            left.pop(0)
            yield "run_masks(run)"
            yield "run.finish()"
        else:
            if count:
                yield f"run_masks(run, {count})"
            yield "run.stop()"

    def _masks(self, action: Action) -> Iterator[str]:
        raise JournalError("masks of a run came after something else was done; replay the session instead")

    _finish = _masks

    def _stop(self, action: Action) -> Iterator[str]:
        return iter(())

    def _prompts(self, action: Action) -> Iterator[str]:
        given = "".join(f"\n        {_prompt(prompt)}," for prompt in action.prompts)
        yield f"session.set_prompts(\n    {_plane(action.plane)},\n    [{given}\n    ],\n)"

    def _paint(self, action: Action) -> Iterator[str]:
        assert action.drawn is not None
        yield f"session.paint(\n    {_plane(action.plane)},\n    {_array(action.drawn.mask)},\n)"

    def _reshape(self, action: Action) -> Iterator[str]:
        masks = "".join(
            f"\n        {_plane(p)}: Patch((0, 0), {_array(m.mask)})," for p, m in action.drawings
        )
        yield f"session.reshape(\n    {{{masks}\n    }}\n)"

    def _level(self, action: Action) -> Iterator[str]:
        yield f"session.choose_level({_plane(action.plane)}, {action.level})"

    def _refuse(self, action: Action) -> Iterator[str]:
        request = f"session.request({_plane(action.plane)}, {action.number})"
        yield f'session.refuse({request}, "it could not be answered")'

    def _label(self, action: Action) -> Iterator[str]:
        yield f"session.choose_label({action.label})"

    def _edit(self, action: Action) -> Iterator[str]:
        yield f"session.edit_object({_plane(action.plane)}, {action.at})"

    def _stroke(self, action: Action) -> Iterator[str]:
        strokes = "".join(f"\n        stroke({_edit(edit)})," for edit in action.edits)
        yield f"session.close_transaction()\nsession.record_stroke(\n    [{strokes}\n    ]\n)"

    def _objects(self, action: Action) -> Iterator[str]:
        """The function of `annotation.objects` that made a step: what it changed says which one."""
        step = action.step
        assert step is not None
        written = [number for number, before, after in step.records if after.written and after != before]
        if any(before is None for _, before, _ in step.records):
            yield from _proposed(step)
        elif step.states:
            yield f"reject_proposals(session, {[number for number, _, _ in step.records]})"
        elif step.current[0] != step.current[1]:
            yield f"correct_proposal(session, {step.current[1]})"
        elif written:
            yield f"accept_proposal(session, {written[0]})"
        elif step.edits:
            yield _relabelled(step)
        else:
            yield _described(step)

    def _settings(self, action: Action) -> Iterator[str]:
        for name, value in action.settings.items():
            if name == "preprocessing":
                given = f"window={value.get('window')!r}, spacing={value.get('spacing')!r}"
                yield f"session.volume = replace(session.volume, {given})"
            elif name != "model":
                yield f"session.{name} = {value!r}"
            elif value:
                how = "".join(f", {k}={value[k]!r}" for k in ("closer_look", "precision") if k in value)
                device = str(value.get("device", "auto"))
                yield f"predictor = load_predictor({value.get('model', 'default')!r}, {device!r}{how})"
                yield "service = PredictionService(predictor)"

    def _labels(self, action: Action) -> Iterator[str]:
        if action.store is None:
            yield "session.use_labels(None)"
            return
        if action.store not in self._names:
            name = self._names[action.store] = f"labels_{len(self._names) + 1}"
            about = self._stores[action.store]
            if about.content:
                text = base64.b85encode(about.content).decode()
                yield f"{name} = ArrayLabels(unpacked({text!r}, {about.dtype.str!r}, *volume.shape).copy())"
            else:
                yield f"{name} = ArrayLabels(np.zeros(volume.shape, {about.dtype.str!r}))"
        yield f"session.use_labels({self._names[action.store]}, {action.label})"

    def _resume(self, action: Action) -> Iterator[str]:
        yield "session.restore(session.contents)  # no mask is to be refined any more"
        yield "session.write_accepted()"
        yield "service = PredictionService(predictor)"


def _same(action: Action, other: Action) -> bool:
    return (action.kind, action.number, action.plane) == (other.kind, other.number, other.plane)


def _plane(plane: Plane | None) -> str:
    assert plane is not None
    return f"Plane({plane.index})"


def _prompt(prompt: Prompt) -> str:
    if isinstance(prompt, Mask):
        return f"Mask({_array(prompt.pixels)}, {prompt.positive})"
    return repr(prompt)


def _array(array: np.ndarray) -> str:
    text = base64.b85encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()
    return f"unpacked({text!r}, {array.dtype.str!r}, {', '.join(map(str, array.shape))})"


def _proposed(step: Step) -> Iterator[str]:
    """The call of `propose`; the masks of a proposal are data, as the marks of a brush are."""
    masks: dict[int, str] = {number: "" for number, _, _ in step.records}
    for (number, plane), _, after in step.states:
        mask = after.soft_mask
        assert mask is not None
        given = (mask.shape, tuple(map(int, mask.box)), base64.b85encode(mask.packed).decode())
        values = ", ".join(map(repr, (*given, mask.quality, mask.drawn)))
        masks[number] += f"\n            {_plane(plane)}: found({values}),"
    yield "propose(\n    session,\n    ["
    for number, _, record in step.records:
        yield f"        Proposal({record.score!r}, {{{masks[number]}\n        }}),"
    yield "    ],\n)"


def _relabelled(step: Step) -> str:
    """The call that gave whole objects, or parts of one, other labels."""
    before = sorted({label for edit in step.edits for label, _ in edit.reversed().parts()})
    after = sorted({label for edit in step.edits for label, _ in edit.parts()})
    if after == [0]:
        return f"delete(session, counts(), {before})"
    if step.title.startswith("split"):
        return f"split(session, counts(), {before[0]})"
    return f"merge(session, counts(), {[*after, *before]})"


def _described(step: Step) -> str:
    """The call of `describe`: what any of the objects had not had before."""
    said: dict[str, Any] = {}
    for _, before, after in step.facts:
        old, new = asdict(before or PLAIN), asdict(after or PLAIN)
        said |= {name: value for name, value in new.items() if value != old[name]}
    given = "".join(f", {name}={value!r}" for name, value in said.items())
    return f"describe(session, {[label for label, _, _ in step.facts]}{given})"


def _edit(edit: LabelEdit) -> str:
    """The arguments of `stroke`."""
    where = edit.changed
    after: Any = np.zeros(where.shape, edit.dtype)
    edit.apply(after)
    values = after[where]
    given = str(values[0]) if values.min() == values.max() else _array(values)
    return f"{_plane(edit.plane)}, BoundingBox{tuple(map(int, edit.box))}, {_array(where)}, {given}"
