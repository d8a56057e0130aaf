"""Profiling of our models: time by stage, the least time that the device allows, and growth with the work.

The floor follows the roofline model (Williams, Waterman, Patterson, "Roofline", CACM 2009): the larger of
operations over the rate of a large matrix product on this device, and bytes that must move (weights, inputs
and outputs once each) over the rate of a large copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import THRESHOLD
from napari_lowlat_seg.core.prompts import Click, Prompt
from napari_lowlat_seg.core.volume import Volume, to_uint8
from napari_lowlat_seg.inference.prediction import Embedding
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.runtime import DTYPES, Runtime
from napari_lowlat_seg.inference.torch_backend import from_square, on_square
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.io.samples import blobs, sample_path
from napari_lowlat_seg.models.network import Network
from napari_lowlat_seg.propagation.propagate import propagate
from napari_lowlat_seg.propagation.sweep import embed_plane

REPEATS = 5
AMOUNTS = {
    "prompts": (1, 2, 5, 10, 20, 50, 100, 200),
    "image side": (256, 512, 1024, 2048, 4096, 8192),
    "planes": (1, 10, 100, 500, 1000, 2000),
    "objects": (1, 2, 5, 10, 20, 50, 100, 200, 500),
}


def seconds_of(work: Callable[[], object], runtime: Runtime, repeats: int = REPEATS) -> float:
    """Return the median wall-clock seconds of `work` until the runtime's device is done, after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        start = perf_counter()
        work()
        if runtime.on_cuda:
            torch.cuda.synchronize(runtime.device)
        times.append(perf_counter() - start)
    return median(times[1:])


