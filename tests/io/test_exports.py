"""Exports lie where the labels lie, name what they hold, and are refused before anything is written."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pydicom
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import points_in_poly

from napari_lowlat_seg.batch.measure import measure
from napari_lowlat_seg.core.atomic_file import ABANDONED, PREFIX, remove_leftovers
from napari_lowlat_seg.core.geometry import Axis, Geometry
from napari_lowlat_seg.core.raster import from_run_lengths
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.exports import dicom_seg, meshes, slabs
from napari_lowlat_seg.io.exports.export import EXPORTS, check_export, run_export, write_export
from napari_lowlat_seg.io.exports.meshes import surfaces
from napari_lowlat_seg.io.exports.outlines import polygons
from napari_lowlat_seg.io.exports.slabs import Slabs
from napari_lowlat_seg.io.files import read_volume, write_labels

rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def placed(data: np.ndarray, matrix: Any, unit: str | None = "µm") -> Volume:
    """Labels with an affine, translated."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, (10, -20, 30)
    geometry = Geometry(tuple(Axis(name, unit=unit) for name in "zyx"), affine)
    return Volume(data, geometry.spacing, name="labels", geometry=geometry)


def blocks() -> np.ndarray:
    """Two boxes, of labels 3 and 70,000."""
    data = np.zeros((7, 9, 8), np.uint32)
    data[1:4, 2:7, 3:6] = 3
    data[5:, 0:2, 5:] = 70_000
    return data


