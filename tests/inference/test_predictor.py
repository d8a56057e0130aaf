"""numpy in, numpy out, nothing kept between calls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Scribble
from napari_lowlat_seg.inference.prediction import Prediction
from napari_lowlat_seg.inference.predictor import Predictor, load_predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.inference.torch_backend import TorchBackend
from napari_lowlat_seg.models.checkpoints import save_model
from napari_lowlat_seg.models.network import Network
from napari_lowlat_seg.models.segnext import SegNext, SegNextConfig

TINY = SegNextConfig(
    size=64, dim=16, depth=2, heads=2, fusion_heads=2, neck_dims=(4, 4, 8, 8), head_dim=8, global_every=2
)


class Echo(Network):
    """Shows what it was fed: its features are the image less the mean, its logits one of the maps."""

    def __init__(self, fit: str = "letterbox", channel: int = 0, side: int = 32) -> None:
        super().__init__()
        self.size, self.radius, self.fit, self.regions = side, 1, fit, "prior"  # type: ignore[assignment]
        self.pad = (100.0, 110.0, 120.0)
        self.channel = channel
        self.weight = torch.nn.Parameter(torch.full((3,), float(channel)))

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image - torch.tensor(self.pad)[:, None, None],)

    def fuse(self, features: tuple[Tensor, ...], maps: Tensor) -> tuple[Tensor, ...]:
        return (maps[:, self.channel : self.channel + 1],)

    def decode(self, fused: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        return 16 * fused[0] - 8, torch.tensor([0.75])


def echo(fit: str = "letterbox", channel: int = 0) -> Predictor:
    return Predictor(Echo(fit, channel), Runtime(), closer_look="off")


def tiny(fit: str = "official", seed: int = 0) -> Predictor:
    torch.manual_seed(seed)
    return Predictor(SegNext(replace(TINY, fit=fit)), Runtime(), closer_look="off")


@pytest.fixture(scope="module", params=["official", "letterbox"])
def predictor(request: pytest.FixtureRequest) -> Predictor:
    return tiny(request.param)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """A small wide one and a tall one in colour."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (48, 80), np.uint8), rng.integers(0, 256, (100, 40, 3), np.uint8)]


def test_two_images_interleaved_each_get_their_own_mask(predictor, images) -> None:
    """Shapes and values as if each had been alone."""
    clicks = [Click((27, 32)), Click((5, 5), positive=False)]
    alone = [predictor.predict(predictor.embed(image), clicks).probability for image in images]
    first, second = (predictor.embed(image) for image in images)
    for embedding, expected in ((first, alone[0]), (second, alone[1]), (first, alone[0])):
        np.testing.assert_array_equal(predictor.predict(embedding, clicks).probability, expected)
    assert [a.shape for a in alone] == [(48, 80), (100, 40)]
    assert not np.array_equal(alone[0][:40, :40], alone[1][:40, :40])


def test_arguments_are_not_changed_and_nothing_is_kept(predictor, images) -> None:
    """Images, embeddings, prompts and the previous prediction stay; two calls give one answer."""
    image = images[1].copy()
    prompts = [Click((27, 32)), Scribble([(3, 4), (50, 30)], positive=False), Box((2, 2), (30, 20))]
    before = tuple(prompts)
    embedding = predictor.embed(image)
    features = [x.clone() for x in embedding.features]
    previous = predictor.predict(embedding, prompts[:1])
    kept, state = previous.probability.copy(), dict(vars(predictor))
    answers = [predictor.predict(embedding, prompts, previous).probability for _ in range(2)]
    np.testing.assert_array_equal(*answers)
    np.testing.assert_array_equal(image, images[1])
    np.testing.assert_array_equal(previous.probability, kept)
    assert tuple(prompts) == before
    assert all(torch.equal(a, b) for a, b in zip(features, embedding.features, strict=True))
    assert vars(predictor) == state


