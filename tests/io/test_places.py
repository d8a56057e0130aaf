"""What goes in comes out where it was: labels lie on the image in every format, or are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
import tifffile
import zarr

from napari_lowlat_seg.core.geometry import Axis, Geometry
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.files import (
    as_shown,
    check_labels_path,
    default_axis,
    label_output,
    read_aligned,
    read_volume,
    shown_axes,
    write_labels,
)
from napari_lowlat_seg.io.placed import Turn, TurnedArray

SHAPE = (3, 4, 5)
KINDS = {"t": "time", "c": "channel"}


def marked(shape: Sequence[int] = SHAPE) -> np.ndarray:
    """One labelled voxel at index (1, 2, 3, ...), everything else 0."""
    labels = np.zeros(shape, np.uint8)
    labels[tuple(min(i + 1, n - 1) for i, n in enumerate(shape))] = 7
    return labels


def place(path: Path, unit: str | None = None) -> dict[str, float]:
    """World coordinates of the labelled voxel of a file, by axis name."""
    volume = read_volume(path)
    assert volume.geometry is not None
    geometry = volume.geometry if unit is None else volume.geometry.in_unit(unit)
    ((*index,),) = np.argwhere(np.asarray(volume.data) == 7)
    return dict(zip((axis.name for axis in geometry.world), geometry.to_world(index).tolist(), strict=True))


def write_zarr(path: Path, data: np.ndarray, axes: Sequence[str], about: dict[str, Any], **more: Any) -> Path:
    """An OME-Zarr 0.4 image of one level; `about` is that of its data set."""
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.create_array("0", shape=data.shape, dtype=data.dtype, chunks=data.shape)[...] = data
    listed = [{"name": name, "type": KINDS.get(name, "space"), **more} for name in axes]
    root.attrs["multiscales"] = [{"version": "0.4", "axes": listed, "datasets": [{"path": "0"} | about]}]
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Callable[..., Path]:
    """Write a NIfTI scan with an affine and give back its path."""

    def write(affine: np.ndarray, name: str = "scan.nii.gz", data: np.ndarray | None = None) -> Path:
        image = nibabel.Nifti1Image(marked() if data is None else data, affine)
        image.header.set_xyzt_units("mm", "sec")
        nibabel.save(image, tmp_path / name)
        return tmp_path / name

    return write


STRAIGHT = np.array([[0.7, 0, 0, -5], [0, 0.8, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
SAGITTAL = np.array([[0, 0, 3, -5], [-0.7, 0, 0, 6], [0, 0.8, 0, 7], [0, 0, 0, 1]])
OBLIQUE = np.array([[0.7, -0.2, 0, -5], [0.2, 0.7, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])


@pytest.mark.parametrize("name", ["a.nii", "a.tif", "a.ome.tif", "a.ome.zarr"])
@pytest.mark.parametrize("affine", [STRAIGHT, SAGITTAL], ids=["straight", "sagittal"])
def test_labels_of_a_scan_lie_on_it_in_every_format(
    name: str, affine: np.ndarray, scan: Callable[..., Path], tmp_path: Path
) -> None:
    """Whatever way round the format counts its axes."""
    path = scan(affine)
    with label_output(tmp_path / name, read_volume(path)) as labels:
        labels.data[...] = marked()
    found = place(tmp_path / name, "mm")
    assert found == pytest.approx(place(path), abs=1e-4)


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.ome.zarr"])
def test_labels_of_an_oblique_scan_are_refused_before_the_work(
    name: str, scan: Callable[..., Path], tmp_path: Path
) -> None:
    """By formats that know no directions, in one sentence that names those that do."""
    volume = read_volume(scan(OBLIQUE))
    with pytest.raises(ValueError, match=r"lies oblique in the world; write .nii.gz, .nrrd or .mha"):
        check_labels_path(tmp_path / name, like=volume)
    assert not (tmp_path / name).exists()
    check_labels_path(tmp_path / "b.nii", like=volume)


def test_axes_of_labels_of_a_scan_have_their_right_names(scan: Callable[..., Path], tmp_path: Path) -> None:
    """Turned round to (z, y, x), as viewers show them: NIfTI's first axis is x."""
    volume = read_volume(scan(STRAIGHT))
    assert volume.geometry is not None
    assert volume.geometry.names == ("x", "y", "z")
    tiff = write_labels(tmp_path / "a.ome.tif", marked(), volume)
    xml = tifffile.TiffFile(tiff).ome_metadata or ""
    pixels = next(e for e in ElementTree.fromstring(xml).iter() if e.tag.endswith("}Pixels"))
    assert [pixels.get(f"Size{letter}") for letter in "XYZ"] == ["3", "4", "5"]
    assert [float(pixels.get(f"PhysicalSize{letter}", 0)) for letter in "XYZ"] == pytest.approx(
        [0.7, 0.8, 3.0]
    )
    assert pixels.get("PhysicalSizeXUnit") == "mm"
    with label_output(tmp_path / "a.ome.zarr", volume):
        pass
    about = zarr.open_group(tmp_path / "a.ome.zarr").attrs["ome"]["multiscales"][0]
    assert [axis["name"] for axis in about["axes"]] == ["z", "y", "x"]
    assert about["datasets"][0]["coordinateTransformations"][0]["scale"] == pytest.approx([3, 0.8, 0.7])


