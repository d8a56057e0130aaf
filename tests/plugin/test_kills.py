"""Kills of a window that annotates, at random instants; 300 of them: `python -m benchmarks.kill_journal`."""

import sys
from functools import partial

import pytest

from benchmarks.kill_journal import kills

# Labels in memory and in files are restored from the journal alone: `annotation/test_journal.py` kills those.
THOROUGH = partial(pytest.param, marks=pytest.mark.thorough)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stops a process and looks at its threads")
@pytest.mark.parametrize("place", [THOROUGH("memory"), THOROUGH("file"), "pyramid"])
def test_a_killed_window_is_restored_as_it_was_after_an_event(tmp_path, place):
    """Labels in a pyramid with all levels and the highest label that is noted; in memory; in a file.

    A layer over a file is one in memory to the window: the journal has all of it.
    """
    assert len(kills(tmp_path, 3000, place, window=True, instants=3)) == 3
