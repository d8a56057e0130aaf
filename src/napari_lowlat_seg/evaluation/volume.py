"""Volume benchmark: how many actions an object in a volume costs with propagation, copying and interpolation.

A simulated annotator knows the truth. It clicks on a plane until the IoU is 0.9, at most five times; one of
several methods fills the other planes; then the annotator corrects the plane with most wrong pixels (or the
one that the method itself is least certain of), again and again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from napari_lowlat_seg.core.requests import read_range
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.evaluation.annotator import annotate
from napari_lowlat_seg.evaluation.report import machine, save_json, volume_table
from napari_lowlat_seg.inference.prediction import Prediction
from napari_lowlat_seg.inference.predictor import Predictor, load_predictor
from napari_lowlat_seg.io.files import default_axis, read_volume
from napari_lowlat_seg.propagation.interpolate import interpolate
from napari_lowlat_seg.propagation.propagate import PropagationOptions, most_doubtful, propagate
from napari_lowlat_seg.propagation.sweep import PropagatedMask, RefusedPlane, affected, embed_plane
from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache, EmbeddingKey

CLICKS = 5
"""Most clicks on one plane."""

GOOD = 0.9
"""IoU at which a plane gets no more clicks."""

EVERY = 10
"""In the second scenario, every tenth plane of the object is prompted."""

CORRECTIONS = 12
"""Planes corrected at most while the actions are counted."""

Masks = dict[Plane, np.ndarray]
"""(H, W) bool by plane, anchors included."""


@dataclass(eq=False)
class Case:
    """One object in a volume, with what the methods share: embeddings and the annotated planes.

    Attributes
    ----------
    truth
        (H, W) bool by plane, in spatial order.
    annotated
        Prediction and number of actions by plane, as far as it has been annotated.
    """

    predictor: Predictor
    volume: Volume
    truth: dict[Plane, np.ndarray]
    cache: EmbeddingCache
    annotated: dict[Plane, tuple[Prediction, int]] = field(default_factory=dict)

    @property
    def planes(self) -> list[Plane]:
        """The planes in spatial order."""
        return list(self.truth)

    def embed(self, plane: Plane) -> Any:
        """Return the embedding of a plane, from the cache or made."""
        key = EmbeddingKey.of(self.predictor, self.volume, plane)
        return self.cache.ensure(key, lambda: embed_plane(self.predictor, self.volume, plane))

    def annotate(self, plane: Plane) -> tuple[Prediction, int]:
        """Return the annotated plane and its number of actions: clicks, or one for "the object is absent"."""
        if plane not in self.annotated:
            self.annotated[plane] = self._annotate(plane)
        return self.annotated[plane]

    def _annotate(self, plane: Plane) -> tuple[Prediction, int]:
        embedding = self.embed(plane)
        if not self.truth[plane].any():
            return Prediction(np.zeros(self.truth[plane].shape, np.float32), None, embedding.frame), 1
        predict = partial(self.predictor.predict, embedding)
        done = annotate(predict, self.truth[plane].astype(np.int8), max_clicks=CLICKS, stop_at=GOOD)
        return replace(done.predictions[-1], look=None, edges=()), len(done.prompts)


class Method(ABC):
    """A way to fill the planes between and beyond anchors."""

    @abstractmethod
    def fill(self, case: Case, anchors: Mapping[Plane, Prediction], changed: Plane | None) -> Masks:
        """Return all masks; `changed` is the anchor added since the last call, None at the start."""

    def least_certain(self) -> Plane | None:
        """Return the plane that the method itself would correct first; None if it does not tell."""
        return None


class Propagation(Method):
    """`propagate`; a correction changes the planes up to the neighbouring anchors.

    Parameters
    ----------
    flagged
        Whether it names its least certain plane.
    **options
        Of `propagate`.

    Attributes
    ----------
    notes
        What was said on planes during the last `fill`, by position.
    """

    def __init__(self, flagged: bool = False, **options: Unpack[PropagationOptions]) -> None:
        self._flagged, self._options = flagged, options
        self._propagated: dict[Plane, PropagatedMask[Prediction]] = {}
        self._refused: list[RefusedPlane] = []
        self.notes: dict[int, str] = {}

    def fill(self, case: Case, anchors: Mapping[Plane, Prediction], changed: Plane | None) -> Masks:
        new = None if changed is None else [changed]
        outdated = case.planes if changed is None else [changed, *affected(anchors, case.planes, [changed])]
        for plane in outdated:
            self._propagated.pop(plane, None)
        self._refused = [one for one in self._refused if one.plane not in outdated]
        steps = list(self._steps(case, anchors, new))
        self._propagated.update((step.plane, step) for step in steps if step.final)
        self._refused += [one for step in steps for one in step.refused]
        self.notes = {step.plane.position: step.note for step in steps if step.note is not None}
        masks = {plane: step.prediction.mask for plane, step in self._propagated.items()}
        return masks | {plane: anchor.mask for plane, anchor in anchors.items()}

    def _steps(
        self, case: Case, anchors: Mapping[Plane, Prediction], changed: list[Plane] | None
    ) -> Iterable[PropagatedMask[Prediction]]:
        """What is propagated from the anchors; `benchmarks/plane_memory.py` has another one."""
        options: PropagationOptions = {"changed": changed, "embed": case.embed, **self._options}
        return propagate(case.predictor, case.volume, anchors, case.planes, **options)

    def least_certain(self) -> Plane | None:
        if not self._flagged:
            return None
        steps = self._propagated.values()
        masks = ((one.plane, one.confidence, int(np.count_nonzero(one.prediction.mask))) for one in steps)
        return most_doubtful(masks, self._refused)


class NearestCopy(Method):
    """Every plane gets the mask of the nearest anchor."""

    def fill(self, case: Case, anchors: Mapping[Plane, Prediction], changed: Plane | None) -> Masks:
        places = {plane: place for place, plane in enumerate(case.planes)}
        return {
            plane: anchors[min(anchors, key=lambda a: abs(places[a] - place))].mask
            for plane, place in places.items()
        }


class Interpolation(Method):
    """Shape interpolation between anchors, nothing beyond; see `propagation.interpolate`."""

    def fill(self, case: Case, anchors: Mapping[Plane, Prediction], changed: Plane | None) -> Masks:
        masks = {plane: anchor.mask for plane, anchor in anchors.items()}
        spacing = case.volume.plane_spacing(case.planes[0])
        return dict(interpolate(masks, case.planes, spacing)) | masks


METHODS: dict[str, Callable[[], Method]] = {
    "propagate": Propagation,
    "propagate, least certain plane corrected": lambda: Propagation(flagged=True),
    "nearest copy": NearestCopy,
    "interpolation": Interpolation,
}


def measure(case: Case, method: Callable[[], Method], corrections: int = CORRECTIONS) -> dict[str, Any]:
    """Return Dice, mean plane IoU and actions of one method on one object.

    Keys: "dice_one", "iou_one" (one prompted plane, the one where the object is largest), "dice_ten",
    "iou_ten", "actions_ten" (every tenth plane of the object prompted), "dice_c1", "dice_c3", "dice_c5"
    (after so many corrections of the first scenario), "actions_90", "actions_95" (to that Dice, None if it
    was not reached). IoU is averaged over the planes that show the object in the truth or in the masks.
    """
    areas = {plane: int(np.count_nonzero(truth)) for plane, truth in case.truth.items()}
    start = max(areas, key=lambda plane: areas[plane])
    shown = [plane for plane in case.planes if areas[plane]]
    tenth = list(dict.fromkeys([*shown[EVERY // 2 :: EVERY], start]))
    anchors = {plane: case.annotate(plane)[0] for plane in tenth}
    masks = method().fill(case, anchors, None)
    row: dict[str, Any] = {
        "dice_ten": dice(case, masks),
        "iou_ten": _mean_iou(case, masks),
        "actions_ten": sum(case.annotate(plane)[1] for plane in tenth),
    }
    curve: list[tuple[int, float]] = []
    filler, anchors, actions = method(), {}, 0
    plane: Plane | None = start
    while plane is not None and len(curve) <= corrections:
        anchors[plane], cost = case.annotate(plane)
        actions += cost
        masks = filler.fill(case, anchors, plane if curve else None)
        if not curve:
            row["iou_one"] = _mean_iou(case, masks)
        curve.append((actions, dice(case, masks)))
        plane = _next(case, filler, masks, anchors)
    at = [curve[min(k, len(curve) - 1)][1] for k in (0, 1, 3, 5)]
    row |= dict(zip(("dice_one", "dice_c1", "dice_c3", "dice_c5"), at))
    for goal in (0.9, 0.95):
        row[f"actions_{round(100 * goal)}"] = next((a for a, value in curve if value >= goal), None)
    return row


def _next(case: Case, filler: Method, masks: Masks, anchors: Mapping[Plane, Any]) -> Plane | None:
    """The plane to correct: the least certain one, else that with most wrong pixels; None if all is right."""
    if (chosen := filler.least_certain()) is not None:
        return chosen
    wrong = {
        plane: int(np.count_nonzero(truth ^ masks[plane] if plane in masks else truth))
        for plane, truth in case.truth.items()
        if plane not in anchors
    }
    candidate = max(wrong, key=lambda plane: wrong[plane], default=None)
    return candidate if candidate is not None and wrong[candidate] else None


def dice(case: Case, masks: Masks) -> float:
    """3-D Dice of masks with the truth."""
    both = total = 0
    for plane, truth in case.truth.items():
        mask = masks.get(plane)
        total += int(truth.sum()) + (0 if mask is None else int(mask.sum()))
        both += 0 if mask is None else int((truth & mask).sum())
    return float(2 * both / total)


def _mean_iou(case: Case, masks: Masks) -> float:
    ious = []
    for plane, truth in case.truth.items():
        mask = masks.get(plane, np.zeros_like(truth))
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
    """Run every method on every object of one image; show a table, write JSON if asked to, return the report.

    Parameters
    ----------
    image, labels
        Two files of one shape.
    objects
        Labels, several joined with "+" as one object; every label if empty.
    axis
        The axis to propagate along; None for the one of `default_axis`.
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
    axis = default_axis(volume) if axis is None else axis
    first, last = read_range(planes, len(volume.planes(axis)), "planes")
    chosen = volume.planes(axis)[first : last + 1]
    window = np.stack([volume.plane(plane) for plane in chosen])
    volume = replace(volume, window=Volume(window).with_window().window)
    reference = {plane: truth.plane(plane) for plane in chosen}
    present = {int(label) for cut in reference.values() for label in np.unique(cut)} - {0}
    groups = [_labels(text, present) for text in objects] or [(label,) for label in sorted(present)]
    predictor = load_predictor(model, device=device)
    cache = EmbeddingCache(2**30, 2**31, device=predictor.runtime.device)
    rows = []
    for group in groups:
        case = Case(
            predictor, volume, {plane: np.isin(cut, group) for plane, cut in reference.items()}, cache
        )
        name = "+".join(map(str, group))
        rows += [
            {"object": name, "method": method, **measure(case, make, corrections)}
            for method, make in METHODS.items()
        ]
    report = {"image": image.name, "model": model, "axis": axis, "rows": rows, "machine": machine()}
    if json is not None:
        save_json(report, json)
    show(volume_table(report))
    return report


def _labels(text: str, present: set[int]) -> tuple[int, ...]:
    parts = text.split("+")
    if not all(part.strip().isdigit() and int(part) in present for part in parts):
        some = ", ".join(map(str, sorted(present)[:20]))
        raise ValueError(
            f"an object is a label of the reference, such as {some}, or several joined by +; got {text!r}"
        )
    return tuple(int(part) for part in parts)
