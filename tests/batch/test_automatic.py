"""Everything in a volume: the same labels whoever works, whoever dies, and whenever it was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from napari_lowlat_seg.batch import automatic
from napari_lowlat_seg.batch.automatic import run_everything
from napari_lowlat_seg.batch.mask_generator import MaskGeneratorSettings
from napari_lowlat_seg.cli import app
from napari_lowlat_seg.inference.predictor import Prediction
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.models.checkpoints import save_model
from napari_lowlat_seg.models.segnext import SegNext, SegNextConfig


class Bright:
    """A predictor without a network: what is as bright as the place clicked, nothing on black."""

    model = "bright"
    asked = 0

    def embed(self, image: np.ndarray, window: Any, spacing: Any) -> np.ndarray:
        return image

    def predict_batch(self, embedding: np.ndarray, prompts: Sequence[Sequence[Any]]) -> list[Prediction]:
        self.asked += len(prompts)
        found = []
        for (click,) in prompts:
            here = embedding[tuple(round(v) for v in click.at)]
            soft = ((embedding == here) & (here > 0)).astype(np.float32)
            found.append(Prediction(soft, None, None))  # type: ignore[arg-type]
        return found


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> Bright:
    """In the place of the network, in this process."""
    predictor = Bright()
    monkeypatch.setattr(automatic, "cached_predictor", lambda *_: predictor)
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
def test_objects_run_through_the_volume(rods: Path, bright: Bright, tmp_path: Path, output: str) -> None:
    """Over an empty plane; what is seen on two planes is left out; nothing stays beside the labels."""
    if output.endswith("zarr"):
        pytest.importorskip("ome_zarr")
    done = run_everything(rods, tmp_path / output)
    volume = read_volume(tmp_path / output)
    labels = np.stack([volume.plane(plane) for plane in volume.planes()])
    data = np.asarray(read_volume(rods).data)
    small, large = (set(np.unique(labels[data == value])) for value in (100, 200))
    assert len(small) == len(large) == 1
    assert small | large == {1, 2}
    np.testing.assert_array_equal(labels > 0, np.isin(data, (100, 200)))
    assert (done["objects"], done["planes"]) == (2, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([output, "rods.tif"])


def test_any_axis_will_do(rods: Path, bright: Bright, tmp_path: Path) -> None:
    """Planes of 6 rows are small, so small objects count."""
    run_everything(rods, tmp_path / "l.tif", axis=2, rules=MaskGeneratorSettings(least_area=5))
    labels = np.asarray(read_volume(tmp_path / "l.tif").data)
    np.testing.assert_array_equal(labels > 0, np.asarray(read_volume(rods).data) > 0)


def test_a_picture_is_a_volume_of_one_plane(bright: Bright, tmp_path: Path) -> None:
    """Seen once is enough there."""
    picture = np.zeros((40, 50), np.uint8)
    picture[5:25, 5:25] = 90
    tifffile.imwrite(tmp_path / "a.tif", picture)
    done = run_everything(tmp_path / "a.tif", tmp_path / "l.png")
    np.testing.assert_array_equal(np.asarray(read_volume(tmp_path / "l.png").data), picture > 0)
    assert (done["objects"], done["planes"]) == (1, 1)


def test_a_plane_of_nan_shows_nothing(bright: Bright, tmp_path: Path) -> None:
    """Registered stacks have such planes."""
    data = np.full((3, 20, 20), np.nan, np.float32)
    data[0, 2:12, 2:12] = 1
    data[0, 12:, 12:] = 0
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack")
    assert run_everything(tmp_path / "a.tif", tmp_path / "l.tif")["planes"] == 3


def test_it_goes_on_where_it_stopped(
    rods: Path, bright: Bright, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked at is not looked at again, unless the rules are others; the labels are the same."""
    run_everything(rods, tmp_path / "whole.tif")
    everything = bright.asked

    class Stopped(Exception):
        pass

    look_at, looked = automatic.look_at, []

    def stop_after_four(job: automatic.EverythingJob) -> Any:
        if len(looked) == 4:
            raise Stopped
        looked.append(job)
        return look_at(job)

    monkeypatch.setattr(automatic, "look_at", stop_after_four)
    bright.asked = 0
    with pytest.raises(Stopped):
        run_everything(rods, tmp_path / "l.tif")
    half = bright.asked
    monkeypatch.setattr(automatic, "look_at", look_at)
    run_everything(rods, tmp_path / "l.tif")
    assert 0 < half < bright.asked == everything
    assert (tmp_path / "l.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_other_rules_find_other_files(rods: Path, bright: Bright, tmp_path: Path) -> None:
    """So does another model."""
    job = automatic.EverythingJob(
        rods,
        tmp_path,
        "m",
        "cpu",
        None,
        (0, 255),
        MaskGeneratorSettings(),
        tuple(read_volume(rods).planes()[:1]),
    )
    [(_, first)] = automatic.look_at(job)
    [(_, again)] = automatic.look_at(job)
    [(_, other)] = automatic.look_at(automatic.replace(job, rules=MaskGeneratorSettings(grid=4)))
    bright.model = "other"
    [(_, another)] = automatic.look_at(job)
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


def test_a_worker_killed_in_the_middle_costs_nothing_but_time(
    noise: tuple[Path, Path], deadly_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels are those of one process, to the byte; half a file is no file."""
    image, model = noise
    monkeypatch.setattr(automatic, "BATCH", 1)
    run_everything(image, tmp_path / "one.tif", model=str(model), device="cpu", rules=ALL_IN)
    run_everything(
        image, tmp_path / "two.tif", model=str(model), device="cpu", rules=ALL_IN, scheduler=deadly_cluster
    )
    assert np.asarray(read_volume(tmp_path / "one.tif").data).any()
    assert (tmp_path / "two.tif").read_bytes() == (tmp_path / "one.tif").read_bytes()


def test_the_command_says_what_it_found(
    rods: Path, bright: Bright, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its options are the rules; an impossible axis is refused."""
    arguments = ["everything", str(rods), "-o", str(tmp_path / "l.tif"), "--min-area", "200"]
    with pytest.raises(SystemExit) as left:
        app.main([*arguments, "--grid", "8", "--stability", "0.5"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("1 objects on 6 planes in ")
    with pytest.raises(SystemExit) as left:
        app.main([*arguments, "--axis", "7"])
    assert left.value.code == 2
    assert "axis must be from 0 to 2" in capsys.readouterr().err


def test_more_than_three_axes_are_refused(tmp_path: Path) -> None:
    """Objects would be linked from one time to the next."""
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((2, 3, 20, 20), np.uint8), imagej=True, metadata={"axes": "TZYX"}
    )
    with pytest.raises(ValueError, match=r"in 2-D and 3-D images; .* has shape \(2, 3, 20, 20\)"):
        run_everything(tmp_path / "a.tif", tmp_path / "l.tif")
