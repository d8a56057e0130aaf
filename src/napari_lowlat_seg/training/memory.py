"""Training of a memory of other planes: short sequences on which its own masks are fed back.

    python -m napari_lowlat_seg.training.memory DATA OUT --minutes 17 --device cuda

The encoder is frozen. A sequence begins at an
anchor whose mask is given with small errors; every further plane is predicted from the planes before it. The
clock, not a number of steps, ends the run, and a run that was interrupted goes on from its last checkpoint.
See docs/decisions/memory.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.core.masks import THRESHOLD
from napari_lowlat_seg.models.archives import read_torch_file
from napari_lowlat_seg.models.checkpoints import load_model
from napari_lowlat_seg.models.compact import Compact
from napari_lowlat_seg.models.plane_memory import (
    FROM_NETWORK,
    SLOTS,
    MemoryConfig,
    MemoryOutput,
    PlaneMemory,
    slot_features,
)
from napari_lowlat_seg.training.data.groups import SyntheticVolumes, load_groups
from napari_lowlat_seg.training.data.prefetch import Prefetcher
from napari_lowlat_seg.training.data.sequences import (
    GIVEN,
    MIN_PIXELS,
    PLANES,
    STEPS,
    SequenceBatch,
    SequenceSampler,
    rgb,
)
from napari_lowlat_seg.training.losses import dice_loss, normalized_focal_loss

MAX_SYNTHETIC = 1200
"""Synthetic volumes kept at a time."""


@dataclass
class _Curves:
    """What is known of each plane of a batch of sequences, plane by plane; see `_summary`."""

    losses: list[Tensor] = field(default_factory=list)
    ious: list[Tensor] = field(default_factory=list)
    present: list[Tensor] = field(default_factory=list)
    target: list[Tensor] = field(default_factory=list)
    counted: list[Tensor] = field(default_factory=list)

    def joined(self, groups: list[str]) -> dict[str, Any]:
        """The loss of all planes, and (B, STEPS) of the rest."""
        planes = {
            name: torch.stack(getattr(self, name), 1) for name in ("ious", "present", "target", "counted")
        }
        return {"loss": torch.stack(self.losses).sum(), "groups": groups, **planes}


class Trainer:
    """Memory, optimiser, moving average, and how long has been trained.

    Parameters
    ----------
    network
        The frozen network, float32; it is moved to the device.
    device
        Where to train.
    config
        Of the memory.
    rate, slow
        Peak learning rates of new parts and of `FROM_NETWORK`, which learn more slowly.
    half
        Whether the encoder runs in half precision.
    """

    def __init__(
        self, network: Compact, device: str, config: MemoryConfig, rate: float, slow: float, half: bool
    ) -> None:
        self.device = device
        self.network = network.to(device).requires_grad_(False).eval()
        self.encoder = copy.deepcopy(self.network)
        if half:
            self.encoder.half()
            self.encoder.mean, self.encoder.std = self.network.mean, self.network.std
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.manual_seed(7)
        self.memory = PlaneMemory(self.network, config).to(device).train()
        groups = []
        for slowly, top in ((False, rate), (True, slow)):
            for decays in (True, False):
                part = [
                    parameter
                    for name, parameter in self.memory.named_parameters()
                    if (name.split(".")[0] in FROM_NETWORK) == slowly and (parameter.ndim > 1) == decays
                ]
                groups.append({"params": part, "lr": top, "top": top, "weight_decay": 0.02 * decays})
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=device.startswith("cuda"))
        self.average = {name: value.detach().clone() for name, value in self.memory.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.encode: Callable[[Tensor], tuple[Tensor, ...]] = self.encoder.encode
        self.predict: Callable[..., MemoryOutput] = self._predict
        self.generator = torch.Generator(device=device).manual_seed(11)

    def save(self, path: Path) -> None:
        """Write everything needed to continue, whole or not at all."""
        state = {"memory": self.memory.state_dict(), "optimizer": self.optimizer.state_dict()}
        progress = {"average": self.average, "step": self.step, "seconds": self.seconds}
        with atomic_file(path) as part:
            torch.save({**state, **progress}, part)

    def load(self, path: Path) -> None:
        """Continue from what `save` wrote."""
        state = read_torch_file(path, "expected a checkpoint of this run", self.device)
        self.memory.load_state_dict(state["memory"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]

    def start_from(self, path: Path, before: Compact | None = None) -> None:
        """Begin with the weights of a memory's file, which `PlaneMemory.load` checks.

        `before` is the network that it was trained for, if not this one.
        """
        started = PlaneMemory.load(path, self.network.cpu())
        if before is not None:
            started.follow(before)
        self.memory.load_state_dict(started.state_dict())
        self.network.to(self.device)
        self.average = {name: value.detach().clone() for name, value in self.memory.state_dict().items()}

    def save_average(self, path: Path) -> None:
        """Write the averaged weights as a file for `PlaneMemory.load`, whole or not at all."""
        memory = PlaneMemory(self.network, self.memory.config).to(self.device)
        memory.load_state_dict(self.average)
        with atomic_file(path) as part:
            memory.eval().save(part, steps=str(self.step))

    def _predict(
        self, here: tuple[Tensor, ...], known: tuple[Tensor, ...], masks: Tensor, described: Tensor
    ) -> MemoryOutput:
        """The memory's output on planes `here` (B, ...).

        `known` (B, SLOTS, ...) are features of the remembered planes, masks (B, SLOTS, 1, S, S), `described`
        (B, SLOTS, SLOT_FEATURES).
        """
        batch = len(described)
        entries = self.memory.remember([part.flatten(0, 1) for part in known], masks.flatten(0, 1))
        parts = [part.unflatten(0, (batch, SLOTS)).unbind(1) for part in entries]
        slots = [type(entries)(*(part[slot] for part in parts)) for slot in range(SLOTS)]
        output: MemoryOutput = self.memory(here, slots, described)
        return output

    def compile(self, sequences: SequenceBatch) -> str:
        """Compile encoder and memory with torch; returns what came of it. What fails runs as before."""
        report = []
        plain_encode, plain_predict = self.encode, self.predict
        try:
            self.encode = torch.compile(self.encoder.encode, dynamic=False)
            self.features(sequences)
            report.append("encoder compiled")
        except Exception as problem:
            self.encode = plain_encode
            report.append(f"encoder not compiled: {problem!r:.300}")
        try:
            self.predict = torch.compile(self._predict, dynamic=False)
            self.run_sequences(sequences, 1.0)
            report.append("memory compiled")
        except Exception as problem:
            self.predict = plain_predict
            report.append(f"memory not compiled: {problem!r:.300}")
        self.optimizer.zero_grad(set_to_none=True)
        return ", ".join(report)

    @torch.no_grad()
    def features(self, sequences: SequenceBatch) -> tuple[Tensor, ...]:
        """Return the embeddings of all planes, each (B, PLANES, ...)."""
        batch = len(sequences.image)
        image = rgb(sequences.image.flatten(0, 1), sequences.inside.flatten(0, 1))
        image = image.contiguous(memory_format=torch.channels_last)
        return tuple(part.unflatten(0, (batch, PLANES)) for part in self.encode(image))

    def train_step(self, sequences: SequenceBatch, done: float) -> dict[str, Any]:
        """Take one optimiser step at the fraction `done` of the whole run; returns what the log keeps."""
        warm = min(1.0, (self.step + 1) / 200)
        factor = warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
        for group in self.optimizer.param_groups:
            group["lr"] = group["top"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        measured = self.run_sequences(sequences, done)
        norm = torch.nn.utils.clip_grad_norm_(self.memory.parameters(), 1.0)
        if torch.isfinite(norm):  # the norm is logged, so that a step left out is seen
            self.optimizer.step()
        self.step += 1
        decay = min(0.999, (1 + self.step) / (20 + self.step))
        now = self.memory.state_dict()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), [now[k] for k in self.average], 1 - decay)
        return {**measured, "norm": norm}

    def run_sequences(self, sequences: SequenceBatch, done: float) -> dict[str, Any]:
        """Propagate every object along its sequence; gradients are left in the memory's parameters.

        Masks are fed back without a gradient, so each plane's loss is propagated back at once.
        """
        batch, size = len(sequences.image), self.memory.size
        features = self.features(sequences)
        rows = torch.arange(batch, device=self.device)
        truth = sequences.truth.float()
        masks = torch.zeros(batch, PLANES, 1, size, size, device=self.device)
        masks[:, 0] = self.with_errors(truth[:, 0], 0.05)
        masks[:, 1] = self.with_errors(truth[:, 1], 0.05)
        before = torch.zeros(batch, dtype=torch.long, device=self.device)
        earlier, anchor = before.clone(), before.clone()
        other = sequences.other.long()  # plane 1 if it is an anchor
        curves = _Curves()
        for place in range(2, PLANES):
            slots = torch.stack([anchor, other, before, earlier], 1)
            apart = sequences.steps[:, place, None] - sequences.steps.gather(1, slots)
            spare = torch.stack([anchor > 0, ~sequences.other, before == 0, earlier == before], 1)
            depth = apart * sequences.thickness[:, None]
            described = slot_features(apart, depth, slots < 2, spare)
            with torch.autocast(self.device.partition(":")[0], torch.bfloat16):
                output = self.predict(
                    tuple(part[:, place] for part in features),
                    tuple(part[rows[:, None], slots] for part in features),
                    masks[rows[:, None], slots],
                    described,
                )
            given = sequences.given & (place < 2 + GIVEN)
            found = self._learn(output, sequences, place, given, curves)
            with torch.no_grad():  # what is fed back
                kept = F.interpolate(found, (size, size), mode="bilinear")
                chance = torch.rand(batch, device=self.device)
                lent = given | (curves.target[-1] & (chance < 0.1 * (1 - done)))
                with_errors = self.with_errors(truth[:, place], 0.12)
                masks[:, place] = torch.where(lent[:, None, None, None], with_errors, kept)
                present = (output.presence > 0) & ((found > THRESHOLD).sum((1, 2, 3)) > 0)
                present = (present | lent) & sequences.exists[:, place]
                earlier = torch.where(present, before, earlier)
                before = torch.where(present, place, before)
        return curves.joined(sequences.groups)

    def _learn(
        self, output: MemoryOutput, sequences: SequenceBatch, place: int, given: Tensor, curves: _Curves
    ) -> Tensor:
        """Back-propagate the loss of one plane and add to the curves; the probability (B, 1, S/2, S/2)."""
        truth = sequences.truth[:, place].float()
        target = (F.avg_pool2d(truth[:, None], 2) > 0.5).float()
        valid = F.avg_pool2d(sequences.inside[:, place, None].float(), 2) > 0.5
        pixels, shown = truth.sum((1, 2)), sequences.shown[:, place]
        present = (pixels >= MIN_PIXELS) & shown
        counts = sequences.exists[:, place] & ~given
        focal = normalized_focal_loss(output.logits, torch.where(valid, target, -1.0))
        dice = dice_loss(output.logits, target, valid.float())
        mask_loss = torch.where(present, focal + dice, 0.1 * focal) * (counts & shown)
        # whether a few pixels are the object does not count
        sure = counts & (present | (pixels == 0) | ~shown)
        presence = F.binary_cross_entropy_with_logits(output.presence, present.float(), reduction="none")
        probability = output.logits.detach().sigmoid() * valid
        found = probability > THRESHOLD
        union = (found | (target > 0)).sum((1, 2, 3)).clamp(min=1)
        iou = (found & (target > 0)).sum((1, 2, 3)) / union
        quality = (output.quality - iou) ** 2 * (present & counts)
        loss = (mask_loss + 0.5 * presence * sure + quality).sum() / len(truth) / STEPS
        if loss.requires_grad:
            loss.backward()
        curves.losses.append(loss.detach())
        curves.ious.append(torch.where(present & counts, iou, torch.nan))
        curves.present.append((output.presence > 0).detach())
        curves.target.append(present)
        curves.counted.append(sure)
        return probability

    @torch.no_grad()
    def with_errors(self, truth: Tensor, amount: float) -> Tensor:
        """Return soft masks (B, 1, S, S) with errors of the outline, from true masks (B, S, S) in {0, 1}.

        Outlines are moved by about `amount` of the object's own size at the most.
        """
        batch, size = truth.shape[0], truth.shape[-1]
        coarse = torch.randn(batch, 2, 12, 12, device=truth.device, generator=self.generator)
        directions = F.interpolate(coarse, (size, size), mode="bicubic").permute(0, 2, 3, 1)
        reach = truth.sum((1, 2)).clamp(min=1).sqrt() / size * 2
        share = torch.rand(batch, device=truth.device, generator=self.generator)
        moved = directions * (amount * reach * share)[:, None, None, None]
        identity = torch.eye(2, 3, device=truth.device).expand(batch, -1, -1)
        grid = F.affine_grid(identity, [batch, 1, size, size], align_corners=False)
        soft = F.avg_pool2d(truth[:, None], 3, 1, 1)
        seen = F.grid_sample(soft, grid + moved, "bilinear", "border", False)
        return torch.sigmoid((seen - 0.5) * 14) * (seen > 0.02)


class _Log:
    """Lines of JSON, each written at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a")

    def write(self, **values: Any) -> None:
        self._file.write(json.dumps({"at": round(time.time(), 1), **values}) + "\n")
        self._file.flush()


