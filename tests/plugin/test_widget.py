"""The dock widget in a real window, with a controller and a worker that write down how they are called."""

import itertools
import re
import threading
from dataclasses import replace
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels, Points, Shapes
from napari.utils._proxies import PublicOnlyProxy
from napari.utils.notifications import notification_manager
from psygnal import Signal as PySignal
from qtpy.QtCore import QEvent, QObject, QPoint, QPointF, QSignalBlocker, Qt, Signal
from qtpy.QtGui import QKeySequence, QTextDocument, QWheelEvent
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QDialogButtonBox,
    QFileDialog,
    QFormLayout,
    QKeySequenceEdit,
    QLabel,
    QLineEdit,
    QProgressBar,
    QScrollBar,
    QSlider,
    QWidget,
)

from napari_lowlat_seg.core.labels import Policy
from napari_lowlat_seg.core.masks import PostProcessing
from napari_lowlat_seg.plugin.canvas.hints import first_hint
from napari_lowlat_seg.plugin.controller.controller import AnnotationController
from napari_lowlat_seg.plugin.controller.situation import CHOOSE, NO_IMAGE, ImageSituation, News
from napari_lowlat_seg.plugin.controller.view_state import FilesState, Settings, StackState, View, ViewState
from napari_lowlat_seg.plugin.forms.model import importing
from napari_lowlat_seg.plugin.keys import ACTIONS, DEFAULTS
from napari_lowlat_seg.plugin.notices import plain
from napari_lowlat_seg.plugin.settings import PLUGIN, settings
from napari_lowlat_seg.plugin.widget import LowlatWidget
from widget_page import WidgetPage

FACTS = {"device": "cuda:0", "precision": "bfloat16", "licence": "Apache-2.0"}


class FakePropagation:
    """Twelve planes; writes down what it is called with."""

    progressed = PySignal()

    def __init__(self, called):
        self.called, self.direction, self.points = called, "both", None
        self.range, self.marks = (0, 11), ((3, None), (4, 0.5))
        self.refused = ((6, "is darker"),)

    @property
    def state(self):
        return StackState(12, self.range, self.direction, 3, self.marks, self.refused, volume=True)

    def look_at(self, position):
        self.called.append(("look_at", position))

    def __getattr__(self, name):
        if f"propagation.{name}" in METHODS:
            return lambda: self.called.append(name)
        raise AttributeError(name)


METHODS = {action.method or action.name for action in ACTIONS}


class FakeController:
    """A controller that keeps its settings and writes down what it is called with."""

    changed = PySignal()
    status = PySignal(str)

    def __init__(self, viewer, layer, worker, keys, **view):
        self.viewer, self.layer, self.view, self.called = viewer, layer, view, []
        if view["level"] == 1:
            raise ValueError("level 1 cannot be read: the file is gone")
        self.settings = Settings()
        self.can_undo, self.can_redo = True, False
        self.prompts = FakePrompts(self.called)
        self.preview = SimpleNamespace(layer=Labels(np.zeros((4, 4), int), name="preview"))
        self.labels = FakeLabels(self)
        self.predictions = SimpleNamespace(sources=SimpleNamespace(folders=()))
        self.propagation = FakePropagation(self.called)

    situation = ImageSituation()
    all_objects = proposal_layer = None

    @property
    def state(self):
        return ViewState(
            self.settings,
            self.propagation.state,
            self.can_undo,
            self.can_redo,
            self.labels.layer,
            self.prompts.present,
        )

    def set(self, name, value):
        self.settings = replace(self.settings, **{name: value})
        self.changed.emit()

    def __getattr__(self, name):
        if name in METHODS or name in ("attach", "detach", "close"):
            return lambda: self.called.append(name)
        raise AttributeError(name)


class FakePrompts:
    """Two layers of ours."""

    def __init__(self, called):
        self.called, self.present = called, (Points(ndim=2), Shapes(ndim=2))

    def ensure(self):
        """They are there."""

    def adopt(self, points, shapes):
        self.called.append(("adopt", points, shapes))


class FakeLabels:
    """A choice of labels."""

    def __init__(self, controller):
        self.controller, self.layer = controller, None

    def keep_at(self, path):
        self.controller.called.append(("labels", path))

    def use(self, layer):
        if layer is not None and layer.data.shape != self.controller.layer.data.shape:
            raise ValueError(f"{layer.name} is of another shape")
        self.layer = layer
        self.controller.changed.emit()


class Worker(QObject):
    """A worker that does nothing and reports what the test sets."""

    started = Signal(str)
    progressed = Signal(object, object)
    loaded = Signal(object)
    failed = Signal(str)
    refused = Signal(object, str)
    idle = Signal()
    embedded = Signal(object, float)
    predicted = Signal(object, object, bool, float)
    found = Signal(object, int, object)
    find_ended = Signal(object, bool)
    propagated = Signal(object, int, object)
    propagation_ended = Signal(object, bool)
    has_model, facts = True, FACTS

    def __init__(self):
        super().__init__()
        self.loads, self.ran, self.cancels, self.closed = [], [], 0, 0
        self.rooms = []

    def load(self, make):
        self.loads.append(make.args)
        self.rooms.append(make.keywords)

    def run(self, work, done):
        self.ran.append((work, done))

    def embed(self, source):
        """Nothing to embed with."""

    predict = embed_ahead = embed

    def cancel(self):
        self.cancels += 1

    def close(self):
        self.closed += 1


