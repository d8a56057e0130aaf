"""Pictures (PNG, JPEG, WebP, BMP, GIF, JPEG 2000) without a size, folders of pages; labels as PNG.

A folder of pictures or TIFFs is a stack: one file a slice, in natural order, read when it is looked at.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.geometry import Geometry
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.bounds import DEFLATED, check_held, check_memory
from napari_lowlat_seg.io.choice import WHOLE, Choice, pick_series
from napari_lowlat_seg.io.formats import tiff
from napari_lowlat_seg.io.placed import Loaded, SliceStack, Unreadable, geometry_of, usual_geometry

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".jp2")

DECODERS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "JPEG2000")
"""Those of Pillow that may look at a file, whatever its name: others start programs (EPS) or follow paths."""


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """The pixels of a picture, turned as its EXIF orientation says; palettes become RGB.

    Raises
    ------
    ValueError
        For an animation, whose frames are its series, without a choice, and for sizes that cannot be.
    """
    from PIL import Image, ImageOps

    with Image.open(path, formats=DECODERS) as opened:
        ratio = DEFLATED if opened.format == "PNG" else math.inf
        size = opened.width * opened.height * len(opened.getbands())
        check_held(size if opened.mode != "1" else size // 8, path.stat().st_size, ratio)
        check_memory(4 * size)
        frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
        opened.seek(pick_series([str(i) for i in range(frames)], choice.series, what="frames"))
        image = ImageOps.exif_transpose(opened)
        plain = "RGBA" if "transparency" in image.info else "RGB"
        wanted = {"P": plain, "CMYK": "RGB", "YCbCr": "RGB", "LA": "L", "PA": "RGBA"}.get(
            image.mode, image.mode
        )
        data = np.asarray(image if wanted == image.mode else image.convert(wanted))
    return Loaded(data, usual_geometry(2), 2 if data.ndim == 3 else None)


def check_png(path: Path, shape: tuple[int, ...], like: Volume | None) -> None:
    """Refuse what a PNG cannot hold: volumes. It says no sizes, as everybody knows."""
    if len(shape) != 2:
        raise ValueError(f"a .png holds one plane of labels up to 65535; got an image of shape {shape}")
    if like is not None and geometry_of(like).calibrated and not geometry_of(like).straight:
        raise ValueError("a .png has no place for an image that lies oblique in the world; write .nii.gz")


def write_png(path: Path, labels: np.ndarray, like: Volume | None) -> None:
    """Write one plane of labels without a size; raises ValueError for labels above 65535."""
    from PIL import Image

    if labels.ndim != 2 or labels.dtype == np.uint32:
        raise ValueError(f"a .png holds one plane of labels up to 65535, these go up to {labels.max()}")
    Image.fromarray(labels).save(path)


# Folders of pages

PAGES = {
    **dict.fromkeys((".tif", ".tiff"), tiff.read),
    **dict.fromkeys(SUFFIXES, read),
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
            pixels = np.asarray(PAGES[page.suffix.lower()](page).data)
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
        if page.suffix.lower() in PAGES and not page.name.startswith(".") and page.is_file()
    ]
    return sorted(found, key=natural_key)


def read_folder(path: Path, choice: Choice = WHOLE) -> Loaded:
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
        raise Unreadable(f"no page images are in this folder; they can be {', '.join(PAGES)}")
    if len(kinds) > 1:
        raise Unreadable(f"its pages are of several kinds, {', '.join(kinds)}; a stack needs one")
    first = PAGES[kinds[0]](pages[0])
    if first.geometry.ndim != 2:
        raise Unreadable(f"its page {pages[0].name} has shape {first.data.shape}; a stack needs planes")
    place = first.geometry
    steps = [place.spacing[0], *place.spacing]
    geometry = Geometry.from_scale("zyx", steps, (0, *place.translation), (place.unit,) * 3)
    axis = None if first.channel_axis is None else first.channel_axis + 1
    return Loaded(PageStack(pages, np.asarray(first.data)), geometry, axis)
