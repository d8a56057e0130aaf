"""Files with several images, times, channels and levels: one is chosen, or all are listed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.io import bounds
from napari_lowlat_seg.io.choice import SeveralImages
from napari_lowlat_seg.io.files import as_shown, default_axis, read_volume, write_labels

zarr = pytest.importorskip("zarr")
h5py = pytest.importorskip("h5py")

NOISE = np.random.default_rng(0).integers(0, 200, (3, 8, 10)).astype(np.uint8)


def write_image(path: Path, levels: list[np.ndarray], axes: str, steps: list[float], **about: Any) -> None:
    """An OME-Zarr 0.4 by hand, each level twice as coarse along y and x as the one before."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    datasets = []
    for number, data in enumerate(levels):
        group.create_array(str(number), data=data)
        scale = [step * (2**number if axis in "yx" else 1) for axis, step in zip(axes, steps)]
        changes = [{"type": "scale", "scale": scale}]
        datasets.append({"path": str(number), "coordinateTransformations": changes})
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": named, "datasets": datasets, **about}]


def write_plate(path: Path) -> None:
    """Two wells, the first with two fields; field k of well i is full of 10 i + k."""
    plate = zarr.open_group(path, mode="w", zarr_format=2)
    plate.attrs["plate"] = {"wells": [{"path": "A/1"}, {"path": "B/2"}]}
    for i, (well, fields) in enumerate((("A/1", 2), ("B/2", 1))):
        group = plate.require_group(well)
        group.attrs["well"] = {"images": [{"path": str(k)} for k in range(fields)]}
        for k in range(fields):
            write_image(path / well / str(k), [np.full((8, 8), 10 * i + k, np.uint8)], "yx", [0.5, 0.5])


