"""OpenVINO on a processor: predictions as torch's, stored conversion, cancelling, fallback to torch."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from napari_lowlat_seg.core.prompts import Box, Click, Scribble
from napari_lowlat_seg.evaluation.inputs.segmenters import load_segmenter
from napari_lowlat_seg.inference import openvino_backend, runtime
from napari_lowlat_seg.inference.openvino_backend import CompiledStep, ConversionError, compiled_steps
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.io.samples import blobs
from napari_lowlat_seg.models.compact import Compact, CompactConfig
from napari_lowlat_seg.models.network import Network
from napari_lowlat_seg.models.segnext import SegNext, SegNextConfig

if not runtime.has_openvino():  # importing it here would tell its makers
    pytest.skip("needs the extra openvino", allow_module_level=True)

SLIM = CompactConfig(size=256, width=32, heads=2, blocks=1, skip8=16, skip4=8)
CORRECTED = replace(SLIM, quality_slope=3.0, quality_shift=0.5)
TINY = replace(
    SegNextConfig.vit_b(1),
    size=96, dim=32, depth=2, heads=2, fusion_heads=2, neck_dims=(8, 16, 16, 32), head_dim=16,
)  # fmt: skip
FULL = Runtime("cpu", "fp32", openvino=True)


class Small(Network):
    """A few layers, so that converting takes no time; one of them works long enough to be stopped in."""

    def __init__(self, settings: str = "") -> None:
        super().__init__()
        self.size, self.radius, self.fit, self.regions = 128, 3, "letterbox", "channel"  # type: ignore[assignment]
        self.config = settings
        self.look = nn.Conv2d(3, 64, 3, padding=1)
        self.wide = nn.Conv2d(64, 64, 5, padding=2)
        self.hear = nn.Conv2d(3, 64, 3, padding=1)
        self.draw = nn.Conv2d(64, 1, 1)

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        return (torch.tanh(self.wide(torch.relu(self.look(image / 255)))),)

    def fuse(self, features: tuple[Tensor, ...], maps: Tensor) -> tuple[Tensor, ...]:
        return (features[0] + self.hear(maps),)

    def decode(self, fused: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        logits = 9 * self.draw(fused[0])
        return logits, logits.sigmoid().mean((1, 2, 3))


class Odd(Small):
    """Another network while it is traced."""

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        (found,) = super().encode(image)
        return (found + torch.jit.is_tracing(),)


@pytest.fixture
def network() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where converted networks wait during these tests."""
    monkeypatch.setenv("LOWLAT_SEG_CACHE", str(tmp_path))
    return tmp_path / "openvino"


@pytest.fixture
def image() -> np.ndarray:
    return blobs((120, 160))


def steps_of(network: Network) -> tuple[CompiledStep, CompiledStep]:
    """The network's two steps, converted."""
    path = Predictor(network, Runtime(), "off").backend
    return compiled_steps(path.network, path.click, "fp32")


def key_of(network: Network, hint: str = "f32") -> str:
    """The name of the folder where the compiled steps are kept."""
    return openvino_backend._key(network, hint, openvino_backend.openvino().Core())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["compact", "segnext"])
def test_masks_equal_torch_s(image, kind) -> None:
    """Both families, through clicks, a stroke and a box, each fed the answer before.

    The predicted IoU is torch's too, and corrected as torch's is.
    """
    torch.manual_seed(1)
    network: Network = Compact(CORRECTED) if kind == "compact" else SegNext(TINY)
    ours, theirs = Predictor(network, FULL, "off"), Predictor(network, Runtime(), "off")
    assert ours.runtime.openvino
    seen, expected_seen = ours.embed(image), theirs.embed(image)
    prompts = [Click((10, 20)), Scribble([(50, 60), (80, 90)], False), Box((3, 3), (60, 90)), Click((90, 30))]
    found = expected = None
    for count in range(1, 5):
        found = ours.predict(seen, prompts[:count], found)
        expected = theirs.predict(expected_seen, prompts[:count], expected)
        np.testing.assert_allclose(found.probability, expected.probability, rtol=0, atol=1e-5)
        assert found.quality == (None if kind == "segnext" else pytest.approx(expected.quality, abs=1e-5))
    if kind == "segnext":
        return
    torch.manual_seed(1)
    plain = Predictor(Compact(SLIM), Runtime(), "off")
    first, corrected = (one.predict(one.embed(image), prompts[:1]).quality for one in (plain, ours))
    first, corrected = (np.log(said / (1 - said)) for said in (first, corrected))
    assert corrected == pytest.approx(3 * first + 0.5, abs=1e-3)
    assert key_of(plain.network) != key_of(network)


