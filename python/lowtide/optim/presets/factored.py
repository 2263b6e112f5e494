# SPDX-License-Identifier: Apache-2.0
"""Named methods with few second moments: Adafactor and Adam-mini. See :mod:`lowtide.optim.presets`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from lowtide.optim.engine import Composed
from lowtide.optim.presets.common import Betas, check_compat, svd_of
from lowtide.optim.refresh import EveryT
from lowtide.optim.rules_factored import AdafactorRule, AdamMiniRule
from lowtide.optim.stores import StateStore
from lowtide.optim.subspaces import ExactSVD
from lowtide.optim.transports import Stale


class Adafactor(Composed):
    """Adafactor (Shazeer & Stern, ICML 2018, arXiv 1804.04235): second moments by row and by column; equals
    ``torch.optim.Adafactor`` but for tensors with more than two dimensions, whose matrix is (first, rest). See
    :class:`~lowtide.optim.AdafactorRule`.

    Args:
        params, lr, beta2_decay, eps, d, weight_decay: as in torch. The rate is at most ``lr``, falls as 1 / sqrt(step) and is
            multiplied by the root mean square of each weight.
        beta1: decay rate of a first moment, in [0, 1); 0 for none.
        relative_step, scale_parameter: False: the rate does not fall, or does not follow the weight (as transformers' Adafactor is
            mostly used). form: ``"torch"`` or ``"paper"``.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`; ``state`` of the first moment.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3), d: float = 1.0, weight_decay: float = 0.0, *, beta1: float = 0.0,
        relative_step: bool = True, scale_parameter: bool = True, form: str = "torch", **common: Any,
    ) -> None:  # fmt: skip
        rule = AdafactorRule(beta2_decay, eps, d, beta1, relative_step, scale_parameter, form)
        super().__init__(params, lr, rule=rule, weight_decay=weight_decay, **common)


class GaLoreAdafactor(Composed):
    """GaLore with Adafactor (Zhao et al., ICML 2024, arXiv 2403.03507, section 4.3): second moments by row and by column of the
    projected gradient. Elsewhere Adafactor too.

    Args:
        params: groups from :func:`lowtide.optim.param_groups` (keys ``rank, update_proj_gap, scale, proj_type``).
        lr, beta2_decay, eps, d, weight_decay, beta1, relative_step, scale_parameter: as in :class:`Adafactor`, in the paper's form;
            the rate neither falls nor follows the weight unless asked for, as in GaLore's scripts.
        svd: ``"randomized"`` (warm-started) or ``"exact"``.
        compat: ``"galore_torch"`` follows galore-torch 1.0 step by step: exact SVD.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    default_scale: ClassVar[float] = 0.25

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (1e-30, 1e-3), d: float = 1.0, weight_decay: float = 0.0, *, beta1: float = 0.0,
        relative_step: bool = False, scale_parameter: bool = False, svd: str = "randomized", compat: str | None = None,
        **common: Any,
    ) -> None:  # fmt: skip
        check_compat(compat, "galore_torch")
        super().__init__(
            params,
            lr,
            rule=AdafactorRule(beta2_decay, eps, d, beta1, relative_step, scale_parameter),
            weight_decay=weight_decay,
            subspace=ExactSVD() if compat else svd_of(svd),
            refresh=EveryT(),
            transport=Stale(),
            **common,
        )


class AdamMini(Composed):
    """Adam-mini (Zhang et al., ICLR 2025, arXiv 2406.16793): AdamW with one second moment for each row, or each head of query and
    key weights. See :class:`~lowtide.optim.AdamMiniRule`.

    Args:
        params: parameters or groups; the key ``blocks`` of a group is the number of second moments of each of its matrices:
            :func:`lowtide.optim.head_groups` sets it.
        lr, betas, eps, weight_decay: as in the paper's code.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    _state = StateStore()

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, **common: Any,
    ) -> None:  # fmt: skip
        store = common.pop("state", self._state)
        super().__init__(
            params, lr, rule=AdamMiniRule(betas, eps), weight_decay=weight_decay, state=store, **common
        )


class AdamMini8bit(AdamMini):
    """:class:`AdamMini` with its first moment in 8-bit dynamic-map blocks of 256: 1.02 bytes a parameter.

    Args:
        params, lr, betas, eps, weight_decay, **common: as in :class:`AdamMini`.
        min_8bit_size: smaller tensors keep an fp32 moment.
    """

    def __init__(self, *args: Any, min_8bit_size: int = 4096, **options: Any) -> None:
        super().__init__(*args, state=StateStore("int8", min_8bit_size), **options)
