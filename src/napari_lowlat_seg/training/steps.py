"""One training step: the images are encoded once and decoded for several rounds of prompts.

Most steps learn from all of their rounds. A *late* step first corrects some rounds without a gradient, and
learns from the few after them: what is wrong by then is thin and at the outline, and up to 18 prompts are on
the maps, as at the end of a benchmark.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from napari_lowlat_seg.models.compact import Compact
from napari_lowlat_seg.training.data.prefetch import Prefetcher
from napari_lowlat_seg.training.data.views import Batch, Views, continue_from_parents
from napari_lowlat_seg.training.losses import LossMix, mask_iou, round_loss
from napari_lowlat_seg.training.prompts import BatchAnnotator, PromptMix

if TYPE_CHECKING:
    from napari_lowlat_seg.training.train import Run, TrainConfig

SILENT = (4, 14)
"""Fewest and most rounds without a gradient at the beginning of a late step."""

LEARNT = (2, 4)
"""Fewest and most rounds with one after them."""


class Parts(NamedTuple):
    """What a step calls, compiled or not.

    Attributes
    ----------
    encode
        Features of images (B, 3, S, S).
    decode
        Logits (B, 1, S/2, S/2) and predicted IoUs (B,) of features and prompt maps (B, 3, S, S).
    loss
        `round_loss`.
    """

    encode: Callable[..., Any]
    decode: Callable[..., Any]
    loss: Callable[..., tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, network: Compact, compiled: bool) -> Parts:
        """The parts of a step with a network."""

        def decode(features: tuple[Tensor, ...], maps: Tensor) -> Any:
            return network.decode(network.fuse(features, maps))

        parts = (network.encode, decode, round_loss)
        return cls(*(torch.compile(part, dynamic=False) for part in parts) if compiled else parts)


def drawn_rounds(config: TrainConfig, step: int) -> tuple[int, int, int]:
    """Draw how many rounds of a step are without and with a gradient, and after which edge crops go on.

    They follow from seed and step, so that several devices do the same number of rounds. Edge crops go on
    from their parents' masks after the round of that number, counted from 0 over both.
    """
    dice = torch.Generator().manual_seed(config.seed + step)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=dice))

    silent, learnt = 0, config.rounds[draw(0, len(config.rounds) - 1)]
    if config.late and float(torch.rand((), generator=dice)) < config.late:
        silent, learnt = draw(*SILENT), draw(*LEARNT)
    return silent, learnt, draw(0, max(1, silent + learnt - 1) - 1)


def one_step(
    run: Run,
    views: Views | Prefetcher[Batch],
    config: TrainConfig,
    generator: torch.Generator,
    parts: Parts,
) -> Tensor:
    """Return loss and mean IoU after the first and last round, (3,), of one batch; leaves the gradients.

    Parameters
    ----------
    generator
        Draws the prompts, on the device of the views.
    parts
        Of `run.network`.
    """
    batch = views.next()
    device = batch.image.device.type
    # A view whose target was warped out of it teaches nothing.
    weight = (batch.truth.sum((1, 2, 3)) > 8).float()
    silent, learnt, handover = drawn_rounds(config, run.step)
    mix, losses = PromptMix(**config.prompts), LossMix(**config.loss)
    annotators = BatchAnnotator(batch.truth, batch.valid, run.network.radius, mix, generator)
    annotators.begin()
    total = batch.image.new_zeros(())
    ious = []
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        features = parts.encode(batch.image)
    constant = tuple(part.detach() for part in features)
    for number in range(silent + learnt):
        learns = number >= silent
        # set anew in each round: autocast would hand a weight's copy without a gradient to later rounds
        with torch.set_grad_enabled(learns), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits, quality = parts.decode(features if learns else constant, annotators.maps)
        if learns:
            loss, iou = parts.loss(logits, quality, batch.truth, batch.valid, losses)
            counted = weight * ~annotators.wrong_clicks
            total = total + (loss * counted).sum() / counted.sum().clamp(min=1) / learnt
        elif number == 0:
            iou = mask_iou(logits, batch.truth, batch.valid)
        if number in (0, silent + learnt - 1):
            ious.append((iou * weight).sum() / weight.sum().clamp(min=1))
        if number + 1 < silent + learnt:
            with torch.no_grad():
                probability = logits.detach().float().sigmoid()
                if number == handover and len(batch.edge_crops.squares):
                    continue_from_parents(annotators, probability, batch.edge_crops)
                else:
                    annotators.correct(probability)
    total.backward()
    return torch.stack([total.detach(), ious[0].detach(), ious[-1].detach()])
