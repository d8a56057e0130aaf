"""NIfTI-1 and NIfTI-2: arrays in the file's own order (i, j, k), labels with the geometry of the image."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import Geometry
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.choice import WHOLE, Choice
from napari_lowlat_seg.io.placed import Loaded, geometry_of, in_known_unit

NIFTI_SUFFIXES = (".nii", ".nii.gz")

UNIT_NAMES = {"µm": "micron", "mm": "mm", "m": "meter"}
"""Units of length that a header can name, by our symbols."""

TIME_NAMES = {"s": "sec", "ms": "msec", "µs": "usec"}


def is_nifti(path: str | Path) -> bool:
    """Whether a path ends as NIfTI files do."""
    return str(path).lower().endswith(NIFTI_SUFFIXES)


def has_nifti_header(volume: Volume | None) -> bool:
    """Whether a volume was read from NIfTI, so that its header can be written again."""
    return volume is not None and hasattr(volume.header, "set_qform")


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """The array of a file in its own order (i, j, k, ...), placed by its best affine.

    Axes of length 1 after the third are left out.

    Parameters
    ----------
    choice
        If it has a channel, the fourth axis counts as channels.

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
    space, time = (None if unit == "unknown" else unit for unit in image.header.get_xyzt_units())
    return nibabel_image(image, choice.channel, space, time)


def nibabel_image(image: Any, channel: int | None, unit: str | None, time: str | None) -> Loaded:
    """What nibabel has read, in any of its formats: they all have an affine to RAS+."""
    data, channel_axis = _stored(image, channel)
    zooms = [abs(float(zoom)) for zoom in image.header.get_zooms()]
    axes = [axis for axis in range(data.ndim) if axis != channel_axis]
    steps = [zooms[axis] if axis < len(zooms) else 1.0 for axis in axes]
    geometry = Geometry.from_nifti(image.affine, len(axes), steps[3:], unit, time)
    spacing = tuple(step if np.isfinite(step) and step > 0 else 1.0 for step in steps)
    return _squeezed(Loaded(data, geometry, channel_axis, image.header.copy(), spacing))


def _stored(image: Any, channel: int | None) -> tuple[np.ndarray, int | None]:
    """The pixels and their channel axis: RGB is stored as a record, a fourth axis may hold channels."""
    data = np.asarray(image.dataobj)
    if data.dtype.names:
        return np.stack([data[name] for name in data.dtype.names], axis=-1), data.ndim
    return data, 3 if channel is not None and data.ndim == 4 else None


def _squeezed(loaded: Loaded) -> Loaded:
    """The image without its axes of length 1 after those of space: they hold nothing to choose."""
    data, channel_axis, spacing = loaded.data, loaded.channel_axis, loaded.spacing
    axes = [axis for axis in range(data.ndim) if axis != channel_axis]
    single = [axis for axis in axes[3:] if data.shape[axis] == 1]
    if not single or spacing is None:
        return loaded
    return replace(
        loaded,
        data=data.squeeze(tuple(single)),
        geometry=loaded.geometry.squeeze([axes.index(axis) for axis in single]),
        channel_axis=channel_axis and channel_axis - sum(axis < channel_axis for axis in single),
        spacing=tuple(step for axis, step in zip(axes, spacing, strict=True) if axis not in single),
    )


def check_nifti(path: Path, shape: tuple[int, ...], like: Volume | None) -> None:
    """Refuse, in one sentence, what a NIfTI file cannot say of an image."""
    if like is not None and like.geometry is not None and not has_nifti_header(like):
        _plan(like)


def write_nifti(path: Path, labels: np.ndarray, like: Volume | None) -> None:
    """Write labels with the affines, their codes and the units of `like` if it was read from NIfTI.

    Labels of another volume keep the order of its axes of space, time comes after them; the affine says
    where the axes lead, so they lie where they were.
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
        image.header.set_xyzt_units(*header.get_xyzt_units())
    elif like is None:
        image = nibabel.Nifti1Image(labels, np.eye(4), dtype=labels.dtype)
    elif like.geometry is None:
        scale = [*like.spacing[:3], 1.0, 1.0, 1.0][:3] if like.spacing else [1.0] * 3
        image = nibabel.Nifti1Image(labels, np.diag([*scale, 1.0]), dtype=labels.dtype)
    else:
        order, geometry = _plan(like)
        image = nibabel.Nifti1Image(labels.transpose(order), geometry.xyz(), dtype=labels.dtype)
        code = 1 if geometry.patient else 2  # the scanner's world, or one that is only aligned to something
        image.set_sform(geometry.xyz(), code)
        image.set_qform(geometry.xyz(), code)
        times = [axis.unit for axis in geometry.world if axis.kind == "time"]
        image.header.set_xyzt_units(
            UNIT_NAMES.get(geometry.unit or ""), TIME_NAMES.get((times or [None])[0] or "")
        )
        if labels.ndim > 3:
            image.header.set_zooms([*image.header.get_zooms()[:3], *geometry.spacing[3:]])
    nibabel.save(image, path)


def _plan(like: Volume) -> tuple[tuple[int, ...], Geometry]:
    """The order of axes in the file, and the geometry then, in a unit that the format knows."""
    geometry = geometry_of(like)
    axes = range(geometry.ndim)
    space = [axis for axis in axes if geometry.axes[axis].kind == "space"]
    rest = [axis for axis in axes if axis not in space]
    rest.sort(key=lambda axis: geometry.axes[axis].kind != "time")
    if len(space) > 3:
        raise ValueError(f"NIfTI has three axes of space, the image has {len(space)}")
    if rest and len(space) < 3:
        raise ValueError(
            f"NIfTI has axes x, y, z before time, the image has {', '.join(geometry.names)}; "
            "write .ome.tif or .ome.zarr"
        )
    order = (*space, *rest)
    geometry = in_known_unit(geometry.transpose(order), ("µm", "mm"), "NIfTI")
    times = [axis.unit for axis in geometry.world if axis.kind == "time" and axis.unit]
    if times and times[0] not in TIME_NAMES:
        geometry = geometry.in_unit("s", "time")
    return order, geometry
