"""The candidates benchmark on a fake that knows what a click can mean, and from end to end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_lowlat_seg.evaluation.candidates import Choice, candidates, run_candidates, summarise_candidates
from napari_lowlat_seg.evaluation.inputs.datasets import Sample
from napari_lowlat_seg.evaluation.runner import EvaluationSettings
from napari_lowlat_seg.models.checkpoints import save_model
from napari_lowlat_seg.models.compact import Compact, CompactConfig

TINY = CompactConfig(size=256, width=32, heads=2, blocks=1, skip8=16, skip4=8)


@dataclass(frozen=True)
class Scored:
    mask: np.ndarray
    quality: float


@dataclass
class Levels:
    """A model whose masks are the pixels of at least each level of the picture."""

    name: str = "levels"
    form: str = "fake"
    levels: tuple[int, ...] = (50, 150, 100)
    embedded: int = 0

    def embed(self, image):  # type: ignore[no-untyped-def]
        self.embedded += 1
        return image

    def predict(self, embedding, prompts, previous):  # type: ignore[no-untyped-def]
        return self.candidates(embedding, prompts)[0]

    def candidates(self, embedding, prompts):  # type: ignore[no-untyped-def]
        return [Scored(embedding >= level, 0.5) for level in self.levels]


class OneMask(Levels):
    candidates = None  # type: ignore[assignment]

    def predict(self, embedding, prompts, previous):  # type: ignore[no-untyped-def]
        return Scored(embedding >= 50, 0.5)


@pytest.fixture
def nested() -> np.ndarray:
    """Three squares in one another, of gray values 60, 120 and 200."""
    image = np.zeros((60, 60), np.uint8)
    image[5:55, 5:55], image[15:45, 15:45], image[25:35, 25:35] = 60, 120, 200
    return image


def test_each_level_is_found_among_the_candidates(nested) -> None:
    """The best is right for every target; how far away it is differs."""
    model = Levels()
    samples = [
        Sample(nested, (nested >= level).astype(np.int8), f"a#{level}", "em/a") for level in (50, 100, 150)
    ]
    choices = [one for [one] in candidates([model], samples)]
    assert [max(choice.ious) for choice in choices] == [1, 1, 1]
    assert [choice.tabs for choice in choices] == [0, 2, 1]
    assert model.embedded == 1
    all_of_them = summarise_candidates(choices, "folder")[-1]
    assert all_of_them["best"] == 1
    assert all_of_them["tabs"] == 1
    assert all_of_them["better"] == pytest.approx(2 / 3)


def test_a_model_with_one_mask_takes_part(nested) -> None:
    """Its first mask is its best."""
    [[choice]] = candidates([OneMask()], [Sample(nested, (nested >= 100).astype(np.int8), "a", "em/a")])
    assert len(choice.ious) == 1
    assert choice.tabs == 0


def test_nobody_goes_on_for_a_trifle() -> None:
    """A later mask is chosen if it is better by more than two points."""
    assert Choice("m", "g", "o", (0.80, 0.81, 0.79), (None,) * 3).tabs == 0
    assert Choice("m", "g", "o", (0.80, 0.83, 0.84), (None,) * 3).tabs == 1


@pytest.mark.slow
def test_the_benchmark_runs_from_files(tmp_path, nested, capsys) -> None:
    """A table is shown and everything is written."""
    save_model(Compact(TINY), tmp_path / "m.safetensors")
    for kind, pixels in (("images", nested), ("masks", (nested >= 100).astype(np.uint8))):
        folder = tmp_path / "data" / "em" / kind / "squares"
        folder.mkdir(parents=True)
        Image.fromarray(pixels).save(folder / "0.png")
    settings = EvaluationSettings(
        (str(tmp_path / "m.safetensors"),), "folder", tmp_path / "data", device="cpu"
    )
    report = run_candidates(settings, json=tmp_path / "c.json")
    assert "best IoU" in capsys.readouterr().out
    assert [row["group"] for row in report["rows"]] == ["em/squares", "em", "all"]
    assert json.loads(Path(tmp_path / "c.json").read_text())["choices"][0]["object"]
