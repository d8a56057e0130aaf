"""An object is propagated by a memory: to both ends, until it is gone, between anchors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.inference.memory.propagation import MemoryPropagation
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.models.compact import Compact
from small_memory import anchor, small_network, sure_propagation


@pytest.fixture(scope="module")
def network() -> Compact:
    return small_network()


@pytest.fixture
def propagation(network: Compact) -> MemoryPropagation:
    return sure_propagation(network)


@pytest.mark.slow
def test_an_object_is_propagated_to_both_ends_of_the_range(propagation):
    planes = propagation.volume.planes(0)
    steps = list(propagation.propagate(anchor(propagation, 4), planes))
    assert [step.plane.position for step in steps] == [5, 6, 7, 8, 3, 2, 1, 0] or [
        step.plane.position for step in steps
    ] == [3, 2, 1, 0, 5, 6, 7, 8]
    assert all(
        step.prediction.mask[25:30, 25:35].all() and not step.prediction.mask[50:].any() for step in steps
    )
    assert all(0 <= step.confidence <= 1 for step in steps)


@pytest.mark.slow
def test_a_sweep_ends_where_the_memory_sees_no_object(propagation):
    propagation.memory.left = 3
    steps = list(propagation.propagate(anchor(propagation, 0), propagation.volume.planes(0)))
    assert [step.plane.position for step in steps] == [1, 2, 3, 3]
    absent = "does not show it: the probability is 0%"
    assert steps[-1].note == f"ends here: plane 4 {absent}; plane 5 {absent}"
    assert [step.ends for step in steps] == [0, 0, 0, 1]
    assert not steps[-1].final
    assert [(one.plane.position, one.reason) for one in steps[-1].refused] == [(4, absent), (5, absent)]
    last = int(np.count_nonzero(steps[-1].prediction.mask))
    assert all(one.presence < 0.01 and one.pixels == last for one in steps[-1].refused)
    assert not any(step.refused for step in steps[:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quality", "offset", "reason"),
    [
        (0.2, 0, "its mask would have an IoU of about 0.20"),
        (
            0.8,
            120,
            "it would be 1[0-9]{2} gray levels brighter than where it was prompted, [0-9]+ are allowed",
        ),
    ],
)
def test_a_sweep_ends_where_a_sure_memory_is_contradicted(propagation, quality, offset, reason):
    """By its own predicted IoU, or by the brightness; not between two anchors that show the object."""
    data = np.asarray(propagation.volume.data) // 4 + 40
    data[5:] += offset
    propagation = replace(propagation, volume=Volume(data.astype(np.uint8)).with_window())
    planes, anchors = propagation.volume.planes(0)[4:], anchor(propagation, 4)
    propagation.memory.quality = quality
    (only,) = propagation.propagate(anchors, planes)
    assert only.plane == planes[0]
    assert re.search(f"plane 5 does not show it: {reason}; plane 6", str(only.note))
    between = list(propagation.propagate(anchors | anchor(propagation, 8), planes))
    assert {step.plane.position for step in between if step.final} >= {5, 6, 7}


@pytest.mark.slow
def test_planes_between_two_anchors_are_predicted_twice_and_others_stay(propagation):
    planes = propagation.volume.planes(0)
    anchors = anchor(propagation, 2) | anchor(propagation, 6)
    steps = list(propagation.propagate(anchors, planes, changed=[planes[6]]))
    final = [step.plane.position for step in steps if step.final]
    assert sorted(final) == [3, 4, 5, 7, 8]
    assert sorted(step.plane.position for step in steps if not step.final) == [3, 4, 5]


@pytest.mark.slow
def test_planes_without_a_finite_pixel_are_stepped_over(propagation):
    data = propagation.volume.data.astype(np.float32)
    data[3] = np.nan
    propagation = replace(propagation, volume=Volume(data).with_window())
    steps = list(propagation.propagate(anchor(propagation, 1), propagation.volume.planes(0)))
    assert sorted(step.plane.position for step in steps if step.note is None) == [0, 2, 4, 5, 6, 7, 8]
    ((place, note),) = [(step.plane.position, step.note) for step in steps if step.note is not None]
    assert (place, note) == (2, "stepped over: plane 3 has no finite pixel")
    assert not any(step.ends for step in steps)


@pytest.mark.slow
def test_nothing_is_propagated_from_an_empty_anchor_or_when_cancelled(propagation):
    planes = propagation.volume.planes(0)
    assert list(propagation.propagate(anchor(propagation, 4, (0, 0, 0, 0)), planes)) == []
    assert list(propagation.propagate(anchor(propagation, 4), planes, cancelled=lambda: True)) == []
    with pytest.raises(ValueError, match="at least one plane"):
        list(propagation.propagate({}, planes))


@pytest.mark.slow
def test_embeddings_of_a_sweep_are_bounded(propagation, monkeypatch):
    monkeypatch.setattr("napari_lowlat_seg.inference.memory.embeddings.MAX_EMBEDDINGS", 4)
    list(propagation.propagate(anchor(propagation, 4), propagation.volume.planes(0)))
    assert len(propagation._embeddings) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["embed", "predict", "remember", "forward", "beside"])
def test_a_sweep_goes_on_with_the_processor(propagation, monkeypatch, lacking):
    """From the plane at which a GPU's memory runs out, or when the predictor has left it for other work."""
    planes = propagation.volume.planes(0)
    expected = [step.prediction.probability for step in propagation.propagate(anchor(propagation, 4), planes)]
    device = Predictor(propagation.predictor.network, Runtime("cpu:0"), "off")
    memory = propagation.memory
    full = MemoryPropagation(device, memory, propagation.volume)
    monkeypatch.setattr(Runtime, "find", lambda device: Runtime(device))
    anchors, moved, calls = anchor(full, 4), [], []
    owner = device.backend if lacking in ("embed", "predict") else memory
    true = getattr(owner, lacking, None)

    def runs_out(*arguments):  # type: ignore[no-untyped-def]
        calls.append(arguments)
        if len(calls) == 3:
            raise torch.cuda.OutOfMemoryError("full")
        return true(*arguments)

    if lacking != "beside":
        monkeypatch.setattr(owner, lacking, runs_out)
    monkeypatch.setattr(memory, "to", lambda device: moved.append(device))

    def steps() -> Iterator[np.ndarray]:
        for number, step in enumerate(full.propagate(anchors, planes)):
            yield step.prediction.probability
            if lacking == "beside" and number == 1:
                device._leave_device()

    with pytest.warns(UserWarning, match="cpu:0 is out of memory"):
        found = list(steps())
    np.testing.assert_array_equal(found, expected)
    assert moved == ["cpu"]
