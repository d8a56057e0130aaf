"""From the widget opened to "ready", by phases: `python -m benchmarks.window.opening`.

The EM sample in a real window. Beside the time that passes, each phase has the processor time that the
window and the model's process took, which other work on the machine hardly changes.
"""

from __future__ import annotations

import itertools
import os
import time

import psutil  # type: ignore[import-untyped]

from benchmarks.window.common import print_load, wait, wait_until

POLL_SECONDS = 0.03
"""Between two looks at the state line."""


def processor_seconds() -> tuple[float, float]:
    """Processor time of this process, and of its children."""
    own = psutil.Process()
    children = (sum(child.cpu_times()[:2]) for child in own.children(recursive=True))
    return sum(own.cpu_times()[:2]), sum(children)


def main() -> None:
    """Open the sample and the widget, and print a row for each phase."""
    print_load("before")
    rows: list[tuple[str, float, float, float]] = []

    def mark(phase: str) -> None:
        rows.append((phase, time.perf_counter(), *processor_seconds()))

    mark("start")
    import napari

    viewer = napari.Viewer()
    wait(1)
    mark("napari shown")
    viewer.open_sample("napari-lowlat-seg", "em")
    mark("sample opened")
    from napari_lowlat_seg.plugin.widget import LowlatWidget

    mark("widget imported")
    widget = LowlatWidget(viewer)
    mark("widget made")
    viewer.window.add_dock_widget(widget, name="Segment by clicking")
    mark("widget docked")
    said = ""
    while said != "ready" or widget.controller is None or widget.worker.busy:
        wait(POLL_SECONDS)
        if widget.sentence != said:
            said = widget.sentence
            mark(f"says: {said}")
    wait_until(lambda: not widget.worker.busy)
    print("phase | passed, s | window's processor, s | model's processor, s\n--- | --- | --- | ---")
    for before, row in itertools.pairwise(rows):
        print(f"{row[0]} | " + " | ".join(f"{now - then:.2f}" for then, now in zip(before[1:], row[1:])))
    opened, ready = next(row for row in rows if row[0] == "sample opened"), rows[-1]
    whole = " | ".join(f"{now - then:.1f}" for then, now in zip(opened[1:], ready[1:]))
    print(f"**from opening the widget to ready** | {whole}")
    print_load("after")
    os._exit(0)  # the window and the model's process are not waited for


if __name__ == "__main__":
    main()
