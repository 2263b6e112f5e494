# SPDX-License-Identifier: Apache-2.0
"""Sums of squares by row or column: what gradient-scaled methods measure channels by."""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import fake

_op = torch.ops.lowtide


def channel_energy(x: Tensor, *, dim: int) -> Tensor:
    """Sums of squares along ``dim``, float64: squares are exact and the order of additions is fixed, so the bits are the
    same for every instruction set and thread count, and a sum is finite unless an element is inf or NaN.

    Args:
        x: m x n, float32 or bfloat16, CPU. Copied if it is not contiguous.
        dim: 0 (m is summed over: n results, one a column) or 1 or -1 (m results, one a row).

    Raises:
        LowtideTypeError, LowtideValueError: a bad argument, named.
    """
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.bfloat16):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise LowtideTypeError(f"x must be a float32 or bfloat16 tensor, got {got}")
    if x.dim() != 2:
        raise LowtideValueError(f"x must have two dimensions, got shape {tuple(x.shape)}")
    if dim not in (-2, -1, 0, 1):
        raise LowtideValueError(f"dim must be 0, 1 or -1, got {dim!r}")
    columns = dim in (0, -2)
    if not x.is_contiguous():
        if x.mT.is_contiguous():  # the same matrix, read along its other side
            x, columns = x.mT, not columns
        else:
            x = x.contiguous()
    result: Tensor = _op.channel_energy(x.detach(), columns)
    return result


def ordered_sum(x: Tensor) -> Tensor:
    """The sum of a float64 tensor in one order for every instruction set and thread count; no dimensions.

    Raises:
        LowtideTypeError: ``x`` is not float64.
    """
    if not isinstance(x, Tensor) or x.dtype != torch.float64:
        raise LowtideTypeError(
            f"x must be a float64 tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}"
        )
    result: Tensor = _op.ordered_sum(x.detach().contiguous())
    return result


@fake("lowtide::channel_energy")
def _(x: Tensor, columns: bool) -> Tensor:
    return x.new_empty((x.shape[1 if columns else 0],), dtype=torch.float64)


@fake("lowtide::ordered_sum")
def _(x: Tensor) -> Tensor:
    return x.new_empty((), dtype=torch.float64)
