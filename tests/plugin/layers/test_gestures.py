"""The mouse on the canvas, as a person moves it: clicks, drags, native tools, interruptions, hovering."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.layers import Image
from qtpy.QtCore import QEvent, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from hand import NONE, Hand
from napari_lowlat_seg.core.prompts import Box, Click, Polygon, Scribble
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.layers.gestures import Gestures
from napari_lowlat_seg.plugin.layers.grid import grid_of
from napari_lowlat_seg.plugin.layers.prompt_layers import PromptLayers

pytestmark = pytest.mark.qt

SHAPE = (12, 48, 64)
TURN = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])


class Mouse(Hand):
    """A hand that also goes to pixels of the canvas, and has a right button."""

    def where(self, point):
        return point if isinstance(point, QPointF) else super().where(point)

    def right_click(self, point):
        where, right = self.where(point), Qt.MouseButton.RightButton
        for kind in (QEvent.Type.MouseButtonPress, QEvent.Type.MouseButtonRelease):
            glob = QPointF(self.canvas.mapToGlobal(where))
            event = QMouseEvent(kind, where, glob, right, right, Qt.KeyboardModifier.NoModifier)
            QApplication.sendEvent(self.canvas, event)


@pytest.fixture
def scene(shared_viewer):
    """An image in a window, prompt layers, gestures and a mouse; `edits`, `strokes`, `hovers`, `status`."""
    open_scenes = []

    def build(axis=0, shape=SHAPE, **place):
        viewer = shared_viewer
        layer = Image(np.zeros(shape, np.uint8), name="image", **place)
        viewer.add_layer(layer)
        if len(shape) > 2:
            rest = [a for a in range(len(shape)) if a != axis]
            viewer.dims.order = (axis, *rest)
        viewer.reset_view()
        grid = grid_of(layer)
        if len(shape) > 2:
            index = [None] * len(shape)
            index[axis] = 5
            grid.look_at(viewer.dims, Plane(tuple(index)))
        it = SimpleNamespace(
            viewer=viewer, grid=grid, image=layer, edits=[], strokes=[], hovers=[], status=[]
        )
        it.layers = PromptLayers(viewer, grid, it.edits.append, it.status.append)
        it.gestures = Gestures(
            viewer,
            grid,
            it.layers,
            lambda *stroke: it.strokes.append(stroke),
            lambda *hover: it.hovers.append(hover),
        )
        it.layers.attach()
        it.gestures.attach()
        it.plane = grid.plane(viewer.dims)
        it.mouse = Mouse(viewer, grid)
        open_scenes.append(it)
        return it

    yield build
    for it in open_scenes:
        it.gestures.detach()
        it.layers.detach()


@pytest.fixture
def axial(scene):
    """The plane 5 of a plain volume."""
    return scene()


def near(points, wanted):
    return np.allclose(points, wanted, atol=0.2)


PLACES = {
    "axial": {},
    "coronal": {"axis": 1},
    "sagittal": {"axis": 2},
    "anisotropic": {"axis": 2, "scale": (3.0, 1.0, 0.5), "translate": (7, -3, 11)},
    "rotated": {"scale": (2.0, 1.0, 1.5), "affine": TURN},
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_clicks_and_scribbles_land_on_the_voxels_under_the_mouse(scene, place):
    """In every orientation, and however the image lies in the world."""
    it = scene(**place)
    it.mouse.click((7, 9))
    (edit,) = it.edits
    (click,) = edit[it.plane]
    assert isinstance(click, Click)
    assert near(click.at, (7, 9))
    assert click.positive
    it.edits.clear()
    it.strokes.clear()
    _drag_a_scribble(it)


def _drag_a_scribble(it):
    """It is reported at every move, then once as finished, then as one edit; the camera stays."""
    before = it.viewer.scene.camera.center
    it.mouse.drag((2, 3), (8, 9), (8, 4))
    assert it.viewer.scene.camera.center == before
    (edit,) = it.edits
    _, scribble = edit[it.plane]
    assert isinstance(scribble, Scribble)
    assert near(scribble.points[0], (2, 3))
    assert near(scribble.points[-1], (8, 4))
    assert [stroke[4] for stroke in it.strokes] == [False] * (len(it.strokes) - 1) + [True]
    assert len(it.strokes) > 8
    kind, plane, points, prompts, _ = it.strokes[-2]
    assert (kind, plane) == ("scribble", it.plane)
    assert near(points[-1], (8, 4))
    assert prompts == (scribble,)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_what_a_click_will_give_is_known_when_the_button_goes_down(scene, place):
    """And again wherever the mouse goes before it is a drag; it is what the edit says at its release."""
    it, pressed = scene(**place), []
    it.gestures.pressed.connect(lambda plane, prompts: pressed.append((plane, prompts)))
    QTest.qWait(50)  # until the canvas has its size
    for sign in (True, False):
        it.layers.positive = sign
        pressed.clear()
        it.mouse.press((7, 9))
        assert len(pressed) == 1
        assert not it.edits
        it.mouse.move((7, 9), (7, 9.05))
        assert len(pressed) > 1
        it.mouse.release((7, 9.05))
        plane, (said,) = pressed[-1]
        *_, click = it.edits.pop()[it.plane]
        assert (plane, said.positive) == (it.plane, click.positive)
        assert np.allclose(said.at, click.at, rtol=0, atol=1e-6)


def test_what_is_no_click_is_not_announced(axial):
    """The right button, a place beside the plane, and a drag once it is one."""
    pressed = []
    axial.gestures.pressed.connect(lambda *said: pressed.append(said))
    axial.mouse.right_click((7, 9))
    axial.mouse.click((-3, 9))
    assert not pressed
    axial.mouse.press((2, 3))
    axial.mouse.move((2, 3), (20, 3))
    announced = len(pressed)
    axial.mouse.move((20, 3), (30, 30))
    axial.mouse.release((30, 30))
    assert len(pressed) == announced


def test_the_tool_in_hand_decides_what_a_drag_draws(axial):
    """A box from corner to corner, and an outline that may come back to where it began without a click."""
    axial.gestures.tool = "box"
    axial.mouse.drag((4, 5), (20, 30))
    axial.gestures.tool = "lasso"
    axial.mouse.drag((10, 10), (10, 30), (30, 30), (10, 10))
    assert len(axial.edits) == 2
    box, outline = axial.edits[-1][axial.plane]
    assert isinstance(box, Box)
    assert near(box.points, [(4, 5), (20, 30)])
    assert isinstance(outline, Polygon)
    assert near(outline.bounds(), (10, 10, 30, 30))
    assert len(axial.layers.points.data) == 0


def test_shift_draws_a_box_and_control_turns_the_sign_for_once(axial):
    """Whatever the tool in hand, and both for drags and clicks."""
    axial.mouse.drag((4, 5), (20, 30), key="Shift")
    axial.mouse.drag((4, 5), (20, 30), key="Ctrl")
    axial.mouse.click((10, 12), key="Ctrl")
    axial.mouse.click((20, 12))
    box, scribble, away, here = axial.edits[-1][axial.plane]
    assert isinstance(box, Box)
    assert [box.positive, scribble.positive, away.positive, here.positive] == [True, False, False, True]
    assert len(axial.edits) == 4


def test_a_click_with_another_button_is_no_prompt(axial):
    """The right button zooms."""
    axial.mouse.right_click((10, 12))
    axial.mouse.click((10, 14))
    assert [len(edit[axial.plane]) for edit in axial.edits] == [1]


def test_a_drag_pans_in_another_mode(axial):
    """Space switches to it while it is held; nothing is drawn."""
    before = axial.viewer.scene.camera.center
    axial.layers.points.mode = "pan_zoom"
    axial.mouse.canvas.setUpdatesEnabled(True)  # vispy looks up what is drawn under the mouse
    QTest.qWait(50)
    axial.mouse.drag((10, 10), (20, 20))
    assert axial.viewer.scene.camera.center != before
    assert axial.edits == axial.strokes == []


def test_a_stroke_is_cut_off_at_the_border(axial):
    """Beside the image there is nothing to say; a stroke that comes back says two things, in one edit."""
    axial.mouse.drag((5, 5), (-3, 5), (-3, 20), (5, 20))
    (edit,) = axial.edits
    out, back = edit[axial.plane]
    assert near(out.points[-1], (-0.5, 5))
    assert near(back.points[0], (-0.5, 20))
    axial.mouse.drag((-3, 5), (-3, 20))
    axial.mouse.click((-3, 5))
    assert len(axial.edits) == 1
    assert len(axial.status) == 2
    assert len(axial.layers.points.data) == 0


def interrupt_by_mode(it):
    it.layers.points.mode = "pan_zoom"
    it.mouse.release((12, 12))
    it.layers.points.mode = "add"


def interrupt_by_plane(it):
    it.grid.look_at(it.viewer.dims, it.plane.moved(2))
    it.mouse.move((12, 20), (13, 13))
    it.mouse.release((12, 12))
    it.grid.look_at(it.viewer.dims, it.plane)


def interrupt_by_layer(it):
    it.viewer.layers.selection.active = it.image
    it.mouse.release((12, 12))
    it.layers.activate()
    it.mouse.move((18, 18), (20, 20), down=NONE)


def interrupt_by_deletion(it):
    it.viewer.layers.remove(it.layers.points)
    it.mouse.release((12, 12))
    it.layers.activate()


def interrupt_by_display(it):
    it.viewer.dims.ndisplay = 3
    it.mouse._mouse(QEvent.Type.MouseMove, QPointF(100, 100), NONE, Qt.MouseButton.LeftButton, "")
    it.mouse.release(QPointF(100, 100))
    it.viewer.dims.ndisplay = 2
    it.layers.activate()


INTERRUPTIONS = {
    "mode": interrupt_by_mode,
    "plane": interrupt_by_plane,
    "layer": interrupt_by_layer,
    "deletion": interrupt_by_deletion,
    "3-D": interrupt_by_display,
}


@pytest.mark.parametrize("interrupt", INTERRUPTIONS.values(), ids=INTERRUPTIONS)
def test_an_interrupted_stroke_is_given_up_and_the_next_click_counts(axial, interrupt):
    """The stroke ends without points and without an edit; nothing is stuck afterwards."""
    axial.mouse.press((10, 10))
    axial.mouse.move((10, 10), (12, 20))
    interrupt(axial)
    assert axial.edits == []
    assert [stroke[4] for stroke in axial.strokes].count(True) == 1
    assert axial.strokes[-1][4]
    assert len(axial.strokes[-1][2]) == 0
    axial.viewer.reset_view()
    axial.mouse.click((20, 21))
    (edit,) = axial.edits
    (click,) = edit[axial.plane]
    assert near(click.at, (20, 21))
    assert click.positive


@pytest.mark.parametrize(("mode", "kind"), [("add_path", Scribble), ("add_polygon_lasso", Polygon)])
def test_free_hand_tools_of_napari_tell_their_strokes(axial, mode, kind):
    """Dragged on the Shapes layer: live, finished once, and one edit that comes from napari's shape."""
    axial.viewer.layers.selection.active = axial.layers.shapes
    axial.layers.shapes.mode = mode
    axial.mouse.drag((5, 5), (30, 10), (30, 40), (8, 40))
    (edit,) = axial.edits
    (prompt,) = edit[axial.plane]
    assert isinstance(prompt, kind)
    assert near(prompt.bounds(), (5, 5, 30, 40))
    assert [stroke[4] for stroke in axial.strokes] == [False] * (len(axial.strokes) - 1) + [True]
    assert isinstance(axial.strokes[-2][3][0], kind)


