"""The one table of formats: suffixes, who reads, who writes, and what has to be installed for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes
    ----------
    name
        As people call it.
    suffixes
        In lower case, with the dot; the first is the usual one.
    module
        In `napari_lowlat_seg.io`, such as "formats.tiff".
    read
        There, ``(path, choice) -> Loaded``; "" if labels are only written.
    write
        There, ``(path, labels, like) -> None``; "" if images are only read.
    check
        There, ``(path, shape, like)``, which refuses what `write` could not keep.
    needs
        The package that has to be installed, "" for none beyond the base.
    extra
        The extra of this project that brings it.
    holds_many
        Whether one file may hold several images, so that a path may lead on inside it.
    choices
        What of `Choice` it knows beside channel and time: "series", "level".
    folder
        Whether an image is a folder.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    read: str = "read"
    write: str = ""
    check: str = "plan"
    needs: str = ""
    extra: str = ""
    holds_many: bool = False
    choices: tuple[str, ...] = ()
    folder: bool = False

    def function(self, name: str) -> Callable[..., Any]:
        """A function of the format's module.

        Raises
        ------
        ImportError
            If the package that it needs is not installed, with what to install.
        """
        return function_of(self.module, name, self.name, self.needs, self.extra)


def function_of(module: str, name: str, what: str, needs: str, extra: str) -> Callable[..., Any]:
    """A function of a module of `io`, which is imported for it.

    Raises
    ------
    ImportError
        If the package that `what` needs is not installed, with the extra to install.
    """
    if needs:
        needed(needs, what, extra)
    function: Callable[..., Any] = getattr(importlib.import_module(f"napari_lowlat_seg.io.{module}"), name)
    return function


def needed(package: str, what: str, extra: str) -> Any:
    """A package that `what` needs and an extra brings; raises ImportError with what to install without it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{what} needs {package}, which is not installed; pip install napari-lowlat-seg[{extra}]"
        ) from error


MRC_SUFFIXES = (
    ".mrc", ".rec", ".map", ".st", ".ali", ".mrcs", ".mrc.gz", ".rec.gz", ".map.gz", ".mrc.bz2",
)  # fmt: skip

SERIES = ("series",)
PYRAMIDS = ("series", "level")

PRECOMPUTED = Format(
    "Neuroglancer precomputed",
    (".precomputed",),
    "chunked.blocks",
    read="read_precomputed",
    needs="tensorstore",
    extra="tensorstore",
    folder=True,
    choices=("level",),
)

FORMATS = (
    Format(
        "OME-TIFF",
        (".ome.tif", ".ome.tiff"),
        "formats.tiff",
        write="write_tiff",
        check="check_tiff",
        choices=PYRAMIDS,
    ),
    Format(
        "TIFF", (".tif", ".tiff"), "formats.tiff", write="write_tiff", check="check_tiff", choices=PYRAMIDS
    ),
    Format("slide", (".svs", ".ndpi", ".scn", ".bif", ".qptiff", ".lsm"), "formats.tiff", choices=PYRAMIDS),
    Format("NIfTI", (".nii", ".nii.gz"), "formats.nifti", write="write_nifti", check="check_nifti"),
    Format(
        "OME-Zarr", (".ome.zarr", ".zarr"), "chunked.ome_zarr", holds_many=True, folder=True, choices=PYRAMIDS
    ),
    Format("PNG", (".png",), "formats.pictures", write="write_png", check="check_png", choices=SERIES),
    Format("picture", (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".jp2"), "formats.pictures", choices=SERIES),
    Format("NRRD", (".nrrd", ".seg.nrrd", ".nhdr"), "formats.nrrd", needs="nrrd"),
    Format("NRRD", (".nrrd", ".seg.nrrd"), "formats.nrrd", read="", write="write", needs="nrrd"),
    Format("MRC", MRC_SUFFIXES, "formats.mrc", write="write", needs="mrcfile"),
    Format("MetaImage", (".mha", ".mhd"), "formats.metaimage"),
    Format(
        "MetaImage", (".mha",), "formats.metaimage", read="", write="write", needs="SimpleITK", extra="itk"
    ),
    Format("MGZ", (".mgz", ".mgh"), "formats.nibabel_formats", write="write"),
    Format(
        "Analyze, MINC, AFNI, PAR/REC",
        (".img", ".hdr", ".img.gz", ".mnc", ".head", ".brik", ".brik.gz", ".par"),
        "formats.nibabel_formats",
    ),
    Format(
        "HDF5",
        (".h5", ".hdf5", ".hdf"),
        "chunked.hdf5",
        needs="h5py",
        extra="hdf5",
        holds_many=True,
        choices=SERIES,
    ),
    PRECOMPUTED,
    Format(
        "N5",
        (".n5",),
        "chunked.blocks",
        read="read_n5",
        needs="tensorstore",
        extra="tensorstore",
        holds_many=True,
        folder=True,
        choices=PYRAMIDS,
    ),
    Format("numpy", (".npy", ".npz"), "formats.arrays", holds_many=True, choices=SERIES),
    Format(
        "DICOM", (".dcm", ".dicom", ".ima"), "formats.dicom", needs="pydicom", extra="dicom", choices=SERIES
    ),
)

PAGES = Format("folder of pages", (), "formats.pictures", read="read_folder", folder=True)
DICOM_FOLDER = Format(
    "DICOM", (), "formats.dicom", needs="pydicom", extra="dicom", folder=True, choices=SERIES
)


def find_format(path: Path, *, writing: bool = False) -> Format | None:
    """The format of a path by its suffix, in any case; None if there is none, or none that is written."""
    found = [
        (len(suffix), one)
        for one in FORMATS
        for suffix in one.suffixes
        if path.name.lower().endswith(suffix) and (one.write if writing else one.read)
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def suffixes(*, writing: bool = False) -> list[str]:
    """All suffixes that are read, or written."""
    return [suffix for one in FORMATS if (one.write if writing else one.read) for suffix in one.suffixes]


def locate(path: Path) -> tuple[Path, str, Format | None]:
    """The file or folder of an image, the path inside it ("" for none), and its format (None if unknown).

    >>> locate(Path("scan.ome.zarr/0"))[1]
    '0'

    A folder without a suffix holds page images or DICOM.
    """
    in_store = any(place.suffix.lower() in (".zarr", ".n5") for place in path.parents)
    if path.is_dir() and find_format(path) is None and not in_store:
        return path, "", _folder_format(path)
    for place in (path, *path.parents):
        found = find_format(place)
        if found is not None and (place == path or found.holds_many):
            return place, path.relative_to(place).as_posix().removeprefix("."), found
    return path, "", None


def _folder_format(folder: Path) -> Format:
    """What a folder without a suffix holds: a precomputed volume, page images, else DICOM."""
    if (folder / "info").is_file():
        return PRECOMPUTED
    pictures = ("formats.tiff", "formats.pictures")
    suffixes = {suffix for one in FORMATS if one.module in pictures for suffix in one.suffixes}
    pages = any(file.suffix.lower() in suffixes for file in folder.iterdir())
    return PAGES if pages else DICOM_FOLDER
