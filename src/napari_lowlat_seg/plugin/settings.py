"""The settings: one table of them, and how they are read from napari's settings and saved there.

`napari.yaml` declares the same table, which a test compares; napari makes a page of its Preferences from it
and saves values at once. A widget reads them when it opens and saves what its user changes, so two open
widgets do not disturb each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari.settings import get_plugin_settings

from napari_lowlat_seg.core.labels import Policy
from napari_lowlat_seg.core.masks import PostProcessing
from napari_lowlat_seg.io.files import embeddings_folder
from napari_lowlat_seg.plugin.keys import ACTIONS, KeyTable
from napari_lowlat_seg.plugin.notices import show_warning
from napari_lowlat_seg.serving.service import CACHE_BYTES

PLUGIN = "napari-lowlat-seg"


@dataclass(frozen=True)
class Setting:
    """One setting, as Preferences and the widget show it.

    Attributes
    ----------
    group, name
        napari keeps it as `settings().<group>.<name>`. A group of "" means that it is not kept, because it
        means something in one image only.
    default
        Its type is the setting's: bool, int, float or str.
    label, explanation
        The words beside it, and its tooltip.
    low, high
        Limits of a number, both allowed; None for none.
    step
        Of a number.
    unit
        Shown behind a number.
    choices
        The strings that are allowed, and how each is shown; empty if any is allowed.
    """

    group: str
    name: str
    default: bool | int | float | str
    label: str
    explanation: str = ""
    low: float | None = None
    high: float | None = None
    step: float = 1
    unit: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)


GROUPS = {
    "model": "Model",
    "prompts": "Prompts",
    "finish": "Mask",
    "labels": "Labels",
    "embeddings": "Embeddings",
    "keys": "Keys",
}
"""The title of each group that is kept."""

# fmt: off
SETTINGS = (
    Setting("model", "name", "default", "Model", "The network that draws masks; some are downloaded first."),
    Setting("model", "device", "auto", "Device",
            "Where the model runs: auto (the best there is), cpu, cuda, cuda:1, mps, ssh://HOST."),
    Setting("model", "closer_look", "auto", "Closer look",
            "Whether small objects are refined in a magnified crop: finer, a little slower.",
            choices={"auto": "automatic", "off": "off"}),
    Setting("prompts", "tool", "scribble", "Tool",
            "What dragging the mouse draws.",
            choices={"scribble": "Scribble", "box": "Box", "lasso": "Lasso"}),
    Setting("prompts", "postpone", False, "Postpone predictions",
            "The model predicts only when this is switched off again."),
    Setting("prompts", "hover", False, "Preview under the cursor",
            "Shows the contour that a click would give where the mouse rests."),
    Setting("prompts", "hints", True, "First-use hints", "A row in the panel says what to do next."),
    Setting("prompts", "intensities", "automatic", "Intensities",
            "What the model sees as black and white: found in the data, or the contrast limits of the layer.",
            choices={"automatic": "automatic", "displayed": "as displayed"}),
    Setting("finish", "threshold", PostProcessing.threshold, "Threshold",
            "Pixels with a higher probability belong to the object.", low=0.01, high=0.99, step=0.01),
    Setting("finish", "smooth", PostProcessing.smooth, "Smooth",
            "Standard deviation by which the outline is smoothed; 0 leaves it.",
            low=0.0, high=50.0, step=0.5, unit="px"),
    Setting("finish", "fill_holes", PostProcessing.fill_holes, "Fill holes",
            "Background that the object encloses belongs to it."),
    Setting("finish", "largest", PostProcessing.largest, "Largest part only",
            "Drops every part of the mask but the largest."),
    Setting("finish", "prompted", PostProcessing.prompted, "Parts with a prompt only",
            "Drops the parts of the mask in which no positive prompt lies, on planes that have one."),
    Setting("", "label", 1, "Label", "The label that accepting the object writes.", low=1, high=2**31 - 1),
    Setting("labels", "policy", Policy.kind, "Existing labels",
            "What happens where the object lies on existing labels.",
            choices={"keep": "keep them", "overwrite": "overwrite them"}),
    Setting("", "within", Policy.within, "Within label", "The only label replaced.", low=0, high=2**31 - 1),
    Setting("", "neighbours", True, "Finished objects are background",
            "Masks leave out the pixels of other objects in the labels, as far as these are kept; a click on "
            "such an object takes it out of that."),
    Setting("", "edit", "fill_holes", "Edit", "What is to be done to the mask of the object.",
            choices={"fill_holes": "Fill holes", "largest": "Keep the largest part",
                     "drop_small": "Drop parts smaller than", "smooth": "Smooth", "grow": "Grow",
                     "shrink": "Shrink", "between": "Fill between planes"}),
    Setting("", "amount", 2.0, "By", "How far the outline moves or is smoothed, or the pixels of a part.",
            low=0.0, high=1e6, step=0.5, unit="px"),
    Setting("", "limited", False, "Only these intensities",
            "Masks keep only pixels whose intensity lies in this range."),
    Setting("", "lowest", 0.0, "Lowest", "The lowest intensity of a pixel of the object.",
            low=-1e9, high=1e9, step=1.0),
    Setting("", "highest", 0.0, "Highest", "The highest intensity of a pixel of the object.",
            low=-1e9, high=1e9, step=1.0),
    Setting("labels", "semantic", False, "Same label for every object",
            "Semantic segmentation: a new object keeps the label."),
    Setting("", "channel", 0, "Channel", "The channel that the model sees.", low=0, high=0),
    Setting("embeddings", "ahead", 8, "Planes to embed in advance",
            "How many planes are embedded ahead of the one in view, then behind it; 0 for none.",
            low=0, high=200),
    Setting("embeddings", "memory", CACHE_BYTES >> 20, "Memory for embeddings",
            "The embeddings used last are kept in memory up to this size.",
            low=64, high=2**20, step=256, unit="MiB"),
    Setting("embeddings", "disk", 0, "Disk for embeddings",
            "Embeddings are kept on the disk up to this size, also for the next time, with copies of the "
            "images; 0 writes none.",
            low=0, high=2**20, step=256, unit="MiB"),
    Setting("embeddings", "folder", "", "Folder of embeddings",
            "Where `lowlat-seg embed -o` wrote embeddings; those beside an image file are found anyway."),
    *(Setting("keys", action.name, action.key, action.title) for action in ACTIONS),
)
# fmt: on

SETTING = {one.name: one for one in SETTINGS if one.group != "keys"}
"""The settings that are no keys, by name."""


def settings() -> Any:
    """napari's settings of this plugin: `.model.name`, `.prompts.tool`, ...; assigning saves."""
    return get_plugin_settings(PLUGIN)


