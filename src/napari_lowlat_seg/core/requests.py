"""Requests to a prediction service: predict an object on a plane, propagate objects through planes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import Plane

IMAGE_PLANE = Plane()
"""The only plane of a 2-D image."""

Cancelled = Callable[[], bool]
"""Whether the request was cancelled; called repeatedly while it is processed."""

Progress = Callable[[int, int | None], object]
"""Called with (done so far, total or None); what it raises cancels the work."""


@dataclass(frozen=True)
class PlaneSource:
    """Where the pixels of a plane come from.

    Attributes
    ----------
    key
        Identifies the pixels: equal keys mean equal pixels.
    read
        Returns the pixels, (H, W) or (H, W, 3); called on another thread, and only if they are needed.
    window
        (low, high) intensities shown as black and white; None for the plane's own percentiles.
    spacing
        Size of a pixel along rows and columns; only the ratio counts.
    name
        The plane's name in messages.
    plane
        Its place in its volume.
    folders
        Folders in which `lowlat-seg embed` may have saved the plane's embedding; only read.
    thickness
        Distance to the next plane, in the unit of `spacing`.
    """

    key: Hashable
    read: Callable[[], np.ndarray]
    window: tuple[float, float] | None = None
    spacing: tuple[float, float] = (1.0, 1.0)
    name: str = "the plane"
    plane: Plane = IMAGE_PLANE
    folders: tuple[Path, ...] = ()
    thickness: float = 1.0

    @property
    def identity(self) -> Hashable:
        """Equal for sources whose embeddings are equal."""
        return (self.key, self.window, self.spacing)


@dataclass(frozen=True, eq=False)
class Request:
    """A request for the mask of one object on one plane.

    Attributes
    ----------
    ticket
        The state of the session that it was made for; 0 for a preview, which is shown and not kept.
    object, plane
        Number of the object, and the plane.
    prompts
        All prompts of the object on the plane, oldest first.
    previous
        The mask before the newest prompts, or None.
    """

    ticket: int
    object: int
    plane: Plane
    prompts: tuple[Prompt, ...]
    previous: SoftMask | None

    def cropped(self, box: BoundingBox) -> Request:
        """This request in the pixels of a part of the plane; the mask belongs at the box's corner."""
        prompts = tuple(prompt.cropped(box) for prompt in self.prompts)
        previous = None if self.previous is None else self.previous.cropped(box)
        return replace(self, prompts=prompts, previous=previous)


@dataclass(frozen=True, eq=False)
class PropagationRequest:
    """A request to propagate objects through planes.

    Attributes
    ----------
    planes
        The range, in spatial order.
    anchors
        By number of the object: its masks on the planes where it is known; none for an object of `seeds`.
    seeds
        By number of the object: a plane and the prompt on it that the object starts from.
    changed
        As for `propagate`; for one object only.
    shapes
        Interpolate shapes between the anchors, without the network; see `interpolate`.
    """

    planes: tuple[Plane, ...]
    anchors: Mapping[int, Mapping[Plane, SoftMask]] = field(default_factory=dict)
    seeds: Mapping[int, tuple[Plane, Prompt]] = field(default_factory=dict)
    changed: tuple[Plane, ...] | None = None
    shapes: bool = False


@dataclass(frozen=True, eq=False)
class FoundOnPlane:
    """How far a plane has been searched for objects, and at the end what was found.

    Attributes
    ----------
    done, total
        Clicks that have been tried, and all.
    labels
        (rows, cols) uint32 at the end: 0 for the background, 1 to N for N objects; None before.
    scores
        (N,) float32: how good each object seems, 0 to 1; None before the end.
    """

    done: int
    total: int
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None


def never() -> bool:
    """False: the request is never cancelled."""
    return False


def read_range(text: str, length: int, name: str) -> tuple[int, int]:
    """First and last position of "A:B" on an axis, both included; an end left out is the end of the axis.

    Parameters
    ----------
    text
        Such as "3:17", "3:", ":17" or ":".
    length
        Of the axis.
    name
        What the error calls the text.

    Raises
    ------
    ValueError
        For other texts and for positions outside the axis.

    Examples
    --------
    >>> read_range("3:", 10, "planes")
    (3, 9)
    """
    first, colon, last = text.partition(":")
    try:
        low, high = int(first or 0), int(last or length - 1)
    except ValueError:
        low, high = 0, -1
    if not colon or not 0 <= low <= high < length:
        raise ValueError(f"{name} must be A:B with 0 <= A <= B <= {length - 1}; got {text!r}")
    return low, high
