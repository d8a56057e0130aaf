"""Images from files, labels into files, geometry kept.

Arrays keep the axis order of the file, also for NIfTI (i, j, k), so that labels written back lie exactly on
the image. A file is written beside its place and moved there when complete: a reader never meets half a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from napari_lowlat_seg.core.atomic_file import atomic_file, check_not_input, check_writable
from napari_lowlat_seg.core.geometry import Geometry
from napari_lowlat_seg.core.labels import ArrayLabels
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.bounds import check_regular
from napari_lowlat_seg.io.choice import Choice, SeveralImages, at_time
from napari_lowlat_seg.io.format_table import Format, find_format, locate, suffixes
from napari_lowlat_seg.io.formats.nifti import is_nifti
from napari_lowlat_seg.io.placed import Loaded, Turn, TurnedArray, Unreadable, first_line, geometry_of


def read_volume(
    path: str | Path,
    *,
    channel: int | None = None,
    series: str | int | None = None,
    time: int | None = None,
    level: int | None = None,
) -> Volume:
    """The image of a file, with spacing and whatever else `write_labels` needs to put labels on it.

    Parameters
    ----------
    path
        A file or folder of any format of `format_table`, such as .tif, .nii.gz, .ome.zarr, .mrc, .dcm.
    channel
        Which channel to segment, counted from 0; None for gray and RGB images. The fourth axis of a NIfTI
        file counts as channels when a channel is given.
    series
        The name or the number, counted from 0, of an image in a file that holds several: a series of an
        OME-TIFF or of DICOM, a data set of HDF5, a field of a plate. None if there is one only.
    time
        A point in time, counted from 0; None for all of them, as an axis of the volume.
    level
        Of a pyramid, 0 for the finest, as None is.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        For an unknown suffix, a damaged file, a file of another kind, a choice that does not exist, and for
        several images without a choice; the sentence lists them.
    """
    return read_chosen(path, Choice(channel, "" if series is None else str(series), time, level))


def read_chosen(path: str | Path, choice: Choice) -> Volume:
    """`read_volume` with one value for all that is to be chosen; raises what it raises."""
    path, channel = Path(path), choice.channel
    place, inside, kind = locate(path)
    if kind is None:
        raise ValueError(f"images can be {', '.join(suffixes())}; got {path.name!r}")
    if not (place.is_dir() if kind.folder else place.is_file()):
        raise FileNotFoundError(f"no image file at {place}; check the path")
    try:
        loaded = _loaded(kind, place, choice, inside)
    except ImportError:
        raise
    except Exception as error:  # the parsers raise whatever the damaged bytes lead them to
        raise _unread(path, error) from error
    if channel is not None and loaded.channel_axis is None:
        raise ValueError(
            f"{path} has no channels, its shape is {loaded.data.shape}; leave out channel {channel}"
        )
    if channel is None and loaded.channel_axis is not None and loaded.data.shape[loaded.channel_axis] == 1:
        channel = 0  # nothing to choose from
    geometry = loaded.geometry
    spacing = loaded.spacing or (geometry.spacing if geometry.calibrated else None)
    try:
        return Volume(
            loaded.data,
            spacing,
            loaded.channel_axis,
            channel,
            loaded.window,
            name=path.name,
            header=loaded.header,
            geometry=geometry,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _unread(path: Path, error: Exception) -> ValueError:
    """What is said of an image that a format's reader has given up."""
    reason = first_line(error)
    if isinstance(error, SeveralImages):
        return SeveralImages(f"{path} cannot be read: {reason}", error.names)
    if isinstance(error, MemoryError):
        reason = f"it does not fit into memory ({reason})"
    elif isinstance(error, FileNotFoundError) and error.filename is not None:
        reason = f"it needs the file {Path(error.filename).name}, which is not there"
    elif not isinstance(error, Unreadable):
        reason = f"it is damaged or of another kind ({reason})"
    return ValueError(f"{path} cannot be read: {reason}")


def _loaded(kind: Format, place: Path, choice: Choice, inside: str) -> Loaded:
    """What the format's reader makes of a place, at the chosen time."""
    if place.is_file():
        check_regular(place)
    if choice.series and "series" not in kind.choices:
        raise Unreadable(f"{kind.name} holds one image; leave out series {choice.series!r}")
    if choice.level and "level" not in kind.choices:
        raise Unreadable(f"{kind.name} has no levels; leave out level {choice.level}")
    loaded: Loaded = kind.function(kind.read)(place, replace(choice, inside=inside))
    return loaded if choice.time is None else at_time(loaded, choice.time)


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
    kind = _written(path)
    if like is not None and labels.shape != like.shape:
        raise ValueError(f"labels must have the image's shape {like.shape}; got {labels.shape}")
    labels = _smallest(labels)
    try:
        kind.function(kind.check)(path, labels.shape, like)
        with atomic_file(path) as part:
            kind.function(kind.write)(part, labels, like)
    except (OSError, ImportError):
        raise
    except Exception as error:  # each format's writer has its own errors for what it does not know
        raise _unfit(path, labels.shape, error) from error
    return path


