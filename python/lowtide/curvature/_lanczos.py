# SPDX-License-Identifier: Apache-2.0
"""Extreme eigenvalues by thick-restart Lanczos, each with the residual that says how good it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowtide.curvature._basis import ROUNDING, KrylovBasis, check_basis_dtype, three_term_
from lowtide.curvature._layout import Vector
from lowtide.curvature._linear_operator import LinearOperator
from lowtide.curvature._progress import progress_bar
from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError

WHICH = ("LA", "SA", "LM", "BE")


@dataclass(frozen=True)
class Eigen:
    """Eigenpairs and how far to trust them.

    An eigenvalue lies within ``residuals[i]`` of ``values[i]``, and within ``residuals[i]**2 / gap`` where it is apart from
    the others by ``gap``.

    Attributes:
        values: float64 ``(k,)``: LA and BE from the largest down, SA from the smallest up, LM by falling magnitude.
        vectors: ``(n, k)`` of the operator's dtype, orthonormal columns; the largest element of each is positive.
        residuals: float64 ``(k,)``: ``||H v - value v||``, from a product with the vector that is returned.
        converged: bool ``(k,)``: residual at most ``tol * max(|value|, eps**(2/3) ||H||)``.
        products: how many products with the operator this took.
        restarts: how often the basis was shrunk to its best part.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    products: int
    restarts: int

    def __repr__(self) -> str:
        rows = ", ".join(
            f"{v:.6g} ± {r:.1e}{'' if c else ' (not converged)'}"
            for v, r, c in zip(
                self.values.tolist(), self.residuals.tolist(), self.converged.tolist(), strict=True
            )
        )
        return f"Eigen({rows}; {self.products} products)"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; without the vectors."""
        return {
            "values": self.values.tolist(),
            "residuals": self.residuals.tolist(),
            "converged": self.converged.tolist(),
            "products": self.products,
            "restarts": self.restarts,
        }


def eigsh(
    op: LinearOperator,
    k: int = 6,
    *,
    which: str = "LA",
    tol: float = 1e-3,
    max_basis: int | None = None,
    basis_dtype: str = "fp32",
    v0: Vector | None = None,
    seed: int = 0,
    max_products: int | None = None,
    verify: bool = True,
    progress: bool = False,
) -> Eigen:
    """``k`` extreme eigenpairs of a symmetric operator: thick-restart Lanczos (Wu, Simon 2000), every new direction
    orthogonalised against the whole basis (CGS2, DGKS test), so that no eigenvalue appears twice for want of it.

    Memory: ``max_basis`` vectors stored as ``basis_dtype`` and k + 3 in full precision; after the search, without
    the basis, 2 k (4 k where the basis was quantized). A quantized basis moves the vectors that come out of it by 1e-3 (bf16) or
    1e-2 (int8); subspace iteration in full precision, k products a step, takes that back where the wanted
    eigenvalues are large beside most others. Eigenvalues, whose error is the square of the residual over the gap, keep three
    digits and more in any case. The residuals say so: they are computed from the returned vectors.

    Args:
        op: the operator.
        k: how many, 1 to n.
        which: ``LA`` largest, ``SA`` smallest, ``LM`` largest in magnitude, ``BE`` half from each end, one more from
            the high one.
        tol: residual relative to the eigenvalue at which one counts as converged.
        max_basis: most vectors in the basis, at least ``k + 2`` (or n); ``min(n, 2 k + 16)`` if left out, twice that with
            int8, where every restart rounds again.
        basis_dtype: ``fp32`` (float64 where the operator is), ``bf16`` or ``int8`` (a quarter of the bytes).
        v0: where to start; signs of ``seed`` if left out.
        seed: addresses the start, fresh directions, and the rounding of an int8 basis.
        max_products: stop after so many products, with what is there; ``50 * max_basis`` if left out.
        verify: once all have converged, search once more from a fresh direction. It finds copies of
            repeated eigenvalues, of which one Krylov sequence sees one each, for about ``max_basis - k`` products more.
        progress: show a bar (needs tqdm).

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named.
        LowtideRuntimeError: a product is not finite.

    >>> import torch
    >>> from lowtide.curvature import MatrixOperator, eigsh
    >>> found = eigsh(MatrixOperator(torch.diag(torch.arange(100.0))), k=2)
    >>> [round(v, 2) for v in found.values.tolist()], found.converged.tolist()
    ([99.0, 98.0], [True, True])
    """
    check_basis_dtype(basis_dtype)
    n = op.n
    k = _count(k, "k", 1, n, f"takes 1 to {n}, the size of the operator")
    if which not in WHICH:
        raise LowtideValueError(f"which must be one of {', '.join(WHICH)}, got {which!r}")
    if not 0 < tol < 1:
        raise LowtideValueError(f"tol must lie between 0 and 1, got {tol!r}; 1e-3 is a good start")
    least = min(n, k + 2)
    size = min(n, (2 * k + 16) * (2 if basis_dtype == "int8" else 1))
    if max_basis is not None:
        size = min(
            n, _count(max_basis, "max_basis", least, None, f"takes at least {least} here (k + 2, or n)")
        )
    limit = 50 * size
    if max_products is not None:
        limit = _count(max_products, "max_products", 2 * k, None, f"takes at least 2 k = {2 * k}")
    with progress_bar(progress, max_products, f"eigsh {which}") as bar:
        search = _Search(op, k, which, tol, size, basis_dtype, seed, limit - k, bar)
        search.run(None if v0 is None else op.layout.flatten(v0, "v0"), verify)
        return search.finish()


def _count(value: object, name: str, low: int, high: int | None, takes: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise LowtideTypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        raise LowtideValueError(f"{name}: got {value}, {takes}")
    return value


def select(theta: Tensor, which: str, k: int) -> Tensor:
    """Indices of the ``k`` wanted values in the order they are returned in."""
    k = min(k, len(theta))
    if which == "LM":
        return torch.argsort(theta.abs(), descending=True, stable=True)[:k]
    order = torch.argsort(theta, descending=which != "SA", stable=True)
    if which != "BE":
        return order[:k]
    low = k // 2
    return torch.cat([order[: k - low], order[len(order) - low :]])


class _Search:
    """The state of one run. ``t`` is the projection ``Q H Q'`` of the operator on the basis."""

    def __init__(
        self,
        op: LinearOperator,
        k: int,
        which: str,
        tol: float,
        size: int,
        store: str,
        seed: int,
        limit: int,
        bar: Any,
    ) -> None:
        self.op, self.k, self.which, self.tol, self.size = op, k, which, tol, size
        self.seed, self.limit, self.bar = seed, limit, bar
        # Vectors are rounded twice, at a restart again: searching below that would only pile up more.
        self.floor = 1.5 * ROUNDING[store]
        layout = op.layout
        self.eps = torch.finfo(layout.dtype).eps
        self.basis = KrylovBasis(op.n, size, dtype=layout.dtype, store=store, seed=seed, device=layout.device)
        self.t = torch.zeros(size, size, dtype=torch.float64)
        # What is known of H Q' - Q' t beside the last residual: one row for each direction that was given up.
        self.dropped = torch.zeros(0, 0, dtype=torch.float64)
        self.products = self.restarts = self.fresh = 0

    def run(self, start: Tensor | None, verify: bool) -> None:
        """Expand and restart until the wanted pairs have converged, or the products are spent."""
        q = self._start(start)
        confirmed: Tensor | None = None  # the wanted values before the last fresh direction
        while True:
            w, beta = self._expand(q)
            theta, s = torch.linalg.eigh(self.t[: self.basis.rows, : self.basis.rows])
            wanted = select(theta, self.which, self.k)
            if self.basis.rows == self.op.n or self.products >= self.limit:
                return
            residual = beta * s[-1]
            known = self.dropped @ s[: self.dropped.shape[1]]
            estimate = torch.sqrt(residual**2 + (known**2).sum(0))
            allowed = torch.clamp(
                0.5 * self.tol * self._scale(theta), min=self.floor * float(theta.abs().max())
            )
            done = len(wanted) == self.k and bool((estimate[wanted] <= allowed[wanted]).all())
            if done and (not verify or self._same(confirmed, theta[wanted], allowed[wanted])):
                return
            if done:
                confirmed = theta[wanted]
                self._restart(theta, s, wanted, known)
                self.dropped = torch.cat([self.dropped, residual[wanted][None]])
                q = self._start(None)
            else:
                kept = select(theta, self.which, self._kept())
                self._restart(theta, s, kept, known)
                q = w.div_(beta)

    def finish(self) -> Eigen:
        """Ritz vectors of the wanted values, refined among themselves by true products."""
        rows = self.basis.rows
        theta, s = torch.linalg.eigh(self.t[:rows, :rows])
        self.norm = float(theta.abs().max())
        vectors = self.basis.combine(s[:, select(theta, self.which, self.k)].T)
        del self.basis
        # Vectors out of a quantized basis are only nearly orthonormal.
        pairs = self._ritz(_orthonormal(vectors))
        while self.floor > 0 and pairs.excess > 1 and self.products <= self.limit:
            # One step of subspace iteration: rounding is spread over all eigenvalues, most of which are small.
            start = _orthonormal(pairs.images)
            better = None if start is None else self._ritz(start)
            if better is None or better.excess > 0.5 * pairs.excess:
                break
            pairs = better
        for v in pairs.vectors:
            if v[v.abs().argmax()] < 0:
                v.neg_()
        return Eigen(
            pairs.theta,
            pairs.vectors.T,
            pairs.residuals,
            pairs.residuals <= self._allowed(pairs.theta),
            self.products,
            self.restarts,
        )

    def _ritz(self, vectors: Tensor | None) -> _Pairs:
        """The eigenpairs of ``H`` on the span of orthonormal rows, by a product with each."""
        if vectors is None:
            raise LowtideRuntimeError("the vectors of the basis are not independent; use basis_dtype='fp32'")
        images = torch.empty_like(vectors)
        for v, image in zip(vectors, images, strict=True):
            self._multiply(v, image)
        small = (vectors @ images.T).double().cpu()
        theta, u = torch.linalg.eigh((small + small.T) / 2)
        order = _returned(theta, self.which)
        theta, u = theta[order], u[:, order]
        vectors, images = _mix(u.T, vectors), _mix(u.T, images)
        residuals = torch.empty(len(theta), dtype=torch.float64)
        for i, (v, image) in enumerate(zip(vectors, images, strict=True)):
            residuals[i] = torch.linalg.vector_norm(image.sub(v, alpha=float(theta[i])), dtype=torch.float64)
        excess = float((residuals / self._allowed(theta).clamp(min=1e-300)).max())
        return _Pairs(theta, vectors, images, residuals, excess)

    def _allowed(self, theta: Tensor) -> Tensor:
        return self.tol * torch.clamp(theta.abs(), min=self.eps ** (2 / 3) * self.norm)

    def _expand(self, q: Tensor) -> tuple[Tensor, float]:
        """Fill the basis from ``q`` on; the residual of its last vector and its norm."""
        w = torch.empty_like(q)
        previous: Tensor | None = None  # what q was made from, where it was
        beta = 0.0
        while True:
            j = self.basis.rows
            self.basis.append(q)
            self._multiply(q, w)
            alpha, _ = three_term_(w, q, previous, beta)
            projected = self.basis.project_(w)
            column = projected.coefficients
            column[j] += alpha
            if previous is not None:
                column[j - 1] += beta
            self.t[j, : j + 1] = self.t[: j + 1, j] = column
            beta = projected.norm
            if not math.isfinite(beta):
                raise LowtideRuntimeError(
                    f"product {self.products} with the operator is not finite; check the loss and the data for inf and NaN"
                )
            if j + 1 == self.size or self.products >= self.limit:
                return w, beta
            # Rounding errors are all that is left of w: the basis spans an invariant space.
            norm = float(torch.linalg.matrix_norm(self.t[: j + 1, : j + 1]))
            if beta <= 10 * self.eps * norm or beta == 0:
                previous, q = None, self._start(None)
            else:
                previous, q, w = q, w.div_(beta), torch.empty_like(w) if previous is None else previous

    def _multiply(self, v: Tensor, out: Tensor) -> None:
        self.op.hvp(v, out)
        self.products += 1
        self.bar.update(1)

    def _start(self, start: Tensor | None) -> Tensor:
        """A unit vector orthogonal to the basis: ``start``, or signs that were not used before."""
        for attempt in range(8 + min(self.op.n, 64)):
            if start is not None:
                q = start.clone()
            elif attempt < 8:
                q = self.op.layout.probe(self.seed, self.fresh)
                self.fresh += 1
            else:  # few numbers, few vectors of signs
                q = self.op.layout.zeros()
                q[attempt - 8] = 1
            norm = float(torch.linalg.vector_norm(q, dtype=torch.float64))
            if not math.isfinite(norm) or norm == 0:
                raise LowtideValueError(f"v0 must be finite and not zero, its norm is {norm}")
            q /= norm
            if self.basis.rows == 0:
                return q
            left = self.basis.project_(q).norm
            if left > 100 * self.eps:
                q /= left
                return q.div_(self.basis.project_(q).norm)
        raise LowtideRuntimeError("no direction is left outside of the basis; ask for a smaller max_basis")

    def _restart(self, theta: Tensor, s: Tensor, kept: Tensor, known: Tensor) -> None:
        self.basis.rotate_(s[:, kept].T)
        count = len(kept)
        self.t.zero_()
        self.t[range(count), range(count)] = theta[kept]
        self.dropped = known[:, kept]
        self.restarts += 1

    def _kept(self) -> int:
        """k and half of the room beside it; at least one new direction fits."""
        return min(self.size - 1, self.k + (self.size - self.k + 1) // 2)

    def _scale(self, theta: Tensor) -> Tensor:
        return torch.clamp(theta.abs(), min=self.eps ** (2 / 3) * float(theta.abs().max()))

    @staticmethod
    def _same(before: Tensor | None, now: Tensor, allowed: Tensor) -> bool:
        return before is not None and bool(((now - before).abs() <= 2 * allowed).all())


def _returned(theta: Tensor, which: str) -> Tensor:
    if which == "LM":
        return torch.argsort(theta.abs(), descending=True, stable=True)
    return torch.argsort(theta, descending=which != "SA", stable=True)


@dataclass(frozen=True)
class _Pairs:
    theta: Tensor
    vectors: Tensor  # rows
    images: Tensor  # H times them
    residuals: Tensor
    excess: float  # the largest residual in units of what is allowed


def _orthonormal(rows: Tensor) -> Tensor | None:
    """The same span by Cholesky of the Gram matrix, or None where rows are not independent."""
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    factor, failed = torch.linalg.cholesky_ex((rows @ rows.T).double().cpu())
    # In float32 a Gram matrix is good to 1e-6: factors below its root mean nothing.
    if int(failed) != 0 or not bool((factor.diagonal() > 1e-2).all()):
        return None
    eye = torch.eye(len(factor), dtype=torch.float64)
    return _mix(torch.linalg.solve_triangular(factor, eye, upper=False), rows)


def _mix(coefficients: Tensor, rows: Tensor) -> Tensor:
    """``coefficients @ rows`` with a float64 matrix ``(k, k)``."""
    return coefficients.to(rows.device, rows.dtype) @ rows
