"""The dock widget: which image to segment, the state in one line, and buttons for what the keys do.

It connects and forwards; `MainForm` has the controls, `AnnotationController` does the work. Each image keeps
its own controller for as long as it is in the viewer, so that swapping images back brings everything back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QSizePolicy, QVBoxLayout, QWidget
from superqt.utils import qdebounced, qthrottled

from napari_lowlat_seg.plugin.canvas.events import CanvasEvents, canvas_beside
from napari_lowlat_seg.plugin.canvas.hints import StatusHints
from napari_lowlat_seg.plugin.controller.controller import AnnotationController
from napari_lowlat_seg.plugin.controller.current_plane import LayerChanges
from napari_lowlat_seg.plugin.controller.images import ImageControllers
from napari_lowlat_seg.plugin.controller.situation import News, WaysOut
from napari_lowlat_seg.plugin.controller.view_state import View, ViewState
from napari_lowlat_seg.plugin.forms.controls import FOLDERS, ask_for_folder
from napari_lowlat_seg.plugin.forms.main import MainForm
from napari_lowlat_seg.plugin.forms.model import Wanted, importing
from napari_lowlat_seg.plugin.forms.session import connect_files
from napari_lowlat_seg.plugin.forms.shortcuts import FocusKeys, KeysDialog
from napari_lowlat_seg.plugin.keys import ACTION
from napari_lowlat_seg.plugin.labels.disk_labels import beside
from napari_lowlat_seg.plugin.notices import show_error
from napari_lowlat_seg.plugin.objects.binding import ObjectsInFront
from napari_lowlat_seg.plugin.settings import (
    remember,
    remember_keys,
    remember_setting,
    settings,
    stored,
    stored_keys,
    stored_room,
)
from napari_lowlat_seg.plugin.worker import Worker
from napari_lowlat_seg.serving.process import open_prediction_service

if TYPE_CHECKING:
    import napari

REDRAW_MS = 40
"""Between two refreshes while planes are scrolled or propagated: faster than that nobody can see."""


class LowlatWidget(QWidget):
    """Segment images by clicking, scribbling and drawing.

    Parameters
    ----------
    napari_viewer
        The viewer that it is docked in.
    worker
        Runs the model; None makes one.
    make_controller
        Called as `AnnotationController` is.
    """

    def __init__(
        self,
        napari_viewer: napari.Viewer,
        worker: Any = None,
        make_controller: Callable[..., Any] = AnnotationController,
    ) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.worker = Worker() if worker is None else worker
        self.keys = stored_keys()
        self.controllers = ImageControllers(
            napari_viewer,
            lambda layer, **view: make_controller(napari_viewer, layer, self.worker, self.keys, **view),
        )
        room = settings().embeddings
        rooms = (room.ahead, room.memory, room.disk)
        self.form = MainForm(Wanted(**stored("model")), rooms, hints=settings().prompts.hints)
        QVBoxLayout(self).addWidget(self.form)
        self.layout().setContentsMargins(0, 0, 0, 0)
        # Else napari puts empty space below, and what there would be room for is scrolled.
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        self.canvas_events = CanvasEvents(napari_viewer, lambda: self.controller)
        self._open = True
        self._layers_of: ViewState | None = None  # the state whose layers are offered
        self._layers = LayerChanges(napari_viewer, self)
        self._redraw = qthrottled(self._show, REDRAW_MS, leading=False, parent=self)
        self.hints = StatusHints(napari_viewer, self.keys, lambda: self.controller, self)
        # The first model is loaded when the widget is on the screen, not while it is being made.
        self._load_first = qdebounced(self.form.model.want, 0, parent=self)
        self.models = ModelLoader(self.worker, self.form)
        self.objects = ObjectsInFront(
            self.form.objects, lambda path: self._try(lambda: self.controller.objects.measure(path))
        )
        self._connect()
        FocusKeys(self, self._do)
        self.form.show_keys(self.keys.keys)
        self._layers.look()
        self._load_first()

    def _connect(self) -> None:
        form, details = self.form, self.form.details
        form.state.look = self._situation
        connect_files(form.session, form.offer, lambda: self.controller, self._try)
        for signal, slot in (
            (form.image.changed, self.turn_to),
            (form.labels.changed, self._choose_labels),
            (form.pressed, self._do),
            (form.setting, self._set),
            (form.shortcuts.clicked, self.show_shortcuts),
            (form.cancel.clicked, lambda: (self.controller or self.worker).cancel()),
            (form.volume.changed, lambda name, value: setattr(self.controller.propagation, name, value)),
            (form.hint.dismissed.clicked, lambda _checked: remember("prompts", hints=False)),
            (self.canvas_events.held, self.hints.hold),
            (form.mask_tools.previewed, self._preview_edit),
            (form.mask_tools.applied, lambda edit: self.controller.mask_tools.apply(edit)),
            (form.volume.strip.clicked, lambda position: self.controller.propagation.look_at(position)),
            (details.adopt, lambda *layers: self._try(lambda: self.controllers.adopt(*layers))),
            (details.view, lambda view: self.turn_to(self.controller.layer, view)),
            (self.keys.changed, lambda: form.show_keys(self.keys.keys)),
            (self.keys.changed, lambda: remember_keys(self.keys.keys)),
            (self.keys.changed, form.state.update_situation),
            (self.controllers.swapped, self._swapped),
            (self._layers.changed, self._follow),
            (self.worker.idle, form.state.update_situation),
            (self.destroyed, self.worker.close),
        ):
            signal.connect(slot)

    @property
    def controller(self) -> Any:
        """That of the image in front; None without an image."""
        return self.controllers.current

    @property
    def sentence(self) -> str:
        """What the state line says."""
        return self.form.state.sentence

    def turn_to(self, layer: Any, view: View | None = None) -> None:
        """Continue with an image layer where it was left, or begin with it; None turns away from all."""
        self._try(lambda: self.controllers.turn_to(layer, view))

    def _follow(self) -> None:
        self._try(self.controllers.follow_viewer)

    def _swapped(self, before: Any, after: Any) -> None:
        self.form.state.say(News())
        self.form.mask_tools.end_preview()
        for controller, verb in ((before, "disconnect"), (after, "connect")):
            if controller is not None:
                getattr(controller.changed, verb)(self._show)
                getattr(controller.status, verb)(self.form.state.say)
                getattr(controller.propagation.progressed, verb)(self._redraw_soon)
        self.objects.show(None if after is None else after.all_objects)
        self._show_all()

    def _show_all(self) -> None:
        """Show everything anew: after a change of layers, and where a refused choice is still in front."""
        controller, images = self.controller, self.controllers.images
        layer = None if controller is None else controller.layer
        self.form.show_images([(image.name, image) for image in images], layer)
        self._layers_of = None
        if controller is not None:
            self.form.details.show_view(layer, self.controllers.view)
        self._show()

    def _situation(self) -> dict[str, Any]:
        image = None if self.controller is None else self.controller.situation
        ways = WaysOut.of(self.keys.keys)
        return {"image": image, "images": len(self.controllers.images), "ways": ways}

    def _show(self) -> None:
        self.form.state.update_situation()
        if self.controller is not None:
            state, before = self.controller.state, self._layers_of
            if before is None or (before.labels, before.prompts) != (state.labels, state.prompts):
                self._layers_of = state
                self.form.show_layers(*self.controllers.offered(state))
                self.controller.propagation.points = self.form.volume.seeds.value
            self.form.show_state(state)
            self.hints.show(state.hand)

    def _redraw_soon(self) -> None:
        self._redraw()

    def _do(self, action: str) -> None:
        if self.controller is not None:
            ACTION[action].call(self.controller)

    def _preview_edit(self, edit: Any) -> None:
        if self.controller is not None and self.controller.attached:
            self.controller.mask_tools.show(edit)

    def _set(self, name: str, value: Any) -> None:
        if self.controller is not None:
            self._try(lambda: self.controllers.set(name, value))
        remember_setting(name, value)

    def _choose_labels(self, chosen: Any) -> None:
        """Take a layer, None for a new one, or a way to find a folder."""
        if chosen in FOLDERS:
            self._show_all()  # until a folder is chosen, what was chosen before counts
            ask_for_folder(self, chosen, beside(self.controller.layer), self.controller.labels.keep_at)
        else:
            self._try(lambda: self.controller.labels.use(chosen))

    def show_shortcuts(self) -> KeysDialog:
        """Open the table of keys."""
        dialog = KeysDialog(self.keys, self)
        dialog.show()
        return dialog

    def _try(self, work: Callable[[], object]) -> None:
        """Do it, or say why it is refused; then show what is in force."""
        try:
            work()
        except (ValueError, OSError) as error:
            self.models.fail(str(error))
        self._show_all()

    def showEvent(self, event: Any) -> None:
        """Find the canvas, which is there when the widget has been docked beside it."""
        super().showEvent(event)
        if self._open:
            self.canvas_events.watch(canvas_beside(self))

    def event(self, event: Any) -> bool:
        """Leave when it is closed, or taken out of its dock, which napari does without closing it."""
        undocked = event.type() == QEvent.Type.ParentChange and self.parent() is None
        if undocked or event.type() == QEvent.Type.Close:
            self.give_back()  # once
        return bool(super().event(event))

    def give_back(self) -> None:
        """Take our layers out of the viewer and end the worker; may be called twice."""
        if not self._open:
            return
        self._open = False
        self.canvas_events.watch(None)
        self.hints.close()
        for later in (self._redraw, self._load_first):
            later.cancel()
        self._layers.close()
        self.controllers.swapped.disconnect(self._swapped)
        self.objects.close()
        self.controllers.close()
        self.worker.close()


class ModelLoader:
    """Lets a worker load the models that the form asks for, and shows what the worker does.

    Parameters
    ----------
    worker
        Loads models.
    form
        Has the list of models and the state line.
    """

    def __init__(self, worker: Any, form: MainForm) -> None:
        self._worker, self._form = worker, form
        form.model.wanted.connect(self._load)
        form.model.file_chosen.connect(self.import_file)
        form.details.room.connect(self._set_room)
        worker.progressed.connect(form.model.show_progress)
        worker.progressed.connect(lambda *bytes_: form.state.update_situation(download=bytes_))
        worker.loaded.connect(form.model.show_loaded)
        worker.loaded.connect(self._loaded)
        worker.started.connect(self._started)
        worker.failed.connect(self._failed)
        worker.idle.connect(self._idle)

    def import_file(self, file: Path) -> None:
        """Add a model file to the list and load it; an error is shown as any failure of the worker is."""
        self._form.state.say(News(f"importing {file.name}"))
        self._worker.run(importing(file), lambda name: self._form.model.want(name=name))

    def fail(self, sentence: str) -> None:
        """Show an error in the state line and as a notification of napari."""
        self._form.state.update_situation(news=News(sentence), working="")
        self._form.model.show_failed()
        show_error(sentence)

    def _failed(self, sentence: str) -> None:
        """The worker has failed: where it had a model and has none, its process is started again."""
        worker = self._worker
        self._form.state.update_situation(
            ended=bool(worker.facts) and not self._form.model.loading and not worker.has_model
        )
        self.fail(sentence)

    def _load(self, wanted: Wanted) -> None:
        model = (wanted.name, wanted.device, wanted.closer_look)
        self._worker.load(partial(open_prediction_service, *model, **stored_room()))
        remember("model", **asdict(wanted))

    def _set_room(self, memory: int, disk: int) -> None:
        """Load the model again: the caches of embeddings are made with it."""
        remember("embeddings", memory=memory, disk=disk)
        self._form.model.want()

    def _started(self, what: str) -> None:
        self._form.state.update_situation(working=what, download=None)

    def _loaded(self, facts: Any) -> None:
        self._form.state.update_situation(download=None, ended=False)

    def _idle(self) -> None:
        self._form.model.show_failed()
        self._form.state.update_situation(working="", download=None, ended=False)
