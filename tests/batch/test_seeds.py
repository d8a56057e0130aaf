"""Many seeds from a file: labels that do not depend on who works, or on the order."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import torch

from fakes import FakePredictor
from napari_lowlat_seg.batch import jobs, seeds
from napari_lowlat_seg.batch.jobs import BatchSettings
from napari_lowlat_seg.batch.seeds import DISPUTES, run_seeds, write_disputes
from napari_lowlat_seg.cli import app
from napari_lowlat_seg.core.masks import PostProcessing
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.models.checkpoints import save_model
from napari_lowlat_seg.models.segnext import SegNext, SegNextConfig
from napari_lowlat_seg.propagation.consensus import Disagreement


@pytest.fixture
def rods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two rods of their own brightness in a stack of 6 planes."""
    monkeypatch.setattr(jobs, "cached_predictor", lambda *_: FakePredictor())
    data = np.zeros((6, 40, 50), np.uint8)
    data[:, 5:15, 5:15] = 100
    data[:, 20:35, 20:40] = 200
    tifffile.imwrite(tmp_path / "rods.tif", data, imagej=True, metadata={"axes": "ZYX"})
    return tmp_path / "rods.tif"


def test_point_i_becomes_label_i(rods: Path, tmp_path: Path) -> None:
    """Through all planes."""
    (tmp_path / "p.csv").write_text("2,10,10\n4,25.4,30\n")
    done = run_seeds(rods, tmp_path / "p.csv", tmp_path / "l.tif")
    data = np.asarray(read_volume(rods).data)
    expected = np.where(data == 100, 1, np.where(data == 200, 2, 0))
    np.testing.assert_array_equal(np.asarray(read_volume(tmp_path / "l.tif").data), expected)
    assert (done["objects"], done["voxels"]) == (2, 6 * (100 + 300))


@pytest.mark.parametrize(
    ("finish", "agreed", "sides"),
    [
        (PostProcessing(grow=1), False, (12, 12)),
        (PostProcessing(grow=-2, largest=True, prompted=True), False, (6, 6)),
        (PostProcessing(smallest=101), False, (0, 0)),
        (PostProcessing(grow=-2), True, (6, 6)),
    ],
)
def test_masks_are_finished_plane_by_plane(
    rods: Path, tmp_path: Path, finish: PostProcessing, agreed: bool, sides: tuple[int, int]
) -> None:
    """The rod of 10 x 10 pixels grows, shrinks, or is dropped as too small on every plane."""
    (tmp_path / "p.csv").write_text("2,10,10\n")
    run_seeds(rods, tmp_path / "p.csv", tmp_path / "l.tif", agreed=agreed, finish=finish)
    found = np.asarray(read_volume(tmp_path / "l.tif").data)[3] == 1
    assert (int(found.any(axis=1).sum()), int(found.any(axis=0).sum())) == sides


def test_a_consensus_with_another_threshold_is_refused(rods: Path, tmp_path: Path) -> None:
    """It is of masks, which have none any more."""
    (tmp_path / "p.csv").write_text("2,10,10\n")
    finish = PostProcessing(threshold=0.7)
    with pytest.raises(ValueError, match=r"at the usual threshold of 0\.49, got 0\.7; leave out"):
        run_seeds(rods, tmp_path / "p.csv", tmp_path / "l.tif", agreed=True, finish=finish)


