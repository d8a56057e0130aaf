"""SAM, MobileSAM and HQ-SAM as pairs of ONNX files, run as a benchmark's segmenter."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from napari_lowlat_seg.core.prompts import Box, Click, Polygon, Prompt, Scribble
from napari_lowlat_seg.core.volume import to_uint8

# SAM's own normalisation of 0..255 RGB.
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)
_SCRIBBLE_POINTS = 8
_POINT_INPUTS = ("point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")


@dataclass(frozen=True, eq=False)
class SamEmbedding:
    """Embedding of an image by a SAM-like encoder.

    Attributes
    ----------
    features
        Inputs of the decoder that do not depend on prompts, by name.
    shape
        Rows and columns of the image.
    scale
        Network pixels per image pixel along rows and columns.
    """

    features: dict[str, np.ndarray]
    shape: tuple[int, int]
    scale: tuple[float, float]


@dataclass(frozen=True, eq=False)
class SamPrediction:
    """Prediction of a SAM-like decoder.

    Attributes
    ----------
    logits
        (H, W) float32.
    quality
        Its predicted IoU.
    low_res
        (1, 1, 256, 256) logits to feed back, or None if the export returns none.
    """

    logits: np.ndarray
    quality: float
    low_res: np.ndarray | None

    @property
    def probability(self) -> np.ndarray:
        """(H, W) float32 in [0, 1]."""
        probability: np.ndarray = (1 + np.tanh(self.logits / 2)) / 2
        return probability

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: logits above 0."""
        mask: np.ndarray = self.logits > 0
        return mask


