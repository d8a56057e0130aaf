"""What is hostile or broken, as a table: how to make it, what takes it, and the sentence that must come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Attempt = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes
    ----------
    prepare
        Makes what is hostile in a folder of its own; returns what must be refused when it is called.
    match
        A regular expression of the sentence.
    """

    prepare: Callable[[Path], Attempt]
    match: str


def sentence(attempt: Attempt) -> str:
    """The message with which an attempt is refused; AssertionError if it is not, or at length."""
    try:
        got = attempt()
    except (ValueError, OSError, RuntimeError) as error:
        text = str(error)
    else:
        raise AssertionError(f"not refused: {got!r:.200}")
    assert text, "refused without a word"
    assert len(text) < 900, f"{len(text)} characters: {text[:200]}"
    return text
