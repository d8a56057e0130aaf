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
        From `warp`: applied about the centre of what the view shows of the picture.
    """

    picture: int
    targets: tuple[int, ...]
    view: tuple[float, float, float]
    matrix: NDArray[np.float64]


class Atlas:
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


FLAT = 1.5  # picture pixels per view pixel up to which one sample is enough; beyond it four are averaged


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


@dataclass(frozen=True)
class Looks:
    """Which share of the views gets which look of other instruments, in [0, 1]."""

    gray: float = 0.25
    tint: float = 0.3
    inverted: float = 0.12
    gamma: float = 0.5
    contrast: float = 0.5
    blur: float = 0.25
    coarse: float = 0.08
    noise: float = 0.35


def recolour(image: Tensor, looks: Looks, generator: torch.Generator) -> Tensor:
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
        looks: Looks = Looks(),
    ) -> None:
        self.looks = looks
        self.size, self.batch = size, batch
        self.device = torch.device(device)
        self.pictures = [picture for one in sets for picture in one.pictures]
        self.free = [one.name not in UPRIGHT for one in sets for _ in one.pictures]
        self.atlas = Atlas(self.pictures, device)
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


class Ahead:
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
