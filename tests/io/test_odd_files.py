"""What converters, scanners and other programs write that is odd and valid: read where it lies, or refused.

Each file has one bright voxel, the third along x, the second along y and the first along z of an array of
4 x 5 x 6 (z, y, x) unless it says otherwise; the table says where that voxel lies in the world.
"""

from __future__ import annotations

import gzip
import json
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import tifffile

from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.files import check_labels_path, label_output, read_volume

SHAPE, AT = (4, 5, 6), (0, 1, 2)
Make = Callable[[Path], Path]
World = dict[str, float] | str
"""Where the bright voxel lies, by the names of axes and "unit"; or what the refusal says."""


def marked(dtype: Any = np.uint8, shape: tuple[int, ...] = SHAPE, at: tuple[int, ...] = AT) -> np.ndarray:
    """The array with its one bright voxel."""
    data = np.zeros(shape, dtype)
    data[at] = 100
    return data


def found(volume: Volume) -> dict[str, float]:
    """Where the brightest voxel of a volume lies."""
    data = np.asarray(volume.data)
    geometry = volume.geometry
    assert geometry is not None
    axes = [axis for axis in range(data.ndim) if axis != volume.channel_axis]
    at = np.argwhere(data == data.max())[0][axes]
    places = dict(zip([axis.name for axis in geometry.world], geometry.to_world(at).tolist(), strict=True))
    return {name: round(place, 4) for name, place in places.items()}


# NIfTI ----------


def nifti(
    change: Callable[[Any], object] = lambda image: None,
    data: np.ndarray | None = None,
    affine: Any = ((2, 0, 0, 10), (0, 3, 0, 20), (0, 0, 5, 30), (0, 0, 0, 1)),
    kind: Any = nibabel.Nifti1Image,
    name: str = "a.nii",
) -> Make:
    """A NIfTI with axes (i, j, k), mm and 2 x 3 x 5 mm, changed by a function of nibabel's image."""

    def make(folder: Path) -> Path:
        stored = marked().transpose(2, 1, 0) if data is None else data
        image = kind(stored, None if affine is None else np.array(affine, float))
        image.header.set_xyzt_units("mm", "sec")
        change(image)
        nibabel.save(image, folder / name)
        return folder / name

    return make


def header_byte(at: int, form: str, *values: float) -> Callable[[Path], Path]:
    """The plain NIfTI with some bytes of its header written over."""

    def make(folder: Path) -> Path:
        path = nifti()(folder)
        raw = bytearray(path.read_bytes())
        struct.pack_into(form, raw, at, *values)
        path.write_bytes(raw)
        return path

    return make


def only_qform(image: Any) -> None:
    image.set_qform(np.diag([-2.0, 3, 5, 1]), code=1)
    image.set_sform(None, code=0)


def no_codes(image: Any) -> None:
    image.set_qform(None, code=0)
    image.set_sform(None, code=0)


def in_unit(name: str) -> Callable[[Any], None]:
    return lambda image: image.header.set_xyzt_units(name)


def turned(image: Any) -> None:
    image.set_sform([[0, 0, 5, 1], [2, 0, 0, 2], [0, 3, 0, 3], [0, 0, 0, 1]], code=1)


PLAIN = {"x": 14.0, "y": 23.0, "z": 30.0}
NIFTI: dict[str, tuple[Make, World]] = {
    "nifti plain": (nifti(), PLAIN),
    "nifti qform only, mirrored": (nifti(only_qform), {"x": -4.0, "y": 3.0, "z": 0.0}),
    "nifti sagittal": (nifti(turned), {"x": 1.0, "y": 6.0, "z": 6.0}),
    "nifti in micron": (nifti(in_unit("micron")), PLAIN | {"unit": "µm"}),
    "nifti in meter": (nifti(in_unit("meter")), PLAIN | {"unit": "m"}),
    "nifti-2": (nifti(kind=nibabel.Nifti2Image), PLAIN),
    "nifti packed": (nifti(name="a.nii.gz"), PLAIN),
    "nifti suffix in capitals": (nifti(name="A.NII.GZ"), PLAIN),
    "nifti 4-D of one time": (nifti(data=marked().transpose(2, 1, 0)[..., None]), PLAIN),
    "nifti 5-D of one time": (nifti(data=marked().transpose(2, 1, 0)[..., None, None]), PLAIN),
    "nifti float32": (nifti(data=marked(np.float32).transpose(2, 1, 0)), PLAIN),
    "nifti int32": (nifti(data=marked(np.int32).transpose(2, 1, 0)), PLAIN),
    "nifti slope 0": (header_byte(112, "<ff", 0.0, 7.0), PLAIN),
    "nifti slope nan": (header_byte(112, "<ff", float("nan"), 0.0), PLAIN),
    "nifti slope and intercept": (header_byte(112, "<ff", 2.0, -10.0), PLAIN),
    "nifti label intent": (header_byte(68, "<h", 1002), PLAIN),
    "nifti window": (header_byte(124, "<ff", 50.0, 10.0), PLAIN),
    "nifti sform without rank": (header_byte(280, "<12f", *[0.0] * 12), "length and a direction"),
    "nifti sform nan": (header_byte(280, "<f", float("nan")), "finite"),
    "nifti offset behind": (header_byte(108, "<f", 1e6), "cannot be read"),
}


