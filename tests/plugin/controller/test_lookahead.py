"""Which planes are embedded ahead, and that they are only while no stroke is drawn."""

import threading

import numpy as np
import pytest

from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.plugin.controller.plane_sources import ScrollDirection
from napari_lowlat_seg.plugin.controller.predictions import Predictions
from napari_lowlat_seg.plugin.worker import Worker


def positions(planes):
    return [plane.index for plane in planes]


def test_the_scroll_direction_comes_first():
    """Nearest first, then the planes that the user comes from."""
    down = ScrollDirection().after(Plane((9, None, None)), Plane((7, None, None)))
    assert positions(down.planes(Plane((7, None, None)), (10, 4, 4), 3)) == [
        (6, None, None),
        (5, None, None),
        (4, None, None),
        (8, None, None),
        (9, None, None),
    ]


def test_at_first_it_goes_forward_along_the_last_axis():
    """As the keys for the next and the previous plane do."""
    assert positions(ScrollDirection().planes(Plane((2, 5, None, None)), (9, 7, 4, 4), 2)) == [
        (2, 6, None, None),
        (2, 4, None, None),
        (2, 3, None, None),
    ]


def test_the_axis_is_the_one_whose_slider_moved():
    """Time, for one who plays a series."""
    time = ScrollDirection().after(Plane((2, 5, None, None)), Plane((3, 5, None, None)))
    assert positions(time.planes(Plane((3, 5, None, None)), (9, 7, 4, 4), 1)) == [
        (4, 5, None, None),
        (2, 5, None, None),
    ]


@pytest.mark.parametrize(
    "now", [Plane((5, None, None)), Plane((7, 1, None, None))], ids=["nowhere", "two sliders"]
)
def test_what_is_no_scrolling_changes_no_direction(now):
    """A click refreshes the view; a jump says nothing of where one goes next."""
    direction = ScrollDirection(0, -1)
    before = Plane((5, None, None)) if len(now.index) == 3 else Plane((5, 0, None, None))
    assert direction.after(before, now) == direction
    assert direction.after(None, now) == direction


def test_another_orientation_begins_anew():
    """The axis of the old one may be shown now."""
    turned = ScrollDirection(0, -1).after(Plane((5, None, None)), Plane((None, 2, None)))
    assert turned == ScrollDirection()
    planes = turned.planes(Plane((None, 2, None)), (9, 9, 9), 1)
    assert positions(planes) == [(None, 3, None), (None, 1, None)]


def test_a_2d_image_has_no_neighbours_and_zero_planes_ahead_none():
    """There is nothing to embed ahead."""
    assert ScrollDirection().planes(Plane(), (5, 5), 8) == []
    assert ScrollDirection().planes(Plane((2, None, None)), (5, 5, 5), 0) == []


class SlowService:
    """A service that embeds when its door is open, and writes down what."""

    def __init__(self):
        self.door, self.embedded, self.folders = threading.Event(), [], set()
        self.door.set()

    def describe(self, progress=None):
        return {"model": "slow"}

    def embed(self, source, cancelled):
        from napari_lowlat_seg.serving.worker_process import Interrupted

        if source.plane.index in self.embedded:
            return 0.0
        assert source.read().shape == (4, 4)
        while not self.door.wait(0.005):
            if cancelled():
                raise Interrupted
        self.embedded.append(source.plane.index)
        self.folders.add(source.folders)
        return 0.1

    def predict(self, request, source, cancelled):
        raise AssertionError("nothing is asked here")

    def restart(self):
        """Nothing."""

    def close(self):
        self.door.set()


@pytest.fixture
def service():
    return SlowService()


@pytest.fixture
def worker(qtbot, service):
    one = Worker()
    with qtbot.waitSignals([one.loaded, one.idle]):
        one.load(lambda: service)
    yield one
    one.close()


@pytest.fixture
def predictions(worker):
    """About twenty planes, of which three each way are embedded ahead."""
    one = Predictions(Session(Volume(np.zeros((20, 4, 4), np.uint8), window=(0, 255))), worker, "stack")
    one.planes_ahead = 3
    one.attach()
    yield one
    one.detach()


def wait_for(qtbot, service, *numbers):
    qtbot.waitUntil(lambda: [index[0] for index in service.embedded] == list(numbers))


def test_planes_are_embedded_in_the_direction_of_scrolling(qtbot, service, predictions, tmp_path):
    """The plane in view, those ahead, those behind; and each once. They say where else to look."""
    predictions.sources.folders = (tmp_path,)
    predictions.look(Plane((10, None, None)))
    wait_for(qtbot, service, 10, 11, 12, 13, 9, 8, 7)
    predictions.look(Plane((9, None, None)))
    wait_for(qtbot, service, 10, 11, 12, 13, 9, 8, 7, 6)
    assert service.folders == {(tmp_path,)}


def test_planes_ahead_are_not_mentioned(qtbot, worker, service, predictions):
    """The state line says what the plane in view does, and nothing of the others."""
    said, started = [], []
    predictions.status.connect(said.append)
    worker.started.connect(started.append)
    predictions.look(Plane((0, None, None)))
    wait_for(qtbot, service, 0, 1, 2, 3)
    qtbot.wait(30)
    assert started == ["embedding plane 0"]
    assert said == []


def test_nothing_is_embedded_ahead_while_a_stroke_is_drawn(qtbot, service, predictions):
    """It goes on when the stroke is done."""
    predictions.look(Plane((0, None, None)))
    service.door.clear()
    wait_for(qtbot, service)
    service.door.set()
    predictions.drawing = True
    qtbot.waitUntil(lambda: (0, None, None) in service.embedded)
    held = list(service.embedded)
    qtbot.wait(50)
    assert service.embedded == held
    predictions.drawing = False
    qtbot.waitUntil(lambda: len(service.embedded) == 4)


@pytest.mark.parametrize("leave", ["detach", "cancel", "off", "nothing in view"])
def test_embedding_ahead_stops(qtbot, service, predictions, leave):
    """The image was swapped or closed, cancelled, switched off, or turned to 3-D; the next look goes on."""
    predictions.look(Plane((0, None, None)))
    qtbot.waitUntil(lambda: len(service.embedded) == 4)
    service.door.clear()
    predictions.look(Plane((4, None, None)))
    if leave == "detach":
        predictions.detach()
    elif leave == "cancel":
        predictions.cancel()
    elif leave == "off":
        predictions.planes_ahead = 0
    else:
        predictions.look(None)
    qtbot.wait(30)
    service.door.set()
    qtbot.wait(60)
    assert len(service.embedded) <= 5  # a look that was under way may be finished
    if leave == "detach":
        predictions.attach()
    predictions.planes_ahead = 3
    predictions.look(Plane((4, None, None)))
    qtbot.waitUntil(lambda: len(service.embedded) == 8)
