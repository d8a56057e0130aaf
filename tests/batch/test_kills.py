"""A kill at any step of any command that makes something new: it is there as a whole, or not at all."""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from fakes import FakePredictor
from napari_lowlat_seg.batch import jobs
from napari_lowlat_seg.batch.automatic import run_automatic
from napari_lowlat_seg.batch.jobs import BatchSettings
from napari_lowlat_seg.batch.measure import run_measure
from napari_lowlat_seg.batch.seeds import DISPUTES, run_seeds
from napari_lowlat_seg.cli.segment import SegmentRequest, run_segment
from napari_lowlat_seg.core import atomic_file
from napari_lowlat_seg.core.atomic_file import PREFIX, remove_leftovers
from napari_lowlat_seg.io.chunked.zarr_labels import LabelPyramid
from napari_lowlat_seg.io.exports.export import run_export
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.io.samples import copy_samples

zarr = pytest.importorskip("zarr")
pytest.importorskip("ome_zarr")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")

KILLED = 9
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate")
Command = Callable[[Path], object]
"""From the folder with `rods.tif`, its labels and points."""


def _segment(output: str, **more: Any) -> Command:
    request = SegmentRequest(clicks=("2,10,10",), propagate=":", **more)
    return lambda at: run_segment(at / "rods.tif", at / output, request, model="default", device="cpu")


def _seeds(output: str, *, agreed: bool = False) -> Command:
    return lambda at: run_seeds(at / "rods.tif", at / "points.csv", at / output, agreed=agreed)


def _export(output: str) -> Command:
    return lambda at: run_export(at / "labels.tif", at / output)


COMMANDS: dict[str, Command] = {
    "out.ome.zarr": _segment("out.ome.zarr"),
    "image.ome.zarr/labels/out": _segment("image.ome.zarr/labels/out"),
    "out.tif": _segment("out.tif"),
    "seeds.ome.zarr": _seeds("seeds.ome.zarr"),
    "agreed.ome.zarr": _seeds("agreed.ome.zarr", agreed=True),
    "all.ome.zarr": lambda at: run_automatic(at / "rods.tif", at / "all.ome.zarr"),
    "all.tif": lambda at: run_automatic(at / "rods.tif", at / "all.tif"),
    "window.ome.zarr": lambda at: LabelPyramid.at(at / "window.ome.zarr", read_volume(at / "rods.tif")),
    "samples": lambda at: copy_samples(at / "samples"),
    "table.csv": lambda at: run_measure(at / "labels.tif", output=at / "table.csv"),
    **{name: _export(name) for name in ("e.ome.zarr", "e.stl", "e.ply", "e.geojson", "e.json", "e.nii.gz")},
}


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stack with two rods, their labels, two points and an OME-Zarr of version 0.5."""
    predictor = FakePredictor()
    monkeypatch.setattr(jobs, "cached_predictor", lambda *_: predictor)
    monkeypatch.setattr("napari_lowlat_seg.inference.predictor.load_predictor", lambda *_, **__: predictor)
    at = tmp_path / "inputs"
    at.mkdir()
    data = np.zeros((4, 40, 50), np.uint8)
    data[:, 5:15, 5:15] = 100
    data[:, 20:35, 20:40] = 200
    tifffile.imwrite(at / "rods.tif", data, imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(at / "labels.tif", data // 100, imagej=True, metadata={"axes": "ZYX"})
    (at / "points.csv").write_text("2,10,10\n2,25,30\n")
    zarr.open_group(at / "image.ome.zarr", mode="w", zarr_format=3)
    return at


def killed(command: Command, folder: Path, at: int) -> int:
    """Steps on the disk that a copy of this process has made with a command; it is killed at step `at`."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the threads of libraries are not asked for anything in the copy
        child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event == "open":
                path, _, flags = arguments
                changes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            else:
                path, changes = (arguments or ("",))[0], event in CHANGES
            if changes and str(path).startswith(str(folder)):
                count += 1
                if count == at:
                    os._exit(KILLED)

        try:
            sys.addaudithook(hook)
            command(folder)
            os.write(write, count.to_bytes(4, "little"))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    end = time.monotonic() + 120
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(child, KILLED)
            os.waitpid(child, 0)
            pytest.fail("the copy of this process hangs")
        time.sleep(0.002)
    steps = int.from_bytes(os.read(read, 4), "little")
    os.close(read)
    assert os.waitstatus_to_exitcode(done[1]) == (KILLED if at else 0)
    return steps


