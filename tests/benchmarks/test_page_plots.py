"""The plots of the benchmark pages are drawn from the tables that stand there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.page_plots import FIGURES, rows

PAGES = Path(__file__).parents[2] / "docs" / "benchmarks"


def test_the_rows_of_a_table_are_read_by_their_columns() -> None:
    """As they stand in the page; a table that is not there is named."""
    first = rows(PAGES / "quality.md", "domain", "objects", "model")[0]
    assert (first["domain"], first["model"]) == ("em", "default")
    assert float(first["NoC90"]) > 1
    with pytest.raises(ValueError, match=r"quality\.md has no table that begins with the columns a, b"):
        rows(PAGES / "quality.md", "a", "b")


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_plot_finds_its_table(name: str) -> None:
    """A page that is changed still has what is drawn, and shows the picture."""
    pytest.importorskip("matplotlib").use("Agg")
    assert FIGURES[name](PAGES).axes
    assert any(f"images/{name}.png" in page.read_text(encoding="utf-8") for page in PAGES.glob("*.md"))
