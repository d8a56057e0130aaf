"""What a click costs by the process that answers it: this one, a child, and a machine behind ssh.

Pictures of 1024 x 1024, in one run and in turn, so that other work on the machine meets all alike. `--host`
names the machine, `--loopback` starts an sshd of its own on this one, with keys made for it; each picture
gets eight clicks. With `--loopback` the login is then cut in the middle of an answer, and the masks that come
after that must be those of the child.

Run: python -m benchmarks.protocol [--clicks 40] [--host HOST | --loopback] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import PlaneSource, Request
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.serving.process import PredictionProcess
from napari_lowlat_seg.serving.wire import MOST_REPLY, Message, read, write

PLANE = Plane((0, None, None))


@lru_cache(maxsize=2)
def picture(number: int) -> np.ndarray:
    """8-bit noise with bright disks, another for each number."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (1024, 1024)).astype(np.uint8)
    rows, cols = np.mgrid[:1024, :1024]
    for row, col in rng.integers(100, 900, (12, 2)):
        pixels[(rows - row) ** 2 + (cols - col) ** 2 < 60**2] += 100
    pixels[0, 0] = number % 256
    return pixels


def milliseconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def clicks(services: dict[str, Any], count: int) -> dict[str, dict[str, float]]:
    """Milliseconds of an embedding, and until the first and the last mask of a click, by service."""
    rng = np.random.default_rng(1)
    times: dict[str, dict[str, list[float]]] = {
        name: {"embed": [], "first": [], "last": []} for name in services
    }
    for number in range(count):
        source = PlaneSource(number // 8, partial(picture, number // 8))
        prompts = (Click(tuple(rng.integers(100, 900, 2).tolist())),)
        request = Request(1, number, PLANE, prompts, None)
        for name, service in services.items():
            if number % 8 == 0:
                times[name]["embed"].append(milliseconds(partial(service.embed, source)))
            began = time.perf_counter()
            for place, _ in enumerate(service.predict(request, source)):
                if place == 0:
                    times[name]["first"].append(1000 * (time.perf_counter() - began))
            times[name]["last"].append(1000 * (time.perf_counter() - began))
    return {
        name: {
            f"{what} {label}": round(float(np.percentile(values, share)), 1)
            for what, values in rows.items()
            for label, share in (("p50", 50), ("p95", 95))
        }
        for name, rows in times.items()
    }


def login_of(process: int) -> int:
    """The process of sshd that a program runs under."""
    while True:
        facts = Path(f"/proc/{process}/status").read_text().split("\n")
        found = {name: value.strip() for name, _, value in (line.partition(":") for line in facts)}
        if found["Name"].startswith("sshd"):
            return process
        process = int(found["PPid"])


def cut(services: dict[str, Any]) -> dict[str, Any]:
    """Kill sshd after the first mask of a click; whether all masks are the child's, and how long it took."""
    source = PlaneSource("cut", partial(picture, 0))
    request = Request(1, 1, PLANE, (Click((500, 500)),), None)
    expected = [mask.packed for mask, _ in services["child"].predict(request, source)]
    remote = services["ssh"]
    answers = remote.predict(request, source)
    came = [next(answers)[0].packed]
    os.kill(login_of(remote.describe()["process"]), signal.SIGKILL)
    rest = milliseconds(lambda: came.extend(mask.packed for mask, _ in answers))
    return {"masks": len(came), "as the child's": came == expected, "rest of the answer ms": round(rest)}


def formats(count: int = 300) -> dict[str, float]:
    """Milliseconds to write and read pixels and an answer, by pickle as it was and by the closed format."""
    pixels = picture(0)
    rows, cols = np.mgrid[:1024, :1024]
    mask = SoftMask.of(np.exp(-((rows - 500) ** 2 + (cols - 500) ** 2) / 1e4).astype(np.float32), 0.9)
    values = {"pixels": pixels, "answer": (mask, True)}

    def pickled(value: Any) -> None:
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(Message(1, "item", value), 5, buffer_callback=buffers.append)
        stream = io.BytesIO()
        for part in (memoryview(head), *(buffer.raw() for buffer in buffers)):
            stream.write(part)
        stream.seek(0)
        parts = [bytearray(stream.read(len(head))), bytearray(stream.read())]
        pickle.loads(parts[0], buffers=parts[1:] if buffers else ())

    def closed(value: Any) -> None:
        stream = io.BytesIO()
        write(stream, Message(1, "item", value))
        stream.seek(0)
        read(stream, MOST_REPLY)

    found: dict[str, list[float]] = {}
    for _ in range(count):
        for name, value in values.items():
            for label, way in (("pickle", pickled), ("closed format", closed)):
                found.setdefault(f"{name}, {label}", []).append(milliseconds(partial(way, value)))
    return {name: round(float(np.median(times)), 3) for name, times in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", type=int, default=40)
    parser.add_argument("--host", help="as in ssh://HOST")
    parser.add_argument("--loopback", action="store_true", help="an sshd of its own on this machine")
    parser.add_argument("--model", default="default")
    parser.add_argument("--json")
    given = parser.parse_args()
    report: dict[str, Any] = {"formats": formats(), "load before": os.getloadavg()}
    with ExitStack() as stack:
        if given.loopback:
            sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            os.environ |= stack.enter_context(import_module("sshd").sshd(Path(folder)))
            given.host = "localhost"
        services: dict[str, Any] = {"child": PredictionProcess(given.model, "cpu", threads=1)}
        if given.host:
            services["ssh"] = PredictionProcess(given.model, f"ssh://{given.host}/cpu")
        for service in services.values():
            stack.callback(service.close)
        report["facts"] = {name: service.describe()["device"] for name, service in services.items()}
        report["clicks"] = clicks(services, given.clicks)
        report["load after"] = os.getloadavg()
        report["cut"] = cut(services) if given.loopback else None
    print(json.dumps(report, indent=1))
    if given.json:
        with open(given.json, "w") as file:
            json.dump(report, file)


if __name__ == "__main__":
    main()
