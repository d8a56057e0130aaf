"""Training, one straight script: settings, data, rounds of simulated prompts, loss, loop, checkpoint.

``lowlat-seg train CONFIG`` runs it on one device, ``torchrun --nproc-per-node N -m napari_lowlat_seg train CONFIG`` on
several. The image is encoded once per step and the decoder answers several rounds of prompts, each with its loss.
"""

from __future__ import annotations

import json
import math
import os
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from .model.checkpoints import save_model
from .model.compact import Compact, CompactConfig
from .model.tinyvit import resize_windows
from .training_data import Ahead, Views, read_sets
from .training_prompts import THRESHOLD, Annotator, PromptMix


@dataclass(frozen=True)
class TrainConfig:
    """One run. Lengths are in steps, rates are per step, paths are relative to the working directory."""

    data: str = "data"
    out: str = "run"
    start: str = ""  # encoder weights (MobileSAM names) or a whole compact model; empty: from nothing
    device: str = "auto"
    steps: int = 6000
    warmup: int = 200
    batch: int = 64  # per device
    rate: float = 6e-4
    encoder_rate: float = 1.2e-4
    decay: float = 0.05
    clip: float = 1.0
    average: float = 0.999  # decay of the moving average of the weights, which is what ships
    seed: int = 1
    compile: bool = True
    checkpoint_every: int = 500
    minutes: float = 1e9  # stop with a checkpoint after this long
    limit: int | None = None  # pictures per set, for trying things out
    rounds: tuple[int, ...] = (2, 3, 3, 4, 4, 5, 6, 8)
    domains: dict[str, float] = field(
        default_factory=lambda: {"natural": 0.42, "em": 0.24, "med": 0.16, "cells": 0.18}
    )
    shares: dict[str, float] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, float] = field(default_factory=dict)


def read_config(path: Path) -> TrainConfig:
    """Return the run that a TOML file describes.

    Raises
    ------
    ValueError
        The file is no TOML, or names a setting that does not exist.
    """
    try:
        given = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as wrong:
        raise ValueError(f"expected a TOML file of training settings, got {path}: {wrong}; see docs/training.md") from None
    known = {one.name for one in fields(TrainConfig)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"expected settings out of {sorted(known)}, got {unknown} in {path}; remove or rename them")
    if "rounds" in given:
        given["rounds"] = tuple(given["rounds"])
    return TrainConfig(**given)


def normalized_focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    """Return the loss of every sample (B,); labels are 1, 0 or -1 = ignored (Sofiiuk et al. 2019; SegNext's setting).

    The focal weights are scaled so that they sum to the number of pixels, without a gradient through the scale.
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
    """Return 1 - Dice of the soft mask, (B,)."""
    p = logits.sigmoid() * valid
    both = (p * truth).sum((1, 2, 3))
    return 1 - (2 * both + 1) / (p.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 1)


def round_loss(logits: Tensor, quality: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of every sample (B,) and its IoU (B,), both with padding left out."""
    logits = logits.float()
    labels = torch.where(valid > 0.5, truth, -1.0)
    mask = (logits.detach().sigmoid() > THRESHOLD).float() * valid
    union = torch.maximum(mask, truth).sum((1, 2, 3))
    iou = (mask * truth).sum((1, 2, 3)) / union.clamp(min=1)
    judged = F.mse_loss(quality.float(), iou, reduction="none")
    return normalized_focal_loss(logits, labels) + dice_loss(logits, truth, valid) + judged, iou


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the factor on both rates: linear warm-up, then a cosine to 1 %."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def starting_network(config: TrainConfig) -> Compact:
    """Return the network with the weights that ``config.start`` names."""
    given = dict(config.model)
    if "windows" in given:
        given["windows"] = tuple(given["windows"])
    torch.manual_seed(config.seed)
    network = Compact(CompactConfig(**given))
    if config.start:
        state = {name: value.float() for name, value in load_file(config.start).items()}
        whole = "deep.weight" in state
        target = network if whole else network.encoder
        target.load_state_dict(state if whole else resize_windows(state, network.encoder))
    return network


