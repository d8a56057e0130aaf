"""The crop for a closer look at an object that covers little of its plane.

The original embeds every image whole and is less accurate where objects are small. Here the first prediction
comes from the whole plane, the second from a magnified crop around the object. This module chooses the crop;
`Predictor.answers` embeds it. The numbers were measured: docs/decisions/closer-look.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import label

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Bounds, Prompt, Region

MARGIN = 0.35  # context on each side, as a share of the object's longer side
MIN_PIXELS = 32  # smallest side of a crop,
MIN_SHARE = 1 / 8  # also as a share of the plane's longer side
MAX_SHARE = 0.6  # larger crops, as a share of the plane's longer side, are not worth embedding
MIN_ROOM = 0.1  # free space that a crop must leave on every side of the object, as a share of its longer side
WHOLE_PLANE_SHARE = 0.4  # weight of the whole plane's probability in the first closer look of a new object
MIN_PART = 0.02  # smaller parts of a mask, as a share of its largest part, are ignored


def object_box(prompts: Sequence[Prompt], mask: np.ndarray) -> Bounds | None:
    """`Bounds` of positive prompts and the mask (H, W) bool, tiny parts ignored; None if both are empty."""
    step = max(1, math.ceil(max(mask.shape) / 512))  # a box needs no finer grid
    coarse = mask[::step, ::step]
    boxes = [prompt.bounds() for prompt in prompts if prompt.positive]
    top, left, bottom, right = BoundingBox.of(coarse)
    if bottom:  # parts are labelled only where there is something: it takes most of the time
        parts, count = label(coarse[top:bottom, left:right])
        if count > 1:
            areas = np.bincount(parts.ravel())
            areas[0] = 0
            kept = areas >= MIN_PART * areas.max()
            within = BoundingBox.of(kept[parts])
            top, left, bottom, right = (
                top + within.top, left + within.left, top + within.bottom, left + within.right
            )  # fmt: skip
        boxes.append((top * step, left * step, (bottom - 1) * step, (right - 1) * step))
    if not boxes:
        return None
    low, high = np.min(boxes, axis=0), np.max(boxes, axis=0)
    return float(low[0]), float(low[1]), float(high[2]), float(high[3])


def closer_frame(frame: Frame, box: Bounds | None, shown: Frame | None = None) -> Frame | None:
    """The frame of a closer look at an object; None if `frame` shows it large enough.

    Parameters
    ----------
    frame
        Of the whole plane.
    box
        The object's `object_box`.
    shown
        The frame of the present closer look; it is kept as long as it has room, to spare an embedding.
    """
    if box is None:
        return None
    if shown is not None and has_room(shown, box):
        return shown
    longest = frame.extent
    closer = frame.around(box, MARGIN, max(MIN_PIXELS, MIN_SHARE * longest / min(frame.spacing)))
    return closer if closer.extent <= MAX_SHARE * longest else None


def shows(frame: Frame, prompts: Sequence[Prompt]) -> bool:
    """Whether every positive prompt and the newest prompt lie inside a crop."""
    top, left, rows, cols = frame.crop
    bounds = [prompt.bounds() for prompt in (*(p for p in prompts if p.positive), *prompts[-1:])]
    return all(
        r0 >= top - 0.5 and c0 >= left - 0.5 and r1 <= top + rows - 0.5 and c1 <= left + cols - 0.5
        for r0, c0, r1, c1 in bounds
    )


def has_room(frame: Frame, box: Bounds | None) -> bool:
    """Whether a crop has room around a box on every side that is not a side of the plane."""
    if box is None:
        return False
    top, left, rows, cols = frame.crop
    room = MIN_ROOM * max(box[2] - box[0] + 1, box[3] - box[1] + 1)
    spaces = (box[0] - top, box[1] - left, top + rows - 1 - box[2], left + cols - 1 - box[3])
    borders = (top == 0, left == 0, top + rows == frame.shape[0], left + cols == frame.shape[1])
    return all(space >= room or border for space, border in zip(spaces, borders, strict=True))


def whole_plane_share(prompts: Sequence[Prompt], new: bool) -> float:
    """How much of a second prediction's probability is that of the first, from the whole plane.

    A new object is known by its prompts alone. Its first closer look is not given the whole plane's coarse
    mask, or it would repeat that mask's mistakes. Clicks and scribbles can mean two things, and the mean of
    two independent predictions is right more often than either; a region says how far the object reaches.
    """
    return WHOLE_PLANE_SHARE if new and not any(isinstance(prompt, Region) for prompt in prompts) else 0.0
