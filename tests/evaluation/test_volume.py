"""The volume benchmark: its annotator, its methods, and what it counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import FakePredictor, same_brightness
from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.evaluation.volume import (
    METHODS,
    Case,
    Interpolation,
    NearestCopy,
    Propagation,
    measure,
    run_volume,
)
from napari_lowlat_seg.inference.predictor import Embedding, Prediction
from napari_lowlat_seg.io.files import write_labels
from napari_lowlat_seg.propagation.propagate import propagate
from napari_lowlat_seg.propagation.sweep import PropagatedMask, RefusedPlane
from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache


def embedded(image: np.ndarray, window: Any, spacing: tuple[float, float]) -> Embedding:
    frame = Frame.whole(image.shape[:2], 16, spacing=spacing)  # type: ignore[arg-type]
    return Embedding((), frame, np.array(image, np.uint8), "fake")


def as_bright(embedding: Embedding, prompts: Sequence[Prompt], previous: Prediction | None) -> Prediction:
    """What is as bright as the place clicked last."""
    return Prediction(same_brightness(embedding.image, prompts[-1:]), None, embedding.frame)


@pytest.fixture
def case() -> Case:
    """A rod of 22 planes in 26, as wide on all of them, but on one of them it is much darker."""
    data = np.zeros((26, 20, 20), np.uint8)
    data[2:24, 5:12, 5:12] = 100
    truth = data == 100
    data[8, 5:12, 5:12] = 40
    volume = Volume(data, window=(0.0, 255.0))
    by_plane = {plane: truth[plane.key()] for plane in volume.planes()}
    return Case(FakePredictor(as_bright, see=embedded), volume, by_plane, EmbeddingCache())  # type: ignore[arg-type]


def test_actions_are_counted_until_the_object_is_right(case: Case) -> None:
    """Plane 8 is a wall from either side: the annotator corrects it, then its neighbour, and all is right."""
    row = measure(case, METHODS["propagate"])
    assert row["dice_one"] == pytest.approx(2 * 6 / (22 + 6))
    assert row["iou_one"] == pytest.approx(6 / 22)
    assert row["dice_c1"] == pytest.approx(2 * 7 / (22 + 7))
    assert row["dice_c3"] == row["dice_c5"] == 1
    assert (row["actions_90"], row["actions_95"]) == (3, 3)
    assert row["dice_ten"] == pytest.approx(2 * 21 / (22 + 21))
    assert row["actions_ten"] == 3


def test_every_method_reports_the_same_keys(case: Case) -> None:
    """Keys and ranges; the case's own answers are shared."""
    rows = {name: measure(case, make, 3) for name, make in METHODS.items()}
    keys = list(rows["propagate"])
    for row in rows.values():
        assert list(row) == keys
        assert all(0 <= value <= 1 for key, value in row.items() if key.startswith(("dice", "iou")))
    assert rows["interpolation"]["dice_one"] == pytest.approx(2 / 23)
    assert rows["nearest copy"]["dice_one"] == pytest.approx(2 * 22 / (22 + 26))


def test_a_correction_in_steps_equals_all_anew(case: Case) -> None:
    """Corrections continued by the benchmark equal those from a fresh start."""
    planes = case.planes
    anchors = {planes[12]: case.annotate(planes[12])[0]}
    method = Propagation()
    method.fill(case, anchors, None)
    anchors[planes[8]] = case.annotate(planes[8])[0]
    found = method.fill(case, anchors, planes[8])
    again = {
        s.plane: s.prediction.mask for s in propagate(case.predictor, case.volume, anchors, planes) if s.final
    }
    assert set(found) == set(again) | set(anchors)
    assert all(np.array_equal(found[plane], again[plane]) for plane in again)


