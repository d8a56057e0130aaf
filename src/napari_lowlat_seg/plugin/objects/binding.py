"""The panel of objects beside the image in front: what changes is shown, what the user does is passed on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from superqt.utils import qthrottled

from napari_lowlat_seg.plugin.objects.controller import ObjectsController
from napari_lowlat_seg.plugin.objects.panel import ObjectPanel

REFRESH_MS = 60
"""Between two refreshes while objects change quickly, as in a propagation of many."""


class ObjectsInFront:
    """Shows the objects of one image after the other in one panel.

    Parameters
    ----------
    panel
        The controls.
    export
        Called with the file for a table of all objects.
    """

    def __init__(self, panel: ObjectPanel, export: Callable[[Path], object]) -> None:
        self._panel = panel
        self.controller: ObjectsController | None = None
        self._said: tuple[object, ...] | None = None  # of which classes are shown
        self._later = qthrottled(self.refresh, REFRESH_MS, leading=False, parent=panel)
        panel.exported.connect(export)
        panel.pressed.connect(lambda name, keys: self._with(lambda it: it.do(name, keys)))
        panel.described_as.connect(
            lambda keys, field, text: self._with(lambda it: it.describe(keys, **{field: text}))
        )
        panel.classes_chosen.connect(lambda path: self._with(lambda it: it.load_classes(path)))
        panel.searched.connect(lambda scope: self._with(lambda it: it.find_all(scope)))
        panel.chosen.connect(lambda keys: self.controller and self.controller.choose(keys))
        panel.recounted.connect(lambda: self._with(lambda it: it.look_through(again=True)))

    def show(self, controller: ObjectsController | None) -> None:
        """Show the objects of another image; none for None."""
        if self.controller is not None:
            self.controller.changed.disconnect(self._soon)
            self.controller.search.proposed.disconnect(self._proposed)
        self.controller = controller
        self._panel.setEnabled(controller is not None)
        if controller is None:
            self._panel.show_rows({})
            self._panel.show_count("")
            return
        controller.changed.connect(self._soon)
        controller.search.proposed.connect(self._proposed)
        self._panel.model.colour = controller.colour
        self._panel.model.unit = controller.unit
        controller.table.update()
        self._show_classes(controller)
        self._panel.show_rows(controller.table.rows)
        self._panel.show_count(controller.counting)

    def refresh(self) -> None:
        """Show what has changed."""
        it, panel = self.controller, self._panel
        if it is None:
            return
        changed, moved = it.table.update()
        if panel.model.unit != it.unit:
            panel.model.unit = it.unit
            panel.show_rows(it.table.rows)
            changed = moved = set()
        self._show_classes(it)
        if changed or moved:
            panel.show_changes(changed, moved)
        panel.show_count(it.counting)
        panel.show_search(running=it.search.running)
        it.show_proposals()

    def _proposed(self) -> None:
        self.refresh()
        self._panel.look_at_proposals()

    def close(self) -> None:
        """Refresh no more."""
        self._later.cancel()
        self.show(None)

    def _show_classes(self, it: ObjectsController) -> None:
        said = it.said
        if self._said is None or any(one is not two for one, two in zip(said, self._said, strict=True)):
            self._said = said
            self._panel.show_classes(it.fixed_classes, it.class_colours)

    def _soon(self) -> None:
        self._later()

    def _with(self, work: Callable[[ObjectsController], object]) -> None:
        if self.controller is not None:
            work(self.controller)
            self.refresh()
