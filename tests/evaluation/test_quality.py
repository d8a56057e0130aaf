"""The quality benchmark on fakes, and from end to end on tiny networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes import FakePrediction, FakePredictor
from napari_lowlat_seg.core.prompts import Box, Polygon, Prompt, Scribble
from napari_lowlat_seg.evaluation import quality as quality_module
from napari_lowlat_seg.evaluation.analysis.gallery import draw_tiles
from napari_lowlat_seg.evaluation.inputs.datasets import Sample
from napari_lowlat_seg.evaluation.quality import quality, run_quality
from napari_lowlat_seg.evaluation.runner import EvaluationSettings

Export = Callable[..., tuple[Path, Path]]


def evaluation(specs: Sequence[str], root: Path, **settings: Any) -> EvaluationSettings:
    """Settings for the folder of pictures."""
    return EvaluationSettings(tuple(specs), "folder", root, **settings)


def slow(name: str, rows: int = 1) -> FakePredictor:
    """A model that finds some more rows of the picture's bright object with every prompt."""

    def rule(image: np.ndarray, prompts: Sequence[Prompt], previous: Any) -> np.ndarray:
        assert (previous is None) == (len(prompts) == 1)
        mask = image > 128
        mask[2 + rows * len(prompts) :] = False
        return mask

    return FakePredictor(rule, name)


@pytest.fixture
def samples() -> list[Sample]:
    """Two objects of one picture and one of another; each 10 rows high from row 2."""
    pictures = [np.zeros((20, 30), np.uint8) for _ in range(2)]
    for picture in pictures:
        picture[2:12, 5:15] = 255
    truth = (pictures[0] > 0).astype(np.int8)
    return [Sample(pictures[i], truth, f"{i}#{j}", f"set{i}") for i, j in ((0, 1), (0, 2), (1, 1))]


def test_every_model_gets_a_curve_for_every_object(samples: list[Sample]) -> None:
    """Curves of full length, on which the annotator stays content after IoU 1."""
    models = [slow("slow"), slow("fast", rows=5)]
    curves = list(quality(models, samples, max_clicks=4))
    assert [[c.model for c in same] for same in curves] == [["slow", "fast"]] * 3
    assert curves[0][0].ious == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert curves[0][1].ious == pytest.approx((0.5, 1.0, 1.0, 1.0))
    assert (curves[2][0].group, curves[2][0].object, curves[2][0].area) == ("set1", "1#1", 100 / 600)


def overconfident(name: str, rows: int = 1) -> FakePredictor:
    """A model that overestimates its IoU, each time a little less, and predicts none for the third mask."""
    seen = slow(name, rows).predict

    def rule(image: np.ndarray, prompts: Sequence[Prompt], previous: Any) -> FakePrediction:
        quality = None if len(prompts) == 3 else np.float32(1 - len(prompts) / 8)
        return replace(seen(image, prompts, previous), quality=quality)

    return FakePredictor(rule, name)


def test_predicted_ious_are_recorded(samples: list[Sample]) -> None:
    """As plain numbers; None for a model that predicts none, and after the last prompt."""
    models = [overconfident("proud"), overconfident("content", rows=5), slow("silent")]
    first = next(iter(quality(models, samples, max_clicks=4)))
    assert [curve.predicted for curve in first] == [
        (0.875, 0.75, None, 0.5),
        (0.875, 0.75, None, None),
        (None, None, None, None),
    ]
    assert first[1].ious == pytest.approx((0.5, 1, 1, 1))


def test_a_picture_is_embedded_once(samples: list[Sample]) -> None:
    """Two pictures, three objects."""
    model = slow("slow")
    list(quality([model], samples, max_clicks=1))
    assert len(model.embedded) == 2


@pytest.mark.parametrize(("first", "kind"), [("box", Box), ("scribble", Scribble), ("polygon", Polygon)])
def test_the_first_prompt_may_be_of_another_kind(samples: list[Sample], first: str, kind: type) -> None:
    """And is the same for all models."""
    models = [slow("a"), slow("b")]
    list(quality(models, samples, max_clicks=3, first=first))
    firsts = [[prompts[0] for _, prompts, _ in model.calls if len(prompts) == 1] for model in models]
    assert [type(prompt) for prompt in firsts[0]] == [kind] * 3
    assert firsts[0] == firsts[1]


