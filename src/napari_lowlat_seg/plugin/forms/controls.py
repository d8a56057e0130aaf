"""The kinds of control that the widget is made of; each is named for screen readers and has a tooltip."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from magicgui.widgets import ComboBox, create_widget
from qtpy.QtCore import QEvent, QObject, QSize, Qt, Signal
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QButtonGroup,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QHBoxLayout,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_lowlat_seg.plugin.settings import Setting


def described(control: Any, name: str, tip: str) -> Any:
    """The control itself, named for screen readers, with a tooltip that they read as well."""
    control.setAccessibleName(name)
    control.setAccessibleDescription(tip)
    control.setToolTip(tip)
    return control


def control(setting: Setting, **options: Any) -> Any:
    """The magicgui widget of a setting: a check box, a number, a list, or what `options` name.

    It is named and explained by its setting and lets the wheel scroll. It emits `changed` for what the code
    writes as well: write with `show`.

    Parameters
    ----------
    setting
        A row of the table of settings.
    **options
        Of `magicgui.widgets.create_widget`: `widget_type="FloatSlider"`.
    """
    kind = type(setting.default)
    if kind is bool:
        options = {"text": setting.label, **options}
    elif kind in (int, float):
        # magicgui's own widget for int takes the keyboard from the canvas when a value is written to it.
        options = {"min": setting.low, "max": setting.high, "step": setting.step, **options}
    elif setting.choices:
        options = {"choices": [(text, value) for value, text in setting.choices.items()], **options}
    made = create_widget(setting.default, float if kind is int else kind, setting.name, options=options)
    for part in (made.native, *made.native.findChildren(QWidget)):
        described(part, setting.label, setting.explanation)
        let_wheel_scroll(part)
    if isinstance(made.native, QComboBox):
        narrow(made.native)
    for number in (made.native, *made.native.findChildren(QDoubleSpinBox)):
        if isinstance(number, QDoubleSpinBox):
            number.setDecimals(0 if kind is int else 1 if setting.step > 0.1 else 2)
            number.setKeyboardTracking(False)  # 12 is not 1 and then 12
            number.setSuffix(f" {setting.unit}" if setting.unit else "")
        if number is not made.native:  # beside a slider, where magicgui's style leaves no room for the digits
            number.setStyleSheet("")
            number.setButtonSymbols(QDoubleSpinBox.ButtonSymbols.UpDownArrows)
            number.setAlignment(Qt.AlignmentFlag.AlignLeft)
            made.native.layout().setContentsMargins(0, 0, 0, 0)
    return made


def narrow(box: QComboBox, letters: int = 8) -> None:
    """Let a list be as narrow as so many letters, however long its entries are."""
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumContentsLength(letters)


def show(control: Any, value: Any) -> None:
    """Write a value to a magicgui widget without its `changed`."""
    with control.changed.blocked():
        control.value = value


class Chooser(ComboBox):
    """A list of named things, such as layers, of which one is chosen.

    Things are compared, so a renamed layer stays chosen. napari's choosers by annotation choose the first
    layer when the chosen one is renamed or deleted, and they offer this widget's own layers as well.

    Parameters
    ----------
    name, tip
        For screen readers, and the tooltip.
    letters
        For how many there is room at least: a layer with a long name must not push the canvas aside.
    """

    null_value: Any = object()
    """What magicgui does not emit; its own is None, which is a thing to choose here."""

    def __init__(self, name: str, tip: str, letters: int = 8) -> None:
        self._things: list[tuple[str, Any]] = []
        super().__init__(choices=lambda _chooser: self._things)
        box: QComboBox = described(self.native, name, tip)
        let_wheel_scroll(box)
        narrow(box, letters)

    def offer(self, things: Iterable[tuple[str, Any]], chosen: Any) -> None:
        """Show these (name, thing) with `chosen` in front, silently; nothing if it is not among them."""
        self._things = []
        for name, thing in things:
            taken = [other for other, _ in self._things]
            while name in taken:  # magicgui finds entries by their text
                name += " "
            self._things.append((name, thing))
        with self.changed.blocked():
            self.native.clear()  # else magicgui keeps the order of entries that were there
            self.reset_choices()
            index = next((i for i, (_, thing) in enumerate(self._things) if thing == chosen), -1)
            self.native.setCurrentIndex(index)


class _WheelScrolls(QObject):
    """Leaves the wheel to the scroll area, but for a number that was clicked into."""

    def eventFilter(self, control: QObject, event: QEvent) -> bool:
        typing = isinstance(control, QAbstractSpinBox) and control.hasFocus()
        if event.type() != QEvent.Type.Wheel or typing:
            return False
        event.ignore()
        return True


def let_wheel_scroll(control: QWidget) -> None:
    """Keep the wheel from changing a control that happens to lie under the mouse."""
    control.installEventFilter(_WheelScrolls(control))
    if control.focusPolicy() == Qt.FocusPolicy.WheelFocus:
        control.setFocusPolicy(Qt.FocusPolicy.StrongFocus)


class Choice(QWidget):
    """A row of buttons of which one is down: larger to hit than magicgui's radio buttons."""

    changed = Signal(object)
    """What the user has chosen."""

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
        self._group.idClicked.connect(lambda index: self.changed.emit(self._things[index]))

    def show_value(self, thing: Any) -> None:
        """Press the button of this thing, silently; none for a thing that has no button."""
        self._group.setExclusive(thing in self._things)
        for button, own in zip(self._group.buttons(), self._things, strict=True):
            button.setChecked(own == thing)
        self._group.setExclusive(True)

    def explain(self, tip: str) -> None:
        """Give the row and its buttons another tooltip."""
        for control in (self, *self._group.buttons()):
            control.setToolTip(tip)
            control.setAccessibleDescription(tip)


