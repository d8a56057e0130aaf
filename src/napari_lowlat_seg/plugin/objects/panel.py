"""The controls of the table of objects: filter, table, menu of actions; it emits what the user does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import QItemSelection, QItemSelectionModel, QModelIndex, Qt, Signal
from qtpy.QtGui import QColor, QKeySequence
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QMenu,
    QStyledItemDelegate,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from napari_lowlat_seg.annotation.objects.table import STATES, Row
from napari_lowlat_seg.plugin.canvas.events import canvas_beside
from napari_lowlat_seg.plugin.forms.controls import action_button, described, let_wheel_scroll, narrow
from napari_lowlat_seg.plugin.forms.session import TABLES, ask_for_file
from napari_lowlat_seg.plugin.keys import OBJECT_ACTIONS
from napari_lowlat_seg.plugin.objects.model import ALL, CLASS, COLUMNS, ID, NAME, SIZE, STATE, ObjectModel

WIDTHS = {ID: "0000", NAME: "name of one", STATE: "in progress  ", CLASS: "nucleus", SIZE: "1.235e+06"}
"""What each column has room for; the others have room for their headings."""

ROWS_SHOWN = 9

SCOPES = (("on this plane", "plane"), ("in the range", "range"), ("in the volume", "volume"))
"""Where *Find all* searches."""


class ObjectPanel(QWidget):
    """The table of objects with its controls.

    Attributes
    ----------
    model, view
        The rows, and the table that shows them.
    """

    pressed = Signal(str, object)
    """The name of one of `OBJECT_ACTIONS`, and the keys of its rows, the current one first."""

    described_as = Signal(object, str, str)
    """Keys of rows, "name" or "category", and the new text."""

    chosen = Signal(object)
    """The keys of the rows that are chosen now."""

    searched = Signal(str)
    """Find all objects on this "plane", in the "range" of planes or in the "volume"."""

    classes_chosen = Signal(object)
    """The file of a list of classes; None for none."""

    exported = Signal(Path)
    """Write the table to this file."""

    recounted = Signal()
    """Count all labels again."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ObjectModel(self)
        self.view = ObjectView(self.model)
        self.words = described(
            QLineEdit(), "Filter objects", "Shows rows with these words: number, name, class or state. Key: /"
        )
        self.words.setPlaceholderText("Filter")
        self.words.setClearButtonEnabled(True)
        self.words.setMinimumWidth(4 * self.fontMetrics().averageCharWidth())
        self.state = described(QComboBox(), "State of objects", "Shows rows in this state only.")
        for text, state in (("all states", ALL), *((state, state) for state in STATES)):
            self.state.addItem(text, state)
        narrow(self.state, 6)
        let_wheel_scroll(self.state)
        self.count = described(QLabel(), "Number of objects", "How many objects there are, shown and chosen.")
        self.count.setWordWrap(True)
        self.actions = described(
            action_button("Actions"),
            "Actions of objects",
            "What can be done with the rows chosen, and its keys.",
        )
        self.scope = described(
            QComboBox(),
            "Where to find objects",
            "The plane in view, the range above, or all planes.",
        )
        for text, where in SCOPES:
            self.scope.addItem(text, where)
        narrow(self.scope, 6)
        let_wheel_scroll(self.scope)
        self.find = described(
            action_button("Find all", lambda: self.searched.emit(self.scope.currentData())),
            "Find all",
            "Proposes objects without a prompt: A accepts, X rejects, E corrects the one that is chosen.",
        )
        self.menu = self._menu()
        self.actions.setMenu(self.menu)
        self._connect()
        search, row, below = QHBoxLayout(), QHBoxLayout(), QHBoxLayout()
        search.addWidget(self.find)
        search.addWidget(self.scope, 1)
        row.addWidget(self.words, 1)
        row.addWidget(self.state)
        below.addWidget(self.count, 1)
        below.addWidget(self.actions)
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(0, 0, 0, 0)
        self.column.addLayout(search)
        self.column.addLayout(row)
        self.column.addWidget(self.view)
        self.column.addLayout(below)
        self.show_count("")

    def _connect(self) -> None:
        self.words.textChanged.connect(self._filter)
        self.words.returnPressed.connect(self.view.setFocus)
        self.state.currentIndexChanged.connect(self._filter)
        self.view.pressed_key.connect(self.act)
        self.view.doubleClicked.connect(self._double_clicked)
        self.view.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.view.customContextMenuRequested.connect(
            lambda at: self.menu.popup(self.view.viewport().mapToGlobal(at))
        )
        self.view.selectionModel().selectionChanged.connect(self._selected)
        self.model.edited.connect(self._edited)

    def _menu(self) -> QMenu:
        menu = QMenu(self)
        for action in OBJECT_ACTIONS:
            if action.name == "merge":
                menu.addSeparator()
            # Its key is only said here: a shortcut of the menu would act wherever the focus is.
            entry = menu.addAction(f"{action.title}\t{action.key}")
            entry.triggered.connect(lambda *_, name=action.name: self.act(name))
        menu.addSeparator()
        classes, table = "List of classes: name, colour", "Export all objects"
        for title, slot in (
            (
                "Load a list of classes…",
                partial(ask_for_file, self, classes, TABLES, self.classes_chosen.emit),
            ),
            ("Allow any class", partial(self.classes_chosen.emit, None)),
            ("Export as CSV…", partial(ask_for_file, self, table, TABLES, self.exported.emit, "objects.csv")),
            ("Count again", self.recounted.emit),
        ):
            menu.addAction(title).triggered.connect(lambda *_, slot=slot: slot())
        return menu

    # What is shown

    def show_rows(self, rows: Mapping[int, Row]) -> None:
        """Show these rows, all anew."""
        with self.view.keeping_choice():
            self.model.show_rows(rows)

    def show_changes(self, changed: set[int], moved: set[int]) -> None:
        """Show what has changed in the rows shown last."""
        with self.view.keeping_choice(only=len(moved) > 0):
            self.model.show_changes(changed, moved)

    def show_count(self, counting: str) -> None:
        """Say how many objects there are; `counting` is how far a count is, "" when all are known."""
        self._counting = counting
        shown, there = len(self.model.keys), self.model.total
        words = [f"{there:,} objects" if there != 1 else "1 object"]
        words += [f"{shown:,} shown"] if shown != there else []
        chosen = len(self.view.chosen())
        words += [f"{chosen:,} chosen"] if chosen > 1 else []
        sentence = counting or ", ".join(words)
        self.count.setText(sentence)
        self.count.setAccessibleName(f"Number of objects: {sentence}")

    def show_search(self, *, running: bool) -> None:
        """Show whether objects are being searched."""
        self.find.setEnabled(not running)
        self.find.setText("Finding…" if running else "Find all")

    def look_at_proposals(self) -> None:
        """Choose the first proposal and go there; the keys of the table act on it."""
        proposed = next((key for key in self.model.keys if key < 0), None)
        if proposed is not None and self.view.choose(proposed):
            self.view.setFocus()
            self.act("go_to")

    def show_classes(self, fixed: Sequence[str], colours: Mapping[str, str]) -> None:
        """Offer these classes; `fixed` ones are the only ones."""
        self.view.classes.names = list(fixed or colours)
        self.view.classes.fixed = bool(fixed)
        swatches = {name: QColor(colour) for name, colour in colours.items()}
        self.model.class_colour = swatches.get

    # What the user does

    def act(self, name: str) -> None:
        """Do an action of the table with the rows that are chosen."""
        if name == "find":
            self.words.setFocus()
            self.words.selectAll()
        elif name in ("rename", "classify"):
            self.view.edit_column(NAME if name == "rename" else CLASS)
        elif name == "next_of_state":
            self.view.next_of_state()
        elif name in ("accept_proposal", "reject"):
            place = self.view.currentIndex().row()
            self.pressed.emit(name, self.view.chosen())
            self._next_proposal(place)
        else:
            chosen = self.view.chosen()
            self.pressed.emit(name, chosen)
            if name == "edit_again" and chosen and (canvas := canvas_beside(self)) is not None:
                canvas.setFocus()  # where Enter accepts it: in the table Enter goes to a row

    def _next_proposal(self, place: int) -> None:
        """Go to the proposal that has come to this place, or to the first one."""
        keys = self.model.keys
        if 0 <= place < len(keys) and keys[place] < 0:
            self.view.choose(keys[place])
            self.act("go_to")
        else:
            self.look_at_proposals()

    def _selected(self, *_: object) -> None:
        self.show_count(self._counting)
        self.chosen.emit(self.view.chosen())

    def _double_clicked(self, index: QModelIndex) -> None:
        if index.column() not in (NAME, CLASS):
            self.act("go_to")

    def _edited(self, key: int, field: str, text: str) -> None:
        """An edit of one cell counts for all rows that are chosen, if its row is one of them."""
        chosen = self.view.chosen()
        self.described_as.emit(chosen if key in chosen else [key], field, text)

    def _filter(self, *_: object) -> None:
        with self.view.keeping_choice():
            self.model.filter(self.words.text(), self.state.currentData())
        self.show_count(self._counting)