def joined(labels: Volume) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Points and triangles of each object, as a .ply has them."""
    pieces = list(surfaces(Slabs(labels)))
    points = np.concatenate([piece.points[piece.numbers >= piece.fresh] for piece in pieces])
    faces: dict[int, list[np.ndarray]] = {}
    for piece in pieces:
        np.testing.assert_array_equal(points[piece.numbers], piece.points)
        faces.setdefault(piece.label, []).append(piece.numbers[piece.triangles])
    found = {}
    for label, parts in faces.items():
        used, numbers = np.unique(np.concatenate(parts), return_inverse=True)
        found[label] = points[used], numbers.reshape(-1, 3)
    return found


@pytest.mark.slow
@settings(max_examples=40)
@given(
    rng=rngs,
    order=st.permutations(range(3)),
    flips=st.sets(st.integers(0, 2)),
    voxels=st.sampled_from((1, 150, 10**6)),
)
def test_surfaces_are_closed_and_lie_around_their_voxels(
    rng: np.random.Generator, order: list[int], flips: set[int], voxels: int
) -> None:
    """Whatever the axes and the thickness of the slabs: normals lead outward, corners are shared."""
    volume = placed(blocks(), np.diag((3, 0.5, 0.7)) @ (np.eye(3) + 0.2 * rng.normal(size=(3, 3))))
    assert volume.geometry is not None
    geometry, data = volume.geometry.transpose(order), blocks().transpose(order)
    for axis in flips:
        geometry, data = geometry.flip(axis, data.shape[axis]), np.flip(data, axis)
    turned = Volume(data, geometry=geometry)
    with patch.object(slabs, "VOXELS", voxels):
        found = joined(turned)
    assert sorted(found) == [3, 70_000]
    sizes = {one.label: one.surface for one in measure(turned)}
    for label, (points, faces) in found.items():
        mesh = trimesh.Trimesh(points, faces, process=False)  # corners that slabs share are one
        assert mesh.is_watertight
        assert mesh.volume > 0
        assert mesh.area == pytest.approx(sizes[label], rel=1e-5)
        index = volume.geometry.to_index(points[:, ::-1])  # (x, y, z) in the file, (z, y, x) in the world
        where = np.argwhere(blocks() == label)
        np.testing.assert_allclose(index.min(axis=0), where.min(axis=0) - 0.5, atol=1e-5)
        np.testing.assert_allclose(index.max(axis=0), where.max(axis=0) + 0.5, atol=1e-5)


@pytest.mark.parametrize("name", ["a.stl", "a.ply", "A.PLY"])
def test_other_programs_read_the_meshes(name: str, tmp_path: Path) -> None:
    """In world units; the file says which, and .ply whose triangle it is."""
    volume = placed(blocks(), np.diag((3, 0.5, 0.7)))
    write_export(tmp_path / name, volume, names={3: "nucleus\nof a cell"})
    mesh = trimesh.load(tmp_path / name, file_type=name[-3:].lower(), process=False)
    ours = list(joined(volume).values())
    assert len(mesh.faces) == sum(len(faces) for _, faces in ours)
    both = np.concatenate([points for points, _ in ours])
    np.testing.assert_allclose(mesh.bounds, [both.min(axis=0), both.max(axis=0)], rtol=1e-6)
    head = (tmp_path / name).read_bytes()[:600]
    assert b"unit micrometer" in head
    if name.lower().endswith("ply"):
        assert b"comment label 3: nucleus of a cell\n" in head
        rows = (tmp_path / name).read_bytes()[-17 * len(mesh.faces) :]
        labels = np.frombuffer(rows, [("n", "u1"), ("corners", "<i4", 3), ("label", "<u4")])["label"]
        assert labels.tolist() == [3] * len(ours[0][1]) + [70_000] * len(ours[1][1])


@given(rng=rngs, corner=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_outlines_hold_the_centres_of_their_pixels_and_no_other(
    rng: np.random.Generator, corner: tuple[int, int]
) -> None:
    """With holes, islands in holes, and pixels that touch at a corner; directions as RFC 7946 has them."""
    mask = rng.random(rng.integers(1, 12, 2)) < rng.choice([0.3, 0.6, 0.9])
    found = polygons(mask, corner)
    centres = np.argwhere(np.ones_like(mask))[:, ::-1] + 0.5 + np.array(corner)[::-1]
    inside = np.zeros(len(centres), np.int64)
    for rings in found:
        for ring in rings:
            assert ring[0] == ring[-1]
            inside += points_in_poly(centres, np.array(ring))
        areas = [_area(ring) for ring in rings]
        assert areas[0] > 0
        assert all(area < 0 for area in areas[1:])
    assert np.array_equal(inside % 2 == 1, mask.ravel())


def _area(ring: list[list[float]]) -> float:
    x, y = np.array(ring).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


def test_geojson_says_plane_label_name_and_place(tmp_path: Path) -> None:
    """As QuPath reads it; the affine is that of the array as it is shown."""
    volume = placed(blocks().transpose(2, 1, 0), np.diag((3, 0.5, 0.7))[:, [2, 1, 0]])
    write_export(tmp_path / "a.geojson", volume, names={3: "nucleus"})
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    first = content["features"][0]
    assert first["properties"] == {"objectType": "annotation", "label": 3, "name": "nucleus", "position": [1]}
    assert first["geometry"]["plane"] == {"c": -1, "z": 1, "t": 0}
    xs, ys = np.array(first["geometry"]["coordinates"][0]).T
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (3, 6, 2, 7)
    assert len(content["features"]) == 5
    assert content["features"][-1]["properties"]["name"] == "object 70000"
    assert content["image"]["shape"] == [7, 9, 8]
    np.testing.assert_allclose(np.diag(content["image"]["affine"]), (3, 0.5, 0.7, 1))
    assert [axis["name"] for axis in content["image"]["world"]] == ["z", "y", "x"]


@pytest.mark.slow
@given(rng=rngs)
def test_coco_gives_every_mask_back(
    rng: np.random.Generator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Run lengths, area and box of each object on each plane, also in time."""
    labels = rng.integers(0, 3, (2, 3, *rng.integers(1, 7, 2))).astype(np.uint8)
    geometry = Geometry.from_scale("tzyx")
    path = tmp_path_factory.mktemp("c") / "a.json"
    write_export(path, Volume(labels, name="film", geometry=geometry), names={1: "cell"})
    content = json.loads(path.read_text())
    made = np.zeros_like(labels)
    images = {one["id"]: one for one in content["images"]}
    for one in content["annotations"]:
        image = images[one["image_id"]]
        mask = from_run_lengths(one["segmentation"]["counts"], tuple(one["segmentation"]["size"]))
        assert mask.shape == (image["height"], image["width"])
        assert 0 not in one["segmentation"]["counts"][1:]
        rows, cols = np.nonzero(mask)
        left, top = cols.min(), rows.min()
        assert one["bbox"] == [left, top, cols.max() - left + 1, rows.max() - top + 1]
        assert one["area"] == len(rows)
        made[tuple(image["position"])][mask] = one["category_id"]
    assert np.array_equal(made, labels)
    assert [c["id"] for c in content["categories"]] == np.unique(labels[labels > 0]).tolist()


