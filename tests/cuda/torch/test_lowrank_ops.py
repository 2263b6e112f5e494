# SPDX-License-Identifier: Apache-2.0
"""Transforms of lines on the emulated device."""

from __future__ import annotations

import pytest
import torch
from emulated import compare, on_device
from torch import Tensor

_op = torch.ops.lowtide
LENGTHS = (1, 2, 7, 16, 60, 129)


def matrix(lines: int, n: int, columns: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (n, lines) if columns else (lines, n)
    return torch.randn(shape, generator=torch.Generator().manual_seed(n)).to(dtype)


def some(n: int) -> Tensor:
    return torch.arange(0, n, 3, dtype=torch.int32)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("lines", [0, 1, 19, 200])
def test_cosines(lines: int, columns: bool) -> None:
    for n in LENGTHS:
        for dtype in (torch.float32, torch.bfloat16):
            x = matrix(lines, n, columns, dtype)
            compare(_op.dct_forward.default, (x, None, columns))
            compare(_op.dct_forward.default, (x, torch.empty(0, dtype=torch.int32), columns))
            low = compare(_op.dct_forward.default, (x, some(n), columns))
            compare(_op.dct_inverse.default, (low, some(n), columns, n))
            for square in (False, True):
                compare(_op.dct_power.default, (x, columns, square))


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_hadamard(columns: bool, signed: bool) -> None:
    for n in LENGTHS:
        spans = 1 if n & (n - 1) == 0 else 2
        signs = torch.randint(0, 2, (spans, n)).float() * 2 - 1 if signed else None
        x = matrix(19, n, columns)
        compare(_op.fwht_forward.default, (x, signs, None, columns))
        low = compare(_op.fwht_forward.default, (x.bfloat16(), signs, some(n), columns))
        compare(_op.fwht_inverse.default, (low, signs, some(n), columns, n))


def test_lines_that_shared_memory_cannot_hold_are_refused() -> None:
    with pytest.raises(RuntimeError, match="lines must have 1 to 20480 values on a CUDA device, got 20481"):
        on_device(_op.dct_forward.default, (torch.zeros(1, 20481), None, False))
    with pytest.raises(RuntimeError, match="signs must be"):
        on_device(_op.fwht_forward.default, (torch.zeros(1, 8), torch.zeros(1, 8), None, False))


@pytest.mark.parametrize("left", [False, True])
def test_refreshes_are_computed_on_the_host(left: bool) -> None:
    g = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    cold = compare(_op.rsvd.default, (g, 4, left, None, 8, 1, 1, 2, 3))
    compare(_op.rsvd.default, (g + 0.1, 4, left, cold, 8, 1, 1, 3, 3))
    with pytest.raises(RuntimeError, match="not finite"):
        on_device(_op.rsvd.default, (g / 0, 4, left, None, 8, 1, 1, 2, 3))