@pytest.mark.parametrize("output", ["l.tif", "l.zarr"])
def test_the_lower_number_keeps_a_pixel_that_two_objects_claim(
    rods: Path, tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order of jobs: they are run backwards here."""
    if output.endswith("zarr"):
        pytest.importorskip("ome_zarr")
    (tmp_path / "p.csv").write_text("2,10,10\n3,11,11\n")
    monkeypatch.setattr(seeds, "BATCH", 1)
    backwards = lambda _, work, some: ((job, work(job)) for job in reversed(some))  # noqa: E731
    monkeypatch.setattr(jobs, "map_jobs", backwards)
    run_seeds(rods, tmp_path / "p.csv", tmp_path / output)
    volume = read_volume(tmp_path / output)
    labels = np.stack([volume.plane(plane) for plane in volume.planes()])
    assert np.unique(labels).tolist() == [0, 1]


@pytest.mark.parametrize(("workers", "sizes"), [(0, [5]), (1, [5]), (2, [3, 2]), (9, [1] * 5)])
def test_few_seeds_are_shared_among_the_processes(
    rods: Path, tmp_path: Path, workers: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job of all of them would leave the others idle; the labels are the same."""
    (tmp_path / "p.csv").write_text("2,10,10\n3,25,30\n1,11,11\n4,30,30\n5,6,6\n")
    seen: list[int] = []

    def here(_: object, work: Any, some: Any) -> Any:
        seen.extend(len(job.items) for job in some)
        return ((job, work(job)) for job in some)

    monkeypatch.setattr(jobs, "map_jobs", here)
    monkeypatch.setattr(jobs, "connected", lambda *_: nullcontext())
    run_seeds(rods, tmp_path / "p.csv", tmp_path / "l.tif", BatchSettings(workers=workers))
    assert seen == sizes
    labels = np.asarray(read_volume(tmp_path / "l.tif").data)
    assert np.bincount(labels.ravel()).tolist() == [6 * (40 * 50 - 400), 600, 1800]


def test_a_consensus_lists_where_the_axes_disagree(rods: Path, tmp_path: Path) -> None:
    """Along the rods they end where the volume does; across them all is one brightness: nothing to list."""
    (tmp_path / "p.csv").write_text("2,10,10\n4,25,30\n")
    done = run_seeds(rods, tmp_path / "p.csv", tmp_path / "l.tif", agreed=True)
    data = np.asarray(read_volume(rods).data)
    expected = np.where(data == 100, 1, np.where(data == 200, 2, 0))
    np.testing.assert_array_equal(np.asarray(read_volume(tmp_path / "l.tif").data), expected)
    assert (done["objects"], done["voxels"], done["disputes"]) == (2, 6 * (100 + 300), 0)
    assert (tmp_path / f"l.tif{DISPUTES}").read_text().splitlines() == [
        "index,axis-0,axis-1,axis-2,object,voxels,claimed-by"
    ]


def test_disputes_are_a_table_that_napari_opens(tmp_path: Path) -> None:
    """The largest first, whichever job came first."""
    small, large = Disagreement((1, 2, 3), 40, (0, 2)), Disagreement((4, 5, 6), 90, (1,))
    write_disputes(tmp_path / "d.csv", [(1, small), (2, large), (3, large)])
    assert (tmp_path / "d.csv").read_text().splitlines()[1:] == [
        "0,4,5,6,2,90,1", "1,4,5,6,3,90,1", "2,1,2,3,1,40,0+2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "points", ["1,4,3\n", "index,axis-0,axis-1,axis-2,class\n0,1,3,4,rod\n", "i,j,k\n4,3,1\n"]
)
def test_a_seed_means_the_same_voxel_of_a_scan_in_every_order(
    rods: Path, tmp_path: Path, points: str
) -> None:
    """Z,R,C as `segment` takes it, (z, y, x) as napari saves it, and the file's own (i, j, k)."""
    data = np.zeros((9, 7, 5), np.uint8)
    data[3:6, 2:5, :] = 100
    nibabel.save(nibabel.Nifti1Image(data, np.diag([1, 1, 3, 1.0])), tmp_path / "scan.nii.gz")
    (tmp_path / "p.csv").write_text(points)
    run_seeds(tmp_path / "scan.nii.gz", tmp_path / "p.csv", tmp_path / "l.nii.gz")
    labels = np.asarray(read_volume(tmp_path / "l.nii.gz").data)
    np.testing.assert_array_equal(labels, data == 100)


def test_disputes_of_a_scan_lie_on_the_layer_that_napari_shows(tmp_path: Path) -> None:
    """Voxel (i, j, k) is written as (z, y, x), and the axes that claim it are counted alike."""
    write_disputes(tmp_path / "d.csv", [(1, Disagreement((30, 20, 3), 40, (0, 1)))], (2, 1, 0))
    assert (tmp_path / "d.csv").read_text().splitlines()[1:] == ["0,3,20,30,1,40,1+2"]


@pytest.fixture
def noise(tmp_path: Path) -> list[str]:
    """A stack of noise with 20 seeds, and a network of random weights: what `lowlat-seg seeds` is given."""
    torch.manual_seed(0)
    config = SegNextConfig(
        size=64, dim=16, depth=1, heads=2, fusion_heads=2, neck_dims=(4, 8, 8, 8), head_dim=8, fit="letterbox"
    )
    model = save_model(SegNext(config).eval(), tmp_path / "tiny.safetensors")
    rng = np.random.default_rng(0)
    tifffile.imwrite(
        tmp_path / "a.tif", rng.integers(0, 255, (4, 30, 30), np.uint8), imagej=True, metadata={"axes": "ZYX"}
    )
    points = np.column_stack([rng.integers(0, n, 20) for n in (4, 30, 30)])
    (tmp_path / "p.csv").write_text("\n".join(",".join(map(str, p)) for p in points.tolist()))
    return [str(tmp_path / "a.tif"), str(tmp_path / "p.csv"), "--model", str(model), "--device", "cpu"]


def _seeds(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        app.main(["seeds", *arguments])
    assert left.value.code == 0


@pytest.mark.slow
def test_a_cluster_gives_the_same_labels(noise: list[str], tmp_path: Path) -> None:
    """A network of random weights, more seeds than a job holds, two workers; from the command line."""
    pytest.importorskip("distributed")
    _seeds([*noise, "-o", str(tmp_path / "one.tif")])
    _seeds([*noise, "-o", str(tmp_path / "two.tif"), "--workers", "2"])
    assert np.asarray(read_volume(tmp_path / "one.tif").data).any()
    assert (tmp_path / "two.tif").read_bytes() == (tmp_path / "one.tif").read_bytes()


def test_seeds_in_a_2d_image_are_refused(tmp_path: Path) -> None:
    """Nor has it three numbers to a point."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((30, 40), np.uint8))
    (tmp_path / "p.csv").write_text("1,2\n")
    with pytest.raises(ValueError, match=r"seeds are propagated through a 3-D .* has shape \(30, 40\)"):
        run_seeds(tmp_path / "a.tif", tmp_path / "p.csv", tmp_path / "l.tif")
