"""Where an object may be: beside finished objects, in a range of intensities, in a drawn area.

Masks are cut to what is allowed before they are shown and written; what the network predicts stays as it was,
so that a limit can be changed at any time. Measured in docs/decisions/neighbours.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from napari_lowlat_seg.annotation.plane_state import pixels_of
from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.labels import LabelStore, Policy
from napari_lowlat_seg.core.prompts import Polygon, Prompt
from napari_lowlat_seg.core.volume import Plane, Volume

Ring = tuple[tuple[float, float], ...]
"""(row, col) of the corners of an outline, in pixels of a plane."""


@dataclass(frozen=True)
class Limits:
    """What an object may consist of.

    Attributes
    ----------
    neighbours
        Whether finished objects are background: their pixels belong to no other object, as far as the policy
        keeps them. An object under a positive prompt is left out of that.
    intensities
        The lowest and the highest intensity of its pixels, both allowed; None for any.
    area
        Outlines on the planes along `axes`: the object lies within one of them. Empty for anywhere.
    axes
        The axes of rows and columns of these planes.

    Raises
    ------
    ValueError
        For a range that ends before it begins, or an outline of less than three corners.
    """

    neighbours: bool = True
    intensities: tuple[float, float] | None = None
    area: tuple[Ring, ...] = ()
    axes: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if self.intensities is not None and not self.intensities[0] <= self.intensities[1]:
            low, high = self.intensities
            raise ValueError(f"expected a range of intensities from low to high, got {low:g} to {high:g}")
        for ring in self.area:
            Polygon(ring)  # raises


class RecentParts:
    """Parts of planes in a file, as they were read last: a mask is drawn more often than they change.

    Parameters
    ----------
    read
        Reads (rows, cols) inside a box of a plane.
    """

    MOST = 8

    def __init__(self, read: Callable[[Plane, BoundingBox], np.ndarray]) -> None:
        self._read, self._kept = read, dict[tuple[Plane, BoundingBox], np.ndarray]()

    def __call__(self, plane: Plane, box: BoundingBox) -> np.ndarray:
        """What is inside a box of a plane; not to be changed."""
        found = self._kept.pop((plane, box), None)
        found = self._read(plane, box) if found is None else found
        self._kept[plane, box] = found  # the newest is last
        while len(self._kept) > self.MOST:
            del self._kept[next(iter(self._kept))]
        return found

    def clear(self) -> None:
        """Forget all: what was read has changed."""
        self._kept.clear()


@dataclass(frozen=True)
class Surroundings:
    """What limits are measured by.

    Attributes
    ----------
    volume
        The image.
    pixels
        Its pixels inside a box of a plane.
    store
        The labels; None without any.
    policy
        Which labels an object may replace.
    label
        Of the object itself.
    """

    volume: Volume
    pixels: Callable[[Plane, BoundingBox], np.ndarray]
    store: LabelStore | None
    policy: Policy
    label: int


def limited(
    patch: Patch, plane: Plane, limits: Limits, around: Surroundings, prompts: Sequence[Prompt] = ()
) -> Patch:
    """A mask cut to what is allowed. Does not mutate.

    Parameters
    ----------
    patch, plane
        The mask and its plane.
    limits, around
        What is allowed, and what that is measured by.
    prompts
        Of the object on the plane.
    """
    box = patch.box
    if box.is_empty or not patch.pixels.any():
        return patch
    allowed = np.ones(box.shape, np.bool_)
    if limits.intensities is not None:
        pixels = around.pixels(plane, box)
        gray = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
        allowed &= (gray >= limits.intensities[0]) & (gray <= limits.intensities[1])
    if limits.area and plane.axes == limits.axes:
        sides = around.volume.sides(plane)
        frame = Frame.whole(sides, max(sides))  # one pixel of the grid for each of the plane
        allowed &= np.any([Polygon(ring).footprint(frame).shown_in(box) for ring in limits.area], axis=0)
    if limits.neighbours and around.store is not None:
        # What is shown may come from labels in a file as they were read last; what is written never does.
        read = getattr(around.store, "read_recent", around.store.read)
        values = read(plane, box)
        positive = [one for one in prompts if one.positive]
        meant = [values[pixels_of(one, around.volume.sides(plane), box)].ravel() for one in positive]
        own = np.setdiff1d(np.concatenate([[around.label], *meant]), 0)
        allowed &= around.policy.allows(values) | np.isin(values, own)
    return patch if allowed.all() else replace(patch, pixels=patch.pixels & allowed)
