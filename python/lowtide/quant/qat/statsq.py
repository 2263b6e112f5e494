# SPDX-License-Identifier: Apache-2.0
"""StatsQ: statistical weight quantization of OFQ (Liu et al., ICML 2023, arXiv 2302.02210, section 4.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowtide.quant.qat._common import check_bits, check_weight, row_mean_abs, wide

_EDGE = 1e-6  # the clip range is [-1, 1 - 1e-6]: at 1 itself a level 2^b would appear


def statsq_scale(w: Tensor) -> Tensor:
    """``s = 2 mean|w|`` of each row, (out, 1, ...); a statistic, never a learned scale, which oscillates."""
    return 2 * row_mean_abs(wide(w.detach()))


def _position(w: Tensor, bits: int) -> tuple[Tensor, Tensor, float]:
    """t = n clamp(w/s) - 1/2 whose rounding is the level, s, and n."""
    n = float(2 ** (bits - 1))
    s = statsq_scale(w)
    x = torch.where(s > 0, wide(w.detach()) / torch.where(s > 0, s, 1), 0).clamp(-1, 1 - _EDGE)
    return x * n - 0.5, s, n


class _StatsQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, bits: int) -> Tensor:
        t, s, n = _position(w, bits)
        return (s * ((t.round() + 0.5) / n)).to(w.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def statsq(w: Tensor, bits: int) -> Tensor:
    """Quantize rows of ``w`` to ``2^bits`` mid-rise levels; the gradient is the identity, also where it clips.

    With ``s = 2 mean|w|`` of the row (detached) and ``n = 2^(bits-1)``::

        q(w) = s (round(n clamp(w/s, -1, 1 - 1e-6) - 1/2) + 1/2) / n        dq/dw = 1

    There is no level at 0 (as published); a row of zeros stays 0.

    Args:
        w: floating point, (out, ...): rows are the first dimension; 16-bit types are computed in float32.
        bits: 2 to 8.

    Returns:
        A tensor of the shape and dtype of ``w``.
    """
    check_weight(w, min_dim=2)
    check_bits(bits)
    result: Tensor = _StatsQ.apply(w, bits)  # type: ignore[no-untyped-call]
    return result


class StatsQ(nn.Module):
    """:func:`statsq` as a parametrization: ``parametrize.register_parametrization(layer, "weight", StatsQ(2))``.

    Args:
        bits: 2 to 8.
    """

    def __init__(self, bits: int = 4) -> None:
        super().__init__()
        self.bits = check_bits(bits)

    def forward(self, w: Tensor) -> Tensor:
        """The quantized weight."""
        return statsq(w, self.bits)

    @property
    def level_range(self) -> tuple[int, int]:
        """First and last level."""
        n = 2 ** (self.bits - 1)
        return -n, n - 1

    def position(self, w: Tensor) -> Tensor:
        """Where ``w`` lies among the levels, in levels: integers are level centres, halves are boundaries."""
        return _position(w, self.bits)[0]

    def levels(self, w: Tensor) -> Tensor:
        """The integer level of each weight, from -2^(bits-1) to 2^(bits-1) - 1."""
        return self.position(w).round()

    def from_levels(self, levels: Tensor, w: Tensor) -> Tensor:
        """The values of integer levels at the scale of ``w``."""
        n = float(2 ** (self.bits - 1))
        return (statsq_scale(w) * ((levels + 0.5) / n)).to(w.dtype)

    def extra_repr(self) -> str:
        """Bits."""
        return f"bits={self.bits}"
