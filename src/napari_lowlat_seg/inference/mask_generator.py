"""Every object of one plane, without prompts: a grid of clicks, of whose masks the good ones are kept.

A mask is good when it hardly changes with the threshold and no better one shows the same object. Those kept
become labels that do not overlap. A large plane is segmented as a whole and in tiles. The settings come from
measurement: docs/decisions/automatic-segmentation.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy.ndimage import label

from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.masks import THRESHOLD, PostProcessing, postprocess_mask
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.requests import FoundOnPlane

CLICKS_AT_ONCE = 32
"""The most clicks that the network predicts in one call."""

PIXELS = 2**26
"""Pixels of the predictions held at once, and of the largest plane."""

STEP = 0.2
"""A stable mask is nearly the same at thresholds this much above and below the usual one."""

TILE = 1024
"""Planes of more rows or columns are segmented in tiles, too,"""

SHIFT = 768
"""from one tile to the next: what is cut off by a tile is whole in another, or large."""


class BatchPredictor(Protocol):
    """What a grid of clicks needs of a predictor."""

    def embed(
        self, image: np.ndarray, window: tuple[float, float] | None, spacing: tuple[float, float]
    ) -> Any: ...

    def predict_batch(self, embedding: Any, prompts: Sequence[Sequence[Prompt]]) -> Sequence[Any]: ...


@dataclass(frozen=True)
class MaskGeneratorSettings:
    """Which masks are kept.

    Attributes
    ----------
    grid
        Clicks along the longer side of a plane or tile; the shorter side has them at the same distance.
    stability
        Least IoU of the masks at thresholds 0.2 above and below the usual one, 0 to 1. Higher values give
        fewer, more certain objects.
    least_area
        Pixels.
    most_area
        Share of the plane or tile, 0 to 1.
    same
        Of two masks with a larger IoU only that with the higher score is kept. The score is the stability
        times the network's own estimate of its IoU, or the mean probability inside the mask if it makes none.
    own
        Share of a mask that masks of higher score must leave to it, 0 to 1.
    finish
        How probabilities become masks. Of each mask only the part with its click is taken.

    Raises
    ------
    ValueError
        For a grid below 1 and a stability outside 0 to 1.
    """

    grid: int = 16
    stability: float = 0.2
    least_area: int = 50
    most_area: float = 0.5
    same: float = 0.5
    own: float = 0.5
    finish: PostProcessing = field(default_factory=PostProcessing)

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ValueError(f"a grid needs 1 click or more along the longer side; got {self.grid}")
        if not 0 <= self.stability <= 1:
            raise ValueError(f"stability is an IoU from 0 to 1; got {self.stability}")


DEFAULT = MaskGeneratorSettings()


@dataclass(frozen=True, eq=False)
class MaskProposal:
    """A mask that was kept.

    Attributes
    ----------
    corner
        (row, col) on the plane of the mask's first pixel.
    mask
        (rows, cols) bool, cut to its bounding box.
    score
        How good it seems, 0 to 1.
    """

    corner: tuple[int, int]
    mask: np.ndarray
    score: float

    @property
    def box(self) -> BoundingBox:
        """Where the mask lies."""
        return BoundingBox.at(self.corner, self.mask.shape)

    @cached_property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.mask))

    def iou(self, other: MaskProposal) -> float:
        """Intersection over union; 0 where the boxes do not meet."""
        shared = self.box.intersection(other.box)
        if shared.is_empty:
            return 0.0
        mine, theirs = (
            one.mask[shared.shifted(-one.corner[0], -one.corner[1]).slices] for one in (self, other)
        )
        both = int(np.count_nonzero(mine & theirs))
        return both / (self.area + other.area - both)


def label_plane(
    predictor: BatchPredictor,
    image: np.ndarray,
    window: tuple[float, float] | None = None,
    spacing: tuple[float, float] = (1.0, 1.0),
    settings: MaskGeneratorSettings = DEFAULT,
) -> np.ndarray:
    """Labels of every object found in an image: (rows, cols) uint32, 0 for none, 1 for the best mask.

    Parameters
    ----------
    image
        (H, W) gray or (H, W, 3) RGB.
    window, spacing
        As `Predictor.embed` takes them.

    Raises
    ------
    ValueError
        For an image of more than 2^26 pixels.

    Examples
    --------
    >>> labels = label_plane(load_predictor("default"), image)  # doctest: +SKIP
    """
    *_, last = search_plane(predictor, image, window, spacing, settings)
    assert last.labels is not None
    return last.labels


def search_plane(
    predictor: BatchPredictor,
    image: np.ndarray,
    window: tuple[float, float] | None = None,
    spacing: tuple[float, float] = (1.0, 1.0),
    settings: MaskGeneratorSettings = DEFAULT,
) -> Iterator[FoundOnPlane]:
    """Yield how far the search is after every few clicks; the last one has the labels of `label_plane`.

    Parameters and errors are those of `label_plane`.
    """
    rows, cols = image.shape[:2]
    if rows * cols > PIXELS:
        raise ValueError(f"automatic segmentation takes planes of up to {PIXELS} pixels; got {rows} x {cols}")
    kept: list[MaskProposal] = []
    tiles = overlapping_tiles(rows, cols)
    total, done = sum(len(click_grid(tile.shape, settings.grid, spacing)) for tile in tiles), 0
    for tile in tiles:
        for clicks, some in _propose(
            predictor, image[tile.slices], window, spacing, tile, (rows, cols), settings
        ):
            kept += some
            done += clicks
            yield FoundOnPlane(done, total)
    yield FoundOnPlane(total, total, *label_masks(nms(kept, settings.same), (rows, cols), settings.own))


def overlapping_tiles(rows: int, cols: int) -> list[BoundingBox]:
    """The whole plane; of a large one also its tiles, all of one size, row by row.

    >>> [(*r.corner, *r.shape) for r in overlapping_tiles(1024, 1500)]
    [(0, 0, 1024, 1500), (0, 0, 1024, 1024), (0, 476, 1024, 1024)]
    """
    whole = BoundingBox(0, 0, rows, cols)
    if max(rows, cols) <= TILE:
        return [whole]
    downs, acrosses = (
        [min(start, max(n - TILE, 0)) for start in range(0, max(n - TILE, 0) + SHIFT, SHIFT)]
        for n in (rows, cols)
    )
    tiles = [
        BoundingBox.at((top, left), (min(rows, TILE), min(cols, TILE))) for top in downs for left in acrosses
    ]
    return [whole, *dict.fromkeys(tiles)]


def click_grid(shape: tuple[int, int], count: int, spacing: tuple[float, float] = (1.0, 1.0)) -> list[Click]:
    """Clicks in the middle of equal cells, `count` of them along the longer side, row by row.

    >>> [click.at for click in click_grid((4, 8), 2)]
    [(1.5, 1.5), (1.5, 5.5)]
    """
    sides = np.multiply(shape, spacing)
    counts = np.maximum(np.round(count * sides / sides.max()), 1).astype(int)
    rows, cols = ((np.arange(n) + 0.5) * side / n - 0.5 for n, side in zip(counts, shape, strict=True))
    return [Click((float(row), float(col))) for row in rows for col in cols]


def _propose(
    predictor: BatchPredictor,
    pixels: np.ndarray,
    window: tuple[float, float] | None,
    spacing: tuple[float, float],
    tile: BoundingBox,
    plane: tuple[int, int],
    settings: MaskGeneratorSettings,
) -> Iterator[tuple[int, list[MaskProposal]]]:
    """After every few clicks: how many, and their masks that are kept, placed on the plane."""
    embedding = predictor.embed(pixels, window, spacing)
    clicks = click_grid(tile.shape, settings.grid, spacing)
    step = max(1, min(CLICKS_AT_ONCE, PIXELS // (tile.shape[0] * tile.shape[1])))
    for first in range(0, len(clicks), step):
        some = clicks[first : first + step]
        predictions = predictor.predict_batch(embedding, [[click] for click in some])
        kept = []
        for proposal in filter_masks(some, predictions, settings):
            box = proposal.box.shifted(*tile.corner)
            if not _is_cut_off(box, tile, plane):
                kept.append(MaskProposal(box.corner, proposal.mask, proposal.score))
        yield len(some), kept


def _is_cut_off(box: BoundingBox, tile: BoundingBox, plane: tuple[int, int]) -> bool:
    """Whether a mask touches a side of its tile that is not a side of the plane."""
    sides = BoundingBox(0, 0, *plane)
    return any(mask == side != end for mask, side, end in zip(box, tile, sides, strict=True))


def filter_masks(
    clicks: Sequence[Click], predictions: Sequence[Any], settings: MaskGeneratorSettings
) -> Iterator[MaskProposal]:
    """Of each prediction the connected part that its click is in, if it is worth keeping.

    Parameters
    ----------
    clicks, predictions
        One prediction per click, with `probability`, (rows, cols) float32 in 0 to 1, and `quality`, its
        estimated IoU or None.
    """
    for click, prediction in zip(clicks, predictions, strict=True):
        probability, quality = prediction.probability, prediction.quality
        row, col = (round(x) for x in click.at)
        mask = probability > settings.finish.threshold
        if not mask[row, col]:
            continue
        parts, _ = label(mask)
        part = parts == parts[row, col]
        part = postprocess_mask(Patch.of(part), part.shape, settings.finish, [click]).on(part.shape)
        area = int(np.count_nonzero(part))
        if not settings.least_area <= area <= settings.most_area * part.size:
            continue
        stability = float(
            np.count_nonzero(probability > THRESHOLD + STEP)
            / np.count_nonzero(probability > THRESHOLD - STEP)
        )
        if stability < settings.stability:
            continue
        score = stability * (float(probability[part].mean()) if quality is None else quality)
        box = BoundingBox.of(part)
        yield MaskProposal(box.corner, part[box.slices].copy(), score)


def nms(proposals: Sequence[MaskProposal], same: float) -> list[MaskProposal]:
    """The best of each group that overlaps by an IoU above `same`, best first; of equal ones the earlier.

    Non-maximum suppression.
    """
    kept: list[MaskProposal] = []
    for proposal in sorted(proposals, key=lambda one: -one.score):
        if all(proposal.iou(better) <= same for better in kept):
            kept.append(proposal)
    return kept


def label_masks(
    proposals: Sequence[MaskProposal], shape: tuple[int, int], own: float
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (rows, cols) uint32 from 1, and float32 scores: each keeps the pixels that none before it has.

    Parameters
    ----------
    proposals
        The best one first.
    shape
        Rows and columns of the plane.
    own
        A mask to which less than this share of it is left is dropped; there is no gap in the numbers.
    """
    labels = np.zeros(shape, np.uint32)
    scores: list[float] = []
    for proposal in proposals:
        part = labels[proposal.box.slices]
        free = proposal.mask & (part == 0)
        if np.count_nonzero(free) >= own * proposal.area:
            scores.append(proposal.score)
            part[free] = len(scores)
    return labels, np.array(scores, np.float32)
