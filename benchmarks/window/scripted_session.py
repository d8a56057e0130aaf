"""A simulated hand annotates the EM sample in a real window: `python -m benchmarks.window.scripted_session`.

The hand is human: it jitters, clicks twice, presses wrong keys and takes them back, wanders to other planes,
and presses Enter without waiting for the mask. With `--headless` it acts on the layers of a viewer that
nothing draws. What the script meant by each object (which clicks, on which plane, with which sign) is
compared with the prompts that the window kept; and the labels with what the model predicts for the same
prompts in a process of its own, written object after object.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.window.common import print_load, wait, wait_until
from napari_lowlat_seg.annotation.history import Step
from napari_lowlat_seg.annotation.objects.writing import volume_edits
from napari_lowlat_seg.annotation.plane_state import finished_mask
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import EMPTY_PATCH
from napari_lowlat_seg.core.labels import ArrayLabels
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import Request
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.io.samples import sample_path
from napari_lowlat_seg.serving.service import load_prediction_service

NEAR = 1.5
"""Pixels between where a click was meant and where it is: a canvas pixel is about a voxel."""


@dataclass
class Meant:
    """An object as the script means it: its clicks, (row, col, positive) by plane."""

    plane: int
    clicks: list[tuple[float, float, bool]] = field(default_factory=list)


class Person:
    """Annotates with mouse and keys; `done` counts what it did.

    Parameters
    ----------
    viewer, controller
        The window, and the image's controller.
    hand
        Sends the events.
    truth
        (planes, rows, cols) labels of neurons, to choose places in.
    seed
        Of everything random.
    """

    def __init__(self, viewer: Any, controller: Any, hand: Any, truth: np.ndarray, seed: int) -> None:
        self.viewer, self.controller, self.hand, self.truth = viewer, controller, hand, truth
        self.rng, self.done = np.random.default_rng(seed), Counter[str]()
        self.meant: list[Meant] = []

    def annotate(self) -> None:
        """One object: go there, click, blunder now and then, accept."""
        rng = self.rng
        plane = int(rng.integers(self.truth.shape[0]))
        neurons = np.unique(self.truth[plane])
        neuron = int(rng.choice(neurons[neurons > 0]))
        one = Meant(plane)
        self._go(plane)
        self._click(one, *self._inside(plane, neuron), positive=True)
        if rng.random() < 0.1:  # looks at a larger mask, and stays with the first
            for key in ("Tab", "Shift+Tab"):
                self._key(key)
            self.done["levels looked at"] += 1
        if rng.random() < 0.3:
            other = int(rng.choice(neurons[(neurons > 0) & (neurons != neuron)]))
            self._click(one, *self._inside(plane, other), positive=False)
        if rng.random() < 0.2:  # a slip, taken back
            self._click(Meant(plane), *self._inside(plane, neuron), positive=True)
            self._key("Ctrl+Z")
            self.done["undone clicks"] += 1
        if rng.random() < 0.15:  # wrong keys, taken back
            self._key("U")
            self._key("Ctrl+Z")
            self._key("T")
            self._key("T")
            self.done["wrong keys"] += 4
        if rng.random() < 0.1:  # accepted too early
            self._key("Enter")
            self._key("Ctrl+Z")
            self.done["accepts undone"] += 1
        if rng.random() < 0.3:  # looks around
            for key in rng.choice(["J", "K"], 3):
                self._key(str(key))
            self.done["planes wandered"] += 3
        if rng.random() < 0.3:
            wait(float(rng.random()) / 2)
        self._key("Enter")
        if rng.random() < 0.2:
            self._key("Enter")
            self.done["Enter twice"] += 1
        if rng.random() < 0.05:  # opens what is there when it is there, and leaves it as it was
            self.rest()
            self._go(plane)
            self._key("W")
            self._key("Escape")
            self.done["opened and left"] += 1
        self.meant.append(one)

    def rest(self) -> None:
        """Wait until all that was done has its answer and nothing waits."""
        session, actions = self.controller.session, self.controller.actions
        wait_until(lambda: not len(actions) and not session.accepting and session.answered, 400)

    def _inside(self, plane: int, neuron: int) -> tuple[float, float]:
        """A place well inside a neuron, with a hand's jitter."""
        depth = ndimage.distance_transform_edt(self.truth[plane] == neuron)
        places = np.argwhere(depth >= depth.max() / 2)
        row, col = places[self.rng.integers(len(places))] + self.rng.normal(0, 0.7, 2)
        rows, cols = depth.shape
        return float(np.clip(row, 1, rows - 2)), float(np.clip(col, 1, cols - 2))

    def _click(self, one: Meant, row: float, col: float, *, positive: bool) -> None:
        self.hand.click((row, col), key="" if positive else "Ctrl")
        one.clicks.append((row, col, positive))
        self.done["clicks"] += 1
        if self.rng.random() < 0.1:  # a trembling finger: twice, and one taken back
            self.hand.click((row, col), key="" if positive else "Ctrl")
            self._key("Ctrl+Z")
            self.done["double clicks"] += 1
        wait(float(self.rng.random()) / 10)

    def _key(self, key: str) -> None:
        self.hand.key(key)
        wait(0.01)

    def _go(self, plane: int) -> None:
        self.controller.grid.look_at(self.viewer.dims, Plane((plane, None, None)))
        wait(0.01)


