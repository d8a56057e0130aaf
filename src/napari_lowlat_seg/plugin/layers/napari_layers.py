"""What napari's layer list and Labels layers do not offer: adding without selecting, partial redrawing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Listener:
    """Listens to events, of napari or of parts of this widget, while its image is the one in front."""

    def _slots(self) -> Iterable[tuple[Any, Any]]:
        """Each event with what it calls."""
        raise NotImplementedError

    def attach(self) -> None:
        """Listen."""
        for event, slot in self._slots():
            event.connect(slot)

    def detach(self) -> None:
        """Stop listening."""
        for event, slot in self._slots():
            event.disconnect(slot)


def add_quietly(viewer: Any, layer: Any, above: Any = None) -> None:
    """Add a layer, on top or right above another one; selected and active layers stay what they were.

    Parameters
    ----------
    viewer
        As plugins get it, or a `ViewerModel`.
    layer
        To add.
    above
        The layer to lie right below it; None, or a layer that is not there, for the top.
    """
    layers = viewer.layers
    selected, active = set(layers.selection), layers.selection.active
    place = len(layers) if above is None or above not in layers else layers.index(above) + 1
    layers.insert(place, layer)
    layers.selection.clear()
    layers.selection.update(selected)
    layers.selection.active = active


def redraw(layer: Any, part: tuple[slice, ...] | None = None) -> None:
    """Show labels that were changed in place: only what changed, where napari can.

    Parameters
    ----------
    layer
        A Labels layer.
    part
        The box that was changed; None where napari knows it, because it did the writing.
    """
    if not hasattr(layer, "_partial_labels_refresh"):
        layer.refresh()
        return
    if layer._slice.empty:  # beside the slice, where napari would draw on a picture of no size
        layer._updated_slice = None
        return
    if part is not None:
        layer._accumulate_updated_slice(part)
    layer._partial_labels_refresh()
