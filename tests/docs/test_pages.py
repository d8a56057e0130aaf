"""The documentation says what is true: its code runs, its commands are commands, its tables are complete."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import napari_lowlat_seg
from fakes import FakePredictor
from napari_lowlat_seg.cli.app import app
from terminal import Call

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
CONF = runpy.run_path(str(ROOT / "docs" / "conf.py"))
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?```python\n(.*?)```", re.DOTALL)


def scripts(page: Path) -> list[tuple[str, bool]]:
    """The Python of a page or notebook, in order, and whether it is run."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return [(code, not unrun) for unrun, code in BLOCK.findall(text)]
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells), "clear the outputs"
    return [("".join(cell["source"]), True) for cell in cells]


WITH_PYTHON = [page for page in (*PAGES, *NOTEBOOKS) if scripts(page)]


@pytest.fixture(scope="module")
def load_once() -> Any:
    """Every page gets the same predictor of a name and device: loading it is not what is shown."""
    return functools.cache(napari_lowlat_seg.load_predictor)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.relative_to(ROOT / "docs").as_posix())
def test_the_python_of_a_page_runs(
    page: Path, load_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that need what a test has not are compiled, and what they import is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(napari_lowlat_seg, "load_predictor", load_once, raising=False)
    names: dict[str, Any] = {"__name__": "page"}
    for code, run in scripts(page):
        if run:
            exec(compile(code, str(page), "exec"), names)
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, one.name) for one in node.names)


def commands() -> list[tuple[str, str]]:
    """Page and command, of every call of `lowlat-seg` in a block of code that is not a synopsis."""
    found = []
    for page in (ROOT / "README.md", *PAGES):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?:   +)?(lowlat-seg .*)$", text, re.MULTILINE):
            line = line.partition("  #")[0].strip()
            if not re.search(r"\[|\.\.\.| \| ", line):
                found.append((page.relative_to(ROOT).as_posix(), line))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_in_the_documentation_can_be_typed(page: str, line: str) -> None:
    """Its name, options and values are known; nothing is run."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        command, words = command.commands[words[0]], words[1:]
    if words:
        command.make_context(command.name, words)


TYPED = re.compile(r"```(python|sh)\n(.*?)```", re.DOTALL)
PREDICTS = ("everything", "seeds", "embed")  # run in tests/batch; here only `segment` has a predictor


@pytest.mark.slow
@pytest.mark.parametrize("name", ["em-stack", "mri-tumour", "cells", "dicom"])
def test_the_commands_of_a_tutorial_find_their_files(
    name: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, in an empty folder, with a predictor that needs no network: nothing else is needed."""
    monkeypatch.setattr(
        "napari_lowlat_seg.inference.predictor.load_predictor", lambda *_, **__: FakePredictor()
    )
    names: dict[str, Any] = {"__name__": "page"}
    page = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    typed = 0
    for language, code in TYPED.findall(page):
        if language == "python" and "load_predictor" not in code:  # makes the data
            exec(compile(code, name, "exec"), names)
        for line in code.splitlines() if language == "sh" else ():
            words = shlex.split(line, comments=True)[1:]
            if line.startswith("lowlat-seg") and words[0] not in PREDICTS:
                done = call(*words)
                assert done.status == 0, (line, done.err)
                typed += 1
    assert typed >= 2


def test_every_public_name_is_in_the_reference() -> None:
    """And no other."""
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    listed = set(re.findall(r"auto(?:function|class|data):: (\w+)", page))
    assert listed == set(napari_lowlat_seg.__all__) - {"__version__"}


def test_generated_tables_hold_what_the_code_says() -> None:
    """Commands, keys and settings."""
    names = ("commands", "keys", "settings")
    help_of_commands, keys, settings = (CONF["GENERATED"][name]() for name in names)
    assert "## lowlat-seg models calibrate" in help_of_commands
    assert "--max-clicks" in help_of_commands
    assert "Usage: lowlat-seg models info [OPTIONS] {MODEL}" in help_of_commands
    assert "serve" not in re.findall("^## lowlat-seg (.*)", help_of_commands, re.MULTILINE)
    assert "| Ctrl+Z | Undo |" in keys
    assert "| Threshold | `finish.threshold` | `0.49` | 0.01 to 0.99 |" in settings


def test_a_lost_file_is_named(tmp_path: Path) -> None:
    """A page that leads to a file of the repository which is not there does not build."""
    with pytest.raises(FileNotFoundError, match=r"links to \.\./src/no\.py, which is not in the repository"):
        CONF["lead_out"]("[a](../src/no.py)", ROOT / "docs" / "guide.md")
