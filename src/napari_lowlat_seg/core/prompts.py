"""Prompts, and how each kind becomes pixels of the network's dense maps.

Coordinates are (row, col) in pixels of the plane, pixel centres on integers. Clicks and scribbles are
strokes: a disk of network pixels, at one place or dragged along a line. Boxes, polygons and masks are regions
and are filled. No function changes its arguments; time grows with the network pixels that a prompt covers.
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
"""(row, col) in pixels of the plane."""

Bounds = tuple[float, float, float, float]
"""(r0, c0, r1, c1): two opposite corners in pixels of the plane, both included."""

Regions = Literal["prior", "channel"]

REGION_VALUE = 0.5
"""The value of a region in the channel of its sign with regions="channel"; strokes have 1."""


class _Drawn:
    """Methods of the prompts that are made of points."""

    if TYPE_CHECKING:

        @property
        def points(self) -> tuple[Point, ...]: ...

    def with_points(self, points: Sequence[Point]) -> Self:
        """This prompt with other points (row, col), as many as it has now."""
        return replace(self, points=tuple(points))  # type: ignore[type-var]

    def bounds(self) -> Bounds:
        """The smallest `Bounds` around the points."""
        rows, cols = [row for row, _ in self.points], [col for _, col in self.points]
        return (min(rows), min(cols), max(rows), max(cols))

    def cropped(self, box: BoundingBox) -> Self:
        """This prompt in the coordinates of a part of the plane; its points may lie outside that part."""
        return self.with_points([(row - box.top, col - box.left) for row, col in self.points])


class _Stroke(_Drawn):
    """Methods of the prompts that are a point or a line."""

    def footprint(self, frame: Frame, radius: int) -> Patch:
        """The disk dr*dr + dc*dc <= radius*radius dragged through the network pixels, cut off by the grid."""
        segments = _segments(self.points, frame)
        return patch_of(*swept(segments, radius, (frame.size, frame.size)))


@dataclass(frozen=True)
class Click(_Stroke):
    """A point on the object, or outside it.

    Attributes
    ----------
    at
        (row, col).
    positive
        True: the point belongs to the object. False: it does not.

    Raises
    ------
    ValueError
        If the point is not two finite numbers.
    """

    at: Point
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", _points([self.at], 1, "a click")[0])

    @property
    def points(self) -> tuple[Point, ...]:
        """The point, in a tuple."""
        return (self.at,)

    def with_points(self, points: Sequence[Point]) -> Self:
        """This click at another point, the only one of `points`."""
        return replace(self, at=points[0])


@dataclass(frozen=True)
class Scribble(_Stroke):
    """A line drawn by hand, on the object or outside it.

    Attributes
    ----------
    points
        One or more (row, col), joined by straight pieces.
    positive
        As for `Click`.

    Raises
    ------
    ValueError
        For no point, or one that is not two finite numbers.
    """

    points: tuple[Point, ...]
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _points(self.points, 1, "a scribble"))


@dataclass(frozen=True)
class Box(_Drawn):
    """A rectangle around the object, or around background.

    Attributes
    ----------
    start, end
        Two opposite corners (row, col), in any order.
    positive
        As for `Click`.

    Raises
    ------
    ValueError
        If a corner is not two finite numbers.
    """

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
        """This box with two other corners."""
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
    """A closed outline around the object (a lasso), or around background.

    Attributes
    ----------
    points
        Three or more (row, col). Where the outline crosses itself, the even-odd rule decides.
    positive
        As for `Click`.

    Raises
    ------
    ValueError
        For fewer points, or one that is not two finite numbers.
    """

    points: tuple[Point, ...]
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _points(self.points, 3, "a polygon"))

    def footprint(self, frame: Frame, radius: int = 0) -> Patch:
        """Network pixels whose centre lies inside, top and left edges included; at least one pixel."""
        vertices = np.asarray(self.points)
        # A polygon too thin to contain a pixel centre gives the pixel of its most central vertex.
        central = np.argmin(np.sum((vertices - vertices.mean(axis=0)) ** 2, axis=1))
        return filled(frame.to_network(vertices), frame.size, frame.holding(vertices[[central]]))


@dataclass(frozen=True, eq=False)
class Mask:
    """A region given pixel by pixel. Two masks are equal if sign, type and content are.

    Attributes
    ----------
    pixels
        (H, W) of the whole plane: bool, or float in [0, 1] for a soft mask. Copied and made read-only.
    positive
        As for `Click`.

    Raises
    ------
    ValueError
        For another shape or type, values outside [0, 1], and a mask without a pixel that is set.
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
        """The `Bounds` of the pixels that are set."""
        top, left, bottom, right = self._box
        return (float(top), float(left), float(bottom - 1), float(right - 1))

    def cropped(self, box: BoundingBox) -> Mask:
        """This mask on a part of the plane, in which at least one of its pixels must be set."""
        return replace(self, pixels=self.pixels[box.slices])

    def footprint(self, frame: Frame, radius: int = 0) -> Patch:
        """Network pixels that are covered by half or more; at least the one that is covered most."""
        offset, share = self.share(frame)
        covered = share >= 0.5
        if share.size and share.max() > 0 and not covered.any():
            covered = share == share.max()
        return Patch(offset, covered)

    def share(self, frame: Frame) -> tuple[tuple[int, int], np.ndarray]:
        """The mask on the network's grid: (row, col) of a rectangle's first pixel, and its float32 pixels.

        Each value is the mean of the mask over the area of the plane that the network pixel covers.
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
    """The network's three maps of all prompts: float32 (3, S, S), values in [0, 1].

    Channel 0 is the region prior, which stands in for a previous mask where there is none. Channels 1 and 2
    hold positive and negative strokes as disks of value 1 (the dense maps of SegNext: Liu et al., CVPR 2024).

    Parameters
    ----------
    prompts
        In any number, oldest first. What is inside the plane but outside the frame's crop is left out.
    frame
        How the plane lies on the network's S x S grid.
    radius
        Of the disks, in network pixels.
    regions
        "prior": positive regions set the prior to 1 (a soft mask to its values where they are higher) and
        negative ones to 0, in the order given. "channel": the prior stays 0, and a region writes 0.5 into the
        channel of its sign where no stroke is.

    Raises
    ------
    ValueError
        For a prompt outside the plane (half a pixel of tolerance), a mask of another shape, and unknown
        `regions`.
    """
    if regions not in ("prior", "channel"):
        raise ValueError(f"regions must be 'prior' or 'channel'; got {regions!r}")
    prompts = tuple(prompts)
    maps = np.zeros((3, frame.size, frame.size), np.float32)
    for prompt in prompts:
        if isinstance(prompt, Box | Polygon | Mask):
            _check_inside(prompt, frame)
            _fill(maps, prompt, frame, regions)
    # Strokes are 1, the largest value, so they can be written last, whatever the order of prompts.
    maps.reshape(-1)[stroke_pixels(prompts, frame, radius)] = 1.0
    return maps


def dotted(prompts: Iterable[Prompt], count: int, frame: Frame) -> tuple[Prompt, ...]:
    """The prompts with each scribble replaced by `count` clicks, evenly spaced, half a step from its ends.

    With a count of 0 the prompts stay as they are. Why a network may be shown dots in place of a line:
    docs/decisions/scribbles.md. Raises ValueError for a scribble outside the plane, as `dense_maps` does.
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
    length = np.r_[0.0, np.hypot(*np.diff(points, axis=0).T).cumsum()]  # up to each point
    at = (np.arange(count) + 0.5) / count * length[-1]
    rows, cols = (np.interp(at, length, points[:, axis]).tolist() for axis in (0, 1))
    return [Click((row, col), line.positive) for row, col in zip(rows, cols)]


