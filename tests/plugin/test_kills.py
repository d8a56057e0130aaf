"""Kills of a window that annotates, at random instants; 300 of them: `python -m benchmarks.kill_journal`."""

import sys

import pytest

from benchmarks.kill_journal import kills


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stops a process and looks at its threads")
@pytest.mark.parametrize("place", ["memory", pytest.param("file", marks=pytest.mark.thorough), "pyramid"])
def test_a_killed_window_is_restored_as_it_was_after_an_event(tmp_path, place):
    """Labels in memory, and in a pyramid with all levels and the highest label that is noted.

    A layer over a file is one in memory to the window: the journal has all of it.
    """
    assert len(kills(tmp_path, 3000, place, window=True, instants=3)) == 3
