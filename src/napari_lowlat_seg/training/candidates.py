"""Training of the further masks for a first click: only `CandidateHead` learns, all else is frozen.

A click can mean a part, the object or all that it belongs to. Each view has up to three nested targets of one
click: the object of the labels, the connected part of it that was clicked, and everything labelled that it
touches. Every target teaches the mask that is nearest to it already (Guzman-Rivera et al., "Multiple Choice
Learning", 2012), the more, the less the network's own mask covers it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.measure import label
from torch import Tensor

from napari_lowlat_seg.core.masks import THRESHOLD
from napari_lowlat_seg.models.checkpoints import load_model, save_model
from napari_lowlat_seg.models.compact import Compact
from napari_lowlat_seg.training.data.pictures import MAX_STEP, Picture, PictureSet, read_sets
from napari_lowlat_seg.training.data.views import ColourAugmentation, Views, recolour
from napari_lowlat_seg.training.losses import dice_loss, normalized_focal_loss
from napari_lowlat_seg.training.prompts import BatchAnnotator, PromptMix
from napari_lowlat_seg.training.train import TrainConfig, learning_rate

OWN, OTHERS = 1.0, 0.4  # weights of the object's own target and of the two others
SPREAD = 0.03  # share of a target's loss that all masks get, not only the nearest: none is left without use
COVERED = 0.07  # weight of a target that the network's own mask covers completely
SAME = 0.85  # IoU with the object from which a part or whole is no other target
CLICKS = PromptMix(click=0.85, scribble=0.15, box=0, polygon=0, mask=0)  # regions leave little to choose
MOST = 0.7  # share of the picture from which a whole is no object


def start_candidates(path: str, count: int, seed: int) -> Compact:
    """The network of a file with a head for `count` candidates; all but the head needs no gradient.

    A file that has such a head already goes on with it.

    Raises
    ------
    ValueError
        For a file that is no compact model, or has another number of candidates.
    """
    trained = load_model(path)
    if not isinstance(trained, Compact) or trained.config.candidates not in (0, count):
        raise ValueError(
            f"expected a compact model with no candidates or {count} to start from, got {path}; set `start`"
        )
    torch.manual_seed(seed)
    network = Compact(replace(trained.config, candidates=count))
    network.load_state_dict(trained.state_dict(), strict=False)
    network.requires_grad_(False)
    assert network.candidate_head is not None
    network.candidate_head.requires_grad_(True)
    return network


class NestedViews(Views):
    """Views with three nested targets each; see the top of this module."""

    def __init__(
        self, sets: Sequence[PictureSet], config: TrainConfig, network: Compact, device: str
    ) -> None:
        looks = ColourAugmentation(**config.looks)
        pad = torch.tensor(network.pad)
        super().__init__(
            sets, network.size, config.batch, config.seed, pad, device, looks, 0.0, config.synthetic
        )
        numbered = [[_numbered(picture, level) for picture in self.pictures] for level in ("part", "whole")]
        self.levels = []
        for maps in numbered:
            store = copy(self.store)
            store.ids = torch.cat([torch.from_numpy(numbers).flatten() for numbers in maps]).to(device)
            self.levels.append(store)
        # of each object: the number of its largest part, and of its whole
        self.members = [
            [_most_common(numbers, picture) for numbers, picture in zip(maps, self.pictures, strict=True)]
            for maps in numbered
        ]

    def nested(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, S, S), targets (B, 3, h, h): object, part, whole; validity (B, 1, h, h), h = S/2."""
        crops = [self.choose() for _ in range(self.plain)]
        shrinks = any(crop.view[2] > MAX_STEP * self.size for crop in crops)
        geometry, source = self.store.locate(crops, self.size)
        views = self.store.sample_at(geometry, source, self.size, shrinks)
        covers = []
        for store, members in zip(self.levels, self.members, strict=True):
            numbers = torch.tensor([members[crop.picture][crop.targets[0]] for crop in crops])
            moved = source.clone()
            moved[:, 3] = moved[:, 4] = numbers.to(source.device, non_blocking=True)
            covers.append(store.sample_at(geometry, moved, self.size, shrinks)[:, 3:4])
        views = torch.cat([views, *covers], 1)  # (B, 7, S, S)
        if self.synthetic:
            drawn = self.anatomies.draw(self.synthetic)
            views = torch.cat([views, torch.cat([drawn, drawn[:, 3:4], drawn[:, 3:4]], 1)])
        half = F.avg_pool2d(views[:, 3:], 2)
        valid = (half[:, 1:2] > 0.5).float()
        targets = (half[:, [0, 2, 3]] > 0.5).float() * valid
        image = recolour(views[:, :3], self.colours, self.generator)
        image = torch.where(views[:, 4:5] < 0.5, self.mean.view(1, 3, 1, 1), image)
        return image.contiguous(memory_format=torch.channels_last), targets, valid


