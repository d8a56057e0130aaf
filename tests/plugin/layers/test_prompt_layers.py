"""Prompts as rows of napari layers and back, without a window."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.components import ViewerModel
from napari.layers import Image, Points, Shapes
from napari.layers.points import _points_key_bindings as points_keys
from napari.layers.shapes import _shapes_key_bindings as shapes_keys

from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Scribble
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.layers.grid import grid_of
from napari_lowlat_seg.plugin.layers.prompt_layers import PromptLayers
from napari_lowlat_seg.plugin.layers.prompt_rows import NEGATIVE_COLOR, POSITIVE_COLOR

SHAPE = (6, 30, 40)
SIDES = (30, 40)
HERE, THERE = Plane((2, None, None)), Plane((4, None, None))
ACROSS = Plane((None, 7, None))
PATH = np.array([[2, 1, 1], [2, 5, 9], [2, 6, 20.0]])


@pytest.fixture
def scene():
    """Prompt layers on a volume at its plane 2; `edits`, `status`."""
    viewer = ViewerModel()
    image = Image(np.zeros(SHAPE, np.uint8), name="image", scale=(3, 1, 0.5), translate=(1, 2, 3))
    viewer.add_layer(image)
    grid = grid_of(image)
    grid.look_at(viewer.dims, HERE)
    it = SimpleNamespace(viewer=viewer, grid=grid, image=image, edits=[], status=[])
    it.layers = PromptLayers(viewer, grid, it.edits.append, it.status.append)
    it.layers.attach()
    return it


@pytest.fixture
def flat():
    """The same on a 2-D image."""
    viewer = ViewerModel()
    image = Image(np.zeros(SIDES, np.uint8), name="image")
    viewer.add_layer(image)
    it = SimpleNamespace(viewer=viewer, edits=[], status=[], plane=Plane((None, None)))
    it.layers = PromptLayers(viewer, grid_of(image), it.edits.append, it.status.append)
    it.layers.attach()
    return it


ALL = {
    HERE: (
        Click((3, 4)),
        Scribble([(1, 2), (5, 6.5), (7, 7)], False),
        Click((3, 4)),
        Box((20, 8), (9, 30)),
        Polygon([(1, 1), (1, 9), (9, 1)], False),
        Click((8, 8), False),
        Scribble([(11, 12)]),
    ),
    THERE: (Click((0, 39)),),
}


def test_attaching_adds_two_locked_layers_ready_to_click(scene):
    """Named after the image, lying on it; the clicks are active."""
    clicks, strokes = scene.layers.points, scene.layers.shapes
    assert [layer.name for layer in scene.viewer.layers] == [
        "image",
        "image [lowlat] strokes",
        "image [lowlat] clicks",
    ]
    assert scene.viewer.layers.selection.active is clicks
    assert clicks.mode == "add"
    for layer in (clicks, strokes):
        assert layer.locked
        assert layer.ndim == 3
        np.testing.assert_array_equal(layer.scale, scene.image.scale)
        np.testing.assert_array_equal(layer.translate, scene.image.translate)


def test_what_is_shown_is_what_is_read(scene):
    """All kinds, in the order given, with both signs; showing is silent, reading returns the same values."""
    scene.layers.show(ALL, (1, 2))
    assert scene.edits == []
    assert len(scene.layers.points.data) == 4
    assert scene.layers.shapes.shape_type == ["path", "rectangle", "polygon", "path"]
    scene.layers.points.add([2, 1, 1])
    assert scene.edits == [{**ALL, HERE: (*ALL[HERE], Click((1, 1)))}]


def test_showing_the_same_again_touches_nothing(scene):
    """Not even the selection."""
    scene.layers.show(ALL, (1, 2))
    events = []
    for layer in (scene.layers.points, scene.layers.shapes):
        layer.events.data.connect(events.append)
        layer.events.features.connect(events.append)
    scene.layers.points.selected_data = {1}
    scene.layers.show({plane: list(prompts) for plane, prompts in ALL.items()}, (1, 2))
    assert events == []
    assert scene.layers.points.selected_data == {1}


def test_other_orientations_and_masks_are_kept_unseen(scene):
    """They stay in every edit, and are drawn when the view turns."""
    mask = Mask(np.eye(30, 40, dtype=bool))
    prompted = {HERE: (Click((1, 1)), mask), ACROSS: (Click((2, 2)),)}
    scene.layers.show(prompted, (1, 2))
    assert len(scene.layers.points.data) == 1
    scene.layers.points.add([2, 5, 5])
    assert scene.edits == [{HERE: (Click((1, 1)), mask, Click((5, 5))), ACROSS: (Click((2, 2)),)}]
    scene.layers.show(scene.edits[0], (2, 0))
    np.testing.assert_array_equal(scene.layers.points.data, [[2, 7, 2]])
    assert scene.layers.axes == (0, 2)
    assert len(scene.edits) == 1


def test_each_action_on_points_is_one_edit(scene):
    """Adding one or several, moving, deleting several, changing the sign in the features table."""
    points = scene.layers.points
    points.add([2, 3, 4])
    points.add([[2, 5, 6], [2, 7, 8], [4, 1, 1]])
    assert len(scene.edits) == 2
    points.data = np.add(points.data, (0, 1, 1))
    assert len(scene.edits) == 3
    assert scene.edits[-1][THERE] == (Click((2, 2)),)
    table = points.features.copy()
    table.loc[1, "polarity"] = "negative"
    points.features = table
    assert len(scene.edits) == 4
    assert [click.positive for click in scene.edits[-1][HERE]] == [True, False, True]
    points.selected_data = {0, 2, 3}
    points.remove_selected()
    assert len(scene.edits) == 5
    assert scene.edits[-1] == {HERE: (Click((6, 7), False),), THERE: ()}


def test_each_action_on_shapes_is_one_edit(scene):
    """Adding, deleting several, changing the sign in the features table."""
    shapes = scene.layers.shapes
    shapes.add(PATH, shape_type="path")
    shapes.add(PATH[:2], shape_type="line")
    shapes.add([PATH, PATH], shape_type="polygon")
    assert len(scene.edits) == 3
    assert [type(prompt) for prompt in scene.edits[-1][HERE]] == [Scribble, Scribble, Polygon, Polygon]
    table = shapes.features.copy()
    table.loc[0, "polarity"] = "negative"
    shapes.features = table
    assert len(scene.edits) == 4
    shapes.selected_data = {1, 2, 3}
    shapes.remove_selected()
    assert len(scene.edits) == 5
    assert scene.edits[-1] == {HERE: (Scribble(PATH[:, 1:], False),)}


PASTING = {
    "points": (points_keys.copy, points_keys.paste),
    "shapes": (shapes_keys.copy_selected_shapes, shapes_keys.paste_shape),
}


@pytest.mark.parametrize("kind", PASTING)
def test_pasting_is_one_edit(flat, kind):
    """With the sign of what was copied. Flat, because napari 0.9.2 fails to paste points of a volume."""
    layer = getattr(flat.layers, kind)
    flat.viewer.layers.selection.active = layer
    if kind == "points":
        layer.add([[3, 4], [5, 6]])
    else:
        layer.add([PATH[:, 1:], PATH[::-1, 1:]], shape_type="path")
    layer.mode = "select"
    layer.selected_data = {0, 1}
    flat.layers.toggle()
    copy, paste = PASTING[kind]
    copy(layer)
    before = len(flat.edits)
    paste(layer)
    assert len(flat.edits) == before + 1
    prompts = flat.edits[-1][flat.plane]
    assert prompts[2:] == prompts[:2]
    assert not any(prompt.positive for prompt in prompts)


def test_new_prompts_have_the_sign_chosen_whatever_is_selected(scene):
    """napari gives a new point the features of the selected one."""
    points = scene.layers.points
    points.add([2, 3, 4])
    scene.layers.positive = False
    points.add([2, 5, 6])
    scene.layers.positive = True
    points.mode = "select"
    points.selected_data = {1}
    points.add([2, 7, 8])
    scene.layers.opposite = True
    points.add([2, 9, 9])
    assert [click.positive for click in scene.edits[-1][HERE]] == [True, False, True, False]
    assert [str(symbol) for symbol in points.symbol] == ["disc", "x", "disc", "x"]


def test_toggle_turns_the_selection_only_while_selecting(scene):
    """A point just added is selected too; there the next prompt is meant."""
    points = scene.layers.points
    points.add([[2, 3, 4], [2, 5, 6]])
    scene.layers.toggle()
    assert not scene.layers.positive
    assert len(scene.edits) == 1
    points.mode = "select"
    points.selected_data = {0}
    scene.layers.toggle()
    assert len(scene.edits) == 2
    assert [click.positive for click in scene.edits[-1][HERE]] == [False, True]
    assert not scene.layers.positive


def test_signs_are_told_by_colour_and_by_form(scene):
    """Both on both layers."""
    scene.layers.show({HERE: (Click((1, 1)), Click((2, 2), False), Scribble([(1, 1), (2, 2)], False))})
    points, shapes = scene.layers.points, scene.layers.shapes
    assert [str(symbol) for symbol in points.symbol] == ["disc", "x"]
    assert not np.allclose(points.face_color[0], points.face_color[1])
    assert list(shapes.text.values) == ["−"]
    np.testing.assert_array_equal(shapes.edge_color[0], points.face_color[1])


@pytest.mark.parametrize("color", [POSITIVE_COLOR, NEGATIVE_COLOR])
def test_colours_stand_out_on_black_and_on_white(color):
    """By 3 to 1 at least, as WCAG asks of graphics."""
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    assert (luminance + 0.05) / 0.05 >= 3
    assert 1.05 / (luminance + 0.05) >= 3


def test_marks_keep_their_size_on_the_screen(scene):
    """A point is found under the mouse where it is seen, at every zoom."""
    scene.layers.show({HERE: (Click((1, 1)), Scribble([(1, 1), (20, 20)]))})
    for zoom in (0.05, 40.0):
        scene.viewer.scene.camera.zoom = zoom
        assert scene.layers.points.size == pytest.approx(14 / (zoom * 0.5))
        assert scene.layers.shapes.edge_width == [pytest.approx(2.5 / (zoom * 0.5**0.5))]


# napari's thumbnail warns of the point that is no number before we hear of it.
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("point", [(2, 30, 4), (2, 3, -1), (9, 3, 4), (2, np.nan, 4)])
def test_a_point_beside_the_image_is_dropped_with_a_sentence(scene, point):
    """And no edit; the next one counts."""
    scene.layers.points.add(point)
    assert scene.edits == []
    assert len(scene.status) == 1
    assert len(scene.layers.points.data) == 0
    scene.layers.points.add((2, 3, 4))
    assert scene.edits == [{HERE: (Click((3, 4)),)}]


def test_a_shape_over_several_planes_is_dropped_with_a_sentence(scene):
    """It has no plane."""
    scene.layers.shapes.add(PATH + np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]]), shape_type="path")
    scene.layers.shapes.refresh()
    assert scene.edits == []
    assert "one plane" in scene.status[0]
    assert scene.layers.shapes.nshapes == 0


def test_prompts_in_3d_wait_with_a_sentence(scene):
    """There is no plane to put them on; those there already are kept."""
    scene.layers.show({HERE: (Click((1, 1)),)})
    scene.viewer.dims.ndisplay = 3
    scene.layers.points.add((2, 3, 4))
    assert scene.edits == []
    assert scene.status == ["prompts are given in 2-D, on a plane of the image"]
    assert len(scene.layers.points.data) == 1


def test_gestures_add_prompts_as_one_edit(scene):
    """Cut off at the border, on top of what is there; a message says so where nothing lies on the plane."""
    scene.layers.show({HERE: (Click((1, 1)),)})
    scene.layers.add(HERE, Scribble([(5, 5), (5, -5)], False), Box((1, 1), (99, 99)))
    assert scene.edits == [
        {HERE: (Click((1, 1)), Scribble([(5, 5), (5, -0.5)], False), Box((1, 1), (29.5, 39.5)))}
    ]
    scene.layers.add(HERE, Box((-9, -9), (-5, -5)))
    assert len(scene.edits) == 1
    assert scene.status == ["nothing drawn is on the plane"]


@pytest.mark.parametrize("kind", ["points", "shapes"])
def test_a_deleted_layer_comes_back_when_it_is_needed(scene, kind):
    """With all its prompts, and without an edit; a new name changes nothing."""
    scene.layers.show(ALL, (1, 2))
    old = getattr(scene.layers, kind)
    old.name = "mine"
    scene.viewer.layers.remove(old)
    scene.layers.show(ALL, (1, 2))
    new = getattr(scene.layers, kind)
    assert new is not old
    assert new in scene.viewer.layers
    assert len(new.data) == len(old.data) == 4
    assert scene.edits == []
    scene.layers.points.add((2, 1, 1))
    assert scene.edits == [{**ALL, HERE: (*ALL[HERE], Click((1, 1)))}]


def test_detaching_takes_our_layers_and_no_others(scene):
    """What they said comes back with them; asked for while away, they are refused."""
    scene.layers.show(ALL, (1, 2))
    scene.layers.detach()
    scene.layers.detach()
    assert list(scene.viewer.layers) == [scene.image]
    with pytest.raises(ValueError, match="call attach"):
        _ = scene.layers.points
    scene.layers.attach()
    scene.layers.attach()
    assert len(scene.layers.shapes.data) == 4


def test_adopted_layers_are_read_where_they_lie_and_never_emptied(scene):
    """Another scale than the image's; accepting leaves the rows, and they say nothing until they change."""
    theirs = Points([[7, 4, 4.5], [7, 5, 5.5]], name="theirs", size=3)
    theirs.features = {"note": ["a", "b"]}
    scene.viewer.add_layer(theirs)
    scene.layers.adopt(points=theirs)
    assert scene.edits == [{HERE: (Click((2, 3)), Click((3, 5)))}]
    assert scene.layers.points is theirs
    assert len(scene.viewer.layers) == 3
    theirs.add([7, 6, 6.5])
    assert scene.edits[-1] == {HERE: (Click((2, 3)), Click((3, 5)), Click((4, 7)))}
    scene.layers.show({}, (1, 2))
    assert len(theirs.data) == 2
    theirs.add([7, 6, 6.5])
    assert scene.edits[-1] == {HERE: (Click((4, 7)),)}
    scene.layers.show({HERE: (Click((2, 3)),)}, (1, 2))
    assert len(theirs.data) == 2
    assert list(theirs.features["note"]) == ["a", "b"]
    before = len(scene.edits)
    scene.layers.adopt()
    assert theirs in scene.viewer.layers
    assert len(theirs.data) == 2
    np.testing.assert_array_equal(scene.layers.points.data, [[2, 2, 3]])
    assert len(scene.edits) == before


