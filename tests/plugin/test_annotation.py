"""Annotating as a person does: the dock widget in a real window, the shipped data, the embedded model."""

import threading
from types import SimpleNamespace

import dask.array
import numpy as np
import pytest
from qtpy.QtWidgets import QApplication

from hand import NONE, Hand
from napari_lowlat_seg.annotation.journal import read_session
from napari_lowlat_seg.annotation.journal.replay import replay
from napari_lowlat_seg.core.prompts import Box, Click, Polygon, Scribble
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.plugin.settings import settings
from napari_lowlat_seg.plugin.widget import LowlatWidget
from napari_lowlat_seg.plugin.worker import Worker
from napari_lowlat_seg.serving.process import PredictionProcess

PLUGIN = "napari-lowlat-seg"


class SharedService:
    """The one process of all tests, which no widget may end, and which serves one worker at a time."""

    turn = threading.Lock()

    def __init__(self, service):
        self._service = service
        self.broken = ""

    def predict(self, *asked):
        if self.broken:
            raise ValueError(self.broken)
        with self.turn:
            yield from self._service.predict(*asked)

    def embed(self, *asked):
        with self.turn:
            return self._service.embed(*asked)

    def propagate(self, *asked):
        with self.turn:
            yield from self._service.propagate(*asked)

    def find_objects(self, *asked):
        with self.turn:
            yield from self._service.find_objects(*asked)

    def describe(self, *asked):
        with self.turn:
            return self._service.describe(*asked)

    def close(self):
        pass

    def __getattr__(self, name):
        return getattr(self._service, name)


class SharedWorker(Worker):
    """A worker whose model is there already."""

    def __init__(self, service):
        super().__init__()
        self.service = service

    def load(self, make_service):
        super().load(lambda: self.service)


@pytest.fixture(scope="module")
def process():
    """The embedded model in a child process; without closer looks, which are most of the work."""
    yield from started("off")


@pytest.fixture(scope="module")
def closer():
    """The same with closer looks, as users have it."""
    yield from started("auto")


def started(closer_look):
    """A child process with the embedded model; it ends with the tests of this file."""
    one = PredictionProcess("default", "cpu", closer_look)
    one.describe()
    yield one
    one.close()


@pytest.fixture
def window(make_napari_viewer_proxy, qtbot, process):
    """A viewer with an image of any kind, the widget beside it, and a hand: `window(data, **settings)`."""
    viewer = make_napari_viewer_proxy(show=True)
    viewer.window.resize(1300, 900)

    def open_image(data=None, *, sample=None, plane=None, ahead=0, served=process, **place):
        settings().embeddings.ahead = (
            ahead  # eight planes of the real model each way would be most of the work
        )
        if sample is not None:
            layer = viewer.open_sample(PLUGIN, sample)[0]
        elif data is None:
            layer = None
        else:
            layer = viewer.add_image(data, **place)
        return dock(viewer, layer, plane, served)

    def dock(viewer, layer, plane=None, served=process):
        worker, embedded = SharedWorker(SharedService(served)), []
        worker.embedded.connect(lambda key, seconds: embedded.append(key[1]))
        widget = LowlatWidget(viewer, worker)
        viewer.window.add_dock_widget(widget, name="Segment")
        it = SimpleNamespace(viewer=viewer, image=layer, widget=widget, worker=worker, qtbot=qtbot)
        it.until = lambda true: qtbot.waitUntil(true)
        it.controller = lambda: widget.controller
        if layer is not None:
            it.until(lambda: widget.controller is not None)
            if plane is not None:
                it.controller().grid.look_at(viewer.dims, plane)
            seen = it.controller().plane  # none where the image is turned out of this view
            it.until(lambda: widget.sentence == "ready" if seen else not worker.busy)
            it.until(lambda: seen is None or seen.index in embedded)
            it.hand = Hand(viewer, it.controller().grid)
        return it

    open_image.dock = dock
    return open_image


def mask_of(it):
    """The mask of the object in hand on the plane in view once all is answered; the screen shows the same."""
    controller = it.controller()
    it.until(lambda: not controller.session.pending and not it.worker.busy)
    QApplication.processEvents()
    mask = controller.session.mask(controller.plane)
    shown = np.asarray(controller.preview.layer.data).reshape(controller.grid.sides(controller.plane)) == 1
    assert np.array_equal(shown, np.zeros_like(shown) if mask is None else mask)
    return mask


