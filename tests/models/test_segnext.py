"""The network against the original's own numbers, and against its own naive forms."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Click, dense_maps
from napari_lowlat_seg.inference.predictor import Prediction, Predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.models import fused
from napari_lowlat_seg.models.checkpoints import load_file as load_network
from napari_lowlat_seg.models.compact import distance_maps
from napari_lowlat_seg.models.segnext import NOMINAL_WINDOW, PlainViT, SegNext, SegNextConfig

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4
TINY = SegNextConfig(
    size=64, dim=16, depth=2, heads=2, fusion_heads=2, neck_dims=(4, 4, 8, 8), head_dim=8, global_every=2
)


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in load_file(GOLDEN / "sax1_256.outputs.safetensors").items()}


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "inputs.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> SegNext:
    """The recorded network, through the door by which an official file comes in."""
    path = tmp_path_factory.mktemp("official") / "sax1_256.pth"
    config = json.loads((GOLDEN / "official_config.json").read_text())["sax1_256"]
    torch.save({"state_dict": load_file(GOLDEN / "sax1_256.weights.safetensors"), "config": config}, path)
    loaded = load_network(path)
    assert isinstance(loaded, SegNext)
    return loaded


def with_weights(network: SegNext, config: SegNextConfig, weights: dict[str, Tensor]) -> SegNext:
    other = SegNext(config)
    other.load_state_dict(weights)
    return other.eval()


def answers(network: SegNext, image: np.ndarray, clicks: np.ndarray) -> list[np.ndarray]:
    """Probabilities at every 4th row and column after each click."""
    predictor = Predictor(network, Runtime(), closer_look="off")
    embedding, previous, found = predictor.embed(image), None, []
    for count in range(1, len(clicks) + 1):
        prompts = [Click((y, x), bool(positive)) for y, x, positive in clicks[:count].tolist()]
        previous = predictor.predict(embedding, prompts, previous)
        found.append(previous.probability[::4, ::4])
    return found


@pytest.mark.parametrize("letter", ["a", "b"])
def test_masks_equal_the_originals(network, recorded, inputs, letter) -> None:
    """Five clicks in turn on a small and on a tall picture (where a click falls one past the grid)."""
    found = answers(network, inputs[f"image_{letter}"], inputs[f"clicks_{letter}"])
    for k, probability in enumerate(found, 1):
        if f"{letter}/prob_{k}" in recorded:
            np.testing.assert_allclose(probability, recorded[f"{letter}/prob_{k}"], rtol=0, atol=TOLERANCE)


def test_features_and_logits_are_the_originals(network, recorded, inputs) -> None:
    """Encoder output and the head's own logits, before any upsampling."""
    image, (y, x, positive) = inputs["image_a"], inputs["clicks_a"][0].tolist()
    frame = Frame.whole(image.shape[:2], 256, "official")
    with torch.inference_mode():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        features = network.encode(F.interpolate(pixels, (256, 256), mode="bilinear"))
        maps = torch.from_numpy(dense_maps([Click((y, x), bool(positive))], frame))[None]
        logits = network.head_logits(network.fuse(features, maps))
    np.testing.assert_allclose(features[0][:, ::4], recorded["a/image_feats"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(logits[..., ::2, ::2], recorded["a/head_logits_1"], rtol=0, atol=TOLERANCE)


def test_naive_fusion_is_the_originals(network, recorded, inputs) -> None:
    """Addition without attention, the ablation "no dense fusion"."""
    weights = {k: v for k, v in network.state_dict().items() if not k.startswith("fusion_blocks.")}
    naive = with_weights(network, replace(network.config, fusion_blocks=0), weights)
    for k, probability in enumerate(answers(naive, inputs["image_a"], inputs["clicks_a"][:2]), 1):
        np.testing.assert_allclose(probability, recorded[f"a/naive_prob_{k}"], rtol=0, atol=TOLERANCE)


def test_norms_have_the_originals_eps(network, recorded, inputs) -> None:
    """With faint signals the eps of every norm shows: 1e-6 in the encoder, 1e-5 in fusion and neck."""
    faint = ("backbone.pos_embed", "backbone.patch_embed.", "visual_prompts_encoder.")
    weights = {
        k: v * 0.003 if k.startswith(faint) or ".attn.proj." in k or ".mlp.fc2." in k else v
        for k, v in network.state_dict().items()
    }
    for k, probability in enumerate(
        answers(with_weights(network, network.config, weights), inputs["image_a"], inputs["clicks_a"][:2]), 1
    ):
        np.testing.assert_allclose(probability, recorded[f"a/eps_prob_{k}"], rtol=0, atol=TOLERANCE)


def test_a_previous_mask_enters_as_the_original_has_it(network, recorded, inputs) -> None:
    """A rectangle of ones as the previous probability."""
    predictor = Predictor(network, Runtime(), closer_look="off")
    embedding = predictor.embed(inputs["image_a"])
    rectangle = np.zeros((181, 243), np.float32)
    rectangle[40:120, 60:180] = 1
    y, x, positive = inputs["clicks_a"][0].tolist()
    previous = Prediction(rectangle, None, embedding.frame)
    found = predictor.predict(embedding, [Click((y, x), bool(positive))], previous).probability[::4, ::4]
    np.testing.assert_allclose(found, recorded["a/prob_maskprompt_1"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_released_geometry_has_the_official_keys_and_shapes(blocks) -> None:
    """207 or 219 tensors, none more, none less."""
    with torch.device("meta"):
        state = SegNext(SegNextConfig.vit_b(blocks)).state_dict()
    expected = json.loads((GOLDEN / "vitb_state_dict_shapes.json").read_text())[f"vitb_sax{blocks}"]
    assert {key: list(value.shape) for key, value in state.items()} == expected


def test_windows_equal_blocks_run_on_every_window_alone() -> None:
    """The batched windows against a loop, on a grid of 2 x 2 windows of 14 tokens."""
    torch.manual_seed(0)
    vit = PlainViT(size=28 * 4, patch=4, dim=8, depth=2, heads=2, mlp_ratio=2, global_every=2).eval()
    image = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        x = (vit.patch_embed(image) + vit.pos_embed[:, 1:]).view(2, 28, 28, 8)
        cut = torch.empty_like(x)
        for top in (0, 14):
            for left in (0, 14):
                window = x[:, top : top + 14, left : left + 14].reshape(2, 196, 8)
                cut[:, top : top + 14, left : left + 14] = vit.blocks[0](window).view(2, 14, 14, 8)
        expected = vit.blocks[1](cut.view(2, 784, 8)).transpose(1, 2).view(2, 8, 28, 28)
        torch.testing.assert_close(vit(image), expected)
    assert (vit.windows, vit.is_global) == (2, [False, True])


def test_a_grid_that_windows_cannot_tile_is_refused() -> None:
    """43 tokens make 3 windows of 14 and one third."""
    assert 43 // NOMINAL_WINDOW == 3
    with pytest.raises(ValueError, match="a grid of 43 x 43 tokens cannot be cut into 3 windows per axis"):
        PlainViT(size=43, patch=1, dim=8, depth=1, heads=1, mlp_ratio=1, global_every=1)


def test_the_head_equals_resizing_before_mixing() -> None:
    """The rearranged head against the original's order: resize, concatenate, mix."""
    torch.manual_seed(0)
    network = SegNext(TINY).eval()
    levels = [torch.randn(1, c, s, s) for c, s in zip(TINY.neck_dims, (16, 8, 4, 2), strict=True)]
    head = network.head
    with torch.inference_mode():
        same = [
            F.interpolate(conv(x), (16, 16), mode="bilinear")
            for conv, x in zip(head.convs, levels, strict=True)
        ]
        expected = head.seg_conv(head.fusion_conv(torch.cat(same, 1)))
        torch.testing.assert_close(head(levels), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_products_with_their_activation_equal_two_steps(monkeypatch) -> None:
    """As a GPU takes them in half precision; its GELU is the tanh form, a processor's is not."""
    torch.manual_seed(0)
    network, maps = SegNext(TINY).eval(), torch.rand(3, 3, 64, 64)
    features = network.encode(255 * torch.rand(1, 3, 64, 64))
    expected = network.head_logits(network.fuse(features, maps))
    monkeypatch.setattr(fused, "_in_one_kernel", lambda *_: True)
    torch.testing.assert_close(network.head_logits(network.fuse(features, maps)), expected)


def test_distances_equal_the_nearest_of_all_points() -> None:
    """The stamped maps against tanh(2 d / radius) over every point; an empty channel is 1."""
    torch.manual_seed(0)
    points = (torch.rand(2, 2, 40, 60) > 0.995).float()
    points[1, 0] = 0
    before = points.clone()
    rows, cols = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    for sample in range(2):
        for channel in range(2):
            at = points[sample, channel].nonzero()
            far = ((rows[..., None] - at[:, 0]) ** 2 + (cols[..., None] - at[:, 1]) ** 2).double().sqrt()
            nearest = far.amin(-1) if len(at) else torch.full((40, 60), 1e6, dtype=torch.float64)
            expected = torch.tanh(2 * nearest / 5).float()
            torch.testing.assert_close(distance_maps(points, 5)[sample, channel], expected, rtol=0, atol=1e-6)
    assert torch.equal(points, before)


def test_distance_maps_take_part_when_disks_are_off() -> None:
    """The variant asks for single pixels and answers differently from disks with the same weights."""
    torch.manual_seed(0)
    disks = SegNext(TINY).eval()
    distances = with_weights(disks, replace(TINY, use_disks=False), disks.state_dict())
    assert (disks.radius, distances.radius) == (5, 0)
    image, maps = torch.rand(1, 3, 64, 64) * 255, torch.zeros(1, 3, 64, 64)
    maps[0, 1, 30, 30] = 1
    with torch.inference_mode():
        assert not torch.allclose(disks(image, maps), distances(image, maps))


def test_features_serve_any_number_of_prompts_unchanged() -> None:
    """Neither features nor maps change, and no tensor but parameters stays on the network."""
    torch.manual_seed(0)
    network = SegNext(TINY).eval()
    held = set(vars(network)) | {name for name, _ in network.named_buffers()}
    features = network.encode(torch.rand(2, 3, 64, 64) * 255)
    maps = torch.rand(2, 3, 64, 64)
    before = [x.clone() for x in (*features, maps)]
    first, quality = network.decode(network.fuse(features, maps))
    again, _ = network.decode(network.fuse(features, maps))
    assert torch.equal(first, again)
    assert quality is None
    assert first.shape == (2, 1, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(before, (*features, maps), strict=True))
    assert set(vars(network)) | {name for name, _ in network.named_buffers()} == held


def test_every_parameter_but_fc_norm_learns() -> None:
    """Gradients reach all parameters; fc_norm and position slot 0 are leftovers of the official files."""
    network = SegNext(TINY)
    network(torch.rand(1, 3, 64, 64) * 255, torch.rand(1, 3, 64, 64)).sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None]
    assert still == ["backbone.fc_norm.weight", "backbone.fc_norm.bias"]
    assert network.backbone.pos_embed.grad[0, 0].abs().sum() == 0


def test_a_config_survives_json() -> None:
    """Safetensors metadata hold the config as JSON."""
    config = SegNextConfig.vit_b(2)
    assert SegNextConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 1000}, r"depth must lie in 1\.\.64, got 1000"),
        ({"size": 1000}, "size must be a multiple of 32 pixels, got 1000"),
        ({"heads": 7}, "dim 768 is no multiple of its 7 and 12 heads"),
        ({"neck_dims": (1, 2)}, r"neck has 4 levels, got neck_dims \(1, 2\)"),
        ({"fit": "stretch"}, "fit is 'letterbox' or 'official', got 'stretch'"),
        ({"regions": "both"}, "regions is 'prior' or 'channel', got 'both'"),
    ],
)
def test_impossible_geometry_is_refused(change, message) -> None:
    """Each limit names itself and what came."""
    with pytest.raises(ValueError, match=message):
        SegNextConfig(**change)
