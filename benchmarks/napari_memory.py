"""What napari keeps with nothing of ours in its window: KiB of a change of the plane and of a notification.

xvfb-run python -m benchmarks.napari_memory
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import numpy as np

from benchmarks.soak import SHAPE, notifications_closed, trimmed
from benchmarks.window.common import print_load, wait


def growth(act: Callable[[], object], turns: int, seconds: float = 0.1, looks: int = 3) -> list[float]:
    """KiB an action, for each `turns` actions after as many to warm up; Qt's loop runs after each."""
    course = []
    for _ in range(looks + 1):
        for _ in range(turns):
            act()
            wait(0.005)
        wait(seconds)
        course.append(trimmed(1))
    return [round((now - before) / 1024 / turns, 1) for before, now in itertools.pairwise(course)]


def main() -> None:
    """Print JSON."""
    import napari
    from napari._qt.dialogs.qt_notification import NapariQtNotification
    from napari.utils.notifications import show_warning
    from qtpy.QtWidgets import QWidget

    viewer, rng = napari.Viewer(), np.random.default_rng(0)
    viewer.window.resize(1400, 1000)
    viewer.add_image(rng.integers(0, 255, SHAPE, dtype=np.uint8))
    viewer.add_labels(np.zeros(SHAPE, np.uint16))
    viewer.add_labels(np.zeros(SHAPE, np.uint8))
    viewer.add_points(ndim=3)
    viewer.add_shapes(ndim=3)
    found: dict[str, object] = {
        "KiB a plane": growth(lambda: viewer.dims.set_current_step(0, int(rng.integers(SHAPE[0]))), 100),
        "KiB a notification": growth(lambda: show_warning("a warning"), 25, 6),
        "window active": viewer.window._qt_window.isActiveWindow(),
        "open 6 s after": notifications_closed(),
    }
    QWidget.isActiveWindow = lambda _: True  # as on a desk
    for _ in range(25):
        show_warning("a warning")
        wait(0.005)
    wait(6)
    found["of 25 in an active window, open 6 s after"] = len(NapariQtNotification._instances)
    print(json.dumps(found), flush=True)
    print_load("at the end")


if __name__ == "__main__":
    main()
