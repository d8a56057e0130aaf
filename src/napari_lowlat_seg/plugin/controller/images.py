"""One controller per image, kept for as long as the image is in the viewer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from napari.layers import Image, Labels, Points, Shapes
from psygnal import Signal

from napari_lowlat_seg.annotation.limits import Limits
from napari_lowlat_seg.plugin.controller.situation import News
from napari_lowlat_seg.plugin.controller.view_state import View, ViewState
from napari_lowlat_seg.plugin.settings import (
    PER_SESSION,
    embedding_folders,
    settings,
    stored_settings,
)


class ImageControllers:
    """Swaps between images, and between views of one image; swapping back finds everything as it was left.

    Parameters
    ----------
    viewer
        napari's viewer.
    make_controller
        Called with an image layer and the fields of a `View`; returns an `AnnotationController`.

    Attributes
    ----------
    current
        The controller of the image that is segmented now; None without one.
    """

    swapped = Signal(object, object)
    """Another controller is the current one: the one before and the new one, each perhaps None."""

    def __init__(self, viewer: Any, make_controller: Callable[..., Any]) -> None:
        self._viewer, self._make_controller = viewer, make_controller
        self._known: dict[tuple[Any, View], Any] = {}
        self._views: dict[Any, View] = {}
        self._adopted: dict[Any, tuple[Any, Any]] = {}
        self._chosen: dict[str, Any] = {}  # in this session; see `PER_SESSION`
        self._images: list[Any] = []
        self.current: Any = None

    @property
    def images(self) -> list[Any]:
        """The image layers of the viewer."""
        return [layer for layer in self._viewer.layers if isinstance(layer, Image)]

    @property
    def view(self) -> View:
        """That of the current controller."""
        return self._views[self.current.layer]

    @property
    def adopted(self) -> tuple[Any, Any]:
        """The user's Points and Shapes layers that prompts are read from; None for our own."""
        return self._adopted.get(self.current, (None, None))

    def turn_to(self, layer: Any, view: View | None = None) -> None:
        """Continue with an image layer where it was left, or begin with it; None turns away from all.

        Parameters
        ----------
        layer
            One of the viewer's image layers.
        view
            None for the one that was last used with this layer.

        Raises
        ------
        ValueError
            As `AnnotationController` does; there is no current controller then.
        """
        before, self.current = self.current, None
        if before is not None:
            before.detach()
        try:
            if layer is not None:
                self.current = self._controller(layer, view)
        finally:
            self.swapped.emit(before, self.current)
        if self.current is not None:
            self.current.attach()

    def follow_viewer(self) -> None:
        """Forget images that are gone; begin with the first one that comes."""
        images, before = self.images, self._images
        self._images = images
        for image in images:
            if image not in before:
                image.events.data.connect(self._data_replaced)
        gone = self.current is not None and self.current.layer not in images
        if gone:
            self.turn_to(None)
        for layer in {layer for layer, _ in self._known if layer not in images}:
            self._forget(layer)
        new = [image for image in images if image not in before]
        if self.current is None and new:
            active = self._viewer.layers.selection.active
            self.turn_to(active if active in new else new[-1])
        elif self.current is not None:
            self.current.prompts.ensure()  # ours may have been deleted

    def _forget(self, layer: Any) -> None:
        """End the sessions of an image."""
        for key in [key for key in self._known if key[0] == layer]:  # the layer may be a proxy of napari's
            controller = self._known.pop(key)
            controller.close()
            self._adopted.pop(controller, None)
        self._views.pop(layer, None)

    def close(self) -> None:
        """Turn away from all images, and end what keeps their sessions."""
        self.turn_to(None)
        for controller in self._known.values():
            controller.close()

    def set(self, name: str, value: Any) -> None:
        """Change a field of the current controller's `Settings`, and of images that are begun with later.

        What means something in one volume only is not taken over: the one label that a policy names, a
        range of intensities, an area.
        """
        self.current.set(name, value)
        if name in PER_SESSION and not (name == "policy" and value.kind == "within"):
            self._chosen[name] = Limits(value.neighbours) if name == "limits" else value

    def begin_anew(self, layer: Any) -> None:
        """Begin again with an image that has other data: what was annotated in the old data is dropped.

        Its labels layer goes on being used if it fits.
        """
        current = self.current is not None and self.current.layer == layer  # one may be a proxy of napari's
        labels, view = (self.current.labels.layer, self.view) if current else (None, None)
        if current:
            self.turn_to(None)
        self._forget(layer)
        if not current:
            return
        try:
            self.turn_to(layer, view)
        except ValueError:  # no such level or channel any more
            self.turn_to(layer)
        if labels is not None and labels in self._viewer.layers:
            with suppress(ValueError):  # of another shape
                self.current.labels.use(labels)

    def adopt(self, points: Any, shapes: Any) -> None:
        """Read prompts from these layers of the user's; None for our own.

        Raises
        ------
        ValueError
            For layers with another number of axes than the image.
        """
        self.current.prompts.adopt(points, shapes)
        self._adopted[self.current] = (points, shapes)

    def _data_replaced(self, event: Any) -> None:
        self.begin_anew(event.source)
        if self.current is not None and self.current.layer == event.source:
            name = event.source.name
            said = f"{name} has new data: prompts and masks of the old data are gone"
            self.current.status.emit(News(said))

    def previews(self) -> list[Any]:
        """The layers of all controllers that show masks, which are no labels of the user's."""
        return [layer for one in self._known.values() for layer in (one.preview.layer, one.proposal_layer)]

    def offered(self, state: ViewState) -> tuple[Any, Any, Any, Any, tuple[Any, Any]]:
        """What `MainForm.show_layers` offers: Labels, Points and Shapes layers by name, and those in use.

        Layers of ours are left out.
        """
        ours = [*self.previews(), *(one for one in state.prompts if one not in self.adopted)]
        theirs = [(one.name, one) for one in self._viewer.layers if one not in ours]
        labels, points, shapes = (
            [named for named in theirs if isinstance(named[1], kind)] for kind in (Labels, Points, Shapes)
        )
        return labels, points, shapes, state.labels, self.adopted

    def _controller(self, layer: Any, view: View | None) -> Any:
        view = view or self._views.get(layer) or View(intensities=settings().prompts.intensities)
        if (layer, view) not in self._known:
            self._known[layer, view] = self._begin(layer, view)
        self._views[layer] = view
        controller = self._known[layer, view]
        controller.predictions.sources.folders = embedding_folders(layer)
        controller.set("planes_ahead", settings().embeddings.ahead)
        return controller

    def _begin(self, layer: Any, view: View) -> Any:
        controller = self._make_controller(layer, **asdict(view))
        for name, value in (stored_settings() | self._chosen).items():
            controller.set(name, value)
        return controller
