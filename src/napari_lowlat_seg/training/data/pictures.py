"""Training pictures: decoded in memory, with the objects that may be targets, and cropped on the device.

A folder holds DOMAIN/images/SET/NAME.* and DOMAIN/masks/SET/NAME.png, whose pixel values are object ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects
from torch import Tensor

MIN_AREA = 24  # pixels; smaller objects are no targets
MIN_AREAS = {"flyem_medulla": 100}  # of sets with many slivers


@dataclass(frozen=True)
class Picture:
    """One decoded picture.

    Attributes
    ----------
    pixels
        (3, H, W) uint8 RGB.
    ids
        (H, W) int32: the object that a pixel belongs to, 0 for none.
    objects, areas
        (N,): the ids of the objects that may be targets, and their areas in pixels.
    boxes
        (N, 4): top, left, bottom, right; bottom and right exclusive.
    """

    pixels: Tensor
    ids: Tensor
    objects: NDArray[np.int64]
    areas: NDArray[np.float64]
    boxes: NDArray[np.float64]


@dataclass(frozen=True)
class PictureSet:
    """The pictures of one source, and the share of all views that is taken from them."""

    name: str
    share: float
    pictures: list[Picture]


def read_picture(image_path: Path, mask_path: Path, min_area: int) -> Picture | None:
    """Return the picture, or None if no object has `min_area` pixels.

    Parameters
    ----------
    image_path
        Anything that Pillow reads as RGB.
    mask_path
        A PNG of the same size whose pixel values are object ids, 0 for background.
    least_area
        In pixels.

    Raises
    ------
    ValueError
        If the sizes differ.
    """
    pixels = np.asarray(Image.open(image_path).convert("RGB"))
    ids = np.asarray(Image.open(mask_path)).astype(np.int32)
    if ids.shape != pixels.shape[:2]:
        raise ValueError(
            f"expected a mask of {pixels.shape[:2]} for {image_path}, got {ids.shape} in {mask_path}"
        )
    areas = np.bincount(ids.ravel())
    found = [
        (number, areas[number], (box[0].start, box[1].start, box[0].stop, box[1].stop))
        for number, box in enumerate(find_objects(ids), start=1)
        if box is not None and areas[number] >= min_area
    ]
    if not found:
        return None
    objects, kept, boxes = zip(*found, strict=True)
    return Picture(
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        torch.from_numpy(ids),
        np.array(objects),
        np.array(kept, dtype=np.float64),
        np.array(boxes, dtype=np.float64),
    )


def read_sets(
    root: Path, domains: dict[str, float], extra: dict[str, float], limit: int | None = None
) -> list[PictureSet]:
    """Read all sets under `root`: `DOMAIN/images/SET/NAME.*` with `DOMAIN/masks/SET/NAME.png`.

    Parameters
    ----------
    domains
        Share of all views of every domain, divided among its sets by the square roots of their sizes.
    extra
        Factors on the share of single sets.
    limit
        Pictures per set, the first in order of name; all if None.

    Raises
    ------
    ValueError
        For a domain without a picture that shows an object, a factor for a set that is not there, or a mask
        of another size than its picture.
    """
    sets: list[PictureSet] = []
    for domain, share in domains.items():
        folders = sorted(path for path in (root / domain / "images").glob("*") if path.is_dir())
        loaded = [(folder.name, _read_set(folder, limit)) for folder in folders]
        loaded = [(name, pictures) for name, pictures in loaded if pictures]
        if not loaded:
            raise ValueError(
                f"expected pictures with objects under {root / domain / 'images'}/SET/, found none; "
                f"check `data`, or leave {domain!r} out of `domains`"
            )
        weights = [math.sqrt(len(pictures)) * extra.get(name, 1.0) for name, pictures in loaded]
        sets += [
            PictureSet(name, share * weight / sum(weights), pictures)
            for (name, pictures), weight in zip(loaded, weights, strict=True)
        ]
    names = [each.name for each in sets]
    unknown = sorted(set(extra) - set(names))
    if unknown:
        raise ValueError(f"expected `shares` of sets out of {names}, got {unknown}; remove or rename them")
    return sets


def _read_set(folder: Path, limit: int | None) -> list[Picture]:
    """The pictures of `DOMAIN/images/SET` that show an object."""
    masks = folder.parents[1] / "masks" / folder.name
    least = MIN_AREAS.get(folder.name, MIN_AREA)
    with ThreadPoolExecutor() as pool:
        paths = sorted(folder.iterdir())[:limit]
        read = pool.map(lambda path: read_picture(path, masks / f"{path.stem}.png", least), paths)
        return [picture for picture in read if picture is not None]


MAX_STEP = 1.5  # picture pixels per view pixel up to which one sample is taken; beyond it four are averaged


@dataclass(frozen=True, eq=False)
class Crop:
    """The geometry of one view.

    Attributes
    ----------
    picture
        Its number in the store.
    targets
        The one or two ids that are the object.
    view
        Top, left and side in picture pixels.
    matrix
        From `views.warp`: applied about the centre of the part of the picture that the view shows.
    """

    picture: int
    targets: tuple[int, ...]
    view: tuple[float, float, float]
    matrix: NDArray[np.float64]


class PictureStore:
    """All pictures end to end on one device, so that all views of a batch are sampled by one kernel.

    View by view, a batch takes the host longer than a training step takes the device.
    """

    def __init__(self, pictures: Sequence[Picture], device: str) -> None:
        self.shapes = [(picture.ids.shape[0], picture.ids.shape[1]) for picture in pictures]
        self.starts = np.cumsum([0] + [rows * cols for rows, cols in self.shapes])
        total = int(self.starts[-1])
        self.pixels = torch.empty((total, 3), dtype=torch.uint8, device=device)
        self.ids = torch.empty(total, dtype=torch.int32, device=device)
        for picture, start in zip(pictures, self.starts.tolist(), strict=False):
            span = slice(start, start + picture.ids.numel())
            self.pixels[span] = picture.pixels.permute(1, 2, 0).reshape(-1, 3).to(device)
            self.ids[span] = picture.ids.flatten().to(device)

    def sample(self, crops: Sequence[Crop], size: int) -> Tensor:
        """Return views (B, 5, size, size) float32: RGB in 0..255, coverage by the object, validity."""
        geometry, source = self.locate(crops, size)
        return self.sample_at(geometry, source, size, any(crop.view[2] > MAX_STEP * size for crop in crops))

    def locate(self, crops: Sequence[Crop], size: int) -> tuple[Tensor, Tensor]:
        """Return what `sample_at` needs of crops: geometry (B, 14) float32 and source (B, 5) int64.

        The geometry maps the view's pixels into the picture; the source says where the picture lies in the
        store, its shape, and the ids of the object.
        """
        geometries = np.array([self._geometry(crop, size) for crop in crops], dtype=np.float32)
        sources = np.array(
            [
                (self.starts[crop.picture], *self.shapes[crop.picture], crop.targets[0], crop.targets[-1])
                for crop in crops
            ],
            dtype=np.int64,
        )
        device = self.ids.device
        return _upload(geometries, device), _upload(sources, device)

    def sample_at(self, geometry: Tensor, source: Tensor, size: int, shrinks: bool) -> Tensor:
        """Return the views (B, 5, size, size) of `locate`'s arrays; see `sample`.

        Parameters
        ----------
        geometry, source
            Of `locate`, one row for each view.
        shrinks
            Whether any view needs more than one sample a pixel (`MAX_STEP`).
        """
        sample = _compiled_sample if self.ids.is_cuda else _sample
        return sample(self.pixels, self.ids, geometry, source, size, shrinks)

    def _geometry(self, crop: Crop, size: int) -> tuple[float, ...]:
        """The numbers that `_sample` takes of a view, in its order."""
        top, left, side = crop.view
        rows, cols = self.shapes[crop.picture]
        (yy, yx), (xy, xx) = crop.matrix.tolist()
        # the content keeps the top left corner, as in a letterboxed frame: warp about the content's centre
        high, wide = min(side, rows - top), min(side, cols - left)
        down, across = (wide, high) if yy == xx == 0 else (high, wide)  # a quarter turn lays a strip upright
        # a rotated view also shows the picture beside it
        still = abs(yy) == 1 and abs(xx) == 1
        bounds = (top, left, top + high, left + wide) if still else (0.0, 0.0, rows, cols)
        spread = side / size / 4 if side > MAX_STEP * size else 0.0
        middle = (top + high / 2, left + wide / 2)
        return (side, (side - down) / 2, (side - across) / 2, yy, yx, xy, xx, *middle, *bounds, spread)


def part_geometry(geometry: Tensor, crops: Tensor, size: int) -> Tensor:
    """Return the geometry (N, 14) of square parts of views.

    Parameters
    ----------
    geometry
        Of the views, (N, 14) float32 from `PictureStore.locate`.
    crops
        (N, 3) float32: top, left and side of each part, as fractions of its view's side.
    size
        Side of the parts when sampled, in pixels.
    """
    side, from_y, from_x, *matrix_and_bounds, _ = geometry.unbind(1)
    top, left, fraction = crops.unbind(1)
    part_side = side * fraction
    from_y = from_y + (top + fraction / 2 - 0.5) * side
    from_x = from_x + (left + fraction / 2 - 0.5) * side
    spread = torch.where(part_side > MAX_STEP * size, part_side / size / 4, 0.0)
    return torch.stack([part_side, from_y, from_x, *matrix_and_bounds, spread], 1)


def _upload(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array on the device; the copy is asynchronous."""
    on_host = torch.from_numpy(array)
    return on_host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else on_host