def _numbered(picture: Picture, level: str) -> np.ndarray:
    """(H, W) int32: connected parts of equal ids, or connected parts of everything labelled, from 1."""
    ids = picture.ids.numpy()
    numbers: np.ndarray = label(ids if level == "part" else ids > 0, connectivity=2, background=0)
    return numbers.astype(np.int32)


def _most_common(numbers: np.ndarray, picture: Picture) -> dict[int, int]:
    """By object: the number that most of its pixels have."""
    ids = picture.ids.numpy()
    found = {}
    for number, (top, left, bottom, right) in zip(picture.objects, picture.boxes.astype(int), strict=True):
        inside = numbers[top:bottom, left:right][ids[top:bottom, left:right] == number]
        found[int(number)] = int(np.bincount(inside).argmax())
    return found


def target_weights(targets: Tensor, valid: Tensor, clicks: Tensor, ious: Tensor) -> Tensor:
    """Weights (B, 3) of the targets (B, 3, h, w): 0 for one that is missing, not clicked, or no other one.

    `clicks` (B, 1, h, w) is above 0 where the prompt is; `ious` (B, 3) are those of the network's own mask.
    """
    area = targets.sum((2, 3))
    clicked = (targets * (clicks > 0)).sum((2, 3)) > 0
    own = targets[:, :1]
    same = (targets * own).sum((2, 3)) / torch.maximum(targets, own).sum((2, 3)).clamp(min=1)
    other = (same < SAME) & (area < MOST * valid.sum((2, 3)))
    other[:, 0] = True
    worth = targets.new_tensor([OWN, OTHERS, OTHERS])
    return worth * (clicked & other & (area > 8)) * (COVERED + 1 - ious)


def mask_ious(masks: Tensor, targets: Tensor) -> Tensor:
    """IoU (B, K, T) of bool masks (B, K, h, w) with targets (B, T, h, w) in {0, 1}."""
    a, b = masks.flatten(2).float(), targets.flatten(2)
    both = torch.einsum("bkp,btp->bkt", a, b)
    return both / (a.sum(2)[:, :, None] + b.sum(2)[:, None] - both).clamp(min=1)


def candidate_loss(
    logits: Tensor, quality: Tensor, targets: Tensor, valid: Tensor, weights: Tensor
) -> Tensor:
    """The loss of logits (B, K, h, w) for targets (B, T, h, w) in {0, 1}: the nearest candidate counts.

    Parameters
    ----------
    quality
        Predicted IoU of each candidate with the first target, (B, K).
    valid
        Pixels that count, (B, 1, h, w) in {0, 1}.
    weights
        Of the targets, (B, T).
    """
    logits = logits.float()
    count, levels = logits.shape[1], targets.shape[1]
    losses = []
    for level in range(levels):
        target = targets[:, level : level + 1]
        labels = torch.where(valid > 0.5, target, -1.0)
        each = [
            normalized_focal_loss(logits[:, k : k + 1], labels)
            + dice_loss(logits[:, k : k + 1], target, valid)
            for k in range(count)
        ]
        losses.append(torch.stack(each, 1))  # (B, K)
    found = torch.stack(losses, 2)  # (B, K, T)
    nearest = (1 - SPREAD) * found.amin(1) + SPREAD * found.mean(1)
    ious = mask_ious(_shown(logits.detach(), valid), targets[:, :1])[..., 0]
    return (nearest * weights).sum() / weights.sum().clamp(min=1e-3) + F.mse_loss(quality.float(), ious)


