"""Training views: crops of pictures, warped and recoloured on the device.

A *view* is the whole picture letterboxed, or a square part of it in which the target object covers anything
from 0.05 % to most of the area. SegNext's published training does not vary the scale; small organelles and
the closer look need that most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_lowlat_seg.inference.closer_look import MARGIN, MAX_SHARE, MIN_PIXELS, MIN_SHARE
from napari_lowlat_seg.training.data.pictures import MAX_STEP, Crop, PictureSet, PictureStore, part_geometry
from napari_lowlat_seg.training.data.synthetic import SyntheticAnatomies
from napari_lowlat_seg.training.prompts import BatchAnnotator, argmax_pixel, stamp

SIDES = (0.2, 0.6)  # of the parent's side, drawn evenly on a logarithmic scale
UNCORRECTED = 0.5  # share of the children that at first get the parent's prompts only
MISJUDGED = 0.25  # deviation of the logarithm of the length that a closer look takes an object for


@dataclass(frozen=True)
class EdgeCrops:
    """Which views of a batch are parents and children: crops along an object's outline, for finer borders.

    A *parent* is any view cut from a picture; its *child* is a square part of it around a pixel of the
    object's outline, cut from the picture again. Both are encoded with the batch. After some rounds the
    parent's mask becomes the child's previous mask, and the parent's clicks those of the child. This is what
    the network is given when a crop along the outline of a large object is embedded. Most children show a
    truncated object.

    Attributes
    ----------
    first
        Row of the first child in the batch; the parent of child `first + i` is row i.
    squares
        (N, 3) float32: top, left and side of each child, as fractions of its parent's side.
    """

    first: int
    squares: Tensor


def choose_crops(cover: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
    """Return squares (N, 3) as in `EdgeCrops`, each around a random outline pixel and inside the parent.

    Parameters
    ----------
    cover
        Coverage of the parents' pixels by the object, (N, S, S) float32 in [0, 1]. A view without an outline,
        because a warp moved the object out of it, gets any square.
    valid
        (N, S, S) float32: the outline counts where this is above 0, where the parent shows its picture.
    generator
        On the device of `cover`.
    """
    count, size = len(cover), cover.shape[-1]
    inside = (cover > 0.5).float()[:, None]
    outline = (F.max_pool2d(inside, 3, 1, 1) - inside)[:, 0] * valid
    noise = torch.rand(outline.shape, device=cover.device, generator=generator)
    at = (argmax_pixel(noise * (outline + 1e-3)) + 0.5) / size  # (N, 2)
    low, high = (math.log(side) for side in SIDES)
    side = torch.empty(count, 1, device=cover.device).uniform_(low, high, generator=generator).exp()
    place = torch.empty(count, 2, device=cover.device).uniform_(0.25, 0.75, generator=generator)
    corner = (at - place * side).clamp(min=0).minimum(1 - side)
    return torch.cat([corner, side], 1)


def crop_masks(masks: Tensor, squares: Tensor) -> Tensor:
    """Return the parts (N, C, h, h) of `masks` (N, C, h, h) that lie in the squares (N, 3), enlarged."""
    top, left, side = squares.unbind(1)
    zero = torch.zeros_like(side)
    # places run from -1 to 1 in `affine_grid`, x first
    x = torch.stack([side, zero, 2 * left + side - 1], 1)
    y = torch.stack([zero, side, 2 * top + side - 1], 1)
    grid = F.affine_grid(torch.stack([x, y], 1), list(masks.shape), align_corners=False)
    return F.grid_sample(masks, grid, padding_mode="border", align_corners=False)


def continue_from_parents(annotators: BatchAnnotator, probability: Tensor, edge_crops: EdgeCrops) -> None:
    """Correct all samples, given the probability (B, 1, S/2, S/2); children go on from their parents' masks.

    Replaces `BatchAnnotator.correct` in one round; changes `annotators`. A child's own prompts are dropped:
    it gets the parent's mask as its previous mask, the parent's clicks and strokes that lie in the crop, and
    in about half of the cases (1 - `UNCORRECTED`) a correction of its own.
    """
    count, squares = len(edge_crops.squares), edge_crops.squares
    children = slice(edge_crops.first, edge_crops.first + count)
    probability = probability.clone()
    probability[children] = crop_masks(probability[:count], squares)
    size = annotators.maps.shape[-1]
    maps = annotators.maps.clone()
    maps[children] = 0
    inherited = maps[children]
    for at, shown, channel in annotators.stamped:
        fraction = (at[:count] + 0.5) / size - squares[:, None, :2]
        moved = (fraction / squares[:, None, 2:] * size).floor().long()
        inside = ((moved >= 0) & (moved < size)).all(2) & shown[:count]
        stamp(inherited, moved.clamp(0, size - 1), inside, channel[:count], annotators.radius)
    maps[children] = inherited
    annotators.maps = maps
    annotators.correct(probability)
    chance = torch.rand(count, 1, 1, 1, device=maps.device, generator=annotators.generator)
    own = annotators.maps[children, 1:]
    annotators.maps[children, 1:] = torch.where(chance < UNCORRECTED, inherited[:, 1:], own)


# Sets of photographs with an up and a down: mirrored left to right only, and hardly turned.
# fmt: off
UPRIGHT = frozenset({
    "duts_tr", "coco_small", "ccp_clothing", "endangered_animals", "feral_cat", "pennfudan",
    "human290", "building_facade", "rail_vehicle", "football", "plate_food", "small_objects",
})
# fmt: on


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes
    ----------
    image
        Views, (B, 3, S, S) float32 in 0..255.
    truth, valid
        Targets and validity, (B, 1, S/2, S/2) float32 in {0, 1}.
    edge_crops
        Which of the views are crops along the outline of others.
    """

    image: Tensor
    truth: Tensor
    valid: Tensor
    edge_crops: EdgeCrops


