"""What a walk through planes needs of a responder: pictures that are read once, answers for predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from napari_lowlat_seg.core.masks import Answer
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import Plane

if TYPE_CHECKING:
    from napari_lowlat_seg.inference.predictor import Predictor
    from napari_lowlat_seg.serving.service import PlaneSource


class SeenPlanes:
    """Planes for a walk, which looks at each more than once and at one after the other: `volume.Pictures`."""

    def __init__(self, sources: dict[Plane, PlaneSource]) -> None:
        self._sources = sources
        self.plane = lru_cache(maxsize=2)(lambda plane: sources[plane].read())
        self.window = next(iter(sources.values())).window

    def plane_spacing(self, plane: Plane) -> tuple[float, float]:
        """As `Volume.plane_spacing`."""
        return self._sources[plane].spacing

    def source(self, plane: Plane) -> PlaneSource:
        """The source of a plane, which reads it at most once in a while."""
        return replace(self._sources[plane], read=lambda: self.plane(plane))


@dataclass(frozen=True)
class AnswerEngine:
    """A predictor that speaks in answers, which are kept and travel: `propagate.Engine`."""

    predictor: Predictor

    def embed(self, image: Any, window: Any, spacing: Any) -> Any:
        """As `Predictor.embed`."""
        return self.predictor.embed(image, window, spacing)

    def predict(self, embedding: Any, prompts: Sequence[Prompt], previous: Answer | None) -> Answer:
        """As `Predictor.predict`."""
        from napari_lowlat_seg.inference.predictor import Prediction  # torch, which a window shall not import

        before = None
        if previous is not None:
            before = Prediction(previous.probability, previous.quality, embedding.frame)
        made = self.predictor.predict(embedding, prompts, before)
        return Answer.of(made.probability, made.quality)
