"""The folded part of the widget: everything that is not needed for every object."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from qtpy.QtCore import QSignalBlocker, Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QDoubleSpinBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QSlider,
    QWidget,
)

from napari_lowlat_seg.core.labels import Policy
from napari_lowlat_seg.core.masks import PostProcessing
from napari_lowlat_seg.plugin.controller.view_state import Settings, View
from napari_lowlat_seg.plugin.forms.controls import Choice, Chooser, described
from napari_lowlat_seg.plugin.forms.model import ModelForm

Named = Iterable[tuple[str, Any]]


class DetailsForm(QWidget):
    """Shows the settings of an image (`show_settings`) and emits what the user changes."""

    setting = Signal(str, object)
    """A field of `Settings` and its new value."""
    adopt = Signal(object, object)
    view = Signal(object)
    ahead = Signal(int)
    room = Signal(int, int)
    """MiB of memory and of disk for embeddings."""

    def __init__(self, model: ModelForm) -> None:
        super().__init__()
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self._object_rows(form)
        self._mask_rows(form)
        self._prompt_rows(form)
        self._view_rows(form)
        # In one form with what needs no image, so that all fields begin in one line.
        self.of_image = [form.itemAt(index).widget() for index in range(form.count())]
        form.addRow("Device", model.device)
        form.addRow("Runs on", model.found)
        form.addRow("Closer look", model.closer_look)
        self._embedding_rows(form)
        form.addRow(model.import_button)

    def show_settings(self, settings: Settings) -> None:
        """Show these, without emitting anything."""
        finish, policy = settings.finish, settings.policy
        _silently(self._label.setValue, self._label, settings.label)
        _silently(self._semantic.setChecked, self._semantic, settings.semantic)
        self._policy.offer(POLICIES, policy.kind)
        _silently(self._within.setValue, self._within, policy.within)
        self._within.setEnabled(policy.kind == "within")
        _silently(self._threshold.setValue, self._threshold, round(100 * finish.threshold))
        self._percent.setText(f"{finish.threshold:.2f}")
        _silently(self._smooth.setValue, self._smooth, finish.smooth)
        _silently(self._holes.setChecked, self._holes, finish.fill_holes)
        _silently(self._largest.setChecked, self._largest, finish.largest)
        _silently(self._hover.setChecked, self._hover, settings.hover)
        _silently(self._postpone.setChecked, self._postpone, settings.postpone)

    def show_layers(self, points: Named, shapes: Named, adopted: tuple[Any, Any]) -> None:
        """The user's own layers that prompts can be read from, and those that they are read from."""
        self._points.offer([("created by this widget", None), *points], adopted[0])
        self._shapes.offer([("created by this widget", None), *shapes], adopted[1])

    def show_view(self, layer: Any, view: View) -> None:
        """The levels and channels that an image layer has, and those in use."""
        self._view = view
        levels = [tuple(level.shape) for level in (layer.data if layer.multiscale else [layer.data])]
        self._level.offer([(f"{i}: {' × '.join(map(str, s))}", i) for i, s in enumerate(levels)], view.level)
        self._level.setEnabled(len(levels) > 1)
        shape = levels[0]
        axes = range(layer.ndim) if layer.ndim > 2 and not layer.rgb else ()
        named = [(f"{layer.axis_labels[axis]} ({shape[axis]})", axis) for axis in axes]
        self._axis.offer([("none", None), *named], view.channel_axis)
        self._axis.setEnabled(bool(named))
        self._channel.setEnabled(view.channel_axis is not None)
        _silently(
            self._channel.setMaximum,
            self._channel,
            0 if view.channel_axis is None else shape[view.channel_axis] - 1,
        )
        _silently(self._channel.setValue, self._channel, view.channel)
        self._intensities.show_value(view.intensities)

    def _object_rows(self, form: QFormLayout) -> None:
        self._label = Number("Label", "The label that accepting the object writes.", 1, 2**31 - 1)
        self._label.valueChanged.connect(lambda value: self.setting.emit("label", int(value)))
        self._semantic = _box("Same label for every object", "Semantic labels: new objects keep the label.")
        self._semantic.toggled.connect(lambda on: self.setting.emit("semantic", on))
        self._policy = Chooser("Existing labels", "What happens where the object lies on labels.")
        self._within = Number("Within label", "The label that the object may take pixels from.", 0, 2**31 - 1)
        self._policy.chosen.connect(lambda _kind: self._emit_policy())
        self._within.valueChanged.connect(lambda _value: self._emit_policy())
        form.addRow("Label", self._label)
        form.addRow(self._semantic)
        form.addRow("Existing labels", self._policy)
        form.addRow("Within label", self._within)

    def _mask_rows(self, form: QFormLayout) -> None:
        self._threshold = Slider("Threshold", "Pixels more probable than this belong to the object.", 1, 99)
        self._percent = described(QLabel(), "Threshold value", "The threshold as a probability.")
        self._smooth = Number("Smooth", "Pixels by which the outline is smoothed; 0 leaves it.", 0, 50, 0.5)
        self._smooth.setSuffix(" px")
        self._holes = _box("Fill holes", "Background that the object encloses belongs to it.")
        self._largest = _box("Largest part only", "Drops every part of the mask but the largest.")
        self._threshold.valueChanged.connect(lambda _value: self._emit_finish())
        self._smooth.valueChanged.connect(lambda _value: self._emit_finish())
        self._holes.toggled.connect(lambda _on: self._emit_finish())
        self._largest.toggled.connect(lambda _on: self._emit_finish())
        threshold = QWidget()
        row = QHBoxLayout(threshold)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._threshold, 1)
        row.addWidget(self._percent)
        form.addRow("Threshold", threshold)
        form.addRow("Smooth", self._smooth)
        form.addRow(self._holes)
        form.addRow(self._largest)

    def _prompt_rows(self, form: QFormLayout) -> None:
        self._hover = _box("Preview under the cursor", "Shows the contour that a click here would give.")
        self._postpone = _box("Postpone predictions", "Prompts wait until this is switched off again.")
        self._points = Chooser("Clicks layer", "A Points layer of your own whose points are read as clicks.")
        self._shapes = Chooser("Shapes layer", "A Shapes layer of your own whose shapes are read as prompts.")
        self._hover.toggled.connect(lambda on: self.setting.emit("hover", on))
        self._postpone.toggled.connect(lambda on: self.setting.emit("postpone", on))
        self._points.chosen.connect(lambda layer: self.adopt.emit(layer, self._shapes.value()))
        self._shapes.chosen.connect(lambda layer: self.adopt.emit(self._points.value(), layer))
        form.addRow(self._hover)
        form.addRow(self._postpone)
        form.addRow("Clicks layer", self._points)
        form.addRow("Shapes layer", self._shapes)

    def _view_rows(self, form: QFormLayout) -> None:
        self._view = View()
        self._level = Chooser("Level", "The level of a multiscale image that is segmented.")
        self._axis = Chooser("Channel axis", "The axis along which there are channels, not planes.")
        self._channel = Number("Channel", "The channel that the model sees.", 0, 0)
        self._intensities = Choice(
            "Intensities",
            "What the model sees as black and white: found in the data, or the contrast limits of the layer.",
            [("automatic", "automatic"), ("as displayed", "displayed")],
        )
        self._level.chosen.connect(lambda level: self._emit_view(level=level))
        self._axis.chosen.connect(lambda axis: self._emit_view(channel_axis=axis, channel=0))
        self._channel.valueChanged.connect(lambda channel: self._emit_view(channel=int(channel)))
        self._intensities.chosen.connect(lambda kind: self._emit_view(intensities=kind))
        form.addRow("Level", self._level)
        form.addRow("Channel axis", self._axis)
        form.addRow("Channel", self._channel)
        form.addRow("Intensities", self._intensities)

    def show_embeddings(self, ahead: int, memory: int, disk: int) -> None:
        """Planes ahead, and MiB of memory and of disk."""
        self._room = (memory, disk)
        for control, value in ((self._ahead, ahead), (self._memory, memory), (self._disk, disk)):
            _silently(control.setValue, control, value)

    def _embedding_rows(self, form: QFormLayout) -> None:
        self._ahead = Number(
            "Planes ahead", "Planes made ready ahead of the one in view, then behind it; 0 for none.", 0, 200
        )
        self._memory = Number("Memory", "Room for planes that are ready, in memory.", 64, 2**20)
        self._disk = Number(
            "Disk", "Room for planes that stay ready until the next time; copies of them are kept.", 0, 2**20
        )
        self._ahead.valueChanged.connect(lambda planes: self.ahead.emit(int(planes)))
        for control in (self._memory, self._disk):
            control.setSuffix(" MiB")
            control.setSingleStep(256)
            control.editingFinished.connect(self._emit_room)  # not with every step: the model is loaded anew
        form.addRow("Planes ahead", self._ahead)
        form.addRow("Memory", self._memory)
        form.addRow("Disk", self._disk)

    def _emit_room(self) -> None:
        room = (int(self._memory.value()), int(self._disk.value()))
        if room != self._room:
            self._room = room
            self.room.emit(*room)

    def _emit_policy(self) -> None:
        self.setting.emit("policy", Policy(self._policy.value(), int(self._within.value())))

    def _emit_finish(self) -> None:
        threshold = self._threshold.value() / 100
        finish = PostProcessing(
            threshold, self._smooth.value(), self._holes.isChecked(), self._largest.isChecked()
        )
        self.setting.emit("finish", finish)

    def _emit_view(self, **changes: Any) -> None:
        self.view.emit(replace(self._view, **changes))


