"""Every object of one plane, unprompted: a grid of clicks, and of the answers those worth keeping.

An answer is worth keeping when it hardly changes with the threshold and no better one shows the same. What is
kept is laid down as labels that do not overlap. A large plane is looked at as a whole and in tiles. The
settings come from measurement: docs/decisions/everything.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy.ndimage import label

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.masks import THRESHOLD
from napari_lowlat_seg.core.prompts import Click, Prompt

TOGETHER = 32
"""Clicks that the network is asked at once, at most."""

PIXELS = 2**26
"""Pixels of the answers that are held at once, and of the largest plane."""

STEP = 0.2
"""A stable mask is nearly the same at thresholds this much above and below the usual one."""

TILE = 1024
"""Rows and columns above which a plane is looked at in tiles, too,"""

SHIFT = 768
"""from one tile to the next: what is cut off by a tile is whole in another, or large."""


class Engine(Protocol):
    """What a grid of clicks needs of a predictor."""

    def embed(
        self, image: np.ndarray, window: tuple[float, float] | None, spacing: tuple[float, float]
    ) -> Any: ...

    def predict_batch(self, embedding: Any, prompts: Sequence[Sequence[Prompt]]) -> Sequence[Any]: ...


@dataclass(frozen=True)
class MaskGeneratorSettings:
    """Which answers are kept.

    Attributes
    ----------
    grid
        Clicks along the longer side of a plane or tile; the shorter side has them at the same distance.
    stability
        Least IoU of the masks at thresholds 0.2 above and below the usual one, 0 to 1.
    least_area
        Pixels.
    most_area
        Share of the plane or tile, 0 to 1.
    same
        Of two masks with a larger IoU only that with the higher score is kept. The score is the stability
        times the network's own estimate of its IoU, or the mean probability inside the mask if it makes none.
    own
        Share of a mask that masks of higher score must leave to it, 0 to 1.
    """

    grid: int = 16
    stability: float = 0.2
    least_area: int = 50
    most_area: float = 0.5
    same: float = 0.5
    own: float = 0.5

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ValueError(f"a grid needs 1 click or more along the longer side; got {self.grid}")
        if not 0 <= self.stability <= 1:
            raise ValueError(f"stability is an IoU from 0 to 1; got {self.stability}")


DEFAULT = MaskGeneratorSettings()


@dataclass(frozen=True, eq=False)
class MaskProposal:
    """An answer that was kept: where its box begins, its mask there, and how good it seems, 0 to 1."""

    corner: tuple[int, int]
    mask: np.ndarray
    score: float

    @cached_property
    def area(self) -> int:
        """Pixels."""
        return int(np.count_nonzero(self.mask))

    def iou(self, other: MaskProposal) -> float:
        """Intersection over union; 0 where the boxes do not meet."""
        low = np.maximum(self.corner, other.corner)
        high = np.minimum(np.add(self.corner, self.mask.shape), np.add(other.corner, other.mask.shape))
        if (low >= high).any():
            return 0.0
        mine, theirs = (
            one.mask[tuple(slice(a, b) for a, b in zip(low - one.corner, high - one.corner))]
            for one in (self, other)
        )
        both = int(np.count_nonzero(mine & theirs))
        return both / (self.area + other.area - both)


def everything(
    predictor: Engine,
    image: np.ndarray,
    window: tuple[float, float] | None = None,
    spacing: tuple[float, float] = (1.0, 1.0),
    rules: MaskGeneratorSettings = DEFAULT,
) -> np.ndarray:
    """Labels of all that is found in a picture: (rows, cols) uint32, 0 for nothing, 1 the best answer.

    Parameters
    ----------
    image
        (H, W) gray or (H, W, 3) RGB.
    window, spacing
        As `Predictor.embed` takes them.

    Raises
    ------
    ValueError
        For a picture of more than 2^26 pixels.

    Examples
    --------
    >>> labels = everything(load_predictor("default"), image)  # doctest: +SKIP
    """
    rows, cols = image.shape[:2]
    if rows * cols > PIXELS:
        raise ValueError(f"everything is looked for in planes of up to {PIXELS} pixels; got {rows} x {cols}")
    kept: list[MaskProposal] = []
    for region in looks(rows, cols):
        seen = image[region.slices]
        kept += _in_tile(predictor, seen, window, spacing, region, (rows, cols), rules)
    return laid_down(distinct(kept, rules.same), (rows, cols), rules.own)


def looks(rows: int, cols: int) -> list[BoundingBox]:
    """The whole plane; of a large one also its tiles, all of one size, row by row.

    >>> [(*r.corner, *r.shape) for r in looks(1024, 1500)]
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


