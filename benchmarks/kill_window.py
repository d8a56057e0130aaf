"""The child of `kill_journal --window`: random actions in napari with the dock widget, until it is killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.kill_journal import PIXELS, Counting, annotate, fresh_labels, script, store_in
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

    propagate = predict

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


def child(folder: Path, seed: int, count: int, place: str) -> None:
    """Annotate in a window, and note after each action how many events there were."""
    viewer, widget = open_window(PIXELS.copy(), NoModel)
    controller = widget.controller
    session = controller.session
    labels = fresh_labels()  # brush strokes are left out on disk
    store = store_in(folder, place, new=True)
    if place == "pyramid":
        controller.labels.keep_at(folder / "labels.ome.zarr")
    else:
        controller.labels.use(viewer.add_labels(labels if place == "memory" else store.data, name="mine"))
    wait_until(lambda: not controller.labels.reading)
    assert session.highest == 3, session.highest
    journal = controller.files._journal
    journal._compact_bytes, journal._sync_seconds = 40_000, 0.02
    session.observer = counting = Settled(session.observer)

    def shown(seconds: float) -> None:
        controller._refresh()
        wait(seconds)

    annotate(session, labels, counting, folder / "log", script(seed, count, place), shown)
    while True:
        wait(1)


if __name__ == "__main__":
    where, first, actions, labels_in = sys.argv[2:]
    child(Path(where), int(first), int(actions), labels_in)
