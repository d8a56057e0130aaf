"""Pictures of a result: planes side by side, prompts drawn on them, outlines around masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

from napari_lowlat_seg.prompts import Box, Click, Mask, Point, Polygon, Prompt

Colour = tuple[int, int, int]

POSITIVE: Colour = (60, 220, 60)
NEGATIVE: Colour = (235, 50, 50)
CAPTION = 26
"""Height of the line of text under a panel, in pixels."""

GAP = 6


@dataclass(frozen=True, eq=False)
class Panel:
    """One plane to draw.

    Parameters
    ----------
    image
        (H, W) or (H, W, 3) uint8.
    outlines
        Masks (H, W) bool and the colour of their edge; later ones lie above.
    prompts
        Drawn on top: green for positive ones, red for negative ones.
    caption
        One line of text under the plane.
    """

    image: np.ndarray
    outlines: Sequence[tuple[np.ndarray, Colour]] = ()
    prompts: Sequence[Prompt] = ()
    caption: str = ""


def draw_panels(panels: Sequence[Panel], zoom: int = 2, turned: bool = False) -> Image.Image:
    """The panels side by side, every pixel drawn `zoom` x `zoom`.

    With `turned` the first axis runs to the right and the second one down, as axial planes of NIfTI files are
    usually looked at.
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
    image = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + CAPTION), "white")
    image.paste(Image.fromarray(pixels), (0, 0))
    canvas = ImageDraw.Draw(image)
    for prompt in panel.prompts:
        _draw_prompt(canvas, prompt, zoom, turned)
    canvas.text((2, pixels.shape[0] + 5), panel.caption, fill="black", font=ImageFont.load_default(size=15))
    return image


def _draw_prompt(canvas: ImageDraw.ImageDraw, prompt: Prompt, zoom: int, turned: bool) -> None:
    if isinstance(prompt, Mask):  # an area, not a mark: it shows as an outline if the caller wants it
        return
    colour = POSITIVE if prompt.positive else NEGATIVE
    points = [_place(point, zoom, turned) for point in _corners(prompt)]
    if isinstance(prompt, Click):
        ((x, y),) = points
        canvas.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour, outline="black", width=2)
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
