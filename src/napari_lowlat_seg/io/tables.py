"""Tables of text as spreadsheets of all countries write them: commas, semicolons or tabs between cells."""

from __future__ import annotations

import csv


def read_rows(text: str) -> list[list[str]]:
    """The cells of a table's lines, without spaces around them; an empty line is an empty row.

    Lines that begin with # are comments. Where semicolons divide cells, a comma is that of a number.

    Raises
    ------
    ValueError
        For quotes that do not end, and cells of more than 131,072 letters.

    Examples
    --------
    >>> read_rows("# from a spreadsheet\\nz;y;x\\n5; 20,5;55")
    [['z', 'y', 'x'], ['5', '20.5', '55']]
    >>> read_rows("5,20,a;b")
    [['5', '20', 'a;b']]
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    first = next((line for line in lines if line.strip()), "")
    semicolons = ";" in first and all(_has_no_comma(cell) for cell in first.split(";"))
    divider = ";" if semicolons else "\t" if "\t" in first and "," not in first else ","
    try:
        table = csv.reader(lines, delimiter=divider, skipinitialspace=True, strict=True)
        rows = [[cell.strip() for cell in row] for row in table]
    except csv.Error as error:
        raise ValueError(f"it is no table ({error})") from error
    return [[cell.replace(",", ".") for cell in row] for row in rows] if semicolons else rows


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
