"""Keys and the wheel on napari's canvas that Qt or napari would use otherwise, and which keys are held.

Qt takes Tab to move the focus before a widget sees it, and napari zooms with the wheel whatever key is held.
Only events of the canvas itself are looked at: everywhere else Tab moves the focus as it always does.
napari hands to the canvas what its text fields leave over: Enter after the number of a plane, for one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari.utils.key_bindings import coerce_keybinding
from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractSpinBox,
    QComboBox,
    QDockWidget,
    QLineEdit,
    QPlainTextEdit,
    QTextEdit,
    QWidget,
)


def canvas_beside(widget: QWidget) -> QWidget | None:
    """The widget that napari draws on in the window of a dock widget; None before it is docked."""
    top = widget
    while top.parentWidget() is not None:
        top = top.parentWidget()
    found = (one for one in top.findChildren(QWidget) if "Canvas" in type(one).__name__)
    return next(found, None)


ARROWS = {
    Qt.Key.Key_Up: (-1, 0),
    Qt.Key.Key_Down: (1, 0),
    Qt.Key.Key_Left: (0, -1),
    Qt.Key.Key_Right: (0, 1),
}
"""Steps down and to the right."""

MODIFIERS = (Qt.KeyboardModifier.ShiftModifier, Qt.KeyboardModifier.ControlModifier)
HELD = {Qt.Key.Key_Shift: "shift", Qt.Key.Key_Control: "control"}


TEXT_FIELDS = (QLineEdit, QAbstractSpinBox, QComboBox, QPlainTextEdit, QTextEdit)
ENTER = (Qt.Key.Key_Return, Qt.Key.Key_Enter)


class TypedKeys(QObject):
    """Keeps keys for a field or button of napari's window from being shortcuts on the canvas.

    A field leaves Enter, Escape and letters that it does not take to the widgets around it, and those around
    the canvas, like docks, hand them to the canvas: Enter after the number of a plane would accept an object.

    Parameters
    ----------
    canvas
        The widgets around it and all docks of its window are looked at for as long as this is referred to.
        They are not held, nor by a slot: with PyQt6 that would keep the window for good.
    """

    def __init__(self, canvas: QWidget) -> None:
        super().__init__()
        # In what kind of widget the key was pressed: a field may give up the focus before it leaves Enter.
        # Not in which one: that would be held for as long as no key comes, and its window with it.
        self._focus: type | None = None
        around = canvas.parentWidget()
        while around is not None:
            around.installEventFilter(self)
            around = around.parentWidget()
        for dock in canvas.window().findChildren(QDockWidget):
            dock.installEventFilter(self)

    def eventFilter(self, around: Any, event: QEvent) -> bool:
        """Whether the event was used here."""
        kind = event.type()
        if kind == QEvent.Type.ChildPolished and isinstance(event.child(), QDockWidget):
            event.child().installEventFilter(self)
        elif kind == QEvent.Type.ShortcutOverride:  # comes before the key, and goes the same way
            self._focus = type(around.window().focusWidget())
        elif kind == QEvent.Type.KeyPress:
            focus, self._focus = self._focus or type(around.window().focusWidget()), None
            if self._belongs(event, focus):
                event.accept()
                return True
        return False

    @staticmethod
    def _belongs(event: Any, focus: type) -> bool:
        """Whether a key is that of a field or button, also if it does nothing with it."""
        if issubclass(focus, TEXT_FIELDS):
            text = event.text()
            return event.key() in (*ENTER, Qt.Key.Key_Escape) or (bool(text) and text.isprintable())
        return issubclass(focus, QAbstractButton) and event.key() in ENTER


class CanvasEvents(QObject):
    """Gives Tab to the layer's keys and Shift+wheel to the levels of a mask, where there are several.

    While the keyboard's cursor is there, the arrow keys move it.

    Parameters
    ----------
    viewer
        napari's viewer.
    controller
        Returns that of the image in front; None without an image.
    """

    held = Signal(bool, bool)
    """Whether Shift and Control are down."""

    def __init__(self, viewer: Any, controller: Callable[[], Any]) -> None:
        super().__init__()
        self._viewer, self._controller = viewer, controller
        self._canvas: QWidget | None = None
        self._refused: Any = None  # the state of a plane whose mask has no other level, as the user was told
        self._typed: TypedKeys | None = None

    def watch(self, canvas: QWidget | None) -> None:
        """Look at the events of this canvas from now on; None looks at none."""
        if canvas is self._canvas:
            return
        if self._canvas is not None:
            self._canvas.removeEventFilter(self)
        self._canvas = canvas
        self._typed = None if canvas is None else TypedKeys(canvas)
        if canvas is not None:
            canvas.installEventFilter(self)
            canvas.destroyed.connect(self._gone)

    def eventFilter(self, canvas: QObject, event: QEvent) -> bool:
        """Whether the event was used here."""
        kind = event.type()
        if kind in (QEvent.Type.KeyPress, QEvent.Type.KeyRelease) and event.key() in HELD:
            self._hold(event.key(), kind == QEvent.Type.KeyPress, event.modifiers())
        elif kind == QEvent.Type.KeyPress:
            if event.key() in (Qt.Key.Key_Tab, Qt.Key.Key_Backtab):
                return self._tab(canvas, event)
            return event.key() in ARROWS and self._arrow(event)
        elif kind == QEvent.Type.FocusOut:
            self.held.emit(False, False)
        return kind == QEvent.Type.Wheel and self._wheel(event)

    def _gone(self) -> None:
        self._canvas = None

    @property
    def _levels(self) -> Any:
        """Those of the image in front, if there is something to choose."""
        controller = self._controller()
        levels = None if controller is None else controller.levels
        return levels if levels is not None and levels.at_hand else None

    def _hold(self, key: Any, down: bool, others: Any) -> None:
        shift, control = (bool(others & modifier) for modifier in MODIFIERS)
        self.held.emit(*((down, control) if HELD[key] == "shift" else (shift, down)))

    def _arrow(self, event: Any) -> bool:
        """Move the cursor, if there is one and one of our layers has the keys."""
        controller, held = self._controller(), event.modifiers() & ~Qt.KeyboardModifier.KeypadModifier
        shift = Qt.KeyboardModifier.ShiftModifier
        if controller is None or controller.cursor.at is None or not controller.mouse.mode or held & ~shift:
            return False
        controller.cursor.move(*ARROWS[event.key()], far=bool(held & shift))
        return True

    def _tab(self, canvas: Any, event: Any) -> bool:
        """Hand the key to napari, which calls what the active layer has for it; else Qt moves the focus.

        A mask without another level holds the key once, which says so: who asks for one goes on with Enter,
        and would press the button that has got the focus.
        """
        held = event.modifiers()
        back = event.key() == Qt.Key.Key_Backtab or bool(held & Qt.KeyboardModifier.ShiftModifier)
        active = self._viewer.layers.selection.active
        bound = coerce_keybinding("Shift+Tab" if back else "Tab") in getattr(active, "keymap", ())
        if not bound:
            return False
        if self._levels is None:
            return self._refuse()
        if back:
            held |= Qt.KeyboardModifier.ShiftModifier
        canvas.keyPressEvent(QKeyEvent(QEvent.Type.KeyPress, Qt.Key.Key_Tab, held))
        return True

    def _refuse(self) -> bool:
        """Say once that there is no other level; False where nothing is begun, and at the next key."""
        controller = self._controller()
        begun = None if controller is None else controller.levels.without_choice
        last, self._refused = self._refused, begun
        if begun is None or begun is last:
            return False
        controller.levels.refuse()
        return True

    def _wheel(self, event: Any) -> bool:
        """Shift+wheel: the next larger or smaller level, one for each notch."""
        turned = event.angleDelta()
        steps = turned.y() or turned.x()  # some systems turn a wheel with Shift sideways
        if event.modifiers() != Qt.KeyboardModifier.ShiftModifier or not steps or self._levels is None:
            return False
        (self._levels.larger if steps > 0 else self._levels.smaller)()
        return True
