"""What corrections do to a mask: what they lose, what they change far from the click, whom they obey.

Why nothing far from a click is held back: docs/decisions/corrections.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from skimage.measure import label

from napari_lowlat_seg.core.masks import bounds, inside
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.evaluation.annotator import Answer, annotate, deepest, iou

FALL = 0.05
"""A correction is a fall when the IoU loses more than this."""

LEAST_REACH = 8.0
"""Pixels around a click that are near it however thin the object is; else it is the inscribed radius."""


@dataclass(frozen=True, eq=False)
class Run:
    """One object annotated with clicks.

    Attributes:
        truth: (H, W), 1 / 0 / -1.
        clicks: in the order they were given.
        answers: one a click, each with its `mask`.
        ious: (clicks,) float32.
    """

    truth: np.ndarray
    clicks: tuple[Click, ...]
    answers: tuple[Answer, ...]
    ious: np.ndarray

    @classmethod
    def of(
        cls,
        predict: Callable[[tuple[Prompt, ...], Answer | None], Answer],
        truth: np.ndarray,
        clicks: int,
        first: Click | None = None,
    ) -> Run:
        """What the simulated annotator does with up to so many clicks; arguments as `annotate` takes them."""
        answers: list[Answer] = []

        def kept(prompts: tuple[Prompt, ...], previous: Answer | None) -> Answer:
            answers.append(predict(prompts, previous))
            return answers[-1]

        done = annotate(kept, truth, first=first, max_clicks=clicks)
        given = tuple(prompt for prompt in done.prompts if isinstance(prompt, Click))
        return cls(truth, given, tuple(answers), done.ious)

    def after(self, clicks: int) -> float:
        """IoU after so many clicks, or at the end if the annotator was content before."""
        return float(self.ious[min(clicks, len(self.ious)) - 1])


def corrections(run: Run) -> dict[str, float]:
    """Sums over the corrections of a run: their number, falls, far share of changed pixels, IoU by these."""
    reach = max(LEAST_REACH, deepest(run.truth == 1)[0])
    falls, far_share, far_gain = 0, 0.0, 0.0
    for k in range(1, len(run.answers)):
        before, after = run.answers[k - 1].mask, run.answers[k].mask
        far = far_changes(before, after, run.clicks[k].at, reach)
        falls += bool(run.ious[k] < run.ious[k - 1] - FALL)
        if far.any():
            far_share += np.count_nonzero(far) / np.count_nonzero(before ^ after)
            far_gain += float(run.ious[k]) - iou(run.truth, np.where(far, before, after))
    return {
        "corrections": len(run.answers) - 1,
        "falls": falls,
        "far share": far_share,
        "far gain": far_gain,
    }


def far_changes(before: np.ndarray, after: np.ndarray, at: tuple[float, float], reach: float) -> np.ndarray:
    """The pixels (H, W) bool of those changes that do not come near a click.

    Parameters:
        before, after: (H, W) bool masks.
        at: (row, col) of the click.
        reach: an 8-connected region of changed pixels is near if it has one at most so many pixels away.
    """
    changed: np.ndarray = before ^ after
    box = bounds(changed)
    part = changed[inside(box)]
    regions = label(part, connectivity=2)
    rows, cols = np.nonzero(part)
    close = np.hypot(rows + box[0] - at[0], cols + box[1] - at[1]) <= reach
    near = np.unique(regions[rows[close], cols[close]])
    far = np.zeros_like(changed)
    far[inside(box)] = part & ~np.isin(regions, near)
    return far


def conduct(runs: Sequence[Run]) -> dict[str, float]:
    """How many answers there are in some runs, and how many of them are not what anybody would expect.

    Keys: answers; complement (the complement of the mask has the higher IoU with the object: also a mask that
    takes a small part of a large object); inside out (and the mask has a higher IoU with the background than
    its complement has); disobeyed (the newest click's own pixel is on the wrong side).
    """
    counts = {"answers": 0.0, "complement": 0.0, "inside out": 0.0, "disobeyed": 0.0}
    for run in runs:
        background = np.where(run.truth < 0, run.truth, 1 - run.truth)
        for click, answer in zip(run.clicks, run.answers, strict=True):
            mask = answer.mask
            row, col = (round(v) for v in click.at)
            better = bool(iou(run.truth, ~mask) > iou(run.truth, mask))
            counts["answers"] += 1
            counts["complement"] += better
            counts["inside out"] += better and bool(iou(background, mask) > iou(background, ~mask))
            counts["disobeyed"] += bool(mask[row, col]) != click.positive
    return counts
