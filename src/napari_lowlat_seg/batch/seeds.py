"""Each point becomes an object: many seeds propagated through a volume at once, here or on a cluster.

Seeds in the same tile are one job, so a plane is embedded once for all of them. Where objects claim the same
pixel the lower number keeps it; so the labels do not depend on which job was done first. With a consensus
each object is propagated along all three axes; a table beside the labels lists where they disagree.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.batch.jobs import DEFAULTS, BatchJob, BatchSettings, check_new, run_jobs
from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.core.boxes import EMPTY_BOX, BoundingBox, Patch, tile_of
from napari_lowlat_seg.core.masks import THRESHOLD, PostProcessing, postprocess_mask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.inference.prediction import Prediction
from napari_lowlat_seg.io.files import check_labels_path, default_axis, label_output, read_chosen, shown_axes
from napari_lowlat_seg.io.points import read_seeds
from napari_lowlat_seg.propagation.consensus import Disagreement, consensus
from napari_lowlat_seg.propagation.propagate import propagate_many
from napari_lowlat_seg.propagation.seeds import object_anchors, object_clicks

BATCH = 16
"""Seeds of a job at most: enough to share embeddings, few enough for a cluster to be busy."""

DISPUTES = ".disputes.csv"
"""What is added to the name of the labels for the table of places where the axes disagree."""

PLAIN = PostProcessing()

Seed = tuple[int, tuple[tuple[float, ...], ...]]
"""(number, points of the object): one coordinate per spatial axis, in the voxels of the whole volume."""

ObjectMask = tuple[int, Plane, Patch]
"""(number, plane, mask on the plane, cut to its bounding box)."""

SeedResult = tuple[list[ObjectMask], list[tuple[int, Disagreement]]]
"""What a job has found, and where the axes disagree on it, by the object's number."""


@dataclass(frozen=True, kw_only=True)
class SeedJob(BatchJob):
    """Seeds of one tile, as items (`Seed`).

    Attributes
    ----------
    axis
        The axis along which the objects are propagated.
    tile
        Of every plane.
    finish
        How probabilities become masks.
    """

    axis: int
    tile: BoundingBox
    finish: PostProcessing = PLAIN


def run_seed_job(job: SeedJob) -> SeedResult:
    """Propagate the seeds of a job along its axis."""
    predictor, volume = job.predictor(), job.volume()
    planes = volume.planes(job.axis)
    part = volume.cropped(job.tile, planes[0])
    offset = np.zeros(volume.ndim)
    offset[list(planes[0].axes)] = job.tile.corner
    objects = {number: [tuple(np.subtract(at, offset)) for at in points] for number, points in job.items}
    clicks = object_clicks(part, objects, job.axis)
    anchors = object_anchors(predictor, part, objects, job.axis)
    masks: list[ObjectMask] = []

    def keep(number: int, plane: Plane, prediction: Prediction) -> None:
        usual = job.finish.threshold == THRESHOLD
        mask = prediction.mask if usual else prediction.probability > job.finish.threshold
        given = clicks.get(plane, {}).get(number, ())
        patch = postprocess_mask(Patch.of(mask), mask.shape, job.finish, given)
        tight = BoundingBox.of(patch.pixels)
        if not tight.is_empty:  # copied, so that the whole tile can go
            corner = tight.shifted(*patch.corner).shifted(*job.tile.corner).corner
            masks.append((number, plane, Patch(corner, patch.pixels[tight.slices].copy())))

    for number, one in anchors.items():
        for plane, anchor in one.items():
            keep(number, plane, anchor)
    for number, step in propagate_many(predictor, part, anchors, planes):
        if step.final:
            keep(number, step.plane, step.prediction)
    return masks, []


def run_consensus_job(job: SeedJob) -> SeedResult:
    """Propagate the seeds of a job along all three axes: what they agree on, and where they do not."""
    predictor, volume = job.predictor(), job.volume()
    clicks = object_clicks(volume, dict(job.items), job.axis)
    masks: list[ObjectMask] = []
    spots: list[tuple[int, Disagreement]] = []
    for number, agreed in consensus(predictor, volume, dict(job.items)).items():
        spots += [(number, spot) for spot in agreed.disagreements(volume.spacing)]
        top, left = (low for axis, low in enumerate(agreed.corner) if axis != job.axis)
        for place, mask in enumerate(np.moveaxis(agreed.mask, job.axis, 0), start=agreed.corner[job.axis]):
            plane = volume.plane_at([place], job.axis)
            given = clicks.get(plane, {}).get(number, ())
            patch = postprocess_mask(Patch((top, left), mask), volume.sides(plane), job.finish, given)
            if patch.pixels.any():
                masks.append((number, plane, patch))
    return masks, spots


