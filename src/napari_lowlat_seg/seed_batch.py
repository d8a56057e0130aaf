"""Every point an object: many seeds carried through a volume in one go, here or on a cluster.

Seeds that look at the same tile are one job, so a plane is embedded once for all of them. Where objects claim
the same pixel the lower number keeps it; so the labels do not depend on who was finished first.
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

from .io import check_labels_path, default_axis, is_ome_zarr, read_volume, write_labels
from .many_objects import propagate_many, seed_anchors
from .ome_zarr import OmeZarrLabels
from .precompute import the_predictor, the_volume
from .prompts import Click
from .region import Region, cut, region_of
from .spread import connected, spread
from .volume import Plane, Volume

TOGETHER = 16
"""Seeds of a job: enough to share embeddings, few enough for a cluster to be busy."""

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
    region: Region
    seeds: tuple[tuple[int, tuple[float, ...]], ...]


def run_seed_job(job: SeedJob) -> list[Part]:
    """All that the seeds of a job reach, each mask cut to its bounding box."""
    predictor = the_predictor(job.model, job.device)
    volume = replace(the_volume(job.image, job.channel), window=job.window)
    planes = volume.planes(job.axis)
    part = cut(volume, job.region, planes[0])
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
            found.append(_boxed(number, step.plane, step.answer.mask, job.region))
    return [one for one in found if one[3].size]


def run_seeds(
    image: Path,
    points: Path,
    output: Path,
    *,
    model: str = "default",
    device: str = "auto",
    axis: int | None = None,
    channel: int | None = None,
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

    Returns
    -------
    "objects", "voxels" (claimed ones counted once for each claim) and "seconds".

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
    labels = OmeZarrLabels(output, volume) if is_ome_zarr(output) else _ArrayLabels(volume)
    voxels = 0
    with connected(scheduler, workers) as client, _bar(len(jobs)) as bar:
        for parts in map(run_seed_job, jobs) if client is None else spread(client, run_seed_job, jobs):
            for number, plane, corner, mask in parts:
                labels.write(plane, mask, number, corner, lowest=True)
                voxels += int(np.count_nonzero(mask))
            bar.update()
    if isinstance(labels, _ArrayLabels):
        write_labels(output, labels.whole, volume)
    return {"objects": len(seeds), "voxels": voxels, "seconds": round(time.perf_counter() - started, 3)}


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
) -> dict[Region, list[tuple[int, tuple[float, ...]]]]:
    row, col = volume.planes(axis)[0].axes
    groups: dict[Region, list[tuple[int, tuple[float, ...]]]] = {}
    for number, point in enumerate(seeds, start=1):
        region = region_of((volume.shape[row], volume.shape[col]), [Click((point[row], point[col]))])
        groups.setdefault(region, []).append((number, point))
    return groups


def _boxed(number: int, plane: Plane, mask: np.ndarray, region: Region) -> Part:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return number, plane, region.corner, np.zeros((0, 0), bool)
    corner = (region.top + int(rows[0]), region.left + int(cols[0]))
    return number, plane, corner, mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].copy()


class _ArrayLabels:
    """Labels in memory, written as those of `OmeZarrLabels` are."""

    def __init__(self, volume: Volume) -> None:
        self.whole = np.zeros(volume.shape, np.uint32)

    def write(
        self, plane: Plane, mask: np.ndarray, label: int, corner: tuple[int, int], *, lowest: bool = True
    ) -> None:
        (top, left), (rows, cols) = corner, mask.shape
        part = self.whole[plane.key()][top : top + rows, left : left + cols]
        free = (part == 0) | (part > label) if lowest else np.ones_like(mask)
        part[mask & free] = label


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="batch", file=sys.stderr, disable=None)
