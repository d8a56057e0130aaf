"""The latency benchmark: what is measured how often, and what a report holds. No times are compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import FakePrediction, FakePredictor
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.evaluation.latency import busy_loops, latency, peak_ram, run_latency, sat_clicks
from napari_lowlat_seg.io.samples import blobs

Export = Callable[..., tuple[Path, Path]]


def counter(name: str, log: list[tuple[str, int]]) -> FakePredictor:
    """A model that sees nothing; it notes its name with the number of prompts, 0 for an embedding."""

    def rule(shape: tuple[int, int], prompts: Sequence[Prompt], previous: Any) -> np.ndarray:
        log.append((name, len(prompts)))
        return np.zeros(shape)

    def see(image: np.ndarray, window: Any, spacing: Any) -> tuple[int, ...]:
        log.append((name, 0))
        return image.shape

    return FakePredictor(rule, name, see)


@pytest.mark.slow
def test_models_take_turns() -> None:
    """Embeddings and clicks alternate; clicks grow to ten and begin again."""
    log: list[tuple[str, int]] = []
    rows = latency(
        [counter("a", log), counter("b", log)], np.zeros((8, 8)), embeds=1, clicks=10, sat_seconds=0
    )
    counts = [0, 0, *range(1, 11), 1, 2]
    assert log == [(name, count) for count in counts for name in "ab"]
    assert [(row["model"], row["sat_s"], row["sat_clicks"]) for row in rows] == [
        ("a", None, 0),
        ("b", None, 0),
    ]


def test_segment_anything_clicks_the_whole_grid() -> None:
    """256 single clicks, all inside the picture, each once."""
    model = counter("a", [])
    [row] = latency([model], np.zeros((32, 48)), embeds=1, clicks=1, sat_seconds=1e9)
    places = [prompts[-1] for _, prompts, _ in model.calls[-256:]]
    assert row["sat_clicks"] == 256
    assert len({prompt.at for prompt in places}) == 256
    assert all(0 <= prompt.at[0] < 32 and 0 <= prompt.at[1] < 48 for prompt in places)


def test_the_grid_is_that_of_the_published_script() -> None:
    """(32 + 64 i, 32 + 64 j) of 1024, on a picture of any size."""
    places = sat_clicks((512, 2048))
    assert (places[0].at, places[1].at, places[16].at) == ((16.0, 64.0), (16.0, 192.0), (48.0, 64.0))
    assert len(places) == 256


def test_first_and_final_predictions_are_timed_apart() -> None:
    """A model that answers twice is timed twice; the next click gets its final answer."""

    class Twice(FakePredictor):
        def answers(self, embedding, prompts, previous):  # type: ignore[no-untyped-def]
            self.answers_before.append(previous)
            yield self.predict(embedding, prompts, previous)
            yield FakePrediction(np.ones(embedding.shape))

    model = Twice()
    model.answers_before = []  # type: ignore[attr-defined]
    [row] = latency([model], np.zeros((8, 8)), embeds=1, clicks=1, sat_seconds=0)
    assert row["first_p50_s"] <= row["click_p50_s"]
    assert model.answers_before[1].mask.all()  # type: ignore[attr-defined]


def test_a_slow_grid_is_extrapolated() -> None:
    """A budget that is spent at the first click."""
    [row] = latency([counter("a", [])], np.zeros((8, 8)), embeds=1, clicks=1, sat_seconds=1e-12)
    assert row["sat_clicks"] == 1


@pytest.mark.slow
def test_a_run_shows_and_writes_its_results(export_sam: Export, tmp_path: Path) -> None:
    """From end to end, with memory from a process of its own."""
    encoder, decoder = export_sam()
    shown: list[str] = []
    file = tmp_path / "out.json"
    run_latency(
        [f"onnx-sam:{encoder},{decoder},tiny"],
        (40, 30),
        clicks=3,
        sat_seconds=0.01,
        json=file,
        show=shown.append,
    )
    [row] = json.loads(file.read_text())["rows"]
    assert (row["model"], row["device"], row["form"]) == ("tiny", "cpu", "one mask, logits fed back")
    assert row["click_p50_s"] <= row["click_p95_s"] <= row["click_p99_s"]
    assert row["peak_ram_mib"] > 20
    assert "40 x 30 picture" in shown[0]


def test_the_picture_is_always_the_same() -> None:
    """Blobs from a seed, with something to see."""
    picture = blobs((50, 70))
    assert (picture.shape, picture.dtype) == ((50, 70), np.uint8)
    assert (picture == blobs((50, 70))).all()
    assert np.ptp(picture) > 100


def test_peak_memory_is_that_of_this_process() -> None:
    """More than an interpreter with numpy needs, less than everything; None on systems that do not tell."""
    ram = peak_ram()
    assert ram is None or 20 < ram < 10**6


def test_bad_calls_are_refused_before_the_work(tmp_path: Path) -> None:
    """Size, models, and the folder of the result."""
    with pytest.raises(ValueError, match="size and clicks must be at least 1, got 0 x 9 and 40"):
        run_latency(["default"], (0, 9))
    with pytest.raises(ValueError, match="busy must be at least 0, got -1"):
        run_latency(["default"], busy=-1)
    with pytest.raises(ValueError, match="expected different models, at least one; got a, a"):
        run_latency(["a", "a"])
    with pytest.raises(ValueError, match=r"the folder of .*out.json must exist; make it first"):
        run_latency(["default"], json=tmp_path / "nowhere" / "out.json")


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends processes there")
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_busy_loops_run_beside_and_are_gone_afterwards(error: type[BaseException] | None) -> None:
    """Whatever happens inside."""
    with pytest.raises(error) if error else nullcontext(), busy_loops(2) as loops:
        assert len(loops) == 2
        assert all(alive(loop) for loop in loops)
        if error:
            raise error
    assert not any(alive(loop) for loop in loops)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_busy_loop_takes_processor_time(until: Callable[..., None]) -> None:
    """It takes processor time by itself."""
    with busy_loops(1) as (loop,):
        until(lambda: int(Path(f"/proc/{loop}/stat").read_text().split()[13]) > 10)  # user time, 10 ms each


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_busy_loops_end_with_a_process_that_is_killed(until: Callable[..., None]) -> None:
    """No process is left."""
    code = """
