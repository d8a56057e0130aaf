"""What a user may say about one image: each verb is what a key, a button or a command says, at any moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari.utils.notifications import show_warning

from napari_lowlat_seg.annotation.history import Step
from napari_lowlat_seg.core.masks import Finish
from napari_lowlat_seg.plugin.controller.scene import Scene
from napari_lowlat_seg.plugin.layers.gestures import SHAPES

TOOLS = tuple(SHAPES)


class Conversation(Scene):
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
    def finish(self) -> Finish:
        """How probabilities become masks; the preview follows at once."""
        return self.session.finish

    @finish.setter
    def finish(self, finish: Finish) -> None:
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

    def reopen(self) -> None:
        """Take the object under the cursor in hand again, with its prompts."""
        seen = self.sight.under_cursor
        if seen is None or self.session.labels is None:
            self.said.emit("there is no object to reopen here")
            return
        found = self._try(lambda: self.session.reopen(*seen))
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
