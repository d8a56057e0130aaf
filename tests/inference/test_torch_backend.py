"""The torch backend: many objects at once, memory that runs out, resizing as matrices, and its inputs."""

from __future__ import annotations

import copy
import weakref
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from benchmarks.reference.segnext import OfficialSegNext
from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Box, Click, Scribble, dense_maps
from napari_lowlat_seg.core.raster import disks
from napari_lowlat_seg.inference import runtime
from napari_lowlat_seg.inference.predictor import Predictor, load_predictor, suited
from napari_lowlat_seg.inference.recorded_step import RecordedStep
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.inference.torch_backend import BATCH, STEPS, TorchBackend
from napari_lowlat_seg.models.checkpoints import save_model
from napari_lowlat_seg.models.compact import Compact, CompactConfig
from napari_lowlat_seg.models.segnext import SegNext, SegNextConfig, _bilinear_matrix

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
    official, ours = OfficialSegNext(network, "cpu", "official"), Predictor(network, Runtime(), "off")
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


def test_a_network_is_shown_a_scribble_in_its_own_way(network, image) -> None:
    """As dots along it, or as the line that it is."""
    predictor = Predictor(network, Runtime(), "off")
    embedding = predictor.embed(image)
    line = Scribble([(5, 5), (5, 69)])
    network.dots = 2
    dots = predictor.predict(embedding, [Click((5, 21)), Click((5, 53))])
    np.testing.assert_array_equal(predictor.predict(embedding, [line]).probability, dots.probability)
    network.dots = 0
    assert (predictor.predict(embedding, [line]).probability != dots.probability).any()


def test_a_batch_needs_a_previous_prediction_or_none_for_each(network, image) -> None:
    """Lists of different lengths are a mistake."""
    predictor = Predictor(network, Runtime(), "off")
    with pytest.raises(ValueError, match="a previous prediction or None for each of 1 objects, got 2"):
        predictor.predict_batch(predictor.embed(image), [[Click((1, 1))]], [None, None])


class Full(TorchBackend):
    """A device without memory."""

    def embed(self, plane, frame):  # type: ignore[no-untyped-def]
        raise torch.cuda.OutOfMemoryError("full")

    def predict(self, features, frame, objects):  # type: ignore[no-untyped-def]
        raise torch.cuda.OutOfMemoryError("full")


def test_out_of_memory_goes_on_with_the_processor(network, image) -> None:
    """One warning, and the answer of a predictor that was there all the time."""
    expected = Predictor(network, Runtime(), "off")
    embedding = expected.embed(image)
    predictor = Predictor(network, Runtime(), "off", name="mine")
    predictor.backend = Full(network, Runtime())
    with pytest.warns(
        UserWarning, match="cpu is out of memory, so mine continues on the processor"
    ) as warned:
        found = predictor.predict(predictor.embed(image), [Click((10, 20))])
    assert len(warned) == 1
    answer = expected.predict(embedding, [Click((10, 20))])
    np.testing.assert_array_equal(found.probability, answer.probability)
    predictor.backend, predictor._memory = Full(network, Runtime()), object()  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="out of memory"):
        again = predictor.predict(embedding, [Click((10, 20))])
    np.testing.assert_array_equal(again.probability, answer.probability)
    assert predictor._memory is None  # it was where memory has run out, and is loaded again when needed


def test_a_step_is_recorded_on_the_device_of_its_inputs(monkeypatch) -> None:
    """On a stream of that device: torch's own is one of whichever device was used first."""
    entered = []

    class Stream:
        def __init__(self, device):  # type: ignore[no-untyped-def]
            self.device = device

        def wait_stream(self, other):  # type: ignore[no-untyped-def]
            pass

    @contextmanager
    def within(*_, stream, **__):  # type: ignore[no-untyped-def]
        entered.append(stream.device)
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within(stream=stream))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", within)
    recorded = RecordedStep(lambda x: (x + 1,), (torch.zeros(2, device="meta"),))
    assert [output.device for output in recorded.outputs] == entered[:1] == entered[1:]


