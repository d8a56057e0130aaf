"""The NIfTI reader and the sample data that `napari.yaml` contributes to napari.

Each returns napari's layer-data tuples ``(data, settings, layer type)``, with axes in napari's order
(t, z, y, x) and the spacing in `scale`, with its unit. napari reads TIFF itself.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.io.files import as_shown, read_volume
from napari_lowlat_seg.io.nifti import is_nifti
from napari_lowlat_seg.io.samples import sample_path

LayerData = tuple[np.ndarray[Any, Any], dict[str, Any], str]
Reader = Callable[[str | list[str]], list[LayerData]]

# What NIfTI headers call their units, in the words of napari.
_UNITS = {"meter": "m", "mm": "mm", "micron": "um", "sec": "s", "msec": "ms", "usec": "us"}


def get_scan_reader(path: str | list[str]) -> Reader | None:
    """The reader for NIfTI files; None, as napari expects it, where one of the files has another suffix."""
    return read_scans if all(is_nifti(one) for one in _listed(path)) else None


def read_scans(path: str | list[str]) -> list[LayerData]:
    """One image layer for each NIfTI file, at its spacing, with a slider along the file's last axis.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_volume` does, for a file that is missing or damaged.
    """
    layers = []
    for one in _listed(path):
        data, place = _scan(Path(one))
        rgb = data.ndim > len(place["scale"])
        layers.append((data, {"name": Path(one).name.split(".")[0], "rgb": rgb, **place}, "image"))
    return layers


def open_em_sample() -> list[LayerData]:
    """The fly medulla stack, 48 x 250 x 250 at 10 nm, and the neurons that experts proofread in it."""
    # The files say nothing of the spacing, the data set's page does.
    place = {"scale": (10.0, 10.0, 10.0), "units": ("nm", "nm", "nm"), "axis_labels": ("z", "y", "x")}
    image = np.asarray(read_volume(sample_path("em_fly_medulla.tif")).data)
    labels = np.asarray(read_volume(sample_path("em_fly_medulla_labels.tif")).data)
    return [
        (image, {"name": "fly medulla", "colormap": "gray", **place}, "image"),
        (labels, {"name": "fly medulla neurons", "visible": False, **place}, "labels"),
    ]


def open_mri_sample() -> list[LayerData]:
    """The glioma FLAIR volume at 1 mm, and the outline that challenge algorithms, not experts, drew in it."""
    image, place = _scan(sample_path("mri_glioma_flair.nii.gz"))
    outline, _ = _scan(sample_path("mri_glioma_reference.nii.gz"))
    return [
        (image, {"name": "glioma FLAIR", "colormap": "gray", **place}, "image"),
        (outline, {"name": "glioma outline by algorithms", "visible": False, **place}, "labels"),
    ]


def _listed(path: str | list[str]) -> list[str]:
    """napari hands over one path, or several that were chosen together."""
    return [path] if isinstance(path, str) else path


def _scan(path: Path) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """The voxels of a NIfTI file with the axes turned round, (i, j, k) to (z, y, x), and their place."""
    volume = read_volume(path)
    space, time = (_UNITS.get(unit, "pixel") for unit in volume.header.get_xyzt_units())
    shown = as_shown(volume, path)
    place = {
        "scale": shown.spacing or (1.0,) * volume.ndim,
        "units": (time, space, space, space)[-volume.ndim :],
        "axis_labels": ("t", "z", "y", "x")[-volume.ndim :],
    }
    return np.asarray(shown.data), place
