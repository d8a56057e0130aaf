"""What propagation and training call of our own code, without a window.

    python -m benchmarks.engine_trace

An object is propagated through 24 planes by a session, a prediction service and the default model, and a
small network is trained for a few steps; calls are counted as in `benchmarks.window.click_trace`. Both run
twice, longer and shorter: the difference is the cost of a plane and of a step.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.trace import Trace
from napari_lowlat_seg.annotation.propagation_run import PropagationRun
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.serving.service import PredictionService, load_prediction_service
from napari_lowlat_seg.training.train import TrainConfig, train

SMALL = {"size": 256, "width": 32, "heads": 2, "skip8": 16, "skip4": 8, "blocks": 1}
SIDE = 64


def trace_propagation(service: PredictionService, count: int) -> Trace:
    """The calls of one propagation from a mask on the first of `count` planes to the last."""
    data = np.zeros((count, SIDE, SIDE), np.uint8)
    data[:, 20:44, 20:44] = 200
    session = Session(Volume(data, window=(0.0, 255.0)))
    planes = session.volume.planes()
    session.add(planes[0], Click((32.0, 32.0)))
    request = session.request(planes[0])
    assert request is not None
    session.apply(request, SoftMask.of((data[0] > 0).astype(np.float32)))
    run = PropagationRun.propagation(session, planes)
    with Trace() as trace:
        reached = run.complete(service)
    if reached != count - 1:
        raise RuntimeError(f"expected masks on {count - 1} planes; got {reached}")
    return trace


def trace_training(folder: Path, steps: int) -> Trace:
    """The calls of a training run of so many steps of two views."""
    rows, cols = np.ogrid[:80, :90]
    for kind in ("images", "masks"):
        (folder / "data/em" / kind / "disks").mkdir(parents=True)
    for number in range(3):
        mask = ((rows - 40) ** 2 + (cols - 30 - 10 * number) ** 2 <= 225).astype(np.uint8)
        Image.fromarray(60 + 120 * mask).save(folder / f"data/em/images/disks/{number}.png")
        Image.fromarray(mask).save(folder / f"data/em/masks/disks/{number}.png")
    config = TrainConfig(
        data=str(folder / "data"), out=str(folder / "run"), device="cpu", steps=steps, warmup=1, batch=2,
        compile=False, rounds=(3,), domains={"em": 1.0}, model=SMALL,
    )  # fmt: skip
    with Trace() as trace:
        train(config)
    return trace


def compare(name: str, unit: str, short: Trace, long: Trace, more: int, top: int) -> None:
    """Print the longer trace, and what each further unit costs."""
    calls, crossings = (
        (getattr(long, kind).total() - getattr(short, kind).total()) / more for kind in ("calls", "crossings")
    )
    print(f"{name}: {long.summary(top)}")
    print(f"  a {unit} more: {calls:.0f} calls, {crossings:.0f} from another file")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--top", type=int, default=0, help="list the functions that are called most")
    top = parser.parse_args().top
    with tempfile.TemporaryDirectory() as name:
        service = load_prediction_service("default", "cpu")
        trace_propagation(service, 4)  # whatever happens only once
        short, long = (trace_propagation(service, count) for count in (8, 24))
        compare("propagation through 24 planes", "plane", short, long, 16, top)
        short, long = (trace_training(Path(name) / str(steps), steps) for steps in (2, 4))
        compare("training, 4 steps of 2 views and 3 prompts", "step", short, long, 2, top)


if __name__ == "__main__":
    main()
