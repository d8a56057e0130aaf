"""The files of one image's session: journal, the offer to go on, saving, opening, labels saved by themselves.

All that takes time, reading, writing, comparing pixels, is done on threads of their own.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_lowlat_seg.annotation.history import Event
from napari_lowlat_seg.annotation.journal import (
    FoundSession,
    Journal,
    JournalInfo,
    journal_folder,
    list_journals,
    prune_journals,
    read_session,
)
from napari_lowlat_seg.annotation.journal.encoding import AboutLabels
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.labels import ArrayLabels, LabelStore
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.files import check_labels_path, is_ome_zarr
from napari_lowlat_seg.plugin.controller.view_state import FilesState
from napari_lowlat_seg.plugin.labels.disk_labels import DiskLabels, beside, opening
from napari_lowlat_seg.plugin.labels.target import ChosenLabels
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.notices import show_warning
from napari_lowlat_seg.plugin.saving import save_labels
from napari_lowlat_seg.plugin.worker import Worker, sentence, tried

SUFFIX = ".lowlat"

PLACE = ("scale", "translate", "rotate", "shear", "affine", "axis_labels", "units")
PAUSE = 0.02
RETRY_MS = 15_000
"""Milliseconds until labels that could not be saved are saved again, if no change comes before."""

_own: set[Path] = set()  # journals that this process writes


@dataclass
class _Read:
    """A session that was read, and what was not found.

    `labels` are those to go on with where the session had none at last, `highest` is the highest in them.
    """

    found: FoundSession
    lost: list[str]
    labels: LabelStore | None = None
    highest: int = 0


class SessionFiles:
    """Keeps a journal of a session, offers to go on with an earlier one of the same pixels, saves and opens.

    Parameters
    ----------
    grid, session, labels, worker
        Those of the controller.
    """

    changed = Signal()
    """`state` is another one."""

    status = Signal(str)
    """What is going on, in a few words."""

    restored = Signal()
    """The session is another one: all of it is to be shown anew."""

    def __init__(self, grid: Grid, session: Session, labels: ChosenLabels, worker: Worker) -> None:
        self._grid, self._session, self._labels, self._worker = grid, session, labels, worker
        self._volume = session.volume  # its identity is computed once
        self._journal: Journal | None = None
        self._offer: JournalInfo | None = None
        self._text = ""
        self.autosave = Autosave(grid, labels, worker)
        self.autosave.changed.connect(self._emit_changed)

    def begin(self) -> None:
        """Begin a journal, and look for earlier sessions of these pixels; once."""
        if self._journal is None:
            self._keep()
            self._worker.run(lambda: _search(self._volume), self._searched)

    def close(self) -> None:
        """End the journal and the autosave; a thread of its own waits until all is safe on disk."""
        journal, self._journal = self._journal, None
        if journal is not None:
            self._leave(journal)
        self.autosave.to(None)

    @property
    def state(self) -> FilesState:
        """What the widget shows of files."""
        return FilesState(self._text if self._offer is not None else "", self.autosave.status)

    # What the user does

    def go_on(self) -> None:
        """Go on with the session that is offered, in place of what was done since."""
        if self._offer is not None:
            path, self._offer = self._offer.path, None
            self.status.emit("opening the earlier session")
            self.changed.emit()
            self._read(path, trusted=True)

    def start_anew(self) -> None:
        """Take the offer away; the earlier session stays in the list of `lowlat-seg sessions list`."""
        self._offer = None
        self.status.emit("a new session; the earlier one is kept")
        self.changed.emit()

    def save(self, path: Path) -> None:
        """Save the session as one file, with all that is needed to go on."""
        journal = self._journal
        if journal is None:
            return
        path = path if path.suffix else path.with_suffix(SUFFIX)
        self.status.emit(f"saving the session as {path.name}")

        def saved(failed: Exception | None) -> None:
            why = "" if failed is None else f"the session is not saved as {path.name}: {cause(failed)}"
            self._say(why or f"session saved as {path.name}", failed)

        self._worker.run(lambda: tried(partial(journal.save, path)), saved)

    def open(self, path: Path) -> None:
        """Go on with a session that was saved, or with a journal, in place of this one."""
        self.status.emit(f"opening {path.name}")
        self._read(path, trusted=False)

    # The journal

    def _keep(self, before: Any = None) -> None:
        journal = Journal(
            self._session,
            journal_folder(),
            report=lambda words: self._worker.call(self._say, words, True),
            before=before,
            image=self._grid.layer.source.path,
        )
        _own.add(journal.path)
        self._journal = journal

        def observe(event: Event) -> None:
            journal(event)
            self.autosave.note(event)

        self._session.observer = observe

    def _leave(self, journal: Journal) -> None:
        journal.leave()
        self._session.observer = None

        def close() -> None:
            journal.close()
            _own.discard(journal.path)  # from now on it may be offered

        # No daemon: when napari ends, Python waits for it.
        threading.Thread(target=close, name="journal's end").start()

    def _searched(self, found: tuple[list[JournalInfo], str]) -> None:
        journals, text = found
        others = [info for info in journals if info.path not in _own]
        if any(info.in_use for info in others):
            self._say("another window annotates this image; what is done here is a session of its own", True)
        free = [info for info in others if not info.in_use]
        if free:
            self._offer, self._text = free[0], text
            self.changed.emit()

    # Another session in place of this one

    def _read(self, path: Path, *, trusted: bool) -> None:
        """Read a session on a thread. A file of a stranger may name no place that labels are written to."""
        lost: dict[LabelStore, str] = {}

        def work() -> _Read:
            found = read_session(path, self._volume, lambda about: self._find(about, trusted, lost))
            stores = found.mirror.stores
            for store in lost:
                stores[store] = replace(stores[store], place=None, content=b"")
            found.mirror.write_labels()
            read = _Read(found, list(lost.values()))
            if found.mirror.store is None and stores:  # their layer was closed, often with the image
                read.labels = next(reversed(stores))
                read.highest = read.labels.highest()
            return read

        self._worker.run(lambda: tried(work), self._restore)

    def _find(self, about: AboutLabels, trusted: bool, lost: dict[LabelStore, str]) -> LabelStore | None:
        """Labels on disk, where they were or beside the image; None for new ones in memory."""
        if about.place is None:
            return None
        near = beside(self._grid.layer)
        places = [Path(about.place)] if trusted else []
        places += [near] if near is not None and near.name == Path(about.place).name else []
        for place in places:
            if place.is_dir():
                return opening(self._grid, place)()
        if about.content is None:
            store = ArrayLabels(np.zeros(self._grid.shape, about.dtype))
            lost[store] = f"{about.place} was not found: only what this session drew is in the new labels"
            return store
        return None

    def _restore(self, read: _Read | Exception) -> None:
        if isinstance(read, Exception):
            self._say(sentence(read), True)
            return
        found, before = read.found, self._journal
        mirror = found.mirror
        shown = self._labels.show_restored(mirror.stores, mirror.store or read.labels)
        mirror.exchange(shown)
        if before is not None:
            self._leave(before)
        mirror.put_into(self._session)
        self._offer = None
        self._keep(mirror)
        if read.labels is not None:
            self._session.use_labels(shown[read.labels], read.highest)
        self._session.write_accepted()
        journal = self._journal
        assert journal is not None

        def replaced() -> None:
            if journal.flush():
                found.replaced()

        self._worker.run(replaced, lambda _: None)
        self.restored.emit()
        self.changed.emit()
        warnings = [one for one in (found.warning, *read.lost) if one]
        self._say("; ".join(warnings) or f"going on: {_contents(found)}", bool(warnings))

    def _say(self, words: str, warn: object = False) -> None:
        if warn:
            show_warning(words)
        self.status.emit(words)

    def _emit_changed(self) -> None:
        self.changed.emit()


class Autosave:
    """Saves the labels of a session after every accept, brush stroke, undo and redo that changes them.

    A file is complete or as it was before. What comes while one is written is saved together afterwards. What
    cannot be saved is said once, and tried again. A file that another program, or another window, has written
    since it was saved here is left alone.

    Parameters
    ----------
    grid, labels, worker
        Those of the controller.

    Attributes
    ----------
    status
        Where the labels are saved, and when they were the last time; empty without a file.
    """

    changed = Signal()
    """`status` is another one."""

    def __init__(self, grid: Grid, labels: ChosenLabels, worker: Worker) -> None:
        self._grid, self._labels, self._worker = grid, labels, worker
        self.status = ""
        self._path: Path | None = None
        self._version = 0  # counts changes of the labels
        self._writing = False  # the session is about to change them
        self._running = self._again = False
        self._failing = False
        self._left: tuple[int, ...] | None = None  # the file as it was saved last

    def to(self, path: Path | None) -> None:
        """Save to this file from now on; None ends it.

        Raises
        ------
        ValueError, OSError
            As `check_labels_path`, for a folder such as an OME-Zarr, and for labels that lie on disk already.
        """
        if path is not None:
            if is_ome_zarr(path):
                raise ValueError(f"{path.name} is a folder; choose one file, such as .tif, .nii.gz or .nrrd")
            if isinstance(self._labels.store, DiskLabels):
                raise ValueError("these labels lie on disk and are saved as they are written")
            image = self._grid.layer.source.path
            check_labels_path(path, [("image", Path(image))] if image else [])
        self._path, self._failing, self._left = path, False, None
        self._show("" if path is None else f"Autosave to {path.name}")
        self._save()

    def note(self, event: Event) -> None:
        """Hear of a change of the session."""
        if event.kind == "writing":
            self._writing = True
            return
        stroke = event.step is not None and bool(event.step.edits)
        if self._writing or stroke:
            self._writing = False
            self._version += 1
            self._save()

    def _save(self) -> None:
        layer, path = self._labels.layer, self._path
        if layer is None or path is None:
            return
        if self._running:
            self._again = True
            return
        self._running = True
        place = {name: getattr(layer, name) for name in PLACE}
        threading.Thread(
            target=lambda: self._worker.call(self._saved, path, self._work(layer, path, place)),
            name="autosave",
        ).start()

    def _work(self, layer: Any, path: Path, place: dict[str, Any]) -> str:
        """On the thread: the labels between two changes, written; an error as a sentence."""
        try:
            if self._left is not None and path.exists() and file_state(path) != self._left:
                return (
                    "another program or window has written it since; choose it again to replace it, or "
                    "another file"
                )
            save_labels(str(path), self._snapshot(layer), place)
            self._left = file_state(path)
        except Exception as error:
            return cause(error)
        return ""

    def _snapshot(self, layer: Any) -> np.ndarray:
        """A copy that no change has fallen into."""
        while True:
            before, writing = self._version, self._writing
            copy = np.array(layer.data)
            if not (writing or self._writing) and before == self._version:
                return copy
            time.sleep(PAUSE)

    def _saved(self, path: Path, failed: str) -> None:
        self._running = False
        if path == self._path:
            now = time.strftime("%H:%M:%S")
            if failed and not self._failing:
                show_warning(f"the labels are not saved to {path.name}: {failed}; what was annotated is kept")
            self._failing = bool(failed)
            self._show(f"Not saved: {failed}" if failed else f"Autosave to {path.name}: saved {now}")
            if failed:
                QTimer.singleShot(RETRY_MS, self._save_if_failing)
        if self._again:
            self._again = False
            self._save()

    def _save_if_failing(self) -> None:
        if self._failing:
            self._save()

    def _show(self, status: str) -> None:
        self.status = status
        self.changed.emit()


def file_state(path: Path) -> tuple[int, ...]:
    """What tells whether a file was written since."""
    facts = path.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def cause(error: Exception) -> str:
    """Why something could not be saved, without the number that a system gives its errors."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f" ({error.filename})" if error.filename else "")
    return sentence(error)


