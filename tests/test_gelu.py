"""The GELU that a compiler gets: as exact as the precision that it is rounded to."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from napari_lowlat_seg.model.gelu import gelu, short_gelu


def exact(x: torch.Tensor) -> torch.Tensor:
    """By the library's complementary error function, in double precision."""
    return 0.5 * x.double() * torch.erfc(-x.double() * math.sqrt(0.5))


def test_the_short_form_is_exact_in_float32() -> None:
    """Against double precision, from where it vanishes to where it is the identity."""
    x = torch.linspace(-12, 12, 200_001)
    found = short_gelu(x).double()
    torch.testing.assert_close(found, exact(x), rtol=2e-7, atol=3e-7)
    far = torch.tensor([-60000.0, -0.0, 0.0, 60000.0])
    assert short_gelu(far).tolist() == [0, 0, 0, 60000]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype) -> None:
    """Every number of the type within +-20, under a compiler: at most one step from the best answer."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = every[every.abs() <= 20]
    best = exact(x).to(dtype)
    found = torch.compile(gelu, backend="eager")(x)
    steps = (found.view(torch.int16).int() - best.view(torch.int16).int()).abs()
    apart = (found.double() - best.double()).abs()
    assert bool(((steps <= 1) | (apart <= 3e-7)).all())


def test_nothing_else_changes() -> None:
    """Without a compiler, and in float32 under one, it is torch's own."""
    x = torch.linspace(-5, 5, 1001)
    torch.testing.assert_close(gelu(x.half()), F.gelu(x.half()), rtol=0, atol=0)
    torch.testing.assert_close(torch.compile(gelu, backend="eager")(x), F.gelu(x), rtol=0, atol=0)
