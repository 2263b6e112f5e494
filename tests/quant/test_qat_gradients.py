# SPDX-License-Identifier: Apache-2.0
"""Each estimator's forward and gradient against the papers' formulas, written again in float64 NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import lowtide as lt
from lowtide.quant import qat

# float64 autograd against float64 NumPy: the same few operations in another order.
RTOL = 1e-12


def points(*special: float, rows: int = 5, cols: int = 400, spread: float = 1.0) -> np.ndarray:
    """Random points of several magnitudes, zeros, and the special ones (both signs, and their neighbours)."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((rows, cols)) * spread * np.exp(rng.normal(size=(rows, 1)))
    flat = [0.0, -0.0]
    for v in special:
        for s in (v, -v):
            flat += [s, np.nextafter(s, -np.inf), np.nextafter(s, np.inf)]
    w[:, : len(flat)] = flat
    return w


def run(
    f: Callable[..., torch.Tensor], *inputs: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in inputs]
    y = f(*tensors)
    g = np.random.default_rng(1).standard_normal(tuple(y.shape))
    y.backward(torch.tensor(g))
    return y.detach().numpy(), [t.grad.numpy() for t in tensors], g


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_statsq(bits: int) -> None:
    w = points(1e-9, 0.25, 1.0, 3.0)
    n = 2 ** (bits - 1)
    s = 2 * np.abs(w).mean(1, keepdims=True)
    x = np.clip(w / s, -1, 1 - 1e-6)
    want = s * (np.round(x * n - 0.5) + 0.5) / n  # NumPy rounds ties to even too
    y, (dw,), g = run(lambda t: qat.statsq(t, bits), w)
    np.testing.assert_allclose(y, want, rtol=RTOL)
    np.testing.assert_array_equal(dw, g)  # identity, clipped or not
    assert np.unique(np.round(y / s * n * 2)).size == 2**bits or bits == 8  # 2000 points miss some of 256


def test_statsq_ties_clips_and_rows_of_zeros() -> None:
    # mean|w| = 1/2, so s = 1: the points are x itself. bits = 2: n = 2, boundaries at -1/2, 0, 1/2.
    w = torch.tensor([[0.5, -0.5, 0.0, 1.0, -1.0, 0.25, -0.25, 0.5]], dtype=torch.float64)
    assert float(qat.statsq_scale(w)) == 1.0
    # t = 2x - 1/2: ties go to the even level, -1 -> level -2 and never -2.5.
    assert qat.statsq(w, 2).tolist() == [[0.25, -0.75, 0.25, 0.75, -0.75, 0.25, -0.25, 0.25]]
    zero = torch.zeros(2, 4, requires_grad=True)
    y = qat.statsq(zero, 4)
    y.sum().backward()
    assert not y.any()
    assert bool((zero.grad == 1).all())
    with torch.no_grad():
        half = torch.randn(4, 64).to(torch.bfloat16)
        assert (
            float((qat.statsq(half, 2).float().abs() / qat.statsq_scale(half)).max()) < 0.76
        )  # level 3/4 is the last


