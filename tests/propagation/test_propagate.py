"""Propagation of one object: which planes it reaches, where it stops, what each plane is predicted from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import edt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from fakes import FakePrediction, FakePredictor, same_brightness
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.propagation.neighbours import BLUR, click_position
from napari_lowlat_seg.propagation.propagate import most_doubtful, propagate
from napari_lowlat_seg.propagation.sweep import (
    MaskPredictor,
    PropagatedMask,
    RefusedPlane,
    affected,
    embed_plane,
)


@pytest.fixture
def ball() -> np.ndarray:
    """12 planes with a ball of radius 5 around plane 6, 100 on 0."""
    z, r, c = np.ogrid[:12, :24, :24]
    return np.where((z - 6) ** 2 + (r - 12) ** 2 + (c - 12) ** 2 <= 25, 100, 0).astype(np.uint8)


def _prediction(mask: np.ndarray) -> FakePrediction:
    return FakePrediction(mask.astype(np.float32))


def _anchors(volume: Volume, *positions: int) -> dict[Plane, FakePrediction]:
    planes = volume.planes()
    return {planes[i]: _prediction(volume.plane(planes[i]) > 0) for i in positions}


def test_an_object_is_propagated_both_ways_until_it_ends(ball: np.ndarray) -> None:
    """Backwards, then forwards; the tips, where its area collapses, and what lies behind are left out."""
    volume = Volume(ball)
    found = list(propagate(FakePredictor(), volume, _anchors(volume, 6), volume.planes(), min_overlap=0.2))
    assert _places(found) == [5, 4, 3, 2, 7, 8, 9, 10]
    for step in found:
        np.testing.assert_array_equal(step.prediction.mask, volume.plane(step.plane) > 0)


def test_the_range_is_not_left(ball: np.ndarray) -> None:
    """Only the planes given are predicted."""
    volume = Volume(ball)
    found = propagate(FakePredictor(), volume, _anchors(volume, 6), volume.planes()[5:9])
    assert _places(found) == [5, 7, 8]


def test_planes_between_two_anchors_are_averaged_from_both(ball: np.ndarray) -> None:
    """First as the earlier anchor sees them, then mixed, the nearer anchor weighing more."""
    volume = Volume(ball)
    planes = volume.planes()[4:9]
    low, high = np.zeros((24, 24), bool), np.zeros((24, 24), bool)
    low[8:16, 8:16] = high[8:16, 10:18] = True

    contradicting = FakePredictor(lambda image, prompts, previous: previous)
    anchors = {planes[0]: _prediction(low), planes[4]: _prediction(high)}
    found = list(propagate(contradicting, Volume(np.full_like(ball, 100)), anchors, planes))
    assert [(step.plane.position, step.final) for step in found] == [
        (5, False), (6, False), (7, False), (7, True), (6, True), (5, True),
    ]  # fmt: skip
    shares = [float(step.prediction.probability[12, 17]) for step in found]
    assert shares == pytest.approx([0, 0, 0, 0.9, 0.5, 0.1])
    assert [step.confidence for step in found[3:]] == pytest.approx(
        [np.mean([1] * 48 + [0.9] * 16) ** 2 * 0.6**0.25, np.mean([1] * 48 + [0.5] * 32) ** 2 * 0.6**0.25,
         np.mean([1] * 48 + [0.9] * 16) ** 2 * 0.6**0.25], rel=1e-5,
    )  # fmt: skip


def test_where_one_sweep_ends_the_other_one_counts_alone() -> None:
    """An object seen from one side only is not halved."""
    data = np.zeros((6, 20, 20), np.uint8)
    data[:, 5:12, 5:12] = 100
    data[4, 5:12, 5:12] = data[5, 5:12, 5:12] = 103
    volume = Volume(data)
    planes = volume.planes()

    def blind_at(*calls: int) -> FakePredictor:
        """It sees nothing at these of its calls."""
        count = itertools.count(1)

        def rule(image: np.ndarray, prompts: Sequence[Prompt], previous: object) -> np.ndarray:
            seen = same_brightness(image, prompts)
            return np.zeros_like(seen) if next(count) in calls else seen

        return FakePredictor(rule)

    # On plane 2, when it comes from plane 1.
    found = list(propagate(blind_at(2), volume, _anchors(volume, 0, 5), planes))
    assert _notes(found) == []  # nothing is amiss
    assert [(step.plane.position, step.final) for step in found] == [
        (1, False), (4, True), (3, True), (2, True), (1, True),
    ]  # fmt: skip
    assert all(np.array_equal(step.prediction.mask, data[0] > 0) for step in found)

    # And when it comes from plane 5.
    found = list(propagate(blind_at(2, 3), volume, _anchors(volume, 0, 5), planes))
    assert _notes(found) == [
        (1, "ends here: plane 2 shows nothing like it"),
        (5, "ends here: plane 4 shows nothing like it"),
    ]
    assert [step.ends for step in found if step.note is not None] == [1, -1]
    assert [(step.plane.position, step.final) for step in found if step.note is None] == [
        (1, False),
        (1, True),
    ]
    np.testing.assert_allclose(found[1].prediction.probability, found[0].prediction.probability, atol=1e-3)


def test_an_empty_anchor_stops_propagation_half_way(ball: np.ndarray) -> None:
    """It stops the sweep from the other side half-way, and starts none."""
    volume = Volume(ball)
    planes = volume.planes()
    anchors = _anchors(volume, 6) | {planes[8]: _prediction(np.zeros((24, 24), bool))}
    found = propagate(FakePredictor(), volume, anchors, planes[6:])
    assert _places(found) == [7]


def test_confidence_falls_with_the_distance(ball: np.ndarray) -> None:
    """By the fourth root of every overlap on the way, times the mean probability, squared."""
    volume = Volume(ball)
    found = list(propagate(FakePredictor(), volume, _anchors(volume, 6), volume.planes()[6:9]))
    areas = [np.count_nonzero(ball[i]) for i in (6, 7, 8)]
    expected = [0.9**2 * (areas[1] / areas[0]) ** 0.25, 0.9**2 * (areas[2] / areas[0]) ** 0.25]
    assert [step.confidence for step in found] == pytest.approx(expected)


def test_confidence_starts_from_the_predicted_iou(ball: np.ndarray) -> None:
    """Where the network predicts one; between two anchors the nearer one weighs more."""
    volume, planes = Volume(np.full_like(ball, 100)), Volume(ball).planes()[4:9]

    halving = FakePredictor(lambda image, prompts, previous: replace(previous, quality=previous.quality / 2))
    start = replace(_prediction(ball[6] > 0), quality=0.8)
    alone = propagate(halving, volume, {planes[0]: start}, planes[:3])
    assert [step.confidence for step in alone] == pytest.approx([0.4, 0.2])
    both = propagate(halving, volume, {planes[0]: start, planes[4]: start}, planes)
    mixed = [step.confidence for step in both if step.final]
    assert mixed == pytest.approx([0.9 * 0.4 + 0.1 * 0.1, 0.2, 0.9 * 0.4 + 0.1 * 0.1])


def test_the_most_doubtful_plane_has_the_most_pixels_that_are_likely_to_be_wrong() -> None:
    """Half-certain large masks before uncertain small ones; an empty one counts as a pixel."""
    planes = [Plane((z, None, None)) for z in range(3)]
    masks = [(planes[0], 0.9, 240), (planes[1], 0.1, 2), (planes[2], 0.0, 0)]
    assert most_doubtful(masks, []) == planes[0]
    assert most_doubtful(masks[1:], []) == planes[1]
    assert most_doubtful(masks[2:], []) == planes[2]
    assert most_doubtful([], []) is None


def test_a_plane_behind_an_end_is_doubtful_by_its_presence_and_the_last_mask() -> None:
    """By half of their product; the larger of two, and not where the other side found a mask."""
    planes = [Plane((z, None, None)) for z in range(4)]
    one = RefusedPlane(planes[3], 0.4, 50, "does not show it")  # 10 pixels
    again = replace(one, presence=0.6, pixels=40)  # 12
    sure = RefusedPlane(planes[1], 1.0, 900, "is darker")
    for pixels, refused, expected in (
        (44, [one], 0),
        (36, [one], 3),
        (44, [one, again], 3),
        (52, [again], 0),
    ):
        masks = [(planes[0], 0.75, pixels), (planes[1], 1.0, 0)]
        assert most_doubtful(masks, [*refused, sure]) == planes[expected]
    assert most_doubtful([], [one]) == planes[3]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_correction_changes_no_byte_beyond_the_neighbouring_anchors(data: st.DataObject) -> None:
    """Outside, all again gives the same bytes; inside, only what changed gives the same bytes."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    volume = Volume(rng.integers(90, 110, (14, 12, 12)).astype(np.uint8))
    planes = volume.planes()
    places = sorted(data.draw(st.sets(st.integers(0, 13), min_size=1, max_size=5)))
    anchors = {planes[i]: _prediction(_blob(rng)) for i in places}
    corrected = data.draw(st.integers(0, 13))
    gone = corrected in places and len(places) > 1 and data.draw(st.booleans())
    after = {plane: known for plane, known in anchors.items() if plane != planes[corrected]}
    if not gone:
        after[planes[corrected]] = _prediction(_blob(rng) & data.draw(st.booleans()))
    first = _final(propagate(FakePredictor(like_a_network), volume, anchors, planes))
    again = _final(propagate(FakePredictor(like_a_network), volume, after, planes))
    part = _final(
        propagate(FakePredictor(like_a_network), volume, after, planes, changed=[planes[corrected]])
    )
    may_change = set(affected(after, planes, [planes[corrected]])) | {planes[corrected]}
    for plane in planes:
        if plane not in may_change:
            assert first.get(plane) == again.get(plane)
            assert plane not in part
        elif plane not in after:
            assert part.get(plane) == again.get(plane)
    left = max((i for i in places if i < corrected), default=-1)
    right = min((i for i in places if i > corrected), default=14)
    assert {plane.position for plane in may_change} == set(range(left + 1, right))


