# SPDX-License-Identifier: Apache-2.0
"""Products with packed matrices, channel-wise and factored methods on the emulated device."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from emulated import Twins, compare
from torch import Tensor

from lowtide import ops
from lowtide.ops import Packed

_op = torch.ops.lowtide


def matrix(rows: int, cols: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(rows: int, cols: int, seed: int, scheme: str) -> Packed:
    x = matrix(rows, cols, seed)
    if scheme == "nf4":
        codes, scale = ops.quantize_map(x, map="nf4", group=64)
        return Packed(codes, scale, None, 4, 64, (rows, cols), "nf4")
    bits, kind = int(scheme[0]), "asymmetric" if scheme[1] == "a" else "symmetric"
    return Packed(*ops.quantize_group(x, bits=bits, group=64, scheme=kind), bits, 64, (rows, cols))


@pytest.mark.parametrize("scheme", ["8s", "8a", "4s", "4a", "nf4"])
def test_products_with_packed_matrices(scheme: str) -> None:
    with Twins() as twins:
        for rows, cols, n in ((5, 70, 3), (1, 1, 1), (65, 129, 9), (3, 0, 2), (0, 5, 4), (20, 33, 0)):
            w = packed(rows, cols, 1, scheme)
            ops.matmul(w, matrix(cols, n, 2))
            ops.matmul(matrix(n, cols, 3, torch.bfloat16), w, tb=True)
            ops.matmul(w, matrix(rows, n, 4), ta=True)
            ops.gemv(w, matrix(1, cols, 5)[0])
    assert twins.calls["matmul"] == 18
    assert twins.calls["gemv"] == 6


def test_products_of_strided_matrices_into_a_given_one() -> None:
    wide = matrix(7, 40)
    with Twins() as twins:
        for a, b in itertools.product((wide[:, 3:20], wide[:, :17]), (matrix(17, 5), matrix(5, 17).T)):
            ops.matmul(a, b, out=torch.full((7, 5), math.nan))
    assert twins.calls == {"matmul_out": 4}


def test_energies() -> None:
    for shape, columns in itertools.product([(5, 70), (1, 1), (300, 33), (0, 5), (4, 0)], [False, True]):
        for dtype in (torch.float32, torch.bfloat16):
            energy = compare(_op.channel_energy.default, (matrix(*shape, dtype=dtype), columns))
            compare(_op.ordered_sum.default, (energy,))


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("chosen", [0, 1, 2])
@pytest.mark.parametrize("along", [0, 1, 2])
def test_combinations(along: int, chosen: int, stochastic: bool) -> None:
    rows, cols = 19, 37
    index = torch.tensor([0, 3, 4, 18], dtype=torch.int32) if chosen else None
    u = matrix(*{0: (rows, cols), 1: (4, cols), 2: (rows, 4)}[chosen], seed=2)
    k = matrix(1, {0: 1, 1: rows, 2: cols}[along], seed=3)[0]
    for dtype, sign in itertools.product((torch.float32, torch.bfloat16), (False, True)):
        args: tuple[Any, ...] = (
            matrix(rows, cols, 1, dtype), matrix(rows, cols, 4, dtype), k, along, sign, u, index, chosen,
            -0.1, 0.99, 0.9, stochastic, 5, 6, 7, 256,
        )  # fmt: skip
        compare(_op.combine_.default, args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 70), (300, 33), (3, 4096), (0, 5)])
def test_factored_moments(shape: tuple[int, int], dtype: torch.dtype) -> None:
    rows, cols = shape
    g = matrix(rows, cols, 1, dtype)
    row, col = torch.zeros(rows), torch.zeros(cols if rows else 0)
    adafactor = (0.99, 1e-30, 1e-30, 1e-30, 1.0)
    for _ in range(2):
        compare(_op.adafactor_.default, (matrix(rows, cols, 2), g, row, col, *adafactor))
    compare(
        _op.adafactor_.default, (matrix(rows, cols, 2), None, torch.zeros(rows), torch.zeros(0), *adafactor)
    )
    spoiled = g.clone()
    spoiled[rows // 2 : rows // 2 + 1] = math.inf
    compare(_op.adafactor_.default, (matrix(rows, cols, 2), spoiled, row, col, *adafactor))
    compare(_op.block_adam_.default, (torch.zeros(rows), g, torch.zeros(rows), 0.99, 0.1, 1.0, 1e-8))
    c = matrix(1, rows, 3)[0]
    compare(_op.row_dots.default, (g, matrix(rows, cols, 4), rows))
    compare(_op.shear_rows_.default, (matrix(rows, cols, 5), c, g))
    compare(_op.scale_rows_.default, (matrix(rows, cols, 6), c))