@pytest.mark.slow
def test_many_objects_equal_one_by_one(network, image) -> None:
    """Steps have a fixed shape, so objects take turns."""
    predictor = Predictor(network, FULL, "off")
    embedding = predictor.embed(image)
    asked = [[Click((10, 20))], [Click((50, 60)), Click((90, 90), False)]]
    for prompts, found in zip(asked, predictor.predict_batch(embedding, asked), strict=True):
        expected = predictor.predict(embedding, prompts)
        np.testing.assert_array_equal(found.probability, expected.probability)


@pytest.mark.slow
def test_embeddings_serve_either_way(network, image) -> None:
    """They have one fingerprint, and differ by less than a cache in half precision rounds."""
    ours, theirs = Predictor(network, FULL, "off"), Predictor(network, Runtime(), "off")
    made, expected = ours.embed(image), theirs.embed(image)
    assert made.model == expected.model
    for found, feature in zip(made.features, expected.features, strict=True):
        assert (found - feature).abs().max() < (feature.half().float() - feature).abs().max()
    crossed = theirs.predict(made, [Click((10, 20))]), ours.predict(expected, [Click((10, 20))])
    np.testing.assert_allclose(crossed[0].probability, crossed[1].probability, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_embeddings_of_two_images_do_not_share_memory(network, image) -> None:
    """The next picture is computed where the last one was."""
    predictor = Predictor(network, FULL, "off")
    first = predictor.embed(image)
    kept = [feature.clone() for feature in first.features]
    predictor.embed(255 - image)
    assert all(torch.equal(a, b) for a, b in zip(first.features, kept, strict=True))


@pytest.mark.slow
def test_the_second_start_converts_nothing(network, cache, monkeypatch, caplog) -> None:
    """The first one says how long it took."""
    with caplog.at_level(logging.INFO, openvino_backend.__name__):
        encode, _ = steps_of(network)
    assert "converted for OpenVINO in" in caplog.text
    monkeypatch.setattr(openvino_backend, "_converted", None)
    again, _ = steps_of(network)
    picture = torch.rand(1, 3, 128, 128) * 255
    torch.testing.assert_close(encode(picture), again(picture), rtol=0, atol=0)
    assert {path.name for path in cache.glob("Small-128-*/*")} == {"click", "encode"}


def test_other_weights_or_settings_are_another_network(network) -> None:
    """A graph depends on both."""
    key = key_of(network)
    same, other = Small(), Small("another")
    same.load_state_dict(network.state_dict())
    other.load_state_dict(network.state_dict())
    assert key_of(same) == key
    assert key_of(other) != key
    with torch.no_grad():
        same.draw.bias[0] += 1
    assert key_of(same) != key
    assert key_of(network, "bf16") != key


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["cut", "another byte", "empty", "not ours"])
def test_a_spoilt_copy_is_converted_anew(network, cache, monkeypatch, harm) -> None:
    """A changed byte of a weight would give other masks without a word."""
    steps_of(network)
    spoilt = cache / key_of(network) / "click"
    whole = spoilt.read_bytes()
    middle = len(whole) // 2
    spoilt.write_bytes({
        "cut": whole[:middle],
        "another byte": whole[:middle] + bytes([whole[middle] ^ 64]) + whole[middle + 1 :],
        "empty": b"",
        "not ours": b"<net",
    }[harm])  # fmt: skip
    converted = []
    convert = openvino_backend._converted
    monkeypatch.setattr(openvino_backend, "_converted", lambda *a: converted.append(a) or convert(*a))
    steps_of(network)
    assert len(converted) == 2
    steps_of(network)
    assert len(converted) == 2


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_none(network, tmp_path, monkeypatch) -> None:
    """A file lies where its folder should be."""
    (tmp_path / "openvino").write_text("")
    monkeypatch.setenv("LOWLAT_SEG_CACHE", str(tmp_path))
    assert Predictor(network, FULL, "off").runtime.openvino


def test_converted_networks_unused_for_longest_go(tmp_path) -> None:
    """So that trying models does not fill a disk."""
    names = [f"old-{i}" for i in range(openvino_backend.MAX_CONVERTED + 2)]
    for age, name in enumerate(names):
        (tmp_path / name).mkdir()
        openvino_backend.os.utime(tmp_path / name, (age, age))
    openvino_backend._prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names[2:]


