"""Every writer of tables, prompts and exports: complete or not there at all, and never over an input."""

from __future__ import annotations

import os
import resource
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from napari_lowlat_seg.batch.measure import run_measure
from napari_lowlat_seg.core.geometry import Geometry
from napari_lowlat_seg.core.prompts import Mask
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.exports.export import run_export
from napari_lowlat_seg.io.files import read_volume, write_labels
from napari_lowlat_seg.io.prompt_files import ObjectPrompts, save_prompts

Writer = Callable[[Path, Path], object]
"""From the file of labels to the output."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links, modes and limits of POSIX")


def prompts(labels: Path, output: Path) -> None:
    """A mask for each plane."""
    volume = read_volume(labels)
    made = {plane: (Mask(volume.plane(plane) > 0),) for plane in volume.planes()}
    save_prompts(output, volume, [ObjectPrompts(1, made)])


WRITERS: dict[str, tuple[str, Writer]] = {
    "measure": ("a.csv", lambda labels, output: run_measure(labels, output=output)),
    "prompts": ("a.json", prompts),
    **{
        suffix: (f"a{suffix}", run_export)
        for suffix in (".stl", ".ply", ".geojson", ".json", ".nrrd", ".seg.nrrd", ".nii.gz", ".tif", ".mrc")
    },
}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Noise of two objects, so that no file is small."""
    data = np.random.default_rng(0).integers(1, 3, (4, 40, 50)).astype(np.uint8)
    data[0, 0, 0] = 0
    geometry = Geometry.from_scale("zyx", (2, 1, 1), units=("µm",) * 3)
    return write_labels(tmp_path / "labels.tif", data, Volume(data, geometry.spacing, geometry=geometry))


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Writer]:
    """(output, function) of each."""
    name, write = WRITERS[request.param]
    return tmp_path / "out" / name, write


def test_a_full_disk_leaves_what_was_there(writer: tuple[Path, Writer], labels: Path) -> None:
    """And nothing beside it; the error names the file."""
    output, write = writer
    output.parent.mkdir()
    output.write_bytes(b"before")
    with full_disk(120), pytest.raises((OSError, ValueError)) as failed:
        write(labels, output)
    assert output.name in str(failed.value)
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    assert output.read_bytes() == b"before"


def test_a_link_stays_a_link_and_a_mode_stays(writer: tuple[Path, Writer], labels: Path) -> None:
    """The file that it points to is replaced."""
    output, write = writer
    output.parent.mkdir()
    real = output.parent / f"real-{output.name}"
    real.write_bytes(b"before")
    real.chmod(0o640)
    output.symlink_to(real)
    write(labels, output)
    assert output.is_symlink()
    assert real.read_bytes() != b"before"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(path.name for path in output.parent.iterdir()) == sorted([output.name, real.name])


def test_what_is_protected_or_no_file_is_refused(writer: tuple[Path, Writer], labels: Path) -> None:
    """Write-protected files, folders, devices, and folders that are not there."""
    output, write = writer
    with pytest.raises(OSError, match="make it first"):
        write(labels, output)
    output.parent.mkdir()
    output.write_bytes(b"before")
    output.chmod(0o444)
    with pytest.raises(PermissionError, match="write-protected"):
        write(labels, output)
    assert output.read_bytes() == b"before"
    output.unlink()
    output.symlink_to("/dev/full")
    with pytest.raises(OSError, match="is no ordinary file"):
        write(labels, output)
    output.unlink()
    output.mkdir()
    with pytest.raises(IsADirectoryError):
        write(labels, output)
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "prompts"])
def test_an_input_is_never_written_over(name: str, labels: Path, tmp_path: Path) -> None:
    """Neither by its name nor by a link."""
    output, write = WRITERS[name]
    before = labels.read_bytes()
    os.link(labels, tmp_path / output)
    with pytest.raises(ValueError, match="is the file of labels itself"):
        write(labels, tmp_path / output)
    assert labels.read_bytes() == before
