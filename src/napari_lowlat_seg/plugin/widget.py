"""The dock widget: what to segment, the state in one line, and buttons for what the keys do.

It makes controls, connects them and forwards; what happens is an `AnnotationController`'s. Each image keeps
its own as long as it is in the viewer, so that swapping images back brings prompts, masks and undo back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels, Points, Shapes
from napari.utils.notifications import show_error
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import QFormLayout, QGridLayout, QLabel, QVBoxLayout, QWidget

from napari_lowlat_seg.plugin.controller.images import ImageControllers, View
from napari_lowlat_seg.plugin.controller.scene import AnnotationController
from napari_lowlat_seg.plugin.forms.controls import (
    FOLDERS,
    ON_DISK,
    Choice,
    Chooser,
    Fold,
    Scrolled,
    action_button,
    ask_for_folder,
    described,
)
from napari_lowlat_seg.plugin.forms.details import DetailsForm
from napari_lowlat_seg.plugin.forms.model import ModelForm, Wanted, importing
from napari_lowlat_seg.plugin.forms.shortcuts import KeysDialog
from napari_lowlat_seg.plugin.forms.volume import BUTTONS as VOLUME_BUTTONS
from napari_lowlat_seg.plugin.forms.volume import VolumeForm
from napari_lowlat_seg.plugin.keys import ACTIONS
from napari_lowlat_seg.plugin.labels.disk_labels import beside
from napari_lowlat_seg.plugin.settings import (
    remember,
    remember_finish,
    remember_keys,
    remember_policy,
    settings,
    stored_keys,
    stored_room,
)
from napari_lowlat_seg.plugin.worker import Worker
from napari_lowlat_seg.serving.process import open_prediction_service

if TYPE_CHECKING:
    import napari

NO_IMAGE = "Open an image, or try File ▸ Open Sample ▸ Low-latency segmentation"
CHOOSE = "Choose an image"
BUTTONS = {"accept": "Accept", "new_object": "New object", "undo": "Undo", "redo": "Redo"}
TITLES = {action.name: action.title for action in ACTIONS}


class LowlatWidget(QWidget):
    """Segment images by clicking, scribbling and drawing.

    Parameters
    ----------
    napari_viewer
        The viewer that it is docked in.
    worker
        Answers; None makes one.
    converse
        Makes the conversation about one image; called as `AnnotationController` is.
    """

    def __init__(
        self,
        napari_viewer: napari.Viewer,
        worker: Any = None,
        converse: Callable[..., Any] = AnnotationController,
    ) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.worker = Worker() if worker is None else worker
        self.keys = stored_keys()
        self.talks = ImageControllers(
            lambda layer, **view: converse(napari_viewer, layer, self.worker, self.keys, **view)
        )
        self._seen: list[Any] = []
        self._open = True
        stored = settings().model
        self.model = ModelForm(Wanted(stored.name, stored.device, stored.closer_look))
        self._make_controls()
        self._lay_out()
        self._connect()
        self._show_keys()
        self._follow.start()
        # The first model is asked for when the widget is on the screen, not while it is being made.
        self._start = QTimer(self)
        self._start.setSingleShot(True)
        self._start.timeout.connect(lambda: self.model.want())
        self._start.start()

    # Controls

    def _make_controls(self) -> None:
        self.image = Chooser("Image", "The image that is segmented.")
        self.labels = Chooser("Labels", "Where accepted objects are written: a new layer, or one of yours.")
        self.state = described(QLabel(), "State", "What is going on, or how long the last answer took.")
        self.state.setWordWrap(True)
        self.state.setTextFormat(Qt.TextFormat.RichText)
        self.sentence = self._working = ""
        self.polarity = Choice(
            "Polarity", "What the next prompt says", [("+ object", True), ("− not object", False)]
        )
        self.tool = Choice(
            "Tool", "What dragging draws", [("Scribble", "scribble"), ("Box", "box"), ("Lasso", "lasso")]
        )
        self.buttons = {
            name: action_button(text, partial(self._verb, name)) for name, text in BUTTONS.items()
        }
        self.volume = VolumeForm(lambda: self.conversation and self.conversation.through)
        self.details = DetailsForm(self.model)
        room = settings().embeddings
        self.details.show_embeddings(room.ahead, room.memory, room.disk)
        self.shortcuts = described(
            action_button("Shortcuts…", self.show_shortcuts),
            "Shortcuts",
            "All keys; they can be changed there.",
        )
        self.cancel = described(
            action_button("Cancel", self._cancel), "Cancel", "Stop what is running; prompts stay."
        )
        self._follow = QTimer(self)  # napari is still at it when it tells of a new layer
        self._follow.setSingleShot(True)
        self._stir = QTimer(self)  # planes come and go faster than anybody looks at the strip
        self._stir.setSingleShot(True)
        self._stir.setInterval(40)

    def _lay_out(self) -> None:
        inner = QWidget()
        column = QVBoxLayout(inner)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for text, control in (("Image", self.image), ("Model", self.model), ("Labels", self.labels)):
            form.addRow(text, control)
        grid = QGridLayout()
        for index, button in enumerate(self.buttons.values()):
            grid.addWidget(button, index // 2, index % 2)
        self.fold = Fold("Details", "Everything that is not needed for every object.", self.details)
        column.addLayout(form)
        column.addWidget(self.state)
        column.addLayout(grid)
        for part in (self.polarity, self.tool, self.volume, self.fold, self.shortcuts, self.cancel):
            column.addWidget(part)
        column.addStretch()
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(Scrolled(inner))

    def _connect(self) -> None:
        self.image.chosen.connect(self.turn_to)
        self.labels.chosen.connect(self._choose_labels)
        self.polarity.chosen.connect(lambda positive: self._set("positive", positive))
        self.tool.chosen.connect(lambda tool: self._set("tool", tool))
        details = self.details
        details.label.connect(lambda label: self._set("label", label))
        details.semantic.connect(lambda on: self._set("semantic", on))
        details.policy.connect(lambda policy: self._set("policy", policy))
        details.finish.connect(lambda finish: self._set("finish", finish))
        details.hover.connect(lambda on: self._set("hover", on))
        details.postpone.connect(self._postpone)
        details.adopt.connect(self._adopt)
        details.ahead.connect(self._look_ahead)
        details.room.connect(self._give_room)
        details.view.connect(lambda view: self.turn_to(self.conversation.layer, view))
        self.model.wanted.connect(self._load)
        self.model.cancelled.connect(self._cancel)
        self.model.file_chosen.connect(self.import_file)
        self.worker.progressed.connect(self.model.show_progress)
        self.worker.loaded.connect(self.model.show_loaded)
        self.worker.started.connect(self._started)
        self.worker.failed.connect(self._fail)
        self.worker.idle.connect(self._rest)
        self.talks.changed.connect(self._show)
        self.talks.said.connect(self._say)
        self.talks.stirred.connect(self._stir_soon)
        self._stir.timeout.connect(self.volume.refresh)
        self.keys.changed.connect(self._keys_changed)
        self._follow.timeout.connect(self._follow_layers)
        for event in self._layer_events():
            event.connect(self._on_layers)
        self.destroyed.connect(self.worker.close)

    def _layer_events(self) -> tuple[Any, ...]:
        events = self.viewer.layers.events
        return events.inserted, events.removed, events.reordered, events.renamed

    # Images

    def turn_to(self, layer: Any, view: View | None = None) -> None:
        """Continues with an image layer where it was left, or begins with it; None turns away from all."""
        if layer is None:
            self._say(CHOOSE if self._images() else NO_IMAGE)
        self._try(lambda: self.talks.turn_to(layer, view))

    @property
    def conversation(self) -> Any:
        """The one in front; None without an image."""
        return self.talks.current

    def _on_layers(self, event: Any = None) -> None:
        self._follow.start()

    def _follow_layers(self) -> None:
        """Forgets images that are gone, begins with the first one that comes, shows the names there are."""
        images, before = self._images(), self._seen
        self._seen = images
        gone = self.conversation is not None and self.conversation.layer not in images
        self.talks.forget_all_but(images)
        if gone:
            self.turn_to(None)
        elif self.conversation is None and len(images) > len(before):
            active = self.viewer.layers.selection.active
            self.turn_to(active if active in images else images[-1])
        self._show()

    def _images(self) -> list[Any]:
        return [layer for layer in self.viewer.layers if isinstance(layer, Image)]

    # Shown

    def _show(self) -> None:
        """Reads everything that is shown."""
        talk = self.conversation
        self.image.offer([(layer.name, layer) for layer in self._images()], talk and talk.layer)
        of_image = (self.polarity, self.tool, self.labels, self.volume, *self.details.of_image)
        for control in (*self.buttons.values(), *of_image):
            control.setEnabled(talk is not None)
        if talk is None:
            self.labels.offer([("new", None)], None)
            if not self.sentence:
                self._say(CHOOSE if self._images() else NO_IMAGE)
            return
        self._show_layers(talk)
        self.buttons["undo"].setEnabled(talk.session.can_undo)
        self.buttons["redo"].setEnabled(talk.session.can_redo)
        self.polarity.show_value(talk.positive)
        self.tool.show_value(talk.tool)
        self.volume.refresh()
        self.details.show_settings(talk)
        self.details.show_view(talk.layer, self.talks.view)

    def _show_layers(self, talk: Any) -> None:
        theirs = self._named(Labels, self.talks.previews())
        self.labels.offer([("new", None), *ON_DISK, *theirs], talk.labels.layer)
        adopted = self.talks.adopted
        ours = [one for one in (talk.prompts.points, talk.prompts.shapes) if one not in adopted]
        points = self._named(Points, ours)
        self.details.show_layers(points, self._named(Shapes, ours), adopted)
        self.volume.show_points([one for one in points if one[1] is not adopted[0]])

    def _named(self, kind: Any, ours: list[Any]) -> list[tuple[str, Any]]:
        """Name and layer of all that are the user's."""
        layers = [layer for layer in self.viewer.layers if isinstance(layer, kind)]
        return [(layer.name, layer) for layer in layers if layer not in ours]

    def _show_keys(self) -> None:
        """Writes the keys onto the buttons and into the tooltips."""
        keys, texts = self.keys.keys, BUTTONS | VOLUME_BUTTONS
        for name, button in (self.buttons | self.volume.buttons).items():
            button.setText(f"{texts[name]}  [{keys[name]}]" if keys[name] else texts[name])
            described(button, TITLES[name], f"Key: {keys[name] or 'none'}")
        self.polarity.explain(
            f"What the next click or stroke says of what it touches. Key: {keys['toggle_polarity']}"
        )
        self.tool.explain(f"What dragging the mouse draws. Key: {keys['next_tool']}")

    def _say(self, sentence: str) -> None:
        self.sentence = sentence
        self.state.setText(f"<big><b>{escape(sentence)}</b></big>")
        self.state.setAccessibleName(f"State: {sentence}")

    def _fail(self, sentence: str) -> None:
        self.model.show_failed()
        self._say(sentence)
        show_error(sentence)

    # Slots

    def _verb(self, name: str) -> None:
        if self.conversation is not None:
            getattr(self.conversation, name)()

    def _set(self, name: str, value: Any) -> None:
        """Hands a setting on, and remembers it for the next image and session."""
        owner = self.conversation.session if name in ("policy", "semantic") else self.conversation
        self._try(lambda: setattr(owner, name, value))
        if name == "finish":
            remember_finish(value)
        elif name == "policy":
            remember_policy(value)
        elif name == "semantic":
            remember("labels", semantic=value)
        elif name in ("tool", "hover"):
            remember("prompts", **{name: value})

    def _stir_soon(self) -> None:
        if not self._stir.isActive():
            self._stir.start()

    def _choose_labels(self, chosen: Any) -> None:
        """A layer, None for a new one, or a way to find a folder."""
        if chosen not in FOLDERS:
            self._try(lambda: self.conversation.use_labels(chosen))
            return
        self._show()  # until a folder is chosen, what was chosen before counts
        ask_for_folder(self, chosen, beside(self.conversation.layer), self.conversation.keep_labels)

    def _postpone(self, on: bool) -> None:
        self.conversation.hold(on)
        remember("prompts", postpone=on)

    def _look_ahead(self, planes: int) -> None:
        remember("embeddings", ahead=planes)
        if self.conversation is not None:
            self.conversation.questions.reach = planes

    def _give_room(self, memory: int, disk: int) -> None:
        """Loads the model anew: what holds the embeddings is made with it."""
        remember("embeddings", memory=memory, disk=disk)
        self.model.want()

    def _adopt(self, points: Any, shapes: Any) -> None:
        self._try(lambda: self.talks.adopt(points, shapes))
        self._show()

    def _cancel(self) -> None:
        if self.conversation is not None:
            self.conversation.cancel()
        else:
            self.worker.cancel()

    def _load(self, wanted: Wanted) -> None:
        model = (wanted.name, wanted.device, wanted.closer_look)
        self.worker.load(partial(open_prediction_service, *model, **stored_room()))
        remember("model", name=wanted.name, device=wanted.device, closer_look=wanted.closer_look)

    def _started(self, what: str) -> None:
        """Without an image there is something more useful to say; that a model loads is seen at the list."""
        if self.conversation is not None:
            self._say(what)
            self._working = what

    def _rest(self) -> None:
        """What was under way and has told nothing since was dropped, or shown already."""
        self.model.show_failed()
        if self.conversation is not None and self.sentence == self._working:
            self._say("ready")

    def import_file(self, file: Path) -> None:
        """Adds a model file to the list and loads it; what is wrong with it is told as any failure."""
        self._say(f"importing {file.name}")
        self.worker.run(importing(file), lambda name: self.model.want(name=name))

    def show_shortcuts(self) -> KeysDialog:
        """Opens the table of keys."""
        dialog = KeysDialog(self.keys, self)
        dialog.show()
        return dialog

    def _keys_changed(self) -> None:
        self._show_keys()
        remember_keys(self.keys.keys)

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except ValueError as error:
            self._fail(str(error))
            self._show()

    # Leaving

    def event(self, event: Any) -> bool:
        """napari takes a widget out of its closed dock without closing it."""
        if event.type() == QEvent.Type.ParentChange and self._open and self.parent() is None:
            self.give_back()
        return bool(super().event(event))

    def closeEvent(self, event: Any) -> None:
        """Gives back what was borrowed."""
        self.give_back()
        super().closeEvent(event)

    def give_back(self) -> None:
        """Takes our layers out of the viewer and ends the worker; may be called twice."""
        if not self._open:
            return
        self._open = False
        self._follow.stop()
        self._stir.stop()
        self._start.stop()
        for event in self._layer_events():
            event.disconnect(self._on_layers)
        self.talks.changed.disconnect(self._show)
        self.talks.turn_to(None)
        self.worker.close()