def test_free_hand_tools_also_work_click_by_click(axial):
    """A click begins a line, moving draws it, a click ends it; until then it is no prompt."""
    axial.viewer.layers.selection.active = axial.layers.shapes
    axial.layers.shapes.mode = "add_path"
    axial.mouse.click((5, 5))
    axial.mouse.move((5, 5), (30, 10), (30, 40), down=NONE)
    assert axial.edits == []
    assert len(axial.strokes) > 5
    axial.mouse.click((30, 40))
    (edit,) = axial.edits
    assert isinstance(edit[axial.plane][0], Scribble)
    assert axial.strokes[-1][4]


def test_a_rectangle_drawn_with_napari_is_read_when_it_is_finished(axial):
    """Not while it grows."""
    axial.viewer.layers.selection.active = axial.layers.shapes
    axial.layers.shapes.mode = "add_rectangle"
    axial.mouse.press((5, 5))
    axial.mouse.move((5, 5), (20, 30))
    assert axial.edits == []
    axial.mouse.release((20, 30))
    (edit,) = axial.edits
    (box,) = edit[axial.plane]
    assert isinstance(box, Box)
    assert near(box.points, [(5, 5), (20, 30)])


def test_a_polygon_is_read_when_it_is_finished(axial):
    """Click by click, then by leaving the mode; what the session shows meanwhile waits."""
    axial.viewer.layers.selection.active = axial.layers.shapes
    axial.layers.shapes.mode = "add_polygon"
    for corner in ((5, 5), (5, 30), (25, 30)):
        axial.mouse.move((3, 3), corner, down=NONE)
        axial.mouse.click(corner)
    axial.layers.show({axial.plane: [Click((1, 1))]})
    assert axial.edits == []
    axial.layers.shapes.mode = "pan_zoom"
    (edit,) = axial.edits
    click, polygon = edit[axial.plane]
    assert click == Click((1, 1))
    assert isinstance(polygon, Polygon)
    assert near(polygon.bounds(), (5, 5, 25, 30))
    assert len(axial.layers.points.data) == 1


