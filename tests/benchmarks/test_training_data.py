"""Shards are laid out as training and the benchmark of the memory read them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from benchmarks.training_data import (
    LARGEST_REGION,
    REGION_SETS,
    _roles_of_scans,
    main,
    region_targets,
)
from napari_lowlat_seg.training.data.volumes import read_labelled_picture, read_labelled_volume


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two pictures of one set, a run of four planes, two hippocampi of which one is held out."""
    picture = np.arange(48 * 40, dtype=np.uint8).reshape(48, 40)
    mask = np.zeros((48, 40), np.uint8)
    mask[10:30, 10:30] = 3
    names = ["liver_us/a", "liver_us/b", *(f"epfl_hippocampus/train_z{n:04d}" for n in (4, 5, 6, 7, 9))]
    with tarfile.open(tmp_path / "train-em-00.tar", "w") as tar:
        for name in names:
            for kind, pixels in (("images", picture), ("masks", mask)):
                data = io.BytesIO()
                Image.fromarray(pixels).save(data, "PNG")
                info = tarfile.TarInfo(f"{kind}/{name}.png")
                info.size = data.getbuffer().nbytes
                tar.addfile(info, io.BytesIO(data.getvalue()))
    with tarfile.open(tmp_path / "train-volumes-00.tar", "w") as tar:
        for stem in ("hippocampus_003", *(f"hippocampus_{n}" for n in range(100, 109))):
            for kind in ("image", "label"):
                scan = np.zeros((12, 14, 6), np.uint8)
                scan[3:9, 3:9, 1:4] = 100 if kind == "image" else 1
                path = tmp_path / f"{stem}_{kind}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(scan, np.diag([1.0, 1.0, 5.0, 1.0])), path)
                tar.add(path, f"volumes/msd_hippocampus/{path.name}")
    return tmp_path


@pytest.mark.slow
def test_shards_become_pictures_and_volumes_without_those_held_out(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.training_data._medulla", lambda _: iter(()))
    main(["pictures", str(shards), str(tmp_path / "data"), "--limit", "1"])
    assert (tmp_path / "data/train/em/images/liver_us/a.png").exists()
    assert (tmp_path / "data/train/em/masks/epfl_hippocampus/train_z0004.png").exists()
    assert not (tmp_path / "data/train/em/images/liver_us/b.png").exists()
    out = tmp_path / "memory"
    main(["memory", str(shards), "", str(out)])
    written = sorted(path.stem for path in (out / "volumes").glob("*.npz"))
    assert written == ["hippocampus-hippocampus_100", "mito-0004"]
    scan = read_labelled_volume(out / "volumes" / "hippocampus-hippocampus_100.npz", "cpu")
    assert scan.image.shape[0] == 6
    assert scan.spacing[0] == 5
    assert scan.areas[0][1].tolist() == [0, 36, 36, 36, 0, 0]
    assert read_labelled_volume(out / "volumes" / "mito-0004.npz", "cpu").labels.shape == (4, 48, 40)
    assert sorted(path.name for path in (out / "pictures").glob("*_image.png")) == [
        "liver_us-a_image.png",
        "liver_us-b_image.png",
    ]
    picture = read_labelled_picture(out / "pictures" / "liver_us-a_image.png", "cpu")
    assert picture is not None
    assert picture.objects[0][:2] == (3, 400)


def test_objects_that_choose_settings_are_none_of_those_that_are_reported():
    names = [
        "hippocampus-hippocampus_003",
        *(f"hippocampus-hippocampus_{n}" for n in range(100, 108)),
        "other-t2",
    ]
    found = _roles_of_scans(names)
    assert "hippocampus-hippocampus_003" not in {name for name, *_ in found}  # of the 31
    assert "other-mr" not in {name for name, *_ in found}  # there is none
    roles = {role: {name for name, own, *_ in found if own == role} for role in ("other", "develop")}
    assert len(roles["other"]) == 4
    assert not roles["other"] & roles["develop"]
    assert sum(every > 1 for *_, every, _ in found) == 2


@pytest.fixture
def organs() -> np.ndarray:
    """(120, 160, 3) uint8: a dark background, a body of one gray value, two round organs in it, noise."""
    rows, cols = np.mgrid[:120, :160]
    picture = np.where((rows - 60) ** 2 / 50**2 + (cols - 80) ** 2 / 70**2 < 1, 90.0, 5.0)
    picture[(rows - 50) ** 2 + (cols - 50) ** 2 < 15**2] = 160
    picture[(rows - 70) ** 2 + (cols - 110) ** 2 < 20**2] = 220
    picture += np.random.default_rng(0).normal(0, 3, picture.shape)
    return np.repeat(picture.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def test_region_targets_are_what_has_a_gray_value_of_its_own(organs) -> None:
    """Both organs are found, the background is none; a plain picture has no region."""
    for seed in range(5):
        ids = region_targets(organs, np.random.default_rng(seed))
        assert ids.dtype == np.uint16
        assert ids[0, 0] == ids[-1, 0] == ids[0, -1] == ids[-1, -1] == 0
        for row, col, radius in ((50, 50, 15), (70, 110, 20)):
            assert ids[row, col] > 0
            assert 0.4 < (ids == ids[row, col]).sum() / (np.pi * radius**2) < 1.4  # less a seam around it
        areas = np.bincount(ids.ravel())[1:]
        assert areas.max() <= LARGEST_REGION * ids.size
    assert not region_targets(np.full((40, 40, 3), 7, np.uint8), np.random.default_rng(0)).any()


@pytest.mark.slow
def test_regions_are_sets_beside_the_pictures_that_they_are_made_from(organs, tmp_path) -> None:
    """A domain of their own, whose pictures are links; a picture without a region is left out."""
    for group in REGION_SETS:
        folder = tmp_path / "med" / "images" / group
        folder.mkdir(parents=True)
        Image.fromarray(organs).save(folder / "a.png")
        Image.fromarray(np.full((40, 40), 7, np.uint8)).save(folder / "b.png")
    main(["regions", str(tmp_path)])
    main(["regions", str(tmp_path)])
    images = sorted((tmp_path / "regions" / "images").glob("*/*"))
    assert [path.parent.name for path in images] == sorted(f"{group}_regions" for group in REGION_SETS)
    assert all(path.is_symlink() and np.array_equal(np.asarray(Image.open(path)), organs) for path in images)
    for path in images:
        assert np.asarray(Image.open(tmp_path / "regions" / "masks" / path.parent.name / "a.png")).max() > 1