@pytest.mark.parametrize(("bits", "signed"), [(2, True), (4, True), (8, True), (4, False)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_lsq(bits: int, signed: bool, per_channel: bool) -> None:
    qn, qp = (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    s = np.array([[0.5], [0.25], [1.0], [0.125], [2.0]]) if per_channel else np.array(0.25)
    w = points(0.125, 0.25 * qp, 0.25 * max(qn, 1), spread=2.0)
    w[:, 60:64] = np.stack([qp * np.ones(5), -qn * np.ones(5), np.ones(5) / 2, 3 * np.ones(5) / 2], 1) * s
    v = w / s
    want = s * np.round(np.clip(v, -qn, qp))
    y, (dw, ds), g = run(lambda t, u: qat.lsq(t, u, bits, signed=signed), w, s)
    np.testing.assert_allclose(y, want, rtol=RTOL)
    inside = (v > -qn) & (v < qp)
    np.testing.assert_array_equal(dw, np.where(inside, g, 0))
    assert not inside[:, 60].any()  # at the range's ends the gradient has stopped, equation 5
    assert not inside[:, 61].any()
    slope = np.where(v <= -qn, -qn, np.where(v >= qp, qp, np.round(v) - v))
    per = w.shape[1] if per_channel else w.size
    total = (g * slope).sum(1, keepdims=True) if per_channel else (g * slope).sum()
    np.testing.assert_allclose(ds, total / math.sqrt(per * qp), rtol=1e-9)  # a sum of 400 to 2000 terms


def test_lsq_first_scale_and_recovery_from_a_bad_one() -> None:
    w = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    s = qat.lsq_scale(w, 4)
    assert s.shape == (6, 1, 1, 1)
    np.testing.assert_allclose(
        s.flatten().numpy(), 2 * w.abs().mean((1, 2, 3)).numpy() / math.sqrt(7), rtol=RTOL
    )
    scale = torch.tensor(-0.1, requires_grad=True)
    y = qat.lsq(torch.tensor([0.5, -0.5]), scale, 4)
    y.backward(torch.tensor([1.0, -1.0]))
    assert bool(y.isfinite().all())
    assert float(scale.grad) > 0  # of both clipped ends: 7 + 8, times 1/sqrt(N Qp)


@pytest.mark.parametrize("order", [1.0, 1.7, 3.0])
def test_reste(order: float) -> None:
    x = points(0.1, 1.5, 1e-300, spread=0.7)
    y, (dx,), g = run(lambda t: qat.reste(t, order), x)
    np.testing.assert_array_equal(y, np.where(x < 0, -1.0, 1.0))
    a = np.abs(x)
    slope = np.zeros_like(a)
    mid = (a > 0.1) & (a <= 1.5)
    slope[mid] = a[mid] ** ((1 - order) / order) / order
    slope[a <= 0.1] = 0.1 ** (1 / order) / 0.1
    np.testing.assert_allclose(dx, g * slope, rtol=RTOL)
    assert (slope == 0).any()


def test_reste_scale_carries_its_gradient() -> None:
    w = points(0.1, 1.5, rows=3, cols=50)
    module = qat.ReSTE().double()
    module.set_progress(1.0)
    assert float(module.order) == 3.0
    y, (dw,), g = run(module, w)
    a, b = np.abs(w), np.where(w < 0, -1.0, 1.0)
    np.testing.assert_allclose(y, b * a.mean(), rtol=RTOL)
    slope = np.where(
        a <= 0.1, 0.1 ** (1 / 3) / 0.1, np.where(a <= 1.5, np.maximum(a, 0.1) ** (-2 / 3) / 3, 0)
    )
    want = g * slope * a.mean() + (g * b).sum() * np.sign(w) / w.size
    np.testing.assert_allclose(dw, want, rtol=1e-9, atol=1e-15)  # one sum of 150 terms
    assert qat.reste_order(0.0) == 1.0
    assert qat.reste_order(0.5) == pytest.approx(1 + (1 - math.sqrt(0.5)) * 2)


def test_biper() -> None:
    omega = 20.0
    w = points(math.pi / omega, math.pi / 2 / omega, spread=0.1)
    y, (dw,), g = run(lambda t: qat.biper(t, omega), w)
    np.testing.assert_array_equal(y, np.where(np.sin(omega * w) < 0, -1.0, 1.0))
    np.testing.assert_allclose(dw, g * omega * np.cos(omega * w), rtol=1e-9, atol=1e-12)  # cos near its zeros
    y, (dw,), g = run(lambda t: qat.biper_sine(t, omega), w)
    np.testing.assert_allclose(y, np.sin(omega * w), rtol=RTOL, atol=1e-15)
    np.testing.assert_allclose(dw, g * omega * np.cos(omega * w), rtol=1e-9, atol=1e-12)
    y, (dw,), g = run(lambda t: qat.biper_penalty(t, 0.3, omega).reshape(1), w)
    np.testing.assert_allclose(y, 0.3 * (np.sin(omega * w) ** 2).mean(), rtol=1e-9)
    np.testing.assert_allclose(dw, g * 0.3 * omega * np.sin(2 * omega * w) / w.size, rtol=1e-9, atol=1e-15)
    assert [qat.biper_tau(p, 0.1, 2.0) for p in (0.0, 1.0)] == pytest.approx([0.1, 2.0])


def test_biper_rows_and_activations() -> None:
    a = points(0.5, 1.0)
    y, (da,), g = run(qat.biper_activation, a)
    np.testing.assert_array_equal(y, np.where(a < 0, -1.0, 1.0))
    np.testing.assert_allclose(da, g * np.maximum(0, 2 - 2 * np.abs(a)), rtol=RTOL)
    w = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    module = qat.BiPer(w)
    y = module(w)
    assert y.shape == w.shape
    grad = torch.randn_like(y)
    y.backward(grad)
    alpha = w.detach().abs().mean((1, 2, 3), keepdim=True)
    want = (grad * torch.where(torch.sin(20 * w) < 0, -1.0, 1.0)).sum((1, 2, 3), keepdim=True)
    torch.testing.assert_close(module.alpha.grad, want.detach())
    torch.testing.assert_close(w.grad, (grad * alpha * 20 * torch.cos(20 * w)).detach())


@pytest.mark.parametrize("make", [qat.StatsQ, qat.LSQ, qat.ReSTE, qat.BiPer])
def test_torch_compile_without_graph_breaks(make: Callable[..., torch.nn.Module]) -> None:
    torch.manual_seed(0)
    # aot_eager: tracing and the autograd graph, without a C++ compiler.
    layer = qat.attach_(torch.nn.Linear(16, 8), make)
    x = torch.randn(4, 16)
    compiled = torch.compile(lambda t: layer(t).square().sum(), fullgraph=True, backend="aot_eager")
    results = []
    for f in (lambda t: layer(t).square().sum(), compiled):
        layer.zero_grad()
        loss = f(x)
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in layer.parameters()]))
    assert len(results[0][1]) >= 2
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_types_keep_their_type(dtype: torch.dtype) -> None:
    w = torch.randn(4, 8, dtype=dtype, requires_grad=True)
    for module in (qat.StatsQ(4), qat.LSQ(w, bits=4), qat.ReSTE(), qat.BiPer(w)):
        y = module(w)
        assert y.dtype == dtype
        (grad,) = torch.autograd.grad(y.float().sum(), w)
        assert grad.dtype == dtype
        assert bool(grad.isfinite().all())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: qat.statsq(torch.zeros(3, 3), 1), "bits must be an integer between 2 and 8"),
        (lambda: qat.statsq(torch.zeros(3), 2), "at least 2 dimension"),
        (lambda: qat.statsq(torch.zeros(3, 3, dtype=torch.int32), 2), "floating point"),
        (lambda: qat.statsq([[1.0]], 2), "torch tensor"),
        (lambda: qat.lsq(torch.zeros(3, 3), torch.ones(3, 3, 3), 4), "broadcast"),
        (lambda: qat.reste(torch.zeros(3), 0.5), "order must be a number"),
        (lambda: qat.reste_order(1.5), "progress"),
        (lambda: qat.biper(torch.zeros(3), 0.0), "omega"),
        (lambda: qat.BiPer(torch.zeros(3, 3), stage=3), "stage"),
        (lambda: qat.ReSTE(clip=0.01), "clip"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call()
