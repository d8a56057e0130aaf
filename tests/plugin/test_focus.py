"""Keys belong to what has the focus: the canvas, a number, a button."""

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QAbstractButton, QApplication, QComboBox, QLineEdit, QWidget

from bright_service import balls
from napari_lowlat_seg.plugin.canvas.events import TEXT_FIELDS

IMAGE, TRUTH = balls()
FIRST, SECOND = (20, 25), (9, 9)


@pytest.fixture
def it(bright_window):
    """The two balls, one of them clicked, and the folded part open."""
    it = bright_window(lambda viewer: viewer.add_image(IMAGE, name="balls"))
    it.look((6, None, None))
    it.widget.form.fold.expand(True)
    it.hand().click(FIRST)
    it.settle()
    return it


def focusable(it):
    """All controls of the widget that the Tab key reaches."""
    return reached(it.widget)


def reached(widget):
    """All controls of a widget that the Tab key reaches."""
    controls = [one for one in widget.findChildren(QWidget) if one.isVisible() and one.isEnabled()]
    return [
        one for one in controls if one.focusPolicy() & Qt.FocusPolicy.TabFocus and one.focusProxy() is None
    ]


def press(control, key, modifier=Qt.KeyboardModifier.NoModifier):
    """The key with the focus on the control."""
    control.window().activateWindow()
    control.setFocus()
    QTest.keyClick(QApplication.focusWidget() or control, key, modifier)


def test_enter_accepts_only_on_the_canvas(it):
    """Whatever control of the panel has the focus; a button is pressed instead."""
    session, tried = it.controller().session, 0
    accepted = []
    session.on_accepted = accepted.append
    for control in focusable(it):
        if isinstance(control, QAbstractButton | QComboBox):
            continue
        tried += 1
        press(control, Qt.Key.Key_Return)
        assert not accepted, control.accessibleName()
    assert tried > 8
    it.hand().key("Enter")
    assert len(accepted) == 1


def test_enter_presses_the_button_that_has_the_focus(it):
    """Undo is undone, and nothing is accepted."""
    press(it.widget.form.buttons["undo"], Qt.Key.Key_Return)
    assert it.controller().session.prompted() == {}
    assert it.controller().labels.layer is None


def test_undo_reaches_the_session_wherever_the_focus_is(it):
    """In numbers and lists too, which have an undo of their own."""
    tried = 0
    for control in focusable(it):
        if control.isVisible() and control.isEnabled():
            assert it.controller().session.prompted(), control.accessibleName()
            press(control, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
            assert not it.controller().session.prompted(), (type(control), control.accessibleName())
            it.controller().redo()
            tried += 1
    assert tried > 20


def test_letters_in_a_number_are_no_shortcuts(it):
    """U would clear the object, N begin another."""
    for control in focusable(it):
        if isinstance(control, QLineEdit) or "Spin" in type(control).__name__:
            for key in (Qt.Key.Key_U, Qt.Key.Key_N, Qt.Key.Key_W):
                press(control, key)
    session = it.controller().session
    assert len(session.prompted()) == 1
    assert session.label == 1
    assert np.array_equal(session.mask(it.controller().plane), TRUTH[6] == 1)


def test_what_is_typed_into_a_field_of_napari_is_no_shortcut(it):
    """Enter after the number of a plane accepted the object; letters began another and Escape left it."""
    session, viewer, ours = it.controller().session, it.viewer, set(focusable(it))
    accepted, left = [], []
    session.on_accepted = accepted.append
    session.listeners.append(lambda event: left.append(event.step) if event.kind == "step" else None)
    window = it.widget.window()
    others = [one for one in reached(window) if one not in ours and isinstance(one, TEXT_FIELDS)]
    names = {one.objectName() for one in others}
    assert "slice_label" in names
    assert len(others) > 3
    for field in others:
        plane = viewer.dims.current_step
        for key in (Qt.Key.Key_N, Qt.Key.Key_U, Qt.Key.Key_Return, Qt.Key.Key_Escape):
            field.setFocus()  # the one before may give its focus to napari's sliders when it loses it
            press(field, key)
            assert not accepted, (field, key)
            assert not left, (field, key)
        viewer.dims.current_step = plane
    number = next(one for one in others if one.objectName() == "slice_label")
    number.setFocus()
    number.selectAll()
    QTest.keyClicks(number, "4")
    QTest.keyClick(number, Qt.Key.Key_Return)
    assert viewer.dims.current_step[0] == 4
    assert not accepted
    it.hand().key("Enter")  # on the canvas
    assert len(accepted) == 1
