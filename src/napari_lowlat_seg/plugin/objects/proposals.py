"""*Find all*: objects of a plane, a range or the volume, proposed without a prompt until the user decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from napari.layers import Labels
from napari.utils.colormaps import DirectLabelColormap
from psygnal import Signal

from napari_lowlat_seg.annotation.objects.proposals import Proposal, linked_proposals, propose
from napari_lowlat_seg.annotation.propagation_run import stack_of
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.requests import FoundOnPlane
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.controller.current_plane import CurrentPlane
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.layers.napari_layers import Listener, add_quietly
from napari_lowlat_seg.plugin.layers.preview import edge_of
from napari_lowlat_seg.plugin.worker import Worker

PLANE, RANGE, VOLUME = "plane", "range", "volume"

OUTLINE, CHOSEN = 1, 2
"""The labels of the layer of proposals."""

COLOURS: dict[int | None, str] = {
    None: "transparent",
    0: "transparent",
    OUTLINE: "#56b4e9",
    CHOSEN: "#ffc20a",
}

LARGEST = 2**26
"""Pixels of a plane on which proposals are drawn, and of the largest one that is searched."""


class Search(Listener):
    """Searches planes on the worker's thread, and adds what was found to the session.

    Parameters
    ----------
    session, worker, current_plane
        Those of the controller.
    source
        From a plane to where its pixels come from.
    propagation_range
        Returns the first and the last plane of the range.
    """

    status = Signal(str)
    """What came of it."""

    proposed = Signal()
    """The session has proposals that it had not before."""

    changed = Signal()
    """`running` is another one."""

    def __init__(
        self,
        session: Session,
        worker: Worker,
        current_plane: CurrentPlane,
        source: Callable[[Plane], Any],
        propagation_range: Callable[[], tuple[int, int]],
    ) -> None:
        self._session, self._worker, self._current_plane = session, worker, current_plane
        self._source, self._range = source, propagation_range
        self._ticket: object = None
        self._planes: Sequence[Plane] = ()
        self._found: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def _slots(self) -> tuple[tuple[Any, Any], ...]:
        return (self._worker.found, self._take), (self._worker.find_ended, self._end)

    def detach(self) -> None:
        """Drop what is under way and listen no longer."""
        self._forget()
        super().detach()

    @property
    def running(self) -> bool:
        """Whether planes are being searched."""
        return self._ticket is not None

    def start(self, scope: str) -> None:
        """Search the "plane" in view, the "range" of planes or the whole "volume" along its axis.

        Raises
        ------
        ValueError
            In 3-D display, beside the image, and for planes that are too large.
        """
        plane = self._current_plane.plane
        if plane is None:
            raise ValueError("Find all needs a plane of the image in a 2-D view: press the 2D/3D button.")
        rows, cols = self._session.volume.sides(plane)
        if rows * cols > LARGEST:
            raise ValueError(f"Find all takes planes of up to {LARGEST} pixels, got {rows} x {cols}.")
        stack = stack_of(self._session.volume, plane)
        first, last = self._range() if scope == RANGE else (0, len(stack) - 1)
        self._planes = (plane,) if scope == PLANE else tuple(stack[first : last + 1])
        self._ticket, self._found = object(), {}
        self._worker.find(self._ticket, [self._source(one) for one in self._planes])
        self.changed.emit()

    def _take(self, ticket: object, place: int, found: FoundOnPlane) -> None:
        if ticket is not self._ticket:
            return
        if found.labels is not None and found.scores is not None:
            self._found[place] = found.labels, found.scores

    def _end(self, ticket: object, complete: bool) -> None:
        """Link what was found; what was searched before a stop counts too."""
        if ticket is not self._ticket:
            return
        planes, found, store = self._planes, dict(self._found), self._session.labels
        self._forget()
        self.changed.emit()
        if not found:
            self.status.emit("Finding objects was stopped: nothing was found.")
            return
        kept = [planes[place] for place in sorted(found)]
        results = [found[place] for place in sorted(found)]
        self._worker.run(lambda: linked_proposals(kept, results, store), self._propose)

    def _propose(self, proposals: list[Proposal]) -> None:
        propose(self._session, proposals)
        found = "1 object" if len(proposals) == 1 else f"{len(proposals)} objects"
        if proposals:
            self.status.emit(f"Found {found}: in the table, A accepts, X rejects, E corrects.")
        else:
            self.status.emit("Found no object that is not there already.")
        self.proposed.emit()

    def _forget(self) -> None:
        self._ticket, self._planes, self._found = None, (), {}


class ProposalLayer:
    """Outlines of all proposals on the plane in view; the ones that are chosen in the table are filled.

    Parameters
    ----------
    viewer, grid, session
        Those of the controller.
    """

    def __init__(self, viewer: Any, grid: Grid, session: Session) -> None:
        self._viewer, self._grid, self._session = viewer, grid, session
        self.layer: Any = None
        self.chosen: frozenset[int] = frozenset()

    def show(self, plane: Plane | None, numbers: Sequence[int]) -> None:
        """Draw the proposals with these numbers; without one, and in 3-D display, the layer is taken away."""
        masks = self._masks(plane, numbers)
        if plane is None or not numbers or self._viewer.dims.ndisplay == 3:
            self.remove()
            return
        rows, cols = self._grid.sides(plane)
        if self.layer is None and not masks:
            return
        pixels = np.zeros((rows, cols), np.uint8)
        width = max(1, round(max(rows, cols) / 400))
        for number, (box, mask) in masks.items():
            part = pixels[box.slices]
            part[mask if number in self.chosen else _outline(mask, width)] = (
                CHOSEN if number in self.chosen else OUTLINE
            )
        self._put(plane, pixels)

    def remove(self) -> None:
        """Take the layer out of the viewer."""
        if self.layer is not None and self.layer in self._viewer.layers:
            self.layer.locked = False
            self._viewer.layers.remove(self.layer)
        self.layer = None

    def _masks(
        self, plane: Plane | None, numbers: Sequence[int]
    ) -> Mapping[int, tuple[BoundingBox, np.ndarray]]:
        found: dict[int, tuple[BoundingBox, np.ndarray]] = {}
        if plane is None:
            return found
        for number in numbers:
            mask = self._session.contents.state(number, plane).soft_mask
            if mask is not None and not mask.box.is_empty:
                found[number] = mask.box, mask.above(0.5)
        return found

    def _put(self, plane: Plane, pixels: np.ndarray) -> None:
        shape, place = self._grid.slab(plane)
        if self.layer is None or self.layer not in self._viewer.layers or self.layer.data.shape != shape:
            self.remove()
            self.layer = Labels(
                pixels.reshape(shape),
                name=f"{self._grid.layer.name} [lowlat] proposals",
                colormap=DirectLabelColormap(color_dict=COLOURS),
                opacity=0.6,
                **place,
            )
            self.layer.locked = True
            add_quietly(self._viewer, self.layer)
            return
        for name, value in place.items():
            if not np.array_equal(np.asarray(getattr(self.layer, name)), value):
                setattr(self.layer, name, value)
        self.layer.data[...] = pixels.reshape(shape)
        self.layer.refresh()


def _outline(mask: np.ndarray, width: int) -> np.ndarray:
    """The edge of a mask that reaches to the sides of its array."""
    return edge_of(np.pad(mask, 1), width)[1:-1, 1:-1]
