"""Tools for the mask of the current object: edits with a preview, and the area that objects are kept to."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

from psygnal import Signal

from napari_lowlat_seg.annotation.action_queue import ActionQueue
from napari_lowlat_seg.annotation.mask_edits import MaskEdit, edited_masks, masks_along
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import Patch
from napari_lowlat_seg.core.prompts import Box, Polygon
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.controller.current_plane import CurrentPlane
from napari_lowlat_seg.plugin.layers.napari_layers import Listener
from napari_lowlat_seg.plugin.layers.preview import Preview
from napari_lowlat_seg.plugin.layers.prompt_layers import PromptLayers
from napari_lowlat_seg.plugin.worker import Worker


class MouseMode(Listener):
    """What the mouse does: give prompts, paint on the mask, erase from it.

    Parameters
    ----------
    viewer
        napari's viewer.
    prompts, preview
        Those of the controller.
    """

    changed = Signal()
    """`mode` may be another one."""

    def __init__(self, viewer: Any, prompts: PromptLayers, preview: Preview) -> None:
        self._viewer, self._prompts, self._preview = viewer, prompts, preview

    @property
    def mode(self) -> str:
        """ "click", "brush" or "eraser"; "" while another layer has the mouse."""
        active, layer = self._viewer.layers.selection.active, self._preview.layer
        if active is None or active == layer:
            return {"paint": "brush", "erase": "eraser"}.get(str(layer.mode), "") if active == layer else ""
        return "click" if active in self._prompts.present else ""

    def _slots(self) -> tuple[tuple[Any, Any], ...]:
        events = self._viewer.layers.selection.events.active, self._preview.layer.events.mode
        return tuple((event, self._emit) for event in events)

    def _emit(self) -> None:
        self.changed.emit()


class MaskTools:
    """Edits of the current object's mask, computed beside the window.

    Parameters
    ----------
    session, worker, current_plane, actions
        Those of the controller.
    interpolate
        Interpolates the object's shape between the planes with prompts.
    """

    changed = Signal()
    """What is previewed, or the object, is another one."""

    edited = Signal(bool)
    """The mask was edited; whether prompts have changed as well."""

    status = Signal(str)
    """What is going on, in a few words."""

    def __init__(
        self,
        session: Session,
        worker: Worker,
        current_plane: CurrentPlane,
        actions: ActionQueue,
        interpolate: Callable[[], None],
    ) -> None:
        self._session, self._worker, self._current_plane = session, worker, current_plane
        self._actions, self._interpolate = actions, interpolate
        self._wanted: MaskEdit | None = None  # what is previewed
        self._key: Hashable = None  # of the masks that the preview is made from, or will be
        self._found: dict[Plane, Patch] = {}

    def show(self, edit: MaskEdit | None) -> None:
        """Outline what an edit would make of the mask; None ends that."""
        self._wanted, self._key, self._found = edit, None, {}
        self.changed.emit()
        self.follow()

    def end_preview(self) -> None:
        """Preview nothing any more, without a word: the image is no longer in front."""
        self._wanted, self._key, self._found = None, None, {}

    def follow(self) -> None:
        """Make the preview anew if the masks that it was made from have changed."""
        edit = self._wanted
        plane = None if edit is None else self._current_plane.plane  # which takes longer to find out
        if plane is None or edit is None:
            return
        key = self._state(plane, edit)
        if key != self._key:
            self._key = key
            self._start(plane, edit, lambda found: self._previewed(key, found))

    def preview(self, plane: Plane) -> list[Patch]:
        """The mask that the previewed edit gives on a plane; none where it changes nothing."""
        return [self._found[plane]] if plane in self._found else []

    def apply(self, edit: MaskEdit) -> None:
        """Do an edit, when all masks of the object are there; one step of undo."""
        plane = self._current_plane.plane
        if plane is None:
            return
        if edit.edit == "between":
            self._interpolate()
        elif not self._actions.do(
            lambda: self._do(plane, edit), lambda: self._session.answered, optional=True
        ):
            self.changed.emit()

    def limit_area(self) -> None:
        """Keep objects to the box or lasso drawn last, which is no prompt then; without one, to no area."""
        plane = self._current_plane.plane
        if not self._actions.do(lambda: self._limit_area(plane)):  # what was drawn may wait as well
            self.changed.emit()

    def _limit_area(self, plane: Plane | None) -> None:
        session = self._session
        prompts = () if plane is None else session.state(plane).prompts
        drawn = next((one for one in reversed(prompts) if isinstance(one, Box | Polygon)), None)
        if drawn is None or plane is None:
            if not session.limits.area:
                self.status.emit("Draw a box or a lasso around the area first, then press Area again.")
                return
            session.limits = replace(session.limits, area=())
            self.status.emit("Objects may be anywhere on the plane.")
            self.edited.emit(False)
            return
        ring = drawn.points
        if isinstance(drawn, Box):
            (top, left), (bottom, right) = drawn.points
            ring = ((top, left), (top, right), (bottom, right), (bottom, left))
        session.set_prompts(plane, [one for one in prompts if one is not drawn])
        session.limits = replace(session.limits, area=(tuple(ring),), axes=plane.axes)
        self.status.emit("Objects are kept to this area; press Area again to lift that.")
        self.edited.emit(True)

    def _do(self, plane: Plane, edit: MaskEdit) -> None:
        before = self._state(plane, edit)
        self._start(plane, edit, lambda found: self._finish(plane, edit, before, found))

    def _finish(self, plane: Plane, edit: MaskEdit, before: Hashable, found: dict[Plane, Patch]) -> None:
        if self._state(plane, edit) != before:
            self.status.emit("The mask has changed meanwhile: press Apply again.")
        elif self._session.reshape(found):
            planes = f"{len(found)} planes" if len(found) > 1 else "1 plane"
            self.status.emit(f"mask edited on {planes}")
            self.edited.emit(False)
        else:
            self.status.emit("The edit changes nothing.")

    def _start(self, plane: Plane, edit: MaskEdit, done: Callable[[dict[Plane, Patch]], Any]) -> None:
        known = masks_along(self._session, plane, whole=edit.whole or edit.edit == "between")
        if known.masks:
            self._worker.run(lambda: edited_masks(known, edit), done)
        else:
            done({})

    def _previewed(self, key: Hashable, found: dict[Plane, Patch]) -> None:
        if key == self._key:
            self._found = found
            self.changed.emit()

    def _state(self, plane: Plane, edit: MaskEdit) -> Hashable:
        """Equal as long as the masks are that an edit is made from."""
        session = self._session
        states = session.states() if edit.whole or edit.edit == "between" else {plane: session.state(plane)}
        masks = tuple((one, id(state.soft_mask)) for one, state in states.items())
        here = plane if not edit.whole else plane.axes
        return (session.current, here, masks, session.finish, session.limits, session.policy)
