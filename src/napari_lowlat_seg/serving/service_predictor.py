"""A predictor whose network is in another process, perhaps on another machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.requests import IMAGE_PLANE, PlaneSource, Request
from napari_lowlat_seg.serving.process import PredictionProcess


class ServicePredictor:
    """`embed` and `predict` as `Predictor` has them, done by a service; a prediction is a `SoftMask`.

    What `segment` and `propagate` need of a predictor. Everything but the pixels and the masks stays there.

    Parameters
    ----------
    service
        It is not closed here.

    Examples
    --------
    >>> service = PredictionProcess("default", "ssh://gpu1")  # doctest: +SKIP
    >>> predictor = ServicePredictor(service)  # doctest: +SKIP
    >>> mask = predictor.predict(predictor.embed(image), [Click((120, 88))]).mask  # doctest: +SKIP
    """

    def __init__(self, service: PredictionProcess) -> None:
        self._service = service

    def embed(
        self,
        image: np.ndarray,
        window: tuple[float, float] | None = None,
        spacing: tuple[float, float] = (1.0, 1.0),
    ) -> PlaneSource:
        """Have an image embedded there; what stands for the embedding here."""
        pixels = np.array(image)  # the caller may write over its own
        source = PlaneSource(object(), lambda: pixels, window, spacing, "the image")
        self._service.embed(source)
        return source

    def predict(self, embedding: PlaneSource, prompts: Sequence[Prompt], previous: Any = None) -> SoftMask:
        """The mask of the object that all prompts together describe, after a closer look where it helps."""
        request = Request(1, 1, IMAGE_PLANE, tuple(prompts), previous)
        *_, (soft_mask, _) = self._service.predict(request, embedding)
        return soft_mask
