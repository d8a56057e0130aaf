"""Points and shapes drawn on a plane as prompts, and prompts as points and shapes.

Points are (row, col) in plane pixels, pixel centres on integers. What leaves the plane is clipped at its
border, half a pixel beyond the outermost centres, because the predictor refuses prompts outside.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Prompt, Scribble


def prompts_of(kind: str, points: np.ndarray, positive: bool, shape: tuple[int, int]) -> tuple[Prompt, ...]:
    """The prompts of one drawn point or shape; none when all of it is outside the plane.

    Parameters
    ----------
    kind
        "point", or a napari shape type: "path", "line", "rectangle", "ellipse", "polygon".
    points
        float (N, 2), the vertices as napari holds them.
    positive
        The sign of all prompts.
    shape
        (rows, cols) of the plane.

    A stroke that leaves the plane and comes back gives one scribble per visit. A rectangle with tilted sides
    is a polygon. An ellipse gives the box around it. Fewer than three distinct corners make no polygon. Does
    not mutate.

    >>> prompts_of("line", np.array([[1.0, -5.0], [1.0, 2.0]]), True, (4, 4))
    (Scribble(points=((1.0, -0.5), (1.0, 2.0)), positive=True),)
    """
    points = np.asarray(points, np.float64)
    if len(points) == 0 or not np.isfinite(points).all():
        return ()
    if kind == "point":
        return (Click(_pair(points[0]), positive),) if _inside(points, shape).all() else ()
    if kind in ("path", "line"):
        return tuple(Scribble(_pairs(run), positive) for run in _visits(points, shape))
    if kind == "ellipse":
        return _box(_around_ellipse(points), positive, shape)
    if kind == "rectangle" and _upright(points):
        return _box(points, positive, shape)
    corners = _clipped_polygon(points, shape)
    return (Polygon(_pairs(corners), positive),) if len(np.unique(corners, axis=0)) >= 3 else ()


def drawing_of(prompt: Prompt) -> tuple[str, np.ndarray]:
    """How a prompt is drawn: the kind of `prompts_of` and its vertices, float (N, 2).

    Raises
    ------
    ValueError
        For a mask, which is painted and not drawn.
    """
    if isinstance(prompt, Mask):
        raise ValueError("a mask has no outline to draw; got a Mask, show it in a Labels layer")
    points = np.asarray(prompt.points, np.float64)
    if isinstance(prompt, Click):
        return "point", points
    if isinstance(prompt, Box):
        (top, left), (bottom, right) = points.min(axis=0), points.max(axis=0)
        return "rectangle", np.array([(top, left), (top, right), (bottom, right), (bottom, left)])
    if isinstance(prompt, Polygon):
        return "polygon", points
    # napari wants two vertices of every path; a dot is a path that goes nowhere.
    return "path", points if len(points) > 1 else np.repeat(points, 2, axis=0)


def clipped(prompt: Prompt, shape: tuple[int, int]) -> tuple[Prompt, ...]:
    """A prompt clipped to a plane of (rows, cols); a mask has the plane's shape already."""
    if isinstance(prompt, Mask):
        return (prompt,)
    return prompts_of(*drawing_of(prompt), prompt.positive, shape)


def _limits(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.full(2, -0.5), np.asarray(shape, np.float64) - 0.5


def _inside(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    low, high = _limits(shape)
    within: np.ndarray = np.all((points >= low) & (points <= high), axis=1)
    return within


def _pair(point: np.ndarray) -> tuple[float, float]:
    return float(point[0]), float(point[1])


def _pairs(points: np.ndarray) -> tuple[tuple[float, float], ...]:
    return tuple(_pair(point) for point in points)


def _visits(points: np.ndarray, shape: tuple[int, int]) -> list[np.ndarray]:
    """The parts of a line that lie on the plane, in order, without repeated points."""
    points = points[np.r_[True, np.any(points[1:] != points[:-1], axis=1)]]
    if _inside(points, shape).all():
        return [points]
    low, high = _limits(shape)
    visits: list[list[np.ndarray]] = []
    joined = False
    for start, end in pairwise(points):
        first, last = _crossing(start, end, low, high)
        if first >= last:
            joined = False
            continue
        if not joined:
            visits.append([np.clip(start + first * (end - start), low, high)])
        visits[-1].append(np.clip(start + last * (end - start), low, high))
        joined = last == 1
    return [np.array(visit) for visit in visits]


def _crossing(start: np.ndarray, end: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """The part of a segment inside a rectangle, as fractions of its length (Liang and Barsky, 1984)."""
    first, last = 0.0, 1.0
    for position, step, least, most in zip(start, end - start, low, high, strict=True):
        if step == 0:
            if not least <= position <= most:
                return 1.0, 0.0
            continue
        near, far = sorted(((least - position) / step, (most - position) / step))
        first, last = max(first, near), min(last, far)
    return first, last


def _box(points: np.ndarray, positive: bool, shape: tuple[int, int]) -> tuple[Prompt, ...]:
    low, high = _limits(shape)
    start, end = points.min(axis=0), points.max(axis=0)
    if (end < low).any() or (start > high).any():
        return ()
    return (Box(_pair(np.maximum(start, low)), _pair(np.minimum(end, high)), positive),)


def _around_ellipse(corners: np.ndarray) -> np.ndarray:
    """Two corners of the upright box around the ellipse that napari draws into a (tilted) rectangle."""
    centre = corners.mean(axis=0)
    across, down = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
    reach = np.hypot(across, down)
    return np.array([centre - reach, centre + reach])


def _upright(corners: np.ndarray) -> bool:
    """Whether the sides of a rectangle run along rows and columns, as far as float32 can tell."""
    sides = np.abs(np.roll(corners, -1, axis=0) - corners)
    tolerance = 1e-4 * max(1.0, float(np.ptp(corners, axis=0).max())) + 1e-6 * float(np.abs(corners).max())
    return bool((sides.min(axis=1) <= tolerance).all())


def _clipped_polygon(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The part of a polygon on the plane, edge by edge of the plane (Sutherland and Hodgman, 1974)."""
    low, high = _limits(shape)
    for axis in (0, 1):
        for sign, limit in ((1.0, low[axis]), (-1.0, -high[axis])):
            depth = sign * points[:, axis] - limit
            kept: list[np.ndarray] = []
            for i in range(len(points)):
                before, now = depth[i - 1], depth[i]
                if (before < 0) != (now < 0):
                    kept.append(points[i - 1] + before / (before - now) * (points[i] - points[i - 1]))
                if now >= 0:
                    kept.append(points[i])
            points = np.array(kept).reshape(-1, 2)
    clipped: np.ndarray = np.clip(points, low, high)
    return clipped