def choose_view(
    rng: np.random.Generator,
    shape: tuple[int, int],
    box: NDArray[np.float64],
    area: float,
    closer: float = 0.0,
) -> tuple[float, float, float]:
    """Choose a square view (top, left, side) in picture pixels that shows an object.

    Of those that are no closer looks, about a third are the whole picture, and one in thirteen cuts through
    the object. A view that is wider than the picture in one direction starts at 0 there; otherwise it lies
    inside.

    Parameters
    ----------
    shape
        Rows and columns of the picture.
    box, area
        Of the object, in pixels: (top, left, bottom, right), bottom and right exclusive.
    closer
        Share of the views, in [0, 1], that are `closer_look` where the object is small enough for one.
    """
    rows, cols = shape
    longest = float(max(rows, cols))
    if closer and rng.random() < closer:
        view = closer_look(rng, shape, box)
        if view[2] <= MAX_SHARE * longest:
            return view
    if rng.random() < 0.35:
        return 0.0, 0.0, longest
    reach = max(box[2] - box[0], box[3] - box[1])
    side_for_area = math.sqrt(area / math.exp(rng.uniform(math.log(5e-4), math.log(0.6))))
    cut_through = rng.random() < 0.12  # the object may leave the view
    least = max(24.0, reach * (0.6 if cut_through else 1.08))
    side = float(np.clip(side_for_area, least, max(longest, least)))
    corner = []
    for low, high, length in ((box[0], box[2], rows), (box[1], box[3], cols)):
        if side >= length:
            corner.append(0.0)
            continue
        middle = (low + high) / 2
        first, last = (middle - side, middle) if cut_through else (high - side, low)
        corner.append(float(np.clip(rng.uniform(first, last), 0, length - side)))
    return corner[0], corner[1], side


