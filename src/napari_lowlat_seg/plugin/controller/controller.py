"""One image, its session and its layers, kept in step: what is drawn becomes prompts, masks become pixels.

The only place where the session and napari's layers meet. Everything that takes time is the worker's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from psygnal import Signal

from napari_lowlat_seg.annotation.accepting import Accepted
from napari_lowlat_seg.annotation.action_queue import ActionQueue
from napari_lowlat_seg.annotation.history import Step
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import TILING, Patch, Tiling
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.canvas.cursor import KeyboardCursor
from napari_lowlat_seg.plugin.canvas.hints import Hand
from napari_lowlat_seg.plugin.canvas.levels import Levels
from napari_lowlat_seg.plugin.canvas.mask_tools import MaskTools, MouseMode
from napari_lowlat_seg.plugin.controller.current_plane import CurrentPlane, ImageChanges
from napari_lowlat_seg.plugin.controller.object_files import ObjectFiles
from napari_lowlat_seg.plugin.controller.predictions import LivePreview, Predictions
from napari_lowlat_seg.plugin.controller.propagation import PropagationController
from napari_lowlat_seg.plugin.controller.session_files import SessionFiles
from napari_lowlat_seg.plugin.controller.situation import (
    ImageSituation,
    News,
    WaysOut,
    accepted_sentence,
    cancelled_sentence,
)
from napari_lowlat_seg.plugin.controller.view_state import PARTS, Settings, ViewState
from napari_lowlat_seg.plugin.keys import KeyTable, LayerKeys
from napari_lowlat_seg.plugin.labels.disk_labels import fit_memory
from napari_lowlat_seg.plugin.labels.target import ChosenLabels
from napari_lowlat_seg.plugin.layers.gestures import Gestures
from napari_lowlat_seg.plugin.layers.grid import grid_of
from napari_lowlat_seg.plugin.layers.preview import Preview
from napari_lowlat_seg.plugin.layers.prompt_edit import PromptEdit
from napari_lowlat_seg.plugin.layers.prompt_layers import PromptLayers
from napari_lowlat_seg.plugin.notices import show_warning
from napari_lowlat_seg.plugin.objects.controller import ObjectsController
from napari_lowlat_seg.plugin.worker import Worker
from napari_lowlat_seg.propagation.cross_section import CrossSection


class AnnotationController:
    """One image layer: its session, the layers that show it, and what the user can do.

    Its parts are public, and keys and buttons call their methods as well as its own: `prompts`, `gestures`,
    `preview`, `current_plane`, `predictions`, `propagation`, `labels`.

    Parameters
    ----------
    viewer
        napari's viewer.
    layer
        The image layer. It is read, never changed.
    worker
        Runs the model; several controllers may share it.
    keys
        Bound to the layers of this controller.
    level, channel_axis, channel, intensities
        See `View`.
    fit
        Whether labels of a shape are kept in memory.
    tiling
        Which planes are too large to be embedded whole, and the tiles that are instead.

    Raises
    ------
    ValueError
        As `grid_of` does.
    """

    changed = Signal()
    """`state` may be another one."""

    status = Signal(News)
    """What is going on, in a few words."""

    def __init__(
        self,
        viewer: Any,
        layer: Any,
        worker: Worker,
        keys: KeyTable,
        *,
        level: int = 0,
        channel_axis: int | None = None,
        channel: int = 0,
        intensities: Literal["automatic", "displayed"] = "automatic",
        fit: Callable[..., bool] = fit_memory,
        tiling: Tiling = TILING,
    ) -> None:
        self.viewer, self.layer = viewer, layer
        self._keys, self._key_table = LayerKeys(keys, self), keys
        window = tuple(layer.contrast_limits) if intensities == "displayed" and not layer.rgb else None
        self.grid = grid_of(layer, level=level, channel_axis=channel_axis, channel=channel, window=window)
        self.session = Session(self.grid.volume)
        self.session.on_accepted = self._accepted
        self.actions = ActionQueue()
        self.current_plane = CurrentPlane(viewer, self.grid, self.actions)
        self.image_changes = ImageChanges(self.grid)
        self.prompts = PromptLayers(viewer, self.grid, self._edited)
        self.preview = Preview(viewer, self.grid, tiling, self.current_plane.field)
        self.predictions = Predictions(self.session, worker, layer.name, tiling, self.current_plane.field)
        self.live_preview = LivePreview(self.session, self.predictions, self.prompts, self.preview)
        self.gestures = Gestures(
            viewer, self.grid, self.prompts, self.live_preview.stroke, self.live_preview.hover
        )
        self.labels = ChosenLabels(viewer, self.grid, self.session, worker, keys, self, fit)
        self.propagation = PropagationController(
            self.grid,
            self.session,
            self.current_plane,
            self.predictions,
            self.labels,
            worker,
            self.actions,
        )
        self.levels = Levels(self.session, self.predictions, self.current_plane, self.actions)
        self.mask_tools = MaskTools(
            self.session, worker, self.current_plane, self.actions, self.propagation.interpolate
        )
        self.files = SessionFiles(self.grid, self.session, self.labels, worker)
        self.objects = ObjectFiles(self.grid, self.session, self.labels, worker)
        self.all_objects = ObjectsController(
            viewer,
            self.grid,
            self.session,
            self.labels,
            worker,
            self.current_plane,
            self.actions,
            self.predictions.sources.source,
            lambda: self.propagation.range,
        )
        self._displayed = intensities == "displayed"
        seen = (self.prompts, self.gestures, self.current_plane, self.image_changes)
        self.cursor = KeyboardCursor(
            viewer,
            self.grid,
            self.session,
            self.current_plane,
            self.prompts,
            self.preview,
            self.gestures,
        )
        self.mouse = MouseMode(viewer, self.prompts, self.preview)
        asking = (self.predictions, self.propagation)
        self._parts = (*seen, self.mouse, self.labels, *asking, self.all_objects)
        self.attached = False
        self._cut: CrossSection | None = None  # of the object by the plane, where it has no mask of its own
        self._plane: Plane | None = None  # the one that is shown, which lags behind the sliders
        self._drawn: Mapping[Plane, tuple[Prompt, ...]] = {}  # the prompts that the layers show
        self._connect()

    def _connect(self) -> None:
        """Connect the parts; psygnal connects signals to methods only, so some methods just emit."""
        for signal, slot in (
            (self.prompts.sign_changed, self._emit_changed),
            (self.gestures.changed, self._emit_changed),
            (self.gestures.pressed, self.predictions.ask_ahead),
            (self.predictions.postponed, self._emit_changed),
            (self.files.changed, self._emit_changed),
            (self.files.restored, self._restored),
            (self.objects.given, self._given),
            (self.predictions.status, self._tell),
            *((part.status, self._say) for part in (self.propagation, self.files, self.objects)),
            *((part.status, self._say) for part in (self.levels, self.mask_tools, self.cursor)),
            *((part.status, self._say) for part in (self.all_objects, self.labels)),
            (self.all_objects.done, self._objects_changed),
            (self.levels.chosen, self._refresh_mask),
            (self.levels.waits, self._emit_changed),
            (self.mask_tools.changed, self._show_mask),
            (self.mask_tools.edited, self._mask_edited),
            (self.mouse.changed, self._emit_changed),
            (self.cursor.changed, self._emit_changed),
            (self.predictions.landed, self._predicted),
            (self.predictions.refused, self._go_on),
            (self.predictions.refused, self._emit_changed),
            (self.current_plane.moved, self._moved),
            (self.current_plane.panned, self.predictions.panned),
            (self.image_changes.placed, self._placed),
            (self.image_changes.contrast, self._contrast_changed),
            (self.image_changes.pixels, self._check_pixels),
            (self.labels.changed, self._labels_changed),
            (self.labels.failed, self._labels_failed),
            (self.propagation.changed, self._refresh),  # a run clears the planes that it predicts anew
            (self.propagation.changed, self._go_on),  # what waited for the end of a run
            (self.propagation.landed, self._propagated),
        ):
            signal.connect(slot)

    # In and out of the viewer

    def attach(self) -> None:
        """Put the layers into the viewer and listen."""
        if self.attached:
            return
        self.attached = True
        self.preview.attach(self._painted)
        self.viewer.layers.events.removed.connect(self._removed)
        for part in self._parts:
            part.attach()
        self._bind_keys()
        self.prompts.replaced.connect(self._bind_keys)
        self.files.begin()
        self._refresh()
        self.actions.go_on()

    def detach(self) -> None:
        """Take our layers out of the viewer and stop listening; the session and what waits are kept."""
        if not self.attached:
            return
        self.attached = False
        self.mask_tools.end_preview()
        self.prompts.replaced.disconnect(self._bind_keys)
        self._keys.unbind()
        self.viewer.layers.events.removed.disconnect(self._removed)
        for part in reversed(self._parts):
            part.detach()
        self.preview.detach()

    def close(self) -> None:
        """End what keeps the session: its image is gone, or the widget is."""
        self.files.close()

    # State

    @property
    def plane(self) -> Plane | None:
        """The plane that the viewer shows; None where it shows none of the image."""
        return self.current_plane.plane

    @property
    def proposal_layer(self) -> Any:
        """The layer that shows proposals; None without any."""
        return self.all_objects.proposals.layer

    @property
    def settings(self) -> Settings:
        """What the user has set."""
        values = {name: getattr(getattr(self, part), name) for name, part in PARTS.items()}
        return Settings(label=self.session.label, **values)

    @property
    def situation(self) -> ImageSituation:
        """What is going on; the state line says it."""
        session = self.session
        reading = "reading the image" if session.volume.window is None else ""
        return ImageSituation(
            flat=self.viewer.dims.ndisplay == 2,
            outside=self.plane is None,
            reading=reading or ("opening the labels" if self.labels.reading else ""),
            postponed=self.predictions.postpone,
            awaited=self.predictions.pending or (self.predictions.postpone and bool(session.pending)),
            accepting=session.accepting,
            waiting=len(self.actions),
            run=self.propagation.progress,
            unanswered=tuple((plane.position, why) for plane, why in session.unanswered.items()),
            editing=session.label if session.accepted_before else None,
            level=self.levels.place(self.plane),
            cut=None if self._cut is None else self._cut.counted,
        )

    @property
    def _ways(self) -> WaysOut:
        return WaysOut.of(self._key_table.keys)

    @property
    def state(self) -> ViewState:
        """All that the widget shows; its cost does not grow with the number of planes."""
        session = self.session
        return ViewState(
            self.settings,
            self.propagation.state,
            session.can_undo,
            session.can_redo,
            self.labels.layer,
            self.prompts.present,
            self.files.state,
            self.hand,
            session.begun,
            session.label > 1,
            session.volume.window,
        )

    @property
    def hand(self) -> Hand:
        """What the mouse would do now, without the keys that are held."""
        return Hand(
            self.mouse.mode,
            self.gestures.tool,
            self.prompts.positive,
            levels=self.levels.place(self.plane) is not None,
            cursor=self.cursor.at is not None,
            drawing=self.gestures.drawing,
        )

    def set(self, name: str, value: Any) -> None:
        """Change one of the `Settings`; a label below 1 is refused with a warning.

        One that the session keeps takes its turn behind what waits, which is done with what was set before.
        """
        if name == "label":
            self.actions.do(lambda: self._try(lambda: self.session.choose_label(value)))
        elif PARTS[name] == "session":
            self.actions.do(lambda: self._set(name, value))
        else:
            setattr(getattr(self, PARTS[name]), name, value)
        self.changed.emit()

    def _set(self, name: str, value: Any) -> None:
        setattr(self.session, name, value)
        self._show_mask()
        self.changed.emit()

    # The path of one click, from the mouse button to the mask on the screen:
    #
    # 1. layers/prompt_layers: napari's event becomes prompts by plane, one call of `_edited` per edit.
    # 2. `_edited` below: `Session.set_prompts` makes a new frozen `PlaneState`, one step of undo.
    # 3. controller/predictions: `ask` takes the session's request with its ticket, and a source of pixels.
    # 4. worker: the newest request wins; on its thread it goes to serving/process.
    # 5. serving/service, in the model's process: the embedding comes from the cache, or is made.
    # 6. inference/predictor: dense prompt maps, fusion, decoder, closer look.
    # 7. `Predictions._predicted`: `Session.apply` drops a mask whose ticket is stale.
    # 8. `_predicted` below: layers/preview draws the rectangle that changed.

    def _edited(self, read: Mapping[Plane, tuple[Prompt, ...]]) -> None:
        """Take in all prompts of the current object, as the layers have them now.

        Which object that is, is known only when what waits has been done.
        """
        edit, self._drawn = PromptEdit(self._drawn, read, self._take), read
        early = [plane for plane in read if self.session.awaits_cross_section(plane)]
        if not self.actions.do(
            edit, lambda: not any(self.session.awaits_cross_section(plane) for plane in early)
        ):
            if early:
                self.predictions.ask(again=True)
            self.changed.emit()

    def _take(self, edit: PromptEdit) -> None:
        prompts = edit.on(self.session.prompted())
        edited = [plane for plane, wanted in prompts.items() if self.session.set_prompts(plane, wanted)]
        if self.actions.late and self._plane is not None:
            self._show_prompts(self._plane)  # what was done before it may have drawn another object
        if edited:
            self._say("")
            self.live_preview.drop()
            self.predictions.ask()  # before anything is drawn: another thread takes it from here
            self._show_mask()
            self.changed.emit()

    def _predicted(self, plane: Plane, final: bool) -> None:
        if plane == self._plane and not self.live_preview.stroking:
            self._show_mask()
        if final and plane == self._plane:
            self.changed.emit()  # there may be other levels now
        self._go_on()

    # What the user does

    def accept(self) -> None:
        """Accept the object and begin the next one; it is written when all its prompts are answered.

        While it is being propagated, and while labels are opened, this and what follows waits.
        """
        self.actions.do(self._accept, self._can_accept)
        self.changed.emit()

    def _can_accept(self) -> bool:
        return not self.labels.reading and not self.propagation.running

    def _accept(self) -> None:
        if not self.session.planes:
            waits = bool(self.session.accepting)  # whose mask was cancelled, and is wanted again
            self._say("" if waits else "Nothing to accept: click on an object first.")
            self.predictions.ask(again=waits)
            return
        ready = self._try(self.labels.ensure)
        if not ready:
            if ready is None:
                self._say("not accepted: there are no labels")
            else:
                self.actions.do_first(self._accept, self._can_accept)
            return
        label = self.session.label
        accepted = self._try(self.session.accept)
        if accepted and label in self.session.accepting:
            self._say("")
        self._refresh()
        self.predictions.ask(again=True)
        if accepted:
            self.objects.go_on()

    def _accepted(self, accepted: Accepted) -> None:
        """Say what became of an object that was accepted, at once or later."""
        sentence = accepted_sentence(accepted, self._ways)
        if accepted.error or accepted.unanswered:
            show_warning(sentence)
        self._show_mask()  # beside what has been written, if that was later
        self._say(sentence)
        self.changed.emit()

    def new_object(self) -> None:
        """Accept the object if there is one and begin another."""
        if self.session.planes or len(self.actions):
            self.accept()

    def undo(self) -> None:
        """Undo the newest step, on whatever plane it was, and show that plane."""
        self.actions.do(lambda: self._try(self._undo))

    def redo(self) -> None:
        """Redo the step that was undone last, and show its plane."""
        self.actions.do(lambda: self._try(self._redo))

    def _undo(self) -> None:
        self._show_step(self.session.undo(), "Undo", "nothing to undo")

    def _redo(self) -> None:
        self._show_step(self.session.redo(), "Redo", "nothing to redo")

    def clear(self) -> None:
        """Remove the prompts and masks of the current object from all planes; can be undone."""
        self.actions.do(self._clear)

    def _clear(self) -> None:
        self.session.clear()
        self._say("")  # what was said was about the object
        self._refresh()

    def edit_object(self) -> None:
        """Make the object under the cursor the current one again, with its prompts."""
        under_cursor = self.current_plane.under_cursor
        if under_cursor is None:
            self._say("there is no object to edit here")
        elif not self.actions.do(lambda: self._edit_object(*under_cursor), self._can_edit):
            self.predictions.ask(again=True)
            self.changed.emit()

    def _can_edit(self) -> bool:
        return self._can_accept() and self.session.answered

    def _edit_object(self, plane: Plane, at: tuple[float, float]) -> None:
        found = self._try(lambda: self.session.edit_object(plane, at))
        if found is False:
            self._say("no object under the cursor")
        elif found:
            self._say("")  # what is edited, and how that ends, is part of the situation
        self._refresh()

    def cancel(self) -> None:
        """Stop what is running; prompts stay. An object that is being edited is left as it was.

        While something is drawn, only that is given up. Prompts that would land in another object, as what
        they waited for is given up, are taken back.
        """
        if self.gestures.give_up():
            self.changed.emit()
            return
        self.objects.drop()
        self.live_preview.drop()
        if self.all_objects.search.running:  # which says itself what it has found
            self.predictions.cancel()
            return
        if self.propagation.running:
            self.predictions.cancel()
            self.propagation.stop()
            return
        running = self.predictions.pending
        dropped = self.actions.give_up()
        self.predictions.cancel()
        label = self.session.label
        if self.session.leave_object():
            self._refresh()
            self._say(f"object {label} is as it was")
            return
        if dropped:
            self._refresh()
        # What is accepted and not written is said by the state line, with the way out.
        self._say(cancelled_sentence(dropped, bool(self.session.accepting), running, self._ways))

    # What the layers and the parts report

    def _painted(self, plane: Plane, mask: Patch) -> None:
        self.session.paint(plane, mask.pixels, mask.corner)
        self._say("mask painted by hand")
        if self._cut is not None:
            self._show_mask()  # the stroke has added to it
        self.changed.emit()

    def _moved(self) -> None:
        """Show another plane, another orientation, or that there is none in 3-D."""
        before, self._plane = self._plane, self.plane
        if self._plane is None:
            self.predictions.look(None)
            self.changed.emit()
            return
        if before is None:
            self.changed.emit()
        if before is None or before.axes != self._plane.axes:
            self._show_prompts(self._plane)
        if before != self._plane:
            self.live_preview.drop()
            self._show_mask()
            self.predictions.look(self._plane)

    def _removed(self, event: Any) -> None:
        if event.value == self.labels.layer:  # one of two may be a proxy of napari's
            self.labels.use(None)
        elif event.value == self.layer:
            self.detach()

    def _given(self, plane: Plane) -> None:
        """The current object has got prompts from a file: it is shown, predicted and accepted."""
        self.current_plane.look_at(plane)
        self._refresh()
        self.accept()

    def _objects_changed(self, sentence: str) -> None:
        """The table of objects has changed labels, or has opened an object."""
        self._refresh()
        self._say(sentence)

    def _restored(self) -> None:
        """Another session is in place of this one: show what was done last."""
        newest = self.session.undo_stack.to_undo
        if newest is not None and newest.plane is not None:
            self.current_plane.look_at(newest.plane)
        self.all_objects.look_through(again=True)
        self._refresh()

    def _placed(self) -> None:
        """The image was moved, turned or scaled, or has other units."""
        self.prompts.follow()
        self.predictions.see(spacing=self.grid.spacing)

    def _contrast_changed(self) -> None:
        if self._displayed and not self.layer.rgb:
            self.predictions.see(window=tuple(self.layer.contrast_limits))

    def _propagated(self, plane: Plane) -> None:
        if plane == self._plane:
            self._show_mask()

    def _check_pixels(self) -> None:
        if self.predictions.check_pixels():
            self._say("The image has changed: its planes are embedded again, your prompts are kept.")

    def _labels_changed(self) -> None:
        self.changed.emit()
        if not self.labels.reading:
            self._go_on()

    def _labels_failed(self, sentence: str) -> None:
        dropped = self.actions.give_up()
        self.propagation.stop()
        if dropped:
            self._refresh()
        show_warning(sentence)
        self._say(sentence)

    def _refresh_mask(self, plane: Plane) -> None:
        if plane == self._plane:
            self.live_preview.drop()
            self._show_mask()
        self.changed.emit()

    def _mask_edited(self, prompts: bool) -> None:
        if prompts:
            self._refresh()
            self.predictions.ask()
        else:
            self._show_mask()
            self.changed.emit()

    def _go_on(self) -> None:
        """Do what waited for a mask, for the labels or for the end of a run."""
        self.actions.go_on()

    # Showing

    def _say(self, sentence: str) -> None:
        self.status.emit(News(sentence))

    def _tell(self, news: News) -> None:
        self.status.emit(news)

    def _emit_changed(self) -> None:
        self.changed.emit()

    def _show_prompts(self, plane: Plane) -> None:
        """Draw the prompts of the current object, and what the user has done since and waits."""
        shown = self.session.prompted()
        for action in self.actions.waiting:
            if isinstance(action, PromptEdit):
                shown = action.on(shown)
        self._drawn = shown
        self.prompts.show(shown, plane.axes)

    def _show_mask(self) -> None:
        if self._plane is not None:
            others = self.levels.others(self._plane) + self.mask_tools.preview(self._plane)
            mask = self.session.patch(self._plane)
            self._cut = None if mask is not None else self.session.cross_section(self._plane)
            if self._cut is not None:  # thinly, as it is not this plane's own
                cut = self.session.cut(self._plane, self._cut)
                others = [*others, cut] if cut is not None else others
            self.preview.show(self._plane, mask, others)
            self.mask_tools.follow()
            self.cursor.follow()

    def _refresh(self) -> None:
        """Show the session as it is."""
        self._plane = self.plane
        self.live_preview.drop()
        if self._plane is not None:
            self._show_prompts(self._plane)
            self._show_mask()
        self.predictions.look(self._plane)
        self.changed.emit()

    def _show_step(self, step: Step | None, verb: str, nothing: str) -> None:
        if step is None:
            self._say(nothing)
            return
        changed = {plane for (_, plane), *_ in step.states}
        if step.plane is not None and self.plane not in changed:
            self.current_plane.look_at(step.plane)  # what it changed is not in view
        self.all_objects.refresh_hidden()
        self._refresh()
        elsewhere = step.plane is not None and self.plane not in {step.plane, *changed}
        where = f", on plane {step.plane.position}" if elsewhere and step.plane is not None else ""
        self._tell(News(f"{verb}: {step.title}{where}", of_mask=step.kind in ("prompts", "level")))

    def _bind_keys(self) -> None:
        """Bind our keys to the layers that there are now."""
        self._keys.bind([*self.prompts.present, self.preview.layer])

    @staticmethod
    def _try(work: Callable[[], Any]) -> Any:
        """What `work` returns; None after a warning that says why it could not be done."""
        try:
            return work()
        except (ValueError, OSError) as error:  # OSError: a full disk under the labels, for one
            show_warning(str(error))
            return None
