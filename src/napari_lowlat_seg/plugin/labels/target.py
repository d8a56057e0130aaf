"""The labels that a session writes to: a layer of the user's, or a new one made for the first object.

New labels that do not fit into memory are made on disk, beside the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from psygnal import Signal

from napari_lowlat_seg.annotation.journal.encoding import AboutLabels
from napari_lowlat_seg.annotation.objects.facts import locked_labels
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.labels import LabelStore
from napari_lowlat_seg.plugin.keys import KeyTable
from napari_lowlat_seg.plugin.labels.disk_labels import (
    DiskLabels,
    beside,
    fit_memory,
    opening,
    restored,
    shown,
    store_of,
)
from napari_lowlat_seg.plugin.labels.memory_labels import LabelLayer, make_labels
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.worker import Worker, sentence, tried


class ChosenLabels:
    """Which Labels layer a session writes to.

    Parameters
    ----------
    viewer
        Gets the new layer.
    grid
        Where the image lies; labels must lie there too.
    session
        Writes, and takes note of the user's own brush strokes.
    worker
        Reads a large layer to find its highest label.
    keys, controller
        Keys bound to the layer, so that undo there is undo of the session; the controller that they call.
    fit
        Whether labels of a shape are kept in memory.
    """

    changed = Signal()
    """Another layer, or what it holds is known now."""

    status = Signal(str)
    """What a stroke could not do, in one sentence."""

    failed = Signal(str)
    """Labels on disk could not be opened, in one sentence."""

    def __init__(
        self,
        viewer: Any,
        grid: Grid,
        session: Session,
        worker: Worker,
        keys: KeyTable,
        controller: Any,
        fit: Callable[..., bool] = fit_memory,
    ) -> None:
        self._viewer, self._grid, self._session, self._worker = viewer, grid, session, worker
        self._keys, self._controller = keys, controller
        self._fit = fit
        self._store: LabelLayer | DiskLabels | None = None
        self._opening: object = None
        self._painted_over = False  # while the layer was looked through
        self._attached = False

    @property
    def layer(self) -> Any | None:
        """The layer; None before the first object of a new one."""
        return None if self._store is None else self._store.layer

    @property
    def store(self) -> LabelLayer | DiskLabels | None:
        """What writes to the layer."""
        return self._store

    @property
    def reading(self) -> bool:
        """Whether a file is still being opened, or the layer's highest label looked for."""
        return self._opening is not None or self._store is not self._session.labels

    def attach(self) -> None:
        """Take note of brush strokes."""
        self._attached = True
        if self._store is not None:
            self._store.attach(self._painted)
            self._keys.bind(self._store.layer, self._controller)

    def detach(self) -> None:
        """Leave the layer to its user."""
        self._attached = False
        if self._store is not None:
            self._keys.unbind(self._store.layer)
            self._store.detach()

    def use(self, layer: Any | None) -> None:
        """Write to `layer` from now on; None makes a new one when it is needed.

        Raises
        ------
        ValueError
            If the layer does not lie on the image's voxels.
        """
        store = None if layer is None else store_of(layer, self._grid)
        self._opening = None
        self._exchange(store)
        self._session.use_labels(None)
        if store is not None:
            self._look_through(store)
        self.changed.emit()

    def show_restored(
        self, stores: Mapping[LabelStore, AboutLabels], current: LabelStore | None
    ) -> dict[LabelStore, LabelLayer | DiskLabels]:
        """Show labels of an earlier session in layers, by what writes to them; `current` ones are chosen.

        The session does not notice: it is restored together with them.
        """
        shown = {one: restored(self._viewer, self._grid, one, about) for one, about in stores.items()}
        self._opening = None
        self._exchange(None if current is None else shown[current])
        return shown

    def keep_at(self, path: Path) -> None:
        """Write to the OME-Zarr at a path from now on; it is made, or gone on with, in the background."""
        ticket = self._opening = object()
        work = opening(self._grid, path)
        self._worker.run(lambda: tried(work), lambda found: self._opened(ticket, found))

    def ensure(self) -> bool:
        """Make a new layer if none is chosen; False if that takes a while, and `changed` comes later.

        Raises
        ------
        ValueError
            If memory has no room for one, and the image has no file that labels could lie beside.
        """
        if self.reading:
            return False
        if self._store is None and not self._fit(self._grid.shape):
            place = beside(self._grid.layer)
            if place is None:
                raise ValueError(
                    f"labels of shape {self._grid.shape} are kept on disk, and the image has no file that "
                    "they could lie beside; choose “new on disk…” in the list of labels"
                )
            self.keep_at(place)
        elif self._store is None:
            self._exchange(make_labels(self._viewer, self._grid))
            self._session.use_labels(self._store)
            self.changed.emit()
        return not self.reading

    def _opened(self, ticket: object, found: Any) -> None:
        if ticket is not self._opening:
            return  # other labels were chosen meanwhile
        self._opening = None
        if isinstance(found, Exception):
            self.failed.emit(sentence(found))
            return
        highest = found.highest()
        self._exchange(shown(self._viewer, self._grid, found))
        self._session.use_labels(self._store, highest)
        self.changed.emit()

    def _exchange(self, store: LabelLayer | DiskLabels | None) -> None:
        attached = self._attached
        self.detach()
        self._store = store
        if attached:
            self.attach()

    def _look_through(self, store: LabelLayer | DiskLabels) -> None:
        self._painted_over = False
        self._worker.run(store.look_through, lambda highest: self._read(store, highest))

    def _read(self, store: LabelLayer | DiskLabels, highest: int) -> None:
        if store is not self._store:
            return
        if self._painted_over:  # what was found may be old
            self._look_through(store)
            return
        self._session.use_labels(store, highest)
        self.changed.emit()

    def _painted(self, edits: Any) -> None:
        if self.reading:  # the session does not write there yet; napari's own undo has the stroke
            self._painted_over = True
            return
        if locked_labels(self._session.facts):
            # What locked objects lose is given back, once napari has written all of the stroke.
            self._worker.call(self._record, edits)
        else:
            self._record(edits)

    def _record(self, edits: Any) -> None:
        if not self._session.record_stroke(edits):
            self.status.emit("Locked objects keep their voxels: unlock them in the table of objects first.")
        self.changed.emit()
