"""Which planes will be wanted next: those in the direction that the user scrolls, then those behind."""

from __future__ import annotations

from dataclasses import dataclass

from napari_lowlat_seg.core.volume import Plane


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