def prompts_of(it):
    """What was given on the plane in view."""
    return it.controller().session.state(it.controller().plane).prompts


def near(points, expected, pixels=1.0):
    """Whether the mouse landed where it was aimed: a canvas pixel is less than a voxel here."""
    return np.abs(np.asarray(points, float) - np.asarray(expected, float)).max() <= pixels


def iou(one, other):
    """Intersection over union."""
    return np.count_nonzero(one & other) / np.count_nonzero(one | other)


@pytest.fixture(scope="module")
def neurons():
    """The EM stack and the neurons that experts proofread in it."""
    from napari_lowlat_seg.io.files import read_volume
    from napari_lowlat_seg.io.samples import sample_path

    image = np.asarray(read_volume(sample_path("em_fly_medulla.tif")).data)
    return image, np.asarray(read_volume(sample_path("em_fly_medulla_labels.tif")).data)


@pytest.mark.qt
def test_click_correct_accept_undo_redo_edit(window, neurons):
    """The whole round on the EM stack, with mouse and keys alone."""
    it = window(sample="em")
    truth = neurons[1][23] == neurons[1][23, 228, 95]
    it.hand.click((228, 95))
    first = mask_of(it)
    assert iou(first, truth) > 0.8
    wrong = tuple(int(x) for x in np.argwhere(first)[20])
    it.hand.click(wrong, key="Ctrl")
    corrected = mask_of(it)
    assert [prompt.positive for prompt in prompts_of(it)] == [True, False]
    assert near([prompt.at for prompt in prompts_of(it)], [(228, 95), wrong])
    assert corrected[228, 95]
    assert not corrected[wrong]

    it.hand.key("Enter")
    labels = it.controller().labels.layer
    assert labels.name == "fly medulla [lowlat] objects"
    assert np.array_equal(labels.data[23] == 1, corrected)
    assert labels.data.sum() == corrected.sum()
    assert it.controller().settings.label == 2
    assert prompts_of(it) == ()
    assert mask_of(it) is None

    it.hand.key("Ctrl+Z")
    assert not labels.data.any()
    assert len(prompts_of(it)) == 2
    assert np.array_equal(mask_of(it), corrected)
    it.hand.key("Ctrl+Z")
    assert len(prompts_of(it)) == 1
    assert np.array_equal(mask_of(it), first)
    for _ in range(2):
        it.hand.key("Ctrl+Shift+Z")
    assert np.array_equal(labels.data[23] == 1, corrected)
    assert mask_of(it) is None

    it.viewer.cursor.position = it.image.data_to_world((23, 228, 95))
    it.hand.key("W")
    assert it.controller().settings.label == 1
    assert len(prompts_of(it)) == 2
    assert np.array_equal(mask_of(it), corrected)
    it.hand.key("U")
    it.hand.key("Enter")
    assert not labels.data.any()  # a reopened object that was cleared is gone
    it.hand.key("Ctrl+Z")
    assert np.array_equal(labels.data[23] == 1, corrected)


@pytest.mark.qt
def test_a_scribble_on_the_tumour_is_answered_while_it_is_drawn(window):
    """The MRI volume: the preview shows a mask before the button comes up, and keeps the final one."""
    it = window(sample="mri", plane=Plane((90, None, None)))
    controller = it.controller()
    outline = it.viewer.layers["glioma outline by algorithms"].data[90] > 0
    row, col = (int(x) for x in np.argwhere(outline).mean(axis=0))
    it.hand.press((row - 8, col))
    it.hand.move((row - 8, col), (row, col), (row + 6, col + 4))
    it.until(lambda: (np.asarray(controller.preview.layer.data) == 1).any())
    assert prompts_of(it) == ()
    assert (np.asarray(controller.preview.layer.data) == 2).any()
    it.hand.release((row + 6, col + 4))
    mask = mask_of(it)
    (scribble,) = prompts_of(it)
    assert isinstance(scribble, Scribble)
    assert iou(mask, outline) > 0.5
    it.hand.key("Ctrl+Z")
    assert mask_of(it) is None