pytestmark = pytest.mark.usefixtures("own_settings")


@pytest.fixture
def window(make_napari_viewer_proxy):
    """A shown viewer with its window, for tests that name it: it takes seconds."""
    return make_napari_viewer_proxy(show=True, strict_qt="raise")


@pytest.fixture
def viewer(request, monkeypatch):
    """A viewer that refuses private attributes; without a window unless the test names `window`."""
    if "window" in request.fixturenames:
        return request.getfixturevalue("window")
    monkeypatch.setenv("NAPARI_ENSURE_PLUGIN_MAIN_THREAD", "True")
    return PublicOnlyProxy(ViewerModel())


@pytest.fixture
def add_widget(request, viewer, qtbot):
    """Show a widget, docked where there is a window, and wait until it has looked round."""

    def add(**given):
        widget = LowlatWidget(viewer, **{"worker": Worker(), "make_controller": FakeController, **given})
        if "window" in request.fixturenames:
            viewer.window.add_dock_widget(widget, name="Segment by clicking")
        else:
            qtbot.addWidget(widget)
            widget.show()
        qtbot.wait_until(lambda: bool(widget.worker.loads))
        return WidgetPage(widget)

    return add


@pytest.fixture
def widget(add_widget):
    """A widget in a viewer without an image."""
    return add_widget()


@pytest.fixture
def settle(qtbot):
    """Let queued events happen."""

    def settle():
        for _ in range(5):  # events that others have queued, however little is done within the 20 ms
            QApplication.processEvents()
        qtbot.wait(20)

    return settle


@pytest.fixture
def on_image(viewer, widget, settle):
    """The widget with an image in front."""
    viewer.add_image(np.zeros((4, 5), np.uint8), name="cells")
    settle()
    return widget


# Images


def test_without_an_image_it_says_what_to_do(widget):
    """And nothing can be pressed that would need one."""
    assert widget.sentence == NO_IMAGE
    assert not any(button.isEnabled() for button in widget.buttons())
    assert not widget.enabled("Labels")


def test_the_first_image_is_taken_by_itself(viewer, on_image):
    """The only image needs no choice."""
    assert on_image.controller.layer == viewer.layers["cells"]
    assert on_image.controller.called == ["attach"]
    assert on_image.chosen("Image") == "cells"
    assert on_image.button("accept").isEnabled()


def test_an_image_that_is_there_already_is_taken(viewer, add_widget, settle):
    """The active one, else the one on top."""
    first = viewer.add_image(np.zeros((4, 5)), name="first")
    viewer.add_image(np.zeros((4, 5)), name="second")
    viewer.layers.selection.active = first
    widget = add_widget()
    settle()
    assert widget.controller.layer == first


def test_a_second_image_is_offered_and_not_taken(viewer, on_image, settle):
    """The work in hand goes on."""
    viewer.add_image(np.zeros((4, 5)), name="other")
    settle()
    assert on_image.options("Image") == ["cells", "other"]
    assert on_image.chosen("Image") == "cells"


def test_swapping_back_finds_the_same_controller(viewer, on_image, settle):
    """The other one's layers are taken out meanwhile."""
    viewer.add_image(np.zeros((4, 5)), name="other")
    settle()
    first = on_image.controller
    on_image.choose("Image", "other")
    second = on_image.controller
    on_image.choose("Image", "cells")
    assert on_image.controller is first
    assert first.called == ["attach", "detach", "attach"]
    assert second.called == ["attach", "detach"]


def test_a_renamed_image_stays_in_front(viewer, on_image, settle):
    """Layers are held as objects."""
    viewer.add_image(np.zeros((4, 5)), name="a")
    first = on_image.controller
    viewer.layers["cells"].name = "z"
    settle()
    assert on_image.chosen("Image") == "z"
    assert on_image.controller is first


def test_a_deleted_image_leaves_the_state_of_the_beginning(viewer, on_image, settle):
    """In the middle of work; its controller is forgotten."""
    controller = on_image.controller
    controller.status.emit(News("52 ms"))
    viewer.layers.remove("cells")
    settle()
    assert (on_image.controller, on_image.sentence) == (None, NO_IMAGE)
    assert controller.called == ["attach", "detach", "close"]
    assert not on_image.button("accept").isEnabled()
    viewer.add_image(np.zeros((4, 5)), name="cells")
    settle()
    assert on_image.controller is not controller


def test_with_another_image_left_it_asks_to_choose(viewer, on_image, settle):
    """It does not begin with one by itself."""
    viewer.add_image(np.zeros((4, 5)), name="other")
    settle()
    viewer.layers.remove("cells")
    settle()
    assert (on_image.controller, on_image.sentence) == (None, CHOOSE)
    on_image.choose("Image", "other")
    assert on_image.controller.called == ["attach"]


