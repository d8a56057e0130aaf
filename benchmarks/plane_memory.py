"""Benchmark of a memory of other planes against propagation as it is: the same objects, clicks, corrections.

    python -m benchmarks.plane_memory OBJECTS MEMORY OUT --device cuda --processes 6
    python -m benchmarks.plane_memory OBJECTS OTHER OUT2 --against OUT

MEMORY is a file that `training.memory` has left, or "default"; "" takes no memory at all.
The second measures another memory and also prints how it differs from the first, object by object.
OBJECTS is a folder of .npz files: image, labels, spacing, axis, planes (first, last), and `objects`, texts as
`benchmark volume` takes them; `roles` says what each may be used for: report, other or develop.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import sem
from scipy.stats import t as student

from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.evaluation.volume import Case, Masks, Propagation, dice, measure
from napari_lowlat_seg.inference.memory.propagation import MemoryPropagation
from napari_lowlat_seg.inference.memory.steps import MemorySteps, load_memory
from napari_lowlat_seg.inference.prediction import Prediction
from napari_lowlat_seg.inference.predictor import Predictor, load_predictor
from napari_lowlat_seg.models.plane_memory import PlaneMemory
from napari_lowlat_seg.propagation.sweep import MIN_OVERLAP, PropagatedMask
from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache
from napari_lowlat_seg.training.data.volumes import smooth_noise


class MemoryMethod(Propagation):
    """Propagation with a memory; a correction changes no plane beyond the neighbouring anchors.

    Parameters
    ----------
    memory
        On the predictor's device.
    flagged
        Whether it names its least certain plane.
    **settings
        Of `MemoryPropagation`.
    """

    def __init__(self, memory: PlaneMemory | MemorySteps, flagged: bool = False, **settings: Any) -> None:
        super().__init__(flagged)
        self._memory, self._settings = memory, settings

    def _steps(
        self, case: Case, anchors: Mapping[Plane, Prediction], changed: list[Plane] | None
    ) -> Iterable[PropagatedMask[Prediction]]:
        propagation = MemoryPropagation(case.predictor, self._memory, case.volume, **self._settings)
        return propagation.propagate(anchors, case.planes, changed=changed)


@dataclass(frozen=True)
class Job:
    """One object, measured with some methods.

    Attributes
    ----------
    file
        Path of an .npz file; empty for a synthetic object.
    group
        Labels of the file joined with "+", or the name of a synthetic object.
    methods
        Names for `method_of`.
    corrections
        Planes corrected at most.
    """

    file: str
    group: str
    methods: tuple[str, ...]
    corrections: int


def jobs_of(folder: Path, role: str, methods: Sequence[str], corrections: int) -> list[Job]:
    """Return the jobs of all objects of a role, those in the largest volumes first."""
    found: list[tuple[int, Job]] = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            size = int(file["image"].size)
            found += [
                (size, Job(str(path), str(group), tuple(methods), corrections))
                for group, own in zip(file["objects"], file["roles"], strict=True)
                if str(own) == role
            ]
    return [job for _, job in sorted(found, key=lambda one: -one[0])]


def case_of(job: Job, predictor: Predictor) -> Case:
    """Return the object of a job with its volume."""
    if not job.file:
        volume, truth = synthetic_object(job.group)
        planes, axis = volume.planes(0), 0
        ground_truth = {plane: truth[plane.position] for plane in planes}
    else:
        with np.load(job.file) as file:
            axis, (low, high) = int(file["axis"]), file["planes"].tolist()
            spacing = tuple(float(v) for v in file["spacing"])
            volume, labels = Volume(file["image"], spacing), Volume(file["labels"])
        planes = volume.planes(axis)[low : high + 1]
        window = Volume(np.stack([volume.plane(plane) for plane in planes])).with_window().window
        volume = replace(volume, window=window)
        group = [int(part) for part in job.group.split("+")]
        ground_truth = {plane: np.isin(labels.plane(plane), group) for plane in planes}
    cache = EmbeddingCache(2**30, 2**31, device=predictor.runtime.device)
    return Case(predictor, volume, ground_truth, cache)


SYNTHETIC = ("ball6", "ball12", "ball20", "tube", "cone", "torus", "branching")
"""Objects that must be propagated to their ends; `:3` after a name takes every third plane only."""


def synthetic_object(name: str) -> tuple[Volume, np.ndarray]:
    """Return a bright object in a slightly noisy volume, and its truth (D, H, W) bool.

    Raises
    ------
    ValueError
        For a name that is not in `SYNTHETIC`.
    """
    kind, _, step = name.partition(":")
    every = int(step or 1)
    rng = np.random.default_rng(sum(map(ord, kind)))
    shape = (72, 112, 112)
    z, y, x = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    if kind.startswith("ball"):
        truth = z**2 + y**2 + x**2 <= int(kind[4:]) ** 2
    elif kind == "tube":
        truth = np.hypot(y - 14 * np.sin(z / 14), x - 10 * np.cos(z / 18)) <= 7
        truth &= np.abs(z) <= 25
    elif kind == "cone":
        truth = (np.abs(z) <= 22) & (np.hypot(y, x) <= 20 * (22 - z) / 44)
    elif kind == "torus":
        truth = np.hypot(np.hypot(z, y) - 16, x) <= 6
    elif kind == "branching":
        trunk = np.hypot(y, x) <= 6
        left = np.hypot(y - 0.7 * np.maximum(z, 0), x) <= 5
        truth = (trunk & (z <= 0)) | (left & (z > 0)) | ((np.hypot(y + 0.5 * z, x) <= 5) & (z > 0))
        truth &= np.abs(z) <= 26
    else:
        raise ValueError(f"there is no synthetic object {name!r}; choose one of {', '.join(SYNTHETIC)}")
    image = 70 + 90 * truth + 6 * smooth_noise(rng, shape, 1) + 5 * smooth_noise(rng, shape, 20)
    pixels = np.clip(image, 0, 255).astype(np.uint8)[::every]
    return Volume(pixels, (float(every), 1.0, 1.0)).with_window(), np.asarray(truth)[::every]


def ends(case: Case, masks: Masks) -> dict[str, int]:
    """Count the planes that show the object, those of them on which it was found, and others with a mask."""
    shown = {plane for plane, truth in case.truth.items() if truth.any()}
    marked = {plane for plane, mask in masks.items() if mask.any()}
    return {"planes": len(shown), "reached": len(shown & marked), "overrun": len(marked - shown)}


def measure_job(
    job: Job, predictor: Predictor, memory: PlaneMemory | MemorySteps | None
) -> list[dict[str, Any]]:
    """Return a row per method: that of `volume.measure`, and what was reached from one prompted plane.

    Without corrections only the latter is measured.
    """
    case = case_of(job, predictor)
    rows = []
    start = max(case.truth, key=lambda plane: int(case.truth[plane].sum()))
    anchors = {start: case.annotate(start)[0]}
    for name in job.methods:
        began = time.perf_counter()

        def make(name: str = name) -> Propagation:
            return method_of(name, memory)

        method = make()
        found = method.fill(case, anchors, None)
        row: dict[str, Any] = {
            "file": Path(job.file).stem or "synthetic",
            "object": job.group,
            "method": name,
            "start": start.position,
            "notes": method.notes,
            "dice_one": dice(case, found),
        }
        seconds = time.perf_counter() - began
        row |= ends(case, found) | {"seconds_one": round(seconds, 2)}
        rows.append(row | (measure(case, make, job.corrections) if job.corrections else {}))
    return rows


SETTINGS: dict[str, tuple[str, Any]] = {
    "present": ("min_presence", float),
    "between": ("min_presence_between", float),
    "quality": ("min_quality", float),
    "brightness": ("brightness", float),
    "share": ("network_share", float),
    "absent": ("max_absent", int),
}
"""Words for the settings of `MemoryPropagation` in the name of a method."""


def method_of(name: str, memory: PlaneMemory | MemorySteps | None) -> Propagation:
    """Return the method of a name: "propagate" or "memory", and "flagged" or a memory's settings after it.

    Parameters
    ----------
    name
        With "flagged" the method names the plane to correct. Settings are written as `SETTINGS` has them,
        for example "memory present=0.7 share=0".
    memory
        None if only "propagate" is asked for.

    Raises
    ------
    ValueError
        For any other name, and for a memory where there is none.
    """
    kind, *words = name.split()
    given: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if word == "flagged":
            given["flagged"] = True
        elif key in SETTINGS and kind == "memory":
            given[SETTINGS[key][0]] = SETTINGS[key][1](value)
        else:
            raise ValueError(
                f"after {kind!r} may come 'flagged', for a memory {'=, '.join(SETTINGS)}=; got {name!r}"
            )
    if kind == "propagate":
        return Propagation(**given, min_overlap=MIN_OVERLAP)  # without the memory that ships
    if kind != "memory" or memory is None:
        raise ValueError(f"a method is 'propagate', or 'memory' where a file of one is given; got {name!r}")
    return MemoryMethod(memory, **given)


_READY: dict[str, Any] = {}


def _load_models(memory: str, device: str) -> None:
    """Load models once per process."""
    _READY["predictor"] = predictor = load_predictor("default", device)
    _READY["memory"] = (
        load_memory(predictor, None if memory == "default" else Path(memory)) if memory else None
    )


def _measure(job: Job) -> list[dict[str, Any]]:
    return measure_job(job, _READY["predictor"], _READY["memory"])


def run_jobs(
    jobs: Sequence[Job], memory: str, out: Path, device: str, processes: int, seconds: float = 1e9
) -> list[dict[str, Any]]:
    """Measure all jobs for at most so many seconds; every row is written as it comes."""
    rows: list[dict[str, Any]] = []
    until = time.monotonic() + seconds

    def keep(new: list[dict[str, Any]]) -> None:
        rows.extend(new)
        with out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)

    if processes < 2:
        _load_models(memory, device)
        for done, job in enumerate(jobs):
            if time.monotonic() >= until:
                keep([{"error": f"time is up with {len(jobs) - done} objects to go"}])
                break
            keep(_measure(job))
        return rows
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _load_models, (memory, device)) as pool:
        pending = {pool.submit(_measure, job): job for job in jobs}
        try:
            for future in as_completed(pending, max(1.0, until - time.monotonic())):
                try:
                    keep(future.result())
                except Exception as problem:
                    keep([{"object": pending[future].group, "error": f"{problem!r:.500}"}])
        except TimeoutError:
            keep([{"error": f"time is up with {sum(not f.done() for f in pending)} objects to go"}])
            for process in list(pool._processes.values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the means over objects of each method."""
    found: dict[str, dict[str, float]] = {}
    for method in dict.fromkeys(row["method"] for row in rows if "method" in row):
        own = [row for row in rows if row.get("method") == method]
        keys = ("dice_one", "dice_ten", "dice_c1", "dice_c3", "iou_one", "seconds_one")
        found[method] = {"objects": len(own)} | {
            key: round(float(np.mean([row[key] for row in own])), 4) for key in keys if key in own[0]
        }
    return found


