"""A few tries of each fuzzer; thousands are run by hand (benchmarks/fuzz.py)."""

from __future__ import annotations

import sys

import pytest

from benchmarks.fuzz import BATCH, TRIES, fuzz


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks and limits memory")
@pytest.mark.parametrize("name", TRIES)
def test_nothing_but_done_and_one_sentence(name: str) -> None:
    """Fifty tries, with a seed of their own."""
    found = fuzz(name, BATCH, seed=7)
    assert found["taken"] + found["refused"] == BATCH, found
