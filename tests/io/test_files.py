"""Files: geometry survives the round trip, damage gives one sentence, nothing is half-written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.files import (
    as_shown,
    check_labels_path,
    default_axis,
    embeddings_folder,
    label_output,
    read_volume,
    write_labels,
)
from napari_lowlat_seg.io.samples import sample_path


@pytest.fixture
def labels() -> np.ndarray:
    """3 x 4 x 5, labels 0 to 2."""
    return np.random.default_rng(0).integers(0, 3, (3, 4, 5))


@pytest.fixture
def oblique(tmp_path: Path) -> Path:
    """A NIfTI file with a rotated sform, another qform, a scale and units."""
    affine = np.array([[0, -2, 0, 7], [1.5, 0, 0, -3], [0, 0, 4, 11], [0, 0, 0, 1]], float)
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine)
    image.set_sform(affine, code=4)
    qform = affine.copy()
    qform[:3, 3] += 0.5
    image.set_qform(qform, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(2, 1)
    nibabel.save(image, tmp_path / "oblique.nii.gz")
    return tmp_path / "oblique.nii.gz"


def test_shipped_samples_are_read_with_their_spacing() -> None:
    """EM in micrometres, slowest axis first; MRI in the file's own order i, j, k."""
    em, mri = (
        read_volume(sample_path("em_fly_medulla.tif")),
        read_volume(sample_path("mri_glioma_flair.nii.gz")),
    )
    assert (em.shape, em.spacing, em.name) == ((48, 250, 250), (0.01, 0.01, 0.01), "em_fly_medulla.tif")
    assert (mri.shape, mri.spacing) == ((160, 192, 110), (1.0, 1.0, 1.0))
    assert (default_axis(em), default_axis(mri)) == (0, 2)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_labels_keep_affine_codes_and_units(suffix: str, oblique: Path, labels: np.ndarray) -> None:
    """Labels written back lie exactly on the image."""
    volume = read_volume(oblique)
    assert volume.spacing == (1.5, 2.0, 4.0)
    path = write_labels(oblique.with_name("labels" + suffix), labels, volume)
    image, written = nibabel.load(oblique), nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels)
    np.testing.assert_array_equal(written.affine, image.affine)
    for form in ("get_sform", "get_qform"):
        expected, got = getattr(image, form)(coded=True), getattr(written, form)(coded=True)
        np.testing.assert_array_equal(got[0], expected[0])
        assert got[1] == expected[1]
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert (written.get_data_dtype(), written.header.get_slope_inter()) == (np.uint8, (None, None))


def test_nifti_values_are_scaled_as_the_header_says(oblique: Path) -> None:
    """Slope 2, intercept 1, as nibabel itself reads them."""
    expected = nibabel.load(oblique).get_fdata()[:, :, 2]
    np.testing.assert_allclose(read_volume(oblique).plane(Plane((None, None, 2))), expected)


def test_a_fourth_nifti_axis_is_channels_when_one_is_asked_for(tmp_path: Path) -> None:
    """Otherwise it is one more axis."""
    data = np.random.default_rng(0).random((3, 4, 5, 2)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").shape == (3, 4, 5, 2)
    chosen = read_volume(tmp_path / "a.nii", channel=1)
    assert chosen.shape == (3, 4, 5)
    np.testing.assert_array_equal(chosen.plane(Plane((2, None, None))), data[2, :, :, 1])


def test_rgb_nifti_is_read_as_rgb(tmp_path: Path) -> None:
    """Its voxels are records of three bytes."""
    rgb = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3), np.uint8)
    records = rgb.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(records, np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").plane(Plane((None, None, 1))), rgb[:, :, 1])


@pytest.mark.parametrize("name", ["labels.tif", "labels.ome.tif", "labels.TIFF"])
@pytest.mark.parametrize("spacing", [(0.5, 0.25, 0.2), (5.0, 0.1, 0.1)])
def test_tiff_labels_keep_their_spacing(
    name: str, spacing: tuple[float, ...], tmp_path: Path, labels: np.ndarray
) -> None:
    """Anisotropic, through ImageJ's and OME's metadata."""
    path = write_labels(tmp_path / name, labels, Volume(np.zeros(labels.shape), spacing))
    back = read_volume(path)
    np.testing.assert_array_equal(np.asarray(back.data), labels)
    assert back.data.dtype == np.uint8
    assert back.spacing == pytest.approx(spacing, rel=1e-5)
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE


def test_labels_of_the_em_sample_are_as_large_as_the_sample(tmp_path: Path) -> None:
    """Spacing and unit pass from file to file."""
    em = read_volume(sample_path("em_fly_medulla.tif"))
    path = write_labels(tmp_path / "a.tif", np.ones(em.shape, bool), em)
    back = read_volume(path)
    assert back.spacing == pytest.approx(em.spacing)
    assert back.header.unit == em.header.unit == "um"


@pytest.mark.parametrize(
    ("highest", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65536, np.uint32)]
)
@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".nii"])
def test_labels_take_the_smallest_type_that_holds_them(
    suffix: str, highest: int, dtype: type, tmp_path: Path
) -> None:
    """And come back as they were."""
    labels = np.zeros((2, 3, 4), np.int64)
    labels[1, 2, 3] = highest
    back = read_volume(write_labels(tmp_path / f"a{suffix}", labels))
    np.testing.assert_array_equal(np.asarray(back.data), labels)
    assert back.data.dtype == dtype


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nii.gz"])
def test_2d_labels_round_trip(name: str, tmp_path: Path) -> None:
    """One plane, 16 bits."""
    labels = np.arange(600).reshape(20, 30)
    np.testing.assert_array_equal(np.asarray(read_volume(write_labels(tmp_path / name, labels)).data), labels)


