"""What a person says of an object beside its voxels: name, class, locked, hidden, to review."""

from __future__ import annotations

import csv
import io
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

LONGEST = 200
"""Letters of a name."""

MOST_CLASSES = 1000
"""Classes in a list; a person chooses one in a box."""

LARGEST_TABLE = 2**20
"""Bytes of a table of classes."""

PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99")
"""Colours of classes without one; people with any colour vision tell them apart (after Paul Tol)."""


def check_text(what: str, text: str) -> None:
    """Raise ValueError for a name that is too long or has more than one line."""
    if len(text) > LONGEST or not text.isprintable():
        raise ValueError(
            f"a {what} is one line of up to {LONGEST} letters, got {len(text)} ({text!r:.60}); shorten it"
        )


@dataclass(frozen=True)
class ObjectFacts:
    """What a person says of the object that has a label.

    Attributes
    ----------
    name
        Free text; "" for none.
    category
        The name of its class; "" for none.
    review
        Whether somebody has to look at it again.
    locked
        Whether its voxels are never changed.
    hidden
        Whether it is left out of the picture.

    Raises
    ------
    ValueError
        For names of more than `LONGEST` letters, and with a line break.
    """

    name: str = ""
    category: str = ""
    review: bool = False
    locked: bool = False
    hidden: bool = False

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("class", self.category)):
            check_text(what, text)


PLAIN = ObjectFacts()
"""Of an object of which nothing was said."""

FactChange = tuple[int, ObjectFacts | None, ObjectFacts | None]
"""A label, and what was said of it before and after; None for nothing."""


def changed_facts(facts: Mapping[int, ObjectFacts], changes: Iterable[FactChange]) -> dict[int, ObjectFacts]:
    """Facts by label after some changes. Does not mutate."""
    after = dict(facts)
    for label, _, now in changes:
        after.pop(label, None)
        if now is not None and now != PLAIN:
            after[label] = now
    return after


def locked_labels(facts: Mapping[int, ObjectFacts]) -> frozenset[int]:
    """The labels that are never written to."""
    return frozenset(label for label, one in facts.items() if one.locked)


def check_unlocked(facts: Mapping[int, ObjectFacts], label: int) -> None:
    """Raise ValueError if an object is locked."""
    if facts.get(label, PLAIN).locked:
        raise ValueError(f"object {label} is locked; unlock it in the table of objects first")


@dataclass(frozen=True)
class ObjectClass:
    """A class of objects.

    Attributes
    ----------
    name
        One line, unique among the classes of a session.
    colour
        "#rrggbb".

    Raises
    ------
    ValueError
        For an empty or too long name, and another colour.
    """

    name: str
    colour: str

    def __post_init__(self) -> None:
        check_text("class", self.name)
        if not self.name:
            raise ValueError("a class needs a name, got an empty one")
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.colour):
            raise ValueError(f"a colour is #rrggbb, such as #4477aa; got {self.colour!r:.40}")


Classes = tuple[ObjectClass, ...]


def class_colours(classes: Classes, used: Iterable[str]) -> dict[str, str]:
    """The colour of every class by name: of the list, and of those `used` that no list names."""
    colours = {one.name: one.colour for one in classes}
    for name in used:
        if name and name not in colours:
            colours[name] = PALETTE[len(colours) % len(PALETTE)]
    return colours


def check_class(classes: Classes, name: str) -> None:
    """Raise ValueError for a class that is not of a list; without a list every name is one."""
    names = [one.name for one in classes]
    if names and name and name not in names:
        raise ValueError(
            f"expected a class of the list ({', '.join(names)}), got {name!r:.60}; load another list"
        )


def read_classes(path: str | Path) -> Classes:
    """The classes in a CSV file: a name and, if it has a second column, a colour (#rrggbb) in each row.

    A first row with the heading "name" or "class" is left out, and so are empty rows.

    Raises
    ------
    ValueError
        For a file without a class, a name that comes twice, a wrong colour, text that is not UTF-8, what is
        no file, and more than `MOST_CLASSES` rows or `LARGEST_TABLE` bytes.
    OSError
        If it cannot be read.
    """
    path = Path(path)
    classes: list[ObjectClass] = []
    rows = _rows_of(path)
    if rows and rows[0][0].lower() in ("name", "class"):
        rows = rows[1:]
    for row in rows:
        colour = row[1] if len(row) > 1 and row[1] else PALETTE[len(classes) % len(PALETTE)]
        try:
            classes.append(ObjectClass(row[0], colour))
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None
    _check_each_once(path, [one.name for one in classes])
    return tuple(classes)


def _rows_of(path: Path) -> list[list[str]]:
    """The cells of a table of classes, without empty rows."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise ValueError(f"{path.name} is no file; choose a table of classes as CSV UTF-8")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_TABLE + 1)
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        rows = [[cell.strip() for cell in row] for row in csv.reader(text)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path.name} is no table of text in UTF-8 ({error}); save it as CSV UTF-8"
        ) from None
    rows = [row for row in rows if any(row)]
    if len(rows) > MOST_CLASSES or len(content) > LARGEST_TABLE:
        raise ValueError(
            f"{path.name} must name at most {MOST_CLASSES} classes in {LARGEST_TABLE} bytes, got "
            f"{len(rows)} rows in {len(content)} or more; choose a list of classes"
        )
    return rows


def _check_each_once(path: Path, names: list[str]) -> None:
    if not names or len(set(names)) < len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        found = "none" if twice is None else f"{twice!r} twice"
        raise ValueError(f"{path.name} must name one class in each row, got {found}; columns: name, colour")
