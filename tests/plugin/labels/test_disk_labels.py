"""Labels on disk in napari: a pyramid that is shown, written and undone; made beside the image, or found."""

import os
from pathlib import Path
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("ome_zarr")

import zarr
from napari.components import ViewerModel
from napari.layers import Labels
from qtpy.QtWidgets import QFileDialog, QLineEdit, QWidget

from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.labels import Policy
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.io.chunked.ome_zarr import HIGHEST
from napari_lowlat_seg.io.chunked.zarr_labels import LabelPyramid
from napari_lowlat_seg.plugin.forms.controls import NEW, OPEN, ask_for_folder
from napari_lowlat_seg.plugin.labels.disk_labels import (
    DiskLabels,
    beside,
    fit_memory,
    opening,
    shown,
    store_of,
)
from napari_lowlat_seg.plugin.labels.memory_labels import LabelLayer
from napari_lowlat_seg.plugin.labels.target import ChosenLabels
from napari_lowlat_seg.plugin.layers.grid import grid_of

SHAPE = (4, 600, 700)
PLANE = Plane((2, None, None))


@pytest.fixture
def viewer():
    """A viewer without a window, with one volume."""
    viewer = ViewerModel()
    place = {"scale": (3, 0.5, 0.5), "units": "nm", "axis_labels": ("z", "y", "x")}
    viewer.add_image(np.zeros(SHAPE, np.uint8), name="scan", **place)
    return viewer


@pytest.fixture
def grid(viewer):
    """The volume's grid."""
    return grid_of(viewer.layers["scan"])


@pytest.fixture
def labels(viewer, grid, tmp_path):
    """New labels on disk."""
    return shown(viewer, grid, opening(grid, tmp_path / "l.ome.zarr")())


@pytest.fixture
def session(grid, labels):
    """A session that writes there."""
    return Session(grid.volume, labels)


def square(top, left, side=40):
    """A mask of a plane."""
    mask = np.zeros(SHAPE[1:], bool)
    mask[top : top + side, left : left + side] = True
    return mask


def accepted(session, mask, plane=PLANE):
    """The label under which a mask was written."""
    label = session.label
    session.paint(plane, mask)
    assert session.accept()
    return label


def test_an_object_is_written_shown_undone_and_redone(viewer, grid, labels, session):
    """On every level, and on the screen."""
    grid.look_at(viewer.dims, PLANE)
    label = accepted(session, square(100, 200))
    for k, level in enumerate(labels.layer.data):
        assert np.array_equal(np.asarray(level[2]), label * square(100, 200)[:: 2**k, :: 2**k])
    assert (labels.layer._slice.image.raw == label).any()
    session.undo()
    assert not any(np.asarray(level).any() for level in labels.layer.data)
    assert not labels.layer._slice.image.raw.any()
    session.redo()
    assert np.asarray(labels.layer.data[0][2]).sum() == 1600
    assert labels.highest() == label


def test_policies_and_reopening_work_as_in_memory(labels, session):
    """A second object keeps off the first; a correction frees what it leaves."""
    accepted(session, square(100, 200))
    accepted(session, square(120, 220))
    assert np.count_nonzero(np.asarray(labels.layer.data[0][2]) == 2) == 1600 - 400
    session.policy = Policy("overwrite")
    accepted(session, square(130, 230, 5))
    assert session.edit_object(PLANE, (105, 205))
    assert session.label == 1
    session.paint(PLANE, square(100, 200, 10))
    session.accept()
    assert np.count_nonzero(np.asarray(labels.layer.data[0][2]) == 1) == 100


def test_what_is_shown_again_is_read_once_and_what_is_written_is_read_anew(labels, session, monkeypatch):
    """Beside finished neighbours; after each accept the labels are others."""
    accepted(session, square(100, 200))
    session.paint(PLANE, square(120, 220))
    reads, read = [], LabelPyramid.read
    monkeypatch.setattr(LabelPyramid, "read", lambda *given: reads.append(given) or read(*given))
    for _ in range(5):
        assert np.count_nonzero(session.mask(PLANE)) == 1600 - 400
    assert len(reads) == 1
    labels._pyramid.write_mask(PLANE, square(150, 250, 5), 9)  # another program
    session.accept()
    assert len(reads) > 1
    assert np.count_nonzero(np.asarray(labels.layer.data[0][2]) == 9) == 25
    session.paint(PLANE, square(120, 220))
    assert not session.mask(PLANE).any()


