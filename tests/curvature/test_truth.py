# SPDX-License-Identifier: Apache-2.0
"""Every operator and every estimator against the dense matrix, on small models in float64."""

from __future__ import annotations

import functools

import pytest

torch = pytest.importorskip("torch")

import lowtide as lt  # noqa: E402
from lowtide.curvature import (  # noqa: E402
    FisherOperator,
    GGNOperator,
    HessianOperator,
    diagonal,
    eigsh,
    slq,
    trace,
)

from . import cases  # noqa: E402

MODELS = ["mlp", "regression", "conv", "attention"]


@functools.cache
def case(name):
    made = getattr(cases, name)()
    return made, made.dense()


def hessian(name, **options):
    made, dense = case(name)
    return HessianOperator(made.model, None, made.batches, made.loss, **options), dense


def error(op, dense):
    """Relative, over products with six random vectors: every column of an error shows."""
    v = torch.randn(op.n, 6, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    return float((op @ v - dense @ v).norm() / (dense @ v).norm())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("method", "allowed"), [("double", 1e-13), ("fwdrev", 1e-13), ("fd", 2e-9)])
def test_hessians(name, method, allowed):
    """Exact methods to rounding; differences to eps^(2/3), the best that two gradients allow, and a margin."""
    op, dense = hessian(name, method=method)
    assert error(op, dense) < allowed
    assert not op.positive


def test_the_r_operator():
    op, dense = hessian("mlp", method="rop")
    assert error(op, dense) < 1e-13


def gauss_newton(made):
    """``sum_b w_b J' H_out J`` by the definition, the criterion's Hessian by automatic differentiation."""
    names = [n for n, _ in made.named]
    shapes = [p.shape for _, p in made.named]
    sizes = [len(b[0]) for b in made.batches]
    total = 0
    for (x, y), size in zip(made.batches, sizes, strict=True):

        def outputs(flat, x=x):
            parts = flat.split([s.numel() for s in shapes])
            values = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
            return torch.func.functional_call(made.model, values, (x,))

        jacobian = torch.autograd.functional.jacobian(outputs, made.flat).flatten(0, 1)
        z = outputs(made.flat)
        inner = torch.autograd.functional.hessian(lambda z, y=y: made.loss(z, y), z)
        total = total + jacobian.T @ inner.reshape(z.numel(), -1) @ jacobian * (size / sum(sizes))
    return total


@pytest.mark.parametrize("name", ["mlp", "regression", "conv"])
def test_gauss_newton_and_type_two_fisher(name):
    made, _ = case(name)
    truth = gauss_newton(made)
    op = GGNOperator(made.model, None, made.batches, made.loss)
    assert op.positive
    assert error(op, truth) < 1e-13
    if name != "regression":  # there the likelihood's variance makes a factor
        fisher = FisherOperator(made.model, None, made.batches, made.loss, kind="type2")
        assert error(fisher, truth) < 1e-13


@pytest.mark.parametrize("name", ["mlp", "regression", "conv"])
def test_gnb_is_the_diagonal_of_gauss_newton(name):
    """Each element within five standard errors, and the sum, which averages them, within four."""
    made, _ = case(name)
    op = GGNOperator(made.model, None, made.batches, made.loss)
    truth = gauss_newton(made).diagonal()
    got = diagonal(op, method="gnb", rtol=0.0, max_probes=200)
    assert got.products == got.samples == 200
    assert bool((got.value >= 0).all())
    moved = got.stderr > 0
    assert float(((got.value - truth)[moved] / got.stderr[moved]).abs().max()) < 5
    total = float(got.stderr.norm()) * op.n**0.5  # a bound: samples of one probe are correlated
    assert abs(float(got.value.sum() - truth.sum())) < 4 * total
    with pytest.raises(lt.LowtideTypeError, match="has none"):
        diagonal(lt.curvature.MatrixOperator(torch.eye(3)), method="gnb")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace", "zo"])
def test_traces(name, method):
    """The truth lies in the interval; one seed, which the 95 % allow to be chosen among few."""
    op, dense = hessian(name)
    truth = float(dense.trace())
    got = trace(op, method=method, rtol=0.0, max_probes=72, seed=3)
    assert got.ci_low <= truth <= got.ci_high
    assert got.stderr < 0.4 * abs(truth)


