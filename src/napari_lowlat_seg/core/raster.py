"""Pixels of shapes on a grid: disks, disks dragged along lines, filled outlines, area means. Plain numpy.

Time grows with the pixels that a shape covers, not with the grid. Why not skimage.draw:
docs/decisions/libraries.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from napari_lowlat_seg.core.boxes import EMPTY_PATCH, Patch


def patch_of(rows: np.ndarray, cols: np.ndarray) -> Patch:
    """The smallest bool patch that holds the listed pixels; 0 x 0 when there are none."""
    if rows.size == 0:
        return EMPTY_PATCH
    top, left = int(rows.min()), int(cols.min())
    pixels = np.zeros((int(rows.max()) - top + 1, int(cols.max()) - left + 1), bool)
    pixels[rows - top, cols - left] = True
    return Patch((top, left), pixels)


def disks(centres: np.ndarray, radius: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of a size x size grid within `radius` of integer centres (N, 2).

    The third array is the index of each pixel's centre, 0 to N - 1.
    """
    down, across = _disk(radius)
    rows, cols = centres[:, :1] + down, centres[:, 1:] + across  # (N, pixels of a disk)
    if centres.size and radius <= centres.min() and centres.max() < size - radius:
        owner = np.arange(len(centres)).repeat(len(down))
        return rows.ravel(), cols.ravel(), owner
    inside = (rows >= 0) & (rows < size) & (cols >= 0) & (cols < size)
    return rows[inside], cols[inside], inside.nonzero()[0]


