# SPDX-License-Identifier: Apache-2.0
"""The Hessian of a model's loss over data, as an operator."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.curvature._check import OperatorCheck, check_symmetry
from lowtide.curvature._fd import FiniteDifference
from lowtide.curvature._linear_operator import LinearOperator
from lowtide.curvature._params import ParamSpec
from lowtide.curvature._problem import Problem
from lowtide.curvature._second_order import (
    DoubleBackward,
    ForwardOverReverse,
    NoSecondDerivativeError,
    refuse_asymmetric,
)
from lowtide.errors import LowtideValueError

METHODS = ("auto", "fd", "double", "fwdrev", "rop")
#: Parameters up to which ``auto`` differentiates twice. Below, exactness is worth one more gradient of time and four times the
#: activations; above, finite differences need the memory of one gradient.
EXACT_BELOW = 1_000_000


class HessianOperator(LinearOperator):
    """``H = d^2 L``, L the weighted mean loss over all batches of ``data``, multiplied by vectors and never formed.

    Args:
        model, params, data, loss_fn: see :class:`Problem`, as for ``problem_options`` (weight, state, sdpa, progress).
        method: how products are taken, a product costing so many gradients:

            - ``"fd"``: central finite differences, below 3; the memory of a gradient and a vector; works wherever a gradient does.
            - ``"double"``: the gradient's gradient, 3.5 to 4; exact; with ``cache_graph`` below 2.5 and all activations kept.
            - ``"fwdrev"``: forward over reverse mode, 4 to 6; exact.
            - ``"rop"``: Pearlmutter's R-operator in closed form, about 2.5; multilayer perceptrons only.
            - ``"auto"``: rop where it applies, else double up to a million parameters and where every operation can be
              differentiated twice, else fd. ``repr`` says which.
        fd_step: length of the finite-difference step, ``|h v|``; ``"auto"`` tunes it once. :attr:`fd_error` tells how well.
        cache_graph: keep the graph between products of ``"double"``.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named.
        LowtideRuntimeError: an exact method on a model that has no second derivative.

    >>> import torch
    >>> from lowtide.curvature import HessianOperator
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> h = HessianOperator(model, None, (torch.eye(2), torch.zeros(2, 1)), "mse", method="double")
    >>> h @ torch.tensor([1.0, 2.0])
    tensor([1., 2.])
    """

    def __init__(
        self,
        model: nn.Module,
        params: ParamSpec,
        data: Any,
        loss_fn: Any,
        *,
        method: str = "auto",
        fd_step: float | str = "auto",
        cache_graph: bool = False,
        **problem_options: Any,
    ) -> None:
        if method not in METHODS:
            raise LowtideValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if cache_graph and method not in ("double", "auto"):
            raise LowtideValueError(
                f"cache_graph keeps the graph of method='double'; with {method!r} there is none to keep"
            )
        self.problem = Problem(model, params, data, loss_fn, **problem_options)
        super().__init__(self.problem.layout)
        self.method, self._cache_graph = method, cache_graph
        self._fd = FiniteDifference(self.problem, fd_step)
        self._exact: Any = None
        self._trusted = False
        self._taken: str | None = None if method == "auto" else method
        if method != "auto":
            self._take(method)

    def _take(self, method: str) -> None:
        self._taken = method
        if method == "double":
            self._exact = DoubleBackward(self.problem, self._cache_graph)
        elif method == "fwdrev":
            self._exact = ForwardOverReverse(self.problem)
        elif method == "rop":
            self._exact = _rop().RopProduct(self.problem)
        else:
            self._exact = None

    def _choose(self) -> None:
        if self._taken is None:
            if _rop_supports(self.problem):
                self._take("rop")
            else:
                self._take("double" if self._cache_graph or self.n <= EXACT_BELOW else "fd")

    def _product(self, v: Tensor, out: Tensor) -> None:
        self._choose()
        if self._exact is not None:
            try:
                with self.problem.frozen():
                    if not self._trusted:
                        if self._taken != "rop":
                            refuse_asymmetric(self._exact)
                        self._trusted = True
                    self._exact.product(v, out)
                return
            except NoSecondDerivativeError:
                if self.method != "auto":
                    raise
                self._take("fd")
        self._fd.product(v, out)

    def hvp_seeded(self, seed: int, k: int, out: Tensor | None = None) -> Tensor:
        """``H z`` for probe ``k`` of ``seed``; with finite differences z is regenerated, not stored."""
        if not self._fd_only():
            return super().hvp_seeded(seed, k, out)
        out = self._out(out)
        self._fd.product_seeded(seed, k, out)
        self.products += 1
        return out

    def quad_seeded(self, seed: int, k: int) -> Tensor:
        """``<z_t, (H z)_t>`` for each tensor t, float64 ``(len(layout.names),)``.

        With finite differences neither z nor ``H z`` is stored: each gradient is dotted with z where it appears. One scratch vector.
        """
        if not self._fd_only():
            return super().quad_seeded(seed, k)
        quads = self._fd.quad_seeded(seed, k)
        self.products += 1
        return quads

    def _fd_only(self) -> bool:
        self._choose()
        return self._taken == "fd"

    @property
    def fd_error(self) -> float | None:
        """Relative difference of finite-difference products at neighbouring steps, None before the step was tuned."""
        return self._fd.error

    def check(self, seed: int = 0) -> OperatorCheck:
        """Determinism, symmetry, and the error of finite differences, on probes: seven products or so."""
        trusted, self._trusted = self._trusted, True  # to measure what a product would refuse
        try:
            deterministic, symmetry = check_symmetry(self, seed)
        finally:
            self._trusted = trusted
        z = self.layout.probe(seed, 0)
        fd, exact, against = self.layout.zeros(), self.layout.zeros(), None
        error: float | None
        for name, make in (("double", DoubleBackward), ("fwdrev", ForwardOverReverse)):
            if self._exact is None and self.n > EXACT_BELOW:
                break  # memory for an exact product was not asked for
            try:
                make(self.problem).product(z, exact)
            except (RuntimeError, NotImplementedError):
                continue
            against = name
            break
        self._fd.product_seeded(seed, 0, fd)
        if against is None:
            error = self._fd.error
        else:
            size = float(torch.linalg.vector_norm(exact, dtype=torch.float64))
            error = float(torch.linalg.vector_norm(fd - exact, dtype=torch.float64)) / size if size else None
        return OperatorCheck(deterministic, symmetry, error, against, str(self._taken))

    def __repr__(self) -> str:
        taken = (
            f"'{self.method}'"
            if self.method == self._taken
            else f"'auto' ({self._taken or 'not yet chosen'})"
        )
        return f"HessianOperator(n={self.n}, tensors={len(self.layout.names)}, loss={self.problem.loss!r}, method={taken})"


def _rop() -> Any:
    return importlib.import_module("lowtide.curvature._rop")


def _rop_supports(problem: Problem) -> bool:
    try:
        module = _rop()
    except ImportError:
        return False
    return bool(module.supports(problem.model, problem.loss)) and problem.layout.device.type == "cpu"
