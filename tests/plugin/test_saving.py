"""File > Save of labels: in every format they lie where the layer lies."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from napari.layers import Labels

from napari_lowlat_seg.core.geometry import Geometry
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.plugin import progress_bar
from napari_lowlat_seg.plugin.contributions import read_scans
from napari_lowlat_seg.plugin.saving import layer_geometry, save_labels

SHAPE = (3, 4, 5)


@pytest.fixture
def labels() -> np.ndarray:
    """One voxel."""
    data = np.zeros(SHAPE, np.uint16)
    data[1, 2, 3] = 7
    return data


def save(path: Path, layer: Labels) -> None:
    """As napari calls a writer of one layer."""
    data, attributes, _ = layer.as_layer_data_tuple()
    assert save_labels(str(path), data, attributes) == [str(path)]


@pytest.mark.parametrize("affine", [
    np.array([[0.7, 0, 0, 5], [0, 0.8, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]]),
    np.array([[0.7, -0.2, 0, -5], [0.2, 0.7, 0, 6], [0, 0, -3, 7], [0, 0, 0, 1]]),
], ids=["straight", "oblique"])  # fmt: skip
def test_labels_of_a_scan_are_saved_with_its_affine(
    affine: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    """As the scan has them: array order, affine and unit."""
    scan = nibabel.Nifti1Image(np.zeros(SHAPE[::-1], np.uint8), affine)
    scan.header.set_xyzt_units("mm")
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    ((_, place, _),) = read_scans(str(tmp_path / "scan.nii.gz"))
    place = {name: place[name] for name in ("scale", "units", "axis_labels", "affine") if name in place}
    save(tmp_path / "labels.nii.gz", Labels(labels, **place))
    back = nibabel.load(tmp_path / "labels.nii.gz")
    np.testing.assert_allclose(back.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(back.dataobj), labels.T)
    assert back.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize(
    "name", ["a.tif", "a.ome.tif", "a.ome.zarr", "a.nrrd", "a.seg.nrrd", "a.mrc", "a.nii"]
)
def test_labels_are_saved_where_they_lie(name: str, labels: np.ndarray, tmp_path: Path) -> None:
    """Scale, translation and unit, in every format."""
    layer = Labels(labels, scale=(40, 4, 4), translate=(400, 1000, 2000), units=("nm",) * 3)
    save(tmp_path / name, layer)
    geometry = read_volume(tmp_path / name).geometry
    assert isinstance(geometry, Geometry)
    (index,) = np.argwhere(np.asarray(read_volume(tmp_path / name).data) == 7)
    np.testing.assert_allclose(
        geometry.in_unit("nm").to_world(index), layer.data_to_world((1, 2, 3)), rtol=1e-5
    )


def test_of_a_pyramid_the_finest_level_is_saved(labels: np.ndarray, tmp_path: Path) -> None:
    """All voxels."""
    save(tmp_path / "a.tif", Labels([labels, labels[:, ::2, ::2]], multiscale=True))
    np.testing.assert_array_equal(np.asarray(read_volume(tmp_path / "a.tif").data), labels)


def test_a_turned_layer_is_refused_by_formats_without_directions(labels: np.ndarray, tmp_path: Path) -> None:
    """In one sentence; nothing is written."""
    with pytest.raises(
        ValueError, match=r"a.tif cannot hold these labels .*lies oblique in the world; write"
    ):
        save(tmp_path / "a.tif", Labels(labels, rotate=(10, 20, 30)))
    assert not list(tmp_path.iterdir())


def test_names_of_a_layer_follow_napari_s_order() -> None:
    """Axes without names, with the world's and with another order."""
    names = (("-3", "-2", "-1"), ("t", "y", "x"), ("x", "y", "z"), ("a", "a", "b"))
    found = [layer_geometry(one, ("pixel",) * 3, np.diag([1, 2, 3, 1])).names for one in names]
    assert found == [("z", "y", "x"), ("t", "y", "x"), ("d0", "d1", "d2"), ("z", "y", "x")]


def test_every_level_of_a_saved_ome_zarr_is_written(tmp_path: Path) -> None:
    """Also where labels were before: what is seen from afar is what is there."""
    zarr = pytest.importorskip("zarr")
    data = np.zeros((2, 600, 600), np.uint16)
    data[1, 100:500, 200:300] = 7
    for pixels in (data, data[:, ::-1]):
        save(tmp_path / "a.ome.zarr", Labels(pixels))
        fine, coarse = (zarr.open_group(tmp_path / "a.ome.zarr")[level][:] for level in "01")
        np.testing.assert_array_equal(fine, pixels)
        np.testing.assert_array_equal(coarse, pixels[:, ::2, ::2])


def test_an_export_can_be_cancelled(
    labels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the button of the bar, which comes after half a second; nothing is left."""

    class Pressed(progress_bar.cancelable_progress):
        """A bar whose button is pressed as soon as something is done."""

        def update(self, n: int = 1) -> None:
            super().update(n)
            self.is_canceled = True

    monkeypatch.setattr(progress_bar, "DELAY_MS", 0)
    monkeypatch.setattr(progress_bar, "cancelable_progress", Pressed)
    with pytest.raises(
        progress_bar.SavingCancelled, match=r"saving a.ply was cancelled; nothing was written"
    ):
        save(tmp_path / "a.ply", Labels(labels))
    assert not list(tmp_path.iterdir())
