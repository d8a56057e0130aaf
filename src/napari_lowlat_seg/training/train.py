"""Training: settings, starting weights, optimiser, loop, checkpoints.

`lowlat-seg train CONFIG` runs it on one device, `torchrun --nproc-per-node N -m napari_lowlat_seg train
CONFIG` on several; see docs/training.md. Each image is encoded once per step and decoded for several rounds
of prompts, each with its loss.
"""

from __future__ import annotations

import json
import math
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.models.archives import read_torch_file
from napari_lowlat_seg.models.checkpoints import save_model
from napari_lowlat_seg.models.compact import Compact, CompactConfig, FusionBlock
from napari_lowlat_seg.models.tinyvit import resize_windows
from napari_lowlat_seg.training.data.pictures import read_sets
from napari_lowlat_seg.training.data.prefetch import Prefetcher
from napari_lowlat_seg.training.data.views import Batch, ColourAugmentation, Views, continue_from_parents
from napari_lowlat_seg.training.losses import LossMix, round_loss
from napari_lowlat_seg.training.processes import Worker
from napari_lowlat_seg.training.prompts import BatchAnnotator, PromptMix


def starting_network(config: CompactConfig, start: str, seed: int) -> Compact:
    """Return the network of a config with the weights of its files, random weights elsewhere.

    Parameters
    ----------
    config
        Of the network.
    start
        A .safetensors file of encoder weights (MobileSAM's names) or of a whole compact model, which may
        have another input side and lack further fusion blocks: new blocks add nothing at first. None if
        empty.
    seed
        Of the random weights.

    Raises
    ------
    ValueError
        If a whole model lacks or has other parts.
    """
    torch.manual_seed(seed)
    network = Compact(config)
    if start:
        state = _floats(start)
        if "deep.weight" in state:
            _start_whole(network, state)
        else:
            network.encoder.load_state_dict(resize_windows(state, network.encoder))
    return network


def _floats(path: str) -> dict[str, Tensor]:
    return {name: value.float() for name, value in load_file(path).items()}


def _start_whole(network: Compact, state: dict[str, Tensor]) -> None:
    """Load a whole model; it may lack further fusion blocks."""
    missing, unexpected = network.load_state_dict(state, strict=False)
    unknown = [*unexpected, *(name for name in missing if not name.startswith("blocks."))]
    if unknown:
        raise ValueError(f"expected the weights of the config's model, got none or others for {unknown[:3]}")
    for number, block in enumerate(network.blocks):
        if f"blocks.{number}.local.weight" in missing:
            assert isinstance(block, FusionBlock)
            for part in (block.local, block.attn.proj, block.fc2):  # all residuals of a new block are zero
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
        A model of another input side or with fewer fusion blocks may start one that has them: new parts add
        nothing at first.
    device
        "auto", "cpu", "cuda" or "cuda:1".
    steps, warmup
        Optimiser steps in all, and those of the linear warm-up.
    batch
        Views per step and device.
    rate, encoder_rate
        Peak learning rates of the new parts and of the encoder.
    decay, clip
        Weight decay (of weights, not of biases and norms), and the largest norm of the gradient.
    average
        Decay of the moving average of the weights; the average is the result.
    seed
        Of weights, views and prompts.
    compile
        Whether to compile the network; takes a minute or two at the start.
    checkpoint_every, minutes
        Steps between checkpoints, and minutes after which the run stops with one.
    limit
        Pictures per set, for short tests; all if None.
    rounds
        Numbers of prompts per step, one drawn for each step.
    domains, shares
        Share of the views per domain, and factors on single sets; see `read_sets`.
    edges, synthetic
        Shares of the views, in [0, 1], that are crops along outlines and synthetic anatomies; see
        `training.data.views` and `training.data.synthetic`.
    closer
        Share of the views cut from pictures, in [0, 1], that are cut as a closer look would.
    model, prompts, looks, loss
        Fields of `CompactConfig`, `PromptMix`, `ColourAugmentation` and `LossMix`.
    """

    data: str = "data"
    out: str = "run"
    start: str = ""
    device: str = "auto"
    steps: int = 6000
    warmup: int = 200
    batch: int = 64
    rate: float = 6e-4
    encoder_rate: float = 1.2e-4
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
    edges: float = 0.0
    synthetic: float = 0.0
    closer: float = 0.0
    model: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, float] = field(default_factory=dict)
    looks: dict[str, float] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)


def read_config(path: Path) -> TrainConfig:
    """Read a run from a TOML file.

    Raises
    ------
    ValueError
        If the file is not TOML, names an unknown setting, or corrects the predicted IoU before it is trained.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as wrong:
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
        if not isinstance(table, dict):
            raise ValueError(f"expected a table of settings, got {table!r:.40} in {path}")
        known = {setting.name for setting in fields(kind)}
        unknown = sorted(set(table) - known)
        if unknown:
            raise ValueError(
                f"expected settings out of {sorted(known)}, got {unknown} in {path}; remove or rename them"
            )
        for setting in fields(kind):
            if setting.name in table:
                _check_setting(setting, table[setting.name], path)
    early = sorted(set(given.get("model", {})) & {"quality_slope", "quality_shift"})
    if early:
        raise ValueError(
            f"expected a model whose predicted IoU is not corrected yet, got {early} in {path}; remove them, "
            "and fit them to the trained model with `lowlat-seg models calibrate`"
        )
    if "rounds" in given:
        given["rounds"] = tuple(given["rounds"])
    return TrainConfig(**given)