def test_two_widgets_do_not_know_of_each_other(viewer, on_image, add_widget, settle):
    """Two controllers about one image, two workers, two tables of keys."""
    second = add_widget()
    settle()
    assert second.controller is not on_image.controller
    second.keys.set("accept", "Y")
    second.press("Box")
    assert (second.controller.settings.tool, on_image.controller.settings.tool) == ("box", "scribble")
    assert "[Enter]" in on_image.button("accept").text()


# What is shown and handed on


def test_the_state_is_one_big_line(on_image):
    """What the controller and the worker say; markup in it stays text."""
    on_image.worker.started.emit("embedding plane 12")
    assert on_image.sentence == "embedding plane 12"
    on_image.worker.idle.emit()
    on_image.controller.status.emit(News("a < b"))
    assert on_image.sentence == "a < b"
    assert "a &lt; b" in on_image.part("State: a < b").text()


MARKUP = "<b>big</b> <img src='file:///etc/x.png'> &lt;i> a < b"
"""What a file, a model or another machine may say."""


def test_what_a_model_or_a_file_says_is_no_markup(viewer, on_image, settle):
    """In the state line, the facts of the model, the autosave, tooltips, and napari's notifications."""
    before = len(notification_manager.records)
    on_image.worker.failed.emit(MARKUP)
    on_image.worker.loaded.emit(dict.fromkeys(("model", "device", "precision", "licence"), MARKUP))
    settle()
    on_image.widget.form.session.show_status(FilesState("", f"Autosave to {MARKUP}.tif"))
    on_image.widget.form.offer.show_offer(MARKUP)
    (notice,) = (one.message for one in notification_manager.records[before:])
    assert notice.replace("\u200b", "") == MARKUP
    assert not Qt.mightBeRichText(notice)
    seen = 0
    for label in on_image.widget.findChildren(QLabel):
        document, words, kind = QTextDocument(), label.text(), label.textFormat()
        rich = kind == Qt.TextFormat.RichText
        if rich or (kind == Qt.TextFormat.AutoText and Qt.mightBeRichText(words)):
            document.setHtml(words)
        else:
            document.setPlainText(words)
        shown = document.toPlainText().replace("\u200b", "")
        assert MARKUP in shown or "img" not in words, words
        seen += MARKUP in shown
    assert seen >= 3
    for part in on_image.widget.findChildren(QWidget):
        assert not (Qt.mightBeRichText(part.toolTip()) and "<img" in part.toolTip()), part.toolTip()


@pytest.mark.parametrize(
    "words", [MARKUP, "<!-- x", "<?xml version", "</p>", "&amp; &#60;b>", "plain", "a < b <b>", "<br/>"]
)
def test_plain_words_look_the_same_and_are_no_markup(words):
    """Whatever Qt would take for it."""
    assert plain(words).replace("\u200b", "") == words
    assert not Qt.mightBeRichText(plain(words))


@pytest.mark.parametrize("name", ["accept", "new_object", "undo"])
def test_a_button_says_what_its_key_says(on_image, name):
    """And shows the key."""
    assert on_image.button(name).text().endswith(f"[{DEFAULTS[name]}]")
    on_image.button(name).click()
    assert on_image.controller.called[-1] == name


def test_buttons_show_whether_there_is_something_to_undo(on_image):
    """They follow the controller."""
    assert [on_image.button(name).isEnabled() for name in ("undo", "redo")] == [True, False]
    controller = on_image.controller
    controller.can_undo, controller.can_redo = False, True
    on_image.controller.changed.emit()
    assert [on_image.button(name).isEnabled() for name in ("undo", "redo")] == [False, True]


def test_clicking_the_panel_leaves_the_keyboard_to_the_canvas(on_image):
    """Qt gives it to what lies around a button that does not want it; Tab still gets to the buttons."""
    buttons = [*on_image.buttons(), *on_image.part("Tool").findChildren(QAbstractButton)]
    assert len(buttons) == 12
    for button in buttons:
        assert button.focusPolicy() == Qt.FocusPolicy.TabFocus
        around = button.parentWidget()
        while around is not None:
            assert not around.focusPolicy() & Qt.FocusPolicy.ClickFocus, around
            around = around.parentWidget()


def test_polarity_and_tool_follow_both_ways(on_image):
    """Button to controller, key to button."""
    on_image.press("− background")
    on_image.press("Lasso")
    assert (on_image.controller.settings.positive, on_image.controller.settings.tool) == (False, "lasso")
    on_image.controller.set("positive", True)
    on_image.controller.set("tool", "box")
    assert {"+ object", "Box"} <= on_image.pressed()


def test_only_what_differs_from_the_last_state_is_shown(on_image):
    """A control whose value is the one shown last is left alone; one whose value differs follows."""
    label, controller = on_image.part("Label"), on_image.controller
    with QSignalBlocker(label):
        label.setValue(5)
    controller.can_undo = False
    controller.changed.emit()
    assert (on_image.button("undo").isEnabled(), label.value()) == (False, 5)
    controller.set("tool", "box")
    assert label.value() == 1