def accepted(session: Session) -> list[Step]:
    """The steps that accepted an object, in order."""
    return [step for step in session.undo_stack.done if step.title.startswith("accepted object")]


def replayed(session: Session, shape: tuple[int, ...]) -> np.ndarray:
    """The labels that the prompts of each accepted object give, predicted again and written in order."""
    service = load_prediction_service("default", "cpu")
    labels = np.zeros(shape, np.uint16)
    store = ArrayLabels(labels)
    for step in accepted(session):
        number, masks = step.current[0], {}
        for plane, state in session.contents.states[number].items():
            if state.prompts:
                request = Request(1, number, plane, state.effective_prompts, state.previous)
                *_, (mask, _) = service.predict(request, session.source(plane))
                masks[plane] = finished_mask(state.with_prediction(mask), session.finish) or EMPTY_PATCH
        edits, _ = volume_edits(store, masks, session.contents.records[number].label, session.policy, {})
        store.write(edits)
    return labels


def compare(person: Person, session: Session) -> list[str]:
    """What differs between what was meant and what the window kept."""
    steps, wrong = accepted(session), []
    if len(steps) != len(person.meant):
        wrong.append(f"{len(person.meant)} objects were meant, {len(steps)} accepted")
    for number, (one, step) in enumerate(zip(person.meant, steps, strict=False), 1):
        states = session.contents.states[step.current[0]].items()
        kept = [
            (plane.position, *prompt.at, prompt.positive)
            for plane, state in states
            for prompt in state.prompts
            if isinstance(prompt, Click)
        ]
        meant = [(one.plane, *click) for click in one.clicks]
        same = len(kept) == len(meant) and all(
            (a[0], a[3]) == (b[0], b[3]) and np.hypot(a[1] - b[1], a[2] - b[2]) < NEAR
            for a, b in zip(kept, meant, strict=True)
        )
        if not same:
            wrong.append(f"object {number}: meant {meant}, kept {kept}")
    return wrong


class HeadlessHand:
    """Points and keys for a viewer without a window, where napari's canvas would hand them over."""

    def __init__(self, viewer: Any, controller: Any) -> None:
        self.viewer, self.controller = viewer, controller

    def click(self, point: tuple[float, float], key: str = "") -> None:
        """Add a point to the Points layer, as napari does when its canvas is clicked."""
        grid, prompts = self.controller.grid, self.controller.prompts
        data = grid.to_layer(grid.plane(self.viewer.dims), [point])[0]
        self.viewer.cursor.position = tuple(grid.layer.data_to_world(data))
        prompts.opposite = key == "Ctrl"
        prompts.points.add(data)
        prompts.opposite = False

    def key(self, text: str) -> None:
        """Press and release a key for the active layer."""
        from napari.utils.key_bindings import KeymapHandler

        handler = KeymapHandler()
        handler.keymap_providers = [self.viewer.layers.selection.active, self.viewer]
        handler.press_key(text)
        handler.release_key(text)


