"""Keys on layer instances: what they call, what they give back, what they would hide."""

import re

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels, Points, Shapes
from napari.utils.key_bindings import KeymapHandler, coerce_keybinding

from napari_lowlat_seg.plugin.keys import ACTIONS, DEFAULTS, KeyTable, checked_key

PARTS = {action.method.split(".")[0] for action in ACTIONS if "." in action.method}


class FakeController:
    """Writes down which of its methods, and of its parts' methods, are called."""

    def __init__(self):
        self.called = []

    def __getattr__(self, name):
        return self if name in PARTS else lambda *given: self.called.append((name, *given))


@pytest.fixture
def controller():
    return FakeController()


@pytest.fixture
def points():
    return Points(ndim=2)


@pytest.fixture
def press():
    """Press a key as the canvas does, with this layer active."""

    def press(layer, key):
        handler = KeymapHandler()
        handler.keymap_providers = [layer, ViewerModel()]
        handler.press_key(key)
        handler.release_key(key)

    return press


def test_a_key_calls_the_method_of_its_name(points, controller, press):
    """Every action that is pressed, in the order of the table."""
    KeyTable().bind(points, controller)
    pressed = [action for action in ACTIONS if not action.held]
    for action in pressed:
        press(points, action.key)
    assert controller.called == [((action.method or action.name).split(".")[-1],) for action in pressed]


def test_a_held_key_says_when_it_goes_down_and_comes_up(points, controller, press):
    """Postponing lasts as long as the finger."""
    KeyTable().bind(points, controller)
    press(points, "H")
    assert controller.called == [("hold", True), ("hold", False)]


def test_no_two_default_keys_are_the_same():
    """As delivered there is no conflict among our own."""
    assert len({checked_key(key) for key in DEFAULTS.values()}) == len(ACTIONS)
    assert all(checked_key(key) == key for key in DEFAULTS.values())


def test_unbinding_gives_back_what_was_there(points, controller):
    """A user's own binding on a layer that was adopted survives us."""
    own = points.bind_key("T", lambda layer: None)
    before = dict(points.keymap)
    table = KeyTable()
    table.bind(points, controller)
    assert points.keymap[coerce_keybinding("T")] is not own
    table.unbind(points)
    table.unbind(points)
    assert dict(points.keymap) == before


def test_what_was_bound_after_us_stays(points, controller):
    """We take back only what is still ours."""
    table = KeyTable()
    table.bind(points, controller)

    def later(layer):
        """Somebody else's."""

    points.bind_key("N", later, overwrite=True)
    table.unbind(points)
    assert dict(points.keymap) == {coerce_keybinding("N"): later}


def test_a_changed_key_is_followed_by_bound_layers(points, controller, press):
    """The old key does nothing, the new one works, listeners are notified."""
    table, described = KeyTable(), []
    table.changed.connect(lambda: described.append(table.keys["accept"]))
    table.bind(points, controller)
    table.set("accept", "ctrl-shift-y")
    press(points, "Enter")
    press(points, "Ctrl+Shift+Y")
    assert controller.called == [("accept",)]
    table.set("accept", "")
    press(points, "Ctrl+Shift+Y")
    table.reset()
    press(points, "Enter")
    assert controller.called == [("accept",)] * 2
    assert described == ["Ctrl+Shift+Y", "", "Enter"]


def test_two_layers_can_be_bound_to_two_listeners(points, controller, press):
    """Two widgets, two tables, nothing shared."""
    other, others = Points(ndim=2), FakeController()
    KeyTable().bind(points, controller)
    KeyTable({"accept": "Y"}).bind(other, others)
    press(points, "Enter")
    press(other, "Y")
    assert (controller.called, others.called) == ([("accept",)], [("accept",)])


def test_two_actions_on_one_key_are_named():
    """Both rows say so; the higher one has the key."""
    said = KeyTable({"accept": "N"}).conflicts()
    assert "same key as “New object”" in said["accept"]
    assert "same key as “Accept the object”" in said["new_object"]


def test_of_two_actions_on_one_key_the_higher_one_works(points, controller, press):
    """As the note says."""
    KeyTable({"accept": "N"}).bind(points, controller)
    press(points, "N")
    assert controller.called == [("accept",)]


def test_a_key_of_naparis_that_would_be_hidden_is_named(make_napari_viewer_proxy):
    """In napari's own words; its shortcuts are there once a viewer is."""
    make_napari_viewer_proxy()
    said = KeyTable({"clear": "A", "reopen": "V"}).conflicts()
    assert "hides napari's “Activate add path tool” on Shapes layers" in said["toggle_polarity"]
    assert (
        "hides napari's “Select only the points in the current view slice” on Points layers" in said["clear"]
    )
    assert said["reopen"].endswith("on the viewer")
    assert "comes after napari's “Finish any drawing” on Shapes layers" in said["accept"]
    assert "new_object" not in said
    assert re.search("hides napari's “[^”]*fill[^”]*” on Labels layers", said["place_positive"])
    assert not any("“”" in note for note in said.values())


def test_while_a_shape_is_drawn_enter_and_escape_finish_it(make_napari_viewer_proxy, controller, press):
    """napari's own meaning comes first, ours is back when the shape is done."""
    make_napari_viewer_proxy()
    shapes = Shapes(ndim=2)
    table = KeyTable()
    table.bind(shapes, controller)
    shapes.mode = "add_path"
    shapes.add(np.array([[0, 0], [9, 9]]), shape_type="path", gui=True)
    press(shapes, "Enter")
    assert controller.called == []
    press(shapes, "Enter")
    shapes.add(np.array([[0, 0], [9, 9]]), shape_type="path")
    press(shapes, "Escape")
    assert controller.called == [("accept",), ("cancel",)]
    table.unbind(shapes)


def test_while_a_polygon_of_labels_is_drawn_enter_completes_it(make_napari_viewer_proxy, controller, press):
    """napari's polygon tool keeps its keys; with the brush they are ours."""
    make_napari_viewer_proxy()
    labels = Labels(np.zeros((9, 9), int))
    KeyTable().bind(labels, controller)
    labels.mode = "polygon"
    press(labels, "Enter")
    labels.mode = "paint"
    press(labels, "Enter")
    assert controller.called == [("accept",)]


def test_keys_are_spelled_as_napari_does():
    """However they were typed, and by Qt's names too."""
    typed = ["n", "shift-g", "Ctrl+Shift+z", "Return", "Ctrl+Esc", "PgUp", "[", "-", ""]
    spelled = ["N", "Shift+G", "Ctrl+Shift+Z", "Enter", "Ctrl+Escape", "PageUp", "[", "-", ""]
    assert [checked_key(key) for key in typed] == spelled


@pytest.mark.parametrize("key", ["Foo", "Ctrl+", "N N", "Ctrl+K Ctrl+N"])
def test_what_is_no_key_is_refused(key):
    """The sentence shows what a key looks like."""
    with pytest.raises(ValueError, match=r"expected a key such as 'N', 'Shift\+G' or 'Ctrl\+Z', got '"):
        KeyTable().set("accept", key)


def test_an_unknown_action_is_refused():
    """The sentence lists those there are."""
    with pytest.raises(ValueError, match="expected the name of an action, got 'dance'; choose one of accept"):
        KeyTable({"dance": "D"})
