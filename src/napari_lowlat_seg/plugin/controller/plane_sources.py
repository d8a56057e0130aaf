"""Where the pixels come from that a question is about: a plane, or of a huge plane one tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import TILING, BoundingBox, Tiling, tile_of
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import PlaneSource, PropagationRequest, Request
from napari_lowlat_seg.core.volume import Plane


class Sources:
    """The planes of a session's volume, as a responder wants them.

    Parameters
    ----------
    session
        Whose volume it is.
    name
        Of the image, for messages about its only plane.
    tiling
        From which size on a plane is huge, and how large its tiles are.
    seen
        Gives (top, left, bottom, right) of what is on the screen of a plane; None where that is not known.

    Attributes
    ----------
    folders
        Where embeddings of this image may lie.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        tiling: Tiling = TILING,
        seen: Callable[[Plane], tuple[float, float, float, float]] | None = None,
    ) -> None:
        self.folders: tuple[Path, ...] = ()
        self._session, self._name, self._tiling, self._seen = session, name, tiling, seen
        self._tiles: dict[Plane, BoundingBox] = {}  # the newest one of each plane
        self._picture = uuid4().hex  # in the keys of its embeddings

    def huge(self, plane: Plane) -> bool:
        """Whether a plane is worked on by tiles."""
        return max(self._session.volume.sides(plane)) > self._tiling.large

    def of(self, plane: Plane, region: BoundingBox | None = None) -> PlaneSource:
        """The whole plane, or a region of it."""
        volume = self._session.volume
        name = self._name if len(plane.index) == 2 else f"plane {plane.position}"
        key = (self._picture, plane.index) if region is None else (self._picture, plane.index, region)
        part = volume if region is None else volume.cropped(region, plane)
        return PlaneSource(
            key,
            lambda: part.plane(plane),
            volume.window,
            volume.plane_spacing(plane),
            name,
            plane,
            self.folders if region is None else (),
        )

    def in_view(self, plane: Plane) -> PlaneSource | None:
        """What to embed before the first click: of a huge plane the tile in the middle of what is seen.

        None if too much of it is seen to know where a click will be.
        """
        if not self.huge(plane):
            return self.of(plane)
        if self._seen is None:
            return None
        sides = self._session.volume.sides(plane)
        top, left, bottom, right = self._seen(plane)
        if max(bottom - top, right - left) > 2 * self._tiling.side:
            return None
        middle = (
            min(max(0.0, (top + bottom) / 2), sides[0] - 1),
            min(max(0.0, (left + right) / 2), sides[1] - 1),
        )
        region = tile_of(sides, [Click(middle)], self._tiling, self._tiles.get(plane))
        self._tiles[plane] = region
        return self.of(plane, region)

    def of_request(self, request: Request) -> tuple[Request, PlaneSource, BoundingBox | None]:
        """A request in the pixels of its source; and the region of the plane that is, None for all of it."""
        plane = request.plane
        if not self.huge(plane) or not request.prompts:
            return request, self.of(plane), None
        sides = self._session.volume.sides(plane)
        region = tile_of(sides, request.prompts, self._tiling, self._tiles.get(plane))
        if request.ticket:
            self._tiles[plane] = region
        return request.cropped(region), self.of(plane, region), region

    def of_walk(
        self, walk: PropagationRequest
    ) -> tuple[PropagationRequest, list[PlaneSource], BoundingBox | None]:
        """A walk in the pixels of its sources, as `of_request`; of huge planes one tile all the way.

        Raises ValueError for seeds on huge planes, which need more than one tile.
        """
        if not self.huge(walk.planes[0]):
            return walk, [self.of(plane) for plane in walk.planes], None
        if walk.seeds:
            raise ValueError(
                f"seeds cannot be carried through planes of more than {self._tiling.large} rows or columns "
                "here; use `lowlat-seg seeds` or a coarser level"
            )
        boxes = [answer.box for known in walk.anchors.values() for answer in known.values()]
        corners = [Click(at) for box in boxes for at in (box[:2], (box[2] - 1, box[3] - 1)) if box[2]]
        region = tile_of(self._session.volume.sides(walk.planes[0]), corners, self._tiling)
        anchors = {
            number: {plane: answer.cropped(region) for plane, answer in known.items()}
            for number, known in walk.anchors.items()
        }
        return replace(walk, anchors=anchors), [self.of(plane, region) for plane in walk.planes], region


@dataclass(frozen=True)
class Heading:
    """Where somebody scrolls: along an axis (None for the last that has a position), +1 or -1."""

    axis: int | None = None
    step: int = 1

    def after(self, before: Plane | None, now: Plane) -> Heading:
        """The heading once somebody has gone from one plane to another.

        The same if that was no scrolling: another orientation, several sliders at once, or no move at all.

        >>> Heading().after(Plane((7, None, None)), Plane((5, None, None)))
        Heading(axis=0, step=-1)
        """
        if before is None or before.axes != now.axes:
            return self if before is None else Heading()
        pairs = zip(before.index, now.index, strict=True)
        moves = [(axis, b - a) for axis, (a, b) in enumerate(pairs) if a is not None and b is not None]
        moves = [(axis, by) for axis, by in moves if by]
        if len(moves) != 1:
            return self
        axis, by = moves[0]
        return Heading(axis, 1 if by > 0 else -1)

    def planes(self, now: Plane, shape: tuple[int, ...], reach: int) -> list[Plane]:
        """Up to `reach` planes ahead of this one, the nearest first, then as many behind it.

        Parameters
        ----------
        now
            The plane in view; a 2-D image has no other.
        shape
            Of the volume.
        reach
            Planes each way; 0 for none.
        """
        walked = [axis for axis, position in enumerate(now.index) if position is not None]
        if not walked:
            return []
        axis = self.axis if self.axis in walked else walked[-1]
        start = now.index[axis]
        assert axis is not None
        assert start is not None
        steps = [sign * i for sign in (self.step, -self.step) for i in range(1, reach + 1)]
        positions = [start + by for by in steps if 0 <= start + by < shape[axis]]
        return [Plane((*now.index[:axis], position, *now.index[axis + 1 :])) for position in positions]
