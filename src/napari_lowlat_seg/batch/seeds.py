"""Every point an object: many seeds carried through a volume in one go, here or on a cluster.

Seeds that look at the same tile are one job, so a plane is embedded once for all of them. Where objects claim
the same pixel the lower number keeps it; so the labels do not depend on who was finished first. With a
consensus each object is carried along all three axes; a table beside the labels lists where they disagree.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.batch.embed import cached_predictor, the_volume
from napari_lowlat_seg.batch.jobs import connected, spread
from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.tiles import crop, tile_of
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.files import (
    check_labels_path,
    default_axis,
    label_output,
    read_volume,
)
from napari_lowlat_seg.propagation.consensus import Disagreement, consensus
from napari_lowlat_seg.propagation.propagate import propagate_many
from napari_lowlat_seg.propagation.seeds import seed_anchors

TOGETHER = 16
"""Seeds of a job: enough to share embeddings, few enough for a cluster to be busy."""

DISPUTES = ".disputes.csv"
"""What is added to the name of the labels for the table of places where the axes disagree."""

Part = tuple[int, Plane, tuple[int, int], np.ndarray]
"""(number, plane, corner in the plane, mask)."""


@dataclass(frozen=True)
class SeedJob:
    """Some seeds of one tile.

    Attributes
    ----------
    image, channel, window, model, device
        As in `precompute.EmbedJob`.
    axis
        Along which the objects are carried.
    region
        The tile.
    seeds
        (number, point): points have one coordinate per spatial axis, in the pixels of the whole volume.
    """

    image: Path
    channel: int | None
    window: tuple[float, float] | None
    model: str
    device: str
    axis: int
    region: BoundingBox
    seeds: tuple[tuple[int, tuple[float, ...]], ...]


Done = tuple[list[Part], list[tuple[int, Disagreement]]]
"""What a job has found, and where the axes disagree on it, by the object's number."""


def run_seed_job(job: SeedJob) -> Done:
    """All that the seeds of a job reach, each mask cut to its bounding box."""
    predictor = cached_predictor(job.model, job.device)
    volume = replace(the_volume(job.image, job.channel), window=job.window)
    planes = volume.planes(job.axis)
    part = crop(volume, job.region, planes[0])
    offset = np.zeros(volume.ndim)
    offset[list(planes[0].axes)] = job.region.corner
    points = [tuple(np.subtract(point, offset)) for _, point in job.seeds]
    anchors = {
        number: found
        for (number, _), found in zip(job.seeds, seed_anchors(predictor, part, points, job.axis).values())
    }
    found = [_boxed(n, plane, a.mask, job.region) for n, one in anchors.items() for plane, a in one.items()]
    for number, step in propagate_many(predictor, part, anchors, planes):
        if step.final:
            found.append(_boxed(number, step.plane, step.prediction.mask, job.region))
    return [one for one in found if one[3].size], []


def run_consensus_job(job: SeedJob) -> Done:
    """What the three axes agree on for the seeds of a job, and where they do not."""
    predictor = cached_predictor(job.model, job.device)
    volume = replace(the_volume(job.image, job.channel), window=job.window)
    parts: list[Part] = []
    spots: list[tuple[int, Disagreement]] = []
    for number, agreed in consensus(predictor, volume, {n: (point,) for n, point in job.seeds}).items():
        spots += [(number, spot) for spot in agreed.disagreements(volume.spacing)]
        top, left = (low for axis, low in enumerate(agreed.corner) if axis != job.axis)
        for place, mask in enumerate(np.moveaxis(agreed.mask, job.axis, 0), start=agreed.corner[job.axis]):
            if mask.any():
                parts.append((number, volume.plane_at([place], job.axis), (top, left), mask.copy()))
    return parts, spots


