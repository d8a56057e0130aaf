"""Tables, strokes and labels as other programs write them, and options that clash: right or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from fakes import FakePredictor
from napari_lowlat_seg.batch import jobs
from napari_lowlat_seg.io.files import read_volume
from terminal import Call, Done

SMALL, LARGE = (slice(5, 15), slice(4, 14)), (slice(20, 35), slice(20, 40))
RODS = np.zeros((6, 40, 50), np.uint8)
RODS[:, *SMALL] = 100
RODS[:, *LARGE] = 200
"""Two rods: a click at row 12, column 6 of any plane is in the small one, one at row 6, column 12 too,
but (z, y, x) = (2, 12, 6) and (12, 6, 2) are not the same."""


@pytest.fixture(autouse=True)
def bright(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is as bright as at the prompt is the object; a stack of two rods."""
    predictor = FakePredictor()
    monkeypatch.setattr(jobs, "cached_predictor", lambda *_: predictor)
    monkeypatch.setattr("napari_lowlat_seg.inference.predictor.load_predictor", lambda *_, **__: predictor)
    tifffile.imwrite(tmp_path / "rods.tif", RODS, imagej=True, metadata={"axes": "ZYX"})


def refused(done: Done) -> str:
    """The one sentence of a refusal."""
    assert (done.status, done.out) == (2, ""), done
    assert done.err.count("\n") == 1
    return done.err


def sizes(path: Path) -> dict[int, int]:
    """Voxels of each label."""
    labels, counts = np.unique(np.asarray(read_volume(path).data), return_counts=True)
    return {int(label): int(count) for label, count in zip(labels, counts, strict=True) if label}


