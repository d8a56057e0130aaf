"""Where two planes look alike: gray pictures of them, and the place for a click that both agree on."""

from __future__ import annotations

import edt
import numpy as np
from scipy.ndimage import gaussian_filter

from napari_lowlat_seg.core.intensities import to_uint8
from napari_lowlat_seg.core.volume import Pictures, Plane

BLUR = 2.0
"""Pixels (standard deviation) over which two planes are compared: noise differs, structures do not."""


def visible(volume: Pictures, plane: Plane) -> bool:
    """Whether there is anything to see: planes without a finite pixel exist in registered stacks."""
    return any_finite(volume.plane(plane))


def any_finite(pixels: np.ndarray) -> bool:
    """Whether a picture has a pixel that is a number."""
    return pixels.dtype.kind != "f" or bool(np.isfinite(pixels).any())


def gray(volume: Pictures, plane: Plane) -> np.ndarray:
    """(rows, cols) float32 from 0 to 255, through the volume's window; the mean of colours."""
    pixels = to_uint8(volume.plane(plane), volume.window).astype(np.float32)
    return pixels if pixels.ndim == 2 else pixels.mean(axis=2)


def seed(
    mask: np.ndarray, before: np.ndarray, here: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)
) -> tuple[int, int]:
    """(row, col) deep inside a mask, where two gray images, smoothed, look alike; not for empty masks.

    The place with the largest depth * exp(-(difference / spread)^2), spread being the standard deviation of
    the first image inside the mask plus one gray level.
    """
    depth = edt.edt(np.ascontiguousarray(mask), anisotropy=spacing, black_border=True, parallel=1)
    first, second = gaussian_filter(before, BLUR), gaussian_filter(here, BLUR)
    spread = float(first[mask].std()) + 1.0
    score = depth * np.exp(-(((second - first) / spread) ** 2))
    # Where nothing looks alike the score may underflow; depth alone decides then.
    row, col = np.unravel_index(int(np.argmax(score if score.max() > 0 else depth)), mask.shape)
    return int(row), int(col)
