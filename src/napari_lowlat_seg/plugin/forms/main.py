"""All controls of the dock widget and what they show; it emits what the user does and knows no controller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any

from qtpy.QtCore import QEvent, Qt, QTimer, Signal
from qtpy.QtWidgets import QFormLayout, QGridLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from napari_lowlat_seg.plugin.canvas.hints import first_hint
from napari_lowlat_seg.plugin.controller.situation import News, Situation, sentence_of
from napari_lowlat_seg.plugin.controller.view_state import Settings, ViewState, not_default
from napari_lowlat_seg.plugin.forms.controls import (
    ON_DISK,
    Choice,
    Chooser,
    Fold,
    KeyButton,
    Scrolled,
    action_button,
    described,
)
from napari_lowlat_seg.plugin.forms.details import DetailsForm
from napari_lowlat_seg.plugin.forms.mask_tools import MODES, MaskToolsForm, ModeRow
from napari_lowlat_seg.plugin.forms.model import ModelForm, Wanted
from napari_lowlat_seg.plugin.forms.session import HintRow, OfferRow, SessionForm
from napari_lowlat_seg.plugin.forms.volume import VolumeForm
from napari_lowlat_seg.plugin.keys import ACTION
from napari_lowlat_seg.plugin.objects.panel import ObjectPanel

BUTTONS = {"accept": "Accept", "new_object": "New object", "undo": "Undo", "redo": "Redo"}

TYPES = ("<big><b>{}</b></big>", "<b>{}</b>", "{}", "<small>{}</small>")
"""How the state line is written, the largest first."""

Named = Iterable[tuple[str, Any]]


class MainForm(QWidget):
    """The controls, from top to bottom.

    Parameters
    ----------
    wanted
        The model that is in front at the start.
    embeddings
        Planes ahead, and MiB of memory and of disk for embeddings.
    hints
        Whether a row says what to do next.
    """

    pressed = Signal(str)
    """The name of an action."""

    setting = Signal(str, object)
    """A field of `Settings` and its new value."""

    def __init__(self, wanted: Wanted, embeddings: tuple[int, int, int], *, hints: bool = False) -> None:
        super().__init__()
        self._shown: ViewState | None = None
        self.image = Chooser("Image", "The image that is segmented.")
        self.model = ModelForm(wanted)
        self.labels = Chooser("Labels", "Where accepted objects are written: a new layer, or one of yours.")
        self.state = StateLine()
        self.offer = OfferRow()
        self.session = SessionForm()
        self.hint = HintRow(hints)
        self._keys: Mapping[str, str] = {}
        self.polarity = Choice(
            "Polarity", "The sign of the next prompt", [("+ object", True), ("− background", False)]
        )
        self.tool = Choice(
            "Tool", "What dragging draws", [("Scribble", "scribble"), ("Box", "box"), ("Lasso", "lasso")]
        )
        self.buttons = {
            name: KeyButton(text, partial(self.pressed.emit, name)) for name, text in BUTTONS.items()
        }
        self.mode = ModeRow()
        self.mode.changed.connect(lambda mode: self.pressed.emit(MODES[mode]))
        self.mask_tools = MaskToolsForm()
        self.mask_fold = Fold(
            "Edit the mask", "Edits of the mask, and what objects are kept to.", self.mask_tools
        )
        self.volume = VolumeForm()
        self.details = DetailsForm(self.model)
        self.details.show_embeddings(*embeddings)
        self.fold = Fold("Details", "Everything that is not needed for every object.", self.details)
        self.objects = ObjectPanel()
        self.objects_fold = Fold("Objects", "All objects in the labels, whoever made them.", self.objects)
        self.shortcuts = described(
            action_button("Shortcuts…"), "Shortcuts", "All keys; they can be changed there."
        )
        self.reset = ResetButton()
        self.reset.clicked.connect(self._reset)
        self.cancel = described(action_button("Cancel"), "Cancel", "Stop what is running; prompts stay.")
        self.polarity.changed.connect(partial(self.setting.emit, "positive"))
        self.tool.changed.connect(partial(self.setting.emit, "tool"))
        self.details.setting.connect(self.setting)
        self.mask_tools.setting.connect(self.setting)
        self.mask_tools.pressed.connect(self.pressed)
        self.volume.pressed.connect(self.pressed)
        self._font_later = QTimer(self, singleShot=True)
        self._font_later.timeout.connect(self._match_font)
        self._lay_out()

    def _lay_out(self) -> None:
        inner = QWidget()
        column, form, grid = QVBoxLayout(inner), QFormLayout(), QGridLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Image", self.image.native)
        form.addRow("Model", self.model)
        form.addRow("Labels", self.labels.native)
        for index, button in enumerate(self.buttons.values()):
            grid.addWidget(button, index // 2, index % 2)
            grid.setColumnStretch(index % 2, 1)
        column.addLayout(form)
        column.addWidget(self.state)
        column.addWidget(self.reset)
        column.addWidget(self.hint)
        column.addWidget(self.offer)
        column.addLayout(grid)
        tools = (self.polarity, self.mode, self.tool, self.volume, self.mask_fold, self.objects_fold)
        for part in (*tools, self.fold, self.session, self.shortcuts, self.cancel):
            column.addWidget(part)
        column.addStretch()
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(Scrolled(inner))

    def changeEvent(self, event: QEvent) -> None:
        """Follow napari's font when all parts have it."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange) and hasattr(self, "_font_later"):
            self._font_later.start()

    def _match_font(self) -> None:
        """Write what is typed, and tables, as large as labels: napari's style leaves them small (0.9.2)."""
        size = self.state.font().pointSizeF()
        style = f"QLineEdit, QTableView, QHeaderView {{ font-size: {size:g}pt }}" if size > 0 else ""
        if style != self.styleSheet():
            self.setStyleSheet(style)

    def show_images(self, images: Named, current: Any) -> None:
        """Offer these image layers; without a current one nothing that needs it can be used.

        What is shown next is shown whole.
        """
        self.image.offer(images, current)
        of_image = (
            self.polarity,
            self.mode,
            self.tool,
            self.mask_tools,
            self.labels.native,
            self.volume,
            self.session,
        )
        of_image = (*of_image, *self.details.of_image)
        for control in (*self.buttons.values(), *of_image):
            control.setEnabled(current is not None)
        if current is None:
            self.labels.offer([("new", None)], None)
            self.offer.show_offer("")
        self._shown = None

    def show_layers(
        self, labels: Named, points: Named, shapes: Named, chosen: Any, adopted: tuple[Any, Any]
    ) -> None:
        """Offer the user's layers; `chosen` labels and the `adopted` Points and Shapes are in front."""
        points = list(points)
        self.labels.offer([("new", None), *ON_DISK, *labels], chosen)
        self.details.show_layers(points, shapes, adopted)
        self.volume.show_points([one for one in points if one[1] is not adopted[0]])

    def show_state(self, state: ViewState) -> None:
        """Show the state of an image; a control whose value is the one shown last is not touched."""
        before, self._shown = self._shown, state
        self.buttons["undo"].setEnabled(state.can_undo)
        self.buttons["redo"].setEnabled(state.can_redo)
        if before is None or before.settings != state.settings:
            self._show_settings(state.settings)
        self._show_hint(state)
        if before is None or before.hand.mode != state.hand.mode:
            self.mode.show_value(state.hand.mode)
        if state.window is not None and (before is None or before.window != state.window):
            self.mask_tools.offer_range(*state.window)
        if before is None or before.files != state.files:
            self.offer.show_offer(state.files.offer)
            self.session.show_status(state.files)
        if before is None or before.stack != state.stack:
            self.volume.show_stack(state.stack)

    def _show_hint(self, state: ViewState) -> None:
        self.hint.show_hint(
            first_hint(self._keys, begun=state.begun, accepted=state.accepted, volume=state.stack.volume)
        )

    def _reset(self) -> None:
        """Set everything that changes results as it was delivered."""
        if self._shown is not None:
            for name in not_default(self._shown.settings):
                self.setting.emit(name, getattr(Settings(), name))

    def _show_settings(self, settings: Settings) -> None:
        self.reset.show_changed(not_default(settings).values())
        self.polarity.show_value(settings.positive)
        self.tool.show_value(settings.tool)
        self.details.show_settings(settings)
        self.mask_tools.show_settings(settings)

    def show_keys(self, keys: Mapping[str, str]) -> None:
        """Write the keys of all actions onto the buttons, into the tooltips and the hints."""
        self._keys = dict(keys)
        flags = (False, True)
        self.hint.keep_room(
            first_hint(keys, begun=begun, accepted=accepted, volume=True)
            for begun in flags
            for accepted in flags
        )
        if self._shown is not None:
            self._show_hint(self._shown)
        for name, button in (self.buttons | self.volume.buttons).items():
            button.show_key(keys[name])
            described(button, ACTION[name].title, f"Key: {keys[name] or 'none'}")
        self.polarity.explain(f"The sign of the next click or stroke. Key: {keys['toggle_polarity']}")
        modes = ", ".join(f"{ACTION[action].title.lower()} {keys[action]}" for action in MODES.values())
        self.mode.explain(f"What the mouse does. Keys: {modes}")
        self.tool.explain(f"What dragging the mouse draws. Key: {keys['next_tool']}")


