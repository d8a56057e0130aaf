"""Where to look closer: the crop around an object that covers little of its plane.

The original sees every picture whole and loses where objects are small. Here the whole plane answers first,
and a crop around the object is embedded and answers next. This room is about geometry only;
`Predictor.answers` does the embedding. The numbers come from measurement: docs/decisions/closer-look.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import find_objects, label

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Prompt

Box = tuple[float, float, float, float]
"""(r0, c0, r1, c1) in plane pixels, both corners part of it."""

MARGIN = 0.35  # context on each side, as a share of the object's longer side
LEAST_PIXELS = 32  # no crop is smaller than this,
LEAST_SHARE = 1 / 8  # nor than this share of the plane's longer side
WORTHWHILE = 0.6  # a crop larger than this share of the plane's longer side is not worth embedding
ROOM = 0.1  # a crop serves while the object leaves this share of its size free on every side
WHOLE_PLANE_SHARE = 0.4  # of the whole plane in the first closer look of a new object
SPECK = 0.02  # parts of a mask smaller than this share of its largest part do not count


def object_box(prompts: Sequence[Prompt], mask: np.ndarray) -> Box | None:
    """The box of the positive prompts and the mask (H, W) bool less its specks, None if both are empty."""
    step = max(1, math.ceil(max(mask.shape) / 512))  # a box needs no finer grid
    coarse = mask[::step, ::step]
    boxes = [prompt.bounds() for prompt in prompts if prompt.positive]
    top, left, bottom, right = BoundingBox.of(coarse)
    if bottom:  # looking for parts is what costs: only where there is something
        parts, count = label(coarse[top:bottom, left:right])
        areas = np.bincount(parts.ravel())[1:] if count > 1 else np.ones(1)
        places = find_objects(parts) if count > 1 else [np.s_[0 : bottom - top, 0 : right - left]]
        boxes += [
            (
                (top + down.start) * step,
                (left + across.start) * step,
                (top + down.stop - 1) * step,
                (left + across.stop - 1) * step,
            )
            for area, (down, across) in zip(areas, places, strict=True)
            if area >= SPECK * areas.max()
        ]
    if not boxes:
        return None
    low, high = np.min(boxes, axis=0), np.max(boxes, axis=0)
    return float(low[0]), float(low[1]), float(high[2]), float(high[3])


def closer_frame(frame: Frame, box: Box | None, shown: Frame | None = None) -> Frame | None:
    """The frame of a closer look at a box, None where `frame` shows it well enough.

    Parameters
    ----------
    frame
        Of the whole plane.
    box
        From `object_box`.
    shown
        The closer look there is; it is kept as long as it serves, since embedding is what costs.
    """
    if box is None:
        return None
    if shown is not None and has_room(shown, box):
        return shown
    longest = _extent(frame)
    closer = frame.around(box, MARGIN, max(LEAST_PIXELS, LEAST_SHARE * longest / min(frame.spacing)))
    return closer if _extent(closer) <= WORTHWHILE * longest else None


def shows(frame: Frame, prompts: Sequence[Prompt]) -> bool:
    """Whether a crop shows every positive prompt and the newest one."""
    top, left, rows, cols = frame.crop
    bounds = [prompt.bounds() for prompt in (*(p for p in prompts if p.positive), *prompts[-1:])]
    return all(
        r0 >= top - 0.5 and c0 >= left - 0.5 and r1 <= top + rows - 0.5 and c1 <= left + cols - 0.5
        for r0, c0, r1, c1 in bounds
    )


def has_room(frame: Frame, box: Box | None) -> bool:
    """Whether a crop shows a box with room to spare on every side that is not the plane's own border."""
    if box is None:
        return False
    top, left, rows, cols = frame.crop
    room = ROOM * max(box[2] - box[0] + 1, box[3] - box[1] + 1)
    spaces = (box[0] - top, box[1] - left, top + rows - 1 - box[2], left + cols - 1 - box[3])
    borders = (top == 0, left == 0, top + rows == frame.shape[0], left + cols == frame.shape[1])
    return all(space >= room or border for space, border in zip(spaces, borders, strict=True))


def _extent(frame: Frame) -> float:
    """The longer side of what a frame shows, in world units."""
    return max(count * pixel for count, pixel in zip(frame.crop[2:], frame.spacing, strict=True))
