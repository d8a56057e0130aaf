"""Every format: small real files made by its own library are read where they lie, labels come back there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from napari_lowlat_seg.core.geometry import Axis, Geometry
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.files import (
    check_labels_path,
    label_output,
    read_aligned,
    read_volume,
    write_labels,
)
from napari_lowlat_seg.io.format_table import FORMATS, Format, find_format, locate
from napari_lowlat_seg.io.formats.nrrd import NrrdHeader, Segment
from napari_lowlat_seg.io.formats.pictures import natural_key

mrcfile = pytest.importorskip("mrcfile")
nrrd = pytest.importorskip("nrrd")
h5py = pytest.importorskip("h5py")
pydicom = pytest.importorskip("pydicom")
sitk = pytest.importorskip("SimpleITK")

SHAPE = (3, 4, 5)
NOISE = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.uint8)
WRITTEN = (".tif", ".ome.tif", ".nii.gz", ".ome.zarr", ".nrrd", ".seg.nrrd", ".mrc", ".mha", ".mgz")


def labels_at(index: tuple[int, int, int] = (1, 2, 3)) -> np.ndarray:
    """One voxel."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[index] = 7
    return labels


def world_of(volume: Volume, unit: str | None) -> np.ndarray:
    """Where the labelled voxel lies, as (z, y, x) in a unit."""
    assert volume.geometry is not None
    geometry = (
        volume.geometry if unit is None or volume.geometry.unit is None else volume.geometry.in_unit(unit)
    )
    assert [axis.name for axis in geometry.world] == ["z", "y", "x"]
    return geometry.to_world(np.argwhere(np.asarray(volume.data) == 7)[0])


