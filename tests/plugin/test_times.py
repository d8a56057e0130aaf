"""How long a prediction took, in the state line; by a worker that emits what it is given."""

import numpy as np
import pytest
from psygnal import Signal

from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.plugin.controller.predictions import Predictions

PLANE = Plane((1, None, None))


class Sender:
    """A worker that embeds nothing and keeps what it is asked."""

    predicted = Signal(object, object, bool, float)
    embedded = Signal(object, float)
    failed = Signal(str)
    refused = Signal(object, str)
    loaded = Signal(object)
    busy, has_model = False, True

    def __init__(self):
        self.requests, self.facts = [], {}

    def predict(self, request, source):
        self.requests.append(request)

    def embed(self, source):
        """Nothing to embed with."""

    embed_ahead = embed


@pytest.fixture
def clicked():
    """`clicked(*answers)`: clicks, answers with these (final, seconds), and gives what is said then."""
    worker = Sender()
    session = Session(Volume(np.zeros((3, 8, 8), np.uint8), window=(0, 255)))
    predictions, said = Predictions(session, worker, "stack"), []
    predictions.attach()
    predictions.status.connect(lambda news: said.append((news.text, news.refining)))

    def click(*answers):
        session.add(PLANE, Click((4.0, 4.0)))
        predictions.ask()
        said.clear()
        for final, seconds in answers:
            answer = SoftMask.of(np.ones((8, 8), np.float32), 0.9)
            worker.predicted.emit(worker.requests[-1], answer, final, seconds)
        return list(said)

    yield click
    predictions.detach()


def test_a_refined_mask_has_its_time_beside_that_of_the_first(clicked):
    """It comes as not final, and once more as final."""
    said = clicked((False, 0.1), (False, 0.3), (True, 0.3))
    assert said == [("100 ms, refining…", True)] * 2 + [("100 ms, refined after 300 ms", False)]


def test_a_mask_that_was_not_refined_has_its_own_time_only(clicked):
    """Whatever the click before it took."""
    clicked((False, 0.1), (False, 0.3), (True, 0.3))
    assert clicked((False, 0.2), (True, 0.2)) == [("200 ms, refining…", True), ("200 ms", False)]
    assert clicked((True, 0.25)) == [("250 ms", False)]
