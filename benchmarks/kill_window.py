"""The child of `kill_journal --window`: random actions in napari with the dock widget, until it is killed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.kill_journal import PIXELS, Counting, fresh_labels, play, script
from benchmarks.window.common import open_window, wait, wait_until
from napari_lowlat_seg.annotation.history import Event


class NoModel:
    """A service without a network: the script applies masks of its own."""

    def describe(self, progress: Any = None) -> dict[str, Any]:
        """Facts as `PredictionService.describe` has them."""
        return {"device": "cpu", "precision": "float32", "licence": "none", "model": "none"}

    def embed(self, source: Any, cancelled: Any = None) -> float:
        """Nothing to do."""
        return 0.0

    def predict(self, request: Any, source: Any, cancelled: Any = None) -> Any:
        """No mask."""
        return iter(())

    propagate = candidates = predict

    def restart(self) -> None:
        """Nothing to do."""

    close = restart


class Settled(Counting):
    """Counts what a user does; what the window finds out by itself comes before."""

    def __call__(self, event: Event) -> None:
        """Take an event."""
        own = event.kind == "settings" and not {"model", "preprocessing"}.isdisjoint(event.settings)
        super().__call__(event)
        self.events -= own


def child(folder: Path, seed: int, count: int, on_disk: bool, pause: float) -> None:
    """Annotate in a window, and note after each action how many events there were."""
    viewer, widget = open_window(PIXELS.copy(), NoModel)
    controller = widget.controller
    session = controller.session
    if on_disk:
        from napari_lowlat_seg.core.volume import Volume
        from napari_lowlat_seg.io.chunked.zarr_labels import LabelPyramid

        pyramid = LabelPyramid.at(folder / "labels.ome.zarr", Volume(PIXELS.copy()))
        for place, plane in enumerate(Volume(PIXELS).planes()):
            pyramid.fill(plane, fresh_labels()[place])
        controller.labels.keep_at(folder / "labels.ome.zarr")
        labels = fresh_labels()  # brush strokes are left out
    else:
        labels = fresh_labels()
        controller.labels.use(viewer.add_labels(labels, name="mine"))
    wait_until(lambda: not controller.labels.reading)
    assert session.highest == 3, session.highest
    journal = controller.files._journal
    journal._compact_bytes, journal._sync_seconds = 40_000, 0.02
    session.observer = counting = Settled(session.observer)
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(log, b"0\n")
    for action, plane, action_seed in script(seed, count, on_disk=on_disk):
        play(session, labels, action, plane, action_seed)
        os.write(log, b"%d\n" % counting.events)
        controller._refresh()
        wait(pause)
    os.write(log, b"end\n")
    while True:
        wait(1)


if __name__ == "__main__":
    where, first, actions, disk, between = sys.argv[2:]
    child(Path(where), int(first), int(actions), bool(int(disk)), float(between))
