"""The robustness benchmark on fakes that draw disks, and from end to end on tiny networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes import FakePredictor
from napari_lowlat_seg.core.prompts import Prompt, Scribble
from napari_lowlat_seg.evaluation.analysis import robustness as robustness_module
from napari_lowlat_seg.evaluation.analysis.perturbations import PERTURBATIONS
from napari_lowlat_seg.evaluation.analysis.robustness import (
    ROWS,
    Measurements,
    Row,
    robustness,
    robustness_table,
    run_robustness,
    summarise_robustness,
)
from napari_lowlat_seg.evaluation.inputs.datasets import Sample
from napari_lowlat_seg.evaluation.runner import EvaluationSettings

Export = Callable[..., tuple[Path, Path]]


def evaluation(specs: Sequence[str], root: Path, **settings: Any) -> EvaluationSettings:
    """Settings for the folder of pictures."""
    return EvaluationSettings(tuple(specs), "folder", root, **settings)


SHAPE = (60, 90)


@cache
def disk(shape: tuple[int, int], at: tuple[float, float], radius: float) -> np.ndarray:
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((rows - at[0]) ** 2 + (cols - at[1]) ** 2 <= radius**2)


def disks(name: str = "disks", radius: float = 10, prompts_seen: int | None = None) -> FakePredictor:
    """A model that draws a disk around every positive point and cuts one out around every negative one."""

    def rule(image: np.ndarray, prompts: Sequence[Prompt], previous: Any) -> np.ndarray:
        assert (previous is None) == (len(prompts) == 1)
        mask = np.zeros(image.shape[:2], bool)
        for prompt in prompts[:prompts_seen]:
            points = prompt.points if len(prompt.points) == 1 else along(prompt.points)
            for at in points:
                mask[disk(mask.shape, at, radius)] = prompt.positive
        return mask

    return FakePredictor(rule, name)


class Spaced(FakePredictor):
    """A model that takes the size of a pixel."""

    def __init__(self) -> None:
        super().__init__(disks().rule, "spaced")
        self.spacings: list[tuple[float, float]] = []

    def embed_spaced(self, image: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
        self.spacings.append(spacing)
        return self.embed(image)


def stubborn() -> FakePredictor:
    """A model that answers with all that was not asked for."""
    rule = disks().rule
    return FakePredictor(lambda *asked: ~rule(*asked), "stubborn")


def along(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points a pixel apart on the way from the first to the last."""
    (r0, c0), (r1, c1) = points[0], points[-1]
    count = int(np.hypot(r1 - r0, c1 - c0)) + 2
    return list(zip(np.linspace(r0, r1, count).tolist(), np.linspace(c0, c1, count).tolist()))


def sample(truth: np.ndarray, image: np.ndarray, name: str = "em/a/x#1") -> Sample:
    return Sample(image, truth.astype(np.int8), name, name.rpartition("/")[0])


