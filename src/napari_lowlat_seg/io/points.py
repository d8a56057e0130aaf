"""Seeds: points in a table, one line for each, one number for each spatial axis; or of other programs.

The first line of the file decides between three orders of axes. Without names, columns are Z,R,C as on the
command line: the position along the axis of the planes, then row and column; so are "slice", "row" and
"column" in any order. Columns "axis-0", "axis-1", ... are those of the layer that napari shows, and so are
"z", "y" and "x". Columns "i", "j" and "k" are the array's own.

How cells are divided: `tables`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.skeletons import SUFFIXES, is_catmaid, read_trees
from napari_lowlat_seg.io.tables import is_number, read_rows, read_text

PLAIN = (("slice", "row", "column"), ("slice", "row", "col"), ("plane", "row", "col"), ("z", "r", "c"))
"""Names of columns that count as the command line does."""

COORDINATES = {"x", "y", "z", "t", "position", "axis", "slice", "plane", "row", "col", "column"}
"""Words in the names of columns that say an order of axes, also where we do not know which."""


def read_seeds(
    path: Path,
    volume: Volume,
    axis: int = 0,
    shown: Sequence[int] | None = None,
    unit: str | None = None,
) -> list[list[tuple[float, ...]]]:
    """The points of each object of a file: one in a table, all nodes of a tree in a skeleton.

    Parameters
    ----------
    path
        As of `read_points`; or a skeleton or selection, as of `skeletons.read_trees`.
    axis, shown
        As of `read_points`.
    unit
        As of `read_trees`; for skeletons and selections only.

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        As these two.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of points at {path}; check the path")
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or (suffix == ".csv" and is_catmaid(_first_row(path))):
        return read_trees(path, volume, unit)
    if unit is not None:
        raise ValueError(f"--unit is for skeletons; the table {path} counts voxels")
    return [[point] for point in read_points(path, volume, axis, shown)]


def _first_row(path: Path) -> list[str]:
    return next((row for row in read_rows(read_text(path)) if any(row)), [])


def read_points(
    path: Path, volume: Volume, axis: int = 0, shown: Sequence[int] | None = None
) -> list[tuple[float, ...]]:
    """The points of a .csv file, in the axis order of the volume and in voxels, centres on integers.

    A byte order mark, empty lines, comments and columns with other names than those of axes are ignored.

    Parameters
    ----------
    axis
        The axis of the volume along which Z,R,C of files without names count Z.
    shown
        The axes of the volume in the order in which napari shows them; None for the volume's own.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        For other lines, no points, numbers that are not finite and points outside the volume.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of points at {path}; check the path")
    try:
        rows = [row for row in read_rows(read_text(path)) if any(row)]
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as points: {error}") from error
    columns, axes = None, [axis, *(one for one in range(volume.ndim) if one != axis)]
    if rows and not any(is_number(cell) for cell in rows[0]):
        columns, axes = named_columns(path, rows.pop(0), axes, shown or range(volume.ndim))
    points = [_point(path, row, volume, columns, axes) for row in rows]
    if not points:
        raise ValueError(f"{path} must hold at least one point; it has none")
    return points


def named_columns(
    path: Path, names: Sequence[str], plain: Sequence[int], shown: Sequence[int]
) -> tuple[list[int] | None, list[int]]:
    """The columns that hold coordinates (None for all), and the axis of the volume for each of them.

    Parameters
    ----------
    path
        Of the table, for the sentence.
    names
        Of all columns.
    plain, shown
        The axes of the volume in the order of the command line, and in that of napari.

    Raises
    ------
    ValueError
        For names of coordinates that are not those of all axes.
    """
    names = [name.lower() for name in names]
    count = len(shown)
    expected = (
        ([f"axis-{i}" for i in range(count)], shown),
        (list("tzyx"[-count:]), shown),
        (list("ijkl"[:count]), range(count)),
        *((list(one[-count:]), plain) for one in PLAIN),
    )
    for wanted, axes in expected:
        if len(wanted) == count and all(name in names for name in wanted):
            return [names.index(name) for name in wanted], list(axes)
    known = {name for wanted, _ in expected for name in wanted}
    # "X (µm)", "Position X": an order that is not ours, or another unit.
    words = {word for name in names for word in re.findall("[a-z]+", name)}
    if known & set(names) or COORDINATES & words:
        raise ValueError(
            f"{path} must have columns for all {count} axes, such as {','.join(expected[1][0])}; "
            f"got {','.join(names)}"
        )
    return None, list(plain)


def _point(
    path: Path, row: list[str], volume: Volume, columns: list[int] | None, axes: Sequence[int]
) -> tuple[float, ...]:
    text = ",".join(row)
    cells = row if columns is None else [row[i] for i in columns if i < len(row)]
    if len(cells) != volume.ndim or not all(is_number(cell) for cell in cells):
        raise ValueError(
            f"{path} must hold {volume.ndim} numbers per line, inside a volume of {volume.shape}; "
            f"got {text!r}"
        )
    point = [0.0] * volume.ndim
    for place, cell in zip(axes, cells, strict=True):
        point[place] = float(cell)
    if not all(math.isfinite(value) for value in point):
        raise ValueError(f"{path} must hold finite numbers; got {text!r}")
    if not all(-0.5 <= value <= length - 0.5 for value, length in zip(point, volume.shape, strict=True)):
        most = ",".join(str(volume.shape[place] - 1) for place in axes)
        raise ValueError(f"{path} has a point outside the volume, whose last voxel is {most}; got {text!r}")
    return tuple(point)
