"""Training pictures: every one lies decoded in memory, with the objects that may be targets.

A folder holds DOMAIN/images/SET/NAME.* and DOMAIN/masks/SET/NAME.png, whose pixel values are object ids.
"""

from __future__ import annotations

import math
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
