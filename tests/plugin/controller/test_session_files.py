"""Sessions that go on in another window: journals, offers, saved files, autosaved labels, a full disk."""

import os
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from napari.layers import Image
from napari.utils.notifications import notification_manager
from qtpy.QtCore import Qt

from benchmarks.kill_journal import everything_of, predicted
from napari_lowlat_seg.annotation.journal import list_journals
from napari_lowlat_seg.annotation.journal import writer as journal_module
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.io.samples import blobs
from napari_lowlat_seg.plugin.controller import session_files
from napari_lowlat_seg.plugin.controller.session_files import SUFFIX
from napari_lowlat_seg.plugin.controller.situation import News
from napari_lowlat_seg.plugin.labels.disk_labels import claim
from napari_lowlat_seg.plugin.widget import LowlatWidget
from napari_lowlat_seg.plugin.worker import Worker

IMAGE = np.stack([blobs((60, 80), seed) for seed in range(4)])
FIRST, SECOND = Plane((0, None, None)), Plane((2, None, None))


class NoModel:
    """A service without a model: the test applies the masks itself."""

    def describe(self, progress=None):
        return {"device": "cpu", "precision": "float32", "licence": "none", "model": "none"}

    def embed(self, source, cancelled=None):
        return 0.0

    def predict(self, request, source, cancelled=None):
        return iter(())

    def propagate(self, request, sources, cancelled=None):
        return iter(())

    def restart(self):
        """It never hangs."""

    close = restart


class QuietWorker(Worker):
    """A worker with that service."""

    def load(self, make_service):
        super().load(NoModel)


@pytest.fixture
def open_window(make_viewer, qtbot):
    """A viewer without a window, and the widget; several may not know of each other."""

    def opened(image=IMAGE, name="cells", viewer=None, **settings):
        viewer = make_viewer() if viewer is None else viewer
        layer = viewer.add_image(image, name=name, **settings) if image is not None else viewer.layers[0]
        widget = LowlatWidget(viewer, QuietWorker())
        qtbot.addWidget(widget)
        widget.show()
        qtbot.waitUntil(lambda: widget.controller is not None)
        it = SimpleNamespace(viewer=viewer, widget=widget, layer=layer, offer=widget.form.offer)
        it.controller = widget.controller
        it.session, it.files = it.controller.session, it.controller.files
        it.until = qtbot.waitUntil
        it.until(lambda: it.session.volume.window is not None)
        return it

    return opened


def click(it, plane=FIRST, at=(30, 40), size=8):
    """A click of the user and the mask that a model gives."""
    it.session.add(plane, Click(at))
    mask = np.zeros(it.session.volume.sides(plane), bool)
    mask[at[0] - size : at[0] + size, at[1] - size : at[1] + size] = True
    it.session.apply(it.session.request(plane), predicted(mask))


def annotate(it):
    """Two objects accepted, a third begun, one step undone."""
    click(it)
    it.controller.accept()
    click(it, SECOND, (20, 20))
    it.controller.accept()
    click(it, FIRST, (12, 60))
    click(it, SECOND, (40, 60))
    it.controller.undo()
    it.controller.set("semantic", True)


def everything(it):
    """All of the session and its labels, by value."""
    return everything_of(it.session, np.asarray(it.controller.labels.layer.data))


def killed(it):
    """The window ends as a kill ends it: nothing is closed, the file stays as it is."""
    journal = it.files._journal
    assert journal.flush()
    journal.leave()
    it.session.observer = None
    path = journal.path.with_name("killed.journal")
    shutil.copy(journal.path, path)
    journal.close(discard=True)
    it.files._journal = None
    it.widget.close()
    return path


def offered(it):
    """Wait for the offer."""
    it.until(lambda: it.offer.isVisible())
    return it.files.state.offer


