"""What is only tried: a stroke under way and a hovering mouse, answered when the model can, never kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.masks import Patch
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.controller.predictions import Questions
from napari_lowlat_seg.plugin.layers.preview import Preview
from napari_lowlat_seg.plugin.layers.prompt_layers import PromptLayers


class Trials:
    """Asks what is tried, and shows what the model says of it.

    Parameters
    ----------
    session, questions, prompts, preview
        Those of the conversation.

    Attributes
    ----------
    stroking
        Whether a stroke is under way.
    """

    def __init__(
        self, session: Session, questions: Questions, prompts: PromptLayers, preview: Preview
    ) -> None:
        self.stroking = False
        self._session, self._questions = session, questions
        self._prompts, self._preview = prompts, preview
        questions.tried.connect(self._tried)

    def stroke(
        self, kind: str, plane: Plane, points: np.ndarray, prompts: Sequence[Prompt], final: bool
    ) -> None:
        """A stroke under way: drawn at once, and answered as often as the model can."""
        self.stroking = self._questions.drawing = not final
        if final:
            self._preview.stroke(None)
            return
        self._preview.stroke(points, bool(prompts and prompts[0].positive), kind)
        if prompts:
            self._questions.ask_trial(plane, prompts, "stroke")

    def hover(self, plane: Plane, at: tuple[float, float] | None) -> None:
        """The mouse rests here, or (None) moves on: what a click would give is outlined."""
        if at is None:
            self.drop()
        elif not self._session.unanswered:
            self._questions.ask_trial(plane, [Click(at, self._prompts.positive)], "hover")

    def drop(self) -> None:
        """Nothing is tried any more."""
        self._questions.forget()
        self._preview.contour(None)

    def _tried(self, why: str, plane: Plane, mask: Patch) -> None:
        if why == "hover":
            self._preview.contour(mask)
        elif plane == self._preview.plane:
            self._preview.show(plane, mask)
