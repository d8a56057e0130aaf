"""Benchmark reports: rows of metrics, plain-text tables, JSON files, plots."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.evaluation.metrics import miou_at_k, noc, nof
from napari_lowlat_seg.inference.processors import usable
from napari_lowlat_seg.models.registry import cache_dir, known_names, known_path

ALL = "all objects"
OPENMP = ("OMP_", "GOMP_", "KMP_")  # how the names of its environment variables begin
KS = (1, 3, 5, 10, 20)
# Sizes of objects as fractions of the picture: the upper end of each bin, and its name.
SIZES = ((0.001, "< 0.1 %"), (0.01, "0.1-1 %"), (0.1, "1-10 %"), (float("inf"), "> 10 %"))


@dataclass(frozen=True)
class Curve:
    """IoU after each prompt, of one model on one object.

    Attributes
    ----------
    model, form
        The model, and how it makes one mask from prompts.
    group
        The set the object belongs to.
    object
        Its name.
    area
        Its size as a fraction of the picture.
    ious
        After prompt 1 .. K.
    predicted
        The model's own estimate of each; None where it makes none, and after the last prompt where
        nothing was left to correct.
    """

    model: str
    form: str
    group: str
    object: str
    area: float
    ious: tuple[float, ...]
    predicted: tuple[float | None, ...] = ()


def domain_of(group: str, dataset: str) -> str:
    """Return the domain of a set: the first part of its name in a `folder`, else the data set."""
    return group.split("/")[0] if dataset == "folder" else dataset


def summarise(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return a row of metrics for each model on each set, each size of object, and all objects together.

    A row has model, form, by ("set", "size" or "all"), group, objects, noc85, noc90, noc95, nof95 and miou1,
    miou3 .. as far as the curves go.
    """
    models = list(dict.fromkeys((curve.model, curve.form) for curve in curves))
    groups = list(dict.fromkeys(curve.group for curve in curves))
    parts = [("set", group, [c for c in curves if c.group == group]) for group in groups]
    parts += [("size", name, [c for c in curves if size_of(c.area) == name]) for _, name in SIZES]
    parts += [("all", ALL, list(curves))]
    return [
        {
            "model": model,
            "form": form,
            "by": by,
            "group": group,
            **_metrics([c for c in part if c.model == model]),
        }
        for by, group, part in parts
        for model, form in models
        if any(c.model == model for c in part)
    ]


def size_of(area: float) -> str:
    """Return the name of the size bin of an object that covers a fraction of the picture."""
    return next(name for end, name in SIZES if area < end)


def _metrics(curves: Sequence[Curve]) -> dict[str, float]:
    ious = np.array([curve.ious for curve in curves], np.float32)
    mean = miou_at_k(ious)
    return {
        "objects": len(ious),
        **{f"noc{round(100 * t)}": float(noc(ious, t).mean()) for t in (0.85, 0.9, 0.95)},
        "nof95": nof(ious, 0.95),
        **{f"miou{k}": float(mean[k - 1]) for k in KS if k <= ious.shape[1]},
    }


def quality_table(report: Mapping[str, Any]) -> str:
    """Return the rows of a quality report as a plain-text table."""
    rows = report["rows"]
    metrics = [key for key in rows[0] if key.startswith(("noc", "nof", "miou"))] if rows else []
    cells = [
        (
            row["group"],
            row["objects"],
            row["model"],
            row["form"],
            *(_metric(row[key], key) for key in metrics),
        )
        for row in rows
    ]
    note = "" if report["complete"] else " (interrupted: part of the objects)"
    return table(
        f"{report['dataset']}, first prompt: {report['first']}, {report['max_clicks']} prompts{note}",
        ("set", "n", "model", "form", *map(_title, metrics)),
        cells,
        text=("set", "model", "form"),
        merged=2,
    )


def _title(key: str) -> str:
    return f"{key[4:]}-mIoU" if key.startswith("miou") else f"No{key[2].upper()}{key[3:]}"


def _metric(value: float, key: str) -> str:
    if key.startswith("miou"):
        return f"{100 * value:.1f}"
    return str(value) if key.startswith("nof") else f"{value:.2f}"


LATENCIES = {
    "embed_s": "embed ms",
    "first_p50_s": "first p50 ms",
    "first_p95_s": "p95",
    "click_p50_s": "final p50 ms",
    "click_p95_s": "p95",
    "click_p99_s": "p99",
}