def _check_setting(setting: Field[Any], value: Any, path: Path) -> None:
    """Raise ValueError for a value of another type than the setting's, and for infinite numbers."""
    default = setting.default
    if default is None:  # a number of pictures
        fits = type(value) is int
    elif default is MISSING:
        free = setting.name == "model"  # its own table is checked as such
        fits = isinstance(value, dict) and (free or all(_is_number(one) for one in value.values()))
    elif isinstance(default, tuple):
        fits = isinstance(value, list) and all(type(one) is type(default[0]) for one in value)
    elif isinstance(default, float):
        fits = _is_number(value)
    else:
        fits = type(value) is type(default)
    if not fits:
        like = "a table of numbers" if default is MISSING else f"a value like {default!r}"
        raise ValueError(f"expected {like} for {setting.name}, got {value!r:.60} in {path}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the factor on all rates in a step counted from 0: linear warm-up, then a cosine to 1 %."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


class Run:
    """Network, optimiser, moving average and step count: the content of a checkpoint."""

    def __init__(self, config: TrainConfig, device: str) -> None:
        shape = CompactConfig(**config.model)
        self.network = starting_network(shape, config.start, config.seed).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        encoder: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in self.network.named_parameters():
            (encoder if name.startswith("encoder.") else rest).append(parameter)
        groups = [
            {"params": [p for p in part if (p.ndim > 1) == decays], "lr": rate, "top": rate,
             "weight_decay": config.decay if decays else 0.0}
            for part, rate in ((encoder, config.encoder_rate), (rest, config.rate))
            for decays in (True, False)
            if part
        ]  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=device.startswith("cuda"))
        self.parameters = encoder + rest
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.step = 0

    def save(self, path: Path) -> None:
        """Write everything needed to continue, whole or not at all."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        with atomic_file(path) as part:
            torch.save({**state, "average": self.average, "step": self.step}, part)

    def load(self, path: Path, device: str) -> None:
        """Continue from a checkpoint, at the rates and decay of the run's own config."""
        state = read_torch_file(path, "expected a checkpoint of this run", device)
        self.network.load_state_dict(state["network"])
        # the checkpoint's settings would silently win over those changed for the continuation
        settings = [
            {key: group[key] for key in ("top", "weight_decay")} for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        self.average, self.step = state["average"], state["step"]

    def save_average(self, path: Path) -> None:
        """Write the averaged weights in half precision, as a model that `load_model` reads."""
        averaged = Compact(self.network.config)
        averaged.load_state_dict(self.average)
        save_model(averaged, path, half=True, step=str(self.step))

    def update(self, config: TrainConfig) -> None:
        """Take one optimiser step with the current gradients, averaged over devices."""
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
    views: Views | Prefetcher[Batch],
    config: TrainConfig,
    generator: torch.Generator,
    encode: Callable[..., Any],
    decode: Callable[..., Any],
) -> Tensor:
    """Return loss and mean IoU after the first and last round, (3,), of one batch; leaves the gradients.

    Parameters
    ----------
    generator
        Draws the prompts, on the device of the views.
    encode
        Features of images (B, 3, S, S).
    decode
        Logits (B, 1, S/2, S/2) and predicted IoUs (B,) of features and prompt maps (B, 3, S, S).
    """
    batch = views.next()
    device = batch.image.device.type
    # A view whose target was warped out of it teaches nothing.
    weight = (batch.truth.sum((1, 2, 3)) > 8).float()
    # drawn from the step, so that several devices do the same number of rounds
    dice = torch.Generator().manual_seed(config.seed + run.step)
    rounds = config.rounds[int(torch.randint(len(config.rounds), (), generator=dice))]
    # the round after which the edge crops go on from their parents' masks
    handover = int(torch.randint(max(1, rounds - 1), (), generator=dice))
    mix, losses = PromptMix(**config.prompts), LossMix(**config.loss)
    annotators = BatchAnnotator(batch.truth, batch.valid, run.network.radius, mix, generator)
    annotators.begin()
    total = batch.image.new_zeros(())
    ious = []
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        features = encode(batch.image)
    for number in range(rounds):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits, quality = decode(features, annotators.maps)
        loss, iou = round_loss(logits, quality, batch.truth, batch.valid, losses)
        counted = weight * ~annotators.wrong_clicks
        total = total + (loss * counted).sum() / counted.sum().clamp(min=1) / rounds
        ious.append((iou * weight).sum() / weight.sum().clamp(min=1))
        if number + 1 < rounds:
            with torch.no_grad():
                probability = logits.detach().float().sigmoid()
                if number == handover and len(batch.edge_crops.squares):
                    continue_from_parents(annotators, probability, batch.edge_crops)
                else:
                    annotators.correct(probability)
    total.backward()
    return torch.stack([total.detach(), ious[0].detach(), ious[-1].detach()])


