"""The table of objects in a real window: every action by its key, sorted, filtered, and 10,000 rows."""

import csv
import time

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QComboBox, QLineEdit

from napari_lowlat_seg.annotation.objects.table import Row
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.objects.model import CLASS, FEW, NAME, SIZE, STATE, ObjectModel, number, tip_of
from napari_lowlat_seg.plugin.objects.panel import ObjectPanel
from widget_page import WidgetPage

FIRST, SECOND = Plane((0, None, None)), Plane((1, None, None))


def rows(count):
    """Rows of every state."""
    states = ("done", "to review", "locked")
    return {n: Row(n, f"n{n % 7}", "axon", states[n % 3], 1, n, float(n)) for n in range(1, count + 1)}


@pytest.fixture
def panel(qtbot):
    """The controls alone, with a few rows."""
    panel = ObjectPanel()
    qtbot.addWidget(panel)
    panel.show_rows(rows(9))
    return panel


def texts(panel, column=0):
    model = panel.model
    return [model.index(row, column).data() for row in range(model.rowCount())]


def test_rows_are_sorted_and_filtered_and_what_was_chosen_stays_chosen(panel):
    """By numbers as numbers; a filter finds words in number, name, class and state."""
    panel.view.choose(5)
    panel.view.sortByColumn(SIZE, Qt.SortOrder.DescendingOrder)
    assert texts(panel)[:3] == ["9", "8", "7"]
    assert panel.view.chosen() == [5]
    panel.state.setCurrentText("locked")
    assert texts(panel, STATE) == ["locked"] * 3
    panel.state.setCurrentIndex(0)
    panel.words.setText("n5 axon")
    assert texts(panel) == ["5"]
    assert panel.view.chosen() == [5]
    assert panel.count.text() == "9 objects, 1 shown"


def test_a_changed_row_stays_where_it_is_and_new_ones_find_their_place(panel):
    """Few rows come and go one by one, many with all rows anew; either way what is chosen stays chosen."""
    all_rows = dict(panel.model._rows)
    panel.show_rows(all_rows)
    panel.view.choose(5)
    all_rows[5] = Row(5, "other", "", "done", 1, 1, 1.0)
    del all_rows[2]
    all_rows[20] = Row(20)
    panel.show_changes({5}, {2, 20})
    assert texts(panel) == ["1", "3", "4", "5", "6", "7", "8", "9", "20"]
    assert (panel.model.index(3, NAME).data(), panel.view.chosen()) == ("other", [5])
    more = {n: Row(n) for n in range(100, 101 + FEW)}
    all_rows |= more
    panel.show_changes(set(), set(more))
    assert panel.model.rowCount() == 9 + FEW + 1
    assert panel.view.chosen() == [5]


def test_a_row_says_what_it_shows(panel):
    """A hidden one in words and not only by its letters; the size with its unit; swatches of colours."""
    model = panel.model
    model.unit, model.class_colour = "µm³", {"axon": QColor("#112233")}.get
    model.show_rows(
        {1: Row(1, "a", "axon", "done", 2, 30, 1234567.0, hidden=True), 2: Row(2, state="in progress")}
    )
    assert [model.index(0, column).data() for column in range(6)] == [
        *("1", "a", "done, hidden", "axon", "2", "1.235e+06"),
    ]
    assert texts(panel, SIZE)[1] == "–"
    assert model.headerData(SIZE, Qt.Orientation.Horizontal) == "Size (µm³)"
    assert model.index(0, CLASS).data(Qt.ItemDataRole.DecorationRole) == QColor("#112233")
    assert model.index(0, 0).data(Qt.ItemDataRole.ToolTipRole) == "object 1: a, axon; 30 voxels on 2 planes"
    assert tip_of(Row(1, "<img src=x>")).startswith("<p>object 1: &lt;img src=x&gt;;")
    assert model.index(0, NAME).data(Qt.ItemDataRole.AccessibleTextRole) == "Name a"
    assert model.index(0, 0).data(Qt.ItemDataRole.FontRole).italic()
    assert number(0.5) == "0.5"


def test_ten_thousand_objects_do_not_stutter(qtbot):
    """A reset, a sort, a filter and a changed row each take less than what a person notices."""
    model, many = ObjectModel(), rows(10_000)
    model.show_rows(many)
    for work, limit in (
        (lambda: model.show_rows(many), 0.3),
        (lambda: model.sort(SIZE, Qt.SortOrder.DescendingOrder), 0.3),
        (lambda: model.filter("n3"), 0.3),
        (lambda: model.show_changes({5000}, {5001}), 0.02),
    ):
        best = 1.0
        for _ in range(5):
            began = time.thread_time()  # what other programs do does not count
            work()
            best = min(best, time.thread_time() - began)
        assert best < limit


