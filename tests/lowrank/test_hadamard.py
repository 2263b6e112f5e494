# SPDX-License-Identifier: Apache-2.0
"""The fast Walsh-Hadamard transform and the projections made of it, against the matrix of the definition in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lowtide as lt
from lowtide import _core, ops
from lowtide.lowrank import RandomHadamard

SHAPES = [(40, 48), (48, 40), (17, 63), (64, 64), (3, 1), (5, 77), (128, 2)]


def matrix_of(n: int, signs: np.ndarray | None = None) -> np.ndarray:
    """H D, or its product over the two spans, from Sylvester's recursion."""
    h = 1 << (n.bit_length() - 1)
    sylvester = np.ones((1, 1))
    while len(sylvester) < h:
        sylvester = np.kron([[1, 1], [1, -1]], sylvester)
    whole = np.eye(n)
    for s in range(1 if h == n else 2):
        span = np.eye(n)
        at = slice(0, h) if s == 0 else slice(n - h, n)
        span[at, at] = sylvester / np.sqrt(h)
        whole = span @ np.diag(np.ones(n) if signs is None else signs[s]) @ whole
    return whole


def signs_for(n: int, seed: int = 0) -> torch.Tensor:
    spans = 1 if n & (n - 1) == 0 else 2
    return lt.random.sample((spans, n), seed=seed, dist="rademacher", like="torch")


