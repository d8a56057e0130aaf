"""A command runs alone and beside busy loops in turns."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks import busy


@pytest.mark.slow
def test_a_command_takes_turns_with_itself_beside_loops(capfd: pytest.CaptureFixture[str]) -> None:
    """Its own words go to standard error."""
    alone, beside = busy.compared([sys.executable, "-c", "print('done')"], 1, 2)
    said, worked = capfd.readouterr()
    assert (len(alone), len(beside)) == (2, 2)
    assert [line.split()[1] for line in said.splitlines()] == ["0", "1", "0", "1"]
    assert worked.count("done") == 4


@pytest.mark.slow
def test_a_command_that_fails_is_not_timed() -> None:
    """It would look fast."""
    with pytest.raises(subprocess.CalledProcessError):
        busy.compared([sys.executable, "-c", "raise SystemExit(3)"], 1, 1)
