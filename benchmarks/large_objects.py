"""Times of the first and the final answer for objects too large for a closer look.

    python -m benchmarks.large_objects VALIDATION --set kvasir_seg --set ecssd --set vgg_iseg [--limit 5]

VALIDATION has DOMAIN/images/SET/NAME.* and DOMAIN/masks/SET/NAME.png. Clicks are the protocol's, eight for an
object; those after the first count, as looks along the outline begin with the second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.evaluation.annotator import next_click
from napari_lowlat_seg.evaluation.inputs.datasets import FolderOptions, find_targets, per_set, read_samples
from napari_lowlat_seg.inference.prediction import Prediction
from napari_lowlat_seg.inference.predictor import Predictor, load_predictor

LEAST = 0.06
"""Share of the picture that an object covers at least."""

CLICKS = 8


def times(predictor: Predictor, image: np.ndarray, truth: np.ndarray) -> list[tuple[float, float, float]]:
    """(seconds to the first answer, to the final one, its IoU) of each click after the first."""
    embedding = predictor.embed(image)
    clicks: list[Click] = []
    found: Prediction | None = None
    mask = np.zeros(truth.shape, np.bool_)
    rows = []
    for _ in range(CLICKS):
        click = next_click(truth, mask, clicks)
        if click is None:
            break
        clicks.append(click)
        began = time.perf_counter()
        taken: list[float] = []
        for answer in predictor.answers(embedding, clicks, found):
            mask = answer.mask
            taken.append(time.perf_counter() - began)
        found = answer
        union = np.count_nonzero(mask | (truth == 1))
        rows.append((taken[0], taken[-1], float(np.count_nonzero(mask & (truth == 1)) / union)))
    return rows[1:]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--set", action="append", required=True)
    parser.add_argument("--limit", type=int, default=5, help="large objects of a set")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    predictor = load_predictor("default", given.device)
    left = dict.fromkeys(given.set, given.limit)
    options = FolderOptions(ignore=per_set(["vgg_iseg=255"]), sets=tuple(given.set))
    rows: list[tuple[float, float, float]] = []
    for sample in read_samples(find_targets("folder", given.root, options=options)):
        name = sample.group.rpartition("/")[2]
        if left.get(name) and (sample.truth == 1).mean() >= LEAST:
            left[name] -= 1
            rows += times(predictor, sample.image, sample.truth)
    first, final, iou = (np.array(column) for column in zip(*rows, strict=True))
    for what, seconds in (("first", first), ("final", final)):
        p50, p95 = 1000 * np.percentile(seconds, [50, 95])
        print(f"{what} answer p50 {p50:.0f} ms, p95 {p95:.0f} ms")
    print(f"{len(rows)} clicks, mean IoU {iou.mean():.4f}")


if __name__ == "__main__":
    main()
