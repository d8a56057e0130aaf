"""Inputs that public reports of other programs are about, with the exact labels and places that are right.

The network is a rule that finds what is bright under the click, so an object is right or wrong to the voxel.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from fakes import FakePredictor
from napari_lowlat_seg.batch import jobs
from napari_lowlat_seg.io.files import read_volume
from terminal import Call

zarr = pytest.importorskip("zarr")
pytest.importorskip("ome_zarr")

SHAPE, AT, RADII = (12, 64, 80), (5, 20, 55), (3, 9, 12)
Ok = Callable[..., Path]


def ball(shape: tuple[int, ...] = SHAPE, at: Any = AT, radii: Any = RADII) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image of one bright ellipsoid, and the ellipsoid."""
    inside = sum(((x - c) / q) ** 2 for x, c, q in zip(np.indices(shape), at, radii)) <= 1
    noisy = np.where(inside, 180, 40) + np.random.default_rng(0).normal(0, 6, shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), np.asarray(inside)


IMAGE, INSIDE = ball()
ON_PLANE = INSIDE * (np.arange(12) == 5)[:, None, None]
"""The object on the plane of its centre: 331 voxels of 1,317."""


def grown(inside: np.ndarray, across: int = 0) -> np.ndarray:
    """What grows from a seed: all but the tips, planes on which the object is one voxel."""
    sizes = inside.sum(axis=tuple(axis for axis in range(3) if axis != across), keepdims=True)
    return inside & (sizes > 1)


@pytest.fixture(autouse=True)
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bright under a prompt, in place of the network."""

    def rule(image: np.ndarray, prompts: Any, previous: Any) -> np.ndarray:
        parts, _ = ndimage.label(image > 110)
        places = [tuple(round(v) for v in prompt.bounds()[:2]) for prompt in prompts if prompt.positive]
        under = {int(parts[place]) for place in places} - {0}
        masks = [np.asarray(prompt.values) > 0.5 for prompt in prompts if hasattr(prompt, "values")]
        under |= {int(n) for mask in masks for n in np.unique(parts[mask])} - {0}
        return 0.9 * np.isin(parts, list(under))

    predictor = FakePredictor(rule)
    monkeypatch.setattr(jobs, "cached_predictor", lambda *_: predictor)
    monkeypatch.setattr("napari_lowlat_seg.inference.predictor.load_predictor", lambda *_, **__: predictor)


@pytest.fixture
def ok(call: Call, tmp_path: Path) -> Ok:
    """A command that succeeds, and the file that it writes."""

    def run(*arguments: object) -> Path:
        done = call(*arguments)
        assert done.status == 0, done.err
        return tmp_path / str(arguments[arguments.index("-o") + 1])

    return run


def dice(found: np.ndarray, right: np.ndarray) -> float:
    """1 where two masks are the same, voxel by voxel."""
    return float(2 * (found & right).sum() / (found.sum() + right.sum()))


def labelled(path: Path) -> np.ndarray:
    """The object in a file, its axes of length 1 left out."""
    return np.squeeze(np.asarray(read_volume(path).data)) == 1


def write_zarr(path: Path, image: np.ndarray, axes: list[dict], about: list[dict], more: Any = None) -> None:
    """An OME-Zarr 0.4 of one level."""
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.create_array("0", shape=image.shape, dtype="u1", chunks=image.shape)[...] = image
    one = {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": about}]}
    root.attrs["multiscales"] = [one | ({"coordinateTransformations": more} if more else {})]


def spaces(names: str, unit: str | None = None) -> list[dict]:
    """Axes of an OME-Zarr, as types go with their names."""
    kinds = {"t": "time", "c": "channel"}
    return [
        {"name": n, "type": kinds.get(n, "space")} | ({"unit": unit} if unit and n in "zyx" else {})
        for n in names
    ]


def five(path: Path) -> None:
    """An image with axes t and c of length 1."""
    scale = [{"type": "scale", "scale": [1] * 5}]
    write_zarr(path, IMAGE[None, None], spaces("tczyx"), scale)


def test_axes_of_length_1_are_nothing_to_choose(ok: Ok, tmp_path: Path) -> None:
    """NIfTI of one time and OME-Zarr of one time and channel are volumes, for every command."""
    scan = np.ascontiguousarray(IMAGE.T)[..., None]
    nibabel.save(nibabel.Nifti1Image(scan, np.diag([1, 1, 3, 1.0])), tmp_path / "scan.nii.gz")
    five(tmp_path / "image.ome.zarr")
    (tmp_path / "points.csv").write_text("5,20,55\n")
    assert (
        dice(labelled(ok("segment", "scan.nii.gz", "-o", "a.nii.gz", "--click", "5,55,20")), ON_PLANE.T) == 1
    )
    assert (
        dice(labelled(ok("segment", "image.ome.zarr", "-o", "d.ome.zarr", "--click", "5,20,55")), ON_PLANE)
        == 1
    )
    run = ("segment", "image.ome.zarr", "-o", "e.ome.zarr", "--click", "5,20,55", "--propagate", "3:7")
    whole = INSIDE * ((np.arange(12) >= 3) & (np.arange(12) <= 7))[:, None, None]
    assert dice(labelled(ok(*run)), whole) == 1
    assert dice(labelled(ok("seeds", "image.ome.zarr", "points.csv", "-o", "f.tif")), grown(INSIDE)) == 1
    (tmp_path / "xyz.csv").write_text("5,55,20\n")
    assert dice(labelled(ok("seeds", "scan.nii.gz", "xyz.csv", "-o", "b.nii.gz")), grown(INSIDE).T) == 1


def test_axes_have_their_own_names_in_labels_of_another_format(ok: Ok, tmp_path: Path) -> None:
    """NIfTI's first axis is x, time stays time, and names are kept whole."""
    affine = np.diag([0.7, 0.8, 3, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(IMAGE.T), affine), tmp_path / "scan.nii.gz")
    about: Any = {"axes": "TYX", "unit": "um"}
    tifffile.imwrite(tmp_path / "series.tif", IMAGE, imagej=True, resolution=(2, 2), metadata=about)
    named = [{"name": name, "type": "space"} for name in ("y0", "y1", "y2")]
    write_zarr(tmp_path / "named.ome.zarr", IMAGE, named, [{"type": "scale", "scale": [1, 1, 1]}])

    def axes(path: Path) -> tuple[list[str], list[float]]:
        one = zarr.open_group(path).attrs["ome"]["multiscales"][0]
        return [axis["name"] for axis in one["axes"]], one["datasets"][0]["coordinateTransformations"][0][
            "scale"
        ]

    names, scale = axes(ok("segment", "scan.nii.gz", "-o", "a.ome.zarr", "--click", "5,55,20"))
    assert dict(zip(names, scale)) == pytest.approx({"x": 0.7, "y": 0.8, "z": 3})
    path = ok("segment", "scan.nii.gz", "-o", "b.ome.tif", "--click", "5,55,20")
    with tifffile.TiffFile(path) as file:
        assert 'SizeX="80"' in (file.ome_metadata or "")
        assert 'SizeZ="12"' in (file.ome_metadata or "")
    assert dice(labelled(path), ON_PLANE) == 1
    path = ok("segment", "series.tif", "-o", "c.ome.zarr", "--click", "5,20,55")
    assert axes(path)[0] == ["t", "y", "x"]
    assert axes(ok("segment", "named.ome.zarr", "-o", "d.ome.zarr", "--click", "5,20,55"))[0] == [
        "y0",
        "y1",
        "y2",
    ]


