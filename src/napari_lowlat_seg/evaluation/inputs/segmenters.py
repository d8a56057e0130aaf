"""Models that a benchmark compares: this package's own, SAM-like ONNX files, and what a Python file makes.

A `Segmenter` is anything with a name that embeds an image and predicts masks for prompts. `load_segmenter`
makes one from a line of text, so that a worker process can make its own:

    default                      any model of ours, by name or path; default@off without the closer look
    default@off@fp32             in another precision than the device's own: fp32, tf32, fp16 or bf16
    default@torch                on a processor, with torch although OpenVINO is installed
    default@compiled             with torch's compiler, on CUDA
    onnx-sam:ENC.onnx,DEC.onnx,LABEL         a SAM-like pair of ONNX files; the label is optional
    onnx-sam-plain:ENC.onnx,DEC.onnx,LABEL   the same without feeding its mask back
    FILE.py:FUNCTION             what a function of a Python file returns when called with a torch device
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.evaluation.inputs.onnx_sam import OnnxSam

if TYPE_CHECKING:
    from napari_lowlat_seg.inference.predictor import Predictor


class Segmenter(Protocol):
    """What a benchmark needs of a model.

    `embed` takes (H, W) or (H, W, 3) pixels; `predict` takes what `embed` returned, all prompts so far and
    its own previous prediction or None, and returns something with a boolean (H, W) `mask`. `form` says in a
    few words how the model turns prompts into one mask; every table shows it.
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
    predictor: Predictor
    form: str = "one mask, probability fed back"

    def embed(self, image: np.ndarray) -> Any:
        return self.predictor.embed(image)

    def embed_spaced(self, image: np.ndarray, spacing: tuple[float, float]) -> Any:
        """Return the embedding of an image whose pixels have this size along rows and columns."""
        return self.predictor.embed(image, spacing=spacing)

    def predict(self, embedding: Any, prompts: Sequence[Prompt], previous: Any) -> Any:
        return self.predictor.predict(embedding, prompts, previous)

    def answers(self, embedding: Any, prompts: Sequence[Prompt], previous: Any) -> Iterator[Any]:
        """Yield up to three predictions, the quicker first."""
        yield from self.predictor.answers(embedding, prompts, previous)

    def candidates(self, embedding: Any, prompts: Sequence[Prompt]) -> list[Any]:
        """Return what the first prompts of an object can mean, first what `predict` returns."""
        found: list[Any] = self.predictor.candidates(embedding, prompts)
        return found

    def predict_batch(self, embedding: Any, prompts: Sequence[Sequence[Prompt]]) -> list[Any]:
        """Return the quick predictions for many objects at once."""
        predictions: list[Any] = self.predictor.predict_batch(embedding, prompts)
        return predictions


def load_segmenter(
    spec: str, *, device: str = "auto", closer_look: str = "auto", threads: int | None = None
) -> Segmenter:
    """Return the segmenter that a line of text names; see the top of this module for the forms.

    Parameters
    ----------
    spec
        What to load.
    device
        As `load_predictor` takes it.
    closer_look
        "auto" or "off", for our own models; `@auto` or `@off` at the end of a name wins.
    threads
        CPU threads for ONNX models.

    Raises
    ------
    ValueError
        For a spec of the wrong form, an unknown model or an unusable file.
    ImportError
        For an ONNX model without onnxruntime.
    """
    kind, _, rest = spec.partition(":")
    if kind in ("onnx-sam", "onnx-sam-plain"):
        encoder, decoder, label = (*(part.strip() for part in rest.split(",", 2)), "", "", "")[:3]
        if not encoder or not decoder:
            raise ValueError(f"expected {kind}:ENCODER.onnx,DECODER.onnx[,LABEL], got {spec!r}")
        name = label or Path(decoder).stem
        return OnnxSam(encoder, decoder, name, feedback=kind == "onnx-sam", threads=threads, device=device)
    file, _, function = spec.rpartition(":")
    if file.endswith(".py"):
        return _from_file(Path(file), function, device)
    return _ours(spec, device, closer_look)


def _from_file(path: Path, function: str, device: str) -> Segmenter:
    """What a function of a Python file makes; imported as a member of its package, if it has one."""
    from napari_lowlat_seg.inference.runtime import Runtime  # here, so that listing and reading need no torch

    if not path.is_file():
        raise ValueError(f"expected FILE.py:FUNCTION, but there is no file {path}")
    folder, name = path.resolve().parent, path.stem
    while (folder / "__init__.py").is_file():
        folder, name = folder.parent, f"{folder.name}.{name}"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # at the end: no file beside it may hide an installed module
    try:
        module = importlib.import_module(name)
    except (ImportError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be imported: {error}") from error
    if Path(module.__file__ or "").resolve() != path.resolve():
        raise ValueError(f"a module {name} is already imported from {module.__file__}; rename {path}")
    make = getattr(module, function, None)
    if not callable(make):
        raise ValueError(f"expected a function {function!r} in {path}, there is none")
    made: Segmenter = make(Runtime.find(device).device)
    lacking = [part for part in ("name", "form", "embed", "predict") if not hasattr(made, part)]
    if lacking:
        raise ValueError(
            f"{path}:{function} must return a segmenter, and what it returns has no {lacking[0]}"
        )
    return made


def model_sha256(spec: str) -> str | None:
    """Return the sha256 of the model file that a line of text names; None where it names none of ours."""
    from napari_lowlat_seg.models.checkpoints import model_path
    from napari_lowlat_seg.models.downloads import file_sha256

    try:
        return file_sha256(model_path(_split_marks(spec)[0]))
    except ValueError:
        return None


def _split_marks(spec: str) -> tuple[str, set[str]]:
    """The name of a model of ours, and the marks that follow it behind signs @."""
    from napari_lowlat_seg.inference.runtime import DTYPES

    name, marks = spec, set[str]()
    while "@" in name and name.rpartition("@")[2] in {"off", "auto", "compiled", "torch", *DTYPES}:
        name, _, mark = name.rpartition("@")
        marks.add(mark)
    return name, marks


def _ours(spec: str, device: str, closer_look: str) -> Segmenter:
    from napari_lowlat_seg.inference import (
        predictor as engine,
    )  # here, so that listing and reading need no torch
    from napari_lowlat_seg.inference.runtime import DTYPES, Runtime

    name, marks = _split_marks(spec)
    look: Any = next((mark for mark in marks if mark in ("off", "auto")), closer_look)
    if not marks - {"off", "auto"}:
        return Ours(spec, engine.load_predictor(name, device, look))
    from napari_lowlat_seg.models.checkpoints import load_model

    precision: Any = next((mark for mark in marks if mark in DTYPES), None)
    network = load_model(name)
    runtime = replace(Runtime.find(device, precision), compiled="compiled" in marks)
    runtime = engine.suited(replace(runtime, openvino=False) if "torch" in marks else runtime, network)
    predictor = engine.Predictor(
        network, runtime if precision is None else replace(runtime, precision=precision), look
    )
    if predictor.runtime.on_cuda:
        predictor.warm_up()
    engine_name = ", OpenVINO" if predictor.runtime.openvino else ""
    return Ours(spec, predictor, f"{predictor.runtime.precision}{engine_name}")
