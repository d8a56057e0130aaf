"""What a click would do now (status bar) and what to do first (panel), as functions of the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from superqt.utils import qdebounced

from napari_lowlat_seg.plugin.keys import KeyTable


@dataclass(frozen=True)
class Hand:
    """What the user holds in the hand.

    Attributes
    ----------
    mode
        As `ViewState.mode`.
    tool, positive
        As in `Settings`.
    shift, control
        Whether these keys are down.
    levels
        Whether the mask can be made larger or smaller.
    cursor
        Whether the arrow keys move a cursor.
    drawing
        Whether something is being drawn.
    """

    mode: str = ""
    tool: str = "scribble"
    positive: bool = True
    shift: bool = False
    control: bool = False
    levels: bool = False
    cursor: bool = False
    drawing: bool = False


def hint_of(hand: Hand, keys: Mapping[str, str]) -> str:
    """What mouse and keys do now, in one line; "" while the mouse is another layer's.

    Parameters
    ----------
    hand
        Tool, sign and keys that are down.
    keys
        The key of each action.

    >>> hint_of(Hand("click", control=True), {})
    'click or scribble: − background'
    """
    if hand.mode in ("brush", "eraser"):
        does = "paint on the mask" if hand.mode == "brush" else "erase from the mask"
        return f"drag: {does}{_key(keys, 'prompt_tool', 'back to prompts')}"
    if hand.mode != "click":
        return ""
    sign = "+ object" if hand.positive != hand.control else "− background"
    if hand.cursor:
        step = "arrow keys: move the cursor by ten" if hand.shift else "arrow keys: move the cursor"
        if hand.drawing:
            ended = _key(keys, "draw", f"finish the {hand.tool}") + _key(keys, "cancel", "give it up")
            return f"{step}, which draws{ended}"
        placed = _key(keys, "place_positive", "+ object") + _key(keys, "place_negative", "− background")
        drawn = _key(keys, "draw", f"begin a {hand.tool}")
        return f"{step}{placed}{drawn}{_key(keys, 'keyboard_cursor', 'end')}"
    if hand.shift:
        wheel = "; wheel: larger or smaller mask" if hand.levels else ""
        return f"drag: box, {sign}{wheel}"
    if hand.control:
        return f"click or {hand.tool}: {sign}"
    levels = _key(keys, "next_level", "larger mask") if hand.levels else ""
    return (
        f"click or {hand.tool}: {sign}; Control: the opposite; Shift-drag: box"
        f"{_key(keys, 'accept', 'accept')}{levels}"
    )


def _key(keys: Mapping[str, str], action: str, does: str) -> str:
    key = keys.get(action, "")
    return f"; {key}: {does}" if key else ""


def first_hint(keys: Mapping[str, str], *, begun: bool, accepted: bool, volume: bool) -> str:
    """What somebody who has never used the widget may do next.

    Parameters
    ----------
    keys
        The key of each action; one that has none is left out.
    begun
        Whether the current object has a prompt.
    accepted
        Whether an object was accepted.
    volume
        Whether the image has planes to propagate through.

    >>> first_hint({"reopen": "W"}, begun=False, accepted=True, volume=False)
    'The next click begins another object. W opens the object under the mouse again.'
    """

    def sentence(action: str, does: str) -> str:
        key = keys.get(action, "")
        return f" {key} {does}." if key else ""

    if begun:
        return (
            "Click what is missing, Control-click what is too much."
            + sentence("next_level", "makes the mask of the first click larger")
            + sentence("accept", "accepts")
            + (sentence("carry", "follows the object through the planes") if volume else "")
        )
    if accepted:
        opens = sentence("reopen", "opens the object under the mouse again")
        return f"The next click begins another object.{opens}"
    return "Click on an object in the image: amber is what the model takes for it. Drag to scribble."


class StatusHints:
    """Says in napari's status bar what mouse and keys would do now.

    Parameters
    ----------
    viewer
        napari's viewer.
    keys
        The shortcuts.
    in_front
        Returns the controller of the image in front; None without one.
    parent
        The widget with which it ends.
    """

    def __init__(self, viewer: Any, keys: KeyTable, in_front: Callable[[], Any], parent: Any) -> None:
        self._viewer, self._keys, self._in_front = viewer, keys, in_front
        self._hand, self._held = Hand(), (False, False)  # what is held: a tool, and Shift and Control
        self._open = True
        # napari writes its own help behind a change of layer or mode.
        self._later = qdebounced(self._show, 0, parent=parent)

    def show(self, hand: Hand) -> None:
        """Say what this hand would do."""
        self._hand = hand
        self._later()

    def hold(self, shift: bool, control: bool) -> None:
        """Note which keys are held."""
        self._held = (shift, control)
        if self._show():
            self._viewer.status = ""  # napari tells the position in place of the hint until the mouse moves

    def close(self) -> None:
        """Say nothing more."""
        self._open = False
        self._later.cancel()

    def _show(self) -> str:
        """Say what mouse and keys would do now, and return that; "" for nothing.

        napari takes the help of the active layer with every move of the mouse, and hides it behind the
        position while the mouse is over the canvas.
        """
        if self._in_front() is None or not self._open:
            return ""
        shift, control = self._held
        hint = hint_of(replace(self._hand, shift=shift, control=control), self._keys.keys)
        active = self._viewer.layers.selection.active
        if hint and active is not None:
            active.help = self._viewer.help = hint
            if self._viewer.status == "Ready":  # beside its first word napari shows no help
                self._viewer.status = ""
        return hint