@pytest.fixture
def image() -> np.ndarray:
    return np.linspace(0, 255, SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype(np.uint8)


@pytest.fixture
def round_object(image: np.ndarray) -> Sample:
    """A disk of radius 10."""
    return sample(disk(SHAPE, (30, 40), 10), image)


@pytest.fixture
def thin_object(image: np.ndarray) -> Sample:
    """A bar of 3 x 61 pixels."""
    truth = np.zeros(SHAPE)
    truth[30:33, 10:71] = 1
    return sample(truth, image, "med/b/y#1")


def values(model: FakePredictor, one: Sample) -> dict[str, float]:
    [[measurements]] = robustness([model], [one])
    return measurements.values


def test_a_perfect_model_has_no_faults(round_object: Sample) -> None:
    """All on undisturbed rows: no correction is asked for, none falls, every answer obeys."""
    found = values(disks(), round_object)
    assert (found["clean 1"], found["clean 3"], found["before wrong"]) == (1, 1, 1)
    assert {name for name in found if name.startswith("thin")} == set()
    assert (found["corrections"], found["falls"], found["inside out"], found["disobeyed"]) == (0, 0, 0, 0)
    assert 0.4 < found["off-centre 1"] < 0.8


def test_a_wrong_click_is_repaired(round_object: Sample) -> None:
    """The wrong disk costs half of the IoU; the negative one in its middle takes it away."""
    model = disks()
    found = values(model, round_object)
    assert 0.4 < found["after wrong"] < 0.6
    assert found["repaired"] > 0.8
    assert [prompt.positive for prompt in model.calls[-1][1]] == [True, True, False]


def test_without_background_there_is_no_wrong_click(image: np.ndarray) -> None:
    """An object that fills the picture has no wrong click."""
    found = values(disks(radius=200), sample(np.ones(SHAPE), image))
    assert "after wrong" not in found
    assert found["clean 1"] == 1


def test_an_ignored_wrong_click_costs_nothing(round_object: Sample) -> None:
    """And calls for no repair when all is well."""
    found = values(disks(prompts_seen=1), round_object)
    assert [found[name] for name in ("before wrong", "after wrong", "repaired")] == [1, 1, 1]


def test_a_thin_object_gets_a_scribble(thin_object: Sample) -> None:
    """Its IoU stands beside that of a click."""
    model = disks(radius=2)
    found = values(model, thin_object)
    assert found["thin click"] == found["clean 1"]
    assert found["thin scribble"] > 5 * found["thin click"]
    assert any(isinstance(prompts[0], Scribble) for _, prompts, _ in model.calls)


def test_every_picture_is_embedded_once(round_object: Sample, thin_object: Sample) -> None:
    """Two objects of one picture: the plain one and each disturbed one."""
    model = disks()
    list(robustness([model], [round_object, thin_object]))
    assert len(model.embedded) == 1 + len(PERTURBATIONS)
    assert [picture.dtype.kind for picture in model.embedded].count("f") == 1


def test_the_pixel_size_is_passed_to_models_that_take_it(round_object: Sample) -> None:
    """Rows three times as thick as columns."""
    model = Spaced()
    found = values(model, round_object)
    assert model.spacings == [(1, 1)] * 5 + [(3, 1)]
    assert found["anisotropic 1"] < found["clean 1"]


def test_objects_lost_in_thick_rows_are_left_out(image: np.ndarray) -> None:
    """An object of one row that no middle of three rows shows; a picture of two rows."""
    truth = np.zeros(SHAPE)
    truth[30, 10:71] = 1
    assert "anisotropic 1" not in values(disks(radius=2), sample(truth, image))
    found = values(disks(radius=2), sample(truth[29:31], image[29:31]))
    assert "noise 1" in found
    assert "anisotropic 1" not in found


def test_a_mask_turned_inside_out_is_counted(round_object: Sample) -> None:
    """Against every click, and worse than its complement, in each of many answers."""
    found = values(stubborn(), round_object)
    assert found["inside out"] / found["answers"] > 0.5
    assert found["disobeyed"] / found["answers"] > 0.5


def test_models_stand_side_by_side(round_object: Sample) -> None:
    """In the order given, on the same clicks, each by its name."""
    [found] = robustness([disks("a"), disks("b")], [round_object])
    assert [(one.model, one.group, one.object) for one in found] == [
        ("a", "em/a", "em/a/x#1"),
        ("b", "em/a", "em/a/x#1"),
    ]
    assert found[0].values == found[1].values
    assert found[0].area == pytest.approx(317 / 5400)


def test_models_need_different_names(round_object: Sample) -> None:
    """As in every benchmark."""
    with pytest.raises(ValueError, match="different names, at least one; got a, a"):
        robustness([disks("a"), disks("a")], [round_object])


def test_a_row_is_a_mean_a_difference_or_a_share() -> None:
    """Objects without its value do not count; without any there is none."""
    some = [{"x": 0.5, "y": 0.25, "n": 4.0}, {"x": 1.0, "y": 1.0, "n": 1.0}, {"y": 1.0}]
    assert Row("", "x").of(some) == 0.75
    assert Row("", "x", less="y").of(some) == 0.125
    assert Row("", "x", per="n").of(some) == 0.3
    assert Row("", "z").of(some) is None
    assert Row("", "x", per="n").of([{"x": 0.0, "n": 0.0}]) is None
    assert [Row("", "x", less="y").signed, Row("", "x").signed] == [True, False]


def test_every_row_reads_a_value_that_is_measured(round_object: Sample, thin_object: Sample) -> None:
    """A wrong name would leave a row empty."""
    both = [values(disks(), one) for one in (round_object, thin_object)]
    assert [row.title for row in ROWS if row.of(both) is None] == []


def test_a_table_has_a_column_for_each_domain() -> None:
    """Fractions in percent, differences with a sign, a dash for nothing."""
    measurements = [
        Measurements("m", "fake", group, "o", 0.1, {"clean 1": clean, "noise 1": 0.5})
        for group, clean in (("em/a", 0.5), ("em/b", 0.7), ("med/c", 0.9))
    ]
    assert summarise_robustness(measurements, "davis")[0]["values"] == pytest.approx(
        {"davis": 0.7, "all": 0.7}
    )
    rows = summarise_robustness(measurements, "folder")
    assert rows[0]["values"] == pytest.approx({"em": 0.6, "med": 0.9, "all": 0.7})
    text = robustness_table({"dataset": "folder", "complete": False, "rows": rows})
    first, *lines = text.splitlines()
    assert first == (
        "folder, m (fake), in %; differences to clean in points (interrupted: part of the objects)"
    )
    cells = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in lines if "│" in line}
    assert [c.strip() for c in cells["clean, IoU after 1 click"]] == ["3", "60.0", "90.0", "70.0"]
    assert [c.strip() for c in cells["noise, after 1"]] == ["3", "-10.0", "-40.0", "-20.0"]
    assert [c.strip() for c in cells["thin objects, after 1 click"]] == ["0", "-", "-", "-"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two 64 x 64 pictures of different domains, one bright object each."""
    for group, top in (("em/a", 8), ("med/b", 24)):
        picture = np.full((64, 64), 30, np.uint8)
        picture[top : top + 16, 12:28] = 220
        for folder, pixels in (("images", picture), ("masks", (picture > 128).astype(np.uint8))):
            (tmp_path / folder / group).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / folder / group / "x.png")
    return tmp_path


@pytest.fixture
def specs(export_sam: Export) -> list[str]:
    """A model that sees what is bright, and one that sees the rest."""
    good, bad = export_sam(), export_sam((-1.0,))
    return [f"onnx-sam:{good[0]},{good[1]},good", f"onnx-sam:{bad[0]},{bad[1]},bad"]


@pytest.mark.slow
def test_a_run_shows_and_writes_its_results(root: Path, specs: list[str]) -> None:
    """A table a model, JSON with all objects; two processes find the same."""
    shown: list[str] = []
    file = root / "out.json"
    report = run_robustness(evaluation(specs, root), json=file, show=shown.append)
    written = json.loads(file.read_text())
    assert report["complete"]
    assert [(one["object"], one["model"]) for one in written["objects"]] == [
        (f"{group}/x#1", model) for group in ("em/a", "med/b") for model in ("good", "bad")
    ]
    assert written["objects"][0]["values"]["clean 1"] == 1
    assert written["objects"][0]["values"]["inverted 1"] < 0.5
    assert list(written["rows"][0]["values"]) == ["em", "med", "all"]
    assert shown[0].count("clean, IoU after 1 click") == 2
    assert run_robustness(evaluation(specs, root, workers=2), show=None)["objects"] == report["objects"]


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_done(
    root: Path, specs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the first object, or before it."""
    shown: list[str] = []
    for done in (1, 0):

        def interrupted(*args: Any, done: int = done) -> Any:
            yield from [found for found, _ in zip(robustness(*args), range(done))]
            raise KeyboardInterrupt

        monkeypatch.setattr(robustness_module, "robustness", interrupted)
        report = run_robustness(evaluation(specs, root), show=shown.append)
        assert (report["complete"], len(report["objects"])) == (False, 2 * done)
    assert "interrupted: part of the objects" in shown[0]
    assert shown[1] == "folder: interrupted before the first object was done"


def test_the_folder_of_a_result_must_exist(root: Path) -> None:
    """Checked before hours of work."""
    with pytest.raises(ValueError, match=r"the folder of .*out.json must exist; make it first"):
        run_robustness(evaluation(["default"], root), json=root / "nowhere" / "out.json")
