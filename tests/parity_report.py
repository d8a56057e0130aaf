"""How far every recording of the original is from ours, as a Markdown table.

    python tests/parity_report.py FOLDER

FOLDER holds the complete recordings, of which tests/golden/ has a part: inputs.npz, NAME.weights.safetensors,
NAME.outputs.safetensors for three small networks, disks.npz, click_scaling.npz, vitb_state_dict_shapes.json.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Click, dense_maps, swept
from napari_lowlat_seg.inference.predictor import Prediction, Predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.models.compact import distance_maps
from napari_lowlat_seg.models.segnext import SegNext, SegNextConfig
from napari_lowlat_seg.models.segnext_checkpoint import segnext_config

Row = tuple[str, str, float]
SHRUNK = ("backbone.pos_embed", "backbone.patch_embed.", "visual_prompts_encoder.")


def network_of(folder: Path, name: str) -> SegNext:
    """One of the recorded small networks."""
    path = folder / f"{name}.weights.safetensors"
    state = load_file(path)
    with safe_open(path, "pt") as file:
        config = segnext_config(state, json.loads(file.metadata()["config"]))
    network = SegNext(config)
    network.load_state_dict(state)
    return network.eval()


def naive(network: SegNext) -> SegNext:
    """The same network without its fusion blocks."""
    bare = SegNext(replace(network.config, fusion_blocks=0))
    bare.load_state_dict(
        {k: v for k, v in network.state_dict().items() if not k.startswith("fusion_blocks.")}
    )
    return bare.eval()


def shrunk(network: SegNext) -> SegNext:
    """The same network with embeddings and residual branches times 0.003: norms then divide by about eps."""
    faint = SegNext(network.config)
    faint.load_state_dict(
        {
            key: value * 0.003
            if key.startswith(SHRUNK) or ".attn.proj." in key or ".mlp.fc2." in key
            else value
            for key, value in network.state_dict().items()
        }
    )
    return faint.eval()


def answers(network: SegNext, image: np.ndarray, clicks: np.ndarray) -> Iterator[np.ndarray]:
    """The probability after each click, fed with the one before, through the public door."""
    predictor = Predictor(network, Runtime(), closer_look="off")
    embedding = predictor.embed(image)
    previous = None
    for count in range(1, len(clicks) + 1):
        prompts = [Click((float(y), float(x)), bool(positive)) for y, x, positive in clicks[:count]]
        previous = predictor.predict(embedding, prompts, previous)
        yield previous.probability


def inside(network: SegNext, image: np.ndarray, clicks: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What the official network shows on its way to the answer to the first click."""
    with torch.inference_mode():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        side = (network.size, network.size)
        pixels = F.interpolate(pixels, side, mode="bilinear")
        mean, std = (
            pixels.new_tensor(v)[:, None, None] for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
        )
        yield "a/patch_embed", network.backbone.patch_embed((pixels - mean) / std).numpy()
        features = network.encode(pixels)
        yield "a/image_feats", features[0].numpy()
        y, x, positive = clicks[0].tolist()
        frame = Frame.whole(image.shape[:2], network.size, "official")
        maps = torch.from_numpy(dense_maps([Click((y, x), bool(positive))], frame))[None]
        yield "a/prompt_embed_1", network.visual_prompts_encoder(maps).numpy()
        fused = network.fuse(features, maps)
        for level, pyramid in enumerate(network.neck(fused[0])):
            yield f"a/neck{level}_1", pyramid.numpy()
        yield "a/head_logits_1", network.head_logits(fused).numpy()