class OnnxSam:
    """An encoder and a decoder exported from SAM, MobileSAM or HQ-SAM, run by onnxruntime.

    The encoder takes normalised (1, 3, S, S) pixels, longest side scaled to S, zero padded on the right and
    below. The decoder is of the usual export: `point_coords`, `point_labels`, `mask_input`, `has_mask_input`,
    `orig_im_size` and the encoder's outputs in; `masks`, `iou_predictions`, `low_res_masks` out. Of several
    masks the one of highest predicted IoU is taken at every prompt, and its logits are fed back: the protocol
    of the published comparisons. (Of four masks the first is SAM's single-mask answer, which that protocol
    leaves out.) Exports that return one mask choose by themselves: usually the best of three after one click,
    and the single-mask answer after more.

    Prompts that SAM lacks are converted: a scribble as up to 8 points spread along it, a polygon
    as its bounding box. With several boxes or polygons, the last one counts.

    Parameters
    ----------
    encoder, decoder
        ONNX files.
    name
        What tables call it.
    feedback
        Feed the previous logits back; ignored if the export returns none.
    threads
        CPU threads for each of the two; onnxruntime's choice if None.
    device
        "cuda" or "cuda:N" runs there if this onnxruntime can, everything else on the CPU.

    Raises
    ------
    ImportError
        Without onnxruntime.
    ValueError
        For missing files, or files whose inputs are not of this form.
    """

    def __init__(
        self,
        encoder: str | Path,
        decoder: str | Path,
        name: str = "ONNX SAM",
        *,
        feedback: bool = True,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.name = name
        self._encoder, self._decoder = (_session(Path(file), threads, device) for file in (encoder, decoder))
        inputs = self._encoder.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3:
            raise ValueError(
                f"expected one input of shape (1, 3, S, S) in {encoder}, got {[i.shape for i in inputs]}; "
                "export the encoder without its own resizing"
            )
        self.size = shape[2] if isinstance(shape[2], int) else 1024
        self._input = inputs[0].name
        self._encoded = [output.name for output in self._encoder.get_outputs()]
        wanted = [i.name for i in self._decoder.get_inputs()]
        self._returned = [output.name for output in self._decoder.get_outputs()]
        _check_decoder(decoder, wanted, self._returned)
        self._features = self._matched([name for name in wanted if name not in _POINT_INPUTS], decoder)
        self.feedback = feedback and "low_res_masks" in self._returned
        self._count: int | None = None

    @property
    def form(self) -> str:
        """The number of masks it returns, and whether its logits are fed back."""
        if self._count is None:
            blank = self.embed(np.zeros((8, 8), np.uint8))
            self._count = self._decode(blank, [Click((4, 4))], None)["iou_predictions"].shape[1]
        masks = "one mask" if self._count == 1 else f"best of {min(self._count, 3)}"
        return f"{masks}, {'logits fed back' if self.feedback else 'nothing fed back'}"

    def embed(self, image: np.ndarray) -> SamEmbedding:
        """Return the embedding of an image (H, W) or (H, W, 3) of any real type; does not mutate it."""
        pixels = to_uint8(image)
        rows, cols = pixels.shape[:2]
        factor = self.size / max(rows, cols)
        fitted = max(1, int(rows * factor + 0.5)), max(1, int(cols * factor + 0.5))
        # Pillow's bilinear averages when it shrinks: the resize that SAM itself uses.
        small = Image.fromarray(pixels).convert("RGB").resize(fitted[::-1], Image.Resampling.BILINEAR)
        canvas = np.zeros((1, 3, self.size, self.size), np.float32)
        canvas[0, :, : fitted[0], : fitted[1]] = ((np.asarray(small) - _MEAN) / _STD).transpose(2, 0, 1)
        outputs = dict(zip(self._encoded, self._encoder.run(None, {self._input: canvas})))
        features = {name: outputs[source] for name, source in self._features.items()}
        return SamEmbedding(features, (rows, cols), (fitted[0] / rows, fitted[1] / cols))

    def predict(
        self, embedding: SamEmbedding, prompts: Sequence[Prompt], previous: SamPrediction | None = None
    ) -> SamPrediction:
        """Return the mask for all prompts together; `previous` is the last one of the same object, or None.

        Raises
        ------
        ValueError
            For no prompts, and for prompts that SAM cannot take: masks and negative regions.
        """
        outputs = self._decode(embedding, prompts, previous)
        scores = outputs["iou_predictions"][0]
        best = int(scores.argmax()) if len(scores) < 4 else 1 + int(scores[1:].argmax())
        low_res = outputs.get("low_res_masks")
        return SamPrediction(
            outputs["masks"][0, best],
            float(scores[best]),
            None if low_res is None else low_res[:, best : best + 1],
        )

    def _decode(
        self, embedding: SamEmbedding, prompts: Sequence[Prompt], previous: SamPrediction | None
    ) -> dict[str, np.ndarray]:
        points, labels = _sam_prompts(prompts)
        fed = previous.low_res if self.feedback and previous is not None else None
        feed = {
            **embedding.features,
            "point_coords": (points * np.array(embedding.scale))[None, :, ::-1].astype(
                np.float32
            ),  # as (x, y)
            "point_labels": labels[None].astype(np.float32),
            "mask_input": np.zeros((1, 1, self.size // 4, self.size // 4), np.float32)
            if fed is None
            else fed,
            "has_mask_input": np.array([fed is not None], np.float32),
            "orig_im_size": np.array(embedding.shape, np.float32),
        }
        return dict(zip(self._returned, self._decoder.run(None, feed)))

    def _matched(self, wanted: list[str], decoder: str | Path) -> dict[str, str]:
        """The encoder output for each remaining decoder input: of the same name, or else the first."""
        matched = {name: name if name in self._encoded else self._encoded[0] for name in wanted}
        if len(set(matched.values())) != len(wanted):
            raise ValueError(
                f"expected the encoder to return {', '.join(wanted)} for {decoder}, it returns "
                f"{', '.join(self._encoded)}; use two files of one export"
            )
        return matched


def _check_decoder(decoder: str | Path, wanted: Sequence[str], returned: Sequence[str]) -> None:
    lacking = [name for name in _POINT_INPUTS if name not in wanted]
    if lacking:
        raise ValueError(
            f"expected the inputs {', '.join(_POINT_INPUTS)} in {decoder}, but {', '.join(lacking)} "
            "cannot be found; export the decoder with SAM's export script"
        )
    if "masks" not in returned or "iou_predictions" not in returned:
        raise ValueError(f"expected the outputs masks and iou_predictions in {decoder}, got {returned}")


def _session(path: Path, threads: int | None, device: str) -> Any:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as problem:
        raise ImportError(
            f"{path.name} needs onnxruntime, which is not installed; pip install 'napari-lowlat-seg[rivals]'"
        ) from problem
    if not path.is_file():
        raise ValueError(f"expected an ONNX file at {path}, there is none")
    options = runtime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device.startswith("cuda") and "CUDAExecutionProvider" in runtime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    try:
        return runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as problem:  # onnxruntime's own errors are not public
        reason = str(problem).splitlines()[0]
        raise ValueError(
            f"expected an ONNX network in {path}, but onnxruntime refuses it: {reason}"
        ) from problem


def _sam_prompts(prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2) as (row, col) and labels (N,): 1 and 0 points, 2 and 3 corners of the box, -1 padding."""
    points: list[Sequence[float]] = []
    labels: list[int] = []
    box: list[Sequence[float]] = []
    for prompt in prompts:
        if isinstance(prompt, Click):
            points.append(prompt.at)
            labels.append(int(prompt.positive))
        elif isinstance(prompt, Scribble):
            spread = _along(np.array(prompt.points, float), _SCRIBBLE_POINTS)
            points.extend(spread)
            labels.extend([int(prompt.positive)] * len(spread))
        elif isinstance(prompt, Box | Polygon) and prompt.positive:
            corners = np.array(
                [prompt.start, prompt.end] if isinstance(prompt, Box) else prompt.points, float
            )
            box = [tuple(corners.min(axis=0)), tuple(corners.max(axis=0))]
        else:
            sign = "positive" if prompt.positive else "negative"
            raise ValueError(f"SAM takes clicks, scribbles and positive boxes and polygons, not a {sign} "
                             f"{type(prompt).__name__.lower()}; use clicks")  # fmt: skip
    if not points and not box:
        raise ValueError("expected at least one prompt, got none; add a click")
    # The export wants a padding point when there is no box.
    points, labels = [*points, *(box or [(0.0, 0.0)])], [*labels, *([2, 3] if box else [-1])]
    return np.array(points, float), np.array(labels)


def _along(points: np.ndarray, count: int) -> list[tuple[float, float]]:
    """At most `count` points at even distances along a polyline (N, 2), its ends left out."""
    steps = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    count = min(count, max(1, int(steps[-1])))
    at = (np.arange(count) + 0.5) * steps[-1] / count
    return [(float(np.interp(s, steps, points[:, 0])), float(np.interp(s, steps, points[:, 1]))) for s in at]
