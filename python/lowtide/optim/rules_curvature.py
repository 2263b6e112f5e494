# SPDX-License-Identifier: Apache-2.0
"""Rules whose second moment is fed by estimates of the Hessian's diagonal (:mod:`lowtide.optim.curvature_sources`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.optim.rules import Momentum, check_betas, check_eps


class _CurvatureRule:
    """A running mean of gradients, and a moment called ``curvature_moment`` that only :meth:`fold` changes."""

    betas: tuple[float, float]

    fused: ClassVar[bool] = False
    factor_names: ClassVar[tuple[str, ...]] = ()
    first_moment: ClassVar[str | None] = "exp_avg"
    curvature_moment: ClassVar[str]

    @property
    def momentum_decay(self) -> float:
        """How much of the first moment stays in a step."""
        return self.betas[0]

    def factors(self, shape: torch.Size) -> dict[str, torch.Size]:
        """See :class:`~lowtide.optim.rules.Rule`."""
        return {}

    def scalars(self, step: int, lr: float = 1.0) -> dict[str, Any]:
        """See :class:`~lowtide.optim.rules.Rule`."""
        return {"a": lr}

    def step_size(self, lr: float, step: int, p: Tensor) -> float:
        """See :class:`~lowtide.optim.rules.Rule`."""
        return lr


@dataclass(frozen=True)
class AdaHessianRule(_CurvatureRule):
    """AdaHessian (Yao et al., AAAI 2021, arXiv 2006.00719, algorithm 1)::

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) D^2                      where D was estimated, the t-th time
        direction = m / bc1 / (sqrt(v / (1 - beta2^t))^power + eps)

    A parameter that got its first gradient between two estimates waits for the next one.

    Attributes:
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the power of the root, >= 0.
        power: of the curvature, in (0, 1]; the paper's k.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-4
    power: float = 1.0

    kernel: ClassVar[str] = "adahessian"
    hyper: ClassVar[tuple[str, ...]] = ("betas", "eps", "power")
    moments: ClassVar[tuple[tuple[str, bool], ...]] = (("exp_avg", True), ("exp_hessian_diag_sq", False))
    curvature_moment: ClassVar[str] = "exp_hessian_diag_sq"

    def __post_init__(self) -> None:
        check_betas(self.betas)
        check_eps(self.eps)
        if not 0.0 < self.power <= 1.0:
            raise LowtideValueError(f"power must be in (0, 1], got {self.power!r}")

    def fold(self, h: Tensor, sample: Tensor) -> Tensor:
        """The moment after one more estimate."""
        return h.lerp(sample.square(), 1.0 - self.betas[1])

    def direction_(
        self, u: Tensor, g: Tensor | None, state: dict[str, Any], step: int, momentum: Momentum
    ) -> Tensor:
        """See :class:`~lowtide.optim.rules.Rule`."""
        if g is not None:
            u.copy_(g)
        momentum(u, momentum=self.betas[0], weight=1.0 - self.betas[0])
        if state["curvature_updates"] == 0:
            u.zero_()
            return torch.tensor(0)
        bc1 = 1.0 - self.betas[0] ** step
        bc2 = 1.0 - self.betas[1] ** state["curvature_updates"]
        v = momentum.load(self.curvature_moment, u.shape)
        root = (v / bc2).sqrt_()
        if self.power != 1.0:
            root.pow_(self.power)
        # Where nothing has moved the moment there is nothing to divide: with eps 0 this is 0 / 0.
        u.div_(root.add_(self.eps).mul_(bc1)).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        return torch.tensor(0)


@dataclass(frozen=True)
class SophiaRule(_CurvatureRule):
    """Sophia (Liu et al., ICLR 2024, arXiv 2305.14342, algorithm 3)::

        m = beta1 m + (1 - beta1) g
        h = beta2 h + (1 - beta2) h_estimate               where there is a new estimate
        direction = clip(m / max(rho h, eps), 1)

    The share of clipped elements of the last step is in the state as ``clipped``.

    Attributes:
        betas: decay rates of the two moments, each in [0, 1).
        rho: how curvature is weighed against the gradient, > 0 (the paper's gamma).
        eps: least denominator, > 0.
        positive: whether no estimate is negative (squares of sampled gradients); says which code map holds the moment.
    """

    betas: tuple[float, float] = (0.965, 0.99)
    rho: float = 0.04
    eps: float = 1e-15
    positive: bool = True

    kernel: ClassVar[str] = "sophia"
    hyper: ClassVar[tuple[str, ...]] = ("betas", "rho", "eps")
    curvature_moment: ClassVar[str] = "hessian"

    def __post_init__(self) -> None:
        check_betas(self.betas)
        for name, value in (("rho", self.rho), ("eps", self.eps)):
            if not 0.0 < value < math.inf:
                raise LowtideValueError(f"{name} must be a finite number > 0, got {value!r}")

    @property
    def moments(self) -> tuple[tuple[str, bool], ...]:
        """See :class:`~lowtide.optim.rules.Rule`."""
        return (("exp_avg", True), (self.curvature_moment, not self.positive))

    def fold(self, h: Tensor, sample: Tensor) -> Tensor:
        """The moment after one more estimate."""
        return h.lerp(sample, 1.0 - self.betas[1])

    def direction_(
        self, u: Tensor, g: Tensor | None, state: dict[str, Any], step: int, momentum: Momentum
    ) -> Tensor:
        """See :class:`~lowtide.optim.rules.Rule`."""
        if g is not None:
            u.copy_(g)
        momentum(u, momentum=self.betas[0], weight=1.0 - self.betas[0])
        u.div_(momentum.load(self.curvature_moment, u.shape).mul_(self.rho).clamp_(min=self.eps))
        state["clipped"] = int((u.abs() >= 1.0).sum())
        u.clamp_(-1.0, 1.0)
        return torch.tensor(0)


#: Rules that :class:`~lowtide.optim.Composed` needs a ``curvature`` for.
CURVATURE_RULES = (AdaHessianRule, SophiaRule)
