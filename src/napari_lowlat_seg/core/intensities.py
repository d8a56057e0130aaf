"""From the numbers of an image to black and white: which intensities to show, and pixels of 8 bits."""

from __future__ import annotations

import numpy as np

SAMPLED_PIXELS = 2**22
"""Percentiles are taken of about this many pixels: of every pixel up to twice as many."""


def intensity_window(pixels: np.ndarray) -> tuple[float, float]:
    """The (low, high) intensities to show as black and white.

    uint8 gives (0, 255) and bool (0, 1), so that they pass unchanged. Everything else gives the 0.5 and 99.5
    percentiles of the finite values, or their extremes when these percentiles are equal; constant pixels of
    value v give (v, v + 1).

    Raises ValueError for empty pixels, pixels without a finite value, and types that are not real numbers.
    """
    pixels = _real(pixels)
    if pixels.dtype == np.bool_:
        return (0.0, 1.0)
    if pixels.dtype == np.uint8:
        return (0.0, 255.0)
    flat = pixels.ravel()
    finite = flat[:: max(1, flat.size // SAMPLED_PIXELS)]
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        finite = flat[np.isfinite(flat)]
    if finite.size == 0:
        raise ValueError(f"an image needs at least one finite pixel; all {pixels.size} are NaN or infinite")
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = (float(v) for v in np.percentile(finite.astype(np.float64), (0.5, 99.5)))
    if not (low < high and np.isfinite(high - low)):
        low, high = float(finite.min()), float(finite.max())
    if low < high:
        return (low, high)
    # Adding 1 to a very large constant may round to the same number, and above the largest there is none.
    with np.errstate(over="ignore"):
        above = max(low + 1.0, float(np.nextafter(low, np.inf)))
    return (low, above) if np.isfinite(above) else (float(np.nextafter(low, 0.0)), low)


def to_uint8(pixels: np.ndarray, window: tuple[float, float] | None = None) -> np.ndarray:
    """Pixels as uint8, `window` stretched to 0..255; outside is clipped, NaN becomes 0. Does not mutate.

    Parameters
    ----------
    pixels
        (rows, cols) or (rows, cols, 3) of any real type.
    window
        (low, high) with low < high; None chooses it with `intensity_window`.

    Raises ValueError for empty pixels, pixels without a finite value, other shapes, complex or non-numeric
    types, and a window that is not increasing.
    """
    pixels = _real(pixels)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(f"an image must be (rows, cols) or (rows, cols, 3); got shape {pixels.shape}")
    finite_somewhere = pixels.dtype.kind != "f" or bool(np.isfinite(pixels).any())
    if not finite_somewhere:
        raise ValueError(f"an image needs at least one finite pixel; all {pixels.size} are NaN or infinite")
    low, high = intensity_window(pixels) if window is None else (float(window[0]), float(window[1]))
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"an intensity window needs finite low < high; got ({low}, {high})")
    if pixels.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return pixels
    # 16-bit types are exact in float32; wider ones, and windows beyond it, need float64.
    narrow = pixels.dtype.itemsize <= 2 and max(abs(low), abs(high)) < 1e30
    scaled = np.clip(pixels.astype(np.float32 if narrow else np.float64), low, high)
    if not np.isfinite(high - low):  # the whole range of float64
        scaled, low, high = scaled / 2, low / 2, high / 2
    scaled -= low
    scaled /= high - low
    scaled *= 255
    scaled += 0.5
    np.nan_to_num(scaled, copy=False, nan=0.0)
    shown: np.ndarray = scaled.astype(np.uint8)
    return shown


def _real(pixels: np.ndarray) -> np.ndarray:
    pixels = np.asarray(pixels)
    if pixels.dtype.kind not in "buif":
        raise ValueError(f"an image needs real numbers; got type {pixels.dtype}")
    if pixels.size == 0:
        raise ValueError(f"an image needs at least one pixel; got shape {pixels.shape}")
    return pixels