class Stop(Exception):
    """The request is cancelled."""


@pytest.mark.slow
def test_what_is_not_wanted_stops_in_the_middle(network, image, monkeypatch) -> None:
    """And leaves the next answer as it would have been."""
    predictor = Predictor(network, FULL, "off")
    expected = predictor.embed(image)
    monkeypatch.setattr(openvino_backend, "POLL_MS", 0)
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise Stop

    predictor.interrupt_by(look)
    with pytest.raises(Stop):
        predictor.embed(image)
    looks = 10
    for found, feature in zip(predictor.embed(image).features, expected.features, strict=True):
        assert torch.equal(found, feature)


@pytest.mark.slow
def test_other_numbers_than_torchs_are_refused(cache) -> None:
    """A converter's mistake must not draw masks."""
    with pytest.raises(ConversionError, match=r"its encode differs from torch's by 1 at values up to 0\."):
        steps_of(Odd())
    assert not list(cache.glob("Odd-*"))  # nor be found there the next time


def test_a_cancelled_conversion_says_nothing_of_the_network(network, cache) -> None:
    """And leaves nothing behind that was not compared with torch."""
    path = Predictor(network, Runtime(), "off").backend

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        compiled_steps(path.network, path.click, "fp32", check=stop)
    assert not list(cache.glob("*/*"))
    steps_of(network)
    assert list(cache.glob("*/*"))


def test_torch_is_used_where_openvino_fails(network, image, monkeypatch) -> None:
    """After one warning."""
    expected = Predictor(network, Runtime(), "off")

    def broken() -> None:
        raise ImportError("libtbb.so.12: no such file\nand more")

    monkeypatch.setattr(openvino_backend, "openvino", broken)
    with pytest.warns(
        UserWarning, match=r"OpenVINO does not run this network \(libtbb.so.12: no such file\), so torch does"
    ) as warned:
        predictor = Predictor(network, FULL, "off")
    assert len(warned) == 1
    assert predictor.runtime == replace(FULL, openvino=False)
    found = predictor.predict(predictor.embed(image), [Click((10, 20))])
    answer = expected.predict(expected.embed(image), [Click((10, 20))])
    np.testing.assert_array_equal(found.probability, answer.probability)


@pytest.mark.parametrize("installed", [True, False])
def test_it_is_used_where_it_is_installed(monkeypatch, installed) -> None:
    """On a processor only."""
    monkeypatch.setattr(runtime, "has_openvino", lambda: installed)
    monkeypatch.setattr(runtime, "available_devices", lambda: ("cuda:0", "cpu"))
    assert Runtime.find("cpu").openvino == installed
    assert not Runtime.find("cuda").openvino


@pytest.mark.slow
def test_telemetry_is_off(run_python) -> None:
    """Importing OpenVINO would send an event."""
    printed = run_python(
        "import sys; from napari_lowlat_seg.inference.openvino_backend import openvino; openvino(); "
        "print([name for name, room in sys.modules.items() if 'openvino_telemetry' in name and room])"
    )
    assert printed == "[]"


@pytest.mark.slow
def test_whole_sequences_draw_the_same_masks() -> None:
    """The embedded model as users have it, 20 clicks: mean IoU with torch in float32 at least 0.995.

    Just converted it gives, bit by bit, what it gives when it is read later: what is kept is read again
    before it is used.
    """
    theirs = load_segmenter("default@torch@fp32@off", device="cpu").predictor  # type: ignore[attr-defined]
    picture = blobs((300, 400))
    places = np.random.default_rng(1).uniform(0, 1, (20, 2)) * (299, 399)
    clicks = [Click((float(r), float(c)), bool(picture[int(r), int(c)] > 128)) for r, c in places]
    made, ours = (Predictor(theirs.network, Runtime.find("cpu"), "off") for _ in range(2))
    assert made.runtime.openvino
    first, again = (one.predict(one.embed(picture), clicks[:2]).probability for one in (made, ours))
    np.testing.assert_array_equal(first, again)
    seen, expected_seen = ours.embed(picture), theirs.embed(picture)
    found = expected = None
    agreement = []
    for count in range(1, 21):
        found = ours.predict(seen, clicks[:count], found)
        expected = theirs.predict(expected_seen, clicks[:count], expected)
        either = found.mask | expected.mask
        agreement.append((found.mask & expected.mask).sum() / either.sum() if either.any() else 1.0)
    assert np.mean(agreement) >= 0.995
