# SPDX-License-Identifier: Apache-2.0
"""Sums of squares in one order for any number of threads."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_energy(x: Tensor, side: str) -> Tensor:
    """Sums of squares by row (right) or column (left), float64; finite unless ``x`` holds inf or NaN."""
    from lowtide import ops

    return ops.channel_energy(x, dim=1 if side == "right" else 0)


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
    """The sum of a vector, in double."""
    from lowtide import ops

    return float(ops.ordered_sum(energy.double()))