def test_an_unknown_first_prompt_is_refused(samples: list[Sample]) -> None:
    """The known ones are listed."""
    with pytest.raises(ValueError, match="one of click, box, scribble, polygon; got 'word'"):
        quality([slow("a")], samples, first="word")


def test_models_need_different_names(samples: list[Sample]) -> None:
    """And there must be one."""
    with pytest.raises(ValueError, match="different names, at least one; got a, a"):
        quality([slow("a"), slow("a")], samples)
    with pytest.raises(ValueError, match="at least one; got none"):
        quality([], samples)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three 64 x 64 pictures, one bright object each, in two sets."""
    for group, name, top in (("a", "x", 8), ("a", "y", 24), ("b", "z", 40)):
        picture = np.full((64, 64), 30, np.uint8)
        picture[top : top + 16, 12:28] = 220
        for folder, pixels in (("images", picture), ("masks", (picture > 128).astype(np.uint8))):
            (tmp_path / folder / group).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / group / f"{name}.png")
    return tmp_path


@pytest.fixture
def specs(export_sam: Export) -> list[str]:
    """A model that sees what is bright, and one that sees the rest."""
    good, bad = export_sam(), export_sam((-1.0,))
    return [f"onnx-sam:{good[0]},{good[1]},good", f"onnx-sam:{bad[0]},{bad[1]},bad"]


@pytest.mark.slow
def test_a_run_shows_and_writes_its_results(root: Path, specs: list[str], tmp_path: Path) -> None:
    """Table, JSON with all curves, and a plot."""
    shown: list[str] = []
    file, plot = tmp_path / "out.json", tmp_path / "out.png"
    report = run_quality(evaluation(specs, root), max_clicks=3, json=file, plot=plot, show=shown.append)
    assert report["complete"]
    written = json.loads(file.read_text())
    assert [(c["object"], c["model"]) for c in written["curves"]][:3] == [
        ("a/x#1", "good"),
        ("a/x#1", "bad"),
        ("a/y#1", "good"),
    ]
    assert written["curves"][0]["ious"] == [1.0, 1.0, 1.0]
    rows = {(row["model"], row["group"]): row for row in written["rows"]}
    assert (rows["good", "all objects"]["noc90"], rows["bad", "all objects"]["noc90"]) == (1.0, 3.0)
    assert rows["good", "a"]["objects"] == 2
    assert "one mask, logits fed back" in shown[0]
    with Image.open(plot) as picture:
        assert picture.size[0] > 300


@pytest.mark.slow
def test_a_run_reports_calibration(root: Path, specs: list[str], tmp_path: Path) -> None:
    """In a second table, in JSON and in a plot beside the first; the files of ONNX models are not ours."""
    shown: list[str] = []
    report = run_quality(evaluation(specs, root), max_clicks=3, plot=tmp_path / "o.png", show=shown.append)
    rows = {(row["model"], row["group"]): row for row in report["calibration"]}
    assert list(rows) == [(m, g) for m in ("good", "bad") for g in ("a", "b", "all objects")]
    assert rows["good", "a"]["bias"] == -0.5  # it always says 0.5, and it is always right
    assert "after prompts 1, 3" in shown[1]
    assert (tmp_path / "o-calibration.png").is_file()
    assert report["sha256"] == dict.fromkeys(specs)


@pytest.mark.slow
def test_without_predicted_iou_there_is_no_calibration(root: Path, tiny: Path, tmp_path: Path) -> None:
    """No second table and no second plot; a model of ours is identified by its file."""
    shown: list[str] = []
    plot = tmp_path / "o.png"
    report = run_quality(
        evaluation([str(tiny)], root, device="cpu"), max_clicks=1, plot=plot, show=shown.append
    )
    assert (report["calibration"], len(shown)) == ([], 1)
    assert not (tmp_path / "o-calibration.png").exists()
    assert len(report["sha256"][str(tiny)]) == 64


@pytest.mark.slow
def test_the_worst_objects_are_listed_and_drawn(root: Path, specs: list[str], tmp_path: Path) -> None:
    """One picture a model and domain; in JSON with or without pictures."""
    file = tmp_path / "o.json"
    run_quality(evaluation(specs, root), max_clicks=3, json=file, gallery=tmp_path / "g", worst=1, show=None)
    files = ["bad-a.png", "bad-b.png", "good-a.png", "good-b.png"]
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == files
    worst = json.loads(file.read_text())["worst"]
    assert [(part["model"], part["domain"]) for part in worst] == [
        ("good", "a"),
        ("bad", "a"),
        ("good", "b"),
        ("bad", "b"),
    ]
    assert worst[0]["objects"] == [
        {
            "set": "a",
            "name": "a/x#1",
            "object": 1,
            "area": 256 / 4096,
            "score": 1.0,
            "ious": {"1": 1.0, "3": 1.0},
        }
    ]


@pytest.mark.slow
def test_workers_give_the_same_curves_and_gallery(root: Path, specs: list[str], tmp_path: Path) -> None:
    """Byte for byte, in the order of the data set and of the ranks; a second run writes over the first."""
    curves = []
    for workers, folder in ((1, "alone"), (2, "shared"), (1, "shared")):
        found = run_quality(
            evaluation(specs, root, workers=workers), max_clicks=2, gallery=tmp_path / folder, show=None
        )
        curves.append(found["curves"])
        for path in (tmp_path / "alone").iterdir():
            assert path.read_bytes() == (tmp_path / folder / path.name).read_bytes()
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_a_workers_error_reaches_the_caller(root: Path, specs: list[str]) -> None:
    """As the error it was."""
    with pytest.raises(ValueError, match=r"expected an ONNX file at none.onnx"):
        run_quality(evaluation(["onnx-sam:none.onnx,none.onnx"], root, workers=2), show=None)


def test_an_interrupt_keeps_what_is_done(
    root: Path, specs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the first object: one curve a model, marked as incomplete, without a gallery."""

    def interrupted(*args: object, **kwargs: object) -> Any:
        done = next(iter(quality(*args, **kwargs)))  # type: ignore[arg-type]
        yield done
        raise KeyboardInterrupt

    monkeypatch.setattr(quality_module, "quality", interrupted)
    shown: list[str] = []
    file, gallery = tmp_path / "o.json", tmp_path / "g"
    report = run_quality(evaluation(specs, root), max_clicks=2, json=file, gallery=gallery, show=shown.append)
    assert (report["complete"], len(report["curves"])) == (False, 2)
    assert not (tmp_path / "g").exists()
    assert json.loads((tmp_path / "o.json").read_text())["complete"] is False
    assert "interrupted: part of the objects" in shown[0]


