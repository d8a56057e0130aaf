"""The one door out of labels: meshes, outlines, DICOM segmentations, and all formats that keep labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.atomic_file import atomic_file, check_not_input, check_writable
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.files import (
    check_labels_path,
    is_ome_zarr,
    label_output,
    read_aligned,
    read_volume,
    write_labels,
)
from napari_lowlat_seg.io.format_table import function_of, suffixes


@dataclass(frozen=True)
class Export:
    """A format that labels are exported to.

    Attributes
    ----------
    suffix
        In lower case.
    module
        In this folder. Its function `check(suffix, labels, image)` refuses what the format cannot say of a
        volume of labels; `write(path, suffix, labels, names, image)` writes them.
    needs, extra
        The package that has to be installed, and the extra that brings it; "" for the base.
    """

    suffix: str
    module: str
    needs: str = ""
    extra: str = ""

    def function(self, name: str) -> Callable[..., Any]:
        """A function of the module; raises ImportError with what to install."""
        return function_of(f"exports.{self.module}", name, self.suffix, self.needs, self.extra)


EXPORTS = (
    Export(".stl", "meshes"),
    Export(".ply", "meshes"),
    Export(".geojson", "outlines"),
    Export(".json", "outlines"),
    Export(".dcm", "dicom_seg", needs="highdicom", extra="dicom"),
)


def find_export(path: str | Path) -> Export | None:
    """The format of a path by its suffix, in any case; None for a format that labels are kept in."""
    return next((one for one in EXPORTS if Path(path).suffix.lower() == one.suffix), None)


def write_export(
    path: str | Path,
    labels: Volume,
    *,
    names: Mapping[int, str] | None = None,
    image: Volume | None = None,
) -> Path:
    """Write labels in another format, with their place in the world; the suffix says which.

    Parameters
    ----------
    path
        .stl or .ply (meshes in world units), .geojson (outlines of every plane), .json (COCO, run lengths of
        every plane), .dcm (DICOM-SEG), or as of `write_labels` and `label_output`.
    labels
        Whole numbers of 0 or more, with their geometry.
    names
        Of objects, by label; others are called "object 3".
    image
        For .dcm: the DICOM series on which the labels lie, voxel by voxel, as `read_volume` gives it.

    Raises
    ------
    ValueError
        For an unknown suffix, and labels that the format cannot say: before anything is written.
    OSError
        If the file cannot be written; what was there is untouched.
    ImportError
        For .dcm without the extra `dicom`.
    """
    path = Path(path)
    kind = check_export(path, labels, image=image)
    labels = replace(labels, data=_counted(labels))
    if kind is not None:
        with atomic_file(path) as part:
            kind.function("write")(part, kind.suffix, labels, names or {}, image)
        return path
    if is_ome_zarr(path):
        with label_output(path, labels) as output:
            output.data[...] = labels.data
        return path
    return write_labels(path, np.asarray(labels.data), labels)


def check_export(
    path: str | Path,
    labels: Volume,
    *,
    image: Volume | None = None,
    inputs: Sequence[tuple[str, Path]] = (),
) -> Export | None:
    """What `write_export` would refuse, asked before the work; the format, None for one of `write_labels`."""
    path = Path(path)
    kind = find_export(path)
    if labels.channel_axis is not None:
        raise ValueError(f"{labels.name or 'the labels'} must hold one number a voxel, not colours")
    if is_ome_zarr(path) and path.exists():
        raise ValueError(f"{path} exists; remove the folder, or give another name")
    if kind is None:
        try:
            check_labels_path(path, inputs, labels)
        except ValueError as error:
            if str(error).startswith("labels can be"):
                others = ", ".join(one.suffix for one in EXPORTS)
                known = ", ".join(suffixes(writing=True))
                raise ValueError(f"labels can be exported as {others}, {known}; got {path.name!r}") from None
            raise
        return None
    check_not_input(path, inputs)
    check_writable(path)
    kind.function("check")(kind.suffix, labels, image)
    return kind


def run_export(
    labels: Path, output: Path, *, image: Path | None = None, only: Sequence[int] = ()
) -> dict[str, Any]:
    """Export the labels of a file.

    Parameters
    ----------
    labels
        As of `read_volume`.
    output
        As of `write_export`.
    image
        The DICOM series of a .dcm.
    only
        The labels to export; none for all.

    Returns
    -------
    dict
        "objects" and "output".

    Raises
    ------
    ValueError, OSError, ImportError
        As `write_export`; and for labels without an object to export.
    """
    inputs = [("file of labels", labels), *([("image", image)] if image is not None else [])]
    scan = None if image is None else read_volume(image)
    volume = read_volume(labels)
    segments = getattr(volume.header, "segments", ())  # of a .seg.nrrd
    if scan is not None and find_export(output) is not None:
        volume = read_aligned(labels, scan, "file of labels")
    check_export(output, volume, image=scan, inputs=inputs)
    data = _counted(volume)
    found = np.unique(data)
    found = found[found != 0]
    missing = sorted(set(only) - set(found.tolist()))
    if missing:
        raise ValueError(f"{labels} has no object with label {missing[0]}; it has {_listed(found)}")
    if only:
        data, found = np.where(np.isin(data, only), data, 0), np.array(sorted(set(only)))
    if not found.size:
        raise ValueError(f"{labels} holds no object; there is nothing to export")
    names = {segment.label: segment.name for segment in segments}
    write_export(output, replace(volume, data=data), names=names, image=scan)
    return {"objects": len(found), "output": str(output)}


def _listed(labels: np.ndarray) -> str:
    return ", ".join(map(str, labels[:8].tolist())) + (", ..." if len(labels) > 8 else "") or "none"


def _counted(volume: Volume) -> np.ndarray:
    """All labels as integers; many programs keep them as floats."""
    data = np.asarray(volume.data)
    if data.dtype.kind == "f":
        if not (np.isfinite(data) & (data == np.rint(data))).all():
            raise ValueError(f"{volume.name or 'the labels'} must hold whole numbers; got fractions or NaN")
        data = data.astype(np.int64)
    what = volume.name or "the labels"
    if data.dtype.kind not in "bui":
        raise ValueError(f"{what} must hold whole numbers; got type {data.dtype}")
    if int(data.min()) < 0 or int(data.max()) >= 2**32:
        raise ValueError(f"{what} must hold labels from 0 to 2^32 - 1; got {data.min()} to {data.max()}")
    return data.astype(np.uint8) if data.dtype.kind == "b" else data