def test_the_file_has_the_axes_units_and_spacing_of_the_image(labels, tmp_path):
    """What other programs need to lay it over the image."""
    (image,) = zarr.open_group(tmp_path / "l.ome.zarr").attrs["ome"]["multiscales"]
    assert [axis["name"] for axis in image["axes"]] == ["z", "y", "x"]
    assert {axis["unit"] for axis in image["axes"]} == {"nanometer"}
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == [3.0, 0.5, 0.5]
    assert labels.layer.multiscale
    assert np.allclose(labels.layer.scale, (3, 0.5, 0.5))


def test_channels_are_a_slab_and_small_labels_can_be_painted_on(tmp_path):
    """The labels show at every channel; those of one level are like any others, and nothing counts them."""
    viewer = ViewerModel()
    grid = grid_of(viewer.add_image(np.zeros((2, 3, 40, 50)), name="two"), channel_axis=0, channel=1)
    labels = shown(viewer, grid, opening(grid, tmp_path / "l.zarr")())
    accepted(Session(grid.volume, labels), np.ones((40, 50), bool), Plane((1, None, None)))
    assert labels.layer.data.shape == (1, 3, 40, 50)
    assert np.asarray(labels.layer.data[0, 1]).all()
    assert labels.layer.editable
    assert HIGHEST not in zarr.open_group(tmp_path / "l.zarr").attrs
    assert opening(grid, tmp_path / "l.zarr")().highest() == 1
    (image,) = zarr.open_group(tmp_path / "l.zarr").attrs["ome"]["multiscales"]
    assert [axis["type"] for axis in image["axes"]] == ["channel", "space", "space", "space"]


@pytest.mark.parametrize("opened", ["zarr", "dask", "dask in the image"])
def test_labels_that_the_user_opened_are_written_to(viewer, grid, session, labels, tmp_path, opened):
    """As arrays, or through a reader that hands out dask: the file changes, and the screen with it."""
    accepted(session, square(100, 200))
    viewer.layers.remove(labels.layer)
    place, name = tmp_path / "l.ome.zarr", "theirs"
    if opened == "dask in the image":
        (tmp_path / "image.zarr" / "labels").mkdir(parents=True)
        place = place.rename(tmp_path / "image.zarr" / "labels" / name)
    group = zarr.open_group(place, mode="r+")
    levels = [group[str(k)] for k in range(len(labels.layer.data))]
    if opened != "zarr":
        levels = [da.from_zarr(level) for level in levels]
    layer = Labels(levels, multiscale=True, name=name, **grid.place)
    layer._source = layer.source.model_copy(
        update={"path": str(tmp_path / "image.zarr" if "image" in opened else place)}
    )
    viewer.add_layer(layer)
    store = store_of(layer, grid)
    assert isinstance(store, DiskLabels)
    again = Session(grid.volume, store)
    assert accepted(again, square(300, 300)) == 2
    assert np.count_nonzero(zarr.open_group(place)["1"][2] == 2) == 400
    assert np.count_nonzero(np.asarray(layer.data[0][2]) == 2) == 1600
    assert zarr.open_group(place).attrs[HIGHEST] == 2


def labels_at(place, viewer, grid, levels):
    """New labels at a place, shown with "many" levels as we do, or the finest "one" as napari opens it."""
    store = shown(viewer, grid, opening(grid, place)())
    if levels == "many":
        return store
    viewer.layers.remove(store.layer)
    return store_of(viewer.add_labels(zarr.open_group(place)["0"], **grid.place), grid)