def test_the_one_series_of_bioformats2raw_is_opened_from_root_and_series(ok: Ok, tmp_path: Path) -> None:
    """The image is in group 0 of a root with nothing else."""
    root = zarr.open_group(tmp_path / "image.ome.zarr", mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    five(tmp_path / "image.ome.zarr" / "0")
    for name in ("image.ome.zarr", "image.ome.zarr/0"):
        path = ok("segment", name, "-o", f"{len(name)}.ome.zarr", "--click", "5,20,55")
        assert dice(labelled(path), ON_PLANE) == 1


def test_common_compressions_of_tiff_are_read(ok: Ok, tmp_path: Path) -> None:
    """LZW without a loss; JPEG changes some pixels at the rim."""
    pytest.importorskip("imagecodecs")
    planes = [Image.fromarray(plane) for plane in IMAGE]
    planes[0].save(tmp_path / "lzw.tif", compression="tiff_lzw", save_all=True, append_images=planes[1:])
    planes[5].save(tmp_path / "jpeg.tif", compression="jpeg")
    assert dice(labelled(ok("segment", "lzw.tif", "-o", "a.tif", "--click", "5,20,55")), ON_PLANE) == 1
    assert dice(labelled(ok("segment", "jpeg.tif", "-o", "b.tif", "--click", "20,55")), INSIDE[5]) > 0.98


def test_a_mask_lies_where_its_affine_says(ok: Ok, call: Call, tmp_path: Path) -> None:
    """Mirrored it is turned, of one time it is taken, of another place it is refused."""
    image, inside = ball((80, 64, 12), (55, 20, 5), (12, 9, 3))
    affine = np.diag([0.7, 0.8, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / "scan.nii.gz")
    mask = np.zeros(image.shape, np.uint8)
    mask[50:60, 16:24, 5] = 1
    turned, away = affine.copy(), affine.copy()
    turned[0, 0], turned[0, 3] = -0.7, 0.7 * 79
    away[:3, 3] = (30, 0, 0)
    nibabel.save(nibabel.Nifti1Image(mask[::-1].copy(), turned), tmp_path / "mask.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask, away), tmp_path / "away.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask[..., None], affine), tmp_path / "mask_4d.nii.gz")
    right = inside * (np.arange(12) == 5)
    for name in ("mask.nii.gz", "mask_4d.nii.gz"):
        found = labelled(ok("segment", "scan.nii.gz", "-o", f"of_{name}", "--mask", name))
        assert dice(found, right) == 1
        assert np.argwhere(found).mean(axis=0) == pytest.approx((55, 20, 5), abs=0.1)
    done = call("segment", "scan.nii.gz", "-o", "out.nii.gz", "--mask", "away.nii.gz")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "lies elsewhere in the world" in done.err
    assert not (tmp_path / "out.nii.gz").exists()


@pytest.mark.parametrize("place", ["own", "top"])
def test_labels_of_an_ome_zarr_keep_its_translation(ok: Ok, tmp_path: Path, place: str) -> None:
    """Whichever of the two places of coordinateTransformations says it."""
    both = [{"type": "scale", "scale": [40, 4, 4]}, {"type": "translation", "translation": [400, 1000, 2000]}]
    own, top = (both, None) if place == "own" else ([{"type": "scale", "scale": [1, 1, 1]}], both)
    write_zarr(tmp_path / "image.ome.zarr", IMAGE, spaces("zyx", "nanometer"), own, top)
    path = ok("segment", "image.ome.zarr", "-o", "labels.ome.zarr", "--click", "5,20,55")
    found = read_volume(path)
    assert found.geometry is not None
    assert found.geometry.unit == "nm"
    assert found.geometry.spacing == pytest.approx((40, 4, 4))
    assert found.geometry.translation == pytest.approx((400, 1000, 2000))
    assert dice(labelled(path), ON_PLANE) == 1


def test_three_axes_without_a_meaning_are_z_y_x_in_ome_tiff(ok: Ok, tmp_path: Path) -> None:
    """Pages one by one, and a stack."""
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        for plane in IMAGE:
            file.write(plane, metadata=None, contiguous=False)
    tifffile.imwrite(tmp_path / "stack.tif", IMAGE)
    (tmp_path / "points.csv").write_text("5,20,55\n")
    for name in ("pages", "stack"):
        path = ok("segment", f"{name}.tif", "-o", f"{name}.ome.tif", "--click", "5,20,55")
        with tifffile.TiffFile(path) as made:
            assert 'SizeZ="12"' in (made.ome_metadata or "")
            assert 'SizeT="1"' in (made.ome_metadata or "")
        assert dice(labelled(path), ON_PLANE) == 1
        path = ok("seeds", f"{name}.tif", "points.csv", "-o", f"s{name}.ome.tif")
        assert dice(labelled(path), grown(INSIDE)) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"index,axis-0,axis-1,axis-2,class\n0,5,20,55,nucleus\n",
        b"\xef\xbb\xbf5,20,55\n",
        b"\xef\xbb\xbfindex,axis-0,axis-1,axis-2\n0,5,20,55\n",
        b"z,y,x\n5,20,55\n",
        b"5,20,55\n,,\n",
    ],
    ids=["features", "bom", "bom_napari", "header", "commas"],
)
def test_points_as_napari_and_excel_write_them_are_seeds(ok: Ok, tmp_path: Path, content: bytes) -> None:
    """The same object of 1,315 voxels grows from each."""
    tifffile.imwrite(tmp_path / "image.tif", IMAGE, imagej=True, metadata={"axes": "ZYX"})
    (tmp_path / "points.csv").write_bytes(content)
    assert dice(labelled(ok("seeds", "image.tif", "points.csv", "-o", "out.tif")), grown(INSIDE)) == 1


