"""What a user draws, and how every kind of it becomes pixels for the network.

All coordinates are (row, col) in plane pixels, pixel centres on integers. Clicks and scribbles are strokes:
disks of network pixels, still or dragged. Boxes, polygons and masks are regions: filled. Nothing here changes
its input, and a prompt costs as much as the network pixels it covers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.raster import area_mean, disks, filled, overlap, patch_of, swept

Point = tuple[float, float]
Bounds = tuple[float, float, float, float]
Regions = Literal["prior", "channel"]

REGION_VALUE = 0.5
"""What a region writes into the channel of its sign when regions="channel"; strokes write 1."""


class _Drawn:
    """What all prompts that are made of points can do."""

    if TYPE_CHECKING:

        @property
        def points(self) -> tuple[Point, ...]: ...

    def with_points(self, points: Sequence[Point]) -> Self:
        """This prompt at other points (row, col), as many as it has now; its sign stays."""
        return replace(self, points=tuple(points))  # type: ignore[type-var]

    def bounds(self) -> Bounds:
        """(r0, c0, r1, c1) in plane pixels, both corners part of it."""
        rows, cols = [row for row, _ in self.points], [col for _, col in self.points]
        return (min(rows), min(cols), max(rows), max(cols))

    def cropped(self, box: BoundingBox) -> Self:
        """This prompt in the pixels of a part of the plane; its points may lie beside that part."""
        return self.with_points([(row - box.top, col - box.left) for row, col in self.points])


@dataclass(frozen=True)
class Click(_Drawn):
    """One point: "this belongs to the object", or with positive=False "this does not"."""

    at: Point
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", _points([self.at], 1, "a click")[0])

    @property
    def points(self) -> tuple[Point, ...]:
        """The point, as the only one of a stroke."""
        return (self.at,)

    def with_points(self, points: Sequence[Point]) -> Self:
        """This click at another point, the only one of `points`; its sign stays."""
        return replace(self, at=points[0])

    def footprint(self, frame: Frame, radius: int) -> Patch:
        """The disk dr*dr + dc*dc <= radius*radius around the network pixel clicked, cut off by the grid."""
        return patch_of(*swept(_segments(self, frame), radius, (frame.size, frame.size)))


@dataclass(frozen=True)
class Scribble(_Drawn):
    """A line drawn by hand: one point or more, joined by straight pieces."""

    points: tuple[Point, ...]
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _points(self.points, 1, "a scribble"))

    def footprint(self, frame: Frame, radius: int) -> Patch:
        """The disk of a click dragged along the line through the network pixels of the points."""
        return patch_of(*swept(_segments(self, frame), radius, (frame.size, frame.size)))


@dataclass(frozen=True)
class Box(_Drawn):
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

    def with_points(self, points: Sequence[Point]) -> Self:
        """This box with two other corners; its sign stays."""
        return replace(self, start=points[0], end=points[1])

    def footprint(self, frame: Frame, radius: int = 0) -> Patch:
        """Network pixels whose centre lies in the box, edges included; at least the one at its middle."""
        corners = np.sort(frame.to_network(self.points), axis=0)
        first = np.ceil(corners[0]).astype(np.int64)
        last = np.floor(corners[1]).astype(np.int64)
        # A box between two pixel centres would vanish when the plane is shrunk.
        middle = frame.holding([np.mean(self.points, axis=0)])[0]
        empty = last < first
        first, last = np.where(empty, middle, first), np.where(empty, middle, last)
        first, last = np.maximum(first, 0), np.minimum(last, frame.size - 1)
        rows, cols = (int(n) for n in np.maximum(last - first + 1, 0))
        return Patch((int(first[0]), int(first[1])), np.ones((rows, cols), bool))


@dataclass(frozen=True)
class Polygon(_Drawn):
    """A closed outline of three points or more; where it crosses itself, the even-odd rule decides."""

    points: tuple[Point, ...]
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _points(self.points, 3, "a polygon"))

    def footprint(self, frame: Frame, radius: int = 0) -> Patch:
        """Network pixels whose centre lies inside, top and left edges included; at least one pixel."""
        vertices = np.asarray(self.points)
        # Too thin to hold a pixel centre, it is still where its most central vertex is.
        central = np.argmin(np.sum((vertices - vertices.mean(axis=0)) ** 2, axis=1))
        return filled(frame.to_network(vertices), frame.size, frame.holding(vertices[[central]]))


@dataclass(frozen=True, eq=False)
class Mask:
    """A region given by pixels of the whole plane: (H, W) bool, or float from 0 to 1 for a soft one.

    The pixels are copied and made read-only. Two masks are equal when sign, type and content are.
    """

    pixels: np.ndarray
    positive: bool = True
    _digest: bytes = field(init=False, repr=False)
    _box: BoundingBox = field(init=False, repr=False)

    def __post_init__(self) -> None:
        pixels = np.array(self.pixels)
        if pixels.ndim != 2 or pixels.dtype.kind not in "bf":
            raise ValueError(
                f"a mask must be (H, W) bool or float; got {pixels.dtype} of shape {pixels.shape}"
            )
        pixels = pixels if pixels.dtype.kind == "b" else pixels.astype(np.float32)
        if pixels.dtype.kind == "f" and not bool(np.all((pixels >= 0) & (pixels <= 1))):
            raise ValueError(f"a soft mask must lie between 0 and 1; got {pixels.min()} to {pixels.max()}")
        if not pixels.any():
            raise ValueError(f"a mask needs at least one pixel that is set; all {pixels.size} are 0")
        pixels.setflags(write=False)
        about = f"{pixels.shape} {pixels.dtype.str} {self.positive} ".encode()
        object.__setattr__(self, "pixels", pixels)
        object.__setattr__(
            self, "_digest", hashlib.blake2b(about + pixels.tobytes(), digest_size=16).digest()
        )
        object.__setattr__(self, "_box", BoundingBox.of(pixels))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def bounds(self) -> Bounds:
        """(r0, c0, r1, c1) in plane pixels of the pixels that are set, both corners part of it."""
        top, left, bottom, right = self._box
        return (float(top), float(left), float(bottom - 1), float(right - 1))

    def cropped(self, box: BoundingBox) -> Mask:
        """This mask on a part of the plane, where at least one pixel of it must be set."""
        return replace(self, pixels=self.pixels[box.slices])

    def footprint(self, frame: Frame, radius: int = 0) -> Patch:
        """Network pixels that are covered by half or more; at least the one that is covered most."""
        offset, share = self.share(frame)
        covered = share >= 0.5
        if share.size and share.max() > 0 and not covered.any():
            covered = share == share.max()
        return Patch(offset, covered)

    def share(self, frame: Frame) -> tuple[tuple[int, int], np.ndarray]:
        """The mask on the network's grid: (row, col) of a rectangle, and its float32 pixels.

        Each value is the mean of the mask over the area of the plane that the network pixel shows.
        """
        top, left, bottom, right = self._box
        rows = overlap(top, bottom, frame.crop[0], frame.scale[0], frame.content[0])
        cols = overlap(left, right, frame.crop[1], frame.scale[1], frame.content[1])
        pixels = self.pixels[self._box.slices].astype(np.float64)
        share = area_mean(area_mean(pixels, rows[1]).T, cols[1]).T
        return (rows[0], cols[0]), share.astype(np.float32)


Stroke = Click | Scribble
Region = Box | Polygon | Mask
Prompt = Click | Scribble | Box | Polygon | Mask


def dense_maps(
    prompts: Iterable[Prompt], frame: Frame, *, radius: int = 5, regions: Regions = "prior"
) -> np.ndarray:
    """All prompts as the network's three maps: float32 (3, S, S). Does not mutate.

    Channel 0 is the region prior, to be used where there is no previous mask; 1 and 2 hold positive and
    negative strokes as disks of `radius` network pixels with value 1 (SegNext: Liu et al., CVPR 2024).

    With regions="prior", positive regions set the prior to 1 (a soft mask to its values where they are
    higher) and negative regions cut it to 0, in the order given. With regions="channel" the prior stays 0
    and a region writes 0.5 into the channel of its sign where no stroke is.

    What lies inside the plane but outside the frame's crop leaves no trace. Raises ValueError for a prompt
    outside the plane (half a pixel of tolerance), a mask of another shape, and unknown `regions`.
    """
    if regions not in ("prior", "channel"):
        raise ValueError(f"regions must be 'prior' or 'channel'; got {regions!r}")
    prompts = tuple(prompts)
    maps = np.zeros((3, frame.size, frame.size), np.float32)
    for prompt in prompts:
        if isinstance(prompt, Box | Polygon | Mask):
            _check_inside(prompt, frame)
            _fill(maps, prompt, frame, regions)
    # Strokes are 1, the largest value: they may come last and all together, whatever the order of prompts.
    maps.reshape(-1)[stroke_pixels(prompts, frame, radius)] = 1.0
    return maps


def dotted(prompts: Iterable[Prompt], count: int, frame: Frame) -> tuple[Prompt, ...]:
    """The prompts, each scribble as `count` clicks evenly along it, half a step from its ends (none: 0).

    Why a network may be shown dots where a line was drawn: docs/decisions/scribbles.md. Raises ValueError for
    a scribble outside the plane, as `dense_maps` does, even if no dot is.
    """
    if not count:
        return tuple(prompts)
    shown: list[Prompt] = []
    for prompt in prompts:
        if isinstance(prompt, Scribble):
            _check_inside(prompt, frame)
            shown += _dots(prompt, count)
        else:
            shown.append(prompt)
    return tuple(shown)


def _dots(line: Scribble, count: int) -> list[Click]:
    points = np.array(line.points)
    way = np.r_[0.0, np.hypot(*np.diff(points, axis=0).T).cumsum()]
    at = (np.arange(count) + 0.5) / count * way[-1]
    rows, cols = (np.interp(at, way, points[:, axis]).tolist() for axis in (0, 1))
    return [Click((row, col), line.positive) for row, col in zip(rows, cols)]


def stroke_pixels(prompts: Iterable[Prompt], frame: Frame, radius: int) -> np.ndarray:
    """Where clicks and scribbles write 1 in the maps of `dense_maps`: int64 (N,) flat indices of (3, S, S).

    Pixels may be listed twice; regions are passed over. Raises ValueError for a stroke outside the plane.
    """
    size = frame.size
    strokes = [prompt for prompt in prompts if isinstance(prompt, Click | Scribble)]
    clicks = [stroke for stroke in strokes if isinstance(stroke, Click)]
    found = []
    if clicks:  # all at once, since every call to numpy is felt in a click
        at = np.array([click.at for click in clicks])
        _check_points(at, "Click", frame)
        channels = np.array([1 if click.positive else 2 for click in clicks])
        rows, cols, owner = disks(frame.pixels(at), radius, size)
        found.append((channels[owner] * size + rows) * size + cols)
    for channel, positive in ((1, True), (2, False)):
        lines = [s for s in strokes if isinstance(s, Scribble) and s.positive == positive]
        for line in lines:
            _check_inside(line, frame)
        if lines:
            segments = np.concatenate([_segments(line, frame) for line in lines])
            rows, cols = swept(segments, radius, (size, size))
            found.append((channel * size + rows) * size + cols)
    return found[0] if len(found) == 1 else np.concatenate([np.zeros(0, np.int64), *found])


def _segments(stroke: Stroke, frame: Frame) -> np.ndarray:
    """The stroke as segments between network pixels: int64 (N, 2, 2); a point is a segment of length 0."""
    pixels = frame.pixels(stroke.points)
    # A hand moves slowly: on the network's grid many neighbours fall on the same pixel.
    pixels = pixels[np.r_[True, np.any(pixels[1:] != pixels[:-1], axis=1)]]
    if len(pixels) == 1:
        return np.stack([pixels, pixels], axis=1)
    return np.stack([pixels[:-1], pixels[1:]], axis=1)


def _fill(maps: np.ndarray, region: Region, frame: Frame, regions: Regions) -> None:
    if regions == "channel":
        footprint = region.footprint(frame)
        target = maps[1 if region.positive else 2][footprint.box.slices]
        np.maximum(target, REGION_VALUE * footprint.pixels, out=target)
        return
    if isinstance(region, Mask) and region.pixels.dtype.kind == "f":
        (row, col), share = region.share(frame)
        window = (slice(row, row + share.shape[0]), slice(col, col + share.shape[1]))
    else:
        footprint = region.footprint(frame)
        window, share = footprint.box.slices, footprint.pixels.astype(np.float32)
    target = maps[0][window]
    if region.positive:
        np.maximum(target, share, out=target)
    else:
        np.minimum(target, 1 - share, out=target)


def _check_inside(prompt: Prompt, frame: Frame) -> None:
    if isinstance(prompt, Mask):
        if prompt.pixels.shape != frame.shape:
            raise ValueError(f"a mask must have the plane's shape {frame.shape}; got {prompt.pixels.shape}")
        return
    _check_points(np.asarray(prompt.points), type(prompt).__name__, frame)


def _check_points(points: np.ndarray, kind: str, frame: Frame) -> None:
    beyond = (points < -0.5) | (points > (frame.shape[0] - 0.5, frame.shape[1] - 0.5))
    if beyond.any():
        outside = beyond.any(axis=1)
        row, col = (float(v) for v in points[np.argmax(outside)])
        raise ValueError(
            f"{kind} at (row, col) = ({row:g}, {col:g}) is outside the plane of shape "
            f"{frame.shape}; rows go from 0 to {frame.shape[0] - 1}, columns from 0 to {frame.shape[1] - 1}"
        )


def _points(points: Sequence[Any], least: int, what: str) -> tuple[Point, ...]:
    try:
        array = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < least or not np.isfinite(array).all():
        raise ValueError(f"{what} needs {least} or more finite points (row, col); got {points!r:.200}")
    return tuple((float(row), float(col)) for row, col in array)
