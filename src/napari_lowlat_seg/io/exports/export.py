"""The one door out of labels: meshes, outlines, DICOM segmentations, and all formats that keep labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_lowlat_seg.core.atomic_file import atomic_file, check_not_input, check_writable
from napari_lowlat_seg.core.labels import ArrayLabels
from napari_lowlat_seg.core.requests import Progress
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.exports.slabs import Slabs
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
        volume of labels; `write(path, suffix, slabs, names, image)` writes them.
    needs, extra
        The package that has to be installed, and the extra that brings it; "" for the base.
    shown
        Whether it is written in a viewer's order of axes, not in that of the labels.
    """

    suffix: str
    module: str
    needs: str = ""
    extra: str = ""
    shown: bool = True

    def function(self, name: str) -> Callable[..., Any]:
        """A function of the module; raises ImportError with what to install."""
        return function_of(f"exports.{self.module}", name, self.suffix, self.needs, self.extra)


EXPORTS = (
    Export(".stl", "meshes"),
    Export(".ply", "meshes"),
    Export(".geojson", "outlines"),
    Export(".json", "outlines"),
    Export(".dcm", "dicom_seg", needs="highdicom", extra="dicom", shown=False),
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
    only: Collection[int] = (),
    progress: Progress | None = None,
) -> int:
    """Write labels in another format, with their place in the world; the suffix says which.

    Meshes, outlines and OME-Zarr are written a few planes at a time: the labels may be larger than memory.

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
    only
        The labels to export; none for all.
    progress
        Called with the planes that are read and their number; what it raises cancels, and nothing is left.

    Returns
    -------
    int
        How many objects were written.

    Raises
    ------
    ValueError
        For an unknown suffix, and labels that the format cannot say: before anything is written. For labels
        without an object to export.
    OSError
        If the file cannot be written; what was there is untouched.
    ImportError
        For .dcm without the extra `dicom`.
    """
    path = Path(path)
    kind = check_export(path, labels, image=image)
    order = None if kind is None or kind.shown else range(labels.ndim)
    slabs = Slabs(labels, only, order, progress)
    if kind is not None:
        with atomic_file(path) as part:
            kind.function("write")(part, kind.suffix, slabs, names or {}, image)
            return _exported(slabs, only)
    if is_ome_zarr(path):
        with label_output(path, labels) as output:  # new, says `check_export`
            fill(output, slabs)
            return _exported(slabs, only)
    data = slabs.whole()
    count = _exported(slabs, only)
    write_labels(path, data, labels)
    return count


def fill(output: ArrayLabels, slabs: Slabs) -> None:
    """Write labels into a new, empty store of the same volume, plane by plane."""
    turned = slabs.order[-2] > slabs.order[-1]
    for place, plane in slabs.planes():
        index: list[int | None] = [None] * len(slabs.order)
        for axis, at in zip(slabs.order, place):
            index[axis] = at
        output.fill(Plane(tuple(index)), plane.T if turned else plane)


def _exported(slabs: Slabs, only: Collection[int]) -> int:
    """How many objects were read to be written; refuses none, and one that is asked for and not there."""
    what = slabs.name or "the labels"
    missing = sorted(set(only) - slabs.found)
    if not slabs.found:
        raise ValueError(f"{what} holds no object; there is nothing to export")
    if missing:
        raise ValueError(f"{what} has no object with label {missing[0]}; it has {_listed(slabs.found)}")
    return len(set(only) or slabs.found)


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
                known = ", ".join([*suffixes(writing=True), ".ome.zarr"])
                raise ValueError(f"labels can be exported as {others}, {known}; got {path.name!r}") from None
            raise
        return None
    check_not_input(path, inputs)
    check_writable(path)
    kind.function("check")(kind.suffix, labels, image)
    return kind


def run_export(
    labels: Path,
    output: Path,
    *,
    image: Path | None = None,
    only: Sequence[int] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Export the labels of a file.

    Parameters
    ----------
    labels
        As of `read_volume`.
    output, only, progress
        As of `write_export`.
    image
        The DICOM series of a .dcm.

    Returns
    -------
    dict
        "objects" and "output".

    Raises
    ------
    ValueError, OSError, ImportError
        As `write_export`.
    """
    inputs = [("file of labels", labels), *([("image", image)] if image is not None else [])]
    scan = None if image is None else read_volume(image)
    volume = read_volume(labels)
    segments = getattr(volume.header, "segments", ())  # of a .seg.nrrd
    if scan is not None and find_export(output) is not None:
        volume = read_aligned(labels, scan, "file of labels")
    check_export(output, volume, image=scan, inputs=inputs)
    names = {segment.label: segment.name for segment in segments}
    count = write_export(output, volume, names=names, image=scan, only=only, progress=progress)
    return {"objects": count, "output": str(output)}


def _listed(labels: Collection[int]) -> str:
    return ", ".join(map(str, sorted(labels)[:8])) + (", ..." if len(labels) > 8 else "")
