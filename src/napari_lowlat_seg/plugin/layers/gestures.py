"""Dragging and resting the mouse on the prompt layers: strokes while they are drawn, and hovering.

In ADD mode of the Points layer a click is napari's own; a drag draws with the current tool. On the Shapes
layer napari draws, and strokes of its free-hand tools are only reported. A stroke ends in exactly one call
with final=True, also when it is given up because the layer, its mode or the plane has changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.layers.drawn_shapes import prompts_of
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.layers.prompt_layers import PromptLayers

DRAG_PIXELS = 5.0
"""Canvas pixels; napari takes less for a click."""

DWELL_MS = 150
"""How long the mouse rests before it hovers."""

STEP_PIXELS = 0.2
"""Plane pixels between two points of a stroke."""

SHAPES = {"scribble": "path", "box": "rectangle", "lasso": "polygon"}
FREEHAND = {"add_path": "scribble", "add_polygon_lasso": "lasso"}


class OnStroke(Protocol):
    """Called at every move of the mouse during a stroke, and once at its end.

    Parameters
    ----------
    kind
        "scribble", "box" or "lasso".
    plane
        Where it is drawn.
    points
        float (N, 2), (row, col): the line or outline so far, or two corners of a box. Empty at the end of a
        stroke that was given up.
    prompts
        What it stands for now; none while all of it is outside the plane or too small.
    final
        Whether the stroke has ended; its prompts come as an edit of their own, after this.
    """

    def __call__(
        self, kind: str, plane: Plane, points: np.ndarray, prompts: Sequence[Prompt], final: bool
    ) -> None: ...


@dataclass(eq=False)
class Stroke:
    """A line under way."""

    kind: str
    plane: Plane
    positive: bool
    points: list[tuple[float, float]] = field(default_factory=list)

    def drawn(self) -> np.ndarray:
        """float (N, 2), (row, col)."""
        points = np.array(self.points, np.float64).reshape(-1, 2)
        return points[[0, -1]] if self.kind == "box" else points

    def prompts(self, shape: tuple[int, int]) -> tuple[Prompt, ...]:
        """What it stands for on a plane of (rows, cols)."""
        points = self.drawn()
        if self.kind == "box":
            (top, left), (bottom, right) = points
            points = np.array([(top, left), (top, right), (bottom, right), (bottom, left)])
        return prompts_of(SHAPES[self.kind], points, self.positive, shape)


class Gestures:
    """What the mouse does on the prompt layers.

    Parameters
    ----------
    viewer
        A napari viewer.
    grid
        Where the image lies.
    layers
        Attached; a finished stroke is added to it.
    on_stroke
        See `OnStroke`.
    on_hover
        Called with the plane and (row, col) when the mouse rests on the Points layer, and with None when it
        moves on.
    """

    changed = Signal()
    """`tool` or `hover` is another one."""

    pressed = Signal(object, object)
    """A plane, and the prompts that a click would give if the left button were released now."""

    def __init__(
        self,
        viewer: Any,
        grid: Grid,
        layers: PromptLayers,
        on_stroke: OnStroke,
        on_hover: Callable[[Plane, tuple[float, float] | None], None],
    ) -> None:
        self.viewer = viewer
        self.grid = grid
        self.layers = layers
        self.on_stroke = on_stroke
        self.on_hover = on_hover
        self._tool = "scribble"
        self._hover = False
        self._resting: tuple[Plane, tuple[float, float]] | None = None
        self._hovered: Plane | None = None
        self._timer = QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(DWELL_MS)
        self._timer.timeout.connect(self._rested)
        self._stroke: Stroke | None = None
        self._points: Any = None
        self._shapes: Any = None
        self._attached = False

    def attach(self) -> None:
        """Listen to the mouse on the prompt layers, also on those that replace them."""
        if self._attached:
            return
        self._attached = True
        self.layers.replaced.connect(self._bind)
        self.layers.drawn.connect(self._finish)
        self.viewer.layers.selection.events.active.connect(self._let_go)
        self._bind()

    def detach(self) -> None:
        """Give up what is under way and stop listening."""
        if not self._attached:
            return
        self._attached = False
        self.layers.replaced.disconnect(self._bind)
        self.layers.drawn.disconnect(self._finish)
        self.viewer.layers.selection.events.active.disconnect(self._let_go)
        self._unbind()

    @property
    def tool(self) -> str:
        """What dragging draws: "scribble", "box" or "lasso"; ValueError for anything else."""
        return self._tool

    @tool.setter
    def tool(self, tool: str) -> None:
        if tool not in SHAPES:
            raise ValueError(f"the tool must be one of {', '.join(SHAPES)}; got {tool!r}")
        self._tool = tool
        self.changed.emit()

    def next_tool(self) -> None:
        """Change to the next of scribble, box and lasso."""
        tools = tuple(SHAPES)
        self.tool = tools[(tools.index(self._tool) + 1) % len(tools)]

    @property
    def hover(self) -> bool:
        """Whether `on_hover` is called."""
        return self._hover

    @hover.setter
    def hover(self, hover: bool) -> None:
        self._hover = bool(hover)
        if not hover:
            self._still()
        self.changed.emit()

    def toggle_hover(self) -> None:
        """Outline the object under the resting mouse, or stop doing so."""
        self.hover = not self._hover

    # Which layers

    def _bind(self) -> None:
        self._unbind()
        self._points, self._shapes = self.layers.present
        if self._points is not None:
            self._points.mouse_move_callbacks.append(self._move)
            self._points.events.mode.connect(self._on_mode)
        if self._shapes is not None:
            self._shapes.mouse_move_callbacks.append(self._draw_on)
            self._shapes.events.mode.connect(self._on_mode)
        self._come_last()

    def _unbind(self) -> None:
        self._let_go()
        for layer, drag, move in (
            (self._points, self._drag, self._move),
            (self._shapes, self._draw, self._draw_on),
        ):
            if layer is not None:
                layer.mouse_drag_callbacks.remove(drag)
                layer.mouse_move_callbacks.remove(move)
                layer.events.mode.disconnect(self._on_mode)
        self._points = self._shapes = None

    def _come_last(self) -> None:
        """Put our callbacks after napari's, to see what it has done; it puts that of a new mode last."""
        for layer, drag in ((self._points, self._drag), (self._shapes, self._draw)):
            if layer is not None:
                layer.mouse_drag_callbacks[:] = [
                    *(callback for callback in layer.mouse_drag_callbacks if callback != drag),
                    drag,
                ]

    def _on_mode(self) -> None:
        self._give_up()
        self._still()
        self._come_last()

    def _let_go(self) -> None:
        """The mouse now speaks to another layer: its release will not come here."""
        self._give_up()
        self._still()
        self.layers.stroking = self.layers.opposite = False
        self.layers.pressed = None
        if self._points is not None and self._points.mode == "add":
            self._points.mouse_pan = True

    # Our tools with the keyboard, whose cursor is the mouse

    @property
    def drawing(self) -> bool:
        """Whether a stroke is under way."""
        return self._stroke is not None

    def begin(self, plane: Plane, at: tuple[float, float]) -> None:
        """Begin a stroke of the current tool and sign at (row, col)."""
        self._let_go()
        self._stroke = Stroke(self._tool, plane, self.layers.positive, [at])
        self._report(self._stroke)

    def extend(self, plane: Plane, at: tuple[float, float]) -> None:
        """Go on to (row, col); on another plane the stroke is given up."""
        stroke = self._stroke
        if stroke is not None and stroke.plane != plane:
            self._give_up()
        elif stroke is not None and at != stroke.points[-1]:
            stroke.points.append(at)
            self._report(stroke)

    def finish(self) -> None:
        """End the stroke; what it stands for becomes a prompt."""
        stroke = self._stroke
        if stroke is not None:
            self._finish()
            self.layers.add(stroke.plane, *stroke.prompts(self.grid.sides(stroke.plane)))

    def give_up(self) -> bool:
        """End the stroke without a prompt; False if there is none."""
        drawing = self.drawing
        self._give_up()
        return drawing

    # Our tools, on the Points layer

    def _drag(self, layer: Any, event: Any) -> Iterator[None]:
        """From the press of a button to its release; napari resumes this at every event between."""
        self._let_go()
        plane, at = self._place(event)
        if layer.mode != "add" or plane is None:
            return
        self.layers.opposite = "Control" in event.modifiers
        # napari takes a click of any button for a point, and the right one also zooms.
        left = event.button == 1
        self.layers.stroking, self.layers.pressed = not left, plane if left else None
        layer.mouse_pan = not left
        kind = "box" if "Shift" in event.modifiers else self._tool
        stroke = Stroke(kind, plane, self.layers.next_positive, [at])
        pressed = np.array(event.pos)
        if left:
            self._press(stroke, at)
        yield
        while event.type == "mouse_move" and event.is_dragging:
            if not self.layers.stroking and np.linalg.norm(np.array(event.pos) - pressed) >= DRAG_PIXELS:
                self._stroke, self.layers.stroking = stroke, True
            if self._stroke is stroke:
                self._go_on(event)
            elif left:
                self._press(stroke, self._place(event)[1])
            yield
        # The canvas leaves out moves that come within 10 ms: the last one may be known only from the release.
        if event.type == "mouse_release":
            moved = left and not self.layers.stroking and self.grid.plane(self.viewer.dims) != plane
            if self._extended(stroke, event):
                self._finish()
                self.layers.add(plane, *stroke.prompts(self.grid.sides(plane)))
            elif moved:  # a click that the layers have not taken, on the plane where it was begun
                self.layers.add(plane, *self._clicked(stroke, at))
        self._let_go()

    def _press(self, stroke: Stroke, at: tuple[float, float]) -> None:
        """Report what napari would make of a click here; it may become a stroke yet."""
        if prompts := self._clicked(stroke, at):
            self.pressed.emit(stroke.plane, prompts)

    def _clicked(self, stroke: Stroke, at: tuple[float, float]) -> tuple[Prompt, ...]:
        return prompts_of("point", np.array([at]), stroke.positive, self.grid.sides(stroke.plane))

    def _go_on(self, event: Any) -> None:
        """Add a point to the stroke under way, and report it."""
        stroke = self._stroke
        if stroke is not None and self._extended(stroke, event):
            self._report(stroke)

    def _report(self, stroke: Stroke) -> None:
        prompts = stroke.prompts(self.grid.sides(stroke.plane))
        self.on_stroke(stroke.kind, stroke.plane, stroke.drawn(), prompts, False)

    def _extended(self, stroke: Stroke, event: Any) -> bool:
        """Add the mouse's position; False if the stroke is over, which it is when the plane has changed."""
        plane, at = self._place(event)
        if self._stroke is stroke and plane != stroke.plane:
            self._give_up()
        if self._stroke is not stroke:
            return False
        if np.hypot(at[0] - stroke.points[-1][0], at[1] - stroke.points[-1][1]) >= STEP_PIXELS:
            stroke.points.append(at)
        return True

    def _finish(self) -> None:
        stroke, self._stroke = self._stroke, None
        if stroke is not None:
            prompts = stroke.prompts(self.grid.sides(stroke.plane))
            self.on_stroke(stroke.kind, stroke.plane, stroke.drawn(), prompts, True)

    def _give_up(self) -> None:
        stroke, self._stroke = self._stroke, None
        if stroke is not None:
            self.on_stroke(stroke.kind, stroke.plane, np.empty((0, 2)), (), True)

    def _place(self, event: Any) -> tuple[Plane | None, tuple[float, float]]:
        """The plane under the mouse, if any, and (row, col) on it."""
        plane = self.grid.plane(self.viewer.dims)
        if plane is None:
            return None, (0.0, 0.0)
        try:
            return plane, self.grid.to_plane(event.position, plane, self.viewer.dims)
        except ValueError:  # The plane is seen from its edge: there is nothing to draw on.
            return None, (0.0, 0.0)

    # napari's tools, on the Shapes layer

    def _draw(self, layer: Any, event: Any) -> Iterator[None]:
        """Follow the free-hand tools while the button is down."""
        self.layers.opposite = "Control" in event.modifiers
        plane, at = self._place(event)
        if layer.mode not in FREEHAND or plane is None or not self.layers.drawing or self._stroke is not None:
            return
        self._stroke = Stroke(FREEHAND[layer.mode], plane, self.layers.next_positive, [at])
        yield
        while event.type == "mouse_move":
            self._go_on(event)
            yield

    def _draw_on(self, layer: Any, event: Any) -> None:
        """Follow them when the button is up: a click begins the line, another ends it."""
        if self.layers.drawing and layer.mode in FREEHAND:
            self._go_on(event)

    # Hovering, on the Points layer

    def _move(self, layer: Any, event: Any) -> None:
        if not self._hover:
            return
        self._still()
        plane, at = self._place(event)
        if plane is not None and layer.mode == "add":
            self._resting = (plane, at)
            self._timer.start()

    def _rested(self) -> None:
        if self._resting is None or self.grid.plane(self.viewer.dims) != self._resting[0]:
            return
        self._hovered = self._resting[0]
        self.on_hover(*self._resting)

    def _still(self) -> None:
        """Forget where the mouse rests, and report that if hovering was reported."""
        self._timer.stop()
        hovered, self._hovered = self._hovered, None
        if hovered is not None:
            self.on_hover(hovered, None)