import os, signal
from napari_lowlat_seg.evaluation.latency import busy_loops
with busy_loops(1) as (loop,):
    print(loop, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    until(lambda: not alive(int(done.stdout)) or gone_but_unreaped(int(done.stdout)))


def gone_but_unreaped(process: int) -> bool:
    """Whether it has ended, and who inherited it has not taken notice."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().split()[2] == "Z"


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="needs waitid")
def test_a_busy_loop_that_ends_early_is_an_error() -> None:
    """The times would be wrong."""

    def measure() -> None:
        with busy_loops(2) as loops:
            os.kill(loops[0], signal.SIGKILL)
            # Both of its threads: /proc may call it a zombie while the second one is still ending.
            os.waitid(os.P_PID, loops[0], os.WEXITED | os.WNOWAIT)

    with pytest.raises(RuntimeError, match="1 of 2 busy loops ended early; measure again"):
        measure()


def test_a_busy_loop_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program with a Python frozen into it."""
    monkeypatch.setattr("napari_lowlat_seg.evaluation.latency._BUSY_LOOP", "")
    with pytest.raises(RuntimeError, match="a busy loop could not be started with"), busy_loops(1):
        pass


@pytest.mark.slow
def test_the_report_names_busy_loops(export_sam: Export, tmp_path: Path) -> None:
    """In its title and in the file, with how threads waited."""
    encoder, decoder = export_sam()
    shown: list[str] = []
    file = tmp_path / "out.json"
    run_latency(
        [f"onnx-sam:{encoder},{decoder},tiny"],
        (40, 30), clicks=1, sat_seconds=0, memory=False, busy=1, json=file, show=shown.append,
    )  # fmt: skip
    report = json.loads(file.read_text())
    assert report["busy"] == 1
    assert report["machine"]["openmp"]["GOMP_SPINCOUNT"] == os.environ["GOMP_SPINCOUNT"]
    assert ", beside 1 busy loop" in shown[0]
