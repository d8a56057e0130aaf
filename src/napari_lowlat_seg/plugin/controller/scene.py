"""One image, its session and its layers, kept in step: what is drawn becomes prompts, masks become pixels.

The only place where the session and napari's layers meet. Everything that takes time is the worker's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from napari.utils.notifications import show_warning
from psygnal import Signal

from napari_lowlat_seg.annotation.history import Step
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import TILING, Patch, Tiling
from napari_lowlat_seg.core.masks import PostProcessing
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.controller.current_plane import CurrentPlane
from napari_lowlat_seg.plugin.controller.predictions import LivePreview, Predictions
from napari_lowlat_seg.plugin.controller.propagation import PropagationController
from napari_lowlat_seg.plugin.keys import KeyTable
from napari_lowlat_seg.plugin.labels.disk_labels import fit_memory
from napari_lowlat_seg.plugin.labels.target import ChosenLabels
from napari_lowlat_seg.plugin.layers.gestures import SHAPES, Gestures
from napari_lowlat_seg.plugin.layers.grid import grid_of
from napari_lowlat_seg.plugin.layers.preview import Preview
from napari_lowlat_seg.plugin.layers.prompt_layers import PromptLayers
from napari_lowlat_seg.plugin.worker import Worker

NO_PLANE = "prompts wait: go back to a 2-D view of the image"


class Scene:
    """An image layer, what is known of its objects, and the layers that show it.

    Parameters
    ----------
    viewer
        napari's viewer.
    layer
        The image layer. It is read, never changed.
    worker
        Answers requests; several conversations may share it.
    keys
        Is bound to the layers of this conversation.
    level, channel_axis, channel, intensities
        What of the image is segmented; see `grid_of`. "displayed" takes the layer's contrast limits for black
        and white, "automatic" chooses them from the data.
    fit
        Whether labels of a shape are kept in memory.
    tiling
        Which planes are too large to be looked at whole, and the tiles that are instead.

    Raises
    ------
    ValueError
        As `grid_of` does.
    """

    changed = Signal()
    """Something that a widget shows may differ: the label, what can be undone, a layer."""

    said = Signal(str)
    """The state in a few words."""

    edited = Signal()
    """The prompts of the object in hand are other ones."""

    settled = Signal()
    """Something that was waited for is there: a mask, or the labels."""

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
        self._keys = keys
        window = tuple(layer.contrast_limits) if intensities == "displayed" and not layer.rgb else None
        self.grid = grid_of(layer, level=level, channel_axis=channel_axis, channel=channel, window=window)
        self.session = Session(self.grid.volume)
        self.prompts = PromptLayers(viewer, self.grid, self._edited)
        self.preview = Preview(viewer, self.grid, tiling)
        self.sight = CurrentPlane(viewer, self.grid)
        self.questions = Predictions(self.session, worker, layer.name, tiling, self.sight.field)
        self.trials = LivePreview(self.session, self.questions, self.prompts, self.preview)
        self.gestures = Gestures(viewer, self.grid, self.prompts, self.trials.stroke, self.trials.hover)
        self.labels = ChosenLabels(viewer, self.grid, self.session, worker, keys, self, fit)
        self.labels.changed.connect(self._labels_changed)
        self.questions.landed.connect(self._landed)
        self.questions.said.connect(self._say)
        self.sight.moved.connect(self._moved)
        self.sight.panned.connect(self._panned)
        self.through = PropagationController(
            self.grid, self.session, self.sight, self.questions, self.labels, worker
        )
        self.through.changed.connect(self._carried)
        self.through.landed.connect(self._carried_to)
        self.through.said.connect(self._say)
        self.attached = False
        self._plane: Plane | None = None
        self._bound: list[Any] = []

    # Being there

    def attach(self) -> None:
        """Put the layers into the viewer and listen."""
        if self.attached:
            return
        self.attached = True
        self.preview.attach(self._painted)
        self.prompts.attach()
        self.gestures.attach()
        self._bind_keys()
        self.prompts.replaced.connect(self._bind_keys)
        self.sight.attach()
        self.viewer.layers.events.removed.connect(self._removed)
        for event in self.grid.place_events:
            event.connect(self._placed)
        self.labels.attach()
        self.questions.attach()
        self.through.attach()
        self._refresh()

    def detach(self) -> None:
        """Take our layers out of the viewer, keep all that is known, stop listening."""
        if not self.attached:
            return
        self.attached = False
        self.through.detach()
        self.questions.detach()
        self.labels.detach()
        for event in self.grid.place_events:
            event.disconnect(self._placed)
        self.sight.detach()
        self.viewer.layers.events.removed.disconnect(self._removed)
        self.prompts.replaced.disconnect(self._bind_keys)
        self._unbind_keys()
        self.gestures.detach()
        self.prompts.detach()
        self.preview.detach()

    @property
    def plane(self) -> Plane | None:
        """The plane that the viewer shows; None where it shows none of the image."""
        return self.sight.plane

    # What napari says

    def _edited(self, read: Mapping[Plane, tuple[Prompt, ...]]) -> None:
        """All prompts of the object in hand, as the layers have them now."""
        planes = {*self.session.prompted(), *read}
        touched = [plane for plane in planes if self.session.set_prompts(plane, read.get(plane, ()))]
        if touched:
            self.trials.drop()
            self._show_mask()
            self.edited.emit()
            self.questions.ask()
            self.changed.emit()

    def _painted(self, plane: Plane, mask: Patch) -> None:
        self.session.paint(plane, mask.pixels, mask.corner)
        self.changed.emit()

    def _moved(self) -> None:
        """Another plane, another orientation, or 3-D."""
        before, self._plane = self._plane, self.plane
        if self._plane is None:
            self.questions.look(None)
            self.said.emit(NO_PLANE)
            return
        if before is None or before.axes != self._plane.axes:
            self.prompts.show(self.session.prompted(), self._plane.axes)
        if before != self._plane:
            self.trials.drop()
            self._show_mask()
            self.questions.look(self._plane)

    def _panned(self) -> None:
        self.questions.panned()

    @property
    def _field(self) -> tuple[float, float, float, float] | None:
        """What is seen of the plane in view."""
        return None if self.plane is None else self.sight.field(self.plane)

    def _placed(self) -> None:
        """The image has been moved or scaled: its prompts go with it."""
        self.prompts.follow()

    def _removed(self, event: Any) -> None:
        if event.value is self.labels.layer:
            self.labels.use(None)
        elif event.value is self.layer:
            self.detach()

    # What the worker says

    def _landed(self, plane: Plane, final: bool) -> None:
        if plane == self._plane and not self.trials.stroking:
            self._show_mask()
        self._settle()

    def _carried_to(self, plane: Plane) -> None:
        if plane == self._plane:
            self._show_mask()

    def _carried(self) -> None:
        """A run has begun, which clears what it will answer anew, or ended, with objects of its own."""
        self._refresh()

    def _labels_changed(self) -> None:
        self.changed.emit()
        if not self.labels.reading:
            self._settle()

    def _settle(self) -> None:
        self.settled.emit()
        self.through.resume()

    # How it is shown

    def _say(self, sentence: str) -> None:
        self.said.emit(sentence)  # a signal cannot be connected to another one

    def _show_mask(self) -> None:
        if self._plane is not None:
            self.preview.show(self._plane, self.session.patch(self._plane))

    def _refresh(self) -> None:
        """Show the session as it is."""
        self._plane = self.plane
        self.trials.drop()
        if self._plane is None:
            self.said.emit(NO_PLANE)
        else:
            self.prompts.show(self.session.prompted(), self._plane.axes)
            self._show_mask()
        self.questions.look(self._plane)
        self.changed.emit()

    def _bind_keys(self) -> None:
        """Our keys work on our layers, whichever they are now."""
        self._unbind_keys()
        self._bound = [one for one in (*self.prompts.present, self.preview.layer) if one is not None]
        for layer in self._bound:
            self._keys.bind(layer, self)

    def _unbind_keys(self) -> None:
        for layer in self._bound:
            self._keys.unbind(layer)
        self._bound = []


TOOLS = tuple(SHAPES)


class AnnotationController(Scene):
    """A scene that does what it is told; its parameters and errors are those of `Scene`."""

    def __init__(self, *image: Any, **how: Any) -> None:
        super().__init__(*image, **how)
        self._accepting = False
        self.edited.connect(self._not_yet)
        self.settled.connect(self._accept_now)
        self.labels.failed.connect(self._labels_failed)

    # What it is set to

    @property
    def positive(self) -> bool:
        """The sign of the next prompt."""
        return self.prompts.positive

    @positive.setter
    def positive(self, positive: bool) -> None:
        if positive != self.prompts.positive:
            self.prompts.positive = positive
            self.changed.emit()

    @property
    def tool(self) -> str:
        """What dragging the mouse draws: "scribble", "box" or "lasso"."""
        return self.gestures.tool

    @tool.setter
    def tool(self, tool: str) -> None:
        self.gestures.tool = tool
        self.changed.emit()

    @property
    def hover(self) -> bool:
        """Whether the object under the resting mouse is outlined before the click."""
        return self.gestures.hover

    @hover.setter
    def hover(self, hover: bool) -> None:
        self.gestures.hover = hover
        self.trials.drop()
        self.changed.emit()

    @property
    def label(self) -> int:
        """The label of the object in hand."""
        return self.session.label

    @label.setter
    def label(self, label: int) -> None:
        self._try(lambda: self.session.choose_label(label))
        self.changed.emit()

    @property
    def finish(self) -> PostProcessing:
        """How probabilities become masks; the preview follows at once."""
        return self.session.finish

    @finish.setter
    def finish(self, finish: PostProcessing) -> None:
        self.session.finish = finish
        self._show_mask()
        self.changed.emit()

    # Verbs

    def accept(self) -> None:
        """Write the object into the labels, once all its prompts are answered, and begin the next one."""
        if self.session.unanswered or self.labels.reading:
            self._accepting = True
            self.said.emit("will be accepted when the mask is there")
            self.questions.ask()
            return
        self._accepting = False  # what `ensure` tells of must not begin here again
        ready = self._try(self.labels.ensure)
        self._accepting = ready is False
        if not ready:
            self.said.emit("opening the labels" if self._accepting else "not accepted: there are no labels")
            return
        label = self.session.label
        written = self._try(self.session.accept)
        if written is False:
            self.said.emit("nothing to accept: click on an object first, or choose to overwrite other labels")
        elif written:
            self.said.emit(f"object {label} accepted")
        self._refresh()

    def new_object(self) -> None:
        """Accept the object if there is one and begin another."""
        if self.session.prompted() or self.session.finished_object:
            self.accept()

    def undo(self) -> None:
        """Take back the last thing done, wherever it was, and show the place."""
        self._travel(self.session.undo(), "undid", "nothing to undo")

    def redo(self) -> None:
        """Do again what was undone last, and show the place."""
        self._travel(self.session.redo(), "redid", "nothing to redo")

    def clear(self) -> None:
        """Forget the prompts and masks of the object in hand, on all planes; can be undone."""
        self._accepting = False
        self.session.clear()
        self._refresh()

    def toggle_polarity(self) -> None:
        """Turn round the selected prompts, or the sign of the next one if none is selected."""
        self.prompts.toggle()
        self.changed.emit()

    def next_tool(self) -> None:
        """Scribble, box, lasso, and again."""
        self.tool = TOOLS[(TOOLS.index(self.tool) + 1) % len(TOOLS)]

    def next_plane(self) -> None:
        """Look at the following plane."""
        self.sight.step(1)

    def previous_plane(self) -> None:
        """Look at the plane before."""
        self.sight.step(-1)

    def edit_object(self) -> None:
        """Take the object under the cursor in hand again, with its prompts."""
        seen = self.sight.under_cursor
        if seen is None or self.session.labels is None:
            self.said.emit("there is no object to reopen here")
            return
        found = self._try(lambda: self.session.edit_object(*seen))
        if found is False:
            self.said.emit("no object under the cursor")
        elif found:
            self.said.emit(f"object {self.session.label} is open again: correct it, then accept")
        self._refresh()

    def brush(self) -> None:
        """Paint on the mask; the model continues from what is painted."""
        self.preview.brush(erase=False, field=self._field)

    def eraser(self) -> None:
        """Erase from the mask; the model continues from what is left."""
        self.preview.brush(erase=True, field=self._field)

    def prompt_tool(self) -> None:
        """Back to clicking and dragging."""
        self.prompts.activate()

    def hold(self, held: bool) -> None:
        """While held, prompts gather and nothing is predicted."""
        self.questions.held = held
        self.said.emit("predictions wait" if held else "ready")
        if not held:
            self.questions.ask()
        self.changed.emit()

    def toggle_hover(self) -> None:
        """Outline the object under the resting mouse, or stop doing so."""
        self.hover = not self.hover

    def cancel(self) -> None:
        """Stop what is running; prompts stay."""
        self._accepting = False
        self.through.stop()
        self.trials.drop()
        self.questions.cancel()
        self.said.emit("cancelled")

    def use_labels(self, layer: Any | None) -> None:
        """Write to a Labels layer of the user's; None makes a new one when the first object is accepted.

        Raises ValueError, in one sentence, if the layer does not lie on the image's voxels.
        """
        self.labels.use(layer)

    def keep_labels(self, path: Path) -> None:
        """Write to labels on disk from now on: an OME-Zarr at `path`, which is made or gone on with."""
        self.labels.keep_at(path)

    def adopt(self, points: Any | None = None, shapes: Any | None = None) -> None:
        """Read prompts from layers of the user's instead of our own; None goes back to our own."""
        self.prompts.adopt(points, shapes)

    # How it is done

    def _not_yet(self) -> None:
        self._accepting = False

    def _accept_now(self) -> None:
        if self._accepting and not self.labels.reading:
            self.accept()

    def _labels_failed(self, sentence: str) -> None:
        self._accepting = False
        self.through.stop()
        show_warning(sentence)
        self.said.emit(sentence)

    def _travel(self, step: Step | None, verb: str, nothing: str) -> None:
        self._accepting = False
        if step is None:
            self.said.emit(nothing)
            return
        if step.plane is not None:
            self.sight.look_at(step.plane)
        self._refresh()
        self.said.emit(f"{verb}: {step.title}")

    @staticmethod
    def _try(work: Any) -> Any:
        """What `work` gives; None after telling the user why it could not be done."""
        try:
            return work()
        except (ValueError, OSError) as error:  # a full disk under the labels, for one
            show_warning(str(error))
            return None
