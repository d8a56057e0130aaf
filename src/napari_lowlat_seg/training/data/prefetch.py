"""Batches that are drawn while the device trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from queue import Queue
from threading import Thread
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Drawn = TypeVar("Drawn")


class Prefetcher(Generic[Drawn]):
    """Batches drawn in a thread of their own, on a CUDA stream of their own; at most two wait.

    Parameters
    ----------
    draw
        Gives a new batch: a dataclass whose fields are tensors, dataclasses of tensors, or others.
    device
        Where batches are drawn; without a GPU they are drawn when they are asked for.
    synchronous
        So many are drawn by the calling thread first: meanwhile the network is compiled, and a thread beside
        the compiler may not call compiled functions.
    """

    def __init__(self, draw: Callable[[], Drawn], device: str | torch.device, synchronous: int = 0) -> None:
        self.draw, self.device, self.synchronous = draw, torch.device(device), synchronous
        self.queue: Queue[Any] = Queue(2)
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.ended = False

    def next(self) -> Drawn:
        """Return the next batch; the calling stream waits for it, the host does not.

        Raises
        ------
        RuntimeError
            If drawing it failed in the thread; the cause is attached.
        """
        if self.stream is None:
            return self.draw()
        if self.synchronous > 0:
            self._put()
        elif self.synchronous == 0:
            Thread(target=self._fill, daemon=True).start()
        self.synchronous -= 1
        batch, ready = self.queue.get()
        if ready is None:
            raise RuntimeError("drawing a batch failed") from batch
        stream = torch.cuda.current_stream()
        stream.wait_event(ready)
        for tensor in _tensors(batch):
            tensor.record_stream(stream)
        drawn: Drawn = batch
        return drawn

    def _put(self) -> None:
        assert self.stream is not None
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            batch = self.draw()
            self.queue.put((batch, self.stream.record_event()))

    def _fill(self) -> None:
        try:
            while not self.ended:
                self._put()
        except BaseException as problem:
            self.queue.put((problem, None))


def _tensors(batch: Any) -> Iterator[Tensor]:
    for value in vars(batch).values():
        if isinstance(value, Tensor):
            yield value
        elif is_dataclass(value):
            yield from _tensors(value)
