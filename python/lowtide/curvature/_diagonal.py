# SPDX-License-Identifier: Apache-2.0
"""The diagonal of an operator with a standard error for each element."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowtide.curvature._confidence import Sampling
from lowtide.curvature._linear_operator import LinearOperator
from lowtide.curvature._low_rank_trace import Advance, Sketch, exact_diagonal
from lowtide.curvature._progress import progress_bar
from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError

METHODS = ("hutchinson", "xdiag", "gnb")


@dataclass(frozen=True)
class DiagonalResult:
    """A diagonal and how well it is known.

    Attributes:
        value: the estimate, flat ``(n,)``, in the layout's dtype.
        stderr: standard error of each element, ``(n,)``.
        samples: values averaged.
        converged: whether the interval, in the 2-norm over all elements, is as narrow as ``rtol`` wanted.
        seed: of the probes.
        method: the one used.
        products: products with the operator; gradients for "gnb".
    """

    value: Tensor
    stderr: Tensor
    samples: int
    converged: bool
    seed: int
    method: str
    products: int

    def __repr__(self) -> str:
        error = float(self.stderr.double().norm() / self.value.double().norm().clamp_min(1e-300))
        state = "" if self.converged else ", not converged"
        return (
            f"DiagonalResult(n={len(self.value)}, sum {float(self.value.sum(dtype=torch.float64)):.6g}, relative standard "
            f"error {error:.2g}, {self.method}, {self.samples} samples, {self.products} products{state})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as JSON takes them."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {key: v.tolist() if isinstance(v, Tensor) else v for key, v in fields.items()}


def diagonal(
    op: LinearOperator,
    *,
    method: str = "hutchinson",
    rtol: float = 0.05,
    confidence: float = 0.95,
    min_probes: int = 10,
    max_probes: int = 100,
    seed: int = 0,
    out: Tensor | None = None,
    progress: bool = False,
) -> DiagonalResult:
    """The diagonal of ``op``: all n elements from some tens of products.

    Stops when the interval is at most ``rtol`` of the diagonal, both in the 2-norm, or after ``max_probes`` products.

    ==========  ==================================================================================  =============
    method      what it is                                                                          memory, numbers
    ==========  ==================================================================================  =============
    hutchinson  mean of z * Hz (Bekas, Kokiopoulou, Saad 2007); Var d_i = sum_{j!=i} H_ij^2 / m     4 n
    xdiag       leave-one-out on a basis of m/2 vectors (Epperly, Tropp, Webber 2024)               (m + 6) n
    gnb         mean of g * g, g a gradient at labels drawn from the model (Liu et al. 2023,        3 n
                Sophia): the diagonal of the Gauss-Newton matrix, one gradient a sample
    ==========  ==================================================================================  =============

    Args:
        op: the operator; for "gnb" one with a ``problem`` whose loss can draw labels (cross-entropy, MSE, BCE).
        method: one of the table.
        rtol: width of the interval wanted, relative to the diagonal.
        confidence: of the interval that ``rtol`` is about.
        min_probes, max_probes: the least and most products (passes over the data for "gnb").
        seed: of the probes.
        out: receives the value, ``(n,)`` of the layout's dtype.
        progress: show a bar (needs tqdm).

    Raises:
        LowtideValueError: an impossible argument.
        LowtideTypeError: "gnb" on an operator without a problem, or on another loss.
        LowtideRuntimeError: a product is not finite.
    """
    rule = Sampling(rtol, 0.0, confidence, min_probes, max_probes)
    if method not in METHODS:
        raise LowtideValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    run = {"hutchinson": _hutchinson, "xdiag": _xdiag, "gnb": _gnb}[method]
    if out is not None:
        op._out(out)
    before = op.products
    with progress_bar(progress, max_probes, f"diagonal, {method}") as bar:
        moments, exact = run(op, rule, seed, bar.update)
    value, stderr = moments.mean, torch.zeros_like(moments.mean) if exact else moments.stderr
    if out is not None:
        value = out.copy_(value)
    met = exact or rule.met(_norm(value), _norm(stderr), moments.count)
    products = moments.count if method == "gnb" else op.products - before
    return DiagonalResult(value, stderr, moments.count, met, seed, method, products)


class _FlatMoments:
    """Mean and variance of flat vectors in their own dtype and place: three passes a sample, two stored vectors."""

    def __init__(self, zeros: Callable[[], Tensor]) -> None:
        self.count = 0
        self.mean, self._m2 = zeros(), zeros()

    def add(self, x: Tensor) -> None:
        """One more sample; ``x`` is overwritten."""
        if not bool(torch.isfinite(x).all()):
            raise LowtideRuntimeError(
                f"probe {self.count} gave a product that is not finite; check that the loss and its gradient are finite"
            )
        self.count += 1
        x -= self.mean
        self.mean.add_(x, alpha=1 / self.count)
        self._m2.addcmul_(x, x, value=(self.count - 1) / self.count)

    @property
    def stderr(self) -> Tensor:
        if self.count < 2:
            return torch.full_like(self.mean, torch.inf)
        return (self._m2 / ((self.count - 1) * self.count)).sqrt()

    def met(self, rule: Sampling) -> bool:
        """Whether the rule is, in the 2-norm; without a vector for the standard errors."""
        if self.count < max(2, rule.min_probes):
            return False
        spread = float(self._m2.sum(dtype=torch.float64)) / ((self.count - 1) * self.count)
        return rule.met(_norm(self.mean), spread**0.5, self.count)


def _hutchinson(op: LinearOperator, rule: Sampling, seed: int, advance: Advance) -> tuple[_FlatMoments, bool]:
    moments = _FlatMoments(op.layout.zeros)
    probe, product = op.layout.zeros(), op.layout.zeros()
    while moments.count < rule.max_probes and not moments.met(rule):
        op.layout.probe(seed, moments.count, probe)
        moments.add(op.hvp(probe, product).mul_(probe))
        advance(1)
    return moments, False


def _xdiag(op: LinearOperator, rule: Sampling, seed: int, advance: Advance) -> tuple[_FlatMoments, bool]:
    """Sample i: diag(X_i) + w_i * (H - X_i) w_i for X_i = Q (I - s_i s_i') Z', which has not seen w_i."""
    if rule.max_probes < 4:
        raise LowtideValueError(f"max_probes must be at least 4 for method='xdiag', got {rule.max_probes}")
    if op.n <= rule.max_probes:
        moments = _FlatMoments(op.layout.zeros)
        moments.add(exact_diagonal(op, advance))
        return moments, True
    most = rule.max_probes // 2
    sketch = Sketch(op, most, seed)
    target = min(max(2, rule.min_probes // 2), most)
    while True:
        while sketch.size < target and not sketch.whole:
            sketch.extend(advance)
        moments = _FlatMoments(op.layout.zeros)
        if sketch.whole:
            moments.count = sketch.size
            for q, z in zip(sketch.q, sketch.z, strict=True):
                moments.mean.addcmul_(q, z)
            return moments, True
        _add_xdiag(moments, sketch)
        if sketch.size == most or (moments.count >= rule.min_probes // 2 and _met_at(moments, rule)):
            return moments, False
        target = min(2 * sketch.size, most)


def _met_at(moments: _FlatMoments, rule: Sampling) -> bool:
    return rule.met(_norm(moments.mean), _norm(moments.stderr), moments.count)


def _add_xdiag(moments: _FlatMoments, sketch: Sketch) -> None:
    layout = sketch.op.layout
    t, s = sketch.products_with(sketch.z), sketch.directions()
    head = layout.zeros()
    for q, z in zip(sketch.q, sketch.z, strict=True):
        head.addcmul_(q, z)
    for i in range(sketch.size):
        left = s[:, i].to(layout.device, layout.dtype)
        # (H - X_i) w_i = Q (r_i - t_i + s_i (s_i . t_i))
        inside = sketch.r[:, i] - t[:, i] + s[:, i] * (s[:, i] @ t[:, i])
        sample = inside.to(layout.device, layout.dtype) @ sketch.q
        sample *= sketch.omega(i)
        sample += head
        sample.addcmul_(left @ sketch.q, left @ sketch.z, value=-1)
        moments.add(sample)


def _gnb(op: LinearOperator, rule: Sampling, seed: int, advance: Advance) -> tuple[_FlatMoments, bool]:
    """Sample: sum over batches of w (J' c r)^2, r the score of drawn labels, which rows have independently."""
    problem: Any = getattr(op, "problem", None)
    if problem is None:
        raise LowtideTypeError(
            f"method='gnb' draws labels from a model and {type(op).__name__} has none; pass a GGNOperator or "
            "HessianOperator, or use 'hutchinson'"
        )
    moments = _FlatMoments(op.layout.zeros)
    sample = op.layout.zeros()
    views = op.layout.views(sample)
    generator = torch.Generator().manual_seed(seed)
    loss = problem.loss
    while moments.count < rule.max_probes and not moments.met(rule):
        sample.zero_()
        with problem.frozen(), torch.enable_grad():
            for batch, weight in problem.batches():
                leaves = [t.detach().requires_grad_() for t in problem.tensors]
                outputs = problem.outputs(leaves, batch)
                seen = outputs.detach()
                score = loss.nll_gradient(seen, loss.sample(seen, batch, generator))
                score = score * loss.curvature_root(seen, batch)
                gradients = torch.autograd.grad(outputs, leaves, score, allow_unused=True)
                for part, gradient in zip(views, gradients, strict=True):
                    if gradient is not None:
                        part.addcmul_(gradient.to(part.dtype), gradient.to(part.dtype), value=weight)
        moments.add(sample)
        advance(1)
    return moments, False


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))
