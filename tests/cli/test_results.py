"""`lowlat-seg measure` and `export` as a person calls them."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_lowlat_seg.io.files import write_labels
from terminal import Call


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Two objects in a volume."""
    data = np.zeros((4, 6, 8), np.uint8)
    data[1:3, 2:4, 2:4] = 1
    data[0, 0, 0] = 5
    return write_labels(tmp_path / "labels.tif", data)


@pytest.mark.slow
def test_objects_are_measured_into_a_table(call: Call, labels: Path, tmp_path: Path) -> None:
    """With intensities where there is an image; the last line says how many."""
    tifffile.imwrite(tmp_path / "image.tif", np.full((4, 6, 8), 7, np.uint8), photometric="minisblack")
    done = call("measure", labels, "--image", "image.tif", "-o", "t.csv", "--html", "s.html")
    assert (done.status, done.err) == (0, "")
    assert "<h1>Objects in labels.tif</h1>" in (tmp_path / "s.html").read_text()
    assert done.out.startswith("2 objects measured in ")
    first, second, third = (tmp_path / "t.csv").read_text().splitlines()
    assert first.startswith("label,name,axis-0,axis-1,axis-2,centroid-z,centroid-y,centroid-x,unit,")
    assert second.startswith("1,,1.5,2.5,2.5,1.5,2.5,2.5,,8,8,")
    assert third.endswith(",7,0")


NAMES = ("a\"b'c", "<script>x", "a\nb", "a\\b{0}", "=1+1", "a,b;c", "\udcff", "\u2028", "-x", "%s")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_is_text_in_what_is_written(
    name: str, call: Call, labels: Path, tmp_path: Path
) -> None:
    """Tables, pages, outlines and meshes; also a name that is no UTF-8."""
    given = labels.rename(tmp_path / f"{name}.tif")
    done = call("measure", given, "--html", tmp_path / f"{name}.html", "-o", tmp_path / f"{name}.csv")
    assert (done.status, done.err) == (0, "")
    page = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("<h1>") == 1
    with (tmp_path / f"{name}.csv").open(newline="", encoding="utf-8") as table:
        assert [row["label"] for row in csv.DictReader(table)] == ["1", "5"]
    for suffix in ("geojson", "json", "ply"):
        done = call("export", given, "-o", tmp_path / f"{name}.{suffix}")
        assert (done.status, done.err) == (0, ""), suffix
    outlines, coco = (json.loads((tmp_path / f"{name}.{end}").read_text()) for end in ("geojson", "json"))
    assert outlines["image"]["name"] == given.name
    assert coco["images"][0]["file_name"].startswith(given.name)
    assert (tmp_path / f"{name}.ply").read_bytes().count(b"end_header\n") == 1


def test_without_a_file_the_table_is_on_stdout(call: Call, labels: Path) -> None:
    """And nothing else, so that it can be piped."""
    done = call("measure", labels)
    assert done.out.count("\n") == 3
    assert "2 objects measured" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.tif",), "no image file at gone.tif"),
        (("labels.tif", "--image", "gone.tif"), "no image file at gone.tif"),
        (("labels.tif", "-o", "no/t.csv"), "no folder at no; make it first"),
        (("labels.tif", "--html", "no/t.html"), "no folder at no; make it first"),
        (("labels.tif", "--html", "labels.tif"), "labels.tif"),
        (("labels.tif", "-o", "t.txt"), "the table of measurements is a .csv; got 't.txt'"),
        (("labels.tif", "--channel", 0), "a channel is one of the image; give --image"),
        (("labels.tif", "--image", "small.tif"), "must have the image's shape (4, 6, 8); got (3, 3, 3)"),
    ],
)
def test_a_wrong_call_is_one_sentence(
    arguments: tuple[object, ...], message: str, call: Call, labels: Path, tmp_path: Path
) -> None:
    """With status 2, and nothing written."""
    tifffile.imwrite(tmp_path / "small.tif", np.zeros((3, 3, 3), np.uint8), photometric="minisblack")
    done = call("measure", *arguments)
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.tif", "small.tif"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of ome-zarr
@pytest.mark.parametrize("suffix", [".stl", ".ply", ".geojson", ".json", ".nrrd", ".ome.zarr"])
def test_labels_are_exported_by_the_suffix(suffix: str, call: Call, labels: Path, tmp_path: Path) -> None:
    """All objects, or those chosen."""
    done = call("export", labels, "-o", f"a{suffix}")
    assert (done.status, done.out, done.err) == (0, f"2 objects exported: a{suffix}\n", "")
    assert call("export", labels, "-o", f"b{suffix}", "--label", 5).out.startswith("1 object exported")
    assert (tmp_path / f"a{suffix}").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.tif", "-o", "a.ply"), "no image file at gone.tif"),
        (("labels.tif", "-o", "a.xyz"), "labels can be exported as .stl, .ply"),
        (("labels.tif", "-o", "a.ply", "--label", 2), "has no object with label 2; it has 1, 5"),
        (("labels.tif", "-o", "a.dcm"), "give the folder of that series with --image"),
        (("labels.tif", "-o", "no/a.ply"), "no folder at no; make it first"),
        (("labels.tif", "-o", "labels.tif"), "labels.tif is the file of labels itself"),
    ],
)
def test_a_wrong_export_is_one_sentence(
    arguments: tuple[object, ...], message: str, call: Call, labels: Path, tmp_path: Path
) -> None:
    """With status 2, and nothing written."""
    before = labels.read_bytes()
    done = call("export", *arguments)
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["labels.tif"]
    assert labels.read_bytes() == before
