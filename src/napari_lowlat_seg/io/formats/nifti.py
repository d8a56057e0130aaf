"""NIfTI-1 and NIfTI-2: arrays in the file's own order (i, j, k), labels with the geometry of the image."""

from __future__ import annotations

import gzip
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import Geometry
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.bounds import LARGE, check_held, check_memory, nbytes_of, unpacked
from napari_lowlat_seg.io.choice import WHOLE, Choice
from napari_lowlat_seg.io.placed import Held, Loaded, check_one_unit, geometry_of, in_known_unit

NIFTI_SUFFIXES = (".nii", ".nii.gz")

UNIT_NAMES = {"µm": "micron", "mm": "mm", "m": "meter"}
"""Units of length that a header can name, by our symbols."""

TIME_NAMES = {"s": "sec", "ms": "msec", "µs": "usec"}


HEADER = 540
"""Bytes of the longer of the two headers."""


class ScaledArray:
    """A file of nibabel that is too large to load, cut where it is read; values are scaled as it says."""

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy
        self.shape, self.ndim = tuple(proxy.shape), len(proxy.shape)
        self.dtype = np.asarray(proxy[(slice(0, 1),) * self.ndim]).dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        """The values that a key of ints and slices names."""
        return np.asarray(self._proxy[key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._proxy, dtype)


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

    image: Any = _unpacked(path) if path.suffix.lower() == ".gz" else nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):
        raise ValueError(f"expected NIfTI, found {type(image).__name__}")
    space, time = (None if unit == "unknown" else unit for unit in image.header.get_xyzt_units())
    return nibabel_image(image, choice.channel, space, time)


def _unpacked(path: Path) -> Any:
    """The image of a .nii.gz, unpacked once and to its end, where the checksum is: nibabel stops before."""
    import nibabel

    with gzip.open(path) as file:
        head = file.read(HEADER)
        second = 540 in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
        kind: Any = nibabel.Nifti2Image if second else nibabel.Nifti1Image
        header = kind.header_class(head[: 540 if second else 348])  # extensions lie behind it
        size = header.get_data_offset() + nbytes_of(header.get_data_shape(), header.get_data_dtype())
        file.seek(0)
        return kind.from_bytes(unpacked(file, size, path.stat().st_size))


def nibabel_image(image: Any, channel: int | None, unit: str | None, time: str | None) -> Loaded:
    """What nibabel has read, in any of its formats: they all have an affine to RAS+.

    Parameters
    ----------
    image
        nibabel's image, not loaded yet.
    channel
        If it is not None, the fourth axis counts as channels.
    unit, time
        Of the axes of space and of time; None when unknown.
    """
    data, channel_axis = _stored(image, channel)
    zooms = [abs(float(zoom)) for zoom in image.header.get_zooms()]
    axes = [axis for axis in range(data.ndim) if axis != channel_axis]
    steps = [zooms[axis] if axis < len(zooms) else 1.0 for axis in axes]
    geometry = Geometry.from_nifti(image.affine, len(axes), steps[3:], unit, time)
    spacing = tuple(step if np.isfinite(step) and step > 0 else 1.0 for step in steps)
    return _squeezed(Loaded(data, geometry, channel_axis, image.header.copy(), spacing))


def _stored(image: Any, channel: int | None) -> tuple[Any, int | None]:
    """The pixels and their channel axis: RGB is stored as a record, a fourth axis may hold channels."""
    stored = nbytes_of(image.shape, image.header.get_data_dtype())
    name = image.file_map["image"].filename
    if name is not None:
        packed = str(name).lower().endswith((".gz", ".mgz", ".bz2", ".mnc"))
        check_held(stored, Path(name).stat().st_size, math.inf if packed else 1)
        if stored > LARGE and not packed and image.header.get_data_dtype().names is None:
            return ScaledArray(image.dataobj), 3 if channel is not None and len(image.shape) == 4 else None
        check_memory(stored)
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
        data=data.squeeze(tuple(single))
        if isinstance(data, np.ndarray)
        else Held(data, dict.fromkeys(single, 0)),
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
        if header.get_intent()[0] != "label":
            header.set_intent("none")  # labels are no map of statistics, whatever the image is
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
    check_one_unit(geometry, "NIfTI")
    order = (*space, *rest)
    geometry = in_known_unit(geometry.transpose(order), ("µm", "mm"), "NIfTI")
    times = [axis.unit for axis in geometry.world if axis.kind == "time" and axis.unit]
    if times and times[0] not in TIME_NAMES:
        geometry = geometry.in_unit("s", "time")
    return order, geometry
