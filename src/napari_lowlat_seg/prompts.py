"""What a user draws, and how every kind of it becomes pixels for the network.

All coordinates are (row, col) in plane pixels, pixel centres on integers. Clicks and scribbles are strokes: disks of
network pixels, still or dragged. Boxes, polygons and masks are regions: filled. Nothing here changes its input, and
the cost of a prompt is the number of network pixels it covers: no distance image of the whole grid is ever made.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from napari_lowlat_seg.frame import Frame

Point = tuple[float, float]
Bounds = tuple[float, float, float, float]
Regions = Literal["prior", "channel"]

REGION_VALUE = 0.5
"""What a region writes into the channel of its sign when regions="channel"; strokes write 1."""


@dataclass(frozen=True, eq=False)
class Footprint:
    """Covered network pixels: `pixels` (rows, cols) bool, whose first pixel is at `offset` (row, col) of the grid."""

    offset: tuple[int, int]
    pixels: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        """The numpy key of this footprint's rectangle in an S x S array."""
        (row, col), (rows, cols) = self.offset, self.pixels.shape
        return slice(row, row + rows), slice(col, col + cols)

    @classmethod
    def of(cls, rows: np.ndarray, cols: np.ndarray) -> Footprint:
        """The smallest footprint that holds the listed pixels; 0 x 0 when there are none."""
        if rows.size == 0:
            return cls((0, 0), np.zeros((0, 0), bool))
        top, left = int(rows.min()), int(cols.min())
        pixels = np.zeros((int(rows.max()) - top + 1, int(cols.max()) - left + 1), bool)
        pixels[rows - top, cols - left] = True
        return cls((top, left), pixels)


@dataclass(frozen=True)
class Click:
    """One point: "this belongs to the object", or with positive=False "this does not"."""

    at: Point
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", _points([self.at], 1, "a click")[0])

    @property
    def points(self) -> tuple[Point, ...]:
        """The point, as the only one of a stroke."""
        return (self.at,)

    def bounds(self) -> Bounds:
        """(r0, c0, r1, c1) in plane pixels, both corners part of it."""
        return (*self.at, *self.at)

    def footprint(self, frame: Frame, radius: int) -> Footprint:
        """The disk dr*dr + dc*dc <= radius*radius around the network pixel clicked, cut off by the grid."""
        return Footprint.of(*swept(_segments(self, frame), radius, (frame.size, frame.size)))


@dataclass(frozen=True)
class Scribble:
    """A line drawn by hand: one point or more, joined by straight pieces."""

    points: tuple[Point, ...]
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _points(self.points, 1, "a scribble"))

    def bounds(self) -> Bounds:
        """(r0, c0, r1, c1) in plane pixels, both corners part of it."""
        return _bounds(self.points)

    def footprint(self, frame: Frame, radius: int) -> Footprint:
        """The disk of a click dragged along the line through the network pixels of the points."""
        return Footprint.of(*swept(_segments(self, frame), radius, (frame.size, frame.size)))


@dataclass(frozen=True)
class Box:
    """A rectangle around the object, given by two opposite corners in any order."""

    start: Point
    end: Point
    positive: bool = True

    def __post_init__(self) -> None:
        start, end = _points([self.start, self.end], 2, "a box")
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "end", end)

    @property
    def points(self) -> tuple[Point, ...]:
        """The two corners."""
        return (self.start, self.end)

    def bounds(self) -> Bounds:
        """(r0, c0, r1, c1) in plane pixels, both corners part of it."""
        return _bounds(self.points)

    def footprint(self, frame: Frame, radius: int = 0) -> Footprint:
        """Network pixels whose centre lies in the box, edges included; at least the one at its middle."""
        corners = np.sort(frame.to_network(self.points), axis=0)
        first = np.ceil(corners[0]).astype(np.int64)
        last = np.floor(corners[1]).astype(np.int64)
        # A box between two pixel centres would vanish when the plane is shrunk.
        middle = np.floor(corners.mean(axis=0) + 0.5).astype(np.int64)
        empty = last < first
        first, last = np.where(empty, middle, first), np.where(empty, middle, last)
        first, last = np.maximum(first, 0), np.minimum(last, frame.size - 1)
        rows, cols = (int(n) for n in np.maximum(last - first + 1, 0))
        return Footprint((int(first[0]), int(first[1])), np.ones((rows, cols), bool))


