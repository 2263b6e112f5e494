# SPDX-License-Identifier: Apache-2.0
"""A regularized Newton method that measures its own damping: gradient-normalized smoothness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError

if TYPE_CHECKING:
    from lowtide.curvature import LinearOperator

#: Keeps the damping finite where gamma is 0; the least gamma after a step that was taken (the authors' code).
_TINY, _LEAST = 1e-8, 1e-9
_Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NewtonStep:
    """What one step of :class:`GradNormSmooth` did.

    Attributes:
        loss, gradient_norm: at the weights it started from.
        damping: lambda of the last trial. gamma: the local smoothness that the next step starts from.
        trials: how many dampings were tried. accepted: whether the weights changed.
        products: with the Hessian.
    """

    loss: float
    gradient_norm: float
    damping: float
    gamma: float
    trials: int
    accepted: bool
    products: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def _split(flat: Tensor, params: list[Tensor]) -> list[Tensor]:
    """The parts of a flat vector, each in its parameter's shape."""
    parts = torch.split(flat, [p.numel() for p in params])
    return [part.view(p.shape) for part, p in zip(parts, params, strict=True)]


class GradNormSmooth(Optimizer):
    """Newton's method with damping from gradient-normalized smoothness (Semenov et al. 2025, arXiv 2506.13710, algorithm 1
    with the adaptive search of its code)::

        lambda = |g| / (gamma + 1e-8),   step = -(H + lambda I)^-1 g
        taken if  f - f_new >= |g_new|^2 / (8 lambda): then gamma = max(2 gamma, 1e-9)
        otherwise gamma = gamma / 2, and again

    Losses are of the whole data, or of one batch that stays for a step. A step costs the gradient, one gradient a trial (most
    take the first) and products: n of them where the system is solved densely, those of conjugate gradients otherwise. All
    vectors of the solver are float64: 8 n^2 bytes dense, 8 times 5 n bytes otherwise.

    Where H + lambda I is not positive, the trial counts as refused, so indefinite Hessians are damped until they are. Weights
    of a refused trial are put back bit for bit; if no trial is taken, nothing has changed.

    There is no learning rate. Groups keep ``gamma``, which is saved with the state.

    Args:
        params: parameters, float32 or float64; no groups.
        operator: what multiplies by H, or by what stands for it (:class:`lowtide.curvature.HessianOperator`,
            :class:`~lowtide.curvature.GGNOperator`, any other over the same numbers in the same order) at the weights as they are.
            Left out: the Hessian of the closure's loss, by differentiating its gradient.
        gamma: to start from, > 0.
        solver: ``"dense"`` (Cholesky), ``"cg"``, or ``"auto"``: dense up to ``dense_limit`` parameters.
        max_trials: dampings tried in a step.
        dense_limit: see ``solver``.
        cg_tol: conjugate gradients stop at a residual of this share of the gradient; cg_products: or after so many products.

    Attributes:
        last: the last step's :class:`NewtonStep`, or None.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, or an operator over other parameters.
    """

    def __init__(
        self, params: Iterable[Any], *, operator: LinearOperator | None = None, gamma: float = 1.0, solver: str = "auto",
        max_trials: int = 40, dense_limit: int = 512, cg_tol: float = 1e-6, cg_products: int = 200,
    ) -> None:  # fmt: skip
        if not 0.0 < gamma < math.inf:
            raise LowtideValueError(f"gamma must be a finite number > 0, got {gamma!r}")
        if solver not in ("auto", "dense", "cg"):
            raise LowtideValueError(f"solver must be 'auto', 'dense' or 'cg', got {solver!r}")
        if not 0.0 < cg_tol < 1.0:
            raise LowtideValueError(f"cg_tol must be in (0, 1), got {cg_tol!r}")
        for name, value, least in (
            ("max_trials", max_trials, 1), ("dense_limit", dense_limit, 0), ("cg_products", cg_products, 1),
        ):  # fmt: skip
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise LowtideValueError(f"{name} must be an integer >= {least}, got {value!r}")
        self.operator = operator
        self.solver, self.max_trials, self.dense_limit = solver, max_trials, dense_limit
        self.cg_tol, self.cg_products = cg_tol, cg_products
        self.last: NewtonStep | None = None
        super().__init__(params, {"gamma": float(gamma)})
        found = self._params
        for p in found:
            if p.dtype not in (torch.float32, torch.float64):
                raise LowtideTypeError(f"params must be float32 or float64, got {p.dtype}; convert them")
        shapes = tuple(tuple(p.shape) for p in found)
        if operator is not None and operator.n != sum(p.numel() for p in found):
            raise LowtideValueError(
                f"operator must act on the {sum(p.numel() for p in found)} numbers of params, it acts on {operator.n}"
            )
        problem = getattr(operator, "problem", None)
        if problem is not None and (
            problem.layout.shapes != shapes
            or any(a.data_ptr() != b.data_ptr() for a, b in zip(problem.tensors, found, strict=True))
        ):
            raise LowtideValueError(
                "operator is of other parameters, or of these in another order; build both from one list"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The first group only.

        Raises:
            LowtideValueError: another one; a Newton step is one step in all parameters.
        """
        if self.param_groups:
            raise LowtideValueError("params must be one group; pass a list of parameters")
        unknown = set(param_group) - {"params", "gamma", "param_names"}
        if unknown:
            raise LowtideValueError(f"group key {sorted(unknown)[0]!r} is not known; groups take gamma")
        super().add_param_group(param_group)

    @property
    def _params(self) -> list[Tensor]:
        return [p for p in self.param_groups[0]["params"] if p.requires_grad]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> float:  # type: ignore[override]
        """One step.

        Args:
            closure: the loss at the weights as they are, differentiable, not yet differentiated; the same function each time
                it is called in a step. Left out: the operator's own loss (``operator.problem``).

        Returns:
            The loss at the weights that the step started from. :attr:`last` says more.

        Raises:
            LowtideTypeError: neither a closure nor an operator with a loss, or a closure without a graph.
            LowtideRuntimeError: the loss is not finite; nothing was changed.
        """
        group, params = self.param_groups[0], self._params
        gamma = float(group["gamma"])
        loss, g, graph = self._measure(closure, self.operator is None)
        norm = float(g.norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise LowtideRuntimeError(
                f"the loss is {loss} and its gradient's norm {norm}; nothing was changed. Start from other weights, or look for "
                "inf and NaN in the data"
            )
        count = [0]
        product = self._product(graph, params, count)
        saved = [p.detach().clone() for p in params]
        damping, trials, accepted = 0.0, 0, norm == 0.0
        solve = self._dense(product, g) if self._is_dense(g.numel()) else self._cg(product, g)
        try:
            while not accepted and trials < self.max_trials:
                if trials:  # products are taken at the weights as they are
                    self._write(params, saved)
                trials += 1
                damping = norm / (gamma + _TINY)
                step = solve(damping)
                if step is not None:
                    self._write(params, saved, step)
                    new, g_new, _ = self._measure(closure, False)
                    accepted = loss - new >= float(g_new.norm()) ** 2 / (8.0 * damping)
                gamma = max(2.0 * gamma, _LEAST) if accepted else gamma / 2.0
        finally:
            if not accepted:
                self._write(params, saved)
            increment_version(params)
        if accepted:
            group["gamma"] = gamma
        taken = accepted and norm > 0.0
        self.last = NewtonStep(loss, norm, damping, float(group["gamma"]), trials, taken, count[0])
        return loss

    # ------------------------------------------------------------------ losses and products

    def _measure(self, closure: Callable[[], Any] | None, graph: bool) -> tuple[float, Tensor, list[Tensor]]:
        """Loss, flat gradient in double, and the gradients with their graph if asked for."""
        params = self._params
        if closure is None:
            problem = getattr(self.operator, "problem", None)
            if problem is None:
                raise LowtideTypeError(
                    "closure must return the loss; it may be left out where operator is one of a model, such as HessianOperator"
                )
            return float(problem.evaluate()), problem.gradient().double(), []
        with torch.enable_grad():
            loss = closure()
            if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
                raise LowtideTypeError(
                    "closure must return a loss without dimensions that was not yet differentiated; leave backward() to step"
                )
            grads = torch.autograd.grad(loss, params, create_graph=graph, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
        flat = torch.cat([g.detach().double().reshape(-1) for g in parts])
        return float(loss.detach()), flat, parts if graph else []

    def _product(self, graph: list[Tensor], params: list[Tensor], count: list[int]) -> _Product:
        operator = self.operator
        linked = [i for i, g in enumerate(graph) if g.requires_grad]

        def product(v: Tensor) -> Tensor:
            count[0] += 1
            if operator is not None:
                return operator.hvp(v.to(operator.layout.dtype)).double()
            if not linked:  # a linear function
                return torch.zeros_like(v)
            parts = [part.to(p.dtype) for part, p in zip(_split(v, params), params, strict=True)]
            hv = torch.autograd.grad(
                [graph[i] for i in linked],
                params,
                [parts[i] for i in linked],
                retain_graph=True,
                allow_unused=True,
            )
            return torch.cat(
                [
                    (torch.zeros_like(p) if h is None else h).double().reshape(-1)
                    for p, h in zip(params, hv, strict=True)
                ]
            )

        return product

    @staticmethod
    def _write(params: list[Tensor], saved: list[Tensor], step: Tensor | None = None) -> None:
        """Saved weights, or these and a step. Past the version counters: the gradient's graph is used again once the weights
        it was made at are back."""
        if step is None:
            for p, value in zip(params, saved, strict=True):
                p.data.copy_(value)
            return
        for p, value, part in zip(params, saved, _split(step, params), strict=True):
            p.data.copy_(value.double() + part)

    # ------------------------------------------------------------------ solvers

    def _is_dense(self, n: int) -> bool:
        return self.solver == "dense" or (self.solver == "auto" and n <= self.dense_limit)

    def _dense(self, product: _Product, g: Tensor) -> Callable[[float], Tensor | None]:
        """By Cholesky's factor; None where the damped matrix is not positive."""
        eye = torch.eye(g.numel(), dtype=torch.float64)
        held: list[Tensor] = []

        def solve(damping: float) -> Tensor | None:
            if not held:
                h = torch.stack([product(row) for row in eye]) if g.numel() else eye
                held.append((h + h.T) / 2)
            lower, info = torch.linalg.cholesky_ex(held[0] + damping * eye)
            return None if int(info) else -torch.cholesky_solve(g[:, None], lower)[:, 0]

        return solve

    def _cg(self, product: _Product, g: Tensor) -> Callable[[float], Tensor | None]:
        """By conjugate gradients; None at a direction of no positive curvature."""

        def solve(damping: float) -> Tensor | None:
            x, r = torch.zeros_like(g), -g
            d, rr = r.clone(), float(r @ r)
            stop = self.cg_tol**2 * rr
            for _ in range(self.cg_products):
                hd = product(d) + damping * d
                curvature = float(d @ hd)
                if not curvature > 0.0:
                    return None
                alpha = rr / curvature
                x += alpha * d
                r -= alpha * hd
                rr, last = float(r @ r), rr
                if rr <= stop:
                    break
                d = r + (rr / last) * d
            return x

        return solve
