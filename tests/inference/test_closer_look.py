"""The closer look: where the crop lies, when it is taken, and that answers come from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import THRESHOLD
from napari_lowlat_seg.core.prompts import Box, Click, Scribble
from napari_lowlat_seg.inference.closer_look import (
    MARGIN,
    MAX_SHARE,
    WHOLE_PLANE_SHARE,
    closer_frame,
    has_room,
    object_box,
    shows,
)
from napari_lowlat_seg.inference.prediction import Prediction
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.inference.torch_backend import TorchBackend
from napari_lowlat_seg.models.compact import Compact, CompactConfig

SMALL = CompactConfig(size=256, width=32, heads=2, blocks=1, skip8=16, skip4=8)


class Disk(Compact):
    """A network that draws a disk of 24 network pixels around every positive prompt, whatever the picture."""

    def decode(self, fused):  # type: ignore[no-untyped-def]
        return fused[0], None

    def fuse(self, features, maps):  # type: ignore[no-untyped-def]
        from torch.nn.functional import max_pool2d

        spread = max_pool2d((maps[:, 1:2] > 0.4).float(), 49, 1, 24)
        return (20 * spread - 10,)


def whole(rows: int = 400, cols: int = 300) -> Frame:
    return Frame.whole((rows, cols), 256)


def disk(shape: tuple[int, int], at: tuple[int, int], radius: int) -> np.ndarray:
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((rows - at[0]) ** 2 + (cols - at[1]) ** 2 <= radius**2)


def test_the_object_box_contains_mask_and_positive_prompts_only():
    """A negative click far away does not widen the box."""
    mask = disk((400, 300), (100, 100), 10)
    prompts = [Click((100, 100)), Click((130, 100)), Click((390, 290), positive=False)]
    assert object_box(prompts, mask) == (90, 90, 130, 110)


def test_the_object_box_ignores_tiny_parts():
    """One stray pixel does not spoil the closer look."""
    mask = disk((400, 300), (100, 100), 20)
    mask[390, 290] = True
    assert object_box([], mask) == (80, 80, 120, 120)


def test_an_empty_mask_without_prompts_has_no_box():
    """No prompt, no mask, no look."""
    assert object_box([], np.zeros((40, 30), bool)) is None
    assert closer_frame(whole(), None) is None


def test_small_object_gets_a_crop_with_margin():
    """The crop is square, inside the plane and leaves MARGIN on each side."""
    closer = closer_frame(whole(), (100, 100, 179, 139))
    assert closer is not None
    top, left, rows, cols = closer.crop
    assert rows == cols == round(80 * (1 + 2 * MARGIN))
    assert (top, left) == (100 - (rows - 80) // 2, 100 - (cols - 40) // 2)


def test_large_object_gets_no_crop():
    """An object that fills the plane is seen well enough."""
    side = MAX_SHARE * 400 / (1 + 2 * MARGIN)
    assert closer_frame(whole(), (0, 0, side + 3, side + 3)) is None
    assert closer_frame(whole(), (0, 0, side - 3, side - 3)) is not None


def test_a_crop_is_square_in_world_units():
    """Rows twice as thick: half as many of them."""
    frame = Frame.whole((400, 400), 256, spacing=(2.0, 1.0))
    closer = closer_frame(frame, (100, 100, 119, 139))
    assert closer is not None
    assert closer.crop[3] == pytest.approx(2 * closer.crop[2], abs=1)


def test_a_crop_is_kept_while_it_has_room():
    """Embedding is what costs: a growing object changes crops only when it reaches the border."""
    first = closer_frame(whole(), (100, 100, 159, 159))
    assert first is not None
    assert closer_frame(whole(), (95, 100, 160, 159), first) == first
    grown = closer_frame(whole(), (60, 100, 159, 159), first)
    assert grown is not None
    assert grown != first


def test_the_planes_border_needs_no_room():
    """An object cut off by the plane does not look outgrown for ever."""
    closer = closer_frame(whole(), (0, 0, 39, 39))
    assert closer is not None
    assert has_room(closer, (0, 0, 39, 39))


def test_a_crop_must_show_positive_prompts_and_the_newest():
    """An old negative click outside does not matter, a new one does."""
    crop = Frame((400, 300), 256, (100, 100, 60, 60))
    outside = Click((10, 10), positive=False)
    assert shows(crop, [outside, Click((120, 120))])
    assert not shows(crop, [Click((120, 120)), outside])
    assert not shows(crop, [Click((10, 10)), Click((120, 120))])
    assert not shows(crop, [Box((90, 110), (130, 130))])


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(Disk(SMALL), Runtime())


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (400, 300), dtype=np.uint8)


@pytest.mark.slow
def test_the_first_prediction_comes_from_the_whole_plane(predictor, image):
    """Two answers to the first click on a small object; the second is drawn in the crop, finer."""
    first, second = predictor.answers(predictor.embed(image), [Click((200, 150))])
    assert first.look is None
    assert second.look is not None
    assert second.look.frame.crop[2] < 200
    assert 0 < second.mask.sum() < first.mask.sum()  # 24 network pixels are fewer plane pixels there


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "share"),
    [
        ([Click((200, 150))], WHOLE_PLANE_SHARE),
        ([Scribble(((195, 150), (205, 150)))], WHOLE_PLANE_SHARE),
        ([Box((190, 140), (210, 160))], 0.0),
        ([Click((200, 150)), Box((190, 140), (210, 160))], 0.0),
    ],
)
def test_the_first_closer_look_of_clicks_and_scribbles_averages_both_views(predictor, image, prompts, share):
    """What says how far the object reaches can be read in one way only."""
    first, second = predictor.answers(predictor.embed(image), prompts)
    frame = second.look.frame
    (alone,) = predictor.predict_batch(second.look, [prompts])
    whole, closer = frame.cut(first.probability), alone.probability
    assert not np.array_equal(whole, closer)
    assert np.allclose(frame.cut(second.probability), (1 - share) * closer + share * whole, atol=1e-6)
    assert np.array_equal(second.mask, second.probability > THRESHOLD)
    assert second.quality == alone.quality


class OnDevice(TorchBackend):
    """A hot path whose probabilities stay tensors, as they do on a GPU."""

    def predict(self, features, frame, objects):  # type: ignore[no-untyped-def]
        found = super().predict(features, frame, objects)
        return [replace(one, soft=torch.from_numpy(one.soft)) for one in found]


@pytest.mark.slow
def test_a_blend_is_the_same_on_a_device(predictor, image):
    """Tensors stay tensors, and the mask is that of what they hold."""
    _, here = predictor.answers(predictor.embed(image), [Click((200, 150))])
    predictor.backend = OnDevice(predictor.network, predictor.runtime)
    _, there = predictor.answers(predictor.embed(image), [Click((200, 150))])
    assert isinstance(there.soft, torch.Tensor)
    assert np.allclose(here.probability, there.probability, atol=1e-6)
    assert np.array_equal(there.mask, there.probability > THRESHOLD)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_crop_is_laid_over_its_plane_by_the_processor_where_memory_lacks(share):
    """The same probability and mask, of the device's type."""
    frame = replace(Frame.whole((60, 80), 64), crop=(10, 20, 30, 30))
    random = np.random.default_rng(0)
    around = Prediction(torch.from_numpy(random.random((60, 80))).half(), None, Frame.whole((60, 80), 64))
    own = torch.from_numpy(random.random((30, 30))).half()
    expected = Prediction(own, 0.9, frame).on_plane(around, share)

    class Device(torch.Tensor):
        """On a device that has no memory left: it can only be asked for its shape, and copied to the host."""

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if function is torch.Tensor.cpu:
                return own
            if getattr(function, "__name__", "") != "__get__":
                raise torch.cuda.OutOfMemoryError("full")
            return super().__torch_function__(function, types, args, kwargs or {})

    there = own.clone().as_subclass(Device)
    np.testing.assert_array_equal(Prediction(there, 0.9, frame).mask, Prediction(own, 0.9, frame).mask)
    found = Prediction(there, 0.9, frame).on_plane(around, share)
    assert type(found.soft) is torch.Tensor
    assert found.soft.dtype == torch.float16
    np.testing.assert_array_equal(found.probability, expected.probability)
    np.testing.assert_array_equal(found.mask, expected.mask)


