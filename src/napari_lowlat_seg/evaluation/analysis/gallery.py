"""Gallery of a model's worst objects: the truth, the predicted masks and the clicks.

No mask is kept while a benchmark runs. Models and annotator are deterministic, so the few worst objects are
annotated once more, as far as the gallery shows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import to_uint8
from napari_lowlat_seg.evaluation.analysis.pictures import (
    Colour,
    Panel,
    crop_panel,
    draw_panels,
    draw_sheet,
    with_heading,
)
from napari_lowlat_seg.evaluation.annotator import FIRST_PROMPTS, annotate
from napari_lowlat_seg.evaluation.inputs.datasets import Sample
from napari_lowlat_seg.evaluation.inputs.segmenters import Segmenter
from napari_lowlat_seg.evaluation.metrics import iou
from napari_lowlat_seg.evaluation.report import KS, Curve, domain_of

RANKED = 5
"""Number of prompts that the rank of an object counts, and that its tile shows."""

TRUTH: Colour = (255, 210, 0)
PREDICTED: Colour = (60, 150, 255)
WIDTH = 250
"""Side of a panel in drawn pixels; every tile has two."""

MIN_SIDE = 64
"""Least side of the part of the plane that a panel shows, in pixels."""

MARGIN = 1.6
"""Side of that part as a multiple of the object's longer side."""

ACROSS = 4
"""Tiles in a row."""

Worst = dict[tuple[str, str], list[Curve]]
"""The curves of the worst objects by model and domain, the worst first."""


def score(curve: Curve) -> float:
    """Return the mean IoU after prompts 1 .. 5, by which objects are ranked: the lower, the worse."""
    return float(np.mean(curve.ious[:RANKED]))


def find_worst(curves: Sequence[Curve], dataset: str, count: int) -> Worst:
    """Return at most `count` curves of each model and domain, the worst first; ties in data-set order."""
    parts: Worst = {}
    for curve in curves:
        parts.setdefault((curve.model, domain_of(curve.group, dataset)), []).append(curve)
    return {key: sorted(part, key=score)[:count] for key, part in parts.items()}


def worst_rows(worst: Worst, labels: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the entries of the report, by model and domain; `labels` holds each object's id in its mask."""
    return [
        {
            "model": model,
            "domain": domain,
            "objects": [
                {
                    "set": curve.group,
                    "name": curve.object,
                    "object": labels[curve.object],
                    "area": curve.area,
                    "score": score(curve),
                    "ious": {k: curve.ious[k - 1] for k in KS if k <= len(curve.ious)},
                }
                for curve in part
            ],
        }
        for (model, domain), part in worst.items()
    ]


def draw_tiles(
    models: Sequence[Segmenter], samples: Iterable[Sample], *, worst: Worst, first: str
) -> Iterator[list[tuple[tuple[str, str], Image.Image]]]:
    """Yield for each sample its tiles, one for every model that it is among the worst objects of.

    Each tile comes with the names of its model and object. Samples of one picture should follow each other
    and share the image array: each model that needs it embeds it once. `first` is as in `draw_tile`.
    """
    named = {model.name: model for model in models}
    image: np.ndarray | None = None
    embeddings: dict[str, Any] = {}
    for sample in samples:
        if sample.image is not image:
            image, embeddings = sample.image, {}
        tiles = []
        ranked = (enumerate(part, 1) for part in worst.values())
        for rank, curve in ((n, one) for n, one in chain(*ranked) if one.object == sample.name):
            model = named[curve.model]
            if curve.model not in embeddings:
                embeddings[curve.model] = model.embed(image)
            tile = draw_tile(model, embeddings[curve.model], sample, curve, rank, first)
            tiles.append(((curve.model, curve.object), tile))
        yield tiles


def draw_tile(
    model: Segmenter, embedding: Any, sample: Sample, curve: Curve, rank: int, first: str
) -> Image.Image:
    """Return the tile of an object, annotated again: after the first prompt and after the fifth, or the last.

    Parameters
    ----------
    embedding
        Of the sample's image, by the model.
    curve
        Of the same model and object.
    rank
        From 1, the worst.
    first
        Kind of the first prompt, as in `quality`.
    """
    done = annotate(
        partial(model.predict, embedding),
        sample.truth,
        first=FIRST_PROMPTS[first](sample.truth),
        max_clicks=min(RANKED, len(curve.ious)),
    )
    image, window = to_uint8(sample.image), _window(sample.truth)
    panels = [
        crop_panel(
            _panel(image, sample.truth, done.prompts[:count], done.predictions[count - 1].mask, window),
            *window,
            WIDTH,
        )
        for count in (1, len(done.prompts))
    ]
    ks = [k for k in (1, RANKED, 20) if k < len(curve.ious)]
    ks += [len(curve.ious)] if len(curve.ious) < 20 else [20]
    ious = ", ".join(f"{curve.ious[k - 1]:.2f} at {k}" for k in ks)
    lines = [f"{rank}. {curve.object}", f"{100 * curve.area:.3g} % of the plane; IoU {ious}"]
    return with_heading(draw_panels(panels, zoom=1), lines)


def _window(truth: np.ndarray) -> tuple[int, int, int]:
    """Row, column and side of the square around the object, moved into the plane as far as possible."""
    inside = np.argwhere(truth == 1)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    side = max(MIN_SIDE, min(round(MARGIN * int((high - low).max())), max(truth.shape)))
    row, col = (
        min(max((a + b - side) // 2, 0), max(length - side, 0))
        for a, b, length in zip(low.tolist(), high.tolist(), truth.shape)
    )
    return row, col, side


def _panel(
    image: np.ndarray,
    truth: np.ndarray,
    prompts: Sequence[Prompt],
    mask: np.ndarray,
    window: tuple[int, int, int],
) -> Panel:
    row, col, side = window
    hidden = sum(
        not (row <= top and bottom < row + side and col <= left and right < col + side)
        for top, left, bottom, right in (prompt.bounds() for prompt in prompts)
    )
    caption = f"prompt {len(prompts)}: IoU {iou(truth, mask):.2f}" + (
        f", {hidden} out of sight" if hidden else ""
    )
    return Panel(image, [(truth == 1, TRUTH), (mask, PREDICTED)], prompts, caption, mark=4)


def save_gallery(
    tiles: Mapping[tuple[str, str], Sequence[Image.Image]], folder: Path, dataset: str
) -> list[Path]:
    """Write the tiles of each model and domain as one PNG, in their order; return the files."""
    folder.mkdir(exist_ok=True)
    written: list[Path] = []
    for (model, domain), pictures in tiles.items():
        title = (
            f"{model}, {domain} of {dataset}: lowest mean IoU after prompts 1 to {RANKED}. "
            "Truth yellow, prediction blue above it; clicks green for object, red for background."
        )
        name = re.sub(r"[^\w.@-]+", "-", f"{model}-{domain}")
        path = folder / f"{name}.png"
        if path in written:  # two names may differ only in replaced characters
            path = folder / f"{name}-{len(written) + 1}.png"
        with atomic_file(path) as part:
            draw_sheet(pictures, ACROSS, title).save(part)
        written.append(path)
    return written
