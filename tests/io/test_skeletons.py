"""Skeletons and selections of other programs become the voxels that they mean, or one sentence."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_lowlat_seg.core.geometry import Geometry
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.points import read_seeds

EM = Volume(
    np.zeros((20, 30, 40), np.uint8),
    (40, 8, 8),
    geometry=Geometry.from_scale("zyx", (40, 8, 8), (400, 0, 80), ("nm",) * 3),
)
"""(z, y, x) at 40 x 8 x 8 nm, cut out of a larger data set."""

PLAIN = Volume(np.zeros((20, 30, 40), np.uint8))

SWC = """# made by hand
1 1 160.0 80 480 1 -1
2 3 168 80 520 1 1
5 3 80 0 400 1 -1
4 3 88 8 400 1 5
3 3 176 88 520 1 2
"""

NML = """<?xml version="1.0"?>
<things>
  <parameters><scale x="8" y="8" z="40" unit="nanometer"/></parameters>
  <thing id="1" name="axon"><nodes><node id="1" radius="1" x="10" y="20" z="3"/>
  <node id="2" x="11" y="20" z="4"/></nodes>
  <edges><edge source="1" target="2"/></edges></thing>
  <thing id="2"><nodes><node id="3" x="0" y="0" z="0"/></nodes></thing>
  <thing id="3"><nodes/></thing>
</things>
"""


def write(folder: Path, name: str, text: str) -> Path:
    """A file with this text."""
    (folder / name).write_text(text)
    return folder / name


def test_trees_of_a_swc_are_objects_in_the_world_of_the_image(tmp_path: Path) -> None:
    """In the unit that is given; nodes may come in any order."""
    path = write(tmp_path, "a.swc", SWC)
    one, two = read_seeds(path, EM, unit="nm")
    assert np.allclose(one, [(2, 10, 10), (3, 10, 11), (3, 11, 12)])
    assert np.allclose(two, [(0, 0, 0), (0, 1, 1)])
    micrometres = SWC.replace("160.0", "0.16").replace(" 80 480", " 0.08 0.48")
    path = write(tmp_path, "b.swc", micrometres.splitlines()[1])
    assert np.allclose(read_seeds(path, EM, unit="um"), [[(2, 10, 10)]])
    path = write(tmp_path, "c.swc", "1 1 3 2 1 1 -1")
    assert read_seeds(path, PLAIN, unit="voxel") == [[(1, 2, 3)]]


def test_a_long_branch_of_a_swc_is_read(tmp_path: Path) -> None:
    """Without a recursion that ends at a thousand nodes."""
    lines = [f"{i} 3 1 1 1 1 {i + 1 if i < 5000 else -1}" for i in range(1, 5001)]
    (tree,) = read_seeds(write(tmp_path, "a.swc", "\n".join(lines)), PLAIN, unit="voxel")
    assert len(tree) == 5000


def test_nodes_of_webknossos_count_voxels(tmp_path: Path) -> None:
    """Every thing with nodes is an object."""
    one, two = read_seeds(write(tmp_path, "a.nml", NML), EM)
    assert one == [(3, 20, 10), (4, 20, 11)]
    assert two == [(0, 0, 0)]


def test_nodes_of_a_scan_have_its_order_of_axes(tmp_path: Path) -> None:
    """NIfTI's array is (x, y, z)."""
    scan = Volume(
        np.zeros((40, 30, 20)), geometry=Geometry.from_nifti(np.diag([8, 8, 40, 1.0]), 3, unit="mm")
    )
    assert read_seeds(write(tmp_path, "a.nml", NML), scan)[0] == [(10, 20, 3), (11, 20, 4)]


def test_nodes_of_catmaid_are_nm(tmp_path: Path) -> None:
    """Of each skeleton in the table, whatever the order of its columns and lines."""
    text = '"skeleton_id", "treenode_id", "parent_treenode_id", "x", "y", "z", "r"\n'
    text += "7, 1, , 160, 80, 480, 0\n9, 2, , 80, 0, 400, 0\n7, 3, 1, 168, 80, 520, 0\n"
    one, two = read_seeds(write(tmp_path, "a.csv", text), EM)
    assert np.allclose(one, [(2, 10, 10), (3, 10, 11)])
    assert np.allclose(two, [(0, 0, 0)])


def test_points_of_fiji_are_objects(tmp_path: Path) -> None:
    """Alone, with parts of a pixel, and several in one archive."""
    roifile = pytest.importorskip("roifile")
    plain = roifile.ImagejRoi.frompoints([[3, 4]])
    plain.roitype, plain.position = roifile.ROI_TYPE.POINT, 6
    plain.tofile(tmp_path / "a.roi")
    assert read_seeds(tmp_path / "a.roi", PLAIN) == [[(5, 4, 3)]]
    fine = roifile.ImagejRoi.frompoints([[3.5, 4.5], [10.25, 7.5]])
    fine.roitype, fine.z_position = roifile.ROI_TYPE.POINT, 2
    roifile.roiwrite(tmp_path / "a.zip", [fine, plain], mode="w")
    found = read_seeds(tmp_path / "a.zip", PLAIN)
    assert np.allclose(np.concatenate(found), [(1, 4, 3), (1, 7, 9.75), (5, 4, 3)])
    plain.position = 0
    plain.tofile(tmp_path / "b.roi")
    with pytest.raises(ValueError, match="says no slice"):
        read_seeds(tmp_path / "b.roi", PLAIN)
    box = roifile.ImagejRoi.frompoints([[3, 4], [5, 6], [3, 9]])
    box.tofile(tmp_path / "c.roi")
    with pytest.raises(ValueError, match="is no selection of points but"):
        read_seeds(tmp_path / "c.roi", PLAIN)