def set_details(page):
    """Turn everything that says how prompts become labels."""
    page.write("Label", 7)
    page.check("Same label for every object")
    page.write("Threshold", 0.6)
    page.leave("Threshold")  # a number beside a slider counts when it is typed to the end
    page.write("Smooth", 1.5)
    page.check("Fill holes")
    page.check("Largest part only")
    page.choose("Existing labels", "only within one label")
    page.write("Within label", 3)
    page.check("Preview under the cursor")
    page.check("Postpone predictions")


def test_details_are_handed_on_and_shown(on_image):
    """Each control writes one door, and reads it when something changes."""
    controller = on_image.controller
    set_details(on_image)
    assert (
        controller.settings.label,
        controller.settings.semantic,
        controller.settings.hover,
        controller.settings.postpone,
    ) == (7, True, True, True)
    assert controller.settings.finish == PostProcessing(0.6, 1.5, True, True)
    assert controller.settings.policy == Policy("within", 3)
    for name, value in (("label", 9), ("finish", PostProcessing()), ("policy", Policy())):
        controller.set(name, value)
    assert (on_image.value("Label"), on_image.value("Threshold")) == (9, 0.49)
    assert on_image.chosen("Existing labels") == "keep them"
    assert not on_image.enabled("Within label")


def test_all_fields_of_the_details_begin_in_one_line(on_image, settle):
    """Those that need an image and those that do not; and they end in one line, too."""
    on_image.show_details()
    settle()
    form, roles = on_image.part("Label").parentWidget().layout(), QFormLayout.ItemRole
    named = [row for row in range(form.rowCount()) if form.itemAt(row, roles.LabelRole) is not None]
    places = [form.itemAt(row, roles.FieldRole).geometry() for row in named]
    assert len(places) > 15
    assert len({(one.left(), one.right()) for one in places}) == 1


def test_without_an_image_only_the_details_that_need_none_can_be_set(widget):
    """The model and its embeddings; whole rows are off, their words included."""
    form, roles = widget.part("Label").parentWidget().layout(), QFormLayout.ItemRole
    rows = [[form.itemAt(row, role) for role in roles] for row in range(form.rowCount())]
    parts = [[item.widget() for item in row if item is not None] for row in rows]
    first = next(row for row, of_row in enumerate(parts) if widget.part("Device") in of_row)
    assert {one.isEnabled() for row in parts[:first] for one in row} == {False}
    assert {one.isEnabled() for row in parts[first:] for one in row} == {True}


def test_what_is_set_is_there_for_the_next_image_and_session(viewer, on_image, settle):
    """What changes results is kept for this session, tool and hover for the next one as well."""
    on_image.check("Fill holes")
    on_image.check("Same label for every object")
    on_image.check("Preview under the cursor")
    on_image.check("Postpone predictions")
    on_image.choose("Existing labels", "overwrite them")
    on_image.press("Box")
    viewer.add_image(np.zeros((4, 5)), name="other")
    settle()
    on_image.choose("Image", "other")
    controller = on_image.controller
    assert controller.layer.name == "other"
    assert (controller.settings.finish, controller.settings.policy) == (
        PostProcessing(fill_holes=True),
        Policy("overwrite"),
    )
    assert (
        controller.settings.semantic,
        controller.settings.hover,
        controller.settings.postpone,
        controller.settings.tool,
    ) == (True, True, True, "box")
    assert settings().prompts.tool == "box"
    assert not settings().finish.fill_holes


def test_settings_that_change_results_are_shown_and_reset_by_one_click(on_image):
    """Also while the details are folded; the place of the button is kept."""
    form = on_image.widget.form
    assert form.reset.isHidden()
    threshold = form.details.controls["threshold"]
    threshold.value = 0.05
    on_image.choose("Existing labels", "overwrite them")
    assert form.reset.isVisible()
    assert form.reset.text() == "↺ threshold 0.05, overwrite labels"
    form.reset.click()
    assert form.reset.isHidden()
    kept = on_image.controller.settings
    assert (kept.finish, kept.policy) == (PostProcessing(), Policy())
    assert threshold.value == 0.49


def test_the_panel_fits_300_pixels_and_nothing_jumps(on_image, settle):
    """Whatever is said, and whether a model is being loaded or not."""
    form = on_image.widget.form
    on_image.show_details()
    settle()
    least = form.minimumSizeHint().width()
    assert least <= 300
    for width in (1000, least):  # the keys on the buttons, shown where there is room, need none
        form.resize(width, 900)
        settle()
        assert form.minimumSizeHint().width() == least
    button, corner = form.buttons["accept"], QPoint(0, 0)
    places = set()
    for news in ("", "ready", "a very long sentence " * 6, "for ever " * 60):
        form.state.say(News(news))
        for loading in (True, False):
            form.model.loading = loading
            form.model._show()
            for changed in ((), ("threshold 0.05",)):
                form.reset.show_changed(changed)
                settle()
                at = button.mapTo(form, corner)
                places.add((at.x(), at.y()))
        for width in (least, 500):
            form.resize(width, 900)
            settle()
            assert form.state.heightForWidth(form.state.width()) <= form.state.height(), (width, news)
        form.resize(least, 900)
    for begun, accepted in itertools.product((False, True), repeat=2):
        form.hint.show_hint(first_hint(on_image.keys.keys, begun=begun, accepted=accepted, volume=True))
        settle()
        at = button.mapTo(form, corner)
        places.add((at.x(), at.y()))
    assert len(places) == 1