def write_series(folder: Path) -> None:
    """A CT of four oblique slices without a thickness, files in another order than places."""
    along, down = np.array([0.8, 0.6, 0]), np.array([-0.6, 0.8, 0])
    folder.mkdir()
    for i in range(4):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        slice_ = pydicom.Dataset()
        slice_.file_meta = meta
        slice_.SOPClassUID, slice_.SOPInstanceUID = (
            pydicom.uid.CTImageStorage,
            meta.MediaStorageSOPInstanceUID,
        )
        slice_.SeriesInstanceUID, slice_.StudyInstanceUID, slice_.FrameOfReferenceUID = (
            "1.2.3",
            "1.2",
            "1.2.9",
        )
        slice_.Modality, slice_.PatientName, slice_.PatientID = "CT", "A^B", "7"
        slice_.PatientBirthDate = slice_.PatientSex = slice_.StudyID = slice_.AccessionNumber = ""
        slice_.StudyDate = slice_.StudyTime = slice_.ReferringPhysicianName = ""
        slice_.SeriesNumber, slice_.InstanceNumber = 1, i + 1
        slice_.Rows, slice_.Columns = 5, 6
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 0
        slice_.ImageOrientationPatient = [*along, *down]
        slice_.ImagePositionPatient = [10, 20, 30 + 2 * i]
        slice_.PixelSpacing = [0.5, 0.25]
        slice_.PixelData = np.full((5, 6), i, "<u2").tobytes()
        slice_.save_as(folder / f"{(i * 3) % 4}.dcm", enforce_file_format=True)


@pytest.mark.slow
def test_a_dicom_segmentation_lies_on_its_series(tmp_path: Path) -> None:
    """Each segment voxel by voxel where the object is, with its name and its label."""
    from highdicom.seg import segread

    write_series(tmp_path / "ct")
    image = read_volume(tmp_path / "ct")
    data = np.zeros(image.shape, np.uint16)
    data[1:3, 1:4, 2:5] = 300
    data[3, 0, 0] = 7
    write_labels(tmp_path / "l.nii.gz", data, image)
    done = run_export(tmp_path / "l.nii.gz", tmp_path / "seg.dcm", image=tmp_path / "ct")
    assert done["objects"] == 2
    found = segread(tmp_path / "seg.dcm")
    assert [str(d.SegmentLabel) for d in found.SegmentSequence] == ["object 7", "object 300"]
    assert [str(d.TrackingID) for d in found.SegmentSequence] == ["7", "300"]
    assert (found.PatientID, found.StudyInstanceUID, found.FrameOfReferenceUID) == ("7", "1.2", "1.2.9")
    volume = found.get_volume(combine_segments=True)
    for number, label in enumerate((7, 300), start=1):
        theirs = volume.map_indices_to_reference(np.argwhere(volume.array == number))
        assert image.geometry is not None
        ours = image.geometry.to_world(np.argwhere(data == label))[:, ::-1] * (-1, -1, 1)  # to LPS+
        assert {tuple(np.round(p, 3)) for p in theirs} == {tuple(np.round(p, 3)) for p in ours}


def test_a_series_without_what_a_segmentation_refers_to_is_refused(tmp_path: Path) -> None:
    """As anonymizers leave it; and labels without an object."""
    write_series(tmp_path / "ct")
    image = read_volume(tmp_path / "ct")
    with pytest.raises(ValueError, match="holds no object; there is nothing to export"):
        write_export(
            tmp_path / "a.dcm", Volume(np.zeros(image.shape, int), geometry=image.geometry), image=image
        )
    for file in (tmp_path / "ct").iterdir():
        slice_ = pydicom.dcmread(file)
        del slice_.StudyInstanceUID
        slice_.save_as(file)
    with pytest.raises(ValueError, match=r"can refer to this series \(it lacks StudyInstanceUID\)"):
        write_export(
            tmp_path / "a.dcm", Volume(np.ones(image.shape, int), geometry=image.geometry), image=image
        )
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]


