"""The part of the widget for volumes: how far an object is carried, and how sure of it the model is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from qtpy.QtCore import QSignalBlocker
from qtpy.QtWidgets import QFormLayout, QGridLayout, QHBoxLayout, QVBoxLayout, QWidget

from napari_lowlat_seg.plugin.controller.propagation import DIRECTIONS
from napari_lowlat_seg.plugin.forms.confidence_strip import Strip
from napari_lowlat_seg.plugin.forms.controls import Choice, Chooser, action_button
from napari_lowlat_seg.plugin.forms.details import Number

BUTTONS = {
    "carry": "Propagate",
    "interpolate": "Interpolate",
    "next_anchor": "Next anchor",
    "worst_plane": "Worst plane",
    "all_seeds": "All seeds",
}


class VolumeForm(QWidget):
    """Shows where the object in hand is along the planes, and does what its user wants with it.

    Parameters
    ----------
    through
        Gives the `PropagationController` of the image in front; None without one.
    """

    def __init__(self, through: Callable[[], Any]) -> None:
        super().__init__()
        self._through = through
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        self.strip = Strip()
        self.strip.clicked.connect(lambda position: self._do("look_at", position))
        column.addWidget(self.strip)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self._first = Number("First plane", "Objects are not carried to planes before this one.", 0, 0)
        self._last = Number("Last plane", "Objects are not carried to planes behind this one.", 0, 0)
        ends = QWidget()
        row = QHBoxLayout(ends)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._first)
        row.addWidget(self._last)
        for number in (self._first, self._last):
            number.valueChanged.connect(
                lambda _value: self._set("range", (int(self._first.value()), int(self._last.value())))
            )
        self.direction = Choice(
            "Direction",
            "Which way from the planes with prompts the object is carried",
            [("↔ both", DIRECTIONS[0]), ("→ on", DIRECTIONS[1]), ("← back", DIRECTIONS[2])],
        )
        self.direction.chosen.connect(lambda way: self._set("direction", way))
        form.addRow("Planes", ends)
        form.addRow(self.direction)
        column.addLayout(form)
        grid = QGridLayout()
        self.buttons = {name: action_button(text, partial(self._do, name)) for name, text in BUTTONS.items()}
        *beside, all_seeds = self.buttons.values()
        for index, button in enumerate(beside):
            grid.addWidget(button, index // 2, index % 2)
        column.addLayout(grid)
        self.seeds = Chooser("Seeds", "A Points layer with one point in each object.")
        self.seeds.setPlaceholderText("no Points layer")
        self.seeds.chosen.connect(lambda layer: self._set("points", layer))
        row = QHBoxLayout()
        row.addWidget(self.seeds, 1)
        row.addWidget(all_seeds)
        column.addLayout(row)

    def refresh(self) -> None:
        """Reads everything that there is to show along the planes; nothing is told back."""
        through = self._through()
        if through is None:
            return
        way, ends = through.way, through.range
        for number, value in ((self._first, ends[0]), (self._last, ends[1])):
            with QSignalBlocker(number):
                number.setRange(0, max(0, len(way) - 1))
                number.setValue(value)
        self.direction.show_value(through.direction)
        self.strip.show_marks(len(way), ends, through.strip())
        self.strip.show_here(through.position)
        self.setEnabled(bool(way))
        self.setVisible(through.deep)

    def show_points(self, points: Iterable[tuple[str, Any]]) -> None:
        """The user's Points layers; the last one is chosen unless another one was."""
        named = list(points)
        chosen, layers = self.seeds.value(), [layer for _, layer in named]
        self.seeds.offer(named, chosen if chosen in layers else next(reversed(layers), None))
        self._set("points", self.seeds.value())

    def _do(self, verb: str, *given: Any) -> None:
        through = self._through()
        if through is not None:
            getattr(through, verb)(*given)

    def _set(self, name: str, value: Any) -> None:
        through = self._through()
        if through is not None:
            setattr(through, name, value)
