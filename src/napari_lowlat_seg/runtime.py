"""Where the numbers are crunched: one device and one precision, chosen once.

This is the only file that asks torch what the machine has. Everything else is handed a `Runtime` and uses it,
so that "works on the author's machine" is decided in one place and can be faked in a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class Runtime:
    """A device of this machine and the precision of the matrix products on it.

    Attributes
    ----------
    device
        As torch spells it: "cpu", "cuda:0", "mps".
    precision
        "fp32", "fp16" or "bf16". Weights stay float32; only the products are made shorter.
    """

    device: str = "cpu"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise ValueError(f"precision is one of {', '.join(DTYPES)}; got {self.precision!r}")

    @classmethod
    def find(cls, device: str = "auto", precision: Precision | None = None) -> Runtime:
        """The runtime for `device`: "auto" takes the first CUDA device, then Apple's "mps", then the CPU.

        Without a `precision`, CUDA multiplies in half precision and everything else in float32.

        Raises
        ------
        ValueError
            For a device that this machine or this build of torch lacks; it lists those there are.
        """
        present = available_devices()
        chosen = present[0] if device == "auto" else "cuda:0" if device == "cuda" else device
        if chosen not in present:
            there = ", ".join(present)
            raise ValueError(f"device {device!r} is not available; choose 'auto' or one of {there}")
        return cls(chosen, precision or ("fp16" if chosen.startswith("cuda") else "fp32"))

    def prepare(self, network: AnyModule) -> AnyModule:
        """The network on this device, in evaluation mode, convolutions laid out channels last.

        That is the layout in which layer norms and linear layers read a map without copying it.
        """
        laid: AnyModule = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return laid.to(self.device).eval()

    def tensor(self, array: np.ndarray) -> Tensor:
        """A float32 copy of a numpy array on this device."""
        return torch.tensor(np.ascontiguousarray(array), dtype=torch.float32, device=self.device)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Inside: no gradients, and products in this runtime's precision. Leaves nothing behind outside."""
        kind = self.device.partition(":")[0]
        short = self.precision != "fp32"
        dtype = DTYPES[self.precision] if short else None
        with torch.inference_mode(), torch.autocast(kind, dtype, enabled=short):
            yield


def available_devices() -> tuple[str, ...]:
    """Names of the devices that can be used here, best first; "cpu" is always the last."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return (*cuda, *mps, "cpu")
