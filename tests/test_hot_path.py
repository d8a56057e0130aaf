"""The hot path: many questions at once, memory that runs out, resizing as matrices, and what it is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_lowlat_seg import runtime
from napari_lowlat_seg.frame import Frame
from napari_lowlat_seg.hot_path import HotPath, _lifting, from_square
from napari_lowlat_seg.model.checkpoints import save_model
from napari_lowlat_seg.model.compact import Compact, CompactConfig
from napari_lowlat_seg.model.pyramid import _resizing
from napari_lowlat_seg.model.segnext import SegNext, SegNextConfig
from napari_lowlat_seg.official_form import OfficialForm
from napari_lowlat_seg.predictor import Predictor, load_predictor, suited
from napari_lowlat_seg.prompts import Box, Click, Scribble, dense_maps
from napari_lowlat_seg.raster import disks
from napari_lowlat_seg.runtime import Runtime

TINY = replace(
    SegNextConfig.vit_b(2),
    size=96, dim=32, depth=2, heads=2, fusion_heads=2, neck_dims=(8, 16, 16, 32), head_dim=16,
)  # fmt: skip


@pytest.fixture
def network() -> SegNext:
    torch.manual_seed(0)
    return SegNext(TINY)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (60, 80), np.uint8)


def test_ours_equals_the_published_form(network, image) -> None:
    """Through four clicks, each fed the answer before."""
    official, ours = OfficialForm(network, "cpu", "official"), Predictor(network, Runtime(), "off")
    theirs, embedding = official.embed(image), ours.embed(image)
    clicks = [Click((10, 20)), Click((50, 60), False), Click((40, 40)), Click((59, 79), False)]
    expected = found = None
    for count in range(1, 5):
        expected = official.predict(theirs, clicks[:count], expected)
        found = ours.predict(embedding, clicks[:count], found)
        np.testing.assert_allclose(found.probability, expected.probability, rtol=0, atol=2e-6)
        np.testing.assert_array_equal(expected.mask, expected.probability > 0.49)


def test_many_objects_at_once_equal_one_by_one(network, image) -> None:
    """With and without earlier answers."""
    predictor = Predictor(network, Runtime(), "off")
    embedding = predictor.embed(image)
    asked = [
        [Click((10, 20))],
        [Click((50, 60)), Scribble([(5, 5), (20, 9)], False)],
        [Box((3, 3), (40, 50))],
    ]
    earlier = [None, predictor.predict(embedding, asked[1][:1]), None]
    together = predictor.predict_batch(embedding, asked, earlier)
    for prompts, previous, found in zip(asked, earlier, together, strict=True):
        expected = predictor.predict(embedding, prompts, previous)
        np.testing.assert_array_equal(found.probability, expected.probability)
        np.testing.assert_array_equal(found.mask, expected.mask)
    assert [found.mask.shape for found in predictor.predict_batch(embedding, asked)] == [(60, 80)] * 3


def test_a_batch_needs_an_earlier_answer_or_none_for_each(network, image) -> None:
    """Lists of different lengths are a mistake."""
    predictor = Predictor(network, Runtime(), "off")
    with pytest.raises(ValueError, match="a previous prediction or None for each of 1 objects, got 2"):
        predictor.predict_batch(predictor.embed(image), [[Click((1, 1))]], [None, None])


class Full(HotPath):
    """A device without memory."""

    def embed(self, plane, frame):  # type: ignore[no-untyped-def]
        raise torch.cuda.OutOfMemoryError("full")

    def draw(self, features, frame, questions):  # type: ignore[no-untyped-def]
        raise torch.cuda.OutOfMemoryError("full")


def test_out_of_memory_goes_on_with_the_processor(network, image) -> None:
    """One warning, and the answer of a predictor that was there all the time."""
    expected = Predictor(network, Runtime(), "off")
    embedding = expected.embed(image)
    predictor = Predictor(network, Runtime(), "off", name="mine")
    predictor.hot_path = Full(network, Runtime())
    with pytest.warns(
        UserWarning, match="cpu is out of memory, so mine goes on with the processor"
    ) as warned:
        found = predictor.predict(predictor.embed(image), [Click((10, 20))])
    assert len(warned) == 1
    answer = expected.predict(embedding, [Click((10, 20))])
    np.testing.assert_array_equal(found.probability, answer.probability)
    predictor.hot_path = Full(network, Runtime())
    with pytest.warns(UserWarning, match="out of memory"):
        again = predictor.predict(embedding, [Click((10, 20))])
    np.testing.assert_array_equal(again.probability, answer.probability)


def test_warming_up_changes_no_answer(network, image) -> None:
    """It is a picture and a click of its own."""
    predictor = Predictor(network, Runtime(), "off")
    before = predictor.predict(predictor.embed(image), [Click((10, 20))]).probability
    predictor.warm_up()
    np.testing.assert_array_equal(
        before, predictor.predict(predictor.embed(image), [Click((10, 20))]).probability
    )


@pytest.mark.parametrize(
    ("frame", "aligned"),
    [
        (Frame((48, 85), 128, (0, 0, 48, 85), "official"), True),
        (Frame((48, 85), 64, (10, 20, 30, 40)), False),
        (Frame((50, 50), 128, (0, 0, 50, 50)), False),
        (Frame((7, 80), 32, (0, 0, 7, 80)), False),
    ],
)
def test_resizing_as_matrices_equals_resizing(frame, aligned) -> None:
    """Logits on 32 x 32 to a stretched plane, a crop, a full square and a strip."""
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 32, 32)
    between = frame.size != 32 and (aligned or frame.content != (frame.size, frame.size))
    axes = [
        _lifting(shown, crop, 32, frame.size, between, aligned, logits.device)
        for shown, crop in zip(frame.content, frame.crop[2:], strict=True)
    ]
    found = axes[0] @ logits @ axes[1].t()
    torch.testing.assert_close(found, from_square(logits, frame, aligned), rtol=0, atol=2e-6)


def test_bilinear_weights_are_exact_in_half_precision() -> None:
    """They are sixteenths, so the sum of the pyramid loses nothing by them."""
    full = _resizing(8, 64, torch.float32, torch.device("cpu"))
    assert torch.equal(_resizing(8, 64, torch.float16, torch.device("cpu")).float(), full)


def test_stroke_maps_equal_disks_one_by_one() -> None:
    """Clicks at the border and outside the crop included."""
    frame = Frame((50, 60), 32, (10, 10, 30, 30))
    clicks = [Click((10, 10)), Click((0, 0)), Click((39, 39), False), Click((25, 30))]
    expected = np.zeros((3, 32, 32), np.float32)
    rows, cols = np.ogrid[:32, :32]
    for click in clicks:
        row, col = frame.pixels([click.at])[0]
        expected[1 if click.positive else 2][(rows - row) ** 2 + (cols - col) ** 2 <= 9] = 1
    np.testing.assert_array_equal(dense_maps(clicks, frame, radius=3), expected)


def test_a_disk_needs_a_radius() -> None:
    """Negative ones are a mistake."""
    with pytest.raises(ValueError, match="a disk needs a radius of 0 or more pixels; got -1"):
        disks(np.zeros((1, 2), np.int64), -1, 8)


def test_shortcuts_are_for_networks_that_were_checked(network, tmp_path, monkeypatch) -> None:
    """The default model takes them where the processor has them, a SegNext keeps torch and float32."""
    monkeypatch.setattr(runtime, "has_bf16", lambda: True)
    monkeypatch.setattr(runtime, "has_openvino", lambda: True)
    found = Runtime.find("cpu")
    assert suited(found, Compact(CompactConfig(size=256))) == Runtime("cpu", "bf16", openvino=True)
    path = save_model(network, tmp_path / "mine.safetensors")
    assert load_predictor(str(path), "cpu").runtime == Runtime("cpu", "fp32")
