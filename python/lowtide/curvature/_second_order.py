# SPDX-License-Identifier: Apache-2.0
"""Hessian products by automatic differentiation: the gradient's gradient, or the gradient's directional derivative."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import grad, jvp

from lowtide.curvature._problem import Problem
from lowtide.errors import LowtideRuntimeError

Batches: TypeAlias = list[tuple[Any, float]] | None
#: How far from symmetric products may be before they are taken for wrong, relative to their length: rounding, in bfloat16 too, is
#: far below, and an operation whose second derivative is wrong far above.
_ASYMMETRY = 0.05
_SEED = 0x5E77
_REMEDY = "pass method='fd', which takes two plain gradients"


class NoSecondDerivativeError(LowtideRuntimeError):
    """An operation of the model or loss cannot be differentiated twice."""


class DoubleBackward:
    """``H v`` as the gradient of ``<g, v>``: exact, three to five gradients in time and memory.

    Args:
        problem: what to differentiate.
        cache_graph: keep the gradient's graph of all batches between products: each then costs about two gradients, and the
            activations of the whole data stay in memory. Rebuilt when parameters have changed in place.
    """

    def __init__(self, problem: Problem, cache_graph: bool = False) -> None:
        self.problem = problem
        self.cache_graph = cache_graph
        self._examined = False
        self._cached: tuple[tuple[Any, ...], list[Tensor], list[Tensor | None]] | None = None

    def product(self, v: Tensor, out: Tensor, batches: Batches = None) -> None:
        """``out[:] = H v``, over all batches or those given."""
        layout = self.problem.layout
        parts, views = layout.views(v), layout.views(out.zero_())
        with torch.enable_grad(), self.problem.frozen(exact=True):
            if self.cache_graph and batches is None:
                leaves, gradients = self._graph()
                self.problem.swapped(
                    lambda model, batch: self._backward(gradients, leaves, parts, views, 1.0, retain=True),
                    leaves,
                    None,
                )
                return
            for batch, weight in self.problem.batches() if batches is None else batches:
                leaves = self.problem.leaves()

                def both(
                    model: nn.Module, batch: Any, leaves: list[Tensor] = leaves, weight: float = weight
                ) -> None:
                    gradients = self._gradients(model, leaves, batch)
                    self._backward(gradients, leaves, parts, views, weight, retain=False)

                # Both while the tensors are in place: checkpointed modules run again in each.
                self.problem.swapped(both, leaves, batch)

    def _gradients(self, model: nn.Module, leaves: list[Tensor], batch: Any) -> list[Tensor | None]:
        loss = self.problem.loss_root(model, batch)[0][0]
        if not self._examined:
            _refuse_once_differentiable(loss)
            self._examined = True
        try:
            return list(torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True))
        except RuntimeError as error:
            raise _no_second(error) from error

    def _graph(self) -> tuple[list[Tensor], list[Tensor | None]]:
        state = tuple((t.data_ptr(), t._version) for t in self.problem.tensors)
        if self._cached is None or self._cached[0] != state:
            self._cached = None
            leaves = self.problem.leaves()
            total: list[Tensor | None] = [None] * len(leaves)

            def gradients(model: nn.Module, batch: Any) -> list[Tensor | None]:
                return self._gradients(model, leaves, batch)

            for batch, weight in self.problem.batches():
                for t, g in enumerate(self.problem.swapped(gradients, leaves, batch)):
                    if g is not None:
                        before = total[t]
                        total[t] = weight * g if before is None else before + weight * g
            self._cached = (state, leaves, total)
        return self._cached[1], self._cached[2]

    def _backward(
        self,
        gradients: list[Tensor | None],
        leaves: list[Tensor],
        parts: list[Tensor],
        views: list[Tensor],
        weight: float,
        retain: bool,
    ) -> None:
        # A gradient that is missing or constant has no derivative: its rows of the Hessian are zero.
        used = [
            (g, v.to(g.dtype))
            for g, v in zip(gradients, parts, strict=True)
            if g is not None and g.requires_grad
        ]
        if not used:
            return
        try:
            products = torch.autograd.grad(
                [g for g, _ in used], leaves, [v for _, v in used], retain_graph=retain, allow_unused=True
            )
        except RuntimeError as error:
            raise _no_second(error) from error
        for view, product in zip(views, products, strict=True):
            if product is not None:
                view.add_(product, alpha=weight)


class ForwardOverReverse:
    """``H v`` as the directional derivative of the gradient: exact, about 2.5 times a gradient's memory."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def product(self, v: Tensor, out: Tensor, batches: Batches = None) -> None:
        """``out[:] = H v``, over all batches or those given."""
        layout = self.problem.layout
        views = layout.views(out.zero_())
        tensors = tuple(t.detach() for t in self.problem.leaves())
        parts = tuple(p.to(t.dtype) for p, t in zip(layout.views(v), tensors, strict=True))
        every = tuple(range(len(tensors)))
        with self.problem.frozen(exact=True):
            for batch, weight in self.problem.batches() if batches is None else batches:

                def loss(*at: Tensor, batch: Any = batch) -> Tensor:
                    return self.problem.call(at, batch)

                products = jvp(grad(loss, argnums=every), tensors, parts)[1]
                for view, product in zip(views, products, strict=True):
                    view.add_(product.detach(), alpha=weight)


def refuse_asymmetric(engine: DoubleBackward | ForwardOverReverse) -> None:
    """Three products on the first batch: a Hessian is symmetric, what a wrong derivative formula gives is not.

    torch 2.13 differentiates ``torch._weight_norm`` twice as if the norms were constants, and nothing says so.
    """
    problem = engine.problem
    with problem.frozen(exact=True):
        first = [(next(batch for batch, _ in problem.batches()), 1.0)]
        probes = [problem.layout.probe(_SEED, k) for k in range(3)]
        products = [problem.layout.zeros() for _ in probes]
        for v, out in zip(probes, products, strict=True):
            engine.product(v, out, first)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        gap = abs(
            float(probes[i].double() @ products[j].double() - probes[j].double() @ products[i].double())
        )
        size = max(
            float(torch.linalg.vector_norm(p, dtype=torch.float64)) for p in (products[i], products[j])
        )
        if gap > _ASYMMETRY * size:
            raise NoSecondDerivativeError(
                "the exact product is not symmetric: torch's second derivative of some operation is wrong (torch._weight_norm is one), "
                f"or the loss is not the same each time, which check() tells apart; if it is, {_REMEDY}"
            )


def _refuse_once_differentiable(loss: Tensor) -> None:
    """torch takes the gradient of a ``once_differentiable`` function of a constant cotangent for a constant: silently wrong."""
    guard = torch.autograd.function.once_differentiable(lambda ctx: None).__code__
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
        if getattr(backward, "__code__", None) is guard:
            raise NoSecondDerivativeError(
                f"method='double' cannot differentiate {node.name()} twice (its backward is once_differentiable); {_REMEDY}"
            )
        stack.extend(n for n, _ in node.next_functions)


def _no_second(error: RuntimeError) -> NoSecondDerivativeError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return NoSecondDerivativeError(
        f"method='double' failed where torch differentiates twice ({first}); {_REMEDY}"
    )