def test_a_prediction_is_a_probability_and_a_mask(predictor, images) -> None:
    """float32 in [0, 1]; foreground is above 0.49."""
    prediction = predictor.predict(predictor.embed(images[0]), [Click((1, 1))])
    assert prediction.probability.dtype == np.float32
    assert 0 <= prediction.probability.min() <= prediction.probability.max() <= 1
    np.testing.assert_array_equal(prediction.mask, prediction.probability > 0.49)
    assert prediction.quality is None
    assert prediction.frame.shape == (48, 80)
    assert echo().predict(echo().embed(images[0]), [Click((1, 1))]).quality == 0.75


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64, bool])
def test_images_of_any_real_type_give_the_same_embedding(predictor, images, dtype) -> None:
    """Scaled intensities give the same embedding up to the rounding of a gray level."""
    image = images[0] > 127 if dtype is bool else images[0].astype(dtype) * dtype(3) - dtype(0)
    window = (0.0, 1.0) if dtype is bool else (0.0, 765.0)
    same = images[0] if dtype is not bool else (images[0] > 127).astype(np.uint8) * 255
    found, expected = predictor.embed(image, window), predictor.embed(same)
    np.testing.assert_allclose(found.image.astype(int), expected.image.astype(int), atol=1)


def test_gray_is_shown_as_colour(predictor, images) -> None:
    """(H, W) and three equal channels are the same picture."""
    gray, rgb = predictor.embed(images[0]), predictor.embed(np.stack([images[0]] * 3, axis=-1))
    assert all(torch.equal(a, b) for a, b in zip(gray.features, rgb.features, strict=True))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 5, 3), (65, 64)])
def test_images_of_any_size_are_accepted(predictor, shape) -> None:
    """From a single pixel on; the answer has the picture's shape."""
    image = np.random.default_rng(0).normal(size=shape)
    prediction = predictor.predict(predictor.embed(image), [Click((0, 0))])
    assert prediction.probability.shape == shape[:2]
    assert np.isfinite(prediction.probability).all()


def test_constant_images_and_images_with_nan_are_accepted(predictor) -> None:
    """A black plane and one with NaN and infinity."""
    holes = np.linspace(0, 1, 400).reshape(20, 20)
    holes[3, 3], holes[4, 4] = np.nan, np.inf
    for image in (np.zeros((20, 20), np.uint16), np.full((20, 20), 7.5), holes):
        assert np.isfinite(predictor.predict(predictor.embed(image), [Click((9, 9))]).probability).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 4)), r"expected an image of shape \(H, W\) or \(H, W, 3\), got \(4, 4, 4\)"),
        (np.zeros(4), r"expected an image of shape \(H, W\) or \(H, W, 3\), got \(4,\)"),
        (np.zeros((0, 4)), r"an image needs at least one pixel; got shape \(0, 4\)"),
        (np.full((4, 4), np.nan), "an image needs at least one finite pixel; all 16 are NaN"),
        (np.zeros((4, 4), complex), "an image needs real numbers; got type complex128"),
    ],
)
def test_an_unusable_image_is_refused_in_one_sentence(predictor, image, message) -> None:
    """Wrong shape, no pixel, no number."""
    with pytest.raises(ValueError, match=message):
        predictor.embed(image)


def test_wrong_calls_are_one_sentence(predictor, images) -> None:
    """Nothing to go on, a previous mask of another picture, a prompt outside."""
    embedding, other = (predictor.embed(image) for image in images)
    with pytest.raises(ValueError, match="expected a prompt or a previous prediction, got neither"):
        predictor.predict(embedding, [])
    previous = predictor.predict(other, [Click((0, 0))])
    with pytest.raises(ValueError, match=r"previous prediction has shape \(100, 40\), the image \(48, 80\)"):
        predictor.predict(embedding, [Click((0, 0))], previous)
    with pytest.raises(ValueError, match=r"\(48, 80\)"):
        predictor.predict(embedding, [Click((60, 10))])
    with pytest.raises(ValueError, match="closer_look is 'auto' or 'off'; got 'on'"):
        Predictor(predictor.network, Runtime(), "on")  # type: ignore[arg-type]


