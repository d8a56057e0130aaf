"""Sizes, surfaces, places and intensities of objects, against closed forms and skimage's `regionprops`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import regionprops

from napari_lowlat_seg.batch import measure as module
from napari_lowlat_seg.batch.measure import measure, run_measure
from napari_lowlat_seg.core.geometry import Axis, Geometry
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.files import read_volume, write_labels
from napari_lowlat_seg.io.points import read_points

WORLD = tuple(Axis(name, unit="µm") for name in "zyx")


def placed(labels: np.ndarray, matrix: Any, translation: Any = 0) -> Volume:
    """Labels whose axes go along the columns of a matrix."""
    affine = np.eye(len(matrix) + 1)
    affine[:-1, :-1], affine[:-1, -1] = matrix, translation
    return Volume(labels, geometry=Geometry(WORLD[-len(matrix) :], affine))


def bevelled(sides: Any, spacing: Any) -> float:
    """The area of marching cubes' mesh of a box: faces without their rim, slanted edges, cut corners."""
    inner = [(n - 1) * step for n, step in zip(sides, spacing)]
    half = [step / 2 for step in spacing]
    pairs = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
    faces = sum(2 * inner[i] * inner[j] for i, j, _ in pairs)
    edges = sum(4 * inner[k] * np.hypot(half[i], half[j]) for i, j, k in pairs)
    corner = 0.5 * np.sqrt(sum((half[i] * half[j]) ** 2 for i, j, _ in pairs))
    return float(faces + edges + 8 * corner)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 0.5, 0.7)])
def test_a_box_has_its_closed_form(spacing: tuple[float, ...]) -> None:
    """Size, place and surface, at steps that differ from axis to axis."""
    labels = np.zeros((9, 14, 12), np.uint16)
    labels[2:6, 3:12, 1:8] = 300
    (found,) = measure(placed(labels, np.diag(spacing), (10, 20, 30)))
    assert (found.label, found.voxels, found.planes) == (300, 4 * 9 * 7, 4)
    assert found.size == pytest.approx(4 * 9 * 7 * np.prod(spacing))
    assert (found.first, found.last) == ((2, 3, 1), (5, 11, 7))
    assert found.index == pytest.approx((3.5, 7, 4))
    assert found.centre == pytest.approx(np.array((3.5, 7, 4)) * spacing + (10, 20, 30))
    assert found.surface == pytest.approx(bevelled((4, 9, 7), spacing), rel=1e-6)
    assert (found.mean, found.std) == (None, None)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 1, 0.8)])
def test_a_ball_has_its_volume_and_about_its_surface(spacing: tuple[float, ...]) -> None:
    """The steps of voxels make the mesh of a curved object 8 to 14 % larger; docs/files.md says so."""
    radius = 24.0
    grids = np.meshgrid(*(np.arange(-30, 30.1, step) for step in spacing), indexing="ij")
    labels = (sum(grid**2 for grid in grids) <= radius**2).astype(np.uint8)
    (found,) = measure(placed(labels, np.diag(spacing), (-30, -30, -30)))
    assert found.size == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.01)
    assert 1.08 < found.surface / (4 * np.pi * radius**2) < 1.14
    assert found.centre == pytest.approx((0, 0, 0), abs=0.2)


def test_a_flat_object_has_area_and_perimeter(tmp_path: Path) -> None:
    """Under their own names in the table."""
    labels = np.zeros((10, 12), np.uint8)
    labels[2:7, 1:9] = 4
    (found,) = measure(placed(labels, np.diag((2, 0.5))))
    outline = 2 * (4 * 2 + 7 * 0.5) + 4 * np.hypot(1, 0.25)
    assert (found.voxels, found.planes) == (40, 1)
    assert (found.size, found.surface) == (pytest.approx(40), pytest.approx(outline))
    write_labels(tmp_path / "a.tif", labels)
    run_measure(tmp_path / "a.tif", output=tmp_path / "a.csv")
    (row,) = rows_of(tmp_path / "a.csv")
    assert (row["area"], row["perimeter"][:6], row["unit"]) == ("40", "24.828", "")