@pytest.mark.slow
def test_an_interrupted_gallery_is_not_written(
    root: Path, specs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the first tile: all curves are there."""

    def interrupted(*args: object, **kwargs: object) -> Any:
        yield next(iter(draw_tiles(*args, **kwargs)))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(quality_module, "draw_tiles", interrupted)
    report = run_quality(evaluation(specs, root), max_clicks=1, gallery=tmp_path / "g", show=None)
    assert (report["complete"], len(report["curves"])) == (True, 6)
    assert not (tmp_path / "g").exists()


def test_bad_numbers_are_refused_before_the_work(root: Path) -> None:
    """With what came."""
    with pytest.raises(ValueError, match="max_clicks must be at least 1, got 0"):
        run_quality(evaluation(["default"], root), max_clicks=0)
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        run_quality(evaluation(["default"], root, workers=-1))


def test_the_folder_of_a_result_must_exist(root: Path) -> None:
    """Checked before hours of work."""
    with pytest.raises(ValueError, match=r"the folder of .*out.json must exist; make it first"):
        run_quality(evaluation(["default"], root), json=root / "nowhere" / "out.json")
    with pytest.raises(ValueError, match=r"the folder of .*nowhere.gallery must exist; make it first"):
        run_quality(evaluation(["default"], root), gallery=root / "nowhere" / "gallery")


def test_a_file_in_place_of_the_gallery_is_refused(root: Path) -> None:
    """What lies there is not touched."""
    (root / "g").write_text("mine")
    with pytest.raises(
        ValueError, match=r"the gallery is a folder of pictures, and .*g is a file; take another"
    ):
        run_quality(evaluation(["default"], root), gallery=root / "g")
    assert (root / "g").read_text() == "mine"


def test_a_gallery_of_nothing_is_refused(root: Path) -> None:
    """One object is the least."""
    with pytest.raises(ValueError, match="a gallery shows at least 1 worst object of each domain, got 0"):
        run_quality(evaluation(["default"], root), worst=0)