POLICIES = (("keep them", "keep"), ("overwrite them", "overwrite"), ("only within one label", "within"))


class Number(QDoubleSpinBox):
    """A number to type or step; the wheel changes it only after a click into it."""

    def __init__(self, name: str, tip: str, low: int, high: int, step: float = 1) -> None:
        super().__init__()
        described(self, name, tip)
        self.setDecimals(0 if step == 1 else 1)
        self.setRange(low, high)
        self.setSingleStep(step)
        self.setKeyboardTracking(False)  # 12 is not 1 and then 12
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)

    def wheelEvent(self, event: Any) -> None:
        """Scrolling through the widget changes nothing on its way."""
        if self.hasFocus():
            super().wheelEvent(event)
        else:
            event.ignore()


class Slider(QSlider):
    """A slider that lets the wheel scroll the widget."""

    def __init__(self, name: str, tip: str, low: int, high: int) -> None:
        super().__init__(Qt.Orientation.Horizontal)
        described(self, name, tip)
        self.setRange(low, high)

    def wheelEvent(self, event: Any) -> None:
        """As in `Number`."""
        event.ignore()


def _box(text: str, tip: str) -> QCheckBox:
    box: QCheckBox = described(QCheckBox(text), text, tip)
    return box


def _silently(write: Callable[[Any], object], control: Any, value: Any) -> None:
    with QSignalBlocker(control):
        write(value)