def test_later_predictions_come_from_the_crop_alone(predictor, image):
    """While the prompts stay inside, the same embedding answers, once a click."""
    embedding = predictor.embed(image)
    one = predictor.predict(embedding, [Click((200, 150))])
    (two,) = predictor.answers(embedding, [Click((200, 150)), Click((202, 150))], one)
    assert two.look is one.look


@pytest.mark.slow
def test_a_prompt_outside_the_crop_uses_the_whole_plane_again(predictor, image):
    """A second part far away belongs to the object too."""
    embedding = predictor.embed(image)
    one = predictor.predict(embedding, [Click((200, 150))])
    first, *_ = predictor.answers(embedding, [Click((200, 150)), Click((20, 20))], one)
    assert first.look is None
    assert first.mask[20, 20]
    assert first.mask[200, 150]


@pytest.mark.slow
def test_what_the_crop_does_not_show_stays(predictor, image):
    """The crop's answer is pasted; the rest of the plane is byte for byte the whole plane's answer."""
    first, second = predictor.answers(predictor.embed(image), [Click((200, 150))])
    outside = np.ones(image.shape, bool)
    second.look.frame.place(np.zeros(second.look.frame.crop[2:], bool), outside)
    assert np.array_equal(first.probability[outside], second.probability[outside])


