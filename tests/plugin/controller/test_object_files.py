"""Prompts in files and tables of objects, from a real window."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest

from napari_lowlat_seg.core.geometry import Geometry
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Scribble
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.prompt_files import ObjectPrompts, load_prompts, save_prompts
from napari_lowlat_seg.io.samples import blobs
from napari_lowlat_seg.plugin.widget import LowlatWidget
from napari_lowlat_seg.plugin.worker import Worker

IMAGE = np.stack([blobs((60, 80), seed) for seed in range(4)])
FIRST, SECOND = Plane((0, None, None)), Plane((2, None, None))
SCALE = (3.0, 0.5, 0.5)
SCAN = Volume(
    np.transpose(IMAGE, (2, 1, 0)),
    SCALE[::-1],
    geometry=Geometry.from_nifti(np.diag([*SCALE[::-1], 1.0]), 3, unit="mm"),
)
"""The same image in the order of NIfTI."""


class Squares:
    """A service that predicts a square around the first prompt."""

    def describe(self, progress=None):
        return {"device": "cpu", "precision": "float32", "licence": "none", "model": "none"}

    def embed(self, source, cancelled=None):
        return 0.0

    def predict(self, request, source, cancelled=None):
        top, left, *_ = (int(x) for x in request.prompts[0].bounds())
        mask = np.zeros((60, 80), np.float32)
        mask[top : top + 6, left : left + 8] = 1
        yield SoftMask.of(mask), True

    def propagate(self, request, sources, cancelled=None):
        return iter(())

    def restart(self):
        """It never hangs."""

    close = restart


class QuickWorker(Worker):
    """A worker with that service."""

    def load(self, make_service):
        super().load(Squares)


@pytest.fixture
def window(make_viewer, qtbot):
    """A viewer with the image at its place, and the widget."""
    viewer = make_viewer()
    place = {"scale": SCALE, "units": ("mm",) * 3, "axis_labels": ("z", "y", "x")}
    viewer.add_image(IMAGE, name="cells", **place)
    widget = LowlatWidget(viewer, QuickWorker())
    qtbot.addWidget(widget)
    widget.show()
    qtbot.waitUntil(lambda: widget.controller is not None)
    it = SimpleNamespace(viewer=viewer, widget=widget, controller=widget.controller, until=qtbot.waitUntil)
    it.session, it.form = it.controller.session, widget.form.session
    it.until(lambda: it.session.volume.window is not None)
    return it


def test_prompts_of_all_objects_are_saved_for_other_programs(window, tmp_path):
    """They lie on the file of the image, whatever the order of its axes; accepted ones too."""
    window.session.add(FIRST, Click((10, 20)))
    window.controller._refresh()
    window.controller.accept()
    window.until(lambda: window.session.current > 1)
    window.session.add(SECOND, Scribble(((5, 6), (7, 9.5)), positive=False))
    window.controller._refresh()  # its prediction has a sentence too, which is not to come after the other
    window.until(lambda: not window.session.requests() and not window.widget.worker.busy)
    window.form.chosen.emit("objects.save", tmp_path / "p")
    window.until(lambda: "prompts saved as p.json" in window.widget.sentence)
    one, two = load_prompts(tmp_path / "p.json", SCAN)
    assert (one.label, one.prompts) == (1, {Plane((None, None, 0)): (Click((20, 10)),)})
    assert two.prompts == {Plane((None, None, 2)): (Scribble(((6, 5), (9.5, 7)), positive=False),)}


def test_a_file_of_prompts_makes_its_objects_again(window, tmp_path):
    """One after the other, with their labels, each step of undo; and a table of them in the world."""
    prompts = {Plane((None, None, 2)): (Click((20, 10)), Click((22, 12)))}
    objects = [
        ObjectPrompts(4, prompts),
        ObjectPrompts(9, {Plane((None, None, 0)): (Box((40, 30), (50, 40)),)}),
    ]
    save_prompts(tmp_path / "p.json", SCAN, objects)
    window.form.chosen.emit("objects.open", tmp_path / "p.json")
    window.until(lambda: window.session.highest == 9 and not window.session.accepting)
    layer = window.controller.labels.layer
    labels = np.asarray(layer.data)
    assert np.unique(labels).tolist() == [0, 4, 9]
    assert (labels[2, 10:16, 20:28] == 4).all()
    assert (labels[0, 30:36, 40:48] == 9).all()
    window.form.chosen.emit("objects.measure", tmp_path / "t.csv")
    window.until(lambda: "measurements saved as t.csv" in window.widget.sentence)
    with (tmp_path / "t.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["label"], first["voxels"], first["unit"], first["first-1"]) == ("4", "48", "mm", "10")
    assert float(first["volume"]) == pytest.approx(48 * 0.75)
    assert first["state"] == second["state"] == "done"  # as the table of objects has it
    assert float(second["centroid-x"]) == pytest.approx(43.5 * 0.5)
    assert float(second["mean"]) == pytest.approx(IMAGE[0, 30:36, 40:48].mean())


def test_what_cannot_be_done_is_said_in_the_state_line(window, tmp_path):
    """And changes nothing."""
    window.form.chosen.emit("objects.save", tmp_path / "p.json")
    assert "there are no prompts to save" in window.widget.sentence
    window.form.chosen.emit("objects.measure", tmp_path / "t.csv")
    assert "there are no labels to measure" in window.widget.sentence
    window.form.chosen.emit("objects.open", tmp_path / "gone.json")
    assert "no file of prompts at" in window.widget.sentence
    save_prompts(tmp_path / "none.json", SCAN, [ObjectPrompts(1)])
    window.form.chosen.emit("objects.open", tmp_path / "none.json")
    assert "none.json holds no prompt" in window.widget.sentence
    mask = {Plane((None, None, 2)): (Mask(np.ones((80, 60), bool)),)}
    save_prompts(tmp_path / "mask.json", SCAN, [ObjectPrompts(1, mask)])
    window.form.chosen.emit("objects.open", tmp_path / "mask.json")
    assert "has masks among its prompts" in window.widget.sentence
    content = json.loads((tmp_path / "none.json").read_text())
    content["image"]["affine"][0][3] += 30
    (tmp_path / "none.json").write_text(json.dumps(content))
    window.form.chosen.emit("objects.open", tmp_path / "none.json")
    assert "lies elsewhere than" in window.widget.sentence
    window.session.add(FIRST, Click((10, 20)))
    window.form.chosen.emit("objects.open", tmp_path / "none.json")
    assert "accept or clear the current object first" in window.widget.sentence
    assert not window.session.contents.records[1].written
    assert not (tmp_path / "t.csv").exists()


def test_the_files_of_objects_have_buttons(window):
    """With words that say what they do."""
    for name in ("save_prompts", "open_prompts", "measure"):
        button = window.form.buttons[name]
        assert button.isVisible()
        assert button.accessibleName()
        assert button.toolTip()
