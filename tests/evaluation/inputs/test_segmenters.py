"""SAM's kin through ONNX, on tiny networks with the inputs and outputs of the real ones."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Prompt, Scribble
from napari_lowlat_seg.evaluation.inputs.onnx_sam import OnnxSam, SamPrediction, _sam_prompts
from napari_lowlat_seg.evaluation.inputs.segmenters import load_segmenter, model_sha256

Export = Callable[..., tuple[Path, Path]]


@pytest.fixture
def picture() -> np.ndarray:
    """64 x 64 with a bright square."""
    picture = np.full((64, 64), 40, np.uint8)
    picture[16:32, 20:44] = 230
    return picture


def test_the_mask_has_the_size_of_the_picture(export_sam: Export, picture: np.ndarray) -> None:
    """What the encoder saw bright is the object."""
    model = OnnxSam(*export_sam())
    answer = model.predict(model.embed(picture), [Click((20, 30))])
    assert (answer.mask == (picture == 230)).all()
    assert answer.probability.dtype == np.float32
    assert (answer.probability > 0.5).sum() == answer.mask.sum()


def test_a_picture_is_scaled_by_its_longest_side_and_padded_with_zeros(export_sam: Export) -> None:
    """32 x 16 pixels on a 64 x 64 input: half of it is padding, which is neither bright nor dark."""
    model = OnnxSam(*export_sam())
    embedding = model.embed(np.full((32, 16), 255, np.uint8))
    assert (embedding.shape, embedding.scale) == ((32, 16), (2.0, 2.0))
    gray = embedding.features["image_embeddings"].mean(axis=1)[0]
    assert (gray[:, :8] > 1).all()
    assert (gray[:, 8:] == 0).all()


@pytest.mark.parametrize(
    ("signs", "scores", "best", "form"),
    [
        ((1.0,), (0.1,), 1.0, "one mask, logits fed back"),
        ((-1.0, 2.0, -3.0), (0.2, 0.9, 0.3), 2.0, "best of 3, logits fed back"),
        ((9.0, -1.0, 3.0, 2.0), (0.99, 0.1, 0.8, 0.7), 3.0, "best of 3, logits fed back"),
    ],
)
def test_the_best_mask_is_taken(
    export_sam: Export,
    picture: np.ndarray,
    signs: tuple[float, ...],
    scores: tuple[float, ...],
    best: float,
    form: str,
) -> None:
    """By predicted IoU; of four, the first is not in the race."""
    one, many = OnnxSam(*export_sam()), OnnxSam(*export_sam(signs, scores))
    alone = one.predict(one.embed(picture), [Click((20, 30))])
    answer = many.predict(many.embed(picture), [Click((20, 30))])
    assert answer.logits == pytest.approx(best * alone.logits)
    assert answer.quality == pytest.approx(scores[signs.index(best)])
    assert answer.low_res is not None
    assert answer.low_res.shape == (1, 1, 16, 16)
    assert many.form == form


def test_logits_are_fed_back(export_sam: Export, picture: np.ndarray) -> None:
    """The tiny network adds them to its own."""
    files = export_sam()
    model, plain = OnnxSam(*files), OnnxSam(*files, feedback=False)
    embedding = model.embed(picture)
    first = model.predict(embedding, [Click((20, 30))])
    assert model.predict(embedding, [Click((20, 30))], first).logits == pytest.approx(2 * first.logits)
    assert plain.predict(embedding, [Click((20, 30))], first).logits == pytest.approx(first.logits)
    assert plain.form == "one mask, nothing fed back"
    assert OnnxSam(*export_sam(low_res=False)).form == "one mask, nothing fed back"


def test_an_export_with_more_tensors_between_its_halves_runs(export_sam: Export, picture: np.ndarray) -> None:
    """As HQ-SAM's, matched by name."""
    model = OnnxSam(*export_sam(extra="interm_embeddings"))
    assert set(model.embed(picture).features) == {"image_embeddings", "interm_embeddings"}


