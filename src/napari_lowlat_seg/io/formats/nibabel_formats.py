"""What nibabel reads beside NIfTI: Analyze, pairs of files, MGZ, MINC, AFNI, Philips' PAR/REC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.choice import WHOLE, Choice
from napari_lowlat_seg.io.formats.nifti import nibabel_image
from napari_lowlat_seg.io.placed import Loaded, geometry_of, usual_geometry

AFNI_MILLISECONDS = 77001
"""AFNI's number for the unit."""


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """The array of a file in its own order, placed by its affine to RAS+, in mm.

    Either file of a pair will do. Raises whatever nibabel raises for damage.
    """
    import nibabel

    image = nibabel.load(path)
    loaded = nibabel_image(image, choice.channel, "mm", _time_unit(image))
    return Loaded(loaded.data, loaded.geometry, loaded.channel_axis, None, loaded.spacing)


def _time_unit(image: Any) -> str:
    """FreeSurfer counts milliseconds, AFNI says what it counts, all others count seconds."""
    import nibabel

    if isinstance(image, nibabel.MGHImage):
        return "ms"
    numbers = getattr(image.header, "info", {}).get("TAXIS_NUMS", ())
    return "ms" if len(numbers) > 2 and int(numbers[2]) == AFNI_MILLISECONDS else "s"


def write(path: Path, labels: np.ndarray, like: Volume | None) -> None:
    """Write labels as MGZ in the order of the array's axes, with an affine in mm.

    Raises
    ------
    ValueError
        For labels above 2147483647, the highest that it holds.
    """
    import nibabel

    affine = plan(path, labels.shape, like)
    highest = int(labels.max())
    if highest > np.iinfo(np.int32).max:
        raise ValueError(f"MGZ holds labels up to {np.iinfo(np.int32).max}, these go up to {highest}")
    image: Any = nibabel.MGHImage(labels.astype(np.uint8 if highest < 256 else np.int32), affine)
    nibabel.save(image, path)


def plan(path: Path, shape: tuple[int, ...], like: Volume | None) -> np.ndarray:
    """The affine in mm; raises ValueError for what an MGZ cannot say: time, sizes without a unit."""
    geometry = usual_geometry(len(shape)) if like is None else geometry_of(like)
    if len(shape) != 3 or set(geometry.names) - set("zyx"):
        raise ValueError(f"MGZ has axes x, y, z, the image has {', '.join(geometry.names)}")
    if not geometry.calibrated:
        return geometry.xyz()
    if geometry.unit is None:
        raise ValueError("MGZ counts in mm, and the image names no unit for its sizes")
    return geometry.in_unit("mm").xyz()
