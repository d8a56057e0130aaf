"""--series, --time and --level on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_lowlat_seg.cli import app
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.choice import Choice
from napari_lowlat_seg.io.files import read_volume
from terminal import Call


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    """Two points in time of a stack of four planes."""
    data = np.random.default_rng(0).integers(0, 255, (2, 4, 40, 50)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "TZYX"})
    return tmp_path / "a.tif"


@pytest.mark.slow
def test_a_time_and_a_series_are_chosen(call: Call, tiny: Path, movie: Path, tmp_path: Path) -> None:
    """Clicks have three numbers then, and labels the shape of what was chosen."""
    click = ("--click", "1,20,25", "--model", tiny)
    done = call("segment", movie, "-o", tmp_path / "l.tif", "--time", 1, *click)
    assert (done.status, done.err) == (0, "")
    assert read_volume(tmp_path / "l.tif").shape == (4, 40, 50)
    np.savez(tmp_path / "a.npz", raw=np.ones((4, 40, 50), np.uint8), other=np.ones((9, 9), np.uint8))
    done = call("segment", tmp_path / "a.npz", "-o", tmp_path / "m.tif", *click)
    assert done.status == 2
    assert "there are 2 arrays in it; choose one with series: raw, other" in done.err
    done = call("segment", tmp_path / "a.npz", "-o", tmp_path / "m.tif", "--series", "raw", *click)
    assert done.status == 0
    for wrong, sentence in (
        ("--time", "time must be from 0 to 1"),
        ("--level", "there is no level 7"),
    ):
        done = call("segment", movie, "-o", tmp_path / "n.tif", wrong, 7, *click)
        assert (done.status, done.err.count("\n")) == (2, 1)
        assert sentence in done.err


def test_an_object_is_propagated_along_z_and_not_along_time(
    call: Call, tiny: Path, movie: Path, tmp_path: Path
) -> None:
    """Unless --axis says so."""
    every = ("--propagate", ":", "--model", tiny)
    done = call("segment", movie, "-o", tmp_path / "l.tif", "--click", "1,0,20,25", *every)
    assert done.status == 0
    times, sections = np.nonzero(np.asarray(read_volume(tmp_path / "l.tif").data).any(axis=(2, 3)))
    assert (set(times), len(set(sections)) > 1) == ({1}, True)
    done = call("segment", movie, "-o", tmp_path / "m.tif", "--axis", 0, "--click", "1,0,20,25", *every)
    assert done.status == 0
    times, sections = np.nonzero(np.asarray(read_volume(tmp_path / "m.tif").data).any(axis=(2, 3)))
    assert (set(times), set(sections)) == ({0, 1}, {0})


@pytest.mark.parametrize("command", ["embed", "seeds", "everything"])
def test_batch_commands_read_what_is_chosen(
    command: str, call: Call, movie: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice reaches the reader."""
    seen = []

    def read(path: Path, choice: Choice) -> Volume:
        seen.append(choice)
        raise ValueError("seen")

    room = {"embed": "embed", "seeds": "seeds", "everything": "automatic"}[command]
    monkeypatch.setattr(f"napari_lowlat_seg.batch.{room}.read_chosen", read)
    more = [tmp_path / "p.csv"] if command == "seeds" else []
    done = call(command, movie, *more, "-o", tmp_path / "l.tif", "--time", 1, "--series", 0, "--level", 0)
    assert (done.status, done.err) == (2, "seen\n")
    assert seen == [Choice(None, "0", 1, 0)]


def test_too_little_memory_is_one_sentence(call: Call, movie: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 8.00 EiB")

    monkeypatch.setattr(app, "app", fail)
    done = call("segment", movie)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "not enough memory (Unable to allocate 8.00 EiB); give a smaller part" in done.err


def test_a_label_that_is_taken_in_an_ome_zarr_is_refused(call: Call, tiny: Path, tmp_path: Path) -> None:
    """Two objects under one number would be one."""
    pytest.importorskip("ome_zarr")
    data = np.random.default_rng(0).integers(0, 255, (3, 40, 50)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", metadata={"axes": "ZYX"})
    command = ("segment", tmp_path / "a.tif", "-o", tmp_path / "l.ome.zarr", "--model", tiny, "--label", 3)
    assert call(*command, "--click", "1,20,25").status == 0
    before = np.asarray(read_volume(tmp_path / "l.ome.zarr").data)
    done = call(*command, "--click", "2,5,5")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "label 3 is in" in done.err
    assert "leave out --label for the next free one" in done.err
    np.testing.assert_array_equal(np.asarray(read_volume(tmp_path / "l.ome.zarr").data), before)


def test_an_object_is_added_to_labels_of_another_orientation(call: Call, tiny: Path, tmp_path: Path) -> None:
    """Labels of a mirrored, transposed NIfTI keep their places; the file has the image's orientation then."""
    nibabel = pytest.importorskip("nibabel")
    data = np.random.default_rng(0).integers(0, 255, (50, 40, 3)).astype(np.uint8)
    affine = np.diag([0.5, 0.6, 2.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "a.nii.gz")
    labels = np.zeros(data.shape, np.uint8)
    labels[45, 3, 2] = 7
    turned = labels[::-1].transpose(1, 0, 2)
    flip = np.array([[0, -1, 0, 49], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    nibabel.save(nibabel.Nifti1Image(turned, affine @ flip), tmp_path / "l.nii.gz")
    done = call(
        "segment", tmp_path / "a.nii.gz", "-o", tmp_path / "l.nii.gz", "--model", tiny, "--click", "1,20,15"
    )
    assert (done.status, done.err) == (0, "")
    found = nibabel.load(tmp_path / "l.nii.gz")
    np.testing.assert_allclose(found.affine, affine)
    pixels = np.asarray(found.dataobj)
    assert np.argwhere(pixels == 7).tolist() == [[45, 3, 2]]
    assert (pixels[..., 1] == 8).any()
