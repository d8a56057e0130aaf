"""Automatic segmentation of a volume: each plane separately, here or on a cluster, then linked into objects.

The labels of each plane are written to a folder beside the output, under a name that depends on pixels, model
and settings; so a run that was stopped can be resumed. The labels of the volume are written at the end,
two planes in memory at a time (and the labels themselves, where their format must be written whole).
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.batch.jobs import DEFAULTS, BatchJob, BatchSettings, check_new, run_jobs
from napari_lowlat_seg.core.atomic_file import PREFIX, atomic_file
from napari_lowlat_seg.core.labels import ArrayLabels
from napari_lowlat_seg.core.volume import Plane, any_finite
from napari_lowlat_seg.inference.mask_generator import DEFAULT, MaskGeneratorSettings, label_plane
from napari_lowlat_seg.io.files import check_labels_path, default_axis, label_output, read_chosen
from napari_lowlat_seg.propagation.linking import link_planes

BATCH = 4
"""Planes of a job on a cluster."""

LEAST_PLANES = 3
"""An object of a volume is seen on this many planes or more: what appears on fewer is mostly wrong."""


@dataclass(frozen=True, kw_only=True)
class AutomaticJob(BatchJob):
    """Planes to segment, as items.

    Attributes
    ----------
    folder
        Of the results; on storage that all workers share.
    masks
        Which masks are kept.
    """

    folder: Path
    masks: MaskGeneratorSettings = DEFAULT


def run_automatic_job(job: AutomaticJob) -> list[tuple[Plane, Path]]:
    """Segment the job's planes; the file of each. Those that are there already are not made again."""
    predictor, volume = job.predictor(), job.volume()
    files = []
    for plane in job.items:
        pixels = np.ascontiguousarray(volume.plane(plane))
        spacing = volume.plane_spacing(plane)
        about = f"{predictor.model} {job.masks} {job.window} {spacing} {plane} {pixels.dtype} {pixels.shape} "
        digest = hashlib.blake2b(about.encode() + pixels.tobytes(), digest_size=16).hexdigest()
        path = job.folder / f"{digest}.npz"
        if not path.exists():
            if any_finite(pixels):
                labels = label_plane(predictor, pixels, job.window, spacing, job.masks)
            else:
                labels = np.zeros(volume.sides(plane), np.uint32)
            with atomic_file(path) as part:
                np.savez_compressed(part, labels=labels)
        files.append((plane, path))
    return files


def run_automatic(
    image: Path,
    output: Path,
    settings: BatchSettings = DEFAULTS,
    masks: MaskGeneratorSettings = DEFAULT,
) -> dict[str, Any]:
    """Label every object of an image or volume without prompts; shows progress on a terminal.

    Parameters
    ----------
    image
        A file or an OME-Zarr, as in `read_volume`.
    output
        As of `write_labels`, or an OME-Zarr for volumes larger than memory.
    settings
        Model, axis, choice, and where the work is done.
    masks
        Which masks are kept.

    Returns
    -------
    dict
        "objects", "planes" and "seconds".

    Raises
    ------
    ValueError
        For unusable files, an axis that is not there, and images with more than three spatial axes.
    OSError
        If the labels, or the folder beside them, cannot be written.
    ImportError
        For a scheduler without Dask, or a format whose library is not installed.
    """
    started = time.perf_counter()
    volume = read_chosen(image, settings.choice)
    check_labels_path(output, [("image", image)], volume)
    if volume.ndim > 3:
        raise ValueError(f"automatic segmentation needs a 2-D or 3-D image; {image} has shape {volume.shape}")
    volume = volume.with_window()
    planes = volume.planes(default_axis(volume) if settings.axis is None else settings.axis)
    folder = output.resolve().with_name(f".{output.name}.planes")
    check_new(output, settings.replace)  # a run that was stopped has left planes, and no output
    job = AutomaticJob(
        image=image.resolve(),
        settings=settings,
        window=volume.window,
        items=tuple(planes),
        folder=folder,
        masks=masks,
    )
    files: dict[Plane, Path] = {}
    folder.mkdir(exist_ok=True)
    jobs = job.split(BATCH if settings.on_cluster else 1)
    run_jobs(run_automatic_job, jobs, lambda done: files.update(done), settings, unit="plane")
    with label_output(output, volume) as labels:
        objects = _link(labels, [(plane, files[plane]) for plane in planes])
    for path in (*files.values(), *folder.glob(f"{PREFIX}*")):  # and what a killed try was writing
        path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty: files of others, and of other settings, are left alone
        folder.rmdir()
    return {"objects": objects, "planes": len(planes), "seconds": round(time.perf_counter() - started, 3)}


def _link(labels: ArrayLabels, files: list[tuple[Plane, Path]]) -> int:
    """Link the planes and write the labels; how many objects there are."""
    tables = drop_short_objects(
        list(link_planes(_read(path) for _, path in files)), min(LEAST_PLANES, len(files))
    )
    for (plane, path), table in zip(files, tables, strict=True):
        labels.fill(plane, table[_read(path)])
    return max((int(table.max()) for table in tables), default=0)


def drop_short_objects(tables: list[np.ndarray], least: int) -> list[np.ndarray]:
    """Tables of `link_planes` in which objects on fewer than `least` planes are 0, the others counted anew.

    >>> [table.tolist() for table in drop_short_objects([np.array([0, 1, 2]), np.array([0, 2, 3])], 2)]
    [[0, 0, 1], [0, 1, 0]]
    """
    count = 1 + max((int(table.max()) for table in tables), default=0)
    planes = np.zeros(count, np.int64)
    for table in tables:
        planes[np.unique(table)] += 1
    kept = planes >= least
    kept[0] = False
    renumbered = np.where(kept, np.cumsum(kept), 0).astype(np.uint32)
    return [renumbered[table] for table in tables]


def _read(path: Path) -> np.ndarray:
    with np.load(path) as file:
        labels: np.ndarray = file["labels"]
        return labels