@pytest.mark.qt
def test_a_box_and_a_lasso_without_leaving_the_tool(window, neurons):
    """Shift-drag draws a box, Q changes what a drag draws; clicks still click."""
    it = window(neurons[0][:30], plane=Plane((23, None, None)))
    it.hand.drag((155, 60), (205, 110), key="Shift")
    boxed = mask_of(it)
    (box,) = prompts_of(it)
    assert isinstance(box, Box)
    assert near((box.start, box.end), ((155, 60), (205, 110)), 1.5)
    assert boxed[160:200, 65:105].mean() > 0.3
    it.hand.key("Ctrl+Z")
    it.hand.key("Q")
    it.hand.key("Q")
    assert it.controller().settings.tool == "lasso"
    it.hand.drag((155, 60), (155, 110), (205, 110), (205, 60), (157, 60))
    lassoed = mask_of(it)
    (lasso,) = prompts_of(it)
    assert isinstance(lasso, Polygon)
    assert iou(boxed, lassoed) > 0.5
    it.hand.click((180, 85))
    assert isinstance(prompts_of(it)[1], Click)


def test_the_polarity_key_and_what_shows_it(window, neurons):
    """T turns the next prompt; colour and symbol differ; selected points are turned round."""
    it = window(neurons[0][:2])
    it.hand.click((120, 88))
    it.hand.key("T")
    assert not it.controller().settings.positive
    it.hand.click((20, 20))
    points = it.controller().prompts.points
    assert [prompt.positive for prompt in prompts_of(it)] == [True, False]
    assert len(set(map(str, points.symbol))) == 2
    assert not np.array_equal(points.face_color[0], points.face_color[1])
    points.mode = "select"
    points.selected_data = {1}
    it.hand.key("T")
    assert [prompt.positive for prompt in prompts_of(it)] == [True, True]
    mask_of(it)


@pytest.mark.qt
def test_points_moved_and_deleted_change_the_mask(window, neurons):
    """Edits with napari's own tools are recognised, one undo step each."""
    it = window(neurons[0][:2])
    it.hand.click((120, 88))
    first = mask_of(it)
    points = it.controller().prompts.points
    points.mode = "select"
    it.hand.press((120, 88))
    it.hand.move((120, 88), (180, 85))
    it.hand.release((180, 85))
    assert near(prompts_of(it)[0].at, (180, 85), 2)
    moved = mask_of(it)
    assert iou(first, moved) < 0.5
    points.selected_data = {0}
    points.remove_selected()
    assert mask_of(it) is None
    it.controller().undo()
    assert np.array_equal(mask_of(it), moved)
    it.controller().undo()
    assert np.array_equal(mask_of(it), first)


