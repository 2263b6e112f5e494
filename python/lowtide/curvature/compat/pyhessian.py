# SPDX-License-Identifier: Apache-2.0
"""The interface of PyHessian 0.1 (Yao et al. 2020) with results that hold.

Change ``from pyhessian import hessian`` to ``from lowtide.curvature.compat.pyhessian import hessian``. What differs:

- ``tol`` of :meth:`hessian.eigenvalues` bounds the residual ``|Hv - lambda v| / |lambda|``, and that of :meth:`hessian.trace` the
  half-width of the 95 % confidence interval relative to the mean, instead of the change from one iteration to the next.
- Parameters that the loss does not use, a negative trace, and batches of any sizes are handled; :meth:`hessian.density` works.
- The model's mode, ``.grad`` and parameters stay as they are; the loss is evaluated in evaluation mode, as PyHessian does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.curvature._confidence import Moments, Sampling
from lowtide.curvature._hessian import HessianOperator
from lowtide.curvature._lanczos import eigsh
from lowtide.curvature._slq import slq
from lowtide.errors import LowtideRuntimeError, LowtideValueError


class hessian:
    """Top eigenvalues, trace and spectral density of a loss's Hessian.

    Args:
        model: any module; parameters that require grad are differentiated.
        criterion: ``criterion(model(inputs), targets)``, a mean over samples.
        data: one batch ``(inputs, targets)``.
        dataloader: or many; give one of the two.
        cuda: move batches to the current CUDA device, where the model must be.

    Attributes:
        op: the :class:`HessianOperator` behind it.

    Raises:
        LowtideValueError: both or neither of ``data`` and ``dataloader``.
        LowtideRuntimeError: ``cuda=True`` without CUDA.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Any,
        data: tuple[Any, Any] | None = None,
        dataloader: Iterable[Any] | None = None,
        cuda: bool = True,
    ) -> None:
        if (data is None) == (dataloader is None):
            raise LowtideValueError("pass data=(inputs, targets) or dataloader=, and not both")
        if cuda and not torch.cuda.is_available():
            raise LowtideRuntimeError("cuda=True and there is no CUDA device; pass cuda=False")
        source: Iterable[Any] = [data] if dataloader is None else dataloader

        def batches() -> Iterator[Any]:
            for inputs, targets in source:
                yield (inputs.cuda(), targets.cuda()) if cuda else (inputs, targets)

        loss = criterion if isinstance(criterion, nn.Module) else _Criterion(criterion)
        self.op = HessianOperator(
            model, None, batches if cuda else source, loss, state="eval", cache_graph=data is not None
        )

    def eigenvalues(
        self, maxIter: int = 100, tol: float = 1e-3, top_n: int = 1
    ) -> tuple[list[float], list[list[Tensor]]]:
        """The ``top_n`` eigenvalues of largest magnitude, in that order, and their vectors as lists like the parameters.

        ``maxIter`` is the most products for each. Warns of those whose residual is above ``tol * |lambda|``.
        """
        limit = max(maxIter * top_n, 2 * top_n)
        found = eigsh(self.op, k=top_n, which="LM", tol=tol, max_products=limit)
        missed = [i + 1 for i, done in enumerate(found.converged.tolist()) if not done]
        if missed:
            warnings.warn(
                f"eigenvalues {missed} did not reach tol={tol} within {limit} products; raise maxIter",
                stacklevel=2,
            )
        vectors = [self.op.layout.views(found.vectors[:, i].contiguous()) for i in range(top_n)]
        return found.values.tolist(), vectors

    def trace(self, maxIter: int = 100, tol: float = 1e-3) -> list[float]:
        """Samples ``z'Hz``; their mean is the trace. At most ``maxIter``, fewer once the interval is ``tol`` of the mean."""
        rule = Sampling(rtol=max(tol, 0.0), min_probes=max(2, min(10, maxIter)), max_probes=max(2, maxIter))
        moments = Moments()
        samples: list[float] = []
        while len(samples) < maxIter:
            samples.append(float(self.op.quad_seeded(0, len(samples)).sum()))
            moments.add(torch.tensor(samples[-1], dtype=torch.float64))
            done = len(samples) >= rule.min_probes
            if done and rule.met(float(moments.mean), float(moments.stderr), len(samples)):
                break
        return samples

    def density(self, iter: int = 100, n_v: int = 1) -> tuple[list[list[float]], list[list[float]]]:
        """Nodes and weights of ``n_v`` runs of ``iter`` Lanczos steps; the weights of a run sum to one."""
        spectrum = slq(self.op, probes=n_v, steps=iter, reorth="cgs2")
        nodes: list[list[float]] = []
        weights: list[list[float]] = []
        for t, w in zip(spectrum.nodes, spectrum.weights, strict=True):
            kept = w > 0
            nodes.append(t[kept].tolist())
            weights.append(w[kept].tolist())
        return nodes, weights


class _Criterion(nn.Module):
    def __init__(self, fn: Any) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = self.fn(outputs, targets)
        return value