def run_seeds(
    image: Path,
    points: Path,
    output: Path,
    *,
    model: str = "default",
    device: str = "auto",
    axis: int | None = None,
    channel: int | None = None,
    agreed: bool = False,
    workers: int = 0,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Carry every point of a file through a 3-D image and write the labels: point i becomes label i, from 1.

    Parameters
    ----------
    points
        As of `read_points`.
    output
        As of `write_labels`, or an OME-Zarr for volumes larger than memory.
    axis, workers, scheduler
        As of `precompute.run_embed`.
    agreed
        Carry along all three axes; where they disagree is written beside the labels (`write_disputes`).

    Returns
    -------
    "objects", "voxels" (claimed ones counted once for each claim), "disputes" (0 without a consensus) and
    "seconds".

    Raises
    ------
    ValueError
        For unusable files, points outside the volume, and images that are not 3-D.
    OSError
        If the labels cannot be written.
    """
    started = time.perf_counter()
    volume = read_volume(image, channel=channel)
    check_labels_path(output)
    if volume.ndim != 3:
        raise ValueError(f"seeds are carried through a 3-D image; {image} has shape {volume.shape}")
    volume = volume.with_window()
    axis = default_axis(image) if axis is None else axis
    seeds = read_points(points, volume)
    jobs = [
        SeedJob(image.resolve(), channel, volume.window, model, device, axis, region, tuple(some))
        for region, group in _by_region(seeds, volume, axis).items()
        for some in (group[i : i + TOGETHER] for i in range(0, len(group), TOGETHER))
    ]
    voxels, disputes = 0, []
    work = run_consensus_job if agreed else run_seed_job
    with (
        label_output(output, volume) as labels,
        connected(scheduler, workers) as client,
        _bar(len(jobs)) as bar,
    ):
        for parts, spots in spread(client, work, jobs):
            disputes += spots
            for number, plane, corner, mask in parts:
                labels.write_mask(plane, mask, number, corner, lowest=True)
                voxels += int(np.count_nonzero(mask))
            bar.update()
    if agreed:
        write_disputes(output.with_name(output.name + DISPUTES), disputes)
    seconds = round(time.perf_counter() - started, 3)
    return {"objects": len(seeds), "voxels": voxels, "disputes": len(disputes), "seconds": seconds}


def write_disputes(path: Path, disputes: Sequence[tuple[int, Disagreement]]) -> None:
    """Write (object, place) as a table, the largest place first; napari opens it as points.

    Columns: index, axis-0, axis-1, axis-2 (the voxel), object, voxels, claimed-by (axes, such as "0+2").
    """
    order = sorted(disputes, key=lambda one: (-one[1].voxels, one[0], one[1].position))
    rows = [
        (i, *spot.position, number, spot.voxels, "+".join(map(str, spot.found_along)))
        for i, (number, spot) in enumerate(order)
    ]

    with atomic_file(path) as part, part.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("index", "axis-0", "axis-1", "axis-2", "object", "voxels", "claimed-by"))
        table.writerows(rows)


def read_points(path: Path, volume: Volume) -> list[tuple[float, ...]]:
    """The points of a .csv: one number per spatial axis; napari's own files, with header and index, too.

    Raises ValueError for other lines, no points, and points outside the volume.
    """
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and rows[0][-1].strip().startswith("axis"):
        index = rows[0][0].strip() == "index"
        rows = [row[index:] for row in rows[1:]]
    found = []
    for row in rows:
        try:
            point = tuple(float(text) for text in row)
        except ValueError:
            point = ()
        if len(point) != volume.ndim or not all(-0.5 <= x <= n - 0.5 for x, n in zip(point, volume.shape)):
            raise ValueError(
                f"{path} must hold {volume.ndim} numbers per line, inside a volume of {volume.shape}; got "
                f"{','.join(row)!r}"
            )
        found.append(point)
    if not found:
        raise ValueError(f"{path} must hold at least one point; it has none")
    return found


def _by_region(
    seeds: Sequence[tuple[float, ...]], volume: Volume, axis: int
) -> dict[BoundingBox, list[tuple[int, tuple[float, ...]]]]:
    row, col = volume.planes(axis)[0].axes
    groups: dict[BoundingBox, list[tuple[int, tuple[float, ...]]]] = {}
    for number, point in enumerate(seeds, start=1):
        region = tile_of((volume.shape[row], volume.shape[col]), [Click((point[row], point[col]))])
        groups.setdefault(region, []).append((number, point))
    return groups


def _boxed(number: int, plane: Plane, mask: np.ndarray, region: BoundingBox) -> Part:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return number, plane, region.corner, np.zeros((0, 0), bool)
    corner = (region.top + int(rows[0]), region.left + int(cols[0]))
    return number, plane, corner, mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].copy()


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="batch", file=sys.stderr, disable=None)
