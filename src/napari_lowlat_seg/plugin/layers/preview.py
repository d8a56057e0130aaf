"""A Labels layer that shows the current object's mask on the plane in view, before it is accepted.

Pixels are written in place and only the rectangle that changed is drawn again, so that a mask of a
1024 x 1024 plane reaches the screen in a few milliseconds. In 2-D display one plane of pixels shows at every
position of the slider, because moving the layer would make napari slice all layers again; it is emptied when
the plane changes. Of a huge plane it covers a box only, as large as a tile or as what is to be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from napari.layers import Labels
from napari.utils.colormaps import DirectLabelColormap

from napari_lowlat_seg.core.boxes import TILING, BoundingBox, Patch, Tiling
from napari_lowlat_seg.core.frame import Points
from napari_lowlat_seg.core.raster import swept
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.layers.grid import Grid, Place
from napari_lowlat_seg.plugin.layers.napari_layers import add_quietly, redraw
from napari_lowlat_seg.plugin.layers.prompt_rows import NEGATIVE_COLOR, POSITIVE_COLOR

MASK, POSITIVE, NEGATIVE, CONTOUR = 1, 2, 3, 4
"""The labels of the preview layer."""

COLORS: dict[int | None, str] = {
    MASK: "#ffc20a",
    POSITIVE: POSITIVE_COLOR,
    NEGATIVE: NEGATIVE_COLOR,
    CONTOUR: "#56b4e9",
}
"""Amber stays apart from the prompts' blue and orange for every kind of eye, on dark and light images."""

LINES_PER_SIDE = 250
"""A stroke or contour is drawn this many times thinner than the longer side of the plane, or of a tile."""

FieldOfView = Callable[[Plane], tuple[float, float, float, float]]
OnPaint = Callable[[Plane, Patch], None]


