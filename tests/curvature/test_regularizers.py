# SPDX-License-Identifier: Apache-2.0
"""Hessian alignment beside its definition by double backward."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

import lowtide as lt  # noqa: E402
from lowtide.curvature import CEHead  # noqa: E402
from lowtide.curvature.regularizers import HGP, HutchinsonAlign  # noqa: E402

C, D = 3, 4
EXACT = {"rtol": 1e-11, "atol": 1e-12}  # double precision through three derivatives


def domains():
    g = torch.Generator().manual_seed(0)
    sizes = (5, 7, 6)
    x = [torch.randn(n, D, generator=g, dtype=torch.float64).requires_grad_() for n in sizes]
    y = [torch.randint(0, C, (n,), generator=g) for n in sizes]
    w = torch.randn(C, D, generator=g, dtype=torch.float64).requires_grad_()
    return x, y, w, torch.randn(C, generator=g, dtype=torch.float64).requires_grad_()


def flat_gradient(loss, phi):
    return torch.cat([t.reshape(-1) for t in torch.autograd.grad(loss, phi, create_graph=True)])


def rows_of_hessian(loss, phi):
    g = flat_gradient(loss, phi)
    return g, torch.stack([flat_gradient(gi, phi) for gi in g])


def definition(x, y, w, b, alpha, beta, of_domain, of_mean, stop):
    phi = (w,) if b is None else (w, b)
    losses = [F.cross_entropy(F.linear(xi, w, b), yi) for xi, yi in zip(x, y, strict=True)]
    moments = [rows_of_hessian(loss, phi) for loss in losses]
    g, h = rows_of_hessian(sum(losses) / len(losses), phi)
    centre = of_mean(h, g)
    if stop:
        centre, g = centre.detach(), g.detach()
    return sum(
        alpha * (of_domain(he, ge) - centre).square().sum() + beta * (ge - g).square().sum()
        for ge, he in moments
    ) / len(losses)


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["hgp", "diagonal"])
def test_penalty_and_its_gradients_are_those_of_the_definition(kind, bias, stop):
    x, y, w, b = domains()
    b = b if bias else None
    if kind == "hgp":
        got = HGP(0.7, 0.3, stop_gradient=stop)(x, y, w, b)
        moment = lambda h, g: h @ g  # noqa: E731
    else:
        got = HutchinsonAlign(0.7, 0.3, stop_gradient=stop)(x, y, w, b)
        moment = lambda h, g: h.diag()  # noqa: E731
    want = definition(x, y, w, b, 0.7, 0.3, moment, moment, stop)
    leaves = [*x, w] if b is None else [*x, w, b]
    torch.testing.assert_close(
        [got, *torch.autograd.grad(got, leaves)], [want, *torch.autograd.grad(want, leaves)], **EXACT
    )


def test_the_centre_is_of_the_mean_loss():
    """Not the mean of the domains' H_e g_e, with which the penalty would be another."""
    x, y, w, _ = domains()
    heads = [CEHead(xi, w, None, yi) for xi, yi in zip(x, y, strict=True)]
    products = torch.stack([head.hg()[0] for head in heads])
    mean = sum((p - products.mean(0)).square().sum() for p in products) / len(x)
    assert abs(float((HGP(1.0, 0.0)(x, y, w, None) / mean).detach()) - 1) > 0.05


def test_sampled_diagonals_converge_and_are_addressed():
    x, y, w, b = domains()
    head = CEHead(x[0], w, b, y[0])
    exact = HutchinsonAlign().diagonal(head).detach()
    h = head.as_operator().dense()
    sampled = HutchinsonAlign(exact=False, probes=400, seed=3)
    once = sampled.diagonal(head, step=1)
    assert torch.equal(once, sampled.diagonal(head, step=1))
    assert not torch.equal(once, sampled.diagonal(head, step=2))
    # Variance of an element: its row's squares off the diagonal over the probes. 15 elements, fixed seed.
    sigma = ((h.square().sum(1) - h.diag().square()) / 400).sqrt()
    assert float(((once.detach() - exact).abs() / sigma).max()) < 4
    got = torch.autograd.grad(HutchinsonAlign(exact=False, probes=3)(x, y, w, b), x)
    assert all(t.isfinite().all() and t.abs().sum() > 0 for t in got)


def test_equal_domains_cost_nothing():
    x, y, w, b = domains()
    for penalty in (HGP(), HutchinsonAlign(), HutchinsonAlign(exact=False, probes=2)):
        assert float(penalty([x[0], x[0]], [y[0], y[0]], w, b).detach()) < 1e-30


def test_bad_arguments_are_refused_by_name():
    x, y, w, b = domains()
    with pytest.raises(lt.LowtideValueError, match="one tensor for each domain"):
        HGP()(x, y[:2], w, b)
    with pytest.raises(lt.LowtideValueError, match="alpha"):
        HGP(alpha=-1.0)
    with pytest.raises(lt.LowtideValueError, match="beta"):
        HutchinsonAlign(beta=float("nan"))
    with pytest.raises(lt.LowtideValueError, match="probes"):
        HutchinsonAlign(probes=0)
