"""An object carried through planes in a real window, by a responder that knows the truth."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from napari.utils.theme import get_theme
from qtpy.QtGui import QColor

from hand import Hand
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.widget import LowlatWidget
from napari_lowlat_seg.plugin.worker import Worker
from napari_lowlat_seg.propagation.propagate import run_propagation

SHAPE = (12, 40, 50)


def ball(centre=(6, 20, 25), radius=5):
    """A ball among voxels."""
    grid = np.indices(SHAPE)
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre)) < radius**2


class Truth:
    """An engine that answers with the objects which the first click touches."""

    def __init__(self, objects):
        self.objects = objects

    def predict(self, embedding, prompts, previous):
        row, col = (round(x) for x in prompts[0].at)
        found = [one[embedding.key()] for one in self.objects if one[embedding.key()][row, col]]
        mask = np.any(found, axis=0) if found else np.zeros_like(self.objects[0][embedding.key()])
        return SoftMask.of(np.where(mask, np.float32(0.9), np.float32(0)))


class Knowing:
    """Serves what `Truth` knows; behind a shut door a run waits."""

    def __init__(self, *objects):
        self.engine, self.open, self.broken, self.looks = Truth(objects), True, "", None

    def describe(self, progress=None):
        return {"model": "truth", "device": "cpu", "precision": "float32", "licence": "none"}

    def embed(self, source, newer):
        return 0.0

    def predict(self, request, source, newer):
        best = self.engine.predict(request.plane, request.prompts, None)
        if self.looks is not None:
            yield best.with_probability(best.probability * (np.arange(SHAPE[2]) < 25)), False
            self.looks.wait(300)
        yield best, True

    def propagate(self, walk, sources, newer):
        if self.broken:
            raise ValueError(self.broken)
        seen = SimpleNamespace(
            window=sources[0].window,
            plane=lambda plane: sources[walk.planes.index(plane)].read(),
            plane_spacing=lambda plane: sources[0].spacing,
        )
        for step in run_propagation(self.engine, seen, walk, lambda plane: plane, newer):
            yield step
            while not self.open and not newer():
                pass
            if newer():
                return

    def restart(self):
        """Never stuck."""

    close = restart


@pytest.fixture
def desk(make_napari_viewer_proxy, qtbot):
    """The widget beside a volume of two balls, on the middle plane of the first."""
    viewer = make_napari_viewer_proxy(show=True)
    first, second = ball(), ball((5, 9, 9), 4)
    image = viewer.add_image(np.where(first | second, 200, 60).astype(np.uint8), name="balls")
    truth = Knowing(first, second)
    worker = Worker()
    worker.load(lambda: truth)
    widget = LowlatWidget(viewer, worker)
    widget.form.model.wanted.disconnect()  # the truth is loaded already
    viewer.window.add_dock_widget(widget, name="Segment")
    qtbot.waitUntil(lambda: widget.controller is not None)
    controller = widget.controller
    controller.grid.look_at(viewer.dims, Plane((6, None, None)))
    it = SimpleNamespace(
        viewer=viewer, image=image, widget=widget, worker=worker, controller=controller, truth=truth
    )
    it.objects, it.propagation, it.qtbot = (first, second), controller.propagation, qtbot
    it.hand = Hand(viewer, controller.grid)
    qtbot.waitUntil(lambda: controller.session.volume.window is not None and not worker.busy)
    return it


def masks(it):
    """What the session has of the object in hand, plane by plane."""
    planes = [it.controller.session.mask(Plane((z, None, None))) for z in range(SHAPE[0])]
    return np.stack([np.zeros(SHAPE[1:], bool) if mask is None else mask for mask in planes])


def clicked(it, point=(20, 25)):
    """Click and wait for the mask."""
    it.hand.click(point)
    it.qtbot.waitUntil(lambda: not it.controller.session.pending and it.controller.session.can_undo)


def carried(it, key="Shift+J"):
    """Press the key and wait until it has been carried through."""
    it.hand.key(key)
    it.qtbot.waitUntil(lambda: not it.propagation.running and not it.worker.busy)


def test_one_key_carries_the_object_and_one_undo_takes_it_back(desk):
    """Accepting then writes all planes into the labels, in one step as well."""
    clicked(desk)
    carried(desk)
    assert np.array_equal(masks(desk), desk.objects[0])
    assert desk.widget.sentence == "propagated to 8 planes (planes 2-10)"
    shown = np.asarray(desk.controller.preview.layer.data).reshape(SHAPE[1:]) == 1
    assert np.array_equal(shown, desk.objects[0][6])
    desk.hand.key("Ctrl+Z")
    assert masks(desk).any(axis=(1, 2)).sum() == 1
    desk.hand.key("Ctrl+Shift+Z")
    desk.hand.key("Enter")
    assert np.array_equal(desk.controller.labels.layer.data == 1, desk.objects[0])


def colour(strip, position, height):
    """Of the strip so many pixels above its bottom, in the middle of a plane."""
    picture = strip.grab().toImage()
    ratio = picture.width() / strip.width()
    at = (position + 0.5) * strip.width() / SHAPE[0], strip.height() - height
    return picture.pixelColor(round(at[0] * ratio), round(at[1] * ratio)).name()


def test_the_strip_shows_where_the_object_is_and_how_sure_it_is(desk):
    """Blue where the click is; read out for those who do not see it; a click on it scrolls."""
    clicked(desk)
    carried(desk)
    strip = desk.widget.form.volume.strip
    confidence = dict(desk.propagation.state.marks)
    assert sorted(confidence) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [z for z, sure in confidence.items() if sure is None] == [6]
    desk.qtbot.waitUntil(lambda: "8 carried" in strip.accessibleDescription())
    assert colour(strip, 6, 12) == "#2b8cff"
    assert colour(strip, 5, 2) != colour(strip, 0, 2)
    at = desk.widget.form.volume.strip.mapToGlobal(strip.rect().center())
    assert at is not None
    strip.clicked.emit(strip.position_at(strip.width() * 9.5 / SHAPE[0]))
    assert desk.controller.plane.position == 9


def test_the_strip_follows_the_theme(desk):
    """Near the background where nothing is written, further off inside the range; the frame is text."""
    strip = desk.widget.form.volume.strip
    desk.propagation.range = (2, 11)

    def towards_text(theme, position, height):
        """0 for the theme's background, 1 for its text."""
        colours = get_theme(theme)
        ground, text = (np.array(one.as_rgb_tuple()) for one in (colours.background, colours.text))
        seen = np.array(QColor(colour(strip, position, height)).getRgb()[:3])
        return float(np.mean((seen - ground) / (text - ground)))

    for theme in ("light", "dark"):
        desk.viewer.theme = theme
        desk.qtbot.waitUntil(lambda theme=theme: towards_text(theme, 9, 14) == pytest.approx(0.12, abs=0.01))
        assert towards_text(theme, 0, 14) == pytest.approx(0.04, abs=0.01)
        assert towards_text(theme, 6, 1) == 1


