"""Points from tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.points import read_points


def test_points_that_napari_has_saved_are_read(tmp_path: Path) -> None:
    """Header and index are passed over."""
    path = tmp_path / "p.csv"
    path.write_text("index,axis-0,axis-1,axis-2\n0,1.0,2.5,3.0\n1,0,0,0\n")
    volume = Volume(np.zeros((3, 4, 5), np.uint8))
    assert read_points(path, volume) == [(1, 2.5, 3), (0, 0, 0)]
    path.write_text("axis-0,axis-1,axis-2\n1.0,2.5,3.0\n")
    assert read_points(path, volume) == [(1, 2.5, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n", r"3 numbers per line, inside a volume of \(3, 4, 5\); got '1,2'"),
        ("1,2,x\n", r"got '1,2,x'"),
        ("1,2,9\n", r"got '1,2,9'"),
        ("\n", r"must hold at least one point; it has none"),
    ],
)
def test_other_points_are_refused(tmp_path: Path, text: str, message: str) -> None:
    """With the line that is wrong."""
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_points(path, Volume(np.zeros((3, 4, 5), np.uint8)))


SCAN = Volume(np.zeros((40, 30, 12), np.uint8))
"""As a NIfTI file holds it: planes along axis 2, shown turned round."""


@pytest.mark.parametrize(
    "text",
    [
        "3,20,8\n",  # Z,R,C, as `segment --click` takes them
        "slice,row,column\n3,20,8\n",
        "index,axis-0,axis-1,axis-2\n0,3,8,20\n",
        "z,y,x\n3,8,20\n",
        "X,Y,Z\n20,8,3\n",
        "name,i,j,k\nnucleus,20,8,3\n",
    ],
)
def test_names_of_columns_say_in_which_order_axes_are(tmp_path: Path, text: str) -> None:
    """The same voxel in the order of the command line, of the layer that napari shows, and of the array."""
    (tmp_path / "p.csv").write_text(text)
    assert read_points(tmp_path / "p.csv", SCAN, axis=2, shown=(2, 1, 0)) == [(20, 8, 3)]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("index,axis-0,axis-1,axis-2,class\n0,5,20,25,nucleus\n", "utf-8"),
        ("5,20,25\n", "utf-8-sig"),
        ("index,axis-0,axis-1,axis-2\n0,5,20,25\n", "utf-8-sig"),
        ("z,y,x\n5,20,25\n", "utf-8"),
        ("5,20,25\n,,\n\n", "utf-8"),
        ("\n5, 20, 25\n", "utf-8"),
        ("# by hand\nz;y;x\n5,0;20;25\n", "utf-8"),
        ("5;20;25\n", "utf-8-sig"),
        ("5\t20\t25\r\n# the end\r\n", "utf-8"),
        ("row;col;slice\n20;25;5\n", "utf-8"),
        ("  5 20   25\n", "utf-8"),
        ("z\ty\tx\n5\t20\t25\n", "utf-16"),
        ("z,y,x,Größe\n5,20,25,3\n", "latin-1"),
        ('z,y,x,"a;note"\n5,20,25,"one; two"\n', "utf-8"),
    ],
)
def test_files_of_napari_and_of_spreadsheets_are_read(tmp_path: Path, text: str, encoding: str) -> None:
    """Feature columns, a byte order mark, a first line of words, empty rows."""
    (tmp_path / "p.csv").write_text(text, encoding=encoding)
    assert read_points(tmp_path / "p.csv", Volume(np.zeros((12, 64, 80), np.uint8))) == [(5, 20, 25)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,nan,3\n", r"must hold finite numbers; got '1,nan,3'"),
        ("12,8,20\n", r"a point outside the volume, whose last voxel is 11,39,29; got '12,8,20'"),
        ("z,y,x\n3,30,20\n", r"a point outside the volume, whose last voxel is 11,29,39; got '3,30,20'"),
        ("axis-0,axis-1,axis-2\n3,8\n", r"must hold 3 numbers per line"),
        ("z,y,x\n", r"must hold at least one point; it has none"),
        ("y,x\n8,20\n", r"must have columns for all 3 axes, such as z,y,x; got y,x"),
        ("row,col,frame\n8,20,3\n", r"must have columns for all 3 axes, .*; got row,col,frame"),
        ('3,8,"20\n', r"cannot be read as points: it is no table \(unexpected end of data\)"),
    ],
)
def test_a_refused_point_says_why(tmp_path: Path, text: str, message: str) -> None:
    """With the limits in the order of the file."""
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_points(tmp_path / "p.csv", SCAN, axis=2, shown=(2, 1, 0))


def test_a_missing_file_of_points_is_named(tmp_path: Path) -> None:
    """In one sentence."""
    with pytest.raises(FileNotFoundError, match=r"no file of points at .*p\.csv; check the path"):
        read_points(tmp_path / "p.csv", SCAN)