def big_endian(folder: Path) -> Path:
    image = nibabel.Nifti1Image(marked(">i2").transpose(2, 1, 0), np.diag([2.0, 3, 5, 1]))
    image.header.set_xyzt_units("mm")
    swapped = nibabel.Nifti1Image(image.dataobj, image.affine, image.header.as_byteswapped(">"))
    nibabel.save(swapped, folder / "a.nii")
    return folder / "a.nii"


def qform_and_sform(folder: Path) -> Path:
    """As registration programs leave them: the sform is the better one."""

    def change(image: Any) -> None:
        image.set_qform(np.diag([2.0, 3, 5, 1]), code=1)
        image.set_sform([[2, 0, 0, 10], [0, 3, 0, 20], [0, 0, 5, 30], [0, 0, 0, 1]], code=4)

    return nifti(change)(folder)


NIFTI |= {
    "nifti big-endian": (big_endian, {"x": 4.0, "y": 3.0, "z": 0.0}),
    "nifti sform and qform": (qform_and_sform, PLAIN),
    "nifti extension": (
        nifti(lambda image: image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"x" * 99))),
        PLAIN,
    ),
}

# MetaImage ----------


def meta(*lines: str, data: np.ndarray | None = None, newline: str = "\n", local: bool = True) -> Make:
    """A MetaImage of 2 x 3 x 5 mm at 10, 20, 30 mm (LPS), with more lines in its header."""

    def make(folder: Path) -> Path:
        pixels = marked() if data is None else data
        header = {
            "ObjectType": "Image",
            "NDims": str(pixels.ndim),
            "DimSize": " ".join(map(str, pixels.shape[::-1])),
            "ElementType": "MET_UCHAR",
            "ElementSpacing": "2 3 5",
            "Offset": "10 20 30",
        }
        for line in lines:
            key, _, value = line.partition(" = ")
            header[key] = value
        header = {key: value for key, value in header.items() if value != "-"}
        text = "".join(f"{key} = {value}{newline}" for key, value in header.items())
        path = folder / ("a.mha" if local else "a.mhd")
        text += f"ElementDataFile = {'LOCAL' if local else 'a.raw'}{newline}"
        path.write_bytes(text.encode() + (pixels.tobytes() if local else b""))
        (folder / "a.raw").write_bytes(pixels.tobytes())
        return path

    return make


LPS = {"x": -14.0, "y": -23.0, "z": 30.0}
META: dict[str, tuple[Make, World]] = {
    "meta plain": (meta(), LPS),
    "meta in um": (meta("DistanceUnits = um"), LPS | {"unit": "µm"}),
    "meta in cm": (meta("DistanceUnits = cm"), LPS | {"unit": "cm"}),
    "meta in ?": (meta("DistanceUnits = ?"), LPS),
    "meta in furlong": (meta("DistanceUnits = furlong"), "furlong"),
    "meta CRLF": (meta(newline="\r\n"), LPS),
    "meta size and spacing": (meta("ElementSize = 1 1 1"), LPS),
    "meta mirrored": (meta("TransformMatrix = -1 0 0 0 1 0 0 0 1"), {"x": -6.0, "y": -23.0, "z": 30.0}),
    "meta turned": (meta("TransformMatrix = 0 0 1 1 0 0 0 1 0"), {"x": -13.0, "y": -20.0, "z": 34.0}),
    "meta big-endian": (
        meta("ElementType = MET_SHORT", "ElementByteOrderMSB = True", data=marked(">i2")),
        LPS,
    ),
    "meta origin": (meta("Offset = -", "Origin = 10 20 30"), LPS),
    "meta position": (meta("Offset = -", "Position = 10 20 30"), LPS),
    "meta beside": (meta(local=False), LPS),
    "meta header to skip": (meta("HeaderSize = -1", local=False), LPS),
    "meta long": (meta("ElementType = MET_LONG", data=marked(np.int32)), "MET_LONG"),
    "meta text": (meta("BinaryData = False"), "text or in several files"),
    "meta 4-D": (
        meta(
            "ElementSpacing = 2 3 5 7",
            "Offset = 10 20 30 40",
            data=marked(shape=(2, *SHAPE), at=(1, *AT)),
        ),
        LPS | {"t": 47.0},
    ),
    "meta 4-D sheared through time": (
        meta(
            "TransformMatrix = 1 0 0 1 0 1 0 0 0 0 1 0 0 0 0 1",
            "ElementSpacing = 1 1 1 1",
            "Offset = 0 0 0 0",
            data=marked(shape=(2, *SHAPE), at=(1, *AT)),
        ),
        "more than those of space and one of time",
    ),
    "meta colours": (
        meta(
            "NDims = 3",
            "DimSize = 6 5 4",
            "ElementNumberOfChannels = 3",
            data=np.repeat(marked()[..., None], 3, axis=-1),
        ),
        LPS,
    ),
}

