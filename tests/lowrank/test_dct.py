# SPDX-License-Identifier: Apache-2.0
"""The fast cosine transform and the subspaces made of it, against the matrix of the definition in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import lowtide as lt
from lowtide import ops
from lowtide.lowrank import DCT, DCTBasis

SHAPES = [(40, 48), (48, 40), (17, 63), (64, 64), (3, 1), (5, 77)]


def cosines(n: int) -> np.ndarray:
    """C of the DCT-II: orthonormal rows."""
    k, c = np.mgrid[0:n, 0:n]
    rows = np.cos(np.pi * (2 * c + 1) * k / (2 * n)) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows


def gradient(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_follows_the_definition(isa: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    g = gradient(*shape).to(dtype)
    rows = ops.dct(g)
    np.testing.assert_allclose(rows.numpy(), g.double().numpy() @ cosines(shape[1]).T, atol=5e-6)
    columns = ops.dct(g, dim=0)
    np.testing.assert_allclose(columns.numpy(), cosines(shape[0]) @ g.double().numpy(), atol=5e-6)
    assert torch.equal(columns, ops.dct(g.T.contiguous()).T)
    np.testing.assert_allclose(ops.idct(rows, shape[1]).numpy(), g.float().numpy(), atol=2e-6)
    np.testing.assert_allclose(ops.idct(columns, shape[0], dim=0).numpy(), g.float().numpy(), atol=2e-6)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("power", ["l1", "l2"])
def test_the_chosen_cosines_are_the_largest(side: str, power: str) -> None:
    g = gradient(60, 48) * torch.linspace(3, 0.1, 48)
    full = g.double().numpy() @ cosines(48).T if side == "right" else cosines(60) @ g.double().numpy()
    size = np.abs(full) if power == "l1" else full**2
    size = size.sum(0 if side == "right" else 1)
    basis = DCT(12, power).basis(g, side=side)
    assert basis.index.tolist() == sorted(np.argsort(-size)[:12].tolist())
    assert basis.shape == (12, 48 if side == "right" else 60)
    assert basis.nbytes == 48
    kept = size[basis.index.numpy()].sum() / size.sum()
    if power == "l2":
        assert lt.lowrank.energy(g, basis, side) == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_projects_as_its_dense_rows_do(isa: str, side: str) -> None:
    g = gradient(40, 56)
    basis = DCT(9).basis(g, side=side)
    rows = basis.dense()
    assert (rows.double() @ rows.double().T - torch.eye(9)).abs().max() < 1e-6
    low = lt.lowrank.project(g, basis, side)
    torch.testing.assert_close(low, lt.lowrank.project(g, rows, side), atol=5e-6, rtol=0)
    back = lt.lowrank.project_back(low, basis, side)
    torch.testing.assert_close(back, lt.lowrank.project_back(low, rows, side), atol=5e-6, rtol=0)


def test_numpy_gives_the_bits_of_torch() -> None:
    g = gradient(40, 56)
    for side in ("right", "left"):
        a, b = DCT(9).basis(g, side=side), DCT(9).basis(g.numpy(), side=side)
        assert np.array_equal(a.index.numpy(), b.index)
        low = lt.lowrank.project(g, a, side)
        assert np.array_equal(low.numpy(), lt.lowrank.project(g.numpy(), b, side))
        assert np.array_equal(
            lt.lowrank.project_back(low, a, side).numpy(), lt.lowrank.project_back(low.numpy(), b, side)
        )
        assert np.array_equal(a.dense().numpy(), b.dense())


def test_rows_without_gradient_get_exactly_nothing() -> None:
    g = gradient(40, 48)
    g[7] = 0
    low = ops.dct(g, index=torch.arange(0, 48, 5))
    assert not low[7].any()
    assert not ops.idct(low, 48, index=torch.arange(0, 48, 5))[7].any()


def test_every_isa_and_thread_count_gives_the_same_bits() -> None:
    g = gradient(300, 240)
    before, want = lt.isa(), None
    try:
        for isa in lt.available_isas():
            lt.set_isa(isa)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                got = [ops.dct(g), ops.dct(g, dim=0), ops.dct_power(g), ops.dct_power(g, dim=0, square=True)]
                want = want or got
                assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), (isa, threads)
    finally:
        lt.set_isa(before)
        torch.set_num_threads(2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda g: ops.dct(g.double()), "x must be a float32 or bfloat16 tensor"),
        (lambda g: ops.dct(g[0]), "x must have two dimensions"),
        (lambda g: ops.dct(g, dim=2), "dim must be 0 or 1"),
        (lambda g: ops.dct(g, index=torch.tensor([3, 2])), "index must ascend"),
        (lambda g: ops.dct(g, index=torch.tensor([0, 8])), "index must ascend"),
        (lambda g: ops.dct(g, index=torch.tensor([0.0])), "index must be a 1-D int32"),
        (lambda g: ops.idct(g, 9), "low must have 9 coefficients"),
        (lambda g: ops.idct(g, 0), "lines must have"),
        (lambda g: ops.dct_power(g[:, :0]), "lines must have"),
        (lambda g: DCT(0), "rank must be an integer >= 1"),
        (lambda g: DCT(2, "max"), "power must be one of l1, l2"),
        (lambda g: DCT(2).basis(g, side="up"), "side must be"),
        (lambda g: DCT(2).basis(g / 0, side="right"), "G is not finite"),
        (lambda g: DCT(2).basis(g, side="right").project(g.T, "right"), "G must have 8 columns"),
        (lambda g: lt.lowrank.project_back(g, DCT(2).basis(g, side="left"), "left"), "R must have 2 rows"),
        (lambda g: DCTBasis(np.arange(2), 8).project(g.numpy(), "right"), "index must have dtype int32"),
    ],
)
def test_bad_arguments_are_named(call: Any, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call(gradient(6, 8))


def test_ops_called_directly_never_leave_their_bounds() -> None:
    op, g = torch.ops.lowtide, gradient(6, 8)
    for call in (
        lambda: op.dct_forward(g, torch.tensor([8], dtype=torch.int32), False),
        lambda: op.dct_forward(g, torch.tensor([6], dtype=torch.int32), True),
        lambda: op.dct_inverse(g, torch.tensor([1, 2], dtype=torch.int32), False, 8),
        lambda: op.dct_inverse(g[:, :1].contiguous(), torch.tensor([-1], dtype=torch.int32), False, 8),
        lambda: op.dct_inverse(g, None, False, 9),
        lambda: op.dct_power(g.T, False, True),
    ):
        with pytest.raises(RuntimeError):
            call()
    assert op.dct_forward(g, torch.empty(0, dtype=torch.int32), False).shape == (6, 0)


def test_opcheck_and_compile() -> None:
    g = gradient(6, 8)
    index = torch.tensor([0, 3, 5], dtype=torch.int32)
    torch.library.opcheck(torch.ops.lowtide.dct_forward.default, (g, index, False))
    torch.library.opcheck(torch.ops.lowtide.dct_forward.default, (g.T.contiguous(), None, True))
    torch.library.opcheck(torch.ops.lowtide.dct_inverse.default, (g[:, :3].contiguous(), index, False, 8))
    torch.library.opcheck(torch.ops.lowtide.dct_power.default, (g, False, True))

    def f(x: torch.Tensor) -> torch.Tensor:
        return ops.idct(ops.dct(x, index=index), 8, index=index)

    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(g), f(g))
