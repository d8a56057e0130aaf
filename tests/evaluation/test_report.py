"""Rows, tables, files and plots of benchmark reports."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from napari_lowlat_seg.evaluation.report import (
    Curve,
    domain_of,
    latency_table,
    machine,
    quality_table,
    save_json,
    save_plot,
    size_of,
    summarise,
)


@pytest.fixture
def curves() -> list[Curve]:
    """Two models on two objects of different sets and sizes."""
    return [
        Curve("ours", "one", "em", "1", 0.0005, (0.5, 0.86, 0.91)),
        Curve("theirs", "three", "em", "1", 0.0005, (0.2, 0.3, 0.4)),
        Curve("ours", "one", "mri", "2", 0.5, (0.96, 0.97, 0.98)),
        Curve("theirs", "three", "mri", "2", 0.5, (0.8, 0.9, 0.96)),
    ]


@pytest.fixture
def report(curves: list[Curve]) -> dict[str, Any]:
    return {
        "dataset": "folder",
        "first": "box",
        "max_clicks": 3,
        "complete": True,
        "rows": summarise(curves),
        "curves": curves,
    }


def test_rows_are_by_set_size_and_all(curves: list[Curve]) -> None:
    """Sizes without objects have no row."""
    rows = summarise(curves)
    names = ["em", "mri", "< 0.1 %", "> 10 %", "all objects"]
    assert [(row["group"], row["model"]) for row in rows] == [
        (n, m) for n in names for m in ("ours", "theirs")
    ]
    ours = rows[-2]
    assert (ours["noc85"], ours["noc90"], ours["noc95"], ours["nof95"]) == (1.5, 2.0, 2.0, 1)
    assert (ours["miou1"], ours["miou3"]) == pytest.approx((0.73, 0.945))
    assert "miou5" not in ours


@pytest.mark.parametrize(
    ("area", "name"), [(0.0009, "< 0.1 %"), (0.001, "0.1-1 %"), (0.05, "1-10 %"), (1.0, "> 10 %")]
)
def test_sizes_have_names(area: float, name: str) -> None:
    """By fraction of the picture, the upper end left out."""
    assert size_of(area) == name


@pytest.mark.parametrize(
    ("group", "dataset", "domain"),
    [("em/a", "folder", "em"), ("em", "folder", "em"), ("COIFT", "hqseg44k", "hqseg44k")],
)
def test_a_domain_is_a_folder_of_sets(group: str, dataset: str, domain: str) -> None:
    """Elsewhere the data set is the domain, whatever its parts are called."""
    assert domain_of(group, dataset) == domain


def test_a_table_names_the_form(report: dict[str, Any]) -> None:
    """Every model with its form, the first prompt, the metrics."""
    table = quality_table(report)
    for text in ("folder, first prompt: box, 3 prompts", "three", "NoC90", "NoF95", "3-mIoU", "94.5"):
        assert text in table


def test_an_empty_report_still_has_a_table(report: dict[str, Any]) -> None:
    """Interrupted before the first object."""
    assert "interrupted" in quality_table({**report, "rows": [], "complete": False})


def test_a_latency_table_marks_extrapolations() -> None:
    """An asterisk and a note; a dash where nothing was measured."""
    row = {"model": "m", "form": "f", "device": "cpu", "embed_s": 1.0}
    row |= {"first_p50_s": 0.01134, "first_p95_s": 0.015}
    row |= {"click_p50_s": 0.0177, "click_p95_s": 0.02, "click_p99_s": 0.03}
    row |= {"sat_s": 12.34, "sat_first_s": 7.891, "sat_batch_s": None, "sat_clicks": 9}
    row |= {"peak_ram_mib": 100.4, "peak_gpu_mib": None}
    table = latency_table({"size": [4, 5], "rows": [row], "machine": {"cores": 2}})
    for text in ("4 x 5 picture, 2 cores; * extrapolated", "12.3*", "7.89", "11.34", "17.7", "100", " - "):
        assert text in table


def test_json_is_written_whole(report: dict[str, Any], tmp_path: Path) -> None:
    """All curves, and no trace of the unfinished file."""
    save_json(report, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["curves"][3]["ious"] == [0.8, 0.9, 0.96]
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_a_plot_has_a_panel_a_set(report: dict[str, Any], tmp_path: Path) -> None:
    """As SVG, where the titles can be counted."""
    pytest.importorskip("matplotlib")
    save_plot(report, tmp_path / "r.svg")
    assert (tmp_path / "r.svg").read_text().count('id="axes_') == 3


def test_without_matplotlib_a_plot_says_how_to_get_it(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that lacks it."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"a plot needs matplotlib.*pip install matplotlib"):
        save_plot(report, tmp_path / "r.png")


def test_the_machine_is_described() -> None:
    """Enough to tell two runs apart."""
    assert {"platform", "processor", "cores", "torch", "command"} <= machine().keys()
