# SPDX-License-Identifier: Apache-2.0
"""Stochastic Lanczos quadrature: the whole spectrum from a few dozen products a probe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lowtide.curvature._basis import ROUNDING, KrylovBasis, check_basis_dtype, three_term_
from lowtide.curvature._linear_operator import LinearOperator
from lowtide.curvature._progress import progress_bar
from lowtide.curvature._spectrum import Spectrum
from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError


def slq(
    op: LinearOperator,
    *,
    probes: int = 10,
    steps: int = 80,
    reorth: str = "none",
    basis_dtype: str = "fp32",
    seed: int = 0,
    progress: bool = False,
) -> Spectrum:
    """The spectral density of a symmetric operator by Lanczos from random signs (Golub, Meurant; Ubaru, Chen, Saad 2017).

    Each probe gives ``steps`` nodes and weights of a quadrature that is exact for polynomials up to degree ``2 steps - 1``;
    the distribution is within O(1/steps) of the true one in Wasserstein distance (Chen, Trogdon, Ubaru 2021). Costs
    ``probes * steps`` products.

    Memory: three vectors with ``reorth="none"``; with ``"cgs2"`` also ``steps`` vectors stored as ``basis_dtype``.
    Without reorthogonalisation an eigenvalue that has converged comes again, its weight shared among the copies: sums over the
    spectrum do not change. Lists of eigenvalues do: see :func:`eigsh`.

    Args:
        op: the operator.
        probes: how many independent starts; error bars need two.
        steps: products a probe, no more than n are used.
        reorth: ``none`` or ``cgs2`` (each vector orthogonalised against all before it).
        basis_dtype: of the basis that ``cgs2`` keeps: ``fp32``, ``bf16`` or ``int8``.
        seed: addresses the probes: probe k is ``op.layout.probe(seed, k)``.
        progress: show a bar (needs tqdm).

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named.
        LowtideRuntimeError: a product is not finite.

    >>> import torch
    >>> from lowtide.curvature import MatrixOperator, slq
    >>> spectrum = slq(MatrixOperator(torch.diag(torch.linspace(0, 1, 50))), probes=2, steps=20)
    >>> round(spectrum.trace_of(lambda t: t).value, 3)  # signs see a diagonal exactly
    25.0
    """
    check_basis_dtype(basis_dtype)
    for value, name in ((probes, "probes"), (steps, "steps")):
        if not isinstance(value, int) or isinstance(value, bool):
            raise LowtideTypeError(f"{name} must be an integer, got {type(value).__name__}")
        if value < 1:
            raise LowtideValueError(f"{name} must be at least 1, got {value}")
    if reorth not in ("none", "cgs2"):
        raise LowtideValueError(f"reorth must be none or cgs2, got {reorth!r}")
    if reorth == "none" and basis_dtype != "fp32":
        raise LowtideValueError(
            f"basis_dtype={basis_dtype!r} needs reorth='cgs2': without it no basis is kept"
        )
    steps = min(steps, op.n)
    results = []
    with progress_bar(progress, probes * steps, "slq") as bar:
        for k in range(probes):
            basis = None
            if reorth == "cgs2":
                layout = op.layout
                basis = KrylovBasis(
                    op.n, steps, dtype=layout.dtype, store=basis_dtype, seed=seed, device=layout.device
                )
            results.append(_quadrature(op, op.layout.probe(seed, k), steps, basis, bar))
    nodes, weights, errors = (_padded(parts) for parts in zip(*results, strict=True))
    return Spectrum(nodes, weights, errors, op.n)


def _padded(rows: tuple[Tensor, ...]) -> Tensor:
    out = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.float64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _quadrature(
    op: LinearOperator, q: Tensor, steps: int, basis: KrylovBasis | None, bar: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values of one start, the squares of the first components of their vectors, and their residuals."""
    alphas, betas = tridiagonal(op, q, steps, basis, bar)
    t = torch.diag(alphas) + torch.diag(betas[:-1], 1) + torch.diag(betas[:-1], -1)
    theta, s = torch.linalg.eigh(t)
    weights = s[0] ** 2
    residuals = float(betas[-1]) * s[-1].abs()
    if basis is not None:
        residuals = torch.hypot(residuals, ROUNDING[basis.store] * theta.abs())
    return theta, weights / weights.sum(), residuals


def tridiagonal(
    op: LinearOperator, q: Tensor, steps: int, basis: KrylovBasis | None, bar: Any
) -> tuple[Tensor, Tensor]:
    """Lanczos from ``q`` (overwritten): the diagonal and what is below it, float64, as many as there were steps.

    Ends early where the Krylov space is invariant: the quadrature is exact then. The last number below the diagonal
    is the norm of the residual.
    """
    eps = torch.finfo(q.dtype).eps
    alphas: list[float] = []
    betas: list[float] = []
    q /= torch.linalg.vector_norm(q, dtype=torch.float64)
    previous = torch.zeros_like(q)
    w = torch.empty_like(q)
    largest = 0.0
    for j in range(steps):
        op.hvp(q, w)
        bar.update(1)
        alpha, beta = three_term_(w, q, previous if j > 0 else None, betas[-1] if j > 0 else 0.0)
        if basis is not None:
            basis.append(q)
            beta = basis.project_(w).norm
        if not math.isfinite(beta):
            raise LowtideRuntimeError(
                f"product {op.products} with the operator is not finite; check the loss and the data for inf and NaN"
            )
        alphas.append(alpha)
        betas.append(beta)
        largest = max(largest, abs(alpha) + beta)
        if beta <= 10 * eps * largest:
            break
        previous, q, w = q, w.div_(beta), previous
    return torch.tensor(alphas, dtype=torch.float64), torch.tensor(betas, dtype=torch.float64)