def latency_table(report: Mapping[str, Any]) -> str:
    """Return the rows of a latency report as a plain-text table; busy loops are in the title."""
    rows, cols = report["size"]
    cells = [
        (
            *(row[key] for key in ("model", "form", "device")),
            *(f"{1000 * row[key]:.4g}" for key in LATENCIES),
            f"{1000 * row['plane_s']:.4g}" if "plane_s" in row else "-",
            number(row["sat_s"], ".3g") + ("" if row["sat_s"] is None or row["sat_clicks"] == 256 else "*"),
            *(number(row[key], ".3g") for key in ("sat_first_s", "sat_batch_s")),
            *(number(row[key], ".0f") for key in ("peak_ram_mib", "peak_gpu_mib")),
        )
        for row in report["rows"]
    ]
    extrapolated = any(row["sat_s"] is not None and row["sat_clicks"] < 256 for row in report["rows"])
    note = "; * extrapolated from fewer than 256 clicks" if extrapolated else ""
    if busy := report.get("busy", 0):
        note = f", beside {busy} busy loop{'s' if busy > 1 else ''}{note}"
    return table(
        f"{rows} x {cols} picture, {report['machine']['cores']} cores{note}",
        (
            "model", "form", "device", *LATENCIES.values(),
            "plane ms", "SAT s", "first", "batch", "RAM MiB", "GPU MiB",
        ),
        cells,
        text=("model", "form", "device"),
    )  # fmt: skip


DICES = {"dice_one": "1 plane", "dice_ten": "every 10th", "dice_c1": "+1", "dice_c3": "+3", "dice_c5": "+5"}
PLANE_IOUS = {"iou_one": "IoU 1 plane", "iou_ten": "IoU every 10th"}
ACTIONS = {"actions_ten": "actions 10th", "actions_90": "to .90", "actions_95": "to .95"}


def volume_table(report: Mapping[str, Any]) -> str:
    """Return the rows of a volume report as a plain-text table."""
    cells = [
        (
            row["object"],
            row["method"],
            *(f"{row[key]:.3f}" for key in (*DICES, *PLANE_IOUS)),
            *(number(row[key], "d") for key in ACTIONS),
        )
        for row in report["rows"]
    ]
    return table(
        f"{report['image']}, {report['model']}: 3-D Dice, mean IoU of planes, actions",
        ("object", "method", *DICES.values(), *PLANE_IOUS.values(), *ACTIONS.values()),
        cells,
        text=("object", "method"),
        merged=1,
    )


def number(value: float | None, form: str) -> str:
    """Return a number formatted as `format` does it; a dash for None."""
    return "-" if value is None else format(value, form)


class Table(str):
    """A plain-text table, as the terminal shows it, that remembers its cells for other forms.

    Attributes
    ----------
    caption, columns, rows, text, merged
        As `table` takes them (`caption` is its title); cells are text.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: frozenset[str]
    merged: int


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    text: Collection[str] = (),
    merged: int = 0,
) -> Table:
    """Return a plain-text table under its title.

    Parameters
    ----------
    columns
        Headings.
    rows
        One cell a column; `str` makes text of it.
    text
        The columns that are left-aligned; all others are right-aligned.
    merged
        Number of leading columns whose cells stay empty while they repeat the row above; a line is drawn
        where they change.
    """
    made = RichTable(title=title, title_justify="left")
    for column in columns:
        made.add_column(column, justify="left" if column in text else "right")
    above: tuple[str, ...] | None = None
    shown = tuple(tuple(str(cell) for cell in row) for row in rows)
    for cells in shown:
        lead = cells[:merged]
        if merged and above is not None and lead != above:
            made.add_section()
        made.add_row(*([""] * merged if merged and lead == above else lead), *cells[merged:])
        above = lead
    console = Console(width=240, no_color=True, file=StringIO())
    with console.capture() as capture:
        console.print(made)
    done = Table("\n".join(line.rstrip() for line in capture.get().splitlines()))
    done.caption, done.columns, done.rows = title, tuple(columns), shown
    done.text, done.merged = frozenset(text), merged
    return done


def machine() -> dict[str, Any]:
    """Return platform, processor, versions and command line of this run."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": usable(),
        "openmp": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(OPENMP)},
        "python": platform.python_version(),
        **{name: _version(name) for name in ("napari-lowlat-seg", "torch", "onnxruntime", "numpy")},
        "command": " ".join(sys.argv),
    }


OPTIONAL = (
    "napari", "npe2", "PySide6", "PySide6_Essentials", "PyQt6", "openvino", "zarr", "ome-zarr", "numcodecs",
    "imagecodecs", "dask", "pydicom", "highdicom", "h5py", "SimpleITK", "tensorstore", "roifile",
    "matplotlib", "onnxruntime",
)  # fmt: skip
"""Packages that are named in `installation` if they are there."""


def installation() -> dict[str, str]:
    """Return what an error report needs, by name: versions, processor, threads, devices, models, variables.

    Neither napari nor Qt is imported; the user's home folder is written as ~.
    """
    import torch

    here = [name for name in known_names() if known_path(name).is_file()]
    folder = str(cache_dir()).replace(str(Path.home()), "~", 1)
    cuda = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    names = ("numpy", "scipy", "scikit-image", "tifffile", "nibabel", "typer", *OPTIONAL)
    found = {name: _version(name) for name in names}
    shown = [name for name in sorted(os.environ) if name.startswith((*OPENMP, "QT_API", "CUDA_VISIBLE"))]
    return {
        "napari-lowlat-seg": str(_version("napari-lowlat-seg")),
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "processor": f"{_processor()}, {usable()} cores, {torch.get_num_threads()} threads",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}",
        "GPU": ", ".join(cuda) or ("mps" if torch.backends.mps.is_available() else "none"),
        "libraries": ", ".join(f"{name} {number}" for name, number in found.items() if number),
        "models here": f"{', '.join(here)}; folder {folder}",
        "variables": ", ".join(f"{name}={os.environ[name]}" for name in shown),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_folders(*paths: str | Path | None) -> None:
    """Raise ValueError for a file whose folder does not exist; call it before the work, not after it."""
    for path in paths:
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise ValueError(f"the folder of {path} must exist; make it first")


