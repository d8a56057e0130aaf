"""The compact model's encoder against naive forms of itself."""

import pytest
import torch
from torch import Tensor

from napari_lowlat_seg.models.tinyvit import (
    UPSTREAM_WINDOWS,
    ChannelNorm,
    TinyViT,
    WindowAttention,
    WindowBlock,
    patch_conv,
    patch_conv_product,
    resize_windows,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def block() -> WindowBlock:
    """Windows of 3 x 3 tokens, two heads, and offset biases that matter."""
    made = WindowBlock(8, 2, 3).eval()
    torch.nn.init.normal_(made.attn.attention_biases)
    torch.nn.init.normal_(made.attn.norm.bias)  # so that a padded token is no zero after the norm
    return made


def naive_attention(attention: WindowAttention, tokens: Tensor, side: int) -> Tensor:
    """One window (N, C), head by head and pair by pair."""
    normed = attention.norm(tokens)
    per_head = attention.qkv(normed).view(len(tokens), attention.heads, 3, -1)  # upstream: q, k, v per head
    heads = []
    for head in range(attention.heads):
        q, k, v = per_head[:, head].unbind(1)
        scores = torch.empty(len(tokens), len(tokens))
        for a in range(len(tokens)):
            for b in range(len(tokens)):
                dy, dx = abs(a // side - b // side), abs(a % side - b % side)
                bias = attention.attention_biases[head, dy * side + dx]
                scores[a, b] = q[a] @ k[b] / q.shape[1] ** 0.5 + bias
        heads.append(scores.softmax(1) @ v)
    return attention.proj(torch.cat(heads, 1))


@torch.no_grad()
def test_attention_equals_every_pair_of_tokens_in_turn(block: WindowBlock) -> None:
    """Two windows at once against the sum written out."""
    tokens = torch.randn(2, 9, 8)
    expected = torch.stack([naive_attention(block.attn, one, 3) for one in tokens])
    torch.testing.assert_close(block.attn(tokens), expected)


@pytest.mark.parametrize("shape", [(6, 9), (3, 3), (7, 8), (4, 3), (1, 2)])
@torch.no_grad()
def test_a_block_equals_window_by_window(block: WindowBlock, shape: tuple[int, int]) -> None:
    """Maps that tile, and maps whose last windows are filled up with zeros that are attended to."""
    rows, cols = shape
    x = torch.randn(2, 8, rows, cols)
    mixed = torch.zeros(2, 8, rows, cols)
    for sample in range(2):
        for top in range(0, rows, 3):
            for left in range(0, cols, 3):
                window = torch.zeros(3, 3, 8)
                seen = x[sample, :, top : top + 3, left : left + 3].permute(1, 2, 0)
                window[: seen.shape[0], : seen.shape[1]] = seen
                answer = naive_attention(block.attn, window.view(9, 8), 3).view(3, 3, 8)
                mixed[sample, :, top : top + 3, left : left + 3] = answer[
                    : seen.shape[0], : seen.shape[1]
                ].permute(2, 0, 1)
    local = block.local_conv(x + mixed).permute(0, 2, 3, 1)
    expected = (local + block.mlp(local)).permute(0, 3, 1, 2)
    torch.testing.assert_close(block(x), expected)


@torch.no_grad()
def test_channel_norm_equals_the_formula() -> None:
    """Mean and variance over channels, eps under the root."""
    norm = ChannelNorm(5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 3, 4) * 1e-3  # small, so that eps counts
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    expected = scaled * norm.weight.view(1, 5, 1, 1) + norm.bias.view(1, 5, 1, 1)
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("windows", [UPSTREAM_WINDOWS, (8, 16, 8)])
@torch.no_grad()
def test_the_maps_are_a_quarter_an_eighth_and_a_sixteenth(windows: tuple[int, int, int]) -> None:
    """Also of a picture whose maps no window tiles."""
    encoder = TinyViT(windows).eval()
    shapes = [tuple(one.shape) for one in encoder(torch.randn(1, 3, 96, 160))]
    assert shapes == [(1, 64, 24, 40), (1, 128, 12, 20), (1, 256, 6, 10)]


@pytest.mark.parametrize("shape", [(33, 65), (97, 70)])
@torch.no_grad()
def test_an_odd_side_is_rounded_up_at_every_halving(shape: tuple[int, int]) -> None:
    """Every convolution of stride 2 keeps the last row and column."""
    halved = [shape]
    for _ in range(4):
        halved.append(((halved[-1][0] + 1) // 2, (halved[-1][1] + 1) // 2))
    maps = TinyViT().eval()(torch.randn(1, 3, *shape))
    assert [tuple(one.shape[2:]) for one in maps] == halved[2:]


def biases(side: int) -> Tensor:
    """(1, side * side): the bias of offset (dy, dx) is 100 dy + dx."""
    at = torch.arange(side, dtype=torch.float32)
    return (100 * at[:, None] + at[None, :]).reshape(1, -1)


@pytest.mark.parametrize(("old", "new"), [(2, 4), (4, 2)])
def test_known_offsets_are_kept_and_farther_ones_take_the_farthest(old: int, new: int) -> None:
    """From a smaller window to a larger one and back."""
    name = "layers.1.blocks.0.attn.attention_biases"
    network = TinyViT((new, 16, 8))
    state = {name: biases(old)}
    resized = resize_windows(state, network)[name].view(new, new)
    for dy in range(new):
        for dx in range(new):
            assert resized[dy, dx] == 100 * min(dy, old - 1) + min(dx, old - 1)


def test_fitting_windows_changes_nothing_else_and_not_the_state() -> None:
    """The state of the upstream windows loads into ours; tensors without windows are the same objects."""
    upstream, ours = TinyViT(UPSTREAM_WINDOWS), TinyViT()
    state = dict(upstream.state_dict())
    before = {name: value.clone() for name, value in state.items()}
    resized = resize_windows(state, ours)
    ours.load_state_dict(resized)
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert {name for name in state if resized[name] is not state[name]} == {
        name for name in state if name.endswith("attention_biases")
    }


@torch.no_grad()
def test_the_same_windows_need_no_fitting() -> None:
    """Weights and answers stay bit for bit."""
    encoder, other = TinyViT().eval(), TinyViT().eval()
    other.load_state_dict(resize_windows(dict(encoder.state_dict()), other))
    image = torch.randn(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(encoder(image), other(image), strict=True))


@pytest.mark.parametrize(("side", "biased"), [(1, True), (1, False), (2, True), (4, True), (3, True)])
def test_a_convolution_in_tiles_is_a_product(side: int, biased: bool) -> None:
    """In either layout of maps and weights; what does not fill a tile is left out."""
    conv = torch.nn.Conv2d(5, 7, side, side, bias=biased)
    x = torch.randn(2, 5, 12, 17)
    for laid in (torch.contiguous_format, torch.channels_last):
        found = patch_conv_product(conv.to(memory_format=laid), x.contiguous(memory_format=laid))  # type: ignore[call-overload]
        torch.testing.assert_close(found, conv(x), rtol=1e-5, atol=1e-6)
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(patch_conv(conv, x), conv(x))


@torch.no_grad()
def test_kept_biases_change_nothing(block: WindowBlock) -> None:
    """They are gathered once, and are not in a file."""
    x, names = torch.randn(2, 8, 6, 6), set(block.state_dict())
    expected = block(x)
    block.attn.keep_bias()
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)
    assert set(block.state_dict()) == names
