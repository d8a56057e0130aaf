"""Labels of single planes linked into objects that run through a stack.

Two segments on neighbouring planes are one object when each overlaps the other more than any other segment
there, and enough. Links are one to one: a wrong mask on one plane cannot merge two objects, it ends one of
them. A segment without a match may find one a plane further on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

MIN_IOU = 0.3
"""Lowest IoU of two segments that are linked."""

REACH = 2
"""Links are sought up to this many planes back: with 2 an object may be missing on one plane."""


def overlaps(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of labels above 0 that share pixels: (labels of `first`, labels of `second`, IoU), sorted.

    Both images are integers of one shape; the three arrays have one entry per pair.

    >>> overlaps(np.array([1, 1, 2]), np.array([5, 0, 5]))
    (array([1, 2]), array([5, 5]), array([0.33333333, 0.5       ]))
    """
    first, second = first.astype(np.int64), second.astype(np.int64)
    areas, others = np.bincount(first.ravel()), np.bincount(second.ravel())
    both = (first > 0) & (second > 0)
    pairs, counts = np.unique(first[both] * len(others) + second[both], return_counts=True)
    a, b = np.divmod(pairs, len(others))
    return a, b, counts / (areas[a] + others[b] - counts)


def matches(first: np.ndarray, second: np.ndarray, min_iou: float = MIN_IOU) -> list[tuple[int, int]]:
    """Pairs of labels, each the other's best by IoU and with at least `min_iou`; of equal ones the lowest.

    `first` and `second` are integers of one shape, 0 for the background.
    """
    a, b, iou = overlaps(first, second)
    best_of_a: dict[int, int] = {}
    best_of_b: dict[int, int] = {}
    for i in np.argsort(-iou, kind="stable").tolist():
        best_of_a.setdefault(int(a[i]), i)
        best_of_b.setdefault(int(b[i]), i)
    mutual = [(one, i) for one, i in sorted(best_of_a.items()) if best_of_b[int(b[i])] == i]
    return [(one, int(b[i])) for one, i in mutual if iou[i] >= min_iou]


def link_planes(
    planes: Iterable[np.ndarray], min_iou: float = MIN_IOU, reach: int = REACH
) -> Iterator[np.ndarray]:
    """Yield, for each plane of labels, a table from its labels to the numbers of the objects they belong to.

    Parameters
    ----------
    planes
        (rows, cols) integers, 0 for the background. Only the last `reach` planes are held.
    min_iou
        Lowest IoU of two segments that are linked, 0 to 1.
    reach
        How many planes back links are sought.

    Yields
    ------
    (highest label + 1,) uint32. Numbers count from 1 in the order in which objects begin; entry 0 is 0.
    """
    # For each plane, its labels without a match so far, and the object numbers of all its labels.
    recent: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=reach)
    count = 0
    for labels in planes:
        numbers = np.zeros(int(labels.max(initial=0)) + 1, np.uint32)
        open_here = labels
        for free, theirs in reversed(recent):
            pairs = matches(free, open_here, min_iou)
            for a, b in pairs:
                numbers[b] = theirs[a]
            # A label that has a match is not matched again.
            free[np.isin(free, [a for a, _ in pairs])] = 0
            open_here = np.where(np.isin(open_here, [b for _, b in pairs]), 0, open_here)
        for label in np.unique(labels[labels > 0]).tolist():
            if not numbers[label]:
                count += 1
                numbers[label] = count
        recent.append((labels.copy(), numbers))
        yield numbers
