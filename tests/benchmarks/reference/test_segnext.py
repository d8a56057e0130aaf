"""SegNext's published form beside this package's, on small networks."""

from dataclasses import replace

import pytest
import torch

from benchmarks.reference import segnext
from napari_lowlat_seg.models.segnext import SegNextConfig

SMALL = replace(
    SegNextConfig.vit_b(2),
    size=96, dim=32, depth=2, heads=2, fusion_heads=2, neck_dims=(8, 16, 16, 32), head_dim=16,
)  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of the same shape that takes milliseconds."""
    monkeypatch.setattr(SegNextConfig, "vit_b", lambda fusion_blocks: SMALL)


def test_both_forms_have_the_same_random_weights() -> None:
    """Whatever was drawn before."""
    official = segnext.official("cpu")
    torch.rand(1)
    ours = segnext.ours("cpu")
    assert (official.name, ours.name) == ("SegNext, official", "SegNext, ours")
    pairs = zip(official.network.parameters(), ours.predictor.network.parameters(), strict=True)
    assert all(torch.equal(one, other.float()) for one, other in pairs)
    assert ours.form.startswith("random weights, ")


def test_the_compiled_form_uses_the_compiler() -> None:
    """And is otherwise ours."""
    assert segnext.compiled("cpu").predictor.runtime.compiled
    assert not segnext.ours("cpu").predictor.runtime.compiled
