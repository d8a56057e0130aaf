"""Shape interpolation without a model: an object outlined on some planes is filled in on those between.

The signed distances of the two neighbouring masks are averaged (Raya and Udupa, IEEE TMI 1990). Masks that
hardly overlap are first laid on top of each other, or the object would vanish half-way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import edt
import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.volume import Plane

Spacing = tuple[float, float]

MOVED = 0.05
"""Below this IoU two masks are taken for one object that has moved."""


def interpolate(
    masks: Mapping[Plane, np.ndarray], planes: Sequence[Plane], spacing: Spacing = (1.0, 1.0)
) -> Iterator[tuple[Plane, np.ndarray]]:
    """Yield (plane, mask) for every plane between two neighbouring ones that both show the object.

    Planes before the first mask, behind the last, and beside an empty mask are left out. Does not mutate.

    Parameters
    ----------
    masks
        (rows, cols) bool, by plane; masks on planes that are not among `planes` are ignored.
    planes
        In spatial order, equally far apart.
    spacing
        World units per pixel along rows and columns.

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
    """Yield the masks on `count` planes between two (rows, cols) bool masks; none if one of them is empty.

    Parameters
    ----------
    first, second
        On the planes before and behind; the outline moves evenly from one to the other.
    spacing
        Row and column pixel size, in one unit.

    Examples
    --------
    >>> square = np.zeros((9, 9), bool)
    >>> square[3:6, 0:3] = True
    >>> (middle,) = between(square, np.roll(square, 6, axis=1), 1)
    >>> np.flatnonzero(middle.any(axis=0)).tolist()
    [3, 4, 5]
    """
    if count < 1 or not first.any() or not second.any():
        return
    centres = [np.argwhere(mask).mean(axis=0) for mask in (first, second)]
    moved = np.count_nonzero(first & second) < MOVED * np.count_nonzero(first | second)
    down, right = np.rint(centres[1] - centres[0]).astype(int).tolist() if moved else (0, 0)
    # One box around both, the second moved back onto the first, with a rim of background.
    box = BoundingBox.of(first).union(BoundingBox.of(second).shifted(-down, -right)).grown(1)
    one = _signed(Patch((0, 0), first).shown_in(box), spacing)
    other = _signed(Patch((-down, -right), second).shown_in(box), spacing)
    for step in range(1, count + 1):
        share = step / (count + 1)
        between_both = (1 - share) * one + share * other > 0
        offset = np.rint(share * np.array([down, right])).astype(int)
        yield Patch(box.shifted(*offset.tolist()).corner, between_both).on(first.shape)


def _signed(mask: np.ndarray, spacing: Spacing) -> np.ndarray:
    """The distance to the border of a mask in world units, positive inside."""
    inside, outside = (
        edt.edt(np.ascontiguousarray(part), anisotropy=spacing, black_border=False, parallel=1)
        for part in (mask, ~mask)
    )
    signed: np.ndarray = inside - outside
    return signed
