"""OME-Zarr: geometry that survives, labels true on every level, and never more read than asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakePredictor
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.volume import Plane, Volume, intensity_window
from napari_lowlat_seg.io.chunked.zarr_labels import LabelPyramid
from napari_lowlat_seg.io.files import check_labels_path, read_volume

zarr = pytest.importorskip("zarr")
pytest.importorskip("ome_zarr")


@pytest.fixture
def data() -> np.ndarray:
    """16-bit noise around 1000."""
    return np.random.default_rng(0).normal(1000, 50, (6, 40, 60)).astype(np.uint16)


def _image(path: Path, data: np.ndarray, axes: str, scale: list[float], fmt: str = "0.5") -> Path:
    """Written by the reference library, two levels."""
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import write_multiscale

    version = FormatV05() if fmt == "0.5" else FormatV04()
    root = zarr.open_group(path, mode="w", zarr_format=3 if fmt == "0.5" else 2)
    transforms = [
        [{"type": "scale", "scale": [*scale[:-2], scale[-2] * f, scale[-1] * f]}] for f in (1.0, 2.0)
    ]
    kinds = {"c": "channel", "t": "time"}
    described = [
        {"name": a, "type": kinds.get(a, "space")} | ({"unit": "micrometer"} if a in "zyx" else {})
        for a in axes
    ]
    write_multiscale(
        [data, data[..., ::2, ::2]],
        root,
        fmt=version,
        axes=described,
        coordinate_transformations=transforms,
    )
    return path


@pytest.mark.parametrize("fmt", ["0.4", "0.5"])
def test_an_image_is_opened_with_its_geometry(fmt: str, data: np.ndarray, tmp_path: Path) -> None:
    """Array on disk, spacing, and a window from the coarsest level."""
    volume = read_volume(_image(tmp_path / "a.ome.zarr", data, "zyx", [4.0, 0.5, 0.25], fmt))
    assert isinstance(volume.data, zarr.Array)
    assert volume.spacing == (4.0, 0.5, 0.25)
    np.testing.assert_array_equal(volume.plane(Plane((3, None, None))), data[3])
    assert volume.window == pytest.approx(intensity_window(data), rel=0.05)
    assert volume.with_window() is volume


def test_channels_and_times_are_axes_as_they_are_named(data: np.ndarray, tmp_path: Path) -> None:
    """A single channel or time needs no choice, two do; times are an axis like any other."""
    one = read_volume(_image(tmp_path / "1.zarr", data[None, None], "tczyx", [1, 1, 4, 0.5, 0.5]))
    assert one.shape == (6, 40, 60)
    np.testing.assert_array_equal(one.plane(Plane((2, None, None))), data[2])
    times = np.stack([data[None], data[None] + 1])
    times = read_volume(_image(tmp_path / "t.zarr", times, "tczyx", [1, 1, 4, 0.5, 0.5]))
    assert times.shape == (2, 6, 40, 60)
    np.testing.assert_array_equal(times.plane(Plane((1, 2, None, None))), data[2] + 1)
    two = _image(tmp_path / "2.zarr", np.stack([data, data + 1]), "czyx", [1, 4, 0.5, 0.5])
    np.testing.assert_array_equal(read_volume(two, channel=1).plane(Plane((2, None, None))), data[2] + 1)
    with pytest.raises(ValueError, match=r"an image of 2 channels needs a channel from 0 to 1; got none"):
        read_volume(two)


def test_a_window_ignores_where_nothing_was_written(tmp_path: Path) -> None:
    """A sparse volume is not shown by its emptiness; 8 bits pass unchanged; all empty leaves it open."""
    data = np.zeros((4, 64, 64), np.uint16)
    data[2, 10:20, 10:20] = np.arange(500, 600).reshape(10, 10)
    window = read_volume(_image(tmp_path / "a.zarr", data, "zyx", [1, 1, 1])).window
    assert window is not None
    assert window[0] >= 500
    small = _image(tmp_path / "b.zarr", data.astype(np.uint8), "zyx", [1, 1, 1])
    assert read_volume(small).window == (0, 255)
    assert read_volume(_image(tmp_path / "c.zarr", data * 0, "zyx", [1, 1, 1])).window is None


def test_other_folders_are_refused_as_images(tmp_path: Path) -> None:
    """A folder without metadata, a file, nothing at all."""
    zarr.open_group(tmp_path / "a.zarr", mode="w")
    with pytest.raises(ValueError, match=r"cannot be read: .*expected an OME-Zarr image with multiscales"):
        read_volume(tmp_path / "a.zarr")
    with pytest.raises(FileNotFoundError, match="no image file at"):
        read_volume(tmp_path / "b.zarr")


def test_without_zarr_the_error_names_the_extra(
    data: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra."""
    path = _image(tmp_path / "a.zarr", data, "zyx", [1, 1, 1])
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"pip install napari-lowlat-seg\[zarr\]"):
        read_volume(path)


