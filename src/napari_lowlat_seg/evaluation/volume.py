"""How many actions a volume costs: one object, prompted on a few planes, corrected where it is worst.

A simulated annotator knows the truth. It prompts a plane with clicks until its IoU is good, at most five; one
of several methods fills the other planes; then the annotator corrects the plane with most wrong pixels (or
the one that the method itself doubts most), again and again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane, Volume, read_range, to_gray
from napari_lowlat_seg.evaluation.annotator import annotate
from napari_lowlat_seg.evaluation.report import machine, save_json, volume_table
from napari_lowlat_seg.inference.prediction import Prediction
from napari_lowlat_seg.inference.predictor import Predictor, load_predictor
from napari_lowlat_seg.io.files import default_axis, read_volume
from napari_lowlat_seg.propagation.interpolate import interpolate
from napari_lowlat_seg.propagation.propagate import most_uncertain, propagate
from napari_lowlat_seg.propagation.sweep import PropagatedMask, affected, click_position, embed_plane
from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache, EmbeddingKey

CLICKS = 5
"""Most clicks that one plane gets,"""

GOOD = 0.9
"""and the IoU at which it gets no more."""

EVERY = 10
"""In the second scenario, every tenth plane of the object is prompted."""

CORRECTIONS = 12
"""Planes corrected at most while the actions are counted."""

Filled = dict[Plane, np.ndarray]
"""Masks by plane, anchors included."""


@dataclass(eq=False)
class Scene:
    """One object in a volume, with all that methods may share: embeddings and the annotator's answers."""

    predictor: Predictor
    volume: Volume
    truth: dict[Plane, np.ndarray]
    cache: EmbeddingCache
    answers: dict[Plane, tuple[Prediction, int]] = field(default_factory=dict)

    @property
    def planes(self) -> list[Plane]:
        """In spatial order."""
        return list(self.truth)

    def embed(self, plane: Plane) -> Any:
        """From the cache, or made."""
        key = EmbeddingKey.of(self.predictor, self.volume, plane)
        return self.cache.ensure(key, lambda: embed_plane(self.predictor, self.volume, plane))

    def prompted(self, plane: Plane) -> tuple[Prediction, int]:
        """The annotator's answer on a plane and its actions: clicks, or one for "it is not here"."""
        if plane not in self.answers:
            self.answers[plane] = self._annotated(plane)
        return self.answers[plane]

    def _annotated(self, plane: Plane) -> tuple[Prediction, int]:
        embedding = self.embed(plane)
        if not self.truth[plane].any():
            return Prediction(np.zeros(self.truth[plane].shape, np.float32), None, embedding.frame), 1
        given: list[Prediction] = []

        def predict(prompts: Any, previous: Any) -> Prediction:
            given.append(self.predictor.predict(embedding, prompts, previous))
            return given[-1]

        done = annotate(predict, self.truth[plane].astype(np.int8), max_clicks=CLICKS, stop_at=GOOD)
        return replace(given[-1], look=None), len(done.prompts)


class Method(ABC):
    """A way to fill the planes between and beyond anchors. `doubted` names the plane to correct, or None."""

    @abstractmethod
    def fill(self, scene: Scene, anchors: Mapping[Plane, Prediction], changed: Plane | None) -> Filled:
        """All masks; `changed` is the anchor that has come since the last call, None for a fresh start."""

    def doubted(self) -> Plane | None:
        """Where the method itself would look first."""
        return None


class Propagation(Method):
    """`propagate`, a correction carried no further than the neighbouring anchors."""

    def __init__(self, flagged: bool = False) -> None:
        self._flagged = flagged
        self._carried: dict[Plane, PropagatedMask[Prediction]] = {}

    def fill(self, scene: Scene, anchors: Mapping[Plane, Prediction], changed: Plane | None) -> Filled:
        new = None if changed is None else [changed]
        gone = scene.planes if changed is None else [changed, *affected(anchors, scene.planes, [changed])]
        for plane in gone:
            self._carried.pop(plane, None)
        walk = propagate(scene.predictor, scene.volume, anchors, scene.planes, changed=new, embed=scene.embed)
        self._carried.update((step.plane, step) for step in walk if step.final)
        found = {plane: step.prediction.mask for plane, step in self._carried.items()}
        return found | {plane: answer.mask for plane, answer in anchors.items()}

    def doubted(self) -> Plane | None:
        return most_uncertain(self._carried.values()) if self._flagged else None


