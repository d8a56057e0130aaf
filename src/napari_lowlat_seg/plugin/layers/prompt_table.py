"""All rows of the two prompt layers and the prompts that they show: read and written row by row."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from napari_lowlat_seg.core.prompts import Click, Mask, Prompt
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.layers.drawn_shapes import drawing_of, prompts_of
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.layers.prompt_rows import Drawing, Rows, across, mark, numbers, signs

Prompted = dict[Plane, tuple[Prompt, ...]]
Appearance = tuple[str, bool, bytes]


@dataclass(frozen=True)
class Reading:
    """What a row was read as; a row whose appearance is the same is not read again.

    Attributes
    ----------
    appearance
        Its appearance: kind, sign and vertices.
    plane, prompts
        What it stands for; no plane when it cannot be used.
    theirs
        Whether it was in the user's own layer, where it stays.
    live
        Whether its prompts are the current object's; not another object's, and not undone.
    astray
        Whether napari put it beside the plane on which the user saw it: it is drawn again.
    """

    appearance: Appearance
    plane: Plane | None = None
    prompts: tuple[Prompt, ...] = ()
    theirs: bool = False
    live: bool = True
    astray: bool = False

    @property
    def untidy(self) -> bool:
        """Whether it cannot stay as it is where the row is ours."""
        return self.plane is None or self.astray

    def taken_from(self, missing: Mapping[tuple[Plane, Prompt], deque[int]]) -> int | None:
        """Remove what this row shows from `missing`; the first number, or None if it is not wanted.

        All or nothing: a stroke that visits the plane twice stays only while both parts are wanted.
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


def appearance_of(drawing: tuple[str, np.ndarray], positive: bool) -> Appearance:
    """The appearance of a row, to compare."""
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
    appearance = appearance_of(drawing, positive)
    coords = np.asarray(vertices, np.float64)
    if not np.isfinite(coords).all():
        return Reading(appearance), f"a prompt needs finite coordinates; a {kind} has {coords.tolist()!r:.80}"
    try:
        plane, points = grid.from_layer(coords, axes)
        astray = drawn_at is not None and plane != drawn_at.plane
    except ValueError as error:
        if drawn_at is None:
            return Reading(appearance), str(error)
        astray = True
    if astray and drawn_at is not None:
        plane, points = drawn_at.plane, drawn_at.points(grid)
    sides = grid.sides(plane)
    prompts = prompts_of(kind, points, positive, sides)
    if not prompts:
        return Reading(appearance), _outside(kind, sides)
    return Reading(appearance, plane, prompts, astray=astray), ""


def _outside(kind: str, sides: tuple[int, int]) -> str:
    """Why an element is no prompt; planes of a few pixels are mostly an axis of channels."""
    rows, cols = sides
    if min(sides) < 5:
        return (
            f"The image is {rows} × {cols} pixels: is its last axis a channel? Choose it under Channel axis."
        )
    return f"nothing of the {kind} is on the plane of {rows} x {cols} pixels"


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
        both[plane] = (*there, *(prompt for prompt in prompts if prompt not in there))
    return both


