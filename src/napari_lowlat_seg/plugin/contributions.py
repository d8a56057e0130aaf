"""What napari's menus call by way of `napari.yaml`: the sample data.

Every function answers with napari's layer-data tuples ``(data, settings, layer type)``; axes are (z, y, x)
and `scale` carries the spacing with its unit.
"""

from typing import Any

import nibabel
import numpy as np
import tifffile

from napari_lowlat_seg.samples import sample_path

LayerData = tuple[np.ndarray[Any, Any], dict[str, Any], str]


def open_em_sample() -> list[LayerData]:
    """The fly medulla stack, 48 x 250 x 250 at 10 nm, and the neurons that experts proofread in it."""
    # The files say nothing of the distance between planes, the data set's page does.
    place = {"scale": (10.0, 10.0, 10.0), "units": ("nm", "nm", "nm"), "axis_labels": ("z", "y", "x")}
    image = tifffile.imread(sample_path("em_fly_medulla.tif"))
    labels = tifffile.imread(sample_path("em_fly_medulla_labels.tif"))
    return [
        (image, {"name": "fly medulla", "colormap": "gray", **place}, "image"),
        (labels, {"name": "fly medulla neurons", "visible": False, **place}, "labels"),
    ]


def open_mri_sample() -> list[LayerData]:
    """The glioma FLAIR volume at 1 mm, and the outline that challenge algorithms, not experts, drew in it."""
    image, place = _read_scan("mri_glioma_flair.nii.gz")
    outline, _ = _read_scan("mri_glioma_reference.nii.gz")
    return [
        (image, {"name": "glioma FLAIR", "colormap": "gray", **place}, "image"),
        (outline, {"name": "glioma outline by algorithms", "visible": False, **place}, "labels"),
    ]


def _read_scan(name: str) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """A NIfTI sample with its axes turned to (z, y, x), so that napari shows it axial plane by plane."""
    scan = nibabel.load(sample_path(name))
    spacing = tuple(float(size) for size in scan.header.get_zooms()[::-1])
    place = {"scale": spacing, "units": ("mm", "mm", "mm"), "axis_labels": ("z", "y", "x")}
    return np.asarray(scan.dataobj).T, place
