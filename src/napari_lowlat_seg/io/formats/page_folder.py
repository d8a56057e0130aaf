"""A folder of page images as a stack: one file a slice, in natural order, read when it is looked at."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import Geometry
from napari_lowlat_seg.io.choice import WHOLE, Choice
from napari_lowlat_seg.io.formats import pictures, tiff
from napari_lowlat_seg.io.placed import Loaded, SliceStack, Unreadable

SUFFIXES = {
    **dict.fromkeys((".tif", ".tiff"), tiff.read),
    **dict.fromkeys(pictures.SUFFIXES, pictures.read),
}


class PageStack(SliceStack):
    """Pages as one array of (pages, rows, columns), with colours last if they have any.

    Parameters
    ----------
    pages
        Files, the first slice first.
    first
        The pixels of the first.
    """

    def __init__(self, pages: list[Path], first: np.ndarray) -> None:
        super().__init__(len(pages), first)
        self.pages = pages
        self._last: tuple[int, np.ndarray] = (0, first)

    def slice(self, at: int) -> np.ndarray:
        """The pixels of a page; refuses one that is not like the first."""
        if self._last[0] != at:
            page = self.pages[at]
            pixels = np.asarray(SUFFIXES[page.suffix.lower()](page).data)
            if pixels.shape != self.shape[1:] or pixels.dtype != self.dtype:
                raise ValueError(
                    f"{page} has shape {pixels.shape} and type {pixels.dtype}, the first page of the folder "
                    f"{self.shape[1:]} and {self.dtype}; a stack needs pages alike"
                )
            self._last = at, pixels
        return self._last[1]


def natural_key(path: Path) -> list[Any]:
    """A key to sort files as people count: page 2 before page 10.

    >>> sorted(map(Path, ("p10.tif", "p2.tif")), key=natural_key)[0].name
    'p2.tif'
    """
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name.lower())]


def pages_of(folder: Path) -> list[Path]:
    """The page images of a folder in natural order; hidden files are none."""
    found = [
        page
        for page in folder.iterdir()
        if page.suffix.lower() in SUFFIXES and not page.name.startswith(".") and page.is_file()
    ]
    return sorted(found, key=natural_key)


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """The stack of a folder's pages; sizes of rows and columns are those of the first page.

    The distance of the pages is not known: with sizes, a step along z is as long as a row.

    Raises
    ------
    ValueError
        For no pages, files of several kinds, and a first page that is no plane.
    """
    pages = pages_of(path)
    kinds = sorted({page.suffix.lower() for page in pages})
    if not pages:
        raise Unreadable(f"no page images are in this folder; they can be {', '.join(SUFFIXES)}")
    if len(kinds) > 1:
        raise Unreadable(f"its pages are of several kinds, {', '.join(kinds)}; a stack needs one")
    first = SUFFIXES[kinds[0]](pages[0])
    if first.geometry.ndim != 2:
        raise Unreadable(f"its page {pages[0].name} has shape {first.data.shape}; a stack needs planes")
    place = first.geometry
    steps = [place.spacing[0], *place.spacing]
    geometry = Geometry.from_scale("zyx", steps, (0, *place.translation), (place.unit,) * 3)
    axis = None if first.channel_axis is None else first.channel_axis + 1
    return Loaded(PageStack(pages, np.asarray(first.data)), geometry, axis)
