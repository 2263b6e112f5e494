# SPDX-License-Identifier: Apache-2.0
"""Trace estimators that take a low-rank approximation out of the operator and sample only what it leaves.

Test vectors are signs drawn again from their address: only the orthonormal basis of their images is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowtide.curvature._confidence import Moments, Sampling
from lowtide.curvature._linear_operator import LinearOperator
from lowtide.errors import LowtideRuntimeError, LowtideValueError

#: Called with the number of products just done.
Advance = Callable[[int], Any]

#: value, standard error, samples
Estimate = tuple[float, float, int]

#: Below this many parameters sign vectors can depend on each other by chance; above, the odds are under 2^-200.
FEW = 256


class Sketch:
    """Images Y = H W of sign vectors W and what XTrace and XDiag make of them: Y = Q R, Z = H Q; both bases as rows.

    Stores 2 s n numbers for s vectors (s n without ``images``).
    """

    def __init__(self, op: LinearOperator, size: int, seed: int, *, images: bool = True) -> None:
        self.op = op
        self.seed = seed
        self.size = 0  #: vectors so far
        self.whole = False  #: whether the basis spans all that H reaches: no test vector can leave it
        layout = op.layout
        self._q = torch.empty(size, op.n, dtype=layout.dtype, device=layout.device)
        self._z = torch.empty_like(self._q) if images else None
        self._r = torch.zeros(size, size, dtype=torch.float64)
        self._probe = layout.zeros()
        self._ids: list[int] = []
        self._next = 0

    @property
    def q(self) -> Tensor:
        """Orthonormal rows ``(size, n)``."""
        return self._q[: self.size]

    @property
    def z(self) -> Tensor:
        """Their images ``(size, n)``."""
        assert self._z is not None
        return self._z[: self.size]

    @property
    def r(self) -> Tensor:
        """Upper triangular ``(size, size)``, float64."""
        return self._r[: self.size, : self.size]

    def omega(self, k: int) -> Tensor:
        """Test vector k; valid until the next call."""
        return self.op.layout.probe(self.seed, self._ids[k], self._probe)

    def fresh(self) -> Tensor:
        """A sign vector that is none of the test vectors; valid until the next call."""
        self._next += 1
        return self.op.layout.probe(self.seed, self._next - 1, self._probe)

    def _independent(self) -> Tensor:
        """A sign vector that does not depend on the test vectors, and becomes the next."""
        while True:
            probe = self.fresh()
            if self.op.n < FEW:
                new = probe.double()
                earlier = [self.op.layout.probe(self.seed, k).double() for k in self._ids]
                if torch.linalg.matrix_rank(torch.stack([*earlier, new])) <= len(earlier):
                    continue
            self._ids.append(self._next - 1)
            return probe

    def extend(self, advance: Advance) -> None:
        """One more test vector, or ``whole`` if its image brings nothing new."""
        j = self.size
        y = self.op.hvp(self._independent(), self._q[j])
        advance(1)
        length = _norm(y)
        if not torch.isfinite(torch.tensor(length)):
            raise LowtideRuntimeError(
                f"probe {j} gave a product that is not finite; check that the loss and its gradient are finite"
            )
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            along = self._q[:j] @ y
            y -= along @ self._q[:j]
            self._r[:j, j] += along.double().cpu()
        rest = _norm(y)
        # what rounding of the product itself may leave
        if rest <= 8 * torch.finfo(y.dtype).eps * self.op.n**0.5 * length:
            self._ids.pop()
            self.whole = True
            return
        y /= rest
        self._r[j, j] = rest
        if self._z is not None:
            self.op.hvp(y, self._z[j])
            advance(1)
        self.size += 1

    def products_with(self, basis: Tensor) -> Tensor:
        """``basis @ W``, ``(size, size)`` float64: column k belongs to test vector k."""
        columns = [(basis @ self.omega(k)).double().cpu() for k in range(self.size)]
        return torch.stack(columns, dim=1)

    def directions(self) -> Tensor:
        """Column i: the unit vector within the basis that is orthogonal to every image but the i-th."""
        inverse = torch.linalg.solve_triangular(self.r, torch.eye(self.size, dtype=torch.float64), upper=True)
        return torch.nn.functional.normalize(inverse.T, dim=0)


def exact_diagonal(op: LinearOperator, advance: Advance) -> Tensor:
    """The diagonal ``(n,)`` by n products with unit vectors: what nothing beats when n products are allowed."""
    unit, product, diagonal = (op.layout.zeros() for _ in range(3))
    for i in range(op.n):
        unit[i] = 1
        diagonal[i] = op.hvp(unit, product)[i]
        unit[i] = 0
        advance(1)
    if not bool(torch.isfinite(diagonal).all()):
        raise LowtideRuntimeError("a product is not finite; check that the loss and its gradient are finite")
    return diagonal


def exact_trace(op: LinearOperator, advance: Advance) -> Estimate:
    """The sum of the exact diagonal."""
    return float(exact_diagonal(op, advance).sum(dtype=torch.float64)), 0.0, op.n


def hutch_plus_plus(op: LinearOperator, rule: Sampling, seed: int, advance: Advance) -> Estimate:
    """Meyer, Musco, Musco and Woodruff 2021, algorithm 1: a third of the products each for basis, head and rest."""
    if rule.max_probes < 6:
        raise LowtideValueError(f"max_probes must be at least 6 for method='hutch++', got {rule.max_probes}")
    if op.n <= rule.max_probes:
        return exact_trace(op, advance)
    width = rule.max_probes // 3
    before = op.products
    sketch = Sketch(op, width, seed, images=False)
    while sketch.size < width and not sketch.whole:
        sketch.extend(advance)
    product = op.layout.zeros()
    head = 0.0
    for row in sketch.q:
        head += _dot(row, op.hvp(row, product))
        advance(1)
    if sketch.whole:
        return head, 0.0, sketch.size
    rest = Moments()
    left = rule.max_probes - (op.products - before)
    for _ in range(left):
        g = sketch.fresh()
        for _ in range(2):
            g -= (sketch.q @ g) @ sketch.q
        rest.add(torch.tensor(_dot(g, op.hvp(g, product))))
        advance(1)
        value, stderr = head + float(rest.mean), float(rest.stderr)
        if rest.count >= min(rule.min_probes, left) and rule.met(value, stderr, rest.count):
            break
    return value, stderr, rest.count


def xtrace(op: LinearOperator, rule: Sampling, seed: int, advance: Advance) -> Estimate:
    """Epperly, Tropp and Webber 2024, section 2.1, with sign vectors; their number doubles until the rule is met."""
    if rule.max_probes < 4:
        raise LowtideValueError(f"max_probes must be at least 4 for method='xtrace', got {rule.max_probes}")
    if op.n <= rule.max_probes:
        return exact_trace(op, advance)
    most = rule.max_probes // 2
    sketch = Sketch(op, most, seed)
    target = min(max(2, rule.min_probes // 2), most)
    while True:
        while sketch.size < target and not sketch.whole:
            sketch.extend(advance)
        if sketch.whole:
            return (sketch.q * sketch.z).sum(dtype=torch.float64).item(), 0.0, sketch.size
        values = _xtrace_values(sketch)
        value, stderr = float(values.mean()), float(values.std()) / sketch.size**0.5
        if sketch.size == most or rule.met(value, stderr, sketch.size):
            return value, stderr, sketch.size
        target = min(2 * sketch.size, most)


def _xtrace_values(sketch: Sketch) -> Tensor:
    """The leave-one-out estimates, ``(size,)``."""
    w, t = sketch.products_with(sketch.q), sketch.products_with(sketch.z)
    a = (sketch.q @ sketch.z.T).double().cpu()
    s = sketch.directions()
    sw, aw, sas = _dots(s, w), a @ w, _dots(s, a @ s)
    sampled = _dots(w, aw) - _dots(t, w) + sw * _dots(s, sketch.r - aw) + sw**2 * sas
    return a.trace() - sas + sampled + _dots(t - a.T @ w, s) * sw


def xnystrace(op: LinearOperator, rule: Sampling, seed: int, advance: Advance) -> Estimate:
    """Epperly, Tropp and Webber 2024, section 2.2: for positive semidefinite operators, one product a test vector."""
    if op.n <= rule.max_probes:
        return exact_trace(op, advance)
    most = rule.max_probes
    layout = op.layout
    images = torch.empty(most, op.n, dtype=layout.dtype, device=layout.device)
    size, target = 0, min(rule.min_probes, most)
    while True:
        for k in range(size, target):
            op.hvp_seeded(seed, k, images[k])
            advance(1)
        size = target
        if not bool(torch.isfinite(images[:size]).all()):
            raise LowtideRuntimeError(
                "a product is not finite; check that the loss and its gradient are finite"
            )
        if not bool(images[:size].any()):
            return 0.0, 0.0, size
        values = _xnystrace_values(op, images[:size], seed)
        value, stderr = float(values.mean()), float(values.std()) / size**0.5
        if size == most or rule.met(value, stderr, size):
            return value, stderr, size
        target = min(2 * size, most)


def _xnystrace_values(op: LinearOperator, images: Tensor, seed: int) -> Tensor:
    size, n = images.shape
    scratch = op.layout.zeros()
    # The shift keeps the core matrix positive definite when H is singular; it is taken off again at the end.
    shift = torch.finfo(images.dtype).eps * float(torch.linalg.vector_norm(images)) / n**0.5
    shifted = images.clone()
    for k, row in enumerate(shifted):
        row.add_(op.layout.probe(seed, k, scratch), alpha=shift)
    q, r = torch.linalg.qr(shifted.T)
    r = r.double().cpu()
    w = torch.stack([(op.layout.probe(seed, k, scratch) @ q).double().cpu() for k in range(size)], dim=1)
    core = w.T @ r
    core = (core + core.T) / 2
    values, vectors = torch.linalg.eigh(core)
    if float(values.max()) <= 0:
        raise LowtideRuntimeError(
            "the operator said to be positive has a negative quadratic form; use method='xtrace'"
        )
    # Rounding of the products can leave tiny negative eigenvalues; the shift is the scale of that rounding.
    values = values.clamp_min(shift * n)
    b = r @ (vectors / values.sqrt())  # B B' = Y core^-1 Y' in the basis q
    inverse = (vectors / values) @ vectors.T
    s = (r @ inverse) / inverse.diagonal().sqrt()
    estimates: Tensor = (b**2).sum() - (s**2).sum(0) + _dots(s, w) ** 2 - shift * n
    return estimates


def _dots(x: Tensor, y: Tensor) -> Tensor:
    """Dot products of columns."""
    return (x * y).sum(0)


def _dot(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum(dtype=torch.float64))


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))
