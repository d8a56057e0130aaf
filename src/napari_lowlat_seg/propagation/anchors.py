"""The planes where an object is known, and the gaps between them that are filled from there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from napari_lowlat_seg.core.volume import Plane

Gap = tuple[int | None, int | None]
"""Two neighbouring anchors, by their places; None for an end of the range."""


def affected(
    anchors: Iterable[Plane], planes: Sequence[Plane], changed: Iterable[Plane]
) -> tuple[Plane, ...]:
    """The planes that a change of some anchors can change: up to the neighbouring anchors, these left out.

    Who corrects a plane clears these first, since the object may not reach all of them again; every other
    plane stays as it is, to the byte.

    >>> planes = [Plane((i, None, None)) for i in range(9)]
    >>> [p.position for p in affected([planes[2], planes[4], planes[7]], planes, [planes[4]])]
    [3, 5, 6]
    """
    gaps = touched(gaps_between(places_of(anchors, planes)), planes, changed)
    between = (range(-1 if lo is None else lo, len(planes) if hi is None else hi)[1:] for lo, hi in gaps)
    return tuple(planes[place] for route in between for place in route)


def places_of(anchors: Iterable[Plane], planes: Sequence[Plane]) -> list[int]:
    """Where the anchors are in the range, in order. Raises ValueError if one is outside or there is none."""
    given = list(anchors)
    where = {plane: place for place, plane in enumerate(planes)}
    places = sorted(where[anchor] for anchor in given if anchor in where)
    if not places or len(places) < len(given):
        raise ValueError(
            f"propagation needs at least one plane with an answer, and all of them in its range of "
            f"{len(planes)} planes; got {len(places)} of {len(given)} inside"
        )
    return places


def gaps_between(places: list[int]) -> list[Gap]:
    """The gaps before, between and behind anchors at these places."""
    return list(zip([None, *places], [*places, None]))


def touched(gaps: list[Gap], planes: Sequence[Plane], changed: Iterable[Plane] | None) -> list[Gap]:
    """The gaps on whose edge or inside of which a plane has changed; all if that is not known (None)."""
    if changed is None:
        return gaps
    at = {planes.index(plane) for plane in changed if plane in planes}
    return [
        (lo, hi)
        for lo, hi in gaps
        if any((lo is None or lo <= place) and (hi is None or place <= hi) for place in at)
    ]
