"""The crops for a closer look along the outline of an object that is large in its plane.

A large object fills the view, so no crop around it magnifies anything, and its outline is known to a network
pixel or two. After a correction, crops of a fixed lattice that lie on the uncertain part of the outline are
embedded, asked with the prompts inside them and the present mask as the previous one, and mixed into it with
faded borders. This module chooses the crops and mixes; `Predictor.answers` embeds and asks. The numbers were
measured: docs/decisions/closer-look.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import THRESHOLD
from napari_lowlat_seg.core.prompts import Point, Prompt, Region, Stroke
from napari_lowlat_seg.inference.prediction import Embedding, Prediction, host_if_full

T = TypeVar("T")

SIDE = 0.5  # of a crop, as a share of the view's longer side
STRIDE = 0.5  # from one crop to the next, at most, as a share of a crop's side
FADE = 0.25  # width of a crop's faded border, as a share of its side
REACH = 0.1  # how far from the present outline a crop may change the mask, as a share of its side
MIN_SIDE = 64  # smallest side of a crop in pixels: smaller views get no edge looks
MIN_PROMPTS = 2  # the first prompt says what the object is, later ones where it ends
MIN_QUALITY = 0.8  # predicted IoU below which more is wrong than the outline
UNCERTAIN = (0.1, 0.9)  # probabilities between these are uncertain
MIN_UNCERTAIN = 4  # uncertain pixels of the grid below that make a crop worth embedding
GRID = 256  # rows or columns, at most, of the grid on which uncertainty is looked at


def worthwhile(prediction: Prediction, prompts: Sequence[Prompt]) -> bool:
    """Whether a large object is known well enough that its outline is what to look at."""
    known = prediction.quality is None or prediction.quality >= MIN_QUALITY
    return known and len(prompts) >= MIN_PROMPTS


@lru_cache(maxsize=16)
def lattice(frame: Frame) -> tuple[Frame, ...]:
    """All crops of a view that may be looked at, row by row; none if they would be tiny.

    They overlap by half, so that every point of the view lies well inside one of them. They depend on the
    frame alone: a crop that was embedded once serves every later click, and every object.
    """
    side = SIDE * frame.extent
    spans = []
    for first, count, pixel in zip(frame.crop[:2], frame.crop[2:], frame.spacing, strict=True):
        length = min(count, math.ceil(side / pixel))
        steps = math.ceil((count - length) / (STRIDE * length))
        spans.append([(first + round(at), length) for at in np.linspace(0, count - length, steps + 1)])
    if max(spans[0][0][1], spans[1][0][1]) < MIN_SIDE:
        return ()
    return tuple(
        replace(frame, crop=(top, left, rows, cols)) for top, rows in spans[0] for left, cols in spans[1]
    )


def uncertain_crops(
    frame: Frame, probability: np.ndarray, step: int, near: tuple[float, float]
) -> list[Frame]:
    """The crops that together show the uncertain outline of a mask, those nearest to a point first.

    Parameters
    ----------
    frame
        Of the view.
    probability
        (ceil(H / step), ceil(W / step)): every `step`-th pixel of the plane along both axes.
    step
        See `probability`.
    near
        (row, col): the middle of the newest prompt.
    """
    low, high = UNCERTAIN
    at = np.argwhere((probability > low) & (probability < high)) * step
    crops = lattice(frame)
    if not len(at) or not crops:
        return []
    shown = np.stack([_well_inside(crop, at) for crop in crops])  # (crops, uncertain pixels)
    chosen: list[int] = []
    while True:  # the crop that shows most of what none has shown yet
        counts = shown.sum(axis=1)
        best = int(counts.argmax())
        if counts[best] < MIN_UNCERTAIN:
            break
        chosen.append(best)
        shown &= ~shown[best]
    return sorted((crops[i] for i in chosen), key=lambda crop: _distance(crop, near))


def new_at_prompt(fresh: Sequence[Frame], known: Iterable[Frame], near: tuple[float, float]) -> list[Frame]:
    """The one of the `fresh` crops to embed at once where embedding is slow; none, or a list of one.

    It shows the middle of the newest prompt, where somebody looks now, well inside. None is needed there if
    one of the `known` crops, embedded already, does so. The other fresh ones can wait until nobody clicks.
    """
    at = np.array([near])
    if any(_well_inside(crop, at)[0] for crop in known):
        return []
    return [crop for crop in fresh if _well_inside(crop, at)[0]][:1]


def _well_inside(crop: Frame, at: np.ndarray) -> np.ndarray:
    """Which pixels (N, 2) lie where at least half of the mixture is the crop's: (N,) bool."""
    inside = np.ones(len(at), bool)
    for axis in (0, 1):
        first, count, length = crop.crop[axis], crop.crop[2 + axis], crop.shape[axis]
        room = FADE * count / 2
        low = first + (room if first > 0 else 0)
        high = first + count - 1 - (room if first + count < length else 0)
        inside &= (at[:, axis] >= low) & (at[:, axis] <= high)
    return inside