def stored(group: str) -> dict[str, Any]:
    """The values of one group by name, as they are kept now."""
    values = getattr(settings(), group)
    return {one.name: getattr(values, one.name) for one in SETTINGS if one.group == group}


def remember(group: str, **values: object) -> None:
    """Save values of one group.

    Raises
    ------
    ValueError
        For a value that the table does not allow.

    Examples
    --------
    >>> remember("model", name="segnext-sax1")  # doctest: +SKIP
    """
    kept = getattr(settings(), group)
    for name, value in values.items():
        if getattr(kept, name) != value:
            setattr(kept, name, value)


PER_SESSION = ("finish", "policy", "limits", "semantic", "postpone")
"""Fields of `view_state.Settings` that change results: kept for the next image, not for the next session."""

OF_IMAGE = {name: name for name in ("tool", "hover", "postpone", "semantic")} | {"planes_ahead": "ahead"}
"""The fields of `view_state.Settings` that are kept as they are, and the names that they are kept under."""


def stored_settings() -> dict[str, Any]:
    """What a new image starts with, by field of `view_state.Settings`; the others have their defaults."""
    kept = {name: stored(SETTING[row].group)[row] for name, row in OF_IMAGE.items()}
    policy = Policy(stored("labels")["policy"])
    return {**kept, "finish": PostProcessing(**stored("finish")), "policy": policy}


def remember_setting(name: str, value: Any) -> None:
    """Save a field of `view_state.Settings`, if it is one that is kept; see `PER_SESSION`."""
    if name in OF_IMAGE and name not in PER_SESSION:
        row = SETTING[OF_IMAGE[name]]
        remember(row.group, **{row.name: value})


def stored_room() -> dict[str, Any]:
    """The bytes for embeddings, as keywords of `serving.process.open_prediction_service`."""
    kept = settings().embeddings
    return {"cache_bytes": kept.memory * 2**20, "disk_bytes": kept.disk * 2**20}


def embedding_folders(layer: Any) -> tuple[Path, ...]:
    """Where embeddings of an image layer may be: beside its file, and in the folder of the settings.

    Parameters
    ----------
    layer
        An image layer of napari; it may come from no file, or from several.
    """
    file, folder = layer.source.path, settings().embeddings.folder
    beside = [embeddings_folder(file)] if isinstance(file, str | Path) and Path(file).name else []
    return (*beside, *([Path(folder).expanduser()] if folder else []))


def stored_keys() -> KeyTable:
    """The keys as the user has them; for a text that is no key the default is taken, with a warning."""
    table, keys = KeyTable(), stored("keys")
    for action in ACTIONS:
        try:
            table.set(action.name, keys[action.name])
        except ValueError as error:
            show_warning(f"The key of “{action.title}” is {action.key} again: {error}")
    return table


def remember_keys(keys: Mapping[str, str]) -> None:
    """Save the keys by action."""
    remember("keys", **keys)
