"""Labels on disk: a pyramid in a Labels layer, for accepted objects that do not fit into memory.

napari shows the level that the window needs and does not paint on it; what is accepted is written on all
levels at once. Why, and from which size on: docs/decisions/labels-on-disk.md.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Labels

from napari_lowlat_seg.annotation.journal.encoding import AboutLabels
from napari_lowlat_seg.annotation.limits import RecentParts
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.labels import LabelEdit, LabelStore
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.chunked.zarr_labels import LabelPyramid, folder_of
from napari_lowlat_seg.io.placed import usual_geometry
from napari_lowlat_seg.plugin.labels.alignment import fits, laid_on, written_pyramid
from napari_lowlat_seg.plugin.labels.lazy_array import LazyArray
from napari_lowlat_seg.plugin.labels.memory_labels import LabelLayer, in_new_layer
from napari_lowlat_seg.plugin.layers.grid import Grid
from napari_lowlat_seg.plugin.layers.napari_layers import add_quietly
from napari_lowlat_seg.plugin.saving import layer_geometry

IN_MEMORY = 2**30
"""Labels of more voxels than this, 2 GiB of 16 bits, are kept on disk."""

PLANE_IN_MEMORY = 2**26
"""So are labels whose planes have more: napari would draw each of them whole."""


class DiskLabels:
    """A multiscale Labels layer on an image's grid, read and written box by box.

    Parameters
    ----------
    layer
        A multiscale Labels layer over numpy or zarr arrays, or dask arrays of a file that is found again.
    grid
        The image's.
    pyramid
        The arrays to write to; None for those that the layer shows.

    Raises
    ------
    ValueError
        For a layer that does not fit the grid, with the sentence of `fits`.
    """

    def __init__(self, layer: Any, grid: Grid, pyramid: LabelPyramid | None = None) -> None:
        unfit, laid_out = fits(layer, grid), laid_on(layer, grid)
        pyramid = pyramid or written_pyramid(layer)
        if unfit is not None or laid_out is None or pyramid is None:
            raise ValueError(unfit)
        self.layer = getattr(layer, "__wrapped__", layer)
        self._pyramid = pyramid.keyed(laid_out.key)
        self._recent = RecentParts(lambda plane, box: self._pyramid.read(plane, box))
        self.about = about_disk(layer.name, pyramid, layer.source.path)
        if not all(isinstance(level, LazyArray) for level in self.layer.data):
            self._show()

    @property
    def finest(self) -> Any:
        """The array that objects are written to."""
        return self._pyramid.levels[0]

    def attach(self, on_stroke: Callable[[Sequence[LabelEdit]], None]) -> None:
        """Nothing: napari does not paint on a pyramid."""

    def detach(self) -> None:
        """Nothing, as `attach`."""

    def read(self, plane: Plane, box: BoundingBox) -> np.ndarray:
        """A copy of the labels inside a box of a plane: (rows, cols) of the layer's type."""
        return self._pyramid.read(plane, box)

    def read_recent(self, plane: Plane, box: BoundingBox) -> np.ndarray:
        """As `read`, perhaps without what another program has written meanwhile; not to be changed."""
        return self._recent(plane, box)

    def write(self, edits: Sequence[LabelEdit]) -> None:
        """Make the edits, on all levels; what is in view is drawn anew."""
        self._recent.clear()
        self._pyramid.write(edits)
        self.layer.data[-1].renew()
        self.layer.refresh()

    def _show(self) -> None:
        """Let napari see what is on disk: dask arrays would show what they have read before."""
        # napari begins with the coarsest level then, and with these corners of whichever it showed before.
        coarsest = np.array(self._pyramid.levels[-1].shape)
        self.layer.corner_pixels = np.stack([np.zeros_like(coarsest), coarsest - 1])
        self.layer.data = LazyArray.pyramid(self._pyramid.levels)

    def highest(self) -> int:
        """The highest label; see `LabelPyramid.highest` for how long it may take."""
        return self._pyramid.highest()

    look_through = highest


def store_of(layer: Any, grid: Grid) -> LabelLayer | DiskLabels:
    """What writes to a Labels layer.

    Raises
    ------
    ValueError
        In one sentence, where it does not fit the grid, and as `claim` where it lies on disk.
    """
    store = DiskLabels(layer, grid) if layer.multiscale else LabelLayer(layer, grid)
    finest = store.finest if isinstance(store, DiskLabels) else layer.data
    place = folder_of(finest)
    if place is not None and place.is_dir():
        claim(place.parent)
    return store


