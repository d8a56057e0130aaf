"""An object propagated through planes in a real window, by a service that knows the truth."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from napari.utils.theme import get_theme
from qtpy.QtCore import QEvent, QPoint
from qtpy.QtGui import QColor, QHelpEvent
from qtpy.QtWidgets import QApplication, QToolTip

from hand import Hand
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.controller.situation import NO_PLANE
from napari_lowlat_seg.plugin.widget import LowlatWidget
from napari_lowlat_seg.plugin.worker import Worker
from napari_lowlat_seg.propagation.propagate import run_propagation
from napari_lowlat_seg.propagation.sweep import RefusedPlane

SHAPE = (12, 40, 50)


def ball(centre=(6, 20, 25), radius=5):
    """A ball among voxels."""
    grid = np.indices(SHAPE)
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre)) < radius**2


class Truth:
    """A predictor that returns the objects which the first click touches."""

    def __init__(self, objects):
        self.objects = objects

    def predict(self, embedding, prompts, previous):
        row, col = (round(x) for x in prompts[0].at)
        found = [one[embedding.key()] for one in self.objects if one[embedding.key()][row, col]]
        mask = np.any(found, axis=0) if found else np.zeros_like(self.objects[0][embedding.key()])
        return SoftMask.of(np.where(mask, np.float32(0.9), np.float32(0)))


class TruthService:
    """Serves what `Truth` knows; while `open` is False a run waits."""

    def __init__(self, *objects):
        self.engine, self.open, self.broken, self.looks = Truth(objects), True, "", None
        self.refused = {}  # by the position of the plane at which a sweep ended

    def describe(self, progress=None):
        return {"model": "truth", "device": "cpu", "precision": "float32", "licence": "none"}

    def embed(self, source, cancelled):
        return 0.0

    def predict(self, request, source, cancelled):
        best = self.engine.predict(request.plane, request.prompts, None)
        if self.looks is not None and request.ticket:  # a preview gets the first mask only, as of the service
            yield best.with_probability(best.probability * (np.arange(SHAPE[2]) < 25)), False
            self.looks.wait(300)
        yield best, True

    def propagate(self, request, sources, cancelled):
        if self.broken:
            raise ValueError(self.broken)
        seen = SimpleNamespace(
            window=sources[0].window,
            plane=lambda plane: sources[request.planes.index(plane)].read(),
            plane_spacing=lambda plane: sources[0].spacing,
        )
        for number, found in run_propagation(self.engine, seen, request, lambda plane: plane, cancelled):
            refused = self.refused.get(found.plane.position) if found.note else None
            yield number, found if refused is None else replace(found, refused=(refused,))
            while not self.open and not cancelled():
                time.sleep(0.005)
            if cancelled():
                return

    def restart(self):
        """Never stuck."""

    close = restart


@pytest.fixture
def window(shared_viewer, qtbot):
    """The widget beside a volume of two balls, on the middle plane of the first."""
    viewer = shared_viewer
    first, second = ball(), ball((5, 9, 9), 4)
    image = viewer.add_image(np.where(first | second, 200, 60).astype(np.uint8), name="balls")
    truth = TruthService(first, second)
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


def propagated(it, key="Shift+J"):
    """Press the key and wait until it is propagated."""
    it.hand.key(key)
    it.qtbot.waitUntil(lambda: not it.propagation.running and not it.worker.busy)


def test_one_key_propagates_the_object_and_one_undo_takes_it_back(window):
    """Accepting then writes all planes into the labels, in one step as well."""
    clicked(window)
    propagated(window)
    assert np.array_equal(masks(window), window.objects[0])
    assert window.widget.sentence.startswith("propagated to 8 planes (planes 2-10); plane 2: ends here: ")
    shown = np.asarray(window.controller.preview.layer.data).reshape(SHAPE[1:]) == 1
    assert np.array_equal(shown, window.objects[0][6])
    window.hand.key("Ctrl+Z")
    assert masks(window).any(axis=(1, 2)).sum() == 1
    window.hand.key("Ctrl+Shift+Z")
    window.hand.key("Enter")
    assert np.array_equal(window.controller.labels.layer.data == 1, window.objects[0])


def colour(strip, position, height):
    """Of the strip so many pixels above its bottom, in the middle of a plane."""
    picture = strip.grab().toImage()
    ratio = picture.width() / strip.width()
    at = (position + 0.5) * strip.width() / SHAPE[0], strip.height() - height
    return picture.pixelColor(round(at[0] * ratio), round(at[1] * ratio)).name()


def test_the_strip_shows_where_the_object_is_and_how_sure_it_is(window):
    """Blue where the click is; read out for those who do not see it; a click on it scrolls."""
    clicked(window)
    propagated(window)
    strip = window.widget.form.volume.strip
    confidence = dict(window.propagation.state.marks)
    assert sorted(confidence) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [z for z, sure in confidence.items() if sure is None] == [6]
    window.qtbot.waitUntil(lambda: "propagated: 8" in strip.accessibleDescription())
    assert colour(strip, 6, 12) == "#2b8cff"
    assert colour(strip, 5, 2) != colour(strip, 0, 2)
    at = window.widget.form.volume.strip.mapToGlobal(strip.rect().center())
    assert at is not None
    strip.clicked.emit(strip.position_at(strip.width() * 9.5 / SHAPE[0]))
    assert window.controller.plane.position == 9


def test_a_plane_behind_an_end_is_marked_and_offered_as_the_next_to_correct(window):
    """With the reason of the note; until there are prompts on it."""
    reason = "does not show it: the probability is 38%"
    window.truth.refused = {10: RefusedPlane(Plane((11, None, None)), 0.38, 900, reason)}
    clicked(window)
    strip = window.widget.form.volume.strip
    said = strip.toolTip()
    propagated(window)
    window.qtbot.waitUntil(lambda: f"; plane 11 {reason}" in strip.accessibleDescription())
    assert colour(strip, 11, strip.height() - 3) == "#d7301f" != colour(strip, 11, 12)

    def tip(position):
        """What is shown where the mouse rests."""
        at = QPoint(round((position + 0.5) * strip.width() / SHAPE[0]), 5)
        QApplication.sendEvent(strip, QHelpEvent(QEvent.Type.ToolTip, at, strip.mapToGlobal(at)))
        QToolTip.hideText()
        return strip.toolTip()

    assert [tip(position) for position in (11, 10)] == [f"Plane 11 {reason}", said]
    for go in (lambda: window.hand.key("Shift+W"), lambda: strip.clicked.emit(11)):
        window.propagation.look_at(3)
        window.propagation.status.emit("")
        go()
        assert window.controller.plane.position == 11
        window.qtbot.waitUntil(lambda: window.widget.sentence == f"plane 11: no mask; it {reason}")
    clicked(window)
    window.qtbot.waitUntil(lambda: "plane 11" not in strip.accessibleDescription())
    assert tip(11) == said
    window.hand.key("Shift+W")
    assert window.controller.plane.position != 11


def test_the_strip_follows_the_theme(window):
    """Near the background where nothing is written, further off inside the range; the frame is text."""
    strip = window.widget.form.volume.strip
    window.propagation.range = (2, 11)

    def towards_text(theme, position, height):
        """0 for the theme's background, 1 for its text."""
        colours = get_theme(theme)
        ground, text = (np.array(one.as_rgb_tuple()) for one in (colours.background, colours.text))
        seen = np.array(QColor(colour(strip, position, height)).getRgb()[:3])
        return float(np.mean((seen - ground) / (text - ground)))

    for theme in ("light", "dark"):
        window.viewer.theme = theme
        window.qtbot.waitUntil(
            lambda theme=theme: towards_text(theme, 9, 14) == pytest.approx(0.12, abs=0.01)
        )
        assert towards_text(theme, 0, 14) == pytest.approx(0.04, abs=0.01)
        assert towards_text(theme, 6, 1) == 1


