"""The conversations of one widget: each image has its own for as long as it is in the viewer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from psygnal import Signal

from napari_lowlat_seg.plugin.settings import embedding_folders, settings, stored_finish, stored_policy


@dataclass(frozen=True)
class View:
    """What of an image is segmented.

    Attributes
    ----------
    level
        Of its pyramid; 0 is the finest.
    channel_axis, channel
        One channel along this axis; None if it has no axis of channels.
    intensities
        "automatic", or "displayed" for the layer's contrast limits.
    """

    level: int = 0
    channel_axis: int | None = None
    channel: int = 0
    intensities: str = "automatic"


class ImageControllers:
    """Swaps between images, and between views of one image; swapping back finds everything as it was left.

    Parameters
    ----------
    converse
        Makes the conversation about an image layer: called with the layer and the fields of a `View`.
    """

    changed = Signal()
    """Of the conversation in front, or another one is in front."""

    said = Signal(str)

    stirred = Signal()
    """What is shown along the planes may differ; comes often."""

    def __init__(self, converse: Callable[..., Any]) -> None:
        self._converse = converse
        self._known: dict[tuple[Any, View], Any] = {}
        self._views: dict[Any, View] = {}
        self._adopted: dict[Any, tuple[Any, Any]] = {}
        self.current: Any = None

    @property
    def view(self) -> View:
        """That of the conversation in front."""
        return self._views[self.current.layer]

    @property
    def adopted(self) -> tuple[Any, Any]:
        """The user's Points and Shapes layers that prompts are read from; None for our own."""
        return self._adopted.get(self.current, (None, None))

    def turn_to(self, layer: Any, view: View | None = None) -> None:
        """Continues with an image layer where it was left, or begins with it; None turns away from all.

        Parameters
        ----------
        view
            None for the one that was last used with this layer.

        Raises
        ------
        ValueError
            As beginning a conversation does; none is in front then.
        """
        if self.current is not None:
            self.current.changed.disconnect(self._on_changed)
            self.current.said.disconnect(self._on_said)
            self.current.through.stirred.disconnect(self._on_stirred)
            self.current.detach()
            self.current = None
        if layer is not None:
            view = view or self._views.get(layer) or View(intensities=settings().prompts.intensities)
            if (layer, view) not in self._known:
                self._known[layer, view] = self._begin(layer, view)
            self._views[layer] = view
            self.current = self._known[layer, view]
            questions, reach = self.current.questions, settings().embeddings.ahead
            questions.sources.folders, questions.reach = embedding_folders(layer), reach
            self.current.changed.connect(self._on_changed)
            self.current.said.connect(self._on_said)
            self.current.through.stirred.connect(self._on_stirred)
            self.current.attach()
        self.changed.emit()

    def adopt(self, points: Any, shapes: Any) -> None:
        """Reads prompts from these layers of the user's; None for our own.

        Raises
        ------
        ValueError
            For layers that cannot be adopted.
        """
        self.current.adopt(points, shapes)
        self._adopted[self.current] = (points, shapes)

    def forget_all_but(self, layers: list[Any]) -> None:
        """Ends the conversations about images that are gone."""
        if self.current is not None and self.current.layer not in layers:
            self.turn_to(None)
        for layer, view in [key for key in self._known if key[0] not in layers]:
            self._adopted.pop(self._known.pop((layer, view)), None)
            self._views.pop(layer, None)

    def previews(self) -> list[Any]:
        """The layers that only show masks, of all conversations."""
        return [talk.preview.layer for talk in self._known.values()]

    # Methods, because psygnal calls an `emit` that is connected, to learn what it takes.

    def _on_changed(self) -> None:
        self.changed.emit()

    def _on_said(self, sentence: str) -> None:
        self.said.emit(sentence)

    def _on_stirred(self) -> None:
        self.stirred.emit()

    def _begin(self, layer: Any, view: View) -> Any:
        talk, stored = self._converse(layer, **asdict(view)), settings()
        talk.finish = stored_finish()
        talk.session.policy, talk.session.semantic = stored_policy(), stored.labels.semantic
        talk.tool, talk.hover = stored.prompts.tool, stored.prompts.hover
        talk.hold(stored.prompts.postpone)
        return talk