@pytest.mark.parametrize(("axes", "shape"), [("TZYX", (2, 3, 4, 5)), ("TYX", (2, 4, 5)), ("YX", (4, 5))])
def test_time_series_keep_their_axes(axes: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Labels have the axes of the image."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint16), imagej=True, metadata={"axes": axes})
    volume = read_volume(tmp_path / "a.tif")
    assert (volume.shape, volume.header.axes) == (shape, axes)
    assert read_volume(write_labels(tmp_path / "b.tif", np.ones(shape, bool), volume)).header.axes == axes


@pytest.mark.parametrize("form", [{"imagej": True}, {"ome": True}])
def test_channels_are_found_in_the_metadata(form: dict, tmp_path: Path) -> None:
    """Two fluorescence channels between slices and rows."""
    data = np.random.default_rng(0).integers(0, 999, (3, 2, 4, 5), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", data, metadata={"axes": "ZCYX"}, **form)
    volume = read_volume(tmp_path / "a.tif", channel=1)
    assert volume.shape == (3, 4, 5)
    np.testing.assert_array_equal(volume.plane(Plane((2, None, None))), data[2, 1])
    with pytest.raises(
        ValueError, match=r"a.tif: an image of 2 channels needs a channel from 0 to 1; got none"
    ):
        read_volume(tmp_path / "a.tif")


def test_ome_sizes_are_brought_to_micrometres(tmp_path: Path) -> None:
    """Whatever unit each axis has."""
    about = {
        "axes": "ZYX",
        "PhysicalSizeX": 4.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 4.0,
        "PhysicalSizeYUnit": "nm",
        "PhysicalSizeZ": 0.04,
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((2, 3, 5), np.uint8), metadata=about)
    assert read_volume(tmp_path / "a.ome.tif").spacing == pytest.approx((0.04, 0.004, 0.004))


def test_nanometres_are_nanometres_in_ome_too(tmp_path: Path) -> None:
    """From an ImageJ stack of 5 nm to OME, which is read in micrometres."""
    data = np.zeros((2, 3, 5), np.uint8)
    about = {"axes": "ZYX", "spacing": 30, "unit": "nm"}
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, resolution=(1 / 5, 1 / 5), metadata=about)
    like = read_volume(tmp_path / "a.tif")
    written = write_labels(tmp_path / "b.ome.tif", data, like)
    assert read_volume(written).spacing == pytest.approx((0.03, 0.005, 0.005))


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.nii.gz"])
def test_labels_of_five_axes_round_trip(name: str, tmp_path: Path) -> None:
    """Axes without a meaning of their own are kept apart."""
    labels = np.arange(240).reshape(2, 2, 3, 4, 5)
    written = read_volume(write_labels(tmp_path / name, labels, Volume(labels)))
    assert np.array_equal(written.data, labels)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("a.nii", (40000, 2), r"a.nii cannot hold these labels of shape \(40000, 2\): .*; choose another"),
        ("a.ome.tif", (1, 2, 3, 4, 5, 6), r"a.ome.tif cannot hold these labels of shape .*; choose another"),
    ],
)
def test_labels_that_a_format_cannot_hold_give_one_sentence(
    name: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    """Whatever the library that writes it raises."""
    with pytest.raises(ValueError, match=message):
        write_labels(tmp_path / name, np.ones(shape, np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path: Path, monkeypatch) -> None:
    """A folder of that name, or a folder that is read-only."""
    (tmp_path / "a.tif").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a.tif is a folder; give the name of a file"):
        check_labels_path(tmp_path / "a.tif")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"cannot be written to; choose another"):
        check_labels_path(tmp_path / "b.tif")


def test_the_printing_resolution_of_a_photograph_is_no_spacing(tmp_path: Path) -> None:
    """300 dots per inch say nothing about the object."""
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((3, 4), np.uint8), resolution=(300, 300), resolutionunit="INCH"
    )
    assert read_volume(tmp_path / "a.tif").spacing is None


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_colour_pictures_are_rgb(suffix: str, tmp_path: Path) -> None:
    """Without loss where the format has none."""
    rgb = np.random.default_rng(0).integers(0, 255, (6, 7, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    volume = read_volume(tmp_path / f"a{suffix}")
    assert volume.shape == (6, 7)
    np.testing.assert_array_equal(volume.plane(Plane((None, None))), rgb)


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("1", (6, 7)), ("L", (6, 7)), ("I;16", (6, 7)), ("LA", (6, 7)), ("P", (6, 7, 3)), ("RGBA", (6, 7, 3))],
)
def test_every_kind_of_png_becomes_gray_or_rgb(mode: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Palettes, alpha, 1 and 16 bits."""
    Image.new("RGB" if mode == "P" else mode, (7, 6)).convert(mode).save(tmp_path / "a.png")
    assert read_volume(tmp_path / "a.png").plane(Plane((None, None))).shape == shape


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def _scrambled(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3 :] = b"\x5a" * (len(content) - len(content) // 3)
    path.write_bytes(content)


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("this is no image\n" * 100)


@pytest.mark.parametrize("damage", [_truncated, _scrambled, _emptied, _text])
@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.nii", "a.nii.gz", "a.png", "a.jpg"])
def test_a_damaged_file_gives_one_sentence(name: str, damage, tmp_path: Path) -> None:
    """Which names the file."""
    noise = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    path = tmp_path / name
    if name == "a.nii" and damage is _scrambled:
        damage = _emptied  # without compression and checksum any bytes are an image
    if name.endswith(".jpg"):
        Image.fromarray(noise).save(path)
    else:
        write_labels(path, noise)
    damage(path)
    with pytest.raises(
        ValueError, match=rf"{name} cannot be read: it is damaged or of another kind \("
    ) as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)


def test_nifti_2_is_read_and_written_as_such(tmp_path: Path, labels: np.ndarray) -> None:
    """Compressed or not."""
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(nibabel.Nifti2Image(labels.astype(np.int16), np.diag([1, 2, 3, 1])), tmp_path / name)
        volume = read_volume(tmp_path / name)
        assert volume.spacing == (1.0, 2.0, 3.0)
        written = nibabel.load(write_labels(tmp_path / name, labels, volume))
        assert isinstance(written, nibabel.Nifti2Image)
        np.testing.assert_array_equal(written.affine, np.diag([1, 2, 3, 1]))


def test_a_nifti_name_on_another_image_is_refused(tmp_path: Path) -> None:
    """The content decides."""
    nibabel.save(nibabel.MGHImage(np.zeros((2, 2, 2), np.float32), np.eye(4)), tmp_path / "a.mgz")
    (tmp_path / "a.mgz").rename(tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=r"cannot be read"):
        read_volume(tmp_path / "a.nii.gz")


def test_missing_files_folders_and_unknown_suffixes_are_refused(tmp_path: Path) -> None:
    """Each with what to do."""
    with pytest.raises(FileNotFoundError, match=r"no image file at .*nothing.tif; check the path"):
        read_volume(tmp_path / "nothing.tif")
    with pytest.raises(ValueError, match=r"images can be .ome.tif, .*, .nii.gz, .*, .png, .*; got 'a.czi'"):
        read_volume(tmp_path / "a.czi")
    with pytest.raises(ValueError, match=r"labels can be .*, .png, .*; got 'a.jpg'"):
        write_labels(tmp_path / "a.jpg", np.ones((2, 2), int))
    for call in (lambda p: write_labels(p, np.ones((2, 2), int)), check_labels_path):
        with pytest.raises(FileNotFoundError, match=r"no folder at .*nowhere; make it first"):
            call(tmp_path / "nowhere" / "a.tif")
    assert check_labels_path(tmp_path / "a.tif") == tmp_path / "a.tif"


def test_channels_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    """A gray image has none; colours and channels together are too many."""
    write_labels(tmp_path / "a.tif", np.ones((4, 4), int))
    with pytest.raises(ValueError, match=r"has no channels, its shape is \(4, 4\); leave out channel 1"):
        read_volume(tmp_path / "a.tif", channel=1)
    data = np.zeros((2, 4, 5, 3), np.uint8)
    tifffile.imwrite(tmp_path / "b.ome.tif", data, metadata={"axes": "CYXS"}, photometric="rgb")
    with pytest.raises(ValueError, match=r"mix channels and colours; save one channel"):
        read_volume(tmp_path / "b.ome.tif")


@pytest.mark.parametrize(
    ("labels", "name", "message"),
    [
        (np.ones((2, 2)), "a.tif", r"labels must be integers; got type float64"),
        (np.ones((0, 2), int), "a.tif", r"labels must be integers; .* shape \(0, 2\)"),
        (np.full((2, 2), -1), "a.tif", r"labels must be from 0 to 4294967295; got -1 to -1"),
        (
            np.ones((2, 2, 2), int),
            "a.png",
            r"cannot hold these labels of shape \(2, 2, 2\): a .png holds one plane of labels up to 65535",
        ),
        (np.full((2, 2), 65536), "a.png", r"a .png holds one plane"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    labels: np.ndarray, name: str, message: str, tmp_path: Path
) -> None:
    """And no file appears."""
    with pytest.raises(ValueError, match=message):
        write_labels(tmp_path / name, labels)
    assert list(tmp_path.iterdir()) == []


def test_labels_of_another_shape_are_refused(tmp_path: Path) -> None:
    """Both shapes are in the sentence."""
    with pytest.raises(ValueError, match=r"labels must have the image's shape \(4, 4\); got \(4, 5\)"):
        write_labels(tmp_path / "a.tif", np.ones((4, 5), int), Volume(np.zeros((4, 4))))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    """The disk fills up after half of the file."""
    path = write_labels(tmp_path / "a.tif", np.ones((4, 4), int))
    before = path.read_bytes()

    def full(part: Path, *_: object, **__: object) -> None:
        part.write_bytes(b"II*")
        raise OSError("No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(OSError, match="No space left"):
        write_labels(path, np.zeros((4, 4), int))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_labels_written_plane_by_plane_make_a_file_when_the_work_is_done(tmp_path: Path) -> None:
    """With the spacing of the image; an error leaves no file."""
    like = Volume(np.zeros((2, 4, 5), np.uint8), (3.0, 1.0, 1.0))

    def write(path: Path, error: Exception | None = None) -> None:
        with label_output(path, like) as labels:
            labels.write_mask(Plane((1, None, None)), np.eye(3, dtype=bool), 7, (1, 2))
            if error is not None:
                raise error

    write(tmp_path / "a.tif")
    back = read_volume(tmp_path / "a.tif")
    assert (back.spacing, np.argwhere(back.data == 7).tolist()) == (
        (3.0, 1.0, 1.0), [[1, 1, 2], [1, 2, 3], [1, 3, 4]],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="stopped"):
        write(tmp_path / "b.tif", RuntimeError("stopped"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_files_are_read_without_torch_and_napari() -> None:
    """A reader starts quickly."""
    code = "import sys, napari_lowlat_seg.io.files; print({'torch', 'napari', 'nibabel'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_scan_is_shown_with_its_axes_turned_round() -> None:
    """(i, j, k) to (z, y, x), channels last; what only the file knows is left behind."""
    data = np.arange(2 * 3 * 4 * 2).reshape(2, 3, 4, 2)
    scan = Volume(data, (1, 2, 3), channel_axis=3, channel=1, window=(0, 9), header="of the file")
    shown = as_shown(scan, "a.NII.gz")
    assert (shown.shape, shown.spacing, shown.channel) == ((4, 3, 2), (3, 2, 1), 1)
    assert (shown.window, shown.header) == (None, None)
    there = scan.plane(Plane((None, None, 3)))
    assert np.array_equal(shown.plane(Plane((3, None, None))), there.transpose())


def test_other_images_are_shown_as_they_are() -> None:
    """The same array, not a copy."""
    volume = Volume(np.zeros((2, 3, 4)), (1, 2, 3), window=(0, 9))
    shown = as_shown(volume, "a.tif")
    assert shown.data is volume.data
    assert (shown.spacing, shown.window) == (volume.spacing, None)


def test_embeddings_lie_beside_their_image() -> None:
    """Under the whole name, so that a.tif and a.nii do not share a folder."""
    assert embeddings_folder("data/a.ome.tif") == Path("data/a.ome.tif.embeddings")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_packed_nifti_with_extensions_is_read(kind: Any, tmp_path: Path) -> None:
    """Scanners' converters write kilobytes of them between header and pixels."""
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = kind(voxels, np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"words " * 900))
    nibabel.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(read_volume(tmp_path / "a.nii.gz").data), voxels)
