"""The sample data, opened in a real window as napari's menu opens it."""

import numpy as np
import pytest

from napari_lowlat_seg.plugin.contributions import open_em_sample, open_mri_sample

PLUGIN = "napari-lowlat-seg"


@pytest.fixture
def viewer(make_napari_viewer_proxy):
    """A shown viewer that refuses private attributes, so that OpenGL really draws."""
    return make_napari_viewer_proxy(show=True)


@pytest.mark.parametrize(
    ("key", "names", "shape", "scale", "unit"),
    [
        ("em", ["fly medulla", "fly medulla neurons"], (48, 250, 250), (10, 10, 10), "nanometer"),
        ("mri", ["glioma FLAIR", "glioma outline by algorithms"], (110, 192, 160), (1, 1, 1), "millimeter"),
    ],
)
def test_a_sample_opens_in_the_viewer_in_world_units(viewer, key, names, shape, scale, unit):
    """Image and labels arrive together, at the spacing of the microscope or scanner."""
    viewer.open_sample(PLUGIN, key)
    image, labels = viewer.layers
    assert [image.name, labels.name] == names
    for layer in (image, labels):
        assert layer.data.shape == shape
        assert tuple(layer.scale) == scale
        assert {str(one) for one in layer.units} == {unit}
        assert tuple(layer.axis_labels) == ("z", "y", "x")
    assert type(labels).__name__ == "Labels"


def test_an_opened_sample_is_drawn(viewer):
    """A screenshot shows more than an empty canvas: OpenGL works."""
    viewer.open_sample(PLUGIN, "em")
    assert np.ptp(viewer.screenshot(canvas_only=True)[..., :3]) > 100


def test_the_glioma_lies_upright_in_axial_planes():
    """The first axis runs from foot to head: the outline is largest near plane 90."""
    (_, _, _), (outline, _, _) = open_mri_sample()
    largest = int(np.argmax((outline > 0).sum(axis=(1, 2))))
    assert 85 <= largest <= 95


def test_opening_a_sample_twice_gives_equal_and_separate_arrays():
    """What a user paints into one copy is not in the next."""
    first, second = open_em_sample()[1][0], open_em_sample()[1][0]
    assert np.array_equal(first, second)
    assert not np.shares_memory(first, second)