def opening(grid: Grid, path: Path) -> Callable[[], LabelPyramid]:
    """Work that opens the OME-Zarr labels at a path, or makes them, and finds their highest id.

    It takes seconds the first time, so it is for a thread of its own. Raises ValueError if there is something
    else at the path, OSError if nothing can be written there, ImportError without zarr and ome-zarr.
    """
    like = _described(grid)

    def work() -> LabelPyramid:
        pyramid = LabelPyramid.at(path, like)
        claim(path)
        pyramid.place, pyramid.empty = str(path), pyramid.highest() == 0
        return pyramid

    return work


def shown(viewer: Any, grid: Grid, pyramid: LabelPyramid) -> DiskLabels | LabelLayer:
    """Labels on disk in a new layer right above the image; what was selected stays selected.

    Small ones have one level only, which napari can paint on as on any other.
    """
    first, *more = pyramid.levels
    data = LazyArray.pyramid(pyramid.levels) if more else first
    name = f"{grid.layer.name} [lowlat] objects"
    layer = Labels(data, multiscale=bool(more), name=name, **grid.place)
    add_quietly(viewer, layer, above=grid.layer)
    if more:
        return DiskLabels(layer, grid, pyramid)
    pyramid.uncounted()
    store = LabelLayer(layer, grid)
    store.about = about_disk(layer.name, pyramid)
    return store


def about_disk(name: str, pyramid: LabelPyramid, place: Any = None) -> AboutLabels:
    """What a session keeps of labels on disk; their content is known if there was none."""
    place = str(pyramid.place or place or "a pyramid that was opened elsewhere")
    dtype = np.dtype(pyramid.levels[0].dtype)
    return AboutLabels(dtype, name, place, b"" if pyramid.empty else None)


def restored(viewer: Any, grid: Grid, labels: LabelStore, about: AboutLabels) -> DiskLabels | LabelLayer:
    """Labels of a restored session in a new layer: those on disk, or an array of its own as `about` says."""
    if isinstance(labels, LabelPyramid):
        return shown(viewer, grid, labels)
    data: np.ndarray = labels.data  # type: ignore[attr-defined]
    return in_new_layer(viewer, grid, data, about)


_claims: dict[tuple[int, int], int] = {}
"""Open handles of the folders that this process writes to, by device and inode: a name may change."""


def claim(path: Path) -> None:
    """Keep other processes from writing to labels on disk, until this one ends.

    Raises
    ------
    ValueError
        If another one does. Where the system has no such locks, nothing is done.
    """
    try:
        import fcntl
    except ImportError:
        return
    handle = os.open(path, os.O_RDONLY)
    facts = os.fstat(handle)
    if (facts.st_dev, facts.st_ino) in _claims:
        os.close(handle)
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(
            f"{path} is written by another window; close it there, or choose other labels"
        ) from None
    except OSError:  # a file system without locks
        os.close(handle)
        return
    _claims[facts.st_dev, facts.st_ino] = handle


def fit_memory(shape: Sequence[int]) -> bool:
    """Whether labels of a shape are kept in memory: no more voxels, and no more pixels in any plane."""
    rows, cols = sorted(shape)[-2:]
    return math.prod(shape) <= IN_MEMORY and rows * cols <= PLANE_IN_MEMORY


def beside(layer: Any) -> Path | None:
    """Where the labels of an image layer are kept: beside its file; None for one that has no file here."""
    path = layer.source.path
    if not path or "://" in str(path):
        return None
    place = Path(path)
    outermost = next((one for one in reversed([place, *place.parents]) if one.suffix == ".zarr"), place)
    stem = re.sub(r"(\.ome)?\.[^.]+$", "", outermost.name)
    return outermost.with_name(f"{stem}.labels.ome.zarr")


def _described(grid: Grid) -> Volume:
    """An empty volume of the shape of a layer on this grid, with its axes, units and place.

    Raises
    ------
    ValueError
        For a layer that is turned or mirrored in the world, which OME-Zarr cannot say.
    """
    layer = grid.layer
    names = [str(label) for label in layer.axis_labels]
    usual = iter(usual_geometry(len(grid.axes)).names)
    if any(name.startswith("-") for name in names) and grid.channel_axis is not None:
        names = ["c" if axis == grid.channel_axis else next(usual) for axis in range(grid.ndim)]
    geometry = layer_geometry(names, layer.units, grid.matrix)
    if not geometry.straight or geometry.nearest != tuple(range(grid.ndim)) or min(geometry.signs) < 0:
        raise ValueError(
            f"{layer.name!r} is turned or mirrored, which labels on disk cannot say; use a layer that is not"
        )
    return Volume(np.broadcast_to(np.uint8(0), grid.shape), geometry.spacing, geometry=geometry)
