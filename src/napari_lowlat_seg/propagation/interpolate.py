"""Shapes between shapes, without a model: outlined on some planes, an object is known on those between.

The signed distances of the two neighbouring outlines are mixed (Raya and Udupa 1990). Outlines that hardly
overlap are first laid on top of each other, or the object would vanish half-way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import edt
import numpy as np

from napari_lowlat_seg.core.volume import Plane

Spacing = tuple[float, float]

APART = 0.05
"""Below this IoU two outlines are taken for one object that has moved."""


def interpolate(
    masks: Mapping[Plane, np.ndarray], planes: Sequence[Plane], spacing: Spacing = (1.0, 1.0)
) -> Iterator[tuple[Plane, np.ndarray]]:
    """(plane, mask) for every plane between two neighbouring ones that both show the object.

    Planes outside of all outlines, and between an outline and an empty mask, are not answered.

    Parameters
    ----------
    masks
        (rows, cols) bool, by plane; planes not among `planes` do not count.
    planes
        In spatial order, equally far apart.
    spacing
        Size of a pixel along rows and columns.

    Raises
    ------
    ValueError
        When called, if masks differ in shape.
    """
    places = [place for place, plane in enumerate(planes) if plane in masks]
    shapes = sorted({masks[planes[place]].shape for place in places})
    if len(shapes) > 1:
        raise ValueError(f"masks to interpolate between must have one shape; got {shapes}")
    return (
        (planes[lo + step], mask)
        for lo, hi in pairwise(places)
        for step, mask in enumerate(
            between(masks[planes[lo]], masks[planes[hi]], hi - lo - 1, spacing), start=1
        )
    )


def between(
    first: np.ndarray, second: np.ndarray, count: int, spacing: Spacing = (1.0, 1.0)
) -> Iterator[np.ndarray]:
    """The masks on `count` planes between two masks of one shape; none if one of them is empty.

    >>> square = np.zeros((9, 9), bool)
    >>> square[3:6, 0:3] = True
    >>> (middle,) = between(square, np.roll(square, 6, axis=1), 1)
    >>> np.flatnonzero(middle.any(axis=0)).tolist()
    [3, 4, 5]
    """
    if count < 1 or not first.any() or not second.any():
        return
    centres = [np.argwhere(mask).mean(axis=0) for mask in (first, second)]
    apart = np.count_nonzero(first & second) < APART * np.count_nonzero(first | second)
    move = np.rint(centres[1] - centres[0]).astype(int) if apart else np.zeros(2, int)
    # One window that holds both, the second moved back onto the first, with a rim of background around.
    spots = np.concatenate([np.argwhere(first), np.argwhere(second) - move])
    corner, end = spots.min(axis=0) - 1, spots.max(axis=0) + 2
    one = _signed(_window(first, corner, end), spacing)
    other = _signed(_window(second, corner + move, end + move), spacing)
    for step in range(1, count + 1):
        share = step / (count + 1)
        mixed = (1 - share) * one + share * other > 0
        yield _placed(mixed, corner + np.rint(share * move).astype(int), first.shape)


def _window(mask: np.ndarray, corner: np.ndarray, end: np.ndarray) -> np.ndarray:
    """A part of a mask that may reach beyond it, where it is background."""
    window = np.zeros(end - corner, bool)
    low, high = np.maximum(corner, 0), np.minimum(end, mask.shape)
    to = low - corner
    part = mask[low[0] : high[0], low[1] : high[1]]
    window[to[0] : to[0] + part.shape[0], to[1] : to[1] + part.shape[1]] = part
    return window


def _signed(mask: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Distance to the other side in world units, positive inside."""
    inside, outside = (
        edt.edt(np.ascontiguousarray(part), anisotropy=spacing, black_border=False, parallel=1)
        for part in (mask, ~mask)
    )
    signed: np.ndarray = inside - outside
    return signed


def _placed(window: np.ndarray, corner: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A window put into an empty plane; what hangs over is cut off."""
    return _window(window, -corner, np.array(shape) - corner)
