"""Training views: what the network sees, cut, warped and recoloured on the device.

A *view* is the whole picture letterboxed, or a square part of it in which the target object covers anything
from 0.05 % to most of the area. Scale is what the original never varied (its crops undo themselves), and what
small organelles and the closer look need most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Queue
from threading import Thread

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .training_pictures import Picture, PictureSet

# Sets of photographs with an up and a down: mirrored left to right only, and hardly turned.
# fmt: off
UPRIGHT = frozenset({
    "duts_tr", "coco_small", "ccp_clothing", "endangered_animals", "feral_cat", "pennfudan",
    "human290", "building_facade", "rail_vehicle", "football", "plate_food", "small_objects",
})
# fmt: on


@dataclass(frozen=True)
class Batch:
    """Views (B, 3, S, S) float 0..255, targets and validity (B, 1, S/2, S/2) in {0, 1}."""

    image: Tensor
    truth: Tensor
    valid: Tensor


def choose_view(
    rng: np.random.Generator, shape: tuple[int, int], box: NDArray[np.float64], area: float
) -> tuple[float, float, float]:
    """A square view (top, left, side) in picture pixels that shows an object.

    About a third of the views are the whole picture, one in thirteen cuts through the object. A view that is
    wider than the picture in one direction starts at 0 there; otherwise it lies inside.

    Parameters
    ----------
    shape
        Rows and columns of the picture.
    box, area
        Of the object, in pixels: (top, left, bottom, right), bottom and right exclusive.
    """
    rows, cols = shape
    longest = float(max(rows, cols))
    if rng.random() < 0.35:
        return 0.0, 0.0, longest
    reach = max(box[2] - box[0], box[3] - box[1])
    wanted = math.sqrt(area / math.exp(rng.uniform(math.log(5e-4), math.log(0.6))))
    cut_through = rng.random() < 0.12  # the object may leave the view
    least = max(24.0, reach * (0.6 if cut_through else 1.08))
    side = float(np.clip(wanted, least, max(longest, least)))
    corner = []
    for low, high, length in ((box[0], box[2], rows), (box[1], box[3], cols)):
        if side >= length:
            corner.append(0.0)
            continue
        middle = (low + high) / 2
        first, last = (middle - side, middle) if cut_through else (high - side, low)
        corner.append(float(np.clip(rng.uniform(first, last), 0, length - side)))
    return corner[0], corner[1], side


def warp(rng: np.random.Generator, free: bool) -> NDArray[np.float64]:
    """A 2 x 2 matrix on (row, col): flips, now and then a rotation by any angle and a stretch.

    Where the picture is not `free`, it is mirrored left to right at most and turned by a few degrees.
    """
    matrix = np.diag(rng.choice([-1.0, 1.0], 2) if free else np.array([1.0, rng.choice([-1.0, 1.0])]))
    if free and rng.random() < 0.5:
        matrix = matrix[::-1]
    if rng.random() < 0.3:
        angle = rng.uniform(-math.pi, math.pi) if free else rng.normal(0, 0.15)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = turn @ matrix
    if rng.random() < 0.3:
        stretch = math.exp(rng.normal(0, 0.15))
        matrix = matrix @ np.diag([stretch, 1 / stretch])
    return matrix.copy()


def cut(
    picture: Picture, target: Tensor, view: tuple[float, float, float], matrix: NDArray[np.float64], size: int
) -> Tensor:
    """A view as the network gets it, (5, S, S) float: RGB in 0..255, coverage by the target, validity.

    Parameters
    ----------
    target
        (H, W) bool.
    view
        Top, left and side in picture pixels.
    matrix
        From `warp`: applied about the centre of what the view shows of the picture.
    size
        Side S.
    """
    top, left, side = view
    rows, cols = target.shape
    device = target.device
    steps = (torch.arange(size, device=device) + 0.5) / size - 0.5
    # the content keeps the top left corner, as a letterboxed frame has it: warp about the content's centre
    high, wide = min(side, rows - top), min(side, cols - left)
    (yy, yx), (xy, xx) = matrix.tolist()
    down, across = (wide, high) if yy == xx == 0 else (high, wide)  # a quarter turn lays a strip upright
    y = steps[:, None] * side + (side - down) / 2
    x = steps[None, :] * side + (side - across) / 2
    where_y = yy * y + yx * x + (top + high / 2)
    where_x = xy * y + xx * x + (left + wide / 2)
    valid = (where_y >= top) & (where_y < top + high) & (where_x >= left) & (where_x < left + wide)
    if (
        abs(yy) != 1 or abs(xx) != 1
    ):  # a turned view shows what lies beside it too, as far as the picture goes
        valid = (where_y >= 0) & (where_y < rows) & (where_x >= 0) & (where_x < cols)
    stack = torch.cat([picture.pixels.float(), target[None].float()])
    if side / size > 1.5:  # no aliasing when the view is shrunk
        stack = F.avg_pool2d(stack, 2, ceil_mode=True)
        where_y, where_x, rows, cols = where_y / 2, where_x / 2, stack.shape[1], stack.shape[2]
    grid = torch.stack([2 * where_x / cols - 1, 2 * where_y / rows - 1], -1)[None]
    seen = F.grid_sample(stack[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    return torch.cat([seen, valid[None].float()])


def recolour(image: Tensor, generator: torch.Generator) -> Tensor:
    """The views (B, 3, S, S) in 0..255 with the looks of other instruments; does not mutate them.

    Gray, inverted, gamma, contrast, tint, blur, coarse pixels and noise, each for its own share of the batch.
    """
    batch, device = image.shape[0], image.device

    def draw(low: float, high: float, share: float, neutral: float) -> Tensor:
        values = torch.empty(batch, 1, 1, 1, device=device).uniform_(low, high, generator=generator)
        picked = torch.rand(batch, 1, 1, 1, device=device, generator=generator) < share
        return torch.where(picked, values, neutral)

    x = image / 255
    gray = (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(x)
    x = torch.lerp(x, gray, draw(1, 1, 0.25, 0))
    tint = torch.empty(batch, 3, 1, 1, device=device).uniform_(0.8, 1.2, generator=generator)
    x = x * torch.lerp(torch.ones_like(tint), tint, draw(0, 1, 0.3, 0))
    x = torch.lerp(x, 1 - x, draw(1, 1, 0.12, 0))
    x = x.clamp(1e-4, 1) ** draw(-0.7, 0.7, 0.5, 0).exp()
    x = (x - 0.5) * draw(0.35, 1.6, 0.5, 1) + 0.5 + draw(-0.25, 0.25, 0.5, 0)
    ramp = torch.arange(-4, 5, device=device, dtype=x.dtype)
    kernel = torch.exp(-(ramp**2) / 4.5)
    kernel = (kernel / kernel.sum()).expand(3, 1, 9)
    smooth = F.conv2d(x, kernel[:, :, None], padding=(0, 4), groups=3)
    smooth = F.conv2d(smooth, kernel[..., None], padding=(4, 0), groups=3)
    x = torch.lerp(x, smooth, draw(0.3, 1, 0.25, 0))
    coarse = F.interpolate(F.avg_pool2d(x, 4), x.shape[-2:], mode="bilinear")
    x = torch.lerp(x, coarse, draw(1, 1, 0.08, 0))
    noise = torch.randn(x.shape, device=device, generator=generator)
    noise = torch.lerp(noise, noise[:, :1].expand_as(noise), draw(1, 1, 0.6, 0))
    return (x + noise * draw(0, 0.12, 0.35, 0)).clamp(0, 1) * 255


class Views:
    """An endless source of batches.

    Parameters
    ----------
    sets
        From `read_sets`.
    size, batch
        Network side and number of views.
    seed
        Two sources with one seed give the same batches on the same device.
    mean
        RGB (3,) on the scale 0..255 that padding is filled with.
    """

    def __init__(self, sets: Sequence[PictureSet], size: int, batch: int, seed: int, mean: Tensor) -> None:
        self.sets, self.size, self.batch = sets, size, batch
        self.device = sets[0].pictures[0].pixels.device
        self.mean = mean.to(self.device)
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        shares = np.array([one.share for one in sets])
        self.shares = shares / shares.sum()

    def one(self) -> Tensor:
        """One view (5, S, S), not yet recoloured; see `cut`."""
        rng = self.rng
        chosen = self.sets[rng.choice(len(self.sets), p=self.shares)]
        picture = chosen.pictures[rng.integers(len(chosen.pictures))]
        weight = picture.areas**0.3
        index = rng.choice(len(weight), p=weight / weight.sum())
        members = [index]
        if len(weight) > 1 and rng.random() < 0.08:  # two neighbours as one object
            middle = (picture.boxes[:, :2] + picture.boxes[:, 2:]) / 2
            apart = np.hypot(*(middle - middle[index]).T)
            apart[index] = np.inf
            members.append(int(apart.argmin()))
        target = picture.ids == int(picture.objects[index])
        for other in members[1:]:
            target = target | (picture.ids == int(picture.objects[other]))
        box = np.concatenate([picture.boxes[members, :2].min(0), picture.boxes[members, 2:].max(0)])
        shape = (target.shape[0], target.shape[1])
        view = choose_view(rng, shape, box, float(picture.areas[members].sum()))
        return cut(picture, target, view, warp(rng, free=chosen.name not in UPRIGHT), self.size)

    def next(self) -> Batch:
        """A fresh batch; where a warp lost the target, `truth` is empty."""
        views: Tensor = torch.stack([self.one() for _ in range(self.batch)])
        half = F.avg_pool2d(views[:, 3:], 2)
        valid = (half[:, 1:] > 0.5).float()
        truth = (half[:, :1] > 0.5).float() * valid
        image = recolour(views[:, :3], self.generator)
        padding = views[:, 4:] < 0.5
        image = torch.where(padding, self.mean.view(1, 3, 1, 1), image)
        return Batch(image.contiguous(memory_format=torch.channels_last), truth, valid)


class Ahead:
    """The batches of a source, prepared on a stream of their own while the device is busy training."""

    def __init__(self, views: Views) -> None:
        self.queue: Queue[tuple[Batch, torch.cuda.Event]] = Queue(maxsize=2)
        self.stream = torch.cuda.Stream(views.device)
        Thread(target=self._fill, args=(views,), daemon=True).start()

    def _fill(self, views: Views) -> None:
        torch.cuda.set_device(views.device)
        with torch.cuda.stream(self.stream):
            while True:
                batch = views.next()
                self.queue.put((batch, self.stream.record_event()))

    def next(self) -> Batch:
        """The next batch; the calling stream waits for it, the host does not."""
        batch, ready = self.queue.get()
        here = torch.cuda.current_stream()
        here.wait_event(ready)
        for tensor in (batch.image, batch.truth, batch.valid):
            tensor.record_stream(here)
        return batch