@pytest.mark.parametrize("name", ["cells", "renamed"])
def test_a_killed_session_is_offered_and_goes_on(open_window, journals, name):
    """Matched by its pixels: prompts, masks, labels, object states, undo depth are those before the kill."""
    first = open_window()
    annotate(first)
    before = everything(first)
    path = killed(first)
    second = open_window(IMAGE.copy(), name)
    assert "2 accepted objects, 5 steps to undo" in offered(second)
    second.offer.go_on.click()
    second.until(lambda: len(second.session.undo_stack.done) == 5)
    assert everything(second) == before
    assert not second.offer.isVisible()
    assert second.controller.labels.layer.name == "cells [lowlat] objects"
    second.until(lambda: not path.exists())  # the new journal has all of it
    (info,) = list_journals(journals, Volume(IMAGE))
    assert info.in_use
    shown = second.controller.prompts.present[0]
    assert len(shown.data) == 1  # the click of the third object
    while first.session.undo():
        assert second.session.undo()
    assert everything(second) == everything(first)


def test_start_anew_keeps_the_earlier_session(open_window, journals):
    """Nothing is restored, and its file stays in the list."""
    first = open_window()
    annotate(first)
    path = killed(first)
    second = open_window()
    offered(second)
    second.offer.start_anew.click()
    assert not second.offer.isVisible()
    assert second.session.undo_stack.done == ()
    assert path in [info.path for info in list_journals(journals)]


def test_the_offer_is_in_nobodys_way(open_window, journals):
    """One annotates without an answer; to go on later leaves a journal of what was done until then."""
    first = open_window()
    annotate(first)
    before = everything(first)
    killed(first)
    second = open_window()
    offered(second)
    for button in (second.offer.go_on, second.offer.start_anew):
        assert button.focusPolicy() & Qt.FocusPolicy.TabFocus
        assert button.accessibleName()
    click(second, at=(50, 50))
    assert second.files._journal.flush()
    between = second.files._journal.path
    second.offer.go_on.click()
    second.until(lambda: len(second.session.undo_stack.done) == 5)
    assert everything(second) == before
    second.until(lambda: not next(i for i in list_journals(journals) if i.path == between).in_use)


def test_an_image_that_is_closed_and_opened_again_offers_to_go_on(open_window, journals, qtbot):
    """In the same window."""
    it = open_window()
    annotate(it)
    before = everything(it)
    it.viewer.layers.clear()
    qtbot.waitUntil(lambda: it.widget.controller is None)
    qtbot.waitUntil(lambda: not any(info.in_use for info in list_journals(journals)))
    it.viewer.add_image(IMAGE)
    qtbot.waitUntil(lambda: it.offer.isVisible())
    it.offer.go_on.click()
    it.controller, it.session = it.widget.controller, it.widget.controller.session
    qtbot.waitUntil(lambda: len(it.session.undo_stack.done) == 5)
    assert everything(it) == before


def test_a_session_is_saved_and_opened_under_another_name(open_window, tmp_path, journals):
    """As on another machine: no journal is there, the image is renamed, the labels are in the file."""
    first = open_window()
    annotate(first)
    before = everything(first)
    first.files.save(tmp_path / "mine")
    first.until(lambda: first.widget.sentence == "session saved as mine.lowlat")
    first.widget.close()
    first.until(lambda: not any(info.in_use for info in list_journals(journals)))
    shutil.rmtree(journals)
    second = open_window(IMAGE.copy(), "elsewhere")
    second.files.open(tmp_path / f"mine{SUFFIX}")
    second.until(lambda: len(second.session.undo_stack.done) == 5)
    assert everything(second) == before
    assert second.widget.sentence.startswith("going on: 2 accepted objects")
    assert (tmp_path / "mine.lowlat").exists()


