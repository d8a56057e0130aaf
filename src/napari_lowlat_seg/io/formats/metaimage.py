"""MHA and MHD, by SimpleITK (the extra `itk`): spacing, direction and origin of ITK's world, in mm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import TOLERANCE, Geometry
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.choice import WHOLE, Choice
from napari_lowlat_seg.io.placed import Loaded, geometry_of, usual_geometry


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """The array of a file, slowest axis first, placed in the patient's world; components are channels."""
    import SimpleITK

    image: Any = SimpleITK.ReadImage(str(path))
    data = SimpleITK.GetArrayFromImage(image)
    ndim = int(image.GetDimension())
    channel_axis = ndim if image.GetNumberOfComponentsPerPixel() > 1 else None
    if ndim > 3:
        return Loaded(data, usual_geometry(ndim, tuple(image.GetSpacing())[::-1]), channel_axis)
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (ndim, ndim))
    # The array's axes are ITK's, reversed.
    affine[:ndim, :ndim] = (direction * image.GetSpacing())[:, ::-1]
    affine[:ndim, 3] = image.GetOrigin()
    return Loaded(data, Geometry.from_lps(affine, ndim), channel_axis)


def check(path: Path, shape: tuple[int, ...], like: Volume | None) -> None:
    """Refuse what MetaImage cannot say: time, directions that are no rotation, sizes without a unit."""
    _plan(shape, like)


def write(path: Path, labels: np.ndarray, like: Volume | None) -> None:
    """Write labels, compressed, with spacing, direction and origin in mm."""
    import SimpleITK

    order, geometry = _plan(labels.shape, like)
    image: Any = SimpleITK.GetImageFromArray(np.ascontiguousarray(labels.transpose(order)))
    if geometry.calibrated:
        ndim = geometry.ndim
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.xyz()
        columns = affine[:ndim, :ndim][:, ::-1]
        spacing = np.linalg.norm(columns, axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((columns / spacing).ravel().tolist())
        image.SetOrigin(affine[:ndim, 3].tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def _plan(shape: tuple[int, ...], like: Volume | None) -> tuple[tuple[int, ...], Geometry]:
    """The order of axes, slowest first, and the geometry then, in mm."""
    geometry = usual_geometry(len(shape)) if like is None else geometry_of(like)
    if len(shape) > 3 or set(geometry.names) - set("zyx"):
        raise ValueError(f"MetaImage has axes z, y, x, the image has {', '.join(geometry.names)}")
    if not geometry.calibrated:
        return tuple(range(geometry.ndim)), geometry
    if geometry.unit is None:
        raise ValueError("MetaImage counts in mm, and the image names no unit for its sizes")
    order = geometry.shown_order
    geometry = geometry.transpose(order).in_unit("mm")
    unit = geometry.matrix / geometry.spacing
    if np.abs(unit.T @ unit - np.eye(geometry.ndim)).max() > TOLERANCE:
        raise ValueError("MetaImage has no place for axes that are not at right angles; write .nii.gz")
    return order, geometry