def write_pyramid(path: Path, **about: Any) -> np.ndarray:
    """A tiled pyramid of two levels in sub-pages, as OME-TIFF and slide scanners have it; the finest."""
    fine = np.random.default_rng(1).integers(0, 200, (512, 640)).astype(np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(fine, subifds=1, tile=(128, 128), compression="zlib", **about)
        file.write(fine[::2, ::2], subfiletype=1, tile=(128, 128), compression="zlib")
    return fine


def test_series_of_an_ome_tiff_are_listed_and_chosen(tmp_path: Path) -> None:
    """By number or name, each with its own size; without a choice all are listed."""
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for name, size in (("raw", 0.5), ("thumb", 2.0)):
            about = {"Name": name, "axes": "ZYX", "PhysicalSizeX": size, "PhysicalSizeY": size}
            file.write(NOISE if name == "raw" else NOISE[:2, :4], metadata=about, photometric="minisblack")
    with pytest.raises(
        ValueError,
        match=r"there are 2 images in it; choose one with series: 0 \(raw \(3, 8, 10\)\), 1 \(thumb",
    ) as caught:
        read_volume(path)
    assert isinstance(caught.value, SeveralImages)
    assert caught.value.names == ("0", "1")
    for series in (1, "1", "thumb"):
        chosen = read_volume(path, series=series)
        assert (chosen.shape, chosen.spacing) == ((2, 4, 10), (1.0, 2.0, 2.0))
    np.testing.assert_array_equal(read_volume(path, series="raw").data, NOISE)
    for series in ("2", "-1", "seg"):
        with pytest.raises(ValueError, match=f"there is no series '{series}' in it; there are 0"):
            read_volume(path, series=series)


def test_series_of_a_plain_tiff_are_not_guessed(tmp_path: Path) -> None:
    """Pages of two sizes; a reduced copy beside the image is no choice."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(NOISE[0])
        file.write(NOISE[0, :4])
    with pytest.raises(ValueError, match="there are 2 images in it; choose one with series: 0"):
        read_volume(tmp_path / "a.tif")
    assert read_volume(tmp_path / "a.tif", series=1).shape == (4, 10)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(NOISE[0])
        file.write(NOISE[0, ::2, ::2], subfiletype=1)
    assert read_volume(tmp_path / "b.tif").shape == (8, 10)


@pytest.mark.parametrize("limit", [2**30, 1000], ids=["loaded", "tile by tile"])
def test_levels_of_a_pyramidal_tiff(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finest without a choice; a coarse pixel lies in the middle of those that it shows."""
    monkeypatch.setattr("napari_lowlat_seg.io.formats.tiff.LARGE", limit)
    about = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    fine = write_pyramid(tmp_path / "a.tif", **about)
    for level, data in ((None, fine), (0, fine), (1, fine[::2, ::2])):
        volume = read_volume(tmp_path / "a.tif", level=level)
        assert isinstance(volume.data, np.ndarray) == (limit > 1000)
        np.testing.assert_array_equal(volume.plane(Plane()), data)
        assert volume.spacing == pytest.approx((1.0, 1.0) if level == 1 else (0.5, 0.5))
        assert volume.geometry is not None
        assert volume.geometry.translation.tolist() == pytest.approx([0.25] * 2 if level == 1 else [0] * 2)
    with pytest.raises(
        ValueError, match=r"there is no level 2 in it; there are 0 \(512, 640\), 1 \(256, 320\)"
    ):
        read_volume(tmp_path / "a.tif", level=2)


def test_a_slide_is_the_slide_and_not_its_label(tmp_path: Path) -> None:
    """As Aperio writes them: tiled levels and pictures of the slide in one file, the size in words."""
    path = tmp_path / "a.svs"
    slide = np.random.default_rng(1).integers(0, 200, (512, 512, 3)).astype(np.uint8)
    words = "Aperio Image Library v11\n512x512 |AppMag = 20|MPP = 0.4990"
    tiled = {"tile": (128, 128), "photometric": "rgb", "metadata": None, "compression": "zlib"}
    with tifffile.TiffWriter(path) as file:
        file.write(slide, description=words, **tiled)
        file.write(slide[::8, ::8], photometric="rgb", metadata=None, description="Aperio thumbnail")
        file.write(slide[::4, ::4], description=words, **tiled)
        file.write(slide[:32, :32], photometric="rgb", metadata=None, subfiletype=1, description="label 32")
        file.write(slide[:64, :64], photometric="rgb", metadata=None, subfiletype=9, description="macro 64")
    volume = read_volume(path)
    assert (volume.shape, volume.spacing) == ((512, 512), pytest.approx((0.499, 0.499)))
    coarse = read_volume(path, level=1)
    assert (coarse.shape, coarse.spacing) == ((128, 128), pytest.approx((1.996, 1.996)))
    np.testing.assert_array_equal(coarse.plane(Plane()), slide[::4, ::4])
    assert read_volume(path, series="Macro").shape == (64, 64)
    with pytest.raises(ValueError, match=r"there are 0 \(Baseline"):
        read_volume(path, series="Scale")


def test_a_large_tiff_in_one_piece_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a large one of compressed pages is read page by page."""
    monkeypatch.setattr("napari_lowlat_seg.io.formats.tiff.LARGE", 100)
    tifffile.imwrite(tmp_path / "a.tif", NOISE, photometric="minisblack")
    assert isinstance(read_volume(tmp_path / "a.tif").data, np.memmap)
    tifffile.imwrite(tmp_path / "b.tif", NOISE, photometric="minisblack", compression="zlib")
    volume = read_volume(tmp_path / "b.tif")
    assert isinstance(volume.data, zarr.Array)
    np.testing.assert_array_equal(volume.plane(Plane((1, None, None))), NOISE[1])


def test_fields_of_a_plate_are_listed_and_chosen(tmp_path: Path) -> None:
    """By well and field, by path, by number; a well with one field needs no choice of one."""
    plate = tmp_path / "p.ome.zarr"
    write_plate(plate)
    with pytest.raises(
        ValueError, match="there are 3 images in it; choose one with series: A/1/0, A/1/1, B/2/0"
    ):
        read_volume(plate)
    for volume in (
        read_volume(plate, series="A/1/1"),
        read_volume(plate, series=1),
        read_volume(plate / "A" / "1" / "1"),
        read_volume(plate / "A" / "1", series=1),
    ):
        assert (int(volume.plane(Plane()).max()), volume.spacing) == (1, (0.5, 0.5))
    assert read_volume(plate / "B" / "2").plane(Plane()).max() == 10
    with pytest.raises(ValueError, match="there is no series 'C/9/0' in it; there are A/1/0"):
        read_volume(plate, series="C/9/0")


def test_levels_and_times_of_an_ome_zarr(tmp_path: Path) -> None:
    """Each level has the scale that it says; also by the path of its array. A time is cut, not read."""
    data = np.random.default_rng(2).integers(0, 99, (2, 3, 8, 10)).astype(np.uint8)
    path = tmp_path / "a.ome.zarr"
    write_image(path, [data, data[..., ::2, ::2]], "tzyx", [5.0, 3.0, 0.5, 0.5], name="raw")
    for volume in (read_volume(path, level=1), read_volume(path / "1"), read_volume(path / "1", level=1)):
        assert (volume.shape, volume.spacing) == ((2, 3, 4, 5), (5.0, 3.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"there is no level 2 in it; there are 0 \(2, 3, 8, 10\), 1 \("):
        read_volume(path, level=2)
    with pytest.raises(ValueError, match="its path leads to level 1; leave out level 0"):
        read_volume(path / "1", level=0)
    second = read_volume(path, time=1, series="raw")
    assert (second.shape, second.spacing) == ((3, 8, 10), (3.0, 0.5, 0.5))
    np.testing.assert_array_equal(second.plane(Plane((2, None, None))), data[1, 2])
    with pytest.raises(ValueError, match="time must be from 0 to 1; got 2"):
        read_volume(path, time=2)
    with pytest.raises(ValueError, match="there is no series 'seg' in it, but one image"):
        read_volume(path, series="seg")


def test_levels_of_old_ome_zarr_follow_from_their_shapes(tmp_path: Path) -> None:
    """Versions 0.1 to 0.3 say no scale."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=NOISE)
    group.create_array("1", data=NOISE[:, ::2, ::2])
    group.attrs["multiscales"] = [{"version": "0.3", "axes": ["z", "y", "x"],
                                   "datasets": [{"path": "0"}, {"path": "1"}]}]  # fmt: skip
    volume = read_volume(tmp_path / "a.zarr", level=1)
    assert volume.spacing == (1.0, 2.0, 2.0)
    assert volume.geometry is not None
    assert volume.geometry.translation.tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize("kind", ["a.tif", "a.ome.tif", "a.nii.gz", "a.ome.zarr", "a.h5", "a.zarr"])
def test_a_time_is_chosen_in_every_format_that_has_one(kind: str, tmp_path: Path) -> None:
    """The volume has no axis of time then, and labels of it lie in space; planes are those across z."""
    data = np.random.default_rng(3).integers(0, 99, (2, 3, 8, 10)).astype(np.uint8)
    path = tmp_path / kind
    if kind.endswith(".tif"):
        tifffile.imwrite(path, data, imagej=kind == "a.tif", ome=kind != "a.tif", metadata={"axes": "TZYX"})
    elif kind.endswith(".gz"):
        import nibabel

        nibabel.save(nibabel.Nifti1Image(data.T, np.eye(4)), path)
    elif kind == "a.h5":
        with h5py.File(path, "w") as file:
            tags = json.dumps({"axes": [{"key": key} for key in "tzyx"]})
            file.create_dataset("raw", data=data).attrs["axistags"] = tags
    elif kind == "a.zarr":
        zarr.create_array(path, data=data, dimension_names=list("tzyx"))
    else:
        write_image(path, [data], "tzyx", [1.0] * 4)
    whole = as_shown(read_volume(path))
    assert (whole.shape, default_axis(whole)) == ((2, 3, 8, 10), 1)
    volume = read_volume(path, time=1)
    shown = as_shown(volume)
    assert (shown.shape, default_axis(shown)) == ((3, 8, 10), 0)
    np.testing.assert_array_equal(np.asarray(shown.data), data[1])
    labels = np.zeros(volume.shape, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # of files that earlier tests have left
        for name in ("l.tif", "l.ome.tif", "l.nii.gz"):
            again = read_volume(write_labels(tmp_path / name, labels, volume))
            assert as_shown(again).shape == (3, 8, 10)
    with pytest.raises(ValueError, match="time must be from 0 to 1; got 2"):
        read_volume(path, time=2)


def test_what_a_format_does_not_have_is_not_chosen(tmp_path: Path) -> None:
    """One sentence for a series, a level and a time where there is none."""
    np.save(tmp_path / "a.npy", NOISE)
    tifffile.imwrite(tmp_path / "a.tif", NOISE, photometric="minisblack", metadata={"axes": "ZYX"})
    from PIL import Image

    Image.fromarray(NOISE[0]).save(tmp_path / "a.png")
    write_labels(tmp_path / "a.nii", NOISE)
    with pytest.raises(ValueError, match="NIfTI holds one image; leave out series '1'"):
        read_volume(tmp_path / "a.nii", series=1)
    with pytest.raises(ValueError, match="PNG has no levels; leave out level 1"):
        read_volume(tmp_path / "a.png", level=1)
    with pytest.raises(ValueError, match="it has no axis of time, but z, y, x; leave out time 0"):
        read_volume(tmp_path / "a.tif", time=0)
    with pytest.raises(ValueError, match=r"there is no level 1 in it; there are 0 \(3, 8, 10\)"):
        read_volume(tmp_path / "a.tif", level=1)
    assert read_volume(tmp_path / "a.tif", level=0, series=0).shape == NOISE.shape


def test_frames_of_an_animation_are_series(tmp_path: Path) -> None:
    """A GIF that moves is not its first frame unless that is chosen."""
    from PIL import Image

    frames = [Image.fromarray(np.full((8, 10), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="there are 2 frames in it; choose one with series: 0, 1"):
        read_volume(tmp_path / "a.gif")
    assert read_volume(tmp_path / "a.gif", series=1).plane(Plane()).max() == 200


def test_a_data_set_of_hdf5_and_an_array_of_npz_are_series(tmp_path: Path) -> None:
    """By path, by number, or by the path of the file with the name behind it."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("volumes/raw", data=NOISE)
        file.create_dataset("volumes/seg", data=NOISE + 1)
    np.savez(tmp_path / "a.npz", raw=NOISE, seg=NOISE + 1)
    for volume in (
        read_volume(tmp_path / "a.h5", series="volumes/seg"),
        read_volume(tmp_path / "a.h5", series=1),
        read_volume(tmp_path / "a.h5" / "volumes", series=1),
        read_volume(tmp_path / "a.npz", series="seg"),
        read_volume(tmp_path / "a.npz" / "seg"),
    ):
        np.testing.assert_array_equal(volume.data[:], NOISE + 1)
    assert bounds.nbytes_of(NOISE.shape, NOISE.dtype) == NOISE.nbytes
