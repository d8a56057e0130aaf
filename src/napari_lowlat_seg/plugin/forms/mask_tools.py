"""The part of the widget for the mask itself: brush and eraser, edits with a preview, limits."""

from __future__ import annotations

from functools import partial
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QFormLayout, QHBoxLayout, QPushButton, QWidget

from napari_lowlat_seg.annotation.limits import Limits
from napari_lowlat_seg.annotation.mask_edits import MaskEdit
from napari_lowlat_seg.plugin.controller.view_state import Settings
from napari_lowlat_seg.plugin.forms.controls import Choice, KeyButton, control, described, show
from napari_lowlat_seg.plugin.settings import SETTING

MODES = {"click": "prompt_tool", "brush": "brush", "eraser": "eraser"}
"""What the mouse does, and the action that changes to it."""


class ModeRow(Choice):
    """What the mouse does: prompts, brush or eraser; none is down while another layer has the mouse."""

    def __init__(self) -> None:
        super().__init__(
            "Mouse",
            "What the mouse does",
            [("Prompts", "click"), ("Brush", "brush"), ("Eraser", "eraser")],
        )


class MaskToolsForm(QWidget):
    """Edits of the current object's mask, and what objects are limited to."""

    previewed = Signal(object)
    """The `MaskEdit` to outline; None for none."""

    applied = Signal(object)
    """The `MaskEdit` to do."""

    setting = Signal(str, object)
    """A field of `Settings` and its new value."""

    pressed = Signal(str)
    """The name of an action."""

    def __init__(self) -> None:
        super().__init__()
        names = ("edit", "amount", "neighbours", "limited", "lowest", "highest")
        self.controls: dict[str, Any] = {name: control(SETTING[name]) for name in names}
        self.where = Choice(
            "Extent",
            "Whether the mask is edited on the plane in view, or in 3-D on all its planes along this axis",
            [("This plane", False), ("3-D", True)],
        )
        self.where.show_value(False)
        self.preview = described(
            QPushButton("Preview"), "Preview the edit", "Outlines what the edit makes of the mask."
        )
        self.preview.setCheckable(True)
        self.apply = described(QPushButton("Apply"), "Apply the edit", "Edits the mask; Undo takes it back.")
        self.area = KeyButton("Area", partial(self.pressed.emit, "limit_area"))
        described(
            self.area,
            "Area",
            "Keeps objects to the box or lasso that was drawn last, which stops being a prompt; without one "
            "it lifts that.",
        )
        self._limits = Limits()
        self._extent = False
        self._lay_out()
        self._connect()
        self._follow()

    @property
    def edit(self) -> MaskEdit:
        """What the controls say."""
        controls = self.controls
        return MaskEdit(controls["edit"].value, round(controls["amount"].value, 1), self._extent)

    def end_preview(self) -> None:
        """Show that nothing is previewed."""
        self.preview.setChecked(False)

    def show_settings(self, settings: Settings) -> None:
        """Show these, without emitting anything."""
        self._limits = limits = settings.limits
        span = limits.intensities
        show(self.controls["neighbours"], limits.neighbours)
        show(self.controls["limited"], span is not None)
        for name, value in zip(("lowest", "highest"), span or (), strict=False):
            show(self.controls[name], value)
        for name in ("lowest", "highest"):
            self.controls[name].enabled = span is not None

    def offer_range(self, low: float, high: float) -> None:
        """Show where the intensities of the image lie, as long as objects are not limited to a range."""
        if self._limits.intensities is None:
            for name, value in (("lowest", low), ("highest", high)):
                show(self.controls[name], value)

    def _lay_out(self) -> None:
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Edit", self.controls["edit"].native)
        form.addRow("By", self.controls["amount"].native)
        form.addRow(self.where)
        row = QHBoxLayout()
        for button in (self.preview, self.apply):
            button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
            row.addWidget(button)
        form.addRow(row)
        for name in ("neighbours", "limited"):
            form.addRow(self.controls[name].native)
        form.addRow("Lowest", self.controls["lowest"].native)
        form.addRow("Highest", self.controls["highest"].native)
        form.addRow(self.area)

    def _connect(self) -> None:
        for name in ("edit", "amount"):
            self.controls[name].changed.connect(lambda _value: self._follow())
        self.where.changed.connect(self._turn)
        self.preview.toggled.connect(lambda _on: self._follow())
        self.apply.clicked.connect(lambda _checked: self._apply())
        for name in ("neighbours", "limited", "lowest", "highest"):
            self.controls[name].changed.connect(lambda _value: self._limit())

    def _turn(self, whole: bool) -> None:
        self._extent = whole
        self._follow()

    def _apply(self) -> None:
        edit = self.edit
        self.preview.setChecked(False)
        self.applied.emit(edit)

    def _follow(self) -> None:
        """Preview what the controls say now, if that is wanted."""
        kind = self.controls["edit"].value
        self.controls["amount"].enabled = kind not in ("fill_holes", "largest", "between")
        self.where.setEnabled(kind != "between")
        self.previewed.emit(self.edit if self.preview.isChecked() else None)

    def _limit(self) -> None:
        values = {name: self.controls[name].value for name in ("neighbours", "limited", "lowest", "highest")}
        low, high = sorted((float(values["lowest"]), float(values["highest"])))
        span = (low, high) if values["limited"] else None
        self.setting.emit("limits", Limits(values["neighbours"], span, self._limits.area, self._limits.axes))