def closer_look(
    rng: np.random.Generator, shape: tuple[int, int], box: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Return the square (top, left, side) that a closer look shows of an object whose extent is misjudged.

    The margin and the smallest crop are those of `inference.closer_look`. It looks at a coarse mask, not at
    the object, so the length of the box is off by a factor and its middle by a few tenths of the length.

    Parameters
    ----------
    shape, box
        As in `choose_view`.
    """
    reach = max(box[2] - box[0], box[3] - box[1])
    taken_for = reach * math.exp(rng.normal(0, MISJUDGED))
    side = float(max(taken_for * (1 + 2 * MARGIN), MIN_PIXELS, MIN_SHARE * max(shape)))
    middle = (box[:2] + box[2:]) / 2 + rng.normal(0, MISJUDGED / 2, 2) * reach
    top, left = (
        float(np.clip(at - side / 2, 0, max(0.0, length - side)))
        for at, length in zip(middle, shape, strict=True)
    )
    return top, left, side


def warp(rng: np.random.Generator, free: bool) -> NDArray[np.float64]:
    """Draw a 2 x 2 matrix on (row, col): flips, in 30 % of cases a rotation, in 30 % a stretch.

    Where the picture is not `free` to turn, it is only mirrored left to right and rotated by a few degrees.
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
    """Shares of the views, in [0, 1], that get each change of colour, as between instruments.

    `agent` is `contrast_agent`'s; the others are `recolour`'s.
    """

    gray: float = 0.25
    tint: float = 0.3
    inverted: float = 0.12
    gamma: float = 0.5
    contrast: float = 0.5
    blur: float = 0.25
    coarse: float = 0.08
    noise: float = 0.35
    agent: float = 0.0


AGENT = (6.0, 50.0)  # gray values by which a contrast agent changes the object, drawn evenly by logarithm


def contrast_agent(image: Tensor, cover: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return views (B, 3, S, S) in 0..255 whose object is brighter or darker; does not mutate them.

    An organ without an outline of its own looks like the tissue around it, and teaches to take all
    that has its gray value. The slight change gives it an outline, as a contrast agent does.

    Parameters
    ----------
    image
        (B, 3, S, S) float32.
    cover
        Coverage by the object, (B, 1, S, S) float32 in [0, 1].
    share
        Of the views that get it, in [0, 1].
    generator
        On their device.
    """
    column = (len(image), 1, 1, 1)
    low, high = (math.log(one) for one in AGENT)
    change = torch.empty(column, device=image.device).uniform_(low, high, generator=generator).exp()
    chance = torch.rand((2, *column), device=image.device, generator=generator)
    change = torch.where(chance[0] < 0.5, change, -change) * (chance[1] < share)
    soft = F.avg_pool2d(cover, 3, 1, 1)
    return (image + change * soft).clamp(0, 255)


def recolour(image: Tensor, colours: ColourAugmentation, generator: torch.Generator) -> Tensor:
    """Return the views (B, 3, S, S) in 0..255 with changed colours; does not mutate them.

    `colours` are the shares of views for each change; the generator is on their device.
    """
    batch, device = image.shape[0], image.device

    def draw(low: float, high: float, share: float, neutral: float) -> Tensor:
        values = torch.empty(batch, 1, 1, 1, device=device).uniform_(low, high, generator=generator)
        picked = torch.rand(batch, 1, 1, 1, device=device, generator=generator) < share
        return torch.where(picked, values, neutral)

    x = image / 255
    gray = (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(x)
    x = torch.lerp(x, gray, draw(1, 1, colours.gray, 0))
    tint = torch.empty(batch, 3, 1, 1, device=device).uniform_(0.8, 1.2, generator=generator)
    x = x * torch.lerp(torch.ones_like(tint), tint, draw(0, 1, colours.tint, 0))
    x = torch.lerp(x, 1 - x, draw(1, 1, colours.inverted, 0))
    x = x.clamp(1e-4, 1) ** draw(-0.7, 0.7, colours.gamma, 0).exp()
    x = (x - 0.5) * draw(0.35, 1.6, colours.contrast, 1) + 0.5 + draw(-0.25, 0.25, colours.contrast, 0)
    ramp = torch.arange(-4, 5, device=device, dtype=x.dtype)
    kernel = torch.exp(-(ramp**2) / 4.5)
    kernel = (kernel / kernel.sum()).expand(3, 1, 9)
    smooth = F.conv2d(x, kernel[:, :, None], padding=(0, 4), groups=3)
    smooth = F.conv2d(smooth, kernel[..., None], padding=(4, 0), groups=3)
    x = torch.lerp(x, smooth, draw(0.3, 1, colours.blur, 0))
    coarse = F.interpolate(F.avg_pool2d(x, 4), x.shape[-2:], mode="bilinear")
    x = torch.lerp(x, coarse, draw(1, 1, colours.coarse, 0))
    noise = torch.randn(x.shape, device=device, generator=generator)
    noise = torch.lerp(noise, noise[:, :1].expand_as(noise), draw(1, 1, 0.6, 0))
    return (x + noise * draw(0, 0.12, colours.noise, 0)).clamp(0, 1) * 255


class Views:
    """An endless source of batches.

    Parameters
    ----------
    sets
        From `read_sets`.
    size, batch
        Side of the network's input, and number of views.
    seed
        Two sources with one seed give the same batches on the same device.
    mean
        RGB (3,) on the scale 0..255 that padding is filled with.
    device
        Where all pictures are stored and the views are made.
    colours
        How they are recoloured.
    edges, synthetic
        Shares of the views, in [0, 1], that are crops along outlines (`EdgeCrops`) and synthetic
        anatomies (`training.data.synthetic`). The others are cut from pictures, at least as many as there are
        edge crops.
    closer
        Share of those cut from pictures, in [0, 1], that are cut as a closer look would (`choose_view`).

    Raises
    ------
    ValueError
        If the shares leave too few views to be cut from pictures.
    """

    def __init__(
        self,
        sets: Sequence[PictureSet],
        size: int,
        batch: int,
        seed: int,
        mean: Tensor,
        device: str = "cpu",
        colours: ColourAugmentation = ColourAugmentation(),
        edges: float = 0.0,
        synthetic: float = 0.0,
        closer: float = 0.0,
    ) -> None:
        self.colours, self.closer = colours, closer
        self.edges, self.synthetic = round(edges * batch), round(synthetic * batch)
        self.plain = batch - self.edges - self.synthetic
        if min(edges, synthetic) < 0 or self.plain < max(1, self.edges):
            raise ValueError(
                "expected shares that leave as many views of pictures as edge crops, and one at least, "
                f"got edges {edges} and synthetic {synthetic} of {batch} views; lower them"
            )
        self.size, self.batch = size, batch
        self.device = torch.device(device)
        self.pictures = [picture for each in sets for picture in each.pictures]
        self.free = [each.name not in UPRIGHT for each in sets for _ in each.pictures]
        self.store = PictureStore(self.pictures, device)
        self.mean = mean.to(self.device)
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.anatomies = SyntheticAnatomies(size, seed, device)
        # summed once: numpy's `choice` would do it for every view
        shares = np.concatenate([np.full(n := len(each.pictures), each.share / n) for each in sets])
        self.shares = np.cumsum(shares / shares.sum())
        self.chances = [np.cumsum(picture.areas**0.3) for picture in self.pictures]

    def choose(self) -> Crop:
        """Draw the geometry of the next view."""
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
        area = float(picture.areas[members].sum())
        view = choose_view(rng, self.store.shapes[number], box, area, self.closer)
        targets = tuple(int(target) for target in picture.objects[members])
        return Crop(number, targets, view, warp(rng, self.free[number]))

    def next(self) -> Batch:
        """Return a fresh batch; where a warp moved the target out of view, `truth` is empty."""
        views, edge_crops = self.sample()
        half = F.avg_pool2d(views[:, 3:], 2)
        valid = (half[:, 1:] > 0.5).float()
        truth = (half[:, :1] > 0.5).float() * valid
        image = views[:, :3]
        if self.colours.agent:
            image = contrast_agent(image, views[:, 3:4], self.colours.agent, self.generator)
        image = recolour(image, self.colours, self.generator)
        padding = views[:, 4:] < 0.5
        image = torch.where(padding, self.mean.view(1, 3, 1, 1), image)
        return Batch(image.contiguous(memory_format=torch.channels_last), truth, valid, edge_crops)

    def sample(self) -> tuple[Tensor, EdgeCrops]:
        """Return views (B, 5, S, S) before recolouring: cut from pictures, edge crops, synthetic ones.

        The channels are those of `PictureStore.sample`.
        """
        crops = [self.choose() for _ in range(self.plain)]
        shrinks = any(crop.view[2] > MAX_STEP * self.size for crop in crops)
        geometry, source = self.store.locate(crops, self.size)
        parts = [self.store.sample_at(geometry, source, self.size, shrinks)]
        parents = parts[0][: self.edges]
        squares = choose_crops(parents[:, 3], parents[:, 4], self.generator)
        if self.edges:
            closer = part_geometry(geometry[: self.edges], squares, self.size)
            parts.append(self.store.sample_at(closer, source[: self.edges], self.size, shrinks))
        if self.synthetic:
            parts.append(self.anatomies.draw(self.synthetic))
        return torch.cat(parts), EdgeCrops(self.plain, squares)
