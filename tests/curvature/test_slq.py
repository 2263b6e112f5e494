# SPDX-License-Identifier: Apache-2.0
"""Quadratures against the eigenvalues of the matrix, and what a spectrum says about itself."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import lowtide as lt  # noqa: E402
from lowtide.curvature import LinearOperator, MatrixOperator, Spectrum, slq  # noqa: E402

_spec = importlib.util.spec_from_file_location("spectra", Path(__file__).with_name("spectra.py"))
spectra = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(spectra)
with_eigenvalues = spectra.with_eigenvalues

N = 600
#: A semicircle of radius 0.7 and outliers, most of them positive.
BULK = 0.7 * torch.cos(torch.linspace(0.02, math.pi - 0.02, N - 8, dtype=torch.float64))
TOP = [10.0, 8.0, 6.0, 5.0, 4.5, 3.0]
VALUES = torch.cat([BULK, torch.tensor([*TOP, -2.0, -1.5], dtype=torch.float64)])


@pytest.fixture(scope="module")
def op():
    return with_eigenvalues(VALUES, torch.float32)


@pytest.fixture(scope="module")
def spectrum(op):
    return slq(op, probes=12, steps=60, seed=3)


@pytest.mark.parametrize("reorth", ["none", "cgs2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_quadrature_is_exact_for_polynomials(reorth, dtype):
    op = with_eigenvalues(torch.linspace(-1, 2, 40), dtype)
    found = slq(op, probes=3, steps=6, reorth=reorth)
    assert found.nodes.shape == found.weights.shape == (3, 6)
    matrix = op.matrix.double()
    for degree in range(12):  # 2 * 6 nodes and weights
        power = torch.linalg.matrix_power(matrix, degree)
        for k in range(3):
            z = op.layout.probe(0, k).double()
            got = 40 * (found.weights[k] * found.nodes[k] ** degree).sum()
            want = z @ power @ z
            # A dozen roundings of numbers up to 2^degree * n.
            assert abs(got - want) < 40 * 2**degree * 50 * torch.finfo(dtype).eps
    assert op.products == 18


def test_traces_of_functions_lie_in_their_intervals(op, spectrum):
    for f in (lambda t: t, lambda t: t**2, torch.exp, lambda t: (t > 1).double()):
        estimate = spectrum.trace_of(f, confidence=0.99)
        truth = float(f(VALUES).sum())
        assert estimate.ci[0] <= truth <= estimate.ci[1]
        assert estimate.ci[1] - estimate.ci[0] > 2 * estimate.stderr > 0
    direct = [float(op.quad_seeded(3, k).sum()) for k in range(12)]
    # The first moment of the quadrature is Hutchinson's estimate.
    assert spectrum.trace_of(lambda t: t).value == pytest.approx(sum(direct) / 12, rel=1e-5)


@pytest.mark.parametrize("values", [torch.linspace(-1, 3, 60), torch.tensor([1.0] * 59 + [60.0])])
def test_intervals_cover_the_truth_as_often_as_they_say(values):
    op = with_eigenvalues(values)
    truth, hits = float(values.sum()), 0
    for seed in range(200):
        low, high = slq(op, probes=10, steps=3, seed=seed).trace_of(lambda t: t).ci
        hits += low <= truth <= high
    # 190 of 200 promised. One large eigenvalue makes the samples chi-squared with one degree of freedom, the worst case.
    assert hits >= 180


def test_density_integrates_to_one_and_follows_the_histogram(spectrum):
    for sigma in (None, 0.05, 0.5):
        t, phi = spectrum.density(sigma=sigma, points=4096)
        assert t.shape == phi.shape == (4096,)
        assert float(torch.trapezoid(phi, t)) == pytest.approx(1, abs=1e-4)
    grid = torch.tensor([-0.4, 0.0, 0.4, 7.0])
    t, phi = spectrum.density(grid, sigma=0.1)
    assert torch.equal(t, grid.double())
    exact = torch.exp(-0.5 * ((grid[:, None].double() - VALUES) / 0.1) ** 2).mean(1) / (
        0.1 * math.sqrt(2 * math.pi)
    )
    # Masses of a tenth of 600 eigenvalues, seen by 12 probes: 1 / sqrt(60 * 12) is 4 %.
    torch.testing.assert_close(phi, exact, rtol=0.15, atol=1e-4)


def test_masses_and_distribution(spectrum):
    for t in (-1.8, -0.5, 0.0, 0.3, 1.0, 5.5, 20.0):
        assert float(spectrum.cdf(t)) == pytest.approx(float((t >= VALUES).double().mean()), abs=0.03)
    grid = torch.linspace(-3, 11, 200)
    assert (spectrum.cdf(grid.view(20, 10)).flatten().diff() >= 0).all()
    assert spectrum.cdf(grid.view(20, 10)).shape == (20, 10)
    assert spectrum.bulk_mass(1.0) == pytest.approx(float((VALUES.abs() < 1).double().mean()), abs=0.01)
    assert spectrum.negative_mass() == pytest.approx(float((VALUES < 0).double().mean()), abs=0.03)
    assert spectrum.near_zero() == pytest.approx(0.01, rel=1e-4)
    zeros = slq(
        with_eigenvalues(torch.cat([torch.zeros(500), torch.tensor([-3.0, 9.0])])), probes=8, steps=20
    )
    assert zeros.negative_mass(-zeros.near_zero()) == pytest.approx(1 / 502, abs=3 / 502)
    assert spectrum.negative_mass(-1.0) == pytest.approx(2 / N, abs=2 / N)
    first, second = (spectrum.trace_of(lambda t, p=p: t**p).value for p in (1, 2))
    assert spectrum.effective_rank() == pytest.approx(first**2 / second, rel=1e-12)
    low, high = spectrum.bounds
    assert low == pytest.approx(-2, abs=1e-4)
    assert high == pytest.approx(10, abs=1e-4)


def test_criteria_are_those_of_the_nodes():
    made = Spectrum(
        torch.tensor([[-1.0, 4.0], [0.5, 2.0]], dtype=torch.float64),
        torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64),
        torch.zeros(2, 2, dtype=torch.float64),
        100,
    )
    assert made.criteria().r_e == 0.25
    assert made.criteria().k_h == pytest.approx(0.5 * math.sqrt(0.25) / math.sqrt(3.0))
    positive = slq(MatrixOperator(-torch.eye(5)), probes=2)
    assert positive.criteria().k_h == math.inf
    assert positive.effective_rank() == pytest.approx(5)


@pytest.mark.parametrize(
    ("reorth", "store"), [("none", "fp32"), ("cgs2", "fp32"), ("cgs2", "bf16"), ("cgs2", "int8")]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outliers_are_the_eigenvalues_above_the_bulk(dtype, reorth, store):
    found = slq(with_eigenvalues(VALUES, dtype), probes=7, steps=50, reorth=reorth, basis_dtype=store)
    high, low = found.outliers(), found.outliers("low")
    assert len(high.values) == 6
    assert len(low.values) == 2
    tolerance = {"fp32": 1e-5, "bf16": 2e-3, "int8": 1e-2}[
        store
    ]  # of a norm of 10, from the rounding of the basis
    assert high.values == pytest.approx(TOP, abs=tolerance)
    assert low.values == pytest.approx([-2, -1.5], abs=tolerance)
    assert high.edge == pytest.approx(0.7, abs=0.02)
    assert low.edge == pytest.approx(-0.7, abs=0.02)


def test_without_reorthogonalisation_there_are_ghosts_and_no_sum_changes():
    op = with_eigenvalues(VALUES, torch.float32)
    plain = slq(op, probes=2, steps=150, reorth="none")
    clean = slq(op, probes=2, steps=150, reorth="cgs2")
    copies = (plain.nodes[0] > 9.9).sum()
    assert copies > 1  # this is why eigsh reorthogonalises
    assert (clean.nodes[0] > 9.9).sum() == 1
    for f in (lambda t: t, lambda t: t**2, torch.exp):
        assert plain.trace_of(f).value == pytest.approx(clean.trace_of(f).value, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("reorth", ["none", "cgs2"])
@pytest.mark.parametrize("n", [1, 7])
def test_an_invariant_space_ends_a_probe(n, value, reorth):
    op = MatrixOperator(value * torch.eye(n))
    found = slq(op, probes=3, steps=20, reorth=reorth)
    assert op.products == 3
    torch.testing.assert_close(found.nodes, torch.full((3, 1), value).double(), rtol=1e-6, atol=0)
    assert found.outliers().values == ()
    t, phi = found.density()
    assert float(torch.trapezoid(phi, t)) == pytest.approx(1, abs=1e-3)
    assert "eigenvalues" in repr(found)


def test_one_probe_has_no_error_bar(op):
    estimate = slq(op, probes=1, steps=5).trace_of(lambda t: t)
    assert estimate.stderr == math.inf
    assert estimate.ci == (-math.inf, math.inf)


def test_a_function_of_the_seed(op):
    a, b, c = (slq(op, probes=2, steps=10, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.nodes, b.nodes)
    assert torch.equal(a.weights, b.weights)
    assert not torch.equal(a.nodes, c.nodes)


def test_a_spectrum_survives_json(spectrum):
    again = Spectrum.from_dict(json.loads(json.dumps(spectrum.to_dict())))
    assert torch.equal(again.nodes, spectrum.nodes)
    assert torch.equal(again.weights, spectrum.weights)
    assert torch.equal(again.errors, spectrum.errors)
    assert again.n == spectrum.n
    good = {"n": 2, "nodes": [[1.0, 2.0]], "weights": [[0.5, 0.5]], "errors": [[0, 0]]}
    assert Spectrum.from_dict(good).n == 2
    for key, value in (
        ("n", 0),
        ("n", True),
        ("nodes", []),
        ("nodes", [[1.0], [2.0, 3.0]]),
        ("nodes", [[1.0, "2"]]),
        ("nodes", [[1.0, math.nan]]),
        ("nodes", [[1.0]]),
        ("weights", [[0.5, 0.6]]),
        ("weights", [[1.5, -0.5]]),
        ("extra", 1),
    ):
        with pytest.raises(lt.LowtideError, match="spectrum"):
            Spectrum.from_dict({**good, key: value})


def test_plots(spectrum, tmp_path):
    pytest.importorskip("matplotlib")
    path = spectrum.plot(tmp_path / "deep" / "spectrum.png", title="Made")
    assert path.read_bytes().startswith(b"\x89PNG")
    slq(MatrixOperator(torch.zeros(4, 4)), probes=2).plot(tmp_path / "zero.svg")
    with pytest.raises(lt.LowtideValueError, match=r"\.png"):
        spectrum.plot(tmp_path / "spectrum.gif")


def test_bad_arguments_are_named(op, spectrum):
    for arguments, message in (
        ({"probes": 0}, "probes must be at least 1"),
        ({"steps": 2.5}, "steps must be an integer"),
        ({"reorth": "full"}, "reorth must be none or cgs2"),
        ({"basis_dtype": "int4"}, "basis_dtype must be one of"),
        ({"basis_dtype": "int8"}, "needs reorth='cgs2'"),
    ):
        with pytest.raises(lt.LowtideError, match=message):
            slq(op, **arguments)
    with pytest.raises(lt.LowtideValueError, match="sigma"):
        spectrum.density(sigma=0)
    with pytest.raises(lt.LowtideValueError, match="confidence"):
        spectrum.trace_of(torch.exp, confidence=95)
    with pytest.raises(lt.LowtideValueError, match="side"):
        spectrum.outliers("left")

    class Broken(LinearOperator):
        def _product(self, v, out):
            out.fill_(math.inf)

    with pytest.raises(lt.LowtideRuntimeError, match="product 1 with"):
        slq(Broken(op.layout))
