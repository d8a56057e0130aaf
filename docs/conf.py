"""The documentation's site: `sh scripts/docs` builds it, with warnings as errors.

Pages are plain Markdown, so that they can be read in the repository. A comment such as `<!-- keys -->` in a
page is replaced by what the code says: commands, keys, settings, or a file of the repository.
"""

from __future__ import annotations

import ast
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "napari_lowlat_seg"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PROJECT["tool"]["napari-lowlat-seg"]["repository"]

project = "napari-lowlat-seg"
author = "napari-lowlat-seg contributors"
copyright = f"2026, {author}"
release = version = PROJECT["project"]["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
default_role = "literal"  # docstrings write `name` as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the numpydoc sections say more
napoleon_google_docstring = False
napoleon_use_rtype = False
html_theme = "pydata_sphinx_theme"
html_title = "napari-lowlat-seg"
html_theme_options = {
    "icon_links": [{"name": "Repository", "url": REPOSITORY, "icon": "fa-solid fa-code"}],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "footer_end": [],
}
html_show_sourcelink = False


def commands() -> str:
    """Return the help of every command, as the terminal shows it."""
    from napari_lowlat_seg.cli.app import app

    sections = []
    for name, context in _commands("lowlat-seg", typer.main.get_command(app), None):
        context.max_content_width = 100
        sections.append(f"## {name}\n\n```text\n{context.command.get_help(context).strip()}\n```\n")
    return "\n".join(sections)


def _commands(name: str, command: Any, parent: Any) -> Iterator[tuple[str, Any]]:
    last = name.rpartition(" ")[2]
    context = type(command).context_class(command, info_name=last, parent=parent, terminal_width=100)
    yield name, context
    for inner_name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _commands(f"{name} {inner_name}", inner, context)


def keys() -> str:
    """Return the tables of `plugin/keys.py`, which is read and not imported: napari need not be installed."""
    parts = []
    for node in ast.parse((SOURCE / "plugin" / "keys.py").read_text(encoding="utf-8")).body:
        name = getattr(node.targets[0], "id", "") if isinstance(node, ast.Assign) else ""
        if name in KEYS and isinstance(node, ast.Assign):
            rows = [
                f"| {ast.literal_eval(one.args[2])} | {ast.literal_eval(one.args[1])} |"
                for one in ast.walk(node.value)
                if isinstance(one, ast.Call)
            ]
            parts += [KEYS[name], "", "| key | what it does |", "|---|---|", *rows, ""]
    return "\n".join(parts)


KEYS = {
    "ACTIONS": "## On the canvas",
    "OBJECT_ACTIONS": "## In the table of objects\n\nWhile the table has the focus; they cannot be changed.",
}
"""The heading of each table of keys."""


def settings() -> str:
    """Return the settings in napari's Preferences, from the manifest; keys have a page of their own."""
    manifest = yaml.safe_load((SOURCE / "napari.yaml").read_text(encoding="utf-8"))
    parts = []
    for name, group in manifest["contributions"]["configurations"].items():
        if name != "keys":
            rows = [
                f"| {one['title']} | `{name}.{key}` | `{one['default']}` | {_range(one)} "
                f"| {one.get('description', '')} |"
                for key, one in group["properties"].items()
            ]
            head = ["| setting | name | delivered as | allowed | what it does |", "|---|---|---|---|---|"]
            parts.append("\n".join([f"## {group['title']}", "", *head, *rows]))
    return "\n\n".join(parts)


def _range(one: dict[str, Any]) -> str:
    if "enum" in one:
        return ", ".join(f"`{value}`" for value in one["enum"])
    limits = [str(one[end]) for end in ("minimum", "maximum") if end in one]
    return " to ".join(limits) or {"boolean": "yes or no", "string": "text"}.get(one["type"], one["type"])


GENERATED = {"commands": commands, "keys": keys, "settings": settings}


def fill(text: str) -> str:
    """Return a page with its comments `<!-- keys -->` and `<!-- file: PATH -->` replaced."""
    text = re.sub(r"<!-- (\w+) -->", lambda m: GENERATED[m[1]]() if m[1] in GENERATED else m[0], text)
    return re.sub(
        r"<!-- file: (\S+) -->", lambda m: (ROOT / m[1]).read_text(encoding="utf-8").partition("\n")[2], text
    )


def lead_out(text: str, page: Path) -> str:
    """Return a page whose links to files of the repository outside of docs/ lead to the repository."""

    def address(found: re.Match[str]) -> str:
        path = (page.parent / found[1]).resolve()
        if path.is_relative_to(ROOT / "docs") or not path.is_relative_to(ROOT):
            return found[0]
        if not path.exists():
            raise FileNotFoundError(f"{page} links to {found[1]}, which is not in the repository")
        return f"]({REPOSITORY}/blob/main/{path.relative_to(ROOT).as_posix()}{found[2] or ''})"

    return re.sub(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", address, text)


def setup(app: Any) -> None:
    """Let Sphinx call `fill` and `lead_out` on each page."""
    absolute = runpy.run_path(str(ROOT / "setup.py"))["absolute"]

    def read(_: Any, name: str, source: list[str]) -> None:
        page = ROOT / "docs" / f"{name}.md"
        filled = fill(source[0])
        if filled != source[0] and "<!-- file:" in source[0]:  # links of that file are seen from the root
            filled = absolute(filled, REPOSITORY)
        source[0] = lead_out(filled, page)

    app.connect("source-read", read)