TURNED = [[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]
TILTED = [[3, 0, 0, 5], [0, 0.6, 0.8, -20], [0, -0.8, 0.6, 40], [0, 0, 0, 1]]
# The affine ones scale, turn and move; of the others `layers/test_grid.py` shows the places for any voxel.
PLACED = pytest.mark.thorough
UPENDED = [[0.6, 0, 0.8, 5], [0, 2, 0, -20], [-0.8, 0, 0.6, 40], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("axis", "place"),
    [
        pytest.param(0, {}, marks=pytest.mark.qt, id="axial"),
        pytest.param(0, {"scale": (5, 2, 1)}, marks=PLACED, id="anisotropic"),
        pytest.param(
            0,
            {"scale": (4, 1, 1), "translate": (10, -30, 7), "rotate": TURNED},
            marks=PLACED,
            id="rotated",
        ),
        pytest.param(0, {"affine": TILTED}, id="affine"),
        pytest.param(1, {}, marks=PLACED, id="coronal"),
        pytest.param(1, {"scale": (5, 2, 1)}, marks=PLACED, id="coronal-anisotropic"),
        pytest.param(1, {"affine": UPENDED}, id="coronal-affine"),
    ],
)
def test_prompt_and_mask_land_on_the_right_voxel(window, neurons, axis, place):
    """Wherever the image lies, however it is cut: the voxel under the mouse is in mask and labels."""
    plane = Plane((20, None, None)) if axis == 0 else Plane((None, 120, None))
    at = (120, 88) if axis == 0 else (23, 88)
    it = window(neurons[0], **place)
    if axis == 1:
        it.viewer.dims.order = (1, 0, 2)
        it.viewer.reset_view()
    it.controller().grid.look_at(it.viewer.dims, plane)
    it.hand.click(at)
    mask = mask_of(it)
    assert prompts_of(it), "the click did not land on the image"
    assert near(prompts_of(it)[0].at, at)
    assert mask[at]
    it.hand.key("Enter")
    labels = it.controller().labels.layer
    assert np.array_equal(labels.data[plane.key()] == 1, mask)
    assert labels.data.sum() == mask.sum()
    voxel = (plane.index[0], *at) if axis == 0 else (at[0], plane.index[1], at[1])
    world = it.image.data_to_world(voxel)
    assert np.allclose(labels.data_to_world(voxel), world)
    it.viewer.cursor.position = world
    it.hand.key("W")
    assert it.controller().settings.label == 1


def test_time_series_of_volumes(window, neurons):
    """4-D: prompts belong to one time and one plane; other times show their own state."""
    it = window(np.stack([neurons[0][:4], neurons[0][20:24]]))
    it.controller().grid.look_at(it.viewer.dims, Plane((1, 2, None, None)))
    it.hand.click((120, 88))
    mask = mask_of(it)
    it.controller().grid.look_at(it.viewer.dims, Plane((0, 2, None, None)))
    assert mask_of(it) is None
    it.hand.key("Enter")
    labels = it.controller().labels.layer.data
    assert np.array_equal(labels[1, 2] == 1, mask)
    assert labels.sum() == mask.sum()


def test_an_rgb_picture(window):
    """Labels have no axis of colours."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 60, (200, 240, 3), dtype=np.uint8)
    picture[60:140, 80:180] += np.array([180, 40, 10], np.uint8)
    it = window(picture, rgb=True)
    it.hand.click((100, 130))
    mask = mask_of(it)
    truth = np.zeros((200, 240), bool)
    truth[60:140, 80:180] = True
    assert iou(mask, truth) > 0.8
    it.hand.key("Enter")
    assert np.array_equal(it.controller().labels.layer.data == 1, mask)


def test_a_pyramid_of_dask_arrays(window, neurons):
    """The finest level is segmented without loading the volume; a coarser one on demand."""
    fine = dask.array.from_array(neurons[0], chunks=(1, 250, 250))
    it = window([fine, fine[:, ::2, ::2]], multiscale=True)
    it.hand.click((120, 88))
    fine_mask = mask_of(it)
    assert fine_mask.shape == (250, 250)
    it.widget.controllers.turn_to(it.image, type(it.widget.controllers.view)(level=1))
    it.hand.grid = it.controller().grid
    it.until(lambda: not it.worker.busy)
    it.hand.click((60, 44))
    coarse = mask_of(it)
    assert coarse.shape == (125, 125)
    assert iou(coarse, fine_mask[::2, ::2]) > 0.6
    it.hand.key("Enter")
    labels = it.controller().labels.layer
    assert np.allclose(labels.scale, (1, 2, 2))
    assert np.array_equal(labels.data[it.controller().plane.index[0]] == 1, coarse)


def test_one_channel_of_several(window, neurons):
    """The channels are no plane: the object lies at each of them."""
    it = window(np.stack([np.zeros_like(neurons[0][:3]), neurons[0][20:23]], axis=1))
    it.widget.controllers.turn_to(it.image, type(it.widget.controllers.view)(channel_axis=1, channel=1))
    it.hand.grid = it.controller().grid
    it.until(lambda: not it.worker.busy and it.widget.sentence == "ready")
    it.hand.click((120, 88))
    mask = mask_of(it)
    assert mask.sum() > 1000
    it.hand.key("Enter")
    labels = it.controller().labels.layer
    assert labels.data.shape == (3, 1, 250, 250)
    for channel in (0, 1):
        it.viewer.dims.set_current_step(1, channel)
        shown = labels.get_value(
            it.image.data_to_world((it.controller().plane.index[0], channel, 120, 88)), world=True
        )
        assert shown == 1


@pytest.mark.qt
def test_the_brush_takes_away_and_the_model_continues(window, neurons):
    """Erase a part of the mask by hand; a later click keeps that, and undo goes through it in order."""
    it = window(neurons[0][:2])
    it.hand.click((120, 88))
    first = mask_of(it)
    it.hand.key("Shift+G")
    preview = it.controller().preview.layer
    assert preview.mode == "erase"
    preview.brush_size = 30
    it.hand.drag((110, 80), (110, 95))
    erased = mask_of(it)
    assert not erased[110, 85]
    assert (erased & ~first).sum() == 0
    it.hand.key("Shift+Q")
    assert it.viewer.layers.selection.active == it.controller().prompts.points
    it.hand.click((130, 90))
    later = mask_of(it)
    assert iou(later & ~erased, first & ~erased) < 0.5
    it.hand.key("Ctrl+Z")
    assert np.array_equal(mask_of(it), erased)
    it.hand.key("Ctrl+Z")
    assert np.array_equal(mask_of(it), first)


@pytest.mark.qt
def test_a_brush_stroke_on_the_labels_is_on_the_same_undo_stack(window, neurons):
    """napari's own paint, then an accept, undone in order by one key on any of the layers."""
    it = window(neurons[0][:2])
    labels = it.viewer.add_labels(np.zeros((2, 250, 250), np.uint16), name="mine")
    it.controller().labels.use(labels)
    it.until(lambda: not it.controller().labels.reading)
    it.viewer.layers.selection.active = labels
    labels.mode, labels.selected_label, labels.brush_size = "paint", 7, 20
    it.hand.drag((30, 30), (30, 60))
    painted = labels.data.copy()
    assert (painted == 7).sum() > 300
    it.controller().prompts.activate()
    it.hand.click((120, 88))
    mask_of(it)
    it.hand.key("Enter")
    accepted = labels.data.copy()
    assert set(np.unique(accepted)) == {0, 1, 7}
    it.viewer.layers.selection.active = labels
    it.hand.key("Ctrl+Z")
    assert np.array_equal(labels.data, painted)
    it.controller().undo(), it.controller().undo()
    assert not labels.data.any()
    for _ in range(3):
        it.controller().redo()
    assert np.array_equal(labels.data, accepted)


def test_accept_pressed_before_the_answer_waits_for_it(window, neurons):
    """A fast hand loses nothing."""
    it = window(neurons[0][:2])
    it.hand.click((120, 88))
    it.hand.key("Enter")
    assert it.controller().settings.label == 2  # the next prompt belongs to the next object
    it.until(lambda: it.controller().labels.layer is not None and it.controller().labels.layer.data.any())
    assert set(np.unique(it.controller().labels.layer.data)) == {0, 1}


def test_planes_by_key_and_each_its_own_state(window, neurons):
    """J and K look at the neighbours; coming back shows the mask again."""
    it = window(neurons[0][:4], plane=Plane((1, None, None)), ahead=1)
    it.hand.click((120, 88))
    mask = mask_of(it)
    it.hand.key("J")
    assert it.controller().plane == Plane((2, None, None))
    assert mask_of(it) is None
    it.hand.key("K")
    assert np.array_equal(mask_of(it), mask)
    for _ in range(3):
        it.hand.key("K")
    assert it.controller().plane == Plane((0, None, None))
    it.hand.key("Ctrl+Z")
    assert it.controller().plane == Plane((1, None, None))  # undo shows where it happens


def test_a_neuron_is_propagated_and_all_that_was_done_is_replayed_to_the_voxel(
    window, neurons, closer, tmp_path
):
    """One click, one key: the planes beside it follow the neuron; accepted and undone as a whole.

    Then a second object, clicked and corrected, accepted, undone, accepted: every mask comes out again.
    """
    it = window(neurons[0][21:26], plane=Plane((2, None, None)), served=closer)
    it.hand.click((228, 95))
    first = mask_of(it)
    it.hand.key("Shift+J")
    it.until(lambda: not it.controller().propagation.running and not it.worker.busy)
    truth = neurons[1][21:26] == neurons[1][23, 228, 95]
    found = [it.controller().session.mask(Plane((z, None, None))) for z in range(5)]
    assert np.array_equal(found[2], first)
    assert min(iou(mask, true) for mask, true in zip(found, truth, strict=True)) > 0.7
    assert [z for z, sure in it.controller().propagation.state.marks if sure is None] == [2]
    it.hand.key("J")
    assert np.array_equal(mask_of(it), found[3])
    it.hand.key("Enter")
    assert np.array_equal(it.controller().labels.layer.data == 1, np.stack(found))
    it.hand.key("Ctrl+Z")
    it.hand.key("Ctrl+Z")
    assert [z for z, _ in it.controller().propagation.state.marks] == [2]
    for _ in range(2):
        it.hand.key("Ctrl+Shift+Z")
    assert np.array_equal(it.controller().labels.layer.data == 1, np.stack(found))

    it.controller().grid.look_at(it.viewer.dims, Plane((2, None, None)))
    it.hand.click((120, 88))
    mask_of(it)
    it.hand.click((180, 60), "Shift")
    mask_of(it)
    it.hand.key("Enter")
    it.hand.key("Ctrl+Z")
    it.hand.key("Enter")
    labels = np.array(it.controller().labels.layer.data)
    assert set(np.unique(labels)) == {0, 1, 2}
    it.controller().files.save(tmp_path / "mine.lowlat")
    it.until(lambda: "session saved" in it.widget.sentence)
    volume = Volume(neurons[0][21:26])
    saved = read_session(tmp_path / "mine.lowlat", volume)
    assert saved.mirror.settings["model"]["weights"] == it.worker.facts["weights"]

    class InTurn(SharedService):
        """Takes all masks in its turn: the window may be embedding in the same process."""

        def predict(self, *asked):
            return iter(list(super().predict(*asked)))

        def propagate(self, *asked):
            return iter(list(super().propagate(*asked)))

    done = replay(saved, volume, lambda facts: InTurn(closer))
    assert (done.differing, done.voxels) == (0, labels.size)
    assert np.array_equal(done.labels, labels)


@pytest.mark.qt
def test_holding_postpones_and_cancel_drops(window, neurons):
    """H down: prompts gather. H up: one answer for all of them."""
    it = window(neurons[0][:2])
    it.hand.key_down("H")
    it.hand.click((120, 88))
    it.hand.click((130, 90))
    it.qtbot.wait(300)
    assert it.controller().session.mask(it.controller().plane) is None
    it.hand.key_up("H")
    assert mask_of(it).any()
    assert len(prompts_of(it)) == 2
    it.hand.click((20, 20))
    it.hand.key("Escape")
    it.until(lambda: not it.worker.busy)
    assert len(prompts_of(it)) == 3


def test_three_dimensional_display_asks_for_a_2d_view(window, neurons):
    """Back in 2-D, prompts work again."""
    it = window(neurons[0][:4])
    it.hand.click((120, 88))
    mask = mask_of(it)
    it.viewer.dims.ndisplay = 3
    assert "2-D" in it.widget.sentence
    it.viewer.dims.ndisplay = 2
    assert np.array_equal(mask_of(it), mask)


@pytest.mark.qt
def test_hovering_outlines_and_writes_nothing(window, neurons):
    """Behind a setting; the contour goes with the mouse, the click accepts it as a prompt."""
    it = window(neurons[0][:2])
    preview = it.controller().preview.layer
    it.controller().set("hover", True)
    it.hand.move((118, 86), (120, 88), down=NONE)
    it.until(lambda: (np.asarray(preview.data) == 4).any())
    assert prompts_of(it) == ()
    assert not it.controller().session.can_undo
    it.hand.click((120, 88))
    assert mask_of(it).any()


def test_the_threshold_acts_on_the_preview_at_once(window, neurons):
    """Without asking the network again."""
    it = window(neurons[0][:2])
    it.hand.click((120, 88))
    plain = mask_of(it)
    finish = it.controller().settings.finish
    it.controller().set("finish", type(finish)(threshold=0.9, largest=True))
    strict = mask_of(it)
    assert strict.sum() < plain.sum()
    assert not (strict & ~plain).any()
    it.controller().set("finish", finish)
    assert np.array_equal(mask_of(it), plain)


def test_prompts_from_points_and_shapes_of_the_users_own(window, neurons):
    """They are read, not emptied; letting go leaves them as they are."""
    it = window(neurons[0][:2])
    plane = it.controller().plane
    z = plane.index[0]
    mine = it.viewer.add_points(np.array([[z, 120.0, 88.0]]), name="seeds", ndim=3)
    it.controller().prompts.adopt(mine)
    assert prompts_of(it) == (Click((120, 88)),)
    assert mask_of(it).any()
    mine.add([[z, 130.0, 90.0]])
    assert len(prompts_of(it)) == 2
    mask_of(it)
    it.controller().prompts.adopt()
    assert np.array_equal(mine.data, [[z, 120, 88], [z, 130, 90]])


def test_an_error_is_shown_in_the_services_words(window, neurons):
    """As a notification of napari and in the state line; the next click works again."""
    from napari.utils.notifications import notification_manager

    it = window(neurons[0][:2])
    it.worker.service.broken = "the model cannot answer that; choose another one"
    it.hand.click((120, 88))
    it.until(lambda: "cannot answer" in it.widget.sentence)
    assert any("cannot answer" in str(record) for record in notification_manager.records)
    it.worker.service.broken = ""
    it.hand.click((130, 90))
    assert mask_of(it).any()


def test_layers_deleted_and_renamed_mid_flight(window, neurons):
    """Ours come back when they are needed, a rename changes nothing, deleted labels are made anew."""
    it = window(neurons[0][:2])
    controller = it.controller()
    it.hand.click((120, 88))
    it.viewer.layers.remove(controller.prompts.points)
    it.viewer.layers.remove(controller.preview.layer)
    it.image.name = "another name"
    mask = mask_of(it)
    assert mask.any()
    it.controller().prompts.activate()
    it.hand.click((130, 90))
    mask_of(it)
    it.hand.key("Enter")
    first = controller.labels.layer
    it.viewer.layers.remove(first)
    assert controller.labels.layer is None
    it.hand.click((120, 88))
    mask_of(it)
    it.hand.key("Enter")
    assert controller.labels.layer is not first
    assert controller.labels.layer.data.any()


def test_an_image_that_is_moved_takes_prompts_and_masks_along(window, neurons):
    """Scale and position may be corrected in the middle of the work."""
    it = window(neurons[0][:2])
    it.hand.click((120, 88))
    mask = mask_of(it)
    it.image.scale, it.image.translate = (2, 3, 3), (0, 40, -20)
    it.viewer.reset_view()
    it.hand.click((130, 90))
    assert near([prompt.at for prompt in prompts_of(it)], [(120, 88), (130, 90)])
    assert iou(mask_of(it), mask) > 0.5
    controller = it.controller()
    for layer in (controller.prompts.points, controller.prompts.shapes, controller.preview.layer):
        assert np.allclose(layer.data_to_world((0, 120, 88))[1:], it.image.data_to_world((0, 120, 88))[1:])


@pytest.mark.qt
def test_the_image_deleted_while_predicting(window, neurons):
    """The widget goes back to its beginning; nothing of ours stays but the labels."""
    it = window(neurons[0][:2])
    it.hand.click((120, 88))
    it.viewer.layers.remove(it.image)
    it.until(lambda: it.controller() is None)
    it.until(lambda: not it.worker.busy)
    assert [layer.name for layer in it.viewer.layers] == []


def test_swapping_images_and_back(window, neurons):
    """Each image keeps its prompts, masks and undo."""
    it = window(neurons[0][:2], name="first")
    it.hand.click((120, 88))
    mask = mask_of(it)
    other = it.viewer.add_image(255 - neurons[0][30], name="second")
    it.widget.controllers.turn_to(other)
    assert prompts_of(it) == ()
    it.until(lambda: not it.worker.busy)
    it.widget.controllers.turn_to(it.image)
    it.until(lambda: not it.worker.busy)
    assert np.array_equal(mask_of(it), mask)
    it.controller().undo()
    assert prompts_of(it) == ()


@pytest.mark.qt
def test_two_widgets_at_once(window, neurons):
    """On two images of one viewer; neither hears the other's answers or keys."""
    it = window(neurons[0][:2], name="first")
    other = it.viewer.add_image(neurons[0][30:32], name="second")
    two = window.dock(it.viewer, other)
    if two.controller().layer is not other:
        two.widget.controllers.turn_to(other)
    it.viewer.layers.selection.active = it.controller().prompts.points
    it.hand.click((120, 88))
    mask = mask_of(it)
    assert two.controller().session.prompted() == {}
    two.controller().prompts.activate()
    Hand(it.viewer, two.controller().grid).click((60, 60))
    assert len(prompts_of(two)) == 1
    mask_of(two)
    assert np.array_equal(mask_of(it), mask)
    it.viewer.layers.selection.active = two.controller().prompts.points
    it.hand.key("Ctrl+Z")
    assert two.controller().session.prompted() == {}
    assert len(prompts_of(it)) == 1


@pytest.mark.qt
def test_closing_the_viewer_while_predicting(window, neurons):
    """Nothing raises, nothing stays."""
    it = window(neurons[0][:2])
    it.hand.click((120, 88))
    it.viewer.close()
    it.qtbot.wait(300)
