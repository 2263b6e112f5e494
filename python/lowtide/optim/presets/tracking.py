# SPDX-License-Identifier: Apache-2.0
"""Named low-rank methods by how their subspace moves on: a Grassmann step, chance, or when the gradient has stopped moving. See
:mod:`lowtide.optim.presets`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from lowtide.optim.engine import Composed
from lowtide.optim.presets.common import Betas, svd_of
from lowtide.optim.refresh import Displacement, EveryT
from lowtide.optim.residuals import ScaledResidual
from lowtide.optim.rules import AdamRule
from lowtide.optim.rules_factored import AdafactorRule
from lowtide.optim.subspaces import RandomGaussian, RandomizedSVD
from lowtide.optim.subspaces_tracking import Grassmann, Switch
from lowtide.optim.transports import Reproject, Rotate, Stale


class SubTrack(Composed):
    """SubTrack++ (Rajabi et al., NeurIPS 2025, arXiv 2502.01586, algorithm 1): every ``update_proj_gap`` steps the subspace takes a
    step on the Grassmannian instead of being found anew, the moments are rotated into it, and Fira's residual recovers what it
    misses. See :class:`~lowtide.optim.Grassmann`.

    Args:
        params: groups from :func:`lowtide.optim.param_groups`; ``scale`` is 0.25 unless given.
        lr, betas, eps, weight_decay: as in torch.
        step_size: the paper's eta, 10 in its scripts: the angle of a step, in units of a gradient squared; None for
            the angle that holds most of the gradient.
        limiter: the largest growth of the residual's norm a step, >= 1.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`. A matrix whose gradient holds inf or
            NaN is skipped whole.
    """

    default_scale: ClassVar[float] = 0.25

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, *, step_size: float | None = 10.0, limiter: float = 1.01, **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            params,
            lr,
            rule=AdamRule(betas, eps),
            weight_decay=weight_decay,
            subspace=Grassmann(step_size),
            refresh=EveryT(),
            transport=Rotate(),
            residual=ScaledResidual(limiter),
            **common,
        )


class Flora(Composed):
    """Flora (Hao et al., ICML 2024, arXiv 2402.03293, algorithm 2): a compressed momentum. The projection is a Gaussian seed drawn
    anew every 1000 steps, when the moment is carried over; the base rule is Adafactor, so that an m x n matrix costs r max(m, n) + m
    + r numbers.

    Adafactor's second moment is kept of the projected gradient (the paper's code keeps it of the whole one). Each new
    projection enlarges the moment by about ``sqrt(d / r)``, d the shorter side: the gap must be long against ``1 / (1 - beta1)`` steps.

    Args:
        params: groups from :func:`lowtide.optim.param_groups`; ``update_proj_gap`` is 1000 (kappa) and ``scale`` 1 unless given.
        lr, weight_decay: as in torch.
        beta1: decay rate of the moment, in (0, 1).
        beta2_decay, eps, d: of :class:`~lowtide.optim.AdafactorRule`.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    default_gap: ClassVar[int] = 1000

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, beta1: float = 0.9, weight_decay: float = 0.0, *,
        beta2_decay: float = -0.8, eps: tuple[float | None, float] = (None, 1e-3), d: float = 1.0, **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            params,
            lr,
            rule=AdafactorRule(beta2_decay, eps, d, beta1),
            weight_decay=weight_decay,
            subspace=RandomGaussian(),
            refresh=EveryT(),
            transport=Reproject(),
            **common,
        )


class GoLoreAdamW(Composed):
    """GoLore (He et al., ICML 2025, arXiv 2410.11289): GaLore, and from ``switch_step`` on random orthonormal subspaces. Late in training
    noise dominates the gradient, its singular vectors follow the noise, and only random ones keep the guarantee of convergence.

    Args:
        params: groups from :func:`lowtide.optim.param_groups`; ``scale`` is 0.25 unless given.
        switch_step: the step (from 0) after which refreshes draw random subspaces: the last 20 or 50 % of a run in the paper.
        lr, betas, eps, weight_decay: as in torch.
        svd: ``"randomized"`` (warm-started) or ``"exact"``.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    default_scale: ClassVar[float] = 0.25

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, *, switch_step: int, svd: str = "randomized", **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            params,
            lr,
            rule=AdamRule(betas, eps),
            weight_decay=weight_decay,
            subspace=Switch(first=svd_of(svd), at=switch_step),
            refresh=EveryT(),
            transport=Stale(),
            **common,
        )


class LotusAdamW(Composed):
    """GaLore whose subspaces are found by a randomized SVD and replaced when the gradient has stopped moving within them, after
    Lotus (arXiv 2602.01233). See :class:`~lowtide.optim.Displacement`.

    Args:
        params: groups from :func:`lowtide.optim.param_groups`; ``update_proj_gap``, 50 unless given, is how often that is looked at,
            ``scale`` is 0.25.
        lr, betas, eps, weight_decay: as in torch.
        threshold: displacement a step at which the subspace is replaced, >= 0.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    default_gap: ClassVar[int] = 50
    default_scale: ClassVar[float] = 0.25

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, *, threshold: float = 0.01, **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            params,
            lr,
            rule=AdamRule(betas, eps),
            weight_decay=weight_decay,
            subspace=RandomizedSVD(),
            refresh=Displacement(threshold),
            transport=Stale(),
            **common,
        )
