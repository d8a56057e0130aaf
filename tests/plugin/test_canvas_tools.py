"""The tools of the canvas in a real window: levels of a mask, edits of the mask, limits."""

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractScrollArea,
    QAbstractSpinBox,
    QHeaderView,
    QLineEdit,
    QTableView,
    QWidget,
)
from scipy import ndimage

from bright_service import balls
from napari_lowlat_seg.core.masks import edited
from napari_lowlat_seg.core.prompts import Box
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.forms.controls import Fold
from napari_lowlat_seg.plugin.layers.preview import CONTOUR, MASK, POSITIVE
from napari_lowlat_seg.plugin.settings import settings
from widget_page import WidgetPage

IMAGE, TRUTH = balls()
PLANE = Plane((6, None, None))
BALL = TRUTH[6] == 1
PART, MORE = ndimage.binary_erosion(BALL), ndimage.binary_dilation(BALL)


@pytest.fixture
def it(own_settings, bright_window):
    """The ball in the middle was clicked."""
    it = bright_window(lambda viewer: viewer.add_image(IMAGE, name="balls"))
    it.look(PLANE.index)
    it.settle()
    it.hand().click((20, 25))
    it.settle()
    assert it.controller().levels.place(PLANE) == (2, 3, "first mask")
    return it


def shown(it):
    """The mask of the current object."""
    return it.controller().session.mask(PLANE)


def test_a_level_is_named_behind_what_is_about_the_first_prompt_only(it):
    """A propagation leaves it to choose, and says what was done and no more; so does its undo."""
    hand, propagation = it.hand(), it.controller().propagation
    hand.key("Shift+J")
    it.qtbot.waitUntil(lambda: not propagation.running and not it.worker.busy)
    assert it.widget.sentence == "propagated to 11 planes (planes 0-11)"
    hand.key("Ctrl+Z")
    assert it.widget.sentence == "Undo: propagate"
    it.service.gate.clear()
    hand.key("Shift+J")
    it.qtbot.waitUntil(lambda: propagation.running and it.worker.busy)
    hand.key("Escape")
    it.service.gate.set()
    it.qtbot.waitUntil(lambda: it.widget.sentence == "stopped after 0 of 11 planes")
    hand.key("Tab")
    assert it.widget.sentence == "level 3 of 3: larger mask"
    hand.click((22, 26))
    it.settle()
    assert "level" not in it.widget.sentence
    hand.key("Ctrl+Z")
    assert it.widget.sentence == "Undo: click; level 3 of 3: larger mask"
    hand.key("Ctrl+Z")
    assert it.widget.sentence == "Undo: larger mask; level 2 of 3: first mask"


def test_tab_and_shift_wheel_go_through_the_levels(it):
    """Round by Tab, to the ends by the wheel, each a step of undo; others are outlined, the line tells."""
    hand, session = it.hand(), it.controller().session
    assert it.widget.sentence.endswith("; level 2 of 3: first mask")
    pixels = np.asarray(it.controller().preview.layer.data)
    assert not (pixels == CONTOUR).any()
    hand.key("Tab")
    assert np.array_equal(shown(it), MORE)
    assert it.widget.sentence == "level 3 of 3: larger mask"
    assert (np.asarray(it.controller().preview.layer.data) == CONTOUR).any()
    hand.key("Tab")
    assert np.array_equal(shown(it), PART)
    hand.key("Tab")
    assert np.array_equal(shown(it), BALL)
    hand.key("Shift+Tab")
    assert np.array_equal(shown(it), PART)
    hand.key("Shift+Tab")
    assert np.array_equal(shown(it), MORE)
    zoom = it.viewer.scene.camera.zoom
    for mask in (BALL, PART, PART):
        hand.wheel((20, 25), -1, "Shift")
        assert np.array_equal(shown(it), mask)
    hand.wheel((20, 25), 1, "Shift")
    assert np.array_equal(shown(it), BALL)
    assert it.viewer.scene.camera.zoom == zoom
    hand.key("Ctrl+Z")
    assert np.array_equal(shown(it), PART)
    assert it.widget.sentence == "Undo: first mask; level 1 of 3: smaller mask"
    hand.click((12, 12), "Ctrl")
    request = session.request(PLANE)
    assert request is None or np.array_equal(request.previous.mask, PART)
    it.settle()
    assert session.levels(PLANE) == ()
    assert not it.controller().levels.at_hand


