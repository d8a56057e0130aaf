"""Rows, tables, files and plots of benchmark reports."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lowlat_seg.batch.measure import measure
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.evaluation.candidates import Choice
from napari_lowlat_seg.evaluation.html_report import measurements_page, write_html
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
    row |= {"peak_ram_mib": 100.4, "peak_gpu_mib": None, "plane_s": 0.2345}
    table = latency_table({"size": [4, 5], "rows": [row], "machine": {"cores": 2}})
    for text in (
        "4 x 5 picture, 2 cores; * extrapolated",
        "12.3*",
        "7.89",
        "11.34",
        "17.7",
        "234.5",
        "100",
        " - ",
    ):
        assert text in table


def test_json_is_written_whole(report: dict[str, Any], tmp_path: Path) -> None:
    """All curves, and no trace of the unfinished file."""
    save_json(report, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["curves"][3]["ious"] == [0.8, 0.9, 0.96]
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.slow
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


def whole(report: dict[str, Any]) -> dict[str, Any]:
    """A quality report as `run_quality` returns it, with a worst object whose name is hostile."""
    one = {"set": "em", "name": "<script>", "object": 3, "area": 0.1, "score": 0.4, "ious": {1: 0.2, 3: 0.6}}
    worst = [{"model": "ours", "domain": "em", "objects": [one]}]
    return {**report, "kind": "quality", "calibration": [], "worst": worst, "machine": machine()}


@pytest.mark.slow
def test_a_page_has_tables_plots_and_worst_objects_and_nothing_from_elsewhere(
    report: dict[str, Any], tmp_path: Path
) -> None:
    """Also the pictures of a gallery; names from files cannot become markup."""
    pytest.importorskip("matplotlib")
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "ours-em.png").write_bytes(b"picture")
    page = write_html(whole(report), tmp_path / "r.html", gallery=tmp_path / "gallery").read_text()
    assert page.count("<table>") == 3
    assert page.count("data:image/svg+xml;base64,") == 1
    assert page.count("data:image/png;base64,") == 1
    assert "&lt;script&gt;" in page
    assert "20 after 1, 60 after 3" in page
    for outside in ("http", "<script", 'src="/', "@import"):
        assert outside not in page.replace("http://www.w3.org", "")


def test_without_matplotlib_a_page_has_tables_only(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says why."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = write_html(whole(report), tmp_path / "r.html").read_text()
    assert "Without plots: a plot needs matplotlib" in page
    assert page.count("<table>") == 3


@pytest.mark.slow
def test_each_kind_of_report_becomes_a_page(tmp_path: Path) -> None:
    """Candidates, latency and volumes; another kind is refused."""
    choice = Choice("ours", "em", "1", (0.4, 0.8), (0.5, 0.6))
    row = {"group": "em", "objects": 1, "model": "ours", "first": 0.4, "best": 0.8, "masks": 2, "tabs": 1}
    rows = [{**row, "better": 1.0}]
    base = {"dataset": "folder", "complete": True, "machine": {"command": "x", "cores": 2}}
    page = write_html({**base, "kind": "candidates", "rows": rows, "choices": [choice]}, tmp_path / "a.html")
    assert "no candidate fits" in page.read_text()
    method = {"object": "1", "iou_one": 0.5, "iou_ten": 0.6, "actions_ten": 4, "actions_90": None}
    dices = {"dice_one": 0.5, "dice_ten": 0.6, "dice_c1": 0.7, "dice_c3": 0.8, "dice_c5": 0.9}
    rows = [{**method, **dices, "actions_95": None, "method": name} for name in ("propagate", "copy")]
    page = write_html({**base, "image": "i.tif", "model": "m", "rows": rows}, tmp_path / "b.html")
    assert "propagate: the worst after 3 corrections" in page.read_text()
    with pytest.raises(
        ValueError, match=r"a page is made of a report of kind quality, candidates, .*; got 'x'"
    ):
        write_html({"kind": "x"}, tmp_path / "c.html")


@pytest.mark.slow
def test_objects_have_a_summary_page(tmp_path: Path) -> None:
    """Sizes, the largest and the smallest; also of nothing."""
    labels = np.zeros((4, 40, 40), np.uint8)
    for number in range(1, 25):
        labels[1, number, : number + 1] = number
    found = measure(Volume(labels, spacing=(2.0, 1.0, 1.0)))
    page = measurements_page(tmp_path / "s.html", found, "µm", "labels.tif").read_text()
    assert "24 objects" in page
    assert "the 20 largest" in page
    assert "the 20 smallest, perhaps specks" in page
    assert "size, µm³" in page
    assert "0 objects" in measurements_page(tmp_path / "n.html", [], "", "labels.tif").read_text()