def test_a_bar_ends_in_a_line_of_text_colour(desk):
    """Amber and a light theme are hardly apart in lightness: the line tells how high a bar is."""
    desk.viewer.theme = "light"
    strip = desk.widget.form.volume.strip
    strip.show_marks(SHAPE[0], (0, 11), [(9, 1.0)])
    line, bar = colour(strip, 9, strip.height()), colour(strip, 9, 12)
    assert (line, bar) == (QColor(*get_theme("light").text.as_rgb_tuple()).name(), "#ffc20a")


def test_range_and_direction_bound_it(desk):
    """From plane 4 on, forward only: nothing before the click, nothing behind the range."""
    clicked(desk)
    form = desk.widget.form.volume
    form._first.setValue(4)
    form._last.setValue(8)
    form.direction.chosen.emit("forward")
    carried(desk)
    assert masks(desk).any(axis=(1, 2)).nonzero()[0].tolist() == [6, 7, 8]
    form.direction.chosen.emit("backward")
    carried(desk)
    assert masks(desk).any(axis=(1, 2)).nonzero()[0].tolist() == [4, 5, 6, 7, 8]


def test_a_click_ends_it_and_the_next_run_goes_on(desk):
    """What has come stays, as a step of its own before the click."""
    clicked(desk)
    desk.truth.open = False
    desk.hand.key("Shift+J")
    desk.qtbot.waitUntil(lambda: len(desk.propagation.state.marks) == 2)
    desk.hand.click((22, 26))
    desk.qtbot.waitUntil(lambda: not desk.propagation.running and not desk.controller.session.pending)
    assert [step.title for step in desk.controller.session.undo_stack.done] == ["click", "propagate", "click"]
    desk.truth.open = True
    carried(desk)
    assert np.array_equal(masks(desk), desk.objects[0])


def test_escape_stops_it_and_keeps_what_is_there(desk):
    """The state line says so, and undo takes it back."""
    clicked(desk)
    desk.truth.open = False
    desk.hand.key("Shift+J")
    desk.qtbot.waitUntil(lambda: len(desk.propagation.state.marks) == 2)
    desk.hand.key("Escape")
    assert not desk.propagation.running
    desk.qtbot.waitUntil(lambda: not desk.worker.busy)
    assert len(desk.propagation.state.marks) == 2
    desk.hand.key("Ctrl+Z")
    assert len(desk.propagation.state.marks) == 1


