"""All planes of a volume embedded before anyone asks, into a folder that the plugin finds.

They are embedded as a window shows them: NIfTI as (z, y, x), through the intensities that it would choose.

One process walks plane by plane; a Dask cluster takes the planes in batches. Both may be stopped and started
again at any time, also by force: what is in the folder is not made again, and half a file is never read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from napari_lowlat_seg.batch.jobs import connected, spread
from napari_lowlat_seg.core.volume import Plane, Volume, any_finite
from napari_lowlat_seg.inference.predictor import Predictor, load_predictor
from napari_lowlat_seg.io.files import as_shown, default_axis, embeddings_folder, read_volume
from napari_lowlat_seg.io.nifti import is_nifti
from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache, EmbeddingKey

BATCH = 8
"""Planes that a worker takes at a time: long enough to be worth a message, short enough to lose."""


@dataclass(frozen=True)
class EmbedJob:
    """What a worker must know to embed some planes: everything is opened where the work is done.

    Attributes
    ----------
    image
        A file, or an OME-Zarr, that every worker reaches under the same path.
    folder
        Of the embeddings; on storage that all workers share.
    model, device
        As in `load_predictor`.
    channel
        As in `read_volume`.
    window
        One intensity window for all planes, so that every worker sees the same brightness.
    planes
        Which to embed.
    """

    image: Path
    folder: Path
    model: str
    device: str
    channel: int | None
    window: tuple[float, float] | None
    planes: tuple[Plane, ...]


def embed_planes(
    predictor: Predictor, volume: Volume, planes: Sequence[Plane], cache: EmbeddingCache
) -> Iterator[EmbeddingKey | None]:
    """For each plane in turn its key if it had to be embedded, None if it was there. Reads each plane once.

    A plane without a finite pixel cannot be embedded and counts as there.
    """
    for plane in planes:
        pixels, spacing = volume.plane(plane), volume.plane_spacing(plane)
        key = EmbeddingKey.of_pixels(predictor, pixels, plane, volume.window, spacing)
        if key in cache or not any_finite(pixels):
            yield None
            continue
        made = predictor.embed(pixels, volume.window, spacing)
        cache.ensure(key, lambda made=made: made)  # type: ignore[misc]
        yield key


def run_job(job: EmbedJob) -> tuple[int, int]:
    """Embed the planes of a job into its folder; how many were made, and how many were asked for.

    Raises OSError if the folder lacks an embedding afterwards: a full disk must not pass for success.
    """
    predictor = cached_predictor(job.model, job.device)
    volume = replace(as_shown(the_volume(job.image, job.channel), job.image), window=job.window)
    cache = EmbeddingCache(0, 0, job.folder, None, predictor.runtime.device)
    made = 0
    for key in embed_planes(predictor, volume, job.planes, cache):
        made += key is not None
        if key is not None and key not in cache:
            raise OSError(f"the embeddings cannot be written to {job.folder}; make room there")
    return made, len(job.planes)


def run_embed(
    image: Path,
    folder: Path | None = None,
    *,
    model: str = "default",
    device: str = "auto",
    axis: int | None = None,
    channel: int | None = None,
    workers: int = 0,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Embed all planes of an image along one axis; shows progress on a terminal.

    Parameters
    ----------
    folder
        Made if it does not exist. None for the one beside the image where the plugin looks.
    axis
        The axis of the file to walk along; 0, or 2 for NIfTI, as windows do.
    workers
        Processes of a Dask cluster on this machine; 0 works in this process.
    scheduler
        Address of a running Dask scheduler, such as "tcp://host:8786"; `workers` does not count then.

    Returns
    -------
    "planes", "made" (the others were there already), "folder" and its "bytes".

    Raises
    ------
    ValueError
        For an unusable image, model, device, axis or scheduler.
    OSError
        If the folder cannot be written to.
    ImportError
        For a cluster without Dask.
    """
    volume = as_shown(read_volume(image, channel=channel), image).with_window()
    planes = _planes(volume, image, default_axis(image) if axis is None else axis)
    folder = embeddings_folder(image) if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    job = EmbedJob(image.resolve(), folder.resolve(), model, device, channel, volume.window, tuple(planes))
    size = 1 if scheduler is None and workers == 0 else BATCH
    jobs = [replace(job, planes=job.planes[i : i + size]) for i in range(0, len(planes), size)]
    made = 0
    with connected(scheduler, workers) as client, _bar(len(planes)) as bar:
        for new, count in spread(client, run_job, jobs):
            made += new
            bar.update(count)
    held = EmbeddingCache(0, 0, folder).nbytes.disk
    return {"planes": len(planes), "made": made, "folder": folder, "bytes": held}


def _planes(volume: Volume, image: Path, axis: int) -> list[Plane]:
    """The planes across an axis of the file, in the volume as it is shown."""
    turned = is_nifti(image) and 0 <= axis < volume.ndim
    return volume.planes(volume.ndim - 1 - axis if turned else axis)


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="plane", file=sys.stderr, disable=None)


@lru_cache(maxsize=1)
def cached_predictor(model: str, device: str) -> Predictor:
    """`load_predictor`, once in a worker's life."""
    return load_predictor(model, device=device)


@lru_cache(maxsize=1)
def the_volume(image: Path, channel: int | None) -> Volume:
    """`read_volume`, once for all jobs on one image."""
    return read_volume(image, channel=channel)
