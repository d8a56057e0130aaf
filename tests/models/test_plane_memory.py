"""The memory of other planes starts as the network, prefers what is near, and survives its file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from napari_lowlat_seg.models.compact import Compact, CompactConfig
from napari_lowlat_seg.models.plane_memory import SLOTS, MemoryConfig, PlaneMemory, slot_features
from small_memory import small_memory, small_network


@pytest.fixture(scope="module")
def network() -> Compact:
    return small_network()


@pytest.fixture(scope="module")
def memory(network: Compact) -> PlaneMemory:
    return small_memory(network)


def _described(steps: float = 1.0) -> torch.Tensor:
    shape = (1, SLOTS)
    no = torch.zeros(shape, dtype=torch.bool)
    return slot_features(torch.full(shape, steps), torch.full(shape, 4 * steps), no, no)


@torch.inference_mode()
def test_untrained_memory_predicts_as_the_network_does_from_the_previous_mask(network, memory):
    image = 255 * torch.rand(1, 3, 256, 256)
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 60:120, 80:160] = 1
    features = network.encode(image)
    known = memory.remember(features, mask)
    output = memory(features, [known] * SLOTS, _described())
    maps = torch.cat([mask, torch.zeros(1, 2, 256, 256)], 1)
    expected, _ = network.decode(network.fuse(features, maps))
    torch.testing.assert_close(output.logits, expected, atol=1e-4, rtol=1e-4)
    assert output.presence.shape == output.quality.shape == (1,)


def test_heads_prefer_tokens_nearby_by_the_squared_distance(memory):
    # the products of the position dimensions, but for a constant per query, are -sharpness * distance²
    score = memory.here[1] @ memory.there[:64].T  # head of sharpness 1/8, 8 x 8 pooled tokens
    at = torch.arange(16) - 7.5
    query = torch.stack(torch.meshgrid(at, at, indexing="ij"), -1).view(-1, 1, 2)
    pooled = torch.arange(8) * 2 - 7.0
    key = torch.stack(torch.meshgrid(pooled, pooled, indexing="ij"), -1).view(1, -1, 2)
    expected = -0.125 * ((query - key) ** 2).sum(-1) + 0.125 * (query**2).sum(-1)
    torch.testing.assert_close(score, expected)
    assert torch.equal(memory.there.bfloat16().float(), memory.there)


def test_memory_survives_its_file_and_refuses_others(tmp_path, network, memory):
    path = memory.save(tmp_path / "memory.safetensors", steps="3")
    again = PlaneMemory.load(path, network)
    for name, value in memory.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, atol=2e-3, rtol=2e-3)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        PlaneMemory.load(tmp_path / "bad.safetensors", network)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no memory"):
        PlaneMemory.load(tmp_path / "other.safetensors", network)
    wider = Compact(CompactConfig(size=256, width=64, heads=2, blocks=1, skip8=8, skip4=8))
    with pytest.raises(ValueError, match="does not fit"):
        PlaneMemory.load(path, wider)


def test_memory_config_has_bounds():
    with pytest.raises(ValueError, match="rank must lie in"):
        MemoryConfig(rank=0)
