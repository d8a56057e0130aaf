"""What the model would say, before it is accepted: one plane of pixels, for the plane in view.

It is drawn into in place, and only the rectangle that changed is drawn anew: a mask of a 1024 x 1024 plane is
on its way to the screen in a few milliseconds. In 2-D display the layer shows at every plane, because moving
it would make napari slice all layers again; what is seen is taken away when the plane changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from napari.layers import Labels
from napari.utils.colormaps import DirectLabelColormap

from napari_lowlat_seg.answers import bounds, inside
from napari_lowlat_seg.frame import Points
from napari_lowlat_seg.plugin.grid import Grid, Place
from napari_lowlat_seg.plugin.label_layer import redraw
from napari_lowlat_seg.plugin.layer_list import add_quietly
from napari_lowlat_seg.plugin.prompt_rows import NEGATIVE_COLOR, POSITIVE_COLOR
from napari_lowlat_seg.raster import swept
from napari_lowlat_seg.volume import Plane

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
"""A stroke or contour is drawn this many times thinner than the plane's longer side."""

OnPaint = Callable[[Plane, np.ndarray], None]


class Preview:
    """The mask of the object in hand, a stroke under way and the outline under a hovering mouse.

    Parameters
    ----------
    viewer
        Gets the layer, on top, when attached.
    grid
        Where the image lies.

    Attributes
    ----------
    layer
        A Labels layer of `MASK`, `POSITIVE`, `NEGATIVE` and `CONTOUR`, locked against deletion by hand.
    """

    def __init__(self, viewer: Any, grid: Grid) -> None:
        self._viewer, self._grid = viewer, grid
        self._plane = grid.plane(viewer.dims) or Plane((*(0 for _ in grid.axes[2:]), None, None))
        self._at = self._plane  # what the layer was laid out for: it stays behind while nothing is to be seen
        self._mask: np.ndarray | None = None
        self._outline: np.ndarray | None = None
        self._stroke: np.ndarray | None = None
        self._on_paint: OnPaint | None = None
        shape, place = grid.slab(self._plane)
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

    def show(self, plane: Plane, mask: np.ndarray | None) -> None:
        """Show this (rows, cols) bool mask of the plane, or that it has none.

        On another plane than before, a stroke under way and a contour are gone.
        """
        if plane != self._plane:
            self._outline = self._stroke = None
        self._plane = plane
        self._mask = None if mask is None else np.array(mask, dtype=np.bool_)
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
            self._stroke = np.zeros(self._grid.sides(self._plane), np.uint8)
            where = swept(np.round(ends).astype(np.int64), self._width - 0.5, self._stroke.shape)
            self._stroke[where] = POSITIVE if positive else NEGATIVE
        self._draw()

    def contour(self, mask: np.ndarray | None) -> None:
        """Outline this (rows, cols) bool mask on the plane shown last; None takes the outline away."""
        if mask is None and self._outline is None:
            return
        self._outline = None if mask is None else _edge(np.asarray(mask, dtype=np.bool_), self._width)
        self._draw()

    def clear(self) -> None:
        """Show nothing."""
        self._mask = self._outline = self._stroke = None
        self._draw()

    def brush(self, *, erase: bool) -> None:
        """Hand the user napari's brush or eraser, for the mask."""
        self._outline = self._stroke = None
        self._viewer.layers.selection.active = self.layer
        self.layer.selected_label = MASK
        self.layer.mode = "erase" if erase else "paint"
        self._draw()

    @property
    def _width(self) -> int:
        return max(1, round(max(self._grid.sides(self._plane)) / LINES_PER_SIDE))

    def _draw(self) -> None:
        """Bring the layer to what is to be seen; where that is nothing, it need not move."""
        self._ensure()
        wanted = self._wanted()
        if not self._lies and (wanted is not None or self._brushing):
            self._move()
        self._fill(wanted)

    def _fill(self, wanted: np.ndarray | None) -> None:
        shown = self._shown()
        box = bounds(shown != (0 if wanted is None else wanted))
        if box != (0, 0, 0, 0):
            shown[inside(box)] = 0 if wanted is None else wanted[inside(box)]
            self._redraw(box)

    def _leave(self) -> None:
        """Take away what belongs to another plane than the one in view now."""
        dims, seen = self._viewer.dims, (self._mask, self._outline, self._stroke)
        if (
            dims.ndisplay == 2
            and any(part is not None for part in seen)
            and self._grid.plane(dims) != self._plane
        ):
            self._fill(None)

    def _wanted(self) -> np.ndarray | None:
        """The labels of the plane, uint8 (rows, cols); None for none."""
        if self._outline is None and self._stroke is None:
            return None if self._mask is None else self._mask.view(np.uint8)
        wanted = np.zeros(self._grid.sides(self._plane), np.uint8)
        if self._mask is not None:
            wanted[...] = self._mask
        if self._outline is not None:
            wanted[self._outline] = CONTOUR
        if self._stroke is not None:
            np.copyto(wanted, self._stroke, where=self._stroke > 0)
        return wanted

    def _shown(self) -> np.ndarray:
        """The layer's pixels as (rows, cols), to be read and written."""
        pixels: np.ndarray = self.layer.data.reshape(self._grid.sides(self._at))
        return pixels

    def _redraw(self, box: tuple[int, int, int, int]) -> None:
        if self._viewer.dims.ndisplay == 3:
            self.layer.refresh()
            return
        part = [slice(0, 1)] * self._grid.ndim
        for axis, side in zip(self._at.axes, inside(box), strict=True):
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
        return self._grid.slab(self._at, flat=self._viewer.dims.ndisplay == 2)

    def _lay(self, place: Place) -> None:
        for name, value in place.items():
            if not np.array_equal(np.asarray(getattr(self.layer, name)), value):
                setattr(self.layer, name, value)

    def _ensure(self) -> None:
        """Put the layer into the viewer, also when somebody has taken it out."""
        if self._on_paint is not None and self.layer not in self._viewer.layers:
            add_quietly(self._viewer, self.layer)

    @property
    def _brushing(self) -> bool:
        return str(self.layer.mode) != "pan_zoom"

    def _painted(self, event: Any) -> None:
        """Brush and eraser change the mask; napari tells of some strokes before it writes them."""
        mask = np.zeros(self.layer.data.shape, np.bool_)
        if self._mask is not None:
            mask[...] = self._mask.reshape(mask.shape)
        for atom in event.value:
            part = mask[atom.slice_key]
            part[... if atom.mask is None else atom.mask] = atom.new_value != 0
        self._mask = mask.reshape(self._grid.sides(self._at))
        if self._on_paint is not None:
            self._on_paint(self._plane, self._mask.copy())

    def _moves(self) -> list[Any]:
        """The events after which the layer no longer lies where it should."""
        return [*self._grid.place_events, self._viewer.dims.events.ndisplay]

    def _scrolls(self) -> tuple[Any, Any]:
        return self._viewer.dims.events.point, self._viewer.dims.events.order


def _closed(points: np.ndarray, kind: str) -> np.ndarray:
    """The line to draw: as it is, or back to its beginning, or the box around it."""
    if kind == "box":
        (top, left), (bottom, right) = points.min(axis=0), points.max(axis=0)
        points = np.array([(top, left), (top, right), (bottom, right), (bottom, left)])
    return points if kind == "scribble" else np.concatenate([points, points[:1]])


def _edge(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask within `width` steps of what is not in it; outside the plane counts as in it."""
    box = bounds(mask)
    edge = np.zeros_like(mask)
    if box != (0, 0, 0, 0):
        from scipy import ndimage  # a quarter of a second, which a window has not when it opens

        around = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in inside(box))
        near = ndimage.binary_dilation(~mask[around], iterations=width)
        edge[around] = mask[around] & near
    return edge