class PromptTable:
    """The rows of a Points and a Shapes layer, and the prompts of the current object.

    Attributes
    ----------
    sources
        "points" and "shapes", as far as these layers are there.
    rulers
        For each source that is the user's own layer: a layer on the grid, to convert coordinates with.
    content
        All prompts of the current object, as last read or written; those that no row shows included.
    axes
        The two axes of the volume along which the planes shown lie.
    untidy
        Whether a row of ours is unusable or lies beside its plane: write `content` again when napari is done.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.sources: dict[str, Rows] = {}
        self.rulers: dict[str, Any] = {}
        self.content: Prompted = {}
        self.axes = grid.volume.planes()[0].axes
        self.untidy = False
        self._readings: dict[int, Reading] = {}
        self._hidden: dict[int, tuple[Plane, Prompt]] = {}

    def up_to_date(self) -> bool:
        """Whether each row has the number and the sign that it was read with; False after pasting, say.

        While napari is removing rows, its table is behind: then there is nothing to be known yet.
        """
        if any(len(rows.layer.features) != len(rows) for rows in self.sources.values()):
            return True
        for rows in self.sources.values():
            for number, positive in zip(numbers(rows), signs(rows), strict=True):
                if number not in self._readings or self._readings[number].appearance[1] != positive:
                    return False
        return True

    def keep(self, kind: str) -> None:
        """From now on, the rows of this source are the user's and not removed by `write`."""
        for number in numbers(self.sources[kind]):
            self._readings[number] = replace(self._readings[number], theirs=True)

    def write(self, wanted: Prompted, axes: tuple[int, int]) -> None:
        """Keep the rows whose prompts are wanted, remove the others, append what is missing."""
        self.axes, self.content, self.untidy = axes, dict(wanted), False
        sequence = [(plane, prompt) for plane, prompts in wanted.items() for prompt in prompts]
        missing: dict[tuple[Plane, Prompt], deque[int]] = defaultdict(deque)
        self._hidden = {}
        for i, (plane, prompt) in enumerate(sequence):
            if isinstance(prompt, Mask) or plane.axes != axes:
                self._hidden[i] = (plane, prompt)
            else:
                missing[plane, prompt].append(i)
        readings: dict[int, Reading] = {}
        orders = {
            kind: self._kept(rows, missing, readings, len(sequence)) for kind, rows in self.sources.items()
        }
        rest = sorted(i for indices in missing.values() for i in indices)
        self._readings = readings
        for kind in self.sources:
            new = [i for i in rest if (kind == "points") == isinstance(sequence[i][1], Click)]
            self._append(kind, orders[kind], {i: sequence[i] for i in new})

    def _kept(
        self,
        rows: Rows,
        missing: dict[tuple[Plane, Prompt], deque[int]],
        readings: dict[int, Reading],
        first_spare: int,
    ) -> list[int]:
        """Remove the rows that are not wanted; the new numbers of those that stay."""
        order: list[int] = []
        gone: list[int] = []
        for row, number in enumerate(numbers(rows)):
            reading = self._readings.get(number)
            found = None if reading is None else reading.taken_from(missing)
            if reading is None or (found is None and not reading.theirs):
                gone.append(row)
                continue
            kept = max(first_spare - 1, *readings, -1) + 1 if found is None else found
            order.append(kept)
            readings[kept] = replace(reading, live=found is not None)
        if gone:
            rows.remove(gone)
        return order

    def _append(self, kind: str, order: list[int], new: dict[int, tuple[Plane, Prompt]]) -> None:
        rows = self.sources[kind]
        drawings: list[Drawing] = []
        for plane, prompt in new.values():
            drawn, points = drawing_of(prompt)
            coords = self.grid.to_layer(plane, points)
            if kind in self.rulers:
                coords = across(coords, self.rulers[kind], rows.layer)
            drawings.append((drawn, coords))
        if drawings:
            rows.append(drawings)
            rows.layer.selected_data = set()
        positive = np.ones(len(rows), bool)
        positive[: len(order)] = signs(rows)[: len(order)]
        positive[len(order) :] = [prompt.positive for _, prompt in new.values()]
        mark(rows, [*order, *new], positive)
        written = rows.drawings()[len(order) :] if new else []
        for (number, (plane, prompt)), drawing in zip(new.items(), written, strict=True):
            self._readings[number] = Reading(appearance_of(drawing, prompt.positive), plane, (prompt,))

    def read(self, dims: Any, drawn: str = "", positive: bool = True) -> tuple[Prompted, list[str]]:
        """Read the rows that look different into `content`: what is new in it, and what could not be used.

        Parameters
        ----------
        dims
            The viewer's: new rows are read along the axes that it shows.
        drawn, positive
            The source in which the user has just drawn, and the sign of what is new there.
        """
        entries: dict[int, tuple[Plane, tuple[Prompt, ...]]] = {
            number: (plane, (prompt,)) for number, (plane, prompt) in self._hidden.items()
        }
        shown = self.grid.plane(dims)
        readings: dict[int, Reading] = {}
        sentences: list[str] = []
        first_new = number = max((*self._readings, *self._hidden), default=-1) + 1
        for kind, rows in self.sources.items():
            order, signed = numbers(rows), signs(rows)
            drawn_now = kind == drawn and kind not in self.rulers
            for row, drawing in enumerate(rows.drawings()):
                if order[row] not in self._readings or order[row] in readings:
                    order[row], number = number, number + 1
                    signed[row] = positive if drawn_now else signed[row]
                known = self._readings.get(order[row])
                if known is None or known.appearance != appearance_of(drawing, signed[row]):
                    known, sentence = self._read_row(
                        kind, drawing, bool(signed[row]), known, dims if drawn_now else None, shown
                    )
                    sentences += [sentence] * bool(sentence)
                readings[order[row]] = known
                self.untidy |= kind not in self.rulers and known.untidy
            mark(rows, order, signed)
        entries |= _entries(readings)
        self._readings, self.content = readings, by_plane(entries)
        return by_plane({n: entry for n, entry in entries.items() if n >= first_new}), sentences

    def _read_row(
        self,
        kind: str,
        drawing: Drawing,
        positive: bool,
        known: Reading | None,
        dims: Any,
        shown: Plane | None,
    ) -> tuple[Reading, str]:
        """One row and perhaps a sentence; `dims` only for a row that the user has just drawn."""
        layer, ruler = self.sources[kind].layer, self.rulers.get(kind)
        appearance = appearance_of(drawing, positive)
        if known is not None and known.plane is not None:
            axes = known.plane.axes
        elif ruler is None and shown is None:
            return Reading(appearance), "prompts are given in 2-D, on a plane of the image"
        else:
            axes = self.axes if ruler is not None or shown is None else shown.axes
        seen = None if dims is None or shown is None else _seen(layer, drawing[1], dims, shown)
        coords = drawing[1] if ruler is None else across(drawing[1], layer, ruler)
        reading, sentence = read((drawing[0], coords), positive, self.grid, axes, seen)
        return replace(reading, appearance=appearance, theirs=known is not None and known.theirs), sentence


def _entries(readings: Mapping[int, Reading]) -> dict[int, tuple[Plane, tuple[Prompt, ...]]]:
    """What rows say of the current object, by their numbers."""
    return {n: (one.plane, one.prompts) for n, one in readings.items() if one.plane is not None and one.live}


def _seen(layer: Any, vertices: np.ndarray, dims: Any, shown: Plane) -> Seen | None:
    """Where a row just drawn was seen; None for a row that a script has put elsewhere."""
    world = np.array([layer.data_to_world(point) for point in vertices])
    lead = dims.ndim - layer.ndim
    hidden = [axis for axis in dims.not_displayed if axis >= lead]
    here = np.allclose(world[:, [axis - lead for axis in hidden]], np.asarray(dims.point)[hidden])
    return Seen(shown, dims, world) if here else None