class ObjectView(QTableView):
    """The table; its keys act while it has the focus."""

    pressed_key = Signal(str)
    """The name of the action whose key was pressed."""

    def __init__(self, model: ObjectModel) -> None:
        super().__init__()
        self._model = model
        self.setModel(model)
        keys = ", ".join(f"{action.key}: {action.title.lower()}" for action in OBJECT_ACTIONS)
        described(self, "Objects", f"All objects in the labels. {keys}")
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setTabKeyNavigation(False)  # Tab leaves the table
        self.setWordWrap(False)
        self.setShowGrid(False)
        self.setSortingEnabled(True)
        self.sortByColumn(ID, Qt.SortOrder.AscendingOrder)
        self.verticalHeader().hide()
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        header.setStretchLastSection(True)
        self.classes = ClassDelegate(self)
        self.setItemDelegateForColumn(CLASS, self.classes)
        self._fit()

    def changeEvent(self, event: Any) -> None:
        """Fit rows and columns to another font."""
        super().changeEvent(event)
        if event.type() in (event.Type.FontChange, event.Type.StyleChange):
            self._fit()

    def _fit(self) -> None:
        metrics, header = self.fontMetrics(), self.horizontalHeader()
        height = round(1.5 * metrics.height())
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.verticalHeader().setDefaultSectionSize(height)
        for column, title in enumerate(COLUMNS):
            title = f"{title} (µm³)" if column == SIZE else title
            room = max(metrics.horizontalAdvance(text) for text in (WIDTHS.get(column, title), title))
            swatch = height if column in (ID, CLASS) else 0
            header.resizeSection(column, room + swatch + metrics.averageCharWidth())
        self.setMinimumHeight(height * 4)
        self.setMinimumWidth(metrics.averageCharWidth() * 12)

    def sizeHint(self) -> Any:
        """A few rows; the rest is scrolled."""
        hint = super().sizeHint()
        row = self.verticalHeader().defaultSectionSize()
        hint.setHeight(ROWS_SHOWN * row + self.horizontalHeader().sizeHint().height())
        return hint

    def minimumSizeHint(self) -> Any:
        """Columns may be scrolled, so a narrow dock need not grow."""
        hint = super().minimumSizeHint()
        hint.setWidth(self.minimumWidth())
        return hint

    # Which rows are meant

    def chosen(self) -> list[int]:
        """The keys of the rows that are chosen, the current one first, the others as they are shown."""
        places = sorted(index.row() for index in self.selectionModel().selectedRows())
        current = self.currentIndex().row()
        if current in places:
            places.remove(current)
            places.insert(0, current)
        return [self._model.keys[place] for place in places]

    def choose(self, key: int) -> bool:
        """Choose the row of a key alone, and scroll to it; False if it is not shown."""
        place = self._model.place_of(key)
        if place >= 0:
            self.setCurrentIndex(self._model.index(place, ID))
            self.scrollTo(self._model.index(place, ID))
        return place >= 0

    @contextmanager
    def keeping_choice(self, *, only: bool = True) -> Iterator[None]:
        """Around a change of all rows: what was chosen is chosen again, and the rows stay where they were."""
        chosen = self.chosen() if only else []
        column = max(0, self.currentIndex().column())  # none while no row is the current one
        bars = self.verticalScrollBar(), self.horizontalScrollBar()
        scrolled = [bar.value() for bar in bars]
        yield
        if not chosen:
            return
        selection, model = self.selectionModel(), self._model
        rows = QItemSelection()
        places = {key: place for place, key in enumerate(model.keys)}
        for key in chosen:
            if key in places:
                rows.select(model.index(places[key], 0), model.index(places[key], len(COLUMNS) - 1))
        flags = QItemSelectionModel.SelectionFlag
        if chosen[0] in places:
            at = model.index(places[chosen[0]], column)
            selection.setCurrentIndex(at, flags.NoUpdate)
        selection.select(rows, flags.ClearAndSelect)
        for bar, value in zip(bars, scrolled, strict=True):
            bar.setValue(value)

    def next_of_state(self) -> None:
        """Choose the next row whose state is that of the current one, and go there."""
        at = self.currentIndex().row()
        if at >= 0:
            self.choose(self._model.keys[self._model.next_of_state(at)])
            self.pressed_key.emit("go_to")

    def edit_column(self, column: int) -> None:
        """Edit a cell of the current row."""
        at = self.currentIndex().row()
        if at >= 0:
            cell = self._model.index(at, column)
            self.scrollTo(cell)  # in a narrow panel it may be beside what is shown
            self.edit(cell)

    # Keys

    def keyPressEvent(self, event: Any) -> None:
        """Do the action of the key, if it has one; Up, Down, Home, Ctrl+A and others are Qt's."""
        name = action_of(event)
        if self.state() == QAbstractItemView.State.EditingState:
            event.accept()  # Enter has ended an edit, and is not a key of the table as well
        elif name:
            event.accept()
            self.pressed_key.emit(name)
        elif event.text().strip() and event.text().isprintable():
            event.accept()  # a letter without an action does nothing, here or in the canvas
        else:
            super().keyPressEvent(event)

    def mouseDoubleClickEvent(self, event: Any) -> None:
        """A name or a class is edited, any other cell leads there."""
        index = self.indexAt(event.pos())
        super().mouseDoubleClickEvent(event)
        if index.isValid() and index.column() in (NAME, CLASS):
            self.edit(index)


