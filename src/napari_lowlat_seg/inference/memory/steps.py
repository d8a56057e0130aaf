"""A memory of other planes as inference runs it, read from its file, by torch or by OpenVINO.

The steps are those of `models/plane_memory.py`. Why: docs/decisions/memory.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from napari_lowlat_seg.models.checkpoints import load_model
from napari_lowlat_seg.models.compact import Compact
from napari_lowlat_seg.models.plane_memory import (
    BEFORE,
    SLOTS,
    MemoryEntry,
    MemoryOutput,
    PlaneMemory,
    slot_features,
)

if TYPE_CHECKING:
    from napari_lowlat_seg.inference.openvino_backend import CompiledStep
    from napari_lowlat_seg.inference.predictor import Predictor


class MemorySteps(nn.Module):
    """A memory as inference runs it: its changes folded in and, where the predictor does so, by OpenVINO.

    Parameters
    ----------
    memory
        Where it computes; what changes it afterwards has no effect.
    """

    def __init__(self, memory: PlaneMemory) -> None:
        super().__init__()
        memory.fold()
        self.memory, self.folded = memory, memory.folded
        self.size, self.config = memory.size, memory.config
        self._compiled: CompiledStep | None = None
        self.eval().requires_grad_(False)

    def remember(self, features: Sequence[Tensor], mask: Tensor) -> MemoryEntry:
        """As `PlaneMemory.remember`."""
        return self.memory.remember(features, mask)

    def forward(
        self, features: Sequence[Tensor], entries: Sequence[MemoryEntry], described: Tensor
    ) -> MemoryOutput:
        """As `PlaneMemory`."""
        if self._compiled is None:
            found: MemoryOutput = self.memory(features, entries, described)
            return found
        return MemoryOutput(*self._compiled(*_flat(features, entries, described)))

    def compile(self, precision: str, check: Callable[[], object]) -> None:
        """Hand `forward` to OpenVINO, if it can convert it; what it cannot convert runs as before."""
        from napari_lowlat_seg.inference.openvino_backend import (
            Conversion,
            ConversionError,
            compiled,
            hint_of,
        )

        # The next planes are embedded meanwhile: with half of the threads the two do not wait for each other.
        step = Conversion(self._on_tensors, self._example, hint_of(precision), share=2)
        try:
            self._compiled = compiled(self, {"memory": step}, check)["memory"]
        except ConversionError as problem:
            warnings.warn(f"OpenVINO does not run the memory ({problem}), so torch does", stacklevel=2)

    def _on_tensors(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """`forward` from the tensors of `_flat`."""
        deep, here8, here4, tokens, masks, before8, before4, described = tensors
        entries = [
            MemoryEntry(tokens[:, slot], before8, before4, masks[:, slot : slot + 1]) for slot in range(SLOTS)
        ]
        found: MemoryOutput = self.memory((deep, here8, here4), entries, described)
        return tuple(found)

    def _example(self) -> tuple[Tensor, ...]:
        """Tensors of `_flat` to convert and check with: noise, and one square on all planes."""
        features = self.memory.network.encode(torch.rand(1, 3, self.size, self.size) * 255)
        mask = torch.zeros(1, 1, self.size, self.size)
        mask[..., self.size // 4 : self.size // 2, self.size // 3 : self.size // 2] = 1
        entry, zeros = self.remember(features, mask), torch.zeros(1, SLOTS)
        described = slot_features(zeros + 1, zeros + 4, zeros > -1, zeros > 0)
        return _flat(features, [entry] * SLOTS, described)


def _flat(
    features: Sequence[Tensor], entries: Sequence[MemoryEntry], described: Tensor
) -> tuple[Tensor, ...]:
    """What a memory's output depends on, as tensors of fixed shapes; only of the plane before the skips."""
    tokens = torch.stack([entry.tokens for entry in entries], 1)
    masks = torch.cat([entry.mask for entry in entries], 1)
    before = entries[BEFORE]
    return (*features, tokens, masks, before.thin8, before.thin4, described)


def load_memory(predictor: Predictor, file: Path | None = None) -> MemorySteps:
    """Read a memory of the default model, on the predictor's device, with a network of its own in float32.

    The predictor's network may be in half precision, or with OpenVINO. `file` is one of `PlaneMemory`, whose
    errors are raised; the shipped one if None.
    """
    network = load_model("default")
    assert isinstance(network, Compact)
    with as_file(files("napari_lowlat_seg.models") / "weights" / "memory.safetensors") as shipped:
        memory = PlaneMemory.load(shipped if file is None else file, network)
    network.to(predictor.runtime.device)
    steps = MemorySteps(memory.to(predictor.runtime.device))
    if predictor.runtime.openvino:
        steps.compile(predictor.runtime.precision, predictor.backend.check)
    return steps