class Steps:
    """A recording that runs its step when it is replayed, into the same tensors every time."""

    def __init__(self, step, inputs):  # type: ignore[no-untyped-def]
        self.inputs, self._step = inputs, step
        self.outputs = step(*inputs)

    def replay(self):  # type: ignore[no-untyped-def]
        for kept, made in zip(*map(tree_leaves, (self.outputs, self._step(*self.inputs))), strict=True):
            kept.copy_(made)
        return self.outputs


class Pretended(Runtime):
    """A processor that is used as a GPU is; what is downloaded arrives only when it is called for."""

    on_cuda = True  # type: ignore[assignment]

    def upload(self, array):  # type: ignore[no-untyped-def]
        return torch.from_numpy(array.copy())

    def downloading(self, *tensors):  # type: ignore[no-untyped-def]
        sent = [tensor.clone() for tensor in tensors]
        return lambda: [tensor.numpy() for tensor in sent]


class Recorded(TorchBackend):
    """The steps of a GPU without one."""

    def _recording(self, step, inputs):  # type: ignore[no-untyped-def]
        return Steps(step, inputs)


def test_recorded_steps_equal_plain_ones(network, image) -> None:
    """One, and more than two batches; all kinds of prompts; earlier answers; after a question that fails."""
    plain, path = Predictor(network, Runtime(), "off"), Recorded(network, Pretended())
    embedding = plain.embed(image)
    features = path.embed(image, embedding.frame)
    torch.testing.assert_close(features, embedding.features, rtol=0, atol=0)
    kinds = [
        [Click((10, 20)), Click((50, 60), False)],
        [Scribble([(5, 5), (20, 9)], False), Click((30.5, 79.4))],
        [Box((3, 3), (40, 50))],
        [Click((0, 0)), Box((13, 3), (40, 50))],
    ]
    for count in (1, 2, 2 * BATCH + 3):
        asked = [kinds[i % len(kinds)] for i in range(count)]
        earlier = [plain.predict(embedding, kinds[0]) if i % 3 == 1 else None for i in range(count)]
        with pytest.raises(ValueError, match="is outside the plane"):
            path.predict(features, embedding.frame, [(asked[0], None), ([Click((99, 0))], None)])
        objects = [(prompts, before and before.soft) for prompts, before in zip(asked, earlier, strict=True)]
        predictions = path.predict(features, embedding.frame, objects)
        assert len(predictions) == count
        for prompts, before, prediction in zip(asked, earlier, predictions, strict=True):
            expected = plain.predict(embedding, prompts, before)
            np.testing.assert_allclose(prediction.soft.numpy(), expected.probability, rtol=0, atol=2e-6)
            np.testing.assert_array_equal(prediction.mask, prediction.soft.numpy() > 0.49)
    assert all(not path._steps[name].inputs[0].any() for name in ("click", "clicks"))


