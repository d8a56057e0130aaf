"""Processor time of the table of objects with many rows: shown anew, sorted, filtered, one row changed.

    QT_QPA_PLATFORM=offscreen python -m benchmarks.window.objects_table [--rows 10000]

Beside it, what a QSortFilterProxyModel takes to sort the same rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import cycle

from qtpy.QtCore import QSortFilterProxyModel, Qt
from qtpy.QtWidgets import QApplication

from napari_lowlat_seg.annotation.objects.table import Row
from napari_lowlat_seg.plugin.objects.model import SIZE, ObjectModel
from napari_lowlat_seg.plugin.objects.panel import ObjectPanel


def times(count: int) -> Iterator[tuple[str, float]]:
    """What was done, and the milliseconds of processor time that it took at best."""
    app = QApplication.instance() or QApplication([])
    rows = {
        n: Row(n, f"n{n % 7}", "axon", "done", 1, n * 7919 % 10007, float(n)) for n in range(1, count + 1)
    }
    panel, source, proxy = ObjectPanel(), ObjectModel(), QSortFilterProxyModel()
    panel.show_rows(rows)
    source.show_rows(rows)
    proxy.setSourceModel(source)
    panel.resize(400, 400)
    panel.show()
    orders = cycle((Qt.SortOrder.AscendingOrder, Qt.SortOrder.DescendingOrder))
    model, changed = panel.model, {count // 2}
    works: dict[str, Callable[[], object]] = {
        "all rows anew": lambda: panel.show_rows(rows),
        "sorted": lambda: model.sort(SIZE, next(orders)),
        "filtered": lambda: model.filter("n3"),
        "one row changed": lambda: panel.show_changes(changed, set()),
        "sorted by QSortFilterProxyModel": lambda: proxy.sort(SIZE, next(orders)),
    }
    for name, work in works.items():
        best = 1e9
        for _ in range(4):
            began = time.process_time()
            work()
            app.processEvents()
            best = min(best, time.process_time() - began)
        yield name, 1000 * best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    for name, milliseconds in times(parser.parse_args().rows):
        print(f"{name:35} {milliseconds:8.2f} ms")


if __name__ == "__main__":
    main()
