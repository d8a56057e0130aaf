"""Where the numbers are crunched: one device and one precision, chosen once.

This is the only file that asks torch what the machine has. Everything else is handed a `Runtime` and uses it,
so that "works on the author's machine" is decided in one place and can be faked in a test.
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
        As torch spells it: "cpu", "cuda:0", "mps".
    precision
        "fp32", "tf32" (CUDA's float32 with short products), "fp16" or "bf16". On a CUDA device the weights
        take this type too; elsewhere they stay float32 and only the products are made shorter.
    compiled
        Let torch's compiler fuse the steps on a CUDA device: a minute at load, then the fastest clicks.
    openvino
        Let OpenVINO run the network on the processor; where it cannot, torch does after one warning.
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

        Without a `precision`, CUDA multiplies in fp16 and the CPU in bf16 if it has instructions for it;
        everything else in float32. On the CPU, OpenVINO runs the network if it is installed.

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
        if precision is None:
            short: Precision = "bf16" if chosen == "cpu" and has_bf16() else "fp32"
            precision = "fp16" if chosen.startswith("cuda") else short
        return cls(chosen, precision, openvino=chosen == "cpu" and has_openvino())

    @property
    def on_cuda(self) -> bool:
        """Whether the device is one of CUDA's, whose steps can be recorded."""
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights, features and maps."""
        return DTYPES[self.precision] if self.on_cuda else torch.float32

    def prepare(self, network: AnyModule) -> AnyModule:
        """The network on this device, in evaluation mode, convolutions laid out channels last.

        That is the layout in which layer norms and linear layers read a map without copying it.
        """
        laid: AnyModule = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return laid.to(self.device, self.dtype).eval()

    def tensor(self, array: np.ndarray) -> Tensor:
        """A float32 copy of a numpy array on this device."""
        return torch.tensor(np.ascontiguousarray(array), dtype=torch.float32, device=self.device)

    def upload(self, array: np.ndarray) -> Tensor:
        """A copy of a numpy array on this device, of the array's own type; nobody waits for the device."""
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        there = torch.empty(array.shape, dtype=dtype, pin_memory=self.on_cuda)
        there.numpy()[...] = array
        return there.to(self.device, non_blocking=True)

    def download(self, *tensors: Tensor) -> list[np.ndarray]:
        """Tensors of this device as numpy arrays, with one wait for all of them."""
        return self.downloading(*tensors)()

    def downloading(self, *tensors: Tensor) -> Callable[[], list[np.ndarray]]:
        """As `download`, for who has something to do meanwhile: the wait is in the call of what comes back.

        What the device is given afterwards is not waited for.
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
        """Inside: no gradients, and products in this runtime's precision. Leaves nothing behind outside.

        What is not CUDA makes an `embedding` in float32 all the same: all clicks start from it, and bf16
        there shows in the masks (docs/decisions/hot-path.md).
        """
        kind = self.device.partition(":")[0]
        short = not self.on_cuda and self.precision in ("fp16", "bf16") and not embedding
        with torch.inference_mode(), self._tf32() if self.on_cuda else nullcontext():
            if self.on_cuda and not torch.is_autocast_enabled():
                yield  # nothing to switch off, and asking autocast to do so is felt in a click
                return
            with torch.autocast(kind, DTYPES[self.precision] if short else None, enabled=short):
                yield

    @contextmanager
    def _tf32(self) -> Iterator[None]:
        """Inside: CUDA's float32 products are short if this runtime's precision says so."""
        switches: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
        wanted, before = self.precision == "tf32", [switch.allow_tf32 for switch in switches]
        changed = [pair for pair in zip(switches, before, strict=True) if pair[1] != wanted]
        try:
            for switch, _ in changed:
                switch.allow_tf32 = wanted
            yield
        finally:
            for switch, was in changed:
                switch.allow_tf32 = was


def available_devices() -> tuple[str, ...]:
    """Names of the devices that can be used here, best first; "cpu" is always the last."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return (*cuda, *mps, "cpu")


def has_bf16() -> bool:
    """Whether the processor multiplies in bf16 itself; elsewhere it would be slower than float32."""
    told = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # torch < 2.6 cannot say
    return bool(told is not None and told())


def has_openvino() -> bool:
    """Whether the extra is installed that runs networks faster on a processor."""
    return find_spec("openvino") is not None