@pytest.fixture
def window(bright_window, qtbot):
    """A stack with two bright squares, labels with two objects in it, and the open table."""
    image = np.zeros((3, 40, 50), np.uint8)
    image[:, 5:15, 5:15] = image[:, 25:35, 30:40] = 200
    labels = np.zeros(image.shape, np.uint16)
    labels[1, 5:10, 30:35] = 3
    labels[2, 5:12, 30:36] = 3
    labels[0, 30:34, 2:6] = 7

    def prepare(viewer):
        viewer.add_image(image, name="squares", scale=(2, 0.5, 0.5), units=("um", "um", "um"))
        viewer.add_labels(labels, name="cells", scale=(2, 0.5, 0.5), units=("um", "um", "um"))

    it = bright_window(prepare)
    page = it.page = WidgetPage(it.widget)
    page.choose("Labels", "cells")
    it.settle()
    page.show_fold("Objects")
    it.table = it.controller().all_objects.table
    qtbot.waitUntil(lambda: page.objects() == ["3", "7"])
    it.labels = it.controller().labels.layer.data
    it.see = lambda *expected: qtbot.waitUntil(lambda: page.objects() == list(expected))
    return it


def test_every_key_of_the_table_does_what_it_says(window, qtbot, tmp_path):
    """In one window: go there, name, class, lock, hide, merge, split, delete, undo."""
    it, page, session = window, window.page, window.controller().session
    assert page.object_row(3) == ["3", "", "done", "", "2", "33.5"]
    assert page.part("Objects").model().headerData(SIZE, Qt.Orientation.Horizontal) == "Size (µm³)"
    # Enter goes there, and accepts nothing.
    it.viewer.scene.camera.zoom *= 3
    it.viewer.scene.camera.center = (18, 3)
    page.object_key(3, Qt.Key.Key_Return)
    assert it.controller().plane == Plane((2, None, None))
    assert np.allclose(np.asarray(it.viewer.scene.camera.center)[-2:], (8 / 2, 33 / 2 - 0.25), atol=0.5)
    # What is well in view is not moved; F2 and its Enter name it and go nowhere.
    it.viewer.scene.camera.center = (5, 17)
    page.object_key(3, Qt.Key.Key_Return)
    assert np.allclose(np.asarray(it.viewer.scene.camera.center)[-2:], (5, 17))
    it.look((0, None, None))
    # F2 names it, C gives a class to all that are chosen.
    page.object_key(3, Qt.Key.Key_F2)
    page.type_into(QLineEdit, "left one")
    assert it.controller().plane == FIRST
    page.choose_objects(3, 7)
    page.object_key(None, Qt.Key.Key_C)
    view = it.widget.form.objects.view  # narrower than its columns: the cell comes into view
    assert view.viewport().rect().intersects(view.visualRect(view.model().index(0, 3)))
    page.type_into(QComboBox, "axon")
    assert page.object_row(3)[1:4] == ["left one", "done", "axon"]
    assert page.object_row(7)[3] == "axon"
    # R, L and H change the state in words.
    page.object_key(7, Qt.Key.Key_R)
    page.object_key(3, Qt.Key.Key_L)
    page.object_key(7, Qt.Key.Key_H)
    assert (page.object_row(3)[2], page.object_row(7)[2]) == ("locked", "to review, hidden")
    assert tuple(it.controller().labels.layer.colormap.map(7)) == (0, 0, 0, 0)
    page.object_key(7, Qt.Key.Key_H)
    assert it.controller().labels.layer.colormap.map(7)[3] > 0
    # A locked object is not deleted, in one sentence.
    page.object_key(3, Qt.Key.Key_Delete)
    assert page.sentence == "object 3 is locked; unlock it in the table of objects first"
    page.object_key(3, Qt.Key.Key_L)
    # M merges into the first one that was chosen, S splits it again, Delete deletes, Ctrl+Z undoes.
    page.choose_objects(3, 7)
    page.object_key(None, Qt.Key.Key_M)
    it.see("3")
    assert page.sentence == "Done: merged object 7 into 3"
    page.object_key(3, Qt.Key.Key_S)
    it.see("3", "8")
    assert (it.labels[0, 30:34, 2:6] == 8).all()
    page.object_key(8, Qt.Key.Key_Delete)
    it.see("3")
    for _ in range(3):
        it.controller().undo()
    it.see("3", "7")
    # The slash goes to the filter; Enter there comes back.
    page.object_key(7, Qt.Key.Key_Slash)
    assert page.part("Filter objects").window().focusWidget() is page.part("Filter objects")
    page.part("Filter objects").setText("review")
    it.see("7")
    page.part("Filter objects").setText("no such")
    it.see()
    page.part("Filter objects").clear()
    assert page.part("Objects").horizontalScrollBar().value() == 0
    # N goes to the next of the same state.
    page.object_key(3, Qt.Key.Key_R)
    page.object_key(3, Qt.Key.Key_N)
    assert page.chosen_objects() == [7]
    assert it.controller().plane == FIRST
    # The table as a file.
    path = tmp_path / "objects.csv"
    it.widget.form.objects.exported.emit(path)
    qtbot.waitUntil(path.exists)
    found = list(csv.DictReader(path.open(encoding="utf-8")))
    assert [(row["label"], row["name"], row["class"], row["state"]) for row in found] == [
        ("3", "left one", "axon", "to review"),
        ("7", "", "axon", "to review"),
    ]
    assert session.undo_stack.done


