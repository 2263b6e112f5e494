# SPDX-License-Identifier: Apache-2.0
"""Sums of squares by channel: float64 truth, one set of bits, torch integration."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lowtide as lt
from lowtide import _core, ops


def matrix(m: int, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(m + n)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (5, 700), (700, 5), (64, 512), (129, 513)])
def test_equals_the_sum_in_double(isa: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = matrix(*shape, dtype)
    for dim in (0, 1):
        got, want = ops.channel_energy(x, dim=dim), x.double().square().sum(dim)
        assert got.dtype == torch.float64
        # at most a few hundred additions of exact squares
        torch.testing.assert_close(got, want, rtol=1e-13, atol=0.0)


def test_bits_do_not_depend_on_instructions_threads_or_array_type() -> None:
    x = matrix(300, 1100)
    want = [ops.channel_energy(x, dim=d) for d in (0, 1)]
    isa, threads = lt.isa(), lt.num_threads()
    try:
        for name in lt.available_isas():
            lt.set_isa(name)
            for count in (1, 2, 3):
                lt.set_num_threads(count)
                for d in (0, 1):
                    assert torch.equal(ops.channel_energy(x, dim=d), want[d])
                    assert (_core.channel_energy(x.numpy(), d == 0) == want[d].numpy()).all()
    finally:
        lt.set_isa(isa)
        lt.set_num_threads(threads)


def test_strided_matrices_equal_their_copies() -> None:
    x = matrix(40, 70)
    for y in (x.T, x[::2], x[:, 3:]):
        for dim in (0, 1):
            torch.testing.assert_close(
                ops.channel_energy(y, dim=dim), ops.channel_energy(y.clone(), dim=dim), rtol=1e-14, atol=0.0
            )


def test_only_inf_and_nan_make_a_sum_not_finite() -> None:
    x = torch.full((4, 4), 3e38)
    assert bool(ops.channel_energy(x, dim=0).isfinite().all())
    x[1, 2] = float("nan")
    assert ops.channel_energy(x, dim=0).isfinite().tolist() == [True, True, False, True]


def test_ordered_sum() -> None:
    x = torch.randn(1001, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(ops.ordered_sum(x)) == pytest.approx(float(x.sum()), rel=1e-13)
    assert float(ops.ordered_sum(x[:0])) == 0.0


def test_opcheck() -> None:
    for columns in (False, True):
        torch.library.opcheck(torch.ops.lowtide.channel_energy.default, (matrix(7, 9), columns))
    torch.library.opcheck(torch.ops.lowtide.ordered_sum.default, (torch.ones(5, dtype=torch.float64),))


def test_compiles_without_graph_breaks() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return ops.ordered_sum(ops.channel_energy(x * 2, dim=0))

    x = matrix(20, 30)
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.channel_energy(torch.ones(3), dim=0), "two dimensions"),
        (lambda: ops.channel_energy(torch.ones(3, 3), dim=2), "dim"),
        (lambda: ops.channel_energy(torch.ones(3, 3).double(), dim=0), "float32 or bfloat16"),
        (lambda: ops.ordered_sum(torch.ones(3)), "float64"),
    ],
)
def test_bad_arguments_are_named(call: Any, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call()
    with pytest.raises(RuntimeError, match="contiguous 2-D"):
        torch.ops.lowtide.channel_energy(torch.ones(3), False)
