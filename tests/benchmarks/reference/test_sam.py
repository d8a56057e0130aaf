"""MobileSAM's and EfficientSAM-Ti's published forms: their size, their parts, and where their answers lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.reference import sam
from benchmarks.reference.sam import POINTS_PER_BATCH, SamSegmenter
from benchmarks.reference.sam_networks import (
    CrossAttention,
    EfficientSamTi,
    FourierPositions,
    GlobalViT,
    MapNorm,
    MatrixAttention,
    MobileSam,
    PublishedSam,
)
from napari_lowlat_seg.core.prompts import Box, Click, Prompt
from napari_lowlat_seg.evaluation.inputs.segmenters import load_segmenter
from napari_lowlat_seg.evaluation.latency import latency
from napari_lowlat_seg.models.network import MEAN, STD, Fit

SIZE = 64  # of small inputs: 4 x 4 features


@pytest.fixture(params=[MobileSam, EfficientSamTi])
def network(request: pytest.FixtureRequest) -> PublishedSam:
    """Either network with a small input."""
    torch.manual_seed(3)
    made: PublishedSam = request.param(SIZE)
    return made.eval()


@pytest.fixture
def model(network: PublishedSam) -> SamSegmenter:
    """The segmenter around it."""
    return SamSegmenter(network, "cpu", "small")


@pytest.fixture
def picture() -> np.ndarray:
    """24 x 48 of noise."""
    return np.random.default_rng(0).integers(0, 256, (24, 48), dtype=np.uint8)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def decoded(network: PublishedSam, points: list[list[float]], labels: list[int]) -> Tensor:
    """Logits for one object on features that are always the same."""
    features = torch.randn(1, 256, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return network.decode(features, torch.tensor([points]), torch.tensor([labels]))[0]


def test_mobile_sam_has_the_parameters_of_the_published_file() -> None:
    """10,130,092 there: batch norms not folded, and a head for 1000 classes that is never asked."""
    network = MobileSam()
    folded = sum(
        conv.bias.numel()
        for conv in network.image_encoder.modules()
        if isinstance(conv, nn.Conv2d) and conv.bias is not None
    )
    unused = 2 * 320 + 320 * 1000 + 1000  # a norm and a linear layer
    assert parameters(network.image_encoder) + folded + unused == 6_065_532
    assert parameters(network.prompt_encoder) == 6_220
    assert parameters(network.mask_decoder) == 4_058_340
    assert parameters(network) + folded + unused == 10_130_092


def test_efficient_sam_ti_has_ten_million_parameters() -> None:
    """A ViT of 5.5 million behind a neck of 0.6, and a decoder of SAM's size."""
    network = EfficientSamTi()
    neck = parameters(network.image_encoder.neck)
    assert (parameters(network.image_encoder) - neck, neck) == (5_523_840, 640_000)
    assert parameters(network.prompt_encoder) == 4 * 256
    assert parameters(network.mask_decoder) == 4_058_340
    assert parameters(network) == 10_223_204


def test_features_are_a_sixteenth_and_masks_a_quarter_of_the_side(network: PublishedSam) -> None:
    """Three masks and their predicted IoU for each of two objects."""
    with torch.inference_mode():
        features = network.encode(torch.zeros(1, 3, SIZE, SIZE))
        logits, quality = network.decode(features, torch.rand(2, 3, 2) * SIZE, torch.ones(2, 3))
    assert features.shape == (1, 256, 4, 4)
    assert (logits.shape, quality.shape) == ((2, 3, 16, 16), (2, 3))