def test_a_new_sentence_lays_out_nothing_around_the_panel(on_image, settle):
    """The layout of napari's window takes milliseconds, and a click changes the sentence three times."""
    asked = []

    class Layouts(QObject):
        def eventFilter(self, watched, event):
            asked.extend([event] if event.type() == QEvent.Type.LayoutRequest else [])
            return False

    settle()
    layouts = Layouts()
    on_image.widget.installEventFilter(layouts)
    for sentence in ("predicting", "a long sentence " * 9, "52 ms"):
        on_image.widget.form.state.say(News(sentence))
        settle()
    assert asked == []
    on_image.show_details()  # which needs another height
    settle()
    assert asked


def test_there_is_one_cancel(on_image):
    """For the model, a prediction and a run."""
    on_image.widget.form.model.want(name="default")
    buttons = on_image.widget.findChildren(QAbstractButton)
    assert [one.text() for one in buttons if "cancel" in one.accessibleName().lower()] == ["Cancel"]


def test_planes_ahead_are_set_at_once_and_for_the_next_image(viewer, on_image, settle):
    """The number is remembered; swapping back to an image brings the number of today."""
    first = on_image.controller
    assert first.settings.planes_ahead == 8
    on_image.write("Planes to embed in advance", 3)
    assert (first.settings.planes_ahead, settings().embeddings.ahead) == (3, 3)
    viewer.add_image(np.zeros((4, 5)), name="other")
    settle()
    on_image.choose("Image", "other")
    assert on_image.controller.settings.planes_ahead == 3
    on_image.write("Planes to embed in advance", 0)
    on_image.choose("Image", first.layer.name)
    assert on_image.controller.settings.planes_ahead == 0


def test_room_for_embeddings_loads_the_model_with_it(on_image):
    """Once it is typed, and only if it is another; it is remembered."""
    loads = on_image.worker.loads
    before = len(loads)
    on_image.write("Memory for embeddings", 256)
    on_image.write("Disk for embeddings", 2048)
    assert len(loads) == before
    on_image.leave("Disk for embeddings")
    on_image.leave("Disk for embeddings")
    assert loads[before:] == [("default", "auto", "auto")]
    assert on_image.worker.rooms[-1] == {"cache_bytes": 2**28, "disk_bytes": 2**31}
    assert (settings().embeddings.memory, settings().embeddings.disk) == (256, 2048)


def test_embeddings_are_looked_for_beside_the_file_and_in_the_folder_of_the_settings(
    viewer, on_image, settle, tmp_path
):
    """An image that comes from no file has the second place only."""
    settings().embeddings.folder = str(tmp_path / "all")
    nibabel.Nifti1Image(np.zeros((9, 8, 3), np.uint8), np.eye(4)).to_filename(tmp_path / "stack.nii")
    viewer.open(tmp_path / "stack.nii", plugin=PLUGIN)
    settle()
    on_image.choose("Image", "stack")
    beside = tmp_path / "stack.nii.embeddings"
    assert on_image.controller.predictions.sources.folders == (beside, tmp_path / "all")
    viewer.add_image(np.zeros((4, 5)), name="made up")
    settle()
    on_image.choose("Image", "made up")
    assert on_image.controller.predictions.sources.folders == (tmp_path / "all",)


@pytest.mark.parametrize("way", ["new on disk…", "from disk…"])
def test_labels_on_disk_are_asked_for(on_image, tmp_path, way):
    """What was chosen before stays in front until a folder is given."""
    (tmp_path / "l.zarr").mkdir()
    on_image.choose("Labels", way)
    assert on_image.chosen("Labels") == "new"
    dialog = on_image.widget.findChild(QFileDialog)
    dialog.findChild(QLineEdit).setText(str(tmp_path / "l.zarr"))
    dialog.fileSelected.emit(str(tmp_path / "l.zarr"))
    assert on_image.controller.called[-1] == ("labels", tmp_path / "l.zarr")
    dialog.close()


def test_labels_can_be_chosen_and_previews_are_not_offered(viewer, on_image, settle):
    """A layer that does not fit is refused with its sentence, and the old choice is shown."""
    fits = viewer.add_labels(np.zeros((4, 5), int), name="nuclei")
    viewer.add_labels(np.zeros((3, 3), int), name="small")
    viewer.add_layer(on_image.controller.preview.layer)
    settle()
    assert on_image.options("Labels") == ["new", "new on disk…", "from disk…", "nuclei", "small"]
    on_image.choose("Labels", "nuclei")
    assert on_image.controller.labels.layer == fits
    on_image.choose("Labels", "small")
    assert on_image.sentence == "small is of another shape"
    assert on_image.chosen("Labels") == "nuclei"


def test_own_layers_can_be_adopted_as_prompts(viewer, on_image, settle):
    """Ours are not offered; what is adopted stays in front."""
    mine = viewer.add_points(ndim=2, name="my points")
    for layer in on_image.controller.prompts.present:
        viewer.add_layer(layer)
    settle()
    assert on_image.options("Clicks layer") == ["created by this widget", "my points"]
    on_image.choose("Clicks layer", "my points")
    assert on_image.controller.called[-1] == ("adopt", mine, None)
    assert on_image.chosen("Clicks layer") == "my points"