def test_a_network_leaves_a_full_device_before_it_needs_more_room(network, image, monkeypatch) -> None:
    """What has been recorded and what the failed work held are gone by then; its check goes with it."""
    expected, predictor = (
        Predictor(copy.deepcopy(network), Runtime(), "off"),
        Predictor(network, Runtime(), "off"),
    )
    full = predictor.backend = Recorded(network, Pretended())
    checks: list[int] = []
    predictor.interrupt_by(lambda: checks.append(1))
    embedding = predictor.embed(image)
    predictor.predict(embedding, [Click((10, 20))])
    assert list(full._steps) == ["embed", "click"]
    held: list[weakref.ref[torch.Tensor]] = []
    events: list[str] = []

    def squares(plane, frames):  # type: ignore[no-untyped-def]
        filling = torch.zeros(3)
        held.append(weakref.ref(filling))
        raise torch.cuda.OutOfMemoryError("full")

    def moved(device, dtype=None):  # type: ignore[no-untyped-def]
        assert not full._steps
        assert [filling() for filling in held] == [None]
        events.append(f"to {device}, {dtype}")
        return network

    monkeypatch.setattr(full, "_squares", squares)
    monkeypatch.setattr(network, "to", lambda *a, **k: moved(*a) if a else network)
    monkeypatch.setattr(network, "float", lambda: events.append("float"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("freed"))
    with pytest.warns(UserWarning, match="out of memory"):
        found = predictor.embed(image)
    assert events == ["to cpu, None", "freed", "to cpu, torch.float32"]
    torch.testing.assert_close(found.features, expected.embed(image).features, rtol=0, atol=0)
    assert len(checks) > len(list(network.modules())) // 2
    checks.clear()
    predictor.predict(embedding, [Click((10, 20))])  # one that was made before
    layers = [hooks for module in network.modules() if (hooks := module._forward_pre_hooks)]
    assert checks
    assert all(len(hooks) == 1 for hooks in layers)
    checks.clear()
    predictor.backend.check()
    assert checks == [1]


SMALL = CompactConfig(size=256, width=32, heads=2, blocks=1, skip8=8, skip4=8)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_recorded_closer_look_equals_two_steps(precision) -> None:
    """Embedded and clicked at once, laid over the whole plane or not, and what is kept of it afterwards."""
    torch.manual_seed(0)
    network = Compact(SMALL)
    image = np.random.default_rng(0).integers(0, 255, (90, 120), np.uint8)
    plain = TorchBackend(network, Runtime())
    path = Recorded(copy.deepcopy(network), Pretended(precision=precision))
    whole = Frame.whole(image.shape, 256)
    features = plain.embed(image, whole)
    [around] = plain.predict(features, whole, [([Click((20, 30))], None)])
    there = replace(around, soft=torch.from_numpy(around.soft).to(path.runtime.dtype), host_mask=None)
    tolerance = 2e-6 if precision == "fp32" else 5e-3
    for top, share in ((10, 0.4), (25, 0.0), (0, 0.4)):
        crop = replace(whole, crop=(top, 12, 40, 40))
        question = ([Click((top + 9.0, 30))], around.soft)
        for over, ours_over in ((around, there), (None, None)):
            kept, expected = plain.look(image, crop, question, over, share)
            made, found = path.look(image, crop, question, ours_over, share)
            path.look(image, replace(whole, crop=(3, 3, 50, 50)), question)  # the next one, before the wait
            torch.testing.assert_close(
                [x.float() for x in made], list(kept), rtol=0, atol=1e-5 if precision == "fp32" else 0.05
            )
            ours, theirs = found(), expected()
            assert ours.frame == theirs.frame
            assert ours.quality == pytest.approx(theirs.quality, abs=tolerance)
            assert ours.shape == theirs.shape == (whole.shape if over else (40, 40))
            np.testing.assert_allclose(ours.probability, theirs.probability, rtol=0, atol=tolerance)
            np.testing.assert_array_equal(ours.mask, ours.soft.numpy() > 0.49)
    assert not path._steps["look"].inputs[1].any()


@pytest.mark.parametrize("count", [1, 3, BATCH + 2])
def test_looks_along_an_outline_at_once_equal_one_by_one(count) -> None:
    """More than a batch, too; of other shapes, and on a processor, there are none."""
    torch.manual_seed(0)
    network = Compact(SMALL)
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    plain, path = TorchBackend(network, Runtime()), Recorded(copy.deepcopy(network), Pretended())
    whole = Frame.whole(image.shape[:2], 256)
    [before] = plain.predict(plain.embed(image, whole), whole, [([Click((20, 30))], None)])
    crops = [replace(whole, crop=(at, 2 * at, 60, 40)) for at in range(count)]
    strokes = [[Click((20.0, 30.0)), Scribble([(12, 25), (30, 31)], False)][: at % 3] for at in range(count)]
    found = path.looks(image, crops, strokes, torch.from_numpy(before.soft))
    assert found is not None
    for crop, own, ours in zip(crops, strokes, found, strict=True):
        theirs = plain.look(image, crop, (own, before.soft))[1]()
        assert ours.frame == theirs.frame == crop
        assert ours.quality == pytest.approx(theirs.quality, abs=1e-5)
        np.testing.assert_allclose(ours.probability, theirs.probability, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(ours.mask, ours.soft.numpy() > 0.49)
    assert not path._steps["looks"].inputs[1].any()
    other = replace(whole, crop=(0, 0, 50, 50))
    assert path.looks(image, [*crops, other], [*strokes, []], before.soft) is None
    assert plain.looks(image, crops, strokes, before.soft) is None


def test_steps_are_recorded_when_a_model_is_loaded(network, monkeypatch) -> None:
    """All of them, or none of closer looks where there will be none; the largest may lack memory."""
    path = Recorded(network, Pretended())
    path.warm_up(looks=False)
    assert list(path._steps) == ["embed", "click", "clicks"]
    record = path._record

    def small(name: str) -> object:
        if name in lacking:
            raise torch.cuda.OutOfMemoryError("full")
        return record(name)

    monkeypatch.setattr(path, "_record", small)
    lacking = {"looks"}
    path.warm_up()
    assert set(path._steps) == set(STEPS) - lacking
    lacking = set()
    crop = replace(Frame.whole((60, 80), 96), crop=(0, 0, 40, 40))
    assert path.looks(np.zeros((60, 80), np.uint8), [crop, crop], [[], []], np.zeros((60, 80))) is None
    assert "looks" not in path._steps  # it is not tried again
    lacking = {"look"}
    del path._steps["look"]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        path.warm_up()


def test_out_of_memory_in_a_batch_loses_no_prediction(network, image) -> None:
    """What was started before arrives, in order, the rest is answered one at a time, later ones at once."""

    class Small(Recorded):
        started = 0

        def _start(self, features, frame, objects):  # type: ignore[no-untyped-def]
            self.started += 1
            if self.started > 1 and len(objects) > 1:
                raise torch.cuda.OutOfMemoryError("full")
            return super()._start(features, frame, objects)

    plain, path = Predictor(network, Runtime(), "off"), Small(network, Pretended())
    embedding = plain.embed(image)
    asked = [[Click((float(i), 20))] for i in range(2 * BATCH)]
    predictions = path.predict(embedding.features, embedding.frame, [(prompts, None) for prompts in asked])
    assert path.started == 1 + 1 + BATCH
    path.started = -1  # memory suffices again, and the step that was given up is recorded anew
    again = path.predict(embedding.features, embedding.frame, [(prompts, None) for prompts in asked[:BATCH]])
    for prompts, prediction in zip([*asked, *asked[:BATCH]], [*predictions, *again], strict=True):
        expected = plain.predict(embedding, prompts)
        np.testing.assert_allclose(prediction.soft.numpy(), expected.probability, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_the_compiler_sees_the_same_network(network) -> None:
    """The forms that are only for a compiler, run by torch itself: encoder, and clicks for one and three."""
    network.eval()
    maps = torch.rand(3, 3, 96, 96)
    with torch.inference_mode():
        seen = network.encode(255 * torch.rand(1, 3, 96, 96))
        for count in (1, 3):
            expected = network.head_logits(network.fuse(seen, maps[:count]))
            found = torch.compile(lambda m: network.head_logits(network.fuse(seen, m)), backend="eager")
            torch.testing.assert_close(found(maps[:count]), expected, rtol=1e-5, atol=2e-6)


def test_warming_up_changes_no_prediction(network, image) -> None:
    """It is a picture and a click of its own."""
    predictor = Predictor(network, Runtime(), "off")
    before = predictor.predict(predictor.embed(image), [Click((10, 20))]).probability
    predictor.warm_up()
    np.testing.assert_array_equal(
        before, predictor.predict(predictor.embed(image), [Click((10, 20))]).probability
    )


def test_bilinear_weights_are_exact_in_half_precision() -> None:
    """They are sixteenths, so the sum of the pyramid loses nothing by them."""
    full = _bilinear_matrix(8, 64, torch.float32, torch.device("cpu"))
    assert torch.equal(_bilinear_matrix(8, 64, torch.float16, torch.device("cpu")).float(), full)


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