class ClassDelegate(QStyledItemDelegate):
    """Edits a class in a list of classes: any text, unless the list is fixed."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.names: list[str] = []
        self.fixed = False

    def createEditor(self, parent: QWidget, option: Any, index: QModelIndex) -> QWidget:
        box = described(QComboBox(parent), "Class", "The class of the rows chosen.")
        box.setEditable(not self.fixed)
        box.addItems(["", *self.names])
        return box

    def setEditorData(self, editor: Any, index: QModelIndex) -> None:
        editor.setCurrentText(str(index.data() or ""))

    def setModelData(self, editor: Any, model: Any, index: QModelIndex) -> None:
        if editor.currentText() != (index.data() or ""):
            model.setData(index, editor.currentText())


def action_of(event: Any) -> str:
    """The name of the action of `OBJECT_ACTIONS` that a key has; "" for none."""
    held = event.modifiers() & ~(Qt.KeyboardModifier.KeypadModifier | Qt.KeyboardModifier.ShiftModifier)
    if held:
        return ""
    if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
        return "go_to"
    if event.key() == Qt.Key.Key_Slash:
        return "find"
    pressed = QKeySequence(event.key()).toString(QKeySequence.SequenceFormat.PortableText)
    name = {"Del": "Delete"}.get(pressed, pressed)
    return next((action.name for action in OBJECT_ACTIONS if action.key == name), "")