def test_zeroth_order_is_hutchinson_without_gradients():
    """The same probes: what differs is the fourth derivative at h^2/12 and rounding, 1e-4 in float64."""
    op, _ = hessian("mlp")
    before = op.products
    zo = trace(op, method="zo", rtol=0.0, max_probes=20)
    assert op.products == before
    assert zo.products >= 41  # two values a probe, the centre, and the search for a step
    plain = trace(op, rtol=0.0, max_probes=20)
    assert zo.value == pytest.approx(plain.value, rel=1e-4)
    assert trace(op, method="zo", rtol=0.0, max_probes=20, fd_step=1e-3).value == pytest.approx(
        plain.value, rel=1e-3
    )
    with pytest.raises(lt.LowtideValueError, match="fd_step must be positive"):
        trace(op, method="zo", fd_step=-1.0)


def test_zeroth_order_in_single_precision():
    """Rounding of a float32 loss costs digits; the step that is chosen keeps two."""
    made = cases.mlp()
    made.model.float()
    batches = [(x.float(), y) for x, y in made.batches]
    op = HessianOperator(made.model, None, batches, made.loss)
    zo, plain = (trace(op, method=m, rtol=0.0, max_probes=20) for m in ("zo", "hutchinson"))
    assert zo.value == pytest.approx(plain.value, rel=0.02)


@pytest.mark.parametrize("name", ["mlp", "attention"])
def test_traces_of_single_tensors(name):
    op, dense = hessian(name)
    got = trace(op, rtol=0.0, max_probes=80, per_tensor=True, seed=2)
    blocks = dense.diagonal().split(list(op.layout.sizes))
    assert list(got.per_tensor) == list(op.layout.names)
    for block, (value, stderr) in zip(blocks, got.per_tensor.values(), strict=True):
        assert abs(value - float(block.sum())) <= 4.5 * stderr + 1e-12


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_diagonals(name, method):
    op, dense = hessian(name)
    got = diagonal(op, method=method, rtol=0.0, max_probes=60)
    missed, said = float((got.value - dense.diagonal()).norm()), float(got.stderr.norm())
    assert 0.4 * said < missed < 2 * said


@pytest.mark.parametrize("name", ["mlp", "attention"])
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_eigenvalues(name, which):
    op, dense = hessian(name)
    truth = torch.linalg.eigvalsh(dense)
    got = eigsh(op, k=4, which=which, tol=1e-8)
    assert bool(got.converged.all())
    wanted = {
        "LA": truth[-4:], "SA": truth[:4], "LM": truth[truth.abs().argsort()[-4:]],
        "BE": torch.cat([truth[:2], truth[-2:]]),
    }[which]  # fmt: skip
    torch.testing.assert_close(got.values.sort().values, wanted.sort().values, rtol=1e-7, atol=1e-9)
    residual = dense @ got.vectors - got.vectors * got.values
    assert float(residual.norm(dim=0).max()) <= 1e-7 * float(truth.abs().max())


@pytest.mark.parametrize("name", ["conv", "attention"])
def test_spectra(name):
    """Sums over the spectrum are those of the eigenvalues, within the intervals of six probes."""
    op, dense = hessian(name)
    truth = torch.linalg.eigvalsh(dense)
    spectrum = slq(op, probes=6, steps=25, seed=1)
    for f in (lambda t: t, lambda t: t**2, torch.exp):
        low, high = spectrum.trace_of(f).ci
        assert low <= float(f(truth).sum()) <= high


def test_intervals_of_a_networks_trace_hold_as_often_as_promised():
    """Coverage of the stopped rule on a Hessian, 200 seeds; the products of a dense copy, for speed."""
    _, dense = case("attention")  # its trace is negative
    op = lt.curvature.MatrixOperator(dense)
    truth = float(dense.trace())
    held = 0
    for seed in range(200):
        got = trace(op, rtol=0.2, max_probes=1000, seed=seed)
        assert got.converged
        assert got.value < 0
        held += got.ci_low <= truth <= got.ci_high
    assert held >= 180
