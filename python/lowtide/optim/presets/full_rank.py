# SPDX-License-Identifier: Apache-2.0
"""Named methods without a subspace: a rule and a store of its states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lowtide.optim.engine import Composed
from lowtide.optim.presets.common import Betas
from lowtide.optim.rules import AdaBeliefRule, AdamRule, LionRule, SGDRule
from lowtide.optim.stores import StateStore


class AdamW(Composed):
    """AdamW with fp32 states (Loshchilov & Hutter 2019): equals ``torch.optim.AdamW``.

    Args:
        params, lr, betas, eps, weight_decay: as in torch. A group with ``rank`` is refused: use GaLoreAdamW.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, rule=AdamRule(betas, eps), weight_decay=weight_decay, **common)


class AdamW8bit(Composed):
    """AdamW with both moments in 8-bit dynamic-map blocks of 256 (Dettmers et al. 2022): 2.03 bytes a parameter.

    Args:
        params, lr, betas, eps, weight_decay: as in torch.
        min_8bit_size: smaller tensors keep fp32 moments.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, *, min_8bit_size: int = 4096, **common: Any,
    ) -> None:  # fmt: skip
        store = StateStore("int8", min_8bit_size)
        super().__init__(
            params, lr, rule=AdamRule(betas, eps), weight_decay=weight_decay, state=store, **common
        )


class AdamW4bit(Composed):
    """AdamW with both moments in 4 bits, blocks of 128 (Li et al., NeurIPS 2023, arXiv 2309.01507, sections 3 and 4): the
    signed dynamic map for the first, a linear map without zero for the second. 1.06 bytes a parameter.

    Args:
        params, lr, betas, eps, weight_decay: as in torch.
        min_4bit_size: smaller tensors keep fp32 moments.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, *, min_4bit_size: int = 4096, **common: Any,
    ) -> None:  # fmt: skip
        store = StateStore("int4", min_4bit_size)
        super().__init__(
            params, lr, rule=AdamRule(betas, eps), weight_decay=weight_decay, state=store, **common
        )


class AdaBelief(Composed):
    """AdaBelief with decoupled weight decay (Zhuang et al., NeurIPS 2020, arXiv 2010.07468): see
    :class:`~lowtide.optim.AdaBeliefRule`.

    Args:
        params, lr, betas, eps, weight_decay: as in the paper's code (``eps`` 1e-16).
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-16,
        weight_decay: float = 0.0, **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, rule=AdaBeliefRule(betas, eps), weight_decay=weight_decay, **common)


class AdaBelief8bit(AdaBelief):
    """:class:`AdaBelief` with both moments in 8-bit dynamic-map blocks of 256.

    Args:
        params, lr, betas, eps, weight_decay, **common: as in :class:`AdaBelief`.
        min_8bit_size: smaller tensors keep fp32 moments.
    """

    def __init__(self, *args: Any, min_8bit_size: int = 4096, **options: Any) -> None:
        super().__init__(*args, state=StateStore("int8", min_8bit_size), **options)


class Lion(Composed):
    """Lion with decoupled weight decay (Chen et al., NeurIPS 2023, arXiv 2302.06675): one moment, directions of +-1. Wants a
    third to a tenth of AdamW's learning rate.

    Args:
        params, lr, betas, weight_decay: as in the paper's code.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, betas: Betas = (0.9, 0.99), weight_decay: float = 0.0,
        **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, rule=LionRule(betas), weight_decay=weight_decay, **common)


class Lion8bit(Lion):
    """:class:`Lion` with its moment in 8-bit dynamic-map blocks of 256: 1.02 bytes a parameter.

    Args:
        params, lr, betas, weight_decay, **common: as in :class:`Lion`.
        min_8bit_size: smaller tensors keep an fp32 moment.
    """

    def __init__(self, *args: Any, min_8bit_size: int = 4096, **options: Any) -> None:
        super().__init__(*args, state=StateStore("int8", min_8bit_size), **options)


class SGD(Composed):
    """SGD with momentum: equals ``torch.optim.SGD``, but that weight decay is decoupled (SGDW, Loshchilov & Hutter 2019,
    algorithm 1) and the default momentum is 0.9.

    Args:
        params, lr, momentum, dampening, nesterov: as in torch.
        weight_decay: the weight shrinks by ``lr * weight_decay`` a step; it does not enter the moment.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.9, dampening: float = 0.0,
        weight_decay: float = 0.0, nesterov: bool = False, **common: Any,
    ) -> None:  # fmt: skip
        rule = SGDRule(momentum, dampening, nesterov)
        super().__init__(params, lr, rule=rule, weight_decay=weight_decay, **common)


class SGD8bit(SGD):
    """:class:`SGD` with its moment in 8-bit dynamic-map blocks of 256: 1.02 bytes a parameter.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, **common: as in :class:`SGD`.
        min_8bit_size: smaller tensors keep an fp32 moment.
    """

    def __init__(self, *args: Any, min_8bit_size: int = 4096, **options: Any) -> None:
        super().__init__(*args, state=StateStore("int8", min_8bit_size), **options)
