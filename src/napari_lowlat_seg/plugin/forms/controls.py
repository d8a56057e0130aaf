"""The few kinds of control that the widget is made of; each one says what it is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qtpy.QtCore import QEvent, QSignalBlocker, QSize, Qt, Signal
from qtpy.QtWidgets import (
    QButtonGroup,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)


def described(control: Any, name: str, tip: str) -> Any:
    """The control itself, named for screen readers, with a tooltip that they read as well."""
    control.setAccessibleName(name)
    control.setAccessibleDescription(tip)
    control.setToolTip(tip)
    return control


class Chooser(QComboBox):
    """A list of named things of which one is chosen; things are compared, names may change or repeat.

    napari's own choosers tell things apart by name and jump to the first one when a layer is renamed.
    """

    chosen = Signal(object)

    def __init__(self, name: str, tip: str) -> None:
        super().__init__()
        described(self, name, tip)
        self._things: list[Any] = []
        # A layer with a long name must not push the canvas aside.
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(10)
        self.activated.connect(lambda index: self.chosen.emit(self._things[index]))

    def offer(self, things: Iterable[tuple[str, Any]], chosen: Any) -> None:
        """Shows these (name, thing) with `chosen` in front, silently; nothing if it is not among them."""
        named = list(things)
        self._things = [thing for _, thing in named]
        with QSignalBlocker(self):
            self.clear()
            self.addItems([name for name, _ in named])
            self.setCurrentIndex(next((i for i, thing in enumerate(self._things) if thing == chosen), -1))

    def value(self) -> Any:
        """The thing in front, None if there is none."""
        return self._things[self.currentIndex()] if self.currentIndex() >= 0 else None

    def wheelEvent(self, event: Any) -> None:
        """Scrolling through the widget does not choose what happens to lie under the mouse."""
        event.ignore()


class Choice(QWidget):
    """A row of buttons of which one is down."""

    chosen = Signal(object)

    def __init__(self, name: str, tip: str, things: Iterable[tuple[str, Any]]) -> None:
        super().__init__()
        described(self, name, tip)
        self._group = QButtonGroup(self)
        self._things: list[Any] = []
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for index, (text, thing) in enumerate(things):
            button = described(action_button(text), f"{name}: {text}", tip)
            button.setCheckable(True)
            self._group.addButton(button, index)
            self._things.append(thing)
            row.addWidget(button)
        self._group.idClicked.connect(lambda index: self.chosen.emit(self._things[index]))

    def show_value(self, thing: Any) -> None:
        """Presses the button of this thing, silently."""
        self._group.button(self._things.index(thing)).setChecked(True)

    def explain(self, tip: str) -> None:
        """Another tooltip, for the row and its buttons."""
        for control in (self, *self._group.buttons()):
            control.setToolTip(tip)
            control.setAccessibleDescription(tip)


class Scrolled(QScrollArea):
    """Scrolls its content up and down, and is never narrower than it: at any font no text is cut."""

    def __init__(self, content: QWidget) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QScrollArea.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWidget(content)

    def minimumSizeHint(self) -> QSize:
        """As wide as the content needs, with room for the scroll bar."""
        width = self.widget().minimumSizeHint().width() + self.verticalScrollBar().sizeHint().width()
        return QSize(width, super().minimumSizeHint().height())

    def sizeHint(self) -> QSize:
        """No wider than needed, and as high as the content would like to be."""
        return QSize(self.minimumSizeHint().width(), self.widget().sizeHint().height())

    def event(self, event: QEvent) -> bool:
        """Follows content that needs another width, as after a change of font or keys."""
        if event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
        return bool(super().event(event))


class Fold(QWidget):
    """A title to click on, and content that is shown only after that."""

    def __init__(self, title: str, tip: str, content: QWidget) -> None:
        super().__init__()
        self._title, self._content = title, content
        self.button = described(QPushButton(), title, tip)
        self.button.setStyleSheet("text-align: left")
        self.button.clicked.connect(lambda _checked: self.expand(content.isHidden()))
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.button)
        column.addWidget(content)
        self.expand(False)

    def expand(self, on: bool) -> None:
        """Shows the content, or hides it."""
        self._content.setVisible(on)
        self.button.setText(f"{'▾' if on else '▸'}  {self._title}")
        self.button.setAccessibleName(f"{self._title}, {'shown' if on else 'hidden'}")


def action_button(text: str, clicked: Callable[[], object] | None = None) -> QPushButton:
    """A button that leaves the keyboard to the canvas when it is clicked, so that the keys go on working."""
    button = QPushButton(text)
    button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
    if clicked is not None:
        button.clicked.connect(lambda _checked: clicked())
    return button


NEW, OPEN = "new on disk", "from disk"
"""A folder that is to be made, and one that is there."""

FOLDERS = (NEW, OPEN)

ON_DISK = [("new on disk…", NEW), ("from disk…", OPEN)]
"""What a list of labels offers."""

TITLES = {NEW: "Labels on disk: a new OME-Zarr", OPEN: "Labels on disk: an OME-Zarr made before"}

Chosen = Callable[[Path], object]


def ask_for_folder(parent: QWidget, kind: str, proposed: Path | None, chosen: Chosen) -> QFileDialog:
    """Opens a dialog for a folder and calls `chosen` with it; a name without `.zarr` gets `.ome.zarr`."""
    dialog = QFileDialog(parent, TITLES[kind], str((proposed or Path.home() / "_").parent))
    # Each system's own dialogs take a folder for a place to go to, not for a name.
    dialog.setOption(QFileDialog.Option.DontUseNativeDialog)
    if kind == NEW:
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setFileMode(QFileDialog.FileMode.AnyFile)
        dialog.selectFile(proposed.name if proposed is not None else "labels.ome.zarr")
    else:
        dialog.setFileMode(QFileDialog.FileMode.Directory)
        dialog.setOption(QFileDialog.Option.ShowDirsOnly)
    dialog.fileSelected.connect(lambda name: name and chosen(_named(Path(name))))
    dialog.open()
    return dialog


def _named(path: Path) -> Path:
    return path if path.suffix == ".zarr" or path.is_dir() else path.with_name(f"{path.name}.ome.zarr")