def run_seeds(
    image: Path,
    points: Path,
    output: Path,
    settings: BatchSettings = DEFAULTS,
    *,
    agreed: bool = False,
    unit: str | None = None,
    finish: PostProcessing = PLAIN,
) -> dict[str, Any]:
    """Propagate every object of a file through a 3-D image and write labels: object i gets label i, from 1.

    An object is a point of a table, or a tree of a skeleton with all its nodes as clicks.

    Parameters
    ----------
    image
        A file or an OME-Zarr, as in `read_volume`.
    points
        As of `read_seeds`.
    output
        As of `write_labels`, or an OME-Zarr for volumes larger than memory.
    settings
        Model, axis, choice, and where the work is done.
    agreed
        Propagate along all three axes and keep what two agree on; where they disagree is written beside the
        labels (`write_disputes`).
    unit
        Of the coordinates in a skeleton, as `read_seeds` takes it.
    finish
        How probabilities become masks, plane by plane.

    Returns
    -------
    dict
        "objects", "voxels" (claimed ones counted once for each claim), "disputes" (0 without a consensus) and
        "seconds".

    Raises
    ------
    ValueError
        For unusable files, points outside the volume, images that are not 3-D, and a threshold of one's own
        for a consensus, which is of masks.
    OSError
        If the labels cannot be written.
    ImportError
        For a scheduler without Dask, or a format whose library is not installed.
    """
    started = time.perf_counter()
    volume = read_chosen(image, settings.choice)
    check_labels_path(output, [("image", image), ("file of points", points)], volume)
    table = output.with_name(output.name + DISPUTES)
    if agreed and table.exists() and points.exists() and table.samefile(points):
        raise ValueError(f"{points} is where the disputes are written; give the points another name")
    if volume.ndim != 3:
        raise ValueError(f"seeds are propagated through a 3-D image; {image} has shape {volume.shape}")
    if agreed and finish.threshold != THRESHOLD:
        raise ValueError(
            f"a consensus is of masks at the usual threshold of {THRESHOLD}, got {finish.threshold}; "
            "leave out the threshold or the consensus"
        )
    check_new(output, settings.replace)
    volume = volume.with_window()
    axis = default_axis(volume) if settings.axis is None else settings.axis
    volume.planes(axis)  # refuses an axis that is not there
    shown = shown_axes(volume, image)
    found = read_seeds(points, volume, axis, shown, unit)
    seeds: list[Seed] = [(number, tuple(one)) for number, one in enumerate(found, start=1)]
    job = SeedJob(
        image=image.resolve(),
        settings=settings,
        window=volume.window,
        axis=axis,
        tile=EMPTY_BOX,
        finish=finish,
    )
    by_tile = _by_tile(seeds, volume, axis)
    shares = -(-settings.workers // max(1, len(by_tile))) or 1  # of a tile, so that every process has one
    jobs = [
        part
        for tile, some in by_tile.items()
        for part in replace(job, tile=tile, items=tuple(some)).split(min(BATCH, -(-len(some) // shares)))
    ]
    voxels, disputes = 0, []

    def write(result: SeedResult) -> None:
        nonlocal voxels
        masks, spots = result
        disputes.extend(spots)
        for number, plane, patch in masks:
            labels.write_mask(plane, patch.pixels, number, patch.corner, lowest=True)
            voxels += int(np.count_nonzero(patch.pixels))

    work = run_consensus_job if agreed else run_seed_job
    with label_output(output, volume) as labels:
        run_jobs(work, jobs, write, settings, unit="seed")
        if agreed:  # before the labels have their name: there are none without the table
            write_disputes(table, disputes, shown)
    seconds = round(time.perf_counter() - started, 3)
    return {"objects": len(seeds), "voxels": voxels, "disputes": len(disputes), "seconds": seconds}


def write_disputes(
    path: Path, disputes: Sequence[tuple[int, Disagreement]], shown: Sequence[int] = (0, 1, 2)
) -> None:
    """Write (object, place) as a table, the largest place first; napari opens it as points.

    Columns: index, axis-0, axis-1, axis-2 (the voxel), object, voxels, claimed-by (axes, such as "0+2"). Axes
    are those of the image as napari shows it.

    Parameters
    ----------
    shown
        The axes of the volume in the order in which napari shows them.
    """
    order = sorted(disputes, key=lambda one: (-one[1].voxels, one[0], one[1].position))
    rows = [
        (
            i,
            *(spot.position[axis] for axis in shown),
            number,
            spot.voxels,
            "+".join(str(at) for at, axis in enumerate(shown) if axis in spot.found_along),
        )
        for i, (number, spot) in enumerate(order)
    ]
    with atomic_file(path) as part, part.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("index", "axis-0", "axis-1", "axis-2", "object", "voxels", "claimed-by"))
        table.writerows(rows)


def _by_tile(seeds: Sequence[Seed], volume: Volume, axis: int) -> dict[BoundingBox, list[Seed]]:
    first = volume.planes(axis)[0]
    row, col = first.axes
    groups: dict[BoundingBox, list[Seed]] = {}
    for number, points in seeds:
        tile = tile_of(volume.sides(first), [Click((point[row], point[col])) for point in points])
        groups.setdefault(tile, []).append((number, points))
    return groups