@pytest.mark.slow
def test_objects_in_a_batch_get_the_masks_they_get_alone(network: PublishedSam) -> None:
    """Nothing leaks from one object to another."""
    features = torch.randn(1, 256, 4, 4)
    points, labels = torch.rand(3, 2, 2) * SIZE, torch.tensor([[1, 0], [1, 1], [0, 1]])
    with torch.inference_mode():
        together = network.decode(features, points, labels)[0]
        alone = [network.decode(features, points[i : i + 1], labels[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_positions_and_labels_of_points_change_the_mask(network: PublishedSam) -> None:
    """Moved, negative, and one more."""
    first = decoded(network, [[10.0, 20.0]], [1])
    others = [
        decoded(network, [[50.0, 20.0]], [1]),
        decoded(network, [[10.0, 20.0]], [0]),
        decoded(network, [[10.0, 20.0], [50.0, 20.0]], [1, 0]),
    ]
    assert torch.equal(first, decoded(network, [[10.0, 20.0]], [1]))
    assert all((first - other).abs().max() > 1e-3 for other in others)


def test_patch_positions_are_resized_from_fourteen_a_side() -> None:
    """Without blocks: as learnt on a side of 224, in between on another."""
    encoder = GlobalViT().eval()
    encoder.blocks, encoder.neck = nn.ModuleList(), nn.Identity()
    nn.init.zeros_(encoder.patch_embed.weight)
    nn.init.zeros_(encoder.patch_embed.bias)
    learnt = encoder.pos_embed[0, 1:].T.reshape(192, 14, 14)
    with torch.inference_mode():
        assert torch.equal(encoder(torch.zeros(1, 3, 224, 224))[0], learnt)
        wide = encoder(torch.zeros(1, 3, 448, 448))[0]
    torch.testing.assert_close(wide, nn.functional.interpolate(learnt[None], (28, 28), mode="bicubic")[0])


def test_efficient_sam_sees_six_points() -> None:
    """The seventh changes nothing, the sixth does."""
    network = EfficientSamTi(SIZE).eval()
    points, labels = [[4.0 * i, 8.0] for i in range(7)], [1] * 7
    five, six, seven = (decoded(network, points[:n], labels[:n]) for n in (5, 6, 7))
    assert torch.equal(six, seven)
    assert not torch.equal(five, six)


@pytest.mark.parametrize(
    ("label", "field"),
    [(2, "bbox_top_left_embeddings"), (3, "bbox_bottom_right_embeddings"), (-1, "invalid_points")],
)
def test_efficient_sam_adds_an_embedding_by_label(label: int, field: str) -> None:
    """Added to the place; a negative point is its place alone."""
    prompts = EfficientSamTi(SIZE).prompt_encoder
    place = torch.rand(1, 6, 2)
    with torch.inference_mode():
        bare = prompts(place, torch.zeros(1, 6))
        added = prompts(place, torch.full((1, 6), label)) - bare
        torch.testing.assert_close(bare, prompts.pe_layer(place))
        torch.testing.assert_close(added, getattr(prompts, field).weight.expand(1, 6, 256))


def test_sam_pads_every_prompt_with_one_point() -> None:
    """It has no place."""
    prompts = MobileSam(SIZE).prompt_encoder
    with torch.inference_mode():
        tokens = prompts(torch.rand(1, 2, 2), torch.tensor([[1, 0]]))
        assert torch.equal(tokens[:, 2], prompts.not_a_point_embed.weight)
    assert tokens.shape == (1, 3, 256)


def test_the_position_grid_is_that_of_cell_centres() -> None:
    """Column 2, row 1 of a 4 x 4 grid is (0.625, 0.375)."""
    places = FourierPositions()
    torch.testing.assert_close(places.grid(4)[0, :, 1, 2], places(torch.tensor([0.625, 0.375])))


def test_a_position_is_encoded_by_sines_and_cosines() -> None:
    """Of its projections, in turns; the middle of the picture is at none."""
    places = FourierPositions()
    angle = 2 * np.pi * (torch.tensor([-0.5, 1.0]) @ places.positional_encoding_gaussian_matrix)
    torch.testing.assert_close(places(torch.tensor([0.25, 1.0])), torch.cat([angle.sin(), angle.cos()]))
    assert places(torch.tensor([0.5, 0.5])).tolist() == [0.0] * 128 + [1.0] * 128


def test_the_norm_of_a_map_equals_layer_norm_over_its_channels() -> None:
    """Step by step against torch."""
    norm, x = MapNorm(8), torch.randn(2, 8, 3, 5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    fused = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (8,), norm.weight, norm.bias, 1e-6)
    torch.testing.assert_close(norm(x), fused.permute(0, 3, 1, 2))


def test_attention_with_its_matrix_equals_the_fused_kernel() -> None:
    """Within one set of tokens and between two."""
    within, x = MatrixAttention(24, 3), torch.randn(2, 10, 24)
    torch.testing.assert_close(within(x), super(MatrixAttention, within).forward(x))
    between, q, k, v = CrossAttention(128), *(torch.randn(2, n, 256) for n in (5, 9, 9))
    heads = (
        project(x).view(2, -1, 8, 16).transpose(1, 2)
        for project, x in ((between.q_proj, q), (between.k_proj, k), (between.v_proj, v))
    )
    fused = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(2, 5, 128)
    torch.testing.assert_close(between(q, k, v), between.out_proj(fused))


def test_clicks_and_fed_back_logits_change_the_mask(model: SamSegmenter, picture: np.ndarray) -> None:
    """Two clicks differ from one; the previous answer counts for MobileSAM alone."""
    embedding = model.embed(picture)
    clicks: list[Prompt] = [Click((4, 9)), Click((20, 40), positive=False)]
    first = model.predict(embedding, clicks[:1])
    again, second = model.predict(embedding, clicks), model.predict(embedding, clicks, first)
    assert (first.mask.shape, first.mask.dtype) == ((24, 48), np.bool_)
    assert first.low_res.shape == (1, SIZE // 4, SIZE // 4)
    assert not torch.equal(first.low_res, again.low_res)
    assert torch.equal(second.low_res, again.low_res) == (not model.network.feeds_back)


def test_pictures_do_not_interfere(model: SamSegmenter, picture: np.ndarray) -> None:
    """Embedded in turns; the second is upright and coloured."""
    upright = np.stack([picture.T] * 3, axis=-1)
    first = model.embed(picture)
    alone = model.predict(first, [Click((4, 9))])
    other = model.predict(model.embed(upright), [Click((9, 4))])
    assert other.mask.shape == (48, 24)
    assert (model.predict(first, [Click((4, 9))]).mask == alone.mask).all()


class Spot(PublishedSam):
    """Keeps the picture as its features, and answers with disks around the last point of every object.

    The disks have radii of 6, 12 and 3 pixels of the input; the second mask has the highest predicted IoU.
    """

    feeds_back = True

    def __init__(self, fit: Fit) -> None:
        super().__init__(SIZE)
        self.fit = fit
        self.batches: list[int] = []

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(
        self, features: Tensor, points: Tensor, labels: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.batches.append(len(points))
        cells = torch.arange(SIZE // 4) * 4 + 1.5  # the middle of each logit, in pixels of the input
        x, y = points[:, -1, 0, None, None], points[:, -1, 1, None, None]
        apart = torch.hypot(cells[None, :, None] - y, cells[None, None, :] - x)
        logits = torch.stack([radius - apart for radius in (6, 12, 3)], dim=1)
        return logits, torch.tensor([[0.1, 0.9, 0.2]]).expand(len(points), -1)

    def _repeated(self, features: Tensor, count: int, previous: Tensor | None) -> Tensor:
        raise AssertionError("decode is answered here")


@pytest.mark.parametrize(("fit", "scale"), [("letterbox", (2.0, 2.0)), ("official", (4.0, 2.0))])
def test_a_mask_lies_where_the_click_was(fit: Fit, scale: tuple[float, float]) -> None:
    """On 16 x 32 pixels: twice as large and padded below, or stretched to the square."""
    model = SamSegmenter(Spot(fit), "cpu", "spot")
    picture = np.zeros((16, 32), np.uint8)
    answer = model.predict(model.embed(picture), [Click((0, 0), positive=False), Click((7, 22))])
    rows, cols = np.mgrid[:16, :32]
    # SAM multiplies a pixel's number by the scale and leaves its half to the prompt encoder.
    centres = (rows + 0.5) * scale[0] - 0.5, (cols + 0.5) * scale[1] - 0.5
    apart = np.hypot(centres[0] - 7 * scale[0], centres[1] - 22 * scale[1])
    expected = apart < 12
    assert (answer.mask != expected).sum() <= 0.1 * expected.sum()
    assert answer.quality == pytest.approx(0.9)
    assert answer.low_res[0, int(7 * scale[0] / 4), int(22 * scale[1] / 4)] > 8


def test_a_picture_is_padded_with_zeros_or_stretched() -> None:
    """White and black halves of 16 x 32 pixels, normalised."""
    picture = np.zeros((16, 32), np.uint8)
    picture[:, 16:] = 255
    white, black = ((value - np.array(MEAN)) / STD for value in (255, 0))
    padded, _ = SamSegmenter(Spot("letterbox"), "cpu", "spot").embed(picture)
    stretched, _ = SamSegmenter(Spot("official"), "cpu", "spot").embed(picture)
    assert padded.shape == stretched.shape == (1, 3, SIZE, SIZE)
    assert (padded[..., 32:, :] == 0).all()
    for row, image in ((31, padded), (63, stretched)):
        assert image[0, :, row, 0].numpy() == pytest.approx(black, abs=1e-5)
        assert image[0, :, row, 63].numpy() == pytest.approx(white, abs=1e-5)


def test_many_objects_are_answered_64_at_once() -> None:
    """Each as if it were alone."""
    network = Spot("letterbox")
    model = SamSegmenter(network, "cpu", "spot")
    embedding = model.embed(np.zeros((16, 32), np.uint8))
    asked = [[Click((float(i % 16), float(i % 32)))] for i in range(POINTS_PER_BATCH + 2)]
    answers = model.predict_batch(embedding, asked)
    assert network.batches == [POINTS_PER_BATCH, 2]
    alone = [model.predict(embedding, clicks) for clicks in asked]
    assert all((one.mask == other.mask).all() for one, other in zip(answers, alone, strict=True))


def test_no_objects_give_no_masks() -> None:
    """An empty list."""
    model = SamSegmenter(Spot("letterbox"), "cpu", "spot")
    assert model.predict_batch(model.embed(np.zeros((16, 32), np.uint8)), []) == []


def test_only_clicks_are_taken_and_as_many_for_each_object() -> None:
    """A box, nothing, and one click beside two."""
    model = SamSegmenter(Spot("letterbox"), "cpu", "spot")
    embedding = model.embed(np.zeros((16, 32), np.uint8))
    with pytest.raises(ValueError, match="expected clicks, which is all that is timed, got a box; use"):
        model.predict(embedding, [Box((1, 1), (5, 5))])
    with pytest.raises(ValueError, match="same number of clicks for every object, at least one, got 0; ask"):
        model.predict(embedding, [])
    with pytest.raises(ValueError, match="got 1, 2; ask for objects one by one"):
        model.predict_batch(embedding, [[Click((1, 1))], [Click((1, 1)), Click((2, 2))]])


@pytest.mark.parametrize("function", ["mobile_sam", "efficient_sam_ti"])
def test_a_function_of_the_file_makes_a_published_form(function: str) -> None:
    """The same weights every time, and the table says that they are random."""
    spec = f"{Path(sam.__file__)}:{function}"
    made, again = (load_segmenter(spec, device="cpu") for _ in range(2))
    assert made.form.startswith("random weights, published form, eager fp32, best of 3, ")
    assert (made.device, made.network.size) == ("cpu", 1024)  # type: ignore[attr-defined]
    pairs = zip(made.network.parameters(), again.network.parameters(), strict=True)  # type: ignore[attr-defined]
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.slow
def test_the_benchmark_times_a_published_form(model: SamSegmenter, picture: np.ndarray) -> None:
    """Clicks, and the grid one by one and in batches."""
    [row] = latency([model], picture, embeds=1, clicks=3, sat_seconds=1e9)
    assert (row["sat_clicks"], row["device"]) == (256, "cpu")
    assert row["sat_batch_s"] > 0
