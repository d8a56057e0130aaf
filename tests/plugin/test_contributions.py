"""The sample data and the reader, opened in a real window as napari's menus open them."""

import nibabel
import numpy as np
import pytest

from napari_lowlat_seg.plugin.contributions import (
    get_scan_reader,
    open_em_sample,
    open_mri_sample,
    read_scans,
)

PLUGIN = "napari-lowlat-seg"


@pytest.fixture
def viewer(make_napari_viewer_proxy):
    """A shown viewer that refuses private attributes, so that OpenGL really draws."""
    return make_napari_viewer_proxy(show=True)


@pytest.fixture
def write_scan(tmp_path):
    """Write voxels as a NIfTI file and give back its path."""

    def write(name, voxels, zooms, units=("mm", "sec")):
        image = nibabel.Nifti1Image(voxels, np.eye(4))
        image.header.set_zooms(zooms)
        image.header.set_xyzt_units(*units)
        image.to_filename(tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture
def scan(write_scan):
    """A scan whose axes differ in length and spacing, and its voxels."""
    voxels = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    return write_scan("head.t1.nii.gz", voxels, (0.5, 0.75, 3.0)), voxels


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
    _, (outline, _, _) = open_mri_sample()
    largest = int(np.argmax((outline > 0).sum(axis=(1, 2))))
    assert 85 <= largest <= 95


def test_opening_a_sample_twice_gives_equal_and_separate_arrays():
    """What a user paints into one copy is not in the next."""
    first, second = open_em_sample()[1][0], open_em_sample()[1][0]
    assert np.array_equal(first, second)
    assert not np.shares_memory(first, second)
    assert first.flags.writeable


def test_a_scan_opens_in_the_viewer_at_its_spacing(viewer, scan):
    """Axes are turned to (z, y, x) together with their spacing; the unit is the file's."""
    path, voxels = scan
    (layer,) = viewer.open(path, plugin=PLUGIN)
    assert layer.name == "head"
    assert np.array_equal(layer.data, voxels.T)
    assert tuple(layer.scale) == (3.0, 0.75, 0.5)
    assert [str(unit) for unit in layer.units] == ["millimeter"] * 3
    assert tuple(layer.axis_labels) == ("z", "y", "x")


def test_a_series_of_scans_keeps_time_as_its_first_axis(write_scan):
    """The fourth axis of NIfTI is time, with a unit of its own."""
    path = write_scan("run.nii", np.zeros((2, 3, 4, 5), np.float32), (1, 1, 2, 0.8), ("micron", "msec"))
    ((data, settings, kind),) = read_scans(path)
    assert (data.shape, kind) == ((5, 4, 3, 2), "image")
    assert settings["scale"] == pytest.approx((0.8, 2, 1, 1))
    assert settings["units"] == ("ms", "um", "um", "um")
    assert settings["axis_labels"] == ("t", "z", "y", "x")


def test_a_coloured_scan_keeps_its_colours_last(write_scan):
    """RGB voxels become an RGB layer, of which only the spatial axes are turned."""
    voxels = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    voxels["G"][1, 2, 3] = 200
    ((data, settings, _),) = read_scans(write_scan("colour.nii", voxels, (1, 2, 3)))
    assert settings["rgb"]
    assert settings["scale"] == (3, 2, 1)
    assert data[3, 2, 1].tolist() == [0, 200, 0]


def test_a_scan_without_units_counts_in_pixels(write_scan):
    """Nothing is made up where the file is silent."""
    ((_, settings, _),) = read_scans(
        write_scan("plain.nii", np.zeros((2, 3, 4), np.uint8), (1, 1, 1), (None, None))
    )
    assert settings["units"] == ("pixel", "pixel", "pixel")


@pytest.mark.parametrize("path", ["cells.tif", ["a.nii", "b.png"]])
def test_files_that_are_no_scans_are_left_to_others(path):
    """None tells napari to ask the next reader."""
    assert get_scan_reader(path) is None


def test_several_scans_open_together(scan):
    """A stack of paths gives a layer each."""
    path, _ = scan
    reader = get_scan_reader([path, path.upper()])
    assert reader is read_scans
    assert len(reader([path, path])) == 2


def test_a_damaged_scan_is_answered_with_one_sentence(scan):
    """The reason reaches napari's notification."""
    path, _ = scan
    with open(path, "r+b") as file:
        file.truncate(40)
    with pytest.raises(ValueError, match=r"head\.t1\.nii\.gz cannot be read: it is damaged"):
        read_scans(path)
