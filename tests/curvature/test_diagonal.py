# SPDX-License-Identifier: Apache-2.0
"""Diagonals: values, standard errors, the rule that stops."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch")

import lowtide as lt  # noqa: E402
from lowtide.curvature import MatrixOperator, diagonal  # noqa: E402

from .cases import matrix, outliers_and_bulk, power_law  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hutchinson_is_the_mean_of_probe_times_product(dtype):
    h = matrix(power_law(9)).to(dtype)
    op = MatrixOperator(h, shapes=[(3, 2), (3,)])
    got = diagonal(op, max_probes=10, seed=4)
    probes = torch.stack([op.layout.probe(4, k) for k in range(10)])
    samples = probes * (probes @ h)
    # ten sums of numbers near one: a few units in the last place of the mean, some more of its spread
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got.value, samples.mean(0), rtol=0, atol=8 * eps)
    torch.testing.assert_close(got.stderr, samples.std(0) / 10**0.5, rtol=32 * eps, atol=8 * eps)
    assert got.samples == got.products == 10


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_the_error_is_what_the_standard_error_says(method):
    h = matrix(outliers_and_bulk(100))
    op = MatrixOperator(h)
    truth = h.diagonal()
    errors, said = torch.zeros(100).double(), torch.zeros(100).double()
    for seed in range(40):
        got = diagonal(op, method=method, max_probes=40, rtol=0.0, seed=seed)
        errors += (got.value - truth) ** 2 / 40
        said += got.stderr**2 / 40
    # 40 x 100 dependent squares; XDiag's samples share their vectors, so its errors are of the right size only
    assert 0.6 < float(said.sum() / errors.sum()) ** 0.5 < 1.7
    if method == "hutchinson":
        variance = ((h**2).sum(1) - truth**2) / 40
        torch.testing.assert_close(said, variance, rtol=0.25, atol=0)


def test_xdiag_is_leaving_one_out():
    h = matrix(power_law(30, 1.0))
    op = MatrixOperator(h)
    s = 6
    got = diagonal(op, method="xdiag", max_probes=2 * s, rtol=0.0, seed=3)
    omega = torch.stack([op.layout.probe(3, k) for k in range(s)], 1)
    samples = []
    for i in range(s):
        q = torch.linalg.qr(h @ omega[:, [j for j in range(s) if j != i]])[0]
        approx = q @ q.T @ h
        w = omega[:, i]
        samples.append(approx.diagonal() + w * ((h - approx) @ w))
    samples = torch.stack(samples)
    assert got.samples == s
    assert got.products == 2 * s
    torch.testing.assert_close(got.value, samples.mean(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.stderr, samples.std(0) / s**0.5, rtol=1e-7, atol=1e-12)


def test_xdiag_beats_hutchinson_where_eigenvalues_decay_and_is_exact_at_low_rank():
    h = matrix(power_law(300, 2.0))
    error = {
        m: float((diagonal(MatrixOperator(h), method=m, max_probes=48, rtol=0.0).value - h.diagonal()).norm())
        for m in ("hutchinson", "xdiag")
    }
    assert error["xdiag"] < error["hutchinson"] / 10
    h = matrix(torch.tensor([3.0, -2.0, 1.0] + [0.0] * 30))
    got = diagonal(MatrixOperator(h), method="xdiag", max_probes=20)
    torch.testing.assert_close(got.value, h.diagonal(), rtol=0, atol=1e-13)
    assert got.converged
    assert got.products < 20
    assert not got.stderr.any()


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_it_stops_when_narrow_and_says_when_not(method):
    flat = torch.diag(torch.linspace(1, 2, 120).double()) + matrix(outliers_and_bulk(120)) / 200
    h = flat if method == "hutchinson" else matrix(outliers_and_bulk(120))
    got = diagonal(MatrixOperator(h), method=method, rtol=0.1, max_probes=90)
    assert got.converged
    assert got.products < 90
    assert float((got.value - h.diagonal()).norm() / h.diagonal().norm()) < 0.1
    short = diagonal(MatrixOperator(h), method=method, rtol=1e-9, max_probes=10)
    assert not short.converged
    assert "not converged" in repr(short)
    assert json.loads(json.dumps(short.to_dict()))["products"] == 10


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_sizes_zero_matrices_and_out(method):
    out = torch.full((1,), 7.0)
    got = diagonal(MatrixOperator(torch.tensor([[-3.0]])), method=method, out=out)
    assert got.value is out
    assert out.tolist() == pytest.approx([-3.0])
    assert not diagonal(MatrixOperator(torch.zeros(4, 4)), method=method).value.any()
    with pytest.raises(lt.LowtideValueError, match="out must be contiguous"):
        diagonal(MatrixOperator(torch.zeros(4, 4)), method=method, out=torch.zeros(3))


def test_bad_input_is_refused():
    op = MatrixOperator(torch.eye(20))
    with pytest.raises(lt.LowtideValueError, match="method must be one of hutchinson"):
        diagonal(op, method="bks")
    with pytest.raises(lt.LowtideValueError, match="at least 4"):
        diagonal(op, method="xdiag", min_probes=2, max_probes=3)
    assert op.products == 0
    op._product = lambda v, out: out.fill_(math.inf)
    for method in ("hutchinson", "xdiag"):
        with pytest.raises(lt.LowtideRuntimeError, match="not finite"):
            diagonal(op, method=method)
