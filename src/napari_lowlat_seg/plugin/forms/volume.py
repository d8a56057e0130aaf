"""The part of the widget for volumes: how far an object is propagated, and how certain the model is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from qtpy.QtCore import QEvent, QObject, QSignalBlocker, Qt, Signal
from qtpy.QtWidgets import QFormLayout, QHBoxLayout, QVBoxLayout, QWidget
from superqt import QLabeledRangeSlider

from napari_lowlat_seg.plugin.controller.view_state import StackState
from napari_lowlat_seg.plugin.forms.confidence_strip import Strip
from napari_lowlat_seg.plugin.forms.controls import (
    Choice,
    Chooser,
    KeyButton,
    described,
    let_wheel_scroll,
)

BUTTONS = {
    "carry": "Propagate",
    "interpolate": "Interpolate",
    "next_anchor": "Next plane with prompts",
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
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        self.strip = Strip()
        column.addWidget(self.strip)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.planes = PlaneRange()
        self.planes.changed.connect(partial(self.changed.emit, "range"))
        self.direction = Choice(
            "Direction",
            "Which way from the planes with prompts the object is propagated",
            [("Both ways", "both"), ("Forward", "forward"), ("Backward", "backward")],
        )
        self.direction.changed.connect(partial(self.changed.emit, "direction"))
        form.addRow("Planes", self.planes)
        form.addRow(self.direction)
        column.addLayout(form)
        self.buttons = {
            name: KeyButton(text, partial(self.pressed.emit, name)) for name, text in BUTTONS.items()
        }
        first, second, *others, all_seeds = self.buttons.values()
        row = QHBoxLayout()
        row.addWidget(first)
        row.addWidget(second)
        column.addLayout(row)
        for button in others:  # their words are too long for two in a row of a narrow dock
            column.addWidget(button)
        self.seeds = Chooser("Seeds", "A Points layer with one point in each object.")
        self.seeds.native.setPlaceholderText("no Points layer")
        self.seeds.changed.connect(lambda layer: self.changed.emit("points", layer))
        row = QHBoxLayout()
        row.addWidget(self.seeds.native, 1)
        row.addWidget(all_seeds)
        column.addLayout(row)

    def show_stack(self, stack: StackState) -> None:
        """Show this, without emitting anything."""
        self.planes.show_range(stack.count, stack.range)
        self.direction.show_value(stack.direction)
        self.strip.show_marks(stack.count, stack.range, stack.marks, stack.refused)
        self.strip.show_here(stack.position)
        self.setEnabled(stack.count > 0)
        self.setVisible(stack.volume)

    def show_points(self, points: Iterable[tuple[str, Any]]) -> None:
        """Offer the user's Points layers; the last one is chosen unless another one was."""
        named = list(points)
        chosen, layers = self.seeds.value, [layer for _, layer in named]
        self.seeds.offer(named, chosen if chosen in layers else next(reversed(layers), None))


class PlaneRange(QLabeledRangeSlider):
    """The first and the last plane: two handles, and two numbers beside them that can be typed.

    The handles are for the mouse only; the numbers are reached by the Tab key.
    """

    changed = Signal(object)
    """The first and the last plane that the user wants."""

    def __init__(self) -> None:
        super().__init__(Qt.Orientation.Horizontal)
        self.setHandleLabelPosition(self.LabelPosition.NoLabel)
        self.setEdgeLabelMode(self.EdgeLabelMode.LabelIsValue)
        for part in (self, *self.findChildren(QWidget)):
            described(part, "Planes", "The planes that objects are propagated to.")
            let_wheel_scroll(part)
        first, last = (self.layout().itemAt(index).widget() for index in (0, 2))  # beside the slider
        described(first, "First plane", "Objects are not propagated to planes before this one.")
        described(last, "Last plane", "Objects are not propagated to planes after this one.")
        for number in (first, last):
            number.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
            number.installEventFilter(self)
        self.valueChanged.connect(lambda planes: self.changed.emit(tuple(map(int, planes))))

    def eventFilter(self, number: QObject, event: QEvent) -> bool:
        """Make a number as wide as its digits in another font; superqt does so when it is shown only."""
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            number.setDecimals(number.decimals())
        return bool(super().eventFilter(number, event))

    def show_range(self, count: int, planes: tuple[int, int]) -> None:
        """Show these two of so many planes, without emitting anything."""
        with QSignalBlocker(self):
            self.setRange(0, max(0, count - 1))
            self.setValue(planes)