def _distance(crop: Frame, point: tuple[float, float]) -> float:
    top, left, rows, cols = crop.crop
    return math.hypot(top + (rows - 1) / 2 - point[0], left + (cols - 1) / 2 - point[1])


def fading(crop: Frame) -> np.ndarray:
    """Weights (rows, cols) float32 of a crop: 1 inside, towards its borders down to nearly 0.

    A border that is one of the plane's does not fade: nothing lies beyond it.
    """
    return np.outer(*_fading_sides(crop))


def _fading_sides(crop: Frame) -> list[np.ndarray]:
    """What `fading` is the outer product of: (rows,) and (cols,)."""
    sides = []
    for axis in (0, 1):
        first, count, length = crop.crop[axis], crop.crop[2 + axis], crop.shape[axis]
        width = max(1.0, FADE * count)
        at = np.arange(count) + 0.5
        low = at / width if first > 0 else np.ones(count)
        high = (count - at) / width if first + count < length else np.ones(count)
        sides.append(np.minimum(1, np.minimum(low, high)).astype(np.float32))
    return sides


@lru_cache(maxsize=16)
def _fading_there(crop: Frame, device: torch.device) -> tuple[Tensor, ...]:
    """`_fading_sides` on a device; whole weights of a large plane would take too much memory to keep."""
    return tuple(torch.from_numpy(side).to(device) for side in _fading_sides(crop))


def strokes_inside(crop: Frame, prompts: Sequence[Prompt]) -> list[Stroke]:
    """The clicks and scribbles of which a part lies in a crop; the present mask takes account of regions."""
    top, left, rows, cols = crop.crop
    inside = []
    for prompt in prompts:
        r0, c0, r1, c1 = prompt.bounds()
        meets = r1 >= top - 0.5 and c1 >= left - 0.5 and r0 < top + rows - 0.5 and c0 < left + cols - 0.5
        if not isinstance(prompt, Region) and meets:
            inside.append(prompt)
    return inside


def contradicts(crop: Frame, shown: np.ndarray, before: np.ndarray, prompts: Sequence[Stroke]) -> bool:
    """Whether a crop's mask (rows, cols) is wrong at a stroke at which the mask before, (H, W), is right.

    A mixture of probabilities lies on the side of the threshold on which all of them lie. So what the user
    said holds in it as long as every crop that is mixed in holds it.
    """
    top, left, rows, cols = crop.crop
    for prompt in prompts:
        at = np.floor(_along(prompt.points) + 0.5).astype(np.int64)
        at = np.clip(at, 0, np.array(crop.shape) - 1)
        local = at - (top, left)
        inside = ((local >= 0) & (local < (rows, cols))).all(axis=1)
        held = before[tuple(at[inside].T)] == prompt.positive
        if np.any(held & (shown[tuple(local[inside].T)] != prompt.positive)):
            return True
    return False


def _along(points: Sequence[Point]) -> np.ndarray:
    """Points (N, 2) at most a pixel apart along the straight pieces of a line, its own among them."""
    line = np.asarray(points, dtype=np.float64)
    pieces = [line[:1]]
    for start, end in itertools.pairwise(line):
        count = max(1, math.ceil(np.abs(end - start).max()))
        pieces.append(start + (end - start) * (np.arange(1, count + 1) / count)[:, None])
    return np.concatenate(pieces)


