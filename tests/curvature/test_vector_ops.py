# SPDX-License-Identifier: Apache-2.0
"""Dots, axpby and finished differences over lists of tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lowtide as lt  # noqa: E402
from lowtide import _core, ops  # noqa: E402

SIZES = (0, 1, 31, 33, 2047, 4097, 20001)
TYPES = (torch.float32, torch.bfloat16)


def tensors(seed, dtype):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=g).to(dtype) for n in SIZES]


@pytest.mark.parametrize("x_dtype", TYPES)
@pytest.mark.parametrize("y_dtype", TYPES)
def test_each_is_its_definition(isa, x_dtype, y_dtype):
    xs, ys = tensors(0, x_dtype), tensors(1, y_dtype)
    dots = ops.curvature_dot(xs, ys)
    assert dots.dtype == torch.float64
    for dot, x, y in zip(dots, xs, ys, strict=True):
        products = x.double() * y.double()  # exact
        error = abs(dot.item() - math.fsum(products.tolist()))
        assert error <= 150 * 2.0**-53 * products.abs().sum().item()  # roundings of sums in double
    want = [
        (torch.tensor(0.7) * y.float() + torch.tensor(-0.3) * x.float()).to(y_dtype)
        for x, y in zip(xs, ys, strict=True)
    ]
    ops.curvature_axpby_(ys, 0.7, xs, -0.3)
    assert all(torch.equal(y, w) for y, w in zip(ys, want, strict=True))
    ops.curvature_axpby_(ys, 0.0, xs, 1.0)
    assert all(torch.equal(y, x.to(y_dtype)) for x, y in zip(xs, ys, strict=True))


@pytest.mark.parametrize("n", SIZES)
def test_finished_differences(isa, n):
    plus, minus, q = (torch.randn(n, generator=torch.Generator().manual_seed(s)) for s in range(3))
    want = (plus - minus) * torch.tensor(12.5)
    again = plus.clone()
    sums = ops.curvature_fd_finish_(plus, minus, 12.5, q)
    assert torch.equal(plus, want)
    assert sums.tolist() == [ops.curvature_dot([want], [want]).item(), ops.curvature_dot([want], [q]).item()]
    assert ops.curvature_fd_finish_(again, minus, 12.5).tolist() == [sums[0].item(), 0.0]
    assert torch.equal(again, want)


def test_numpy_gives_the_same_bits():
    def array(x):
        return x.view(torch.uint16).numpy().copy() if x.dtype == torch.bfloat16 else x.numpy().copy()

    xs, ys = tensors(0, torch.float32), tensors(1, torch.bfloat16)
    a, b = [array(x) for x in xs], [array(y) for y in ys]
    assert _core.curvature_dot(a, b) == ops.curvature_dot(xs, ys).tolist()
    ops.curvature_axpby_(ys, 0.5, xs, 2.0)
    _core.curvature_axpby_(b, 0.5, a, 2.0)
    assert all(np.array_equal(m, array(y)) for m, y in zip(b, ys, strict=True))
    plus, minus = xs[5].clone(), torch.ones(4097)
    sums = ops.curvature_fd_finish_(plus, minus, 3.0, minus)
    assert _core.curvature_fd_finish_(a[5], minus.numpy(), 3.0, minus.numpy()) == sums.tolist()
    assert np.array_equal(a[5], plus.numpy())
    with pytest.raises(lt.LowtideError, match="equal sizes"):
        _core.curvature_fd_finish_(a[5], np.ones(3, np.float32), 1.0)
    with pytest.raises(lt.LowtideError, match="equal lengths"):
        _core.curvature_dot(a, b[1:])


def test_no_bit_depends_on_threads_or_on_the_rest_of_the_list():
    xs, ys = tensors(0, torch.float32), tensors(1, torch.float32)
    whole = ops.curvature_dot(xs, ys)
    assert whole.tolist() == [ops.curvature_dot([x], [y]).item() for x, y in zip(xs, ys, strict=True)]
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(ops.curvature_dot(xs, ys), whole)
    finally:
        torch.set_num_threads(threads)


def test_sums_do_not_overflow_where_float32_would():
    x = torch.full((5000,), 1e30)
    assert ops.curvature_dot([x], [x]).item() == pytest.approx(5000 * float(x[0]) ** 2, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: ops.curvature_dot([x], [x, x]), "ys must list 1 tensors, got 2"),
        (lambda x: ops.curvature_dot([x], [x[:3]]), r"ys\[0\] must have 8 elements"),
        (lambda x: ops.curvature_dot([x.double()], [x]), r"xs\[0\] must be a float32 or bfloat16"),
        (lambda x: ops.curvature_axpby_([x], math.inf, [x.clone()], 1.0), "a must be finite"),
        (lambda x: ops.curvature_axpby_([x[::2]], 1.0, [x[:4].clone()], 1.0), "contiguous"),
        (lambda x: ops.curvature_fd_finish_(x, x.clone(), math.nan), "scale must be finite"),
        (lambda x: ops.curvature_fd_finish_(x, x[:4].clone(), 1.0), "minus must have 8 elements"),
        (lambda x: ops.curvature_fd_finish_(x, x.clone(), 1.0, x.bfloat16()), "q must be a float32"),
    ],
)
def test_bad_arguments_are_named_and_nothing_changes(call, words):
    x = torch.ones(8)
    with pytest.raises(lt.LowtideError, match=words):
        call(x)
    assert torch.equal(x, torch.ones(8))


def test_tensors_that_share_memory_are_refused():
    x = torch.ones(10)
    with pytest.raises(RuntimeError, match="apart"):
        ops.curvature_axpby_([x[:6]], 1.0, [x[4:]], 1.0)
    with pytest.raises(RuntimeError, match="apart"):
        ops.curvature_fd_finish_(x[:6], x[4:], 1.0)
    assert torch.equal(x, torch.ones(10))


def test_opcheck():
    def x():
        return torch.ones(70)

    for name, args in {
        "curvature_dot": ([x(), x()], [x(), x()]),
        "curvature_axpby_": ([x(), x()], 0.5, [x(), x()], 0.25),
        "curvature_fd_finish_": (x(), x(), 0.5, x()),
    }.items():
        torch.library.opcheck(getattr(torch.ops.lowtide, name).default, args)


def test_compiles_without_graph_breaks():
    def f(x):
        y = x.clone()
        ops.curvature_axpby_([y], 0.5, [x], 3.0)
        sums = ops.curvature_fd_finish_(y, x, 2.0, x)
        return y, sums, ops.curvature_dot([x, y], [y, y])

    x = torch.arange(70, dtype=torch.float32)
    for got, want in zip(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x), strict=True):
        assert torch.equal(got, want)
