"""Several processes that train one network, as torchrun starts them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Worker:
    """This process among those that train one network, as torchrun numbers them.

    Attributes
    ----------
    rank, world
        Its number, and the number of all.
    device
        A torch device.
    """

    rank: int
    world: int
    device: str

    @classmethod
    def start(cls, device: str) -> Worker:
        """Join the others, if there are any."""
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if device == "auto":
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        if world > 1:
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        return cls(rank, world, device)

    def agree(self, stop: bool) -> bool:
        """Return whether the first process wants to stop, so that all stop at the same step."""
        flag = torch.tensor(stop, device=self.device)
        if self.world > 1:
            dist.broadcast(flag, 0)
        return bool(flag)

    def leave(self) -> None:
        """Wait for the others and part from them."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()