def test_labels_keep_the_geometry_of_the_image(data: np.ndarray, tmp_path: Path) -> None:
    """Axes, units and spacing; and they can be read as an image again."""
    like = read_volume(_image(tmp_path / "a.zarr", np.tile(data, (1, 30, 20)), "zyx", [4.0, 0.5, 0.25]))
    labels = LabelPyramid.at(tmp_path / "l.zarr", like)
    assert [level.shape for level in labels.levels] == [(6, 1200, 1200), (6, 600, 600), (6, 300, 300)]
    ome = json.loads((tmp_path / "l.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    assert ome["image-label"] == {}
    (image,) = ome["multiscales"]
    assert [axis["unit"] for axis in image["axes"]] == ["micrometer"] * 3
    assert [d["coordinateTransformations"][0]["scale"] for d in image["datasets"]] == [
        [4.0, 0.5, 0.25], [4.0, 1.0, 0.5], [4.0, 2.0, 1.0],
    ]  # fmt: skip
    again = read_volume(tmp_path / "l.zarr")
    assert (again.shape, again.spacing) == (like.shape, like.spacing)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_level_is_the_finest_one_thinned(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """After any writes: level k shows every 2^k-th pixel, and pixels outside of masks keep their label."""
    like = Volume(np.zeros((2, 700, 1100), np.uint8))
    labels = LabelPyramid.at(tmp_path_factory.mktemp("l") / "l.zarr", like)
    expected = np.zeros(like.shape, np.uint32)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for label in range(1, 4):
        z = data.draw(st.integers(0, 1))
        rows, cols = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
        top, left = data.draw(st.integers(0, 700 - rows)), data.draw(st.integers(0, 1100 - cols))
        mask = rng.random((rows, cols)) < data.draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
        expected[z, top : top + rows, left : left + cols][mask] = label
        labels.write_mask(Plane((z, None, None)), mask, label, (top, left))
    assert len(labels.levels) == 3
    for k, level in enumerate(labels.levels):
        np.testing.assert_array_equal(level[...], expected[:, :: 2**k, :: 2**k])
    np.testing.assert_array_equal(
        labels.read(Plane((0, None, None)), BoundingBox(0, 0, 700, 1100)), expected[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_along_any_axis_reach_every_level(axis: int, tmp_path: Path) -> None:
    """Only the last two axes are thinned: a plane across one of them is not on every level."""
    like = Volume(np.zeros((3, 40, 1100), np.uint8))
    written = LabelPyramid.at(tmp_path / "w.zarr", like)
    filled = LabelPyramid.at(tmp_path / "f.zarr", like)
    expected = np.zeros(like.shape, np.uint32)
    for plane in like.planes(axis)[1:3]:
        labels = np.arange(np.prod(like.sides(plane)), dtype=np.uint32).reshape(like.sides(plane)) % 7
        expected[plane.key()] = labels
        filled.fill(plane, labels)
        for label in range(1, 7):
            written.write_mask(plane, labels == label, label)
    for k, (one, other) in enumerate(zip(written.levels, filled.levels)):
        np.testing.assert_array_equal(one[...], expected[:, :: 2**k, :: 2**k])
        np.testing.assert_array_equal(other[...], expected[:, :: 2**k, :: 2**k])


def test_labels_can_be_continued(tmp_path: Path) -> None:
    """In another session; chunks in which nothing was written take no room."""
    like = Volume(np.zeros((8, 2000, 2000), np.uint8))
    LabelPyramid.at(tmp_path / "l.zarr", like).write_mask(
        Plane((1, None, None)), np.ones((3, 3), bool), 7, (9, 9)
    )
    again = LabelPyramid.at(tmp_path / "l.zarr", like)
    again.write_mask(Plane((1, None, None)), np.ones((2, 2), bool), 8, (11, 11))
    assert again.levels[0][1, 9:13, 9:13].tolist() == [
        [7, 7, 7, 0], [7, 7, 7, 0], [7, 7, 8, 8], [0, 0, 8, 8],
    ]  # fmt: skip
    assert sum(1 for path in (tmp_path / "l.zarr" / "0").rglob("*") if path.is_file()) == 2
    for other in (Volume(np.zeros((8, 9, 9), np.uint8)),):
        with pytest.raises(ValueError, match=r"must be labels of shape \(8, 9, 9\) or not exist; it has"):
            LabelPyramid.at(tmp_path / "l.zarr", other)


def test_an_image_is_not_taken_for_labels(data: np.ndarray, tmp_path: Path) -> None:
    """Writing there would destroy it."""
    path = _image(tmp_path / "a.zarr", data, "zyx", [1, 1, 1])
    with pytest.raises(ValueError, match=r"must be labels of shape \(6, 40, 60\) or not exist"):
        LabelPyramid.at(path, read_volume(path))


def test_labels_along_any_axis_lie_where_they_belong(tmp_path: Path) -> None:
    """A plane cut across the columns."""
    labels = LabelPyramid.at(tmp_path / "l.zarr", Volume(np.zeros((5, 30, 40), np.uint8)))
    labels.write_mask(Plane((None, None, 3)), np.eye(5, 30, dtype=bool), 2)
    assert np.argwhere(labels.levels[0][...]).tolist() == [[i, i, 3] for i in range(5)]


def test_a_folder_may_be_the_place_for_labels(tmp_path: Path) -> None:
    """Other formats need a file."""
    assert check_labels_path(tmp_path / "l.ome.zarr") == tmp_path / "l.ome.zarr"


def _big_stack(path: Path) -> dict[str, Any]:
    """5 planes of 5000 x 5000 with a bright square far from the corner, written in chunks."""
    root = zarr.open_group(path, mode="w")
    array = root.create_array("0", shape=(5, 5000, 5000), chunks=(1, 512, 512), dtype=np.uint8)
    array[:, 4000:4600, 3000:3600] = 200
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": []}]}
    root.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return image


@pytest.mark.slow
def test_a_click_in_a_huge_plane_is_predicted_from_its_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line, OME-Zarr to OME-Zarr, propagated; the labels lie where the object is."""
    from napari_lowlat_seg.cli.segment import SegmentRequest, run_segment

    predictor = FakePredictor()
    monkeypatch.setattr("napari_lowlat_seg.inference.predictor.load_predictor", lambda *_, **__: predictor)
    _big_stack(tmp_path / "a.zarr")
    request = SegmentRequest(clicks=("1,4300,3300",), propagate="0:3", label=9)
    done = run_segment(tmp_path / "a.zarr", tmp_path / "l.zarr", request, model="x", device="cpu")
    assert (done["planes"], done["voxels"]) == (4, 4 * 600 * 600)
    assert {image.shape for image in predictor.embedded} == {(2048, 2048)}
    labels = zarr.open_group(tmp_path / "l.zarr", mode="r")["0"]
    np.testing.assert_array_equal(labels[2, 3990:4610, 2990:3610] == 9, np.pad(np.ones((600, 600), bool), 10))
    assert not labels[4].any()