def test_a_full_disk_leaves_no_half_segmentation(tmp_path: Path) -> None:
    """What was there is untouched, and nothing is beside it."""
    write_series(tmp_path / "ct")
    image = read_volume(tmp_path / "ct")
    write_labels(tmp_path / "l.nrrd", np.ones(image.shape, np.uint8), image)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "seg.dcm").write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError, match=r"seg\.dcm"):
            run_export(tmp_path / "l.nrrd", tmp_path / "out" / "seg.dcm", image=tmp_path / "ct")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["seg.dcm"]
    assert (tmp_path / "out" / "seg.dcm").read_bytes() == b"before"


@pytest.mark.parametrize("suffix", [".nrrd", ".seg.nrrd", ".ome.tif", ".nii.gz", ".ome.zarr", ".tif"])
def test_other_suffixes_convert_the_labels(suffix: str, tmp_path: Path) -> None:
    """A voxel lies where it lay."""
    volume = placed(blocks(), np.diag((3, 0.5, 0.7)))
    write_labels(tmp_path / "a.nrrd", blocks(), volume)
    run_export(tmp_path / "a.nrrd", tmp_path / f"b{suffix}", only=[70_000])
    again = read_volume(tmp_path / f"b{suffix}")
    assert again.geometry is not None
    assert volume.geometry is not None
    there = again.geometry.in_unit("µm").to_world(np.argwhere(np.asarray(again.data) == 70_000))
    here = volume.geometry.to_world(np.argwhere(blocks() == 70_000))
    assert {tuple(np.round(p, 3)) for p in there} == {tuple(np.round(p, 3)) for p in here}
    assert set(np.unique(again.data)) == {0, 70_000}


