"""The fake predictor of all tests: what it sees is a rule, and it records its calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from napari_lowlat_seg.core.masks import THRESHOLD, SoftMask
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import Plane


@dataclass(frozen=True, eq=False)
class FakePrediction:
    """A probability, and what a prediction has beside it."""

    probability: np.ndarray
    look: object = None
    quality: float | None = None
    edges: tuple[object, ...] = ()

    @property
    def mask(self) -> np.ndarray:
        return self.probability > THRESHOLD

    @property
    def soft_mask(self) -> SoftMask:
        return SoftMask.of(self.probability, self.quality)

    def with_probability(self, probability: np.ndarray) -> FakePrediction:
        return replace(self, probability=probability)


Rule = Callable[[Any, Sequence[Prompt], Any], Any]
"""From embedding, prompts and previous prediction to a mask or probabilities (H, W), or to a prediction."""


class FakePredictor:
    """Embeds an image as itself, or as `see` makes it, and predicts by a rule.

    Attributes
    ----------
    embedded
        Every image that was embedded.
    calls
        (embedding, prompts, previous) of every prediction.
    """

    form, model, size = "fake", "fake", 16
    runtime = SimpleNamespace(device="cpu")
    network = SimpleNamespace(fit="letterbox")

    def __init__(
        self,
        rule: Rule | None = None,
        name: str = "fake",
        see: Callable[[np.ndarray, Any, Any], Any] = lambda image, window, spacing: image,
    ) -> None:
        self.rule, self.name, self.see = rule or same_brightness, name, see
        self.embedded: list[np.ndarray] = []
        self.calls: list[tuple[Any, Sequence[Prompt], Any]] = []

    def embed(self, image: np.ndarray, window: Any = None, spacing: Any = (1.0, 1.0)) -> Any:
        self.embedded.append(image)
        return self.see(image, window, spacing)

    def predict(self, embedding: Any, prompts: Sequence[Prompt], previous: Any = None) -> Any:
        self.calls.append((embedding, prompts, previous))
        found = self.rule(embedding, prompts, previous)
        return FakePrediction(found.astype(np.float32)) if isinstance(found, np.ndarray) else found

    def predict_batch(self, embedding: Any, prompts: Sequence[Sequence[Prompt]]) -> list[Any]:
        return [self.predict(embedding, one) for one in prompts]


def same_brightness(image: np.ndarray, prompts: Sequence[Prompt], previous: Any = None) -> np.ndarray:
    """0.9 where an image is as bright as at a prompt, but nothing on black."""
    places = [tuple(round(v) for v in prompt.bounds()[:2]) for prompt in prompts]
    return 0.9 * np.isin(image, [image[place] for place in places if image[place]])


def known_objects(*objects: np.ndarray, probability: float = 0.9) -> Rule:
    """Of objects given as bool volumes, those under the first click; embeddings are planes."""

    def rule(plane: Plane, prompts: Sequence[Prompt], previous: object) -> SoftMask:
        row, col = (round(x) for x in prompts[0].bounds()[:2])
        masks = [one[plane.key()] for one in objects]
        mask = np.any([one for one in masks if one[row, col]] or [np.zeros_like(masks[0])], axis=0)
        return SoftMask.of(np.where(mask, np.float32(probability), np.float32(0)))

    return rule
