"""Many objects at once: the result of each alone, and each plane embedded once per passage."""

from __future__ import annotations

import numpy as np
import pytest

from fakes import FakePrediction, FakePredictor
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.propagation.propagate import propagate, propagate_many
from napari_lowlat_seg.propagation.seeds import object_anchors


@pytest.fixture
def rods() -> Volume:
    """Three rods of their own brightness along axis 0, the last only on planes 5 to 9."""
    data = np.zeros((12, 30, 30), np.uint8)
    data[:, 2:8, 2:8] = 80
    data[:, 12:18, 12:18] = 120
    data[5:10, 22:28, 22:28] = 160
    return Volume(data)


POINTS = {1: [(2, 4, 4.4)], 2: [(6, 14, 15)], 3: [(6.4, 25, 24)]}


def test_every_point_becomes_an_object(rods: Volume) -> None:
    """Numbered from 1 in the order of the points, on the plane each lies in, embedded once."""
    predictor = FakePredictor()
    anchors = object_anchors(predictor, rods, POINTS)
    assert {number: [p.position for p in found] for number, found in anchors.items()} == {
        1: [2],
        2: [6],
        3: [6],
    }
    assert len(predictor.embedded) == 2
    for number, [(z, row, col)] in POINTS.items():
        ((plane, prediction),) = anchors[number].items()
        expected = rods.plane(plane) == rods.data[round(z), round(row), round(col)]
        np.testing.assert_array_equal(prediction.mask, expected)


def test_points_find_their_plane_along_any_axis(rods: Volume) -> None:
    """Row and column are the axes left over, in order."""
    (anchors,) = object_anchors(FakePredictor(), rods, {1: [(2, 4, 3)]}, axis=1).values()
    ((plane, prediction),) = anchors.items()
    assert plane == Plane((None, 4, None))
    np.testing.assert_array_equal(prediction.mask, rods.plane(plane) == 80)


def test_many_objects_are_propagated_as_each_alone(rods: Volume) -> None:
    """Same planes, same bytes, same confidence, but far fewer embeddings."""
    planes = rods.planes()
    predictor = FakePredictor()
    anchors = object_anchors(predictor, rods, POINTS)
    anchors[1][planes[9]] = FakePrediction((rods.plane(planes[9]) == 80).astype(np.float32))
    predictor.embedded.clear()
    together: dict[int, list[tuple[Plane, bytes, float, bool]]] = {number: [] for number in anchors}
    for number, step in propagate_many(predictor, rods, anchors, planes):
        together[number].append(
            (step.plane, step.prediction.probability.tobytes(), step.confidence, step.final)
        )
    assert len(predictor.embedded) <= 3 * len(planes)
    predictor.embedded.clear()
    for number, found in anchors.items():
        alone = [
            (step.plane, step.prediction.probability.tobytes(), step.confidence, step.final)
            for step in propagate(predictor, rods, found, planes)
        ]
        assert together[number] == alone
        assert alone
    assert {plane.position for plane, *_ in together[3]} == {5, 7, 8, 9}


def test_propagation_of_many_can_be_cancelled(rods: Volume) -> None:
    """What was found before stays."""
    anchors = object_anchors(FakePredictor(), rods, POINTS)
    found: list[int] = []
    propagated = propagate_many(
        FakePredictor(), rods, anchors, rods.planes(), cancelled=lambda: len(found) >= 3
    )
    for number, _ in propagated:
        found.append(number)
    assert len(found) == 3


@pytest.mark.parametrize("point", [(12, 4, 4), (2, 4), (2, -1, 4)])
def test_a_seed_outside_the_volume_is_refused(rods: Volume, point: tuple[float, ...]) -> None:
    """So is one with too few coordinates."""
    with pytest.raises(ValueError, match=r"needs 3 coordinates inside a volume of \(12, 30, 30\); got \("):
        object_anchors(FakePredictor(), rods, {1: [point]})
