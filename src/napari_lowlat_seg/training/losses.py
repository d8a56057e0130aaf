"""Losses: normalised focal loss, Dice, boundary, and the squared error of the predicted IoU.

All take logits (B, 1, H, W) and return one value per sample, so that samples can be weighted afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_lowlat_seg.core.masks import THRESHOLD


@dataclass(frozen=True)
class LossMix:
    """Weights of the losses added to the normalised focal loss and the error of the predicted IoU."""

    dice: float = 1.0
    boundary: float = 0.0


def normalized_focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    """Return the loss (B,) of logits and labels (B, 1, H, W): 1 object, 0 background, -1 ignored.

    A focal loss whose weights are scaled so that they sum to the number of pixels, without a gradient through
    the scale (Sofiiuk, Barinova, Konushin, "AdaptIS: Adaptive Instance Selection Network", ICCV 2019). The
    defaults are SegNext's. A sample whose pixels are all ignored has loss 0.
    """
    shown = (labels >= 0).float()
    p = logits.sigmoid()
    pt = torch.where(labels >= 0, 1 - (labels - p).abs(), torch.ones_like(p))
    weight = torch.where(labels > 0.5, alpha, 1 - alpha)
    focus = (1 - pt) ** gamma
    total = shown.sum((-2, -1), keepdim=True)
    scale = (total / (focus.sum((-2, -1), keepdim=True) + 1e-12)).detach()
    loss = -weight * scale * focus * (pt + 1e-12).clamp(max=1).log() * shown
    return (loss.sum((1, 2, 3)) / (total.sum((1, 2, 3)) + 1e-12)).float()


def dice_loss(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return 1 - Dice of the soft mask, (B,) in [0, 1], from logits, truth and validity (B, 1, H, W).

    The Dice of Milletari et al. ("V-Net", 2016) without the squares; one is added to both sides of the
    fraction, so an empty truth is no division by zero. `truth` must be 0 where `valid` is.
    """
    p = logits.sigmoid() * valid
    both = (p * truth).sum((1, 2, 3))
    return 1 - (2 * both + 1) / (p.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 1)


def boundary_loss(logits: Tensor, truth: Tensor, valid: Tensor, width: int = 3, slack: int = 5) -> Tensor:
    """Return 1 - F1 of the soft outline, (B,) in [0, 1], from logits, truth and validity (B, 1, H, W).

    Outlines are what a maximum over `width` x `width` pixels adds to the background; one counts as found
    within `slack` x `slack` pixels of the other (Bokhovkin & Burnaev, "Boundary Loss for Remote Sensing
    Imagery Semantic Segmentation", 2019). One is added to both sides of each fraction.
    """
    lines, near = [], []
    for mask in (logits.sigmoid() * valid, truth):
        lines.append((F.max_pool2d(1 - mask, width, 1, width // 2) - (1 - mask)) * valid)
        near.append(F.max_pool2d(lines[-1], slack, 1, slack // 2))
    precision, recall = (
        ((line * other).sum((1, 2, 3)) + 1) / (line.sum((1, 2, 3)) + 1)
        for line, other in zip(lines, reversed(near), strict=True)
    )
    return 1 - 2 * precision * recall / (precision + recall)


def round_loss(
    logits: Tensor, quality: Tensor, truth: Tensor, valid: Tensor, mix: LossMix
) -> tuple[Tensor, Tensor]:
    """Return the loss (B,) and the IoU (B,) of every sample, both without padding.

    Focal loss of the mask, Dice and boundary as `mix` says, and the squared error of the predicted IoU.

    Parameters
    ----------
    logits, truth, valid
        (B, 1, h, w); truth and validity are 0 or 1.
    quality
        Predicted IoU (B,).
    """
    logits = logits.float()
    labels = torch.where(valid > 0.5, truth, -1.0)
    mask = (logits.detach().sigmoid() > THRESHOLD).float() * valid
    union = torch.maximum(mask, truth).sum((1, 2, 3))
    iou = (mask * truth).sum((1, 2, 3)) / union.clamp(min=1)
    quality_error = F.mse_loss(quality.float(), iou, reduction="none")
    loss = normalized_focal_loss(logits, labels) + quality_error
    for weight, part in ((mix.dice, dice_loss), (mix.boundary, boundary_loss)):
        if weight:
            loss = loss + weight * part(logits, truth, valid)
    return loss, iou
