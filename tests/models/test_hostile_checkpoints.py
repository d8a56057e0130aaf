"""Hostile and broken model files are refused in one sentence; those that torch writes load."""

import json
import re
from pathlib import Path

import pytest
import torch

from hostile.case import sentence
from hostile.checkpoints import ARCHIVES, CASES, TINY, content, saved
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.models import archives
from napari_lowlat_seg.models.checkpoints import load_file, save_model
from napari_lowlat_seg.models.segnext import SegNext


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    """Before anything is unpacked; nothing is left behind."""
    attempt = CASES[name].prepare(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert re.search(CASES[name].match, sentence(attempt))
    assert sorted(tmp_path.iterdir()) == before


def test_the_table_is_long() -> None:
    """As many rows as the security page says, none twice."""
    assert len(CASES) >= 150
    assert len({case.prepare for case in ARCHIVES.values()}) == len(ARCHIVES)


@pytest.mark.slow
def test_no_flipped_bit_loads_unnoticed(tmp_path: Path) -> None:
    """200 of them, everywhere in the file: refused, or without any effect on the network."""
    raw, expected = saved(content()), content()["state_dict"]
    for at in range(7, len(raw), len(raw) // 200):
        changed = bytearray(raw)
        changed[at] ^= 1 << at % 8
        (tmp_path / "some.pth").write_bytes(changed)
        try:
            found = load_file(tmp_path / "some.pth")
        except ValueError:
            continue
        torch.testing.assert_close(found.state_dict(), expected, rtol=0, atol=0)
        assert found.config == TINY


@pytest.mark.parametrize("version", ["2.3.1", "2.9.1+cu128", "1.13.0"])
def test_an_old_torch_reads_safetensors_only(version: str, tmp_path: Path, monkeypatch) -> None:
    """Its `weights_only` can be got around."""
    (tmp_path / "some.pth").write_bytes(saved(content()))
    ours = save_model(SegNext(TINY), tmp_path / "ours.safetensors")
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(
        ValueError, match=r"read with torch 2\.10 or later.*\.safetensors files load with any"
    ):
        load_file(tmp_path / "some.pth")
    assert load_file(ours).config == TINY


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0a0+git"])
def test_a_torch_from_2_10_on_reads_both(version: str, monkeypatch) -> None:
    """By the number of its release."""
    monkeypatch.setattr(torch, "__version__", version)
    archives.check_torch()


@pytest.mark.slow
def test_a_fingerprint_covers_every_weight() -> None:
    """Any one number of any tensor, and what the config says beside the shapes."""
    torch.manual_seed(0)
    network = SegNext(TINY).eval()
    known = {Predictor(network, Runtime()).model}
    for name, weight in network.state_dict().items():
        last = (-1,) * weight.ndim
        before = weight[last].item()
        weight[last] += 1
        assert Predictor(network, Runtime()).model not in known, name
        weight[last] = before
    assert {Predictor(network, Runtime()).model} == known


def test_an_odd_but_finite_config_loads(tmp_path: Path) -> None:
    """Whole numbers where fractions may stand."""
    path = save_model(SegNext(TINY), tmp_path / "a.safetensors")
    raw = path.read_bytes()
    changed = raw.replace(json.dumps(4.0).encode(), b"4  ", 1)
    assert changed != raw
    path.write_bytes(changed)
    assert load_file(path).config.mlp_ratio == 4