def test_level_channel_and_intensities_begin_another_controller(viewer, widget, settle):
    """And changing back finds the first one."""
    viewer.add_image(np.zeros((3, 8, 8)), name="stack", axis_labels=("c", "y", "x"))
    settle()
    first = widget.controller
    assert (widget.options("Level"), widget.enabled("Level")) == (["0: 3 × 8 × 8"], False)
    widget.choose("Channel axis", "c (3)")
    widget.write("Channel", 2)
    assert widget.controller.view == {
        "level": 0,
        "channel_axis": 0,
        "channel": 2,
        "intensities": "automatic",
    }
    widget.choose("Intensities", "as displayed")
    assert widget.controller.view["intensities"] == "displayed"
    widget.widget.turn_to(first.layer, View())
    assert widget.controller is first


def test_a_level_that_cannot_be_read_says_so(viewer, widget, settle):
    """No controller is in front then, and nothing breaks."""
    viewer.add_image([np.zeros((8, 8)), np.zeros((4, 4))], multiscale=True, name="pyramid")
    settle()
    assert widget.options("Level") == ["0: 8 × 8", "1: 4 × 4"]
    widget.choose("Level", "1: 4 × 4")
    assert widget.sentence == "level 1 cannot be read: the file is gone"
    assert widget.controller is None


def test_cancel_goes_to_the_controller_or_to_the_worker(viewer, widget, settle):
    """To the controller if there is one, else to the worker."""
    widget.part("Cancel").click()
    assert widget.worker.cancels == 1
    viewer.add_image(np.zeros((4, 5)))
    settle()
    widget.part("Cancel").click()
    assert widget.controller.called[-1] == "cancel"


def test_every_control_works_with_a_real_controller(window, viewer, add_widget, settle):
    """The fake above has the doors that `AnnotationController` has."""
    widget = add_widget(make_controller=AnnotationController)
    image = viewer.add_image(np.zeros((3, 8, 9)), name="stack", scale=(2, 1, 1))
    own = viewer.add_points(np.zeros((0, 3)), ndim=3, name="mine", scale=(2, 1, 1))
    labels = viewer.add_labels(np.zeros((3, 8, 9), int), name="nuclei", scale=(2, 1, 1))
    settle()
    set_details(widget)
    widget.press("− background")
    widget.press("Lasso")
    widget.choose("Labels", "nuclei")
    widget.choose("Clicks layer", "mine")
    for button in widget.buttons():
        button.click()
    widget.part("Cancel").click()
    widget.part("Planes").setValue((1, 2))
    widget.part("Confidence along the planes").clicked.emit(2)
    controller = widget.controller
    assert (controller.settings.positive, controller.settings.tool, controller.labels.layer) == (
        False,
        "lasso",
        labels,
    )
    assert controller.settings.finish == PostProcessing(0.6, 1.5, True, True)
    assert (controller.propagation.range, controller.propagation.state.position) == ((1, 2), 2)
    widget.choose("Channel axis", widget.options("Channel axis")[1])
    widget.widget.turn_to(image, View())
    assert widget.controller is controller
    widget.widget.turn_to(None)
    assert [layer.name for layer in viewer.layers] == ["stack", "mine", "nuclei"]
    viewer.layers.remove(image)
    settle()
    assert widget.widget.controllers.previews() == []
    assert own in viewer.layers


def test_the_form_for_volumes_tells_what_its_user_wants(viewer, widget, settle, qtbot):
    """Buttons, range, direction, the strip and the seeds; a point layer that comes is offered at once."""
    viewer.add_image(np.zeros((12, 8, 9)), name="stack")
    settle()
    strip, propagation = widget.part("Confidence along the planes"), widget.controller.propagation
    assert (widget.chosen("Seeds"), widget.part("Seeds").placeholderText()) == ("", "no Points layer")
    viewer.add_points(np.zeros((1, 3)), name="seeds")
    settle()
    propagation.called.clear()
    for button in widget.buttons()[4:]:
        button.click()
    strip.clicked.emit(7)
    assert propagation.called == [
        "propagate",
        "interpolate",
        "next_anchor",
        "most_uncertain_plane",
        "all_seeds",
        ("look_at", 7),
    ]
    widget.part("Planes").setValue((0, 8))
    widget.press("Backward")
    assert (propagation.range, propagation.direction, propagation.points.name) == (
        (0, 8),
        "backward",
        "seeds",
    )
    assert strip.accessibleDescription() == (
        "planes with prompts: 1, propagated: 1; least certain: plane 4, 50 %; plane 6 is darker"
    )
    propagation.marks = propagation.refused = ()
    propagation.progressed.emit()
    qtbot.waitUntil(lambda: strip.accessibleDescription() == "planes with prompts: 0, propagated: 0")


# Models


def test_the_stored_model_is_loaded_at_once(add_widget):
    """Before there is an image: the first click shall not wait for it."""
    settings().model.device = "cpu"
    widget = add_widget()
    assert widget.worker.loads == [("default", "cpu", "auto")]
    widget.worker.loaded.emit(FACTS)
    assert widget.part("Runs on").text() == "cuda:0, bfloat16"
    assert "Apache-2.0" in widget.part("Runs on").toolTip()
    assert widget.sentence == NO_IMAGE


