"""A step of a network recorded as a CUDA graph: the host starts all its kernels at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[..., tuple[Any, ...]]


class RecordedStep:
    """A step recorded as a CUDA graph over fixed input tensors.

    Write new values into `inputs`, call `replay`, and read the result, the same tensors every time, before
    the next replay overwrites it.

    Parameters
    ----------
    step
        Takes the inputs, returns tensors or tuples of them; no shape or branch in it may depend on their
        values.
    inputs
        On one CUDA device. They belong to the recording from now on.
    """

    def __init__(self, step: Step, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = inputs
        side_stream = torch.cuda.Stream(inputs[0].device)
        side_stream.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.cuda.stream(side_stream):
            for _ in range(2):  # libraries choose their kernels and take their workspaces outside the graph
                step(*inputs)
        torch.cuda.current_stream(inputs[0].device).wait_stream(side_stream)
        self._graph = torch.cuda.CUDAGraph()
        # torch's own stream for recording is one of the first device that was used.
        with torch.cuda.graph(self._graph, stream=side_stream, capture_error_mode="thread_local"):
            self.outputs = step(*inputs)

    def replay(self) -> tuple[Any, ...]:
        """The outputs for what `inputs` hold now."""
        self._graph.replay()
        return self.outputs
