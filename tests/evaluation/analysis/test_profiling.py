"""What work costs: counts against numbers by hand, and what a report holds. No times are compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_lowlat_seg.evaluation.analysis import profiling
from napari_lowlat_seg.evaluation.report import save_latency_plot
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.models.segnext import SegNext, SegNextConfig

TINY = replace(
    SegNextConfig.vit_b(1),
    size=32, dim=8, depth=1, heads=2, fusion_heads=2, neck_dims=(4, 4, 8, 8), head_dim=4,
)  # fmt: skip


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(SegNext(TINY), Runtime(), "off", name="tiny")


@pytest.mark.slow
def test_operations_and_values_of_the_encoder_are_counted(predictor) -> None:
    """4 tokens of 8 through a patch embedding and one block, by hand."""
    tokens, dim, hidden = 4, 8, 32
    products = 768 * dim + dim * 3 * dim + dim * dim + 2 * dim * hidden  # values of the weights used
    attention = 2 * tokens * tokens * dim
    operations, values = profiling.work_of(predictor.network)["embed"]
    assert operations == 2 * tokens * products + 2 * attention
    biases_and_norms = dim + 3 * dim + dim + hidden + dim + 4 * dim
    position = 5 * dim
    assert values == products + biases_and_norms + position + 3 * 32 * 32 + tokens * dim


@pytest.mark.slow
def test_the_floor_is_the_larger_of_two_times(predictor, monkeypatch) -> None:
    """Arithmetic on a device that moves at once, bytes on one that reckons at once."""
    monkeypatch.setattr(profiling, "ceilings", lambda runtime: (100.0, 1e30))
    slow = profiling.floor(predictor)
    assert slow["click_s"] == slow["click_operations"] / 100
    monkeypatch.setattr(profiling, "ceilings", lambda runtime: (1e30, 10.0))
    narrow = profiling.floor(predictor)
    assert narrow["click_s"] == narrow["click_bytes"] / 10
    assert narrow["sat_s"] == narrow["embed_s"] + 256 * narrow["click_s"]


@pytest.mark.slow
def test_embeddings_on_a_processor_are_reckoned_in_full_precision(predictor, monkeypatch) -> None:
    """Clicks in the precision that they have: half the bytes, and the rate of short products."""
    rates = {"fp32": (10.0, 1e30), "bf16": (1000.0, 1e30)}
    monkeypatch.setattr(profiling, "ceilings", lambda runtime: rates[runtime.precision])
    full = profiling.floor(predictor)
    predictor.backend.runtime = Runtime("cpu", "bf16")
    short = profiling.floor(predictor)
    assert short["embed_s"] == full["embed_s"] == full["embed_operations"] / 10
    assert short["embed_bytes"] == full["embed_bytes"]
    assert short["click_s"] == pytest.approx(full["click_s"] / 100)
    assert short["click_bytes"] == full["click_bytes"] / 2


@pytest.mark.slow
def test_a_plane_of_propagation_has_a_time(predictor) -> None:
    """Also where nothing is found."""
    assert profiling.plane_seconds(predictor) > 0


def test_every_stage_has_a_time(predictor) -> None:
    """Gray and odd sizes are welcome."""
    found = profiling.stages(predictor, np.zeros((20, 30), np.uint16))
    assert list(found["embed"]) == ["8 bits", "resize", "encode"]
    assert list(found["click"]) == ["prompts", "fuse", "draw", "mask"]
    assert all(seconds > 0 for stage in found.values() for seconds in stage.values())


@pytest.mark.slow
def test_curves_are_measured_and_drawn(predictor, tmp_path) -> None:
    """One of every kind, with the amounts asked for."""
    pytest.importorskip("matplotlib")
    amounts = {"prompts": (1, 3), "image side": (256, 512), "planes": (1, 5), "objects": (1, 9)}
    grown = profiling.curves(predictor, amounts)
    assert [(curve["kind"], tuple(curve["amounts"])) for curve in grown] == [
        ("prompts", (1, 3)),
        ("image side", (256, 512)),
        ("image side", (256, 512)),
        ("planes", (1, 5)),
        ("objects", (1, 9)),
    ]
    assert all(len(curve["seconds"]) == 2 for curve in grown)
    stages = profiling.stages(predictor, np.zeros((20, 30)))
    rows = [{"model": "tiny", "stages": stages, "floor": {"click_s": 1e-4}}]
    save_latency_plot({"rows": rows, "costs": grown}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