def test_copying_and_interpolation_fill_their_planes(case: Case) -> None:
    """The mask of the nearest anchor; shapes between anchors."""
    planes = case.planes
    anchors = {planes[i]: case.annotate(planes[i])[0] for i in (3, 6)}
    small = np.zeros((20, 20), np.float32)
    small[7:10, 7:10] = 1
    anchors[planes[6]] = anchors[planes[6]].with_probability(small)
    copied = NearestCopy().fill(case, anchors, None)
    assert [int(copied[planes[i]].sum()) for i in (0, 4, 5, 20)] == [49, 49, 9, 9]
    shaped = Interpolation().fill(case, anchors, None)
    assert set(shaped) == set(planes[3:7])
    assert 9 <= shaped[planes[5]].sum() < shaped[planes[4]].sum() < 49


def test_a_plane_without_the_object_is_one_action(case: Case) -> None:
    """To say that it is absent."""
    answer, actions = case.annotate(case.planes[0])
    assert (int(answer.mask.sum()), actions) == (0, 1)


def test_the_flagging_method_names_its_least_certain_plane(case: Case) -> None:
    """The method that flags starts where it is least sure; the plain one leaves the choice to the truth."""
    anchors = {case.planes[12]: case.annotate(case.planes[12])[0]}
    flagged, plain = Propagation(flagged=True), Propagation()
    for method in (flagged, plain):
        method.fill(case, anchors, None)
    assert isinstance(flagged.least_certain(), Plane)
    assert plain.least_certain() is None


def test_a_plane_behind_an_end_is_named_until_it_is_annotated(case: Case) -> None:
    """A sweep that ended at a large mask is in more doubt than a mask that is nearly sure."""
    planes = case.planes
    mask = Prediction(np.full((20, 20), 0.9, np.float32), None, case.embed(planes[0]).frame)
    last = PropagatedMask(planes[11], mask, 0.9)
    refused = RefusedPlane(planes[10], 0.3, 400, "does not show it")
    steps = [last, replace(last, final=False, ends=1, reason="too dark", refused=(refused,))]

    class Ending(Propagation):
        def _steps(self, case, anchors, changed):
            return steps if changed is None else []

    method = Ending(flagged=True)
    anchors = {planes[12]: case.annotate(planes[12])[0]}
    assert planes[10] not in method.fill(case, anchors, None)
    assert method.least_certain() == planes[10]
    anchors[planes[10]] = case.annotate(planes[10])[0]
    method.fill(case, anchors, planes[10])
    assert method.least_certain() is None


@pytest.fixture
def files(tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setattr(
        "napari_lowlat_seg.evaluation.volume.load_predictor",
        lambda *_, **__: FakePredictor(as_bright, see=embedded),
    )
    image, labels = tmp_path / "image.tif", tmp_path / "labels.tif"
    write_labels(image, np.asarray(case.volume.data))
    write_labels(labels, (np.asarray(case.volume.data) > 0).astype(np.uint8) * 3)
    return image, labels


def test_a_report_is_shown_and_written(files: tuple[Path, Path], tmp_path: Path) -> None:
    """One row for each method and object, with where it was measured."""
    shown: list[str] = []
    out = tmp_path / "report.json"
    report = run_volume("x", *files, planes="1:20", json=out, corrections=1, show=shown.append)
    assert [row["method"] for row in report["rows"]] == list(METHODS)
    assert json.loads(out.read_text())["rows"] == report["rows"]
    assert "nearest copy" in shown[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objects": ["7"]}, r"such as 3, or several joined by \+; got '7'"),
        ({"objects": ["x"]}, r"got 'x'"),
        ({"planes": "4"}, r"A:B with 0 <= A <= B <= 25; got '4'"),
        ({"planes": "5:99"}, r"got '5:99'"),
        ({"planes": "a:b"}, r"got 'a:b'"),
    ],
)
def test_unknown_objects_and_planes_are_refused(
    files: tuple[Path, Path], arguments: dict[str, Any], message: str
) -> None:
    """Objects and planes."""
    with pytest.raises(ValueError, match=message):
        run_volume("x", *files, **arguments)


def test_an_image_and_labels_of_different_shapes_are_refused(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    """They would be compared voxel by voxel."""
    other = tmp_path / "other.tif"
    write_labels(other, np.ones((4, 20, 20), np.uint8))
    with pytest.raises(ValueError, match=r"of one shape; got \(26, 20, 20\) and \(4, 20, 20\)"):
        run_volume("x", files[0], other)