class Scrolled(QScrollArea):
    """Scrolls its content up and down, and is never narrower than it: at any font no text is cut."""

    def __init__(self, content: QWidget) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QScrollArea.Shape.NoFrame)
        self.setStyleSheet("QScrollArea { border: 0 }")  # napari's style draws one, which takes room
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        # Else a click on a button, which leaves the keyboard to the canvas, gives it to the scroll area.
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._needed: tuple[QSize, QSize] | None = None
        self.setWidget(content)

    def minimumSizeHint(self) -> QSize:
        """As wide as the content needs, with room for the scroll bar."""
        width = self.widget().minimumSizeHint().width() + self.verticalScrollBar().sizeHint().width()
        return QSize(width, super().minimumSizeHint().height())

    def sizeHint(self) -> QSize:
        """No wider than needed, and as high as the content would like to be."""
        return QSize(self.minimumSizeHint().width(), self.widget().sizeHint().height())

    def event(self, event: QEvent) -> bool:
        """Follows content that needs another size; where it needs the same, napari's window is left alone.

        Each new sentence asks for a layout, and that of the whole window takes milliseconds.
        """
        if event.type() == QEvent.Type.LayoutRequest:
            needed = self.minimumSizeHint(), self.sizeHint()
            if needed != self._needed:
                self._needed = needed
                self.updateGeometry()
        return bool(super().event(event))


class Fold(QWidget):
    """A title to click on, and content that is shown only after that.

    superqt's QCollapsible leaves folded controls within reach of the Tab key, fixes the height of the content
    when it is unfolded, and keeps the arrows in the colour of the theme at the start.
    """

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
        """Show the content, or hide it."""
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


class KeyButton(QPushButton):
    """A button that leaves the keyboard to the canvas, and shows its key where there is room for it."""

    def __init__(self, words: str, clicked: Callable[[], object]) -> None:
        super().__init__(words)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.clicked.connect(lambda _checked: clicked())
        self._words = self._with_key = words
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)  # may be narrower

    def show_key(self, key: str) -> None:
        """Show another key; "" for none."""
        self._with_key = f"{self._words}  [{key}]" if key else self._words
        self._fit()

    def sizeHint(self) -> QSize:
        """As wide as words and key."""
        return self._hint(self._with_key, super().sizeHint())

    def minimumSizeHint(self) -> QSize:
        """As wide as the words alone, whatever is shown: Qt's own is that of the words with the key."""
        return self._hint(self._words, super().sizeHint())

    def resizeEvent(self, event: Any) -> None:
        """Show the key, or leave it to the tooltip."""
        super().resizeEvent(event)
        self._fit()

    def _hint(self, text: str, hint: QSize) -> QSize:
        metrics = self.fontMetrics()
        wider = metrics.horizontalAdvance(text) - metrics.horizontalAdvance(self.text())
        return QSize(hint.width() + wider, hint.height())

    def _fit(self) -> None:
        text = self._with_key if self.width() >= self.sizeHint().width() else self._words
        if text != self.text():
            self.setText(text)


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
