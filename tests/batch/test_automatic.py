"""Automatic segmentation of a volume: the same labels on a cluster, after a crash and after a stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from fakes import FakePredictor
from napari_lowlat_seg.batch import automatic, jobs
from napari_lowlat_seg.batch.automatic import run_automatic
from napari_lowlat_seg.batch.jobs import BatchSettings, check_new
from napari_lowlat_seg.cli import app
from napari_lowlat_seg.inference.mask_generator import MaskGeneratorSettings
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.models.checkpoints import save_model
from napari_lowlat_seg.models.segnext import SegNext, SegNextConfig


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> FakePredictor:
    """In the place of the network, in this process."""
    predictor = FakePredictor()
    monkeypatch.setattr(jobs, "cached_predictor", lambda *_: predictor)
    return predictor


@pytest.fixture
def rods(tmp_path: Path) -> Path:
    """Two rods through 6 planes, one of which is empty, and something that is seen on two planes only."""
    data = np.zeros((6, 40, 50), np.uint8)
    data[:, 5:15, 5:15] = 100
    data[:, 20:35, 20:40] = 200
    data[1:3, 3:13, 30:40] = 150
    data[3] = 0
    tifffile.imwrite(tmp_path / "rods.tif", data, imagej=True, metadata={"axes": "ZYX"})
    return tmp_path / "rods.tif"


@pytest.mark.parametrize("output", ["l.tif", "l.zarr"])
def test_objects_run_through_the_volume(
    rods: Path, bright: FakePredictor, tmp_path: Path, output: str
) -> None:
    """Over an empty plane; what is seen on two planes is left out; nothing stays beside the labels."""
    if output.endswith("zarr"):
        pytest.importorskip("ome_zarr")
    done = run_automatic(rods, tmp_path / output)
    volume = read_volume(tmp_path / output)
    labels = np.stack([volume.plane(plane) for plane in volume.planes()])
    data = np.asarray(read_volume(rods).data)
    small, large = (set(np.unique(labels[data == value])) for value in (100, 200))
    assert len(small) == len(large) == 1
    assert small | large == {1, 2}
    np.testing.assert_array_equal(labels > 0, np.isin(data, (100, 200)))
    assert (done["objects"], done["planes"]) == (2, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([output, "rods.tif"])


@pytest.mark.slow
def test_any_axis_will_do(rods: Path, bright: FakePredictor, tmp_path: Path) -> None:
    """Planes of 6 rows are small, so small objects count."""
    run_automatic(rods, tmp_path / "l.tif", BatchSettings(axis=2), MaskGeneratorSettings(least_area=5))
    labels = np.asarray(read_volume(tmp_path / "l.tif").data)
    np.testing.assert_array_equal(labels > 0, np.asarray(read_volume(rods).data) > 0)


def test_a_picture_is_a_volume_of_one_plane(bright: FakePredictor, tmp_path: Path) -> None:
    """Seen once is enough there."""
    picture = np.zeros((40, 50), np.uint8)
    picture[5:25, 5:25] = 90
    tifffile.imwrite(tmp_path / "a.tif", picture)
    done = run_automatic(tmp_path / "a.tif", tmp_path / "l.png")
    np.testing.assert_array_equal(np.asarray(read_volume(tmp_path / "l.png").data), picture > 0)
    assert (done["objects"], done["planes"]) == (1, 1)


def test_a_plane_of_nan_has_no_objects(bright: FakePredictor, tmp_path: Path) -> None:
    """Registered stacks have such planes."""
    data = np.full((3, 20, 20), np.nan, np.float32)
    data[0, 2:12, 2:12] = 1
    data[0, 12:, 12:] = 0
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack")
    assert run_automatic(tmp_path / "a.tif", tmp_path / "l.tif")["planes"] == 3


@pytest.mark.slow
def test_a_stopped_run_is_resumed(
    rods: Path, bright: FakePredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planes that were done are not done again, and the labels are the same."""
    run_automatic(rods, tmp_path / "whole.tif")
    whole = len(bright.calls)

    class Stopped(Exception):
        pass

    run_job, done = automatic.run_automatic_job, []

    def stop_after_four(job: automatic.AutomaticJob) -> Any:
        if len(done) == 4:
            raise Stopped
        done.append(job)
        return run_job(job)

    monkeypatch.setattr(automatic, "run_automatic_job", stop_after_four)
    bright.calls.clear()
    with pytest.raises(Stopped):
        run_automatic(rods, tmp_path / "l.tif")
    half = len(bright.calls)
    monkeypatch.setattr(automatic, "run_automatic_job", run_job)
    run_automatic(rods, tmp_path / "l.tif")
    assert 0 < half < len(bright.calls) == whole
    assert (tmp_path / "l.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_other_settings_and_models_have_files_of_their_own(
    rods: Path, bright: FakePredictor, tmp_path: Path
) -> None:
    """So does another model."""
    planes = tuple(read_volume(rods).planes()[:1])
    job = automatic.AutomaticJob(image=rods, folder=tmp_path, window=(0, 255), items=planes)
    [(_, first)] = automatic.run_automatic_job(job)
    [(_, again)] = automatic.run_automatic_job(job)
    [(_, other)] = automatic.run_automatic_job(replace(job, masks=MaskGeneratorSettings(grid=4)))
    bright.model = "other"
    [(_, another)] = automatic.run_automatic_job(job)
    assert first == again
    assert len({first, other, another}) == 3


