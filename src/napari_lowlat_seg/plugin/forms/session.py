"""The row that offers to go on with an earlier session, and the buttons that save and open sessions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QFileDialog, QFrame, QGridLayout, QLabel, QWidget

from napari_lowlat_seg.plugin.controller.view_state import FilesState
from napari_lowlat_seg.plugin.forms.controls import action_button, described

SESSIONS = "Sessions (*.lowlat);;All files (*)"
PROMPTS = "Prompts (*.json);;All files (*)"
TABLES = "Tables (*.csv)"
LABELS = "Labels (*.tif *.nii.gz *.nrrd *.mha *.mrc *.npy);;All files (*)"


class OfferRow(QFrame):
    """Offers to go on with an earlier session; not there otherwise. It waits and is in nobody's way.

    Attributes
    ----------
    go_on, start_anew
        Its buttons.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self._text = QLabel()
        self._text.setWordWrap(True)
        self._text.setTextFormat(Qt.TextFormat.PlainText)
        self.go_on = described(
            action_button("Go on"), "Go on", "Restore prompts, masks, labels and undo steps of that session."
        )
        self.start_anew = described(
            action_button("Start anew"), "Start anew", "Leave that session as it is; it is kept."
        )
        grid = QGridLayout(self)
        grid.addWidget(self._text, 0, 0, 1, 2)
        grid.addWidget(self.go_on, 1, 0)
        grid.addWidget(self.start_anew, 1, 1)
        self.hide()

    def show_offer(self, text: str) -> None:
        """Show what is offered; nothing hides the row."""
        self._text.setText(text)
        described(self, f"Offer: {text}" if text else "Offer", text)
        self.setVisible(bool(text))


class HintRow(QFrame):
    """What somebody who has never used the widget may do next; "Got it" takes it away for good.

    Attributes
    ----------
    dismissed
        Its button.
    """

    def __init__(self, shown: bool) -> None:
        super().__init__()
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self._text = QLabel()
        self._text.setWordWrap(True)
        self.dismissed = described(
            action_button("Got it", self.hide), "Got it", "No more hints; Preferences shows them again."
        )
        column = QGridLayout(self)
        column.addWidget(self._text, 0, 0, 1, 2)
        column.addWidget(self.dismissed, 1, 1)
        # Three lines, so that the controls below stay where they are whatever it says.
        self._text.setMinimumHeight(3 * self._text.fontMetrics().lineSpacing())
        self._text.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.setVisible(shown)

    def show_hint(self, text: str) -> None:
        """Say this."""
        self._text.setText(text)
        described(self, f"Hint: {text}", text)


class SessionForm(QWidget):
    """Buttons for the files of a session; each opens a dialog for a file."""

    saved = Signal(Path)
    """Save the session as this file."""

    opened = Signal(Path)
    """Go on with the session in this file."""

    prompts_saved = Signal(Path)
    """Save the prompts of all objects as this file."""

    prompts_opened = Signal(Path)
    """Give the prompts of this file again."""

    measured = Signal(Path)
    """Measure all objects into this table."""

    autosaved = Signal(object)
    """Save the labels to this file after each change; None: no longer."""

    def __init__(self) -> None:
        super().__init__()
        self.save = described(
            action_button("Save session…", self._ask_save),
            "Save session",
            "One file with prompts, masks, labels and undo steps.",
        )
        self.open = described(
            action_button("Open session…", self._ask_open),
            "Open session",
            "Go on with a session that was saved, on the same image under any name.",
        )
        self.autosave = described(
            action_button("Autosave labels…", self._ask_autosave),
            "Autosave labels",
            "Write the labels to a file of yours after each accepted object; press again to end it.",
        )
        self.save_prompts = described(
            action_button("Save prompts…", self._ask_save_prompts),
            "Save prompts",
            "A file of all prompts, for `lowlat-seg segment --prompts` and for other programs.",
        )
        self.open_prompts = described(
            action_button("Open prompts…", self._ask_open_prompts),
            "Open prompts",
            "Each object of the file is predicted again and accepted.",
        )
        self.measure = described(
            action_button("Measure…", self._ask_measure),
            "Measure",
            "A table of all objects: volume, surface, place, intensity.",
        )
        self._status = described(QLabel(), "Autosave", "Where the labels are saved, and when they were.")
        self._status.setWordWrap(True)
        self._saving = False
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(self.save, 0, 0)
        grid.addWidget(self.open, 0, 1)
        grid.addWidget(self.save_prompts, 1, 0)
        grid.addWidget(self.open_prompts, 1, 1)
        grid.addWidget(self.autosave, 2, 0)
        grid.addWidget(self.measure, 2, 1)
        grid.addWidget(self._status, 3, 0, 1, 2)
        self._status.hide()

    def show_status(self, state: FilesState) -> None:
        """Show the state of the autosave."""
        self._saving = bool(state.autosave)
        self.autosave.setText("End autosave" if self._saving else "Autosave labels…")
        self._status.setText(state.autosave)
        self._status.setVisible(self._saving)

    def _ask_save(self) -> None:
        ask_for_file(self, "Save session", SESSIONS, self.saved.emit, "session.lowlat")

    def _ask_open(self) -> None:
        ask_for_file(self, "Open session", SESSIONS, self.opened.emit)

    def _ask_save_prompts(self) -> None:
        ask_for_file(self, "Save prompts", PROMPTS, self.prompts_saved.emit, "prompts.json")

    def _ask_open_prompts(self) -> None:
        ask_for_file(self, "Open prompts", PROMPTS, self.prompts_opened.emit)

    def _ask_measure(self) -> None:
        ask_for_file(self, "Measure all objects", TABLES, self.measured.emit, "objects.csv")

    def _ask_autosave(self) -> None:
        if self._saving:
            self.autosaved.emit(None)
        else:
            ask_for_file(self, "Autosave labels to", LABELS, self.autosaved.emit, "labels.tif")


def ask_for_file(
    parent: QWidget, title: str, kinds: str, chosen: Callable[[Path], object], name: str = ""
) -> QFileDialog:
    """Open a dialog for one file, a new one if a name is proposed, and call `chosen` with it."""
    dialog = QFileDialog(parent, title, str(Path.home()), kinds)
    if name:
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.selectFile(name)
    else:
        dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
    dialog.fileSelected.connect(lambda path: path and chosen(Path(path)))
    dialog.open()
    return dialog


def connect_files(
    form: SessionForm,
    offer: OfferRow,
    in_front: Callable[[], Any],
    attempt: Callable[[Callable[[], object]], object],
) -> None:
    """Let the forms act on the files of the image in front.

    Parameters
    ----------
    form, offer
        Ask for files, and whether to go on with an earlier session.
    in_front
        Returns the controller of the image in front.
    attempt
        Called with what is to be done; says why it is refused.
    """
    for signal, slot in (
        (offer.go_on.clicked, lambda: in_front().files.go_on()),
        (offer.start_anew.clicked, lambda: in_front().files.start_anew()),
        (form.saved, lambda path: in_front().files.save(path)),
        (form.opened, lambda path: in_front().files.open(path)),
        (form.prompts_saved, lambda path: attempt(lambda: in_front().objects.save(path))),
        (form.prompts_opened, lambda path: attempt(lambda: in_front().objects.open(path))),
        (form.measured, lambda path: attempt(lambda: in_front().objects.measure(path))),
        (form.autosaved, lambda path: attempt(lambda: in_front().files.autosave.to(path))),
    ):
        signal.connect(slot)