def test_another_axis_outlines_the_cut_and_a_click_there_corrects_it(it):
    """Thinly, and no mask of the plane's own; a click that comes before the masks waits for them."""
    hand, session, preview = it.hand(), it.controller().session, it.controller().preview
    coronal, above = Plane((None, 20, None)), Plane((7, None, None))

    def pixels():
        return np.asarray(preview.layer.data).reshape(it.controller().grid.sides(coronal))

    it.look(above.index)
    it.service.gate.clear()
    hand.click((20, 25))
    it.look(coronal.index)
    hand.click((4, 25))
    assert not session.state(coronal).prompts
    it.service.gate.set()
    it.settle()
    cut = np.zeros_like(TRUTH[:, 20], bool)
    cut[6:8] = TRUTH[6:8, 20] == 1
    assert session.state(coronal).previous is None  # two lines are not the whole object
    assert np.array_equal(pixels() == MASK, TRUTH[:, 20] == 1)
    hand.key("Ctrl+Z")
    assert set(np.unique(pixels())) == {0, CONTOUR}
    assert not (pixels()[~cut]).any()
    assert it.widget.sentence.endswith("outline: cut of the masks on other axes, known on 16 % of this plane")
    hand.click((6, 25), "Ctrl")
    it.settle()
    assert np.array_equal(session.state(coronal).previous.mask, cut)
    hand.key("Enter")
    it.settle()
    written = np.asarray(it.controller().labels.layer.data)
    assert not written[:, 20].any()
    assert np.array_equal(written[6:8, 21], np.where(TRUTH[6:8, 21] == 1, 1, 0))


def test_tab_waits_for_the_model_and_moves_the_focus_elsewhere(it):
    """Click, Tab, Enter before the answer writes the larger mask; without an object Tab is Qt's."""
    hand, label = it.hand(), it.controller().session.label
    hand.key("Enter")
    it.settle()
    assert not it.controller().levels.at_hand
    it.viewer.window.activate()
    hand.canvas.setFocus()
    hand.key("Tab")
    assert not hand.canvas.hasFocus()
    it.service.gate.clear()
    hand.click((9, 9))
    hand.key("Tab")
    hand.key("Enter")
    it.qtbot.wait(50)
    assert it.controller().session.label == label + 1
    it.service.gate.set()
    it.qtbot.waitUntil(lambda: it.controller().session.label == label + 2)
    written = np.asarray(it.controller().labels.layer.data)[6] == label + 1
    assert np.array_equal(written, ndimage.binary_dilation(TRUTH[6] == 2))
    box = it.widget.form.image.native
    box.setFocus()
    it.qtbot.keyClick(box, Qt.Key.Key_Tab)
    assert not box.hasFocus()


def test_tab_says_once_that_there_is_no_other_level(it):
    """Enter comes next, and must not press the button to which Tab has moved the focus."""
    hand, page = it.hand(), WidgetPage(it.widget)
    accept = it.widget.form.buttons["accept"]
    place = accept.mapTo(it.widget, QPoint(0, 0))
    it.viewer.window.activate()
    hand.canvas.setFocus()
    hand.click((9, 30), "Ctrl")  # a second prompt: only the mask of the first has levels
    it.settle()
    for key in ("Tab", "Shift+Tab"):
        hand.click((9, 30 + len(key)), "Ctrl")
        it.settle()
        assert not it.controller().levels.at_hand
        hand.key(key)
        assert hand.canvas.hasFocus()
        assert page.sentence == (
            "Larger and smaller masks are offered after the first click on an object. "
            "The same key again leaves the image."
        )
    hand.key("Tab")
    assert not hand.canvas.hasFocus()
    # The panel has all the room of its dock: nothing is scrolled beside empty space.
    assert it.widget.height() > it.widget.parentWidget().height() - 50
    # The brush says what it does, and Escape speaks of nothing that was not there.
    it.controller().preview.brush()
    hand.drag((30, 30), (32, 34))
    assert page.sentence == "mask painted by hand"
    it.controller().prompts.activate()
    hand.key("Escape")
    assert page.sentence == "ready"
    # Another hint, of another length, moves nothing.
    hint = it.widget.form.hint.accessibleName()
    hand.key("Enter")
    it.settle()
    assert it.widget.form.hint.accessibleName() != hint
    assert accept.mapTo(it.widget, QPoint(0, 0)) == place