class Preview:
    """The mask of the current object, the stroke being drawn and the outline under a resting mouse.

    Parameters
    ----------
    viewer
        Gets the layer, on top, when attached.
    grid
        Where the image lies.
    tiling
        Which planes are too large for a layer that covers them.
    field
        Returns (top, left, bottom, right) of what the canvas shows of a plane; for brushes on huge planes.

    Attributes
    ----------
    layer
        A Labels layer of `MASK`, `POSITIVE`, `NEGATIVE` and `CONTOUR`, locked against deletion by hand.
    """

    def __init__(
        self, viewer: Any, grid: Grid, tiling: Tiling = TILING, field: FieldOfView | None = None
    ) -> None:
        self._viewer, self._grid, self._tiling, self._field = viewer, grid, tiling, field
        self._plane = grid.plane(viewer.dims) or Plane((*(0 for _ in grid.axes[2:]), None, None))
        self._at = self._plane  # what the layer was laid out for: it stays behind while nothing is to be seen
        self._box = self._least(self._plane)  # of the plane, which the layer covers
        self._mask: Patch | None = None
        self._others: list[Patch] = []
        self._outline: Patch | None = None
        self._stroke: Patch | None = None
        self._cross: Patch | None = None
        self._on_paint: OnPaint | None = None
        shape, place = grid.slab(self._plane, box=self._box)
        colors = {None: "transparent", 0: "transparent", **COLORS}
        self.layer = Labels(
            np.zeros(shape, np.uint8),
            name=f"{grid.layer.name} [lowlat] preview",
            colormap=DirectLabelColormap(color_dict=colors),
            opacity=0.5,
            rendering="translucent",
            **place,
        )
        self.layer.locked = True

    def attach(self, on_paint: OnPaint) -> None:
        """Put the layer into the viewer; call with (plane, mask) after each stroke of brush or eraser."""
        self._on_paint = on_paint
        self.layer.events.paint.connect(self._painted)
        for event in self._moves():
            event.connect(self._follow)
        for event in self._scrolls():
            event.connect(self._leave)
        self._ensure()

    def detach(self) -> None:
        """Take the layer out of the viewer and listen no longer."""
        self._on_paint = None
        self.layer.events.paint.disconnect(self._painted)
        for event in self._moves():
            event.disconnect(self._follow)
        for event in self._scrolls():
            event.disconnect(self._leave)
        if self.layer in self._viewer.layers:
            self._viewer.layers.remove(self.layer)

    @property
    def plane(self) -> Plane:
        """The plane shown last."""
        return self._plane

    def show(self, plane: Plane, mask: Patch | np.ndarray | None, others: Sequence[Patch] = ()) -> None:
        """Show this bool mask, of the plane or a part of it, or that it has none.

        On another plane than before, a stroke under way and a contour are gone.

        Parameters
        ----------
        others
            Masks of which a thin contour is shown: what else could be meant.
        """
        if plane != self._plane:
            self._outline = self._stroke = None
        self._plane = plane
        self._mask = None if mask is None else _patch(mask)
        thin = max(1, self._width // 2)
        self._others = [Patch(one.corner, edge_of(one.pixels, thin)) for one in others]
        self._draw()

    def stroke(self, points: Points | None, positive: bool = True, kind: str = "scribble") -> None:
        """Show a stroke under way on the plane shown last; None takes it away.

        Parameters
        ----------
        points
            (N, 2) plane pixels; of a box any points whose bounds it is.
        positive
            Its sign.
        kind
            "scribble", "box" or "lasso".
        """
        if points is None and self._stroke is None:
            return
        self._stroke = None
        if points is not None and len(points):
            line = _closed(np.asarray(points, dtype=np.float64), kind)
            ends = np.stack([line[: max(1, len(line) - 1)], line[1:] if len(line) > 1 else line], axis=1)
            sides = np.array(self._grid.sides(self._plane))
            low = np.clip(np.floor(line.min(axis=0)).astype(int) - self._width, 0, sides - 1)
            high = np.clip(np.ceil(line.max(axis=0)).astype(int) + self._width + 1, low + 1, sides)
            pixels = np.zeros((high[0] - low[0], high[1] - low[1]), np.uint8)
            where = swept(np.round(ends).astype(np.int64) - low, self._width - 0.5, pixels.shape)
            pixels[where] = POSITIVE if positive else NEGATIVE
            self._stroke = Patch((int(low[0]), int(low[1])), pixels)
        self._draw()

    def contour(self, mask: Patch | np.ndarray | None) -> None:
        """Outline this bool mask on the plane shown last; None takes the outline away."""
        if mask is None and self._outline is None:
            return
        self._outline = None
        if mask is not None:
            part = _patch(mask)
            self._outline = Patch(part.corner, edge_of(part.pixels, self._width))
        self._draw()

    def cursor(self, at: tuple[float, float] | None) -> None:
        """Show a cross around (row, col) of the plane shown last, which stays free; None takes it away."""
        if at is None and self._cross is None:
            return
        self._cross = None
        if at is not None:
            row, col = (round(x) for x in at)
            gap, arm = self._width + 1, 6 * self._width + 2
            pixels = np.zeros((2 * arm + 1, 2 * arm + 1), np.bool_)
            half = self._width // 2
            pixels[arm - half : arm + half + 1] = pixels[:, arm - half : arm + half + 1] = True
            pixels[arm - gap : arm + gap + 1, arm - gap : arm + gap + 1] = False
            box = BoundingBox(row - arm, col - arm, row + arm + 1, col + arm + 1)
            seen = box.clipped(self._grid.sides(self._plane))
            self._cross = Patch(seen.corner, Patch(box.corner, pixels).shown_in(seen))
        self._draw()

    def clear(self) -> None:
        """Show nothing."""
        self._mask = self._outline = self._stroke = self._cross = None
        self._others = []
        self._draw()

    def brush(self) -> None:
        """Activate napari's brush on the mask; the model continues from what is painted."""
        self._paint("paint")

    def eraser(self) -> None:
        """Activate napari's eraser on the mask; the model continues from what is left."""
        self._paint("erase")

    def _paint(self, mode: str) -> None:
        """Of a huge plane, brush and eraser reach what is seen, as far as that is no larger than a tile."""
        self._outline = self._stroke = None
        huge = self._box != (0, 0, *self._grid.sides(self._at))
        if huge and self._field is not None and self._grid.plane(self._viewer.dims) is not None:
            self._cover([self._least(self._plane, self._field(self._plane))])
        self._viewer.layers.selection.active = self.layer
        self.layer.selected_label = MASK
        self.layer.mode = mode
        self._draw()

    @property
    def _width(self) -> int:
        box = self._least(self._plane)
        return max(1, round(max(box.shape) / LINES_PER_SIDE))

    def _least(self, plane: Plane, field: tuple[float, float, float, float] | None = None) -> BoundingBox:
        """The whole plane; of a huge one a box of a tile's size, in the middle of a field."""
        rows, cols = self._grid.sides(plane)
        if max(rows, cols) <= self._tiling.large:
            return BoundingBox(0, 0, rows, cols)
        field = field or (0, 0, rows, cols)
        spans = []
        for low, high, length in ((field[0], field[2], rows), (field[1], field[3], cols)):
            side = min(self._tiling.side, length)
            first = min(max(0, round((low + high - side) / 2)), length - side)
            spans.append((first, first + side))
        return BoundingBox(spans[0][0], spans[1][0], spans[0][1], spans[1][1])

    def _cover(self, boxes: list[BoundingBox]) -> None:
        """Lay the layer out so that it covers these boxes of the plane, which is huge."""
        box = boxes[0].union(*boxes[1:])
        self._box = box.union(self._least(self._plane, box))
        self._move()

    @property
    def _parts(self) -> list[Patch]:
        """All that is to be seen."""
        parts = (self._mask, *self._others, self._outline, self._stroke, self._cross)
        return [part for part in parts if part is not None]

    def _draw(self) -> None:
        """Bring the layer to what is to be seen; where that is nothing, it need not move."""
        self._ensure()
        parts = self._parts
        if not self._lies and (parts or self._brushing):
            self._box = self._least(self._plane)
            self._move()
        if not all(self._box.contains(part.box) for part in parts):
            self._cover([part.box for part in parts])
        self._fill(bool(parts))

    def _fill(self, seen: bool) -> None:
        shown, wanted = self._shown(), self._composed() if seen else None
        box = BoundingBox.of(shown != (0 if wanted is None else wanted))
        if not box.is_empty:
            shown[box.slices] = 0 if wanted is None else wanted[box.slices]
            self._redraw(box)

    def _leave(self) -> None:
        """Empty the layer when another plane comes into view."""
        dims = self._viewer.dims
        if dims.ndisplay == 2 and self._parts and self._grid.plane(dims) != self._plane:
            self._fill(False)

    def _composed(self) -> np.ndarray:
        """What is to be seen, uint8, of the size of the layer."""
        pixels = np.zeros(self._box.shape, np.uint8)
        if self._mask is not None:
            pixels = self._mask.shown_in(self._box).view(np.uint8)
        for other in self._others:
            pixels[other.shown_in(self._box)] = CONTOUR
        if self._outline is not None:
            pixels[self._outline.shown_in(self._box)] = CONTOUR
        if self._stroke is not None:
            stroke = self._stroke.shown_in(self._box)
            np.copyto(pixels, stroke, where=stroke > 0)
        if self._cross is not None:
            pixels[self._cross.shown_in(self._box)] = CONTOUR
        return pixels

    def _shown(self) -> np.ndarray:
        """The layer's pixels as (rows, cols), to be read and written."""
        pixels: np.ndarray = self.layer.data.reshape(self._box.shape)
        return pixels

    def _redraw(self, box: BoundingBox) -> None:
        if self._viewer.dims.ndisplay == 3:
            self.layer.refresh()
            return
        part = [slice(0, 1)] * self._grid.ndim
        for axis, side in zip(self._at.axes, box.slices, strict=True):
            part[self._grid.axes[axis]] = side
        redraw(self.layer, tuple(part))

    @property
    def _lies(self) -> bool:
        """Whether the layer is laid out for the plane."""
        if self._viewer.dims.ndisplay == 3:
            return self._at == self._plane
        return self._at.axes == self._plane.axes

    def _move(self) -> None:
        """Lay the layer out, empty, for the plane to be shown."""
        self._at = self._plane
        shape, place = self._slab()
        if shape == self.layer.data.shape:
            self.layer.data[...] = 0
        else:
            mode = self.layer.mode
            self.layer.data = np.zeros(shape, np.uint8)
            # napari's own steps are of another shape now, and this makes it forget them.
            self.layer.editable = False
            self.layer.editable = True
            self.layer.mode = mode
        self._lay(place)

    def _follow(self) -> None:
        """Stay on the plane where the image has moved, or the display is 3-D now, or no longer."""
        if self._at.axes == self._plane.axes:
            self._at = self._plane
        self._lay(self._slab()[1])

    def _slab(self) -> tuple[tuple[int, ...], Place]:
        return self._grid.slab(self._at, flat=self._viewer.dims.ndisplay == 2, box=self._box)

    def _lay(self, place: Place) -> None:
        for name, value in place.items():
            if not np.array_equal(np.asarray(getattr(self.layer, name)), value):
                setattr(self.layer, name, value)

    def _ensure(self) -> None:
        """Put the layer into the viewer, also when it was removed."""
        if self._on_paint is not None and self.layer not in self._viewer.layers:
            add_quietly(self._viewer, self.layer)

    @property
    def _brushing(self) -> bool:
        return str(self.layer.mode) != "pan_zoom"

    def _painted(self, event: Any) -> None:
        """Brush and eraser change the mask; napari reports some strokes before it writes them."""
        mask = np.zeros(self.layer.data.shape, np.bool_)
        if self._mask is not None:
            mask[...] = self._mask.shown_in(self._box).reshape(mask.shape)
        for atom in event.value:
            part = mask[atom.slice_key]
            part[... if atom.mask is None else atom.mask] = atom.new_value != 0
        self._mask = Patch(self._box.corner, mask.reshape(self._box.shape))
        if self._on_paint is not None:
            self._on_paint(self._plane, Patch(self._box.corner, self._mask.pixels.copy()))

    def _moves(self) -> list[Any]:
        """The events after which the layer no longer lies where it should."""
        return [*self._grid.place_events, self._viewer.dims.events.ndisplay]

    def _scrolls(self) -> tuple[Any, Any]:
        return self._viewer.dims.events.point, self._viewer.dims.events.order


def _patch(mask: Patch | np.ndarray) -> Patch:
    """A mask of the whole plane as a part of it; copied, because it may be painted on."""
    if isinstance(mask, Patch):
        return Patch(mask.corner, mask.pixels.astype(np.bool_))
    return Patch((0, 0), np.array(mask, dtype=np.bool_))


def _closed(points: np.ndarray, kind: str) -> np.ndarray:
    """The line to draw: as it is, or back to its beginning, or the box around it."""
    if kind == "box":
        (top, left), (bottom, right) = points.min(axis=0), points.max(axis=0)
        points = np.array([(top, left), (top, right), (bottom, right), (bottom, left)])
    return points if kind == "scribble" else np.concatenate([points, points[:1]])


def edge_of(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask within `width` steps of what is not in it; outside the plane counts as in it."""
    box = BoundingBox.of(mask)
    edge = np.zeros_like(mask)
    if not box.is_empty:
        from scipy import ndimage  # a quarter of a second, which a window has not when it opens

        around = box.grown(1).clipped(mask.shape).slices
        near = ndimage.binary_dilation(~mask[around], iterations=width)
        edge[around] = mask[around] & near
    return edge
