"""Files of the objects of one image: their prompts, saved and given again, and a table of measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from psygnal import Signal

from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.batch.measure import measure, write_measurements
from napari_lowlat_seg.core.prompts import Mask, Prompt
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.placed import Held, geometry_of
from napari_lowlat_seg.io.prompt_files import ObjectPrompts, load_prompts, save_prompts
from napari_lowlat_seg.plugin.labels.target import ChosenLabels
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.notices import show_warning
from napari_lowlat_seg.plugin.saving import layer_geometry
from napari_lowlat_seg.plugin.worker import Worker, sentence, tried


class ObjectFiles:
    """Saves the prompts of all objects, gives those of a file again one object after the other, and measures.

    Parameters
    ----------
    grid, session, labels, worker
        Those of the controller.
    """

    status = Signal(str)
    """What is going on, in a few words."""

    given = Signal(object)
    """The current object has the prompts of a file, on this plane among others; it is to be accepted."""

    def __init__(self, grid: Grid, session: Session, labels: ChosenLabels, worker: Worker) -> None:
        self._grid, self._session, self._labels, self._worker = grid, session, labels, worker
        self._waiting: list[ObjectPrompts] = []

    def save(self, path: Path) -> None:
        """Write the prompts of all objects as .json, in voxels and in the world.

        Raises ValueError if there are none.
        """
        path = path if path.suffix else path.with_suffix(".json")
        objects = session_prompts(self._session)
        if not objects:
            raise ValueError("there are no prompts to save; click on an object first")
        volume = self._image()
        self._run(lambda: save_prompts(path, volume, objects), f"prompts saved as {path.name}")

    def open(self, path: Path) -> None:
        """Give the prompts of a file again: each object is predicted, accepted, and the next one begins.

        Raises
        ------
        ValueError, OSError
            As `load_prompts`; while the current object has prompts; and for masks, which are no layers here.
        """
        if self._session.prompted():
            raise ValueError("accept or clear the current object first, then open the file of prompts")
        objects = [one for one in load_prompts(path, self._image()) if one.prompts]
        if any(isinstance(p, Mask) for one in objects for some in one.prompts.values() for p in some):
            raise ValueError(
                f"{path.name} has masks among its prompts; `lowlat-seg segment --prompts` takes them"
            )
        if not objects:
            raise ValueError(f"{path.name} holds no prompt")
        if not self._labels.ensure():
            raise ValueError("the labels are still being opened; try again in a moment")
        self._waiting = objects
        self.go_on()

    def go_on(self) -> None:
        """The next object of the file, after the one before was accepted; nothing without one."""
        if not self._waiting:
            return
        one = self._waiting.pop(0)
        if one.label > self._session.highest:  # a number that is taken stays with its object
            self._session.choose_label(one.label)
        for plane, prompts in one.prompts.items():
            self._session.set_prompts(plane, prompts)
        self.given.emit(next(iter(one.prompts)))

    def drop(self) -> None:
        """Forget the objects that have not been given yet."""
        self._waiting = []

    def measure(self, path: Path) -> None:
        """Write a table of all objects of the labels layer, with intensities of the image.

        Raises ValueError if there are no labels.
        """
        path = path if path.suffix else path.with_suffix(".csv")
        layer = self._labels.layer
        if layer is None:
            raise ValueError("there are no labels to measure; accept an object first")
        image = self._image()
        data = layer.data[0] if layer.multiscale else layer.data
        channels = self._grid.channel_axis
        labels = replace(
            image,
            data=data if channels is None else Held(data, {channels: 0}),
            channel_axis=None,
            channel=None,
            name=layer.name,
        )

        names, said = session_facts(self._session)

        def work() -> None:
            found = measure(labels, image, names=names)
            # As the table of objects has it: one of which nothing is said is done.
            said["state"] = {one.label: said["state"].get(one.label, "done") for one in found}
            write_measurements(path, found, geometry_of(labels), said)

        self.status.emit("measuring")
        self._run(work, f"measurements saved as {path.name}")

    def _image(self) -> Volume:
        """The image as it lies in the viewer's world."""
        grid = self._grid
        place = grid.place
        geometry = layer_geometry(place["axis_labels"], place["units"], grid.matrix)
        if grid.channel_axis is not None:
            geometry = geometry.squeeze([grid.channel_axis])
        return replace(self._session.volume, geometry=geometry, spacing=geometry.spacing)

    def _run(self, work: Callable[[], object], done: str) -> None:
        def said(failed: Any) -> None:
            words = done
            if isinstance(failed, Exception):
                show_warning(words := sentence(failed))
            self.status.emit(words)

        self._worker.run(lambda: tried(work), said)


def session_facts(session: Session) -> tuple[dict[int, str], dict[str, dict[int, str]]]:
    """The names of objects by label, and "class" and "state" of those that have one."""
    facts = session.facts.items()
    states = {n: "locked" if one.locked else "to review" if one.review else "done" for n, one in facts}
    names = {label: one.name for label, one in facts}
    return names, {"class": {label: one.category for label, one in facts}, "state": states}


def session_prompts(session: Session) -> list[ObjectPrompts]:
    """The prompts of all objects of a session by label; objects of one label become one."""
    found: dict[int, dict[Plane, tuple[Prompt, ...]]] = {}
    records = session.contents.records
    for number, states in session.contents.states.items():
        for plane, state in states.items():
            if state.prompts and number in records:
                of_label = found.setdefault(records[number].label, {})
                of_label[plane] = (*of_label.get(plane, ()), *state.prompts)
    return [ObjectPrompts(label, prompts) for label, prompts in sorted(found.items())]
