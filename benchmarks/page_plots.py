"""Draw the plots of the benchmark pages from their tables: `python -m benchmarks.page_plots docs`.

A plot cannot differ from its table: nothing is typed twice. Look at each before it is committed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DOMAINS = ("em", "med", "cells", "natural", "all")
OURS, OTHERS = "#2b6cb0", "#b7791f"
CLICKS = (1, 3, 5, 10, 20)
FIGURES: dict[str, Callable[[Path], Any]] = {}


def rows(page: Path, *heading: str) -> list[dict[str, str]]:
    """The rows, by column, of the first Markdown table of a page whose columns begin with these names."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        columns = _cells(line)
        if columns[: len(heading)] == list(heading):
            found: list[dict[str, str]] = []
            for row in lines[number + 2 :]:
                if not row.startswith("|"):
                    return found
                found.append(dict(zip(columns, _cells(row), strict=True)))
            return found
    raise ValueError(f"{page} has no table that begins with the columns {', '.join(heading)}")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _axes(count: int) -> tuple[Any, Sequence[Any]]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(4.5 * count, 3.2), layout="constrained", squeeze=False)
    for one in axes[0]:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def _pairs(axes: Any, names: Sequence[str], ours: Sequence[float], theirs: Sequence[float]) -> None:
    """Two bars for each name."""
    for shift, values, label, colour in (
        (-0.2, ours, "default", OURS),
        (0.2, theirs, "MobileSAM", OTHERS),
    ):
        bars = axes.bar([n + shift for n in range(len(names))], values, 0.38, label=label, color=colour)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(names)), names)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def quality(pages: Path) -> Any:
    """Clicks to IoU .90 by domain, and mean IoU after a number of clicks."""
    table = rows(pages / "quality.md", "domain", "objects", "model")
    by = {(row["domain"], row["model"]): row for row in table}
    figure, (bars, curve) = _axes(2)
    _pairs(
        bars,
        DOMAINS,
        [float(by[domain, "default"]["NoC90"]) for domain in DOMAINS],
        [float(by[domain, "MobileSAM"]["NoC90"]) for domain in DOMAINS],
    )
    bars.set_ylabel("clicks to an IoU of 0.90")
    for model, colour in (("default", OURS), ("fourth run@off", "#63b3ed"), ("MobileSAM", OTHERS)):
        values = [float(by["all", model][f"{n}-mIoU"]) for n in CLICKS]
        curve.plot(CLICKS, values, "o-", label=model, color=colour)
    curve.set_xlabel("clicks")
    curve.set_ylabel("mean IoU, %")
    curve.set_xticks(CLICKS)
    curve.legend(frameon=False, fontsize=8)
    return figure


def by_set(pages: Path) -> Any:
    """Mean IoU after a number of clicks, a panel for each set."""
    import matplotlib.pyplot as plt

    sets: dict[str, dict[str, list[float]]] = {}
    name = ""
    for row in rows(pages / "quality.md", "set", "objects", "model"):
        name = row["set"] or name
        sets.setdefault(name, {})[row["model"]] = [float(row[f"{n}-mIoU"]) for n in CLICKS]
    panels = [name for name in sets if "/" in name]
    figure, axes = plt.subplots(3, 4, figsize=(9.5, 6.5), layout="constrained", sharex=True)
    for one, name in zip(axes.flat, panels, strict=True):
        for model, colour in (("default", OURS), ("MobileSAM", OTHERS)):
            one.plot(CLICKS, sets[name][model], "o-", label=model, color=colour, markersize=4)
        one.set_title(name, fontsize=9)
        one.set_xticks(CLICKS)
        one.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("clicks", fontsize=10)
    figure.supylabel("mean IoU, %", fontsize=10)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def first_prompts(pages: Path) -> Any:
    """Prompts to IoU .90 by the kind of the first one."""
    table = rows(pages / "first-prompts.md", "first prompt", "domain", "objects", "model")
    by = {(row["first prompt"], row["model"]): row for row in table if row["domain"] == "all"}
    kinds = ("box", "scribble", "polygon")
    figure, (bars, first) = _axes(2)
    for axes, column, title in (
        (bars, "NoC90", "prompts to an IoU of 0.90"),
        (first, "1-mIoU", "mean IoU after the first one, %"),
    ):
        values = [[float(by[kind, model][column]) for kind in kinds] for model in ("default", "MobileSAM")]
        _pairs(axes, kinds, *values)
        axes.set_ylabel(title)
    return figure


def volumes(pages: Path) -> Any:
    """3-D Dice against corrected planes, the mean of all objects."""
    table = rows(pages / "volumes.md", "set", "method")
    start = next(number for number, row in enumerate(table) if row["set"].startswith("all"))
    figure, (axes,) = _axes(1)
    corrections = {"Dice, 1 plane": 0, "+1": 1, "+3": 3, "+5": 5}
    for row in table[start:]:
        values = [float(row[column]) for column in corrections]
        axes.plot(list(corrections.values()), values, "o-", label=row["method"])
    axes.set_xlabel("corrected planes after the first one")
    axes.set_ylabel("3-D Dice, mean of 31 objects")
    axes.legend(frameon=False, fontsize=7)
    return figure


def robustness(pages: Path) -> Any:
    """Points of IoU that poor images cost, after one and three clicks."""
    table = {row[""]: float(row["all"]) for row in rows(pages / "robustness.md", "", "objects", "em")}
    kinds = ("low contrast", "noise", "inverted", "hot pixels", "outliers", "anisotropic")
    figure, (axes,) = _axes(1)
    for shift, clicks, colour in ((-0.2, 1, OURS), (0.2, 3, "#90cdf4")):
        values = [table[f"{kind}, after {clicks}"] for kind in kinds]
        places = [number + shift for number in range(len(kinds))]
        axes.barh(places, values, 0.38, color=colour, label=f"after {clicks} click{'s' * (clicks > 1)}")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.set_xlabel("change of the mean IoU, points")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


FIGURES |= {
    "quality-domains": quality,
    "quality-click": by_set,
    "first-prompts": first_prompts,
    "volumes-corrections": volumes,
    "robustness-images": robustness,
}


def main() -> None:
    """Draw all of them into the folder of pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("docs", type=Path)
    docs = parser.parse_args().docs
    import matplotlib

    matplotlib.use("Agg")
    for name, draw in FIGURES.items():
        draw(docs / "benchmarks").savefig(docs / "images" / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
