"""The labels that a session writes to: a layer of the user's, or a new one made for the first object."""

from __future__ import annotations

from typing import Any

from psygnal import Signal

from napari_lowlat_seg.session import Session

from .grid import Grid
from .keys import KeyTable
from .label_layer import LabelLayer, make_labels
from .worker import Worker


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
        Looks for the highest label of a large layer.
    keys, verbs
        Bound to the layer, so that undo there is undo of the session.
    """

    changed = Signal()
    """Another layer, or what it holds is known now."""

    def __init__(
        self, viewer: Any, grid: Grid, session: Session, worker: Worker, keys: KeyTable, verbs: Any
    ) -> None:
        self._viewer, self._grid, self._session, self._worker = viewer, grid, session, worker
        self._keys, self._verbs = keys, verbs
        self._store: LabelLayer | None = None
        self._attached = False

    @property
    def layer(self) -> Any | None:
        """The layer; None before the first object of a new one."""
        return None if self._store is None else self._store.layer

    @property
    def reading(self) -> bool:
        """Whether the layer's highest label is still looked for."""
        return self._store is not self._session.labels

    def attach(self) -> None:
        """Take note of brush strokes."""
        self._attached = True
        if self._store is not None:
            self._store.attach(self._brushed)
            self._keys.bind(self._store.layer, self._verbs)

    def detach(self) -> None:
        """Leave the layer to its user."""
        self._attached = False
        if self._store is not None:
            self._keys.unbind(self._store.layer)
            self._store.detach()

    def use(self, layer: Any | None) -> None:
        """Write to `layer` from now on; None makes a new one when it is needed.

        Raises ValueError, in one sentence, if the layer does not lie on the image's voxels.
        """
        store = None if layer is None else LabelLayer(layer, self._grid)
        self._exchange(store)
        self._session.use_labels(None)
        if store is not None:
            self._worker.run(store.highest, lambda highest: self._read(store, highest))
        self.changed.emit()

    def ensure(self) -> None:
        """Make a new layer if none is chosen."""
        if self._store is None:
            self._exchange(make_labels(self._viewer, self._grid))
            self._session.use_labels(self._store)
            self.changed.emit()

    def _exchange(self, store: LabelLayer | None) -> None:
        attached = self._attached
        self.detach()
        self._store = store
        if attached:
            self.attach()

    def _read(self, store: LabelLayer, highest: int) -> None:
        if store is self._store:
            self._session.use_labels(store, highest)
            self.changed.emit()

    def _brushed(self, edits: Any) -> None:
        self._session.stroke(edits)
        self.changed.emit()