class HeadRun:
    """The candidates' head, its optimiser and its moving average."""

    def __init__(self, config: TrainConfig, device: str) -> None:
        self.config, self.device = config, device
        self.network = start_candidates(config.start, config.model["candidates"], config.seed).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert self.network.candidate_head is not None
        self.head = self.network.candidate_head
        self.parameters = list(self.head.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, config.rate, (0.9, 0.98), weight_decay=config.decay
        )
        self.average = {name: value.detach().clone() for name, value in self.head.state_dict().items()}
        self.step = 0

    def one_step(self, views: NestedViews, generator: torch.Generator) -> Tensor:
        """Train on one batch; return loss, and mean IoU of the network's own mask and of the best, (3,)."""
        image, targets, valid = views.nested()
        annotators = BatchAnnotator(targets[:, :1], valid, self.network.radius, CLICKS, generator)
        annotators.begin()
        kind = self.device.partition(":")[0]
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            with torch.no_grad():
                fused = self.network.fuse(self.network.encode(image), annotators.maps)
                first = self.network.decode(fused)[0]
            logits, quality = self.head(fused, first)
        own = mask_ious(_shown(first, valid), targets)[:, 0]
        weights = target_weights(targets, valid, F.max_pool2d(annotators.maps[:, 1:2], 2), own)
        loss = candidate_loss(logits, quality, targets, valid, weights)
        loss.backward()
        best = mask_ious(_shown(logits.detach(), valid), targets[:, :1])[..., 0].amax(1)
        return torch.stack([loss.detach(), own[:, 0].mean(), torch.maximum(own[:, 0], best).mean()])

    def update(self, done: float) -> None:
        """Take one optimiser step with the present gradients; `done` is the share of the run, in [0, 1]."""
        config = self.config
        at = self.step if self.step < config.warmup else max(config.warmup, int(done * config.steps))
        torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate * learning_rate(at, config)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        keep, now = min(config.average, self.step / (9 + self.step)), self.head.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [now[name] for name in self.average], 1 - keep)

    def save(self, path: Path) -> Path:
        """Write the network with the averaged head in half precision."""
        saved = Compact(self.network.config)
        saved.load_state_dict(self.network.state_dict())
        assert saved.candidate_head is not None
        saved.candidate_head.load_state_dict(self.average)
        return save_model(saved, path, half=True, step=str(self.step))


def _shown(logits: Tensor, valid: Tensor) -> Tensor:
    return (logits.float().sigmoid() > THRESHOLD) & (valid > 0.5)


def train_candidates(config: TrainConfig, device: str) -> Path:
    """Train the candidates of the model `config.start`; return the path of `OUT/candidates.safetensors`.

    The number is `config.model["candidates"]`. Rates fall with the steps or, where that is sooner, with
    `minutes`. Prompts are first clicks and scribbles; `rounds` and the encoders' rates have no use here.

    Raises
    ------
    ValueError
        As `start_candidates` and `read_sets` do.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    run = HeadRun(config, device)
    sets = read_sets(Path(config.data), config.domains, config.shares, config.limit)
    views = NestedViews(sets, config, run.network, device)
    generator = torch.Generator(device).manual_seed(config.seed)
    began, losses = time.monotonic(), []
    done = 0.0
    while done < 1:
        losses.append(run.one_step(views, generator))
        run.update(done)
        minutes = (time.monotonic() - began) / 60
        done = max(run.step / config.steps, minutes / config.minutes)
        if run.step % config.checkpoint_every == 0 or done >= 1:
            means = torch.stack(losses).mean(0).tolist()
            row = dict(zip(("loss", "iou_first", "iou_best"), means, strict=True), step=run.step)
            losses = []
            print(json.dumps(row), flush=True)
            with (out / "log.jsonl").open("a") as file:
                file.write(json.dumps({**row, "minutes": minutes}) + "\n")
            run.save(out / "candidates.safetensors")
    return out / "candidates.safetensors"