def stages(predictor: Predictor, image: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the seconds of each stage of "embed" and of a second "click" on the whole plane.

    Each stage is waited for and no graph is recorded, so on a GPU they add up to more than a click takes.
    """
    path, network, runtime = predictor.backend, predictor.network, predictor.runtime
    plane = to_uint8(image)
    frame = Frame.whole(plane.shape[:2], network.size, network.fit)
    embedding = predictor.embed(image)
    prompts = [Click((0.4 * plane.shape[0], 0.6 * plane.shape[1])), Click((0.0, 0.0), positive=False)]
    question = (prompts, predictor.predict_batch(embedding, [prompts[:1]])[0].soft)
    with runtime.inference():
        rgb = runtime.upload(plane if plane.ndim == 3 else plane[..., None]).permute(2, 0, 1)[None].float()
        pad = runtime.tensor(np.array(network.pad))
        square = on_square(rgb, frame, pad).contiguous(memory_format=torch.channels_last)
        shape = (1, 3, network.size, network.size)
        maps = torch.zeros(shape, device=runtime.device, dtype=runtime.dtype)
        path.stamp(maps, frame, [question])
        logits = path.click(maps, *embedding.features)[0]
        embed: dict[str, Callable[[], object]] = {
            "8 bits": lambda: to_uint8(image).copy(),
            "resize": lambda: on_square(rgb, frame, pad),
            "encode": lambda: _encoded(predictor, square),
        }
        click: dict[str, Callable[[], object]] = {
            "prompts": lambda: path.stamp(maps.zero_(), frame, [question]),
            **_drawing(predictor, embedding.features, maps),
            "mask": lambda: runtime.download(
                from_square(logits, frame, network.aligned).sigmoid() > THRESHOLD
            ),
        }
        return {
            "embed": {name: seconds_of(work, runtime) for name, work in embed.items()},
            "click": {name: seconds_of(work, runtime) for name, work in click.items()},
        }


def _encoded(predictor: Predictor, square: Tensor) -> tuple[Tensor, ...]:
    with predictor.runtime.inference(embedding=True):
        return predictor.backend.encode(square)


def _drawing(
    predictor: Predictor, features: tuple[Tensor, ...], maps: Tensor
) -> dict[str, Callable[[], object]]:
    """The network's own stages of a click: OpenVINO has them as one."""
    network = predictor.network
    if predictor.runtime.openvino:
        return {"fuse and draw": lambda: predictor.backend.click(maps, *features)}
    fused = network.fuse(features, maps)
    return {"fuse": lambda: network.fuse(features, maps), "draw": lambda: network.decode_low_res(fused)}


def plane_seconds(predictor: Predictor) -> float:
    """Return the seconds that a neuron of the shipped volume takes to be propagated by a plane of 250 x 250.

    The mean of 23 planes, from the first one asked for to the last one given; the second of two propagations.
    """
    volume = read_volume(sample_path("em_fly_medulla.tif")).with_window()
    start, *_ = planes = volume.planes(0)[24:]
    anchors = {start: predictor.predict(embed_plane(predictor, volume, start), [Click((228.0, 95.0))])}
    reached: list[int] = []

    def propagated() -> None:
        found = propagate(predictor, volume, anchors, planes)
        reached.append(len({step.plane for step in found} - {start}))

    return seconds_of(propagated, predictor.runtime, 1) / max(1, reached[-1])


def floor(predictor: Predictor) -> dict[str, float]:
    """Return the least seconds possible on this device, and what they follow from.

    Returns
    -------
    dict
        "embed_s", "click_s", "sat_s" (one image, 256 clicks); "operations_per_s" and "bytes_per_s", as
        measured by `ceilings`; "embed_operations", "embed_bytes", "click_operations", "click_bytes".
    """
    network, runtime = predictor.network, predictor.runtime
    operations, moved = ceilings(runtime)
    least: dict[str, float] = {"operations_per_s": operations, "bytes_per_s": moved}
    for step, (work, values) in work_of(network).items():
        full = step == "embed" and not runtime.on_cuda  # see `Runtime.inference`
        rate = ceilings(replace(runtime, precision="fp32"))[0] if full else operations
        size = values * DTYPES["fp32" if full else runtime.precision].itemsize
        least |= {f"{step}_operations": work, f"{step}_bytes": size}
        least[f"{step}_s"] = max(work / rate, size / moved)
    least["sat_s"] = least["embed_s"] + 256 * least["click_s"]
    return least


def work_of(network: Network) -> dict[str, tuple[float, float]]:
    """Return floating-point operations and values moved (weights, inputs, outputs) of "embed" and "click"."""
    meta = _on_meta(network)
    side = (1, 3, network.size, network.size)
    image, maps = torch.zeros(side, device="meta"), torch.zeros(side, device="meta")
    features = tuple(feature.detach() for feature in meta.encode(image))
    return {
        "embed": _counted(meta, lambda: meta.encode(image), [image]),
        "click": _counted(
            meta, lambda: meta.decode_low_res(meta.fuse(features, maps))[:1], [maps, *features]
        ),
    }


@lru_cache(maxsize=8)
def ceilings(runtime: Runtime) -> tuple[float, float]:
    """Return operations per second of a large matrix product and bytes per second of a large copy."""
    side, length = (8192, 2**29) if runtime.on_cuda else (2048, 2**26)
    with runtime.inference():
        factors = torch.randn(2, side, side, device=runtime.device).to(DTYPES[runtime.precision])
        product = seconds_of(lambda: factors[0] @ factors[1], runtime, 10)
        source = torch.randn(length, device=runtime.device)
        target = torch.empty_like(source)
        copied = seconds_of(lambda: target.copy_(source), runtime, 10)
    return 2 * side**3 / product, 2 * 4 * length / copied


def _on_meta(network: Network) -> Network:
    """A network of the same shapes without values."""
    family: Any = type(network)
    with torch.device("meta"):
        meta: Network = family(network.config).eval()
    return meta


def _counted(
    network: Network, step: Callable[[], tuple[Tensor, ...]], inputs: list[Tensor]
) -> tuple[float, float]:
    with FlopCounterMode(display=False) as counter:
        outputs = step()
    weights = list(network.parameters())
    # Weights with a gradient take part in the outputs: they must be read.
    grads = torch.autograd.grad(sum(x.sum() for x in outputs), weights, allow_unused=True)  # type: ignore[arg-type]
    used = sum(weight.numel() for weight, grad in zip(weights, grads) if grad is not None)
    return counter.get_total_flops(), used + sum(x.numel() for x in (*inputs, *outputs))


def curves(predictor: Predictor, amounts: dict[str, tuple[int, ...]] = AMOUNTS) -> list[dict[str, Any]]:
    """Time the work as it grows with prompts, the image's side, planes of a volume and objects.

    Returns
    -------
    list of dict
        Curves with "model", "kind" (a key of `amounts`), "label" (what is timed), "amounts", "seconds", and
        "touched": whether the data to be read grows as the amount ("linear") or as its square ("square").
    """
    embedding = predictor.embed(blobs((1024, 1024)))

    def first_mask(embedding: Embedding, prompts: list[Prompt]) -> Callable[[], object]:
        return lambda: next(predictor.answers(embedding, prompts)).mask

    def last_plane(count: int) -> Callable[[], object]:
        volume = Volume(np.broadcast_to(blobs((256, 256)), (count, 256, 256)))
        plane, click = volume.planes()[-1], Click((99.0, 99.0))
        return lambda: next(predictor.answers(predictor.embed(volume.plane(plane)), [click])).mask

    def all_objects(count: int) -> Callable[[], object]:
        prompts = [[click] for click in _scattered(2 * count)[::2]]
        return lambda: [prediction.mask for prediction in predictor.predict_batch(embedding, prompts)]

    def middle(side: int) -> list[Prompt]:
        return [Click((side / 3, side / 2))]

    works: list[tuple[str, str, str, Callable[[int], Callable[[], object]]]] = [
        ("prompts", "click", "linear", lambda n: first_mask(embedding, _scattered(n))),
        ("image side", "embed", "square", lambda n: partial(predictor.embed, _tiled(n))),
        ("image side", "click", "square", lambda n: first_mask(predictor.embed(_tiled(n)), middle(n))),
        ("planes", "next plane", "linear", last_plane),
        ("objects", "all", "linear", all_objects),
    ]
    return [
        {
            "model": predictor.name,
            "kind": kind,
            "label": f"{predictor.name}: {label}",
            "touched": touched,
            "amounts": list(amounts[kind]),
            "seconds": [seconds_of(prepare(n), predictor.runtime, 3) for n in amounts[kind]],
        }
        for kind, label, touched, prepare in works
    ]


def _scattered(count: int) -> list[Prompt]:
    positions = np.random.default_rng(2).uniform(0, 1023, (count, 2)).tolist()
    return [Click((row, col), positive=i % 2 == 0) for i, (row, col) in enumerate(positions)]


def _tiled(side: int) -> np.ndarray:
    return np.tile(blobs((256, 256)), (side // 256, side // 256))
