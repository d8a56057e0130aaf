"""The labels written to a file of the user's choice after each change, on a thread of its own."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from psygnal import Signal

from napari_lowlat_seg.annotation.history import Event
from napari_lowlat_seg.io.files import check_labels_path, is_ome_zarr
from napari_lowlat_seg.plugin.labels.disk_labels import DiskLabels
from napari_lowlat_seg.plugin.labels.target import ChosenLabels
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.saving import save_labels
from napari_lowlat_seg.plugin.worker import Worker, sentence

PLACE = ("scale", "translate", "rotate", "shear", "affine", "axis_labels", "units")
PAUSE = 0.02


class Autosave:
    """Saves the labels of a session after every accept, brush stroke, undo and redo that changes them.

    A file is complete or as it was before. What comes while one is written is saved together afterwards.

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
        self._path = path
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
            save_labels(str(path), self._snapshot(layer), place)
        except Exception as error:
            return sentence(error)
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
            self._show(f"Not saved: {failed}" if failed else f"Autosave to {path.name}: saved {now}")
        if self._again:
            self._again = False
            self._save()

    def _show(self, status: str) -> None:
        self.status = status
        self.changed.emit()
