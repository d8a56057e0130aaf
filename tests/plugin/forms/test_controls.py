"""The controls by themselves: what they show, what they emit, and what they leave alone."""

import pytest
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import QApplication, QComboBox, QDoubleSpinBox, QLineEdit, QSlider, QVBoxLayout, QWidget

from napari_lowlat_seg.plugin.controller.situation import ImageSituation, News
from napari_lowlat_seg.plugin.forms.controls import Chooser, control, show
from napari_lowlat_seg.plugin.forms.main import StateLine
from napari_lowlat_seg.plugin.forms.model import ModelForm, Wanted
from napari_lowlat_seg.plugin.forms.volume import PlaneRange
from napari_lowlat_seg.plugin.settings import SETTING


@pytest.fixture
def shown(qtbot):
    """Show a control in a window that has the keyboard."""
    windows = []

    def show_in_window(native):
        window = QWidget()
        windows.append(window)
        QVBoxLayout(window).addWidget(native)
        with qtbot.waitExposed(window):
            window.show()
        window.activateWindow()
        qtbot.waitUntil(window.isActiveWindow)
        return window

    yield show_in_window
    for window in windows:
        window.close()
        window.deleteLater()


@pytest.fixture
def emitted():
    """What a magicgui control has emitted."""

    def listen(made):
        values = []
        made.changed.connect(values.append)
        return values

    return listen


@pytest.mark.parametrize("name", [name for name, one in SETTING.items() if one.group != "model"])
def test_a_control_has_the_default_and_the_words_of_its_setting(qapp, name):
    """Of whatever kind it is; screen readers and the tooltip say the same."""
    setting = SETTING[name]
    made = control(setting)
    assert made.value == setting.default
    native = made.native
    assert (native.accessibleName(), native.toolTip()) == (setting.label, setting.explanation)


def test_a_number_has_the_limits_the_step_and_the_unit_of_its_setting(qapp):
    """Whole numbers have no point."""
    native = control(SETTING["memory"]).native
    assert (native.minimum(), native.maximum(), native.singleStep()) == (64, 2**20, 256)
    assert (native.text(), native.decimals()) == ("1024 MiB", 0)
    assert control(SETTING["smooth"]).native.text() == "0.0 px"


def test_choices_are_shown_by_their_words(qapp, emitted):
    """And their values are what is emitted."""
    made = control(SETTING["intensities"])
    values = emitted(made)
    assert [made.native.itemText(index) for index in range(2)] == ["automatic", "as displayed"]
    made.native.setCurrentIndex(1)
    assert values == ["displayed"]


def test_what_is_shown_is_not_emitted(qapp, emitted):
    """Else the widget would answer itself."""
    for name, value in (("smooth", 2.5), ("hover", True), ("policy", "overwrite"), ("label", 7)):
        made = control(SETTING[name])
        values = emitted(made)
        show(made, value)
        assert (made.value, values) == (value, [])


def test_a_number_that_is_shown_leaves_the_keyboard_where_it_is(shown):
    """The canvas goes on getting the keys while the label counts up."""
    canvas, made = QLineEdit(), control(SETTING["label"])
    window = shown(made.native)
    window.layout().addWidget(canvas)
    canvas.show()
    canvas.setFocus()
    assert QApplication.focusWidget() is canvas
    show(made, 12)
    assert QApplication.focusWidget() is canvas


def test_the_number_beside_a_slider_can_be_read_and_typed(shown, emitted, qtbot):
    """magicgui's own style leaves it one pixel wide."""
    made = control(SETTING["threshold"], widget_type="FloatSlider")
    shown(made.native)
    values = emitted(made)
    number = made.native.findChild(QDoubleSpinBox)
    field = number.findChild(QLineEdit)
    assert (field.text(), field.width() > field.fontMetrics().horizontalAdvance("0.49")) == ("0.49", True)
    field.selectAll()
    qtbot.keyClicks(field, "0.57")
    qtbot.keyClick(field, Qt.Key.Key_Return)
    assert [round(value, 2) for value in values] == [0.57]


