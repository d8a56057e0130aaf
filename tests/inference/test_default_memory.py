"""The default model's memory of other planes, through `propagate` and the service."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.plane_memory import synthetic_object
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.requests import PlaneSource, PropagationRequest
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.inference.prediction import Prediction
from napari_lowlat_seg.inference.predictor import Predictor, load_predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.propagation.propagate import propagate
from napari_lowlat_seg.propagation.sweep import PropagatedMask
from napari_lowlat_seg.serving.service import PredictionService
from small_memory import SMALL, SureMemory, anchor, small_network, sure_propagation


@pytest.fixture(scope="module")
def default() -> Predictor:
    return load_predictor("default", "cpu")


# The branching body grows, splits and ends at several places; a ball only grows and ends.
@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("ball6", marks=pytest.mark.thorough), "branching:3"])
def test_bodies_are_propagated_to_their_true_ends(default: Predictor, name: str) -> None:
    """From one plane; only a tip of a few pixels may be left out, and the last planes say why they are."""
    volume, truth = synthetic_object(name)
    areas = truth.sum((1, 2))
    planes, start = volume.planes(0), int(areas.argmax())
    known = Prediction(
        truth[start].astype(np.float32), None, default.embed(volume.plane(planes[start])).frame
    )
    found = list(propagate(default, volume, {planes[start]: known}, planes))
    reached = {start} | {step.plane.position for step in found if step.note is None}
    assert reached >= set(np.flatnonzero(areas >= 12))
    assert reached <= set(np.flatnonzero(areas))
    masks = {step.plane.position: step.prediction.mask for step in found if step.note is None}
    shared = sum(int((mask & truth[place]).sum()) for place, mask in masks.items())
    claimed = sum(int(mask.sum()) for mask in masks.values())
    assert 2 * shared / (claimed + areas.sum() - areas[start]) > 0.93
    notes = {step.plane.position: step.note for step in found if step.note is not None}
    assert set(notes) == {min(reached), max(reached)}
    assert all("does not show it" in str(note) for note in notes.values())


def _with_memory() -> Predictor:
    """A predictor whose memory finds what was on the plane before."""
    network = small_network()
    return Predictor(network, Runtime(), "off", memory=lambda _: SureMemory(network, SMALL).eval())


@pytest.mark.slow
def test_one_object_is_propagated_by_the_memory_and_the_service_gives_the_same() -> None:
    """Through one door; several objects, and a given overlap, go without it."""
    predictor, made = _with_memory(), sure_propagation(small_network())
    volume: Volume = replace(made.volume, spacing=(3.0, 1.0, 1.0))  # type: ignore[type-var]
    planes, anchors = volume.planes(0), anchor(made, 4)
    expected = list(predictor.with_memory(volume, anchors, planes) or [])
    assert [step.plane.position for step in expected] == [3, 2, 1, 0, 5, 6, 7, 8]
    assert _same(propagate(predictor, volume, anchors, planes), expected)
    assert not _same(propagate(predictor, volume, anchors, planes, min_overlap=0.3), expected)
    assert Predictor(small_network(), Runtime()).with_memory(volume, anchors, planes) is None
    soft = {plane: SoftMask.from_mask(one.mask) for plane, one in anchors.items()}
    sources = [
        PlaneSource(plane, lambda plane=plane: volume.plane(plane), volume.window, thickness=3.0, plane=plane)
        for plane in planes
    ]
    request = PropagationRequest(tuple(planes), {7: soft})
    service = PredictionService(predictor, 2**24)
    assert _same((step for _, step in service.propagate(request, sources)), expected)


def _same(found: object, expected: list[PropagatedMask[Prediction]]) -> bool:
    """Whether both are the same planes with the same masks and about the same confidence."""
    steps = list(found)  # type: ignore[call-overload]
    return len(steps) == len(expected) and all(
        one.plane == other.plane
        and np.array_equal(one.prediction.mask, other.prediction.mask)
        and abs(one.confidence - other.confidence) < 0.01
        for one, other in zip(steps, expected)
    )


def test_the_distance_to_the_next_plane_is_in_world_units() -> None:
    """Of the last axis on which the plane has a position; 1 where nothing is known."""
    volume = Volume(np.zeros((3, 4, 5), np.uint8), (7.0, 2.0, 3.0))
    assert [volume.thickness(volume.planes(axis)[0]) for axis in range(3)] == [7.0, 2.0, 3.0]
    assert Volume(np.zeros((3, 4, 5), np.uint8)).thickness(volume.planes(0)[0]) == 1.0
    flat = Volume(np.zeros((4, 5), np.uint8), (2.0, 3.0))
    assert flat.thickness(flat.planes()[0]) == 1.0