def stroke_pixels(prompts: Iterable[Prompt], frame: Frame, radius: int) -> np.ndarray:
    """The pixels of clicks and scribbles in the maps of `dense_maps`: int64 (N,), flat indices of (3, S, S).

    Pixels may be listed twice; regions are ignored. Raises ValueError for a stroke outside the plane.
    """
    size = frame.size
    prompts = tuple(prompts)
    clicks = [prompt for prompt in prompts if isinstance(prompt, Click)]
    found = []
    if clicks:  # all at once: calls of numpy are a noticeable part of a click
        at = np.array([click.at for click in clicks])
        _check_points(at, "Click", frame)
        channels = np.array([1 if click.positive else 2 for click in clicks])
        rows, cols, owner = disks(frame.pixels(at), radius, size)
        found.append((channels[owner] * size + rows) * size + cols)
    for channel, positive in ((1, True), (2, False)):
        lines = [line for line in prompts if isinstance(line, Scribble) and line.positive == positive]
        if lines:
            _check_points(np.concatenate([line.points for line in lines]), "Scribble", frame)
            segments = np.concatenate([_segments(line.points, frame) for line in lines])
            rows, cols = swept(segments, radius, (size, size))
            found.append((channel * size + rows) * size + cols)
    return found[0] if len(found) == 1 else np.concatenate([np.zeros(0, np.int64), *found])


def _segments(points: Sequence[Point], frame: Frame) -> np.ndarray:
    """Segments between the points' network pixels: int64 (N, 2, 2); a point alone is one of length 0."""
    pixels = frame.pixels(points)
    # Neighbouring points of a hand-drawn line often fall on the same network pixel.
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
