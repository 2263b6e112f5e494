# SPDX-License-Identifier: Apache-2.0
"""Probes of signs over lists of tensors, against their definition on lowtide.random.sample."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lowtide as lt  # noqa: E402
from lowtide import _core, ops  # noqa: E402

NUMBERS = (11, 5, 2)  # seed, step, slot
SIZES = (0, 1, 31, 33, 2047, 4097, 20001)
PARAMS = list(range(7, 7 + len(SIZES)))


def tensors(shift=0):
    """One of each size, every third in bfloat16."""
    g = torch.Generator().manual_seed(3 + shift)
    return [
        torch.randn(n, generator=g).to(torch.bfloat16 if (i + shift) % 3 == 0 else torch.float32)
        for i, n in enumerate(SIZES)
    ]


def signs():
    return [
        lt.random.sample(n, seed=11, step=5, slot=2, param=p, dist="rademacher", like="torch")
        for n, p in zip(SIZES, PARAMS, strict=True)
    ]


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_each_is_its_definition(isa, shift):
    xs, zs = tensors(shift), signs()
    dots = ops.curvature_sign_dot(xs, *NUMBERS, PARAMS)
    assert dots.dtype == torch.float64
    for dot, x, z in zip(dots, xs, zs, strict=True):
        exact = math.fsum((x.double() * z.double()).tolist())
        assert (
            abs(dot.item() - exact) <= 150 * 2.0**-53 * x.double().abs().sum().item()
        )  # roundings in double
    for squared in (False, True):
        accs = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in SIZES]
        want = [
            torch.tensor(0.9) * acc + torch.tensor(0.1) * (x.float() * (x.float() if squared else z))
            for acc, x, z in zip(accs, xs, zs, strict=True)
        ]
        ops.curvature_sign_fma_(accs, xs, 0.9, 0.1, *NUMBERS, PARAMS, squared)
        assert all(torch.equal(got, w) for got, w in zip(accs, want, strict=True))
    want = [(x.float() + torch.tensor(0.3) * z).to(x.dtype) for x, z in zip(xs, zs, strict=True)]
    ops.curvature_sign_axpy_(xs, 0.3, *NUMBERS, PARAMS)
    assert all(torch.equal(got, w) for got, w in zip(xs, want, strict=True))
    ops.curvature_sign_fill_(xs, 1.0, *NUMBERS, PARAMS)
    assert all(torch.equal(x.float(), z) for x, z in zip(xs, zs, strict=True))


def test_axpy_has_the_bits_of_spsa_perturb():
    xs, ys = tensors(), tensors()
    ops.curvature_sign_axpy_(xs, 1e-3, *NUMBERS, PARAMS)
    ops.spsa_perturb_list(ys, ys, [1e-3] * len(ys), *NUMBERS, PARAMS, 0)
    assert all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


def test_numpy_gives_the_same_bits():
    def array(x):
        return x.view(torch.uint16).numpy().copy() if x.dtype == torch.bfloat16 else x.numpy().copy()

    xs = tensors()
    arrays = [array(x) for x in xs]
    assert (
        _core.curvature_sign_dot(arrays, *NUMBERS, PARAMS)
        == ops.curvature_sign_dot(xs, *NUMBERS, PARAMS).tolist()
    )
    accs = [torch.ones(n) for n in SIZES]
    mine = [acc.numpy().copy() for acc in accs]
    ops.curvature_sign_fma_(accs, xs, 0.9, 0.1, *NUMBERS, PARAMS)
    _core.curvature_sign_fma_(mine, arrays, 0.9, 0.1, *NUMBERS, PARAMS, False)
    assert all(np.array_equal(m, acc.numpy()) for m, acc in zip(mine, accs, strict=True))
    for name in ("curvature_sign_axpy_", "curvature_sign_fill_"):
        getattr(ops, name)(xs, 0.5, *NUMBERS, PARAMS)
        getattr(_core, name)(arrays, 0.5, *NUMBERS, PARAMS)
        assert all(np.array_equal(m, array(x)) for m, x in zip(arrays, xs, strict=True))
    with pytest.raises(lt.LowtideError, match="params"):
        _core.curvature_sign_dot(arrays, *NUMBERS, [1])
    with pytest.raises(lt.LowtideError, match="contiguous"):
        _core.curvature_sign_dot([np.ones(4, np.float32)[::2]], *NUMBERS, [1])
    with pytest.raises(lt.LowtideError, match="equal sizes"):
        _core.curvature_sign_fma_(
            [np.ones(4, np.float32)], [np.ones(3, np.float32)], 1, 1, *NUMBERS, [1], False
        )


def test_no_bit_depends_on_threads_or_on_the_rest_of_the_list():
    xs = tensors()
    whole = ops.curvature_sign_dot(xs, *NUMBERS, PARAMS)
    alone = [ops.curvature_sign_dot([x], *NUMBERS, [p]).item() for x, p in zip(xs, PARAMS, strict=True)]
    assert whole.tolist() == alone
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(ops.curvature_sign_dot(xs, *NUMBERS, PARAMS), whole)
    finally:
        torch.set_num_threads(threads)


def test_empty_lists_do_nothing():
    assert ops.curvature_sign_dot([], *NUMBERS, []).shape == (0,)
    ops.curvature_sign_axpy_([], 1.0, *NUMBERS, [])
    ops.curvature_sign_fma_([], [], 1.0, 1.0, *NUMBERS, [])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: ops.curvature_sign_axpy_([x], math.nan, *NUMBERS, [0]), "scale must be finite"),
        (lambda x: ops.curvature_sign_axpy_([x], 1.0, -1, 0, 0, [0]), "seed"),
        (lambda x: ops.curvature_sign_axpy_([x], 1.0, *NUMBERS, []), "params must list 1"),
        (lambda x: ops.curvature_sign_axpy_([x], 1.0, *NUMBERS, [1 << 32]), r"params\[0\]"),
        (lambda x: ops.curvature_sign_axpy_(x, 1.0, *NUMBERS, [0]), r"list of tensors, got a tensor"),
        (lambda x: ops.curvature_sign_fill_([x[::2]], 1.0, *NUMBERS, [0]), r"xs\[0\] must be contiguous"),
        (lambda x: ops.curvature_sign_dot([x.double()], *NUMBERS, [0]), "float32 or bfloat16"),
        (
            lambda x: ops.curvature_sign_fma_([x.bfloat16()], [x], 1, 1, *NUMBERS, [0]),
            r"accs\[0\] must be a float32",
        ),
        (
            lambda x: ops.curvature_sign_fma_([x], [x[:4]], 1, 1, *NUMBERS, [0]),
            r"xs\[0\] must have 8 elements",
        ),
        (lambda x: ops.curvature_sign_fma_([x], [], 1, 1, *NUMBERS, [0]), "xs must list 1 tensors"),
    ],
)
def test_bad_arguments_are_named_and_nothing_changes(call, words):
    x = torch.ones(8)
    with pytest.raises(lt.LowtideError, match=words):
        call(x)
    assert torch.equal(x, torch.ones(8))


def test_tensors_that_share_memory_are_refused():
    x = torch.zeros(10)
    with pytest.raises(RuntimeError, match="apart"):
        ops.curvature_sign_axpy_([x[:6], x[5:]], 1.0, *NUMBERS, [0, 1])
    with pytest.raises(RuntimeError, match="apart"):
        ops.curvature_sign_fma_([x[1:]], [x[:-1]], 1.0, 1.0, *NUMBERS, [0])
    assert not x.any()


def test_autograd_sees_the_change_and_leaves_are_refused():
    x = torch.zeros(5)
    version = x._version
    ops.curvature_sign_axpy_([x], 1.0, *NUMBERS, [0])
    assert x._version > version
    leaf = torch.ones(5, requires_grad=True)
    assert not ops.curvature_sign_dot([leaf], *NUMBERS, [0]).requires_grad
    with pytest.raises(lt.LowtideError, match="no_grad"):
        ops.curvature_sign_axpy_([leaf], 1.0, *NUMBERS, [0])
    assert torch.equal(leaf, torch.ones(5))


def test_opcheck():
    def x():
        return torch.ones(70)

    for name, args in {
        "curvature_sign_dot": ([x(), x()], *NUMBERS, [1, 2]),
        "curvature_sign_axpy_": ([x(), x()], 0.5, *NUMBERS, [1, 2]),
        "curvature_sign_fill_": ([x(), x()], 0.5, *NUMBERS, [1, 2]),
        "curvature_sign_fma_": ([x(), x()], [x(), x()], 0.5, 0.25, *NUMBERS, [1, 2], True),
    }.items():
        torch.library.opcheck(getattr(torch.ops.lowtide, name).default, args)


def test_compiles_without_graph_breaks():
    def f(x):
        y, acc = x.clone(), torch.zeros_like(x)
        ops.curvature_sign_axpy_([y], 0.5, *NUMBERS, [3])
        ops.curvature_sign_fma_([acc], [y], 0.0, 2.0, *NUMBERS, [3])
        ops.curvature_sign_fill_([y], 3.0, *NUMBERS, [4])
        return acc + y, ops.curvature_sign_dot([acc, y], *NUMBERS, [3, 4])

    x = torch.arange(70, dtype=torch.float32)
    for got, want in zip(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x), strict=True):
        assert torch.equal(got, want)