@contextmanager
def label_output(path: str | Path, like: Volume) -> Iterator[ArrayLabels]:
    """Labels of a volume to be written plane by plane, in any format of `write_labels` or as OME-Zarr.

    A new file or OME-Zarr is at the path when the block ends without an error, or never. Labels of an
    OME-Zarr that is there already are kept and added to, each plane at once.

    Yields
    ------
    ArrayLabels
        All 0 at first, uint32, of the shape of `like`.

    Raises
    ------
    ValueError, OSError
        As `write_labels`; for an OME-Zarr as `ome_zarr.labels_group` and `ome_zarr.creating`.
    ImportError
        For an OME-Zarr without zarr and ome-zarr.
    """
    if is_ome_zarr(path):
        from napari_lowlat_seg.io.chunked.zarr_labels import LabelPyramid

        if not Path(path).exists():
            with LabelPyramid.complete(path, like) as pyramid:
                yield pyramid
            return
        pyramid = LabelPyramid.at(path, like)
        pyramid.uncounted()
        yield pyramid
        return
    labels = ArrayLabels(np.zeros(like.shape, np.uint32))
    yield labels
    write_labels(path, labels.data, like)


def read_aligned(path: str | Path, like: Volume, what: str, *, channel: int | None = None) -> Volume:
    """The image of a file, its axes turned so that it lies voxel by voxel on another.

    Parameters
    ----------
    path
        As of `read_volume`.
    like
        The image to lie on.
    what
        What the sentence calls the file, such as "mask".
    channel
        As of `read_volume`.

    Raises
    ------
    ValueError
        If no transposition and reversal of axes brings the two together: other places, sizes or shapes.
    FileNotFoundError
        If there is no such file.
    """
    volume = _with_single_axes(read_volume(path, channel=channel), like)
    ours, theirs = geometry_of(like), geometry_of(volume)
    unlike = f"the {what} {path} must have the image's shape {like.shape}; got {volume.shape}"
    if not (ours.calibrated and theirs.calibrated) or ours.ndim != theirs.ndim:
        if volume.shape != like.shape:
            raise ValueError(unlike)
        return volume
    fit = ours.turn_from(theirs, like.shape, volume.shape)
    if fit is None and not theirs.patient and not theirs.translation.any():
        # Many files say sizes and no place: then the place is the image's.
        moved = replace(theirs, affine=_placed_as(theirs, ours))
        fit = ours.turn_from(moved, like.shape, volume.shape)
    if fit is None and sorted(volume.shape) != sorted(like.shape):
        raise ValueError(unlike)
    if fit is None:
        raise ValueError(
            f"the {what} {path} lies elsewhere in the world than the image {like.name}; "
            "resample it onto the image"
        )
    return _turned_onto(volume, like, Turn(*fit))


def _turned_onto(volume: Volume, like: Volume, turn: Turn) -> Volume:
    """A volume turned so that it lies voxel by voxel on another."""
    if turn.is_identity:
        return volume
    if volume.channel_axis is None and not isinstance(volume.data, np.ndarray):  # not loaded: turned in parts
        spacing = None if volume.spacing is None else tuple(volume.spacing[axis] for axis in turn.order)
        lazy = TurnedArray(volume.data, turn.inverse)
        return replace(volume, data=lazy, spacing=spacing, header=None, geometry=like.geometry)
    turned = _transposed(volume, turn.order)
    data = np.flip(np.asarray(turned.data), turn.flips)  # channels are the last axis, which has no part in it
    return replace(turned, data=data, header=None, geometry=like.geometry)


def _with_single_axes(volume: Volume, like: Volume) -> Volume:
    """A volume with the axes of another that have length 1 there, where its file has left them out.

    TIFF keeps no axis of length 1 but rows and columns. Along such an axis it lies where the other one does.
    """
    ours, theirs = geometry_of(like), geometry_of(volume)
    known = {axis.name for axis in theirs.world}
    added = [i for i, axis in enumerate(ours.axes) if axis.name not in known and like.shape[i] == 1]
    if not added or len(added) + volume.ndim != like.ndim or not ours.straight:
        return volume
    if ours.unit is not None and theirs.unit is not None:
        ours = ours.in_unit(theirs.unit)
    count = len(added)
    axis = volume.channel_axis
    return replace(
        volume,
        data=np.asarray(volume.data)[(None,) * count],
        spacing=None if volume.spacing is None else (*(ours.spacing[i] for i in added), *volume.spacing),
        channel_axis=None if axis is None else axis + count,
        geometry=_extended(theirs, ours, added),
    )


def _extended(theirs: Geometry, ours: Geometry, added: Sequence[int]) -> Geometry:
    """A geometry with some axes of another before its own."""
    count = len(added)
    affine = np.eye(theirs.ndim + count + 1)
    affine[:count, :count] = np.diag([ours.spacing[i] for i in added])
    affine[:count, -1] = [ours.translation[ours.nearest[i]] for i in added]
    affine[count:, count:] = theirs.affine
    return Geometry((*(ours.axes[i] for i in added), *theirs.world), affine, theirs.patient)