def mask_prompt(network: SegNext, image: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    """The answer to the first click where the previous mask is a rectangle."""
    predictor = Predictor(network, Runtime(), closer_look="off")
    embedding = predictor.embed(image)
    rectangle = np.zeros(image.shape[:2], np.float32)
    rectangle[40:120, 60:180] = 1
    y, x, positive = clicks[0].tolist()
    previous = Prediction(rectangle, None, embedding.frame)
    return predictor.predict(embedding, [Click((y, x), bool(positive))], previous).probability


def grid_of_clicks(network: SegNext, image: np.ndarray) -> np.ndarray:
    """One positive click at each of four places of the network's own grid, (4, H, W)."""
    embedding = Predictor(network, Runtime(), closer_look="off").embed(image)
    frame = Frame.whole((network.size, network.size), network.size, "official")
    found = []
    with torch.inference_mode():
        for at in ((64, 64), (64, 192), (192, 64), (192, 192)):
            maps = torch.from_numpy(dense_maps([Click(at)], frame))[None]
            logits, _ = network.decode(network.fuse(embedding.features, maps))
            found.append(F.interpolate(logits, image.shape[:2], mode="bilinear").sigmoid()[0, 0].numpy())
    return np.stack(found)


def network_rows(folder: Path, name: str) -> Iterator[Row]:
    """Largest difference of every recorded array of one network that is a real number."""
    network, recorded = network_of(folder, name), load_file(folder / f"{name}.outputs.safetensors")
    inputs = np.load(folder / "inputs.npz")
    image, clicks = inputs["image_a"], inputs["clicks_a"]
    ours: dict[str, np.ndarray] = dict(inside(network, image, clicks))
    for letter in "ab":
        sequence = answers(network, inputs[f"image_{letter}"], inputs[f"clicks_{letter}"])
        ours |= {f"{letter}/prob_{k}": p for k, p in enumerate(sequence, 1)}
    ours["a/prob_maskprompt_1"] = mask_prompt(network, image, clicks)
    if "a/naive_prob_1" in recorded:
        ours["a/sat2"] = grid_of_clicks(network, image)
        for kind, variant in (("naive", naive(network)), ("eps", shrunk(network))):
            ours |= {f"a/{kind}_prob_{k}": p for k, p in enumerate(answers(variant, image, clicks[:2]), 1)}
    ours["a/head_logits_5"] = fifth_logits(network, image, clicks)
    for key in sorted(recorded):
        if "points_nd" not in key:
            yield name, key, float(np.abs(ours[key] - recorded[key].numpy()).max())


def fifth_logits(network: SegNext, image: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    """The head's own logits at click 5."""
    kept: list[torch.Tensor] = []
    hook = network.head.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    list(answers(network, image, clicks))
    hook.remove()
    return kept[4].numpy()


def disk_rows(folder: Path) -> Iterator[Row]:
    """Pixels of disks, distances and scaled clicks."""
    recorded = np.load(folder / "disks.npz")
    worst = 0
    keys = sorted(key for key in recorded if key.startswith("disk_"))
    for key in keys:
        _, radius, case = key.split("_", 2)
        ours = np.zeros((2, 48, 72), np.uint8)
        for channel, part in enumerate(np.split(recorded[f"points_{case}"][0], 2)):
            used = part[part[:, :2].max(axis=1) >= 0, :2]
            rows, cols = swept(np.stack([used, used], axis=1), int(radius[1:]), (48, 72))
            ours[channel, rows, cols] = 1
        worst = max(worst, int(np.count_nonzero(ours != recorded[key])))
    yield "disks", f"all {len(keys)} disk arrays: pixels that differ", float(worst)
    point = torch.zeros(1, 2, 48, 72)
    row, col = recorded["points_centre_pos"][0, 0, :2].astype(int)
    point[0, 0, row, col] = 1
    tanh = distance_maps(point, 5)[0].numpy()
    yield "disks", "tanh_r5_centre_pos", float(np.abs(tanh - recorded["tanh_r5_centre_pos"]).max())
    scaling = np.load(folder / "click_scaling.npz")
    worst = 0
    for key in scaling:
        size, side = (int(part[1:]) for part in key.split("_"))
        frame = Frame.whole((side, 7), size, "official")
        ours = frame.pixels([(i, 0) for i in range(side)])[:, 0]
        worst = max(worst, int(np.abs(ours - scaling[key]).max()))
    yield "click_scaling", f"all {len(scaling.files)} arrays, pixels", float(worst)


def geometry_rows(folder: Path) -> Iterator[Row]:
    """Keys and shapes of the released geometry that differ."""
    recorded = json.loads((folder / "vitb_state_dict_shapes.json").read_text())
    for blocks in (1, 2):
        with torch.device("meta"):
            network = SegNext(SegNextConfig.vit_b(blocks))
        ours = {key: list(value.shape) for key, value in network.state_dict().items()}
        expected = recorded[f"vitb_sax{blocks}"]
        differing = sum(ours.get(key) != expected.get(key) for key in ours.keys() | expected.keys())
        yield (
            "vitb_state_dict_shapes",
            f"vitb_sax{blocks}: keys that differ of {len(expected)}",
            float(differing),
        )


def main() -> None:
    """Print the table and, last, the largest difference of a probability."""
    folder = Path(sys.argv[1])
    rows: list[Row] = []
    for name in ("sax1_256", "sax2_256", "sax2_448"):
        rows += network_rows(folder, name)
    probabilities = max(d for _, key, d in rows if "prob" in key or "sat" in key)
    rows += [*disk_rows(folder), *geometry_rows(folder)]
    print("| recording | array | largest difference |\n| --- | --- | --- |")
    for name, key, difference in rows:
        print(f"| {name} | {key} | {difference:.1e} |" if difference else f"| {name} | {key} | 0 |")
    print(f"\nLargest difference of any probability: {probabilities:.1e}")


if __name__ == "__main__":
    main()