def rows_of(path: Path) -> list[dict[str, str]]:
    """The lines of a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


arrays = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(rng=arrays, count=st.integers(2, 3), block=st.sampled_from([8, 64, 1000]))
def test_objects_are_those_of_regionprops_whatever_the_blocks(
    rng: np.random.Generator, count: int, block: int
) -> None:
    """Voxels, boxes, centroids and intensities; the surface does not depend on the blocks."""
    shape = tuple(rng.integers(1, 9, count))
    labels = rng.integers(0, 4, shape).astype(rng.choice(["u1", "u4", "i2", "f4"])) * int(rng.integers(1, 60))
    image = rng.normal(1e6, 3, shape)
    matrix = rng.normal(size=(count, count)) + 3 * np.eye(count)
    volume = placed(labels, matrix, rng.normal(size=count))
    before, module.BLOCK = module.BLOCK, block
    try:
        found = measure(volume, Volume(image))
    finally:
        module.BLOCK = before
    at_once = measure(volume, Volume(image))
    expected = regionprops(labels.astype(np.int64), image)
    assert [one.label for one in found] == [one.label for one in expected]
    geometry = volume.geometry
    assert geometry is not None
    order = list(geometry.shown_order)
    for one, other, whole in zip(found, expected, at_once, strict=True):
        assert one.voxels == other.area
        assert one.size == pytest.approx(other.area * abs(np.linalg.det(matrix)))
        assert one.index == pytest.approx(np.array(other.centroid)[order])
        assert one.centre == pytest.approx(geometry.to_world(other.centroid))
        assert one.first == tuple(np.array(other.bbox[:count])[order])
        assert one.last == tuple(np.array(other.bbox[count:])[order] - 1)
        assert one.mean == pytest.approx(other.intensity_mean, rel=1e-12)
        assert one.std == pytest.approx(image[labels == one.label].std(), rel=1e-6, abs=1e-6)
        assert one.surface == pytest.approx(whole.surface, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(rng=arrays, order=st.permutations(range(3)), flips=st.sets(st.integers(0, 2)))
def test_the_order_of_axes_in_a_file_changes_nothing(
    rng: np.random.Generator, order: list[int], flips: set[int]
) -> None:
    """The same voxels stored another way round have the same sizes and places in the world."""
    labels = (rng.random(rng.integers(2, 8, 3)) < 0.5).astype(np.uint8)
    labels[0, 0, 0] = 1
    volume = placed(labels, np.diag((3.0, 0.5, 0.8)) @ (np.eye(3) + 0.2 * rng.normal(size=(3, 3))))
    assert volume.geometry is not None
    geometry, turned = volume.geometry.transpose(order), labels.transpose(order)
    for axis in flips:
        geometry, turned = geometry.flip(axis, turned.shape[axis]), np.flip(turned, axis)
    ((one,), (other,)) = measure(volume), measure(Volume(turned, geometry=geometry))
    assert other.voxels == one.voxels
    assert other.centre == pytest.approx(one.centre)
    assert (other.size, other.surface) == (pytest.approx(one.size), pytest.approx(one.surface, rel=0.03))


def test_an_object_of_a_film_is_measured_at_each_time() -> None:
    """Volumes of different times are not added up."""
    labels = np.zeros((3, 4, 5, 6), np.uint8)
    labels[0, 1:3, 2:4, 1:3] = 2
    labels[2, 1, 1, 1:3] = 2
    geometry = Geometry.from_scale("tzyx", (10, 2, 1, 1), units=("s", "µm", "µm", "µm"))
    early, late = measure(Volume(labels, geometry=geometry))
    assert (early.voxels, early.size, early.centre[0], early.first) == (8, 16, 0, (0, 1, 2, 1))
    assert (late.voxels, late.size, late.centre[0], late.index) == (2, 4, 20, (2, 1, 1, 1.5))


def test_intensities_leave_out_what_is_not_finite_and_take_the_mean_of_colours() -> None:
    """An object of such pixels only has none."""
    labels = np.array([[1, 1, 2], [1, 0, 2]], np.uint8)
    image = np.array([[1.0, np.nan, np.inf], [3.0, 9, np.nan]])
    one, two = measure(Volume(labels), Volume(image))
    assert (one.mean, one.std, two.mean, two.std) == (2, 1, None, None)
    colours = Volume(np.stack([np.full((2, 3), value) for value in (3, 6, 0)]), channel_axis=0)
    assert measure(Volume(labels), colours)[0].mean == 3


def test_big_labels_are_read_by_blocks() -> None:
    """No more than a block with its rim is read at a time."""
    read: list[int] = []

    class Huge:
        shape, dtype, chunks, ndim = (64, 3_000, 3_000), np.dtype(np.uint8), (32, 64, 64), 3

        def __getitem__(self, key: Any) -> np.ndarray:
            block = np.zeros([part.stop - part.start for part in key], np.uint8)
            read.append(block.size)
            if all(part.start <= 5 < part.stop for part in key):
                block[tuple(5 - part.start for part in key)] = 1
            return block

    (found,) = measure(Volume(Huge()))
    assert (found.voxels, found.index) == (1, (5, 5, 5))
    assert max(read) < 1.2 * module.BLOCK
    assert sum(read) < 1.2 * 64 * 3_000 * 3_000


def test_the_table_has_every_object_and_is_a_file_of_points(tmp_path: Path) -> None:
    """The centroids of a scan's labels come back as the voxels that they were."""
    labels = np.zeros((6, 7, 8), np.int16)
    labels[1:4, 2:5, 3:6] = 1
    labels[5, 6, 7] = 9
    affine = np.diag([-0.5, 0.7, 2.0, 1.0])
    image = nibabel.Nifti1Image(labels, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "labels.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full((6, 7, 8), 40.0), affine), tmp_path / "scan.nii")
    done = run_measure(tmp_path / "labels.nii.gz", tmp_path / "scan.nii", tmp_path / "t.csv")
    assert (done["objects"], done["unit"]) == (2, "mm")
    first, second = rows_of(tmp_path / "t.csv")
    assert [first[f"axis-{i}"] for i in range(3)] == ["4", "3", "2"]
    assert [float(first[f"centroid-{name}"]) for name in "zyx"] == pytest.approx([8, 2.1, -1])
    assert float(first["volume"]) == pytest.approx(27 * 0.7)
    assert (first["voxels"], first["planes"], first["mean"], first["std"]) == ("27", "3", "40", "0")
    assert (second["label"], second["first-0"], second["last-2"]) == ("9", "7", "5")
    volume = read_volume(tmp_path / "labels.nii.gz")
    points = read_points(tmp_path / "t.csv", volume, shown=(2, 1, 0))
    assert points == [(2, 3, 4), (5, 6, 7)]


def test_names_are_those_of_the_segments(tmp_path: Path) -> None:
    """Of a .seg.nrrd."""
    write_labels(tmp_path / "a.seg.nrrd", np.pad(np.ones((2, 2, 2), np.uint8), 1))
    run_measure(tmp_path / "a.seg.nrrd", output=tmp_path / "a.csv")
    assert rows_of(tmp_path / "a.csv")[0]["name"] == "Segment_1"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((3, 4), 0.5), "whole numbers of 0 or more; got fractions or NaN"),
        (np.full((3, 4), np.nan), "whole numbers of 0 or more; got fractions or NaN"),
        (np.full((3, 4), -1), "labels of 0 or more; got -1"),
        (np.ones((3, 4), complex), "whole numbers; got type complex128"),
    ],
)
def test_what_is_no_label_is_refused(labels: np.ndarray, message: str) -> None:
    """In one sentence."""
    with pytest.raises(ValueError, match=message):
        measure(Volume(labels))


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    """Colours, images that do not fit, four axes of space, and outputs that are inputs."""
    labels = Volume(np.ones((3, 4), np.uint8))
    with pytest.raises(ValueError, match="one number a voxel, not colours"):
        measure(Volume(np.ones((3, 4, 3), np.uint8), channel_axis=2))
    with pytest.raises(ValueError, match=r"the labels' shape \(3, 4\); got \(4, 3\)"):
        measure(labels, Volume(np.ones((4, 3))))
    geometry = Geometry.from_scale("tx")
    with pytest.raises(ValueError, match=r"2 or 3 axes of space; the labels has 1"):
        measure(Volume(np.ones((3, 4), np.uint8), geometry=geometry))
    write_labels(tmp_path / "a.tif", np.ones((3, 4), np.uint8))
    with pytest.raises(ValueError, match=r"is a \.csv; got 'a.xlsx'"):
        run_measure(tmp_path / "a.tif", output=tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match="a channel is one of the image; give --image"):
        run_measure(tmp_path / "a.tif", channel=1)
    (tmp_path / "b.csv").symlink_to(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="is the file of labels itself"):
        run_measure(tmp_path / "a.tif", output=tmp_path / "b.csv")
