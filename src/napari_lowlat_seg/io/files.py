"""Images from files, labels into files, geometry kept.

Arrays keep the axis order of the file, also for NIfTI (i, j, k), so that labels written back lie exactly on
the image. A file is written beside its place and moved there when complete: a reader never meets half a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.atomic_file import atomic_file, check_writable
from napari_lowlat_seg.core.labels import ArrayLabels
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.nifti import NIFTI_SUFFIXES, has_nifti_header, is_nifti, read_nifti, write_nifti
from napari_lowlat_seg.io.tiff import TIFF_SUFFIXES, read_tiff, write_tiff

ZARR_SUFFIXES = (".ome.zarr", ".zarr")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def read_volume(path: str | Path, *, channel: int | None = None) -> Volume:
    """The image of a file, with spacing and whatever else `write_labels` needs to put labels on it.

    Parameters
    ----------
    path
        .tif, .tiff (plain, ImageJ, OME), .nii, .nii.gz, .png, .jpg, .jpeg or .webp; or the folder of an
        OME-Zarr, .zarr, which is opened and not loaded.
    channel
        Which channel to segment, counted from 0; None for gray and RGB images. The fourth axis of a NIfTI
        file counts as channels when a channel is given.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        For an unknown suffix, a damaged file, a file of another kind, and a channel that does not exist.
    """
    path = Path(path)
    read = _READERS[_suffix(path, tuple(_READERS), "images")]
    if not (path.is_dir() if read is _read_zarr else path.is_file()):
        raise FileNotFoundError(f"no image file at {path}; check the path")
    try:
        data, spacing, channel_axis, header = read(path, channel)
    except ImportError:
        raise
    except Exception as error:  # the parsers raise whatever the damaged bytes lead them to
        reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(f"{path} cannot be read: it is damaged or of another kind ({reason})") from error
    if channel is not None and channel_axis is None:
        raise ValueError(f"{path} has no channels, its shape is {data.shape}; leave out channel {channel}")
    if channel is None and channel_axis is not None and data.shape[channel_axis] == 1:
        channel = 0  # nothing to choose from
    try:
        window = getattr(header, "window", None)
        return Volume(data, spacing, channel_axis, channel, window, name=path.name, header=header)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_labels(path: str | Path, labels: np.ndarray, like: Volume | None = None) -> Path:
    """Write labels as .tif, .tiff, .ome.tif, .nii, .nii.gz or (2-D) .png, and give back the path.

    The type is the smallest of uint8, uint16 and uint32 that holds the labels. NIfTI keeps the affine, qform
    and sform with their codes, and the units of `like`; TIFF its spacing, axes and unit (ImageJ form, or OME
    if the suffix says so), compressed with zlib.

    Parameters
    ----------
    path
        Where to; an existing file is replaced at once, when the new one is complete.
    labels
        Integers of 0 or more, or bool, of the spatial shape of `like`.
    like
        The volume that was segmented; without it, spacing is unknown.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        For an unknown suffix, labels that are not such integers, labels of another shape than `like`, or axes
        and sizes that the format does not know.
    """
    path = Path(path)
    write = _WRITERS[_suffix(path, tuple(_WRITERS), "labels")]
    if like is not None and labels.shape != like.shape:
        raise ValueError(f"labels must have the image's shape {like.shape}; got {labels.shape}")
    labels = _smallest(labels)
    try:
        with atomic_file(path) as part:
            write(part, labels, like)
    except OSError:
        raise
    except Exception as error:  # each format's writer has its own errors for what it does not know
        raise ValueError(
            f"{path} cannot hold these labels of shape {labels.shape}: {error}; choose another format"
        ) from error
    return path


@contextmanager
def label_output(path: str | Path, like: Volume) -> Iterator[ArrayLabels]:
    """Labels of a volume to be written plane by plane, in any format of `write_labels` or as OME-Zarr.

    An OME-Zarr is written at once; labels that are there already are kept and added to. Any other file is
    written when the block ends without an error.

    Yields
    ------
    ArrayLabels
        All 0 at first, uint32, of the shape of `like`.

    Raises
    ------
    ValueError, OSError
        As `write_labels`; for an OME-Zarr as `ome_zarr.labels_group`.
    ImportError
        For an OME-Zarr without zarr and ome-zarr.
    """
    if is_ome_zarr(path):
        from napari_lowlat_seg.io.zarr_labels import LabelPyramid

        pyramid = LabelPyramid.at(path, like)
        pyramid.uncounted()
        yield pyramid
        return
    labels = ArrayLabels(np.zeros(like.shape, np.uint32))
    yield labels
    write_labels(path, labels.data, like)


def default_axis(path: str | Path) -> int:
    """The axis along which a file's planes are usually viewed: the third of NIfTI (axial), else the first."""
    return 2 if is_nifti(path) else 0


