"""All that can stand side by side in a benchmark: our models, the original's geometry, and SAM's kin.

A `Segmenter` is anything with a name that embeds a picture and answers prompts. `load_segmenter` makes one
from a line of text, so that a worker process can make its own:

    default                      any model of ours, by name or path; default@off without the closer look
    default@off@fp32             in another precision than the device's own: fp32, tf32, fp16 or bf16
    default@torch                on a processor, with torch although OpenVINO is installed
    segnext-vitb-sax2-random     the original's geometry with random weights: for latency, not for quality
    segnext-vitb-sax2-random@official        the same weights the way the original runs them, eager float32
    segnext-vitb-sax2-random@compiled        with torch's compiler, on CUDA
    mobile-sam-random@official               MobileSAM's network the way it was published, eager float32
    efficient-sam-ti-random@official         EfficientSAM-Ti's; random weights, for latency, not for quality
    onnx-sam:ENC.onnx,DEC.onnx,LABEL         a SAM-like pair of ONNX files; the label is optional
    onnx-sam-plain:ENC.onnx,DEC.onnx,LABEL   the same without feeding its mask back
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.evaluation.inputs.onnx_sam import OnnxSam


class Segmenter(Protocol):
    """What a benchmark needs of a model.

    `embed` takes (H, W) or (H, W, 3) pixels; `predict` takes what `embed` returned, all prompts so far and
    its own previous answer or None, and returns something with a boolean (H, W) `mask`. `form` says in a few
    words how the model turns prompts into one mask; it stands in every table.
    """

    @property
    def name(self) -> str: ...

    @property
    def form(self) -> str: ...

    def embed(self, image: np.ndarray) -> Any: ...

    def predict(self, embedding: Any, prompts: Sequence[Prompt], previous: Any) -> Any: ...


@dataclass(frozen=True, eq=False)
class Ours:
    """A `Predictor` as a segmenter."""

    name: str
    predictor: Any
    form: str = "one mask, probability fed back"

    def embed(self, image: np.ndarray) -> Any:
        return self.predictor.embed(image)

    def embed_spaced(self, image: np.ndarray, spacing: tuple[float, float]) -> Any:
        """The embedding of a picture whose pixels have this size along rows and columns."""
        return self.predictor.embed(image, spacing=spacing)

    def predict(self, embedding: Any, prompts: Sequence[Prompt], previous: Any) -> Any:
        return self.predictor.predict(embedding, prompts, previous)

    def answers(self, embedding: Any, prompts: Sequence[Prompt], previous: Any) -> Iterator[Any]:
        """One or two answers, the quicker first."""
        yield from self.predictor.answers(embedding, prompts, previous)

    def predict_batch(self, embedding: Any, prompts: Sequence[Sequence[Prompt]]) -> list[Any]:
        """The quick answers for many objects at once."""
        found: list[Any] = self.predictor.predict_batch(embedding, prompts)
        return found


def load_segmenter(
    spec: str, *, device: str = "auto", closer_look: str = "auto", threads: int | None = None
) -> Segmenter:
    """The segmenter that a line of text names; see the top of this module for the forms.

    Parameters:
        spec: what to load.
        device: as `load_predictor` takes it.
        closer_look: "auto" or "off", for our own models; `@auto` or `@off` at the end of a name wins.
        threads: CPU threads for ONNX models.

    Raises:
        ValueError: for a spec of the wrong form, an unknown model or an unusable file.
        ImportError: for an ONNX model without onnxruntime.
    """
    kind, _, rest = spec.partition(":")
    if kind in ("onnx-sam", "onnx-sam-plain"):
        encoder, decoder, label = (*(part.strip() for part in rest.split(",", 2)), "", "", "")[:3]
        if not encoder or not decoder:
            raise ValueError(f"expected {kind}:ENCODER.onnx,DECODER.onnx[,LABEL], got {spec!r}")
        name = label or Path(decoder).stem
        return OnnxSam(encoder, decoder, name, feedback=kind == "onnx-sam", threads=threads, device=device)
    from napari_lowlat_seg.evaluation.reference.sam import (
        NETWORKS,  # here, so that listing and reading need no torch
    )

    if spec.partition("@")[0] in NETWORKS:
        return _published(spec, device)
    return _ours(spec, device, closer_look)


def _published(spec: str, device: str) -> Segmenter:
    name, _, mark = spec.partition("@")
    if mark != "official":
        raise ValueError(f"{name} is here in its published form alone, got {spec!r}; use {name}@official")
    from napari_lowlat_seg.evaluation.reference.sam import SamForm
    from napari_lowlat_seg.inference.runtime import Runtime

    return SamForm.random(name, Runtime.find(device).device, spec)


def model_sha256(spec: str) -> str | None:
    """The sha256 of the model file that a line of text names; None where there is none of ours.

    That is so for ONNX files, random weights, and names of nothing.
    """
    from napari_lowlat_seg.models.checkpoints import model_path
    from napari_lowlat_seg.models.registry import file_sha256

    try:
        return file_sha256(model_path(_marks(spec)[0]))
    except ValueError:
        return None


def _marks(spec: str) -> tuple[str, set[str]]:
    """The name of a model of ours, and what stands behind its signs @."""
    from napari_lowlat_seg.inference.runtime import DTYPES

    name, marks = spec, set[str]()
    known = {"off", "auto", "compiled", "official", "torch", *DTYPES}
    while name.rpartition("@")[2] in known and "@" in name:
        name, _, mark = name.rpartition("@")
        marks.add(mark)
    return name, marks


def _ours(spec: str, device: str, closer_look: str) -> Segmenter:
    from napari_lowlat_seg.inference import (
        predictor as engine,  # here, so that listing and reading need no torch
    )
    from napari_lowlat_seg.inference.runtime import DTYPES, Runtime

    name, marks = _marks(spec)
    look = next((mark for mark in marks if mark in ("off", "auto")), closer_look)
    precision: Any = next((mark for mark in marks if mark in DTYPES), None)
    if not marks - {"off", "auto"} and name not in _RANDOM:
        return Ours(spec, engine.load_predictor(name, device, look))  # type: ignore[arg-type]
    from napari_lowlat_seg.models.checkpoints import load_model
    from napari_lowlat_seg.models.segnext import SegNext, SegNextConfig

    runtime = replace(Runtime.find(device, precision), compiled="compiled" in marks)
    if "torch" in marks:
        runtime = replace(runtime, openvino=False)
    if name in _RANDOM:
        import torch

        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            network: Any = SegNext(SegNextConfig.vit_b(fusion_blocks=_RANDOM[name]))
        look = "off"
    else:
        network = load_model(name)
    if "official" in marks:
        from napari_lowlat_seg.evaluation.reference.segnext import OfficialForm

        if not isinstance(network, SegNext):
            raise ValueError(f"only a SegNext has an official form, {name} has none; leave @official out")
        return OfficialForm(network, runtime.device, spec)
    suited = engine.suited(runtime, network)
    runtime = suited if precision is None else replace(suited, precision=precision)
    made = engine.Predictor(network, runtime, look)  # type: ignore[arg-type]
    if runtime.on_cuda:
        made.warm_up()
    engine_name = ", OpenVINO" if made.runtime.openvino else ""
    random = "random weights, " if name in _RANDOM else ""
    return Ours(spec, made, f"{random}{runtime.precision}{engine_name}")


# The original's geometries, to be timed only.
_RANDOM = {"segnext-vitb-sax1-random": 1, "segnext-vitb-sax2-random": 2}