def seen(folder: Path) -> set[str]:
    """What a user sees in a folder."""
    return {one.name for one in folder.iterdir() if not one.name.startswith(".")}


def content(path: Path) -> object:
    """What a reader finds: labels, or bytes."""
    if path.name == "samples":
        return {one.name: one.read_bytes() for one in path.iterdir() if not one.name.startswith(".")}
    if path.is_file() and path.suffix not in (".tif", ".gz"):
        return path.read_bytes()
    volume = read_volume(path)
    place = volume.geometry
    assert place is not None
    return np.asarray(volume.data).tobytes(), volume.shape, place.world, place.affine.tolist()


def listed(folder: Path) -> list[str]:
    """Labels that readers find in the image of `inputs`."""
    return list(zarr.open_group(folder / "image.ome.zarr/labels", mode="r").attrs["ome"]["labels"])


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_new_has_its_name_when_it_is_complete(
    name: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a command is killed; then the same command makes it, and a sweep takes what is left."""
    command = COMMANDS[name]
    whole = shutil.copytree(inputs, tmp_path / "whole")
    steps = killed(command, whole, 0)
    right, names = content(whole / name), seen(whole)
    instants = {1, steps // 3, 2 * steps // 3, steps - 1, steps} - {0}
    for at in sorted(instants):
        folder = shutil.copytree(inputs, tmp_path / f"killed-{at}")
        killed(command, folder, at)
        output = folder / name
        if name == "samples":  # several files: each is whole
            assert output.is_dir() is (at > 1)
            if at > 1:
                assert content(output).items() <= right.items()  # type: ignore[attr-defined]
            command(folder)
        elif output.exists():
            assert content(output) == right
        else:
            assert seen(folder) - names == set()
            command(folder)
        assert content(output) == right
        if name.startswith("image"):
            LabelPyramid.at(output, read_volume(folder / "rods.tif"))  # the next who opens it lists it
            assert listed(folder) == ["out"]
        with monkeypatch.context() as later:
            later.setattr(atomic_file, "ABANDONED", -1.0)
            for one in (folder, output.parent, output):
                if one.is_dir():
                    remove_leftovers(one)
        left = {one.name for one in folder.iterdir()} - names
        assert not [one for one in left if one.startswith(PREFIX)]
        assert left <= {f".{name}.planes"}  # killed while the planes were removed


def test_what_is_being_made_is_not_taken_for_a_leftover(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a network works between two writes."""
    monkeypatch.setattr(atomic_file, "ABANDONED", 0.2)
    with LabelPyramid.complete(inputs / "l.ome.zarr", read_volume(inputs / "rods.tif")):
        time.sleep(0.5)
        remove_leftovers(inputs)
    assert read_volume(inputs / "l.ome.zarr").shape == (4, 40, 50)


def test_disputes_are_never_missing_beside_labels(inputs: Path) -> None:
    """They are written before the labels have their name."""
    steps = killed(COMMANDS["agreed.ome.zarr"], inputs, 0)
    assert (inputs / f"agreed.ome.zarr{DISPUTES}").is_file()
    shutil.rmtree(inputs / "agreed.ome.zarr")
    (inputs / f"agreed.ome.zarr{DISPUTES}").unlink()
    killed(COMMANDS["agreed.ome.zarr"], inputs, steps)
    assert (inputs / f"agreed.ome.zarr{DISPUTES}").is_file()


def test_a_run_killed_between_planes_is_resumed(inputs: Path) -> None:
    """With --replace as without; the planes that were done are found under their own names."""
    run_automatic(inputs / "rods.tif", inputs / "all.tif")
    right = content(inputs / "all.tif")

    def again(at: Path) -> object:
        return run_automatic(inputs / "rods.tif", inputs / "all.tif", BatchSettings(replace=True))

    steps = killed(again, inputs, 0)
    killed(again, inputs, steps // 2)
    assert content(inputs / "all.tif") == right  # the old one
    assert (inputs / ".all.tif.planes").is_dir()
    again(inputs)
    assert content(inputs / "all.tif") == right
    assert not (inputs / ".all.tif.planes").exists()
