"""Adding our layers to a viewer without disturbing what the user does there."""

from __future__ import annotations

from typing import Any


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
