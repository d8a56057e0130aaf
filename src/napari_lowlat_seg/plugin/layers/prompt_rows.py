"""One napari layer of prompts as rows: a point or a shape, its sign and its number.

The only place that knows how Points and Shapes differ, and how a sign looks: blue discs and "+" are
positive, vermilion crosses and "−" are negative. Both colours stand out on black and on white, and for every
colour vision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from napari.layers import Points, Shapes
from napari.utils.colormaps.standardize_color import transform_color

from napari_lowlat_seg.plugin.layers.grid import Grid

POSITIVE_COLOR = "#2b8ce6"
NEGATIVE_COLOR = "#e0540a"
SYMBOLS = {True: "disc", False: "x"}
SIGNS = {True: "+", False: "−"}

POINT_PIXELS = 14.0
"""How wide a point is on the screen, at every zoom."""

LINE_PIXELS = 2.5
"""How wide a line is on the screen, to within the factor between two redrawings."""

NEW = -1
"""The number of a row that was not read yet."""

SELECTING = ("select", "direct", "vertex_insert", "vertex_remove")

Drawing = tuple[str, np.ndarray]


class Rows(ABC):
    """The rows of one layer, top to bottom."""

    colours: str
    """The layer's property that has the colour of each row."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def drawings(self) -> list[Drawing]:
        """What each row is: "point" or napari's name of the shape, and (N, ndim) vertices in layer data."""

    @abstractmethod
    def append(self, drawings: Sequence[Drawing]) -> None:
        """More rows, at the end: kind and vertices of each."""

    def remove(self, rows: Sequence[int]) -> None:
        """Take these rows away."""
        self.layer.remove(list(rows))

    def dress(self, positive: np.ndarray) -> None:
        """Show the sign of every row, (N,) bool."""
        if len(positive):
            colours = transform_color([POSITIVE_COLOR if sign else NEGATIVE_COLOR for sign in positive])
            if not np.array_equal(colours, getattr(self.layer, self.colours)):
                setattr(self.layer, self.colours, colours)
            self._mark([bool(sign) for sign in positive], colours)

    @abstractmethod
    def _mark(self, positive: list[bool], colours: np.ndarray) -> None:
        """Show it by a mark as well."""

    @abstractmethod
    def arm(self, positive: bool) -> None:
        """Let the next row that the user draws look like its sign from the first moment."""

    @abstractmethod
    def fit(self, zoom: float, shown: Sequence[int]) -> None:
        """Keep the size on the screen; `zoom` canvas pixels per unit of world, `shown` layer axes in view."""

    def close(self) -> None:  # noqa: B027 - of most layers nothing was borrowed
        """Give back what was borrowed of the layer."""


class PointRows(Rows):
    """A Points layer."""

    colours = "face_color"

    def __len__(self) -> int:
        return len(self.layer.data)

    def drawings(self) -> list[Drawing]:
        return [("point", point[None]) for point in self.layer.data]

    def append(self, drawings: Sequence[Drawing]) -> None:
        self.layer.add(np.concatenate([vertices for _, vertices in drawings]))

    def remove(self, rows: Sequence[int]) -> None:
        """Take these rows away, wherever the mouse is.

        napari (0.9.2) fails if it is over a point that stays, and the highlight has not followed it there.
        """
        self.layer.selected_data = set(self.layer.selected_data)  # lets the highlight follow
        super().remove(rows)

    def _mark(self, positive: list[bool], colours: np.ndarray) -> None:
        symbols = [SYMBOLS[sign] for sign in positive]
        if symbols != [str(symbol) for symbol in self.layer.symbol]:
            self.layer.symbol = symbols

    def arm(self, positive: bool) -> None:
        with self.layer.block_update_properties():
            self.layer.current_symbol = SYMBOLS[positive]
            self.layer.current_face_color = POSITIVE_COLOR if positive else NEGATIVE_COLOR

    def fit(self, zoom: float, shown: Sequence[int]) -> None:
        # napari draws a size times the last scale, whatever the affine (0.9.2); limits alone would not do, as
        # it finds the point under the mouse by this size.
        size = POINT_PIXELS / (zoom * float(np.abs(self.layer.scale[-1])))
        with self.layer.block_update_properties():
            self.layer.current_size = size
        self.layer.size = size


class ShapeRows(Rows):
    """A Shapes layer."""

    colours = "edge_color"

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self._borrowed = ExitStack()
        # Drawing the thumbnail takes napari 2 ms a shape, at every edit and every step to another plane.
        self._borrowed.enter_context(layer.block_thumbnail_update())

    def __len__(self) -> int:
        return int(self.layer.nshapes)

    def drawings(self) -> list[Drawing]:
        return list(zip(map(str, self.layer.shape_type), self.layer.data, strict=True))

    def append(self, drawings: Sequence[Drawing]) -> None:
        self.layer.add([vertices for _, vertices in drawings], shape_type=[kind for kind, _ in drawings])

    def _mark(self, positive: list[bool], colours: np.ndarray) -> None:
        words = [SIGNS[sign] for sign in positive]
        if words != [str(word) for word in np.atleast_1d(self.layer.text.values)]:
            self.layer.text = {"string": words, "color": colours, "size": 14, "anchor": "upper_left"}

    def arm(self, positive: bool) -> None:
        with self.layer.block_update_properties():
            self.layer.current_edge_color = POSITIVE_COLOR if positive else NEGATIVE_COLOR
            self.layer.current_face_color = "transparent"

    def fit(self, zoom: float, shown: Sequence[int]) -> None:
        width = LINE_PIXELS / (zoom * _mean(_lengths(self.layer, shown)))
        # Every line is cut into triangles anew: not for each notch of the wheel.
        if 0.7 < width / max(float(self.layer.current_edge_width), 1e-30) < 1.4:
            return
        with self.layer.block_update_properties():
            self.layer.current_edge_width = width
        if len(self):
            self.layer.edge_width = width

    def close(self) -> None:
        self._borrowed.close()


