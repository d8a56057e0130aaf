"""What the widget shows of one image, as frozen values: it compares two of them and touches what differs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from napari_lowlat_seg.annotation.limits import Limits
from napari_lowlat_seg.core.labels import Policy
from napari_lowlat_seg.core.masks import PostProcessing
from napari_lowlat_seg.plugin.canvas.hints import Hand


@dataclass(frozen=True)
class View:
    """Which part of an image layer is segmented.

    Attributes
    ----------
    level
        Level of the pyramid; 0 is the finest.
    channel_axis, channel
        The channel along this layer axis; None if the image has no channel axis.
    intensities
        "automatic", or "displayed" for the layer's contrast limits.
    """

    level: int = 0
    channel_axis: int | None = None
    channel: int = 0
    intensities: str = "automatic"


@dataclass(frozen=True)
class Settings:
    """What the user has set for one image.

    Attributes
    ----------
    positive
        The sign of the next prompt.
    tool
        What dragging the mouse draws: "scribble", "box" or "lasso".
    hover
        Whether the object under the resting mouse is outlined before the click.
    postpone
        Whether predictions wait while prompts gather.
    label
        The label of the current object.
    semantic
        Whether the next object gets the same label.
    policy
        What an accepted object does with existing labels.
    finish
        How probabilities become masks.
    limits
        Where an object may be.
    planes_ahead
        How many planes are embedded ahead of the one in view, and then behind it.
    """

    positive: bool = True
    tool: str = "scribble"
    hover: bool = False
    postpone: bool = False
    label: int = 1
    semantic: bool = False
    policy: Policy = field(default_factory=Policy)
    finish: PostProcessing = field(default_factory=PostProcessing)
    limits: Limits = field(default_factory=Limits)
    planes_ahead: int = 0


PARTS = {
    "positive": "prompts",
    "tool": "gestures",
    "hover": "gestures",
    "postpone": "predictions",
    "semantic": "session",
    "policy": "session",
    "finish": "session",
    "limits": "session",
    "planes_ahead": "predictions",
}
"""The part of a controller that each field of `Settings` is an attribute of; `label` is a step of undo."""


def not_default(settings: Settings) -> dict[str, str]:
    """The settings that change results and are not as delivered: by field, in a few words.

    >>> not_default(Settings(finish=PostProcessing(threshold=0.05)))
    {'finish': 'threshold 0.05'}
    """
    finish, plain = settings.finish, PostProcessing()
    words = [
        f"threshold {finish.threshold:.2f}" if finish.threshold != plain.threshold else "",
        f"smooth {finish.smooth:g} px" if finish.smooth != plain.smooth else "",
        "fill holes" if finish.fill_holes else "",
        "largest part only" if finish.largest else "",
        "parts with a prompt only" if finish.prompted else "",
    ]
    within = f"only within label {settings.policy.within}"
    policy = {"keep": "", "overwrite": "overwrite labels", "within": within}[settings.policy.kind]
    said = {
        "finish": ", ".join(word for word in words if word),
        "policy": policy,
        "limits": _said(settings.limits),
        "semantic": "same label for every object" if settings.semantic else "",
        "postpone": "predictions postponed" if settings.postpone else "",
    }
    return {name: text for name, text in said.items() if text}


def _said(limits: Limits) -> str:
    """What of the limits is not as delivered."""
    span = limits.intensities
    words = [
        "" if limits.neighbours else "finished objects ignored",
        "" if span is None else f"only intensities {span[0]:g} to {span[1]:g}",
        "only inside the drawn area" if limits.area else "",
    ]
    return ", ".join(word for word in words if word)


@dataclass(frozen=True)
class StackState:
    """The current object along the planes that the viewer scrolls through.

    Attributes
    ----------
    count
        Number of planes; 0 in 3-D display, and where there is only one plane.
    range
        First and last plane that a propagation may write to.
    direction
        "both", "forward" or "backward".
    position
        The plane in view; -1 in 3-D display.
    marks
        (position, confidence from 0 to 1) of every plane with a mask, in order; confidence is None where the
        user gave prompts or drew.
    refused
        (position, reason) of every plane without a mask at which the object seemed to end.
    volume
        Whether the image has more than two axes.
    """

    count: int = 0
    range: tuple[int, int] = (0, 0)
    direction: str = "both"
    position: int = -1
    marks: tuple[tuple[int, float | None], ...] = ()
    refused: tuple[tuple[int, str], ...] = ()
    volume: bool = False


@dataclass(frozen=True)
class FilesState:
    """The files of a session.

    Attributes
    ----------
    offer
        What an earlier session of the image holds that one may go on with; empty without one.
    autosave
        Where the labels are saved, and when they were.
    """

    offer: str = ""
    autosave: str = ""


@dataclass(frozen=True)
class ViewState:
    """All that the widget shows of one image.

    Attributes
    ----------
    settings, stack
        See `Settings` and `StackState`.
    can_undo, can_redo
        Whether there is a step to undo, to redo.
    labels
        The Labels layer that objects are written to; None before the first object of a new one.
    prompts
        The Points and the Shapes layer that prompts are read from.
    files
        See `FilesState`.
    hand
        What the mouse would do now.
    begun, accepted
        Whether the current object has a prompt, and whether an object was accepted.
    window
        The intensities that the model sees as black and white; None while the image is read.
    """

    settings: Settings = Settings()
    stack: StackState = StackState()
    can_undo: bool = False
    can_redo: bool = False
    labels: Any = None
    prompts: tuple[Any, Any] = (None, None)
    files: FilesState = FilesState()
    hand: Hand = field(default_factory=Hand)
    begun: bool = False
    accepted: bool = False
    window: tuple[float, float] | None = None
