"""The main job on the shipped data, and the pictures it draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes import FakePredictor
from napari_lowlat_seg.cli.demo import MAX_PROMPTS, SCENES, dice, run_demo
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Prompt, Scribble
from napari_lowlat_seg.core.volume import to_uint8
from napari_lowlat_seg.evaluation.analysis.pictures import (
    CAPTION,
    GAP,
    NEGATIVE,
    POSITIVE,
    Panel,
    draw_panels,
)
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.io.samples import sample_path

EM, MRI = SCENES


def near_and_alike(image: np.ndarray, prompts: Sequence[Prompt], previous: object) -> np.ndarray:
    """What is about as bright as the first prompt's place, and near it."""
    row, col = (round(v) for v in prompts[0].bounds()[:2])
    near = np.zeros(image.shape, bool)
    near[max(row - 30, 0) : row + 30, max(col - 30, 0) : col + 30] = True
    return near & (np.abs(image.astype(int) - int(image[row, col])) < 40)


def predictor() -> FakePredictor:
    return FakePredictor(near_and_alike, see=lambda image, window, spacing: to_uint8(image, window))


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_lowlat_seg.inference.predictor.load_predictor", lambda *_, **__: predictor())


@pytest.mark.usefixtures("bright")
def test_a_scene_gives_labels_a_picture_and_numbers(tmp_path: Path) -> None:
    """Labels lie on the image; the numbers can be found again in the files."""
    shown: list[object] = []
    scene = replace(MRI, targets=(replace(MRI.targets[0], prompt=Click((61, 68))),))
    (row,) = run_demo(tmp_path / "new" / "folder", scenes=[scene], show=shown.append)
    out = tmp_path / "new" / "folder"
    labels = np.asarray(read_volume(out / "mri_labels.nii.gz").data)
    reference = np.asarray(read_volume(sample_path(MRI.reference)).data)
    assert read_volume(out / "mri_labels.nii.gz").header.get_sform().tolist() == (
        read_volume(sample_path(MRI.image)).header.get_sform().tolist()
    )
    assert row["volume_dice"] == dice(labels == 1, reference > 0)
    assert row["plane_dice"] == dice(labels[:, :, 90] == 1, reference[:, :, 90] > 0)
    assert row["planes"] == np.count_nonzero(labels.any(axis=(0, 1)))
    assert 1 <= row["prompts"] <= MAX_PROMPTS
    assert row["volume_dice"] > 0.3
    assert sorted(path.name for path in out.iterdir()) == ["demo-mri.png", "mri_labels.nii.gz"]
    assert "not by an expert" in str(shown[-1])