def test_an_embedding_of_other_weights_is_refused(images) -> None:
    """Same kind and size, other numbers; the same numbers in another predictor are welcome."""
    embedding = tiny(seed=0).embed(images[0])
    with pytest.raises(
        ValueError, match=r"made by SegNext-64-\w{12}, not by SegNext-64-\w{12}; embed the image"
    ):
        tiny(seed=1).predict(embedding, [Click((0, 0))])
    assert tiny(seed=0).predict(embedding, [Click((0, 0))]).probability.shape == (48, 80)


def test_a_letterbox_keeps_the_aspect_and_pads_with_the_mean() -> None:
    """A 10 x 20 picture on 32 x 32: 16 rows of picture, then what is zero after normalisation."""
    (features,) = echo().embed(np.full((10, 20), 200, np.uint8)).features
    expected = torch.zeros(3, 32, 32)
    expected[:, :16] = 200 - torch.tensor([100.0, 110, 120])[:, None, None]
    torch.testing.assert_close(features[0], expected)


def test_spacing_makes_network_pixels_square() -> None:
    """Rows five times as thick as columns: 4 x 20 pixels fill the square."""
    assert echo().embed(np.zeros((4, 20), np.uint8), spacing=(5, 1)).frame.content == (32, 32)


def test_a_letterbox_averages_when_it_shrinks() -> None:
    """A one-pixel line on 320 rows is a tenth of a line on 32, and not lost between samples."""
    image = np.zeros((320, 320), np.uint8)
    image[101] = 250
    features = [echo(fit).embed(image).features[0][0, 0] + 100 for fit in ("letterbox", "official")]
    assert features[0].sum() / 32 == pytest.approx(25, abs=0.5)
    assert features[1].sum() == 0


@pytest.mark.parametrize("fit", ["letterbox", "official"])
@pytest.mark.parametrize("shape", [(64, 64), (64, 40), (16, 24)])
def test_a_box_is_predicted_where_it_was_drawn(fit, shape) -> None:
    """Plane to network to plane, to within the pixels that the grids share."""
    engine = echo(fit)
    found = engine.predict(engine.embed(np.zeros(shape, np.uint8)), [Box((4, 8), (11, 19))]).mask
    expected = np.zeros(shape, bool)
    expected[4:12, 8:20] = True
    rows, cols = (np.flatnonzero(found.any(axis=axis)) for axis in (1, 0))
    slack = max(1, max(shape) / 32)
    assert np.abs(np.array([rows[0] - 4, rows[-1] - 11, cols[0] - 8, cols[-1] - 19])).max() <= slack
    assert (found ^ expected).mean() < 0.1


def test_a_previous_prediction_replaces_the_regions_before_it() -> None:
    """A box before the last click is not painted again; one after it is, and a negative one cuts."""
    engine = echo()
    embedding = engine.embed(np.zeros((32, 32), np.uint8))
    quarter = np.zeros((32, 32), np.float32)
    quarter[:16, :16] = 1
    previous = Prediction(quarter, None, embedding.frame)
    box = Box((20, 20), (27, 27))

    def mask(*prompts) -> np.ndarray:
        return engine.predict(embedding, prompts, previous).mask

    both, less = quarter > 0, quarter > 0
    both[20:28, 20:28] = True
    less[:8, :8] = False
    np.testing.assert_array_equal(mask(box, Click((1, 1))), quarter > 0)
    np.testing.assert_array_equal(mask(Click((1, 1)), box), both)
    np.testing.assert_array_equal(mask(Click((1, 1)), Box((0, 0), (7, 7), positive=False)), less)
    np.testing.assert_array_equal(mask(box, Box((18, 18), (30, 30), positive=False)), quarter > 0)


