# SPDX-License-Identifier: Apache-2.0
"""Probes, vector algebra, Krylov bases and rows of cross entropy on the emulated device."""

from __future__ import annotations

import math

import pytest
import torch
from emulated import compare, on_device
from torch import Tensor

_op = torch.ops.lowtide
SIZES = (0, 1, 31, 257, 4096, 4097, 9001)
AT = (7, 3, 1)  # seed, step, slot


def noise(n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mixed(seed: int) -> list[Tensor]:
    return [noise(n, seed + i, (torch.float32, torch.bfloat16)[i % 2]) for i, n in enumerate(SIZES)]


PARAMS = list(range(4, 4 + len(SIZES)))


def test_probes_of_signs() -> None:
    compare(_op.curvature_sign_dot.default, (mixed(0), *AT, PARAMS))
    compare(_op.curvature_sign_axpy_.default, (mixed(0), 0.1, *AT, PARAMS))
    compare(_op.curvature_sign_fill_.default, (mixed(0), 0.1, *AT, PARAMS))
    for squared in (False, True):
        for a in (0.9, 0.0):
            accs = [noise(n, 40) for n in SIZES]
            compare(_op.curvature_sign_fma_.default, (accs, mixed(0), a, 0.3, *AT, PARAMS, squared))


def test_vector_algebra() -> None:
    compare(_op.curvature_dot.default, (mixed(0), mixed(9)))
    for a in (0.5, 0.0):
        compare(_op.curvature_axpby_.default, (mixed(0), a, mixed(9), -2.0))
    for n in SIZES:
        for q in (None, noise(n, 3)):
            compare(_op.curvature_fd_finish_.default, (noise(n, 1), noise(n, 2), 100.0, q))


def test_shared_memory_is_refused() -> None:
    x = noise(300, 0)
    overlapping = [x[:200], x[100:]]
    with pytest.raises(RuntimeError, match="apart"):
        on_device(_op.curvature_sign_axpy_.default, (overlapping, 1.0, *AT, [0, 1]))
    with pytest.raises(RuntimeError, match="apart"):
        on_device(_op.curvature_axpby_.default, ([x], 1.0, [x], 1.0))
    with pytest.raises(RuntimeError, match="apart"):
        on_device(_op.curvature_fd_finish_.default, (x, x, 1.0, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("again", [0.0, 0.5, math.inf])  # always, where needed, never
def test_gram_schmidt(dtype: torch.dtype, again: float) -> None:
    for rows, n in ((0, 5), (1, 1), (5, 257), (3, 0), (17, 1030), (4, 33000)):
        basis = torch.randn(rows, n, generator=torch.Generator().manual_seed(n)) / max(n, 1) ** 0.5
        scale = None
        if dtype is torch.uint8:
            scale = torch.rand(rows, -(-n // 256)) * 0.01
            basis = torch.randint(0, 256, (rows, n), dtype=torch.uint8)
        else:
            basis = basis.to(dtype)
        compare(_op.curvature_project_.default, (noise(n, 1), basis, scale, again))


def test_step_of_lanczos() -> None:
    for n in (*SIZES, 33000):
        for previous in (None, noise(n, 3)):
            compare(_op.curvature_lanczos_step_.default, (noise(n, 1), noise(n, 2), previous, 0.7))


def test_rows_of_cross_entropy() -> None:
    for rows, cols in ((0, 5), (1, 1), (5, 33), (3, 1025), (9, 5000)):
        z, u, q = (noise(rows * cols, s).reshape(rows, cols) * 3 for s in range(3))
        r = torch.rand(rows)
        if rows > 2:
            z[1, 0] = -math.inf
            z[2, cols // 2] = math.nan
        compare(_op.curvature_ce_product.default, (z, u, r))
        compare(_op.curvature_ce_cumulant.default, (z, u, q, r))
        compare(_op.curvature_ce_diagonal.default, (z, r))
        compare(_op.curvature_ce_weighted.default, (z, r))
        compare(_op.curvature_ce_trace.default, (z, r))
        compare(_op.curvature_ce_product_.default, (u.clone(), z, r))
        compare(_op.curvature_ce_weighted_.default, (z.clone(), r))
