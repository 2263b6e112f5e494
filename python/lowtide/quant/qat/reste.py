# SPDX-License-Identifier: Apache-2.0
"""ReSTE: rectified straight-through estimator for binary weights (Wu et al., ICCV 2023, arXiv 2308.06689, section 4)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.quant.qat._common import check_number, check_weight, row_mean_abs, wide


def signs(x: Tensor) -> Tensor:
    """sign(x) with sign(0) = 1: a binary weight has two levels."""
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


class _ReSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, clip: float, near: float) -> Tensor:
        ctx.save_for_backward(x, order)
        ctx.args = clip, near
        return signs(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, order = ctx.saved_tensors
        clip, near = ctx.args
        a, o = wide(x).abs(), wide(order).to(x.device)
        # The slope of |x|^(1/o) has a pole at 0: up to `near` it is the chord's.
        chord = torch.pow(torch.full_like(o, near), 1 / o) / near
        slope = torch.where(a > near, torch.pow(a.clamp_min(near), (1 - o) / o) / o, chord)
        slope = torch.where(a <= clip, slope, 0)
        return (wide(grads[0]) * slope).to(x.dtype), None, None, None


def reste(x: Tensor, order: float | Tensor, *, clip: float = 1.5, near: float = 0.1) -> Tensor:
    """``sign(x)`` (with sign(0) = 1) whose gradient is that of ``sign(x)|x|^(1/o)``::

        d/dx = |x|^((1-o)/o) / o     for near < |x| <= clip
             = near^(1/o) / near     for |x| <= near (the chord)
             = 0                     for |x| > clip

    ``o = 1`` is the straight-through estimator clipped at ``clip``; growing ``o`` trades gradient stability for a
    smaller estimating error.

    Args:
        x: floating point tensor.
        order: o >= 1, a number or a tensor of one element (which ``torch.compile`` does not specialize on).
        clip, near: as published, 1.5 and 0.1.
    """
    check_weight(x, "x", min_dim=0)
    if not isinstance(order, Tensor):
        order = torch.tensor(check_number(order, "order", 1.0), dtype=torch.float64)
        order = order.to(x.dtype if x.dtype == torch.float64 else torch.float32)
    result: Tensor = _ReSTE.apply(x, order, clip, near)  # type: ignore[no-untyped-call]
    return result


def reste_order(progress: float, end: float = 3.0) -> float:
    """The annealed order ``1 + (1 - cos(pi/2 progress)) (end - 1)`` for progress in [0, 1]."""
    check_number(progress, "progress", 0.0, 1.0)
    check_number(end, "end", 1.0)
    return 1 + (1 - math.cos(math.pi / 2 * progress)) * (end - 1)


class ReSTE(nn.Module):
    """Binary weights ``mean|w| sign(w)`` as a parametrization; call :meth:`set_progress` as training goes.

    The mean carries its gradient, as in the published code.

    Args:
        per_channel: mean over each row instead of over the tensor (the published code's).
        end: last order of the schedule. clip, near: see :func:`reste`.

    Attributes:
        order: buffer, float32 without dimensions.
    """

    order: Tensor

    def __init__(
        self, *, per_channel: bool = False, end: float = 3.0, clip: float = 1.5, near: float = 0.1
    ) -> None:
        super().__init__()
        self.per_channel, self.end = per_channel, check_number(end, "end", 1.0)
        self.near = check_number(near, "near", 0.0, open_low=True)
        self.clip = check_number(clip, "clip", self.near)
        self.register_buffer("order", torch.tensor(1.0))

    def set_progress(self, progress: float) -> None:
        """Set the order for a fraction of training that is done, in [0, 1]."""
        self.order.fill_(reste_order(progress, self.end))

    def forward(self, w: Tensor) -> Tensor:
        """The binary weight."""
        binary = reste(w, self.order, clip=self.clip, near=self.near)
        return binary * (row_mean_abs(w) if self.per_channel else w.abs().mean())

    def extra_repr(self) -> str:
        """Settings."""
        return f"per_channel={self.per_channel}, end={self.end}, clip={self.clip}, near={self.near}"
