"""The second encoder: what it adds, and weights of other patches and grids laid on its own."""

import numpy as np
import pytest
import torch

from napari_lowlat_seg.models.compact import Compact, CompactConfig
from napari_lowlat_seg.models.vit import Dino, resample

BOTH = CompactConfig(
    size=256, width=32, heads=2, skip8=16, skip4=8, blocks=1, vit_depth=4, vit_width=64
)  # fmt: skip


def filled(network: torch.nn.Module) -> None:
    """Random values everywhere, also where fresh weights are zero."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)


@torch.inference_mode()
def test_a_fresh_second_encoder_adds_nothing_and_a_trained_one_does() -> None:
    """The deep map changes, the skips do not."""
    torch.manual_seed(0)
    network = Compact(BOTH).eval()
    assert network.vit is not None
    image = torch.rand(1, 3, 256, 256) * 255
    before = network.encode(image)
    alone = network.deep(network.encoder((image - network.mean) / network.std)[2])
    torch.testing.assert_close(before[0], alone, rtol=0, atol=0)
    filled(network.vit)
    after = network.encode(image)
    assert after[0].shape == before[0].shape
    assert not torch.allclose(after[0], before[0])
    assert all(torch.equal(a, b) for a, b in zip(after[1:], before[1:], strict=True))


@torch.inference_mode()
def test_tokens_lie_where_their_patches_are() -> None:
    """Without attention to others (no block changes anything) a changed patch changes its own place only."""
    torch.manual_seed(0)
    vit = Dino(256, 64, 4, 8).eval()
    filled(vit)
    for block in vit.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            torch.nn.init.zeros_(layer.weight)
    image = torch.rand(1, 3, 256, 256)
    other = image.clone()
    other[:, :, 3 * 16 : 4 * 16, 9 * 16 : 10 * 16] = 0
    changed = (vit(other) - vit(image)).abs().amax((0, 1))
    assert np.argwhere(changed.numpy() > 1e-6).tolist() == [[3, 9]]


def test_four_depths_are_read() -> None:
    """The last block's tokens and those of three before it: each moves the answer."""
    torch.manual_seed(0)
    vit = Dino(256, 64, 8, 8)
    filled(vit)
    (gradient,) = torch.autograd.grad(vit(torch.rand(1, 3, 256, 256)).square().sum(), vit.join.weight)
    assert [float(part.abs().sum()) > 0 for part in gradient.chunk(4, 1)] == [True] * 4


@torch.inference_mode()
def test_an_enlarged_patch_gives_the_token_of_the_small_one() -> None:
    """A smooth picture under 14 x 14 kernels, and the same enlarged to 16 x 16 under the resampled ones."""
    torch.manual_seed(0)
    network = Dino(256, 64, 4, 8)
    state = dict(network.state_dict())
    state["patch_embed.proj.weight"] = torch.randn(64, 3, 14, 14)
    laid = resample(state, network)
    small = torch.rand(5, 3, 14, 14)
    large = torch.nn.functional.interpolate(small, (16, 16), mode="bilinear")
    before = torch.einsum("bchw,dchw->bd", small, state["patch_embed.proj.weight"])
    after = torch.einsum("bchw,dchw->bd", large, laid["patch_embed.proj.weight"])
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-3)


def test_positions_keep_their_place_on_another_grid() -> None:
    """A ramp of positions stays one to a twentieth of a token (bicubic); the class slot is kept."""
    network = Dino(256, 64, 4, 8)
    ramp = (torch.arange(20) + 0.5) / 20
    grid = ramp[:, None, None].expand(20, 20, 64)
    positions = torch.cat([torch.full((1, 1, 64), 7.0), grid.reshape(1, 400, 64)], 1)
    state = {**network.state_dict(), "pos_embed": positions}
    laid = resample(state, network)["pos_embed"]
    assert laid.shape == (1, 257, 64)
    assert torch.equal(laid[:, 0], positions[:, 0])
    inner = laid[0, 1:, 0].view(16, 16)[2:-2]
    expected = ((torch.arange(16) + 0.5) / 16)[2:-2, None].expand(-1, 16)
    torch.testing.assert_close(inner, expected, rtol=0, atol=0.05 / 16)
    assert state["pos_embed"] is positions


def test_own_patches_and_grid_stay_as_they_are() -> None:
    """Nothing is resampled that fits."""
    network = Dino(256, 64, 4, 8)
    state = dict(network.state_dict())
    assert all(torch.equal(state[name], value) for name, value in resample(state, network).items())


def test_depths_and_widths_that_do_not_divide_are_refused() -> None:
    """Four depths are read, a head has 64 channels."""
    with pytest.raises(ValueError, match=r"vit_depth in steps of 4 .* got vit_depth 6, vit_width 384"):
        CompactConfig(vit_depth=6)
    with pytest.raises(ValueError, match=r"vit_width in steps of 64, got vit_depth 4, vit_width 100"):
        CompactConfig(vit_depth=4, vit_width=100)


@torch.inference_mode()
def test_the_ablation_without_disks_gives_other_masks() -> None:
    """It asks for single pixels; regions keep their place as lesser values."""
    torch.manual_seed(0)
    small = {"size": 256, "width": 32, "heads": 2, "skip8": 16, "skip4": 8, "blocks": 1}
    disks = Compact(CompactConfig(**small)).eval()  # type: ignore[arg-type]
    distances = Compact(CompactConfig(**small, disks=False)).eval()  # type: ignore[arg-type]
    distances.load_state_dict(disks.state_dict())
    assert (disks.radius, distances.radius) == (3, 0)
    image, maps = torch.rand(1, 3, 256, 256) * 255, torch.zeros(1, 3, 256, 256)
    maps[0, 1, 30, 30] = 1
    assert not torch.allclose(disks(image, maps), distances(image, maps))
