# SPDX-License-Identifier: Apache-2.0
"""Sums of squares in one order for any number of threads."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_energy(x: Tensor, side: str) -> Tensor:
    """Sums of squares by row (right) or column (left), fp32."""
    from lowtide import ops

    squares = x.float().square() if x.dtype != torch.float32 else x.square()
    if side == "right":
        return ops.matmul(squares, torch.ones(x.shape[1], 1)).reshape(-1)
    return ops.matmul(torch.ones(1, x.shape[0]), squares).reshape(-1)


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two tensors of one shape, fp32: by rows, then over them."""
    from lowtide import ops

    if a.numel() == 0:
        return 0.0
    products = a.reshape(a.shape[0] if a.dim() > 1 else 1, -1) * b.reshape(
        a.shape[0] if a.dim() > 1 else 1, -1
    )
    return total(ops.matmul(products, torch.ones(products.shape[1], 1)).reshape(-1))


def total(energy: Tensor) -> float:
    """The sum of a vector."""
    from lowtide import ops

    return float(ops.matmul(energy[None, :], torch.ones(energy.numel(), 1)))
