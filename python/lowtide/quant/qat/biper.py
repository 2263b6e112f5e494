# SPDX-License-Identifier: Apache-2.0
"""BiPer: binary weights through a periodic function (Vargas et al., CVPR 2024, arXiv 2404.01278, section 3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideValueError
from lowtide.quant.qat._common import check_number, check_weight, row_mean_abs, wide
from lowtide.quant.qat.reste import signs


class _BiPer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, omega: float) -> Tensor:
        ctx.save_for_backward(w)
        ctx.omega = omega
        return signs(torch.sin(omega * wide(w))).to(w.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (w,) = ctx.saved_tensors
        return (wide(grads[0]) * (ctx.omega * torch.cos(ctx.omega * wide(w)))).to(w.dtype), None


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return signs(a)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        slope: Tensor = (2 - 2 * a.abs()).clamp_min(0)
        return grads[0] * slope


def biper_sine(w: Tensor, omega: float = 20.0) -> Tensor:
    """Stage 1: ``sin(omega w)``, a smooth weight in [-1, 1] with its own gradient."""
    check_weight(w, min_dim=0)
    return torch.sin(omega * w)


def biper(w: Tensor, omega: float = 20.0) -> Tensor:
    """Stage 2: ``sign(sin(omega w))`` (1 where the sine is 0) with the gradient of the sine, ``omega cos(omega w)``."""
    check_weight(w, min_dim=0)
    result: Tensor = _BiPer.apply(w, check_number(omega, "omega", 0.0, open_low=True))  # type: ignore[no-untyped-call]
    return result


def biper_activation(a: Tensor) -> Tensor:
    """``sign(a)`` (1 at 0) with the piecewise linear gradient ``max(0, 2 - 2|a|)``, for binary activations."""
    check_weight(a, "a", min_dim=0)
    result: Tensor = _Activation.apply(a)  # type: ignore[no-untyped-call]
    return result


def biper_penalty(w: Tensor, tau: float, omega: float = 20.0) -> Tensor:
    """The published regularizer of stage 1, ``tau mean(1/2 - 1/2 cos(2 omega w))`` = ``tau mean(sin^2(omega w))``."""
    check_weight(w, min_dim=0)
    return tau * (0.5 - 0.5 * torch.cos(2 * omega * w)).mean()


def biper_tau(progress: float, low: float, high: float) -> float:
    """The weight of :func:`biper_penalty` at ``progress`` in [0, 1]: ``A e^progress + B`` from ``low`` to ``high``."""
    check_number(progress, "progress", 0.0, 1.0)
    a = (high - low) / (math.e - 1)
    return a * math.exp(progress) + low - a


class BiPer(nn.Module):
    """Binary weights with a learned factor a row, as a parametrization; set ``stage`` to 2 for the second stage.

    The paper scales the layer's output; without a bias that is the same as scaling the row, as done here.

    Args:
        w: the weight: its rows give the first factors, mean|w|.
        omega: frequency, 20 as published. stage: 1 (sine) or 2 (sign).

    Attributes:
        alpha: parameter, (out, 1, ...) float32.
    """

    def __init__(self, w: Tensor, *, omega: float = 20.0, stage: int = 2) -> None:
        super().__init__()
        check_weight(w)
        if stage not in (1, 2):
            raise LowtideValueError(f"stage must be 1 or 2, got {stage!r}")
        self.omega, self.stage = check_number(omega, "omega", 0.0, open_low=True), stage
        self.alpha = nn.Parameter(row_mean_abs(wide(w.detach())))

    def forward(self, w: Tensor) -> Tensor:
        """The weight of the present stage."""
        b = biper(w, self.omega) if self.stage == 2 else biper_sine(w, self.omega)
        return self.alpha.to(w.dtype) * b

    def penalty(self, w: Tensor, tau: float) -> Tensor:
        """:func:`biper_penalty` of the latent weight, to be added to the loss in stage 1."""
        return biper_penalty(w, tau, self.omega)

    def extra_repr(self) -> str:
        """Settings."""
        return f"omega={self.omega}, stage={self.stage}"
