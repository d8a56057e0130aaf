"""`lowlat-seg demo`: the main job on the shipped data, from prompts to labels, images and numbers.

In each scene every object gets one prompt at a place written down here. A simulated annotator, who knows the
reference, corrects it on that plane until it is good; then it is propagated through the volume without help.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.cli.options import plural
from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.core.prompts import Click, Prompt, Scribble
from napari_lowlat_seg.core.volume import Plane, Volume, to_uint8
from napari_lowlat_seg.evaluation.analysis.pictures import Colour, Panel, draw_panels
from napari_lowlat_seg.evaluation.annotator import annotate
from napari_lowlat_seg.io.files import read_volume, write_labels
from napari_lowlat_seg.io.samples import sample_path
from napari_lowlat_seg.propagation.propagate import propagate
from napari_lowlat_seg.propagation.sweep import embed_plane

MAX_PROMPTS = 5
"""Prompts per object in all, corrections included."""

GOOD = 0.9
"""The annotator stops correcting at this IoU."""

EVERY = 5.0
"""Seconds between two progress lines while an object is propagated."""

COLOURS: tuple[Colour, ...] = ((0, 200, 255), (255, 110, 220), (120, 255, 120))
REFERENCE: Colour = (255, 200, 0)


@dataclass(frozen=True)
class Target:
    """One object: its name, its first prompt, and the reference labels it consists of."""

    name: str
    prompt: Prompt
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Scene:
    """A shipped image with objects in it, all prompted on one plane."""

    name: str
    image: str
    reference: str
    axis: int
    position: int
    targets: tuple[Target, ...]
    output: str
    note: str
    turned: bool = False


SCENES = (
    # Three neuron bodies of the proofread reference, clicked at their deepest points on the middle plane.
    Scene(
        "em",
        "em_fly_medulla.tif",
        "em_fly_medulla_labels.tif",
        axis=0,
        position=24,
        targets=(
            Target("neuron 479", Click((228, 95)), (479,)),
            Target("neuron 290", Click((181, 88)), (290,)),
            Target("neuron 361", Click((30, 219)), (361,)),
        ),
        output="em_labels.tif",
        note="reference: expert proofread",
    ),
    # The largest tumour area is near axial plane 90; the stroke follows the middle of the tumour there.
    Scene(
        "mri",
        "mri_glioma_flair.nii.gz",
        "mri_glioma_reference.nii.gz",
        axis=2,
        position=90,
        targets=(Target("tumour", Scribble(((68, 59), (61, 68), (62, 70), (60, 75), (61, 81))), (1, 2)),),
        output="mri_labels.nii.gz",
        note="reference: made by challenge algorithms, not by an expert",
        turned=True,
    ),
)


@dataclass(eq=False)
class _Result:
    """The masks of one object, and what they took."""

    masks: dict[Plane, np.ndarray] = field(default_factory=dict)
    prompts: tuple[Prompt, ...] = ()
    iou: float = 0.0
    prompt_seconds: list[float] = field(default_factory=list)
    propagation_seconds: float = 0.0


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


Report = Callable[[str], None]


def run_demo(
    out: str | Path,
    *,
    model: str = "default",
    device: str = "auto",
    scenes: Sequence[Scene] = SCENES,
    show: Callable[[Any], None] | None = None,
    report: Report = _report,
) -> list[dict[str, Any]]:
    """Segment the shipped images; write labels and images to `out`; show a table; return its rows.

    Parameters
    ----------
    out
        Folder; made if it does not exist.
    model, device
        As in `load_predictor`.
    scenes
        Images and objects.
    show
        Called with the table and with a line about each scene; None prints them.
    report
        Called with a line before each step; prints to standard error by default.

    Returns
    -------
    list of dict
        One for each object: "scene", "object", "prompts", "embed_ms", "prompt_ms" (mean), "plane_iou",
        "plane_dice", "planes", "volume_dice" and "propagation_s".

    Raises
    ------
    ValueError, OSError
        For an unusable model, device or folder.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    report(f"loading the model {model}")
    from napari_lowlat_seg.inference.predictor import (
        load_predictor,  # takes seconds, so it is reported before
    )

    predictor = load_predictor(model, device=device)
    rows: list[dict[str, Any]] = []
    for scene in scenes:
        rows += run_scene(predictor, scene, out, report)
    from rich.console import Console

    table = _table(rows)
    (show or Console().print)(table)
    for scene in scenes:
        files = f"{out / scene.output}, {out / f'demo-{scene.name}.png'}"
        (show or partial(Console(highlight=False, soft_wrap=True).print))(
            f"{scene.name}: {files} ({scene.note})"
        )
    return rows


