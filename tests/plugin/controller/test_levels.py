"""Masks beside the one that is kept: levels, and what a stroke under way would give."""

from types import SimpleNamespace

import numpy as np
import pytest
from psygnal import Signal

from napari_lowlat_seg.annotation.action_queue import ActionQueue
from napari_lowlat_seg.annotation.plane_state import finished_mask
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import BoundingBox, Tiling
from napari_lowlat_seg.core.labels import ArrayLabels
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.plugin.canvas.levels import Levels
from napari_lowlat_seg.plugin.controller.predictions import Predictions

PLANE = Plane((2, None, None))


class Asked:
    """A worker that writes down what it is asked; a test emits the answers."""

    predicted, failed, refused = Signal(object, object, bool, float), Signal(str), Signal(object, str)
    loaded = Signal(object)

    def __init__(self):
        self.facts, self.busy, self.asked = {}, False, []

    def predict(self, request, source):
        self.asked.append((request, source))


def test_levels_of_a_huge_plane_lie_where_the_click_is():
    """In the tile that was predicted, wherever one has looked since."""
    worker, rng = Asked(), np.random.default_rng(0)
    pixels = rng.integers(0, 255, (5, 900, 1000)).astype(np.uint8)
    session = Session(Volume(pixels, window=(0, 255)))
    predictions = Predictions(session, worker, "stack", Tiling(large=300, side=200, halo=32))
    predictions.attach()
    levels = Levels(session, predictions, SimpleNamespace(plane=PLANE), ActionQueue())
    session.add(PLANE, Click((620, 730)))
    predictions.ask()
    request, source = worker.asked.pop()
    found = np.zeros((200, 200), np.float32)
    found[50:90, 60:100] = 0.9
    found[40:50, 60:100] = 0.45
    assert levels.at_hand
    assert levels.place(PLANE) is None
    worker.predicted.emit(request, SoftMask.of(found), True, 0.1)
    predictions.sources._tiles[PLANE] = BoundingBox(0, 0, 200, 200)  # the user has looked there
    assert levels.place(PLANE) == (1, 2, "first mask")
    levels.next()
    assert not worker.asked  # a level needs no model
    assert levels.place(PLANE) == (2, 2, "larger mask")
    tile = source.key[-1]
    shown = session.mask(PLANE)
    assert np.array_equal(shown[tile.slices], found > 0.4)
    assert np.count_nonzero(shown) == 2000
    [other] = levels.others(PLANE)
    assert np.count_nonzero(other.pixels) == 1600


@pytest.mark.parametrize(
    ("way", "shown"),
    [
        ("next", [1, 2, -2, -1, 0]),
        ("previous", [-1, -2, 2, 1, 0]),
        ("larger", [1, 2, 2, 2]),
        ("smaller", [-1, -2, -2, -2]),
    ],
)
def test_levels_are_gone_through_in_order_of_size(way, shown):
    """Round, or to the ends."""
    session = Session(Volume(np.zeros((3, 8, 9), np.uint8), window=(0, 255)))
    predictions = Predictions(session, Asked(), "stack")
    levels = Levels(session, predictions, SimpleNamespace(plane=PLANE), ActionQueue())
    session.add(PLANE, Click((4, 4)))
    ramp = np.linspace(0.05, 0.95, 72, dtype=np.float32).reshape(8, 9)
    session.apply(session.request(PLANE), SoftMask.of(ramp))
    assert levels.others(PLANE) == []  # nobody has begun to choose
    for level in shown:
        getattr(levels, way)()
        assert session.state(PLANE).level == level
        state = session.state(PLANE)
        beside = [state.with_level(one) for one in (level - 1, level + 1) if abs(one) <= 2]
        outlined = [patch.pixels.tolist() for patch in levels.others(PLANE)]
        assert outlined == [session.finished(PLANE, one).pixels.tolist() for one in beside]
        finished = finished_mask.cache_info().misses
        levels.others(PLANE)
        assert finished_mask.cache_info().misses == finished  # every redraw asks for them


def test_a_mask_that_is_sure_has_no_other_level():
    """It is said, and nothing changes; so it is after a second prompt."""
    session, said = Session(Volume(np.zeros((3, 8, 9), np.uint8), window=(0, 255))), []
    predictions = Predictions(session, Asked(), "stack")
    levels = Levels(session, predictions, SimpleNamespace(plane=PLANE), ActionQueue())
    levels.status.connect(said.append)
    session.add(PLANE, Click((4, 4)))
    session.apply(session.request(PLANE), SoftMask.of(np.full((8, 9), 0.95, np.float32)))
    assert not levels.at_hand
    levels.next()
    assert said.pop() == "Larger and smaller masks of this click are nearly the same, or empty."
    session.add(PLANE, Click((1, 1), positive=False))
    session.apply(session.request(PLANE), SoftMask.of(np.full((8, 9), 0.5, np.float32)))
    levels.larger()
    assert said.pop() == "Larger and smaller masks are offered after the first click on an object."
    assert session.state(PLANE).level == 0


def test_a_stroke_under_way_shows_what_its_end_will_write():
    """Within the limits that hold, as the mask after it."""
    worker, seen = Asked(), []
    session = Session(Volume(np.zeros((3, 8, 9), np.uint8), window=(0, 255)))
    labels = np.zeros((3, 8, 9), np.uint16)
    labels[2, :, :4] = 7
    session.use_labels(ArrayLabels(labels), 7)
    predictions = Predictions(session, worker, "stack")
    predictions.attach()
    predictions.previewed.connect(lambda reason, plane, mask: seen.append(mask.on((8, 9))))
    predictions.ask_preview(PLANE, [Click((4, 6))], "stroke")
    request, _ = worker.asked.pop()
    worker.predicted.emit(request, SoftMask.of(np.full((8, 9), 0.9, np.float32)), True, 0.1)
    assert np.array_equal(seen[0], labels[2] == 0)
