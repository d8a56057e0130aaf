"""Objects of a labelled volume propagated in the real window from one click each, corrected once, cancelled.

    xvfb-run -a -s "-screen 0 1600x1200x24" python -m benchmarks.window.propagating IMAGE LABELS OUT \\
        --object 1+2 [--object 3] [--planes A:B]

A hand clicks deep inside the object on the plane where it is largest, presses Shift+J, reads what the window
says meanwhile, goes to the least certain plane (Shift+W), clicks there until the IoU is .9, three times at
most, and presses Shift+J again. Then the object is cancelled while it is propagated, by the key and by the
button. OUT gets a JSON line per object and a picture of every stage, as does the terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.window.common import GapTimer, print_load, wait, wait_until
from benchmarks.window.gallery import Scene, window
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import read_range
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.evaluation.annotator import next_click
from napari_lowlat_seg.io.files import as_shown, read_volume

GOOD, CLICKS = 0.9, 3
"""A corrected plane gets clicks until its IoU is this, so many at most."""

CANCELS = 3
"""Runs cancelled by the key, and as many by the button."""


class OneObject:
    """One object in the window, and what of it is right.

    Parameters
    ----------
    scene
        The window.
    truth
        (planes, rows, cols) bool as the viewer shows them.
    span
        First and last plane of the range.
    """

    def __init__(self, scene: Scene, truth: np.ndarray, span: tuple[int, int]) -> None:
        self.scene, self.truth, self.span = scene, truth, span
        self.pictures: list[tuple[str, Image.Image]] = []
        scene.controller.propagation.range = span
        scene.widget._show()

    def mask(self, position: int) -> np.ndarray:
        """What the session has of the object on a plane."""
        mask: np.ndarray | None = self.scene.controller.session.mask(Plane((position, None, None)))
        return np.zeros(self.truth.shape[1:], np.bool_) if mask is None else mask

    def dice(self) -> float:
        """3-D Dice in the range."""
        low, high = self.span
        pairs = [(self.truth[z], self.mask(z)) for z in range(low, high + 1)]
        both = sum(np.count_nonzero(truth & mask) for truth, mask in pairs)
        total = sum(np.count_nonzero(truth) + np.count_nonzero(mask) for truth, mask in pairs)
        return 2 * both / total

    def look(self, name: str) -> None:
        """Keep a picture of the window."""
        self.pictures.append((name, self.scene.picture()))

    def annotate(self, position: int, most: int) -> dict[str, Any]:
        """Click on a plane as a person who knows the truth would."""
        self.scene.go(position)
        truth = self.truth[position].astype(np.int8)
        clicks: list[Click] = []
        while len(clicks) < most:
            mask = self.mask(position)
            union = np.count_nonzero(mask | (truth > 0))
            if not union or np.count_nonzero(mask & (truth > 0)) >= GOOD * union:
                break
            click = next_click(truth, mask, clicks)
            if click is None:
                break
            clicks.append(click)
            self.scene.click(click.at, "" if click.positive else "Ctrl")
        return {"plane": position, "clicks": len(clicks)}

    def propagate(self, name: str) -> dict[str, Any]:
        """Press the key; what the window says, how long it takes and what comes of it."""
        worker, propagation = self.scene.widget.worker, self.scene.controller.propagation
        said: list[str] = []
        count, half = 0, False
        timer = GapTimer()
        timer.start()
        began = time.perf_counter()
        self.scene.hand.key("Shift+J")
        while worker.busy or propagation.running:
            wait(0.05)
            if (progress := propagation.progress) is not None:
                count = progress.done
                if not half and 2 * count >= progress.total:
                    half = True
                    self.look(f"{name}-half")
            if not said or said[-1] != self.scene.widget.sentence:
                said.append(self.scene.widget.sentence)
        seconds = time.perf_counter() - began
        gaps = np.percentile(timer.stop(), [95, 99, 100])
        self.scene.rest()
        self.look(name)
        if ended := re.search(r"propagated to (\d+) plane", self.scene.widget.sentence):
            count = int(ended[1])
        return {
            "seconds": round(seconds, 2),
            "planes": count,
            "seconds a plane": round(seconds / max(1, count), 3),
            "gaps p95, p99, max ms": [round(float(gap)) for gap in gaps],
            "dice": round(self.dice(), 4),
            "said": [*said[:: max(1, len(said) // 6)], self.scene.widget.sentence],
        }

    def cancel(self, button: bool) -> dict[str, float]:
        """Begin a run, cancel it in the middle; seconds until the window says so and nothing is computed."""
        worker, propagation = self.scene.widget.worker, self.scene.controller.propagation
        self.scene.hand.key("Shift+J")
        wait_until(lambda: propagation.progress is not None and propagation.progress.done >= 2)
        wait(0.15 * np.random.default_rng().random())
        began = time.perf_counter()
        if button:
            self.scene.page.press("Cancel")
        else:
            self.scene.hand.key("Escape")
        wait_until(lambda: not propagation.running)
        said = time.perf_counter() - began
        wait_until(lambda: not worker.busy)
        still = time.perf_counter() - began
        self.scene.key("Ctrl+Z")
        return {"said": round(said, 3), "still": round(still, 3)}


def measure(
    scene: Scene, truth: np.ndarray, span: tuple[int, int], folder: Path, name: str
) -> dict[str, Any]:
    """One object from a click to a corrected volume, and cancelled."""
    low, high = span
    start = low + int(truth[low : high + 1].sum(axis=(1, 2)).argmax())
    work = OneObject(scene, truth, span)
    row: dict[str, Any] = {"object": name, "clicked": work.annotate(start, 1)}
    work.look("clicked")
    row["cancelled by the key"] = [work.cancel(False) for _ in range(CANCELS)]
    row["cancelled by the button"] = [work.cancel(True) for _ in range(CANCELS)]
    row["one click"] = work.propagate("propagated")
    scene.key("Shift+W")
    wait(0.5)
    work.look("least-certain")
    row["least certain"] = scene.widget.sentence
    position = scene.controller.plane.position
    row["corrected"] = work.annotate(position, CLICKS)
    work.look("corrected")
    if row["corrected"]["clicks"]:
        row["corrected once"] = work.propagate("again")
    scene.key("Enter")
    work.look("accepted")
    for number, (stage, picture) in enumerate(work.pictures):
        picture.save(folder / f"{name.replace('+', '-')}-{number:02d}-{stage}.png")
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--object", action="append", required=True, help="a label, or several joined by +")
    parser.add_argument("--planes", default=":", help="A:B, the planes to use, as the window numbers them")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    labels = np.asarray(as_shown(read_volume(given.labels)).data)
    span = read_range(given.planes, len(labels), "planes")
    print_load("at the start")
    scratch = tempfile.mkdtemp()  # no session of the person who measures
    os.environ |= {"XDG_STATE_HOME": scratch, "NAPARI_CONFIG": str(Path(scratch) / "napari.yaml")}
    with window(given.image.resolve()) as scene:
        for name in given.object:
            truth = np.isin(labels, [int(part) for part in name.split("+")])
            row = measure(scene, truth, span, given.out, name)
            print(json.dumps(row), flush=True)
            with (given.out / "propagating.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
    print_load("at the end")


if __name__ == "__main__":
    main()
