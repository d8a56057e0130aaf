"""Format x format: is an object of an image of one format, written as labels of another, at its place?

Writes a small image of each format and place with the format's own library, reads it, writes labels of one
marked voxel in each output format as the command line does, reads them back and compares world positions.
Exports are read back by other programs' libraries: trimesh, json, highdicom. Prints two tables: kept, refused
(with the sentence below), or WRONG.

Run: python benchmarks/format_matrix.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import Geometry, standard_unit, unit_ratio
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.exports.export import write_export
from napari_lowlat_seg.io.files import check_labels_path, label_output, read_volume

SHAPE = (6, 7, 8)
INDEX = (1, 2, 3)
OUTPUTS = (".nii.gz", ".tif", ".ome.tif", ".ome.zarr", ".nrrd", ".seg.nrrd", ".mrc", ".mha", ".mgz", ".png")
STRAIGHT = np.array([[0.5, 0, 0, 10], [0, 0.6, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]], float)
FLIPPED = np.diag([-1.0, 1, 1, 1]) @ STRAIGHT
OBLIQUE = np.array([[0.4, -0.36, 0, 10], [0.3, 0.48, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]], float)


def pixels() -> np.ndarray:
    """The image: a ramp."""
    return np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)


def nifti(affine: np.ndarray) -> Callable[[Path], Path]:
    """A scan with this affine, in mm."""

    def write(folder: Path) -> Path:
        import nibabel

        image = nibabel.Nifti1Image(pixels(), affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, folder / "a.nii.gz")
        return folder / "a.nii.gz"

    return write


def mgz(folder: Path) -> Path:
    """FreeSurfer's."""
    import nibabel

    nibabel.save(nibabel.MGHImage(pixels().astype(np.int16), OBLIQUE), folder / "a.mgz")
    return folder / "a.mgz"


def imagej(folder: Path) -> Path:
    """A stack of ImageJ in nm."""
    import tifffile

    about = {"axes": "ZYX", "spacing": 40, "unit": "nm"}
    tifffile.imwrite(folder / "a.tif", pixels(), imagej=True, resolution=(0.25, 0.25), metadata=about)
    return folder / "a.tif"


def series(folder: Path) -> Path:
    """A time series of ImageJ in µm."""
    import tifffile

    about = {"axes": "TYX", "unit": "um"}
    tifffile.imwrite(folder / "a.tif", pixels(), imagej=True, resolution=(4, 4), metadata=about)
    return folder / "a.tif"


def ome_tiff(unit: str) -> Callable[[Path], Path]:
    """With physical sizes in a unit."""

    def write(folder: Path) -> Path:
        import tifffile

        about: dict[str, Any] = {"axes": "ZYX"} | {f"PhysicalSize{a}": 4.0 for a in "XYZ"}
        about |= {f"PhysicalSize{a}Unit": unit for a in "XYZ"}
        tifffile.imwrite(folder / "a.ome.tif", pixels(), ome=True, metadata=about)
        return folder / "a.ome.tif"

    return write