def _search(volume: Volume) -> tuple[list[JournalInfo], str]:
    """The journals of these pixels that can be opened, the newest first, and what is in the newest.

    Those that are too old or too many are deleted first.
    """
    try:
        folder = journal_folder()
        prune_journals(folder)
        journals = list_journals(folder, volume)
    except (OSError, ValueError):  # pixels that cannot be read are said where they are shown
        return [], ""

    def stand_in(about: AboutLabels) -> LabelStore:  # nothing is written to them
        return ArrayLabels(np.broadcast_to(np.zeros((), about.dtype), volume.shape))

    good, text = [], ""
    for info in journals:
        if not (info.in_use or text):
            found = tried(partial(read_session, info.path, volume, stand_in))
            if isinstance(found, Exception):
                continue  # it stays in the list of `lowlat-seg sessions list`
            day = time.strftime("%d %b %H:%M", time.localtime(info.changed))
            text = f"An earlier session of this image, of {day}: {_contents(found)}."
        good.append(info)
    return good, text


def _contents(found: FoundSession) -> str:
    mirror = found.mirror
    objects = sum(bool(record.written) for record in mirror.contents.records.values())
    steps = len(mirror.undo_stack.done)
    # Pieces of a split and labels that were there before have no record: they do not count.
    return f"{objects} accepted object{'s' * (objects != 1)}, {steps} step{'s' * (steps != 1)} to undo"
