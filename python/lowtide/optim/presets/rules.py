# SPDX-License-Identifier: Apache-2.0
"""Named methods that are a rule, at full rank or, by :class:`GaLore`, in a subspace. See :mod:`lowtide.optim.presets`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from lowtide.optim.engine import Composed
from lowtide.optim.presets.common import Betas, projection_of
from lowtide.optim.refresh import EveryT
from lowtide.optim.rules import AdamRule, DiffGradRule, Rule, SGDRule, SignRule
from lowtide.optim.scale_invariant import ScaleInvariant
from lowtide.optim.stores import StateStore
from lowtide.optim.transports import Stale


class SignSGD(Composed):
    """signSGD (Bernstein et al., ICML 2018, arXiv 1802.04434, algorithm 1): directions of +-1, no state. Wants a tenth of SGD's
    learning rate or less.

    Args:
        params, lr, weight_decay: as in torch; decay is decoupled.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, weight_decay: float = 0.0, **common: Any
    ) -> None:
        super().__init__(params, lr, rule=SignRule(), weight_decay=weight_decay, **common)


class Signum(Composed):
    """Signum (Bernstein et al., ICML 2018, arXiv 1802.04434, algorithm 2): the signs of a running mean of the gradient.

    Args:
        params, lr, weight_decay: as in torch; decay is decoupled.
        momentum: decay rate of the mean, in (0, 1).
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`; ``state``.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, momentum: float = 0.9, weight_decay: float = 0.0, **common: Any
    ) -> None:  # fmt: skip
        super().__init__(params, lr, rule=SignRule(momentum), weight_decay=weight_decay, **common)


class DiffGrad(Composed):
    """diffGrad with decoupled weight decay (Dubey et al., IEEE TNNLS 2020, arXiv 1909.11015): Adam, slower where the gradient
    changes little. See :class:`~lowtide.optim.DiffGradRule`.

    Args:
        params, lr, betas, eps, weight_decay: as in torch.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`; ``state``.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, rule=DiffGradRule(betas, eps), weight_decay=weight_decay, **common)


class DiffGrad8bit(DiffGrad):
    """:class:`DiffGrad` with its three states in 8-bit dynamic-map blocks of 256: 3.05 bytes a parameter.

    Args:
        params, lr, betas, eps, weight_decay, **common: as in :class:`DiffGrad`.
        min_8bit_size: smaller tensors keep fp32 states.
    """

    def __init__(self, *args: Any, min_8bit_size: int = 4096, **options: Any) -> None:
        super().__init__(*args, state=StateStore("int8", min_8bit_size), **options)


class AdamP(Composed):
    """AdamP (Heo et al., ICLR 2021, arXiv 2006.08217, algorithm 2): AdamW that does not step along weights whose size does not
    matter. See :class:`~lowtide.optim.ScaleInvariant`.

    Args:
        params, lr, betas, eps, weight_decay: as in torch.
        delta, wd_ratio: of the projection.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`; ``state``.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, *, delta: float = 0.1, wd_ratio: float = 0.1, **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, rule=AdamRule(betas, eps), weight_decay=weight_decay,
            constraint=ScaleInvariant(delta, wd_ratio), **common,
        )  # fmt: skip


class SGDP(Composed):
    """SGDP (Heo et al., ICLR 2021, arXiv 2006.08217, algorithm 1): :class:`SGD` that does not step along weights whose size does
    not matter.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov: as in :class:`SGD`. (The decay of the package ``adamp`` is
            that much divided by 1 - momentum.)
        delta, wd_ratio: of the projection, :class:`~lowtide.optim.ScaleInvariant`.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`; ``state``.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.9, dampening: float = 0.0,
        weight_decay: float = 0.0, nesterov: bool = False, *, delta: float = 0.1, wd_ratio: float = 0.1, **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, rule=SGDRule(momentum, dampening, nesterov), weight_decay=weight_decay,
            constraint=ScaleInvariant(delta, wd_ratio), **common,
        )  # fmt: skip


class GaLore(Composed):
    """GaLore (Zhao et al., ICML 2024, arXiv 2403.03507) with any rule: ``GaLore(groups, lr, LionRule())``. What works element by
    element (Adam, Lion, signs...) depends on the basis: another basis of the same subspace gives another step; SGD's does not.

    Args:
        params: groups from :func:`lowtide.optim.param_groups` (keys ``rank, update_proj_gap, scale, proj_type``).
        lr: wants the size that the rule has at full rank, over ``scale``.
        rule: an update rule; AdamRule() unless given.
        weight_decay: decoupled.
        svd: ``"randomized"`` (warm-started) or ``"exact"``.
        proj: ``"svd"``; or what keeps the moments' meaning only between refreshes: ``"random"`` (orthonormal, stored),
            ``"hadamard"`` (orthonormal, a seed and a fast transform), ``"rademacher"`` (signs, a seed).
        **common: ``state``, ``constraint``, ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    default_scale: ClassVar[float] = 0.25

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, rule: Rule | None = None, weight_decay: float = 0.0, *,
        svd: str = "randomized", proj: str = "svd", **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, rule=rule, weight_decay=weight_decay, subspace=projection_of(proj, svd), refresh=EveryT(),
            transport=Stale(),
            **common,
        )  # fmt: skip