def differences(
    rows: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return mean difference and half of its 95 % interval (t, over objects) from `base`, by method and Dice.

    Objects and methods that are not in both, and methods with fewer than two objects, are left out.
    """
    before = {(row["file"], row["object"], row["method"]): row for row in base if "method" in row}
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if (other := before.get((row.get("file"), row.get("object"), row.get("method")))) is not None:
            of_method = found.setdefault(row["method"], {})
            for key in ("dice_one", "dice_ten", "dice_c1", "dice_c3"):
                if key in row and key in other:
                    of_method.setdefault(key, []).append(row[key] - other[key])
    return {
        method: {
            key: (float(np.mean(some)), float(student.ppf(0.975, len(some) - 1) * sem(some)))
            for key, some in of_method.items()
            if len(some) > 1
        }
        for method, of_method in found.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; see the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("objects", type=Path)
    parser.add_argument("memory", help='a file, or "" for propagation as it is')
    parser.add_argument("out", type=Path)
    parser.add_argument("--role", action="append", default=None)
    parser.add_argument("--methods", default="propagate,memory")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--corrections", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--against", type=Path, help="rows of another run, to print the differences from")
    given = parser.parse_args(arguments)
    jobs: list[Job] = []
    for role in given.role or ["report"]:
        methods = given.methods.split(",")
        if role == "synthetic":
            jobs += [
                Job("", f"{name}{step}", tuple(methods), min(1, given.corrections))
                for name in SYNTHETIC
                for step in ("", ":2", ":3", ":5")
            ]
        else:
            jobs += jobs_of(given.objects, role, methods, given.corrections)
    rows = run_jobs(
        jobs[: given.limit], given.memory, given.out, given.device, given.processes, given.seconds
    )
    for method, means in summary(rows).items():
        print(method, means, flush=True)
    if given.against is not None:
        base = [json.loads(line) for line in given.against.read_text().splitlines()]
        for method, by_dice in differences(rows, base).items():
            shown = (f"{key} {mean:+.4f} ± {half:.4f}" for key, (mean, half) in by_dice.items())
            print("difference,", method, *shown, flush=True)
    if problems := [row for row in rows if "error" in row]:
        print(f"{len(problems)} problems, the first: {problems[0]}", flush=True)


if __name__ == "__main__":
    main()
