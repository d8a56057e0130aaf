"""What a window keeps of the actions that are over."""

import gc
import threading
import weakref
from collections import Counter

import numpy as np
import pytest
from napari.layers import Labels

from napari_lowlat_seg.core.prompts import Click

OF_A_WINDOW = ("PySide6.", "PyQt6.", "vispy.", "napari._vispy", "napari._qt", "superqt.")


def in_window():
    """Living Python objects of Qt, vispy and napari's window, by type."""
    gc.collect()
    names = (f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    return Counter(name for name in names if name.startswith(OF_A_WINDOW))


def a_round(it):
    """Each kind of action once, the labels' layer removed at the end; the layer, weakly."""
    controller = it.controller()
    session = controller.session
    for plane, other in ((0, 1), (1, 2), (2, 0)):
        session.add(controller.plane, Click((10.0, 10.0 + plane)))
        controller.predictions.ask()
        it.settle()
        controller.undo()
        controller.redo()
        controller.accept()
        it.settle()
        it.look((other, None, None))
    controller.set("semantic", not session.semantic)
    labels = weakref.ref(controller.labels.layer)
    it.viewer.layers.remove(labels())
    it.settle()
    return labels


@pytest.mark.slow
def test_actions_that_are_over_leave_no_widget_node_layer_or_thread(bright_window):
    """After six rounds no more of Qt and vispy lives than after two, and no layer but what undo needs."""
    image = np.zeros((3, 40, 60), np.uint8)
    image[:, 5:20, 5:30] = 200
    it = bright_window(lambda viewer: viewer.add_image(image, name="image"))
    for _ in range(2):
        a_round(it)
    before, layers, threads = in_window(), len(it.viewer.layers), threading.active_count()
    removed = [a_round(it) for _ in range(4)]
    more = {name: count for name, count in (in_window() - before).items() if count >= 4}
    assert not more
    assert (len(it.viewer.layers), threading.active_count()) == (layers, threads)
    # Undo writes into labels whose layer was removed, so these stay, once each, with the session alone.
    records = it.controller().session.contents.records.values()
    stores = {id(one.store.layer) for one in records if one.store}
    living = {id(one) for one in gc.get_objects() if type(one) is Labels}
    assert {id(labels()) for labels in removed} <= stores
    assert living == stores | {id(it.controller().preview.layer)}