def test_the_first_slices_of_a_sagittal_scan_are_axial(scan: Callable[..., Path]) -> None:
    """Default axis and the order of a viewer follow the affine, not the order of the file."""
    volume = read_volume(scan(SAGITTAL))
    assert volume.geometry is not None
    assert (volume.geometry.names, volume.geometry.orientation) == (("y", "z", "x"), "PSR")
    assert (default_axis(volume), shown_axes(volume)) == (1, (1, 0, 2))
    shown = as_shown(volume)
    assert shown.geometry is not None
    assert (shown.shape, shown.geometry.names) == ((4, 3, 5), ("z", "y", "x"))


@pytest.mark.parametrize(("letters", "names"), [("TYX", ["t", "y", "x"]), ("ZYX", ["z", "y", "x"])])
def test_time_stays_time(letters: str, names: list[str], tmp_path: Path) -> None:
    """In labels of other formats, with its type."""
    tifffile.imwrite(
        tmp_path / "a.tif", marked(), imagej=True, resolution=(2, 2), metadata={"axes": letters, "unit": "um"}
    )
    with label_output(tmp_path / "a.ome.zarr", read_volume(tmp_path / "a.tif")):
        pass
    axes = zarr.open_group(tmp_path / "a.ome.zarr").attrs["ome"]["multiscales"][0]["axes"]
    assert [axis["name"] for axis in axes] == names
    assert axes[0]["type"] == ("time" if "T" in letters else "space")
    assert axes[2]["unit"] == "micrometer"


