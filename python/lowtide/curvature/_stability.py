# SPDX-License-Identifier: Apache-2.0
"""Whether a step size is stable at a point: curvature beside the limit 2 / lr that gradient descent puts on it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowtide.curvature._lanczos import eigsh
from lowtide.curvature._linear_operator import LinearOperator
from lowtide.curvature._trace import TraceResult, trace
from lowtide.errors import LowtideValueError

if TYPE_CHECKING:
    from lowtide.curvature._problem import Problem


@dataclass(frozen=True)
class StabilityReport:
    """Curvature and what a learning rate makes of it.

    Attributes:
        lr: learning rate.
        limit: ``2 / lr``.
        lambda_max: the largest eigenvalue found; the largest there is, is not smaller.
        lambda_residual: ``|H v - lambda v|``; an eigenvalue lies within this of ``lambda_max``.
        lambda_converged: whether the residual met ``tol``.
        trace: with its interval.
        gradient_norm: of the whole loss; None where the operator has no loss, as for what follows.
        directional_sharpness: ``g'Hg / |g|^2`` along the gradient g.
        batch_sharpness: ``E_B[g_B' H_B g_B / |g_B|^2]``, each batch along its own gradient (Andreyev and Beneventano 2024);
            SGD settles where it is near ``limit``.
        batches: averaged in ``batch_sharpness``.
        products: products with the operator.
    """

    lr: float
    limit: float
    lambda_max: float
    lambda_residual: float
    lambda_converged: bool
    trace: TraceResult
    gradient_norm: float | None
    directional_sharpness: float | None
    batch_sharpness: float | None
    batches: int
    products: int

    @property
    def lambda_ratio(self) -> float:
        """``lr lambda_max / 2``: above 1 full-batch gradient descent leaves the point."""
        return self.lambda_max / self.limit

    @property
    def trace_ratio(self) -> float:
        """``lr Tr(H) / 2``: a minimum linearly stable for SGD with batches of one has at most 1 (Wu and Su 2023)."""
        return self.trace.value / self.limit

    @property
    def gd_stable(self) -> bool | None:
        """Whether ``lambda_max`` is below the limit; None where the residual leaves it open."""
        if self.lambda_max > self.limit:
            return False
        return True if self.lambda_converged and self.lambda_max + self.lambda_residual < self.limit else None

    @property
    def sgd_stable(self) -> bool | None:
        """Whether the trace is below the limit; None where its interval contains the limit."""
        if self.trace.ci_low > self.limit:
            return False
        return True if self.trace.ci_high < self.limit else None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, as JSON takes them, ratios and verdicts included."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["trace"] = self.trace.to_dict()
        for name in ("lambda_ratio", "trace_ratio", "gd_stable", "sgd_stable"):
            fields[name] = getattr(self, name)
        return fields

    def __repr__(self) -> str:
        def verdict(stable: bool | None) -> str:
            return {True: "stable", False: "unstable", None: "undecided"}[stable]

        lines = [
            f"StabilityReport at lr {self.lr:g}, limit 2/lr = {self.limit:.4g}",
            f"  lambda_max {self.lambda_max:.4g} (residual {self.lambda_residual:.2g}): lr lambda/2 = "
            f"{self.lambda_ratio:.3g}, gradient descent {verdict(self.gd_stable)}",
            f"  trace {self.trace.value:.4g} in [{self.trace.ci_low:.4g}, {self.trace.ci_high:.4g}]: lr Tr/2 = "
            f"{self.trace_ratio:.3g}, SGD with batches of one {verdict(self.sgd_stable)}",
        ]
        if self.directional_sharpness is not None and self.batch_sharpness is not None:
            lines.append(
                f"  along the gradient {self.directional_sharpness:.4g}, batches along theirs "
                f"{self.batch_sharpness:.4g} (mean of {self.batches})"
            )
        return "\n".join(lines)


def stability_report(
    op: LinearOperator,
    lr: float,
    *,
    tol: float = 1e-3,
    rtol: float = 0.05,
    max_probes: int = 100,
    max_batches: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> StabilityReport:
    """Largest eigenvalue, trace and sharpness along gradients, beside ``2 / lr``.

    What is said of eigenvalues and trace holds at a minimum, for plain (S)GD without momentum; with momentum b the
    limit of gradient descent is ``2 (1 + b) / lr``.

    Args:
        op: a ``HessianOperator``; with any other operator what needs a loss is None.
        lr: learning rate, positive.
        tol: relative residual of the eigenvalue.
        rtol, max_probes: of the trace.
        max_batches: average batch sharpness over the first so many; all if left out. Each costs three gradients.
        seed: of probes and start vectors.
        progress: show bars (needs tqdm).

    Raises:
        LowtideValueError: ``lr`` is not positive.
    """
    if not 0 < lr < math.inf:
        raise LowtideValueError(f"lr must be a positive number, got {lr}")
    if max_batches is not None and max_batches < 1:
        raise LowtideValueError(f"max_batches must be at least 1, got {max_batches}")
    before = op.products
    top = eigsh(op, k=1, which="LA", tol=tol, seed=seed, progress=progress)
    traced = trace(op, rtol=rtol, max_probes=max_probes, seed=seed, progress=progress)
    problem: Problem | None = getattr(op, "problem", None)
    norm = directional = batch = None
    batches = 0
    if problem is not None:
        gradient = problem.gradient()
        norm = _norm(gradient)
        if norm > 0:
            directional = _dot(gradient, op.hvp(gradient)) / norm**2
        batch, batches = batch_sharpness(problem, max_batches)
    return StabilityReport(
        lr=lr,
        limit=2 / lr,
        lambda_max=float(top.values[0]),
        lambda_residual=float(top.residuals[0]),
        lambda_converged=bool(top.converged[0]),
        trace=traced,
        gradient_norm=norm,
        directional_sharpness=directional,
        batch_sharpness=batch,
        batches=batches,
        products=op.products - before,
    )


def batch_sharpness(problem: Problem, max_batches: int | None = None) -> tuple[float | None, int]:
    """Mean over batches of ``g'Hg / |g|^2``, H and g of the batch alone, and how many; None if all gradients vanish.

    ``g'Hg`` is the derivative of the gradient along itself, by central differences: three gradients a batch, two vectors.
    """
    layout = problem.layout
    gradient, moved = layout.zeros(), layout.zeros()
    total, count = 0.0, 0
    with problem.frozen():
        for batch, _ in problem.batches():
            if max_batches is not None and count == max_batches:
                break
            only = [(batch, 1.0)]
            problem.gradient(out=gradient, batches=only)
            norm = _norm(gradient)
            if norm == 0:
                continue
            # length of the step: about the cube root of the precision, where truncation and rounding balance
            h = (5e-3 if layout.dtype == torch.float32 else 6e-6) / norm
            slopes = []
            for side in (h, -h):
                shifted = [t + side * g for t, g in zip(problem.tensors, layout.views(gradient), strict=True)]
                slopes.append(_dot(problem.gradient(shifted, out=moved, batches=only), gradient))
            total += (slopes[0] - slopes[1]) / (2 * h) / norm**2
            count += 1
    return (total / count if count else None), count


def _dot(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum(dtype=torch.float64))


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))
