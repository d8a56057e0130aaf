"""Everything in a volume: each plane by itself, here or on a cluster, then linked into objects.

What a plane shows is written to a folder beside the labels, under a name that pixels, model and rules decide;
so a run that was stopped goes on where it was, whoever died. The labels are written at the end, two planes in
memory at a time (and the labels themselves, where their format must be written whole).
"""

from __future__ import annotations

import hashlib
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.batch.embed import cached_predictor, the_volume
from napari_lowlat_seg.batch.jobs import connected, spread
from napari_lowlat_seg.batch.mask_generator import DEFAULT, MaskGeneratorSettings, everything
from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.core.labels import ArrayLabels
from napari_lowlat_seg.core.volume import Plane, any_finite
from napari_lowlat_seg.io.files import (
    check_labels_path,
    default_axis,
    label_output,
    read_volume,
)
from napari_lowlat_seg.propagation.linking import link_planes

BATCH = 4
"""Planes that a worker takes at a time."""

LEAST_PLANES = 3
"""An object of a volume is seen on so many planes or more: what appears on fewer is mostly wrong."""


@dataclass(frozen=True)
class EverythingJob:
    """Some planes to look at.

    Attributes
    ----------
    image, channel, window, model, device
        As in `precompute.EmbedJob`.
    folder
        Of the results; on storage that all workers share.
    rules
        What is kept.
    planes
        Which to look at.
    """

    image: Path
    folder: Path
    model: str
    device: str
    channel: int | None
    window: tuple[float, float] | None
    rules: MaskGeneratorSettings
    planes: tuple[Plane, ...]


def look_at(job: EverythingJob) -> list[tuple[Plane, Path]]:
    """The files of the job's planes; those that are there already are not made again."""
    predictor = cached_predictor(job.model, job.device)
    volume = replace(the_volume(job.image, job.channel), window=job.window)
    done = []
    for plane in job.planes:
        pixels = np.ascontiguousarray(volume.plane(plane))
        spacing = volume.plane_spacing(plane)
        about = f"{predictor.model} {job.rules} {job.window} {spacing} {plane} {pixels.dtype} {pixels.shape} "
        digest = hashlib.blake2b(about.encode() + pixels.tobytes(), digest_size=16).hexdigest()
        path = job.folder / f"{digest}.npz"
        if not path.exists():
            if any_finite(pixels):
                labels = everything(predictor, pixels, job.window, spacing, job.rules)
            else:
                labels = np.zeros(volume.sides(plane), np.uint32)
            with atomic_file(path) as part:
                np.savez_compressed(part, labels=labels)
        done.append((plane, path))
    return done


def run_everything(
    image: Path,
    output: Path,
    *,
    rules: MaskGeneratorSettings = DEFAULT,
    model: str = "default",
    device: str = "auto",
    axis: int | None = None,
    channel: int | None = None,
    workers: int = 0,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Label everything in a picture or volume; shows progress on a terminal.

    Parameters
    ----------
    output
        As of `write_labels`, or an OME-Zarr for volumes larger than memory.
    axis, workers, scheduler
        As of `precompute.run_embed`.

    Returns
    -------
    "objects", "planes" and "seconds".

    Raises
    ------
    ValueError
        For unusable files, an axis that is not there, and images with more than three spatial axes.
    OSError
        If the labels, or the folder beside them, cannot be written.
    """
    started = time.perf_counter()
    volume = read_volume(image, channel=channel)
    check_labels_path(output)
    if volume.ndim > 3:
        raise ValueError(f"everything is looked for in 2-D and 3-D images; {image} has shape {volume.shape}")
    volume = volume.with_window()
    planes = volume.planes(default_axis(image) if axis is None and volume.ndim == 3 else axis or 0)
    folder = output.resolve().with_name(f".{output.name}.planes")
    folder.mkdir(exist_ok=True)
    job = EverythingJob(image.resolve(), folder, model, device, channel, volume.window, rules, tuple(planes))
    size = 1 if scheduler is None and workers == 0 else BATCH
    jobs = [replace(job, planes=job.planes[i : i + size]) for i in range(0, len(planes), size)]
    files: dict[Plane, Path] = {}
    with label_output(output, volume) as labels:
        with connected(scheduler, workers) as client, _bar(len(planes)) as bar:
            for done in spread(client, look_at, jobs):
                files |= done
                bar.update(len(done))
        objects = _write(labels, [(plane, files[plane]) for plane in planes])
    for path in folder.glob("*.npz"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody's own files are none of our business
        folder.rmdir()
    return {"objects": objects, "planes": len(planes), "seconds": round(time.perf_counter() - started, 3)}


def _write(labels: ArrayLabels, files: list[tuple[Plane, Path]]) -> int:
    """Link the planes and write the labels; how many objects there are."""
    numbers = lasting(list(link_planes(_read(path) for _, path in files)), min(LEAST_PLANES, len(files)))
    for (plane, path), table in zip(files, numbers, strict=True):
        labels.fill(plane, table[_read(path)])
    return max((int(table.max()) for table in numbers), default=0)


def lasting(tables: list[np.ndarray], least: int) -> list[np.ndarray]:
    """Tables of `link_planes` in which objects on fewer than `least` planes are 0, the others counted anew.

    >>> [table.tolist() for table in lasting([np.array([0, 1, 2]), np.array([0, 2, 3])], 2)]
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


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="plane", file=sys.stderr, disable=None)
