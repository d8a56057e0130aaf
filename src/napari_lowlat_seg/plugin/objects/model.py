"""The rows of the table of objects, sorted and filtered here.

A QSortFilterProxyModel asks Python for two values in each comparison; a list is sorted in milliseconds
(docs/benchmarks.md).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from qtpy.QtCore import QAbstractTableModel, QModelIndex, Qt, Signal
from qtpy.QtGui import QColor, QFont

from napari_lowlat_seg.annotation.objects.table import Row

COLUMNS = ("Id", "Name", "State", "Class", "Planes", "Size")
ID, NAME, STATE, CLASS, PLANES, SIZE = range(len(COLUMNS))

FEW = 20
"""Rows that come and go one by one; more of them, and all rows are shown anew."""

ALL = ""
"""The state to filter by that shows all."""

_SORTED: tuple[Callable[[Row], Any], ...] = (
    lambda row: (row.proposed, abs(row.key)),
    lambda row: row.name.casefold(),
    lambda row: row.state,
    lambda row: row.category.casefold(),
    lambda row: row.planes,
    lambda row: row.voxels,
)


def number(value: float) -> str:
    """A number with four digits that count.

    >>> number(1234567.0), number(0.012345), number(14.0)
    ('1.235e+06', '0.01235', '14')
    """
    return f"{value:.4g}"


class ObjectModel(QAbstractTableModel):
    """A table of `Row`s.

    Attributes
    ----------
    unit
        Of the sizes, such as "µm³"; shown in the heading.
    colour
        From a row to the colour of its label, or None.
    class_colour
        From the name of a class to its colour, or None.
    """

    edited = Signal(int, str, str)
    """The user has given the object with a key another "name" or "category"."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.unit = "voxels"
        self.colour: Callable[[Row], QColor | None] = lambda row: None
        self.class_colour: Callable[[str], QColor | None] = lambda name: None
        self._rows: Mapping[int, Row] = {}
        self._keys: list[int] = []  # in the order shown
        self._shown: dict[int, Row] = {}  # what was shown last
        self._column, self._descending = ID, False
        self._words, self._state = "", ALL

    # What is shown

    @property
    def keys(self) -> Sequence[int]:
        """The keys of the rows, in the order shown."""
        return self._keys

    @property
    def total(self) -> int:
        """How many rows there are, shown or not."""
        return len(self._rows)

    def row_at(self, place: int) -> Row:
        """The row at a place."""
        return self._shown[self._keys[place]]

    def place_of(self, key: int) -> int:
        """Where a key is shown; -1 if it is not."""
        if key not in self._shown:
            return -1
        return self._keys.index(key)

    def show_rows(self, rows: Mapping[int, Row]) -> None:
        """Show these rows, all anew."""
        self.beginResetModel()
        self._rows = rows
        self._shown = {key: row for key, row in rows.items() if self._passes(row)}
        self._keys = sorted(self._shown, key=self._order, reverse=self._descending)
        self.endResetModel()

    def show_changes(self, changed: Iterable[int], moved: Iterable[int]) -> bool:
        """Show what has changed in the rows shown last; False if that was done by showing all anew.

        A row that was changed stays where it is until rows are sorted again, so that none jumps away.
        """
        moved = list(moved)
        if len(moved) > FEW:
            self.show_rows(self._rows)
            return False
        for key in changed:
            if key in self._shown:
                self._shown[key] = self._rows[key]
                place = self._keys.index(key)
                self.dataChanged.emit(self.index(place, 0), self.index(place, len(COLUMNS) - 1))
        for key in moved:
            self._move(key)
        return True

    def _move(self, key: int) -> None:
        row = self._rows.get(key)
        if key in self._shown:
            place = self._keys.index(key)
            if row is not None:
                self._shown[key] = row
                self.dataChanged.emit(self.index(place, 0), self.index(place, len(COLUMNS) - 1))
                return
            self.beginRemoveRows(QModelIndex(), place, place)
            del self._keys[place], self._shown[key]
            self.endRemoveRows()
        elif row is not None and self._passes(row):
            self._shown[key] = row
            place = len(self._keys)
            if not self._descending:  # else at the end, until it is sorted again
                place = bisect_left(self._keys, self._order(key), key=self._order)
            self.beginInsertRows(QModelIndex(), place, place)
            self._keys.insert(place, key)
            self.endInsertRows()

    def filter(self, words: str, state: str = ALL) -> None:
        """Show only rows in a state in which each of the words is found: in number, name, class or state."""
        self._words, self._state = words.casefold(), state
        self.show_rows(self._rows)

    def _passes(self, row: Row) -> bool:
        if self._state not in (ALL, row.state):
            return False
        if not self._words:
            return True
        known = "" if row.proposed else str(row.key)
        text = f"{known} {row.name} {row.category} {row.state}".casefold()
        return all(word in text for word in self._words.split())

    def _order(self, key: int) -> tuple[Any, int]:
        return _SORTED[self._column](self._shown[key]), key

    def next_of_state(self, place: int) -> int:
        """The next place after this one whose row has the same state; after the last comes the first."""
        state = self.row_at(place).state
        behind = [*range(place + 1, len(self._keys)), *range(place)]
        return next((at for at in behind if self.row_at(at).state == state), place)

    # Qt

    def rowCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self._keys)

    def columnCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(COLUMNS)

    def headerData(self, section: int, orientation: Any, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if orientation != Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return f"{COLUMNS[section]} ({self.unit})" if section == SIZE else COLUMNS[section]
        return None

    def flags(self, index: QModelIndex) -> Any:
        flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        if index.isValid() and index.column() in (NAME, CLASS) and not self.row_at(index.row()).proposed:
            flags |= Qt.ItemFlag.ItemIsEditable
        return flags

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        row, column = self.row_at(index.row()), index.column()
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole):
            return text_of(row, column)
        if role == Qt.ItemDataRole.DecorationRole and column == ID:
            return self.colour(row)
        if role == Qt.ItemDataRole.DecorationRole and column == CLASS:
            return self.class_colour(row.category)
        if role == Qt.ItemDataRole.TextAlignmentRole and column in (ID, PLANES, SIZE):
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        if role == Qt.ItemDataRole.FontRole and row.hidden:
            font = QFont()
            font.setItalic(True)
            return font
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return f"{COLUMNS[column]} {text_of(row, column) or 'none'}"
        return tip_of(row) if role == Qt.ItemDataRole.ToolTipRole else None

    def setData(self, index: QModelIndex, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:
        row, column = self.row_at(index.row()), index.column()
        if role != Qt.ItemDataRole.EditRole or column not in (NAME, CLASS):
            return False
        self.edited.emit(row.key, "name" if column == NAME else "category", str(value).strip())
        return True

    def sort(self, column: int, order: Any = Qt.SortOrder.AscendingOrder) -> None:
        """Sort by a column; selected rows stay selected."""
        self.layoutAboutToBeChanged.emit()
        before = self.persistentIndexList()
        kept = [(self._keys[index.row()], index.column()) for index in before]
        self._column, self._descending = column, order == Qt.SortOrder.DescendingOrder
        self._keys = sorted(self._shown, key=self._order, reverse=self._descending)
        places = {key: place for place, key in enumerate(self._keys)}
        self.changePersistentIndexList(before, [self.index(places[key], at) for key, at in kept])
        self.layoutChanged.emit()


def text_of(row: Row, column: int) -> str:
    """What a cell shows."""
    known = row.voxels > 0
    return (
        "?" if row.proposed else str(row.key),
        f"score {row.score:.2f}" if row.proposed and row.score is not None else row.name,
        f"{row.state}, hidden" if row.hidden else row.state,
        row.category,
        str(row.planes) if known else "–",
        number(row.size) if known else "–",
    )[column]


def tip_of(row: Row) -> str:
    """The whole row in words; markup in a name, which may be a stranger's, stays text."""
    what = "proposal" if row.proposed else f"object {row.key}"
    names = ", ".join(part for part in (row.name, row.category) if part)
    tip = f"{what}{names and ': '}{names}; {row.voxels} voxels on {row.planes} planes"
    return f"<p>{escape(tip)}</p>" if "<" in tip else tip  # Qt guesses from it whether a tooltip is HTML