@pytest.mark.parametrize("levels", ["many", "one"])
def test_labels_whose_drive_was_pulled_take_nothing_until_it_is_back(viewer, grid, tmp_path, levels):
    """Nothing is made where the drive was; what was annotated is kept, and written when it is back."""
    place = tmp_path / "drive" / "l.ome.zarr"
    place.parent.mkdir()
    session = Session(grid.volume, labels_at(place, viewer, grid, levels))
    accepted(session, square(100, 200))
    place.parent.rename(tmp_path / "pulled")
    session.paint(PLANE, square(300, 300))
    with pytest.raises(OSError, match=r"l.ome.zarr/0 are not there any more .*; what was annotated is kept"):
        session.accept()
    with pytest.raises(OSError, match="not there any more"):
        session.undo_stack.done[-2].edits and (session.undo(), session.undo())
    assert not (tmp_path / "drive").exists()
    (tmp_path / "pulled").rename(tmp_path / "drive")
    while session.redo():
        pass
    assert session.accept()
    assert np.unique(zarr.open_group(place)["0"][2]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("levels", ["many", "one"])
def test_a_disk_that_is_full_at_any_chunk_leaves_nothing_of_an_object(
    viewer, grid, tmp_path, monkeypatch, levels
):
    """On no level; the same accept works when there is room."""
    place, put, room = tmp_path / "l.ome.zarr", zarr.storage._local._put, 10**6
    session = Session(grid.volume, labels_at(place, viewer, grid, levels))
    accepted(session, square(100, 200))

    def full(path, value, exclusive=False):
        nonlocal room
        room -= 1
        if room == 0:
            raise OSError(28, "No space left on device", str(path))
        return put(path, value, exclusive)

    def everything():
        group = zarr.open_group(place)
        return [np.asarray(group[key][...]) for key in sorted(group.array_keys())]

    monkeypatch.setattr(zarr.storage._local, "_put", full)
    before, done, refused = everything(), False, 0
    session.paint(PLANE, square(0, 0, 500))
    while not done:
        room = refused + 1
        try:
            done = session.accept()
        except OSError as error:
            refused += 1
            said = str(error)
            assert session.label == 2
            assert all(map(np.array_equal, everything(), before))
    assert refused >= (2 if levels == "many" else 1)
    assert "l.ome.zarr/0 cannot be written (No space left on device); what was annotated is kept" in said
    assert np.count_nonzero(everything()[0] == 2) == 250_000 - 1600
    room = 10**6
    session.undo()
    assert all(map(np.array_equal, everything(), before))


def test_labels_that_another_window_writes_are_refused(viewer, grid, labels, tmp_path):
    """Also where the user has opened them: each would write over what the other has written."""
    fcntl = pytest.importorskip("fcntl")
    place = tmp_path / "theirs.ome.zarr"
    pyramid = LabelPyramid.at(place, grid.volume)
    other = os.open(place, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    layer = viewer.add_labels(list(pyramid.levels), multiscale=True, **grid.place)
    with pytest.raises(ValueError, match=r"theirs.ome.zarr is written by another window; close it there"):
        store_of(layer, grid)
    os.close(other)
    assert store_of(layer, grid)


def test_labels_of_one_level_stay_what_they_were(viewer, grid):
    """With napari's own brush and undo."""
    layer = viewer.add_labels(np.zeros(SHAPE, np.uint8), **grid.place)
    assert isinstance(store_of(layer, grid), LabelLayer)


def test_a_pyramid_that_is_nowhere_is_refused(viewer, grid):
    """dask arrays of no file cannot be written to."""
    levels = [da.zeros(SHAPE, dtype=int), da.zeros((4, 300, 350), dtype=int)]
    layer = viewer.add_labels(levels, multiscale=True, name="mine", **grid.place)
    with pytest.raises(ValueError, match="'mine' is a pyramid that cannot be written to where it is"):
        store_of(layer, grid)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/a/big.ome.zarr", "/a/big.labels.ome.zarr"),
        ("/a/big.ome.zarr/0", "/a/big.labels.ome.zarr"),
        ("/a/scan.v2.ome.tif", "/a/scan.v2.labels.ome.zarr"),
        ("/a/scan.tif", "/a/scan.labels.ome.zarr"),
        ("s3://bucket/a.zarr", None),
        (None, None),
    ],
)
def test_labels_lie_beside_the_image(path, place):
    """Under its name; not in a bucket, and nowhere without a file."""
    image = SimpleNamespace(source=SimpleNamespace(path=path))
    assert beside(image) == (None if place is None else Path(place))


