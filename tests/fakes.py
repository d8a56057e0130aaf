"""A fake predictor for tests: it predicts what is as bright as the pixels clicked, and records its calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from napari_lowlat_seg.core.prompts import Prompt


@dataclass(frozen=True, eq=False)
class FakePrediction:
    """A probability, and what a prediction has beside it."""

    probability: np.ndarray
    look: object = None
    quality: float | None = None

    @property
    def mask(self) -> np.ndarray:
        return self.probability > 0.49

    def with_probability(self, probability: np.ndarray) -> FakePrediction:
        return replace(self, probability=probability)


class SameBrightness:
    """Embeds an image as itself; predicts 0.9 where it is as bright as at a prompt, but nothing on black.

    Attributes
    ----------
    embedded
        How many images were embedded.
    calls
        (embedding, prompts, previous) of every prediction.
    """

    def __init__(self) -> None:
        self.embedded = 0
        self.calls: list[tuple[np.ndarray, Sequence[Prompt], FakePrediction | None]] = []

    def embed(self, image: np.ndarray, window: object, spacing: object) -> np.ndarray:
        self.embedded += 1
        return image

    def predict(
        self, embedding: np.ndarray, prompts: Sequence[Prompt], previous: FakePrediction | None
    ) -> FakePrediction:
        self.calls.append((embedding, prompts, previous))
        places = [tuple(round(v) for v in prompt.bounds()[:2]) for prompt in prompts]
        like = np.isin(embedding, [embedding[place] for place in places if embedding[place]])
        return FakePrediction(np.where(like, np.float32(0.9), np.float32(0)))
