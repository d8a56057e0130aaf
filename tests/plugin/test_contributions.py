"""The sample data and the reader, opened in a real window as napari's menus open them."""

import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage

from napari_lowlat_seg.plugin.contributions import (
    get_scan_reader,
    open_em_sample,
    open_mri_sample,
    read_scans,
)
from napari_lowlat_seg.plugin.labels.lazy_array import LazyArray

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


def write_zarr(path, shape, *, names="zyx", levels=2):
    """An OME-Zarr of zeros, in steps of 4, 2 and 2 µm."""
    group = zarr.open_group(path, mode="w")
    datasets = []
    for level in range(levels):
        sides = [side // 2**level if name in "yx" else side for name, side in zip(names, shape)]
        group.create_array(str(level), shape=sides, chunks=(1,) * (len(names) - 2) + (64, 64), dtype="uint16")
        steps = [1.0 if name == "c" else 4.0 if name == "z" else 2.0 * 2**level for name in names]
        datasets.append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": steps}]}
        )
    axes = [
        {"name": name, "type": "channel"}
        if name == "c"
        else {"name": name, "type": "space", "unit": "micrometer"}
        for name in names
    ]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return str(path)


def test_a_folder_opens_with_its_spacing_and_all_its_levels(tmp_path):
    """A large OME-Zarr as a pyramid that is read where it is shown; a small one as it is, finest level."""
    path = write_zarr(tmp_path / "big.ome.zarr", (600, 2048, 2048))
    assert get_scan_reader(path) is read_scans
    ((data, settings, kind),) = read_scans(path)
    assert [(type(level), level.shape) for level in data] == [
        (LazyArray, (600, 2048, 2048)),
        (LazyArray, (600, 1024, 1024)),
    ]
    assert (settings["name"], settings["multiscale"], kind) == ("big", True, "image")
    assert settings["scale"] == (4.0, 2.0, 2.0)
    assert settings["units"] == ("um", "um", "um")
    ((data, settings, _),) = read_scans(write_zarr(tmp_path / "small.zarr", (3, 64, 64)))
    assert isinstance(data, np.ndarray)
    assert "multiscale" not in settings


def test_channels_of_a_folder_become_layers(tmp_path):
    """Channels that do not come last are no colours: napari makes a layer of each."""
    path = write_zarr(tmp_path / "cells.ome.zarr", (2, 3, 64, 64), names="czyx", levels=1)
    ((data, settings, _),) = read_scans(path)
    assert data.shape == (2, 3, 64, 64)
    assert settings["channel_axis"] == 0
    assert settings["scale"] == (4.0, 2.0, 2.0)
    assert not settings["rgb"]


def test_a_folder_of_pages_or_of_dicom_is_read(tmp_path):
    """Of a folder without a suffix what lies in it decides."""
    for number in range(3):
        tifffile.imwrite(tmp_path / f"{number}.tif", np.full((4, 5), number, np.uint8))
    assert get_scan_reader(str(tmp_path)) is read_scans
    ((data, _, _),) = read_scans(str(tmp_path))
    assert data.shape == (3, 4, 5)


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


BALLS = ((6, 20, 25), (5, 9, 9))


def balls():
    """Two balls, (z, y, x) of 12 x 40 x 50, numbered."""
    grid = np.indices((12, 40, 50))
    labels = np.zeros((12, 40, 50), np.uint8)
    for number, centre in enumerate(BALLS, start=1):
        labels[sum((x - at) ** 2 for x, at in zip(grid, centre, strict=True)) < 25] = number
    return labels


@pytest.fixture
def patient(tmp_path):
    """Scans of one patient: one, the same stored mirrored, and a smaller field of view of it; and labels."""
    plain = np.diag([1.0, 1, 2, 1])
    mirrored, smaller = np.diag([-1.0, 1, 2, 1]), plain.copy()
    mirrored[0, 3], smaller[:3, 3] = 49, (0, 10, 4)
    image = np.where(balls() > 0, 200, 60).astype(np.uint8).transpose(2, 1, 0)
    labels = (balls() == 2).astype(np.uint8).transpose(2, 1, 0)
    files = {
        "flair": (image, plain),
        "t1": (image[::-1], mirrored),
        "t2": (image[:, 10:, 2:], smaller),
        "labels": (labels[::-1], mirrored),
    }
    for name, (data, affine) in files.items():
        nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(data), affine), tmp_path / f"{name}.nii.gz")
    return [str(tmp_path / f"{name}.nii.gz") for name in files]


def test_scans_of_one_patient_lie_on_each_other(viewer, patient):
    """Whatever way round they are stored and however much of the patient they show."""
    layers = viewer.open(patient[:3], plugin=PLUGIN)
    grid = np.argwhere(balls() == 1).mean(axis=0)
    found = []
    for layer in layers:
        parts = np.asarray(layer.data) > 120
        lie = layer.data_to_world(np.argwhere(parts)[0]), parts.sum()
        found.append(layer.world_to_data(layers[0].data_to_world(grid)))
        assert parts[tuple(np.round(found[-1]).astype(int))], lie
    assert not np.allclose(found[0], found[1])
    centres = [(12.0, 20.0, 25.0), (10.0, 9.0, 9.0)]  # (z, y, x) in mm
    for layer in layers[:2]:
        parts, _ = ndimage.label(np.asarray(layer.data) > 120)
        lie = [layer.data_to_world(np.argwhere(parts == n).mean(axis=0)) for n in (1, 2)]
        assert np.allclose(sorted(map(tuple, lie)), sorted(centres), atol=0.02)


