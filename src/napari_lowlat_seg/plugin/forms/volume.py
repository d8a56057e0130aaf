"""The part of the widget for volumes: how far an object is propagated, and how certain the model is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from qtpy.QtCore import QSignalBlocker, Signal
from qtpy.QtWidgets import QFormLayout, QGridLayout, QHBoxLayout, QVBoxLayout, QWidget

from napari_lowlat_seg.plugin.controller.view_state import StackState
from napari_lowlat_seg.plugin.forms.confidence_strip import Strip
from napari_lowlat_seg.plugin.forms.controls import Choice, Chooser, action_button
from napari_lowlat_seg.plugin.forms.details import Number

BUTTONS = {
    "carry": "Propagate",
    "interpolate": "Interpolate",
    "next_anchor": "Next prompted plane",
    "worst_plane": "Least certain plane",
    "all_seeds": "All seeds",
}


class VolumeForm(QWidget):
    """The current object along the planes: where it is, how certain the model is, and how to propagate it."""

    pressed = Signal(str)
    """The name of an action."""

    changed = Signal(str, object)
    """"range", "direction" or "points", and its new value."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: StackState | None = None
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        self.strip = Strip()
        column.addWidget(self.strip)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self._first = Number("First plane", "Objects are not propagated to planes before this one.", 0, 0)
        self._last = Number("Last plane", "Objects are not propagated to planes after this one.", 0, 0)
        ends = QWidget()
        row = QHBoxLayout(ends)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._first)
        row.addWidget(self._last)
        for number in (self._first, self._last):
            number.valueChanged.connect(
                lambda _value: self.changed.emit("range", (int(self._first.value()), int(self._last.value())))
            )
        self.direction = Choice(
            "Direction",
            "Which way from the planes with prompts the object is propagated",
            [("Both ways", "both"), ("Forward", "forward"), ("Backward", "backward")],
        )
        self.direction.chosen.connect(lambda direction: self.changed.emit("direction", direction))
        form.addRow("Planes", ends)
        form.addRow(self.direction)
        column.addLayout(form)
        grid = QGridLayout()
        self.buttons = {
            name: action_button(text, partial(self.pressed.emit, name)) for name, text in BUTTONS.items()
        }
        *beside, all_seeds = self.buttons.values()
        for index, button in enumerate(beside):
            grid.addWidget(button, index // 2, index % 2)
        column.addLayout(grid)
        self.seeds = Chooser("Seeds", "A Points layer with one point in each object.")
        self.seeds.setPlaceholderText("no Points layer")
        self.seeds.chosen.connect(lambda layer: self.changed.emit("points", layer))
        row = QHBoxLayout()
        row.addWidget(self.seeds, 1)
        row.addWidget(all_seeds)
        column.addLayout(row)

    def show_stack(self, stack: StackState) -> None:
        """Show this, without emitting anything; what is shown already is not touched."""
        before, self._shown = self._shown, stack
        if before is None or (before.count, before.range) != (stack.count, stack.range):
            for number, value in zip((self._first, self._last), stack.range, strict=True):
                with QSignalBlocker(number):
                    number.setRange(0, max(0, stack.count - 1))
                    number.setValue(value)
        self.direction.show_value(stack.direction)
        self.strip.show_marks(stack.count, stack.range, stack.marks)
        self.strip.show_here(stack.position)
        self.setEnabled(stack.count > 0)
        self.setVisible(stack.volume)

    def show_points(self, points: Iterable[tuple[str, Any]]) -> None:
        """Offer the user's Points layers; the last one is chosen unless another one was."""
        named = list(points)
        chosen, layers = self.seeds.value(), [layer for _, layer in named]
        self.seeds.offer(named, chosen if chosen in layers else next(reversed(layers), None))