@pytest.mark.slow
def test_a_closer_look_at_another_image_is_not_used(predictor, image):
    """A mask propagated to the next plane does not bring its plane's pixels along."""
    one = predictor.predict(predictor.embed(image), [Click((200, 150))])
    next_plane = predictor.embed(255 - image)
    first, *_ = predictor.answers(next_plane, [Click((200, 150))], one)
    assert first.look is None


@pytest.mark.slow
def test_off_takes_no_closer_look(image):
    """One answer, from the whole plane."""
    predictor = Predictor(Disk(SMALL), Runtime(), "off")
    (only,) = predictor.answers(predictor.embed(image), [Click((200, 150))])
    assert only.look is None


@pytest.mark.slow
def test_predict_returns_the_last_prediction(predictor, image):
    """Scripts that want one mask get the best one, and nothing that was passed in changes."""
    embedding = predictor.embed(image)
    start = Prediction(np.zeros(image.shape, np.float32), None, embedding.frame)
    *_, best = predictor.answers(embedding, [Click((200, 150))], start)
    again = predictor.predict(embedding, [Click((200, 150))], start)
    assert np.array_equal(best.probability, again.probability)
    assert not start.probability.any()


class Flooding(Disk):
    """After a second click the object is all that the network sees."""

    def fuse(self, features, maps):  # type: ignore[no-untyped-def]
        from torch.nn.functional import max_pool2d

        clicked = maps[:, 1:2] > 0.9
        if clicked.sum() > 4 * self.radius**2:  # more than one disk
            return (0 * maps[:, :1] + 10,)
        return (20 * max_pool2d(clicked.float(), 49, 1, 24) - 10,)


class Contrary(Disk):
    """Draws around negative prompts."""

    def fuse(self, features, maps):  # type: ignore[no-untyped-def]
        return super().fuse(features, maps[:, [0, 2, 1]])


@pytest.mark.slow
def test_an_object_too_large_for_any_crop_is_predicted_from_the_whole_plane():
    """It is not left cut off at the border of the last crop."""
    image = np.zeros((60, 50), np.uint8)
    predictor = Predictor(Flooding(SMALL), Runtime())
    embedding = predictor.embed(image)
    one = predictor.predict(embedding, [Click((30, 25))])
    assert one.look is not None
    first, second = predictor.answers(embedding, [Click((30, 25)), Click((34, 25))], one)
    assert first.look is one.look
    assert not first.mask.all()
    assert second.look is None
    assert second.mask.all()


@pytest.mark.slow
def test_negative_prompts_alone_get_no_closer_look(image):
    """A crop around what the whole plane suggests may hold no prompt: the answer there would be a guess."""
    predictor = Predictor(Contrary(SMALL), Runtime())
    (only,) = predictor.answers(predictor.embed(image), [Click((200, 150), positive=False)])
    assert only.mask.any()
    assert only.look is None


@pytest.mark.slow
def test_overwriting_an_image_does_not_change_its_embedding(predictor, image):
    """A camera's buffer: the crop of the first picture is not used for the second."""
    first = predictor.embed(image)
    before = first.image.copy()
    one = predictor.predict(first, [Click((200, 150))])
    image[:] = 255 - image
    assert np.array_equal(first.image, before)
    answer, *_ = predictor.answers(predictor.embed(image), [Click((200, 150))], one)
    assert answer.look is None
