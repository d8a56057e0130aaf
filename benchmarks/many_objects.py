"""Seconds per plane and memory of many objects that are propagated together through the EM sample.

    python -m benchmarks.many_objects --objects 10 100 500 --planes 4 --enlarge 1

Seeds lie on a grid of the middle plane. Every number of objects is measured in a process of its own, whose
peak memory is compared with that of one object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.evaluation.latency import peak_ram
from napari_lowlat_seg.inference.predictor import load_predictor
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.io.samples import sample_path
from napari_lowlat_seg.propagation.propagate import propagate_many
from napari_lowlat_seg.propagation.seeds import object_anchors


def measure(count: int, planes: int, enlarge: int, device: str) -> dict[str, float]:
    """Return seconds for seeds and planes, predictions, and the peak memory of this process in MB."""
    predictor = load_predictor("default", device)
    data = np.asarray(read_volume(sample_path("em_fly_medulla.tif")).data)
    half = planes // 2
    middle = len(data) // 2
    cut = data[middle - half : middle - half + planes].repeat(enlarge, 1).repeat(enlarge, 2)
    volume = Volume(cut).with_window()
    side = int(np.ceil(np.sqrt(count)))
    rows, cols = (np.linspace(0.05, 0.95, side) * length for length in cut.shape[1:])
    points = [(half, row, col) for row in rows for col in cols][:count]
    seeds = {number: [point] for number, point in enumerate(points, start=1)}
    began = time.perf_counter()
    anchors = object_anchors(predictor, volume, seeds)
    seeded = time.perf_counter()
    steps = sum(1 for _ in propagate_many(predictor, volume, anchors, volume.planes()))
    seconds = time.perf_counter() - seeded
    return {
        "objects": count,
        "rows": cut.shape[1],
        "seconds per seed": round((seeded - began) / count, 4),
        "seconds per plane": round(seconds / max(1, planes - 1), 3),
        "seconds per prediction": round(seconds / max(1, steps), 4),
        "predictions": steps,
        "MB": round(peak_ram() or 0),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", type=int, nargs="+", default=[10, 100, 500])
    parser.add_argument("--planes", type=int, default=4)
    parser.add_argument("--enlarge", type=int, default=1, help="repeat every pixel so many times")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--here", action="store_true", help="measure the first number in this process")
    given = parser.parse_args(arguments)
    if given.here:
        print(json.dumps(measure(given.objects[0], given.planes, given.enlarge, given.device)))
        return
    for count in [1, *given.objects]:
        sizes = ["--planes", str(given.planes), "--enlarge", str(given.enlarge), "--device", given.device]
        command = [sys.executable, "-m", "benchmarks.many_objects", "--here", "--objects", str(count), *sizes]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
