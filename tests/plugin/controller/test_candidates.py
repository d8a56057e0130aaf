"""Masks that are not kept: candidates of a plane in tiles, and what a stroke under way would give."""

from types import SimpleNamespace

import numpy as np
from psygnal import Signal

from napari_lowlat_seg.annotation.action_queue import ActionQueue
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import BoundingBox, Tiling
from napari_lowlat_seg.core.labels import ArrayLabels
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.plugin.canvas.candidates import Candidates
from napari_lowlat_seg.plugin.controller.predictions import Predictions

PLANE = Plane((2, None, None))


class Asked:
    """A worker that writes down what it is asked; a test emits the answers."""

    predicted, failed, refused = Signal(object, object, bool, float), Signal(str), Signal(object, str)
    loaded, candidates_found = Signal(object), Signal(object, object)

    def __init__(self):
        self.facts, self.busy, self.asked = {"candidates": 2}, False, []

    def predict(self, request, source):
        self.asked.append((request, source))

    candidates = predict


def test_candidates_of_a_huge_plane_lie_where_the_click_is():
    """The tile is that of the first mask, wherever one has looked since."""
    worker, rng = Asked(), np.random.default_rng(0)
    pixels = rng.integers(0, 255, (5, 900, 1000)).astype(np.uint8)
    session = Session(Volume(pixels, window=(0, 255)))
    predictions = Predictions(session, worker, "stack", Tiling(large=300, side=200, halo=32))
    predictions.attach()
    view = SimpleNamespace(plane=PLANE)
    candidates = Candidates(session, predictions, worker, view, ActionQueue())
    candidates.attach()
    session.add(PLANE, Click((620, 730)))
    predictions.ask()
    request, source = worker.asked.pop()
    found = np.zeros((200, 200), np.float32)
    found[50:90, 60:100] = 0.9
    worker.predicted.emit(request, SoftMask.of(found), True, 0.1)
    predictions.sources._tiles[PLANE] = BoundingBox(0, 0, 200, 200)  # the user has looked there
    candidates.ask(PLANE)
    again, same = worker.asked.pop()
    assert (again.prompts, same.identity) == (request.prompts, source.identity)
    assert np.array_equal(same.read(), source.read())
    assert np.array_equal(again.previous.mask, found > 0.5)
    part = np.zeros((200, 200), np.float32)
    part[60:80, 70:90] = 0.9
    worker.candidates_found.emit(again, (SoftMask.of(part),))
    assert candidates.place(PLANE) == (1, 2)
    candidates.next()
    tile = source.key[-1]
    shown = session.mask(PLANE)
    assert np.array_equal(shown[tile.slices], part > 0.5)
    assert np.count_nonzero(shown) == 400


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
