# SPDX-License-Identifier: Apache-2.0
"""The Gauss-Newton matrix of a criterion on a model's outputs, as an operator.

``G = sum_batches J' H_out J``: J the Jacobian of the outputs, ``H_out`` the criterion's Hessian with respect to them, in closed
form where it is cross-entropy, squared error or binary cross-entropy. A product is one Jacobian product, forward, and one backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import jvp as func_jvp
from torch.utils._pytree import tree_map

from lowtide.curvature._causal_lm import CausalLM
from lowtide.curvature._check import OperatorCheck, check_symmetry
from lowtide.curvature._fd import FiniteDifference, climb
from lowtide.curvature._linear_ce import ggn as linear_ce_ggn
from lowtide.curvature._linear_operator import LinearOperator
from lowtide.curvature._params import ParamSpec
from lowtide.curvature._problem import Problem, Roots
from lowtide.errors import LowtideTypeError, LowtideValueError

JVPS = ("auto", "forward", "fd")


class GGNOperator(LinearOperator):
    """The Gauss-Newton matrix of the mean loss, which is positive where the criterion is convex.

    Args:
        model, params, data, problem_options: see :class:`Problem`.
        loss_fn: a criterion on the outputs (a name or a module), not a function of (model, batch). The output Hessian
            of criteria without a closed form is taken by automatic differentiation.
        jvp: how J v is taken: ``"forward"`` mode, exact; ``"fd"``, two forward passes on moved parameters; ``"auto"``, forward
            mode where all operations have it.
        fd_step: length of the step of ``"fd"``; ``"auto"`` tunes it once on a probe.

    Memory: a gradient's, one vector for ``out``, another for ``"fd"``. Of Hugging Face language models with ``"causal_lm"`` the
    logits exist in chunks.

    >>> import torch
    >>> from lowtide.curvature import GGNOperator
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> GGNOperator(model, None, (torch.eye(2), torch.zeros(2, 1)), "mse") @ torch.tensor([1.0, 2.0])
    tensor([1., 2.])
    """

    def __init__(
        self,
        model: nn.Module,
        params: ParamSpec,
        data: Any,
        loss_fn: Any,
        *,
        jvp: str = "auto",
        fd_step: float | str = "auto",
        **problem_options: Any,
    ) -> None:
        if jvp not in JVPS:
            raise LowtideValueError(f"jvp must be one of {', '.join(JVPS)}, got {jvp!r}")
        self.problem = Problem(model, params, data, loss_fn, **problem_options)
        if not self.problem.loss.separable:
            raise LowtideTypeError(
                "loss_fn must be a criterion on the model's outputs (a module such as torch.nn.CrossEntropyLoss, or one of "
                "'cross_entropy', 'mse', 'bce_with_logits', 'causal_lm'), got a function of (model, batch); "
                "HessianOperator takes those"
            )
        super().__init__(self.problem.layout)
        self.positive = self.problem.loss.convex
        self.jvp = jvp
        self._chunks: bool | None = None
        self._taken = None if jvp == "auto" else jvp
        self._fd = FiniteDifference(self.problem, fd_step)
        self._fd_step: float | None = None if isinstance(fd_step, str) else float(fd_step)

    # ------------------------------------------------------------------ products

    def _product(self, v: Tensor, out: Tensor) -> None:
        parts = self.layout.views(out.zero_())
        norm = float(torch.linalg.vector_norm(v, dtype=torch.float64))
        if norm == 0.0:
            return
        with self.problem.frozen(exact=True):
            self.problem.visit_gradients(
                None,
                lambda t, g, w: parts[t].add_(g, alpha=w),
                roots=lambda batch: self._roots(batch, v, norm),
            )

    def _roots(self, batch: Any, v: Tensor, norm: float) -> Roots:
        """Outputs, and their cotangents ``H_out J v``."""
        loss = self.problem.loss
        if not self._chunked(batch):
            u = self._tangents(loss.outputs, batch, v, norm)

            def outputs_root(model: nn.Module, batch: Any) -> tuple[list[Tensor], list[Tensor]]:
                outputs = loss.outputs(model, batch)
                with torch.no_grad():
                    return [outputs], [self._output_product(outputs.detach(), u, batch)]

            return outputs_root
        lm = cast(CausalLM, loss)
        ru, rw = self._tangents(lm.hidden_and_weight, batch, v, norm)

        def hidden_root(model: nn.Module, batch: Any) -> tuple[list[Tensor], list[Tensor]]:
            hidden, weight = lm.hidden_and_weight(model, batch)
            with torch.no_grad():
                cotangents = linear_ce_ggn(hidden, weight, ru, rw, lm.labels(batch), causal=True)
            pairs = [(t, c) for t, c in zip((hidden, weight), cotangents, strict=True) if t.requires_grad]
            return [t for t, _ in pairs], [c for _, c in pairs]

        return hidden_root

    def _output_product(self, outputs: Tensor, u: Tensor, batch: Any) -> Tensor:
        return self.problem.loss.output_hessian(outputs, u, batch)

    def _chunked(self, batch: Any) -> bool:
        loss = self.problem.loss
        if not isinstance(loss, CausalLM):
            return False
        if self._chunks is None:
            self._chunks = bool(self.problem.swapped(loss.chunked, None, batch))
        return self._chunks

    # ------------------------------------------------------------------ J v

    def _tangents(self, fn: Callable[..., Any], batch: Any, v: Tensor, norm: float) -> Any:
        with torch.no_grad():
            if self._taken != "fd":
                try:
                    return self._forward(fn, batch, v)
                except (NotImplementedError, RuntimeError):
                    if self._taken == "forward":
                        raise
                    # The loss's own errors come again here.
                    self._difference(fn, batch, v, 1e-3 / norm)
                    self._taken = "fd"
            return self._difference(fn, batch, v, self._step(fn, batch) / norm)

    def _forward(self, fn: Callable[..., Any], batch: Any, v: Tensor) -> Any:
        tensors = tuple(t.detach() for t in self.problem.leaves())
        parts = tuple(p.to(t.dtype) for p, t in zip(self.layout.views(v), tensors, strict=True))
        tangents = func_jvp(lambda *at: self.problem.swapped(fn, at, batch), tensors, parts)[1]
        if self._taken is None:
            self._taken = "forward"
        return tangents

    def _difference(self, fn: Callable[..., Any], batch: Any, v: Tensor, h: float) -> Any:
        return self._quotient(fn, batch, self._fd.along(v), h)

    def _quotient(
        self, fn: Callable[..., Any], batch: Any, move: Callable[[Tensor, float], None], h: float
    ) -> Any:
        scratch = torch.empty(self.n, dtype=self.layout.dtype, device=self.layout.device)
        sides = []
        for side in (h, -h):
            move(scratch, side)
            value = self.problem.swapped(fn, self.layout.views(scratch), batch)
            # An output that is a parameter lies in the scratch, which is about to be written again.
            sides.append(tree_map(lambda t: t.clone(), value) if isinstance(value, tuple) else value)
        if isinstance(sides[0], tuple):
            return tuple((a - b) / (2.0 * h) for a, b in zip(*sides, strict=True))
        return (sides[0] - sides[1]) / (2.0 * h)

    def _step(self, fn: Callable[..., Any], batch: Any) -> float:
        if self._fd_step is None:
            probe, root = self._fd.along_probe(0x7E57, 0), math.sqrt(self.n)

            def quotient(eta: float) -> Tensor:
                u = self._quotient(fn, batch, probe, eta / root)
                return cast(Tensor, u[0] if isinstance(u, tuple) else u).double()

            self._fd_step = climb(quotient, self.layout.dtype)[0]
        return self._fd_step

    def check(self, seed: int = 0) -> OperatorCheck:
        """Determinism and symmetry on probes; the error of ``jvp="fd"`` against forward mode where that exists."""
        deterministic, symmetry = check_symmetry(self, seed)
        return OperatorCheck(deterministic, symmetry, None, None, f"jvp={self._taken}")

    def __repr__(self) -> str:
        taken = f"'{self.jvp}'" if self.jvp == self._taken else f"'auto' ({self._taken or 'not yet chosen'})"
        return f"{type(self).__name__}(n={self.n}, tensors={len(self.layout.names)}, loss={self.problem.loss!r}, jvp={taken})"