def test_prompts_move_into_an_adopted_layer(scene):
    """Those of our layer of the same kind are drawn in the user's."""
    scene.layers.show({HERE: (Scribble([(1, 1), (5, 5)]),)})
    theirs = Shapes(ndim=3, name="theirs", **scene.grid.place)
    scene.viewer.add_layer(theirs)
    scene.layers.adopt(shapes=theirs)
    assert theirs.nshapes == 1
    assert scene.edits == []


def test_a_layer_with_other_axes_is_not_adopted(scene):
    """Named in the message."""
    with pytest.raises(ValueError, match="need a layer of 3 axes; 'flat' has 2"):
        scene.layers.adopt(points=Points([[1, 2]], name="flat"))


@pytest.mark.parametrize(
    ("sides", "sentence"),
    [
        (SIDES, "nothing of the point is on the plane of 30 x 40 pixels"),
        ((200, 1), "The image is 200 × 1 pixels: is its last axis a channel? Choose it under Channel axis."),
    ],
)
def test_a_point_beside_the_plane_is_refused_with_a_sentence(sides, sentence):
    """Planes of a few pixels are mostly a channel axis that was not chosen yet."""
    viewer, said = ViewerModel(), []
    viewer.add_layer(Image(np.zeros(sides, np.uint8), name="image"))
    layers = PromptLayers(viewer, grid_of(viewer.layers[0]), lambda prompted: None, said.append)
    layers.attach()
    layers.points.add((10, 60))
    assert said == [sentence]
