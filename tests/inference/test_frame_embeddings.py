"""Embeddings begun ahead: the same to the byte, dropped when the frame moves or the sweep ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.inference.memory.embeddings import FrameEmbeddings
from napari_lowlat_seg.inference.memory.propagation import MemoryPropagation
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.processors import STREAMS
from napari_lowlat_seg.inference.runtime import Runtime, has_openvino
from small_memory import SMALL, SureMemory, anchor, small_network, sure_propagation

needs_openvino = pytest.mark.skipif(not has_openvino(), reason="needs the extra openvino")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    """One with two threads, whatever the tests' own processes have, so that it embeds ahead."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWLAT_SEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        torch.set_num_threads(2)
        yield Predictor(small_network(), Runtime("cpu", "fp32", openvino=True), "off")
    torch.set_num_threads(before)


@pytest.fixture
def volume() -> Volume:
    image = np.random.default_rng(0).integers(0, 255, (9, 60, 70)).astype(np.uint8)
    return Volume(image).with_window()


def _frames(predictor: Predictor) -> tuple[Frame, Frame]:
    whole = Frame.whole((60, 70), predictor.size, "letterbox")
    return whole, whole.around((10, 10, 30, 30), 0.3, 20)


class _Unreadable:
    """A volume whose last planes are gone."""

    def __init__(self, volume: Volume, left: int) -> None:
        self._volume, self._left, self.window = volume, left, volume.window

    def plane(self, plane: Plane) -> np.ndarray:
        if plane.position >= self._left:
            raise OSError(f"plane {plane.position} cannot be read")
        return self._volume.plane(plane)

    def plane_spacing(self, plane: Plane) -> tuple[float, float]:
        return self._volume.plane_spacing(plane)

    def thickness(self, plane: Plane) -> float:
        return self._volume.thickness(plane)


@needs_openvino
@pytest.mark.slow
def test_begun_embeddings_are_those_that_are_made_when_asked_for(
    predictor: Predictor, volume: Volume
) -> None:
    """Also of a frame that moved in between, and after a rest."""
    planes, (whole, closer) = volume.planes(0), _frames(predictor)
    found = FrameEmbeddings(predictor, volume)
    for frame, first in ((whole, 0), (closer, 2), (whole, 3)):
        found.begin(planes[first : first + 3], frame)
        for plane in planes[first : first + 2]:
            expected = predictor.backend.embed(volume.plane(plane), frame)
            assert all(torch.equal(a, b) for a, b in zip(found.of(plane, frame), expected, strict=True))
    assert len(found._begun) == 1
    found.drop()
    assert not found._begun
    found.begin(planes[7:], whole)
    expected = predictor.backend.embed(volume.plane(planes[8]), whole)
    assert torch.equal(found.of(planes[8], whole)[0], expected[0])
    found.drop()


@needs_openvino
@pytest.mark.slow
def test_images_that_are_begun_together_are_those_embedded_alone(
    predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the image's own spacing and window; also where nothing can be begun."""
    images, how = list(volume.data[:3]), ((20, 200), (2.0, 1.0))
    images[1] = images[1][..., None].repeat(3, 2)
    expected = [predictor.embed(image, *how) for image in images]
    for _ in range(2):
        found = [begun() for begun in [predictor.begin(image, *how) for image in images]]
        for one, other in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.features, other.features, strict=True))
            assert (one.frame, one.model) == (other.frame, other.model)
            assert (one.image == other.image).all()
            assert not any(np.may_share_memory(one.image, image) for image in images)
        monkeypatch.setattr(predictor.backend, "ahead", None)
    with pytest.raises(ValueError, match=r"expected an image of shape \(H, W\)"):
        predictor.begin(np.zeros(3))


