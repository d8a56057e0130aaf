"""NIfTI-1 and NIfTI-2: arrays in the file's own order (i, j, k), labels with the geometry of the image."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.volume import Volume

NIFTI_SUFFIXES = (".nii", ".nii.gz")


def is_nifti(path: str | Path) -> bool:
    """Whether a path ends as NIfTI files do."""
    return str(path).lower().endswith(NIFTI_SUFFIXES)


def has_nifti_header(volume: Volume | None) -> bool:
    """Whether a volume was read from NIfTI, so that its header can be written again."""
    return volume is not None and hasattr(volume.header, "set_qform")


def read_nifti(
    path: Path, channel: int | None = None
) -> tuple[np.ndarray, tuple[float, ...] | None, int | None, Any]:
    """The array of a file in its own order (i, j, k, ...), its spacing, its channel axis and its header.

    Parameters
    ----------
    channel
        If one is given, the fourth axis counts as channels.

    Raises
    ------
    ValueError
        For another format under this name. Damage raises whatever nibabel or gzip raise.
    """
    import nibabel

    image: Any
    if path.suffix.lower() == ".gz":
        # Nibabel would stop before the checksum; here damage is found, and everything is unpacked once.
        raw = gzip.decompress(path.read_bytes())
        second = int.from_bytes(raw[:4], "little") == 540 or int.from_bytes(raw[:4], "big") == 540
        image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(raw)
    else:
        image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):
        raise ValueError(f"expected NIfTI, found {type(image).__name__}")
    data = np.asarray(image.dataobj)
    channel_axis = None
    if data.dtype.names:  # RGB is stored as a record
        data = np.stack([data[name] for name in data.dtype.names], axis=-1)
        channel_axis = data.ndim - 1
    elif channel is not None and data.ndim == 4:
        channel_axis = 3
    ndim = data.ndim - (channel_axis is not None)
    zooms = [abs(float(zoom)) for zoom in image.header.get_zooms()[:ndim]]
    spacing = tuple(zoom if np.isfinite(zoom) and zoom > 0 else 1.0 for zoom in zooms)
    return data, spacing, channel_axis, image.header.copy()


def write_nifti(path: Path, labels: np.ndarray, like: Volume | None) -> None:
    """Write labels with the affines, their codes and the units of `like` if it was read from NIfTI.

    Of another volume only the spacing is kept.
    """
    import nibabel

    if like is not None and has_nifti_header(like):
        header = like.header.copy()
        header.set_data_dtype(labels.dtype)
        header["cal_min"] = header["cal_max"] = 0
        second = isinstance(header, nibabel.Nifti2Header)
        kind: Any = nibabel.Nifti2Image if second else nibabel.Nifti1Image
        # No affine: qform and sform of the header stay as they are, codes included.
        image = kind(labels, None, header)
    else:
        spacing = like.spacing if like is not None and like.spacing else (1.0,) * labels.ndim
        scale = [*spacing[:3], *(1.0,) * (3 - len(spacing[:3])), 1.0]
        image = nibabel.Nifti1Image(labels, np.diag(scale), dtype=labels.dtype)
    nibabel.save(image, path)
