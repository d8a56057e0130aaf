"""What is remembered between sessions, in a folder of the test's own."""

from importlib.resources import files

import pytest
import yaml
from napari.settings import get_plugin_settings
from napari.utils.notifications import notification_manager
from npe2 import PluginManifest

from napari_lowlat_seg.core.labels import Policy
from napari_lowlat_seg.core.masks import PostProcessing
from napari_lowlat_seg.plugin.controller.view_state import Settings
from napari_lowlat_seg.plugin.keys import ACTIONS, DEFAULTS
from napari_lowlat_seg.plugin.settings import (
    GROUPS,
    PLUGIN,
    SETTINGS,
    remember,
    remember_keys,
    remember_setting,
    settings,
    stored,
    stored_keys,
    stored_room,
    stored_settings,
)
from napari_lowlat_seg.serving.service import CACHE_BYTES


@pytest.fixture(autouse=True)
def manifest(plugin_settings, npe2pm):
    """This plugin alone, its settings as delivered."""
    found = PluginManifest.from_distribution(PLUGIN)
    npe2pm.register(found)
    return found


@pytest.fixture
def saved(tmp_path):
    """What is in the file now."""
    return lambda: yaml.safe_load((tmp_path / f"{PLUGIN}.yaml").read_text())


def declared():
    """The configurations of `napari.yaml` that the table calls for."""
    types = {bool: "boolean", int: "integer", float: "number", str: "string"}
    groups = {group: {"title": title, "properties": {}} for group, title in GROUPS.items()}
    for one in SETTINGS:
        kind = type(one.default)
        row = {
            "title": f"{one.label} ({one.unit})" if one.unit else one.label,
            "type": types[kind],
            "default": one.default,
            "minimum": one.low if one.low is None else kind(one.low),
            "maximum": one.high if one.high is None else kind(one.high),
            "enum": list(one.choices) or None,
            "description": one.explanation or None,
        }
        if one.group:
            shown = {key: value for key, value in row.items() if value is not None}
            groups[one.group]["properties"][one.name] = shown
    return groups


def test_the_manifest_declares_the_table_of_settings():
    """The same settings in the same order, with the same types, defaults, limits and words.

    After a change of the table, write `yaml.safe_dump(declared(), sort_keys=False)` into the manifest.
    """
    manifest = yaml.safe_load((files("napari_lowlat_seg") / "napari.yaml").read_text(encoding="utf-8"))
    configurations = manifest["contributions"]["configurations"]
    assert configurations == declared()
    assert list(configurations) == list(GROUPS)
    for group, one in configurations.items():
        assert list(one["properties"]) == [row.name for row in SETTINGS if row.group == group]


def test_every_action_has_its_key_in_the_table():
    """Under its name, title and default key."""
    rows = [(one.name, one.label, one.default) for one in SETTINGS if one.group == "keys"]
    assert rows == [(action.name, action.title, action.key) for action in ACTIONS]


def test_every_setting_is_read_from_where_it_is_kept():
    """As delivered, each value is the default of its row, in its type."""
    for group in GROUPS:
        defaults = {one.name: one.default for one in SETTINGS if one.group == group}
        values = stored(group)
        assert values == defaults
        assert {name: type(value) for name, value in values.items()} == {
            name: type(value) for name, value in defaults.items()
        }


def test_what_is_delivered_is_what_the_engine_starts_with():
    """The manifest repeats the engine's defaults, it does not decide."""
    kept, delivered = stored_settings(), Settings()
    assert {name: getattr(delivered, name) for name in kept} == {**kept, "planes_ahead": 0}
    assert (kept["planes_ahead"], kept["finish"], kept["policy"]) == (8, PostProcessing(), Policy())
    assert stored_keys().keys == DEFAULTS
    assert (settings().model.name, settings().model.device, settings().model.closer_look) == (
        "default",
        "auto",
        "auto",
    )
    assert stored_room() == {"cache_bytes": CACHE_BYTES, "disk_bytes": 0}


def test_the_widget_is_in_both_menus_and_the_palette(manifest):
    """Under Layers > Segment and Layers > Annotate, with a title that says what it does."""
    (widget,) = manifest.contributions.widgets
    (command,) = [one for one in manifest.contributions.commands if one.id == widget.command]
    menus = {place: [item.command for item in items] for place, items in manifest.contributions.menus.items()}
    assert menus == {"napari/layers/segment": [command.id], "napari/layers/annotate": [command.id]}
    assert command.title == widget.display_name == "Segment by clicking"


def test_values_are_saved_at_once(saved):
    """Nobody presses a save button."""
    changed = {"tool": "lasso", "hover": True, "planes_ahead": 3}
    remember("model", name="segnext-sax1", device="cpu")
    for name, value in changed.items():
        remember_setting(name, value)
    remember_setting("label", 7)
    remember_setting("positive", False)
    remember_keys({**DEFAULTS, "accept": "Y"})
    assert saved() == {
        "model": {"name": "segnext-sax1", "device": "cpu"},
        "prompts": {"tool": "lasso", "hover": True},
        "embeddings": {"ahead": 3},
        "keys": {"accept": "Y"},
    }
    assert stored_settings().items() >= changed.items()
    assert stored_keys().keys == {**DEFAULTS, "accept": "Y"}


def test_what_changes_results_is_not_remembered(saved):
    """A threshold of last week would be in force and folded away; Preferences can still set it."""
    remember_setting("finish", PostProcessing(0.05, 1.5, True, True))
    remember_setting("policy", Policy("overwrite"))
    remember_setting("semantic", True)
    remember_setting("postpone", True)
    remember_setting("tool", "box")
    assert saved() == {"prompts": {"tool": "box"}}
    get_plugin_settings(PLUGIN).finish.threshold = 0.6
    assert stored_settings()["finish"] == PostProcessing(0.6)


def test_a_key_that_is_none_is_told_of_and_stays_as_delivered():
    """A file edited by hand does not keep the widget from opening."""
    get_plugin_settings(PLUGIN).keys.accept = "Hyper+Enter"
    said = []
    notification_manager.notification_ready.connect(said.append)
    assert stored_keys().keys == DEFAULTS
    notification_manager.notification_ready.disconnect(said.append)
    (warning,) = said
    assert warning.message.startswith("The key of “Accept the object” is Enter again: expected a key such as")


def test_values_out_of_range_are_refused():
    """By napari, from the ranges in the manifest."""
    with pytest.raises(ValueError, match=r"less than or equal to 0\.99"):
        remember("finish", threshold=2.0)


def test_settings_that_an_earlier_version_saved_are_kept(tmp_path):
    """Its file is read; what it did not know is as delivered."""
    old = {"model": {"device": "cpu", "closer_look": "off"}, "embeddings": {"ahead": 3, "memory": 256}}
    old |= {"keys": {"accept": "Shift+Y"}, "finish": {"threshold": 0.6}, "labels": {"policy": "overwrite"}}
    (tmp_path / f"{PLUGIN}.yaml").write_text(yaml.safe_dump({"schema_version": "0.1.0", **old}))
    assert stored("model") == {"name": "default", "device": "cpu", "closer_look": "off"}
    assert stored_room() == {"cache_bytes": 256 * 2**20, "disk_bytes": 0}
    assert stored("embeddings")["ahead"] == 3
    assert stored_keys().keys == {**DEFAULTS, "accept": "Shift+Y"}
    assert stored_settings()["policy"] == Policy("overwrite")