def test_a_bar_ends_in_a_line_of_text_colour(window):
    """Amber and a light theme are hardly apart in lightness: the line shows how high a bar is."""
    window.viewer.theme = "light"
    strip = window.widget.form.volume.strip
    strip.show_marks(SHAPE[0], (0, 11), [(9, 1.0)])
    line, bar = colour(strip, 9, strip.height()), colour(strip, 9, 12)
    assert (line, bar) == (QColor(*get_theme("light").text.as_rgb_tuple()).name(), "#ffc20a")


def test_range_and_direction_bound_it(window):
    """From plane 4 on, forward only: nothing before the click, nothing behind the range."""
    clicked(window)
    form = window.widget.form.volume
    form.planes.setValue((4, 8))
    form.direction.changed.emit("forward")
    propagated(window)
    assert masks(window).any(axis=(1, 2)).nonzero()[0].tolist() == [6, 7, 8]
    form.direction.changed.emit("backward")
    propagated(window)
    assert masks(window).any(axis=(1, 2)).nonzero()[0].tolist() == [4, 5, 6, 7, 8]


def test_a_click_ends_it_and_the_next_run_goes_on(window):
    """What has come stays, as a step of its own before the click."""
    clicked(window)
    window.truth.open = False
    window.hand.key("Shift+J")
    window.qtbot.waitUntil(lambda: len(window.propagation.state.marks) == 2)
    window.hand.click((22, 26))
    window.qtbot.waitUntil(lambda: not window.propagation.running and not window.controller.session.pending)
    assert [step.title for step in window.controller.session.undo_stack.done] == [
        "click",
        "propagate",
        "click",
    ]
    window.truth.open = True
    propagated(window)
    assert np.array_equal(masks(window), window.objects[0])


def test_escape_stops_it_and_keeps_what_is_there(window):
    """The state line says so, and undo takes it back."""
    clicked(window)
    window.truth.open = False
    window.hand.key("Shift+J")
    window.qtbot.waitUntil(lambda: len(window.propagation.state.marks) == 2)
    window.hand.key("Escape")
    assert not window.propagation.running
    window.qtbot.waitUntil(lambda: not window.worker.busy)
    assert len(window.propagation.state.marks) == 2
    window.hand.key("Ctrl+Z")
    assert len(window.propagation.state.marks) == 1