@given(
    rng=st.integers(0, 2**32 - 1).map(np.random.default_rng),
    kind=st.sampled_from(["roi", "zip", "nml", "swc"]),
)
def test_damaged_bytes_are_read_or_refused(
    rng: np.random.Generator, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By ValueError, never by an error of a parser."""
    roifile = pytest.importorskip("roifile")
    path = tmp_path_factory.mktemp("s") / f"a.{kind}"
    roi = roifile.ImagejRoi.frompoints([[3.5, 4.5], [10.25, 7.5]])
    roi.roitype, roi.z_position = roifile.ROI_TYPE.POINT, 2
    if kind == "zip":
        roifile.roiwrite(path, [roi], mode="w")
    elif kind == "roi":
        roi.tofile(path)
    else:
        path.write_text(NML if kind == "nml" else SWC)
    data = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 6))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    path.write_bytes(bytes(data[: int(rng.integers(len(data)))] if rng.random() < 0.2 else data))
    with contextlib.suppress(ValueError):
        read_seeds(path, EM, unit="nm" if kind == "swc" else None)


@pytest.mark.slow
def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    """Before it is unpacked."""
    pytest.importorskip("roifile")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.roi", bytes(2**28 + 1))
    with pytest.raises(ValueError, match="it unpacks to more than 256 MiB"):
        read_seeds(tmp_path / "a.zip", EM)


@pytest.mark.parametrize(
    ("name", "text", "unit", "message"),
    [
        ("a.swc", SWC, None, "says no unit of its coordinates; give --unit voxel, nm, µm or mm"),
        ("a.swc", SWC, "furlong", "'furlong' is no unit of length"),
        ("a.swc", SWC, "s", "'s' is no unit of length"),
        ("a.swc", SWC, "mm", "outside the volume of shape .* check the unit"),
        ("a.swc", "1 1 nan 2 3 1 -1", "nm", "must hold finite numbers"),
        ("a.swc", "1 1 2 3", "nm", "it is damaged or of another kind"),
        ("a.swc", "1 1 a 2 3 1 -1", "nm", "it is damaged or of another kind"),
        ("a.swc", "1 1 1 2 3 1 2\n2 1 1 2 3 1 1", "nm", "go round in a circle"),
        ("a.swc", "# nothing", "nm", "must hold at least one point"),
        ("a.nml", "<things><thing>", None, "it is damaged or of another kind"),
        ("a.nml", "<a/>", None, "no element 'things'"),
        ("a.nml", "<things/>", None, "must hold at least one point"),
        ("a.nml", "<!DOCTYPE x [<!ENTITY a 'b'>]><things/>", None, "declarations are not read"),
        ("a.nml", NML.replace('z="3"', ""), None, "it is damaged or of another kind"),
        ("a.nml", NML.replace('z="3"', 'z="30"'), None, "outside the volume"),
        ("a.csv", "skeleton_id,x,y,z\n1,2,3\n", None, "it is damaged or of another kind"),
        ("a.csv", "z,y,x\n1,2,3\n", "nm", "--unit is for skeletons"),
    ],
)
def test_what_cannot_be_placed_is_one_sentence(
    name: str, text: str, unit: str | None, message: str, tmp_path: Path
) -> None:
    """Never a guess."""
    with pytest.raises(ValueError, match=message) as refused:
        read_seeds(write(tmp_path, name, text), EM, unit=unit)
    assert "\n" not in str(refused.value)


def test_lengths_mean_nothing_in_an_image_without_a_unit(tmp_path: Path) -> None:
    """Nor x, y, z in a picture; a missing file is said so."""
    with pytest.raises(ValueError, match="names no unit, so nm mean nothing in it; give --unit voxel"):
        read_seeds(write(tmp_path, "a.swc", SWC), PLAIN, unit="nm")
    with pytest.raises(ValueError, match="have x, y, z; the image has the axes y, x"):
        read_seeds(write(tmp_path, "a.swc", SWC), Volume(np.zeros((5, 5))), unit="voxel")
    with pytest.raises(FileNotFoundError, match="no file of points at"):
        read_seeds(tmp_path / "gone.swc", EM)


def test_selections_without_their_library_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra exists."""
    monkeypatch.setitem(__import__("sys").modules, "roifile", None)
    with pytest.raises(ImportError, match=r"pip install napari-lowlat-seg\[roi\]"):
        read_seeds(write(tmp_path, "a.roi", "Iout"), PLAIN)