def test_what_cannot_be_opened_is_said_and_nothing_changes(open_window, tmp_path):
    """Another image, and a file that is no session."""
    first = open_window(IMAGE[:2])
    click(first)
    first.files.save(tmp_path / "small.lowlat")
    first.until(lambda: (tmp_path / "small.lowlat").exists())
    (tmp_path / "notes.lowlat").write_text("shopping list")
    second = open_window()
    click(second)
    before = everything_of(second.session, np.zeros(1))
    for name, words in (
        ("small", "belongs to other pixels"),
        ("notes", "no session"),
        ("gone", "No such file"),
    ):
        second.files.open(tmp_path / f"{name}.lowlat")
        second.until(lambda words=words: words in second.widget.sentence)
        assert words in notification_manager.records[-1].message
        assert everything_of(second.session, np.zeros(1)) == before


def test_labels_chosen_by_the_user_are_restored_with_what_was_in_them(open_window):
    """Their first content is in the journal."""
    first = open_window()
    mine = np.zeros(IMAGE.shape, np.uint8)
    mine[1, 5:9, 5:9] = 7
    layer = first.viewer.add_labels(mine, name="mine")
    first.controller.labels.use(layer)
    first.until(lambda: not first.controller.labels.reading)
    click(first)
    first.controller.accept()
    before = everything(first)
    killed(first)
    second = open_window()
    offered(second)
    second.offer.go_on.click()
    second.until(lambda: second.controller.labels.layer is not None)
    assert everything(second) == before
    assert second.controller.labels.layer.name == "mine"
    second.session.undo()
    assert np.array_equal(second.controller.labels.layer.data, before_of(mine))


def before_of(labels):
    """The labels that were there before the first accept."""
    there = np.zeros_like(labels)
    there[1, 5:9, 5:9] = 7
    return there


@pytest.mark.parametrize("moved", [False, True])
def test_labels_on_disk_are_found_again(open_window, tmp_path, moved):
    """Where they were; elsewhere the session draws its objects into new ones."""
    pytest.importorskip("ome_zarr")
    first = open_window()
    place = tmp_path / "labels.ome.zarr"
    first.controller.labels.keep_at(place)
    first.until(lambda: not first.controller.labels.reading)
    click(first)
    first.controller.accept()
    before = np.asarray(
        first.controller.labels.layer.data[0]
        if first.controller.labels.layer.multiscale
        else first.controller.labels.layer.data
    )
    assert before.max() == 1
    killed(first)
    if moved:
        shutil.move(place, tmp_path / "elsewhere.ome.zarr")
    second = open_window()
    offered(second)
    second.offer.go_on.click()
    second.until(lambda: second.controller.labels.layer is not None)
    data = second.controller.labels.layer.data
    again = np.asarray(data[0] if second.controller.labels.layer.multiscale else data)
    assert np.array_equal(again, before)
    assert (type(data) is np.ndarray) == moved