def test_memory_has_room_for_so_much():
    """A gibivoxel, and planes that napari can draw whole."""
    assert fit_memory((50, 2048, 2048))
    assert fit_memory((8192, 8192))
    assert not fit_memory((900, 8192, 8192))
    assert not fit_memory((20_000, 20_000))


class Errands:
    """A worker that runs its errands at once, or when told."""

    def __init__(self):
        self.waiting = []

    def run(self, work, done):
        self.waiting.append(lambda: done(work()))

    def go(self):
        while self.waiting:
            self.waiting.pop(0)()


@pytest.fixture
def choosing(viewer, grid):
    """Labels to be chosen for a session, where memory has no room; the image is of a file if one is given."""

    def choose(path=None):
        layer = grid.layer
        if path is not None:
            layer._source = layer.source.model_copy(update={"path": str(path)})
        session, worker, with_prediction = Session(grid.volume), Errands(), []
        keys = SimpleNamespace(bind=lambda *a: None, unbind=lambda *a: None)
        chosen = ChosenLabels(viewer, grid, session, worker, keys, None, fit=lambda shape: False)
        chosen.failed.connect(with_prediction.append)
        return chosen, session, worker, with_prediction

    return choose


def test_new_labels_are_made_beside_the_image_and_found_again(choosing, tmp_path):
    """The second session goes on with the numbers of the first."""
    for label in (1, 2):
        chosen, session, worker, _ = choosing(tmp_path / "scan.tif")
        assert not chosen.ensure()
        assert chosen.reading
        assert not chosen.ensure()  # asked again while waiting: opened once
        assert len(worker.waiting) == 1
        worker.go()
        assert chosen.ensure()
        assert accepted(session, square(50 * label, 9)) == label
    assert (tmp_path / "scan.labels.ome.zarr").is_dir()


def test_without_a_file_the_user_is_asked_for_a_place(choosing):
    """The sentence says where."""
    chosen, *_ = choosing()
    with pytest.raises(ValueError, match=r"labels of shape \(4, 600, 700\) are kept on disk.*“new on disk…”"):
        chosen.ensure()
    assert not chosen.reading


def test_a_place_that_cannot_be_had_is_told(choosing, tmp_path):
    """Nothing waits for ever."""
    (tmp_path / "l.zarr").mkdir()
    chosen, _, worker, with_prediction = choosing()
    chosen.keep_at(tmp_path / "l.zarr")
    worker.go()
    assert not chosen.reading
    assert "must be labels of shape (4, 600, 700) or not exist" in with_prediction[0]


def test_what_was_chosen_meanwhile_counts(choosing, viewer, grid, tmp_path):
    """A folder that was slow to open does not come back."""
    chosen, _, worker, _ = choosing()
    chosen.keep_at(tmp_path / "l.zarr")
    mine = viewer.add_labels(np.zeros(SHAPE, np.uint8), **grid.place)
    chosen.use(mine)
    worker.go()
    assert chosen.layer is mine


@pytest.mark.parametrize(
    ("kind", "typed", "expected"), [(NEW, "mine", "mine.ome.zarr"), (OPEN, "a.zarr", "a.zarr")]
)
def test_a_folder_is_asked_for(qtbot, tmp_path, kind, typed, expected):
    """A new one by its name, an old one by choosing it."""
    (tmp_path / "a.zarr").mkdir()
    parent, chosen = QWidget(), []
    qtbot.addWidget(parent)
    dialog = ask_for_folder(parent, kind, tmp_path / "scan.labels.ome.zarr", chosen.append)
    assert isinstance(dialog, QFileDialog)
    line = dialog.findChild(QLineEdit)
    if kind == NEW:
        assert line.text() == "scan.labels.ome.zarr"
    line.setText(str(tmp_path / typed))
    dialog.accept()
    assert chosen == [tmp_path / expected]
