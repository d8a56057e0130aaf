"""The gallery: which objects are the worst, what their tiles show, which files are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes import FakePredictor
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.evaluation.analysis.gallery import (
    PREDICTED,
    TRUTH,
    WIDTH,
    draw_tile,
    draw_tiles,
    find_worst,
    save_gallery,
    score,
    worst_rows,
)
from napari_lowlat_seg.evaluation.analysis.pictures import CAPTION, GAP, NEGATIVE, POSITIVE
from napari_lowlat_seg.evaluation.inputs.datasets import Sample
from napari_lowlat_seg.evaluation.report import Curve

TEXT = 2 * CAPTION  # above the panels of a tile


def curve(name: str, ious: Sequence[float], model: str = "m", group: str = "em/a") -> Curve:
    return Curve(model, "fake", group, name, 0.01, tuple(ious))


def test_the_rank_is_the_mean_of_the_first_five() -> None:
    """Later ones do not count; of a shorter curve all do."""
    assert score(curve("1", [0, 0.25, 0.5, 0.75, 1, 9])) == 0.5
    assert score(curve("1", [0.25, 0.75])) == 0.5


def test_the_worst_are_found_by_model_and_domain() -> None:
    """The worst first, equals in the order of the data set, no more than wanted."""
    curves = [
        curve("1", [0.5]),
        curve("1", [0.1], model="n"),
        curve("2", [0.2], group="em/b"),
        curve("3", [0.5]),
        curve("4", [0.9]),
        curve("5", [0.7], group="med/c"),
    ]
    found = find_worst(curves, "folder", 3)
    assert {key: [one.object for one in part] for key, part in found.items()} == {
        ("m", "em"): ["2", "1", "3"],
        ("n", "em"): ["1"],
        ("m", "med"): ["5"],
    }
    assert list(find_worst(curves, "sstem", 9)) == [("m", "sstem"), ("n", "sstem")]


def test_rows_identify_the_object() -> None:
    """Its set, its name, its id, and IoUs as far as the curve goes."""
    found = find_worst([curve("em/a/x#7", [0.5, 0.6, 0.7, 0.8])], "folder", 24)
    assert worst_rows(found, {"em/a/x#7": 7}) == [
        {
            "model": "m",
            "domain": "em",
            "objects": [
                {
                    "set": "em/a",
                    "name": "em/a/x#7",
                    "object": 7,
                    "area": 0.01,
                    "score": pytest.approx(0.65),
                    "ious": {1: 0.5, 3: 0.7},
                }
            ],
        }
    ]


def one_by_one(masks: Sequence[np.ndarray]) -> FakePredictor:
    """A model that gives these masks, one after the other, then the last one again."""

    def rule(embedding: None, prompts: Sequence[Prompt], previous: Any) -> np.ndarray:
        assert len(prompts) == len(model.calls)
        return masks[min(len(prompts), len(masks)) - 1]

    model = FakePredictor(rule, "m", see=lambda image, window, spacing: None)
    return model


def blind(name: str) -> FakePredictor:
    """A model that sees nothing."""
    return FakePredictor(lambda image, prompts, previous: np.zeros(image.shape), name)


def test_tiles_are_drawn_for_the_models_that_are_worst_at_an_object() -> None:
    """Which embed its picture once; the others never see it."""
    picture, other = np.zeros((30, 30), np.uint8), np.zeros((40, 40), np.uint8)
    samples = [
        Sample(image, square(image.shape, 5, 5, 9).astype(np.int8), name, "em/a")
        for image, name in ((picture, "1"), (picture, "2"), (other, "3"))
    ]
    worst = {
        ("a", "em"): [curve("2", [0.0], "a"), curve("1", [0.5], "a")],
        ("b", "em"): [curve("2", [0.0], "b"), curve("3", [0.5], "b")],
    }
    models = [blind("a"), blind("b")]
    tiles = list(draw_tiles(models, samples, worst=worst, first="click"))
    assert [[key for key, _ in same] for same in tiles] == [
        [("a", "1")],
        [("a", "2"), ("b", "2")],
        [("b", "3")],
    ]
    assert [len(model.embedded) for model in models] == [1, 2]


def square(shape: tuple[int, int], row: int, col: int, side: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[row : row + side, col : col + side] = True
    return mask


def drawn(
    shape: tuple[int, int], truth: np.ndarray, masks: Sequence[np.ndarray], ious: Sequence[float] = (0.5,) * 9
) -> np.ndarray:
    """The panels of a tile side by side, without its heading, as pixels."""
    sample = Sample(np.full(shape, 90, np.uint8), truth.astype(np.int8), "x#1", "em/a")
    return np.asarray(draw_tile(one_by_one(masks), None, sample, curve("x#1", ious), 3, "click"))[TEXT:]


def seen(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (pixels == np.array(colour)).all(axis=2)


def test_a_tile_shows_the_first_and_the_fifth_mask() -> None:
    """The truth's outline and the answer's in both panels, with the clicks given until then."""
    shape = (200, 200)
    truth, half = square(shape, 60, 60, 80), square(shape, 60, 60, 40)
    pixels = drawn(shape, truth, [half, half, half, half, np.zeros(shape, bool)])
    first, last = pixels[:WIDTH, :WIDTH], pixels[:WIDTH, WIDTH + GAP :]
    assert pixels.shape[1] == 2 * WIDTH + GAP
    assert [bool(seen(panel, TRUTH).any()) for panel in (first, last)] == [True, True]
    assert [bool(seen(panel, PREDICTED).any()) for panel in (first, last)] == [True, False]
    # 128 pixels of the plane are 250 of the panel: the truth begins 24 pixels inside
    rows, cols = np.nonzero(seen(last, TRUTH))
    assert [rows.min(), rows.max(), cols.min(), cols.max()] == pytest.approx([47, 203, 47, 203], abs=2)
    assert seen(last, POSITIVE).sum() > 2 * seen(first, POSITIVE).sum() > 0


def test_a_tile_takes_as_many_predictions_as_it_shows() -> None:
    """Five times, less where the curve is shorter, or the annotator content."""
    shape = (100, 100)
    truth, none = square(shape, 20, 20, 40), np.zeros((100, 100), bool)
    for masks, ious, times in (
        ([none], (0.0,) * 20, 5),
        ([none], (0.0,) * 3, 3),
        ([none, truth], (0.0,) * 20, 2),
    ):
        model = one_by_one(masks)
        sample = Sample(np.zeros(shape, np.uint8), truth.astype(np.int8), "x#1", "em/a")
        draw_tile(model, None, sample, curve("x#1", ious), 1, "click")
        assert len(model.calls) == times


@pytest.mark.parametrize(
    ("shape", "row", "col", "side"),
    [((20, 30), 3, 3, 10), ((500, 90), 10, 0, 90), ((300, 300), 294, 294, 6), ((64, 64), 0, 0, 64)],
)
def test_all_tiles_are_of_one_size_and_show_the_whole_object(
    shape: tuple[int, int], row: int, col: int, side: int
) -> None:
    """Small planes, long planes, a spot in the corner, an object that fills its plane."""
    truth = square(shape, row, col, side)
    pixels = drawn(shape, truth, [np.zeros(shape, bool)])
    assert pixels.shape == (WIDTH + CAPTION, 2 * WIDTH + GAP, 3)
    outline = seen(pixels[:WIDTH, :WIDTH], TRUTH)
    assert outline.any() or side == 64  # without anything around it, there is no edge


def test_clicks_beyond_the_panel_are_counted() -> None:
    """A mask far away is clicked away where the panel does not reach; its caption is longer."""
    shape = (400, 400)
    truth, far = square(shape, 20, 20, 40), square(shape, 300, 300, 80)
    here = drawn(shape, truth, [truth | square(shape, 20, 62, 9)])
    away = drawn(shape, truth, [truth | far])
    panel = slice(WIDTH + GAP, None)
    assert seen(here[:WIDTH, panel], NEGATIVE).any()
    assert not seen(away[:WIDTH, panel], NEGATIVE).any()
    ends = [np.nonzero(tile[WIDTH:, panel].min(axis=(0, 2)) < 100)[0].max() for tile in (here, away)]
    assert ends[1] > ends[0] + 40


@pytest.fixture
def tile() -> Image.Image:
    return Image.new("RGB", (60, 40), "black")


def test_a_sheet_is_written_for_every_model_and_domain(tile: Image.Image, tmp_path: Path) -> None:
    """Under names that any file system takes; two that differ in signs only get a number."""
    tiles = {("a/b", "em"): [tile] * 5, ("a/b", "med"): [tile], ("a:b", "em"): [tile]}
    for _ in range(2):
        written = save_gallery(tiles, tmp_path / "g", "folder")
        assert [path.name for path in written] == ["a-b-em.png", "a-b-med.png", "a-b-em-3.png"]
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == sorted(path.name for path in written)
    with Image.open(written[0]) as picture:
        assert picture.height > 2 * 40
        assert (np.asarray(picture) == 0).all(axis=2).sum() >= 5 * 60 * 40
