"""Training pictures: every one lies decoded in memory, with the objects that may be targets.

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

LEAST_AREA = 24  # pixels of the picture; smaller objects are no targets
LEAST_AREAS = {"flyem_medulla": 100}  # of sets that are full of slivers


@dataclass(frozen=True)
class Picture:
    """One decoded picture.

    Attributes
    ----------
    pixels
        (3, H, W) uint8 RGB.
    ids
        (H, W) int32: which object a pixel belongs to, 0 for none.
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
    """The pictures of one source, and the share of all views that it gets."""

    name: str
    share: float
    pictures: list[Picture]


def read_picture(image_path: Path, mask_path: Path, least_area: int) -> Picture | None:
    """The picture, or None when no object has `least_area` pixels.

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
        if box is not None and areas[number] >= least_area
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
    """All sets under `root`: `DOMAIN/images/SET/NAME.*` with `DOMAIN/masks/SET/NAME.png`.

    Parameters
    ----------
    domains
        Share of all views for every domain. Its sets divide it by the square root of their sizes.
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
    names = [one.name for one in sets]
    unknown = sorted(set(extra) - set(names))
    if unknown:
        raise ValueError(f"expected `shares` of sets out of {names}, got {unknown}; remove or rename them")
    return sets


def _read_set(folder: Path, limit: int | None) -> list[Picture]:
    """The pictures of `DOMAIN/images/SET` that show an object."""
    masks = folder.parents[1] / "masks" / folder.name
    least = LEAST_AREAS.get(folder.name, LEAST_AREA)
    with ThreadPoolExecutor() as pool:
        paths = sorted(folder.iterdir())[:limit]
        read = pool.map(lambda path: read_picture(path, masks / f"{path.stem}.png", least), paths)
        return [one for one in read if one is not None]


FLAT = 1.5  # picture pixels per view pixel up to which one sample is enough; beyond it four are averaged


@dataclass(frozen=True, eq=False)
class Cut:
    """One view to be cut.

    Attributes
    ----------
    picture
        Its number in the atlas.
    targets
        The ids, one or two, that are the object.
    view
        Top, left and side in picture pixels.
    matrix
        From `training_data.warp`: applied about the centre of what the view shows of the picture.
    """

    picture: int
    targets: tuple[int, ...]
    view: tuple[float, float, float]
    matrix: NDArray[np.float64]


class PictureStore:
    """All pictures end to end on one device, so that the views of a batch are cut in one go.

    View by view, a batch cost the host more time than a training step cost the device.
    """

    def __init__(self, pictures: Sequence[Picture], device: str) -> None:
        self.shapes = [(one.ids.shape[0], one.ids.shape[1]) for one in pictures]
        self.starts = np.cumsum([0] + [rows * cols for rows, cols in self.shapes])
        total = int(self.starts[-1])
        self.pixels = torch.empty((total, 3), dtype=torch.uint8, device=device)
        self.ids = torch.empty(total, dtype=torch.int32, device=device)
        for one, start in zip(pictures, self.starts.tolist(), strict=False):
            span = slice(start, start + one.ids.numel())
            self.pixels[span] = one.pixels.permute(1, 2, 0).reshape(-1, 3).to(device)
            self.ids[span] = one.ids.flatten().to(device)

    def cut(self, cuts: Sequence[Cut], size: int) -> Tensor:
        """Views as the network gets them, (B, 5, S, S) float: RGB in 0..255, coverage, validity."""
        numbers = np.array([self._geometry(one, size) for one in cuts], dtype=np.float32)
        places = np.array(
            [
                (self.starts[one.picture], *self.shapes[one.picture], one.targets[0], one.targets[-1])
                for one in cuts
            ],
            dtype=np.int64,
        )
        device = self.ids.device
        geometry, where = (_uploaded(array, device) for array in (numbers, places))
        shrinks = any(one.view[2] > FLAT * size for one in cuts)
        sample = _compiled_sample if self.ids.is_cuda else _sample
        return sample(self.pixels, self.ids, geometry, where, size, shrinks)

    def _geometry(self, one: Cut, size: int) -> tuple[float, ...]:
        """The numbers that `_sample` needs of a view, in its order."""
        top, left, side = one.view
        rows, cols = self.shapes[one.picture]
        (yy, yx), (xy, xx) = one.matrix.tolist()
        # the content keeps the top left corner, as in a letterboxed frame: warp about the content's centre
        high, wide = min(side, rows - top), min(side, cols - left)
        down, across = (wide, high) if yy == xx == 0 else (high, wide)  # a quarter turn lays a strip upright
        # a turned view shows what lies beside it too, as far as the picture goes
        still = abs(yy) == 1 and abs(xx) == 1
        bounds = (top, left, top + high, left + wide) if still else (0.0, 0.0, rows, cols)
        spread = side / size / 4 if side > FLAT * size else 0.0
        middle = (top + high / 2, left + wide / 2)
        return (side, (side - down) / 2, (side - across) / 2, yy, yx, xy, xx, *middle, *bounds, spread)


def _uploaded(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array on the device; nobody waits for it there."""
    here = torch.from_numpy(array)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here


def _sample(pixels: Tensor, ids: Tensor, geometry: Tensor, where: Tensor, size: int, shrinks: bool) -> Tensor:
    """What `Atlas.cut` gives: bilinear samples, pixel centres at halves, the border repeated outside."""
    side, from_y, from_x, yy, yx, xy, xx, mid_y, mid_x, top, left, bottom, right, spread = (
        column[:, None, None] for column in geometry.unbind(1)
    )
    start, rows, cols, one, other = (column[:, None, None] for column in where.unbind(1))
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
                cover = cover + share * ((found == one) | (found == other))
    return torch.cat([colour.permute(0, 3, 1, 2), cover[:, None], valid[:, None].float()], 1)


_compiled_sample = torch.compile(_sample, dynamic=False)
