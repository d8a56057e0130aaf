"""The shortcuts: what each key calls, on which layers it works, and which of napari's own it hides.

napari asks the active layer itself before the layer's class and the viewer, so our keys are bound on the
layers of a controller and nowhere else: they work while one of these layers is active, and touch no other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from napari.components import ViewerModel
from napari.layers import Labels, Points, Shapes
from napari.utils.key_bindings import coerce_keybinding
from psygnal import Signal


@dataclass(frozen=True)
class Action:
    """Something that the user can do by a key or a button.

    Attributes
    ----------
    name
        Its key in the settings.
    title
        What the table and the tooltips call it.
    key
        The default key, in napari's spelling: "Ctrl+Shift+Z".
    held
        Whether the method is called with True when the key goes down and with False when it comes up.
    method
        The method of a controller that it calls, or of one of its parts: "preview.brush"; "" if it is `name`.
    """

    name: str
    title: str
    key: str
    held: bool = False
    method: str = ""

    def call(self, controller: Any, *given: bool) -> None:
        """Call the method of this controller; `given` is whether a held key is down."""
        attrgetter(self.method or self.name)(controller)(*given)


ACTIONS = (
    Action("accept", "Accept the object", "Enter"),
    Action("new_object", "New object", "N"),
    Action("undo", "Undo", "Ctrl+Z"),
    Action("redo", "Redo", "Ctrl+Shift+Z"),
    Action("toggle_polarity", "Positive or negative", "T", method="prompts.toggle"),
    Action("next_tool", "Next tool", "Q", method="gestures.next_tool"),
    Action("clear", "Clear the object", "U"),
    Action("previous_plane", "Previous plane", "K", method="current_plane.previous"),
    Action("next_plane", "Next plane", "J", method="current_plane.next"),
    Action("reopen", "Edit the object under the cursor", "W", method="edit_object"),
    Action("brush", "Paint on the mask", "G", method="preview.brush"),
    Action("eraser", "Erase from the mask", "Shift+G", method="preview.eraser"),
    Action("prompt_tool", "Back to clicking", "Shift+Q", method="prompts.activate"),
    Action("next_level", "Larger mask of the click", "Tab", method="levels.next"),
    Action("previous_level", "Smaller mask of the click", "Shift+Tab", method="levels.previous"),
    Action("keyboard_cursor", "Cursor for the arrow keys", "Shift+C", method="cursor.toggle"),
    Action("place_positive", "Click + object at the cursor", "F", method="cursor.place_positive"),
    Action("place_negative", "Click − background at the cursor", "Shift+F", method="cursor.place_negative"),
    Action("draw", "Draw with the cursor, or finish", "D", method="cursor.draw"),
    Action("next_doubt", "Next pixel in doubt", "Shift+D", method="cursor.next_doubt"),
    Action("limit_area", "Keep objects to the area drawn last", "Shift+A", method="mask_tools.limit_area"),
    Action("hold", "Postpone predictions while pressed", "H", held=True, method="predictions.hold"),
    Action("toggle_hover", "Preview under the cursor", "Shift+H", method="gestures.toggle_hover"),
    Action("carry", "Propagate through the planes", "Shift+J", method="propagation.propagate"),
    Action("interpolate", "Interpolate between the planes", "Shift+K", method="propagation.interpolate"),
    Action("next_anchor", "Next plane with prompts", "Shift+N", method="propagation.next_anchor"),
    Action("worst_plane", "Least certain plane", "Shift+W", method="propagation.most_uncertain_plane"),
    Action("all_seeds", "Every seed becomes an object", "Shift+U", method="propagation.all_seeds"),
    Action("cancel", "Cancel what is running", "Escape"),
)

OBJECT_ACTIONS = (
    Action("go_to", "Go there", "Enter"),
    Action("edit_again", "Edit again with its prompts", "E"),
    Action("accept_proposal", "Accept the proposal", "A"),
    Action("reject", "Reject the proposal", "X"),
    Action("rename", "Rename", "F2"),
    Action("classify", "Give a class", "C"),
    Action("merge", "Merge into the first chosen", "M"),
    Action("split", "Split into islands", "S"),
    Action("delete", "Delete", "Delete"),
    Action("lock", "Lock or unlock", "L"),
    Action("hide", "Hide or show", "H"),
    Action("review", "To review, or done", "R"),
    Action("next_of_state", "Next of the same state", "N"),
    Action("find", "Filter", "/"),
)
"""What the keys of the table of objects do; they act only while the table has the focus, and are fixed."""

INJECTED = "*This function will inject"
"""The beginning of what napari adds to a docstring, also to none."""

ACTION = {action.name: action for action in ACTIONS}
DEFAULTS = {action.name: action.key for action in ACTIONS}

# What Qt calls otherwise than napari.
QT_NAMES = {
    "Return": "Enter",
    "Esc": "Escape",
    "PgUp": "PageUp",
    "PgDown": "PageDown",
    "Del": "Delete",
    "Ins": "Insert",
}


def checked_key(key: str) -> str:
    """The key in napari's spelling; "" is no key.

    Raises
    ------
    ValueError
        For a text that is no key.

    Examples
    --------
    >>> checked_key("shift-g")
    'Shift+G'
    """
    *modifiers, last = key.replace("-", "+").split("+") if len(key) > 1 else [key]
    try:
        binding = coerce_keybinding("+".join([*modifiers, QT_NAMES.get(last, last)]))
        text = str(binding)
    except ValueError:
        text = ""
    # A key that napari does not know is spelled as nothing.
    if key and (not text or text.endswith("+") or len(binding.parts) != 1):
        raise ValueError(
            f"expected a key such as 'N', 'Shift+G' or 'Ctrl+Z', got {key!r}; press the one you want"
        )
    return text


class KeyTable:
    """The key of each action; binds them on layers, which follow when a key is changed.

    Parameters
    ----------
    keys
        Keys by the name of their action; an action that is missing has its default key.

    Raises
    ------
    ValueError
        For an action that does not exist, or a text that is no key.
    """

    changed = Signal()

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        self._keys = dict(DEFAULTS)
        self._bound: list[_Bound] = []
        for name, key in (keys or {}).items():
            self._keys[_known(name)] = checked_key(key)

    @property
    def keys(self) -> dict[str, str]:
        """A copy: the key of each action, "" for none."""
        return dict(self._keys)

    def set(self, name: str, key: str) -> None:
        """Give an action another key, "" for none; bound layers follow at once.

        Raises
        ------
        ValueError
            For an action that does not exist, or a text that is no key.
        """
        self._replace({**self._keys, _known(name): checked_key(key)})

    def reset(self) -> None:
        """Give all actions their default keys."""
        self._replace(dict(DEFAULTS))

    def conflicts(self) -> dict[str, str]:
        """By action, which other action has the same key and which of napari's shortcuts it hides."""
        found = {action.name: [*self._twins(action), *_hidden(self._keys[action.name])] for action in ACTIONS}
        return {name: "; ".join(notes) for name, notes in found.items() if notes}

    def bind(self, layer: Any, controller: Any) -> None:
        """Let the keys of `layer` call the methods of a controller and its parts."""
        self.unbind(layer)
        bound = _Bound(layer, controller)
        bound.put(self._keys)
        self._bound.append(bound)

    def unbind(self, layer: Any) -> None:
        """Restore what the keys of a layer did before; nothing is done for a layer that is not bound."""
        for bound in [one for one in self._bound if one.layer == layer]:
            bound.take()
            bound.forget()
            self._bound.remove(bound)

    def _replace(self, keys: dict[str, str]) -> None:
        for bound in self._bound:
            bound.take()
        self._keys = keys
        for bound in self._bound:
            bound.put(keys)
        self.changed.emit()

    def _twins(self, action: Action) -> list[str]:
        key = self._keys[action.name]
        same = [one for one in ACTIONS if key and one is not action and self._keys[one.name] == key]
        return [f"same key as “{one.title}”: only the one higher up works" for one in same]


