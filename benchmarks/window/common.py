"""What the window benchmarks share: the stack, the simulated user, models without weights, waiting."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import Cancelled, PlaneSource, Request, never
from napari_lowlat_seg.io.samples import sample_path
from napari_lowlat_seg.serving.process import LOAD, PredictionProcess

TICK = 5
"""Milliseconds between two ticks of the timer whose gaps are measured."""

CLICKS = 3
"""Clicks on a plane before the user goes to the next one."""

TIMEOUT = 120.0
"""Seconds after which something that should come has gone wrong."""

MODELS = {"default": LOAD, "slow": f"{__name__}:load_slow", "busy": f"{__name__}:load_busy"}
"""Entry points of the models that are compared, as `PredictionProcess` takes them."""


def large_stack(planes: int = 50, side: int = 1024) -> np.ndarray:
    """Return the shipped EM sample mirrored to (planes, side, side) uint8."""
    from napari_lowlat_seg.io.files import read_volume

    small = np.asarray(read_volume(sample_path("em_fly_medulla.tif")).data)
    added = [(0, max(0, size - length)) for size, length in zip((planes, side, side), small.shape)]
    return np.pad(small, added, mode="symmetric")[:planes, :side, :side]


def random_clicks(planes: int, low: float, high: float, seed: int = 0) -> Iterator[tuple[int, Click]]:
    """Yield plane positions and clicks without end: `CLICKS` on each plane, plane after plane.

    Parameters
    ----------
    planes
        Number of planes.
    low, high
        Range of rows and columns, in pixels.
    """
    random, position = np.random.default_rng(seed), 0
    while True:
        for row, col in random.uniform(low, high, (CLICKS, 2)).tolist():
            yield position, Click((row, col))
        position = (position + 1) % planes


def wait_until(condition: Callable[[], bool], at_most: float = TIMEOUT) -> None:
    """Run Qt's event loop until a condition holds; it is tested each millisecond.

    Raises
    ------
    TimeoutError
        If it does not hold within `at_most` seconds.
    """
    end = time.perf_counter() + at_most
    _run_events(lambda: condition() or time.perf_counter() > end)
    if not condition():
        raise TimeoutError(f"nothing came in {at_most:g} s; look whether the machine is busy and try again")


def wait(seconds: float) -> None:
    """Run Qt's event loop for so many seconds."""
    end = time.perf_counter() + seconds
    _run_events(lambda: time.perf_counter() >= end)


def _run_events(over: Callable[[], bool]) -> None:
    from qtpy.QtCore import QEventLoop, QTimer

    loop, poll = QEventLoop(), QTimer()
    poll.timeout.connect(lambda: over() and loop.quit())
    poll.start(1)
    loop.exec_()


def open_window(image: np.ndarray, make_service: Callable[[], Any]) -> tuple[Any, Any]:
    """A viewer with an image and our widget, whose model is `make_service()`; both are ready."""
    import napari

    from napari_lowlat_seg.plugin.widget import LowlatWidget
    from napari_lowlat_seg.plugin.worker import Worker

    class WorkerOfService(Worker):
        def load(self, _: Any) -> None:
            super().load(make_service)

    viewer = napari.Viewer()
    viewer.add_image(image, name="image")
    widget = LowlatWidget(viewer, WorkerOfService())
    viewer.window.add_dock_widget(widget)
    wait_until(lambda: widget.controller is not None)
    session = widget.controller.session
    wait_until(lambda: session.volume.window is not None and bool(session.model))
    return viewer, widget


class GapTimer:
    """A timer on the window's thread that records how late its ticks are.

    Attributes
    ----------
    gaps
        Milliseconds between every two ticks; an undisturbed event loop gives `TICK`.
    """

    def __init__(self) -> None:
        from qtpy.QtCore import Qt, QTimer

        self.gaps: list[float] = []
        self._last = 0.0
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)

    def start(self) -> None:
        """Start with no gaps recorded."""
        self.gaps, self._last = [], time.perf_counter()
        self._timer.start(TICK)

    def stop(self) -> list[float]:
        """Stop, and return the gaps."""
        self._timer.stop()
        return self.gaps

    def _tick(self) -> None:
        now = time.perf_counter()
        self.gaps.append(1000 * (now - self._last))
        self._last = now


class FakeService:
    """A prediction service without a model: it takes as long as one, and every mask is empty."""

    def __init__(self, name: str, work: Callable[[float], None], embed: float, click: float) -> None:
        self._name, self._work, self._seconds = name, work, (embed, click)
        self._shapes: dict[Any, tuple[int, ...]] = {}  # of the planes that are embedded

    def embed(self, source: PlaneSource, cancelled: Cancelled = never) -> float:
        """Return the seconds an embedding took; 0.0 if it was there already."""
        if source.identity in self._shapes:
            return 0.0
        start = time.perf_counter()
        self._work(self._seconds[0])
        self._shapes[source.identity] = source.read().shape[:2]
        return time.perf_counter() - start

    def predict(
        self, request: Request, source: PlaneSource, cancelled: Cancelled = never
    ) -> Iterator[tuple[SoftMask, bool]]:
        """Yield one empty mask, which is final."""
        self._work(self._seconds[1])
        yield SoftMask.from_mask(np.zeros(self._shapes[source.identity], bool)), True

    def describe(self, progress: object = None) -> dict[str, Any]:
        """Return the name in the form of a model's description."""
        return {"model": self._name, "device": "cpu", "precision": "none", "licence": "none"}

    def restart(self) -> None:
        """Do nothing: there is no process."""

    def close(self) -> None:
        """Do nothing: nothing is held."""


def load_slow(*_: Any, **__: Any) -> FakeService:
    """Return a service of few large matrix products: 1.5 s to embed, 0.3 s a click."""
    import torch

    square = torch.full((1024, 1024), 1e-3)
    return FakeService("slow", lambda seconds: _repeat(lambda: square @ square, seconds), 1.5, 0.3)


def load_busy(*_: Any, **__: Any) -> FakeService:
    """Return a service of pure Python, which holds the interpreter lock: 1.5 s to embed, 0.3 s a click."""
    return FakeService("busy", lambda seconds: _repeat(lambda: sum(range(1000)), seconds), 1.5, 0.3)


def _repeat(work: Callable[[], object], seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        work()


def in_process(model: str, device: str = "cpu", **settings: Any) -> PredictionProcess:
    """Return a service in a child process that can import these benchmarks; see `PredictionProcess`."""
    root, path = str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *(one for one in path if one not in ("", root))])
    return PredictionProcess(model, device, **settings)


def print_load(when: str) -> None:
    """Print the number of processors and the machine's load average over one minute."""
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} {when}", flush=True)
