"""Requests to a prediction service, frozen: a plane's pixels, prompts on it, objects to propagate."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import Plane

PICTURE = Plane()
"""The only plane of a 2-D image."""


Cancelled = Callable[[], bool]
Progress = Callable[[int, int | None], object]


@dataclass(frozen=True)
class PlaneSource:
    """Where the pixels of a plane come from.

    Attributes
    ----------
    key
        Names the plane and its picture: equal keys mean equal pixels.
    read
        Gives the pixels, (H, W) or (H, W, 3); called on another thread, and only where they are needed.
    window
        Intensities shown as black and white; None for the plane's own percentiles.
    spacing
        Size of a pixel along rows and columns; only the ratio counts.
    name
        What to call the plane in messages.
    plane
        Which one of its volume it is.
    folders
        Where `lowlat-seg embed` may have left its embedding. They are read, never written to.
    """

    key: Hashable
    read: Callable[[], np.ndarray]
    window: tuple[float, float] | None = None
    spacing: tuple[float, float] = (1.0, 1.0)
    name: str = "the plane"
    plane: Plane = PICTURE
    folders: tuple[Path, ...] = ()

    @property
    def identity(self) -> Hashable:
        """Equal for two sources that have one embedding."""
        return (self.key, self.window, self.spacing)


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked of the network; complete in itself.

    Attributes
    ----------
    ticket
        Which state is asked for; 0 for a trial, whose answer is shown and not kept.
    object, plane
        Where the answer belongs.
    prompts
        What it must answer, oldest first.
    previous
        The mask that they continue from, or None.
    """

    ticket: int
    object: int
    plane: Plane
    prompts: tuple[Prompt, ...]
    previous: SoftMask | None

    def cropped(self, box: BoundingBox) -> Request:
        """This request in the pixels of a part of the plane; its answer belongs at the box's corner."""
        prompts = tuple(prompt.cropped(box) for prompt in self.prompts)
        previous = None if self.previous is None else self.previous.cropped(box)
        return replace(self, prompts=prompts, previous=previous)


@dataclass(frozen=True, eq=False)
class PropagationRequest:
    """Objects to be carried through planes.

    Attributes
    ----------
    planes
        The range, in spatial order.
    anchors
        By object: the answers on the planes where it is known. They may be empty for an object of `seeds`.
    seeds
        By object: a plane and the prompt on it that begins the object.
    changed
        As `propagate` has it; for one object only.
    shapes
        Whether shapes are mixed between the anchors instead, without the network; see `interpolate`.
    """

    planes: tuple[Plane, ...]
    anchors: Mapping[int, Mapping[Plane, SoftMask]] = field(default_factory=dict)
    seeds: Mapping[int, tuple[Plane, Prompt]] = field(default_factory=dict)
    changed: tuple[Plane, ...] | None = None
    shapes: bool = False


def never() -> bool:
    """Nothing newer will come."""
    return False