def test_a_model_that_is_not_here_is_marked_and_shows_its_download(widget):
    """The bar and its button are there as long as it lasts."""
    widget.worker.loaded.emit(FACTS)
    assert widget.options("Model")[:2] == ["default", "segnext-sax1  (download)"]
    widget.choose("Model", "segnext-sax1  (download)")
    assert widget.worker.loads[-1] == ("segnext-sax1", "auto", "auto")
    widget.worker.progressed.emit(100_000_000, 400_000_000)
    bar = widget.part("Model progress")
    assert (bar.isVisible(), bar.value(), bar.text()) == (True, 25, "100 of 400 MB")
    widget.worker.loaded.emit(FACTS)
    assert not bar.isVisible()
    assert settings().model.name == "segnext-sax1"


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_model_that_does_not_come_gives_way_to_the_last_one(widget, end):
    """The user is back where the choice was made."""
    widget.worker.loaded.emit(FACTS)
    widget.choose("Model", "segnext-sax1  (download)")
    if end == "failed":
        widget.worker.failed.emit("segnext-sax1 was answered with 404; it may have moved")
        assert widget.sentence.startswith("segnext-sax1 was answered with 404")
    else:
        widget.part("Cancel", QAbstractButton).click()
        assert widget.worker.cancels == 1
        widget.worker.idle.emit()
    assert widget.worker.loads[-1] == ("default", "auto", "auto")
    assert widget.chosen("Model") == "default"
    widget.worker.loaded.emit(FACTS)
    assert widget.part("Runs on").text() == "cuda:0, bfloat16"


def test_a_first_model_that_does_not_load_is_not_tried_for_ever(widget):
    """There is nothing to go back to."""
    widget.worker.failed.emit("device 'cuda' is not available")
    assert len(widget.worker.loads) == 1
    assert (widget.part("Runs on").text(), widget.part("Model progress").isVisible()) == ("not loaded", False)


def test_device_and_closer_look_load_the_model_anew(widget):
    """And are remembered."""
    widget.choose("Device", "cpu")
    widget.choose("Closer look", "off")
    assert widget.worker.loads[-1] == ("default", "cpu", "off")
    assert (settings().model.device, settings().model.closer_look) == ("cpu", "off")


def test_an_imported_model_is_chosen(widget, tmp_path):
    """When the work is done; it is listed by its name."""
    widget.widget.models.import_file(tmp_path / "mine.pth")
    assert widget.sentence == "importing mine.pth"
    _, done = widget.worker.ran[-1]
    done("mine")
    assert widget.worker.loads[-1][0] == "mine"
    assert widget.chosen("Model") == "mine"


def test_a_file_that_is_no_model_is_told_in_one_sentence(tmp_path):
    """The sentence of the engine, from a process of its own."""
    (tmp_path / "notes.pth").write_text("no model")
    with pytest.raises(ValueError, match=r"notes\.pth is damaged or"):
        importing(tmp_path / "notes.pth")()


# Keys


def test_the_table_of_keys_shows_and_changes_them(window, on_image, qtbot):
    """Pressed keys are in force and saved at once, and what they hide is named."""
    dialog = on_image.widget.show_shortcuts()
    assert dialog.fields["accept"].keySequence() == QKeySequence("Return")
    assert "Activate add path tool" in dialog.notes["toggle_polarity"].text()
    dialog.fields["accept"].setKeySequence(QKeySequence("N"))
    assert on_image.keys.keys["accept"] == settings().keys.accept == "N"
    assert "same key as “New object”" in dialog.notes["accept"].text()
    assert on_image.button("accept").text() == "Accept  [N]"
    dialog.fields["accept"].clear()
    assert on_image.button("accept").text() == "Accept"
    dialog.reset.click()
    assert on_image.keys.keys == DEFAULTS
    assert settings().keys.accept == "Enter"
    dialog.close()


@pytest.mark.parametrize(
    ("pressed", "shown"), [("Return", "Enter"), ("Ctrl+Esc", "Ctrl+Escape"), ("PgUp", "PageUp"), ("", "")]
)
def test_the_table_calls_keys_as_the_buttons_do(on_image, pressed, shown):
    """Qt has other words for some of them."""
    dialog = on_image.widget.show_shortcuts()
    dialog.fields["new_object"].setKeySequence(QKeySequence(pressed))
    written = {name: field.findChild(QLineEdit).text() for name, field in dialog.fields.items()}
    assert written == {**DEFAULTS, "new_object": shown}
    assert on_image.keys.keys["new_object"] == shown
    dialog.close()


def test_a_key_that_napari_does_not_know_is_refused_in_its_row(on_image):
    """And the old one stays."""
    dialog = on_image.widget.show_shortcuts()
    dialog.fields["accept"].setKeySequence(QKeySequence("Ctrl+é"))
    assert "expected a key such as" in dialog.notes["accept"].text()
    assert on_image.keys.keys["accept"] == "Enter"
    dialog.close()