def test_regions_without_a_previous_prediction_are_the_prior() -> None:
    """Box, polygon and mask fill channel 0; clicks and scribbles fill theirs."""
    engine = echo()
    embedding = engine.embed(np.zeros((32, 32), np.uint8))
    pixels = np.zeros((32, 32), bool)
    pixels[4:10, 4:10] = True
    for region in (Box((4, 4), (9, 9)), Polygon([(4, 4), (4, 9.5), (9.5, 9.5), (9.5, 4)]), Mask(pixels)):
        np.testing.assert_array_equal(engine.predict(embedding, [region]).mask, pixels)
    stroke = echo(channel=2)
    found = stroke.predict(
        stroke.embed(np.zeros((32, 32), np.uint8)), [Scribble([(5, 5), (5, 9)], False)]
    ).mask
    assert found[5, 5:10].all()
    assert found.sum() == 5 * 3 + 2


def test_a_crop_is_predicted_in_its_own_pixels() -> None:
    """What a closer look needs: embed a crop of the plane, answer over the crop."""
    plane = np.zeros((100, 120), np.uint8)
    frame = Frame((100, 120), 32, (40, 60, 32, 32))
    previous = np.zeros((100, 120), np.float32)
    previous[50:60, 70:90] = 1
    path = TorchBackend(Echo(), Runtime())
    [prediction] = path.predict(path.embed(plane, frame), frame, [([Click((45, 65))], previous)])
    assert (prediction.soft.shape, prediction.quality) == ((32, 32), 0.75)
    np.testing.assert_array_equal(prediction.mask, previous[40:72, 60:92] > 0)


def test_a_predictor_is_loaded_from_a_file(tmp_path) -> None:
    """By path, on a named device."""
    torch.manual_seed(0)
    path = save_model(SegNext(TINY), tmp_path / "mine.safetensors")
    loaded = load_predictor(str(path), device="cpu", closer_look="off")
    assert (loaded.size, loaded.closer_look, loaded.name) == (64, "off", str(path))
    assert loaded.model == tiny().model


class Slope(Echo):
    """Is the surer the further to the right."""

    def decode(self, fused: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        return torch.linspace(-4, 4, self.size).expand(1, 1, self.size, -1), torch.tensor([0.75])


def sloping() -> Predictor:
    return Predictor(Slope(), Runtime(), closer_look="off")


def test_candidates_are_levels_of_the_prediction(images) -> None:
    """The first is what `predict` returns; larger ones, then smaller ones follow, for any network."""
    predictor = sloping()
    embedding = predictor.embed(images[0])
    prompts = [Click((3, 4))]
    first, *others = predictor.candidates(embedding, prompts)
    assert np.array_equal(first.probability, predictor.predict(embedding, prompts).probability)
    levels = first.soft_mask.levels()
    assert levels == (0, 1, 2, -1, -2)
    for level, other in zip(levels[1:], others, strict=True):
        assert np.array_equal(other.mask, first.soft_mask.at_level(level).mask)
        assert other.quality == first.soft_mask.at_level(level).quality
        assert (other.frame, other.look, other.edges) == (first.frame, first.look, first.edges)
    masks = [one.mask for one in (first, *others)]
    for number, mask in enumerate(masks):
        assert mask.any()
        assert all((mask & other).sum() < 0.95 * (mask | other).sum() for other in masks[:number])
    correction = Click((20, 20), positive=False)
    for chosen in (first, *others):
        assert predictor.predict(embedding, [*prompts, correction], chosen).shape == images[0].shape[:2]


def test_candidates_of_a_prediction_that_is_there(images) -> None:
    """It is not made again, and it may be one that was kept as a soft mask."""
    predictor = sloping()
    embedding = predictor.embed(images[0])
    prompts = [Click((3, 4))]
    first, *others = predictor.candidates(embedding, prompts)
    for given in (first, Prediction.of(first.soft_mask, embedding.frame)):
        again, *found = predictor.candidates(embedding, prompts, given)
        assert again is given
        assert [one.soft_mask.packed for one in found] == [one.soft_mask.packed for one in others]