# NRRD ----------


def nrrd_of(data: np.ndarray | None = None, name: str = "a.nrrd", **header: Any) -> Make:
    """A NRRD of the array, fastest axis x; underscores in names of fields are spaces."""

    def make(folder: Path) -> Path:
        fields = {key.replace("_", " "): value for key, value in header.items()}
        nrrd.write(str(folder / name), marked() if data is None else data, fields, index_order="C")
        return folder / name

    return make


DIRECTED: dict[str, Any] = {"space_directions": np.diag([2.0, 3, 5]), "space_origin": [10.0, 20, 30]}
NRRD: dict[str, tuple[Make, World]] = {
    "nrrd LPS": (nrrd_of(space="left-posterior-superior", **DIRECTED), LPS),
    "nrrd lps": (nrrd_of(space="LPS", **DIRECTED), LPS),
    "nrrd RAS": (nrrd_of(space="right-anterior-superior", **DIRECTED), {"x": 14.0, "y": 23.0, "z": 30.0}),
    "nrrd LAS": (nrrd_of(space="left-anterior-superior", **DIRECTED), {"x": -14.0, "y": 23.0, "z": 30.0}),
    "nrrd LPST": (
        nrrd_of(
            marked(shape=(2, *SHAPE), at=(1, *AT)),
            space="left-posterior-superior-time",
            space_directions=np.diag([2.0, 3, 5, 7]),
            space_origin=[10.0, 20, 30, 40],
        ),
        LPS | {"t": 47.0},
    ),
    "nrrd 3D-right-handed": (
        nrrd_of(space="3D-right-handed", **DIRECTED),
        {"x": 14.0, "y": 23.0, "z": 30.0},
    ),
    "nrrd in um": (
        nrrd_of(space="left-posterior-superior", space_units=["um"] * 3, **DIRECTED),
        LPS | {"unit": "µm"},
    ),
    "nrrd in microns": (
        nrrd_of(space="left-posterior-superior", space_units=["microns"] * 3, **DIRECTED),
        LPS | {"unit": "µm"},
    ),
    "nrrd none first": (
        nrrd_of(
            marked(shape=(*SHAPE, 2), at=(*AT, 1)),
            space="left-posterior-superior",
            kinds=["list", "domain", "domain", "domain"],
            space_directions=np.array([[np.nan] * 3, [2, 0, 0], [0, 3, 0], [0, 0, 5]]),
            space_origin=[10.0, 20, 30],
        ),
        LPS,
    ),
    "nrrd none last": (
        nrrd_of(
            marked(shape=(2, *SHAPE), at=(1, *AT)),
            space="left-posterior-superior",
            kinds=["domain", "domain", "domain", "list"],
            space_directions=np.array([[2, 0, 0], [0, 3, 0], [0, 0, 5], [np.nan] * 3]),
            space_origin=[10.0, 20, 30],
        ),
        LPS,
    ),
    "nrrd spacings": (nrrd_of(spacings=[2.0, 3.0, 5.0]), {"x": 4.0, "y": 3.0, "z": 0.0}),
    "nrrd axis mins": (
        nrrd_of(spacings=[2.0, 3.0, 5.0], **{"axis mins": [10.0, 20.0, 30.0]}),
        {"x": 14.0, "y": 23.0, "z": 30.0},
    ),
    "nrrd axis mins of cells": (
        nrrd_of(spacings=[2.0, 3.0, 5.0], centerings=["cell"] * 3, **{"axis mins": [10.0, 20.0, 30.0]}),
        {"x": 15.0, "y": 24.5, "z": 32.5},
    ),
    "nrrd units of axes": (
        nrrd_of(spacings=[2.0, 3.0, 5.0], units=["um", "um", "um"]),
        {"x": 4.0, "y": 3.0, "z": 0.0, "unit": "µm"},
    ),
    "nrrd text": (nrrd_of(space="LPS", encoding="text", **DIRECTED), LPS),
    "nrrd bzip2": (nrrd_of(space="LPS", encoding="bzip2", **DIRECTED), LPS),
    "nrrd big-endian": (nrrd_of(marked(">i2"), space="LPS", encoding="raw", **DIRECTED), LPS),
    "nrrd detached": (nrrd_of(name="a.nhdr", space="LPS", **DIRECTED), LPS),
}

