"""Metrics: IoU, numbers of clicks, and scores of whole label images."""

from __future__ import annotations

import numpy as np
from skimage.metrics import adapted_rand_error

from napari_lowlat_seg.propagation.linking import overlaps

MATCH = 0.5
CLOSE = 0.75


def iou(truth: np.ndarray, mask: np.ndarray) -> float:
    """Return intersection over union of object and mask, without ignored pixels; 1.0 if both are empty.

    Raises
    ------
    ValueError
        If truth and mask differ in shape.
    """
    check_same_shape(truth, mask)
    inside, counted = truth == 1, truth != -1
    union = np.count_nonzero((inside | mask) & counted)
    return np.count_nonzero(inside & mask) / union if union else 1.0


def noc(ious: np.ndarray, threshold: float) -> np.ndarray:
    """Return the clicks (NoC) at which each object reached an IoU, (N,) int64; K where it never did.

    Parameters
    ----------
    ious
        (N, K) IoU after each of K clicks.
    threshold
        An IoU such as 0.9.
    """
    _check_curves(ious)
    reached = ious >= threshold
    clicks: np.ndarray = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, ious.shape[1])
    return clicks


def nof(ious: np.ndarray, threshold: float) -> int:
    """Return the failures (NoF): objects that needed all K clicks, even if click K reached the IoU."""
    return int(np.count_nonzero(noc(ious, threshold) == ious.shape[1]))


def miou_at_k(ious: np.ndarray) -> np.ndarray:
    """Return the mean IoU after click 1 .. K, (K,), of curves without early stop."""
    _check_curves(ious)
    mean: np.ndarray = ious.mean(axis=0)
    return mean


def _check_curves(ious: np.ndarray) -> None:
    if ious.ndim != 2 or 0 in ious.shape:
        raise ValueError(
            f"expected IoU curves of shape (objects, clicks) with at least one of each, got {ious.shape}"
        )


def check_same_shape(truth: np.ndarray, mask: np.ndarray) -> None:
    """Raise ValueError unless truth and mask are two planes of one shape."""
    if truth.shape != mask.shape or truth.ndim != 2:
        raise ValueError(
            f"truth and mask must be two planes of one shape, got {truth.shape} and {mask.shape}"
        )


def label_scores(found: np.ndarray, truth: np.ndarray, least: int = 1) -> dict[str, float]:
    """Return scores of integer labels beside a reference: arrays of one shape, 0 for background.

    Objects are matched by IoU above 0.5, so that none has two partners, as in the panoptic quality (Kirillov
    et al., "Panoptic Segmentation", CVPR 2019, section 4). The adapted Rand error is 1 - F of pairs of voxels
    over the voxels that the reference labels (Arganda-Carreras et al., Frontiers in Neuroanatomy 2015).

    Parameters
    ----------
    least
        Objects of the reference of fewer voxels need not be found, but may be.

    Returns
    -------
    dict
        "objects" and "found": numbers in the reference and in the labels; "recall_50", "recall_75": share of
        the reference's objects that a label meets with a higher IoU; "precision_50"; "quality": panoptic;
        "dice": mean over the reference's objects, each with its best label; "rand_error"; "covered": share of
        voxels with a label.

    Raises
    ------
    ValueError
        For arrays of different shapes, and a reference without an object of `least` voxels.
    """
    if found.shape != truth.shape:
        raise ValueError(f"labels must have the reference's shape {truth.shape}; got {found.shape}")
    sizes = np.bincount(truth.ravel())
    large = np.flatnonzero(sizes >= least)
    large = large[large > 0]
    if not large.size:
        raise ValueError(f"the reference needs an object of {least} voxels or more; it has none")
    _, partners, ious = overlaps(found, truth)
    best = np.zeros(len(sizes))
    np.maximum.at(best, partners, ious)
    count = len(np.unique(found[found > 0]))
    matched = best[best > MATCH]
    missed = int(np.count_nonzero(best[large] <= MATCH))
    return {
        "objects": len(large),
        "found": count,
        "recall_50": float(np.mean(best[large] > MATCH)),
        "recall_75": float(np.mean(best[large] > CLOSE)),
        "precision_50": len(matched) / count if count else 0.0,
        "quality": float(matched.sum() / (len(matched) + 0.5 * missed + 0.5 * (count - len(matched)))),
        "dice": float(np.mean(2 * best[large] / (1 + best[large]))),
        "rand_error": float(adapted_rand_error(truth, found)[0]),
        "covered": float(np.mean(found > 0)),
    }
