"""Tables of text as programs and spreadsheets of all countries write them."""

from __future__ import annotations

import codecs
import csv
from pathlib import Path


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, in UTF-16 if it says so, else in the old code of Western Europe."""
    raw = path.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", "replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def read_rows(text: str) -> list[list[str]]:
    """The cells of a table's lines, without spaces around them; an empty line is an empty row.

    Cells are divided by commas, semicolons (then a comma is that of a number), tabs, or between numbers by
    spaces alone. Lines that begin with # are comments.

    Raises
    ------
    ValueError
        For quotes that do not end, and cells of more than 131,072 letters.

    Examples
    --------
    >>> read_rows("# from a spreadsheet\\nz;y;x\\n5; 20,5;55")
    [['z', 'y', 'x'], ['5', '20.5', '55']]
    >>> read_rows("5,20,a;b"), read_rows(" 5 20  55")
    ([['5', '20', 'a;b']], [['5', '20', '55']])
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    first = next((line for line in lines if line.strip()), "")
    divider = _divider(first)
    if divider == " ":
        return [line.split() for line in lines]
    try:
        table = csv.reader(lines, delimiter=divider, skipinitialspace=True, strict=True)
        rows = [[cell.strip() for cell in row] for row in table]
    except csv.Error as error:
        raise ValueError(f"it is no table ({error})") from error
    return [[cell.replace(",", ".") for cell in row] for row in rows] if divider == ";" else rows


def _divider(first: str) -> str:
    """What divides the cells of a table with this first line; " " for any spaces."""
    if "," not in first and len(first.split()) > 1 and all(is_number(part) for part in first.split()):
        return " "
    if ";" in first and all(_has_no_comma(cell) for cell in first.split(";")):
        return ";"
    return "\t" if "\t" in first and "," not in first else ","


def _has_no_comma(cell: str) -> bool:
    """Whether a cell has none but that of a number."""
    return "," not in cell or is_number(cell.replace(",", ".", 1))


def is_number(cell: str) -> bool:
    """Whether a text is a number.

    >>> is_number("2.5"), is_number("z")
    (True, False)
    """
    try:
        float(cell)
    except ValueError:
        return False
    return True
