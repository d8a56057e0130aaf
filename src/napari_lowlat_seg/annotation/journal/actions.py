"""What was done in a session, in order, without what came of it: what a replay repeats.

A session's undo stack forgets, and keeps no settings. Actions are kept from the first to the last; a click
takes some 200 bytes of a session's file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from napari_lowlat_seg.annotation.history import Event, Step, StepKind
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.requests import PropagationRequest
from napari_lowlat_seg.core.volume import Plane

RunKind = Literal["propagate", "interpolate", "seeds"]
ActionKind = (
    StepKind
    | Literal["undo", "redo", "settings", "labels", "predict", "refuse", "masks", "finish", "stop", "resume"]
    | Literal["choose"]
    | RunKind
)
KINDS: tuple[str, ...] = tuple(kind for part in get_args(ActionKind) for kind in get_args(part))

CHOSEN = (
    "a mask was chosen that the model drew beside its first one, which models no longer do; restore the "
    "session instead, which keeps that mask, or annotate the object anew"
)
"""Why an action "choose" of an older file can be neither replayed nor exported."""

METHODS = {"clear": "clear", "accept": "accept", "leave": "leave_object", "undo": "undo", "redo": "redo"}
"""By kind, the methods of `Session` that need no more to be repeated."""


@dataclass(frozen=True, eq=False)
class Action:
    """One thing that was done with a session.

    Attributes
    ----------
    kind
        "prompts", "paint", "reshape", "level", "clear", "accept", "leave", "label", "edit", "stroke", "undo"
        and "redo": the methods of `Session`. "settings": its attributes. "labels": `use_labels`. "predict": a
        mask was applied. "refuse": a request could not be answered.
        "propagate", "interpolate" and "seeds" begin a run, "masks" were applied in it, "finish" and "stop"
        end it. "resume": the session was restored, in another process with other caches. "objects": a step
        of `annotation.objects`, which is repeated as it was. "choose" of an older file cannot be repeated:
        see `CHOSEN`.
    number, plane
        An object and a plane.
    prompts
        All prompts on the plane.
    drawn
        Of "paint": the mask.
    drawings
        Of "reshape": the masks, by plane.
    at
        Of "edit": the pixel.
    label
        Of "label"; of "labels" the highest in them.
    count
        Of "masks": how many.
    level
        Of "level".
    edits
        Of "stroke".
    settings
        Of "settings": values by name.
    store
        Of "labels"; None for none.
    planes, seeds
        Of a run: its range, and what it begins with.
    tile
        Of "predict": the part of the plane that was predicted; None for all of it.
    final
        Of "predict": whether it was the last mask for its request.
    step
        Of "objects".
    """

    kind: ActionKind
    number: int = 0
    plane: Plane | None = None
    prompts: tuple[Prompt, ...] = ()
    drawn: SoftMask | None = None
    at: tuple[int, int] | None = None
    label: int = 0
    count: int = 0
    edits: tuple[LabelEdit, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    store: LabelStore | None = None
    planes: tuple[Plane, ...] = ()
    seeds: tuple[tuple[Plane, Prompt], ...] = ()
    tile: BoundingBox | None = None
    final: bool = True
    step: Step | None = None
    drawings: tuple[tuple[Plane, SoftMask], ...] = ()
    level: int = 0


def add_actions(actions: list[Action], event: Event) -> None:
    """Append what an event of a session says was done; masks of a run become one entry."""
    for action in _actions(event):
        if action.kind == "masks" and actions and actions[-1].kind == "masks":
            action = replace(action, count=action.count + actions.pop().count)
        if action.kind != "stop" or not actions or actions[-1].kind != "finish":
            actions.append(action)


def _actions(event: Event) -> Iterator[Action]:
    if event.kind == "undo" or event.kind == "redo":
        yield Action(event.kind)
    elif event.kind == "settings":
        yield Action("settings", settings=event.settings)
    elif event.kind == "labels":
        yield Action("labels", store=event.store, label=event.highest)
    elif event.prediction is not None:
        (number, plane), _, _ = event.prediction
        yield Action("predict", number, plane, tile=event.tile, final=event.final)
    elif event.key is not None:
        yield Action("refuse", *event.key)
    elif event.kind == "step" and event.step is not None:
        yield _of_step(event.step)
    elif event.step is not None:
        yield from _of_run(event.step, closed=event.kind == "closed")


def _of_step(step: Step) -> Action:
    if step.kind == "run":
        raise ValueError("a run is no step of its own")
    if step.kind == "reshape":
        drawn = ((key[1], after.drawn) for key, _, after in step.states)
        return Action("reshape", drawings=tuple((plane, mask) for plane, mask in drawn if mask is not None))
    if step.kind == "label":
        return Action("label", label=step.records[0][2].label)
    if step.kind == "stroke":
        return Action("stroke", edits=step.edits)
    if step.kind == "objects":
        return Action("objects", step=step)
    new = step.states[0][2] if step.states else PlaneState()
    said = {"prompts": new.prompts, "drawn": new.drawn, "level": new.level}
    field_of = {"prompts": "prompts", "paint": "drawn", "level": "level"}.get(step.kind)
    more: dict[str, Any] = {} if field_of is None else {field_of: said[field_of]}
    return Action(step.kind, plane=step.plane, at=step.at, **more)


def _of_run(news: Step, *, closed: bool) -> Iterator[Action]:
    if news.request is not None:
        yield _begun(news.request)
    if masks := sum(after.soft_mask is not None for _, _, after in news.states):
        yield Action("masks", count=masks)
    if any(
        after.propagated is not None and (before is None or before.propagated is not after.propagated)
        for _, before, after in news.records
    ):
        yield Action("finish")
    if closed:
        yield Action("stop")


def _begun(request: PropagationRequest) -> Action:
    if request.seeds:
        return Action("seeds", planes=request.planes, seeds=tuple(request.seeds.values()))
    return Action("interpolate" if request.shapes else "propagate", planes=request.planes)


def plane_ranges(planes: Iterable[Plane]) -> list[tuple[Plane, int]]:
    """Planes as (first, how many): each next one is moved by one along the last axis with a position."""
    ranges: list[tuple[Plane, int]] = []
    for plane in planes:
        if ranges and len(plane.index) > 2 and plane == ranges[-1][0].moved(ranges[-1][1]):
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
        else:
            ranges.append((plane, 1))
    return ranges
