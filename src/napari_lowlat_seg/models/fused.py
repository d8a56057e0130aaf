"""Products with their activation in one kernel, where a CUDA library has one.

torch computes an activation in a pass of its own over the map that a product has just written; cuBLASLt
computes it before the map is written. Its GELU is the tanh form, which differs from erf's by 5e-4 at most:
about what half precision rounds off there. Why, and what it gains: docs/decisions/hot-path.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = (torch.float16, torch.bfloat16)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`gelu(x @ weight.T + bias)` of x (..., C), by erf, or by tanh in one kernel."""
    if bias is not None and _in_one_kernel(x, weight):
        return _product(x, weight, bias, gelu=True)
    return F.gelu(F.linear(x, weight, bias))


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`relu(x @ weight.T + bias)` of x (..., C)."""
    if bias is not None and _in_one_kernel(x, weight):
        return _product(x, weight, bias, gelu=False)
    return F.relu(F.linear(x, weight, bias))


def _in_one_kernel(x: Tensor, weight: Tensor) -> bool:
    """Such kernels are those of CUDA in half precision, and have no gradient."""
    return x.is_cuda and weight.dtype == x.dtype and x.dtype in SHORT and not torch.is_grad_enabled()


def _product(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = torch._addmm_activation(bias, rows, weight.t(), use_gelu=gelu)
    return out.view(*x.shape[:-1], -1)