def test_labels_on_disk_that_another_window_writes_are_refused(qtbot, run_python, tmp_path):
    """A lock of the system on their folder, until that window ends."""
    pytest.importorskip("fcntl")
    place = tmp_path / "labels.ome.zarr"
    place.mkdir()
    code = f"""
from pathlib import Path
from napari_lowlat_seg.plugin.labels.disk_labels import claim
claim(Path({str(place)!r}))
claim(Path({str(place)!r}))  # one's own again
print("held")
import time
while not Path({str(tmp_path / "end")!r}).exists():
    time.sleep(.02)
"""
    other = threading.Thread(target=run_python, args=(code,))
    other.start()

    def held():
        import fcntl

        handle = os.open(place, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    qtbot.waitUntil(held)
    try:
        with pytest.raises(ValueError, match="is written by another window; close it there"):
            claim(place)
    finally:
        (tmp_path / "end").touch()
        other.join()
    claim(place)


def test_labels_on_disk_need_no_autosave(open_window, tmp_path):
    """They are saved as they are written."""
    pytest.importorskip("ome_zarr")
    it = open_window(np.zeros((2, 600, 600), np.uint8))
    it.controller.labels.keep_at(tmp_path / "labels.ome.zarr")
    it.until(lambda: not it.controller.labels.reading)
    with pytest.raises(ValueError, match="lie on disk and are saved as they are written"):
        it.files.autosave.to(tmp_path / "labels.tif")


def test_another_window_on_the_image_is_said(open_window, run_python, journals, tmp_path, qtbot):
    """Each keeps a session of its own."""
    np.save(tmp_path / "image.npy", IMAGE)
    code = f"""
import sys, time
import numpy as np
from napari_lowlat_seg import Click, Session, Volume
from napari_lowlat_seg.annotation.journal import Journal
session = Session(Volume(np.load({str(tmp_path / "image.npy")!r})))
journal = Journal(session, {str(journals)!r})
session.add(session.volume.planes()[0], Click((3, 3)))
assert journal.flush()
open({str(tmp_path / "ready")!r}, "w").close()
while not __import__("os").path.exists({str(tmp_path / "end")!r}):
    time.sleep(.02)
"""
    other = threading.Thread(target=run_python, args=(code,))
    other.start()
    qtbot.waitUntil((tmp_path / "ready").exists)
    try:
        it = open_window()
        it.until(lambda: "another window" in it.widget.sentence)
        assert "another window annotates this image" in notification_manager.records[-1].message
        assert not it.offer.isVisible()
    finally:
        (tmp_path / "end").touch()
        other.join()


def test_a_full_disk_is_said_once_and_annotating_goes_on(open_window, monkeypatch):
    """In the state line and as a notification of napari."""
    it = open_window()
    click(it)
    it.files._journal.flush()

    def full(file, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_module, "_write", full)
    before = len(notification_manager.records)
    for turn in range(4):
        click(it, SECOND, (20 + turn, 20))
    it.until(lambda: "cannot be written (No space left on device)" in it.widget.sentence)
    it.controller.accept()
    assert np.asarray(it.controller.labels.layer.data).any()
    assert len(notification_manager.records) == before + 1
    monkeypatch.undo()


def test_autosave_writes_the_labels_after_each_accept(open_window, tmp_path):
    """The last file is always that of the last change; its status is shown."""
    it = open_window()
    path = tmp_path / "labels.tif"
    it.widget.form.session.chosen.emit("files.autosave.to", path)
    click(it)
    it.controller.accept()
    it.until(lambda: "saved" in it.files.state.autosave)
    for turn in range(3):
        click(it, SECOND, (20, 20 + 10 * turn), 4)
        it.controller.accept()
    it.controller.undo()
    labels = np.asarray(it.controller.labels.layer.data)
    it.until(lambda: not it.files.autosave._running)
    assert np.array_equal(read_volume(path).data, labels)
    assert "labels.tif: saved" in it.widget.form.session._status.text()
    it.widget.form.session.buttons["autosave"].click()
    assert it.files.state.autosave == ""


FAILURES = {
    "full": (OSError(28, "No space left on device", "x.tif"), "No space left on device"),
    "read-only": (OSError(30, "Read-only file system", "x.tif"), "Read-only file system"),
    "drive gone": (OSError(5, "Input/output error", "x.tif"), "Input/output error"),
    "folder gone": (FileNotFoundError("no folder at /away; make it first"), "no folder at /away; make it"),
    "memory": (MemoryError("out of memory"), "out of memory"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_what_cannot_be_saved_is_said_once_and_saved_when_the_disk_lets_it(
    open_window, tmp_path, monkeypatch, kind
):
    """Autosave and Save session: the files are as before, what was annotated stays, and saving goes on."""
    error, why = FAILURES[kind]
    it, path, save = open_window(), tmp_path / "labels.tif", session_files.save_labels
    monkeypatch.setattr(session_files, "RETRY_MS", 50)
    click(it)
    it.controller.accept()
    it.files.autosave.to(path)
    it.until(lambda: "saved" in it.files.state.autosave)
    before, warned, tries = path.read_bytes(), len(notification_manager.records), []

    def refused(*_):
        tries.append(1)
        raise error

    monkeypatch.setattr(session_files, "save_labels", refused)
    monkeypatch.setattr(it.files._journal, "save", refused)
    for turn in range(2):
        click(it, SECOND, (20, 20 + 20 * turn), 4)
        it.controller.accept()
    it.until(lambda: len(tries) > 3)
    assert why in it.widget.form.session._status.text()
    (said,) = (one.message for one in notification_manager.records[warned:])
    assert said.startswith("the labels are not saved to labels.tif: ")
    assert why in said
    assert said.endswith("; what was annotated is kept")
    it.files.save(tmp_path / "mine")
    it.until(lambda: "the session is not saved as mine.lowlat" in it.widget.sentence)
    assert why in it.widget.sentence
    assert path.read_bytes() == before
    assert list(tmp_path.glob("mine*")) == []
    monkeypatch.setattr(session_files, "save_labels", save)
    it.until(lambda: "labels.tif: saved" in it.files.state.autosave)
    assert np.array_equal(read_volume(path).data, np.asarray(it.controller.labels.layer.data))
    assert len(it.session.undo_stack.done) == 6


def test_autosave_does_not_write_over_what_another_window_has_saved_there(open_window, tmp_path):
    """It says so; chosen again, the file is replaced."""
    it, path = open_window(), tmp_path / "labels.tif"
    it.files.autosave.to(path)
    click(it)
    it.controller.accept()
    it.until(lambda: "saved" in it.files.state.autosave and not it.files.autosave._running)
    path.write_bytes(b"labels of another window")
    click(it, SECOND)
    it.controller.accept()
    it.until(lambda: "Not saved: another program or window has written it since" in it.files.state.autosave)
    assert path.read_bytes() == b"labels of another window"
    it.files.autosave.to(path)
    it.until(lambda: "saved" in it.files.state.autosave and not it.files.autosave._running)
    assert np.array_equal(read_volume(path).data, np.asarray(it.controller.labels.layer.data))


def test_an_undo_that_cannot_be_written_is_said_and_nothing_is_undone(open_window, monkeypatch):
    """As an accept: labels and steps stay as they are."""
    it = open_window()
    click(it)
    it.controller.accept()
    before = everything(it)

    def full(edits):
        raise OSError(28, "No space left on device")

    store = it.session.undo_stack.done[-1].store
    monkeypatch.setattr(store, "write", full)
    warned = len(notification_manager.records)
    it.controller.undo()
    assert "No space left on device" in notification_manager.records[warned].message
    assert everything(it) == before
    monkeypatch.undo()
    it.controller.undo()
    assert not np.asarray(it.controller.labels.layer.data).any()


def test_a_file_that_labels_cannot_be_saved_to_is_refused(open_window, tmp_path):
    """In one sentence; no autosave begins."""
    it = open_window()
    for name in ("labels.ome.zarr", "labels.xyz", "missing/labels.tif"):
        it.widget.form.state.say(News())
        it.widget._try(lambda name=name: it.files.autosave.to(tmp_path / name))
        assert it.widget.sentence
        assert it.files.state.autosave == ""


def test_the_image_itself_is_no_place_for_labels(open_window, tmp_path, monkeypatch):
    """Pixels are never written over."""
    it = open_window()
    path = tmp_path / "image.tif"
    path.write_bytes(b"pixels")
    monkeypatch.setattr(Image, "source", SimpleNamespace(path=str(path)))
    with pytest.raises(ValueError, match="is the image itself"):
        it.files.autosave.to(path)


def test_what_the_worker_reports_reaches_the_main_thread(qtbot):
    """From any thread."""
    worker, seen = QuietWorker(), []
    threading.Thread(target=lambda: worker.call(lambda: seen.append(threading.current_thread()))).start()
    qtbot.waitUntil(lambda: bool(seen))
    assert seen == [threading.main_thread()]
    worker.close()
