"""How good labels are beside a reference: objects found, panoptic quality, adapted Rand error.

Objects are matched by IoU above 0.5, so that none has two partners (Kirillov et al., Panoptic Segmentation,
CVPR 2019). The adapted Rand error is 1 - F of pairs of voxels (Arganda-Carreras et al., Frontiers in
Neuroanatomy 2015), over the voxels that the reference labels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from skimage.measure import label
from skimage.metrics import adapted_rand_error

from napari_lowlat_seg.evaluation.report import save_json
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.propagation.linking import overlaps

MATCH = 0.5
CLOSE = 0.75


def label_scores(found: np.ndarray, truth: np.ndarray, least: int = 1) -> dict[str, float]:
    """Scores of integer labels of any shape, 0 for nothing.

    Keys: objects and found (how many in the reference and in the labels), recall_50 and recall_75 (share of
    the reference's objects that one label meets with a higher IoU), precision_50, quality (panoptic), dice
    (mean over the reference's objects, each with its best label), rand_error, covered (share of voxels with a
    label). Objects of the reference of fewer than `least` voxels need not be found, but may be.

    Raises ValueError for arrays of different shapes and a reference without an object so large.
    """
    if found.shape != truth.shape:
        raise ValueError(f"labels must have the reference's shape {truth.shape}; got {found.shape}")
    sizes = np.bincount(truth.ravel())
    large = np.flatnonzero(sizes >= least)
    large = large[large > 0]
    if not large.size:
        raise ValueError(f"the reference needs an object of {least} voxels or more; it has none")
    _, theirs, iou = overlaps(found, truth)
    best = np.zeros(len(sizes))
    np.maximum.at(best, theirs, iou)
    count = len(np.unique(found[found > 0]))
    met = best[best > MATCH]
    missed = int(np.count_nonzero(best[large] <= MATCH))
    return {
        "objects": len(large),
        "found": count,
        "recall_50": float(np.mean(best[large] > MATCH)),
        "recall_75": float(np.mean(best[large] > CLOSE)),
        "precision_50": len(met) / count if count else 0.0,
        "quality": float(met.sum() / (len(met) + 0.5 * missed + 0.5 * (count - len(met)))),
        "dice": float(np.mean(2 * best[large] / (1 + best[large]))),
        "rand_error": float(adapted_rand_error(truth, found)[0]),
        "covered": float(np.mean(found > 0)),
    }


def run_labels(
    found: Path,
    reference: Path,
    *,
    parts: bool = False,
    least: int = 1,
    json: Path | None = None,
    show: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Show `label_scores` of two files; with `parts`, pieces of a label that do not touch are objects."""
    ours, truth = (np.asarray(read_volume(path).data).astype(np.int64) for path in (found, reference))
    if parts:
        truth = label(truth, connectivity=1, background=0)
    scores = label_scores(ours, truth, least)
    if json is not None:
        save_json(scores, json)
    for name, value in scores.items():
        show(f"{name:>12}  {value:.3f}" if isinstance(value, float) else f"{name:>12}  {value}")
    return scores