def test_moving_a_point_is_one_edit(axial):
    """Dragged in select mode, reported when it is released."""
    axial.mouse.click((10, 10))
    axial.layers.points.mode = "select"
    axial.mouse.press((10, 10))
    axial.mouse.move((10, 10), (20, 25))
    assert len(axial.edits) == 1
    axial.mouse.release((20, 25))
    assert len(axial.edits) == 2
    assert near(axial.edits[-1][axial.plane][0].at, (20, 25))


def test_moving_and_bending_a_shape_are_one_edit_each(axial):
    """A rectangle that is moved stays a box; with one corner moved it is a polygon."""
    axial.mouse.drag((10, 10), (20, 30), key="Shift")
    shapes = axial.layers.shapes
    axial.viewer.layers.selection.active = shapes
    shapes.mode = "select"
    axial.mouse.click((10, 20))
    axial.mouse.drag((15, 20), (20, 25))
    assert [type(edit[axial.plane][0]) for edit in axial.edits] == [Box, Box]
    shapes.mode = "direct"
    axial.mouse.drag(tuple(shapes.data[0][2][1:]), (40, 50))
    assert [type(edit[axial.plane][0]) for edit in axial.edits] == [Box, Box, Polygon]


def test_a_shape_that_loses_its_vertices_is_gone(axial):
    """napari forgets to take it out of its features table; the signs of the others stay right."""
    axial.mouse.drag((10, 10), (20, 30))
    axial.mouse.drag((5, 10), (5, 40), key="Ctrl")
    shapes = axial.layers.shapes
    axial.layers.show({axial.plane: [Scribble([(10, 10), (20, 30)]), Scribble([(5, 10), (5, 40)], False)]})
    axial.viewer.layers.selection.active = shapes
    shapes.mode = "vertex_remove"
    shapes.selected_data = {0}
    axial.mouse.click((10, 10))
    assert axial.edits[-1] == {axial.plane: (Scribble([(5, 10), (5, 40)], False),)}
    assert len(shapes.features) == shapes.nshapes == 1