def test_a_run_that_fails_is_told_and_ends(desk):
    """In the engine's words."""
    clicked(desk)
    desk.truth.broken = "plane 7 cannot be read: the file is gone"
    with desk.qtbot.waitSignal(desk.worker.failed):
        desk.hand.key("Shift+J")
    desk.qtbot.waitUntil(lambda: not desk.propagation.running)
    assert desk.widget.sentence == "plane 7 cannot be read: the file is gone"


def test_without_a_click_there_is_nothing_to_carry(desk):
    """A warning says what to do; nothing changes."""
    desk.hand.key("Shift+J")
    assert "click on it there first" in notification_manager.records[-1].message
    assert not desk.controller.session.can_undo


def test_shapes_are_mixed_between_two_planes(desk):
    """With a key, and the next anchor is found with another."""
    clicked(desk)
    desk.controller.grid.look_at(desk.viewer.dims, Plane((9, None, None)))
    desk.hand.click((20, 25))
    desk.qtbot.waitUntil(lambda: len(desk.propagation.state.marks) == 2)
    carried(desk, "Shift+K")
    assert [z for z, sure in desk.propagation.state.marks if sure is not None] == [7, 8]
    assert desk.controller.session.undo_stack.done[-1].title == "interpolate"
    desk.hand.key("Shift+N")
    assert desk.controller.plane.position == 6


def test_the_worst_plane_is_found_with_a_key(desk):
    """It says how sure the model is there."""
    clicked(desk)
    carried(desk)
    desk.hand.key("Shift+W")
    assert desk.controller.plane != Plane((6, None, None))
    assert "% sure" in desk.widget.sentence


def test_every_point_of_a_layer_becomes_an_object(desk):
    """Also of a layer with a place of its own; one undo takes all of them back."""
    clicked(desk, (2, 40))  # an object in hand of nothing, which is not in the way
    desk.controller.clear()
    desk.viewer.add_points([[6, 20, 25], [5, 9, 9], [30, 1, 1]], name="seeds")
    desk.qtbot.waitUntil(lambda: getattr(desk.propagation.points, "name", "") == "seeds")
    desk.controller.prompts.activate()
    carried(desk, "Shift+U")
    expected = np.where(desk.objects[0], 1, np.where(desk.objects[1], 2, 0))
    assert np.array_equal(desk.controller.labels.layer.data, expected)
    assert desk.controller.session.label == 3
    desk.controller.undo()
    assert not np.asarray(desk.controller.labels.layer.data).any()


def test_seeds_with_other_axes_are_refused(desk):
    """One sentence says which layer."""
    desk.propagation.points = desk.viewer.add_points([[3, 3]], name="flat")
    desk.propagation.all_seeds()
    assert "need points with 3 coordinates, got 2 in 'flat'" in notification_manager.records[-1].message
    desk.propagation.points = None
    desk.propagation.all_seeds()
    assert desk.widget.sentence == "choose a Points layer with one point in each object first"


def test_accept_and_carry_wait_for_the_mask(desk):
    """Pressed right after the click."""
    desk.controller.session.add(Plane((6, None, None)), Click((20, 25)))
    desk.propagation.propagate()
    desk.qtbot.waitUntil(lambda: desk.controller.session.can_undo and len(desk.propagation.state.marks) == 9)
    desk.qtbot.waitUntil(lambda: not desk.propagation.running)
    assert np.array_equal(masks(desk), desk.objects[0])


def test_what_is_carried_is_the_last_answer_and_not_the_quick_one(desk):
    """Pressed between the two: the second run finds nothing to do."""
    desk.truth.looks = threading.Event()
    desk.hand.click((20, 25))
    desk.qtbot.waitUntil(lambda: desk.controller.session.state(Plane((6, None, None))).soft_mask is not None)
    desk.hand.key("Shift+J")
    assert not desk.propagation.running
    desk.truth.looks.set()
    desk.qtbot.waitUntil(lambda: len(desk.propagation.state.marks) == 9 and not desk.propagation.running)
    assert np.array_equal(masks(desk), desk.objects[0])
    desk.hand.key("Shift+J")
    assert "nothing has changed" in notification_manager.records[-1].message


def test_a_picture_and_a_3d_view_have_no_planes_to_go_through(desk):
    """The form is off, and the keys say why; with a picture there is no form."""
    desk.viewer.dims.ndisplay = 3
    desk.propagation.propagate()
    assert desk.widget.sentence.startswith("there is one plane only")
    desk.propagation.next_anchor()
    assert desk.widget.sentence.startswith("there is one plane only")
    desk.viewer.dims.ndisplay = 2
    desk.qtbot.waitUntil(lambda: desk.widget.form.volume.isEnabled())
    desk.widget.turn_to(desk.viewer.add_image(np.zeros((8, 9)), name="picture"))
    assert desk.widget.form.volume.isHidden()
