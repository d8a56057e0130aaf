"""Asking where labels on disk lie, or shall lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtWidgets import QFileDialog, QWidget

NEW, OPEN = "new on disk", "from disk"
"""A folder that is to be made, and one that is there."""

FOLDERS = (NEW, OPEN)

ON_DISK = [("new on disk…", NEW), ("from disk…", OPEN)]
"""What a list of labels offers."""

TITLES = {NEW: "Labels on disk: a new OME-Zarr", OPEN: "Labels on disk: an OME-Zarr made before"}

Chosen = Callable[[Path], object]


def ask_for_folder(parent: QWidget, kind: str, proposed: Path | None, chosen: Chosen) -> QFileDialog:
    """Opens a dialog for a folder and calls `chosen` with it; a name without `.zarr` gets `.ome.zarr`."""
    dialog = QFileDialog(parent, TITLES[kind], str((proposed or Path.home() / "_").parent))
    # Each system's own dialogs take a folder for a place to go to, not for a name.
    dialog.setOption(QFileDialog.Option.DontUseNativeDialog)
    if kind == NEW:
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setFileMode(QFileDialog.FileMode.AnyFile)
        dialog.selectFile(proposed.name if proposed is not None else "labels.ome.zarr")
    else:
        dialog.setFileMode(QFileDialog.FileMode.Directory)
        dialog.setOption(QFileDialog.Option.ShowDirsOnly)
    dialog.fileSelected.connect(lambda name: name and chosen(_named(Path(name))))
    dialog.open()
    return dialog


def _named(path: Path) -> Path:
    return path if path.suffix == ".zarr" or path.is_dir() else path.with_name(f"{path.name}.ome.zarr")
