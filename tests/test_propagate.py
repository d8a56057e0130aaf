"""Propagation, with a predictor that knows the truth: what it walks, where it stops, what it hands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from napari_lowlat_seg.predictor import Predictor
from napari_lowlat_seg.prompts import Click, Prompt
from napari_lowlat_seg.propagate import Engine, embed_plane, propagate, seed
from napari_lowlat_seg.volume import Plane, Volume


@dataclass(frozen=True, eq=False)
class Known:
    """An answer of the fake below."""

    mask: np.ndarray
    look: object = None


class Oracle:
    """Answers with the bright part of the image under the click, and remembers how it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[np.ndarray, Sequence[Prompt], Known | None]] = []

    def embed(self, image: np.ndarray, window: object, spacing: object) -> np.ndarray:
        return image

    def predict(self, embedding: np.ndarray, prompts: Sequence[Prompt], previous: Known | None) -> Known:
        self.asked.append((embedding, prompts, previous))
        (click,) = prompts
        assert isinstance(click, Click)
        row, col = (round(v) for v in click.at)
        return Known(
            embedding == embedding[row, col] if embedding[row, col] else np.zeros(embedding.shape, bool)
        )


@pytest.fixture
def ball() -> np.ndarray:
    """12 planes with a ball of radius 5 around plane 6, 100 on 0."""
    z, r, c = np.ogrid[:12, :24, :24]
    return np.where((z - 6) ** 2 + (r - 12) ** 2 + (c - 12) ** 2 <= 25, 100, 0).astype(np.uint8)


def _answers(volume: Volume, *positions: int) -> dict[Plane, Known]:
    planes = volume.planes()
    return {planes[i]: Known(volume.plane(planes[i]) > 0) for i in positions}


def test_an_object_is_carried_both_ways_until_it_ends(ball: np.ndarray) -> None:
    """Forwards, then backwards; the tips, where its area collapses, and what lies behind are left out."""
    volume = Volume(ball)
    found = list(propagate(Oracle(), volume, _answers(volume, 6), volume.planes(), least_overlap=0.2))
    assert [plane.position for plane, _ in found] == [7, 8, 9, 10, 5, 4, 3, 2]
    for plane, answer in found:
        np.testing.assert_array_equal(answer.mask, volume.plane(plane) > 0)


def test_the_range_is_not_left(ball: np.ndarray) -> None:
    """Only the planes given are answered."""
    volume = Volume(ball)
    found = propagate(Oracle(), volume, _answers(volume, 6), volume.planes()[5:9])
    assert [plane.position for plane, _ in found] == [7, 8, 5]


def test_planes_between_two_anchors_follow_the_nearer_one(ball: np.ndarray) -> None:
    """Each walk ends half-way; anchors are not repeated, none is answered twice."""
    volume = Volume(ball)
    found = list(propagate(Oracle(), volume, _answers(volume, 3, 8), volume.planes()[3:9]))
    assert [plane.position for plane, _ in found] == [4, 5, 7, 6]


def test_an_empty_anchor_is_a_wall(ball: np.ndarray) -> None:
    """ "It is not here" stops the walk from the other side, and starts none."""
    volume = Volume(ball)
    planes = volume.planes()
    anchors = _answers(volume, 6) | {planes[8]: Known(np.zeros((24, 24), bool))}
    found = propagate(Oracle(), volume, anchors, planes[6:])
    assert [plane.position for plane, _ in found] == [7]


def test_a_leak_into_the_background_stops_the_walk() -> None:
    """When the answer is suddenly the whole plane, it is no longer the object."""
    data = np.zeros((4, 20, 20), np.uint8)
    data[:, 5:12, 5:12] = 100
    data[2] = 100
    volume = Volume(data)
    assert [p.position for p, _ in propagate(Oracle(), volume, _answers(volume, 0), volume.planes())] == [1]


def test_an_object_of_another_brightness_is_another_object() -> None:
    """Where the object fades out, a mask without an edge to hold it would creep on."""
    data = np.zeros((6, 20, 20), np.uint8)
    for plane, brightness in enumerate((100, 104, 108, 112, 116, 120)):
        data[plane, 5:12, 5:12] = brightness
    volume = Volume(data)
    assert [p.position for p, _ in propagate(Oracle(), volume, _answers(volume, 0), volume.planes())] == [
        1,
        2,
    ]


