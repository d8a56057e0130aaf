"""Clicks as distances instead of disks, the other encoding of the original: for the ablation "no disk"."""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

# tanh(2 d / radius) is 1 in float32 from here on, so a click's distance map need not reach further.
SATURATED = 4.6


def distance_maps(points: Tensor, radius: int) -> Tensor:
    """tanh(2 d / radius), d the distance to the nearest pixel that is 1; 1 where a channel has none.

    `points` is (B, C, H, W) in [0, 1] and not changed; a pixel of a lesser value v gets 1 - v at most.
    Squared distances are minima along the rows, then along the columns, over the reach where tanh is not 1
    yet: no step depends on values, so the steps can be recorded.
    """
    reach = int(SATURATED * radius) + 1
    far = float(4 * reach**2)
    apart = torch.where(points >= 1, 0.0, far)
    for axis, sides in ((-1, (reach, reach)), (-2, (0, 0, reach, reach))):
        wide, length = F.pad(apart, sides, value=far), points.shape[axis]
        shifted = (wide.narrow(axis, reach + step, length) + step**2 for step in range(-reach, reach + 1))
        apart = reduce(torch.minimum, shifted)
    return torch.minimum(torch.tanh(2.0 * apart.sqrt() / radius), 1 - points)
