"""Perturbations of images and clicks as they occur in practice, and a measure of thin objects.

A truth is (H, W): 1 object, 0 background, -1 ignored. Every function is deterministic and does not mutate its
arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import edt
import numpy as np
from skimage.measure import label

from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.evaluation.annotator import deepest, largest_part, next_click

THICK = 3
"""Rows of an image that are averaged to one of the anisotropic one."""

OFF_CENTRE = 0.3
"""Distance of a careless first click from the centre, as a fraction of the inscribed radius."""

THIN = 20.0
"""`thinness` above which an object is thin; a bar five times as long as wide has it."""


def low_contrast(image: np.ndarray) -> np.ndarray:
    """Return an image with its values compressed to a quarter around their mean; integers stay integers."""
    mean = float(image[np.isfinite(image)].mean(dtype=np.float64))
    return _as(mean + (image - mean) / 4, image.dtype)


def noisy(image: np.ndarray) -> np.ndarray:
    """Return an image with Gaussian noise, independent by channel, of a tenth of the range."""
    low, span = _range(image)
    noise = np.random.default_rng(0).standard_normal(image.shape, np.float32)
    return _as(np.clip(image + 0.1 * span * noise, low, low + span), image.dtype)


def inverted(image: np.ndarray) -> np.ndarray:
    """Return an image with dark and bright exchanged within the range."""
    low, span = _range(image)
    return _as(2 * low + span - image, image.dtype)


def hot_pixels(image: np.ndarray) -> np.ndarray:
    """Return an image as a 12-bit camera writes it to uint16, with one pixel in a thousand stuck at 65535."""
    low, span = _range(image)
    seen = _as((image - low) * (4095 / span), np.dtype(np.uint16))
    seen[np.random.default_rng(0).random(image.shape[:2]) < 0.001] = 65535
    return seen


def with_outliers(image: np.ndarray) -> np.ndarray:
    """Return an image as float32 from 0 to 1e-6, 0.1 % of its pixels a million times larger, as many NaN.

    The window of intensities (`core.volume`) must ignore values that are not finite.
    """
    low, span = _range(image)
    seen = ((image - low) * (1e-6 / span)).astype(np.float32)
    chance = np.random.default_rng(0).random(image.shape[:2])
    seen[chance < 0.001] *= 1e6
    seen[chance > 0.999] = np.nan
    return seen


def thick_rows(image: np.ndarray) -> np.ndarray:
    """Return the means of three rows at a time; rows left over at the bottom are cut off."""
    rows = len(image) // THICK
    stacked = image[: rows * THICK].reshape(rows, THICK, *image.shape[1:])
    return _as(stacked.mean(axis=1, dtype=np.float64), image.dtype)


def middle_rows(truth: np.ndarray) -> np.ndarray:
    """Return the truth for `thick_rows`: that of the middle one of every three rows."""
    return truth[THICK // 2 : len(truth) // THICK * THICK : THICK]


@dataclass(frozen=True)
class Perturbation:
    """A change of the image, the same change of the truth, and the (row, col) spacing afterwards."""

    image: Callable[[np.ndarray], np.ndarray]
    truth: Callable[[np.ndarray], np.ndarray] = np.asarray
    spacing: tuple[float, float] = (1.0, 1.0)


PERTURBATIONS: dict[str, Perturbation] = {
    "low contrast": Perturbation(low_contrast),
    "noise": Perturbation(noisy),
    "inverted": Perturbation(inverted),
    "hot pixels": Perturbation(hot_pixels),
    "outliers": Perturbation(with_outliers),
    "anisotropic": Perturbation(thick_rows, middle_rows, (THICK, 1.0)),
}


def off_centre(truth: np.ndarray, rng: np.random.Generator) -> Click:
    """Return the protocol's first click, moved by 30 % of the inscribed radius in a random direction.

    It stays on the object: the pixel nearest to a point so close to the centre is inside the inscribed disk.
    """
    radius, middle = deepest(truth == 1)
    angle = rng.uniform(0, 2 * np.pi)
    row, col = np.rint(middle + OFF_CENTRE * radius * np.array([np.sin(angle), np.cos(angle)]))
    return Click((float(row), float(col)))


def wrong_click(truth: np.ndarray, rng: np.random.Generator) -> Click | None:
    """Return a positive click on the background, one to three inscribed radii outside the object.

    Where there is no such pixel, on the farthest one that there is; None if nothing is background.
    """
    outside = truth == 0
    if not outside.any():
        return None
    radius = deepest(truth == 1)[0]
    distance = np.where(outside, edt.edt(truth != 1, parallel=1), 0)
    candidates = np.flatnonzero((distance >= radius) & (distance <= 3 * radius))
    at = int(rng.choice(candidates)) if candidates.size else int(distance.argmax())
    row, col = divmod(at, truth.shape[1])
    return Click((row, col))


def repairing_click(
    truth: np.ndarray, mask: np.ndarray, prompts: Sequence[Prompt], wrong: Click
) -> Click | None:
    """Return the click that repairs a wrong one: negative, at the deepest pixel of the excess that it caused.

    That excess is the 8-connected part around the wrong click. Where the mask did not follow the wrong click,
    the protocol's next click is returned; None if nothing is wrong at all.
    """
    parts = label((truth == 0) & mask, connectivity=2)
    row, col = (round(v) for v in wrong.at)
    if parts[row, col]:
        depth, at = deepest(parts == parts[row, col], [(row, col)])
        if depth:
            return Click(at, positive=False)
    return next_click(truth, mask, prompts)


def thinness(truth: np.ndarray) -> float:
    """Return area over squared inscribed radius of the object's largest part: pi for a disk, 4 for a square.

    `deepest` measures to the centre of the nearest pixel outside, half a pixel beyond the edge.

    Raises
    ------
    ValueError
        For a truth without an object.
    """
    part = largest_part(truth)
    return float(np.count_nonzero(part)) / (deepest(part)[0] - 0.5) ** 2


def _range(image: np.ndarray) -> tuple[float, float]:
    """The lowest finite value and how far above it the highest is; 1 where all are the same."""
    finite = image[np.isfinite(image)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return low, high - low or 1.0


def _as(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values in another type; integers are rounded and end at its limits."""
    if dtype.kind not in "iu":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    rounded: np.ndarray = np.clip(np.rint(np.nan_to_num(values)), limits.min, limits.max).astype(dtype)
    return rounded
