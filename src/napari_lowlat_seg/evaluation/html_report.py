"""Reports to look at: one HTML file with tables, plots and worst cases, which needs no file beside it.

Plots need matplotlib (extra `train`); without it the file has the tables, and says so. Nothing in the file is
loaded from elsewhere, and no script runs in it.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.evaluation.analysis.calibration import calibration_table, save_calibration_plot
from napari_lowlat_seg.evaluation.report import (
    DICES,
    Table,
    latency_table,
    number,
    plotting,
    quality_table,
    save_figure,
    save_latency_plot,
    save_plot,
    table,
    volume_table,
)

WORST = 20
"""Objects in a list of the worst, for each model."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 75rem;
  margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th { background: #f3f3f3 } .text { text-align: left } tr.new td { border-top: 2px solid #999 }
img { max-width: 100% } pre { overflow-x: auto; font-size: 12px } .note { color: #666 }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd } th { background: #2a2a2a } th, td { border-color: #444 }
  img { background: #fff }
}
"""

Draw = Callable[[Path], None]
"""Writes a plot to a file, in the format of its suffix; raises ImportError without matplotlib."""


def write_html(report: Mapping[str, Any], path: str | Path, *, gallery: Path | None = None) -> Path:
    """Write the report of a benchmark as a page, and return its path.

    Parameters
    ----------
    report
        As `run_quality`, `run_candidates`, `run_robustness`, `run_latency` and `run_volume` return it.
    path
        The file to write; an existing one is replaced when the new one is complete.
    gallery
        A folder of pictures of worst objects to put into the page.

    Raises
    ------
    ValueError
        For a report of another kind.
    """
    kind = report.get("kind", "volume" if "image" in report else None)
    if kind not in PAGES:
        raise ValueError(f"a page is made of a report of kind {', '.join(PAGES)}; got {kind!r}")
    title, parts, plots = PAGES[kind](report)
    pictures = sorted(gallery.glob("*.png")) if gallery is not None and gallery.is_dir() else []
    parts = [*_drawn(plots), *parts, *(_picture(one.read_bytes(), "png", one.stem) for one in pictures)]
    return write_page(path, title, [*parts, _about(report["machine"])])


def write_page(path: str | Path, title: str, parts: Sequence[str]) -> Path:
    """Write a page of these parts, which are HTML, under a title; return its path."""
    body = "\n".join(parts)
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )
    with atomic_file(path) as part:
        # File names in another encoding have characters that UTF-8 lacks.
        part.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
    return Path(path)


def html_table(made: str) -> str:
    """Return a table as HTML; text that is none keeps its lines.

    >>> html_table(table("t", ("a", "b"), [("x", 1)], text=("a",))).count("<td")
    2
    """
    if not isinstance(made, Table):
        return f"<pre>{escape(made)}</pre>"
    kinds = ["text" if column in made.text else "number" for column in made.columns]
    head = "".join(f'<th class="{k}">{escape(c)}</th>' for k, c in zip(kinds, made.columns, strict=True))
    rows, above = [], None
    for cells in made.rows:
        lead = cells[: made.merged]
        new = ' class="new"' if made.merged and above is not None and lead != above else ""
        above = lead
        line = "".join(f'<td class="{k}">{escape(c)}</td>' for k, c in zip(kinds, cells, strict=True))
        rows.append(f"<tr{new}>{line}</tr>")
    caption = f"<caption>{escape(made.caption)}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def bars(title: str, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> Draw:
    """Return what draws a group of bars for each name, one bar of it for each series."""

    def draw(path: Path) -> None:
        figure = plotting()(figsize=(max(5, 0.5 * len(names) * (1 + len(series))), 3.2), layout="constrained")
        axes = figure.add_subplot()
        width = 0.8 / max(1, len(series))
        for place, (label, values) in enumerate(series.items()):
            axes.bar(np.arange(len(names)) + width * place, values, width, label=label)
        axes.set_xticks(np.arange(len(names)) + 0.4 - width / 2, names, fontsize=8, rotation=20, ha="right")
        axes.grid(axis="y", alpha=0.3)
        save_figure(figure, path, title)

    return draw


def histogram(title: str, values: Sequence[float], unit: str) -> Draw:
    """Return what draws the distribution of positive values on a logarithmic axis."""

    def draw(path: Path) -> None:
        figure = plotting()(figsize=(6, 3), layout="constrained")
        axes = figure.add_subplot()
        logs = np.log10(np.asarray(values, float))
        low, high = logs.min(), logs.max() + 1e-9
        axes.hist(10**logs, 10 ** np.linspace(low, high + 0.01, 30))
        axes.set_xscale("log")
        axes.set_xlabel(unit, fontsize=9)
        axes.set_ylabel("objects", fontsize=9)
        axes.set_title(title, fontsize=10)
        save_figure(figure, path)

    return draw


def measurements_page(path: str | Path, found: Sequence[Any], unit: str, name: str) -> Path:
    """Write a summary of the objects in labels: number, sizes, the largest and the smallest.

    Parameters
    ----------
    found
        `Measurement` of each object.
    unit
        Of space, "" for voxels.
    name
        Of the labels, for the title.
    """
    power = 2 if found and len(found[0].centre) == 2 else 3
    of_size = f"{unit}{'²³'[power - 2]}" if unit else "voxels"
    ranked = sorted(found, key=lambda one: -one.size)
    sizes = [one.size for one in ranked]
    columns = ("label", "name", f"size, {of_size}", "voxels", "planes", "first", "last", "mean", "std")

    def rows(part: Sequence[Any]) -> Iterator[tuple[object, ...]]:
        for one in part:
            ends = (" ".join(map(str, end)) for end in (one.first, one.last))
            values = (number(value, ".4g") for value in (one.mean, one.std))
            yield (one.label, one.name, f"{one.size:.6g}", one.voxels, one.planes, *ends, *values)

    def listed(title: str, part: Sequence[Any]) -> str:
        return html_table(table(title, columns, rows(part), text=("name",)))

    parts = [f"<p>{len(found)} objects. The place of an object is its bounding box in voxels.</p>"]
    if sizes:
        low, middle, high = np.percentile(sizes, (25, 50, 75))
        facts = [("sum", sum(sizes)), ("mean", np.mean(sizes)), ("lower quartile", low), ("median", middle)]
        facts += [("upper quartile", high), ("smallest", sizes[-1]), ("largest", sizes[0])]
        cells = [(what, f"{value:.6g}") for what, value in facts]
        parts += _drawn([histogram("sizes of objects", sizes, of_size)])
        parts.append(html_table(table("sizes", ("", of_size), cells, text=("",))))
        parts.append(listed(f"the {min(WORST, len(found))} largest", ranked[:WORST]))
        if len(found) > WORST:
            parts.append(listed(f"the {WORST} smallest, perhaps specks", ranked[::-1][:WORST]))
    return write_page(path, f"Objects in {name}", parts)


def _drawn(plots: Sequence[Draw]) -> list[str]:
    """The plots as SVG in the page, or one sentence without matplotlib."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for draw in plots:
            path = Path(folder) / "plot.svg"
            try:
                draw(path)
            except ImportError as problem:
                return [f'<p class="note">Without plots: {escape(str(problem))}.</p>']
            made.append(_picture(path.read_bytes(), "svg+xml", "plot"))
    return made


def _picture(data: bytes, kind: str, name: str) -> str:
    coded = base64.b64encode(data).decode("ascii")
    return f'<p><img alt="{escape(name)}" src="data:image/{kind};base64,{coded}"></p>'


def _about(machine: Mapping[str, Any]) -> str:
    cells = [(name, value) for name, value in machine.items() if value]
    return html_table(table("machine and command", ("", " "), cells, text=("", " ")))


_Page = tuple[str, list[str], list[Draw]]


def _quality(report: Mapping[str, Any]) -> _Page:
    parts = [html_table(quality_table(report))]
    plots: list[Draw] = [lambda path: save_plot(report, path)] if report["curves"] else []
    if report["calibration"]:
        parts.append(html_table(calibration_table(report)))
        plots.append(lambda path: save_calibration_plot(report, path))
    for part in report["worst"]:
        cells = [
            (
                *(one[key] for key in ("set", "name", "object")),
                f"{100 * one['area']:.3g} %",
                f"{100 * one['score']:.1f}",
                ", ".join(f"{100 * iou:.0f} after {k}" for k, iou in one["ious"].items()),
            )
            for one in part["objects"][:WORST]
        ]
        title = f"{part['model']}, {part['domain']}: objects with the lowest mean IoU after prompts 1 to 5"
        heads = ("set", "image", "object", "of the image", "mean IoU", "IoU")
        parts.append(html_table(table(title, heads, cells, text=("set", "image", "IoU"))))
    return f"Quality on {report['dataset']}", parts, plots


def _candidates(report: Mapping[str, Any]) -> _Page:
    from napari_lowlat_seg.evaluation.candidates import candidates_table

    rows = report["rows"]
    parts = [html_table(candidates_table(dict(report)))]
    lowest = sorted(report["choices"], key=lambda one: max(one.ious))[:WORST]
    cells = [
        (c.group, c.object, c.model, *(f"{100 * x:.1f}" for x in (c.ious[0], max(c.ious)))) for c in lowest
    ]
    heads = ("set", "object", "model", "first IoU", "best IoU")
    parts.append(html_table(table("no candidate fits", heads, cells, text=heads[:3])))
    names = [f"{row['group']}, {row['model']}" for row in rows]
    series = {key: [100 * row[key] for row in rows] for key in ("first", "best")}
    return f"Candidates on {report['dataset']}", parts, [bars("IoU after one click, %", names, series)]


def _robustness(report: Mapping[str, Any]) -> _Page:
    from napari_lowlat_seg.evaluation.analysis.robustness import robustness_table

    return f"Robustness on {report['dataset']}", [html_table(robustness_table(report))], []


def _latency(report: Mapping[str, Any]) -> _Page:
    rows = report["rows"]
    names = [row["model"] for row in rows]
    series = {
        title: [1000 * row[key] for row in rows]
        for key, title in (("embed_s", "embed"), ("first_p50_s", "first p50"), ("click_p95_s", "final p95"))
    }
    plots = [bars("milliseconds", names, series)]
    if any("stages" in row for row in rows):
        plots.append(lambda path: save_latency_plot(report, path))
    size = " x ".join(map(str, report["size"]))
    return f"Latency for an image of {size}", [html_table(latency_table(report))], plots


def _volume(report: Mapping[str, Any]) -> _Page:
    rows = report["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    series = {
        method: [float(np.mean([row[key] for row in rows if row["method"] == method])) for key in DICES]
        for method in methods
    }
    parts = [html_table(volume_table(report))]
    mine = sorted((row for row in rows if row["method"] == methods[0]), key=lambda row: row["dice_c3"])[
        :WORST
    ]
    cells = [(row["object"], *(f"{row[key]:.3f}" for key in DICES)) for row in mine]
    heads = ("object", *DICES.values())
    parts.append(
        html_table(table(f"{methods[0]}: the worst after 3 corrections", heads, cells, text=heads[:1]))
    )
    plots = [bars("mean 3-D Dice", list(DICES.values()), series)]
    return f"Volumes: {report['image']}, {report['model']}", parts, plots


PAGES: dict[str, Callable[[Mapping[str, Any]], _Page]] = {
    "quality": _quality,
    "candidates": _candidates,
    "robustness": _robustness,
    "latency": _latency,
    "volume": _volume,
}
"""What makes the title, the tables and the plots of each kind of report."""
