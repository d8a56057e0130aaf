"""Training, one straight script: settings, data, rounds of simulated prompts, loss, loop, checkpoint.

`lowlat-seg train CONFIG` runs it on one device, `torchrun --nproc-per-node N -m napari_lowlat_seg train
CONFIG` on several; see docs/training.md. The image is encoded once per step and the decoder answers several
rounds of prompts, each with its loss.
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
from safetensors.torch import load_file
from torch import Tensor, nn

from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.models.checkpoints import save_model
from napari_lowlat_seg.models.compact import Compact, CompactConfig, FusionBlock
from napari_lowlat_seg.models.tinyvit import resize_windows
from napari_lowlat_seg.models.vit import resample
from napari_lowlat_seg.training.losses import LossMix, round_loss
from napari_lowlat_seg.training.pictures import read_sets
from napari_lowlat_seg.training.prompts import Annotator, PromptMix
from napari_lowlat_seg.training.views import ColourAugmentation, Prefetcher, Views


def starting_network(config: CompactConfig, start: str, start_vit: str, seed: int) -> Compact:
    """The network of a config with what its files hold, random weights elsewhere.

    Parameters
    ----------
    config
        Of the network.
    start
        A .safetensors file of encoder weights (MobileSAM's names) or of a whole compact model, which may
        have another input side and lack a second encoder and further fusion blocks: what is new adds nothing
        at first. None if empty.
    start_vit
        A .safetensors file of weights for the second encoder, on any grid and patch. None if empty.
    seed
        Of the random weights.

    Raises
    ------
    ValueError
        If a whole model lacks or has other parts, or weights for a second encoder are given to a network
        without one.
    """
    torch.manual_seed(seed)
    network = Compact(config)
    if start:
        state = _floats(start)
        if "deep.weight" in state:
            _start_whole(network, state)
        else:
            network.encoder.load_state_dict(resize_windows(state, network.encoder))
    if start_vit:
        if network.vit is None:
            raise ValueError("expected a model with a second encoder for `start_vit`; set `vit_depth`")
        # norms and join are new: no other network has them
        own = network.vit.state_dict()
        network.vit.load_state_dict({**own, **resample(_floats(start_vit), network.vit)})
    return network


def _floats(path: str) -> dict[str, Tensor]:
    return {name: value.float() for name, value in load_file(path).items()}


def _start_whole(network: Compact, state: dict[str, Tensor]) -> None:
    """Load a whole model; the parts that it lacks are a second encoder and further fusion blocks."""
    if network.vit is not None and "vit.pos_embed" in state:  # the one tensor that knows the input's side
        vit = {name.removeprefix("vit."): value for name, value in state.items() if name.startswith("vit.")}
        state = state | {f"vit.{name}": value for name, value in resample(vit, network.vit).items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    unknown = [*unexpected, *(name for name in missing if not name.startswith(("vit.", "blocks.")))]
    if unknown:
        raise ValueError(f"expected the weights of the config's model, got none or others for {unknown[:3]}")
    for number, block in enumerate(network.blocks):
        if f"blocks.{number}.local.weight" in missing:
            assert isinstance(block, FusionBlock)
            for part in (block.local, block.attn.proj, block.fc2):  # a block of residuals that are zero
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TrainConfig:
    """One run; a TOML file sets any of these. Paths are relative to the working directory.

    Attributes
    ----------
    data, out
        Folder of the pictures, and folder that the run writes.
    start
        A .safetensors file of encoder weights (MobileSAM's names) or of a whole compact model; none if empty.
        A model of another input side, without a second encoder, or with fewer fusion blocks, may start one
        that has them: what is new adds nothing at first.
    start_vit
        A .safetensors file of weights for the second encoder, on any grid and patch; see `resample`.
    device
        "auto", "cpu", "cuda" or "cuda:1".
    steps, warmup
        Optimiser steps in all, and those of the linear warm-up.
    batch
        Views per step and device.
    rate, encoder_rate, vit_rate
        Peak learning rates of the new parts, of the encoder, and of the second encoder.
    decay, clip
        Weight decay (of weights, not of biases and norms), and the largest norm of the gradient.
    average
        Decay of the moving average of the weights, which is what ships.
    seed
        Of weights, views and prompts.
    compile
        Whether to compile the network; takes a minute or two at the start.
    checkpoint_every, minutes
        Steps between checkpoints, and minutes after which this sitting stops with one.
    limit
        Pictures per set, for trying things out; all if None.
    rounds
        Numbers of prompts per step, one drawn for each step.
    domains, shares
        Share of the views per domain, and factors on single sets; see `read_sets`.
    model, prompts, looks, loss
        Fields of `CompactConfig`, `PromptMix`, `ColourAugmentation` and `LossMix`.
    """

    data: str = "data"
    out: str = "run"
    start: str = ""
    start_vit: str = ""
    device: str = "auto"
    steps: int = 6000
    warmup: int = 200
    batch: int = 64
    rate: float = 6e-4
    encoder_rate: float = 1.2e-4
    vit_rate: float = 3e-5
    decay: float = 0.05
    clip: float = 1.0
    average: float = 0.999
    seed: int = 1
    compile: bool = True
    checkpoint_every: int = 500
    minutes: float = 1e9
    limit: int | None = None
    rounds: tuple[int, ...] = (2, 3, 3, 4, 4, 5, 6, 8)
    domains: dict[str, float] = field(
        default_factory=lambda: {"natural": 0.42, "em": 0.24, "med": 0.16, "cells": 0.18}
    )
    shares: dict[str, float] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, float] = field(default_factory=dict)
    looks: dict[str, float] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)


def read_config(path: Path) -> TrainConfig:
    """The run that a TOML file describes.

    Raises
    ------
    ValueError
        If the file is no TOML, names a setting that does not exist, or corrects a judge before it is trained.
    """
    try:
        given = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as wrong:
        raise ValueError(
            f"expected a TOML file of training settings, got {path}: {wrong}; see docs/training.md"
        ) from None
    tables = (
        (TrainConfig, given),
        (CompactConfig, given.get("model", {})),
        (PromptMix, given.get("prompts", {})),
        (ColourAugmentation, given.get("looks", {})),
        (LossMix, given.get("loss", {})),
    )
    for kind, table in tables:
        known = {one.name for one in fields(kind)}
        unknown = sorted(set(table) - known)
        if unknown:
            raise ValueError(
                f"expected settings out of {sorted(known)}, got {unknown} in {path}; remove or rename them"
            )
    early = sorted(set(given.get("model", {})) & {"quality_slope", "quality_shift"})
    if early:
        raise ValueError(
            f"expected a model whose judge is not corrected yet, got {early} in {path}; remove them, "
            "and fit them to the trained model with `lowlat-seg models calibrate`"
        )
    if "rounds" in given:
        given["rounds"] = tuple(given["rounds"])
    return TrainConfig(**given)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The factor on both rates in step `step`, counted from 0: linear warm-up, then a cosine to 1 %."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


class Run:
    """Network, optimiser, moving average and step count: what a checkpoint holds."""

    def __init__(self, config: TrainConfig, device: str) -> None:
        shape = CompactConfig(**config.model)
        self.network = starting_network(shape, config.start, config.start_vit, config.seed).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        encoder: list[nn.Parameter] = []
        vit: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in self.network.named_parameters():
            known = name.startswith("vit.") and not name.startswith(("vit.norms.", "vit.join."))
            part = encoder if name.startswith("encoder.") else vit if known else rest
            part.append(parameter)
        groups = [
            {"params": [p for p in part if (p.ndim > 1) == weighty], "lr": rate, "top": rate,
             "weight_decay": config.decay if weighty else 0.0}
            for part, rate in ((encoder, config.encoder_rate), (vit, config.vit_rate), (rest, config.rate))
            for weighty in (True, False)
            if part
        ]  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=device.startswith("cuda"))
        self.parameters = encoder + vit + rest
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.step = 0

    def save(self, path: Path) -> None:
        """Write everything needed to go on, whole or not at all."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        with atomic_file(path) as part:
            torch.save({**state, "average": self.average, "step": self.step}, part)

    def load(self, path: Path, device: str) -> None:
        """Go on from what `save` wrote, at the rates and decay of the run's own config."""
        state = torch.load(path, map_location=device, weights_only=True)
        self.network.load_state_dict(state["network"])
        # the file's settings would silently win over those that were changed in order to go on
        asked = [
            {key: group[key] for key in ("top", "weight_decay")} for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, asked, strict=True):
            group.update(own)
        self.average, self.step = state["average"], state["step"]

    def update(self, config: TrainConfig) -> None:
        """Take one optimiser step from the gradients that lie there; averages over devices first."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if dist.is_initialized():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
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


def one_step(
    run: Run,
    views: Views | Prefetcher,
    config: TrainConfig,
    generator: torch.Generator,
    encode: Callable[..., Any],
    answer: Callable[..., Any],
) -> Tensor:
    """Loss and mean IoU after the first and the last round, (3,), of one batch; leaves the gradients."""
    batch = views.next()
    device = batch.image.device.type
    # A view whose target a warp lost teaches nothing.
    weight = (batch.truth.sum((1, 2, 3)) > 8).float()
    # drawn from the step, so that several devices do the same number of rounds
    dice = torch.Generator().manual_seed(config.seed + run.step)
    rounds = config.rounds[int(torch.randint(len(config.rounds), (), generator=dice))]
    mix, losses = PromptMix(**config.prompts), LossMix(**config.loss)
    people = Annotator(batch.truth, batch.valid, run.network.radius, mix, generator)
    people.begin()
    total = batch.image.new_zeros(())
    ious = []
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        features = encode(batch.image)
    for number in range(rounds):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits, quality = answer(features, people.maps)
        loss, iou = round_loss(logits, quality, batch.truth, batch.valid, losses)
        told = weight * ~people.slipped
        total = total + (loss * told).sum() / told.sum().clamp(min=1) / rounds
        ious.append((iou * weight).sum() / weight.sum().clamp(min=1))
        if number + 1 < rounds:
            with torch.no_grad():
                people.correct(logits.detach().float().sigmoid())
    total.backward()
    return torch.stack([total.detach(), ious[0].detach(), ious[-1].detach()])


def train(config: TrainConfig, resume: bool = False) -> Path:
    """The path of the averaged weights, `OUT/average.safetensors`, after training.

    Parameters
    ----------
    config
        The run.
    resume
        Go on from `OUT/checkpoint.pt` where there is one. Weights, optimiser, average and step are those of
        the checkpoint; views and prompts are new ones, seeded by the step.

    Raises
    ------
    ValueError
        If the data does not fit the config (see `read_sets`), or the loss is no longer finite.
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
    sets = read_sets(Path(config.data), config.domains, config.shares, config.limit)
    seed = config.seed + 1_000_000 * rank + run.step  # no device ever meets the views of another
    pad = torch.tensor(run.network.pad)
    source = Views(
        sets, run.network.size, config.batch, seed, pad, device, ColourAugmentation(**config.looks)
    )
    views = Prefetcher(source) if device.startswith("cuda") else source
    generator = torch.Generator(device).manual_seed(seed)
    encode: Callable[..., Any] = run.network.encode

    def answer(features: tuple[Tensor, ...], maps: Tensor) -> Any:
        return run.network.decode(run.network.fuse(features, maps))

    if config.compile:
        encode, answer = torch.compile(encode, dynamic=False), torch.compile(answer, dynamic=False)
    began, shown, seen = time.monotonic(), time.monotonic(), []
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
            with (out / f"log-{rank}.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            if rank == 0:
                print(" ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
            shown, seen = now, []
            if not math.isfinite(loss):
                raise ValueError(
                    f"expected a finite loss, got {loss} at step {run.step}; lower `rate` and resume"
                )
        over = False
        if run.step % 50 == 0:  # not in every step: the device would have to be waited for
            stop = torch.tensor(time.monotonic() - began > config.minutes * 60, device=device)
            if world > 1:  # the clock is read on one device only, so that all stop at the same step
                dist.broadcast(stop, 0)
            over = bool(stop)
        if rank == 0 and (run.step % config.checkpoint_every == 0 or last or over):
            run.save(checkpoint)
            shipped = Compact(run.network.config)
            shipped.load_state_dict(run.average)
            save_model(shipped, out / "average.safetensors", half=True, step=str(run.step))
        if over:
            break
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    return out / "average.safetensors"


def train_from_config(path: Path, resume: bool = False) -> Path:
    """The path of the weights trained as the TOML file `path` says; see `TrainConfig` and `train`."""
    return train(read_config(path), resume)