def ome_zarr(folder: Path) -> Path:
    """With a translation, in nm."""
    import zarr

    root = zarr.open_group(folder / "a.ome.zarr", mode="w", zarr_format=2)
    root.create_array("0", shape=SHAPE, dtype="u2", chunks=SHAPE)[...] = pixels()
    changes = [
        {"type": "scale", "scale": [40, 4, 4]},
        {"type": "translation", "translation": [400, 1000, 2000]},
    ]
    image: dict[str, Any] = {
        "version": "0.4",
        "axes": [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"],
        "datasets": [{"path": "0", "coordinateTransformations": changes}],
    }
    root.attrs["multiscales"] = [image]
    return folder / "a.ome.zarr"


def nrrd_file(folder: Path) -> Path:
    """Oblique, in LPS."""
    import nrrd

    header = {
        "space": "left-posterior-superior",
        "space directions": OBLIQUE[:3, :3].T,
        "space origin": OBLIQUE[:3, 3],
    }
    nrrd.write(str(folder / "a.nrrd"), pixels(), header)
    return folder / "a.nrrd"


def mha(folder: Path) -> Path:
    """Oblique."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(pixels())
    spacing = np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((OBLIQUE[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(OBLIQUE[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(folder / "a.mha"))
    return folder / "a.mha"


def mrc(folder: Path) -> Path:
    """With an origin, in Å."""
    import mrcfile

    with mrcfile.new(folder / "a.mrc") as file:
        file.set_data(pixels())
        file.voxel_size = (4.0, 4.0, 6.0)
        file.header.origin.x = 100.0
    return folder / "a.mrc"


def hdf5(folder: Path) -> Path:
    """As CREMI writes it, in nm."""
    import h5py

    with h5py.File(folder / "a.h5", "w") as file:
        raw = file.create_dataset("volumes/raw", data=pixels())
        raw.attrs["resolution"], raw.attrs["offset"] = [40.0, 4.0, 4.0], [400.0, 0.0, 8.0]
    return folder / "a.h5"


def npy(folder: Path) -> Path:
    """Without any place."""
    np.save(folder / "a.npy", pixels())
    return folder / "a.npy"


def pages(folder: Path) -> Path:
    """A folder of PNGs, without any place."""
    from PIL import Image

    (folder / "pages").mkdir()
    for i, page in enumerate(pixels()):
        Image.fromarray(page).save(folder / "pages" / f"{i}.png")
    return folder / "pages"


def picture(folder: Path) -> Path:
    """One PNG."""
    from PIL import Image

    Image.fromarray(pixels()[0]).save(folder / "a.png")
    return folder / "a.png"


def dicom(folder: Path) -> Path:
    """An oblique series of CT."""
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    (folder / "series").mkdir()
    for i, plane in enumerate(pixels()):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = CTImageStorage
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = generate_uid()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SeriesInstanceUID, one.Modality = "1.2.3", "CT"
        # What a segmentation refers to.
        one.StudyInstanceUID, one.FrameOfReferenceUID, one.InstanceNumber = "1.2", "1.2.9", i + 1
        one.PatientName = one.PatientID = one.PatientBirthDate = one.PatientSex = one.StudyID = ""
        one.StudyDate = one.StudyTime = one.AccessionNumber = one.ReferringPhysicianName = ""
        one.Rows, one.Columns = plane.shape
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation, one.PixelData = 15, 0, plane.tobytes()
        one.ImagePositionPatient, one.PixelSpacing = [10, 20, 30 + 2 * i], [0.5, 0.25]
        one.ImageOrientationPatient = [0.8, 0.6, 0, -0.6, 0.8, 0]
        one.save_as(folder / "series" / f"{(i * 7) % 11}.dcm", enforce_file_format=True)
    return folder / "series"


def n5(folder: Path) -> Path:
    """As COSEM writes it: scale, translation and units of each axis."""
    import tensorstore

    place = {"scale": [40, 4, 4], "translate": [80, 0, 8], "units": ["nm"] * 3, "axes": ["z", "y", "x"]}
    about = {"dataType": "uint16", "dimensions": list(SHAPE[::-1]), "blockSize": [4, 4, 4],
             "compression": {"type": "gzip"}, "transform": place}  # fmt: skip
    where = {"driver": "file", "path": str(folder / "a.n5" / "raw")}
    store = tensorstore.open({"driver": "n5", "kvstore": where, "metadata": about, "create": True}).result()
    store.write(pixels().T).result()
    return folder / "a.n5"


def precomputed(folder: Path) -> Path:
    """A volume of Neuroglancer at an offset."""
    import tensorstore

    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": str(folder / "em")},
        "multiscale_metadata": {"data_type": "uint16", "num_channels": 1, "type": "image"},
        "scale_metadata": {"size": list(SHAPE[::-1]), "resolution": [4, 4, 40], "voxel_offset": [2, 0, 2],
                           "chunk_size": [4, 4, 4], "encoding": "raw"},
        "create": True,
    }  # fmt: skip
    tensorstore.open(spec).result().write(pixels().T[..., None]).result()
    return folder / "em"


def plate(folder: Path) -> Path:
    """A field of a plate."""
    import zarr

    field = ome_zarr(folder)
    zarr.open_group(folder / "p.ome.zarr", mode="w", zarr_format=2).attrs["plate"] = {
        "wells": [{"path": "A/1"}]
    }
    well = zarr.open_group(folder / "p.ome.zarr" / "A" / "1", mode="w", zarr_format=2)
    well.attrs["well"] = {"images": [{"path": "0"}]}
    shutil.move(field, folder / "p.ome.zarr" / "A" / "1" / "0")
    return folder / "p.ome.zarr"


def slide(folder: Path) -> Path:
    """Two levels of a slide as Aperio writes them, in gray."""
    import tifffile

    words = "Aperio Image Library v11\n7x8 |AppMag = 20|MPP = 0.4990"
    about: dict[str, Any] = {"tile": (16, 16), "metadata": None, "compression": "zlib", "description": words}
    with tifffile.TiffWriter(folder / "a.svs") as file:
        file.write(pixels()[0], **about)
        file.write(pixels()[0, ::4, ::4], metadata=None)
        file.write(pixels()[0, ::2, ::2], **about)
    return folder / "a.svs"


def raw_nrrd(folder: Path) -> Path:
    """A header with its pixels in a file beside it."""
    import nrrd

    header = {"encoding": "raw", "space": "left-posterior-superior", "space units": ["mm"] * 3,
              "space directions": np.diag([0.5, 0.6, 2.0]), "space origin": [1.0, 2, 3]}  # fmt: skip
    nrrd.write(str(folder / "a.nhdr"), pixels(), header, index_order="C", detached_header=True)
    return folder / "a.nhdr"


def raw_mhd(folder: Path) -> Path:
    """The same of MetaImage."""
    import SimpleITK

    image: Any = SimpleITK.GetImageFromArray(pixels())
    image.SetSpacing([0.5, 0.6, 2.0])
    SimpleITK.WriteImage(image, str(folder / "a.mhd"))
    return folder / "a.mhd"


def npz(folder: Path) -> Path:
    """One array, packed."""
    np.savez_compressed(folder / "a.npz", raw=pixels())
    return folder / "a.npz"


INPUTS: dict[str, Callable[[Path], Path]] = {
    "NIfTI": nifti(STRAIGHT),
    "NIfTI, left to right": nifti(FLIPPED),
    "NIfTI, oblique": nifti(OBLIQUE),
    "MGZ, oblique": mgz,
    "DICOM series, oblique": dicom,
    "NRRD, oblique": nrrd_file,
    "MHA, oblique": mha,
    "OME-Zarr, translation": ome_zarr,
    "OME-TIFF, Å": ome_tiff("Å"),
    "OME-TIFF, pixels": ome_tiff("pixel"),
    "ImageJ, nm": imagej,
    "ImageJ, time": series,
    "MRC, origin": mrc,
    "HDF5 of CREMI": hdf5,
    "npy": npy,
    "folder of pages": pages,
    "PNG": picture,
    "N5 of COSEM": n5,
    "precomputed, offset": precomputed,
    "field of a plate": plate,
    "slide": slide,
    "NRRD, detached": raw_nrrd,
    "MHD, detached": raw_mhd,
    "npz": npz,
}


def result(source: Path, output: Path) -> str:
    """ "kept", "no place" where nothing but the index could be kept, or the sentence of a refusal."""
    image = read_volume(source)
    index = INDEX[-image.ndim :]
    try:
        check_labels_path(output, [("image", source)], image)
    except ValueError as error:
        return str(error).replace(str(output), output.name)
    with label_output(output, image) as labels:
        labels.data[index] = 7
    return _compared(image, index, read_volume(output))


def _compared(image: Volume, index: tuple[int, ...], back: Volume) -> str:
    assert image.geometry is not None
    assert back.geometry is not None
    (found,) = np.argwhere(np.asarray(back.data) == 7)
    ours, theirs = image.geometry, back.geometry
    if not ours.calibrated:
        return "kept" if tuple(found) == index else f"WRONG: {tuple(found)}"
    if not theirs.calibrated:
        return "no place"
    names = [axis.name for axis in theirs.world]
    return verdict(ours, names, theirs.unit, theirs.to_world(found))


def verdict(ours: Geometry, names: list[str], unit: str | None, point: Any) -> str:
    """Whether the voxel marked in an image lies at a point of the world with these axes, in this unit."""
    if bool(ours.unit) != bool(unit):
        return f"WRONG: unit {ours.unit} became {unit}"
    if names != [axis.name for axis in ours.world]:
        return f"WRONG: axes {[axis.name for axis in ours.world]} became {names}"
    scale = [unit_ratio(unit, ours.unit) if axis.kind == "space" else 1.0 for axis in ours.world]
    away = np.abs(np.asarray(point) * scale - ours.to_world(INDEX[-ours.ndim :])).max() / min(ours.spacing)
    return "kept" if away < 1e-3 else f"WRONG: {away:.3g} voxels away"


def exported(source: Path, output: Path) -> str:
    """ "kept", or the sentence of a refusal, of a marked voxel that is exported."""
    image = read_volume(source)
    labels = np.zeros(image.shape, np.uint8)
    labels[INDEX[-image.ndim :]] = 7
    like = Volume(labels, image.spacing, geometry=image.geometry)
    try:
        write_export(output, like, image=image if output.suffix == ".dcm" else None)
    except ValueError as error:
        return str(error).replace(str(output), output.name)
    assert image.geometry is not None
    return verdict(image.geometry, *EXPORTS[output.suffix](output))


Place = tuple[list[str], str | None, Any]
"""Names of the world's axes, the unit of space, and where the marked voxel lies."""


def in_mesh(path: Path) -> Place:
    """The middle of a mesh as trimesh reads it; the unit is in the first bytes."""
    import trimesh

    mesh: Any = trimesh.load(path)
    assert mesh.is_watertight
    unit = path.read_bytes()[:300].partition(b"unit ")[2].split()[0].decode()
    return ["z", "y", "x"], standard_unit(unit), mesh.bounds.mean(axis=0)[::-1]


def in_geojson(path: Path) -> Place:
    """The middle of the only outline: (0, 0) is the corner of the first pixel."""
    content = json.loads(path.read_text())
    (feature,) = content["features"]
    assert feature["properties"]["label"] == 7
    col, row = np.mean(feature["geometry"]["coordinates"][0][:-1], axis=0) - 0.5
    return in_world(content["image"], [*feature["properties"]["position"], row, col])


def in_coco(path: Path) -> Place:
    """The only pixel of the only annotation, its run lengths counted out column by column."""
    content = json.loads(path.read_text())
    (one,), (image,) = content["annotations"], content["images"]
    assert one["category_id"] == 7
    before, pixels, _ = one["segmentation"]["counts"]
    assert pixels == one["area"] == 1
    col, row = divmod(before, image["height"])
    return in_world(content["info"]["image"], [*image["position"], row, col])


def in_world(about: dict[str, Any], index: list[float]) -> Place:
    """A place by the affine that stands beside outlines."""
    units = {axis["unit"] for axis in about["world"] if axis["kind"] == "space"}
    names = [axis["name"] for axis in about["world"]]
    return names, units.pop(), (np.array(about["affine"]) @ [*index, 1])[:-1]


def in_segmentation(path: Path) -> Place:
    """The only voxel as highdicom places it, in mm to the left, the back and the top."""
    from highdicom.seg import segread

    volume = segread(path).get_volume(combine_segments=True)
    ((x, y, z),) = volume.map_indices_to_reference(np.argwhere(volume.array))
    return ["z", "y", "x"], "mm", (z, -y, -x)


EXPORTS: dict[str, Callable[[Path], Place]] = {
    ".stl": in_mesh,
    ".ply": in_mesh,
    ".geojson": in_geojson,
    ".json": in_coco,
    ".dcm": in_segmentation,
}


Table = dict[str, dict[str, str]]


def print_table(table: Table, columns: Sequence[str], what: str) -> None:
    """A table, its sentences, and how many pairs are kept, refused and wrong."""
    sentences: list[str] = []
    print(f"| image \\ {what} | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, row in table.items():
        cells = []
        for text in row.values():
            if text in ("kept", "no place") or text.startswith("WRONG"):
                cells.append(text)
                continue
            if text not in sentences:
                sentences.append(text)
            cells.append(f"refused ({sentences.index(text) + 1})")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print()
    for number, text in enumerate(sentences, start=1):
        print(f"{number}. {text}")
    every = [text for row in table.values() for text in row.values()]
    kept, placeless = every.count("kept"), every.count("no place")
    wrong = sum(text.startswith("WRONG") for text in every)
    print(f"\n{len(every)} pairs: {kept} kept, {placeless} without a place, {wrong} wrong, "
          f"{len(every) - kept - placeless - wrong} refused\n")  # fmt: skip


def main() -> None:
    """Print the tables and the sentences."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args().json
    labels: Table = {}
    exports: Table = {}
    for name, make in INPUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            source = make(Path(folder))
            labels[name] = {end: result(source, Path(folder) / f"labels{end}") for end in OUTPUTS}
            exports[name] = {end: exported(source, Path(folder) / f"export{end}") for end in EXPORTS}
    print_table(labels, OUTPUTS, "labels")
    print_table(exports, tuple(EXPORTS), "export")
    if wanted is not None:
        wanted.write_text(json.dumps({"labels": labels, "exports": exports}, indent=1))


if __name__ == "__main__":
    main()