def test_names_of_axes_are_kept_whole(tmp_path: Path) -> None:
    """y0, y1 and y2 are three axes."""
    about = {"coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}
    image = write_zarr(tmp_path / "named.ome.zarr", marked(), ("y0", "y1", "y2"), about)
    with label_output(tmp_path / "a.ome.zarr", read_volume(image)):
        pass
    axes = zarr.open_group(tmp_path / "a.ome.zarr").attrs["ome"]["multiscales"][0]["axes"]
    assert [axis["name"] for axis in axes] == ["y0", "y1", "y2"]


@pytest.mark.parametrize("where", ["of the data set", "of the image", "of both"])
@pytest.mark.parametrize("name", ["a.ome.zarr", "a.nii.gz", "a.ome.tif", "a.tif"])
def test_labels_keep_the_translation_of_an_image(where: str, name: str, tmp_path: Path) -> None:
    """Which OME-Zarr may tell in two places, one applied after the other."""
    scale = {"type": "scale", "scale": [40, 4, 4]}
    moved = {"type": "translation", "translation": [400, 1000, 2000]}
    own = {
        "of the data set": [scale, moved],
        "of the image": [{"type": "scale", "scale": [1, 1, 1]}],
        "of both": [
            {"type": "scale", "scale": [20, 2, 2]},
            {"type": "translation", "translation": [100] * 3},
        ],
    }[where]
    top = {
        "of the image": [scale, moved],
        "of both": [
            {"type": "scale", "scale": [2, 2, 2]}, {"type": "translation", "translation": [200, 800, 1800]},
        ],
    }.get(where)  # fmt: skip
    image = write_zarr(
        tmp_path / "image.ome.zarr", marked(), "zyx", {"coordinateTransformations": own}, unit="nanometer"
    )
    if top:
        root = zarr.open_group(image, mode="r+")
        root.attrs["multiscales"] = [root.attrs["multiscales"][0] | {"coordinateTransformations": top}]
    volume = read_volume(image)
    with label_output(tmp_path / name, volume) as labels:
        labels.data[...] = marked()
    expected = {"z": 400 + 40, "y": 1000 + 8, "x": 2000 + 12}
    assert place(image) == pytest.approx(expected)
    assert place(tmp_path / name, "nm") == pytest.approx(expected, rel=1e-5)


def test_every_level_of_labels_lies_where_the_image_lies(tmp_path: Path) -> None:
    """A coarse level shows every second voxel, the first among them: the same translation."""
    geometry = Geometry.from_scale("zyx", (40, 4, 4), (400, 1000, 2000), ["nm"] * 3)
    like = Volume(np.broadcast_to(np.uint8(0), (2, 600, 600)), geometry=geometry)
    with label_output(tmp_path / "a.ome.zarr", like):
        pass
    levels = zarr.open_group(tmp_path / "a.ome.zarr").attrs["ome"]["multiscales"][0]["datasets"]
    changes = [[change[change["type"]] for change in level["coordinateTransformations"]] for level in levels]
    assert changes == [[[40, 4, 4], [400, 1000, 2000]], [[40, 8, 8], [400, 1000, 2000]]]


def test_labels_that_are_there_but_lie_elsewhere_are_not_written_to(tmp_path: Path) -> None:
    """Two crops of one shape."""
    for start in (0, 100):
        geometry = Geometry.from_scale("zyx", (1, 1, 1), (start, 0, 0), ["nm"] * 3)
        like = Volume(marked(), geometry=geometry)
        if start == 0:
            with label_output(tmp_path / "a.ome.zarr", like):
                pass
    with pytest.raises(ValueError, match=r"the labels in .*a.ome.zarr lie elsewhere than the image; give"):
        check_labels_path(tmp_path / "a.ome.zarr", like=like)


@pytest.mark.parametrize(
    ("unit", "micrometres"),
    [("Å", 0.0004), ("nm", 0.004), ("pm", 4e-6), ("mm", 4000.0), ("cm", 40000.0), ("in", 4 * 25400.0)],
)
@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr", "a.nii.gz"])
def test_no_unit_is_taken_for_micrometres(unit: str, micrometres: float, name: str, tmp_path: Path) -> None:
    """Sizes of OME-TIFF keep their length in every format."""
    about = {"axes": "ZYX"} | {f"PhysicalSize{a}": 4.0 for a in "XYZ"}
    about |= {f"PhysicalSize{a}Unit": unit for a in "XYZ"}
    tifffile.imwrite(tmp_path / "image.ome.tif", marked(), ome=True, metadata=about)
    volume = read_volume(tmp_path / "image.ome.tif")
    assert volume.spacing == pytest.approx((micrometres,) * 3)
    with label_output(tmp_path / name, volume):
        pass
    back = read_volume(tmp_path / name).geometry
    assert back is not None
    assert back.in_unit("µm").spacing == pytest.approx((micrometres,) * 3, rel=1e-6)


@pytest.mark.parametrize("unit", ["pixel", "reference frame"])
@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr", "a.nii.gz", "a.tif"])
def test_a_size_in_pixels_gets_no_unit(unit: str, name: str, tmp_path: Path) -> None:
    """Nothing is made up where a file has no length."""
    about = {"axes": "ZYX"} | {f"PhysicalSize{a}": 4.0 for a in "XYZ"}
    about |= {f"PhysicalSize{a}Unit": unit for a in "XYZ"}
    tifffile.imwrite(tmp_path / "image.ome.tif", marked(), ome=True, metadata=about)
    with label_output(tmp_path / name, read_volume(tmp_path / "image.ome.tif")):
        pass
    back = read_volume(tmp_path / name).geometry
    assert back is not None
    assert (back.spacing, back.unit) == (pytest.approx((4.0,) * 3), None)


@pytest.mark.parametrize(
    ("unit", "name", "written"),
    [
        ("nanometer", "a.ome.tif", (0.04, "µm")),
        ("angstrom", "a.ome.tif", (0.004, "µm")),
        ("nanometer", "a.tif", (40, "nm")),
    ],
)  # fmt: skip
def test_units_of_ome_zarr_reach_tiff(
    unit: str, name: str, written: tuple[float, str], tmp_path: Path
) -> None:
    """By their name."""
    about = {"coordinateTransformations": [{"type": "scale", "scale": [40, 4, 4]}]}
    image = write_zarr(tmp_path / "image.ome.zarr", marked(), "zyx", about, unit=unit)
    back = read_volume(write_labels(tmp_path / name, marked(), read_volume(image)))
    assert back.geometry is not None
    assert (back.geometry.spacing[0], back.geometry.unit) == (pytest.approx(written[0]), written[1])


def test_units_of_imagej_reach_other_formats(tmp_path: Path) -> None:
    """Inches, and nanometres, for which NIfTI has no name: there they are micrometres."""
    about = {"axes": "ZYX", "spacing": 40, "unit": "nm"}
    tifffile.imwrite(tmp_path / "nm.tif", marked(), imagej=True, resolution=(1 / 4, 1 / 4), metadata=about)
    header = nibabel.load(
        write_labels(tmp_path / "g.nii.gz", marked(), read_volume(tmp_path / "nm.tif"))
    ).header
    assert header.get_xyzt_units()[0] == "micron"
    assert header.get_zooms() == pytest.approx((0.04, 0.004, 0.004))
    with label_output(tmp_path / "f.ome.zarr", read_volume(tmp_path / "nm.tif")):
        pass
    axes = zarr.open_group(tmp_path / "f.ome.zarr").attrs["ome"]["multiscales"][0]["axes"]
    assert {axis["unit"] for axis in axes} == {"nanometer"}
    about = {"axes": "ZYX", "spacing": 2.0, "unit": "inch"}
    tifffile.imwrite(tmp_path / "in.tif", marked(), imagej=True, resolution=(2, 2), metadata=about)
    path = write_labels(tmp_path / "d.ome.tif", marked(), read_volume(tmp_path / "in.tif"))
    xml = tifffile.TiffFile(path).ome_metadata
    assert 'PhysicalSizeX="0.5" PhysicalSizeXUnit="in"' in (xml or "")


@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr", "a.nii.gz"])
def test_an_unknown_unit_is_refused_and_not_guessed(name: str, tmp_path: Path) -> None:
    """Before any work."""
    like = Volume(marked(), geometry=Geometry.from_scale("zyx", (1, 2, 3), units=["furlong"] * 3))
    with pytest.raises(ValueError, match=r"cannot hold .* in 'furlong', a unit that is not known"):
        check_labels_path(tmp_path / name, like=like)


@pytest.mark.parametrize(("unit", "micrometres"), [(2, 0.254), (3, 0.1)])
def test_a_fine_resolution_is_the_size_of_a_pixel(unit: int, micrometres: float, tmp_path: Path) -> None:
    """No printer has 100,000 dots per inch; per centimetre likewise."""
    tifffile.imwrite(tmp_path / "a.tif", marked()[0], resolution=(100000, 100000), resolutionunit=unit)
    volume = read_volume(tmp_path / "a.tif")
    assert volume.spacing == pytest.approx((micrometres,) * 2)
    assert volume.geometry is not None
    assert volume.geometry.unit == "µm"


@pytest.mark.parametrize("paged", [True, False])
def test_pages_of_unknown_meaning_are_slices(paged: bool, tmp_path: Path) -> None:
    """As Pillow and cameras write them; in OME they are Z."""
    pages = marked((6, 4, 5))
    if paged:
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            for plane in pages:
                file.write(plane, metadata=None, contiguous=False)
    else:
        tifffile.imwrite(tmp_path / "a.tif", pages)
    volume = read_volume(tmp_path / "a.tif")
    check_labels_path(tmp_path / "b.ome.tif", like=volume)
    xml = tifffile.TiffFile(write_labels(tmp_path / "b.ome.tif", pages, volume)).ome_metadata or ""
    assert 'SizeZ="6"' in xml
    assert 'SizeT="1"' in xml


def test_a_compression_without_its_library_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence says what to install; with the library LZW is read."""
    pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "a.tif", marked(), compression="lzw")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").data, marked())

    def missing(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", missing)
    with pytest.raises(
        ValueError, match=r"its LZW compression needs imagecodecs, which is not installed; pip"
    ) as caught:
        read_volume(tmp_path / "a.tif")
    assert "damaged" not in str(caught.value)


def test_axes_of_length_1_are_no_axes(scan: Callable[..., Path], tmp_path: Path) -> None:
    """As converters write them: a volume of NIfTI, an image of OME-Zarr."""
    volume = read_volume(scan(STRAIGHT, data=marked()[..., None]))
    assert (volume.shape, volume.spacing) == (SHAPE, pytest.approx((0.7, 0.8, 3.0)))
    about = {"coordinateTransformations": [{"type": "scale", "scale": [1, 1, 4, 2, 2]}]}
    image = read_volume(write_zarr(tmp_path / "a.zarr", marked()[None, None], "tczyx", about))
    assert (image.shape, image.spacing) == (SHAPE, (4, 2, 2))
    np.testing.assert_array_equal(np.asarray(image.data), marked())
    for like in (volume, image):
        assert read_volume(write_labels(tmp_path / "b.nii.gz", marked(), like)).shape == SHAPE


def test_what_bioformats2raw_writes_is_opened(tmp_path: Path) -> None:
    """By its folder, by the path of its one image; of two by path only."""
    root = zarr.open_group(tmp_path / "a.ome.zarr", mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    about = {"coordinateTransformations": [{"type": "scale", "scale": [1, 1, 4, 2, 2]}]}
    write_zarr(tmp_path / "a.ome.zarr" / "0", marked()[None, None], "tczyx", about)
    for path in ("a.ome.zarr", "a.ome.zarr/0"):
        assert read_volume(tmp_path / path).spacing == (4, 2, 2)
    write_zarr(tmp_path / "a.ome.zarr" / "1", marked()[None, None], "tczyx", about)
    with pytest.raises(ValueError, match=r"there are 2 images in it; choose one with series: 0, 1"):
        read_volume(tmp_path / "a.ome.zarr")
    assert read_volume(tmp_path / "a.ome.zarr" / "1").shape == SHAPE


def test_a_mask_of_another_orientation_is_turned(scan: Callable[..., Path]) -> None:
    """Mirrored, transposed and of one time point: it lies on the same voxels."""
    image = read_volume(scan(STRAIGHT))
    mirrored = STRAIGHT @ np.array([[-1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    cases = {
        "mirrored.nii": (mirrored, marked()[::-1]),
        "turned.nii": (STRAIGHT[:, [2, 0, 1, 3]], marked().transpose(2, 0, 1)),
        "time.nii": (STRAIGHT, marked()[..., None]),
    }
    for name, (affine, data) in cases.items():
        mask = read_aligned(scan(affine, name, data), image, "mask")
        np.testing.assert_array_equal(np.asarray(mask.data), marked())


def test_what_is_not_loaded_is_turned_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file of labels is turned onto the image plane by plane."""
    labels, affine = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4), np.diag([2, 3, 5, 1])
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "labels.nii")
    mirrored = affine @ np.array([[-1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    image = np.ascontiguousarray(labels[::-1].transpose(2, 0, 1))
    nibabel.save(nibabel.Nifti1Image(image, mirrored[:, [2, 0, 1, 3]]), tmp_path / "image.nii")
    like = read_volume(tmp_path / "image.nii")
    loaded = read_aligned(tmp_path / "labels.nii", like, "file")
    monkeypatch.setattr("napari_lowlat_seg.io.formats.nifti.LARGE", 0)
    lazy = read_aligned(tmp_path / "labels.nii", like, "file")
    assert isinstance(lazy.data, TurnedArray)
    assert np.array_equal(np.asarray(lazy.data), image)
    assert np.array_equal(np.asarray(loaded.data), image)
    assert lazy.spacing == loaded.spacing
    for plane in like.planes(1):
        assert np.array_equal(lazy.plane(plane), image[plane.key()])


def test_a_mask_from_elsewhere_is_refused(scan: Callable[..., Path], tmp_path: Path) -> None:
    """30 mm away, of another size, of another shape."""
    image = read_volume(scan(STRAIGHT))
    away = STRAIGHT.copy()
    away[0, 3] += 30
    for affine in (away, STRAIGHT * [2, 1, 1, 1]):
        with pytest.raises(
            ValueError, match=r"the mask .*m.nii lies elsewhere in the world than the image scan"
        ):
            read_aligned(scan(affine, "m.nii"), image, "mask")
    with pytest.raises(
        ValueError, match=r"the mask .*m.nii must have the image's shape \(3, 4, 5\); got \(9, 4, 5\)"
    ):
        read_aligned(scan(STRAIGHT, "m.nii", marked((9, 4, 5))), image, "mask")
    write_labels(tmp_path / "plain.tif", marked())
    assert read_aligned(tmp_path / "plain.tif", image, "mask").shape == SHAPE
    write_labels(tmp_path / "plain.tif", marked((4, 4, 5)))
    with pytest.raises(ValueError, match=r"must have the image's shape"):
        read_aligned(tmp_path / "plain.tif", image, "mask")


def test_a_mask_that_says_a_size_and_no_place_is_used(tmp_path: Path) -> None:
    """A TIFF for a crop that lies somewhere."""
    geometry = Geometry.from_scale("zyx", (4, 2, 2), (100, 0, 0), ["nm"] * 3)
    tifffile.imwrite(
        tmp_path / "m.tif", marked(), imagej=True, resolution=(0.5, 0.5),
        metadata={"axes": "ZYX", "spacing": 4, "unit": "nm"},
    )  # fmt: skip
    mask = read_aligned(tmp_path / "m.tif", Volume(marked(), geometry=geometry), "mask")
    np.testing.assert_array_equal(np.asarray(mask.data), marked())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(), (0,), (0, 2)])
def test_a_turned_array_is_read_and_written_as_if_it_were_turned(
    order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    """Against numpy's own transposition and reversal."""
    plain = np.arange(60).reshape(SHAPE)
    turn = Turn(order, flips)
    stored = np.ascontiguousarray(turn.array(plain))
    view = TurnedArray(stored, turn)
    assert (view.shape, view.ndim, turn.shape(SHAPE)) == (SHAPE, 3, stored.shape)
    for key in (
        (1,),
        (slice(None), 2),
        (..., 4),
        (slice(1, 3), slice(0, 2), slice(2, 5)),
        (2, -1, 3),
        (slice(2, 2),),
    ):
        np.testing.assert_array_equal(view[key], plain[key])
    view[1, 1:3, 2:5] = [[1, 2, 3], [4, 5, 6]]
    plain[1, 1:3, 2:5] = [[1, 2, 3], [4, 5, 6]]
    np.testing.assert_array_equal(stored, turn.array(plain))
    with pytest.raises(IndexError, match="cut in steps of 1; got 2"):
        view[::2]
    with pytest.raises(IndexError, match="index 9 is outside an axis of 3"):
        view[9]


def test_nothing_is_left_of_labels_that_could_not_be_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: the sentence names the file, and the same call works when there is room."""
    like = Volume(marked(), geometry=Geometry.from_scale("zyx", units=["nm"] * 3))
    whole = zarr.Group.create_array

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr.Group, "create_array", full)
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*l.ome.zarr'"),
        label_output(tmp_path / "l.ome.zarr", like),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(zarr.Group, "create_array", whole)
    with label_output(tmp_path / "l.ome.zarr", like) as labels:
        labels.data[...] = marked()
    assert place(tmp_path / "l.ome.zarr")["x"] == 3


def test_nifti_has_no_time_without_three_axes_of_space(tmp_path: Path) -> None:
    """Nor four of them."""
    series = Volume(marked(), geometry=Geometry.from_scale("tyx", (1, 2, 2)))
    with pytest.raises(ValueError, match=r"axes x, y, z before time, the image has t, y, x; write .ome.tif"):
        check_labels_path(tmp_path / "a.nii", like=series)
    space = tuple(Axis(name) for name in "wzyx")
    four = Volume(marked((2, 3, 4, 5)), geometry=Geometry(space, np.eye(5)))
    with pytest.raises(ValueError, match=r"NIfTI has three axes of space, the image has 4"):
        check_labels_path(tmp_path / "a.nii", like=four)


@pytest.mark.parametrize("version", [2, 3])
def test_labels_in_an_image_are_of_its_version_and_in_its_list(version: int, tmp_path: Path) -> None:
    """Readers find them by the list of the `labels` folder; a second one is entered beside the first."""
    image = tmp_path / "image.ome.zarr"
    about = [{"type": "scale", "scale": [4, 2, 2]}, {"type": "translation", "translation": [8, 0, 0]}]
    if version == 2:
        write_zarr(image, marked(), "zyx", {"coordinateTransformations": about}, unit="nanometer")
    else:
        root = zarr.open_group(image, mode="w", zarr_format=3)
        root.create_array("0", data=marked())
        axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
        levels = [{"path": "0", "coordinateTransformations": about}]
        root.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    volume = read_volume(image)
    for name in ("cells", "nuclei"):
        check_labels_path(image / "labels" / name, like=volume)
        with label_output(image / "labels" / name, volume) as labels:
            labels.data[...] = marked()
    folder = zarr.open_group(image / "labels", mode="r")
    listed = folder.attrs["labels"] if version == 2 else folder.attrs["ome"]["labels"]
    assert listed == ["cells", "nuclei"]
    cells = zarr.open_group(image / "labels" / "cells", mode="r")
    assert cells.metadata.zarr_format == version
    assert "image-label" in (cells.attrs if version == 2 else cells.attrs["ome"])
    assert place(image / "labels" / "nuclei") == pytest.approx(place(image))
    with label_output(image / "labels" / "cells", volume) as labels:  # opened again, not made anew
        assert labels.highest() == 7


def test_the_list_of_labels_is_found_by_ome_zarr_s_own_reader(tmp_path: Path) -> None:
    """As other programs find it."""
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    about = {"coordinateTransformations": [{"type": "scale", "scale": [4, 2, 2]}]}
    image = write_zarr(tmp_path / "image.ome.zarr", marked(), "zyx", about)
    with label_output(image / "labels" / "cells", read_volume(image)) as labels:
        labels.data[...] = marked()
    nodes = list(Reader(parse_url(image))())
    assert any("cells" in str(node.zarr) for node in nodes)


@pytest.mark.parametrize("big", [False, True])
def test_pages_that_lead_in_a_circle_are_refused(big: bool, tmp_path: Path) -> None:
    """At once: a reader would go round for minutes."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=big) as file:
        for plane in marked():
            file.write(plane, metadata=None, contiguous=False)
    assert read_volume(path).shape == SHAPE
    with tifffile.TiffFile(path) as opened:
        first, last = opened.pages[0].offset, opened.pages[2]
        end = last.offset + (8 + 20 * len(last.tags) if big else 2 + 12 * len(last.tags))
    raw = bytearray(path.read_bytes())
    size = 8 if big else 4
    raw[end : end + size] = int(first).to_bytes(size, "little")
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=rf"its pages lead in a circle, back to byte {first}"):
        read_volume(path)
