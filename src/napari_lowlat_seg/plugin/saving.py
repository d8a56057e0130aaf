"""File > Save of a Labels layer: every format that labels are written in, each where the layer lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from napari.utils.transforms import CompositeAffine

from napari_lowlat_seg.core.geometry import Axis, Geometry
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.exports.export import find_export, write_export
from napari_lowlat_seg.io.files import label_output, write_labels
from napari_lowlat_seg.io.format_table import find_format
from napari_lowlat_seg.io.placed import usual_geometry
from napari_lowlat_seg.plugin.progress_bar import saving_bar


def save_labels(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write the labels of a layer with its scale, place and units; the path that was written.

    Of a pyramid the finest level is written. NIfTI gets its own order of axes, (x, y, z), so that labels of
    a scan have the array order of the scan.

    Parameters
    ----------
    path
        As of `write_labels`, an OME-Zarr, or a mesh or outlines as of `write_export`.
    data
        Integers, as napari holds them: numpy, dask, zarr, or a list of levels.
    attributes
        The layer's, as `Layer.as_layer_data_tuple` gives them.

    Raises
    ------
    ValueError, OSError, ImportError
        As `write_labels`, with one sentence.
    """
    finest = data[0] if isinstance(data, list | tuple) or attributes.get("multiscale") else data
    ndim, shape = len(finest.shape), tuple(finest.shape)
    names = ("scale", "translate", "rotate", "shear")
    inner = CompositeAffine(**{name: attributes[name] for name in names}, ndim=ndim)
    matrix = np.asarray(attributes["affine"]) @ inner.affine_matrix
    geometry = layer_geometry(attributes["axis_labels"], attributes["units"], matrix)
    if find_export(path) is not None:
        # A copy of labels in memory: while the bar is shown, the user may go on.
        pixels = finest.copy() if isinstance(finest, np.ndarray) else finest
        like = Volume(pixels, geometry.spacing, name=str(attributes["name"]), geometry=geometry)
        with saving_bar(f"saving {Path(path).name}") as report:
            write_export(path, like, progress=report)
        return [path]
    kind = find_format(Path(path), writing=True)
    if kind is None:
        like = Volume(np.broadcast_to(np.uint8(0), shape), geometry.spacing, geometry=geometry)
        with label_output(path, like) as output:
            for plane in like.planes():  # not all at once: so every level of the pyramid is written
                output.fill(plane, np.asarray(finest[plane.key()]))
        return [path]
    labels = np.asarray(finest)
    if kind.module == "formats.nifti":
        labels, geometry = labels.T, geometry.transpose(range(ndim)[::-1])
    like = Volume(np.broadcast_to(np.uint8(0), labels.shape), geometry.spacing, geometry=geometry)
    write_labels(path, labels, like)
    return [path]


def layer_geometry(labels: Sequence[Any], units: Sequence[Any], matrix: np.ndarray) -> Geometry:
    """The geometry of a layer.

    napari's axes are known by their order: names that say another order than the world's are not kept.

    Parameters
    ----------
    labels, units
        One for each axis, as the layer has them.
    matrix
        (n + 1, n + 1), data to world.
    """
    names = [str(label) for label in labels]
    if any(name.startswith("-") or not name for name in names) or len(set(names)) < len(names):
        names = list(usual_geometry(len(names)).names)
    texts = [None if str(unit) == "pixel" else str(unit) for unit in units]
    axes = tuple(Axis.of(*one) for one in zip(names, texts, strict=True))
    geometry = Geometry(axes, matrix)
    if geometry.world == axes:
        return geometry
    return Geometry(tuple(replace(axis, name=f"d{i}") for i, axis in enumerate(axes)), matrix)