def test_a_plane_of_nan_stops_the_walk() -> None:
    """There is nothing to see on it; what was found before is kept."""
    data = np.zeros((4, 20, 20), np.float32)
    data[:, 5:12, 5:12] = 100
    data[2] = np.nan
    volume = Volume(data, window=(0.0, 100.0))
    assert [p.position for p, _ in propagate(Oracle(), volume, _answers(volume, 0), volume.planes())] == [1]


def test_each_plane_gets_a_click_and_the_mask_of_the_plane_before(ball: np.ndarray) -> None:
    """But never the closer look, which shows another plane."""
    volume = Volume(ball)
    oracle = Oracle()
    plane = volume.planes()[6]
    anchor = replace(_answers(volume, 6)[plane], look="a crop of plane 6")
    next(propagate(oracle, volume, {plane: anchor}, volume.planes()))
    (_, prompts, previous) = oracle.asked[0]
    assert prompts == [Click((12, 12))]
    assert previous is not None
    assert previous.mask is anchor.mask
    assert previous.look is None


def test_work_is_done_plane_by_plane(ball: np.ndarray) -> None:
    """So a caller can show progress, and stop by closing the generator."""
    volume = Volume(ball)
    oracle = Oracle()
    walk = propagate(oracle, volume, _answers(volume, 6), volume.planes())
    assert len(oracle.asked) == 0
    next(walk)
    assert len(oracle.asked) == 1
    walk.close()  # type: ignore[attr-defined]
    assert len(oracle.asked) == 1


def test_any_axis_and_colour_images_work(ball: np.ndarray) -> None:
    """A plane is a plane; kept embeddings are asked for by plane."""
    volume = Volume(np.stack([ball] * 3, axis=-1), channel_axis=-1)
    planes = volume.planes(axis=2)
    asked: list[Plane] = []

    def embed(plane: Plane) -> np.ndarray:
        asked.append(plane)
        return volume.plane(plane)[..., 0]

    anchors = {planes[12]: Known(volume.plane(planes[12])[..., 0] > 0)}
    found = [plane for plane, _ in propagate(Oracle(), volume, anchors, planes[10:14], embed=embed)]
    assert found == asked == [planes[13], planes[11], planes[10]]


def test_the_seed_is_deep_inside_where_both_images_agree() -> None:
    """Half of the object has changed: the click goes to the other half."""
    mask = np.zeros((40, 60), bool)
    mask[10:30, 5:55] = True
    before = np.where(mask, 100, 0).astype(np.float32)
    here = before.copy()
    assert seed(mask, before, here)[0] in (19, 20)
    here[:, 30:] = 0
    row, col = seed(mask, before, here)
    assert mask[row, col]
    assert col < 28
    # Nothing agrees: depth alone decides.
    assert mask[seed(mask, before, before + 200)]


def test_the_seed_measures_depth_in_the_world() -> None:
    """Thick rows: a plate that is wide in pixels may be thin in the world."""
    mask = np.zeros((40, 40), bool)
    mask[5:11, 2:38] = True  # 6 rows of 10 units: depth 30
    mask[11:38, 10:14] = True  # 4 columns of 1 unit: depth 2
    flat = np.zeros((40, 40), np.float32)
    assert 5 <= seed(mask, flat, flat, (10.0, 1.0))[0] < 11


def test_anchors_must_be_in_the_range(ball: np.ndarray) -> None:
    """Told at once, before any plane is asked."""
    volume = Volume(ball)
    with pytest.raises(ValueError, match=r"range of 2 planes; got 0 of 1 inside"):
        propagate(Oracle(), volume, _answers(volume, 6), volume.planes()[:2])
    with pytest.raises(ValueError, match=r"at least one plane with an answer.*; got 0 of 0 inside"):
        propagate(Oracle(), volume, {}, volume.planes())


def test_the_real_predictor_is_such_an_engine() -> None:
    """The Protocol asks for what `Predictor` has."""
    assert all(hasattr(Predictor, name) for name in ("embed", "predict"))
    engine: type[Engine] = Predictor  # type: ignore[type-abstract]
    assert engine is Predictor


def test_planes_are_embedded_with_the_window_of_the_volume_and_their_spacing() -> None:
    """So that brightness means the same on every plane."""

    class Recorder(Oracle):
        def embed(self, image: np.ndarray, window: object, spacing: object) -> tuple:
            return image.shape, window, spacing

    volume = Volume(np.zeros((2, 3, 4)), spacing=(4, 2, 1), window=(0.0, 9.0))
    assert embed_plane(Recorder(), volume, Plane((None, 1, None))) == ((2, 4), (0.0, 9.0), (4.0, 1.0))