def thinned(soft: np.ndarray | Tensor) -> tuple[np.ndarray, int]:
    """Every `step`-th pixel of a probability (H, W) along both axes, on the host, and the step."""
    step = math.ceil(max(soft.shape) / GRID)
    if isinstance(soft, Tensor):
        return host_if_full(lambda there: there[::step, ::step].float().cpu().numpy(), soft), step
    return soft[::step, ::step], step


class Mixture:
    """A prediction of the whole plane, and those of crops that are mixed into it with faded borders.

    On a GPU some eight planes of float32 are needed; where its memory does not suffice, the host goes on.
    """

    def __init__(self, first: Prediction) -> None:
        self.first = first
        self.sources = 0
        self._planes = host_if_full(_begun, torch.as_tensor(first.soft))

    def add(self, found: Prediction) -> None:
        """Mix in a prediction over its frame's crop."""
        self._repeated(partial(_add, found))
        self.sources += 1

    def prediction(self, edges: tuple[Embedding, ...]) -> Prediction:
        """The mixture: the mean of the crops where they are not faded, the first prediction beside them."""
        first = self.first.soft
        dtype = first.dtype if isinstance(first, Tensor) else torch.float32
        soft = self._repeated(partial(_mixed, dtype))
        kept = soft if isinstance(first, Tensor) else soft.numpy()
        return replace(self.first, soft=kept, host_mask=None, edges=edges)

    def _repeated(self, work: Callable[[_Planes], T]) -> T:
        """What `work` makes of the planes; where a GPU's memory does not suffice, of copies on the host."""
        with suppress(torch.cuda.OutOfMemoryError):
            return work(self._planes)
        self._planes = _Planes(*(plane.cpu() for plane in self._planes))
        return work(self._planes)


class _Planes(NamedTuple):
    """What a mixture is made of, each (H, W) float32."""

    before: Tensor  # the first prediction
    sum: Tensor  # of the crops' probabilities, times their weights
    weight: Tensor  # the sum of these


def _begun(soft: Tensor) -> _Planes:
    before = soft.float()
    return _Planes(before, torch.zeros_like(before), torch.zeros_like(before))


def _add(found: Prediction, planes: _Planes) -> None:
    soft = torch.as_tensor(found.soft).to(planes.sum)  # either may have moved to the host
    weight = torch.outer(*_fading_there(found.frame, planes.sum.device))
    weighted = weight * soft  # all memory is taken before a plane changes, or a crop would be added twice
    found.frame.cut(planes.sum).add_(weighted)
    found.frame.cut(planes.weight).add_(weight)


def _mixed(dtype: torch.dtype, planes: _Planes) -> Tensor:
    share = planes.weight.clamp(max=1) * _band(planes)
    mean = planes.sum / planes.weight.clamp(min=1e-6)
    return torch.lerp(planes.before, mean, share).to(dtype)


def _band(planes: _Planes) -> Tensor:
    """(H, W) in [0, 1]: 1 at the outline of the first prediction's mask, 0 from `REACH` on."""
    reach = max(2, round(REACH * SIDE * max(planes.weight.shape)))
    inside = box_mean((planes.before > THRESHOLD).float(), reach)
    return (2 - 2 * (2 * inside - 1).abs()).clamp(max=1)


def box_mean(values: Tensor, reach: int) -> Tensor:
    """The mean over a square of 2 * `reach` + 1 pixels around each pixel of (H, W); borders are repeated.

    By running sums: torch's average pooling reads the whole side of the square anew for each pixel.
    """
    side = 2 * reach + 1
    sums = values[None, None]
    for axis, borders in ((-1, (reach + 1, reach, 0, 0)), (-2, (0, 0, reach + 1, reach))):
        running = F.pad(sums, borders, mode="replicate").cumsum(axis)
        length = values.shape[axis]
        sums = running.narrow(axis, side, length) - running.narrow(axis, 0, length)
    return sums[0, 0] / side**2


def middle_of_newest(prompts: Sequence[Prompt], frame: Frame) -> tuple[float, float]:
    """(row, col) of the middle of the newest prompt, or of the plane."""
    r0, c0, r1, c1 = prompts[-1].bounds() if prompts else (0, 0, *frame.shape)
    return (r0 + r1) / 2, (c0 + c1) / 2
