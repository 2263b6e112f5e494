# SPDX-License-Identifier: Apache-2.0
"""LSQ: learned step size quantization (Esser et al., ICLR 2020, arXiv 1902.08153, section 2)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideValueError
from lowtide.quant.qat._common import check_bits, check_number, check_weight, row_mean_abs, wide

_MIN_SCALE = 1e-8


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, s: Tensor, qn: int, qp: int, grad_scale: float) -> Tensor:
        ctx.save_for_backward(w, s)
        ctx.args = qn, qp, grad_scale
        step = wide(s).clamp_min(_MIN_SCALE)
        return ((wide(w) / step).clamp(-qn, qp).round() * step).to(w.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        w, s = ctx.saved_tensors
        qn, qp, grad_scale = ctx.args
        g = wide(grads[0])
        v = wide(w) / wide(s).clamp_min(_MIN_SCALE)
        inside = (v > -qn) & (v < qp)
        dw = (g * inside).to(w.dtype) if ctx.needs_input_grad[0] else None
        ds = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, v.round() - v, v.clamp(-qn, qp))
            ds = ((g * slope).sum_to_size(s.shape) * grad_scale).to(s.dtype)
        return dw, ds, None, None, None


def lsq_range(bits: int, signed: bool = True) -> tuple[int, int]:
    """(Qn, Qp): levels run from -Qn to Qp."""
    check_bits(bits)
    return (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def lsq(
    w: Tensor, scale: Tensor, bits: int, *, signed: bool = True, grad_scale: float | None = None
) -> Tensor:
    """``s round(clamp(w/s, -Qn, Qp))``, differentiable in ``w`` and in the scale ``s`` (equations 1 to 3)::

        dq/dw = 1 for -Qn < w/s < Qp, else 0
        dq/ds = round(w/s) - w/s  |  -Qn for w/s <= -Qn  |  Qp for w/s >= Qp,   times ``grad_scale``

    Args:
        w: floating point tensor.
        scale: positive; a shape that broadcasts to that of ``w``: () or (out, 1, ...). Values below 1e-8 count as
            1e-8, so that a scale that was pushed below 0 can come back.
        bits: 2 to 8. signed: levels -2^(b-1) .. 2^(b-1)-1, or 0 .. 2^b-1 for activations.
        grad_scale: default ``1/sqrt(N Qp)`` with N elements a scale (section 2.2).
    """
    check_weight(w, min_dim=0)
    check_weight(scale, "scale", min_dim=0)
    qn, qp = lsq_range(bits, signed)
    if scale.dim() not in (0, w.dim()) or any(
        b not in (1, a) for a, b in zip(w.shape, scale.shape, strict=False)
    ):
        raise LowtideValueError(
            f"scale must broadcast to w, got {tuple(scale.shape)} for {tuple(w.shape)}; use () or (out, 1, ...)"
        )
    if grad_scale is None:
        grad_scale = 1 / math.sqrt(max(1, w.numel() // max(1, scale.numel())) * qp)
    result: Tensor = _LSQ.apply(w, scale, qn, qp, grad_scale)  # type: ignore[no-untyped-call]
    return result


def lsq_scale(w: Tensor, bits: int, *, signed: bool = True, per_channel: bool = True) -> Tensor:
    """The paper's first scale, ``2 mean|w| / sqrt(Qp)``: (out, 1, ...) or () float32 (section 2.1)."""
    check_weight(w)
    x = wide(w.detach())
    mean = row_mean_abs(x) if per_channel and w.dim() > 1 else x.abs().mean()
    return (2 * mean / math.sqrt(lsq_range(bits, signed)[1])).clamp_min(_MIN_SCALE)


class LSQ(nn.Module):
    """:func:`lsq` with its learned scale as a parametrization, or as a layer for activations.

    ``parametrize.register_parametrization(layer, "weight", LSQ(layer.weight, bits=4))``; make the optimizer after
    it, so that it sees the scale.

    Args:
        w: the weight (or a typical activation), from which the first scale is taken.
        bits: 2 to 8. signed: see :func:`lsq`.
        per_channel: one scale a row instead of one a tensor.

    Attributes:
        scale: parameter, (out, 1, ...) or ().
    """

    def __init__(self, w: Tensor, bits: int = 4, *, signed: bool = True, per_channel: bool = True) -> None:
        super().__init__()
        self.bits, self.signed = check_bits(bits), signed
        self.scale = nn.Parameter(lsq_scale(w, bits, signed=signed, per_channel=per_channel))

    def forward(self, w: Tensor) -> Tensor:
        """The quantized tensor."""
        return lsq(w, self.scale, self.bits, signed=self.signed)

    @property
    def level_range(self) -> tuple[int, int]:
        """First and last level."""
        qn, qp = lsq_range(self.bits, self.signed)
        return -qn, qp

    def position(self, w: Tensor) -> Tensor:
        """``clamp(w/s)``: integers are levels, halves are boundaries."""
        qn, qp = lsq_range(self.bits, self.signed)
        with torch.no_grad():
            return (wide(w) / wide(self.scale).clamp_min(_MIN_SCALE)).clamp(-qn, qp)

    def levels(self, w: Tensor) -> Tensor:
        """The integer level of each weight, from -Qn to Qp."""
        return self.position(w).round()

    def from_levels(self, levels: Tensor, w: Tensor) -> Tensor:
        """The values of integer levels at the present scale."""
        with torch.no_grad():
            return (levels * wide(self.scale).clamp_min(_MIN_SCALE)).to(w.dtype)

    @torch.no_grad()
    def fit_(self, w: Tensor, steps: int = 40) -> LSQ:
        """Set each scale to the best of ``steps`` candidates by squared error: a start for few-step training."""
        check_number(steps, "steps", 1)
        qn, qp = lsq_range(self.bits, self.signed)
        x = wide(w.detach())
        dims = [d for d in range(x.dim()) if self.scale.dim() == 0 or self.scale.shape[d] == 1]
        peak = (x.abs().amax(dims, keepdim=True) / qp).clamp_min(_MIN_SCALE).reshape(self.scale.shape)
        best, best_error = self.scale.clone(), torch.full_like(peak, math.inf)
        for i in range(1, steps + 1):
            s = peak * (i / steps)
            error = ((x / s).clamp(-qn, qp).round() * s - x).square().sum_to_size(s.shape)
            best, best_error = torch.where(error < best_error, s, best), torch.minimum(error, best_error)
        self.scale.copy_(best)
        return self

    def extra_repr(self) -> str:
        """Bits and range."""
        return f"bits={self.bits}, signed={self.signed}, scales={self.scale.numel()}"