def turn_wheel(native):
    """Turn the mouse wheel over a control."""
    at = native.rect().center()
    event = QWheelEvent(
        QPointF(at),
        QPointF(native.mapToGlobal(at)),
        QPoint(0, 0),
        QPoint(0, -120),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(native, event)


def test_the_wheel_changes_a_number_only_after_a_click_into_it(shown):
    """A hand on the wheel is on its way to somewhere else."""
    made = control(SETTING["smooth"])
    show(made, 5.0)
    shown(made.native)
    made.native.clearFocus()
    turn_wheel(made.native)
    assert made.value == 5.0
    made.native.setFocus()
    turn_wheel(made.native)
    assert made.value == 4.5


@pytest.mark.parametrize("kind", [QSlider, QComboBox])
def test_the_wheel_never_changes_a_slider_or_a_list(shown, kind):
    """Not even with the keyboard on it."""
    made = control(SETTING["threshold"], widget_type="FloatSlider") if kind is QSlider else Chooser("a", "b")
    if kind is QComboBox:
        made.offer([("first", 1), ("second", 2)], 1)
    native = made.native if kind is QComboBox else made.native.findChild(QSlider)
    before = made.value
    shown(made.native)
    native.setFocus()
    turn_wheel(native)
    assert made.value == before


def test_things_of_one_name_are_told_apart(qapp, emitted):
    """A layer of the user's may be called as one of our entries."""
    chooser = Chooser("Labels", "Where objects are written")
    values = emitted(chooser)
    layer = object()
    chooser.offer([("new", None), ("cells", "cells"), ("new", layer)], layer)
    assert (chooser.value, chooser.native.currentIndex(), values) == (layer, 2, [])
    chooser.native.setCurrentIndex(0)
    assert values == [None]
    chooser.offer([("renamed", layer), ("new", None)], layer)
    assert (chooser.current_choice, chooser.value, values) == ("renamed", layer, [None])


def test_nothing_is_in_front_where_the_chosen_thing_is_gone(qapp, emitted):
    """magicgui would choose the first one by itself."""
    chooser = Chooser("Image", "The image")
    values = emitted(chooser)
    chooser.offer([("a", 1), ("b", 2)], 2)
    chooser.offer([("a", 1)], 2)
    assert (chooser.value, chooser.native.currentIndex(), values) == (None, -1, [])


def type_plane(qtbot, planes, name, text):
    """Type one of the two numbers beside the range slider."""
    (field,) = [one for one in planes.findChildren(QLineEdit) if one.accessibleName() == name]
    assert field.focusPolicy() == Qt.FocusPolicy.StrongFocus
    field.setFocus()
    field.selectAll()
    qtbot.keyClicks(field, text)
    qtbot.keyClick(field, Qt.Key.Key_Return)


def test_the_range_of_planes_is_shown_silently_and_typed_aloud(shown, qtbot):
    """Five thousand planes cannot be told apart by a handle of a slider."""
    planes, values = PlaneRange(), []
    planes.changed.connect(values.append)
    shown(planes)
    planes.show_range(5000, (1000, 4999))
    assert (planes.value(), values) == ((1000, 4999), [])
    type_plane(qtbot, planes, "First plane", "1200")
    type_plane(qtbot, planes, "Last plane", "3456")
    assert values == [(1200, 4999), (1200, 3456)]
    planes.show_range(0, (0, 0))
    assert planes.value() == (0, 0)


def test_what_is_going_on_is_worked_out_once_per_turn(qtbot):
    """However often it changes; whoever asks for the sentence earlier gets it as it is now."""
    line, looked = StateLine(), []

    def look():
        looked.append(line.situation.news.text)
        return {"image": ImageSituation()}

    line.look = look
    for news in ("", "Undo: click", "object 1 accepted"):
        line.say(News(news))
    line.update_situation(working="")
    assert looked == []
    qtbot.waitUntil(lambda: "object 1 accepted" in line.text())
    assert looked == ["object 1 accepted"]
    line.say(News("<b>"))
    assert line.sentence == "<b>"
    assert "&lt;b&gt;" in line.text()
    assert line.sentence == "<b>"
    qtbot.wait(20)
    assert looked == ["object 1 accepted", "<b>"]
    line.deleteLater()


@pytest.mark.parametrize("points", [9, 18, 27])
def test_the_numbers_of_the_range_are_as_wide_as_their_digits(shown, qapp, points):
    """Also when the letters grow while they are shown; too narrow, 4999 would become 5e+03."""
    planes = PlaneRange()
    window = shown(planes)
    planes.show_range(5000, (0, 4999))
    window.setStyleSheet(f"QWidget {{ font-size: {points}pt; }}")
    qapp.processEvents()
    last = planes.layout().itemAt(2).widget()
    planes.show_range(5000, (3, 4999))
    assert last.text() == "4999"
    assert last.width() > last.fontMetrics().horizontalAdvance("4999")
    assert last.height() >= last.fontMetrics().height()


def test_where_the_model_runs_takes_one_line_and_is_told_whole(qapp):
    """A row of the form has one line: a second one was cut through the middle of its letters."""
    form = ModelForm(Wanted("default"))
    before = form.found.sizeHint().height()
    facts = {
        "device": "cuda:1 of <b>a machine & its name</b>, 100 ms away",
        "precision": "bf16",
        "licence": "MIT",
    }
    form.show_loaded(facts)
    assert form.found.sizeHint().height() == before
    assert form.found.heightForWidth(80) in (-1, before)
    assert form.found.text() == f"{facts['device']}, bf16"
    assert "cuda:1 of &lt;b&gt;a machine &amp; its name&lt;/b&gt;, 100 ms away, bf16" in form.found.toolTip()
    form.deleteLater()