class LayerKeys:
    """The keys of one controller, on whatever layers it has now.

    Parameters
    ----------
    keys
        Those of all controllers.
    controller
        Its methods and those of its parts are called.
    """

    def __init__(self, keys: KeyTable, controller: Any) -> None:
        self._keys, self._controller = keys, controller
        self._layers: list[Any] = []

    def bind(self, layers: Sequence[Any]) -> None:
        """Bind the keys to these layers, of which any may be None, and to no others."""
        self.unbind()
        self._layers = [layer for layer in layers if layer is not None]
        for layer in self._layers:
            self._keys.bind(layer, self._controller)

    def unbind(self) -> None:
        """Restore what the keys of the layers did before."""
        for layer in self._layers:
            self._keys.unbind(layer)
        self._layers = []


class _Bound:
    """A layer with our keys on it, and what its keys did before."""

    def __init__(self, layer: Any, controller: Any) -> None:
        self.layer, self.controller = layer, controller
        self._before: dict[str, tuple[Callable[..., Any], Any]] = {}
        self._drawing = False  # napari says when a shape is begun and when it is finished
        if isinstance(layer, Shapes):
            layer.events.data.connect(self._on_shapes)

    def forget(self) -> None:
        if isinstance(self.layer, Shapes):
            self.layer.events.data.disconnect(self._on_shapes)

    def put(self, keys: Mapping[str, str]) -> None:
        for action in ACTIONS:
            key = keys[action.name]
            if key and key not in self._before:  # of two actions on one key the first has it
                call = self._held(action) if action.held else self._pressed(action, key)
                self._before[key] = (call, self.layer.bind_key(key, call, overwrite=True))

    def take(self) -> None:
        for key, (call, before) in self._before.items():
            if self.layer.keymap.get(coerce_keybinding(key)) is call:  # else somebody has bound it since
                self.layer.bind_key(key, before, overwrite=True)
        self._before.clear()

    def _pressed(self, action: Action, key: str) -> Callable[[Any], None]:
        def press(layer: Any) -> None:
            native = self._native(key)
            if native is None:
                action.call(self.controller)
            else:
                native(layer)
                self._drawing = False

        return press

    def _held(self, action: Action) -> Callable[[Any], Any]:
        def press(layer: Any) -> Any:
            action.call(self.controller, True)
            yield
            action.call(self.controller, False)

        return press

    def _native(self, key: str) -> Callable[[Any], None] | None:
        """napari's own call of Enter or Escape, which comes first while a shape or polygon is drawn."""
        drawing = self._drawing or (isinstance(self.layer, Labels) and str(self.layer.mode) == "polygon")
        found: Callable[[Any], None] | None = self.layer.__class__.class_keymap.get(coerce_keybinding(key))
        return found if drawing and key in ("Enter", "Escape") else None

    def _on_shapes(self, event: Any) -> None:
        self._drawing = str(event.action) == "adding"


def _known(name: str) -> str:
    if name not in DEFAULTS:
        raise ValueError(f"expected the name of an action, got {name!r}; choose one of {', '.join(DEFAULTS)}")
    return name


def _hidden(key: str) -> list[str]:
    """What napari does with a key on the kinds of layer that we bind, in napari's words."""
    if not key:
        return []
    notes = []
    for kind in (Points, Shapes, Labels, ViewerModel):
        native = kind.class_keymap.get(coerce_keybinding(key))
        if native is not None and native is not ...:
            words = (native.__doc__ or "").split(INJECTED)[0].strip() or native.__name__.replace("_", " ")
            title = re.split("[.,;\n]", words)[0].strip()
            place = "the viewer" if kind is ViewerModel else f"{kind.__name__} layers"
            first = key in ("Enter", "Escape") and kind is not ViewerModel
            notes.append(f"{'comes after' if first else 'hides'} napari's “{title}” on {place}")
    return notes
