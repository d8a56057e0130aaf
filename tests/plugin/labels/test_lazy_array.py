"""Arrays on disk as napari sees them: cut as often as it likes, read once, and no more than is seen."""

import numpy as np
import pytest
from napari.layers import Labels

from napari_lowlat_seg.plugin.labels.lazy_array import LazyArray


class Watched:
    """An array that writes down what shapes are read of it."""

    def __init__(self, data):
        self.data, self.shape, self.dtype, self.read = data, data.shape, data.dtype, []

    def __getitem__(self, key):
        part = self.data[key]
        self.read.append(part.shape)
        return part


@pytest.fixture
def watched():
    """Ninety planes."""
    return Watched(np.arange(90 * 20 * 30).reshape(90, 20, 30))


def test_cuts_of_cuts_are_read_at_once(watched):
    """Slices, steps, numbers from the end, and what is left out."""
    lazy = LazyArray.of(watched)
    part = lazy[:, 2:18, 3:][5][1:9:2, -7]
    assert watched.read == []
    assert (part.shape, part.ndim, part.size, part.dtype) == ((4,), 1, 4, np.dtype(int))
    np.testing.assert_array_equal(np.asarray(part), watched.data[5, 3:11:2, 23])
    assert watched.read == [(4,)]
    np.testing.assert_array_equal(lazy[np.array([1, 2])], watched.data[[1, 2]])


def test_napari_reads_the_plane_in_view_only(watched):
    """Of the volume that it cuts first it reads nothing."""
    coarse = Watched(watched.data[:, ::2, ::2])
    layer = Labels(LazyArray.pyramid([watched, coarse]), multiscale=True)
    watched.read.clear()
    coarse.read.clear()
    layer.refresh()
    assert set(watched.read + coarse.read) <= {(20, 30), (10, 15)}


def test_what_napari_keeps_is_brought_up_to_date():
    """Of 2-D pyramids it reads the coarsest level once."""
    fine, coarse = np.zeros((40, 40), int), np.zeros((20, 20), int)
    layer = Labels(LazyArray.pyramid([fine, coarse]), multiscale=True)
    coarse[3, 4] = 5
    layer.data[-1].renew()
    layer.refresh()
    assert layer._slice.thumbnail.raw[3, 4] == 5
    assert np.asarray(layer.data[-1]).max() == 5
    layer.data[0].renew()  # nothing is kept of the others
