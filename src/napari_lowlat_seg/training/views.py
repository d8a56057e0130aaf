"""Training views: what the network sees, chosen, warped and recoloured on the device.

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

from napari_lowlat_seg.training.pictures import Cut, PictureSet, PictureStore

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


@dataclass(frozen=True)
class ColourAugmentation:
    """Which share of the views gets which look of other instruments, in [0, 1]."""

    gray: float = 0.25
    tint: float = 0.3
    inverted: float = 0.12
    gamma: float = 0.5
    contrast: float = 0.5
    blur: float = 0.25
    coarse: float = 0.08
    noise: float = 0.35


def recolour(image: Tensor, looks: ColourAugmentation, generator: torch.Generator) -> Tensor:
    """The views (B, 3, S, S) in 0..255 with the looks of other instruments; does not mutate them."""
    batch, device = image.shape[0], image.device

    def draw(low: float, high: float, share: float, neutral: float) -> Tensor:
        values = torch.empty(batch, 1, 1, 1, device=device).uniform_(low, high, generator=generator)
        picked = torch.rand(batch, 1, 1, 1, device=device, generator=generator) < share
        return torch.where(picked, values, neutral)

    x = image / 255
    gray = (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(x)
    x = torch.lerp(x, gray, draw(1, 1, looks.gray, 0))
    tint = torch.empty(batch, 3, 1, 1, device=device).uniform_(0.8, 1.2, generator=generator)
    x = x * torch.lerp(torch.ones_like(tint), tint, draw(0, 1, looks.tint, 0))
    x = torch.lerp(x, 1 - x, draw(1, 1, looks.inverted, 0))
    x = x.clamp(1e-4, 1) ** draw(-0.7, 0.7, looks.gamma, 0).exp()
    x = (x - 0.5) * draw(0.35, 1.6, looks.contrast, 1) + 0.5 + draw(-0.25, 0.25, looks.contrast, 0)
    ramp = torch.arange(-4, 5, device=device, dtype=x.dtype)
    kernel = torch.exp(-(ramp**2) / 4.5)
    kernel = (kernel / kernel.sum()).expand(3, 1, 9)
    smooth = F.conv2d(x, kernel[:, :, None], padding=(0, 4), groups=3)
    smooth = F.conv2d(smooth, kernel[..., None], padding=(4, 0), groups=3)
    x = torch.lerp(x, smooth, draw(0.3, 1, looks.blur, 0))
    coarse = F.interpolate(F.avg_pool2d(x, 4), x.shape[-2:], mode="bilinear")
    x = torch.lerp(x, coarse, draw(1, 1, looks.coarse, 0))
    noise = torch.randn(x.shape, device=device, generator=generator)
    noise = torch.lerp(noise, noise[:, :1].expand_as(noise), draw(1, 1, 0.6, 0))
    return (x + noise * draw(0, 0.12, looks.noise, 0)).clamp(0, 1) * 255


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
    device
        Where all pictures are kept and the views are made.
    looks
        How they are recoloured.
    """

    def __init__(
        self,
        sets: Sequence[PictureSet],
        size: int,
        batch: int,
        seed: int,
        mean: Tensor,
        device: str = "cpu",
        looks: ColourAugmentation = ColourAugmentation(),
    ) -> None:
        self.looks = looks
        self.size, self.batch = size, batch
        self.device = torch.device(device)
        self.pictures = [picture for one in sets for picture in one.pictures]
        self.free = [one.name not in UPRIGHT for one in sets for _ in one.pictures]
        self.atlas = PictureStore(self.pictures, device)
        self.mean = mean.to(self.device)
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        # summed up once: numpy's own choice would do it for every view
        shares = np.concatenate([np.full(len(one.pictures), one.share / len(one.pictures)) for one in sets])
        self.shares = np.cumsum(shares / shares.sum())
        self.chances = [np.cumsum(one.areas**0.3) for one in self.pictures]

    def one(self) -> Cut:
        """What the next view shows."""
        rng = self.rng
        number = min(int(np.searchsorted(self.shares, rng.random())), len(self.pictures) - 1)
        picture, chances = self.pictures[number], self.chances[number]
        index = min(int(np.searchsorted(chances, rng.random() * chances[-1])), len(chances) - 1)
        members = [index]
        if len(chances) > 1 and rng.random() < 0.08:  # two neighbours as one object
            middle = (picture.boxes[:, :2] + picture.boxes[:, 2:]) / 2
            apart = np.hypot(*(middle - middle[index]).T)
            apart[index] = np.inf
            members.append(int(apart.argmin()))
        box = np.concatenate([picture.boxes[members, :2].min(0), picture.boxes[members, 2:].max(0)])
        view = choose_view(rng, self.atlas.shapes[number], box, float(picture.areas[members].sum()))
        targets = tuple(int(target) for target in picture.objects[members])
        return Cut(number, targets, view, warp(rng, self.free[number]))

    def next(self) -> Batch:
        """A fresh batch; where a warp lost the target, `truth` is empty."""
        views = self.atlas.cut([self.one() for _ in range(self.batch)], self.size)
        half = F.avg_pool2d(views[:, 3:], 2)
        valid = (half[:, 1:] > 0.5).float()
        truth = (half[:, :1] > 0.5).float() * valid
        image = recolour(views[:, :3], self.looks, self.generator)
        padding = views[:, 4:] < 0.5
        image = torch.where(padding, self.mean.view(1, 3, 1, 1), image)
        return Batch(image.contiguous(memory_format=torch.channels_last), truth, valid)


class Prefetcher:
    """The batches of a source, prepared on a stream of their own while the device is busy training.

    The first few are made by who asks for them: meanwhile the network is compiled, and a thread beside the
    compiler may not call what is compiled itself.
    """

    def __init__(self, views: Views, alone: int = 10) -> None:
        self.views, self.alone = views, alone
        self.queue: Queue[tuple[Batch, torch.cuda.Event]] = Queue(maxsize=2)
        self.stream = torch.cuda.Stream(views.device)

    def _make(self) -> None:
        torch.cuda.set_device(self.views.device)
        with torch.cuda.stream(self.stream):
            batch = self.views.next()
            self.queue.put((batch, self.stream.record_event()))

    def _fill(self) -> None:
        while True:
            self._make()

    def next(self) -> Batch:
        """The next batch; the calling stream waits for it, the host does not."""
        if self.alone > 0:
            self._make()
        elif self.alone == 0:
            Thread(target=self._fill, daemon=True).start()
        self.alone -= 1
        batch, ready = self.queue.get()
        here = torch.cuda.current_stream()
        here.wait_event(ready)
        for tensor in (batch.image, batch.truth, batch.valid):
            tensor.record_stream(here)
        return batch
