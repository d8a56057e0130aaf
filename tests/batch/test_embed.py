"""Embedding in advance: what a cluster writes is what one process writes, and nothing is made twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import torch

from napari_lowlat_seg.batch import embed
from napari_lowlat_seg.batch.embed import EmbedJob, run_embed, run_embed_job
from napari_lowlat_seg.batch.jobs import BatchSettings
from napari_lowlat_seg.cli import app
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.inference.predictor import Predictor, load_predictor
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.propagation.sweep import embed_plane
from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache, EmbeddingKey


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A TIFF of 20 planes of noise, 16 bits."""
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.random.default_rng(0).integers(0, 999, (20, 30, 40)).astype(np.uint16))
    return path


def on_cpu(model: Path, **settings: Any) -> BatchSettings:
    return BatchSettings(model=str(model), device="cpu", **settings)


def _job(
    stack: Path, tiny: Path, folder: Path, window: tuple[float, float] | None, planes: tuple[Plane, ...]
) -> EmbedJob:
    return EmbedJob(image=stack, folder=folder / "cache", settings=on_cpu(tiny), window=window, items=planes)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_click_finds_the_embedding_made_in_advance(tiny: Path, stack: Path, tmp_path: Path) -> None:
    """Same key, same features as embedding it now."""
    done = run_embed(stack, tmp_path / "cache", on_cpu(tiny))
    assert (done["planes"], done["made"]) == (20, 20)
    predictor = load_predictor(str(tiny), device="cpu")
    volume = read_volume(stack).with_window()
    plane = volume.planes()[13]
    cache = EmbeddingCache(folder=tmp_path / "cache")
    found = cache.get(EmbeddingKey.of(predictor, volume, plane))
    assert found is not None
    fresh = EmbeddingCache().ensure(
        EmbeddingKey.of(predictor, volume, plane), lambda: embed_plane(predictor, volume, plane)
    )
    assert all(torch.equal(a, b) for a, b in zip(found.features, fresh.features))
    assert cache.nbytes.disk == done["bytes"]


@pytest.mark.parametrize(("axis", "count"), [(None, 5), (0, 3), (2, 5)])
def test_a_scan_is_embedded_as_a_window_shows_it(
    tiny: Path, tmp_path: Path, axis: int | None, count: int
) -> None:
    """(z, y, x), across the axis of the file that was asked for; beside the file if no folder was."""
    path = tmp_path / "scan.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 999, (3, 4, 5)).astype(np.int16)
    scan = nibabel.Nifti1Image(voxels, np.diag([1, 1, 2.5, 1]))
    scan.to_filename(path)
    done = run_embed(path, settings=on_cpu(tiny, axis=axis))
    assert (done["made"], done["folder"]) == (count, tmp_path / "scan.nii.gz.embeddings")
    shown = Volume(voxels.transpose(), (2.5, 1, 1)).with_window()
    predictor = load_predictor(str(tiny), device="cpu")
    cache = EmbeddingCache(0, 0, done["folder"])
    planes = shown.planes(2 if axis == 0 else 0)
    assert all(EmbeddingKey.of(predictor, shown, plane) in cache for plane in planes)


def test_a_stopped_run_is_resumed(tiny: Path, stack: Path, tmp_path: Path) -> None:
    """What is there is not made again; what was lost is, to the byte."""
    folder = tmp_path / "cache"
    run_embed(stack, folder, on_cpu(tiny))
    before = _files(folder)
    for name in list(before)[:3]:
        (folder / name).unlink()
    assert run_embed(stack, folder, on_cpu(tiny))["made"] == 3
    assert _files(folder) == before


# The next test has a cluster and every byte too, that of seeds two workers of this machine.
@pytest.mark.slow
@pytest.mark.thorough
def test_a_cluster_writes_the_same_bytes(tiny: Path, stack: Path, tmp_path: Path) -> None:
    """Two workers, batches of planes, every file equal."""
    pytest.importorskip("distributed")
    run_embed(stack, tmp_path / "one", on_cpu(tiny))
    done = run_embed(stack, tmp_path / "two", on_cpu(tiny, workers=2))
    assert (done["planes"], done["made"]) == (20, 20)
    assert _files(tmp_path / "two") == _files(tmp_path / "one")


@pytest.mark.slow
def test_a_killed_worker_changes_no_result(
    tiny: Path, stack: Path, deadly_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is there and whole; what the dead left is no embedding."""
    monkeypatch.setattr(embed, "BATCH", 1)
    run_embed(stack, tmp_path / "one", on_cpu(tiny))
    done = run_embed(stack, tmp_path / "two", on_cpu(tiny, scheduler=deadly_cluster))
    assert done["planes"] == 20
    written, expected = _files(tmp_path / "two"), _files(tmp_path / "one")
    assert {name: written[name] for name in expected} == expected


def test_a_plane_of_nan_is_skipped(tiny: Path, tmp_path: Path) -> None:
    """Registered stacks have such planes."""
    data = np.random.default_rng(0).normal(size=(3, 20, 20)).astype(np.float32)
    data[1] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack")
    done = run_embed(tmp_path / "a.tif", tmp_path / "cache", on_cpu(tiny))
    assert (done["planes"], done["made"]) == (3, 2)


def test_other_errors_are_raised(tiny: Path, stack: Path, tmp_path: Path) -> None:
    """A window that is none is a mistake, not an empty plane."""
    volume = read_volume(stack)
    planes = tuple(volume.planes()[:1])
    job = _job(stack, tiny, tmp_path, (9.0, 1.0), planes)
    with pytest.raises(ValueError, match=r"needs finite low < high; got \(9\.0, 1\.0\)"):
        run_embed_job(job)


def test_a_full_disk_is_an_error(
    tiny: Path, stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job fails, and a cluster would try it elsewhere."""

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    planes = tuple(read_volume(stack).planes()[:2])
    job = _job(stack, tiny, tmp_path, None, planes)
    with (
        pytest.warns(RuntimeWarning, match="No space left"),
        pytest.raises(OSError, match=r"cannot be written to .*cache; make room there"),
    ):
        run_embed_job(job)


def test_the_command_reports_what_it_did(
    tiny: Path, stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And refuses an axis that is not there."""
    arguments = ["embed", str(stack), "-o", str(tmp_path / "cache"), "--model", str(tiny), "--device", "cpu"]
    with pytest.raises(SystemExit) as left:
        app.main([*arguments, "--axis", "1"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("30 planes embedded (30 new), ")
    with pytest.raises(SystemExit) as left:
        app.main([*arguments, "--axis", "7"])
    assert left.value.code == 2
    assert "axis must be from 0 to 2" in capsys.readouterr().err


def test_a_job_holds_all_that_a_worker_needs(tiny: Path, stack: Path, tmp_path: Path) -> None:
    """The window comes with it: a worker that has other planes must not choose another."""
    planes = tuple(read_volume(stack).planes()[:1])
    job = _job(stack, tiny, tmp_path, (0.0, 500.0), planes)
    assert run_embed_job(job) == 1
    assert run_embed_job(job) == 0
    assert run_embed_job(replace(job, window=(0.0, 600.0))) == 1
    predictor: Predictor = load_predictor(str(tiny), device="cpu")
    volume = replace(read_volume(stack), window=(0.0, 600.0))
    assert EmbeddingKey.of(predictor, volume, planes[0]) in EmbeddingCache(folder=tmp_path / "cache")