@pytest.mark.slow
def test_each_step_is_announced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where there is no terminal; how far it is, every so many seconds."""
    lines: list[str] = []

    def load(*_: Any, **__: Any) -> FakePredictor:
        assert lines == ["loading the model default"]
        return predictor()

    monkeypatch.setattr("napari_lowlat_seg.inference.predictor.load_predictor", load)
    monkeypatch.setattr("napari_lowlat_seg.cli.demo.EVERY", 0.0)
    run_demo(tmp_path, scenes=[replace(EM, targets=EM.targets[:1])], show=lambda _: None, report=lines.append)
    assert lines[1:3] == [
        "em: reading em_fly_medulla.tif, embedding plane 24",
        "em: neuron 479: prompts on plane 24",
    ]
    assert lines[-1] == f"em: writing labels and an image to {tmp_path}"
    assert any(line.startswith("em: neuron 479: 2 planes after ") for line in lines)
    assert sum(" planes in " in line for line in lines) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("bright")
def test_objects_of_one_scene_do_not_overlap(tmp_path: Path) -> None:
    """Each has a label of its own; the first keeps what two claim."""
    rows = run_demo(tmp_path, scenes=[replace(EM, targets=EM.targets[:2])], show=lambda _: None)
    labels = np.asarray(read_volume(tmp_path / "em_labels.tif").data)
    assert sorted(np.unique(labels)) == [0, 1, 2]
    assert [row["object"] for row in rows] == ["neuron 479", "neuron 290"]
    assert read_volume(tmp_path / "em_labels.tif").spacing == pytest.approx((0.01, 0.01, 0.01))


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_first_prompts_lie_in_their_objects(scene: Any) -> None:
    """The places written down are right: every point of them is part of the reference."""
    reference = read_volume(sample_path(scene.reference))
    plane = reference.plane(reference.plane_at([scene.position], scene.axis))
    for target in scene.targets:
        assert {int(plane[round(r), round(c)]) for r, c in target.prompt.points} <= set(target.labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scene", "names", "near"),
    [
        pytest.param(replace(EM, targets=EM.targets[:1]), ["demo-em.png", "em_labels.tif"], 6, id="em-near"),
        # The same steps on more planes; `models/test_compact.py` has the model on the MRI scan.
        pytest.param(
            replace(EM, targets=EM.targets[:1]),
            ["demo-em.png", "em_labels.tif"],
            None,
            marks=pytest.mark.thorough,
            id="em",
        ),
        pytest.param(MRI, ["demo-mri.png", "mri_labels.nii.gz"], None, marks=pytest.mark.thorough, id="mri"),
    ],
)
def test_the_default_model_does_the_main_job(
    tmp_path: Path, scene: Any, names: list[str], near: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a newcomer runs it, with one neuron of three: files, and objects much as the reference has.

    `near` leaves so many planes on either side of that of the prompts.
    """
    if near is not None:
        kept = slice(scene.position - near, scene.position + near + 1)

        def read_near(path: Path) -> Any:
            volume = read_volume(path)
            return replace(volume, data=np.asarray(volume.data)[kept])

        monkeypatch.setattr("napari_lowlat_seg.cli.demo.read_volume", read_near)
        scene = replace(scene, position=near)
    (row,) = run_demo(tmp_path, device="cpu", scenes=[scene], show=lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert near is None or row["planes"] == 2 * near + 1
    assert row["plane_dice"] >= 0.85, row
    assert row["volume_dice"] >= 0.7, row


def test_dice_of_nothing_is_one() -> None:
    """And 0 for disjoint masks, 2/3 for half found."""
    empty, full = np.zeros((2, 2), bool), np.ones((2, 2), bool)
    half = np.array([[True, True], [False, False]])
    assert (dice(empty, empty), dice(half, ~half), dice(half, full)) == (1.0, 0.0, 2 / 3)


def _is(image: Image.Image, x: int, y: int, colour: tuple[int, int, int]) -> bool:
    return image.getpixel((x, y)) == colour


@pytest.mark.parametrize(
    ("prompt", "at"),
    [
        (Click((10, 20), positive=False), (10, 20)),
        (Scribble(((10, 5), (10, 35)), positive=False), (10, 20)),
        (Box((10, 5), (25, 35), positive=False), (10, 20)),
        (Polygon(((10, 5), (10, 35), (25, 20)), positive=False), (10, 20)),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_prompts_are_drawn_where_they_are(prompt: Prompt, at: tuple[int, int], turned: bool) -> None:
    """In the colour of their sign, at the middle of the zoomed pixel."""
    image = draw_panels([Panel(np.zeros((30, 40), np.uint8), prompts=[prompt])], zoom=4, turned=turned)
    x, y = at if turned else at[::-1]
    assert _is(image, 4 * x + 2, 4 * y + 2, NEGATIVE)


def test_panels_stand_side_by_side() -> None:
    """With outlines, captions and colours; a mask prompt draws nothing."""
    mask = np.zeros((30, 40), bool)
    mask[10:20, 10:20] = True
    colour = (1, 2, 3)
    gray = Panel(np.full((30, 40), 90, np.uint8), [(mask, colour)], [Mask(mask), Click((5, 5))], "a plane")
    rgb = Panel(np.full((30, 40, 3), 200, np.uint8))
    image = draw_panels([gray, rgb], zoom=2)
    assert image.size == (2 * 80 + GAP, 60 + CAPTION)
    assert _is(image, 20, 30, colour)
    assert _is(image, 30, 30, (90, 90, 90))
    assert _is(image, 10, 10, POSITIVE)
    assert _is(image, 80 + GAP + 5, 5, (200, 200, 200))
    assert np.asarray(image)[61:, :80].min() < 100
