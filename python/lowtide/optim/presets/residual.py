# SPDX-License-Identifier: Apache-2.0
"""Named low-rank methods that train outside of their subspace too: the residual axis. See :mod:`lowtide.optim.presets`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from lowtide.errors import LowtideValueError
from lowtide.optim.engine import Composed
from lowtide.optim.groups import check_rank
from lowtide.optim.presets.common import Betas, check_compat, svd_of
from lowtide.optim.refresh import EveryT
from lowtide.optim.residuals import ScaledGradient, ScaledResidual, SignResidual
from lowtide.optim.rules import AdamRule
from lowtide.optim.subspaces import (
    ExactSVD,
    RandomElements,
    RandomGaussian,
    RandomHadamard,
    RandomIndices,
    RandomOrthonormal,
    RandomRademacher,
    Subspace,
)
from lowtide.optim.subspaces_blocks import Blocks
from lowtide.optim.transports import Reset, Stale


def _adam(betas: Betas, eps: float | None, compat: bool) -> AdamRule:
    default = 1e-6 if compat else 1e-8
    return AdamRule(betas, default if eps is None else eps, form="hf" if compat else "torch")


class FiraAdamW(Composed):
    """Fira (Chen et al., NeurIPS 2025, arXiv 2410.01623, algorithm 1): GaLore, and the rest of the gradient at each
    channel's adaptive learning rate, with a limit on how fast its norm grows. See :class:`~lowtide.optim.ScaledResidual`.

    Args:
        params: groups from :func:`lowtide.optim.param_groups`. ``scale`` is the paper's alpha, 0.25 unless given.
        lr, betas, weight_decay: as in torch.
        eps: default 1e-8; 1e-6 with ``compat``.
        limiter: the largest growth of the residual's norm a step (gamma), >= 1.
        svd: ``"randomized"`` (warm-started) or ``"exact"``.
        compat: ``"fira"`` follows fira 1.0.2 step by step: exact SVD, epsilon before the bias correction, weight decay after
            the update, and the three differences of :class:`~lowtide.optim.ScaledResidual`.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`. A matrix whose gradient holds inf or
            NaN is skipped whole.
    """

    default_scale: ClassVar[float] = 0.25

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float | None = None,
        weight_decay: float = 0.0, *, limiter: float = 1.01, svd: str = "randomized", compat: str | None = None,
        **common: Any,
    ) -> None:  # fmt: skip
        check_compat(compat, "fira")
        super().__init__(
            params,
            lr,
            rule=_adam(betas, eps, compat is not None),
            weight_decay=weight_decay,
            decay="after" if compat else "before",
            subspace=ExactSVD() if compat else svd_of(svd),
            refresh=EveryT(),
            transport=Stale(),
            residual=ScaledResidual(limiter, compat is not None),
            **common,
        )


class FRUGAL(Composed):
    """FRUGAL (Zmushko et al., ICML 2025, arXiv 2411.07837, algorithm 1): AdamW in a subspace that changes every
    ``update_proj_gap`` steps with fresh moments, signSGD outside of it. See :class:`~lowtide.optim.SignResidual`.

    Args:
        params: groups from :func:`lowtide.optim.param_groups`; the paper's density 0.25 is ``rank=0.25``. ``scale``, 1 unless
            given, multiplies the learning rate of the projected parameters.
        lr, betas, eps, weight_decay: as in torch.
        subspace: ``"indices"``: random columns or rows of the shorter side, no products; ``"elements"``: random elements, as many in
            each line; ``"random"``: random
            orthonormal; ``"hadamard"``: random orthonormal by a fast transform, nothing stored but a seed; ``"svd"``: GaLore's,
            randomized; ``"blocks"``: whole matrices take turns (:class:`~lowtide.optim.Blocks`), the default of the paper's code.
        density: with ``"blocks"``: the share of elements that AdamW trains at a time, in [0, 1]; ``rank`` is not looked at then.
            0: signSGD on all low-rank matrices, which then have no states.
        block_order: with ``"blocks"``: ``"random"``, ``"ascending"``, ``"descending"`` or ``"mirror"``.
        residual: ``"sign"`` or ``"sgd"``.
        residual_lr_scale: learning rate outside of the subspace as a multiple of the one inside, >= 0.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`. A matrix whose gradient holds inf or
            NaN is skipped whole.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, *, subspace: str = "indices", residual: str = "sign",
        residual_lr_scale: float = 1.0, density: float = 0.25, block_order: str = "random", **common: Any,
    ) -> None:  # fmt: skip
        kinds: dict[str, Subspace] = {
            "indices": RandomIndices(),
            "elements": RandomElements(),
            "random": RandomOrthonormal(),
            "hadamard": RandomHadamard(),
            "svd": svd_of("randomized"),
            "blocks": Blocks(density, block_order),
        }
        if subspace not in kinds:
            raise LowtideValueError(f"subspace must be one of {', '.join(kinds)}, got {subspace!r}")
        super().__init__(
            params,
            lr,
            rule=AdamRule(betas, eps),
            weight_decay=weight_decay,
            subspace=kinds[subspace],
            refresh=EveryT(),
            transport=Reset(),
            residual=SignResidual(residual_lr_scale, residual),
            **common,
        )