@lru_cache(maxsize=8)
def _disk(radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of a disk, relative to its centre."""
    if radius < 0:
        raise ValueError(f"a disk needs a radius of 0 or more pixels; got {radius}")
    side = np.arange(-radius, radius + 1)
    down, across = np.nonzero(side[:, None] ** 2 + side**2 <= radius**2)
    return down - radius, across - radius


def swept(segments: np.ndarray, radius: float, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the grid pixels within `radius` of some segment; one pixel may be listed twice.

    Parameters
    ----------
    segments
        (N, 2, 2): start and end, each (row, col). A segment of length 0 is a disk. With integers the
        comparison distance^2 <= radius^2 is exact.
    radius
        0 or more, in pixels; the edge is part of the disk.
    shape
        Rows and columns of the grid; what lies outside is left out.

    Raises
    ------
    ValueError
        For a radius below 0.
    """
    if radius < 0:
        raise ValueError(f"a disk needs a radius of 0 or more pixels; got {radius}")
    # Candidates are squares around the middles of short pieces; short, so that few candidates are outside.
    step = max(float(radius), 1.0)
    owner, middles = _pieces(segments, step, radius + 1.0, shape)
    longest = np.abs(segments[:, 1] - segments[:, 0]).max(initial=0)
    reach = math.ceil(radius + (0.5 * step if longest > 0 else 0) + 0.5)
    span = np.arange(-reach, reach + 1)
    found = []
    for part in range(0, len(owner), 2048):  # bounds the memory of very long scribbles
        rows = middles[part : part + 2048, 0, None, None] + span[:, None]
        cols = middles[part : part + 2048, 1, None, None] + span[None, :]
        near = _within(segments[owner[part : part + 2048]], rows, cols, radius)
        near &= (rows >= 0) & (rows < shape[0]) & (cols >= 0) & (cols < shape[1])
        rows, cols = np.broadcast_to(rows, near.shape)[near], np.broadcast_to(cols, near.shape)[near]
        found.append((rows, cols))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate([rows for rows, _ in found]), np.concatenate([cols for _, cols in found])


def _within(segments: np.ndarray, rows: np.ndarray, cols: np.ndarray, radius: float) -> np.ndarray:
    """Whether pixels (P, rows, cols) are within `radius` of segments (P, 2, 2); exact, without division."""
    (ar, ac), (br, bc) = segments[:, 0].T[..., None, None], segments[:, 1].T[..., None, None]
    dr, dc = br - ar, bc - ac
    length2 = dr * dr + dc * dc
    along = (rows - ar) * dr + (cols - ac) * dc
    across = (rows - ar) * dc - (cols - ac) * dr
    to_start = (rows - ar) ** 2 + (cols - ac) ** 2
    to_end = (rows - br) ** 2 + (cols - bc) ** 2
    beside = (along > 0) & (along < length2) & (across * across <= radius * radius * length2)
    near: np.ndarray = (to_start <= radius * radius) | (to_end <= radius * radius) | beside
    return near


def _pieces(
    segments: np.ndarray, step: float, reach: float, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Segments cut into pieces of at most `step`: the segment of each, and its rounded middle (P, 2).

    Only the stretch within `reach` of the grid is cut up, so that a line far outside costs nothing.
    """
    start = segments[:, 0].astype(np.float64)
    delta = segments[:, 1].astype(np.float64) - start
    first, last = np.zeros(len(start)), np.ones(len(start))
    for axis in (0, 1):
        low, high = -reach - 1.0 - start[:, axis], shape[axis] + reach - start[:, axis]
        still = delta[:, axis] == 0
        rate = np.where(still, 1.0, delta[:, axis])
        enter, leave = np.minimum(low / rate, high / rate), np.maximum(low / rate, high / rate)
        first = np.maximum(first, np.where(still, np.where((low <= 0) & (high >= 0), 0.0, 2.0), enter))
        last = np.minimum(last, np.where(still, 1.0, leave))
    owner = np.flatnonzero(first <= last)
    first, share = first[owner], (last - first)[owner]
    lengths = np.linalg.norm(delta[owner], axis=1) * share
    counts = np.maximum(np.ceil(lengths / step), 1).astype(np.int64)
    number = _ramps(counts)
    t = np.repeat(first, counts) + (number + 0.5) * np.repeat(share / counts, counts)
    owner = np.repeat(owner, counts)
    return owner, np.floor(start[owner] + t[:, None] * delta[owner] + 0.5).astype(np.int64)


def _ramps(counts: np.ndarray) -> np.ndarray:
    """0 .. n-1 for every n of `counts`, concatenated."""
    ramps: np.ndarray = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return ramps


def filled(points: np.ndarray, size: int, otherwise: np.ndarray) -> Patch:
    """The pixels of a size x size grid whose centres are inside an outline (N, 2), by the even-odd rule.

    Centres on top and left edges are inside. If no centre is, the result is the pixels `otherwise` (N, 2)
    that are on the grid.
    """
    ends = np.roll(points, -1, axis=0)
    low, high = np.minimum(points[:, 0], ends[:, 0]), np.maximum(points[:, 0], ends[:, 0])
    # Rows r with low <= r < high: every row is crossed an even number of times by a closed outline.
    first = np.clip(np.ceil(low), 0, size).astype(np.int64)
    counts = np.clip(np.ceil(high), 0, size).astype(np.int64) - first
    edge = np.repeat(np.arange(len(points)), counts)
    if edge.size:
        row = first[edge] + _ramps(counts)
        slope = (ends[edge, 1] - points[edge, 1]) / (ends[edge, 0] - points[edge, 0])
        crossing = points[edge, 1] + (row - points[edge, 0]) * slope
        col = np.clip(np.ceil(crossing), 0, size).astype(np.int64)
        top, left = int(row.min()), int(col.min())
        flips = np.zeros((int(row.max()) - top + 1, int(col.max()) - left + 1), np.uint8)
        np.add.at(flips, (row - top, col - left), 1)
        pixels = (np.cumsum(flips & 1, axis=1, dtype=np.int64) & 1).astype(bool)[:, : size - left]
        if pixels.any():
            return Patch((top, left), pixels)
    inside = otherwise[np.all((otherwise >= 0) & (otherwise < size), axis=1)]
    return patch_of(inside[:, 0], inside[:, 1])


def overlap(start: int, stop: int, crop: int, scale: float, content: int) -> tuple[int, np.ndarray]:
    """Network pixels that show plane pixels start..stop-1: the first, and their edges relative to `start`.

    Parameters
    ----------
    crop
        First pixel of the frame's crop along this axis.
    scale
        Network pixels per plane pixel.
    content
        Network pixels that show the crop; what lies beyond them is padding.
    """
    first = min(max(math.floor((start - crop) * scale), 0), content)
    last = min(max(math.ceil((stop - crop) * scale), first), content)
    return first, np.arange(first, last + 1) / scale + crop - start


def area_mean(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Means of `values`, 0 to 1, along axis 0 over the intervals between `edges`; zero outside the values."""
    total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    at = np.clip(edges, 0, len(values))
    below = np.minimum(np.floor(at).astype(np.int64), len(values) - 1)
    heights = total[below] + (at - below)[:, None] * (total[below + 1] - total[below])
    # Rounding may leave values of -1e-17 or just above 1.
    mean: np.ndarray = np.clip(np.diff(heights, axis=0) / np.diff(edges)[:, None], 0, 1)
    return mean


def run_lengths(
    mask: np.ndarray, corner: tuple[int, int] = (0, 0), sides: tuple[int, int] | None = None
) -> list[int]:
    """A mask as COCO counts it: pixels that are False, True, False, ..., column by column.

    Parameters
    ----------
    mask
        (rows, cols) bool, the whole plane or a part of it.
    corner, sides
        (row, col) of its first pixel on the plane, and the plane's rows and columns; None for those of the
        mask. Costs no more for a large plane.

    Examples
    --------
    >>> run_lengths(np.array([[False, True], [False, True]]))
    [2, 2]
    >>> run_lengths(np.array([[True, True]]), (1, 0), (3, 2))
    [1, 1, 2, 1, 1]
    """
    height = mask.shape[0]
    rows, cols = mask.shape if sides is None else sides
    # A row of background below the part ends every run there: on the plane other pixels follow.
    gap = int(height < rows)
    columns = np.pad(mask, ((0, gap), (0, 0))).ravel(order="F")
    changes = np.flatnonzero(np.diff(columns, prepend=False, append=False))
    col, row = np.divmod(changes, height + gap)
    places = (corner[1] + col) * rows + corner[0] + row
    ends = np.concatenate([[0], places[places < rows * cols], [rows * cols]])
    return [int(n) for n in np.diff(ends)]


def from_run_lengths(counts: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """The (rows, cols) bool mask of `run_lengths`; raises ValueError unless the counts fill it."""
    if any(count < 0 for count in counts) or sum(counts) != shape[0] * shape[1]:
        raise ValueError(f"run lengths must add up to the {shape[0]} x {shape[1]} pixels of the mask")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, np.asarray(counts, np.int64)).reshape(shape, order="F")