def test_the_buttons_of_the_table_are_words_alone(on_image):
    """The desktop's icons know nothing of napari's themes: a black cross on a dark button."""
    dialog = on_image.widget.show_shortcuts()
    buttons = dialog.findChild(QDialogButtonBox).buttons()
    assert [one.text() for one in buttons if not one.icon().isNull()] == []
    dialog.close()


# Conduct


def controls(widget):
    """All that a user can touch, and the lines that change."""
    kinds = (QAbstractButton, QAbstractSlider, QAbstractSpinBox, QComboBox, QKeySequenceEdit, QProgressBar)
    return [
        one
        for one in widget.findChildren(QWidget)
        if isinstance(one, kinds) and not isinstance(one, QScrollBar) and not inside_another(one)
    ]


def inside_another(control):
    """Whether Qt made it as a part of another control."""
    return isinstance(control.parent(), QComboBox | QAbstractSpinBox | QAbstractItemView | QLineEdit)


def test_every_control_has_a_name_and_a_tooltip(window, on_image):
    """For screen readers, and as a tooltip."""
    dialog = on_image.widget.show_shortcuts()
    found = [
        *controls(on_image.widget),
        *controls(dialog),
        on_image.part(f"State: {on_image.sentence}"),
        on_image.part("Runs on"),
    ]
    assert len(found) > 50
    assert [one for one in found if not one.accessibleName()] == []
    assert [one.accessibleName() for one in found if not one.toolTip()] == []
    dialog.close()


def test_tab_walks_from_top_to_bottom(on_image):
    """In the order in which controls are read."""
    on_image.show_details()
    stops, one = [], on_image.part("Image")
    while on_image.widget.isAncestorOf(one) and one not in stops:
        stops.append(one)
        one = one.nextInFocusChain()
    usable = controls(on_image.widget)
    stops = [stop for stop in stops if stop in usable and stop.isVisible() and stop.isEnabled()]
    # Controls of one row differ by a few pixels.
    rows = [stop.mapTo(on_image.widget, stop.rect().center()).y() // 12 for stop in stops]
    assert len(rows) > 20
    assert all(after >= before - 1 for before, after in itertools.pairwise(rows))


def test_the_wheel_scrolls_and_changes_nothing(on_image):
    """A hand on the wheel is on its way to somewhere else."""
    on_image.show_details()
    chosen = on_image.part("Model")
    slider = on_image.part("Threshold").findChild(QSlider)
    for control in (chosen, slider, on_image.part("Label"), on_image.part("Planes")):
        at = QPointF(control.rect().center())
        event = QWheelEvent(
            at,
            QPointF(control.mapToGlobal(control.rect().center())),
            QPointF(0, 0).toPoint(),
            QPointF(0, -120).toPoint(),
            Qt.MouseButton.NoButton,
            Qt.KeyboardModifier.NoModifier,
            Qt.ScrollPhase.NoScrollPhase,
            False,
        )
        QApplication.sendEvent(control, event)
    assert on_image.chosen("Model") == "default"
    assert (on_image.controller.settings.finish, on_image.controller.settings.label) == (PostProcessing(), 1)


def test_no_text_is_cut_at_twice_the_font(viewer, on_image, settle):
    """Buttons and boxes are as wide as their words, and the rest scrolls."""
    from napari.settings import get_settings

    get_settings().appearance.font_size *= 2
    on_image.show_details()
    settle()
    shown = [one for one in controls(on_image.widget) if one.isVisible()]
    buttons = [one for one in shown if isinstance(one, QAbstractButton)]
    assert len(buttons) > 10
    assert [one.text() for one in buttons if one.width() < one.minimumSizeHint().width()] == []


def test_closing_the_dock_gives_everything_back(window, viewer, on_image, settle, qtbot):
    """No listener and no thread stays behind."""
    controller, worker = on_image.controller, on_image.worker
    viewer.window.remove_dock_widget(on_image.widget)
    assert controller.called == ["attach", "detach", "close"]
    assert worker.closed == 1
    viewer.add_image(np.zeros((4, 5)))
    settle()
    assert on_image.controller is None
    on_image.widget.close()
    assert worker.closed == 1
    on_image.widget.deleteLater()
    qtbot.wait(20)  # `processEvents` before it would keep it from being deleted


def test_closing_the_viewer_ends_the_worker(window, viewer, on_image, qtbot):
    """The window is deleted, the widget with it."""
    worker = on_image.worker
    viewer.close()
    qtbot.wait_until(lambda: worker.closed > 0)


def test_no_thread_of_ours_is_left(on_image):
    """The fakes have none, and the widget makes none of its own."""
    assert [one.name for one in threading.enumerate() if re.search("lowlat", one.name)] == []


def test_opening_it_imports_no_torch(run_python):
    """Nor does making it: the model lives in a process of its own."""
    imported = run_python(
        "import sys\nfrom napari_lowlat_seg.plugin.widget import LowlatWidget\nprint('torch' in sys.modules)"
    )
    assert imported == "False"


def test_the_table_lists_every_action(on_image):
    """None is hidden."""
    dialog = on_image.widget.show_shortcuts()
    assert list(dialog.fields) == [action.name for action in ACTIONS]
    dialog.close()