def grid_of_clicks(
    shape: tuple[int, int], count: int, spacing: tuple[float, float] = (1.0, 1.0)
) -> list[Click]:
    """Clicks in the middle of equal cells, `count` of them along the longer side, row by row.

    >>> [click.at for click in grid_of_clicks((4, 8), 2)]
    [(1.5, 1.5), (1.5, 5.5)]
    """
    sides = np.multiply(shape, spacing)
    counts = np.maximum(np.round(count * sides / sides.max()), 1).astype(int)
    rows, cols = ((np.arange(n) + 0.5) * side / n - 0.5 for n, side in zip(counts, shape, strict=True))
    return [Click((float(row), float(col))) for row in rows for col in cols]


def _in_tile(
    predictor: Engine,
    seen: np.ndarray,
    window: tuple[float, float] | None,
    spacing: tuple[float, float],
    region: BoundingBox,
    plane: tuple[int, int],
    rules: MaskGeneratorSettings,
) -> Iterator[MaskProposal]:
    embedding = predictor.embed(seen, window, spacing)
    clicks = grid_of_clicks(region.shape, rules.grid, spacing)
    step = max(1, min(TOGETHER, PIXELS // int(np.prod(region.shape))))
    for first in range(0, len(clicks), step):
        asked = clicks[first : first + step]
        answers = predictor.predict_batch(embedding, [[click] for click in asked])
        for click, answer in zip(asked, answers, strict=True):
            found = judged(click, answer.probability, answer.quality, rules)
            if found is not None and not _cut_off(found, region, plane):
                (top, left) = found.corner
                yield MaskProposal((top + region.top, left + region.left), found.mask, found.score)


def _cut_off(found: MaskProposal, region: BoundingBox, plane: tuple[int, int]) -> bool:
    """Whether a mask touches a side of its tile that is not a side of the plane."""
    (top, left), (rows, cols) = found.corner, found.mask.shape
    touches = (top == 0, left == 0, top + rows == region.shape[0], left + cols == region.shape[1])
    inner = (
        region.top > 0,
        region.left > 0,
        region.bottom < plane[0],
        region.right < plane[1],
    )
    return any(touch and inside for touch, inside in zip(touches, inner, strict=True))


def judged(
    click: Click, probability: np.ndarray, quality: float | None, rules: MaskGeneratorSettings
) -> MaskProposal | None:
    """The part of an answer that its click is in, if it is worth keeping."""
    row, col = (round(x) for x in click.at)
    mask = probability > THRESHOLD
    if not mask[row, col]:
        return None
    parts, _ = label(mask)
    part = parts == parts[row, col]
    area = int(np.count_nonzero(part))
    if not rules.least_area <= area <= rules.most_area * part.size:
        return None
    stability = float(
        np.count_nonzero(probability > THRESHOLD + STEP) / np.count_nonzero(probability > THRESHOLD - STEP)
    )
    if stability < rules.stability:
        return None
    score = stability * (float(probability[part].mean()) if quality is None else quality)
    rows, cols = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    box = part[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].copy()
    return MaskProposal((int(rows[0]), int(cols[0])), box, score)


def distinct(found: Sequence[MaskProposal], same: float) -> list[MaskProposal]:
    """The best of each group that shows the same, best first; of equally good ones the earlier."""
    kept: list[MaskProposal] = []
    for one in sorted(found, key=lambda one: -one.score):
        if all(one.iou(better) <= same for better in kept):
            kept.append(one)
    return kept


def laid_down(found: Sequence[MaskProposal], shape: tuple[int, int], own: float) -> np.ndarray:
    """Labels (rows, cols) uint32 from 1: each keeps what none before it has, if that is enough of it."""
    labels = np.zeros(shape, np.uint32)
    count = 0
    for one in found:
        (top, left), (rows, cols) = one.corner, one.mask.shape
        part = labels[top : top + rows, left : left + cols]
        free = one.mask & (part == 0)
        if np.count_nonzero(free) >= own * one.area:
            count += 1
            part[free] = count
    return labels
