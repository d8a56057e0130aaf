"""Training files and reports with values of the wrong kind are refused in one sentence."""

import re
from pathlib import Path

import pytest

from hostile.case import sentence
from hostile.configs import CASES


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    """With the setting, what was expected and what came."""
    assert re.search(CASES[name].match, sentence(CASES[name].prepare(tmp_path)))
