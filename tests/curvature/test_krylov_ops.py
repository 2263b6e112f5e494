# SPDX-License-Identifier: Apache-2.0
"""Gram-Schmidt against stored bases: bits, definitions, and what quantizing a basis costs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lowtide as lt  # noqa: E402
import lowtide.ops as ops  # noqa: E402
from lowtide import _core  # noqa: E402
from lowtide.curvature._basis import KrylovBasis  # noqa: E402

_spec = importlib.util.spec_from_file_location("spectra", Path(__file__).with_name("spectra.py"))
spectra = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(spectra)

STORES = ["fp32", "bf16", "int8"]


def basis_of(store, rows, n, dtype=torch.float32, seed=0):
    """Orthonormal rows, stored, and the same as float64."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, rows, generator=generator, dtype=torch.float64))
    basis = KrylovBasis(n, rows, dtype=dtype, store=store, seed=1)
    for column in q.T.contiguous().to(dtype):
        basis.append(column)
    return basis, torch.stack([basis.row(i).double() for i in range(rows)])


def vector(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("n", [5, 255, 256, 257, 1025, 20001])
def test_one_pass_and_two_are_their_definitions(store, n):
    rows = min(n, 9)
    basis, q = basis_of(store, rows, n)
    scale = basis._scale if store == "int8" else None
    start = vector(n, 5)
    for again, passes in ((float("inf"), 1), (0.0, 2)):
        w = start.clone()
        version = w._version
        c, before, after, taken = ops.curvature_project_(w, basis._data, scale, again=again)
        assert w._version > version
        assert taken == passes
        want, total = start.double(), torch.zeros(rows, dtype=torch.float64)
        for _ in range(passes):
            total += q @ want
            want = want - q.T @ (q @ want)
        # Each of the rows' products is rounded once when it is subtracted.
        torch.testing.assert_close(w.double(), want, rtol=0, atol=3e-6)
        torch.testing.assert_close(c, total, rtol=1e-5, atol=1e-5)
        assert before == pytest.approx(float(start.double().norm()), rel=1e-6)
        assert after == pytest.approx(float(w.double().norm()), rel=1e-6)


def test_the_third_reading_happens_where_something_was_left():
    basis, q = basis_of("fp32", 8, 5000)
    outside = vector(5000, 1)
    assert ops.curvature_project_(outside.clone(), basis._data)[3] == 1
    inside = (q.T @ torch.ones(8, dtype=torch.float64) * 1e6).float() + outside
    assert ops.curvature_project_(inside, basis._data)[3] == 2
    assert (q @ inside.double()).abs().max() < 1e-6 * inside.norm()


def test_lanczos_step_is_its_definition():
    w, q, previous = vector(3001, 1), vector(3001, 2) / 50, vector(3001, 3) / 50
    kept = w.double()
    alpha, norm = ops.curvature_lanczos_step_(w, q, previous, 0.7)
    kept -= 0.7 * previous.double()
    assert alpha == pytest.approx(float(kept @ q.double()), abs=1e-5)
    kept -= alpha * q.double()
    torch.testing.assert_close(w.double(), kept, rtol=0, atol=1e-6)
    assert norm == pytest.approx(float(kept.norm()), rel=1e-6)
    w = vector(7)
    assert ops.curvature_lanczos_step_(w, w.clone() / w.norm())[1] < 1e-6


@pytest.mark.parametrize("store", STORES)
def test_numpy_and_torch_have_the_same_bits_under_every_isa(store):
    basis, _ = basis_of(store, 7, 3001)
    data = (basis._data.view(torch.int16) if store == "bf16" else basis._data).numpy()
    data = data.view(np.uint16) if store == "bf16" else data
    scale = basis._scale if store == "int8" else None
    seen = set()
    before = lt.isa()
    try:
        for isa in lt.available_isas():
            lt.set_isa(isa)
            w, x = vector(3001, 3), vector(3001, 3).numpy().copy()
            c, _, after, _ = ops.curvature_project_(w, basis._data, scale, again=1e-4)
            other, *_ = _core.curvature_project_(x, data, None if scale is None else scale.numpy(), 1e-4)
            assert c.tolist() == other
            assert x.tobytes() == w.numpy().tobytes()
            y, z = vector(3001, 4), vector(3001, 4).numpy().copy()
            alpha, norm = ops.curvature_lanczos_step_(y, w, None, 0.0)
            assert _core.curvature_lanczos_step_(z, x, None, 0.0)[0] == alpha
            assert z.tobytes() == y.numpy().tobytes()
            seen.add((w.numpy().tobytes(), tuple(other), after, alpha, norm))
    finally:
        lt.set_isa(before)
    assert len(seen) == 1


@pytest.mark.parametrize("store", STORES)
def test_float64_takes_the_same_way_through_torch(store):
    results = []
    for dtype in (torch.float32, torch.float64):
        basis, _ = basis_of(store, 6, 700, dtype)
        w = vector(700, 2).to(dtype)
        found = basis.project_(w)
        results.append((w.double(), found.coefficients, found.norm))
        assert (
            basis.nbytes
            == {
                "fp32": 6 * 700 * dtype.itemsize,
                "bf16": 6 * 700 * 2,
                "int8": 6 * (700 + 3 * 4),
            }[store]
        )
    # One subtracted twice, the other once: 1e-4 of what was along the basis, the errors of rounding it.
    tolerance = {"fp32": 1e-5, "bf16": 3e-3, "int8": 3e-2}[store]
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=tolerance)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=tolerance)
    assert results[0][2] == pytest.approx(results[1][2], rel=tolerance)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("n", [100, 33000])
