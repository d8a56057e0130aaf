"""The default model run by other libraries on a processor, to choose between them.

    lowlat-seg benchmark latency -m default@torch@fp32 -m default@torch -m default@fp32 -m default \
        -m benchmarks/reference/runtimes.py:onnx -m benchmarks/reference/runtimes.py:openvino_int8

`default` itself is OpenVINO with clicks in bf16 where the processor has it, `default@fp32` in float32, and
`@torch` torch. What is here is not in the package; docs/decisions/hot-path.md says why. `openvino_int8` and
`openvino_int8_embedding` need nncf and a folder of training pictures in LOWLAT_SEG_CALIBRATION.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import to_uint8
from napari_lowlat_seg.evaluation.inputs.ground_truth import read_picture
from napari_lowlat_seg.evaluation.inputs.segmenters import Ours
from napari_lowlat_seg.inference import openvino_backend as backend
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.recorded_step import Step
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.inference.torch_backend import TorchBackend
from napari_lowlat_seg.models.checkpoints import load_model

CALIBRATION_PICTURES = 96


def onnx(device: str) -> Ours:
    """onnxruntime in float32; both steps exported by torch."""
    predictor = _predictor(device)
    steps = predictor.backend
    image, maps, features = _examples(steps)
    steps.encode = _onnx_step(_module(steps, steps.network.encode), image)
    steps.click = _onnx_step(_module(steps, steps.click), maps, *features)
    return Ours("default, onnxruntime", predictor)


def openvino_bf16(device: str) -> Ours:
    """OpenVINO with embedding and clicks in bf16."""
    return _openvino(device, "default, OpenVINO bf16 throughout", ("bf16", "bf16"), ())


def openvino_int8_embedding(device: str) -> Ours:
    """OpenVINO with the embedding in int8 and clicks in bf16."""
    return _openvino(device, "default, OpenVINO int8 embedding", ("f32", "bf16"), ("encode",))


def openvino_int8(device: str) -> Ours:
    """OpenVINO with embedding and clicks in int8."""
    return _openvino(device, "default, OpenVINO int8", ("f32", "f32"), ("encode", "click"))


def _predictor(device: str) -> Predictor:
    return Predictor(load_model("default"), Runtime(device, "fp32"), "off")


def _examples(steps: TorchBackend) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    side = (1, 3, steps.network.size, steps.network.size)
    image, maps = torch.rand(side) * 255, torch.rand(side)
    with torch.no_grad():
        return image, maps, steps.network.encode(image)


def _module(steps: TorchBackend, step: Step) -> torch.nn.Module:
    return backend._Traced(steps.network, step).eval()


def _onnx_step(module: torch.nn.Module, *inputs: Tensor) -> Step:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        torch.onnx.export(module, inputs, f"{folder}/step.onnx", dynamo=False, opset_version=18)
        exported = Path(folder, "step.onnx").read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(exported, options, ["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def step(*given: Tensor) -> tuple[Tensor, ...]:
        arrays = (x.float().contiguous().numpy() for x in given)
        return tuple(map(torch.from_numpy, session.run(None, dict(zip(names, arrays)))))

    return step


def _openvino(device: str, name: str, hints: tuple[str, str], quantized: tuple[str, ...]) -> Ours:
    predictor = _predictor(device)
    steps = predictor.backend
    image, maps, features = _examples(steps)
    models = {
        "encode": backend._converted(steps.network, steps.network.encode, image),
        "click": backend._converted(steps.network, steps.click, maps, *features),
    }
    for part in quantized:
        models[part] = _int8(models[part], list(_inputs(steps, part)))
    core = backend.openvino().Core()
    steps.encode, steps.click = (
        backend.CompiledStep(
            core.compile_model(model, "CPU", backend.Conversion(steps.click, tuple, hint).options()),
            lambda: None,
        )
        for model, hint in zip(models.values(), hints, strict=True)
    )
    return Ours(name, predictor)


def _int8(model: Any, inputs: list[tuple[np.ndarray, ...]]) -> Any:
    import nncf

    return nncf.quantize(
        model,
        nncf.Dataset(inputs, lambda arrays: arrays[0] if len(arrays) == 1 else arrays),
        subset_size=len(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
    )


def _inputs(steps: TorchBackend, part: str) -> Iterator[tuple[np.ndarray, ...]]:
    """What the encoder, or the click, is given for training pictures; one click in the middle, one beside."""
    folder = Path(os.environ["LOWLAT_SEG_CALIBRATION"])
    paths = sorted(path for path in folder.rglob("images/*/*") if path.is_file())
    size = steps.network.size
    for path in paths[:: max(1, len(paths) // CALIBRATION_PICTURES)]:
        plane = to_uint8(read_picture(path))
        frame = Frame.whole(plane.shape[:2], size, steps.network.fit)
        seen: list[Tensor] = []
        features = _recorded(steps, plane, frame, seen)
        if part == "encode":
            yield (seen[0].numpy(),)
            continue
        rows, cols = plane.shape[:2]
        clicks = [Click((rows / 2, cols / 2)), Click((rows / 4, cols / 4), positive=False)]
        before = steps.predict(features, frame, [(clicks[:1], None)])[0].probability
        maps = torch.zeros((1, 3, size, size))
        steps.stamp(maps, frame, [(clicks, before)])
        yield (maps.numpy(), *(feature.numpy() for feature in features))


def _recorded(steps: TorchBackend, plane: np.ndarray, frame: Frame, seen: list[Tensor]) -> tuple[Tensor, ...]:
    """The features of a plane; what the encoder was given is put into `seen`."""
    encode = steps.network.encode

    def watched(image: Tensor) -> tuple[Tensor, ...]:
        seen.append(image.contiguous())
        return encode(image)

    steps.encode = watched
    try:
        return steps.embed(plane, frame)
    finally:
        steps.encode = encode
