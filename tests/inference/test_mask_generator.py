"""Automatic segmentation of a plane: each object once, uncertain ones left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fakes import FakePrediction, FakePredictor
from napari_lowlat_seg.core.masks import PostProcessing
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.inference import mask_generator as module
from napari_lowlat_seg.inference.mask_generator import (
    MaskGeneratorSettings,
    MaskProposal,
    click_grid,
    filter_masks,
    label_masks,
    label_plane,
    nms,
)


def as_certain_as_bright(image: np.ndarray, prompts: Sequence[Prompt], previous: object) -> np.ndarray:
    """All pixels as bright as the one clicked; the brightness is the probability."""
    here = image[tuple(round(v) for v in prompts[0].bounds()[:2])]
    return np.where(image == here, np.float32(here / 255), np.float32(0))


@pytest.fixture
def blocks() -> np.ndarray:
    """Two bright blocks of one brightness, a bright small one, and a dim one, on black."""
    image = np.zeros((60, 80), np.uint8)
    image[5:25, 5:25], image[30:55, 5:30] = 245, 240
    image[5:10, 50:55] = 250
    image[30:50, 50:70] = 140  # .55: gone at a threshold of .69
    return image


def test_each_certain_object_is_found_once(blocks: np.ndarray) -> None:
    """The dim one, the small one and the background are left out."""
    labels = label_plane(FakePredictor(as_certain_as_bright), blocks)
    expected = np.zeros_like(blocks, np.uint32)
    expected[5:25, 5:25], expected[30:55, 5:30] = 1, 2
    np.testing.assert_array_equal(labels, expected)


def test_masks_are_finished_before_they_are_compared(blocks: np.ndarray) -> None:
    """Blocks of 20 x 20 pixels, and of 25 x 25 shrink by two on each side; holes are filled."""
    blocks[12:15, 12:15] = 0
    finish = PostProcessing(fill_holes=True, grow=-2)
    labels = label_plane(
        FakePredictor(as_certain_as_bright), blocks, settings=MaskGeneratorSettings(finish=finish)
    )
    assert sorted(np.bincount(labels.ravel())[1:]) == [16 * 16, 21 * 21]


def test_a_threshold_decides_what_is_an_object(blocks: np.ndarray) -> None:
    """Nothing is more certain than .97."""
    settings = MaskGeneratorSettings(finish=PostProcessing(threshold=0.97))
    assert not label_plane(FakePredictor(as_certain_as_bright), blocks, settings=settings).any()


def test_settings_let_more_in(blocks: np.ndarray) -> None:
    """The dim one without asking for stability, the small one with a smaller least area."""
    assert (
        label_plane(
            FakePredictor(as_certain_as_bright), blocks, settings=MaskGeneratorSettings(stability=0)
        ).max()
        == 3
    )
    assert (
        len(
            np.unique(
                label_plane(
                    FakePredictor(as_certain_as_bright), blocks, settings=MaskGeneratorSettings(least_area=25)
                )
            )
        )
        == 1 + 3
    )
    assert (
        len(
            np.unique(
                label_plane(
                    FakePredictor(as_certain_as_bright), blocks, settings=MaskGeneratorSettings(most_area=0.1)
                )
            )
        )
        == 1 + 1
    )


def test_a_large_plane_is_seen_whole_and_in_tiles(
    blocks: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a tile's side cuts off is taken from where it is whole: the labels stay the same."""
    whole = label_plane(FakePredictor(as_certain_as_bright), blocks)
    monkeypatch.setattr(module, "TILE", 40)
    monkeypatch.setattr(module, "SHIFT", 20)
    predictor = FakePredictor(as_certain_as_bright)
    labels = label_plane(predictor, blocks)
    assert [image.shape for image in predictor.embedded] == [(60, 80)] + 6 * [(40, 40)]
    np.testing.assert_array_equal(labels > 0, whole > 0)
    assert len(np.unique(labels)) == 1 + 2


def test_colours_reach_the_network_unchanged() -> None:
    """A picture of three channels goes to the network unchanged."""
    everything = FakePredictor(lambda image, prompts, previous: np.ones((20, 30)))
    labels = label_plane(
        everything, np.zeros((20, 30, 3), np.uint8), settings=MaskGeneratorSettings(most_area=1)
    )
    assert {image.shape for image in everything.embedded} == {(20, 30, 3)}
    np.testing.assert_array_equal(labels, np.ones((20, 30), np.uint32))


def test_clicks_keep_their_distance_in_the_world() -> None:
    """Rows twice as far apart as columns are asked as often."""
    clicks = click_grid((10, 20), 4, spacing=(2.0, 1.0))
    assert sorted({click.at[0] for click in clicks}) == [0.75, 3.25, 5.75, 8.25]
    assert sorted({click.at[1] for click in clicks}) == [2.0, 7.0, 12.0, 17.0]
    assert len(click_grid((1, 1000), 5)) == 5


def test_a_mask_without_its_click_is_dropped() -> None:
    """Nor is the part counted that the click is not in."""
    probability = np.zeros((20, 20), np.float32)
    probability[:8, :8] = probability[12:, 12:] = 0.9
    soft, settings = FakePrediction(probability, quality=0.8), MaskGeneratorSettings()
    (found,) = filter_masks([Click((10, 10)), Click((3, 3))], [soft, soft], settings)
    assert (found.corner, found.mask.shape, found.area) == ((0, 0), (8, 8), 64)
    assert found.score == pytest.approx(0.8)


def test_the_better_of_two_similar_masks_is_kept() -> None:
    """By score, then by order; those that overlap little both stay."""
    square = np.ones((10, 10), bool)
    worse, better, same = (
        MaskProposal((0, 0), square, 0.5),
        MaskProposal((1, 1), square, 0.9),
        MaskProposal((1, 1), square, 0.9),
    )
    aside = MaskProposal((8, 8), square, 0.1)
    assert nms([worse, aside, better, same], 0.5) == [better, aside]
    assert worse.iou(better) == pytest.approx(81 / 119)
    assert worse.iou(MaskProposal((10, 0), square, 1.0)) == 0


def test_pixels_go_to_the_first_mask_and_remnants_are_dropped() -> None:
    """What keeps less than its share is left out, and leaves no gap in the numbers."""
    square = np.ones((10, 10), bool)
    found = [
        MaskProposal((0, 0), square, 0.9),
        MaskProposal((2, 0), square, 0.8),
        MaskProposal((5, 0), square, 0.7),
    ]
    labels, _ = label_masks(found, (20, 10), 0.5)
    assert labels[:, 0].tolist() == 10 * [1] + 5 * [2] + 5 * [0]


def test_impossible_settings_are_refused() -> None:
    """With the value that came."""
    with pytest.raises(ValueError, match=r"a grid needs 1 click or more along the longer side; got 0"):
        MaskGeneratorSettings(grid=0)
    with pytest.raises(ValueError, match=r"stability is an IoU from 0 to 1; got 1\.5"):
        MaskGeneratorSettings(stability=1.5)


def test_a_plane_beyond_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is embedded."""
    monkeypatch.setattr(module, "PIXELS", 100)
    with pytest.raises(ValueError, match=r"planes of up to 100 pixels; got 10 x 11"):
        label_plane(FakePredictor(as_certain_as_bright), np.zeros((10, 11), np.uint8))
