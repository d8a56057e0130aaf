"""The simulated annotator: the prompts that a careful person would give next, computed from the ground truth.

`next_click` is the evaluation protocol of the interactive segmentation literature, pixel for pixel (Sofiiuk,
Petrov, Konushin, "Reviving Iterative Training with Mask Guidance for Interactive Segmentation", 2021, section
4; SegNext uses the same), because published numbers depend on it. Boxes, lassos and scribbles have no agreed
protocol; here they imitate a person's: a little loose, shortened, simplified.

A *truth* is an (H, W) array of any integer type: 1 object, 0 background, -1 ignored. All coordinates are
(row, col) with pixel centres on integers. Nothing here mutates its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import edt
import numpy as np
from skimage.graph import MCP_Geometric
from skimage.measure import approximate_polygon, find_contours, label
from skimage.morphology import skeletonize

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.prompts import Box, Click, Polygon, Prompt, Scribble
from napari_lowlat_seg.evaluation.metrics import check_same_shape, iou


class HasMask(Protocol):
    """What a predictor returns: anything with a boolean mask of the truth's shape."""

    @property
    def mask(self) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Annotation:
    """One object annotated by the simulated annotator.

    Attributes
    ----------
    prompts
        In the order they were given; the first may be of any kind.
    predictions
        What the predictor returned, one a prompt.
    ious
        (len(prompts),) float32, the IoU after each prompt.
    """

    prompts: tuple[Prompt, ...]
    predictions: tuple[Any, ...]
    ious: np.ndarray


def annotate(
    predict: Callable[[tuple[Prompt, ...], Any], HasMask],
    truth: np.ndarray,
    *,
    first: Prompt | None = None,
    max_clicks: int = 20,
    stop_at: float | None = None,
    parity: bool = False,
) -> Annotation:
    """Annotate the object of a truth with up to `max_clicks` prompts.

    Parameters
    ----------
    predict
        Called with all prompts so far and the previous prediction (None at first).
    first
        The first prompt; the protocol's first click if None. All later ones are clicks.
    stop_at
        Stop after the prompt that reached this IoU.
    parity
        Where nothing is left to correct, go on with a negative click at (0, 0), as published evaluation code
        does. Without it the annotation ends there, so fewer prompts may come back.

    Raises
    ------
    ValueError
        If the truth has no object or `max_clicks` is not positive.
    """
    if max_clicks < 1:
        raise ValueError(f"max_clicks must be at least 1, got {max_clicks}")
    if not (truth == 1).any():
        raise ValueError(
            f"the truth of shape {truth.shape} has no pixel of value 1, so there is no object to annotate"
        )
    prompts: tuple[Prompt, ...] = ()
    ious: list[float] = []
    predictions: list[HasMask] = []
    mask = np.zeros(truth.shape, bool)
    while len(prompts) < max_clicks:
        prompt = (
            first if first is not None and not prompts else next_click(truth, mask, prompts, parity=parity)
        )
        if prompt is None:
            break
        prompts = (*prompts, prompt)
        predictions.append(predict(prompts, predictions[-1] if predictions else None))
        mask = predictions[-1].mask
        ious.append(iou(truth, mask))
        if stop_at is not None and ious[-1] >= stop_at:
            break
    return Annotation(prompts, tuple(predictions), np.array(ious, np.float32))


def next_click(
    truth: np.ndarray, mask: np.ndarray, prompts: Sequence[Prompt] = (), *, parity: bool = False
) -> Click | None:
    """Return the click in the middle of the largest error, or None if there is no error left to click on.

    The error with the larger exact Euclidean distance to its own edge (the picture's border is an edge) gets
    the click, at the first such pixel in row-major order; a tie makes the click negative. Pixels of earlier
    clicks are skipped, ignored pixels are no errors.

    Parameters
    ----------
    truth
        (H, W), 1 / 0 / -1.
    mask
        (H, W) bool, the current prediction.
    prompts
        Given so far; only the pixels of clicks matter.
    parity
        Return a negative click at (0, 0) in place of None, as published evaluation code does.

    Raises
    ------
    ValueError
        If truth and mask differ in shape.
    """
    missed, excess = _errors(truth, mask)
    clicked = [(round(p.at[0]), round(p.at[1])) for p in prompts if isinstance(p, Click)]
    missed_depth, missed_at = deepest(missed, clicked)
    excess_depth, excess_at = deepest(excess, clicked)
    if missed_depth == 0 and excess_depth == 0 and not parity:
        return None
    positive = missed_depth > excess_depth
    return Click(missed_at if positive else excess_at, positive=positive)


def scribble_in(truth: np.ndarray) -> Scribble:
    """Return a positive stroke along the longest skeleton path of the object's largest part, shortened.

    Raises
    ------
    ValueError
        If the truth has no object.
    """
    return Scribble(_stroke(largest_part(truth)))


def box_around(truth: np.ndarray) -> Box:
    """Return the tight positive box around the whole object, from its first to its last pixel centre.

    Raises
    ------
    ValueError
        If the truth, (H, W) of 1 / 0 / -1, has no object.
    """
    top, left, bottom, right = BoundingBox.of(_object(truth))
    return Box((float(top), float(left)), (float(bottom - 1), float(right - 1)))