# TIFF and OME-TIFF ----------


def imagej(data: np.ndarray | None = None, axes: str = "ZYX", resolution: Any = (2, 2), **about: Any) -> Make:
    """A TIFF as ImageJ writes it, pixels of 0.5."""

    def make(folder: Path) -> Path:
        pixels = marked() if data is None else data
        metadata = {"axes": axes, **about}
        tifffile.imwrite(folder / "a.tif", pixels, imagej=True, resolution=resolution, metadata=metadata)
        return folder / "a.tif"

    return make


def ome(change: Callable[[str], str] = lambda xml: xml, data: np.ndarray | None = None, **about: Any) -> Make:
    """An OME-TIFF, its XML changed by a function."""

    def make(folder: Path) -> Path:
        path = folder / "a.ome.tif"
        known = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0, **about}
        tifffile.imwrite(path, marked() if data is None else data, ome=True, metadata=known)
        xml = tifffile.tiffcomment(path)
        assert isinstance(xml, str)
        tifffile.tiffcomment(path, change(xml).encode())
        return path

    return make


def planes_backwards(xml: str) -> str:
    """Planes listed from the last to the first, as some microscopes do."""
    listed = "".join(
        f'<Plane TheZ="{z}" TheT="0" TheC="0" PositionX="7" PositionXUnit="µm" '
        f'PositionY="8" PositionYUnit="µm" PositionZ="{30 + 2 * z}" PositionZUnit="µm"/>'
        for z in (3, 2, 1, 0)
    )
    return xml.replace("</Pixels>", f"{listed}</Pixels>")


SMALL = {"x": 1.0, "y": 0.5, "z": 0.0}
TIFF: dict[str, tuple[Make, World]] = {
    "imagej micron": (imagej(spacing=2.0, unit="micron"), SMALL | {"unit": "µm"}),
    "imagej \\u00B5m": (imagej(spacing=2.0, unit="\\u00B5m"), SMALL | {"unit": "µm"}),
    "imagej nm": (imagej(spacing=2.0, unit="nm"), SMALL | {"unit": "nm"}),
    "imagej pixel": (imagej(spacing=2.0, unit="pixel"), SMALL),
    "imagej origin": (
        imagej(spacing=2.0, unit="um", xorigin=10.0, yorigin=20.0, zorigin=1.0),
        {"x": -4.0, "y": -9.5, "z": -2.0, "unit": "µm"},
    ),
    "imagej other unit of z": (
        imagej(marked(at=(1, 1, 2)), spacing=2000.0, unit="um", zunit="nm"),
        {"x": 1.0, "y": 0.5, "z": 2.0, "unit": "µm"},
    ),
    "imagej negative spacing": (
        imagej(marked(at=(1, 1, 2)), spacing=-2.0, unit="um"),
        {"z": 2.0, "unit": "µm"},
    ),
    "imagej spacing nan": (imagej(spacing=float("nan"), unit="um"), SMALL | {"unit": "µm"}),
    "imagej time": (
        imagej(marked(np.uint8, (2, *SHAPE), (1, *AT)), "TZYX", spacing=2.0, unit="um", finterval=3.0),
        SMALL | {"t": 3.0},
    ),
    "imagej many frames, one slice": (imagej(axes="TYX", unit="um"), {"x": 1.0, "y": 0.5, "t": 0.0}),
    "ome plain": (ome(), SMALL | {"unit": "µm"}),
    "ome nm": (
        ome(PhysicalSizeXUnit="nm", PhysicalSizeYUnit="nm", PhysicalSizeZUnit="nm"),
        {"x": 0.001, "y": 0.0005, "unit": "µm"},
    ),
    "ome z in nm": (
        ome(data=marked(at=(1, 1, 2)), PhysicalSizeZ=2000.0, PhysicalSizeZUnit="nm"),
        {"x": 1.0, "y": 0.5, "z": 2.0, "unit": "µm"},
    ),
    "ome Å": (
        ome(PhysicalSizeXUnit="Å", PhysicalSizeYUnit="Å", PhysicalSizeZUnit="Å"),
        {"x": 0.0001, "unit": "µm"},
    ),
    "ome planes backwards": (ome(planes_backwards), {"x": 8.0, "y": 8.5, "z": 30.0, "unit": "µm"}),
    "ome size 0": (ome(PhysicalSizeZ=0.0), SMALL),
    "ome size nan": (ome(PhysicalSizeZ=float("nan")), SMALL),
    "ome fewer planes than pages": (ome(lambda xml: xml.replace('SizeZ="4"', 'SizeZ="2"')), SMALL),
    "ome more planes than pages": (
        ome(lambda xml: xml.replace('SizeZ="4"', 'SizeZ="8"')),
        "declare 8 planes",
    ),
}