def test_the_same_numbers_mean_the_same_voxel_of_a_nifti_in_segment_and_seeds(ok: Ok, tmp_path: Path) -> None:
    """Voxel (20, 8, 3) is 3,20,8 for both, and 3,8,20 in a file that napari has saved."""
    image, inside = ball((40, 40, 12), (20, 8, 3), (5, 5, 2))
    nibabel.save(nibabel.Nifti1Image(image, np.diag([1, 1, 3, 1.0])), tmp_path / "scan.nii.gz")
    (tmp_path / "points.csv").write_text("3,20,8\n")
    (tmp_path / "napari.csv").write_text("index,axis-0,axis-1,axis-2\n0,3,8,20\n")
    found = labelled(ok("segment", "scan.nii.gz", "-o", "a.nii.gz", "--click", "3,20,8"))
    assert dice(found, inside * (np.arange(12) == 3)) == 1
    assert found[20, 8, 3]
    for name in ("points", "napari"):
        found = labelled(ok("seeds", "scan.nii.gz", f"{name}.csv", "-o", f"{name}.nii.gz"))
        assert dice(found, grown(inside, across=2)) == 1
        assert found[20, 8, 3]


UNITS = {  # image: (format of labels, its unit, size of a column there)
    "nanometer.ome.zarr": [("ome.tif", 0.004, "µm"), ("tif", 0.004, "µm")],
    "angstrom.ome.zarr": [("ome.tif", 0.0004, "µm")],
    "Å.ome.tif": [("ome.tif", 0.0004, "µm"), ("mrc", 0.0004, "µm")],
    "pm.ome.tif": [("ome.tif", 4e-6, "µm")],
    "in.ome.tif": [("ome.tif", 101_600, "µm")],
    "nm.ome.tif": [("nii.gz", 0.004, "µm")],
    "inch.tif": [("ome.tif", 12_700, "µm")],
    "imagej_nm.tif": [("ome.zarr", 0.004, "µm"), ("nii.gz", 0.004, "µm")],
    "pixel.ome.tif": [("ome.tif", 4, None)],
    "reference frame.ome.tif": [("ome.tif", 4, None)],
}


