"""Figures of results: planes or crops side by side, with prompts and outlines of masks drawn on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

from napari_lowlat_seg.core.prompts import Box, Click, Mask, Point, Polygon, Prompt

Colour = tuple[int, int, int]

POSITIVE: Colour = (60, 220, 60)
NEGATIVE: Colour = (235, 50, 50)
CAPTION = 26
"""Height of a line of text, in pixels."""

GAP = 6
"""Pixels between panels."""

OUTSIDE = 235
"""Gray value beyond the plane in a crop."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One plane to draw.

    Parameters
    ----------
    image
        (H, W) or (H, W, 3) uint8.
    outlines
        Masks (H, W) bool and the colours of their edges; later ones are drawn above.
    prompts
        Drawn on top: green for positive ones, red for negative ones.
    caption
        One line of text under the plane.
    mark
        Radius of a click's mark in drawn pixels.
    """

    image: np.ndarray
    outlines: Sequence[tuple[np.ndarray, Colour]] = ()
    prompts: Sequence[Prompt] = ()
    caption: str = ""
    mark: int = 6


def crop_panel(panel: Panel, row: int, col: int, side: int, width: int) -> Panel:
    """Return a square part of a panel, resized to `width` x `width` pixels, without its `Mask` prompts.

    Parameters
    ----------
    row, col
        Its first pixel; the square may reach beyond the plane.
    side
        Its side in pixels of the panel.
    """
    scale = width / side

    def moved(points: Sequence[Point]) -> tuple[Point, ...]:
        return tuple(((r - row + 0.5) * scale - 0.5, (c - col + 0.5) * scale - 0.5) for r, c in points)

    smooth = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX
    return replace(
        panel,
        image=_resized(_square(panel.image, row, col, side, OUTSIDE), width, smooth),
        outlines=[
            (_resized(_square(mask, row, col, side, 0), width, Image.Resampling.NEAREST), colour)
            for mask, colour in panel.outlines
        ],
        prompts=[one.with_points(moved(one.points)) for one in panel.prompts if not isinstance(one, Mask)],
    )


def _square(pixels: np.ndarray, row: int, col: int, side: int, beyond: int) -> np.ndarray:
    """(side, side, ...) of the pixels' type, filled with `beyond` outside the plane."""
    square = np.full((side, side, *pixels.shape[2:]), beyond, pixels.dtype)
    top, left = max(row, 0), max(col, 0)
    visible = pixels[top : max(row + side, 0), left : max(col + side, 0)]
    square[top - row : top - row + visible.shape[0], left - col : left - col + visible.shape[1]] = visible
    return square


def _resized(pixels: np.ndarray, width: int, how: Image.Resampling) -> np.ndarray:
    return np.array(Image.fromarray(pixels).resize((width, width), how))


def draw_sheet(pictures: Sequence[Image.Image], across: int, title: str) -> Image.Image:
    """Return pictures of one size in rows of `across` under a title, which is shortened to fit."""
    wide, high = pictures[0].size
    down = -(-len(pictures) // across)
    across = min(across, len(pictures))
    wide, high = wide + 3 * GAP, high + 3 * GAP
    whole = Image.new("RGB", (across * wide - GAP, down * high - GAP), "white")
    for place, picture in enumerate(pictures):
        y, x = divmod(place, across)
        whole.paste(picture, (GAP + x * wide, GAP + y * high))
    return with_heading(whole, [title])


def with_heading(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return the picture under lines of text; a line that is too long loses its middle."""
    font = ImageFont.load_default(size=15)
    high = CAPTION * len(lines)
    whole = Image.new("RGB", (picture.width, high + picture.height), "white")
    whole.paste(picture, (0, high))
    canvas = ImageDraw.Draw(whole)
    for place, line in enumerate(lines):
        shown, kept = line, len(line)
        while kept and canvas.textlength(shown, font=font) > picture.width - 4:
            kept -= 1
            shown = line[: (kept + 1) // 2] + "..." + line[len(line) - kept // 2 :]
        canvas.text((2, CAPTION * place + 4), shown, fill="black", font=font)
    return whole


def draw_panels(panels: Sequence[Panel], zoom: int = 2, turned: bool = False) -> Image.Image:
    """Return the panels side by side, every pixel drawn `zoom` x `zoom`.

    With `turned` the first axis runs to the right and the second one down, the usual view of axial planes of
    NIfTI files.
    """
    drawn = [_draw(panel, zoom, turned) for panel in panels]
    width = sum(image.width for image in drawn) + GAP * (len(drawn) - 1)
    whole = Image.new("RGB", (width, max(image.height for image in drawn)), "white")
    left = 0
    for image in drawn:
        whole.paste(image, (left, 0))
        left += image.width + GAP
    return whole


def _draw(panel: Panel, zoom: int, turned: bool) -> Image.Image:
    gray = panel.image if panel.image.ndim == 3 else np.repeat(panel.image[..., None], 3, axis=2)
    pixels = np.array(
        Image.fromarray(gray).resize((gray.shape[1] * zoom, gray.shape[0] * zoom), Image.Resampling.BICUBIC)
    )
    for mask, colour in panel.outlines:
        pixels[find_boundaries(mask.repeat(zoom, 0).repeat(zoom, 1), mode="thick")] = colour
    if turned:
        pixels = np.ascontiguousarray(pixels.swapaxes(0, 1))
    plane = Image.fromarray(pixels)
    for prompt in panel.prompts:  # on the plane alone: none may cover the caption
        _draw_prompt(ImageDraw.Draw(plane), prompt, zoom, turned, panel.mark)
    image = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + CAPTION), "white")
    image.paste(plane, (0, 0))
    canvas = ImageDraw.Draw(image)
    canvas.text((2, pixels.shape[0] + 5), panel.caption, fill="black", font=ImageFont.load_default(size=15))
    return image


def _draw_prompt(canvas: ImageDraw.ImageDraw, prompt: Prompt, zoom: int, turned: bool, mark: int) -> None:
    if isinstance(prompt, Mask):  # an area: the caller may add it to the outlines
        return
    colour = POSITIVE if prompt.positive else NEGATIVE
    points = [_place(point, zoom, turned) for point in _corners(prompt)]
    if isinstance(prompt, Click):
        ((x, y),) = points
        canvas.ellipse(
            (x - mark, y - mark, x + mark, y + mark), fill=colour, outline="black", width=2 if mark > 4 else 1
        )
        return
    canvas.line(points, fill="black", width=6, joint="curve")
    canvas.line(points, fill=colour, width=3, joint="curve")


def _corners(prompt: Prompt) -> tuple[Point, ...]:
    """The line to draw; closed for boxes and polygons."""
    if isinstance(prompt, Box):
        (r0, c0), (r1, c1) = prompt.points
        return ((r0, c0), (r0, c1), (r1, c1), (r1, c0), (r0, c0))
    if isinstance(prompt, Polygon):
        return (*prompt.points, prompt.points[0])
    return () if isinstance(prompt, Mask) else prompt.points


def _place(point: Point, zoom: int, turned: bool) -> tuple[float, float]:
    """(x, y) of the middle of a zoomed pixel."""
    row, col = ((value + 0.5) * zoom - 0.5 for value in point)
    return (row, col) if turned else (col, row)
