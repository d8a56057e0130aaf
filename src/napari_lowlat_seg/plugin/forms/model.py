"""The form for the model: the list of models, the progress of a download, importing a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QFileDialog, QInputDialog, QProgressBar, QVBoxLayout, QWidget
from superqt import QElidingLabel

from napari_lowlat_seg.models.registry import WEIGHTS, known_names, known_path
from napari_lowlat_seg.plugin.forms.controls import Chooser, action_button, control, described, show
from napari_lowlat_seg.plugin.settings import SETTING
from napari_lowlat_seg.serving.process import call_in_process

FILES = "Models (*.pth *.pt *.safetensors);;All files (*)"
DEVICES = ("cpu", "cuda", "mps")
ANOTHER = "ssh://"
"""What is chosen to be asked for another machine."""


@dataclass(frozen=True)
class Wanted:
    """A model, its device ("auto" or a name) and the closer look ("auto" or "off"), as they are kept."""

    name: str = "default"
    device: str = "auto"
    closer_look: str = "auto"


class ModelForm(QWidget):
    """The list of models, and below it the progress of the one that is being loaded.

    `device`, `closer_look`, `found` and `import_button` are made here and laid out in the details. The caller
    loads what `wanted` emits and calls `show_progress`, `show_loaded` and `show_failed`.

    Parameters
    ----------
    wanted
        What is shown at the start.
    """

    wanted = Signal(object)
    """A `Wanted` to load; it is downloaded first where it is not on this machine."""

    file_chosen = Signal(Path)
    """A model file to import."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__()
        self.value = wanted
        self.loading = False
        self._running: Wanted | None = None
        self.models = Chooser(SETTING["name"].label, SETTING["name"].explanation)
        self.device = Chooser(SETTING["device"].label, SETTING["device"].explanation)
        self.closer_look = control(SETTING["closer_look"])
        # Not wrapped: the row of a form does not grow with its text.
        self.found = described(
            QElidingLabel("not loaded yet"), "Runs on", "The device and the precision found."
        )
        self.found.setTextFormat(Qt.TextFormat.PlainText)  # another machine may say it
        self.import_button = described(
            action_button("Import checkpoint…", self._ask_for_file),
            "Import checkpoint",
            "Add a model from a file: an official .pth, or a .safetensors that this program wrote.",
        )
        self._bar = described(QProgressBar(), "Model progress", "How much of the model is downloaded.")
        self._lay_out()
        self.models.changed.connect(lambda name: self.want(name=name))
        self.device.changed.connect(self._choose_device)
        self.closer_look.changed.connect(lambda look: self.want(closer_look=look))
        self._show()

    def want(self, **changes: str) -> None:
        """Emit `wanted` with what is shown, changed in these fields."""
        self.value = replace(self.value, **changes)
        self.loading = True
        self.found.setText("loading…")
        self._show()
        self.wanted.emit(self.value)

    def show_progress(self, done: int, total: int | None) -> None:
        """Show the bytes downloaded so far, of `total` if it is known."""
        self._bar.setRange(0, 100 if total else 0)
        self._bar.setValue(100 * done // total if total else 0)
        self._bar.setFormat(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else f"{done / 1e6:.0f} MB")

    def show_loaded(self, facts: Mapping[str, Any]) -> None:
        """Show that the model is loaded, and its device, precision and licence."""
        self.loading, self._running = False, self.value
        runs_on = f"{facts['device']}, {facts['precision']}"
        self.found.setText(runs_on)
        licence = f"Licence of the weights: {facts['licence']}"
        self.found.setToolTip(f"<p>{escape(runs_on)}</p><p>{escape(licence)}</p>")
        self._show()

    def show_failed(self) -> None:
        """Go back to the last model that was loaded, if any: this one failed or was cancelled."""
        if not self.loading:
            return
        self.loading = False
        self.found.setText("not loaded")
        if self._running is not None and self._running != self.value:
            self.value = self._running
            self.want()
        self._show()

    def _lay_out(self) -> None:
        kept = self._bar.sizePolicy()
        kept.setRetainSizeWhenHidden(True)  # what lies below must not move under the mouse
        self._bar.setSizePolicy(kept)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.models.native)
        column.addWidget(self._bar)

    def _show(self) -> None:
        names = dict.fromkeys([*known_names(), self.value.name])
        self.models.offer([(_described(name), name) for name in names], self.value.name)
        devices = dict.fromkeys(["auto", *DEVICES, self.value.device])
        shown = {"auto": "automatic", ANOTHER: "another machine…"}
        self.device.offer([(shown.get(name, name), name) for name in [*devices, ANOTHER]], self.value.device)
        show(self.closer_look, self.value.closer_look)
        self._bar.setRange(0, 0)
        self._bar.setVisible(self.loading)

    def _choose_device(self, device: str) -> None:
        """Load the model on a device; on another machine if the user names one."""
        if device == ANOTHER:
            device, named = QInputDialog.getText(
                self,
                "Another machine",
                "Its address, ssh://HOST or ssh://USER@HOST/cuda:1. You must be able to log in there by key, "
                "and it must have napari-lowlat-seg.",
                text=ANOTHER,
            )
            if not named or device in ("", ANOTHER):
                self._show()
                return
        self.want(device=device.strip())

    def _ask_for_file(self) -> None:
        file, _ = QFileDialog.getOpenFileName(self, "Import a checkpoint", str(Path.home()), FILES)
        if file:
            self.file_chosen.emit(Path(file))


def importing(file: Path) -> Callable[[], str]:
    """A function that imports a checkpoint and returns the model's name.

    It runs in a process of its own, because reading the file needs torch. Raises as `import_model` does.
    """
    return lambda: Path(call_in_process("napari_lowlat_seg.models.checkpoints:import_model", str(file))).stem


def _described(name: str) -> str:
    return name if name not in WEIGHTS or known_path(name).is_file() else f"{name}  (download)"
