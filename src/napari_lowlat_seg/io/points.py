"""Points in a table: one line for each, one number for each spatial axis."""

from __future__ import annotations

import csv
from pathlib import Path

from napari_lowlat_seg.core.volume import Volume


def read_points(path: Path, volume: Volume) -> list[tuple[float, ...]]:
    """The points of a .csv file, in the axis order of the volume and in voxels, centres on integers.

    Files that napari has saved, with a header and an index, are read as well.

    Raises
    ------
    ValueError
        For other lines, no points, and points outside the volume.
    """
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and rows[0][-1].strip().startswith("axis"):
        index = rows[0][0].strip() == "index"
        rows = [row[index:] for row in rows[1:]]
    points = []
    for row in rows:
        try:
            point = tuple(float(text) for text in row)
        except ValueError:
            point = ()
        if len(point) != volume.ndim or not all(-0.5 <= x <= n - 0.5 for x, n in zip(point, volume.shape)):
            raise ValueError(
                f"{path} must hold {volume.ndim} numbers per line, inside a volume of {volume.shape}; got "
                f"{','.join(row)!r}"
            )
        points.append(point)
    if not points:
        raise ValueError(f"{path} must hold at least one point; it has none")
    return points
