# SPDX-License-Identifier: Apache-2.0
"""GaLore and Q-GaLore. See :mod:`lowtide.optim.presets`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from lowtide.errors import LowtideValueError
from lowtide.optim.engine import Composed
from lowtide.optim.presets.common import Betas, svd_of
from lowtide.optim.refresh import EveryT, LazyDoubling
from lowtide.optim.rules import AdamRule
from lowtide.optim.stores import BasisStore, StateStore
from lowtide.optim.subspaces import ExactSVD
from lowtide.optim.transports import Stale


class GaLoreAdamW(Composed):
    """GaLore (Zhao et al., ICML 2024, arXiv 2403.03507, algorithms 1 and 2): Adam in a low-rank subspace of the gradient.

    Args:
        params: groups from :func:`lowtide.optim.param_groups` (keys ``rank, update_proj_gap, scale, proj_type``).
        lr, betas, weight_decay: as in torch.
        eps: default 1e-8; 1e-6 with ``compat``.
        svd: ``"randomized"`` (warm-started) or ``"exact"``.
        compat: ``"galore_torch"`` follows galore-torch 1.0 step by step: exact SVD, epsilon before the bias correction,
            weight decay after the update, eps 1e-6.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    _state = StateStore()
    default_scale: ClassVar[float] = 0.25

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float | None = None,
        weight_decay: float = 0.0, *, svd: str = "randomized", compat: str | None = None, **common: Any,
    ) -> None:  # fmt: skip
        if compat not in (None, "galore_torch"):
            raise LowtideValueError(f"compat must be None or 'galore_torch', got {compat!r}")
        default_eps = 1e-8 if compat is None else 1e-6
        super().__init__(
            params,
            lr,
            rule=AdamRule(betas, default_eps if eps is None else eps, form="hf" if compat else "torch"),
            weight_decay=weight_decay,
            decay="after" if compat else "before",
            subspace=ExactSVD() if compat else svd_of(svd),
            refresh=EveryT(),
            transport=Stale(),
            state=self._state,
            **common,
        )


class GaLoreAdamW8bit(GaLoreAdamW):
    """GaLore with 8-bit states (arXiv 2403.03507, section 4.3). Arguments as :class:`GaLoreAdamW`."""

    _state = StateStore("int8")


class QGaLoreAdamW(Composed):
    """Q-GaLore (Zhang et al. 2024, arXiv 2407.08296): INT4 bases, lazy layer-adaptive refresh, 8-bit states; INT8 weights
    with stochastic rounding where the model holds ``lt.quant.Linear`` (see ``lt.quant.quantize_model_``).

    Args:
        params: groups from :func:`lowtide.optim.param_groups`.
        lr, betas, eps, weight_decay: as in torch.
        proj_bits: 4, 8 or 32: how bases are stored.
        proj_group_size: columns a scale of the basis serves.
        cos_threshold, gamma_proj, queue_size: the lazy schedule: a matrix whose subspaces overlap by ``cos_threshold`` on
            average over ``queue_size`` refreshes has its gap multiplied by ``gamma_proj``.
        svd: ``"randomized"`` (from a fresh sketch each time, so that overlaps mean something) or ``"exact"``.
        compat: ``"q_galore_torch"`` measures the overlap as q-galore-torch does (signed cosine of the first vectors), with its
            epsilon placement and decay order.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    default_scale: ClassVar[float] = 0.25

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, *, proj_bits: int = 4, proj_group_size: int = 256, cos_threshold: float = 0.4,
        gamma_proj: float = 2.0, queue_size: int = 5, svd: str = "randomized", compat: str | None = None, **common: Any,
    ) -> None:  # fmt: skip
        if compat not in (None, "q_galore_torch"):
            raise LowtideValueError(f"compat must be None or 'q_galore_torch', got {compat!r}")
        kinds = {4: "int4", 8: "int8", 32: "fp32"}
        if proj_bits not in kinds:
            raise LowtideValueError(f"proj_bits must be 4, 8 or 32, got {proj_bits!r}")
        super().__init__(
            params,
            lr,
            rule=AdamRule(betas, eps, form="hf" if compat else "torch"),
            weight_decay=weight_decay,
            decay="after" if compat else "before",
            # A warm start resembles the basis it started from, whatever the gradient says: on white noise their overlap is
            # 0.8, and every gap would double.
            subspace=ExactSVD() if compat else svd_of(svd, warm_start=False),
            basis=BasisStore(kinds[proj_bits], proj_group_size),
            refresh=LazyDoubling(cos_threshold, gamma_proj, queue_size, compat=compat is not None),
            transport=Stale(),
            state=StateStore("int8"),
            **common,
        )
