# SPDX-License-Identifier: Apache-2.0
"""Chunked cross entropy beside torch's with whole logits."""

from __future__ import annotations

import weakref

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

import lowtide as lt  # noqa: E402
from lowtide.curvature._linear_ce import ggn, linear_cross_entropy  # noqa: E402

N, D, V = 7, 3, 5
EXACT = {"rtol": 1e-12, "atol": 1e-13}  # double precision, a few dozen terms of order one


def data(*lead, seed=0):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(*(lead or (N,)), D, generator=g, dtype=torch.float64)
    w = torch.randn(V, D, generator=g, dtype=torch.float64)
    y = torch.randint(0, V, lead or (N,), generator=g)
    y.view(-1)[2] = -100
    return h.requires_grad_(), w.requires_grad_(), y


def whole(h, w, y):
    return F.cross_entropy((h @ w.T).flatten(0, -2), y.flatten())


@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
def test_value_gradient_and_hessian_product_are_those_of_whole_logits(chunk):
    h, w, y = data()
    rh, rw = torch.randn_like(h), torch.randn_like(w)

    def derivatives(loss):
        g = torch.autograd.grad(loss, (h, w), create_graph=True)
        return loss, *g, *torch.autograd.grad((g[0] * rh).sum() + (g[1] * rw).sum(), (h, w))

    torch.testing.assert_close(
        derivatives(linear_cross_entropy(h, w, y, chunk=chunk)), derivatives(whole(h, w, y)), **EXACT
    )


def test_forward_over_reverse():
    h, w, y = (t.detach() for t in data())
    tangents = torch.randn_like(h), torch.randn_like(w)

    def product(f):
        return torch.func.jvp(torch.func.grad(lambda h, w: f(h, w, y), argnums=(0, 1)), (h, w), tangents)

    torch.testing.assert_close(
        product(lambda h, w, y: linear_cross_entropy(h, w, y, chunk=2)), product(whole), **EXACT
    )
    f = lambda h: linear_cross_entropy(h, w, y, chunk=2)  # noqa: E731
    torch.testing.assert_close(
        torch.func.jvp(f, (h,), tangents[:1]),
        torch.func.jvp(lambda h: whole(h, w, y), (h,), tangents[:1]),
        **EXACT,
    )


def test_causal_positions_predict_the_next_label():
    h, w, y = data(2, 4)
    got = linear_cross_entropy(h, w, y, causal=True, chunk=2)
    want = whole(h[:, :-1], w, y[:, 1:])
    torch.testing.assert_close(
        [got, *torch.autograd.grad(got, (h, w))], [want, *torch.autograd.grad(want, (h, w))], **EXACT
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tangents", ["hidden", "weight", "both"])
def test_gauss_newton_product(causal, tangents):
    h, w, y = (t.detach() for t in data(2, 4))
    rh = torch.randn_like(h) if tangents != "weight" else None
    rw = torch.randn_like(w) if tangents != "hidden" else None

    def logits(h, w):
        return (h[:, :-1] if causal else h) @ w.T

    def loss(z):
        return F.cross_entropy(z.flatten(0, 1), (y[:, 1:] if causal else y).flatten())

    zero = [torch.zeros_like(t) if r is None else r for t, r in ((h, rh), (w, rw))]
    z, u = torch.func.jvp(logits, (h, w), tuple(zero))
    s = torch.func.jvp(torch.func.grad(loss), (z,), (u,))[1]
    want = torch.func.vjp(logits, h, w)[1](s)
    torch.testing.assert_close(ggn(h, w, rh, rw, y, causal=causal, chunk=3), want, **EXACT)


class Peak(TorchDispatchMode):
    """Bytes of the tensors that operations made and that are alive, at their most."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                key, size = storage.data_ptr(), storage.nbytes()
                if size and key not in self.known:
                    self.known.add(key)
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(t, self.freed, key, size)
        return out

    def freed(self, key, size):
        self.known.discard(key)
        self.live -= size


def test_memory_is_that_of_a_chunk():
    n, d, v, chunk = 512, 4, 2048, 16
    h = torch.randn(n, d, requires_grad=True)
    w = torch.randn(v, d, requires_grad=True)
    y = torch.randint(0, v, (n,))
    rows, gradients = 4 * chunk * v, 4 * (n + v) * d

    def peak(work):
        with Peak() as mode:
            work()
        return mode.peak

    def double(f):
        g = torch.autograd.grad(f(), (h, w), create_graph=True)
        torch.autograd.grad(g[0].sum() + g[1].sum(), (h, w))

    bound = 4 * rows + 8 * gradients
    assert peak(lambda: linear_cross_entropy(h, w, y, chunk=chunk).backward()) < bound
    assert peak(lambda: double(lambda: linear_cross_entropy(h, w, y, chunk=chunk))) < bound
    with torch.no_grad():
        assert peak(lambda: ggn(h, w, h, w, y, chunk=chunk)) < bound
    assert bound < 4 * n * v / 2  # half of the logits
    assert peak(lambda: whole(h, w, y).backward()) > 4 * n * v  # the ruler measures


def test_bfloat16_sums_in_float32():
    h, w, y = data()
    low = [t.detach().bfloat16().requires_grad_() for t in (h, w)]
    exact = [t.detach().double().requires_grad_() for t in low]
    got = linear_cross_entropy(*low, y, chunk=2)
    want = whole(*exact, y)
    assert got.dtype == torch.float32
    # Logits are rounded to bfloat16 once: 2^-9 of numbers below 8.
    torch.testing.assert_close(got.double(), want, rtol=0, atol=8 * 2**-9)
    for a, b in zip(torch.autograd.grad(got, low), torch.autograd.grad(want, exact), strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.double(), b, rtol=0, atol=2**-6)


def test_masked_classes_have_no_part():
    h, w, y = data()
    y[y == 0] = 1
    low = torch.cat([w[:1].detach() * 0 - 1e30, w[1:].detach()])
    x = h.detach().abs()
    g_h, g_w = ggn(x, low, torch.ones_like(h), None, y, chunk=3)
    assert g_w[0].eq(0).all()
    assert g_h.isfinite().all()


def test_bad_arguments_are_refused_by_name():
    h, w, y = data()
    with pytest.raises(lt.LowtideTypeError, match="one floating dtype"):
        linear_cross_entropy(h.float(), w, y)
    with pytest.raises(lt.LowtideValueError, match="one D"):
        linear_cross_entropy(h, w[:, :2], y)
    with pytest.raises(lt.LowtideValueError, match="labels must be integers"):
        linear_cross_entropy(h, w, y[:3])
    with pytest.raises(lt.LowtideValueError, match=r"in \[0, 5\) or be ignore_index"):
        linear_cross_entropy(h, w, y + 3)
    with pytest.raises(lt.LowtideValueError, match="no position counts"):
        linear_cross_entropy(h, w, torch.full((N,), -100))
    with pytest.raises(lt.LowtideValueError, match="chunk"):
        linear_cross_entropy(h, w, y, chunk=0)
    with pytest.raises(lt.LowtideValueError, match="T of 2 or more"):
        linear_cross_entropy(h[:1], w, y[:1] * 0, causal=True)
    with pytest.raises(lt.LowtideValueError, match="T of 2 or more"):
        linear_cross_entropy(h[0], w, y[0], causal=True)