def test_all_text_of_the_panel_grows_with_the_font(it):
    """What is typed and the table too, which napari's style leaves as they are."""
    form, dock = it.widget.form, it.widget.parentWidget()
    kinds = (QLineEdit, QTableView, QHeaderView)
    texts = [one for one in form.findChildren(QWidget) if isinstance(one, kinds)]
    texts = [one for one in texts if not isinstance(one.parent(), QAbstractSpinBox)]
    assert len(texts) >= 5
    for points in (9, 20):  # as napari's style does; its setting is in a file that other tests read
        dock.setStyleSheet(f"QLabel {{ font-size: {points}pt }}")
        it.qtbot.wait(100)
        assert {one.font().pointSizeF() for one in (form.state, *texts)} == {points}


def test_the_mask_is_edited_with_a_preview(it):
    """Outlined first, then applied as one step; in 3-D on all planes; brush and eraser show which is on."""
    page, session = WidgetPage(it.widget), it.controller().session
    it.widget.form.mask_fold.expand(True)
    page.choose("Edit", "Grow")
    page.write("By", 2)
    page.press("Preview")
    it.qtbot.waitUntil(lambda: bool(it.controller().mask_tools.preview(PLANE)))
    grown = it.controller().mask_tools.preview(PLANE)[0].on(BALL.shape)
    assert np.array_equal(grown, edited(BALL, "grow", 2))
    assert np.array_equal(shown(it), BALL)
    page.press("Apply")
    it.qtbot.waitUntil(lambda: np.array_equal(shown(it), grown))
    assert page.sentence == "mask edited on 1 plane"
    assert not it.controller().mask_tools.preview(PLANE)
    assert "Preview" not in page.pressed()
    page.press("Preview")
    it.viewer.add_image(IMAGE, name="other")
    it.qtbot.waitUntil(lambda: "other" in page.options("Image"))
    for name in ("other", "balls"):  # a preview ends when another image is in front
        page.choose("Image", name)
        it.settle()
        assert "Preview" not in page.pressed()
        assert not it.controller().mask_tools.preview(PLANE)
    page.press("3-D")
    page.press("Apply")
    it.qtbot.waitUntil(lambda: len(session.states()) > 1)
    assert "planes" in page.sentence
    for _ in range(2):
        it.hand().key("Ctrl+Z")
        assert it.controller().plane == PLANE  # which both edits have changed
    assert np.array_equal(shown(it), BALL)
    assert "Prompts" in page.pressed()
    it.hand().key("U")
    assert page.sentence == "ready"  # and nothing of an object that is no more
    it.hand().key("Ctrl+Z")
    it.hand().key("G")
    assert "Brush" in page.pressed()
    page.press("Eraser")
    assert str(it.controller().preview.layer.mode) == "erase"
    it.viewer.layers.selection.active = it.controller().layer
    assert not page.pressed() & {"Prompts", "Brush", "Eraser"}
    page.press("Prompts")


def test_objects_are_kept_to_a_range_and_to_an_area(it):
    """Named among what is not as delivered, and lifted by one click; a lasso becomes the area."""
    page, session = WidgetPage(it.widget), it.controller().session
    page.check("Only these intensities")
    assert session.limits.intensities == session.volume.window
    page.write("Highest", 100)
    assert not shown(it).any()
    page.part("Reset only intensities 0 to 100").click()
    assert np.array_equal(shown(it), BALL)
    it.hand().drag((14, 18), (20, 32), key="Shift")
    it.settle()
    page.part("Area").click()
    it.settle()
    assert len(session.state(PLANE).prompts) == 1
    rows = np.flatnonzero(shown(it).any(axis=1))
    assert rows.max() in (19, 20)
    assert np.array_equal(shown(it)[:19], BALL[:19])
    page.part("Area").click()
    assert np.array_equal(shown(it), BALL)