def in_window() -> tuple[Any, Any, Any, Callable[[], object]]:
    """The widget in a real window: the viewer, the controller, a hand, and what closes it."""
    import napari

    from napari_lowlat_seg.plugin.widget import LowlatWidget

    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    make_hand = importlib.import_module("hand").Hand  # mouse and keys on the real canvas, as in the tests
    viewer = napari.Viewer()
    viewer.window.resize(900, 700)
    viewer.open_sample("napari-lowlat-seg", "em")
    widget = LowlatWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Segment by clicking")
    wait_until(lambda: widget.controller is not None and widget.sentence == "ready")

    def close() -> None:
        widget.close()
        viewer.close()

    return viewer, widget.controller, make_hand(viewer, widget.controller.grid), close


def headless() -> tuple[Any, Any, Any, Callable[[], object]]:
    """The same without a window and without the widget: a controller and its model's process."""
    from napari.components import ViewerModel
    from qtpy.QtWidgets import QApplication

    from napari_lowlat_seg.plugin.contributions import open_em_sample
    from napari_lowlat_seg.plugin.controller.controller import AnnotationController
    from napari_lowlat_seg.plugin.keys import KeyTable
    from napari_lowlat_seg.plugin.worker import Worker
    from napari_lowlat_seg.serving.process import open_prediction_service

    app = QApplication.instance() or QApplication([])
    viewer, worker = ViewerModel(), Worker()
    (stack, settings, _), *_ = open_em_sample()
    controller = AnnotationController(viewer, viewer.add_image(stack, **settings), worker, KeyTable())
    controller.attach()
    worker.load(lambda: open_prediction_service("default", "cpu"))
    wait_until(lambda: bool(controller.session.model) and controller.session.volume.window is not None)

    def close() -> None:
        controller.detach()
        controller.close()
        worker.close()
        app.processEvents()

    return viewer, controller, HeadlessHand(viewer, controller), close


def run(objects: int, seed: int, *, windowed: bool, seconds: float) -> int:
    """Annotate, compare, print; the number of differences."""
    viewer, controller, hand, close = in_window() if windowed else headless()
    truth = np.asarray(read_volume(sample_path("em_fly_medulla_labels.tif")).data)
    person = Person(viewer, controller, hand, truth, seed)
    begun = time.perf_counter()
    while len(person.meant) < objects and time.perf_counter() < begun + seconds:
        person.annotate()
        if len(person.meant) % 50 == 0:
            print(f"{len(person.meant)} objects in {time.perf_counter() - begun:.0f} s", flush=True)
    session = controller.session
    person.rest()
    taken = time.perf_counter() - begun
    print(
        f"{len(person.meant)} objects, {len(session.undo_stack.done)} steps, all answered after {taken:.0f} s"
    )
    print(", ".join(f"{count} {what}" for what, count in person.done.items()))
    wrong = compare(person, session)
    labels = np.asarray(controller.labels.layer.data)
    expected = replayed(session, labels.shape)
    differ = int(np.count_nonzero(labels != expected))
    print(
        f"{len(wrong)} objects differ from what was meant; {differ} of {labels.size} voxels from the replay"
    )
    print(*wrong[:10], sep="\n")
    close()
    return len(wrong) + differ


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="for the hand, at most")
    parser.add_argument("--headless", action="store_true", help="without a window")
    given = parser.parse_args()
    print_load("at the start")
    differing = run(given.objects, given.seed, windowed=not given.headless, seconds=given.seconds)
    print_load("at the end")
    raise SystemExit(differing > 0)


if __name__ == "__main__":
    main()
