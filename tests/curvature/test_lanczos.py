# SPDX-License-Identifier: Apache-2.0
"""Eigenvalues against those the matrices were built from, and residuals against products."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import lowtide as lt  # noqa: E402
from lowtide.curvature import LinearOperator, MatrixOperator, eigsh  # noqa: E402

_spec = importlib.util.spec_from_file_location("spectra", Path(__file__).with_name("spectra.py"))
spectra = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(spectra)
with_eigenvalues = spectra.with_eigenvalues

BULK = torch.linspace(-1, 1, 190, dtype=torch.float64)
#: Three times 5, a near pair, negative outliers.
HARD = torch.cat([BULK, torch.tensor([8, 5, 5, 5, 4.99, 2.5, 2.0, -1.7, -3, -3.01], dtype=torch.float64)])


def wanted(values, which, k):
    order = values.sort().values
    if which == "LA":
        return order.flip(0)[:k]
    if which == "SA":
        return order[:k]
    if which == "LM":
        return values[values.abs().argsort(descending=True)][:k]
    return torch.cat([order[-(k - k // 2) :].flip(0), order[: k // 2].flip(0)])


def check_honest(op, found, tol=1e-3, which="LA"):
    """Residuals are those of the vectors, the vectors are orthonormal, and convergence is what tol says."""
    v = found.vectors
    eps = torch.finfo(v.dtype).eps
    image = torch.stack([op.hvp(column) for column in v.unbind(1)], 1)
    norm = op.matrix.double().abs().sum(1).max().item()
    again = (image.double() - v.double() * found.values).norm(dim=0)
    # Products and differences of n terms, rounded once each.
    torch.testing.assert_close(found.residuals, again, rtol=1e-2, atol=10 * eps * norm)
    gram = v.double().T @ v.double()
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=20 * eps)
    largest = torch.linalg.eigvalsh(op.matrix.double()).abs().max()
    limit = tol * found.values.abs().clamp(min=eps ** (2 / 3) * largest)
    assert (found.residuals[found.converged] <= limit[found.converged] * 1.01).all()
    assert (found.residuals[~found.converged] > limit[~found.converged] * 0.99).all()


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_clustered_and_repeated_eigenvalues_are_found_once_each(which, dtype):
    op = with_eigenvalues(HARD, dtype)
    found = eigsh(op, 6, which=which)
    assert found.converged.all()
    assert found.products == op.products
    check_honest(op, found)
    # Of a symmetric matrix: an eigenvalue within each residual; ghosts would push others out of the list.
    errors = (found.values - wanted(HARD, which, 6)).abs()
    assert (errors <= found.residuals + 1e-5).all(), found


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_a_repeated_largest_eigenvalue_needs_the_second_search(k):
    values = torch.cat([torch.linspace(0, 1, 80), torch.full((k,), 3.0)])
    op = with_eigenvalues(values)
    found = eigsh(op, k)
    torch.testing.assert_close(found.values, torch.full((k,), 3.0, dtype=torch.float64))
    if k > 2:  # one sequence sees one direction of the eigenspace; rounding brings others late
        single = eigsh(op, k, verify=False, tol=0.05)
        assert single.values[-1] < 2


def test_every_eigenvalue_of_a_small_matrix():
    values = torch.tensor([3.0, 3.0, -1.0, 0.0, 0.5])
    op = with_eigenvalues(values)
    found = eigsh(op, 5)
    torch.testing.assert_close(found.values, values.double().sort(descending=True).values, atol=1e-12, rtol=0)
    check_honest(op, found)
    assert eigsh(with_eigenvalues([4.0]), 1).values.tolist() == [4.0]
    both = eigsh(MatrixOperator(torch.tensor([[0.0, 1.0], [1.0, 0.0]])), 2)  # signs are its eigenvectors
    torch.testing.assert_close(both.values, torch.tensor([1.0, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_breakdown_at_each_step_of_a_multiple_of_one(value, n):
    op = MatrixOperator(value * torch.eye(n))
    found = eigsh(op, min(n, 3))
    torch.testing.assert_close(found.values, torch.full((min(n, 3),), value, dtype=torch.float64))
    assert found.converged.all()
    assert (found.residuals < 1e-6).all()
    check_honest(op, found)


def test_an_invariant_subspace_is_left_by_a_fresh_direction():
    op = MatrixOperator(torch.diag(torch.tensor([5.0, 4.0, 3.0] + [1.0] * 50, dtype=torch.float64)))
    start = torch.zeros(53, dtype=torch.float64)
    start[1:3] = 1
    found = eigsh(op, 2, v0=start)
    torch.testing.assert_close(found.values, torch.tensor([5.0, 4.0], dtype=torch.float64))
    kept = start.clone()
    assert torch.equal(start, kept)


def test_out_of_products_is_said():
    op = with_eigenvalues(HARD)
    found = eigsh(op, 6, max_products=24, tol=1e-6)
    assert found.products == op.products == 24
    assert not found.converged.all()
    assert "not converged" in repr(found)
    check_honest(op, found, tol=1e-6)
    whole = eigsh(op, 6, tol=1e-6)
    assert whole.converged.all()
    assert whole.restarts > 0
    check_honest(op, whole, tol=1e-6)


def test_a_function_of_the_seed_alone():
    op = with_eigenvalues(HARD, torch.float32)
    a, b, other = (eigsh(op, 3, seed=s, basis_dtype="int8") for s in (0, 0, 1))
    assert torch.equal(a.vectors, b.vectors)
    assert torch.equal(a.values, b.values)
    assert not torch.equal(a.vectors, other.vectors)
    largest = a.vectors[a.vectors.abs().argmax(0), range(3)]
    assert (largest > 0).all()
    assert a.to_dict()["values"] == a.values.tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
# Rounding to 8 bits leaves 2^-9 of a vector, uniform: 1.1e-3 of its norm; groups of 256 in 127 steps of their largest, about
# 3 standard deviations, rounded stochastically: 1e-2. Residuals are that share of the eigenvalue (twice, for the second
# rounding at a restart), errors of eigenvalues their squares over the gap.
@pytest.mark.parametrize(("store", "residual", "error"), [("bf16", 4e-3, 1e-4), ("int8", 3e-2, 2e-3)])
def test_quantized_bases_keep_eigenvalues_and_say_their_residuals(dtype, store, residual, error):
    values = torch.cat(
        [torch.randn(400, generator=torch.Generator().manual_seed(0)) * 0.1, HARD[190:196].float()]
    )
    op = with_eigenvalues(values, dtype)
    found = eigsh(op, 6, basis_dtype=store, tol=residual)
    assert found.converged.all(), found
    check_honest(op, found, tol=residual)
    truth = values.double().sort(descending=True).values[:6]
    assert ((found.values - truth).abs() / truth).max() < error
    # No larger than the rest: rounding cannot be iterated away. That is said, without endless restarts.
    op = with_eigenvalues(BULK, dtype)
    hopeless = eigsh(op, 6, basis_dtype=store, tol=1e-5)
    assert not hopeless.converged.any()
    assert hopeless.products < 250
    check_honest(op, hopeless, tol=1e-5)


@pytest.mark.parametrize("store", ["bf16", "int8"])
def test_outliers_from_a_quantized_basis_are_refined(store):
    bulk = torch.randn(600, generator=torch.Generator().manual_seed(0)) * 0.1
    op = with_eigenvalues(torch.cat([bulk, torch.tensor([8.0, 6.0, 5.0, -4.0])]), torch.float32)
    found = eigsh(op, 3, basis_dtype=store)
    assert found.products == op.products
    assert found.converged.all(), found
    check_honest(op, found)
    torch.testing.assert_close(found.values, torch.tensor([8.0, 6.0, 5.0]).double(), rtol=1e-5, atol=0)
    # Out of products there is no refinement, and the result says so.
    short = eigsh(op, 3, basis_dtype=store, max_products=20)
    assert short.products <= 20
    check_honest(op, short)


def test_bad_arguments_are_named():
    op = with_eigenvalues([1.0, 2.0, 3.0])
    for arguments, message in (
        ({"k": 0}, "k: got 0, takes 1 to 3"),
        ({"k": 4}, "k: got 4"),
        ({"k": 2.0}, "k must be an integer"),
        ({"which": "XX"}, "which must be one of LA"),
        ({"tol": 0}, "tol must lie between"),
        ({"basis_dtype": "fp8"}, "basis_dtype must be one of fp32"),
        ({"max_basis": 1}, "max_basis: got 1, takes at least 3"),
        ({"max_products": 1}, "max_products: got 1"),
        ({"v0": torch.zeros(3)}, "v0 must be finite and not zero"),
        ({"v0": torch.ones(2)}, "v0 must have shape"),
    ):
        with pytest.raises(lt.LowtideError, match=message):
            eigsh(op, **{"k": 1, **arguments})


def test_products_that_are_not_finite_are_reported():
    class Broken(LinearOperator):
        def _product(self, v, out):
            out.fill_(math.nan)

    with pytest.raises(lt.LowtideRuntimeError, match="product 1 with the operator is not finite"):
        eigsh(Broken(with_eigenvalues([1.0, 2.0]).layout), 1)