@pytest.fixture
def noise(tmp_path: Path) -> tuple[Path, Path]:
    """12 planes of smooth noise, and a network of random weights that takes milliseconds."""
    torch.manual_seed(0)
    config = SegNextConfig(
        size=64, dim=16, depth=1, heads=2, fusion_heads=2, neck_dims=(4, 8, 8, 8), head_dim=8, fit="letterbox"
    )
    model = save_model(SegNext(config).eval(), tmp_path / "tiny.safetensors")
    data = np.random.default_rng(0).integers(0, 255, (12, 8, 8), np.uint8).repeat(5, 1).repeat(5, 2)
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "ZYX"})
    return tmp_path / "a.tif", model


ALL_IN = MaskGeneratorSettings(grid=8, stability=0, least_area=1, most_area=1)
"""A network of random weights is sure of nothing."""


def test_the_command_reports_what_it_found(
    rods: Path, bright: FakePredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its options are the rules; an impossible axis is refused."""
    arguments = ["everything", str(rods), "-o", str(tmp_path / "l.tif"), "--min-area", "200"]
    with pytest.raises(SystemExit) as left:
        app.main([*arguments, "--grid", "8", "--stability", "0.5"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("1 object on 6 planes in ")
    with pytest.raises(SystemExit) as left:
        app.main([*arguments, "--axis", "7"])
    assert left.value.code == 2
    assert "axis must be from 0 to 2" in capsys.readouterr().err


def test_more_than_three_axes_are_refused(tmp_path: Path) -> None:
    """Objects would be linked from one time to the next."""
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((2, 3, 20, 20), np.uint8), imagej=True, metadata={"axes": "TZYX"}
    )
    with pytest.raises(ValueError, match=r"needs a 2-D or 3-D image; .* has shape \(2, 3, 20, 20\)"):
        run_automatic(tmp_path / "a.tif", tmp_path / "l.tif")


@pytest.mark.slow
def test_a_second_run_into_the_same_labels_is_refused(
    rods: Path, bright: FakePredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless they are to be replaced; an OME-Zarr is the user's to remove. Files of others stay."""
    output, folder = tmp_path / "l.tif", tmp_path / ".l.tif.planes"
    folder.mkdir()
    (folder / "mine.npz").write_bytes(b"mine")
    run_automatic(rods, output)
    assert [path.name for path in folder.iterdir()] == ["mine.npz"]
    (folder / "mine.npz").rename(tmp_path / "mine.npz")
    folder.rmdir()
    whole = output.read_bytes()
    output.write_bytes(whole + b"edited since")
    with pytest.raises(ValueError, match=r"l\.tif exists; give another name, or --replace to write it anew"):
        run_automatic(rods, output)
    assert output.read_bytes() == whole + b"edited since"
    with pytest.raises(SystemExit) as left:
        app.main(["everything", str(rods), "-o", str(output), "--replace"])
    assert left.value.code == 0
    assert output.read_bytes() == whole
    (tmp_path / "l.zarr").mkdir()
    (tmp_path / "l.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(ValueError, match=r"l\.zarr holds labels already; remove the folder, or give another"):
        check_new(tmp_path / "l.zarr", replace=True)
