"""napari's notifications, whose labels would take a word from a file or another machine for markup."""

from __future__ import annotations

import re

from napari.utils import notifications


def show_info(words: str) -> None:
    """As napari's, the words as they are."""
    notifications.show_info(plain(words))


def show_warning(words: str) -> None:
    """As napari's, the words as they are."""
    notifications.show_warning(plain(words))


def show_error(words: str) -> None:
    """As napari's, the words as they are."""
    notifications.show_error(plain(words))


def plain(words: str) -> str:
    """Words that look the same, and that Qt takes for no markup: a space of no width breaks tags.

    Examples
    --------
    >>> plain("an object"), len(plain("<b>"))
    ('an object', 4)
    """
    return re.sub("[<&]", lambda found: found[0] + "\u200b", words)