def test_hovering_is_told_after_a_rest_and_taken_back(axial, qtbot):
    """Only when switched on, without a button, and not again until the mouse has moved."""
    axial.mouse.move((8, 8), (10, 10), down=NONE)
    QTest.qWait(200)
    assert axial.hovers == []
    axial.gestures.hover = True
    axial.mouse.move((10, 10), (12, 13), down=NONE)
    qtbot.waitUntil(lambda: len(axial.hovers) == 1)
    plane, at = axial.hovers[0]
    assert plane == axial.plane
    assert near(at, (12, 13))
    axial.mouse.move((12, 13), (14, 13), down=NONE)
    assert axial.hovers[1:] == [(axial.plane, None)]
    axial.gestures.hover = False


def test_an_unknown_tool_is_refused(axial):
    """With the names that there are."""
    with pytest.raises(ValueError, match="one of scribble, box, lasso; got 'brush'"):
        axial.gestures.tool = "brush"


def test_detached_gestures_leave_the_layer_as_it_was(axial):
    """No callback stays, and a drag draws nothing."""
    axial.gestures.detach()
    axial.gestures.detach()
    points = axial.layers.points
    assert len(points.mouse_drag_callbacks) == 1
    axial.mouse.drag((10, 10), (20, 30))
    assert axial.strokes == axial.edits == []
