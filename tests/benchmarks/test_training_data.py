"""Shards are laid out as training and the benchmark of the memory read them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from benchmarks.training_data import _roles_of_scans, main
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
