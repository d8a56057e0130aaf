"""The benchmark of a memory of other planes: its objects, its methods, what a correction may change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.plane_memory import (
    Job,
    MemoryMethod,
    case_of,
    differences,
    ends,
    jobs_of,
    measure_job,
    method_of,
    run_jobs,
    summary,
    synthetic_object,
)
from napari_lowlat_seg.inference.memory.propagation import MemoryPropagation
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.models.compact import Compact
from napari_lowlat_seg.models.plane_memory import PlaneMemory
from small_memory import anchor, small_memory, small_network, sure_propagation


@pytest.fixture(scope="module")
def network() -> Compact:
    return small_network()


@pytest.fixture(scope="module")
def memory(network: Compact) -> PlaneMemory:
    return small_memory(network)


@pytest.fixture
def propagation(network: Compact) -> MemoryPropagation:
    return sure_propagation(network)


@pytest.mark.slow
def test_synthetic_objects_have_both_ends_inside_the_volume():
    for name in ("ball6", "tube:3", "cone", "torus", "branching"):
        volume, truth = synthetic_object(name)
        assert volume.shape == truth.shape
        assert truth.any()
        assert not truth[0].any()
        assert not truth[-1].any()
    assert synthetic_object("ball6")[1].any((1, 2)).sum() == 13
    with pytest.raises(ValueError, match="no synthetic object"):
        synthetic_object("cube")


@pytest.mark.slow
def test_benchmark_measures_a_memory_beside_propagation(tmp_path, network, memory, monkeypatch):
    image, labels = np.zeros((5, 40, 40), np.uint8), np.zeros((5, 40, 40), np.uint8)
    image[1:4, 10:25, 10:25], labels[1:4, 10:25, 10:25] = 200, 3
    facts = {"spacing": np.ones(3), "axis": 0, "planes": np.array([0, 4])}
    names = {"objects": np.array(["3"]), "roles": np.array(["report"])}
    np.savez(tmp_path / "a.npz", image=image, labels=labels, **facts, **names)
    [job] = jobs_of(tmp_path, "report", ["propagate", "memory flagged", "memory present=0.3 absent=0"], 1)
    assert jobs_of(tmp_path, "develop", ["propagate"], 1) == []
    predictor = Predictor(network, Runtime(), "off")
    rows = measure_job(job, predictor, memory)
    assert [row["method"] for row in rows] == list(job.methods)
    assert all(row["planes"] == 3 and 0 <= row["dice_one"] <= 1 for row in rows)
    (bare,) = measure_job(replace(job, methods=("propagate",), corrections=0), predictor, memory)
    assert bare["dice_one"] == rows[0]["dice_one"]
    assert "dice_ten" not in bare
    assert all("plane" in note for note in bare["notes"].values())
    assert "dice_ten" not in summary([bare])["propagate"]
    monkeypatch.setattr("benchmarks.plane_memory.load_predictor", lambda *_: predictor)
    monkeypatch.setattr("benchmarks.plane_memory.load_memory", lambda *_: memory)
    again = run_jobs([job], "m", tmp_path / "rows.jsonl", "cpu", 1)
    assert len(again) == 3 == len((tmp_path / "rows.jsonl").read_text().splitlines())
    assert summary(again)["propagate"]["objects"] == 1
    with pytest.raises(ValueError, match="absent="):
        method_of("memory wrong", memory)
    with pytest.raises(ValueError, match="a method is"):
        method_of("memory", None)
    with pytest.raises(ValueError, match="a method is"):
        method_of("nearest", memory)
    case = case_of(Job("", "ball6:3", ("propagate",), 0), predictor)
    assert ends(case, {})["planes"] == 5


@pytest.mark.slow
def test_a_correction_leaves_planes_beyond_the_next_anchor_untouched(propagation, memory):
    image = np.asarray(propagation.volume.data)
    labels = np.zeros(image.shape, np.uint8)
    labels[:, 20:34, 20:40] = 1
    case = case_of(Job("", "ball6", (), 0), propagation.predictor)
    case.volume, planes = propagation.volume, propagation.volume.planes(0)
    case.truth = {plane: labels[plane.position] > 0 for plane in planes}
    method = MemoryMethod(propagation.memory, flagged=True)
    first = method.fill(case, anchor(propagation, 2) | anchor(propagation, 5), None)
    anchors = anchor(propagation, 2) | anchor(propagation, 5) | anchor(propagation, 7, (5, 5, 30, 30))
    second = method.fill(case, anchors, planes[7])
    for place in (0, 1, 2, 3, 4, 5):
        assert np.array_equal(first[planes[place]], second[planes[place]])
    assert method.least_certain() is not None


def test_objects_that_time_leaves_no_room_for_are_named_in_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.plane_memory._load_models", lambda *_: None)
    rows = run_jobs(
        [Job("", "ball6", ("propagate",), 0)] * 2, "", tmp_path / "rows.jsonl", "cpu", 1, seconds=0
    )
    assert rows == [{"error": "time is up with 2 objects to go"}]
    assert summary(rows) == {}


def test_differences_are_paired_by_object_and_method_with_their_interval():
    def row(name: str, one: float, method: str = "memory") -> dict[str, object]:
        return {"file": "a", "object": name, "method": method, "dice_one": one}

    base = [row("1", 0.5), row("2", 0.7), row("3", 0.6), {"error": "time is up"}]
    rows = [row("3", 0.7), row("1", 0.7), row("4", 0.9), row("2", 0.7, "propagate"), {"error": "time is up"}]
    ((mean, half),) = differences(rows, base)["memory"].values()
    assert mean == pytest.approx(0.15)
    assert half == pytest.approx(12.706 * 0.05, abs=1e-3)  # t of one degree of freedom
    assert "propagate" not in differences(rows, base)