def _sample(
    pixels: Tensor, ids: Tensor, geometry: Tensor, source: Tensor, size: int, shrinks: bool
) -> Tensor:
    """The views of `PictureStore.sample`: bilinear, pixel centres at halves, the border repeated outside."""
    side, from_y, from_x, yy, yx, xy, xx, mid_y, mid_x, top, left, bottom, right, spread = (
        column[:, None, None] for column in geometry.unbind(1)
    )
    start, rows, cols, first, second = (column[:, None, None] for column in source.unbind(1))
    steps = (torch.arange(size, device=ids.device) + 0.5) / size - 0.5
    y = steps[None, :, None] * side + from_y
    x = steps[None, None, :] * side + from_x
    at_y = yy * y + yx * x + mid_y  # (B, S, S), in picture pixels
    at_x = xy * y + xx * x + mid_x
    valid = (at_y >= top) & (at_y < bottom) & (at_x >= left) & (at_x < right)
    colour = torch.zeros((*at_y.shape, 3), device=ids.device)
    cover = torch.zeros_like(at_y)
    corners = [(-1, -1), (-1, 1), (1, -1), (1, 1)] if shrinks else [(0, 0)]
    for step_y, step_x in corners:  # of the view's own pixel grid
        sub_y = (at_y + spread * (yy * step_y + yx * step_x) - 0.5).clamp_min(0).minimum(rows - 1.0)
        sub_x = (at_x + spread * (xy * step_y + xx * step_x) - 0.5).clamp_min(0).minimum(cols - 1.0)
        low_y, low_x = sub_y.floor(), sub_x.floor()
        for down in (0, 1):
            for across in (0, 1):
                row = (low_y.long() + down).minimum(rows - 1)
                col = (low_x.long() + across).minimum(cols - 1)
                share_y = (sub_y - low_y) if down else (1 - (sub_y - low_y))
                share = share_y * ((sub_x - low_x) if across else (1 - (sub_x - low_x))) / len(corners)
                index = start + row * cols + col
                colour = colour + share[..., None] * pixels[index]
                found = ids[index]
                cover = cover + share * ((found == first) | (found == second))
    return torch.cat([colour.permute(0, 3, 1, 2), cover[:, None], valid[:, None].float()], 1)


_compiled_sample = torch.compile(_sample, dynamic=False)