class PreviousMask(Method):
    """What propagation did before: the mask and one click from the plane before, half-way between anchors."""

    def fill(self, scene: Scene, anchors: Mapping[Plane, Prediction], changed: Plane | None) -> Filled:
        found = {plane: answer.mask for plane, answer in anchors.items()}
        planes = scene.planes
        places = sorted(planes.index(plane) for plane in anchors)
        for before, place, after in zip([None, *places], places, [*places[1:], None]):
            last = len(planes) - 1 if after is None else (place + after) // 2
            first = 0 if before is None else (before + place) // 2 + 1
            for route in (range(place + 1, last + 1), range(place - 1, first - 1, -1)):
                found |= dict(_previous_mask(scene, planes[place], anchors, [planes[i] for i in route]))
        return found


def _previous_mask(
    scene: Scene, start: Plane, anchors: Mapping[Plane, Prediction], route: Sequence[Plane]
) -> Iterator[tuple[Plane, np.ndarray]]:
    answer, before = anchors[start], to_gray(scene.volume.plane(start), scene.volume.window)
    if not answer.mask.any():
        return
    usual, change = before[answer.mask].mean(), 3 * before[answer.mask].std() + 10
    for plane in route:
        here = to_gray(scene.volume.plane(plane), scene.volume.window)
        click = Click(click_position(answer.mask, before, here, scene.volume.plane_spacing(plane)))
        following = replace(scene.predictor.predict(scene.embed(plane), [click], answer), look=None)
        both = np.count_nonzero(answer.mask & following.mask)
        if both < 0.3 * np.count_nonzero(answer.mask | following.mask) or not following.mask.any():
            return
        if abs(here[following.mask].mean() - usual) > change:
            return
        yield plane, following.mask
        answer, before = following, here


class NearestCopy(Method):
    """Every plane shows what the nearest anchor shows."""

    def fill(self, scene: Scene, anchors: Mapping[Plane, Prediction], changed: Plane | None) -> Filled:
        places = {plane: place for place, plane in enumerate(scene.planes)}
        return {
            plane: anchors[min(anchors, key=lambda a: abs(places[a] - place))].mask
            for plane, place in places.items()
        }


class Interpolation(Method):
    """Shapes between the anchors' shapes, nothing beyond."""

    def fill(self, scene: Scene, anchors: Mapping[Plane, Prediction], changed: Plane | None) -> Filled:
        masks = {plane: answer.mask for plane, answer in anchors.items()}
        spacing = scene.volume.plane_spacing(scene.planes[0])
        return dict(interpolate(masks, scene.planes, spacing)) | masks


METHODS: dict[str, Callable[[], Method]] = {
    "propagate": Propagation,
    "propagate, corrected where it doubts": lambda: Propagation(flagged=True),
    "previous mask": PreviousMask,
    "nearest copy": NearestCopy,
    "interpolation": Interpolation,
}