def test_objects_come_into_the_table_as_they_are_annotated(window, qtbot):
    """In progress while it is clicked, done when it is accepted; E opens it again with its prompts."""
    it, page = window, window.page
    it.look((0, None, None))
    it.hand().click((10, 10))
    it.settle()
    it.see("3", "7", "8")
    assert page.object_row(8)[2] == "in progress"
    it.controller().accept()
    qtbot.waitUntil(lambda: page.object_row(8)[2:5] == ["done", "", "1"])
    it.look((2, None, None))
    page.object_key(8, Qt.Key.Key_E)
    assert it.controller().session.prompted().keys() == {FIRST}
    assert it.controller().plane == FIRST
    assert page.object_row(8)[2] == "in progress"
    it.controller().cancel()
    qtbot.waitUntil(lambda: page.object_row(8)[2] == "done")
    # A stroke over a locked object gives it back.
    page.object_key(8, Qt.Key.Key_L)
    before = it.labels.copy()
    it.controller().labels.layer.fill((0, 10, 10), 3)
    qtbot.waitUntil(lambda: np.array_equal(it.labels, before))
    assert page.sentence.startswith("Locked objects keep their voxels")
    # So does the next object.
    it.widget.form.setting.emit("policy", type(it.controller().session.policy)("overwrite"))
    it.look((0, None, None))
    it.controller().session.add(FIRST, Click((10, 10)))
    it.controller().predictions.ask()
    it.settle()
    it.controller().accept()
    it.settle()
    assert np.array_equal(it.labels, before)
    assert "nothing was written" in page.sentence


def test_find_all_proposes_and_single_keys_accept_reject_and_correct(window, qtbot):
    """They are drawn until they are judged, and are no labels to choose."""
    it, page = window, window.page
    it.look((0, None, None))
    page.press("Find all")
    it.see("3", "7", "?", "?")
    assert page.sentence == "Found 2 objects: in the table, A accepts, X rejects, E corrects."
    layer = it.controller().all_objects.proposals.layer
    shown = np.asarray(layer.data).reshape(40, 50)
    first, second = shown[5:15, 5:15], shown[25:35, 30:40]
    assert {int(first[5, 5]), int(second[5, 5])} == {0, 2}  # one is chosen and filled
    assert first[0].all()
    assert second[0].all()
    assert layer.name not in page.options("Labels")
    before = it.labels.copy()
    page.object_key(None, Qt.Key.Key_A)
    it.see("3", "7", "8", "?")
    assert page.sentence == "Accepted as object 8."
    assert (it.labels[0] == 8).sum() == 100
    assert np.array_equal(it.labels[before > 0], before[before > 0])
    page.object_key(None, Qt.Key.Key_X)
    it.see("3", "7", "8")
    qtbot.waitUntil(lambda: it.controller().all_objects.proposals.layer is None)
    it.controller().undo()
    it.controller().all_objects.look_through(again=True)  # as after a restored session
    it.see("3", "7", "8", "?")
    view = page.part("Objects")
    view.choose(view.model().keys[-1])
    page.object_key(None, Qt.Key.Key_E)
    it.see("3", "7", "8", "9")
    assert page.object_row(9)[2] == "in progress"
    assert view.window().focusWidget() is it.hand().canvas  # "Enter accepts it"
    it.hand().key("Enter")
    it.settle()
    assert (it.labels[0] == 9).sum() == 100
    # Cancel keeps what was found so far; here it comes before the first plane is done.
    it.service.gate.clear()
    page.press("Find all")
    assert page.part("Find all").text() == "Finding…"
    page.press("Cancel")
    it.service.gate.set()
    qtbot.waitUntil(lambda: page.part("Find all").text() == "Find all")
    assert page.sentence == "Finding objects was stopped: nothing was found."
    it.see("3", "7", "8", "9")
    assert page.part("Find all").isEnabled()


def test_a_list_of_classes_is_the_only_choice(window, tmp_path):
    """Loaded from a table; another class is refused in one sentence, a wrong file too."""
    it, page = window, window.page
    path = tmp_path / "classes.csv"
    path.write_text("axon,#ff0000\ndendrite,#00ff00\n", encoding="utf-8")
    panel = it.widget.form.objects
    panel.classes_chosen.emit(path)
    assert page.sentence == "Classes: axon, dendrite"
    page.object_key(3, Qt.Key.Key_C)
    (box,) = [one for one in panel.view.findChildren(QComboBox) if one.isVisible()]
    assert [box.itemText(i) for i in range(box.count())] == ["", "axon", "dendrite"]
    assert not box.isEditable()
    page.type_into(QComboBox, "dendrite")
    assert page.object_row(3)[3] == "dendrite"
    assert panel.model.class_colour("dendrite") == QColor("#00ff00")
    panel.described_as.emit([3], "category", "glia")
    assert page.sentence.startswith("expected a class of the list (axon, dendrite)")
    path.write_text("axon\naxon\n", encoding="utf-8")
    panel.classes_chosen.emit(path)
    assert "'axon' twice" in page.sentence
    panel.classes_chosen.emit(None)
    assert page.sentence == "Any class may be given."