# OME-Zarr ----------


def zarr_of(
    change: Callable[[dict[str, Any]], object] = lambda about: None,
    *,
    version: int = 2,
    data: np.ndarray | None = None,
    **stored: Any,
) -> Make:
    """An OME-Zarr of one level, 5 x 3 x 2 µm at 30, 20, 10 µm, its metadata changed by a function."""

    def make(folder: Path) -> Path:
        zarr = pytest.importorskip("zarr")
        path, pixels = folder / "a.ome.zarr", marked() if data is None else data
        root = zarr.open_group(path, mode="w", zarr_format=version)
        array = root.create_array(
            "0", shape=pixels.shape, dtype=pixels.dtype, **{"chunks": (2, 4, 4), **stored}
        )
        array[...] = pixels
        about = {
            "version": "0.5" if version == 3 else "0.4",
            "axes": [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"],
            "datasets": [
                {
                    "path": "0",
                    "coordinateTransformations": [
                        {"type": "scale", "scale": [5, 3, 2]},
                        {"type": "translation", "translation": [30, 20, 10]},
                    ],
                }
            ],
        }
        change(about)
        root.attrs.update({"ome": {"multiscales": [about]}} if version == 3 else {"multiscales": [about]})
        return path

    return make


def named(names: str, unit: str | None = "micrometer") -> Callable[[dict[str, Any]], object]:
    """Other axes."""
    axes = [{"name": name, "type": "space"} | ({"unit": unit} if unit else {}) for name in names]
    return lambda about: about.update(axes=axes)


def beyond(about: dict[str, Any]) -> None:
    """A transformation for all levels besides that of the level."""
    about["coordinateTransformations"] = [{"type": "scale", "scale": [2, 2, 2]}]


def scaled(*scale: float) -> Callable[[dict[str, Any]], object]:
    def change(about: dict[str, Any]) -> None:
        about["datasets"][0]["coordinateTransformations"] = [{"type": "scale", "scale": list(scale)}]

    return change


def systems(kind: str) -> Callable[[dict[str, Any]], object]:
    """Version 0.6: named coordinate systems, and one kind of transformation into the image's own."""
    changes: dict[str, Any] = {
        "scale": {"type": "scale", "scale": [5, 3, 2]},
        "sequence": {
            "type": "sequence",
            "transformations": [
                {"type": "scale", "scale": [5, 3, 2]},
                {"type": "translation", "translation": [30, 20, 10]},
            ],
        },
        "affine": {"type": "affine", "affine": [[0, 0, 2, 0], [0, 3, 0, 0], [5, 0, 0, 0]]},
        "rotation": {"type": "rotation", "rotation": [[0, 1, 0], [1, 0, 0], [0, 0, 1]]},
    }

    def change(about: dict[str, Any]) -> None:
        axes = about.pop("axes")
        for axis in axes:
            axis["unit"] = "nanometer"
        about["version"] = "0.6.dev1"
        about["coordinateSystems"] = [{"name": "world", "axes": []}, {"name": "physical", "axes": axes}]
        about["datasets"][0]["coordinateTransformations"] = [
            {"input": "0", "output": "physical", **changes[kind]}
        ]
        about["coordinateTransformations"] = [
            {"type": "scale", "scale": [9, 9, 9], "input": "physical", "output": "world"}
        ]

    return change


HERE = {"x": 14.0, "y": 23.0, "z": 30.0, "unit": "µm"}
ZARR: dict[str, tuple[Make, World]] = {
    "zarr 2": (zarr_of(), HERE),
    "zarr 3": (zarr_of(version=3), HERE),
    "zarr 2 with /": (zarr_of(chunk_key_encoding={"name": "v2", "separator": "/"}), HERE),
    "zarr 3 with keys of 2": (zarr_of(version=3, chunk_key_encoding={"name": "v2", "separator": "."}), HERE),
    "zarr 3 sharded": (zarr_of(version=3, shards=(4, 8, 8)), HERE),
    "zarr 2 in Fortran's order": (zarr_of(order="F"), HERE),
    "zarr big-endian": (zarr_of(data=marked(">u2")), HERE),
    "zarr scale of the image": (zarr_of(beyond), {"x": 28.0, "y": 46.0, "z": 60.0, "unit": "µm"}),
    "zarr axes xyz": (
        zarr_of(named("xyz"), data=marked().transpose(2, 1, 0)),
        {"x": 40.0, "y": 23.0, "z": 10.0, "unit": "µm"},
    ),
    "zarr unit um": (zarr_of(named("zyx", "um")), HERE),
    "zarr unit micron": (zarr_of(named("zyx", "micron")), HERE),
    "zarr unit nanometer": (zarr_of(named("zyx", "nanometer")), HERE | {"unit": "nm"}),
    "zarr unit angstrom": (zarr_of(named("zyx", "angstrom")), HERE | {"unit": "Å"}),
    "zarr without a unit": (zarr_of(named("zyx", None)), {"x": 14.0, "y": 23.0, "z": 30.0}),
    "zarr scale 0": (zarr_of(scaled(5, 0, 2)), "length and a direction"),
    "zarr negative scale": (zarr_of(scaled(5, -3, 2)), {"x": 4.0, "y": -3.0, "z": 0.0, "unit": "µm"}),
    "zarr too few scales": (zarr_of(scaled(5, 3)), "."),
    "zarr 0.6 scale": (
        zarr_of(systems("scale"), version=3),
        {"x": 4.0, "y": 3.0, "z": 0.0, "unit": "nm"},
    ),
    "zarr 0.6 sequence": (zarr_of(systems("sequence"), version=3), HERE | {"unit": "nm"}),
    "zarr 0.6 affine": (zarr_of(systems("affine"), version=3), "of type 'affine'"),
    "zarr 0.6 rotation": (zarr_of(systems("rotation"), version=3), "of type 'rotation'"),
}

# MRC ----------


def mrc(change: Callable[[bytearray], object] = lambda raw: None, dtype: Any = np.int8) -> Make:
    """A tomogram of 2 x 3 x 5 Å at 10, 20, 30 Å, some bytes of its header written over."""

    def make(folder: Path) -> Path:
        import mrcfile

        with mrcfile.new(folder / "a.mrc", marked(dtype)) as file:
            file.voxel_size = (2.0, 3.0, 5.0)
            file.header.origin = (10.0, 20.0, 30.0)
        raw = bytearray((folder / "a.mrc").read_bytes())
        change(raw)
        (folder / "a.mrc").write_bytes(raw)
        return folder / "a.mrc"

    return make


def over(at: int, form: str, *values: float) -> Callable[[bytearray], object]:
    return lambda raw: struct.pack_into(form, raw, at, *values)


def started(raw: bytearray) -> None:
    """No origin, but the index of the first voxel."""
    struct.pack_into("<3f", raw, 196, 0, 0, 0)
    struct.pack_into("<3i", raw, 16, 5, 6, 7)


IN_A = {"x": 14.0, "y": 23.0, "z": 30.0, "unit": "Å"}
MRC: dict[str, tuple[Make, World]] = {
    "mrc plain": (mrc(), IN_A),
    "mrc started": (mrc(started), {"x": 14.0, "y": 21.0, "z": 35.0, "unit": "Å"}),
    "mrc float16": (mrc(dtype=np.float16), IN_A),
    "mrc uint16": (mrc(dtype=np.uint16), IN_A),
    "mrc stack of pictures": (mrc(over(88, "<i", 0)), IN_A),
    "mrc axes that do not exist": (mrc(over(64, "<3i", 0, 0, 0)), IN_A),
    "mrc cell nan": (mrc(over(40, "<f", float("nan"))), {"x": 2.0, "y": 1.0, "z": 0.0}),
    "mrc negative cell": (mrc(over(40, "<f", -12.0)), {"x": 2.0, "y": 1.0, "z": 0.0}),
    "mrc mode 101": (mrc(over(12, "<i", 101)), "."),
}

# N5 ----------


def n5(about: dict[str, Any], sizes: tuple[tuple[int, ...], ...] = ((6, 5, 4),), below: str = "v/") -> Make:
    """An N5 of some levels, axes x, y, z, all of them empty but the finest."""

    def make(folder: Path) -> Path:
        tensorstore = pytest.importorskip("tensorstore")
        path = folder / "a.n5"
        for number, size in enumerate(sizes):
            place = path / f"{below}s{number}"
            store = tensorstore.open(
                {"driver": "n5", "kvstore": {"driver": "file", "path": str(place)}},
                create=True, dtype=tensorstore.uint8, shape=size,
            ).result()  # fmt: skip
            last = marked(shape=size[::-1], at=(0,) * (len(size) - 2) + (1, 1)).T
            store.write(last).result()
        (path / below / "attributes.json").write_text(json.dumps(about))
        return path

    return make


PYRAMID = ((40, 50, 60), (20, 25, 30), (10, 13, 15))
N5: dict[str, tuple[Make, World]] = {
    "n5 levels at the root": (
        n5({"resolution": [2, 3, 5], "units": ["nm"] * 3}, PYRAMID, below=""),
        {"x": 2.0, "y": 3.0, "z": 0.0, "unit": "nm"},
    ),
    "n5 one unit": (
        n5({"pixelResolution": {"dimensions": [2, 3, 5], "unit": "um"}}),
        {"x": 2.0, "y": 3.0, "z": 0.0, "unit": "µm"},
    ),
    "n5 unit of each axis": (
        n5({"axes": ["x", "t"], "units": ["nm", "s"], "resolution": [2, 7]}, ((6, 5),)),
        {"x": 2.0, "t": 7.0, "unit": "nm"},
    ),
    "n5 axes zyx": (
        n5({"axes": ["z", "y", "x"], "units": ["nm"] * 3, "resolution": [5, 3, 2]}),
        {"z": 5.0, "y": 3.0, "x": 0.0, "unit": "nm"},
    ),
}

FILES = {**NIFTI, **META, **NRRD, **TIFF, **ZARR, **MRC, **N5}


@pytest.mark.parametrize("name", FILES)
def test_an_odd_file_lies_where_it_says_or_is_refused(name: str, tmp_path: Path) -> None:
    """To the voxel, in its unit; and so do labels of it that are read again."""
    make, world = FILES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = make(tmp_path)
    if isinstance(world, str):
        with pytest.raises(ValueError, match=world) as refused:
            read_volume(path)
        assert "\n" not in str(refused.value)
        return
    unit = world.get("unit")
    volume = read_volume(path, channel=1 if "none" in name.split() else None)
    place = found(volume)
    assert {key: place[key] for key in world if key != "unit"} == pytest.approx(
        {key: value for key, value in world.items() if key != "unit"}, abs=1e-3
    )
    assert volume.geometry is not None
    if unit is not None:
        assert volume.geometry.unit == unit
    if volume.channel_axis is not None or set(volume.geometry.names) != set("zyx"):
        return
    units = set(volume.geometry.units)
    output = tmp_path / ("labels.tif" if len(units) > 1 else "labels.nrrd")
    with label_output(output, volume) as labels:
        labels.data[...] = np.asarray(volume.data) == np.asarray(volume.data).max()
    again = read_volume(output)
    assert again.geometry is not None
    assert {again.geometry.unit} == units - ({None} if len(units) > 1 else set())
    assert found(again) == pytest.approx(place, abs=1e-3)


@pytest.mark.parametrize("scales", [None, [[1, 1, 1], [2, 2, 2], [4, 4, 4]]])
def test_levels_of_n5_are_where_their_factors_put_them(tmp_path: Path, scales: Any) -> None:
    """Also where lengths are odd: 13 of 50 are every fourth, rounded up."""
    about = {"resolution": [2, 3, 5], "units": ["nm"] * 3} | ({"scales": scales} if scales else {})
    path = n5(about, PYRAMID, below="")(tmp_path)
    volume = read_volume(path, level=2)
    assert volume.geometry is not None
    assert volume.geometry.spacing == (20, 12, 8)
    assert np.allclose(volume.geometry.translation, [7.5, 4.5, 3])


def slices(folder: Path, count: int = 4, change: Callable[[int, Any], object] = lambda at, one: None) -> Path:
    """A DICOM series of 5 x 6 pixels, 2 mm apart upwards, its first slice with the bright pixel."""
    pydicom = pytest.importorskip("pydicom")
    folder.mkdir(exist_ok=True)
    series = pydicom.uid.generate_uid()
    for at in range(count):
        one = pydicom.dataset.FileDataset(None, {}, preamble=b"\0" * 128)
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = pydicom.uid.CTImageStorage
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = pydicom.uid.generate_uid()
        one.SeriesInstanceUID, one.InstanceNumber, one.Modality = series, at + 1, "CT"
        one.ImagePositionPatient, one.ImageOrientationPatient = [10, 20, 30 + 2 * at], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness = [3, 2], 1
        one.Rows, one.Columns, one.SamplesPerPixel, one.PhotometricInterpretation = 5, 6, 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        pixels = np.zeros((5, 6), np.uint16)
        pixels[1, 2] = 100 if at == 0 else 0
        one.PixelData = pixels.tobytes()
        change(at, one)
        one.save_as(folder / f"{at}.dcm", enforce_file_format=True)
    return folder


def numbered_backwards(at: int, one: Any) -> None:
    one.InstanceNumber = 9 - at


def inverted(at: int, one: Any) -> None:
    one.PhotometricInterpretation = "MONOCHROME1"


def packed_apart(at: int, one: Any) -> None:
    one.SliceThickness, one.SpacingBetweenSlices = 7, 9  # where they lie counts


def scaled_apart(at: int, one: Any) -> None:
    one.RescaleSlope, one.RescaleIntercept = (2 if at == 0 else 0.5), 0


def wider(at: int, one: Any) -> None:
    if at == 2:
        one.Columns, one.PixelData = 7, bytes(2 * 5 * 7)


def localizer(at: int, one: Any) -> None:
    if at == 2:
        one.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def echoes(at: int, one: Any) -> None:
    one.ImagePositionPatient, one.EchoNumbers = [10, 20, 30 + 2 * (at // 2)], at % 2 + 1


def with_a_gap(at: int, one: Any) -> None:
    one.ImagePositionPatient = [10, 20, 30 + 2 * (at + (at > 1))]


def feet_first(at: int, one: Any) -> None:
    one.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("change", "world"),
    [
        (numbered_backwards, LPS),
        (inverted, LPS),
        (packed_apart, LPS),
        (scaled_apart, LPS),
        (feet_first, {"x": -6.0, "y": -23.0, "z": 30.0}),
        (wider, "have 5 x 6 to 5 x 7 pixels"),
        (localizer, "several directions"),
        (echoes, "several images at one place"),
        (with_a_gap, "some are missing"),
    ],
)
def test_an_odd_series_lies_where_it_says_or_is_refused(change: Any, world: World, tmp_path: Path) -> None:
    """Order by place and not by number; nothing that is no grid."""
    path = slices(tmp_path / "series", change=change)
    if isinstance(world, str):
        with pytest.raises(ValueError, match=world):
            read_volume(path)
        return
    volume = read_volume(path)
    assert found(volume) == pytest.approx(world)
    data = np.asarray(volume.data)
    assert np.array_equal(volume.plane(volume.planes(0)[0]), data[0])
    assert data.max() == (200 if change is scaled_apart else 100)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mrc", "a.mha", "a.tif", "a.ome.tif", "a.ome.zarr"])
def test_a_size_along_some_axes_only_is_kept_or_refused(name: str, tmp_path: Path) -> None:
    """Many microscopes say none along z: µm along x must not become a number without a unit."""
    path = ome(PhysicalSizeZ=0.0)(tmp_path)
    volume = read_volume(path)
    if not name.endswith((".tif", ".zarr")):
        with pytest.raises(ValueError, match=r"no size along z; write|names no unit"):
            check_labels_path(tmp_path / "out" / name, like=volume)
        return
    output = tmp_path / f"labels-{name}"
    with label_output(output, volume) as labels:
        labels.data[...] = np.asarray(volume.data) == 100
    again = read_volume(output)
    assert again.geometry is not None
    assert dict(zip(again.geometry.names, again.geometry.units))["x"] == "µm"
    assert found(again) == pytest.approx(SMALL)


@pytest.mark.parametrize("name", ["labels.tif", "labels.ome.tif"])
def test_rows_from_bottom_to_top_are_so_in_labels(name: str, tmp_path: Path) -> None:
    """Programs that follow the tag turn both, those that do not neither."""
    tags = [("Orientation", "H", 1, 4, True)]
    tifffile.imwrite(tmp_path / "a.tif", marked(), extratags=tags, photometric="minisblack")
    volume = read_volume(tmp_path / "a.tif")
    assert found(volume) == {"z": 0, "y": 1, "x": 2}
    with label_output(tmp_path / name, volume) as labels:
        labels.data[...] = np.asarray(volume.data) == 100
    with tifffile.TiffFile(tmp_path / name) as file:
        assert [int(page.tags["Orientation"].value) for page in file.pages] == [4] * len(file.pages)
    assert found(read_volume(tmp_path / name)) == {"z": 0, "y": 1, "x": 2}


def test_segments_of_a_layer_are_its_own(tmp_path: Path) -> None:
    """Slicer counts overlapping segments anew on each layer: one value has several names."""
    data = np.zeros((4, 5, 6, 2), np.uint8)
    data[1, ..., 0], data[2, ..., 1] = 1, 1
    fields = {
        "space": "left-posterior-superior",
        "kinds": ["list", "domain", "domain", "domain"],
        "space directions": np.array([[np.nan] * 3, [2, 0, 0], [0, 3, 0], [0, 0, 5]]),
        "space origin": [0.0, 0, 0],
    }
    for number, name in enumerate(("liver", "tumour")):
        about = {"Name": name, "LabelValue": "1", "Layer": str(number), "Color": "1 0 0"}
        fields |= {f"Segment{number}_{key}": value for key, value in about.items()}
    nrrd.write(str(tmp_path / "a.seg.nrrd"), data, fields, index_order="C")
    for layer, name in enumerate(("liver", "tumour")):
        volume = read_volume(tmp_path / "a.seg.nrrd", channel=layer)
        assert [one.name for one in volume.header.segments] == [name]  # type: ignore[union-attr]
        assert (np.asarray(volume.plane(volume.planes(0)[1 + layer])) != 0).all()


def test_a_packed_file_under_a_plain_name_is_refused(tmp_path: Path) -> None:
    """And no other image is made of it."""
    path = nifti()(tmp_path)
    (tmp_path / "b.nii").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match="cannot be read"):
        read_volume(tmp_path / "b.nii")