def lasso_around(truth: np.ndarray, looseness: float = 0.02) -> Polygon:
    """Return a loose positive outline of the object's largest part, with its holes filled in.

    Parameters
    ----------
    truth
        (H, W), 1 / 0 / -1.
    looseness
        Distance of the outline from the object, and how much it is simplified, as a fraction of the square
        root of the object's area.

    Raises
    ------
    ValueError
        If the truth has no object.
    """
    part = largest_part(truth)
    size = float(np.sqrt(part.sum()))
    pad = int(np.ceil(looseness * size)) + 2
    top, left, bottom, right = BoundingBox.of(part)
    padded = np.pad(part[top:bottom, left:right], pad)
    distance = edt.edt(~padded, black_border=False, parallel=1)
    # The iso-line of the distance at margin + half a pixel is the dilated outline, without stairs.
    outlines = find_contours(distance, looseness * size + 0.5)
    outer = max(outlines, key=lambda line: float(np.ptp(line[:, 0]) * np.ptp(line[:, 1])))
    points = approximate_polygon(outer, looseness * size)[:-1] + np.array([top - pad, left - pad])
    if len(points) < 3:
        points = approximate_polygon(outer, 0)[:-1] + np.array([top - pad, left - pad])
    points = np.clip(points, 0, np.array(part.shape) - 1)
    return Polygon(tuple(_pair(point) for point in points))


FIRST_PROMPTS: dict[str, Callable[[np.ndarray], Prompt | None]] = {
    "click": lambda truth: next_click(truth, np.zeros(truth.shape, bool)),
    "box": box_around,
    "scribble": scribble_in,
    "polygon": lasso_around,
}
"""Kinds of first prompts; "click" is the protocol's."""


def _errors(truth: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Missed and excess pixels, (H, W) bool each."""
    check_same_shape(truth, mask)
    mask = mask.astype(bool, copy=False)
    return (truth == 1) & ~mask, (truth == 0) & mask


def deepest(region: np.ndarray, clicked: Sequence[tuple[int, int]] = ()) -> tuple[float, tuple[int, int]]:
    """Return depth and place of a region's deepest pixel not clicked yet; (0.0, (0, 0)) if there is none.

    The depth is the exact Euclidean distance to the region's edge (the picture's border is one too), in
    pixels: of a whole object it is the inscribed radius.

    Distances are measured in the bounding box of the region only. That is exact: all that surrounds the box
    is background or the border of the picture, and both are edges.
    """
    box = BoundingBox.of(region)
    if box.is_empty:
        return 0.0, (0, 0)
    top, left, bottom, right = box
    depths = edt.edt(np.ascontiguousarray(region[box.slices]), black_border=True, parallel=1)
    for row, col in clicked:
        if top <= row < bottom and left <= col < right:
            depths[row - top, col - left] = 0
    row, col = divmod(int(depths.argmax()), depths.shape[1])
    depth = float(depths[row, col])
    return (depth, (top + row, left + col)) if depth > 0 else (0.0, (0, 0))


def _object(truth: np.ndarray) -> np.ndarray:
    inside: np.ndarray = truth == 1
    if not inside.any():
        raise ValueError(
            f"the truth of shape {truth.shape} has no pixel of value 1, so nothing can be drawn around it"
        )
    return inside


def largest_part(truth: np.ndarray) -> np.ndarray:
    """Return the largest 8-connected part of the object, (H, W) bool."""
    parts = label(_object(truth), connectivity=2)
    largest: np.ndarray = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    return largest


def _stroke(region: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Points along the longest path of the skeleton of a connected region, shortened at both ends."""
    top, left, bottom, right = BoundingBox.of(region)
    inside = np.pad(region[top:bottom, left:right], 1)
    skeleton = skeletonize(inside)
    # The far end of the far end of any pixel: the longest path of a tree, and a long one of any other
    # skeleton.
    end = _far_end(skeleton, tuple(np.argwhere(skeleton)[0]))[0]
    path = np.array(_far_end(skeleton, end)[1], float)
    cut = int(0.1 * len(path))
    path = path[cut : len(path) - cut]
    depth = edt.edt(inside, black_border=True, parallel=1)
    along = depth[path[:, 0].astype(int), path[:, 1].astype(int)]
    path = approximate_polygon(path, 0.3 * float(along.min())) + np.array([top - 1, left - 1])
    return tuple(_pair(point) for point in path)


def _far_end(skeleton: np.ndarray, start: tuple[int, ...]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The skeleton pixel farthest from `start` along the skeleton, and the path to it."""
    search = MCP_Geometric(np.where(skeleton, 1.0, -1.0))
    costs, _ = search.find_costs([start])
    costs[~np.isfinite(costs)] = -1
    end = tuple(int(i) for i in np.unravel_index(costs.argmax(), costs.shape))
    return end, search.traceback(end)


def _pair(point: np.ndarray) -> tuple[float, float]:
    return float(point[0]), float(point[1])