BOTH = {1: 600, 2: 1800}
TABLES: dict[str, tuple[bytes, dict[int, int] | str]] = {
    "decimal commas": (b"2;12,4;6,2\n3;25,4;30\n", BOTH),
    "decimal commas and names": (b"x;y;z\n6,2;12,4;2\n30;25,4;3\n", BOTH),
    "utf-16": ("z,y,x\n2,12,6\n3,25,30\n".encode("utf-16"), BOTH),
    "utf-16 without a mark": ("2,12,6\n".encode("utf-16-le"), "must hold"),
    "tabs and decimal commas": (b"2\t12,5\t6\n", "must hold"),
    "quotes": (b'"2","12","6"\n"3","25","30"\n', BOTH),
    "line ends of old Macs": (b"2,12,6\r3,25,30\r", BOTH),
    "powers of ten": (b"2.0e0,1.2E1,6\n3,25,30\n", BOTH),
    "names in another order": (b"X,Y,Z\n6,12,2\n30,25,3\n", BOTH),
    "names of columns and rows": (b"column,row,slice\n6,12,2\n30,25,3\n", BOTH),
    "names with a unit": ("X (µm),Y (µm),Z (µm)\n6,12,2\n".encode("latin-1"), "must have columns"),
    "names of Imaris": (b"Position X,Position Y,Position Z\n6,12,2\n", "must have columns"),
    "names of TrackMate": (b"POSITION_X,POSITION_Y,POSITION_Z\n6,12,2\n", "must have columns"),
    "a results table of Fiji": (b" ,Area,X,Y\n1,10,6,12\n", "must have columns"),
    "names of other things": (b"one,two,three\n2,12,6\n3,25,30\n", BOTH),
    "an empty cell": (b"2,,6\n", "must hold"),
    "not a number": (b"2,nan,6\n", "finite"),
    "beyond the last voxel": (b"2,12,60\n", "outside"),
    "four numbers": (b"0,2,12,6\n", "must hold 3 numbers"),
    "nothing": (b"\n \n", "at least one point"),
    "a sentence": (b"no points here\n", "at least one point"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_points_means_its_voxels_or_is_refused(name: str, call: Call, tmp_path: Path) -> None:
    """To the voxel: the two rods, the small one first."""
    content, right = TABLES[name]
    (tmp_path / "points.csv").write_bytes(content)
    done = call("seeds", "rods.tif", "points.csv", "-o", "l.tif")
    if isinstance(right, str):
        assert right in refused(done)
        assert not (tmp_path / "l.tif").exists()
        return
    assert done.status == 0, done.err
    assert sizes(tmp_path / "l.tif") == right
    assert np.array_equal(np.asarray(read_volume(tmp_path / "l.tif").data) == 1, RODS == 100)


STROKES: dict[str, tuple[str, bytes, bool | str]] = {
    "plain": ("s.csv", b"2,12,6\n2,12,8\n", True),
    "names": ("s.csv", b"z,y,x\n2,12,6\n2,12,8\n", True),
    "names in another order": ("s.csv", b"x,y,z\n6,12,2\n8,12,2\n", True),
    "names of napari": ("s.csv", b"index,axis-0,axis-1,axis-2\n0,2,12,6\n1,2,12,8\n", True),
    "names with a unit": ("s.csv", b"X [um],Y [um],Z [um]\n6,12,2\n", "must have columns"),
    "signs": ("s.csv", b"z,y,x,sign\n2,12,6,+\n2,12,8,+\n", True),
    "a mark before json": ("s.json", b"\xef\xbb\xbf" + json.dumps([[2, 12, 6]]).encode(), True),
    "json in utf-16": ("s.json", json.dumps([[2, 12, 6]]).encode("utf-16"), True),
    "numbers in quotes": ("s.json", b'[{"points": [["2", "12", "6"]]}]', True),
    "a word for false": ("s.json", b'[{"points": [[2, 12, 6]], "positive": "false"}]', "true or false"),
    "nan in json": ("s.json", b"[[2, NaN, 6]]", "nan"),
    "infinity in json": ("s.json", b"[[Infinity, 12, 6]]", "inf"),
    "two numbers": ("s.json", b"[[12, 6]]", "3 numbers"),
    "another form": ("s.json", b'{"shapes": []}', "no list of points"),
    "between planes": ("s.json", b"[[2.5, 12, 6]]", "whole numbers"),
    "outside": ("s.json", b"[[2, 12, 600]]", "is outside"),
}


@pytest.mark.parametrize("name", STROKES)
def test_a_stroke_means_its_voxels_or_is_refused(name: str, call: Call, tmp_path: Path) -> None:
    """On plane 2, in the small rod."""
    file, content, right = STROKES[name]
    (tmp_path / file).write_bytes(content)
    done = call("segment", "rods.tif", "-o", "l.tif", "--scribble", file)
    if isinstance(right, str):
        assert right in refused(done)
        return
    assert done.status == 0, done.err
    found = np.asarray(read_volume(tmp_path / "l.tif").data)
    assert np.array_equal(found == 1, (RODS == 100) & (np.arange(6) == 2)[:, None, None])


def as_float(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.float32)


def halves(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.float32) / 2


def negative(labels: np.ndarray) -> np.ndarray:
    return -labels.astype(np.int16)


def beyond_32_bits(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.uint64) * 2**33


def colours(labels: np.ndarray) -> np.ndarray:
    return np.stack([labels, 0 * labels, labels], axis=-1).astype(np.uint8)


LABELS = np.where(RODS == 200, 3, 0)
KINDS: dict[str, tuple[Any, str, str, str]] = {
    # what is in the file; what `segment` into it, `measure` and `export` of it say ("" where they work)
    "uint8": (lambda labels: labels.astype(np.uint8), "", "", ""),
    "int32": (lambda labels: labels.astype(np.int32), "", "", ""),
    "int64": (lambda labels: labels.astype(np.int64), "", "", ""),
    "floats": (as_float, "holds no labels", "", ""),
    "fractions": (halves, "holds no labels", "whole numbers", "whole numbers"),
    "negative": (negative, "from 0 to 4294967295; got -3 to 0", "labels of 0 or more", "from 0"),
    "more than 32 bits": (beyond_32_bits, "from 0 to 4294967295; got 0 to 25769803776", "", "from 0"),
}


@pytest.mark.parametrize("name", KINDS)
def test_labels_of_any_type_stay_what_they_are_or_are_refused(name: str, call: Call, tmp_path: Path) -> None:
    """Nothing is rounded or cut off, and a refusal leaves the file as it was."""
    make, adding, measuring, exporting = KINDS[name]
    np.save(tmp_path / "l.npy", make(LABELS))
    tifffile.imwrite(tmp_path / "l.tif", make(LABELS), metadata={"axes": "ZYX"})
    before = (tmp_path / "l.tif").read_bytes()
    done = call("segment", "rods.tif", "-o", "l.tif", "--click", "2,12,6")
    if adding:
        assert adding in refused(done)
        assert (tmp_path / "l.tif").read_bytes() == before
    else:
        assert sizes(tmp_path / "l.tif") == {3: 1800, 4: 100}
    done = call("measure", "l.npy", "-o", "t.csv")
    if measuring:
        assert measuring in refused(done)
    else:
        line = (tmp_path / "t.csv").read_text().splitlines()[1]
        assert line.startswith(f"{int(make(LABELS).max())},")
    done = call("export", "l.npy", "-o", "e.nrrd")
    if exporting:
        assert exporting in refused(done)
    else:
        assert done.status == 0, done.err
        assert sizes(tmp_path / "e.nrrd") == {3: 1800}


def test_colours_are_no_labels(call: Call, tmp_path: Path) -> None:
    """Of a picture made for the eye nobody knows which colour is which object."""
    Image.fromarray(colours(LABELS[0])).save(tmp_path / "l.png")
    tifffile.imwrite(tmp_path / "one.tif", RODS[0])
    assert "holds no labels" in refused(call("segment", "one.tif", "-o", "l.png", "--click", "12,6"))
    assert "one number a voxel, not colours" in refused(call("export", "l.png", "-o", "e.tif"))
    assert "colours" in refused(call("measure", "l.png"))


CLASHES: dict[str, tuple[tuple[object, ...], str]] = {
    "prompts and a click": (("--prompts", "p.json", "--click", "2,12,6"), "takes the place of"),
    "no prompt": ((), "nothing to segment without a prompt"),
    "a range without the prompt": (("--click", "2,12,6", "--propagate", "3:5"), "is outside"),
    "a range backwards": (("--click", "2,12,6", "--propagate", "4:1"), "must be A:B"),
    "label 0": (("--click", "2,12,6", "--label", "0"), "label"),
    "a threshold of 2": (("--click", "2,12,6", "--threshold", "2"), "threshold"),
    "a negative size": (("--click", "2,12,6", "--drop-small", "-3"), "0 pixels or more"),
    "smoothing that is no number": (("--click", "2,12,6", "--smooth", "nan"), "from 0 to 50"),
    "growing without end": (("--click", "2,12,6", "--grow", "inf"), "from -50 to 50"),
    "a channel of gray": (("--click", "2,12,6", "--channel", "0"), "no channels"),
    "a level of a plain file": (("--click", "2,12,6", "--level", "1"), "level"),
    "a time of none": (("--click", "2,12,6", "--time", "1"), "time"),
    "an axis too many": (("--click", "2,12,6", "--axis", "3"), "axis must be from 0 to 2"),
    "save over the labels": (("--click", "2,12,6", "--save-prompts", "l.tif"), "l.tif"),
    "save over the image": (("--click", "2,12,6", "--save-prompts", "rods.tif"), "rods.tif"),
}


@pytest.mark.parametrize("name", CLASHES)
def test_options_that_clash_are_one_sentence_and_nothing_is_written(
    name: str, call: Call, tmp_path: Path
) -> None:
    """Before the model is asked for anything."""
    options, words = CLASHES[name]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert words in refused(call("segment", "rods.tif", "-o", "l.tif", *options))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
