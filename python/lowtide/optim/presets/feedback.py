# SPDX-License-Identifier: Apache-2.0
"""Named low-rank methods whose subspace moves at each step, with error feedback, and GRASS. See :mod:`lowtide.optim.presets`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from lowtide.errors import LowtideValueError
from lowtide.optim.engine import Composed
from lowtide.optim.presets.common import Betas
from lowtide.optim.refresh import EveryT
from lowtide.optim.residuals import Drop, ErrorFeedback
from lowtide.optim.rules import AdamRule
from lowtide.optim.subspaces import Cosines, PowerQR, SampledIndices, TopIndices
from lowtide.optim.transports import Reset, Rotate


class LDAdam(Composed):
    """LDAdam (Robert et al., ICLR 2025, arXiv 2410.16103, algorithm 1): the subspace takes one power iteration a step, the
    moments are rotated into it, and what is lost, of gradient and momentum, is fed back.

    Args:
        params: groups from :func:`lowtide.optim.param_groups`; ``update_proj_gap`` is 1 and ``scale`` 1 unless given.
        lr, betas, eps, weight_decay: as in the paper's code.
        rho: share of the moment in what the power iteration sees, in [0, 1).
        error_feedback: ``"fp32"``, ``"bf16"``, ``"int8"``, ``"int4"``: how the error (as large as the weight) is kept; or None
            for none. It lies in the optimizer's state, not in ``p.grad`` as in the paper's code: clipping, ``zero_grad`` and
            ``in_backward`` work as usual.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    default_gap: ClassVar[int] = 1

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.908, 0.99), eps: float = 1e-8,
        weight_decay: float = 0.0, *, rho: float = 0.908, error_feedback: str | None = "fp32", **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            params,
            lr,
            rule=AdamRule(betas, eps),
            weight_decay=weight_decay,
            subspace=PowerQR(rho),
            refresh=EveryT(),
            transport=Rotate(),
            residual=Drop() if error_feedback is None else ErrorFeedback(error_feedback, of_moments=True),
            **common,
        )


class DCTAdamW(Composed):
    """DCT-AdamW (Modoranu et al. 2025, arXiv 2505.17967, algorithm 1): Adam on the cosines in which the gradient is largest,
    chosen anew at each step by a fast transform; a basis is r integers, moments are gathered, the error is fed back.

    Args:
        params: groups from :func:`lowtide.optim.param_groups`; ``update_proj_gap`` is 1 and ``scale`` 1 unless given.
        lr, betas, eps, weight_decay: as in torch.
        power: ``"l1"`` (the paper's) or ``"l2"``: what ranks a cosine.
        error_feedback: ``"fp32"``, ``"bf16"``, ``"int8"``, ``"int4"``: how the error (as large as the weight) is kept; or None
            for none.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    default_gap: ClassVar[int] = 1

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, *, power: str = "l1", error_feedback: str | None = "int8", **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            params,
            lr,
            rule=AdamRule(betas, eps),
            weight_decay=weight_decay,
            subspace=Cosines(power),
            refresh=EveryT(),
            transport=Rotate(),
            residual=Drop() if error_feedback is None else ErrorFeedback(error_feedback),
            **common,
        )


class GRASSAdamW(Composed):
    """GRASS (Muhamed et al., EMNLP 2024, arXiv 2406.17660): Adam on a choice of rows (columns of tall matrices), with fresh moments
    after each choice. A gather and a scatter, no product.

    Args:
        params: groups from :func:`lowtide.optim.param_groups`; ``scale`` is 1 unless given.
        lr, betas, eps, weight_decay: as in torch.
        selection: ``"top"``: rows of largest norm; ``"sampled"``: drawn by their energy and weighted
            (:class:`~lowtide.optim.SampledIndices`).
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, *, selection: str = "top", **common: Any,
    ) -> None:  # fmt: skip
        if selection not in ("top", "sampled"):
            raise LowtideValueError(f"selection must be 'top' or 'sampled', got {selection!r}")
        super().__init__(
            params,
            lr,
            rule=AdamRule(betas, eps),
            weight_decay=weight_decay,
            subspace=TopIndices() if selection == "top" else SampledIndices(),
            refresh=EveryT(),
            transport=Reset(),
            **common,
        )