@needs_openvino
@pytest.mark.slow
def test_a_propagation_gives_the_same_with_and_without(
    predictor: Predictor, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks, confidences and order."""
    anchors = anchor(sure_propagation(predictor.network), 2) | anchor(
        sure_propagation(predictor.network), 6, (10, 30, 40, 66)
    )

    def steps() -> list[tuple[Plane, float, bytes, bool]]:
        memory = SureMemory(predictor.network, SMALL).eval()
        made = MemoryPropagation(predictor, memory, volume).propagate(anchors, volume.planes(0))
        return [(one.plane, one.confidence, one.prediction.probability.tobytes(), one.final) for one in made]

    assert predictor.backend.ahead is not None
    ahead = steps()
    monkeypatch.setattr(predictor.backend, "ahead", None)
    assert len(ahead) > 8
    assert steps() == ahead


@needs_openvino
@pytest.mark.slow
def test_what_is_under_way_stops_with_the_propagation(predictor: Predictor, volume: Volume) -> None:
    """The next one has all of the encoder."""
    memory = SureMemory(predictor.network, SMALL).eval()
    propagation = MemoryPropagation(predictor, memory, volume)
    steps = propagation.propagate(anchor(propagation, 0), volume.planes(0))
    next(steps)
    assert propagation._embeddings._begun
    del steps
    assert not propagation._embeddings._begun


@needs_openvino
@pytest.mark.slow
def test_two_propagations_at_once_share_the_encoder(predictor: Predictor, volume: Volume) -> None:
    """The one that ends first does not take it from the other."""
    anchors = anchor(sure_propagation(predictor.network), 0)
    memory = SureMemory(predictor.network, SMALL).eval()
    alone, other, third = (
        MemoryPropagation(predictor, memory, volume).propagate(anchors, volume.planes(0)) for _ in range(3)
    )
    expected = [step.prediction.probability for step in alone]
    found = [next(other).prediction.probability]
    next(third)
    del third
    found += [step.prediction.probability for step in other]
    np.testing.assert_array_equal(found, expected)


class _Stop(Exception):
    pass


@needs_openvino
@pytest.mark.slow
def test_an_interrupted_propagation_leaves_nothing_under_way(predictor: Predictor, volume: Volume) -> None:
    """The check of `interrupt_by` raises while the sweep waits."""
    memory = SureMemory(predictor.network, SMALL).eval()
    propagation = MemoryPropagation(predictor, memory, volume)
    anchors = anchor(propagation, 0)

    def stop() -> None:
        if len(propagation._embeddings) == 3:
            raise _Stop

    predictor.interrupt_by(stop)
    with pytest.raises(_Stop):
        list(propagation.propagate(anchors, volume.planes(0)))
    propagation._embeddings._made.clear()  # the hooks of `interrupt_by` stay
    assert not propagation._embeddings._begun


@needs_openvino
@pytest.mark.slow
def test_a_plane_that_cannot_be_read_says_so_in_its_turn(predictor: Predictor, volume: Volume) -> None:
    """Not when it is begun: the object may end before it."""
    memory = SureMemory(predictor.network, SMALL).eval()
    anchors = anchor(sure_propagation(predictor.network), 0)
    propagation = MemoryPropagation(predictor, memory, _Unreadable(volume, 4))
    steps = propagation.propagate(anchors, volume.planes(0))
    assert [next(steps).plane.position for _ in range(3)] == [1, 2, 3]
    with pytest.raises(OSError, match="plane 4 cannot be read"):
        next(steps)


@needs_openvino
@pytest.mark.slow
def test_one_thread_embeds_ahead_only_where_streams_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, volume: Volume
) -> None:
    """As for a window's model process, whose steps leave a processor to the window. Torch never does."""
    monkeypatch.delenv(STREAMS, raising=False)
    monkeypatch.setenv("LOWLAT_SEG_CACHE", str(tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = Predictor(small_network(), Runtime("cpu", "fp32", openvino=True), "off")
        plain = Predictor(small_network(), Runtime(), "off")
        for one in (alone, plain):
            assert one.backend.ahead is None
            found = FrameEmbeddings(one, _Unreadable(volume, 0))
            found.begin(volume.planes(0), _frames(one)[0])
            found.drop()
            assert not found._begun
        monkeypatch.setenv(STREAMS, "2")
        window = Predictor(small_network(), Runtime("cpu", "fp32", openvino=True), "off")
        ahead = window.backend.ahead
        assert ahead is not None
        assert ahead._compiled.get_property("INFERENCE_NUM_THREADS") == 2
        plane, frame = volume.planes(0)[0], _frames(window)[0]
        begun = FrameEmbeddings(window, volume)
        begun.begin([plane], frame)
        same = zip(begun.of(plane, frame), FrameEmbeddings(alone, volume).of(plane, frame), strict=True)
        assert all(torch.equal(one, other) for one, other in same)
    finally:
        torch.set_num_threads(before)


@needs_openvino
@pytest.mark.slow
def test_torch_uses_one_thread_beside_embeddings_and_its_own_number_between(
    predictor: Predictor, volume: Volume
) -> None:
    """What the caller does with a plane has all threads, also after an error."""
    during = []
    memory = SureMemory(predictor.network, SMALL).eval()
    memory.register_forward_hook(lambda *_: during.append(torch.get_num_threads()))
    anchors = anchor(sure_propagation(predictor.network), 0)
    propagation = MemoryPropagation(predictor, memory, _Unreadable(volume, 4))
    steps = propagation.propagate(anchors, volume.planes(0))
    for _ in range(3):
        next(steps)
        assert torch.get_num_threads() == 2
    with pytest.raises(OSError, match="plane 4"):
        next(steps)
    assert torch.get_num_threads() == 2
    assert set(during) == {1}
