"""The dock widget as its user sees it: every control is found by the name that a screen reader says."""

from __future__ import annotations

from typing import Any

from qtpy.QtWidgets import QAbstractButton, QAbstractSpinBox, QComboBox, QWidget

from napari_lowlat_seg.plugin.forms.volume import BUTTONS
from napari_lowlat_seg.plugin.keys import ACTION


class WidgetPage:
    """Reads and uses a widget; `widget`, `controller`, `worker` and `keys` are what it was built from."""

    def __init__(self, widget: Any) -> None:
        self.widget = widget

    @property
    def controller(self) -> Any:
        return self.widget.controller

    @property
    def worker(self) -> Any:
        return self.widget.worker

    @property
    def keys(self) -> Any:
        return self.widget.keys

    @property
    def sentence(self) -> str:
        """The big line."""
        return self.widget.sentence

    def part(self, name: str, kind: type = QWidget) -> Any:
        """The first control of a name and a kind, from outside to inside."""
        found = [one for one in self.widget.findChildren(kind) if one.accessibleName() == name]
        assert found, f"no {kind.__name__} is called {name!r}"
        return found[0]

    def enabled(self, name: str) -> bool:
        return self.part(name).isEnabled()

    # Lists

    def options(self, name: str) -> list[str]:
        box = self.part(name, QComboBox)
        return [box.itemText(index) for index in range(box.count())]

    def chosen(self, name: str) -> str:
        return self.part(name, QComboBox).currentText()

    def choose(self, name: str, option: str) -> None:
        self.part(name, QComboBox).setCurrentIndex(self.options(name).index(option))

    # Numbers and check boxes

    def value(self, name: str) -> float:
        return self.part(name, QAbstractSpinBox).value()

    def write(self, name: str, value: float) -> None:
        """Without leaving the field; see `leave`."""
        self.part(name, QAbstractSpinBox).setValue(value)

    def leave(self, name: str) -> None:
        """What happens when Enter is pressed or the keyboard goes elsewhere."""
        self.part(name, QAbstractSpinBox).editingFinished.emit()

    def check(self, name: str) -> None:
        self.part(name, QAbstractButton).setChecked(True)

    # Buttons

    def button(self, action: str) -> QAbstractButton:
        """The button of an action, by the name of the action."""
        return self.part(ACTION[action].title, QAbstractButton)

    def buttons(self) -> list[QAbstractButton]:
        """Those of all actions that have one."""
        return [self.button(name) for name in ("accept", "new_object", "undo", "redo", *BUTTONS)]

    def press(self, text: str) -> None:
        """Press the button that shows this text."""
        (button,) = [one for one in self.widget.findChildren(QAbstractButton) if one.text() == text]
        button.click()

    def pressed(self) -> set[str]:
        """The texts of the buttons that are down."""
        return {one.text() for one in self.widget.findChildren(QAbstractButton) if one.isChecked()}

    def show_details(self) -> None:
        (fold,) = [
            one
            for one in self.widget.findChildren(QAbstractButton)
            if one.accessibleName().startswith("Details, ")
        ]
        if fold.accessibleName().endswith("hidden"):
            fold.click()