def save_json(report: Mapping[str, Any], path: str | Path) -> None:
    """Write a report of plain values and dataclasses as JSON."""
    text = json.dumps(report, indent=1, default=asdict) + "\n"
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")


def save_plot(report: Mapping[str, Any], path: str | Path) -> None:
    """Plot mean IoU against the number of prompts, one panel a set, in the format of the file's suffix.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    figure_of = plotting()
    curves: Sequence[Curve] = report["curves"]
    groups = list(dict.fromkeys(curve.group for curve in curves))
    panels = [ALL, *groups] if len(groups) > 1 else groups
    across = min(4, max(1, len(panels)))
    down = -(-len(panels) // across)
    figure = figure_of(figsize=(3.4 * across, 2.8 * down + 0.5), layout="constrained")
    for place, group in enumerate(panels, 1):
        axes = figure.add_subplot(down, across, place)
        shown = [curve for curve in curves if group in (ALL, curve.group)]
        for model in dict.fromkeys(curve.model for curve in shown):
            mean = miou_at_k(np.array([curve.ious for curve in shown if curve.model == model]))
            axes.plot(range(1, len(mean) + 1), 100 * mean, marker=".", label=model)
        axes.set_title(group, fontsize=9)
        axes.grid(alpha=0.3)
    title = f"{report['dataset']}: mean IoU in % after each prompt, the first a {report['first']}"
    save_figure(figure, path, title)


def save_figure(figure: Any, path: str | Path, title: str = "") -> None:
    """Write a figure, under a title with the first panel's legend below if one is given."""
    if title:
        width, height = figure.get_size_inches()
        figure.set_size_inches(max(width, 0.085 * len(title)), height)  # else a long title is cut
        figure.suptitle(title, fontsize=10)
        for axes in figure.axes[:1]:
            lines = axes.get_legend_handles_labels()
            figure.legend(*lines, loc="outside lower center", ncols=3, fontsize=8)
    with atomic_file(path) as part:
        figure.savefig(part, dpi=120)


def save_latency_plot(report: Mapping[str, Any], path: str | Path) -> None:
    """Plot the stages of a click and the floor of each of our models, and their cost curves if there are any.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    rows = [row for row in report["rows"] if "stages" in row]
    kinds = list(dict.fromkeys(curve["kind"] for curve in report["costs"]))
    figure = plotting()(figsize=(9, 0.8 * len(rows) + 3.2 * -(-len(kinds) // 2) + 1.6), layout="constrained")
    down = 1 + -(-len(kinds) // 2)
    cells = figure.add_gridspec(down, 2)
    bars = figure.add_subplot(cells[0, :])
    for place, row in enumerate(rows):
        left = 0.0
        for colour, (stage, seconds) in enumerate(row["stages"]["click"].items()):
            bars.barh(place, 1000 * seconds, left=left, color=f"C{colour}", label=None if place else stage)
            left += 1000 * seconds
        bars.plot([1000 * row["floor"]["click_s"]] * 2, [place - 0.4, place + 0.4], "k--")
    bars.set_yticks(range(len(rows)), [row["model"] for row in rows], fontsize=8)
    bars.set_xlabel("ms of a click, every stage waited for; dashed: floor", fontsize=8)
    if rows:
        bars.legend(fontsize=7, ncols=5)
    for place, kind in enumerate(kinds):
        axes = figure.add_subplot(cells[1 + place // 2, place % 2])
        for curve in (curve for curve in report["costs"] if curve["kind"] == kind):
            times = [1000 * s for s in curve["seconds"]]
            axes.loglog(curve["amounts"], times, marker=".", label=curve["label"])
        first, last = curve["amounts"][0], curve["amounts"][-1]
        steepest = last / first if curve["touched"] == "linear" else (last / first) ** 2
        end = 1000 * curve["seconds"][-1]
        axes.loglog([first, last], [end / steepest, end], "k:", label=f"{curve['touched']} growth")
        axes.set_title(f"ms against {kind}", fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    save_figure(figure, path)


def plotting() -> Any:
    """Return matplotlib's Figure class, which draws to files without a display.

    Raises
    ------
    ImportError
        Without matplotlib, saying how to get it.
    """
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as problem:
        raise ImportError(
            "a plot needs matplotlib, which is not installed; pip install matplotlib"
        ) from problem
