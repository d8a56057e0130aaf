"""A strip along the planes of a volume: where the object is, and how certain the model is of it there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import QEvent, QRectF, QSize, QSizeF, Qt, Signal
from qtpy.QtGui import QColor, QPainter
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_lowlat_seg.plugin.forms.controls import described

TIP = (
    "One bar for each plane that the slider goes through: blue where you gave prompts; after a propagation "
    "as high as the model is certain, amber to red: check these planes. Red at the top alone: there it saw "
    "no object, and went no further; rest the mouse there to read why. Click to go there."
)
OUTSIDE, INSIDE = 0.04, 0.12
"""Mixing ratios of the theme's text colour into its background."""

ANCHOR, CERTAIN, UNCERTAIN, DOUBTFUL = "#2b8cff", "#ffc20a", "#f28e2b", "#d7301f"
HEIGHT, REFUSED_HEIGHT = 28, 8
"""Pixels of the strip, and of the mark of a plane where the object seemed to end."""


class Strip(QWidget):
    """A bar for each plane, side by side."""

    clicked = Signal(int)
    """The position of a plane that the user wants to see."""

    def __init__(self) -> None:
        super().__init__()
        described(self, "Confidence along the planes", TIP)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self._count, self._range = 1, (0, 0)
        self._marks: dict[int, float | None] = {}
        self._refused: dict[int, str] = {}
        self._here = -1

    def sizeHint(self) -> QSize:
        """As wide as there is room."""
        return QSize(120, HEIGHT)

    def show_marks(
        self,
        count: int,
        range_: tuple[int, int],
        marks: Sequence[tuple[int, float | None]],
        refused: Sequence[tuple[int, str]] = (),
    ) -> None:
        """Show which planes have a mask; what is shown already is not drawn again.

        Parameters
        ----------
        count
            Number of planes.
        range_
            The first and the last plane that a propagation may write to.
        marks
            (position, confidence from 0 to 1) of each plane with a mask; None where the user gave prompts.
        refused
            (position, reason) of each plane without a mask at which the object seemed to end.
        """
        shown = (max(1, count), range_, dict(marks), dict(refused))
        if shown == (self._count, self._range, self._marks, self._refused):
            return
        self._count, self._range, self._marks, self._refused = shown
        anchors = sum(confidence is None for confidence in self._marks.values())
        propagated = {position: one for position, one in self._marks.items() if one is not None}
        words = f"planes with prompts: {anchors}, propagated: {len(propagated)}"
        if propagated:
            least = min(propagated, key=lambda position: propagated[position])
            words += f"; least certain: plane {least}, {100 * propagated[least]:.0f} %"
        words += "".join(f"; plane {position} {reason}" for position, reason in self._refused.items())
        self.setAccessibleDescription(words)
        self.update()

    def show_here(self, position: int) -> None:
        """Mark the plane in view; -1 for none."""
        if position != self._here:
            self._here = position
            self.update()

    def tip_at(self, x: float) -> str:
        """What is said of the plane under a horizontal widget coordinate."""
        width = self.width() / self._count
        away = {position: abs((position + 0.5) * width - x) for position in self._refused}
        nearest = min(away, key=lambda position: away[position], default=None)
        if nearest is None or away[nearest] > max(2.0, width / 2):
            return TIP
        return f"Plane {nearest} {self._refused[nearest]}"

    def event(self, event: QEvent) -> bool:
        """A tooltip says why a plane was refused where the mouse rests on its mark."""
        if event.type() == QEvent.Type.ToolTip:
            self.setToolTip(self.tip_at(event.pos().x()))
        return bool(super().event(event))

    def position_at(self, x: float) -> int:
        """The plane under a horizontal widget coordinate."""
        return min(self._count - 1, max(0, int(x * self._count / max(1, self.width()))))

    def paintEvent(self, event: Any) -> None:
        """Bars from the bottom; the range that may be written to stands out from the rest.

        napari's style sheet brings the theme into the palette, and has everything painted anew with another.
        """
        painter = QPainter(self)
        ground, text = self.palette().window().color(), self.palette().windowText().color()
        low, high = self._range
        painter.fillRect(self.rect(), _between(ground, text, OUTSIDE))
        painter.fillRect(self._columns(low, high - low + 1, 1.0), _between(ground, text, INSIDE))
        for position, confidence in self._marks.items():
            height = 1.0 if confidence is None else 0.15 + 0.85 * confidence
            bar = self._columns(position, 1, height)
            painter.fillRect(bar, QColor(_colour(confidence)))
            # Amber alone hardly shows on a light background.
            painter.fillRect(QRectF(bar.topLeft(), QSizeF(bar.width(), 1)), text)
        for position in self._refused:
            column = self._columns(position, 1, 1.0)
            painter.fillRect(
                QRectF(column.topLeft(), QSizeF(column.width(), REFUSED_HEIGHT)), QColor(DOUBTFUL)
            )
        if self._here >= 0:
            column = self._columns(self._here, 1, 1.0)
            painter.setPen(text)
            painter.drawRect(QRectF(column.x(), 0.5, max(1.0, column.width() - 1), self.height() - 1.5))
        painter.end()

    def mousePressEvent(self, event: Any) -> None:
        """Go to the plane under the mouse."""
        self.clicked.emit(self.position_at(event.position().x()))

    def mouseMoveEvent(self, event: Any) -> None:
        """Dragging scrolls."""
        self.mousePressEvent(event)

    def _columns(self, first: int, count: int, height: float) -> QRectF:
        width = self.width() / self._count
        top = (1 - height) * self.height()
        return QRectF(first * width, top, max(1.0, count * width), self.height() - top)


def _between(first: QColor, second: QColor, share: float) -> QColor:
    pairs = zip(first.getRgb()[:3], second.getRgb()[:3])
    return QColor(*(round((1 - share) * one + share * other) for one, other in pairs))


def _colour(confidence: float | None) -> str:
    if confidence is None:
        return ANCHOR
    return CERTAIN if confidence >= 0.8 else UNCERTAIN if confidence >= 0.6 else DOUBTFUL