class APOLLO(Composed):
    """APOLLO (Zhu et al., MLSys 2025, arXiv 2412.05270, algorithm 1): SGD whose learning rates come, channel by
    channel, from AdamW in a random subspace. The subspace is a seed; nothing is decomposed and nothing projected back. See
    :class:`~lowtide.optim.ScaledGradient`.

    Args:
        params: groups from :func:`lowtide.optim.param_groups`; the paper's rank, a quarter of the dimension, is ``rank=0.25``.
            The update is multiplied by the square root of ``scale`` (1 unless given), as in apollo-torch.
        lr, betas, weight_decay: as in torch.
        eps: default 1e-8; 1e-6 with ``compat``.
        proj: ``"random"`` (Gaussian), ``"rademacher"`` (signs), ``"hadamard"`` (a fast transform) or ``"svd"`` (exact; stores
            its basis).
        scale_type: ``"channel"`` or ``"tensor"``: what shares a learning rate.
        limiter: the largest growth of the update's norm a step, >= 1; None for none.
        compat: ``"apollo_torch"`` follows apollo-torch 1.0.3 step by step but for its random numbers: epsilon before the bias
            correction, the limiter before it too, weight decay after the update.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`. A matrix whose gradient holds inf or
            NaN is skipped whole.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float | None = None,
        weight_decay: float = 0.0, *, proj: str = "random", scale_type: str = "channel", limiter: float | None = 1.01,
        compat: str | None = None, **common: Any,
    ) -> None:  # fmt: skip
        check_compat(compat, "apollo_torch")
        kinds: dict[str, Subspace] = {
            "random": RandomGaussian(),
            "rademacher": RandomRademacher(),
            "hadamard": RandomHadamard(orthonormal=False),
            "svd": ExactSVD(),
        }
        if proj not in kinds:
            raise LowtideValueError(f"proj must be one of {', '.join(kinds)}, got {proj!r}")
        super().__init__(
            params,
            lr,
            rule=_adam(betas, eps, compat is not None),
            weight_decay=weight_decay,
            decay="after" if compat else "before",
            subspace=kinds[proj],
            refresh=EveryT(),
            transport=Stale(),
            residual=ScaledGradient(scale_type, limiter, compat is not None),
            **common,
        )


class APOLLOMini(APOLLO):
    """APOLLO-Mini (arXiv 2412.05270, section 4.3): :class:`APOLLO` of rank 1 with one learning rate for each matrix. The states
    of an m x n matrix are twice its longer side.

    Args:
        params: groups from :func:`lowtide.optim.param_groups`; their ``rank`` is set to 1. ``scale`` is 128 unless given.
        lr, betas, eps, weight_decay, **options: as in :class:`APOLLO`.
    """

    default_scale: ClassVar[float] = 128.0

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, **options: Any) -> None:
        super().__init__(params, lr, scale_type="tensor", **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; a low-rank one gets rank 1."""
        if "rank" in param_group:
            check_rank(param_group["rank"])
            param_group = {**param_group, "rank": 1}
        super().add_param_group(param_group)
