"""The folded part of the widget: everything that is not needed for every object."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from textwrap import fill
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFormLayout, QWidget

from napari_lowlat_seg.core.labels import Policy
from napari_lowlat_seg.core.masks import PostProcessing
from napari_lowlat_seg.plugin.controller.view_state import Settings, View
from napari_lowlat_seg.plugin.forms.controls import Chooser, control, show
from napari_lowlat_seg.plugin.forms.model import ModelForm
from napari_lowlat_seg.plugin.settings import SETTING

Named = Iterable[tuple[str, Any]]

OF_FINISH = ("threshold", "smooth", "fill_holes", "largest", "prompted")
OF_OBJECT = ("label", "semantic", "policy", "within", *OF_FINISH)
OF_PROMPTS = ("hover", "postpone", "points", "shapes")
OF_VIEW = ("level", "channel_axis", "channel", "intensities")
OF_EMBEDDINGS = ("ahead", "memory", "disk")

CHOOSERS: dict[str, tuple[Any, ...]] = {
    "points": ("Clicks layer", "A Points layer of your own whose points are read as clicks."),
    "shapes": ("Shapes layer", "A Shapes layer of your own whose shapes are read as prompts."),
    "level": ("Level", "The level of a multiscale image that is segmented."),
    "channel_axis": ("Channel axis", "The axis along which there are channels, not planes."),
}
"""Lists of what an image and its viewer have; all other rows are settings."""

OPTIONS: dict[str, dict[str, Any]] = {
    "threshold": {"widget_type": "FloatSlider"},
    "policy": {
        "choices": [
            *((text, kind) for kind, text in SETTING["policy"].choices.items()),
            ("only within one label", "within"),
        ]
    },
}
"""What a control is to be where its type does not say it."""


class DetailsForm(QWidget):
    """Shows the settings of an image and of the model, and emits what the user changes.

    Parameters
    ----------
    model
        The form whose controls for device and checkpoints have their rows here.

    Attributes
    ----------
    controls
        magicgui's widgets, by the name of the setting.
    of_image
        Everything that can be used only while there is an image, with the words beside it.
    """

    setting = Signal(str, object)
    """A field of `Settings` and its new value."""

    adopt = Signal(object, object)
    """The Points and the Shapes layer to read prompts from; None for the widget's own."""

    view = Signal(object)
    """Another `View` of the image."""

    room = Signal(int, int)
    """MiB of memory and of disk for embeddings."""

    def __init__(self, model: ModelForm) -> None:
        super().__init__()
        names = (*OF_OBJECT, *OF_PROMPTS, *OF_VIEW, *OF_EMBEDDINGS)
        self.controls: dict[str, Any] = {
            name: Chooser(*CHOOSERS[name])
            if name in CHOOSERS
            else control(SETTING[name], **OPTIONS.get(name, {}))
            for name in names
        }
        self._view, self._room = View(), (0, 0)
        self._lay_out(model)
        self._connect()

    def show_settings(self, settings: Settings) -> None:
        """Show these, without emitting anything."""
        policy = settings.policy
        values = {
            "label": settings.label,
            "semantic": settings.semantic,
            **{name: getattr(settings.finish, name) for name in OF_FINISH},
        }
        values |= {"policy": policy.kind, "within": policy.within}
        values |= {"hover": settings.hover, "postpone": settings.postpone}
        for name, value in values.items():
            show(self.controls[name], value)
        self.controls["within"].enabled = policy.kind == "within"

    def show_layers(self, points: Named, shapes: Named, adopted: tuple[Any, Any]) -> None:
        """Offer the user's layers to read prompts from; those that are read are in front."""
        self.controls["points"].offer([("created by this widget", None), *points], adopted[0])
        self.controls["shapes"].offer([("created by this widget", None), *shapes], adopted[1])

    def show_view(self, layer: Any, view: View) -> None:
        """Show the levels and channels that an image layer has, and those in use."""
        self._view, controls = view, self.controls
        levels = [tuple(level.shape) for level in (layer.data if layer.multiscale else [layer.data])]
        controls["level"].offer(
            [(f"{i}: {' × '.join(map(str, s))}", i) for i, s in enumerate(levels)], view.level
        )
        controls["level"].enabled = len(levels) > 1
        shape = levels[0]
        axes = range(layer.ndim) if layer.ndim > 2 and not layer.rgb else ()
        named = [(f"{layer.axis_labels[axis]} ({shape[axis]})", axis) for axis in axes]
        controls["channel_axis"].offer([("none", None), *named], view.channel_axis)
        controls["channel_axis"].enabled = bool(named)
        with controls["channel"].changed.blocked():
            controls["channel"].max = 0 if view.channel_axis is None else shape[view.channel_axis] - 1
        controls["channel"].enabled = view.channel_axis is not None
        show(controls["channel"], view.channel)
        show(controls["intensities"], view.intensities)

    def show_embeddings(self, ahead: int, memory: int, disk: int) -> None:
        """Show planes in advance, and MiB of memory and of disk."""
        self._room = (memory, disk)
        for name, value in (("ahead", ahead), ("memory", memory), ("disk", disk)):
            show(self.controls[name], value)

    def _lay_out(self, model: ModelForm) -> None:
        # Not a magicgui Container: its words have no buddy, which screen readers need.
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self._add_rows(form, (*OF_OBJECT, *OF_PROMPTS, *OF_VIEW))
        # In one form with what needs no image, so that all fields begin in one line.
        self.of_image = [form.itemAt(index).widget() for index in range(form.count())]
        form.addRow("Device", model.device.native)
        form.addRow("Runs on", model.found)
        form.addRow("Closer look", model.closer_look.native)
        self._add_rows(form, OF_EMBEDDINGS)
        form.addRow(model.import_button)

    def _add_rows(self, form: QFormLayout, names: Iterable[str]) -> None:
        for name in names:
            native = self.controls[name].native
            if name in SETTING and isinstance(SETTING[name].default, bool):
                form.addRow(native)  # the words are the check box's own
            else:
                form.addRow(fill(native.accessibleName(), 14), native)

    def _connect(self) -> None:
        controls, emit = self.controls, self.setting.emit
        for name in ("label", "semantic", "hover", "postpone"):
            controls[name].changed.connect(lambda _value, name=name: emit(name, self._value(name)))
        for name in ("policy", "within"):
            controls[name].changed.connect(
                lambda _value: emit("policy", Policy(self._value("policy"), self._value("within")))
            )
        for name in OF_FINISH:
            controls[name].changed.connect(
                lambda _value: emit("finish", PostProcessing(*map(self._value, OF_FINISH)))
            )
        for name in ("points", "shapes"):
            controls[name].changed.connect(
                lambda _layer: self.adopt.emit(controls["points"].value, controls["shapes"].value)
            )
        for name in OF_VIEW:
            controls[name].changed.connect(lambda _value, name=name: self._emit_view(name))
        controls["ahead"].changed.connect(lambda _value: emit("planes_ahead", self._value("ahead")))
        for name in ("memory", "disk"):  # not with every step: the model is loaded anew
            controls[name].native.editingFinished.connect(self._emit_room)

    def _value(self, name: str) -> Any:
        """The value of a setting in its type, and without the digits that a slider adds."""
        kind, value = type(SETTING[name].default), self.controls[name].value
        return round(value, 2) if kind is float else kind(value)

    def _emit_room(self) -> None:
        room = (self._value("memory"), self._value("disk"))
        if room != self._room:
            self._room = room
            self.room.emit(*room)

    def _emit_view(self, name: str) -> None:
        value = self._value(name) if name in SETTING else self.controls[name].value
        channel = {"channel": 0} if name == "channel_axis" else {}
        self.view.emit(replace(self._view, **{name: value, **channel}))