def measure(scene: Scene, method: Callable[[], Method], corrections: int = CORRECTIONS) -> dict[str, Any]:
    """Dice and mean plane IoU of one method on one object, and the actions it took.

    Keys: dice_one, iou_one (one prompted plane, the one where the object is largest), dice_ten, iou_ten,
    actions_ten (every tenth plane of the object prompted), dice_c1, dice_c3, dice_c5 (after so many
    corrections of the first scenario), actions_90, actions_95 (to that Dice, None if it was not reached).
    IoU is averaged over the planes that show the object in the truth or in the answer.
    """
    areas = {plane: int(np.count_nonzero(truth)) for plane, truth in scene.truth.items()}
    start = max(areas, key=lambda plane: areas[plane])
    shown = [plane for plane in scene.planes if areas[plane]]
    tenth = list(dict.fromkeys([*shown[EVERY // 2 :: EVERY], start]))
    anchors = {plane: scene.prompted(plane)[0] for plane in tenth}
    found = method().fill(scene, anchors, None)
    row: dict[str, Any] = {
        "dice_ten": _dice(scene, found),
        "iou_ten": _mean_iou(scene, found),
        "actions_ten": sum(scene.prompted(plane)[1] for plane in tenth),
    }
    curve: list[tuple[int, float]] = []
    filler, anchors, changed, actions = method(), {}, None, 0
    plane: Plane | None = start
    while plane is not None and len(curve) <= corrections:
        anchors[plane], cost = scene.prompted(plane)
        actions += cost
        found = filler.fill(scene, anchors, changed if not curve else plane)
        if not curve:
            row["iou_one"] = _mean_iou(scene, found)
        curve.append((actions, _dice(scene, found)))
        plane = _next(scene, filler, found, anchors)
    at = [curve[min(k, len(curve) - 1)][1] for k in (0, 1, 3, 5)]
    row |= dict(zip(("dice_one", "dice_c1", "dice_c3", "dice_c5"), at))
    for goal in (0.9, 0.95):
        row[f"actions_{round(100 * goal)}"] = next((a for a, value in curve if value >= goal), None)
    return row


def _next(scene: Scene, filler: Method, found: Filled, anchors: Mapping[Plane, Any]) -> Plane | None:
    """The plane to correct: the doubted one, else that with most wrong pixels; None if all is right."""
    doubted = filler.doubted()
    if doubted is not None:
        return doubted
    wrong = {
        plane: int(np.count_nonzero(truth ^ found[plane] if plane in found else truth))
        for plane, truth in scene.truth.items()
        if plane not in anchors
    }
    candidate = max(wrong, key=lambda plane: wrong[plane], default=None)
    return candidate if candidate is not None and wrong[candidate] else None


def _dice(scene: Scene, found: Filled) -> float:
    both = total = 0
    for plane, truth in scene.truth.items():
        mask = found.get(plane)
        total += int(truth.sum()) + (0 if mask is None else int(mask.sum()))
        both += 0 if mask is None else int((truth & mask).sum())
    return float(2 * both / total)


def _mean_iou(scene: Scene, found: Filled) -> float:
    ious = []
    for plane, truth in scene.truth.items():
        mask = found.get(plane, np.zeros_like(truth))
        union = np.count_nonzero(truth | mask)
        if union:
            ious.append(np.count_nonzero(truth & mask) / union)
    return float(np.mean(ious))


def run_volume(
    model: str,
    image: Path,
    labels: Path,
    *,
    objects: Sequence[str] = (),
    axis: int | None = None,
    planes: str = ":",
    device: str = "auto",
    json: Path | None = None,
    corrections: int = CORRECTIONS,
    show: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Every method on every object of one image; shows a table, writes JSON if asked to, gives the report.

    Parameters
    ----------
    image, labels
        Two files of one shape.
    objects
        Labels, several joined with "+" as one object; every label if empty.
    axis
        The axis to walk along; 0, or 2 for NIfTI.
    planes
        "A:B", both included: the part of the volume to use; an end left out is the end of the volume.
    corrections
        Planes corrected at most.

    Raises
    ------
    ValueError
        For files of different shapes, objects that are not there, or a range outside the volume.
    """
    volume, truth = read_volume(image), read_volume(labels)
    if volume.shape != truth.shape or volume.ndim != 3:
        raise ValueError(
            f"the image and its labels must be 3-D and of one shape; got {volume.shape} and {truth.shape}"
        )
    axis = default_axis(image) if axis is None else axis
    chosen = volume.planes(axis)[_range(planes, len(volume.planes(axis)))]
    window = np.stack([volume.plane(plane) for plane in chosen])
    volume = replace(volume, window=Volume(window).with_window().window)
    reference = {plane: truth.plane(plane) for plane in chosen}
    there = {int(label) for cut in reference.values() for label in np.unique(cut)} - {0}
    wanted = [_labels(text, there) for text in objects] or [(label,) for label in sorted(there)]
    predictor = load_predictor(model, device=device)
    cache = EmbeddingCache(2**30, 2**31, device=predictor.runtime.device)
    rows = []
    for group in wanted:
        scene = Scene(
            predictor, volume, {plane: np.isin(cut, group) for plane, cut in reference.items()}, cache
        )
        name = "+".join(map(str, group))
        rows += [
            {"object": name, "method": method, **measure(scene, make, corrections)}
            for method, make in METHODS.items()
        ]
    report = {"image": image.name, "model": model, "axis": axis, "rows": rows, "machine": machine()}
    if json is not None:
        save_json(report, json)
    show(volume_table(report))
    return report


def _range(text: str, length: int) -> slice:
    low, high = read_range(text, length, "planes")
    return slice(low, high + 1)


def _labels(text: str, there: set[int]) -> tuple[int, ...]:
    parts = text.split("+")
    if not all(part.strip().isdigit() and int(part) in there for part in parts):
        some = ", ".join(map(str, sorted(there)[:20]))
        raise ValueError(
            f"an object is a label of the reference, such as {some}, or several joined by +; got {text!r}"
        )
    return tuple(int(part) for part in parts)
