"""All planes of a volume embedded in advance, into a folder that the plugin finds.

They are embedded as the viewer shows them: NIfTI as (z, y, x), through the intensities that it would choose.

One process works plane by plane; workers take the planes in batches. Both may be stopped and started
again at any time, also by force: what is in the folder is not made again, and half a file is never read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from napari_lowlat_seg.batch.jobs import DEFAULTS, BatchJob, BatchSettings, run_jobs
from napari_lowlat_seg.core.volume import Plane, Volume, any_finite
from napari_lowlat_seg.inference.openvino_backend import CALLS
from napari_lowlat_seg.inference.prediction import Embedding
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.io.files import as_shown, default_axis, embeddings_folder, read_chosen
from napari_lowlat_seg.io.placed import geometry_of
from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache, EmbeddingKey

BATCH = 8
"""Planes of a job: long enough to be worth a message, short enough to lose."""


@dataclass(frozen=True, kw_only=True)
class EmbedJob(BatchJob):
    """Planes to embed, as items; `folder` is where the embeddings go, on storage that all workers share."""

    folder: Path


def embed_planes(
    predictor: Predictor, volume: Volume, planes: Sequence[Plane], cache: EmbeddingCache
) -> Iterator[EmbeddingKey | None]:
    """For each plane in turn its key if it had to be embedded, None if it was there. Reads each plane once.

    A plane without a finite pixel cannot be embedded and counts as there.

    Parameters
    ----------
    volume
        As a viewer shows it, with the intensity window to embed with.
    planes
        Of that volume.
    cache
        Gets the embeddings.
    """
    begun: deque[tuple[EmbeddingKey, Callable[[], Embedding] | None]] = deque()
    for plane in planes:
        pixels, spacing = volume.plane(plane), volume.plane_spacing(plane)
        key = EmbeddingKey.of_pixels(predictor, pixels, plane, volume.window, spacing)
        there = key in cache or not any_finite(pixels)
        begun.append((key, None if there else predictor.begin(pixels, volume.window, spacing)))
        if len(begun) > CALLS:  # as many are embedded while one is written
            yield _kept(cache, *begun.popleft())
    for last in begun:
        yield _kept(cache, *last)


def _kept(
    cache: EmbeddingCache, key: EmbeddingKey, embedding: Callable[[], Embedding] | None
) -> EmbeddingKey | None:
    if embedding is None:
        return None
    cache.ensure(key, embedding)
    return key


def run_embed_job(job: EmbedJob) -> int:
    """Embed the planes of a job into its folder; how many were not there yet.

    Raises
    ------
    OSError
        If the folder lacks an embedding afterwards: a full disk must not pass for success.
    """
    predictor = job.predictor()
    volume = replace(as_shown(job.volume()), window=job.window)
    cache = EmbeddingCache(0, 0, job.folder, None, predictor.runtime.device)
    made = 0
    for key in embed_planes(predictor, volume, job.items, cache):
        made += key is not None
        if key is not None and key not in cache:
            raise OSError(f"the embeddings cannot be written to {job.folder}; make room there")
    return made


def run_embed(
    image: Path,
    folder: Path | None = None,
    settings: BatchSettings = DEFAULTS,
) -> dict[str, Any]:
    """Embed all planes of an image along one axis; shows progress on a terminal.

    Parameters
    ----------
    image
        A file or an OME-Zarr, as in `read_volume`.
    folder
        Made if it does not exist. None for the one beside the image where the plugin looks.

    Returns
    -------
    dict
        "planes", "made" (the others were there already), "folder" and its "bytes".

    Raises
    ------
    ValueError
        For an unusable image, model, device, axis or scheduler.
    OSError
        If the folder cannot be written to.
    ImportError
        For a scheduler without Dask.
    """
    stored = read_chosen(image, settings.choice)
    planes = _planes(stored, default_axis(stored) if settings.axis is None else settings.axis)
    volume = as_shown(stored).with_window()
    folder = embeddings_folder(image) if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    job = EmbedJob(
        image=image.resolve(),
        settings=settings,
        window=volume.window,
        items=tuple(planes),
        folder=folder.resolve(),
    )
    made: list[int] = []
    run_jobs(run_embed_job, job.split(BATCH), made.append, settings, unit="plane")
    size = EmbeddingCache(0, 0, folder).nbytes.disk
    return {"planes": len(planes), "made": sum(made), "folder": folder, "bytes": size}


def _planes(stored: Volume, axis: int) -> list[Plane]:
    """The planes across an axis of the file, in the volume as it is shown."""
    known = 0 <= axis < stored.ndim
    return as_shown(stored).planes(geometry_of(stored).shown_order.index(axis) if known else axis)