def gradient(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_follows_the_definition(isa: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    g = gradient(*shape).to(dtype)
    for signs in (None, signs_for(shape[1])):
        want = g.double().numpy() @ matrix_of(shape[1], None if signs is None else signs.numpy()).T
        rows = ops.hadamard(g, signs=signs)
        np.testing.assert_allclose(rows.numpy(), want, atol=5e-6)
        assert torch.equal(rows, ops.hadamard(g.T.contiguous(), dim=0, signs=signs).T)
        back = ops.hadamard_back(rows, shape[1], signs=signs)
        np.testing.assert_allclose(back.numpy(), g.float().numpy(), atol=5e-6)
        assert torch.equal(back, ops.hadamard_back(rows.T.contiguous(), shape[1], dim=0, signs=signs).T)


@pytest.mark.parametrize("n", [1, 4, 64, 1024])
def test_is_its_own_inverse(isa: str, n: int) -> None:
    x = gradient(5, n).mul(100).round()
    assert torch.equal(ops.hadamard(ops.hadamard(x)), x)  # 1 / sqrt(4^k) and sums of integers are exact


def test_numpy_and_torch_agree_on_every_isa_and_thread_count() -> None:
    g, signs = gradient(130, 300), signs_for(300)
    index = torch.arange(0, 300, 7, dtype=torch.int32)
    want = _core.fwht_forward(g.numpy(), signs.numpy(), index.numpy(), False)
    back = _core.fwht_inverse(want, signs.numpy(), index.numpy(), False, 300)
    before = lt.isa()
    try:
        for isa in lt.available_isas():
            lt.set_isa(isa)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                low = ops.hadamard(g, signs=signs, index=index)
                assert np.array_equal(low.numpy(), want), (isa, threads)
                assert np.array_equal(ops.hadamard_back(low, 300, signs=signs, index=index).numpy(), back), (
                    isa,
                    threads,
                )
    finally:
        lt.set_isa(before)
        torch.set_num_threads(2)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("dim", [64, 100, 767])
def test_rows_are_orthonormal_and_products_are_those_of_the_rows(side: str, dim: int) -> None:
    shape = (30, dim) if side == "right" else (dim, 30)
    g, at = gradient(*shape), {"side": side, "seed": 3, "step": 5, "param": 2}
    P = RandomHadamard(20)
    rows = P.basis(g, **at)
    assert rows.shape == (20, dim)
    assert float((rows @ rows.T - torch.eye(20)).abs().max()) < 1e-6
    R = P.project(g, **at)
    torch.testing.assert_close(R, lt.lowrank.project(g, rows, side), atol=2e-5, rtol=0)
    back = P.project_back(R, dim=dim, **at)
    torch.testing.assert_close(back, lt.lowrank.project_back(R, rows, side), atol=2e-5, rtol=0)
    assert np.array_equal(P.project(g.numpy(), **at), R.numpy())
    assert np.array_equal(P.project_back(R.numpy(), dim=dim, **at), back.numpy())
    assert np.array_equal(P.basis(g.numpy(), **at), rows.numpy())


def test_address_decides_and_rank_is_clamped() -> None:
    g = gradient(4, 48)
    one = RandomHadamard(8).project(g, side="right", seed=1, step=2, param=3)
    for other in ({"seed": 2}, {"step": 3}, {"param": 4}):
        assert not torch.equal(
            one, RandomHadamard(8).project(g, side="right", **{"seed": 1, "step": 2, "param": 3, **other})
        )
    whole = RandomHadamard(1000).project(g, side="right", seed=1)
    assert whole.shape == (4, 48)
    # A rotation keeps lengths.
    torch.testing.assert_close(whole.norm(dim=1), g.norm(dim=1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dim", [128, 200])
def test_lengths_are_kept_on_average(dim: int) -> None:
    x = gradient(1, dim) * torch.linspace(4, 0.1, dim)
    P = RandomHadamard(32, orthonormal=False)
    ratios = [float(P.project(x, side="right", seed=s).square().sum()) for s in range(400)]
    # Each ratio has variance below 2/32 (Gaussian rows have that): the mean of 400 has a standard deviation below 0.0125.
    assert abs(np.mean(ratios) / float(x.square().sum()) - 1) < 4 * 0.0125
    kept = float(RandomHadamard(32).project(x, side="right", seed=0).square().sum())
    assert kept * dim / 32 == pytest.approx(ratios[0], rel=1e-5)


def test_overlapping_spans_mix_like_one() -> None:
    """A single spike must reach about as many coordinates where lines are no power of two: the subspace of 32 rows
    holds its share of it, not all or nothing."""
    for dim in (512, 700):
        x = torch.zeros(1, dim)
        for at in (0, dim // 2, dim - 1):
            x.zero_()[0, at] = 1.0
            kept = [
                float(RandomHadamard(dim // 2).project(x, side="right", seed=s).square().sum())
                for s in range(50)
            ]
            # Of a spike spread over at least dim / 2 coordinates half is kept, within a few percent.
            assert min(kept) > 0.3, (dim, at)
            assert max(kept) < 0.7, (dim, at)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda g: ops.hadamard(g.double()), "x must be a float32 or bfloat16 tensor"),
        (lambda g: ops.hadamard(g, dim=2), "dim must be 0 or 1"),
        (lambda g: ops.hadamard(g, index=torch.tensor([3, 2])), "index must ascend"),
        (lambda g: ops.hadamard(g, signs=torch.ones(2, 8)), r"signs must have shape \(1, 8\)"),
        (lambda g: ops.hadamard(g, signs=torch.full((1, 8), 0.5)), "signs must be"),
        (lambda g: ops.hadamard(g, signs=torch.ones(1, 8).double()), "signs must be a float32"),
        (lambda g: ops.hadamard_back(g, 9), "low must have 9 coefficients"),
        (lambda g: ops.hadamard_back(g, 0), "lines must have"),
        (lambda g: RandomHadamard(0), "rank must be an integer >= 1"),
        (lambda g: RandomHadamard(3).project(g, side="up"), "side must be"),
        (lambda g: RandomHadamard(3).project_back(g, side="right", dim=8), "R must have 3 columns"),
        (lambda g: lt.lowrank.RandomProjection(3, "cauchy"), "kind must be one of gaussian, rademacher"),
    ],
)
def test_bad_arguments_are_named(call: Any, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call(gradient(6, 8))


def test_ops_called_directly_never_leave_their_bounds() -> None:
    op, g = torch.ops.lowtide, gradient(6, 8)
    i32 = {"dtype": torch.int32}
    for call in (
        lambda: op.fwht_forward(g, None, torch.tensor([8], **i32), False),
        lambda: op.fwht_forward(g, torch.ones(1, 6), None, True),
        lambda: op.fwht_forward(g, torch.zeros(1, 8), None, False),
        lambda: op.fwht_inverse(g, None, torch.tensor([1, 2], **i32), False, 8),
        lambda: op.fwht_inverse(g[:, :1].contiguous(), None, torch.tensor([-1], **i32), False, 8),
        lambda: op.fwht_inverse(g, None, None, False, 9),
        lambda: op.fwht_forward(g.T, None, None, False),
    ):
        with pytest.raises(RuntimeError):
            call()
    assert op.fwht_forward(g, None, torch.empty(0, **i32), False).shape == (6, 0)


def test_opcheck_and_compile() -> None:
    g, signs = gradient(6, 12), signs_for(12)
    index = torch.tensor([0, 3, 5], dtype=torch.int32)
    torch.library.opcheck(torch.ops.lowtide.fwht_forward.default, (g, signs, index, False))
    torch.library.opcheck(torch.ops.lowtide.fwht_forward.default, (g.T.contiguous(), None, None, True))
    torch.library.opcheck(
        torch.ops.lowtide.fwht_inverse.default, (g[:, :3].contiguous(), signs, index, False, 12)
    )

    def f(x: torch.Tensor) -> torch.Tensor:
        return ops.hadamard_back(ops.hadamard(x, signs=signs, index=index), 12, signs=signs, index=index)

    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(g), f(g))
