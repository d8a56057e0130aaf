"""The program that counts what is embedded when somebody scrolls and clicks; it asserts no time itself."""

import numpy as np
import pytest

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.plugin.window import scrolling
from napari_lowlat_seg.plugin.window.scrolling import Counted, Reader, load_sized, turn
from napari_lowlat_seg.plugin.worker import Worker


class Quick:
    """Embeds at once, forgets plane 3, and answers with nothing."""

    def __init__(self):
        self.kept = set()

    def describe(self, progress=None):
        return {"model": "quick"}

    def embed(self, source, newer):
        if source.identity in self.kept:
            return 0.0
        if source.plane.index[0] != 3:
            self.kept.add(source.identity)
        return 0.001

    def predict(self, request, source, newer):
        yield SoftMask.from_mask(np.zeros((4, 4), bool)), True

    def close(self):
        """Nothing to end."""


@pytest.fixture
def worker(qtbot):
    one = Worker()
    with qtbot.waitSignal(one.loaded):
        one.load(Quick)
    yield one
    one.close()


def test_what_is_embedded_ahead_is_counted(worker):
    """When a plane comes into view, is left, is clicked on; what was forgotten shows there."""
    reader = Reader(worker, Volume(np.zeros((6, 4, 4), np.uint8), window=(0, 255)), 2)
    reader.scroll(range(6), 0.1)
    reader.click(range(6))
    reader.leave()
    counted = reader.counted
    assert (counted.came, counted.left) == ([True] * 6, [True] * 6)
    assert (sum(counted.clicked), len(counted.warm), len(counted.cold)) == (5, 5, 1)


def test_a_row_says_shares_and_medians():
    """Nothing counted is told as nothing."""
    counted = Counted([True, False], [True, True], [True], [0.5], [80.0], [])
    assert counted.row() == "50 % | 100 % | 100 % | 500 ms | 80 ms | -"
    assert Counted().row() == "- | - | - | - | - | -"


def test_the_embedded_model_takes_another_side():
    """The same weights, four times the tokens."""
    assert load_sized("1024", "cpu").describe()["size"] == 1024


def test_waiting_for_ever_is_an_error(qtbot):
    """Told with how long it has waited."""
    with pytest.raises(TimeoutError, match=r"nothing came in 0\.05 s; look whether"):
        turn(lambda: False, 0.05)


def test_the_sides_compared_are_those_of_the_figures():
    """512 is that of the embedded model."""
    assert scrolling.SIZES == (512, 1024)
