"""The weights that a training run starts from: of an encoder, of a whole model, or of a smaller member."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from napari_lowlat_seg.models.compact import Compact, CompactConfig, FusionBlock
from napari_lowlat_seg.models.dino import resample
from napari_lowlat_seg.models.tinyvit import resize_windows


def starting_network(config: CompactConfig, start: str, start_vit: str, seed: int) -> Compact:
    """The network of a config with what its files hold, random weights elsewhere.

    Parameters
    ----------
    config
        Of the network.
    start
        A .safetensors file of encoder weights (MobileSAM's names) or of a whole compact model, which may
        have another input side and lack a second encoder and further fusion blocks: what is new adds nothing
        at first. None if empty.
    start_vit
        A .safetensors file of weights for the second encoder, on any grid and patch. None if empty.
    seed
        Of the random weights.

    Raises
    ------
    ValueError
        If a whole model lacks or has other parts, or weights for a second encoder are given to a network
        without one.
    """
    torch.manual_seed(seed)
    network = Compact(config)
    if start:
        state = _floats(start)
        if "deep.weight" in state:
            _start_whole(network, state)
        else:
            network.encoder.load_state_dict(resize_windows(state, network.encoder))
    if start_vit:
        if network.vit is None:
            raise ValueError("expected a model with a second encoder for `start_vit`; set `vit_depth`")
        # norms and join are new: no other network has them
        own = network.vit.state_dict()
        network.vit.load_state_dict({**own, **resample(_floats(start_vit), network.vit)})
    return network


def _floats(path: str) -> dict[str, Tensor]:
    return {name: value.float() for name, value in load_file(path).items()}


def _start_whole(network: Compact, state: dict[str, Tensor]) -> None:
    """Load a whole model; the parts that it lacks are a second encoder and further fusion blocks."""
    if network.vit is not None and "vit.pos_embed" in state:  # the one tensor that knows the input's side
        vit = {name.removeprefix("vit."): value for name, value in state.items() if name.startswith("vit.")}
        state = state | {f"vit.{name}": value for name, value in resample(vit, network.vit).items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    unknown = [*unexpected, *(name for name in missing if not name.startswith(("vit.", "blocks.")))]
    if unknown:
        raise ValueError(f"expected the weights of the config's model, got none or others for {unknown[:3]}")
    for number, block in enumerate(network.blocks):
        if f"blocks.{number}.local.weight" in missing:
            assert isinstance(block, FusionBlock)
            for part in (block.local, block.attn.proj, block.fc2):  # a block of residuals that are zero
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]