@pytest.mark.parametrize("name", ["a.stl", "a.ply", "a.geojson", "a.json", "a.ome.zarr", "a.tif"])
def test_an_export_counts_its_planes_and_can_be_cancelled(name: str, tmp_path: Path) -> None:
    """In slabs of one plane; nothing is left of one that is cancelled, also where a file was."""
    heard: list[tuple[int, int | None]] = []
    with patch.object(slabs, "VOXELS", 1):
        assert (
            write_export(tmp_path / name, placed(blocks(), np.eye(3)), progress=lambda *n: heard.append(n))
            == 2
        )
        assert heard == [(done, 7) for done in range(1, 8)]

        def stop(done: int, total: int | None) -> None:
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_export(tmp_path / f"b{name}", placed(blocks(), np.eye(3)), progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == [name]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from napari_lowlat_seg.core import atomic_file
from napari_lowlat_seg.core.geometry import Geometry
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.exports import slabs
from napari_lowlat_seg.io.exports.export import write_export

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

slabs.VOXELS = 1
labels = np.zeros((7, 300, 300), np.uint16)
labels[1:6, 20:250, 30:280] = 7
labels = Volume(labels, geometry=Geometry.from_scale("zyx", (3, 2, 2), units=["nm"] * 3))
for name in sys.argv[2:]:
    for when in ("half", "before the rename"):
        if os.fork():
            os.wait()
            continue
        path = Path(sys.argv[1]) / f"{when}" / name
        path.parent.mkdir(exist_ok=True)
        if when == "half":
            write_export(path, labels, progress=lambda done, total: done == 4 and kill())
        else:
            atomic_file.os.replace = Path.rename = kill
            write_export(path, labels)
        os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_conversion_that_is_killed_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    """In the middle and just before the end; the next one works, and removes old leftovers."""
    names = [
        "a.ome.zarr",
        "a.tif",
        "a.ome.tif",
        "a.nii.gz",
        "a.nrrd",
        "a.mrc",
        "a.stl",
        "a.geojson",
        "a.json",
    ]
    subprocess.run([sys.executable, "-c", KILLED, tmp_path, *names], check=True, timeout=300)
    for when in ("half", "before the rename"):
        left = list((tmp_path / when).iterdir())
        assert [path.name for path in left if not path.name.startswith(PREFIX)] == []
        for path in left:
            for one in (path, *path.rglob("*")):
                os.utime(one, (time.time() - ABANDONED - 60,) * 2)
        assert any(path.is_dir() for path in left)
        write_export(tmp_path / when / "a.tif", placed(blocks(), np.eye(3)))
        assert [path.name for path in (tmp_path / when).iterdir()] == ["a.tif"]
        write_export(tmp_path / when / "a.ome.zarr", placed(blocks(), np.eye(3)))
        assert np.array_equal(read_volume(tmp_path / when / "a.ome.zarr").data, blocks())


def test_a_leftover_in_which_something_is_still_written_stays(tmp_path: Path) -> None:
    """A long conversion changes files deep inside its folder, and not the folder."""
    left = tmp_path / f"{PREFIX}0123456789ab-a.ome.zarr"
    (left / "0" / "c").mkdir(parents=True)
    (left / "0" / "c" / "0").touch()
    for one in (left, left / "0", left / "0" / "c"):
        os.utime(one, (time.time() - ABANDONED - 60,) * 2)
    remove_leftovers(tmp_path)
    assert (left / "0" / "c" / "0").exists()


def test_labels_in_an_image_are_listed_when_they_are_complete(tmp_path: Path) -> None:
    """Under their own name, and not before."""
    zarr = pytest.importorskip("zarr")
    write_export(tmp_path / "i.ome.zarr", placed(blocks(), np.eye(3)))
    place = tmp_path / "i.ome.zarr" / "labels" / "mine"

    def listed() -> list[str]:
        return list(zarr.open_group(place.parent).attrs.asdict().get("ome", {}).get("labels", []))

    def stop(done: int, total: int | None) -> None:
        assert listed() == []
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_export(place, placed(blocks(), np.eye(3)), progress=stop)
    assert [path.name for path in place.parent.iterdir() if path.is_dir()] == []
    write_export(place, placed(blocks(), np.eye(3)))
    assert listed() == ["mine"]


def test_every_level_of_an_exported_ome_zarr_is_written(tmp_path: Path) -> None:
    """What is seen from afar is what is there."""
    zarr = pytest.importorskip("zarr")
    data = np.zeros((600, 2, 600), np.uint16)
    data[100:500, 1, 200:300] = 7
    geometry = Geometry.from_scale("yzx", (1, 2, 1), units=["nm"] * 3)
    write_export(tmp_path / "a.ome.zarr", Volume(data, geometry=geometry))
    fine, coarse = (zarr.open_group(tmp_path / "a.ome.zarr")[level][:] for level in "01")
    np.testing.assert_array_equal(fine, data.transpose(1, 0, 2))
    np.testing.assert_array_equal(coarse, fine[:, ::2, ::2])


def test_more_than_a_format_counts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triangles, corners and segments."""
    monkeypatch.setattr(meshes, "MOST", 50)
    for name, what in (("a.stl", "triangles"), ("a.ply", "corners")):
        with pytest.raises(ValueError, match=f"a mesh has up to 50 {what}, these labels have more; export"):
            write_export(tmp_path / name, placed(blocks(), np.eye(3)))
    write_series(tmp_path / "ct")
    image = read_volume(tmp_path / "ct")
    monkeypatch.setattr(dicom_seg, "MOST", 1)
    labels = np.arange(int(np.prod(image.shape)), dtype=np.uint8).reshape(image.shape)
    with pytest.raises(ValueError, match="has up to 1 segments, these labels have more"):
        write_export(tmp_path / "a.dcm", Volume(labels, geometry=image.geometry), image=image)
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]


class Chunked:
    """An array that says how it is stored."""

    def __init__(self, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
        self.shape, self.chunks, self.dtype = shape, chunks, np.dtype("u1")
        self.read: list[tuple[Any, ...]] = []

    def __getitem__(self, key: tuple[Any, ...]) -> np.ndarray:
        self.read.append(key)
        return np.broadcast_to(np.uint8(0), self.shape)[key]


@pytest.mark.parametrize(("deep", "planes"), [(1, 10), (4, 8), (16, 16), (50, 10)])
def test_a_slab_is_of_whole_chunks_where_they_are_not_too_thick(deep: int, planes: int) -> None:
    """Each is read once then."""
    data = Chunked((3, 100, 10, 10), (1, deep, 10, 10))
    with patch.object(slabs, "VOXELS", 1000):
        starts = [start for start, _ in Slabs(Volume(data, geometry=Geometry.from_scale("tzyx"))).slabs()]
    assert starts == [(t, z) for t in range(3) for z in range(0, 100, planes)]
    assert len(data.read) == len(starts)


@pytest.mark.parametrize(
    ("labels", "name", "message"),
    [
        (Volume(np.ones((3, 4), np.uint8)), "a.stl", "a mesh needs the axes z, y, x; the labels has y, x"),
        (Volume(np.ones((2, 3, 4, 5), np.uint8)), "a.ply", "has t, z, y, x"),
        (Volume(np.ones((3, 4, 3), np.uint8), channel_axis=2), "a.json", "one number a voxel, not colours"),
        (Volume(np.full((3, 4), 0.5)), "a.json", "must hold whole numbers; got fractions or NaN"),
        (Volume(np.full((3, 4), -1)), "a.geojson", "labels from 0 to 2.32 - 1; got -1 to -1"),
        (Volume(np.ones((3, 4), complex)), "a.geojson", "must hold whole numbers; got type complex128"),
        (Volume(np.ones((3, 4), np.uint8)), "a.dcm", "give the folder of that series with --image"),
        (Volume(np.ones((3, 4), np.uint8)), "a.xyz", r"exported as .stl, .ply, .*\.nii.*; got 'a.xyz'"),
        (placed(blocks(), np.eye(3) + 0.3), "a.tif", "lies oblique in the world"),
    ],
)
def test_what_a_format_cannot_say_is_refused(labels: Volume, name: str, message: str, tmp_path: Path) -> None:
    """In one sentence, and nothing is there afterwards."""
    with pytest.raises(ValueError, match=message):
        write_export(tmp_path / name, labels)
    assert not list(tmp_path.iterdir())


def test_labels_that_memory_has_no_room_for_are_no_segmentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the work, with the size: the library makes the file in memory."""
    write_series(tmp_path / "ct")
    image = read_volume(tmp_path / "ct")
    monkeypatch.setattr("napari_lowlat_seg.io.exports.dicom_seg.free_memory", lambda: 100)
    with pytest.raises(ValueError, match=r"shape \(4, 5, 6\) is made in memory, .* about .*; .* are free"):
        check_export(tmp_path / "a.dcm", Volume(np.ones((4, 5, 6)), geometry=image.geometry), image=image)


def test_labels_beside_a_series_are_no_segmentation_of_it(tmp_path: Path) -> None:
    """By shape and by place."""
    write_series(tmp_path / "ct")
    image = read_volume(tmp_path / "ct")
    assert image.geometry is not None
    one = np.ones(image.shape, np.uint8)
    for labels in (
        Volume(one[:2], geometry=image.geometry),
        Volume(one, geometry=image.geometry.crop((1, 0, 0))),
        Volume(one, geometry=image.geometry.flip(0, 4)),
    ):
        with pytest.raises(ValueError, match="do not lie voxel by voxel on the series of shape"):
            write_export(tmp_path / "a.dcm", labels, image=image)


def test_objects_that_are_not_there_are_refused(tmp_path: Path) -> None:
    """Those asked for, and none at all; an OME-Zarr that exists is not added to."""
    write_labels(tmp_path / "a.tif", blocks())
    with pytest.raises(ValueError, match="has no object with label 4; it has 3, 70000"):
        run_export(tmp_path / "a.tif", tmp_path / "b.ply", only=[4])
    write_labels(tmp_path / "none.tif", np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="holds no object; there is nothing to export"):
        run_export(tmp_path / "none.tif", tmp_path / "b.json")
    (tmp_path / "b.ome.zarr").mkdir()
    with pytest.raises(ValueError, match="exists; remove the folder, or give another name"):
        run_export(tmp_path / "a.tif", tmp_path / "b.ome.zarr")


def test_an_export_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an extra that exists."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert all(not one.extra or f"\n{one.extra} = [" in text for one in EXPORTS)
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(ImportError, match=r"needs highdicom, .* pip install napari-lowlat-seg\[dicom\]"):
        EXPORTS[-1].function("check")
