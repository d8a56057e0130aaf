"""Seeds from other programs: nodes of skeletons (SWC, webKnossos, CATMAID) and point selections of Fiji.

Each tree of a skeleton is one object, each point of a selection too. The files count x, y, z; here they
become voxels in the order of the image's array.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from napari_lowlat_seg.core.geometry import find_unit
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.format_table import needed
from napari_lowlat_seg.io.placed import geometry_of
from napari_lowlat_seg.io.tables import read_rows, read_text

Tree = list[tuple[float, float, float]]
"""The (x, y, z) of nodes."""

LARGEST = 2**28
"""Bytes that an archive of selections may unpack to."""

VOXEL = "voxel"
"""The unit of coordinates that count voxels."""

CATMAID = ("skeleton_id", "x", "y", "z")
"""Columns of CATMAID's table of nodes."""


def is_catmaid(columns: Sequence[str]) -> bool:
    """Whether the first line of a table names CATMAID's columns."""
    return set(CATMAID) <= {name.strip().lower() for name in columns}


def read_trees(path: Path, volume: Volume, unit: str | None = None) -> list[list[tuple[float, ...]]]:
    """The points of each object of a file, in voxels of a volume and the order of its axes.

    Parameters
    ----------
    path
        .swc, .nml (webKnossos), .csv with CATMAID's columns, .roi, or .zip of those.
    unit
        Of x, y and z in the world of the image, or "voxel"; None for that of the format: voxels of the data
        set in .nml and Fiji's files, nm in CATMAID's. A .swc has none.

    Raises
    ------
    ValueError
        For damaged files, a .swc without a unit, points outside the volume, and an image that is no volume.
    ImportError
        For .roi and .zip without the extra `roi`.
    """
    read = _READERS[path.suffix.lower()]
    try:
        trees, own = read(path)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # the parsers raise whatever the damaged bytes lead them to
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the system's own
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as points: it is damaged or of another kind ({reason})"
        ) from error
    trees = [tree for tree in trees if tree]
    if not trees:
        raise ValueError(f"{path} must hold at least one point; it has none")
    if unit is None and own is None:
        raise ValueError(f"{path} says no unit of its coordinates; give --unit {VOXEL}, nm, µm or mm")
    place = _placing(path, volume, unit or str(own))
    return [[_checked(path, place(node), volume, node) for node in tree] for tree in trees]


def _placing(path: Path, volume: Volume, unit: str) -> Callable[[Sequence[float]], tuple[float, ...]]:
    """From (x, y, z) in a unit to voxels in the order of the volume's axes."""
    geometry = geometry_of(volume)
    names = [axis.name for axis in geometry.world]
    if names != ["z", "y", "x"]:
        raise ValueError(f"the points of {path} have x, y, z; the image has the axes {', '.join(names)}")
    if unit == VOXEL:
        order = np.argsort(geometry.shown_order)
        return lambda node: tuple(float(node[2 - i]) for i in order)
    known = find_unit(unit)
    if known is None or known.kind != "space":
        raise ValueError(f"{unit!r} is no unit of length; give {VOXEL}, nm, µm or mm")
    if geometry.unit is None:
        raise ValueError(
            f"the image names no unit, so {known.symbol} mean nothing in it; give --unit {VOXEL}"
        )
    there = geometry.in_unit(known.symbol)
    return lambda node: tuple(float(x) for x in there.to_index(tuple(node)[::-1]))


def _checked(
    path: Path, point: tuple[float, ...], volume: Volume, node: Sequence[float]
) -> tuple[float, ...]:
    if not all(math.isfinite(x) for x in point):
        raise ValueError(f"{path} must hold finite numbers; got {tuple(node)}")
    if not all(-0.5 <= x <= n - 0.5 for x, n in zip(point, volume.shape, strict=True)):
        voxel = ", ".join(f"{x:.4g}" for x in point)
        raise ValueError(
            f"{path} has a point outside the volume of shape {volume.shape}: x, y, z = {tuple(node)} is "
            f"voxel ({voxel}); check the unit"
        )
    return point


def _swc(path: Path) -> tuple[list[Tree], str | None]:
    """Lines of id, type, x, y, z, radius, parent; a parent of -1 begins a tree."""
    tree_of: dict[int, int] = {}
    trees: list[Tree] = []
    lines = [line.split() for line in path.read_text("utf-8-sig").splitlines()]
    nodes = {int(cells[0]): cells for cells in lines if cells and not cells[0].startswith("#")}
    for node in nodes:
        way = []
        while node not in tree_of and node in nodes:  # a node may come before its parent
            way.append(node)
            tree_of[node] = -1
            node = int(nodes[node][6])
        number = tree_of.get(node, -1)
        if number < 0:
            if node in nodes:
                raise ValueError("its nodes go round in a circle")
            number = len(trees)
            trees.append([])
        for one in way:
            tree_of[one] = number
            x, y, z = (float(cell) for cell in nodes[one][2:5])
            trees[number].append((x, y, z))
    return trees, None


def _nml(path: Path) -> tuple[list[Tree], str | None]:
    """webKnossos: a `thing` is a tree, its nodes count voxels of the data set."""
    text = path.read_text("utf-8-sig")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("declarations are not read")
    root = ElementTree.fromstring(text)
    if root.tag != "things":
        raise ValueError("no element 'things'")
    trees = [
        [(float(n.attrib["x"]), float(n.attrib["y"]), float(n.attrib["z"])) for n in thing.iter("node")]
        for thing in root.iter("thing")
    ]
    return trees, VOXEL


def _catmaid(path: Path) -> tuple[list[Tree], str | None]:
    """A line for each node, in nm of the project."""
    trees: dict[str, Tree] = {}
    names, *rows = (row for row in read_rows(read_text(path)) if any(row))
    for row in rows:
        cells = dict(zip((name.lower() for name in names), row))
        x, y, z = (float(cells[name]) for name in "xyz")
        trees.setdefault(cells["skeleton_id"], []).append((x, y, z))
    return list(trees.values()), "nm"


def _fiji(path: Path) -> tuple[list[Tree], str | None]:
    """Every point of every point selection is a tree of its own."""
    roifile = needed("roifile", "a selection of Fiji", "roi")
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST >> 20} MiB")
    found = roifile.roiread(path)
    trees: list[Tree] = []
    for roi in found if isinstance(found, list) else [found]:
        name = roi.name or "a selection"
        if roi.roitype != roifile.ROI_TYPE.POINT:
            raise ValueError(f"{name} is no selection of points but {roi.roitype.name}")
        # With parts of a pixel the first pixel reaches from 0 to 1; without them it is 0.
        half = 0.5 if roi.subpixelresolution else 0.0
        points = np.asarray(roi.coordinates(), float) - half
        slices = roi.counter_positions
        own = [] if slices is None else [int(at) for at in slices[: len(points)]]
        for (x, y), at in zip(points.tolist(), own + [0] * (len(points) - len(own)), strict=True):
            at = at or roi.z_position or roi.position
            if at < 1:
                raise ValueError(f"{name} says no slice")
            trees.append([(x, y, at - 1.0)])
    return trees, VOXEL


_READERS: Mapping[str, Callable[[Path], tuple[list[Tree], str | None]]] = {
    ".swc": _swc,
    ".nml": _nml,
    ".csv": _catmaid,
    ".roi": _fiji,
    ".zip": _fiji,
}

SUFFIXES = tuple(suffix for suffix in _READERS if suffix != ".csv")
"""Of files that hold x, y, z and nothing else; a .csv has CATMAID's columns, or it is a table of points."""