def write_in_unit(path: Path) -> None:
    """An image whose unit is in its name; columns of 4, of 0.5 for the inches of ImageJ."""
    name = path.name.split(".")[0]
    if path.name.endswith(".ome.zarr"):
        write_zarr(path, IMAGE, spaces("zyx", name), [{"type": "scale", "scale": [40, 4, 4]}])
    elif path.name.endswith(".ome.tif"):
        about: dict[str, Any] = {"axes": "ZYX"}
        about |= {f"PhysicalSize{a}": 4.0 for a in "XYZ"} | {f"PhysicalSize{a}Unit": name for a in "XYZ"}
        tifffile.imwrite(path, IMAGE, ome=True, metadata=about)
    else:
        step, unit = (0.5, "inch") if name == "inch" else (4, "nm")
        about = {"axes": "ZYX", "spacing": 10 * step, "unit": unit}
        tifffile.imwrite(path, IMAGE, imagej=True, resolution=(1 / step, 1 / step), metadata=about)


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_never_taken_for_another(ok: Ok, tmp_path: Path, name: str) -> None:
    """4 Å are 0.0004 µm wherever they go; what is no length stays without one."""
    write_in_unit(tmp_path / name)
    for suffix, size, unit in UNITS[name]:
        path = ok("segment", name, "-o", f"labels.{suffix}", "--click", "5,20,55")
        geometry = read_volume(path).geometry
        assert geometry is not None
        column = geometry.names.index("x")
        if unit is None:
            assert geometry.unit in (None, "pixel", "reference frame")
        else:
            geometry = geometry.in_unit(unit)
        assert geometry.spacing[column] == pytest.approx(size)


def test_after_a_full_disk_the_same_command_works(
    ok: Ok, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of what could not be begun, and the sentence names the file and says what to do."""
    tifffile.imwrite(tmp_path / "image.tif", IMAGE, imagej=True, metadata={"axes": "ZYX"})
    (tmp_path / "full").mkdir()
    with monkeypatch.context() as patch:

        def full(*_: object, **__: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(zarr.storage._local, "_put", full)
        done = call("segment", "image.tif", "-o", "full/l.ome.zarr", "--click", "5,20,55")
    assert done.status == 2
    assert done.err == "full/l.ome.zarr: no space left on device; make room there and try again\n"
    assert list((tmp_path / "full").iterdir()) == []
    path = ok("segment", "image.tif", "-o", "full/l.ome.zarr", "--click", "5,20,55")
    assert dice(labelled(path), ON_PLANE) == 1


def test_the_object_of_these_tests_has_its_size() -> None:
    """A wrong object would make every comparison here easy."""
    assert [int(mask.sum()) for mask in (INSIDE, ON_PLANE, grown(INSIDE))] == [1317, 331, 1315]
