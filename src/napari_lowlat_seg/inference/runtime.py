"""The device and the precision that a network runs with, chosen once.

This is the only module that asks torch what the machine has; everything else is given a `Runtime`, which a
test can replace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Precision = Literal["fp32", "tf32", "fp16", "bf16"]
DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16
}  # fmt: skip

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class Runtime:
    """A device of this machine and the precision of the matrix products on it.

    Attributes
    ----------
    device
        torch's name: "cpu", "cuda:0", "mps".
    precision
        "fp32", "tf32" (CUDA's float32 with short products), "fp16" or "bf16". On a CUDA device the weights
        have this type too; elsewhere they stay float32 and only matrix products are shorter.
    compiled
        Whether torch's compiler fuses the steps on a CUDA device: a minute at load, then the fastest clicks.
    openvino
        Whether OpenVINO runs the network on the processor; if it cannot, torch does, after a warning.

    Raises
    ------
    ValueError
        For an unknown precision.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    compiled: bool = False
    openvino: bool = False

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise ValueError(f"precision is one of {', '.join(DTYPES)}; got {self.precision!r}")

    @classmethod
    def find(cls, device: str = "auto", precision: Precision | None = None) -> Runtime:
        """The runtime for `device`: "auto" takes the first CUDA device, then Apple's "mps", then the CPU.

        Without a `precision`, CUDA computes products in fp16, a CPU with instructions for bf16 in bf16, and
        everything else in float32. On the CPU, OpenVINO runs the network if it is installed.

        Raises
        ------
        ValueError
            For a device that this machine or this build of torch lacks; the message lists those present.
        """
        present = available_devices()
        chosen = present[0] if device == "auto" else "cuda:0" if device == "cuda" else device
        if chosen not in present:
            if device.startswith("ssh://"):
                raise ValueError(
                    f"{device!r} is another machine, which the widget, `lowlat-seg segment` and "
                    "`PredictionProcess` can use; for all else run the command there"
                )
            there = ", ".join(present)
            raise ValueError(f"device {device!r} is not available; choose 'auto' or one of {there}")
        if precision is None:
            short: Precision = "bf16" if chosen == "cpu" and has_bf16() else "fp32"
            precision = "fp16" if chosen.startswith("cuda") else short
        return cls(chosen, precision, openvino=chosen == "cpu" and has_openvino())

    @property
    def on_cuda(self) -> bool:
        """Whether it is a CUDA device, on which steps can be recorded as graphs."""
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights, features and maps on the device."""
        return DTYPES[self.precision] if self.on_cuda else torch.float32

    def prepare(self, network: AnyModule) -> AnyModule:
        """The network on this device, in evaluation mode, its convolutions channels-last in memory.

        With that layout layer norms and linear layers read a map without copying it.
        """
        laid: AnyModule = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return laid.to(self.device, self.dtype).eval()

    def tensor(self, array: np.ndarray) -> Tensor:
        """A float32 copy of a numpy array on this device."""
        return torch.tensor(np.ascontiguousarray(array), dtype=torch.float32, device=self.device)

    def upload(self, array: np.ndarray) -> Tensor:
        """A copy of a numpy array on this device, of the array's own type; does not wait for the device."""
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        there = torch.empty(array.shape, dtype=dtype, pin_memory=self.on_cuda)
        there.numpy()[...] = array
        return there.to(self.device, non_blocking=True)

    def download(self, *tensors: Tensor) -> list[np.ndarray]:
        """Tensors of this device as numpy arrays, with one wait for all of them."""
        return self.downloading(*tensors)()

    def downloading(self, *tensors: Tensor) -> Callable[[], list[np.ndarray]]:
        """Start `download` and return at once; calling the result waits for the tensors and returns them.

        It does not wait for work that the device is given later.
        """
        if not self.on_cuda:
            return lambda: [tensor.cpu().numpy() for tensor in tensors]
        here = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for pinned, tensor in zip(here, tensors, strict=True):
            pinned.copy_(tensor, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))

        def fetched() -> list[np.ndarray]:
            arrived.synchronize()
            return [pinned.numpy() for pinned in here]

        return fetched

    @contextmanager
    def inference(self, *, embedding: bool = False) -> Iterator[None]:
        """A context without gradients and with products in this runtime's precision.

        Other devices than CUDA compute an `embedding` in float32 even so: all clicks start from it, and bf16
        there changes masks visibly (docs/decisions/hot-path.md).
        """
        kind = self.device.partition(":")[0]
        short = not self.on_cuda and self.precision in ("fp16", "bf16") and not embedding
        with torch.inference_mode(), self._tf32() if self.on_cuda else nullcontext():
            if self.on_cuda and not torch.is_autocast_enabled():
                yield  # entering autocast takes a noticeable part of a click
                return
            with torch.autocast(kind, DTYPES[self.precision] if short else None, enabled=short):
                yield

    @contextmanager
    def _tf32(self) -> Iterator[None]:
        """A context in which CUDA's float32 products are short if the precision is "tf32"."""
        switches: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
        on, before = self.precision == "tf32", [switch.allow_tf32 for switch in switches]
        changed = [pair for pair in zip(switches, before, strict=True) if pair[1] != on]
        try:
            for switch, _ in changed:
                switch.allow_tf32 = on
            yield
        finally:
            for switch, was in changed:
                switch.allow_tf32 = was


def available_devices() -> tuple[str, ...]:
    """Names of the devices of this machine, fastest first; the last is always "cpu"."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return (*cuda, *mps, "cpu")


def has_bf16() -> bool:
    """Whether the processor has instructions for bf16; without them it would be slower than float32."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # torch < 2.6 cannot tell
    return bool(supported is not None and supported())


def has_openvino() -> bool:
    """Whether the extra `openvino` is installed."""
    return find_spec("openvino") is not None