class Run:
    """Network, optimiser, moving average and step count: what a checkpoint holds."""

    def __init__(self, config: TrainConfig, device: str) -> None:
        self.network = starting_network(config).to(device).to(memory_format=torch.channels_last)
        encoder = list(self.network.encoder.parameters())
        inside = {id(parameter) for parameter in encoder}
        rest = [parameter for parameter in self.network.parameters() if id(parameter) not in inside]
        groups = [
            {"params": [p for p in part if (p.ndim > 1) == weighty], "lr": rate, "top": rate,
             "weight_decay": config.decay if weighty else 0.0}
            for part, rate in ((encoder, config.encoder_rate), (rest, config.rate))
            for weighty in (True, False)
        ]  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=device.startswith("cuda"))
        self.parameters = encoder + rest
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.step = 0

    def save(self, path: Path) -> None:
        """Write everything needed to go on, whole or not at all."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        beside = path.with_suffix(".part")
        torch.save({**state, "average": self.average, "step": self.step}, beside)
        os.replace(beside, path)

    def load(self, path: Path, device: str) -> None:
        """Go on from what :meth:`save` wrote."""
        state = torch.load(path, map_location=device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]

    def update(self, config: TrainConfig) -> None:
        """Take one optimiser step from the gradients that lie there; averages over devices first."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if dist.is_initialized():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat, op=dist.ReduceOp.AVG)
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = group["top"] * learning_rate(self.step, config)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        keep = min(config.average, (1 + self.step) / (10 + self.step))
        now = self.network.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [now[name] for name in self.average], 1 - keep)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_step(
    run: Run,
    views: Views | Ahead,
    config: TrainConfig,
    generator: torch.Generator,
    encode: Callable[..., Any],
    answer: Callable[..., Any],
) -> Tensor:
    """Run all rounds on a batch, leave the gradients, return the mean IoU after the first and the last round (2,)."""
    batch = views.next()
    device = batch.image.device.type
    # A view whose target a warp lost teaches nothing.
    weight = (batch.truth.sum((1, 2, 3)) > 8).float()
    # drawn from the step, so that several devices do the same number of rounds
    rounds = config.rounds[torch.randint(len(config.rounds), (), generator=_seeded(config.seed + run.step)).item()]
    mix = PromptMix(**config.prompts)
    people = Annotator(batch.truth, batch.valid, run.network.radius, mix, generator)
    people.begin()
    total = batch.image.new_zeros(())
    ious = []
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        features = encode(batch.image)
    for number in range(rounds):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits, quality = answer(features, people.maps)
        loss, iou = round_loss(logits, quality, batch.truth, batch.valid)
        total = total + (loss * weight).sum() / weight.sum().clamp(min=1) / rounds
        ious.append((iou * weight).sum() / weight.sum().clamp(min=1))
        if number + 1 < rounds:
            with torch.no_grad():
                people.correct(logits.detach().float().sigmoid())
    total.backward()
    return torch.stack([total.detach(), ious[0].detach(), ious[-1].detach()])


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Train and return the path of the averaged weights, ``OUT/average.safetensors``.

    Parameters
    ----------
    config
        The run.
    resume
        Go on from ``OUT/checkpoint.pt`` where there is one.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = config.device
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(config, device)
    checkpoint = out / "checkpoint.pt"
    if resume and checkpoint.exists():
        run.load(checkpoint, device)
    sets = read_sets(Path(config.data), config.domains, config.shares, device, config.limit)
    seed = config.seed + 1000 * rank + run.step
    views: Views | Ahead = Views(sets, run.network.size, config.batch, seed, torch.tensor(run.network.pad))
    if device.startswith("cuda"):
        views = Ahead(views)
    generator = torch.Generator(device).manual_seed(seed)
    encode: Callable[..., Any] = run.network.encode

    def answer(features: tuple[Tensor, ...], maps: Tensor) -> tuple[Tensor, Tensor]:
        return run.network.decode(run.network.fuse(features, maps))

    if config.compile:
        encode, answer = torch.compile(encode, dynamic=False), torch.compile(answer, dynamic=False)
    began, shown, seen = time.monotonic(), time.monotonic(), []
    first = run.step
    log = (out / f"log-{rank}.jsonl").open("a")
    while run.step < config.steps:
        seen.append(one_step(run, views, config, generator, encode, answer))
        run.update(config)
        last = run.step == config.steps
        if run.step % 50 == 0 or last:
            loss, one, many = torch.stack(seen).mean(0).tolist()
            now = time.monotonic()
            speed = config.batch * world * len(seen) / (now - shown)
            row = {"step": run.step, "loss": loss, "iou_first": one, "iou_last": many, "views_per_s": speed,
                   "minutes": (now - began) / 60, "rate": learning_rate(run.step, config)}  # fmt: skip
            log.write(json.dumps(row) + "\n")
            log.flush()
            if rank == 0:
                print(" ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
            shown, seen = now, []
            if not math.isfinite(loss):
                raise ValueError(f"expected a finite loss, got {loss} at step {run.step}; lower `rate` and resume")
        # the clock is read on one device only, so that all stop at the same step
        stop = torch.tensor(time.monotonic() - began > config.minutes * 60, device=device)
        if world > 1 and run.step % 50 == 0:
            dist.broadcast(stop, 0)
        over = run.step % 50 == 0 and bool(stop) and run.step > first
        if rank == 0 and (run.step % config.checkpoint_every == 0 or last or over):
            run.save(checkpoint)
            shipped = Compact(run.network.config)
            shipped.load_state_dict(run.average)
            save_model(shipped, out / "average.safetensors", half=True, step=str(run.step))
        if over:
            break
    log.close()
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    return out / "average.safetensors"


def train_from_config(path: Path, resume: bool = False) -> Path:
    """Train as the TOML file ``path`` says; see :class:`TrainConfig` and :func:`train`."""
    return train(read_config(path), resume)
