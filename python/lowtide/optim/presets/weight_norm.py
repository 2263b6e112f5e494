# SPDX-License-Identifier: Apache-2.0
"""Named low-rank methods on other coordinates of the weight. See :mod:`lowtide.optim.presets`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from lowtide.optim.engine import Composed
from lowtide.optim.parametrizations import WeightNorm
from lowtide.optim.presets.common import Betas, svd_of
from lowtide.optim.refresh import EveryT
from lowtide.optim.rules import AdamRule
from lowtide.optim.transports import Stale


class GradNormLoRP(Composed):
    """GradNormLoRP (Huang et al., AAAI 2025, arXiv 2412.19616, algorithm 1): each row of a weight is a magnitude times a direction,
    and Adam steps the directions in a low-rank subspace of both sides of their gradient, r x r. See :class:`~lowtide.optim.WeightNorm`.

    The paper applies it to full weights and to the factors of DoRA adapters; both are parameters here. Its code leaves the radial
    term out of the direction's gradient and overwrites the magnitudes by the norm of the direction; this follows the formulas.

    Args:
        params: groups from :func:`lowtide.optim.param_groups`. Unless given, ``proj_type`` is ``"full"`` as in the paper, ``scale``
            0.25 and ``update_proj_gap`` 200 as GaLore's.
        lr, betas, eps: as in torch; magnitudes are stepped at ``lr``, directions at ``lr * scale``.
        weight_decay: shrinks magnitudes.
        svd: ``"randomized"`` (warm-started) or ``"exact"``.
        **common: ``state``, ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    default_scale: ClassVar[float] = 0.25
    default_proj_type: ClassVar[str] = "full"

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, *, svd: str = "randomized", **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            params,
            lr,
            rule=AdamRule(betas, eps),
            weight_decay=weight_decay,
            subspace=svd_of(svd),
            refresh=EveryT(),
            transport=Stale(),
            parametrization=WeightNorm(),
            **common,
        )