def _placed_as(theirs: Geometry, ours: Geometry) -> np.ndarray:
    """An affine of theirs with the first voxel where ours is, for worlds of the same unit."""
    affine = theirs.affine.copy()
    if theirs.names == ours.names and theirs.unit == ours.unit:
        affine[:-1, -1] = ours.translation
    return affine


def default_axis(volume: Volume) -> int:
    """The axis of a file's array along which its planes are usually viewed.

    Of a volume the axis of space that follows the world's z most (axial planes of a patient), which a viewer
    shows first; of an image with less than three axes of space, the first that is shown.
    """
    geometry = geometry_of(volume)
    order = geometry.shown_order
    space = [axis for axis in order if geometry.axes[axis].kind == "space"]
    return space[0] if len(space) > 2 else order[0]


def shown_axes(volume: Volume, path: str | Path = "") -> tuple[int, ...]:
    """The spatial axes of a volume in the order in which a viewer shows them: the world's, (t, z, y, x).

    NIfTI's (i, j, k) is turned round so, or as its affine says. A volume without a geometry is turned round
    if the path says NIfTI.
    """
    if volume.geometry is not None:
        return volume.geometry.shown_order
    axes = tuple(range(volume.ndim))
    return axes[::-1] if is_nifti(path) else axes


def as_shown(volume: Volume, path: str | Path = "") -> Volume:
    """The volume of a file as a viewer shows it: axes in the world's order, (t, z, y, x), channels last.

    So NIfTI's (i, j, k) becomes (z, y, x). Without `header`, which speaks of the file's axes, and without
    the file's own intensity window, which a viewer's layer does not carry along. A volume without a geometry
    is turned round if the path says NIfTI.
    """
    shown = replace(volume, header=None, window=None)
    order = shown_axes(volume, path)
    if order == tuple(range(volume.ndim)):
        return shown
    return replace(
        _transposed(shown, order),
        geometry=None if volume.geometry is None else volume.geometry.transpose(order),
    )


def _transposed(volume: Volume, order: Sequence[int]) -> Volume:
    """A volume with its axes in another order and channels last; its geometry stays that of the old one."""
    axes = [axis for axis in range(len(volume.data.shape)) if axis != volume.channel_axis]
    channels = [] if volume.channel_axis is None else [volume.channel_axis]
    return replace(
        volume,
        data=np.asarray(volume.data).transpose(*(axes[axis] for axis in order), *channels),
        spacing=None if volume.spacing is None else tuple(volume.spacing[axis] for axis in order),
        channel_axis=-1 if channels else None,
    )


def embeddings_folder(image: str | Path) -> Path:
    """Where embeddings of an image file are looked for: beside it, `scan.nii.gz.embeddings`."""
    image = Path(image)
    return image.with_name(f"{image.name}.embeddings")


def is_ome_zarr(path: str | Path) -> bool:
    """Whether a path is meant to be the folder of an OME-Zarr, or labels in the `labels` folder of one."""
    path = Path(path)
    inside = any(place.suffix.lower() == ".zarr" for place in path.parents)
    return path.suffix.lower() == ".zarr" or (inside and path.parent.name == "labels")


def check_labels_path(
    path: str | Path, inputs: Iterable[tuple[str, Path]] = (), like: Volume | None = None
) -> Path:
    """The path, if `write_labels` can write labels of a volume there: to be asked before hours of work.

    Parameters
    ----------
    inputs
        (what it is, path) of the files that the work reads: none of them may be written over.
    like
        The volume that is segmented; without it, what the format can say of one is not checked.

    Raises
    ------
    ValueError
        For an unknown suffix, for a path that is one of the inputs, also by a link, and for an image whose
        place the format cannot say.
    OSError
        As `atomic_file.check_writable`; an OME-Zarr may be a folder that exists.
    ImportError
        For a format whose library is not installed.
    """
    path = Path(path)
    check_not_input(path, inputs)
    shape = () if like is None else like.shape
    if is_ome_zarr(path):
        from napari_lowlat_seg.io.chunked.ome_zarr import check_labels

        if like is not None:
            try:
                check_labels(path, like)
            except ValueError as error:
                raise _unfit(path, shape, error) from error
        return path
    kind = _written(path)
    check = kind.function(kind.check)
    if like is not None:
        try:
            check(path, shape, like)
        except ValueError as error:
            raise _unfit(path, shape, error) from error
    check_writable(path)
    return path


def _written(path: Path) -> Format:
    kind = find_format(path, writing=True)
    if kind is None:
        known = ", ".join([*suffixes(writing=True), ".ome.zarr"])
        raise ValueError(f"labels can be {known}; got {path.name!r}")
    return kind


def _unfit(path: Path, shape: tuple[int, ...], error: Exception) -> ValueError:
    why = first_line(error)
    return ValueError(f"{path} cannot hold these labels of shape {shape}: {why}; choose another format")


def _smallest(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind not in "bui" or labels.size == 0:
        raise ValueError(f"labels must be integers; got type {labels.dtype} and shape {labels.shape}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > np.iinfo(np.uint32).max:
        raise ValueError(f"labels must be from 0 to {np.iinfo(np.uint32).max}; got {low} to {high}")
    return labels.astype(np.min_scalar_type(high), copy=False)
