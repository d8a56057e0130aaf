"""Where the pixels of a request come from: the whole plane, or one tile of a huge plane."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import numpy as np

from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import TILING, BoundingBox, Tiling, tile_of
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import PlaneSource, PropagationRequest, Request
from napari_lowlat_seg.core.volume import Plane

FieldOfView = Callable[[Plane], tuple[float, float, float, float]]
"""Returns (top, left, bottom, right) of what the canvas shows of a plane, in pixels."""


class PlaneSources:
    """The planes of a session's volume, as a prediction service takes them.

    Parameters
    ----------
    session
        Whose volume it is.
    name
        Of the image, for messages about its only plane.
    tiling
        From which size on a plane is worked on by tiles, and how large they are.
    field
        What the canvas shows; None where that is not known.

    Attributes
    ----------
    folders
        Where embeddings of this image may have been stored.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        tiling: Tiling = TILING,
        field: FieldOfView | None = None,
    ) -> None:
        self.folders: tuple[Path, ...] = ()
        self._session, self._name, self._tiling, self._field = session, name, tiling, field
        self._tiles: dict[Plane, BoundingBox] = {}  # the newest one of each plane
        self._image = uuid4().hex  # in the keys of its embeddings
        self._read: dict[Plane, int] = {}  # checksums of the planes that were read

    def is_tiled(self, plane: Plane) -> bool:
        """Whether a plane is worked on by tiles."""
        return max(self._session.volume.sides(plane)) > self._tiling.large

    def source(self, plane: Plane, tile: BoundingBox | None = None) -> PlaneSource:
        """The whole plane, or a tile of it."""
        volume = self._session.volume
        name = self._name if len(plane.index) == 2 else f"plane {plane.position}"
        key = (self._image, plane.index) if tile is None else (self._image, plane.index, tile)
        part = volume if tile is None else volume.cropped(tile, plane)
        image = self._image

        def read() -> np.ndarray:
            pixels = part.plane(plane)
            if tile is None and image == self._image and self._can_change(plane):
                self._read[plane] = checksum(pixels)
            return pixels

        return PlaneSource(
            key,
            read,
            volume.window,
            volume.plane_spacing(plane),
            name,
            plane,
            self.folders if tile is None else (),
            volume.thickness(plane),
        )

    def has_changed(self, plane: Plane) -> bool:
        """Whether the pixels of a plane are others than those that were read; then all planes are read anew.

        Found for images in memory, whose arrays can be changed in place.
        """
        before = self._read.get(plane)
        if before is None or not self._can_change(plane):
            return False
        changed = checksum(self._session.volume.plane(plane)) != before
        if changed:
            self._image, self._read = uuid4().hex, {}
        return changed

    def _can_change(self, plane: Plane) -> bool:
        return isinstance(self._session.volume.data, np.ndarray) and not self.is_tiled(plane)

    def in_view(self, plane: Plane) -> PlaneSource | None:
        """What to embed before the first click: of a huge plane the tile in the middle of the field of view.

        None if so much of it is in view that the click may be on any tile.
        """
        if not self.is_tiled(plane):
            return self.source(plane)
        if self._field is None:
            return None
        sides = self._session.volume.sides(plane)
        top, left, bottom, right = self._field(plane)
        if max(bottom - top, right - left) > 2 * self._tiling.side:
            return None
        middle = (
            min(max(0.0, (top + bottom) / 2), sides[0] - 1),
            min(max(0.0, (left + right) / 2), sides[1] - 1),
        )
        tile = tile_of(sides, [Click(middle)], self._tiling, self._tiles.get(plane))
        self._tiles[plane] = tile
        return self.source(plane, tile)

    def of_request(self, request: Request) -> tuple[Request, PlaneSource, BoundingBox | None]:
        """The request in pixels of its source, the source, and its tile; None for the whole plane."""
        plane = request.plane
        if not self.is_tiled(plane) or not request.prompts:
            return request, self.source(plane), None
        sides = self._session.volume.sides(plane)
        tile = tile_of(sides, request.prompts, self._tiling, self._tiles.get(plane))
        if request.ticket:
            self._tiles[plane] = tile
        return request.cropped(tile), self.source(plane, tile), tile

    def of_propagation(
        self, request: PropagationRequest
    ) -> tuple[PropagationRequest, list[PlaneSource], BoundingBox | None]:
        """As `of_request`; of huge planes the same tile on every plane.

        Raises
        ------
        ValueError
            For seeds on huge planes, which need more than one tile.
        """
        if not self.is_tiled(request.planes[0]):
            return request, [self.source(plane) for plane in request.planes], None
        if request.seeds:
            raise ValueError(
                f"seeds cannot be propagated through planes of more than {self._tiling.large} rows or "
                "columns here; use `lowlat-seg seeds` or a coarser level"
            )
        boxes = [mask.box for masks in request.anchors.values() for mask in masks.values()]
        corners = [Click(at) for box in boxes for at in (box[:2], (box[2] - 1, box[3] - 1)) if box[2]]
        tile = tile_of(self._session.volume.sides(request.planes[0]), corners, self._tiling)
        anchors = {
            number: {plane: mask.cropped(tile) for plane, mask in masks.items()}
            for number, masks in request.anchors.items()
        }
        return replace(request, anchors=anchors), [self.source(plane, tile) for plane in request.planes], tile


def checksum(pixels: np.ndarray) -> int:
    """A number that is another one when the pixels are others; a millisecond a megabyte at most."""
    return zlib.adler32(np.ascontiguousarray(pixels).view(np.uint8).data)


@dataclass(frozen=True)
class ScrollDirection:
    """Where the user scrolls: along an axis (None for the last that has a position), by +1 or -1."""

    axis: int | None = None
    step: int = 1

    def after(self, before: Plane | None, now: Plane) -> ScrollDirection:
        """The direction after a move from one plane to another.

        Unchanged if several sliders moved at once or none did; the default after a change of orientation.

        >>> ScrollDirection().after(Plane((7, None, None)), Plane((5, None, None)))
        ScrollDirection(axis=0, step=-1)
        """
        if before is None or before.axes != now.axes:
            return self if before is None else ScrollDirection()
        pairs = zip(before.index, now.index, strict=True)
        moves = [(axis, b - a) for axis, (a, b) in enumerate(pairs) if a is not None and b is not None]
        moves = [(axis, by) for axis, by in moves if by]
        if len(moves) != 1:
            return self
        axis, by = moves[0]
        return ScrollDirection(axis, 1 if by > 0 else -1)

    def planes(self, now: Plane, shape: tuple[int, ...], count: int) -> list[Plane]:
        """Up to `count` planes ahead of this one, the nearest first, then as many behind it.

        Parameters
        ----------
        now
            The plane in view; a 2-D image has no other.
        shape
            Of the volume.
        count
            Planes each way; 0 for none.
        """
        axes = [axis for axis, position in enumerate(now.index) if position is not None]
        if not axes:
            return []
        axis = self.axis if self.axis in axes else axes[-1]
        start = now.index[axis]
        assert axis is not None
        assert start is not None
        steps = [sign * i for sign in (self.step, -self.step) for i in range(1, count + 1)]
        positions = [start + by for by in steps if 0 <= start + by < shape[axis]]
        return [Plane((*now.index[:axis], position, *now.index[axis + 1 :])) for position in positions]
