# SPDX-License-Identifier: Apache-2.0
"""The Fisher matrix of a model's outputs, as an operator, without a gradient of any single sample.

A row n of the outputs has a gradient r_n of its loss. As a loss is a mean over rows, ``F = sum_n w_n J_n' r_n r_n' J_n``, and
``F v = J' s`` with ``u = J v``, ``s_n = w_n (r_n . u_n) r_n``: a Jacobian product and one backward pass, as for Gauss-Newton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowtide.curvature._ggn import GGNOperator
from lowtide.curvature._losses import MSE, BCEWithLogits
from lowtide.curvature._losses_classes import CrossEntropy
from lowtide.curvature._params import ParamSpec
from lowtide.errors import LowtideTypeError, LowtideValueError

KINDS = ("empirical", "mc", "type2")


class FisherOperator(GGNOperator):
    """The Fisher matrix, or an estimate of it; never negative.

    A row is a sample; of a language model a token, of an output with further dimensions each place. Rows must not depend on one
    another: with batch normalization use ``state="eval"``.

    Args:
        model, params, data, jvp, fd_step, problem_options: see :class:`GGNOperator`.
        loss_fn: cross-entropy, mean squared error, binary cross-entropy or causal_lm.
        kind:
            - ``"empirical"``: rows' gradients at the data's own targets, ``sum_n w_n g_n g_n'`` where ``L = sum_n w_n l_n``.
            - ``"mc"``: at targets drawn from the model's distribution; its mean over draws is ``"type2"``. The same draws in each
              product: one fixed matrix.
            - ``"type2"``: the exact expectation, which for these losses is the Gauss-Newton matrix.
        seed, draws: of ``"mc"``: targets of each row, and how many.

    >>> import torch
    >>> from lowtide.curvature import FisherOperator
    >>> model = torch.nn.Linear(2, 3)
    >>> f = FisherOperator(model, None, (torch.ones(4, 2), torch.tensor([0, 1, 2, 0])), "cross_entropy", kind="empirical")
    >>> bool(torch.linalg.eigvalsh(f.dense()).min() > -1e-6)
    True
    """

    def __init__(
        self,
        model: nn.Module,
        params: ParamSpec,
        data: Any,
        loss_fn: Any,
        *,
        kind: str = "empirical",
        seed: int = 0,
        draws: int = 1,
        jvp: str = "auto",
        fd_step: float | str = "auto",
        **problem_options: Any,
    ) -> None:
        if kind not in KINDS:
            raise LowtideValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if draws < 1:
            raise LowtideValueError(f"draws must be 1 or more, got {draws}")
        super().__init__(model, params, data, loss_fn, jvp=jvp, fd_step=fd_step, **problem_options)
        if not isinstance(self.problem.loss, (CrossEntropy, MSE, BCEWithLogits)):
            raise LowtideTypeError(
                f"loss_fn must be cross-entropy, mean squared error or binary cross-entropy for a Fisher, got {self.problem.loss!r}; "
                "GGNOperator takes any criterion"
            )
        self.positive = True
        self.kind, self.seed, self.draws = kind, seed, draws

    def _chunked(self, batch: Any) -> bool:
        return self.kind == "type2" and super()._chunked(batch)

    def _output_product(self, outputs: Tensor, u: Tensor, batch: Any) -> Tensor:
        loss = self.problem.loss
        if self.kind == "type2":
            return loss.output_hessian(outputs, u, batch)
        if self.kind == "empirical":
            r, weight = loss.row_gradients(outputs, batch)
            return weight * r * loss.row_sum(r * u)
        root = loss.curvature_root(outputs, batch)
        generator = torch.Generator().manual_seed(_mixed(self.seed, self.problem.index))
        total = torch.zeros_like(outputs)
        for _ in range(self.draws):
            r = root * loss.nll_gradient(outputs, loss.sample(outputs, batch, generator))
            total += r * loss.row_sum(r * u)
        return total / self.draws

    def __repr__(self) -> str:
        return super().__repr__().replace("(n=", f"('{self.kind}', n=", 1)


def _mixed(seed: int, index: int) -> int:
    """32 bits of both: torch's CPU generator uses no more."""
    x = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % (1 << 64)
    return (x ^ (x >> 31)) * 0xD6E8FEB86659FD93 % (1 << 64) >> 32
