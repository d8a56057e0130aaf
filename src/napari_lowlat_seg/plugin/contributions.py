"""The reader of scans and folders and the sample data that `napari.yaml` contributes to napari.

Each returns napari's layer-data tuples ``(data, settings, layer type)``, with axes in napari's order
(t, z, y, x), the spacing in `scale`, with its unit, and the rest of a scan's place in `affine`. napari and
its other plugins read TIFF and pictures; of an OME-Zarr napari's own reader drops spacing and units.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import UNITS
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.choice import Choice, SeveralImages
from napari_lowlat_seg.io.chunked.ome_zarr import count_levels
from napari_lowlat_seg.io.files import as_shown, read_volume
from napari_lowlat_seg.io.format_table import find_format, locate
from napari_lowlat_seg.io.formats.nrrd import SEGMENTATION
from napari_lowlat_seg.io.placed import geometry_of
from napari_lowlat_seg.io.samples import sample_path
from napari_lowlat_seg.plugin.labels.lazy_array import LazyArray

SCANS = (
    "formats.nifti", "formats.nrrd", "formats.mrc", "formats.metaimage", "formats.nibabel_formats",
    "chunked.hdf5", "formats.dicom",
)  # fmt: skip
"""Modules of the formats that are read for napari, which reads none of them itself."""

IN_MEMORY = 2**31
"""Bytes of pixels up to which a file is loaded."""

LayerData = tuple[Any, dict[str, Any], str]
Reader = Callable[[str | list[str]], list[LayerData]]

# Our symbols of units in the words of napari; a unit that it would not know counts as pixels.
_UNITS = {unit.symbol: unit.symbol.replace("µ", "u") for unit in UNITS} | {
    "Å": "angstrom",
    "in": "inch",
    "pt": "point",
}


def get_scan_reader(path: str | list[str]) -> Reader | None:
    """The reader for files of `SCANS` and folders with an image; None, as napari expects it, for others."""
    return read_scans if all(_is_read(Path(one)) for one in _listed(path)) else None


def _is_read(path: Path) -> bool:
    if path.is_dir():
        return locate(path)[2] is not None
    found = find_format(path)
    return found is not None and found.module in SCANS


def read_scans(path: str | list[str]) -> list[LayerData]:
    """One layer for each file, where it lies in the world: labels of a .seg.nrrd, an image of others.

    Scans of one patient lie on each other. What is larger than `IN_MEMORY` is read when it is looked at.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_volume` does, for a file that is missing or damaged. Of several images in a file one is asked
        for, where there is a window.
    """
    layers = []
    for one in _listed(path):
        data, settings = _scan(Path(one))
        named = {"name": Path(one).name.split(".")[0], **settings}
        if one.lower().endswith(SEGMENTATION):
            layers.append((data, named, "labels"))
        else:
            layers.append((data, {"rgb": False, **named}, "image"))
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
    _look_at("glioma FLAIR", int(np.argmax(np.count_nonzero(outline, axis=(1, 2)))))
    return [
        (image, {"name": "glioma FLAIR", "colormap": "gray", **place}, "image"),
        (outline, {"name": "glioma outline by algorithms", "visible": False, **place}, "labels"),
    ]


def _look_at(name: str, plane: int) -> None:
    """Show a plane of a layer as soon as it has been added: where there is something to see."""
    import napari
    from qtpy.QtCore import QTimer

    viewer = napari.current_viewer()

    def show() -> None:
        if name in viewer.layers:
            layer = viewer.layers[name]
            middle = [plane, *(side // 2 for side in layer.data.shape[1:])]
            viewer.dims.set_point(range(layer.ndim), layer.data_to_world(middle))

    if viewer is not None:
        QTimer.singleShot(0, show)


def _listed(path: str | list[str]) -> list[str]:
    """napari hands over one path, or several that were chosen together."""
    return [path] if isinstance(path, str) else path


def _ask(path: Path, error: SeveralImages) -> str:
    """The name of one of several images, chosen in a dialog; without a window the error stays one."""
    from qtpy.QtWidgets import QApplication, QInputDialog

    window = QApplication.activeWindow() if QApplication.instance() else None
    if window is None or not error.names:
        raise error
    name, chosen = QInputDialog.getItem(
        window, path.name, f"{path.name} holds {len(error.names)} images; open", list(error.names), 0, False
    )
    if not chosen:
        raise error
    return str(name)


def _scan(path: Path) -> tuple[Any, dict[str, Any]]:
    """The voxels of a file with its axes in the world's order, (i, j, k) to (z, y, x), and their place.

    Channels become colours where they come last, else a layer each. A large OME-Zarr has all its levels.
    """
    series = None
    try:
        volume = _with_channels(path, None)
    except SeveralImages as error:
        series = _ask(path, error)
        volume = _with_channels(path, series)
    shown = as_shown(volume)
    settings = layer_place(shown)
    if shown.channel_axis is not None:
        last = shown.channel_axis in (-1, len(shown.data.shape) - 1)
        colours = last and shown.data.shape[-1] in (3, 4)
        settings |= {"rgb": True} if colours else {"channel_axis": shown.channel_axis}
    if np.dtype(shown.data.dtype).itemsize * math.prod(shown.data.shape) <= IN_MEMORY:
        return np.asarray(shown.data), settings
    place, inside, kind = locate(path)
    if kind is None or kind.module != "chunked.ome_zarr":
        return shown.data, settings
    count = count_levels(place, Choice(series=series or "", inside=inside))
    arrays: list[Any] = [
        read_volume(path, channel=shown.channel, series=series, level=number or None).data
        for number in range(count)
    ]
    levels = LazyArray.pyramid(arrays)
    return (levels, settings | {"multiscale": True}) if count > 1 else (levels[0], settings)


def _with_channels(path: Path, series: str | None) -> Volume:
    """The image of a file with all its channels, which need not be chosen for a viewer."""
    try:
        return read_volume(path, series=series)
    except SeveralImages:
        raise
    except ValueError as error:
        try:
            return read_volume(path, series=series, channel=0)
        except ValueError:
            raise error from None


def layer_place(shown: Volume) -> dict[str, Any]:
    """scale, units, axis labels, and an affine where a scale is not enough, of a layer of a volume.

    Parameters
    ----------
    shown
        As of `as_shown`: its axes are in the world's order.
    """
    geometry = geometry_of(shown)
    scale = np.array(shown.spacing or (1.0,) * shown.ndim)
    affine = geometry.affine.copy()
    affine[:-1, :-1] /= scale
    place = {
        "scale": tuple(scale.tolist()),
        "units": tuple(_UNITS.get(unit or "", "pixel") for unit in geometry.units),
        "axis_labels": geometry.names,
    }
    return place if np.allclose(affine, np.eye(shown.ndim + 1)) else place | {"affine": affine}