def test_rotating_a_basis_is_a_product_with_it(store, n):
    basis, q = basis_of(store, 6, n)
    s, _ = torch.linalg.qr(torch.randn(6, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64))
    want = s.T @ q
    torch.testing.assert_close(basis.combine(s.T).double(), want, rtol=0, atol=1e-6)
    basis.rotate_(s.T)
    assert basis.rows == 4
    got = torch.stack([basis.row(i).double() for i in range(4)])
    # What storing changes of a unit vector: see ROUNDING.
    limit = {"fp32": 1e-6, "bf16": 2.4e-3, "int8": 2e-2}[store]
    assert (got - want).norm(dim=1).max() < limit
    assert store == "fp32" or (got - want).norm(dim=1).max() > limit / 10


def test_opcheck():
    basis, _ = basis_of("int8", 3, 300)
    op = torch.ops.lowtide
    torch.library.opcheck(op.curvature_project_, (vector(300), basis._data, basis._scale, 1e-4))
    torch.library.opcheck(op.curvature_project_, (vector(300), torch.eye(2, 300), None, 1e-4))
    torch.library.opcheck(op.curvature_lanczos_step_, (vector(30), vector(30, 1), vector(30, 2), 0.5))


def test_compiles():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(w, q, basis):
        out = torch.ops.lowtide.curvature_lanczos_step_(w, q, None, 0.0)
        return w, out, torch.ops.lowtide.curvature_project_(w, basis, None, 0.0)

    w, q, basis = vector(300), vector(300, 1), torch.eye(2, 300)
    eager = w.clone()
    ops.curvature_lanczos_step_(eager, q)
    ops.curvature_project_(eager, basis, again=0.0)
    got, _, out = step(w.clone(), q, basis)
    assert torch.equal(got, eager)
    assert out.shape == (6,)


def test_bad_arguments_change_nothing():
    w, basis = vector(300), torch.eye(2, 300)
    codes = torch.zeros(2, 300, dtype=torch.uint8)
    kept = w.clone()
    for call, message in (
        (lambda: ops.curvature_project_(w.double(), basis), "w must be a float32"),
        (lambda: ops.curvature_project_(w[::2], basis), "w must be contiguous"),
        (lambda: ops.curvature_project_(w, basis.half()), "basis must be a float32"),
        (lambda: ops.curvature_project_(w, basis[:, 1:]), "rows of 300 numbers"),
        (lambda: ops.curvature_project_(w, codes), "scale comes with"),
        (lambda: ops.curvature_project_(w, basis, torch.ones(2, 2)), "scale comes with"),
        (lambda: ops.curvature_project_(w, codes, torch.ones(2, 1)), r"shape \(2, 2\)"),
        (lambda: ops.curvature_project_(w, basis, again=-1), "again must be"),
        (lambda: ops.curvature_lanczos_step_(w, w[:5].clone()), "q must be contiguous and have 300"),
        (lambda: ops.curvature_lanczos_step_(w, w.clone(), [1]), "previous must be"),
        (lambda: ops.curvature_project_(torch.ones(300, requires_grad=True), basis), "leaf tensor"),
    ):
        with pytest.raises(lt.LowtideError, match=message):
            call()
        assert torch.equal(w, kept)
    for direct in (
        lambda: torch.ops.lowtide.curvature_project_(w, basis[:, :9].contiguous(), None, 0.0),
        lambda: torch.ops.lowtide.curvature_project_(w, codes, torch.ones(2, 1), 0.0),
        lambda: torch.ops.lowtide.curvature_lanczos_step_(w, w[:9].clone(), None, 0.0),
    ):
        with pytest.raises(RuntimeError, match="lowtide"):
            direct()
    assert torch.equal(w, kept)


# The report's experiment (n = 20000, m = 100: 4.7e-6, 4.9e-4, 6.2e-4), smaller: a bulk and ten outliers.
@pytest.mark.parametrize(("store", "error"), [("fp32", 2e-6), ("bf16", 8e-4), ("int8", 2e-3)])
def test_ritz_values_of_a_quantized_basis_have_no_ghosts(store, error):
    n, m = 2000, 100
    values = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values[:10] = torch.tensor([60.0, 50, 42, 36, 30, 25, 20, 16, 12, 9])
    matrix = lt.curvature.MatrixOperator(torch.diag(values).float())
    plain = lt.curvature.slq(matrix, probes=1, steps=m)
    assert (plain.nodes[0] > 59).sum() > 1  # without orthogonalisation the largest comes again
    found = lt.curvature.slq(matrix, probes=1, steps=m, reorth="cgs2", basis_dtype=store)
    ritz = found.nodes[0].sort(descending=True).values[:10]
    top = values.sort(descending=True).values[:10]
    assert ((ritz - top) / top).abs().max() < error
    for f in (lambda t: t, lambda t: t**2):
        assert found.trace_of(f).value == pytest.approx(plain.trace_of(f).value, rel=1e-3)