def shown_axes(volume: Volume, path: str | Path) -> tuple[int, ...]:
    """The spatial axes of a file's volume in the order in which a viewer shows them: NIfTI's turned round."""
    axes = tuple(range(volume.ndim))
    return axes[::-1] if is_nifti(path) else axes


def as_shown(volume: Volume, path: str | Path) -> Volume:
    """The volume of a file as a viewer shows it: NIfTI's axes turned round, (i, j, k) to (z, y, x).

    Without `header`, which speaks of the file's axes, and without the file's own intensity window, which a
    viewer's layer does not carry along.
    """
    shown = replace(volume, header=None, window=None)
    if not is_nifti(path):
        return shown
    axes = [axis for axis in range(len(volume.data.shape)) if axis != volume.channel_axis][::-1]
    channels = [] if volume.channel_axis is None else [volume.channel_axis]
    return replace(
        shown,
        data=np.asarray(volume.data).transpose(*axes, *channels),
        spacing=None if volume.spacing is None else volume.spacing[::-1],
        channel_axis=-1 if channels else None,
    )


def embeddings_folder(image: str | Path) -> Path:
    """Where embeddings of an image file are looked for: beside it, `scan.nii.gz.embeddings`."""
    image = Path(image)
    return image.with_name(f"{image.name}.embeddings")


def is_ome_zarr(path: str | Path) -> bool:
    """Whether a path is meant to be the folder of an OME-Zarr."""
    return str(path).lower().endswith(ZARR_SUFFIXES)


def check_labels_path(path: str | Path, inputs: Iterable[tuple[str, Path]] = ()) -> Path:
    """The path, if `write_labels` can write there: to be asked before hours of work.

    Parameters
    ----------
    inputs
        (what it is, path) of the files that the work reads: none of them may be written over.

    Raises
    ------
    ValueError
        For an unknown suffix, and for a path that is one of the inputs, also by a link.
    OSError
        As `atomic_file.check_writable`; an OME-Zarr may be a folder that exists.
    """
    path = Path(path)
    for name, one in inputs:
        if path.exists() and one.exists() and path.samefile(one):
            raise ValueError(f"{path} is the {name} itself; give the output another name")
    if is_ome_zarr(path):
        return path
    _suffix(path, tuple(_WRITERS), "labels")
    check_writable(path)
    return path


_Read = tuple[Any, tuple[float, ...] | None, int | None, Any]


def _read_tiff(path: Path, channel: int | None) -> _Read:
    return read_tiff(path)


def _read_zarr(path: Path, channel: int | None) -> _Read:
    from napari_lowlat_seg.io.ome_zarr import open_image

    return open_image(path)


def _read_picture(path: Path, channel: int | None) -> _Read:
    from PIL import Image

    with Image.open(path) as image:
        plain = "RGBA" if "transparency" in image.info else "RGB"
        wanted = {"P": plain, "CMYK": "RGB", "YCbCr": "RGB", "LA": "L", "PA": "RGBA"}.get(
            image.mode, image.mode
        )
        data = np.asarray(image if wanted == image.mode else image.convert(wanted))
    return data, None, 2 if data.ndim == 3 else None, None


def _write_tiff(path: Path, labels: np.ndarray, like: Volume | None) -> None:
    write_tiff(path, labels, like, unit="mm" if has_nifti_header(like) else "")


def _write_png(path: Path, labels: np.ndarray, like: Volume | None) -> None:
    from PIL import Image

    if labels.ndim != 2 or labels.dtype == np.uint32:
        raise ValueError(f"a .png holds one plane of labels up to 65535, these go up to {labels.max()}")
    Image.fromarray(labels).save(path)


_Write = Callable[[Path, np.ndarray, Volume | None], None]

_READERS: dict[str, Callable[[Path, int | None], _Read]] = {
    **dict.fromkeys(TIFF_SUFFIXES, _read_tiff),
    **dict.fromkeys(NIFTI_SUFFIXES, read_nifti),
    **dict.fromkeys(ZARR_SUFFIXES, _read_zarr),
    **dict.fromkeys(PICTURE_SUFFIXES, _read_picture),
}
_WRITERS: dict[str, _Write] = {
    **dict.fromkeys(TIFF_SUFFIXES, _write_tiff),
    **dict.fromkeys(NIFTI_SUFFIXES, write_nifti),
    ".png": _write_png,
}


def _suffix(path: Path, known: tuple[str, ...], what: str) -> str:
    name = path.name.lower()
    for suffix in known:
        if name.endswith(suffix):
            return suffix
    raise ValueError(f"{what} can be {', '.join(known)}; got {path.name!r}")


def _smallest(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind not in "bui" or labels.size == 0:
        raise ValueError(f"labels must be integers; got type {labels.dtype} and shape {labels.shape}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > np.iinfo(np.uint32).max:
        raise ValueError(f"labels must be from 0 to {np.iinfo(np.uint32).max}; got {low} to {high}")
    return labels.astype(np.min_scalar_type(high), copy=False)
