"""Prompts as text: the arguments of the command line, and point files.

Coordinates are array indices in the order *plane positions, row, column*: Z,R,C in a volume, R,C in an image.
Z counts along the axis given, R and C along the others, in order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from napari_lowlat_seg.core.prompts import Box, Click, Point, Polygon, Scribble
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.files import shown_axes
from napari_lowlat_seg.io.points import named_columns
from napari_lowlat_seg.io.tables import read_rows, read_text

Placed = tuple[Plane, Click | Box | Scribble | Polygon]


def read_click(text: str, volume: Volume, axis: int) -> Placed:
    """The plane and the click of "Z,R,C", "Z,R,C+" or "Z,R,C-".

    Parameters
    ----------
    text
        In an image of two axes, and one of a single plane, "R,C"; in one of four axes "Z0,Z1,R,C".
    axis
        Of the volume, along which Z counts.

    Raises
    ------
    ValueError
        For another text, and for a position outside the volume.
    """
    numbers, positive = _numbers(text, "a click", volume.ndim, _form(volume, "R,C"), _flat(volume, axis))
    plane, (at,) = _on_plane([numbers], volume, axis, f"click {text}")
    return plane, Click(at, positive)


def read_box(text: str, volume: Volume, axis: int) -> Placed:
    """The plane and the box of "Z,R0,C0,R1,C1", with + or - at the end; else as `read_click`."""
    form = _form(volume, "R0,C0,R1,C1")
    numbers, positive = _numbers(text, "a box", volume.ndim + 2, form, _flat(volume, axis))
    first, last = numbers[:-2], [*numbers[:-4], *numbers[-2:]]
    plane, (start, end) = _on_plane([first, last], volume, axis, f"box {text}")
    return plane, Box(start, end, positive)


def read_strokes(path: Path, kind: type[Scribble] | type[Polygon], volume: Volume, axis: int) -> list[Placed]:
    """The planes and the scribbles or polygons of a point file.

    .csv: a line "Z,R,C" per point, with an optional last column of "+" or "-"; a blank line, or another Z,
    begins a new stroke; a first line of words and comments are skipped. .json: {"points": [[Z, R, C], ...],
    "positive": true}, or a list of such, or just a list of points.

    Parameters
    ----------
    kind
        What the strokes are.
    axis
        Of the volume, along which Z counts.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds something else.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json"):
        raise ValueError(f"a point file is .csv or .json; got {path.name!r}")
    if not path.is_file():
        raise FileNotFoundError(f"no point file at {path}; check the path")
    try:
        text = read_text(path)
        strokes = _json_strokes(text) if suffix == ".json" else _csv_strokes(text, path, volume, axis)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        expected = _form(volume, "R,C")
        raise ValueError(
            f"{path} is no list of points {expected} ({type(error).__name__}: {error})"
        ) from error
    if not all(points for points, _ in strokes) or not strokes:
        raise ValueError(f"{path} holds no point; it needs at least one {_form(volume, 'R,C')}")
    found: list[Placed] = []
    for points, positive in strokes:
        if any(len(point) != volume.ndim for point in points):
            raise ValueError(
                f"{path} must hold points {_form(volume, 'R,C')} of {volume.ndim} numbers; got {points[0]}"
            )
        plane, flat = _on_plane(points, volume, axis, str(path))
        found.append((plane, kind(tuple(flat), positive)))
    return found


_Stroke = tuple[list[list[float]], bool]


def _csv_strokes(text: str, path: Path, volume: Volume, axis: int) -> list[_Stroke]:
    """Strokes of a table; columns with names are put in the order of the command line."""
    strokes: list[_Stroke] = []
    fresh, order = True, None
    for number, cells in enumerate(read_rows(text)):
        if not any(cells):
            fresh = True
            continue
        positive = cells[-1] != "-"
        try:
            named = cells if order is None else [cells[i] for i in order]
            point = [float(cell) for cell in (named[:-1] if named[-1] in ("+", "-") else named)]
        except (ValueError, IndexError):
            if number == 0:
                order = _named_order(cells, path, volume, axis)
                continue
            raise
        # A line that continues in another plane is another stroke there.
        if fresh or strokes[-1][1] != positive or strokes[-1][0][-1][:-2] != point[:-2]:
            strokes.append(([], positive))
        strokes[-1][0].append(point)
        fresh = False
    return strokes


def _named_order(names: Sequence[str], path: Path, volume: Volume, axis: int) -> list[int] | None:
    """The columns with these names in the order position, row, column; None for names that say no order."""
    first = volume.planes(axis)[0]
    plain = [*(i for i, at in enumerate(first.index) if at is not None), *first.axes]
    columns, axes = named_columns(path, names, plain, shown_axes(volume, path))
    return None if columns is None else [columns[axes.index(one)] for one in plain]


def _json_strokes(text: str) -> list[_Stroke]:
    found: Any = json.loads(text)
    if isinstance(found, dict):
        found = [found]
    elif found and not isinstance(found[0], dict):
        found = [{"points": found}]
    return [
        (
            [[float(value) for value in point] for point in stroke["points"]],
            _sign(stroke.get("positive", True)),
        )
        for stroke in found
    ]


def _sign(value: Any) -> bool:
    if value not in (True, False):  # a "false" in quotes would count as true
        raise ValueError(f"positive is true or false, not {value!r:.40}")
    return bool(value)


def _flat(volume: Volume, axis: int) -> bool:
    """Whether a volume has one plane only, so that its place need not be said."""
    return volume.ndim == 3 and -3 <= axis < 3 and volume.shape[axis] == 1


def _numbers(text: str, what: str, count: int, form: str, flat: bool) -> tuple[list[float], bool]:
    plain = text.strip()
    sign = plain[-1:] if plain[-1:] in ("+", "-") else ""
    try:
        numbers = [float(part) for part in plain.removesuffix(sign).split(",")]
    except ValueError:
        numbers = []
    if flat and len(numbers) == count - 1:
        numbers = [0.0, *numbers]
    if len(numbers) != count:
        raise ValueError(f"{what} must be {form}, with an optional + or - at the end; got {text!r}")
    return numbers, sign != "-"


def _on_plane(
    points: Sequence[Sequence[float]], volume: Volume, axis: int, what: str
) -> tuple[Plane, list[Point]]:
    """The plane that all points share, and their (row, col) there."""
    positions = [float(value) for value in points[0][:-2]]
    if any(list(point[:-2]) != positions for point in points) or not all(p.is_integer() for p in positions):
        raise ValueError(f"{what} must lie on one plane, at whole numbers; got positions {positions}")
    return volume.plane_at([int(p) for p in positions], axis), [(point[-2], point[-1]) for point in points]


def _form(volume: Volume, last: str) -> str:
    return ",".join([*(["Z"] if volume.ndim == 3 else [f"Z{i}" for i in range(volume.ndim - 2)]), last])