def test_mirrored_labels_are_not_taken_for_the_image_s(viewer, patient):
    """Left and right would be exchanged: they are refused in one sentence."""
    from napari_lowlat_seg.plugin.labels.alignment import fits
    from napari_lowlat_seg.plugin.layers.grid import grid_of

    (flair,) = viewer.open(patient[0], plugin=PLUGIN)
    ((data, place, _),) = read_scans(patient[3])
    place = {name: place[name] for name in ("scale", "units", "axis_labels", "affine")}
    layer = viewer.add_labels(data, name="old", **place)
    assert "'old' lies up to 49.0 voxels away from 'flair'" in (fits(layer, grid_of(flair)) or "")


@pytest.mark.parametrize("name", ["labels.nii.gz", "labels.nrrd", "labels.ome.tif"])
def test_labels_are_saved_from_the_menu_and_lie_on_their_scan(viewer, name, tmp_path):
    """File > Save Selected Layer: array, affine and unit of NIfTI; the place in every format."""
    affine = np.diag([0.7, 0.8, 3.0, 1])
    affine[:3, 3] = (5, 6, 7)
    scan = nibabel.Nifti1Image(balls().transpose(2, 1, 0), affine)
    scan.header.set_xyzt_units("mm")
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    (image,) = viewer.open(str(tmp_path / "scan.nii.gz"), plugin=PLUGIN)
    place = {key: getattr(image, key) for key in ("scale", "translate", "affine", "units", "axis_labels")}
    layer = viewer.add_labels(np.asarray(image.data) // 2, **place)
    assert layer.save(str(tmp_path / name), plugin=PLUGIN) == [str(tmp_path / name)]
    if name.endswith(".nii.gz"):
        back = nibabel.load(tmp_path / name)
        assert np.allclose(back.affine, affine)
        assert np.array_equal(np.asarray(back.dataobj), np.asarray(layer.data).transpose(2, 1, 0))
        assert back.header.get_xyzt_units()[0] == "mm"
    if not name.endswith(".tif"):
        ((data, again, _),) = read_scans(str(tmp_path / name))
        assert np.array_equal(data, layer.data)
        assert np.allclose(again["affine"], image.affine.affine_matrix)


@pytest.mark.parametrize("name", ["a.mrc", "a.nrrd", "a.seg.nrrd", "a.mha"])
def test_other_volumes_open_where_they_lie(name, tmp_path):
    """Tomograms and scans, lengths with their unit; segments as labels."""
    from napari_lowlat_seg.core.geometry import Geometry
    from napari_lowlat_seg.core.volume import Volume
    from napari_lowlat_seg.io.files import write_labels

    geometry = Geometry.from_scale("zyx", (3, 2, 1), (30, 20, 10), ["mm"] * 3)
    write_labels(tmp_path / name, balls(), Volume(balls(), geometry=geometry))
    assert get_scan_reader(str(tmp_path / name)) is read_scans
    ((data, place, kind),) = read_scans(str(tmp_path / name))
    assert kind == ("labels" if "seg" in name else "image")
    assert np.allclose(place["affine"][:3, 3] * (1e-7 if "mrc" in name else 1), [30, 20, 10])
    assert set(place["units"]) == {"angstrom" if "mrc" in name else "mm"}
    assert place["axis_labels"] == ("z", "y", "x")
    assert data.max() == 2


def test_the_manifest_names_every_suffix_of_the_table_of_formats():
    """What is read for napari, and what labels are saved to; PNG says no place and is left to napari."""
    from importlib.resources import files

    import yaml

    from napari_lowlat_seg.io.format_table import FORMATS
    from napari_lowlat_seg.plugin.contributions import SCANS

    manifest = yaml.safe_load((files("napari_lowlat_seg") / "napari.yaml").read_text(encoding="utf-8"))
    (reader,), (writer,) = (manifest["contributions"][name] for name in ("readers", "writers"))
    read = {f"*{suffix}" for one in FORMATS if one.module in SCANS and one.read for suffix in one.suffixes}
    written = {suffix for one in FORMATS if one.write and one.name != "PNG" for suffix in one.suffixes}
    assert set(reader["filename_patterns"]) == read
    assert set(writer["filename_extensions"]) == written | {".ome.zarr", ".stl", ".ply", ".geojson"}


def test_one_of_several_images_is_asked_for(qtbot, tmp_path, monkeypatch):
    """In a dialog where there is a window; without a choice the sentence lists them."""
    from qtpy.QtWidgets import QApplication, QInputDialog, QWidget

    from napari_lowlat_seg.io.choice import SeveralImages

    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in ("raw", "seg"):
            file.create_dataset(name, data=np.full((3, 4), 7 if name == "seg" else 1))
    path = str(tmp_path / "a.h5")
    window = QWidget()
    qtbot.addWidget(window)
    monkeypatch.setattr(QApplication, "activeWindow", staticmethod(lambda: window))
    monkeypatch.setattr(QInputDialog, "getItem", staticmethod(lambda *args: (args[3][1], True)))
    ((data, _, _),) = read_scans(path)
    assert data.max() == 7
    monkeypatch.setattr(QInputDialog, "getItem", staticmethod(lambda *args: ("raw", False)))
    with pytest.raises(SeveralImages, match="there are 2 images in it; choose one with series: raw"):
        read_scans(path)