class ResetButton(QPushButton):
    """Tells which settings that change results are not as delivered; one click sets them back.

    Its place is kept while there are none.
    """

    def __init__(self) -> None:
        super().__init__()
        policy = self.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        policy.setHorizontalPolicy(policy.Policy.Ignored)  # a long list does not make the panel wider
        self.setSizePolicy(policy)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.show_changed(())

    def show_changed(self, changed: Iterable[str]) -> None:
        """Name these settings; the button is hidden where there are none."""
        words = ", ".join(changed)
        described(
            self,
            f"Reset {words}" if words else "Reset",
            f"Not as delivered: {words}. Click to set it back." if words else "All as delivered.",
        )
        self.setText(f"↺ {words}")
        self.setVisible(bool(words))


class StateLine(QLabel):
    """What is going on, in one sentence of large text.

    The sentence is worked out once per turn of the event loop, or when it is asked for: a click changes the
    situation some ten times.

    Attributes
    ----------
    situation
        See `Situation`; changed by `update_situation` and `look` only.
    look
        Gives the fields of the situation that nobody reports, as they are now.
    """

    def __init__(self) -> None:
        super().__init__()
        described(self, "State", "What is going on, or how long the last prediction took.")
        self.setWordWrap(True)
        self.setTextFormat(Qt.TextFormat.RichText)
        self._sentence = ""
        self.situation = Situation()
        self.look: Callable[[], Mapping[str, Any]] = dict
        self._later = QTimer(self, singleShot=True)
        self._later.timeout.connect(self._work_out)
        self.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._keep_room()

    def changeEvent(self, event: QEvent) -> None:
        """Keep room for lines of another font."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._keep_room()
            self._fit()

    def resizeEvent(self, event: Any) -> None:
        """Say it as large as there is room for."""
        super().resizeEvent(event)
        self._fit()

    def _keep_room(self) -> None:
        """Four lines, three of large text: the buttons below stay where they are whatever is said."""
        self.setFixedHeight(round(4.2 * self.fontMetrics().lineSpacing()))

    def _fit(self) -> None:
        """Write the sentence in the largest type in which it is not cut off; the tooltip has it all."""
        words = self._sentence.split(" ")
        sizes = [(words, template) for template in TYPES]
        shorter = [([*words[:count], "…"], TYPES[-1]) for count in range(len(words) - 1, 0, -1)]
        for said, template in (*sizes, *shorter):
            self.setText(template.format(escape(" ".join(said))))
            if self.heightForWidth(self.width()) <= self.height():
                break

    @property
    def sentence(self) -> str:
        """What it says, without markup; a function of `situation`."""
        if self._later.isActive():
            self._work_out()
        return self._sentence

    def update_situation(self, **changes: Any) -> None:
        """Change fields of the situation; what it is now is said in this turn of the event loop."""
        self.situation = replace(self.situation, **changes)
        self._later.start()

    def _work_out(self) -> None:
        """Say what is going on; markup in it stays text."""
        self._later.stop()
        self.situation = replace(self.situation, **self.look())
        sentence = sentence_of(self.situation)
        if sentence != self._sentence:
            self._sentence = sentence
            self._fit()
            self.setToolTip(f"<qt>{escape(sentence)}</qt>")  # markup, so that it is wrapped
            self.setAccessibleName(f"State: {sentence}")

    def say(self, news: News) -> None:
        """Tell what the last action has done, or why it could not be."""
        self.update_situation(news=news)