@pytest.mark.parametrize(
    ("prompts", "points", "labels"),
    [
        ([Click((3, 5)), Click((8, 1), positive=False)], [[3, 5], [8, 1], [0, 0]], [1, 0, -1]),
        ([Box((9, 8), (2, 3)), Click((4, 4))], [[4, 4], [2, 3], [9, 8]], [1, 2, 3]),
        ([Polygon(((1, 1), (7, 2), (3, 9)))], [[1, 1], [7, 9]], [2, 3]),
        ([Scribble(((0, 0), (0, 2)), positive=False)], [[0, 0.5], [0, 1.5], [0, 0]], [0, 0, -1]),
        ([Scribble(((6, 6),))], [[6, 6], [0, 0]], [1, -1]),
    ],
)
def test_prompts_become_points(prompts: list[Prompt], points: list[list[float]], labels: list[int]) -> None:
    """Clicks as they are, boxes as two corners, strokes as points along them; padding without a box."""
    got_points, got_labels = _sam_prompts(prompts)
    assert (got_points.tolist(), got_labels.tolist()) == (points, labels)


def test_points_are_scaled_to_the_network_as_x_and_y(export_sam: Export) -> None:
    """Row 10, column 4 of a 32 x 16 picture is (8, 20) of the 64 x 64 input."""
    model = OnnxSam(*export_sam())
    fed: dict[str, np.ndarray] = {}

    class Recorder:
        """Stands for the decoder's session."""

        def run(self, names: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            fed.update(feed)
            return [np.zeros((1, 1, 32, 16), np.float32), np.ones((1, 1), np.float32), feed["mask_input"]]

    embedding = model.embed(np.zeros((32, 16), np.uint8))
    model._decoder = Recorder()
    model.predict(embedding, [Click((10, 4))])
    assert fed["point_coords"].tolist() == [[[8, 20], [0, 0]]]
    assert fed["orig_im_size"].tolist() == [32, 16]


@pytest.mark.parametrize("prompt", [Box((0, 0), (3, 3), positive=False), Mask(np.ones((4, 4), bool))])
def test_prompts_that_sam_lacks_are_refused(prompt: Prompt) -> None:
    """Negative regions and masks."""
    with pytest.raises(ValueError, match=r"not a (negative box|positive mask); use clicks"):
        _sam_prompts([prompt])


def test_no_prompt_is_refused() -> None:
    """There is nothing to answer."""
    with pytest.raises(ValueError, match="expected at least one prompt, got none"):
        _sam_prompts([])


def test_a_prediction_has_logits_above_zero_as_mask() -> None:
    """Zero itself is outside, and large logits do not overflow."""
    answer = SamPrediction(np.array([[-500.0, 0.0, 500.0]], np.float32), 1.0, None)
    assert answer.mask.tolist() == [[False, False, True]]
    assert answer.probability.tolist() == [[0.0, 0.5, 1.0]]


def test_a_line_of_text_names_a_pair_of_files(export_sam: Export) -> None:
    """With and without a label, with and without feedback."""
    encoder, decoder = export_sam()
    labelled = load_segmenter(f"onnx-sam:{encoder}, {decoder}, My SAM, v2", threads=1)
    plain = load_segmenter(f"onnx-sam-plain:{encoder},{decoder}")
    assert (labelled.name, labelled.form) == ("My SAM, v2", "one mask, logits fed back")
    assert (plain.name, plain.form) == ("decoder", "one mask, nothing fed back")


def test_a_line_of_text_needs_two_files() -> None:
    """The form is shown."""
    with pytest.raises(
        ValueError, match=r"expected onnx-sam:ENCODER.onnx,DECODER.onnx\[,LABEL\], got 'onnx-sam:x'"
    ):
        load_segmenter("onnx-sam:x")


def test_files_must_be_there_and_be_networks(export_sam: Export, tmp_path: Path) -> None:
    """Missing; text."""
    encoder, _ = export_sam()
    with pytest.raises(ValueError, match=r"expected an ONNX file at .*none.onnx, there is none"):
        OnnxSam(encoder, tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(
        ValueError, match=r"expected an ONNX network in .*text.onnx, but onnxruntime refuses it"
    ):
        OnnxSam(encoder, tmp_path / "text.onnx")


def test_files_must_be_the_two_halves_of_one_export(export_sam: Export) -> None:
    """Swapped; halves of different models; an encoder of another kind."""
    encoder, decoder = export_sam()
    _, other = export_sam(extra="interm_embeddings")
    with pytest.raises(ValueError, match=r"expected one input of shape \(1, 3, S, S\) in .*decoder.onnx"):
        OnnxSam(decoder, decoder)
    with pytest.raises(ValueError, match=r"expected the inputs point_coords, .* but .* cannot be found"):
        OnnxSam(encoder, encoder)
    with pytest.raises(
        ValueError, match=r"expected the encoder to return image_embeddings, interm_embeddings"
    ):
        OnnxSam(encoder, other)


def test_a_decoder_must_predict_iou(export_sam: Export, tmp_path: Path) -> None:
    """An export without predicted IoU."""
    onnx = pytest.importorskip("onnx")
    encoder, decoder = export_sam()
    model = onnx.load(str(decoder))
    del model.graph.output[1]
    onnx.save(model, str(tmp_path / "mute.onnx"))
    with pytest.raises(ValueError, match=r"expected the outputs masks and iou_predictions in .*mute.onnx"):
        OnnxSam(encoder, tmp_path / "mute.onnx")


def test_without_onnxruntime_the_extra_is_named(export_sam: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that lacks it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"needs onnxruntime.*pip install 'napari-lowlat-seg\[rivals\]'"):
        OnnxSam(*export_sam())


def test_an_unknown_model_of_ours_is_refused() -> None:
    """By the engine, which lists what there is."""
    with pytest.raises(ValueError, match="no-such-model"):
        load_segmenter("no-such-model@off")


def test_marks_choose_precision_and_closer_look() -> None:
    """Marks in any order; the table distinguishes them."""
    made = load_segmenter("default@torch@fp32@off", device="cpu")
    assert (made.name, made.form) == ("default@torch@fp32@off", "fp32")
    assert made.predictor.closer_look == "off"  # type: ignore[attr-defined]


SEGMENTER = """
from dataclasses import dataclass

@dataclass
class Everything:
    name: str = "everything"
    form: str = "one mask"
    device: str = "cpu"

    def embed(self, image): ...
    def predict(self, embedding, prompts, previous): ...

def make(device):
    return Everything(device=device)

def nothing(device):
    return None
"""


@pytest.fixture
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders added to the import path are removed after the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.usefixtures("import_path")
def test_a_function_of_a_python_file_makes_a_segmenter(tmp_path: Path) -> None:
    """It is called with the device; the file may lie in a package and import from it."""
    (tmp_path / "own_models").mkdir()
    (tmp_path / "own_models" / "__init__.py").touch()
    (tmp_path / "own_models" / "plain.py").write_text(SEGMENTER)
    file = tmp_path / "own_models" / "all_of_it.py"
    file.write_text("from own_models.plain import make")
    made = load_segmenter(f"{file}:make", device="cpu")
    assert (made.name, made.device) == ("everything", "cpu")  # type: ignore[attr-defined]
    assert model_sha256(f"{file}:make") is None


@pytest.mark.usefixtures("import_path")
@pytest.mark.parametrize(
    ("name", "content", "function", "message"),
    [
        ("none", None, "make", r"expected FILE.py:FUNCTION, but there is no file .*none.py"),
        ("segmenter_1", SEGMENTER, "mak", r"expected a function 'mak' in .*segmenter_1.py, there is none"),
        (
            "segmenter_2",
            SEGMENTER,
            "nothing",
            r"segmenter_2.py:nothing must return a segmenter, .* has no name",
        ),
        (
            "segmenter_3",
            "import no_such_module",
            "make",
            r"segmenter_3.py cannot be imported: No module named",
        ),
        ("segmenter_4", "def make(", "make", r"segmenter_4.py cannot be imported: .* was never closed"),
        ("json", SEGMENTER, "make", r"a module json is already imported from .*; rename .*json.py"),
    ],
)
def test_a_python_file_that_makes_no_segmenter_is_refused(
    tmp_path: Path, name: str, content: str | None, function: str, message: str
) -> None:
    """Each with what is wrong."""
    file = tmp_path / f"{name}.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_segmenter(f"{file}:{function}", device="cpu")


def test_a_model_of_ours_is_known_by_its_file(tiny: Path) -> None:
    """Whatever marks follow the name; ONNX files and unknown names have none."""
    digest = hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert [model_sha256(f"{tiny}{marks}") for marks in ("", "@off", "@off@fp32")] == [digest] * 3
    for other in ("onnx-sam:a.onnx,b.onnx", "no-such@off", "no-such"):
        assert model_sha256(other) is None


def test_our_models_take_the_pixel_size(tiny: Path) -> None:
    """Rows three times as thick as columns."""
    ours: Any = load_segmenter(str(tiny), device="cpu")
    assert ours.embed_spaced(np.zeros((8, 24), np.uint8), (3.0, 1.0)).frame.spacing == (3.0, 1.0)