def test_where_no_plane_is_left_to_propagate_to_that_is_said(window):
    """As after an edit of all planes: the object does not end there."""
    clicked(window)
    session = window.controller.session
    known = session.patch(window.controller.plane)
    session.reshape(dict.fromkeys(window.propagation.stack, known))
    window.hand.key("Shift+J")
    window.qtbot.waitUntil(lambda: "nothing to propagate to: every plane there" in window.widget.sentence)


def test_a_run_that_fails_ends_with_a_message(window):
    """In the engine's words."""
    clicked(window)
    window.truth.broken = "plane 7 cannot be read: the file is gone"
    with window.qtbot.waitSignal(window.worker.failed):
        window.hand.key("Shift+J")
    window.qtbot.waitUntil(lambda: not window.propagation.running)
    assert window.widget.sentence == "plane 7 cannot be read: the file is gone"


def test_propagation_needs_a_click(window):
    """A warning says what to do; nothing changes."""
    window.hand.key("Shift+J")
    assert "click on it there first" in notification_manager.records[-1].message
    assert not window.controller.session.can_undo


def test_shapes_are_interpolated_between_two_planes(window):
    """With a key, and the next anchor is found with another."""
    clicked(window)
    window.controller.grid.look_at(window.viewer.dims, Plane((9, None, None)))
    window.hand.click((20, 25))
    window.qtbot.waitUntil(lambda: len(window.propagation.state.marks) == 2)
    propagated(window, "Shift+K")
    assert [z for z, sure in window.propagation.state.marks if sure is not None] == [7, 8]
    assert window.controller.session.undo_stack.done[-1].title == "interpolate"
    window.hand.key("Shift+N")
    assert window.controller.plane.position == 6


def test_the_least_certain_plane_is_found_with_a_key(window):
    """It says how sure the model is there."""
    clicked(window)
    propagated(window)
    window.hand.key("Shift+W")
    assert window.controller.plane != Plane((6, None, None))
    assert "% sure" in window.widget.sentence


def test_every_point_of_a_layer_becomes_an_object(window):
    """Also of a layer with a place of its own; one undo takes all of them back."""
    clicked(window, (2, 40))  # an object in hand of nothing, which is not in the way
    window.controller.clear()
    window.viewer.add_points([[6, 20, 25], [5, 9, 9], [30, 1, 1]], name="seeds")
    window.qtbot.waitUntil(lambda: getattr(window.propagation.points, "name", "") == "seeds")
    window.controller.prompts.activate()
    propagated(window, "Shift+U")
    expected = np.where(window.objects[0], 1, np.where(window.objects[1], 2, 0))
    assert np.array_equal(window.controller.labels.layer.data, expected)
    assert window.controller.session.label == 3
    window.controller.undo()
    assert not np.asarray(window.controller.labels.layer.data).any()


def test_seeds_with_other_axes_are_refused(window):
    """One sentence says which layer."""
    window.propagation.points = window.viewer.add_points([[3, 3]], name="flat")
    window.propagation.all_seeds()
    assert "need points with 3 coordinates, got 2 in 'flat'" in notification_manager.records[-1].message
    window.propagation.points = None
    window.propagation.all_seeds()
    assert window.widget.sentence == "choose a Points layer with one point in each object first"


def test_propagation_waits_for_the_mask(window):
    """Pressed right after the click."""
    window.controller.session.add(Plane((6, None, None)), Click((20, 25)))
    window.propagation.propagate()
    window.qtbot.waitUntil(
        lambda: window.controller.session.can_undo and len(window.propagation.state.marks) == 9
    )
    window.qtbot.waitUntil(lambda: not window.propagation.running)
    assert np.array_equal(masks(window), window.objects[0])


def test_the_refined_mask_is_propagated_and_not_the_first_one(window):
    """Pressed between the two: the second run finds nothing to do."""
    window.truth.looks = threading.Event()
    window.hand.click((20, 25))
    window.qtbot.waitUntil(
        lambda: window.controller.session.state(Plane((6, None, None))).soft_mask is not None
    )
    window.hand.key("Shift+J")
    assert not window.propagation.running
    window.truth.looks.set()
    window.qtbot.waitUntil(
        lambda: len(window.propagation.state.marks) == 9 and not window.propagation.running
    )
    assert np.array_equal(masks(window), window.objects[0])
    window.hand.key("Shift+J")
    assert "nothing has changed" in notification_manager.records[-1].message


def test_a_picture_and_a_3d_view_have_no_planes_to_go_through(window):
    """The form is off, and the keys say why; with a picture there is no form."""
    window.viewer.dims.ndisplay = 3
    window.propagation.propagate()
    assert window.widget.sentence == NO_PLANE
    window.propagation.next_anchor()
    assert window.widget.sentence == NO_PLANE
    window.viewer.dims.ndisplay = 2
    window.qtbot.waitUntil(lambda: window.widget.form.volume.isEnabled())
    window.widget.turn_to(window.viewer.add_image(np.zeros((8, 9)), name="picture"))
    assert window.widget.form.volume.isHidden()
