"""What one row of a prompt layer was read as, and how all rows together become prompts by plane."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.layers.drawn_shapes import prompts_of
from napari_lowlat_seg.plugin.layers.grid import Grid

Prompted = dict[Plane, tuple[Prompt, ...]]
Looks = tuple[str, bool, bytes]


@dataclass(frozen=True)
class Reading:
    """What a row was read as; a row that still looks the same is not read again.

    Attributes
    ----------
    looks
        Kind, sign and vertices.
    plane, prompts
        What it says; no plane when it cannot be used.
    theirs
        It was in the user's own layer: it stays there.
    live
        It says this of the current object; else of another one, or of none since it was undone.
    astray
        napari put it beside the plane on which the user saw it: to be drawn again.
    """

    looks: Looks
    plane: Plane | None = None
    prompts: tuple[Prompt, ...] = ()
    theirs: bool = False
    live: bool = True
    astray: bool = False

    def taken_from(self, missing: Mapping[tuple[Plane, Prompt], deque[int]]) -> int | None:
        """Cross what this row shows off a list of what is to be shown; the first number, or None.

        All or nothing: a stroke that visits the plane twice stays only as long as both parts are wanted.
        """
        if self.plane is None or not self.prompts or self.astray:
            return None
        keys = [(self.plane, prompt) for prompt in self.prompts]
        if any(len(missing.get(key, ())) < keys.count(key) for key in keys):
            return None
        numbers = [missing[key].popleft() for key in keys]
        return numbers[0]


@dataclass(frozen=True)
class Seen:
    """Where the user saw a row while drawing it: the plane, the viewer's dims, the vertices in the world."""

    plane: Plane
    dims: Any
    world: np.ndarray

    def points(self, grid: Grid) -> np.ndarray:
        """(row, col) of each vertex on the plane: float64 (N, 2)."""
        return np.array([grid.to_plane(position, self.plane, self.dims) for position in self.world])


def looks_of(drawing: tuple[str, np.ndarray], positive: bool) -> Looks:
    """What a row looks like, to compare."""
    kind, vertices = drawing
    return kind, bool(positive), vertices.tobytes()


def read(
    drawing: tuple[str, np.ndarray],
    positive: bool,
    grid: Grid,
    axes: tuple[int, int],
    drawn_at: Seen | None,
) -> tuple[Reading, str]:
    """One row, and a sentence when it cannot be used.

    Parameters
    ----------
    drawing
        Kind and vertices; (N, ndim) in data coordinates of a layer on the grid.
    positive
        Its sign.
    grid
        Where the image lies.
    axes
        The two axes of the volume that its plane has.
    drawn_at
        For a row that was drawn in the viewer just now: where it was seen.
    """
    kind, vertices = drawing
    looks = looks_of(drawing, positive)
    coords = np.asarray(vertices, np.float64)
    if not np.isfinite(coords).all():
        return Reading(looks), f"a prompt needs finite coordinates; a {kind} has {coords.tolist()!r:.80}"
    try:
        plane, points = grid.from_layer(coords, axes)
        astray = drawn_at is not None and plane != drawn_at.plane
    except ValueError as error:
        if drawn_at is None:
            return Reading(looks), str(error)
        astray = True
    if astray and drawn_at is not None:
        plane, points = drawn_at.plane, drawn_at.points(grid)
    sides = grid.sides(plane)
    prompts = prompts_of(kind, points, positive, sides)
    if not prompts:
        return Reading(looks), f"nothing of the {kind} is on the plane of {sides[0]} x {sides[1]} pixels"
    return Reading(looks, plane, prompts, astray=astray), ""


def by_plane(entries: Mapping[int, tuple[Plane, tuple[Prompt, ...]]]) -> Prompted:
    """Prompts by plane, in the order of their numbers."""
    found: Prompted = {}
    for _, (plane, prompts) in sorted(entries.items(), key=lambda entry: entry[0]):
        found[plane] = (*found.get(plane, ()), *prompts)
    return found


def joined(first: Prompted, then: Prompted) -> Prompted:
    """The prompts of both, each once."""
    both = dict(first)
    for plane, prompts in then.items():
        there = both.get(plane, ())
        both[plane] = (*there, *_without(prompts, there))
    return both


def _without(prompts: Iterable[Prompt], known: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    return tuple(prompt for prompt in prompts if prompt not in known)
