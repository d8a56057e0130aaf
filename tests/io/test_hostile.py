"""Every hostile or broken file of the table is one sentence, in bounded memory, without a hang."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hostile_files import CASES

for library in ("zarr", "h5py", "pydicom", "tensorstore"):
    pytest.importorskip(library)

if sys.platform == "win32":
    pytest.skip("pipes, links and limits of memory are made as on Unix", allow_module_level=True)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of each file, read by one process after another: whoever dies is replaced."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = {}
    for number, (name, (make, _)) in enumerate(CASES.items()):
        place = folder / str(number)
        place.mkdir()
        paths[name] = make(place)
    found: dict[str, dict[str, Any]] = {}
    while len(found) < len(paths):
        left = [name for name in paths if name not in found]
        done = subprocess.run(
            [sys.executable, str(Path(__file__).parents[1] / "read_hostile.py")],
            input="".join(f"{paths[name]}\n" for name in left),
            capture_output=True,
            text=True,
            timeout=600,
        )
        lines = done.stdout.splitlines()
        found |= {name: json.loads(line) for name, line in zip(left, lines, strict=False)}
        if len(lines) < len(left):
            died = {"kind": f"died, {done.returncode}", "sentence": False, "text": done.stderr[-300:]}
            found[left[len(lines)]] = died
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_one_sentence(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    """No traceback, no crash, no hang, no memory taken for what a file only declares."""
    outcome = outcomes[name]
    assert outcome["sentence"], outcome
    assert "\n" not in outcome["text"], outcome
    assert re.search(CASES[name][1], outcome["text"]), outcome


def test_there_are_enough_of_them() -> None:
    """The table is the promise."""
    assert len(CASES) >= 120
