"""Latency: how long a model takes to embed a picture and to answer a prompt, and how much memory it needs.

All models are timed in turns within one process, so that a busy minute of the machine hits each of them. Peak
memory is taken from a fresh process a model that does the same work and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from .prompts import Click, Prompt
from .reports import latency_table, machine, save_json
from .rivals import Segmenter, load_segmenter

WARM_UP = 2
SAT_SIDE = 16


def latency(
    models: Sequence[Segmenter],
    image: np.ndarray,
    *,
    embeds: int = 3,
    clicks: int = 40,
    sat_seconds: float = 60.0,
    progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Times of every model on one picture, one row a model.

    A click is a `predict` with one more click than before and the previous answer, 1 to 10 clicks in all and
    then from the start: what a person at work causes. Times are wall-clock seconds until the mask is a numpy
    array.

    Parameters:
        models: with different names.
        image: (H, W) or (H, W, 3).
        embeds, clicks: how often each is measured, after a warm-up.
        sat_seconds: "segment anything" time: the picture embedded once and one click on each cell of a 16 x
            16 grid, one by one. The grid is visited evenly for at most so many seconds a model, and the rest
            extrapolated ("sat_clicks" says how many were done); 0 leaves it out.
        progress: called after each step of each model.

    Returns:
        Rows with model, form, device, embed_s (median), click_p50_s, click_p95_s, click_p99_s, sat_s or None,
        sat_clicks.
    """
    embed_times: dict[str, list[float]] = {model.name: [] for model in models}
    click_times: dict[str, list[float]] = {model.name: [] for model in models}
    embeddings: dict[str, Any] = {}
    for turn in range(embeds + 1):  # the first is the warm-up
        for model in models:
            start = perf_counter()
            embeddings[model.name] = model.embed(image)
            settle(model)
            embed_times[model.name] += [perf_counter() - start] if turn else []
            progress()
    walks = {model.name: _Walk(model, embeddings[model.name], image.shape[:2]) for model in models}
    for turn in range(clicks + WARM_UP):
        for model in models:
            seconds = walks[model.name].step()
            click_times[model.name] += [seconds] if turn >= WARM_UP else []
            progress()
    rows = []
    for model in models:
        p50, p95, p99 = (float(np.percentile(click_times[model.name], p)) for p in (50, 95, 99))
        embed = float(np.median(embed_times[model.name]))
        sat, done = _sat(model, image, sat_seconds) if sat_seconds > 0 else (None, 0)
        progress()
        rows.append({
            "model": model.name, "form": model.form, "device": device_of(model), "embed_s": embed,
            "click_p50_s": p50, "click_p95_s": p95, "click_p99_s": p99, "sat_s": sat, "sat_clicks": done,
        })  # fmt: skip
    return rows


def run_latency(
    models: Sequence[str],
    size: tuple[int, int] = (1024, 1024),
    *,
    device: str = "auto",
    closer_look: str = "auto",
    clicks: int = 40,
    sat_seconds: float = 60.0,
    memory: bool = True,
    json: str | Path | None = None,
    show: Callable[[str], None] | None = print,
) -> dict[str, Any]:
    """The latency benchmark from names to report; shows a table, writes JSON if asked to.

    Parameters:
        models: lines of text that `rivals.load_segmenter` understands.
        size: (rows, cols) of a synthetic picture of blobs.
        device, closer_look: as in `load_segmenter`.
        clicks, sat_seconds: as in `latency`.
        memory: also measure peak memory, in a fresh process a model.
        json: file to write; checked before the work starts.
        show: called with the finished table as text; None for silence.

    Returns:
        What the JSON file holds: "rows" as from `latency` with peak_ram_mib and peak_gpu_mib (None where
        there is none), "size", and what was run on what.

    Raises:
        ValueError: for a size, number or name that cannot be used, before the work starts.
        ImportError: if an ONNX model is wanted without onnxruntime.
    """
    if min(size) < 1 or clicks < 1:
        raise ValueError(f"size and clicks must be at least 1, got {size[0]} x {size[1]} and {clicks}")
    if json is not None and not Path(json).resolve().parent.is_dir():
        raise ValueError(f"the folder of {json} must exist; make it first")
    if not models or len(set(models)) < len(models):
        raise ValueError(f"expected different models, at least one; got {', '.join(models) or 'none'}")
    made = [load_segmenter(spec, device=device, closer_look=closer_look) for spec in models]
    embeds = 3
    with tqdm(total=len(made) * (embeds + 1 + clicks + WARM_UP + 1), unit="step", desc="latency") as bar:
        image = blobs(size)
        rows = latency(
            made, image, embeds=embeds, clicks=clicks, sat_seconds=sat_seconds, progress=bar.update
        )
    for spec, row in zip(models, rows):
        ram, gpu = _memory_elsewhere(spec, size, device, closer_look) if memory else (None, None)
        row.update(peak_ram_mib=ram, peak_gpu_mib=gpu)
    report = {"kind": "latency", "size": list(size), "rows": rows, "machine": machine()}
    if json is not None:
        save_json(report, json)
    if show is not None:
        show(latency_table(report))
    return report


