"""Ground truth: reads pictures and masks, and makes one object's truth by the rule of its data set.

A *truth* is (H, W) int8: 1 object, 0 background, -1 ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from skimage.measure import label as connected

from napari_lowlat_seg.evaluation.inputs import coco_lvis


def read_picture(path: Path) -> np.ndarray:
    """Read (H, W) or (H, W, 3) pixels of a picture file in their own type; palettes and alpha become RGB.

    Raises
    ------
    ValueError
        If the file cannot be read as one picture.
    """
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            pixels = np.squeeze(tifffile.imread(path))
        else:
            with Image.open(path) as picture:
                plain = picture.mode in ("L", "RGB", "I", "F") or picture.mode.startswith("I;16")
                pixels = np.asarray(picture if plain else picture.convert("RGB"))
    except Exception as problem:  # PIL and tifffile raise a dozen types for damaged files
        raise ValueError(f"expected a picture in {path}, but it cannot be read: {problem}") from problem
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[..., :3]
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ValueError(f"expected one gray or RGB picture in {path}, got an array of shape {pixels.shape}")
    return pixels


def read_mask(path: Path) -> np.ndarray:
    """Read (H, W) or (H, W, 3) values of a mask file: ids of any type, palette indices as they are.

    Raises ValueError for a file that cannot be read.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        try:
            with Image.open(path) as picture:
                if picture.mode in ("P", "1"):
                    return np.asarray(picture).astype(np.uint8)
        except OSError as problem:
            raise ValueError(f"expected a mask in {path}, but it cannot be read: {problem}") from problem
    return read_picture(path)


@dataclass(frozen=True)
class Rule:
    """How a mask file is read (path, value to ignore), and how an object's truth is made of its values."""

    read: Callable[[Path, int | None], np.ndarray]
    truth: Callable[[np.ndarray, int], np.ndarray]


def _nonzero(values: np.ndarray, label: int) -> np.ndarray:
    """Any non-zero value of any channel."""
    inside = values.max(axis=2) if values.ndim == 3 else values
    truth: np.ndarray = (inside > 0).astype(np.int8)
    return truth


def _first_channel(values: np.ndarray, label: int) -> np.ndarray:
    """Non-zero values of OpenCV's first channel, blue."""
    inside = values[..., 2] if values.ndim == 3 else values
    truth: np.ndarray = (inside > 0).astype(np.int8)
    return truth


def _trimap(values: np.ndarray, label: int) -> np.ndarray:
    """Above 128 object, 128 ignored; of the values below only 1 is object, as published."""
    gray = values[..., 2] if values.ndim == 3 else values
    truth: np.ndarray = ((gray > 128) | (gray == 1)).astype(np.int8)
    truth[gray == 128] = -1
    return truth


def _of_id(values: np.ndarray, label: int) -> np.ndarray:
    truth: np.ndarray = (values == label).astype(np.int8)
    truth[values == -1] = -1
    return truth


def _read_ids(path: Path, ignore: int | None) -> np.ndarray:
    """(H, W) int64 ids, -1 where they are to be ignored."""
    ids = read_mask(path).astype(np.int64)
    if ids.ndim != 2:
        raise ValueError(f"expected a mask of ids with one channel in {path}, got shape {ids.shape}")
    if ignore is not None:
        ids[ids == ignore] = -1
    return ids


def _read_parts(path: Path, ignore: int | None) -> np.ndarray:
    """8-connected parts of one id each, numbered from 1; -1 as in the ids."""
    ids = _read_ids(path, ignore)
    return np.where(ids == -1, -1, connected(np.maximum(ids, 0), connectivity=2, background=0))


def _read_mitochondria(path: Path, ignore: int | None = None) -> np.ndarray:
    """8-connected parts of non-zero values, as the published protocol counts them in effect."""
    values = read_mask(path)
    parts: np.ndarray = connected((values.max(axis=2) if values.ndim == 3 else values) > 0, connectivity=2)
    return parts


def _packed(layers: np.ndarray, label: int) -> np.ndarray:
    layer, value = divmod(label, coco_lvis.LAYER)
    return np.asarray(layers[layer] == value, np.int8)


RULES: dict[str, Rule] = {
    "nonzero": Rule(lambda path, _: read_mask(path), _nonzero),
    "first channel": Rule(lambda path, _: read_mask(path), _first_channel),
    "trimap": Rule(lambda path, _: read_mask(path), _trimap),
    "id": Rule(_read_ids, _of_id),
    "part": Rule(_read_parts, _of_id),
    "mitochondrion": Rule(_read_mitochondria, _of_id),
    "packed": Rule(lambda path, _: coco_lvis.read_layers(path), _packed),
}
