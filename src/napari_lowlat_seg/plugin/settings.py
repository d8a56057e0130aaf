"""What is remembered between sessions: napari's settings of this plugin, declared in `napari.yaml`.

napari makes a page of its Preferences from them and saves them by itself. A widget reads them when it opens
and writes what its user changes; two open widgets do not disturb each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari.settings import get_plugin_settings
from napari.utils.notifications import show_warning

from napari_lowlat_seg.core.labels import Policy
from napari_lowlat_seg.core.masks import PostProcessing
from napari_lowlat_seg.io.files import embeddings_folder
from napari_lowlat_seg.plugin.keys import ACTIONS, KeyTable

PLUGIN = "napari-lowlat-seg"


def settings() -> Any:
    """The settings by group, each named as in the manifest: `.model`, `.prompts`, ...; assigning saves."""
    return get_plugin_settings(PLUGIN)


def remember(group: str, **values: object) -> None:
    """Saves values of one group.

    Examples
    --------
    >>> remember("model", name="segnext-sax1")  # doctest: +SKIP
    """
    stored = getattr(settings(), group)
    for name, value in values.items():
        if getattr(stored, name) != value:
            setattr(stored, name, value)


def stored_finish() -> PostProcessing:
    """How masks were finished last."""
    stored = settings().finish
    return PostProcessing(stored.threshold, stored.smooth, stored.fill_holes, stored.largest)


def remember_finish(finish: PostProcessing) -> None:
    """Saves how masks are finished."""
    remember(
        "finish",
        threshold=finish.threshold,
        smooth=finish.smooth,
        fill_holes=finish.fill_holes,
        largest=finish.largest,
    )


def stored_policy() -> Policy:
    """What was done last where an object lies on existing labels."""
    return Policy(settings().labels.policy)


def remember_policy(policy: Policy) -> None:
    """Saves the policy, unless it speaks of one label: that label means something in one volume only."""
    if policy.kind != "within":
        remember("labels", policy=policy.kind)


def stored_room() -> dict[str, Any]:
    """Room for embeddings, as `responder_process.open_prediction_service` takes it."""
    stored = settings().embeddings
    return {"cache_bytes": stored.memory * 2**20, "disk_bytes": stored.disk * 2**20}


def embedding_folders(layer: Any) -> tuple[Path, ...]:
    """Where embeddings of an image layer may have been put: beside its file, and in the settings' folder.

    Parameters
    ----------
    layer
        One of napari's; it may come from no file, or from several.
    """
    file, folder = layer.source.path, settings().embeddings.folder
    beside = [embeddings_folder(file)] if isinstance(file, str | Path) and Path(file).name else []
    return (*beside, *([Path(folder).expanduser()] if folder else []))


def stored_keys() -> KeyTable:
    """The keys as the user has them; one that is no key is told of and stays as delivered."""
    table, stored = KeyTable(), settings().keys
    for action in ACTIONS:
        try:
            table.set(action.name, getattr(stored, action.name))
        except ValueError as error:
            show_warning(f"The key of “{action.title}” is {action.key} again: {error}")
    return table


def remember_keys(keys: Mapping[str, str]) -> None:
    """Saves the keys by action."""
    remember("keys", **keys)
