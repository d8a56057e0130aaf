"""The row that offers to go on with an earlier session, and the buttons that save and open sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QFileDialog, QFrame, QGridLayout, QLabel, QStackedLayout, QWidget

from napari_lowlat_seg.plugin.controller.view_state import FilesState
from napari_lowlat_seg.plugin.forms.controls import action_button, described
from napari_lowlat_seg.plugin.notices import plain

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
        described(self, f"Offer: {text}" if text else "Offer", plain(text))
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
        self._pages = QStackedLayout()  # as high as the highest of its pages
        self._said: str | None = None
        self.dismissed = described(
            action_button("Got it", self.hide), "Got it", "No more hints; Preferences shows them again."
        )
        column = QGridLayout(self)
        column.addLayout(self._pages, 0, 0, 1, 2)
        column.addWidget(self.dismissed, 1, 1)
        self.setVisible(shown)

    def keep_room(self, texts: Iterable[str]) -> None:
        """Keep room for any of these, so that the controls below stay where they are whichever it says."""
        while (page := self._pages.currentWidget()) is not None:
            self._pages.removeWidget(page)
            page.deleteLater()
        self._said = None
        for text in dict.fromkeys(texts):
            self._page(text)

    def show_hint(self, text: str) -> None:
        """Say this."""
        if text == self._said:
            return  # asked at every click; naming a control for screen readers takes milliseconds
        self._said = text
        pages = (self._pages.widget(index) for index in range(self._pages.count()))
        found = next((page for page in pages if isinstance(page, QLabel) and page.text() == text), None)
        self._pages.setCurrentWidget(found or self._page(text))
        described(self, f"Hint: {text}", text)

    def _page(self, text: str) -> QLabel:
        page = QLabel(text)
        page.setWordWrap(True)
        page.setAlignment(Qt.AlignmentFlag.AlignTop)
        policy = page.sizePolicy()
        policy.setRetainSizeWhenHidden(True)  # else pages that are not shown take no room
        page.setSizePolicy(policy)
        self._pages.addWidget(page)
        return page


@dataclass(frozen=True)
class _Asked:
    """A button for a file: its name and explanation, its dialog, and the controller's method for the file."""

    name: str
    explanation: str
    title: str
    kinds: str
    method: str
    proposed: str = ""


FILES = {
    "save": _Asked(
        "Save session",
        "One file with prompts, masks, labels and undo steps.",
        "Save session",
        SESSIONS,
        "files.save",
        "session.lowlat",
    ),
    "open": _Asked(
        "Open session",
        "Go on with a session that was saved, on the same image under any name.",
        "Open session",
        SESSIONS,
        "files.open",
    ),
    "save_prompts": _Asked(
        "Save prompts",
        "A file of all prompts, for `lowlat-seg segment --prompts` and for other programs.",
        "Save prompts",
        PROMPTS,
        "objects.save",
        "prompts.json",
    ),
    "open_prompts": _Asked(
        "Open prompts",
        "Each object of the file is predicted again and accepted.",
        "Open prompts",
        PROMPTS,
        "objects.open",
    ),
    "autosave": _Asked(
        "Autosave labels",
        "Write the labels to a file of yours after each accepted object; press again to end it.",
        "Autosave labels to",
        LABELS,
        "files.autosave.to",
        "labels.tif",
    ),
    "measure": _Asked(
        "Measure",
        "A table of all objects: volume, surface, place, intensity.",
        "Measure all objects",
        TABLES,
        "objects.measure",
        "objects.csv",
    ),
}
"""The buttons, two in a row."""


class SessionForm(QWidget):
    """Buttons for the files of a session; each opens a dialog for a file.

    Attributes
    ----------
    buttons
        By their names in `FILES`.
    """

    chosen = Signal(str, object)
    """A method of the controller and the file for it; None ends the autosave."""

    def __init__(self) -> None:
        super().__init__()
        self.buttons = {
            name: described(
                action_button(f"{asked.name}…", partial(self._ask, name)), asked.name, asked.explanation
            )
            for name, asked in FILES.items()
        }
        self._status = described(QLabel(), "Autosave", "Where the labels are saved, and when they were.")
        self._status.setWordWrap(True)
        self._status.setTextFormat(Qt.TextFormat.PlainText)  # a file's name may be anything
        self._saving = False
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        for place, button in enumerate(self.buttons.values()):
            grid.addWidget(button, *divmod(place, 2))
        grid.addWidget(self._status, 3, 0, 1, 2)
        self._status.hide()

    def show_status(self, state: FilesState) -> None:
        """Show the state of the autosave."""
        self._saving = bool(state.autosave)
        self.buttons["autosave"].setText("End autosave" if self._saving else "Autosave labels…")
        self._status.setText(state.autosave)
        self._status.setVisible(self._saving)

    def _ask(self, name: str) -> None:
        asked = FILES[name]
        give = partial(self.chosen.emit, asked.method)
        if name == "autosave" and self._saving:
            give(None)
        else:
            ask_for_file(self, asked.title, asked.kinds, give, asked.proposed)


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
    offer.go_on.clicked.connect(lambda: in_front().files.go_on())
    offer.start_anew.clicked.connect(lambda: in_front().files.start_anew())
    form.chosen.connect(lambda method, path: attempt(lambda: attrgetter(method)(in_front())(path)))