def like_a_network(image: np.ndarray, prompts: Sequence[Prompt], previous: FakePrediction) -> np.ndarray:
    """Depends on image, click and previous mask, changes the mask a little, and decides."""
    noise = np.sin(image.astype(np.float32) * 12.9898 + sum(prompts[0].bounds())) * 0.4
    return previous.probability * 0.8 + noise * previous.probability


def _blob(rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(0, 6, 2)
    mask = np.zeros((12, 12), bool)
    mask[top : top + 6, left : left + 6] = True
    return mask


def _final(found: Iterator[PropagatedMask[FakePrediction]]) -> dict[Plane, tuple[bytes, float]]:
    return {s.plane: (s.prediction.probability.tobytes(), s.confidence) for s in found if s.final}


def _places(found: Iterable[PropagatedMask[FakePrediction]]) -> list[int]:
    return [step.plane.position for step in found if step.note is None]


def _notes(found: Iterable[PropagatedMask[FakePrediction]]) -> list[tuple[int, str]]:
    return [(step.plane.position, step.note) for step in found if step.note is not None]


def test_a_cancelled_propagation_ends_at_once(ball: np.ndarray) -> None:
    """Asked before and after each embedding: no prediction is made in vain."""
    volume = Volume(ball)
    predictor = FakePredictor()
    stop: list[bool] = []

    def embed(plane: Plane) -> np.ndarray:
        stop.extend([True] * (plane.position == 4))
        return volume.plane(plane)

    propagated = propagate(
        predictor, volume, _anchors(volume, 6), volume.planes(), embed=embed, cancelled=lambda: bool(stop)
    )
    assert _places(propagated) == [5]
    assert len(predictor.calls) == 1


def test_a_leak_into_the_background_stops_propagation() -> None:
    """When the mask is suddenly the whole plane, it is no longer the object."""
    data = np.zeros((4, 20, 20), np.uint8)
    data[:, 5:12, 5:12] = 100
    data[2:] = 100
    volume = Volume(data)
    found = list(propagate(FakePredictor(), volume, _anchors(volume, 0), volume.planes()))
    assert _places(found) == [1]
    assert _notes(found) == [(1, "ends here: its overlap with plane 2 would be 12%, less than 30%")]


@pytest.mark.parametrize(("background", "reached"), [(90, [1, 2]), (70, [1, 2, 3, 4, 5])])
def test_an_object_of_another_brightness_is_another_object(background: int, reached: list[int]) -> None:
    """Where the object fades out, a mask without an edge would creep on; contrast is such an edge."""
    data = np.full((7, 20, 20), background, np.uint8)
    for plane, brightness in enumerate((100, 102, 104, 107, 110, 113, 116)):
        data[plane, 5:12, 5:12] = brightness
    volume = Volume(data)
    anchor = {volume.planes()[0]: _prediction(data[0] == 100)}
    found = list(propagate(FakePredictor(), volume, anchor, volume.planes()))
    assert _places(found) == reached
    ((place, note),) = _notes(found)
    assert place == reached[-1]
    assert f"on plane {place + 1} it would be" in note
    assert "brighter than where it was prompted" in note


DAMAGE = {
    "no finite pixel": lambda plane: np.full_like(plane, np.nan),
    "is blank": np.zeros_like,
    "shifted or damaged": lambda plane: np.roll(plane, 14, axis=1),
}
"""What can happen to a plane, by a part of the note about it."""


@pytest.mark.parametrize(
    ("kind", "count"),
    [("no finite pixel", 1), ("no finite pixel", 3), ("is blank", 3), ("shifted or damaged", 1)],
)
def test_damaged_planes_are_stepped_over_and_named(kind: str, count: int) -> None:
    """The object goes on behind them; of shifted planes only one in a row can be told."""
    data = np.random.default_rng(1).integers(1, 9, (9, 40, 40)).astype(np.float32)
    data[:, 5:14, 5:14] = 100
    for plane in range(3, 3 + count):
        data[plane] = DAMAGE[kind](data[plane])
    volume = Volume(data, window=(0.0, 100.0))
    anchor = {volume.planes()[0]: _prediction(data[0] == 100)}
    found = list(propagate(FakePredictor(), volume, anchor, volume.planes()))
    assert _places(found) == [place for place in range(1, 9) if not 3 <= place < 3 + count]
    ((place, note),) = _notes(found)
    assert place == 2
    assert note.startswith("stepped over: plane 3 ")
    assert not any(step.ends for step in found)
    assert kind in note
    assert note.count("plane ") >= count


def test_a_run_ends_at_many_damaged_planes_and_names_them() -> None:
    """Nobody knows what lies behind them; the anchor itself says so if they begin beside it."""
    data = np.random.default_rng(1).integers(1, 9, (9, 40, 40)).astype(np.float32)
    data[:, 5:14, 5:14] = 100
    data[1:5] = np.nan
    volume = Volume(data, window=(0.0, 100.0))
    anchor = {volume.planes()[0]: _prediction(data[0] == 100)}
    found = list(propagate(FakePredictor(), volume, anchor, volume.planes()))
    assert _places(found) == []
    ((place, note),) = _notes(found)
    assert place == 0
    assert note.count("has no finite pixel") == 4
    assert not found[0].final
    found = list(propagate(FakePredictor(), volume, anchor, volume.planes()[:3]))  # the range ends there
    assert _notes(found) == [(0, "ends here: plane 1 has no finite pixel; plane 2 has no finite pixel")]


def test_each_plane_gets_a_click_and_the_mask_of_the_plane_before(ball: np.ndarray) -> None:
    """But never the closer look, which shows another plane."""
    volume = Volume(ball)
    predictor = FakePredictor()
    plane = volume.planes()[6]
    anchor = replace(_anchors(volume, 6)[plane], look="a crop of plane 6")
    next(propagate(predictor, volume, {plane: anchor}, volume.planes()))
    (_, prompts, previous) = predictor.calls[0]
    assert prompts == [Click((12, 12))]
    assert previous is not None
    assert previous.probability is anchor.probability
    assert previous.look is None


def test_work_is_done_plane_by_plane(ball: np.ndarray) -> None:
    """So a caller can show progress, and stop by closing the generator."""
    volume = Volume(ball)
    predictor = FakePredictor()
    propagated = propagate(predictor, volume, _anchors(volume, 6), volume.planes())
    assert len(predictor.calls) == 0
    next(propagated)
    assert len(predictor.calls) == 1
    propagated.close()  # type: ignore[attr-defined]
    assert len(predictor.calls) == 1


def test_any_axis_and_colour_images_work(ball: np.ndarray) -> None:
    """A plane is a plane; kept embeddings are asked for by plane."""
    volume = Volume(np.stack([ball] * 3, axis=-1), channel_axis=-1)
    planes = volume.planes(axis=2)
    asked: list[Plane] = []

    def embed(plane: Plane) -> np.ndarray:
        asked.append(plane)
        return volume.plane(plane)[..., 0]

    anchors = {planes[12]: _prediction(volume.plane(planes[12])[..., 0] > 0)}
    found = [step.plane for step in propagate(FakePredictor(), volume, anchors, planes[10:14], embed=embed)]
    assert found == asked == [planes[11], planes[10], planes[13]]


def test_the_click_is_deep_inside_where_both_images_agree() -> None:
    """Half of the object has changed: the click goes to the other half."""
    mask = np.zeros((40, 60), bool)
    mask[10:30, 5:55] = True
    before = np.where(mask, 100, 0).astype(np.float32)
    here = before.copy()
    assert click_position(mask, before, here)[0] in (19, 20)
    here[:, 30:] = 0
    row, col = click_position(mask, before, here)
    assert mask[row, col]
    assert col < 28
    # Nothing agrees: depth alone decides.
    assert mask[click_position(mask, before, before + 200)]


def test_the_depth_of_a_click_is_in_world_units() -> None:
    """Thick rows: a plate that is wide in pixels may be thin in the world."""
    mask = np.zeros((40, 40), bool)
    mask[5:11, 2:38] = True  # 6 rows of 10 units: depth 30
    mask[11:38, 10:14] = True  # 4 columns of 1 unit: depth 2
    flat = np.zeros((40, 40), np.float32)
    assert 5 <= click_position(mask, flat, flat, (10.0, 1.0))[0] < 11


@pytest.mark.parametrize("seed", range(6))
def test_a_click_is_found_as_on_the_whole_plane(seed: int) -> None:
    """Only a box around the mask is blurred and measured."""
    rng = np.random.default_rng(seed)
    before, here = rng.uniform(0, 255, (2, 60, 70)).astype(np.float32)
    mask = np.zeros((60, 70), bool)
    top, left = rng.integers(0, (50, 60))
    mask[top : top + rng.integers(1, 25), left : left + rng.integers(1, 25)] = True
    depth = edt.edt(mask, anisotropy=(2.0, 1.0), black_border=True)
    first, second = gaussian_filter(before, BLUR), gaussian_filter(here, BLUR)
    score = depth * np.exp(-(((second - first) / (first[mask].std() + 1)) ** 2))
    expected = np.unravel_index(np.argmax(score), mask.shape)
    assert click_position(mask, before, here, (2.0, 1.0)) == tuple(expected)


def test_anchors_must_be_in_the_range(ball: np.ndarray) -> None:
    """The error is raised when called, before any plane is predicted."""
    volume = Volume(ball)
    with pytest.raises(ValueError, match=r"range of 2 planes; got 0 of 1 inside"):
        propagate(FakePredictor(), volume, _anchors(volume, 6), volume.planes()[:2])
    with pytest.raises(ValueError, match=r"at least one plane with a mask.*; got 0 of 0 inside"):
        propagate(FakePredictor(), volume, {}, volume.planes())


def test_the_predictor_has_the_methods_of_the_protocol() -> None:
    """The Protocol asks for what `Predictor` has."""
    assert all(hasattr(Predictor, name) for name in ("embed", "predict"))
    protocol: type[MaskPredictor] = Predictor  # type: ignore[type-abstract]
    assert protocol is Predictor


def test_planes_are_embedded_with_the_window_of_the_volume_and_their_spacing() -> None:
    """So that brightness means the same on every plane."""
    recorder = FakePredictor(see=lambda image, window, spacing: (image.shape, window, spacing))
    volume = Volume(np.zeros((2, 3, 4)), spacing=(4, 2, 1), window=(0.0, 9.0))
    assert embed_plane(recorder, volume, Plane((None, 1, None))) == ((2, 4), (0.0, 9.0), (4.0, 1.0))