def train_memory(
    data: Path,
    out: Path,
    *,
    minutes: float,
    device: str = "cpu",
    batch: int = 32,
    workers: int = 8,
    compiled: bool = False,
    start: Path | None = None,
    checkpoint_every: float = 120.0,
    config: MemoryConfig | None = None,
    seed: int = 1,
    network: Compact | None = None,
    before: Compact | None = None,
) -> Path:
    """Train for so many minutes, earlier runs in `out` included; return the file of averaged weights.

    Parameters
    ----------
    data
        Folder with `volumes/` and `pictures/`; see `load_groups`.
    out
        Folder that gets `last.pt`, `memory.safetensors`, `log.jsonl`, and `done` at the end. A file `stop`
        in it ends the run early.
    minutes
        Of training, by the clock.
    batch
        Sequences per step.
    workers
        Processes that make synthetic volumes.
    compiled
        Whether to compile encoder and memory.
    start
        Weights of an earlier run to begin with.
    checkpoint_every
        Seconds between checkpoints.
    config
        Of the memory.
    seed
        Of what is drawn.
    network
        The frozen network; the default model's if None.
    before
        The network that `start` was trained for, if it is another one.

    Raises
    ------
    ValueError
        For volumes, pictures or a `start` that cannot be used.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = _Log(out / "log.jsonl")
    network = network or _network("default")
    trainer = Trainer(network, device, config or MemoryConfig(), 6e-4, 2e-4, half=device.startswith("cuda"))
    if (out / "last.pt").exists():
        trainer.load(out / "last.pt")
        log.write(resumed=trainer.step, seconds=trainer.seconds)
    elif start is not None:
        trainer.start_from(start, before)
        log.write(started=start.name)
    groups, found = load_groups(data, device)
    runs = log.path.read_text().count('"found"')
    fresh = seed + 1000 * trainer.step + runs  # what failed once is not drawn again
    volumes = groups["synthetic"][1]
    first = 10_000_000 + 100_000 * fresh % 2**31
    synthetic = SyntheticVolumes(volumes, device, workers, MAX_SYNTHETIC, first)
    sampler = SequenceSampler(groups, network.size, device, fresh)
    while not any(members for _, members in groups.values()):  # nothing but what is still being made
        synthetic.collect()
        time.sleep(0.1)

    def draw() -> SequenceBatch:
        synthetic.collect()
        return sampler.batch(batch)

    prefetcher = Prefetcher(draw, device)
    parameters = sum(parameter.numel() for parameter in trainer.memory.parameters())
    log.write(found=found, batch=batch, parameters=parameters)
    if compiled:
        began = time.monotonic()
        report = trainer.compile(prefetcher.next())
        log.write(compiled=report, seconds=round(time.monotonic() - began, 1))
    try:
        _train(trainer, prefetcher, synthetic, log, 60 * minutes, checkpoint_every, out)
    finally:
        prefetcher.ended = True
        synthetic.close()
    trainer.save(out / "last.pt")
    trainer.save_average(out / "memory.safetensors")
    log.write(done=trainer.step, seconds=round(trainer.seconds, 1))
    (out / "done").write_text(str(trainer.step))
    return out / "memory.safetensors"


def _train(
    trainer: Trainer,
    prefetcher: Prefetcher[SequenceBatch],
    synthetic: SyntheticVolumes,
    log: _Log,
    seconds: float,
    checkpoint_every: float,
    out: Path,
) -> None:
    """Take steps until so many seconds are over or there is a file `stop` in `out`."""
    last = saved = time.monotonic()
    measured: list[dict[str, Any]] = []
    while trainer.seconds < seconds and not (out / "stop").exists():
        measured.append(trainer.train_step(prefetcher.next(), trainer.seconds / seconds))
        if trainer.step % 50 == 0 or trainer.step in (1, 5, 20):
            row: dict[str, Any] = {"seconds": round(trainer.seconds, 1), "synthetic": len(synthetic.into)}
            if synthetic.problems:
                row["problems"] = [len(synthetic.problems), synthetic.problems[-1]]
            log.write(step=trainer.step, **row, **_summary(measured))
            measured = []
        now = time.monotonic()
        trainer.seconds, last = trainer.seconds + now - last, now
        if now - saved > checkpoint_every:
            trainer.save(out / "last.pt")
            trainer.save_average(out / "memory.safetensors")
            saved = now


def _network(name: str) -> Compact:
    network = load_model(name)
    if not isinstance(network, Compact):
        raise ValueError(f"a memory is trained beside a compact network; {name} is none")
    return network


def _summary(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Means for the log: loss, IoU by plane and by group, and how often presence was right.

    "ended" is the share of planes without the object on which the memory found none, "kept" that of planes
    with it on which it did.
    """
    iou = torch.cat([row["ious"] for row in measured]).float()
    target, present, counted = (
        torch.cat([row[name] for row in measured]) for name in ("target", "present", "counted")
    )
    names = [name for row in measured for name in row["groups"]]
    per_group: dict[str, list[Tensor]] = defaultdict(list)
    for name, ious in zip(names, iou.cpu(), strict=True):
        per_group[name].append(ious)

    def mean(name: str) -> float:
        return float(torch.stack([row[name] for row in measured]).mean())

    def share(what: Tensor, of: Tensor) -> float:
        return round(float((what & of).sum() / of.sum().clamp(min=1)), 3)

    return {
        "loss": round(mean("loss"), 4),
        "norm": round(mean("norm"), 3),
        "iou": [round(float(column.nanmean()), 3) for column in iou.unbind(1)],
        "ended": share(~present, counted & ~target),
        "kept": share(present, counted & target),
        "groups": {
            name: round(float(torch.stack(rows).nanmean()), 3) for name, rows in sorted(per_group.items())
        },
    }


def _arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=17)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--start", type=Path)
    parser.add_argument(
        "--network", type=_network, help="a file of the frozen network; the default's if none"
    )
    parser.add_argument("--before", type=_network, help="the network that START was trained for, if another")
    parser.add_argument("--checkpoint-every", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    given = vars(_arguments())
    train_memory(given.pop("data"), given.pop("out"), **given)
