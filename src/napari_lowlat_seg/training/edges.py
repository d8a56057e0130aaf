"""Edge crops in training: crops along an object's outline that go on from the mask of a wider view.

A pair is two views of one batch. The *parent* is any view cut from a picture; its *child* is a square part
of it around a pixel of the object's outline, cut from the picture again. Both are encoded with the batch.
After some rounds the parent's mask becomes the child's previous mask, and the parent's clicks those of the
child. This is what the network is given when a crop along the outline of a large object is embedded for finer
borders. Most children show a truncated object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_lowlat_seg.training.prompts import BatchAnnotator, argmax_pixel, stamp

SIDES = (0.2, 0.6)  # of the parent's side, drawn evenly on a logarithmic scale
UNCORRECTED = 0.5  # share of the children that at first get the parent's prompts only


@dataclass(frozen=True)
class EdgeCrops:
    """Which views of a batch are parents and children.

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
