"""The keyboard of the widget: the dialog for shortcuts, and the keys that no control may keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QEvent, QObject, QSignalBlocker, Qt
from qtpy.QtGui import QIcon, QKeySequence
from qtpy.QtWidgets import (
    QAbstractButton,
    QDialog,
    QDialogButtonBox,
    QGridLayout,
    QKeySequenceEdit,
    QLabel,
    QLineEdit,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from napari_lowlat_seg.plugin.canvas.events import ENTER, TEXT_FIELDS
from napari_lowlat_seg.plugin.forms.controls import action_button, described
from napari_lowlat_seg.plugin.keys import ACTIONS, OBJECT_ACTIONS, QT_NAMES, Action, KeyTable

HINT = (
    "Click a field and press the key. Keys work while a layer of this widget is active and the canvas was "
    "clicked last."
)
FIXED = "in the table of objects; fixed"
"""What is said of keys that cannot be changed."""

_TO_QT = {napari: qt for qt, napari in QT_NAMES.items()}


class KeysDialog(QDialog):
    """Edits a `KeyTable`; every change takes effect at once, and the table emits it.

    Parameters
    ----------
    table
        Is changed.
    parent
        The window that the dialog belongs to.
    """

    def __init__(self, table: KeyTable, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Shortcuts")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.table = table
        self.search = described(QLineEdit(), "Search", "Shows the actions and keys with these letters.")
        self.search.setPlaceholderText("search")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._filter)
        self.fields = {action.name: self._field(action) for action in ACTIONS}
        self.notes = {action.name: self._note(action) for action in ACTIONS}
        self._lay_out()
        self._show()
        letter = self.fontMetrics()
        self.resize(130 * letter.averageCharWidth(), 45 * letter.height())

    def _field(self, action: Action) -> QKeySequenceEdit:
        field = described(QKeySequenceEdit(), f"Key of: {action.title}", f"Press a key for: {action.title}")
        field.setMaximumSequenceLength(1)
        field.setClearButtonEnabled(True)
        field.keySequenceChanged.connect(lambda sequence: self._change(action, sequence))
        return field

    def _note(self, action: Action) -> QLabel:
        note = described(QLabel(), f"Conflicts of: {action.title}", "What else has this key.")
        note.setWordWrap(True)
        return note

    def _lay_out(self) -> None:
        rows = QWidget()
        self.titles: dict[str, QLabel] = {}
        self.fixed: dict[str, tuple[QLabel, QLabel, QLabel]] = {}
        grid = QGridLayout(rows)
        grid.setColumnStretch(1, 2)
        grid.setColumnStretch(2, 3)
        for row, action in enumerate(ACTIONS):
            title = QLabel(action.title)
            title.setBuddy(self.fields[action.name])
            self.titles[action.name] = title
            grid.addWidget(described(title, action.title, f"Default: {action.key}"), row, 0)
            grid.addWidget(self.fields[action.name], row, 1)
            grid.addWidget(self.notes[action.name], row, 2)
        for row, action in enumerate(OBJECT_ACTIONS, len(ACTIONS)):
            parts = QLabel(action.title), QLabel(action.key), QLabel(FIXED)
            self.fixed[action.name] = parts
            for column, part in enumerate(parts):
                part.setWordWrap(column == 2)
                grid.addWidget(described(part, part.text(), f"{action.title}: {action.key}"), row, column)
        grid.setRowStretch(len(ACTIONS) + len(OBJECT_ACTIONS), 1)
        area = described(QScrollArea(), "Shortcuts", "All keys and their conflicts.")
        area.setWidgetResizable(True)
        area.setWidget(rows)
        hint = described(QLabel(HINT), "Hint", HINT)
        hint.setWordWrap(True)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(self.reject)
        close = buttons.button(QDialogButtonBox.StandardButton.Close)
        described(close, "Close", "Close this window; the keys are saved already.").setAutoDefault(False)
        close.setIcon(QIcon())  # the desktop's own is black, on whatever theme napari has
        self.reset = described(
            action_button("Reset all", self._reset), "Reset all", "Give all actions their default keys."
        )
        self.reset.setAutoDefault(False)
        buttons.addButton(self.reset, QDialogButtonBox.ButtonRole.ResetRole)
        column = QVBoxLayout(self)
        for part in (hint, self.search, area, buttons):
            column.addWidget(part)

    def _change(self, action: Action, sequence: QKeySequence) -> None:
        try:
            self.table.set(action.name, sequence.toString(QKeySequence.SequenceFormat.PortableText))
        except ValueError as error:
            self._show()
            self.notes[action.name].setText(str(error))
        else:
            self._show()

    def _filter(self, text: str) -> None:
        """Show the rows whose words or key have this text."""
        for action in ACTIONS:
            words = f"{action.title} {self.table.keys[action.name]}".lower()
            for part in (self.titles[action.name], self.fields[action.name], self.notes[action.name]):
                part.setVisible(text.strip().lower() in words)
        for action in OBJECT_ACTIONS:
            for part in self.fixed[action.name]:
                part.setVisible(text.strip().lower() in f"{action.title} {action.key} {FIXED}".lower())

    def _reset(self) -> None:
        self.table.reset()
        self._show()

    def _show(self) -> None:
        conflicts = self.table.conflicts()
        for name, key in self.table.keys.items():
            with QSignalBlocker(self.fields[name]):
                self.fields[name].setKeySequence(QKeySequence(_in_qt(key)))
                self.fields[name].findChild(QLineEdit).setText(key)  # as on the buttons, in napari's words
            self.notes[name].setText(conflicts.get(name, ""))


def _in_qt(key: str) -> str:
    *modifiers, last = key.split("+")
    return "+".join([*modifiers, _TO_QT.get(last, last)])


class FocusKeys(QObject):
    """The keyboard while one of our controls has the focus: what it leaves over goes on to the canvas.

    Undo and redo are those of the session, also in numbers and lists, which would take them. Enter presses
    the button that has the focus, and accepts no object. A letter that a number does not take is no shortcut.

    Parameters
    ----------
    widget
        The widget that has all controls.
    do
        Called with "undo" or "redo".
    """

    def __init__(self, widget: QWidget, do: Callable[[str], object]) -> None:
        super().__init__(widget)
        self._widget, self._do = widget, do
        takes_keys = [
            one for one in widget.findChildren(QWidget) if one.focusPolicy() != Qt.FocusPolicy.NoFocus
        ]
        for one in (widget, *takes_keys):  # each event of each of them is a call
            one.installEventFilter(self)

    def eventFilter(self, control: Any, event: Any) -> bool:
        """Take a key before a control has it, or after it has left it to the widget."""
        if event.type() != QEvent.Type.KeyPress:
            return False
        if self._undoes(event):
            return True
        if control is not self._widget:
            return False
        focus = self._widget.focusWidget()
        if event.key() in ENTER:
            if isinstance(focus, QAbstractButton):
                focus.click()
        elif not (isinstance(focus, TEXT_FIELDS) and event.text().isprintable()):
            return False
        event.accept()
        return True

    def _undoes(self, event: Any) -> bool:
        for action, keys in (
            ("undo", QKeySequence.StandardKey.Undo),
            ("redo", QKeySequence.StandardKey.Redo),
        ):
            if event.matches(keys):
                self._do(action)
                event.accept()
                return True
        return False