@dataclass(frozen=True)
class Polygon:
    """A closed outline of three points or more; where it crosses itself, the even-odd rule says what is inside."""

    points: tuple[Point, ...]
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _points(self.points, 3, "a polygon"))

    def bounds(self) -> Bounds:
        """(r0, c0, r1, c1) in plane pixels, both corners part of it."""
        return _bounds(self.points)

    def footprint(self, frame: Frame, radius: int = 0) -> Footprint:
        """Network pixels whose centre lies inside, top and left edges included; at least the one nearest its middle."""
        return _filled(frame.to_network(self.points), frame.size)


@dataclass(frozen=True, eq=False)
class Mask:
    """A region given by pixels of the whole plane: (H, W) bool, or float from 0 to 1 for a soft one.

    The pixels are copied and made read-only. Two masks are equal when sign, type and content are.
    """

    pixels: np.ndarray
    positive: bool = True

    def __post_init__(self) -> None:
        pixels = np.array(self.pixels)
        if pixels.ndim != 2 or pixels.dtype.kind not in "bf":
            raise ValueError(f"a mask must be (H, W) bool or float; got shape {pixels.shape}, type {pixels.dtype}")
        pixels = pixels if pixels.dtype.kind == "b" else pixels.astype(np.float32)
        if pixels.dtype.kind == "f" and not bool(np.all((pixels >= 0) & (pixels <= 1))):
            raise ValueError(f"a soft mask must lie between 0 and 1; got {pixels.min()} to {pixels.max()}")
        if not pixels.any():
            raise ValueError(f"a mask needs at least one pixel that is set; all {pixels.size} are 0")
        pixels.setflags(write=False)
        about = f"{pixels.shape} {pixels.dtype.str} {self.positive} ".encode()
        object.__setattr__(self, "pixels", pixels)
        object.__setattr__(self, "_digest", hashlib.blake2b(about + pixels.tobytes(), digest_size=16).digest())
        object.__setattr__(self, "_spans", (_span(pixels.any(axis=1)), _span(pixels.any(axis=0))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self._digest == other._digest  # type: ignore[attr-defined, no-any-return]

    def __hash__(self) -> int:
        return hash(self._digest)  # type: ignore[attr-defined]

    def bounds(self) -> Bounds:
        """(r0, c0, r1, c1) in plane pixels of the pixels that are set, both corners part of it."""
        (top, bottom), (left, right) = self._spans  # type: ignore[attr-defined]
        return (float(top), float(left), float(bottom - 1), float(right - 1))

    def footprint(self, frame: Frame, radius: int = 0) -> Footprint:
        """Network pixels that are covered by half or more; at least the one that is covered most."""
        offset, share = self.share(frame)
        covered = share >= 0.5
        if share.size and share.max() > 0 and not covered.any():
            covered = share == share.max()
        return Footprint(offset, covered)

    def share(self, frame: Frame) -> tuple[tuple[int, int], np.ndarray]:
        """The mask on the network's grid: (row, col) of a rectangle, and its float32 pixels.

        Each value is the mean of the mask over the area of the plane that the network pixel shows.
        """
        (top, bottom), (left, right) = self._spans  # type: ignore[attr-defined]
        rows = _overlap(top, bottom, frame.crop[0], frame.scale[0], frame.content[0])
        cols = _overlap(left, right, frame.crop[1], frame.scale[1], frame.content[1])
        pixels = self.pixels[top:bottom, left:right].astype(np.float64)
        share = _area_mean(_area_mean(pixels, rows[1]).T, cols[1]).T
        return (rows[0], cols[0]), share.astype(np.float32)


Stroke = Click | Scribble
Region = Box | Polygon | Mask
Prompt = Click | Scribble | Box | Polygon | Mask


def dense_maps(
    prompts: Iterable[Prompt], frame: Frame, *, radius: int = 5, regions: Regions = "prior"
) -> np.ndarray:
    """All prompts as the network's three maps: float32 (3, S, S). Does not mutate.

    Channel 0 is the region prior, to be used where there is no previous mask; 1 and 2 hold positive and negative
    strokes as disks of `radius` network pixels with value 1 (SegNext, `segnext` disks with norm_radius 5).

    With regions="prior", positive regions set the prior to 1 (a soft mask to its values where they are higher) and
    negative regions cut it to 0, in the order given. With regions="channel" the prior stays 0 and a region writes
    0.5 into the channel of its sign where no stroke is.

    What lies inside the plane but outside the frame's crop leaves no trace. Raises ValueError for a prompt outside
    the plane (half a pixel of tolerance), for a mask of another shape, and for unknown `regions`.
    """
    if regions not in ("prior", "channel"):
        raise ValueError(f"regions must be 'prior' or 'channel'; got {regions!r}")
    prompts = tuple(prompts)
    for prompt in prompts:
        _check_inside(prompt, frame)
    maps = np.zeros((3, frame.size, frame.size), np.float32)
    for prompt in prompts:
        if isinstance(prompt, Box | Polygon | Mask):
            _fill(maps, prompt, frame, regions)
    # Strokes are 1, the largest value: they may come last and all together, whatever the order of the prompts.
    for channel, sign in ((1, True), (2, False)):
        strokes = [_segments(p, frame) for p in prompts if isinstance(p, Click | Scribble) and p.positive is sign]
        if strokes:
            rows, cols = swept(np.concatenate(strokes), radius, (frame.size, frame.size))
            maps[channel, rows, cols] = 1.0
    return maps


def swept(segments: np.ndarray, radius: float, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the grid pixels within `radius` of some segment (a pixel may be listed more than once).

    Parameters
    ----------
    segments
        (N, 2, 2): start and end, each (row, col). A segment of length 0 is a disk. With integers the
        comparison distance^2 <= radius^2 is exact.
    radius
        0 or more, in pixels; the edge is part of the disk.
    shape
        Rows and columns of the grid; what lies outside is left out.
    """
    if radius < 0:
        raise ValueError(f"a disk needs a radius of 0 or more pixels; got {radius}")
    # Short pieces keep the candidates, small squares around the pieces' middles, close to what is covered.
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
    """Whether pixels (P, rows, cols) are within the radius of their segments (P, 2, 2), without a division."""
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
    """Cut segments into pieces of at most `step`: which segment each belongs to, and its rounded middle (P, 2).

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
    first, last = first[owner], last[owner]
    counts = np.maximum(np.ceil(np.linalg.norm(delta[owner], axis=1) * (last - first) / step), 1).astype(np.int64)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    t = np.repeat(first, counts) + (number + 0.5) / np.repeat(counts, counts) * np.repeat(last - first, counts)
    owner = np.repeat(owner, counts)
    return owner, np.floor(start[owner] + t[:, None] * delta[owner] + 0.5).astype(np.int64)


def _segments(stroke: Stroke, frame: Frame) -> np.ndarray:
    """The stroke as straight pieces between network pixels: int64 (N, 2, 2); a point is a piece of length 0."""
    pixels = frame.pixels(stroke.points)
    # A hand moves slowly: on the network's grid many neighbours fall on the same pixel.
    pixels = pixels[np.r_[True, np.any(pixels[1:] != pixels[:-1], axis=1)]]
    if len(pixels) == 1:
        return np.stack([pixels, pixels], axis=1)
    return np.stack([pixels[:-1], pixels[1:]], axis=1)


def _fill(maps: np.ndarray, region: Region, frame: Frame, regions: Regions) -> None:
    if regions == "channel":
        footprint = region.footprint(frame)
        target = maps[1 if region.positive else 2][footprint.window]
        np.maximum(target, REGION_VALUE * footprint.pixels, out=target)
        return
    if isinstance(region, Mask) and region.pixels.dtype.kind == "f":
        (row, col), share = region.share(frame)
        window = (slice(row, row + share.shape[0]), slice(col, col + share.shape[1]))
    else:
        footprint = region.footprint(frame)
        window, share = footprint.window, footprint.pixels.astype(np.float32)
    target = maps[0][window]
    if region.positive:
        np.maximum(target, share, out=target)
    else:
        np.minimum(target, 1 - share, out=target)


def _filled(points: np.ndarray, size: int) -> Footprint:
    """Even-odd fill of a polygon (N, 2) in network pixels: pixel centres, half-open edges, at least one pixel."""
    ends = np.roll(points, -1, axis=0)
    low, high = np.minimum(points[:, 0], ends[:, 0]), np.maximum(points[:, 0], ends[:, 0])
    # Rows r with low <= r < high: every row is crossed an even number of times by a closed outline.
    first = np.clip(np.ceil(low), 0, size).astype(np.int64)
    counts = np.clip(np.ceil(high), 0, size).astype(np.int64) - first
    edge = np.repeat(np.arange(len(points)), counts)
    if edge.size:
        row = first[edge] + np.arange(edge.size) - np.repeat(np.cumsum(counts) - counts, counts)
        slope = (ends[edge, 1] - points[edge, 1]) / (ends[edge, 0] - points[edge, 0])
        crossing = points[edge, 1] + (row - points[edge, 0]) * slope
        col = np.clip(np.ceil(crossing), 0, size).astype(np.int64)
        top, left = int(row.min()), int(col.min())
        flips = np.zeros((int(row.max()) - top + 1, int(col.max()) - left + 1), np.uint8)
        np.add.at(flips, (row - top, col - left), 1)
        pixels = (np.cumsum(flips & 1, axis=1, dtype=np.int64) & 1).astype(bool)[:, : size - left]
        if pixels.any():
            return Footprint((top, left), pixels)
    # Too thin to hold a pixel centre: the pixel of the vertex nearest the middle stands for it.
    nearest = points[np.argmin(np.sum((points - points.mean(axis=0)) ** 2, axis=1))]
    row_, col_ = np.floor(nearest + 0.5).astype(np.int64)
    inside = 0 <= row_ < size and 0 <= col_ < size
    return Footprint((int(row_), int(col_)) if inside else (0, 0), np.ones((1, 1) if inside else (0, 0), bool))


def _overlap(start: int, stop: int, crop: int, scale: float, content: int) -> tuple[int, np.ndarray]:
    """Network pixels that show plane pixels start..stop-1: the first, and all edges relative to `start`."""
    first = min(max(math.floor((start - crop) * scale), 0), content)
    last = min(max(math.ceil((stop - crop) * scale), first), content)
    return first, np.arange(first, last + 1) / scale + crop - start


def _area_mean(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Means of `values` along axis 0 over the intervals between `edges`; zero outside the values."""
    total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    at = np.clip(edges, 0, len(values))
    below = np.minimum(np.floor(at).astype(np.int64), len(values) - 1)
    heights = total[below] + (at - below)[:, None] * (total[below + 1] - total[below])
    # Rounding may leave values of -1e-17 or just above 1.
    return np.clip(np.diff(heights, axis=0) / np.diff(edges)[:, None], 0, 1)


def _check_inside(prompt: Prompt, frame: Frame) -> None:
    if isinstance(prompt, Mask):
        if prompt.pixels.shape != frame.shape:
            raise ValueError(f"a mask must have the plane's shape {frame.shape}; got {prompt.pixels.shape}")
        return
    points = np.asarray(prompt.points)
    outside = np.any((points < -0.5) | (points > np.asarray(frame.shape) - 0.5), axis=1)
    if outside.any():
        row, col = (float(v) for v in points[np.argmax(outside)])
        raise ValueError(
            f"{type(prompt).__name__} at (row, col) = ({row:g}, {col:g}) is outside the plane of shape {frame.shape}; "
            f"rows reach from 0 to {frame.shape[0] - 1}, columns from 0 to {frame.shape[1] - 1}"
        )


def _points(points: Sequence[Any], least: int, what: str) -> tuple[Point, ...]:
    try:
        array = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < least or not np.isfinite(array).all():
        raise ValueError(f"{what} needs {least} or more finite points (row, col); got {points!r:.200}")
    return tuple((float(row), float(col)) for row, col in array)


def _bounds(points: tuple[Point, ...]) -> Bounds:
    rows, cols = [row for row, _ in points], [col for _, col in points]
    return (min(rows), min(cols), max(rows), max(cols))


def _span(used: np.ndarray) -> tuple[int, int]:
    where = np.flatnonzero(used)
    return int(where[0]), int(where[-1]) + 1
