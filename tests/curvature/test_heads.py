# SPDX-License-Identifier: Apache-2.0
"""Closed forms of linear heads against torch.func.hessian, in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

import lowtide as lt  # noqa: E402
from lowtide.curvature import CEHead, LogisticHead, MSEHead  # noqa: E402

N, D, C = 11, 4, 3
# Double precision, sums of at most N terms of order one: measured below 1e-15.
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def data(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((N, D), (C, D), (C,)))
    y = torch.randint(0, C, (N,), generator=g)
    soft = torch.rand(N, C, generator=g, dtype=torch.float64)
    return x.to(dtype), w.to(dtype), b.to(dtype), y, soft.to(dtype)


def _ce(**options):
    def make(x, w, b, y, soft):
        o = {k: (v.to(x.dtype) if isinstance(v, torch.Tensor) else v) for k, v in options.items()}
        target = soft if o.pop("soft", False) else y
        torch_names = {"class_weight": "weight"}
        loss = lambda z: F.cross_entropy(z, target, **{torch_names.get(k, k): v for k, v in o.items()})  # noqa: E731
        return CEHead(x, w, b, target, **o), loss

    return make


def _logistic(pos_weight=None):
    def make(x, w, b, y, soft):
        return LogisticHead(
            x, w, b, soft, pos_weight=pos_weight
        ), lambda z: F.binary_cross_entropy_with_logits(z, soft, pos_weight=pos_weight)

    return make


def _mse(x, w, b, y, soft):
    return MSEHead(x, w, b, soft), lambda z: F.mse_loss(z, soft)


WEIGHT = torch.tensor([0.5, 2.0, 1.25], dtype=torch.float64)
CASES = {
    "ce": _ce(),
    "ce_weighted": _ce(class_weight=WEIGHT),
    "ce_ignored": _ce(ignore_index=1),
    "ce_smooth": _ce(label_smoothing=0.3),
    "ce_all": _ce(class_weight=WEIGHT, ignore_index=2, label_smoothing=0.3),
    "ce_soft": _ce(soft=True),
    "ce_soft_all": _ce(soft=True, class_weight=WEIGHT, label_smoothing=0.2),
    "logistic": _logistic(),
    "logistic_pos_weight": _logistic(WEIGHT),
    "mse": _mse,
}


def flat(pair):
    return torch.cat([t.reshape(-1) for t in pair if t is not None])


def dense(x, w, b, loss):
    """Gradient and Hessian in (W, b), by torch."""
    theta = w.reshape(-1) if b is None else torch.cat([w.reshape(-1), b])

    def f(theta):
        weight = theta[: w.numel()].view_as(w)
        return loss(F.linear(x, weight, None if b is None else theta[w.numel() :]))

    return torch.func.grad(f)(theta), torch.func.hessian(f)(theta)


@pytest.fixture(params=list(CASES))
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("bias", [True, False])
def test_closed_forms_are_those_of_autograd(case, bias):
    x, w, b, y, soft = data()
    b = b if bias else None
    head, loss = case(x, w, b, y, soft)
    g, h = dense(x, w, b, loss)
    v = torch.randn(len(g), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pair = (v[: w.numel()].view_as(w), v[w.numel() :] if bias else None)
    torch.testing.assert_close(flat(head.gradient()), g, **EXACT)
    torch.testing.assert_close(flat(head.hvp(*pair)), h @ v, **EXACT)
    torch.testing.assert_close(flat(head.diag()), h.diag(), **EXACT)
    torch.testing.assert_close(head.trace(), h.trace(), **EXACT)
    torch.testing.assert_close(head.frobenius2(), h.square().sum(), **EXACT)
    torch.testing.assert_close(flat(head.hg()), h @ g, **EXACT)
    torch.testing.assert_close(head.quadratic(*pair, *pair), v @ h @ v, **EXACT)
    op = head.as_operator()
    assert op.positive
    assert op.layout.names == (("weight", "bias") if bias else ("weight",))
    torch.testing.assert_close(op.dense(), h, **EXACT)


@pytest.mark.parametrize("bias", [True, False])
def test_derivatives_of_products_and_diagonals(case, bias):
    x, w, b, y, soft = data()
    x, w, soft = x[:4, :2], w[:, :2], soft[:4]
    g = torch.Generator().manual_seed(2)
    q, v = (torch.randn(C, 2, generator=g, dtype=torch.float64) for _ in range(2))
    q_b, v_b = (torch.randn(C, generator=g, dtype=torch.float64) if bias else None for _ in range(2))
    y = torch.tensor([0, 1, 2, 0])  # some rows count whatever is ignored
    leaves = [t.clone().requires_grad_() for t in (x, w, q, v, *((b, q_b, v_b) if bias else ()))]

    def quadratic(x, w, q, v, b=None, q_b=None, v_b=None):
        return case(x, w, b, y, soft)[0].quadratic(q, q_b, v, v_b)

    def others(x, w, q, v, b=None, q_b=None, v_b=None):
        head = case(x, w, b, y, soft)[0]
        d, d_b = head.diag()
        h, h_b = head.hg()
        value = (d * q).sum() + (h * v).sum() + head.trace() + head.frobenius2()
        return value if d_b is None else value + d_b @ q_b + h_b @ v_b

    for f in (quadratic, others):
        assert torch.autograd.gradcheck(f, leaves)
        assert torch.autograd.gradgradcheck(f, leaves)


def test_the_gradient_of_a_product_is_that_of_double_backward():
    """The third cumulant beside torch's third derivative: to double's last bits, where gradcheck has 1e-6."""
    x, w, b, y, _ = (t.requires_grad_() if t.is_floating_point() else t for t in data())
    v, v_b = torch.randn_like(w), torch.randn_like(b)
    loss = F.cross_entropy(F.linear(x, w, b), y, WEIGHT)
    g = torch.autograd.grad(loss, (w, b), create_graph=True)
    h = torch.autograd.grad((g[0] * v).sum() + g[1] @ v_b, (w, b), create_graph=True)
    want = torch.autograd.grad((h[0] * w.detach()).sum() + h[1] @ b.detach(), (x, w, b))
    got = torch.autograd.grad(
        CEHead(x, w, b, y, class_weight=WEIGHT).quadratic(w.detach(), b.detach(), v, v_b), (x, w, b)
    )
    torch.testing.assert_close(got, want, **EXACT)


def test_float32_is_as_near_as_double_backward():
    x, w, b, y, _soft = data()
    _, h = dense(x, w, b, lambda z: F.cross_entropy(z, y))
    got = CEHead(x.float(), w.float(), b.float(), y).as_operator().dense()
    assert got.dtype == torch.float32
    # Sums of N products of three rounded numbers each.
    torch.testing.assert_close(got.double(), h, rtol=0, atol=4 * N * 2**-24 * float(h.abs().max()))


def test_extreme_logits_and_masked_classes():
    x = torch.eye(3, dtype=torch.float64)
    w = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([0.0, 0.0, float("-inf")], dtype=torch.float64)
    head = CEHead(x, w, b, torch.tensor([0, 1, 1]))
    d, d_b = head.diag()
    assert d.isfinite().all()
    assert (d[2] == 0).all()
    assert d_b[2] == 0
    assert d[0].tolist() == [0.0, 0.0, 0.25 / 3]
    assert head.as_operator().dense().isfinite().all()


def test_no_rows_and_one_class():
    empty = CEHead(torch.zeros(0, 2), torch.zeros(3, 2), None, torch.zeros(0, dtype=torch.long))
    assert float(empty.trace()) == 0.0
    assert empty.hvp(torch.ones(3, 2))[0].eq(0).all()
    one = CEHead(torch.ones(4, 2), torch.ones(1, 2), torch.ones(1), torch.zeros(4, dtype=torch.long))
    assert one.as_operator().dense().eq(0).all()


def test_operators_are_of_the_values_they_were_made_at():
    x, w, b, y, soft = data()
    for make in (CASES["ce"], CASES["logistic"], CASES["mse"]):
        x2, w2, b2 = x.clone(), w.clone().requires_grad_(), b.clone().requires_grad_()
        op = make(x2, w2, b2, y, soft)[0].as_operator()
        before = op.hvp(torch.ones(op.n, dtype=torch.float64))
        with torch.no_grad():
            x2.zero_(), w2.zero_()
        assert torch.equal(op.hvp(torch.ones(op.n, dtype=torch.float64)), before)
        assert not before.requires_grad
        assert w2.grad is None


def test_bad_arguments_are_refused_by_name():
    x, w, b, y, soft = data()
    with pytest.raises(lt.LowtideTypeError, match=r"X must be a float32 or float64 .*\.float\(\)"):
        CEHead(x.bfloat16(), w, b, y)
    with pytest.raises(lt.LowtideTypeError, match="W must have the dtype"):
        CEHead(x, w.float(), b, y)
    with pytest.raises(lt.LowtideValueError, match="flatten"):
        CEHead(x, w[:, :3], b, y)
    with pytest.raises(lt.LowtideValueError, match=r"b must have shape \(3,\)"):
        CEHead(x, w, b[:2], y)
    with pytest.raises(lt.LowtideValueError, match="ignore_index=-100"):
        CEHead(x, w, b, y + 1)
    with pytest.raises(lt.LowtideValueError, match="no row counts"):
        CEHead(x, w, b, torch.full((N,), -100))
    with pytest.raises(lt.LowtideValueError, match=r"y must have shape \(11,\)"):
        CEHead(x, w, b, y[:4])
    with pytest.raises(lt.LowtideValueError, match="soft targets"):
        CEHead(x, w, b, soft[:, :2])
    with pytest.raises(lt.LowtideValueError, match="class_weight must be 3"):
        CEHead(x, w, b, y, class_weight=-WEIGHT)
    with pytest.raises(lt.LowtideValueError, match="label_smoothing"):
        CEHead(x, w, b, y, label_smoothing=1.5)
    head = CEHead(x, w, b, y)
    with pytest.raises(lt.LowtideValueError, match="V must have W's shape"):
        head.hvp(w.T)
    with pytest.raises(lt.LowtideValueError, match="Q_b must have shape"):
        head.quadratic(w, b[:1], w, b)
    with pytest.raises(lt.LowtideValueError, match="without a bias"):
        CEHead(x, w, None, y).hvp(w, b)
    with pytest.raises(lt.LowtideValueError, match="must lie in"):
        LogisticHead(x, w, b, soft + 1)
    with pytest.raises(lt.LowtideValueError, match="pos_weight"):
        LogisticHead(x, w, b, soft, pos_weight=-WEIGHT)
    with pytest.raises(lt.LowtideValueError, match=r"y must have shape \(11, 3\)"):
        MSEHead(x, w, b, soft[:, 0])
