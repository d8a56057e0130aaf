"""Labels of single planes linked into objects that run through a stack.

Two segments on neighbouring planes are one object when each overlaps the other more than any other segment
there, and enough. Links are one to one: a wrong mask on one plane cannot melt two objects into one, it ends
one of them. A segment without a partner may find one a plane further on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

LEAST = 0.3
"""IoU of two segments that are linked."""

REACH = 2
"""Planes between which links are sought: 2 lets an object be missing on one."""


def overlaps(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of labels above 0 that share pixels: (label of `first`, label of `second`, IoU), by label.

    >>> overlaps(np.array([1, 1, 2]), np.array([5, 0, 5]))
    (array([1, 2]), array([5, 5]), array([0.33333333, 0.5       ]))
    """
    first, second = first.astype(np.int64), second.astype(np.int64)
    areas, others = np.bincount(first.ravel()), np.bincount(second.ravel())
    both = (first > 0) & (second > 0)
    pairs, counts = np.unique(first[both] * len(others) + second[both], return_counts=True)
    a, b = np.divmod(pairs, len(others))
    return a, b, counts / (areas[a] + others[b] - counts)


def partners(first: np.ndarray, second: np.ndarray, least: float = LEAST) -> list[tuple[int, int]]:
    """Labels that are each other's best by IoU, `least` or more; of equal ones the lower label."""
    a, b, iou = overlaps(first, second)
    best_of_a: dict[int, int] = {}
    best_of_b: dict[int, int] = {}
    for i in np.argsort(-iou, kind="stable").tolist():
        best_of_a.setdefault(int(a[i]), i)
        best_of_b.setdefault(int(b[i]), i)
    mutual = [(one, i) for one, i in sorted(best_of_a.items()) if best_of_b[int(b[i])] == i]
    return [(one, int(b[i])) for one, i in mutual if iou[i] >= least]


def linked(planes: Iterable[np.ndarray], least: float = LEAST, reach: int = REACH) -> Iterator[np.ndarray]:
    """For each plane of labels, the number of the object that each of its labels belongs to.

    Numbers count from 1 in the order in which objects begin; entry 0, nothing, is 0. Only the last `reach`
    planes are held.
    """
    # Of each plane the labels without a partner yet, and the numbers of all.
    recent: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=reach)
    count = 0
    for labels in planes:
        numbers = np.zeros(int(labels.max(initial=0)) + 1, np.uint32)
        open_here = labels
        for free, theirs in reversed(recent):
            pairs = partners(free, open_here, least)
            for a, b in pairs:
                numbers[b] = theirs[a]
            # Whoever has a partner is no partner for others.
            free[np.isin(free, [a for a, _ in pairs])] = 0
            open_here = np.where(np.isin(open_here, [b for _, b in pairs]), 0, open_here)
        for label in np.unique(labels[labels > 0]).tolist():
            if not numbers[label]:
                count += 1
                numbers[label] = count
        recent.append((labels.copy(), numbers))
        yield numbers