def test_the_keyboard_alone_places_clicks_and_hints_follow_the_keys(it):
    """A cross moves by the arrow keys, faster with Shift; without it they are napari's."""
    hand, controller = it.hand(), it.controller()
    it.qtbot.waitUntil(lambda: it.viewer.help.startswith("click or scribble: + object; Control"))
    hand.key_down("Control")
    assert it.viewer.help == "click or scribble: − background"
    hand.key_up("Control")
    assert it.viewer.help.endswith("Tab: larger mask")
    hand.key("Enter")
    it.settle()
    hand.key("Shift+C")
    start = np.array(controller.cursor.at)
    it.qtbot.waitUntil(lambda: it.viewer.help.startswith("arrow keys"))
    assert (np.asarray(controller.preview.layer.data) == CONTOUR).any()
    step = it.viewer.dims.current_step
    hand.key("Right")
    hand.key("Down")
    one = np.array(controller.cursor.at) - start
    assert one[0] == one[1] >= 1
    hand.key("Shift+Left")
    assert controller.cursor.at[1] == max(0, start[1] - 9 * one[1])
    assert it.viewer.dims.current_step == step
    while controller.cursor.at[0] > 9:
        hand.key("Up")
    while controller.cursor.at[1] > 9:
        hand.key("Left")
    hand.key("F")
    it.settle()
    (click,) = controller.session.state(PLANE).prompts
    assert (click.at, click.positive) == (controller.cursor.at, True)
    hand.key("Shift+F")
    assert not controller.session.state(PLANE).prompts[-1].positive
    hand.key("U")
    controller.set("tool", "box")
    for given_up in (True, False):  # a box from here to four steps below and to the right
        hand.key("D")
        corner = controller.cursor.at
        for key in ("Down", "Right") * 4:
            hand.key(key)
        assert (np.asarray(controller.preview.layer.data) == POSITIVE).any()
        assert controller.hand.drawing
        hand.key("Escape" if given_up else "D")
        assert bool(controller.session.state(PLANE).prompts) is not given_up
    it.settle()
    (box,) = controller.session.state(PLANE).prompts
    assert box == Box(corner, controller.cursor.at)
    hand.key("Shift+C")
    assert controller.cursor.at is None
    assert not (np.asarray(controller.preview.layer.data) == CONTOUR).any()


def test_every_control_has_a_name_and_hints_can_be_dismissed(it):
    """Whatever the keyboard reaches in the dock is named for a screen reader, and explained."""
    for fold in it.widget.findChildren(Fold):
        fold.expand(True)
    reached = [one for one in it.widget.findChildren(QWidget) if one.focusPolicy() & Qt.FocusPolicy.TabFocus]
    assert len(reached) > 50
    unnamed = [
        one
        for one in reached
        if not (one.accessibleName() or one.parent().accessibleName())
        and not isinstance(one, QAbstractScrollArea)
    ]
    assert [(type(one).__name__, one.objectName(), type(one.parent()).__name__) for one in unnamed] == []
    for button in it.widget.findChildren(QAbstractButton):
        assert button.toolTip() or button.parent().toolTip() or not button.isVisible(), button.text()
    page, row = WidgetPage(it.widget), it.widget.form.hint
    row.show()
    assert row.accessibleName().startswith("Hint: Click what is missing")
    page.press("Got it")
    assert not row.isVisible()
    assert settings().prompts.hints is False
    dialog = it.widget.show_shortcuts()
    dialog.search.setText("eras")
    shown_rows = [name for name, field in dialog.fields.items() if not field.isHidden()]
    assert shown_rows == ["eraser"]
    dialog.search.setText("islands")
    assert [name for name, parts in dialog.fixed.items() if not parts[1].isHidden()] == ["split"]
    assert all(field.isHidden() for field in dialog.fields.values())
    dialog.close()