def point_rows(grid: Grid) -> PointRows:
    """A new, empty Points layer for clicks that the user cannot delete by accident."""
    layer = Points(
        **_of(grid, "clicks"),
        symbol=SYMBOLS[True],
        face_color=POSITIVE_COLOR,
        border_color="white",
        border_width=0.1,
        # Where a limit applies, the border is drawn half the lower limit wide (vispy 0.17): a high one would
        # cover the point.
        canvas_size_limits=(2, POINT_PIXELS),
    )
    layer.locked = True
    return PointRows(layer)


def shape_rows(grid: Grid) -> ShapeRows:
    """A new, empty Shapes layer for strokes, boxes and outlines that the user cannot delete by accident."""
    layer = Shapes(**_of(grid, "strokes"), edge_color=POSITIVE_COLOR, face_color="transparent", opacity=1)
    layer.locked = True
    return ShapeRows(layer)


def _of(grid: Grid, name: str) -> dict[str, Any]:
    """What all layers of prompts have: place, name, and a table with the columns of ours."""
    table = {"polarity": np.empty(0, object), "order": np.empty(0, np.int64)}
    return {"ndim": grid.ndim, "name": f"{grid.layer.name} [lowlat] {name}", **grid.place, "features": table}


def numbers(rows: Rows) -> list[int]:
    """The number of each row, `NEW` for rows that were drawn, pasted or loaded since the last reading."""
    column = rows.layer.features.get("order")
    if column is None:
        return [NEW] * len(rows)
    found: list[int] = []
    for value in column:
        number = int(value) if isinstance(value, int | float | np.number) and np.isfinite(value) else NEW
        # A pasted row, and one drawn while another is selected, has a copy of that one's number.
        found.append(NEW if number in found else number)
    return found


def signs(rows: Rows) -> np.ndarray:
    """Which rows are positive, (N,) bool: all whose polarity does not begin with "neg"."""
    column = rows.layer.features.get("polarity")
    if column is None:
        return np.ones(len(rows), bool)
    return np.array([not str(value).strip().lower().startswith("neg") for value in column], bool)


def mark(rows: Rows, order: list[int], positive: np.ndarray) -> None:
    """Write and show `order`, the number, and the sign of every row; the table's other columns stay."""
    if (
        numbers(rows) != order
        or not np.array_equal(signs(rows), positive)
        or "order" not in rows.layer.features
    ):
        table = rows.layer.features.copy()
        table["polarity"] = np.array([_word(sign) for sign in positive], object)
        table["order"] = np.asarray(order, np.int64)
        rows.layer.features = table
    rows.dress(positive)


def forget(rows: Rows) -> None:
    """Mark all rows as new, whatever their numbers."""
    mark(rows, [NEW] * len(rows), signs(rows))


def turn(rows: Rows, some: list[int]) -> None:
    """Give some rows the other sign."""
    positive = signs(rows)
    positive[some] = ~positive[some]
    mark(rows, numbers(rows), positive)


def realign(rows: Rows, dropped: int) -> None:
    """Take row `dropped` out of a table that has one row more than the layer.

    napari forgets the table when a shape is dropped for want of vertices (0.9.2).
    """
    table = rows.layer.features
    if len(table) > len(rows):
        rows.layer.features = table.drop(index=table.index[dropped]).reset_index(drop=True)


def chosen(rows: Rows) -> list[int]:
    """The rows that the user has selected; in other modes napari selects what was just added, unasked."""
    return sorted(rows.layer.selected_data) if rows.layer.mode in SELECTING else []


def expect(rows: Rows, positive: bool) -> None:
    """Prepare the layer for the next row that the user draws; napari's controls follow what is changed."""
    table = rows.layer.feature_defaults
    defaults = {name: table[name].iat[0] for name in rows.layer.features.columns}
    wanted = {"polarity": _word(positive), "order": NEW}
    if wanted.keys() <= defaults.keys() and wanted != {name: defaults[name] for name in wanted}:
        rows.layer.feature_defaults = defaults | wanted
    rows.arm(positive)


def _word(positive: bool) -> str:
    return "positive" if positive else "negative"


def _lengths(layer: Any, shown: Sequence[int]) -> np.ndarray:
    """How long one unit of layer data is in the world, along each axis in view."""
    origin = np.zeros(layer.ndim)
    start = np.asarray(layer.data_to_world(origin))
    ends = np.array([layer.data_to_world(origin + np.eye(layer.ndim)[axis]) for axis in shown])
    lengths: np.ndarray = np.linalg.norm(ends - start, axis=1)
    return lengths


def _mean(lengths: np.ndarray) -> float:
    """The geometric mean: a line is then as much too wide along one axis as too narrow along the other."""
    return float(np.sqrt(np.prod(lengths)))


def across(coords: np.ndarray, source: Any, target: Any) -> np.ndarray:
    """Data coordinates (N, ndim) of the layer `source` as those of the layer `target`."""
    return np.array([target.world_to_data(source.data_to_world(point)) for point in coords])


ROWS: dict[str, Callable[[Any], Rows]] = {"points": PointRows, "shapes": ShapeRows}
NEW_ROWS: dict[str, Callable[[Grid], Rows]] = {"shapes": shape_rows, "points": point_rows}
"""How to make a new layer of each kind, the lower one first."""