def test_mrc_is_mapped_and_placed_in_angstrom(tmp_path: Path) -> None:
    """By voxel size and origin; labels come back in the smallest mode."""
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(NOISE.astype(np.float32))
        file.voxel_size = (4.0, 5.0, 6.0)
        file.header.origin.x = 100.0
    volume = read_volume(tmp_path / "a.mrc")
    assert isinstance(volume.data, np.memmap)
    assert (volume.spacing, volume.geometry and volume.geometry.unit) == ((6.0, 5.0, 4.0), "Å")
    assert volume.geometry is not None
    assert volume.geometry.translation.tolist() == [0, 0, 100]
    for highest, mode in ((7, 0), (300, 1), (40000, 6)):
        path = write_labels(tmp_path / "b.mrc", labels_at() * np.int64(highest) // 7, volume)
        with mrcfile.open(path) as file:
            assert (int(file.header.mode), int(file.data.max())) == (mode, highest)
        assert read_volume(path).geometry.affine.tolist() == volume.geometry.affine.tolist()
    with pytest.raises(ValueError, match=r"MRC holds labels up to 65535, these go up to 70000"):
        write_labels(tmp_path / "b.mrc", labels_at() * np.int64(10000), volume)


def test_mrc_axes_may_stand_in_another_order(tmp_path: Path) -> None:
    """mapc, mapr and maps say which; nxstart counts where there is no origin."""
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(NOISE)
        file.voxel_size = (4.0, 5.0, 6.0)
        file.header.mapc, file.header.mapr, file.header.maps = 3, 2, 1
        file.header.nzstart = 10
    geometry = read_volume(tmp_path / "a.mrc").geometry
    assert geometry is not None
    assert (geometry.names, geometry.spacing) == (("x", "y", "z"), (4.0, 5.0, 6.0))
    assert geometry.to_world((0, 0, 0)).tolist() == [0, 0, 40]


def test_bytes_of_imod_have_no_sign_where_it_says_so(tmp_path: Path) -> None:
    """200 stays 200."""
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(NOISE.view(np.int8))
        extra = bytearray(file.header.extra2.tobytes())
        extra[40:48] = np.array([1146047817, 0], np.int32).tobytes()
        file.header.extra2 = np.void(bytes(extra))
    np.testing.assert_array_equal(np.asarray(read_volume(tmp_path / "a.mrc").data), NOISE)


def fei_mrc(path: Path, kind: str, pixel: float, cell: tuple[float, ...] | None, order: str = "<") -> Path:
    """An MRC as FEI's microscopes write it: sizes in metres in a header for each section."""
    dtype = mrcfile.dtypes.get_ext_header_dtype(kind.encode(), order)
    sections = np.zeros(SHAPE[0], dtype)
    sections["Metadata size"], sections["Pixel size X"], sections["Pixel size Y"] = (
        dtype.itemsize,
        pixel,
        pixel,
    )
    with mrcfile.new(path) as file:
        file.set_data(NOISE)
        file.set_volume()
        file.set_extended_header(sections)
        file.header.exttyp = kind.encode()
        if cell is not None:
            file.voxel_size = cell
    return path


@pytest.mark.parametrize("kind", ["FEI1", "FEI2"])
@pytest.mark.parametrize("cell", [None, (1.0, 1.0, 1.0)])
def test_sizes_in_the_extended_header_of_fei_are_metres(tmp_path: Path, kind: str, cell: Any) -> None:
    """Where the cell names none: 3.42e-10 m are 3.42 Å."""
    volume = read_volume(fei_mrc(tmp_path / "a.mrc", kind, 3.42e-10, cell))
    assert volume.geometry.unit == "Å"
    assert volume.spacing == pytest.approx((3.42, 3.42, 3.42))
    np.testing.assert_array_equal(np.asarray(volume.data), NOISE)


@pytest.mark.parametrize(
    ("pixel", "cell", "spacing"),
    [
        (3.42e-10, (6.84, 6.84, 6.84), 6.84),  # binned by a program that kept the extended header
        (float("nan"), (1.0, 1.0, 1.0), 1.0),
        (-1.0, (1.0, 1.0, 1.0), 1.0),
        (3.42, (1.0, 1.0, 1.0), 1.0),  # no microscope has pixels of metres
    ],
)
def test_a_cell_with_sizes_and_impossible_sizes_of_fei(
    tmp_path: Path, pixel: float, cell: Any, spacing: float
) -> None:
    """The cell is right wherever it says something, and what cannot be is no size."""
    volume = read_volume(fei_mrc(tmp_path / "a.mrc", "FEI1", pixel, cell))
    assert volume.spacing == pytest.approx((spacing,) * 3)


@pytest.mark.parametrize("cut", ["kind", "length", "size"])
def test_an_extended_header_that_is_not_what_it_says_is_left_out(tmp_path: Path, cut: str) -> None:
    """The image is read all the same."""
    path = fei_mrc(tmp_path / "a.mrc", "FEI1", 3.42e-10, None)
    raw = bytearray(path.read_bytes())
    if cut == "kind":
        raw[104:108] = b"CCP4"
    elif cut == "size":
        raw[1024:1028] = b"\x01\0\0\0"
    else:
        length = int.from_bytes(raw[92:96], "little")
        raw[92:96] = (100).to_bytes(4, "little")
        del raw[1024 + 100 : 1024 + length]
    path.write_bytes(raw)
    np.testing.assert_array_equal(np.asarray(read_volume(path).data), NOISE)


def test_packed_and_unplaced_mrc_is_read(tmp_path: Path) -> None:
    """gzip; a voxel size of 0 says nothing; four axes are volumes of a stack."""
    with mrcfile.new(tmp_path / "a.mrc.gz", compression="gzip") as file:
        file.set_data(NOISE)
        file.voxel_size = 0.0
    volume = read_volume(tmp_path / "a.mrc.gz")
    assert (volume.shape, volume.spacing) == (SHAPE, None)
    with mrcfile.new(tmp_path / "b.mrc") as file:
        file.set_data(np.zeros((2, *SHAPE), np.float32))
    assert read_volume(tmp_path / "b.mrc").shape == (2, *SHAPE)


def test_mrc_refuses_what_it_cannot_say(tmp_path: Path) -> None:
    """Sizes without a unit, time, four axes."""
    for like, message in (
        (Volume(NOISE, (1, 2, 3)), r"MRC counts in Å, and the image names no unit for its sizes"),
        (
            Volume(NOISE, geometry=Geometry.from_scale("tyx", (1, 2, 2))),
            r"MRC has axes z, y, x, the image has t, y, x",
        ),
        (Volume(NOISE[None]), r"MRC has two or three axes of space, the image has 4 axes"),
    ):
        with pytest.raises(ValueError, match=message):
            check_labels_path(tmp_path / "a.mrc", like=like)


def test_nrrd_is_placed_in_any_of_its_spaces(tmp_path: Path) -> None:
    """LPS, RAS and LAS mean the same place; spacings alone have none."""
    directions, origin = np.array([[0, 2, 0], [1, 0, 0], [0, 0, 3.0]]), np.array([10, 20, 30.0])
    signs = {
        "left-posterior-superior": (-1, -1, 1),
        "right-anterior-superior": (1, 1, 1),
        "left-anterior-superior": (-1, 1, 1),
    }
    found = []
    for space, sign in signs.items():
        header = {"space": space, "space directions": directions * sign, "space origin": origin * sign}
        nrrd.write(str(tmp_path / "a.nrrd"), NOISE, header, index_order="C")
        volume = read_volume(tmp_path / "a.nrrd")
        np.testing.assert_array_equal(volume.data, NOISE)
        assert volume.geometry is not None
        found.append(volume.geometry.to_world((1, 2, 3)).tolist())
    # Array (1, 2, 3) is (3, 2, 1) of the file, whose axes lead to y, x and z.
    assert found == [[30 + 3, 20 + 6, 10 + 2]] * 3
    nrrd.write(str(tmp_path / "b.nrrd"), NOISE, {"spacings": [1, 2, 3], "units": ["um"] * 3}, index_order="C")
    plain = read_volume(tmp_path / "b.nrrd")
    assert (plain.spacing, plain.geometry and plain.geometry.unit) == ((3.0, 2.0, 1.0), "µm")


def test_channels_of_nrrd_have_no_direction(tmp_path: Path) -> None:
    """One list is an axis of channels, two are too many."""
    data = np.stack([NOISE, NOISE + 1], axis=-1)
    directions = np.array([[np.nan] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    header = {"space": "RAS", "space directions": directions, "kinds": ["list", "domain", "domain", "domain"]}
    nrrd.write(str(tmp_path / "a.nrrd"), data, header, index_order="C")
    np.testing.assert_array_equal(
        read_volume(tmp_path / "a.nrrd", channel=1).plane(Plane((2, None, None))), NOISE[2] + 1
    )
    header = {"kinds": ["list", "vector", "domain", "domain"]}
    nrrd.write(str(tmp_path / "a.nrrd"), data, header, index_order="C")
    with pytest.raises(ValueError, match="2 axes have no direction in space; one, of channels, can be read"):
        read_volume(tmp_path / "a.nrrd")


def test_segments_keep_names_and_colours(tmp_path: Path) -> None:
    """From .seg.nrrd to .seg.nrrd; new ones get a name and a colour of their own."""
    like = Volume(NOISE, geometry=Geometry.from_nifti(np.diag([1, 2, 3, 1]), 3).transpose((2, 1, 0)))
    labels = labels_at()
    labels[0, 0, 0] = 2
    first = read_volume(write_labels(tmp_path / "a.seg.nrrd", labels, like))
    assert [(s.label, s.name) for s in first.header.segments] == [(2, "Segment_2"), (7, "Segment_7")]
    assert first.header.segments[0].colour != first.header.segments[1].colour
    named = NrrdHeader((Segment(7, "left kidney", (0.5, 0.25, 0)),))
    again = Volume(NOISE, geometry=like.geometry, header=named)
    kept = read_volume(write_labels(tmp_path / "b.seg.nrrd", labels, again)).header.segments
    assert (kept[0].name, kept[1]) == ("Segment_2", named.segments[0])
    header = nrrd.read_header(str(tmp_path / "b.seg.nrrd"))
    assert header["Segment1_Extent"] == "0 4 0 3 0 2"
    with pytest.raises(ValueError, match=r"a .seg.nrrd holds a volume, the image has 2 axes"):
        check_labels_path(tmp_path / "c.seg.nrrd", like=Volume(NOISE[0]))


def test_nrrd_refuses_time_and_unknown_units(tmp_path: Path) -> None:
    """Before any work."""
    for geometry, message in (
        (Geometry.from_scale("tyx", (1, 2, 2)), r"NRRD has axes of space only, the image has t, y, x"),
        (
            Geometry.from_scale("zyx", (1, 2, 2), units=["furlong"] * 3),
            r"NRRD cannot hold lengths in 'furlong'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            check_labels_path(tmp_path / "a.nrrd", like=Volume(NOISE, geometry=geometry))


def test_metaimage_lies_where_itk_puts_it(tmp_path: Path) -> None:
    """ITK's own point of a voxel, which counts to the left and to the back."""
    image = sitk.GetImageFromArray(labels_at())
    image.SetSpacing((0.5, 0.6, 2))
    image.SetOrigin((10, 20, 30))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    x, y, z = image.TransformIndexToPhysicalPoint((3, 2, 1))
    assert world_of(read_volume(tmp_path / "a.mha"), "mm").tolist() == pytest.approx([z, -y, -x])
    colours = sitk.GetImageFromArray(np.stack([NOISE] * 3, -1), isVector=True)
    sitk.WriteImage(colours, str(tmp_path / "c.mhd"))
    assert read_volume(tmp_path / "c.mhd").plane(Plane((0, None, None))).shape == (4, 5, 3)


def test_metaimage_and_mgz_refuse_what_they_cannot_say(tmp_path: Path) -> None:
    """Sizes without a unit, time, shears."""
    shear = Geometry(
        (Axis("z", unit="mm"), Axis("y", unit="mm"), Axis("x", unit="mm")),
        np.eye(4) + np.eye(4, k=1) * [0, 1, 0, 0],
    )
    time = Geometry.from_scale("tyx", (1, 2, 2))
    for name, geometry, message in (
        ("a.mha", shear, r"MetaImage has no place for axes that are not at right angles"),
        ("a.mha", time, r"MetaImage has axes z, y, x, the image has t, y, x"),
        (
            "a.mha",
            Geometry.from_scale("zyx", (1, 2, 2)),
            r"MetaImage counts in mm, and the image names no unit",
        ),
        ("a.mgz", time, r"MGZ has axes x, y, z, the image has t, y, x"),
        ("a.mgz", Geometry.from_scale("zyx", (1, 2, 2)), r"MGZ counts in mm, and the image names no unit"),
    ):
        with pytest.raises(ValueError, match=message):
            check_labels_path(tmp_path / name, like=Volume(NOISE, geometry=geometry))
    with pytest.raises(ValueError, match=r"MGZ holds labels up to 2147483647, these go up to 4294967295"):
        write_labels(tmp_path / "a.mgz", np.full(SHAPE, 2**32 - 1, np.uint32))


@pytest.mark.parametrize("kind", ["mgz", "pair", "analyze", "afni"])
def test_what_nibabel_reads_lies_where_it_says(kind: str, tmp_path: Path) -> None:
    """Either file of a pair opens it."""
    affine = np.array([[0, -2, 0, 7], [1.5, 0, 0, -3], [0, 0, 4, 11], [0, 0, 0, 1]], float)
    if kind == "afni":
        path = Path(nibabel.__file__).parent / "tests" / "data" / "example4d+orig.HEAD"
        if not path.exists():
            pytest.skip("nibabel came without its test data")
        image = nibabel.load(path)
        volume = read_volume(path)
        assert volume.geometry is not None
        assert volume.geometry.xyz() == pytest.approx(image.affine)
        return
    if kind == "mgz":
        nibabel.save(nibabel.MGHImage(labels_at(), affine), tmp_path / "a.mgz")
        names = ["a.mgz"]
    elif kind == "pair":
        nibabel.save(nibabel.Nifti1Pair(labels_at(), affine), tmp_path / "a.img")
        names = ["a.img", "a.hdr"]
    else:
        affine = np.diag([-1.5, 2, 4, 1.0])
        nibabel.save(nibabel.Spm2AnalyzeImage(labels_at().astype(np.int16), affine), tmp_path / "a.img")
        names = ["a.img", "a.hdr"]
    expected = (nibabel.load(tmp_path / names[0]).affine @ [1, 2, 3, 1])[:3][::-1]
    for name in names:
        np.testing.assert_allclose(world_of(read_volume(tmp_path / name), "mm"), expected, rtol=1e-6)


def test_hdf5_is_opened_and_not_loaded(tmp_path: Path) -> None:
    """Its only image, or the one at a path; sizes as Fiji, ilastik and CREMI write them."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        raw = file.create_dataset("volumes/raw", data=NOISE)
        raw.attrs["resolution"], raw.attrs["offset"] = [40.0, 4.0, 4.0], [400.0, 0.0, 8.0]
        file.create_dataset("table", data=np.arange(5))
    volume = read_volume(tmp_path / "a.h5")
    assert isinstance(volume.data, h5py.Dataset)
    assert volume.geometry is not None
    assert (volume.spacing, volume.geometry.unit) == ((40.0, 4.0, 4.0), "nm")
    assert volume.geometry.translation.tolist() == [400, 0, 8]
    np.testing.assert_array_equal(volume.plane(Plane((1, None, None))), NOISE[1])
    volume.data.file.close()  # or nobody could write
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        seg = file.create_dataset("seg", data=NOISE[None, ..., None])
        tags = [{"key": key} for key in "tzyxc"]
        seg.attrs["axistags"], seg.attrs["element_size_um"] = json.dumps({"axes": tags}), [2.0, 0.5, 0.5]
    with pytest.raises(
        ValueError, match=r"there are 2 images in it; choose one with series: seg \(.*\), volumes/raw \("
    ):
        read_volume(tmp_path / "a.h5")
    chosen = read_volume(tmp_path / "a.h5" / "seg")
    assert (chosen.shape, chosen.spacing) == (SHAPE, (2.0, 0.5, 0.5))
    np.testing.assert_array_equal(chosen.plane(Plane((1, None, None))), NOISE[1])
    with pytest.raises(ValueError, match=r"there is no series 'raw' in it; there are seg"):
        read_volume(tmp_path / "a.h5" / "raw")


def test_arrays_of_numpy_are_images(tmp_path: Path) -> None:
    """Mapped; bytes with three colours are RGB; of several the one that is named."""
    np.save(tmp_path / "a.npy", NOISE)
    assert isinstance(read_volume(tmp_path / "a.npy").data, np.memmap)
    np.save(tmp_path / "c.npy", NOISE[..., :3])
    assert read_volume(tmp_path / "c.npy").shape == (3, 4)
    np.save(tmp_path / "d.npy", np.stack([NOISE, NOISE + 1]).astype(np.uint16))
    assert read_volume(tmp_path / "d.npy", channel=1).shape == SHAPE
    np.savez(tmp_path / "b.npz", raw=NOISE, mask=NOISE > 99)
    with pytest.raises(ValueError, match=r"there are 2 arrays in it; choose one with series: raw, mask"):
        read_volume(tmp_path / "b.npz")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.npz" / "raw").data, NOISE)
    np.save(tmp_path / "e.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"e.npy cannot be read"):
        read_volume(tmp_path / "e.npy")


@pytest.mark.parametrize("version", [2, 3])
def test_plain_zarr_is_an_image(version: int, tmp_path: Path) -> None:
    """An array, the only one of a group, or the one at a path; named axes are kept."""
    zarr.create_array(tmp_path / "a.zarr", data=NOISE, zarr_format=version)
    assert isinstance(read_volume(tmp_path / "a.zarr").data, zarr.Array)
    group = zarr.open_group(tmp_path / "b.zarr", mode="w", zarr_format=version)
    names = {"dimension_names": ["t", "y", "x"]} if version == 3 else {}
    array = group.create_array("raw", data=NOISE, **names)
    if version == 2:
        array.attrs["_ARRAY_DIMENSIONS"] = ["t", "y", "x"]
    volume = read_volume(tmp_path / "b.zarr")
    assert volume.geometry is not None
    assert volume.geometry.names == ("t", "y", "x")
    group.create_array("other", data=NOISE)
    with pytest.raises(ValueError, match=r"there are 2 images in it; choose one with series: "):
        read_volume(tmp_path / "b.zarr")
    assert read_volume(tmp_path / "b.zarr" / "raw").shape == SHAPE


def test_a_folder_of_pages_is_a_stack(tmp_path: Path) -> None:
    """In natural order, read page by page; pages that differ are refused when they are met."""
    for i in range(12):
        Image.fromarray(np.full((4, 5), i, np.uint8)).save(tmp_path / f"slice{i}.png")
    (tmp_path / "notes.txt").write_text("hello")
    volume = read_volume(tmp_path)
    assert (volume.shape, volume.spacing) == ((12, 4, 5), None)
    assert [int(volume.plane(Plane((i, None, None)))[0, 0]) for i in range(12)] == list(range(12))
    np.testing.assert_array_equal(np.asarray(volume.data)[:, 0, 0], range(12))
    np.testing.assert_array_equal(volume.data[2:4, 1:3, ...], np.array([2, 3]).repeat(10).reshape(2, 2, 5))
    assert volume.data[3:3].shape == (0, 4, 5)
    assert volume.plane(Plane((None, 1, None))).shape == (12, 5)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "slice3.png")
    with pytest.raises(ValueError, match=r"slice3.png has shape \(4, 6\) .*; a stack needs pages alike"):
        volume.plane(Plane((3, None, None)))
    assert sorted(["b10", "B9", "a"], key=lambda name: natural_key(Path(name))) == ["a", "B9", "b10"]


def test_folders_that_are_no_stack_are_refused(tmp_path: Path) -> None:
    """Two kinds of pages, pages that are stacks, nothing at all."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((6, 4, 5), np.uint8))
    with pytest.raises(ValueError, match=r"its page a.tif has shape \(6, 4, 5\); a stack needs planes"):
        read_volume(tmp_path)
    Image.fromarray(NOISE[0]).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"its pages are of several kinds, .png, .tif; a stack needs one"):
        read_volume(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there are no DICOM images in this folder"):
        read_volume(tmp_path / "empty")


def test_a_folder_of_tiff_pages_has_their_size(tmp_path: Path) -> None:
    """Colours stay last."""
    for i in range(3):
        tifffile.imwrite(tmp_path / f"{i}.tif", NOISE[i], resolution=(100000, 100000), resolutionunit=3)
    assert read_volume(tmp_path).spacing == pytest.approx((0.1, 0.1, 0.1))


def write_slice(path: Path, pixels: np.ndarray, **about: Any) -> None:
    """One DICOM slice."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    dataset.SeriesInstanceUID, dataset.Modality, dataset.SeriesDescription = "1.2.3", "CT", "head"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    for key, value in about.items():
        setattr(dataset, key, value)
    dataset.save_as(path, enforce_file_format=True)


ALONG, DOWN = np.array([0.8, 0.6, 0]), np.array([-0.6, 0.8, 0])


def write_series(folder: Path, positions: list[Any], **about: Any) -> None:
    """Slices at positions, in the order of their names another one."""
    folder.mkdir(exist_ok=True)
    for i, position in enumerate(positions):
        write_slice(
            folder / f"{(i * 7) % 11}.dcm", NOISE[i], ImagePositionPatient=list(position),
            PixelSpacing=[0.5, 0.25],
            ImageOrientationPatient=[*ALONG, *DOWN], SliceThickness=2, **about,
        )  # fmt: skip


def test_a_dicom_series_is_sorted_along_its_normal(tmp_path: Path) -> None:
    """Oblique, in Hounsfield units; a voxel lies where the standard says."""
    places = [(10, 20, 30 + 2 * i) for i in range(3)]
    write_series(tmp_path / "s", places, RescaleSlope=2, RescaleIntercept=-1000)
    (tmp_path / "s" / "notes.txt").write_text("hello")
    for path in (tmp_path / "s", tmp_path / "s" / "0.dcm"):
        volume = read_volume(path)
        np.testing.assert_array_equal(np.asarray(volume.data), NOISE.astype(int) * 2 - 1000)
        assert volume.spacing == pytest.approx((2, 0.5, 0.25))
        assert volume.geometry is not None
        x, y, z = np.array([10, 20, 32]) + ALONG * 3 * 0.25 + DOWN * 2 * 0.5
        assert volume.geometry.to_world((1, 2, 3)).tolist() == pytest.approx([z, -y, -x])
    with label_output(tmp_path / "labels.nii.gz", volume) as labels:
        labels.data[...] = labels_at()
    np.testing.assert_allclose(
        world_of(read_volume(tmp_path / "labels.nii.gz"), "mm"),
        volume.geometry.to_world((1, 2, 3)),
        atol=1e-5,
    )
    again = read_aligned(tmp_path / "labels.nii.gz", volume, "mask")
    np.testing.assert_array_equal(np.asarray(again.data), labels_at())


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([(0, 0.5 * i, 2 * i) for i in range(3)], r"shifted sideways, as by a tilted gantry; resample it"),
        ([(0, 0, z) for z in (0, 2, 6)], r"its slices are 2 to 4 mm apart: some are missing"),
        ([(0, 0, 0), (0, 0, 0), (0, 0, 2)], r"several images at one place \(times, echoes, ...\)"),
    ],
)
def test_slices_that_are_no_grid_are_refused(positions: list[Any], message: str, tmp_path: Path) -> None:
    """Never guessed."""
    write_series(tmp_path / "s", positions)
    with pytest.raises(ValueError, match=message) as caught:
        read_volume(tmp_path / "s")
    assert "damaged" not in str(caught.value)


def test_several_series_are_listed(tmp_path: Path) -> None:
    """One of the files chooses."""
    write_series(tmp_path, [(0, 0, 2 * i) for i in range(3)])
    write_slice(tmp_path / "scout.dcm", NOISE[0], SeriesInstanceUID="1.2.4", SeriesDescription="scout")
    with pytest.raises(
        ValueError, match=r"there are 2 series in it; choose one with series: .*head, 3 files.*scout, 1"
    ):
        read_volume(tmp_path)
    assert read_volume(tmp_path / "scout.dcm").shape == (4, 5)
    assert read_volume(tmp_path / "7.dcm").shape == SHAPE
    write_slice(tmp_path / "anonymous.dcm", NOISE[0])
    nameless = pydicom.dcmread(tmp_path / "anonymous.dcm")
    del nameless.SeriesInstanceUID
    nameless.save_as(tmp_path / "anonymous.dcm")
    assert read_volume(tmp_path / "7.dcm").shape == SHAPE
    assert read_volume(tmp_path / "anonymous.dcm").shape == (4, 5)
    (tmp_path / "anonymous.dcm").unlink()
    write_slice(tmp_path / "turned.dcm", NOISE[0], ImagePositionPatient=[0, 0, 8], PixelSpacing=[1, 1],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0])  # fmt: skip
    with pytest.raises(ValueError, match=r"its slices have several directions or sizes of pixels"):
        read_volume(tmp_path / "7.dcm")


def test_frames_of_one_file_are_slices_or_times(tmp_path: Path) -> None:
    """Enhanced files say where each lies; a film does not."""
    write_slice(tmp_path / "film.dcm", NOISE, PixelSpacing=[0.5, 0.25])
    film = read_volume(tmp_path / "film.dcm")
    assert film.geometry is not None
    assert (film.shape, film.geometry.names, film.spacing) == (SHAPE, ("t", "y", "x"), (1.0, 0.5, 0.25))
    shared, frames = pydicom.Dataset(), []
    measures, turned = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 2
    turned.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turned]
    for i in (2, 1, 0):
        place, frame = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = [0, 0, 3 * i]
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    folder = tmp_path / "enhanced"
    folder.mkdir()
    write_slice(
        folder / "a.dcm",
        NOISE,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
    )
    volume = read_volume(folder)
    assert volume.spacing == (3.0, 0.5, 0.25)
    np.testing.assert_array_equal(np.asarray(volume.data), NOISE[::-1])


def test_doses_lie_at_their_offsets_along_the_normal(tmp_path: Path) -> None:
    """Their file has one position for all frames."""
    write_slice(
        tmp_path / "a.dcm", NOISE, ImagePositionPatient=[10, 20, 30], PixelSpacing=[0.5, 0.25],
        ImageOrientationPatient=[*ALONG, *DOWN], GridFrameOffsetVector=[0, 3, 6],
    )  # fmt: skip
    volume = read_volume(tmp_path / "a.dcm")
    assert volume.geometry is not None
    assert volume.spacing == pytest.approx((3, 0.5, 0.25))
    x, y, z = np.array([10, 20, 33]) + ALONG * 3 * 0.25 + DOWN * 2 * 0.5
    assert volume.geometry.to_world((1, 2, 3)).tolist() == pytest.approx([z, -y, -x])


def test_dicom_without_a_size_has_none_and_without_pixels_is_no_image(tmp_path: Path) -> None:
    """No millimetre is made up; the sentence says what the file is."""
    write_slice(tmp_path / "a.dcm", NOISE[0])
    volume = read_volume(tmp_path / "a.dcm")
    assert volume.geometry is not None
    assert (volume.spacing, volume.geometry.unit) == (None, None)
    plan = pydicom.dcmread(tmp_path / "a.dcm")
    plan.file_meta.MediaStorageSOPClassUID = pydicom.uid.RTPlanStorage
    del plan.Rows, plan.PixelData
    plan.save_as(tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=r"a.dcm cannot be read: it holds no pixels, but RT Plan Storage"):
        read_volume(tmp_path / "a.dcm")


def test_pixels_of_less_than_a_byte_are_read(tmp_path: Path) -> None:
    """A file of them is smaller than its image in memory, and whole."""
    dark = NOISE[0] > 99
    Image.fromarray(dark).resize((500, 400)).save(tmp_path / "a.tif")
    volume = read_volume(tmp_path / "a.tif")
    assert (volume.shape, (tmp_path / "a.tif").stat().st_size < 30_000) == ((400, 500), True)
    np.testing.assert_array_equal(np.asarray(volume.data)[50::100, 50::100] > 0, dark)


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif"])
def test_columns_of_one_pixel_and_times_of_frames_are_kept_by_tiff(name: str, tmp_path: Path) -> None:
    """Whatever tifffile makes of short axes."""
    thin = np.zeros((3, 4, 1), np.uint8)
    thin[1, 2, 0] = 7
    like = Volume(thin, geometry=Geometry.from_scale("zyx", (3, 1, 2), units=["mm"] * 3))
    np.testing.assert_array_equal(
        np.asarray(read_volume(write_labels(tmp_path / name, thin, like)).data), thin
    )
    film = Volume(NOISE, geometry=Geometry.from_scale("tyx", (0.25, 1, 2), units=["ms", "µm", "µm"]))
    geometry = read_volume(write_labels(tmp_path / name, labels_at(), film)).geometry
    assert geometry is not None
    assert (geometry.in_unit("ms", "time").spacing[0], geometry.world[0].kind) == (0.25, "time")


def test_a_missing_half_of_a_pair_is_named(tmp_path: Path) -> None:
    """Nothing is damaged."""
    nibabel.save(nibabel.Nifti1Pair(labels_at(), np.eye(4)), tmp_path / "a.img")
    (tmp_path / "a.img").unlink()
    with pytest.raises(
        ValueError, match=r"a.hdr cannot be read: it needs the file a.img, which is not there"
    ):
        read_volume(tmp_path / "a.hdr")


def test_freesurfer_counts_milliseconds(tmp_path: Path) -> None:
    """From one time to the next."""
    image = nibabel.MGHImage(np.zeros((3, 4, 5, 2), np.uint8), np.eye(4))
    image.header["tr"] = 2500
    nibabel.save(image, tmp_path / "a.mgz")
    geometry = read_volume(tmp_path / "a.mgz").geometry
    assert geometry is not None
    assert geometry.in_unit("s", "time").spacing[3] == 2.5


@pytest.mark.parametrize("channels", [False, True])
def test_labels_of_one_slice_lie_on_it_though_tiff_leaves_out_its_axis(
    channels: bool, tmp_path: Path
) -> None:
    """Also between units; along the axis they lie where the slice lies."""
    geometry = Geometry.from_scale("zyx", (40, 4, 4), (400, 8, 0), ["nm"] * 3)
    like = Volume(NOISE[:1], geometry=geometry)
    write_labels(tmp_path / "a.ome.tif", labels_at((0, 2, 3))[:1], like)
    assert read_volume(tmp_path / "a.ome.tif").shape == (4, 5)
    aligned = read_aligned(tmp_path / "a.ome.tif", like, "labels")
    np.testing.assert_array_equal(np.asarray(aligned.data), labels_at((0, 2, 3))[:1])
    if channels:
        Image.fromarray(np.stack([NOISE[0]] * 3, -1)).save(tmp_path / "c.png")
        colours = read_aligned(tmp_path / "c.png", Volume(NOISE[:1]), "mask")
        assert colours.plane(Plane((0, None, None))).shape == (4, 5, 3)


def test_a_compression_of_dicom_without_its_library_is_no_damage(tmp_path: Path) -> None:
    """The sentence says what to install."""
    write_slice(tmp_path / "a.dcm", NOISE[0])
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2K
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" * 8])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(
        ValueError, match=r"its pixels \(.*\) cannot be decoded; pip install .*\[dicom\] brings"
    ):
        read_volume(tmp_path / "a.dcm")


def test_every_suffix_has_one_reader_and_one_writer() -> None:
    """In any case; a path may lead on inside a file that holds many."""
    for writing in (False, True):
        listed = [s for one in FORMATS if (one.write if writing else one.read) for s in one.suffixes]
        assert len(listed) == len(set(listed))
        assert all(suffix == suffix.lower() for suffix in listed)
    found = find_format(Path("SCAN.SEG.NRRD"), writing=True)
    assert found is not None
    assert (found.name, find_format(Path("a.czi"))) == ("NRRD", None)
    place, inside, kind = locate(Path("a.h5/volumes/raw"))
    assert (place, inside, kind and kind.name) == (Path("a.h5"), "volumes/raw", "HDF5")


def test_a_format_without_its_library_says_what_to_install() -> None:
    """By an extra that exists."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for one in FORMATS:
        assert not one.extra or f"\n{one.extra} = [" in text
    missing = Format("X", (".x",), "arrays", needs="no_such_library", extra="x")
    with pytest.raises(
        ImportError,
        match=r"X needs no_such_library, which is not installed; pip install napari-lowlat-seg\[x\]",
    ):
        missing.function("read")


@pytest.mark.parametrize("kind", ["zarr", "hdf5", "dicom"])
def test_damage_that_is_met_when_a_plane_is_looked_at_is_one_sentence(kind: str, tmp_path: Path) -> None:
    """Files that are not loaded hide it until then; other planes are read."""
    if kind == "zarr":
        zarr.create_array(tmp_path / "a.zarr", data=NOISE, chunks=(1, 4, 5))
        path, victim = tmp_path / "a.zarr", tmp_path / "a.zarr" / "c" / "1" / "0" / "0"
        victim.write_bytes(victim.read_bytes()[:-5])
    elif kind == "hdf5":
        path = victim = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("raw", data=NOISE, chunks=(1, 4, 5), compression="gzip", fletcher32=True)
            at = file["raw"].id.get_chunk_info(1).byte_offset
        raw = bytearray(path.read_bytes())
        raw[at : at + 4] = b"zzzz"
        path.write_bytes(raw)
    else:
        path = tmp_path / "series"
        write_series(path, [(0, 0, 2 * i) for i in range(3)])
        victim = path / "7.dcm"
        victim.write_bytes(victim.read_bytes()[:-9])
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.plane(Plane((0, None, None))), NOISE[0])
    with pytest.raises(ValueError, match=r"plane \(1, None, None\) of .* cannot be read \(") as caught:
        volume.plane(Plane((1, None, None)))
    assert "\n" not in str(caught.value)


def test_a_length_of_mrc_beyond_the_file_is_refused_at_once(tmp_path: Path) -> None:
    """Two gigabytes of extended header, and a file that is shorter than a header."""
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(NOISE)
    raw = bytearray((tmp_path / "a.mrc").read_bytes())
    raw[92:96] = (2**31 - 1).to_bytes(4, "little")
    (tmp_path / "a.mrc").write_bytes(raw)
    with pytest.raises(ValueError, match=r"an extended header of 2147483647 bytes is not in a file of"):
        read_volume(tmp_path / "a.mrc")
    (tmp_path / "a.mrc").write_bytes(raw[:500])
    with pytest.raises(ValueError, match=r"it has 500 bytes, the header of MRC alone has 1024"):
        read_volume(tmp_path / "a.mrc")