class Log:
    """Mean losses of the last steps, one line of JSON each time they are written."""

    def __init__(self, path: Path, config: TrainConfig, worker: Worker) -> None:
        self._path, self._config, self._worker = path, config, worker
        self._start = self._written = time.monotonic()
        self._steps: list[Tensor] = []

    @property
    def minutes(self) -> float:
        """Since the beginning."""
        return (time.monotonic() - self._start) / 60

    def add(self, losses: Tensor) -> None:
        """Keep the (3,) of `one_step`, on the device."""
        self._steps.append(losses)

    def write(self, step: int) -> None:
        """Write the means since the last line, and print them in the first process.

        Raises
        ------
        ValueError
            If the loss is not finite.
        """
        loss, first, last = torch.stack(self._steps).mean(0).tolist()
        now = time.monotonic()
        views = self._config.batch * self._worker.world * len(self._steps)
        row = {"step": step, "loss": loss, "iou_first": first, "iou_last": last,
               "views_per_s": views / (now - self._written), "minutes": (now - self._start) / 60,
               "rate": learning_rate(step, self._config)}  # fmt: skip
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._worker.rank == 0:
            print(" ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
        self._written, self._steps = now, []
        if not math.isfinite(loss):
            raise ValueError(f"expected a finite loss, got {loss} at step {step}; lower `rate` and resume")


def train(config: TrainConfig, resume: bool = False, force: bool = False) -> Path:
    """Train, and return the path of the averaged weights, `OUT/average.safetensors`.

    Parameters
    ----------
    config
        The run.
    resume
        Continue from `OUT/checkpoint.pt` where there is one. Weights, optimiser, average and step are
        those of the checkpoint; views and prompts are new ones, seeded by the step.
    force
        Write over another run in `OUT`.

    Raises
    ------
    ValueError
        If the data does not fit the config (see `read_sets`), the loss is no longer finite, another run is in
        `OUT`, or its checkpoint is of another network.
    """
    out = Path(config.out)
    checkpoint, average = out / "checkpoint.pt", out / "average.safetensors"
    if not (resume or force):
        _check_unused(out, (checkpoint, average))
    worker = Worker.start(config.device)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(config, worker.device)
    if resume and checkpoint.exists():
        run.load(checkpoint, worker.device)
    seed = config.seed + 1_000_000 * worker.rank + run.step  # no two processes see the same views
    views = _views(run, config, seed, worker.device)
    generator = torch.Generator(worker.device).manual_seed(seed)
    encode, decode = _halves(run.network, config.compile)
    log = Log(out / f"log-{worker.rank}.jsonl", config, worker)
    over = run.step >= config.steps
    while not over:
        log.add(one_step(run, views, config, generator, encode, decode))
        run.update(config)
        over = run.step == config.steps
        if run.step % 50 == 0 or over:  # not in every step: both wait for the device
            log.write(run.step)
            over = worker.agree(log.minutes > config.minutes) or over
        if worker.rank == 0 and (run.step % config.checkpoint_every == 0 or over):
            run.save(checkpoint)
            run.save_average(average)
    worker.leave()
    return average


def _check_unused(out: Path, files: Sequence[Path]) -> None:
    there = [path.name for path in files if path.exists()]
    if there:
        raise ValueError(
            f"{out} holds {' and '.join(there)} of another run; continue it with --resume, write over it "
            "with --force, or set another `out`"
        )


def _views(run: Run, config: TrainConfig, seed: int, device: str) -> Prefetcher[Batch]:
    sets = read_sets(Path(config.data), config.domains, config.shares, config.limit)
    colours, pad = ColourAugmentation(**config.looks), torch.tensor(run.network.pad)
    views = Views(
        sets, run.network.size, config.batch, seed, pad, device, colours,
        config.edges, config.synthetic, config.closer,
    )  # fmt: skip
    return Prefetcher(views.next, views.device, 10)


def _halves(network: Compact, compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The network's encoder, and its decoder from features and prompt maps."""

    def decode(features: tuple[Tensor, ...], maps: Tensor) -> Any:
        return network.decode(network.fuse(features, maps))

    encode: Callable[..., Any] = network.encode
    if not compiled:
        return encode, decode
    return torch.compile(encode, dynamic=False), torch.compile(decode, dynamic=False)


def train_from_config(path: Path, resume: bool = False, force: bool = False) -> Path:
    """Train as a TOML file says, and return the path of the weights; see `TrainConfig` and `train`."""
    return train(read_config(path), resume, force)
