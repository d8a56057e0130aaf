"""What an object's masks on planes of some axes show on a plane of another axis: their cut, line by line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.volume import Line, Plane

FEWEST_LINES = 5
TAPERED = 0.3
"""Of an object's greatest width: what its outermost known line has at most where the object ends nearby.

Measured on the shipped samples: docs/decisions/propagation.md, "Planes of other axes".
"""


@dataclass(frozen=True, eq=False)
class CrossSection:
    """The cut of an object on one plane.

    Attributes
    ----------
    soft_mask
        The probability of the object; 0 where no mask is known.
    lines
        The rows and columns that are known, because another plane with a mask crosses there.
    """

    soft_mask: SoftMask
    lines: frozenset[Line]

    @property
    def counted(self) -> tuple[int, int]:
        """How many pixels of the plane are known, and all of them."""
        rows, cols = self.soft_mask.shape
        down = sum(side == 0 for side, _ in self.lines)
        across = len(self.lines) - down
        return rows * cols - (rows - down) * (cols - across), rows * cols

    @property
    def known(self) -> np.ndarray:
        """(rows, cols) bool: where a mask of another plane says what the object is."""
        known = np.zeros(self.soft_mask.shape, np.bool_)
        for side, at in self.lines:
            known[(at, slice(None)) if side == 0 else (slice(None), at)] = True
        return known

    @property
    def whole(self) -> bool:
        """Whether the cut shows all of the object, as far as the cut alone shows.

        Its known lines are neighbours, `FEWEST_LINES` of them or more, and at both ends the object has become
        narrow (`TAPERED`), or the plane ends. Fewer lines will do if the object is gone at both ends. The
        network trusts a previous mask: shown a part of the object, it leaves out the rest.
        """
        widths = np.count_nonzero(self.soft_mask.mask, axis=1), np.count_nonzero(self.soft_mask.mask, axis=0)
        return any(
            _is_whole(width, {at for along, at in self.lines if along == side})
            for side, width in enumerate(widths)
        )


def _is_whole(widths: np.ndarray, known: set[int]) -> bool:
    widest = int(widths.argmax())
    if widest not in known or not widths[widest]:
        return False
    first = last = widest
    while first - 1 in known and widths[first]:
        first -= 1
    while last + 1 in known and widths[last]:
        last += 1
    ends = [widths[at] for at in (first, last) if 0 < at < len(widths) - 1]
    most = TAPERED * widths[widest] if last - first + 1 >= FEWEST_LINES else 0
    return all(end <= most for end in ends)


UNPACKED = 128 * 2**20
"""Bytes of masks that are kept unpacked: an object of 180,000 pixels on 700 planes."""


class CrossSections:
    """Cuts of one object; the last one is kept, and the masks that it was made of unpacked.

    A plane is drawn again at each prediction, and the planes beside it cut the same masks: unpacking them is
    most of the work.

    Parameters
    ----------
    number
        Of the object.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._key: object = None
        self._last: CrossSection | None = None
        self._unpacked: LRUCache[SoftMask, SoftMask] = LRUCache(UNPACKED, _nbytes)

    def of(self, masks: Mapping[Plane, SoftMask], plane: Plane, sides: tuple[int, int]) -> CrossSection:
        """As `cross_section`, made anew only if it is another one."""
        key = (plane, sides, tuple(masks.items()))  # masks are equal if they are the same
        if self._last is None or key != self._key:
            self._key, self._last = key, cross_section(masks, plane, sides, self._kept)
        return self._last

    def _kept(self, mask: SoftMask) -> SoftMask:
        found = self._unpacked.get(mask)
        if found is None:
            found = mask.unpacked()
            if _nbytes(found) <= UNPACKED:
                self._unpacked[mask] = found
        return found


def _nbytes(mask: SoftMask) -> int:
    return max(1, mask.box.shape[0] * mask.box.shape[1])


def cross_section(
    masks: Mapping[Plane, SoftMask],
    plane: Plane,
    sides: tuple[int, int],
    kept: Callable[[SoftMask], SoftMask] = lambda mask: mask,
) -> CrossSection:
    """The cut of the masks of one object on a plane. Does not mutate.

    Parameters
    ----------
    masks
        By plane, in any number of directions. Where two of them say something about a pixel, the later one
        is right. Planes that do not cross `plane` in a line, such as parallel ones, say nothing.
    plane
        Where the cut is made.
    sides
        (rows, cols) of it.
    kept
        Returns an equal mask, perhaps one that was unpacked before.

    Examples
    --------
    >>> disk = np.zeros((4, 5), np.float32)
    >>> disk[1:3, 2:] = 1
    >>> masks = {Plane((z, None, None)): SoftMask.of(disk) for z in (1, 2)}
    >>> cut = cross_section(masks, Plane((None, None, 3)), (6, 4))
    >>> cut.soft_mask.mask.astype(int).tolist()[:4]
    [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    >>> sorted(cut.lines)
    [(0, 1), (0, 2)]
    """
    probability = np.zeros(sides, np.float32)
    lines = set()
    for other, mask in masks.items():
        crossing = plane.crossing(other)
        if crossing is not None:
            (side, at), there = crossing
            low, high = (mask.box.top, mask.box.bottom) if there[0] == 0 else (mask.box.left, mask.box.right)
            shown = kept(mask) if low <= there[1] < high else mask
            probability[(at, slice(None)) if side == 0 else (slice(None), at)] = shown.line(*there)
            lines.add((side, at))
    return CrossSection(SoftMask.of(probability), frozenset(lines))
