"""Latency benchmark: how long a model takes to embed an image and to predict a mask, and its peak memory.

All models are timed in turns within one process, so that a busy minute of the machine hits each of them. Peak
memory is measured in a fresh process a model that does the same work and nothing else. Busy loops, processes
that each keep a processor busy, show the times beside other work.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
from tqdm import tqdm

from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.evaluation.inputs.segmenters import Segmenter, load_segmenter
from napari_lowlat_seg.evaluation.report import (
    check_folders,
    latency_table,
    machine,
    plotting,
    save_json,
    save_latency_plot,
)
from napari_lowlat_seg.io.samples import blobs

WARM_UP = 2
PAUSE = 0.05  # seconds between models: idle threads of the last one spin for a while
SAT_SIDE = 16  # clicks along a side in the "segment anything" test

# It says when it runs, and ends with its input: also when this process is killed.
_BUSY_LOOP = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
print("busy", flush=True)
while True:
    pass
"""


def latency(
    models: Sequence[Segmenter],
    image: np.ndarray,
    *,
    embeds: int = 3,
    clicks: int = 40,
    sat_seconds: float = 60.0,
    progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Return the times of every model on one image, one row a model.

    A click is a `predict` with one more click than before and the previous prediction, 1 to 10 clicks in all
    and then from the start, as in interactive use. Times are wall-clock seconds until the mask is a numpy
    array: of the first prediction, which a model with a closer look shows at once, and of the final one.

    Parameters
    ----------
    models
        With different names.
    image
        (H, W) or (H, W, 3).
    embeds, clicks
        How often each is measured, after a warm-up.
    sat_seconds
        SAT, the "segment anything" test of SegNext (CVPR 2024): the image embedded once and one positive
        click on each of 16 x 16 points, (32 + 64 i, 32 + 64 j) of the image stretched to 1024 x 1024, one by
        one. They are visited evenly for at most so many seconds a model, and the rest extrapolated
        ("sat_clicks" tells how many were done); 0 leaves it out.
    progress
        Called after each step of each model.

    Returns
    -------
    list of dict
        "model", "form", "device", "embed_s" (median), "first_p50_s", "first_p95_s", "first_p99_s",
        "click_p50_s", "click_p95_s", "click_p99_s", "sat_s" or None, "sat_clicks", "sat_first_s" (first
        predictions only; None where they are the final ones) and "sat_batch_s" (None for models without
        `predict_batch`).
    """
    embed_times: dict[str, list[float]] = {model.name: [] for model in models}
    click_times: dict[str, list[tuple[float, float]]] = {model.name: [] for model in models}
    embeddings: dict[str, Any] = {}
    for turn in range(embeds + 1):  # the first is the warm-up
        for model in models:
            sleep(PAUSE)
            start = perf_counter()
            embeddings[model.name] = model.embed(image)
            settle(model)
            embed_times[model.name] += [perf_counter() - start] if turn else []
            progress()
    sequences = {
        model.name: _ClickSequence(model, embeddings[model.name], image.shape[:2]) for model in models
    }
    for turn in range(clicks + WARM_UP):
        for model in models:
            sleep(PAUSE)
            seconds = sequences[model.name].step()
            click_times[model.name] += [seconds] if turn >= WARM_UP else []
            progress()
    rows = []
    for model in models:
        row: dict[str, Any] = {
            "model": model.name, "form": model.form, "device": device_of(model),
            "embed_s": float(np.median(embed_times[model.name])),
        }  # fmt: skip
        for at, kind in enumerate(("first", "click")):
            for p in (50, 95, 99):
                row[f"{kind}_p{p}_s"] = float(np.percentile(np.array(click_times[model.name])[:, at], p))
        row |= _sats(model, image, sat_seconds)
        progress()
        rows.append(row)
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
    curves: bool = False,
    busy: int = 0,
    json: str | Path | None = None,
    plot: str | Path | None = None,
    show: Callable[[str], None] | None = print,
) -> dict[str, Any]:
    """Run the latency benchmark; show a table, write JSON and a plot if asked to.

    Parameters
    ----------
    models
        Lines of text that `load_segmenter` understands.
    size
        (rows, cols) of a synthetic image of blobs.
    device, closer_look
        As in `load_segmenter`.
    clicks, sat_seconds
        As in `latency`.
    memory
        Also measure peak memory, in a fresh process a model.
    curves
        Also measure how the cost of our models grows; see `profiling.curves`.
    busy
        Processes in an endless loop that run beside all that is timed.
    json, plot
        Files to write; checked before the work starts.
    show
        Called with the finished table as text; None for silence.

    Returns
    -------
    dict
        The content of the JSON file: "rows" as from `latency` with "peak_ram_mib" and "peak_gpu_mib" (None
        where there is none) and, for our own models, "stages", "floor" and "plane_s" (see `profiling`);
        "costs", the curves if asked for; "size", "busy" and the machine.

    Raises
    ------
    ValueError
        For an unusable size, number or name, before the work starts.
    ImportError
        If an ONNX model is wanted without onnxruntime.
    RuntimeError
        If a busy loop does not start, or ends before the measurement does.
    """
    _check(models, size, clicks, busy)
    check_folders(json, plot)
    if plot is not None:
        plotting()
    made = [load_segmenter(spec, device=device, closer_look=closer_look) for spec in models]
    embeds, costs = 3, []
    steps = len(made) * (embeds + 1 + clicks + WARM_UP + 1)
    with busy_loops(busy), tqdm(total=steps, unit="step", desc="latency") as bar:
        image = blobs(size)
        rows = latency(
            made, image, embeds=embeds, clicks=clicks, sat_seconds=sat_seconds, progress=bar.update
        )
        for model, row in zip(made, rows):
            if (ours := getattr(model, "predictor", None)) is not None:
                from napari_lowlat_seg.evaluation.analysis import profiling  # here, because it needs torch

                row["stages"], row["floor"] = profiling.stages(ours, image), profiling.floor(ours)
                row["plane_s"] = profiling.plane_seconds(ours)
                costs += profiling.curves(ours) if curves else []
    for spec, row in zip(models, rows):
        ram, gpu = _peak_memory(spec, size, device, closer_look) if memory else (None, None)
        row.update(peak_ram_mib=ram, peak_gpu_mib=gpu)
    report = {
        "kind": "latency", "size": list(size), "busy": busy, "rows": rows, "costs": costs,
        "machine": machine(),
    }  # fmt: skip
    if json is not None:
        save_json(report, json)
    if plot is not None:
        save_latency_plot(report, plot)
    if show is not None:
        show(latency_table(report))
    return report


def _check(models: Sequence[str], size: tuple[int, int], clicks: int, busy: int) -> None:
    if busy < 0:
        raise ValueError(f"busy must be at least 0, got {busy}")
    if min(size) < 1 or clicks < 1:
        raise ValueError(f"size and clicks must be at least 1, got {size[0]} x {size[1]} and {clicks}")
    if not models or len(set(models)) < len(models):
        raise ValueError(f"expected different models, at least one; got {', '.join(models) or 'none'}")


@contextmanager
def busy_loops(count: int) -> Iterator[list[int]]:
    """Run so many processes in an endless loop inside the `with` block; yields their process numbers.

    Raises
    ------
    RuntimeError
        If one does not start, or has ended by itself at the end: the times would be wrong.
    """
    loops: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            loops.append(
                subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _BUSY_LOOP],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
        for loop in loops:
            if loop.stdout is None or loop.stdout.readline().strip() != b"busy":
                raise RuntimeError(f"a busy loop could not be started with {sys.executable!r}")
        yield [loop.pid for loop in loops]
        ended = sum(loop.poll() is not None for loop in loops)
        if ended:
            raise RuntimeError(f"{ended} of {count} busy loops ended early; measure again")
    finally:
        for loop in loops:
            with loop:  # closes both pipes and waits
                loop.kill()


def device_of(model: Segmenter) -> str:
    """Return the torch device of a model that tells it, "cpu" for any other."""
    runtime = getattr(getattr(model, "predictor", None), "runtime", model)
    return str(getattr(runtime, "device", "cpu"))


def settle(model: Segmenter) -> None:
    """Wait until the model's GPU is idle; embeddings stay on it, so nothing else waits for them."""
    if device_of(model).startswith("cuda"):
        import torch

        torch.cuda.synchronize(device_of(model))


class _ClickSequence:
    """Clicks on one picture, one more each time, from the start after ten."""

    def __init__(self, model: Segmenter, embedding: Any, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(1)
        places = rng.uniform(0, 1, (10, 2)) * (np.array(shape) - 1)
        self._clicks: list[Prompt] = [
            Click((float(row), float(col)), positive=i % 3 < 2) for i, (row, col) in enumerate(places)
        ]
        self._model, self._embedding = model, embedding
        self._given = 0
        self._previous: Any = None

    def step(self) -> tuple[float, float]:
        """Give the next click; return seconds until the first and the final mask."""
        if self._given == len(self._clicks):
            self._given, self._previous = 0, None
        self._given += 1
        start, times = perf_counter(), []
        for prediction in predictions(
            self._model, self._embedding, self._clicks[: self._given], self._previous
        ):
            np.asarray(prediction.mask)
            times.append(perf_counter() - start)
            self._previous = prediction
        return times[0], times[-1]


def predictions(model: Segmenter, embedding: Any, prompts: Sequence[Prompt], previous: Any) -> Iterator[Any]:
    """Yield a model's predictions, the quicker first; most models make one. Arguments as of `predict`."""
    several = getattr(model, "answers", None)
    if several is None:
        yield model.predict(embedding, prompts, previous)
    else:
        yield from several(embedding, prompts, previous)


def sat_clicks(shape: tuple[int, ...]) -> list[Click]:
    """Return the 256 clicks of SAT on an image of (rows, cols)."""
    places = (32 + 64 * np.arange(SAT_SIDE)) / 1024
    rows, cols = shape[:2]
    return [Click((float(r * rows), float(c * cols))) for r in places for c in places]


def _sats(model: Segmenter, image: np.ndarray, budget: float) -> dict[str, Any]:
    """The four numbers of SAT; see `latency`."""
    if budget <= 0:
        return {"sat_s": None, "sat_clicks": 0, "sat_first_s": None, "sat_batch_s": None}
    looks = getattr(getattr(model, "predictor", None), "closer_look", "off") == "auto"
    sat, done = _sat(model, image, budget, lambda *inputs: model.predict(*inputs).mask)
    first = None
    if looks:
        first, _ = _sat(model, image, budget, lambda *inputs: next(predictions(model, *inputs)).mask)
    batch = None
    if (together := getattr(model, "predict_batch", None)) is not None and done == SAT_SIDE**2:
        start = perf_counter()
        for prediction in together(model.embed(image), [[click] for click in sat_clicks(image.shape)]):
            np.asarray(prediction.mask)
        batch = perf_counter() - start
    return {"sat_s": sat, "sat_clicks": done, "sat_first_s": first, "sat_batch_s": batch}


def _sat(
    model: Segmenter, image: np.ndarray, budget: float, predict: Callable[..., np.ndarray]
) -> tuple[float, int]:
    """Seconds for the whole grid, and how many of its clicks were given."""
    clicks = sat_clicks(image.shape)
    # A stride that is coprime to the grid visits all parts of it early, so that a part stands for the whole.
    order = [(i * 97) % len(clicks) for i in range(len(clicks))]
    start = perf_counter()
    embedding = model.embed(image)
    settle(model)
    embedded = perf_counter() - start
    done, start = 0, perf_counter()
    for index in order:
        np.asarray(predict(embedding, [clicks[index]], None))
        done += 1
        if perf_counter() - start > budget:
            break
    return embedded + (perf_counter() - start) * len(clicks) / done, done


def _peak_memory(
    spec: str, size: tuple[int, int], device: str, closer_look: str
) -> tuple[float | None, float | None]:
    """Peak RAM and GPU memory in MiB of a process that only loads the model, embeds and predicts.

    It predicts 3 clicks; on a GPU, whose memory is counted from then on, the SAT grid as well.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure_memory, spec, size, device, closer_look).result()


def _measure_memory(
    spec: str, size: tuple[int, int], device: str, closer_look: str
) -> tuple[float | None, float | None]:
    model = load_segmenter(spec, device=device, closer_look=closer_look)
    image = blobs(size)
    sequence = _ClickSequence(model, model.embed(image), image.shape)
    for _ in range(3):
        sequence.step()
    gpu = None
    if device_of(model).startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device_of(model))
        _sats(model, image, 30.0)
        gpu = torch.cuda.max_memory_allocated(device_of(model)) / 2**20
    return peak_ram(), gpu


def peak_ram() -> float | None:
    """Return the peak memory of this process in MiB, or None where the system does not tell it."""
    status = Path("/proc/self/status")
    if status.is_file():  # the figure of getrusage includes what the parent held before this process began
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        return None if line is None else int(line.split()[1]) / 1024
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 1024