def run_scene(predictor: Any, scene: Scene, out: Path, report: Report = _report) -> list[dict[str, Any]]:
    """Segment the objects of one scene, write its labels and its image; one row of numbers per object."""
    report(f"{scene.name}: reading {scene.image}, embedding plane {scene.position}")
    volume = read_volume(sample_path(scene.image)).with_window()
    reference = np.asarray(read_volume(sample_path(scene.reference)).data)
    embeddings: dict[Plane, Any] = {}

    def embed(plane: Plane) -> Any:
        if plane not in embeddings:
            embeddings[plane] = embed_plane(predictor, volume, plane)
        return embeddings[plane]

    start = volume.plane_at([scene.position], scene.axis)
    started = time.perf_counter()
    embed(start)
    embed_ms = 1e3 * (time.perf_counter() - started)
    labels = np.zeros(volume.shape, np.uint8)
    rows, results = [], []
    for number, target in enumerate(scene.targets, start=1):
        truth = np.isin(reference, target.labels)
        result = _segment(predictor, volume, scene, target, truth, embed, report)
        for plane, mask in result.masks.items():
            free = labels[plane.key()]
            free[mask & (free == 0)] = number  # the object clicked first keeps its pixels
        results.append(result)
        rows.append(
            {
                "scene": scene.name,
                "object": target.name,
                "prompts": len(result.prompts),
                "embed_ms": embed_ms,
                "prompt_ms": 1e3 * float(np.mean(result.prompt_seconds)),
                "plane_iou": result.iou,
                "plane_dice": dice(result.masks[start], truth[start.key()]),
                "planes": sum(bool(mask.any()) for mask in result.masks.values()),
                "volume_dice": dice(labels == number, truth),
                "propagation_s": result.propagation_seconds,
            }
        )
    report(f"{scene.name}: writing labels and an image to {out}")
    write_labels(out / scene.output, labels, volume)
    picture = draw_panels(_panels(volume, scene, labels, reference, results), turned=scene.turned)
    with atomic_file(out / f"demo-{scene.name}.png") as part:
        picture.save(part)
    return rows


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Twice the overlap over the sum of both areas, 0 to 1; 1 when both are empty."""
    total = np.count_nonzero(mask) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(mask & truth) / total if total else 1.0


def _segment(
    predictor: Any,
    volume: Volume,
    scene: Scene,
    target: Target,
    truth: np.ndarray,
    embed: Callable[[Plane], Any],
    report: Report,
) -> _Result:
    """Prompt, correct, propagate."""
    start = volume.plane_at([scene.position], scene.axis)
    result = _Result()

    def predict(prompts: tuple[Prompt, ...], previous: Any) -> Any:
        started = time.perf_counter()
        prediction = predictor.predict(embed(start), prompts, previous)
        result.prompt_seconds.append(time.perf_counter() - started)
        return prediction

    on_plane = truth[start.key()].astype(np.int8)
    title = f"{scene.name}: {target.name}"
    report(f"{title}: prompts on plane {scene.position}")
    done = annotate(predict, on_plane, first=target.prompt, max_clicks=MAX_PROMPTS, stop_at=GOOD)
    result.prompts, result.iou = done.prompts, float(done.ious[-1])
    result.masks[start] = done.predictions[-1].mask
    started = time.perf_counter()
    planes = volume.planes(scene.axis)
    reached = f"{plural(len(result.prompts), 'prompt')}, IoU {result.iou:.2f}"
    report(f"{title}: {reached}; propagating through at most {len(planes)} planes")
    steps = propagate(predictor, volume, {start: done.predictions[-1]}, planes, embed=embed)
    for step in _reported((step for step in steps if step.note is None), title, report):
        result.masks[step.plane] = step.prediction.mask
    result.propagation_seconds = time.perf_counter() - started
    return result


def _reported(steps: Iterable[Any], title: str, report: Report) -> Iterator[Any]:
    """The steps; every `EVERY` seconds the planes done so far are reported, at the end the time it took."""
    number, started = 0, time.perf_counter()
    last = started
    for number, step in enumerate(steps, start=1):
        yield step
        if time.perf_counter() - last >= EVERY:
            last = time.perf_counter()
            report(f"{title}: {number} planes after {last - started:.0f} s")
    report(f"{title}: {number} planes in {time.perf_counter() - started:.1f} s")


def _panels(
    volume: Volume, scene: Scene, labels: np.ndarray, reference: np.ndarray, results: Sequence[_Result]
) -> list[Panel]:
    """The plane as it is, the same with prompts and outlines, then two planes it was propagated to."""
    start = volume.plane_at([scene.position], scene.axis)
    reached = sorted({plane.position for result in results for plane in result.masks})
    places = [reached[len(reached) // 6], reached[-1 - len(reached) // 6]]
    prompts = tuple(prompt for result in results for prompt in result.prompts)
    propagated = [volume.plane_at([place], scene.axis) for place in places]
    titles = [f"plane {scene.position}: {len(prompts)} prompts in all"]
    titles += [f"plane {place}: propagated (yellow: reference)" for place in places]
    panels = [Panel(_shown(volume, start), caption=f"{scene.image}, plane {scene.position}")]
    for plane, title in zip((start, *propagated), titles):
        drawn = [(np.isin(reference[plane.key()], target.labels), REFERENCE) for target in scene.targets]
        drawn += [(labels[plane.key()] == i + 1, COLOURS[i % len(COLOURS)]) for i in range(len(results))]
        panels.append(Panel(_shown(volume, plane), drawn, prompts if plane == start else (), title))
    return panels


def _shown(volume: Volume, plane: Plane) -> np.ndarray:
    return to_uint8(volume.plane(plane), volume.window)


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table

    names = (
        "scene",
        "object",
        "prompts",
        "embed ms",
        "ms per prompt",
        "Dice on plane",
        "planes",
        "Dice in volume",
        "s to follow",  # with a longer word the table is wider than 80 columns
    )
    table = Table(*names, box=None)
    for row in rows:
        table.add_row(
            row["scene"],
            row["object"],
            str(row["prompts"]),
            f"{row['embed_ms']:.0f}",
            f"{row['prompt_ms']:.0f}",
            f"{row['plane_dice']:.3f}",
            str(row["planes"]),
            f"{row['volume_dice']:.3f}",
            f"{row['propagation_s']:.1f}",
        )
    return table
