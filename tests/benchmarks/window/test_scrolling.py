"""Counting what is embedded when a user scrolls and clicks; these tests assert no time."""

import numpy as np
import pytest

from benchmarks.window import scrolling
from benchmarks.window.scrolling import PATTERNS, Counts, ScrollingUser, load_sized, stack, way
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.volume import Volume
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


def test_planes_embedded_ahead_are_counted(worker):
    """When a plane comes into view, is left, is clicked on; what was forgotten shows there."""
    user = ScrollingUser(worker, Volume(np.zeros((6, 4, 4), np.uint8), window=(0, 255)), 2)
    user.scroll(range(6), 0.1)
    user.click(range(6))
    user.leave()
    counts = user.counts
    assert (counts.came, counts.left) == ([True] * 6, [True] * 6)
    assert (sum(counts.clicked), len(counts.warm), len(counts.cold)) == (5, 5, 1)


def test_a_row_holds_shares_and_medians():
    """Nothing counted gives dashes."""
    counts = Counts([True, False], [True, True], [True], [7.0, 9.0], [0.5], [80.0], [])
    assert counts.row() == "50 % | 100 % | 100 % | 9 ms | 500 ms | 80 ms | -"
    assert Counts().row() == "- | - | - | - | - | - | -"


def test_the_embedded_model_takes_another_side(monkeypatch):
    """The same weights, four times the tokens; converting them for OpenVINO would take most of the time."""
    monkeypatch.setattr("napari_lowlat_seg.inference.runtime.has_openvino", lambda: False)
    assert load_sized("1024", "cpu").describe()["size"] == 1024


def test_the_sides_compared_are_those_of_the_figures():
    """512 is that of the embedded model."""
    assert scrolling.SIZES == (512, 1024)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_way_stays_in_the_stack(pattern):
    """Every step is to a neighbour, but for every tenth of the jumps."""
    positions = way(pattern, 60, 50)
    assert len(positions) == 50
    assert 0 <= min(positions) <= max(positions) < 60
    steps = np.abs(np.diff(positions))
    assert sum(steps != 1) <= (4 if pattern == "jumps" else 0)
    assert (np.diff(positions) < 0).any() == (pattern != "straight")


def test_no_plane_of_the_stack_equals_another():
    """Or its embedding would be there already."""
    planes = np.concatenate([stack(70, 0), stack(70, 1)])
    assert len({plane.tobytes() for plane in planes}) == 140
