# SPDX-License-Identifier: Apache-2.0
"""Policy-gradient methods with Hessian-aided variance reduction. See :mod:`lowtide.optim.presets`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.engine import Composed
from lowtide.optim.hessian_aided import DecayingRule, HessianAidedMean, call, hessian_product, losses_of


class NHARPG(Composed):
    """N-HARPG (Fatkhullin et al., ICML 2023, arXiv 2302.01734): normalized steps along a mean of policy gradients that products with the
    Hessian carry along. See :class:`~lowtide.optim.HessianAidedMean`.

    :meth:`step` calls its closure twice: at a random point of the last step's segment, for the product, and at the weights, for
    the gradient. Each time it draws anew. The rate is ``lr`` times 2 / (t + 2). Kept: a mean and the last weights, 8 bytes a
    parameter.

    Args:
        params, lr, weight_decay: as in torch; decay is decoupled.
        eta: of the mean's rate.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`.
    """

    _normalized = True

    def __init__(
        self, params: Iterable[Any], lr: float = 0.1, *, eta: float = 1.0, weight_decay: float = 0.0, **common: Any
    ) -> None:  # fmt: skip
        self._products: dict[int, Tensor] = {}
        super().__init__(
            params, lr, rule=DecayingRule(not self._normalized), weight_decay=weight_decay,
            transform=HessianAidedMean(eta, self._normalized), **common,
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: draws trajectories by the weights as they are; returns their losses and log-probabilities, each ``(B,)``,
                differentiable; or, where what is drawn does not depend on the weights, a loss. It does not call ``backward()``
                (it may in a first step, which needs no product). Left out: gradients are there, and :meth:`correct` was called.

        Returns:
            The mean loss at the weights, or None.

        Raises:
            LowtideRuntimeError, LowtideTypeError: no product, or a closure that returns something else; nothing was changed.
        """
        loss = None
        if closure is not None:
            params = [
                p for p in chain.from_iterable(g["params"] for g in self.param_groups) if p.requires_grad
            ]
            if any(weight_store.is_quantized(p) for p in params):
                raise LowtideTypeError(
                    "params must be dense where step(closure) moves them; packed weights need correct()"
                )
            if any(self.state.get(p, {}).get("step", 0) for p in params):
                self._multiply(closure, params)
            loss = self._differentiate(closure, params)
        try:
            self.update(chain.from_iterable(g["params"] for g in self.param_groups))
        finally:
            self._products = {}
        return loss

    def correct(self, products: Mapping[Tensor, Tensor]) -> None:
        """Hand in products of the Hessian with the change of the weights in the last step, for the coming one.

        Args:
            products: one for each parameter, in its shape.

        Raises:
            LowtideValueError: another shape.
        """
        for p, product in products.items():
            if product.shape != weight_store.shape(p):
                raise LowtideValueError(
                    f"products must have the shape of their parameter, {tuple(weight_store.shape(p))}, got {tuple(product.shape)}"
                )
        self._products = {id(p): product for p, product in products.items()}

    def _multiply(self, closure: Callable[[], Any], params: list[Tensor]) -> None:
        old = [(p, self.state[p]["previous"]) for p in params if self.state.get(p, {}).get("step", 0)]
        saved = [p.detach().clone() for p, _ in old]
        step = max(self.state[p]["step"] for p, _ in old)
        generator = torch.Generator().manual_seed((self._axes.seed * 1_000_003 + step) % (1 << 63))
        share = float(torch.rand((), generator=generator))
        vs = [value.float() - previous for value, (_, previous) in zip(saved, old, strict=True)]
        kept = [p.grad for p in params]
        try:
            for (p, previous), v in zip(old, vs, strict=True):
                p.copy_(previous + share * v)
            losses, log_probs = losses_of(call(closure))
            moved = [p for p, _ in old]
            products = hessian_product(
                losses, log_probs, moved, [v.to(p.dtype) for p, v in zip(moved, vs, strict=True)]
            )
        finally:
            for (p, _), value in zip(old, saved, strict=True):
                p.copy_(value)
            for p, grad in zip(params, kept, strict=True):
                p.grad = grad
        self._products = {id(p): product for p, product in zip(moved, products, strict=True)}

    def _differentiate(self, closure: Callable[[], Any], params: list[Tensor]) -> Any:
        for p in params:
            p.grad = None
        result = call(closure)
        if any(p.grad is not None for p in params):
            return result
        losses, _ = losses_of(result)
        with torch.enable_grad():
            mean = losses.mean()
            grads = torch.autograd.grad(mean, params, allow_unused=True)
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        return mean.detach()


class HARPG(NHARPG):
    """HARPG: as :class:`NHARPG`, along the mean itself, at ``lr`` times the root of 2 / (t + 2).

    Args:
        params, lr, weight_decay, eta, **common: as in :class:`NHARPG`.
    """

    _normalized = False
