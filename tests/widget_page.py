"""The dock widget as its user sees it: every control is found by the name that a screen reader says."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QItemSelectionModel, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemDelegate,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QLineEdit,
    QTableView,
    QWidget,
)

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
        self.show_fold("Details")

    def show_fold(self, title: str) -> None:
        """Unfold what has this title."""
        (fold,) = [
            one
            for one in self.widget.findChildren(QAbstractButton)
            if one.accessibleName().startswith(f"{title}, ")
        ]
        if fold.accessibleName().endswith("hidden"):
            fold.click()

    # The table of objects

    def objects(self) -> list[str]:
        """The numbers of the rows, from top to bottom."""
        model = self.part("Objects", QTableView).model()
        return [model.index(row, 0).data() for row in range(model.rowCount())]

    def object_row(self, label: int) -> list[str]:
        """What the row of an object says."""
        model = self.part("Objects", QTableView).model()
        row = self.objects().index(str(label))
        return [model.index(row, column).data() for column in range(model.columnCount())]

    def choose_objects(self, *labels: int) -> None:
        """Choose these rows, the first one last, as a person who holds Control."""
        view = self.part("Objects", QTableView)
        view.clearSelection()
        flags = QItemSelectionModel.SelectionFlag
        for label in reversed(labels):
            index = view.model().index(self.objects().index(str(label)), 0)
            view.selectionModel().setCurrentIndex(index, flags.Select | flags.Rows)

    def chosen_objects(self) -> list[int]:
        return self.part("Objects", QTableView).chosen()  # type: ignore[no-any-return]

    def object_key(self, label: int | None, key: Any) -> None:
        """Press a key in the table with the row of an object chosen, or with those that are."""
        view = self.part("Objects", QTableView)
        if label is not None:
            self.choose_objects(label)
        view.setFocus()
        QTest.keyClick(view, key)

    def type_into(self, kind: type, text: str) -> None:
        """Write into the cell that is being edited, and press Enter."""
        view = self.part("Objects", QTableView)
        (editor,) = [one for one in view.viewport().findChildren(kind) if one.parent() == view.viewport()]
        (editor.setCurrentText if isinstance(editor, QComboBox) else editor.setText)(text)
        if isinstance(editor, QLineEdit):
            QTest.keyClick(editor, Qt.Key.Key_Return)
            QApplication.processEvents()  # Qt commits it in the next turn
        else:
            view.commitData(editor)
            view.closeEditor(editor, QAbstractItemDelegate.EndEditHint.NoHint)