def blobs(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A (rows, cols) uint8 picture of soft blobs and grain, always the same for one seed."""
    rng = np.random.default_rng(seed)
    rows, cols = (np.linspace(0, 1, n, dtype=np.float32) for n in size)
    picture = rng.normal(0, 0.08, size).astype(np.float32)
    for _ in range(24):
        height, row, col, spread = rng.uniform([0.2, 0, 0, 0.02], [0.6, 1, 1, 0.1])
        picture += height * np.exp(-((rows[:, None] - row) ** 2 + (cols - col) ** 2) / spread**2).astype(
            np.float32
        )
    return (255 * np.clip(picture, 0, 1)).astype(np.uint8)


def device_of(model: Segmenter) -> str:
    """The torch device of one of our own models, "cpu" for anything else."""
    runtime = getattr(getattr(model, "predictor", None), "runtime", None)
    return str(getattr(runtime, "device", "cpu"))


def settle(model: Segmenter) -> None:
    """Wait until the model's GPU has done what it was given; embeddings stay there, so nothing else waits."""
    if device_of(model).startswith("cuda"):
        import torch

        torch.cuda.synchronize(device_of(model))


class _Walk:
    """Clicks on one picture, one more each time, from the start after ten."""

    def __init__(self, model: Segmenter, embedding: Any, shape: tuple[int, ...], length: int = 10) -> None:
        rng = np.random.default_rng(1)
        places = rng.uniform(0, 1, (length, 2)) * (np.array(shape) - 1)
        self._clicks: list[Prompt] = [
            Click((float(row), float(col)), positive=i % 3 < 2) for i, (row, col) in enumerate(places)
        ]
        self._model, self._embedding = model, embedding
        self._given = 0
        self._previous: Any = None

    def step(self) -> float:
        """Seconds that the next click took."""
        if self._given == len(self._clicks):
            self._given, self._previous = 0, None
        self._given += 1
        start = perf_counter()
        self._previous = self._model.predict(self._embedding, self._clicks[: self._given], self._previous)
        np.asarray(self._previous.mask)
        return perf_counter() - start


def _sat(model: Segmenter, image: np.ndarray, budget: float) -> tuple[float, int]:
    """Seconds for the whole grid, and how many of its clicks were really given."""
    centres = (np.arange(SAT_SIDE) + 0.5) / SAT_SIDE
    rows, cols = image.shape[:2]
    grid = [(r * rows - 0.5, c * cols - 0.5) for r in centres for c in centres]
    # A stride that is coprime to the grid visits all parts of it early, so that a part stands for the whole.
    order = [(i * 97) % len(grid) for i in range(len(grid))]
    start = perf_counter()
    embedding = model.embed(image)
    settle(model)
    embedded = perf_counter() - start
    done, start = 0, perf_counter()
    for place in order:
        row, col = (max(0.0, x) for x in grid[place])
        np.asarray(model.predict(embedding, [Click((row, col))], None).mask)
        done += 1
        if perf_counter() - start > budget:
            break
    return embedded + (perf_counter() - start) * len(grid) / done, done


def _memory_elsewhere(
    spec: str, size: tuple[int, int], device: str, closer_look: str
) -> tuple[float | None, float | None]:
    """Peak RAM and GPU memory in MiB of a process that only loads the model, embeds and answers 3 clicks."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_memory_here, spec, size, device, closer_look).result()


def _memory_here(
    spec: str, size: tuple[int, int], device: str, closer_look: str
) -> tuple[float | None, float | None]:
    model = load_segmenter(spec, device=device, closer_look=closer_look)
    image = blobs(size)
    walk = _Walk(model, model.embed(image), image.shape)
    for _ in range(3):
        walk.step()
    gpu = None
    if device_of(model).startswith("cuda"):
        import torch

        gpu = torch.cuda.max_memory_allocated(device_of(model)) / 2**20
    return peak_ram(), gpu


def peak_ram() -> float | None:
    """Most memory this process ever held in MiB, or None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():  # the figure of getrusage includes what the parent held before this process began
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        return None if line is None else int(line.split()[1]) / 1024
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 1024
