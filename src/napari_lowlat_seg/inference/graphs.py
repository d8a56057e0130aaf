"""CUDA graphs: a step of a network with fixed shapes, recorded once and replayed without launching it anew.

A click is some two hundred small kernels; a replay starts all of them at once. Recording is paid when a model
is loaded, never on a click.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[..., tuple[Tensor, ...]]


class Recording:
    """A step over fixed input tensors.

    Write new values into `inputs`, call `replay`, and read the result, the same tensors every time, before
    the next replay overwrites it.

    Parameters
    ----------
    step
        Takes the inputs, returns tensors; no shape or branch in it may depend on their values.
    inputs
        On one CUDA device. They belong to the recording from now on.
    """

    def __init__(self, step: Step, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = inputs
        aside = torch.cuda.Stream(inputs[0].device)
        aside.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose their kernels and take their workspaces outside the graph
                step(*inputs)
        torch.cuda.current_stream(inputs[0].device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.outputs = step(*inputs)

    def replay(self) -> tuple[Tensor, ...]:
        """The outputs for what `inputs` hold now."""
        self._graph.replay()
        return self.outputs
